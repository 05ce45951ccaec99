"""Configurations, model folders and checkpoints to be fuzzed: a small valid file of each, and how it is read."""

import io
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from conftest import SMALL
from fuzz_mutations import (
    mutate_bytes,
    mutate_json,
)
from fuzz_pickles import hostile_snippets, mutate_pickle, mutate_safetensors, mutate_zip
from fuzz_seeds import Seed, check, write
from safetensors.torch import save_file
from test_conversion import authors_tensors, derived_tensors

from modeling_htsat import HTSATConfig, HTSATFeatureExtractor, HTSATForAudioClassification, HTSATModel
from modeling_htsat.commands.models import load_one
from modeling_htsat.conversion import ConversionError, convert_checkpoint
from modeling_htsat.conversion.convert import load_preset

# ── configurations and model folders ──────────────────────────────────────────────────────────────────────────────────


def make_configurations(folder: Path) -> Iterable[Seed]:
    decoding = {"threshold": {"dog": 0.5, "cat": 0.2}, "median_filter_seconds": [0.1, 0.2]}
    config = HTSATConfig(**{**SMALL, "num_labels": 2}, id2label={0: "dog", 1: "cat"}, event_decoding=decoding)
    config.save_pretrained(folder)
    HTSATFeatureExtractor(**config.front_end).save_pretrained(folder)
    ours, front_end = folder / "config.json", folder / "preprocessor_config.json"
    for _ in range(2):
        yield Seed(ours, lambda path, rng: build(HTSATConfig.from_pretrained(path.parent)), mutate_json)
        yield Seed(ours, lambda path, rng: build(HTSATConfig.from_dict(values_in(path))), mutate_json)
        yield Seed(front_end, lambda path, rng: hear(HTSATFeatureExtractor.from_pretrained(path.parent)), mutate_json)


