"""Event tables on disk: read them strictly, write them for people and programs, and score one against another.

An event table has the tab-separated columns `filename, onset, offset, event_label`, with times in seconds; a row with
nothing but a filename says that the file has no events. A table of durations has the columns `filename, duration`.
Both need a header; further columns are ignored. Line numbers in errors count the header as line 1, as editors do.
"""

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from .event_metrics import Event, collar_f1, intersection_f1, merge_overlapping_events, segment_f1
from .whole_htsat import whole_file

EVENT_COLUMNS = ("filename", "onset", "offset", "event_label")
DURATION_COLUMNS = ("filename", "duration")

# Spectrograms of HTS-AT end at 14 kHz; Raven draws each selection as a box from the low to the high frequency.
RAVEN_FREQUENCIES_HZ = (0, 14000)


class TableError(ValueError):
    """A table on disk that does not hold what it should; the message names the file and the line."""


class _Row(NamedTuple):
    line: int
    filename: str
    event: Event | None  # None: this file has no events


# ── read ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_events(path: str | os.PathLike[str]) -> dict[str, list[Event]]:
    """Read an event table as {filename: [(onset, offset, label), ...]}, in the order of its rows."""
    return _by_file(_event_rows(path))


def read_durations(path: str | os.PathLike[str]) -> dict[str, float]:
    """Read a table of durations as {filename: seconds}; repeating a file with the same duration is fine."""
    durations: dict[str, float] = {}
    for line, cells in _cells(path, DURATION_COLUMNS):
        filename, seconds = cells["filename"], _seconds(path, line, "duration", cells["duration"])
        if seconds == 0:
            raise _error(path, line, f"the duration of {filename!r} is 0 s; it must be longer")
        if durations.setdefault(filename, seconds) != seconds:
            raise _error(path, line, f"{filename!r} lasts {seconds:g} s, but {durations[filename]:g} s further up")
    return durations


def _event_rows(path: str | os.PathLike[str]) -> list[_Row]:
    rows = [_Row(line, cells["filename"], _event(path, line, cells)) for line, cells in _cells(path, EVENT_COLUMNS)]
    with_events = {row.filename for row in rows if row.event}
    for row in rows:
        if row.event is None and row.filename in with_events:
            raise _error(path, row.line, f"{row.filename!r} is marked as having no events, but other rows give it some")
    return rows


def _event(path: str | os.PathLike[str], line: int, cells: Mapping[str, str]) -> Event | None:
    if not (cells["onset"] or cells["offset"] or cells["event_label"]):
        return None
    if not cells["event_label"]:
        raise _error(path, line, "event_label is empty; fill it, or leave onset and offset empty as well")
    onset, offset = (_seconds(path, line, column, cells[column]) for column in ("onset", "offset"))
    if offset < onset:
        raise _error(path, line, f"the event ends at {offset:g} s, before its onset at {onset:g} s")
    return onset, offset, cells["event_label"]


