"""From rows to what a model learns from: decode, crop, make targets; then batches of features.

Decoding happens here, in the workers of a DataLoader, and nowhere before. A clip that cannot be decoded does not stop a
run: its place in the batch is kept, with labels that are not known, and the batch says its name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers.utils import logging

from ..audio_htsat import AudioError, load_audio
from ..configuration_htsat import HTSATConfig
from ..events_htsat import events_to_frames
from ..feature_extraction_htsat import HTSATFeatureExtractor
from .clips import ClipRows
from .sampling import Key

logger = logging.get_logger(__name__)

NOT_KNOWN = -100  # class index of a clip without labels; values of several labels are NaN
BYTES_PER_NUMBER = 4
ROLL = 2  # so that a draw decides where a clip begins apart from what else it decides


@dataclass
class Example:
    """One clip, decoded and labelled."""

    name: str
    features: torch.Tensor | None  # (frames, mels); None: it cannot be decoded
    labels: np.ndarray  # a class index, or one value (classes,) for each class
    frame_targets: np.ndarray | None = None  # (steps, classes); None: nothing here is ever strongly labelled
    draw: int | None = None  # what the augmentation of this clip follows from; None: it is not for training
    waveform: np.ndarray | None = None  # for a teacher that listens as well


class Sound(NamedTuple):
    """What of a clip is heard."""

    features: torch.Tensor  # (frames, mels), as the extractor makes them: a short clip may be repeated
    num_samples: int
    first_sample: int = 0  # where in the clip a crop begins
    is_cut: bool = False
    waveform: np.ndarray | None = None


class ClipDataset(Dataset[Example]):
    """The clips of a corpus as examples for one model.

    Asked with a key `(index, draw)` of `EpochBatches`, it gives a crop for training; with an index, the whole clip.

    Args:
        rows: the clips; see `clips.ClipRows`.
        extractor, config: of the model: rate, window, labels and what several labels mean.
        crop_seconds: longest clip in training; by default the model's window. Longer ones are cut at a place that the
            draw decides. More than a window is heard through several, as in use. What becomes of shorter ones is the
            extractor's rule, in training as in use: by default they are repeated.
        with_frames: also give targets for every time step.
        learn_events: where events are known, a crop is labelled with those that are heard in it; false: with all that
            the whole clip is labelled with, as if only that were known. Models of a single label always do that.
        roll_samples: begin so many samples later, and go on with what was left out: a shift for evaluation.
        cache_gib: keep the spectrograms of clips that are heard whole in memory, up to here.
        keep_waveforms: hand on the samples too, for a teacher.

    With `roll_time`, as `HTSATTrainer` sets it, a clip for training begins anywhere and goes on at its start, and its
    events move along.
    """

    def __init__(
        self,
        rows: ClipRows,
        extractor: HTSATFeatureExtractor,
        config: HTSATConfig,
        crop_seconds: float | None = None,
        with_frames: bool = False,
        learn_events: bool = True,
        roll_samples: int = 0,
        cache_gib: float = 0.0,
        keep_waveforms: bool = False,
    ):
        self.rows, self.extractor, self.config = rows, extractor, config
        self.label_names = [config.id2label[index] for index in range(config.num_labels)]
        self.is_single_label = config.problem_type == "single_label_classification"
        window_seconds = (config.clip_frames - 1) * config.hop_length / config.sampling_rate
        if crop_seconds is not None and crop_seconds <= 0:
            raise ValueError(f"crop_seconds is {crop_seconds:g}; it must be positive, or left out for a whole window.")
        self.crop_samples = round((crop_seconds or window_seconds) * config.sampling_rate)
        self.with_frames, self.roll_samples = with_frames, roll_samples
        self.labels_follow_events = learn_events and not self.is_single_label
        self.keep_waveforms, self.roll_time = keep_waveforms, False
        self._cache: dict[int, Sound] = {}
        self._cache_room = int(cache_gib * 2**30)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | Key) -> Example:
        index, draw = key if isinstance(key, tuple) else (key, None)
        row = self.rows[index]
        try:
            sound = (None if self.roll_samples else self._cache.get(index)) or self._hear(index, row["audio"], draw)
        except AudioError as error:
            logger.warning(f"{row['video_id']} is left out: {error}")
            return self._unknown(row["video_id"], draw)
        features, events = sound.features, self._events_in(sound, row)
        names = _names_of(row, events if sound.is_cut and self.labels_follow_events else None)
        if self.roll_time and draw is not None:
            features, events = self._roll(features, events, draw)
        frame_targets = self._frame_targets(events, len(features)) if self.with_frames else None
        return Example(row["video_id"], features, self._labels(names, row), frame_targets, draw, sound.waveform)

    def class_indices(self) -> list[list[int]]:
        """The classes of every clip, for balanced sampling."""
        index_of = self.config.label2id
        rows = self.rows.without_audio()
        return [[index_of[name] for name in _names_of(row, None) or () if name in index_of] for row in rows]

    def refuse_unknown_labels(self) -> None:
        """Say before a run what would stop it: a label that the model does not have."""
        for row in self.rows.without_audio():
            self._labels(_names_of(row, None), row)
            if self.with_frames or self.labels_follow_events:
                self._refuse_strangers([event["event_label"] for event in row["events"] or ()], row)

    def _hear(self, index: int, audio: dict[str, Any], draw: int | None) -> Sound:
        """Decode a clip, cut it if it is longer than is learnt from at once, and make its spectrogram."""
        waveform = load_audio(audio, self.config.sampling_rate)
        if self.roll_samples:
            waveform = np.roll(waveform, -self.roll_samples)
        first, is_cut = 0, draw is not None and len(waveform) > self.crop_samples
        if is_cut:
            first = int(np.random.default_rng(draw).integers(len(waveform) - self.crop_samples + 1))
            waveform = waveform[first : first + self.crop_samples]
        inputs = self.extractor(waveform, sampling_rate=self.config.sampling_rate, return_tensors="pt")
        kept = waveform if self.keep_waveforms else None
        sound = Sound(inputs["input_features"][0], len(waveform), first, is_cut, kept)
        if not (is_cut or self.roll_samples):
            self._remember(index, sound)
        return sound

    def _remember(self, index: int, sound: Sound) -> None:
        size = BYTES_PER_NUMBER * (sound.features.numel() + (0 if sound.waveform is None else sound.waveform.size))
        if self._cache_room >= size:
            self._cache_room -= size
            self._cache[index] = sound

    def _events_in(self, sound: Sound, row: dict[str, Any]) -> list[dict[str, Any]] | None:
        """The events as the model hears them: moved along with a crop, several times where a clip is repeated."""
        if row.get("events") is None:
            return None
        events = [{**event, "label": event["event_label"]} for event in row["events"]]
        rate = self.config.sampling_rate
        events = _moved(events, [-sound.first_sample / rate], sound.num_samples / rate)
        if self.extractor.short_clips != "repeat":
            return events
        period = self.extractor.num_frames(sound.num_samples) * self.config.hop_length / rate
        repeats = self.extractor.num_repeats(sound.num_samples)
        return _moved(events, [index * period for index in range(repeats)], repeats * period)

    def _roll(
        self, features: torch.Tensor, events: list[dict[str, Any]] | None, draw: int
    ) -> tuple[torch.Tensor, list[dict[str, Any]] | None]:
        """Another beginning; an event that the new end cuts through goes on at the new start."""
        frames = len(features)
        first = int(np.random.default_rng((draw, ROLL)).integers(frames))
        features = features.roll(-first, 0)
        if events is None:
            return features, None
        start, period = (number * self.config.hop_length / self.config.sampling_rate for number in (first, frames))
        return features, _moved(events, [-start, period - start], period)

    def _frame_targets(self, events: list[dict[str, Any]] | None, num_frames: int) -> np.ndarray:
        num_steps = self.config.num_steps_of(num_frames)
        if events is None:
            return np.full((num_steps, self.config.num_labels), np.nan, dtype=np.float32)
        edges = np.array(self.config.step_edges(num_frames))
        return events_to_frames(events, num_steps, None, self.label_names, step_edges_seconds=edges)

    def _labels(self, names: Sequence[str] | None, row: dict[str, Any]) -> np.ndarray:
        self._refuse_strangers(names or (), row)
        if not self.is_single_label:
            return self._several_labels(names)
        if names is not None and len(names) != 1:
            raise ValueError(
                f"{row['video_id']} has {len(names)} labels, and this model tells one of {self.config.num_labels}; set "
                "problem_type to multi_label_classification."
            )
        return np.array(NOT_KNOWN if names is None else self.config.label2id[names[0]])

    def _refuse_strangers(self, names: Sequence[str], row: dict[str, Any]) -> None:
        if strangers := [name for name in names if name not in self.config.label2id]:
            raise ValueError(
                f"{row['video_id']} is labelled {strangers[0]!r}, which is not among the model's "
                f"{self.config.num_labels} labels; give the corpus the labels of the model, or train a new head."
            )

    def _several_labels(self, names: Sequence[str] | None) -> np.ndarray:
        values = np.full(self.config.num_labels, np.nan if names is None else 0.0, dtype=np.float32)
        values[[self.config.label2id[name] for name in names or ()]] = 1.0
        return values

    def _unknown(self, name: str, draw: int | None) -> Example:
        labels = np.array(NOT_KNOWN) if self.is_single_label else self._several_labels(None)
        targets = np.full((self.config.num_steps, self.config.num_labels), np.nan, dtype=np.float32)
        return Example(name, None, labels, targets if self.with_frames else None, draw)


def _names_of(row: dict[str, Any], heard_events: list[dict[str, Any]] | None) -> list[str] | None:
    """Names of the classes in a clip: of the events in a crop where these are known, else of the whole clip."""
    events = row.get("events") if heard_events is None else heard_events
    if heard_events is None and row.get("human_labels") is not None:
        return row["human_labels"]
    return None if events is None else sorted({event["event_label"] for event in events})


def _moved(events: list[dict[str, Any]], starts: Sequence[float], end_seconds: float) -> list[dict[str, Any]]:
    """The events once for every start, as far as they lie between 0 and the end."""
    moved = (
        {**event, "onset": max(event["onset"] + start, 0.0), "offset": min(event["offset"] + start, end_seconds)}
        for start in starts
        for event in events
    )
    return [event for event in moved if event["onset"] < event["offset"]]


class ClipCollator:
    """Makes a batch of examples: features, labels, and beside them what the trainer keeps for itself.

    `bad_clips` names those that could not be decoded, and `waveforms` are there where a teacher listens as well. In
    training, `augmentation_seed` is the first clip's draw, and `soft_targets` are there where a teacher has listened
    before.
    """

    def __init__(self, extractor: HTSATFeatureExtractor, soft_targets: Mapping[str, np.ndarray] | None = None):
        self.extractor, self.soft_targets = extractor, soft_targets

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        # A neighbour's sound in the place of a missing one: silence would pull at the batch norm.
        heard = next((example for example in examples if example.features is not None), None) or self._silence()
        sounds = [heard if example.features is None else example for example in examples]
        batch = self._pad([example.features for example in sounds])
        batch["labels"] = torch.from_numpy(np.stack([example.labels for example in examples]))
        if any(example.frame_targets is not None for example in examples):
            batch["frame_targets"] = _stack_frames([example.frame_targets for example in examples])
        batch["bad_clips"] = [example.name for example in examples if example.features is None]
        if heard.waveform is not None:
            batch["waveforms"] = [example.waveform for example in sounds]
        if examples[0].draw is None:
            return batch  # an evaluation, of other clips than the teacher was asked about
        batch["augmentation_seed"] = examples[0].draw
        if self.soft_targets is not None:
            answers = [self.soft_targets[example.name] for example in examples]
            batch["soft_targets"] = torch.from_numpy(np.stack(answers).astype(np.float32))
        return batch

    def _pad(self, spectrograms: Sequence[torch.Tensor]) -> dict[str, Any]:
        """Spectrograms of unequal length as one batch, and which of its frames are real."""
        padded = pad_sequence(list(spectrograms), batch_first=True, padding_value=self.extractor.padding_value)
        lengths = torch.tensor([len(spectrogram) for spectrogram in spectrograms])
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        return {"input_features": padded, "attention_mask": mask.long()}

    def _silence(self) -> Example:
        """One window of nothing, in case that no clip of a batch can be decoded."""
        samples = np.zeros((self.extractor.clip_frames - 1) * self.extractor.hop_length, dtype=np.float32)
        inputs = self.extractor(samples, sampling_rate=self.extractor.sampling_rate, return_tensors="pt")
        return Example("", inputs["input_features"][0], np.array(NOT_KNOWN), waveform=samples)


def _stack_frames(targets: Sequence[np.ndarray | None]) -> torch.Tensor:
    """`(batch, steps, classes)`, with NaN after the end of shorter clips and in all of missing ones."""
    known = [target for target in targets if target is not None]
    steps, classes = max(len(target) for target in known), known[0].shape[1]
    stacked = np.full((len(targets), steps, classes), np.nan, dtype=np.float32)
    for row, target in zip(stacked, targets, strict=True):
        if target is not None:
            row[: len(target)] = target
    return torch.from_numpy(stacked)


__all__ = ["ClipCollator", "ClipDataset", "Example"]
