"""The pages of docs/: every snippet runs, every command is understood, every name and link that they hold exists."""

import contextlib
import importlib.util
import io
import re
import shlex
import shutil
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
import transformers
import yaml
from PIL import Image
from test_conversion import authors_tensors, clap_model, derived_tensors, laion_tensors, msclap_tensors, swin_tensors
from test_house import blocks
from test_recipe_files import check, commands_in, parser_of, taken_apart
from transformers import AutoConfig

from modeling_htsat import HTSATConfig, HTSATFeatureExtractor, HTSATForSoundEventDetection
from modeling_htsat.cli import main as htsat
from modeling_htsat.labels import audioset_labels
from modeling_htsat.training.corpora import CORPORA, corpus_options, load_corpus
from modeling_htsat.training.evaluation import EvaluationArguments
from modeling_htsat.training.recipes import recipe_values
from modeling_htsat.training.runs import PARTS, RunArguments

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ALL_PAGES = sorted(DOCS.glob("*.md"))
PAGES = [page for page in ALL_PAGES if page.name != "training.md"]  # which test_recipe_files.py is about
FIGURES = sorted((DOCS / "figures").glob("*.png"))
MAX_FIGURE_BYTES = 80_000
RATE = 32_000

# What the authors' config.py assigns, in its order.
AUTHORS_VALUES = """
    exp_name workspace dataset_path desed_folder dataset_type index_type balanced_data loss_type resume_checkpoint
    esc_fold debug random_seed batch_size learning_rate max_epoch num_workers lr_scheduler_epoch lr_rate
    enable_token_label class_map_path class_filter retrieval_index token_label_range enable_time_shift
    enable_label_enhance enable_repeat_mode enable_tscam sample_rate clip_samples window_size hop_size mel_bins
    fmin fmax shift_max classes_num patch_size crop_size htsat_window_size htsat_spec_size htsat_patch_size
    htsat_stride htsat_num_head htsat_dim htsat_depth swin_pretrain_path htsat_attn_heatmap htsat_hier_output
    htsat_use_max ensemble_checkpoints ensemble_strides wa_folder wa_model_path esm_model_pathes heatmap_dir
    test_file fl_local fl_dataset fl_class_num fl_audioset_mapping
"""
AUTHORS_MODES = {"train", "test", "esm_test", "save_idc", "weight_average"}
# What the column of counterparts names beside keys, flags, commands and files of ours.
OTHER_WORDS = {"clip_bce", "clip_ce", "esc_fold = 0", "fl_local", "htsat_patch_size", "[config=full]"}
OTHER_WORDS |= {"single_label_classification", "multi_label_classification", "output_attentions=True"}


def by_name(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", paths, ids=lambda path: path.stem)


def commands_of(page: Path) -> list[list[str]]:
    return [command for block in blocks(page, "bash") for command in commands_in(block)]


def load_file(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


# ── what the pages take for granted ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def users_folder(tmp_path_factory) -> Path:
    """A model, recordings, and the checkpoints that people have, all made up."""
    folder = tmp_path_factory.mktemp("user")
    torch.manual_seed(0)
    labels = dict(enumerate(audioset_labels()))
    config = HTSATConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), id2label=labels)
    config.problem_type = "multi_label_classification"
    HTSATForSoundEventDetection(config).save_pretrained(folder / "htsat-audioset")
    HTSATFeatureExtractor().save_pretrained(folder / "htsat-audioset")
    make_recordings(folder)
    make_checkpoints(folder)
    (folder / "configuration").symlink_to(ROOT / "configuration")
    return folder


def make_recordings(folder: Path) -> None:
    random = np.random.default_rng(0)
    names = ["dog.wav", "hour.flac", "recordings/yard.wav", "recordings/night.wav"]
    names += [f"my_sounds/{label}/{label}_{take}.wav" for label in ("bark", "meow") for take in range(10)]
    for name in names:
        seconds = 25 if name == "hour.flac" else 0.5 if name.startswith("my_sounds") else 3
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, random.standard_normal(int(seconds * RATE)) * 0.1, RATE)
    (folder / "recordings" / "broken.wav").write_bytes(b"RIFF, and then nothing")
    rows = ["filename\tonset\toffset\tevent_label", "yard.wav\t0.5\t1.5\tdog", "night.wav\t1.0\t2.0\tcat"]
    (folder / "truth.tsv").write_text("\n".join(rows) + "\n")


