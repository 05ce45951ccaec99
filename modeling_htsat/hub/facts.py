"""`facts.yaml`: what no program can know of a model, such as what it is for; checked before a card is made of it."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

FACTS_FILE = "facts.yaml"
TASKS = ("audio-classification", "sound-event-detection")
KINDS: dict[type, str] = {list: "a list", dict: "lines of `key: value`"}
DATASET_KEYS = {"name", "id"}
FIGURE_KEYS = {"metric", "dataset", "value"}


@dataclass
class Facts:
    """The keys of `facts.yaml`; beside a trained model none is needed.

    The first five make a card of a preset that no weights lie beside; their paths are relative to the file.
    """

    preset: str | None = None  # folder with config.json
    task: str | None = None
    recipe: str | None = None
    results: str | None = None  # default: results.json beside the facts
    labels: list[str] = field(default_factory=list)  # where they are not the preset's

    repo: str | None = None  # its name on the Hub, once it is there
    summary: str | None = None
    license: str | None = None  # as the Hub writes it: mit
    license_note: str = ""
    dataset: dict[str, str] = field(default_factory=dict)  # that it learns from: name, and id on the Hub
    dataset_note: str = ""
    evaluated_on: dict[str, str] = field(default_factory=dict)
    intended_use: str | None = None
    limits: list[str] = field(default_factory=list)
    paper: list[dict[str, Any]] = field(default_factory=list)  # figures with metric, dataset, value


NEEDED_OF_A_PRESET = ("task", "summary", "license", "dataset", "intended_use")


def read_facts(path: Path) -> Facts:
    """The facts of a file, none where there is no such file; what is missing or wrong is one sentence."""
    if not path.is_file():
        return Facts()
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be lines of `key: value`.")
    _refuse_unknown(path, values, [each.name for each in fields(Facts)])
    return _checked(path, Facts(**{name: value for name, value in values.items() if value is not None}))


def _refuse_unknown(path: Path, values: Mapping[str, Any], known: list[str]) -> None:
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
            raise ValueError(f"{path} has the unknown key {name!r}; {remedy}")


def _checked(path: Path, facts: Facts) -> Facts:
    for each in fields(Facts):
        usual, value = getattr(Facts(), each.name), getattr(facts, each.name)
        kind, wanted = next((kind for kind in KINDS.items() if isinstance(usual, kind[0])), (str, "text"))
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{each.name} in {path} must be {wanted}.")
    missing = [name for name in NEEDED_OF_A_PRESET if facts.preset and not getattr(facts, name)]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; a card of a preset needs them.")
    if facts.task not in (None, *TASKS):
        raise ValueError(f"task in {path} is {facts.task!r}; it must be {' or '.join(TASKS)}.")
    for name in ("dataset", "evaluated_on"):
        _check_keys(path, name, getattr(facts, name), {"name"}, DATASET_KEYS)
    for figure in facts.paper:
        _check_keys(path, "paper", figure, FIGURE_KEYS, FIGURE_KEYS)
    return facts


def _check_keys(path: Path, name: str, values: Any, needed: set[str], known: set[str]) -> None:
    keys = set(values) if isinstance(values, dict) else {""}
    if keys and not needed <= keys <= known:
        raise ValueError(f"{name} in {path} needs {', '.join(sorted(needed))} and takes {', '.join(sorted(known))}.")


__all__ = ["FACTS_FILE", "Facts", "read_facts"]
