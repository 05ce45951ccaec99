"""From a row to an example: cropped or repeated, with targets where the sounds are, and bad clips that stop nothing."""

import pickle

import numpy as np
import pytest
import torch
from made_up_clips import RATE, ListRows, make_row, tone
from torch.utils.data import DataLoader

from modeling_htsat import HTSATFeatureExtractor, HTSATForAudioClassification, HTSATForSoundEventDetection
from modeling_htsat.training import examples
from modeling_htsat.training.examples import ClipCollator, ClipDataset, Example
from modeling_htsat.training.trainer import NOT_FOR_THE_MODEL

LABELS = ("hum", "beep", "hiss")
WINDOW_SAMPLES = 255 * 320  # from the first to the last of 256 frames
STEPS = 8


@pytest.fixture
def make_data_set(make_config):
    """`make_data_set(rows, short_clips="pad", problem_type=..., crop_seconds=1.0)`: clips for the small model."""

    def make(rows, short_clips: str = "repeat", problem_type: str = "multi_label_classification", **options):
        id2label = dict(enumerate(LABELS))
        label2id = {name: index for index, name in id2label.items()}
        config = make_config(id2label=id2label, label2id=label2id, num_labels=3, problem_type=problem_type)
        extractor = HTSATFeatureExtractor(clip_frames=256, short_clips=short_clips)
        return ClipDataset(ListRows(rows), extractor, config, **options)

    return make


def beeping(seconds: float, onset: float, offset: float, name: str = "beeping") -> dict:
    """A clip that is silent but for a beep, and knows when."""
    time = np.arange(round(seconds * RATE)) / RATE
    heard = (time >= onset) & (time < offset)
    waveform = 0.5 * np.sin(2 * np.pi * 1000 * time) * heard
    return make_row(name, waveform.astype(np.float32), ["beep"], [(onset, offset, "beep")])


def is_loud(waveform: np.ndarray, num_frames: int, edges: np.ndarray) -> np.ndarray:
    """The share of each step in which the beep is audible."""
    place = (np.arange(len(waveform)) + 0.5) / RATE
    loud = np.abs(waveform) > 1e-3
    step = np.clip(np.searchsorted(edges, place, side="right") - 1, 0, len(edges) - 2)
    return np.bincount(step, loud, len(edges) - 1) / np.maximum(np.bincount(step, minlength=len(edges) - 1), 1)


# ── crops ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_event_that_is_audible_in_a_crop_has_its_targets_where_the_tone_is(make_data_set):
    data_set = make_data_set([beeping(6.0, 0.5, 2.0)], with_frames=True, keep_waveforms=True)
    edges = np.array(data_set.config.step_edges(256))
    num_heard = 0
    for draw in range(40):
        example = data_set[0, draw]
        assert len(example.waveform) == WINDOW_SAMPLES
        loud = is_loud(example.waveform, 256, edges)
        assert example.frame_targets.shape == (STEPS, 3)
        assert not example.frame_targets[:, [0, 2]].any()
        target = example.frame_targets[:, 1]
        assert (target[loud > 0.6] == 1).all()
        if target.sum() > 1:
            assert (target[loud < 0.4] == 0).all()
        assert example.labels[1] == target.max()
        num_heard += int(target.any())
    assert 10 < num_heard < 40  # crops begin within 3.45 s, and those after 2 s hear nothing


@pytest.mark.parametrize("crop_seconds", [None, 2.0, 1.1, 0.6, 0.3])
@pytest.mark.parametrize("seconds", [0.25, 1.0, 2.2])
def test_events_are_repeated_with_the_sound_that_is_too_short(make_data_set, crop_seconds, seconds):
    """The targets agree with the model's input itself: with the frames that are loud."""
    row = beeping(seconds, 0.1 * seconds, 0.55 * seconds)
    data_set = make_data_set([row], with_frames=True, crop_seconds=crop_seconds)
    for key in [0, *((0, draw) for draw in range(12))]:
        example = data_set[key]
        loud = (example.features.max(1).values > 0).float()
        stretched = torch.nn.functional.interpolate(loud[None, None], STEPS * 32, mode="nearest")
        loud = stretched.view(STEPS, 32).mean(1)
        target = torch.from_numpy(example.frame_targets[:, 1])
        assert (target[loud > 0.75] == 1).all()
        if loud.max() > 0.75 or not loud.any():  # else it is heard in too little of any step, and marks one
            assert (target[loud < 0.2] == 0).all()