def make_checkpoints(folder: Path) -> None:
    """Files with the names that docs/checkpoints.md gives them, and small towers in them."""
    for name, classes, rate in (
        ("HTSAT_AudioSet_Saved_1.ckpt", 527, 32_000),
        ("HTSAT_ESC_exp=1_fold=1_acc=0.985.ckpt", 50, 32_000),
        ("HTSAT_SCV2_Saved_2.ckpt", 35, 16_000),
        ("HTSAT-fullset-imagenet-map=0.467.ckpt", 527, 48_000),
        ("lightning_logs/version_0/checkpoints/last.ckpt", 3, 32_000),
    ):
        state = {f"sed_model.{key}": value for key, value in tower(classes, sampling_rate=rate).items()}
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": state}, folder / name)
    torch.save({"model": swin_tensors()}, folder / "swin_tiny_c24_patch4_window8_256.pth")
    clap_model().save_pretrained(folder / "clap-htsat-unfused")
    laion = {f"module.{key}": value for key, value in laion_tensors().items()}
    torch.save({"state_dict": laion, "epoch": 1}, folder / "630k-audioset-best.pt")
    torch.save({"model": msclap_tensors()}, folder / "CLAP_weights_2023.pth")
    (folder / "my_labels.txt").write_text("bark\nmeow\nrain\n")


def tower(classes: int, sampling_rate: int) -> dict[str, torch.Tensor]:
    return authors_tensors(classes) | derived_tensors(sampling_rate)


@pytest.fixture
def at_home(monkeypatch):
    """Commands are written for the root of the repository."""
    monkeypatch.chdir(ROOT)


# ── Python ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def convert_as_the_page_says(output: str, folder: str | Path = ".") -> None:
    """Run the command of docs/checkpoints.md that makes this folder, in the working directory."""
    commands = [command for command in commands_of(DOCS / "checkpoints.md") if command[1:2] == ["convert"]]
    (command,) = (command for command in commands if command[3] == output)
    assert htsat(["convert", command[2], str(Path(folder) / output), *command[4:]]) == 0


class FolderAsHub:
    """Stands in for a repository on the Hub: a commit is copied to where its name leads in the working directory."""

    def __init__(self, repo_id: str, *_):
        self.repo_id = repo_id

    def fetch(self, name: str, folder: Path) -> None:
        if (Path(self.repo_id) / name).is_file():
            shutil.copyfile(Path(self.repo_id) / name, folder / name)

    def commit(self, folder: Path, *_) -> None:
        shutil.copytree(folder, self.repo_id, dirs_exist_ok=True)


@pytest.fixture
def folder_as_hub(monkeypatch, tmp_path):
    monkeypatch.setattr("modeling_htsat.hub_htsat.HubRepository", FolderAsHub)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@by_name([page for page in PAGES if blocks(page, "python")])
def test_the_python_of_a_page_runs_from_top_to_bottom(page, users_folder, folder_as_hub, monkeypatch, capsys):
    monkeypatch.chdir(users_folder)
    if page.name == "checkpoints.md":
        convert_as_the_page_says("htsat-clap")
        convert_as_the_page_says("htsat-speech-commands")
    if page.name == "publish.md":
        shutil.copytree("htsat-audioset", "my_model", dirs_exist_ok=True)
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)


def test_what_the_page_about_the_model_says_is_printed_is_printed(users_folder, monkeypatch):
    monkeypatch.chdir(users_folder)
    names = {}
    for block in blocks(DOCS / "how_it_works.md", "python"):
        said = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block, "how_it_works.md", "exec"), names)
        assert printed.getvalue().splitlines() == said


def test_fine_tuning_takes_fifteen_lines():
    (block,) = (block for block in blocks(DOCS / "fine_tune.md", "python") if "trainer.train()" in block)
    assert len([line for line in block.splitlines() if line]) == 15


