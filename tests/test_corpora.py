"""Every kind of corpus, on tiny ones made here; nothing is decoded, so most files are empty."""

import importlib
import json
import os
import pickle
import re
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from modeling_htsat.labels import audioset_labels
from modeling_htsat.soundscapes.data_set import SoundscapeSettings
from modeling_htsat.soundscapes.data_set import write_soundscapes as write_real_soundscapes
from modeling_htsat.training.clips import (
    CLIP_FEATURES,
    SPLITS,
    DatasetRows,
    SubsetRows,
    make_clip,
    rows_in_memory,
    split_by_name,
)
from modeling_htsat.training.corpora import CORPORA, corpus_options, load_corpus
from modeling_htsat.training.corpora.audioset import PACKS

DOG, SPEECH = "/m/0bt9lr", "/m/09x0r"


@pytest.fixture(autouse=True)
def no_cache_outside(monkeypatch, tmp_path_factory):
    """What `datasets` caches goes where the test's other files go."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def names_of(corpus):
    return [row["video_id"] for row in corpus.rows.without_audio()]


def labels_of(corpus):
    return {row["video_id"]: row["human_labels"] for row in corpus.rows.without_audio()}


def events_of(corpus):
    return {row["video_id"]: row["events"] for row in corpus.rows.without_audio()}


def all_splits(kind, location, **options):
    return {split: load_corpus(kind, location, split, **options) for split in SPLITS}


def assert_splits_are_disjoint_and_cover(corpora, names):
    found = [name for corpus in corpora.values() for name in names_of(corpus)]
    assert sorted(found) == sorted(names)
    assert len({corpus.label_names for corpus in corpora.values()}) == 1


# ── clips ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def three_clips():
    return [
        make_clip("a", "a.wav", ["/m/1"], ["One"]),
        make_clip("b", "b.wav", events=[(0, 0.5, "One")]),
        make_clip("c", "c.wav", [], events=[]),
    ]


def test_rows_give_back_the_clips_they_were_made_of_and_keep_unknown_apart_from_none():
    rows = rows_in_memory(three_clips())
    assert [rows[index] for index in range(len(rows))] == three_clips()
    assert rows[0]["audio"] == {"bytes": None, "path": os.path.abspath("a.wav")}
    assert rows[0]["events"] is None and rows[1]["labels"] is None
    assert rows[2]["events"] == [] == rows[2]["labels"]


def test_rows_without_audio_are_the_rows_but_for_their_audio():
    rows = rows_in_memory(three_clips())
    assert rows.without_audio() == [{k: v for k, v in clip.items() if k != "audio"} for clip in three_clips()]


@pytest.mark.parametrize("make", [rows_in_memory, lambda clips: SubsetRows(rows_in_memory(clips), range(3))])
def test_rows_are_the_same_after_pickling(make):
    rows = make(three_clips())
    copy = pickle.loads(pickle.dumps(rows))
    assert len(copy) == 3 and copy[1] == rows[1] and copy.without_audio() == rows.without_audio()


def test_rows_in_memory_write_no_file():
    rows_in_memory(three_clips())
    assert not any(datasets.config.HF_DATASETS_CACHE.iterdir())


def test_rows_of_a_data_set_leave_out_strange_columns_and_know_nothing_of_missing_ones():
    data = datasets.Dataset.from_dict({"video_id": ["a"], "audio": [{"bytes": b"x", "path": "p"}], "mood": [1]})
    row = DatasetRows(data)[0]
    assert row == {**dict.fromkeys(CLIP_FEATURES), "video_id": "a", "audio": {"bytes": b"x", "path": "p"}}


def test_a_data_set_without_the_needed_columns_is_refused():
    with pytest.raises(ValueError, match="lacks audio; it has video_id"):
        DatasetRows(datasets.Dataset.from_dict({"video_id": ["a"]}))


def test_a_subset_has_its_own_order_and_keeps_groups_only_while_they_lie_together():
    rows = rows_in_memory(three_clips())
    subset = SubsetRows(rows, [2, 0])
    assert [subset[0]["video_id"], subset[1]["video_id"]] == ["c", "a"] == names_of_rows(subset)
    rows.group_sizes = [2, 1]
    assert SubsetRows(rows, [0, 2]).group_sizes == [1, 1]
    assert SubsetRows(rows, [0, 1]).group_sizes == [2]
    assert SubsetRows(rows, [2, 0]).group_sizes is None


def names_of_rows(rows):
    return [row["video_id"] for row in rows.without_audio()]


def test_without_datasets_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delitem(sys.modules, "modeling_htsat.training.clips")
    with pytest.raises(ImportError, match=r'needs the package datasets: `pip install "modeling-htsat\[train\]"`.'):
        importlib.import_module("modeling_htsat.training.clips")


# ── splits by name ────────────────────────────────────────────────────────────────────────────────────────────────────

SHARES = {"validation": 0.1, "test": 0.2}


def divided(names, **options):
    shares = options.pop("shares", SHARES)
    return {split: {names[i] for i in split_by_name(names, split, shares, **options)} for split in SPLITS}


def clip_names(count):
    return [f"clip{index}.wav" for index in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 40])
def test_splits_are_disjoint_cover_all_and_each_class_has_some_of_each_if_it_can(count):
    names = [f"{label}-{name}" for label in "xy" for name in clip_names(count)]
    parts = divided(names, classes=[name[0] for name in names])
    assert sorted(name for part in parts.values() for name in part) == sorted(names)
    for label in "xy":
        sizes = {split: sum(name[0] == label for name in part) for split, part in parts.items()}
        held_out = (max(1, round(0.1 * count)), max(1, round(0.2 * count))) if count > 2 else (0, 0)
        assert (sizes["validation"], sizes["test"]) == held_out
        assert sizes["train"] >= 1


def test_the_order_of_names_does_not_matter_and_the_seed_does():
    names = clip_names(40)
    assert divided(names) == divided(names[::-1]) != divided(names, seed=1)
    assert split_by_name(names, "validation", SHARES) == sorted(split_by_name(names, "validation", SHARES))


def test_what_is_from_one_recording_stays_together():
    names = clip_names(60)
    group_of = {name: f"recording {index // 5}" for index, name in enumerate(names)}
    parts = divided(names, groups=[group_of[name] for name in names])
    groups = [group_of[name] for part in parts.values() for name in {group_of[name]: name for name in part}.values()]
    assert len(groups) == len(set(groups)) == 12


def test_a_new_clip_moves_one_other_at_most_across_each_border():
    names = clip_names(80)
    before, after = divided(names[:-1]), divided(names)
    assert len(before["test"] ^ after["test"]) <= 2
    assert len((before["validation"] | before["test"]) ^ (after["validation"] | after["test"])) <= 2


def test_other_shares_for_validation_do_not_touch_the_test_clips():
    names = clip_names(50)
    assert divided(names)["test"] == divided(names, shares={"validation": 0.4, "test": 0.2})["test"]


@pytest.mark.parametrize(
    "split, shares, message",
    [
        ("dev", {}, "no split 'dev'; there are train, validation, test"),
        ("test", {"test": 1.0}, "share of test is 1.0; .* from 0 to below 1"),
        ("test", {"train": 0.5}, "share of train is 0.5"),
        ("test", {"validation": 0.5, "test": 0.5}, "leave nothing to train on"),
    ],
)
def test_impossible_shares_are_refused(split, shares, message):
    with pytest.raises(ValueError, match=message):
        split_by_name(["a"], split, shares)


# ── choosing a corpus ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "kind, split, options, message",
    [
        ("esc-50", "train", {}, "no kind of corpus 'esc-50'; did you mean 'esc50'?"),
        ("birds", "train", {}, "no kind of corpus 'birds'; there are audioset, "),
        ("esc50", "valid", {}, "no split 'valid'; did you mean 'validation'?"),
        ("esc50", "train", {"folds": 1}, "esc50 has no option 'folds'; did you mean 'fold'?"),
        ("speech_commands", "train", {"fold": 1}, "has no option 'fold'; there are none."),
    ],
)
def test_a_misspelt_kind_split_or_option_is_answered_with_the_nearest(kind, split, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_corpus(kind, "anywhere", split, **options)


@pytest.mark.parametrize("kind", sorted(CORPORA))
def test_every_kind_says_which_location_is_missing(kind, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        load_corpus(kind, tmp_path / "nowhere", "train")


def test_every_option_of_every_kind_is_documented():
    for kind, load in CORPORA.items():
        for name in load.__kwdefaults__ or ():
            assert re.search(rf"^ +{name}: ", load.__doc__, re.MULTILINE), f"{kind}: {name}"


# ── ESC-50 ────────────────────────────────────────────────────────────────────────────────────────────────────────────

ESC50_HEADER = "filename,fold,target,category,esc10,src_file,take"


@pytest.fixture
def esc50(tmp_path):
    """Five folds of two classes, whose numbers are in another order than their names, with up to three takes."""
    rows = []
    for fold in range(1, 6):
        for target, category in ((0, "zebra"), (3, "ant")):
            for recording in range(6):
                source = f"{fold}{target}{recording}"
                for take in "ABC"[: 1 + recording % 3]:
                    name = f"{fold}-{source}-{take}-{target}.wav"
                    rows.append(f"{name},{fold},{target},{category},False,{source},{take}")
                    touch(tmp_path, f"audio/{name}")
    write(tmp_path / "meta" / "esc50.csv", ESC50_HEADER, *rows)
    return tmp_path


@pytest.mark.parametrize("fold", [1, 4])
def test_esc50_tests_on_one_fold_and_validates_on_recordings_of_the_others(esc50, fold):
    corpora = all_splits("esc50", esc50, fold=fold)
    assert_splits_are_disjoint_and_cover(corpora, os.listdir(esc50 / "audio"))
    assert {name[0] for name in names_of(corpora["test"])} == {str(fold)}
    assert str(fold) not in {name[0] for split in ("train", "validation") for name in names_of(corpora[split])}
    sources = {split: {name.split("-")[1] for name in names_of(corpus)} for split, corpus in corpora.items()}
    assert not sources["train"] & sources["validation"]
    assert Counter(source[1] for source in sources["validation"]) == {"0": 2, "3": 2}  # a tenth of 24 of each class


def test_esc50_has_its_classes_in_the_order_of_their_numbers_and_absolute_paths(esc50, monkeypatch):
    monkeypatch.chdir(esc50.parent)
    corpus = load_corpus("esc50", esc50.name, "test")
    assert corpus.label_names == ("zebra", "ant")
    name = names_of(corpus)[0]
    assert corpus.rows[0]["audio"] == {"bytes": None, "path": str(esc50 / "audio" / name)}
    assert corpus.rows[0]["labels"] == corpus.rows[0]["human_labels"] == ["zebra"]


def test_esc50_holds_out_the_same_recordings_every_time_and_others_for_another_seed(esc50):
    first, second, other = (load_corpus("esc50", esc50, "validation", split_seed=seed) for seed in (0, 0, 1))
    assert names_of(first) == names_of(second) != names_of(other)


@pytest.mark.parametrize("fold", [0, 6, "one"])
def test_esc50_refuses_a_fold_that_there_is_not(esc50, fold):
    with pytest.raises(ValueError, match=f"fold is {fold!r}; it must be a number from 1 to 5"):
        load_corpus("esc50", esc50, "train", fold=fold)


def test_esc50_says_which_column_or_sound_is_missing(esc50):
    name = sorted(os.listdir(esc50 / "audio"))[0]
    (esc50 / "audio" / name).unlink()
    with pytest.raises(ValueError, match=f"1 of the 120 sounds .* {name}; put them there, or say skip_missing=True"):
        load_corpus("esc50", esc50, "train")
    assert name not in names_of(load_corpus("esc50", esc50, "test", skip_missing=True))
    write(esc50 / "meta" / "esc50.csv", "filename,fold,target,category", "a.wav,1,0,dog")
    with pytest.raises(ValueError, match="lacks the column src_file; its header reads filename, fold"):
        load_corpus("esc50", esc50, "train")


def test_validation_without_a_share_is_refused_with_the_remedy(esc50):
    with pytest.raises(ValueError, match="no clips for validation, only for train, test; .* validation_share"):
        load_corpus("esc50", esc50, "validation", validation_share=0)
    assert len(load_corpus("esc50", esc50, "train", validation_share=0).rows) == 96


# ── Speech Commands ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def speech_commands(tmp_path):
    touch(tmp_path, *(f"{word}/{speaker}_nohash_0.wav" for word in ("yes", "no") for speaker in "abcd"))
    touch(tmp_path, "_background_noise_/hum.wav")
    write(tmp_path / "validation_list.txt", "yes/a_nohash_0.wav")
    write(tmp_path / "testing_list.txt", "yes/b_nohash_0.wav", "no/b_nohash_0.wav")
    return tmp_path


def test_speech_commands_follows_its_lists_and_leaves_out_the_noise(speech_commands):
    corpora = all_splits("speech_commands", speech_commands)
    assert_splits_are_disjoint_and_cover(corpora, [f"{w}/{s}_nohash_0.wav" for w in ("yes", "no") for s in "abcd"])
    assert labels_of(corpora["validation"]) == {"yes/a_nohash_0.wav": ["yes"]}
    assert labels_of(corpora["test"]) == {"no/b_nohash_0.wav": ["no"], "yes/b_nohash_0.wav": ["yes"]}
    assert corpora["train"].label_names == ("no", "yes")


def test_speech_commands_refuses_a_listed_recording_that_is_absent_and_an_empty_word(speech_commands):
    (speech_commands / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is a folder without audio"):
        load_corpus("speech_commands", speech_commands, "train")
    (speech_commands / "empty").rmdir()
    write(speech_commands / "testing_list.txt", "yes/z.wav", "yes/b_nohash_0.wav")
    with pytest.raises(ValueError, match="1 of the 2 sounds that .*testing_list.txt lists are not in .*: yes/z.wav"):
        load_corpus("speech_commands", speech_commands, "train")
    (speech_commands / "validation_list.txt").unlink()
    with pytest.raises(ValueError, match="lacks validation_list.txt"):
        load_corpus("speech_commands", speech_commands, "train")


# ── DESED ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

DESED_CLASSES = (
    "Speech",
    "Frying",
    "Dishes",
    "Running_water",
    "Blender",
    "Electric_shaver_toothbrush",
    "Alarm_bell_ringing",
    "Cat",
    "Dog",
    "Vacuum_cleaner",
)
EVENT_HEADER = "filename\tonset\toffset\tevent_label"


@pytest.fixture
def desed(tmp_path):
    metadata, audio = tmp_path / "dataset" / "metadata", tmp_path / "dataset" / "audio"
    write(metadata / "train" / "weak.tsv", "filename\tevent_labels", "Y1.wav\tSpeech,Cat,Speech", "Y2.wav\tDog")
    write(
        metadata / "train" / "synthetic21_train" / "soundscapes.tsv",
        EVENT_HEADER,
        "0.wav\t1.5\t2.25\tDog",
        "0.wav\t0\t1\tCat",
        "Y1.wav\t0\t1\tCat",
    )
    write(metadata / "validation" / "validation.tsv", EVENT_HEADER, "V.wav\t0\t10\tSpeech", "quiet.wav\t\t\t")
    write(metadata / "eval" / "public.tsv", EVENT_HEADER, "E.wav\t0.1\t0.2\tBlender")
    touch(audio, "train/weak/Y1.wav", "train/weak/Y2.wav", "train/synthetic21_train/soundscapes_16k/0.wav")
    touch(audio, "train/synthetic21_train/soundscapes_16k/Y1.wav")
    touch(audio, "validation/V.wav", "validation/quiet.wav", "eval/public/E.wav")
    return tmp_path


def test_desed_reads_weak_and_synthetic_clips_from_its_real_layout(desed):
    corpus = load_corpus("desed", desed, "train")
    assert corpus.label_names == DESED_CLASSES
    assert labels_of(corpus) == {
        "weak/Y1.wav": ["Cat", "Speech"],
        "weak/Y2.wav": ["Dog"],
        "synthetic/0.wav": ["Cat", "Dog"],
        "synthetic/Y1.wav": ["Cat"],
    }
    events = events_of(corpus)
    assert events["weak/Y1.wav"] is None
    assert events["synthetic/0.wav"][0] == {"onset": 1.5, "offset": 2.25, "event_label": "Dog"}
    assert corpus.rows[3]["audio"]["path"].endswith("train/synthetic21_train/soundscapes_16k/Y1.wav")


def test_desed_parts_can_be_chosen_and_a_single_one_keeps_its_file_names(desed):
    assert names_of(load_corpus("desed", desed / "dataset", "train", parts=["weak"])) == ["Y1.wav", "Y2.wav"]
    assert names_of(load_corpus("desed", desed, "train", parts="synthetic")) == ["0.wav", "Y1.wav"]
    with pytest.raises(ValueError, match="no part 'synthetics' for train; did you mean 'synthetic'?"):
        load_corpus("desed", desed, "train", parts="synthetics")
    with pytest.raises(ValueError, match="lacks train/audioset_strong.tsv"):
        load_corpus("desed", desed, "train", parts="strong")


def test_desed_validates_and_tests_on_strong_labels_where_silence_is_known(desed):
    validation, test = (load_corpus("desed", desed, split) for split in ("validation", "test"))
    assert events_of(validation)["quiet.wav"] == [] == labels_of(validation)["quiet.wav"]
    assert events_of(test) == {"E.wav": [{"onset": 0.1, "offset": 0.2, "event_label": "Blender"}]}


def test_desed_without_some_clips_is_refused_or_goes_on_when_told_to(desed):
    (desed / "dataset" / "audio" / "train" / "weak" / "Y2.wav").unlink()
    with pytest.raises(ValueError, match="1 of the 2 sounds .* Y2.wav; put them there, or say skip_missing=True"):
        load_corpus("desed", desed, "train")
    assert names_of(load_corpus("desed", desed, "train", parts="weak", skip_missing=True)) == ["Y1.wav"]


def test_a_label_that_is_no_class_of_the_corpus_is_named_with_its_clip(desed):
    write(desed / "dataset" / "metadata" / "eval" / "public.tsv", EVENT_HEADER, "E.wav\t0\t1\tblender")
    with pytest.raises(ValueError, match="'E.wav' has the label 'blender', .*; did you mean 'Blender'?"):
        load_corpus("desed", desed, "test")


# ── AudioSet's strong labels ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def audioset_strong(tmp_path):
    header = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel"
    train = [f"video_{number}_{number}000\t0.5\t{number + 1}\t/m/dog" for number in range(20)]
    write(tmp_path / "audioset_train_strong.tsv", header, *train, "video_3_3000\t0.0\t10.0\t/m/bird")
    write(tmp_path / "audioset_eval_strong.tsv", header, "-x_Y_0\t0.0\t1.25\t/m/bird")
    write(tmp_path / "mid_to_display_name.tsv", "/m/dog\tDog", "/m/bird\tBird, small", "/m/fowl\tDog")
    touch(tmp_path, "audio/a/video_3_3000.flac", "audio/b/-x_Y.wav", "audio/video_0.wav")
    touch(tmp_path, *(f"audio/Yvideo_{number}.wav" for number in (1, 2, *range(4, 20))))
    return tmp_path


def test_audioset_strong_finds_segments_however_their_files_are_called(audioset_strong):
    corpus = load_corpus("audioset_strong", audioset_strong, "train")
    assert corpus.label_names == ("Dog", "Bird, small", "Dog (/m/fowl)")
    row = next(corpus.rows[index] for index in range(20) if corpus.rows[index]["video_id"] == "video_3_3000")
    assert row["audio"]["path"].endswith("a/video_3_3000.flac")
    assert row["labels"] == ["/m/bird", "/m/dog"] and row["human_labels"] == ["Bird, small", "Dog"]
    assert row["events"][1] == {"onset": 0.0, "offset": 10.0, "event_label": "Bird, small"}
    assert names_of(load_corpus("audioset_strong", audioset_strong, "test")) == ["-x_Y_0"]


def test_audioset_strong_holds_out_validation_clips_when_told_to(audioset_strong):
    corpora = all_splits("audioset_strong", audioset_strong, validation_share=0.2)
    names = [f"video_{number}_{number}000" for number in range(20)]
    assert_splits_are_disjoint_and_cover(corpora, [*names, "-x_Y_0"])
    assert len(corpora["validation"].rows) in (4, 5)
    with pytest.raises(ValueError, match="validation_share"):
        load_corpus("audioset_strong", audioset_strong, "validation")


@pytest.mark.parametrize("times", ["nan\t1", "0\tinf", "2\t1", "-1\t1"])
def test_audioset_strong_refuses_times_that_are_none(times, audioset_strong):
    table = audioset_strong / "audioset_train_strong.tsv"
    header, first, *_ = table.read_text().splitlines()
    segment, _, _, mid = first.split("\t")
    write(table, header, f"{segment}\t{times}\t{mid}")
    with pytest.raises(ValueError, match="row 2: .* must be seconds, the end not before the beginning"):
        load_corpus("audioset_strong", audioset_strong, "train")


@pytest.mark.parametrize(
    ("kind", "name"), [("audioset_strong", "mid_to_display_name.tsv"), ("speech_commands", "testing_list.txt")]
)
def test_lists_that_are_no_text_are_refused_by_their_names(kind, name, request):
    folder = request.getfixturevalue(kind)
    (folder / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=f"{name} is not UTF-8 text"):
        load_corpus(kind, folder, "train")


def test_a_listed_name_that_no_disk_can_have_is_a_missing_file(tmp_path):
    table = write(tmp_path / "table.csv", "filename,label", "a.wav,dog", f"{'x' * 300}.wav,dog")
    touch(tmp_path, "a.wav")
    with pytest.raises(ValueError, match="1 of the 2 sounds that .*table.csv lists are not in"):
        load_corpus("table", table, "train")


def test_a_sentence_about_a_clip_names_the_corpus_too(tmp_path):
    table = write(tmp_path / "table.csv", "filename,label", "a.wav,dog", "a.wav,cat")
    touch(tmp_path, "a.wav")
    with pytest.raises(ValueError, match=r"table\.csv: 1 clips are listed more than once, 'a\.wav'"):
        load_corpus("table", table, "train")


def test_audioset_strong_refuses_unknown_mids_bad_times_and_missing_clips(audioset_strong):
    (audioset_strong / "audio" / "Yvideo_7.wav").unlink()
    with pytest.raises(ValueError, match="1 of the 20 sounds .* video_7_7000"):
        load_corpus("audioset_strong", audioset_strong, "train")
    assert len(load_corpus("audioset_strong", audioset_strong, "train", skip_missing=True).rows) == 19
    table = audioset_strong / "audioset_eval_strong.tsv"
    header = table.read_text().splitlines()[0]
    write(table, header, "-x_Y_0\t0\tend\t/m/dog")
    with pytest.raises(ValueError, match="row 2: '0' and 'end' must be seconds"):
        load_corpus("audioset_strong", audioset_strong, "test")
    write(table, header, "-x_Y_0\t0\t1\t/m/frog")
    with pytest.raises(ValueError, match="row 2: the label '/m/frog' is not in mid_to_display_name.tsv"):
        load_corpus("audioset_strong", audioset_strong, "test")


# ── soundscapes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def write_soundscapes(folder, split_name, num_clips=2, **info):
    names = [f"{split_name}-{index:06d}.flac" for index in range(num_clips)]
    touch(folder, *(f"audio/{name}" for name in names))
    rows = [f"{names[0]}\t0.5\t1\tbuzz", f"{names[0]}\t0\t2\tbeep", *(f"{name}\t\t\t" for name in names[1:])]
    write(folder / "events.tsv", EVENT_HEADER, *rows)
    described = {"format": "flac", "seed": 0, "split_name": split_name, "labels": ["buzz", "beep", "chirp"], **info}
    (folder / "dataset_info.json").write_text(json.dumps(described))


@pytest.mark.parametrize(
    "content",
    [b'\xef\xbb\xbf{"labels"', b"\xff\xfe{", b"[1]", b'"text"', b'{"labels": 3}', b'{"labels": [3]}', b"[" * 100_000],
    ids=["cut", "encoding", "list", "text", "number", "numbers", "brackets"],
)
def test_a_description_that_is_none_is_refused_by_its_name(content, tmp_path):
    folder = tmp_path / "made"
    write_soundscapes(folder, "train")
    (folder / "dataset_info.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"dataset_info\.json (cannot be read as JSON|is no description of a corpus)"):
        load_corpus("soundscapes", folder, "train")


def test_soundscapes_are_found_alone_and_side_by_side(tmp_path):
    write_soundscapes(tmp_path / "train", "train", 20)
    write_soundscapes(tmp_path / "test", "test")
    corpus = load_corpus("soundscapes", tmp_path, "test")
    assert corpus.label_names == ("buzz", "beep", "chirp")
    assert labels_of(corpus) == {"test-000000.flac": ["beep", "buzz"], "test-000001.flac": []}
    assert [event["onset"] for event in events_of(corpus)["test-000000.flac"]] == [0.5, 0]
    assert events_of(corpus)["test-000001.flac"] == []
    assert names_of(load_corpus("soundscapes", tmp_path / "test", "test")) == names_of(corpus)
    names = [f"train-{index:06d}.flac" for index in range(20)]
    corpora = all_splits("soundscapes", tmp_path, validation_share=0.2)
    assert_splits_are_disjoint_and_cover(corpora, names + names_of(corpus))


def test_weak_soundscapes_say_which_classes_occur_and_not_when(tmp_path):
    write_soundscapes(tmp_path, "train")
    corpus = load_corpus("soundscapes", tmp_path, "train", labels="weak")
    assert labels_of(corpus)["train-000000.flac"] == ["beep", "buzz"]
    assert set(events_of(corpus).values()) == {None}


def test_soundscapes_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no dataset_info.json"):
        load_corpus("soundscapes", tmp_path, "train")
    write_soundscapes(tmp_path / "train", "train")
    with pytest.raises(ValueError, match="labels are 'soft'; they must be strong or weak"):
        load_corpus("soundscapes", tmp_path, "train", labels="soft")
    with pytest.raises(ValueError, match="has no clips for test, only for train"):
        load_corpus("soundscapes", tmp_path, "test")
    write_soundscapes(tmp_path / "test", "train")
    with pytest.raises(ValueError, match="they hold the same clips; make one with another --split-name"):
        load_corpus("soundscapes", tmp_path, "test")
    write_soundscapes(tmp_path / "test", "test", format="parquet")
    with pytest.raises(ValueError, match="load parquet as the corpus `audioset`"):
        load_corpus("soundscapes", tmp_path, "test")


# ── sounds of one's own ───────────────────────────────────────────────────────────────────────────────────────────────


def test_folders_are_classes_and_are_divided_class_by_class(tmp_path):
    names = [f"{label}/{speaker}/{take}.wav" for label in ("meow", "bark") for speaker in "ab" for take in range(10)]
    touch(tmp_path, *names, "_noise/hum.wav", ".hidden/x.wav", "bark/notes.txt")
    corpora = all_splits("folders", tmp_path)
    assert_splits_are_disjoint_and_cover(corpora, names)
    assert corpora["test"].label_names == ("bark", "meow")
    for split, count in (("train", 16), ("validation", 2), ("test", 2)):
        assert Counter(own[0] for own in labels_of(corpora[split]).values()) == {"bark": count, "meow": count}


def test_folders_keep_together_what_a_pattern_says_is_from_one_recording(tmp_path):
    touch(tmp_path, *(f"bark/dog{dog}_{take}.wav" for dog in range(8) for take in range(3)))
    corpora = all_splits("folders", tmp_path, group_pattern="^(dog[0-9]+)_")
    dogs = [{name[:9] for name in names_of(corpus)} for corpus in corpora.values()]
    assert sum(map(len, dogs)) == 8 and len(corpora["validation"].rows) == 3
    with pytest.raises(ValueError, match="'cat' does not occur in the name dog0_0.wav"):
        load_corpus("folders", tmp_path, "train", group_pattern="cat")
    with pytest.raises(ValueError, match="no regular expression"):
        load_corpus("folders", tmp_path, "train", group_pattern="(")


def test_folders_inside_train_and_val_are_taken_as_they_are_and_nothing_is_held_out_for_testing(tmp_path):
    touch(tmp_path, *(f"train/bark/{number}.wav" for number in range(10)), "val/bark/0.wav", "val/meow/0.wav")
    train, validation = (load_corpus("folders", tmp_path, split) for split in ("train", "validation"))
    assert len(train.rows) == 10 and names_of(validation) == ["val/bark/0.wav", "val/meow/0.wav"]
    assert train.label_names == validation.label_names == ("bark", "meow")
    with pytest.raises(ValueError, match="no clips for test, only for train, validation"):
        load_corpus("folders", tmp_path, "test")


def test_folders_called_like_splits_among_others_are_classes(tmp_path):
    touch(tmp_path, "train/whistle.wav", "plane/engine.wav")
    assert load_corpus("folders", tmp_path, "train").label_names == ("plane", "train")


def test_folders_refuse_an_empty_class_a_stray_sound_and_no_folder_at_all(tmp_path):
    with pytest.raises(ValueError, match="must hold a folder for each class with its sounds; it has none"):
        load_corpus("folders", tmp_path, "train")
    (tmp_path / "bark").mkdir()
    with pytest.raises(ValueError, match="bark is a folder without audio"):
        load_corpus("folders", tmp_path, "train")
    touch(tmp_path, "stray.wav")
    with pytest.raises(ValueError, match="it has stray.wav, which is in none"):
        load_corpus("folders", tmp_path, "train")


def test_a_table_gives_each_file_any_number_of_labels(tmp_path):
    rows = ['a.wav,"Speech, male; Dog",train', "b.wav,Dog,", "c.wav,,test", "d.wav,Cat,eval"]
    table = write(tmp_path / "all.csv", "filename,labels,split", *rows)
    touch(tmp_path, *(f"{name}.wav" for name in "abcd"))
    test = load_corpus("table", table, "test")
    assert test.label_names == ("Cat", "Dog", "Speech, male")
    assert labels_of(test) == {"c.wav": [], "d.wav": ["Cat"]} and events_of(test)["c.wav"] is None
    train = load_corpus("table", table, "train", validation_share=0, label_names=["Dog", "Speech, male", "Cat", "Owl"])
    assert labels_of(train) == {"a.wav": ["Speech, male", "Dog"], "b.wav": ["Dog"]}
    assert train.label_names == ("Dog", "Speech, male", "Cat", "Owl")


def test_a_table_with_one_label_a_file_takes_it_as_it_stands_and_is_divided_by_group(tmp_path):
    rows = [f"{number}.wav\tDog; wet\t{number // 2}" for number in range(20)]
    table = write(tmp_path / "labels" / "all.tsv", "filename\tlabel\tplace", *rows)
    touch(tmp_path / "sounds", *(f"{number}.wav" for number in range(20)))
    options = {"audio_folder": tmp_path / "sounds", "group_column": "place"}
    corpora = all_splits("table", table, **options)
    assert_splits_are_disjoint_and_cover(corpora, [f"{number}.wav" for number in range(20)])
    assert corpora["train"].label_names == ("Dog; wet",)
    places = [{int(name[:-4]) // 2 for name in names_of(corpus)} for corpus in corpora.values()]
    assert [len(group) for group in places] == [8, 1, 1]


@pytest.mark.parametrize(
    "lines, options, message",
    [
        (["file,label", "a.wav,Dog"], {}, "lacks the column filename; its header reads file, label"),
        (["filename,label", "a.wav,Dog"], {"group_column": "place"}, "lacks the column place"),
        (["filename,class", "a.wav,Dog"], {}, "the column label (one class) or labels"),
        (["filename,label", "a.wav,Dog,Cat"], {}, "row 2 and the header have different numbers of cells"),
        (["filename,label", "a.wav"], {}, "row 2 and the header have different numbers of cells"),
        (["filename,label", "a.wav,Dog", "a.wav,Cat"], {}, "1 clips are listed more than once, 'a.wav' for example"),
        (["filename,label", "x.wav,Dog", "y.wav,Dog"], {}, "2 of the 2 sounds"),
        (["filename,label", "x.wav,Dog", "y.wav,Dog"], {"skip_missing": True}, "2 of the 2 sounds"),
        (["filename,label,split", "a.wav,Dog,tset"], {}, "'tset' is the name of no split; did you mean 'test'?"),
        (["filename,label", "a.wav,Dog"], {"label_names": ["Cat"]}, "'a.wav' has the label 'Dog', which is no class"),
        (["filename,labels", "a.wav,"], {}, "Classes need names that are not empty, each once; these are []"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, lines, options, message):
    touch(tmp_path, "a.wav")
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        load_corpus("table", write(tmp_path / "all.csv", *lines), "train", **options)
    assert "\n" not in str(refusal.value)


def test_a_table_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "all.csv").write_bytes("filename,label\nä.wav,Dog\n".encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        load_corpus("table", tmp_path / "all.csv", "train")


def test_events_come_from_one_table_or_from_one_for_each_split(tmp_path):
    rows = [f"{number}.wav\t0\t{number + 1}\tDog" for number in range(19)]
    table = write(tmp_path / "one" / "events.tsv", EVENT_HEADER, *rows, "quiet.wav\t\t\t")
    names = [*(f"{number}.wav" for number in range(19)), "quiet.wav"]
    touch(tmp_path / "one" / "audio", *names)
    assert_splits_are_disjoint_and_cover(all_splits("events", table), names)
    for split, name in (("train", "0.wav"), ("test", "quiet.wav")):
        write(
            tmp_path / "two" / f"{split}.tsv",
            EVENT_HEADER,
            *[row for row in [*rows, "quiet.wav\t\t\t"] if name in row][:1],
        )
    test = load_corpus("events", tmp_path / "two", "test", audio_folder=tmp_path / "one" / "audio")
    assert events_of(test) == {"quiet.wav": []} and test.label_names == ("Dog",)


def test_events_refuse_a_clip_that_is_for_training_and_for_testing(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.tsv", EVENT_HEADER, "a.wav\t0\t1\tDog")
    touch(tmp_path, "a.wav")
    with pytest.raises(ValueError, match="1 clips are listed more than once"):
        load_corpus("events", tmp_path, "train")


# ── AudioSet's layout ─────────────────────────────────────────────────────────────────────────────────────────────────


def write_shard(path, names, mids, group_size=3, **columns):
    rows = [
        {"video_id": name, "audio": {"bytes": name.encode(), "path": None}, "labels": own, "human_labels": own}
        for name, own in zip(names, mids, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = CLIP_FEATURES.arrow_schema
    table = pyarrow.Table.from_pylist([{**row, **columns} for row in rows], schema=schema)
    pyarrow.parquet.write_table(table.drop_columns("events"), path, row_group_size=group_size)


@pytest.fixture
def audioset(tmp_path):
    """The Hub's folders, without its README."""
    for part, count in (("bal_train", 11), ("unbal_train", 9), ("eval", 4)):
        names = [f"{part}{index}" for index in range(count)]
        mids = [[DOG, SPEECH] if index % 2 else [SPEECH] for index in range(count)]
        write_shard(tmp_path / "audioset" / "data" / part / "00.parquet", names, mids)
    return tmp_path / "audioset"


