"""HTSATTrainer deals, augments, distils and counts as it says, and goes on where it was killed, to the last bit."""

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState, GradientState, PartialState
from made_up_clips import ListRows, make_row, tone
from transformers import TrainerCallback, default_data_collator

from modeling_htsat import HTSATConfig, HTSATFeatureExtractor, HTSATForAudioClassification, HTSATForSoundEventDetection
from modeling_htsat.metrics import clip_metrics_for_trainer, event_metrics_for_trainer
from modeling_htsat.training.augmentation import AugmentationArguments
from modeling_htsat.training.averaging import EMACallback
from modeling_htsat.training.examples import ClipCollator, ClipDataset
from modeling_htsat.training.shards import ShardRows
from modeling_htsat.training.trainer import (
    BadClipsError,
    HTSATTrainer,
    HTSATTrainingArguments,
    paper_rate,
)

START_METHOD = "spawn" if torch.cuda.is_available() else "fork"  # no fork can use a GPU
LABELS = ("low", "high", "noise")
HERTZ = {"low": 300, "high": 4000, "noise": 0}
SMALL = {"embed_dim": 8, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 4, 8), "spec_size": 128, "window_size": 4}
NUM_CLIPS = 13
EVERYTHING = AugmentationArguments(mixup_alpha=0.5, time_masks=2, frequency_masks=2, max_gain_db=6)


def make_rows(num_clips: int = NUM_CLIPS) -> list[dict[str, Any]]:
    """Tones and noises of 0.3 to 3.3 s: some are repeated, some cut."""
    rows = []
    for index in range(num_clips):
        label, seconds = LABELS[index % 3], 0.3 + (index * 7 % 13) / 4
        waveform = tone(seconds, HERTZ[label], seed=index) * (1 if label != "noise" else 20)
        rows.append(make_row(f"clip{index}", waveform, [label], [(0.1 * seconds, 0.6 * seconds, label)]))
    return rows


def make_config(**values) -> HTSATConfig:
    id2label = dict(enumerate(LABELS))
    label2id = {name: index for index, name in id2label.items()}
    values = {"problem_type": "multi_label_classification", **SMALL, **values}
    return HTSATConfig(id2label=id2label, label2id=label2id, **values)


def make_trainer(
    folder: Path,
    rows: Any = None,
    model_class: type = HTSATForAudioClassification,
    config: dict | None = None,
    callbacks: list | None = None,
    clips: dict | None = None,
    **options,
) -> HTSATTrainer:
    """A trainer of a fresh small model; `config` and `clips` are values of the model and of its data set."""
    trainer_options = {
        name: options.pop(name) for name in ("augmentation", "teacher", "eval_dataset") if name in options
    }
    torch.manual_seed(1)
    model = model_class(make_config(**(config or {})))
    extractor = HTSATFeatureExtractor(clip_frames=256)
    arguments = HTSATTrainingArguments(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "report_to": [],
            "per_device_train_batch_size": 3,
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "label_names": ["labels"],
            **options,
        }
    )
    rows = ListRows(make_rows()) if rows is None else rows
    data_set = (
        rows
        if isinstance(rows, torch.utils.data.Dataset)
        else ClipDataset(rows, extractor, model.config, **(clips or {}))
    )
    return HTSATTrainer(
        model,
        arguments,
        data_collator=ClipCollator(extractor),
        train_dataset=data_set,
        processing_class=extractor,
        callbacks=callbacks,
        **trainer_options,
    )


