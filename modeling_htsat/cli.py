"""The command `htsat`: convert checkpoints, tag recordings, find their events, score them, prepare data."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging

from .commands.outputs import FAILED, complain
from .interruption import INTERRUPTED, hand_over
from .version import VERSION

# Name, what it is for, and the module that has `add_arguments` and `run`.
COMMANDS = (
    ("convert", "make a model folder of a checkpoint from elsewhere", ".commands.convert"),
    ("classify", "which sounds are in recordings", ".commands.classify"),
    ("detect", "when sounds are heard in recordings", ".commands.detect"),
    ("evaluate", "score detections against the truth", ".commands.evaluate"),
    ("publish", "put a model on the Hub, with its code and its card", ".commands.publish"),
    ("export", "make one file of a model that runs without this package", ".commands.export"),
    ("demo", "show a page that hears recordings and the microphone", ".commands.demo"),
    ("soundscapes", "make a synthetic benchmark: events over noise, with their truth", ".soundscapes.data_set"),
    ("prepare", "bring a data set into the shape that training reads quickly", ".training.prepare"),
    ("card", "render the README.md of a model anew from what lies in its folder", ".commands.card"),
    ("average", "make one model of the mean weights of several checkpoints", ".training.averaging"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what goes wrong with its input is one sentence on standard error and exit status 1."""
    try:
        hand_over()
        options = make_parser().parse_args(arguments)
        quieten_libraries()
        status = options.run(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as interrupt:
        return complain("; ".join(["interrupted", *map(str, interrupt.args)]), INTERRUPTED)
    except BrokenPipeError:  # the reader of the table, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end
        return FAILED
    except (ValueError, OSError) as error:
        return complain(in_words(error), FAILED)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="htsat", description="Which sounds are in a recording, and when.")
    parser.add_argument("--version", action="version", version=f"htsat {VERSION}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=CommandParser)
    for name, purpose, module in COMMANDS:
        commands.add_parser(name, help=purpose, description=purpose, module=module)
    return parser


class CommandParser(argparse.ArgumentParser):
    """The parser of one command, whose module is imported when this is the command that was given."""

    def __init__(self, *args: Any, module: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.module = module

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        try:
            command = import_module(self.module, __package__)
        except ModuleNotFoundError as error:
            if str(error.name).startswith(str(__package__)):
                raise
            needed = f'{error.name}: `pip install "modeling-htsat[train]"`'
            raise ValueError(f"`{self.prog}` needs {needed}.") from error
        command.add_arguments(self)
        self.set_defaults(run=command.run)
        return super().parse_known_args(args, namespace)


def quieten_libraries():
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    logging.captureWarnings(True)
    logging.getLogger("modeling_htsat.pipeline_htsat").setLevel(logging.ERROR)  # commands name what failed themselves


def in_words(error: Exception) -> str:
    """The message of an error; what the operating system says of a file, without its number."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used: {error.strerror}"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