def _cells(path: str | os.PathLike[str], columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells of each row of a table that has the given columns."""
    # utf-8-sig drops the mark that spreadsheets put first; newline="" leaves CRLF to the csv module.
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t", strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header, columns)
            for row in reader:
                if row:
                    yield reader.line_num, _named_cells(path, reader.line_num, header, row)
        except UnicodeDecodeError as error:
            raise TableError(f"{os.fspath(path)} is not UTF-8 text; save it as UTF-8.") from error
        except csv.Error as error:
            raise _error(path, reader.line_num, f"the row cannot be read ({error})") from error


def _check_header(path: str | os.PathLike[str], header: Sequence[str], columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in header]
    if missing:
        raise _error(
            path, 1, f"the tab-separated header lacks {', '.join(missing)}; it reads {', '.join(header) or 'nothing'}"
        )
    repeated = [column for column in columns if header.count(column) > 1]
    if repeated:
        raise _error(path, 1, f"the header names {repeated[0]} more than once")


def _named_cells(path: str | os.PathLike[str], line: int, header: Sequence[str], row: Sequence[str]) -> dict[str, str]:
    if len(row) != len(header):
        raise _error(path, line, f"the row has {len(row)} cells, but the header has {len(header)}")
    cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
    if not cells["filename"]:
        raise _error(path, line, "filename is empty")
    return cells


def _seconds(path: str | os.PathLike[str], line: int, column: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise _error(path, line, f"{column} is {text!r}, which is not a number of seconds") from None
    if not 0 <= seconds < math.inf:
        raise _error(path, line, f"{column} is {text}; it must be a finite number from 0 upwards")
    return seconds


def _by_file(rows: Iterable[_Row]) -> dict[str, list[Event]]:
    table: dict[str, list[Event]] = {}
    for row in rows:
        events = table.setdefault(row.filename, [])
        if row.event:
            events.append(row.event)
    return table


def _error(path: str | os.PathLike[str], line: int, problem: str) -> TableError:
    return TableError(f"{os.fspath(path)}, line {line}: {in_one_line(problem)}.")


def in_one_line(said: object, most: int = 500) -> str:
    """What a file says, fit for a sentence: not too long, and without line breaks and letters that steer a screen."""
    words = " ".join(str(said).split())[: most + 1]
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words)
    return text if len(text) <= most else f"{text[:most]}..."


# ── write ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_events(path: str | os.PathLike[str], events: Iterable[Mapping[str, Any]], format: str | None = None) -> None:
    """Write detected events, in the format that is named or that the file's suffix says.

    Formats: `tsv`, `csv`, `json` (.json or .jsonl, one object per line), `audacity` (.txt, a label track), `raven`
    (.selections.txt, a selection table); the last two describe one recording. An event is a mapping with `filename`,
    `onset`, `offset`, `event_label` and perhaps `score`. Times are rounded to microseconds. The file appears whole or
    not at all.
    """
    path = Path(path)
    write = _writer(path, format)
    rows = [_checked_event(event) for event in events]
    if write in (_write_audacity, _write_raven):
        _check_one_recording(rows)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {path.parent} for {path.name} does not exist; create it first.")
    write_whole(path, lambda file: write(file, rows))


def _writer(path: Path, format: str | None) -> Callable[[TextIO, Sequence[dict[str, Any]]], None]:
    if format is None:
        suffixes = {
            ".selections.txt": "raven",
            ".txt": "audacity",
            ".tsv": "tsv",
            ".csv": "csv",
            ".json": "json",
            ".jsonl": "json",
        }
        format = next((name for suffix, name in suffixes.items() if path.name.lower().endswith(suffix)), None)
    if format not in _WRITERS:
        known = ", ".join(_WRITERS)
        raise ValueError(f"No event format for {path.name!r}; name one of {known}, or use its suffix.")
    return _WRITERS[format]


def _checked_event(event: Mapping[str, Any]) -> dict[str, Any]:
    missing = [column for column in EVENT_COLUMNS if column not in event]
    if missing:
        raise ValueError(f"An event to write lacks {', '.join(missing)}; it has {', '.join(event) or 'nothing'}.")
    numbers = {name: float(event[name]) for name in ("onset", "offset", "score") if event.get(name) is not None}
    if not all(map(math.isfinite, numbers.values())) or not 0 <= numbers["onset"] <= numbers["offset"]:
        raise ValueError(f"An event of {event['filename']!r} needs finite numbers and 0 <= onset <= offset: {numbers}.")
    rounded = {name: round(number, 6) for name, number in numbers.items()}
    row = {"filename": str(event["filename"]), **rounded, "event_label": str(event["event_label"])}
    return {name: row[name] for name in (*EVENT_COLUMNS, "score") if name in row}


def _check_one_recording(rows: Sequence[Mapping[str, Any]]) -> None:
    filenames = sorted({row["filename"] for row in rows})
    if len(filenames) > 1:
        raise ValueError(
            f"This format describes one recording and received events of {len(filenames)}, among them {filenames[0]!r} "
            f"and {filenames[1]!r}; write one file per recording."
        )
    for row in rows:
        if any(mark in row["event_label"] for mark in "\t\r\n"):
            raise ValueError(
                f"The label {row['event_label']!r} holds a tab or line break, which this format cannot hold."
            )


def write_whole(path: Path, write: Callable[[TextIO], object]) -> None:
    """Write beside the target and move it there, so that no reader ever sees half a table."""
    with whole_file(path) as temporary, open(temporary, "x", encoding="utf-8", newline="") as file:
        write(file)


def _event_columns(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    # The same header for a recording with events and for one without.
    has_scores = not rows or any("score" in row for row in rows)
    return (*EVENT_COLUMNS, "score") if has_scores else EVENT_COLUMNS


def write_delimited(file: TextIO, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], delimiter: str) -> None:
    """Rows as a table with a header; a cell that a row lacks stays empty."""
    writer = csv.DictWriter(file, columns, restval="", delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _write_tsv(file: TextIO, rows: Sequence[dict[str, Any]]) -> None:
    write_delimited(file, rows, _event_columns(rows), "\t")


def _write_csv(file: TextIO, rows: Sequence[dict[str, Any]]) -> None:
    write_delimited(file, rows, _event_columns(rows), ",")


def write_json_lines(file: TextIO, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object on each line."""
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_audacity(file: TextIO, rows: Sequence[dict[str, Any]]) -> None:
    for row in sorted(rows, key=lambda row: (row["onset"], row["offset"])):
        file.write(f"{row['onset']:.6f}\t{row['offset']:.6f}\t{row['event_label']}\n")


def _write_raven(file: TextIO, rows: Sequence[dict[str, Any]]) -> None:
    low_hz, high_hz = RAVEN_FREQUENCIES_HZ
    columns = ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"]
    file.write("\t".join([*columns, "Begin File", "Event Label", "Score"]) + "\n")
    for selection, row in enumerate(sorted(rows, key=lambda row: (row["onset"], row["offset"])), start=1):
        times = [f"{row['onset']:.6f}", f"{row['offset']:.6f}"]
        names = [row["filename"], row["event_label"], str(row.get("score", ""))]
        file.write("\t".join([str(selection), "Spectrogram 1", "1", *times, str(low_hz), str(high_hz), *names]) + "\n")


_WRITERS: dict[str, Callable[[TextIO, Sequence[dict[str, Any]]], None]] = {
    "tsv": _write_tsv,
    "csv": _write_csv,
    "json": write_json_lines,
    "audacity": _write_audacity,
    "raven": _write_raven,
}


# ── score ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def evaluate_event_tables(
    reference: str | os.PathLike[str],
    durations: str | os.PathLike[str],
    detections: str | os.PathLike[str],
    *,
    detection_tolerance: float = 0.5,
    truth_tolerance: float = 0.5,
    onset_collar_seconds: float = 0.2,
    offset_collar_seconds: float = 0.2,
    offset_collar_ratio: float = 0.2,
    segment_seconds: float = 1.0,
    end_slack_seconds: float = math.inf,
    merge_overlaps: bool = False,
) -> dict[str, Any]:
    """Score a table of detections against a reference, by all three event criteria over the same files.

    Every file of the reference, and every file with a duration, is evaluated; one without rows has no events. Events
    that end after their file, as padded windows make them, are taken as they are: none of the packages that these
    scores follow clips them. With `end_slack_seconds`, one that ends later than that is an error. `merge_overlaps`
    joins overlapping detections of one class, which have no intersection score.
    """
    file_seconds = read_durations(durations)
    reference_rows, detection_rows = _event_rows(reference), _event_rows(detections)
    _check_rows(reference, reference_rows, durations, file_seconds, end_slack_seconds)
    _check_rows(detections, detection_rows, durations, file_seconds, end_slack_seconds)
    _check_apart(reference, reference_rows, "")
    if not merge_overlaps:
        _check_apart(detections, detection_rows, "; join them, or evaluate with --merge-overlaps (merge_overlaps=True)")
    truth = dict.fromkeys(file_seconds, ()) | _by_file(reference_rows)
    detected = merge_overlapping_events(_by_file(detection_rows)) if merge_overlaps else _by_file(detection_rows)
    if not any(truth.values()):
        raise TableError(f"{os.fspath(reference)} holds no event, so that no F1 is defined.")
    return {
        "intersection_f1": intersection_f1(truth, detected, file_seconds, detection_tolerance, truth_tolerance),
        "collar_f1": collar_f1(truth, detected, onset_collar_seconds, offset_collar_seconds, offset_collar_ratio),
        "segment_f1": segment_f1(truth, detected, segment_seconds=segment_seconds),
        "num_files": len(truth),
        "num_reference_events": sum(map(len, truth.values())),
        "num_detected_events": sum(map(len, detected.values())),
    }


