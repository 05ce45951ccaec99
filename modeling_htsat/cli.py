"""The command `htsat`: convert checkpoints, tag recordings, find their events, score them, make a benchmark."""

import argparse
import json
import logging
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import pipeline
from transformers.utils import logging as transformers_logging

from . import __version__
from .audio_htsat import AudioError, list_audio_files
from .conversion import convert_checkpoint
from .events_htsat import EventDecoding
from .labels import load_label_groups
from .modeling_htsat import HTSATPreTrainedModel
from .pipeline_htsat import HTSATAudioClassificationPipeline, HTSATSoundEventDetectionPipeline
from .soundscapes import data_set
from .tables import (
    DURATION_COLUMNS,
    EVENT_COLUMNS,
    evaluate_event_tables,
    format_event_scores,
    read_durations,
    read_events,
    write_delimited,
    write_events,
    write_json_lines,
    write_whole,
)

NUMBERS = ("onset", "offset", "score")
TABLE_SUFFIXES = (".tsv", ".csv", ".json", ".jsonl")
PLOT_SUFFIXES = (".png", ".svg", ".pdf")
RAVEN_SUFFIX = ".selections.txt"
HUB_NAME = r"\w[\w.-]*(/\w[\w.-]*)?"
OK, FAILED, INTERRUPTED = 0, 1, 130  # exit statuses; argparse adds 2 for a wrong command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what goes wrong with its input is one sentence on standard error and exit status 1."""
    options = make_parser().parse_args(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.captureWarnings(True)
    try:
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


def complain(sentence: str, status: int) -> int:
    sys.stderr.write(f"htsat: {' '.join(sentence.split())}\n")
    return status


def in_words(error: Exception) -> str:
    """The message of an error; what the operating system says of a file, without its number."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used: {error.strerror}"
    return str(error)


# ── commands ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_convert(options: argparse.Namespace) -> int:
    model = convert_checkpoint(options.checkpoint, options.output_dir, options.preset, options.labels)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    say(f"{options.output_dir}: {type(model).__name__}, {millions:.1f} M parameters, {model.config.num_labels} labels")
    return OK


def run_classify(options: argparse.Namespace) -> int:
    check_table_output(options.output)
    recordings, failed = named_recordings(options.files)
    if not recordings:
        return report_failures(failed)
    tagger = load_pipeline(
        "audio-classification", options.model, pipeline_class=HTSATAudioClassificationPipeline, top_k=options.top_k
    )
    rows = []
    for name, tags in answers(tagger, recordings, failed, allow_truncated=options.allow_truncated):
        rows += [{"filename": name, "label": tag["label"], "score": tag["score"]} for tag in tags]
    report_rows(rows, ("filename", "label", "score"), options.output)
    return report_failures(failed)


def run_detect(options: argparse.Namespace) -> int:
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
    detector, heard = load_detector(options), {"allow_truncated": options.allow_truncated}
    rows: list[dict[str, Any]] = []
    with rows_kept(rows, options.output, options.format):
        for name, found in answers(detector, recordings, failed, return_scores=True, **heard):
            rows += table_rows(name, found["events"])
            if options.plot:
                path = plot_path(options.plot, name, len(recordings) == 1)
                save_plot(path, name, found, detector, truth.get(name, []) if options.truth else None)
    if options.output:
        write_events(options.output, rows, options.format)
    else:
        report_rows(rows, (*EVENT_COLUMNS, "score"), None)
    return report_failures(failed)


def run_evaluate_events(options: argparse.Namespace) -> int:
    check_writable(options.json)
    result = evaluate_event_tables(
        options.reference, options.durations, options.detections, merge_overlaps=options.merge_overlaps
    )
    return report_scores(result, options.json)


def run_evaluate_detections(options: argparse.Namespace) -> int:
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
    detector, heard = load_detector(options), {"allow_truncated": options.allow_truncated}
    rate = detector.feature_extractor.sampling_rate
    rows: list[dict[str, Any]] = []
    lengths: list[dict[str, Any]] = []
    with rows_kept(rows, options.output):
        for name, found in answers(detector, recordings, failed, return_scores=True, **heard):
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


# ── what would fail after the work is noticed before it ───────────────────────────────────────────────────────────────


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


def check_plot(plot: Path | None):
    check_writable(plot)
    if plot and not find_spec("matplotlib"):
        raise ValueError('--plot needs matplotlib: `pip install "modeling-htsat[plot]"`.')
    if plot and plot.suffix.lower() not in PLOT_SUFFIXES:
        raise ValueError(f"{plot} has the suffix {plot.suffix!r}; {', '.join(PLOT_SUFFIXES)} are known.")


def check_named(table: str | Path, rows: Iterable[str], names: Sequence[str], folder: Path):
    """Whether a table speaks of recordings that there are; by the way, whether it can be read."""
    if names and (strangers := sorted(set(rows) - set(names))):
        raise ValueError(f"{table} names {strangers[0]!r}, which is not among the recordings of {folder}.")


@contextmanager
def rows_kept(rows: list[dict[str, Any]], output: Path | None, format: str | None = None) -> Iterator[None]:
    """Keep the events found so far when Ctrl-C comes: hours of work are not thrown away."""
    try:
        yield
    except KeyboardInterrupt:
        if output is None or not rows:
            raise
        suffix = output.name[-len(RAVEN_SUFFIX) :] if output.name.lower().endswith(RAVEN_SUFFIX) else output.suffix
        kept = output.with_name(f"{output.name.removesuffix(suffix)}.partial{suffix}")
        write_events(kept, rows, format)
        raise KeyboardInterrupt(f"the events found so far are in {kept}") from None


# ── what they share ───────────────────────────────────────────────────────────────────────────────────────────────────


def say(text: str):
    sys.stdout.write(text + "\n")


def load_pipeline(task: str, name: str, **settings: Any) -> Any:
    """The pipeline of a model folder or a name on the Hub; what is neither is refused in one sentence."""
    folder = Path(name)
    if folder.is_dir():
        missing = [file for file in ("config.json", "preprocessor_config.json") if not (folder / file).is_file()]
        if missing:
            raise ValueError(f"The folder {name} lacks {' and '.join(missing)}; save model and extractor in it.")
    elif not re.fullmatch(HUB_NAME, name) or folder.exists():
        raise ValueError(f"The model {name} is no folder, and no name on the Hub; check the path.")
    try:
        loaded = pipeline(task, model=name, **settings)
    except Exception as error:  # what the Hub, torch and safetensors raise is anybody's guess
        # The library's own checks say first which of them failed, and only then what is wrong.
        lines = str(error.__cause__ or error).splitlines()
        reason = next(iter(lines), type(error).__name__)
        raise ValueError(f"The model {name} cannot be loaded: {reason}") from error
    if not isinstance(loaded.model, HTSATPreTrainedModel):
        raise ValueError(f"The model {name} is of the class {type(loaded.model).__name__}; an HTS-AT is needed.")
    if loaded.model.config.architectures == ["HTSATModel"]:
        raise ValueError(f"The model {name} is an encoder that knows no labels; train it first.")
    return loaded


def load_detector(options: argparse.Namespace) -> HTSATSoundEventDetectionPipeline:
    """The pipeline that the command line describes."""
    decoding, groups = None, None
    if options.groups:
        groups, decoding = load_label_groups(options.groups)
    if options.threshold is not None:
        decoding = EventDecoding(threshold=options.threshold)
    detector = load_pipeline(
        "sound-event-detection",
        options.model,
        pipeline_class=HTSATSoundEventDetectionPipeline,
        decoding=decoding,
        groups=groups,
        time_refinement=options.time_refinement,
    )
    num_labels = detector.model.config.num_labels
    for name, classes in (groups or {}).items():
        if max(classes) >= num_labels:
            known = f"{options.model} has 0 to {num_labels - 1}"
            raise ValueError(f"The group {name!r} of {options.groups} has class {max(classes)}; {known}.")
    return detector


def answers(
    task: Callable[..., Any], recordings: Sequence[tuple[str, Path]], failed: list[str], **call_options: Any
) -> Iterator[tuple[str, Any]]:
    """Name and answer of every recording; one that cannot be read is noted in `failed`, and the others go on."""
    for name, path in tqdm(recordings, unit="file", disable=None if len(recordings) > 1 else True):
        try:
            yield name, task(path, **call_options)
        except AudioError as error:
            # The remedy that the library names, as it is written here.
            failed.append(str(error).replace("allow_truncated=True", "--allow-truncated"))


def named_recordings(paths: Iterable[str]) -> tuple[list[tuple[str, Path]], list[str]]:
    """Name and path of every recording, and what is wrong with paths that hold none.

    A file goes by its own name, and one found in a folder by its path inside it; where two would share a name, by the
    path as it was given.
    """
    names: dict[Path, str] = {}
    failed: list[str] = []
    for path in map(Path, paths):
        try:
            inside = list_audio_files(path)
        except AudioError as error:
            failed.append(str(error))
            continue
        names |= {file: file.relative_to(path).as_posix() if file != path else file.name for file in inside}
    count = Counter(names.values())
    return [(name if count[name] == 1 else file.as_posix(), file) for file, name in names.items()], failed


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


def plot_path(plot: Path, name: str, is_only_one: bool) -> Path:
    """The picture of one recording; with several, their names go into the pictures' names."""
    if is_only_one:
        return plot
    return plot.with_name(f"{plot.stem}-{name.replace('/', '-')}{plot.suffix}")


def save_plot(path: Path, name: str, found: dict[str, Any], detector: Any, truth: list[Any] | None):
    from .plotting import mel_centers_hz, plot_events  # matplotlib is an extra

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


def report_scores(result: dict[str, Any], json_path: Path | None) -> int:
    if json_path:
        write_whole(json_path, lambda file: json.dump(result, file, indent=2, ensure_ascii=False))
    sys.stdout.write(format_event_scores(result))
    return OK


def report_failures(failed: list[str]) -> int:
    for sentence in failed:
        complain(sentence, FAILED)
    return FAILED if failed else OK


# ── the command line ──────────────────────────────────────────────────────────────────────────────────────────────────


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="htsat", description="Which sounds are in a recording, and when.")
    parser.add_argument("--version", action="version", version=f"htsat {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_convert(commands)
    add_classify(commands)
    add_detect(commands)
    add_soundscapes(commands)
    evaluate = commands.add_parser("evaluate", help="score detections against the truth")
    evaluations = evaluate.add_subparsers(required=True, metavar="WHAT")
    add_evaluate_events(evaluations)
    add_evaluate_detections(evaluations)
    return parser


def add_convert(commands: Any):
    command = commands.add_parser("convert", help="make a model folder of a checkpoint from elsewhere")
    command.add_argument("checkpoint", help="an authors' or Swin checkpoint, or the folder of a CLAP or Swin model")
    command.add_argument("output_dir", type=Path, help="the folder to make; must not exist yet, or be empty")
    command.add_argument("--preset", metavar="DIR", help="front end and labels (default: AudioSet at 32 kHz)")
    command.add_argument("--labels", metavar="FILE", help="label names, one on each line, in place of the preset's")
    command.set_defaults(run=run_convert)


def add_classify(commands: Any):
    command = commands.add_parser("classify", help="which sounds are in recordings")
    add_recordings(command)
    command.add_argument("--top-k", type=positive, default=5, metavar="N", help="labels per recording (default: 5)")
    command.add_argument("--output", type=Path, metavar="FILE", help="write .tsv, .csv, .json or .jsonl instead")
    command.set_defaults(run=run_classify)


def add_detect(commands: Any):
    command = commands.add_parser("detect", help="when sounds are heard in recordings")
    add_recordings(command)
    add_detection_options(command)
    command.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write .tsv, .csv, .json, .txt (Audacity) or .selections.txt (Raven)",
    )
    command.add_argument("--format", choices=("tsv", "csv", "json", "audacity", "raven"), help="whatever the suffix")
    command.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw spectrogram, scores and events: .png .svg .pdf"
    )
    command.add_argument("--truth", type=Path, metavar="TSV", help="true events, drawn below the detected ones")
    command.set_defaults(run=run_detect)


