"""Exported files: they say what the model says, know what they need to know, and are never half written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from conftest import SMALL, enliven
from transformers import pipeline

from modeling_htsat import (
    HTSATAudioClassificationPipeline,
    HTSATConfig,
    HTSATFeatureExtractor,
    HTSATForAudioClassification,
    HTSATForSoundEventDetection,
    HTSATModel,
)
from modeling_htsat.cli import main as htsat
from modeling_htsat.export import export, export_model, formats, read_metadata
from modeling_htsat.export.front_end import LogMelFrontEnd

ROOT = Path(__file__).parents[1]
RATE = 32_000
TWO_STAGES = {**SMALL, "depths": (2, 1), "num_heads": (1, 2)}  # one shifted block; two seconds are 201 of 256 frames
LABELS = ["bark", "meow", "rain", "bell", "purr"]
DECODING = {
    "threshold": {"bark": 0.5, "meow": 0.45, "rain": 0.55, "bell": 0.5, "purr": 0.4},
    "stay_threshold": {"bark": 0.4, "meow": 0.45, "rain": 0.3, "bell": 0.2, "purr": 0.35},
    "median_filter_seconds": {"bark": 0.0, "meow": 0.4, "rain": 0.2, "bell": 0.6, "purr": 0.0},
    "max_gap_seconds": {"bark": 0.15, "meow": 0.0, "rain": 0.3, "bell": 0.0, "purr": 0.2},
    "min_event_seconds": {"bark": 0.2, "meow": 0.0, "rain": 0.0, "bell": 0.3, "purr": 0.5},
}


def make(model_class: type = HTSATForSoundEventDetection, **values) -> torch.nn.Module:
    config = HTSATConfig(**{**TWO_STAGES, "id2label": dict(enumerate(LABELS)), **values})
    return enliven(model_class(config)).eval()


def front_end_of(model: torch.nn.Module, **values) -> HTSATFeatureExtractor:
    return HTSATFeatureExtractor(**model.config.front_end, **values)


def answers(path: Path, sounds: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: sounds.numpy()}), strict=True))


def sigmoid(scores: np.ndarray | torch.Tensor) -> np.ndarray:
    return torch.as_tensor(scores).sigmoid().numpy()


@pytest.fixture
def make_sounds(make_sound):
    def stack(num_clips: int, seconds: float, seed: int = 0) -> torch.Tensor:
        return torch.from_numpy(np.stack([make_sound(round(seconds * RATE), seed + clip) for clip in range(num_clips)]))

    return stack


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    """The folder of a detector with a tuned decoding, and in it what is exported of it: model.onnx, for two seconds."""
    folder = tmp_path_factory.mktemp("detector")
    model = make(event_decoding=DECODING, problem_type="multi_label_classification")
    model.save_pretrained(folder)
    assert htsat(["export", str(folder), str(folder / "model.onnx")]) == 0
    return folder


def load_detector(folder: Path) -> tuple[HTSATForSoundEventDetection, HTSATFeatureExtractor]:
    return HTSATForSoundEventDetection.from_pretrained(folder), HTSATFeatureExtractor.from_pretrained(folder)


# ── the front end ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("short_clips", ["repeat", "pad", "stretch"])
@pytest.mark.parametrize(("length", "hop"), [(1024, 320), (512, 80), (401, 160), (1000, 441)])
def test_the_front_end_hears_what_the_feature_extractor_hears(make_sounds, length, hop, short_clips):
    extractor = HTSATFeatureExtractor(window_length=length, hop_length=hop, clip_frames=256, short_clips=short_clips)
    sounds = make_sounds(2, 0.9)
    expected = extractor(sounds, RATE, return_tensors="pt")["input_features"]
    heard = LogMelFrontEnd(extractor, sounds.shape[1])(sounds)
    assert heard.shape == expected.shape
    assert (heard - expected).abs().max() < 1e-3  # decibels


def test_silence_is_as_silent_as_for_the_feature_extractor():
    extractor = HTSATFeatureExtractor()
    assert torch.equal(LogMelFrontEnd(extractor, RATE)(torch.zeros(1, RATE)), torch.full((1, 1010, 64), -100.0))


# ── ONNX ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_takes_waveforms_says_what_extractor_and_model_say(detector, make_sounds):
    model, extractor = load_detector(detector)
    sounds = make_sounds(1, 2.0)
    with torch.no_grad():
        expected = model(**extractor(sounds, RATE, return_tensors="pt"))
    said = answers(detector / "model.onnx", sounds)
    assert list(said) == ["logits", "clip_logits", "pooler_output"]
    assert said["logits"].shape == (1, model.config.num_steps, 5)
    for name in ("logits", "clip_logits"):
        np.testing.assert_allclose(sigmoid(said[name]), sigmoid(expected[name]), atol=1e-4, rtol=0)
    np.testing.assert_allclose(said["pooler_output"], expected.pooler_output, atol=1e-3, rtol=0)


def test_a_file_that_takes_features_takes_any_number_of_clips(tmp_path, make_features):
    model = make()
    file = export_model(model, front_end_of(model), tmp_path / "x.onnx", input="features", dynamic_batch=True)
    assert (file.input_name, file.input_shape) == ("input_features", ("batch", 201, 64))
    for num_clips in (1, 3):
        features = make_features(num_clips, 201, seed=num_clips)
        with torch.no_grad():
            expected = model(features)
        said = answers(file.path, features)
        np.testing.assert_allclose(sigmoid(said["logits"]), sigmoid(expected.logits), atol=1e-4, rtol=0)
        np.testing.assert_allclose(sigmoid(said["clip_logits"]), sigmoid(expected.clip_logits), atol=1e-4, rtol=0)


def test_a_classifier_of_waveforms_takes_any_number_of_clips_and_repeats_short_ones(tmp_path, make_sounds):
    model = make(HTSATForAudioClassification, depths=(1,), num_heads=(1,))
    file = export_model(model, front_end_of(model), tmp_path / "x.onnx", dynamic_batch=True, seconds=0.5)
    assert file.input_shape == ("batch", RATE // 2)
    for num_clips in (1, 3):
        sounds = make_sounds(num_clips, 0.5)
        with torch.no_grad():
            expected = model(**front_end_of(model)(sounds, RATE, return_tensors="pt")).logits
        said = answers(file.path, sounds)
        assert list(said) == ["logits", "pooler_output"]
        np.testing.assert_allclose(sigmoid(said["logits"]), sigmoid(expected), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_one_clip_may_be_longer_than_a_window(tmp_path, make_sounds):
    model = make(depths=(2,), num_heads=(1,))
    extractor = front_end_of(model)
    file = export_model(model, extractor, tmp_path / "x.onnx", seconds=5)
    sounds = make_sounds(1, 5.0)
    with torch.no_grad():
        expected = model(**extractor(sounds, RATE, return_tensors="pt")).logits
    said = answers(file.path, sounds)["logits"]
    assert said.shape == (1, model.config.num_steps_of(501), 5)
    np.testing.assert_allclose(sigmoid(said), sigmoid(expected), atol=1e-4, rtol=0)
    assert file.metadata["seconds_per_step"] == 0.04  # 4 frames; shorter clips are stretched


@pytest.mark.slow
def test_an_encoder_gives_its_map_and_its_embedding(tmp_path, make_sounds):
    model = make(HTSATModel, depths=(1,), num_heads=(1,))
    file = export_model(model, front_end_of(model), tmp_path / "x.onnx")
    sounds = make_sounds(1, 2.0)
    with torch.no_grad():
        expected = model(**front_end_of(model)(sounds, RATE, return_tensors="pt"))
    said = answers(file.path, sounds)
    assert list(said) == ["last_hidden_state", "pooler_output"]
    np.testing.assert_allclose(said["pooler_output"], expected.pooler_output, atol=1e-3, rtol=0)


def test_a_file_tells_nothing_of_the_machine_that_wrote_it(detector):
    assert str(ROOT).encode() not in (detector / "model.onnx").read_bytes()


def test_a_model_that_is_training_goes_on_training(tmp_path):
    model = make(hidden_dropout_prob=0.5).train()
    file = export_model(model, front_end_of(model), tmp_path / "x.pt2", format="torch-export")
    assert file.difference < 1e-4 and model.training and model.htsat.training
    assert str(ROOT).encode() not in file.path.read_bytes()


# ── 8 bits ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def listener():
    """A classifier that has learned to tell three tones apart, and noisy tones `(clips, samples)` with classes."""
    model = HTSATForAudioClassification(HTSATConfig(**{**TWO_STAGES, "embed_dim": 32, "num_labels": 3}))
    extractor = front_end_of(model)
    classes = torch.arange(24) % 3
    time = torch.arange(2 * RATE) / RATE
    tones = torch.sin(2 * torch.pi * (torch.tensor([300.0, 1200.0, 5000.0])[classes])[:, None] * time)
    sounds = 0.1 * tones + 0.1 * torch.randn(24, 2 * RATE)
    features = extractor(sounds, RATE, return_tensors="pt")["input_features"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(12):
        optimizer.zero_grad()
        model(features[:12], labels=classes[:12]).loss.backward()
        optimizer.step()
    return model.eval(), extractor, sounds[12:], classes[12:]


def test_8_bits_are_smaller_and_say_nearly_the_same(listener, tmp_path):
    model, extractor, sounds, classes = listener
    file, small = (export_model(model, extractor, tmp_path / f"{int8}.onnx", int8=int8) for int8 in (False, True))
    near = np.concatenate([answers(small.path, sounds[clip : clip + 1])["logits"] for clip in range(len(sounds))])
    near = torch.as_tensor(near).softmax(1)
    with torch.no_grad():
        exact = model(**extractor(sounds, RATE, return_tensors="pt")).logits.softmax(1)
    assert (exact.argmax(1) == classes).all() and exact.max() > 0.7  # it has learned something that can be lost
    assert (near.argmax(1) == classes).all()
    assert 0 < (near - exact).abs().max() < 0.05
    assert 0 < small.difference < 0.05
    # The front end's tables stay as they are.
    tables = 4 * (2 * 513**2 + 513 * 64)
    assert small.path.stat().st_size - tables < 0.7 * (file.path.stat().st_size - tables)
    graph = onnx.load(small.path).graph
    shapes = [tuple(weight.dims) for weight in graph.initializer if weight.data_type == onnx.TensorProto.FLOAT]
    assert shapes.count((513, 513)) == 2 and (513, 64) in shapes


# ── torch.export ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_program_loads_and_says_what_the_model_says(detector, tmp_path, make_sounds):
    model, extractor = load_detector(detector)
    path = tmp_path / "model.pt2"
    assert htsat(["export", str(detector), str(path), "--format", "torch-export", "--dynamic-batch"]) == 0
    program = torch.export.load(path).module()
    for num_clips in (1, 3):
        sounds = make_sounds(num_clips, 2.0)
        with torch.no_grad():
            expected, said = model(**extractor(sounds, RATE, return_tensors="pt")), program(sounds)
        assert list(said) == ["logits", "clip_logits", "pooler_output"]
        for name in ("logits", "clip_logits"):
            np.testing.assert_allclose(sigmoid(said[name]), sigmoid(expected[name]), atol=1e-4, rtol=0)
    assert read_metadata(path) == read_metadata(detector / "model.onnx")


# ── metadata ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_knows_labels_rate_steps_and_thresholds(detector):
    facts = read_metadata(detector / "model.onnx")
    assert facts["labels"] == LABELS and facts["problem_type"] == "multi_label_classification"
    assert (facts["sampling_rate"], facts["clip_samples"], facts["seconds_per_step"]) == (RATE, 2 * RATE, 2 / 32)
    assert facts["architecture"] == "HTSATForSoundEventDetection" and facts["clip_function"] == "sigmoid"
    assert facts["package"] == "modeling-htsat" and facts["package_version"]
    assert facts["front_end"]["hop_length"] == 320 and facts["front_end"]["short_clips"] == "repeat"
    decoding = facts["event_decoding"]
    for name in ("threshold", "stay_threshold", "max_gap_seconds", "min_event_seconds"):
        assert decoding[name] == [DECODING[name][label] for label in LABELS]
    assert decoding["median_filter_steps"] == [1, 7, 3, 11, 1]


# ── the predictor of the documentation ────────────────────────────────────────────────────────────────────────────────

WITHOUT_TORCH = "import runpy, sys; sys.modules['torch'] = sys.modules['modeling_htsat'] = None; "
WITHOUT_TORCH += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


def predict(model: Path, sound: Path) -> tuple[dict[str, float], list[tuple]]:
    """What docs/predict_onnx.py prints, where there is no torch: tags, and events sorted by onset and label."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(ROOT / "docs" / "predict_onnx.py"), str(model), str(sound)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    tags, events = done.stdout.split("\n\n")
    rows = [line.split("\t") for line in events.splitlines()]
    found = [(float(onset), float(offset), float(score), label) for onset, offset, score, label in rows]
    return {label: float(score) for score, label in (line.split("\t") for line in tags.splitlines())}, sorted(
        found, key=lambda event: (event[0], event[3])
    )