def losses_of(trainer: HTSATTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights_of(trainer: HTSATTrainer) -> dict[str, torch.Tensor]:
    return {name: values.clone() for name, values in trainer.model.state_dict().items()}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


# ── learning ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "single_label_classification"])
def test_it_learns_to_tell_sounds_apart(tmp_path, problem_type):
    trainer = make_trainer(tmp_path, config={"problem_type": problem_type}, num_train_epochs=8, learning_rate=3e-3)
    trainer.train()
    losses = losses_of(trainer)
    assert len(losses) == 8 * 5  # 13 clips in batches of at most 3
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_each_epoch_reads_every_clip_once(tmp_path):
    class Counting(ListRows):
        read: list[int] = []

        def __getitem__(self, index):
            self.read.append(index)
            return super().__getitem__(index)

    trainer = make_trainer(tmp_path, Counting(make_rows()))
    trainer.train()
    assert sorted(Counting.read) == sorted([*range(NUM_CLIPS)] * 2)
    assert Counting.read[:NUM_CLIPS] != Counting.read[NUM_CLIPS:]


def test_balanced_sampling_is_asked_for_by_an_argument(tmp_path):
    rows = [{**row, "human_labels": ["low"]} for row in make_rows()]
    rows[4]["human_labels"] = ["high"]
    trainer = make_trainer(tmp_path, ListRows(rows), balanced_sampling=True)
    drawn = [index for batch in trainer.get_train_dataloader().batch_sampler for index, _ in batch]
    assert drawn.count(4) in (6, 7)
    assert len(drawn) == NUM_CLIPS


def test_the_order_follows_from_the_data_seed_where_there_is_one(tmp_path):
    def order(**seeds) -> list:
        return list(make_trainer(tmp_path, **seeds).get_train_dataloader().batch_sampler)

    assert order(seed=3) == order(seed=4, data_seed=3) != order(seed=4)


@pytest.mark.parametrize("roll_time", [True, False])
def test_clips_begin_anywhere_where_augmentation_says_so(tmp_path, roll_time):
    trainer = make_trainer(tmp_path, augmentation=AugmentationArguments(roll_time=roll_time))
    first = next(iter(trainer.get_train_dataloader()))
    trainer.train_dataset.roll_time = False
    assert (
        torch.equal(first["input_features"], next(iter(trainer.get_train_dataloader()))["input_features"]) != roll_time
    )


def test_with_another_data_set_it_is_trainer_itself(tmp_path, make_features):
    class Features(torch.utils.data.Dataset):
        def __len__(self):
            return 7

        def __getitem__(self, index):
            return {"input_features": make_features(1, 256, seed=index)[0], "labels": torch.ones(3) * (index % 2)}

    trainer = make_trainer(tmp_path, Features(), augmentation=EVERYTHING)
    trainer.data_collator = default_data_collator
    trainer.train()
    assert len(losses_of(trainer)) == 2 * 3
    assert trainer.evaluate(Features())["eval_loss"] > 0


def test_weak_and_strong_labels_are_learnt_and_evaluated_together(tmp_path):
    rows = ListRows(make_rows())
    trainer = make_trainer(
        tmp_path,
        rows,
        HTSATForSoundEventDetection,
        clips={"with_frames": True},
        augmentation=EVERYTHING,
        label_names=["labels", "frame_targets"],
    )
    trainer.compute_metrics = event_metrics_for_trainer()
    trainer.train()
    assert np.isfinite(losses_of(trainer)).all()
    result = trainer.evaluate(trainer.train_dataset)
    assert np.isfinite(result["eval_loss"])
    assert any("frame" in name or "segment" in name for name in result), sorted(result)


def test_weak_labels_alone_are_evaluated_by_a_detector_too(tmp_path):
    trainer = make_trainer(tmp_path, model_class=HTSATForSoundEventDetection)
    trainer.compute_metrics = event_metrics_for_trainer()
    result = trainer.evaluate(trainer.train_dataset)
    assert np.isfinite(result["eval_loss"])
    assert len(result) > 5


def test_accumulating_two_batches_of_four_is_one_of_eight(tmp_path):
    rows = ListRows(make_rows(16))
    options = {"config": {"drop_path_rate": 0.0}, "num_train_epochs": 1, "optim": "sgd", "learning_rate": 0.1}
    at_once = make_trainer(tmp_path / "8", rows, per_device_train_batch_size=8, **options)
    in_two = make_trainer(tmp_path / "4", rows, per_device_train_batch_size=4, gradient_accumulation_steps=2, **options)
    # The batch norm is the one thing that sees each batch for itself.
    for trainer in (at_once, in_two):
        trainer.model.htsat.mel_norm.momentum = 0.0
        trainer.model.htsat.mel_norm.forward = frozen_norm(trainer.model.htsat.mel_norm)
        trainer.train()
    assert losses_of(at_once) == pytest.approx(losses_of(in_two), rel=1e-4)
    assert at_once.state.global_step == in_two.state.global_step == 2
    assert largest_difference(weights_of(at_once), weights_of(in_two)) < 1e-5


def frozen_norm(norm: torch.nn.BatchNorm1d):
    def forward(features):
        return torch.nn.functional.batch_norm(
            features, torch.full((64,), -40.0), torch.full((64,), 400.0), norm.weight, norm.bias
        )

    return forward


# ── killed, and started again ─────────────────────────────────────────────────────────────────────────────────────────


class KilledError(Exception):
    """Stands for a SIGKILL: nothing is tidied up."""


class KillAt(TrainerCallback):
    """Dies in a step, before or after its gradients are all there."""

    def __init__(self, step: int, within_accumulation: bool):
        self.step, self.within_accumulation = step, within_accumulation

    def on_substep_end(self, args, state, control, **kwargs):
        if self.within_accumulation and state.global_step == self.step:
            raise KilledError

    def on_step_end(self, args, state, control, **kwargs):
        if not self.within_accumulation and state.global_step == self.step:
            raise KilledError


def make_shards(folder: Path) -> ShardRows:
    folder.mkdir(parents=True, exist_ok=True)
    rows, files = make_rows(), []
    for first, last in ((0, 3), (3, 11), (11, 13)):
        files.append(str(folder / f"{first}.parquet"))
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[first:last]), files[-1], row_group_size=3)
    return ShardRows(files)


