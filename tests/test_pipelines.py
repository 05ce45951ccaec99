"""Pipelines: any audio in, tags or events out; alone, in batches and in blocks, the same."""

import contextlib
import functools
import http.server
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
import torch
from conftest import PAPER, SMALL, enliven
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

import modeling_htsat.pipeline_htsat
from modeling_htsat import (
    AudioError,
    EventDecoding,
    HTSATAudioClassificationPipeline,
    HTSATConfig,
    HTSATFeatureExtractor,
    HTSATForAudioClassification,
    HTSATForSoundEventDetection,
    HTSATModel,
    HTSATSoundEventDetectionPipeline,
    decode_events,
    load_audio,
)
from modeling_htsat.ensemble import HTSATEnsembleForSoundEventDetection
from modeling_htsat.events_htsat import group_scores

RATE = 32_000
LABELS = ["c0", "c1", "c2", "c3", "c4"]
# In 16 bits, so that files, integers and floats hold the very same numbers.
NUM_SAMPLES = 72_345  # 2.26 s: shorter than the 2.56 s that the small model hears at once


def pulses(num_samples: int, rate: int = RATE) -> np.ndarray:
    """A rising tone in noise that comes and goes, in multiples of 2 ** -15: its scores come and go too."""
    seconds = np.arange(num_samples) / rate
    loudness = np.where(np.sin(2 * np.pi * 0.7 * seconds) > 0, 0.3, 0.01)
    noise = np.random.default_rng(0).standard_normal(num_samples)
    sound = loudness * (np.sin(2 * np.pi * (300 + 20 * seconds) * seconds) + 0.3 * noise)
    return (np.round(sound.clip(-0.99, 0.99) * 2**15) / 2**15).astype(np.float32)


def pcm(sound: np.ndarray) -> np.ndarray:
    return (sound * 2**15).astype(np.int16)


def encoded(sound: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=kind, subtype=subtype)
    return file.getvalue()


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    """The code in a process of its own, which knows the package whether it is installed or not."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)


def make(model_class: type, sizes: dict, **values: Any) -> torch.nn.Module:
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: index for index, label in enumerate(LABELS)}}
    return enliven(model_class(HTSATConfig(**{**sizes, **names, **values}))).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A detector that hears 2.56 s at once, saved with its extractor."""
    folder = tmp_path_factory.mktemp("small")
    make(HTSATForSoundEventDetection, SMALL, problem_type="multi_label_classification").save_pretrained(folder)
    HTSATFeatureExtractor(clip_frames=256).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def detect(folder) -> HTSATSoundEventDetectionPipeline:
    return pipeline("sound-event-detection", model=str(folder))


@pytest.fixture(scope="module")
def paper_detect() -> HTSATSoundEventDetectionPipeline:
    """A detector with the paper's 1024 frames: 10.24 s at once."""
    model = make(HTSATForSoundEventDetection, PAPER)
    return pipeline("sound-event-detection", model=model, feature_extractor=HTSATFeatureExtractor())


def make_tagger(pipeline_class: type | None = None, problem_type="multi_label_classification", **options: Any) -> Any:
    model = make(HTSATForAudioClassification, SMALL, problem_type=problem_type)
    extractor = HTSATFeatureExtractor(clip_frames=256)
    task = "audio-classification"
    return pipeline(task, model=model, feature_extractor=extractor, pipeline_class=pipeline_class, **options)


@pytest.fixture
def stock() -> Callable[..., Any]:
    """The stock pipeline, told in every call what it knows by itself from transformers 5.23 on."""
    return functools.partial(make_tagger(), function_to_apply="sigmoid")


@pytest.fixture
def tag() -> HTSATAudioClassificationPipeline:
    return make_tagger(HTSATAudioClassificationPipeline, top_k=None)


def close_events(found: list[dict[str, Any]], wanted: list[dict[str, Any]], tolerance: float = 1e-5) -> bool:
    """The same events; scores of the same sums in another order differ in their last digits."""
    names = [[event["label"] for event in events] for events in (found, wanted)]
    values = [[[event[key] for key in ("onset", "offset", "score")] for event in events] for events in (found, wanted)]
    return names[0] == names[1] and (names[0] == [] or np.allclose(values[0], values[1], rtol=0, atol=tolerance))


def close_tags(found: list[dict[str, Any]], wanted: list[dict[str, Any]], tolerance: float = 1e-5) -> bool:
    scores = [{tag["label"]: tag["score"] for tag in tags} for tags in (found, wanted)]
    return scores[0].keys() == scores[1].keys() and all(
        abs(score - scores[1][label]) <= tolerance for label, score in scores[0].items()
    )


