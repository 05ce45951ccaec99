"""Sounds of your own: in a folder for each class, or with a table of labels, or with a table of events.

Where nothing says which clips are for validation and testing, a tenth of each class is held out for each; see
`split_by_name` for how. Where there are clips for testing, but none for validation, these come from the training clips.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ...tables import read_events
from ..clips import SPLITS, Corpus, make_clip
from .listing import (
    by_split,
    checked_split,
    class_folders,
    existing,
    find_listed,
    make_corpus,
    make_strong_clip,
    read_table,
)


def load_folders(
    location: str | os.PathLike[str],
    split: str,
    *,
    group_pattern: str | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    split_seed: int = 0,
) -> Corpus:
    """A folder for each class, named after it; or such folders inside `train/`, and perhaps `validation/`, `test/`.

    Folders whose names begin with `_` or `.` are no classes.

    Args:
        group_pattern: A regular expression for the part of a file's name that says which recording, speaker or place
            it is from, such as "^[^_]+": what shares it is not divided between splits.
        validation_share: Of the recordings of each class.
        test_share: Of the recordings of each class.
        split_seed: Another seed holds out other recordings.
    """
    folder = existing(location)
    split_folders = _split_folders(folder)
    found = [
        (path, label, name)
        for name, inside in (split_folders or {"train": folder}).items()
        for label, paths in class_folders(inside).items()
        for path in paths
    ]
    return make_corpus(
        [make_clip(path.relative_to(folder).as_posix(), path, [label]) for path, label, _ in found],
        split,
        [name for _, _, name in found],
        groups=group_pattern and [_group(path, group_pattern) for path, _, _ in found],
        validation_share=validation_share,
        test_share=test_share,
        split_seed=split_seed,
    )


def _split_folders(location: Path) -> dict[str, Path]:
    """Folders that are splits, and not classes: all are named like splits, and one is for training."""
    folders = sorted(path for path in location.iterdir() if path.is_dir() and path.name[0] not in "._")
    named = by_split({path.name: path for path in folders})
    return named if "train" in named and len(named) == len(folders) else {}


def _group(path: Path, pattern: str) -> str:
    try:
        match = re.search(pattern, path.name)
    except re.error as error:
        raise ValueError(f"group_pattern is {pattern!r}, which is no regular expression ({error}).") from error
    if match is None:
        raise ValueError(f"group_pattern {pattern!r} does not occur in the name {path.name}; it must in every one.")
    return match.group(1) if match.groups() else match.group()


def load_table(
    location: str | os.PathLike[str],
    split: str,
    *,
    audio_folder: str | os.PathLike[str] | None = None,
    separator: str = ";",
    group_column: str | None = None,
    label_names: Sequence[str] | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    split_seed: int = 0,
    skip_missing: bool = False,
) -> Corpus:
    """A table (.csv, or .tsv with tabs) with the columns `filename`, `label` or `labels`, and perhaps `split`.

    `label` is one class, as it stands; `labels` are any number, with `separator` between them, and an empty cell says
    that there are none. In `split`, an empty cell says train.

    Args:
        audio_folder: Where the sounds are; by default beside the table.
        separator: Not a comma, since names have commas.
        group_column: Clips that share a value of this column are not divided between splits.
        label_names: The classes, in the order in which a new model numbers them; by default sorted.
        validation_share: Of the recordings of each class.
        test_share: Of the recordings of each class.
        split_seed: Another seed holds out other recordings.
        skip_missing: Go on where sounds are listed that are not there.
    """
    table = existing(location)
    rows = read_table(table, ["filename", *([group_column] if group_column else [])])
    column = next((name for name in ("label", "labels") if rows and name in rows[0]), None)
    if column is None:
        raise ValueError(f"{table} needs rows, and the column label (one class) or labels (classes with {separator}).")
    paths = find_listed((row["filename"] for row in rows), _audio_folder(table, audio_folder), table, skip_missing)
    rows = [row for row in rows if row["filename"] in paths]
    labels = [[row[column]] if column == "label" else row[column].split(separator) for row in rows]
    return make_corpus(
        [
            make_clip(row["filename"], paths[row["filename"]], _stripped(own))
            for row, own in zip(rows, labels, strict=True)
        ],
        split,
        [checked_split(row.get("split") or "train") for row in rows],
        label_names=label_names,
        groups=group_column and [row[group_column] for row in rows],
        validation_share=validation_share,
        test_share=test_share,
        split_seed=split_seed,
    )


def _audio_folder(table: Path, audio_folder: str | os.PathLike[str] | None) -> Path:
    return existing(audio_folder) if audio_folder is not None else table.parent


def _stripped(names: Sequence[str]) -> list[str]:
    return [name.strip() for name in names if name.strip()]


def load_events(
    location: str | os.PathLike[str],
    split: str,
    *,
    audio_folder: str | os.PathLike[str] | None = None,
    label_names: Sequence[str] | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    split_seed: int = 0,
    skip_missing: bool = False,
) -> Corpus:
    """A tab-separated table with the columns `filename, onset, offset, event_label`; a bare file name is silent.

    Args:
        location: The table; or a folder with `train.tsv`, and perhaps `validation.tsv` and `test.tsv`.
        audio_folder: Where the sounds are; by default beside the table, or in the folder `audio` there.
        label_names: The classes, in the order in which a new model numbers them; by default sorted.
        validation_share: Of the clips.
        test_share: Of the clips.
        split_seed: Another seed holds out other clips.
        skip_missing: Go on where sounds are listed that are not there.
    """
    clips, given = [], []
    for name, table in _event_tables(existing(location)).items():
        beside = table.parent / "audio" if (table.parent / "audio").is_dir() else table.parent
        events = read_events(table)
        paths = find_listed(events, existing(audio_folder or beside), table, skip_missing)
        clips += [make_strong_clip(filename, path, events[filename]) for filename, path in paths.items()]
        given += [name] * len(paths)
    return make_corpus(
        clips,
        split,
        given,
        label_names=label_names,
        validation_share=validation_share,
        test_share=test_share,
        split_seed=split_seed,
    )


def _event_tables(location: Path) -> dict[str, Path]:
    if location.is_file():
        return {"train": location}
    existing(location, "train.tsv")
    return {name: location / f"{name}.tsv" for name in SPLITS if (location / f"{name}.tsv").exists()}


__all__ = ["load_events", "load_folders", "load_table"]
