"""Augmentation moves, cuts and mixes spectrograms and targets as it says, and does nothing where it is switched off."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from modeling_htsat import HTSATForAudioClassification, HTSATForSoundEventDetection
from modeling_htsat.training.augmentation import AugmentationArguments, SpectrogramAugmentation

ALL = AugmentationArguments(
    mixup_alpha=0.5,
    time_masks=2,
    frequency_masks=2,
    max_speed_change=0.2,
    max_frequency_shift_bins=3,
    max_gain_db=6,
)
CLIP_FRAMES, NUM_LABELS = 256, 5


@pytest.fixture
def make_augmentation(make_model) -> Callable:
    """`make_augmentation(mixup_alpha=0.5)`: an augmentation, its model, and what the model's norm hands on."""

    def make(model_class=HTSATForAudioClassification, **values):
        model = make_model(model_class, drop_path_rate=0.0).train()
        augmentation = SpectrogramAugmentation(AugmentationArguments(**values), model)
        handed_on: list[torch.Tensor] = []
        model.htsat.mel_norm.register_forward_hook(lambda norm, inputs, output: handed_on.append(output.detach()))
        return augmentation, model, handed_on

    return make


def dice(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ── nothing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_switched_off_it_leaves_input_and_output_as_they_are(make_augmentation, make_features):
    augmentation, model, _ = make_augmentation()
    inputs = {"input_features": make_features(3, 200), "labels": torch.rand(3, NUM_LABELS)}
    expected = model(**inputs)
    result = augmentation.apply(inputs, NUM_LABELS, dice())
    assert all(torch.equal(result[name], inputs[name]) for name in inputs)
    assert torch.equal(model(**result).logits, expected.logits)


def test_evaluation_is_not_touched_even_after_a_training_batch(make_augmentation, make_features):
    augmentation, model, _ = make_augmentation(mixup_alpha=0.5, time_masks=2, frequency_masks=2)
    features = make_features(3, CLIP_FRAMES)
    expected = model.eval()(features).logits
    batch = augmentation.apply({"input_features": features}, NUM_LABELS, dice())
    statistics = {name: values.clone() for name, values in model.state_dict().items()}
    assert not torch.allclose(model.train()(**batch).logits, expected, atol=1e-3)
    model.load_state_dict(statistics)
    assert torch.equal(model.eval()(features).logits, expected)
    assert model(make_features(2, 700)).logits.shape == (2, NUM_LABELS)  # more windows than the training batch had


def test_the_batch_that_came_is_not_changed(make_augmentation, make_features):
    augmentation, _, _ = make_augmentation(
        mixup_alpha=0.5, max_speed_change=0.2, max_frequency_shift_bins=4, max_gain_db=6
    )
    inputs = {"input_features": make_features(3, CLIP_FRAMES), "labels": torch.rand(3, NUM_LABELS)}
    before = {name: values.clone() for name, values in inputs.items()}
    augmentation.apply(inputs, NUM_LABELS, dice())
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)


def test_the_same_dice_give_the_same_batch_and_others_another(make_model, make_features):
    model = make_model(HTSATForAudioClassification, drop_path_rate=0.0).train()
    augmentation = SpectrogramAugmentation(ALL, model)
    inputs = {"input_features": make_features(3, CLIP_FRAMES), "labels": torch.rand(3, NUM_LABELS)}

    def outcome(seed: int):
        batch = augmentation.apply(inputs, NUM_LABELS, dice(seed))
        return batch["input_features"], batch["labels"], model(**batch).logits

    for one, same, other in zip(outcome(1), outcome(1), outcome(2), strict=True):
        assert torch.equal(one, same)
        assert not torch.allclose(one, other)


def test_it_asks_nobody_else_for_chance(make_model, make_features):
    augmentation = SpectrogramAugmentation(ALL, make_model(HTSATForAudioClassification).train())
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    augmentation.apply({"input_features": make_features(2, 99)}, NUM_LABELS, dice())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == np.random.get_state()[1].tolist()


