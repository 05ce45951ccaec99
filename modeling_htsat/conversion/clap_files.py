"""CLAP's own files, LAION's `.pt` and Microsoft's `.pth`: beside a text encoder, a tower in the authors' layout."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..configuration_htsat import HTSATConfig
from ..feature_extraction_htsat import HTSATFeatureExtractor
from ..modeling_htsat import HTSATModel
from .authors import authors_encoder
from .clap import PUBLISHED_FRONT_END
from .reading import ConversionError
from .renaming import named

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publisher:
    """How somebody's CLAP files are laid out, and what their towers listen through."""

    prefix: str  # before every name of the tower
    dropped: list[tuple[str, str]]  # what lies beside the tower, and why it stays behind
    front_end: dict[str, Any]


TEXT = "the text encoder, which no sound goes through"
PROJECTION = "the way into the space that sound shares with text, which starts behind the tower"
SCALE = "a factor for comparing sound with text"
LAION = Publisher(
    prefix=r"^audio_branch\.",
    dropped=[
        (r"^text_(branch|transform|projection)\.", TEXT),
        (r"^audio_(transform|projection)\.", PROJECTION),
        (r"^logit_scale_[at]$", SCALE),
    ],
    front_end=PUBLISHED_FRONT_END,
)
# The tower listens by the values of its own `models/config.py`; those of the settings file do not reach it.
MICROSOFT = Publisher(
    prefix=r"^(audio_encoder|clap)\.base\.htsat\.",
    dropped=[
        (r"^caption_encoder\.", TEXT),
        (r"^(gpt|clap_project)\.", "the writer of captions, which is fed with what the tower heard"),
        (r"^(audio_encoder|clap)\.projection\.", PROJECTION),
        (r"^logit_scale$", SCALE),
    ],
    front_end={**PUBLISHED_FRONT_END, "sampling_rate": 44100, "hop_length": 320},
)
FUSION = r"(^|\.)(mel_conv[12]d|fusion_model)\."


def publisher_of(state: Mapping[str, torch.Tensor]) -> Publisher | None:
    """Whose CLAP the names in `state` show, if it is one with an HTS-AT in it."""
    for publisher in (LAION, MICROSOFT):
        if any(re.match(publisher.prefix, key) for key in state):
            return publisher
    return None


def htsat_from_clap_file(
    state: Mapping[str, torch.Tensor],
    publisher: Publisher,
    config: HTSATConfig | None = None,
    origin: str = "The CLAP checkpoint",
) -> HTSATModel:
    """The encoder in the state dict of a CLAP file (not of a fused model), as [`htsat_from_clap`] gives it.

    Args:
        config: the front end, by default what the publisher's towers were trained with. The mel filters in the file
            are compared with it.
    """
    fusing = [key for key in state if re.search(FUSION, key)]
    if fusing:
        raise ConversionError(
            f"{origin} fuses several crops of a recording ({fusing[0]}), which HTS-AT has no layers for. Choose one "
            "that does not, such as `630k-audioset-best.pt`."
        )
    config = config or HTSATConfig(**publisher.front_end)
    tower = _tower_in(state, publisher, origin)
    return authors_encoder(tower, config, HTSATFeatureExtractor(**config.front_end), origin)


def _tower_in(state: Mapping[str, torch.Tensor], publisher: Publisher, origin: str) -> dict[str, torch.Tensor]:
    """The entries of the tower under the authors' names, once all others are known."""
    tower = {key: tensor for key, tensor in state.items() if re.match(publisher.prefix, key)}
    others = [key for key in state if key not in tower]
    for pattern, reason in publisher.dropped:
        left_out = [key for key in others if re.search(pattern, key)]
        others = [key for key in others if key not in left_out]
        if left_out:
            logger.info("%s: %s left out: %s", origin, named(left_out), reason)
    if others:
        raise ConversionError(f"{origin} holds {named(others)} that no CLAP with this audio tower is known to have.")
    return {re.sub(publisher.prefix, "", key): tensor for key, tensor in tower.items()}


__all__ = ["Publisher", "htsat_from_clap_file", "publisher_of"]
