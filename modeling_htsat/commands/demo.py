"""`htsat demo`: a page in the browser that hears recordings and the microphone."""

import argparse
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..pipeline_htsat import HTSATSoundEventDetectionPipeline
from .models import load_pipeline
from .outputs import OK
from .recordings import positive

NEEDED = ("gradio", "matplotlib")


def add_arguments(parser: argparse.ArgumentParser):
    add = parser.add_argument
    add(
        "--model",
        required=True,
        action="append",
        metavar="MODEL",
        help="a model folder or a name on the Hub; given several times, the page lets its visitors choose",
    )
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets other machines in (default: 127.0.0.1)")
    add("--port", type=positive, default=7860, help="port to listen at (default: 7860)")
    add("--max-megabytes", type=positive, default=200, metavar="N", help="largest upload (default: 200)")
    add("--max-minutes", type=positive, default=90, metavar="N", help="longest recording (default: 90)")
    add("--threads", type=positive, metavar="N", help="of PyTorch (default: as many as PyTorch likes)")


def run(options: argparse.Namespace) -> int:
    if missing := [name for name in NEEDED if not find_spec(name)]:
        raise ValueError(f'`htsat demo` needs {missing[0]}: `pip install "modeling-htsat[demo]"`.')
    from ..demo.hearing import Limits
    from ..demo.page import served

    check_free(options.host, options.port)
    if options.threads:
        torch.set_num_threads(options.threads)
    listeners = load_listeners(options.model)
    limits = Limits(options.max_megabytes, options.max_minutes)
    with ended_in_order(), served(listeners, limits, options.host, options.port) as address:
        sys.stdout.write(f"{address} (Ctrl-C ends it)\n")
        sys.stdout.flush()
        threading.Event().wait()
    return OK


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Where the process is asked to end, uploads are deleted first, as after Ctrl-C."""

    def end(*_: object):
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_free(host: str, port: int):
    """Whether the page can be shown there, before models are loaded."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(
                f"The page cannot be shown at {host}:{port}: {reason}; name another --host or --port."
            ) from error


def load_listeners(names: Sequence[str]) -> dict[str, Any]:
    """The models of the picker, by the names that it shows: the last part of a path, which says nothing of the rest."""
    from ..demo.hearing import Listener

    listeners: dict[str, Any] = {}
    for name in names:
        shown = name if not Path(name).is_dir() else Path(name).resolve().name
        shown = shown if shown not in listeners else f"{shown} ({len(listeners) + 1})"
        detector = load_pipeline("sound-event-detection", [name], pipeline_class=HTSATSoundEventDetectionPipeline)
        listeners[shown] = Listener(shown, detector)
    return listeners
