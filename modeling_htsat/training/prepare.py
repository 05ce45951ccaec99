"""A corpus once converted: every sound as mono FLAC at the model's rate, in parquet shards that training reads quickly.

    load the corpus  ->  deal its clips to shards  ->  decode, resample and encode each clip  ->  describe what came out

What a shard holds follows from the corpus and the command alone, so that shards can be written by any number of
processes, and that a command which was killed goes on after the shards that are finished.
"""

import argparse
import contextlib
import hashlib
import io
import json
import logging
import os
import pickle
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile
import soxr
from datasets import Audio, Features
from tqdm.auto import tqdm

from ..audio_htsat import MAX_SAMPLING_RATE, MIN_SAMPLING_RATE, AudioError, load_audio
from ..feature_extraction_htsat import HTSATFeatureExtractor
from ..processes import interrupts_ignored, only_one, process_pool
from ..tables import write_delimited, write_whole
from ..version import VERSION
from .clips import CLIP_FEATURES, SPLITS, ClipRows, Corpus
from .corpora import CORPORA, corpus_options, load_corpus
from .shards import ShardRows

logger = logging.getLogger(__name__)

CLIPS_PER_SHARD, CLIPS_PER_ROW_GROUP = 512, 32  # ten seconds at 32 kHz are some 0.3 MB of FLAC
CLIPS_PER_JOB = 64  # a process takes some seconds to import torch, as long as it takes to convert this many clips
SCHEMA = Features({**CLIP_FEATURES, "audio": Audio()}).arrow_schema
DEAL_SEED = 20220523  # of the order of clips within a shard; one for all, as no result depends on it
UNFINISHED = ".unfinished"  # hidden, so that nothing takes what is in it for a data set
SKIPPED_KEY = "htsat_skipped"  # in a shard's footer: which of its clips could not be decoded
PROGRESS_SECONDS = 0.5


class Skipped(NamedTuple):
    """A clip that could not be decoded."""

    split: str
    video_id: str
    reason: str


class Shard(NamedTuple):
    """The clips that one file is to hold, in their order."""

    split: str
    name: str
    indices: np.ndarray


def prepare_corpus(
    kind: str,
    location: str | os.PathLike[str],
    output: str | os.PathLike[str],
    splits: Sequence[str] = ("train",),
    sampling_rate: int = 32_000,
    clips_per_shard: int = CLIPS_PER_SHARD,
    options: Mapping[str, Any] | None = None,
    jobs: int = 1,
    max_bad_share: float = 0.05,
) -> dict[str, Any]:
    """Write a corpus as parquet shards, which the corpus `audioset` reads; returns its `dataset_info.json`.

    Samples are rounded to 16 bit, without dither, and those beyond full scale (resampling can overshoot) are held at
    full scale. Until everything is there, it lies in a hidden folder inside `output`; the same call goes on from there.

    Args:
        kind, location, options: As in `load_corpus`.
        clips_per_shard: At most; the shards of a split differ by one clip at most, before those are left out that
            cannot be decoded.
        jobs: Processes; above 1, a script needs its `if __name__ == "__main__"`. The bytes are the same for any number.
        max_bad_share: Stop as soon as a larger share of all clips than this cannot be decoded.
    """
    _check_order(splits, sampling_rate, clips_per_shard, jobs, max_bad_share)
    output, options = Path(output).absolute(), dict(options or {})
    request = _request(kind, location, splits, sampling_rate, clips_per_shard, options)
    if (output / "data").exists():
        return _finished_before(output, request)
    with _workplace(output, request) as work:
        corpora = {split: load_corpus(kind, location, split, **options) for split in splits}
        shards = _plan(corpora, clips_per_shard, location)
        _check_same_corpus(work, corpora, location)
        skipped = _write_shards(work, corpora, shards, sampling_rate, jobs, max_bad_share)
        info = _describe(work, request, corpora, shards, skipped)
        _write_description(output, info, skipped)
        (work / "data").rename(output / "data")  # last: where there is data, there is all of it
    return info