class Case:
    """A run with everything that chance has a say in."""

    def __init__(self, folder: Path, streamed: bool, num_workers: int):
        self.folder, self.streamed, self.num_workers = folder, streamed, num_workers
        self.runs = 0

    def make(self, name: str, *callbacks: TrainerCallback) -> tuple[HTSATTrainer, EMACallback]:
        self.runs += 1
        torch.manual_seed(1000 * self.runs)  # a new process begins anywhere
        np.random.seed(self.runs)
        ema = EMACallback(0.9)
        trainer = make_trainer(
            self.folder / name,
            make_shards(self.folder / "shards") if self.streamed else ListRows(make_rows()),
            HTSATForSoundEventDetection,
            config={"drop_path_rate": 0.3},
            clips={"with_frames": True, "crop_seconds": 2.0},
            callbacks=[ema, *callbacks],
            augmentation=EVERYTHING,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            dataloader_num_workers=self.num_workers,
            save_strategy="steps",
            save_steps=2,
            balanced_sampling=True,
            muon_learning_rate=0.0 if self.streamed else 2e-3,
            lr_scheduler_type="cosine",
            warmup_steps=2,
        )
        return trainer, ema


@pytest.mark.parametrize(
    ("streamed", "num_workers"),
    [
        (False, 0),
        (True, 2),
        pytest.param(False, 2, marks=pytest.mark.slow),
        pytest.param(True, 0, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_and_started_again_ends_with_the_same_weights_to_the_bit(tmp_path, streamed, num_workers):
    case = Case(tmp_path, streamed, num_workers)
    whole, whole_ema = case.make("whole")
    whole.train()
    steps_per_epoch = whole.state.max_steps // 2
    assert steps_per_epoch == 4  # and a checkpoint every second
    kills = [
        (2, True),  # within an epoch, and half a step after its checkpoint
        (5, True),  # its checkpoint is one and a half steps old, and lies between two epochs
        (1, False),  # there is no checkpoint yet
        (7, False),
    ]
    for step, within_accumulation in kills[:2] if num_workers else kills:
        name = f"killed-{step}-{within_accumulation}"
        killed, _ = case.make(name, KillAt(step, within_accumulation))
        with pytest.raises(KilledError):
            killed.train()
        again, ema = case.make(name)
        has_checkpoint = any((tmp_path / name).glob("checkpoint-*"))
        assert has_checkpoint == (step > 1)
        again.train(resume_from_checkpoint=has_checkpoint)
        assert again.state.global_step == whole.state.global_step
        assert largest_difference(weights_of(again), weights_of(whole)) == 0.0
        assert largest_difference(ema.average, whole_ema.average) == 0.0
        assert losses_of(again) == losses_of(whole)
        shutil.rmtree(tmp_path / name)


def test_a_process_with_several_gpus_is_told_to_become_several(tmp_path, monkeypatch):
    monkeypatch.setattr(HTSATTrainingArguments, "n_gpu", 4)
    with pytest.raises(ValueError, match="torchrun --nproc_per_node 4"):
        make_trainer(tmp_path, augmentation=EVERYTHING)


def test_two_runs_with_other_seeds_end_with_other_weights(tmp_path):
    one, other = (make_trainer(tmp_path / str(seed), seed=seed, num_train_epochs=1) for seed in (1, 2))
    for trainer in (one, other):
        trainer.train()
    assert largest_difference(weights_of(one), weights_of(other)) > 1e-4


# ── clips that cannot be decoded ──────────────────────────────────────────────────────────────────────────────────────


def with_bad_clips(num_clips: int, num_bad: int) -> ListRows:
    sound = make_row("", tone(0.1, 300), ["low"])
    rows = [{**sound, "video_id": f"good{index}"} for index in range(num_clips - num_bad)]
    return ListRows(rows + [make_row(f"bad{index}", None, ["low"]) for index in range(num_bad)])


def test_bad_clips_are_passed_over_and_counted_once_by_name(tmp_path):
    trainer = make_trainer(tmp_path, with_bad_clips(12, 2), num_train_epochs=2)
    trainer.train()
    assert trainer.bad_clips == {"bad0", "bad1"}
    assert np.isfinite(losses_of(trainer)).all()


def test_above_the_stated_share_the_run_stops_and_says_why(tmp_path):
    trainer = make_trainer(tmp_path, with_bad_clips(60, 30), per_device_train_batch_size=20, max_bad_share=0.05)
    with pytest.raises(BadClipsError, match=r"bad\d+, and at most a share of 0\.05 may fail"):
        trainer.train()
    generous = make_trainer(tmp_path, with_bad_clips(60, 30), per_device_train_batch_size=20, max_bad_share=0.5)
    generous.train()
    assert len(generous.bad_clips) == 30


def test_bad_clips_of_an_evaluation_are_counted_too(tmp_path):
    trainer = make_trainer(tmp_path, with_bad_clips(8, 3))
    assert np.isfinite(trainer.evaluate(trainer.train_dataset)["eval_loss"])
    assert trainer.bad_clips == {"bad0", "bad1", "bad2"}


@pytest.mark.parametrize("name", ["max_bad_share", "distillation_weight"])
def test_shares_beyond_one_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} is 1.5; it must be from 0 to 1"):
        make_trainer(tmp_path, **{name: 1.5})


# ── schedule ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_papers_rate_warms_up_and_is_halved_every_ten_epochs():
    rates = [paper_rate(epoch) for epoch in range(45)]
    assert rates[:4] == [0.02, 0.05, 0.1, 0.1]
    assert set(rates[3:10]) == {0.1}
    assert set(rates[10:20]) == {0.05}
    assert set(rates[20:30]) == {0.025}
    assert set(rates[30:]) == {0.02}


def test_the_papers_rate_is_that_of_each_epoch_in_training(tmp_path):
    trainer = make_trainer(
        tmp_path, paper_schedule=True, learning_rate=1e-3, num_train_epochs=4, per_device_train_batch_size=5
    )
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx(np.repeat([2e-5, 5e-5, 1e-4, 1e-4], 3))


def test_the_papers_rate_follows_the_epochs_of_the_data_where_steps_are_limited(tmp_path):
    options = {"learning_rate": 1e-3, "num_train_epochs": 100, "per_device_train_batch_size": 5}
    trainer = make_trainer(tmp_path, paper_schedule=True, max_steps=5, **options)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([2e-5, 2e-5, 2e-5, 5e-5, 5e-5])


# ── distillation ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "single_label_classification"])
@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_teachers_share_of_the_loss_is_the_distillation_weight(tmp_path, problem_type, weight):
    taught = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    trainer = make_trainer(
        tmp_path,
        config={"problem_type": problem_type, "drop_path_rate": 0.0},
        teacher=lambda waveforms, inputs: taught,
        distillation_weight=weight,
    )
    trainer.model.train()
    batch = trainer.data_collator([trainer.train_dataset[index, index] for index in range(3)])
    loss, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    own = trainer.model(**{name: batch[name] for name in ("input_features", "attention_mask", "labels")}).loss
    if problem_type == "single_label_classification":
        teachers = (taught * (taught.log() - outputs.logits.log_softmax(1))).sum(1).mean()
    else:
        teachers = torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits, taught)
    assert float(loss.detach()) == pytest.approx(float(((1 - weight) * own + weight * teachers).detach()), rel=1e-5)


def test_learning_from_a_teacher_alone_comes_near_to_it(tmp_path):
    def teach(waveforms, inputs):
        is_high = inputs["input_features"][..., 40:].mean((1, 2)) > -55
        return torch.stack(
            [is_high * 0.8 + 0.1, 0.9 - is_high * 0.8, torch.full_like(is_high, 0.3, dtype=torch.float)], 1
        )

    trainer = make_trainer(tmp_path, teacher=teach, distillation_weight=1.0, num_train_epochs=6, learning_rate=3e-3)
    trainer.train()
    losses = losses_of(trainer)
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:5])


