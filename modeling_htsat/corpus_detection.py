"""Events and tags of more recordings than one machine can hear: cut into parts, shared out, one parquet shard each.

    find_recordings  ->  cut_into_parts  ->  begin_work  ->  detect_corpus  ->  summarize, merge_events

The processes never talk to each other; all that they share is the output folder. A part that stands there is done. Each
process goes first through the parts that fall to it, then through what the others have not done yet: so one that is
slow is helped, one that died is replaced, and when a process ends, the whole corpus is done. What a part holds depends
on neither the number of processes nor on which of them heard it.
"""

import hashlib
import json
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from fsspec.core import url_to_fs
except ModuleNotFoundError as error:
    raise ImportError('Shards need pyarrow, which datasets brings: `pip install "modeling-htsat[train]"`.') from error

from .audio_htsat import AUDIO_SUFFIXES, AudioError, list_audio_files
from .events_htsat import EventDecoding
from .feature_extraction_htsat import HTSATFeatureExtractor
from .pipeline_htsat import HTSATAudioReader, HTSATSoundEventDetectionPipeline
from .tables import write_events, write_whole
from .version import VERSION
from .whole_htsat import whole_file

MANIFEST, SUMMARY = "detection.json", "summary.json"
NO_MATTER = ("_name_or_path", "transformers_version", "windows_per_pass")  # in a configuration, to what a model says
ORIGIN_KEY = b"modeling_htsat.detection"  # of a shard's metadata: the manifest

_TAG = pa.struct([("label", pa.string()), ("score", pa.float64())])
_EVENT = pa.struct([("onset", pa.float64()), ("offset", pa.float64()), ("event_label", pa.string()), _TAG.field(1)])
SCHEMA = pa.schema(
    [
        ("filename", pa.string()),  # or the clip's `video_id`
        ("duration_seconds", pa.float64()),
        ("tags", pa.list_(_TAG)),
        ("events", pa.list_(_EVENT)),
        ("error", pa.string()),  # why this recording could not be heard; then the others are null
    ]
)


# ── what there is to hear ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Recordings:
    """Every recording by number: its name, and what `open_audio` takes; read when it is asked for.

    group_sizes: how many consecutive recordings are cheap to read together, group by group; None: any order is cheap.
    """

    names: Sequence[str]
    sources: Any  # a sequence, or the rows of a corpus
    group_sizes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("There is no recording to hear: give a source that has at least one.")


def find_recordings(source: str, corpus: str | None = None, split: str = "test", **options: Any) -> Recordings:
    """Number the recordings of a folder (searched inside), a list, parquet files, or one split of a corpus.

    A list is a text file with a path, relative to the list itself, or a URL on each line. Parquet files are named by a
    pattern that ends in `.parquet`, on this machine or as fsspec knows them (`hf://datasets/...`): they have a column
    `audio` with encoded sounds, need no labels, and are read where they lie. `corpus` is a kind that `load_corpus`
    knows; `source` is then its location, and the options are its.
    """
    if corpus is not None:
        return _recordings_of_corpus(corpus, source, split, **options)
    path = Path(source)
    if path.is_dir():
        files = list_audio_files(path)
        return Recordings([file.relative_to(path).as_posix() for file in files], files)
    if path.suffix.lower() in AUDIO_SUFFIXES:
        raise ValueError(f"{path} is a single recording: give a folder or a list, or hear it with `htsat detect`.")
    if path.suffix.lower() == ".parquet":
        return _recordings_of_shards(source)
    return _recordings_of_list(path)


def _recordings_of_list(path: Path) -> Recordings:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: give a list with the path of a recording on each line.") from error
    if not names:
        raise ValueError(f"The list {path} is empty: give one with the path of a recording on each line.")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"The list {path} names {name!r} {count} times: once is enough.")
    is_url = re.compile("https?://", re.IGNORECASE).match
    return Recordings(names, [name if is_url(name) else path.parent / name for name in names])


