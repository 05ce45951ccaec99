"""A teacher's probabilities reach the student by class name, from disk or during training, and say the same."""

import pickle

import numpy as np
import pytest
import soundfile
import soxr
import torch
from safetensors import safe_open
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from modeling_htsat import (
    HTSATAudioClassifierOutput,
    HTSATFeatureExtractor,
    HTSATForAudioClassification,
    HTSATForSoundEventDetection,
)
from modeling_htsat.training import distillation
from modeling_htsat.training.distillation import OnlineTeacher, SoftTargets, cache_soft_targets, distillation_loss

SEVERAL, SINGLE = "multi_label_classification", "single_label_classification"
RATE = 32_000
CLASSES = ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3", "LABEL_4"]
SOME = ["LABEL_3", "LABEL_0"]  # a student's classes, in another order


class Rows:
    """Clips in memory, as encoded files; one that is not audio may be among them."""

    group_sizes = None

    def __init__(self, files: dict[str, bytes]):
        self.names, self.files = list(files), list(files.values())
        self.asked: list[str] = []

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict:
        self.asked.append(self.names[index])
        return {"video_id": self.names[index], "audio": {"bytes": self.files[index], "path": None}}

    def without_audio(self) -> list[dict]:
        return [{"video_id": name} for name in self.names]


@pytest.fixture
def sounds(make_sound):
    """Waveforms of several lengths by name."""
    lengths = {"zebra/a.wav": 50_000, "b": 20_000, "ä": 90_000, "c": 30_000, "d.flac": 81_920}
    return {name: make_sound(length, seed=index) for index, (name, length) in enumerate(lengths.items())}


@pytest.fixture
def rows(sounds, tmp_path):
    files = {}
    for name, sound in sounds.items():
        soundfile.write(tmp_path / "clip.wav", sound, RATE, subtype="FLOAT")
        files[name] = (tmp_path / "clip.wav").read_bytes()
    return Rows(files)


@pytest.fixture
def teacher(make_model):
    return make_model(HTSATForAudioClassification, problem_type=SEVERAL)


@torch.no_grad()
def probabilities_of(model, extractor, sound) -> np.ndarray:
    features = extractor(sound, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return model(**features).logits.sigmoid()[0].numpy()


# ── asked once ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("number_type", "tolerance"), [("float32", 1e-6), ("float16", 5e-4)])
def test_soft_targets_are_the_teachers_probabilities_by_clip_and_class(
    teacher, small_extractor, rows, sounds, tmp_path, number_type, tolerance
):
    options = {"number_type": number_type, "clips_per_part": 2, "batch_size": 3}
    assert cache_soft_targets(teacher, small_extractor, rows, tmp_path / "soft", **options) == []
    whole, some = SoftTargets.load(tmp_path / "soft", CLASSES), SoftTargets.load(tmp_path / "soft", SOME)
    assert len(whole) == 5
    assert sorted(whole) == sorted(sounds)
    for name, sound in sounds.items():
        expected = probabilities_of(teacher, small_extractor, sound)
        assert name in whole
        assert whole[name].dtype == np.float32
        np.testing.assert_allclose(whole[name], expected, atol=tolerance)
        np.testing.assert_array_equal(some[name], whole[name][[3, 0]])


def test_soft_targets_travel_to_other_processes(teacher, small_extractor, rows, tmp_path):
    cache_soft_targets(teacher, small_extractor, rows, tmp_path / "soft")
    targets = SoftTargets.load(tmp_path / "soft", SOME)
    before = targets["b"]  # opens a file
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(targets))["b"], before)


def test_a_clip_that_the_teacher_was_not_asked_about_is_named(teacher, small_extractor, rows, tmp_path):
    cache_soft_targets(teacher, small_extractor, rows, tmp_path / "soft")
    targets = SoftTargets.load(tmp_path / "soft", SOME)
    for stranger in ("e", "a name that is longer than all the others", ""):
        assert stranger not in targets
    with pytest.raises(KeyError, match="no soft targets of the clip e:"):
        targets["e"]


def test_an_interrupted_teacher_goes_on_where_it_stopped(teacher, small_extractor, rows, tmp_path, monkeypatch):
    write, written = distillation._write_part, []

    def killed_after_one(path, *arguments):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *arguments)

    monkeypatch.setattr(distillation, "_write_part", killed_after_one)
    with pytest.raises(KeyboardInterrupt):
        cache_soft_targets(teacher, small_extractor, rows, tmp_path / "soft", clips_per_part=2)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="not complete; make the same"):
        SoftTargets.load(tmp_path / "soft", CLASSES)
    rows.asked.clear()
    cache_soft_targets(teacher, small_extractor, rows, tmp_path / "soft", clips_per_part=2)
    assert rows.asked == rows.names[2:]
    cache_soft_targets(teacher, small_extractor, rows, tmp_path / "whole", clips_per_part=2)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "soft" / path.name).read_bytes()


