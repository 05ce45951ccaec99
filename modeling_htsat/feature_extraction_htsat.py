"""From waveforms to the log-mel spectrograms that HTS-AT reads.

Axes, as they appear in shape comments:
    samples         the waveform
    frequencies     bins of one Fourier window, 513
    frames, mels    the spectrogram, 1001 x 64 for ten seconds
"""

import math
import numbers
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.audio_utils import mel_filter_bank
from transformers.utils import TensorType, logging

from .configuration_htsat import check_frequencies, check_hop, check_size
from .events_htsat import EventDecoding, average_repeats, decode_events
from .hub_htsat import EXTRACTOR_FILE, HTSATFilesMixin
from .processor_htsat import keep_freed_memory, linear

logger = logging.get_logger(__name__)

SHORT_CLIP_RULES = ("repeat", "pad", "stretch")
# What an extractor decides by itself; all else follows from the model.
FREE_VALUES = ("short_clips", "padding_value", "return_attention_mask")
SILENCE_DECIBELS = -100.0  # 10 log10 of the smallest power that the authors keep, 1e-10
MAX_DECIBELS = 10_000  # float32 ends at 385
FRAMES_PER_BLOCK = 4096  # bounds the memory of the Fourier transform: 41 s of sound, 17 MB a clip
FRAMES_AT_ONCE = 512  # on a processor, of all clips together: 2 MB stay in its caches
FEWEST_FRAMES = 64
MAX_SAMPLE = 1e15  # of floats, where full scale is 1; from about 1e17 on, powers overflow float32
PCM_FULL_SCALE = {torch.int8: 2**7, torch.int16: 2**15, torch.int32: 2**31}


def to_mono_float(waveform: Any, name: str = "The waveform") -> torch.Tensor:
    """One clip, in whatever form it came, as a float32 tensor `(samples,)`; integer PCM is scaled to [-1, 1)."""
    waveform = _as_tensor(waveform, name)
    if waveform.ndim == 2 and waveform.shape[0] == 1:
        waveform = waveform[0]
    if waveform.ndim != 1:
        raise ValueError(
            f"{name} has shape {tuple(waveform.shape)}; one channel is needed. Mix stereo down first, for example with "
            "`waveform.mean(axis=channel_axis)`."
        )
    if waveform.numel() == 0:
        raise ValueError(f"{name} is empty; at least one sample is needed. Drop it, or check how it was read.")
    waveform = _scale_to_float(waveform, name)
    lowest, highest = waveform.aminmax()
    if not (lowest >= -MAX_SAMPLE and highest <= MAX_SAMPLE):  # nor is it if one is NaN
        is_sound = waveform.abs() <= MAX_SAMPLE
        raise ValueError(
            f"{name} holds NaN or infinite samples, or some beyond {MAX_SAMPLE:.0e} where full scale is 1, the first "
            f"at index {int(is_sound.int().argmin())}; all must be finite. Check how it was made, or replace them, for "
            "example with `numpy.nan_to_num(waveform)`."
        )
    return waveform


def _as_tensor(waveform: Any, name: str) -> torch.Tensor:
    if isinstance(waveform, torch.Tensor):
        return waveform.detach()
    try:
        array = np.asarray(waveform)
    except ValueError:  # lists of unequal length
        array = np.asarray(None)
    if array.dtype == object or array.dtype.kind in "USmMV":
        raise ValueError(f"{name} is not an array of numbers. Pass samples, for example as a float32 NumPy array.")
    if array.dtype.kind in "iu" and isinstance(waveform, list | tuple):
        array = array.astype(np.float32)  # a plain Python list such as [0, 1, 0] has no PCM width of its own
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    # Torch cannot share memory with read-only, reversed or big-endian arrays.
    array = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def _scale_to_float(waveform: torch.Tensor, name: str) -> torch.Tensor:
    if waveform.is_floating_point():
        return waveform.to(torch.float32)
    if waveform.dtype == torch.uint8:  # 8-bit WAV is unsigned, with silence at 128
        return (waveform.to(torch.float32) - 128) / 128
    if waveform.dtype in PCM_FULL_SCALE:
        return waveform.to(torch.float64).div(PCM_FULL_SCALE[waveform.dtype]).to(torch.float32)
    raise ValueError(
        f"{name} holds {str(waveform.dtype).removeprefix('torch.')} values; real samples are needed: floats in "
        "[-1, 1], or 8-, 16- or 32-bit integer PCM, which is scaled."
    )


