"""What is saved with a model, and what `htsat publish` looks at before it asks the Hub; `test_hub.py` has the rest."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import pipeline

from modeling_htsat import (
    HTSATAudioClassificationPipeline,
    HTSATFeatureExtractor,
    HTSATForAudioClassification,
    HTSATForSoundEventDetection,
    cli,
)
from modeling_htsat.ensemble import MEMBERS_FILE


@pytest.fixture
def folder(make_model, tmp_path) -> Path:
    """A model that could be published."""
    model = make_model(HTSATForAudioClassification)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# ── what is saved ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_saved_model_has_an_extractor_that_hears_as_it_does(folder):
    config = HTSATForAudioClassification.from_pretrained(folder).config
    extractor = HTSATFeatureExtractor.from_pretrained(folder)
    assert {name: getattr(extractor, name) for name in config.front_end} == config.front_end
    assert extractor.clip_frames == 256 and extractor.short_clips == "repeat"


@pytest.mark.parametrize("short_clips", ["pad", "stretch"])
def test_an_extractor_that_is_there_keeps_its_own_choices_and_follows_the_model_in_the_rest(folder, short_clips):
    HTSATFeatureExtractor(hop_length=160, short_clips=short_clips).save_pretrained(folder)
    HTSATForAudioClassification.from_pretrained(folder).save_pretrained(folder)
    extractor = HTSATFeatureExtractor.from_pretrained(folder)
    assert (extractor.short_clips, extractor.hop_length, extractor.clip_frames) == (short_clips, 320, 256)


def test_a_half_written_extractor_is_written_anew(folder):
    (folder / "preprocessor_config.json").write_text('{"short_clips": "pa')
    HTSATForAudioClassification.from_pretrained(folder).save_pretrained(folder)
    assert HTSATFeatureExtractor.from_pretrained(folder).short_clips == "repeat"


def test_one_process_of_many_saves(make_model, tmp_path):
    make_model(HTSATForAudioClassification).save_pretrained(tmp_path / "model", is_main_process=False)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("task", ["audio-classification", "sound-event-detection"])
def test_a_saved_pipeline_loads_without_a_word_about_trust(make_model, small_extractor, make_sound, tmp_path, task):
    is_tagger = task == "audio-classification"
    options = {"pipeline_class": HTSATAudioClassificationPipeline} if is_tagger else {}
    model = make_model(HTSATForAudioClassification if is_tagger else HTSATForSoundEventDetection)
    small_extractor.short_clips, small_extractor.frames_per_step = "pad", model.config.frames_per_step
    saved = pipeline(task, model=model, feature_extractor=small_extractor, **options)
    saved.save_pretrained(tmp_path)
    loaded = pipeline(task, str(tmp_path), **options)
    sound = make_sound(9_000)
    assert loaded.feature_extractor.short_clips == "pad" and loaded(sound) == saved(sound)


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def refused(folder, capsys):
    """`refused("me/name")`: the one sentence that the command ends with, and nothing else."""

    def run(name: str = "me/model", folder: Path = folder) -> str:
        capsys.readouterr()
        status = cli.main(["publish", str(folder), name, "--dry-run"])
        out, err = capsys.readouterr()
        assert (status, out) == (1, "") and err.startswith("htsat: ") and err.count("\n") == 1
        return err.removeprefix("htsat: ")

    return run


def change_json(path: Path, **values: Any):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_weights(folder: Path, change: Any):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("name", ["me/a/b", "me/ä", "../secrets", "me/--x", "me/a..b", "", "me/x.git", "m" * 97])
def test_a_name_that_no_repository_can_have_is_refused_before_the_work(refused, name, tmp_path):
    sentence = refused(name, tmp_path / "nothing")
    assert sentence.startswith(f"{name!r} is no name for a repository")


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused(refused, folder, file):
    (folder / file).unlink()
    assert refused() == f"The folder {folder} lacks {file}; save model and extractor in it.\n"


def test_pickled_weights_are_no_weights(refused, folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "lacks model.safetensors" in refused()


def test_what_is_no_folder_of_a_model_is_refused(refused, folder, tmp_path):
    assert "is no folder; give the one" in refused(folder=tmp_path / "nothing")
    assert "is no folder; give the one" in refused(folder=folder / "config.json")
    (folder / MEMBERS_FILE).write_text("[]")
    assert "holds an ensemble; publish its members one by one" in refused()


@pytest.mark.parametrize("values", [{"model_type": "swin"}, {"architectures": ["HTSATForX"]}, {"architectures": None}])
def test_a_model_of_another_kind_is_refused_by_its_name(refused, folder, values):
    change_json(folder / "config.json", **values)
    assert "an HTS-AT is needed: HTSATForAudioClassification" in refused()


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_file_that_was_not_written_to_its_end_is_refused(refused, folder, file):
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    assert str(folder) in refused()


def test_a_configuration_that_contradicts_itself_is_refused_by_what_is_wrong(refused, folder):
    change_json(folder / "config.json", window_size=7)
    assert "cannot be loaded (`window_size` is 7; it must be a power of two" in refused()


@pytest.mark.parametrize(
    "change, trouble",
    [
        (lambda weights: weights.pop("htsat.norm.weight"), "`htsat.norm.weight` is missing"),
        (lambda weights: weights.update(more=weights["htsat.norm.weight"] + 1), "`more` is unknown"),
        (lambda weights: weights["htsat.norm.weight"].fill_(float("nan")), "hold NaN or infinite numbers"),
    ],
)
def test_weights_that_are_not_the_models_are_refused_by_their_name(refused, folder, change, trouble):
    change_weights(folder, change)
    assert trouble in refused()


def test_weights_for_other_labels_are_refused(refused, folder):
    names = dict(enumerate("abc"))
    change_json(folder / "config.json", id2label=names, label2id={label: index for index, label in names.items()})
    assert "are not those of its config.json: `classifier.convolution.bias` has another size" in refused()


def test_an_extractor_of_another_model_is_refused(refused, folder):
    HTSATFeatureExtractor(clip_frames=256, frames_per_step=32, hop_length=160).save_pretrained(folder)
    assert "`hop_length` is 320 by config.json and 160 by preprocessor_config.json" in refused()


def test_offline_it_is_said_that_it_is(folder, capsys):
    assert cli.main(["publish", str(folder), "me/model"]) == 1  # conftest.py has all tests offline
    assert "me/model was not published: HF_HUB_OFFLINE is set; unset it" in capsys.readouterr().err
