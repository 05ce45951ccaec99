"""Write docs/commands.md from the parsers of the commands themselves: `python docs/make_commands.py`."""

import argparse
import importlib.util
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, fields
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints
from unittest import mock

import transformers

from modeling_htsat.cli import COMMANDS
from modeling_htsat.training.evaluation import EvaluationArguments
from modeling_htsat.training.recipes import WITHOUT_FLAG, recipe_values
from modeling_htsat.training.runs import PARTS
from modeling_htsat.training.trainer import HTSATTrainingArguments

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "training_scripts"
BY_RECIPE = {"run_audio_classification.py": PARTS, "run_evaluation.py": (EvaluationArguments,)}
RECIPE_ROW = "| `--recipe` | FILE | One complete run as a file of `key: value`; flags override it. |"
LIKE_CLASSIFICATION = "run_sound_event_detection.py"
LIBRARY_HEADING = "## Flags of transformers"
HEAD = """# Every command

`python docs/make_commands.py` wrote this page from the parsers themselves; a test compares the two. The same is said
by `htsat COMMAND --help` and by `--help` of each script. What goes wrong with the input is one sentence on standard
error: exit status 1, or 2 for a command line that is not understood, or 130 after Ctrl-C.

`run_audio_classification.py`, `run_sound_event_detection.py` and `run_evaluation.py` take `--recipe FILE` as well: each
of their flags is a key of recipes, and flags override the recipe. They may be written with `-` or with `_`.
"""


def main():
    (ROOT / "docs" / "commands.md").write_text(make_page(), encoding="utf-8")


def make_page() -> str:
    """The whole page. A machine's own number of cores must not be part of it."""
    with mock.patch("os.cpu_count", lambda: None):
        sections = [HEAD, *command_sections(), *script_sections(), library_section()]
    return "\n".join(sections)


# ── htsat ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def command_sections() -> Iterator[str]:
    for name, purpose, module in COMMANDS:
        parser = argparse.ArgumentParser(prog=f"htsat {name}", description=purpose)
        import_module(module, "modeling_htsat").add_arguments(parser)
        yield from parser_sections(parser, f"htsat {name}", sentence(purpose))


def parser_sections(parser: argparse.ArgumentParser, title: str, purpose: str) -> Iterator[str]:
    """A heading and a table; or, where the parser has parsers below it, one for each of these."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield section(f"## `{title}`", purpose, table_of_actions(parser._actions))
        return
    purposes = {choice.dest: choice.help for choice in below[0]._choices_actions}
    for name, inner in below[0].choices.items():
        yield from parser_sections(inner, f"{title} {name}", sentence(purposes[name] or purpose))


def table_of_actions(actions: Iterable[argparse.Action]) -> list[str]:
    return [row_of_action(action) for action in actions if not isinstance(action, argparse._HelpAction)]


def row_of_action(action: argparse.Action) -> str:
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    return table_row(name, value_of_action(action), text_of_action(action))


def value_of_action(action: argparse.Action) -> str:
    """What stands behind a flag."""
    if not action.option_strings:
        return "one or more" if action.nargs == "+" else ""
    if action.nargs == 0:
        return ""
    value = "|".join(map(str, action.choices)) if action.choices else str(action.metavar or action.dest.upper())
    return value + (" …" if action.nargs == "+" else "")


def text_of_action(action: argparse.Action) -> str:
    text = (action.help or "").replace("%(default)s", str(action.default))
    is_needed = action.required and bool(action.option_strings)
    default = "" if "default" in text or action.default in (None, False, [], argparse.SUPPRESS) else action.default
    return sentence(text) + (" Needed." if is_needed else "") + (f" Default: `{default}`." if default != "" else "")


# ── scripts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def script_sections() -> Iterator[str]:
    for path in sorted(SCRIPTS.glob("run_*.py")):
        module = load_script(path)
        heading, purpose = f"## `{path.name}`", (module.__doc__ or "").strip().splitlines()[0]
        if path.name == LIKE_CLASSIFICATION:
            yield section(heading, f"{purpose} Its flags are those of `run_audio_classification.py`.", [])
        elif path.name in BY_RECIPE:
            rows = [RECIPE_ROW, *(row for part in BY_RECIPE[path.name] for row in own_rows(part))]
            yield section(heading, f"{purpose} Its own flags, beside those of transformers:", rows)
        else:
            yield section(heading, purpose, table_of_actions(parser_of(module)._actions))


def load_script(path: Path) -> Any:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class ParserFoundError(Exception):
    """Stops a script's `main` where it would parse its command line."""


