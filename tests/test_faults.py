"""Killed, out of disk, without rights: what is there afterwards is the old whole or the new, and the next run works.

Every kill is real: SIGKILL before each step that changes a folder, one after the other, and the system's own signal in
the middle of files. So are the errors: of a limit on the size of files, and, where mounting is permitted, of a small
disk. Kills of several processes at once are in `test_prepare.py`, `test_runs.py` and `test_htsat_trainer.py`.
"""

import contextlib
import functools
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import numpy as np
import pytest
import soundfile
import torch
from conftest import SMALL, enliven
from dying_process import End, Steps, files_no_larger_than, in_a_child, killed_at_byte, without_rights
from fake_hub import TOKEN, FakeHub, Handler
from safetensors.torch import load_file
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioFrameClassification, pipeline

from modeling_htsat import (
    HTSATConfig,
    HTSATFeatureExtractor,
    HTSATForAudioClassification,
    HTSATForSoundEventDetection,
    HTSATModel,
    cli,
)
from modeling_htsat.conversion import clap_from_htsat
from modeling_htsat.tables import write_events
from modeling_htsat.training.averaging import EMACallback
from modeling_htsat.training.distillation import cache_soft_targets
from modeling_htsat.training.reporting import last_whole_checkpoint
from modeling_htsat.training.runs import exit_status, is_preset, parse_run, run_all

RATE = 8_000
ROOT = Path(__file__).parents[1]
EVENTS = [{"filename": "a.wav", "onset": index, "offset": index + 1, "event_label": "dog"} for index in range(400)]


class Job(NamedTuple):
    """Something that writes: what it does, what is to be whole in the end, and what was there before."""

    work: Callable[[], Any]  # returns the exit status
    place: Path
    is_refused_when_done: bool = False  # the same command finds its place taken
    is_in_pieces: bool = False  # each file is whole, and the folder when all are there


Files = dict[str, bytes]


def files_of(place: Path) -> Files | None:
    """What a reader finds: files by their names, none of the hidden ones; None where there is nothing."""
    if place.is_file():
        return {"": content_of(place)}
    if not place.exists():
        return None
    paths = [path.relative_to(place) for path in place.rglob("*") if path.is_file()]
    return {
        str(path): content_of(place / path)
        for path in sorted(paths)
        if not any(part.startswith(".") for part in path.parts)
    }


def content_of(path: Path) -> bytes:
    """Its bytes; of safetensors with a header in order, as that is another in every process."""
    content = path.read_bytes()
    if "safetensors" not in path.name or not content:
        return content
    end = 8 + int.from_bytes(content[:8], "little")
    return json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode() + content[end:]


def command(*words: Any) -> Callable[[], int]:
    return lambda: cli.main([str(word) for word in words])


