"""Recipes: one run from one file and some flags, what is refused and in which words, and the way back to a file."""

import os
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from modeling_htsat.training.recipes import RecipeError, parse_recipe, recipe_values, write_recipe


@dataclass
class DataArguments:
    """Every kind of field that our own dataclasses have."""

    corpus: str = field(metadata={"help": "where the clips are"})
    fold: int = field(default=1, metadata={"help": "which fold is the test set"})
    gain_db: float | None = field(default=None, metadata={"help": "louder by so much"})
    class_names: list[str] = field(default_factory=lambda: ["dog", "cat"], metadata={"help": "what to listen for"})
    thresholds: list[float] | None = field(default=None, metadata={"help": "one per class"})
    loss: Literal["bce", "ce"] = field(default="bce", metadata={"help": "what is minimised"})
    balanced: bool = field(default=True, metadata={"help": "rare classes as often as others"})
    mixup_alpha: float = field(default=0.5, metadata={"help": "shape of the mixing weights"})
    pooling: dict[str, Any] | str | None = field(default=None, metadata={"help": "a dictionary"})
    title: str | None = field(default=None, metadata={"help": "any text"})
    test_split: str | None = field(default="test", metadata={"help": "the split to report on"})

    def __post_init__(self):
        if self.fold < 0:
            raise ValueError(f"The fold is {self.fold};\n it counts from 0.")


@dataclass
class HTSATTrainingArguments(TrainingArguments):
    """Transformers' own, with one more."""

    learning_rate: float = field(default=3e-4, metadata={"help": "peak of the schedule"})
    average_decay: float | None = field(default=None, metadata={"help": "of the running mean of the weights"})


BOTH = (DataArguments, HTSATTrainingArguments)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """`write("fold: 3")` puts a recipe into the working directory."""
    monkeypatch.chdir(tmp_path)

    def write_text(text: str, name: str = "recipe.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return write_text


def parse(*arguments: str) -> DataArguments:
    return parse_recipe([DataArguments], arguments)[0]


def parse_text(write, text: str, *flags: str) -> DataArguments:
    return parse("--recipe", write("corpus: clips\n" + text), *flags)


def refusal(capsys, *arguments: str, dataclasses=(DataArguments,)) -> str:
    """The sentence with which a command line is refused, after the program's name."""
    with pytest.raises(SystemExit) as caught:
        parse_recipe(dataclasses, arguments)
    printed = capsys.readouterr()
    assert caught.value.code == 2 and not printed.out and printed.err.count("\n") == 1
    return printed.err.partition(": ")[2].strip()


# ── what wins, and how values are read ────────────────────────────────────────────────────────────────────────────────


def test_flags_override_the_recipe_and_the_recipe_overrides_the_defaults(write):
    found = parse("--mixup_alpha", "0.75", "--recipe", write("corpus: clips\nfold: 3\nmixup_alpha: 0.25"))
    assert (found.loss, found.fold, found.mixup_alpha) == ("bce", 3, 0.75)


def test_a_flag_may_set_back_what_the_recipe_says_to_the_default(write):
    assert parse_text(write, "fold: 3\nloss: ce", "--fold", "1", "--loss=bce") == parse("--corpus", "clips")


def test_flags_have_underscores_or_hyphens():
    assert parse("--corpus=a", "--mixup_alpha", "2") == parse("--corpus=a", "--mixup-alpha", "2")


def test_a_required_value_may_stand_in_the_recipe(write):
    assert parse("--recipe", write("corpus: clips")).corpus == "clips"


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "'1e-4'", ".0001", "1E-4"])
def test_a_number_is_a_number_however_it_is_written(write, text):
    assert parse_text(write, f"mixup_alpha: {text}").mixup_alpha == 1e-4


@pytest.mark.parametrize("text", ["no", "1e-4", "012", "2024-01-02", "12:30:00", "0x1f", "on", "-x", "a=b", "1_000"])
def test_text_stays_as_it_is_written_whatever_yaml_would_make_of_it(write, text):
    assert parse_text(write, f"title: {text}").title == text


@pytest.mark.parametrize(("text", "value"), [("false", False), ("no", False), ("True", True), ("'1'", True)])
def test_truth_is_read_as_from_the_command_line(write, text, value):
    assert parse_text(write, f"balanced: {text}").balanced is value


