"""The scores: worked by hand, held against the reference packages, and true for any input."""

import json
import math
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_htsat import event_metrics, metrics

EVENT_SCORES = (metrics.intersection_f1, metrics.collar_f1, metrics.segment_f1)


@pytest.fixture
def reference_packages(monkeypatch):
    """dcase_util 0.2.20 imports pkg_resources, which newer setuptools lack, and uses it only to print versions."""
    try:
        import pkg_resources  # noqa: F401
    except ImportError:
        monkeypatch.setitem(sys.modules, "pkg_resources", types.ModuleType("pkg_resources"))
    import sed_eval
    import sed_scores_eval

    return SimpleNamespace(sed_eval=sed_eval, sed_scores_eval=sed_scores_eval)


def random_table(rng: np.random.RandomState, num_files: int = 12) -> dict:
    """Up to three events of each of three classes per file, on a grid of 0.1 s, not overlapping within a class.

    RandomState, whose numbers never change between NumPy versions: the psds_eval values below depend on them.
    """
    table = {}
    for index in range(num_files):
        events = []
        for label in ("Cat", "Dog", "Speech"):
            times = np.sort(rng.randint(0, 100, 6)) / 10
            pairs = zip(times[::2], times[1::2], strict=True)
            events += [(float(onset), float(offset), label) for onset, offset in pairs if offset > onset]
        table[f"{index}.wav"] = events
    return table


def nudged_table(rng: np.random.RandomState, table: dict) -> dict:
    """The same events moved by up to 0.3 s, some dropped, some under another label."""
    return {
        filename: [
            (max(0.0, onset + rng.uniform(-0.3, 0.3)), offset + 0.6, rng.choice(["Cat", "Dog", label, label, label]))
            for onset, offset, label in events
            if rng.uniform() < 0.8
        ]
        for filename, events in table.items()
    }


tables = st.dictionaries(
    st.sampled_from(["a.wav", "b.wav", "c.wav"]),
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(1, 20), st.sampled_from(["Cat", "Dog"])).map(
            lambda drawn: (drawn[0] / 4, (drawn[0] + drawn[1]) / 4, drawn[2])
        ),
        max_size=6,
    ),
    min_size=1,
).map(metrics.merge_overlapping_events)


# ── clips ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

# Class 0: positives rank 1 and 3 of 4, so AP = (1/1 + 2/3) / 2 = 5/6; of 4 pairs 3 are in order, so AUC = 3/4.
# Class 1: positive ranks last of 4, so AP = 1/4 and AUC = 0.  Class 2: no positive.  Class 3: only positives, AP = 1.
HAND_SCORES = np.array([[0.9, 0.1, 0.5, 0.2], [0.8, 0.2, 0.1, 0.3], [0.7, 0.3, 0.2, 0.4], [0.1, 0.4, 0.3, 0.1]])
HAND_TARGETS = np.array([[1, 1, 0, 1], [0, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 1]])


def test_classes_without_positives_are_left_out_of_the_mean_and_counted():
    scores = metrics.clip_scores(HAND_SCORES, HAND_TARGETS)
    assert scores["mean_average_precision"] == pytest.approx((5 / 6 + 1 / 4 + 1) / 3)
    assert scores["mean_auc"] == pytest.approx((3 / 4 + 0) / 2)
    assert (scores["map_classes_counted"], scores["map_classes_skipped"]) == (3, 1)
    assert (scores["auc_classes_counted"], scores["auc_classes_skipped"]) == (2, 2)
    assert "accuracy" not in scores


def test_the_single_functions_equal_the_summary():
    summary = metrics.clip_scores(HAND_SCORES, HAND_TARGETS)
    assert metrics.mean_average_precision(HAND_SCORES, HAND_TARGETS) == summary["mean_average_precision"]
    assert metrics.mean_auc(HAND_SCORES, HAND_TARGETS) == summary["mean_auc"]
    assert metrics.d_prime(HAND_SCORES, HAND_TARGETS) == summary["d_prime"]


def test_per_class_scores_are_nan_where_they_are_undefined():
    np.testing.assert_allclose(
        metrics.average_precision_per_class(HAND_SCORES, HAND_TARGETS), [5 / 6, 1 / 4, np.nan, 1]
    )
    np.testing.assert_allclose(metrics.auc_per_class(HAND_SCORES, HAND_TARGETS), [3 / 4, 0, np.nan, np.nan])


