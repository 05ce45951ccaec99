"""Events from frame scores, frame targets from events, and the time axis of repeated, grouped or shifted clips.

A score says how probable a sound is in one time step; an event says that it lasts from an onset to an offset. All here
are functions of arrays, and every time is in seconds. Axes, as they appear in shape comments:
    steps       time steps of the model, 32 for ten seconds; step k covers [k * step_seconds, (k + 1) * step_seconds)
    classes     the sounds that can be told apart
    runs        stretches of consecutive steps in one class that may become events
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

# Far below a sample at any sampling rate, far above the rounding of a sum of seconds.
ROUNDING_SECONDS = 1e-9
# Median windows held at once, in numbers: 16 MiB as 32-bit floats.
MEDIAN_BLOCK = 4 * 2**20

PerClass: TypeAlias = float | Sequence[float] | Mapping[str, float]


@dataclass(frozen=True)
class EventDecoding:
    """How scores become events; each value is one number, or one per class as a sequence or as {label: value}.

    threshold: an event begins where the score is above it. Above, not at: so do the authors and the DESED tools.
    stay_threshold: the event lasts while the score is above this lower one (hysteresis). None: the same as `threshold`.
    median_filter_seconds: the scores are smoothed first, over the nearest odd number of steps (see `decode_events`).
    max_gap_seconds: events of one class that lie this close together are merged.
    min_event_seconds: shorter events are dropped, after merging.
    """

    threshold: PerClass = 0.5
    stay_threshold: PerClass | None = None
    median_filter_seconds: PerClass = 0.0
    max_gap_seconds: PerClass = 0.0
    min_event_seconds: PerClass = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None or field.name != "stay_threshold":
                numbers = _to_plain_numbers(field.name, value)
                _refuse_out_of_range(field.name, numbers)
                object.__setattr__(self, field.name, numbers)  # the usual way in a frozen dataclass
        if self.stay_threshold is not None:
            _refuse_stay_above_start(self.stay_threshold, self.threshold)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EventDecoding":
        """Read what `to_dict` wrote, for example `config.event_decoding`."""
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(names)):
            raise ValueError(f"Event decoding has no value called {', '.join(unknown)}; it knows {', '.join(names)}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain numbers, lists and dicts, as JSON has them; what is None is left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {name: value for name, value in plain.items() if value is not None}

    def for_classes(self, num_classes: int, labels: Sequence[Any] | None = None) -> dict[str, np.ndarray]:
        """Return every value as an array (classes,). Values given by label need `labels`."""
        if labels is not None and len(labels) != num_classes:
            raise ValueError(f"The scores have {num_classes} classes and {len(labels)} labels came with them.")
        values = {name: _spread(name, value, num_classes, labels) for name, value in self.to_dict().items()}
        values.setdefault("stay_threshold", values["threshold"])
        return values


def _to_plain_numbers(name: str, value: Any) -> PerClass:
    """Make Python floats of numbers that may come from numpy, a list or JSON; a sequence becomes a tuple."""
    try:
        if isinstance(value, Mapping):
            return {label: float(number) for label, number in value.items()}
        if np.ndim(value):
            return tuple(float(number) for number in value)
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} is {value!r}; give one number, a number per class, or {{label: number}}.") from error


def _refuse_out_of_range(name: str, value: Any) -> None:
    highest = 1.0 if name.endswith("threshold") else np.finfo(float).max
    # Written so that NaN, which is neither above nor below anything, is refused too.
    numbers = value.values() if isinstance(value, Mapping) else np.atleast_1d(value).tolist()
    wrong = [number for number in numbers if not 0.0 <= number <= highest]
    if wrong:
        need = "probabilities from 0 to 1" if highest == 1.0 else "times of 0 seconds or more"
        raise ValueError(f"{name} must hold {need} and holds {wrong[0]}.")


def _refuse_stay_above_start(stay: Any, start: Any) -> None:
    """Compare class by class; a single number holds for every class."""
    lists = [value for value in (stay, start) if not isinstance(value, float)]
    keys: list[set] = [set(value) if isinstance(value, Mapping) else set(range(len(value))) for value in lists]
    keys = keys or [{None}]
    if keys[0] != keys[-1]:
        raise ValueError("threshold and stay_threshold name different classes; give both for the same classes.")
    for key in keys[0]:
        low, high = (value if isinstance(value, float) else value[key] for value in (stay, start))
        if low > high:
            of_class = "" if key is None else f" for class {key!r}"
            raise ValueError(f"stay_threshold {low} is above threshold {high}{of_class}; it must not be higher.")


def _spread(name: str, value: Any, num_classes: int, labels: Sequence[Any] | None) -> np.ndarray:
    if isinstance(value, Mapping):
        if labels is None:
            raise ValueError(f"{name} is given by label; pass the `labels` of the scores as well.")
        if different := sorted(set(value) ^ set(labels), key=str):
            raise ValueError(f"{name} and the labels of the scores differ in {different[:5]}; name every label once.")
        return np.array([value[label] for label in labels])
    if isinstance(value, list) and len(value) != num_classes:
        raise ValueError(f"{name} holds {len(value)} numbers and the scores have {num_classes} classes; give one each.")
    return np.broadcast_to(np.array(value, dtype=float), num_classes)


class Runs(NamedTuple):
    """Stretches of consecutive steps, one entry each, in the order of classes and then of time."""

    class_index: np.ndarray
    onset: np.ndarray
    offset: np.ndarray
    peak: np.ndarray

    def select(self, which: np.ndarray) -> "Runs":
        return Runs(*(column[which] for column in self))


def decode_events(
    scores: np.ndarray,
    step_seconds: float | None,
    decoding: EventDecoding,
    labels: Sequence[Any] | None = None,
    duration_seconds: float | None = None,
    step_edges_seconds: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Turn probabilities (steps, classes) into events, sorted by onset and then by label.

    1. Steps beyond `duration_seconds` are left out, and the step that holds it ends there.
    2. A median filter smooths the scores of each class: as many steps as come nearest to `median_filter_seconds`, an
       even number raised to the next odd one. Before the first and after the last step their scores are repeated.
    3. A run is a stretch above `stay_threshold`; runs that nowhere rise above `threshold` are dropped.
    4. Gaps up to `max_gap_seconds` are closed, then events shorter than `min_event_seconds` are dropped.

    An event's score is its highest smoothed score: of the smoothed ones, so that it is always above the threshold.
    Without `labels` an event's label is its class index. Steps of uneven length are described by `step_edges_seconds`
    (steps + 1,) in place of `step_seconds`; the filter then counts steps of the median length.
    """
    scores = _read_probabilities(scores)
    edges = _place_step_edges(len(scores), step_seconds, duration_seconds, step_edges_seconds)
    num_heard = int(np.sum(np.diff(edges) > ROUNDING_SECONDS))
    if num_heard == 0 or scores.shape[1] == 0:
        return []
    values = decoding.for_classes(scores.shape[1], labels)
    usual_step_seconds = step_seconds if step_seconds is not None else np.median(np.diff(edges[: num_heard + 1]))
    filter_steps = count_filter_steps(values["median_filter_seconds"], usual_step_seconds)
    smooth = median_filter_scores(scores[:num_heard], filter_steps)
    # In the type of the scores, as a 32-bit 0.6 is above a 64-bit 0.6.
    runs = _find_runs(smooth, values["stay_threshold"].astype(smooth.dtype), edges)
    runs = runs.select(runs.peak > values["threshold"].astype(smooth.dtype)[runs.class_index])
    runs = _close_gaps(runs, values["max_gap_seconds"])
    shortest_seconds = values["min_event_seconds"][runs.class_index] - ROUNDING_SECONDS
    return _name_events(runs.select(runs.offset - runs.onset >= shortest_seconds), labels)


