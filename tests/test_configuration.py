"""The configuration holds what decides a model, refuses what cannot be built, and every preset can be built."""

import json
import shutil
from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, AutoFeatureExtractor

from modeling_htsat import (
    HTSATConfig,
    HTSATFeatureExtractor,
    HTSATForAudioClassification,
    HTSATForSoundEventDetection,
)
from modeling_htsat.labels import audioset_labels

PRESETS = sorted(path for path in (Path(__file__).parents[1] / "configuration" / "models").iterdir() if path.is_dir())
AUDIOSET_PRESETS = {"htsat-tiny-audioset", "htsat-base-audioset", "htsat-nano"}
# What the Hub's own format holds beside our values: the class names that find the code, and who wrote the file.
WRITTEN_BY_TRANSFORMERS = {"auto_map", "model_type", "architectures", "transformers_version"}
FILE_NAMES = ("config.json", "preprocessor_config.json")


def without_version(config: HTSATConfig) -> dict:
    return {name: value for name, value in config.to_dict().items() if name != "transformers_version"}


def read_preset(folder: Path) -> tuple[dict, dict]:
    """A preset's two files, each as a dictionary."""
    config, preprocessor = (json.loads((folder / name).read_text(encoding="utf-8")) for name in FILE_NAMES)
    return config, preprocessor


def unknown_keys(folder: Path) -> set[str]:
    """Keys in a preset that no class reads: typing errors, as transformers takes any key in silence."""
    config, preprocessor = read_preset(folder)
    known_to_config = {field.name for field in fields(HTSATConfig)} | WRITTEN_BY_TRANSFORMERS
    known_to_extractor = set(signature(HTSATFeatureExtractor).parameters) - {"kwargs"}
    known_to_extractor |= {"feature_extractor_type", "padding_side"}
    return (set(config) - known_to_config) | (set(preprocessor) - known_to_extractor)


# ── derived sizes ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_defaults_are_the_papers_model():
    config = HTSATConfig()
    assert (config.num_folds, config.clip_frames) == (4, 1024)
    assert config.stage_grids == [64, 32, 16, 8]
    assert config.stage_windows == [8, 8, 8, 8]
    assert config.stage_dims == [96, 192, 384, 768]
    assert [dim // heads for dim, heads in zip(config.stage_dims, config.num_heads, strict=True)] == [24] * 4
    assert config.hidden_size == 768
    assert (config.num_bins, config.num_steps, config.frames_per_step) == (2, 32, 32)
    assert config.overlap_steps == 4
    assert (config.sampling_rate, config.window_length, config.hop_length, config.num_mel_bins) == (
        32000,
        1024,
        320,
        64,
    )
    assert (config.min_frequency, config.max_frequency) == (50, 14000)
    assert (config.mlp_ratio, config.drop_path_rate, config.qkv_bias, config.hidden_act) == (4, 0.1, True, "gelu")


def test_an_image_of_128_hears_256_frames():
    config = HTSATConfig(spec_size=128)
    assert (config.num_folds, config.clip_frames) == (2, 256)
    assert config.stage_grids == [32, 16, 8, 4]
    assert config.stage_windows == [8, 8, 8, 4]  # the last stage is smaller than the window
    assert (config.num_bins, config.num_steps, config.frames_per_step) == (2, 8, 32)
    assert config.overlap_steps == 1


def test_fewer_mel_bins_make_more_folds_and_128_make_fewer():
    fine, coarse = HTSATConfig(num_mel_bins=128), HTSATConfig(num_mel_bins=32)
    assert (fine.num_folds, fine.clip_frames, fine.num_bins, fine.num_steps) == (2, 512, 4, 16)
    assert (coarse.num_folds, coarse.clip_frames, coarse.num_bins, coarse.num_steps) == (8, 2048, 1, 64)


def test_the_base_width_doubles_to_1024():
    config = HTSATConfig(embed_dim=128, depths=(2, 2, 12, 2))
    assert config.stage_dims == [128, 256, 512, 1024]
    assert config.hidden_size == 1024


# ── seconds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ten_seconds_have_32_steps_of_exactly_312_5_milliseconds():
    config = HTSATConfig()
    assert config.seconds_per_step(1001) == 0.3125
    assert config.num_steps_of(1001) == 32
    edges = config.step_edges(1001)
    assert len(edges) == 33
    assert (edges[0], edges[1], edges[-1]) == (0, 0.3125, 10)


def test_a_recording_beyond_one_window_has_steps_of_320_milliseconds():
    config = HTSATConfig()
    for num_frames in (1025, 1056, 1057, 3000, 360_001):
        assert config.seconds_per_step(num_frames) == pytest.approx(0.32)
    assert config.step_edges(3000)[-1] == pytest.approx(94 * 0.32)


def test_up_to_one_window_the_steps_end_with_the_sound():
    config = HTSATConfig()
    for num_frames in (2, 101, 500, 1024):
        edges = config.step_edges(num_frames)
        assert len(edges) == 33
        assert edges[-1] == pytest.approx((num_frames - 1) * 0.01)


def test_a_single_frame_still_has_a_duration():
    assert HTSATConfig().step_edges(1)[-1] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("num_frames", "num_steps"), [(1, 32), (1001, 32), (1024, 32), (1025, 33), (1056, 33), (1057, 34), (3000, 94)]
)
def test_every_32_frames_beyond_1024_begin_a_step(num_frames, num_steps):
    config = HTSATConfig()
    assert config.num_steps_of(num_frames) == num_steps
    edges = config.step_edges(num_frames)
    assert len(edges) == num_steps + 1
    assert all(later > earlier for earlier, later in zip(edges, edges[1:], strict=False))


