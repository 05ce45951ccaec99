"""The command `htsat`: what it prints and writes, in which words it fails, and that it stops when told to."""

import csv
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import SMALL, enliven
from huggingface_hub.errors import HfHubHTTPError
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, pipeline

from modeling_htsat import (
    HTSATAudioClassificationPipeline,
    HTSATConfig,
    HTSATFeatureExtractor,
    HTSATForSoundEventDetection,
    HTSATModel,
    HTSATSoundEventDetectionPipeline,
    cli,
    interruption,
)
from modeling_htsat.commands import models
from modeling_htsat.commands.outputs import rows_kept
from modeling_htsat.ensemble import load_ensemble
from modeling_htsat.labels import audioset_labels, load_label_groups
from modeling_htsat.tables import read_events

ROOT = Path(__file__).parents[1]
RATE = 32_000
HEADER = "filename\tonset\toffset\tevent_label\tscore\n"


def pulses(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """A rising tone in noise that comes and goes."""
    time = np.arange(round(seconds * rate)) / rate
    loudness = np.where(np.sin(2 * np.pi * 0.7 * time + seed) > 0, 0.3, 0.01)
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (loudness * (np.sin(2 * np.pi * (300 + 200 * time) * time) + 0.3 * noise)).clip(-0.99, 0.99)


def save_model(folder: Path, labels: list[str], model_class: type = HTSATForSoundEventDetection) -> Path:
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    config = HTSATConfig(**{**SMALL, "num_labels": len(labels)}, **names, problem_type="multi_label_classification")
    enliven(model_class(config)).save_pretrained(folder)
    HTSATFeatureExtractor(clip_frames=256).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_model(tmp_path_factory.mktemp("model"), [f"c{index}" for index in range(5)]))


@pytest.fixture(scope="module")
def audioset_model(tmp_path_factory) -> str:
    return str(save_model(tmp_path_factory.mktemp("audioset"), audioset_labels()))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """A folder of three recordings in folders, formats and rates, beside files that are none."""
    folder = tmp_path_factory.mktemp("sounds")
    (folder / "day" / "night").mkdir(parents=True)
    soundfile.write(folder / "a.wav", pulses(6.0), RATE)
    soundfile.write(folder / "day" / "b.flac", pulses(3.3, 48_000, seed=1), 48_000)
    soundfile.write(folder / "day" / "night" / "c.ogg", np.stack([pulses(1.0, 44_100, seed=2)] * 2, axis=1), 44_100)
    (folder / "notes.txt").write_text("not a recording")
    (folder / ".hidden.wav").write_bytes(b"not a recording either")
    return folder


NAMES = ["a.wav", "day/b.flac", "day/night/c.ogg"]