# ── whatever the sound comes in ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def wav(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sounds") / "pulses.wav"
    path.write_bytes(encoded(pulses(NUM_SAMPLES)))
    return path


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def site(wav) -> Iterator[str]:
    handler = functools.partial(QuietHandler, directory=wav.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


FORMS = {
    "text": lambda path: str(path),
    "Path": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "file object": lambda path: io.BytesIO(path.read_bytes()),
    "float32": lambda path: pulses(NUM_SAMPLES),
    "float64": lambda path: pulses(NUM_SAMPLES).astype(np.float64),
    "int16": lambda path: pcm(pulses(NUM_SAMPLES)),
    "int32": lambda path: pcm(pulses(NUM_SAMPLES)).astype(np.int32) * 2**16,
    "tensor": lambda path: torch.from_numpy(pulses(NUM_SAMPLES)),
    "tensor of int16": lambda path: torch.from_numpy(pcm(pulses(NUM_SAMPLES))),
    "list": lambda path: pulses(NUM_SAMPLES).tolist(),
    "tuple": lambda path: tuple(pulses(NUM_SAMPLES)),
    "stereo, channels first": lambda path: np.stack([2 * pulses(NUM_SAMPLES), np.zeros(NUM_SAMPLES)]),
    "stereo, channels last": lambda path: np.stack([0.5 * pulses(NUM_SAMPLES), 1.5 * pulses(NUM_SAMPLES)], axis=1),
    "array": lambda path: {"array": pulses(NUM_SAMPLES), "sampling_rate": RATE},
    "raw": lambda path: {"raw": pulses(NUM_SAMPLES), "sampling_rate": RATE},
    "array of a row": lambda path: {"path": "x.wav", "array": pulses(NUM_SAMPLES), "sampling_rate": RATE},
    "bytes of a row": lambda path: {"bytes": path.read_bytes(), "path": None},
    "path of a row": lambda path: {"bytes": None, "path": str(path)},
    "a whole row": lambda path: {"audio": {"bytes": path.read_bytes(), "path": "x.wav"}, "label": 3},
}


@pytest.fixture(scope="module")
def wanted(detect, wav) -> list[dict[str, Any]]:
    events = detect(pulses(NUM_SAMPLES))
    assert len(events) > 2 and len({event["label"] for event in events}) > 1
    return events


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_sound_has_the_same_events(detect, wav, wanted, form):
    assert close_events(detect(FORMS[form](wav)), wanted)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_sound_has_the_same_tags_as_the_stock_pipeline_gives_its_array(tag, stock, wav, form):
    assert close_tags(tag(FORMS[form](wav)), stock(pulses(NUM_SAMPLES)))


def test_a_url_has_the_events_of_its_file_where_its_address_is_allowed(detect, tag, site, wav, wanted, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    assert close_events(detect(f"{site}/{wav.name}", allow_private_urls=True), wanted)
    assert close_tags(tag(f"{site}/{wav.name}", allow_private_urls=True), tag(wav))
    with pytest.raises(AudioError, match="allow_private_urls"):
        detect(f"{site}/{wav.name}")
    with pytest.raises(AudioError, match="none.wav"):
        detect(f"{site}/none.wav", allow_private_urls=True)


@pytest.mark.parametrize("rate, channels", [(8_000, 1), (22_050, 2), (44_100, 1), (48_000, 3), (96_000, 2)])
def test_every_rate_is_resampled_and_every_channel_heard(detect, tag, tmp_path, rate, channels):
    sound = np.stack([pulses(2 * rate + 11, rate) * share for share in np.linspace(0.5, 1.5, channels)], axis=1)
    soundfile.write(tmp_path / "sound.flac", sound, rate, subtype="PCM_24")
    resampled = load_audio(tmp_path / "sound.flac", RATE)
    assert len(resampled) == round(len(sound) / rate * RATE)
    for source in (tmp_path / "sound.flac", {"array": resampled, "sampling_rate": RATE}):
        assert close_events(detect(source), detect(resampled))
    by_hand = {"array": soundfile.read(tmp_path / "sound.flac", dtype="float32")[0], "sampling_rate": rate}
    assert close_events(detect(by_hand), detect(resampled))
    assert close_tags(tag(by_hand), tag(resampled))


@pytest.mark.parametrize(
    "suffix, kind, subtype, tolerance",
    [
        ("wav", "WAV", "PCM_24", 1e-5),
        ("flac", "FLAC", "PCM_16", 1e-5),
        ("ogg", "OGG", "VORBIS", 0.1),
        ("opus", "OGG", "OPUS", 0.1),
        ("mp3", "MP3", "MPEG_LAYER_III", 0.1),
    ],
)
def test_every_format_is_heard_without_ffmpeg(detect, tmp_path, monkeypatch, suffix, kind, subtype, tolerance):
    monkeypatch.setenv("PATH", str(tmp_path))
    sound = pulses(96_000, 48_000)
    (tmp_path / f"sound.{suffix}").write_bytes(encoded(sound, 48_000, kind, subtype))
    found = detect(tmp_path / f"sound.{suffix}", return_scores=True)
    wanted = detect({"array": sound, "sampling_rate": 48_000}, return_scores=True)
    assert np.allclose(found["scores"], wanted["scores"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("source", ["", "none.wav", b"no audio at all", np.zeros(0), {"array": [0.5]}, [1, 2], 7, None])
def test_what_is_no_sound_is_refused_in_a_sentence(detect, tag, source):
    for task in (detect, tag):
        with pytest.raises(AudioError, match=r"[a-z].*[.:]"):
            task(source)


# ── however long it lasts ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "seconds, num_steps", [(0.1, 1), (1.0, 4), (3.3, 11), (10.0, 32), (10.24, 32), (10.3, 33), (25.0, 79)]
)
def test_steps_fill_the_sound_and_events_lie_within_it(paper_detect, seconds, num_steps):
    found = paper_detect(pulses(round(seconds * RATE)), return_scores=True, threshold=0.2)
    edges = found["edges"]
    assert found["scores"].shape == (num_steps, 5) and edges.shape == (num_steps + 1,)
    assert edges[0] == 0 and edges[-1] == pytest.approx(seconds, abs=1e-9) and (np.diff(edges) > 0).all()
    assert found["num_samples"] == round(seconds * RATE)
    assert found["log_mel"].shape == (1 + round(seconds * RATE) // 320, 64)
    assert found["events"]
    for event in found["events"]:
        assert 0 <= event["onset"] < event["offset"] <= seconds
        assert event["onset"] in edges and event["offset"] in edges


def test_a_short_sound_is_heard_as_often_as_it_fits_and_each_moment_has_its_mean_score(paper_detect):
    sound = pulses(RATE)
    repeated = paper_detect.feature_extractor(sound, sampling_rate=RATE, return_tensors="pt")
    assert repeated["input_features"].shape == (1, 10 * 101, 64)
    with torch.no_grad():
        scores = paper_detect.model(**repeated).logits[0].sigmoid()
    found = paper_detect(sound, return_scores=True)
    assert np.allclose(found["scores"].mean(0), scores.mean(0), atol=1e-6)
    assert np.ptp(found["edges"]) == 1.0


@pytest.mark.parametrize("num_samples", [1, 100, 512, 513])
def test_a_few_samples_are_a_sound(detect, tag, num_samples):
    found = detect(np.full(num_samples, 0.5), return_scores=True, threshold=0.0)
    assert found["edges"][-1] == pytest.approx(num_samples / RATE)
    assert len(found["events"]) == 5
    assert len(tag(np.full(num_samples, 0.5))) == 5


@pytest.mark.parametrize("seconds", [0.1, 1.0, 2.0, 10.0, 25.0])
def test_events_are_those_that_the_feature_extractor_makes_of_the_models_outputs(paper_detect, seconds):
    sound = pulses(round(seconds * RATE) + 7)
    extractor, model = paper_detect.feature_extractor, paper_detect.model
    with torch.no_grad():
        outputs = model(**extractor(sound, sampling_rate=RATE, return_tensors="pt"))
    decoding = {"threshold": 0.4, "median_filter_seconds": 0.9}
    (wanted,) = extractor.post_process_sound_event_detection(
        outputs, [len(sound) / RATE], decoding, model.config.id2label
    )
    assert close_events(paper_detect(sound, decoding=decoding), wanted)


def test_minutes_in_blocks_have_the_events_and_tags_of_the_whole_at_once(detect, tag, tmp_path):
    sound = np.stack([pulses(48_000 * 200 + 17, 48_000)] * 2, axis=1)
    soundfile.write(tmp_path / "minutes.flac", sound, 48_000, subtype="PCM_16")
    whole = load_audio(tmp_path / "minutes.flac", RATE)
    with torch.no_grad():
        inputs = detect.feature_extractor(whole, sampling_rate=RATE, return_tensors="pt")
        logits = detect.model(**inputs).logits[0]
    found = detect(tmp_path / "minutes.flac", return_scores=True)
    assert np.allclose(found["scores"], logits[: len(found["scores"])].sigmoid(), rtol=0, atol=1e-5)
    assert np.allclose(found["log_mel"], inputs["input_features"][0], atol=1e-3)
    assert close_events(found["events"], detect(whole)) and len(found["events"]) > 50
    assert found["edges"][-1] == pytest.approx(200 + 17 / 48_000, abs=1 / RATE)
    assert close_tags(tag(tmp_path / "minutes.flac"), tag(whole))


# ── many at once ─────────────────────────────────────────────────────────────────────────────────────────────────────

LENGTHS = [NUM_SAMPLES, 3_200, 320_000, 32_000, 81_919, 81_920, 90_001]


@pytest.fixture(scope="module")
def sounds() -> list[np.ndarray]:
    return [pulses(200_000 + num_samples)[-num_samples:] for num_samples in LENGTHS]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_a_sound_has_the_same_events_and_tags_alone_and_in_a_batch(detect, tag, sounds, batch_size):
    for found, sound in zip(detect(sounds, batch_size=batch_size, time_refinement=2), sounds, strict=True):
        assert close_events(found, detect(sound, time_refinement=2))
    for found, sound in zip(tag(sounds, batch_size=batch_size), sounds, strict=True):
        assert close_tags(found, tag(sound))


def test_a_batch_can_be_mixed_of_all_forms(detect, wav, wanted):
    sources = [FORMS[form](wav) for form in ("text", "Path", "bytes", "file object", "int16", "list", "a whole row")]
    for found in detect(sources, batch_size=3) + detect(tuple(sources[:3])):
        assert close_events(found, wanted)
    assert detect([]) == detect(()) == []


def test_a_generator_is_asked_as_its_answers_are(detect, sounds):
    asked = []

    def give() -> Iterator[np.ndarray]:
        for index, sound in enumerate(sounds):
            asked.append(index)
            yield sound

    answers = iter(detect(give()))
    assert close_events(next(answers), detect(sounds[0]))
    assert len(asked) < len(sounds)
    assert len(list(answers)) == len(sounds) - 1


@pytest.fixture(scope="module")
def rows(tmp_path_factory, sounds) -> datasets.Dataset:
    """A data set of sounds as they are stored, undecoded: in bytes and in a file."""
    path = tmp_path_factory.mktemp("rows") / "second.wav"
    path.write_bytes(encoded(sounds[1]))
    audio = [{"bytes": encoded(sounds[0]), "path": None}, {"bytes": None, "path": str(path)}]
    return datasets.Dataset.from_dict({"audio": audio, "label": [3, 1]}).cast_column(
        "audio", datasets.Audio(decode=False)
    )


def test_data_sets_their_columns_and_their_rows_are_heard_undecoded(detect, tag, rows, sounds):
    wanted = [detect(sound) for sound in sounds[:2]]
    assert close_events(detect(rows[0]), wanted[0]) and close_events(detect(rows[1]["audio"]), wanted[1])
    for many in (KeyDataset(rows, "audio"), rows["audio"], rows, list(rows), rows.to_iterable_dataset()):
        for batch_size in (1, 2):
            found = list(detect(many, batch_size=batch_size))
            assert [close_events(*pair) for pair in zip(found, wanted, strict=True)] == [True, True]
    assert close_tags(list(tag(rows["audio"]))[1], tag(sounds[1]))


# ── past sources that cannot be heard ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, sounds) -> list[Any]:
    """Three sounds between four sources that are none."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "cut.wav").write_bytes(encoded(sounds[0])[:50_000])
    good = [encoded(sound) for sound in sounds[:3]]
    return [str(folder / "none.wav"), good[0], b"", good[1], good[2], str(folder), str(folder / "cut.wav")]


PLACES = [1, 3, 4]  # of what can be heard
MANY = {
    "list": list,
    "tuple": tuple,
    "generator": lambda sources: (source for source in sources),
    "iterator": iter,
    "map": lambda sources: map(lambda source: source, sources),
    "data set": lambda sources: KeyDataset([{"audio": source} for source in sources], "audio"),
    "rows": lambda sources: [
        {"audio": {"bytes": source, "path": None} if isinstance(source, bytes) else {"bytes": None, "path": source}}
        for source in sources
    ],
}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
@pytest.mark.parametrize("form", MANY)
def test_answers_keep_their_place_where_others_fail_and_one_warning_names_these(
    detect, tag, mixed, sounds, caplog, form, batch_size
):
    for task, are_close in ((detect, close_events), (tag, close_tags)):
        caplog.clear()
        found = list(task(MANY[form](mixed), on_error="skip", batch_size=batch_size))
        assert [place for place, answer in enumerate(found) if answer is not None] == PLACES
        assert all(are_close(found[place], task(sound)) for place, sound in zip(PLACES, sounds, strict=False))
        (warning,) = caplog.messages
        assert warning.startswith("4 of 7 sources could not be heard:\n  0: ")
        for name in ("none.wav does not exist", "is empty (0 bytes)", "is a folder", "cut.wav is truncated"):
            assert warning.count(name) == 1, name


def test_columns_and_workers_go_past_what_fails_as_well(detect, sounds):
    audio = [{"bytes": content, "path": None} for content in (b"", encoded(sounds[0]), b"words")]
    rows = datasets.Dataset.from_dict({"audio": audio}).cast_column("audio", datasets.Audio(decode=False))
    wanted = detect(sounds[0])
    for many, workers in ((rows, 0), (rows["audio"], 0), (list(rows), 2)):
        first, second, third = detect(many, on_error="skip", batch_size=2, num_workers=workers)
        assert first is third is None and close_events(second, wanted)


def test_what_failed_is_known_until_the_next_call(detect, mixed):
    detect(mixed, on_error="skip")
    assert list(detect.failed) == [0, 2, 5, 6]
    assert detect.failed[0] == f"{mixed[0]} does not exist: check the path."
    answers = detect(iter(mixed), on_error="skip")
    assert not detect.failed
    assert len(list(answers)) == 7 and list(detect.failed) == [0, 2, 5, 6]
    detect(mixed[1])
    assert not detect.failed


def test_one_source_that_fails_has_no_answer(detect, tag, mixed, caplog):
    for task in (detect, tag):
        assert task(mixed[0], on_error="skip") is None
        assert list(task.failed) == [0]
    assert [message.startswith("1 of 1 sources") for message in caplog.messages] == [True, True]


def test_going_on_can_be_asked_for_at_construction_and_taken_back_in_the_call(folder, mixed):
    detector = pipeline("sound-event-detection", model=str(folder), on_error="skip", return_scores=True)
    tagger = make_tagger(HTSATAudioClassificationPipeline, on_error="skip")
    for task in (detector, tagger):
        assert [answer is not None for answer in task(mixed)] == [place in PLACES for place in range(7)]
        with pytest.raises(AudioError, match="none.wav does not exist"):
            task(mixed, on_error="raise")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_first_source_that_fails_raises_unless_asked_otherwise(detect, tag, mixed, batch_size):
    for task in (detect, tag):
        answers = iter(task(iter(mixed[1:]), batch_size=1))
        assert next(answers)
        with pytest.raises(AudioError, match="is empty"):
            next(answers)
        with pytest.raises(AudioError, match="none.wav does not exist"):
            task(mixed, batch_size=batch_size)


def test_what_is_no_fault_of_a_source_still_raises(detect, mixed, monkeypatch, caplog):
    def break_off() -> Iterator[Any]:
        yield from mixed[:2]
        raise ZeroDivisionError

    answers = iter(detect(break_off(), on_error="skip"))
    assert next(answers) is None and next(answers)
    with pytest.raises(ZeroDivisionError):
        next(answers)
    assert [message.splitlines()[0] for message in caplog.messages] == ["1 of 2 sources could not be heard:"]
    monkeypatch.setattr(detect.model.classifier, "forward", None)
    with pytest.raises(TypeError):
        detect(mixed, on_error="skip")


def test_answers_can_be_counted_where_sources_can(detect, mixed):
    assert len(detect(KeyDataset([{"audio": source} for source in mixed], "audio"), on_error="skip")) == 7
    with pytest.raises(TypeError):
        len(detect(iter(mixed)))


# ── options, at construction and in the call ─────────────────────────────────────────────────────────────────────────

OPTIONS: dict[str, dict[str, Any]] = {
    "threshold": {"threshold": 0.7},
    "decoding": {"decoding": EventDecoding(threshold=0.6, stay_threshold=0.3, min_event_seconds=0.5)},
    "decoding as a dictionary": {"decoding": {"threshold": 0.4, "max_gap_seconds": 1.0}},
    "groups": {"groups": {"odd": [1, 3], "even": (0, 2, 4)}},
    "groups by label": {"groups": {"odd": ["c1", "c3"], "even": [0, "c2", np.int64(4)]}},
    "time_refinement": {"time_refinement": 3},
    "return_scores": {"return_scores": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_an_option_means_the_same_at_construction_and_in_the_call(folder, detect, options):
    sound = pulses(320_000)
    in_call = detect(sound, **options)
    at_construction = pipeline("sound-event-detection", model=str(folder), **options)
    assert str(at_construction(sound)) == str(in_call) != str(detect(sound))


def test_the_call_goes_before_the_construction(folder, detect):
    sound = pulses(320_000)
    given = pipeline("sound-event-detection", model=str(folder), threshold=0.7, return_scores=True, time_refinement=2)
    assert given(sound, threshold=0.4, return_scores=False, time_refinement=1) == detect(sound, threshold=0.4)
    assert given(sound)["events"] == detect(sound, threshold=0.7, time_refinement=2)


def test_a_threshold_and_a_decoding_do_not_go_together(folder, detect):
    both = {"threshold": 0.5, "decoding": EventDecoding()}
    with pytest.raises(ValueError, match="`threshold` and `decoding` were both given"):
        detect(pulses(3_200), **both)
    with pytest.raises(ValueError, match="`threshold` and `decoding` were both given"):
        pipeline("sound-event-detection", model=str(folder), **both)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"threshold": 1.5}, "threshold must hold probabilities"),
        ({"decoding": {"thresh": 0.5}}, "no value called thresh"),
        ({"time_refinement": 0}, "`time_refinement` is 0"),
        ({"groups": {"many": [4, 5]}}, "Group 'many' is .*; name classes from 0 to 4, or their labels"),
        ({"groups": {"many": ["c4", "c5"]}}, "name classes from 0 to 4, or their labels"),
        ({"groups": {"none": []}}, "Group 'none' is .*; name classes"),
        ({"groups": {"one": "c1"}}, "Group 'one' is 'c1', which is no list"),
        ({"groups": {"one": 1}}, "Group 'one' is 1, which is no list"),
        ({"groups": {}}, "`groups` is {}; it must be"),
        ({"groups": [[1]]}, r"`groups` is \[\[1\]\]; it must be"),
        ({"on_error": "ignore"}, "`on_error` is 'ignore'; it must be"),
        ({"treshold": 0.5}, "has no option `treshold`; it has .*on_error.*threshold"),
        ({"top_k": 5}, "has no option `top_k`; it has "),
    ],
)
def test_an_impossible_option_is_refused(detect, options, problem):
    with pytest.raises((ValueError, TypeError), match=problem):
        detect(pulses(3_200), **options)


def test_an_unknown_option_of_tagging_is_refused_with_those_that_there_are(tag):
    known = "has no option `groups`; it has .*function_to_apply.*progress_bar.*source_sampling_rate.*top_k"
    with pytest.raises(TypeError, match=known):
        tag(pulses(3_200), groups={})
    with pytest.raises(TypeError, match=known):
        make_tagger(HTSATAudioClassificationPipeline, groups={})


def test_the_rate_of_bare_samples_can_be_said(detect, tag):
    sound = pulses(48_000, 16_000)
    row = {"array": sound, "sampling_rate": 16_000}
    for task in (detect, tag):
        assert task(sound, source_sampling_rate=16_000) == task(row) != task(sound)


def test_a_model_decodes_as_it_was_tuned_once_it_is_saved_and_loaded(detect, tmp_path):
    sound = pulses(320_000)
    tuned = {"threshold": {"c0": 0.9, "c1": 0.3, "c2": 0.8, "c3": 0.2, "c4": 0.7}, "median_filter_seconds": 0.7}
    model = make(HTSATForSoundEventDetection, SMALL, event_decoding=tuned)
    model.save_pretrained(tmp_path)
    detect.feature_extractor.save_pretrained(tmp_path)
    loaded = pipeline("sound-event-detection", model=str(tmp_path))
    assert loaded(sound) == detect(sound, decoding=tuned) != detect(sound)
    assert loaded(sound, threshold=0.5) == detect(sound)
    # Groups have other names than classes, so that the tuned values cannot be theirs.
    assert loaded(sound, groups={"all": range(5)}) == detect(sound, groups={"all": range(5)})


def test_scores_come_with_all_that_they_were_made_of(detect):
    sound = pulses(320_000)
    found = detect(sound, return_scores=True)
    assert set(found) == {"events", "tags", "scores", "edges", "labels", "num_samples", "log_mel"}
    assert found["labels"] == LABELS == list(found["tags"])
    decoded = decode_events(found["scores"], None, EventDecoding(), LABELS, step_edges_seconds=found["edges"])
    assert found["events"] == decoded == detect(sound)
    assert decoded == sorted(decoded, key=lambda event: (event["onset"], event["label"]))
    with torch.no_grad():
        inputs = detect.feature_extractor(sound, sampling_rate=RATE, return_tensors="pt")
        tags = detect.model(**inputs).clip_logits[0].sigmoid()
    assert np.allclose(list(found["tags"].values()), tags, atol=1e-5)


def test_a_group_has_the_highest_score_of_its_classes(detect):
    sound = pulses(320_000)
    plain, grouped = (detect(sound, return_scores=True, **options) for options in ({}, OPTIONS["groups"]))
    assert grouped["labels"] == ["odd", "even"]
    assert np.array_equal(grouped["scores"], group_scores(plain["scores"], OPTIONS["groups"]["groups"]))
    assert {event["label"] for event in grouped["events"]} <= {"odd", "even"}
    of_their_own = detect(sound, groups={"odd": [1, 3]}, decoding={"threshold": {"odd": 0.8}})
    assert of_their_own == [
        event for event in detect(sound, threshold=0.8, **OPTIONS["groups"]) if event["label"] == "odd"
    ]


@pytest.mark.parametrize("seconds", [1.0, 9.7, 25.0])
def test_refined_times_are_those_of_the_sound_begun_later(paper_detect, seconds):
    extractor, num_passes = paper_detect.feature_extractor, 4
    sound = pulses(round(seconds * RATE))
    plain = paper_detect(sound, return_scores=True)
    fine = paper_detect(sound, return_scores=True, time_refinement=num_passes)
    assert len(fine["scores"]) == num_passes * len(plain["scores"])
    assert np.allclose(fine["edges"][::num_passes], plain["edges"])
    assert (np.diff(fine["edges"]) > 0).all() and fine["edges"][-1] == seconds
    assert np.allclose(list(fine["tags"].values()), list(plain["tags"].values()))
    inputs = extractor(sound, sampling_rate=RATE, return_tensors="pt")
    frames = 1 + len(sound) // 320
    shift = round(0.5 * frames / len(plain["scores"]))
    log_mel = inputs["input_features"][0]
    later = torch.cat([log_mel[shift:], log_mel[-1 - shift : -1].flip(0)])[None]  # the end is mirrored
    with torch.no_grad():
        scores, _ = extractor.scores_over_time(paper_detect.model(later).logits[0], seconds)
    passes = [paper_detect(sound, return_scores=True, time_refinement=2)["scores"], plain["scores"], scores]
    # Of two passes in order of time, a fine step lies halfway between two scores.
    in_order = np.stack(passes[1:], axis=1).reshape(len(passes[0]), 5)
    assert np.allclose(passes[0][1:], 0.5 * (in_order[1:] + in_order[:-1]), atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.05), (torch.float16, 0.01), (torch.float64, 1e-4)])
def test_models_of_other_precision_run(folder, detect, stock, dtype, tolerance):
    sounds = [pulses(NUM_SAMPLES), pulses(90_000)]
    other = pipeline("sound-event-detection", model=str(folder), dtype=dtype, return_scores=True)
    assert other.model.htsat.patch_embed.projection.weight.dtype == dtype
    for found, sound in zip(other(sounds, batch_size=2, time_refinement=2), sounds, strict=True):
        wanted = detect(sound, time_refinement=2, return_scores=True)
        assert found["scores"].dtype == np.float32
        assert np.allclose(found["scores"], wanted["scores"], rtol=0, atol=tolerance)
    tagger = make_tagger(HTSATAudioClassificationPipeline, top_k=None, dtype=dtype)
    tagger.model.to(dtype)
    assert close_tags(tagger(sounds[0]), stock(sounds[0]), tolerance)


def test_the_name_of_the_task_is_known_once_the_package_is_imported(folder):
    code = (
        "import sys, modeling_htsat, numpy, transformers\n"
        f"pipe = transformers.pipeline('sound-event-detection', model={str(folder)!r})\n"
        "assert type(pipe).__name__ == 'HTSATSoundEventDetectionPipeline'\n"
        "print(len(pipe(numpy.zeros(32000), threshold=0.0)))\n"
    )
    done = run_python(code)
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr


# ── progress ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def hear(detect, tag, monkeypatch):
    """`hear(20, screen=True, progress_bar=True)`: what both pipelines write to standard error meanwhile."""

    def listen(seconds: float, screen: bool, **options: Any) -> list[str]:
        written = []
        for task in (detect, tag):
            with contextlib.redirect_stderr(Screen() if screen else io.StringIO()) as stderr:
                task(pulses(round(seconds * RATE)), **options)
            written.append(stderr.getvalue())
        return written

    monkeypatch.setattr(modeling_htsat.pipeline_htsat, "LONG_SECONDS", 15.0)
    return listen


def test_a_bar_is_shown_for_long_sounds_on_a_screen_alone(hear):
    assert all("listening: 100%" in text and "20/20" in text for text in hear(20, screen=True))
    assert hear(14.9, screen=True) == ["", ""]
    assert hear(20, screen=False) == ["", ""]


@pytest.mark.parametrize("seconds", [1, 3, 6.2, 20])
def test_a_bar_that_is_asked_for_reaches_its_total(hear, seconds):
    total = round(seconds)
    assert all(f"{total}/{total}" in text and "100%" in text for text in hear(seconds, screen=False, progress_bar=True))
    assert hear(seconds, screen=True, progress_bar=False) == ["", ""]


def test_a_bar_counts_all_passes_and_every_sound_of_a_batch(detect, capsys):
    detect([pulses(20 * RATE), pulses(3 * RATE)], batch_size=2, time_refinement=2, progress_bar=True)
    assert "46/46" in capsys.readouterr().err


def test_a_bar_can_be_asked_for_at_construction(folder, capsys):
    pipeline("sound-event-detection", model=str(folder), progress_bar=True)(pulses(RATE))
    assert "1/1" in capsys.readouterr().err
    make_tagger(HTSATAudioClassificationPipeline, progress_bar=True)(pulses(RATE))
    assert "1/1" in capsys.readouterr().err


def test_a_bar_leaves_nothing_behind_in_the_model(detect, monkeypatch):
    hooks = detect.model.htsat.patch_embed._forward_pre_hooks

    def break_off(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(detect.model.classifier, "forward", break_off)
        detect(pulses(RATE), progress_bar=True)
    assert len(hooks) == 0


# ── tags ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_stock_pipeline_tags_arrays_dictionaries_and_batches(stock, sounds):
    with torch.no_grad():
        inputs = stock.func.feature_extractor(sounds[0], sampling_rate=RATE, return_tensors="pt")
        scores = stock.func.model(**inputs).logits[0].sigmoid().tolist()
    wanted = [{"label": label, "score": score} for label, score in zip(LABELS, scores, strict=True)]
    assert close_tags(stock(sounds[0]), wanted)
    assert close_tags(stock({"raw": sounds[0], "sampling_rate": RATE}), wanted)
    assert close_tags(stock({"array": sounds[0], "sampling_rate": RATE}), wanted)
    assert close_tags(stock(torch.from_numpy(sounds[0])), wanted)
    for found, sound in zip(stock(sounds, batch_size=3), sounds, strict=True):
        assert close_tags(found, stock(sound))
    assert [len(tags) for tags in stock((sound for sound in sounds[:2]), top_k=2)] == [2, 2]
    assert stock(sounds[0], top_k=2) == stock(sounds[0])[:2]


def test_ours_tags_an_array_as_the_stock_pipeline_does(stock, tag, sounds):
    for sound in sounds:
        assert close_tags(tag(sound), stock(sound))
    for found, wanted in zip(tag(sounds, batch_size=3), stock(sounds, batch_size=3), strict=True):
        assert close_tags(found, wanted)


@pytest.mark.parametrize("problem_type", ["single_label_classification", None])
def test_labels_that_exclude_each_other_share_a_probability_of_one(problem_type):
    sound = pulses(NUM_SAMPLES)
    tags = make_tagger(HTSATAudioClassificationPipeline, problem_type)(sound)
    assert sum(tag["score"] for tag in tags) == pytest.approx(1, abs=1e-5)
    assert close_tags(tags, make_tagger(None, problem_type)(sound))
    assert sum(tag["score"] for tag in make_tagger(HTSATAudioClassificationPipeline)(sound)) != pytest.approx(
        1, abs=0.1
    )


def test_the_function_to_apply_counts_where_it_was_given(tag, stock):
    sound = pulses(NUM_SAMPLES)
    for name in ("softmax", "sigmoid", "none"):
        at_construction = make_tagger(HTSATAudioClassificationPipeline, function_to_apply=name)
        assert close_tags(at_construction(sound), tag(sound, function_to_apply=name))
        assert close_tags(at_construction(sound), stock(sound, function_to_apply=name))
    with pytest.raises(ValueError, match="function_to_apply"):
        tag(sound, function_to_apply="tanh")


@pytest.mark.parametrize(
    "at_construction, in_call, count",
    [({}, {}, 5), ({"top_k": 2}, {}, 2), ({"top_k": 2}, {"top_k": 3}, 3), ({"top_k": 2}, {"top_k": None}, 7)]
    + [({"top_k": None}, {}, 7), ({"top_k": None}, {"top_k": 1}, 1), ({}, {"top_k": 99}, 7), ({"top_k": 99}, {}, 7)],
)
def test_top_k_counts_where_it_was_given(at_construction, in_call, count):
    model = HTSATForAudioClassification(HTSATConfig(**{**SMALL, "num_labels": 7})).eval()
    extractor = HTSATFeatureExtractor(clip_frames=256)
    task, ours = "audio-classification", HTSATAudioClassificationPipeline
    tagger = pipeline(task, model=model, feature_extractor=extractor, pipeline_class=ours, **at_construction)
    for source in (pulses(3_200), [pulses(3_200), pulses(6_400)]):
        tags = tagger(source, **in_call)
        for one in [tags] if isinstance(tags[0], dict) else tags:
            scores = [tag["score"] for tag in one]
            assert len(one) == count and scores == sorted(scores, reverse=True)


def test_a_detector_can_tag_as_well(folder, stock):
    tagger = pipeline("audio-classification", model=str(folder), pipeline_class=HTSATAudioClassificationPipeline)
    assert close_tags(tagger(pulses(NUM_SAMPLES)), stock(pulses(NUM_SAMPLES)))


def test_tags_of_a_detector_are_its_scores_of_the_whole_clip(detect, sounds):
    extractor, ours = detect.feature_extractor, HTSATAudioClassificationPipeline
    tagger = pipeline(
        "audio-classification", model=detect.model, feature_extractor=extractor, pipeline_class=ours, top_k=None
    )
    for found, sound in zip(tagger(sounds[:3], batch_size=2), sounds, strict=False):
        wanted = detect(sound, return_scores=True)["tags"]
        assert close_tags(found, [{"label": label, "score": score} for label, score in wanted.items()])


def test_both_pipelines_take_an_ensemble_and_show_its_progress(capsys):
    members = [make(HTSATForSoundEventDetection, SMALL, problem_type="multi_label_classification") for _ in range(2)]
    with torch.no_grad():
        for parameter in members[1].parameters():
            parameter *= 1.1
    extractor, sound = HTSATFeatureExtractor(clip_frames=256), pulses(320_000)
    detector, *alone = (
        HTSATSoundEventDetectionPipeline(model=model, feature_extractor=extractor, return_scores=True)
        for model in (HTSATEnsembleForSoundEventDetection(members), *members)
    )
    found = detector(sound, progress_bar=True)
    assert "10/10" in capsys.readouterr().err
    assert np.allclose(found["scores"], sum(one(sound)["scores"] for one in alone) / 2, atol=1e-6)
    tagger = HTSATAudioClassificationPipeline(model=detector.model, feature_extractor=extractor)
    assert close_tags(tagger(sound), [{"label": label, "score": score} for label, score in found["tags"].items()])


def test_a_file_cut_short_is_refused_unless_that_is_allowed(detect, tag, wav, tmp_path):
    (tmp_path / "cut.wav").write_bytes(wav.read_bytes()[:100_000])
    for task in (detect, tag):
        with pytest.raises(AudioError, match="cut.wav is truncated"):
            task(tmp_path / "cut.wav")
        assert task(tmp_path / "cut.wav", allow_truncated=True)


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────

AN_HOUR = """
import sys, time, resource
import modeling_htsat, transformers
detect = transformers.pipeline("sound-event-detection", model=sys.argv[1])
begin = time.perf_counter()
found = detect(sys.argv[2], return_scores=True)
print(len(found["scores"]), found["edges"][-1], time.perf_counter() - begin)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def write_hour(path: Path, rate: int = 48_000) -> None:
    """An hour of stereo that no one second repeats, written minute by minute."""
    generator = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", rate, 2, "PCM_16") as file:
        for minute in range(60):
            loudness = 0.01 + 0.1 * np.abs(np.sin(np.arange(60 * rate) * (minute + 1) / rate))
            noise = generator.standard_normal((60 * rate, 2), dtype=np.float32)
            file.write((noise * loudness[:, None]).clip(-1, 1).astype(np.float32))


@pytest.mark.slow
def test_an_hour_of_stereo_at_48_khz_takes_less_than_one_and_a_half_gigabytes(tmp_path):
    preset = Path(__file__).parents[1] / "configuration" / "models" / "htsat-nano"
    HTSATForSoundEventDetection(HTSATConfig.from_pretrained(preset)).save_pretrained(tmp_path / "model")
    HTSATFeatureExtractor.from_pretrained(preset).save_pretrained(tmp_path / "model")
    write_hour(tmp_path / "hour.flac")
    done = run_python(AN_HOUR, str(tmp_path / "model"), str(tmp_path / "hour.flac"))
    assert done.returncode == 0, done.stderr
    steps, end, _, gibibytes = map(float, done.stdout.split())
    assert (steps, end) == (11_250, 3600)
    assert gibibytes * 2**30 < 1.5e9


def test_a_model_of_the_wrong_kind_and_an_extractor_of_another_model_are_refused(make_config):
    tagger = HTSATForAudioClassification(make_config(paper=True))
    with pytest.raises(ValueError, match="takes an HTSATForSoundEventDetection, and a HTSATForAudioClassification"):
        HTSATSoundEventDetectionPipeline(model=tagger, feature_extractor=HTSATFeatureExtractor())
    encoder = HTSATModel(make_config(paper=True))
    with pytest.raises(ValueError, match="Tagging takes an HTSATForAudioClassification or .* a HTSATModel came"):
        HTSATAudioClassificationPipeline(model=encoder, feature_extractor=HTSATFeatureExtractor())
    detector = HTSATForSoundEventDetection(make_config(paper=True))
    with pytest.raises(ValueError, match="its `clip_frames` is 256, the model's is 1024"):
        HTSATSoundEventDetectionPipeline(model=detector, feature_extractor=HTSATFeatureExtractor(clip_frames=256))
