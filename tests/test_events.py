"""Events from scores and back: worked by hand, against a slow decoder in plain Python, and as properties."""

import json
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_htsat.events_htsat import (
    EventDecoding,
    average_repeats,
    decode_events,
    events_to_frames,
    group_scores,
    interleave_shifts,
    median_filter_scores,
)

STEP_SECONDS = 0.3125
small_and_repeatable = settings(max_examples=60, derandomize=True, deadline=None)


def decode_one_class(scores, **values):
    """Decode one class with steps of one second into [(onset, offset, score)]."""
    options = {name: values.pop(name) for name in ("duration_seconds", "step_edges_seconds") if name in values}
    step_seconds = None if "step_edges_seconds" in options else 1.0
    column = np.array(scores, dtype=float)[:, None]
    events = decode_events(column, step_seconds, EventDecoding(**values), **options)
    return [(event["onset"], event["offset"], event["score"]) for event in events]


# ── decoding values ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_decoding_values_survive_json():
    decoding = EventDecoding({"Cat": 0.4, "Dog": 0.3}, {"Cat": 0.2, "Dog": 0.3}, np.array([0.5, 1.0]), 0.2, [0, 1])
    assert EventDecoding.from_dict(json.loads(json.dumps(decoding.to_dict()))) == decoding


def test_a_decoding_without_values_writes_no_empty_stay_threshold():
    assert EventDecoding().to_dict() == {
        "threshold": 0.5,
        "median_filter_seconds": 0.0,
        "max_gap_seconds": 0.0,
        "min_event_seconds": 0.0,
    }


def test_values_by_label_follow_the_order_of_the_labels():
    values = EventDecoding({"Cat": 0.4, "Dog": 0.3}, min_event_seconds=[1, 2]).for_classes(2, ["Dog", "Cat"])
    assert values["threshold"].tolist() == values["stay_threshold"].tolist() == [0.3, 0.4]
    assert values["min_event_seconds"].tolist() == [1.0, 2.0]
    assert values["max_gap_seconds"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threshold": 1.5}, "threshold must hold probabilities from 0 to 1 and holds 1.5"),
        ({"threshold": [0.5, math.nan]}, "holds nan"),
        ({"threshold": None}, "threshold is None; give one number"),
        ({"threshold": "high"}, "threshold is 'high'; give one number"),
        ({"stay_threshold": 0.6}, "stay_threshold 0.6 is above threshold 0.5;"),
        ({"threshold": [0.2, 0.4], "stay_threshold": 0.3}, "above threshold 0.2 for class 0"),
        ({"threshold": {"Cat": 0.1}, "stay_threshold": {"Cat": 0.2}}, "for class 'Cat'"),
        ({"threshold": {"Cat": 0.1}, "stay_threshold": [0.1]}, "name different classes"),
        ({"threshold": [0.5, 0.6, 0.7], "stay_threshold": [0.1, 0.1]}, "name different classes"),
        ({"max_gap_seconds": -1}, "max_gap_seconds must hold times of 0 seconds or more and holds -1.0"),
        ({"min_event_seconds": {"Cat": math.inf}}, "holds inf"),
        ({"median_filter_seconds": [0.1, -0.1]}, "holds -0.1"),
    ],
)
def test_impossible_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        EventDecoding(**values)


def test_unknown_values_are_refused():
    with pytest.raises(ValueError, match="no value called treshold; it knows threshold,"):
        EventDecoding.from_dict({"treshold": 0.5})


@pytest.mark.parametrize(
    ("decoding", "labels", "message"),
    [
        (EventDecoding([0.5, 0.5]), None, "holds 2 numbers and the scores have 3 classes"),
        (EventDecoding({"a": 0.5}), None, "pass the `labels`"),
        (EventDecoding({"a": 0.5, "b": 0.5, "d": 0.5}), ["a", "b", "c"], "differ in \\['c', 'd'\\]"),
        (EventDecoding(), ["a", "b"], "3 classes and 2 labels"),
    ],
)
def test_values_that_do_not_fit_the_classes_are_refused(decoding, labels, message):
    with pytest.raises(ValueError, match=message):
        decode_events(np.zeros((4, 3)), STEP_SECONDS, decoding, labels)


