"""Checkpoints from elsewhere: what is converted, what is refused and in which words, and that nothing half is left."""

import io
import json
import os
import pickle
import re
import sys
import types
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import enliven
from safetensors.torch import save_file
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    ClapAudioConfig,
    ClapAudioModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    SwinConfig,
    SwinModel,
)

from modeling_htsat import HTSATConfig, HTSATFeatureExtractor, HTSATForAudioClassification, HTSATModel, cli
from modeling_htsat.conversion import (
    ConversionError,
    authors_model,
    clap_from_htsat,
    convert_checkpoint,
    htsat_from_clap,
    htsat_from_clap_file,
    htsat_from_swin,
    publisher_of,
)
from modeling_htsat.conversion.convert import load_preset, read_labels
from modeling_htsat.conversion.reading import read_checkpoint

PRESETS = Path(__file__).parents[1] / "configuration" / "models"
# A small HTS-AT in the paper's geometry, whose sizes all differ.
DIM, DEPTHS, HEADS, CLASSES = 8, (1, 2, 1, 3), (1, 2, 4, 8), 5


def random_tensor(*shape: int) -> torch.Tensor:
    return torch.randn(shape) * 0.1


def block_tensors(prefix: str, dim: int, heads: int, window: int = 8) -> dict[str, torch.Tensor]:
    """One block with Microsoft's names."""
    return {
        prefix + "norm1.weight": random_tensor(dim),
        prefix + "norm1.bias": random_tensor(dim),
        prefix + "attn.relative_position_bias_table": random_tensor((2 * window - 1) ** 2, heads),
        prefix + "attn.qkv.weight": random_tensor(3 * dim, dim),
        prefix + "attn.qkv.bias": random_tensor(3 * dim),
        prefix + "attn.proj.weight": random_tensor(dim, dim),
        prefix + "attn.proj.bias": random_tensor(dim),
        prefix + "norm2.weight": random_tensor(dim),
        prefix + "norm2.bias": random_tensor(dim),
        prefix + "mlp.fc1.weight": random_tensor(4 * dim, dim),
        prefix + "mlp.fc1.bias": random_tensor(4 * dim),
        prefix + "mlp.fc2.weight": random_tensor(dim, 4 * dim),
        prefix + "mlp.fc2.bias": random_tensor(dim),
    }


def swin_tensors(channels: int = 3, window: int = 8) -> dict[str, torch.Tensor]:
    """An image checkpoint in Microsoft's layout, without its head."""
    state = {
        "patch_embed.proj.weight": random_tensor(DIM, channels, 4, 4),
        "patch_embed.proj.bias": random_tensor(DIM),
        "patch_embed.norm.weight": random_tensor(DIM),
        "patch_embed.norm.bias": random_tensor(DIM),
        "norm.weight": random_tensor(8 * DIM),
        "norm.bias": random_tensor(8 * DIM),
    }
    for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        dim = DIM * 2**stage
        for block in range(depth):
            state |= block_tensors(f"layers.{stage}.blocks.{block}.", dim, heads, window)
        if stage < 3:
            state[f"layers.{stage}.downsample.norm.weight"] = random_tensor(4 * dim)
            state[f"layers.{stage}.downsample.norm.bias"] = random_tensor(4 * dim)
            state[f"layers.{stage}.downsample.reduction.weight"] = random_tensor(2 * dim, 4 * dim)
    return state


def authors_tensors(classes: int = CLASSES) -> dict[str, torch.Tensor]:
    """A checkpoint of the authors' code, without the prefix and the derived buffers."""
    return {
        "bn0.weight": random_tensor(64),
        "bn0.bias": random_tensor(64),
        "bn0.running_mean": random_tensor(64) - 30,
        "bn0.running_var": random_tensor(64).abs() + 400,
        **swin_tensors(channels=1),
        "tscam_conv.weight": random_tensor(classes, 8 * DIM, 2, 3),
        "tscam_conv.bias": random_tensor(classes),
        "head.weight": random_tensor(classes, classes),
        "head.bias": random_tensor(classes),
    }


def derived_tensors(sampling_rate: int = 32000) -> dict[str, torch.Tensor]:
    return {
        "spectrogram_extractor.stft.conv_real.weight": random_tensor(513, 1, 1024),
        "logmel_extractor.melW": HTSATFeatureExtractor(sampling_rate=sampling_rate).mel_filters.T.contiguous(),
        "bn0.num_batches_tracked": torch.tensor(1234),
        "layers.1.blocks.1.attn_mask": random_tensor(16, 64, 64),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(64, 64, dtype=torch.long),
    }


def laion_tensors() -> dict[str, torch.Tensor]:
    """What LAION's unfused CLAP files hold under `state_dict`, but for `module.` and most of the text encoder."""
    tower = authors_tensors(527) | derived_tensors(48000)
    return {f"audio_branch.{key}": tensor for key, tensor in tower.items()} | {
        "logit_scale_a": torch.tensor(2.7),
        "logit_scale_t": torch.tensor(2.7),
        "text_branch.embeddings.position_ids": torch.arange(7),
        "text_branch.encoder.layer.0.output.dense.weight": random_tensor(3, 5),
        "text_transform.sequential.0.weight": random_tensor(5, 5),
        "text_projection.0.weight": random_tensor(5, 3),
        "audio_transform.sequential.3.bias": random_tensor(5),
        "audio_projection.2.weight": random_tensor(5, 5),
    }