def write_sound(path: Path, sound: np.ndarray) -> Path:
    soundfile.write(path, sound, RATE, subtype="PCM_16")
    return path


def flicker(make_sound, seconds: float) -> np.ndarray:
    """Sound that comes and goes, so that there are events."""
    samples = round(seconds * RATE)
    return make_sound(samples) * (np.sin(2 * np.pi * 1.3 * np.arange(samples) / RATE) > 0)


@pytest.mark.parametrize("channels", [1, 2])
def test_the_predictor_finds_what_the_pipelines_find(detector, tmp_path, make_sound, channels):
    sound = flicker(make_sound, 2.0)
    path = write_sound(tmp_path / "x.wav", np.stack([sound, 0.5 * sound], axis=1) if channels == 2 else sound)
    tags, events = predict(detector / "model.onnx", path)
    tagger = pipeline("audio-classification", str(detector), pipeline_class=HTSATAudioClassificationPipeline)
    expected = {tag["label"]: tag["score"] for tag in tagger(str(path))}
    assert tags == pytest.approx(expected, abs=2e-4)
    found = pipeline("sound-event-detection", str(detector))(str(path))
    assert len(found) > 3 and len({event["label"] for event in found}) > 1
    assert [event[3] for event in events] == [event["label"] for event in found]
    for (onset, offset, score, _), event in zip(events, found, strict=True):
        assert (onset, offset) == pytest.approx((event["onset"], event["offset"]), abs=1e-3)
        assert score == pytest.approx(event["score"], abs=2e-4)