# ── scores to events ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_event_begins_and_ends_with_its_steps():
    scores = np.array([[0.1, 0.9], [0.7, 0.1], [0.8, 0.1], [0.2, 0.6]], dtype=np.float32)
    events = decode_events(scores, STEP_SECONDS, EventDecoding(), ["Speech", "Dog"], duration_seconds=1.2)
    assert [(event["label"], event["onset"], event["offset"]) for event in events] == [
        ("Dog", 0.0, 0.3125),
        ("Speech", 0.3125, 0.9375),
        ("Dog", 0.9375, 1.2),
    ]
    assert [event["score"] for event in events] == pytest.approx([0.9, 0.8, 0.6])
    assert all(type(event[name]) is float for event in events for name in ("onset", "offset", "score"))


def test_without_labels_an_event_names_its_class_index():
    assert decode_events(np.eye(3)[:, [0, 2]], 1.0, EventDecoding()) == [
        {"label": 0, "onset": 0.0, "offset": 1.0, "score": 1.0},
        {"label": 1, "onset": 2.0, "offset": 3.0, "score": 1.0},
    ]


@pytest.mark.parametrize("dtype", [np.float16, np.int64, bool])
def test_scores_of_other_types_decode_as_well(dtype):
    scores = np.array([[0, 1], [1, 1], [0, 0]], dtype=dtype)
    assert decode_events(scores, 1.0, EventDecoding()) == decode_events(scores.astype(float), 1.0, EventDecoding())


def test_events_that_begin_together_are_sorted_by_label():
    events = decode_events(np.ones((2, 3)), 1.0, EventDecoding(), ["b", "c", "a"])
    assert [event["label"] for event in events] == ["a", "b", "c"]


def test_a_score_at_the_threshold_does_not_begin_an_event():
    assert decode_one_class([0.5, 0.5]) == []
    for decoding in (EventDecoding(0.6), EventDecoding(0.6, stay_threshold=0.2)):
        assert decode_events(np.full((2, 1), 0.6, dtype=np.float32), 1.0, decoding) == []
    assert decode_one_class([0.6, 0.9], threshold=0.7, stay_threshold=0.6) == [(1.0, 2.0, 0.9)]


def test_an_event_that_has_begun_lasts_down_to_the_stay_threshold():
    scores = [0.3, 0.6, 0.3, 0.1, 0.3, 0.3, 0.1, 0.3, 0.3, 0.9]
    assert decode_one_class(scores, stay_threshold=0.2) == [(0.0, 3.0, 0.6), (7.0, 10.0, 0.9)]


def test_gaps_are_merged_before_short_events_are_dropped():
    scores = [0.9, 0.0, 0.6, 0.0, 0.0, 0.7, 0.0, 0.0]
    assert decode_one_class(scores, max_gap_seconds=1.0) == [(0.0, 3.0, 0.9), (5.0, 6.0, 0.7)]
    assert decode_one_class(scores, min_event_seconds=2.0) == []
    assert decode_one_class(scores, max_gap_seconds=1.0, min_event_seconds=2.0) == [(0.0, 3.0, 0.9)]


def test_gaps_and_lengths_of_exactly_the_limit_count_in_spite_of_rounding():
    scores = np.array([1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 1], dtype=float)[:, None]
    merging = EventDecoding(max_gap_seconds=0.3, min_event_seconds=0.3)
    assert [(e["onset"], e["offset"]) for e in decode_events(scores, 0.1, merging)] == [(0.0, pytest.approx(1.1))]
    dropping = EventDecoding(min_event_seconds=0.3)
    assert len(decode_events(scores, 0.1, dropping)) == 2


def test_the_median_filter_looks_at_scores_and_not_at_decisions_of_one_threshold():
    scores = [0.1, 0.9, 0.1, 0.1, 0.8, 0.3, 0.7, 0.1]
    # Medians of three: 0.1 0.1 0.1 0.1 0.3 0.7 0.3 0.1
    assert decode_one_class(scores, median_filter_seconds=3, stay_threshold=0.2) == [(4.0, 7.0, 0.7)]