def msclap_tensors(tower_name: str = "audio_encoder") -> dict[str, torch.Tensor]:
    """What Microsoft's `CLAP_weights_2023.pth` holds under `model`, but for most of the text encoder."""
    tower = authors_tensors(527) | derived_tensors(44100)
    return {f"{tower_name}.base.htsat.{key}": tensor for key, tensor in tower.items()} | {
        f"{tower_name}.projection.linear1.weight": random_tensor(5, 8 * DIM),
        f"{tower_name}.projection.layer_norm.bias": random_tensor(5),
        "caption_encoder.base.h.0.attn.bias": random_tensor(3, 3),
        "caption_encoder.projection.linear2.weight": random_tensor(5, 5),
        "logit_scale": torch.tensor(2.7),
    }


@pytest.fixture
def labels(tmp_path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("".join(f"sound {index}\n" for index in range(CLASSES)))
    return path


@pytest.fixture
def convert(tmp_path, labels):
    """`convert(content)`: what becomes of a file with that content; the folder must be whole, or not there."""

    def convert_content(content, name="weights.ckpt", **options):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif name.endswith(".safetensors"):
            save_file(content, path)
        else:
            torch.save(content, path)
        before = set(tmp_path.iterdir())
        try:
            model = convert_checkpoint(path, tmp_path / "model", **{"labels": labels, **options})
        finally:
            created = {entry.name for entry in set(tmp_path.iterdir()) - before}
        assert created == {"model"}
        return model

    return convert_content


@pytest.fixture
def refusal(convert, tmp_path):
    """`refusal(content)`: the sentence that refuses a file with that content, once nothing was written."""

    def refuse(content, **options) -> str:
        with pytest.raises(ConversionError) as error:
            convert(content, **options)
        assert not (tmp_path / "model").exists()
        assert not list(tmp_path.glob(".*"))
        return str(error.value)

    return refuse


@pytest.fixture
def preset(tmp_path):
    """`preset(spec_size=128)`: a preset folder with other values, in both of its files where both have them."""

    def make(**values) -> Path:
        config = HTSATConfig(**{"num_labels": CLASSES, **values})
        front_end = ("sampling_rate", "hop_length", "window_length", "num_mel_bins", "min_frequency", "max_frequency")
        extractor = HTSATFeatureExtractor(**{name: getattr(config, name) for name in (*front_end, "clip_frames")})
        config.save_pretrained(tmp_path / "preset")
        extractor.save_pretrained(tmp_path / "preset")
        return tmp_path / "preset"

    return make


def same_weights(model, other) -> bool:
    state = other.state_dict()
    return all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


# ── the authors' checkpoints ──────────────────────────────────────────────────────────────────────────────────────────


def lightning(state):
    return {"epoch": 3, "global_step": 70, "state_dict": {f"sed_model.{key}": tensor for key, tensor in state.items()}}


WRAPPERS = {
    "bare": lambda state: state,
    "lightning": lightning,
    "state_dict without prefix": lambda state: {"state_dict": state},
    "model": lambda state: {"model": state, "epoch": 3},
    "data parallel": lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
    "lightning around data parallel": lambda state: lightning({f"module.{k}": v for k, v in state.items()}),
    "compiled": lambda state: {f"_orig_mod.{key}": tensor for key, tensor in state.items()},
    "with derived buffers": lambda state: lightning(state | derived_tensors()),
    "in half precision": lambda state: {key: tensor.half() for key, tensor in state.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_same_weights_come_out_of_every_wrapper(wrapper, convert):
    state = {key: tensor.half().float() for key, tensor in authors_tensors().items()}
    expected = authors_model(state, HTSATConfig(num_labels=CLASSES), HTSATFeatureExtractor())
    assert same_weights(convert(WRAPPERS[wrapper](state)), expected)


def test_safetensors_are_read_too(convert):
    state = authors_tensors()
    expected = authors_model(state, HTSATConfig(num_labels=CLASSES), HTSATFeatureExtractor())
    assert same_weights(convert(state, name="weights.safetensors"), expected)


def test_every_learned_tensor_arrives_where_it_belongs(convert):
    state = authors_tensors()
    model = convert(state).state_dict()
    learned = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
    assert len(learned) == sum(not key.endswith("num_batches_tracked") for key in model)
    assert torch.equal(model["htsat.mel_norm.running_var"], state["bn0.running_var"])
    assert torch.equal(model["htsat.patch_embed.projection.weight"], state["patch_embed.proj.weight"].flatten(1))
    ours, theirs = "htsat.stages.3.blocks.2.", "layers.3.blocks.2."
    for name, original in {
        "attention_norm.weight": "norm1.weight",
        "attention.qkv.bias": "attn.qkv.bias",
        "attention.projection.weight": "attn.proj.weight",
        "attention.relative_position_bias_table": "attn.relative_position_bias_table",
        "mlp_norm.bias": "norm2.bias",
        "mlp.up.weight": "mlp.fc1.weight",
        "mlp.down.weight": "mlp.fc2.weight",
    }.items():
        assert torch.equal(model[ours + name], state[theirs + original])
    assert torch.equal(model["htsat.stages.2.merge.reduction.weight"], state["layers.2.downsample.reduction.weight"])
    assert torch.equal(model["classifier.convolution.weight"], state["tscam_conv.weight"])


def test_width_depths_heads_and_biases_are_read_off_the_tensors(convert):
    config = convert({k: v for k, v in authors_tensors().items() if not k.endswith("qkv.bias")}).config
    assert (config.embed_dim, tuple(config.depths), tuple(config.num_heads)) == (DIM, DEPTHS, HEADS)
    assert (config.window_size, config.mlp_ratio, config.qkv_bias) == (8, 4, False)
    assert config.token_semantic_head


def test_without_a_token_semantic_layer_the_linear_head_is_taken(convert):
    state = {key: tensor for key, tensor in authors_tensors().items() if not key.startswith("tscam_conv.")}
    state["head.weight"] = random_tensor(CLASSES, 8 * DIM)
    model = convert(state)
    assert not model.config.token_semantic_head
    assert torch.equal(model.classifier.linear.weight, state["head.weight"])


def test_a_converted_folder_scores_as_the_model_that_was_returned(convert, tmp_path):
    model = convert(authors_tensors())
    sound = random_tensor(48000).numpy()
    features = AutoFeatureExtractor.from_pretrained(tmp_path / "model")(sound, sampling_rate=32000, return_tensors="pt")
    loaded = AutoModelForAudioClassification.from_pretrained(tmp_path / "model")
    assert isinstance(loaded, HTSATForAudioClassification)
    assert not loaded.training and not model.training
    with torch.no_grad():
        assert torch.equal(loaded(**features).logits, model(**features).logits)
    assert loaded.config.id2label[4] == "sound 4"


def test_the_default_preset_is_audioset_at_32_khz():
    config, extractor = load_preset()
    own_config, own_extractor = load_preset(PRESETS / "htsat-tiny-audioset")
    assert config.to_dict() == own_config.to_dict()
    assert extractor.to_dict() == own_extractor.to_dict()


def test_labels_take_the_place_of_a_presets(preset, labels, convert):
    model = convert(authors_tensors(), preset=preset(num_labels=3, problem_type="single_label_classification"))
    assert model.config.id2label[4] == "sound 4"
    assert model.config.problem_type == "single_label_classification"


# ── contradictions ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_another_number_of_labels_is_refused_with_both_numbers(refusal):
    sentence = refusal(authors_tensors(classes=7))
    assert "7 classes (tscam_conv.weight)" in sentence
    assert f"{CLASSES} labels" in sentence
    assert "527 labels" in refusal(authors_tensors(classes=7), labels=None)


def test_the_mel_filters_of_another_rate_are_refused_with_both_rates(refusal, preset):
    sentence = refusal(authors_tensors() | derived_tensors(32000), preset=preset(sampling_rate=16000, hop_length=160))
    assert "32000 Hz" in sentence and "16000 Hz" in sentence


@pytest.mark.parametrize("values", [{"max_frequency": 16000.0}, {"min_frequency": 0.0}, {"window_length": 512}])
def test_other_mel_filters_are_refused(values, refusal, preset):
    sentence = refusal(authors_tensors() | derived_tensors(), preset=preset(**values))
    assert "other mel filters, (513, 64) (logmel_extractor.melW)" in sentence


def test_another_number_of_mel_bins_is_refused_with_both_numbers(refusal, preset):
    sentence = refusal(authors_tensors(), preset=preset(num_mel_bins=32))
    assert "64 mel bins (bn0.weight)" in sentence and "32 (num_mel_bins)" in sentence


def test_another_image_size_is_refused_by_the_number_of_attention_masks(refusal, preset):
    state = authors_tensors() | block_tensors("layers.0.blocks.1.", DIM, HEADS[0])
    state["layers.0.blocks.1.attn_mask"] = random_tensor(64, 64, 64)
    sentence = refusal(state, preset=preset(spec_size=512))
    assert "64 windows" in sentence and "512 into 256" in sentence


def test_other_patches_are_refused_with_both_sizes(refusal):
    state = authors_tensors()
    state["patch_embed.proj.weight"] = random_tensor(DIM, 1, 8, 8)
    sentence = refusal(state)
    assert "8 x 8" in sentence and "preset has 4 (patch_size)" in sentence


def test_a_preset_that_contradicts_itself_is_refused(refusal, preset):
    folder = preset()
    values = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(values | {"hop_length": 160}))
    sentence = refusal(authors_tensors(), preset=folder)
    assert "`hop_length` is 320 by config.json and 160 by preprocessor_config.json" in sentence


def test_a_preset_of_another_model_without_files_or_with_bad_values_is_refused(refusal, preset, tmp_path):
    assert "config.json is needed" in refusal(authors_tensors(), preset=tmp_path)
    folder = preset()
    good = json.loads((folder / "config.json").read_text())
    for values, fragment in [
        ({"model_type": "swin"}, "is no preset of HTS-AT: its `model_type` is 'swin'"),
        ({"window_size": 7}, "`window_size` is 7; it must be a power of two"),
    ]:
        (folder / "config.json").write_text(json.dumps(good | values))
        assert fragment in refusal(authors_tensors(), preset=folder)
    (folder / "config.json").write_text(json.dumps(good))
    (folder / "preprocessor_config.json").write_text('{"short_clips": "wish"}')
    assert "no valid front end: `short_clips` is 'wish'" in refusal(authors_tensors(), preset=folder)
    (folder / "config.json").write_text("[1, 2]")
    assert "no table" in refusal(authors_tensors(), preset=folder)


# ── damaged tensors ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_missing_tensor_is_named(refusal):
    state = authors_tensors()
    del state["layers.2.blocks.0.mlp.fc2.bias"]
    assert "lacks an entry (htsat.stages.2.blocks.0.mlp.down.bias)" in refusal(state)
    assert "lacks 'patch_embed.proj.weight'" in refusal({"bn0.weight": random_tensor(64)})
    state = authors_tensors()
    for key in [key for key in state if key.startswith(("tscam_conv", "head"))]:
        del state[key]
    assert "no head" in refusal(state)


def test_a_missing_mel_norm_is_named(refusal):
    state = {key: tensor for key, tensor in authors_tensors().items() if not key.startswith("bn0.")}
    assert "lacks 4 entries (htsat.mel_norm.bias" in refusal(state)


def test_extra_tensors_are_named(refusal):
    extra = {f"teacher.{index}": random_tensor(2) for index in range(5)}
    sentence = refusal(authors_tensors() | extra)
    assert "5 entries (teacher.0, teacher.1, teacher.2 and 2 more) that this architecture has no place for" in sentence


def test_a_misshapen_tensor_is_named_with_both_shapes(refusal):
    state = authors_tensors() | {"layers.1.blocks.0.attn.qkv.weight": random_tensor(47, 16)}
    assert "layers.1.blocks.0.attn.qkv.weight has shape (47, 16) where (48, 16) is needed" in refusal(state)
    assert "0 classes" in refusal(authors_tensors() | {"tscam_conv.weight": torch.tensor(1.0)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_with_a_number_that_is_none_is_named(value, refusal):
    state = authors_tensors()
    state["norm.bias"][3] = value
    assert "norm.bias holds NaN or infinite numbers" in refusal(state)


def test_two_tensors_that_claim_one_name_are_refused(refusal):
    state = authors_tensors()
    average = {f"model.{key}": tensor for key, tensor in state.items()}
    assert "holds bn0.weight twice, once as model.bn0.weight" in refusal(state | average)


def test_widths_that_do_not_go_together_are_refused_in_words(refusal):
    state = authors_tensors() | block_tensors("layers.1.blocks.0.", 2 * DIM, heads=3)
    assert "3 heads do not divide" in refusal(state)


# ── files that are no checkpoints, or more than that ──────────────────────────────────────────────────────────────────


class RunsACommand:
    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


class Foreign:
    """A class that only the writer of a checkpoint knows."""


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_pickle_that_would_run_a_command_is_refused_and_runs_nothing(legacy, refusal, tmp_path):
    buffer = io.BytesIO()
    content = lightning(authors_tensors()) | {"hyper_parameters": RunsACommand(tmp_path / "witness")}
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    sentence = refusal(buffer.getvalue())
    assert "asks for posix.system, which could run code and is refused. Nothing was written." in sentence
    assert not (tmp_path / "witness").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_that_would_run_a_command_is_refused_and_runs_nothing(refusal, tmp_path):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert "weights" in refusal(pickle.dumps({"a": RunsACommand(tmp_path / "witness")}, protocol))
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        lambda tensor: tensor.new_zeros(1).expand(2**20, 3, 2**10, 2**10),  # 12 TiB, in four bytes
    ],
    ids=["sparse", "meta", "complex", "quantized", "expanded"],
)
def test_a_tensor_whose_numbers_are_not_there_is_refused_by_name(make, refusal):
    state = authors_tensors()
    state["patch_embed.proj.weight"] = make(state["patch_embed.proj.weight"])
    assert "weights.ckpt holds patch_embed.proj.weight as a tensor of" in refusal(state)


def test_weights_of_eight_bits_are_taken(convert):
    state = authors_tensors()
    state["tscam_conv.weight"] = state["tscam_conv.weight"].to(torch.float8_e4m3fn)
    model = convert(state)
    assert torch.equal(model.classifier.convolution.weight, state["tscam_conv.weight"].float())


@pytest.mark.parametrize("hidden", [Foreign(), Foreign, {"deep": [Foreign()]}], ids=["object", "class", "nested"])
def test_a_foreign_class_beside_the_weights_is_refused_by_name(hidden, refusal):
    sentence = refusal(lightning(authors_tensors()) | {"hyper_parameters": [1, hidden]})
    assert "Foreign" in sentence and "If you trust the file" in sentence


def test_what_lightning_keeps_beside_the_weights_is_no_obstacle(convert, monkeypatch):
    """Old versions key `callbacks` by class; hyperparameters come as tables of their own kinds."""
    modules = [
        "pytorch_lightning",
        "pytorch_lightning.callbacks",
        "pytorch_lightning.callbacks.model_checkpoint",
        "pytorch_lightning.utilities",
        "pytorch_lightning.utilities.parsing",
    ]
    for name in modules:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    checkpoint_class = type("ModelCheckpoint", (), {"__module__": modules[2]})
    table_class = type("AttributeDict", (dict,), {"__module__": modules[4]})
    sys.modules[modules[2]].ModelCheckpoint = checkpoint_class
    sys.modules[modules[4]].AttributeDict = table_class
    buffer = io.BytesIO()
    beside = {
        "pytorch-lightning_version": "1.2.0",
        "callbacks": {checkpoint_class: {"best_model_score": torch.tensor(0.471), "best_model_path": "a.ckpt"}},
        "hyper_parameters": table_class(batch_size=32, config=Namespace(classes_num=527)),
        "optimizer_states": [{"state": {0: {"step": 7, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}],
        "lr_schedulers": [{"last_epoch": 3, "lr_lambdas": [None]}],
    }
    torch.save(lightning(authors_tensors()) | beside, buffer)
    for name in modules:
        monkeypatch.delitem(sys.modules, name)
    assert convert(buffer.getvalue()).config.num_labels == CLASSES


def whole_file() -> bytes:
    buffer = io.BytesIO()
    torch.save(authors_tensors(), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>404: not found</html>\n", b"\x80\x02}q\x00.", whole_file()[:5000], whole_file()[:-40]],
    ids=["empty", "text", "empty table", "cut in the middle", "cut at the end"],
)
def test_a_file_that_is_no_whole_checkpoint_is_refused(content, refusal):
    sentence = refusal(content)
    assert "not a readable PyTorch checkpoint" in sentence or "holds no state dict" in sentence
    assert "\n" not in sentence
    assert "not a readable safetensors file" in refusal(content, name="weights.safetensors")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(3)], ids=["list", "no tensors", "tensor"])
def test_a_file_without_a_state_dict_is_refused(content, refusal):
    assert "holds no state dict" in refusal(content)


def test_a_missing_file_and_a_folder_of_something_else_are_refused(tmp_path):
    with pytest.raises(ConversionError, match="is not a file"):
        convert_checkpoint(tmp_path / "nowhere.ckpt", tmp_path / "model")
    with pytest.raises(ConversionError, match="config.json is needed"):
        convert_checkpoint(tmp_path, tmp_path / "model")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConversionError, match="'bert'; clap, clap_audio_model or swin is needed"):
        convert_checkpoint(tmp_path, tmp_path / "model")
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("content", "fragment"),
    [("", "is empty"), ("a\nb\na\n", "names 'a' twice"), (b"\xff\xfe\x00", "not a readable text")],
)
def test_labels_that_are_none_or_not_distinct_are_refused(content, fragment, tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConversionError, match=fragment):
        read_labels(path)


