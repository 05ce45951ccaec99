"""Cards: what they say is what was measured, what was not measured they say too, and their snippets run."""

import json
import os
import re
import shutil
import time
from configparser import ConfigParser
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import yaml
from huggingface_hub import ModelCard
from made_up_clips import RATE, tone
from test_house import blocks
from transformers import Trainer, TrainingArguments
from transformers import trainer as transformers_trainer

from modeling_htsat import (
    HTSATConfig,
    HTSATFeatureExtractor,
    HTSATForAudioClassification,
    HTSATForSoundEventDetection,
    HTSATModel,
)
from modeling_htsat.cli import main as htsat
from modeling_htsat.event_metrics import collar_f1, intersection_f1
from modeling_htsat.hub import card
from modeling_htsat.hub.card import refresh_card, render_card, write_card
from modeling_htsat.hub.card_scores import differences
from modeling_htsat.hub.facts import read_facts
from modeling_htsat.training.evaluation import EvaluationArguments, evaluate
from modeling_htsat.training.reporting import write_results
from modeling_htsat.training.runs import parse_run, run_all
from modeling_htsat.training.trainer import HTSATTrainer, HTSATTrainingArguments

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "model_cards"
VARIANTS = sorted(path.parent for path in CARDS.glob("*/facts.yaml"))
NOT_EVALUATED = "**Not evaluated yet.**"
SMALL = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "spec_size": 128, "window_size": 4}
ODD = 'it\'s "odd": | näme `of` #1'
TRUTH = {"a.wav": [(0.0, 2.0, "low")], "b.wav": [(1.0, 3.0, "high")]}
FOUND = {"a.wav": [(0.1, 2.0, "low")], "b.wav": [(1.5, 3.5, "high")]}
FACTS = {
    "preset": "../preset",
    "task": "sound-event-detection",
    "summary": "A model.",
    "license": "mit",
    "dataset": {"name": "some tones"},
    "intended_use": "Tests.",
}


@pytest.fixture
def save(tmp_path):
    """`save("name", model_class)`: a small model with its extractor in a folder of this name."""

    def make(name: str, model_class: type = HTSATForSoundEventDetection, labels=("low", "high")):
        config = HTSATConfig(**SMALL, id2label=dict(enumerate(labels)), problem_type="multi_label_classification")
        model = model_class(config)
        model.save_pretrained(tmp_path / name)
        HTSATFeatureExtractor(clip_frames=256).save_pretrained(tmp_path / name)
        return tmp_path / name, model

    return make


@pytest.fixture
def variant(tmp_path):
    """`variant(recipe=...)`: a folder with the facts of a preset, which lies beside it."""
    HTSATConfig(**SMALL, id2label={0: "low", 1: "high"}).save_pretrained(tmp_path / "preset")

    def make(**facts) -> Path:
        folder = tmp_path / "variant"
        folder.mkdir(exist_ok=True)
        known = {name: value for name, value in {**FACTS, **facts}.items() if value is not None}
        (folder / "facts.yaml").write_text(yaml.safe_dump(known, allow_unicode=True), encoding="utf-8")
        return folder

    return make


def results_in(folder: Path, metrics: dict | None = None, data: dict | None = None, **more) -> dict:
    """What a run writes, with scores of two files."""
    events = {
        "intersection_f1": intersection_f1(TRUTH, FOUND, {"a.wav": 4, "b.wav": 4}),
        "collar_f1": collar_f1(TRUTH, FOUND),
    }
    values = {
        "arguments": {"data": "corpora/Tones One", "tune_decoding": True, "validation_split": "dev", "test_shifts": 3},
        "seed": 5,
        "model": "start",
        "started": time.time(),
        **more,
    }
    return write_results(
        folder / "results.json",
        {"validation_accuracy": 0.5, "test_mean_average_precision": 0.625, "test_map_classes_counted": 2}
        | {f"test_{name}": score for name, score in events.items()}
        if metrics is None
        else metrics,
        data={"corpus": "folders", "clips": {"train": 9, "test": 2}, "labels": 2} if data is None else data,
        **values,
    )