@pytest.mark.parametrize("nothing", ["null", "~", ""])
def test_nothing_is_the_default(write, nothing):
    assert parse_text(write, f"class_names: {nothing}\nfold: {nothing}") == parse("--corpus", "clips")


def test_none_is_none_where_text_may_be_none_and_is_not_by_default(write):
    assert parse_text(write, "test_split: none").test_split is None
    assert parse("--corpus", "clips", "--test_split", "none").test_split is None
    assert parse_text(write, "test_split: none", "--test_split", "dev").test_split == "dev"
    assert parse_text(write, "test_split: ~").test_split == "test"
    assert parse_text(write, "title: none").title == "none"
    assert recipe_values(write("test_split: none"), [DataArguments]) == {"test_split": None}


def test_quotes_make_text_of_what_would_be_nothing(write):
    found = parse_text(write, "title: 'null'\nclass_names: ['~', '']")
    assert (found.title, found.class_names) == ("null", ["~", ""])


def test_lists_may_be_written_in_both_ways_be_short_and_be_empty(write):
    assert parse_text(write, "class_names: [a b, c]").class_names == ["a b", "c"]
    assert parse_text(write, "thresholds:\n- 1e-1\n- -2").thresholds == [0.1, -2.0]
    assert parse_text(write, "class_names: rain").class_names == ["rain"]
    assert parse_text(write, "class_names: []").class_names == []


def test_a_flag_replaces_a_list_of_the_recipe(write):
    assert parse_text(write, "class_names: [a, b, c]", "--class_names", "d").class_names == ["d"]


def test_dictionaries_hold_numbers_where_they_are_written_as_numbers(write):
    text = 'lr_scheduler_kwargs: {min_lr_rate: 1e-2, num_cycles: 3, name: x1, text: "0.5 s", flag: true, none: ~}'
    path = write("output_dir: out\nuse_cpu: true\n" + text)
    (found,) = parse_recipe([HTSATTrainingArguments], ["--recipe", path])
    expected = {"min_lr_rate": 0.01, "num_cycles": 3, "name": "x1", "text": "0.5 s", "flag": True, "none": None}
    assert found.lr_scheduler_kwargs == expected


def test_results_may_go_to_several_services(write):
    path = write("output_dir: out\nuse_cpu: true\nreport_to: [tensorboard, mlflow]")
    assert parse_recipe([HTSATTrainingArguments], ["--recipe", path])[0].report_to == ["tensorboard", "mlflow"]
    none = parse_recipe([HTSATTrainingArguments], ["--recipe", path, "--report_to", "none"])[0]
    assert none.report_to == []


def test_without_a_recipe_transformers_arguments_are_as_when_python_makes_them(tmp_path):
    (found,) = parse_recipe([HTSATTrainingArguments], ["--output_dir", str(tmp_path), "--use_cpu"])
    made = HTSATTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    for each in fields(made):
        assert str(getattr(found, each.name)) == str(getattr(made, each.name)), each.name


def test_what_several_dataclasses_say_comes_back_in_their_order(write):
    path = write("corpus: clips\noutput_dir: out\nuse_cpu: true\nlearning_rate: 1e-3")
    for order in (BOTH, BOTH[::-1]):
        found = parse_recipe(order, ["--recipe", path])
        assert tuple(map(type, found)) == order
        assert {type(each).__name__: each for each in found}["HTSATTrainingArguments"].learning_rate == 1e-3


def test_paths_stay_relative_and_variables_stay_text(write):
    found = parse_text(write, "title: $HOME/~/clips")
    assert found.title == "$HOME/~/clips"


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────

