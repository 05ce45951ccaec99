"""Scores of tags and of sound events, as pure functions of arrays and plain tables.

Words, as they are used throughout:
    scores, targets         one row per clip and one column per class; targets are 0 or 1
    event                   (onset_seconds, offset_seconds, label)
    truth, detections       {filename: [event, ...]}; a file without events has an empty list
    durations               {filename: seconds}

The event scores agree with the packages that made the published numbers: the intersection F1 with psds_eval 0.5.3, the
collar and segment F1 with sed_eval 0.2.1 as the DCASE baseline calls it. These packages leave some classes out of their
macro average, which flatters a system that never finds a class; so every result also holds `macro_all_classes`, the
mean over all classes of the truth, and `left_out_of_macro`, the names of the classes that `macro` does without.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

Event = tuple[float, float, str]
EventTable = Mapping[str, Sequence[Event]]

MISSING_LABEL = -100  # what the Trainer pads labels with, and what a loss ignores

PSDS_SCENARIOS: dict[int, dict[str, Any]] = {
    1: {
        "dtc_threshold": 0.7,
        "gtc_threshold": 0.7,
        "cttc_threshold": None,
        "alpha_ct": 0.0,
        "alpha_st": 1.0,
        "max_efpr": 100.0,
    },
    2: {
        "dtc_threshold": 0.1,
        "gtc_threshold": 0.1,
        "cttc_threshold": 0.3,
        "alpha_ct": 0.5,
        "alpha_st": 1.0,
        "max_efpr": 100.0,
    },
}


# ── clips ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def sigmoid(logits: Any) -> np.ndarray:
    """Probability of each logit in float64, without overflow however large the logit."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, dtype=np.float64)))


def average_precision_per_class(scores: Any, targets: Any) -> np.ndarray:
    """Average precision of each class; NaN for a class without a positive clip."""
    scores, targets = _checked_clips(scores, targets)
    return _average_precisions(scores, targets, np.ones(targets.shape, dtype=bool))


def auc_per_class(scores: Any, targets: Any) -> np.ndarray:
    """Area under each class's ROC curve; NaN for a class without positive or without negative clips."""
    scores, targets = _checked_clips(scores, targets)
    return _aucs(scores, targets, np.ones(targets.shape, dtype=bool))


def mean_average_precision(scores: Any, targets: Any) -> float:
    """Mean average precision over the classes that have a positive clip; NaN when none has."""
    return _mean_of_counted(average_precision_per_class(scores, targets))


def mean_auc(scores: Any, targets: Any) -> float:
    """Mean area under the ROC curve over the classes that have positive and negative clips; NaN when none has."""
    return _mean_of_counted(auc_per_class(scores, targets))


def d_prime(scores: Any, targets: Any) -> float:
    """Distance of positives and negatives in standard deviations, from the mean AUC as AudioSet papers report it."""
    return d_prime_from_auc(mean_auc(scores, targets))


def d_prime_from_auc(auc: float) -> float:
    """sqrt(2) times the normal quantile of the AUC, kept finite (within 11.5) at an AUC of 0 or 1."""
    if math.isnan(auc):
        return math.nan
    edge = float(np.finfo(np.float64).eps)
    return math.sqrt(2) * NormalDist().inv_cdf(min(max(auc, edge), 1 - edge))


def accuracy(scores: Any, class_indices: Any) -> float:
    """Share of clips whose highest score is that of their class."""
    scores, class_indices = _checked_scores(scores), np.asarray(class_indices)
    _check_class_indices(scores, class_indices)
    return float(np.mean(scores.argmax(axis=1) == class_indices))


def clip_scores(scores: Any, targets: Any) -> dict[str, float]:
    """All clip scores, with the number of classes that each mean counts and skips.

    `targets` are 0 or 1 of shape (clips, classes), or class indices of shape (clips,); these also give the accuracy.
    """
    targets = np.asarray(targets)
    if targets.ndim != 1:
        scores, targets = _checked_clips(scores, targets)
        return _clip_summary(scores, targets, np.ones(targets.shape, dtype=bool))
    scores = _checked_scores(scores)
    accuracy_of_clips = accuracy(scores, targets)
    one_hot = np.arange(scores.shape[1]) == targets[:, None]  # (clips, classes)
    return {"accuracy": accuracy_of_clips} | _clip_summary(scores, one_hot, np.ones(one_hot.shape, dtype=bool))


