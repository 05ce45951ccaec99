"""What commands write: tables, and sentences about what failed; what would fail after the work is noticed before it."""

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..tables import write_delimited, write_events, write_json_lines, write_whole

NUMBERS = ("onset", "offset", "score")
TABLE_SUFFIXES = (".tsv", ".csv", ".json", ".jsonl")
RAVEN_SUFFIX = ".selections.txt"
OK, FAILED = 0, 1  # exit statuses; argparse adds 2 for a wrong command line, and Ctrl-C 130


def complain(sentence: str, status: int) -> int:
    sys.stderr.write(f"htsat: {' '.join(sentence.split())}\n")
    return status


def report_failures(failed: list[str]) -> int:
    for sentence in failed:
        complain(sentence, FAILED)
    return FAILED if failed else OK


def check_writable(path: Path | None):
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file inside it.")
    if not path.parent.is_dir():
        raise ValueError(f"The folder {path.parent} for {path.name} does not exist; create it first.")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"The folder {path.parent} for {path.name} may not be written to; name another one.")


def check_table_output(output: Path | None):
    check_writable(output)
    if output and output.suffix not in TABLE_SUFFIXES:
        raise ValueError(f"{output} has the suffix {output.suffix!r}; {', '.join(TABLE_SUFFIXES)} are known.")


def check_event_output(output: Path | None, names: Sequence[str], format: str | None = None):
    """Whether there can be such a file, with events of these recordings: tried out on one event each."""
    check_writable(output)
    if output:
        events = [{"filename": name, "onset": 0, "offset": 1, "event_label": "any"} for name in names]
        with tempfile.TemporaryDirectory() as folder:
            write_events(Path(folder) / output.name, events, format)


def table_rows(name: str, events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "filename": name,
            "onset": event["onset"],
            "offset": event["offset"],
            "event_label": event["label"],
            "score": event["score"],
        }
        for event in events
    ]


def report_rows(rows: list[dict[str, Any]], columns: Sequence[str], output: Path | None):
    """As a tab-separated table on standard output, or in a file of the format that its suffix says."""
    if output is None:
        rounded = [{name: f"{row[name]:.3f}" if name in NUMBERS else row[name] for name in columns} for row in rows]
        return write_delimited(sys.stdout, rounded, columns, "\t")
    if output.suffix in (".json", ".jsonl"):
        return write_whole(output, lambda file: write_json_lines(file, rows))
    delimiter = "," if output.suffix == ".csv" else "\t"
    return write_whole(output, lambda file: write_delimited(file, rows, columns, delimiter))


@contextmanager
def rows_kept(rows: list[dict[str, Any]], output: Path | None, format: str | None = None) -> Iterator[None]:
    """Keep the events found so far when Ctrl-C or an error comes: hours of work are not thrown away."""
    try:
        yield
    except BaseException as error:
        if output is None or not rows:
            raise
        suffix = output.name[-len(RAVEN_SUFFIX) :] if output.name.lower().endswith(RAVEN_SUFFIX) else output.suffix
        kept = output.with_name(f"{output.name.removesuffix(suffix)}.partial{suffix}")
        write_events(kept, rows, format)
        sentence = f"the events found so far are in {kept}"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(sentence) from None
        complain(sentence, FAILED)
        raise
