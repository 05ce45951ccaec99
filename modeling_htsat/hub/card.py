"""The README.md of a model: what it is, what it scored and on what, how it is used, and where its limits are.

A card is rendered from `template.md` and from what lies in a folder: configuration, `results.json`, `recipe.yaml`, and
`facts.yaml` for what no program can know. No number of it is typed, and what was not measured is not there.
"""

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import torch
import yaml
from huggingface_hub import ModelCardData
from transformers import AutoConfig

from ..configuration_htsat import HTSATConfig
from ..hub_htsat import class_names
from ..modeling_htsat import HTSATForAudioClassification, HTSATForSoundEventDetection
from ..tables import write_whole
from ..training.reporting import for_json
from .card_scores import DatasetName, Evaluation, describe_training, differences, is_of_a_run, read_evaluation
from .facts import FACTS_FILE, Facts, read_facts

CARD_FILE, RESULTS_FILE, RECIPE_FILE = "README.md", "results.json", "recipe.yaml"
MODEL_CLASSES: dict[str, Any] = {
    "audio-classification": HTSATForAudioClassification,
    "sound-event-detection": HTSATForSoundEventDetection,
}
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~#$&])")


class Subject(NamedTuple):
    """What a card is about."""

    name: str
    config: HTSATConfig
    task: str
    num_parameters: int

    @property
    def is_detector(self) -> bool:
        return self.task == "sound-event-detection"

    @property
    def labels(self) -> list[str]:
        return [self.config.id2label[index] for index in range(self.config.num_labels)]


def task_of(model: Any) -> str | None:
    """What a card says that the model is for; None for models that no card describes."""
    names = class_names(model)
    return next((task for task, model_class in MODEL_CLASSES.items() if model_class.__name__ in names), None)


def write_card(
    folder: Path, model: Any, results: Mapping[str, Any] | None = None, *, name: str | None = None, **metadata: Any
) -> None:
    """Write the README.md of a model into its folder.

    Args:
        results: What `write_results` wrote; by default `results.json` of the folder. Without either the card says "Not
            evaluated yet".
        name: What the snippets load: the folder's name, if it is not one on the Hub.
        metadata: Further entries of `huggingface_hub.ModelCardData`, such as `license`.
    """
    folder, facts = Path(folder), read_facts(Path(folder) / FACTS_FILE)
    task = task_of(model)
    if task is None:
        raise ValueError(_unknown(type(model).__name__))
    for named in filter(None, (facts.recipe, facts.results)):
        if not (folder / named).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{folder / FACTS_FILE} names {named}, which lies outside of {folder}; copy it into it.")
    subject = Subject(name or facts.repo or _name_of(folder), model.config, task, model.num_parameters())
    _write(folder, _render(folder, subject, facts, results, metadata))


def refresh_card(folder: Path, name: str | None = None) -> None:
    """Write the card of a folder anew: one with a model, or one with the facts of a preset."""
    _write(folder, render_card(folder, name))


def render_card(folder: Path, name: str | None = None) -> str:
    """The card of a folder as text, by its files alone: no weights are loaded."""
    folder = Path(folder)
    facts = read_facts(folder / FACTS_FILE)
    config = _read_config(folder, facts)
    task = facts.task or _task_of((config.architectures or ["one that its config.json does not name"])[0])
    with torch.device("meta"):  # sizes without numbers
        num_parameters = MODEL_CLASSES[task](config).num_parameters()
    subject = Subject(name or facts.repo or _name_of(folder), config, task, num_parameters)
    return _render(folder, subject, facts, None, {})


def _write(folder: Path, text: str) -> None:
    write_whole(folder / CARD_FILE, lambda file: file.write(text))


# ── what is known ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _name_of(folder: Path) -> str:
    return folder.resolve().name.encode("utf-8", "replace").decode()  # names of files need not be UTF-8


def _task_of(class_name: str) -> str:
    for task, model_class in MODEL_CLASSES.items():
        if class_name == model_class.__name__:
            return task
    raise ValueError(_unknown(class_name))


def _unknown(class_name: str) -> str:
    known = " or ".join(model_class.__name__ for model_class in MODEL_CLASSES.values())
    return f"A card describes a model of the class {known}, and this is {class_name}."


def _read_config(folder: Path, facts: Facts) -> HTSATConfig:
    place = folder / facts.preset if facts.preset else folder
    if not (place / "config.json").is_file():
        raise ValueError(
            f"{place} holds no config.json, so there is no model to describe; name a model's folder, or one whose "
            f"{FACTS_FILE} names a preset."
        )
    labels = {"id2label": dict(enumerate(facts.labels))} if facts.labels else {}
    config = AutoConfig.from_pretrained(place, trust_remote_code=False, **labels)
    if not isinstance(config, HTSATConfig):
        raise ValueError(f"{place} holds a model of the kind {config.model_type!r}; a card describes HTS-AT alone.")
    return config


def _read_results(folder: Path, facts: Facts, config: HTSATConfig) -> dict[str, Any] | None:
    """Scores that were measured on this model, and none of another with as many classes fewer or more."""
    path = folder / (facts.results or RESULTS_FILE)
    if not path.is_file():
        if facts.results:
            raise ValueError(f"{folder / FACTS_FILE} names the results {facts.results}, and there is no such file.")
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    missing = [key for key in ("metrics", "data", "date", "versions", "hardware") if key not in results]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}, without which no score means anything.")
    num_labels = results["data"].get("labels", config.num_labels)
    if num_labels != config.num_labels:
        raise ValueError(
            f"{path} is of a model with {num_labels} classes, and the configuration names {config.num_labels}; name "
            f"those of the model as `labels` in {FACTS_FILE}."
        )
    return results