CLIPS = "corpus: clips\n"
BAD_RECIPES = {
    "fodl: 3": "recipe.yaml: unknown key 'fodl' in line 2; did you mean 'fold'?",
    "zzzzz: 3": "recipe.yaml: unknown key 'zzzzz' in line 2; `--help` lists those that there are.",
    "mixup-alpha: 1": "recipe.yaml: unknown key 'mixup-alpha' in line 2; did you mean 'mixup_alpha'?",
    "no_balanced: true": "recipe.yaml: unknown key 'no_balanced' in line 2; did you mean 'balanced'?",
    "recipe: b.yaml": "recipe.yaml: unknown key 'recipe' in line 2; `--help` lists those that there are.",
    "data:\n  fold: 3": "recipe.yaml: unknown key 'data' in line 2; recipes have no headings: write the keys below it "
    "without indentation, and a comment above them.",
    "fold: three": "recipe.yaml: fold in line 2: invalid int value: 'three'",
    "fold: 1e3": "recipe.yaml: fold in line 2: invalid int value: '1e3'",
    "fold: [1, 2]": "recipe.yaml: fold in line 2: takes one value, not a list.",
    "fold: []": "recipe.yaml: fold in line 2: takes a value, not a list.",
    "fold: {a: 1}": "recipe.yaml: fold in line 2: takes a value, not a dictionary.",
    "thresholds: [0.5, high]": "recipe.yaml: thresholds in line 2: invalid float value: 'high'",
    "class_names: [a, [b]]": "recipe.yaml: the list 'class_names' may hold plain values only, and no empty ones.",
    "class_names: [a, ~]": "recipe.yaml: the list 'class_names' may hold plain values only, and no empty ones.",
    "fold: 1\nfold: 2": "recipe.yaml: 'fold' stands in line 2 and in line 3; remove one.",
    "pooling: {a: 1, a: 2}": "recipe.yaml: 'a' stands in line 2 and in line 2; remove one.",
    "[a]: 3": "recipe.yaml: the key in line 2 is not a word.",
    "pooling: {[a]: 3}": "recipe.yaml: the key in line 2 is not a word.",
}


@pytest.mark.parametrize("text", BAD_RECIPES, ids=lambda text: text.replace("\n", " "))
def test_a_bad_line_is_refused_with_its_file_and_its_key(write, capsys, text):
    assert refusal(capsys, "--recipe", write(CLIPS + text)) == BAD_RECIPES[text]


@pytest.mark.parametrize("text", ["loss: mse", "balanced: maybe", "class_names: [--fold, a]"])
def test_what_argparse_refuses_is_said_with_the_file_and_the_key(write, capsys, text):
    key = text.split(":")[0]
    assert refusal(capsys, "--recipe", write(CLIPS + text)).startswith(f"recipe.yaml: {key} in line 2: ")


@pytest.mark.parametrize("text", ["- a\n- b", "just words", "a: [", "a: b: c", "\t- a", "a: 1\n---\nb: 2", "a: \x00"])
def test_what_is_no_recipe_is_refused(write, capsys, text):
    said = refusal(capsys, "--recipe", write(text))
    assert said.startswith(("recipe.yaml: not YAML: ", "recipe.yaml: a recipe is a list of lines"))


def test_a_recipe_that_is_not_there_or_not_text_is_refused(write, tmp_path, capsys):
    write("")
    said = refusal(capsys, "--recipe", "other.yaml")
    assert said == "other.yaml: the recipe cannot be read: No such file or directory."
    assert "the recipe cannot be read" in refusal(capsys, "--recipe", os.curdir)
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff")
    assert refusal(capsys, "--recipe", "binary.yaml").startswith("binary.yaml: not YAML: ")


BAD_FLAGS = {
    ("--fodl", "3"): "unknown flag '--fodl'; did you mean '--fold'?",
    ("--fodl=3",): "unknown flag '--fodl'; did you mean '--fold'?",
    ("--mixup-alpa", "3"): "unknown flag '--mixup-alpa'; did you mean '--mixup_alpha'?",
    ("--recpie", "a.yaml"): "unknown flag '--recpie'; did you mean '--recipe'?",
    ("--zzzzz",): "unknown flag '--zzzzz'; `--help` lists those that there are.",
    ("--mixup", "3"): "unknown flag '--mixup'; ",  # argparse would take it for --mixup_alpha
    ("--fold", "x"): "--fold: invalid int value: 'x'",
    ("--fold",): "--fold: expected one argument",
    ("stray",): "'stray' belongs to no flag; every value needs one, and `--help` lists them.",
    ("a.yaml",): "'a.yaml' belongs to no flag; for a recipe, write `--recipe a.yaml`.",
    ("--recipe", "a.yaml", "--recipe", "b.yaml"): "--recipe is given 2 times; ",
    ("--fold", "-1"): "The fold is -1; it counts from 0.",
}


