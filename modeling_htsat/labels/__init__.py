"""The names of AudioSet's 527 classes, and groups of classes that count as one."""

import csv
from pathlib import Path
from typing import Any

import yaml

from ..events_htsat import EventDecoding

HERE = Path(__file__).parent


def audioset_labels() -> list[str]:
    """AudioSet's class names, in the order of its indices: the order of every published HTS-AT checkpoint."""
    with (HERE / "audioset.csv").open(encoding="utf-8", newline="") as file:
        return [row["display_name"] for row in csv.DictReader(file)]


def load_label_groups(source: str | Path) -> tuple[dict[str, list[int]], EventDecoding]:
    """Groups of classes, and the threshold of each, from a YAML file; `"desed"` names the one that comes along.

    The file holds one line per group: `name: {classes: "310, 388-402", threshold: 0.18}`. Class indices are those of
    the model; a threshold that is left out is 0.5.
    """
    path = HERE / "desed.yaml" if str(source) == "desed" else Path(source)
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not a readable YAML file of label groups: {error}") from error
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"{path} holds no label groups; write one `name: {{classes: 0-7}}` on each line.")
    groups = {str(name): _read_indices(path, name, entry) for name, entry in entries.items()}
    thresholds = {str(name): entry.get("threshold", 0.5) for name, entry in entries.items()}
    try:
        return groups, EventDecoding(threshold=thresholds)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_indices(path: Path, name: Any, entry: Any) -> list[int]:
    """`"310, 388-402"` as the list of its 16 indices."""
    if not isinstance(entry, dict) or "classes" not in entry or set(entry) - {"classes", "threshold"}:
        raise ValueError(f"{path}: group {name!r} is {entry!r}; it needs `classes`, may have `threshold`, and no more.")
    indices: list[int] = []
    for part in str(entry["classes"]).split(","):
        first, _, last = part.strip().partition("-")
        numbers = [int(text) for text in (first, last or first) if text.strip().isdecimal()]
        if len(numbers) < 2 or numbers[0] > numbers[1]:
            raise ValueError(
                f"{path}: the classes of {name!r} are {entry['classes']!r}; write them like `310, 388-402`."
            )
        indices += range(numbers[0], numbers[1] + 1)
    return indices


__all__ = ["audioset_labels", "load_label_groups"]
