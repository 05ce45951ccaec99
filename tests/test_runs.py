"""A run from one command to its results: it goes on where it stopped, knows when it is finished, and stays apart."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from dying_process import in_a_child
from made_up_clips import RATE, ListRows, make_row, tone
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, AutoModelForAudioFrameClassification

from modeling_htsat import (
    HTSATConfig,
    HTSATFeatureExtractor,
    HTSATForAudioClassification,
    HTSATForSoundEventDetection,
    load_audio,
)
from modeling_htsat.training import runs
from modeling_htsat.training.arguments import ModelArguments
from modeling_htsat.training.clips import Corpus
from modeling_htsat.training.evaluation import EvaluationArguments, evaluate
from modeling_htsat.training.recipes import parse_recipe
from modeling_htsat.training.runs import load_model, parse_run, run_all
from modeling_htsat.training.trainer import HTSATTrainingArguments

ROOT = Path(__file__).parents[1]
HERTZ = {"high": 4000, "low": 300}
CLIPS_OF_CLASS = {"train": 6, "validation": 3, "test": 3}
SMALL = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "spec_size": 128, "window_size": 4}


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Path:
    """A model folder without weights."""
    folder = tmp_path_factory.mktemp("preset")
    HTSATConfig(**SMALL, num_labels=5).save_pretrained(folder)
    HTSATFeatureExtractor(clip_frames=256).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """High and low tones in a folder for each, in folders for the splits."""
    root = tmp_path_factory.mktemp("folders")
    for split, count in CLIPS_OF_CLASS.items():
        for name, hertz in HERTZ.items():
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                sound = tone(0.4 + 0.1 * index, hertz * (1 + 0.05 * index), seed=index)
                soundfile.write(root / split / name / f"{split}-{name}-{index}.wav", sound, RATE)
    return root


@pytest.fixture(scope="module")
def events(tmp_path_factory) -> Path:
    """Noise with tones in it, and a table that says when, for each split."""
    root = tmp_path_factory.mktemp("events")
    for split, count in CLIPS_OF_CLASS.items():
        lines = ["filename\tonset\toffset\tevent_label"]
        for index in range(count):
            sound = 0.01 * np.random.default_rng(index).standard_normal(2 * RATE)
            for name, hertz in HERTZ.items():
                onset = 0.2 + 0.1 * index + 0.5 * (name == "low")
                first = round(onset * RATE)
                sound[first : first + RATE // 2] += tone(0.5, hertz)
                lines.append(f"{split}-{index}.wav\t{onset:.3f}\t{onset + 0.5:.3f}\t{name}")
            (root / "audio").mkdir(exist_ok=True)
            soundfile.write(root / "audio" / f"{split}-{index}.wav", sound.clip(-1, 1), RATE)
        (root / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return root


def flags(output: Path, preset: Path, data: Path, **values) -> list[str]:
    """The command line of a short run."""
    values = {
        "model": preset,
        "corpus": "folders",
        "data": data,
        "output_dir": output,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "use_cpu": "true",
        "report_to": "none",
        "disable_tqdm": "true",
        "dataloader_pin_memory": "false",
        **values,
    }
    words = []
    for name, value in values.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words


def run(output: Path, preset: Path, data: Path, model_class=HTSATForAudioClassification, **values) -> dict:
    return run_all(model_class, parse_run(flags(output, preset, data, **values)))


# ── one run ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def finished(tmp_path_factory, preset, folders) -> tuple[Path, dict]:
    """A finished run, and the scores that it gave."""
    output = tmp_path_factory.mktemp("runs") / "finished"
    return output, run(output, preset, folders, mixup_alpha=0.5, time_masks=1)


def test_a_run_leaves_a_model_its_results_its_curves_and_its_recipe(finished):
    output, metrics = finished
    for name in ("model.safetensors", "config.json", "preprocessor_config.json", "results.json", "recipe.yaml"):
        assert (output / name).stat().st_size > 0, name
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((output / "results.json").read_text())
    assert results["seed"] == 42
    assert results["data"]["clips"] == {"train": 12, "validation": 6, "test": 6}
    assert results["data"]["bad_clips"] == []
    assert results["versions"]["torch"] == torch.__version__
    assert results["metrics"]["test_accuracy"] == metrics["test_accuracy"]
    assert {name.split("_")[0] for name in metrics} == {"validation", "test"}
    recipe = yaml.safe_load((output / "recipe.yaml").read_text())
    assert recipe["mixup_alpha"] == 0.5
    assert recipe["corpus"] == "folders"


def test_the_model_loads_by_the_auto_classes_and_knows_its_labels(finished, folders):
    output, _ = finished
    model = AutoModelForAudioClassification.from_pretrained(output)
    extractor = AutoFeatureExtractor.from_pretrained(output)
    assert model.config.id2label == {0: "high", 1: "low"}
    assert model.config.problem_type == "single_label_classification"
    sound = load_audio(folders / "test" / "low" / "test-low-0.wav", RATE)
    logits = model(**extractor(sound, sampling_rate=RATE, return_tensors="pt")).logits
    assert logits.shape == (1, 2)


def test_the_same_command_again_says_that_it_is_finished_and_trains_nothing(finished, preset, folders):
    output, metrics = finished
    before = (output / "model.safetensors").stat().st_mtime_ns
    again = run(output, preset, folders, mixup_alpha=0.5, time_masks=1)
    assert (output / "model.safetensors").stat().st_mtime_ns == before
    assert again["test_accuracy"] == metrics["test_accuracy"]


@pytest.mark.parametrize("other", [{"learning_rate": 2e-3}, {"time_masks": 2}, {"seed": 7}])
def test_another_run_into_the_same_folder_is_refused_with_what_differs(finished, preset, folders, other):
    output, _ = finished
    name = next(iter(other))
    with pytest.raises(ValueError, match=f"holds a run with {name}: .*another output_dir"):
        run(output, preset, folders, **{"mixup_alpha": 0.5, "time_masks": 1, **other})
    assert not list(output.glob(".*"))


def test_what_could_not_begin_does_not_claim_the_folder(tmp_path, preset, folders):
    table = tmp_path / "labels.csv"
    table.write_text("file,tag\na.wav,dog\n")
    with pytest.raises(ValueError, match="lacks the column filename"):
        run(tmp_path / "run", preset, table, corpus="table")
    run(tmp_path / "run", preset, folders, num_train_epochs=1)
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["corpus"] == "folders"


def test_a_second_run_into_a_folder_in_which_one_is_at_work_is_refused(tmp_path, preset, folders, monkeypatch):
    output, score, ends = tmp_path / "run", runs.score, []

    def start_too(*arguments):
        files = sorted(output.rglob("*"))
        ends.append(in_a_child(lambda: run(output, preset, folders)))
        assert sorted(output.rglob("*")) == files
        return score(*arguments)

    monkeypatch.setattr(runs, "score", start_too)
    run(output, preset, folders)
    assert f"ValueError: Another run is at work in {output}; wait for it, or name another output_dir." in ends[0].said
    assert (output / "results.json").exists() and not (output / runs.LOCK_FILE).exists()


def test_what_does_not_change_the_weights_may_change(finished, preset, folders):
    output, metrics = finished
    options = {"mixup_alpha": 0.5, "time_masks": 1, "logging_steps": 7, "disable_tqdm": "false"}
    assert run(output, preset, folders, **options)["test_accuracy"] == metrics["test_accuracy"]


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(finished, preset, folders, tmp_path):
    """The folder of a finished run, without what comes after its first checkpoint."""
    output, _ = finished
    again = tmp_path / "again"
    again.mkdir()
    recipe = (output / "recipe.yaml").read_text().replace(str(output), str(again))
    (again / "recipe.yaml").write_text(recipe)
    first = min((path for path in output.glob("checkpoint-*")), key=lambda path: int(path.name.split("-")[1]))
    subprocess.run(["cp", "-r", first, again], check=True)
    run(again, preset, folders, mixup_alpha=0.5, time_masks=1)
    assert same_weights(output, again)


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_bad_clip_is_named_in_the_results_and_a_corpus_of_them_stops_the_run(tmp_path, preset, folders):
    subprocess.run(["cp", "-r", folders, tmp_path / "data"], check=True)
    (tmp_path / "data" / "train" / "low" / "broken.wav").write_bytes(b"no sound at all")
    run(tmp_path / "run", preset, tmp_path / "data", num_train_epochs=1)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["data"]["bad_clips"] == ["train/low/broken.wav"]
    with pytest.raises(ValueError, match=r"1 of \d+ clips cannot be decoded, for example train/low/broken\.wav"):
        run(tmp_path / "strict", preset, tmp_path / "data", num_train_epochs=1, max_bad_share=0.0)
    assert not (tmp_path / "strict" / "results.json").exists()


def test_without_validation_and_test_a_model_is_made_all_the_same(tmp_path, preset, folders):
    options = {"validation_split": "none", "test_split": "none", "num_train_epochs": 1, "eval_strategy": "no"}
    assert run(tmp_path / "run", preset, folders, **options) == {}
    assert (tmp_path / "run" / "model.safetensors").exists()


# ── what a run starts from, and ends with ─────────────────────────────────────────────────────────────────────────────


def test_training_goes_on_from_a_model_with_other_labels_by_a_new_head(finished, events, tmp_path):
    output, _ = finished
    rename = tmp_path / "data" / "train"
    rename.mkdir(parents=True)
    for name in ("a", "b", "c"):
        (rename / name).mkdir()
        for index in range(4):
            soundfile.write(rename / name / f"{name}{index}.wav", tone(0.5, 500, index), RATE)
    options = {"validation_split": "none", "test_split": "none", "eval_strategy": "no", "learning_rate": 1e-9}
    run(tmp_path / "run", output, tmp_path / "data", num_train_epochs=1, **options)
    before, after = load_file(output / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    assert after["classifier.convolution.weight"].shape[0] == 3
    name = "htsat.stages.0.blocks.0.attention.qkv.weight"
    name = name if name in before else next(name for name in before if name.startswith("htsat.stages.0"))
    assert torch.allclose(before[name], after[name], atol=1e-6)


@pytest.mark.parametrize(("names", "is_known"), [(("a", "b", "c"), True), (("a", "b", "d"), False)])
def test_a_head_is_kept_in_its_own_order_for_its_own_labels_and_new_for_others(tmp_path, names, is_known):
    labels = {0: "c", 1: "a", 2: "b"}
    model = HTSATForAudioClassification(
        HTSATConfig(**SMALL, id2label=labels, label2id={name: index for index, name in labels.items()})
    )
    model.save_pretrained(tmp_path)
    row = make_row("clip", tone(0.5, 300), ["a"])
    loaded = load_model(HTSATForAudioClassification, ModelArguments(str(tmp_path)), Corpus(ListRows([row]), names))
    head, kept = loaded.classifier.convolution, model.classifier.convolution
    assert list(loaded.config.id2label.values()) == (["c", "a", "b"] if is_known else ["a", "b", "d"])
    assert torch.equal(head.weight, kept.weight) == is_known
    assert 0.5 < head.weight.std() / kept.weight.std() < 2
    assert torch.equal(loaded.htsat.patch_embed.projection.weight, model.htsat.patch_embed.projection.weight)


@pytest.mark.parametrize("final_weights", ["best", "ema", "average"])
def test_a_run_ends_with_the_weights_that_were_asked_for(tmp_path, preset, folders, final_weights):
    options = {"final_weights": final_weights, "num_train_epochs": 3, "learning_rate": 5e-3}
    if final_weights == "ema":
        options["ema_decay"] = 0.5
    else:
        options |= {"metric_for_best_model": "eval_loss", "greater_is_better": "false", "average_best": 2}
    if final_weights == "best":
        options["load_best_model_at_end"] = "true"
    output = tmp_path / "run"
    run(output, preset, folders, **options)
    final = load_file(output / "model.safetensors")
    checkpoints = sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    history = json.loads((checkpoints[-1] / "trainer_state.json").read_text())["log_history"]
    loss_of_step = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    best = sorted(loss_of_step, key=loss_of_step.get)
    if final_weights == "ema":
        expected = load_file(checkpoints[-1] / "ema.safetensors")
    elif final_weights == "best":
        expected = load_file(output / f"checkpoint-{best[0]}" / "model.safetensors")
    else:
        one, other = (load_file(output / f"checkpoint-{step}" / "model.safetensors") for step in best[:2])
        expected = {name: (one[name].double() + other[name].double()) / 2 for name in one}
    for name, values in final.items():
        if values.is_floating_point():
            assert torch.allclose(values, expected[name].float(), atol=1e-6), name
    last = load_file(checkpoints[-1] / "model.safetensors")
    if final_weights != "best" or best[0] != max(loss_of_step):
        assert any(not torch.equal(final[name], last[name]) for name in final)


def test_last_weights_are_those_of_the_last_checkpoint(finished):
    output, _ = finished
    last = max(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert same_weights(output, last)


# ── events ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_detector_learns_events_and_is_scored_by_them(tmp_path, preset, events):
    output = tmp_path / "run"
    options = {"corpus": "events", "num_train_epochs": 1}
    metrics = run(output, preset, events, HTSATForSoundEventDetection, **options)
    results = json.loads((output / "results.json").read_text())["metrics"]
    for name in ("test_intersection_f1", "validation_collar_f1", "test_psds_1"):
        assert "criterion" in results[name] or "psds" in results[name], name
    assert metrics.keys() == results.keys()
    model = AutoModelForAudioFrameClassification.from_pretrained(output)
    assert model.config.event_decoding is not None
    scores = evaluated(tmp_path / "scores", models=[output], corpus="events", data=events)
    assert scores["intersection_f1"]["macro"] == metrics["test_intersection_f1"]["macro"]
    assert scores["psds_1"]["psds"] == pytest.approx(metrics["test_psds_1"]["psds"])
    assert model.config.problem_type == "multi_label_classification"


def test_events_may_be_rolled_and_not_stretched(tmp_path, preset, events):
    options = {"corpus": "events", "roll_time": "true", "max_speed_change": 0.1}
    with pytest.raises(ValueError, match="learn_events: false"):
        run(tmp_path / "strong", preset, events, HTSATForSoundEventDetection, **options)
    weak = {**options, "learn_events": "false", "num_train_epochs": 1}
    assert run(tmp_path / "weak", preset, events, HTSATForSoundEventDetection, **weak)


# ── evaluation of what is finished ────────────────────────────────────────────────────────────────────────────────────


def evaluated(output: Path, **values) -> dict:
    values = {"output_dir": output, "use_cpu": "true", "report_to": "none", "disable_tqdm": "true", **values}
    words = []
    for name, value in values.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return evaluate(*parse_recipe((EvaluationArguments, HTSATTrainingArguments), words))


@pytest.mark.parametrize("num_members", [1, 2])
def test_evaluation_finds_the_scores_of_the_run_also_in_an_ensemble_of_one_model(
    finished, folders, tmp_path, num_members
):
    output, metrics = finished
    options = {"models": [output] * num_members, "corpus": "folders", "data": folders}
    scores = evaluated(tmp_path / "scores", **options)
    assert scores["accuracy"] == metrics["test_accuracy"]
    assert scores["mean_average_precision"] == pytest.approx(metrics["test_mean_average_precision"])
    assert json.loads((tmp_path / "scores" / "results.json").read_text())["data"]["clips"] == 6


# ── teachers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_student_learns_from_a_finished_model(finished, preset, folders, tmp_path, is_cached):
    output, _ = finished
    options = {"teacher": [output], "distillation_weight": 1.0, "num_train_epochs": 1}
    if is_cached:
        options["teacher_cache"] = tmp_path / "answers"
    assert run(tmp_path / "student", preset, folders, **options)["test_accuracy"] >= 0
    assert (tmp_path / "answers").exists() is is_cached


# ── many runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_folds_and_seeds_are_runs_whose_scores_are_averaged(tmp_path, preset):
    (tmp_path / "esc" / "meta").mkdir(parents=True)
    (tmp_path / "esc" / "audio").mkdir()
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, (name, hertz) in enumerate(HERTZ.items()):
            for index in range(2):
                file = f"{fold}-{name}-{index}.wav"
                soundfile.write(tmp_path / "esc" / "audio" / file, tone(0.3, hertz, fold), RATE)
                lines.append(f"{file},{fold},{target},{name},True,{fold}{target}{index},A")
    (tmp_path / "esc" / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    options = {"corpus": "esc50", "folds": [1, 3], "seeds": [5, 6], "num_train_epochs": 1}
    means = run(tmp_path / "runs", preset, tmp_path / "esc", **options)
    results = json.loads((tmp_path / "runs" / "results.json").read_text())
    names = ["fold-1-seed-5", "fold-1-seed-6", "fold-3-seed-5", "fold-3-seed-6"]
    assert sorted(results["runs"]) == names
    values, seconds = [], 0.0
    for name in names:
        of_run = json.loads((tmp_path / "runs" / name / "results.json").read_text())
        assert of_run["seed"] == int(name[-1])
        assert f"fold={name[5]}" in of_run["data"]["options"]
        values.append(of_run["metrics"]["test_accuracy"])
        seconds += of_run["duration_seconds"]
    assert means["test_accuracy"] == pytest.approx(np.mean(values))
    assert means["test_accuracy_deviation"] == pytest.approx(np.std(values, ddof=1))
    again = run(tmp_path / "runs", preset, tmp_path / "esc", **options)
    assert again["test_accuracy"] == pytest.approx(means["test_accuracy"])
    results = json.loads((tmp_path / "runs" / "results.json").read_text())
    assert results["duration_seconds"] == pytest.approx(seconds, abs=1)  # of the runs, though they were finished before


# ── the scripts ───────────────────────────────────────────────────────────────────────────────────────────────────────


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
SCRIPT = str(ROOT / "training_scripts" / "run_audio_classification.py")


@pytest.mark.slow
def test_a_script_that_is_killed_and_started_again_ends_with_the_same_weights(tmp_path, preset, folders):
    options = {"num_train_epochs": 12, "mixup_alpha": 0.5, "time_masks": 2, "ema_decay": 0.9, "max_gain_db": 6.0}
    options |= {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 4}

    def start(name: str) -> subprocess.Popen:
        words = [sys.executable, SCRIPT, *flags(tmp_path / name, preset, folders, **options)]
        return subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    whole = start("whole")
    _, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, errors
    num_kills = 0
    for wanted in (3, 9):
        process = start("killed")
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline:
            steps = [int(path.name.split("-")[1]) for path in (tmp_path / "killed").glob("checkpoint-*")]
            if max(steps, default=0) >= wanted:
                process.send_signal(signal.SIGKILL)
                num_kills += 1
                break
            time.sleep(0.002)
        process.communicate()
    assert num_kills == 2
    assert not (tmp_path / "killed" / "results.json").exists()
    last = start("killed")
    _, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    scores = [json.loads((tmp_path / name / "results.json").read_text())["metrics"] for name in ("whole", "killed")]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_torchrun_with_two_processes_ends_with_the_scores_of_one(tmp_path, preset, folders):
    options = {"drop_path_rate": 0.0, "ddp_find_unused_parameters": "false", "num_train_epochs": 3}

    def start(name: str, launcher: list[str], batch_size: int) -> str:
        values = {**options, "per_device_train_batch_size": batch_size}
        words = [sys.executable, *launcher, SCRIPT, *flags(tmp_path / name, preset, folders, **values)]
        done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    start("one", [], 4)
    table = start("two", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"], 2)
    assert table.count("test_accuracy") == 1  # one process speaks
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max(float((one[name].double() - two[name].double()).abs().max()) for name in one) < 1e-4
    scores = [json.loads((tmp_path / name / "results.json").read_text())["metrics"] for name in ("one", "two")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)


@pytest.mark.slow
def test_a_script_says_what_is_wrong_in_one_sentence(tmp_path, preset, folders):
    def complain(*words: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, SCRIPT, *words], env=ENVIRONMENT, capture_output=True, text=True)
        return done.returncode, done.stderr.strip()

    status, text = complain(*flags(tmp_path / "run", preset, folders, mixup_alfa=0.5))
    assert (status, "did you mean '--mixup_alpha'?" in text) == (2, True), text
    status, text = complain(*flags(tmp_path / "run", preset, tmp_path / "nowhere"))
    assert status == 1
    assert text.splitlines()[-1].startswith("run_audio_classification.py: ")
    assert "nowhere" in text
    assert "Traceback" not in text
