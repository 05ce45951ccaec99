"""Many soundscapes on disk, as FLAC files or as parquet in the layout of AudioSet on the Hub, and its command."""

import argparse
import contextlib
import functools
import io
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from tqdm.auto import tqdm

from ..processes import interrupts_ignored, process_pool
from ..tables import DURATION_COLUMNS, EVENT_COLUMNS, write_delimited, write_json_lines, write_whole
from ..version import VERSION
from ..whole_htsat import whole_folder
from .scene import Soundscape, SoundscapeSettings, find_background, find_foreground, make_soundscape

CLIPS_PER_SHARD, CLIPS_PER_ROW_GROUP = 256, 32
CLIPS_PER_JOB = 32  # a process takes some seconds to import torch, as long as it takes to make this many clips


class Clip(NamedTuple):
    """A soundscape as it goes into a data set."""

    name: str
    flac: bytes
    truth: Soundscape  # without its samples


def write_soundscapes(
    output: str | os.PathLike[str],
    num_clips: int,
    seed: int = 0,
    settings: SoundscapeSettings | None = None,
    format: str = "flac",
    jobs: int = 1,
) -> dict[str, Any]:
    """Write a folder of soundscapes with their labels, whole or not at all; returns its `dataset_info.json`.

    Args:
        format: "flac" for a file per clip in `audio/`, "parquet" for shards in `data/` in the layout of AudioSet.
        jobs: Processes to share the work; above 1, a script needs its `if __name__ == "__main__"`. The clips are the
            same for any number.
    """
    settings = settings or SoundscapeSettings()
    if format not in ("flac", "parquet"):
        raise ValueError(f"The format is {format!r}; it must be flac or parquet.")
    for name, number, least in (("num_clips", num_clips, 1), ("jobs", jobs, 1), ("seed", seed, 0)):
        if number < least:
            raise ValueError(f"{name} is {number}; it must be at least {least}.")
    schema = _audioset_schema() if format == "parquet" else None
    with whole_folder(output) as folder, _clips(num_clips, seed, settings, jobs) as stream:
        made = tqdm(stream, total=num_clips, unit="clip", disable=None)
        if schema is None:
            clips = _write_flac(folder / "audio", made)
        else:
            clips = _write_parquet(folder / "data", made, num_clips, settings.split_name, schema)
        _write_tables(folder, clips, settings)
        return _write_description(folder, clips, seed, settings, format)


