"""DESED: ten-second clips from homes with ten classes of events; labels are weak, strong, or known from synthesis."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...labels import load_label_groups
from ...tables import read_events
from ..clips import Corpus, make_clip
from .listing import existing, find_listed, given_names, make_corpus, make_strong_clip, nearest, read_table

# Where each part has its labels and its sounds, below metadata/ and audio/. The names of folders differ between
# releases and are often followed by a rate (weak_16k): the first that is there is taken.
PARTS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "train": {
        "weak": ("train/weak.tsv", ("train/weak", "train/weak_*")),
        "synthetic": (
            "train/synthetic*_train/soundscapes.tsv",
            ("train/synthetic*_train/soundscapes", "train/synthetic*_train/soundscapes_*"),
        ),
        "strong": ("train/audioset_strong.tsv", ("train/strong_label_real", "train/strong_label_real_*")),
    },
    "validation": {
        "real": ("validation/validation.tsv", ("validation/validation", "validation/validation_*", "validation")),
        "synthetic": (
            "validation/synthetic*_validation/soundscapes.tsv",
            ("validation/synthetic*_validation/soundscapes", "validation/synthetic*_validation/soundscapes_*"),
        ),
    },
    "test": {"public": ("eval/public.tsv", ("eval/public", "eval/public_*", "eval"))},
}
DEFAULT_PARTS = {"train": "weak,synthetic", "validation": "real", "test": "public"}


def load_desed(
    location: str | os.PathLike[str],
    split: str,
    *,
    parts: str | Sequence[str] | None = None,
    skip_missing: bool = False,
) -> Corpus:
    """DESED as its own package and the baselines of DCASE lay it out, with its ten classes.

    Clips labelled weakly have no `events`; of clips labelled strongly, the weak labels follow. Clips are called by
    their file names, and, where several parts are loaded, by part and file name, as a name may be in several.

    Args:
        location: The folder with `metadata/` and `audio/`, or the one that has it in `dataset/`.
        parts: "weak", "synthetic", "strong" for training (default: weak,synthetic); "real", "synthetic" for
            validation (default: real); "public" for testing.
        skip_missing: Go on where clips are listed that are not there: some can no longer be downloaded.
    """
    names = given_names(DEFAULT_PARTS[split] if parts is None else parts)
    folder = existing(location)
    folder = existing(folder / "dataset" if (folder / "dataset").is_dir() else folder, "metadata", "audio")
    clips = []
    for part in names:
        if part not in PARTS[split]:
            raise ValueError(f"DESED has no part {part!r} for {split}; {nearest(part, PARTS[split])}")
        clips += _read_part(folder, *PARTS[split][part], prefix=f"{part}/" if len(names) > 1 else "", skip=skip_missing)
    classes, _ = load_label_groups("desed")
    return make_corpus(clips, split, [split] * len(clips), label_names=list(classes), validation_share=0.0)


def _read_part(folder: Path, table: str, audio: Sequence[str], prefix: str, skip: bool) -> list[dict[str, Any]]:
    table_path = _first(folder / "metadata", [table])
    audio_path = _first(folder / "audio", audio)
    if table_path.stem == "weak":
        weak = {row["filename"]: row["event_labels"] for row in read_table(table_path, ("filename", "event_labels"))}
        paths = find_listed(weak, audio_path, table_path, skip)
        return [make_clip(prefix + name, path, sorted({*given_names(weak[name])})) for name, path in paths.items()]
    events = read_events(table_path)
    paths = find_listed(events, audio_path, table_path, skip)
    return [make_strong_clip(prefix + name, path, events[name]) for name, path in paths.items()]


def _first(folder: Path, patterns: Sequence[str]) -> Path:
    """The first that is there; of several releases the newest, which has the highest number."""
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if found:
            return found[-1]
    raise ValueError(f"{folder} lacks {patterns[0]}; download this part of DESED, or choose other parts.")


__all__ = ["load_desed"]
