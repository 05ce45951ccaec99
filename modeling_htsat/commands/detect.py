"""`htsat detect`: when sounds are heard in recordings."""

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..tables import EVENT_COLUMNS, read_events, write_events
from .models import add_detection_options, add_models, load_detector
from .outputs import check_event_output, check_writable, report_failures, report_rows, rows_kept, table_rows
from .recordings import add_recordings, answers, named_recordings

PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def add_arguments(parser: argparse.ArgumentParser):
    add_recordings(parser)
    add_models(parser)
    add_detection_options(parser)
    add, outputs = parser.add_argument, ".tsv, .csv, .json, .txt (Audacity) or .selections.txt (Raven)"
    add("--output", type=Path, metavar="FILE", help=f"write {outputs}")
    add("--format", choices=("tsv", "csv", "json", "audacity", "raven"), help="whatever the suffix")
    add("--plot", type=Path, metavar="FILE", help="draw spectrogram, scores and events: .png .svg .pdf")
    add("--truth", type=Path, metavar="TSV", help="true events, drawn below the detected ones")


def run(options: argparse.Namespace) -> int:
    recordings, failed = named_recordings(options.files)
    names = [name for name, _ in recordings]
    check_event_output(options.output, names, options.format)
    check_plot(options.plot)
    if options.plot and len({plot_path(options.plot, name, False) for name in names}) < len(names):
        raise ValueError("Two recordings would share the name of a picture; draw them one at a time.")
    if options.truth and not options.plot:
        raise ValueError("--truth is drawn into the picture that --plot names; give both.")
    truth = read_events(options.truth) if options.truth else {}
    if truth and recordings and not truth.keys() & set(names):
        raise ValueError(f"{options.truth} names none of the recordings; they are called {names[0]!r} and so on there.")
    if not recordings:
        return report_failures(failed)
    detector, settings = load_detector(options)
    rows: list[dict[str, Any]] = []
    with rows_kept(rows, options.output, options.format):
        for name, found in answers(detector, recordings, failed, **settings):
            rows += table_rows(name, found["events"])
            if options.plot:
                path = plot_path(options.plot, name, len(recordings) == 1)
                save_plot(path, name, found, detector, truth.get(name, []) if options.truth else None)
    if options.output:
        write_events(options.output, rows, options.format)
    else:
        report_rows(rows, (*EVENT_COLUMNS, "score"), None)
    return report_failures(failed)


def check_plot(plot: Path | None):
    check_writable(plot)
    if plot and not find_spec("matplotlib"):
        raise ValueError('--plot needs matplotlib: `pip install "modeling-htsat[plot]"`.')
    if plot and plot.suffix.lower() not in PLOT_SUFFIXES:
        raise ValueError(f"{plot} has the suffix {plot.suffix!r}; {', '.join(PLOT_SUFFIXES)} are known.")


def plot_path(plot: Path, name: str, is_only_one: bool) -> Path:
    """The picture of one recording; with several, their names go into the pictures' names."""
    if is_only_one:
        return plot
    return plot.with_name(f"{plot.stem}-{name.replace('/', '-')}{plot.suffix}")


def save_plot(path: Path, name: str, found: dict[str, Any], detector: Any, truth: list[Any] | None):
    from ..plotting import mel_centers_hz, plot_events  # matplotlib is an extra

    extractor = detector.feature_extractor
    plot_events(
        path,
        found["log_mel"],
        found["scores"],
        found["edges"],
        found["labels"],
        found["events"],
        seconds_per_frame=extractor.hop_length / extractor.sampling_rate,
        duration_seconds=found["num_samples"] / extractor.sampling_rate,
        mel_frequencies_hz=mel_centers_hz(extractor.num_mel_bins, extractor.min_frequency, extractor.max_frequency),
        truth=truth,
        title=name,
    )