@pytest.mark.parametrize("seconds", [0.7, 2.5, 6.0])
def test_events_are_rolled_with_the_spectrogram(make_data_set, seconds):
    """Again the targets agree with the frames that are loud, also where an event goes on at the start."""
    row = beeping(seconds, 0.1 * seconds, 0.55 * seconds)
    data_set = make_data_set([row], with_frames=True, crop_seconds=seconds)
    whole, data_set.roll_time = data_set[0, 0].features, True
    begins = set()
    for draw in range(20):
        example = data_set[0, draw]
        first = next(n for n in range(len(whole)) if torch.equal(example.features, whole.roll(-n, 0)))
        begins.add(first)
        edges = np.array(data_set.config.step_edges(len(whole))) * RATE / data_set.config.hop_length
        is_loud = (example.features.max(1).values > 0).numpy()
        step = np.minimum(np.searchsorted(edges, np.arange(len(whole)), side="right") - 1, len(edges) - 2)
        loud, target = np.bincount(step, is_loud) / np.bincount(step), example.frame_targets[:, 1]
        assert (target[loud > 0.75] == 1).all()
        assert (target[1:-1][loud[1:-1] < 0.2] == 0).all()  # a bit cut off at an end still marks its step
        assert example.labels.tolist() == [0, 1, 0]
    assert len(begins) > 15
    assert torch.equal(data_set[0].features, whole)  # an evaluation hears it as it is


def test_the_draw_alone_decides_the_crop(make_data_set):
    noise = np.random.default_rng(0).random(5 * RATE, np.float32) - 0.5
    data_set = make_data_set([make_row("noise", noise)])
    assert torch.equal(data_set[0, 7].features, data_set[0, 7].features)
    assert len({float(data_set[0, draw].features[0, 0]) for draw in range(8)}) == 8
    assert data_set[0, 7].draw == 7


def test_a_crop_may_begin_anywhere(make_data_set):
    ramp = np.arange(WINDOW_SAMPLES + 3, dtype=np.float32) / 1e6
    data_set = make_data_set([make_row("ramp", ramp)], keep_waveforms=True)
    crops = [data_set[0, draw].waveform for draw in range(100)]
    assert {round(float(crop[0]) * 1e6) for crop in crops} == {0, 1, 2, 3}
    assert all(np.allclose(np.diff(crop), 1e-6, atol=1e-7) and len(crop) == WINDOW_SAMPLES for crop in crops)


@pytest.mark.parametrize("rule", ["repeat", "pad", "stretch"])
def test_a_clip_that_is_not_cut_is_heard_in_training_as_in_use(make_data_set, rule):
    waveform = tone(0.7, 440)
    data_set = make_data_set([make_row("short", waveform)], short_clips=rule)
    expected = data_set.extractor(waveform, sampling_rate=RATE, return_tensors="pt")["input_features"][0]
    assert torch.equal(data_set[0, 5].features, expected)
    assert torch.equal(data_set[0].features, expected)


def test_asked_with_an_index_it_gives_the_whole_clip(make_data_set):
    waveform = tone(6.1, 440)
    data_set = make_data_set([make_row("long", waveform)], keep_waveforms=True)
    assert np.array_equal(data_set[0].waveform, waveform)
    assert len(data_set[0].features) == data_set.extractor.num_frames(len(waveform))


@pytest.mark.parametrize(
    ("hop_length", "sampling_rate"), [(320, 32000), (512, 44100), (441, 44100), (480, 48000), (512, 22050)]
)
def test_a_crop_is_one_window_to_the_sample(make_config, hop_length, sampling_rate):
    values = {"hop_length": hop_length, "sampling_rate": sampling_rate}
    config = make_config(**values)
    extractor = HTSATFeatureExtractor(clip_frames=256, max_frequency=10_000, **values)
    data_set = ClipDataset(ListRows([]), extractor, config)
    assert data_set.crop_samples == 255 * hop_length
    assert extractor.num_frames(data_set.crop_samples) == config.clip_frames


@pytest.mark.parametrize("crop_seconds", [0.0, -1.0])
def test_a_crop_of_nothing_is_refused(make_data_set, crop_seconds):
    with pytest.raises(ValueError, match="crop_seconds is .*must be positive"):
        make_data_set([], crop_seconds=crop_seconds)


