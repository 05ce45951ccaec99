"""From lists of files to a corpus: reading the lists, finding the files, choosing a split, naming the classes."""

import csv
import difflib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...audio_htsat import AUDIO_SUFFIXES, list_audio_files
from ...tables import in_one_line
from ..clips import SPLITS, Corpus, make_clip, rows_in_memory, split_by_name

logger = logging.getLogger(__name__)

Clip = Mapping[str, Any]

OTHER_SPLIT_NAMES = {
    "training": "train",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}


# ── what is on disk ───────────────────────────────────────────────────────────────────────────────────────────────────


def existing(location: str | os.PathLike[str], *inside: str) -> Path:
    """A path that must exist, and must hold what is named."""
    path = Path(location).expanduser()
    if not path.exists():
        raise ValueError(f"{path} does not exist; give the path of the corpus.")
    missing = [name for name in inside if not (path / name).exists()]
    if missing:
        raise ValueError(f"{path} lacks {' and '.join(missing)}; give the folder that holds this corpus, complete.")
    return path


def name_or_folder(location: str | os.PathLike[str]) -> str:
    """What `datasets` is to load: a folder where there is one, else a name on the Hub."""
    path = Path(location).expanduser()
    return str(path) if path.exists() else os.fspath(location)


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table with a header, which must have the given columns: tab-separated if its name ends in .tsv."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            rows, header = list(reader), reader.fieldnames or ()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num} cannot be read: {in_one_line(error)}.") from error
    missing = [column for column in columns if column not in header]
    if missing:
        found = in_one_line(", ".join(header)) or "nothing"
        raise ValueError(f"{path} lacks the column {' and '.join(missing)}; its header reads {found}.")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(f"{path}: row {number} and the header have different numbers of cells; correct the row.")
    return rows


def read_lines(path: Path) -> list[str]:
    """The lines of a text that hold something."""
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8.") from error


def read_description(path: Path) -> dict[str, Any]:
    """What `dataset_info.json` says of a corpus, in which `labels` are names, if they are there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or brackets in brackets without end
        raise ValueError(f"{path} cannot be read as JSON ({in_one_line(error)}); make the corpus anew.") from error
    labels = content.get("labels", []) if isinstance(content, dict) else None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{path} is no description of a corpus, with its `labels` as a list; make the corpus anew.")
    return content


def find_listed(names: Iterable[str], folder: Path, table: Path, skip_missing: bool = False) -> dict[str, Path]:
    """Where the files are that a table lists."""
    paths = {name: folder / name for name in names}
    found = {name: path for name, path in paths.items() if os.path.isfile(path)}  # False for names that are too long
    check_missing([name for name in paths if name not in found], len(paths), folder, table, skip_missing)
    return found


def check_missing(missing: Sequence[str], num_listed: int, folder: Path, table: Path, skip_missing: bool) -> None:
    if not missing:
        return
    some = in_one_line(", ".join(missing[:3])) + (", ..." if len(missing) > 3 else "")
    finding = f"{len(missing)} of the {num_listed} sounds that {table} lists are not in {folder}: {some}"
    if not skip_missing or len(missing) == num_listed:
        remedy = "put them there" if len(missing) == num_listed else "put them there, or say skip_missing=True"
        raise ValueError(f"{finding}; {remedy}.")
    logger.warning("%s; they are left out.", finding)


def class_folders(location: Path) -> dict[str, list[Path]]:
    """The sounds in each folder of a class, with those in its sub-folders; those called `_...` or `....` are none."""
    inside = [path for path in sorted(location.iterdir()) if path.name[0] not in "._"]
    folders = [path for path in inside if path.is_dir()]
    strays = [path for path in inside if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()]
    if strays or not folders:
        found = f"{strays[0].name}, which is in none" if strays else "none"
        raise ValueError(f"{location} must hold a folder for each class with its sounds; it has {found}.")
    return {folder.name: list_audio_files(folder) for folder in folders}  # says so where a folder is empty


# ── choices ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def nearest(name: str, known: Iterable[str]) -> str:
    """How an error ends that has to say what is known."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, 1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known) or 'none'}."


def checked_split(name: str) -> str:
    """The split that a folder or a table calls by this name."""
    split = OTHER_SPLIT_NAMES.get(name.strip().lower(), name.strip().lower())
    if split not in SPLITS:
        raise ValueError(f"{in_one_line(name, 80)!r} is the name of no split; {nearest(split, SPLITS)}")
    return split


def by_split(parts: Mapping[Any, Any]) -> dict[str, Any]:
    """What belongs to each split: the part of its name, else one of a name alike. Others are left out."""
    called = {str(name).lower(): part for name, part in parts.items()}
    alike = {split: called[name] for name, split in OTHER_SPLIT_NAMES.items() if name in called}
    return alike | {split: called[split] for split in SPLITS if split in called}