def test_labels_may_have_a_byte_order_mark_and_spaces_within(tmp_path):
    (tmp_path / "labels.txt").write_bytes("\ufeffMâle speech\r\nDog, bark \r\n\n".encode())
    assert read_labels(tmp_path / "labels.txt") == ["Mâle speech", "Dog, bark"]


def test_the_command_says_in_one_sentence_what_is_wrong(tmp_path, capsys):
    (tmp_path / "weights.ckpt").write_text("not one")
    assert cli.main(["convert", str(tmp_path / "weights.ckpt"), str(tmp_path / "model")]) != 0
    captured = capsys.readouterr()
    assert "not a readable PyTorch checkpoint" in captured.err
    assert "Traceback" not in captured.err


# ── the output ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_with_something_in_it_is_left_alone(convert, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(ConversionError, match="exists already"):
        convert(authors_tensors())
    assert [entry.name for entry in (tmp_path / "model").iterdir()] == ["notes.txt"]


def test_a_file_in_the_outputs_place_is_left_alone(convert, tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(ConversionError, match="exists already"):
        convert(authors_tensors())
    assert (tmp_path / "model").read_text() == "mine"


def test_an_empty_folder_is_filled_and_missing_parents_are_made(tmp_path, labels):
    torch.save(authors_tensors(), tmp_path / "weights.ckpt")
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "new" / "deep" / "model"):
        convert_checkpoint(tmp_path / "weights.ckpt", place, labels=labels)
        names = {entry.name for entry in place.iterdir() if entry.suffix != ".py"}
        assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
        assert [entry.name for entry in place.parent.iterdir() if entry.name.startswith(".")] == []


