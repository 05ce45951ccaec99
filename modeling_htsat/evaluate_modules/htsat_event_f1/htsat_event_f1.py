"""Event scores of HTS-AT as a Hugging Face metric: F1 by intersection, by collar and by segment."""

# `evaluate` reads these lines with a regular expression, for which `import a, b` is one module called "a,".
from collections.abc import Collection, Sequence
from typing import Any

import datasets
import evaluate

from modeling_htsat.metrics import Event, collar_f1, intersection_f1, segment_f1

_DESCRIPTION = """
Macro-averaged F1 of sound events by three criteria: overlap (as psds_eval), onset and offset collars (as sed_eval's
event-based metric) and activity per segment (as sed_eval's segment-based metric). They differ widely: say which one.
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions: for each file its detected events, dictionaries of exactly onset and offset (seconds) and event_label.
    references: for each file its true events, likewise.
    durations: for each file its length in seconds, or None; detections beyond it are no false intersections.
    detection_tolerance, truth_tolerance: shares of overlap for the intersection criterion, 0.5 each.
    onset_collar_seconds, offset_collar_seconds, offset_collar_ratio: for the collar criterion, 0.2 each.
    segment_seconds: for the segment criterion, 1.
Returns:
    intersection_f1, collar_f1, segment_f1: each a dictionary with macro, macro_all_classes, per_class and counts.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS_DESCRIPTION)
class HTSATEventF1(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        event = {
            "onset": datasets.Value("float64"),
            "offset": datasets.Value("float64"),
            "event_label": datasets.Value("string"),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.List(event), "references": datasets.List(event)}),
        )

    def _compute(
        self,
        predictions: list[list[dict[str, Any]]],
        references: list[list[dict[str, Any]]],
        durations: Sequence[float] | None = None,
        detection_tolerance: float = 0.5,
        truth_tolerance: float = 0.5,
        onset_collar_seconds: float = 0.2,
        offset_collar_seconds: float = 0.2,
        offset_collar_ratio: float = 0.2,
        segment_seconds: float = 1.0,
    ) -> dict[str, Any]:
        truth, detections = _as_table(references), _as_table(predictions)
        file_seconds = None if durations is None else _durations_of(truth, durations)
        return {
            "intersection_f1": intersection_f1(truth, detections, file_seconds, detection_tolerance, truth_tolerance),
            "collar_f1": collar_f1(truth, detections, onset_collar_seconds, offset_collar_seconds, offset_collar_ratio),
            "segment_f1": segment_f1(truth, detections, segment_seconds=segment_seconds),
        }


def _as_table(files: list[list[dict[str, Any]]]) -> dict[str, list[Event]]:
    """The events of each file under a name that says its place."""
    return {
        f"file {index}": [(event["onset"], event["offset"], event["event_label"]) for event in events]
        for index, events in enumerate(files)
    }


def _durations_of(files: Collection[str], durations: Sequence[float]) -> dict[str, float]:
    if len(durations) != len(files):
        raise ValueError(f"There are {len(files)} files and {len(durations)} durations; give one duration per file.")
    return dict(zip(files, durations, strict=True))