def format_event_scores(result: Mapping[str, Any]) -> str:
    """The result of `evaluate_event_tables` as a table in plain text: F1 in percent, per class and macro-averaged."""
    criteria = {name: result[f"{name}_f1"] for name in ("intersection", "collar", "segment")}
    labels = list(next(iter(criteria.values()))["per_class"])
    lines = [["class", *criteria]]
    lines += [[label, *(_class_cell(scores, label) for scores in criteria.values())] for label in labels]
    lines += [["macro", *(f"{100 * scores['macro']:.2f} " for scores in criteria.values())]]
    lines += [["macro, all classes", *(f"{100 * scores['macro_all_classes']:.2f} " for scores in criteria.values())]]
    return "\n".join([*_aligned(lines), "", *_notes(result, criteria)]) + "\n"


def _class_cell(scores: Mapping[str, Any], label: str) -> str:
    mark = "*" if label in scores["left_out_of_macro"] else " "
    return f"{100 * scores['per_class'][label]:.2f}{mark}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Labels to the left, numbers to the right, a rule under the header and above the means."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    header, *rows = lines
    texts = [_aligned_row([header[0], *(f"{name} " for name in header[1:])], widths)]
    texts += [_aligned_row(row, widths) for row in rows]
    rule = "-" * max(map(len, texts))
    return [texts[0], rule, *texts[1:-2], rule, *texts[-2:]]