def given_names(text: str | Sequence[str]) -> list[str]:
    """An option that lists names: a list, or a text with commas between them."""
    if isinstance(text, str):
        return [name.strip() for name in text.split(",") if name.strip()]
    return [str(name) for name in text]


# ── the corpus ────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_strong_clip(video_id: str, path: Path, events: Sequence[tuple[float, float, str]]) -> dict[str, Any]:
    """A clip whose weak labels are the classes of its events."""
    return make_clip(video_id, path, sorted({label for _, _, label in events}), events=events)


def make_corpus(
    clips: Sequence[Clip],
    split: str,
    given_splits: Sequence[str] | None = None,
    *,
    label_names: Sequence[str] | None = None,
    **division: Any,
) -> Corpus:
    """One split of the clips of all splits, which together say what the classes are."""
    if repeated := repeated_names(clips):
        example = in_one_line(repeated[1], 80)
        raise ValueError(f"{repeated[0]} clips are listed more than once, {example!r} for example; list each once.")
    names = name_classes(clips, label_names)
    indices = indices_of_split(clips, split, given_splits, **division)
    return Corpus(rows_in_memory([clips[index] for index in indices]), names)


def repeated_names(clips: Iterable[Clip]) -> tuple[int, str] | None:
    """How many names come more than once, and one of them."""
    repeated = [name for name, count in Counter(clip["video_id"] for clip in clips).items() if count > 1]
    return (len(repeated), repeated[0]) if repeated else None


def name_classes(clips: Iterable[Clip], label_names: Sequence[str] | None = None) -> tuple[str, ...]:
    """All names that occur, sorted, unless a list says which there are, and in which order."""
    found: dict[str, str] = {}  # name -> a clip that has it
    for clip in clips:
        for name in [*(clip["human_labels"] or ()), *(event["event_label"] for event in clip["events"] or ())]:
            found.setdefault(name, clip["video_id"])
    if label_names is None:
        names = sorted(found)
    else:
        names = given_names(label_names)
        stranger = next((name for name in found if name not in set(names)), None)
        if stranger is not None:
            raise ValueError(
                f"The clip {in_one_line(found[stranger], 80)!r} has the label {in_one_line(stranger, 80)!r}, which is "
                f"no class of this corpus; {in_one_line(nearest(stranger, names))}"
            )
    if not names or "" in names or len(set(names)) < len(names):
        raise ValueError(f"Classes need names that are not empty, each once; these are {in_one_line(names)}.")
    return tuple(names)


def indices_of_split(
    clips: Sequence[Clip],
    split: str,
    given_splits: Sequence[str] | None = None,
    *,
    validation_share: float = 0.1,
    test_share: float = 0.0,
    split_seed: int = 0,
    groups: Sequence[str] | None = None,
) -> list[int]:
    """Which clips belong to a split: those that are given to it, or a share of the training clips.

    A share is taken for validation where nothing is given to it, and for testing where nothing is given to either.
    """
    given = ["train"] * len(clips) if given_splits is None else list(given_splits)
    if split in given and split != "train":
        return [index for index, name in enumerate(given) if name == split]
    shares = {"validation": 0.0 if "validation" in given else validation_share}
    shares["test"] = 0.0 if {"validation", "test"} & set(given) else test_share
    training = [index for index, name in enumerate(given) if name == "train"]
    of_training = split_by_name(
        [clips[index]["video_id"] for index in training],
        split,
        shares,
        split_seed,
        groups=None if groups is None else [groups[index] for index in training],
        classes=[_main_class(clips[index]) for index in training],
    )
    if not of_training:
        raise ValueError(_nothing_in(split, given, shares))
    return [training[index] for index in of_training]


def _main_class(clip: Clip) -> str:
    """The class for which a clip is divided: its first."""
    return next(iter(clip["human_labels"] or ()), "")


def _nothing_in(split: str, given: Sequence[str], shares: Mapping[str, float]) -> str:
    there = ", ".join(name for name in SPLITS if name in given) or "none"
    if split in shares and not shares[split]:
        return (
            f"This corpus has no clips for {split}, only for {there}; give it some, or where the corpus has the option "
            f"{split}_share, hold out a share of the training clips."
        )
    return f"No clips are left for {split} of {len(given)}; add clips, or choose other shares."


__all__ = [
    "by_split",
    "check_missing",
    "checked_split",
    "class_folders",
    "existing",
    "find_listed",
    "given_names",
    "indices_of_split",
    "make_corpus",
    "make_strong_clip",
    "name_classes",
    "name_or_folder",
    "nearest",
    "read_description",
    "read_lines",
    "read_table",
    "repeated_names",
]
