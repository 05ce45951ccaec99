"""Labels: AudioSet's names in the order of their indices, and groups of classes as DESED and users write them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from modeling_htsat import EventDecoding, decode_events
from modeling_htsat.events_htsat import group_scores
from modeling_htsat.labels import audioset_labels, load_label_groups

PRESET = Path(__file__).parents[1] / "configuration" / "models" / "htsat-tiny-audioset" / "config.json"
# The sets of AudioSet classes of the paper's DESED evaluation, and the authors' thresholds, written out.
DESED = {
    "Speech": ([0, 1, 2, 3, 4, 5, 6, 7], 0.275),
    "Frying": ([366, 367, 368], 0.2),
    "Dishes": ([364], 0.2),
    "Running_water": ([288, 289, 290, 291, 292, 293, 294, 295, 296, 297], 0.23),
    "Blender": ([369], 0.48),
    "Electric_shaver_toothbrush": ([382], 0.2),
    "Alarm_bell_ringing": ([310, *range(388, 403)], 0.18),
    "Cat": ([81, 82, 83, 84, 85], 0.51),
    "Dog": ([74, 75, 76, 77, 78, 79], 0.39),
    "Vacuum_cleaner": ([377], 0.14),
}


@pytest.fixture
def write(tmp_path):
    """`write("Dog: {classes: 74-79}")`: the path of a file of groups that holds this text."""

    def save(text: str) -> Path:
        path = tmp_path / "groups.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return save


def refusal(source) -> str:
    with pytest.raises(ValueError) as caught:
        load_label_groups(source)
    return str(caught.value)


# ── AudioSet ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_audioset_has_527_different_names_in_the_order_of_its_indices():
    labels = audioset_labels()
    assert len(labels) == len(set(labels)) == 527
    known = {0: "Speech", 74: "Dog", 81: "Cat", 137: "Music", 288: "Water", 310: "Car alarm", 526: "Field recording"}
    assert {index: labels[index] for index in known} == known
    # Of class_labels_indices.csv as AudioSet publishes it; one name changed, or two exchanged, changes this.
    assert hashlib.sha256("\n".join(labels).encode()).hexdigest().startswith("0b14c3a038e68262")


def test_the_presets_name_their_classes_alike():
    names = json.loads(PRESET.read_text(encoding="utf-8"))["id2label"]
    assert [names[str(index)] for index in range(527)] == audioset_labels()


# ── groups ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_groups_of_desed_are_those_of_the_paper_with_the_authors_thresholds():
    groups, decoding = load_label_groups("desed")
    assert groups == {name: classes for name, (classes, _) in DESED.items()}
    assert list(groups) == list(DESED)
    assert decoding == EventDecoding(threshold={name: threshold for name, (_, threshold) in DESED.items()})


def test_the_groups_of_desed_hold_what_they_are_called():
    labels = audioset_labels()
    groups, _ = load_label_groups("desed")
    held = {name: [labels[index] for index in indices] for name, indices in groups.items()}
    assert held["Frying"] == ["Chopping (food)", "Frying (food)", "Microwave oven"]  # as the authors have it
    assert held["Electric_shaver_toothbrush"] == ["Electric shaver, electric razor"]
    assert held["Alarm_bell_ringing"][::15] == ["Car alarm", "Whistle"]
    assert held["Cat"] == ["Cat", "Purr", "Meow", "Hiss", "Caterwaul"]


def test_a_group_is_heard_where_any_of_its_classes_is_above_the_groups_threshold():
    groups, decoding = load_label_groups("desed")
    scores = np.full((5, 527), 0.13, dtype=np.float32)
    scores[1, 310] = scores[2, 402] = 0.19  # the first and the last class of Alarm_bell_ringing, one after the other
    scores[4, 377] = 0.15
    scores[:, 80] = 0.99  # between Dog and Cat, and of neither
    events = decode_events(group_scores(scores, groups), 0.5, decoding, list(groups))
    assert [(event["label"], event["onset"], event["offset"]) for event in events] == [
        ("Alarm_bell_ringing", 0.5, 1.5),
        ("Vacuum_cleaner", 2.0, 2.5),
    ]


def test_users_write_groups_of_their_own(write):
    groups, decoding = load_label_groups(
        write(
            "Wärme: {classes: '7, 3-5 ,4', threshold: 0.25}\n2: {classes: 0}\nBell:\n  classes: 1 - 2\n  threshold: 1\n"
        )
    )
    assert groups == {"Wärme": [7, 3, 4, 5, 4], "2": [0], "Bell": [1, 2]}
    assert decoding == EventDecoding(threshold={"Wärme": 0.25, "2": 0.5, "Bell": 1.0})


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "holds no label groups"),
        ("- Dog\n- Cat\n", "holds no label groups"),
        ("Dog: 74-79", "group 'Dog' is '74-79'; it needs `classes`"),
        ("Dog: {threshold: 0.5}", "group 'Dog'"),
        ("Dog: {classes: 74, treshold: 0.5}", "treshold"),
        ("Dog: {classes: 79-74}", "the classes of 'Dog' are '79-74'; write them like `310, 388-402`"),
        ("Dog: {classes: '3, 79-74'}", "the classes of 'Dog'"),
        ("Dog: {classes: '3, , 4'}", "the classes of 'Dog'"),
        ("Dog: {classes: -4}", "the classes of 'Dog'"),
        ("Dog: {classes: bark}", "the classes of 'Dog'"),
        ("Dog: {classes: 1.5}", "the classes of 'Dog'"),
        ("Dog: {classes: }", "the classes of 'Dog'"),
        ("Dog: {classes: 74, threshold: 1.5}", "threshold must hold probabilities from 0 to 1 and holds 1.5"),
        ("Dog: {classes: 74, threshold: loud}", "threshold"),
        ("Dog: {classes: [", "is not a readable YAML file of label groups"),
    ],
)
def test_a_file_that_holds_no_groups_is_refused_by_its_name(write, text, problem):
    path = write(text)
    message = refusal(path)
    assert message.startswith(str(path))
    assert problem in message


def test_a_file_that_cannot_be_read_is_refused_by_its_name(tmp_path):
    assert "none.yaml is not a readable YAML file" in refusal(tmp_path / "none.yaml")
    assert f"{tmp_path} is not a readable YAML file" in refusal(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("Wärme: {classes: 1}".encode("latin-1"))
    assert "latin.yaml is not a readable YAML file" in refusal(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "Dog: {classes: 0-99999999999}",  # a list of which would fill the memory
        "Dog: {classes: " + "9" * 5000 + "}",
        "Dog: " + "[" * 900 + "]" * 900,
        "Dog: {classes: 1, threshold: &x [*x]}",
        "Dog: {classes: !!bool x}",
        "a: &a {x: 1}\n" + "".join(f"b{n}: &b{n} {{x: *{f'b{n - 1}' if n else 'a'}}}\n" for n in range(30)),
    ],
    ids=["range", "number", "brackets", "itself", "tag", "references"],
)
def test_groups_that_would_fill_the_memory_or_run_in_circles_are_refused_in_one_line(write, text):
    path = write(text)
    message = refusal(path)
    assert message.startswith(str(path)) and message.isprintable() and len(message) < 1000