# ── the cards of the presets ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("folder", VARIANTS, ids=lambda folder: folder.name)
def test_every_card_is_what_its_files_make(folder):
    assert (folder / "README.md").read_text(encoding="utf-8") == render_card(folder), "run `make cards`"


def test_every_preset_has_a_card_of_its_own():
    presets = [path.parent for path in (ROOT / "configuration" / "models").glob("*/config.json")]
    of = {folder.name: (folder / read_facts(folder / "facts.yaml").preset).resolve() for folder in VARIANTS}
    assert of == {preset.name: preset.resolve() for preset in presets}


def test_the_template_is_one_file_and_installed_with_the_package():
    assert (CARDS / "template.md").resolve() == (Path(card.__file__).parent / "template.md").resolve()
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["modeling_htsat.hub"].split(",")
    assert any(fnmatch("template.md", pattern.strip()) for pattern in patterns)


@pytest.mark.parametrize("folder", VARIANTS, ids=lambda folder: folder.name)
def test_a_card_has_scores_where_there_are_results_and_says_so_where_there_are_none(folder):
    has_results = (folder / (read_facts(folder / "facts.yaml").results or "results.json")).is_file()
    loaded = ModelCard.load(folder / "README.md")
    assert (NOT_EVALUATED in loaded.text) != has_results
    assert bool(loaded.data.eval_results) == has_results and ("model-index" in loaded.content) == has_results
    assert (loaded.data.library_name, loaded.data.pipeline_tag) == ("transformers", "audio-classification")
    assert loaded.data.license == "mit" and "No weights are published" in loaded.text


def test_figures_of_the_paper_are_called_the_papers_and_are_no_scores_of_the_model():
    loaded = ModelCard.load(CARDS / "htsat-tiny-audioset" / "README.md")
    before, after = loaded.text.split("0.471")
    assert "The paper's own results" in before and NOT_EVALUATED in before and "48.4" in after
    assert "0.471" not in str(loaded.data.to_dict())


# ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_model_index_gives_exact_names_data_and_split_and_is_read_back(save):
    folder, model = save("tones")
    results = results_in(folder)
    write_card(folder, model, results)
    found = {result.metric_name: result for result in ModelCard.load(folder / "README.md").data.eval_results}
    collar, intersection = "collar F1 200 ms / 20 %", "intersection F1, detection and truth tolerance 0.5"
    assert set(found) == {"mAP, macro over classes", collar, intersection}
    assert found[collar].metric_value == results["metrics"]["test_collar_f1"]["macro"] == 0.5
    assert found[intersection].metric_value == results["metrics"]["test_intersection_f1"]["macro"] == 1.0
    for result in found.values():
        assert (result.dataset_name, result.dataset_type, result.dataset_split) == ("Tones One", "tones_one", "test")


def test_a_name_follows_the_settings_that_a_score_was_computed_with(save):
    folder, model = save("tones")
    strict = {
        "test_collar_f1": collar_f1(TRUTH, FOUND, 0.1, 0.3, 0.5),
        "test_intersection_f1": intersection_f1(TRUTH, FOUND, {"a.wav": 4, "b.wav": 4}, 0.7, 0.3),
    }
    write_card(folder, model, results_in(folder, strict))
    names = {result.metric_name for result in ModelCard.load(folder / "README.md").data.eval_results}
    assert names == {
        "collar F1 onset 100 ms, offset 300 ms / 50 %",
        "intersection F1, detection tolerance 0.7, truth tolerance 0.3",
    }


def test_a_card_says_what_scores_mean_and_how_long_on_what_the_run_took(save):
    folder, model = save("tones")
    write_card(folder, model, results_in(folder, resumed=True) | {"duration_seconds": 5400.0})
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "On the test split of Tones One, 2 clips" in text and "| mAP, macro over classes | 0.625 |  |" in text
    assert (
        "onsets at most 0.2 s apart" in text and "found on the dev split" in text and "over 3 circular shifts" in text
    )
    assert "learnt from 9 clips" in text and "took 1.5 hours" in text and "interrupted before" in text
    assert f"PyTorch {torch.__version__}" in text and "seed 5" in text and "Energy was not measured" in text
    assert NOT_EVALUATED not in text