# ── commands ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@by_name([page for page in PAGES if blocks(page, "bash")])
def test_every_command_of_a_page_is_understood(page, at_home):
    commands = commands_of(page)
    lines = [line for block in blocks(page, "bash") for line in block.splitlines() if not line.startswith(" ")]
    assert len(commands) == len(lines), "a line of another program belongs into a block of `console`"
    for command in commands:
        check(command)


@by_name([page for page in PAGES if any("--data_options" in command for command in commands_of(page))])
def test_the_options_that_a_page_gives_to_corpora_are_known(page, at_home):
    for command in commands_of(page):
        if "--data_options" in command:
            launch = taken_apart(command)
            run = parser_of(launch.script)(launch.arguments)
            data = run.data if isinstance(run, RunArguments) else run[0]
            with pytest.raises(ValueError, match="does not exist|cannot be loaded"):
                load_corpus(data.corpus, "not-there", "train", **corpus_options(data.data_options))


def test_the_commands_that_convert_checkpoints_convert_them(users_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(users_folder)
    outputs = [command[3] for command in commands_of(DOCS / "checkpoints.md") if command[1] == "convert"]
    for block in blocks(DOCS / "checkpoints.md", "python"):
        if "audioset-48khz" in block:
            exec(compile(block, "checkpoints.md", "exec"), {})
    for output in outputs:
        convert_as_the_page_says(output, tmp_path)
    made = {output: AutoConfig.from_pretrained(tmp_path / output) for output in outputs}
    sizes = {name: (config.sampling_rate, config.num_labels) for name, config in made.items()}
    assert sizes["htsat-audioset"] == (32_000, 527) and sizes["my-model"] == (32_000, 3)
    assert sizes["htsat-esc50"] == (32_000, 50) and sizes["htsat-speech-commands"] == (16_000, 35)
    assert sizes["htsat-audioset-48khz"] == (48_000, 527)
    assert sizes["htsat-clap"][0] == sizes["htsat-clap-laion"][0] == 48_000
    assert sizes["htsat-clap-microsoft"][0] == 44_100 and "htsat-swin" in sizes
    assert made["htsat-speech-commands"].id2label[1] == "wow"


@pytest.mark.parametrize("page", ["quick_start.md", "long_recordings.md"])
def test_the_commands_that_listen_listen(page, users_folder, monkeypatch, capsys):
    monkeypatch.chdir(users_folder)
    commands = [
        command for command in commands_of(DOCS / page) if command[:2] in (["htsat", "classify"], ["htsat", "detect"])
    ]
    assert commands
    for command in commands:
        assert htsat(command[1:]) == 0, capsys.readouterr().err
        for option in ("--output", "--plot"):
            if option in command:
                assert Path(command[command.index(option) + 1]).stat().st_size > 20


def test_the_dry_run_of_publishing_lists_what_the_page_says(users_folder, monkeypatch, capsys):
    monkeypatch.chdir(users_folder)
    shutil.copytree("htsat-audioset", "my_model", dirs_exist_ok=True)
    (command,) = (command for command in commands_of(DOCS / "publish.md") if "--dry-run" in command)
    assert htsat(command[1:]) == 0
    listed = capsys.readouterr().out
    for name in ("model.safetensors", "config.json", "preprocessor_config.json", "README.md", "modeling_htsat.py"):
        assert name in listed


def test_the_page_of_commands_is_what_the_parsers_say():
    generator = load_file(DOCS / "make_commands.py")
    written, fresh = (DOCS / "commands.md").read_text(encoding="utf-8"), generator.make_page()
    if f"in transformers {transformers.__version__}:" not in written:  # other releases have other flags
        written, fresh = (text.split(generator.LIBRARY_HEADING)[0] for text in (written, fresh))
    assert written == fresh, "run `python docs/make_commands.py`"


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def rows_below(page: Path, heading: str) -> dict[str, str]:
    """First and second cells of all tables in a section, by what stands in backticks in the first."""
    text = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (section,) = (part for part in text if part.startswith(heading))
    return dict(re.findall(r"^\| `([^|`]+)` \| (.*) \|$", section, re.MULTILINE))


def test_every_value_and_mode_of_the_authors_has_a_counterpart_or_a_reason():
    values = rows_below(DOCS / "migration.md", "Values of `config.py`")
    assert sorted(values) == sorted(AUTHORS_VALUES.split())
    text = (DOCS / "migration.md").read_text(encoding="utf-8")
    modes = text.split("## Modes")[1].split("## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", modes, re.MULTILINE)) == AUTHORS_MODES
    for cell in values.values():
        assert "`" in cell or re.match(r"none(: \w|, likewise)", cell), cell


