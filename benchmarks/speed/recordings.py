"""Recordings from ten seconds to an hour, through the pipeline, from file to events: cost and memory."""

from collections.abc import Iterator

from .clock import MEGABYTE, Row, make_rows
from .contestants import Scale
from .processes import call

TEN_SECONDS = "ours, on 10 s in the same process"


def recordings(scale: Scale) -> Iterator[Row]:
    """Milliseconds a second of sound, and what a second costs where there are only ten: a ratio of 1 is flat."""
    for threads in scale.threads:
        for name, seconds in scale.recordings.items():
            case = f"{name}, {threads} thread{'s' if threads > 1 else ''}"
            answer = call("hear", seconds=seconds, threads=threads, is_quick=scale.is_quick)
            samples = {
                "ours": [1e3 * taken / seconds for taken in answer["taken"]],
                TEN_SECONDS: [1e3 * taken / 10 for taken in answer["ten_seconds"]],
            }
            yield from make_rows("long recordings", case, samples, unit="ms a second")
            memory = {"ours": [answer["peak_bytes"] / MEGABYTE]}
            yield from make_rows("long recordings, memory", case, memory, unit="MB")