def test_a_relative_place_is_where_the_user_stands(tmp_path, labels, monkeypatch):
    torch.save(authors_tensors(), tmp_path / "weights.ckpt")
    monkeypatch.chdir(tmp_path)
    convert_checkpoint("weights.ckpt", "model", labels=labels)
    assert (tmp_path / "model" / "config.json").exists()


def test_a_link_to_an_empty_folder_stays_a_link(tmp_path, labels):
    torch.save(authors_tensors(), tmp_path / "weights.ckpt")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    convert_checkpoint(tmp_path / "weights.ckpt", tmp_path / "link", labels=labels)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").exists()


@pytest.mark.parametrize("victim", [HTSATForAudioClassification, HTSATFeatureExtractor])
@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "ctrl-c"]
)
def test_nothing_is_left_when_saving_fails_midway(victim, failure, convert, tmp_path, monkeypatch):
    save = victim.save_pretrained

    def fail(self, *args, **kwargs):
        save(self, *args, **kwargs)
        raise failure

    monkeypatch.setattr(victim, "save_pretrained", fail)
    before = set(tmp_path.iterdir())
    with pytest.raises(ConversionError if isinstance(failure, OSError) else KeyboardInterrupt) as error:
        convert(authors_tensors())
    assert {entry.name for entry in set(tmp_path.iterdir()) - before} == {"weights.ckpt"}
    if isinstance(failure, OSError):
        assert "could not be written" in str(error.value) and "No space left" in str(error.value)


