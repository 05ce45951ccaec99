"""What came from strangers runs nothing, writes nowhere but where it was sent, and fetches nothing from inside.

Checkpoints that are pickles are refused in `test_conversion.py`, redirects and plain private addresses in
`test_audio.py`, pickled weights on their way to the Hub in `test_publish.py`.
"""

import http.server
import io
import json
import os
import pickle
import shutil
import socket
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import torch
import yaml
from conftest import SMALL, enliven
from transformers import Trainer, TrainingArguments

from modeling_htsat import HTSATConfig, HTSATForAudioClassification, HTSATForSoundEventDetection, audio_htsat, cli
from modeling_htsat.audio_htsat import AudioError, load_audio
from modeling_htsat.commands.detect import plot_path
from modeling_htsat.corpus_detection import find_recordings
from modeling_htsat.export import read_metadata
from modeling_htsat.hub.facts import read_facts
from modeling_htsat.hub.publish import publish
from modeling_htsat.labels import load_label_groups
from modeling_htsat.training.corpora import corpus_options, load_corpus
from modeling_htsat.training.prepare import prepare_corpus
from modeling_htsat.training.recipes import parse_recipe
from modeling_htsat.training.shards import ShardRows
from modeling_htsat.training.trainer import HTSATTrainingArguments

RATE = 8_000


class MakesAFolder:
    """Whoever unpickles this makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def canary(tmp_path):
    """A pickle that makes a folder when it is loaded, which must not be there in the end."""
    path = tmp_path / "the pickle was run"
    pickle.loads(pickle.dumps(MakesAFolder(path)))
    path.rmdir()  # so it would
    yield MakesAFolder(path)
    assert not path.exists()


def torch_file(content, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def disguises(canary) -> dict[str, bytes]:
    """The canary in every form that torch and NumPy read pickles in."""
    array = io.BytesIO()
    np.save(array, np.array([canary], dtype=object), allow_pickle=True)
    return {
        "zip": torch_file(canary),
        "legacy": torch_file({"a": canary}, zipped=False),
        "bare": pickle.dumps(canary, 2),
        "array": array.getvalue(),
    }


@pytest.fixture(scope="module")
def own_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    config = HTSATConfig(**SMALL, problem_type="multi_label_classification")
    enliven(HTSATForSoundEventDetection(config)).save_pretrained(folder)
    return folder


@pytest.fixture
def model(own_model, tmp_path) -> Path:
    """A model folder that a test may spoil."""
    return Path(shutil.copytree(own_model, tmp_path / "model"))


@pytest.fixture
def sound(tmp_path) -> Path:
    soundfile.write(tmp_path / "sound.wav", np.random.default_rng(0).standard_normal(RATE) * 0.1, RATE)
    return tmp_path / "sound.wav"


@pytest.fixture(autouse=True)
def caches_of_its_own(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    monkeypatch.setattr("datasets.config.DOWNLOADED_DATASETS_PATH", folder / "downloads")
    monkeypatch.setattr("datasets.config.EXTRACTED_DATASETS_PATH", folder / "downloads" / "extracted")


# ── pickles ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ["zip", "legacy", "bare", "array"])
def test_no_command_runs_the_pickled_weights_of_a_model_folder(form, model, sound, canary, tmp_path, capsys):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(disguises(canary)[form])
    for command in (
        ["detect", sound, "--model", model],
        ["classify", sound, "--model", model],
        ["export", model, tmp_path / "out.pt2", "--format", "torch-export"],
        ["average", model, "--output", tmp_path / "mean"],
        ["publish", model, "me/model", "--dry-run"],
        ["convert", model / "pytorch_model.bin", tmp_path / "converted"],
    ):
        capsys.readouterr()
        assert cli.main([str(word) for word in command]) == 1, command
        said = capsys.readouterr().err
        assert said.startswith("htsat: ") and said.count("\n") == 1, said
    for kind in ("clap", "swin"):
        (model / "config.json").write_text(json.dumps({"model_type": kind}))
        assert cli.main(["convert", str(model), str(tmp_path / "converted")]) == 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A run of one step with its checkpoint, and how to go on from there."""
    folder = tmp_path_factory.mktemp("run")
    examples = [{"input_features": torch.randn(256, 64), "labels": torch.tensor(index)} for index in range(2)]

    def train(**options):
        model = HTSATForAudioClassification(HTSATConfig(**SMALL, problem_type="single_label_classification"))
        settings = {"per_device_train_batch_size": 2, "num_train_epochs": 2, "save_steps": 1, "max_steps": 2}
        settings |= {"use_cpu": True, "report_to": [], "disable_tqdm": True, "dataloader_pin_memory": False}
        Trainer(model, TrainingArguments(str(folder), **settings), train_dataset=examples).train(**options)

    train()
    return folder / "checkpoint-1", train


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_training_goes_on_from_no_pickle(name, checkpoint, canary):
    folder, train = checkpoint
    whole = (folder / name).read_bytes()
    try:
        for form in ("zip", "bare"):
            (folder / name).write_bytes(disguises(canary)[form])
            try:
                train(resume_from_checkpoint=str(folder))
                was_refused = False
            except Exception:  # torch has no class of its own for a refusal
                was_refused = True
            assert was_refused != (name == "training_args.bin"), form  # which nobody reads
    finally:
        (folder / name).write_bytes(whole)