def test_targets_of_another_teacher_or_of_other_clips_are_not_mixed_in(
    teacher, make_model, small_extractor, rows, tmp_path
):
    cache_soft_targets(teacher, small_extractor, rows, tmp_path / "soft")
    other = make_model(HTSATForAudioClassification, problem_type=SEVERAL)
    with torch.no_grad():
        other.classifier.convolution.bias[0] += 1e-3
    with pytest.raises(ValueError, match="differ in `teacher`"):
        cache_soft_targets(other, small_extractor, rows, tmp_path / "soft")
    reordered = Rows(dict(reversed(list(zip(rows.names, rows.files, strict=True)))))
    with pytest.raises(ValueError, match="differ in `clips`"):
        cache_soft_targets(teacher, small_extractor, reordered, tmp_path / "soft")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="holds no soft targets"):
        cache_soft_targets(teacher, small_extractor, rows, tmp_path / "full")
    with pytest.raises(ValueError, match="holds no soft targets"):
        SoftTargets.load(tmp_path / "full", CLASSES)
    rows.names[1] = rows.names[0]
    with pytest.raises(ValueError, match="share a name"):
        cache_soft_targets(teacher, small_extractor, rows, tmp_path / "twice")
    with pytest.raises(ValueError, match="float16 or float32"):
        cache_soft_targets(teacher, small_extractor, rows, tmp_path / "int", number_type="int8")


def test_clips_that_cannot_be_decoded_are_named_and_not_known(teacher, small_extractor, rows, sounds, tmp_path):
    rows.files[0] = rows.files[3] = b"no sound"
    bad = [rows.names[0], rows.names[3]]
    options = {"batch_size": 1, "clips_per_part": 2}
    assert cache_soft_targets(teacher, small_extractor, rows, tmp_path / "soft", **options) == bad
    assert cache_soft_targets(teacher, small_extractor, rows, tmp_path / "soft", **options) == bad  # asked again
    targets = SoftTargets.load(tmp_path / "soft", CLASSES)
    for name in sounds:
        assert np.isnan(targets[name]).all() == (name in bad)


def test_processes_that_decode_change_nothing(teacher, small_extractor, rows, tmp_path):
    options = {"clips_per_part": 3, "batch_size": 2}
    cache_soft_targets(teacher, small_extractor, rows, tmp_path / "one", **options)
    state = torch.get_rng_state()
    cache_soft_targets(teacher, small_extractor, rows, tmp_path / "two", num_workers=1, **options)
    assert torch.equal(torch.get_rng_state(), state)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_detector_teaches_with_its_clip_scores(make_model, teacher, small_extractor, rows, tmp_path):
    detector = make_model(HTSATForSoundEventDetection)  # the same weights; its classes never exclude one another
    for name, model in (("detector", detector), ("tagger", teacher)):
        cache_soft_targets(model, small_extractor, rows, tmp_path / name, number_type="float32")
    parts = [safe_open(tmp_path / name / "part-00000.safetensors", "np") for name in ("detector", "tagger")]
    one, other = (part.get_tensor("probabilities") for part in parts)
    np.testing.assert_array_equal(one, other)


def test_scores_of_unknown_meaning_are_refused_and_may_be_given_one(make_model, small_extractor, make_sound):
    model = make_model(HTSATForAudioClassification)
    with pytest.raises(ValueError, match="`problem_type` is None"):
        OnlineTeacher(model, small_extractor, SOME, RATE)
    probabilities = OnlineTeacher(model, small_extractor, CLASSES, RATE, problem_type=SINGLE).hear([make_sound(9000)])
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1))


def test_a_class_that_the_teacher_does_not_know_is_named(teacher, small_extractor, rows, tmp_path):
    cache_soft_targets(teacher, small_extractor, rows, tmp_path / "soft")
    with pytest.raises(ValueError, match="does not know the class 'cat' .1 of 2"):
        SoftTargets.load(tmp_path / "soft", ["LABEL_1", "cat"])
    with pytest.raises(ValueError, match="The teacher, a HTSATForAudioClassification, does not know the class 'cat'"):
        OnlineTeacher(teacher, small_extractor, ["cat"], RATE)


# ── asked during training ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_teacher_with_the_same_ears_hears_the_students_features(teacher, small_extractor, sounds):
    waveforms = list(sounds.values())
    inputs = dict(small_extractor(waveforms, sampling_rate=RATE, return_tensors="pt"))
    inputs["labels"] = torch.zeros(5, 2)
    asked = OnlineTeacher(teacher, small_extractor, SOME, RATE, HTSATFeatureExtractor(clip_frames=256))
    assert not asked.needs_waveforms
    by_features = asked(None, inputs)
    by_waveforms = OnlineTeacher(teacher, small_extractor, SOME, RATE)(waveforms, inputs)
    assert not by_features.requires_grad
    assert by_features.shape == (5, 2)
    torch.testing.assert_close(by_features, by_waveforms)
    expected = np.stack([probabilities_of(teacher, small_extractor, sound)[[3, 0]] for sound in waveforms])
    np.testing.assert_allclose(by_features, expected, atol=1e-5)


