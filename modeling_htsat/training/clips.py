"""A clip is a sound and what is known of it; a corpus is many clips and the names of their classes.

Every corpus has the same columns, those of `agkphysics/AudioSet` on the Hub and `events`:

    video_id        the clip's name, unique in its corpus
    audio           {"bytes", "path"}, as it was encoded: nothing is decoded before it is needed
    labels          ids of the classes that occur (AudioSet: MIDs; elsewhere the names); None: not known
    human_labels    their names, in the same order
    events          [{"onset", "offset", "event_label"}] in seconds, [] for silence; None: not known
"""

import hashlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

try:
    from datasets import Audio, Dataset, Features, List, Value
except ModuleNotFoundError as error:
    raise ImportError('Training needs the package datasets: `pip install "modeling-htsat[train]"`.') from error

from ..tables import EVENT_COLUMNS

SPLITS = ("train", "validation", "test")

_EVENT = {"onset": Value("float64"), "offset": Value("float64"), "event_label": Value("string")}
CLIP_FEATURES = Features(
    {
        "video_id": Value("string"),
        "audio": Audio(decode=False),
        "labels": List(Value("string")),
        "human_labels": List(Value("string")),
        "events": List(_EVENT),
    }
)


# ── what training reads ───────────────────────────────────────────────────────────────────────────────────────────────


class ClipRows(Protocol):
    """Clips by number, wherever they lie. Picklable, so that workers of a DataLoader can each have one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One clip, its audio still encoded."""
        ...

    def without_audio(self) -> list[dict[str, Any]]:
        """All clips without their audio: cheap, for sampling and statistics."""
        ...

    @property
    def group_sizes(self) -> Sequence[int] | None:
        """How many consecutive clips are cheap to read together, group by group; None: any order is cheap."""
        ...


@dataclass(frozen=True)
class Corpus:
    """Clips of one split, and the names of the corpus's classes in the order in which a new model numbers them."""

    rows: ClipRows
    label_names: tuple[str, ...]


class DatasetRows:
    """The clips of a `datasets.Dataset`; columns that it lacks are not known, further ones are left out."""

    group_sizes: Sequence[int] | None = None  # memory-mapped, so any order is cheap

    def __init__(self, dataset: Dataset) -> None:
        missing = [column for column in ("video_id", "audio") if column not in dataset.column_names]
        if missing:
            raise ValueError(
                f"The data set lacks {' and '.join(missing)}; it has {', '.join(dataset.column_names)}. Rename its "
                "columns, or load it with the corpus `hub`."
            )
        dataset = dataset.with_format(None)
        dataset = dataset.select_columns([column for column in CLIP_FEATURES if column in dataset.column_names])
        self._dataset = dataset.cast_column("audio", Audio(decode=False))

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._dataset[int(index)]
        return {column: row.get(column) for column in CLIP_FEATURES}

    def without_audio(self) -> list[dict[str, Any]]:
        names = [column for column in CLIP_FEATURES if column != "audio"]
        # Column by column, as it takes less than half the time of row by row: AudioSet has two million.
        columns = self._dataset.remove_columns("audio").to_dict()
        values = [map(_with_shared_names, columns.get(name) or [None] * len(self)) for name in names]
        return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def _with_shared_names(value: Any) -> Any:
    """AudioSet has millions of labels and few hundred names: each need not be in memory more than once."""
    return list(map(sys.intern, value)) if isinstance(value, list) and value and isinstance(value[0], str) else value


