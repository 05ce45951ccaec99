"""What `htsat prepare` writes: the corpus, whole, mixed and the same, however often it was killed on the way."""

import argparse
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
from dying_process import in_a_child

from modeling_htsat import HTSATFeatureExtractor, load_audio
from modeling_htsat.training import prepare
from modeling_htsat.training.corpora import load_corpus
from modeling_htsat.training.prepare import deal, encode_flac, prepare_corpus
from modeling_htsat.training.shards import ShardRows

ROOT = Path(__file__).parents[1]
RATE = 8_000
CLASSES = {"bark": 23, "meow": 13, "rain": 7}


def make_samples(seed, num_samples):
    return np.random.default_rng(seed).integers(-(2**15), 2**15, num_samples).astype(np.int16)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Short sounds in a folder for each class: 43 for training, 5 for validation."""
    folder = tmp_path_factory.mktemp("corpus")
    for split, counts in (("train", CLASSES), ("validation", {"bark": 3, "meow": 2})):
        for label, count in counts.items():
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                name = folder / split / label / f"{number}.wav"
                soundfile.write(name, make_samples(number, 400 + 10 * number), RATE, subtype="PCM_16")
    return folder


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared") / "out"
    prepare_corpus("folders", corpus, output, ["train", "validation"], RATE, clips_per_shard=10)
    return output


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shards_of(folder, split="train"):
    return sorted(folder.glob(f"data/{split}-*.parquet"))


def clips_of(rows):
    return {row["video_id"]: row for row in (rows[index] for index in range(len(rows)))}


# ── what is written ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("streaming", [False, True])
def test_the_corpus_audioset_reads_back_what_was_prepared(corpus, prepared, streaming, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    for split, num_clips in (("train", 43), ("validation", 5)):
        before = load_corpus("folders", corpus, split)
        after = load_corpus("audioset", prepared, split, streaming=streaming)
        assert after.label_names == before.label_names == ("bark", "meow", "rain")
        clips, expected = clips_of(after.rows), clips_of(before.rows)
        assert clips.keys() == expected.keys() and len(clips) == num_clips
        for name, clip in clips.items():
            for column in ("labels", "human_labels", "events"):
                assert clip[column] == expected[name][column]
            assert clip["audio"]["path"] == f"{name}.flac" and clip["audio"]["bytes"][:4] == b"fLaC"
            # 16-bit sounds at the wanted rate go through without a change.
            assert np.array_equal(load_audio(clip["audio"], RATE), load_audio(expected[name]["audio"], RATE))


def test_strong_labels_are_kept(tmp_path):
    (tmp_path / "audio").mkdir()
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / "audio" / name, make_samples(1, 4000), RATE)
    table = "filename\tonset\toffset\tevent_label\na.wav\t0.1\t0.25\tbell\na.wav\t0.2\t0.4\tdog\nb.wav\t\t\t\n"
    (tmp_path / "events.tsv").write_text(table)
    prepare_corpus("events", tmp_path / "events.tsv", tmp_path / "out", ["train"], RATE, options=EVENT_OPTIONS)
    clips = clips_of(ShardRows(shards_of(tmp_path / "out")))
    assert clips["a.wav"]["events"] == [
        {"onset": 0.1, "offset": 0.25, "event_label": "bell"},
        {"onset": 0.2, "offset": 0.4, "event_label": "dog"},
    ]
    assert clips["b.wav"]["events"] == [] and clips["b.wav"]["labels"] == []


EVENT_OPTIONS = {"validation_share": 0.0}


def test_the_description_counts_what_is_there(prepared):
    info = json.loads((prepared / "dataset_info.json").read_text())
    assert (info["sampling_rate"], info["labels"], info["skipped"]) == (RATE, ["bark", "meow", "rain"], [])
    assert info["splits"]["train"]["num_clips_of_class"] == CLASSES
    assert [info["splits"][split]["num_shards"] for split in ("train", "validation")] == [5, 1]
    assert {"modeling_htsat", "libsndfile", "soxr", "pyarrow"} <= info["versions"].keys()
    assert (prepared / "skipped.tsv").read_text() == "split\tvideo_id\treason\n"
    text = (prepared / "README.md").read_text()
    assert "- split: validation\n    path: data/validation-*.parquet\n---" in text and "| train | 43 | 5 |" in text


def test_nothing_says_where_the_corpus_was(corpus, prepared):
    assert not [name for name, content in files_in(prepared).items() if str(corpus).encode() in content]


def test_sounds_are_brought_to_the_rate_and_to_one_channel(tmp_path):
    (tmp_path / "in" / "train" / "tone").mkdir(parents=True)
    time_seconds = np.arange(24_000) / 48_000
    stereo = np.stack([np.sin(2 * np.pi * 440 * time_seconds), np.zeros(24_000)], axis=1)
    soundfile.write(tmp_path / "in" / "train" / "tone" / "a.flac", stereo, 48_000, subtype="PCM_24")
    prepare_corpus("folders", tmp_path / "in", tmp_path / "out", ["train"], 16_000)
    flac = ShardRows(shards_of(tmp_path / "out"))[0]["audio"]["bytes"]
    path = tmp_path / "a.flac"
    path.write_bytes(flac)
    facts = soundfile.info(path)
    assert (facts.samplerate, facts.channels, facts.subtype, facts.frames) == (16_000, 1, "PCM_16", 8_000)
    middle = slice(1000, 7000)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8_000) / 16_000)
    assert np.abs(load_audio(path, 16_000) - expected)[middle].max() < 1e-3


def test_what_is_too_loud_is_held_at_full_scale_and_does_not_wrap_around():
    waveform = np.array([1.5, -1.5, 1.0, -1.0, 0.99999, 1 / 2**16, 0.0], np.float32)
    samples = load_audio({"bytes": encode_flac(waveform, RATE), "path": None}, RATE) * 2**15
    assert samples.tolist() == [32767, -32768, 32767, -32768, 32767, 0, 0]


# ── which clip goes where ─────────────────────────────────────────────────────────────────────────────────────────────


class ListedRows:
    """Rows of which only the labels matter."""

    def __init__(self, labels, group_sizes=None):
        self.labels, self.group_sizes = labels, group_sizes

    def __len__(self):
        return len(self.labels)

    def without_audio(self):
        return [{"video_id": str(index), "labels": labels} for index, labels in enumerate(self.labels)]


def test_shards_differ_by_one_clip_at_most_and_each_has_its_share_of_every_class():
    labels = [["common"]] * 61 + [["rare"]] * 8 + [["rare", "common"]] * 5 + [None] * 9 + [[]] * 4
    for num_shards in (1, 4, 7):
        dealt = deal(ListedRows(labels), num_shards)
        assert sorted(np.concatenate(dealt).tolist()) == list(range(87))
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
        for kind in (["common"], ["rare"], ["rare", "common"]):
            counts = [sum(labels[index] == kind for index in shard) for shard in dealt]
            assert max(counts) - min(counts) <= 1, kind
    assert all(dealt[0].tolist() != sorted(shard.tolist()) for shard in dealt)


def test_real_shards_are_mixed_too(prepared):
    sizes = []
    for path in shards_of(prepared):
        counts = Counter(clip["labels"][0] for clip in ShardRows([path]).without_audio())
        sizes.append(sum(counts.values()))
        for label, count in CLASSES.items():
            assert abs(counts[label] - count / 5) < 1
    assert sorted(sizes) == [8, 8, 9, 9, 9]


def test_rows_that_lie_together_stay_together():
    sizes = [5, 3, 6, 2, 7, 5]
    dealt = deal(ListedRows([["a"]] * 28, sizes), 3)
    order = np.concatenate(dealt).tolist()
    assert [len(shard) for shard in dealt] == [10, 9, 9] and sorted(order) == list(range(28)) and order != sorted(order)
    group_of = np.repeat(np.arange(6), sizes)[order]
    assert np.count_nonzero(np.diff(group_of)) == 5  # each group is walked through once


def test_groups_of_a_corpus_in_shards_are_read_once_or_twice(prepared, tmp_path, monkeypatch):
    read = Counter()
    really_read = prepare.ShardRows._read_from_open_file
    monkeypatch.setattr(
        prepare.ShardRows,
        "_read_from_open_file",
        lambda self, group: (read.update([group]), really_read(self, group))[1],
    )
    options = {"streaming": True, "cached_groups": 1}
    prepare_corpus("audioset", prepared, tmp_path / "out", ["train"], RATE, clips_per_shard=20, options=options)
    assert len(read) == 5 and sum(read.values()) <= 5 + 2  # three shards have two borders
    assert clips_of(ShardRows(shards_of(tmp_path / "out"))) == clips_of(ShardRows(shards_of(prepared)))


def test_row_groups_are_small_enough_for_streaming(corpus, tmp_path):
    prepare_corpus("folders", corpus, tmp_path / "out", ["train"], RATE)
    (path,) = shards_of(tmp_path / "out")
    assert list(ShardRows([path]).group_sizes) == [32, 11]


# ── the same bytes ────────────────────────────────────────────────────────────────────────────────────────────────────


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def arguments_for(corpus, output, *more):
    few = ["folders", corpus, output, "--split", "train", "validation", "--rate", RATE, "--clips-per-shard", 10]
    return [*few, *more]


def test_two_processes_write_what_one_writes(corpus, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "CLIPS_PER_JOB", 1)
    prepare_corpus("folders", corpus, tmp_path / "out", ["train", "validation"], RATE, clips_per_shard=10, jobs=2)
    assert files_in(tmp_path / "out") == files_in(prepared)


# Run as a file, which the processes that it starts import as well, so that they are slow, too.
SLOWLY = """
import os, sys, time
from modeling_htsat import cli
from modeling_htsat.training import prepare
quickly = prepare.encode_flac
def encode_flac(*arguments):
    time.sleep(0.05)
    return quickly(*arguments)