def test_of_two_conversions_to_one_place_the_first_stays_whole(convert, tmp_path, labels, monkeypatch):
    """The second began before the first had finished, so both found the place empty."""
    torch.save(authors_tensors(), tmp_path / "first.ckpt")
    save = HTSATFeatureExtractor.save_pretrained
    finished = []

    def be_overtaken(self, *args, **kwargs):
        if not finished:
            finished.append(True)
            convert_checkpoint(tmp_path / "first.ckpt", tmp_path / "model", labels=labels)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(HTSATFeatureExtractor, "save_pretrained", be_overtaken)
    with pytest.raises(ConversionError, match="exists already"):
        convert(authors_tensors())
    first = read_checkpoint(tmp_path / "first.ckpt")
    kept = AutoModelForAudioClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(kept.htsat.norm.weight, first["norm.weight"])
    assert not list(tmp_path.glob(".*"))


# ── Swin transformers ─────────────────────────────────────────────────────────────────────────────────────────────────


def swin_model(**values) -> SwinModel:
    config = {"depths": DEPTHS, "num_heads": HEADS, "embed_dim": DIM, "window_size": 8, "image_size": 256, **values}
    return enliven(SwinModel(SwinConfig(**config))).eval()


def tokens_of(model: HTSATModel, images: torch.Tensor) -> torch.Tensor:
    """What the encoder makes of images that are already folded, row by row as Swin has it."""
    tokens = model.patch_embed(images)
    for stage in model.stages:
        tokens, _, _ = stage(tokens)
    rows = model.norm(tokens)[:, model.time_map.time_order]  # (batch, bins * steps, dim)
    folds = model.config.num_folds
    rows = rows.unflatten(1, (model.config.num_bins, folds, -1)).transpose(1, 2)
    return rows.flatten(1, 3)


