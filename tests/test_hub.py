"""Push and pull for real, at a Hub on this machine: models, code, cards and data, with the package and without it."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from fake_hub import FakeHub
from made_up_clips import wav_bytes
from other_process import OtherProcess, OtherProcessError
from safetensors.torch import load, load_file

from modeling_htsat import HTSATFeatureExtractor, HTSATForAudioClassification, HTSATForSoundEventDetection, HTSATModel
from modeling_htsat.configuration_htsat import AUTO_MAP

PARTS = ("configuration", "events", "feature_extraction", "hub", "modeling", "processor", "whole")
CODE = {f"{name}_htsat.py" for name in PARTS}
WHOLE = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", *CODE}
EVERY_CLASS = [HTSATForAudioClassification, HTSATForSoundEventDetection, HTSATModel]


@pytest.fixture(scope="module")
def hub():
    hub = FakeHub()
    yield hub
    hub.close()


@pytest.fixture(autouse=True)
def calm(hub):
    """Every test starts with a Hub that answers, and reads what it asked itself."""
    hub.breaks_at = None
    hub.log.clear()


@pytest.fixture(scope="module")
def installed(hub, tmp_path_factory):
    """A Python that has the package."""
    process = OtherProcess(hub.endpoint, tmp_path_factory.mktemp("installed"))
    yield process
    process.close()


@pytest.fixture(scope="module")
def bare(hub, tmp_path_factory):
    """A Python that lacks the package."""
    process = OtherProcess(hub.endpoint, tmp_path_factory.mktemp("bare"), has_package=False)
    yield process
    process.close()


@pytest.fixture
def save_model(make_model, tmp_path):
    """`save_model(HTSATModel, short_clips="pad")`: the folder of a small model whose every weight has a say."""

    def save(model_class: type = HTSATForAudioClassification, **extractor_values) -> str:
        model = make_model(model_class, problem_type="multi_label_classification")
        folder = tmp_path / model_class.__name__
        model.save_pretrained(folder)
        HTSATFeatureExtractor(**extractor_values, **model.config.front_end).save_pretrained(folder)
        return str(folder)

    return save


def files_of(hub: FakeHub, repo_id: str, revision: str = "main") -> set[str]:
    return set(hub.model(repo_id).files(revision)) - {".gitattributes"}


# ── what the other Pythons do; each function imports what it needs ────────────────────────────────────────────────────


def push(folder, repo_id, options):
    import json
    from pathlib import Path

    import modeling_htsat

    (kind,) = json.loads(Path(folder, "config.json").read_text())["architectures"]
    return str(getattr(modeling_htsat, kind).from_pretrained(folder).push_to_hub(repo_id, **options))


def outputs_of(auto_class, place, trust_remote_code=None):
    import numpy as np
    import torch
    import transformers

    trust = {"trust_remote_code": trust_remote_code}
    extractor = transformers.AutoFeatureExtractor.from_pretrained(place, **trust)
    model = getattr(transformers, auto_class).from_pretrained(place, **trust)
    waveform = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) * 0.1
    with torch.no_grad():
        output = model(**extractor(waveform, sampling_rate=32_000, return_tensors="pt"))
    return (output.logits if "logits" in output else output.last_hidden_state).numpy().tobytes().hex()


def tags_of(arguments, trust_remote_code=None):
    import numpy as np
    from transformers import pipeline

    tagger = pipeline(**arguments, trust_remote_code=trust_remote_code)
    return tagger(np.random.default_rng(0).standard_normal(32_000).astype(np.float32) * 0.1, top_k=5)


def train_and_push(repo_id, new_id, trainer_class="Trainer", folder="trained"):
    import torch
    from transformers import AutoModelForAudioClassification, Trainer, TrainingArguments

    data = [{"input_features": torch.randn(256, 64), "labels": torch.ones(5)} for _ in range(4)]
    options = {"max_steps": 2, "report_to": "none", "use_cpu": True, "per_device_train_batch_size": 2}
    options |= {"push_to_hub": True, "hub_model_id": new_id, "disable_tqdm": True}
    model = AutoModelForAudioClassification.from_pretrained(repo_id, trust_remote_code=True)
    if trainer_class == "Trainer":
        trainer = Trainer(model, TrainingArguments(folder, **options), train_dataset=data)
    else:
        from modeling_htsat.training.trainer import HTSATTrainer, HTSATTrainingArguments

        trainer = HTSATTrainer(model, HTSATTrainingArguments(folder, **options), train_dataset=data)
    trainer.train()
    trainer.push_to_hub()
    return type(model).__module__


# ── push ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model_class", EVERY_CLASS)
def test_a_push_makes_a_repository_that_is_whole_in_one_commit(hub, installed, save_model, model_class):
    name = f"me/{model_class.__name__}"
    installed(push, save_model(model_class), name, {})
    assert files_of(hub, name) == WHOLE
    assert hub.model(name).json("config.json")["auto_map"] == AUTO_MAP
    extractor = hub.model(name).json("preprocessor_config.json")
    assert extractor["auto_map"] == {"AutoFeatureExtractor": AUTO_MAP["AutoFeatureExtractor"]}
    assert len([line for line in hub.log if "/commit/" in line]) == 1


def test_the_card_of_a_push_is_found_by_pipelines_and_names_the_repository(hub, installed, save_model):
    installed(push, save_model(), "me/carded", {"tags": ["birds"]})
    card = hub.model("me/carded").files()["README.md"].decode()
    for part in ("library_name: transformers", "pipeline_tag: audio-classification", "- birds", '"me/carded"'):
        assert part in card


def test_a_card_on_the_hub_is_kept_and_so_is_what_the_extractor_alone_decides(hub, installed, save_model):
    card = b"---\npipeline_tag: audio-classification\n---\n# By hand\n"
    extractor = json.dumps({"short_clips": "pad", "hop_length": 999}).encode()
    hub.make("models", "me/kept", {"README.md": card, "preprocessor_config.json": extractor})
    installed(push, save_model(), "me/kept", {})
    assert hub.model("me/kept").files()["README.md"] == card
    extractor = hub.model("me/kept").json("preprocessor_config.json")
    assert (extractor["short_clips"], extractor["hop_length"]) == ("pad", 320)


def test_tags_are_added_to_a_card_on_the_hub(hub, installed, save_model):
    hub.make("models", "me/tagged", {"README.md": b"---\ntags:\n- birds\n---\n# By hand\n"})
    installed(push, save_model(), "me/tagged", {"tags": "owls"})
    card = hub.model("me/tagged").files()["README.md"].decode()
    assert "# By hand" in card and "- birds\n- owls\n" in card


def test_weights_on_the_hub_are_replaced_whatever_their_names(hub, installed, save_model):
    old = {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}", "pytorch_model.bin": b""}
    hub.make("models", "me/replaced", {**old, "notes.txt": b"kept"})
    installed(push, save_model(), "me/replaced", {})
    assert files_of(hub, "me/replaced") == {*WHOLE, "notes.txt"}


def test_a_push_goes_to_a_new_branch_a_pull_request_or_a_private_repository(hub, installed, save_model):
    folder = save_model()
    installed(push, folder, "me/branched", {"revision": "louder", "private": True})
    assert files_of(hub, "me/branched") == set() and hub.model("me/branched").is_private
    assert files_of(hub, "me/branched", "louder") == WHOLE
    hub.make("models", "them/theirs")
    installed(push, folder, "them/theirs", {"create_pr": True})
    assert files_of(hub, "them/theirs") == set()
    assert files_of(hub, "them/theirs", "refs/pr/1") == WHOLE


def save_and_push(folder, repo_id):
    from transformers import AutoModel

    AutoModel.from_pretrained(folder).save_pretrained("saved", push_to_hub=True, repo_id=repo_id, max_shard_size="20KB")


def test_save_pretrained_pushes_the_same_with_the_same_options(hub, installed, save_model):
    installed(save_and_push, save_model(), "me/saved")
    files = files_of(hub, "me/saved")
    weights = {name for name in files if name.startswith("model-")}
    assert len(weights) > 1 and files == weights | {"model.safetensors.index.json"} | WHOLE - {"model.safetensors"}


def push_parts(folder, repo_id):
    from transformers import AutoConfig, AutoFeatureExtractor

    import modeling_htsat  # noqa: F401  makes both known

    AutoFeatureExtractor.from_pretrained(folder).push_to_hub(repo_id)
    AutoConfig.from_pretrained(folder).push_to_hub(repo_id)


def test_extractor_and_configuration_are_pushed_without_a_card_that_would_stay(hub, installed, save_model):
    folder = save_model(short_clips="pad")
    installed(push_parts, folder, "me/parts")
    of_models = {"README.md", "model.safetensors", "modeling_htsat.py"}
    assert files_of(hub, "me/parts") == WHOLE - of_models
    installed(push, folder, "me/parts", {})
    assert files_of(hub, "me/parts") == WHOLE
    assert hub.model("me/parts").json("preprocessor_config.json")["short_clips"] == "pad"


def push_pipeline(folder, repo_id):
    from transformers import pipeline

    import modeling_htsat  # noqa: F401  makes the task known

    pipeline("sound-event-detection", folder).push_to_hub(repo_id)
    return len(pipeline("sound-event-detection", repo_id)([0.1] * 32_000, threshold=0.0)) > 0


def test_a_pushed_pipeline_is_a_model_that_needs_no_trust_where_the_package_is(hub, installed, save_model):
    assert installed(push_pipeline, save_model(HTSATForSoundEventDetection, short_clips="pad"), "me/pipeline")
    assert files_of(hub, "me/pipeline") == WHOLE
    assert hub.model("me/pipeline").json("preprocessor_config.json")["short_clips"] == "pad"
    assert "custom_pipelines" not in hub.model("me/pipeline").json("config.json")


def push_ensemble(folder, repo_id):
    from modeling_htsat.ensemble import load_ensemble

    load_ensemble([folder, folder], "sound-event-detection").push_to_hub(repo_id)
    return len(load_ensemble([repo_id], "sound-event-detection").members)


def test_an_ensemble_is_pushed_with_its_members_and_found_by_its_name(hub, installed, save_model):
    assert installed(push_ensemble, save_model(HTSATForSoundEventDetection), "me/ensemble") == 2
    members = {f"member-{index}/{name}" for index in range(2) for name in WHOLE - {"README.md"}}
    assert members < files_of(hub, "me/ensemble")


def test_a_push_that_breaks_off_leaves_nothing_that_looks_whole(hub, installed, save_model):
    hub.breaks_at = "POST .*/commit/"
    with pytest.raises(OtherProcessError):
        installed(push, save_model(), "me/half", {})
    assert files_of(hub, "me/half") == set()


@pytest.mark.parametrize("trainer", ["Trainer", "HTSATTrainer"])
def test_a_trainer_pushes_a_model_that_is_whole(hub, installed, save_model, trainer):
    installed(train_and_push, save_model(), f"me/by-{trainer}", trainer, f"by-{trainer}")
    assert files_of(hub, f"me/by-{trainer}") > WHOLE
    assert hub.model(f"me/by-{trainer}").json("config.json")["auto_map"] == AUTO_MAP
    card = hub.model(f"me/by-{trainer}").files()["README.md"].decode()
    assert ("pipeline_tag: audio-classification" in card) == (trainer == "HTSATTrainer")


# ── pull ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def published(hub, installed, save_model):
    """`published(HTSATModel)`: the name of a model on the Hub, and the folder that it came from."""

    def make(model_class: type = HTSATForAudioClassification) -> tuple[str, str]:
        folder, name = save_model(model_class), f"me/pulled-{model_class.__name__}"
        if ("models", name) not in hub.repositories:
            installed(push, folder, name, {})
        return name, folder

    return make


@pytest.mark.parametrize("auto_class", [name for name in AUTO_MAP if name.startswith("AutoModel")])
@pytest.mark.parametrize("model_class", EVERY_CLASS[:2])
def test_outputs_are_the_same_to_the_last_bit_for_every_class(published, installed, bare, model_class, auto_class):
    name, folder = published(model_class)
    expected = outputs_of(auto_class, folder)
    assert bare(outputs_of, auto_class, name, True) == expected
    assert installed(outputs_of, auto_class, name) == expected


def test_an_encoder_runs_as_it_is(published, bare):
    name, folder = published(HTSATModel)
    assert bare(outputs_of, "AutoModel", name, True) == outputs_of("AutoModel", folder)


@pytest.mark.parametrize("model_class", EVERY_CLASS[:2])
def test_the_stock_pipeline_tags_the_same_with_and_without_the_package(published, installed, bare, model_class):
    name, folder = published(model_class)
    task = {"task": "audio-classification"}
    expected = tags_of({**task, "model": folder})
    assert len(expected) == 5
    assert bare(tags_of, {**task, "model": name}, True) == expected
    assert installed(tags_of, {**task, "model": name}) == expected
    assert bare(tags_of, {"model": name}, True) == expected  # the card says which task


def test_a_saved_folder_runs_where_the_package_is_missing(bare, save_model):
    folder = save_model(HTSATForSoundEventDetection)
    for auto_class in ("AutoModelForAudioFrameClassification", "AutoModelForAudioClassification", "AutoModel"):
        assert bare(outputs_of, auto_class, folder, True) == outputs_of(auto_class, folder)


def test_a_process_without_the_package_asks_for_trust(published, bare):
    name, _ = published()
    with pytest.raises(OtherProcessError, match="trust_remote_code=True"):
        bare(outputs_of, "AutoModelForAudioClassification", name, False)


def test_a_process_without_the_package_trains_and_pushes_what_is_whole_again(hub, published, bare):
    name, _ = published()
    assert bare(train_and_push, name, "me/trained-elsewhere").startswith("transformers_modules.")
    assert files_of(hub, "me/trained-elsewhere") > WHOLE
    assert hub.model("me/trained-elsewhere").json("config.json")["auto_map"] == AUTO_MAP
    assert len(bare(outputs_of, "AutoModelForAudioFrameClassification", "me/trained-elsewhere", True)) > 0


def push_again(name, new_name):
    from transformers import AutoModelForAudioClassification

    AutoModelForAudioClassification.from_pretrained(name, trust_remote_code=True).push_to_hub(new_name)


def test_a_process_without_the_package_pushes_a_card_too(hub, published, bare):
    bare(push_again, published()[0], "me/pushed-elsewhere")
    assert files_of(hub, "me/pushed-elsewhere") == WHOLE
    card = hub.model("me/pushed-elsewhere").files()["README.md"].decode()
    assert "pipeline_tag: audio-classification" in card and '("me/pushed-elsewhere", trust_remote_code=True)' in card


def load_from(name, options):
    from transformers import AutoModelForAudioClassification

    import modeling_htsat  # noqa: F401  makes the model known

    AutoModelForAudioClassification.from_pretrained(name, **options)


@pytest.mark.parametrize(
    "name, options, problem",
    [
        ("me/nowhere", {}, "me/nowhere is not a local folder and is not a valid model identifier"),
        ("me/pulled-HTSATForAudioClassification", {"revision": "none"}, "none is not a valid git identifier"),
        ("me/hidden", {"token": False}, "me/hidden is not .*If this is a private repository, .*pass a token"),
    ],
)
def test_what_is_not_on_the_hub_is_named(hub, published, installed, name, options, problem):
    published()
    hub.make("models", "me/hidden", is_private=True)
    with pytest.raises(OtherProcessError, match=f"(?s){problem}"):
        installed(load_from, name, options)


# ── `htsat publish` ───────────────────────────────────────────────────────────────────────────────────────────────────


def htsat(arguments, surroundings):
    import contextlib
    import io
    import os
    import types

    import huggingface_hub.utils._http as http

    from modeling_htsat.cli import main

    http.time = types.SimpleNamespace(sleep=lambda seconds: None)  # between its attempts
    before = dict(os.environ)
    os.environ.update(surroundings)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(arguments)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def publish(installed):
    """`publish(folder, "me/name", "--private")`: exit status, standard output and standard error of the command."""

    def run(*arguments: str, **surroundings: str) -> tuple[int, str, str]:
        return tuple(installed(htsat, ["publish", *arguments], surroundings))

    return run


def test_publish_puts_a_folder_on_the_hub_that_loads_there_to_the_last_bit(hub, publish, bare, save_model):
    folder = save_model(HTSATForSoundEventDetection, short_clips="pad")
    status, out, err = publish(folder, "me/published", "--message", "first light")
    assert (status, err) == (0, "")
    assert f"{hub.endpoint}/me/published/commit/" in out and hub.model("me/published").messages == ["first light"]
    assert files_of(hub, "me/published") == WHOLE
    auto_class = "AutoModelForAudioFrameClassification"
    assert bare(outputs_of, auto_class, "me/published", True) == outputs_of(auto_class, folder)
    assert hub.model("me/published").files()["model.safetensors"] == Path(folder, "model.safetensors").read_bytes()
    for name in ("config.json", "preprocessor_config.json"):
        assert hub.model("me/published").json(name) == json.loads(Path(folder, name).read_text())


def test_what_might_be_unsafe_or_of_no_use_stays_at_home_and_is_named(hub, publish, save_model):
    folder = Path(save_model())
    for name in ("training_args.bin", "optimizer.pt", "best.ckpt", "notes.txt", "own_code.py", ".secret", "NOTICE"):
        (folder / name).write_text("x")
    (folder / "checkpoint-5").mkdir()
    status, out, err = publish(str(folder), "me/tidy")
    left_out = ".secret, best.ckpt, checkpoint-5/, notes.txt, optimizer.pt, own_code.py, training_args.bin"
    assert status == 0 and err == f"htsat: not for the Hub, and left out: {left_out}\n"
    assert files_of(hub, "me/tidy") == WHOLE | {"NOTICE"}


def test_a_dry_run_lists_what_would_come_and_asks_the_hub_nothing(hub, publish, save_model):
    folder = Path(save_model())
    status, out, err = publish(str(folder), "me/dry", "--dry-run")
    listed = dict(reversed(line.split()) for line in out.splitlines())
    assert (status, err) == (0, "") and set(listed) == WHOLE
    assert listed["model.safetensors"] == f"{(folder / 'model.safetensors').stat().st_size:,}"
    assert hub.log == [] and ("models", "me/dry") not in hub.repositories


def test_the_card_in_the_folder_goes_before_that_on_the_hub_which_goes_before_a_new_one(hub, publish, save_model):
    folder = Path(save_model())
    hub.make("models", "me/cards", {"README.md": b"---\nlicense: mit\n---\nthere"})
    publish(str(folder), "me/cards")
    assert hub.model("me/cards").files()["README.md"].endswith(b"there")
    (folder / "README.md").write_text("---\nlicense: mit\n---\nhere")
    publish(str(folder), "me/cards")
    assert hub.model("me/cards").files()["README.md"].endswith(b"here")


def test_publish_goes_to_a_branch_a_pull_request_or_a_private_repository(hub, publish, save_model):
    folder = save_model()
    assert publish(folder, "me/three-ways", "--private", "--revision", "louder")[0] == 0
    assert hub.model("me/three-ways").is_private and files_of(hub, "me/three-ways") == set()
    assert files_of(hub, "me/three-ways", "louder") == WHOLE
    status, out, _ = publish(folder, "me/three-ways", "--create-pr")
    assert status == 0 and f"{hub.endpoint}/me/three-ways/discussions/1" in out
    assert files_of(hub, "me/three-ways", "refs/pr/1") == WHOLE


@pytest.mark.parametrize(
    "name, surroundings, options, problem",
    [
        ("me/new", {"HF_TOKEN": "hf_wrong"}, [], "the Hub does not know the token; run `hf auth login`"),
        ("me/new", {"HF_TOKEN": ""}, [], "the Hub does not know the token; run `hf auth login`"),
        ("me/new", {"HF_TOKEN": "hf_may_only_read"}, [], "the token may not write to me/new; use one that may"),
        ("them/new", {}, [], "the token may not write to them/new"),
        ("them/new", {}, ["--create-pr"], "the token may not write to them/new"),
        ("me/there", {}, ["--revision", "refs/pr/9"], "me/there or the branch is not there"),
        ("me/there", {}, ["--revision", "a b"], r"the Hub refuses it \(Invalid branch name: a b\)"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub, publish, save_model, name, surroundings, options, problem):
    hub.make("models", "me/there")
    status, out, err = publish(save_model(), name, *options, **surroundings)
    assert (status, out) == (1, "") and err.count("\n") == 1
    assert re.match(f"htsat: {name} was not published: {problem}", err)
    assert files_of(hub, "me/there") == set() and ("models", "me/new") not in hub.repositories


@pytest.mark.parametrize("breaks_at", ["POST .*/preupload/", "PUT /lfs/", "POST .*/commit/"])
def test_where_the_network_goes_in_mid_upload_nothing_is_published(hub, publish, save_model, breaks_at):
    name = f"me/broken-at-{breaks_at.strip('/').split('/')[-1]}"
    hub.breaks_at = breaks_at
    status, out, err = publish(save_model(), name)
    assert (status, out) == (1, "") and err.count("\n") == 1
    assert err.startswith(f"htsat: {name} was not published: the Hub cannot be reached, or the upload broke off (")
    assert err.endswith("The Hub takes all or nothing; a repository that was made for it is empty.\n")
    assert files_of(hub, name) == set()
    hub.breaks_at = None
    assert publish(save_model(), name)[0] == 0
    assert files_of(hub, name) == WHOLE


def test_a_card_whose_head_is_not_yaml_is_refused_by_what_is_wrong(hub, publish, save_model):
    folder = save_model()
    Path(folder, "README.md").write_text("---\ntags: [birds\n---\n")
    status, _, err = publish(folder, "me/unreadable")
    assert status == 1 and "the Hub refuses it (Invalid metadata in README.md. - the head is not YAML)" in err
    assert files_of(hub, "me/unreadable") == set()


def test_half_precision_is_published_as_it_is(hub, publish, make_model, tmp_path):
    make_model(HTSATForAudioClassification).bfloat16().save_pretrained(tmp_path)
    assert publish(str(tmp_path), "me/halves")[0] == 0
    here, there = load_file(tmp_path / "model.safetensors"), load(hub.model("me/halves").files()["model.safetensors"])
    assert here.keys() == there.keys() and here["htsat.norm.weight"].dtype == there["htsat.norm.weight"].dtype
    assert all(torch.equal(here[name].float(), there[name].float()) for name in here)


def test_commands_take_a_model_by_its_name_and_say_so_where_there_is_none(published, installed, tmp_path):
    name, folder = published()
    (tmp_path / "a.wav").write_bytes(wav_bytes(np.zeros(32_000, dtype=np.float32)))
    by_name, by_folder, missing = (
        installed(htsat, ["classify", str(tmp_path / "a.wav"), "--model", place], {})
        for place in (name, folder, "me/nowhere")
    )
    assert by_name == by_folder and by_name[0] == 0
    assert missing[:2] == [1, ""] and missing[2].startswith("htsat: The model me/nowhere cannot be loaded: ")


def test_an_upload_that_breaks_off_leaves_the_published_model_as_it_was(hub, publish, published):
    name, folder = published()
    before = dict(hub.model(name).files())
    Path(folder, "NOTICE").write_text("new")
    hub.breaks_at = "POST .*/commit/"
    assert publish(folder, name)[0] == 1
    assert hub.model(name).files() == before


# ── data ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

SPEECH, DOG = "/m/09x0r", "/m/0bt9lr"
PARTS = {"bal_train": 11, "unbal_train": 9, "eval": 4}


def shard(part: str, count: int, path: Path) -> bytes:
    """Clips in the columns of AudioSet on the Hub, three to a row group."""
    sound = wav_bytes(np.linspace(-0.5, 0.5, 3200, dtype=np.float32))
    rows = [
        {
            "video_id": f"{part}{index}",
            "audio": {"bytes": sound, "path": f"{part}{index}.wav"},
            "labels": [SPEECH, DOG][: 1 + index % 2],
            "human_labels": ["Speech", "Dog"][: 1 + index % 2],
        }
        for index in range(count)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)
    return path.read_bytes()


@pytest.fixture(scope="module")
def audioset(hub, tmp_path_factory):
    """AudioSet as it lies on the Hub, but for its length."""
    path = tmp_path_factory.mktemp("shards") / "00.parquet"
    files = {f"data/{part}/00.parquet": shard(part, count, path) for part, count in PARTS.items()}
    splits = "data_files: [{split: train, path: data/bal_train/*.parquet}, {split: test, path: data/eval/*.parquet}]"
    card = f"---\nconfigs:\n- {{config_name: balanced, default: true, {splits}}}\n---\n"
    hub.make("datasets", "agkphysics/AudioSet", {"README.md": card.encode(), **files})
    return "agkphysics/AudioSet"


def stream(name):
    from datasets import Audio, load_dataset

    clips = load_dataset(name, "balanced", split="train", streaming=True).cast_column("audio", Audio(decode=False))
    return [clip["video_id"] for clip in clips]


def test_audioset_is_streamed_by_its_name(installed, audioset):
    assert installed(stream, audioset) == [f"bal_train{index}" for index in range(11)]


def read_corpus(name, split, options):
    from modeling_htsat.training.corpora import load_corpus

    corpus = load_corpus("audioset", name, split, **options)
    rows = [corpus.rows[index] for index in range(len(corpus.rows))]
    sizes = corpus.rows.group_sizes
    labels = [clip["human_labels"] for clip in corpus.rows.without_audio()]
    names, sounds = [row["video_id"] for row in rows], {len(row["audio"]["bytes"]) for row in rows}
    return names, labels, sorted(sounds), list(sizes) if sizes is not None else None, len(corpus.label_names)


@pytest.mark.parametrize("streaming", [False, True])
def test_audioset_is_a_corpus_by_its_name(hub, installed, audioset, streaming):
    names, labels, sounds, sizes, num_labels = installed(read_corpus, audioset, "test", {"streaming": streaming})
    assert names == ["eval0", "eval1", "eval2", "eval3"]
    assert labels == [["Speech"], ["Speech", "Dog"]] * 2
    assert len(sounds) == 1 and sounds[0] > 3200 and num_labels == 527
    assert (sizes == [3, 1]) == streaming


def test_a_stream_is_of_the_revision_that_was_named(hub, installed, audioset):
    data = hub.repositories["datasets", audioset]
    old = data.branches["main"]
    data.commit("main", {name: text for name, text in data.files().items() if "eval" not in name})
    try:
        options = {"streaming": True, "revision": old}
        assert len(installed(read_corpus, audioset, "test", options)[0]) == 4
    finally:
        data.branches["main"] = old


def read_in_workers(name):
    from torch.utils.data import DataLoader

    from modeling_htsat.training.corpora import load_corpus

    rows = load_corpus("audioset", name, "train", streaming=True).rows
    before = rows[0]["video_id"]  # its connection must not be used by the workers
    return [before, *(row["video_id"] for row in DataLoader(rows, batch_size=None, num_workers=2))]


def test_the_workers_of_a_loader_read_a_stream_from_the_hub(installed, audioset):
    names = [f"bal_train{index}" for index in range(11)]
    assert installed(read_in_workers, audioset) == ["bal_train0", *names]


def hear_shards(pattern):
    from modeling_htsat.corpus_detection import find_recordings

    return list(find_recordings(pattern).names)


def test_shards_on_the_hub_are_found_by_their_pattern(installed, audioset):
    names = installed(hear_shards, f"hf://datasets/{audioset}/data/*/*.parquet")
    assert len(names) == 24 and {"eval3", "unbal_train8"} < set(names)


@pytest.mark.parametrize(
    "name, options, problem",
    [
        ("agkphysics/AudioSat", {}, "agkphysics/AudioSat cannot be loaded as a data set"),
        ("agkphysics/AudioSet", {"config": "huge"}, "cannot be loaded as a data set: .*huge"),
        ("agkphysics/AudioSet", {"revision": "none"}, "cannot be loaded as a data set: .*none"),
    ],
)
def test_data_that_is_not_on_the_hub_is_one_sentence(installed, audioset, name, options, problem):
    with pytest.raises(OtherProcessError, match=f"(?s)ValueError: .*{problem}"):
        installed(read_corpus, name, "train", {"streaming": True, **options})