def counterparts() -> list[str]:
    """What stands in backticks in the second column of any table of docs/migration.md."""
    text = (DOCS / "migration.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| [^|]+ \| (.*) \|$", text, re.MULTILINE)
    return sorted({name for cell in cells for name in re.findall(r"`([^`]+)`", cell)} - OTHER_WORDS)


@pytest.mark.parametrize("name", counterparts())
def test_a_counterpart_that_is_named_exists(name, at_home, tmp_path):
    page_of_commands = (DOCS / "commands.md").read_text(encoding="utf-8")
    keys = {key for part in (*PARTS, EvaluationArguments) for key in part.__dataclass_fields__}
    owner, _, attribute = name.partition(".")
    if owner in ("HTSATConfig", "HTSATFeatureExtractor"):
        assert hasattr({"HTSATConfig": HTSATConfig, "HTSATFeatureExtractor": HTSATFeatureExtractor}[owner](), attribute)
    elif name.startswith(("htsat ", "python ")):
        if f"## `{name}" not in page_of_commands:  # a whole command, and not its name alone
            check(shlex.split(name))
    elif name.startswith("--"):
        assert f"| `{name.split()[0]}` |" in page_of_commands
    elif ": " in name:
        (tmp_path / "recipe.yaml").write_text(name)
        assert recipe_values(tmp_path / "recipe.yaml", PARTS)
    elif "/" in name or name.endswith((".py", ".json")):
        assert name == "config.json" or (ROOT / name).exists() or (ROOT / "training_scripts" / name).exists()
    else:
        assert name in keys | set(CORPORA)


