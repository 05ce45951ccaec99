"""Recipes, launch configurations, training scripts and docs/training.md: what they show is run, or at least read."""

import csv
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch.distributed.run
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from made_up_clips import tone
from test_house import blocks
from transformers import AutoModelForAudioClassification

from modeling_htsat import (
    HTSATConfig,
    HTSATFeatureExtractor,
    HTSATForAudioClassification,
    HTSATForSoundEventDetection,
    HTSATModel,
)
from modeling_htsat.cli import make_parser
from modeling_htsat.soundscapes.data_set import SoundscapeSettings, write_soundscapes
from modeling_htsat.tables import read_events
from modeling_htsat.training.corpora import load_corpus
from modeling_htsat.training.evaluation import EvaluationArguments
from modeling_htsat.training.prepare import prepare_corpus
from modeling_htsat.training.recipes import parse_recipe
from modeling_htsat.training.runs import PARTS, RunArguments, corpus_options, is_preset, parse_run, run_all
from modeling_htsat.training.trainer import HTSATTrainingArguments

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "training_scripts"
GUIDE = ROOT / "docs" / "training.md"
RECIPES = sorted((ROOT / "configuration").rglob("recipes/**/*.yaml"))
LAUNCH_CONFIGURATIONS = sorted((ROOT / "configuration" / "accelerate").glob("*.yaml"))
MODEL_CLASSES = {
    "run_audio_classification.py": HTSATForAudioClassification,
    "run_sound_event_detection.py": HTSATForSoundEventDetection,
}
SMALL = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "spec_size": 128, "window_size": 4}
RATE = 32_000