@pytest.mark.parametrize("streaming", [False, True])
def test_audioset_has_its_own_classes_and_splits_from_the_names_of_folders(audioset, streaming):
    train, test = (load_corpus("audioset", audioset, split, streaming=streaming) for split in ("train", "test"))
    assert list(train.label_names) == audioset_labels() and len(train.rows) == 20
    assert names_of(test) == ["eval0", "eval1", "eval2", "eval3"]
    row = test.rows[1]
    assert row["audio"] == {"bytes": b"eval1", "path": None}
    assert row["labels"] == [DOG, SPEECH] and row["human_labels"] == ["Dog", "Speech"] and row["events"] is None
    assert labels_of(test)["eval1"] == ["Dog", "Speech"]
    assert pickle.loads(pickle.dumps(test.rows))[1] == row


@pytest.mark.parametrize("streaming", [False, True])
def test_audioset_holds_out_training_clips_when_told_to(audioset, streaming):
    corpora = all_splits("audioset", audioset, streaming=streaming, validation_share=0.2)
    names = [
        f"{part}{index}"
        for part, count in (("bal_train", 11), ("unbal_train", 9), ("eval", 4))
        for index in range(count)
    ]
    assert_splits_are_disjoint_and_cover(corpora, names)
    assert len(corpora["validation"].rows) == 4
    assert [row["video_id"] for row in map(corpora["train"].rows.__getitem__, range(16))] == names_of(corpora["train"])
    if streaming:
        assert sum(corpora["train"].rows.group_sizes) == 16 and max(corpora["train"].rows.group_sizes) <= 3
    with pytest.raises(ValueError, match="validation_share"):
        load_corpus("audioset", audioset, "validation", streaming=streaming)