@contextlib.contextmanager
def _clips(num_clips: int, seed: int, settings: SoundscapeSettings, jobs: int) -> Iterator[Iterator[Clip]]:
    """The clips in their order, made by several processes where that is quicker."""
    make = functools.partial(_make_clip, seed, settings)
    jobs = min(jobs, -(-num_clips // CLIPS_PER_JOB))
    if jobs == 1:
        yield map(make, range(num_clips))
        return
    with process_pool(jobs) as pool:
        with interrupts_ignored():
            made = pool.map(make, range(num_clips), chunksize=8)
        yield made


def _make_clip(seed: int, settings: SoundscapeSettings, index: int) -> Clip:
    soundscape = make_soundscape(seed, index, settings)
    file = io.BytesIO()
    soundfile.write(file, soundscape.waveform, settings.sampling_rate, format="FLAC", subtype="PCM_16")
    no_samples = np.zeros(0, np.float32)
    truth = replace(soundscape, waveform=no_samples, background=no_samples)
    return Clip(f"{settings.split_name}-{index:06d}", file.getvalue(), truth)


def _write_flac(folder: Path, made: Iterable[Clip]) -> list[Clip]:
    folder.mkdir()
    clips = []
    for clip in made:
        (folder / f"{clip.name}.flac").write_bytes(clip.flac)
        clips.append(clip._replace(flac=b""))
    return clips


def _audioset_schema() -> Any:
    """The columns of agkphysics/AudioSet, and `events`."""
    try:
        from datasets import Audio, Features, List, Value
    except ModuleNotFoundError as error:
        raise ImportError(
            'Parquet needs the package datasets: `pip install "modeling-htsat[train]"`; or write flac instead.'
        ) from error
    texts = List(Value("string"))
    event = {"onset": Value("float64"), "offset": Value("float64"), "event_label": Value("string")}
    columns = {"video_id": Value("string"), "audio": Audio(), "labels": texts, "human_labels": texts}
    return Features({**columns, "events": List(event)}).arrow_schema


def _write_parquet(folder: Path, made: Iterable[Clip], num_clips: int, split_name: str, schema: Any) -> list[Clip]:
    """Shards that differ by one clip at most."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    num_shards, clips = -(-num_clips // CLIPS_PER_SHARD), []
    made = iter(made)  # of which each shard takes its share
    for shard in range(num_shards):
        size = num_clips * (shard + 1) // num_shards - num_clips * shard // num_shards
        held = list(itertools.islice(made, size))
        table = pyarrow.Table.from_pylist(list(map(_audioset_row, held)), schema=schema)
        path = folder / f"{split_name}-{shard:05d}-of-{num_shards:05d}.parquet"
        pyarrow.parquet.write_table(table, path, row_group_size=CLIPS_PER_ROW_GROUP)  # streaming reads group by group
        clips += [clip._replace(flac=b"") for clip in held]
    return clips


def _audioset_row(clip: Clip) -> dict[str, Any]:
    return {
        "video_id": clip.name,
        "audio": {"bytes": clip.flac, "path": f"{clip.name}.flac"},
        "labels": clip.truth.labels,
        "human_labels": clip.truth.labels,
        "events": [dict(zip(EVENT_COLUMNS[1:], event, strict=True)) for event in clip.truth.events],
    }


def _write_tables(folder: Path, clips: Sequence[Clip], settings: SoundscapeSettings) -> None:
    """Strong labels, weak labels and durations as in DESED, and how each clip was mixed."""
    events: list[dict[str, Any]] = []
    weak, durations, mixing = [], [], []
    for name, truth in ((f"{clip.name}.flac", clip.truth) for clip in clips):
        rows = [{"filename": name, **dict(zip(EVENT_COLUMNS[1:], event, strict=True))} for event in truth.events]
        events += rows or [{"filename": name}]  # a bare name says that there are none
        weak.append({"filename": name, "event_labels": ",".join(truth.labels)})
        durations.append({"filename": name, "duration": settings.clip_seconds})
        mix = {"background": truth.background_kind, "attenuation_db": truth.attenuation_db, "snrs_db": truth.snrs_db}
        mixing.append({"filename": name, **mix})
    _write_table(folder / "events.tsv", events, EVENT_COLUMNS)
    _write_table(folder / "weak.tsv", weak, ("filename", "event_labels"))
    _write_table(folder / "durations.tsv", durations, DURATION_COLUMNS)
    write_whole(folder / "mixing.jsonl", lambda file: write_json_lines(file, mixing))


def _write_table(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    write_whole(path, lambda file: write_delimited(file, rows, columns, "\t"))


def _write_description(
    folder: Path, clips: Sequence[Clip], seed: int, settings: SoundscapeSettings, format: str
) -> dict[str, Any]:
    events = Counter(event[2] for clip in clips for event in clip.truth.events)
    values = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    info = {
        "generator": f"modeling_htsat.soundscapes {VERSION}, numpy {np.__version__}",
        "format": format,
        "num_clips": len(clips),
        "seed": seed,
        **values,
        # How many, and not where: paths are nobody else's business.
        "foreground": {label: len(recordings) for label, recordings in settings.foreground.items()},
        "background": len(settings.background),
        "labels": settings.labels,
        "num_events": {label: events[label] for label in settings.labels},
    }
    write_whole(folder / "dataset_info.json", lambda file: json.dump(info, file, indent=2, ensure_ascii=False))
    header = PARQUET_HEADER.format(**info) if format == "parquet" else ""
    place = "`data/*.parquet`, in the layout of AudioSet" if format == "parquet" else "`audio/*.flac`"
    write_whole(folder / "README.md", lambda file: file.write(header + README.format(**info, place=place)))
    return info


# `datasets` and the Hub read this: which files are which split.
PARQUET_HEADER = """---
configs:
- config_name: default
  data_files:
  - split: {split_name}
    path: data/{split_name}-*.parquet
---
"""
README = """# Soundscapes

{num_clips} clips of {clip_seconds:g} s at {sampling_rate} Hz, mono, 16 bit, made by {generator} from the seed {seed} \
and the settings in `dataset_info.json`. The audio is in {place}.

| table | columns |
|---|---|
| `events.tsv` | filename, onset, offset (s), event_label; a bare filename has no events |
| `weak.tsv` | filename, event_labels: the classes that occur, with commas between |
| `durations.tsv` | filename, duration (s) |
| `mixing.jsonl` | background, signal-to-noise ratios of the events in the order of `events.tsv`, attenuation |
"""


# ── the command line ──────────────────────────────────────────────────────────────────────────────────────────────────


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `htsat soundscapes` understands; `run` does it."""
    add, usual = parser.add_argument, SoundscapeSettings()
    add("output", type=Path, metavar="OUTPUT", help="the folder to make; must not exist yet, or be empty")
    add("--num-clips", type=int, default=1000, metavar="N", help="how many soundscapes (default: 1000)")
    add("--seed", type=int, default=0, metavar="N", help="the same seed makes the same clips (default: 0)")
    add("--split-name", default=usual.split_name, metavar="NAME", help="part of the seed and of names (default: train)")
    add("--format", choices=("flac", "parquet"), default="flac", help="a file per clip, or AudioSet's layout")
    add("--foreground", metavar="DIR", help="your own recordings of events, in a folder for each class")
    add("--background", metavar="DIR", help="your own recordings without events")
    add("--with-synthetic", action="store_true", help="use synthetic sounds too where there are recordings")
    numbers = {
        "clip_seconds": "length of a clip",
        "sampling_rate": "samples per second",
        "max_events": "most events in a clip",
        "max_polyphony": "most events that sound at once",
        "empty_share": "share of the clips without events",
        "min_snr_db": "faintest event against its background",
        "max_snr_db": "loudest event against its background",
    }
    for name, text in numbers.items():
        value = getattr(usual, name)
        flag = "--" + name.replace("_", "-")
        add(flag, type=type(value), default=value, metavar="X", help=f"{text} (default: {value:g})")
    add("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: one per core)")


def run(options: argparse.Namespace) -> int:
    """Make the data set that the command line describes, and say what came out."""
    names = [name for name in SoundscapeSettings.__dataclass_fields__ if name not in ("foreground", "background")]
    settings = SoundscapeSettings(**{name: getattr(options, name) for name in names})
    if options.foreground:
        settings = replace(settings, foreground=find_foreground(options.foreground, settings.sampling_rate))
    if options.background:
        settings = replace(settings, background=find_background(options.background, settings.sampling_rate))
    try:
        info = write_soundscapes(
            options.output, options.num_clips, options.seed, settings, options.format, options.jobs
        )
    except ImportError as error:  # the command line knows ValueError as what a user can mend
        raise ValueError(str(error)) from error
    events = sum(info["num_events"].values())
    sys.stdout.write(f"{options.output}: {options.num_clips} clips, {events} events, {len(info['labels'])} classes\n")
    return 0
