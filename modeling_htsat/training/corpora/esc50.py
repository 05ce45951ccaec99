"""ESC-50: 2,000 environmental sounds of five seconds in five folds; and ESC-10, which is a part of it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..clips import Corpus, make_clip
from .listing import existing, find_listed, make_corpus, read_table

FOLDS = range(1, 6)


def load_esc50(
    location: str | os.PathLike[str],
    split: str,
    *,
    fold: int = 1,
    validation_share: float = 0.1,
    split_seed: int = 0,
    skip_missing: bool = False,
) -> Corpus:
    """ESC-50 as its authors publish it (`meta/esc50.csv`, `audio/`), one fold of which is for testing.

    Validation clips come from the other four folds. To choose the best epoch by the test fold, as is common, is to
    report the luckiest one. Takes from one recording are never divided.

    Args:
        fold: The test fold, from 1 to 5.
        validation_share: Of the recordings of each class in the other folds.
        split_seed: Another seed holds out other recordings.
        skip_missing: Go on where sounds are listed that are not there.
    """
    if fold not in FOLDS:
        raise ValueError(f"The fold is {fold!r}; it must be a number from 1 to 5.")
    folder = existing(location, "meta/esc50.csv", "audio")
    table = folder / "meta" / "esc50.csv"
    rows = read_table(table, ("filename", "fold", "target", "category", "src_file"))
    paths = find_listed((row["filename"] for row in rows), folder / "audio", table, skip_missing)
    rows = [row for row in rows if row["filename"] in paths]
    return make_corpus(
        [make_clip(row["filename"], paths[row["filename"]], [row["category"]]) for row in rows],
        split,
        ["test" if row["fold"] == str(fold) else "train" for row in rows],
        label_names=_class_names(rows, table),
        validation_share=validation_share,
        split_seed=split_seed,
        groups=[row["src_file"] for row in rows],
    )


def _class_names(rows: Sequence[Mapping[str, str]], table: Path) -> list[str]:
    """The classes in the order of their numbers, of which ESC-10 has ten from among fifty."""
    try:
        return [name for _, name in sorted({(int(row["target"]), row["category"]) for row in rows})]
    except ValueError:
        raise ValueError(f"{table} has a target that is no number; download it again.") from None


__all__ = ["load_esc50"]