def add_soundscapes(commands: Any):
    command = commands.add_parser("soundscapes", help="make a synthetic benchmark: events over noise, with their truth")
    data_set.add_arguments(command)
    command.set_defaults(run=data_set.run)


def add_evaluate_events(commands: Any):
    command = commands.add_parser("events", help="score a table of detected events")
    command.add_argument("--reference", required=True, help="TSV with filename, onset, offset, event_label")
    command.add_argument("--durations", required=True, help="TSV with filename, duration: every file, in seconds")
    command.add_argument("--detections", required=True, help="TSV like the reference")
    command.add_argument("--merge-overlaps", action="store_true", help="join overlapping detections of one class")
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the scores there")
    command.set_defaults(run=run_evaluate_events)


def add_evaluate_detections(commands: Any):
    command = commands.add_parser("detections", help="detect in a folder of recordings, and score that")
    command.add_argument("--audio", required=True, type=Path, metavar="DIR", help="the recordings")
    command.add_argument("--reference", required=True, help="TSV with filename, onset, offset, event_label")
    command.add_argument("--durations", type=Path, help="TSV with filename, duration (default: the recordings' own)")
    command.add_argument("--model", required=True, help="a model folder, or a name on the Hub")
    add_allow_truncated(command)
    add_detection_options(command)
    command.add_argument("--output", type=Path, metavar="FILE", help="keep the detections, as .tsv")
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the scores there")
    command.set_defaults(run=run_evaluate_detections)


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 upwards")
    return int(text)


def add_allow_truncated(command: argparse.ArgumentParser):
    command.add_argument("--allow-truncated", action="store_true", help="of a file that was cut, hear what there is")


def add_recordings(command: argparse.ArgumentParser):
    command.add_argument("files", nargs="+", metavar="FILE", help="recordings, or folders of them")
    add_allow_truncated(command)
    command.add_argument("--model", required=True, help="a model folder, or a name on the Hub")


def add_detection_options(command: argparse.ArgumentParser):
    command.add_argument("--threshold", type=float, help="score from which a sound counts (default: the model's own)")
    command.add_argument("--groups", metavar="YAML", help="report groups of classes: `desed`, or a file like it")
    command.add_argument(
        "--time-refinement", type=positive, default=1, metavar="N", help="N shifted passes for N times finer steps"
    )


if __name__ == "__main__":
    sys.exit(main())