def _recordings_of_shards(pattern: str) -> Recordings:
    from .training.shards import ShardRows

    filesystem, path = url_to_fs(pattern)
    files = sorted(str(file) for file in filesystem.glob(path))
    if not files:
        raise ValueError(f"There is no file {pattern}: give the path or pattern of parquet files that there are.")
    if "://" in pattern:
        files = [filesystem.unstrip_protocol(file) for file in files]
    return _recordings_of_rows(ShardRows(files, cached_groups=1))


def _recordings_of_corpus(kind: str, location: str, split: str, **options: Any) -> Recordings:
    from .training.corpora import load_corpus  # folders and lists need no data sets

    return _recordings_of_rows(load_corpus(kind, location, split, **options).rows)


def _recordings_of_rows(rows: Any) -> Recordings:
    return Recordings([row["video_id"] for row in rows.without_audio()], rows, rows.group_sizes)


def cut_into_parts(recordings: Recordings, recordings_per_part: int) -> list[range]:
    """The numbers of the recordings in each part; those that are read together stay together, where that can be."""
    if recordings_per_part < 1:
        raise ValueError(f"A part of {recordings_per_part} recordings was asked for; it must have at least 1.")
    starts = [0]
    group_start = 0
    for size in recordings.group_sizes or [1] * len(recordings.names):
        group_stop = group_start + size
        if group_stop - starts[-1] > recordings_per_part and group_start > starts[-1]:
            starts.append(group_start)
        starts += range(starts[-1] + recordings_per_part, group_stop, recordings_per_part)
        group_start = group_stop
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(recordings.names)], strict=True)]


# ── who hears what ────────────────────────────────────────────────────────────────────────────────────────────────────