def test_class_indices_give_the_accuracy_too():
    scores = [[0.1, 0.7, 0.2], [0.5, 0.4, 0.1], [0.3, 0.4, 0.3], [0.0, 0.1, 0.9]]  # argmax 1, 0, 1, 2
    assert metrics.accuracy(scores, [1, 0, 2, 2]) == 0.75
    by_index = metrics.clip_scores(scores, [1, 0, 2, 2])
    one_hot = metrics.clip_scores(scores, np.eye(3)[[1, 0, 2, 2]])
    assert by_index == {"accuracy": 0.75} | one_hot


def test_mean_average_precision_equals_sklearn_and_a_plain_loop_over_distinct_scores():
    rng = np.random.RandomState(0)
    scores, targets = rng.permutation(40 * 7).reshape(40, 7), rng.randint(0, 2, (40, 7))
    by_hand = []
    for column in range(7):
        ranked = targets[np.argsort(-scores[:, column]), column]
        precisions = [ranked[: rank + 1].mean() for rank in range(40) if ranked[rank]]
        by_hand.append(np.mean(precisions))
    assert metrics.mean_average_precision(scores, targets) == pytest.approx(np.mean(by_hand))


def test_d_prime_matches_known_quantiles_and_stays_finite():
    # The normal quantile of 0.97 is 1.88079, so d' is 2.65984 (PANNs report 0.973 as 2.725).
    assert metrics.d_prime_from_auc(0.97) == pytest.approx(2.65984, abs=1e-5)
    assert metrics.d_prime_from_auc(0.973) == pytest.approx(2.725, abs=1e-3)
    assert metrics.d_prime_from_auc(0.5) == 0
    assert 11 < metrics.d_prime_from_auc(1.0) < 12
    assert -12 < metrics.d_prime_from_auc(0.0) < -11
    assert math.isnan(metrics.d_prime_from_auc(math.nan))


def test_without_any_positive_clip_the_means_are_nan_and_nothing_is_counted():
    scores = metrics.clip_scores(HAND_SCORES, np.zeros((4, 4)))
    assert math.isnan(scores["mean_average_precision"])
    assert scores["map_classes_counted"] == 0


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 4)), r"same shape \(clips, classes\); received \(3, 2\) and \(3, 4\)"),
        (np.zeros(3), np.zeros((3, 1)), r"received \(3,\)"),
        (np.zeros((0, 4)), np.zeros((0, 4)), "at least one"),
        ([[0.1, math.nan]], [[0, 1]], "score of clip 0, class 1 is nan"),
        ([[0.1, 0.2]], [[0.5, 1]], "target of clip 0, class 0 is 0.5"),
        ([[0.1, 0.2]], [[0, math.nan]], "target of clip 0, class 1 is nan"),
        ([[0.1, 0.2]], [2], "from 0 to 1; received 2"),
        ([[0.1, 0.2]], [0, 1], "1 clips need 1 class indices"),
    ],
)
def test_wrong_clip_arrays_are_named_in_one_sentence(scores, targets, message):
    with pytest.raises(ValueError, match=message):
        metrics.clip_scores(scores, targets)


def test_the_sigmoid_neither_overflows_nor_loses_small_probabilities():
    with np.errstate(all="raise", under="ignore"):
        values = metrics.sigmoid(np.array([-1e4, -50, 0, 50, 1e4], dtype=np.float32))
    np.testing.assert_allclose(values, [0, math.exp(-50), 0.5, 1, 1], rtol=1e-12)


# ── Trainer ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def prediction(predictions, label_ids):
    return SimpleNamespace(predictions=predictions, label_ids=label_ids)


def test_multi_label_metrics_take_logits_alone_or_first_in_a_tuple():
    compute = metrics.clip_metrics_for_trainer("multi_label_classification")
    logits = np.log(HAND_SCORES / (1 - HAND_SCORES))
    expected = metrics.clip_scores(metrics.sigmoid(logits), HAND_TARGETS)
    assert compute(prediction(logits, HAND_TARGETS)) == expected
    assert compute(prediction((logits, np.zeros((4, 5, 4))), HAND_TARGETS)) == expected


@pytest.mark.parametrize("missing", [-100.0, math.nan])
def test_missing_labels_take_no_part_in_multi_label_metrics(missing):
    compute = metrics.clip_metrics_for_trainer("multi_label_classification")
    labels = HAND_TARGETS.astype(float)
    labels[1, 0] = missing  # without the wrong leader, class 0 ranks 1 1 0: AP = 1 and AUC = 1
    scores = compute(prediction(HAND_SCORES, labels))
    assert scores["mean_average_precision"] == pytest.approx((1 + 1 / 4 + 1) / 3)
    assert scores["mean_auc"] == pytest.approx((1 + 0) / 2)


