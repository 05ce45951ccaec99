"""Checkpoints of the authors' own code: Lightning files or bare state dicts, with or without derived buffers."""

from collections.abc import Mapping
from typing import Any

import torch

from ..configuration_htsat import HTSATConfig
from ..feature_extraction_htsat import HTSATFeatureExtractor
from ..modeling_htsat import HTSATForAudioClassification, HTSATModel
from .architecture import make_config, read_architecture
from .reading import ConversionError
from .renaming import MICROSOFT, Renaming, load_strictly, rename_state

ENCODER: list[Renaming] = [(r"^bn0\.", "mel_norm."), *MICROSOFT]
RENAMINGS: list[Renaming] = [
    *ENCODER,
    (r"^(mel_norm|patch_embed|stages|norm)\.", r"htsat.\1."),
    (r"^tscam_conv\.", "classifier.convolution."),
    (r"^head\.", "classifier.linear."),
]
DERIVED = [
    (r"^spectrogram_extractor\.", "Fourier kernels, which follow from the front end's values"),
    (r"^logmel_extractor\.", "mel filters, likewise; compared with ours before they go"),
    (r"\.attn_mask$", "masks, which follow from the architecture; their number is compared with ours"),
    (r"\.relative_position_index$", "indexes, which follow from the architecture"),
    (r"^bn0\.num_batches_tracked$", "a counter without influence"),
]
UNUSED_HEAD = [(r"^head\.", "a linear layer that is kept but never called beside a token-semantic head")]
HEADS = [(r"^(tscam_conv|head)\.", "scores of AudioSet's classes, which an encoder alone does not give")]
COMMON_RATES = (8000, 16000, 22050, 24000, 32000, 44100, 48000)


def authors_model(
    state: Mapping[str, torch.Tensor], config: HTSATConfig, extractor: HTSATFeatureExtractor, origin: str = "checkpoint"
) -> HTSATForAudioClassification:
    """The model in `state`, with the front end and the labels of a preset.

    Raises:
        ConversionError: the tensors contradict the preset, or do not fit the architecture that they show.
    """
    has_token_semantic_head = "tscam_conv.weight" in state
    found = _config_of(state, config, extractor, origin, token_semantic_head=has_token_semantic_head)
    _check_labels(state, config, has_token_semantic_head, origin)
    model = HTSATForAudioClassification(found)
    dropped = DERIVED + (UNUSED_HEAD if has_token_semantic_head else [])
    load_strictly(model, rename_state(state, RENAMINGS, dropped), origin)
    return model.eval()


def authors_encoder(
    state: Mapping[str, torch.Tensor], config: HTSATConfig, extractor: HTSATFeatureExtractor, origin: str = "checkpoint"
) -> HTSATModel:
    """The encoder in `state` alone, with the front end of a preset.

    Raises:
        ConversionError: the tensors contradict the preset, or do not fit the architecture that they show.
    """
    model = HTSATModel(_config_of(state, config, extractor, origin))
    load_strictly(model, rename_state(state, ENCODER, DERIVED + HEADS), origin)
    return model.eval()


def _config_of(
    state: Mapping[str, torch.Tensor], preset: HTSATConfig, extractor: HTSATFeatureExtractor, origin: str, **values: Any
) -> HTSATConfig:
    """The preset with the architecture that the tensors show, once nothing in them contradicts it."""
    values = {**preset.to_dict(), **read_architecture(state, origin), **values}
    _check_mels(state, preset, origin)
    _check_filters(state, extractor, origin)
    found = make_config(values, f"{origin} and the preset do not make one model together")
    _check_image(state, found, preset, origin)
    return found


def _check_labels(state: Mapping[str, torch.Tensor], config: HTSATConfig, has_token_semantic_head: bool, origin: str):
    name = "tscam_conv.weight" if has_token_semantic_head else "head.weight"
    if name not in state:
        raise ConversionError(f"{origin} has no head: it lacks tscam_conv.weight and head.weight.")
    if _rows(state[name]) != config.num_labels:
        raise ConversionError(
            f"{origin} scores {_rows(state[name])} classes ({name}), and the preset names {config.num_labels} labels. "
            f"Choose the preset of its data set with --preset DIR, or give {_rows(state[name])} names with "
            "--labels FILE, one on each line."
        )


def _check_mels(state: Mapping[str, torch.Tensor], config: HTSATConfig, origin: str):
    if "bn0.weight" in state and _rows(state["bn0.weight"]) != config.num_mel_bins:
        raise ConversionError(
            f"{origin} normalises {_rows(state['bn0.weight'])} mel bins (bn0.weight), and the preset has "
            f"{config.num_mel_bins} (num_mel_bins). Choose the preset that it was trained with."
        )


def _check_filters(state: Mapping[str, torch.Tensor], extractor: HTSATFeatureExtractor, origin: str):
    filters = state.get("logmel_extractor.melW")  # (frequencies, mels)
    if filters is None or _are_filters_of(extractor, filters):
        return
    values = extractor.to_dict()
    rates = [
        rate
        for rate in COMMON_RATES
        if _are_filters_of(HTSATFeatureExtractor(**{**values, "sampling_rate": rate}), filters)
    ]
    theirs = f"the mel filters of {rates[0]} Hz" if rates else f"other mel filters, {tuple(filters.shape)}"
    raise ConversionError(
        f"{origin} was trained with {theirs} (logmel_extractor.melW) and not with those of "
        f"{extractor.sampling_rate} Hz: {extractor.num_mel_bins} bins from {extractor.min_frequency:g} to "
        f"{extractor.max_frequency:g} Hz on windows of {extractor.window_length} samples. Choose the preset that it "
        "was trained with, with --preset DIR."
    )


def _are_filters_of(extractor: HTSATFeatureExtractor, filters: torch.Tensor) -> bool:
    ours = extractor.mel_filters.T  # (frequencies, mels); the highest values are about 0.02
    return filters.shape == ours.shape and torch.allclose(filters.float(), ours, atol=1e-5)


def _check_image(state: Mapping[str, torch.Tensor], found: HTSATConfig, preset: HTSATConfig, origin: str):
    if found.patch_size != preset.patch_size:
        # The step between two patches stands in the preset alone.
        raise ConversionError(
            f"{origin} cuts patches of {found.patch_size} x {found.patch_size} (patch_embed.proj.weight), and the "
            f"preset has {preset.patch_size} (patch_size). Choose the preset that it was trained with."
        )
    mask = state.get("layers.0.blocks.1.attn_mask")  # (windows, tokens, tokens)
    num_windows = (found.stage_grids[0] // found.stage_windows[0]) ** 2
    if mask is not None and _rows(mask) != num_windows:
        raise ConversionError(
            f"{origin} cuts its image into {_rows(mask)} windows (layers.0.blocks.1.attn_mask), and the preset's "
            f"`spec_size` {found.spec_size} into {num_windows}. Choose the preset that it was trained with."
        )


def _rows(tensor: torch.Tensor) -> int:
    return tensor.shape[0] if tensor.ndim else 0


__all__ = ["authors_encoder", "authors_model"]