class Process(NamedTuple):
    """One of the processes that share the work; `local_rank` counts those of one machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def this_process(environment: Mapping[str, str] = os.environ) -> Process:
    """Which of all processes this is, as torchrun and `accelerate launch` say; without them it is the only one."""
    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
    process = Process(*(int(environment.get(name, default)) for name, default in names.items()))
    if not 0 <= process.rank < process.world_size:
        raise ValueError(f"RANK is {process.rank} and WORLD_SIZE {process.world_size}: ranks are from 0 to below that.")
    return process


def visiting_order(num_parts: int, process: Process) -> list[int]:
    """All parts: first those that fall to this process, then those of the others, which it does where they are missing.

    Every process shuffles the latter its own way, so that few meet at one part. If two do, both write the same.
    """
    own = range(process.rank, num_parts, process.world_size)
    others = sorted(set(range(num_parts)) - set(own))
    random.Random(process.rank).shuffle(others)
    return [*own, *others]


# ── what is asked ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class DetectionSettings:
    """What decides the numbers, beside the model and the recordings.

    batch_size: windows of sound that the model hears at once: as many short recordings, or fewer long ones.
    decoding, groups, time_refinement: see [`HTSATSoundEventDetectionPipeline`]. allow_truncated: see `open_audio`.
    """

    batch_size: int = 16
    top_k: int = 10
    decoding: Mapping[str, Any] | None = None
    groups: Mapping[str, Sequence[int]] | None = None
    time_refinement: int = 1
    allow_truncated: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "top_k", "time_refinement"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        EventDecoding.from_dict(self.decoding or {})


def describe_work(
    detector: HTSATSoundEventDetectionPipeline,
    recordings: Recordings,
    parts: Sequence[range],
    settings: DetectionSettings,
) -> dict[str, Any]:
    """Everything that decides what the shards hold, as JSON has it; recordings go by their names."""
    num_labels = detector.model.config.num_labels
    for name, classes in (settings.groups or {}).items():
        if max(classes) >= num_labels:
            raise ValueError(f"The group {name!r} has class {max(classes)}; this model has 0 to {num_labels - 1}.")
    return {
        "num_recordings": len(recordings.names),
        "num_parts": len(parts),
        "recordings": _hash(list(recordings.names)),
        "parts": _hash([part.start for part in parts]),
        "model": fingerprint(detector),
        "dtype": str(_last_dtype(detector.model)).removeprefix("torch."),
        **json.loads(json.dumps(asdict(settings))),
        "decoding": _decoding(detector, settings).to_dict(),
    }


def _last_dtype(model: torch.nn.Module) -> torch.dtype:
    """That of the numbers that the model computes with: the first ones, which normalise decibels, stay float32."""
    return list(model.parameters())[-1].dtype


def _decoding(detector: HTSATSoundEventDetectionPipeline, settings: DetectionSettings) -> EventDecoding:
    """The one that was asked for, or else the model's own, which speaks of classes and not of groups."""
    own = None if settings.groups else detector.model.config.event_decoding
    return EventDecoding.from_dict(settings.decoding or own or {})


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def fingerprint(detector: HTSATSoundEventDetectionPipeline) -> str:
    """A hash of the weights and of the values that model and front end were made with, wherever they came from."""
    digest = hashlib.sha256()
    for values in (detector.model.config.to_dict(), detector.feature_extractor.to_dict()):
        lasting = {name: value for name, value in values.items() if name not in NO_MATTER}
        digest.update(json.dumps(lasting, sort_keys=True, default=str).encode())
    for name, tensor in sorted(detector.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def begin_work(output: Path, work: Mapping[str, Any], **remarks: Any) -> dict[str, Any]:
    """Write down in the output folder what is asked, whoever comes first; refuse a folder where that was another thing.

    The remarks, such as the model's name, are written too and may differ. Returns what stands there.
    """
    output.mkdir(parents=True, exist_ok=True)
    manifest = output / MANIFEST
    has_parts = any(output.glob("part-*.parquet"))  # before the next line: who writes one has written the manifest
    if not manifest.exists():
        if has_parts:
            raise ValueError(f"{output} holds parts but no {MANIFEST}, which says of what: give another output folder.")
        content = {"work": work, **remarks, "versions": _versions()}
        write_whole(manifest, lambda file: json.dump(content, file, indent=2, ensure_ascii=False))
    written = json.loads(manifest.read_text(encoding="utf-8"))
    begun = written["work"]
    if begun != work:
        differences = [_difference(name, begun.get(name), work.get(name)) for name in {**begun, **work}]
        raise ValueError(
            f"{output} was begun with other values of {', '.join(filter(None, differences))}: give those again to "
            "go on there, or another output folder."
        )
    return written


def _difference(name: str, then: Any, now: Any) -> str:
    if then == now:
        return ""
    is_short = len(f"{then}{now}") < 40
    return f"{name} ({then} then, {now} now)" if is_short else name


def _versions() -> dict[str, str]:
    return {"modeling_htsat": VERSION, "torch": str(torch.__version__), "transformers": transformers.__version__}


# ── hear one part ─────────────────────────────────────────────────────────────────────────────────────────────────────


class HeardRecording(NamedTuple):
    """A recording on its way into the model, or the reason why it is not."""

    number: int
    log_mel: np.ndarray  # (frames, mels); empty where there is an error
    num_samples: int
    error: str | None


class RecordingReader(HTSATAudioReader):
    """Recordings by number, as log-mel spectrograms: what a worker of a DataLoader does."""

    def __init__(self, extractor: HTSATFeatureExtractor, recordings: Recordings, allow_truncated: bool):
        self.feature_extractor = extractor
        self.sources = recordings.sources
        self.allow_truncated = allow_truncated

    def __getitem__(self, number: int) -> HeardRecording:
        source = self.sources[number]
        try:
            features = self.preprocess(source, allow_truncated=self.allow_truncated)
        except AudioError as error:
            return HeardRecording(number, np.zeros((0, 0), np.float32), 0, str(error))
        # Arrays go through a pipe; tensors through /dev/shm, which in containers is smaller than an hour of sound.
        log_mel = features["input_features"][0].numpy()
        return HeardRecording(number, log_mel, int(features["num_samples"]), None)


def hear_part(
    detector: HTSATSoundEventDetectionPipeline,
    recordings: Recordings,
    part: range,
    settings: DetectionSettings,
    num_workers: int = 0,
) -> Iterator[list[dict[str, Any]]]:
    """The rows of one part, batch by batch, each with its recording's `number`; these come in any order.

    Which recordings share a batch is decided by the part alone, so that every number is the same in every run.
    """
    reader = RecordingReader(detector.feature_extractor, recordings, settings.allow_truncated)
    loader = DataLoader(
        reader,  # type: ignore[arg-type]  # __getitem__ is all that is asked of it
        batch_sampler=_pieces(recordings, part),  # type: ignore[arg-type]  # a list of them will do
        num_workers=num_workers,
        collate_fn=list,
    )
    heard = (recording for piece in loader for recording in piece)
    for batch in _batches(heard, settings.batch_size, detector.feature_extractor.clip_frames):
        if batch[0].error is not None:
            yield [_failed_row(recordings, recording) for recording in batch]
        else:
            yield _detected_rows(detector, recordings, batch, settings)


def _pieces(recordings: Recordings, part: range) -> list[range]:
    """What one worker reads at a time: what is cheap to read together."""
    if recordings.group_sizes is None:
        return [range(index, index + 1) for index in part]
    borders = accumulate(recordings.group_sizes)
    starts = [part.start, *(border for border in borders if part.start < border < part.stop)]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], part.stop], strict=True)]


