"""What the page does with a recording: the model hears it once, and its scores are kept and decoded as often as asked.

Axes, as they appear in shape comments:
    frames, mels    the log-mel spectrogram
    steps, classes  the frame scores
    columns         what the page draws: frames or steps, or stretches of them where there are more than it needs
"""

import base64
import math
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from ..audio_htsat import AudioError, AudioSource, open_audio
from ..commands.outputs import table_rows
from ..events_htsat import EventDecoding, decode_events
from ..live import LiveDetector
from ..pipeline_htsat import HTSATSoundEventDetectionPipeline
from ..plotting import mel_centers_hz
from ..tables import write_events
from ..whole_htsat import whole_file

Event = dict[str, Any]
Progress = Callable[[float, str], None]

ENVELOPE_SECONDS = 0.01  # the finest that a waveform is drawn
MAX_COLUMNS = 16_384  # of anything drawn: every frame of 164 s, every fifth of a second of an hour; 1 MB of spectrogram
MAX_ENVELOPE_COLUMNS = 65_536
MAX_ROWS = 32  # classes of the presence map
MAX_TAGS = 8
DECIBEL_RANGE = 80.0  # below the loudest; what is fainter is drawn black
ROUND_HERTZ = (100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)
# What every browser plays; a copy of everything else is made in FLAC. Chromium plays nothing below 3,000 Hz, and no 32
# channels; FLAC holds eight of them, and above 65,535 Hz only rates that end in a zero.
PLAYABLE = {"WAV": {"PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"}, "FLAC": None, "MP3": None}
PLAYABLE_HERTZ = (8_000, 192_000)
PLAYABLE_CHANNELS = 8
COPY_HERTZ = (8_000, 48_000)
# Remedies of the library that a visitor of a page cannot use.
REMEDIES = {
    "; write it anew, or take what there is with allow_truncated=True": "; write it anew",
    " (raw samples without a header as an array)": "",
}
LIVE_NAME = "live"
SAVED_AS = {"tsv": ".tsv", "json": ".json", "audacity": ".txt"}


class RefusalError(ValueError):
    """What was dropped on the page cannot be heard; the message is for the person who dropped it."""


@dataclass(frozen=True)
class Limits:
    """How much one visitor may ask for."""

    max_megabytes: int = 200
    max_minutes: float = 90.0

    def check_size(self, num_bytes: int):
        if num_bytes > self.max_megabytes * 10**6:
            raise RefusalError(
                f"This file has {num_bytes / 1e6:.0f} MB, and this page takes {self.max_megabytes} MB at most: "
                "give a shorter one, or one in a smaller format such as FLAC or MP3."
            )

    def check_seconds(self, seconds: float):
        if seconds > self.max_minutes * 60:
            raise RefusalError(
                f"This recording is longer than {self.max_minutes:g} minutes, the longest that this page hears: "
                "cut it, or use `htsat detect` on a machine of your own."
            )


# ── sliders ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Settings:
    """Where the sliders stand. `own` means: decode as the model's makers said, whatever the sliders say."""

    own: bool = True
    threshold: float = 0.5
    hysteresis: float = 0.0
    median_filter_seconds: float = 0.0
    max_gap_seconds: float = 0.0
    min_event_seconds: float = 0.0

    def decoding(self, of_model: Mapping[str, Any] | None) -> EventDecoding:
        if self.own and of_model:
            return EventDecoding.from_dict(of_model)
        return EventDecoding(
            threshold=self.threshold,
            # Rounded, or 0.3 - 0.1 would leave a score of 0.2 out.
            stay_threshold=round(max(0.0, self.threshold - self.hysteresis), 6),
            median_filter_seconds=self.median_filter_seconds,
            max_gap_seconds=self.max_gap_seconds,
            min_event_seconds=self.min_event_seconds,
        )


