"""CLAP's audio tower is this very backbone: to it from transformers' `ClapAudioModel`, and back."""

from typing import Any, cast

from transformers import ClapAudioConfig, ClapAudioModel, ClapFeatureExtractor, ClapModel

from ..configuration_htsat import HTSATConfig
from ..modeling_htsat import HTSATModel
from .architecture import make_config
from .reading import ConversionError
from .renaming import (
    TRANSFORMERS,
    Renaming,
    join_query_key_value,
    load_strictly,
    rename,
    rename_state,
    split_query_key_value,
)

RENAMINGS: list[Renaming] = [
    (r"^audio_encoder\.", ""),
    (r"^batch_norm\.", "mel_norm."),
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    *TRANSFORMERS,
]
DROPPED = [
    (r"\.relative_position_index$", "indexes, which follow from the architecture"),
    (r"\.num_batches_tracked$", "a counter without influence"),
]
# What LAION's models without fusion listen through.
PUBLISHED_FRONT_END = {
    "sampling_rate": 48000,
    "window_length": 1024,
    "hop_length": 480,
    "min_frequency": 50,
    "max_frequency": 14000,
}


def htsat_from_clap(
    clap: ClapModel | ClapAudioModel, feature_extractor: ClapFeatureExtractor | None = None
) -> HTSATModel:
    """The encoder in a CLAP model (not a fused one), with equal outputs for equal spectrograms.

    Args:
        clap: its audio tower is converted. `pooler_output` is that of `ClapAudioModel`: the projection into the space
            that sound shares with text stays behind.
        feature_extractor: CLAP's own, for the front end's values (by default those of LAION's unfused models).

    Ten seconds of sound become the same spectrogram in an `HTSATFeatureExtractor` with this front end and in
    `ClapFeatureExtractor`. Other lengths do not, as the two chose differently:
        shorter: CLAP repeats the waveform as often as it fits and fills up with digital silence; here the spectrogram
            is repeated, then stretched. Fill the waveform up to ten seconds yourself to get CLAP's embedding.
        longer: CLAP draws ten seconds at random; here all is heard, in windows, and averaged.
    """
    tower = clap.audio_model if isinstance(clap, ClapModel) else clap
    if tower.config.enable_fusion:
        raise ConversionError(
            "This CLAP model fuses several crops of a recording (`enable_fusion`), which HTS-AT has no layers for. "
            "Choose one that does not, such as an `unfused` one."
        )
    front_end = _front_end_of(feature_extractor) if feature_extractor else PUBLISHED_FRONT_END
    model = HTSATModel(_config_from_clap(tower.config, front_end))
    renamed = rename_state(join_query_key_value(tower.state_dict()), RENAMINGS, DROPPED)
    load_strictly(model, renamed, "The CLAP model")
    return model.eval()


def _front_end_of(clap: ClapFeatureExtractor) -> dict[str, Any]:
    if clap.truncation == "fusion":
        raise ConversionError(
            "This CLAP feature extractor has `truncation` 'fusion', which goes with HTK mel filters, unlike "
            "HTS-AT's. That of an unfused model has 'rand_trunc'."
        )
    return {
        "sampling_rate": clap.sampling_rate,
        "window_length": clap.fft_window_size,
        "hop_length": clap.hop_length,
        "min_frequency": clap.frequency_min,
        "max_frequency": clap.frequency_max,
    }


def _config_from_clap(clap: ClapAudioConfig, front_end: dict[str, Any]) -> HTSATConfig:
    values = {
        **front_end,
        "num_mel_bins": clap.num_mel_bins,
        "spec_size": clap.spec_size,
        "patch_size": _one_number(clap.patch_size, "patch_size"),
        "patch_stride": _one_number(clap.patch_stride, "patch_stride"),
        "embed_dim": clap.patch_embeds_hidden_size,
        "depths": list(clap.depths),
        "num_heads": list(clap.num_attention_heads),
        "window_size": clap.window_size,
        "mlp_ratio": clap.mlp_ratio,
        "qkv_bias": clap.qkv_bias,
        "hidden_act": clap.hidden_act,
        "drop_path_rate": clap.drop_path_rate,
        "hidden_dropout_prob": 0.0,  # CLAP's default of 0.1 sits elsewhere than ours; HTS-AT trains without
        "attention_probs_dropout_prob": clap.attention_probs_dropout_prob,
        "layer_norm_eps": clap.layer_norm_eps,
    }
    return make_config(values, "The CLAP model's architecture is not one of HTS-AT")


def _one_number(value: int | list[int] | tuple[int, ...], name: str) -> int:
    numbers = {value} if isinstance(value, int) else set(value)
    if len(numbers) > 1:
        raise ConversionError(f"This CLAP model has the `{name}` {value}; HTS-AT needs one number for both axes.")
    return numbers.pop()


def clap_from_htsat(model: HTSATModel) -> ClapAudioModel:
    """A `ClapAudioModel` with the weights of an HTS-AT encoder, and equal outputs for up to one window of sound."""
    tower = ClapAudioModel(_config_for_clap(cast(HTSATConfig, model.config)))
    ours = split_query_key_value(model.state_dict())
    theirs = tower.state_dict()
    for key, tensor in theirs.items():
        if not key.endswith("relative_position_index"):
            theirs[key] = ours[rename(key, RENAMINGS)].view_as(tensor)
    tower.load_state_dict(theirs)
    return tower.eval()


def _config_for_clap(config: HTSATConfig) -> ClapAudioConfig:
    smallest = min(config.stage_grids)
    if smallest < config.window_size:
        raise ConversionError(
            f"Stages of {smallest} x {smallest} tokens are smaller than a window of {config.window_size}, which "
            "`ClapAudioModel` has no weights for. A `spec_size` of 256 has none."
        )
    return ClapAudioConfig(
        num_mel_bins=config.num_mel_bins,
        spec_size=config.spec_size,
        patch_size=config.patch_size,
        patch_stride=[config.patch_stride, config.patch_stride],
        patch_embeds_hidden_size=config.embed_dim,
        hidden_size=config.hidden_size,
        depths=list(config.depths),
        num_attention_heads=list(config.num_heads),
        num_hidden_layers=len(config.depths),
        window_size=config.window_size,
        mlp_ratio=float(config.mlp_ratio),
        qkv_bias=config.qkv_bias,
        hidden_act=config.hidden_act,
        drop_path_rate=config.drop_path_rate,
        hidden_dropout_prob=config.hidden_dropout_prob,
        attention_probs_dropout_prob=config.attention_probs_dropout_prob,
        layer_norm_eps=config.layer_norm_eps,
        enable_fusion=False,
    )


__all__ = ["clap_from_htsat", "htsat_from_clap"]
