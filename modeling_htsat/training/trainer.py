"""`HTSATTrainer`: transformers' Trainer, and what it lacks for HTS-AT.

It deals clips by `EpochBatches`, augments spectrograms, learns from a teacher, counts the batch norm of all processes
as one, keeps the paper's schedule if asked, goes on past clips that cannot be decoded, and writes this package's card.
With another data set than `ClipDataset` it is, but for the card, Trainer itself.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.utils import logging

from ..hub.card import task_of, write_card
from .augmentation import AugmentationArguments, SpectrogramAugmentation
from .distillation import distillation_loss
from .examples import ClipDataset
from .muon import make_muon
from .reporting import default_report_to
from .sampling import EpochBatches
from .sync_norm import synchronise_mel_norm

logger = logging.get_logger(__name__)

NOT_FOR_THE_MODEL = ("augmentation_seed", "bad_clips", "waveforms", "soft_targets")
MIN_CLIPS_TO_JUDGE = 200  # before that, a bad clip or two say nothing about their share


class BadClipsError(ValueError):
    """Too many clips cannot be decoded."""


@dataclass
class HTSATTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments, and what HTS-AT's recipes need beyond them."""

    balanced_sampling: bool = field(
        default=False, metadata={"help": "Draw every class as often as every other, as in the paper."}
    )
    shuffle_groups: int = field(
        default=4, metadata={"help": "Streams: row groups that are shuffled together, and held by each worker."}
    )
    synchronised_batch_norm: bool = field(
        default=True, metadata={"help": "One batch norm over the batches of all processes, as in the paper."}
    )
    paper_schedule: bool = field(
        default=False,
        metadata={
            "help": "The paper's learning rate: scaled by 0.02, 0.05 and 0.1 in the first three epochs, then halved "
            "every ten epochs down to the first of those."
        },
    )
    muon_learning_rate: float = field(
        default=0.0,
        metadata={
            "help": "Muon for the encoder's matrices, at this rate, and AdamW for the rest: from scratch, far fewer "
            "clips do. 0: AdamW for all."
        },
    )
    report_to: None | str | list[str] = field(
        default_factory=default_report_to,
        metadata={"help": "Where to report the logs to (default: TensorBoard, when it is installed)."},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Whether some parameters get no gradient; here all learn in every step."}
    )
    distillation_weight: float = field(
        default=0.5, metadata={"help": "With a teacher: share of the loss that comes from its soft targets."}
    )
    max_bad_share: float = field(
        default=0.05, metadata={"help": "Stop when more than this share of the clips cannot be decoded."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("distillation_weight", "max_bad_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 1.")
        if self.muon_learning_rate < 0:
            raise ValueError(f"muon_learning_rate is {self.muon_learning_rate}; it must not be negative.")
        if self.muon_learning_rate and (self.fsdp or self.deepspeed):
            raise ValueError(
                "muon_learning_rate: Muon needs every matrix whole, and FSDP and DeepSpeed cut them up; set it to 0."
            )


class ClipLoader(DataLoader):
    """A DataLoader that Trainer can tell the epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class HTSATTrainer(Trainer):
    """Trainer for HTS-AT.

    Args:
        augmentation: what happens to spectrograms while training; None for nothing.
        teacher: `teacher(waveforms, inputs)` gives probabilities `(batch, classes)` to learn from beside the labels.

    `bad_clips` holds the names of the clips that this process could not decode.
    """

    args: HTSATTrainingArguments
    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        *arguments: Any,
        augmentation: AugmentationArguments | None = None,
        teacher: Callable[..., torch.Tensor] | None = None,
        **options: Any,
    ):
        super().__init__(*arguments, **options)
        if augmentation is not None and self.args.n_gpu > 1:
            raise ValueError(
                f"One process sees {self.args.n_gpu} GPUs, and augmentation does not divide a batch among them; start "
                f"a process for each: `torchrun --nproc_per_node {self.args.n_gpu} ...`, or set CUDA_VISIBLE_DEVICES=0."
            )
        self.teacher, self.bad_clips = teacher, set[str]()
        self.augmentation = None if augmentation is None else SpectrogramAugmentation(augmentation, self.model)
        if augmentation is not None and isinstance(self.train_dataset, ClipDataset):
            self.train_dataset.roll_time = augmentation.roll_time
        if self.args.synchronised_batch_norm:
            synchronise_mel_norm(self.model)
        self._num_clips_seen = 0

    # ── batches ────────────────────────────────────────────────────────────────────────────────────────────────────

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process. Not prepared by accelerate, which would deal them out a second time."""
        data_set = self.train_dataset
        if not isinstance(data_set, ClipDataset):
            return super().get_train_dataloader()
        batches = EpochBatches(
            num_clips=len(data_set),
            batch_size=self._train_batch_size,
            rank=self.args.process_index,
            num_processes=self.args.world_size,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            class_indices=data_set.class_indices() if self.args.balanced_sampling else None,
            group_sizes=data_set.rows.group_sizes,
            groups_at_once=self.args.shuffle_groups,
            num_workers=self.args.dataloader_num_workers,
        )
        return ClipLoader(
            data_set,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    # ── one step ───────────────────────────────────────────────────────────────────────────────────────────────────

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        inputs = dict(inputs)
        self._note_bad_clips(inputs)
        seed, waveforms = inputs.pop("augmentation_seed", None), inputs.pop("waveforms", None)
        if model.training and self.teacher is not None:
            soft_targets = self.teacher(waveforms, inputs)
            inputs["soft_targets"] = soft_targets.to(inputs["input_features"].device)
        if model.training and self.augmentation is not None and seed is not None:
            random = np.random.default_rng((seed, 1))
            inputs = self.augmentation.apply(inputs, self.model.config.num_labels, random)
        soft_targets = inputs.pop("soft_targets", None)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if soft_targets is not None:
            clip_logits = outputs["clip_logits"] if "clip_logits" in outputs else outputs["logits"]
            taught = distillation_loss(clip_logits, soft_targets, self.model.config.problem_type)
            loss = torch.lerp(loss, taught, self.args.distillation_weight)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        self._note_bad_clips(inputs)
        inputs = {name: value for name, value in inputs.items() if name not in NOT_FOR_THE_MODEL}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def _note_bad_clips(self, inputs: dict[str, Any]) -> None:
        if "bad_clips" not in inputs:
            return
        self.bad_clips.update(inputs.pop("bad_clips"))
        self._num_clips_seen += len(inputs["input_features"])
        worst = self.args.max_bad_share * max(self._num_clips_seen, MIN_CLIPS_TO_JUDGE)
        if len(self.bad_clips) > worst:
            raise BadClipsError(
                f"{len(self.bad_clips)} of {self._num_clips_seen} clips cannot be decoded, for example "
                f"{min(self.bad_clips)}, and at most a share of {self.args.max_bad_share:g} may fail; check the data, "
                "or raise max_bad_share."
            )

    # ── optimizer ──────────────────────────────────────────────────────────────────────────────────────────────────

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if not self.args.muon_learning_rate or self.optimizer is not None:
            return super().create_optimizer(model)
        model, args = self.model if model is None else model, self.args
        self.optimizer = make_muon(
            model,
            self.get_decay_parameter_names(model),
            muon_rate=args.muon_learning_rate,
            adamw_rate=args.learning_rate,
            weight_decay=args.weight_decay,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
        )
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if not self.args.paper_schedule or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        steps_per_epoch = max(num_training_steps / self.args.num_train_epochs, 1)
        if self.args.max_steps > 0:  # then nothing follows from the number of epochs
            steps_per_epoch = -(-len(self.get_train_dataloader()) // self.args.gradient_accumulation_steps)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer if optimizer is not None else self.optimizer,
            lambda step: paper_rate(int(step / steps_per_epoch)),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # ── the card ───────────────────────────────────────────────────────────────────────────────────────────────────

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write this package's card, also whenever the model is pushed.

        What it scored comes from `results.json` and nowhere else, so `tasks`, `dataset` and `dataset_args`, under which
        the library's draft files the last evaluation, have no place in it. A model of another kind gets that draft.
        """
        model = self.accelerator.unwrap_model(self.model)
        if task_of(model) is None:
            draft = (language, license, tags, model_name, finetuned_from, tasks, dataset_tags, dataset, dataset_args)
            super().create_model_card(*draft)
        elif self.is_world_process_zero():
            write_card(
                Path(self.args.output_dir),
                model,
                name=self.hub_model_id or self.args.hub_model_id or model_name,
                language=language,
                license=license,
                tags=tags,
                base_model=finetuned_from,
                datasets=dataset_tags,
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push what Trainer does, and what it leaves behind: the card, and the code that config.json names."""
        self.create_model_card()
        if self.is_world_process_zero():
            for code in Path(checkpoint_folder).glob("*.py"):
                shutil.copy(code, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)


def paper_rate(epoch: int) -> float:
    """The factor on the learning rate in epochs 0, 1, ...: the paper's rule, with the first rates of the authors' code.

    That code itself halves one epoch later, goes down to 0.02 in epochs 21 to 30, and then up to 0.03 for good.
    """
    warm_up = (0.02, 0.05, 0.1)
    return warm_up[epoch] if epoch < len(warm_up) else max(warm_up[-1] * 0.5 ** (epoch // 10), warm_up[0])


__all__ = ["BadClipsError", "HTSATTrainer", "HTSATTrainingArguments"]
