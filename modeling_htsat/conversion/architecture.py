"""From tensors to the architecture that they show, and from values to a configuration."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from ..configuration_htsat import HTSATConfig
from ..tables import in_one_line
from .reading import ConversionError


def read_architecture(state: Mapping[str, torch.Tensor], origin: str) -> dict[str, Any]:
    """The values of [`HTSATConfig`] that can be read off tensors with Microsoft's or the authors' names."""
    try:
        return _read_architecture(state)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise ConversionError(
            f"{origin} is not a Swin transformer in the authors' or Microsoft's layout: it lacks {error}. Its first "
            f"entries are {in_one_line(', '.join(list(state)[:3]))}."
        ) from error


def _read_architecture(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    patch_kernel = state["patch_embed.proj.weight"]  # (dim, channels, height, width)
    first_block = "layers.0.blocks.0."
    bias_table = state[first_block + "attn.relative_position_bias_table"]  # ((2 window - 1) ** 2, heads)
    num_stages = len(_numbers(state, r"^layers\.(\d+)\."))
    return {
        "embed_dim": patch_kernel.shape[0],
        "patch_size": patch_kernel.shape[-1],
        "depths": [len(_numbers(state, rf"^layers\.{stage}\.blocks\.(\d+)\.")) for stage in range(num_stages)],
        "num_heads": [
            state[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"].shape[1] for stage in range(num_stages)
        ],
        "window_size": (math.isqrt(bias_table.shape[0]) + 1) // 2,
        "mlp_ratio": state[first_block + "mlp.fc1.weight"].shape[0] / patch_kernel.shape[0],
        "qkv_bias": first_block + "attn.qkv.bias" in state,
    }


def _numbers(state: Mapping[str, torch.Tensor], pattern: str) -> set[str]:
    return {match[1] for key in state if (match := re.match(pattern, key))}


def make_config(values: Mapping[str, Any], problem: str) -> HTSATConfig:
    """A configuration; where the values do not suit one another, `problem` begins the sentence that says so."""
    try:
        return HTSATConfig(**values)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ConversionError(f"{problem}: {in_one_line(error.__cause__ or error)}") from error