def by_stem(paths: Sequence[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


# ── commands, and whether those whom they are for would take them ─────────────────────────────────────────────────────


class Launch(NamedTuple):
    """A command that starts a training script, taken apart."""

    num_processes: int
    script: str
    arguments: list[str]


def commands_in(text: str) -> list[list[str]]:
    """Every line of shell that starts one of our programs, with the lines that it goes on in."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    starts = ("htsat ", "python ", "torchrun ", "accelerate launch ")
    return [shlex.split(line) for line in map(str.strip, lines) if line.startswith(starts)]


def header_of(path: Path) -> str:
    """The comments at the top of a file, without their `#`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line[1:].removeprefix(" ") for line in lines[:end])


def taken_apart(command: Sequence[str]) -> Launch:
    """Read by the launcher's own parser."""
    if command[0] == "torchrun":
        options = torch.distributed.run.get_args_parser().parse_args(command[1:])
        return Launch(int(options.nproc_per_node), options.training_script, options.training_script_args)
    if command[0] == "accelerate":
        options = launch_command_parser().parse_args(command[2:])
        processes = options.num_processes or load_config_from_file(options.config_file).num_processes
        return Launch(processes, options.training_script, options.training_script_args)
    return Launch(1, command[1], list(command[2:]))


def check(command: Sequence[str]) -> None:
    """End the program, as the command would, if something in it is not understood."""
    if command[0] == "htsat":
        make_parser().parse_args(command[1:])
        return
    launch = taken_apart(command)
    parser_of(launch.script)(launch.arguments)


def parser_of(script: str) -> Callable[[list[str]], Namespace | tuple]:
    name = Path(script).name
    assert (ROOT / script).is_file(), script
    here = ["--use_cpu", "true"]  # or bf16 would be refused where there is no GPU
    if name in MODEL_CLASSES:
        return lambda arguments: parse_run([*arguments, *here])
    if name == "run_evaluation.py":
        return lambda arguments: parse_recipe((EvaluationArguments, HTSATTrainingArguments), [*arguments, *here])
    specification = importlib.util.spec_from_file_location("script", ROOT / script)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.make_parser().parse_args


@pytest.fixture
def at_home(monkeypatch):
    """Commands are written for the root of the repository."""
    monkeypatch.chdir(ROOT)


def test_a_command_that_would_be_refused_does_not_pass(at_home):
    for line in (
        "htsat average runs --besst 5 --output out",
        "python training_scripts/run_audio_classification.py --recipe configuration/recipes/esc50.yaml --sedes 0 1",
        "torchrun --nproc_per_nod 2 training_scripts/run_audio_classification.py",
        "accelerate launch --config_fil x.yaml training_scripts/run_audio_classification.py",
    ):
        with pytest.raises(SystemExit):
            check(shlex.split(line))


# ── recipes as texts ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def recipe(at_home) -> Callable[..., RunArguments]:
    """`recipe(path, "--seed", "1")`: what a recipe says, and flags."""
    return lambda path, *flags: RunArguments(*parse_recipe(PARTS, ["--recipe", str(path), *flags]))


def launch_of(path: Path) -> Launch:
    """The command in the header of a recipe that runs it."""
    (line,) = re.findall(r"^Launch: ((?:.*\\\n)*.*)$", header_of(path), re.MULTILINE)
    (command,) = commands_in(line)
    return taken_apart(command)


def test_there_is_a_recipe_for_everything_that_the_documents_promise():
    assert {path.stem for path in RECIPES} >= {
        *("audioset_balanced", "audioset_full", "audioset_strong", "desed", "desed_weak", "esc50", "speech_commands"),
        *("soundscapes", "soundscapes_strong", "own_sounds", "spoken_digits", "esc10"),
    }
    listed = set(re.findall(r"`recipes/(\w+)\.yaml`", (ROOT / "configuration" / "README.md").read_text()))
    assert listed == {path.stem for path in RECIPES}


@by_stem(RECIPES)
def test_a_recipe_is_launched_by_its_header_and_writes_to_a_folder_of_its_own(path, at_home, recipe):
    launch = launch_of(path)
    assert Path(launch.script).name in MODEL_CLASSES
    run = RunArguments(*parser_of(launch.script)(launch.arguments))
    assert Path(launch.arguments[launch.arguments.index("--recipe") + 1]).resolve() == path
    assert run.data.data == recipe(path).data.data
    assert recipe(path).training.output_dir == f"runs/{path.stem}"


@by_stem(RECIPES)
def test_every_command_in_a_recipe_is_understood(path, at_home):
    for command in commands_in(header_of(path).replace("Launch: ", "")):
        check(command)


@by_stem(RECIPES)
def test_the_batch_arithmetic_of_a_recipe_is_right(path, recipe):
    pattern = r"^Batch: (\d+) clips x (\d+) (?:GPUs?|process) x (\d+) accumulation = (\d+)$"
    ((clips, processes, accumulation, together),) = re.findall(pattern, header_of(path), re.MULTILINE)
    training = recipe(path).training
    assert int(clips) == training.per_device_train_batch_size
    assert int(processes) == launch_of(path).num_processes
    assert int(accumulation) == training.gradient_accumulation_steps
    assert int(together) == int(clips) * int(processes) * int(accumulation)


@by_stem(RECIPES)
def test_a_recipe_says_what_it_runs_on_and_what_came_out(path):
    header = header_of(path)
    assert re.search(r"^Hardware: \S", header, re.MULTILINE)
    (result,) = re.findall(r"^What came out: (.*)$", header, re.MULTILINE)
    assert re.search(r"benchmarks/README\.md|not run by this project yet|results\.json", result)


@by_stem(RECIPES)
def test_a_recipe_starts_from_a_preset_or_says_where_its_model_comes_from(path, recipe):
    model = recipe(path).model.model
    text = path.read_text(encoding="utf-8")
    comment = re.search(r"((?:^#.*\n)+)^model: ", text, re.MULTILINE)[1]
    if model.startswith("configuration/"):
        assert is_preset(str(ROOT / model))
        assert "from scratch" in comment
    else:
        assert "folder" in comment
        assert "htsat convert" in text or "docs/training.md" in comment


@by_stem(RECIPES)
def test_a_recipe_says_nothing_that_its_other_values_contradict(path, recipe):
    run = recipe(path)
    evaluates_where_it_saves = run.training.eval_strategy == run.training.save_strategy
    if run.final.final_weights == "average":
        assert run.training.save_total_limit is None
        assert run.training.metric_for_best_model is not None
        assert evaluates_where_it_saves
        assert run.final.average_best <= run.training.num_train_epochs
    if run.final.final_weights == "best":
        assert run.training.load_best_model_at_end
        assert evaluates_where_it_saves
    assert (run.final.final_weights == "ema") == (run.final.ema_decay > 0)
    if any(option.startswith("cached_groups=") for option in run.data.data_options):
        assert corpus_options(run.data.data_options)["cached_groups"] >= run.training.shuffle_groups


@pytest.mark.parametrize("name", ["audioset_balanced", "audioset_full"])
def test_the_audioset_recipes_have_the_settings_of_the_paper(name, recipe):
    run = recipe(ROOT / "configuration" / "recipes" / f"{name}.yaml")
    training, augmentation = run.training, run.augmentation
    assert (training.learning_rate, training.weight_decay, training.max_grad_norm) == (1e-3, 0.05, 1.0)
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert training.paper_schedule and training.balanced_sampling and training.synchronised_batch_norm
    assert not training.bf16 and not training.fp16
    assert (augmentation.mixup_alpha, augmentation.mixup_labels) == (0.5, "authors")
    assert (augmentation.time_masks, augmentation.max_time_mask_frames) == (2, 64)
    assert (augmentation.frequency_masks, augmentation.max_frequency_mask_bins) == (2, 8)
    assert (run.final.final_weights, run.final.test_shifts) == ("average", 10)
    assert training.per_device_train_batch_size * 4 == 128


# ── launch configurations ─────────────────────────────────────────────────────────────────────────────────────────────


def test_there_is_a_launch_configuration_for_every_kind_of_machine():
    names = {path.stem for path in LAUNCH_CONFIGURATIONS}
    assert names == {"one_gpu", "many_gpus", "two_nodes", "fsdp", "cpu"}
    text = (ROOT / "configuration" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`accelerate/(\w+)\.yaml`", text)) == names


@by_stem(LAUNCH_CONFIGURATIONS)
def test_accelerate_takes_a_launch_configuration_and_every_command_in_it_is_understood(path, at_home):
    loaded = load_config_from_file(str(path))  # refuses unknown keys
    assert loaded.num_processes % loaded.num_machines == 0
    assert loaded.use_cpu == (path.stem == "cpu")
    flags = [text for name, value in loaded.fsdp_config.items() for text in (f"--{name}", str(value))]
    launch_command_parser().parse_args([*flags, "script.py"])  # as which accelerate reads them
    commands = commands_in(header_of(path))
    assert any(path.name in " ".join(command) for command in commands)
    for command in commands:
        check(command)


def test_sharding_wraps_a_module_that_the_model_has():
    (fsdp,) = (load_config_from_file(str(path)) for path in LAUNCH_CONFIGURATIONS if path.stem == "fsdp")
    wrapped = fsdp.fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
    for model_class in MODEL_CLASSES.values():
        names = [type(module).__name__ for module in model_class(HTSATConfig(**SMALL)).modules()]
        assert names.count(wrapped) == 1


# ── a place where everything that recipes take for granted is made up ─────────────────────────────────────────────────


def write_sound(path: Path, seed: int = 0, seconds: float = 0.6) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds, 300 + 170 * seed, seed), RATE)