# ── stripes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("time_masks", "frequency_masks"), [(1, 0), (0, 1), (1, 1)])
def test_a_mask_cuts_exactly_one_stripe_of_zeros_behind_the_norm(
    make_augmentation, make_features, time_masks, frequency_masks
):
    augmentation, model, handed_on = make_augmentation(time_masks=time_masks, frequency_masks=frequency_masks)
    features = make_features(40, 201)
    for seed in range(3):
        batch = augmentation.apply({"input_features": features}, NUM_LABELS, dice(seed))
        with torch.no_grad():
            model.htsat(**batch)
    untouched = handed_on_without(augmentation, model, features)
    for zeroed, whole in zip(torch.cat(handed_on[:3]), untouched.repeat(3, 1, 1), strict=True):
        is_cut = zeroed == 0  # (mels, frames)
        frames, bins = is_cut.all(0), is_cut.all(1)
        assert torch.equal(is_cut, frames[None] | bins[:, None])
        assert torch.equal(zeroed[~is_cut], whole[~is_cut])
        assert is_one_stripe(frames, longest=64 * time_masks)
        assert is_one_stripe(bins, longest=8 * frequency_masks)


def handed_on_without(augmentation, model, features: torch.Tensor) -> torch.Tensor:
    """What the norm gives in training, with nothing switched on."""
    masks = augmentation.arguments
    augmentation.arguments = AugmentationArguments()
    batch = augmentation.apply({"input_features": features}, NUM_LABELS, dice())
    found: list[torch.Tensor] = []
    hook = model.htsat.mel_norm.register_forward_hook(lambda norm, inputs, output: found.append(output.detach()))
    with torch.no_grad():
        model.htsat(**batch)
    hook.remove()
    augmentation.arguments = masks
    return found[0]


def is_one_stripe(is_cut: torch.Tensor, longest: int) -> bool:
    edges = is_cut.int().diff(prepend=torch.zeros(1, dtype=torch.int), append=torch.zeros(1, dtype=torch.int))
    return int((edges == 1).sum()) <= 1 and int(is_cut.sum()) <= longest


def test_stripes_reach_every_place_and_every_length_up_to_the_longest(make_augmentation):
    augmentation, _, _ = make_augmentation(time_masks=1, max_time_mask_frames=7)
    kept = augmentation._cut_stripes(4000, 64, dice())[:, 0]  # (clips, frames)
    lengths = (1 - kept).sum(1).long()
    assert lengths.unique().tolist() == list(range(8))
    assert torch.bincount(lengths).min() > 400  # of 4000 / 8 = 500
    assert (kept.mean(0) < 1).all()


def test_every_clip_has_stripes_of_its_own(make_augmentation):
    augmentation, _, _ = make_augmentation(time_masks=2, frequency_masks=2)
    kept = augmentation._cut_stripes(6, 64, dice())
    assert len({tuple(clip.flatten().tolist()) for clip in kept}) == 6


# ── mixup ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("num_clips", [2, 5])
def test_spectrograms_are_mixed_behind_the_norm_as_the_labels_are(make_augmentation, make_features, num_clips):
    augmentation, model, handed_on = make_augmentation(mixup_alpha=0.5)
    features, labels = make_features(num_clips, CLIP_FRAMES), torch.rand(num_clips, NUM_LABELS)
    batch = augmentation.apply({"input_features": features, "labels": labels}, NUM_LABELS, dice())
    assert torch.equal(batch["input_features"], features)
    model(**batch)
    normalised = handed_on_without(augmentation, model, features)
    for index in range(num_clips):
        partner = num_clips - 1 - index
        difference = labels[index] - labels[partner]
        share = 1.0 if partner == index else float(((batch["labels"][index] - labels[partner]) / difference).mean())
        assert -1e-5 <= share <= 1 + 1e-5
        expected = share * normalised[index] + (1 - share) * normalised[partner]
        assert torch.allclose(handed_on[0][index], expected, atol=1e-3)
    assert not torch.allclose(batch["labels"], labels)