prepare.encode_flac, prepare.CLIPS_PER_JOB = encode_flac, 1
if __name__ == "__main__":
    sys.exit(cli.main(["prepare", *sys.argv[1:]]))
"""


@pytest.fixture
def start_slowly(corpus, tmp_path):
    """`start_slowly(output, jobs)`: the command, when it has finished some shards and is at another."""
    started = []

    def start(output, jobs):
        (tmp_path / "slowly.py").write_text(SLOWLY)
        order = ["folders", corpus, output, "--split", "train", "validation", "--rate", RATE, "--clips-per-shard", 10]
        line = [sys.executable, tmp_path / "slowly.py", *order, "--jobs", jobs]
        started.append(subprocess.Popen(list(map(str, line)), env=environment(), stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + 120
        while not list(output.glob(".unfinished/data/*")) or not list(output.glob(".unfinished/*.tmp")):
            assert started[-1].poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def children_of(process):
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        return [int(child) for child in file.read().split()]


def is_running(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux lists the processes of a process")
def test_a_run_that_is_killed_goes_on_and_ends_with_the_same_bytes(
    start_slowly, corpus, prepared, tmp_path, monkeypatch
):
    output = tmp_path / "out"
    process = start_slowly(output, jobs=2)
    helpers = children_of(process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(map(is_running, helpers)):  # nobody is left who would wait for work for ever
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(helpers) >= 2
    # Nothing half-written looks whole.
    assert [path.name for path in output.iterdir()] == [".unfinished"]
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_corpus("audioset", output, "train")
    there = {path.name: path.stat().st_mtime_ns for path in output.glob(".unfinished/data/*")}
    assert 1 <= len(there) < 6 and not set(there) - {path.name for path in prepared.glob("data/*")}

    with pytest.raises(ValueError, match=r"unfinished work of another command, whose clips_per_shard was 10, not 11"):
        prepare_corpus("folders", corpus, output, ["train", "validation"], RATE, clips_per_shard=11)
    encoded = []
    really_encode = prepare.encode_flac
    monkeypatch.setattr(prepare, "encode_flac", lambda *given: (encoded.append(1), really_encode(*given))[1])
    prepare_corpus("folders", corpus, output, ["train", "validation"], RATE, clips_per_shard=10)
    assert files_in(output) == files_in(prepared)
    assert {path.name: path.stat().st_mtime_ns for path in output.glob("data/*") if path.name in there} == there
    assert len(encoded) == 48 - sum(len(ShardRows([output / "data" / name])) for name in there)


def test_ctrl_c_says_how_to_go_on(corpus, tmp_path, monkeypatch):
    interrupt_after(25, corpus, tmp_path / "out", monkeypatch)
    said = f"2 of 5 shards are finished in {tmp_path / 'out'}; the same command goes on from there"
    with pytest.raises(KeyboardInterrupt, match=said), monkeypatch.context() as patch:
        patch.setattr(prepare, "load_audio", lambda *given: signal.raise_signal(signal.SIGINT))
        prepare_corpus("folders", corpus, tmp_path / "out", ["train"], RATE, clips_per_shard=10)
    assert not list(tmp_path.glob("out/.unfinished/*.tmp"))


def test_a_run_that_is_killed_at_its_very_end_is_whole(corpus, prepared, tmp_path, monkeypatch):
    def give_up(path, *_, **__):
        raise KeyboardInterrupt

    for name, owner in (("_write_description", prepare), ("rename", Path), ("rmtree", prepare.shutil)):
        output = tmp_path / name
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, name, give_up)
            prepare_corpus("folders", corpus, output, ["train", "validation"], RATE, clips_per_shard=10)
        assert (output / "data").exists() == (name == "rmtree")
        prepare_corpus("folders", corpus, output, ["train", "validation"], RATE, clips_per_shard=10)
        assert files_in(output) == files_in(prepared)


def test_the_same_command_again_changes_nothing_and_another_one_is_refused(corpus, tmp_path):
    output = tmp_path / "out"
    info = prepare_corpus("folders", corpus, output, ["validation"], RATE)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert prepare_corpus("folders", corpus, output, ["validation"], RATE, jobs=3, max_bad_share=0.5) == info
    with pytest.raises(FileExistsError, match="holds the data of another command; name another folder"):
        prepare_corpus("folders", corpus, output, ["validation"], 2 * RATE)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def interrupt_after(num_clips, corpus, output, monkeypatch):
    calls, really_encode = iter(range(num_clips)), prepare.encode_flac

    def encode_or_stop(*given):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return really_encode(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="of 5 shards are finished"):
        patch.setattr(prepare, "encode_flac", encode_or_stop)
        prepare_corpus("folders", corpus, output, ["train"], RATE, clips_per_shard=10)


def test_a_corpus_that_has_changed_in_between_is_noticed(tmp_path, monkeypatch, corpus):
    shutil.copytree(corpus, tmp_path / "in")
    interrupt_after(15, tmp_path / "in", tmp_path / "out", monkeypatch)
    (tmp_path / "in" / "train" / "rain" / "0.wav").rename(tmp_path / "in" / "train" / "bark" / "other.wav")
    with pytest.raises(ValueError, match=r"The clips of .*in or their labels have changed since"):
        prepare_corpus("folders", tmp_path / "in", tmp_path / "out", ["train"], RATE, clips_per_shard=10)


def test_a_finished_shard_that_was_damaged_is_written_anew(corpus, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    prepare_corpus("folders", corpus, whole, ["train"], RATE, clips_per_shard=10)
    interrupt_after(15, corpus, tmp_path / "out", monkeypatch)
    (shard,) = (tmp_path / "out").glob(".unfinished/data/*")
    shard.write_bytes(shard.read_bytes()[:-50])
    prepare_corpus("folders", corpus, tmp_path / "out", ["train"], RATE, clips_per_shard=10)
    assert files_in(tmp_path / "out") == files_in(whole)


def test_two_commands_do_not_work_in_one_folder(corpus, tmp_path, monkeypatch):
    said = []

    def prepare_too() -> None:
        prepare_corpus("folders", corpus, tmp_path / "out", ["train"], RATE)

    def try_too(*arguments):
        if not said:
            said.append(in_a_child(prepare_too).said)
        return encode_flac(*arguments)

    monkeypatch.setattr(prepare, "encode_flac", try_too)
    prepare_too()
    assert f"Another `htsat prepare` is at work in {tmp_path / 'out'}; wait for it, or stop it." in said[0]


@pytest.mark.parametrize("name", [".unfinished", ".unfinished/data"])
def test_nothing_is_written_where_a_link_leads(corpus, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious.tmp").write_text("keep this")
    link = tmp_path / "out" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"{name} is a link, and shards would lie where it leads; remove it first"):
        prepare_corpus("folders", corpus, tmp_path / "out", ["train"], RATE)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["precious.tmp"]


# ── what goes wrong ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def damaged(corpus, tmp_path):
    """The corpus, in which two sounds of 43 are none."""
    shutil.copytree(corpus, tmp_path / "damaged")
    (tmp_path / "damaged" / "train" / "bark" / "3.wav").write_bytes(b"RIFF, and no more")
    (tmp_path / "damaged" / "train" / "rain" / "1.wav").write_bytes(b"")
    return tmp_path / "damaged"


def test_what_cannot_be_decoded_is_left_out_counted_and_named(damaged, tmp_path, caplog):
    info = prepare_corpus("folders", damaged, tmp_path / "out", ["train"], RATE, clips_per_shard=10)
    named = {clip["video_id"].removeprefix("train/") for clip in info["skipped"]}
    assert named == {"bark/3.wav", "rain/1.wav"}
    assert info["splits"]["train"]["num_clips"] == 41
    lines = (tmp_path / "out" / "skipped.tsv").read_text().splitlines()
    assert len(lines) == 3 and lines[0] == "split\tvideo_id\treason"
    assert "is left out" in caplog.text and caplog.text.count("3.wav") >= 1
    assert not [name for name, content in files_in(tmp_path / "out").items() if str(damaged).encode() in content]


def test_clips_left_out_before_an_interruption_are_still_named_after_it(damaged, tmp_path, monkeypatch):
    prepare_corpus("folders", damaged, tmp_path / "whole", ["train"], RATE, clips_per_shard=10)
    for number in (9, 18, 27):  # whichever shards the two are in
        interrupt_after(number, damaged, tmp_path / str(number), monkeypatch)
        prepare_corpus("folders", damaged, tmp_path / str(number), ["train"], RATE, clips_per_shard=10)
        assert files_in(tmp_path / str(number)) == files_in(tmp_path / "whole")


def test_too_many_that_cannot_be_decoded_stop_the_run_until_one_allows_more(damaged, tmp_path):
    order = ("folders", damaged, tmp_path / "out", ["train"], RATE, 10)
    with pytest.raises(ValueError, match=r"^\d of 43 clips cannot be decoded, more than the share of 0.02 .*--max-bad"):
        prepare_corpus(*order, max_bad_share=0.02)
    assert prepare_corpus(*order, max_bad_share=0.05)["splits"]["train"]["num_clips"] == 41


def test_a_corpus_of_which_nothing_can_be_decoded_is_refused(tmp_path):
    (tmp_path / "in" / "train" / "noise").mkdir(parents=True)
    (tmp_path / "in" / "train" / "noise" / "a.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match="1 of 1 clips cannot be decoded"):
        prepare_corpus("folders", tmp_path / "in", tmp_path / "out", ["train"], RATE, max_bad_share=1)


def test_a_full_disk_is_one_sentence_and_finished_shards_stay(corpus, prepared, tmp_path):
    """A limit on the size of files fails like a full disk: in the middle of writing."""
    output, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = sorted(path.stat().st_size for path in shards_of(prepared))
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[-1] - 1, limits[1]))
    try:
        with pytest.raises(OSError, match=r"^train-\d+-of-00005\.parquet cannot be written to .*make room there"):
            prepare_corpus("folders", corpus, output, ["train", "validation"], RATE, clips_per_shard=10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(output.glob(".unfinished/*.tmp"))
    prepare_corpus("folders", corpus, output, ["train", "validation"], RATE, clips_per_shard=10)
    assert files_in(output) == files_in(prepared)


def test_an_order_that_cannot_work_leaves_nothing_behind(corpus, tmp_path):
    for changes, sentence in (
        ({"kind": "fold"}, "no kind of corpus 'fold'"),
        ({"location": tmp_path / "absent"}, "absent does not exist"),
        ({"splits": ["validation", "validation"]}, "each once"),
        ({"splits": []}, "The splits are none"),
        ({"sampling_rate": 10}, "The rate is 10 Hz"),
        ({"clips_per_shard": 0}, "clips_per_shard is 0"),
        ({"jobs": 0}, "jobs is 0"),
        ({"max_bad_share": 1.5}, "max_bad_share is 1.5"),
        ({"options": {"fold": 1}}, "has no option 'fold'"),
    ):
        order = {"kind": "folders", "location": corpus, "output": tmp_path / "out", **changes}
        with pytest.raises(ValueError, match=sentence):
            prepare_corpus(**order)
        assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(corpus, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    (tmp_path / "data" / "data").mkdir(parents=True)
    for output in (tmp_path / "full", tmp_path / "full" / "thesis.txt", tmp_path / "data"):
        with pytest.raises(FileExistsError, match="remove it first"):
            prepare_corpus("folders", corpus, output, ["train"], RATE)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["data", "data", "full", "thesis.txt"]


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────────


def run_command(*arguments):
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    return prepare.run(parser.parse_args([str(argument) for argument in arguments]))


def test_the_command_takes_options_of_the_corpus_and_the_rate_of_a_model(corpus, tmp_path, capsys):
    HTSATFeatureExtractor(sampling_rate=16_000, hop_length=160).save_pretrained(tmp_path / "model")
    inside = corpus / "train"  # without splits of its own, so that shares are held out
    options = ["--option", "validation_share=0.3", "--option", "test_share=0.0"]
    more = ["--split", "train", "validation", "--jobs", 1]
    assert run_command("folders", inside, tmp_path / "out", "--model", tmp_path / "model", *options, *more) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'out'}: 30 clips for train, 13 clips for validation, at 16000 Hz\n"
    assert said.err == ""  # no progress bar where nobody watches
    assert soundfile.info(first_sound(tmp_path)).samplerate == 16_000


def test_by_default_all_splits_that_there_are_become_shards(corpus, tmp_path, capsys, caplog):
    assert run_command("folders", corpus, tmp_path / "out", "--rate", RATE, "--jobs", 1) == 0
    said = capsys.readouterr().out
    assert said == f"{tmp_path / 'out'}: 43 clips for train, 5 clips for validation, at {RATE} Hz\n"
    assert re.search(r"Without test: .*: This corpus has no clips for test", caplog.text)
    with pytest.raises(ValueError, match="absent does not exist"):
        run_command("folders", tmp_path / "absent", tmp_path / "other")


def first_sound(folder):
    (folder / "first.flac").write_bytes(ShardRows(shards_of(folder / "out"))[0]["audio"]["bytes"])
    return folder / "first.flac"


def test_a_model_without_a_front_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no preprocessor_config.json"):
        prepare.rate_of_model(tmp_path)


def test_shards_say_in_their_footer_what_they_left_out(prepared):
    for path in shards_of(prepared):
        assert pyarrow.parquet.read_metadata(path).metadata[b"htsat_skipped"] == b"[]"
