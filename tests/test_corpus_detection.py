"""A corpus in parts: every recording once and the same, whoever hears it, and in however many goes."""

import itertools
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from conftest import SMALL, enliven

from modeling_htsat import (
    AudioError,
    HTSATConfig,
    HTSATFeatureExtractor,
    HTSATForSoundEventDetection,
    HTSATSoundEventDetectionPipeline,
)
from modeling_htsat.corpus_detection import (
    MANIFEST,
    SUMMARY,
    DetectionSettings,
    Process,
    Recordings,
    begin_work,
    count_done,
    cut_into_parts,
    describe_work,
    detect_corpus,
    find_recordings,
    fingerprint,
    hear_part,
    merge_events,
    part_path,
    summarize,
    this_process,
    visiting_order,
)
from modeling_htsat.tables import read_events

SCRIPT = Path(__file__).parents[1] / "training_scripts" / "run_detection.py"
RATE = 32_000
# Shorter than the 2.56 s that the model hears at once, in 48 kHz, and up to three windows long.
SECONDS = {"a.wav": 1.3, "b.flac": 2.1, "in/c.wav": 6.1, "in/d.wav": 0.7, "in/deep/e.flac": 2.5, "z.wav": 3.1}
BROKEN = "in/broken.wav"
NAMES = sorted([*SECONDS, BROKEN], key=lambda name: Path(name).parts)
SETTINGS = DetectionSettings(batch_size=4, top_k=3, decoding={"threshold": 0.5})


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """A folder of recordings, one of which cannot be read."""
    folder = tmp_path_factory.mktemp("sounds")
    (folder / "in" / "deep").mkdir(parents=True)
    for seed, (name, seconds) in enumerate(SECONDS.items()):
        rate = 48_000 if name == "b.flac" else RATE
        time = np.arange(round(seconds * rate)) / rate
        loudness = np.where(np.sin(2 * np.pi * 0.7 * time) > 0, 0.3, 0.01)
        noise = np.random.default_rng(seed).standard_normal(len(time))
        soundfile.write(folder / name, loudness * (np.sin(2 * np.pi * 400 * (seed + 1) * time) + 0.3 * noise) / 2, rate)
    (folder / BROKEN).write_bytes(b"no sound")
    (folder / "notes.txt").write_text("no recording")
    return folder


def save_model(folder: Path, **values) -> str:
    enliven(HTSATForSoundEventDetection(HTSATConfig(**SMALL, **values))).save_pretrained(folder)
    HTSATFeatureExtractor(clip_frames=256).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), problem_type="multi_label_classification")


@pytest.fixture(scope="module")
def detector(model) -> HTSATSoundEventDetectionPipeline:
    loaded = HTSATForSoundEventDetection.from_pretrained(model)
    return HTSATSoundEventDetectionPipeline(loaded, feature_extractor=HTSATFeatureExtractor.from_pretrained(model))


