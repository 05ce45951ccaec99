"""Find the decoding values with which the events of a validation set come out best, one class at a time.

The F1 of a class depends on that class's events alone. So one pass over thresholds and filters, with every class at the
same value, tells the F1 of all classes at all values, and each class then takes the best of its own.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .events_htsat import EventDecoding, decode_events
from .event_metrics import collar_f1, intersection_f1, segment_f1

METRICS: dict[str, Callable[..., dict[str, Any]]] = {
    "intersection_f1": intersection_f1,
    "collar_f1": collar_f1,
    "segment_f1": segment_f1,
}
# Every 0.04; the authors' thresholds for DESED lie between 0.14 and 0.51.
THRESHOLDS = tuple(np.linspace(0.04, 0.96, 24).round(2).tolist())
# Off, then 3, 5 and 7 of the model's steps of 0.3125 seconds.
MEDIAN_FILTER_SECONDS = (0.0, 0.9375, 1.5625, 2.1875)
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
    default: EventDecoding | None = None,
    metric_options: Mapping[str, Any] | None = None,
) -> EventDecoding:
    """Return `default` with the threshold and the median filter that give each class its highest F1.

    frame_scores: {filename: probabilities (steps, classes)}. step_seconds: one number or {filename: number}.
    truth: {filename: [(onset_seconds, offset_seconds, label), ...]}; a file that it does not name holds no events.
    durations: {filename: seconds}, where the clips end earlier than their steps.
    metric_options: passed on to the metric, for example {"detection_tolerance": 0.7}.

    All other values of `default` are used as they are, save that `stay_threshold` is lowered to the threshold where it
    would be above. A class without an event in the truth, or that no values find at all, keeps the default.
    """
    default = default or EventDecoding()
    thresholds, median_filter_seconds = sorted(set(thresholds)), sorted(set(median_filter_seconds))
    _refuse_impossible_search(frame_scores, truth, labels, metric, thresholds, median_filter_seconds)
    measure = _choose_metric(metric, frame_scores, truth, durations, metric_options)
    blocks = _gather_blocks(frame_scores, step_seconds, labels, durations)
    f1 = np.zeros((len(labels), len(median_filter_seconds), len(thresholds)))
    for row, filter_seconds in enumerate(median_filter_seconds):
        for column, threshold in enumerate(thresholds):
            candidate = _set_values(default, labels, dict.fromkeys(labels, (threshold, filter_seconds)))
            f1[:, row, column] = measure(_detect(blocks, candidate, labels), labels)
    best = {label: _find_best_cell(of_class) for label, of_class in zip(labels, f1, strict=True) if of_class.any()}
    chosen = {label: (thresholds[column], median_filter_seconds[row]) for label, (row, column) in best.items()}
    return _set_values(default, labels, chosen)


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
    default: EventDecoding, labels: Sequence[str], chosen: Mapping[str, tuple[float, float]]
) -> EventDecoding:
    """Put a threshold and a filter in the place of the default's, for the labels that are in `chosen`."""
    values = {name: value.copy() for name, value in default.for_classes(len(labels), labels).items()}
    for index, label in enumerate(labels):
        if label in chosen:
            values["threshold"][index], values["median_filter_seconds"][index] = chosen[label]
    values["stay_threshold"] = np.minimum(values["stay_threshold"], values["threshold"])
    names = ["threshold", "median_filter_seconds"]
    if default.stay_threshold is not None:
        names.append("stay_threshold")
    return replace(default, **{name: dict(zip(labels, values[name], strict=True)) for name in names})


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
    """Return the best (filter, threshold) of one class's F1 (filters, thresholds).

    Among equals the shortest filter wins, as it costs the least detail in time. Of its thresholds comes the middle one
    of the longest stretch of equals: there the F1 stays the same for the largest change of the scores either way, as it
    may happen from the validation set to the next.
    """
    equals = f1 >= f1.max() - F1_ROUNDING
    row = int(np.flatnonzero(equals.any(axis=1))[0])
    columns = np.flatnonzero(equals[row])
    stretches = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    longest = max(stretches, key=len)  # the first of equally long ones
    return row, int(longest[(len(longest) - 1) // 2])