def test_speech_commands_at_16_khz_has_the_same_steps():
    config = HTSATConfig(sampling_rate=16000, hop_length=160)
    assert config.seconds_per_step(1001) == 0.3125
    assert config.seconds_per_step(1025) == pytest.approx(0.32)


def test_a_longer_hop_makes_longer_steps():
    config = HTSATConfig(hop_length=640)
    assert config.seconds_per_step(501) == 0.3125
    assert config.seconds_per_step(1025) == pytest.approx(0.64)


# ── labels ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_label2id_follows_from_id2label():
    config = HTSATConfig(id2label={0: "dog", 1: "rooster", 2: "rain"})
    assert config.label2id == {"dog": 0, "rooster": 1, "rain": 2}
    assert config.num_labels == 3


def test_label_numbers_that_json_turned_into_strings_are_numbers_again():
    config = HTSATConfig(id2label={"0": "dog", "1": "rain"}, label2id={"dog": "0", "rain": "1"})
    assert config.id2label == {0: "dog", 1: "rain"}
    assert HTSATConfig(id2label={"0": "dog", "1": "rain"}).label2id == {"dog": 0, "rain": 1}


def test_num_labels_at_loading_names_the_new_heads_labels(tmp_path):
    HTSATConfig(id2label={0: "dog", 1: "rooster", 2: "rain"}).save_pretrained(tmp_path)
    config = HTSATConfig.from_pretrained(tmp_path, num_labels=4)
    assert config.num_labels == 4
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2", 3: "LABEL_3"}
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2, "LABEL_3": 3}


def test_id2label_alone_at_loading_replaces_both_label_maps(tmp_path):
    HTSATConfig(id2label={0: "dog", 1: "rooster", 2: "rain"}).save_pretrained(tmp_path)
    config = HTSATConfig.from_pretrained(tmp_path, id2label={0: "kettle", 1: "door"})
    assert config.num_labels == 2
    assert config.label2id == {"kettle": 0, "door": 1}
    config.save_pretrained(tmp_path / "again")
    assert without_version(HTSATConfig.from_pretrained(tmp_path / "again")) == without_version(config)