def test_the_score_of_an_event_is_the_highest_smoothed_one():
    # The raw score in the only event is 0; its neighbours carry it.
    assert decode_one_class([0.0, 0.9, 0.0, 0.8, 0.0], median_filter_seconds=3) == [(2.0, 3.0, 0.8)]


def test_an_even_filter_is_raised_to_the_next_odd_number_of_steps():
    scores = np.random.default_rng(5).random((23, 1))
    events = [decode_events(scores, 1.0, EventDecoding(0.4, median_filter_seconds=s)) for s in (1.6, 2.0, 3.0, 3.4)]
    assert events[0] == events[1] == events[2] == events[3]
    assert events[0] != decode_events(scores, 1.0, EventDecoding(0.4, median_filter_seconds=1.4))


def test_the_filter_repeats_the_scores_at_the_edges():
    scores = np.array([[0.9], [0.8], [0.1], [0.2], [0.7]])
    assert median_filter_scores(scores, 5)[:, 0].tolist() == [0.9, 0.8, 0.7, 0.7, 0.7]
    with pytest.raises(ValueError, match="odd number of steps and was given \\[4\\]"):
        median_filter_scores(scores, 4)


def test_a_filter_of_the_smallest_memory_gives_the_same_scores(monkeypatch):
    scores, lengths = np.random.default_rng(3).random((13, 5)), np.array([3, 1, 7, 3, 31])
    at_once = median_filter_scores(scores, lengths)
    monkeypatch.setattr("modeling_htsat.events_htsat.MEDIAN_BLOCK", 1)
    assert np.array_equal(median_filter_scores(scores, lengths), at_once)


def test_no_event_lies_beyond_the_duration():
    scores = [0.9, 0.0, 0.9, 0.9, 0.0, 0.9]
    assert decode_one_class(scores, duration_seconds=2.5) == [(0.0, 1.0, 0.9), (2.0, 2.5, 0.9)]
    assert decode_one_class(scores, duration_seconds=2.0) == [(0.0, 1.0, 0.9)]
    assert decode_one_class(scores, duration_seconds=9.0)[-1] == (5.0, 6.0, 0.9)
    # A duration that rounding made too long by its last bit does not open another step.
    assert decode_one_class(scores, duration_seconds=np.nextafter(2.0, 3.0)) == [(0.0, 1.0, 0.9)]


def test_scores_beyond_the_duration_do_not_reach_back_through_the_filter():
    inside, beyond = [0.1, 0.1, 0.9], [0.9, 0.9]
    values = {"median_filter_seconds": 5, "duration_seconds": 3.0}
    assert decode_one_class(inside + beyond, **values) == decode_one_class(inside, **values)


def test_uneven_steps_are_described_by_their_edges():
    edges = np.array([0.0, 0.5, 2.0, 2.25, 6.0])
    scores = [0.9, 0.1, 0.7, 0.8]
    assert decode_one_class(scores, step_edges_seconds=edges) == [(0.0, 0.5, 0.9), (2.0, 6.0, 0.8)]
    assert decode_one_class(scores, step_edges_seconds=edges, duration_seconds=3.0)[-1] == (2.0, 3.0, 0.8)


def test_a_filter_over_uneven_steps_counts_steps_of_the_median_length():
    edges = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 14.0, 24.0, 34.0, 44.0, 54.0])
    scores = [0.1, 0.9, 0.1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]
    assert decode_one_class(scores, step_edges_seconds=edges, median_filter_seconds=3) == [
        (1.0, 2.0, 0.9),
        (3.0, 54.0, 0.9),
    ]
    # Within four seconds the usual step lasts one second, and the filter spans three.
    short = {"step_edges_seconds": edges, "duration_seconds": 4.0}
    assert decode_one_class(scores, **short, median_filter_seconds=3) == [(2.0, 4.0, 0.9)]


