"""transformers' Trainer trains, evaluates, saves and resumes both heads, without the traps that new models meet."""

import json

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from modeling_htsat import HTSATFeatureExtractor, HTSATForAudioClassification, HTSATForSoundEventDetection
from modeling_htsat.metrics import event_metrics_for_trainer

HEAD_CLASSES = [HTSATForAudioClassification, HTSATForSoundEventDetection]
NUM_CLIPS = 12


@pytest.fixture
def clips(make_features):
    """`clips(labels=(5,), frame_targets=(8, 5))`: examples of log-mels of 256 frames with random targets."""

    def make(num_frames: int = 256, num_clips: int = NUM_CLIPS, **target_shapes: tuple[int, ...]) -> list[dict]:
        generator = torch.Generator().manual_seed(3)
        targets = {
            name: torch.rand(num_clips, *shape, generator=generator).round() for name, shape in target_shapes.items()
        }
        features = make_features(num_clips, num_frames)
        return [
            {"input_features": features[index], **{name: values[index] for name, values in targets.items()}}
            for index in range(num_clips)
        ]

    return make


@pytest.fixture
def make_trainer(tmp_path):
    """`make_trainer(model, train_dataset=..., max_steps=2)`: a Trainer that stays on the CPU and reports to nobody."""

    def make(model, train_dataset=None, eval_dataset=None, processing_class=None, compute_metrics=None, **values):
        arguments = TrainingArguments(
            **{
                "output_dir": str(tmp_path / "run"),
                "use_cpu": True,
                "report_to": [],
                "per_device_train_batch_size": 4,
                "per_device_eval_batch_size": 5,  # the last batch is smaller
                "logging_steps": 1,
                "save_strategy": "no",
                "disable_tqdm": True,
                "dataloader_pin_memory": False,
                "seed": 11,
                **values,
            }
        )
        return Trainer(
            model,
            arguments,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
        )

    return make