# ── one recording ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Heard:
    """What the model said of one recording: all that is needed to find its events anew."""

    path: Path
    name: str
    seconds: float
    labels: tuple[str, ...]
    scores: np.ndarray  # (steps, classes)
    edges: np.ndarray  # (steps + 1,)
    tags: dict[str, float]
    own_decoding: Mapping[str, Any] | None

    def events(self, settings: Settings) -> list[Event]:
        decoding = settings.decoding(self.own_decoding)
        return decode_events(self.scores, None, decoding, self.labels, step_edges_seconds=self.edges)

    def found(self, settings: Settings) -> dict[str, Any]:
        """What the page shows beside the picture: events and top tags."""
        best = sorted(self.tags.items(), key=lambda tag: (-tag[1], tag[0]))[:MAX_TAGS]
        return {
            "name": self.name,
            "seconds": round(self.seconds, 3),
            "events": rounded(self.events(settings)),
            "tags": [{"label": label, "score": round(score, 4)} for label, score in best],
        }

    def table(self, settings: Settings, format: str) -> tuple[str, str]:
        """Name and text of a file of the events."""
        return make_table(self.name, self.events(settings), format)


@dataclass(frozen=True)
class HeardLive:
    """What was found since a microphone was opened. Its scores are not kept, so that sliders change nothing."""

    name: str
    seconds: float
    events: Sequence[Event]

    def found(self, settings: Settings | None = None) -> dict[str, Any]:
        return {
            "name": self.name,
            "live": True,
            "seconds": round(self.seconds, 3),
            "events": rounded(self.in_order()),
            "tags": [],
        }

    def in_order(self) -> list[Event]:
        return sorted(self.events, key=lambda event: (event["onset"], event["label"]))

    def table(self, settings: Settings, format: str) -> tuple[str, str]:
        return make_table(self.name, self.in_order(), format)


def make_table(name: str, events: Sequence[Event], format: str) -> tuple[str, str]:
    """Name and text of a file of these events."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events"
        write_events(path, table_rows(name, events), format)
        text = path.read_text(encoding="utf-8")
    if format == "json":  # one array, where the command writes an object on each line
        text = "[\n" + ",\n".join(text.splitlines()) + "\n]\n"
    return f"{Path(name).stem}{SAVED_AS[format]}", text


def rounded(events: Sequence[Event]) -> list[Event]:
    """To a tenth of a millisecond: a page with thousands of events is half as long."""
    return [
        {name: round(value, 4) if isinstance(value, float) else value for name, value in event.items()}
        for event in events
    ]


class Listener:
    """One model of the picker. However many visitors there are, it hears one of them at a time."""

    def __init__(self, name: str, detector: HTSATSoundEventDetectionPipeline):
        self.name, self.detector = name, detector
        self.model, self.extractor = detector.model, detector.feature_extractor
        self.own_decoding = self.model.config.event_decoding
        self.lock = threading.Lock()

    def hear(
        self, path: Path, name: str, limits: Limits, settings: Settings, progress: Progress
    ) -> tuple[Heard, dict[str, Any]]:
        """What the model says of a file, and what the page draws of it."""
        limits.check_size(path.stat().st_size)
        with in_words_for_visitors(path, name):
            progress(0.0, "Reading")
            envelope = read_envelope(path, limits)
            with self.lock, heard_windows(self.model, envelope.seconds, progress):
                answer = self.detector(str(path), return_scores=True, progress_bar=False)
        seconds = answer["num_samples"] / self.extractor.sampling_rate
        heard = Heard(
            path,
            name,
            seconds,
            tuple(answer["labels"]),
            answer["scores"],
            answer["edges"],
            answer["tags"],
            self.own_decoding,
        )
        progress(1.0, "Drawing")
        return heard, {
            "name": name,
            "seconds": round(seconds, 3),
            "envelope": envelope.drawn(),
            "spectrogram": draw_spectrogram(answer["log_mel"], self.extractor),
            "presence": draw_presence(heard),
        }

    def live(self, sampling_rate: int, settings: Settings) -> "LiveListening":
        return LiveListening(self, sampling_rate, settings)


@contextmanager
def in_words_for_visitors(path: Path, name: str) -> Iterator[None]:
    """Errors name the file as its owner does, and never where it lies on the server."""
    try:
        yield
    except AudioError as error:
        if isinstance(error.__cause__, FileNotFoundError):  # its name was right when it came
            raise error.__cause__ from None
        sentence = str(error).replace(str(path), name)
        for remedy, shorter in REMEDIES.items():
            sentence = sentence.replace(remedy, shorter)
        raise RefusalError(sentence) from error


@contextmanager
def heard_windows(model: Any, seconds: float, progress: Progress) -> Iterator[None]:
    """Tell how many of the recording's windows the encoder has heard."""
    config = model.config
    window_seconds = (config.num_steps - config.overlap_steps) * config.seconds_per_step(config.clip_frames + 1)
    num_windows, num_heard = max(1, math.ceil(seconds / window_seconds)), 0
    encoder = getattr(model, model.base_model_prefix)

    def advance(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]):
        nonlocal num_heard
        progress(min(1.0, num_heard / num_windows), "Listening")
        num_heard += len(arguments[0])

    hook = encoder.patch_embed.register_forward_pre_hook(advance)
    try:
        yield
    finally:
        hook.remove()