def test_a_clip_without_steps_and_scores_without_classes_hold_no_events():
    assert decode_events(np.zeros((0, 3)), STEP_SECONDS, EventDecoding()) == []
    assert decode_events(np.zeros((3, 0)), STEP_SECONDS, EventDecoding()) == []


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (np.full((4, 3), -2.0), {}, "apply the sigmoid first"),
        (np.full((4, 3), np.nan), {}, "probabilities from 0 to 1"),
        (np.zeros((2, 4, 3)), {}, "came as \\(2, 4, 3\\); pass one clip"),
        (np.zeros((4, 3)), {"step_seconds": None}, "either step_seconds or step_edges_seconds"),
        (np.zeros((4, 3)), {"step_edges_seconds": np.arange(5)}, "either step_seconds or step_edges_seconds"),
        (np.zeros((4, 3)), {"step_seconds": None, "step_edges_seconds": np.arange(4)}, "4 steps need 5 edges"),
        (np.zeros((4, 3)), {"step_seconds": 0.0}, "each later than the one before"),
        (np.zeros((4, 3)), {"duration_seconds": 0.0}, "a clip lasts longer than 0 seconds"),
    ],
)
def test_scores_and_times_that_make_no_sense_are_refused(scores, options, message):
    with pytest.raises(ValueError, match=message):
        decode_events(scores, **{"step_seconds": STEP_SECONDS, "decoding": EventDecoding()} | options)


def decode_slowly(scores, step_seconds, values, labels, duration_seconds):
    """Decode as `decode_events` does, one step of one class at a time."""
    kept = [row for index, row in enumerate(scores.tolist()) if index * step_seconds < duration_seconds - 1e-9]
    events = []
    for index, label in enumerate(labels):
        of_class = {name: value[index] for name, value in values.items()}
        smooth = smooth_slowly([row[index] for row in kept], of_class["median_filter_seconds"] / step_seconds)
        found = find_slowly(smooth, of_class, step_seconds, duration_seconds)
        events += [{"label": label, "onset": a, "offset": b, "score": score} for a, b, score in found]
    return sorted(events, key=lambda event: (event["onset"], event["label"]))


def smooth_slowly(scores, filter_steps):
    length = math.floor(filter_steps + 0.5)
    half = (length + 1) // 2 if length % 2 == 0 else length // 2
    last = len(scores) - 1
    return [
        statistics.median(scores[min(max(step + offset, 0), last)] for offset in range(-half, half + 1))
        for step in range(len(scores))
    ]


def find_slowly(smooth, values, step_seconds, duration_seconds):
    spans, inside = [], False
    for step, score in enumerate(smooth):
        if score > values["stay_threshold"]:
            spans = spans if inside else [*spans, [step, step, False]]
            spans[-1][1] = step + 1
            spans[-1][2] |= score > values["threshold"]
        inside = score > values["stay_threshold"]
    events = []
    for first, end, begun in spans:
        onset, offset = first * step_seconds, min(end * step_seconds, duration_seconds)
        if begun and events and onset - events[-1][1] <= values["max_gap_seconds"] + 1e-9:
            events[-1] = (events[-1][0], offset, max(events[-1][2], *smooth[first:end], 0.0))
        elif begun:
            events.append((onset, offset, max(smooth[first:end])))
    return [event for event in events if event[1] - event[0] >= values["min_event_seconds"] - 1e-9]


@pytest.mark.parametrize("seed", range(40))
def test_fast_and_slow_decoding_find_the_same_events(seed):
    draw = np.random.default_rng(seed)
    num_steps, num_classes = int(draw.integers(1, 60)), int(draw.integers(1, 8))
    scores = draw.random((num_steps, num_classes)).round(int(draw.integers(1, 4)))  # rounded, so that equals occur
    threshold = draw.uniform(0.3, 0.8, num_classes).round(1)
    decoding = EventDecoding(
        threshold=threshold,
        stay_threshold=(threshold * draw.uniform(0.5, 1.0, num_classes)).round(2),
        median_filter_seconds=draw.choice([0.0, 0.3125, 0.7, 1.0, 1.6, 9.0], num_classes),
        max_gap_seconds=draw.choice([0.0, 0.3125, 0.5, 1.25], num_classes),
        min_event_seconds=draw.choice([0.0, 0.4, 0.625, 0.9375], num_classes),
    )
    labels = [f"class {index}" for index in draw.permutation(num_classes)]
    duration_seconds = float(draw.uniform(0.2, 1.1)) * num_steps * STEP_SECONDS
    expected = decode_slowly(scores, STEP_SECONDS, decoding.for_classes(num_classes), labels, duration_seconds)
    assert decode_events(scores, STEP_SECONDS, decoding, labels, duration_seconds) == expected


