"""The textures of synthetic events and of backgrounds: each a family of sounds, drawn anew every time.

A sound fills its event: it begins and ends with it, and what decays, such as a bell, has fallen by 30 to 40 dB at its
offset. Names used below:
    rng         numpy's random generator; every sound has its own, so that no sound depends on another
    times       (samples,) seconds since the onset
    hz          frequencies of a spectrum, or of a tone at each sample
    progress    0..1 through one burst, such as a syllable or a knock
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Generator = np.random.Generator
Gain = Callable[[np.ndarray], np.ndarray]  # from frequencies in Hz to amplitudes, complex ones where the phase matters

DECAY_DB = 30.0  # of what rings longest in a sound; the whole falls by some decibels more
MAX_PAUSE_SECONDS = 0.25  # inside an event; between two of a class it is longer, or nobody could tell which is which


# ── noise, tones and rhythm: what sounds are made of ──────────────────────────────────────────────────────────────────


def log_uniform(rng: Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def pick(rng: Generator, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def noise(rng: Generator, num_samples: int, rate: int, gain: Gain) -> np.ndarray:
    """Gaussian noise (samples,) with the spectrum that `gain` describes."""
    length = _transform_length(num_samples)
    hz = np.fft.rfftfreq(length, 1 / rate)
    spectrum = rng.standard_normal(2 * len(hz), dtype=np.float32).view(np.complex64)
    return np.fft.irfft(spectrum * gain(hz).astype(np.float32), length)[:num_samples]


def filtered(waveform: np.ndarray, rate: int, gain: Gain) -> np.ndarray:
    length = _transform_length(len(waveform))
    spectrum = np.fft.rfft(waveform, length) * gain(np.fft.rfftfreq(length, 1 / rate))
    return np.fft.irfft(spectrum, length)[: len(waveform)]


def _transform_length(num_samples: int) -> int:
    """The next length that is quick to transform: those with large prime factors are slow."""
    eighth = 1 << max(num_samples - 1, 16).bit_length() - 3
    return next(length for length in (5 * eighth, 6 * eighth, 8 * eighth) if length >= num_samples)


def slope(exponent: float) -> Gain:
    """Amplitudes that follow a power of frequency: 0 is white, -0.5 pink, -1 brown; nothing below hearing."""
    return lambda hz: np.maximum(hz, 20.0) ** exponent * (hz > 15)


def band(low_hz: float, high_hz: float) -> Gain:
    """Amplitudes that fall by 12 dB per octave on both sides of a band."""
    return lambda hz: (hz / low_hz) ** 2 / (1 + (hz / low_hz) ** 2) / (1 + (hz / high_hz) ** 2)


def resonances(centers_hz: Sequence[float], width_hz: float) -> Gain:
    """Peaks at some frequencies, the higher the wider, as in a throat or a wooden board."""
    return lambda hz: np.sum(
        [1 / (1 + ((hz - center) / (width_hz + 0.04 * center)) ** 2) for center in centers_hz], axis=0
    )


def phase_of(hz: np.ndarray | float, times: np.ndarray) -> np.ndarray:
    """The phase in radians of a tone whose frequency changes with time."""
    step_seconds = times[1] - times[0]
    return 2 * np.pi * step_seconds * np.cumsum(np.broadcast_to(hz, times.shape))


def pulses(phase: np.ndarray, sharpness: float) -> np.ndarray:
    """One smooth pulse per turn, with some 3 * sqrt(sharpness) audible harmonics: a voice, or a motor's strokes."""
    return np.exp(sharpness * (np.cos(phase) - 1))


def wander(rng: Generator, times: np.ndarray, changes_per_second: float, depth: float) -> np.ndarray:
    """Factors around 1 that change at random, as pitch and loudness of anything alive do."""
    knots = np.arange(0, times[-1] + 2 / changes_per_second, 1 / changes_per_second)
    return 1 + depth * np.interp(times, knots, rng.uniform(-1, 1, len(knots)))