def test_single_label_metrics_rank_by_softmax_and_drop_missing_clips():
    compute = metrics.clip_metrics_for_trainer("single_label_classification")
    logits = np.array([[2.0, 1.0, 0.0], [9.0, 8.0, 9.0], [0.0, 3.0, 1.0], [5.0, 5.0, 6.0], [1.0, 1.0, 9.0]])
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = compute(prediction(logits, np.array([0, 0, 1, -100, 2])))
    assert scores == metrics.clip_scores(softmax[[0, 1, 2, 4]], [0, 0, 1, 2])


def test_logits_beyond_the_reach_of_the_sigmoid_still_rank():
    compute = metrics.clip_metrics_for_trainer("multi_label_classification")
    scores = compute(prediction(np.array([[50.0], [60.0], [40.0]]), np.array([[0], [1], [0]])))
    assert scores["mean_auc"] == 1


def test_an_unknown_problem_type_is_refused_by_name():
    with pytest.raises(ValueError, match="'regression'"):
        metrics.clip_metrics_for_trainer("regression")


# Two clips, three steps, two classes. At threshold 0.5 class 0 is detected at steps (0, 0), (0, 1), (1, 2) and active
# at (0, 1), (1, 2), (1, 1): F1 = 2 * 2 / (3 + 3). Class 1 is never active and does not count.
FRAME_LOGITS = np.array([[[1.0, -1.0], [2.0, -1.0], [-1.0, -1.0]], [[-1.0, -1.0], [-1.0, 1.0], [3.0, -1.0]]])
FRAME_TARGETS = np.array([[[0, 0], [1, 0], [0, 0]], [[0, 0], [1, 0], [1, 0]]])


def test_frame_f1_counts_steps_of_the_classes_that_have_truth():
    scores = metrics.event_metrics_for_trainer()(prediction(FRAME_LOGITS, FRAME_TARGETS))
    assert scores["frame_f1"] == pytest.approx(2 / 3)
    assert scores["frame_f1_classes_counted"] == 1
    assert scores["map_classes_counted"] == 1  # both clips hold class 0


def test_frame_f1_follows_the_threshold_of_each_class():
    # Above sigmoid(1.5) class 0 keeps (0, 1) and (1, 2): F1 = 2 * 2 / (2 + 3).
    threshold = [float(metrics.sigmoid(1.5)), 0.5]
    scores = metrics.event_metrics_for_trainer(threshold)(prediction(FRAME_LOGITS, FRAME_TARGETS))
    assert scores["frame_f1"] == pytest.approx(4 / 5)


@pytest.mark.parametrize("missing", [-100.0, math.nan])
def test_missing_steps_take_no_part_in_frame_f1(missing):
    targets = FRAME_TARGETS.astype(float)
    targets[0, 0] = missing  # takes the false alarm away: 2 * 2 / (2 + 3)
    scores = metrics.event_metrics_for_trainer()(prediction(FRAME_LOGITS, targets))
    assert scores["frame_f1"] == pytest.approx(4 / 5)


def test_weak_targets_alone_give_clip_scores_alone():
    weak = np.array([[1, 0], [0, 1]])
    scores = metrics.event_metrics_for_trainer()(prediction(FRAME_LOGITS, weak))
    assert "frame_f1" not in scores
    # Clips score as their highest step: class 0 at 2 and 3, where the wrong clip leads; class 1 at -1 and 1.
    assert scores["mean_average_precision"] == pytest.approx((1 / 2 + 1) / 2)


def test_clip_logits_and_weak_targets_take_precedence_over_what_frames_imply():
    clip_logits, weak = np.array([[5.0, 0.0], [1.0, 3.0]]), np.array([[1, 0], [0, 1]])
    both = prediction((FRAME_LOGITS, clip_logits), (weak, FRAME_TARGETS))
    scores = metrics.event_metrics_for_trainer()(both)
    assert scores["mean_average_precision"] == 1
    assert scores["frame_f1"] == pytest.approx(2 / 3)


def test_a_mask_of_steps_is_not_taken_for_clip_logits():
    weak, step_mask = np.array([[1, 0], [0, 1]]), np.ones((2, 3), dtype=bool)
    compute = metrics.event_metrics_for_trainer()
    assert compute(prediction((FRAME_LOGITS, step_mask), weak)) == compute(prediction(FRAME_LOGITS, weak))


def test_event_metrics_name_what_is_missing():
    compute = metrics.event_metrics_for_trainer()
    with pytest.raises(ValueError, match="no frame logits"):
        compute(prediction(np.zeros((2, 3)), np.zeros((2, 3))))
    with pytest.raises(ValueError, match="neither clip targets"):
        compute(prediction(FRAME_LOGITS, None))
    with pytest.raises(ValueError, match=r"\(2, 3, 2\) and frame targets \(2, 5, 2\)"):
        compute(prediction(FRAME_LOGITS, np.zeros((2, 5, 2))))