@torch.no_grad()
def test_a_swin_model_computes_the_same_on_grey_images():
    swin = swin_model()
    images = torch.randn(2, 256, 256)
    expected = swin(torch.stack([images / 3] * 3, dim=1)).last_hidden_state
    torch.testing.assert_close(tokens_of(htsat_from_swin(swin), images), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_widths_mlp_and_activation_of_a_swin_model_are_taken_over():
    swin = swin_model(depths=(1, 1), num_heads=(2, 2), mlp_ratio=2.0, qkv_bias=False, hidden_act="relu", image_size=64)
    model = htsat_from_swin(swin, HTSATConfig(spec_size=64, num_mel_bins=32))
    images = torch.randn(2, 64, 64)
    expected = swin(torch.stack([images / 3] * 3, dim=1)).last_hidden_state
    torch.testing.assert_close(tokens_of(model, images), expected, rtol=0, atol=1e-5)


def test_microsofts_layout_gives_an_encoder_with_an_averaged_patch_kernel(convert, tmp_path):
    state = swin_tensors()
    beside = {"head.weight": random_tensor(1000, 8 * DIM), "head.bias": random_tensor(1000)}
    beside["layers.1.blocks.1.attn_mask"] = random_tensor(16, 49, 49)
    model = convert({"model": state | beside}, labels=None)
    grey = state["patch_embed.proj.weight"].mean(1).flatten(1)
    assert torch.equal(model.patch_embed.projection.weight, grey)
    assert torch.equal(model.stages[3].blocks[2].mlp.up.weight, state["layers.3.blocks.2.mlp.fc1.weight"])
    assert torch.equal(model.stages[0].merge.norm.bias, state["layers.0.downsample.norm.bias"])
    config = AutoModel.from_pretrained(tmp_path / "model").config
    assert (config.embed_dim, tuple(config.depths), config.num_labels) == (DIM, DEPTHS, 527)
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "model").sampling_rate == 32000


@torch.no_grad()
def test_microsofts_and_transformers_names_of_one_swin_give_one_encoder():
    state, swin = swin_tensors(), swin_model()
    names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
    names |= {"attn.relative_position": "attention.relative_position_bias.relative_position"}
    theirs = swin.state_dict()
    for key, tensor in state.items():
        for old, new in names.items():
            key = key.replace(old, new)
        key = (
            f"encoder.{key}"
            if key.startswith("layers.")
            else key.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        )
        key = key.replace("patch_embed.norm", "embeddings.norm")
        key = f"layernorm.{key[5:]}" if key.startswith("norm.") else key
        if ".qkv." in key:
            for name, part in zip("qkv", tensor.chunk(3), strict=True):
                theirs[key.replace("attn.qkv", f"attention.{name}_proj")].copy_(part)
        else:
            theirs[key].copy_(tensor)
    encoder, other = htsat_from_swin(swin), htsat_from_swin(state)
    assert all(torch.equal(t, other.state_dict()[k]) for k, t in encoder.state_dict().items() if "mel_norm" not in k)


def test_the_window_of_most_image_checkpoints_is_refused_clearly(refusal):
    sentence = refusal({"model": swin_tensors(window=7)})
    assert "does not suit sound: `window_size` is 7; it must be a power of two" in sentence
    with pytest.raises(ConversionError, match="`window_size` is 7"):
        htsat_from_swin(swin_model(window_size=7, image_size=224))


def test_a_swin_folder_is_converted_and_one_that_lacks_tensors_refused(tmp_path):
    swin = swin_model()
    swin.save_pretrained(tmp_path / "swin")
    model = convert_checkpoint(tmp_path / "swin", tmp_path / "model", preset=PRESETS / "htsat-tiny-esc50")
    assert same_weights(model.norm, htsat_from_swin(swin).norm)
    assert AutoModelForAudioClassification.from_pretrained(tmp_path / "model").config.id2label[0] == "dog"
    state = {key: tensor for key, tensor in swin.state_dict().items() if not key.startswith("layernorm.")}
    swin.save_pretrained(tmp_path / "damaged", state_dict=state)
    with pytest.raises(ConversionError, match=r"lacks 2 of the tensors of a SwinModel: layernorm\.bias"):
        convert_checkpoint(tmp_path / "damaged", tmp_path / "other")
    (tmp_path / "swin" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ConversionError, match="could not be loaded as a SwinModel"):
        convert_checkpoint(tmp_path / "swin", tmp_path / "other")
    assert not (tmp_path / "other").exists()


# ── CLAP ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

CLAP = {"depths": DEPTHS, "num_attention_heads": HEADS, "patch_embeds_hidden_size": DIM, "hidden_size": 8 * DIM}


def clap_tower(**values) -> ClapAudioModel:
    return enliven(ClapAudioModel(ClapAudioConfig(**{**CLAP, **values}))).eval()


def clap_model() -> ClapModel:
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 9}
    clap = ClapModel(ClapConfig(text_config=text, audio_config=CLAP))
    enliven(clap.audio_model)
    return clap.eval()


