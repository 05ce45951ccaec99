"""Events while they happen: blocks of samples in as they come, events out as soon as nothing can change them any more.

Sound walks through stations, each of which keeps only what later sound can still change:

    samples  ->  resampled  ->  LogMelStream  ->  _ScoreStream  ->  _EventStream  ->  events
                                frames, mels      steps, classes    events that have ended

What comes out is what `pipeline("sound-event-detection")` finds in the finished recording. It hears a recording through
windows at every hop, and through one more that ends with the recording; where windows overlap, their maps are averaged.
So the map of a step is final once the recording is certain to be so long that its last window begins after the step:
one window after the step's own beginning. The head looks one step to either side, so the score of a step is final one
step later: one window after the step's end. `look_ahead_seconds` adds what decoding needs.

No station changes its arrays in place: a shallow copy of one can be finished while the original goes on, and so
`preview` works.
"""

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
import torch
import torch.nn.functional as F

from .audio_htsat import MAX_CHANNELS, load_audio, open_audio
from .events_htsat import (
    ROUNDING_SECONDS,
    EventDecoding,
    count_filter_steps,
    decode_events,
    group_scores,
    median_filter_scores,
)
from .feature_extraction_htsat import HTSATFeatureExtractor, LogMelStream
from .modeling_htsat import HTSATForSoundEventDetection, HTSATModelOutput, read_windows

Event = dict[str, Any]

PROBE_SAMPLES, PROBE_BLOCK = 32_768, 64  # soxr works in blocks of up to some 15,000 samples


# ── from frames to final scores ───────────────────────────────────────────────────────────────────────────────────────