def test_an_undefined_score_is_called_so_and_stays_out_of_the_index(save):
    folder, model = save("tones")
    write_card(folder, model, results_in(folder, {"test_accuracy": 0.25, "test_d_prime": float("nan")}))
    loaded = ModelCard.load(folder / "README.md")
    assert [result.metric_type for result in loaded.data.eval_results] == ["accuracy"]
    assert "| d-prime, of the macro AUC | undefined |" in loaded.text


def test_a_mean_over_runs_shows_its_deviation_and_keeps_the_exact_names(variant):
    folder = variant()
    one = {"test_collar_f1": collar_f1(TRUTH, FOUND)}
    means = {"test_collar_f1": 0.5, "test_collar_f1_deviation": 0.125}
    results_in(folder, means, data={"corpus": "esc50"}, runs={"fold-1": one, "fold-2": one})
    text = render_card(folder)
    assert "| collar F1 200 ms / 20 % | 0.500 ± 0.125 |" in text and "mean of 2 runs" in text


def test_an_evaluation_of_several_models_says_so_in_the_metrics_name_and_claims_no_training(variant):
    folder = variant(evaluated_on={"name": "Tones Two", "id": "someone/tones"})
    results_in(folder, {"accuracy": 0.75}, data={"corpus": "folders", "split": "eval", "clips": 7}, model=["a", "b"])
    refresh_card(folder)
    loaded = ModelCard.load(folder / "README.md")
    (result,) = loaded.data.eval_results
    assert result.metric_name == "accuracy, mean of the probabilities of 2 models" and result.metric_value == 0.75
    assert (result.dataset_name, result.dataset_type, result.dataset_split) == ("Tones Two", "someone/tones", "eval")
    assert "hours" not in loaded.text.split("## Training")[0] and "no hours" in loaded.text.lower()


def test_what_run_evaluation_writes_into_a_variants_folder_makes_its_card(save, variant):
    model, _ = save("model", HTSATForAudioClassification)
    folder = variant(task="audio-classification")
    sounds = model.parent / "sounds"
    for place, hertz in (("train/high", 3500), ("test/high", 4000), ("test/low", 300)):
        (sounds / place).mkdir(parents=True)
        soundfile.write(sounds / place / "one.wav", tone(0.5, hertz), RATE)
    arguments = HTSATTrainingArguments(str(folder), use_cpu=True, report_to=[], disable_tqdm=True)
    evaluate(EvaluationArguments([str(model)], "folders", str(sounds)), arguments)
    assert sorted(os.listdir(folder)) == ["facts.yaml", "results.json"]
    text = render_card(folder)
    assert "On the test split of sounds, 2 clips" in text and "Scored by `run_evaluation.py`. Hardware: " in text


def test_an_evaluation_does_not_overwrite_what_a_run_says_of_itself(tmp_path):
    results_in(tmp_path)
    with pytest.raises(ValueError, match="holds the results of a training run; name another output_dir"):
        evaluate(EvaluationArguments(["any"], "folders", "any"), HTSATTrainingArguments(str(tmp_path), use_cpu=True))


def test_scores_of_a_model_with_other_classes_are_refused(variant):
    folder = variant()
    results_in(folder, data={"corpus": "folders", "labels": 3})
    with pytest.raises(ValueError, match="3 classes, and the configuration names 2"):
        render_card(folder)
    folder = variant(labels=["one", "two", "three"])
    assert "| classes | 3: one · two · three |" in render_card(folder)


# ── snippets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model_class", [HTSATForAudioClassification, HTSATForSoundEventDetection])
def test_the_three_snippets_of_a_card_run_whatever_the_folder_is_called(model_class, save, monkeypatch):
    folder, model = save(ODD, model_class)
    write_card(folder, model)
    monkeypatch.chdir(folder.parent)
    soundfile.write("sound.wav", tone(1.0, 700), RATE)
    for label, hertz in (("bark", 300), ("meow", 4000)):
        for index in range(10):
            Path("my_sounds", label).mkdir(parents=True, exist_ok=True)
            soundfile.write(Path("my_sounds", label, f"{index}.wav"), tone(0.2, hertz, seed=index), RATE)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    snippets = blocks(folder / "README.md", "python")
    assert len(snippets) == 3
    for snippet in snippets:
        # Ten epochs say to a reader what the test does not need.
        exec(compile(snippet.replace("num_train_epochs=10", "max_steps=1"), "README.md", "exec"), {})
    assert json.loads(Path("my_model", "config.json").read_text())["id2label"] == {"0": "bark", "1": "meow"}


