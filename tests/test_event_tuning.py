"""Tuning of decoding values: what it must find, what it must leave alone, and that no class disturbs another."""

import numpy as np
import pytest

from modeling_htsat import HTSATConfig
from modeling_htsat.event_tuning import _find_best_cell, tune_event_decoding
from modeling_htsat.events_htsat import EventDecoding, decode_events, events_to_frames
from modeling_htsat.metrics import collar_f1, intersection_f1, segment_f1

STEP_SECONDS = 0.5
LABELS = ["Cat", "Dog", "Blender"]
METRICS = {"intersection_f1": intersection_f1, "collar_f1": collar_f1, "segment_f1": segment_f1}


def make_truth(num_clips):
    draw = np.random.default_rng(7)
    truth = {}
    for index in range(num_clips):
        onsets = draw.integers(0, 8, 2) * STEP_SECONDS
        lengths = draw.integers(2, 7, 2) * STEP_SECONDS
        truth[f"clip {index}"] = [
            (float(onset), float(onset + length), label)
            for onset, length, label in zip(onsets, lengths, LABELS, strict=False)
        ]
    return truth


def make_scores(truth, low, high, num_steps=17):
    """Score `low` per class outside of events and `high` inside, without any error."""
    frames = {
        filename: events_to_frames(
            [{"onset": onset, "offset": offset, "label": label} for onset, offset, label in events],
            num_steps,
            STEP_SECONDS,
            LABELS,
        )
        for filename, events in truth.items()
    }
    return {filename: np.where(frame > 0, high, low) for filename, frame in frames.items()}


def detect(frame_scores, decoding, durations=None, step_seconds=STEP_SECONDS, labels=LABELS):
    detections = {}
    for filename, scores in frame_scores.items():
        duration_seconds = None if durations is None else durations[filename]
        events = decode_events(scores, step_seconds, decoding, labels, duration_seconds)
        detections[filename] = [(event["onset"], event["offset"], event["label"]) for event in events]
    return detections


@pytest.mark.parametrize("metric", METRICS)
def test_each_class_gets_the_middle_of_the_thresholds_that_separate_it(metric):
    truth = make_truth(5)
    scores = make_scores(truth, low=np.array([0.1, 0.5, 0.1]), high=np.array([0.4, 0.8, 0.4]))
    thresholds = [0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85]
    tuned = tune_event_decoding(scores, STEP_SECONDS, truth, LABELS, metric, thresholds=thresholds)
    assert tuned.threshold == {"Cat": 0.25, "Dog": 0.65, "Blender": 0.5}
    assert tuned.median_filter_seconds == dict.fromkeys(LABELS, 0.0)
    assert METRICS[metric](truth, detect(scores, tuned))["macro"] == 1.0


def test_a_filter_is_chosen_for_the_class_that_flickers():
    truth = {"clip": [(0.0, 8.0, "Cat"), (2.0, 4.0, "Dog")]}
    scores = make_scores(truth, low=0.1, high=0.9, num_steps=16)
    scores["clip"][3::4, 0] = 0.0  # below every threshold
    tuned = tune_event_decoding(scores, STEP_SECONDS, truth, LABELS, "collar_f1", median_filter_seconds=[2.5, 0.0, 1.5])
    assert tuned.median_filter_seconds == {"Cat": 1.5, "Dog": 0.0, "Blender": 0.0}


def noisy_set(num_clips=9):
    draw = np.random.default_rng(11)
    truth = make_truth(num_clips)
    scores = make_scores(truth, low=0.3, high=0.6)
    noisy = {name: np.clip(of_clip + draw.normal(0, 0.15, of_clip.shape), 0, 1) for name, of_clip in scores.items()}
    return noisy, truth


@pytest.mark.parametrize("metric", METRICS)
def test_no_other_values_of_the_search_are_better(metric):
    scores, truth = noisy_set()
    thresholds, filters = [0.2, 0.35, 0.5, 0.65], [0.0, 1.5]
    durations = {filename: 7.0 + index / 10 for index, filename in enumerate(scores)}
    tuned = tune_event_decoding(scores, STEP_SECONDS, truth, LABELS, metric, durations, thresholds, filters)
    options = {} if metric == "collar_f1" else {"durations": durations}
    best = METRICS[metric](truth, detect(scores, tuned, durations), **options)["per_class"]
    for threshold in thresholds:
        for filter_seconds in filters:
            other = detect(scores, EventDecoding(threshold, median_filter_seconds=filter_seconds), durations)
            per_class = METRICS[metric](truth, other, **options)["per_class"]
            assert all(best[label] >= per_class[label] for label in ("Cat", "Dog"))