def _read_probabilities(scores: np.ndarray) -> np.ndarray:
    scores = _read_scores(scores)
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float32)
    if scores.size and not (scores.min() >= 0.0 and scores.max() <= 1.0):
        raise ValueError(
            f"Events are decoded from probabilities from 0 to 1 and received scores from {scores.min()} to "
            f"{scores.max()}. If these are logits, apply the sigmoid first."
        )
    return scores


def _read_scores(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores)
    if scores.ndim != 2:
        raise ValueError(f"Frame scores have the shape (steps, classes) and came as {scores.shape}; pass one clip.")
    return scores


def _place_step_edges(
    num_steps: int,
    step_seconds: float | None,
    duration_seconds: float | None,
    step_edges_seconds: np.ndarray | None,
) -> np.ndarray:
    """Return where each step begins and the last one ends, (steps + 1,); nothing lies beyond the duration."""
    if (step_seconds is None) == (step_edges_seconds is None):
        raise ValueError("Give either step_seconds or step_edges_seconds, and not both.")
    if step_seconds is not None:
        step_edges_seconds = np.arange(num_steps + 1) * step_seconds
    edges = np.asarray(step_edges_seconds, dtype=float)
    if edges.shape != (num_steps + 1,) or not np.all(np.diff(edges) > 0):
        raise ValueError(f"{num_steps} steps need {num_steps + 1} edges in seconds, each later than the one before.")
    if duration_seconds is None:
        return edges
    if not duration_seconds > 0:
        raise ValueError(f"duration_seconds is {duration_seconds}; a clip lasts longer than 0 seconds.")
    return np.minimum(edges, duration_seconds)