def _clip_summary(scores: np.ndarray, targets: np.ndarray, known: np.ndarray) -> dict[str, float]:
    precisions, aucs = _average_precisions(scores, targets, known), _aucs(scores, targets, known)
    return {
        "mean_average_precision": _mean_of_counted(precisions),
        "mean_auc": _mean_of_counted(aucs),
        "d_prime": d_prime_from_auc(_mean_of_counted(aucs)),
        "map_classes_counted": int(np.sum(~np.isnan(precisions))),
        "map_classes_skipped": int(np.sum(np.isnan(precisions))),
        "auc_classes_counted": int(np.sum(~np.isnan(aucs))),
        "auc_classes_skipped": int(np.sum(np.isnan(aucs))),
    }


def _average_precisions(scores: np.ndarray, targets: np.ndarray, known: np.ndarray) -> np.ndarray:
    from sklearn.metrics import average_precision_score  # a second to import, and the event scores do without

    return _score_each_class(average_precision_score, scores, targets, known, needs_negatives=False)


def _aucs(scores: np.ndarray, targets: np.ndarray, known: np.ndarray) -> np.ndarray:
    from sklearn.metrics import roc_auc_score

    return _score_each_class(roc_auc_score, scores, targets, known, needs_negatives=True)


def _score_each_class(
    score: Callable[..., float], scores: np.ndarray, targets: np.ndarray, known: np.ndarray, needs_negatives: bool
) -> np.ndarray:
    """The score of each class over its known clips, NaN where it is undefined."""
    values = np.full(scores.shape[1], np.nan)
    for index in range(scores.shape[1]):
        clips = known[:, index]
        positive = targets[clips, index] > 0
        if positive.any() and not (needs_negatives and positive.all()):
            values[index] = score(positive, scores[clips, index])
    return values


def _mean_of_counted(values: np.ndarray) -> float:
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if counted.size else math.nan


def _checked_scores(scores: Any) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"Scores need the shape (clips, classes), at least one of each; received {scores.shape}.")
    if not np.isfinite(scores).all():
        clip, column = np.argwhere(~np.isfinite(scores))[0]
        raise ValueError(f"The score of clip {clip}, class {column} is {scores[clip, column]}; scores must be finite.")
    return scores