def _aligned_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    numbers = (cell.rjust(width + 1) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return " ".join([cells[0].ljust(widths[0]), *numbers]).rstrip()


def _notes(result: Mapping[str, Any], criteria: Mapping[str, Mapping[str, Any]]) -> list[str]:
    notes = [
        f"F1 in percent over {result['num_files']} files, {result['num_reference_events']} reference events, "
        f"{result['num_detected_events']} detected events.",
        *(scores["criterion"] for scores in criteria.values()),
    ]
    if any(scores["left_out_of_macro"] for scores in criteria.values()):
        notes.append("* not part of the macro row.")
    strangers = criteria["intersection"]["labels_without_truth"]
    if strangers:
        names = ", ".join(f"{label} ({count})" for label, count in strangers.items())
        notes.append(f"Detected, but never in the reference, and so not scored: {names}.")
    return notes


def _check_rows(
    path: str | os.PathLike[str],
    rows: Iterable[_Row],
    durations_path: str | os.PathLike[str],
    file_seconds: Mapping[str, float],
    end_slack_seconds: float,
) -> None:
    for row in rows:
        if row.filename not in file_seconds:
            raise _error(path, row.line, f"{row.filename!r} has no duration in {os.fspath(durations_path)}")
        if row.event and row.event[1] > file_seconds[row.filename] + end_slack_seconds:
            raise _error(
                path,
                row.line,
                f"the event ends at {row.event[1]:g} s, more than {end_slack_seconds:g} s after {row.filename!r}, "
                f"which lasts {file_seconds[row.filename]:g} s; correct it, or allow more with end_slack_seconds",
            )


def _check_apart(path: str | os.PathLike[str], rows: Iterable[_Row], remedy: str) -> None:
    """Overlapping events of one class in one file have no intersection score; exact repetitions count one by one."""
    keyed = [((row.filename, row.event[2]), row.event[:2], row.line) for row in rows if row.event]
    keyed.sort()
    for (key, times, line), (next_key, next_times, next_line) in zip(keyed, keyed[1:], strict=False):
        if key == next_key and times != next_times and next_times[0] < times[1]:
            raise _error(
                path, max(line, next_line), f"this {key[1]!r} overlaps the one of line {min(line, next_line)}{remedy}"
            )


__all__ = [
    "TableError",
    "evaluate_event_tables",
    "format_event_scores",
    "in_one_line",
    "read_durations",
    "read_events",
    "write_delimited",
    "write_events",
    "write_json_lines",
    "write_whole",
]