# ── events by hand ────────────────────────────────────────────────────────────────────────────────────────────────────

HAND_TRUTH = {
    "a.wav": [(0, 4, "Dog"), (6, 8, "Dog"), (1, 3, "Cat")],
    "b.wav": [(2, 5, "Speech"), (7, 9, "Cat")],
    "c.wav": [],
}
HAND_DETECTIONS = {
    "a.wav": [(0, 1, "Dog"), (2, 3.5, "Dog"), (3.9, 4.1, "Dog"), (7.5, 9.5, "Dog"), (0, 1.5, "Cat")],
    "b.wav": [(0, 9, "Speech"), (6.5, 8.5, "Cat")],
    "c.wav": [(1, 2, "Dog"), (10, 10.2, "Cat"), (3, 4, "Fish")],
}
HAND_DURATIONS = {"a.wav": 10.0, "b.wav": 10.0, "c.wav": 10.0}


def test_the_intersection_criterion_adds_up_fragments_and_judges_each_detection():
    # Dog in a.wav: 0-1 and 2-3.5 lie wholly on the first event and 3.9-4.1 half, so all are accepted and cover 2.6 of
    # its 4 s: found. 7.5-9.5 lies a quarter on the second: false, and the event missed. c.wav adds a false Dog.
    # Cat: 0-1.5 lies a third on its event: false, missed. 6.5-8.5 lies three quarters on 7-9: found. 10-10.2 begins
    # after the file has ended and is nothing. Speech: 0-9 lies a third on 2-5: false, missed; so it is left out.
    result = metrics.intersection_f1(HAND_TRUTH, HAND_DETECTIONS, HAND_DURATIONS)
    assert result["counts"] == {
        "Cat": {"tp": 1, "fp": 1, "fn": 1},
        "Dog": {"tp": 1, "fp": 2, "fn": 1},
        "Speech": {"tp": 0, "fp": 1, "fn": 1},
    }
    # psds_eval 0.5.3 on the same tables: macro 0.45, Cat 0.5, Dog 0.4, Speech nan.
    assert result["macro"] == pytest.approx(0.45)
    assert result["per_class"] == pytest.approx({"Cat": 0.5, "Dog": 0.4, "Speech": 0.0})
    assert result["left_out_of_macro"] == ["Speech"]
    assert result["macro_all_classes"] == pytest.approx(0.3)
    assert result["labels_without_truth"] == {"Fish": 1}


def test_a_detection_behind_the_end_counts_only_without_durations():
    result = metrics.intersection_f1(HAND_TRUTH, HAND_DETECTIONS)
    assert result["counts"]["Cat"] == {"tp": 1, "fp": 2, "fn": 1}


def test_accepted_detections_that_cover_too_little_are_neither_right_nor_wrong():
    result = metrics.intersection_f1({"a": [(0, 4, "Dog")]}, {"a": [(0, 1, "Dog")]})
    assert result["counts"] == {"Dog": {"tp": 0, "fp": 0, "fn": 1}}


def test_an_intersection_of_exactly_the_tolerance_is_enough():
    assert metrics.intersection_f1({"a": [(0, 2, "Dog")]}, {"a": [(1, 3, "Dog")]})["macro"] == 1
    assert metrics.intersection_f1({"a": [(0, 2, "Dog")]}, {"a": [(1.001, 3, "Dog")]})["macro"] == 0


def test_one_detection_over_two_events_finds_both():
    result = metrics.intersection_f1({"a": [(0, 1, "Dog"), (2, 3, "Dog")]}, {"a": [(0, 3, "Dog")]})
    assert result["counts"] == {"Dog": {"tp": 2, "fp": 0, "fn": 0}}


def test_the_collar_criterion_needs_both_ends():
    truth = {"a": [(1.0, 2.0, "Dog"), (4.0, 9.0, "Dog")]}
    # The second event lasts 5 s, so that its offset may be 20 % of that, 1 s, away; the first only 0.2 s.
    right = {"a": [(1.15, 2.15, "Dog"), (3.85, 9.9, "Dog")]}
    assert metrics.collar_f1(truth, right)["macro"] == 1
    wrong = {"a": [(1.15, 2.25, "Dog"), (3.75, 9.0, "Dog")]}
    assert metrics.collar_f1(truth, wrong)["counts"] == {"Dog": {"tp": 0, "fp": 2, "fn": 2}}