def test_a_teacher_with_other_ears_hears_resampled_waveforms(make_model, small_extractor, sounds):
    model = make_model(HTSATForAudioClassification, problem_type=SEVERAL, sampling_rate=16_000)
    extractor = HTSATFeatureExtractor(clip_frames=256, sampling_rate=16_000, max_frequency=8000.0)
    asked = OnlineTeacher(model, extractor, SOME, RATE, small_extractor)
    assert asked.needs_waveforms
    waveforms = list(sounds.values())[:2]
    inputs = dict(small_extractor(waveforms, sampling_rate=RATE, return_tensors="pt"))
    heard = [probabilities_of(model, extractor, soxr.resample(sound, RATE, 16_000))[[3, 0]] for sound in waveforms]
    np.testing.assert_allclose(asked(waveforms, inputs), np.stack(heard), atol=1e-5)
    with pytest.raises(ValueError, match="hears waveforms, and none came"):
        asked(None, inputs)


def test_another_model_of_the_hub_teaches_at_its_own_rate(small_extractor, rows, sounds, tmp_path):
    config = ASTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_length=64,
        num_mel_bins=32,
        id2label=dict(enumerate(CLASSES)),
        problem_type=SEVERAL,
    )
    model, extractor = ASTForAudioClassification(config), ASTFeatureExtractor(num_mel_bins=32, max_length=64)
    cache_soft_targets(model, extractor, rows, tmp_path / "soft", number_type="float32")
    kept = SoftTargets.load(tmp_path / "soft", SOME)
    inputs = dict(small_extractor(list(sounds.values()), sampling_rate=RATE, return_tensors="pt"))
    online = OnlineTeacher(model, extractor, SOME, RATE, small_extractor)(list(sounds.values()), inputs)
    expected = np.stack([kept[name] for name in sounds])
    assert ((expected > 0) & (expected < 1)).all()
    np.testing.assert_allclose(online, expected, atol=1e-3)  # files are resampled in blocks
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_scores_for_single_frames_cannot_teach(teacher, small_extractor, make_sound):
    asked = OnlineTeacher(teacher, small_extractor, SOME, RATE)
    asked.model.forward = lambda **inputs: HTSATAudioClassifierOutput(logits=torch.zeros(1, 8, 5))
    with pytest.raises(ValueError, match=r"scores of shape \(1, 8, 5\)"):
        asked.hear([make_sound(9000)])


# ── the loss ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_several_labels_are_compared_by_cross_entropy_and_unknown_ones_do_not_count():
    logits, targets = torch.randn(3, 5), torch.rand(3, 5)
    expected = torch.nn.functional.binary_cross_entropy(logits.sigmoid(), targets)
    torch.testing.assert_close(distillation_loss(logits, targets, SEVERAL), expected)
    torch.testing.assert_close(distillation_loss(logits, targets, None), expected)
    more = torch.cat([targets, torch.full((1, 5), torch.nan)])
    torch.testing.assert_close(distillation_loss(torch.cat([logits, logits[:1]]), more, SEVERAL), expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_single_labels_are_compared_by_divergence_which_is_least_where_they_agree(temperature):
    students, teachers = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    soft, own = (teachers / temperature).softmax(1), (students / temperature).softmax(1)
    expected = temperature**2 * (soft * (soft.log() - own.log())).sum(1).mean()
    loss = distillation_loss(students, teachers.softmax(1), SINGLE, temperature)
    torch.testing.assert_close(loss, expected)
    at_peace = distillation_loss(teachers, teachers.softmax(1), SINGLE, temperature)
    torch.testing.assert_close(at_peace, torch.zeros(()), atol=1e-6, rtol=0)
    unknown = torch.cat([teachers.softmax(1), torch.full((1, 5), torch.nan)])
    more = distillation_loss(torch.cat([students, students[:1]]), unknown, SINGLE, temperature)
    torch.testing.assert_close(more, expected)


def test_certain_teachers_and_unknown_clips_give_finite_gradients():
    targets = torch.tensor([[0.0, 1, 0], [torch.nan] * 3]).half()
    for problem_type in (SINGLE, SEVERAL):
        logits = torch.randn(2, 3, requires_grad=True)
        distillation_loss(logits, targets, problem_type).backward()
        assert logits.grad.isfinite().all()
        assert logits.grad[0].abs().min() > 0
        assert logits.grad[1].abs().max() == 0


def test_what_the_loss_cannot_compare_is_said():
    with pytest.raises(ValueError, match=r"shape \(2, 3\) and logits \(2, 4\)"):
        distillation_loss(torch.zeros(2, 4), torch.zeros(2, 3), SEVERAL)
    with pytest.raises(ValueError, match="`temperature` is 2; it softens single labels alone"):
        distillation_loss(torch.zeros(2, 4), torch.zeros(2, 4), SEVERAL, 2)