@small_and_repeatable
@given(st.integers(0, 10**6), st.floats(0.05, 0.95), st.floats(0.0, 3.0))
def test_events_are_ordered_apart_and_above_their_threshold(seed, threshold, filter_seconds):
    scores = np.random.default_rng(seed).random((29, 3)).astype(np.float32)
    decoding = EventDecoding(threshold, threshold / 2, filter_seconds)
    events = decode_events(scores, STEP_SECONDS, decoding, ["a", "b", "c"], duration_seconds=8.9)
    for label in "abc":
        of_class = [event for event in events if event["label"] == label]
        assert all(first["offset"] < second["onset"] for first, second in zip(of_class, of_class[1:], strict=False))
    assert all(0 <= event["onset"] < event["offset"] <= 8.9 for event in events)
    assert all(event["score"] >= np.float32(threshold) for event in events)


# ── events to frames ──────────────────────────────────────────────────────────────────────────────────────────────────


def make_event(onset, offset, label="Cat"):
    return {"label": label, "onset": onset, "offset": offset}


@pytest.mark.parametrize(
    ("min_overlap", "expected"),
    [(0.0, [1, 1, 1, 1, 0]), (0.5, [0, 1, 1, 1, 0]), (0.75, [0, 1, 1, 0, 0]), (1.0, [0, 1, 1, 0, 0])],
)
def test_an_event_covers_the_steps_of_which_it_fills_enough(min_overlap, expected):
    events = [make_event(0.6, 3.5)]
    frames = events_to_frames(events, 5, 1.0, ["Dog", "Cat"], min_overlap=min_overlap)
    assert frames.dtype == np.float32
    assert frames.T.tolist() == [[0] * 5, expected]


def test_a_short_event_marks_the_step_that_holds_most_of_it():
    assert events_to_frames([make_event(1.9, 2.2)], 4, 1.0, ["Cat"])[:, 0].tolist() == [0, 0, 1, 0]
    assert events_to_frames([make_event(0.6, 1.4)], 4, 1.0, ["Cat"])[:, 0].tolist() == [1, 0, 0, 0]
    # Longer than half a step, and still less than half of either step.
    assert events_to_frames([make_event(1.6, 2.45)], 4, 1.0, ["Cat"])[:, 0].tolist() == [0, 0, 1, 0]


def test_what_lies_outside_the_steps_is_cut_off():
    events = [make_event(-3.0, 0.7), make_event(2.2, 9.0), make_event(9.0, 9.5), make_event(-2.0, 0.0)]
    assert events_to_frames(events, 4, 1.0, ["Cat"])[:, 0].tolist() == [1, 0, 1, 1]
    assert events_to_frames(events, 4, 1.0, ["Cat"], duration_seconds=2.0)[:, 0].tolist() == [1, 0, 0, 0]


def test_half_of_a_clipped_step_is_half_of_what_is_left_of_it():
    assert events_to_frames([make_event(3.3, 3.4)], 4, 1.0, ["Cat"], duration_seconds=3.4, min_overlap=0.25).sum() == 1
    assert events_to_frames([make_event(2.0, 3.2)], 4, 1.0, ["Cat"], duration_seconds=3.4)[:, 0].tolist() == [
        0,
        0,
        1,
        1,
    ]


def test_frames_follow_uneven_step_edges():
    edges = np.array([0.0, 1.0, 1.5, 4.0])
    frames = events_to_frames([make_event(0.8, 2.5)], 3, None, ["Cat"], step_edges_seconds=edges)
    assert frames[:, 0].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (make_event(1.0, 2.0, "Cow"), "not among the 2 labels given"),
        (make_event(2.0, 2.0), "does not end after it begins"),
        (make_event(math.nan, 2.0), "does not end after it begins"),
    ],
)
def test_strange_events_are_refused(event, message):
    with pytest.raises(ValueError, match=message):
        events_to_frames([event], 4, 1.0, ["Dog", "Cat"])