def test_collar_matching_finds_as_many_pairs_as_possible():
    # The first detection could take either event, the second only the first one: a greedy order would lose a pair.
    truth = {"a": [(1.0, 2.0, "Dog"), (1.3, 2.3, "Dog")]}
    detections = {"a": [(1.15, 2.15, "Dog"), (0.9, 1.9, "Dog")]}
    assert metrics.collar_f1(truth, detections)["counts"] == {"Dog": {"tp": 2, "fp": 0, "fn": 0}}


def test_the_segment_criterion_fills_every_touched_second():
    # True seconds 0, 1 and 5; detected seconds 1, 2 and 5: two in common.
    result = metrics.segment_f1({"a": [(0.5, 1.5, "Dog"), (5.1, 5.2, "Dog")]}, {"a": [(1, 3, "Dog"), (5, 6, "Dog")]})
    assert result["counts"] == {"Dog": {"tp": 2, "fp": 1, "fn": 1}}
    assert result["macro"] == pytest.approx(2 / 3)


def test_segments_beyond_the_duration_do_not_count():
    truth, detections = {"a": [(0, 1, "Dog")]}, {"a": [(0, 1, "Dog"), (3.5, 6, "Dog")]}
    assert metrics.segment_f1(truth, detections)["counts"]["Dog"]["fp"] == 3
    assert metrics.segment_f1(truth, detections, {"a": 3.9})["counts"]["Dog"]["fp"] == 1


def test_each_criterion_says_its_tolerances_and_every_result_is_json():
    results = [
        metrics.intersection_f1(HAND_TRUTH, HAND_DETECTIONS, None, 0.7, 0.6),
        metrics.collar_f1(HAND_TRUTH, HAND_DETECTIONS, 0.25, 0.3, 0.1),
        metrics.segment_f1(HAND_TRUTH, HAND_DETECTIONS, None, 0.5),
    ]
    assert all(word in results[0]["criterion"] for word in ("70%", "60%"))
    assert all(word in results[1]["criterion"] for word in ("0.25 s", "0.3 s", "10%"))
    assert "0.5 s" in results[2]["criterion"]
    assert json.loads(json.dumps(results)) == results


@pytest.mark.parametrize("score", EVENT_SCORES)
@pytest.mark.parametrize(
    ("truth", "detections", "message"),
    [
        ({"a": []}, {"a": [(0, 1, "Dog")]}, "truth holds no event"),
        ({"a": [(0, 1, "Dog")]}, {"b": [(0, 1, "Dog")]}, "'b' has detections and is no file of the truth"),
        ({"a": [(2, 1, "Dog")]}, {}, "truth of 'a' hold a 'Dog' from 2 to 1 s"),
        ({"a": [(0, 1, "Dog")]}, {"a": [(0, math.nan, "Dog")]}, "detections of 'a' hold a 'Dog' from 0 to nan"),
        ({"a": [(0, 1, "Dog")]}, {"a": [(-1, 1, "Dog")]}, "0 <= onset"),
    ],
)
def test_wrong_event_tables_are_named_in_one_sentence(score, truth, detections, message):
    with pytest.raises(ValueError, match=message):
        score(truth, detections)


def test_wrong_settings_and_missing_durations_are_refused():
    table = {"a": [(0, 1, "Dog")]}
    with pytest.raises(ValueError, match="'a' has no duration"):
        metrics.intersection_f1(table, table, {"b": 10.0})
    with pytest.raises(ValueError, match="truth_tolerance is a share"):
        metrics.intersection_f1(table, table, truth_tolerance=50)
    with pytest.raises(ValueError, match="A collar"):
        metrics.collar_f1(table, table, onset_collar_seconds=-0.1)
    with pytest.raises(ValueError, match="segment_seconds"):
        metrics.segment_f1(table, table, segment_seconds=0)


def test_overlapping_events_of_one_class_are_refused_by_intersection_and_can_be_joined():
    truth, overlapping = {"a": [(0, 3, "Dog")]}, {"a": [(0, 2, "Dog"), (1, 3, "Dog"), (1, 2, "Cat"), (3, 4, "Dog")]}
    with pytest.raises(ValueError, match="detections of 'a' hold overlapping events of 'Dog': 0 to 2 s and 1 to 3 s"):
        metrics.intersection_f1(truth, overlapping)
    joined = metrics.merge_overlapping_events(overlapping)
    assert joined == {"a": [(0, 3, "Dog"), (1, 2, "Cat"), (3, 4, "Dog")]}
    assert metrics.intersection_f1(truth, joined)["counts"]["Dog"]["tp"] == 1


# ── events for any input ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("score", EVENT_SCORES)
@settings(max_examples=40, deadline=None)
@given(truth=tables.filter(lambda table: any(table.values())))
def test_perfect_detections_score_one_and_none_score_zero(score, truth):
    assert score(truth, truth)["macro"] == 1
    assert score(truth, truth)["macro_all_classes"] == 1
    for nothing in ({}, {filename: [] for filename in truth}):
        assert score(truth, nothing)["macro"] == 0
        assert set(score(truth, nothing)["per_class"].values()) == {0.0}