def write_table(path: Path, header: str, *rows: str, delimiter: str = "\t") -> None:
    """Rows with spaces where the table has its delimiter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{delimiter.join(line.split(' '))}\n" for line in (header, *rows)), encoding="utf-8")


def make_folders(folder: Path) -> None:
    for label in ("bark", "meow"):
        for number in range(10):
            write_sound(folder / label / f"{label}{number}.wav", number)


def make_audioset(folder: Path) -> None:
    """Prepared shards, with a balanced part that has no clips for validation, as on the Hub."""
    options = {"test_share": 0.2, "validation_share": 0.2}
    prepare_corpus("folders", folder.parent / "folders", folder, ("train", "validation", "test"), RATE, options=options)
    files = {name: f"{{split: {name}, path: data/{name}-*.parquet}}" for name in ("train", "validation", "test")}
    balanced = f"- {{config_name: balanced, data_files: [{files['train']}, {files['test']}]}}"
    whole = f"- {{config_name: whole, default: true, data_files: [{', '.join(files.values())}]}}"
    (folder / "README.md").write_text(f"---\nconfigs:\n{balanced}\n{whole}\n---\n", encoding="utf-8")


def make_esc50(folder: Path) -> None:
    rows = []
    for fold in range(1, 6):
        for target, category in enumerate(("dog", "rain")):
            for take in range(2):
                name = f"{fold}-{take}-A-{target}.wav"
                write_sound(folder / "audio" / name, target)
                rows.append(f"{name} {fold} {target} {category} {fold}{take}{target}")
    write_table(folder / "meta" / "esc50.csv", "filename fold target category src_file", *rows, delimiter=",")


def make_speech_commands(folder: Path) -> None:
    for number in range(6):
        for word in ("yes", "no"):
            write_sound(folder / word / f"{number}.wav", number)
    for number, name in ((4, "validation_list"), (5, "testing_list")):
        write_table(folder / f"{name}.txt", f"yes/{number}.wav", f"no/{number}.wav")


def make_desed(folder: Path) -> None:
    header, audio = "filename onset offset event_label", folder / "audio"
    for number in range(4):
        write_sound(audio / "train" / "weak" / f"Y{number}.wav", number)
        write_sound(audio / "train" / "synthetic21_train" / "soundscapes" / f"{number}.wav", number)
        write_sound(audio / "validation" / "validation" / f"V{number}.wav", number)
        write_sound(audio / "eval" / "public" / f"E{number}.wav", number)
    events = "{}{} 0.1 0.4 Dog", "{}{} 0.3 0.5 Speech"
    metadata = folder / "metadata"
    write_table(metadata / "train" / "weak.tsv", "filename event_labels", *(f"Y{n}.wav Dog,Speech" for n in range(4)))
    for path, start in (
        ("train/synthetic21_train/soundscapes", ""),
        ("validation/validation", "V"),
        ("eval/public", "E"),
    ):
        rows = [event.format(start, f"{number}.wav") for number in range(4) for event in events]
        write_table(metadata / f"{path}.tsv", header, *rows)


def make_audioset_strong(folder: Path) -> None:
    rows = {"train": [], "eval": []}
    for number in range(30):
        write_sound(folder / "audio" / f"video{number}_0.wav", number % 5)
        rows["train" if number < 26 else "eval"].append(f"video{number}_0 0.1 0.5 /m/{number % 2}")
    for name, some in rows.items():
        header = "segment_id start_time_seconds end_time_seconds label"
        write_table(folder / f"audioset_{name}_strong.tsv", header, *some)
    write_table(folder / "mid_to_display_name.tsv", "/m/0 Dog", "/m/1 Rain")


def make_soundscapes(folder: Path) -> None:
    for split in ("train", "validation", "test"):
        write_soundscapes(folder / split, 4, 0, SoundscapeSettings(clip_seconds=2.0, split_name=split), "flac")


MAKERS = {
    "folders": make_folders,
    "audioset": make_audioset,
    "esc50": make_esc50,
    "speech_commands": make_speech_commands,
    "desed": make_desed,
    "audioset_strong": make_audioset_strong,
    "soundscapes": make_soundscapes,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a small model, its preset, and a corpus of every kind that a recipe names."""
    root = tmp_path_factory.mktemp("place")
    config = HTSATConfig(**SMALL, num_labels=3, problem_type="multi_label_classification")
    config.save_pretrained(root / "preset")
    HTSATModel(config).save_pretrained(root / "htsat-swin")
    HTSATForSoundEventDetection(config).save_pretrained(root / "htsat-audioset")
    at_16khz = HTSATConfig(**config.to_diff_dict() | {"sampling_rate": 16_000, "hop_length": 160})
    HTSATForSoundEventDetection(at_16khz).save_pretrained(root / "htsat-audioset-16khz")
    for name in ("preset", "htsat-swin", "htsat-audioset"):
        HTSATFeatureExtractor(clip_frames=config.clip_frames).save_pretrained(root / name)
    extractor = HTSATFeatureExtractor(clip_frames=config.clip_frames, sampling_rate=16_000, hop_length=160)
    extractor.save_pretrained(root / "htsat-audioset-16khz")
    for name, make in MAKERS.items():
        make(root / name)
    return root