def _check_order(
    splits: Sequence[str], sampling_rate: int, clips_per_shard: int, jobs: int, max_bad_share: float
) -> None:
    if not splits or len(set(splits)) < len(splits) or not set(splits) <= set(SPLITS):
        raise ValueError(f"The splits are {', '.join(splits) or 'none'}; give some of {', '.join(SPLITS)}, each once.")
    if not MIN_SAMPLING_RATE <= sampling_rate <= MAX_SAMPLING_RATE:
        raise ValueError(f"The rate is {sampling_rate} Hz; {MIN_SAMPLING_RATE} to {MAX_SAMPLING_RATE} are possible.")
    for name, number in (("clips_per_shard", clips_per_shard), ("jobs", jobs)):
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1.")
    if not 0 <= max_bad_share <= 1:
        raise ValueError(f"max_bad_share is {max_bad_share}; it must be from 0 to 1.")


# ── the same command again ────────────────────────────────────────────────────────────────────────────────────────────


def _request(
    kind: str,
    location: str | os.PathLike[str],
    splits: Sequence[str],
    sampling_rate: int,
    clips_per_shard: int,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that the bytes follow from, but the corpus itself."""
    place = os.path.abspath(location) if os.path.exists(location) else os.fspath(location)
    return {
        "corpus": kind,
        "location": place,
        "splits": list(splits),
        "sampling_rate": sampling_rate,
        "clips_per_shard": clips_per_shard,
        "options": {name: str(value) for name, value in sorted(options.items())},
        "versions": {
            "modeling_htsat": VERSION,
            "numpy": np.__version__,
            "pyarrow": pyarrow.__version__,
            "libsndfile": soundfile.__libsndfile_version__,
            "soxr": soxr.__version__,
        },
    }


def _fingerprint(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _finished_before(output: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        info = json.loads((output / "dataset_info.json").read_text(encoding="utf-8"))
        is_same = info["request"] == _fingerprint(request)
    except (OSError, ValueError, KeyError, TypeError):
        is_same = False
    if not is_same:
        raise FileExistsError(f"{output} holds the data of another command; name another folder, or remove it first.")
    shutil.rmtree(output / UNFINISHED, ignore_errors=True)  # who was killed at the very end did not get there
    return info


@contextlib.contextmanager
def _workplace(output: Path, request: dict[str, Any]) -> Iterator[Path]:
    """The hidden folder in which shards wait until all are there: a new one, or that of the same command."""
    work, was_there = output / UNFINISHED, output.exists()
    if was_there and not work.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(f"{output} exists, and is not an empty folder; name another one, or remove it first.")
    for folder in (work, work / "data"):
        if folder.is_symlink():
            raise ValueError(f"{folder} is a link, and shards would lie where it leads; remove it first.")
    (work / "data").mkdir(parents=True, exist_ok=True)
    with only_one(work / "lock", f"Another `htsat prepare` is at work in {output}; wait for it, or stop it."):
        _check_same_request(work, request)
        for leftover in work.glob("*.tmp"):
            leftover.unlink()
        try:
            yield work
        except BaseException:
            if not _has_shards(work):  # nothing to go on from
                shutil.rmtree(work, ignore_errors=True)
                if not was_there:
                    output.rmdir()
            raise
        shutil.rmtree(work, ignore_errors=True)


def _has_shards(work: Path) -> bool:
    return any((work / "data").iterdir())


def _check_same_request(work: Path, request: dict[str, Any]) -> None:
    path = work / "request.json"
    if not _has_shards(work):
        return write_whole(path, lambda file: json.dump(request, file, indent=2))
    before = json.loads(path.read_text(encoding="utf-8"))
    for name, value in request.items():
        if before.get(name) != value:
            raise ValueError(
                f"{work.parent} holds the unfinished work of another command, whose {name} was {before.get(name)}, not "
                f"{value}; give that command again, name another folder, or remove this one."
            )
    return None


def _check_same_corpus(work: Path, corpora: Mapping[str, Corpus], location: Any) -> None:
    """Shards of which some were made before the corpus changed would hold some clips twice, and others not at all."""
    path, digest = work / "corpus.txt", hashlib.sha256()
    for part in chain.from_iterable([corpus.label_names, *corpus.rows.without_audio()] for corpus in corpora.values()):
        digest.update(json.dumps(part).encode())
    now = digest.hexdigest()
    if not _has_shards(work):
        write_whole(path, lambda file: file.write(now))
    elif path.read_text(encoding="utf-8") != now:
        raise ValueError(
            f"The clips of {location} or their labels have changed since {work.parent} was begun; remove that folder, "
            "and begin anew."
        )


# ── which clip goes where ─────────────────────────────────────────────────────────────────────────────────────────────


def _plan(corpora: Mapping[str, Corpus], clips_per_shard: int, location: Any) -> list[Shard]:
    shards = []
    for split, corpus in corpora.items():
        if not len(corpus.rows):
            raise ValueError(f"{location} has no clips for {split}.")
        dealt = deal(corpus.rows, -(-len(corpus.rows) // clips_per_shard))
        names = [f"{split}-{number:05d}-of-{len(dealt):05d}.parquet" for number in range(len(dealt))]
        shards += [Shard(split, name, indices) for name, indices in zip(names, dealt, strict=True)]
    return shards


def deal(rows: ClipRows, num_shards: int) -> list[np.ndarray]:
    """The clips of each shard; sizes differ by one at most, and every shard is about as mixed as the whole.

    Clips are sorted by their rarest class, dealt one by one like cards, and shuffled within each shard. Where only
    neighbours are cheap to read together, as in shards made elsewhere, these stay together: their groups are shuffled,
    and cut into equal parts.
    """
    if rows.group_sizes is not None:
        groups = np.split(np.arange(len(rows)), np.cumsum(rows.group_sizes)[:-1])
        shuffled = np.random.default_rng(DEAL_SEED).permutation(len(groups))
        return np.array_split(np.concatenate([groups[number] for number in shuffled]), num_shards)
    order = _rarest_class_first([clip["labels"] or () for clip in rows.without_audio()])
    return [
        np.random.default_rng((DEAL_SEED, shard)).permutation(order[shard::num_shards]) for shard in range(num_shards)
    ]


def _rarest_class_first(labels: Sequence[Sequence[str]]) -> np.ndarray:
    counts = Counter(chain.from_iterable(labels))
    keys = [sorted((counts[label], label) for label in own) for own in labels]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


# ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_shards(
    work: Path,
    corpora: Mapping[str, Corpus],
    shards: Sequence[Shard],
    sampling_rate: int,
    jobs: int,
    max_bad_share: float,
) -> list[Skipped]:
    """Write the shards that are not there yet; returns what had to be skipped in all of them."""
    skipped = {shard.name: _read_skipped(work / "data" / shard.name) for shard in shards}
    to_do = [shard for shard in shards if skipped[shard.name] is None]
    num_clips, num_left = (sum(len(shard.indices) for shard in some) for some in (shards, to_do))
    writer = _ShardWriter(work, {split: corpus.rows for split, corpus in corpora.items()}, sampling_rate)
    with tqdm(total=num_clips, initial=num_clips - num_left, unit="clip", disable=None) as bar:
        try:
            _check_bad_share(skipped.values(), num_clips, max_bad_share)
            jobs = min(jobs, len(to_do), -(-num_left // CLIPS_PER_JOB))
            with contextlib.closing(_written(writer, to_do, jobs, bar.update)) as written:
                for shard, bad in written:
                    skipped[shard.name] = bad
                    for clip in bad:
                        logger.warning("%s is left out: %s", clip.video_id, clip.reason)
                    _check_bad_share(skipped.values(), num_clips, max_bad_share)
        except KeyboardInterrupt:
            there = len([bad for bad in skipped.values() if bad is not None])
            raise KeyboardInterrupt(
                f"{there} of {len(shards)} shards are finished in {work.parent}; the same command goes on from there"
            ) from None
    return [clip for shard in shards for clip in skipped[shard.name] or ()]


def _read_skipped(path: Path) -> list[Skipped] | None:
    """The clips that a finished shard had to leave out; None: it is not finished."""
    try:
        footer = pyarrow.parquet.read_metadata(path).metadata
        return [Skipped(*clip) for clip in json.loads(footer[SKIPPED_KEY.encode()])]
    except (OSError, ValueError, KeyError, TypeError):  # absent, or damaged since: to be written anew
        return None


def _check_bad_share(skipped: Any, num_clips: int, max_bad_share: float) -> None:
    bad = [clip for clips in skipped for clip in clips or ()]
    if len(bad) > max_bad_share * num_clips or len(bad) == num_clips:
        raise ValueError(
            f"{len(bad)} of {num_clips} clips cannot be decoded, more than the share of {max_bad_share:g} that is "
            f"allowed; the first is {bad[0].video_id} ({bad[0].reason.rstrip('.')}). Mend them, or allow more with "
            "--max-bad-share: the same command goes on after the finished shards."
        )


def _written(
    writer: "_ShardWriter", shards: Sequence[Shard], jobs: int, count: Callable[[int], object]
) -> Generator[tuple[Shard, list[Skipped]], None, None]:
    """Each shard when it is on disk; `count` hears of the clips as they are done."""
    if jobs <= 1:
        yield from ((shard, writer.write(shard, count)) for shard in shards)
        return
    num_done, num_told = get_context("spawn").Value("q", 0), 0
    # By way of a file: what a process gets when it starts, its parent hands over in person, one process at a time.
    pickled = writer.work / "writer.tmp"
    try:
        pickled.write_bytes(pickle.dumps(writer))
        with process_pool(jobs, _begin_work, (pickled, num_done)) as pool:
            with interrupts_ignored():
                shard_of = {pool.submit(_write_here, shard): shard for shard in shards}
            waiting = set(shard_of)
            while waiting:
                finished, waiting = wait(waiting, PROGRESS_SECONDS, FIRST_COMPLETED)
                so_far = num_done.value
                count(so_far - num_told)
                num_told = so_far
                yield from ((shard_of[one], one.result()) for one in finished)
    except BrokenProcessPool as error:
        raise OSError(
            "A process was ended from outside, perhaps for want of memory; give fewer --jobs: the same command goes on "
            "after the finished shards."
        ) from error
    finally:
        pickled.unlink(missing_ok=True)


_work: list[Any] = []  # in a process of the pool: its writer, and how many clips are done


def _begin_work(pickled: Path, num_done: Any) -> None:
    _work[:] = [pickle.loads(pickled.read_bytes()), num_done]


def _write_here(shard: Shard) -> list[Skipped]:
    writer, num_done = _work

    def count(number: int) -> None:
        with num_done.get_lock():
            num_done.value += number

    return writer.write(shard, count)


class _ShardWriter:
    """Decodes, resamples and encodes the clips of a shard, with no more than one row group in memory."""

    def __init__(self, work: Path, rows: Mapping[str, ClipRows], sampling_rate: int) -> None:
        self.work, self.rows, self.sampling_rate = work, rows, sampling_rate

    def write(self, shard: Shard, count: Callable[[int], object]) -> list[Skipped]:
        """Write a shard whole or not at all; returns the clips that it had to leave out."""
        skipped: list[Skipped] = []
        path, temporary = self.work / "data" / shard.name, self.work / f"{shard.name}.{secrets.token_hex(4)}.tmp"
        try:
            with open(temporary, "xb") as file:
                self._write_groups(file, self._clips(shard, skipped, count), skipped)
                file.flush()
                os.fsync(file.fileno())  # or a power cut could leave the name of a shard without its content
            os.replace(temporary, path)
        except OSError as error:
            raise OSError(
                f"{shard.name} cannot be written to {self.work.parent} ({error.strerror or error}); make room there: "
                "the finished shards are kept, and the same command goes on after them."
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        return skipped

    def _write_groups(self, file: Any, clips: Iterator[dict[str, Any]], skipped: list[Skipped]) -> None:
        # FLAC is as small as it gets, and no sound occurs twice.
        as_they_are: dict[str, Any] = {"compression": "none", "use_dictionary": False}
        with pyarrow.parquet.ParquetWriter(file, SCHEMA, **as_they_are) as writer:
            while group := list(islice(clips, CLIPS_PER_ROW_GROUP)):
                writer.write_table(pyarrow.Table.from_pylist(group, schema=SCHEMA))
            writer.add_key_value_metadata({SKIPPED_KEY: json.dumps(skipped)})

    def _clips(self, shard: Shard, skipped: list[Skipped], count: Callable[[int], object]) -> Iterator[dict[str, Any]]:
        for index in shard.indices.tolist():
            row = self._row(shard.split, index)
            try:
                flac = encode_flac(load_audio(row["audio"], self.sampling_rate), self.sampling_rate)
            except AudioError as error:
                skipped.append(Skipped(shard.split, row["video_id"], _without_path(str(error), row)))
            else:
                yield {**row, "audio": {"bytes": flac, "path": f"{row['video_id']}.flac"}}
            count(1)

    def _row(self, split: str, index: int) -> dict[str, Any]:
        try:
            return self.rows[split][index]
        except OSError as error:  # of reading: those of writing have another remedy
            raise ValueError(f"Clip {index} of {split} cannot be read from the corpus: {error}") from error


def encode_flac(waveform: np.ndarray, sampling_rate: int) -> bytes:
    """Mono float samples as 16-bit FLAC: rounded, and held at full scale, where casting alone would wrap around."""
    samples = np.rint(waveform * np.float32(2**15)).clip(-(2**15), 2**15 - 1).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, samples, sampling_rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def _without_path(reason: str, row: Mapping[str, Any]) -> str:
    """Where a file was is nobody else's business: the clip's name says enough."""
    path = (row["audio"] or {}).get("path")
    return reason.replace(path, row["video_id"]) if path else reason


# ── what came out ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _describe(
    work: Path,
    request: Mapping[str, Any],
    corpora: Mapping[str, Corpus],
    shards: Sequence[Shard],
    skipped: Sequence[Skipped],
) -> dict[str, Any]:
    return {
        "generator": f"htsat prepare, modeling_htsat {VERSION}",
        "corpus": request["corpus"],
        "options": {name: value for name, value in request["options"].items() if not {"/", os.sep} & set(value)},
        "sampling_rate": request["sampling_rate"],
        "labels": list(dict.fromkeys(name for corpus in corpora.values() for name in corpus.label_names)),
        "splits": {
            split: _describe_split([work / "data" / shard.name for shard in shards if shard.split == split])
            for split in corpora
        },
        "skipped": [clip._asdict() for clip in skipped],
        "versions": request["versions"],
        "request": _fingerprint(request),
    }


def _describe_split(files: Sequence[Path]) -> dict[str, Any]:
    """Counted in what is on disk, which at the same time has to be readable."""
    clips = ShardRows(files).without_audio()
    counts = Counter(name for clip in clips for name in clip["human_labels"] or ())
    return {
        "num_shards": len(files),
        "num_clips": len(clips),
        "num_clips_with_events": sum(clip["events"] is not None for clip in clips),
        "num_clips_of_class": dict(sorted(counts.items())),
    }


def _write_description(output: Path, info: Mapping[str, Any], skipped: Sequence[Skipped]) -> None:
    splits = {split: facts for split, facts in info["splits"].items()}
    header = "".join(f"  - split: {split}\n    path: data/{split}-*.parquet\n" for split in splits)
    table = "".join(f"| {split} | {facts['num_clips']} | {facts['num_shards']} |\n" for split, facts in splits.items())
    text = README.format(header=header, table=table, num_labels=len(info["labels"]), num_skipped=len(skipped), **info)
    write_whole(output / "README.md", lambda file: file.write(text))
    rows = [clip._asdict() for clip in skipped]
    write_whole(output / "skipped.tsv", lambda file: write_delimited(file, rows, Skipped._fields, "\t"))
    write_whole(output / "dataset_info.json", lambda file: json.dump(info, file, indent=2, ensure_ascii=False))


# `datasets` and the Hub read the header: which files are which split.
README = """---
configs:
- config_name: default
  data_files:
{header}---
# A corpus for HTS-AT

Clips of the corpus `{corpus}` with {num_labels} classes, mono, 16-bit FLAC at {sampling_rate} Hz, made by \
{generator}. The columns are those of AudioSet on the Hub and `events`; classes, counts and versions are in \
`dataset_info.json`.

| split | clips | shards |
|---|---|---|
{table}
{num_skipped} clips could not be decoded, and are listed in `skipped.tsv`.
"""


# ── the command line ──────────────────────────────────────────────────────────────────────────────────────────────────


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `htsat prepare` understands; `run` does it."""
    add = parser.add_argument
    add("kind", choices=CORPORA, metavar="KIND", help=f"kind of the corpus: {', '.join(CORPORA)}")
    add("location", metavar="LOCATION", help="where it is: a folder, a table or a name on the Hub")
    add("output", type=Path, metavar="OUTPUT", help="the folder to make; the same command again goes on in it")
    add("--split", nargs="+", choices=SPLITS, help="the splits to convert (default: all that the corpus has)")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--rate", type=int, default=32_000, metavar="HZ", help="samples per second (default: 32000)")
    rate.add_argument("--model", type=Path, metavar="DIR", help="take the rate of this model, or preset")
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the corpus; may be repeated")
    add("--clips-per-shard", type=int, default=CLIPS_PER_SHARD, metavar="N", help="at most (default: %(default)s)")
    add("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: one per core)")
    add("--max-bad-share", type=float, default=0.05, metavar="X", help="stop if more cannot be decoded (default: 0.05)")


def run(options: argparse.Namespace) -> int:
    """Convert the corpus that the command line names, and say what came out."""
    of_corpus = corpus_options(options.option)
    info = prepare_corpus(
        options.kind,
        options.location,
        options.output,
        options.split or splits_of(options.kind, options.location, of_corpus),
        rate_of_model(options.model) if options.model else options.rate,
        options.clips_per_shard,
        of_corpus,
        options.jobs,
        options.max_bad_share,
    )
    splits = [f"{facts['num_clips']} clips for {split}" for split, facts in info["splits"].items()]
    left_out = f"; {len(info['skipped'])} could not be decoded, see skipped.tsv" if info["skipped"] else ""
    sys.stdout.write(f"{options.output}: {', '.join(splits)}, at {info['sampling_rate']} Hz{left_out}\n")
    return 0


def splits_of(kind: str, location: str, options: Mapping[str, Any]) -> list[str]:
    """The splits that a corpus has; those that it holds out would be lost if they were not converted with the rest."""
    missing: dict[str, ValueError] = {}
    for split in SPLITS:
        try:
            load_corpus(kind, location, split, **options)
        except ValueError as error:
            missing[split] = error
    if len(missing) == len(SPLITS):
        raise missing["train"]
    for split, reason in missing.items():
        logger.warning("Without %s: %s", split, reason)
    return [split for split in SPLITS if split not in missing]


def rate_of_model(folder: Path) -> int:
    """The rate at which a model listens, from its folder or from a preset."""
    if not (folder / "preprocessor_config.json").is_file():
        raise ValueError(f"{folder} holds no preprocessor_config.json; give the folder of a model or a preset.")
    return int(HTSATFeatureExtractor.from_pretrained(folder).sampling_rate)


__all__ = [
    "add_arguments",
    "deal",
    "encode_flac",
    "prepare_corpus",
    "rate_of_model",
    "run",
    "splits_of",
]
