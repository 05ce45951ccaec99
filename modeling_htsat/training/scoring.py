"""Scores of a trained model on a corpus: tags of whole clips, and events with their times."""

from collections.abc import Mapping
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import Trainer

from ..audio_htsat import AudioError, open_audio
from ..event_metrics import (
    PSDS_SCENARIOS,
    Event,
    collar_f1,
    intersection_f1,
    merge_overlapping_events,
    psds,
    segment_f1,
)
from ..event_tuning import tune_event_decoding
from ..events_htsat import EventDecoding, decode_events
from ..metrics import clip_metrics_for_trainer, sigmoid
from .examples import ClipDataset


class Predictions(NamedTuple):
    """What `metrics.clip_metrics_for_trainer` reads."""

    predictions: np.ndarray
    label_ids: np.ndarray


class FrameScores(NamedTuple):
    """The scores of every clip on its own time, beside what is known of it."""

    scores: dict[str, np.ndarray]  # (steps, classes)
    edges: dict[str, np.ndarray]  # (steps + 1,), in seconds
    durations: dict[str, float]
    truth: dict[str, list[Event]]
    labels: list[str]


# ── clips ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def score_clips(
    trainer: Trainer, data_set: ClipDataset, num_shifts: int = 1, shift_samples: int = 100
) -> dict[str, Any]:
    """mAP, AUC, d-prime (and accuracy for single labels), of scores averaged over small circular time shifts."""
    problem_type = data_set.config.problem_type or "multi_label_classification"
    total: Any = 0.0
    labels: Any = None
    for shift in range(num_shifts):
        shifted = copy(data_set)
        shifted.roll_samples = shift * shift_samples
        predicted = trainer.predict(shifted)
        total, labels = total + _probabilities(_clip_logits(predicted.predictions), problem_type), predicted.label_ids
    mean = np.asarray(total) / num_shifts
    # Back to logits, as which the metrics take them; ranks and argmax stay what they are.
    tiny = np.finfo(np.float64).tiny
    logits = np.log(np.maximum(mean, tiny))
    if problem_type == "multi_label_classification":
        logits = logits - np.log(np.maximum(1 - mean, tiny))
    labels = labels[0] if isinstance(labels, tuple) else labels
    return clip_metrics_for_trainer(problem_type)(Predictions(logits, labels))


def _clip_logits(predictions: Any) -> np.ndarray:
    """Those of a tagger, or of a detector, whose frame scores come first."""
    arrays = predictions if isinstance(predictions, tuple) else (predictions,)
    return next(array for array in arrays if np.ndim(array) == 2)


def _probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    logits = logits.astype(np.float64)
    if problem_type == "single_label_classification":
        return np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    return sigmoid(logits)


# ── events ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def score_frames(trainer: Trainer, data_set: ClipDataset) -> FrameScores:
    """Run a detector over the clips whose events are known."""
    rows = data_set.rows.without_audio()
    logits = trainer.predict(data_set).predictions
    logits = next(array for array in (logits if isinstance(logits, tuple) else (logits,)) if np.ndim(array) == 3)
    found = FrameScores({}, {}, {}, {}, data_set.label_names)
    for index, row in enumerate(rows):
        if row["events"] is None:
            continue
        try:
            with open_audio(data_set.rows[index]["audio"]) as audio:
                seconds = audio.duration_seconds
        except AudioError:
            continue  # the run has already said so
        if seconds is None:
            seconds = sum(map(len, open_audio(data_set.rows[index]["audio"]).blocks(16_000))) / 16_000
        name = row["video_id"]
        found.scores[name], found.edges[name] = data_set.extractor.scores_over_time(
            torch.from_numpy(logits[index]), seconds
        )
        found.durations[name] = seconds
        found.truth[name] = [
            (event["onset"], min(event["offset"], seconds), event["event_label"])
            for event in row["events"]
            if event["onset"] < seconds
        ]
    if not any(found.truth.values()):
        raise ValueError("No clip of this split has events that are known, so events cannot be scored; name another.")
    return found._replace(truth=merge_overlapping_events(found.truth))


def tune_on(found: FrameScores, config: Any, metric: str) -> EventDecoding:
    """Thresholds and filters that do best on these clips; the configuration keeps them."""
    steps = {name: float(edges[1] - edges[0]) for name, edges in found.edges.items()}
    return tune_event_decoding(
        found.scores, steps, found.truth, found.labels, metric, durations=found.durations, config=config
    )


def score_events(found: FrameScores, decoding: Mapping[str, Any] | None) -> dict[str, Any]:
    """Intersection, collar and segment F1 of the decoded events, and PSDS of the scores, each with its settings."""
    detected = detect_all(found, EventDecoding.from_dict(decoding or {}))
    tables = {name: (found.edges[name], scores) for name, scores in found.scores.items()}
    result = {
        "intersection_f1": intersection_f1(found.truth, detected, found.durations),
        "collar_f1": collar_f1(found.truth, detected),
        "segment_f1": segment_f1(found.truth, detected, segment_seconds=1.0),
    }
    for scenario in sorted(PSDS_SCENARIOS):
        result[f"psds_{scenario}"] = psds(found.truth, found.durations, tables, found.labels, scenario)
    return result


def detect_all(found: FrameScores, decoding: EventDecoding) -> dict[str, list[Event]]:
    """The events of every clip."""
    detected = {}
    for name, scores in found.scores.items():
        events = decode_events(scores, None, decoding, found.labels, step_edges_seconds=found.edges[name])
        detected[name] = [(event["onset"], event["offset"], event["label"]) for event in events]
    return detected


__all__ = ["FrameScores", "detect_all", "score_clips", "score_events", "score_frames", "tune_on"]
