"""What `results.json` says of a model, in a card's words: scores under their exact names, data, hours, hardware."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult

from ..training.reporting import headline

CLIP_METRICS = {
    "mean_average_precision": "mAP, macro over classes",
    "accuracy": "accuracy",
    "mean_auc": "AUC, macro over classes",
    "d_prime": "d-prime, of the macro AUC",
}
# What a recipe says and every machine has otherwise.
OF_THE_MACHINE = {"output_dir", "data", "cache_gib", "use_cpu", "logging_steps", "dataloader_num_workers"}
HUB_TASK = "audio-classification"  # the nearest task that the Hub knows, for events too; the metrics' names are exact


class DatasetName(NamedTuple):
    """A data set as people call it, and by its name on the Hub or a word like one."""

    name: str
    id: str


class Score(NamedTuple):
    """One figure under its exact name."""

    metric: str  # the key in results.json
    name: str
    split: str
    value: float | None  # None where it is undefined
    deviation: float | None = None  # over several runs


class Evaluation(NamedTuple):
    """The scores of a model, and what has to be known to judge them."""

    scores: list[Score]
    dataset: DatasetName
    split: str  # that of the headline
    num_clips: int | None
    notes: list[str]

    @property
    def columns(self) -> list[str]:
        """The splits, the one to report on first."""
        return sorted({score.split for score in self.scores}, key=lambda split: (split != self.split, split))

    @property
    def rows(self) -> list[tuple[str, list[str]]]:
        """A metric and its figure on each of the splits."""
        figures = {(score.name, score.split): _figure(score) for score in self.scores}
        names = dict.fromkeys(score.name for score in self.scores)
        return [(name, [figures.get((name, split), "") for split in self.columns]) for name in names]

    def for_model_index(self) -> list[EvalResult]:
        """The figures of the reported split that are defined, as the Hub indexes them."""
        return [
            EvalResult(
                task_type=HUB_TASK,
                dataset_type=self.dataset.id,
                dataset_name=self.dataset.name,
                dataset_split=self.split,
                metric_type=score.metric,
                metric_name=score.name,
                metric_value=score.value,
            )
            for score in self.scores
            if score.split == self.split and score.value is not None
        ]


def read_evaluation(results: Mapping[str, Any], dataset: DatasetName | None = None) -> Evaluation:
    """What is reported: the test split, or whatever was scored where there is none.

    Args:
        dataset: What the scored data are called, where more is known than the place where they lay.
    """
    scores = list(_read_scores(results))
    splits = [score.split for score in scores]
    split = "test" if "test" in splits or not splits else splits[0]
    clips = results["data"].get("clips")
    return Evaluation(
        scores,
        dataset or _dataset_name(results),
        split,
        clips.get(split) if isinstance(clips, Mapping) else clips,
        list(_notes(results, split)),
    )


def is_of_a_run(results: Mapping[str, Any]) -> bool:
    """Whether a training run wrote these results, or else an evaluation of a finished model."""
    return "split" not in results.get("data", {})


def describe_training(results: Mapping[str, Any]) -> str:
    """How long a run took, on what, and with which versions."""
    clips = results["data"].get("clips")
    learnt = f"It learnt from {clips['train']} clips. " if isinstance(clips, Mapping) and "train" in clips else ""
    if "runs" in results:
        hours = f"The scores are the mean of {len(results['runs'])} runs, whose hours stand in their own results."
    else:
        hours = f"From its start to its last score the run took {_spoken_time(results['duration_seconds'])}."
        if results.get("resumed"):
            hours += " It had been interrupted before: only the time since its last start is counted."
    return f"{learnt}{hours} {_hardware_and_versions(results)}"


def _hardware_and_versions(results: Mapping[str, Any]) -> str:
    hardware, versions = results["hardware"], results["versions"]
    machine = f"{hardware['cpu']}, {_counted(hardware['cores'], 'core')}, {_counted(hardware['threads'], 'thread')}"
    if hardware["gpus"]:
        machine = f"{len(hardware['gpus'])} x {hardware['gpus'][0]}, {machine}"
    processes = f"{hardware['processes']} processes on " if hardware["processes"] > 1 else ""
    software = f"PyTorch {versions['torch']}, transformers {versions['transformers']}"
    commit = f", commit {results['commit'][:10]}" if results.get("commit") else ""
    commit += " with uncommitted changes" if commit and results.get("has_uncommitted_changes") else ""
    package = f"modeling-htsat {versions['modeling_htsat']}{commit}"
    seed = "" if results.get("seed") is None else f", seed {results['seed']}"
    return f"Hardware: {processes}{machine}. Software: {software}, {package}{seed}. Date: {results['date'][:10]}."


def _spoken_time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 360 else f"{seconds / 60:.1f} minutes"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def differences(recipe: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    """What a run was told otherwise than its recipe says, where that may change what comes out."""
    told = results.get("arguments", {})
    return [
        f"{name}: {told[name]}"
        for name, value in recipe.items()
        if name in told and name not in OF_THE_MACHINE and not _is_same(value, told[name])
    ]


def _is_same(recipe: Any, told: Any) -> bool:
    """YAML reads 1e-3 as text; an empty list is none; of paths only the last names are kept."""
    if isinstance(recipe, list) or isinstance(told, list):
        return [str(item) for item in recipe or []] == [str(item) for item in told or []]
    try:
        return float(recipe) == float(told)
    except (TypeError, ValueError):
        return Path(str(recipe)).name == Path("" if told is None else str(told)).name or (recipe, told) == (
            "none",
            None,
        )


# ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_scores(results: Mapping[str, Any]) -> Iterator[Score]:
    """Every score that has a name to report it by; counts of classes have none."""
    metrics = results["metrics"]
    for key, value in metrics.items():
        split, metric = key.split("_", 1) if is_of_a_run(results) else (results["data"]["split"], key)
        name = CLIP_METRICS.get(metric) or _event_metric(metric, _details(results, key))
        if name:
            figure, deviation = headline(value), metrics.get(f"{key}_deviation")
            yield Score(metric, name + _ensemble(results), split, figure, deviation)


def _details(results: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A score with its settings; of several runs that were averaged, the score of the first."""
    value = results["metrics"][key]
    if "runs" in results:
        value = next(iter(results["runs"].values())).get(key)
    return value if isinstance(value, Mapping) else {}


