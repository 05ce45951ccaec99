"""The names of AudioSet's 527 classes, and groups of classes that count as one."""

import csv
from pathlib import Path
from typing import Any

import yaml

from ..events_htsat import EventDecoding
from ..tables import in_one_line

HERE = Path(__file__).parent
MAX_CLASS = 99_999  # a range to beyond is a slip of the pen, and would fill the memory


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
        # All values as text: YAML's own dates and tags raise whatever they like, and none of them is needed.
        entries = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable YAML file of label groups: {in_one_line(error)}") from error
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"{path} holds no label groups; write one `name: {{classes: 0-7}}` on each line.")
    groups = {name: _read_indices(path, name, entry) for name, entry in entries.items()}
    try:
        return groups, EventDecoding(threshold={name: _threshold(entries[name]) for name in groups})
    except ValueError as error:
        raise ValueError(f"{path}: {in_one_line(error)}") from error


def _read_indices(path: Path, name: Any, entry: Any) -> list[int]:
    """`"310, 388-402"` as the list of its 16 indices."""
    group = in_one_line(name, 80)
    if not isinstance(entry, dict) or "classes" not in entry or set(entry) - {"classes", "threshold"}:
        found = in_one_line(", ".join(entry), 80) if isinstance(entry, dict) else in_one_line(_as_text(entry), 80)
        raise ValueError(
            f"{path}: group {group!r} is {found!r}; it needs `classes`, may have `threshold`, and no more."
        )
    indices: list[int] = []
    classes = _as_text(entry["classes"])
    for part in classes.split(","):
        first, _, last = part.strip().partition("-")
        numbers = [int(text) for text in (first, last or first) if _is_class(text.strip())]
        if len(numbers) < 2 or numbers[0] > numbers[1]:
            raise ValueError(
                f"{path}: the classes of {group!r} are {in_one_line(classes, 80)!r}; write them like `310, 388-402`."
            )
        indices += range(numbers[0], numbers[1] + 1)
    return indices


def _threshold(entry: dict[str, Any]) -> float:
    text = _as_text(entry.get("threshold", "0.5"))
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"the threshold {in_one_line(text, 80)!r} is no number.") from None


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else "a list"  # whose references to itself could be printed without end


def _is_class(text: str) -> bool:
    return text.isdecimal() and len(text) <= len(str(MAX_CLASS)) and int(text) <= MAX_CLASS


__all__ = ["audioset_labels", "load_label_groups"]