def test_a_stream_copies_nothing_into_the_cache(audioset):
    load_corpus("audioset", audioset, "train", streaming=True)
    assert not [path for path in datasets.config.HF_DATASETS_CACHE.rglob("*") if path.suffix == ".arrow"]


def test_other_classes_in_audiosets_layout_are_sorted_or_described_or_given(tmp_path):
    write_shard(tmp_path / "data" / "train-00000-of-00001.parquet", ["a", "b"], [["owl"], ["crow"]])
    assert load_corpus("audioset", tmp_path, "train").label_names == ("crow", "owl")
    given = load_corpus("audioset", tmp_path, "train", label_names=["owl", "crow", "jay"])
    assert given.label_names == ("owl", "crow", "jay")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"labels": ["owl", "jay", "crow"]}))
    assert load_corpus("audioset", tmp_path, "train", streaming=True).label_names == ("owl", "jay", "crow")
    with pytest.raises(ValueError, match="no clips for test, only for train"):
        load_corpus("audioset", tmp_path, "test")


@pytest.mark.parametrize("kind, format", [("audioset", "parquet"), ("soundscapes", "flac")])
def test_what_the_command_soundscapes_writes_is_loaded_with_its_events(tmp_path, kind, format):
    settings = SoundscapeSettings(clip_seconds=1.0, split_name="test")
    info = write_real_soundscapes(tmp_path / "test", 5, 0, settings, format)
    corpus = load_corpus(kind, tmp_path / "test", "test")
    assert list(corpus.label_names) == info["labels"] and len(corpus.rows) == 5
    assert sum(len(events) for events in events_of(corpus).values()) == sum(info["num_events"].values()) > 0
    assert all(
        own == sorted({event["event_label"] for event in events})
        for own, events in zip(labels_of(corpus).values(), events_of(corpus).values(), strict=True)
    )
    audio = corpus.rows[2]["audio"]
    assert (audio["bytes"] or Path(audio["path"]).read_bytes()).startswith(b"fLaC")


