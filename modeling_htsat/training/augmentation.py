"""Augmentation of spectrograms while training: stretched and moved, with stripes cut out, and mixed in pairs.

What the paper does comes after the batch norm, inside the model: a stripe that is cut out is a stripe of the mean, and
two clips are mixed as the normalised spectrograms that they are. A hook on `mel_norm` puts it there, so that the
model itself knows no dice. What stretches and moves comes before; `roll_time`, which moves events along, is the data
set's own.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ..configuration_htsat import HTSATConfig
from ..modeling_htsat import plan_windows

MIXUP_RULES = ("mixed", "authors")
MISSING = float("nan")


@dataclass
class AugmentationArguments:
    """What happens to a spectrogram while training. Zeros switch a thing off."""

    mixup_alpha: float = field(default=0.0, metadata={"help": "Mix clips in pairs, by Beta(alpha, alpha); paper: 0.5."})
    mixup_labels: str = field(
        default="mixed",
        metadata={
            "help": "mixed: labels are mixed as the sounds are. authors: a clip keeps its own labels, however "
            "little of it is left, as in the authors' code."
        },
    )
    time_masks: int = field(default=0, metadata={"help": "Stripes of time to cut out (SpecAugment); paper: 2."})
    max_time_mask_frames: int = field(default=64, metadata={"help": "Longest of them, in frames."})
    frequency_masks: int = field(default=0, metadata={"help": "Stripes of frequency to cut out; paper: 2."})
    max_frequency_mask_bins: int = field(default=8, metadata={"help": "Highest of them, in mel bins."})
    roll_time: bool = field(
        default=False, metadata={"help": "Begin anywhere in the clip and go on at its start; events move along."}
    )
    max_speed_change: float = field(
        default=0.0, metadata={"help": "Play faster or slower by up to this share, pitch kept. Not with strong labels."}
    )
    max_frequency_shift_bins: int = field(default=0, metadata={"help": "Move up or down by up to so many mel bins."})
    max_gain_db: float = field(default=0.0, metadata={"help": "Make louder or softer by up to so many decibels."})

    def __post_init__(self) -> None:
        if self.mixup_labels not in MIXUP_RULES:
            raise ValueError(f"mixup_labels is {self.mixup_labels!r}; choose one of {', '.join(MIXUP_RULES)}.")
        if not 0 <= self.max_speed_change < 1:
            raise ValueError(f"max_speed_change is {self.max_speed_change}; it must be at least 0 and below 1.")
        for name in (name for name in self.__dataclass_fields__ if name not in ("mixup_labels", "roll_time")):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative.")


class SpectrogramAugmentation:
    """Augments the batches of one model. All randomness comes from the generator that each batch brings along."""

    def __init__(self, arguments: AugmentationArguments, model: nn.Module):
        self.arguments = arguments
        self.config: HTSATConfig = model.config
        self._kept: torch.Tensor | None = None  # (windows, mels, frames): 0 where a stripe is cut out
        self._share: torch.Tensor | None = None  # (windows,): how much of each is its own,
        self._partners = torch.empty(0, dtype=torch.long)  # and which one the rest comes from
        norm = next(module for name, module in model.named_modules() if name.split(".")[-1] == "mel_norm")
        norm.register_forward_hook(self._after_norm)

    def apply(self, inputs: dict[str, Any], num_labels: int, random: np.random.Generator) -> dict[str, Any]:
        """The batch as the model shall see it: features moved, targets mixed; the rest waits behind the norm."""
        features, mask = inputs["input_features"], inputs.get("attention_mask")
        inputs = {**inputs, "input_features": self._move(features, mask, random)}
        clips = self._clips_of_windows(features, mask)
        self._kept = self._cut_stripes(len(clips), features.shape[2], random).to(features.device)
        self._share = None
        if self.arguments.mixup_alpha > 0:
            alpha = self.arguments.mixup_alpha
            share = torch.from_numpy(random.beta(alpha, alpha, len(features))).to(features)
            self._share, self._partners = share[clips], _partners(clips, len(features))
            if self.arguments.mixup_labels == "mixed":
                mirrored = torch.arange(len(features), device=features.device).flip(0)
                inputs |= {
                    name: _mix(_as_values(inputs[name], num_labels), share, mirrored)
                    for name in ("labels", "frame_targets", "soft_targets")
                    if inputs.get(name) is not None
                }
        return inputs

    def _after_norm(self, norm: nn.Module, inputs: Any, normalised: torch.Tensor) -> torch.Tensor | None:
        if not norm.training or self._kept is None:
            return None
        normalised = normalised * self._kept
        return normalised if self._share is None else _mix(normalised, self._share, self._partners)

    def _clips_of_windows(self, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """For each window that the model will hear, the clip that it comes from."""
        batch, frames, _ = features.shape
        lengths = torch.full((batch,), frames, device=features.device) if mask is None else mask.long().sum(1)
        return plan_windows(self.config, lengths.clamp(min=1), frames).rows

    def _move(self, features: torch.Tensor, mask: torch.Tensor | None, random: np.random.Generator) -> torch.Tensor:
        """Another speed, pitch and loudness for each clip `(batch, frames, mels)`."""
        arguments, (batch, frames, mels) = self.arguments, features.shape

        def dice() -> torch.Tensor:
            return torch.from_numpy(random.random((batch, 1), dtype=np.float32))

        speed, shift, gain = dice(), dice(), dice()  # always all, so that one does not move the others
        if arguments.max_speed_change:
            length = mask.sum(1, keepdim=True).cpu() if mask is not None else torch.full((batch, 1), frames)
            place = torch.arange(frames) * (1 + arguments.max_speed_change * (2 * speed - 1))
            features = _read_between(features, (place % length).to(features.device), length.to(features.device))
        if arguments.max_frequency_shift_bins:
            bins = ((2 * shift - 1) * (arguments.max_frequency_shift_bins + 0.5)).round()
            place = (torch.arange(mels) + bins).clamp(0, mels - 1).long().to(features.device)
            features = features.gather(2, place[:, None].expand_as(features))
        if arguments.max_gain_db:
            features = features + ((2 * gain - 1) * arguments.max_gain_db)[:, None].to(features)
        return features

    def _cut_stripes(self, windows: int, mels: int, random: np.random.Generator) -> torch.Tensor:
        """1 where a window `(windows, mels, frames)` is kept, 0 in its stripes."""
        arguments, frames = self.arguments, self.config.clip_frames
        kept_frames = _stripes(windows, arguments.time_masks, arguments.max_time_mask_frames, frames, random)
        kept_bins = _stripes(windows, arguments.frequency_masks, arguments.max_frequency_mask_bins, mels, random)
        return kept_bins[:, :, None] * kept_frames[:, None]


def _stripes(batch: int, count: int, longest: int, size: int, random: np.random.Generator) -> torch.Tensor:
    """1 outside and 0 inside of `count` stripes of random length and place, `(batch, size)`."""
    dice = torch.from_numpy(random.random((2, batch, count, 1), dtype=np.float32))
    length = (dice[0] * (min(longest, size) + 1)).floor()
    first = (dice[1] * (size - length + 1)).floor()
    place = torch.arange(size)
    return 1 - ((place >= first) & (place < first + length)).any(dim=1).float()


def _partners(clips: torch.Tensor, batch: int) -> torch.Tensor:
    """For each window the one that it is mixed with: of the clip at the mirrored place of the batch, as in the authors'
    code, the one at the same place in time; a shorter clip begins anew."""
    counts = clips.bincount(minlength=batch)
    first = counts.cumsum(0) - counts
    place, mirrored = torch.arange(len(clips), device=clips.device) - first[clips], batch - 1 - clips
    return first[mirrored] + place % counts[mirrored]


def _mix(values: torch.Tensor, share: torch.Tensor, partners: torch.Tensor) -> torch.Tensor:
    share = share.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
    return values * share + values[partners] * (1 - share)


def _as_values(targets: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Targets that can be mixed: indices become one value for each class, and what is missing becomes NaN."""
    if targets.ndim == 1 and not targets.is_floating_point():
        one_hot = torch.nn.functional.one_hot(targets.clamp(min=0), num_labels).float()
        return one_hot.masked_fill((targets < 0)[:, None], MISSING)
    return targets.float().masked_fill(targets < 0, MISSING)


def _read_between(features: torch.Tensor, place: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Features `(batch, frames, mels)` at broken places `(batch, frames)`, in clips that go on at their start."""
    before = place.floor().long().clamp(min=0)
    after = (before + 1) % length
    weight = (place - before)[..., None].to(features)
    return torch.lerp(_frames_at(features, before), _frames_at(features, after), weight)


def _frames_at(features: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    return features.gather(1, place[..., None].expand(-1, -1, features.shape[2]))


__all__ = ["AugmentationArguments", "SpectrogramAugmentation"]