def test_labels_at_loading_may_have_the_string_keys_of_json_and_must_agree_with_their_number(tmp_path):
    HTSATConfig(num_labels=3).save_pretrained(tmp_path)
    config = HTSATConfig.from_pretrained(tmp_path, id2label={"0": "kettle", "1": "door"}, num_labels=2)
    assert config.id2label == {0: "kettle", 1: "door"}
    with pytest.raises(ValueError, match="`num_labels` is 4, and `id2label` names 2 labels"):
        HTSATConfig.from_pretrained(tmp_path, id2label={0: "kettle", 1: "door"}, num_labels=4)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"id2label": {0: "dog", 2: "rain"}}, "`id2label` must number its 2 labels from 0 upwards, without a gap"),
        ({"id2label": {1: "dog", 2: "rain"}}, "from 0 upwards"),
        ({"id2label": {0: "dog"}, "label2id": {"cat": 0}}, "`id2label` and `label2id` do not say the same"),
        ({"id2label": {0: "dog", 1: "cat"}, "label2id": {"dog": 0}}, "do not say the same"),
        ({"id2label": {0: "dog", 1: "cat"}, "label2id": {"dog": 1, "cat": 0}}, "do not say the same"),
        ({"id2label": {0: "dog", 1: "dog"}}, "names .dog. twice; every label needs one index of its own"),
        ({"id2label": {}}, "at least one label"),
        ({"num_labels": 0}, "at least one label"),
    ],
)
def test_labels_that_contradict_each_other_are_refused(values, sentence):
    with pytest.raises(StrictDataclassClassValidationError, match=sentence):
        HTSATConfig(**values)


# ── strictness ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "values",
    [
        {"embed_dim": 96.0},
        {"embed_dim": "96"},
        {"depths": (2, 2, "6", 2)},
        {"depths": 12},
        {"num_mel_bins": True},
        {"token_semantic_head": 1},
        {"hidden_act": None},
        {"window_overlap": "0.1"},
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(values):
    (name,) = values
    with pytest.raises(StrictDataclassFieldValidationError, match=name):
        HTSATConfig(**values)


def test_a_value_of_the_wrong_type_is_refused_later_too():
    config = HTSATConfig()
    with pytest.raises(StrictDataclassFieldValidationError, match="spec_size"):
        config.spec_size = "128"


def test_whole_numbers_are_welcome_where_json_drops_the_point():
    config = HTSATConfig(min_frequency=50, max_frequency=14000, mlp_ratio=4, drop_path_rate=0, window_overlap=0)
    assert config.mlp_ratio == 4
    assert config.overlap_steps == 0


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (
            {"problem_type": "multi_label"},
            ["problem_type", "'multi_label'", "multi_label_classification", "regression"],
        ),
        ({"spec_size": 100}, ["`spec_size` (100)", "`num_mel_bins` (64)"]),
        ({"num_mel_bins": 100}, ["`spec_size` (256)", "`num_mel_bins` (100)"]),
        ({"patch_size": 3}, ["`patch_size` (3)", "`patch_stride` (4)"]),
        ({"patch_size": 5}, ["`patch_size` (5)", "`patch_stride` (4)"]),
        ({"patch_size": 3, "patch_stride": 3}, ["`spec_size` (256)", "`patch_stride` (3)", "96"]),
        ({"num_mel_bins": 16}, ["`spec_size` (256)", "512", "16 folds"]),
        ({"depths": (2,) * 6, "num_heads": (1,) * 6}, ["`spec_size` (256)", "512", "6 stages"]),
        ({"window_size": 6}, ["`window_size` is 6", "power of two"]),
        ({"window_size": 1}, ["`window_size` is 1", "power of two"]),
        ({"spec_size": 192}, ["Stage 2", "12 x 12", "`window_size` 8", "`spec_size` (192)"]),
        ({"depths": ()}, ["`depths` ()", "`num_heads` (4, 8, 16, 32)"]),
        ({"depths": (2, 2, 6)}, ["`depths` (2, 2, 6)", "`num_heads` (4, 8, 16, 32)"]),
        ({"depths": (2, 0, 6, 2)}, ["`depths` (2, 0, 6, 2)", "positive"]),
        ({"num_heads": (4, 8, 0, 32)}, ["`num_heads` (4, 8, 0, 32)", "positive"]),
        ({"num_heads": (4, 8, 17, 32)}, ["Stage 2", "384", "17 heads", "`embed_dim` 96"]),
        ({"embed_dim": 98}, ["Stage 0", "98", "4 heads"]),
        ({"min_frequency": 15000}, ["`min_frequency` (15000)", "`max_frequency` (14000.0)"]),
        ({"min_frequency": -1}, ["`min_frequency` (-1)"]),
        ({"hop_length": 1025}, ["`hop_length` (1025)", "`window_length` (1024)"]),
        ({"hop_length": 0}, ["`hop_length` is 0"]),
        ({"embed_dim": 0}, ["`embed_dim` is 0"]),
        ({"windows_per_pass": 0}, ["`windows_per_pass` is 0"]),
        ({"window_overlap": 0.51}, ["`window_overlap` is 0.51", "0.5"]),
        ({"window_overlap": -0.1}, ["`window_overlap` is -0.1"]),
        ({"drop_path_rate": 1.0}, ["`drop_path_rate` is 1.0"]),
        ({"hidden_dropout_prob": -0.5}, ["`hidden_dropout_prob` is -0.5"]),
        ({"attention_probs_dropout_prob": 2}, ["`attention_probs_dropout_prob` is 2"]),
        ({"mlp_ratio": 0}, ["`mlp_ratio` is 0"]),
        ({"clip_pooling": "max"}, ["`clip_pooling` is 'max'", "mean", "linear_softmax"]),
        ({"clip_pooling": "linear_softmax", "token_semantic_head": False}, ["`clip_pooling`", "`token_semantic_head="]),
    ],
)
def test_values_that_do_not_fit_together_are_refused_in_one_sentence_that_names_them(values, named):
    with pytest.raises(StrictDataclassClassValidationError) as caught:
        HTSATConfig(**values)
    message = str(caught.value)
    missing = [words for words in named if words not in message]
    assert not missing, message
    assert message.count("ValueError") == 1  # one complaint, not a list


