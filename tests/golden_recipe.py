"""Weights and sounds from names and seeds alone: what the authors' code was given when it made `golden/`.

The formulas define the data, so every operation and its order must stay as they are: the same bits, or the golden
values mean nothing.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"


def references() -> list[dict]:
    """One row per reference: case, input, seeds and the authors' configuration."""
    return json.loads((GOLDEN / "index.json").read_text())


def checkpoint_entries(case: str) -> dict[str, dict]:
    """Shape and `derived` of every entry of the case's checkpoint, by the authors' key."""
    return json.loads((GOLDEN / f"{case}.keys.json").read_text())


def make_weights(case: str, seed: int) -> dict[str, np.ndarray]:
    """Every learned entry of the case's checkpoint, by the authors' key."""
    entries = checkpoint_entries(case).items()
    return {key: make_weight(key, tuple(entry["shape"]), seed) for key, entry in entries if not entry["derived"]}


def make_weight(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The entry `key`: normal noise of its own, in the range that a trained model has."""
    random = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
    noise = random.standard_normal(shape).astype(np.float32)
    return _scaled(noise, key, kind=key.rsplit(".", 1)[-1]).astype(np.float32)


def _scaled(noise: np.ndarray, key: str, kind: str) -> np.ndarray:
    if kind == "running_mean":  # decibels
        return -30 + 5 * noise
    if kind == "running_var":
        return (1.0 + 0.3 * np.abs(noise)).astype(np.float32) * 400
    if kind == "relative_position_bias_table":
        return 0.5 * noise
    if kind == "weight" and (key.startswith("bn0") or "norm" in key):
        return 1 + 0.1 * noise
    if kind == "bias":
        return (0.1 if key.startswith("bn0") else 0.05) * noise
    # In 64 bits by name: releases of NumPy before 2.0 would multiply in 32.
    return noise.astype(np.float64) * (1.0 / np.sqrt(math.prod(noise.shape[1:])))


def make_sound(samples: int, sampling_rate: int, seed: int) -> np.ndarray:
    """A chirp, a handful of clicks and noise under a slow tremolo, in [-1, 1]."""
    random = np.random.RandomState(seed)
    seconds = np.arange(samples) / sampling_rate
    sound = 0.3 * np.sin(2 * np.pi * (200 + 300 * seconds) * seconds) + 0.05 * random.standard_normal(samples)
    sound[random.randint(0, samples, size=max(1, samples // 16000))] += 0.8
    sound *= 0.6 + 0.4 * np.sin(2 * np.pi * 0.7 * seconds)
    return np.clip(sound, -1, 1).astype(np.float32)