def test_an_exported_program_tells_of_itself_without_being_loaded(model, canary, tmp_path):
    path = tmp_path / "model.pt2"
    assert cli.main(["export", str(model), str(path), "--format", "torch-export"]) == 0
    told = read_metadata(path)
    assert told["architecture"] == "HTSATForSoundEventDetection" and len(told["labels"]) == 5
    hostile = tmp_path / "hostile.pt2"
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(hostile, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            if name.endswith("_weights_config.json"):  # torch.export.load unpickles what is said to be pickled
                listed = json.loads(content)
                for entry in listed["config"].values():
                    entry["use_pickle"] = True
                content = json.dumps(listed).encode()
            elif "/data/" in name and not name.endswith((".json", "version", "serialization_id")):
                content = pickle.dumps(canary, 2)
            after.writestr(name, content)
    assert read_metadata(hostile) == told


def hostile_parquet(path: Path, canary) -> Path:
    """Sounds, and a column of the extension type that older releases of pyarrow unpickled to know what it is."""
    pickled = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(canary)}
    audio = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    fields = [
        pyarrow.field("video_id", pyarrow.string()),
        pyarrow.field("audio", audio),
        pyarrow.field("label", pyarrow.string(), metadata=pickled),
    ]
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(99), RATE, format="WAV")
    row = {"video_id": "a", "audio": {"bytes": buffer.getvalue(), "path": "a.wav"}, "label": "dog"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row] * 3, schema=pyarrow.schema(fields)), path)
    return path


def test_parquet_brings_no_pickle_in(canary, tmp_path):
    path = hostile_parquet(tmp_path / "train-00000-of-00001.parquet", canary)
    assert ShardRows([path])[0]["video_id"] == "a"
    assert len(find_recordings(str(path)).names) == 3
    try:
        corpus = load_corpus("hub", tmp_path, "train", validation_share=0, test_share=0)
    except ValueError as error:
        assert "UnknownExtensionType" in str(error)  # releases of pyarrow that know such types, and make none of them
    else:
        assert corpus.label_names == ("dog",)


@pytest.mark.parametrize("kind", ["script", "pickle", "builder"])
def test_data_sets_of_strangers_run_nothing(kind, canary, tmp_path):
    folder = tmp_path / "stranger"
    folder.mkdir()
    if kind == "script":
        (folder / "stranger.py").write_text(f"import os\nos.mkdir({str(canary.path)!r})\n")
    else:
        (folder / "train.pkl").write_bytes(pickle.dumps(canary))
    if kind == "builder":
        head = {"configs": [{"config_name": "default", "builder_name": "pandas", "data_files": "train.pkl"}]}
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump(head)}---\n")
    with pytest.raises(ValueError):  # in the words of `datasets`, after ours
        load_corpus("hub", folder, "train")