def test_windows_of_long_clips_are_mixed_with_those_at_the_same_place_of_the_mirrored_clip(
    make_augmentation, make_features
):
    augmentation, model, handed_on = make_augmentation(mixup_alpha=0.5)
    features = make_features(3, 700)
    mask = torch.arange(700) < torch.tensor([700, 300, 256])[:, None]  # windows by clip: 3, 2, 1
    inputs = {"input_features": features, "attention_mask": mask.long(), "labels": torch.eye(3, NUM_LABELS)}
    batch = augmentation.apply(inputs, NUM_LABELS, dice())
    shares = batch["labels"].diagonal()  # the clip in the middle is its own partner
    model(**batch)
    augmentation.arguments = AugmentationArguments()
    model(**augmentation.apply(inputs, NUM_LABELS, dice()))
    mixed, alone = handed_on
    clips, partners = [0, 0, 0, 1, 1, 2], [5, 5, 5, 3, 4, 0]
    assert len(mixed) == len(alone) == 6
    for window, (clip, partner) in enumerate(zip(clips, partners, strict=True)):
        expected = shares[clip] * alone[window] + (1 - shares[clip]) * alone[partner]
        assert torch.allclose(mixed[window], expected, atol=1e-3), window


def test_every_window_of_a_long_clip_has_stripes_of_its_own(make_augmentation, make_features):
    augmentation, model, handed_on = make_augmentation(time_masks=1, frequency_masks=1)
    model(**augmentation.apply({"input_features": make_features(2, 700)}, NUM_LABELS, dice()))
    cut = {tuple((window == 0).flatten().tolist()) for window in handed_on[0]}
    assert len(cut) == len(handed_on[0]) == 6


def test_by_the_authors_rule_sounds_are_mixed_and_labels_are_not(make_augmentation, make_features):
    augmentation, model, handed_on = make_augmentation(mixup_alpha=0.5, mixup_labels="authors")
    targets = {"labels": torch.rand(4, NUM_LABELS), "soft_targets": torch.rand(4, NUM_LABELS)}
    features = make_features(4, CLIP_FRAMES)
    batch = augmentation.apply({"input_features": features, **targets}, NUM_LABELS, dice())
    assert all(torch.equal(batch[name], targets[name]) for name in targets)
    del batch["soft_targets"]
    model(**batch)
    assert not torch.allclose(handed_on[0], handed_on_without(augmentation, model, features), atol=0.1)


def test_shares_come_from_the_beta_distribution(make_augmentation, make_features):
    augmentation, _, _ = make_augmentation(mixup_alpha=0.5)
    features = torch.zeros(4000, 1, 64)
    augmentation.apply({"input_features": features}, NUM_LABELS, dice())
    share = augmentation._share
    assert share.mean() == pytest.approx(0.5, abs=0.02)
    assert share.var() == pytest.approx(0.125, abs=0.01)  # 1 / (4 (2 alpha + 1))
    assert 0 <= share.min() < 0.01 < 0.99 < share.max() <= 1


def test_missing_labels_stay_missing_in_both_clips_of_a_pair(make_augmentation, make_features):
    augmentation, _, _ = make_augmentation(mixup_alpha=0.5)
    labels = torch.rand(5, NUM_LABELS)
    labels[0], labels[1, 2], labels[3, 4] = float("nan"), -100, float("nan")
    mixed = augmentation.apply({"input_features": make_features(5, 9), "labels": labels}, NUM_LABELS, dice())["labels"]
    expected = torch.zeros(5, NUM_LABELS, dtype=torch.bool)
    expected[[0, 4]] = True  # a pair
    expected[1, [2, 4]] = expected[3, [2, 4]] = True  # another
    assert torch.equal(mixed.isnan(), expected)


def test_class_indices_become_probabilities(make_augmentation, make_features):
    augmentation, _, _ = make_augmentation(mixup_alpha=0.5)
    labels = torch.tensor([3, 0, -100, 1, 2])
    mixed = augmentation.apply({"input_features": make_features(5, 9), "labels": labels}, NUM_LABELS, dice())["labels"]
    assert mixed.shape == (5, NUM_LABELS)
    assert mixed[2].isnan().all()
    assert torch.allclose(mixed[[0, 1, 3, 4]].sum(1), torch.ones(4))
    assert mixed[0].nonzero().flatten().tolist() == [2, 3]
    assert mixed[1].nonzero().flatten().tolist() == [0, 1]
    assert mixed[0, 3] != mixed[4, 3]


