"""Test shifts average probabilities, and frame scores come back to the time of each clip before events are scored."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_up_clips import RATE, ListRows, make_row, tone

from modeling_htsat import HTSATFeatureExtractor
from modeling_htsat.events_htsat import EventDecoding
from modeling_htsat.metrics import clip_metrics_for_trainer
from modeling_htsat.training.examples import ClipDataset
from modeling_htsat.training.scoring import detect_all, score_clips, score_events, score_frames, tune_on

LABELS = ("hum", "beep")
DURATIONS = (0.4, 1.0, 2.0, 2.5, 5.1)


@pytest.fixture
def make_data_set(make_config):
    def make(rows, short_clips: str = "repeat", problem_type: str = "multi_label_classification", **options):
        id2label = dict(enumerate(LABELS))
        label2id = {name: index for index, name in id2label.items()}
        config = make_config(id2label=id2label, label2id=label2id, num_labels=2, problem_type=problem_type)
        extractor = HTSATFeatureExtractor(clip_frames=256, short_clips=short_clips)
        return ClipDataset(ListRows(rows), extractor, config, **options)

    return make


class FakeTrainer:
    """Predicts what it was told for a data set, and remembers how far each was rolled."""

    def __init__(self, predictions, label_ids=None):
        self.predictions, self.label_ids, self.rolls = predictions, label_ids, []

    def predict(self, data_set):
        self.rolls.append(data_set.roll_samples)
        predictions = self.predictions(data_set) if callable(self.predictions) else self.predictions
        return SimpleNamespace(predictions=predictions, label_ids=self.label_ids)


# ── clips ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def test_shifts_average_probabilities_and_not_logits(make_data_set):
    labels = np.array([[0.0, 1], [1, 0]])
    by_roll = {  # the first clip is ahead by its logits, and behind by its probabilities
        0: np.array([[9.0, 1], [3, 0]]),
        50: np.array([[-1.0, 1], [2, 0]]),
        100: np.array([[2.0, 1], [2, 0]]),
    }
    trainer = FakeTrainer(lambda data_set: by_roll[data_set.roll_samples], labels)
    data_set = make_data_set([])
    metrics = score_clips(trainer, data_set, num_shifts=3, shift_samples=50)
    assert trainer.rolls == [0, 50, 100]  # not 0, 50, 150 as in the authors' code
    assert data_set.roll_samples == 0
    mean = np.mean([sigmoid(logits) for logits in by_roll.values()], axis=0)
    expected = clip_metrics_for_trainer("multi_label_classification")(
        SimpleNamespace(predictions=np.log(mean / (1 - mean)), label_ids=labels)
    )
    assert metrics == pytest.approx(expected)
    of_mean_logits = clip_metrics_for_trainer("multi_label_classification")(
        SimpleNamespace(predictions=np.mean(list(by_roll.values()), axis=0), label_ids=labels)
    )
    assert metrics != pytest.approx(of_mean_logits)


def test_shifts_of_single_labels_average_the_softmax(make_data_set):
    labels = np.array([0, 1, 1])
    by_roll = {0: np.array([[9.0, 0], [3, 0], [0, 1]]), 100: np.array([[0.0, 2], [0, 0.5], [0, 0.1]])}
    trainer = FakeTrainer(lambda data_set: by_roll[data_set.roll_samples], labels)
    metrics = score_clips(trainer, make_data_set([], problem_type="single_label_classification"), num_shifts=2)
    # 0: (1.0 + 0.12) / 2 for the first class; 1: (0.95 + 0.38) / 2 for the first, which is wrong; 2: right
    assert metrics["accuracy"] == pytest.approx(2 / 3)


def test_one_shift_scores_as_trainer_does(make_data_set):
    random = np.random.default_rng(0)
    logits, labels = random.standard_normal((30, 2)) * 20, random.integers(0, 2, (30, 2)).astype(float)
    labels[3] = np.nan
    metrics = score_clips(FakeTrainer((logits, np.zeros((30, 7))), (labels, None)), make_data_set([]))
    expected = clip_metrics_for_trainer("multi_label_classification")(
        SimpleNamespace(predictions=logits, label_ids=labels)
    )
    assert metrics == pytest.approx(expected)


def test_a_detectors_clip_scores_are_taken_and_not_its_frames(make_data_set):
    labels = np.array([[1.0, 0], [0, 1]])
    clip_logits = np.array([[1.0, -1], [-1, 1]])
    outputs = (np.zeros((2, 8, 2)), clip_logits, np.ones((2, 8), bool), np.zeros((2, 64)))
    metrics = score_clips(FakeTrainer(outputs, (labels, np.zeros((2, 8, 2)))), make_data_set([]))
    assert metrics == pytest.approx(score_clips(FakeTrainer(clip_logits, labels), make_data_set([])))


def test_certain_scores_stay_in_order(make_data_set):
    logits = np.array([[36.0, 0], [35, 0], [-800, 0], [-799, 0]])
    metrics = score_clips(FakeTrainer(logits, np.array([[1.0, 1], [0, 0], [0, 1], [0, 0]])), make_data_set([]))
    alone = clip_metrics_for_trainer("multi_label_classification")(
        SimpleNamespace(predictions=logits, label_ids=np.array([[1.0, 1], [0, 0], [0, 1], [0, 0]]))
    )
    assert metrics == pytest.approx(alone)


def test_shifts_reach_the_sounds_that_are_heard(make_data_set):
    """With a real data set: what is predicted for a shift comes from shifted samples, also out of a cache."""
    waveform = tone(1.0, 300)
    heard = []

    def listen(data_set):
        heard.append(data_set[0].features.clone())
        return np.zeros((1, 2))

    data_set = make_data_set([make_row("clip", waveform, ["hum"])], cache_gib=0.1)
    score_clips(FakeTrainer(listen, np.array([[1.0, 0]])), data_set, num_shifts=3, shift_samples=160)
    for shift, features in enumerate(heard):
        expected = data_set.extractor(np.roll(waveform, -160 * shift), sampling_rate=RATE, return_tensors="pt")
        assert torch.equal(features, expected["input_features"][0])


# ── events ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def perfect(data_set: ClipDataset) -> tuple[np.ndarray, np.ndarray]:
    """The frame and clip logits of a detector that knows the answer; shorter clips are filled up as Trainer does."""
    targets = [data_set[index].frame_targets for index in range(len(data_set))]
    steps = max(map(len, targets))
    filled = [np.pad(target * 16 - 8, ((0, steps - len(target)), (0, 0)), constant_values=-100) for target in targets]
    return np.stack(filled), np.zeros((len(targets), 2))


def rows_with_events_on_steps(extractor: HTSATFeatureExtractor, names=("hum", "beep")) -> list[dict]:
    """Clips whose events begin and end where steps do, so that a perfect detector can be perfect."""
    rows = []
    for index, seconds in enumerate(DURATIONS):
        num_steps = extractor.scores_over_time(np.zeros((99, 1)), seconds)[0].shape[0]
        edges = extractor.scores_over_time(np.zeros((num_steps, 1)), seconds)[1]
        middle = max(1, len(edges) // 2)
        edges = edges.tolist()
        events = [(edges[0], edges[1], names[index % 2]), (edges[middle], edges[-1], names[(index + 1) % 2])]
        rows.append(make_row(f"clip{index}", tone(seconds, 300, index), None, events))
    return rows


@pytest.mark.parametrize("rule", ["repeat", "pad", "stretch"])
def test_the_events_of_a_perfect_detector_score_one(make_data_set, rule):
    rows = rows_with_events_on_steps(make_data_set([], rule).extractor)
    data_set = make_data_set(rows, rule, with_frames=True)
    found = score_frames(FakeTrainer(perfect), data_set)
    metrics = score_events(found, None)
    for name in ("intersection_f1", "collar_f1", "segment_f1"):
        assert metrics[name]["macro"] == pytest.approx(1.0), name
    for name in ("psds_1", "psds_2"):
        assert metrics[name]["psds"] == pytest.approx(1.0), name


@pytest.mark.parametrize("rule", ["repeat", "pad", "stretch"])
def test_the_scores_of_a_short_clip_come_back_to_its_own_time(make_data_set, rule):
    rows = rows_with_events_on_steps(make_data_set([], rule).extractor)
    found = score_frames(FakeTrainer(perfect), make_data_set(rows, rule, with_frames=True))
    for row, seconds in zip(rows, DURATIONS, strict=True):
        name = row["video_id"]
        assert found.durations[name] == pytest.approx(seconds)
        assert found.edges[name][0] == 0
        assert found.edges[name][-1] == pytest.approx(seconds)
        assert len(found.scores[name]) == len(found.edges[name]) - 1
        assert 0 <= found.scores[name].min() < found.scores[name].max() <= 1
        detected = detect_all(found, EventDecoding())[name]
        assert sorted(detected) == [
            pytest.approx(event, abs=0.17 if rule == "pad" else 0.02)  # the last step of 0.32 s may be cut short
            for event in sorted(found.truth[name])
        ]


def test_a_detector_that_hears_nothing_scores_zero(make_data_set):
    rows = rows_with_events_on_steps(make_data_set([]).extractor)
    deaf = FakeTrainer(lambda data_set: (np.full_like(perfect(data_set)[0], -9.0), np.zeros((len(rows), 2))))
    metrics = score_events(score_frames(deaf, make_data_set(rows, with_frames=True)), None)
    assert metrics["intersection_f1"]["macro"] == metrics["collar_f1"]["macro"] == 0


def test_clips_without_known_events_and_bad_ones_are_not_scored(make_data_set):
    rows = [
        *rows_with_events_on_steps(make_data_set([]).extractor),
        make_row("weak", tone(1.0, 300), ["hum"]),
        make_row("bad", None, ["hum"], [(0.0, 1.0, "hum")]),
        make_row("silent", tone(1.0, 300), [], []),
    ]
    data_set = make_data_set(rows, with_frames=True)
    found = score_frames(FakeTrainer(lambda data_set: np.nan_to_num(perfect(data_set)[0], nan=-8)), data_set)
    assert (
        set(found.scores)
        == set(found.durations)
        == set(found.truth)
        == {
            *(f"clip{index}" for index in range(5)),
            "silent",
        }
    )
    assert found.truth["silent"] == []


def test_events_beyond_the_end_of_a_clip_are_cut(make_data_set):
    rows = [make_row("clip", tone(1.0, 300), None, [(0.5, 7.0, "hum"), (1.5, 3.0, "beep")])]
    found = score_frames(FakeTrainer(perfect), make_data_set(rows, with_frames=True))
    assert found.truth["clip"] == [(0.5, 1.0, "hum")]


def test_a_split_without_any_event_is_refused(make_data_set):
    rows = [make_row("clip", tone(0.5, 300), ["hum"])]
    with pytest.raises(ValueError, match="No clip of this split has events"):
        score_frames(FakeTrainer(np.zeros((1, 8, 2))), make_data_set(rows, with_frames=True))


def test_tuning_finds_the_threshold_and_leaves_it_with_the_configuration(make_data_set):
    """A detector whose scores are low, but right: at a threshold of a half it finds nothing."""
    rows = rows_with_events_on_steps(make_data_set([]).extractor)
    data_set = make_data_set(rows, with_frames=True)
    shy = FakeTrainer(lambda data_set: perfect(data_set)[0] / 8 - 2.5)  # 0.18 where there is a sound, else 0.03
    found = score_frames(shy, data_set)
    assert score_events(found, None)["intersection_f1"]["macro"] == 0
    decoding = tune_on(found, data_set.config, "intersection_f1")
    assert data_set.config.event_decoding == decoding.to_dict()
    assert score_events(found, data_set.config.event_decoding)["intersection_f1"]["macro"] == pytest.approx(1.0)