def test_times_of_what_learnt_clip_labels_are_called_hints(save):
    hint = "take these for hints"
    folder, tagger = save("tagger", HTSATForAudioClassification)
    write_card(folder, tagger)
    assert hint in (folder / "README.md").read_text(encoding="utf-8")
    folder, detector = save("detector")
    for learn_events in (True, False):
        (folder / "recipe.yaml").write_text(f"learn_events: {str(learn_events).lower()}\n")
        write_card(folder, detector)
        assert (hint in (folder / "README.md").read_text(encoding="utf-8")) != learn_events
        results = results_in(folder, data={"corpus": "folders", "learnt_events": not learn_events})
        write_card(folder, detector, results)  # its clips had events, or had none, whatever it was told
        assert (hint in (folder / "README.md").read_text(encoding="utf-8")) == learn_events
        (folder / "results.json").unlink()


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

LABELS = (
    "a|b",
    "---",
    "```",
    "<b>&",
    "x: y",
    '"q"',
    "line\nbreak",
    "犬",
    "{{ 7 * 7 }}",
    "_i_ *j* [k](l)",
    "back\\slash",
)


def test_names_of_labels_folders_and_data_can_break_neither_yaml_nor_markdown(save):
    folder, model = save(ODD, labels=LABELS)
    data = {"corpus": "folders", "clips": {"test": 2}, "labels": len(LABELS)}
    results = results_in(folder, data=data, model="a|`b`", arguments={"data": "x/---\n|<i>: '\""})
    write_card(folder, model, results)
    loaded = ModelCard.load(folder / "README.md")
    (index,) = loaded.data.to_dict()["model-index"]
    assert index["name"] == ODD and index["results"][0]["dataset"]["name"] == "---\n|<i>: '\""
    tables = [line for line in loaded.text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables if line.startswith("| classes |")} == {3}
    assert loaded.text.count("\n```") == 6 and "<b>" not in loaded.text.replace(r"\<b\>", "")
    assert "犬" in loaded.text and r"\{\{ 7 \* 7 \}\}" in loaded.text and "line break" in loaded.text
    headings = re.findall(r"^#+ .*$", loaded.text, re.MULTILINE)
    assert headings[0] == r"# it's " + r'"odd": \| näme \`of\` \#1' and len(headings) == 8


def test_a_recipe_is_shown_without_comments_and_without_folders_of_the_machine(save, tmp_path):
    folder, model = save("tones")
    recipe = (
        f"# secret plan\nlearning_rate: 1e-3  # why\ndata: {tmp_path}/tones\ndata_options: [fold=1, {tmp_path}/x]\n"
    )
    (folder / "recipe.yaml").write_text(recipe)
    write_card(folder, model)
    (shown,) = blocks(folder / "README.md", "yaml")
    assert shown == "learning_rate: 1e-3\ndata: tones\ndata_options: [fold=1, x]\n"
    assert str(tmp_path) not in (folder / "README.md").read_text(encoding="utf-8")


def test_what_a_run_was_told_otherwise_than_its_recipe_is_named(variant, tmp_path):
    (tmp_path / "plan.yaml").write_text("learning_rate: 1e-3\nnum_train_epochs: 18\nfolds: []\nmodel: far/start\n")
    folder = variant(recipe="../plan.yaml")
    told = {"data": "tones", "learning_rate": 0.001, "num_train_epochs": 9.0, "folds": [], "model": "start"}
    results = results_in(folder, arguments=told)
    assert "told otherwise in: num\\_train\\_epochs: 9.0." in render_card(folder)
    recipe = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    assert differences({**recipe, "num_train_epochs": 9}, results) == []