class HTSATFeatureExtractor(HTSATFilesMixin, SequenceFeatureExtractor):
    """Turns waveforms into log-mel spectrograms `(batch, frames, mels)` in decibels, as the authors' code does.

    Args:
        num_mel_bins: mel bands (Slaney scale and norm) of the power spectrum.
        sampling_rate: samples per second that the model was trained on.
        window_length, hop_length: samples of one Hann window, and between two of them.
        min_frequency, max_frequency: range of the mel bands, in hertz. Bands above half the rate stay empty.
        clip_frames: frames that the model hears at once (1024); longer clips it cuts into windows itself.
        short_clips: what happens to clips of at most half of that. `"repeat"`, the authors' rule: as often as they fit.
            `"pad"`: with silence up to `clip_frames`. `"stretch"`: nothing here, the model stretches them.
        padding_value: decibels that fill a batch up to its longest clip; the model does not look at them.
        return_attention_mask: whether to say which frames of a batch are real. Needed for clips of unequal length.
        frames_per_step: frames that one time step of the model's outputs covers: brings its scores back to seconds.
    """

    model_input_names = ["input_features", "attention_mask"]
    files_key = EXTRACTOR_FILE
    _auto_class = "AutoFeatureExtractor"  # what is saved takes its code along

    def __init__(
        self,
        num_mel_bins: int = 64,
        sampling_rate: int = 32000,
        window_length: int = 1024,
        hop_length: int = 320,
        min_frequency: float = 50.0,
        max_frequency: float = 14000.0,
        clip_frames: int = 1024,
        short_clips: str = "repeat",
        padding_value: float = SILENCE_DECIBELS,
        return_attention_mask: bool = True,
        frames_per_step: int = 32,
        **kwargs,
    ):
        sizes = {"num_mel_bins": num_mel_bins, "sampling_rate": sampling_rate, "window_length": window_length}
        sizes |= {"hop_length": hop_length, "clip_frames": clip_frames, "frames_per_step": frames_per_step}
        for name, size in sizes.items():
            check_size(name, size)
        check_frequencies(min_frequency, max_frequency)
        check_hop(hop_length, window_length)
        _check_padding(padding_value, return_attention_mask)
        kwargs.pop("feature_size", None)  # the base class's word for num_mel_bins, which files of other origin carry
        super().__init__(
            feature_size=num_mel_bins,
            sampling_rate=sampling_rate,
            padding_value=padding_value,
            return_attention_mask=return_attention_mask,
            **kwargs,
        )
        self.auto_map = {self._auto_class: "feature_extraction_htsat.HTSATFeatureExtractor"}
        self.num_mel_bins = num_mel_bins
        self.window_length = window_length
        self.hop_length = hop_length
        self.min_frequency = min_frequency
        self.max_frequency = max_frequency
        self.clip_frames = clip_frames
        self.short_clips = _known_rule(short_clips)
        self.frames_per_step = frames_per_step
        self.window = torch.hann_window(window_length, periodic=True)
        self.mel_filters = self._make_mel_filters()

    @classmethod
    def get_feature_extractor_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """As everywhere, but a file with something else in it than a table is refused by its name."""
        try:
            values, rest = super().get_feature_extractor_dict(pretrained_model_name_or_path, **kwargs)
        except (UnicodeDecodeError, RecursionError) as error:
            raise OSError(f"{pretrained_model_name_or_path} has a preprocessor_config.json that is no JSON.") from error
        if not isinstance(values, dict):
            raise OSError(
                f"{pretrained_model_name_or_path} has a preprocessor_config.json that holds a {type(values).__name__}, "
                "and no values by name."
            )
        return values, rest

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As everywhere, but values without an end of brackets are refused."""
        try:
            return super().from_dict(feature_extractor_dict, **kwargs)
        except RecursionError as error:
            raise ValueError("This front end has too many brackets in brackets to be read.") from error

    def _make_mel_filters(self) -> torch.Tensor:
        with warnings.catch_warnings():
            # Speech Commands' checkpoint has bands up to 14 kHz at a rate of 16 kHz: empty ones are meant.
            warnings.simplefilter("ignore")
            filters = mel_filter_bank(
                num_frequency_bins=self.window_length // 2 + 1,
                num_mel_filters=self.num_mel_bins,
                min_frequency=self.min_frequency,
                max_frequency=self.max_frequency,
                sampling_rate=self.sampling_rate,
                norm="slaney",
                mel_scale="slaney",
            )
        return torch.from_numpy(filters.T.astype(np.float32)).contiguous()  # (mels, frequencies)

    def to_dict(self) -> dict[str, Any]:
        """The values that were given, ready for JSON; the base class leaves `window` and `mel_filters` out."""
        values = super().to_dict()
        values.pop("feature_size", None)
        return values

    # ── the call ───────────────────────────────────────────────────────────────────────────────────────────────────

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        return_tensors: str | TensorType | None = None,
        device: str | torch.device = "cpu",
        short_clips: str | None = None,
        return_attention_mask: bool | None = None,
    ) -> BatchFeature:
        """Log-mel spectrograms of one clip or of many.

        Args:
            raw_speech: one clip `(samples,)`, or many: a list of clips, or an array `(clips, samples)` as everywhere
                in transformers, so mix stereo down before. Arrays, tensors and lists of numbers; floats in [-1, 1] or
                integer PCM, which is scaled.
            sampling_rate: the clips' rate: checked against the model's.
            return_tensors: `"pt"` or `"np"` (the default).
            device: where to compute, and where the tensors of `return_tensors="pt"` stay.
            short_clips, return_attention_mask: in place of the values that the extractor was made with. To bring
                scores back to seconds, `scores_over_time` goes by the extractor's own `short_clips`.

        Returns:
            `input_features (batch, frames, mels)` and, unless switched off, `attention_mask (batch, frames)`.
        """
        self._check_rate(sampling_rate)
        waveforms = [waveform.to(device) for waveform in self._as_clips(raw_speech)]
        rule = self.short_clips if short_clips is None else _known_rule(short_clips)
        spectrograms = [self._fit_short_clip(spectrogram, rule) for spectrogram in self._log_mels(waveforms)]
        features = {
            "input_features": torch.nn.utils.rnn.pad_sequence(
                spectrograms, batch_first=True, padding_value=self.padding_value
            )
        }
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            features["attention_mask"] = _frame_mask(spectrograms)
        if return_tensors in (None, TensorType.NUMPY, "np"):
            return BatchFeature({name: tensor.cpu().numpy() for name, tensor in features.items()})
        return BatchFeature(features, tensor_type=return_tensors)

    def extract_blocks(self, blocks: Iterable[Any]) -> BatchFeature:
        """The features of one recording that comes in blocks of samples, as tensors: those of the whole at once.

        No more than a block is held in memory as a waveform, so that an hour takes no more than its spectrogram.
        """
        stream = LogMelStream(self)
        pieces = [stream.push(to_mono_float(block, "A block of samples")) for block in blocks]
        spectrogram = torch.cat([*pieces, stream.finish()])
        spectrogram = self._fit_short_clip(spectrogram, self.short_clips)
        features = {"input_features": spectrogram[None]}
        if self.return_attention_mask:
            features["attention_mask"] = _frame_mask([spectrogram])
        return BatchFeature(features)

    def _check_rate(self, sampling_rate: int | None):
        if sampling_rate is None:
            logger.warning_once(
                "The feature extractor was not told the clips' `sampling_rate` and takes them to be at "
                f"{self.sampling_rate} Hz. Pass it along, so that a wrong one is noticed."
            )
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"This checkpoint listens at {self.sampling_rate} Hz and received audio at {sampling_rate} Hz. "
                f"Resample it first, for example with `modeling_htsat.load_audio(path, {self.sampling_rate})`."
            )

    def _as_clips(self, raw_speech: Any) -> list[torch.Tensor]:
        if hasattr(raw_speech, "ndim"):
            is_batch = raw_speech.ndim > 1
            if raw_speech.ndim == 2 and raw_speech.shape[0] > raw_speech.shape[1] and 1 <= raw_speech.shape[1] <= 8:
                raise ValueError(
                    f"The waveform has shape {tuple(raw_speech.shape)}, which looks like (samples, channels); one "
                    "channel is needed. Mix it down first, for example with `waveform.mean(axis=1)`."
                )
        elif isinstance(raw_speech, Sequence) and not isinstance(raw_speech, str | bytes):
            is_batch = len(raw_speech) > 0 and _is_sequence(raw_speech[0])
        else:
            raise ValueError(
                f"Audio came as {type(raw_speech).__name__}; samples are needed: an array, a tensor, a list of numbers,"
                " or a list of those. `modeling_htsat.load_audio(path, sampling_rate)` reads a file."
            )
        if not is_batch:
            return [to_mono_float(raw_speech)]
        if len(raw_speech) == 0:
            raise ValueError("The batch of waveforms is empty; at least one clip is needed.")
        return [to_mono_float(waveform, f"Waveform {index}") for index, waveform in enumerate(raw_speech)]

    # ── the spectrogram ────────────────────────────────────────────────────────────────────────────────────────────

    def num_frames(self, num_samples: int) -> int:
        """Frames of a waveform's spectrogram: 1001 for ten seconds."""
        return 1 + max(num_samples, self._min_samples) // self.hop_length

    def num_repeats(self, num_samples: int) -> int:
        """How many copies of a clip the model hears under `short_clips="repeat"`."""
        return max(self.clip_frames // self.num_frames(num_samples), 1)

    @property
    def _min_samples(self) -> int:
        # Half a window is mirrored at both ends, which takes one sample more than half a window.
        return self.window_length // 2 + 1

    def _log_mels(self, waveforms: list[torch.Tensor]) -> list[torch.Tensor]:
        """One `(frames, mels)` per waveform; computed together, each as if it were alone."""
        mirrored = [self._mirror_ends(waveform) for waveform in waveforms]
        num_frames = [self.num_frames(len(waveform)) for waveform in waveforms]
        batch = torch.nn.utils.rnn.pad_sequence(mirrored, batch_first=True)  # (batch, samples)
        log_mels = torch.cat(list(self._log_mel_blocks(batch)), dim=1)
        return [log_mel[:frames] for log_mel, frames in zip(log_mels, num_frames, strict=True)]

    def _mirror_ends(self, waveform: torch.Tensor) -> torch.Tensor:
        """The waveform as `center=True` sees it, with reflected ends; a few samples are first filled up with zeros."""
        if len(waveform) < self._min_samples:
            waveform = F.pad(waveform, (0, self._min_samples - len(waveform)))
        start, end = waveform[1 : self._min_samples], waveform[-self._min_samples : -1]
        return torch.cat([start.flip(0), waveform, end.flip(0)])

    def _log_mel_blocks(self, waveforms: torch.Tensor) -> Iterator[torch.Tensor]:
        num_frames = 1 + (waveforms.shape[-1] - self.window_length) // self.hop_length
        block = FRAMES_PER_BLOCK
        if waveforms.device.type == "cpu":
            keep_freed_memory(is_training=False)
            block = max(FRAMES_AT_ONCE // len(waveforms), FEWEST_FRAMES)
        for first_frame in range(0, num_frames, block):
            last_frame = min(first_frame + block, num_frames) - 1
            samples = slice(first_frame * self.hop_length, last_frame * self.hop_length + self.window_length)
            yield self._log_mel(waveforms[:, samples])

    @torch.no_grad()
    def _log_mel(self, waveforms: torch.Tensor) -> torch.Tensor:
        device = waveforms.device
        with torch.autocast(device.type, enabled=False):  # bf16 products would cost up to 0.14 dB
            spectrum = torch.stft(
                waveforms,
                self.window_length,
                self.hop_length,
                window=self.window.to(device),
                center=False,
                return_complex=True,
            )
            # Not `view_as_real(...).square().sum(-1)`, as sums over two numbers take eight times as long.
            power = spectrum.real.square() + spectrum.imag.square()  # (batch, frequencies, frames), frame by frame
            mel_power = linear(power.transpose(1, 2), self.mel_filters.to(device))  # (batch, frames, mels)
            return mel_power.clamp_(min=1e-10).log10_().mul_(10)

    def _fit_short_clip(self, spectrogram: torch.Tensor, rule: str) -> torch.Tensor:
        num_frames = len(spectrogram)
        if rule == "repeat":
            return spectrogram.repeat(max(self.clip_frames // num_frames, 1), 1)
        if rule == "pad":
            return F.pad(spectrogram, (0, 0, 0, max(self.clip_frames - num_frames, 0)), value=SILENCE_DECIBELS)
        return spectrogram

    # ── back to seconds ────────────────────────────────────────────────────────────────────────────────────────────

    def scores_over_time(
        self, logits: torch.Tensor | np.ndarray, duration_seconds: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of one clip on its own time axis, and where its steps begin and end.

        Args:
            logits (`(steps, classes)`): a detector's scores of one clip; steps that only fill a batch may follow.
            duration_seconds: how long the clip was, before it was repeated or padded.

        Returns:
            `scores (steps, classes)`, `edges (steps + 1,)` in seconds; the last edge is the end of the clip.
        """
        num_samples = round(duration_seconds * self.sampling_rate)
        num_frames = self.num_frames(num_samples)
        window_steps = self.clip_frames // self.frames_per_step
        num_steps = window_steps + max(0, -(-(num_frames - self.clip_frames) // self.frames_per_step))
        scores = torch.as_tensor(logits)[:num_steps].detach().float().sigmoid().cpu().numpy()
        if num_frames > self.clip_frames or self.short_clips == "pad":
            step_seconds = self.frames_per_step * self.hop_length / self.sampling_rate
            scores = scores[: max(1, math.ceil(duration_seconds / step_seconds - 1e-9))]
        else:
            scores = average_repeats(scores, self.num_repeats(num_samples) if self.short_clips == "repeat" else 1)
            step_seconds = duration_seconds / len(scores)
        return scores, np.minimum(np.arange(len(scores) + 1) * step_seconds, duration_seconds)

    def post_process_sound_event_detection(
        self,
        outputs: Any,
        durations: Sequence[float],
        decoding: EventDecoding | Mapping[str, Any] | None = None,
        id2label: Mapping[int, str] | None = None,
    ) -> list[list[dict[str, Any]]]:
        """The events in a batch: for every clip a list of `{"label", "onset", "offset", "score"}`, times in seconds.

        Args:
            outputs: what [`HTSATForSoundEventDetection`] returned.
            durations: how long each clip was, in seconds, before it was repeated or padded.
            decoding: thresholds and filters; by default a threshold of 0.5 alone. A tuned model carries its own as
                `model.config.event_decoding`.
            id2label: names for the labels (`model.config.id2label`); without it they are class indices.
        """
        if len(durations) != len(outputs.logits):
            raise ValueError(f"Got {len(durations)} durations for {len(outputs.logits)} clips; one for each is needed.")
        if not isinstance(decoding, EventDecoding):
            decoding = EventDecoding.from_dict(decoding or {})
        labels = None if id2label is None else [id2label[index] for index in range(len(id2label))]
        events = []
        for logits, duration in zip(outputs.logits, durations, strict=True):
            scores, edges = self.scores_over_time(logits, duration)
            events.append(decode_events(scores, None, decoding, labels, step_edges_seconds=edges))
        return events


class LogMelStream:
    """The spectrogram of one recording that comes in pieces: every frame as soon as its samples are there.

    What `push` and `finish` return, joined, is the spectrogram of the whole waveform. Between the pieces, less than two
    Fourier windows are held. Nothing is changed in place: a `copy.copy` can be finished while the stream goes on.
    """

    def __init__(self, extractor: HTSATFeatureExtractor):
        self.extractor = extractor
        self.waiting = torch.zeros(0)  # samples that frames to come will look at
        self.latest = torch.zeros(0)  # the last samples of all, which the end will mirror
        self.has_begun = False

    def push(self, samples: torch.Tensor) -> torch.Tensor:
        """The frames `(frames, mels)`, perhaps none, that these samples complete."""
        kept = self.extractor._min_samples
        self.latest = torch.cat([self.latest, samples[-kept:]])[-kept:]
        self.waiting = torch.cat([self.waiting, samples])
        if not self.has_begun and len(self.waiting) >= kept:
            self.waiting = torch.cat([self.waiting[1:kept].flip(0), self.waiting])
            self.has_begun = True
        return self._take_frames() if self.has_begun else self._no_frames()

    def finish(self) -> torch.Tensor:
        """The last frames, which hear the end mirrored."""
        if self.has_begun:
            self.waiting = torch.cat([self.waiting, self.latest[:-1].flip(0)])
        else:
            self.waiting = self.extractor._mirror_ends(self.waiting)
        return self._take_frames()

    def _take_frames(self) -> torch.Tensor:
        blocks = [block[0] for block in self.extractor._log_mel_blocks(self.waiting[None])]
        frames = torch.cat([self._no_frames(), *blocks])
        self.waiting = self.waiting[len(frames) * self.extractor.hop_length :].clone()  # frees what lies before
        return frames

    def _no_frames(self) -> torch.Tensor:
        return torch.zeros(0, self.extractor.num_mel_bins)


def _is_sequence(item: Any) -> bool:
    return item.ndim > 0 if hasattr(item, "ndim") else hasattr(item, "__len__")


def _known_rule(rule: str) -> str:
    if not isinstance(rule, str) or rule not in SHORT_CLIP_RULES:
        raise ValueError(f"`short_clips` is {rule!r}; it must be one of {', '.join(SHORT_CLIP_RULES)}.")
    return rule


def _check_padding(padding_value: Any, return_attention_mask: Any):
    is_number = isinstance(padding_value, numbers.Real)
    if not is_number or not abs(padding_value) <= MAX_DECIBELS:
        raise ValueError(f"`padding_value` is {padding_value!r}; it must be a number of decibels up to {MAX_DECIBELS}.")
    if not isinstance(return_attention_mask, bool):
        raise ValueError(f"`return_attention_mask` is {return_attention_mask!r}; it must be True or False.")


def _frame_mask(spectrograms: Iterable[torch.Tensor]) -> torch.Tensor:
    ones = [spectrogram.new_ones(len(spectrogram), dtype=torch.int64) for spectrogram in spectrograms]
    return torch.nn.utils.rnn.pad_sequence(ones, batch_first=True)


__all__ = ["HTSATFeatureExtractor", "LogMelStream", "to_mono_float"]