def _checked_clips(scores: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    scores, targets = _checked_scores(scores), np.asarray(targets, dtype=np.float64)
    if scores.shape != targets.shape:
        raise ValueError(
            f"Scores and targets need the same shape (clips, classes); received {scores.shape} and {targets.shape}."
        )
    binary = (targets == 0) | (targets == 1)
    if not binary.all():
        clip, column = np.argwhere(~binary)[0]
        raise ValueError(f"The target of clip {clip}, class {column} is {targets[clip, column]}; it must be 0 or 1.")
    return scores, targets


def _check_class_indices(scores: np.ndarray, class_indices: np.ndarray) -> None:
    num_clips, num_classes = scores.shape
    if class_indices.shape != (num_clips,):
        raise ValueError(f"{num_clips} clips need {num_clips} class indices; received shape {class_indices.shape}.")
    if not np.isin(class_indices, np.arange(num_classes)).all():
        stray = class_indices[~np.isin(class_indices, np.arange(num_classes))][0]
        raise ValueError(f"Class indices must be whole numbers from 0 to {num_classes - 1}; received {stray}.")


# ── Trainer ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def clip_metrics_for_trainer(problem_type: str) -> Callable[[Any], dict[str, float]]:
    """A `compute_metrics` for clip logits, for one of the two problem types of a Transformers configuration.

    The predictions are the clip logits, or a tuple that begins with them. Labels of -100 or NaN are missing.
    """
    if problem_type == "multi_label_classification":
        return _multi_label_metrics
    if problem_type == "single_label_classification":
        return _single_label_metrics
    raise ValueError(
        f"No clip metrics for problem type {problem_type!r}: "
        "use 'multi_label_classification' or 'single_label_classification'."
    )


def event_metrics_for_trainer(threshold: float | Sequence[float] = 0.5) -> Callable[[Any], dict[str, float]]:
    """A `compute_metrics` for frame logits (clips, steps, classes), with clip targets, frame targets or both.

    Arrays are told apart by their axes: three for frames, two for clips. Without clip logits a clip scores as its
    highest step; without clip targets a clip holds what any of its steps holds. Labels of -100 or NaN are missing.
    The frame F1 compares step by step at `threshold` (one number, or one per class): it is no event score.
    """

    def compute_metrics(prediction: Any) -> dict[str, float]:
        frame_logits = _array_with_axes(prediction.predictions, 3)
        if frame_logits is None:
            raise ValueError("The predictions hold no frame logits of shape (clips, steps, classes).")
        frame_targets = _array_with_axes(prediction.label_ids, 3)
        metrics = {} if frame_targets is None else _frame_f1(frame_logits, frame_targets, threshold)
        clip_logits = _array_of_clips(prediction.predictions, frame_logits)
        clip_targets = _array_with_axes(prediction.label_ids, 2)
        clip_logits = frame_logits.max(axis=1) if clip_logits is None else clip_logits
        clip_targets = _clip_targets_of_frames(frame_targets) if clip_targets is None else clip_targets
        return metrics | _clip_metrics_with_gaps(clip_logits, clip_targets)

    return compute_metrics


def _multi_label_metrics(prediction: Any) -> dict[str, float]:
    return _clip_metrics_with_gaps(_first_array(prediction.predictions), _first_array(prediction.label_ids))


def _single_label_metrics(prediction: Any) -> dict[str, float]:
    logits, labels = _first_array(prediction.predictions).astype(np.float64), _first_array(prediction.label_ids)
    known = (labels != MISSING_LABEL) & ~np.isnan(labels.astype(np.float64))
    # The logarithm of the softmax ranks clips as the softmax does, but has no ties at 0 and 1.
    log_probabilities = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return clip_scores(log_probabilities[known], labels[known])


def _clip_metrics_with_gaps(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Clip scores over the known labels. Logits rank as their sigmoids do, but have no ties at 0 and 1."""
    known = _known(labels)
    scores, targets = _checked_clips(logits, np.where(known, labels, 0))
    return _clip_summary(scores, targets, known)


def _frame_f1(logits: np.ndarray, labels: np.ndarray, threshold: float | Sequence[float]) -> dict[str, float]:
    """Step-wise F1, macro-averaged over the classes with an active step in the truth."""
    if logits.shape != labels.shape:
        raise ValueError(f"Frame logits {logits.shape} and frame targets {labels.shape} need the same shape.")
    known = _known(labels)
    detected, active = (sigmoid(logits) >= np.asarray(threshold)) & known, (labels > 0.5) & known
    hits = np.sum(detected & active, axis=(0, 1))  # (classes,)
    sizes = np.sum(detected, axis=(0, 1)) + np.sum(active, axis=(0, 1))  # (classes,)
    with_truth = active.any(axis=(0, 1))  # (classes,)
    f1_of_counted = 2 * hits[with_truth] / sizes[with_truth]
    return {"frame_f1": _mean_of_counted(f1_of_counted), "frame_f1_classes_counted": int(with_truth.sum())}


def _clip_targets_of_frames(frame_targets: np.ndarray | None) -> np.ndarray:
    if frame_targets is None:
        raise ValueError(
            "The labels hold neither clip targets (clips, classes) nor frame targets (clips, steps, classes)."
        )
    known = _known(frame_targets)
    active = ((frame_targets > 0.5) & known).any(axis=1)  # (clips, classes)
    return np.where(known.any(axis=1), active, np.nan)


def _known(labels: np.ndarray) -> np.ndarray:
    return (labels != MISSING_LABEL) & ~np.isnan(np.asarray(labels, dtype=np.float64))


def _first_array(arrays: Any) -> np.ndarray:
    return np.asarray(arrays[0] if isinstance(arrays, (tuple, list)) else arrays)


def _array_of_clips(arrays: Any, frame_logits: np.ndarray) -> np.ndarray | None:
    """The first array of shape (clips, classes); the model also returns a mask of shape (clips, steps), further on."""
    num_clips, _, num_classes = frame_logits.shape
    candidates = arrays if isinstance(arrays, (tuple, list)) else (arrays,)
    return next((np.asarray(array) for array in candidates if np.shape(array) == (num_clips, num_classes)), None)


def _array_with_axes(arrays: Any, num_axes: int) -> np.ndarray | None:
    candidates = arrays if isinstance(arrays, (tuple, list)) else (arrays,)
    return next((np.asarray(array) for array in candidates if np.ndim(array) == num_axes), None)


# ── events ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def intersection_f1(
    truth: EventTable,
    detections: EventTable,
    durations: Mapping[str, float] | None = None,
    detection_tolerance: float = 0.5,
    truth_tolerance: float = 0.5,
) -> dict[str, Any]:
    """F1 by overlap, as `psds_eval.PSDSEval.compute_macro_f_score` computes it.

    A detection is accepted when at least `detection_tolerance` of it lies on events of its class, and an event is found
    when accepted detections cover at least `truth_tolerance` of it. A detection that is not accepted is a false
    positive, unless it lies wholly beyond its file's duration. Events without length are dropped; overlapping events of
    one class in one file are an error here, as in psds_eval. Classes without a single found event do not enter `macro`.
    """
    _check_share(detection_tolerance=detection_tolerance, truth_tolerance=truth_tolerance)
    sides = _two_sides(_without_empty_events(truth), _without_empty_events(detections), durations)
    _refuse_overlaps("truth", sides.truth, sides)
    _refuse_overlaps("detections", sides.detections, sides)
    found, accepted = _found_and_accepted(sides.truth, sides.detections, detection_tolerance, truth_tolerance)
    hits = sides.num_per_label(sides.truth.groups[found])
    wrong = ~accepted & _inside_files(sides, durations)
    false_positives = sides.num_per_label(sides.detections.groups[wrong])
    misses = sides.num_per_label(sides.truth.groups[~found])
    criterion = (
        f"Intersection: a detection is right when at least {detection_tolerance:.0%} of it lies on events of its "
        f"class; an event is found when right detections cover at least {truth_tolerance:.0%} of it. "
        "The macro average leaves out classes without a found event, as psds_eval does."
    )
    settings = {"detection_tolerance": detection_tolerance, "truth_tolerance": truth_tolerance}
    return _result(sides, hits, false_positives, misses, hits > 0, criterion, settings)


def collar_f1(
    truth: EventTable,
    detections: EventTable,
    onset_collar_seconds: float = 0.2,
    offset_collar_seconds: float = 0.2,
    offset_collar_ratio: float = 0.2,
) -> dict[str, Any]:
    """F1 by onset and offset, as `sed_eval.sound_event.EventBasedMetrics` with optimal matching computes it.

    A detection matches an event of its class when the onsets differ by at most the onset collar and the offsets by at
    most the larger of the offset collar and `offset_collar_ratio` of the event; each event takes one detection, so that
    most pairs come about. Times are compared unrounded, as in sed_eval: 4.4 - 4.2 exceeds 0.2 in floating point.
    """
    _check_collars(onset_collar_seconds, offset_collar_seconds, offset_collar_ratio)
    sides = _two_sides(truth, detections, None)
    events, candidates = _close_pairs(
        sides.truth, sides.detections, onset_collar_seconds, offset_collar_seconds, offset_collar_ratio
    )
    matched = _matched_rows(events, candidates, len(sides.truth.onsets), len(sides.detections.onsets))
    hits = sides.num_per_label(sides.truth.groups[matched])
    num_events, num_detections = sides.num_per_label(sides.truth.groups), sides.num_per_label(sides.detections.groups)
    criterion = (
        f"Collar: onsets at most {onset_collar_seconds:g} s apart, offsets at most {offset_collar_seconds:g} s or "
        f"{offset_collar_ratio:.0%} of the event, whichever is larger; each event matches one detection."
    )
    settings = {
        "onset_collar_seconds": onset_collar_seconds,
        "offset_collar_seconds": offset_collar_seconds,
        "offset_collar_ratio": offset_collar_ratio,
    }
    return _result(sides, hits, num_detections - hits, num_events - hits, num_events > 0, criterion, settings)


def segment_f1(
    truth: EventTable,
    detections: EventTable,
    durations: Mapping[str, float] | None = None,
    segment_seconds: float = 1.0,
) -> dict[str, Any]:
    """F1 of activity per segment, as `sed_eval.sound_event.SegmentBasedMetrics` computes it.

    An event fills every segment that it touches. With `durations`, segments beyond a file's last one do not count; the
    DCASE baseline passes none. Classes that are never detected do not enter `macro`, as in sed_eval by default.
    """
    if not 0 < segment_seconds < math.inf:
        raise ValueError(f"segment_seconds must be a positive number; received {segment_seconds}.")
    sides = _two_sides(truth, detections, durations)
    limits = _segment_limits(sides, durations, segment_seconds)
    stride = 1 + math.ceil(_last_offset(truth, detections) / segment_seconds)
    in_truth = _active_segments(sides.truth, limits, segment_seconds, stride)
    detected = _active_segments(sides.detections, limits, segment_seconds, stride)
    hits = sides.num_per_label(np.intersect1d(in_truth, detected, assume_unique=True) // stride)
    num_true, num_detected = sides.num_per_label(in_truth // stride), sides.num_per_label(detected // stride)
    criterion = (
        f"Segment: activity in segments of {segment_seconds:g} s, each filled by any event that touches it. "
        "The macro average leaves out classes that are never detected, as sed_eval does."
    )
    counted = (num_true > 0) & (num_detected > 0)
    return _result(
        sides, hits, num_detected - hits, num_true - hits, counted, criterion, {"segment_seconds": segment_seconds}
    )


def merge_overlapping_events(table: EventTable) -> dict[str, list[Event]]:
    """The same table, with overlapping events of one class in one file joined to one; touching ones stay apart."""
    return {filename: _merged(events) for filename, events in table.items()}


def _merged(events: Sequence[Event]) -> list[Event]:
    merged: dict[str, list[Event]] = {}
    for onset, offset, label in sorted(events):
        of_label = merged.setdefault(label, [])
        if of_label and onset < of_label[-1][1]:
            of_label[-1] = (of_label[-1][0], max(of_label[-1][1], offset), label)
        else:
            of_label.append((onset, offset, label))
    return sorted(event for of_label in merged.values() for event in of_label)


class _Columns(NamedTuple):
    """Events as columns, ordered by group and time; a group is one label in one file."""

    groups: np.ndarray  # file index * number of labels + label index
    onsets: np.ndarray
    offsets: np.ndarray


class _TwoSides(NamedTuple):
    """Truth and detections of the same files, over the labels of the truth."""

    files: list[str]
    labels: list[str]
    truth: _Columns
    detections: _Columns
    labels_without_truth: dict[str, int]

    def num_per_label(self, groups: np.ndarray) -> np.ndarray:
        return np.bincount(groups % len(self.labels), minlength=len(self.labels))


def _two_sides(truth: EventTable, detections: EventTable, durations: Mapping[str, float] | None) -> _TwoSides:
    """Check both tables at the border and lay them out as columns."""
    _check_events("truth", truth)
    _check_events("detections", detections)
    _check_files(truth, detections, durations)
    labels = sorted({label for events in truth.values() for *_, label in events})
    if not labels:
        raise ValueError("The truth holds no event, so that no F1 is defined; add the files that have events.")
    detected_labels = Counter(label for events in detections.values() for *_, label in events)
    strangers = {label: detected_labels[label] for label in sorted(detected_labels.keys() - set(labels))}
    files = sorted(set(truth) | set(detections))
    return _TwoSides(files, labels, _columns(truth, files, labels), _columns(detections, files, labels), strangers)


def _columns(table: EventTable, files: Sequence[str], labels: Sequence[str]) -> _Columns:
    """Events of the given labels, ordered by file, label, onset and offset."""
    label_index = {label: index for index, label in enumerate(labels)}
    rows = [
        (file_index * len(labels) + label_index[label], onset, offset)
        for file_index, filename in enumerate(files)
        for onset, offset, label in table.get(filename, ())
        if label in label_index
    ]
    rows.sort()
    groups = np.array([row[0] for row in rows], dtype=np.int64)
    onsets, offsets = (np.array([row[axis] for row in rows], dtype=np.float64) for axis in (1, 2))
    return _Columns(groups, onsets, offsets)


def _check_events(side: str, table: EventTable) -> None:
    for filename, events in table.items():
        for onset, offset, label in events:
            if not 0 <= onset <= offset < math.inf:
                raise ValueError(
                    f"The {side} of {filename!r} hold a {label!r} from {onset} to {offset} s; "
                    "an event needs finite times with 0 <= onset <= offset."
                )


def _check_files(truth: EventTable, detections: EventTable, durations: Mapping[str, float] | None) -> None:
    if durations is not None:
        for filename in (*truth, *detections):
            if filename not in durations:
                raise ValueError(f"{filename!r} has no duration; add it to the durations.")
        return
    for filename in detections:
        if filename not in truth:
            raise ValueError(
                f"{filename!r} has detections and is no file of the truth; add it there, with an empty list of events "
                "if it holds none."
            )


def _check_share(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a share from 0 to 1; received {share}.")


def _check_collars(onset_collar_seconds: float, offset_collar_seconds: float, offset_collar_ratio: float) -> None:
    _check_share(offset_collar_ratio=offset_collar_ratio)
    for collar in (onset_collar_seconds, offset_collar_seconds):
        if not 0 <= collar < math.inf:
            raise ValueError(f"A collar is a number of seconds from 0 upwards; received {collar}.")


def _without_empty_events(table: EventTable) -> dict[str, list[Event]]:
    return {filename: [event for event in events if event[0] != event[1]] for filename, events in table.items()}


def _refuse_overlaps(side: str, events: _Columns, sides: _TwoSides) -> None:
    """psds_eval refuses them too, except for exact repetitions, which it counts one by one."""
    same_group = events.groups[1:] == events.groups[:-1]
    repeated = (events.onsets[1:] == events.onsets[:-1]) & (events.offsets[1:] == events.offsets[:-1])
    overlaps = np.flatnonzero(same_group & ~repeated & (events.onsets[1:] < events.offsets[:-1]))
    if overlaps.size:
        first = overlaps[0]
        file_index, label_index = divmod(int(events.groups[first]), len(sides.labels))
        raise ValueError(
            f"The {side} of {sides.files[file_index]!r} hold overlapping events of {sides.labels[label_index]!r}: "
            f"{events.onsets[first]:g} to {events.offsets[first]:g} s and {events.onsets[first + 1]:g} to "
            f"{events.offsets[first + 1]:g} s. The intersection criterion needs them apart; join them with "
            "`modeling_htsat.metrics.merge_overlapping_events`."
        )


def _found_and_accepted(
    truth: _Columns, detections: _Columns, detection_tolerance: float, truth_tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which events are found, and which detections are accepted, by the intersection criterion."""
    # Within a group nothing overlaps, so that onsets and offsets are both in order and a search finds each range.
    first = _first_at_or_after(detections.groups, detections.offsets, truth.groups, truth.onsets, strictly=True)
    last = _first_at_or_after(detections.groups, detections.onsets, truth.groups, truth.offsets)
    rows, columns = _pairs_in_ranges(first, last)
    shared_seconds = np.minimum(truth.offsets[rows], detections.offsets[columns]) - np.maximum(
        truth.onsets[rows], detections.onsets[columns]
    )
    share_of_detection = shared_seconds / (detections.offsets - detections.onsets)[columns]
    accepted = _reaches(share_of_detection, columns, len(detections.onsets), detection_tolerance)
    share_of_event = shared_seconds / (truth.offsets - truth.onsets)[rows]
    kept = accepted[columns]
    found = _reaches(share_of_event[kept], rows[kept], len(truth.onsets), truth_tolerance)
    return found, accepted


def _reaches(shares: np.ndarray, owners: np.ndarray, num_owners: int, tolerance: float) -> np.ndarray:
    """Which owners have at least one share, and shares that add up to the tolerance."""
    has_share = np.bincount(owners, minlength=num_owners) > 0
    return has_share & (_compensated_sums(shares, owners, num_owners) >= tolerance)


def _compensated_sums(values: np.ndarray, owners: np.ndarray, num_owners: int) -> np.ndarray:
    """Sum of each owner's values in their order, by Kahan's method.

    psds_eval sums with pandas, which sums so; the last bit decides when a tolerance is met exactly, as by 0.2 + 0.3.
    """
    order = np.argsort(owners, kind="stable")
    counts = np.bincount(owners, minlength=num_owners)
    starts = np.cumsum(counts) - counts
    totals, errors = np.zeros(num_owners), np.zeros(num_owners)
    for position in range(int(counts.max(initial=0))):
        active = np.flatnonzero(counts > position)
        corrected = values[order[starts[active] + position]] - errors[active]
        new_totals = totals[active] + corrected
        errors[active] = new_totals - totals[active] - corrected
        totals[active] = new_totals
    return totals


def _inside_files(sides: _TwoSides, durations: Mapping[str, float] | None) -> np.ndarray:
    """Which detections begin before their file ends: psds_eval counts only these as false positives."""
    if durations is None:
        return np.ones(len(sides.detections.onsets), dtype=bool)
    ends = np.array([durations[filename] for filename in sides.files], dtype=np.float64)
    return sides.detections.onsets < ends[sides.detections.groups // len(sides.labels)]


def _close_pairs(
    truth: _Columns,
    detections: _Columns,
    onset_collar_seconds: float,
    offset_collar_seconds: float,
    offset_collar_ratio: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of event and detection of one group whose onsets and offsets lie within the collars."""
    reach_seconds = onset_collar_seconds + 1e-6  # a little wide for rounding; the exact comparison follows
    first = _first_at_or_after(detections.groups, detections.onsets, truth.groups, truth.onsets - reach_seconds)
    last = _first_at_or_after(detections.groups, detections.onsets, truth.groups, truth.onsets + reach_seconds)
    rows, columns = _pairs_in_ranges(first, last)
    offset_collars = np.maximum(offset_collar_seconds, offset_collar_ratio * (truth.offsets - truth.onsets))
    close = np.abs(truth.onsets[rows] - detections.onsets[columns]) <= onset_collar_seconds
    close &= np.abs(truth.offsets[rows] - detections.offsets[columns]) <= offset_collars[rows]
    return rows[close], columns[close]


def _matched_rows(rows: np.ndarray, columns: np.ndarray, num_rows: int, num_columns: int) -> np.ndarray:
    """Which rows have a partner in a matching with as many pairs as possible."""
    if not rows.size:
        return np.zeros(num_rows, dtype=bool)
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    graph = csr_array((np.ones(rows.size, dtype=bool), (rows, columns)), shape=(num_rows, num_columns))
    return maximum_bipartite_matching(graph, perm_type="column") >= 0


def _segment_limits(
    sides: _TwoSides, durations: Mapping[str, float] | None, segment_seconds: float
) -> np.ndarray | None:
    """Number of segments of each group's file."""
    if durations is None:
        return None
    limits = [math.ceil(durations[filename] / segment_seconds) for filename in sides.files]
    return np.repeat(np.array(limits, dtype=np.int64), len(sides.labels))


def _active_segments(events: _Columns, limits: np.ndarray | None, segment_seconds: float, stride: int) -> np.ndarray:
    """Every segment that an event touches, once, as group * stride + segment."""
    first = np.floor(events.onsets / segment_seconds).astype(np.int64)
    last = np.ceil(events.offsets / segment_seconds).astype(np.int64)
    if limits is not None:
        last = np.minimum(last, limits[events.groups])
    rows, segments = _pairs_in_ranges(first, last)
    return np.unique(events.groups[rows] * stride + segments)


def _last_offset(*tables: EventTable) -> float:
    return max((offset for table in tables for events in table.values() for _, offset, _ in events), default=0.0)


def _first_at_or_after(
    groups: np.ndarray,
    times: np.ndarray,
    wanted_groups: np.ndarray,
    wanted_times: np.ndarray,
    strictly: bool = False,
) -> np.ndarray:
    """For each wanted time, the position of the first entry of its group that is not earlier (strictly: later).

    Times become ranks, so that group and time fit in one exact integer and one search serves all files.
    """
    clock = np.unique(times)
    stride = len(clock) + 1
    ranks = np.searchsorted(clock, times)
    wanted_ranks = np.searchsorted(clock, wanted_times, side="right" if strictly else "left")
    return np.searchsorted(groups * stride + ranks, wanted_groups * stride + wanted_ranks)


def _pairs_in_ranges(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of a row and an index from `first[row]` up to, but without, `last[row]`."""
    lengths = np.maximum(last - first, 0)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum(lengths) - lengths
    return rows, np.arange(len(rows)) - starts[rows] + first[rows]


def _result(
    sides: _TwoSides,
    hits: np.ndarray,
    false_positives: np.ndarray,
    misses: np.ndarray,
    in_macro: np.ndarray,
    criterion: str,
    settings: dict[str, float],
) -> dict[str, Any]:
    sizes = 2 * hits + false_positives + misses
    scores = 2 * hits / np.maximum(sizes, 1)  # an event without length may fill no segment: size 0, score 0
    counts = zip(hits.tolist(), false_positives.tolist(), misses.tolist(), strict=True)
    return {
        "macro": float(scores[in_macro].mean()) if in_macro.any() else 0.0,
        "macro_all_classes": float(scores.mean()),
        "per_class": dict(zip(sides.labels, scores.tolist(), strict=True)),
        "counts": {
            label: {"tp": tp, "fp": fp, "fn": fn} for label, (tp, fp, fn) in zip(sides.labels, counts, strict=True)
        },
        "left_out_of_macro": [label for label, kept in zip(sides.labels, in_macro, strict=True) if not kept],
        "labels_without_truth": sides.labels_without_truth,
        "criterion": criterion,
        "settings": settings,
    }


# ── PSDS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def psds(
    truth: EventTable,
    durations: Mapping[str, float],
    score_tables: Mapping[str, tuple[Any, Any]],
    labels: Sequence[str],
    scenario: int = 1,
) -> dict[str, Any]:
    """Polyphonic sound detection score over all thresholds, for DCASE's scenario 1 or 2.

    `score_tables` holds for each file the step edges in seconds (steps + 1,) and the scores (steps, classes), with one
    column per label. Every file with a duration is evaluated and needs scores; files that the truth does not name hold
    no events. Classes without an event in the truth are not scored.
    """
    if scenario not in PSDS_SCENARIOS:
        raise ValueError(f"PSDS has the scenarios {sorted(PSDS_SCENARIOS)}; received {scenario!r}.")
    _check_score_tables(truth, durations, score_tables, labels)
    new_frame, compute_psds = _sed_scores_eval()
    with_truth = {label for events in truth.values() for *_, label in events}
    columns = [index for index, label in enumerate(labels) if label in with_truth]
    names = [labels[index] for index in columns]
    if scenario == 2 and len(names) < 2:
        raise ValueError("PSDS scenario 2 weighs confusions between classes; the truth holds events of one class only.")
    frames = {}
    for filename, (edges, scores) in score_tables.items():
        edges, scores = np.asarray(edges, dtype=np.float64), np.asarray(scores, dtype=np.float64)[:, columns]
        frames[filename] = new_frame(
            np.column_stack([edges[:-1], edges[1:], scores]), columns=["onset", "offset", *names]
        )
    lasting = _without_empty_events(truth)
    events = {filename: [tuple(event) for event in lasting.get(filename, ())] for filename in frames}
    settings = PSDS_SCENARIOS[scenario]
    value, per_class, *_ = compute_psds(frames, events, dict(durations), **settings)
    return {
        "psds": float(value),
        "per_class": {label: float(per_class[label]) for label in names},
        "criterion": f"PSDS, scenario {scenario}: area under the mean detection rate less its spread over classes, "
        f"up to {settings['max_efpr']:g} false positives per hour, over all thresholds.",
        "settings": {"scenario": scenario, **settings},
    }


def _sed_scores_eval() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """How to make a table of scores for sed_scores_eval, and its PSDS."""
    try:
        import pandas
        from sed_scores_eval.intersection_based import psds as compute_psds
    except ImportError as error:
        if error.name == "pkg_resources":  # dcase_util 0.2.20, which comes with sed_scores_eval, still imports it
            raise ImportError(
                'sed_scores_eval needs pkg_resources, which newer setuptools lack. Run `pip install "setuptools<81"`.'
            ) from error
        raise ImportError(
            f'PSDS needs the package sed_scores_eval ({error}). Install it with `pip install "modeling-htsat[eval]"`.'
        ) from error

    class WritableFrame(pandas.DataFrame):  # type: ignore[misc]
        """pandas 3 hands out read-only arrays, which the compiled part of sed_scores_eval 0.0.4 does not take."""

        @property
        def _constructor(self) -> type:
            return WritableFrame

        def to_numpy(self, *args: Any, **kwargs: Any) -> np.ndarray:
            return np.array(super().to_numpy(*args, **kwargs))

    return WritableFrame, compute_psds


def _check_score_tables(
    truth: EventTable,
    durations: Mapping[str, float],
    score_tables: Mapping[str, tuple[Any, Any]],
    labels: Sequence[str],
) -> None:
    _check_events("truth", truth)
    strangers = sorted({label for events in truth.values() for *_, label in events} - set(labels))
    if strangers:
        raise ValueError(f"The truth holds {strangers[0]!r}, which has no column of scores; labels are {list(labels)}.")
    if not any(truth.values()):
        raise ValueError("The truth holds no event, so that PSDS is not defined; add the files that have events.")
    _check_same_files(truth, durations, score_tables)
    for filename, (edges, scores) in score_tables.items():
        _check_score_table(filename, np.asarray(edges), np.asarray(scores), len(labels))
    apart = merge_overlapping_events(truth)
    for filename, events in truth.items():
        # sed_scores_eval refuses events that touch as well, since a detector cannot tell them apart.
        if len(apart[filename]) < len(events) or _touching(apart[filename]):
            raise ValueError(
                f"The truth of {filename!r} holds touching or overlapping events of one class; PSDS needs them joined."
            )


def _check_same_files(truth: Iterable[str], durations: Iterable[str], score_tables: Iterable[str]) -> None:
    timed = set(durations)
    for side, files in (("truth", set(truth)), ("score tables", set(score_tables))):
        if files - timed:
            raise ValueError(f"{min(files - timed)!r} is in the {side} and has no duration; add it to the durations.")
    if timed - set(score_tables):
        raise ValueError(f"{min(timed - set(score_tables))!r} has a duration and no scores; add its score table.")


def _check_score_table(filename: str, edges: np.ndarray, scores: np.ndarray, num_labels: int) -> None:
    if scores.ndim != 2 or scores.shape[1] != num_labels or edges.shape != (len(scores) + 1,):
        raise ValueError(
            f"The scores of {filename!r} need the shape (steps, {num_labels}) and their edges (steps + 1,); "
            f"received {scores.shape} and {edges.shape}."
        )
    if not (np.isfinite(scores).all() and np.isfinite(edges).all() and (np.diff(edges) > 0).all()):
        raise ValueError(f"The scores of {filename!r} must be finite and their edges must increase.")


def _touching(events: Sequence[Event]) -> bool:
    ends = {(offset, label) for _, offset, label in events}
    return any((onset, label) in ends for onset, _, label in events)


# ── Hugging Face evaluate ─────────────────────────────────────────────────────────────────────────────────────────────


def evaluate_module(name: str) -> str:
    """Folder of an `evaluate.Metric` of this package: `evaluate.load(evaluate_module("htsat_event_f1"))`."""
    root = Path(__file__).parent / "evaluate_modules"
    names = sorted(path.stem for path in root.glob("*/*.py") if path.stem == path.parent.name)
    if name not in names:
        raise ValueError(f"No evaluate module is called {name!r}; there are {', '.join(names)}.")
    return str(root / name)


__all__ = [
    "PSDS_SCENARIOS",
    "Event",
    "EventTable",
    "accuracy",
    "auc_per_class",
    "average_precision_per_class",
    "clip_metrics_for_trainer",
    "clip_scores",
    "collar_f1",
    "d_prime",
    "d_prime_from_auc",
    "evaluate_module",
    "event_metrics_for_trainer",
    "intersection_f1",
    "mean_auc",
    "mean_average_precision",
    "merge_overlapping_events",
    "psds",
    "segment_f1",
    "sigmoid",
]