@pytest.fixture
def htsat(capsys):
    """`htsat("detect", ...)`: exit status, standard output and standard error of the command."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model is an error: what must be noticed before the work is noticed before this."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("The model was loaded.")

    monkeypatch.setattr(models, "pipeline", load)


def expected_rows(model: str, folder: Path, **options: Any) -> list[tuple[str, float, float, str, float]]:
    detect = pipeline("sound-event-detection", model=model, **options)
    return [
        (name, event["onset"], event["offset"], event["label"], event["score"])
        for name in NAMES
        for event in detect(folder / name)
    ]


def table(text: str, delimiter: str = "\t") -> list[tuple[str, float, float, str, float]]:
    rows = csv.DictReader(text.splitlines(), delimiter=delimiter)
    return [(r["filename"], float(r["onset"]), float(r["offset"]), r["event_label"], float(r["score"])) for r in rows]


def close_rows(found: list[tuple], wanted: list[tuple], tolerance: float = 1.5e-6) -> bool:
    names = [[(row[0], row[3]) for row in rows] for rows in (found, wanted)]
    numbers = [[(row[1], row[2], row[4]) for row in rows] for rows in (found, wanted)]
    return names[0] == names[1] and np.allclose(numbers[0], numbers[1], rtol=0, atol=tolerance)


def sentences(stderr: str) -> list[str]:
    """The lines of standard error: each a whole sentence of htsat, none a traceback or a log."""
    lines = stderr.splitlines()
    assert all(re.fullmatch(r"htsat: .*\w.*", line) for line in lines), stderr
    return lines


# ── detect ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_detect_prints_the_events_of_the_pipeline_and_names_what_is_in_a_folder_by_its_place_there(
    htsat, model, sounds
):
    status, out, err = htsat("detect", sounds, "--model", model)
    assert (status, err) == (0, "")
    assert out.startswith(HEADER)
    rows = table(out)
    assert list(dict.fromkeys(row[0] for row in rows)) == NAMES
    assert close_rows(rows, expected_rows(model, sounds), tolerance=5.1e-4)  # printed with three digits


def test_files_go_by_their_own_names_and_by_their_paths_where_these_are_shared(htsat, model, sounds, tmp_path):
    for name in ("a.wav", "x.wav"):
        (tmp_path / name).write_bytes((sounds / "a.wav").read_bytes())
    _, out, _ = htsat("detect", sounds / "day" / "b.flac", sounds / "a.wav", "--model", model)
    assert list(dict.fromkeys(row[0] for row in table(out))) == ["b.flac", "a.wav"]
    _, out, _ = htsat("detect", sounds / "a.wav", tmp_path, sounds / "a.wav", "--model", model)
    names = [row[0] for row in table(out)]
    assert list(dict.fromkeys(names)) == [f"{sounds}/a.wav", f"{tmp_path}/a.wav", "x.wav"]
    assert names.count(f"{sounds}/a.wav") == names.count("x.wav")  # given twice, heard once


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".json", ".jsonl"])
def test_detect_writes_the_table_that_the_suffix_says(htsat, model, sounds, tmp_path, suffix):
    output = tmp_path / f"events{suffix}"
    assert htsat("detect", sounds, "--model", model, "--output", output) == (0, "", "")
    text = output.read_text()
    if suffix in (".json", ".jsonl"):
        objects = [json.loads(line) for line in text.splitlines()]
        rows = [tuple(row[key] for key in ("filename", "onset", "offset", "event_label", "score")) for row in objects]
    else:
        rows = table(text, "," if suffix == ".csv" else "\t")
    wanted = expected_rows(model, sounds)
    assert close_rows(rows, wanted)
    if suffix == ".tsv":
        reread = [(name, *event, 0.0) for name, events in read_events(output).items() for event in events]
        assert close_rows(reread, [(*row[:4], 0.0) for row in wanted])
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


@pytest.mark.parametrize("name, format", [("x.txt", None), ("x.labels", "audacity"), ("x.selections.txt", None)])
def test_detect_writes_label_tracks_of_one_recording(htsat, model, sounds, tmp_path, name, format):
    arguments = ["detect", sounds / "a.wav", "--model", model, "--output", tmp_path / name]
    assert htsat(*arguments, *(["--format", format] if format else [])) == (0, "", "")
    lines = [line.split("\t") for line in (tmp_path / name).read_text().splitlines()]
    if "selections" in name:
        assert lines.pop(0)[3:5] == ["Begin Time (s)", "End Time (s)"]
        found = [(float(line[3]), float(line[4]), line[8]) for line in lines]
    else:
        found = [(float(line[0]), float(line[1]), line[2]) for line in lines]
    wanted = [row[1:4] for row in expected_rows(model, sounds) if row[0] == "a.wav"]
    assert sorted(found) == sorted((round(onset, 6), round(offset, 6), label) for onset, offset, label in wanted)


def test_a_named_format_goes_before_the_suffix(htsat, model, sounds, tmp_path):
    assert htsat("detect", sounds, "--model", model, "--output", tmp_path / "x.txt", "--format", "json")[0] == 0
    assert [json.loads(line)["filename"] for line in (tmp_path / "x.txt").read_text().splitlines()][0] == "a.wav"


@pytest.mark.parametrize(
    "arguments, options",
    [
        (["--threshold", "0.7"], {"threshold": 0.7}),
        (["--time-refinement", "3"], {"time_refinement": 3}),
        (["--time-refinement", "2", "--threshold", "0.3"], {"time_refinement": 2, "threshold": 0.3}),
    ],
)
def test_the_options_of_detect_are_those_of_the_pipeline(htsat, model, sounds, tmp_path, arguments, options):
    assert htsat("detect", sounds, "--model", model, "--output", tmp_path / "x.tsv", *arguments)[0] == 0
    rows = table((tmp_path / "x.tsv").read_text())
    assert close_rows(rows, expected_rows(model, sounds, **options))
    assert not close_rows(rows, expected_rows(model, sounds))


def test_groups_of_labels_are_reported_in_place_of_527_classes(htsat, audioset_model, sounds, tmp_path):
    groups, decoding = load_label_groups("desed")
    command = ["detect", sounds, "--model", audioset_model, "--output", tmp_path / "x.tsv", "--groups"]
    assert htsat(*command, "desed") == (0, "", "")
    rows = table((tmp_path / "x.tsv").read_text())
    assert {row[3] for row in rows} <= set(groups) and len({row[3] for row in rows}) > 3
    assert close_rows(rows, expected_rows(audioset_model, sounds, groups=groups, decoding=decoding))
    assert htsat(*command, "desed", "--threshold", "0.6") == (0, "", "")
    rows = table((tmp_path / "x.tsv").read_text())
    assert close_rows(rows, expected_rows(audioset_model, sounds, groups=groups, threshold=0.6))
    (tmp_path / "mine.yaml").write_text("Mine: {classes: 0-9, threshold: 0.4}")
    assert htsat(*command, tmp_path / "mine.yaml") == (0, "", "")
    assert {row[3] for row in table((tmp_path / "x.tsv").read_text())} == {"Mine"}


def test_groups_that_the_model_does_not_have_are_refused_before_the_work(htsat, model, sounds, monkeypatch):
    monkeypatch.setattr(HTSATSoundEventDetectionPipeline, "preprocess", None)
    status, out, err = htsat("detect", sounds, "--model", model, "--groups", "desed")
    assert (status, out) == (1, "")
    assert sentences(err) == [f"htsat: The group 'Speech' of desed has class 7; {model} has 0 to 4."]


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_picture_is_drawn_with_and_without_truth(htsat, model, sounds, tmp_path):
    (tmp_path / "truth.tsv").write_text("filename\tonset\toffset\tevent_label\na.wav\t1\t2.5\tc1\n")
    pictures = [tmp_path / "plain.png", tmp_path / "true.png"]
    command = ["detect", sounds / "a.wav", "--model", model, "--plot"]
    status, out, err = htsat(*command, pictures[0])
    assert (status, err) == (0, "") and out.startswith(HEADER)
    assert htsat(*command, pictures[1], "--truth", tmp_path / "truth.tsv")[::2] == (0, "")
    drawn = [picture.read_bytes() for picture in pictures]
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 10_000 for picture in drawn)
    assert drawn[0] != drawn[1]


def test_every_one_of_several_recordings_has_a_picture(htsat, model, sounds, tmp_path):
    (tmp_path / "truth.tsv").write_text("filename\tonset\toffset\tevent_label\nday/b.flac\t1\t2.5\tc1\n")
    command = ["detect", sounds, "--model", model, "--output", tmp_path / "x.tsv"]
    assert htsat(*command, "--plot", tmp_path / "all.svg", "--truth", tmp_path / "truth.tsv") == (0, "", "")
    pictures = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert pictures == ["all-a.wav.svg", "all-day-b.flac.svg", "all-day-night-c.ogg.svg"]
    assert all("<svg" in (tmp_path / name).read_text()[:1000] for name in pictures)


# ── classify ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_classify_prints_the_strongest_tags_of_every_recording(htsat, model, sounds):
    tag = pipeline("audio-classification", model=model, pipeline_class=HTSATAudioClassificationPipeline)
    for arguments, count in (([], 5), (["--top-k", "2"], 2), (["--top-k", "99"], 5)):
        status, out, err = htsat("classify", sounds, "--model", model, *arguments)
        assert (status, err) == (0, "")
        rows = list(csv.DictReader(out.splitlines(), delimiter="\t"))
        wanted = [(name, one["label"], one["score"]) for name in NAMES for one in tag(sounds / name)[:count]]
        assert [(row["filename"], row["label"]) for row in rows] == [row[:2] for row in wanted]
        assert np.allclose([float(row["score"]) for row in rows], [row[2] for row in wanted], atol=5.1e-4)


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".json", ".jsonl"])
def test_classify_writes_the_table_that_the_suffix_says(htsat, model, sounds, tmp_path, suffix):
    output = tmp_path / f"tags{suffix}"
    assert htsat("classify", sounds, "--model", model, "--top-k", "3", "--output", output) == (0, "", "")
    text = output.read_text()
    if suffix in (".json", ".jsonl"):
        rows = [json.loads(line) for line in text.splitlines()]
    else:
        rows = list(csv.DictReader(text.splitlines(), delimiter="," if suffix == ".csv" else "\t"))
    assert [row["filename"] for row in rows] == [name for name in NAMES for _ in range(3)]
    assert all(list(row) == ["filename", "label", "score"] and 0 < float(row["score"]) < 1 for row in rows)


# ── what cannot be heard ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def broken(tmp_path, sounds, monkeypatch) -> dict[str, Path]:
    """Paths that hold no sound, by what is wrong with them."""
    whole = (sounds / "a.wav").read_bytes()
    contents = {
        "noaudio.wav": b"These are words. " * 99,
        "cut.wav": whole[:100_000],
        "zero.wav": b"",
        "secret.wav": whole,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    soundfile.write(tmp_path / "silent.wav", np.zeros(0), RATE)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("not a recording")
    open_path = Path.open

    def refuse_secrets(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "secret.wav":  # no permission stops root, who may run this
            raise PermissionError(13, "Permission denied", str(path))
        return open_path(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse_secrets)
    names = ["noaudio.wav", "cut.wav", "zero.wav", "silent.wav", "secret.wav", "folder", "missing.wav"]
    return {name: tmp_path / name for name in names}


@pytest.mark.parametrize("command", ["detect", "classify"])
def test_what_cannot_be_heard_is_named_in_a_sentence_each_and_the_others_are_reported(
    htsat, model, sounds, broken, command
):
    status, out, err = htsat(command, *broken.values(), sounds / "a.wav", sounds, "--model", model)
    assert status == 1
    _, wanted, _ = htsat(command, sounds / "a.wav", sounds, "--model", model)
    assert out == wanted and "c.ogg" in out
    lines = sentences(err)
    assert len(lines) == len(broken)
    for path in broken.values():
        assert sum(str(path) in line for line in lines) == 1, path


@pytest.mark.parametrize("name", ["noaudio.wav", "cut.wav", "zero.wav", "silent.wav", "secret.wav"])
def test_a_single_file_that_cannot_be_heard_gives_one_sentence(htsat, model, broken, name):
    status, out, err = htsat("detect", broken[name], "--model", model)
    (sentence,) = sentences(err)
    assert (status, out) == (1, HEADER)
    assert str(broken[name]) in sentence


@pytest.mark.parametrize("name, reason", [("missing.wav", "does not exist"), ("folder", "is a folder without audio")])
def test_where_there_is_no_recording_no_model_is_loaded_and_nothing_written(htsat, no_model, broken, name, reason):
    output = broken[name].with_name("kept.tsv")
    output.write_text("what an earlier run found")
    for command in ("detect", "classify"):
        status, out, err = htsat(command, broken[name], "--model", "any", "--output", output)
        (sentence,) = sentences(err)
        assert (status, out) == (1, "")
        assert f"{broken[name]} {reason}" in sentence
    assert output.read_text() == "what an earlier run found"


# ── wrong command lines and models ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["listen"],
        ["detect"],
        ["detect", "x.wav"],
        ["detect", "x.wav", "--model", "m", "--colour"],
        ["detect", "x.wav", "--model", "m", "--threshold", "loud"],
        ["detect", "x.wav", "--model", "m", "--time-refinement", "0"],
        ["detect", "x.wav", "--model", "m", "--format", "xml"],
        ["classify", "x.wav", "--model", "m", "--top-k", "-1"],
        ["classify", "x.wav", "--model", "m", "--top-k", "many"],
        ["evaluate"],
        ["evaluate", "events", "--reference", "x.tsv"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_ends_with_status_2_and_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert "usage: htsat" in err and "Traceback" not in err


@pytest.mark.parametrize("name, purpose, module", cli.COMMANDS)
def test_every_command_has_help(name, purpose, module, capsys):
    parser = cli.make_parser()
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([name, "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and f"usage: htsat {name} " in out and purpose in out


def test_help_and_version_are_printed(capsys):
    for arguments, word in ((["--help"], "detect"), (["detect", "--help"], "--groups"), (["--version"], "htsat ")):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 0
        assert word in capsys.readouterr().out


@pytest.mark.parametrize("command", ["detect", "classify"])
@pytest.mark.parametrize(
    "name, problem",
    [
        ("missing", "is no folder, and no name on the Hub"),
        ("config.json", "is no folder, and no name on the Hub"),
        ("empty", "lacks config.json and preprocessor_config.json"),
        ("no extractor", "lacks preprocessor_config.json"),
        ("no weights", "cannot be loaded"),
        ("broken weights", "cannot be loaded"),
        ("broken config", "cannot be loaded"),
        ("text model", "cannot be loaded"),
        ("encoder", "is an encoder that knows no labels"),
    ],
)
def test_a_model_that_there_is_not_is_refused_in_one_sentence(htsat, model, sounds, tmp_path, command, name, problem):
    path = tmp_path / name
    copied = {"no extractor": ["config.json"], "no weights": ["config.json", "preprocessor_config.json"]}
    copied["broken weights"] = copied["broken config"] = copied["text model"] = copied["no weights"]
    if name == "config.json":
        path.write_text("{}")
    elif name == "encoder":
        save_model(path, ["c0"], HTSATModel)
    elif name != "missing":
        path.mkdir()
        for file in copied.get(name, []):
            (path / file).write_bytes((Path(model) / file).read_bytes())
    if name == "broken weights":
        (path / "model.safetensors").write_bytes(b"no weights")
    elif name == "broken config":
        (path / "config.json").write_text("{")
    elif name == "text model":
        (path / "config.json").write_text('{"model_type": "bert"}')
    status, out, err = htsat(command, sounds / "a.wav", "--model", path)
    (sentence,) = sentences(err)
    assert (status, out) == (1, "")
    assert sentence.startswith(f"htsat: The {'folder' if 'lacks' in problem else 'model'} {path} ")
    assert re.search(problem, sentence) and len(sentence) < 400 + len(str(path))


def test_a_model_of_another_kind_is_refused_by_its_name(htsat, sounds, tmp_path):
    config = ASTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ASTForAudioClassification(config).save_pretrained(tmp_path)
    ASTFeatureExtractor(num_mel_bins=32).save_pretrained(tmp_path)
    status, out, err = htsat("classify", sounds / "a.wav", "--model", tmp_path)
    assert (status, out) == (1, "")
    assert sentences(err) == [
        f"htsat: The model {tmp_path} is of the class ASTForAudioClassification; an HTS-AT is needed."
    ]


def test_a_name_that_is_not_on_the_hub_is_refused_in_one_sentence(htsat, sounds):
    status, out, err = htsat("detect", sounds / "a.wav", "--model", "nobody/nothing")  # conftest keeps off the network
    (sentence,) = sentences(err)
    assert (status, out) == (1, "")
    assert sentence.startswith("htsat: The model nobody/nothing cannot be loaded: ")


def test_a_name_is_asked_for_once_where_the_hub_does_not_answer(htsat, no_model, sounds, monkeypatch):
    asked = []

    def fail(url: str) -> None:
        asked.append(url)
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(models, "get_hf_file_metadata", fail)
    status, out, err = htsat("classify", sounds, "--model", "bareword")
    assert (status, out, len(asked)) == (1, "", 1) and "bareword/resolve/main/config.json" in asked[0]
    assert sentences(err) == [
        "htsat: The model bareword cannot be loaded: it is no folder here, and the Hub cannot be asked for it "
        "(Name or service not known)."
    ]


@pytest.mark.parametrize("is_downloaded", [True, False])
def test_a_name_that_is_downloaded_or_that_the_hub_answers_for_is_left_to_transformers(
    htsat, sounds, monkeypatch, is_downloaded
):
    def answer(url: str) -> None:
        assert not is_downloaded
        raise HfHubHTTPError("404", response=SimpleNamespace(headers={}, request=None))

    def load(task: str, model: str, **_: Any) -> None:
        raise OSError(f"{model} is not a valid model identifier.")

    monkeypatch.setattr(models, "try_to_load_from_cache", lambda *_: "config.json" if is_downloaded else None)
    monkeypatch.setattr(models, "get_hf_file_metadata", answer)
    monkeypatch.setattr(models, "pipeline", load)
    status, _, err = htsat("classify", sounds, "--model", "a/b")
    assert status == 1
    assert sentences(err) == ["htsat: The model a/b cannot be loaded: a/b is not a valid model identifier."]


# ── several models ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def second_model(tmp_path_factory, model) -> str:
    """A model with the same labels and other weights."""
    folder = tmp_path_factory.mktemp("second")
    other = HTSATForSoundEventDetection.from_pretrained(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 1.1
    other.save_pretrained(folder)
    HTSATFeatureExtractor.from_pretrained(model).save_pretrained(folder)
    return str(folder)


def test_several_models_answer_as_one(htsat, model, second_model, sounds, tmp_path):
    extractor, both = HTSATFeatureExtractor.from_pretrained(model), [model, second_model]
    ensemble = load_ensemble(both, "sound-event-detection")
    detector = HTSATSoundEventDetectionPipeline(model=ensemble, feature_extractor=extractor)
    wanted = [
        (name, event["onset"], event["offset"], event["label"], event["score"])
        for name in NAMES
        for event in detector(sounds / name)
    ]
    (tmp_path / "saved").mkdir()
    ensemble.save_pretrained(tmp_path / "saved")
    extractor.save_pretrained(tmp_path / "saved")
    output = ["--output", tmp_path / "x.tsv"]
    for names in (["--model", model, "--model", second_model], ["--model", tmp_path / "saved"]):
        assert htsat("detect", sounds, *output, *names) == (0, "", "")
        assert close_rows(table((tmp_path / "x.tsv").read_text()), wanted)
    assert not close_rows(wanted, expected_rows(model, sounds))


def test_several_models_tag_and_are_scored_as_one(htsat, model, second_model, sounds, tmp_path, reference):
    ensemble = load_ensemble([model, second_model], "audio-classification")
    tagger = HTSATAudioClassificationPipeline(
        model=ensemble, feature_extractor=HTSATFeatureExtractor.from_pretrained(model)
    )
    _, out, _ = htsat("classify", sounds / "a.wav", "--model", model, "--model", second_model)
    found = [float(row["score"]) for row in csv.DictReader(out.splitlines(), delimiter="\t")]
    assert np.allclose(found, [tag["score"] for tag in tagger(sounds / "a.wav")], atol=5.1e-4)
    command = [
        "evaluate",
        "detections",
        "--audio",
        sounds,
        "--reference",
        reference,
        "--model",
        model,
        "--model",
        second_model,
    ]
    assert htsat(*command, "--output", tmp_path / "kept.tsv")[::2] == (0, "")
    assert htsat("detect", sounds, "--output", tmp_path / "x.tsv", "--model", model, "--model", second_model) == (
        0,
        "",
        "",
    )
    assert (tmp_path / "kept.tsv").read_text() == (tmp_path / "x.tsv").read_text()


def test_models_that_are_no_ensemble_are_refused_in_one_sentence(htsat, model, audioset_model, sounds, tmp_path):
    for other, problem in ((audioset_model, "527 labels"), (tmp_path / "none", "none is no folder, and no name")):
        status, out, err = htsat("detect", sounds, "--model", model, "--model", other)
        (sentence,) = sentences(err)
        assert (status, out) == (1, "") and problem in sentence


# ── noticed before the work ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "option, name, problem",
    [
        ("--output", "none/x.tsv", "none for x.tsv does not exist; create it first"),
        ("--output", "a.file/x.tsv", "a.file for x.tsv does not exist"),
        ("--output", "folder.tsv", "folder.tsv is a folder"),
        ("--output", "x.xls", "x.xls"),
        ("--output", "x", "'x'|x has"),
        ("--plot", "none/x.png", "none for x.png does not exist"),
        ("--plot", "x.bmp", "'.bmp'; .png, .svg, .pdf are known"),
        ("--plot", "x", "''; .png"),
        ("--output", "x.txt", "describes one recording|'.txt'; .tsv, .csv"),
        ("--output", "x.selections.txt", "describes one recording|'.txt'; .tsv, .csv"),
        ("--groups", "none.yaml", "none.yaml is not a readable YAML file"),
        ("--truth", "none.tsv", "--truth is drawn into the picture"),
    ],
)
def test_what_cannot_be_written_or_read_is_noticed_before_the_model_is_loaded(
    htsat, no_model, sounds, tmp_path, option, name, problem
):
    (tmp_path / "a.file").write_text("")
    (tmp_path / "folder.tsv").mkdir()
    for command in ["detect"] + ["classify"] * (option == "--output"):
        status, out, err = htsat(command, sounds, "--model", "any", option, tmp_path / name)
        (sentence,) = sentences(err)
        assert (status, out) == (1, "")
        assert re.search(problem, sentence)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.file", "folder.tsv"]


def test_a_folder_that_may_not_be_written_to_is_noticed_before_the_work(htsat, no_model, sounds, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK or Path(path) != tmp_path)
    for option in ("--output", "--plot"):
        status, _, err = htsat("detect", sounds, "--model", "any", option, tmp_path / "x.pdf")
        assert status == 1 and "may not be written to" in sentences(err)[0]


def test_truth_that_names_no_recording_is_noticed_before_the_work(htsat, no_model, sounds, tmp_path):
    truth = tmp_path / "truth.tsv"
    truth.write_text("filename\tonset\toffset\tevent_label\nsounds/a.wav\t1\t2\tc1\n")
    command = ["detect", sounds, "--model", "any", "--plot", tmp_path / "x.png", "--truth", truth]
    status, _, err = htsat(*command)
    assert (status, len(sentences(err))) == (1, 1) and "names none of the recordings" in err and "'a.wav'" in err
    truth.unlink()
    status, _, err = htsat(*command)
    assert status == 1 and sentences(err) == [f"htsat: {truth} cannot be used: No such file or directory"]


# ── a process of its own ─────────────────────────────────────────────────────────────────────────────────────────────


# What pip makes of the entry point, but for the name of the interpreter.
SCRIPT = "import sys\nfrom modeling_htsat.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"


def start(*arguments: Any, program: Sequence[Any] = ("-m", "modeling_htsat"), path: str = "", **options: Any):
    environment = {**os.environ, "PYTHONPATH": f"{path}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, program), *map(str, arguments)]

    def heed_ctrl_c() -> None:  # even where the tests themselves run in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)

    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, preexec_fn=heed_ctrl_c, **options)


def test_a_pipe_gets_the_table_and_standard_error_a_line_for_what_failed(htsat, model, sounds, tmp_path):
    (tmp_path / "htsat").write_text(SCRIPT)
    (tmp_path / "empty.wav").touch()
    arguments = ["detect", tmp_path / "empty.wav", sounds, "--model", model]
    process = start(*arguments, program=[tmp_path / "htsat"], stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.decode() == f"htsat: {tmp_path}/empty.wav is empty (0 bytes): give a file that holds audio.\n"
    assert out.decode() == htsat("detect", sounds, "--model", model)[1]


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(model, sounds, tmp_path):
    for index in range(40):
        os.link(sounds / "a.wav", tmp_path / f"{index}.wav")
    process = start("detect", tmp_path, "--model", model, "--threshold", "0", stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=120) == 1


def test_ctrl_c_ends_the_command_at_once_and_keeps_what_was_found(model, sounds, tmp_path):
    (tmp_path / "many").mkdir()
    for index in range(3000):
        os.link(sounds / "a.wav", tmp_path / "many" / f"{index:04}.wav")
    screen, stderr = pty.openpty()  # on a screen there is a progress bar, which tells that the work has begun
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    output = tmp_path / "events.tsv"
    process = start("detect", tmp_path / "many", "--model", model, "--output", output, stderr=stderr)
    os.close(stderr)
    seen, deadline = b"", time.monotonic() + 100
    while not re.search(rb"[1-9]\d*/3000", seen) and time.monotonic() < deadline:
        seen += os.read(screen, 4096)
    process.send_signal(signal.SIGINT)
    try:
        while chunk := os.read(screen, 4096):
            seen += chunk
    except OSError:  # how Linux says that nobody holds the other end any more
        pass
    os.close(screen)
    assert process.wait(timeout=60) == 130
    text = seen.decode()
    assert "Traceback" not in text and "%|" in text
    assert text.splitlines()[-1] == f"htsat: interrupted; the events found so far are in {tmp_path}/events.partial.tsv"
    assert 0 < len(read_events(tmp_path / "events.partial.tsv")) < 3000
    assert not output.exists()


# ── Ctrl-C while Python is still importing ───────────────────────────────────────────────────────────────────────────

# In place of a library: presses Ctrl-C and, worse than any library, takes the exception for a reason to go on.
PRESS = """
import os, signal, time
while True:
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except BaseException:
        pass