def test_a_teacher_is_not_asked_in_evaluation(tmp_path):
    trainer = make_trainer(tmp_path, teacher=lambda waveforms, inputs: pytest.fail("asked"))
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] > 0


def test_answers_from_before_are_learnt_from_like_those_of_a_teacher(tmp_path):
    taught = np.array([0.2, 0.5, 0.3], np.float32)
    online = make_trainer(tmp_path, teacher=lambda waveforms, inputs: torch.from_numpy(taught).expand(3, -1))
    cached = make_trainer(tmp_path)
    cached.data_collator.soft_targets = {f"clip{index}": taught for index in range(NUM_CLIPS)}
    losses = []
    for trainer in (online, cached):
        trainer.model.train()
        batch = trainer.data_collator([trainer.train_dataset[index, index] for index in range(3)])
        torch.manual_seed(0)
        losses.append(float(trainer.compute_loss(trainer.model, dict(batch)).detach()))
    assert losses[0] == losses[1]


# ── two processes ─────────────────────────────────────────────────────────────────────────────────────────────────────


def train_for_comparison(folder: Path, batch_size: int) -> dict[str, Any]:
    """Losses, weights and scores of a run without chance in the model, on clips of which a batch has eight."""
    data_set_rows = ListRows(make_rows(16))
    trainer = make_trainer(
        folder,
        data_set_rows,
        config={"drop_path_rate": 0.0},
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        num_train_epochs=3,
        save_strategy="no",
        ddp_find_unused_parameters=False,
        ddp_backend="gloo" if batch_size < 8 else None,
    )
    trainer.compute_metrics = clip_metrics_for_trainer("multi_label_classification")
    trainer.train()
    evaluated = ClipDataset(ListRows(make_rows()), trainer.processing_class, trainer.model.config)  # 13: uneven
    scores = trainer.evaluate(evaluated)
    return {
        "losses": losses_of(trainer),
        "weights": weights_of(trainer),
        "scores": {name: value for name, value in scores.items() if "per_second" not in name and "time" not in name},
    }


def be_a_process(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"}
    for state in (PartialState, GradientState):
        state._shared_state.clear()
    AcceleratorState._shared_state.clear()
    found = train_for_comparison(Path(folder) / "two", 4)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_end_with_the_loss_the_weights_and_the_scores_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(be_a_process, args=(str(tmp_path), port), nprocs=2, start_method=START_METHOD)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    one = train_for_comparison(tmp_path / "one", 8)
    assert largest_difference(first["weights"], second["weights"]) == 0.0
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert largest_difference(first["weights"], one["weights"]) < 1e-4
    assert first["scores"] == second["scores"]
    # Trainer fills the last batch of the second process up with clips that it has heard before: not so in the scores.
    assert first["scores"].pop("eval_loss") == pytest.approx(one["scores"].pop("eval_loss"), rel=0.02)
    assert first["scores"] == pytest.approx(one["scores"], rel=1e-4)
