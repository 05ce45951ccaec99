"""One run from arguments to results: load the corpus, make the model, train or go on training, choose weights, score.

A run that was killed goes on when the same command is given again, and one that is finished says so. Several folds and
seeds are runs of their own, in folders beside one another, whose scores are averaged.
"""

import copy
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist
import yaml
from accelerate.utils import gather_object
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    PreTrainedModel,
    set_seed,
)
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from ..configuration_htsat import HTSATConfig
from ..ensemble import load_ensemble, load_ensemble_extractor
from ..feature_extraction_htsat import HTSATFeatureExtractor
from ..metrics import clip_metrics_for_trainer, event_metrics_for_trainer
from ..modeling_htsat import HTSATForSoundEventDetection, make_head
from ..processes import only_one
from ..whole_htsat import finish_files
from .arguments import DataArguments, FinalArguments, ModelArguments
from .augmentation import AugmentationArguments
from .averaging import EMACallback, average_best
from .clips import ClipRows, Corpus
from .corpora import corpus_options, load_corpus
from .distillation import OnlineTeacher, SoftTargets, cache_soft_targets
from .examples import ClipCollator, ClipDataset
from .recipes import parse_recipe, write_recipe
from .reporting import (
    CurvesCallback,
    checkpoint_errors,
    format_results_table,
    headline,
    last_whole_checkpoint,
    refuse_unwritable,
    report_progress,
    write_results,
)
from .scoring import score_clips, score_events, score_frames, tune_on
from .trainer import HTSATTrainer, HTSATTrainingArguments

logger = logging.get_logger(__name__)

RECIPE_FILE, RESULTS_FILE, AVERAGED_FOLDER = "recipe.yaml", "results.json", "averaged"
LOCK_FILE = "_lock"  # of a run that is at work; Trainer uploads nothing that begins so
# What does not change the weights that a run ends with, or may have to change for it to go on.
MAY_CHANGE = (
    *("output_dir", "cache_gib", "save_total_limit", "per_device_eval_batch_size"),
    *("report_to", "disable_tqdm", "logging_steps", "logging_strategy", "logging_dir", "run_name"),
)
PARTS = (ModelArguments, DataArguments, AugmentationArguments, FinalArguments, HTSATTrainingArguments)


class RunArguments(NamedTuple):
    """Everything that a run is told."""

    model: ModelArguments
    data: DataArguments
    augmentation: AugmentationArguments
    final: FinalArguments
    training: HTSATTrainingArguments


def parse_run(arguments: Sequence[str] | None = None, description: str | None = None) -> RunArguments:
    """From `--recipe FILE` and flags."""
    return RunArguments(*parse_recipe(PARTS, arguments, description))


def launch(model_class: type[PreTrainedModel], description: str | None) -> None:
    """What the training scripts do: parse, run, print."""
    arguments = parse_run(description=description)
    sys.exit(exit_status(lambda: run_all(model_class, arguments), arguments.training))


def exit_status(work: Callable[[], dict[str, Any]], training: HTSATTrainingArguments) -> int:
    """Do the work and print its scores; what is wrong with the input is one sentence on standard error."""
    try:
        metrics = work()
    except KeyboardInterrupt:
        return complain("interrupted; the same command goes on from the last checkpoint", 130)
    except (ValueError, OSError) as error:
        # What comes from a worker of a DataLoader brings the worker's whole traceback along.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return complain(lines[-1] if "Traceback" in str(error) else " ".join(lines), 1)
    if training.should_save:
        sys.stdout.write(format_results_table(metrics))
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


def complain(sentence: str, status: int) -> int:
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {sentence}\n")
    return status


# ── many runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_all(model_class: type[PreTrainedModel], arguments: RunArguments) -> dict[str, Any]:
    """Every fold with every seed, and the mean of their scores; without folds and seeds, the one run."""
    folds: list[int | None] = list(arguments.data.folds) or [None]
    seeds = arguments.data.seeds or [arguments.training.seed]
    if len(folds) * len(seeds) == 1:
        return run_once(model_class, _for_fold(arguments, folds[0], seeds[0], None))
    whole, scores = Path(arguments.training.output_dir), {}
    for fold, seed in product(folds, seeds):
        name = "-".join([*([f"fold-{fold}"] if fold is not None else []), f"seed-{seed}"])
        scores[name] = run_once(model_class, _for_fold(arguments, fold, seed, whole / name))
    means = _means(list(scores.values()))
    if arguments.training.should_save:
        results = [json.loads((whole / name / RESULTS_FILE).read_text(encoding="utf-8")) for name in scores]
        write_results(
            whole / RESULTS_FILE,
            means,
            data={"corpus": arguments.data.corpus, "options": arguments.data.data_options},
            arguments=arguments,
            seed=None,
            model=arguments.model.model,
            started=time.time() - sum(result["duration_seconds"] for result in results),  # of all, whenever they ran
            runs=scores,
        )
    return means