def test_the_readme_of_a_data_set_says_what_its_configs_are(audioset):
    balanced = "config_name: balanced, data_files: [{split: train, path: data/bal_train/*.parquet}]"
    full = (
        "config_name: full, data_files: [{split: train, path: [data/bal_train/*.parquet, data/unbal_train/*.parquet]}]"
    )
    write(audioset / "README.md", "---", "configs:", f"- {{{balanced}}}", f"- {{{full}}}", "---")
    for config, count in (("balanced", 11), ("full", 20)):
        rows = load_corpus("audioset", audioset, "train", config=config, streaming=True).rows
        assert len(rows) == count and rows[0]["video_id"] == "bal_train0"
    with pytest.raises(ValueError, match="cannot be loaded as a data set: .*[Cc]onfig name is missing"):
        load_corpus("audioset", audioset, "train")


def test_a_folder_without_parquet_and_an_unknown_config_are_refused(audioset, tmp_path):
    write(tmp_path / "texts" / "a.txt", "no sound")
    with pytest.raises(ValueError, match="is not made of parquet shards .*a.txt.*; try the corpus `folders`"):
        load_corpus("audioset", tmp_path / "texts", "train")
    with pytest.raises(ValueError, match="cannot be loaded as a data set: .*'balanced' not found"):
        load_corpus("audioset", audioset, "train", config="balanced")