def test_an_overlap_of_more_than_a_whole_step_is_refused():
    with pytest.raises(ValueError, match="min_overlap is 2; it is a part of a step"):
        events_to_frames([], 4, 1.0, ["Cat"], min_overlap=2)


@small_and_repeatable
@given(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([0.3125, 0.1, 1 / 3]),
)
def test_events_on_step_edges_come_back_from_their_frames(activity, min_overlap, step_seconds):
    labels = ["a", "b", "c"]
    frames = np.array(activity, dtype=np.float32)
    events = decode_events(frames, step_seconds, EventDecoding(), labels)
    again = events_to_frames(events, len(frames), step_seconds, labels, min_overlap=min_overlap)
    assert np.array_equal(again, frames)
    assert decode_events(again, step_seconds, EventDecoding(), labels) == events


@small_and_repeatable
@given(st.floats(0.0, 9.9), st.floats(0.001, 8.0), st.floats(0.0, 1.0))
def test_no_event_vanishes(onset, length_seconds, min_overlap):
    frames = events_to_frames(
        [make_event(onset, onset + length_seconds)], 32, STEP_SECONDS, ["Cat"], min_overlap=min_overlap
    )
    assert frames.any()
    first, last = np.flatnonzero(frames[:, 0])[[0, -1]]
    assert first * STEP_SECONDS < onset + length_seconds
    assert (last + 1) * STEP_SECONDS > onset


# ── repeats, groups, shifts ───────────────────────────────────────────────────────────────────────────────────────────


def test_repeats_that_divide_evenly_are_averaged_step_by_step():
    scores = np.random.default_rng(0).random((12, 5)).astype(np.float32)
    averaged = average_repeats(scores, 3)
    assert averaged.dtype == np.float32
    assert averaged == pytest.approx(scores.reshape(3, 4, 5).mean(axis=0))


def test_one_repeat_changes_nothing():
    scores = np.random.default_rng(1).random((7, 3))
    assert average_repeats(scores, 1) == pytest.approx(scores)


def test_repeats_that_divide_unevenly_are_weighted_by_overlap():
    # Five steps hold two repeats of 2.5 steps; the clip gets three steps, each of 5/6 of a model step.
    averaged = average_repeats(np.array([[1.0], [2.0], [3.0], [4.0], [5.0]]), 2)
    first = [1.0, (1 / 6 * 1 + 4 / 6 * 2) * 6 / 5, (2 / 6 * 2 + 3 / 6 * 3) * 6 / 5]
    second = [(3 / 6 * 3 + 2 / 6 * 4) * 6 / 5, (4 / 6 * 4 + 1 / 6 * 5) * 6 / 5, 5.0]
    assert averaged[:, 0] == pytest.approx((np.array(first) + second) / 2)


@small_and_repeatable
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 999))
def test_averaging_repeats_keeps_the_mean_and_the_range(num_steps, num_repeats, seed):
    scores = np.random.default_rng(seed).random((num_steps, 2))
    averaged = average_repeats(scores, num_repeats)
    assert averaged.shape == (math.ceil(num_steps / num_repeats), 2)
    assert averaged.mean(axis=0) == pytest.approx(scores.mean(axis=0))
    assert averaged.min() >= scores.min() - 1e-12
    assert averaged.max() <= scores.max() + 1e-12


def test_fewer_than_one_repeat_is_refused():
    with pytest.raises(ValueError, match="6 steps of 0 repeats; both must be at least 1"):
        average_repeats(np.zeros((6, 2)), 0)


def test_a_group_scores_as_its_highest_class():
    scores = np.array([[0.1, 0.5, 0.2, 0.9], [0.8, 0.3, 0.4, 0.0]])
    groups = {"Cat": [0, 2], "Dog": [1], "Any": [3, 1, 0]}
    assert group_scores(scores, groups).tolist() == [[0.2, 0.5, 0.9], [0.8, 0.3, 0.8]]
    assert group_scores(scores, {"Cat": [0, 2]}, reduce="mean") == pytest.approx(np.array([[0.15], [0.6]]))