class SubsetRows:
    """Some clips of others, in the order of `indices`."""

    def __init__(self, rows: ClipRows, indices: Iterable[int]) -> None:
        self._rows, self._indices = rows, [int(index) for index in indices]
        self.group_sizes = _sizes_of_what_is_left(rows.group_sizes, self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[self._indices[index]]

    def without_audio(self) -> list[dict[str, Any]]:
        rows = self._rows.without_audio()
        return [rows[index] for index in self._indices]


def _sizes_of_what_is_left(group_sizes: Sequence[int] | None, indices: Sequence[int]) -> list[int] | None:
    """The groups of a subset, which still lie one after the other if its indices ascend."""
    if group_sizes is None or any(later <= earlier for earlier, later in zip(indices, indices[1:], strict=False)):
        return None
    group_of = [group for group, size in enumerate(group_sizes) for _ in range(size)]
    left = [0] * len(group_sizes)
    for index in indices:
        left[group_of[index]] += 1
    return [size for size in left if size]


# ── clips from what one knows of files ────────────────────────────────────────────────────────────────────────────────


def make_clip(
    video_id: str,
    path: str | os.PathLike[str],
    labels: Sequence[str] | None = None,
    human_labels: Sequence[str] | None = None,
    events: Iterable[tuple[float, float, str]] | None = None,
) -> dict[str, Any]:
    """A row for the sound in a file; without names of their own, the classes are called as their ids."""
    named = labels if human_labels is None else human_labels
    return {
        "video_id": video_id,
        "audio": {"bytes": None, "path": str(Path(path).absolute())},
        "labels": None if labels is None else list(labels),
        "human_labels": None if named is None else list(named),
        "events": None if events is None else [dict(zip(EVENT_COLUMNS[1:], event, strict=True)) for event in events],
    }


def rows_in_memory(clips: Sequence[Mapping[str, Any]]) -> DatasetRows:
    """Rows of clips that are listed, not loaded: their files stay where they are, and nothing is cached on disk."""
    columns = {column: [clip[column] for clip in clips] for column in CLIP_FEATURES}
    # `Audio` encodes what it is given, for which it needs torchcodec; a plain struct with the same fields does not.
    plain = Features({**CLIP_FEATURES, "audio": {"bytes": Value("binary"), "path": Value("string")}})
    return DatasetRows(Dataset.from_dict(columns, features=plain))


# ── splits ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def split_by_name(
    names: Sequence[str],
    split: str,
    shares: Mapping[str, float],
    seed: int = 0,
    groups: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
) -> list[int]:
    """Indices of the clips that belong to a split, always the same for the same names, in any order.

    Each class is divided for itself: its recordings stand in the order of a hash of their names and the seed; the
    first ones are for testing, the next for validation, the rest for training. A split that has a share gets at least
    one recording of a class; a class with fewer recordings than splits is for training only. A new recording moves
    no more than one other of its class across each border.

    Args:
        names: Of all clips.
        split: "train", "validation" or "test".
        shares: Of the recordings for "validation" and for "test", from 0 to below 1; the rest is for training.
        groups: The recording that each clip is from; clips of one are never divided. By default, each is its own.
        classes: The class of each clip (for a recording with several, its first clip's counts); by default, one.
    """
    _check_shares(split, shares)
    groups = names if groups is None else groups
    class_of_group: dict[str, str] = {}
    for _, group, label in sorted(zip(names, groups, classes or [""] * len(names), strict=True)):
        class_of_group.setdefault(group, label)
    groups_of_class: dict[str, list[str]] = defaultdict(list)
    for group in sorted(class_of_group, key=lambda group: _hash(group, seed)):
        groups_of_class[class_of_group[group]].append(group)
    chosen = {group for members in groups_of_class.values() for group in _part(members, split, shares)}
    return [index for index, group in enumerate(groups) if group in chosen]


def _check_shares(split: str, shares: Mapping[str, float]) -> None:
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; there are {', '.join(SPLITS)}.")
    for name, share in shares.items():
        if name not in ("validation", "test") or not 0 <= share < 1:
            raise ValueError(f"The share of {name} is {share}; validation and test take shares from 0 to below 1.")
    if sum(shares.values()) >= 1:
        raise ValueError(f"The shares {dict(shares)} leave nothing to train on; together they must be below 1.")


def _hash(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def _part(members: Sequence[str], split: str, shares: Mapping[str, float]) -> Sequence[str]:
    """The members that a split takes of one class."""
    held_out = [name for name in ("test", "validation") if shares.get(name, 0) > 0]
    begin = 0
    for name in held_out if len(members) > len(held_out) else []:
        count = max(1, round(shares[name] * len(members)))
        count = min(count, len(members) - begin - (len(held_out) - held_out.index(name)))  # one each for the others
        if name == split:
            return members[begin : begin + count]
        begin += count
    return members[begin:] if split == "train" else []


__all__ = [
    "CLIP_FEATURES",
    "SPLITS",
    "ClipRows",
    "Corpus",
    "DatasetRows",
    "SubsetRows",
    "make_clip",
    "rows_in_memory",
    "split_by_name",
]