def test_a_revision_of_which_only_other_copies_are_cached_is_refused(audioset, monkeypatch):
    module = importlib.import_module("modeling_htsat.training.corpora.audioset")
    cached = SimpleNamespace(config=datasets.BuilderConfig(data_files=None))  # what older releases of datasets find
    monkeypatch.setattr(module, "load_dataset_builder", lambda *_, **__: cached)
    with pytest.raises(ValueError, match="cannot be loaded as a data set: there are no files of the revision 'v9'"):
        load_corpus("audioset", audioset, "train", revision="v9")


def test_clips_that_share_a_name_are_warned_of(tmp_path, caplog):
    write_shard(tmp_path / "train.parquet", ["a", "a"], [[DOG], [DOG]])
    load_corpus("audioset", tmp_path, "train")
    assert "1 clips share their names, for example 'a'" in caplog.text


# ── packs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_pack(path, names, num_classes=527):
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["audio_name"] = [name.encode() for name in names]
        file["waveform"] = np.ones((len(names), 7), np.int16)
        file["target"] = np.arange(num_classes) == np.arange(len(names))[:, None]
        file.attrs["sample_rate"] = 32_000


def test_packs_are_found_by_their_names_in_panns(tmp_path):
    write_pack(tmp_path / "balanced_train.h5", ["Ya.wav", "Yb.wav"])
    write_pack(tmp_path / "unbalanced_train" / "unbalanced_train_part00.h5", ["Yc.wav"])
    write_pack(tmp_path / "unbalanced_train" / "unbalanced_train_part01.h5", ["Yd.wav"])
    write_pack(tmp_path / "eval.h5", ["Ye.wav"])
    names = {config: names_of(load_corpus("hdf5", tmp_path, "train", config=config)) for config in PACKS}
    assert names["balanced"] == ["Ya.wav", "Yb.wav"] and names["unbalanced"] == ["Yc.wav", "Yd.wav"]
    assert names["full"] == names["balanced"] + names["unbalanced"]
    test = load_corpus("hdf5", tmp_path, "test")
    assert labels_of(test) == {"Ye.wav": ["Speech"]} and list(test.label_names) == audioset_labels()
    assert labels_of(load_corpus("hdf5", tmp_path / "eval.h5", "train")) == labels_of(test)
    write_pack(tmp_path / "full_train.h5", ["Yall.wav"])
    assert names_of(load_corpus("hdf5", tmp_path, "train", config="full")) == ["Yall.wav"]