def test_values_that_do_not_fit_together_are_refused_when_given_at_loading(tmp_path):
    HTSATConfig().save_pretrained(tmp_path)
    for values in ({"window_overlap": 0.9}, {"problem_type": "multi_label"}, {"embed_dim": 98}):
        (name,) = values
        with pytest.raises(StrictDataclassClassValidationError, match=name):
            HTSATConfig.from_pretrained(tmp_path, **values)


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_configuration_survives_json_with_every_value_changed(tmp_path):
    config = HTSATConfig(
        sampling_rate=16000,
        window_length=512,
        hop_length=160,
        num_mel_bins=32,
        min_frequency=20.0,
        max_frequency=7500,
        spec_size=128,
        patch_size=6,
        patch_stride=4,
        embed_dim=24,
        depths=(1, 3, 2),
        num_heads=[2, 3, 6],
        window_size=4,
        mlp_ratio=2.5,
        qkv_bias=False,
        hidden_act="relu",
        drop_path_rate=0.3,
        hidden_dropout_prob=0.05,
        attention_probs_dropout_prob=0.15,
        layer_norm_eps=1e-6,
        initializer_range=0.03,
        clip_pooling="linear_softmax",
        window_overlap=0.25,
        windows_per_pass=3,
        problem_type="regression",
        id2label={0: "loudness", 1: "roughness"},
    )
    config.save_pretrained(tmp_path)
    loaded = HTSATConfig.from_pretrained(tmp_path)
    assert without_version(loaded) == without_version(config)
    defaults = HTSATConfig().to_dict()
    unchanged = {
        field.name
        for field in fields(HTSATConfig)
        if field.name in HTSATConfig.__annotations__ and config.to_dict()[field.name] == defaults[field.name]
    }
    # `token_semantic_head`, without which there is no other pooling, is saved and loaded in test_modeling.py.
    assert unchanged <= {"patch_stride", "event_decoding", "token_semantic_head"}, (
        "a value of its own is missing from this test"
    )