def losses_of(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model_class", HEAD_CLASSES)
def test_a_few_steps_change_every_weight_and_lower_the_loss(make_model, make_trainer, clips, model_class):
    model = make_model(model_class, problem_type="multi_label_classification", drop_path_rate=0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = make_trainer(
        model, clips(labels=(5,), num_clips=4), max_steps=4, learning_rate=1e-2, lr_scheduler_type="constant"
    )
    trainer.train()
    losses = losses_of(trainer)
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []
    assert model.htsat.mel_norm.num_batches_tracked == 4


def test_weak_and_strong_labels_train_together(make_model, make_trainer, clips):
    model = make_model(HTSATForSoundEventDetection, drop_path_rate=0)
    examples = clips(num_frames=300, labels=(5,), frame_targets=(10, 5))
    for example in examples[::2]:
        example["labels"] = torch.full((5,), float("nan"))
    for example in examples[1::2]:
        example["frame_targets"] = torch.full((10, 5), float("nan"))
    trainer = make_trainer(model, examples, max_steps=2)
    trainer.train()
    assert np.isfinite(losses_of(trainer)).all()
    assert min(losses_of(trainer)) > 0


@pytest.mark.parametrize(
    ("label_names", "shapes"),
    [
        (["frame_targets"], {"frame_targets": (10, 5)}),
        (["labels", "frame_targets"], {"labels": (5,), "frame_targets": (10, 5)}),
        (None, {"labels": (10, 5)}),
    ],
)
def test_strong_labels_are_evaluated_when_trainer_is_told_their_name(
    make_model, make_trainer, clips, label_names, shapes
):
    model = make_model(HTSATForSoundEventDetection)
    examples = clips(num_frames=300, **shapes)
    trainer = make_trainer(
        model, examples, eval_dataset=examples, compute_metrics=event_metrics_for_trainer(), label_names=label_names
    )
    result = trainer.evaluate()
    assert np.isfinite(result["eval_loss"])
    assert 0 <= result["eval_frame_f1"] <= 1


@pytest.mark.parametrize("model_class", HEAD_CLASSES)
def test_the_logged_loss_does_not_grow_with_gradient_accumulation(make_model, make_trainer, clips, model_class):
    examples = clips(labels=(5,), num_clips=8)
    with torch.no_grad():
        model = make_model(model_class, problem_type="multi_label_classification", drop_path_rate=0).train()
        halves = [
            model(
                torch.stack([example["input_features"] for example in half]),
                labels=torch.stack([example["labels"] for example in half]),
            ).loss.item()
            for half in (examples[:4], examples[4:])
        ]
    results = []
    for accumulation, batch_size in ((1, 8), (2, 4)):
        model = make_model(model_class, problem_type="multi_label_classification", drop_path_rate=0)
        trainer = make_trainer(
            model,
            examples,
            max_steps=1,
            gradient_accumulation_steps=accumulation,
            per_device_train_batch_size=batch_size,
            train_sampling_strategy="sequential",
        )
        trainer.train()
        (entry,) = (entry for entry in trainer.state.log_history if "loss" in entry)
        results.append((entry["loss"], entry["grad_norm"]))
    (whole_loss, whole_norm), (accumulated_loss, accumulated_norm) = results
    assert accumulated_loss == pytest.approx(sum(halves) / 2, rel=1e-3)
    assert whole_loss == pytest.approx(
        accumulated_loss, rel=0.1
    )  # batch norm sees other batches, the scale is the same
    assert whole_norm == pytest.approx(accumulated_norm, rel=0.5)


def test_weight_decay_spares_norms_biases_and_position_tables_and_takes_the_rest(make_model, make_trainer):
    for token_semantic_head in (True, False):
        model = make_model(HTSATForAudioClassification, token_semantic_head=token_semantic_head)
        trainer = make_trainer(model, weight_decay=0.05)
        decayed = set(trainer.get_decay_parameter_names(model))
        parameters = dict(model.named_parameters())
        norms = {
            f"{name}.{kind}"
            for name, layer in model.named_modules()
            if isinstance(layer, torch.nn.LayerNorm | torch.nn.BatchNorm1d)
            for kind in ("weight", "bias")
        }
        assert {"htsat.mel_norm.weight", "htsat.mel_norm.bias"} <= norms
        spared = norms | {name for name in parameters if name.endswith(("bias", "bias_table"))}
        assert decayed == set(parameters) - spared
        assert all(parameters[name].ndim >= 2 for name in decayed)
        trainer.create_optimizer()
        with_decay, without_decay = trainer.optimizer.param_groups
        assert (with_decay["weight_decay"], without_decay["weight_decay"]) == (0.05, 0)
        assert {id(parameter) for parameter in with_decay["params"]} == {id(parameters[name]) for name in decayed}


@pytest.mark.parametrize("model_class", HEAD_CLASSES)
def test_activation_checkpointing_trains_to_the_same_losses(make_model, make_trainer, clips, model_class):
    losses = []
    for is_checkpointed in (False, True):
        model = make_model(model_class, problem_type="multi_label_classification", drop_path_rate=0.3)
        trainer = make_trainer(model, clips(labels=(5,)), max_steps=3, gradient_checkpointing=is_checkpointed)
        trainer.train()
        assert model.is_gradient_checkpointing is is_checkpointed
        losses.append(losses_of(trainer))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_model_trained_by_trainer_still_runs_and_its_configuration_is_its_own(
    make_model, make_trainer, clips, tmp_path
):
    model = make_model(HTSATForAudioClassification, problem_type="multi_label_classification")
    known = set(model.config.to_dict())
    trainer = make_trainer(model, clips(labels=(5,)), max_steps=1, gradient_checkpointing=True)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    written = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    assert set(written) - known <= {"architectures", "auto_map", "dtype", "use_cache", "transformers_version"}
    model.eval()(torch.zeros(1, 100, 64))


def test_bfloat16_training_is_finite(make_model, make_trainer, clips):
    model = make_model(HTSATForSoundEventDetection)
    trainer = make_trainer(model, clips(labels=(5,)), max_steps=2, bf16=True)
    trainer.train()
    assert np.isfinite(losses_of(trainer)).all()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# ── evaluation ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_predictions_hold_the_clip_logits_and_nothing_else(make_model, make_trainer, clips):
    model = make_model(HTSATForAudioClassification, problem_type="multi_label_classification")
    examples = clips(labels=(5,))
    prediction = make_trainer(model).predict(examples)
    assert isinstance(prediction.predictions, np.ndarray)  # no embedding, no mask
    assert prediction.predictions.shape == (NUM_CLIPS, 5)
    with torch.no_grad():
        expected = model.eval()(torch.stack([example["input_features"] for example in examples])).logits
    assert np.allclose(prediction.predictions, expected, atol=1e-4)
    assert np.array_equal(prediction.label_ids, torch.stack([example["labels"] for example in examples]))


@pytest.mark.parametrize("asks_for_more", [False, True])
def test_event_predictions_hold_frame_and_clip_logits_and_nothing_else(make_model, make_trainer, clips, asks_for_more):
    model = make_model(HTSATForSoundEventDetection, attn_implementation="eager")
    model.config.output_hidden_states = asks_for_more
    model.config.output_attentions = asks_for_more
    frame_logits, clip_logits = make_trainer(model).predict(clips(num_frames=300, labels=(5,))).predictions
    assert frame_logits.shape == (NUM_CLIPS, 10, 5)
    assert clip_logits.shape == (NUM_CLIPS, 5)


@pytest.mark.parametrize(
    ("model_class", "target_shapes"),
    [
        (HTSATForAudioClassification, {"labels": (5,)}),
        (HTSATForSoundEventDetection, {"labels": (5,)}),
        (HTSATForSoundEventDetection, {"labels": (10, 5)}),
        (HTSATForSoundEventDetection, {"labels": (5,), "frame_targets": (10, 5)}),
    ],
    ids=["clips", "weak events", "strong events", "weak and strong events"],
)
def test_evaluation_returns_the_loss_and_the_metrics(make_model, make_trainer, clips, model_class, target_shapes):
    model = make_model(model_class, problem_type="multi_label_classification")
    examples = clips(num_frames=300, **target_shapes)
    seen = []

    def compute_metrics(prediction):
        seen.append(prediction)
        return {"clips": len(prediction.label_ids)}

    metrics = make_trainer(model, eval_dataset=examples, compute_metrics=compute_metrics).evaluate()
    batch = {name: torch.stack([example[name] for example in examples]) for name in examples[0]}
    with torch.no_grad():
        expected = model.eval()(**batch).loss.item()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-4)
    assert metrics["eval_clips"] == NUM_CLIPS
    assert np.array_equal(seen[0].label_ids, batch["labels"])


def test_evaluation_of_single_labels_returns_the_loss(make_model, make_trainer, clips):
    model = make_model(HTSATForAudioClassification, problem_type="single_label_classification")
    examples = [{**example, "labels": index % 5} for index, example in enumerate(clips())]
    metrics = make_trainer(model, eval_dataset=examples).evaluate()
    assert 0 < metrics["eval_loss"] < 20


# ── waveforms ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model_class", HEAD_CLASSES)
@pytest.mark.parametrize("short_clips", ["repeat", "stretch"])
def test_the_extractor_as_processing_class_collates_clips_of_unequal_length(
    make_model, make_trainer, make_sound, model_class, short_clips
):
    extractor = HTSATFeatureExtractor(clip_frames=256, short_clips=short_clips)
    model = make_model(model_class, problem_type="multi_label_classification")
    generator = np.random.default_rng(0)
    examples = []
    for index, length in enumerate((20_000, 50_000, 90_000, 128_000, 700, 64_000)):
        features = extractor(make_sound(length, index), sampling_rate=32_000)
        labels = generator.integers(0, 2, 5).astype(np.float32)
        examples.append({name: values[0] for name, values in features.items()} | {"labels": labels})
    assert len({len(example["input_features"]) for example in examples}) > 3
    trainer = make_trainer(model, examples, examples, processing_class=extractor, max_steps=2)
    trainer.train()
    assert np.isfinite(losses_of(trainer)).all()
    predictions = trainer.predict(examples).predictions
    clip_logits = predictions[1] if isinstance(predictions, tuple) else predictions
    model.eval()
    for example, logits in zip(examples, clip_logits, strict=True):
        with torch.no_grad():
            alone = model(torch.from_numpy(example["input_features"])[None])
        expected = alone.clip_logits if "clip_logits" in alone else alone.logits
        assert np.allclose(logits, expected[0], atol=1e-4)


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model_class", HEAD_CLASSES)
def test_a_saved_model_and_its_extractor_come_back(
    make_model, make_trainer, clips, small_extractor, tmp_path, model_class
):
    model = make_model(model_class, problem_type="multi_label_classification")
    trainer = make_trainer(model, clips(labels=(5,)), processing_class=small_extractor, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = model_class.from_pretrained(tmp_path / "saved")
    features = clips()[0]["input_features"][None]
    with torch.no_grad():
        assert torch.equal(loaded(features).logits, model.eval()(features).logits)
    extractor = HTSATFeatureExtractor.from_pretrained(tmp_path / "saved")
    assert extractor.to_dict() == small_extractor.to_dict()


def test_training_resumes_where_it_stopped(make_model, make_trainer, clips, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}

    def new_model():
        return make_model(HTSATForSoundEventDetection, drop_path_rate=0)

    whole = make_trainer(new_model(), clips(labels=(5,)), **options)
    whole.train()
    resumed = make_trainer(new_model(), clips(labels=(5,)), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    assert losses_of(resumed) == pytest.approx(losses_of(whole), rel=1e-5)
    for one, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_best_checkpoint_is_loaded_at_the_end(make_model, make_trainer, clips):
    model = make_model(HTSATForAudioClassification, problem_type="multi_label_classification")
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer = make_trainer(model, clips(labels=(5,)), clips(labels=(5,)), load_best_model_at_end=True, **options)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 2
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)