class _ScoreStream:
    """Frames in, scores `(steps, classes)` out; both in order, each once.

    Kept are the frames of one window, and the maps of the steps that a window to come may hear: a window and a step.
    """

    def __init__(self, model: HTSATForSoundEventDetection):
        self.model, self.config = model, model.config
        self.hop = self.config.num_steps - self.config.overlap_steps
        self.frames = torch.zeros(0, self.config.num_mel_bins)  # the latest, one window of them at most
        self.num_frames = 0  # of all that were heard
        self.num_windows = 0
        self.first_step = 0  # the step of the first map that is kept
        self.map_sums = torch.zeros(1, self.config.num_bins, 0)  # of windows, (dim, bins, steps)
        self.map_counts = torch.zeros(0)  # how many windows those were, (steps,)
        self.num_scored = 0

    @property
    def is_long(self) -> bool:
        """Whether the recording is certain to be longer than one window, which gives steps a length of their own."""
        return self.num_frames > self.config.clip_frames

    @property
    def last_start(self) -> int:
        """The step at which the last window would begin, were there no more frames. Steps before it are final."""
        return max(0, -(-(self.num_frames - self.config.clip_frames) // self.config.frames_per_step))

    def push(self, frames: torch.Tensor) -> np.ndarray:
        """Scores of the steps that these frames make final."""
        self.frames = torch.cat([self.frames, frames])
        self.num_frames += len(frames)
        while self.num_windows * self.hop < self.last_start:
            self._hear_window(self.num_windows * self.hop)
        self.frames = self.frames[-self.config.clip_frames :].clone()
        # No window to come begins before `last_start`, and the head reads the step after the one that it scores.
        return self._score(self.last_start - self._neighbours)

    def finish(self) -> np.ndarray:
        """Scores of all steps that are left, for recordings longer than a window: all regular ones begin earlier."""
        self._hear_window(self.last_start)
        return self._score(self.config.num_steps + self.last_start)

    @property
    def _neighbours(self) -> int:
        return 1 if self.config.token_semantic_head else 0

    def _hear_window(self, start_step: int):
        """Encode one window, and add its map to those of the windows before."""
        feature_map = self._encode(start_step)
        before = start_step - self.first_step  # kept steps that this window does not hear
        added = self.config.num_steps + before - len(self.map_counts)  # steps that it is the first to hear
        hears = feature_map.new_ones(self.config.num_steps)
        self.map_sums = F.pad(self.map_sums.to(feature_map), (0, added)) + F.pad(feature_map, (before, 0))
        self.map_counts = F.pad(self.map_counts.to(hears), (0, added)) + F.pad(hears, (before, 0))
        self.num_windows += 1

    def _encode(self, start_step: int) -> torch.Tensor:
        """The map `(dim, bins, steps)` of the window that begins there."""
        device, dtype = self.model.device, self.model.htsat.mel_norm.weight.dtype
        start_frame = start_step * self.config.frames_per_step - (self.num_frames - len(self.frames))
        row, start, count = torch.tensor([[0], [start_frame], [len(self.frames)]], device=device)
        frames = self.frames[None].to(device=device, dtype=dtype)
        windows = read_windows(frames, count, row, start, self.config.clip_frames)
        return self.model.htsat.encode(windows)[0][0]

    def _score(self, end_step: int) -> np.ndarray:
        """Scores from where they had got to `end_step`; drops the maps that have served."""
        if end_step <= self.num_scored:
            return np.zeros((0, self.config.num_labels), dtype=np.float32)
        begin, end = self.num_scored - self.first_step, end_step - self.first_step
        maps = (self.map_sums / self.map_counts)[None, ..., : end + self._neighbours]  # (1, dim, bins, steps)
        scores = self._logits(maps)[begin:end].float().sigmoid().cpu().numpy()
        self.num_scored = end_step
        self._forget_maps(max(0, end_step - self._neighbours))
        return scores

    def _logits(self, maps: torch.Tensor) -> torch.Tensor:
        step_mask = torch.ones(maps.shape[::3], dtype=torch.bool, device=maps.device)
        encoded = HTSATModelOutput(last_hidden_state=maps, pooler_output=maps.mean((2, 3)), step_mask=step_mask)
        return self.model.classifier(encoded)[0][0]  # (steps, classes)

    def _forget_maps(self, first_step: int):
        self.map_sums = self.map_sums[..., first_step - self.first_step :].clone()
        self.map_counts = self.map_counts[first_step - self.first_step :].clone()
        self.first_step = first_step


# ── from scores to events ─────────────────────────────────────────────────────────────────────────────────────────────


class _EventStream:
    """Scores in, events out once they have ended for certain: `decode_events`, a step at a time.

    For every class it keeps the run that is under way and the event that a run to come may still join; of the
    scores, those that the median filter looks at. Nothing grows while an event goes on.
    """

    def __init__(self, decoding: EventDecoding, labels: Sequence[Any], step_seconds: float):
        self.labels, self.step_seconds = labels, step_seconds
        values = decoding.for_classes(len(labels), labels)
        self.filter_steps = count_filter_steps(values["median_filter_seconds"], step_seconds)  # (classes,)
        self.half_filter = int(self.filter_steps.max(initial=1)) // 2
        # In the type of the scores, as in `decode_events`.
        self.threshold = values["threshold"].astype(np.float32)
        self.stay_threshold = values["stay_threshold"].astype(np.float32)
        self.longest_gap_seconds = values["max_gap_seconds"] + ROUNDING_SECONDS
        self.shortest_seconds = values["min_event_seconds"] - ROUNDING_SECONDS
        self.scores = np.zeros((0, len(labels)), dtype=np.float32)  # the latest, from `first_step` on
        self.first_step = 0
        self.num_decoded = 0
        nothing = np.full(len(labels), np.nan)  # NaN: none
        self.run_onset, self.run_peak = nothing, np.zeros(len(labels), dtype=np.float32)
        self.event_onset, self.event_offset, self.event_peak = nothing, nothing, self.run_peak

    @property
    def margin_steps(self) -> int:
        """Steps after an event's last one whose scores must be final: for the longest gap and the median filter."""
        steps_of_gap = np.floor(self.longest_gap_seconds.max(initial=0.0) / self.step_seconds)
        return self.half_filter + 1 + int(steps_of_gap)

    def push(self, scores: np.ndarray) -> list[Event]:
        self.scores = np.concatenate([self.scores, scores])
        return self._decode(self.first_step + len(self.scores) - self.half_filter)

    def finish(self, scores: np.ndarray, end_seconds: float) -> list[Event]:
        """The events that are left, now that the recording ends with these scores."""
        self.scores = np.concatenate([self.scores, scores])
        events = self._decode(self.first_step + len(self.scores))
        self._end_runs(~np.isnan(self.run_onset), end_seconds)
        return events + self._take_events(~np.isnan(self.event_onset))

    def _decode(self, end_step: int) -> list[Event]:
        """Decode up to `end_step`; of scores that are left out, a filter sees the first or the last one repeated."""
        events: list[Event] = []
        if end_step <= self.num_decoded:
            return events
        smooth = median_filter_scores(self.scores, self.filter_steps)
        for step in range(self.num_decoded, end_step):
            events += self._decode_step(smooth[step - self.first_step], step)
        self.num_decoded = end_step
        first_step = max(0, end_step - self.half_filter)
        self.scores = self.scores[first_step - self.first_step :].copy()
        self.first_step = first_step
        return events

    def _decode_step(self, scores: np.ndarray, step: int) -> list[Event]:
        begin, end = step * self.step_seconds, (step + 1) * self.step_seconds
        is_active, was_active = scores > self.stay_threshold, ~np.isnan(self.run_onset)
        self._end_runs(was_active & ~is_active, begin)
        self.run_onset = np.where(is_active & ~was_active, begin, self.run_onset)
        self.run_peak = np.where(is_active, np.maximum(self.run_peak, scores), 0)
        # A run to come begins at `end` at the earliest; one under way began near enough to join.
        return self._take_events(~is_active & (end - self.event_offset > self.longest_gap_seconds))

    def _end_runs(self, which: np.ndarray, offset: float):
        """Runs that rose above the threshold become events, or longer ones: all that wait are near enough."""
        is_event = which & (self.run_peak > self.threshold)
        is_first = is_event & np.isnan(self.event_onset)
        peak = np.where(is_first, self.run_peak, np.maximum(self.event_peak, self.run_peak))
        self.event_peak = np.where(is_event, peak, self.event_peak)
        self.event_onset = np.where(is_first, self.run_onset, self.event_onset)
        self.event_offset = np.where(is_event, offset, self.event_offset)
        self.run_onset = np.where(which, np.nan, self.run_onset)

    def _take_events(self, which: np.ndarray) -> list[Event]:
        """Those of the waiting events; too short ones are dropped."""
        if not which.any():
            return []
        is_long = which & (self.event_offset - self.event_onset >= self.shortest_seconds)
        events = [
            {
                "label": self.labels[index],
                "onset": float(self.event_onset[index]),
                "offset": float(self.event_offset[index]),
                "score": float(self.event_peak[index]),
            }
            for index in np.flatnonzero(is_long).tolist()
        ]
        self.event_onset = np.where(which, np.nan, self.event_onset)
        self.event_offset = np.where(which, np.nan, self.event_offset)
        return events


def _in_order(events: Iterable[Event]) -> list[Event]:
    return sorted(events, key=lambda event: (event["onset"], event["label"]))


# ── samples at the model's rate ───────────────────────────────────────────────────────────────────────────────────────


def _checked_rate(sampling_rate: int) -> int:
    return open_audio({"array": np.zeros(1), "sampling_rate": sampling_rate, "path": "the live sound"}).sampling_rate


def _read_mono(block: Any, sampling_rate: int, begin_seconds: float) -> np.ndarray:
    """The mean of the channels of `(samples, channels)` as float32; summed one by one, as `open_audio` does."""
    row = {"sampling_rate": sampling_rate, "path": f"After {begin_seconds:.3f} s, this block"}  # a name for messages
    channels = [load_audio({**row, "array": channel}, sampling_rate) for channel in block.T]
    mono = channels[0].copy()
    for channel in channels[1:]:
        mono += channel
    mono /= len(channels)
    return mono


def _make_resampler(from_rate: int, to_rate: int) -> soxr.ResampleStream:
    return soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32", quality="HQ")


def _probe_resampler_seconds(from_rate: int, to_rate: int) -> float:
    """The longest that soxr holds a sample back: 0.12 s from 8 kHz, 0.02 s from 44.1 kHz. No formula is documented."""
    if from_rate == to_rate:
        return 0.0
    resampler, silence, longest = _make_resampler(from_rate, to_rate), np.zeros(PROBE_BLOCK, np.float32), 0.0
    for _ in range(0, PROBE_SAMPLES, PROBE_BLOCK):
        resampler.resample_chunk(silence)
        longest = max(longest, resampler.delay())
    return longest / to_rate + PROBE_BLOCK / from_rate


# ── the detector ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class LiveStatistics:
    """How a live detector keeps up.

    heard_seconds: sound that came.
    decided_seconds: up to where it is decided what sounds; an event that goes on there is returned when it has ended.
    compute_seconds: time spent in `feed`, `finish` and `preview`.
    slowest_call_seconds: the longest of these calls: as long as sound must be able to wait.
    num_windows: windows that were encoded, previews not counted.
    """

    heard_seconds: float
    decided_seconds: float
    compute_seconds: float
    slowest_call_seconds: float
    num_windows: int

    @property
    def lag_seconds(self) -> float:
        """How far decisions are behind the sound; about `look_ahead_seconds` while sound comes."""
        return self.heard_seconds - self.decided_seconds

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing for a second of sound; below 1 it keeps up."""
        return self.compute_seconds / self.heard_seconds if self.heard_seconds else 0.0


class LiveDetector:
    """Finds events in sound that is still coming, in bounded memory.

        detector = LiveDetector(model, feature_extractor, sampling_rate=48_000)
        for event in detector.listen(blocks):
            print(event)

    or, where blocks come by callback, `feed(block)` for each of them and `finish()` at the end. Together these return
    what `pipeline("sound-event-detection")` finds in the whole recording; the size of the blocks changes nothing. An
    event is returned `look_ahead_seconds` after it ended, and stays as it is. `preview()` is for those who cannot wait.

    The model is put into `eval()`, and stays on its device. Calls from several threads need a lock around them.

    Args:
        model: an `HTSATForSoundEventDetection`.
        feature_extractor: the one that belongs to it.
        sampling_rate: of the blocks, in Hz; by default the model's. Others are resampled.
        threshold, decoding, groups: as in the pipeline. Its `time_refinement` has no live counterpart.
    """

    def __init__(
        self,
        model: HTSATForSoundEventDetection,
        feature_extractor: HTSATFeatureExtractor,
        *,
        sampling_rate: int | None = None,
        threshold: float | None = None,
        decoding: EventDecoding | Mapping[str, Any] | None = None,
        groups: Mapping[str, Sequence[int]] | None = None,
    ):
        _refuse_unfit(model, feature_extractor)
        self.model = model.eval()
        self.feature_extractor = feature_extractor
        self.sampling_rate = _checked_rate(feature_extractor.sampling_rate if sampling_rate is None else sampling_rate)
        self.groups = groups
        self.decoding = _choose_decoding(model.config.event_decoding, threshold, decoding, groups)
        self.labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
        if groups is not None:
            group_scores(np.zeros((1, len(self.labels))), groups)  # refuses groups of unknown classes
            self.labels = list(groups)
        self._step_samples = model.config.frames_per_step * feature_extractor.hop_length
        self._resampler_seconds = _probe_resampler_seconds(self.sampling_rate, feature_extractor.sampling_rate)
        self.reset()

    def reset(self) -> None:
        """Forget everything that was heard, and begin a new recording."""
        rate = self.feature_extractor.sampling_rate
        self._resampler = None if self.sampling_rate == rate else _make_resampler(self.sampling_rate, rate)
        self._num_channels: int | None = None
        self._is_finished = False
        self._num_samples = 0  # at the model's rate
        self._samples = np.zeros(0, dtype=np.float32)  # too few for a step so far
        self._frames = LogMelStream(self.feature_extractor)
        self._scores = _ScoreStream(self.model)
        self._events = _EventStream(self.decoding, self.labels, self._step_samples / rate)
        self._num_heard = 0  # at the blocks' rate
        self._compute_seconds = self._slowest_call_seconds = 0.0

    # ── sound in, events out ──────────────────────────────────────────────────────────────────────────────────────

    def listen(self, blocks: Iterable[Any]) -> Iterator[Event]:
        """The events of all these blocks, each as soon as it has ended for certain; then the recording is finished."""
        for block in blocks:
            yield from self.feed(block)
        yield from self.finish()

    def feed(self, block: Any, sampling_rate: int | None = None) -> list[Event]:
        """Hear the next samples, and return the events that have now ended for certain, sorted by onset.

        Args:
            block: an array or tensor `(samples,)` or `(samples, channels)` of any length; floats in [-1, 1] or integer
                PCM. A block that is refused changes nothing: the next one can follow.
            sampling_rate: checked, where given, against the rate that the detector was made for.
        """
        with self._timed():
            mono = self._read(block, sampling_rate)
            self._num_heard += len(mono)
            events: list[Event] = []
            for start in range(0, len(mono), self.sampling_rate):  # a second at a time, however long the block
                events += self._hear(self._resample(mono[start : start + self.sampling_rate]))
            return _in_order(events)

    def finish(self) -> list[Event]:
        """End the recording, and return the events that are left. After that, only `reset` is possible."""
        self._refuse_if_finished()
        self._is_finished = True
        with self._timed():
            events = self._hear(self._resample(np.zeros(0, dtype=np.float32), last=True))
            return _in_order(events + self._end(self._frames, self._scores, self._events))

    def preview(self) -> list[Event]:
        """The events that `finish` would return if the sound ended now: those under way, and those not yet certain.

        Each is marked `"provisional": True`: more sound may move, split, merge, rescore or remove it. It hears all that
        was fed but for what the resampler holds back, at the cost of one window. The detector stays as it is.
        """
        self._refuse_if_finished()
        with self._timed():
            events = self._end(copy.copy(self._frames), copy.copy(self._scores), copy.copy(self._events))
            return [{**event, "provisional": True} for event in _in_order(events)]

    @property
    def look_ahead_seconds(self) -> float:
        """An event is returned when this much sound has come after its end: 10.6 s with the paper's model and defaults.

        One window, for no window that is still possible to begin after the step; the rest of its last Fourier window;
        half the median filter, the longest gap that would be closed, and a step to see that the event is over; and what
        the resampler holds back. One case waits longer: with hysteresis and gaps, a run between both thresholds that
        begins within `max_gap_seconds` decides only when it ends whether it prolongs the event.
        """
        extractor, config = self.feature_extractor, self.model.config
        steps = self._events.margin_steps - (0 if config.token_semantic_head else 1)
        samples = config.clip_frames * extractor.hop_length + self._rest_of_window + steps * self._step_samples
        return samples / extractor.sampling_rate + self._resampler_seconds

    @property
    def statistics(self) -> LiveStatistics:
        """How much was heard, decided and computed since the last `reset`."""
        heard_seconds = self._num_heard / self.sampling_rate
        decided_seconds = self._events.num_decoded * self._events.step_seconds
        return LiveStatistics(
            heard_seconds=heard_seconds,
            decided_seconds=heard_seconds if self._is_finished else decided_seconds,
            compute_seconds=self._compute_seconds,
            slowest_call_seconds=self._slowest_call_seconds,
            num_windows=self._scores.num_windows,
        )

    # ── the stations ──────────────────────────────────────────────────────────────────────────────────────────────

    def _resample(self, mono: np.ndarray, last: bool = False) -> np.ndarray:
        return mono if self._resampler is None else self._resampler.resample_chunk(mono, last=last)

    def _hear(self, samples: np.ndarray) -> list[Event]:
        """Pass samples on, one step's worth at a time, so that the size of the blocks cannot change a single bit."""
        self._num_samples += len(samples)
        self._samples = np.concatenate([self._samples, samples])
        events: list[Event] = []
        while len(self._samples) >= (needed := self._samples_of_next_step()):
            scores = self._scores.push(self._frames.push(torch.from_numpy(self._samples[:needed])))
            self._samples = self._samples[needed:].copy()
            events += self._events.push(self._group(scores))
        return events

    def _samples_of_next_step(self) -> int:
        """As many as complete the first frame of the next step; the first time, the rest of its Fourier window more."""
        is_first = self._scores.num_frames == 0
        return self._step_samples + (self._rest_of_window if is_first else 0)

    @property
    def _rest_of_window(self) -> int:
        """Samples of a Fourier window from its centre on."""
        return self.feature_extractor.window_length - self.feature_extractor.window_length // 2

    def _end(self, frames: LogMelStream, scores: _ScoreStream, events: _EventStream) -> list[Event]:
        """What is left when the recording ends here. Changes what it is given, and nothing else."""
        if self._num_samples == 0:
            return []
        seconds = self._num_samples / self.feature_extractor.sampling_rate
        last_frames = [frames.push(torch.from_numpy(self._samples)), frames.finish()]
        last_scores = scores.push(torch.cat(last_frames))
        if not scores.is_long:
            return self._decode_short(scores.frames, seconds)
        last_scores = np.concatenate([last_scores, scores.finish()])
        # The last frame stands on the last sample, and may open a step of which nothing is heard.
        num_steps = -(-self._num_samples // self._step_samples)
        num_left = num_steps - events.first_step - len(events.scores)
        return events.finish(self._group(last_scores[:num_left]), seconds)

    def _decode_short(self, frames: torch.Tensor, seconds: float) -> list[Event]:
        """The events of a recording of at most one window, which is repeated, padded or stretched as a whole."""
        extractor, device = self.feature_extractor, self.model.device
        spectrogram = extractor._fit_short_clip(frames, extractor.short_clips)
        logits = self.model(input_features=spectrogram[None].to(device)).logits[0]
        scores, edges = extractor.scores_over_time(logits, seconds)
        return decode_events(self._group(scores), None, self.decoding, self.labels, step_edges_seconds=edges)

    def _group(self, scores: np.ndarray) -> np.ndarray:
        return scores if self.groups is None else group_scores(scores, self.groups)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            with torch.inference_mode():
                yield
        finally:
            seconds = time.perf_counter() - begin
            self._compute_seconds += seconds
            self._slowest_call_seconds = max(self._slowest_call_seconds, seconds)

    # ── the border ────────────────────────────────────────────────────────────────────────────────────────────────

    def _read(self, block: Any, sampling_rate: int | None) -> np.ndarray:
        """Mono float32 of a block that fits those before."""
        self._refuse_if_finished()
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(
                f"This detector was made for {self.sampling_rate} Hz and received a block at {sampling_rate} Hz. Make "
                f"one for that rate: `LiveDetector(..., sampling_rate={sampling_rate})`."
            )
        block = _with_channels(block)
        num_channels = block.shape[1]
        if self._num_channels not in (None, num_channels):
            raise ValueError(
                f"The blocks had {self._num_channels} channel(s) so far and this one has {num_channels}, of shape "
                f"{tuple(block.shape)}. All of a recording need the same: (samples, channels)."
            )
        if len(block) == 0:
            return np.zeros(0, dtype=np.float32)
        mono = _read_mono(block, self.sampling_rate, self._num_heard / self.sampling_rate)
        self._num_channels = num_channels
        return mono

    def _refuse_if_finished(self):
        if self._is_finished:
            raise ValueError("This recording is finished. Call `reset()` to begin a new one.")


def _with_channels(block: Any) -> Any:
    """`(samples,)` as `(samples, 1)`. The axes are not guessed: a block may have fewer samples than channels."""
    if not hasattr(block, "ndim"):
        raise ValueError(
            f"A block came as {type(block).__name__}; an array or a tensor is needed. Raw 16-bit bytes become one by "
            "`numpy.frombuffer(block, numpy.int16)`."
        )
    if block.ndim == 2 and 1 <= block.shape[1] <= MAX_CHANNELS:
        return block
    if block.ndim != 1:
        raise ValueError(
            f"A block has shape {tuple(block.shape)}; (samples,) or (samples, channels) is needed, with 1 to "
            f"{MAX_CHANNELS} channels. If its channels come first, pass `block.T`."
        )
    return block[:, None]


def _refuse_unfit(model: Any, extractor: HTSATFeatureExtractor):
    if not hasattr(model, "htsat") or not hasattr(model, "classifier"):
        raise ValueError(
            f"A live detector needs an HTSATForSoundEventDetection and received a {type(model).__name__}. Load it with "
            "`HTSATForSoundEventDetection.from_pretrained(...)`."
        )
    names = ("clip_frames", "frames_per_step", "num_mel_bins")
    needed = {name: getattr(model.config, name) for name in names}
    given = {name: getattr(extractor, name) for name in names}
    if needed != given:
        raise ValueError(
            f"The model needs {needed} and the feature extractor has {given}. Load both from the same checkpoint."
        )


def _choose_decoding(
    of_model: dict[str, Any] | None,
    threshold: float | None,
    decoding: EventDecoding | Mapping[str, Any] | None,
    groups: Mapping[str, Sequence[int]] | None,
) -> EventDecoding:
    """As the pipeline chooses; the model's own decoding is made for its classes, not for groups of them."""
    if threshold is not None and decoding is not None:
        raise ValueError("`threshold` and `decoding` were both given; a decoding has its own thresholds.")
    if threshold is not None:
        return EventDecoding(threshold=threshold)
    if decoding is None and groups is None:
        decoding = of_model
    return decoding if isinstance(decoding, EventDecoding) else EventDecoding.from_dict(decoding or {})


__all__ = ["LiveDetector", "LiveStatistics"]