@pytest.mark.parametrize("seconds", [0.7, 4.9])
def test_the_events_of_the_predictor_lie_within_shorter_and_longer_recordings(detector, tmp_path, make_sound, seconds):
    path = write_sound(tmp_path / "x.wav", flicker(make_sound, seconds))
    _, events = predict(detector / "model.onnx", path)
    assert events and all(0 <= onset < offset <= seconds + 1e-3 for onset, offset, _, _ in events)
    assert max(offset for _, offset, _, _ in events) > seconds - 1.5


def test_the_predictor_tags_with_a_classifier(tmp_path, make_sound):
    model = make(HTSATForAudioClassification, problem_type="single_label_classification", depths=(1,), num_heads=(1,))
    model.save_pretrained(tmp_path / "model")
    export_model(model, front_end_of(model), tmp_path / "model.onnx")
    path = write_sound(tmp_path / "x.wav", make_sound(2 * RATE))
    tags, events = predict(tmp_path / "model.onnx", path)
    tagger = pipeline("audio-classification", str(tmp_path / "model"), pipeline_class=HTSATAudioClassificationPipeline)
    assert tags == pytest.approx({tag["label"]: tag["score"] for tag in tagger(str(path))}, abs=2e-4)
    assert events == []


def test_the_predictor_has_thirty_lines_below_its_docstring():
    lines = (ROOT / "docs" / "predict_onnx.py").read_text(encoding="utf-8").splitlines()
    assert lines[0].endswith('"""') and len([line for line in lines[1:] if line]) <= 30