def test_packs_may_have_other_classes_and_hold_out_clips(tmp_path):
    names = [f"Y{index}.wav" for index in range(9)]
    write_pack(tmp_path / "own.h5", names, num_classes=3)
    options = {"label_names": "owl,crow,jay", "validation_share": 0.2}
    corpora = {split: load_corpus("hdf5", tmp_path / "own.h5", split, **options) for split in SPLITS[:2]}
    assert_splits_are_disjoint_and_cover(corpora, names)
    assert corpora["train"].label_names == ("owl", "crow", "jay")


def test_packs_that_are_not_there_and_unknown_configs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no eval\*.h5; give the folder of the packs"):
        load_corpus("hdf5", tmp_path, "test")
    with pytest.raises(ValueError, match="no config 'balance'; did you mean 'balanced'?"):
        load_corpus("hdf5", tmp_path, "train", config="balance")


# ── any data set ──────────────────────────────────────────────────────────────────────────────────────────────────────


def data_set_of(labels, feature=None, audio="audio", label="label"):
    sounds = [{"bytes": str(index).encode(), "path": None} for index in range(len(labels))]
    data = datasets.Dataset.from_dict({audio: sounds, label: labels, "mood": labels})
    data = data.cast_column(audio, datasets.Audio(decode=False))
    return data if feature is None else data.cast_column(label, feature)