def test_a_crop_may_be_longer_than_a_window_with_targets_on_the_models_own_steps(make_data_set, make_model):
    row = make_row("clip", tone(9.0, 440), events=[(1.0, 8.5, "beep")])
    data_set = make_data_set([row], with_frames=True, crop_seconds=6.0)
    example = data_set[0, 5]
    assert len(example.features) == 601
    model = make_model(HTSATForSoundEventDetection, num_labels=3)
    outputs = model(example.features[None], frame_targets=torch.from_numpy(example.frame_targets)[None])
    assert outputs.logits.shape[1] == len(example.frame_targets) > model.config.num_steps
    assert outputs.loss.isfinite()
    whole = make_data_set([row], with_frames=True, crop_seconds=20.0)[0, 5]
    assert len(whole.features) == 901


def test_a_roll_goes_on_with_what_was_left_out(make_data_set):
    waveform = tone(1.0, 440)
    data_set = make_data_set([make_row("clip", waveform)], roll_samples=100, keep_waveforms=True)
    assert np.array_equal(data_set[0].waveform, np.concatenate([waveform[100:], waveform[:100]]))


# ── targets of every length ───────────────────────────────────────────────────────────────────────────────────────────


LENGTHS = [1, 100, 513, 6_000, 16_000, 33_333, 81_599, 81_600, 81_920, 82_000, 100_000, 200_001, 244_800]


@pytest.mark.parametrize("rule", ["repeat", "pad", "stretch"])
def test_targets_have_as_many_steps_as_the_model_from_one_sample_to_three_windows(make_data_set, make_model, rule):
    model = make_model(HTSATForSoundEventDetection, num_labels=3)
    rows = [make_row(str(length), tone(1, 300)[:1].repeat(length), ["hum"], [(0, 9, "hum")]) for length in LENGTHS]
    data_set = make_data_set(rows, short_clips=rule, with_frames=True)
    collate = ClipCollator(data_set.extractor)
    for index, length in enumerate(LENGTHS):
        batch = collate([data_set[index]])
        with torch.no_grad():
            logits = model(batch["input_features"], batch.get("attention_mask")).logits
        assert batch["frame_targets"].shape == logits.shape, length
        assert model(**inputs_of(batch)).loss.isfinite()


@pytest.mark.parametrize("rule", ["repeat", "pad", "stretch"])
def test_targets_of_a_batch_end_where_its_clips_do(make_data_set, make_model, rule):
    model = make_model(HTSATForSoundEventDetection, num_labels=3)
    rows = [beeping(1.0, 0.2, 0.5), beeping(5.5, 1.0, 4.0), beeping(2.7, 0.2, 2.5)]
    data_set = make_data_set(rows, short_clips=rule, with_frames=True)
    batch = ClipCollator(data_set.extractor)([data_set[index] for index in range(3)])
    outputs = model(**inputs_of(batch))
    assert batch["frame_targets"].shape == outputs.logits.shape
    assert torch.equal(batch["frame_targets"].isnan().all(2), ~outputs.step_mask)
    assert not batch["frame_targets"].isnan().all(2)[:, :STEPS].any()


def inputs_of(batch: dict) -> dict:
    """What the model takes of a batch; the trainer keeps the rest for itself."""
    return {name: value for name, value in batch.items() if name not in NOT_FOR_THE_MODEL}


# ── labels ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_labels_that_are_not_known_are_nan_and_silence_is_known(make_data_set):
    rows = [
        make_row("weak", tone(1, 300), labels=["hum", "hiss"]),
        make_row("strong", tone(1, 300), events=[(0.0, 0.4, "beep")]),
        make_row("unknown", tone(1, 300)),
        make_row("silent", tone(1, 300), labels=[], events=[]),
    ]
    data_set = make_data_set(rows, with_frames=True)
    weak, strong, unknown, silent = (data_set[index] for index in range(4))
    assert weak.labels.tolist() == [1, 0, 1]
    assert np.isnan(weak.frame_targets).all()
    assert strong.labels.tolist() == [0, 1, 0]
    assert strong.frame_targets[:, 1].any()
    assert np.isnan(unknown.labels).all()
    assert np.isnan(unknown.frame_targets).all()
    assert silent.labels.tolist() == [0, 0, 0]
    assert not silent.frame_targets.any()