@pytest.mark.parametrize("score", EVENT_SCORES)
@settings(max_examples=40, deadline=None)
@given(truth=tables.filter(lambda table: any(table.values())), detections=tables, seed=st.integers(0, 99))
def test_the_order_of_files_and_events_changes_nothing(score, truth, detections, seed):
    truth = {"a.wav": [], "b.wav": [], "c.wav": []} | truth
    rng = np.random.RandomState(seed)

    def shuffled(table):
        return {name: [table[name][i] for i in rng.permutation(len(table[name]))] for name in rng.permutation([*table])}

    assert score(truth, detections) == score(shuffled(truth), shuffled(detections))


@settings(max_examples=100, deadline=None)
@given(truth=tables.filter(lambda table: any(table.values())), detections=tables)
def test_all_three_criteria_equal_plain_loops(truth, detections):
    truth = {"a.wav": [], "b.wav": [], "c.wav": []} | truth
    detections = {"a.wav": [], "b.wav": [], "c.wav": []} | detections
    plain = (plain_intersection_counts, plain_collar_counts, plain_segment_counts)
    for score, counts in zip(EVENT_SCORES, plain, strict=True):
        assert score(truth, detections)["counts"] == counts(truth, detections)


def of_label(table, label):
    return {filename: [event[:2] for event in events if event[2] == label] for filename, events in table.items()}


def each_label(truth, count):
    labels = {label for events in truth.values() for *_, label in events}
    return {label: dict(zip(("tp", "fp", "fn"), count(label), strict=True)) for label in labels}


def shared(first, second):
    return max(0.0, min(first[1], second[1]) - max(first[0], second[0]))


def plain_intersection_counts(truth, detections):
    def count(label):
        hits = wrong = misses = 0
        for filename, events in of_label(truth, label).items():
            accepted = []
            for detection in of_label(detections, label)[filename]:
                on_events = sum(shared(detection, event) for event in events) / (detection[1] - detection[0])
                accepted += [detection] if on_events >= 0.5 else []
                wrong += on_events < 0.5
            for event in events:
                covered = sum(shared(detection, event) for detection in accepted) / (event[1] - event[0])
                hits += covered >= 0.5
                misses += covered < 0.5
        return hits, wrong, misses

    return each_label(truth, count)


def plain_collar_counts(truth, detections):
    def close(event, detection):
        length = event[1] - event[0]
        return abs(event[0] - detection[0]) <= 0.2 and abs(event[1] - detection[1]) <= max(0.2, 0.2 * length)

    def most_pairs(events, candidates):
        if not events:
            return 0
        rest = most_pairs(events[1:], candidates)
        for index, candidate in enumerate(candidates):
            if close(events[0], candidate):
                rest = max(rest, 1 + most_pairs(events[1:], candidates[:index] + candidates[index + 1 :]))
        return rest

    def count(label):
        events, candidates = of_label(truth, label), of_label(detections, label)
        hits = sum(most_pairs(events[filename], candidates[filename]) for filename in truth)
        return hits, sum(map(len, candidates.values())) - hits, sum(map(len, events.values())) - hits

    return each_label(truth, count)


def plain_segment_counts(truth, detections):
    def seconds(table, label):
        return {
            (filename, second)
            for filename, events in of_label(table, label).items()
            for onset, offset in events
            for second in range(math.floor(onset), math.ceil(offset))
        }

    def count(label):
        true, detected = seconds(truth, label), seconds(detections, label)
        return len(true & detected), len(detected - true), len(true - detected)

    return each_label(truth, count)


# ── events against the packages ───────────────────────────────────────────────────────────────────────────────────────

# Made once with psds_eval 0.5.3, NumPy 2.4.6 and pandas 3.1.1, on the two tables that random_table draws from seed 7:
# PSDSEval(*tolerances, 0.3, ground_truth=..., metadata=<10 s per file>).compute_macro_f_score(detections).
PSDS_EVAL_RESULTS = [
    ((0.5, 0.5), 0.29734848484848486, [0.45454545454545453, 0.0625, 0.375]),
    ((0.7, 0.7), 0.16234796404019036, [0.1935483870967742, math.nan, 0.13114754098360656]),
    ((0.1, 0.1), 0.6681774942644508, [0.6956521739130435, 0.5945945945945946, 0.7142857142857143]),
    ((0.3, 0.8), 0.20129160457029313, [0.2909090909090909, 0.13114754098360656, 0.18181818181818182]),
]


