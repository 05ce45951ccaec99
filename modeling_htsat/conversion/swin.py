"""A start for training: the weights of a Swin transformer that has learned from images."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import SwinConfig, SwinModel

from ..configuration_htsat import HTSATConfig
from ..modeling_htsat import HTSATModel
from .architecture import make_config, read_architecture
from .reading import without_prefix
from .renaming import MICROSOFT, TRANSFORMERS, Renaming, join_query_key_value, load_strictly, rename_state

SWIN_MODEL: list[Renaming] = [
    (r"^embeddings\.patch_embeddings\.", "patch_embed."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.", ""),
    *TRANSFORMERS,
]
DROPPED = [
    (r"\.attn_mask$", "masks, which follow from the architecture"),
    (r"\.relative_position_index$", "indexes, which follow from the architecture"),
    (r"^head\.", "scores of ImageNet's classes"),
    (r"^embeddings\.mask_token$", "a token for masked images, which sound has no use for"),
]


def htsat_from_swin(swin: SwinModel | Mapping[str, torch.Tensor], config: HTSATConfig | None = None) -> HTSATModel:
    """An encoder that starts from a Swin transformer trained on images.

    Args:
        swin: transformers' `SwinModel`, or the state dict of a checkpoint in Microsoft's layout. Its window, widths and
            depths are taken over; its patch kernel is averaged over red, green and blue.
        config: the front end, the image size and the labels (the paper's by default).

    The batch norm of the mel bins is left as it is made: it has no counterpart in images. The paper's window is 8;
    most image checkpoints have 7, which does not tile a spectrogram of 256 x 256.
    """
    if isinstance(swin, SwinModel):
        state, table = join_query_key_value(swin.state_dict()), SWIN_MODEL
        architecture = _architecture_of(swin.config)
    else:
        state, table = without_prefix(swin), MICROSOFT
        architecture = read_architecture(state, "The Swin checkpoint")
    values = {**(config or HTSATConfig()).to_dict(), **architecture, "patch_stride": architecture["patch_size"]}
    model = HTSATModel(make_config(values, "The Swin checkpoint's architecture does not suit sound"))
    renamed = rename_state(_average_colours(state), table, DROPPED)
    load_strictly(model, renamed, "The Swin checkpoint", without="mel_norm.")
    return model.eval()


def _architecture_of(swin: SwinConfig) -> dict[str, Any]:
    return {
        "embed_dim": swin.embed_dim,
        "patch_size": swin.patch_size,
        "depths": list(swin.depths),
        "num_heads": list(swin.num_heads),
        "window_size": swin.window_size,
        "mlp_ratio": swin.mlp_ratio,
        "qkv_bias": swin.qkv_bias,
        "hidden_act": swin.hidden_act,
    }


def _average_colours(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The patch kernel for grey images: `(dim, 3, height, width)` to `(dim, 1, height, width)`."""
    return {key: tensor.mean(1, keepdim=True) if tensor.ndim == 4 else tensor for key, tensor in state.items()}


__all__ = ["htsat_from_swin"]