def test_without_frames_there_are_no_frame_targets(make_data_set):
    data_set = make_data_set([beeping(1.0, 0.1, 0.5)])
    assert data_set[0].frame_targets is None
    assert "frame_targets" not in ClipCollator(data_set.extractor)([data_set[0]])


def test_a_single_label_is_an_index_and_minus_100_where_it_is_not_known(make_data_set):
    rows = [make_row("known", tone(1, 300), ["hiss"]), make_row("unknown", tone(1, 300))]
    data_set = make_data_set(rows, problem_type="single_label_classification")
    batch = ClipCollator(data_set.extractor)([data_set[0], data_set[1, 4]])
    assert batch["labels"].tolist() == [2, -100]
    assert batch["labels"].dtype == torch.int64


def test_two_labels_for_a_model_of_one_are_refused(make_data_set):
    data_set = make_data_set(
        [make_row("both", tone(1, 300), ["hum", "hiss"])], problem_type="single_label_classification"
    )
    with pytest.raises(ValueError, match="both has 2 labels.*multi_label_classification"):
        data_set[0]


def test_a_crop_of_a_model_of_one_label_keeps_the_label_of_its_clip(make_data_set):
    data_set = make_data_set([beeping(9.0, 0.0, 0.5)], problem_type="single_label_classification")
    assert {int(data_set[0, draw].labels) for draw in range(20)} == {1}


def test_a_crop_is_labelled_with_what_is_heard_in_it_unless_events_are_not_to_be_learnt(make_data_set):
    row = beeping(9.0, 0.0, 0.5)
    labels = [make_data_set([row])[0, draw].labels[1] for draw in range(20)]
    assert {0.0, 1.0} >= set(labels) and min(labels) == 0.0  # most crops begin after the beep
    from_clip = make_data_set([row], learn_events=False)
    assert {from_clip[0, draw].labels[1] for draw in range(20)} == {1.0}
    without_events = make_data_set([{**row, "events": None}])
    assert {without_events[0, draw].labels[1] for draw in range(20)} == {1.0}


def test_a_clip_that_is_not_cut_keeps_the_labels_that_it_came_with(make_data_set):
    row = make_row("clip", tone(1, 300), ["hum", "beep"], [(0.0, 0.5, "beep")])
    assert make_data_set([row])[0, 3].labels.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    "row",
    [
        make_row("strange", tone(0.1, 300), ["hum", "growl"]),
        make_row("strange", tone(0.1, 300), None, [(0.0, 0.1, "growl")]),
        make_row("strange", tone(0.1, 300), ["hum"], [(0.0, 0.1, "hum"), (0.0, 0.1, "growl")]),
    ],
)
def test_a_label_that_the_model_lacks_is_named_before_the_run(make_data_set, row):
    data_set = make_data_set([beeping(0.1, 0.0, 0.1), row], with_frames=True)
    with pytest.raises(ValueError, match="strange is labelled 'growl'.*3 labels"):
        data_set.refuse_unknown_labels()
    with pytest.raises(ValueError, match="growl"):
        data_set[1]
    make_data_set([beeping(0.1, 0.0, 0.1)], with_frames=True).refuse_unknown_labels()


def test_classes_for_balance_are_those_that_the_model_has(make_data_set):
    rows = [
        make_row("both", None, ["hiss", "hum"]),
        make_row("strange", None, ["growl"]),
        make_row("unknown", None),
        make_row("strong", None, None, [(0, 1, "beep"), (2, 3, "beep")]),
    ]
    assert make_data_set(rows).class_indices() == [[2, 0], [], [], [1]]


# ── clips that cannot be decoded ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "single_label_classification"])
def test_a_bad_clip_keeps_its_place_without_labels_and_is_named(make_data_set, problem_type):
    rows = [make_row("bad", None, ["hum"]), make_row("good", tone(1, 300), ["beep"])]
    data_set = make_data_set(rows, problem_type=problem_type, with_frames=True)
    bad, good = data_set[0, 8], data_set[1, 9]
    batch = ClipCollator(data_set.extractor)([bad, good])
    assert batch["bad_clips"] == ["bad"]
    assert torch.equal(batch["input_features"][0], batch["input_features"][1])  # silence would pull at the batch norm
    assert bool(batch["labels"][0].isnan().all() if batch["labels"].ndim == 2 else batch["labels"][0] == -100)
    assert batch["frame_targets"][0].isnan().all()
    assert batch["augmentation_seed"] == 8