@pytest.mark.parametrize(("tolerances", "macro", "per_class"), PSDS_EVAL_RESULTS)
def test_intersection_f1_equals_psds_eval(tolerances, macro, per_class):
    rng = np.random.RandomState(7)
    truth, detections = random_table(rng), random_table(rng)
    result = metrics.intersection_f1(truth, detections, dict.fromkeys(truth, 10.0), *tolerances)
    assert result["macro"] == pytest.approx(macro, rel=1e-12)
    expected = dict(zip(("Cat", "Dog", "Speech"), per_class, strict=True))
    assert result["left_out_of_macro"] == [label for label, value in expected.items() if math.isnan(value)]
    assert result["per_class"] == pytest.approx(
        {label: 0.0 if math.isnan(value) else value for label, value in expected.items()}, rel=1e-12
    )


def as_sed_eval(events, filename):
    names = ("onset", "offset", "event_label")
    return [{"filename": filename} | dict(zip(names, event, strict=True)) for event in events] or [
        {"filename": filename}
    ]


@pytest.mark.parametrize("seed", range(6))
def test_collar_and_segment_f1_equal_sed_eval(reference_packages, seed):
    rng = np.random.RandomState(seed)
    truth = random_table(rng, num_files=5)
    detections = nudged_table(rng, truth)
    if seed % 2:  # a class that is never detected, and one that is never true
        truth["0.wav"].append((2.0, 3.0, "Blender"))
        detections["1.wav"].append((2.0, 3.0, "Fish"))
    labels = sorted({event[2] for table in (truth, detections) for events in table.values() for event in events})
    sound_event = reference_packages.sed_eval.sound_event
    by_collar = sound_event.EventBasedMetrics(
        labels, t_collar=0.2, percentage_of_length=0.2, empty_system_output_handling="zero_score"
    )
    by_segment = sound_event.SegmentBasedMetrics(labels, time_resolution=1.0)
    for reference in (by_collar, by_segment):
        for filename in truth:
            reference.evaluate(as_sed_eval(truth[filename], filename), as_sed_eval(detections[filename], filename))
    assert_equals_sed_eval(metrics.collar_f1(truth, detections), by_collar)
    assert_equals_sed_eval(metrics.segment_f1(truth, detections), by_segment)


def assert_equals_sed_eval(result, reference):
    assert result["macro"] > 0
    assert result["macro"] == pytest.approx(
        reference.results_class_wise_average_metrics()["f_measure"]["f_measure"], rel=1e-12
    )
    for label, counts in result["counts"].items():
        theirs = reference.class_wise[label]
        assert counts["tp"] == theirs["Ntp"]
        assert counts["tp"] + counts["fp"] == theirs["Nsys"]
        assert counts["tp"] + counts["fn"] == theirs["Nref"]


def score_tables_of(truth, rng=None, num_steps=100):
    """Scores of 0.1 s steps that are 1 in events and 0 elsewhere, or random with some truth mixed in."""
    edges = np.arange(num_steps + 1) / 10
    tables = {}
    for filename, events in truth.items():
        scores = np.zeros((num_steps, 3))
        for onset, offset, label in events:
            scores[round(onset * 10) : round(offset * 10), ["Cat", "Dog", "Speech"].index(label)] = 1
        tables[filename] = (edges, scores if rng is None else np.round(scores + rng.uniform(0, 4, scores.shape), 1))
    return tables


def score_frames(score_tables):
    new_frame, _ = event_metrics._sed_scores_eval()  # writable, as the package needs them with pandas 3
    columns = ["onset", "offset", "Cat", "Dog", "Speech"]
    return {
        filename: new_frame(np.column_stack([edges[:-1], edges[1:], scores]), columns=columns)
        for filename, (edges, scores) in score_tables.items()
    }


def apart(table):
    """Events of a class at least 0.1 s apart, as PSDS needs them."""
    return {
        filename: [(onset, offset - 0.1, label) for onset, offset, label in events if offset - onset > 0.15]
        for filename, events in table.items()
    }


@pytest.mark.parametrize("seed", range(3))
def test_intersection_f1_per_class_equals_sed_scores_eval(reference_packages, seed):
    rng = np.random.RandomState(seed)
    truth, detections = apart(random_table(rng)), apart(random_table(rng))
    frames = score_frames(score_tables_of(detections))
    # 0.47 is no ratio of the 0.1 s steps here, so that the rounding of sed_scores_eval cannot decide.
    theirs = reference_packages.sed_scores_eval.intersection_based.fscore(
        frames, truth, threshold=0.5, dtc_threshold=0.47, gtc_threshold=0.47
    )[0]
    result = metrics.intersection_f1(truth, detections, None, 0.47, 0.47)
    assert result["per_class"] == pytest.approx({label: theirs[label] for label in result["per_class"]})
    assert result["macro_all_classes"] == pytest.approx(theirs["macro_average"])