def rhythm(
    rng: Generator, times: np.ndarray, period_seconds: float, burst_seconds: float, jitter: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bursts that repeat: the first begins at the onset, and the last ends at the offset.

    Returns where each burst begins in seconds (bursts,), the number of the burst that each sample belongs to, and its
    progress through it (samples,), which stays at 1 in the pause that follows.
    """
    seconds = len(times) * (times[1] - times[0])
    burst_seconds = min(burst_seconds, seconds)
    period_seconds = min(period_seconds, burst_seconds + MAX_PAUSE_SECONDS)
    num_periods = int(np.ceil((seconds - burst_seconds) / period_seconds))
    starts = np.linspace(0, seconds - burst_seconds, num_periods + 1)
    starts[1:-1] += jitter * period_seconds * rng.uniform(-0.5, 0.5, max(num_periods - 1, 0))
    numbers = np.searchsorted(starts, times, side="right") - 1
    progress = np.minimum((times - starts[numbers]) / burst_seconds, 1.0)
    return starts, numbers, progress


def decay(progress: np.ndarray) -> np.ndarray:
    """A fall by DECAY_DB, and silence after it."""
    return 10 ** (-DECAY_DB / 20 * progress) * (progress < 1)


def hump(progress: np.ndarray) -> np.ndarray:
    """A quick rise, and a fall to nothing."""
    return np.sin(np.pi * np.minimum(progress, 1.0) ** 0.7) ** 0.5


# ── the classes: each fills `times` with one member of its family ─────────────────────────────────────────────────────


def alarm(rng: Generator, times: np.ndarray, rate: int) -> np.ndarray:
    """Two tones by turns."""
    low_hz = log_uniform(rng, 600, 2000)
    turns = times * log_uniform(rng, 1.5, 7)
    hz = np.where(turns % 1 < 0.5, low_hz, low_hz * rng.uniform(1.15, 1.6))
    return np.tanh(rng.uniform(0.3, 4) * np.sin(phase_of(hz, times)))


def bark(rng: Generator, times: np.ndarray, rate: int) -> np.ndarray:
    """Short harmonic bursts whose pitch rises and falls."""
    burst_seconds = rng.uniform(0.12, 0.35)
    _, _, progress = rhythm(rng, times, burst_seconds * rng.uniform(1.4, 3), burst_seconds, jitter=0.3)
    hz = log_uniform(rng, 220, 750) * (0.75 + 0.5 * np.sin(np.pi * progress**0.6)) * wander(rng, times, 30, 0.04)
    throat = resonances([rng.uniform(600, 1200), rng.uniform(1300, 2600)], 150)
    voice = pulses(phase_of(hz, times), rng.uniform(8, 60))
    breath = noise(rng, len(times), rate, band(800, 4000))
    return hump(progress) * _blend(filtered(voice, rate, throat), breath, rng.uniform(0.1, 0.5))


def beeps(rng: Generator, times: np.ndarray, rate: int) -> np.ndarray:
    """Short tones of one pitch."""
    beep_seconds = rng.uniform(0.06, 0.25)
    _, _, progress = rhythm(rng, times, beep_seconds * rng.uniform(1.4, 3), beep_seconds)
    edges = np.minimum(1, 20 * np.minimum(progress, 1 - progress))
    return edges * np.tanh(rng.uniform(0.3, 3) * np.sin(phase_of(log_uniform(rng, 700, 4000), times)))


def bell(rng: Generator, times: np.ndarray, rate: int) -> np.ndarray:
    """Inharmonic partials that decay, the high ones first, after one stroke or several."""
    ring_seconds = log_uniform(rng, 0.5, 4)
    _, _, progress = rhythm(rng, times, ring_seconds * rng.uniform(0.3, 1), ring_seconds, jitter=0.2)
    strike_hz = log_uniform(rng, 250, 1300)
    ratios = np.array([1.0, 2.0, 2.4, 3.0, 4.2, 5.4]) * rng.uniform(0.97, 1.03, 6)
    loudness = np.array([1, *rng.uniform(0.1, 0.6, 5)])  # the lowest partial, which rings longest, is the loudest
    hurry = np.linspace(0, rng.uniform(1, 4), 6)  # how much sooner than the lowest partial each one has decayed
    partials = (
        loudness[k] * decay(progress) ** (1 + hurry[k]) * np.sin(phase_of(strike_hz * ratios[k], times))
        for k in range(6)
    )
    return sum(partials, np.zeros(len(times)))


def bird(rng: Generator, times: np.ndarray, rate: int) -> np.ndarray:
    """Whistles, each a glide of its own around one pitch."""
    whistle_seconds = rng.uniform(0.05, 0.25)
    starts, numbers, progress = rhythm(rng, times, whistle_seconds * rng.uniform(1.2, 2.5), whistle_seconds, jitter=0.3)
    pitches, glides = rng.uniform(0.85, 1.15, len(starts)), rng.uniform(-0.25, 0.25, len(starts))
    trill = 1 + rng.uniform(0, 0.06) * np.sin(2 * np.pi * rng.uniform(15, 50) * times)
    hz = rng.uniform(2000, 4800) * pitches[numbers] * (1 + glides[numbers] * (progress - 0.5)) * trill
    return hump(progress) * np.sin(phase_of(hz, times))


def cricket(rng: Generator, times: np.ndarray, rate: int) -> np.ndarray:
    """One high tone, beaten fast, in groups."""
    group_seconds = log_uniform(rng, 0.15, 1.5)
    _, _, progress = rhythm(rng, times, group_seconds * rng.uniform(1.05, 2), group_seconds, jitter=0.1)
    beats = 0.5 - 0.5 * np.cos(2 * np.pi * rng.uniform(18, 70) * times)
    tone = np.sin(phase_of(rng.uniform(2800, 6500) * wander(rng, times, 5, 0.01), times))
    return hump(progress) * beats ** rng.uniform(0.5, 2) * tone


def engine(rng: Generator, times: np.ndarray, rate: int) -> np.ndarray:
    """The strokes of a motor, unequally strong, and its rumble."""
    phase = phase_of(log_uniform(rng, 22, 110) * wander(rng, times, 1.5, rng.uniform(0.02, 0.2)), times)
    uneven = 1 + rng.uniform(0.1, 0.8) * np.cos(phase / rng.integers(2, 5))
    strokes = filtered(uneven * pulses(phase, rng.uniform(10, 300)), rate, band(40, log_uniform(rng, 400, 3000)))
    return _blend(strokes, uneven * noise(rng, len(times), rate, band(60, 1200)), rng.uniform(0.1, 0.5))


def knock(rng: Generator, times: np.ndarray, rate: int) -> np.ndarray:
    """Blows on wood: damped resonances and a click, repeated."""
    blow_seconds = rng.uniform(0.05, 0.25)
    _, _, progress = rhythm(rng, times, max(rng.uniform(0.13, 0.5), blow_seconds), blow_seconds, jitter=0.25)
    board = resonances([log_uniform(rng, 120, 2200) for _ in range(3)], rng.uniform(10, 60))
    wood = filtered(noise(rng, len(times), rate, slope(0)), rate, board)
    click = decay(progress) ** 5 * noise(rng, len(times), rate, band(1000, 6000))
    return _blend(decay(progress) * wood, click, rng.uniform(0.1, 0.6))


def rain(rng: Generator, times: np.ndarray, rate: int) -> np.ndarray:
    """Very many drops on three kinds of ground, and their hiss."""
    drops = np.zeros(len(times))
    for _ in range(3):
        num_drops = rng.poisson(times[-1] * log_uniform(rng, 20, 250)) + 2
        clicks = np.zeros(len(times))
        clicks[rng.integers(0, len(times), num_drops)] = rng.lognormal(0, 0.8, num_drops)
        drops += filtered(clicks, rate, _ringing(log_uniform(rng, 700, 6500), rng.uniform(0.0005, 0.004)))
    hiss = noise(rng, len(times), rate, band(1500, 7000))
    return wander(rng, times, 1, 0.3) * _blend(drops, hiss, rng.uniform(0.1, 0.6))


def scrape(rng: Generator, times: np.ndarray, rate: int) -> np.ndarray:
    """Strokes of rough noise around a frequency that glides."""
    stroke_seconds = rng.uniform(0.2, 0.9)
    starts, numbers, progress = rhythm(rng, times, stroke_seconds * rng.uniform(1, 1.5), stroke_seconds, jitter=0.2)
    glides = rng.uniform(-0.5, 0.5, len(starts))
    hz = log_uniform(rng, 1200, 5000) * (1 + glides[numbers] * (progress - 0.5))
    rough = 1 + rng.uniform(0.3, 1) * np.sin(phase_of(rng.uniform(20, 90) * wander(rng, times, 8, 0.2), times))
    grain = noise(rng, len(times), rate, lambda hz: 1 / (1 + (hz / 500) ** 4))
    return hump(progress) * rough * grain * np.cos(phase_of(hz, times))


def siren(rng: Generator, times: np.ndarray, rate: int) -> np.ndarray:
    """One tone that sweeps up and down."""
    sweeps = times * log_uniform(rng, 0.2, 4) + rng.uniform()
    height = 0.5 - 0.5 * np.cos(2 * np.pi * sweeps) if rng.uniform() < 0.6 else sweeps % 1
    hz = rng.uniform(400, 900) * rng.uniform(1.5, 2.6) ** height
    return np.tanh(rng.uniform(0.3, 4) * np.sin(phase_of(hz, times)))


# Formants of the vowels in "father, heed, who, head, hawed" in Hz, men's means: Peterson and Barney, 1952.
VOWELS_HZ = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))


def speech(rng: Generator, times: np.ndarray, rate: int) -> np.ndarray:
    """Syllables without sense: a voice through the formants of vowels, and hissing consonants before some."""
    syllable_seconds = rng.uniform(0.14, 0.3)
    starts, numbers, progress = rhythm(rng, times, syllable_seconds, syllable_seconds, jitter=0.3)
    hz = log_uniform(rng, 85, 260) * wander(rng, times, 4, 0.15)
    voice = pulses(phase_of(hz, times), 200)
    throat_size, edges = rng.uniform(0.9, 1.2), [*np.searchsorted(times, starts), len(times)]
    for first, last in itertools.pairwise(edges):
        formants = throat_size * np.array(pick(rng, VOWELS_HZ))
        voice[first:last] = filtered(voice[first:last], rate, resonances(list(formants), 50))
    hisses = (rng.uniform(size=len(starts)) < 0.4)[numbers] & (progress < 0.3)
    consonants = noise(rng, len(times), rate, band(2500, 7000))
    return hump(progress) * np.where(hisses, 0.5 * unit(consonants), unit(voice))


def vacuum(rng: Generator, times: np.ndarray, rate: int) -> np.ndarray:
    """A stream of air, and the whine of what moves it."""
    air = noise(rng, len(times), rate, band(log_uniform(rng, 150, 900), log_uniform(rng, 1800, 7000)))
    whine = pulses(phase_of(log_uniform(rng, 180, 900) * wander(rng, times, 1, 0.02), times), rng.uniform(0.5, 8))
    return wander(rng, times, 3, 0.2) * _blend(air, whine - whine.mean(), rng.uniform(0.05, 0.5))


class Sound(NamedTuple):
    """A class: how to make it, and how long its events are; lengths are log-uniform."""

    make: Callable[[Generator, np.ndarray, int], np.ndarray]
    min_seconds: float
    max_seconds: float


# Some lengths exceed ten seconds, so that some events last for the whole clip.
SOUNDS: dict[str, Sound] = {
    "alarm": Sound(alarm, 0.8, 6.0),
    "bark": Sound(bark, 0.25, 3.0),
    "beeps": Sound(beeps, 0.4, 5.0),
    "bell": Sound(bell, 0.6, 5.0),
    "bird": Sound(bird, 0.3, 4.0),
    "cricket": Sound(cricket, 0.8, 10.0),
    "engine": Sound(engine, 1.5, 14.0),
    "knock": Sound(knock, 0.25, 2.5),
    "rain": Sound(rain, 2.0, 14.0),
    "scrape": Sound(scrape, 0.3, 3.0),
    "siren": Sound(siren, 1.2, 8.0),
    "speech": Sound(speech, 0.6, 6.0),
    "vacuum": Sound(vacuum, 1.5, 14.0),
}


def unit(waveform: np.ndarray) -> np.ndarray:
    """The same sound, with a root mean square of 1."""
    return waveform / (rms(waveform) or 1.0)


def rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(waveform**2)))


def _blend(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    return (1 - share) * unit(first) + share * unit(second)


def _ringing(center_hz: float, decay_seconds: float) -> Gain:
    return lambda hz: 1 / (1 + 2j * np.pi * (hz - center_hz) * decay_seconds)


# ── the backgrounds ───────────────────────────────────────────────────────────────────────────────────────────────────


def coloured(exponent: float) -> Callable[[Generator, np.ndarray, int], np.ndarray]:
    return lambda rng, times, rate: noise(rng, len(times), rate, slope(exponent + rng.uniform(-0.15, 0.15)))


def hum(rng: Generator, times: np.ndarray, rate: int) -> np.ndarray:
    """The mains in a transformer or a lamp."""
    mains = filtered(pulses(phase_of(rng.choice([50.0, 60.0]), times), rng.uniform(3, 60)), rate, band(60, 1500))
    return _blend(mains, noise(rng, len(times), rate, slope(-0.5)), rng.uniform(0.3, 0.8))


def swell(rng: Generator, times: np.ndarray, rate: int) -> np.ndarray:
    """Wind, or traffic far away: noise that comes and goes."""
    return wander(rng, times, 0.5, 0.7) * noise(rng, len(times), rate, slope(rng.uniform(-0.9, -0.2)))


def murmur(rng: Generator, times: np.ndarray, rate: int) -> np.ndarray:
    """A room full of voices, none of which can be told apart."""
    bands = [(150, 500), (400, 1500), (1200, 4000)]
    voices = (wander(rng, times, 4, 0.6) * noise(rng, len(times), rate, band(low, high)) for low, high in bands)
    return sum(map(unit, voices), 0.5 * unit(noise(rng, len(times), rate, slope(-1))))


BACKGROUNDS = {
    "white": coloured(0),
    "pink": coloured(-0.5),
    "brown": coloured(-1),
    "hum": hum,
    "swell": swell,
    "murmur": murmur,
}


def soundscape_labels() -> list[str]:
    """The classes of the synthetic events, in the order of the alphabet."""
    return sorted(SOUNDS)
