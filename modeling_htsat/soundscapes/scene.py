"""One soundscape: events placed over a background at random signal-to-noise ratios, and the truth about them.

A sound begins and ends within 5 ms (recordings: 20 ms) of its onset and offset.
"""

import functools
import itertools
import logging
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from ..audio_htsat import AudioError, list_audio_files, stream_audio
from ..event_metrics import Event
from .sounds import BACKGROUNDS, SOUNDS, Generator, Sound, filtered, log_uniform, pick, rms, slope, unit

logger = logging.getLogger(__name__)

FADE_SECONDS, RECORDING_FADE_SECONDS = 0.005, 0.02
MIN_SAMPLING_RATE = 16_000  # the synthetic classes live below 8 kHz
MAX_PEAK = 0.89  # -1 dBFS: louder mixtures are turned down to it as a whole
LEVEL_DB = (-50.0, -28.0)  # root mean square of a background, relative to full scale
PLACING_ATTEMPTS = 20
SAME_CLASS_GAP_SECONDS = 0.5  # longer than the longest pause inside an event
SILENCE_DB = 40.0  # below its loudest 10 ms, the beginning and end of a recording are silence
MIN_RECORDING_SECONDS, MAX_RECORDING_SECONDS = 0.05, 600  # of a longer recording, the first ten minutes are used


class Recording(NamedTuple):
    """A sound file of the user's, without the silence around it."""

    path: str
    first_sample: int
    num_samples: int


@dataclass(frozen=True)
class SoundscapeSettings:
    """All that a data set depends on besides its seed.

    Args:
        split_name: Part of the seed: the splits of one seed have no clip in common.
        empty_share: How many of the clips have no event at all; the others have 1 to `max_events`, equally often.
        max_polyphony: How many events may sound at once.
        min_snr_db: Event against background, both measured from the event's onset to its offset.
        foreground: Recordings by label (`find_foreground`), and
        background: recordings without events (`find_background`); each takes the place of what is synthetic,
        with_synthetic: or comes besides it, with this.
    """

    split_name: str = "train"
    clip_seconds: float = 10.0
    sampling_rate: int = 32_000
    max_events: int = 5
    max_polyphony: int = 3
    empty_share: float = 0.05
    min_snr_db: float = 0.0
    max_snr_db: float = 20.0
    foreground: Mapping[str, Sequence[Recording]] = field(default_factory=dict)
    background: Sequence[Recording] = ()
    with_synthetic: bool = False

    def __post_init__(self) -> None:
        rules = {
            "split_name": (re.fullmatch(r"\w+", self.split_name), "letters, digits and underscores"),
            "clip_seconds": (1 <= self.clip_seconds == round(self.clip_seconds, 3) <= 600, "1 to 600 s, to the ms"),
            "sampling_rate": (self.sampling_rate >= MIN_SAMPLING_RATE, f"at least {MIN_SAMPLING_RATE} Hz"),
            "max_events": (self.max_events >= 1, "at least 1"),
            "max_polyphony": (self.max_polyphony >= 1, "at least 1"),
            "empty_share": (0 <= self.empty_share <= 1, "0 to 1"),
            "min_snr_db": (-60 <= self.min_snr_db <= self.max_snr_db <= 60, "-60 dB to max_snr_db, and that to 60 dB"),
        }
        for name, (is_good, needed) in rules.items():
            if not is_good:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {needed}.")

    @property
    def labels(self) -> list[str]:
        """The classes of the events, in the order of the alphabet."""
        synthetic = SOUNDS if self.with_synthetic or not self.foreground else {}
        return sorted({*synthetic, *self.foreground})


@dataclass(frozen=True)
class Soundscape:
    """One clip, and the truth about it.

    Args:
        waveform: (samples,) float32 in -1..1.
        events: (onset, offset, label) in seconds, whole milliseconds, in the order of time.
        snrs_db: The signal-to-noise ratio of each event.
        labels: The classes that occur, in the order of the alphabet.
        background: (samples,) what remains of the waveform without its events.
        background_kind: The name of the texture, or of the recording.
        attenuation_db: By how much the clip was turned down so that its peak stays below full scale.
    """

    waveform: np.ndarray
    events: list[Event]
    snrs_db: list[float]
    labels: list[str]
    background: np.ndarray
    background_kind: str
    attenuation_db: float


# ── recordings of the user's ──────────────────────────────────────────────────────────────────────────────────────────


def find_foreground(folder: str | os.PathLike[str], sampling_rate: int) -> dict[str, list[Recording]]:
    """Recordings of events: a folder for each class, named like the class. What cannot be read is warned of."""
    folder = Path(folder)
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise ValueError(f"{folder} has no folders; put the recordings of each class into a folder named like it.")
    for path in classes:
        if re.search(r"[,\t\r\n]", path.name):
            raise ValueError(f"The class {path.name!r} has a comma, tab or line break; the tables of labels cannot.")
    return {path.name: find_background(path, sampling_rate) for path in classes}