DCASE_SETTINGS = {
    1: {"dtc_threshold": 0.7, "gtc_threshold": 0.7, "alpha_st": 1, "max_efpr": 100},
    2: {"dtc_threshold": 0.1, "gtc_threshold": 0.1, "cttc_threshold": 0.3, "alpha_ct": 0.5, "alpha_st": 1},
}


@pytest.mark.parametrize("scenario", [1, 2])
def test_psds_is_that_of_sed_scores_eval_with_the_settings_of_dcase(reference_packages, scenario):
    # Detections of one class where another is true, so that cross triggers count in scenario 2.
    truth = apart(random_table(np.random.RandomState(1)))
    scores = score_tables_of(truth, np.random.RandomState(2))
    scores = {name: (edges, np.where(rows > 1.5, rows[:, [1, 0, 2]], rows)) for name, (edges, rows) in scores.items()}
    durations, labels = dict.fromkeys(truth, 10.0), ["Cat", "Dog", "Speech"]
    result = metrics.psds(truth, durations, scores, labels, scenario)
    theirs, theirs_per_class, *_ = reference_packages.sed_scores_eval.intersection_based.psds(
        score_frames(scores), truth, durations, **DCASE_SETTINGS[scenario]
    )
    assert result["psds"] == pytest.approx(theirs)
    assert result["per_class"] == pytest.approx({label: theirs_per_class[label] for label in labels})
    assert result["settings"]["scenario"] == scenario


@pytest.mark.parametrize("scenario", [1, 2])
def test_psds_is_one_for_perfect_scores_and_zero_for_silent_ones(reference_packages, scenario):
    truth = apart(random_table(np.random.RandomState(1)))
    durations, labels = dict.fromkeys(truth, 10.0), ["Cat", "Dog", "Speech"]
    perfect = score_tables_of(truth)
    silent = {name: (edges, np.zeros_like(rows)) for name, (edges, rows) in perfect.items()}
    assert metrics.psds(truth, durations, perfect, labels, scenario)["psds"] == pytest.approx(1)
    assert metrics.psds(truth, durations, silent, labels, 1)["psds"] == 0


def test_psds_leaves_out_classes_without_truth_and_takes_absent_files_as_empty(reference_packages):
    truth = {"a": [(1.0, 3.0, "Cat"), (5.0, 6.0, "Dog")]}
    durations, tables = {"a": 10.0, "b": 10.0}, score_tables_of(truth | {"b": []})
    result = metrics.psds(truth, durations, tables, ["Cat", "Dog", "Speech"])
    assert result["per_class"] == {"Cat": 1.0, "Dog": 1.0}


def test_psds_names_what_does_not_fit(reference_packages):
    truth = {"a": [(1.0, 3.0, "Cat")]}
    tables, labels, durations = score_tables_of(truth), ["Cat", "Dog", "Speech"], {"a": 10.0}
    edges, scores = tables["a"]
    for arguments, message in [
        ((truth, durations, tables, labels, 3), r"scenarios \[1, 2\]; received 3"),
        ((truth, durations, tables, labels, 2), "confusions between classes"),
        ((truth, {}, tables, labels), "'a' is in the truth and has no duration"),
        ((truth, durations | {"b": 1.0}, tables, labels), "'b' has a duration and no scores"),
        ((truth, durations, {"a": (edges[:-1], scores)}, labels), r"edges \(steps \+ 1,\)"),
        ((truth, durations, {"a": (edges, scores * math.nan)}, labels), "must be finite"),
        (({"a": [(1, 3, "Fish")]}, durations, tables, labels), "'Fish', which has no column"),
        (({"a": [(1, 3, "Cat"), (3, 4, "Cat")]}, durations, tables, labels), "touching or overlapping"),
        (({"a": []}, durations, tables, labels), "truth holds no event"),
    ]:
        with pytest.raises(ValueError, match=message):
            metrics.psds(*arguments)


def test_psds_without_its_package_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sed_scores_eval", None)
    monkeypatch.setitem(sys.modules, "sed_scores_eval.intersection_based", None)
    truth = {"a": [(1.0, 3.0, "Cat")]}
    with pytest.raises(ImportError, match=r'pip install "modeling-htsat\[eval\]"'):
        metrics.psds(truth, {"a": 10.0}, score_tables_of(truth), ["Cat", "Dog", "Speech"])


def test_everything_that_the_module_promises_exists():
    assert all(hasattr(metrics, name) for name in metrics.__all__)
