"""Scores of tags as pure functions of arrays, what `Trainer` and `evaluate` call, and the door to the event scores.

Words, as they are used throughout:
    scores, targets         one row per clip and one column per class; targets are 0 or 1
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from .event_metrics import (
    PSDS_SCENARIOS,
    Event,
    EventTable,
    collar_f1,
    intersection_f1,
    merge_overlapping_events,
    psds,
    segment_f1,
)

MISSING_LABEL = -100  # what the Trainer pads labels with, and what a loss ignores


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

    Trainer passes on what `TrainingArguments(label_names=...)` names: by default `labels` alone, weak or strong ones;
    `["labels", "frame_targets"]` where a data set has both.

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
    detected, active = (sigmoid(logits) > np.asarray(threshold)) & known, (labels > 0.5) & known
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
