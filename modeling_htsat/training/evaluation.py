"""Score finished models, alone or as an ensemble, on a split of a corpus."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ..ensemble import load_ensemble, load_ensemble_extractor
from ..hub.card_scores import is_of_a_run
from .corpora import corpus_options, load_corpus
from .examples import ClipCollator, ClipDataset
from .recipes import parse_recipe
from .reporting import refuse_unwritable, write_results
from .runs import RESULTS_FILE, exit_status
from .scoring import score_clips, score_events, score_frames, tune_on
from .trainer import HTSATTrainer, HTSATTrainingArguments

TASKS = ("audio-classification", "sound-event-detection")


@dataclass
class EvaluationArguments:
    """What is scored, and on what."""

    models: list[str] = field(metadata={"help": "Model folders or names on the Hub; several are an ensemble."})
    corpus: str = field(metadata={"help": "Kind of the data: audioset, esc50, speech_commands, desed, folders, ..."})
    data: str = field(metadata={"help": "Where it is: a folder, a file, or a name on the Hub."})
    data_options: list[str] = field(default_factory=list, metadata={"help": "Options of the corpus as name=value."})
    split: str = field(default="test", metadata={"help": "The split to score."})
    task: str | None = field(
        default=None, metadata={"help": f"{' or '.join(TASKS)}; by default what the model was trained for."}
    )
    tune_split: str | None = field(
        default=None,
        metadata={"help": "Events: first find thresholds and filters on this split, not on the scored one."},
    )
    tune_metric: str = field(default="intersection_f1", metadata={"help": "The score that they are found for."})
    test_shifts: int = field(
        default=1, metadata={"help": "Average over so many small circular time shifts; paper: 10."}
    )
    shift_samples: int = field(default=100, metadata={"help": "How far one of these shifts is from the next."})

    def __post_init__(self) -> None:
        if self.task not in (None, *TASKS):
            raise ValueError(f"task is {self.task!r}; it must be {' or '.join(TASKS)}.")
        if self.tune_split == self.split:
            raise ValueError(
                f"tune_split is {self.split!r}, which is scored: thresholds would be found on the answers."
            )


def launch(description: str | None) -> None:
    """What `run_evaluation.py` does."""
    evaluation, training = parse_recipe((EvaluationArguments, HTSATTrainingArguments), description=description)
    sys.exit(exit_status(lambda: evaluate(evaluation, training), training))


def evaluate(evaluation: EvaluationArguments, training: HTSATTrainingArguments) -> dict[str, Any]:
    """Scores by name; the first process also writes them."""
    started, folder = time.time(), Path(training.output_dir)
    if training.should_save:
        refuse_unwritable(folder)
        _refuse_results_of_a_run(folder / RESULTS_FILE)
    task = evaluation.task or _task_of(evaluation.models)
    model, extractor = load_ensemble(evaluation.models, task), load_ensemble_extractor(evaluation.models)
    with_frames = task == "sound-event-detection"
    training.label_names, training.remove_unused_columns = ["labels"], False
    trainer = HTSATTrainer(model, training, data_collator=ClipCollator(extractor), processing_class=extractor)

    def clips_of(split: str) -> ClipDataset:
        options = corpus_options(evaluation.data_options, split)
        corpus = load_corpus(evaluation.corpus, evaluation.data, split, **options)
        return ClipDataset(corpus.rows, extractor, model.config)

    data_set = clips_of(evaluation.split)
    metrics = score_clips(trainer, data_set, evaluation.test_shifts, evaluation.shift_samples)
    if with_frames and any(row["events"] is not None for row in data_set.rows.without_audio()):
        if evaluation.tune_split is not None:
            tune_on(score_frames(trainer, clips_of(evaluation.tune_split)), model.config, evaluation.tune_metric)
        metrics |= score_events(score_frames(trainer, data_set), model.config.event_decoding)
    if training.should_save:
        data = {"corpus": evaluation.corpus, "split": evaluation.split, "clips": len(data_set)}
        data |= {"labels": model.config.num_labels}
        data |= {"options": evaluation.data_options, "bad_clips": sorted(trainer.bad_clips)}
        write_results(
            folder / RESULTS_FILE,
            metrics,
            data=data,
            arguments=[evaluation, training],
            seed=None,
            model=list(evaluation.models),
            started=started,
            decoding=model.config.event_decoding,
        )
    return metrics


def _refuse_results_of_a_run(path: Path) -> None:
    """What a run learnt from, and for how long, stands in its results alone; and they say that it is finished."""
    if path.is_file() and is_of_a_run(json.loads(path.read_text(encoding="utf-8"))):
        raise ValueError(f"{path} holds the results of a training run; name another output_dir for the evaluation.")


def _task_of(models: Sequence[str]) -> str:
    architectures = AutoConfig.from_pretrained(models[0]).architectures or []
    return TASKS[any("SoundEventDetection" in name for name in architectures)]


__all__ = ["EvaluationArguments", "evaluate", "launch"]