"""


@pytest.mark.parametrize(
    "program, library",
    [
        (["htsat"], "transformers"),
        (["htsat"], "soxr"),
        (["-m", "modeling_htsat"], "transformers"),
        (["-m", "modeling_htsat.cli"], "transformers"),
    ],
)
def test_ctrl_c_while_libraries_are_imported_ends_the_command_in_one_line(tmp_path, program, library):
    (tmp_path / "htsat").write_text(SCRIPT)
    (tmp_path / f"{library}.py").write_text(PRESS)
    process = start("--version", program=program, path=f"{tmp_path}:", cwd=tmp_path, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, b"", b"htsat: interrupted\n")


@pytest.mark.parametrize(
    "name, is_ignored, handler",
    [
        ("bin/htsat", False, "end_at_once"),
        ("htsat.exe", False, "end_at_once"),
        ("bin/htsat", True, "SIG_IGN"),  # as under nohup
        ("train.py", False, "default_int_handler"),
        ("-c", False, "default_int_handler"),
    ],
)
def test_only_the_command_itself_takes_ctrl_c_for_its_end(tmp_path, name, is_ignored, handler):
    code = f"{Path(interruption.__file__).read_text()}\nhandler = signal.getsignal(signal.SIGINT)\n"
    code += "print(getattr(handler, '__name__', None) or handler.name)\n"
    if is_ignored:
        code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + code
    if name == "-c":  # a process that the command starts has the command's name, but was not started by it
        program: list[Any] = ["-c", f"import sys; sys.argv[0] = {str(tmp_path / 'htsat')!r}\n{code}"]
    else:
        (tmp_path / "bin").mkdir()
        (tmp_path / name).write_text(code)
        program = [tmp_path / name]
    out, _ = start(program=program).communicate(timeout=60)
    assert out.decode().strip() == handler


# ── Ctrl-C ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def interrupted_at(monkeypatch):
    """`interrupted_at("c.ogg")`: Ctrl-C, or an error, comes while this recording is read."""

    def interrupt(name: str, error: BaseException | None = None) -> None:
        preprocess = HTSATSoundEventDetectionPipeline.preprocess

        def read(self, source: Any, **options: Any) -> Any:
            if Path(source).name == name:
                raise error or KeyboardInterrupt
            return preprocess(self, source, **options)

        monkeypatch.setattr(HTSATSoundEventDetectionPipeline, "preprocess", read)

    return interrupt


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "x.png"), RuntimeError("out of memory")])
def test_events_found_before_an_error_are_kept_too(htsat, model, sounds, tmp_path, interrupted_at, capsys, error):
    interrupted_at("c.ogg", error)
    arguments = ["detect", sounds, "--model", model, "--output", tmp_path / "x.tsv"]
    said = [f"htsat: the events found so far are in {tmp_path}/x.partial.tsv"]
    if isinstance(error, OSError):
        status, out, err = htsat(*arguments)
        assert (status, out) == (1, "")
        assert sentences(err) == [*said, "htsat: x.png cannot be used: No space left on device"]
    else:  # no fault of the input: whoever mends it needs the traceback
        with pytest.raises(RuntimeError, match="out of memory"):
            htsat(*arguments)
        assert sentences(capsys.readouterr().err) == said
    assert sorted(read_events(tmp_path / "x.partial.tsv")) == NAMES[:2]
    assert not (tmp_path / "x.tsv").exists()


@pytest.mark.parametrize("name, kept", [("x.tsv", "x.partial.tsv"), ("x.y.json", "x.y.partial.json")])
def test_events_found_before_ctrl_c_are_kept_beside_the_output(
    htsat, model, sounds, tmp_path, interrupted_at, name, kept
):
    (tmp_path / name).write_text("what an earlier run found")
    interrupted_at("c.ogg")
    status, out, err = htsat("detect", sounds, "--model", model, "--output", tmp_path / name)
    assert (status, out) == (130, "")
    assert sentences(err) == [f"htsat: interrupted; the events found so far are in {tmp_path / kept}"]
    text = (tmp_path / kept).read_text()
    assert "a.wav" in text and "b.flac" in text and "c.ogg" not in text
    assert (tmp_path / name).read_text() == "what an earlier run found"


def test_ctrl_c_before_the_first_event_leaves_nothing(htsat, model, sounds, tmp_path, interrupted_at):
    interrupted_at("a.wav")
    for arguments in ([], ["--output", tmp_path / "x.tsv"]):
        assert htsat("detect", sounds, "--model", model, *arguments) == (130, "", "htsat: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_what_is_kept_has_the_format_of_the_output(tmp_path):
    row = {"filename": "a.wav", "onset": 0.5, "offset": 1.25, "event_label": "c1", "score": 0.75}
    for name, kept, first in (
        ("x.selections.txt", "x.partial.selections.txt", "Selection\tView"),
        ("x.txt", "x.partial.txt", "0.500000\t1.250000\tc1"),
    ):
        with pytest.raises(KeyboardInterrupt), rows_kept([row], tmp_path / name):
            raise KeyboardInterrupt
        assert (tmp_path / kept).read_text().startswith(first)


# ── evaluate ─────────────────────────────────────────────────────────────────────────────────────────────────────────

REFERENCE = "filename\tonset\toffset\tevent_label\na.wav\t1\t3\tDog\na.wav\t5\t6\tCat\nb.wav\t2\t4\tDog\n"
# In a.wav the dog comes 0.1 s late, within every tolerance. In b.wav its first half is missed: half the event is found,
# which is enough for an intersection of 0.5, but not within 200 ms. The cat is heard two seconds late.
FOUND = "filename\tonset\toffset\tevent_label\na.wav\t1.1\t3\tDog\na.wav\t7\t8\tCat\nb.wav\t3\t4\tDog\n"
DURATIONS = "filename\tduration\na.wav\t10\nb.wav\t10\n"


@pytest.fixture
def tables(tmp_path):
    """The options that name a reference, durations and detections, worked out by hand."""
    for name, text in (("reference", REFERENCE), ("durations", DURATIONS), ("detections", FOUND)):
        (tmp_path / f"{name}.tsv").write_text(text)
    return [
        part for name in ("reference", "durations", "detections") for part in (f"--{name}", tmp_path / f"{name}.tsv")
    ]


def refuse_constants(name: str) -> None:
    raise AssertionError(f"{name} is not JSON.")


def test_evaluate_events_prints_and_writes_the_scores_of_a_case_worked_by_hand(htsat, tables, tmp_path):
    output = tmp_path / "scores.json"
    status, out, err = htsat("evaluate", "events", *tables, "--json", output)
    assert (status, err) == (0, "")
    result = json.loads(output.read_text(), parse_constant=refuse_constants)
    by_hand = {
        "intersection_f1": {"Dog": 1.0, "Cat": 0.0},
        "collar_f1": {"Dog": 1 / 2, "Cat": 0.0},  # one right, one wrong, one missed
        "segment_f1": {"Dog": 6 / 7, "Cat": 0.0},  # seconds 1 and 2 of a.wav and 3 of b.wav, but not second 2
    }
    for criterion, per_class in by_hand.items():
        assert result[criterion]["per_class"] == pytest.approx(per_class)
        assert result[criterion]["macro_all_classes"] == pytest.approx(sum(per_class.values()) / 2)
        kept = [score for label, score in per_class.items() if label not in result[criterion]["left_out_of_macro"]]
        assert result[criterion]["macro"] == pytest.approx(sum(kept) / len(kept))
    assert result["intersection_f1"]["left_out_of_macro"] == ["Cat"]  # as in the paper: no hit, no part in the mean
    assert (result["num_files"], result["num_reference_events"], result["num_detected_events"]) == (2, 3, 3)
    lines = {line.split("  ")[0]: re.findall(r"\d+\.\d\d", line) for line in out.splitlines()}
    assert lines["Dog"] == ["100.00", "50.00", "85.71"]
    assert lines["macro, all classes"] == ["50.00", "25.00", "42.86"]
    assert htsat("evaluate", "events", *tables) == (0, out, "")


def test_scores_carry_the_settings_that_they_were_made_with(htsat, tables, tmp_path):
    htsat("evaluate", "events", *tables, "--json", tmp_path / "scores.json")
    result = json.loads((tmp_path / "scores.json").read_text())
    for criterion, numbers in {"intersection_f1": ["0.5"], "collar_f1": ["200 ms|0.2", "20 ?%|0.2"]}.items():
        text = json.dumps({key: value for key, value in result[criterion].items() if key not in ("macro", "per_class")})
        assert all(re.search(number, text) for number in numbers), text


def test_overlapping_detections_are_joined_when_asked(htsat, tables, tmp_path):
    with (tmp_path / "detections.tsv").open("a") as file:
        file.write("b.wav\t2\t3.5\tDog\n")
    status, out, err = htsat("evaluate", "events", *tables)
    assert (status, out, len(sentences(err))) == (1, "", 1) and "detections.tsv, line 5" in err
    assert htsat("evaluate", "events", *tables, "--merge-overlaps")[::2] == (0, "")


@pytest.mark.parametrize(
    "table, line, problem",
    [
        ("reference", "a.wav\t1\n", "reference.tsv, line 5: the row has 2 cells"),
        ("reference", "c.wav\t1\t2\tDog\n", "reference.tsv, line 5: 'c.wav' has no duration"),
        ("detections", "a.wav\t-1\t2\tDog\n", "detections.tsv, line 5: onset is -1"),
        ("detections", "a.wav\tnan\t2\tDog\n", "detections.tsv, line 5: onset is nan"),
        ("detections", "a.wav\t9\t8\tDog\n", "detections.tsv, line 5: the event ends at 8 s, before"),
        ("durations", "c.wav\tlong\n", "durations.tsv, line 4: duration is 'long'"),
    ],
)
def test_a_wrong_row_is_one_sentence_with_file_and_line(htsat, tables, tmp_path, table, line, problem):
    with (tmp_path / f"{table}.tsv").open("a") as file:
        file.write(line)
    status, out, err = htsat("evaluate", "events", *tables, "--json", tmp_path / "scores.json")
    (sentence,) = sentences(err)
    assert (status, out) == (1, "") and problem in sentence
    assert not (tmp_path / "scores.json").exists()


def test_a_missing_table_is_one_sentence(htsat, tables, tmp_path):
    (tmp_path / "durations.tsv").unlink()
    status, out, err = htsat("evaluate", "events", *tables)
    assert (status, out) == (1, "")
    assert sentences(err) == [f"htsat: {tmp_path}/durations.tsv cannot be used: No such file or directory"]


def test_scores_are_written_whole_or_not_at_all(htsat, tables, tmp_path, monkeypatch):
    output = tmp_path / "scores.json"
    output.write_text("what an earlier run found")

    def break_off(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", str(output))

    monkeypatch.setattr(json, "dump", break_off)
    status, _, err = htsat("evaluate", "events", *tables, "--json", output)
    said = f"{output} could not be written: No space left on device; make room there. What was there before is kept."
    assert status == 1 and sentences(err) == [f"htsat: {said}"]
    assert output.read_text() == "what an earlier run found"
    assert len(list(tmp_path.iterdir())) == 4


# ── evaluate detections ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def reference(model, sounds, tmp_path) -> Path:
    """Truth that the model finds in part: every second of its events, moved by a tenth of a second."""
    path = tmp_path / "truth.tsv"
    rows = [(row[0], row[1] + 0.1, row[2] + 0.1, row[3]) for row in expected_rows(model, sounds)[::2]]
    path.write_text("filename\tonset\toffset\tevent_label\n" + "".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("arguments", [[], ["--threshold", "0.6", "--time-refinement", "2"]])
def test_evaluate_detections_is_detect_and_then_evaluate_events(htsat, model, sounds, tmp_path, reference, arguments):
    durations, found = tmp_path / "durations.tsv", tmp_path / "found.tsv"
    seconds = [soundfile.info(sounds / name).duration for name in NAMES]
    durations.write_text(
        "filename\tduration\n" + "".join(f"{name}\t{s}\n" for name, s in zip(NAMES, seconds, strict=True))
    )
    assert htsat("detect", sounds, "--model", model, "--output", found, *arguments)[0] == 0
    scores = ["--reference", reference, "--json"]
    apart = htsat("evaluate", "events", "--durations", durations, "--detections", found, *scores, tmp_path / "1.json")
    command = ["evaluate", "detections", "--audio", sounds, "--model", model, *arguments, *scores]
    at_once = htsat(*command, tmp_path / "2.json", "--output", tmp_path / "kept.tsv")
    with_durations = htsat(*command, tmp_path / "3.json", "--durations", durations, "--output", tmp_path / "kept.csv")
    assert apart == at_once == with_durations and apart[0] == 0
    results = [json.loads((tmp_path / f"{number}.json").read_text()) for number in (1, 2, 3)]
    assert results[0] == results[1] == results[2]
    assert 0 < results[0]["intersection_f1"]["macro"] < 1
    assert (tmp_path / "kept.tsv").read_text() == found.read_text()
    assert table((tmp_path / "kept.csv").read_text(), ",") == table(found.read_text())


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["--json", "none/x.json"], "none for x.json does not exist"),
        (["--output", "none/x.tsv"], "none for x.tsv does not exist"),
        (["--output", "x.xls"], "x.xls"),
        (["--reference", "strange.tsv"], "strange.tsv names 'z.wav', which is not among the recordings of"),
        (["--reference", "none.tsv"], "none.tsv cannot be used"),
        (["--reference", "cut.tsv"], "cut.tsv, line 1"),
        (["--durations", "short.tsv"], "short.tsv has no duration of 'day/b.flac'"),
        (["--audio", "none"], "none does not exist"),
    ],
)
def test_what_evaluate_detections_lacks_is_noticed_before_the_work(
    htsat, no_model, sounds, tmp_path, monkeypatch, reference, arguments, problem
):
    monkeypatch.chdir(tmp_path)
    Path("strange.tsv").write_text("filename\tonset\toffset\tevent_label\nz.wav\t1\t2\tc1\n")
    Path("cut.tsv").write_text("filename\tonset\n")
    Path("short.tsv").write_text("filename\tduration\na.wav\t6\n")
    given = ["--audio", sounds, "--reference", reference, "--model", "any"]
    status, out, err = htsat("evaluate", "detections", *given, *arguments)
    (sentence,) = sentences(err)
    assert (status, out) == (1, "") and problem in sentence


def test_where_a_recording_cannot_be_heard_nothing_is_scored_but_the_rest_is_kept(
    htsat, model, sounds, tmp_path, reference
):
    folder = tmp_path / "sounds"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((sounds / name).read_bytes()[: 9_000 if name == "a.wav" else None])
    output = tmp_path / "kept.tsv"
    command = ["evaluate", "detections", "--audio", folder, "--reference", reference, "--model", model]
    status, out, err = htsat(*command, "--output", output)
    assert (status, out) == (1, "")
    first, second = sentences(err)
    assert "a.wav is truncated" in first and "Nothing is scored" in second
    assert sorted(read_events(output)) == NAMES[1:]


# ── what the command needs ───────────────────────────────────────────────────────────────────────────────────────────


def test_only_what_needs_an_extra_asks_for_it():
    extras = ["matplotlib", "sklearn", "scipy", "pandas", "datasets", "accelerate", "evaluate", "sed_scores_eval"]
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({extras}))\n"  # None: cannot be imported
        "from modeling_htsat.cli import main\n"
        "assert main(['prepare', '--help']) == 1\n"
        "sys.exit(main(['detect', 'none.wav', '--model', 'any', '--plot', 'x.png']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        'htsat: `htsat prepare` needs datasets: `pip install "modeling-htsat[train]"`.\n'
        'htsat: --plot needs matplotlib: `pip install "modeling-htsat[plot]"`.\n'
    )