@by_name([page for page in PAGES if page.name != "commands.md"])
def test_every_flag_that_a_sentence_names_exists(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    page_of_commands = (DOCS / "commands.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"`--([\w-]+)", text)) - {"help"}:
        assert f"`--{name}`" in page_of_commands or f"`{name}`" in page_of_commands, name  # ours, or of transformers


def test_the_words_of_speech_commands_stand_in_the_presets_order():
    (words,) = (block.split() for block in blocks(DOCS / "checkpoints.md", "text"))
    preset = AutoConfig.from_pretrained(ROOT / "configuration" / "models" / "htsat-tiny-speech-commands-v2")
    assert words == [preset.id2label[index] for index in range(35)]


# ── links and figures ─────────────────────────────────────────────────────────────────────────────────────────────────


def anchors_of(path: Path) -> set[str]:
    """The names of its headings in addresses."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S), re.M
    )
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@by_name(ALL_PAGES)
def test_every_link_of_a_page_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", text):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors_of(path), f"{target}#{anchor}"


def marks_of_tests(sources: dict[str, str]) -> dict[str, list[str]]:
    """The decorators of each test by its name, and what its whole file is marked with."""
    found: dict[str, list[str]] = {}
    for text in sources.values():
        whole = "".join(f"@{mark}\n" for mark in re.findall(r"^pytestmark = (.*)$", text, re.M))
        for marks, name in re.findall(r"((?:^@.*\n(?:^[ )\]].*\n)*)*)^def (test_\w+)\(", text, re.M):
            found.setdefault(name, []).append(marks + whole)
    return found


def wrong_promises(page: str, sources: dict[str, str]) -> list[str]:
    """Tests that a page names and that are not there, or that are slow, or need a browser, and are not said to be.

    What is said in brackets after a name is of this one, `(all slow)` of all in its cell of the table.
    """
    tests, wrong = marks_of_tests(sources), []
    for cell in page.replace("\n", "|").split("|"):
        of_all = " all ".join(re.findall(r"\(all (\w+)", cell))
        for folder, name, suffix, said in re.findall(r"`(tests/)?(test_\w+)(\.py)?`(?: \(([^)]*)\))?", cell):
            marks = tests.get(name, [])
            if folder or suffix:
                wrong += [] if f"{name}{suffix}" in sources else [f"{name}{suffix} is no file"]
                continue
            if len(marks) != 1:
                wrong.append(f"{name} is there {len(marks)} times")
                continue
            for mark in ("slow", "browser"):
                is_said = mark in said or mark in of_all
                if is_said and f"pytest.mark.{mark}" not in marks[0]:
                    wrong.append(f"{name} is not {mark}")
                if not is_said and re.search(rf"^@pytest\.mark\.{mark}\b", marks[0], re.M):
                    wrong.append(f"{name} is {mark}")
    return wrong


def test_every_test_that_the_page_of_promises_names_exists_and_is_as_slow_as_it_says():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")}
    assert len(re.findall(r"`test_\w+`", page)) > 30
    assert not wrong_promises(page, sources)


def test_a_page_of_promises_that_says_something_else_is_noticed():
    sources = {
        "test_a.py": "def test_fast():\n    pass\n\n\n@pytest.mark.slow\n@each(\n    1,\n)\ndef test_long(x):\n",
        "test_b.py": "pytestmark = pytest.mark.browser\n\n\ndef test_seen():\n    pass\n",
        "test_c.py": "@each([6, pytest.param(1, marks=pytest.mark.slow)])\ndef test_some(x):\n    pass\n",
    }
    for right in (
        "`test_fast`, `test_long` (slow), `test_seen` (browser), `tests/test_b.py`",
        "| `test_long` (slow) | `test_fast` |\n| `test_long`, `test_some` (all slow) | `test_fast` |",
        "`test_some`, `test_some` (at every step: slow)",
    ):
        assert wrong_promises(right, sources) == []
    assert wrong_promises("`test_gone`, `tests/test_d.py`", sources) == [
        "test_gone is there 0 times",
        "test_d.py is no file",
    ]
    assert wrong_promises("`test_long`, `test_seen`", sources) == ["test_long is slow", "test_seen is browser"]
    assert wrong_promises("`test_fast` (slow)", sources) == ["test_fast is not slow"]
    assert wrong_promises("`test_long`, `test_fast` (all slow)", sources) == ["test_fast is not slow"]


def test_the_site_has_every_page_once():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    entries = [value for item in site["nav"] for value in item.values()]
    pages = [entry for entry in entries if isinstance(entry, str)]
    pages += [value for entry in entries if isinstance(entry, list) for item in entry for value in item.values()]
    from_outside = {"readme.md", "configuration.md"}
    assert sorted(pages) == sorted({page.name for page in ALL_PAGES} | from_outside)


def test_every_figure_is_small_shown_with_words_and_drawn_by_the_script(tmp_path, monkeypatch):
    shown = {}
    for page in ALL_PAGES:
        shown |= {
            name: words for words, name in re.findall(r"!\[(.+)\]\(figures/(.+)\)", page.read_text(encoding="utf-8"))
        }
    assert set(shown) == {path.name for path in FIGURES}
    assert max(path.stat().st_size for path in FIGURES) < MAX_FIGURE_BYTES
    monkeypatch.setattr("sys.argv", ["draw.py", "--output", str(tmp_path)])
    load_file(DOCS / "figures" / "draw.py").main()
    # Other releases of Matplotlib set letters elsewhere, and differ by up to 11 of 255.
    drawn_with = re.search(r"^matplotlib==(\S+); python_version >=", (ROOT / "constraints.txt").read_text(), re.M)[1]
    limit = 3 if version("matplotlib") == drawn_with else 16
    assert {path.name for path in tmp_path.iterdir()} == set(shown)
    for path in FIGURES:
        kept, drawn = (
            np.asarray(Image.open(place / path.name).convert("RGB"), int) for place in (path.parent, tmp_path)
        )
        assert kept.shape == drawn.shape
        assert np.abs(kept - drawn).mean() < limit, f"{path.name}: run `python docs/figures/draw.py`"
