"""The clock: contestants take turns in one process, and what counts are ratios of their medians."""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MEGABYTE = 1e6
Runs = dict[str, Callable[[], Any]]
Samples = dict[str, list[float]]


@dataclass
class Row:
    """One line of the tables.

    section, case: what was measured ("encoder"), and how ("batch 4, 2 threads").
    contestant: who; what is this project's begins with "ours".
    value, unit: None for a contestant that could not take part, and then `note` says why.
    ratio: its value over that of ours in the same case: 2 is twice as slow, or twice as large, as ours.
    spread: half the middle half of its samples, over their median: how far the value is to be trusted.
    difference: the largest one of its outputs to ours, where both compute the same.
    """

    section: str
    case: str
    contestant: str
    value: float | None
    unit: str
    ratio: float | None = None
    spread: float | None = None
    difference: float | None = None
    note: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.section, self.case, self.contestant

    @property
    def is_ours(self) -> bool:
        return self.contestant.startswith("ours")


@dataclass
class Pace:
    """How long a case may take: rounds until the budget is spent, but no fewer and no more than so many."""

    budget_seconds: float
    fewest_rounds: int = 3
    most_rounds: int = 40

    def rounds(self, seconds_of_one: float) -> int:
        return min(max(int(self.budget_seconds / seconds_of_one), self.fewest_rounds), self.most_rounds)


def interleave(runs: Runs, pace: Pace, synchronize: Callable[[], None] = lambda: None) -> Samples:
    """Seconds of every call. Whatever else the machine does meets all contestants alike, as they take turns."""

    def seconds_of(run: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        run()
        synchronize()  # a GPU is still at work when the call returns
        return time.perf_counter() - begin

    names = list(runs)
    samples: Samples = {name: [] for name in names}
    once = sum(seconds_of(run) for run in runs.values())  # not counted: the first call sets things up
    dice = random.Random(0)
    for _ in range(pace.rounds(once)):
        dice.shuffle(names)  # or one would always follow the same other, and find caches and memory as that left them
        for name in names:
            samples[name].append(seconds_of(runs[name]))
    return samples


def spread_of(samples: list[float]) -> float | None:
    if len(samples) < 3:  # quartiles of less would be made up
        return None
    lower, median, upper = statistics.quantiles(samples, n=4)
    return (upper - lower) / 2 / median


def make_rows(
    section: str,
    case: str,
    samples: Samples,
    unit: str = "ms a clip",
    reference: str = "ours",
    differences: dict[str, float] | None = None,
    notes: dict[str, str] | None = None,
) -> list[Row]:
    """A row for every contestant: its median, and the ratio of that to the reference's median.

    A contestant without samples could not take part. Without the reference there are no ratios.
    """
    medians = {name: statistics.median(values) for name, values in samples.items() if values}
    ours = medians.get(reference)
    return [
        Row(
            section,
            case,
            name,
            medians.get(name),
            unit,
            ratio=medians[name] / ours if name in medians and ours else None,
            spread=spread_of(values),
            difference=(differences or {}).get(name),
            note=(notes or {}).get(name, ""),
        )
        for name, values in samples.items()
    ]


def per_clip(samples: Samples, batch: int) -> Samples:
    """Seconds a batch as milliseconds a clip."""
    return {name: [1e3 * seconds / batch for seconds in values] for name, values in samples.items()}