@pytest.mark.parametrize("flags", BAD_FLAGS, ids=" ".join)
def test_a_bad_flag_is_refused_in_one_sentence(write, capsys, flags):
    assert refusal(capsys, "--corpus", "clips", *flags).startswith(BAD_FLAGS[flags])


def test_what_is_missing_is_named(capsys):
    assert refusal(capsys) == "Still needed, as flags or in the recipe: --corpus."


def test_what_transformers_refuses_is_one_sentence_too(write, capsys):
    text = "output_dir: out\nuse_cpu: true\n"
    for line in ("eval_strategy: sometimes", "accelerator_config: {unknown: 1}", "warmup_steps: -1"):
        said = refusal(capsys, "--recipe", write(text + line), dataclasses=(HTSATTrainingArguments,))
        assert said and "Traceback" not in said


def test_two_dataclasses_may_not_share_a_field():
    with pytest.raises(ValueError, match="2 of the dataclasses have a field 'corpus'"):
        parse_recipe([DataArguments, DataArguments], [])


# ── help ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_shows_our_own_fields_before_those_of_transformers(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_recipe(BOTH[::-1], ["--help"], description="Train something.")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    landmarks = ["Train something.", "--recipe FILE  ", "training:\n", "--learning_rate", "--average_decay", "data:\n"]
    landmarks += ["--corpus", "training: what transformers brings along:\n", "--output_dir", "--num_train_epochs"]
    places = [text.index(landmark) for landmark in landmarks]
    assert places == sorted(places)
    assert "where the clips are (required)\n" in text and "shape of the mixing weights (default: 0.5)" in text


# ── the values of a recipe, and the way back ──────────────────────────────────────────────────────────────────────────


def test_recipe_values_are_checked_and_converted_where_the_dataclasses_are_known(write):
    path = write("corpus: clips\nfold: 3\nmixup_alpha: ~\nclass_names: [a]")
    assert recipe_values(path) == {"corpus": "clips", "fold": "3", "class_names": ["a"]}
    assert recipe_values(path, [DataArguments]) == {"corpus": "clips", "fold": 3, "class_names": ["a"]}
    with pytest.raises(RecipeError, match="unknown key 'corpus'"):
        recipe_values(path, [HTSATTrainingArguments])
    with pytest.raises(RecipeError, match="stands in line"):
        recipe_values(write("fold: 3\nfold: 3"))


def test_a_comment_alone_is_a_recipe_without_values(write):
    assert recipe_values(write("# to come\n")) == {}


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["null", "~", "1e-4", "no", "#"]
)
numbers = st.floats(allow_nan=False)
trees = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
list_items = texts.filter(lambda text: not text.startswith("-"))  # a flag to argparse


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.builds(
        DataArguments,
        corpus=texts,
        fold=st.integers(min_value=0),
        gain_db=st.none() | numbers,
        class_names=st.lists(list_items, max_size=3),
        thresholds=st.none() | st.lists(st.floats(0, 1), min_size=1, max_size=3),
        loss=st.sampled_from(["bce", "ce"]),
        balanced=st.booleans(),
        mixup_alpha=numbers,
        title=st.none() | texts,
        test_split=st.none() | texts.filter(lambda text: text != "none"),
    )
)
@example(DataArguments("clips", class_names=[], gain_db=float("-inf"), title="\x85\ufeff\u2028 x\n"))
def test_a_written_recipe_makes_the_same_instance(tmp_path, arguments):
    path = tmp_path / "recipe.yaml"
    write_recipe(path, [arguments])
    assert parse("--recipe", str(path)) == arguments


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(texts, trees, max_size=4))
def test_dictionaries_survive_the_way_through_a_recipe(tmp_path, values):
    path = tmp_path / "recipe.yaml"
    write_recipe(path, [DataArguments("clips", pooling=values)])
    assert recipe_values(path).get("pooling") == values