@pytest.mark.parametrize(
    ("suffix", "form", "refusal"),
    [
        *[("npy", "array", "Object arrays cannot be loaded"), ("npz", "arrays", "Object arrays cannot be loaded")],
        *[("pth", form, "weights_only") for form in ("zip", "legacy", "bare")],
        ("ten", "bare", "magic bytes mismatch"),
        *[
            (suffix, form, "")
            for suffix, form in (("pt", "zip"), ("pickle", "bare"), ("pyd", "bare"), ("pkl", "legacy"))
        ],
    ],
)
def test_samples_of_strangers_run_nothing(suffix, form, refusal, canary, sound, tmp_path):
    """Each alone, as reading stops at the first that is refused; those without a refusal stay bytes, which is well."""
    arrays = io.BytesIO()
    np.savez(arrays, np.array([canary], dtype=object), allow_pickle=True)
    content = {**disguises(canary), "arrays": arrays.getvalue()}[form]
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for name, inside in ((f"0.{suffix}", content), ("0.wav", sound.read_bytes()), ("0.txt", b"dog")):
            add_file(archive, name, inside)
    sound.unlink()
    options = {"audio_column": "wav", "label_column": "txt", "validation_share": 0, "test_share": 0}
    if refusal:
        with pytest.raises(ValueError, match=f"cannot be loaded as a data set: .*{refusal}"):
            load_corpus("hub", tmp_path, "train", **options)
    else:
        corpus = load_corpus("hub", tmp_path, "train", **options)
        assert corpus.label_names == ("dog",) and len(load_audio(corpus.rows[0], RATE)) == RATE