def test_a_missing_file_and_a_row_without_sound_are_bad_clips(make_data_set, tmp_path):
    rows = [make_row("gone", None, ["hum"]), make_row("empty", None, ["hum"]), make_row("nothing", None, ["hum"])]
    rows[0]["audio"] = {"bytes": None, "path": str(tmp_path / "gone.wav")}
    rows[1]["audio"] = {"bytes": b"", "path": "empty.wav"}
    rows[2]["audio"] = {"bytes": None, "path": None}
    data_set = make_data_set(rows)
    assert [data_set[index, 1].features for index in range(3)] == [None, None, None]


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "single_label_classification"])
def test_a_bad_clip_does_not_change_the_loss_of_its_batch(make_data_set, make_model, problem_type):
    rows = [beeping(1.3, 0.1, 0.9, "a"), make_row("bad", None, ["hum"]), beeping(2.0, 0.5, 0.7, "b")]
    data_set = make_data_set(rows, problem_type=problem_type)
    model = make_model(HTSATForAudioClassification, num_labels=3, problem_type=problem_type)
    collate = ClipCollator(data_set.extractor)
    examples = [data_set[index, index] for index in range(3)]
    with torch.no_grad():
        whole = model(**inputs_of(collate([examples[0], examples[2]]))).loss
        assert float(model(**inputs_of(collate(examples))).loss) == pytest.approx(float(whole), rel=1e-6)
        assert float(model(**inputs_of(collate(examples[1:] + examples[:1]))).loss) == pytest.approx(float(whole))


def test_a_bad_clip_does_not_change_the_loss_of_frames_either(make_data_set, make_model):
    rows = [beeping(1.3, 0.1, 0.9, "a"), make_row("bad", None, ["hum"], [(0, 1, "hum")]), beeping(2.0, 0.5, 0.7, "b")]
    data_set = make_data_set(rows, with_frames=True)
    model = make_model(HTSATForSoundEventDetection, num_labels=3)
    collate = ClipCollator(data_set.extractor)
    examples = [data_set[index, index] for index in range(3)]
    with torch.no_grad():
        whole = model(**inputs_of(collate([examples[0], examples[2]]))).loss
        assert float(model(**inputs_of(collate(examples))).loss) == pytest.approx(float(whole), rel=1e-6)


def test_a_batch_of_bad_clips_alone_teaches_nothing(make_data_set, make_model):
    data_set = make_data_set([make_row(name, None, ["hum"]) for name in "ab"], with_frames=True)
    model = make_model(HTSATForSoundEventDetection, num_labels=3, drop_path_rate=0.0).train()
    batch = ClipCollator(data_set.extractor)([data_set[0, 1], data_set[1, 2]])
    assert batch["input_features"].shape[1] == 256
    loss = model(**inputs_of(batch)).loss
    loss.backward()
    assert loss == 0
    assert all(not parameter.grad.any() for parameter in model.parameters())


# ── cache, workers, batches ───────────────────────────────────────────────────────────────────────────────────────────


def count_decodings(monkeypatch) -> list[str]:
    decoded, load_audio = [], examples.load_audio

    def counting(audio, rate):
        decoded.append(audio["path"])
        return load_audio(audio, rate)

    monkeypatch.setattr(examples, "load_audio", counting)
    return decoded


def test_the_cache_gives_what_decoding_gives_and_no_more_than_fits(make_data_set, monkeypatch):
    rows = [make_row(f"{index}", tone(1.0, 300, index), ["hum"]) for index in range(3)]
    bytes_of_a_clip = 4 * 2 * 101 * 64
    plain, cached = make_data_set(rows), make_data_set(rows, cache_gib=2.5 * bytes_of_a_clip / 2**30)
    expected = [plain[index, 5].features for index in range(3)]
    decoded = count_decodings(monkeypatch)
    for _ in range(3):
        for index in range(3):
            assert torch.equal(cached[index, 5].features, expected[index])
    assert sorted(decoded) == ["0", "1", "2", "2", "2"]