def find_background(folder: str | os.PathLike[str], sampling_rate: int) -> list[Recording]:
    """Recordings without events, from anywhere inside a folder. What cannot be read is warned of."""
    found = []
    for path in tqdm(list_audio_files(folder), desc=Path(folder).name, unit="file", leave=False, disable=None):
        try:
            first, last = _sounding(_read(str(path), sampling_rate), sampling_rate)
        except AudioError as error:
            logger.warning("Skipped: %s", error)
            continue
        if last - first < MIN_RECORDING_SECONDS * sampling_rate:
            logger.warning("Skipped: %s is silent, or shorter than %g s.", path, MIN_RECORDING_SECONDS)
        else:
            found.append(Recording(str(path), first, last - first))
    if not found:
        raise ValueError(f"{folder} has no recording that can be used, as said above; add some, or leave it out.")
    return found


@functools.lru_cache(maxsize=4)
def _read(path: str, rate: int) -> np.ndarray:
    blocks = stream_audio(path, rate, block_seconds=MAX_RECORDING_SECONDS / 10)
    return np.concatenate(list(itertools.islice(blocks, 10)))


def _sounding(waveform: np.ndarray, rate: int) -> tuple[int, int]:
    """Where a recording begins and ends, in samples, without the silence around it; 0, 0 where all is silent."""
    frame = rate // 100
    power = np.add.reduceat(waveform.astype(np.float64) ** 2, np.arange(0, len(waveform), frame))
    loud = np.flatnonzero(power > power.max() * 10 ** (-SILENCE_DB / 10))
    return (int(loud[0]) * frame, min(int(loud[-1] + 1) * frame, len(waveform))) if len(loud) else (0, 0)


def _excerpt(rng: Generator, recording: Recording, num_samples: int, rate: int) -> np.ndarray:
    first = recording.first_sample + rng.integers(max(recording.num_samples - num_samples, 0) + 1)
    last = min(first + num_samples, recording.first_sample + recording.num_samples)
    return _read(recording.path, rate)[first:last].astype(np.float64)


def _repeated(waveform: np.ndarray, num_samples: int, rate: int) -> np.ndarray:
    """As often as it takes, each copy faded into the next."""
    if len(waveform) >= num_samples:
        return waveform[:num_samples]
    fade = min(round(0.05 * rate), len(waveform) // 4)
    copy, step = faded(waveform, fade), len(waveform) - fade
    whole = np.zeros(num_samples + len(waveform))
    for start in range(0, num_samples, step):
        whole[start : start + len(copy)] += copy
    return whole[fade : fade + num_samples]


def faded(waveform: np.ndarray, fade: int) -> np.ndarray:
    """Raised from nothing and lowered to nothing; two copies that overlap by the fade keep their loudness."""
    fade = min(fade, len(waveform) // 2)
    rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(fade) + 0.5) / fade)
    return waveform * np.concatenate([rise, np.ones(len(waveform) - 2 * fade), rise[::-1]])


# ── one clip ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_soundscape(seed: int, index: int, settings: SoundscapeSettings | None = None) -> Soundscape:
    """Clip number `index` of the data set that a seed and its settings stand for; the same on any machine.

    The same means: the same events, and samples that differ by rounding errors at most, as processors differ in these.
    """
    settings = settings or SoundscapeSettings()
    rng = functools.partial(_generator, seed, settings.split_name, index)
    layout, (kind, background) = rng(0), _draw_background(rng(1), settings)
    foreground = np.zeros_like(background)
    placed: list[tuple[Event, float]] = []
    is_empty = layout.uniform() < settings.empty_share
    for number in range(0 if is_empty else layout.integers(1, settings.max_events, endpoint=True)):
        label, sound = _draw_sound(rng(2 + number), settings)
        snr_db = layout.uniform(settings.min_snr_db, settings.max_snr_db)
        event = _find_place(
            layout, label, len(sound) / settings.sampling_rate, [event for event, _ in placed], settings
        )
        if event:
            first = min(round(event[0] * settings.sampling_rate), len(background) - len(sound))
            extent = slice(first, first + len(sound))
            # Backgrounds have a level of 1. Where a recorded one falls silent, the event must not become silent too.
            foreground[extent] += max(rms(background[extent]), 0.1) * 10 ** (snr_db / 20) * sound
            placed.append((event, snr_db))
    return _finished(background, foreground, sorted(placed), kind, 10 ** (layout.uniform(*LEVEL_DB) / 20))


def _generator(seed: int, split_name: str, index: int, part: int) -> Generator:
    # A key is not the same as a longer seed: NumPy takes [3, 1] and [3, 1, 0] for one seed.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(split_name.encode()), index, part)))