def test_a_union_of_decisions_is_the_decision_on_the_maximum():
    scores = np.random.default_rng(2).random((11, 6)).round(1)
    groups, thresholds = {"first": [0, 3, 4], "second": [5, 1]}, [0.7, 0.9]
    of_classes = np.array([0.7, 0.9, 1.0, 0.7, 0.7, 0.9])
    union = group_scores(scores > of_classes, groups)
    assert union.dtype == bool
    assert np.array_equal(union, group_scores(scores, groups) > thresholds)


@pytest.mark.parametrize("indexes", [[], [0, 4], [-1]])
def test_groups_name_classes_that_exist(indexes):
    with pytest.raises(ValueError, match="Group 'Cat' is .*; name classes from 0 to 3"):
        group_scores(np.zeros((2, 4)), {"Cat": indexes})


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="reduce is 'min'"):
        group_scores(np.zeros((2, 4)), {"Cat": [1]}, reduce="min")


def listen_with_shifts(truth_per_tick, num_passes, ticks_per_step):
    """Play the model: a step scores the mean of the truth over its ticks; beyond the clip is silence."""
    num_steps = len(truth_per_tick) // ticks_per_step
    passes = []
    for index in range(num_passes):
        cut = index * ticks_per_step // num_passes
        shifted = np.concatenate([truth_per_tick[cut:], np.zeros(cut)])
        passes.append(shifted.reshape(num_steps, ticks_per_step).mean(axis=1, keepdims=True))
    return passes


def test_one_pass_stays_as_it_is():
    scores = np.random.default_rng(4).random((6, 3)).astype(np.float32)
    assert np.array_equal(interleave_shifts([scores]), scores)
    assert interleave_shifts([scores]).dtype == np.float32


def test_three_passes_fall_onto_the_centres_of_fine_steps():
    passes = [np.array([[0.0], [0.3]]), np.array([[0.1], [0.4]]), np.array([[0.2], [0.5]])]
    assert interleave_shifts(passes)[:, 0].tolist() == [0.0, 0.0, 0.1, 0.2, 0.3, 0.4]


def test_two_passes_are_averaged_onto_the_centres_of_fine_steps():
    passes = [np.array([[0.0], [0.4]]), np.array([[0.2], [0.6]])]
    assert interleave_shifts(passes)[:, 0] == pytest.approx([0.0, 0.1, 0.3, 0.5])


@pytest.mark.parametrize("num_passes", [1, 2, 3, 4, 5, 6])
def test_interleaved_passes_of_a_rising_sound_stay_on_its_line(num_passes):
    ticks_per_step, num_steps = 60, 9
    line = (np.arange(num_steps * ticks_per_step) + 0.5) / (num_steps * ticks_per_step)
    fine = interleave_shifts(listen_with_shifts(line, num_passes, ticks_per_step))[:, 0]
    centres = (np.arange(num_steps * num_passes) + 0.5) / (num_steps * num_passes)
    inner = slice(num_passes, -num_passes)
    assert fine[inner] == pytest.approx(centres[inner])


@pytest.mark.parametrize("num_passes", [2, 3, 4, 5, 6, 10])
def test_shifted_passes_place_an_onset_within_one_fine_step(num_passes):
    ticks_per_step, num_steps = 60, 8
    worst_coarse = worst_fine = 0.0
    for onset_ticks in range(3 * ticks_per_step, 4 * ticks_per_step):
        truth = (np.arange(num_steps * ticks_per_step) >= onset_ticks).astype(float)
        passes = listen_with_shifts(truth, num_passes, ticks_per_step)
        onset_steps = onset_ticks / ticks_per_step
        coarse = decode_events(passes[0], 1.0, EventDecoding())[0]["onset"]
        fine = decode_events(interleave_shifts(passes), 1.0 / num_passes, EventDecoding())[0]["onset"]
        worst_coarse = max(worst_coarse, abs(coarse - onset_steps))
        worst_fine = max(worst_fine, abs(fine - onset_steps))
    assert worst_coarse == pytest.approx(0.5)
    assert worst_fine <= 1.0 / num_passes + 1e-9


def test_passes_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape and came as"):
        interleave_shifts([np.zeros((4, 3)), np.zeros((5, 3))])
    with pytest.raises(ValueError, match="came as \\[\\]"):
        interleave_shifts([])