def test_neither_crops_nor_rolls_come_from_the_cache(make_data_set):
    rows = [make_row("long", tone(3.0, 300), ["hum"]), make_row("short", tone(1.0, 300), ["hum"])]
    cached, plain = make_data_set(rows, cache_gib=1.0), make_data_set(rows)
    for key in (1, (0, 5), (0, 6), (1, 7)):
        assert torch.equal(cached[key].features, plain[key].features)
    cached.roll_samples = plain.roll_samples = 77
    assert torch.equal(cached[1].features, plain[1].features)
    cached.roll_samples = plain.roll_samples = 0
    assert torch.equal(cached[1].features, plain[1].features)


def test_mixing_a_batch_leaves_the_cache_as_it_is(make_data_set):
    cached = make_data_set([make_row("clip", tone(1.0, 300), ["hum"])], cache_gib=1.0)
    first = cached[0, 5].features.clone()
    ClipCollator(cached.extractor)([cached[0, 1]])["input_features"].zero_()
    assert torch.equal(cached[0, 5].features, first)


def test_sound_is_resampled_to_the_rate_of_the_model(make_data_set):
    row = make_row("clip", tone(1.0, 300, rate=16_000), ["hum"], rate=16_000)
    assert len(make_data_set([row], keep_waveforms=True)[0].waveform) == RATE


def test_a_data_set_and_a_collator_can_be_sent_to_workers(make_data_set):
    data_set = make_data_set([beeping(3.0, 0.5, 1.5)], with_frames=True)
    copy = pickle.loads(pickle.dumps(data_set))
    assert torch.equal(copy[0, 11].features, data_set[0, 11].features)
    collate = pickle.loads(pickle.dumps(ClipCollator(data_set.extractor)))
    batch, expected = collate([copy[0, 11]]), ClipCollator(data_set.extractor)([data_set[0, 11]])
    assert torch.equal(batch["input_features"], expected["input_features"])


def test_workers_make_the_batches_that_one_process_makes(make_data_set):
    rows = [beeping(1.0 + index / 3, 0.1, 0.8, str(index)) for index in range(6)]
    data_set = make_data_set(rows, with_frames=True)
    batches = [[(0, 4), (3, 5)], [(5, 6)], [(1, 7), (2, 8), (4, 9)]]
    collate = ClipCollator(data_set.extractor)
    alone, helped = (
        list(DataLoader(data_set, batch_sampler=batches, collate_fn=collate, num_workers=count)) for count in (0, 2)
    )
    for one, other in zip(alone, helped, strict=True):
        assert one.keys() == other.keys()
        for name in ("input_features", "labels", "frame_targets"):
            assert torch.equal(one[name], other[name])


def test_a_teacher_gets_the_waveforms_and_its_answers_come_by_name(make_data_set):
    rows = [make_row("a", tone(1.0, 300), ["hum"]), make_row("bad", None, ["hum"]), make_row("b", tone(2.0, 300))]
    data_set = make_data_set(rows, short_clips="pad", keep_waveforms=True)
    answers = {"a": np.array([0.1, 0.2, 0.3]), "b": np.array([0.4, 0.5, 0.6]), "bad": np.full(3, np.nan)}
    collate = ClipCollator(data_set.extractor, soft_targets=answers)
    batch = collate([data_set[index, 1] for index in range(3)])
    assert [len(waveform) for waveform in batch["waveforms"]] == [RATE, RATE, 2 * RATE]
    assert torch.allclose(batch["soft_targets"][[0, 2]], torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]))
    assert batch["soft_targets"][1].isnan().all()


def test_the_first_clips_draw_is_the_seed_of_the_batch(make_data_set):
    collate = ClipCollator(make_data_set([]).extractor)
    examples = [Example(str(draw), torch.zeros(9, 64), np.zeros(3, np.float32), None, draw) for draw in (2**62, 5)]
    assert collate(examples)["augmentation_seed"] == 2**62


def test_an_evaluation_is_neither_augmented_nor_taught(make_data_set):
    """Its clips are others than those that the teacher was asked about."""
    data_set = make_data_set([make_row("a", tone(1.0, 300), ["hum"]), make_row("bad", None, ["hum"])])
    batch = ClipCollator(data_set.extractor, soft_targets={})([data_set[0], data_set[1]])
    assert "augmentation_seed" not in batch
    assert "soft_targets" not in batch
    assert batch["bad_clips"] == ["bad"]