def _read_recipe(folder: Path, facts: Facts) -> tuple[str, dict[str, Any]]:
    """A recipe as it stands, without its comments and without folders of a machine; and its values."""
    path = folder / (facts.recipe or RECIPE_FILE)
    if not path.is_file():
        if facts.recipe:
            raise ValueError(f"{folder / FACTS_FILE} names the recipe {facts.recipe}, and there is no such file.")
        return "", {}
    text = path.read_text(encoding="utf-8")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode):
        return "", {}
    _forget_machine(node)
    return yaml.serialize(node, Dumper=yaml.SafeDumper, allow_unicode=True, width=1000), yaml.safe_load(text)


def _forget_machine(node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode):
        node.value = for_json(node.value)
    for child in node.value if not isinstance(node, yaml.ScalarNode) else []:
        for part in child if isinstance(child, tuple) else (child,):
            _forget_machine(part)


# ── the text ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _render(
    folder: Path, subject: Subject, facts: Facts, results: Mapping[str, Any] | None, metadata: Mapping[str, Any]
) -> str:
    results = results if results is not None else _read_results(folder, facts, subject.config)
    recipe, recipe_values = _read_recipe(folder, facts)
    named = DatasetName(facts.evaluated_on["name"], _dataset_id(facts.evaluated_on)) if facts.evaluated_on else None
    evaluation = read_evaluation(results, named) if results else None
    card_data = _metadata(subject, facts, evaluation, metadata)
    text = _template().render(
        metadata=card_data.to_yaml(),
        license=card_data.get("license"),
        evaluation=evaluation,
        knows_when=subject.is_detector and _learns_events(recipe_values, results or {}),
        recipe=recipe,
        **_of_subject(subject),
        **_of_facts(facts, subject),
        **_of_run(facts, recipe_values, results if results and is_of_a_run(results) else None),
    )
    return re.sub(r"\n{3,}", "\n\n", text)  # where a block of the template had nothing to say


def _of_subject(subject: Subject) -> dict[str, Any]:
    config = subject.config
    return {
        "name": subject.name,
        "config": config,
        "labels": subject.labels,
        "num_parameters": subject.num_parameters,
        "is_detector": subject.is_detector,
        "window_seconds": config.clip_frames * config.hop_length / config.sampling_rate,
        "step_ms": 1000 * config.seconds_per_step(config.clip_frames + 1),  # of long recordings, where it is longest
        "heard_up_to": min(config.max_frequency, config.sampling_rate / 2),
    }


def _of_facts(facts: Facts, subject: Subject) -> dict[str, Any]:
    what = "finds events of" if subject.is_detector else "tells apart"
    usual = f"HTS-AT, an audio transformer, that {what} {len(subject.labels)} classes of sound."
    return {
        "summary": facts.summary or usual,
        "paper": facts.paper,
        "intended_use": facts.intended_use,
        "limits": facts.limits,
        "license_note": facts.license_note,
        "recipe_name": Path(facts.recipe).name if facts.recipe else None,
        "is_unpublished": facts.preset is not None and facts.repo is None,
    }


def _of_run(facts: Facts, recipe: Mapping[str, Any], results: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the run that made the weights has left behind, if anything."""
    if results is None:
        return {"start": None, "trained_on": _trained_on(facts, None), "training": None, "differences": []}
    return {
        "start": f"{'random ones, of the configuration ' if results.get('from_scratch') else ''}{results['model']}",
        "trained_on": _trained_on(facts, results),
        "training": describe_training(results),
        "differences": differences(recipe, results),
    }


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"plain": plain, "literal": literal}
    text = resources.files(__package__).joinpath("template.md").read_text(encoding="utf-8")
    return environment.from_string(text)


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line, in a sentence or in the cell of a table."""
    return MARKDOWN.sub(r"\\\1", " ".join(str(text).split()))


def literal(text: str) -> str:
    """Text as a string of Python, on one line, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _metadata(subject: Subject, facts: Facts, evaluation: Evaluation | None, more: Mapping[str, Any]) -> ModelCardData:
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "audio-classification",  # what the Hub has nearest to the finding of events, too
        "tags": ["htsat", "audio", subject.task],
        "license": facts.license,
        "datasets": [facts.dataset["id"]] if "id" in facts.dataset else None,
    }
    given = more.get("tags") or []
    tags = dict.fromkeys([*values["tags"], *([given] if isinstance(given, str) else given)])
    values |= {name: value for name, value in more.items() if value is not None} | {"tags": list(tags)}
    if evaluation and evaluation.for_model_index():
        values |= {"model_name": subject.name, "eval_results": evaluation.for_model_index()}
    return ModelCardData(**values)


def _dataset_id(dataset: Mapping[str, str]) -> str:
    return dataset.get("id") or re.sub(r"[^a-z0-9]+", "_", dataset["name"].lower()).strip("_")


def _learns_events(recipe: Mapping[str, Any], results: Mapping[str, Any]) -> bool:
    """Whether times were learnt; a run knows, and an older one at least knows whether it was to."""
    told = {**recipe, **results.get("arguments", {})}
    return bool(results.get("data", {}).get("learnt_events", told.get("learn_events", True)))


def _trained_on(facts: Facts, results: Mapping[str, Any] | None) -> str | None:
    if facts.dataset:
        return " ".join([f"{plain(facts.dataset['name'])}.", *facts.dataset_note.split()])
    if results is None:
        return None
    place = results.get("arguments", {}).get("data") or "a place that was not noted"
    return f"{plain(place)}, read as `{results['data']['corpus']}`."


__all__ = ["CARD_FILE", "MODEL_CLASSES", "RECIPE_FILE", "RESULTS_FILE", "refresh_card", "render_card", "write_card"]
