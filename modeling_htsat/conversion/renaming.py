"""What is common to all conversions: tables of renamings, and a strict load."""

import re
from collections.abc import Iterable, Mapping

import torch
from transformers import PreTrainedModel

from ..tables import in_one_line
from .reading import ConversionError

Renaming = tuple[str, str]  # a regular expression and what takes its place
Renamed = dict[str, tuple[str, torch.Tensor]]  # by our name: the name that an entry had, and its tensor

# The encoder as Microsoft's Swin names it; the authors built on that code.
MICROSOFT: list[Renaming] = [
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^layers\.", "stages."),
    (r"\.norm1\.", ".attention_norm."),
    (r"\.norm2\.", ".mlp_norm."),
    (r"\.attn\.proj\.", ".attention.projection."),
    (r"\.attn\.", ".attention."),
    (r"\.mlp\.fc1\.", ".mlp.up."),
    (r"\.mlp\.fc2\.", ".mlp.down."),
    (r"\.downsample\.", ".merge."),
]
# The same as transformers names it, in Swin (`q_proj`, `o_proj`, `mlp.fc1`) and in CLAP (`self.query`, `output.dense`,
# `intermediate.dense`). Swin had CLAP's names in earlier releases.
TRANSFORMERS: list[Renaming] = [
    (r"^layers\.", "stages."),
    (r"\.layernorm_before\.", ".attention_norm."),
    (r"\.layernorm_after\.", ".mlp_norm."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attention.projection."),
    (r"\.attention\.(self|relative_position_bias)\.", ".attention."),
    (r"\.(intermediate\.dense|mlp\.fc1)\.", ".mlp.up."),
    (r"(blocks\.\d+)\.(output\.dense|mlp\.fc2)\.", r"\1.mlp.down."),
    (r"\.downsample\.", ".merge."),
]
QUERY_KEY_VALUE = [("query", "key", "value"), ("q_proj", "k_proj", "v_proj")]


def rename(key: str, table: Iterable[Renaming]) -> str:
    for pattern, replacement in table:
        key = re.sub(pattern, replacement, key)
    return key


def rename_state(
    state: Mapping[str, torch.Tensor], table: Iterable[Renaming], dropped: Iterable[tuple[str, str]]
) -> Renamed:
    """Our name for every entry that is kept, with the name it had and its tensor."""
    table, dropped = list(table), list(dropped)
    kept = {key: tensor for key, tensor in state.items() if not any(re.search(pattern, key) for pattern, _ in dropped)}
    renamed = {rename(key, table): (key, tensor) for key, tensor in kept.items()}
    # The patch embedding is a convolution elsewhere; we keep its kernel as the matrix that it is.
    return {
        name: (key, tensor.flatten(1) if name.endswith("patch_embed.projection.weight") and tensor.ndim > 1 else tensor)
        for name, (key, tensor) in renamed.items()
    }


def join_query_key_value(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One entry `qkv` for the `query`, `key` and `value` (or `q_proj`, ...) that transformers keeps apart."""
    joined = dict(state)
    for names in QUERY_KEY_VALUE:
        for key in [key for key in state if f".{names[0]}." in key]:
            parts = [joined.pop(key.replace(f".{names[0]}.", f".{name}.")) for name in names]
            joined[key.replace(f".{names[0]}.", ".qkv.")] = torch.cat(parts)
    return joined


def split_query_key_value(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The way back: for every `qkv` its three parts, under either kind of name."""
    split = dict(state)
    for key in [key for key in state if ".qkv." in key]:
        parts = split.pop(key).chunk(3)
        for names in QUERY_KEY_VALUE:
            split |= {key.replace(".qkv.", f".{name}."): part for name, part in zip(names, parts, strict=True)}
    return split


def load_strictly(model: PreTrainedModel, renamed: Renamed, origin: str, without: str | None = None):
    """Fill the model; a tensor that is missing, left over, misshapen or not finite is named as the checkpoint names it.

    Entries that begin with `without` have no counterpart in the checkpoint and stay as they are.
    """
    wanted = {
        key: tensor
        for key, tensor in model.state_dict().items()
        # The counter of training batches has no influence with a fixed momentum.
        if not key.endswith("num_batches_tracked") and not (without and key.startswith(without))
    }
    extra = sorted(original for key, (original, _) in renamed.items() if key not in wanted)
    missing = sorted(set(wanted) - set(renamed))
    if extra:
        raise ConversionError(f"{origin} holds {named(extra)} that this architecture has no place for.")
    if missing:
        raise ConversionError(f"{origin} lacks {named(missing)} (named as in this project).")
    for key, (original, tensor) in renamed.items():
        if tensor.shape != wanted[key].shape:
            raise ConversionError(
                f"{origin}: {original} has shape {tuple(tensor.shape)} where {tuple(wanted[key].shape)} is needed."
            )
        if not _is_finite(tensor):
            raise ConversionError(f"{origin}: {original} holds NaN or infinite numbers; the checkpoint is damaged.")
    model.load_state_dict({key: tensor for key, (_, tensor) in renamed.items()}, strict=False)


def _is_finite(tensor: torch.Tensor) -> bool:
    # As float32, which the model's weights are: numbers of 8 bits cannot be asked.
    return bool(torch.isfinite(tensor.to(torch.float32)).all())


def named(keys: list[str], most: int = 3) -> str:
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    listed = in_one_line(", ".join(keys[:most]))
    return f"{'an entry' if len(keys) == 1 else f'{len(keys)} entries'} ({listed}{rest})"
