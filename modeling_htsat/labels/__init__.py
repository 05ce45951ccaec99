"""The names of AudioSet's 527 classes, and groups of classes."""

import csv
from pathlib import Path

HERE = Path(__file__).parent


def audioset_labels() -> list[str]:
    """AudioSet's class names, in the order of its indices: the order of every published HTS-AT checkpoint."""
    with (HERE / "audioset.csv").open(encoding="utf-8", newline="") as file:
        return [row["display_name"] for row in csv.DictReader(file)]


__all__ = ["audioset_labels"]