# ── what is drawn ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Envelope:
    """Lowest and highest sample of every hundredth of a second, of sound that comes block by block."""

    def __init__(self, sampling_rate: int):
        self.column_samples = max(1, round(ENVELOPE_SECONDS * sampling_rate))
        self.sampling_rate, self.num_samples = sampling_rate, 0
        self.rest = np.zeros(0, dtype=np.float32)
        self.lows: list[np.ndarray] = []
        self.highs: list[np.ndarray] = []

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sampling_rate

    def push(self, samples: np.ndarray):
        self.num_samples += len(samples)
        samples = np.concatenate([self.rest, samples])
        whole = len(samples) - len(samples) % self.column_samples
        self._keep(samples[:whole].reshape(-1, self.column_samples))
        self.rest = samples[whole:].copy()

    def _keep(self, columns: np.ndarray):
        self.lows.append(columns.min(axis=1, initial=0.0))
        self.highs.append(columns.max(axis=1, initial=0.0))

    def drawn(self) -> dict[str, Any]:
        """As bytes around 128, as loud as the loudest column allows."""
        ends = [self.rest[None]] if len(self.rest) else []
        lows = np.concatenate([*self.lows, *(rest.min(axis=1) for rest in ends)])
        highs = np.concatenate([*self.highs, *(rest.max(axis=1) for rest in ends)])
        num_columns = len(highs)
        lows, highs = -shrink(-lows, MAX_ENVELOPE_COLUMNS), shrink(highs, MAX_ENVELOPE_COLUMNS)
        loudest = max(1e-4, float(highs.max(initial=0.0)), float(-lows.min(initial=0.0)))
        levels = np.stack([lows, highs]) / loudest * 127 + 128
        return {
            "columns": len(highs),
            "end": num_columns * self.column_samples / self.sampling_rate,
            "levels": as_bytes(levels),
            "loudest": round(loudest, 4),
        }


def read_envelope(path: Path, limits: Limits) -> Envelope:
    """Walk through the file once, before the model does, so that what is too long is refused at once."""
    with open_audio(path) as audio:
        limits.check_seconds(audio.duration_seconds or 0.0)
        envelope = Envelope(audio.sampling_rate)
        for block in audio.blocks(audio.sampling_rate):
            envelope.push(block)
            limits.check_seconds(envelope.seconds)
    return envelope


def draw_spectrogram(log_mel: np.ndarray, extractor: Any) -> dict[str, Any]:
    """Levels from 0 for faint to 255 for the loudest, lowest band first, and where round frequencies lie."""
    seconds_per_frame = extractor.hop_length / extractor.sampling_rate
    decibels = shrink(log_mel)  # (columns, mels)
    loudest = float(decibels.max())
    faintest = min(max(float(np.percentile(decibels, 1)), loudest - DECIBEL_RANGE), loudest - 10)
    levels = (decibels - faintest) / (loudest - faintest) * 255
    return {
        "columns": len(decibels),
        "mels": decibels.shape[1],
        "end": len(decibels) * math.ceil(len(log_mel) / MAX_COLUMNS) * seconds_per_frame,
        "levels": as_bytes(levels.T),
        "marks": frequency_marks(extractor),
        "decibels": [round(faintest - loudest, 1), 0.0],
    }


def frequency_marks(extractor: Any) -> list[dict[str, float]]:
    centers = mel_centers_hz(extractor.num_mel_bins, extractor.min_frequency, extractor.max_frequency)
    inside = [hertz for hertz in ROUND_HERTZ if centers[0] <= hertz <= centers[-1]]
    bands = np.interp(inside, centers, np.arange(len(centers)) + 0.5)
    return [{"hertz": hertz, "band": round(float(band), 2)} for hertz, band in zip(inside, bands, strict=True)]