# ── what is missing, and what is half done ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"summary": None, "license": None}, "facts.yaml lacks summary, license; a card of a preset needs them."),
        ({"licence": "mit"}, "facts.yaml has the unknown key 'licence'; did you mean 'license'?"),
        ({"limits": "none"}, "limits in .*facts.yaml must be a list."),
        ({"dataset": {"names": "x"}}, "dataset in .*facts.yaml needs name and takes id, name."),
        ({"paper": [{"metric": "mAP"}]}, "paper in .*facts.yaml needs dataset, metric, value"),
        ({"task": "tagging"}, "task in .*facts.yaml is 'tagging'; it must be audio-classification or"),
        ({"preset": "../nowhere"}, "nowhere holds no config.json, so there is no model to describe"),
        ({"results": "../none.json"}, "names the results ../none.json, and there is no such file."),
        ({"recipe": "../none.yaml"}, "names the recipe ../none.yaml, and there is no such file."),
    ],
)
def test_missing_and_wrong_facts_are_one_clear_sentence(facts, sentence, variant, capsys):
    folder = variant(**facts)
    assert htsat(["card", str(folder)]) == 1
    printed = capsys.readouterr().err
    assert re.search(sentence, printed) and printed.count("\n") == 1
    assert not (folder / "README.md").exists()


def test_results_that_say_too_little_are_refused(variant):
    folder = variant()
    (folder / "results.json").write_text(json.dumps({"metrics": {}, "data": {}}))
    with pytest.raises(ValueError, match="results.json lacks date, versions, hardware, without which"):
        render_card(folder)


def test_what_is_no_tagger_and_no_detector_has_no_card(save):
    folder, model = save("encoder", HTSATModel)
    for write in (lambda: write_card(folder, model), lambda: refresh_card(folder)):
        with pytest.raises(ValueError, match="HTSATForSoundEventDetection, and this is HTSATModel"):
            write()


def test_a_card_is_written_whole_or_not_at_all(save, monkeypatch):
    folder, model = save("tones")
    (folder / "README.md").write_text("before")
    files = sorted(os.listdir(folder))

    def refuse(*arguments):
        raise OSError("The disk is full.")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="full"):
        write_card(folder, model)
    assert (folder / "README.md").read_text() == "before" and sorted(os.listdir(folder)) == files


def test_the_command_renders_anew_and_its_check_finds_what_is_stale(save, capsys):
    folder, model = save("tones")
    assert htsat(["card", "--check", str(folder)]) == 1
    write_card(folder, model)
    assert htsat(["card", "--check", str(folder)]) == 0
    results_in(folder)
    assert htsat(["card", "--check", str(folder)]) == 1
    assert "README.md is stale; `htsat card" in capsys.readouterr().err
    assert htsat(["card", str(folder), "--name", "someone/tones"]) == 0
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert 'pipeline("sound-event-detection", "someone/tones")' in text and NOT_EVALUATED not in text


def test_facts_beside_a_trained_model_add_to_its_card(save):
    folder, model = save("tones")
    write_card(folder, model)
    assert "has not named a licence" in (folder / "README.md").read_text(encoding="utf-8")
    (folder / "facts.yaml").write_text("license: cc-by-4.0\nrepo: someone/tones\nlimits: [Only tones.]\n")
    write_card(folder, model)
    loaded = ModelCard.load(folder / "README.md")
    assert loaded.data.license == "cc-by-4.0" and "- Only tones." in loaded.text and "someone/tones" in loaded.text


# ── trainers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def trainer_of(folder: Path, model, trainer_class=HTSATTrainer, arguments_class=HTSATTrainingArguments) -> Trainer:
    arguments = arguments_class(str(folder), use_cpu=True, report_to=[], disable_tqdm=True)
    return trainer_class(model, arguments, train_dataset=[])