# ── what cannot be ────────────────────────────────────────────────────────────────────────────────────────────────────

ONNX, PROGRAM = ["x.onnx"], ["x.pt2", "--format", "torch-export"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x.pt2"], ["'.pt2'", ".onnx"]),
        (["x.onnx", "--format", "torch-export"], ["'.onnx'", ".pt2"]),
        ([*PROGRAM, "--int8"], ["8 bits", "torch-export"]),
        (["nowhere/x.onnx"], ["nowhere", "create it first"]),
        ([*ONNX, "--seconds", "0.01"], ["0.01 s", "0.016 to 60 s"]),
        ([*ONNX, "--seconds", "nan"], ["nan s"]),
        ([*ONNX, "--seconds", "3600"], ["3600 s", "predict_onnx.py"]),
        ([*ONNX, "--seconds", "5", "--dynamic-batch"], ["one window", "5 s", "2 s"]),
        ([*ONNX, "--seconds", "0.5"], ["5 times in a row", "2 s"]),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_sentence(detector, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert htsat(["export", str(detector), *arguments]) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("htsat: ") and complaint.count("\n") == 1
    assert not [word for word in words if word not in complaint], complaint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["lacks config.json"]),
        ({"ensemble.json": {"members": []}}, ["an ensemble", "one by one"]),
        ({"config.json": {"model_type": "nonsense"}, "preprocessor_config.json": {}}, ["cannot be loaded"]),
        (
            {"config.json": {"model_type": "bert", "architectures": ["BertModel"]}, "preprocessor_config.json": {}},
            ["BertModel", "HTSATModel"],
        ),
    ],
)
def test_a_folder_that_is_no_model_is_refused_in_one_sentence(tmp_path, capsys, files, words):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    assert htsat(["export", str(folder), str(tmp_path / "x.onnx")]) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1 and not [word for word in words if word not in complaint], complaint
    assert not (tmp_path / "x.onnx").exists()