def draw_presence(heard: Heard) -> dict[str, Any]:
    """The classes with the highest scores, most present first, each a row of levels from 0 to 255."""
    peaks = heard.scores.max(axis=0)
    rows = sorted(range(len(peaks)), key=lambda index: (-peaks[index], heard.labels[index]))[:MAX_ROWS]
    shrunk = shrink(heard.scores[:, rows])  # (columns, rows)
    together = math.ceil(len(heard.scores) / MAX_COLUMNS)
    edges = np.append(heard.edges[:-1:together], heard.edges[-1])
    return {
        "labels": [heard.labels[index] for index in rows],
        "columns": len(shrunk),
        "edges": base64.b64encode(edges.astype("<f4").tobytes()).decode(),
        "levels": as_bytes(shrunk.T * 255),
    }


def shrink(values: np.ndarray, max_columns: int = MAX_COLUMNS) -> np.ndarray:
    """Let each column (axis 0) stand for several, where there are too many, by their maximum: short sounds stay."""
    together = math.ceil(len(values) / max_columns)
    return np.maximum.reduceat(values, np.arange(0, len(values), together), axis=0) if together > 1 else values


def as_bytes(levels: np.ndarray) -> str:
    return base64.b64encode(np.clip(np.rint(levels), 0, 255).astype(np.uint8).tobytes()).decode()


def playable(path: Path) -> Path:
    """A file that every browser plays: this one, or a copy in FLAC beside it."""
    if is_playable(path):
        return path
    copy = path.with_name(f"{path.stem}-to-play.flac")
    with open_audio(path) as audio:
        write_flac(copy, audio)
    return copy


def is_playable(path: Path) -> bool:
    """Whether every browser plays this file. Some go by its name, which soundfile must not: it asks more of `.raw`."""
    with path.open("rb") as file, soundfile.SoundFile(file.fileno(), closefd=False) as sound:
        subtypes = PLAYABLE.get(sound.format, set())
        return (
            path.suffix.lower() == f".{sound.format.lower()}"
            and (subtypes is None or sound.subtype in subtypes)
            and PLAYABLE_HERTZ[0] <= sound.samplerate <= PLAYABLE_HERTZ[1]
            and sound.channels <= PLAYABLE_CHANNELS
        )


def write_flac(path: Path, audio: AudioSource):
    rate = min(max(audio.sampling_rate, COPY_HERTZ[0]), COPY_HERTZ[1])
    with whole_file(path) as temporary:
        try:
            with soundfile.SoundFile(temporary, "w", rate, 1, "PCM_16", format="FLAC") as file:
                for block in audio.blocks(rate):
                    file.write(block.clip(-1, 1))
        except soundfile.SoundFileError as error:  # of a full disk, libsndfile says "System error" and no more
            raise OSError(f"{path} could not be written: {error}") from error


# ── live ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class LiveListening:
    """One visitor's microphone: events that are certain, those under way, and the waveform so far."""

    def __init__(self, listener: Listener, sampling_rate: int, settings: Settings):
        self.listener, self.sampling_rate = listener, sampling_rate
        decoding = settings.decoding(listener.own_decoding)
        self.detector = LiveDetector(listener.model, listener.extractor, sampling_rate=sampling_rate, decoding=decoding)
        self.envelope = Envelope(sampling_rate)
        self.events: list[Event] = []
        self.is_finished = False

    @property
    def seconds(self) -> float:
        return self.envelope.seconds

    def feed(self, samples: np.ndarray) -> HeardLive | None:
        """Hear the next samples `(samples,)`; all events so far, those that may still change marked provisional.

        None where the end came first, while these samples waited or were heard: what is found by then is not the last.
        """
        with self.listener.lock:
            if self.is_finished:
                return None
            self.envelope.push(samples)
            self.events += self.detector.feed(samples)
            heard = HeardLive(LIVE_NAME, self.seconds, [*self.events, *self.detector.preview()])
        return None if self.is_finished else heard

    def finish(self) -> HeardLive:
        self.is_finished = True
        with self.listener.lock:
            self.events += self.detector.finish()
        return HeardLive(LIVE_NAME, self.seconds, self.events)

    def drawn(self) -> dict[str, Any]:
        envelope = self.envelope.drawn()
        return {"name": LIVE_NAME, "live": True, "seconds": round(self.seconds, 3), "envelope": envelope}


__all__ = [
    "Heard",
    "HeardLive",
    "Limits",
    "Listener",
    "LiveListening",
    "RefusalError",
    "Settings",
    "in_words_for_visitors",
    "playable",
]