def assert_same_outputs(outputs, others):
    for name in ("last_hidden_state", "pooler_output"):
        assert outputs[name].std() > 1e-3
        torch.testing.assert_close(outputs[name], others[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_frames", [1001, 1024, 300])
@torch.no_grad()
def test_claps_tower_and_ours_give_equal_outputs_both_ways(num_frames, make_features):
    tower, features = clap_tower(), make_features(2, num_frames)
    model = htsat_from_clap(tower)
    assert_same_outputs(model(features), tower(features[:, None]))
    assert_same_outputs(clap_from_htsat(model)(features[:, None]), tower(features[:, None]))


@torch.no_grad()
def test_an_encoder_of_ours_survives_the_way_through_clap(make_model, make_features):
    model = make_model(HTSATModel, paper=True, mlp_ratio=2, qkv_bias=False, drop_path_rate=0.2)
    tower = clap_from_htsat(model)
    assert_same_outputs(tower(make_features(2, 1001)[:, None]), model(make_features(2, 1001)))
    back = htsat_from_clap(tower)
    assert same_weights(back, model)
    assert (back.config.mlp_ratio, back.config.qkv_bias, back.config.drop_path_rate) == (2, False, 0.2)


@torch.no_grad()
def test_the_tower_of_a_whole_clap_model_is_found(make_features):
    clap, features = clap_model(), make_features(2, 1001)
    assert_same_outputs(htsat_from_clap(clap)(features), clap.audio_model(features[:, None]))


def test_what_clap_and_we_do_not_share_is_refused(make_model):
    with pytest.raises(ConversionError, match="enable_fusion"):
        htsat_from_clap(ClapAudioModel(ClapAudioConfig(**CLAP, enable_fusion=True)), ClapFeatureExtractor())
    with pytest.raises(ConversionError, match="needs one number for both axes"):
        htsat_from_clap(ClapAudioModel(ClapAudioConfig(**CLAP, patch_stride=[4, 2])))
    with pytest.raises(ConversionError, match="goes with HTK mel filters"):
        htsat_from_clap(clap_tower(), ClapFeatureExtractor(truncation="fusion"))
    with pytest.raises(ConversionError, match="smaller than a window"):
        clap_from_htsat(make_model(HTSATModel, paper=True, spec_size=128))


UNFUSED = {"truncation": "rand_trunc", "frequency_min": 50, "frequency_max": 14000}


@torch.no_grad()
def test_a_converted_clap_folder_hears_ten_seconds_as_clap_does(tmp_path, make_sound):
    clap, clap_extractor = clap_model(), ClapFeatureExtractor(**UNFUSED)
    clap.save_pretrained(tmp_path / "clap")
    clap_extractor.save_pretrained(tmp_path / "clap")
    convert_checkpoint(tmp_path / "clap", tmp_path / "model")
    model, extractor = (kind.from_pretrained(tmp_path / "model") for kind in (AutoModel, AutoFeatureExtractor))
    sound = make_sound(480_000)
    ours = extractor(sound, sampling_rate=48000, return_tensors="pt")
    theirs = clap_extractor(sound, sampling_rate=48000, return_tensors="pt")["input_features"]
    torch.testing.assert_close(ours["input_features"], theirs[:, 0].float(), rtol=0, atol=1e-3)  # decibels
    expected = clap.audio_model(theirs.float()).pooler_output
    torch.testing.assert_close(model(**ours).pooler_output, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_short_clip_gives_claps_embedding_once_it_is_filled_up_as_clap_does(make_sound):
    tower, clap_extractor = clap_tower(), ClapFeatureExtractor(**UNFUSED)
    model, extractor = (
        htsat_from_clap(tower, clap_extractor),
        HTSATFeatureExtractor(sampling_rate=48000, hop_length=480),
    )
    sound = make_sound(200_000)
    filled = np.pad(np.tile(sound, 2), (0, 80_000))
    theirs = clap_extractor(sound, sampling_rate=48000, return_tensors="pt")["input_features"].float()
    embedding = model(**extractor(filled, sampling_rate=48000, return_tensors="pt")).pooler_output
    torch.testing.assert_close(embedding, tower(theirs).pooler_output, rtol=0, atol=1e-5)


def test_the_front_end_of_a_clap_folder_is_its_own_or_the_published_one(tmp_path):
    clap_tower().save_pretrained(tmp_path / "clap")
    convert_checkpoint(tmp_path / "clap", tmp_path / "published")
    ClapFeatureExtractor(truncation="rand_trunc", frequency_max=12000, hop_length=240).save_pretrained(
        tmp_path / "clap"
    )
    convert_checkpoint(tmp_path / "clap", tmp_path / "own")
    names = ("sampling_rate", "window_length", "hop_length", "min_frequency", "max_frequency")
    for folder, values in {"published": (48000, 1024, 480, 50, 14000), "own": (48000, 1024, 240, 0, 12000)}.items():
        for part in (
            AutoFeatureExtractor.from_pretrained(tmp_path / folder),
            AutoModel.from_pretrained(tmp_path / folder).config,
        ):
            assert tuple(getattr(part, name) for name in names) == values


def test_a_clap_folder_takes_no_preset_and_no_labels(tmp_path, labels):
    clap_tower().save_pretrained(tmp_path / "clap")
    for options in ({"preset": PRESETS / "htsat-tiny-audioset"}, {"labels": labels}):
        with pytest.raises(ConversionError, match="leave --preset and --labels out"):
            convert_checkpoint(tmp_path / "clap", tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


# ── CLAP's own files ──────────────────────────────────────────────────────────────────────────────────────────────────

CLAP_FILES = {
    "LAION": (lambda: {"epoch": 45, "name": "run", "state_dict": laion_tensors()}, 48000, 480),
    "LAION, data parallel": (
        lambda: {"state_dict": {f"module.{key}": tensor for key, tensor in laion_tensors().items()}},
        48000,
        480,
    ),
    "Microsoft": (lambda: {"model": msclap_tensors()}, 44100, 320),
    "Microsoft, with captions": (
        lambda: {
            "model": msclap_tensors("clap") | {"gpt.wte.weight": random_tensor(3), "clap_project.x": random_tensor(2)}
        },
        44100,
        320,
    ),
}


def tower_of(content: dict) -> dict[str, torch.Tensor]:
    """The audio tower in a made-up file, found by another way than the conversion's."""
    state = content.get("state_dict") or content["model"]
    end = "audio_branch." if any("audio_branch." in key for key in state) else "htsat."
    return {key.split(end, 1)[1]: tensor for key, tensor in state.items() if end in key}


@pytest.mark.parametrize("kind", CLAP_FILES)
def test_a_clap_file_becomes_the_encoder_that_its_tower_is(kind, convert, tmp_path):
    make, sampling_rate, hop_length = CLAP_FILES[kind]
    content, front_end = make(), {"sampling_rate": sampling_rate, "hop_length": hop_length}
    model = convert(content, name="clap.pt", labels=None)
    direct = authors_model(
        tower_of(content), HTSATConfig(num_labels=527, **front_end), HTSATFeatureExtractor(**front_end)
    )
    assert type(model) is HTSATModel and same_weights(model, direct.htsat)
    for part in (
        AutoModel.from_pretrained(tmp_path / "model").config,
        AutoFeatureExtractor.from_pretrained(tmp_path / "model"),
    ):
        assert (part.sampling_rate, part.hop_length, part.window_length) == (sampling_rate, hop_length, 1024)
        assert (part.num_mel_bins, part.min_frequency, part.max_frequency) == (64, 50, 14000)


@torch.no_grad()
def test_the_command_makes_of_a_clap_file_what_hears_as_clap_does(tmp_path, make_features):
    """The same weights as a folder of transformers, once through `ClapAudioModel` and once through LAION's names."""
    torch.save({"state_dict": laion_tensors()}, tmp_path / "630k-audioset-best.pt")
    assert cli.main(["convert", str(tmp_path / "630k-audioset-best.pt"), str(tmp_path / "model")]) == 0
    model = AutoModel.from_pretrained(tmp_path / "model")
    features = make_features(2, 1001)
    assert_same_outputs(model(features), clap_from_htsat(model)(features[:, None]))
    clap_tower().save_pretrained(tmp_path / "clap")
    folder = convert_checkpoint(tmp_path / "clap", tmp_path / "of_a_folder").config
    assert folder.front_end == model.config.front_end and folder.id2label == model.config.id2label


def test_what_lies_beside_the_tower_is_left_out_counted_and_given_a_reason(convert, caplog):
    with caplog.at_level("INFO", logger="modeling_htsat"):
        convert({"state_dict": laion_tensors()}, name="clap.pt", labels=None)
    said = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert len(said) == 3
    assert said[0].startswith("4 entries (text_branch.") and said[0].endswith("which no sound goes through")
    assert said[1].startswith("2 entries (audio_transform.") and "the space that sound shares with text" in said[1]
    assert said[2].startswith("2 entries (logit_scale_a, logit_scale_t)")


def test_a_tensor_that_no_clap_is_known_to_have_is_refused_by_name(refusal):
    for extra in ("video_branch.weight", "norm.bias"):
        sentence = refusal({"state_dict": laion_tensors() | {extra: random_tensor(2)}}, labels=None)
        assert f"holds an entry ({extra}) that no CLAP" in sentence
    stranger = {"audio_branch.layers.0.blocks.0.gate": random_tensor(2)}
    assert "an entry (layers.0.blocks.0.gate) that this arch" in refusal(laion_tensors() | stranger, labels=None)
    incomplete = laion_tensors()
    del incomplete["audio_branch.layers.2.blocks.0.mlp.fc2.bias"]
    assert "lacks an entry (stages.2.blocks.0.mlp.down.bias)" in refusal(incomplete, labels=None)


@pytest.mark.parametrize(
    "key", ["patch_embed.mel_conv2d.weight", "patch_embed.fusion_model.local_att.0.bias", "mel_conv1d.0.bias"]
)
def test_a_fused_clap_file_is_refused_and_the_sentence_says_why(key, refusal):
    state = laion_tensors() | {f"audio_branch.{key}": random_tensor(2)}
    sentence = refusal({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, labels=None)
    assert f"fuses several crops of a recording (audio_branch.{key}), which HTS-AT has no layers for" in sentence


def test_the_mel_filters_of_a_clap_file_decide_about_its_front_end(refusal, convert, preset, tmp_path):
    state = laion_tensors() | {"audio_branch.logmel_extractor.melW": derived_tensors(32000)["logmel_extractor.melW"]}
    sentence = refusal(state, labels=None)
    assert "the mel filters of 32000 Hz" in sentence and "those of 48000 Hz" in sentence and "--preset DIR" in sentence
    convert(state, labels=None, preset=preset(sampling_rate=32000, hop_length=320))
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "model").sampling_rate == 32000


def test_a_clap_file_takes_no_labels_and_one_without_an_hts_at_is_none_of_ours(refusal):
    assert "embeddings and no labels: leave --labels out" in refusal(laion_tensors())
    convolutional = {"audio_encoder.base.conv_block1.conv1.weight": random_tensor(2, 1, 3, 3)}
    assert publisher_of(convolutional) is None
    assert "is not a Swin transformer" in refusal({"model": convolutional}, labels=None)


def test_a_clap_file_is_read_in_python_too():
    state = msclap_tensors()
    model = htsat_from_clap_file(state, publisher_of(state))
    assert torch.equal(model.norm.weight, state["audio_encoder.base.htsat.norm.weight"])


@pytest.mark.parametrize("numpy_core", [b"numpy._core", b"numpy.core"], ids=["new", "old"])
def test_numbers_of_numpy_beside_the_weights_are_no_obstacle_and_are_not_made(numpy_core, convert, monkeypatch):
    """LAION's training kept its best scores so; older releases of NumPy had another name for the place."""
    buffer = io.BytesIO()
    beside = {"epoch": 45, "top": {"score": np.float64(0.9), "loss": np.float32(1.5), "step": np.int64(7)}}
    torch.save({"state_dict": laion_tensors()} | beside, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    content, places = re.subn(rb"numpy\._?core\.multiarray", numpy_core + b".multiarray", content)
    assert places
    assert type(convert(content, name="clap.pt", labels=None)) is HTSATModel


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_checkpoint_of_protocol_4_is_refused_with_the_remedy(refusal):
    buffer = io.BytesIO()
    torch.save({"state_dict": laion_tensors()}, buffer, pickle_protocol=4)
    sentence = refusal(buffer.getvalue(), labels=None)
    assert "a pickle of protocol 4, which torch has no safe reader for and is refused" in sentence
    assert "save its tensors alone" in sentence