def count_filter_steps(filter_seconds: np.ndarray, step_seconds: float) -> np.ndarray:
    """Return odd numbers of steps; 1 leaves the scores as they are."""
    # A filter of 1.5 steps must not become 1 or 3 by the rounding of a difference of edges.
    return np.floor((filter_seconds + ROUNDING_SECONDS) / step_seconds + 0.5).astype(int) | 1


def median_filter_scores(scores: np.ndarray, filter_steps: int | np.ndarray) -> np.ndarray:
    """Smooth scores (steps, classes) over an odd number of steps, one or one per class; edge scores are repeated."""
    filter_steps = np.broadcast_to(filter_steps, scores.shape[1])
    if np.any((filter_steps < 1) | (filter_steps % 2 == 0)):
        raise ValueError(f"A median filter spans an odd number of steps and was given {filter_steps.tolist()[:5]}.")
    filtered = scores.copy()
    for length in np.unique(filter_steps[filter_steps > 1]).tolist():
        classes = np.flatnonzero(filter_steps == length)
        classes_at_once = max(1, MEDIAN_BLOCK // (len(scores) * length))
        for first in range(0, len(classes), classes_at_once):
            some = classes[first : first + classes_at_once]
            filtered[:, some] = _running_median(np.ascontiguousarray(scores[:, some].T), length).T
    return filtered


def _running_median(rows: np.ndarray, length: int) -> np.ndarray:
    half = length // 2
    padded = np.pad(rows, ((0, 0), (half, half)), mode="edge")
    windows = sliding_window_view(padded, length, axis=1)  # (classes, steps, length)
    return np.partition(windows, half, axis=-1)[..., half]


def _find_runs(scores: np.ndarray, stay: np.ndarray, edges: np.ndarray) -> Runs:
    num_steps, num_classes = scores.shape
    # All classes one after the other; a silent step behind each, so that no run reaches into the next class.
    flat_scores = np.zeros((num_classes, num_steps + 1), dtype=scores.dtype)
    flat_scores[:, :-1] = scores.T
    active = np.zeros((num_classes, num_steps + 1), dtype=bool)
    active[:, :-1] = (scores > stay).T
    changes = np.flatnonzero(np.diff(active.ravel(), prepend=False))  # on, off, on, off, ...
    peak = np.maximum.reduceat(flat_scores.ravel(), changes)[::2]
    class_index, first_step = np.divmod(changes[::2], num_steps + 1)
    return Runs(class_index, edges[first_step], edges[changes[1::2] % (num_steps + 1)], peak)


def _close_gaps(runs: Runs, max_gap_seconds: np.ndarray) -> Runs:
    if len(runs.peak) == 0:
        return runs
    gap_seconds = runs.onset[1:] - runs.offset[:-1]
    apart = gap_seconds > max_gap_seconds[runs.class_index[1:]] + ROUNDING_SECONDS
    other_class = runs.class_index[1:] != runs.class_index[:-1]
    firsts = np.flatnonzero(np.concatenate([[True], apart | other_class]))
    lasts = np.append(firsts[1:], len(runs.peak)) - 1
    peak = np.maximum.reduceat(runs.peak, firsts)
    return Runs(runs.class_index[firsts], runs.onset[firsts], runs.offset[lasts], peak)


def _name_events(runs: Runs, labels: Sequence[Any] | None) -> list[dict[str, Any]]:
    events = [
        {"label": index if labels is None else labels[index], "onset": onset, "offset": offset, "score": peak}
        for index, onset, offset, peak in zip(*(column.tolist() for column in runs), strict=True)
    ]
    return sorted(events, key=lambda event: (event["onset"], event["label"]))


def events_to_frames(
    events: Iterable[Mapping[str, Any]],
    num_steps: int,
    step_seconds: float | None,
    labels: Sequence[Any],
    duration_seconds: float | None = None,
    min_overlap: float = 0.5,
    step_edges_seconds: np.ndarray | None = None,
) -> np.ndarray:
    """Turn events into training targets (steps, classes): 1 where an event covers the step, 0 elsewhere.

    An event covers the steps of which it fills at least the part `min_overlap`: 0.5 is half a step, 0 is any overlap, 1
    is the whole step. So that no event vanishes, one that fills no step so far marks the one step that holds most of it
    (the earlier one of equals). What lies outside the steps is cut off: a training crop need not cut its events first.
    """
    if not 0.0 <= min_overlap <= 1.0:
        raise ValueError(f"min_overlap is {min_overlap}; it is a part of a step, from 0 to 1.")
    class_indexes = {label: index for index, label in enumerate(labels)}
    edges = _place_step_edges(num_steps, step_seconds, duration_seconds, step_edges_seconds)
    needed_seconds = np.maximum(min_overlap * np.diff(edges) - ROUNDING_SECONDS, ROUNDING_SECONDS)
    frames = np.zeros((num_steps, len(labels)), dtype=np.float32)
    for event in events:
        _refuse_strange_event(event, class_indexes)
        overlap_seconds = _measure_overlap(event["onset"], event["offset"], edges)  # (steps,)
        covered = overlap_seconds >= needed_seconds
        if overlap_seconds.max(initial=0.0) > 0.0 and not covered.any():
            covered[overlap_seconds.argmax()] = True
        frames[covered, class_indexes[event["label"]]] = 1.0
    return frames


def _refuse_strange_event(event: Mapping[str, Any], known_labels: Mapping[Any, int]) -> None:
    if event["label"] not in known_labels:
        raise ValueError(f"Event {dict(event)} has a label that is not among the {len(known_labels)} labels given.")
    if not event["onset"] < event["offset"]:
        raise ValueError(f"Event {dict(event)} does not end after it begins; correct or drop it.")


def _measure_overlap(begin: Any, end: Any, edges: np.ndarray) -> np.ndarray:
    """Return how much of [begin, end) lies in each step; columns of begins and ends give one row each."""
    return np.clip(np.minimum(end, edges[1:]) - np.maximum(begin, edges[:-1]), 0.0, None)


def average_repeats(scores: np.ndarray, num_repeats: int) -> np.ndarray:
    """Bring the scores of a clip that the model heard `num_repeats` times in a row back onto the clip's own time.

    The repeats fill the model's steps evenly, so one repeat lasts steps / num_repeats steps, which need not be whole.
    The clip gets that number rounded up, so that no detail is lost: ceil(steps / num_repeats) steps of equal length
    that fill the clip exactly. Each is the mean of the scores over its interval, weighted by overlap, in all repeats.
    The mean over time does not change, and where the steps divide evenly, each result is the mean of `num_repeats`
    scores. The new steps last the clip's duration / len(result).
    """
    scores = _read_scores(scores)
    num_steps = len(scores)
    if num_repeats < 1 or num_steps == 0:
        raise ValueError(f"Received {num_steps} steps of {num_repeats} repeats; both must be at least 1.")
    clip_steps = -(-num_steps // num_repeats)
    bounds = np.linspace(0, num_steps, num_repeats * clip_steps + 1)[:, None]
    overlap = _measure_overlap(bounds[:-1], bounds[1:], np.arange(num_steps + 1))  # (repeats * clip_steps, steps)
    weights = overlap / overlap.sum(axis=1, keepdims=True)
    weights = weights.reshape(num_repeats, clip_steps, num_steps).mean(axis=0)  # (clip_steps, steps)
    return (weights @ scores).astype(np.result_type(scores, np.float32))


def group_scores(scores: np.ndarray, groups: Mapping[str, Sequence[int]], reduce: str = "max") -> np.ndarray:
    """Make (steps, groups) of (steps, classes): AudioSet's 527 classes become the ten of DESED, for example.

    `groups` names the class indexes of each group, and its order is the order of the result. `reduce` is "max" or
    "mean". The authors compare each AudioSet class with its group's threshold and take the union over the group. That
    is the maximum compared with the threshold: max(a, b) > t exactly if a > t or b > t. Should the classes of a group
    need thresholds of their own, group decisions in place of scores: `group_scores(scores > thresholds, groups)`.
    """
    scores = _read_scores(scores)
    if reduce not in ("max", "mean"):
        raise ValueError(f'reduce is {reduce!r}; choose "max" or "mean".')
    reducer: Callable[..., np.ndarray] = np.max if reduce == "max" else np.mean
    for name, indexes in groups.items():
        if not indexes or min(indexes) < 0 or max(indexes) >= scores.shape[1]:
            raise ValueError(f"Group {name!r} is {list(indexes)}; name classes from 0 to {scores.shape[1] - 1}.")
    columns = [reducer(scores[:, list(indexes)], axis=1) for indexes in groups.values()]
    return np.stack(columns, axis=1)


def interleave_shifts(shifted_scores: Sequence[np.ndarray]) -> np.ndarray:
    """Make one fine series (passes * steps, classes) of N passes over a clip, pass i begun i / N of a step later.

    Counted in coarse steps, step k of pass i covers [k + i/N, k + 1 + i/N) and its centre is k + (i + 0.5 * N) / N. In
    order of time these are scores p = k * N + i with centres (p + N/2) / N. The fine step j covers [j/N, (j + 1)/N) and
    has its centre at (j + 0.5) / N, so it belongs to p = j - (N - 1)/2. For an odd N that is one score; for an even N
    it lies halfway between two scores, and their mean is taken. Beyond the first and the last score these are repeated.

    Pass i is the model's output for the clip without its first i / N of a step. The fine steps last step_seconds / N.
    Each score still tells of a whole coarse step around it: edges are placed more finely, short gaps are not opened.
    """
    passes = [_read_scores(scores) for scores in shifted_scores]
    if len({scores.shape for scores in passes}) != 1:
        raise ValueError(f"Shifted passes must have one shape and came as {[scores.shape for scores in passes]}.")
    num_passes, num_scores = len(passes), len(passes) * len(passes[0])
    in_order = np.stack(passes, axis=1).reshape(num_scores, -1)  # (steps, passes, classes) to (passes * steps, classes)
    fine = np.arange(num_scores)
    before = np.clip(fine - num_passes // 2, 0, num_scores - 1)
    after = np.clip(fine - (num_passes - 1) // 2, 0, num_scores - 1)
    return 0.5 * (in_order[before] + in_order[after])


__all__ = [
    "EventDecoding",
    "average_repeats",
    "count_filter_steps",
    "decode_events",
    "events_to_frames",
    "group_scores",
    "interleave_shifts",
    "median_filter_scores",
]