def test_a_class_is_tuned_the_same_alone_and_among_others():
    scores, truth = noisy_set()
    together = tune_event_decoding(scores, STEP_SECONDS, truth, LABELS)
    for index, label in enumerate(LABELS[:2]):
        own_scores = {filename: of_clip[:, [index]] for filename, of_clip in scores.items()}
        own_truth = {name: [event for event in events if event[2] == label] for name, events in truth.items()}
        alone = tune_event_decoding(own_scores, STEP_SECONDS, own_truth, [label])
        assert alone.threshold[label] == together.threshold[label]
        assert alone.median_filter_seconds[label] == together.median_filter_seconds[label]


def test_the_order_of_clips_and_of_values_to_try_does_not_matter():
    scores, truth = noisy_set()
    values = {"thresholds": [0.2, 0.5, 0.4, 0.3], "median_filter_seconds": [1.5, 0.0]}
    turned = {name: values_to_try[::-1] for name, values_to_try in values.items()}
    backwards = dict(reversed(scores.items()))
    tuned = tune_event_decoding(scores, STEP_SECONDS, truth, LABELS, **values)
    assert tuned == tune_event_decoding(backwards, STEP_SECONDS, truth, LABELS, **turned)


def test_clips_may_differ_in_steps_and_in_the_length_of_a_step():
    scores, truth = noisy_set()
    finer = {name: np.repeat(of_clip, 1 + index % 3, axis=0) for index, (name, of_clip) in enumerate(scores.items())}
    step_seconds = {name: STEP_SECONDS / (1 + index % 3) for index, name in enumerate(scores)}
    values = {"thresholds": [0.3, 0.4, 0.5], "median_filter_seconds": [0.0]}
    tuned = tune_event_decoding(finer, step_seconds, truth, LABELS, "collar_f1", **values)
    assert tuned == tune_event_decoding(scores, STEP_SECONDS, truth, LABELS, "collar_f1", **values)


def test_a_class_without_truth_and_a_class_never_found_keep_the_default():
    truth = {"clip": [(1.0, 3.0, "Cat"), (1.0, 1.5, "Dog")]}
    scores = {"clip": np.zeros((17, 3))}
    scores["clip"][2:6, 0] = 0.9
    scores["clip"][12:16, 1:] = 0.9
    default = EventDecoding([0.1, 0.2, 0.3], median_filter_seconds=[1.0, 2.0, 3.0], min_event_seconds=0.75)
    tuned = tune_event_decoding(scores, STEP_SECONDS, truth, LABELS, default=default)
    assert tuned.threshold == {"Cat": 0.44, "Dog": 0.2, "Blender": 0.3}
    assert tuned.median_filter_seconds == {"Cat": 0.0, "Dog": 2.0, "Blender": 3.0}
    assert tuned.min_event_seconds == 0.75
    assert tuned.stay_threshold is None


def test_a_threshold_below_the_stay_threshold_takes_it_along():
    truth = {"clip": [(1.0, 3.0, "Cat")]}
    scores = make_scores(truth, low=0.05, high=0.15)
    default = EventDecoding(0.5, stay_threshold=0.3)
    tuned = tune_event_decoding(scores, STEP_SECONDS, truth, LABELS, default=default, thresholds=[0.1, 0.4])
    assert tuned.threshold == {"Cat": 0.1, "Dog": 0.5, "Blender": 0.5}
    assert tuned.stay_threshold == {"Cat": 0.1, "Dog": 0.3, "Blender": 0.3}


def test_files_without_truth_count_their_detections_as_wrong():
    truth = {"with": [(1.0, 3.0, "Cat")]}
    scores = make_scores(truth | {"without": []}, low=0.1, high=0.9)
    scores["without"][4:9, 0] = 0.4
    values = {"thresholds": [0.2, 0.3, 0.5, 0.6, 0.7], "median_filter_seconds": [0.0]}
    assert tune_event_decoding(scores, STEP_SECONDS, truth, LABELS, **values).threshold["Cat"] == 0.6


def test_options_reach_the_metric():
    truth = {"clip": [(1.0, 3.0, "Cat")]}
    scores = {"clip": np.zeros((17, 3))}
    scores["clip"][2:10, 0] = [0.9, 0.9, 0.9, 0.9, 0.3, 0.3, 0.3, 0.3]
    values = {"thresholds": [0.1, 0.5], "median_filter_seconds": [0.0]}
    loose = {"detection_tolerance": 0.5, "truth_tolerance": 0.5}
    strict = {"detection_tolerance": 0.9, "truth_tolerance": 0.5}
    arguments = (scores, STEP_SECONDS, truth, LABELS)
    assert tune_event_decoding(*arguments, **values, metric_options=loose).threshold["Cat"] == 0.1
    assert tune_event_decoding(*arguments, **values, metric_options=strict).threshold["Cat"] == 0.5


