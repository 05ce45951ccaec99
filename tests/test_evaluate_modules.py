"""The `evaluate` modules load without a network and an empty cache, and say what the functions say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_htsat import metrics

ROOT = Path(metrics.__file__).parents[1]

LOAD_BOTH = """
import evaluate
from modeling_htsat import metrics

clips = evaluate.load(metrics.evaluate_module("htsat_clip_scores"))
scores, targets = [[0.9, 0.1, 0.5], [0.8, 0.2, 0.1], [0.7, 0.3, 0.2]], [[1, 1, 0], [0, 0, 0], [1, 0, 0]]
assert clips.compute(predictions=scores, references=targets) == metrics.clip_scores(scores, targets)
clips = evaluate.load(metrics.evaluate_module("htsat_clip_scores"))
assert clips.compute(predictions=scores, references=[0, 1, 1]) == metrics.clip_scores(scores, [0, 1, 1])


def as_dicts(table):
    names = ("onset", "offset", "event_label")
    return [[dict(zip(names, event)) for event in events] for events in table.values()]


truth = {"file 0": [(0.0, 4.0, "Dog"), (1.0, 3.0, "Cat")], "file 1": [], "file 2": [(2.0, 3.0, "Cat")]}
detections = {"file 0": [(0.1, 3.5, "Dog")], "file 1": [(8.0, 9.0, "Cat")], "file 2": []}
durations = {"file 0": 10.0, "file 1": 7.5, "file 2": 10.0}
events = evaluate.load(metrics.evaluate_module("htsat_event_f1"))
inputs = {"predictions": as_dicts(detections), "references": as_dicts(truth)}
result = events.compute(**inputs, durations=list(durations.values()), segment_seconds=0.5)
assert result == {
    "intersection_f1": metrics.intersection_f1(truth, detections, durations),
    "collar_f1": metrics.collar_f1(truth, detections),
    "segment_f1": metrics.segment_f1(truth, detections, segment_seconds=0.5),
}
events = evaluate.load(metrics.evaluate_module("htsat_event_f1"))
try:
    events.compute(**inputs, durations=[10.0])
except ValueError as error:
    assert "3 files and 1 durations" in str(error), error
else:
    raise AssertionError("one duration for three files passed")
"""


def test_both_modules_load_offline_into_an_empty_cache_and_equal_the_functions(tmp_path):
    # Another interpreter, since evaluate and datasets read HF_HOME and HF_HUB_OFFLINE once, on import.
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment = {name: value for name, value in environment.items() if name not in CACHE_VARIABLES}
    done = subprocess.run([sys.executable, "-c", LOAD_BOTH], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


CACHE_VARIABLES = {"HF_EVALUATE_CACHE", "HF_METRICS_CACHE", "HF_MODULES_CACHE", "HF_DATASETS_CACHE"}


def test_every_module_is_found_by_its_name():
    for name in ("htsat_clip_scores", "htsat_event_f1"):
        assert (Path(metrics.evaluate_module(name)) / f"{name}.py").is_file()


def test_an_unknown_module_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match="'accuracy'; there are htsat_clip_scores, htsat_event_f1"):
        metrics.evaluate_module("accuracy")