@pytest.mark.parametrize(
    "labels, feature, expected",
    [
        (["owl", "crow", "owl"], None, [["owl"], ["crow"], ["owl"]]),
        ([0, 1, 0], datasets.ClassLabel(names=["owl", "crow"]), [["owl"], ["crow"], ["owl"]]),
        ([["owl", "crow"], [], None], None, [["owl", "crow"], [], None]),
        ([[0, 1], [], [1]], datasets.List(datasets.ClassLabel(names=["owl", "crow"])), [["owl", "crow"], [], ["crow"]]),
    ],
    ids=["names", "numbers with names", "lists of names", "lists of numbers with names"],
)
def test_any_way_to_write_classes_becomes_their_names(tmp_path, labels, feature, expected):
    data_set_of(labels, feature).save_to_disk(tmp_path / "saved")
    corpus = load_corpus("hub", tmp_path / "saved", "train", validation_share=0, test_share=0)
    assert list(labels_of(corpus).values()) == expected
    assert corpus.label_names == (("crow", "owl") if feature is None else ("owl", "crow"))
    assert corpus.rows[2] == {
        "video_id": "train-0000002",
        "audio": {"bytes": b"2", "path": None},
        "labels": expected[2],
        "human_labels": expected[2],
        "events": None,
    }
    assert pickle.loads(pickle.dumps(corpus.rows))[1] == corpus.rows[1]


