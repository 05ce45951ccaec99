"""Work that goes on for long: memory, files and threads do not grow, and what is heard is what is heard alone.

By default half a minute of sound is heard; the slow tests hear an hour with the real command and train for hundreds of
steps, and also measure memory. Files, threads and children are counted when work rests: after a part of a corpus, after
an epoch, in the end. Then they must not grow by even one. In between, batches are on their way between processes, each
with a file or more, and workers come and go: how many there are at once is luck. Python keeps some pages that it has
once had, so memory is allowed some growth: a tenth of what all processes hold. An hour of waveforms kept would be
460 MB.
"""

import gc
import json
import os
import runpy
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from conftest import SMALL, enliven
from transformers import TrainerCallback

from modeling_htsat import (
    AudioError,
    HTSATConfig,
    HTSATFeatureExtractor,
    HTSATForAudioClassification,
    HTSATForSoundEventDetection,
    HTSATSoundEventDetectionPipeline,
    corpus_detection,
)
from modeling_htsat.corpus_detection import DetectionSettings, Recordings, find_recordings, hear_part
from modeling_htsat.training.examples import ClipCollator, ClipDataset
from modeling_htsat.training.trainer import HTSATTrainer, HTSATTrainingArguments

ROOT = Path(__file__).parents[1]
RATES = (8_000, 48_000, 11_025, 96_000, 22_050, 32_000, 16_000, 44_100)
KINDS = (
    ("wav", "WAV", "PCM_16"),
    ("flac", "FLAC", "PCM_24"),
    ("ogg", "OGG", "VORBIS"),
    ("mp3", "MP3", "MPEG_LAYER_III"),
    ("aiff", "AIFF", "PCM_S8"),
    ("wav", "WAV", "FLOAT"),
    ("wav", "WAV", "IMA_ADPCM"),
)
SECONDS = (1.6, 0.1, 6.0, 2.56, 0.7, 1.0, 0.25, 2.57)
SECONDS_OF_AN_HOUR = (300.0, 0.1, 45.0, 2.56, 120.0, 1.0, 10.0, 0.5, 20.0, 3.0)
NUM_WORKERS = 2
BATCH = 8
# Sums of a batch go another way than those of one recording: 24 bits, through some ten layers.
CLOSE = 5e-6


# ── a mixed corpus ────────────────────────────────────────────────────────────────────────────────────────────────────


def write_sound(path: Path, index: int, seconds: float, container: str, subtype: str):
    """A sound whose loudness and tones change, in ten seconds that are repeated."""
    rate, num_channels = RATES[index % len(RATES)], (1, 2, 1, 6)[index % 4]
    if container == "MP3":
        rate, num_channels = min(rate, 48_000), min(num_channels, 2)
    if subtype == "IMA_ADPCM":
        num_channels = min(num_channels, 2)
    count = max(round(seconds * rate), 1)
    place = np.arange(min(count, 10 * rate)) / rate
    loudness = np.where(np.sin(2 * np.pi * (0.3 + index % 3) * place) > 0, 0.5, 0.005)
    noise = np.random.default_rng(index).uniform(-0.5, 0.5, len(place))
    sound = loudness * (0.5 * np.sin(2 * np.pi * 150 * (1 + index % 17) * place) + noise)
    frames = np.stack([np.roll(sound, 100 * channel) for channel in range(num_channels)], axis=1)
    with soundfile.SoundFile(path, "w", rate, num_channels, subtype, format=container) as file:
        for start in range(0, count, len(frames)):
            file.write(frames[: count - start])


