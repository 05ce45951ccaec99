"""Find the decoding values with which the events of a validation set come out best, one class at a time.

The F1 of a class depends on that class's events alone. So one pass over thresholds and filters, with every class at the
same value, tells the F1 of all classes at all values, and each class then takes the best of its own. So it is with the
threshold to start, the one to stay and the filter together, and then with the gaps to close and the shortest event.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from .event_metrics import collar_f1, intersection_f1, segment_f1
from .events_htsat import EventDecoding, decode_events

METRICS: dict[str, Callable[..., dict[str, Any]]] = {
    "intersection_f1": intersection_f1,
    "collar_f1": collar_f1,
    "segment_f1": segment_f1,
}
# Every 0.04; the authors' thresholds for DESED lie between 0.14 and 0.51.
THRESHOLDS = tuple(np.linspace(0.04, 0.96, 24).round(2).tolist())
# Off, then 3, 5 and 7 of the model's steps of 0.3125 seconds.
MEDIAN_FILTER_SECONDS = (0.0, 0.9375, 1.5625, 2.1875)
# The threshold to stay as a share of the one to start, gaps of one and two steps, and two lengths of events.
STAY_SHARES = (0.75, 0.5)
MAX_GAP_SECONDS = (0.3125, 0.625)
MIN_EVENT_SECONDS = (0.3125, 0.625)
# F1 values this close differ by rounding only.
F1_ROUNDING = 1e-9

Event = tuple[float, float, str]


class ClipBlock(NamedTuple):
    """Clips with the same time axis, side by side, so that they are decoded together as if they were more classes."""

    columns: list[tuple[str, str]]  # file and label of every column of scores
    scores: np.ndarray  # (steps, clips * classes)
    step_seconds: float
    duration_seconds: float | None


def tune_event_decoding(
    frame_scores: Mapping[str, np.ndarray],
    step_seconds: float | Mapping[str, float],
    truth: Mapping[str, Sequence[Event]],
    labels: Sequence[str],
    metric: str = "intersection_f1",
    durations: Mapping[str, float] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    median_filter_seconds: Sequence[float] = MEDIAN_FILTER_SECONDS,
    stay_shares: Sequence[float] = STAY_SHARES,
    max_gap_seconds: Sequence[float] = MAX_GAP_SECONDS,
    min_event_seconds: Sequence[float] = MIN_EVENT_SECONDS,
    default: EventDecoding | None = None,
    metric_options: Mapping[str, Any] | None = None,
    config: Any = None,
) -> EventDecoding:
    """Return `default` with the values that give each class its highest F1.

    frame_scores: {filename: probabilities (steps, classes)}. step_seconds: one number or {filename: number}.
    truth: {filename: [(onset_seconds, offset_seconds, label), ...]}; a file that it does not name holds no events.
    durations: {filename: seconds}, where the clips end earlier than their steps.
    thresholds, median_filter_seconds, stay_shares (the threshold to stay, as a share of the one to start): are searched
    together; then max_gap_seconds and min_event_seconds, one after the other. Of the last three, the default's own
    value is tried first, and alone if the sequence is empty.
    metric_options: passed on to the metric, for example {"detection_tolerance": 0.7}.
    config: a model's configuration, whose `event_decoding` then holds the result, so that the model decodes as tuned.

    A class without an event in the truth, or that no values find at all, keeps the default.
    """
    default = default or EventDecoding()
    thresholds, median_filter_seconds = sorted(set(thresholds)), sorted(set(median_filter_seconds))
    _refuse_impossible_search(frame_scores, truth, labels, metric, thresholds, median_filter_seconds)
    measure = _choose_metric(metric, frame_scores, truth, durations, metric_options)
    blocks = _gather_blocks(frame_scores, step_seconds, labels, durations)

    def score(decoding: EventDecoding) -> list[float]:
        return measure(_detect(blocks, decoding, labels), labels)

    decoding = _search_grid(default, labels, thresholds, median_filter_seconds, stay_shares, score)
    decoding = _search_value(decoding, labels, "max_gap_seconds", max_gap_seconds, score)
    decoding = _search_value(decoding, labels, "min_event_seconds", min_event_seconds, score)
    if config is not None:
        config.event_decoding = decoding.to_dict()
    return decoding


Score = Callable[[EventDecoding], list[float]]


def _search_grid(
    default: EventDecoding,
    labels: Sequence[str],
    thresholds: Sequence[float],
    median_filter_seconds: Sequence[float],
    stay_shares: Sequence[float],
    score: Score,
) -> EventDecoding:
    """Every threshold with every filter and every rule to stay; the simplest come first and win among equals."""
    rows = list(product(median_filter_seconds, (None, *stay_shares)))
    f1 = np.zeros((len(labels), len(rows), len(thresholds)))
    for row, (filter_seconds, share) in enumerate(rows):
        for column, threshold in enumerate(thresholds):
            everywhere = dict.fromkeys(labels, (threshold, filter_seconds, share))
            f1[:, row, column] = score(_set_values(default, labels, everywhere))
    best = {label: _find_best_cell(of_class) for label, of_class in zip(labels, f1, strict=True) if of_class.any()}
    return _set_values(
        default, labels, {label: (thresholds[column], *rows[row]) for label, (row, column) in best.items()}
    )


def _search_value(
    decoding: EventDecoding, labels: Sequence[str], name: str, candidates: Sequence[Any], score: Score
) -> EventDecoding:
    """Let each class that does better with a candidate have it; the first of equals, or what it had."""
    values = decoding.for_classes(len(labels), labels)[name].copy()
    best_f1 = np.array(score(decoding))
    has_changed = False
    for candidate in candidates:
        f1 = np.array(score(_set_value(decoding, labels, name, np.broadcast_to(candidate, len(labels)))))
        is_better = f1 > best_f1 + F1_ROUNDING
        values = np.where(is_better, candidate, values)
        best_f1 = np.maximum(f1, best_f1)
        has_changed |= bool(is_better.any())
    return _set_value(decoding, labels, name, values) if has_changed else decoding


def _set_value(decoding: EventDecoding, labels: Sequence[str], name: str, values: np.ndarray) -> EventDecoding:
    return replace(decoding, **{name: dict(zip(labels, values.tolist(), strict=True))})


def _refuse_impossible_search(
    frame_scores: Mapping[str, np.ndarray],
    truth: Mapping[str, Sequence[Event]],
    labels: Sequence[str],
    metric: str,
    thresholds: Sequence[float],
    median_filter_seconds: Sequence[float],
) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; choose one of {', '.join(METRICS)}.")
    if not thresholds or not median_filter_seconds:
        raise ValueError("Give at least one threshold and one median filter to try; a filter of 0 seconds is none.")
    if without_scores := sorted(set(truth) - set(frame_scores)):
        raise ValueError(f"{without_scores[0]!r} is in the truth and has no frame scores; run the model on it as well.")
    if strange := {label for events in truth.values() for _, _, label in events} - set(labels):
        raise ValueError(f"The truth holds the label {min(strange)!r}, which is not among the labels of the scores.")
    for filename, scores in frame_scores.items():
        if np.ndim(scores) != 2 or np.shape(scores)[1] != len(labels):
            shape = np.shape(scores)
            raise ValueError(f"The scores of {filename!r} have the shape {shape} and need (steps, {len(labels)}).")


def _choose_metric(
    metric: str,
    frame_scores: Mapping[str, np.ndarray],
    truth: Mapping[str, Sequence[Event]],
    durations: Mapping[str, float] | None,
    metric_options: Mapping[str, Any] | None,
) -> Callable[..., list[float]]:
    """Return a function from detections to one F1 per label, 0 for labels that the truth does not hold."""
    options = dict(metric_options or {})
    if durations is not None and metric != "collar_f1":  # which looks at onsets and offsets alone
        options.setdefault("durations", durations)
    whole_truth = {filename: list(truth.get(filename, ())) for filename in frame_scores}

    def measure(detections: Mapping[str, Sequence[Event]], labels: Sequence[str]) -> list[float]:
        per_class = METRICS[metric](whole_truth, detections, **options)["per_class"]
        return [per_class.get(label, 0.0) for label in labels]

    return measure


def _gather_blocks(
    frame_scores: Mapping[str, np.ndarray],
    step_seconds: float | Mapping[str, float],
    labels: Sequence[str],
    durations: Mapping[str, float] | None,
) -> list[ClipBlock]:
    files_by_axis: dict[tuple, list[str]] = defaultdict(list)
    for filename, scores in frame_scores.items():
        clip_step = step_seconds[filename] if isinstance(step_seconds, Mapping) else step_seconds
        duration_seconds = None if durations is None else durations[filename]
        files_by_axis[len(scores), clip_step, duration_seconds].append(filename)
    return [
        ClipBlock(
            columns=[(filename, label) for filename in files for label in labels],
            scores=np.concatenate([frame_scores[filename] for filename in files], axis=1),
            step_seconds=clip_step,
            duration_seconds=duration_seconds,
        )
        for (_, clip_step, duration_seconds), files in files_by_axis.items()
    ]


def _set_values(
    default: EventDecoding, labels: Sequence[str], chosen: Mapping[str, tuple[float, float, float | None]]
) -> EventDecoding:
    """Threshold, filter and share to stay in place of the default's, for the labels that are in `chosen`.

    Without a share, the default's rule to stay holds, lowered to the threshold where it would be above.
    """
    values = {name: value.copy() for name, value in default.for_classes(len(labels), labels).items()}
    follows_threshold = default.stay_threshold is None
    for index, label in enumerate(labels):
        if label in chosen:
            threshold, values["median_filter_seconds"][index], share = chosen[label]
            values["threshold"][index] = threshold
            if share is not None:
                values["stay_threshold"][index] = share * threshold
            elif follows_threshold:
                values["stay_threshold"][index] = threshold
    values["stay_threshold"] = np.minimum(values["stay_threshold"], values["threshold"])
    names = ["threshold", "median_filter_seconds"]
    if not follows_threshold or (values["stay_threshold"] < values["threshold"]).any():
        names.append("stay_threshold")
    return replace(default, **{name: dict(zip(labels, values[name].tolist(), strict=True)) for name in names})


def _detect(blocks: Sequence[ClipBlock], decoding: EventDecoding, labels: Sequence[str]) -> dict[str, list[Event]]:
    values = decoding.for_classes(len(labels), labels)
    detections: dict[str, list[Event]] = defaultdict(list)
    for block in blocks:
        num_clips = len(block.columns) // len(labels)
        of_columns = EventDecoding(**{name: tuple(np.tile(value, num_clips)) for name, value in values.items()})
        for event in decode_events(block.scores, block.step_seconds, of_columns, block.columns, block.duration_seconds):
            filename, label = event["label"]
            detections[filename].append((event["onset"], event["offset"], label))
    return detections


def _find_best_cell(f1: np.ndarray) -> tuple[int, int]:
    """Return the best (row, threshold) of one class's F1 (rows, thresholds).

    Among equals the first row wins: the shortest filter, as it costs the least detail in time. Of its thresholds comes
    the middle one of the longest stretch of equals: there the F1 stays the same for the largest change of the scores
    either way, as it may happen from the validation set to the next.
    """
    equals = f1 >= f1.max() - F1_ROUNDING
    row = int(np.flatnonzero(equals.any(axis=1))[0])
    columns = np.flatnonzero(equals[row])
    stretches = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    longest = max(stretches, key=len)  # the first of equally long ones
    return row, int(longest[(len(longest) - 1) // 2])