def test_packs_and_sounds_are_read_as_what_they_are_and_not_as_pickles(canary, tmp_path):
    for form, content in disguises(canary).items():
        for name in ("pack.h5", "pack.npy", "sound.wav"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(AudioError):
                load_audio(tmp_path / name, RATE)
            with pytest.raises(ValueError, match=name):
                load_corpus("hdf5", tmp_path / name, "train")
        assert form


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir [{}]", "!!python/object/new:os.mkdir {{args: [{}]}}"])
def test_no_yaml_makes_python_objects(tag, canary, tmp_path):
    text = tag.format(json.dumps(str(canary.path)))
    path = tmp_path / "facts.yaml"
    path.write_text(f"summary: {text}\nlearning_rate: {text}\n")
    readers = {
        "recipe": lambda: parse_recipe([HTSATTrainingArguments], ["--recipe", str(path), "--output_dir", "x"]),
        "facts": lambda: read_facts(path),
        "groups": lambda: load_label_groups(path),
        "option": lambda: corpus_options([f"fold={text}"]),
    }
    for name, read in readers.items():
        try:
            read()
        except (ValueError, SystemExit):
            continue
        raise AssertionError(f"{name} was read.")


def test_what_lies_in_the_folder_of_unfinished_work_is_not_unpickled(canary, tmp_path):
    corpus = tmp_path / "corpus" / "train" / "noise"
    corpus.mkdir(parents=True)
    soundfile.write(corpus / "a.wav", np.full(RATE, 0.1), RATE)
    output = tmp_path / "out"
    (output / ".unfinished").mkdir(parents=True)
    (output / ".unfinished" / "writer.tmp").write_bytes(pickle.dumps(canary))
    (output / ".unfinished" / "lock").symlink_to(tmp_path / "lock")
    prepare_corpus("folders", tmp_path / "corpus", output, ["train"], RATE)
    assert not (output / ".unfinished").exists()


# ── code ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model_type", ["htsat", "stranger"])
def test_commands_run_no_code_of_a_model_folder_though_one_says_yes(
    model_type, model, sound, canary, tmp_path, monkeypatch
):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # to `Do you wish to run the custom code?`
    for name in ("configuration_stranger", "modeling_stranger", "pipeline_stranger", "configuration_htsat"):
        (model / f"{name}.py").write_text(f"import os\nos.mkdir({str(canary.path)!r})\n")
    config = json.loads((model / "config.json").read_text())
    config |= {
        "model_type": model_type,
        "auto_map": {
            "AutoConfig": "configuration_stranger.Config",
            "AutoModelForAudioClassification": "modeling_stranger.Model",
            "AutoModelForAudioFrameClassification": "modeling_stranger.Model",
        },
        "custom_pipelines": {
            task: {"impl": "pipeline_stranger.Pipeline", "pt": ["AutoModelForAudioFrameClassification"]}
            for task in ("audio-classification", "sound-event-detection")
        },
    }
    (model / "config.json").write_text(json.dumps(config))
    expected = 0 if model_type == "htsat" else 1  # a type that we know is ours, whatever code lies beside
    assert cli.main(["detect", str(sound), "--model", str(model), "--output", str(tmp_path / "out.tsv")]) == expected
    words = ["export", str(model), str(tmp_path / "out.pt2"), "--format", "torch-export"]
    assert cli.main(words) == expected
    assert cli.main(["card", str(model)]) == expected


# ── names and links that lead outside ─────────────────────────────────────────────────────────────────────────────────


def add_file(archive: tarfile.TarFile, name: str, content: bytes, link: str = ""):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    if link:
        entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, link, 0
    archive.addfile(entry, io.BytesIO(content))


def add_zipped(archive: zipfile.ZipFile, name: str, content: bytes, link: str = ""):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (0o120777 if link else 0o100644) << 16
    archive.writestr(entry, link or content)


def everything_in(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


class World:
    """A folder around all that an archive might reach: where it lies, the caches, and what is none of its business."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.data, self.cache = folder, folder / "home" / "data", folder / "home" / "cache" / "datasets"
        self.extracted = self.cache / "downloads" / "extracted"
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", self.cache)
        monkeypatch.setattr("datasets.config.DOWNLOADED_DATASETS_PATH", self.extracted.parent)
        monkeypatch.setattr("datasets.config.EXTRACTED_DATASETS_PATH", self.extracted)
        self.data.mkdir(parents=True)

    def hostile(self, form: str) -> dict[str, str]:
        """Names without suffixes that lead to every folder up to this one, and for links what they lead to."""
        return {
            "good": {},
            "parents": dict.fromkeys(["a/../../outside", *("../" * depth + "outside" for depth in range(1, 7))], ""),
            "absolute": {f"{self.folder}/outside": ""},
            "links": {"link": str(self.folder), "link/outside": "", "linked": str(self.folder / "secret")},
        }[form]

    def files(self) -> dict[str, bytes]:
        """All but those of the caches' own making."""
        files = {path for path in self.folder.rglob("*") if path.is_file()}
        own = {path for path in files if self.cache in path.parents and "outside" not in path.name}
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files - own}


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    return World(tmp_path / "world", monkeypatch)


def table(label: str) -> bytes:
    return json.dumps({"audio": {"bytes": None, "path": "a.wav"}, "label": label}).encode() + b"\n"


ARCHIVES: dict[str, tuple[str, tuple[str, ...]]] = {
    "extracted": ("train.jsonl.tar.gz", (".jsonl",)),
    "samples": ("train.tar", (".wav", ".txt")),  # these three are read where they lie
    "zipped table": ("train.jsonl.zip", (".jsonl",)),
    "zipped sounds": ("train.zip", (".wav",)),
}
READ = {("extracted", "links"): 2, ("samples", "parents"): 8, ("samples", "absolute"): 2, ("samples", "links"): 2}
REFUSED = {
    ("zipped table", "absolute"): r"\w",  # releases of `datasets` put it in different words
    ("zipped table", "links"): "JSON parse error",  # as the file that a link is in a zip archive holds but its target
    ("zipped sounds", "parents"): r"No \(supported\) data files found",
}


def pack(world: World, kind: str, form: str, sound: Path) -> None:
    """A clip called good, and the same again by hostile names."""
    name, suffixes = ARCHIVES[kind]
    contents = {".jsonl": table("dog"), ".wav": sound.read_bytes(), ".txt": b"dog"}
    for suffix in suffixes:
        (world.folder / f"secret{suffix}").write_bytes(contents[suffix].replace(b"dog", b"secret"))
    is_tar = ".tar" in name
    with tarfile.open(world.data / name, "w") if is_tar else zipfile.ZipFile(world.data / name, "w") as archive:
        add: Any = add_file if is_tar else add_zipped
        if kind == "zipped sounds":
            add(archive, "metadata.csv", b"file_name,label\ngood.wav,dog\n")
        for member, target in {"good": "", **world.hostile(form)}.items():
            if member == "link":
                add(archive, member, b"", target)
                continue
            for suffix in suffixes:
                add(archive, f"{member}{suffix}", contents[suffix], f"{target}{suffix}" if target else "")


@pytest.mark.parametrize("form", ["good", "parents", "absolute", "links"])
@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_write_nothing_outside_of_the_cache(kind, form, world, sound):
    pack(world, kind, form, sound)
    before = world.files()
    options = {"audio_column": "wav", "label_column": "txt"} if kind == "samples" else {}
    options |= {"validation_share": 0, "test_share": 0}
    if (kind, form) in REFUSED:
        with pytest.raises(ValueError, match=f"cannot be loaded as a data set: .*{REFUSED[kind, form]}"):
            load_corpus("hub", world.data, "train", **options)
    else:
        corpus = load_corpus("hub", world.data, "train", **options)
        assert len(corpus.rows) == READ.get((kind, form), 1) and corpus.label_names == ("dog",)
        assert kind == "extracted" or kind == "zipped table" or len(load_audio(corpus.rows[0], RATE)) == RATE
    inside = {path.parents[1] for path in world.extracted.rglob("link/outside.jsonl")}  # a folder like any other there
    new = world.files().keys() - before.keys()
    assert {world.folder / name for name in new} == {folder / "link" / "outside.jsonl" for folder in inside}
    assert {name: content for name, content in world.files().items() if name in before} == before
    extracted = list(world.extracted.rglob("good.jsonl"))
    assert len(extracted) == (kind == "extracted") and all(path.parents[1] == world.extracted for path in extracted)
    assert inside == ({extracted[0].parent} if (kind, form) == ("extracted", "links") else set())


def test_sounds_in_folders_load_by_datasets_without_torchcodec(sound, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    for label in ("owl", "crow"):
        (tmp_path / "data" / label).mkdir(parents=True)
        shutil.copy(sound, tmp_path / "data" / label)
    corpus = load_corpus("hub", tmp_path / "data", "train", validation_share=0, test_share=0)
    assert corpus.label_names == ("crow", "owl") and len(load_audio(corpus.rows[1], RATE)) == RATE


def test_names_of_recordings_lead_no_picture_and_no_shard_outside(tmp_path):
    for name in ("../../a.wav", "/etc/passwd", "..", "a/../../b", "\\..\\b", "~/x"):
        assert plot_path(tmp_path / "plot.png", name, is_only_one=False).parent == tmp_path
    for split_name in ("../x", "/x", "a/b", ".", ".."):
        words = ["soundscapes", tmp_path / "out", "--num-clips", "1", "--split-name", split_name, "--jobs", "1"]
        assert cli.main([str(word) for word in words]) == 1
    assert not list(tmp_path.iterdir())


def test_clips_that_are_called_after_other_folders_stay_in_their_shards(tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(RATE, 0.1), RATE, format="WAV")
    names = ["../../outside", "/outside", "..", "data/train-00000-of-00001.parquet"]
    (tmp_path / "in").mkdir()
    rows = [
        {"video_id": name, "audio": {"bytes": buffer.getvalue(), "path": f"{name}.wav"}, "labels": ["/m/09x0r"]}
        for name in names
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in" / "train-00000-of-00001.parquet")
    before = everything_in(tmp_path)
    work = tmp_path / "work" / "out"
    prepare_corpus("audioset", tmp_path / "in", work, ["train"], RATE)
    new = everything_in(tmp_path) - before - {str(work.parent), str(work)}
    assert {str(Path(path).relative_to(work)) for path in new} == {
        *("README.md", "data", "data/train-00000-of-00001.parquet", "dataset_info.json", "skipped.tsv")
    }


def test_what_a_link_in_a_model_folder_leads_to_is_neither_published_nor_overwritten(model, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("nobody else's business")
    for name in ("README.md", "LICENSE", "curves.png"):
        (model / name).symlink_to(secret)
    (model / "NOTICE").write_text("for everybody")
    (model / "deep").symlink_to(tmp_path)
    published = publish(model, "me/model", dry_run=True)
    assert {"README.md", "LICENSE", "curves.png", "deep/"} <= {*published.left_out, "README.md"}
    assert "NOTICE" in published.sizes and not {"LICENSE", "curves.png"} & set(published.sizes)
    assert published.sizes["README.md"] > 1000  # a card of its own
    assert cli.main(["card", str(model)]) == 0
    assert secret.read_text() == "nobody else's business" and not (model / "README.md").is_symlink()


@pytest.mark.parametrize("lead", ["outdated", "key", "link", "nonsense", "no table", "brackets"])
def test_what_a_model_folder_says_is_left_to_be_moved_changes_nothing_outside_of_it(lead, model, tmp_path):
    folder, theirs = model, tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "letter.txt").write_text("dear")
    staged = folder / ".config.json.0123abcd.staged"
    plan = {"key": "config.json", "content": (folder / "config.json").read_text(), "outdated": []}
    if lead == "outdated":
        plan["outdated"] = ["../theirs/letter.txt", str(theirs / "letter.txt"), "a\0b", "\ud800"]
    elif lead == "key":
        plan |= {"key": "../theirs/letter.txt", "content": "dear", "outdated": ["model.safetensors"]}
    if lead == "link":
        (theirs / "plan.json").write_text(json.dumps(plan))
        staged.symlink_to(theirs)
    else:
        staged.mkdir()
        texts = {"nonsense": "{", "no table": '["key"]', "brackets": "[" * 100_000}
        (staged / "plan.json").write_text(texts.get(lead, json.dumps(plan)))
        (staged / "labels.txt").write_text("moved")
    HTSATForSoundEventDetection.from_pretrained(folder)
    assert (theirs / "letter.txt").read_text() == "dear"
    assert not (folder / "labels.txt").exists() and not (folder / "letter.txt").exists()


def test_a_snapshot_in_the_cache_of_the_hub_is_published_though_it_is_all_links(model, tmp_path):
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "abc", tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (model / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    for number, path in enumerate(sorted(model.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    published = publish(snapshot, "me/model", dry_run=True)
    assert published.sizes["README.md"] == (model / "README.md").stat().st_size and not published.left_out


@pytest.mark.parametrize("name", ["results", "recipe"])
def test_the_facts_of_a_model_put_no_file_from_elsewhere_on_its_card(name, model, tmp_path):
    (tmp_path / "secret.yaml").write_text("password: 1234\n")
    for place in ("../secret.yaml", str(tmp_path / "secret.yaml")):
        (model / "facts.yaml").write_text(f"{name}: {place}\n")
        with pytest.raises(ValueError, match="secret.yaml, which lies outside"):
            publish(model, "me/model", dry_run=True)


def test_what_is_written_takes_the_place_of_a_link_and_not_of_what_it_leads_to(tmp_path):
    (tmp_path / "precious").write_text("keep this")
    for name in ("truth", "found"):
        (tmp_path / f"{name}.tsv").write_text("filename\tonset\toffset\tevent_label\na.wav\t0\t1\tdog\n")
    (tmp_path / "durations.tsv").write_text("filename\tduration\na.wav\t10\n")
    (tmp_path / "scores.json").symlink_to(tmp_path / "precious")
    words = ["evaluate", "events", "--reference", tmp_path / "truth.tsv", "--durations", tmp_path / "durations.tsv"]
    words += ["--detections", tmp_path / "found.tsv", "--json", tmp_path / "scores.json"]
    assert cli.main([str(word) for word in words]) == 0
    assert (tmp_path / "precious").read_text() == "keep this"
    assert "collar" in (tmp_path / "scores.json").read_text()


# ── URLs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Slow(http.server.BaseHTTPRequestHandler):
    """Drips: the status line, the headers, a body of known or unknown length, chunks, redirects without end."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.close_connection = True
        starts = {
            "/status": "HTT",
            "/headers": "HTTP/1.1 200 OK\r\nX-",
            "/known": "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
            "/unknown": "HTTP/1.1 200 OK\r\n\r\n",
            "/chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "/moved": "HTTP/1.1 302 Found\r\nLocation: /moved?again\r\nContent-Length: 0\r\n\r\n",
        }
        self.wfile.write(starts[self.path.partition("?")[0]].encode())
        while not self.server.is_over.wait(0.02) and not self.path.startswith("/moved"):
            try:
                self.wfile.write(b"1\r\nx\r\n" if self.path == "/chunks" else b"x")
            except OSError:
                return

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def slow_site(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        server.asked, server.is_over = [], threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.is_over.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("page", ["/status", "/headers", "/known", "/unknown", "/chunks"])
def test_a_server_that_drips_is_left_when_the_time_is_up(page, slow_site):
    """No byte is ever 30 s late, so that only the whole can be too long."""
    url = f"http://127.0.0.1:{slow_site.server_port}{page}"
    with pytest.raises(AudioError, match=r"takes longer than max_url_seconds=0\.3") as caught:
        load_audio(url, RATE, allow_private_urls=True, max_url_seconds=0.3)
    assert url in str(caught.value)


def test_a_tls_handshake_that_never_ends_is_left_too(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes the connection, and says nothing
        url = f"https://127.0.0.1:{server.getsockname()[1]}/"
        with pytest.raises(AudioError, match="max_url_seconds"):
            load_audio(url, RATE, allow_private_urls=True, max_url_seconds=0.3)


def test_redirects_come_to_an_end(slow_site):
    with pytest.raises(AudioError, match="could not be downloaded"):
        load_audio(f"http://127.0.0.1:{slow_site.server_port}/moved", RATE, allow_private_urls=True)
    assert len(slow_site.asked) <= 20


SPELLINGS = ["2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "0", "0.0.0.0", "[::]", "[::ffff:7f00:1]"]


@pytest.mark.parametrize("host", SPELLINGS)
def test_this_machine_is_private_however_it_is_spelled(host, slow_site):
    with pytest.raises(AudioError, match="private address|could not be downloaded"):
        load_audio(f"http://{host}:{slow_site.server_port}/unknown", RATE)
    assert not slow_site.asked


PRIVATE = ["10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.1.2.3", "255.255.255.255"]
PRIVATE += ["fd00::1", "fe80::1%lo", "fec0::1", "64:ff9b::a00:1", "2002:a00:1::", "::10.0.0.1", "::ffff:192.168.0.1"]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_that_leads_to_a_private_address_is_refused_before_anything_is_sent(address, monkeypatch):
    def find(host, port, *_, **__):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (public, port)) for public in ("93.184.216.34", address)]

    def connect(*_, **__):
        raise AssertionError("There was a connection.")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", find)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(AudioError, match="is at the private address .*allow_private_urls=True permits it"):
        load_audio("http://sounds.example/a.wav", RATE)


def test_a_name_whose_address_changes_behind_the_check_is_told_nothing(slow_site, monkeypatch):
    """As an attacker's name server would have it: the check is told another address than the connection."""
    answers = iter(["93.184.216.34", "127.0.0.1"])

    def find(host, port, *_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(socket, "getaddrinfo", find)
    with pytest.raises(AudioError, match="private address 127"):
        load_audio(f"http://sounds.example:{slow_site.server_port}/unknown", RATE)
    assert not slow_site.asked and next(answers, None) is None


class Proxy(http.server.BaseHTTPRequestHandler):
    """Writes down what it is asked for, and answers for every host; `moved` leads inside."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        is_moved = "moved" in self.path
        self.send_response(302 if is_moved else 200)
        self.send_header("Location", "http://169.254.169.254/latest/meta-data")
        self.end_headers()
        self.wfile.write(b"" if is_moved else self.server.sound)

    def do_CONNECT(self) -> None:
        self.do_GET()

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def proxy(sound, monkeypatch):
    """A proxy that counts as one of the internet, though it runs here."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        server.asked, server.sound = [], sound.read_bytes()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setattr(audio_htsat, "_is_public", lambda address: address == "127.0.0.1" or is_public(address))
        yield server
        server.shutdown()
        thread.join()


is_public = audio_htsat._is_public
INSIDE = ["10.0.0.1", "169.254.169.254", "192.168.1.1:8080", "user@10.0.0.1", "0x0a000001", "167772161", "0", "127.2"]
INSIDE += ["[fd00::1]", "[::1]", "[::ffff:10.0.0.1]", "localhost", "LOCALHOST.", "a.localhost"]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", INSIDE)
def test_a_proxy_is_not_asked_for_private_addresses(host, scheme, proxy):
    with pytest.raises(AudioError, match="is at the private address .*allow_private_urls=True permits it"):
        load_audio(f"{scheme}://{host}/a.wav", RATE)
    assert not proxy.asked


def test_a_proxy_is_asked_for_names_and_for_no_address_inside_that_they_lead_to(proxy):
    assert len(load_audio("http://sounds.example/a.wav", RATE)) == RATE
    with pytest.raises(AudioError, match=r"private address 169\.254\.169\.254"):
        load_audio("http://sounds.example/moved", RATE)
    assert proxy.asked == ["http://sounds.example/a.wav", "http://sounds.example/moved"]
    assert len(load_audio("http://10.0.0.1/a.wav", RATE, allow_private_urls=True)) == RATE
    assert proxy.asked[2:] == ["http://10.0.0.1/a.wav"]


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://127.0.0.1/a.wav", "data:audio/wav;base64,AAAA", "hf://a"]
)
def test_other_kinds_of_addresses_are_taken_for_paths_that_do_not_exist(url):
    with pytest.raises(AudioError, match="does not exist"):
        load_audio(url, RATE)


def test_rows_of_a_data_set_fetch_nothing_from_inside(slow_site):
    url = f"http://127.0.0.1:{slow_site.server_port}/unknown"
    for row in ({"audio": {"bytes": None, "path": url}}, {"path": url, "bytes": None}):
        with pytest.raises(AudioError, match="private address"):
            load_audio(row, RATE)
    assert not slow_site.asked