def test_the_loss_of_mixed_indices_is_the_mix_of_the_losses(make_augmentation, make_features, make_model):
    model = make_model(
        HTSATForAudioClassification, problem_type="single_label_classification", drop_path_rate=0.0
    ).train()
    augmentation = SpectrogramAugmentation(AugmentationArguments(mixup_alpha=0.5), model)
    labels = torch.tensor([3, 0, 1, 2])
    batch = augmentation.apply({"input_features": make_features(4, 256), "labels": labels}, NUM_LABELS, dice())
    with torch.no_grad():
        outputs = model(**batch)
    losses = -outputs.logits.log_softmax(1)
    share = augmentation._share
    expected = share * losses[range(4), labels] + (1 - share) * losses[range(4), labels.flip(0)]
    assert float(outputs.loss) == pytest.approx(float(expected.mean()), rel=1e-5)


def test_strong_and_soft_targets_are_mixed_like_the_weak_ones(make_augmentation, make_features):
    augmentation, model, _ = make_augmentation(HTSATForSoundEventDetection, mixup_alpha=0.5)
    weak = torch.rand(4, NUM_LABELS)
    strong, soft = weak[:, None].repeat(1, 8, 1), weak.clone()
    strong[1, 3:] = float("nan")
    inputs = {"input_features": make_features(4, 256), "labels": weak, "frame_targets": strong, "soft_targets": soft}
    batch = augmentation.apply(inputs, NUM_LABELS, dice())
    assert torch.equal(batch["soft_targets"], batch["labels"])
    assert torch.equal(batch["frame_targets"][0], batch["labels"][0].expand(8, -1))
    assert batch["frame_targets"][[1, 2], 3:].isnan().all()
    assert not batch["frame_targets"][[1, 2], :3].isnan().any()
    del batch["soft_targets"]
    assert model(**batch).loss.isfinite()


# ── before the norm ───────────────────────────────────────────────────────────────────────────────────────────────────


def moved(augmentation, features: torch.Tensor, seed: int = 0, mask: torch.Tensor | None = None) -> torch.Tensor:
    inputs = {"input_features": features} | ({} if mask is None else {"attention_mask": mask})
    return augmentation.apply(inputs, NUM_LABELS, dice(seed))["input_features"]


def test_a_change_of_speed_keeps_to_the_length_of_each_clip(make_augmentation):
    augmentation, _, _ = make_augmentation(max_speed_change=0.3)
    lengths = torch.tensor([40, 100, 1, 73])
    mask = (torch.arange(100) < lengths[:, None]).long()
    features = torch.where(mask.bool(), torch.arange(4.0)[:, None], torch.nan)[..., None].expand(4, 100, 64)
    for seed in range(20):
        rolled = moved(augmentation, features, seed, mask)
        assert torch.equal(rolled[..., 0][mask.bool()], features[..., 0][mask.bool()])  # each its number, and no NaN


@pytest.mark.parametrize("values", [{"max_speed_change": 0.0}, {"max_gain_db": 0.0}, {"max_frequency_shift_bins": 0}])
def test_a_change_of_nothing_is_the_identity(make_augmentation, make_features, values):
    augmentation, _, _ = make_augmentation(**values)
    features = make_features(3, 100)
    assert torch.equal(moved(augmentation, features), features)


def test_reading_at_the_speed_of_one_is_the_identity(make_augmentation, make_features):
    augmentation, _, _ = make_augmentation(max_speed_change=1e-9)
    features = make_features(3, 100)
    assert torch.allclose(moved(augmentation, features), features, atol=1e-2)


def test_a_change_of_speed_keeps_within_its_share_and_reads_on_at_the_start(make_augmentation):
    augmentation, _, _ = make_augmentation(max_speed_change=0.25)
    features = torch.arange(200.0)[None, :, None].expand(30, 200, 64)
    speeds = moved(augmentation, features)[:, 100, 0] / 100
    assert 0.75 <= speeds.min() < 0.85
    assert 1.15 < speeds.max() <= 1.25
    fast = moved(augmentation, features)[speeds.argmax(), :, 0]
    assert fast[190] < 50