def parser_of(module: Any) -> argparse.ArgumentParser:
    """What `make_parser` gives, or else the parser that `main` makes first."""
    if hasattr(module, "make_parser"):
        return module.make_parser()

    def stop(parser: argparse.ArgumentParser, *_: Any) -> None:
        raise ParserFoundError(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop):
        try:
            module.main()
        except ParserFoundError as found:
            return found.args[0]
    raise AssertionError(f"{module.__name__} parses nothing.")


def own_rows(dataclass: type) -> Iterator[str]:
    """The fields that this project adds, in their order."""
    hints, own = get_type_hints(dataclass), inspect.get_annotations(dataclass)
    for each in fields(dataclass):
        if each.name in own:
            yield table_row(f"--{each.name}", type_in_words(hints[each.name]), text_of_field(each))


def type_in_words(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and "[" not in str(hint) else str(hint)
    words = {"bool": "true or false", "int": "whole number", "float": "number", "str": "text"}
    (kind,) = {word for word in words if re.search(rf"\b{word}\b", text)}
    return f"{words[kind]} …" if "list" in text else words[kind]


def text_of_field(each: Field) -> str:
    default = each.default if each.default_factory is MISSING else each.default_factory()
    text = sentence(each.metadata.get("help", ""))
    if default is MISSING:
        return f"{text} Needed."
    is_said = default in (None, []) or "default" in text
    if is_said or each.name == "report_to":  # whose default is what this machine has installed
        return text
    return (
        f"{text} Default: `{default:g}`."
        if isinstance(default, float)
        else f"{text} Default: `{str(default).lower()}`."
    )


# ── transformers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def library_section() -> str:
    """The names of the flags that come from transformers, those first that recipes use."""
    own = set(inspect.get_annotations(HTSATTrainingArguments))
    names = [each.name for each in fields(HTSATTrainingArguments) if each.init and each.name not in own | WITHOUT_FLAG]
    recipes = [recipe_values(path) for path in sorted((ROOT / "configuration" / "recipes").glob("*.yaml"))]
    used = [name for name in names if any(name in recipe for recipe in recipes)]
    others = [name for name in names if name not in used]
    meaning = (
        "Fields of transformers' `TrainingArguments` are flags and keys, with the meaning and the default that they\n"
        "have there."
    )
    release = f"The others, in transformers {transformers.__version__}:"
    parts = [LIBRARY_HEADING, meaning, "The recipes use these:", in_lines(used), release, in_lines(others)]
    return "\n\n".join(parts) + "\n"


def in_lines(names: Sequence[str]) -> str:
    """Names as code, in lines of at most 120 characters."""
    lines = [""]
    for name in names:
        piece = f"`{name}`" + ("," if name != names[-1] else "")
        if len(lines[-1]) + len(piece) > 118:
            lines.append("")
        lines[-1] = f"{lines[-1]} {piece}".strip()
    return "\n".join(lines)


# ── text ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def section(heading: str, purpose: str, rows: Sequence[str]) -> str:
    table = ["| argument | value | meaning |", "| --- | --- | --- |", *rows] if rows else []
    return "\n".join([heading, "", purpose, *([""] if rows else []), *table, ""])


def table_row(name: str, value: str, text: str) -> str:
    cells = (f"`{name}`", value.replace("|", " or "), text.replace("|", "\\|"))
    return "| " + " | ".join(cells) + " |"


def sentence(text: str) -> str:
    """With a capital, unless it begins with the name of something."""
    text = " ".join(text.split())
    begins_with_word = text.split(" ")[0].isalpha()
    return (text[:1].upper() if begins_with_word else text[:1]) + text[1:] + ("" if text[-1:] in ".:" else ".")


if __name__ == "__main__":
    main()
