"""Reading a checkpoint file, whatever wraps its tensors, without running any code that it may hold."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..tables import in_one_line


class ConversionError(ValueError):
    """A checkpoint that cannot be converted, and why."""


# What Lightning keeps beside the weights: classes as mere dictionary keys, and tables of hyperparameters. Wherever a
# checkpoint names one of these, an OrderedDict stands in: torch knows how to fill it, and nothing runs.
BESIDE_THE_WEIGHTS = ["argparse.Namespace"] + [
    f"{package}.{name}"
    for package in ("pytorch_lightning", "lightning.pytorch")
    for name in (
        "callbacks.early_stopping.EarlyStopping",
        "callbacks.lr_monitor.LearningRateMonitor",
        "callbacks.model_checkpoint.ModelCheckpoint",
        "utilities.parsing.AttributeDict",
    )
]
# Losses and scores that LAION's training kept beside the weights of CLAP, as NumPy's numbers.
NUMBERS_BESIDE = ["numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"]


class Forgotten:
    """Stands in for a number of NumPy: takes what its maker is given, and keeps nothing of it."""

    def __init__(self, *given: object):
        pass

    def __setstate__(self, state: object):
        pass


STAND_INS = [(OrderedDict, name) for name in BESIDE_THE_WEIGHTS] + [(Forgotten, name) for name in NUMBERS_BESIDE]


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint file by name, without wrappers and prefixes."""
    if not path.is_file():
        raise ConversionError(f"{path} is not a file; give the checkpoint to convert.")
    content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    entries = content.items() if isinstance(content, Mapping) else ()
    state = {str(key): value for key, value in entries if isinstance(value, torch.Tensor)}
    if not state:
        raise ConversionError(
            f"{path} holds no state dict: a table of tensors by name, or one under `state_dict` or `model`."
        )
    odd = next((name for name, tensor in state.items() if not _is_plain(tensor)), None)
    if odd is not None:
        found = state[odd]
        raise ConversionError(
            f"{path} holds {in_one_line(odd)} as a tensor of {found.dtype}, {found.layout}, on {found.device}, or with "
            "fewer numbers than its shape has; plain ones are needed. Save `tensor.to_dense().float().contiguous()`."
        )
    return without_prefix(state)


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        reason = in_one_line(error)
        raise ConversionError(f"{path} is not a readable safetensors file ({reason}). Download it again.") from error


def _load_pickle(path: Path) -> object:
    try:
        with torch.serialization.safe_globals(STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error class of its own, neither for a refusal nor for a broken file
        danger = _danger_in(str(error))
        if danger:
            raise ConversionError(
                f"{path} {danger} and is refused. Nothing was written. If you trust the file, save its tensors alone: "
                "`torch.save(torch.load(file, weights_only=False)['state_dict'], 'weights.ckpt')`."
            ) from error
        raise ConversionError(
            f"{path} is not a readable PyTorch checkpoint of weights ({type(error).__name__}). Check that it is one, "
            "and that it arrived whole."
        ) from error


def _danger_in(refusal: str) -> str | None:
    """What torch found in a pickle that only running it could make sense of."""
    if culprit := re.search(r"GLOBAL ([\w.]+)", refusal):
        return f"holds more than weights: its pickle asks for {culprit[1]}, which could run code"
    if re.search(r"Unsupported operand 149\b", refusal):  # the frames of protocol 4; torch itself writes 2
        return "is a pickle of protocol 4, which torch has no safe reader for"
    return None


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether the numbers lie one beside the other: not sparse, quantized, complex, or promised and not there."""
    is_here = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
    return is_here and not tensor.is_quantized and not tensor.is_complex() and _has_own_numbers(tensor)


def _has_own_numbers(tensor: torch.Tensor) -> bool:
    """A tensor of few bytes can claim any size, by steps of 0 from each number to the next."""
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def without_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without what Lightning (`sed_model.`), data-parallel and compiling wrappers put before every name."""
    stripped: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        name = re.sub(r"^((sed_model|model|module|_orig_mod)\.)+", "", key)
        if name in stripped:
            raise ConversionError(
                f"The checkpoint holds {in_one_line(name)} twice, once as {in_one_line(key)}: perhaps an average "
                "beside the weights. Save the one to convert alone."
            )
        stripped[name] = tensor
    return stripped


__all__ = ["ConversionError", "read_checkpoint", "without_prefix"]