def values_in(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is no JSON") from error


def build(config: HTSATConfig) -> None:
    """Without memory for the weights, which a configuration may ask much of."""
    with torch.device("meta"):
        HTSATForAudioClassification(config)


def hear(extractor: HTSATFeatureExtractor) -> None:
    features = extractor(np.zeros(999, dtype=np.float32), sampling_rate=extractor.sampling_rate)["input_features"]
    check(features.shape[2] == extractor.num_mel_bins and bool(np.isfinite(features).all()), "no spectrogram")


def make_presets(folder: Path) -> Iterable[Seed]:
    list(make_configurations(folder / "preset"))
    for name in ("config.json", "preprocessor_config.json"):
        yield Seed(folder / "preset" / name, lambda path, rng: load_preset(path.parent), mutate_json)


def make_model_folders(folder: Path) -> Iterable[Seed]:
    list(make_configurations(folder))
    config = HTSATConfig.from_pretrained(folder)
    HTSATForAudioClassification(config).save_pretrained(folder)
    shutil.copytree(folder, folder / "for_command")
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        mutate = mutate_json if name.endswith("json") else mutate_safetensors
        yield Seed(folder / "for_command" / name, load_for_command, mutate)


def load_for_command(path: Path, rng: Random) -> None:
    load_one("audio-classification", str(path.parent))


def make_weights(folder: Path) -> Iterable[Seed]:
    HTSATModel(HTSATConfig(**SMALL)).save_pretrained(folder)
    yield Seed(folder / "model.safetensors", read_weights, mutate_safetensors)


def read_weights(path: Path, rng: Random) -> None:
    model = HTSATModel.from_pretrained(path.parent)
    check(model.norm.weight.dtype == torch.float32, f"weights of {model.norm.weight.dtype}")


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────────────────────────────

ODD_TENSORS: list[Callable[[torch.Tensor], Any]] = [
    lambda tensor: tensor.to_sparse(),
    lambda tensor: tensor.to("meta"),
    lambda tensor: tensor.to(torch.complex64),
    lambda tensor: tensor.to(torch.int64),
    lambda tensor: tensor > 0,
    lambda tensor: tensor.to(torch.float8_e4m3fn),
    lambda tensor: tensor.double(),
    lambda tensor: tensor.new_zeros(()),
    lambda tensor: tensor.new_zeros(0),
    lambda tensor: tensor.new_zeros(1).expand(2**40),
    lambda tensor: tensor.new_zeros(1).expand(2**20, 3, 2**10, 2**10),
    lambda tensor: tensor.flatten()[:1].expand(tensor.shape),
    lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    lambda tensor: torch.nn.Parameter(tensor, requires_grad=False),
    lambda tensor: tensor / 0,
    lambda tensor: tensor[None],
    lambda tensor: tensor.T if tensor.ndim == 2 else tensor.flatten(),
    lambda tensor: [tensor],
    lambda tensor: "text",
]


def authors_state(folder: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    write(folder / "labels.txt", "a\nb\nc\nd\ne\n")
    return authors_tensors() | {name: tensor for name, tensor in derived_tensors().items() if tensor.numel() < 70_000}


def make_safetensors(folder: Path) -> Iterable[Seed]:
    save_file(authors_state(folder), folder / "weights.safetensors")
    yield Seed(folder / "weights.safetensors", convert, mutate_safetensors)


def make_checkpoints(folder: Path) -> Iterable[Seed]:
    state = authors_state(folder)
    wrapped = {"state_dict": {f"sed_model.{name}": tensor for name, tensor in state.items()}, "epoch": 3}
    snippets = hostile_snippets(str(folder.parent / CANARY))
    torch.save(wrapped, folder / "zip.ckpt")
    torch.save(state, folder / "legacy.ckpt", _use_new_zipfile_serialization=False)
    yield Seed(folder / "zip.ckpt", convert, lambda rng, content, others: mutate_zip(rng, content, snippets))
    yield Seed(folder / "zip.ckpt", convert, lambda rng, content, others: mutate_zip(rng, content, snippets))
    yield Seed(folder / "zip.ckpt", convert, mutate_bytes)
    yield Seed(folder / "zip.ckpt", convert, lambda rng, content, others: hostile(rng, snippets))
    yield Seed(folder / "legacy.ckpt", convert, lambda rng, content, others: mutate_legacy(rng, content, snippets))
    yield Seed(folder / "legacy.ckpt", convert, mutate_bytes)
    yield Seed(folder / "legacy.ckpt", convert, lambda rng, content, others: with_odd_tensors(rng, state))
    yield Seed(folder / "zip.ckpt", convert, lambda rng, content, others: with_odd_tensors(rng, state))


CANARY = "canary"


def hostile(rng: Random, snippets: Sequence[bytes]) -> bytes:
    """A bare pickle of nothing but opcodes that want to run something."""
    return rng.choice((b"\x80\x02", b"\x80\x04", b"")) + b"".join(rng.choices(snippets, k=rng.choice((1, 1, 3)))) + b"."


def mutate_legacy(rng: Random, content: bytes, snippets: Sequence[bytes]) -> bytes:
    """Of the five pickles in a row, the damage is in the first opcodes of the one with the tensors' names."""
    start = content.find(b"\x80\x02", 100)
    end = content.find(b"\x80\x02]", start)  # the list of storages, which follows
    return content[:start] + mutate_pickle(rng, content[start:end], snippets) + content[end:]


def with_odd_tensors(rng: Random, state: dict[str, torch.Tensor]) -> bytes:
    """Checkpoints of which every byte is in order, with tensors of a kind that has no business there."""
    changed: dict[str, Any] = dict(state)
    for _ in range(rng.choice((1, 1, 3))):
        first = ("patch_embed.proj.weight", "tscam_conv.weight", "bn0.weight", "logmel_extractor.melW")
        name = rng.choice((*first, *state))
        if rng.random() < 0.2:
            changed.pop(name, None)
            continue
        changed[name] = rng.choice(ODD_TENSORS)(state[name]) if name in changed else state[name]
    file = io.BytesIO()
    try:
        torch.save(changed, file, _use_new_zipfile_serialization=rng.random() < 0.5)
    except ImportError:
        # Pickle asks all modules for the scheme of a quantized tensor, and some of transformers 5.17 import more then.
        return with_odd_tensors(rng, state)
    return file.getvalue()


def convert(path: Path, rng: Random) -> None:
    place = path.parent / "converted"
    try:
        model = convert_checkpoint(path, place, labels=path.parent / "labels.txt")
        check(all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values()), "weights not finite")
        check((place / "model.safetensors").is_file(), "a folder without weights")
    except ConversionError:
        check(not place.exists(), "a folder although it was refused")
        raise
    finally:
        shutil.rmtree(place, ignore_errors=True)
