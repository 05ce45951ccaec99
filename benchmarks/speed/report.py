"""What was measured, for people and for machines: tables in Markdown, JSON, and what changed since the last table."""

import json
import platform
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import modeling_htsat

from .clock import Row
from .contestants import AST, CLAP, FLOOR, TORCHLIBROSA
from .recordings import TEN_SECONDS

TOLERANCE = 0.05  # medians of interleaved samples repeat within 2 to 3 % on a quiet machine
LIBRARIES = ("torch", "transformers", "torchlibrosa", "numpy")
# Section, case, contestant: the least ratio that this project wants, or the most, if "at most".
GOALS = {
    ("front end", "batch 4, 2 threads", TORCHLIBROSA): ("at least", 6.0),
    ("front end", "batch 4, 2 threads", "ClapFeatureExtractor"): ("at least", 10.0),
    ("encoder", "batch 4, 2 threads", CLAP): ("at least", 1.8),
    ("encoder beside AST", "batch 4, 2 threads", AST): ("at least", 10.0),
    ("encoder", "batch 4, 2 threads", f"{FLOOR}, torch.mm"): ("at least", 0.75),
    ("encoder", "batch 4, 2 threads", f"{FLOOR}, oneDNN"): ("at least", 0.75),
    ("training step", "batch 4, 2 threads", CLAP): ("at least", 1.5),
    ("training memory", "batch 4", CLAP): ("at least", 1.0),
    # At batch 4, more than a third is weights, gradients and AdamW, which no checkpointing saves.
    ("training memory", "batch 4", "ours, checkpointing"): ("at most", 0.5),
    ("training memory", "batch 16", "ours, checkpointing"): ("at most", 0.5),
    ("long recordings", "1 h, 2 threads", TEN_SECONDS): ("at least", 0.9),
}
LEGEND = (
    "`ratio`: the contestant's median over that of ours in the same case, all having taken turns in one process: 2 is "
    "twice as slow, or twice as large. `±`: half of the middle half of its samples over their median. `difference`: "
    "the largest one of its outputs to ours. `floor`: the model's own arithmetic at the rate of a large product of "
    "matrices, by each of PyTorch's libraries. Weights are random, and the same in `ClapAudioModel` and ours. "
    "A row may be set against rows of its own case alone."
)


@dataclass
class Record:
    """A whole run: the rows, and all that one must know to read them."""

    rows: list[Row]
    date: str
    hardware: str
    versions: dict[str, str]

    @classmethod
    def load(cls, path: Path) -> "Record | None":
        if not path.exists():
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "rows": [Row(**row) for row in values["rows"]]})

    def save(self, path: Path):
        write(path, json.dumps(asdict(self), indent=1) + "\n")


def write(path: Path, text: str):
    """Under a temporary name first, so that a run that is killed leaves the last table as it was."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def new_record(rows: list[Row], device: str) -> Record:
    versions = {"modeling-htsat": modeling_htsat.__version__, **versions_of(LIBRARIES)}
    return Record(rows, date.today().isoformat(), hardware_of(device), versions)


def hardware_of(device: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = named[0] if named else platform.processor() or platform.machine()
    cores = f"{len(named)} x {processor}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{torch.cuda.get_device_name()}; {cores}" if device == "cuda" else cores


def versions_of(libraries: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in libraries:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


# ── tables ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def number(value: float | None, digits: int = 3) -> str:
    """Three digits that count, without an exponent."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def goal_of(row: Row) -> str:
    """The goal, and whether it is reached."""
    if row.key not in GOALS or row.ratio is None:
        return ""
    word, bound = GOALS[row.key]
    is_met = row.ratio >= bound if word == "at least" else row.ratio <= bound
    return f"{word} {bound:g}: {'reached' if is_met else '**missed**'}"


def table_of(rows: Iterable[Row]) -> str:
    """One section."""
    lines = ["| case | contestant | median | ± | ratio | goal | difference | |", "| --- " * 8 + "|"]
    for row in rows:
        median = "–" if row.value is None else f"{number(row.value)} {row.unit}"
        spread = "" if row.spread is None else f"{100 * row.spread:.0f} %"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        difference = "" if row.difference is None else f"{row.difference:.1e}"
        cells = (row.case, row.contestant, median, spread, ratio, goal_of(row), difference, row.note)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown_of(record: Record, command: str) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    head = f"`{command}`, {record.date}: {record.hardware}; {versions}."
    parts = ["# How fast", f"Written by {head}", LEGEND]
    for section in dict.fromkeys(row.section for row in record.rows):
        rows = [row for row in record.rows if row.section == section]
        parts += [f"## {section[0].upper()}{section[1:]}", table_of(rows)]
    return "\n\n".join(parts) + "\n"


# ── what changed ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Change:
    """How a row of ours stands to the last table: `factor` 1.1 is 10 % slower, or larger, once that is taken off which
    the peers in the same case say of the machine."""

    row: Row
    factor: float

    @property
    def is_worse(self) -> bool:
        return self.factor > 1 + TOLERANCE

    @property
    def is_better(self) -> bool:
        return self.factor < 1 - TOLERANCE


def changes(rows: list[Row], last: list[Row]) -> Iterator[Change]:
    """Every row of ours that the last table has, too.

    Peers have not changed: if the one in the middle takes 1.2 times as long as it did, then the machine does. Where
    there are no peers (memory of ours alone, long recordings), the figure stands as it is.
    """
    before = {row.key: row.value for row in last if row.value}
    factors = {row.key: row.value / before[row.key] for row in rows if row.value and row.key in before}
    for row in rows:
        if row.is_ours and row.key in factors:
            peers = [
                factors[other.key]
                for other in rows
                if (other.section, other.case) == (row.section, row.case) and not other.is_ours and other.key in factors
            ]
            yield Change(row, factors[row.key] / (statistics.median(peers) if peers else 1))


def comparison_of(new: Record, last: Record | None) -> str:
    """The difference to the last table, in lines to be printed."""
    if last is None:
        return "There is no last table to compare with."
    lines = [f"Since {last.date}, where the peers in the same case tell how the machine has changed:"]
    found = list(changes(new.rows, last.rows))
    for change in found:
        word = "WORSE" if change.is_worse else "better" if change.is_better else ""
        row = change.row
        lines.append(f"{change.factor - 1:+7.0%}  {row.section}, {row.case}, {row.contestant}  {word}".rstrip())
    counts = {word: sum(getattr(change, f"is_{word}") for change in found) for word in ("worse", "better")}
    lines.append(f"{counts['worse']} of {len(found)} worse and {counts['better']} better by over {TOLERANCE:.0%}.")
    for what, now, then in differences_between(new, last):
        lines.append(f"{what} differs: {now}; it was {then}.")
    return "\n".join(lines)


def differences_between(new: Record, last: Record) -> Iterator[tuple[str, Any, Any]]:
    """Other hardware, and other libraries."""
    if new.hardware != last.hardware:
        yield "The machine", new.hardware, last.hardware
    for name, now in new.versions.items():
        if now != last.versions.get(name):
            yield name, now, last.versions.get(name)
