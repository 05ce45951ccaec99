"""`htsat evaluate`: detections scored against the truth."""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..tables import (
    DURATION_COLUMNS,
    evaluate_event_tables,
    format_event_scores,
    read_durations,
    read_events,
    write_delimited,
    write_events,
    write_whole,
)
from .models import add_detection_options, add_models, load_detector
from .outputs import OK, check_event_output, check_writable, report_failures, rows_kept, table_rows
from .recordings import add_allow_truncated, answers, named_recordings


def add_arguments(parser: argparse.ArgumentParser):
    evaluations = parser.add_subparsers(required=True, metavar="WHAT", parser_class=argparse.ArgumentParser)
    add_events(evaluations)
    add_detections(evaluations)


def run(options: argparse.Namespace) -> int:
    return options.evaluate(options)


def add_events(evaluations: Any):
    parser = evaluations.add_parser("events", help="score a table of detected events")
    add = parser.add_argument
    add("--reference", required=True, help="TSV with filename, onset, offset, event_label")
    add("--durations", required=True, help="TSV with filename, duration: every file, in seconds")
    add("--detections", required=True, help="TSV like the reference")
    add("--merge-overlaps", action="store_true", help="join overlapping detections of one class")
    add("--json", type=Path, metavar="FILE", help="also write the scores there")
    parser.set_defaults(evaluate=evaluate_events)


def evaluate_events(options: argparse.Namespace) -> int:
    check_writable(options.json)
    result = evaluate_event_tables(
        options.reference, options.durations, options.detections, merge_overlaps=options.merge_overlaps
    )
    return report_scores(result, options.json)


def add_detections(evaluations: Any):
    parser = evaluations.add_parser("detections", help="detect in a folder of recordings, and score that")
    add = parser.add_argument
    add("--audio", required=True, type=Path, metavar="DIR", help="the recordings")
    add("--reference", required=True, help="TSV with filename, onset, offset, event_label")
    add("--durations", type=Path, help="TSV with filename, duration (default: the recordings' own)")
    add_allow_truncated(parser)
    add_models(parser)
    add_detection_options(parser)
    add("--output", type=Path, metavar="FILE", help="keep the detections, as .tsv")
    add("--json", type=Path, metavar="FILE", help="also write the scores there")
    parser.set_defaults(evaluate=evaluate_detections)


def evaluate_detections(options: argparse.Namespace) -> int:
    """Detect in every recording of a folder, and score that against its truth."""
    recordings, failed = named_recordings([options.audio])
    names = [name for name, _ in recordings]
    check_event_output(options.output, names)
    check_writable(options.json)
    check_named(options.reference, read_events(options.reference), names, options.audio)
    if options.durations:
        durations = read_durations(options.durations)
        check_named(options.durations, durations, names, options.audio)
        if missing := sorted(set(names) - durations.keys()):
            raise ValueError(f"{options.durations} has no duration of {missing[0]!r}, which is in {options.audio}.")
    if not recordings:
        return report_failures(failed)
    detector, settings = load_detector(options)
    rate = detector.feature_extractor.sampling_rate
    rows: list[dict[str, Any]] = []
    lengths: list[dict[str, Any]] = []
    with rows_kept(rows, options.output):
        for name, found in answers(detector, recordings, failed, **settings):
            rows += table_rows(name, found["events"])
            lengths.append({"filename": name, "duration": found["num_samples"] / rate})
    if options.output:
        write_events(options.output, rows)
    if failed:
        return report_failures([*failed, "Nothing is scored, as not every recording was heard."])
    with tempfile.TemporaryDirectory() as folder:
        detections, own_durations = Path(folder) / "detections.tsv", Path(folder) / "durations.tsv"
        write_events(detections, rows)
        write_whole(own_durations, lambda file: write_delimited(file, lengths, DURATION_COLUMNS, "\t"))
        result = evaluate_event_tables(options.reference, options.durations or own_durations, detections)
    return report_scores(result, options.json)


def check_named(table: str | Path, rows: Iterable[str], names: Sequence[str], folder: Path):
    """Whether a table speaks of recordings that there are; by the way, whether it can be read."""
    if names and (strangers := sorted(set(rows) - set(names))):
        raise ValueError(f"{table} names {strangers[0]!r}, which is not among the recordings of {folder}.")


def report_scores(result: dict[str, Any], json_path: Path | None) -> int:
    if json_path:
        write_whole(json_path, lambda file: json.dump(result, file, indent=2, ensure_ascii=False))
    sys.stdout.write(format_event_scores(result))
    return OK