def write_broken(folder: Path) -> set[str]:
    """Files that cannot be heard, among the others; returns their names."""
    poisoned = np.zeros((90_000, 2))
    poisoned[80_000, 1] = np.nan
    soundfile.write(folder / "0003-nan.wav", poisoned, 48_000, subtype="FLOAT")
    soundfile.write(folder / "0007-loud.wav", poisoned[:80_000] + 1e30, 44_100, subtype="DOUBLE")
    (folder / "0005-words.mp3").write_bytes(b"no sound at all, just words")
    (folder / "0011-empty.flac").write_bytes(b"")
    (folder / "0012-cut.wav").write_bytes((folder / "0000.wav").read_bytes()[:3000])
    return {"0003-nan.wav", "0007-loud.wav", "0005-words.mp3", "0011-empty.flac", "0012-cut.wav"}


def write_corpus(folder: Path, lengths: tuple[float, ...], total_seconds: float) -> set[str]:
    """Lengths again and again until so much sound is there, so that every third of it holds the longest."""
    folder.mkdir()
    index, seconds = 0, 0.0
    while seconds < total_seconds:
        suffix, *kind = KINDS[index % len(KINDS)]
        write_sound(folder / f"{index:04d}.{suffix}", index, lengths[index % len(lengths)], *kind)
        seconds += lengths[index % len(lengths)]
        index += 1
    return write_broken(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(2)
    config = HTSATConfig(**SMALL, problem_type="multi_label_classification")
    enliven(HTSATForSoundEventDetection(config)).save_pretrained(folder)
    HTSATFeatureExtractor(clip_frames=256).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def detector(model) -> HTSATSoundEventDetectionPipeline:
    loaded = HTSATForSoundEventDetection.from_pretrained(model)
    return HTSATSoundEventDetectionPipeline(loaded, feature_extractor=HTSATFeatureExtractor.from_pretrained(model))


class Sounds(NamedTuple):
    folder: Path
    broken: set[str]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Sounds:
    folder = tmp_path_factory.mktemp("load") / "sounds"
    return Sounds(folder, write_corpus(folder, SECONDS, 36.0))


@pytest.fixture(scope="module")
def alone(detector, sounds) -> dict[str, dict[str, Any]]:
    return hear_alone(detector, sounds.folder)


def find(folder: Path) -> Recordings:
    return find_recordings(str(folder))


def hear_alone(detector: HTSATSoundEventDetectionPipeline, folder: Path) -> dict[str, dict[str, Any]]:
    """What the pipeline says of every file by itself, or why it says nothing."""
    answers = {}
    for path in find(folder).sources:
        try:
            answers[path.name] = detector(path, return_scores=True, decoding={"threshold": 0.5}, progress_bar=False)
        except AudioError as error:
            answers[path.name] = {"error": str(error)}
    return answers


def assert_row_is(row: dict[str, Any], alone: dict[str, Any], tolerance: float):
    if "error" in alone:
        assert row["error"] == alone["error"]
        return
    wanted = alone["events"]
    assert row["error"] is None and row["duration_seconds"] == alone["num_samples"] / 32_000
    assert [event["event_label"] for event in row["events"]] == [event["label"] for event in wanted]
    for name, room in {"onset": 0, "offset": 0, "score": tolerance}.items():
        heard = [event[name] for event in row["events"]]
        np.testing.assert_allclose(heard, [event[name] for event in wanted], rtol=0, atol=room)
    assert len(row["tags"]) == 5
    for tag in row["tags"]:
        assert abs(tag["score"] - alone["tags"][tag["label"]]) <= tolerance


# ── what is looked at while it works ──────────────────────────────────────────────────────────────────────────────────


class Open(NamedTuple):
    """What a process must give back."""

    files: int
    threads: int
    children: int


def count_open() -> Open:
    process = psutil.Process()
    return Open(process.num_fds(), process.num_threads(), len(process.children()))


def count_at_rest() -> Open:
    """When no worker is left. The queue to each had a thread, with two files, that ends a moment after the worker."""
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(timeout=10)
    looks = []
    for _ in range(20):  # for the system, a thread lives a little longer than for Python
        looks.append(count_open())
        time.sleep(0.005)
    return Open(*map(min, zip(*looks, strict=True)))


def count_after_collecting() -> Open:
    gc.collect()
    return count_at_rest()


class Sample(NamedTuple):
    """Of a process and all that it has started: memory in MB, each shared page once, and how much is open."""

    seconds: float
    megabytes: float
    num_files: int
    num_threads: int


def look_at(process: psutil.Process, begin: float) -> Sample:
    megabytes, num_files, num_threads = 0.0, 0, 0
    for one in [process, *process.children(recursive=True)]:
        try:
            memory = one.memory_full_info()
            megabytes += getattr(memory, "pss", memory.rss) / 1e6
            num_files += one.num_fds()
            num_threads += one.num_threads()
        except psutil.Error:  # it has ended meanwhile
            continue
    return Sample(time.perf_counter() - begin, megabytes, num_files, num_threads)


class Watch(threading.Thread):
    """Looks at some processes again and again, from when `is_warm` says so until they have ended or `stop` is called.

    Before, models load and allocators fill: how long that takes depends on who else uses the machine.
    """

    def __init__(self, *pids: int, is_warm: Callable[[], bool], interval_seconds: float = 0.2):
        super().__init__(daemon=True)
        self.is_warm = is_warm
        self.processes = [psutil.Process(pid) for pid in pids]
        self.interval_seconds, self.samples, self._is_over = interval_seconds, [], threading.Event()

    def run(self):
        begin = time.perf_counter()
        while not self._is_over.wait(self.interval_seconds):
            if not (self.samples or self.is_warm()):
                continue
            try:
                looks = [look_at(process, begin) for process in self.processes]
            except psutil.Error:
                continue
            _, *columns = zip(*looks, strict=True)
            self.samples.append(Sample(looks[0].seconds, *map(sum, columns)))

    def stop(self) -> list[Sample]:
        self._is_over.set()
        self.join()
        return self.samples


def thirds(looks: list[Any]) -> Iterator[list[Any]]:
    for third in range(3):
        yield looks[len(looks) * third // 3 : len(looks) * (third + 1) // 3]


def most(looks: list[Any], name: str) -> float:
    return max(getattr(look, name) for look in looks)


def assert_flat(samples: list[Sample], growth_megabytes: float, peak_megabytes: float):
    """The peak of the last third is not above that of the first by more than that, nor the peak of all.

    Files and threads, of which some come and go, are not always more than there ever were in the first third.
    """
    assert_below(samples, peak_megabytes)
    first, *later = thirds(samples)
    assert most(later[-1], "megabytes") < most(first, "megabytes") + growth_megabytes
    for name in ("num_files", "num_threads"):
        for third in later:  # in the last one, processes end
            assert min(getattr(sample, name) for sample in third) <= most(first, name), name


def assert_below(samples: list[Sample], peak_megabytes: float):
    first, _, last = (most(third, "megabytes") for third in thirds(samples))
    peak = most(samples, "megabytes")
    seen = (
        f"memory: {samples[0].megabytes:.0f} MB at the start, {samples[-1].megabytes:.0f} at the end, peak {peak:.0f}; "
        f"first third {first:.0f}, last {last:.0f}; {samples[-1].seconds:.0f} s, {len(samples)} samples"
    )
    sys.stderr.write(f"{seen}\n")  # pytest shows it with -s
    assert peak < peak_megabytes


# ── half a minute, by default ─────────────────────────────────────────────────────────────────────────────────────────


def hear_corpus(detector, folder: Path, num_workers: int, batch_size: int) -> dict[str, dict[str, Any]]:
    recordings = find(folder)
    settings = DetectionSettings(batch_size=batch_size, decoding={"threshold": 0.5})
    batches = hear_part(detector, recordings, range(len(recordings.names)), settings, num_workers)
    return {row["filename"]: {"error": None, **row} for batch in batches for row in batch}


def test_workers_and_batches_change_nothing_and_give_back_all_that_they_open(detector, sounds, alone):
    assert {name for name, answer in alone.items() if "error" in answer} == sounds.broken
    assert sum(len(answer.get("events", ())) for answer in alone.values()) > 20
    hear_corpus(detector, sounds.folder, NUM_WORKERS, BATCH)  # what stays open for good is open now
    before = count_after_collecting()
    by_one = hear_corpus(detector, sounds.folder, 0, BATCH)
    by_workers = hear_corpus(detector, sounds.folder, NUM_WORKERS, BATCH)
    one_at_a_time = hear_corpus(detector, sounds.folder, NUM_WORKERS, 1)
    assert count_after_collecting() == before
    assert by_workers == by_one
    assert set(by_one) == set(one_at_a_time) == set(alone)
    for name, answer in alone.items():
        assert_row_is(one_at_a_time[name], answer, 0.0)
        assert_row_is(by_one[name], answer, CLOSE)


def test_the_pipeline_hears_many_as_it_hears_each_alone_and_gives_back_all_that_it_opens(detector, sounds, alone):
    paths = find(sounds.folder).sources
    options = {"return_scores": True, "decoding": {"threshold": 0.5}, "on_error": "skip", "progress_bar": False}
    detector(paths[:4], batch_size=BATCH, num_workers=NUM_WORKERS, **options)
    before, kept = count_after_collecting(), []
    for num_workers, batch_size, tolerance in ((0, 1, 0.0), (0, BATCH, CLOSE), (NUM_WORKERS, BATCH, CLOSE)):
        found = detector(paths, batch_size=batch_size, num_workers=num_workers, **options)
        assert {paths[place].name for place in detector.failed} == sounds.broken
        for path, answer in zip(paths, found, strict=True):
            if answer is None:
                continue
            wanted = alone[path.name]
            assert answer["num_samples"] == wanted["num_samples"]
            np.testing.assert_allclose(answer["scores"], wanted["scores"], rtol=0, atol=tolerance)
            assert len(answer["events"]) == len(wanted["events"])
        kept += found
    assert count_after_collecting() == before  # whoever keeps all answers keeps no file with each
    for answer in filter(None, kept):
        assert all(array.base is None for array in answer.values() if isinstance(array, np.ndarray))


def count_bytes() -> tuple[int, int]:
    """Of the arrays that Python has allocated since tracing began, and of the tensors that something still holds."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
    return tracemalloc.get_traced_memory()[0], sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def test_what_was_heard_is_let_go(detector, sounds):
    """A waveform kept, of two seconds, would be 256,000 bytes; its spectrogram 64,000."""
    paths = [path for path in find(sounds.folder).sources if path.name not in sounds.broken][:10]

    def listen():
        for answer in detector(iter(paths), progress_bar=False, on_error="skip"):
            assert isinstance(answer, list)

    tracemalloc.start()
    try:
        listen()
        listen()  # Python 3.10 still fills caches of its own then
        arrays, tensors = count_bytes()
        listen()
        listen()
        arrays_later, tensors_later = count_bytes()
        assert tracemalloc.get_traced_memory()[1] > 500_000  # waveforms were among what was counted
    finally:
        tracemalloc.stop()
    assert arrays_later - arrays < 30_000
    assert tensors_later == tensors


class Steps(TrainerCallback):
    """Looks at this process and its workers after every few steps, and counts what is open after every epoch."""

    def __init__(self, every: int):
        self.every, self.samples, self.begin = every, [], time.perf_counter()
        self.after_epochs: list[Open] = []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self.samples.append(look_at(psutil.Process(), self.begin))

    def on_epoch_end(self, args, state, control, **kwargs):
        if state.global_step < state.max_steps:  # the last epoch is broken off, with batches on their way
            self.after_epochs.append(count_open())


class MixedRows:
    """Clips of a folder as a corpus has them."""

    group_sizes = None

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._labels(index), "audio": {"bytes": None, "path": str(self.paths[index])}}

    def without_audio(self) -> list[dict[str, Any]]:
        return [self._labels(index) for index in range(len(self))]

    def _labels(self, index: int) -> dict[str, Any]:
        labels = [f"LABEL_{index % 5}"]
        return {"video_id": self.paths[index].name, "labels": labels, "human_labels": labels, "events": None}


def make_data_set(folder: Path, extractor: HTSATFeatureExtractor) -> ClipDataset:
    config = HTSATConfig(**SMALL, problem_type="multi_label_classification")
    return ClipDataset(MixedRows(find(folder).sources), extractor, config, crop_seconds=2.5)


def train(folder: Path, output: Path, num_steps: int, every: int, **options) -> tuple[HTSATTrainer, Steps]:
    torch.manual_seed(1)
    model = HTSATForAudioClassification(HTSATConfig(**SMALL, problem_type="multi_label_classification"))
    extractor = HTSATFeatureExtractor(clip_frames=256)
    watch = Steps(every)
    arguments = HTSATTrainingArguments(
        output_dir=str(output),
        use_cpu=True,
        report_to=[],
        per_device_train_batch_size=4,
        max_steps=num_steps,
        dataloader_num_workers=NUM_WORKERS,
        dataloader_pin_memory=False,
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=10,
        label_names=["labels"],
        **options,
    )
    trainer = HTSATTrainer(
        model,
        arguments,
        data_collator=ClipCollator(extractor),
        train_dataset=make_data_set(folder, extractor),
        processing_class=extractor,
        callbacks=[watch],
    )
    trainer.train()
    return trainer, watch


def test_training_with_workers_gives_back_all_that_it_opens(sounds, tmp_path):
    train(sounds.folder, tmp_path, 2, 1)
    before = count_after_collecting()
    trainer, watch = train(sounds.folder, tmp_path, 20, 5)
    assert all(np.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    assert len(watch.samples) == 4 and len(watch.after_epochs) > 1 and len(set(watch.after_epochs)) == 1
    del trainer
    assert count_after_collecting() == before


def test_what_a_worker_opens_for_a_clip_it_closes(sounds):
    """What a worker does for every clip, here in this process, where nothing else comes and goes."""
    data_set = make_data_set(sounds.folder, HTSATFeatureExtractor(clip_frames=256))
    data_set[0]
    before = psutil.Process().num_fds()  # not collected first: a worker that waits for the collector holds many
    examples = [data_set[index] for index in range(len(data_set))]
    assert psutil.Process().num_fds() == before
    assert {example.name for example in examples if example.features is None} == sounds.broken


# ── an hour, and hundreds of steps ────────────────────────────────────────────────────────────────────────────────────


def detect_and_count():
    """The command of the arguments, which also notes what it holds after every part, when no worker is left."""
    script, counts, *sys.argv[1:] = sys.argv[1:]
    write_table_whole = corpus_detection.write_table_whole

    def write_and_count(path: Path, table: pa.Table):
        write_table_whole(path, table)
        rest = Rest(count_at_rest(), psutil.Process().memory_full_info().uss / 1e6)
        with Path(counts).open("a") as file:
            file.write(f"{json.dumps(rest)}\n")

    corpus_detection.write_table_whole = write_and_count
    runpy.run_path(script, run_name="__main__")


class Rest(NamedTuple):
    open: Open
    megabytes: float


def read_rests(path: Path) -> list[Rest]:
    rests = map(json.loads, path.read_text().splitlines())
    return [Rest(Open(*opened), megabytes) for opened, megabytes in rests]


def launch(folder: Path, model: Path, output: Path, rank: int, world_size: int, batch_size: int) -> subprocess.Popen:
    script, counts = ROOT / "training_scripts" / "run_detection.py", output.parent / f"{output.name}-{rank}.jsonl"
    command = [sys.executable, "-c", "import test_load; test_load.detect_and_count()", str(script), str(counts)]
    command += [str(folder), "--model", str(model), "--output", str(output), "--threshold", "0.5", "--device", "cpu"]
    command += ["--batch-size", str(batch_size)]
    command += ["--num-workers", str(NUM_WORKERS), "--recordings-per-shard", "4"]
    ranks = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    found_at = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    environment = {**os.environ, **ranks, **found_at, "OMP_NUM_THREADS": "1"}
    with (output.parent / f"{output.name}-{rank}.txt").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def read_rows(output: Path) -> dict[str, dict[str, Any]]:
    return {row["filename"]: row for path in output.glob("part-*.parquet") for row in pq.read_table(path).to_pylist()}


@pytest.mark.slow
@pytest.mark.parametrize("batch_size, tolerance", [(1, 0.0), (16, CLOSE)])
def test_an_hour_of_mixed_files_by_two_processes_with_workers_stays_in_flat_memory(
    detector, model, hour, tmp_path, batch_size, tolerance
):
    folder, broken, alone = hour
    processes = [launch(folder, model, tmp_path / "found", rank, 2, batch_size) for rank in range(2)]
    output = tmp_path / "found"
    watch = Watch(*(process.pid for process in processes), is_warm=lambda: len(list(output.glob("part-*"))) >= 4)
    watch.start()
    statuses = [process.wait(timeout=3000) for process in processes]
    samples = watch.stop()
    log = "\n".join((tmp_path / f"found-{rank}.txt").read_text() for rank in range(2))
    assert statuses == [1, 1], log
    summary = json.loads((tmp_path / "found" / "summary.json").read_text(encoding="utf-8"))
    assert summary["hours"] > 1.0 and {row["filename"] for row in summary["failed"]} == broken
    rows = read_rows(tmp_path / "found")
    assert set(rows) == set(alone)
    for name, answer in alone.items():
        assert_row_is(rows[name], answer, tolerance)
    assert_flat(samples, growth_megabytes=100, peak_megabytes=2500)
    for rank in range(2):
        rests = read_rests(tmp_path / f"found-{rank}.jsonl")
        assert len(rests) > 5 and {rest.open for rest in rests[1:]} == {rests[0].open} and not rests[0].open.children
        first, *_, last = thirds(rests)
        assert most(last, "megabytes") < most(first, "megabytes") + 50


@pytest.fixture(scope="module")
def hour(detector, tmp_path_factory) -> tuple[Path, set[str], dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("hour") / "sounds"
    broken = write_corpus(folder, SECONDS_OF_AN_HOUR, 3700.0)
    return folder, broken, hear_alone(detector, folder)


@pytest.mark.slow
def test_the_pipeline_hears_an_hour_in_batches_in_flat_memory(detector, hour):
    folder, broken, alone = hour
    paths = find(folder).sources
    num_heard = 0
    options = {"return_scores": True, "decoding": {"threshold": 0.5}, "on_error": "skip", "progress_bar": False}
    options |= {"batch_size": 4, "num_workers": NUM_WORKERS}
    assert len(list(detector(iter(paths[:4]), **options))) == 4  # what stays open for good is open now
    before = count_after_collecting()
    watch = Watch(os.getpid(), is_warm=lambda: num_heard >= len(paths) / 5)
    watch.start()
    answers = detector(iter(paths), **options)
    for path, answer in zip(paths, answers, strict=True):
        num_heard += 1
        if path.name in broken:
            assert answer is None
            continue
        np.testing.assert_allclose(answer["scores"], alone[path.name]["scores"], rtol=0, atol=CLOSE)
    assert_flat(watch.stop(), growth_megabytes=100, peak_megabytes=2500)
    del answers
    assert count_after_collecting() == before


@pytest.mark.slow
def test_five_hundred_steps_of_training_with_workers_stay_in_flat_memory(sounds, tmp_path):
    trainer, watch = train(sounds.folder, tmp_path, 500, 5)
    assert trainer.state.global_step == 500
    assert_flat(watch.samples[20:], growth_megabytes=50, peak_megabytes=2500)
    assert len(watch.after_epochs) > 50 and len(set(watch.after_epochs)) == 1