def test_a_shift_of_frequency_moves_whole_bins_and_repeats_the_edge(make_augmentation):
    augmentation, _, _ = make_augmentation(max_frequency_shift_bins=3)
    features = torch.arange(64.0).expand(500, 2, 64)
    shifted = moved(augmentation, features)
    shifts = shifted[:, 0, 30] - 30
    counts = {int(shift): int((shifts == shift).sum()) for shift in shifts.unique()}
    assert sorted(counts) == [-3, -2, -1, 0, 1, 2, 3]
    assert min(counts.values()) > 35  # of 500 / 7 = 71
    for clip, shift in zip(shifted, shifts, strict=True):
        assert torch.equal(clip, (torch.arange(64.0) + shift).clamp(0, 63).expand(2, 64))


def test_a_gain_adds_the_same_decibels_everywhere_in_a_clip(make_augmentation, make_features):
    augmentation, _, _ = make_augmentation(max_gain_db=6.0)
    features = make_features(200, 7)
    gains = moved(augmentation, features) - features
    assert torch.allclose(gains, gains[:, :1, :1].expand_as(gains), atol=1e-4)
    assert -6 <= gains.min() < -5
    assert 5 < gains.max() <= 6


def test_one_change_does_not_move_the_dice_of_another(make_augmentation, make_features):
    alone, _, _ = make_augmentation(max_gain_db=6.0)
    together, _, _ = make_augmentation(max_gain_db=6.0, max_frequency_shift_bins=3)
    features = torch.zeros(5, 10, 64)
    assert torch.equal(moved(alone, features), moved(together, features))


# ── inside what Trainer makes of a model ──────────────────────────────────────────────────────────────────────────────


def loss_and_gradients(model, batch) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


def test_activation_checkpointing_changes_nothing(make_model, make_features):
    model = make_model(HTSATForAudioClassification, drop_path_rate=0.0).train()
    augmentation = SpectrogramAugmentation(ALL, model)
    inputs = {"input_features": make_features(3, CLIP_FRAMES), "labels": torch.rand(3, NUM_LABELS)}
    batch = augmentation.apply(inputs, NUM_LABELS, dice())
    expected = loss_and_gradients(model, batch)
    model.gradient_checkpointing_enable()  # the name that every transformers before 6 knows
    for found, wanted in zip(loss_and_gradients(model, batch), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_is_augmented_anew_in_every_step(make_model, make_features, backend):
    model = make_model(HTSATForAudioClassification, drop_path_rate=0.0).train()
    augmentation = SpectrogramAugmentation(ALL, model)
    compiled = torch.compile(model, backend=backend)
    for step in range(3):
        inputs = {"input_features": make_features(3, CLIP_FRAMES), "labels": torch.rand(3, NUM_LABELS)}
        batch = augmentation.apply(inputs, NUM_LABELS, dice(step))
        with torch.no_grad():
            expected = model(**batch).loss
        assert float(compiled(**batch).loss.detach()) == pytest.approx(float(expected), rel=1e-4)


def test_it_works_in_bfloat16(make_model, make_features):
    model = make_model(HTSATForAudioClassification).train()
    augmentation = SpectrogramAugmentation(ALL, model)
    inputs = {"input_features": make_features(3, CLIP_FRAMES), "labels": torch.rand(3, NUM_LABELS)}
    batch = augmentation.apply(inputs, NUM_LABELS, dice())
    with torch.autocast("cpu", torch.bfloat16):
        assert model(**batch).loss.isfinite()
    assert model.bfloat16()(**batch).loss.isfinite()


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mixup_labels": "ours"}, "mixed, authors"),
        ({"max_speed_change": 1.0}, "below 1"),
        ({"max_speed_change": -0.1}, "at least 0"),
        ({"mixup_alpha": -0.5}, "mixup_alpha is -0.5"),
        ({"time_masks": -1}, "time_masks is -1"),
        ({"max_gain_db": -3.0}, "must not be negative"),
    ],
)
def test_impossible_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        AugmentationArguments(**values)