def _batches(heard: Iterable[HeardRecording], batch_size: int, clip_frames: int) -> Iterator[list[HeardRecording]]:
    """Recordings of like length together, so that little is filled up: `batch_size` windows side by side, not more.

    Like are those of up to 1, 2, 4, 8, ... windows; long ones are alone.
    """
    waiting: dict[int, list[HeardRecording]] = defaultdict(list)
    for recording in heard:
        if recording.error is not None:
            yield [recording]
            continue
        doublings = (max(len(recording.log_mel) - 1, 0) // clip_frames).bit_length()
        waiting[doublings].append(recording)
        if len(waiting[doublings]) >= batch_size >> doublings:
            yield waiting.pop(doublings)
    yield from waiting.values()


def _failed_row(recordings: Recordings, recording: HeardRecording) -> dict[str, Any]:
    return {"number": recording.number, "filename": recordings.names[recording.number], "error": recording.error}


def _detected_rows(
    detector: HTSATSoundEventDetectionPipeline,
    recordings: Recordings,
    batch: Sequence[HeardRecording],
    settings: DetectionSettings,
) -> list[dict[str, Any]]:
    extractor = detector.feature_extractor
    log_mels = [torch.from_numpy(recording.log_mel) for recording in batch]
    ones = [torch.ones(len(log_mel), dtype=torch.int64) for log_mel in log_mels]
    inputs = {
        "input_features": pad_sequence(log_mels, batch_first=True, padding_value=extractor.padding_value),
        "attention_mask": pad_sequence(ones, batch_first=True),
        "num_samples": torch.tensor([recording.num_samples for recording in batch]),
        "error": None,
    }
    outputs = detector.forward(inputs, time_refinement=settings.time_refinement, progress_bar=False)
    options = {"decoding": settings.decoding, "groups": settings.groups, "return_scores": True}
    rows = []
    for position, recording in enumerate(batch):
        one = {name: None if tensor is None else tensor[position : position + 1] for name, tensor in outputs.items()}
        found = detector.postprocess(one, **options)
        rows.append(
            {
                "number": recording.number,
                "filename": recordings.names[recording.number],
                "duration_seconds": recording.num_samples / extractor.sampling_rate,
                "tags": _strongest(found["tags"], settings.top_k),
                "events": [_event_row(event) for event in found["events"]],
                "error": None,
            }
        )
    return rows


def _strongest(tags: Mapping[str, float], top_k: int) -> list[dict[str, Any]]:
    ranked = sorted(tags.items(), key=lambda tag: -tag[1])
    return [{"label": label, "score": score} for label, score in ranked[:top_k]]


def _event_row(event: Mapping[str, Any]) -> dict[str, Any]:
    times = {name: float(event[name]) for name in ("onset", "offset", "score")}
    return {**times, "event_label": str(event["label"])}


# ── hear them all ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Step(NamedTuple):
    """What happened since the last one: recordings heard by this process, or a part that it has written."""

    rows: list[dict[str, Any]]
    written: Path | None


def detect_corpus(
    detector: HTSATSoundEventDetectionPipeline,
    recordings: Recordings,
    parts: Sequence[range],
    output: Path,
    settings: DetectionSettings,
    manifest: Mapping[str, Any],
    process: Process = Process(),  # noqa: B008  # an immutable value
    num_workers: int = 0,
) -> Iterator[Step]:
    """Hear what is missing of the work that `begin_work` wrote the manifest of; it goes on as the steps are taken.

    At the last step, all parts are there.
    """
    schema = SCHEMA.with_metadata({ORIGIN_KEY: json.dumps({**manifest, "versions": _versions()}, sort_keys=True)})
    for number in visiting_order(len(parts), process):
        path = part_path(output, number, len(parts))
        if path.exists():
            continue
        rows: list[dict[str, Any]] = []
        for batch in hear_part(detector, recordings, parts[number], settings, num_workers):
            rows += batch
            yield Step(batch, None)
            if path.exists():  # another process was quicker
                break
        else:
            rows.sort(key=lambda row: row["number"])
            write_table_whole(path, pa.Table.from_pylist(rows, schema=schema))
            yield Step([], path)


def part_path(output: Path, number: int, num_parts: int) -> Path:
    return output / f"part-{number:05d}-of-{num_parts:05d}.parquet"


def write_table_whole(path: Path, table: pa.Table) -> None:
    """Write beside the target and move it there: a shard that stands under its name is whole."""
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def count_done(output: Path, parts: Sequence[range]) -> int:
    """How many recordings the shards hold that stand in the folder now."""
    present = set(os.listdir(output))
    return sum(len(part) for number, part in enumerate(parts) if part_path(output, number, len(parts)).name in present)


# ── what came of it ───────────────────────────────────────────────────────────────────────────────────────────────────


def summarize(output: Path, work: Mapping[str, Any]) -> dict[str, Any]:
    """Count what all shards hold, and write it as `summary.json` beside them: the same, whoever does it."""
    totals = {"recordings": 0, "hours": 0.0, "events": 0}
    events_of_label: Counter[str] = Counter()
    failed: list[dict[str, str]] = []
    for number in range(work["num_parts"]):
        table = _read_part(part_path(output, number, work["num_parts"]), work)
        totals["recordings"] += len(table)
        totals["hours"] += sum(filter(None, table["duration_seconds"].to_pylist())) / 3600
        failed += table.filter(table["error"].is_valid()).select(["filename", "error"]).to_pylist()
        events_of_label.update(table["events"].combine_chunks().flatten().field("event_label").to_pylist())
    totals["events"] = events_of_label.total()
    summary = {**totals, "events_of_label": dict(events_of_label.most_common()), "failed": failed}
    write_whole(output / SUMMARY, lambda file: json.dump(summary, file, indent=2, ensure_ascii=False))
    return summary


def _read_part(path: Path, work: Mapping[str, Any]) -> pa.Table:
    table = pq.read_table(path)
    metadata = table.schema.metadata or {}
    if json.loads(metadata.get(ORIGIN_KEY, b"{}")).get("work") != work:
        raise ValueError(f"{path} was written by another command: delete it, and run this one again.")
    return table


def merge_events(output: Path, work: Mapping[str, Any], table: Path) -> None:
    """One table of the events of all shards, in the order of the recordings and in the format that its suffix says."""
    paths = [part_path(output, number, work["num_parts"]) for number in range(work["num_parts"])]
    rows = (row for path in paths for row in _read_part(path, work).select(["filename", "events"]).to_pylist())
    write_events(table, ({"filename": row["filename"], **event} for row in rows for event in row["events"] or []))


__all__ = [
    "DetectionSettings",
    "Process",
    "Recordings",
    "Step",
    "begin_work",
    "count_done",
    "cut_into_parts",
    "describe_work",
    "detect_corpus",
    "find_recordings",
    "fingerprint",
    "hear_part",
    "merge_events",
    "part_path",
    "summarize",
    "this_process",
    "visiting_order",
    "write_table_whole",
]