def small_run(run: RunArguments, place: Path, output: Path) -> list[str]:
    """Flags that make two quick steps of a recipe, on made-up data, of what is a whole run."""
    corpus = run.data.corpus
    flags = ["--model", str(place / ("preset" if run.model.model.startswith("configuration/") else run.model.model))]
    flags += ["--data", str(place / corpus), "--output_dir", str(output), "--max_steps", "2", "--use_cpu", "true"]
    flags += ["--per_device_train_batch_size", "30", "--dataloader_num_workers", "0"]  # an epoch is a step
    if run.data.folds:
        flags += ["--folds", "2", "--seeds", "0"]
    if run.final.final_weights == "average":
        flags += ["--average_best", "2", "--test_shifts", "2"]
    if corpus == "audioset_strong":
        flags += ["--data_options", *run.data.data_options, "validation_share=0.2"]  # of very few videos
    return flags


@by_stem(RECIPES)
def test_a_recipe_runs_from_its_corpus_to_its_results(path, recipe, place, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(
        "modeling_htsat.training.reporting.draw_learning_curves", lambda *_: None
    )  # takes half the time
    flags = small_run(recipe(path), place, tmp_path / "run")
    run = recipe(path, *flags)
    run_all(MODEL_CLASSES[Path(launch_of(path).script).name], run)
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    metrics = results["metrics"]
    splits = {"validation", "test"} if run.data.validation_split else {"test"}
    for split in splits:
        assert 0 <= metrics[f"{split}_mean_average_precision"] <= 1
    is_of_events = "run_sound_event_detection.py" in launch_of(path).script
    assert ("test_intersection_f1" in metrics) == is_of_events
    assert results["data"]["clips"].keys() == {"train", *splits}
    assert (tmp_path / "run" / "model.safetensors").stat().st_size > 1000


def test_the_recipe_for_own_sounds_learns_events_too(recipe, place, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_htsat.training.reporting.draw_learning_curves", lambda *_: None)
    path = ROOT / "configuration" / "recipes" / "own_sounds.yaml"
    flags = small_run(recipe(path), place, tmp_path / "run")
    rows = [f"{label}{number}.wav 0.1 0.{number % 4 + 2} {label}" for number in range(10) for label in ("bark", "meow")]
    for row in rows:
        write_sound(tmp_path / row.split()[0])
    write_table(tmp_path / "my_events.tsv", "filename onset offset event_label", *rows)
    own = ["--corpus", "events", "--data", str(tmp_path / "my_events.tsv")]
    metrics = run_all(HTSATForSoundEventDetection, recipe(path, *flags, *own))
    assert "test_intersection_f1" in metrics


# ── the scripts, as programs ──────────────────────────────────────────────────────────────────────────────────────────


def run_program(*command: str, cwd: Path) -> str:
    """What a command that must succeed says."""
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(cwd / "cache")}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def train_flags(place: Path, kind: str) -> list[str]:
    return [
        *("--model", str(place / "htsat-audioset"), "--corpus", kind, "--data", str(place / kind), "--use_cpu", "true"),
        *("--max_steps", "2", "--per_device_train_batch_size", "4", "--save_strategy", "no"),
    ]


def assert_two_steps_were_made(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["arguments"]["max_steps"] == 2
    assert (folder / "model.safetensors").stat().st_size > 1000


def evaluate(place: Path, folder: Path, *launcher: str) -> dict:
    """Scores of the two runs of `folder` as one model."""
    models = ["seed-0", "seed-1"]
    data = ["--corpus", "folders", "--data", str(place / "folders"), "--use_cpu", "true"]
    script = str(SCRIPTS / "run_evaluation.py")
    printed = run_program(*launcher, script, "--models", *models, *data, "--output_dir", "scores", cwd=folder)
    results = json.loads((folder / "scores" / "results.json").read_text(encoding="utf-8"))
    assert "accuracy" in printed
    assert results["model"] == models
    return results["metrics"]


def test_python_starts_the_scripts_for_clips_and_an_ensemble_of_what_they_made(place, tmp_path):
    script = str(SCRIPTS / "run_audio_classification.py")
    recipe = ["--recipe", str(ROOT / "configuration" / "recipes" / "own_sounds.yaml")]
    flags = [*train_flags(place, "folders"), "--load_best_model_at_end", "false", "--final_weights", "last"]
    printed = run_program(script, *recipe, *flags, "--seeds", "0", "1", "--output_dir", str(tmp_path), cwd=tmp_path)
    assert "test_accuracy" in printed
    for seed in (0, 1):
        assert_two_steps_were_made(tmp_path / f"seed-{seed}")
    assert AutoModelForAudioClassification.from_pretrained(tmp_path / "seed-0").config.id2label == {
        0: "bark",
        1: "meow",
    }
    assert 0 <= evaluate(place, tmp_path)["accuracy"] <= 1


def test_python_starts_the_script_for_events(place, tmp_path):
    flags = [*train_flags(place, "soundscapes"), "--output_dir", str(tmp_path / "run")]
    printed = run_program(str(SCRIPTS / "run_sound_event_detection.py"), *flags, cwd=tmp_path)
    assert "test_psds" in printed
    assert_two_steps_were_made(tmp_path / "run")


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": [
        *("-m", "accelerate.commands.accelerate_cli", "launch"),
        *("--config_file", str(ROOT / "configuration" / "accelerate" / "cpu.yaml")),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS)
def test_torchrun_and_accelerate_start_every_script(launcher, place, tmp_path):
    for name, kind in (("run_audio_classification.py", "folders"), ("run_sound_event_detection.py", "soundscapes")):
        seeds = ["--seeds", "0", "1"] if kind == "folders" else []
        flags = [*train_flags(place, kind), *seeds, "--output_dir", str(tmp_path / kind)]
        run_program(*launcher, str(SCRIPTS / name), *flags, cwd=tmp_path)
    assert_two_steps_were_made(tmp_path / "folders" / "seed-1")
    assert_two_steps_were_made(tmp_path / "soundscapes")
    alone = evaluate(place, tmp_path / "folders")
    assert evaluate(place, tmp_path / "folders", *launcher) == pytest.approx(alone, abs=1e-6)


# ── docs/training.md ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def users_folder(place, tmp_path, monkeypatch) -> Path:
    """What the guide takes for granted: a converted model, and sounds of one's own."""
    (tmp_path / "htsat-audioset").symlink_to(place / "htsat-audioset")
    (tmp_path / "my_sounds").symlink_to(place / "folders")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", blocks(GUIDE, "python"), ids=lambda block: block.strip().split("\n")[-1][:30])
def test_every_python_block_of_the_guide_runs(block, users_folder):
    exec(compile(block, "training.md", "exec"), {})


def test_another_front_end_keeps_the_weights_and_halves_the_rate(users_folder):
    (block,) = (block for block in blocks(GUIDE, "python") if "front_end" in block)
    exec(compile(block, "training.md", "exec"), {})
    before, after = (HTSATForSoundEventDetection.from_pretrained(f"htsat-audioset{end}") for end in ("", "-16khz"))
    extractor = HTSATFeatureExtractor.from_pretrained("htsat-audioset-16khz")
    assert (after.config.sampling_rate, after.config.hop_length) == (16_000, 160)
    assert (extractor.sampling_rate, extractor.hop_length) == (16_000, 160)
    assert all(after.state_dict()[name].equal(values) for name, values in before.state_dict().items())
    assert extractor(np.zeros(8_000), sampling_rate=16_000)["input_features"][0].shape[1] == 64


def test_the_commands_of_the_guide_are_understood(at_home):
    commands = [command for block in blocks(GUIDE, "bash") for command in commands_in(block)]
    assert len(commands) == sum(
        not line.startswith(" ") for block in blocks(GUIDE, "bash") for line in block.splitlines()
    )
    started = {Path(taken_apart(command).script).name for command in commands if command[0] != "htsat"}
    assert started == {path.name for path in SCRIPTS.glob("run_*.py")} - {"run_demo.py"}
    for command in commands:
        check(command)


def test_the_options_that_the_guide_gives_to_corpora_are_known(at_home, monkeypatch):
    """Parsing leaves them as they are; the corpus refuses those that it does not know before it looks for data."""
    for command in (command for block in blocks(GUIDE, "bash") for command in commands_in(block)):
        if command[0] == "htsat" or "run_detection" in " ".join(command):
            continue
        launch = taken_apart(command)
        run = parser_of(launch.script)(launch.arguments)
        data = run.data if isinstance(run, RunArguments) else run[0]
        with pytest.raises(ValueError, match="does not exist|cannot be loaded"):
            load_corpus(data.corpus, "not-there", "train", **corpus_options(data.data_options))


def test_the_tables_that_the_guide_shows_are_read_as_it_says(tmp_path):
    (table,), (events,) = blocks(GUIDE, "csv"), blocks(GUIDE, "tsv")
    (tmp_path / "my_sounds.csv").write_text(table, encoding="utf-8")
    (tmp_path / "my_events.tsv").write_text(events, encoding="utf-8")
    for name in {row["filename"] for row in csv.DictReader(table.splitlines())} | set(
        read_events(tmp_path / "my_events.tsv")
    ):
        write_sound(tmp_path / name)
    train = load_corpus("table", tmp_path / "my_sounds.csv", "train").rows.without_audio()
    assert {row["video_id"]: row["labels"] for row in train} == {"yard.flac": ["bark", "rain"], "night.ogg": []}
    held_out = {"validation_share": 0, "test_share": 0}
    rows = load_corpus("events", tmp_path / "my_events.tsv", "train", **held_out).rows.without_audio()
    assert {row["video_id"]: len(row["events"]) for row in rows} == {"yard.flac": 2, "night.ogg": 0}


def test_the_tree_of_folders_that_the_guide_shows_is_a_corpus(tmp_path):
    (tree,) = (block for block in blocks(GUIDE, "text") if "my_sounds/" in block)
    for name in tree.splitlines():
        write_sound(tmp_path / name)
    corpus = load_corpus("folders", tmp_path / "my_sounds", "train", validation_share=0, test_share=0)
    assert corpus.label_names == ("bark", "meow")
    assert len(corpus.rows) == 3


def test_the_guide_names_every_kind_of_corpus_and_every_ending_of_a_run():
    from modeling_htsat.training.arguments import FINAL_WEIGHTS
    from modeling_htsat.training.corpora import CORPORA

    text = GUIDE.read_text(encoding="utf-8")
    for name in (*CORPORA, *FINAL_WEIGHTS):
        assert f"`{name}`" in text


CHECKPOINTING = {"gradient_checkpointing", "activation_checkpointing"}  # before transformers 5.23, and from then on


def test_every_key_that_the_guide_names_exists(at_home):
    """Words in backticks that look like keys: those before a colon, and those of the tables of keys."""
    known = {name for part in (*PARTS, EvaluationArguments) for name in part.__dataclass_fields__}
    text = GUIDE.read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:--)?(\w+)(?:: [^`]*| true)`", text)) | set(re.findall(r"`--(\w+)[ `]", text))
    assert len(named) > 12
    assert CHECKPOINTING & known
    assert named <= known | CHECKPOINTING | {"help"}


def test_every_file_that_the_documents_about_training_link_exists():
    for document in (GUIDE, ROOT / "configuration" / "README.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), target