def test_auto_config_knows_the_model_type(tmp_path):
    HTSATConfig(num_labels=3).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is HTSATConfig
    assert type(AutoConfig.for_model("htsat", num_labels=7)) is HTSATConfig


# ── presets ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_five_presets_are_there():
    names = {"htsat-tiny-esc50", "htsat-tiny-speech-commands-v2"} | AUDIOSET_PRESETS
    assert names <= {path.name for path in PRESETS}


@pytest.mark.parametrize("folder", PRESETS, ids=lambda path: path.name)
def test_every_key_of_a_preset_is_read_by_a_class(folder):
    assert unknown_keys(folder) == set()


@pytest.mark.parametrize("file_name", FILE_NAMES)
def test_a_typing_error_in_a_preset_would_be_noticed(tmp_path, file_name):
    shutil.copytree(PRESETS[0], tmp_path / "preset")
    path = tmp_path / "preset" / file_name
    values = json.loads(path.read_text(encoding="utf-8"))
    values["hop_lenght"] = values.pop("hop_length")
    path.write_text(json.dumps(values), encoding="utf-8")
    assert unknown_keys(tmp_path / "preset") == {"hop_lenght"}


@pytest.mark.parametrize("folder", PRESETS, ids=lambda path: path.name)
def test_a_presets_model_and_extractor_agree(folder):
    config = HTSATConfig.from_pretrained(folder)
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    assert type(extractor) is HTSATFeatureExtractor
    shared = set(config.to_dict()) & set(signature(HTSATFeatureExtractor).parameters)
    front_end = {"sampling_rate", "window_length", "hop_length", "num_mel_bins", "min_frequency", "max_frequency"}
    assert front_end <= shared
    assert {name: getattr(extractor, name) for name in shared} == {name: getattr(config, name) for name in shared}
    assert extractor.clip_frames == config.clip_frames
    assert extractor.frames_per_step == config.frames_per_step


@pytest.mark.parametrize("folder", PRESETS, ids=lambda path: path.name)
def test_a_preset_is_exactly_what_saving_it_writes(folder, tmp_path):
    HTSATConfig.from_pretrained(folder).save_pretrained(tmp_path)
    HTSATFeatureExtractor.from_pretrained(folder).save_pretrained(tmp_path)
    (config, preprocessor), (saved_config, saved_preprocessor) = read_preset(folder), read_preset(tmp_path)
    assert (
        set(saved_config) - set(config) <= WRITTEN_BY_TRANSFORMERS
    )  # every value is written out, none is left to defaults
    assert {name: saved_config[name] for name in config} == config
    assert preprocessor.items() <= saved_preprocessor.items()


@pytest.mark.parametrize("name", sorted(AUDIOSET_PRESETS))
def test_audioset_presets_name_the_527_classes_in_their_order(name):
    (folder,) = (path for path in PRESETS if path.name == name)
    config = HTSATConfig.from_pretrained(folder)
    assert list(config.id2label.values()) == audioset_labels()
    assert list(config.id2label) == list(range(527))
    assert config.problem_type == "multi_label_classification"


@pytest.mark.parametrize("name", ["htsat-tiny-speech-commands-v2", "htsat-nano-one-second", "htsat-tiny-esc50"])
def test_where_a_clip_has_one_label_a_preset_says_so(name):
    """As the recipes of these data sets train it, and so that accuracy, the papers' measure, is reported."""
    (folder,) = (path for path in PRESETS if path.name == name)
    assert HTSATConfig.from_pretrained(folder).problem_type == "single_label_classification"