def _event_metric(metric: str, score: Mapping[str, Any]) -> str | None:
    """The exact name of a score of events, by its settings."""
    if "settings" not in score:
        return None
    used = score["settings"]
    if metric == "intersection_f1":
        detection, truth = used["detection_tolerance"], used["truth_tolerance"]
        tolerances = f"detection tolerance {detection:g}, truth tolerance {truth:g}"
        return f"intersection F1, {f'detection and truth tolerance {truth:g}' if detection == truth else tolerances}"
    if metric == "collar_f1":
        onset, offset = 1000 * used["onset_collar_seconds"], 1000 * used["offset_collar_seconds"]
        collars = f"{onset:g} ms" if onset == offset else f"onset {onset:g} ms, offset {offset:g} ms"
        return f"collar F1 {collars} / {100 * used['offset_collar_ratio']:g} %"
    if metric == "segment_f1":
        return f"segment F1, segments of {used['segment_seconds']:g} s"
    return f"PSDS, scenario {used['scenario']}" if metric.startswith("psds_") else None


def _ensemble(results: Mapping[str, Any]) -> str:
    models = results.get("model")
    num_models = len(models) if isinstance(models, list) else 1
    return f", mean of the probabilities of {num_models} models" if num_models > 1 else ""


def _figure(score: Score) -> str:
    if score.value is None or not math.isfinite(score.value):
        return "undefined"
    return f"{score.value:.3f}" + ("" if score.deviation is None else f" ± {score.deviation:.3f}")


# ── what they were measured on ────────────────────────────────────────────────────────────────────────────────────────


def _dataset_name(results: Mapping[str, Any]) -> DatasetName:
    """The last name of the place where the data lay: the kind of corpus says only how they were read."""
    arguments = results.get("arguments", {})
    place = arguments.get("test_data") or arguments.get("data") or results["data"]["corpus"]
    name = re.split(r"[\\/]", str(place).rstrip("\\/"))[-1] or "data"
    return DatasetName(name, re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "data")


def _notes(results: Mapping[str, Any], split: str) -> Iterator[str]:
    """What each score means, and what was done to reach it."""
    for key in results["metrics"]:
        score = _details(results, key)
        if "criterion" in score and (not is_of_a_run(results) or key.startswith(f"{split}_")):
            # Of several runs, one says what the criterion is, but not how all did by it.
            yield score["criterion"] + ("" if "runs" in results else _of_all_classes(score))
    arguments, data = results.get("arguments", {}), results["data"]
    if any(key.startswith("validation_") for key in results["metrics"]) and split != "validation":
        yield "The validation clips were watched while it learnt, and the others were not."
    if (arguments.get("test_shifts") or 1) > 1:
        yield f"Clip scores are averaged over {arguments['test_shifts']} circular shifts of each clip."
    if any(key.endswith("intersection_f1") for key in results["metrics"]) and _tuned_on(results):
        yield f"Thresholds and filters for events were found on the {_tuned_on(results)} split."
    if data.get("bad_clips"):
        yield f"{len(data['bad_clips'])} clips could not be decoded."
    if not is_of_a_run(results):
        yield f"Scored by `run_evaluation.py`. {_hardware_and_versions(results)}"


def _of_all_classes(score: Mapping[str, Any]) -> str:
    if not score.get("left_out_of_macro"):
        return ""
    return f" Over all classes, those left out among them: {score['macro_all_classes']:.3f}."


def _tuned_on(results: Mapping[str, Any]) -> str | None:
    arguments = results.get("arguments", {})
    if not is_of_a_run(results):
        return arguments.get("tune_split")
    return arguments.get("validation_split") if arguments.get("tune_decoding") else None


__all__ = ["DatasetName", "Evaluation", "describe_training", "differences", "is_of_a_run", "read_evaluation"]