TRAININGS: list[dict[str, Any]] = [
    {},
    {"learning_rate": 1e-4, "warmup_steps": 0.1, "weight_decay": 0.05, "adam_epsilon": 1e-12, "average_decay": 0.999},
    {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "mAP",
    },
    {
        "eval_strategy": "steps",
        "logging_steps": 0.25,
        "save_steps": 30,
        "save_total_limit": 2,
        "logging_first_step": True,
    },
    {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 1e-5}, "optim": "sgd"},
    {"accelerator_config": {"even_batches": False, "gradient_accumulation_kwargs": {"sync_each_batch": True}}},
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    {"gradient_checkpointing": True, "torch_compile_mode": "default", "disable_tqdm": True, "bf16": True},
    {"report_to": ["tensorboard"], "debug": "underflow_overflow", "label_names": ["labels", "frame_targets"]},
    {
        "report_to": "all",
        "include_num_input_tokens_seen": True,
        "log_level": "info",
        "ddp_find_unused_parameters": False,
    },
    {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 4, "dataloader_multiprocessing_context": "spawn"},
    {"tf32": False, "max_steps": 7, "run_name": "a: b # c", "resume_from_checkpoint": "out/checkpoint-3", "seed": 0},
    {"hub_strategy": "end", "hub_model_id": "some/model", "hub_private_repo": False, "neftune_noise_alpha": 5},
    {"fsdp_config": {"min_num_params": 3}, "greater_is_better": False, "metric_for_best_model": "eer", "data_seed": 3},
]


@pytest.mark.parametrize("values", TRAININGS, ids=lambda values: " ".join(values) or "defaults")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_written_recipe_makes_the_same_transformers_arguments(tmp_path, values):
    arguments = HTSATTrainingArguments(output_dir="out", use_cpu=True, **values)
    write_recipe(tmp_path / "recipe.yaml", [arguments])
    (again,) = parse_recipe([HTSATTrainingArguments], ["--recipe", str(tmp_path / "recipe.yaml")])
    assert again.to_dict() == arguments.to_dict()


def test_a_written_recipe_says_only_what_differs_from_the_defaults(tmp_path):
    arguments = HTSATTrainingArguments(output_dir="out", use_cpu=True, learning_rate=1e-3, save_steps=500)
    write_recipe(tmp_path / "recipe.yaml", [DataArguments("clips"), arguments])
    written = recipe_values(tmp_path / "recipe.yaml")
    # Pinned memory is switched off by `use_cpu`.
    assert written.pop("dataloader_pin_memory") == "false"
    assert written == {"corpus": "clips", "output_dir": "out", "use_cpu": "true", "learning_rate": "0.001"}


def test_secrets_and_what_a_launcher_sets_are_not_written(tmp_path):
    write_recipe(tmp_path / "recipe.yaml", [HTSATTrainingArguments("out", hub_token="hf_secret", local_rank=3)])
    text = (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    assert "hf_secret" not in text and "local_rank" not in text


def test_what_no_recipe_can_say_is_written_as_a_comment(tmp_path):
    write_recipe(tmp_path / "recipe.yaml", [DataArguments("clips", mixup_alpha=None, title=["a"])])
    text = (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    assert "# No recipe can say this: mixup_alpha is None.\n" in text and "title is ['a']" in text
    assert parse("--recipe", str(tmp_path / "recipe.yaml")) == DataArguments("clips")


def test_a_recipe_is_written_whole(tmp_path):
    write_recipe(tmp_path / "recipe.yaml", [DataArguments("clips")])
    assert os.listdir(tmp_path) == ["recipe.yaml"]


# ── damaged files ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("corpus: a\npooling: {a: &a {x: 1}, b: *a}", "no references"),
        ("pooling: &a {x: *a}", "no references"),
        ("pooling: " + "{a: " * 900 + "1" + "}" * 900, "brackets in brackets"),
        ("fold: " + "[" * 20_000, "brackets in brackets"),
        ("fold: " + "9" * 200_000, "fold in line 1"),
    ],
    ids=["reference", "itself", "tables", "lists", "long"],
)
def test_a_recipe_without_end_is_refused_in_one_short_sentence(text, problem, write):
    with pytest.raises(RecipeError, match=r"recipe\.yaml") as caught:
        recipe_values(write(text), [DataArguments])
    assert problem in str(caught.value) and len(str(caught.value)) < 1100