def test_the_authors_numbered_spoken_words_as_their_file_system_listed_them():
    """The output of scv2/prep_scv2.ipynb in their repository."""
    (folder,) = (path for path in PRESETS if path.name == "htsat-tiny-speech-commands-v2")
    config = HTSATConfig.from_pretrained(folder)
    words = [config.id2label[index] for index in range(35)]
    assert words[:6] == ["bed", "wow", "five", "left", "down", "forward"]
    assert words[15:20] == ["four", "eight", "cat", "happy", "six"]
    assert words[-3:] == ["no", "three", "backward"]
    assert {name: words.index(name) for name in words} == config.label2id


def test_speech_commands_listens_at_16_khz_and_esc50_at_32():
    values = {path.name: HTSATConfig.from_pretrained(path) for path in PRESETS}
    speech, animals = values["htsat-tiny-speech-commands-v2"], values["htsat-tiny-esc50"]
    assert (speech.sampling_rate, speech.hop_length, speech.num_labels) == (16000, 160, 35)
    assert (animals.sampling_rate, animals.hop_length, animals.num_labels) == (32000, 320, 50)


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("htsat-tiny-audioset", 29_963_431),
        ("htsat-base-audioset", 71_062_823),
        ("htsat-nano", 1_878_107),
        ("htsat-tiny-esc50", 27_764_938),
        ("htsat-tiny-speech-commands-v2", 27_695_803),
    ],
)
@pytest.mark.parametrize("model_class", [HTSATForAudioClassification, HTSATForSoundEventDetection])
def test_a_preset_builds_a_model_of_its_size_without_memory(name, num_parameters, model_class):
    (folder,) = (path for path in PRESETS if path.name == name)
    with torch.device("meta"):
        model = model_class(HTSATConfig.from_pretrained(folder))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


def test_decoding_that_was_tuned_for_other_labels_is_left_behind(tmp_path):
    tuned = {"threshold": {"dog": 0.3, "cat": 0.6}}
    HTSATConfig(id2label={0: "dog", 1: "cat"}, event_decoding=tuned).save_pretrained(tmp_path)
    assert HTSATConfig.from_pretrained(tmp_path).event_decoding == tuned
    assert HTSATConfig.from_pretrained(tmp_path, id2label={"0": "dog", "1": "cat"}).event_decoding == tuned
    assert HTSATConfig.from_pretrained(tmp_path, id2label={0: "bark", 1: "meow"}).event_decoding is None
    assert HTSATConfig.from_pretrained(tmp_path, num_labels=3).event_decoding is None


# ── damaged files ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["[]", '"text"', "3", "[" * 100_000, "{"])
def test_a_file_that_is_no_table_of_values_is_refused_by_name(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(OSError, match=r"config\.json"):
        HTSATConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"id2label": "dog"},
        {"id2label": 3},
        {"id2label": {"a": "dog"}},
        {"id2label": {"0": 3}},
        {"id2label": {"0": "dog"}, "label2id": "dog"},
        {"id2label": {"0": "dog", "1": "cat"}, "label2id": {"dog": float("inf"), "cat": 1}},
        {"num_labels": "5"},
        {"num_labels": 2**40},
        {"dtype": "no_such_type"},
        {"hidden_act": "no_such_function"},
        {"embed_dim": 2**40},
        {"depths": [10**9, 2, 6, 2]},
        {"spec_size": 0},
        {"spec_size": 2**20},
        {"event_decoding": {"threshold": 10**400}},
        {"window_size": 2**10},
        {"mlp_ratio": float("nan")},
        {"layer_norm_eps": float("inf")},
        {"max_frequency": float("inf")},
        {"hop_length": 1, "window_length": 2**16},
    ],
)
def test_what_no_model_can_have_is_refused_before_memory_is_asked_for(values):
    with pytest.raises((ValueError, StrictDataclassClassValidationError, StrictDataclassFieldValidationError)):
        HTSATConfig.from_dict(values)