def test_a_data_sets_own_splits_count_and_missing_ones_are_held_out(tmp_path):
    splits = {"train": data_set_of(["owl", "crow"] * 10), "test": data_set_of(["owl"] * 3)}
    splits |= {"unlabelled": data_set_of(["?"]), "eval": data_set_of(["?"])}  # eval: there is a test already
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    corpora = all_splits("hub", tmp_path / "saved")
    names = [f"train-{index:07d}" for index in range(20)] + [f"test-{index:07d}" for index in range(3)]
    assert_splits_are_disjoint_and_cover(corpora, names)
    assert len(corpora["validation"].rows) == 2 and len(corpora["test"].rows) == 3


def test_columns_of_other_names_and_numbers_without_names_can_be_given(tmp_path):
    data = data_set_of([1, 0], audio="sound", label="kind")
    (tmp_path / "data").mkdir()
    data.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    options = {"audio_column": "sound", "label_column": "kind", "validation_share": 0, "test_share": 0}
    corpus = load_corpus("hub", tmp_path, "train", label_names="owl,crow", **options)
    assert list(labels_of(corpus).values()) == [["crow"], ["owl"]] and corpus.label_names == ("owl", "crow")
    with pytest.raises(ValueError, match="label 1, which has no name; give label_names"):
        load_corpus("hub", tmp_path, "train", **options)


def test_a_data_set_without_the_columns_is_refused(tmp_path):
    data_set_of(["owl"]).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"no column 'labels' \(label_column\); did you mean 'label'?"):
        load_corpus("hub", tmp_path / "saved", "train", label_column="labels")
    with pytest.raises(ValueError, match="column 'mood' .* holds Value.*; sounds are a column of the type Audio"):
        load_corpus("hub", tmp_path / "saved", "train", audio_column="mood")


def test_options_are_numbers_words_and_truths():
    assert corpus_options(["fold=2", "labels=strong", "skip_missing=true", "name = a=b"]) == {
        "fold": 2,
        "labels": "strong",
        "skip_missing": True,
        "name": "a=b",
    }
    texts = ["train.parts=weak", "skip_missing=true"]
    assert corpus_options(texts, "train") == {"parts": "weak", "skip_missing": True}
    assert corpus_options(texts, "test") == {"skip_missing": True}
    with pytest.raises(ValueError, match="for the split 'trian'; known are train, validation, test"):
        corpus_options(["trian.parts=weak"], "train")
    with pytest.raises(ValueError, match="known are none, as all splits are treated alike here"):
        corpus_options(texts)
    with pytest.raises(ValueError, match="'fold' is not of the form name=value"):
        corpus_options(["fold"])