# ── what there is to write ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Iterator[Path]:
    """Models, sounds and tables, where another user may read them too."""
    folder = Path(tempfile.mkdtemp(prefix="given-"))
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate("abcde")), "label2id": {name: index for index, name in enumerate("abcde")}}
    config = HTSATConfig(**SMALL, **names, problem_type="multi_label_classification")
    for name in ("one", "two"):
        model = enliven(HTSATForSoundEventDetection(config))
        model.classifier.convolution.bias.data += name == "two"
        model.save_pretrained(folder / name)
    clap_from_htsat(enliven(HTSATModel(HTSATConfig(embed_dim=8, depths=(1, 1, 1, 1))))).save_pretrained(folder / "clap")
    for split, seed in (("train", 0), ("train", 1), ("train", 2), ("validation", 3), ("validation", 4)):
        for label in ("high", "low"):
            place = folder / "sounds" / split / label
            place.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(seed).standard_normal(RATE // 2) * 0.1
            tone = 0.3 * np.sin(np.arange(RATE // 2) * (1.5 if label == "high" else 0.2))
            soundfile.write(place / f"{seed}.wav", noise + tone, RATE)
    write_events(folder / "truth.tsv", EVENTS)
    (folder / "durations.tsv").write_text("filename\tduration\na.wav\t500\n")
    subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
    yield folder
    shutil.rmtree(folder)


def table(folder: Path, given: Path) -> Job:
    (folder / "scores.json").write_text('{"an": "older one"}')
    words = ("evaluate", "events", "--reference", given / "truth.tsv", "--durations", given / "durations.tsv")
    return Job(
        command(*words, "--detections", given / "truth.tsv", "--json", folder / "scores.json"), folder / "scores.json"
    )


def events(folder: Path, given: Path) -> Job:
    (folder / "found.tsv").write_text("filename\tonset\toffset\tevent_label\n")
    words = ("detect", given / "sounds" / "train" / "low" / "0.wav", "--model", given / "one", "--threshold", "0.1")
    return Job(command(*words, "--output", folder / "found.tsv"), folder / "found.tsv")


def picture(folder: Path, given: Path) -> Job:
    (folder / "found.svg").write_text("an older picture")
    words = ("detect", given / "sounds" / "train" / "low" / "0.wav", "--model", given / "one", "--threshold", "0.1")
    return Job(command(*words, "--plot", folder / "found.svg"), folder / "found.svg")


def card(folder: Path, given: Path) -> Job:
    shutil.copytree(given / "one", folder / "model")
    (folder / "model" / "README.md").write_text("# An older card\n")
    return Job(command("card", folder / "model"), folder / "model")


def convert(folder: Path, given: Path) -> Job:
    return Job(command("convert", given / "clap", folder / "out"), folder / "out", is_refused_when_done=True)


def export(folder: Path, given: Path, *words: str) -> Job:
    (folder / "model.onnx").write_bytes(b"an older model")
    return Job(command("export", given / "one", folder / "model.onnx", *words), folder / "model.onnx")


def export_to_8_bits(folder: Path, given: Path) -> Job:
    return export(folder, given, "--int8")


def average(folder: Path, given: Path) -> Job:
    (folder / "out").mkdir()  # an empty folder may be taken
    words = ("average", given / "one", given / "two", "--output", folder / "out")
    return Job(command(*words), folder / "out", is_refused_when_done=True)


def soundscapes(folder: Path, given: Path, format: str = "flac") -> Job:
    sizes = ("--num-clips", 3, "--clip-seconds", 1, "--sampling-rate", 16_000, "--jobs", 1, "--format", format)
    return Job(command("soundscapes", folder / "out", *sizes), folder / "out", is_refused_when_done=True)


def soundscapes_in_shards(folder: Path, given: Path) -> Job:
    return soundscapes(folder, given, "parquet")


def prepared(folder: Path, given: Path) -> Job:
    sizes = ("--rate", RATE, "--jobs", 1, "--clips-per-shard", 3, "--split", "train", "validation")
    words = ("prepare", "folders", given / "sounds", folder / "out", *sizes)
    return Job(command(*words), folder / "out", is_in_pieces=True)


def shards(folder: Path, given: Path) -> Job:
    words = [given / "sounds", "--model", given / "one", "--output", folder / "out", "--recordings-per-shard", "4"]

    def work() -> int:
        sys.argv = ["run_detection.py", *map(str, words)]
        try:
            runpy.run_path(str(ROOT / "training_scripts" / "run_detection.py"), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return Job(work, folder / "out", is_in_pieces=True)


class Rows:
    """Clips of a corpus."""

    group_sizes = None

    def __init__(self, files: list[Path]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"video_id": str(index), "audio": {"bytes": None, "path": str(self.files[index])}}

    def without_audio(self) -> list[dict[str, Any]]:
        return [{"video_id": str(index)} for index in range(len(self))]


def soft_targets(folder: Path, given: Path) -> Job:
    rows: Any = Rows(sorted((given / "sounds" / "train").rglob("*.wav")))
    teacher = HTSATForSoundEventDetection.from_pretrained(given / "one").eval()
    extractor = HTSATFeatureExtractor.from_pretrained(given / "one")

    def work() -> int:
        return len(cache_soft_targets(teacher, extractor, rows, folder / "out", clips_per_part=2, batch_size=2))

    return Job(in_words(work), folder / "out", is_in_pieces=True)


def moving_average(folder: Path, given: Path) -> Job:
    (folder / "ema.safetensors").write_bytes((given / "two" / "model.safetensors").read_bytes())
    average = EMACallback()
    average.begin(HTSATForSoundEventDetection.from_pretrained(given / "one"))
    return Job(in_words(lambda: average.write(folder / "ema.safetensors")), folder / "ema.safetensors")


def in_words(work: Callable[[], Any]) -> Callable[[], int]:
    """As a command says what goes wrong."""

    def run() -> int:
        try:
            return work() or 0
        except (ValueError, OSError) as error:
            sys.stderr.write(f"htsat: {cli.in_words(error)}\n")
            return 1

    return run


JOBS = [table, card, moving_average, average, soundscapes, soundscapes_in_shards, events, picture, convert, prepared]
JOBS += [shards, soft_targets, export, export_to_8_bits]


# ── killed ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Scene:
    """A job in a folder that can be set up anew, and what it leaves when nothing happens to it."""

    def __init__(self, make: Callable[[Path, Path], Job], folder: Path, given: Path):
        self.make, self.folder, self.given = make, folder, given
        self.job = self.set_up()
        assert self.job.work() == 0  # here and not in a child, so that everything is imported
        self.new = files_of(self.job.place)
        self.set_up()
        self.old = files_of(self.job.place)
        self.listed = self.listing()
        assert self.new and self.new != self.old

    def set_up(self) -> Job:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        return self.make(self.folder, self.given)

    def listing(self) -> set[str]:
        return set(os.listdir(self.folder))

    def check_nothing_is_half_written(self) -> None:
        found = files_of(self.job.place)
        if self.job.is_in_pieces:
            assert not {name for name in found or {} if (found or {})[name] != (self.new or {}).get(name)}
        else:
            assert found in (self.old, self.new) or not found and not self.old
        strangers = self.listing() - self.listed - {self.job.place.name}
        assert all(name.startswith(".") for name in strangers), strangers

    def check_the_next_run_works(self) -> None:
        is_done = files_of(self.job.place) == self.new
        end = in_a_child(self.job.work)
        assert not end.signal
        assert end.status == int(is_done and self.job.is_refused_when_done), end.said
        assert files_of(self.job.place) == self.new

    def kill(self, *changes: Any) -> End:
        self.set_up()
        end = in_a_child(self.job.work, *changes)
        assert end.signal in (0, signal.SIGKILL, signal.SIGXFSZ), end
        self.check_nothing_is_half_written()
        self.check_the_next_run_works()
        return end

    def check_refusal(self, reasons: Sequence[str], *changes: Any, before: Callable[[], object] = int) -> None:
        """Where writing fails: status 1, one sentence that names place and reason, and all as it was."""
        self.set_up()
        before()
        end = in_a_child(self.job.work, *changes)
        assert end[:2] == (0, 1), end
        assert end.said.count("\n") == 1 and any(reason in end.said for reason in reasons), end.said
        assert self.job.place.name in end.said, end.said
        self.check_nothing_is_half_written()
        assert self.job.is_in_pieces or files_of(self.job.place) == self.old
        left = self.listing() - self.listed
        assert left <= ({self.job.place.name} if self.job.is_in_pieces else set()), left
        assert not [path for path in self.folder.rglob("*") if path.name.endswith(".tmp")]

    def close(self) -> None:
        for folder in [self.folder, *(path for path in self.folder.rglob("*") if path.is_dir())]:
            folder.chmod(0o555)

    def open(self) -> None:
        for folder in [self.folder, *(path for path in self.folder.rglob("*") if path.is_dir())]:
            folder.chmod(0o755)

    def changed(self) -> list[bytes]:
        return [content for name, content in (self.new or {}).items() if content != (self.old or {}).get(name)]

    def sizes_to_die_at(self) -> list[int]:
        sizes = {len(content) for content in self.changed() if content}
        return sorted({0, *(part for size in sizes for part in (size // 2, size - 1))})


@pytest.fixture(scope="module")
def scene_of(given) -> Iterator[Callable[[Any], Scene]]:
    """Each job's scene, where another user may go too."""
    places: list[Path] = []

    @functools.cache
    def scene(make: Any) -> Scene:
        places.append(Path(tempfile.mkdtemp(prefix="scene-")))
        places[-1].chmod(0o755)
        return Scene(make, places[-1] / "scene", given)

    yield scene
    for place in places:
        shutil.rmtree(place)


@pytest.mark.parametrize("make", [table, average, soundscapes], ids=lambda make: make.__name__)
def test_killed_at_any_of_some_steps_it_leaves_the_old_whole_or_the_new(make, scene_of):
    scene, random_numbers = scene_of(make), random.Random(make.__name__)
    steps = Steps(scene.folder)
    assert scene.kill(steps).signal == 0 and steps.count > 1
    for number in random_numbers.sample(range(1, steps.count + 1), 2):
        assert scene.kill(Steps(scene.folder, number)).signal == signal.SIGKILL
    assert scene.kill(killed_at_byte(random_numbers.choice(scene.sizes_to_die_at()))).signal == signal.SIGXFSZ


@pytest.mark.slow
@pytest.mark.parametrize("make", JOBS, ids=lambda make: make.__name__)
def test_killed_at_every_single_step_it_leaves_the_old_whole_or_the_new(make, scene_of):
    scene = scene_of(make)
    for number in count(1):
        steps = Steps(scene.folder, number)
        if not scene.kill(steps).signal:
            break
    assert number == steps.count + 1 > 2
    for size in scene.sizes_to_die_at():
        assert scene.kill(killed_at_byte(size)).signal == signal.SIGXFSZ


def by_class(folder: Path) -> tuple[Any, Any]:
    model, report = HTSATForSoundEventDetection.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model, HTSATFeatureExtractor.from_pretrained(folder)


def by_auto_classes(folder: Path) -> tuple[Any, Any]:
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    return AutoModelForAudioFrameClassification.from_pretrained(folder, config=config), extractor


def by_pipeline(folder: Path) -> tuple[Any, Any]:
    hearing = pipeline("sound-event-detection", model=str(folder))
    return hearing.model, hearing.feature_extractor


READERS = [by_class, by_auto_classes, by_pipeline]


def read_by(load: Callable[[Path], tuple[Any, Any]], folder: Path) -> tuple[Any, ...] | None:
    """What somebody gets who loads a folder: weights, names and what the extractor hears; None where it is refused."""
    try:
        model, extractor = load(folder)
    except (OSError, ValueError, RuntimeError):
        return None
    hashes = {name: hash(tensor.detach().numpy().tobytes()) for name, tensor in model.state_dict().items()}
    return hashes, model.config.id2label, extractor.to_dict()


def every_death(work: Callable[[], Any], folder: Path) -> list[Any]:
    """Before each step of this work in the folder, and in the middle and at the end of each file that it writes."""
    steps = Steps(folder)
    assert in_a_child(work, steps)[:2] == (0, 0)
    sizes = sorted({path.stat().st_size for path in folder.rglob("*") if path.is_file()})
    bytes_to_die_at = [number for size in sizes for number in (size // 2, size - 1)]
    return [*(Steps(folder, number + 1) for number in range(steps.count)), *map(killed_at_byte, bytes_to_die_at)]


def test_a_model_that_was_killed_while_it_was_saved_is_refused_until_it_is_whole(given, tmp_path):
    """In a new folder, nobody takes what is there for a model before it is one."""
    model, found = HTSATForSoundEventDetection.from_pretrained(given / "one"), []
    new = read_by(by_class, given / "one")
    for death in every_death(lambda: model.save_pretrained(tmp_path / "model"), tmp_path):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        assert in_a_child(lambda: model.save_pretrained(tmp_path / "model"), death).signal
        assert not (tmp_path / "model" / "config.json").exists() or not is_preset(str(tmp_path / "model"))
        found.append(read_by(by_class, tmp_path / "model"))
        assert found[-1] in (None, new)
    assert found.count(None) > 20 and found.count(new) > 5
    model.save_pretrained(tmp_path / "model")
    assert read_by(by_class, tmp_path / "model") == new


class Overwritten(NamedTuple):
    """A model, and another one that is saved over it."""

    older: HTSATForSoundEventDetection
    newer: HTSATForSoundEventDetection
    place: Path

    def save_older(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        self.older.save_pretrained(self.place)
        (self.place / "notes.txt").write_text("of its owner")

    def save_newer(self) -> None:
        self.newer.save_pretrained(self.place)


@pytest.fixture(params=["other sounds", "only other weights"])
def overwritten(request, given, tmp_path) -> Overwritten:
    older = HTSATForSoundEventDetection.from_pretrained(given / "one")
    if request.param == "only other weights":
        newer = HTSATForSoundEventDetection.from_pretrained(given / "two")
    else:
        names = {"id2label": dict(enumerate("vwxyz")), "label2id": {name: index for index, name in enumerate("vwxyz")}}
        newer = HTSATForSoundEventDetection(HTSATConfig(**{**SMALL, "max_frequency": 9_000}, **names))
    return Overwritten(older, newer, tmp_path / "model")


@pytest.mark.parametrize("stride", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_while_it_was_saved_over_an_older_one_a_model_is_the_old_or_the_new(overwritten, stride, tmp_path):
    """Whichever way it is read, also when the old one was in pieces, of which some have other names than the new."""
    place, older = overwritten.place, overwritten.older
    older.save_pretrained = functools.partial(older.save_pretrained, max_shard_size="100KB")  # type: ignore[method-assign]
    overwritten.save_older()
    assert len(list(place.glob("model-*.safetensors"))) > 2
    old, found = read_by(by_class, place), []
    deaths = every_death(overwritten.save_newer, tmp_path)
    new, files = read_by(by_class, place), files_of(place)
    assert old != new
    for death in deaths[::stride]:
        overwritten.save_older()
        assert in_a_child(overwritten.save_newer, death).signal
        copies = [shutil.copytree(place, tmp_path / "copy" / load.__name__) for load in READERS]
        found += [read_by(load, copy) for load, copy in zip(READERS, copies, strict=True)]
        assert found[-3] == found[-2] == found[-1] in (old, new)
        assert not list(tmp_path.glob("copy/*/.*.staged/model*")) or found[-1] == old
        shutil.rmtree(tmp_path / "copy")
        overwritten.save_newer()
        assert files_of(place) == files
    assert found.count(old) > 60 / stride and found.count(new) > 15 / stride


@pytest.mark.parametrize("kind", [HTSATConfig, HTSATFeatureExtractor])
def test_killed_while_it_was_saved_over_an_older_one_a_part_is_the_old_or_the_new(kind, tmp_path):
    older, newer, place = kind(), kind(max_frequency=9_000), tmp_path / "part"

    def save_older() -> None:
        shutil.rmtree(place, ignore_errors=True)
        older.save_pretrained(place)

    save_older()
    found = []
    for death in every_death(lambda: newer.save_pretrained(place), tmp_path):
        save_older()
        assert in_a_child(lambda: newer.save_pretrained(place), death).signal
        found.append(kind.from_pretrained(place).max_frequency)
    assert set(found) == {older.max_frequency, 9_000}


def half_moved(overwritten: Overwritten) -> Path:
    """Its folder, as it is left right after the move that decides."""
    move = os.replace

    def move_and_die(source: Path, target: Path) -> None:
        move(source, target)
        if Path(source).parent.parent == overwritten.place:
            os.kill(os.getpid(), signal.SIGKILL)

    overwritten.save_older()
    assert in_a_child(overwritten.save_newer, lambda: setattr(os, "replace", move_and_die)).signal == signal.SIGKILL
    (staged,) = overwritten.place.glob(".*.staged")
    assert not (staged / "config.json").exists() and (staged / "model.safetensors").exists()
    return overwritten.place


def test_a_model_that_was_half_moved_is_refused_where_the_rest_cannot_be_moved(overwritten, monkeypatch):
    place = half_moved(overwritten)

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr(os, "replace", refuse)
    for load in READERS[:2]:
        with pytest.raises(OSError, match=r"half moved.*Permission denied.*let yourself write there") as refusal:
            load(place)
        assert str(place) in str(refusal.value)
    monkeypatch.undo()
    assert read_by(by_class, place)[0] == read_by(by_class, overwritten.place)[0]


def test_ctrl_c_right_after_the_move_that_decides_leaves_the_new_model(overwritten, monkeypatch):
    overwritten.save_newer()
    new = read_by(by_class, overwritten.place)
    overwritten.save_older()
    move = os.replace

    def move_and_interrupt(source: Path, target: Path) -> None:
        move(source, target)
        if Path(source).parent.parent == overwritten.place:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", move_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        overwritten.save_newer()
    monkeypatch.undo()
    assert read_by(by_class, overwritten.place) == new
    assert not list(overwritten.place.glob(".*"))


def test_what_was_half_moved_is_not_moved_over_what_its_owner_put_there_since(overwritten, given, tmp_path):
    place = half_moved(overwritten)
    theirs = HTSATForSoundEventDetection.from_pretrained(given / "one", id2label=dict(enumerate("klmno")))
    theirs.save_pretrained(tmp_path / "theirs")
    shutil.copytree(tmp_path / "theirs", place, dirs_exist_ok=True)
    assert read_by(by_class, place) == read_by(by_class, tmp_path / "theirs")


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def training(folder: Path, given: Path) -> Job:
    values = {
        "model": given / "one",
        "corpus": "folders",
        "data": given / "sounds",
        "output_dir": folder / "run",
        "num_train_epochs": 2,
        "per_device_train_batch_size": 3,
        "per_device_eval_batch_size": 4,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "learning_rate": 1e-3,
        "mixup_alpha": 0.5,
        "use_cpu": "true",
        "report_to": "none",
        "disable_tqdm": "true",
        "dataloader_pin_memory": "false",
        "validation_split": "validation",
        "test_split": "",
        "ema_decay": 0.9,
        "final_weights": "ema",
    }
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]

    def work() -> int:
        arguments = parse_run(flags)
        return exit_status(lambda: run_all(HTSATForAudioClassification, arguments), arguments.training)

    return Job(work, folder / "run")


class Run:
    """A run that nothing happened to, and what becomes of one that something happens to."""

    def __init__(self, folder: Path, given: Path):
        self.folder = folder
        folder.mkdir()
        self.job = training(folder, given)
        assert self.job.work() == 0
        self.weights, self.metrics = self.outcome()
        self.sizes = sorted({path.stat().st_size for path in self.job.place.rglob("*") if path.is_file()})

    def outcome(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        results = json.loads((self.job.place / "results.json").read_text(encoding="utf-8"))
        return load_file(self.job.place / "model.safetensors"), results["metrics"]

    def befall(self, *changes: Any) -> End:
        shutil.rmtree(self.job.place, ignore_errors=True)
        end = in_a_child(self.job.work, *changes)
        if (self.job.place / "results.json").exists():
            self.check_outcome()
        return end

    def check_outcome(self) -> None:
        weights, metrics = self.outcome()
        assert metrics == self.metrics and weights.keys() == self.weights.keys()
        assert all(torch.equal(weights[name], self.weights[name]) for name in weights)

    def check_refusal(self, *changes: Any) -> str:
        """What it says when a checkpoint cannot be written; none is half there."""
        end = self.befall(*changes)
        assert end[:2] == (0, 1), end
        *_, sentence = end.said.strip().splitlines()
        assert str(self.job.place) in sentence and "could not be written" in sentence, sentence
        assert "Traceback" not in end.said
        whole = last_whole_checkpoint(self.job.place, move_aside=False)
        assert {str(path) for path in self.job.place.glob("checkpoint-*")} == ({whole} if whole else set())
        assert not (self.job.place / "results.json").exists()
        return sentence

    def check_it_goes_on(self) -> None:
        end = in_a_child(self.job.work)
        assert end[:2] == (0, 0), end.said
        self.check_outcome()


@pytest.fixture(scope="module")
def run(given, tmp_path_factory) -> Run:
    return Run(tmp_path_factory.mktemp("training") / "scene", given)


def test_training_that_is_killed_while_it_saves_goes_on_and_ends_as_if_nothing_had_been(run):
    assert run.befall(Steps(run.folder, 30)).signal == signal.SIGKILL
    run.check_it_goes_on()


@pytest.mark.slow
def test_training_may_be_killed_at_every_single_step_of_its_writing(run):
    for number in count(1):
        steps = Steps(run.folder, number)
        if not run.befall(steps).signal:
            break
        run.check_it_goes_on()
    assert number == steps.count + 1 > 40
    for size in run.sizes:
        if run.befall(killed_at_byte(size // 2)).signal:
            run.check_it_goes_on()


def test_training_on_a_full_disk_says_so_and_leaves_no_half_checkpoint(run):
    """A limit on the size of files fails as a full disk does, wherever tests run; of a real one, see below."""
    run.check_refusal(files_no_larger_than(run.sizes[-1] - 1))
    run.check_it_goes_on()


# ── the Hub ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = FakeHub()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    constants = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in constants.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    yield hub
    hub.close()


class Publishing:
    """`htsat publish` in a child, which the Hub kills when it gets the n-th request, or one of a kind."""

    def __init__(self, hub: FakeHub, given: Path, folder: Path, monkeypatch):
        self.hub, self.child = hub, folder / "child"
        self.is_the_last, self.is_answered = lambda asked: False, False
        answer = Handler.handle_request

        def answer_or_kill(handler: Handler) -> None:
            is_the_last = self.is_the_last(f"{handler.command} {handler.path}")
            if is_the_last:
                monkeypatch.setattr(handler, "reply", lambda *_, **__: None)  # at best it is done; no answer arrives
            if not is_the_last or self.is_answered:
                answer(handler)
            if is_the_last:
                os.kill(int(self.child.read_text()), signal.SIGKILL)

        for name in ("do_HEAD", "do_GET", "do_POST", "do_PUT"):
            monkeypatch.setattr(Handler, name, answer_or_kill)
        self.one, self.two = (command("publish", given / name, "me/model") for name in ("one", "two"))
        self.old, self.new = (self.publish_whole(work) for work in (self.one, self.two))
        assert self.old != self.new

    def files(self) -> dict[str, bytes]:
        return self.hub.model("me/model").files()

    def publish(self, work: Callable[[], int], is_the_last: Callable[[str], bool], is_answered: bool = False) -> End:
        self.is_the_last, self.is_answered = is_the_last, is_answered
        return in_a_child(work, lambda: self.child.write_text(str(os.getpid())))

    def publish_whole(self, work: Callable[[], int]) -> dict[str, bytes]:
        end = self.publish(work, lambda asked: False)
        assert end[:2] == (0, 0), end.said
        return self.files()

    def kill(self, is_the_last: Callable[[str], bool], is_answered: bool) -> tuple[End, dict[str, bytes]]:
        """How it ended, and what the Hub had then; the next run puts it right."""
        self.hub.model("me/model").commit("main", dict(self.old))
        end = self.publish(self.two, is_the_last, is_answered)
        files = self.files()
        assert self.publish_whole(self.two) == self.new
        return end, files


@pytest.fixture
def publishing(hub, given, tmp_path, monkeypatch):
    return Publishing(hub, given, tmp_path, monkeypatch)


@pytest.mark.parametrize("is_done", [False, True])
def test_who_is_killed_at_the_commit_leaves_the_old_whole_or_the_new_on_the_hub(publishing, is_done):
    """SIGKILL comes before the Hub does what it was asked for, or before it says that it did."""
    end, files = publishing.kill(lambda asked: "/commit/" in asked, is_done)
    assert end.signal == signal.SIGKILL
    assert files == (publishing.new if is_done else publishing.old)


@pytest.mark.slow
@pytest.mark.parametrize("is_done", [False, True])
def test_who_is_killed_at_any_request_leaves_the_old_whole_or_the_new_on_the_hub(publishing, is_done):
    for number in count(1):
        left = iter(range(number - 1))
        end, files = publishing.kill(lambda asked, left=left: next(left, None) is None, is_done)
        assert files in (publishing.old, publishing.new)
        if not end.signal:
            break
    assert number > 5


# ── no room, and no right ─────────────────────────────────────────────────────────────────────────────────────────────


NO_ROOM = [job for job in JOBS if job not in (events, picture)]  # these two find out before they begin
SOME = (table, moving_average, soundscapes)  # the next test has all, with this limit where nobody may mount


@pytest.mark.parametrize(
    "make",
    [pytest.param(job, marks=[] if job in SOME else pytest.mark.slow) for job in NO_ROOM],
    ids=lambda make: make.__name__,
)
def test_what_finds_no_room_says_so_in_a_sentence_and_leaves_the_old_whole(make, scene_of):
    """A limit on the size of files fails as a full disk does, in the middle of writing, wherever tests run."""
    scene = scene_of(make)
    for limit in (0, max(map(len, scene.changed())) // 2):
        scene.check_refusal(("File too large",), files_no_larger_than(limit))


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A disk of a few megabytes over a folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def may_mount() -> bool:
    """Tried once and elsewhere: a mount that fails where this one did not is a failure of the test."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as place:
        try:
            with small_disk(Path(place)):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


DISK = "tmpfs" if may_mount() else "limit"  # in the name of the tests that need a disk, so that it is seen which it was


@pytest.mark.parametrize("disk", [DISK])
@pytest.mark.parametrize(
    "make",  # exported programs are written as others are, and take half a minute to make
    [pytest.param(job, marks=pytest.mark.slow if job in (export, export_to_8_bits) else []) for job in NO_ROOM],
    ids=lambda make: make.__name__,
)
def test_on_a_full_disk_it_says_so_and_goes_on_when_there_is_room(make, disk, scene_of):
    """Of its own where tests may mount one; the limit of above stands in for it where they may not."""
    scene = scene_of(make)
    half = max(map(len, scene.changed())) // 2
    if disk == "limit":
        scene.check_refusal(("File too large",), files_no_larger_than(half))
        return scene.check_the_next_run_works()
    with small_disk(scene.folder.parent):
        filler = scene.folder.parent / "filler"
        scene.check_refusal(("No space left on device",), before=lambda: fill(filler, half))
        filler.unlink()
        scene.check_the_next_run_works()
    return None


def fill(filler: Path, room: int) -> None:
    """Leave so much room on a disk, rounded down to pages."""
    filler.write_bytes(b"x" * (shutil.disk_usage(filler.parent).free - room // 4096 * 4096))


def filled_at_the_first_checkpoint(filler: Path, room: int) -> Callable[[], object]:
    """Someone else fills the disk when training saves for the first time: what it needs is there when it begins."""

    def see(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.mkdir" and "checkpoint-" in str(arguments[0]) and not filler.exists():
            fill(filler, room)

    return lambda: sys.addaudithook(see)


@pytest.mark.skipif(DISK != "tmpfs", reason="nobody may mount a disk here; the limit has a test of its own above")
def test_training_on_a_real_disk_that_fills_up_says_so_and_goes_on_when_there_is_room(run):
    with small_disk(run.folder):
        filler = run.folder / "filler"
        sentence = run.check_refusal(filled_at_the_first_checkpoint(filler, run.sizes[-1] // 2))
        assert "no space left" in sentence
        filler.unlink()
        run.check_it_goes_on()


@pytest.mark.parametrize("is_there", [False, True])
def test_training_into_a_folder_that_may_only_be_read_says_so_before_it_begins(is_there, given):
    with tempfile.TemporaryDirectory(prefix="closed-") as temporary:
        folder = Path(temporary)
        job = training(folder, given)
        if is_there:
            job.place.mkdir()
            (job.place / "notes.txt").write_text("of an older run")
        for path in (folder, *folder.glob("run")):
            path.chmod(0o555)
        end = in_a_child(job.work, without_rights)
        assert end[:2] == (0, 1), end
        *_, sentence = end.said.strip().splitlines()
        assert str(job.place) in sentence and "cannot be written: permission denied" in sentence, sentence
        assert "Traceback" not in end.said and "epoch" not in end.said
        assert files_of(folder) == ({"run/notes.txt": b"of an older run"} if is_there else {})
        for path in (folder, *folder.glob("run")):
            path.chmod(0o755)


@pytest.mark.parametrize("make", JOBS, ids=lambda make: make.__name__)
def test_a_folder_that_may_only_be_read_is_named_in_a_sentence_and_stays_as_it_is(make, scene_of):
    scene = scene_of(make)
    try:
        scene.check_refusal(("ermission denied", "may not be written"), without_rights, before=scene.close)
    finally:
        scene.open()
