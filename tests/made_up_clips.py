"""Clips that are made up, in the columns of a corpus: what the tests of training learn from."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile

RATE = 32_000


class ListRows:
    """Rows in a list, in groups if it is said so."""

    def __init__(self, clips: Sequence[dict[str, Any]], group_sizes: Sequence[int] | None = None):
        self.clips, self.group_sizes = list(clips), group_sizes

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.clips[index])

    def without_audio(self) -> list[dict[str, Any]]:
        return [{name: value for name, value in clip.items() if name != "audio"} for clip in self.clips]


def make_row(
    name: str,
    waveform: np.ndarray | None,
    labels: Sequence[str] | None = None,
    events: Sequence[tuple[float, float, str]] | None = None,
    rate: int = RATE,
) -> dict[str, Any]:
    """A clip as a corpus has it, with a WAV file's bytes; a waveform of None is a file that cannot be decoded."""
    labels = None if labels is None else list(labels)
    columns = ("onset", "offset", "event_label")
    return {
        "video_id": name,
        "audio": {"bytes": b"RIFF, and then nothing" if waveform is None else wav_bytes(waveform, rate), "path": name},
        "labels": labels,
        "human_labels": labels,
        "events": None if events is None else [dict(zip(columns, event, strict=True)) for event in events],
    }


def wav_bytes(waveform: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def tone(seconds: float, hertz: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """A tone under a little noise."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (0.3 * np.sin(2 * np.pi * hertz * time) + 0.01 * noise).astype(np.float32)