class Work:
    """A piece of work in an output folder, and what processes do for it."""

    def __init__(self, detector, recordings: Recordings, output: Path, settings: DetectionSettings = SETTINGS):
        self.detector, self.recordings, self.output, self.settings = detector, recordings, output, settings
        self.parts = cut_into_parts(recordings, 2)
        self.work = describe_work(detector, recordings, self.parts, settings)
        self.manifest = begin_work(output, self.work, models=["the model"])

    def steps(self, process: Process = Process(), num_workers: int = 0):  # noqa: B008  # an immutable value
        return detect_corpus(
            self.detector, self.recordings, self.parts, self.output, self.settings, self.manifest, process, num_workers
        )

    def shards(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.output.glob("*.parquet"))}

    def rows(self) -> list[dict]:
        return [row for path in sorted(self.output.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def alone(detector, sounds, tmp_path_factory) -> Work:
    """What one process gives."""
    work = Work(detector, find_recordings(str(sounds)), tmp_path_factory.mktemp("alone"))
    list(work.steps())
    return work


def take_turns(works) -> list[Path]:
    """Processes that take one step each, again and again, until all have ended; returns what they wrote."""
    rounds = itertools.zip_longest(*works)
    return [step.written for steps in rounds for step in steps if step and step.written]


# ── parts and processes ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("group_sizes", [None, [7], [3, 1, 3], [1, 6], [2, 2, 2, 1]])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 9])
def test_parts_hold_every_recording_once_in_order_and_are_no_larger_than_asked(group_sizes, size):
    parts = cut_into_parts(Recordings(list("abcdefg"), None, group_sizes), size)
    assert [number for part in parts for number in part] == list(range(7))
    assert all(1 <= len(part) <= size for part in parts)


def test_recordings_that_are_read_together_stay_in_one_part_where_they_fit():
    recordings = Recordings([str(number) for number in range(14)], None, [2, 3, 1, 7, 1])
    assert cut_into_parts(recordings, 4) == [range(2), range(2, 6), range(6, 10), range(10, 14)]


def test_a_part_without_recordings_is_refused():
    with pytest.raises(ValueError, match="A part of 0 recordings"):
        cut_into_parts(Recordings(["a"], None), 0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_part_falls_to_one_process_and_comes_to_all_in_the_end(world_size):
    orders = [visiting_order(7, Process(rank, world_size)) for rank in range(world_size)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    own = [order[: len(range(rank, 7, world_size))] for rank, order in enumerate(orders)]
    assert sorted(sum(own, [])) == list(range(7))
    assert visiting_order(7, Process(0, world_size)) == orders[0]


def test_a_process_is_what_the_launcher_says_and_otherwise_the_only_one():
    assert this_process({}) == Process(0, 1, 0)
    assert this_process({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Process(5, 8, 1)
    with pytest.raises(ValueError, match="RANK is 2 and WORLD_SIZE 2"):
        this_process({"RANK": "2", "WORLD_SIZE": "2"})


# ── what is heard ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_shards_say_of_each_recording_what_the_pipeline_says_of_it_alone(alone, detector, sounds):
    rows = alone.rows()
    assert [row["filename"] for row in rows] == NAMES
    for row in rows:
        if row["filename"] == BROKEN:
            continue
        found = detector(sounds / row["filename"], return_scores=True, decoding=SETTINGS.decoding)
        assert row["duration_seconds"] == found["num_samples"] / RATE
        assert [event["event_label"] for event in row["events"]] == [event["label"] for event in found["events"]]
        for name in ("onset", "offset", "score"):
            heard, wanted = ([event[name] for event in events] for events in (row["events"], found["events"]))
            assert heard == pytest.approx(wanted, abs=1e-5)
        strongest = sorted(found["tags"].items(), key=lambda tag: -tag[1])[:3]
        assert [tag["label"] for tag in row["tags"]] == [label for label, _ in strongest]
        assert [tag["score"] for tag in row["tags"]] == pytest.approx([score for _, score in strongest], abs=1e-5)
    assert sum(len(row["events"] or []) for row in rows) > 5


def test_a_shard_says_what_it_was_made_with(alone):
    for path in alone.output.glob("*.parquet"):
        origin = json.loads(pq.read_schema(path).metadata[b"modeling_htsat.detection"])
        assert origin["models"] == ["the model"] and origin["work"] == alone.work
        assert origin["work"]["decoding"]["threshold"] == 0.5 and origin["versions"]["torch"] == torch.__version__


def test_a_recording_that_cannot_be_read_keeps_a_row_with_the_sentence_that_says_why(alone, detector, sounds):
    (row,) = (row for row in alone.rows() if row["filename"] == BROKEN)
    with pytest.raises(AudioError) as error:
        detector(sounds / BROKEN)
    assert row == {**dict.fromkeys(row), "filename": BROKEN, "error": str(error.value)}
    assert all(other["error"] is None for other in alone.rows() if other is not row and other["filename"] != BROKEN)


def test_what_the_pipeline_can_be_asked_counts_here_too(detector, sounds):
    cut = (sounds / "in" / "c.wav").read_bytes()[:200_000]  # 6.1 s are promised, 3.1 s are there
    recordings = Recordings(["whole", "cut"], [sounds / "in" / "c.wav", cut])
    refused = [row for batch in hear_part(detector, recordings, range(2), SETTINGS) for row in batch]
    assert sorted(row["filename"] for row in refused if row["error"] and "truncated" in row["error"]) == ["cut"]

    options = {"groups": {"low": [0, 1, 2], "high": [3, 4]}, "time_refinement": 2, "allow_truncated": True}
    heard = [row for batch in hear_part(detector, recordings, range(2), DetectionSettings(**options)) for row in batch]
    assert len(heard) == 2
    for row in heard:
        events = detector(recordings.sources[row["number"]], **options)
        assert {event["label"] for event in events} <= {"low", "high"} and events
        for name, other in {"event_label": "label", "onset": "onset", "offset": "offset"}.items():
            assert [event[name] for event in row["events"]] == [event[other] for event in events]


def test_short_recordings_share_a_batch_and_long_ones_take_the_room_of_several(detector, make_sound, monkeypatch):
    seconds = [1.0, 2.0, 12.0, 1.5, 5.0, 2.5, 0.5, 4.5]  # of windows of 2.56 s: up to 1, 1, 8, 1, 2, 1, 1 and 2
    rows = [{"array": make_sound(round(length * RATE)), "sampling_rate": RATE} for length in seconds]
    sizes, forward = [], detector.forward
    monkeypatch.setattr(
        detector,
        "forward",
        lambda batch, **options: sizes.append(len(batch["num_samples"])) or forward(batch, **options),
    )
    recordings = Recordings([f"{length}" for length in seconds], rows)
    batches = list(hear_part(detector, recordings, range(8), DetectionSettings(batch_size=4)))
    assert [[row["number"] for row in batch] for batch in batches] == [[2], [0, 1, 3, 5], [4, 7], [6]]
    assert sizes == [1, 4, 2, 1]


# ── the same from any number of processes, in any number of goes ──────────────────────────────────────────────────────


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_that_share_the_work_write_each_part_once_and_as_one_process_does(
    alone, detector, sounds, tmp_path, world_size
):
    works = [Work(detector, find_recordings(str(sounds)), tmp_path) for _ in range(world_size)]
    written = take_turns([work.steps(Process(rank, world_size)) for rank, work in enumerate(works)])
    assert len(written) == len(set(written)) == 4
    assert works[0].shards() == alone.shards()


def test_processes_that_read_for_the_model_change_nothing(alone, detector, sounds, tmp_path):
    work = Work(detector, find_recordings(str(sounds)), tmp_path)
    list(work.steps(num_workers=2))
    assert work.shards() == alone.shards()


@pytest.mark.parametrize("num_steps", [1, 3, 6])
def test_work_that_was_killed_goes_on_with_another_number_of_processes(alone, detector, sounds, tmp_path, num_steps):
    killed = Work(detector, find_recordings(str(sounds)), tmp_path)
    rows = list(itertools.islice(killed.steps(Process(1, 2)), num_steps))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert len(before) == sum(step.written is not None for step in rows)
    assert count_done(tmp_path, killed.parts) == sum(len(pq.read_table(path)) for path in before)

    resumed = [Work(detector, find_recordings(str(sounds)), tmp_path) for _ in range(3)]
    written = take_turns([work.steps(Process(rank, 3)) for rank, work in enumerate(resumed)])
    assert len(written) == 4 - len(before) and not before.keys() & set(written)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert resumed[0].shards() == alone.shards()
    assert count_done(tmp_path, resumed[0].parts) == 7


def test_a_process_does_the_parts_of_those_that_died(alone, detector, sounds, tmp_path):
    work = Work(detector, find_recordings(str(sounds)), tmp_path)
    list(work.steps(Process(2, 3)))
    assert work.shards() == alone.shards()


def test_a_part_that_another_process_has_finished_meanwhile_is_left_alone(alone, detector, sounds, tmp_path):
    work = Work(detector, find_recordings(str(sounds)), tmp_path)
    steps = work.steps()
    next(steps)
    other = part_path(tmp_path, 0, 4)
    other.write_bytes(b"the other's")
    assert [step.written for step in steps if step.written] == [part_path(tmp_path, part, 4) for part in (1, 2, 3)]
    assert other.read_bytes() == b"the other's"


def test_a_shard_appears_whole_or_not_at_all(detector, sounds, tmp_path, monkeypatch):
    work = Work(detector, find_recordings(str(sounds)), tmp_path)

    def break_off(table, path, **options):
        path.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(pq, "write_table", break_off)
    with pytest.raises(OSError, match="full"):
        list(work.steps())
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


# ── another thing in the same folder ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_size": 8}, r"begun with other values of batch_size \(4 then, 8 now\): give"),
        ({"decoding": {"threshold": 0.4}}, "other values of decoding: give"),
        ({"top_k": 4, "time_refinement": 2}, r"top_k \(3 then, 4 now\), time_refinement \(1 then, 2 now\): give"),
    ],
)
def test_other_settings_are_refused_in_a_folder_that_was_begun(alone, detector, sounds, change, sentence):
    settings = DetectionSettings(**{**SETTINGS.__dict__, **change})
    with pytest.raises(ValueError, match=sentence):
        Work(detector, alone.recordings, alone.output, settings)


def test_another_model_is_refused_and_the_same_one_from_elsewhere_is_not(alone, model, detector, tmp_path):
    def load(folder) -> HTSATSoundEventDetectionPipeline:
        return HTSATSoundEventDetectionPipeline(
            HTSATForSoundEventDetection.from_pretrained(folder), feature_extractor=detector.feature_extractor
        )

    detector.model.save_pretrained(tmp_path)
    Work(load(tmp_path), alone.recordings, alone.output)
    other = load(model)
    other.model.classifier.convolution.bias.data[3] += 1e-3
    with pytest.raises(ValueError, match="other values of model: give"):
        Work(other, alone.recordings, alone.output)
    other = load(model)
    other.model.config.event_decoding = {"threshold": 0.3}
    assert fingerprint(other) != fingerprint(detector)


def test_other_recordings_are_refused(alone, detector):
    names = list(alone.recordings.names)
    with pytest.raises(
        ValueError, match=r"other values of num_recordings \(7 then, 6 now\), .*recordings, parts: give"
    ):
        Work(detector, Recordings(names[:6], None), alone.output)
    with pytest.raises(ValueError, match="other values of recordings: give"):
        Work(detector, Recordings([*names[:6], "another.wav"], None), alone.output)


def test_parts_of_unknown_origin_are_refused(alone, detector, tmp_path):
    (tmp_path / "part-00000-of-00004.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="holds parts but no detection.json"):
        Work(detector, alone.recordings, tmp_path)


def test_a_shard_of_another_command_is_noticed_at_the_end(alone, tmp_path):
    for name, content in alone.shards().items():
        (tmp_path / name).write_bytes(content)
    assert summarize(tmp_path, alone.work)["recordings"] == 7
    with pytest.raises(ValueError, match="part-00000-of-00004.parquet was written by another command"):
        summarize(tmp_path, {**alone.work, "dtype": "bfloat16"})


def test_groups_that_the_model_does_not_have_are_refused_before_the_work(alone, detector):
    settings = DetectionSettings(groups={"low": [0, 1], "high": [2, 5]})
    with pytest.raises(ValueError, match="The group 'high' has class 5; this model has 0 to 4"):
        describe_work(detector, alone.recordings, alone.parts, settings)


@pytest.mark.parametrize("name", ["batch_size", "top_k", "time_refinement"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` is 0"):
        DetectionSettings(**{name: 0})


# ── sources ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_list_of_the_files_of_a_folder_gives_what_the_folder_gives(alone, detector, sounds, tmp_path):
    listed = sounds / "list.txt"
    listed.write_text("\n".join(NAMES) + "\n\n", encoding="utf-8")
    work = Work(detector, find_recordings(str(listed)), tmp_path)
    list(work.steps())
    assert work.shards() == alone.shards()


def test_the_rows_of_a_corpus_give_what_their_files_give(alone, detector, sounds, tmp_path):
    rows = [{"audio": {"bytes": (sounds / name).read_bytes(), "path": str(sounds / name)}} for name in NAMES]
    work = Work(detector, Recordings(NAMES, rows, [4, 3]), tmp_path)
    list(work.steps(num_workers=1))
    assert [part for part in work.parts] == [range(2), range(2, 4), range(4, 6), range(6, 7)]
    assert work.rows() == alone.rows()


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_parquet_files_need_no_labels_and_are_read_where_they_lie(alone, detector, sounds, tmp_path, prefix):
    audio = [{"bytes": (sounds / name).read_bytes(), "path": str(sounds / name)} for name in NAMES]
    for number, rows in enumerate((slice(0, 4), slice(4, 7))):
        table = pa.table({"audio": audio[rows], "video_id": NAMES[rows], "else": [number] * len(NAMES[rows])})
        pq.write_table(table, tmp_path / f"data-{number}.parquet", row_group_size=2)
    recordings = find_recordings(f"{prefix}{tmp_path}/data-*.parquet")
    assert recordings.group_sizes == [2, 2, 2, 1]
    work = Work(detector, recordings, tmp_path / "found")
    list(work.steps(num_workers=1))
    assert work.rows() == alone.rows()
    with pytest.raises(ValueError, match=r"There is no file .*/none-\*.parquet"):
        find_recordings(f"{prefix}{tmp_path}/none-*.parquet")


def test_a_corpus_for_training_is_heard_under_its_clips_names(sounds, tmp_path):
    for name, label in {"a.wav": "low", "b.flac": "high", "z.wav": "high"}.items():
        (tmp_path / label).mkdir(exist_ok=True)
        shutil.copy(sounds / name, tmp_path / label)
    recordings = find_recordings(str(tmp_path), "folders", "train", validation_share=0.0, test_share=0.0)
    assert sorted(recordings.names) == ["high/b.flac", "high/z.wav", "low/a.wav"]
    assert [recordings.sources[number]["video_id"] for number in range(3)] == recordings.names
    with pytest.raises(ValueError, match="no kind of corpus 'nothing'"):
        find_recordings(str(tmp_path), "nothing")


def test_what_a_list_names_but_is_not_there_is_a_row_with_an_error(detector, sounds, tmp_path):
    (tmp_path / "list.txt").write_text(f"{sounds / 'a.wav'}\ngone.wav\n", encoding="utf-8")
    work = Work(detector, find_recordings(str(tmp_path / "list.txt")), tmp_path / "found")
    list(work.steps())
    first, second = work.rows()
    assert first["filename"] == str(sounds / "a.wav") and first["error"] is None
    assert second["error"] == f"{tmp_path / 'gone.wav'} does not exist: check the path."


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "The list .* is empty"),
        (b"a.wav\nb.wav\na.wav\n", "The list .* names 'a.wav' 2 times"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
    ],
)
def test_lists_that_say_nothing_or_the_same_twice_are_refused(tmp_path, content, sentence):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        find_recordings(str(tmp_path / "list.txt"))


def test_a_folder_without_recordings_and_a_single_recording_are_refused(sounds, tmp_path):
    with pytest.raises(ValueError, match="is a folder without audio"):
        find_recordings(str(tmp_path))
    with pytest.raises(ValueError, match="is a single recording: give a folder"):
        find_recordings(str(sounds / "a.wav"))


# ── what came of it, and the script ───────────────────────────────────────────────────────────────────────────────────


def test_the_summary_counts_what_the_shards_hold(alone, tmp_path):
    summary, rows = summarize(alone.output, alone.work), alone.rows()
    events = [event for row in rows for event in row["events"] or []]
    assert summary["recordings"] == 7 and summary["events"] == len(events)
    assert summary["hours"] == pytest.approx(sum(SECONDS.values()) / 3600, rel=1e-4)
    assert sum(summary["events_of_label"].values()) == len(events)
    assert [row["filename"] for row in summary["failed"]] == [BROKEN]
    assert json.loads((alone.output / SUMMARY).read_text(encoding="utf-8")) == summary


def test_the_merged_table_holds_the_events_of_all_shards(alone, tmp_path):
    merge_events(alone.output, alone.work, tmp_path / "events.tsv")
    table = read_events(tmp_path / "events.tsv")
    assert list(table) == [row["filename"] for row in alone.rows() if row["events"]]
    for row in filter(lambda row: row["events"], alone.rows()):
        assert table[row["filename"]] == [
            (pytest.approx(event["onset"], abs=1e-6), pytest.approx(event["offset"], abs=1e-6), event["event_label"])
            for event in row["events"]
        ]


ARGUMENTS = ["--batch-size", "4", "--top-k", "3", "--threshold", "0.5", "--recordings-per-shard", "2"]


@pytest.fixture
def run_detection(monkeypatch, capsys):
    """`run_detection(argument, ...)` as a process would run it: exit status, standard output and error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["run_detection.py", *map(str, arguments), "--device", "cpu"])
        capsys.readouterr()  # what was printed while the test made its models
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return ended.value.code, *capsys.readouterr()

    return run


def test_the_script_says_what_could_not_be_heard_and_ends_with_status_1(alone, sounds, model, tmp_path, run_detection):
    command = [sounds, "--model", model, "--output", tmp_path / "found", "--merge", tmp_path / "all.tsv", *ARGUMENTS]
    status, out, error = run_detection(*command)
    assert status == 1
    assert "process 0 of 1: 7 recordings in" in out and ", 1 not heard\n" in out
    assert error == f"run_detection: {BROKEN}: {sounds / BROKEN}" + error.partition(str(sounds / BROKEN))[2]
    assert error.count("\n") == 1
    assert Work(alone.detector, alone.recordings, tmp_path / "found").rows() == alone.rows()
    assert set(read_events(tmp_path / "all.tsv")) == {row["filename"] for row in alone.rows() if row["events"]}

    status, out, _ = run_detection(*command)
    assert status == 1 and "process 0 of 1: 0 recordings in" in out


def test_the_script_ends_with_status_0_when_all_was_heard_by_an_ensemble(sounds, model, tmp_path, run_detection):
    other = save_model(tmp_path / "other", problem_type="multi_label_classification")
    arguments = [sounds / "in" / "deep", "--model", model, "--model", other, "--output", tmp_path / "found", *ARGUMENTS]
    status, out, error = run_detection(*arguments, "--dtype", "bfloat16")
    assert (status, error) == (0, "")
    assert "1 recordings, 0.00 h" in out
    manifest = json.loads((tmp_path / "found" / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["models"] == [model, other] and manifest["work"]["dtype"] == "bfloat16"


def test_the_script_refuses_in_one_sentence(sounds, model, tmp_path, run_detection):
    other = save_model(tmp_path / "other", problem_type="single_label_classification")
    common = ["--output", tmp_path / "found", *ARGUMENTS]
    assert run_detection(sounds / "in" / "deep", "--model", model, *common)[0] == 0
    status, out, error = run_detection(sounds / "in" / "deep", "--model", other, *common)
    assert (status, out) == (1, "")
    assert error.startswith(f"run_detection: {tmp_path / 'found'} was begun with other values of model: ")
    assert error.count("\n") == 1


def test_a_process_that_is_not_the_first_of_its_machine_says_nothing(
    sounds, model, tmp_path, run_detection, monkeypatch
):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_detection(sounds, "--model", model, "--output", tmp_path / "found", *ARGUMENTS) == (0, "", "")
    assert len(list((tmp_path / "found").glob("*.parquet"))) == 4


@pytest.mark.slow
def test_torchrun_gives_what_one_process_gives(alone, sounds, model, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    command = [*launch, str(sounds), "--model", model, "--output", str(tmp_path), *ARGUMENTS, "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stderr
    assert "1 not heard" in done.stdout
    assert Work(alone.detector, alone.recordings, tmp_path).rows() == alone.rows()