def test_htsat_trainer_writes_this_card_and_the_stock_trainer_its_own(save):
    folder, model = save("tones")
    trainer_of(folder, model).create_model_card(license="mit", tags="extra", model_name="tones-2", dataset_tags="d/e")
    data = ModelCard.load(folder / "README.md").data
    assert data.pipeline_tag == "audio-classification" and data.license == "mit" and data.datasets == "d/e"
    assert data.tags == ["htsat", "audio", "sound-event-detection", "extra"]
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert NOT_EVALUATED in text and '"tones-2"' in text
    trainer_of(folder, model, Trainer, TrainingArguments).create_model_card(model_name="tones-3")
    assert "generated automatically" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_model_without_a_head_that_a_card_knows_gets_the_librarys_draft(save):
    folder, model = save("encoder", HTSATModel)
    trainer_of(folder, model).create_model_card(model_name="encoder")
    assert "generated automatically" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_run_that_pushes_ends_with_its_scores_on_the_hub(save, tmp_path, monkeypatch):
    folder, _ = save("start", HTSATForAudioClassification)
    for place, hertz in (("train/high", 4000), ("train/low", 300), ("test/high", 4000), ("test/low", 300)):
        (tmp_path / "sounds" / place).mkdir(parents=True)
        soundfile.write(tmp_path / "sounds" / place / "one.wav", tone(0.5, hertz), RATE)
    pushed = []

    def upload_folder(folder_path, **options):
        pushed.append(ModelCard.load(Path(folder_path) / "README.md"))
        return SimpleNamespace(done=lambda: True)

    def init_hf_repo(self, **options):
        self.hub_model_id, self.push_in_progress = "someone/tones", None

    monkeypatch.setattr(transformers_trainer, "hf_api", lambda: SimpleNamespace(upload_folder=upload_folder))
    monkeypatch.setattr(Trainer, "init_hf_repo", init_hf_repo)
    words = f"--model {folder} --corpus folders --data {tmp_path}/sounds --output_dir {tmp_path}/run --max_steps 1"
    words += " --validation_split none --push_to_hub true --save_steps 1 --use_cpu true --report_to none"
    run_all(HTSATForAudioClassification, parse_run([*words.split(), "--dataloader_pin_memory", "false"]))
    assert len(pushed) == 2 and [bool(each.data.eval_results) for each in pushed] == [False, True]
    assert NOT_EVALUATED in pushed[0].text and "It learnt from 2 clips" in pushed[1].text


@pytest.mark.parametrize("while_training", [False, True])
def test_what_is_pushed_has_its_code_and_this_card_under_its_name_on_the_hub(while_training, save, monkeypatch):
    folder, model = save("tones")
    pushed = []

    def upload_folder(folder_path, **options):
        pushed.append((Path(folder_path) / "README.md").read_text(encoding="utf-8"))
        assert (Path(folder_path) / "modeling_htsat.py").is_file()  # which config.json names
        return SimpleNamespace(is_done=lambda: True)

    monkeypatch.setattr(transformers_trainer, "hf_api", lambda: SimpleNamespace(upload_folder=upload_folder))
    trainer = trainer_of(folder, model)
    trainer.hub_model_id, trainer.push_in_progress = "someone/tones", None  # as `init_hf_repo` sets them
    if while_training:
        shutil.copytree(folder, folder / "checkpoint-1")
        for code in folder.glob("*.py"):
            code.unlink()  # nothing has been saved here yet
        trainer.state.epoch = 1.0
        trainer._push_from_checkpoint(str(folder / "checkpoint-1"))
    else:
        trainer.push_to_hub()
    assert 'pipeline("sound-event-detection", "someone/tones")' in pushed[0] and NOT_EVALUATED in pushed[0]


def test_the_figures_of_a_card_are_those_of_its_results_rounded():
    rows = re.findall(
        r"^\| (?:accuracy|mAP).*$", (CARDS / "htsat-nano-one-second" / "README.md").read_text(), re.MULTILINE
    )
    figures = [[float(cell) for cell in row.split("|")[2:-1]] for row in rows]
    results = json.loads((ROOT / "benchmarks" / "spoken_digits.json").read_text())["metrics"]
    for row, name in zip(figures, ("accuracy", "mean_average_precision"), strict=True):
        assert np.allclose(row, [results[f"test_{name}"], results[f"validation_{name}"]], atol=5e-4)