def _for_fold(arguments: RunArguments, fold: int | None, seed: int, folder: Path | None) -> RunArguments:
    data, training = copy.copy(arguments.data), copy.copy(arguments.training)
    if fold is not None:
        data.data_options = [*data.data_options, f"fold={fold}"]
    data.folds, data.seeds = [], []
    training.seed = seed
    if folder is not None:
        training.output_dir = str(folder)
    return arguments._replace(data=data, training=training)


def _means(scores: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean and standard deviation of every number that all runs have."""
    numbers = [{name: headline(value) for name, value in score.items()} for score in scores]
    means = {}
    for name in numbers[0]:
        values = [score[name] for score in numbers if isinstance(score.get(name), int | float)]
        if len(values) < len(scores):
            continue
        means[name] = float(np.mean(values))
        means[f"{name}_deviation"] = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return means


# ── one run ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_once(model_class: type[PreTrainedModel], arguments: RunArguments) -> dict[str, Any]:
    """Train, or go on training, and score; what was finished before is read."""
    folder, training = Path(arguments.training.output_dir), arguments.training
    with training.main_process_first(local=False, desc="checking the output folder"):
        _refuse_other_run(folder, arguments)
    if (folder / RESULTS_FILE).is_file():
        logger.warning(f"{folder} holds a finished run; its results are taken from {RESULTS_FILE}.")
        return json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))["metrics"]
    if not training.should_save:
        return _train_and_score(model_class, arguments)
    refuse_unwritable(folder)
    with only_one(folder / LOCK_FILE, f"Another run is at work in {folder}; wait for it, or name another output_dir."):
        return _train_and_score(model_class, arguments)


def _refuse_other_run(folder: Path, arguments: RunArguments) -> None:
    """A folder belongs to one run: what was begun with other arguments is not gone on with."""
    path = folder / RECIPE_FILE
    if not path.is_file():
        return
    with tempfile.TemporaryDirectory() as aside:
        asked = Path(aside) / RECIPE_FILE
        write_recipe(asked, arguments)
        now, before = [yaml.safe_load(file.read_text(encoding="utf-8")) or {} for file in (asked, path)]
    changed = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
    changed = [name for name in changed if name not in MAY_CHANGE]
    if changed:
        name = changed[0]
        raise ValueError(
            f"{folder} holds a run with {name}: {before.get(name, 'its default')}, and now it is "
            f"{now.get(name, 'its default')}; give the same arguments to go on with it, or another output_dir."
        )


def _train_and_score(model_class: type[PreTrainedModel], arguments: RunArguments) -> dict[str, Any]:
    folder, training = Path(arguments.training.output_dir), arguments.training
    started = time.time()
    as_given = arguments._replace(training=copy.copy(training))
    run = prepare(model_class, arguments)
    if training.should_save:  # not before: what cannot begin does not claim the folder
        write_recipe(folder / RECIPE_FILE, as_given)
    with training.main_process_first(local=False, desc="looking for a checkpoint"):
        checkpoint = last_whole_checkpoint(folder)
    with checkpoint_errors(folder):
        run.trainer.train(resume_from_checkpoint=checkpoint)
        choose_weights(run, arguments)
        metrics = score(run, arguments)
        run.trainer.save_model(str(folder), _internal_call=True)  # or it would be pushed here, without its scores
    finish(run, arguments, metrics, started, resumed=checkpoint is not None)
    if training.push_to_hub:
        run.trainer.push_to_hub("Model, scores and card", revision=training.hub_revision)
    return metrics


class Run(NamedTuple):
    """What a run works with."""

    trainer: HTSATTrainer
    extractor: HTSATFeatureExtractor
    data_sets: dict[str, ClipDataset]  # by what they are for: train, validation, test
    ema: EMACallback | None


def prepare(model_class: type[PreTrainedModel], arguments: RunArguments) -> Run:
    """Corpus, model, data sets and trainer."""
    training = arguments.training
    corpora = load_splits(arguments.data)
    set_seed(training.seed)
    extractor = AutoFeatureExtractor.from_pretrained(arguments.model.model, trust_remote_code=False)
    model = load_model(model_class, arguments.model, corpora["train"])
    data_sets = make_data_sets(corpora, extractor, model, arguments)
    with_events = any(data_set.with_frames for name, data_set in data_sets.items() if name != "train")
    training.label_names = ["labels", "frame_targets"] if with_events else ["labels"]
    training.remove_unused_columns = False
    if "validation" not in data_sets:
        training.eval_strategy = "no"
    ema = EMACallback(arguments.final.ema_decay, warm_up=True) if arguments.final.ema_decay else None
    teacher, soft_targets = make_teacher(arguments, corpora["train"].rows, extractor, model)
    data_sets["train"].keep_waveforms = teacher is not None and teacher.needs_waveforms
    trainer = HTSATTrainer(
        model,
        training,
        data_collator=ClipCollator(extractor, soft_targets),
        train_dataset=data_sets["train"],
        eval_dataset=data_sets.get("validation"),
        processing_class=extractor,
        compute_metrics=_metrics_of(model),
        callbacks=[CurvesCallback(training.output_dir), *([ema] if ema else [])],
        augmentation=arguments.augmentation,
        teacher=teacher,
    )
    report_progress(trainer)
    return Run(trainer, extractor, data_sets, ema)


def load_splits(data: DataArguments) -> dict[str, Corpus]:
    """The corpus's parts by what they are for."""
    wanted = {
        "train": (data.data, data.train_split),
        "validation": (data.validation_data or data.data, data.validation_split),
        "test": (data.test_data or data.data, data.test_split),
    }
    return {
        name: load_corpus(data.corpus, location, split, **corpus_options(data.data_options, name))
        for name, (location, split) in wanted.items()
        if split
    }


def load_model(model_class: type[PreTrainedModel], model: ModelArguments, corpus: Corpus) -> PreTrainedModel:
    """Weights where there are some, a new head where the labels are others, and random ones for a preset."""
    config = AutoConfig.from_pretrained(model.model, trust_remote_code=False)
    is_same = set(config.id2label.values()) == set(corpus.label_names)
    # The same labels in another order stay in the model's, which its head was trained in.
    id2label = config.id2label if is_same else dict(enumerate(corpus.label_names))
    config = AutoConfig.from_pretrained(
        model.model,
        id2label=id2label,
        label2id={name: index for index, name in id2label.items()},
        problem_type=_problem_type(model_class, model, corpus),
        **({} if model.drop_path_rate is None else {"drop_path_rate": model.drop_path_rate}),
    )
    if is_preset(model.model):
        return model_class(config)
    loaded = model_class.from_pretrained(model.model, config=config, ignore_mismatched_sizes=not is_same)
    if not is_same:  # as many classes by chance would have kept the rows of other ones
        loaded.classifier = make_head(config).to(loaded.dtype)
        loaded.classifier.apply(loaded._init_weights)
    return loaded


def is_preset(model: str) -> bool:
    """Whether a folder describes a model without holding its weights."""
    folder = Path(model)
    finish_files(folder)
    has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
    return (folder / "config.json").is_file() and not has_weights


def _problem_type(model_class: type[PreTrainedModel], model: ModelArguments, corpus: Corpus) -> str:
    if model_class is HTSATForSoundEventDetection:
        return "multi_label_classification"
    if model.problem_type is not None:
        return model.problem_type
    known = [row["human_labels"] for row in corpus.rows.without_audio() if row["human_labels"] is not None]
    is_single = bool(known) and all(len(labels) == 1 for labels in known)
    return "single_label_classification" if is_single else "multi_label_classification"


def make_data_sets(
    corpora: dict[str, Corpus], extractor: HTSATFeatureExtractor, model: PreTrainedModel, arguments: RunArguments
) -> dict[str, ClipDataset]:
    """What the trainer reads; events only for a model that places them."""
    data_sets = {}
    for name, corpus in corpora.items():
        has_events = isinstance(model, HTSATForSoundEventDetection) and any(
            row["events"] is not None for row in corpus.rows.without_audio()
        )
        data_sets[name] = ClipDataset(
            corpus.rows,
            extractor,
            model.config,
            crop_seconds=arguments.data.crop_seconds,
            with_frames=has_events and (arguments.data.learn_events or name != "train"),
            learn_events=arguments.data.learn_events and name == "train",
            cache_gib=arguments.data.cache_gib,
        )
        if corpus.rows.group_sizes is None:
            data_sets[name].refuse_unknown_labels()
    if data_sets["train"].with_frames and arguments.augmentation.max_speed_change:
        raise ValueError(
            "max_speed_change moves sounds away from where strong labels say that they are; set it to 0, or learn from "
            "clip labels alone: learn_events: false."
        )
    return data_sets


def make_teacher(
    arguments: RunArguments, rows: ClipRows, extractor: HTSATFeatureExtractor, model: PreTrainedModel
) -> tuple[OnlineTeacher | None, SoftTargets | None]:
    """A teacher that listens along, or its answers from before; neither without one."""
    names = arguments.model.teacher
    if not names:
        return None, None
    label_names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    teacher, teacher_extractor = _load_teacher(names)
    if arguments.model.teacher_cache is None:
        return OnlineTeacher(teacher, teacher_extractor, label_names, extractor.sampling_rate, extractor), None
    with arguments.training.main_process_first(local=False, desc="asking the teacher"):
        if arguments.training.should_save:
            teacher.to(arguments.training.device)
            workers = arguments.training.dataloader_num_workers
            cache_soft_targets(teacher, teacher_extractor, rows, arguments.model.teacher_cache, num_workers=workers)
    return None, SoftTargets.load(arguments.model.teacher_cache, label_names)


def _load_teacher(names: Sequence[str]) -> tuple[Any, Any]:
    """HTS-AT models, several of which are an ensemble, or one model of another kind from the Hub."""
    if AutoConfig.from_pretrained(names[0]).model_type == HTSATConfig.model_type:
        return load_ensemble(names, "audio-classification"), load_ensemble_extractor(names)
    if len(names) > 1:
        raise ValueError(f"{names[0]} is no HTS-AT, and an ensemble is made of HTS-AT models alone; name one teacher.")
    return AutoModelForAudioClassification.from_pretrained(names[0]), AutoFeatureExtractor.from_pretrained(names[0])


def _metrics_of(model: PreTrainedModel) -> Any:
    if isinstance(model, HTSATForSoundEventDetection):
        return event_metrics_for_trainer()
    problem_type = model.config.problem_type
    return None if problem_type == "regression" else clip_metrics_for_trainer(problem_type)


# ── after the last step ───────────────────────────────────────────────────────────────────────────────────────────────


def choose_weights(run: Run, arguments: RunArguments) -> None:
    """Put the weights in place that the run ends with. The best checkpoint Trainer has loaded itself."""
    final, training, model = arguments.final, arguments.training, run.trainer.model
    if final.final_weights == "best" and not training.load_best_model_at_end:
        raise ValueError("final_weights is best, which needs load_best_model_at_end: true.")
    if final.final_weights == "ema" and run.ema is not None:
        model.load_state_dict(run.ema.average)
    if final.final_weights == "average":
        averaged = Path(training.output_dir) / AVERAGED_FOLDER
        with training.main_process_first(local=False, desc="averaging the best checkpoints"):
            if not averaged.exists():
                average_best(training.output_dir, final.average_best, averaged, metric=training.metric_for_best_model)
        model.load_state_dict(load_file(averaged / SAFE_WEIGHTS_NAME))


def score(run: Run, arguments: RunArguments) -> dict[str, Any]:
    """Scores on the validation and the test clips, each under the name of its split."""
    metrics: dict[str, Any] = {}
    final, model = arguments.final, run.trainer.model
    for split in ("validation", "test"):
        data_set = run.data_sets.get(split)
        if data_set is None:
            continue
        shifts = final.test_shifts if split == "test" else 1
        clips = score_clips(run.trainer, data_set, shifts, final.shift_samples)
        metrics |= {f"{split}_{name}": value for name, value in clips.items()}
        if data_set.with_frames:
            found = score_frames(run.trainer, data_set)
            if split == "validation" and final.tune_decoding:
                tune_on(found, model.config, final.tune_metric)
            events = score_events(found, model.config.event_decoding)
            metrics |= {f"{split}_{name}": value for name, value in events.items()}
    return metrics


def finish(run: Run, arguments: RunArguments, metrics: dict[str, Any], started: float, resumed: bool) -> None:
    """Say in `results.json` what came out, of which data, and what could not be heard."""
    training, trainer = arguments.training, run.trainer
    bad_clips = sorted(set(gather_object(sorted(trainer.bad_clips))))
    if bad_clips:
        logger.warning(f"{len(bad_clips)} clips could not be decoded and were left out: {', '.join(bad_clips[:10])}.")
    if not training.should_save:
        return
    folder = Path(training.output_dir)
    write_results(
        folder / RESULTS_FILE,
        metrics,
        data={
            "corpus": arguments.data.corpus,
            "options": arguments.data.data_options,
            "clips": {split: len(data_set) for split, data_set in run.data_sets.items()},
            "labels": trainer.model.config.num_labels,
            "learnt_events": run.data_sets["train"].with_frames,
            "bad_clips": bad_clips,
        },
        arguments=arguments,
        seed=training.seed,
        model=arguments.model.model,
        started=started,
        resumed=resumed,
        from_scratch=is_preset(arguments.model.model),
    )
    trainer.create_model_card()


__all__ = ["RunArguments", "launch", "load_model", "load_splits", "parse_run", "prepare", "run_all", "run_once"]