def test_an_unknown_format_or_input_is_refused(detector, tmp_path, capsys):
    with pytest.raises(SystemExit):
        htsat(["export", str(detector), str(tmp_path / "x.onnx"), "--format", "tflite"])
    assert "onnx" in capsys.readouterr().err
    model, extractor = load_detector(detector)
    for values, words in (({"format": "tflite"}, "torch-export"), ({"input": "mp3"}, "waveform or features")):
        with pytest.raises(ValueError, match=words):
            export_model(model, extractor, tmp_path / "x.onnx", **values)
    with pytest.raises(ValueError, match=r"bfloat16 on cpu and float32 on cpu; `model.float"):
        export_model(model.bfloat16(), extractor, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="A Linear came"):
        export_model(torch.nn.Linear(1, 1), extractor, tmp_path / "x.onnx")


def test_without_the_extra_its_name_is_said(detector, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    assert htsat(["export", str(detector), str(tmp_path / "x.onnx")]) == 1
    assert 'pip install "modeling-htsat[export]"' in capsys.readouterr().err


def test_a_file_that_says_something_else_is_not_kept(detector, tmp_path, monkeypatch):
    path = tmp_path / "x.pt2"
    path.write_text("the one before")
    monkeypatch.setattr(export, "find_difference", lambda *_: float("nan"))
    with pytest.raises(ValueError, match="differs from the model"):
        export_model(*load_detector(detector), path, format="torch-export")
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt2"] and path.read_text() == "the one before"
