"""The promises that CONTRIBUTING and README make about the code itself."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import setuptools
import soundfile

from modeling_htsat import HTSATConfig, HTSATFeatureExtractor, HTSATForSoundEventDetection
from modeling_htsat.cli import make_parser

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "modeling_htsat"
GROUND_FLOOR = sorted(PACKAGE.glob("*_htsat.py"))
GROUND_FLOOR_MAY_IMPORT = {*sys.stdlib_module_names, "huggingface_hub", "numpy", "torch", "tqdm", "transformers"}
AUDIO_READING = {"soundfile", "soxr"}
NOT_IMPORTABLE = {"configuration", "model_cards", "training_scripts", "tests", "benchmarks"}


def imports_of(path: Path) -> list[tuple[str, ast.AST]]:
    """Every import of a file: the module's first name, with leading dots for relative ones."""
    found: list[tuple[str, ast.AST]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name.split(".")[0], node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(("." * node.level + (node.module or "").split(".")[0], node))
    return found


@pytest.mark.parametrize("path", GROUND_FLOOR, ids=lambda path: path.name)
def test_what_travels_to_the_hub_imports_only_siblings_and_what_it_may(path):
    siblings = {f".{file.stem}" for file in GROUND_FLOOR}
    allowed = GROUND_FLOOR_MAY_IMPORT | siblings | (AUDIO_READING if path.name == "audio_htsat.py" else set())
    strangers = {name for name, _ in imports_of(path)} - allowed
    assert not strangers


@pytest.mark.parametrize("path", GROUND_FLOOR, ids=lambda path: path.name)
def test_what_travels_to_the_hub_imports_nothing_inside_functions(path):
    top_level = ast.parse(path.read_text(encoding="utf-8")).body
    inside = [node.lineno for _, node in imports_of(path) if ast.dump(node) not in {ast.dump(top) for top in top_level}]
    assert not inside


def test_imports_between_the_models_files_run_one_way():
    order = ["whole", "hub", "events", "audio", "configuration", "processor", "feature_extraction", "modeling"]
    order += ["pipeline"]
    rank = {f".{name}_htsat": position for position, name in enumerate(order)}
    assert set(rank) == {f".{path.stem}" for path in GROUND_FLOOR}
    for path in GROUND_FLOOR:
        for name, _ in imports_of(path):
            assert name not in rank or rank[name] < rank[f".{path.stem}"], f"{path.name} imports {name}"


def test_nothing_imports_the_folders_of_data_and_scripts():
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "training_scripts").glob("*.py")]:
        assert not {name for name, _ in imports_of(path)} & NOT_IMPORTABLE, path


def test_only_one_name_becomes_importable():
    packages = setuptools.find_packages(str(ROOT), include=["modeling_htsat*"])
    assert {name.split(".")[0] for name in packages} == {"modeling_htsat"}


def test_no_file_names_the_path_of_a_machine():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"(^|[\s\"'(=])/(work|root|home)/")
    for name in tracked:
        if Path(name).suffix in {".py", ".md", ".cfg", ".toml", ".txt", ".yaml", ".json"} and (ROOT / name).exists():
            assert not pattern.search((ROOT / name).read_text(encoding="utf-8")), name


# ── the README ────────────────────────────────────────────────────────────────────────────────────────────────────────


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a document in one language; "" for those that name none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


@pytest.fixture(scope="module")
def users_folder(tmp_path_factory):
    """What the README takes for granted: a converted model, and a recording of a dog."""
    folder = tmp_path_factory.mktemp("user")
    # The last stage must be 768 wide, as the README prints it; one block a stage keeps it quick.
    config = HTSATConfig(depths=(1, 1, 1, 1), num_labels=527, problem_type="multi_label_classification")
    HTSATForSoundEventDetection(config).save_pretrained(folder / "htsat-audioset")
    HTSATFeatureExtractor().save_pretrained(folder / "htsat-audioset")
    noise = np.random.default_rng(0).standard_normal((441000, 2)) * 0.1
    soundfile.write(folder / "dog.wav", noise, 44100)
    return folder


@pytest.mark.parametrize("block", blocks(ROOT / "README.md", "python"), ids=lambda block: block.split("\n")[-2][:40])
def test_every_python_block_of_the_readme_runs(block, users_folder, monkeypatch):
    monkeypatch.chdir(users_folder)
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("block", blocks(ROOT / "configuration" / "README.md", "python"))
def test_every_python_block_about_the_configuration_runs(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(block, "configuration/README.md", "exec"), {})


def test_every_command_of_the_readme_is_one_that_htsat_knows():
    lines = [line for block in blocks(ROOT / "README.md", "bash") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("htsat ")]
    assert len(commands) >= 6
    for command in commands:
        make_parser().parse_args(command)


def test_every_make_word_of_the_documents_exists():
    words = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        named = re.findall(r"^(?:make |.*`make )([a-z-]+)", (ROOT / name).read_text(), re.MULTILINE)
        assert set(named) <= words, name


def test_the_file_tree_of_the_readme_names_every_file_of_the_package_and_none_that_is_missing():
    (tree,) = (block for block in blocks(ROOT / "README.md", "") if "modeling_htsat/" in block)
    inside = re.findall(r"^  ([\w.]+(?:/)?)", tree, re.MULTILINE)
    present = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    present |= {f"{path.parent.name}/" for path in PACKAGE.glob("*/*") if path.parent.name != "__pycache__"}
    assert set(inside) == present
    for name in re.findall(r"^([\w.-]+(?:/\w+)?)", tree, re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_the_demo_script_shows_the_whole_way(tmp_path):
    demo, few = tmp_path / "demo", ["--clips", "32", "--num_train_epochs", "1", "--warmup_steps", "0"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "training_scripts" / "run_demo.py"), "--output", str(demo), *few],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "test_mean_average_precision" in done.stdout and "event_label" in done.stdout
    model = ("config.json", "preprocessor_config.json", "model.safetensors", "README.md", "results.json", "curves.png")
    for name in ("new.flac", "new.png", "found.tsv", *(f"htsat-nano-soundscapes/{file}" for file in model)):
        assert (demo / name).stat().st_size > 20, name