def test_among_equals_the_shortest_filter_and_the_middle_of_the_longest_stretch_win():
    f1 = np.array([[0.1, 0.2, 0.1, 0.2, 0.2], [0.9, 0.1, 0.9, 0.9, 0.9], [0.9, 0.9, 0.9, 0.9, 0.9]])
    assert _find_best_cell(f1) == (1, 3)
    assert _find_best_cell(f1[:1]) == (0, 3)
    assert _find_best_cell(np.array([[0.3, 0.3, 0.3, 0.3]])) == (0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "f1"}, "metric is 'f1'; choose one of intersection_f1, collar_f1, segment_f1"),
        ({"thresholds": []}, "at least one threshold"),
        ({"truth": {"other": []}}, "'other' is in the truth and has no frame scores"),
        ({"truth": {"clip": [(0.0, 1.0, "Cow")]}}, "label 'Cow', which is not among the labels"),
        ({"frame_scores": {"clip": np.zeros((9, 4))}}, "shape \\(9, 4\\) and need \\(steps, 3\\)"),
    ],
)
def test_a_search_that_cannot_succeed_is_refused(changes, message):
    usual = {
        "frame_scores": {"clip": np.zeros((9, 3))},
        "step_seconds": STEP_SECONDS,
        "truth": {"clip": [(0.0, 1.0, "Cat")]},
        "labels": LABELS,
    }
    with pytest.raises(ValueError, match=message):
        tune_event_decoding(**usual | changes)


def test_a_lower_threshold_to_stay_is_found_where_scores_sag_and_noise_would_be_let_in():
    # The event sags to 0.5 in its middle; elsewhere noise reaches 0.55 alone. One threshold splits or adds, two do not.
    scores = {"a": np.array([[0.1, 0.9, 0.5, 0.9, 0.1, 0.55, 0.1, 0.1]]).T}
    truth = {"a": [(1.0, 4.0, "Cat")]}
    plain = tune_event_decoding(scores, 1.0, truth, ["Cat"], "collar_f1", median_filter_seconds=(0.0,), stay_shares=())
    tuned = tune_event_decoding(
        scores,
        1.0,
        truth,
        ["Cat"],
        "collar_f1",
        thresholds=(0.3, 0.6, 0.8),
        median_filter_seconds=(0.0,),
        max_gap_seconds=(),
        min_event_seconds=(),
    )
    assert plain.stay_threshold is None
    assert tuned.stay_threshold["Cat"] < 0.5 < tuned.threshold["Cat"]
    assert collar_f1(truth, detect(scores, tuned, step_seconds=1.0, labels=["Cat"]))["macro"] == 1


def test_gaps_are_closed_and_short_events_dropped_only_for_the_classes_that_gain():
    # Cat is one event with a silent step; Dog has a spurious step beside its true event; Hen is perfect as it is.
    cat = [0, 0.9, 0.9, 0, 0.9, 0.9, 0, 0, 0]
    dog = [0.9, 0, 0, 0.9, 0.9, 0.9, 0, 0, 0]
    hen = [0, 0.9, 0, 0.9, 0, 0, 0, 0, 0.9]
    scores = {"a": np.array([cat, dog, hen]).T}
    truth = {"a": [(1, 6, "Cat"), (3, 6, "Dog"), (1, 2, "Hen"), (3, 4, "Hen"), (8, 9, "Hen")]}
    labels = ["Cat", "Dog", "Hen"]
    tuned = tune_event_decoding(
        scores,
        1.0,
        truth,
        labels,
        "collar_f1",
        median_filter_seconds=(0.0,),
        max_gap_seconds=(1.0,),
        min_event_seconds=(2.0,),
    )
    assert tuned.max_gap_seconds == {"Cat": 1.0, "Dog": 0.0, "Hen": 0.0}
    assert tuned.min_event_seconds == {"Cat": 0.0, "Dog": 2.0, "Hen": 0.0}
    assert collar_f1(truth, detect(scores, tuned, step_seconds=1.0, labels=labels))["macro"] == 1


def test_a_models_configuration_keeps_what_was_tuned(tmp_path):
    scores, truth = {"a": np.array([[0.1, 0.4, 0.1]]).T}, {"a": [(1.0, 2.0, "Cat")]}
    config = HTSATConfig(id2label={0: "Cat"})
    tuned = tune_event_decoding(scores, 1.0, truth, ["Cat"], config=config)
    config.save_pretrained(tmp_path)
    assert EventDecoding.from_dict(HTSATConfig.from_pretrained(tmp_path).event_decoding) == tuned