def _draw_background(rng: Generator, settings: SoundscapeSettings) -> tuple[str, np.ndarray]:
    num_samples, rate = round(settings.clip_seconds * settings.sampling_rate), settings.sampling_rate
    synthetic = list(BACKGROUNDS) if settings.with_synthetic or not settings.background else []
    # With both, a clip has the one or the other equally often, however many recordings there are.
    if settings.background and (not synthetic or rng.uniform() < 0.5):
        recording = pick(rng, settings.background)
        sound = _excerpt(rng, recording, num_samples, rate)
        return Path(recording.path).name, unit(_repeated(sound, num_samples, rate))
    kind = pick(rng, synthetic)
    return kind, unit(BACKGROUNDS[kind](rng, np.arange(num_samples) / rate, rate))


def _draw_sound(rng: Generator, settings: SoundscapeSettings) -> tuple[str, np.ndarray]:
    """A label, and a sound of whole milliseconds with a root mean square of 1."""
    label = pick(rng, settings.labels)
    is_synthetic = label in SOUNDS and (settings.with_synthetic or not settings.foreground)
    if label in settings.foreground and (not is_synthetic or rng.uniform() < 0.5):
        sound, fade_seconds = _draw_recording(rng, settings.foreground[label], settings), RECORDING_FADE_SECONDS
    else:
        sound, fade_seconds = _draw_synthetic(rng, SOUNDS[label], settings), FADE_SECONDS
    tilt = slope(rng.uniform(-0.4, 0.4))  # as rooms and microphones do it, by up to 2.4 dB per octave
    sound = filtered(sound, settings.sampling_rate, tilt)
    return label, unit(faded(sound, round(fade_seconds * settings.sampling_rate)))


def _draw_synthetic(rng: Generator, kind: Sound, settings: SoundscapeSettings) -> np.ndarray:
    seconds = min(round(log_uniform(rng, kind.min_seconds, kind.max_seconds), 3), settings.clip_seconds)
    times = np.arange(round(seconds * settings.sampling_rate)) / settings.sampling_rate
    return kind.make(rng, times, settings.sampling_rate)


def _draw_recording(rng: Generator, recordings: Sequence[Recording], settings: SoundscapeSettings) -> np.ndarray:
    """The whole recording, or a part of one that is longer than the clip."""
    rate, recording = settings.sampling_rate, pick(rng, recordings)
    wanted = round(rng.uniform(0.3, 1) * settings.clip_seconds * rate)
    if recording.num_samples <= settings.clip_seconds * rate:
        wanted = recording.num_samples
    sound = _excerpt(rng, recording, wanted, rate)
    first, last = _sounding(sound, rate)  # an excerpt may begin in a pause, or be one
    if first == last:
        sound = _excerpt(rng, recording._replace(num_samples=wanted), wanted, rate)
        first, last = 0, wanted
    milliseconds = (last - first) * 1000 // rate
    return sound[first : first + round(milliseconds * rate / 1000)]


def _find_place(
    rng: Generator, label: str, seconds: float, placed: Sequence[Event], settings: SoundscapeSettings
) -> Event | None:
    """Where the sound may go without touching its own class or making too many sound at once; None where nowhere."""
    last_millisecond = round((settings.clip_seconds - seconds) * 1000)
    for _ in range(PLACING_ATTEMPTS):
        onset = int(rng.integers(last_millisecond, endpoint=True)) / 1000
        event = (onset, round(onset + seconds, 3), label)
        of_one_class = [other for other in placed if other[2] == label]
        gaps = [max(other[0] - event[1], onset - other[1]) for other in of_one_class]
        if (
            min(gaps, default=np.inf) >= SAME_CLASS_GAP_SECONDS
            and polyphony([*placed, event]) <= settings.max_polyphony
        ):
            return event
    return None


def polyphony(events: Sequence[Event]) -> int:
    """How many events sound at once, at most."""
    return max((sum(onset <= moment < offset for onset, offset, _ in events) for moment, _, _ in events), default=0)


def _finished(
    background: np.ndarray, foreground: np.ndarray, placed: Sequence[tuple[Event, float]], kind: str, level: float
) -> Soundscape:
    peak = level * float(np.abs(background + foreground).max())
    gain = level * MAX_PEAK / max(peak, MAX_PEAK)
    return Soundscape(
        waveform=(gain * (background + foreground)).astype(np.float32),
        events=[event for event, _ in placed],
        snrs_db=[round(snr_db, 2) for _, snr_db in placed],
        labels=sorted({event[2] for event, _ in placed}),
        background=(gain * background).astype(np.float32),
        background_kind=kind,
        attenuation_db=round(20 * np.log10(level / gain), 2),
    )
