"""From a file to its scores, for every kind of sound, format, rate and precision, beside a reference in float64.

The reference shares no code with the package up to the spectrogram: soundfile decodes to float64, the channels' mean is
NumPy's, soxr resamples in one piece, and the spectrogram follows from its definition. Then the same weights score it in
float64. What each tolerance is made of stands beside it, with the worst that was measured among the sounds below:
the tolerance is two to four times as much.
"""

import contextlib
import copy
import io
import runpy
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import soxr
import torch
from conftest import SMALL, enliven
from made_up_clips import ListRows
from scipy.signal import resample_poly
from transformers import pipeline

from modeling_htsat import (
    AudioError,
    HTSATAudioClassificationPipeline,
    HTSATConfig,
    HTSATFeatureExtractor,
    HTSATForSoundEventDetection,
    HTSATSoundEventDetectionPipeline,
    load_audio,
)
from modeling_htsat.audio_htsat import MAX_SAMPLE
from modeling_htsat.corpus_detection import DetectionSettings, find_recordings, hear_part
from modeling_htsat.live import LiveDetector
from modeling_htsat.training.examples import ClipDataset

ROOT = Path(__file__).parents[1]
RATE, HOP, WINDOW, MELS, LOWEST, HIGHEST = 32_000, 320, 1024, 64, 50.0, 14_000.0
RATES = (8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000)

# Amplitudes of the mel bands, of the loudest of them or of the loudest sample: the 24 bits of a float32 are 6e-8, and
# the resampler, the Fourier transform and the decibels lose some bits of them; worst 2.5e-6, that is -112 dB.
AMPLITUDE = 6e-6
# Probabilities of float32 beside float64. Its rounding alone is 1e-7 and reaches 8e-7 here.
FLOAT32 = 3e-6
# A source below 28 kHz leaves the upper bands empty. What they hold then is the rounding of the resampler, which works
# in float32, about the -100 dB where the logarithm begins: up to 0.15 dB of difference there, 2e-5 in the scores.
FLOAT32_ABOVE_THE_SOURCE = 6e-5
# Numbers of 8 and of 11 bits, rounded anew in each of some ten layers: worst 6.4e-3 and 1.9e-3.
HALF = {torch.bfloat16: 0.02, torch.float16: 0.005}


# ── the reference ─────────────────────────────────────────────────────────────────────────────────────────────────────


def to_mels(hertz: np.ndarray) -> np.ndarray:
    """Slaney's scale: linear up to 1 kHz, then 27 mels for every factor of 6.4."""
    return np.where(hertz < 1000, 3 * hertz / 200, 15 + 27 * np.log(np.maximum(hertz, 1) / 1000) / np.log(6.4))


def make_filters() -> np.ndarray:
    """Triangles of equal area, `(mels, frequencies)`, with corners at equal distances on the mel scale."""
    hertz = np.linspace(0, 20_000, 2_000_001)  # the scale turned round, by looking it up
    corners = np.interp(np.linspace(*to_mels(np.array([LOWEST, HIGHEST])), MELS + 2), to_mels(hertz), hertz)
    frequency = np.arange(WINDOW // 2 + 1) * RATE / WINDOW
    low, middle, high = (corners[start : start + MELS, None] for start in range(3))
    triangles = np.minimum((frequency - low) / (middle - low), (high - frequency) / (high - middle)).clip(min=0)
    return triangles * 2 / (high - low)


FILTERS = make_filters()


def reference_mel_power(waveform: np.ndarray) -> np.ndarray:
    """`(frames, mels)` of the waveform with its ends mirrored, through a Hann window."""
    waveform = np.pad(waveform, (0, max(WINDOW // 2 + 1 - len(waveform), 0)))
    waveform = np.pad(waveform, WINDOW // 2, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    windows = np.lib.stride_tricks.sliding_window_view(waveform, WINDOW)[::HOP] * hann
    return np.abs(np.fft.rfft(windows)) ** 2 @ FILTERS.T


def reference_waveform(file: bytes) -> np.ndarray:
    frames, rate = soundfile.read(io.BytesIO(file), dtype="float64", always_2d=True)
    mono = frames.mean(axis=1)
    return mono if rate == RATE else soxr.resample(mono, rate, RATE, quality="HQ")


class Reference:
    """What a model's weights say of a file in float64."""

    def __init__(self, model: torch.nn.Module, extractor: HTSATFeatureExtractor):
        self.model, self.extractor = copy.deepcopy(model).double(), extractor

    def __call__(self, file: bytes) -> dict[str, np.ndarray]:
        waveform = reference_waveform(file)
        power = reference_mel_power(waveform)
        log_mel = 10 * np.log10(np.maximum(power, 1e-10))
        repeats = max(self.extractor.clip_frames // len(log_mel), 1)
        with torch.no_grad():
            outputs = self.model(torch.from_numpy(np.tile(log_mel, (repeats, 1)))[None])
        scores, _ = self.extractor.scores_over_time(outputs.logits[0], len(waveform) / RATE)
        return {
            "num_samples": len(waveform),
            "peak": np.abs(waveform).max(),
            "power": power,
            "scores": scores,
            "tags": outputs.clip_logits[0].sigmoid().numpy(),
        }


# ── sounds, files and models ──────────────────────────────────────────────────────────────────────────────────────────


@cache
def make_sounds(rate: int, seconds: float = 1.7) -> dict[str, np.ndarray]:
    count = round(rate * seconds)
    place, generator = np.arange(count), np.random.default_rng(3)
    impulse = np.zeros(count)
    impulse[count // 2] = 1.0
    return {
        "silence": np.zeros(count),
        "square wave at full scale": np.where(np.sin(2 * np.pi * 440 * place / rate) >= 0, 1.0, -1.0),
        "the fastest square wave": np.where(place % 2, 1.0, -1.0),
        "one impulse": impulse,
        "many impulses": (place % 1000 == 0).astype(float),
        "DC": np.ones(count),
        "denormals of float64": np.full(count, 1e-310),
        "denormals of float32": np.full(count, 1e-40),
        "noise": generator.uniform(-0.5, 0.5, count),
        "noise from beyond full scale": 1e6 * generator.standard_normal(count),
        "noise a hair below what is refused": MAX_SAMPLE * generator.uniform(-1, 1, count),
    }


SOUNDS = tuple(make_sounds(8_000))
LOUD = [name for name in SOUNDS if name.startswith("noise ")]


def mixture(count: int, rate: int = RATE) -> np.ndarray:
    """Tones that come and go over a little noise, within [-0.9, 0.9]."""
    seconds = np.arange(count) / rate
    tones = np.sin(2 * np.pi * 300 * seconds) * (np.sin(2 * np.pi * 1.3 * seconds) > 0) + np.sin(12_000 * seconds)
    return 0.3 * tones + 0.02 * np.random.default_rng(5).uniform(-1, 1, count)


def encode(samples: np.ndarray, rate: int = RATE, container: str = "WAV", subtype: str = "DOUBLE") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


@pytest.fixture(scope="module")
def model() -> HTSATForSoundEventDetection:
    torch.manual_seed(11)
    config = HTSATConfig(**SMALL, problem_type="multi_label_classification")
    return enliven(HTSATForSoundEventDetection(config)).eval()


@pytest.fixture(scope="module")
def front_end() -> HTSATFeatureExtractor:
    return HTSATFeatureExtractor(clip_frames=256)


@pytest.fixture(scope="module")
def detect(model, front_end) -> HTSATSoundEventDetectionPipeline:
    return HTSATSoundEventDetectionPipeline(model=model, feature_extractor=front_end, return_scores=True)


@pytest.fixture(scope="module")
def reference(model, front_end) -> Reference:
    return Reference(model, front_end)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lesser_models(model, folder) -> dict[str, tuple[torch.dtype, torch.nn.Module]]:
    """The same weights in half precision: loaded so, and cast as a whole."""
    models = {}
    for dtype in HALF:
        loaded = HTSATForSoundEventDetection.from_pretrained(folder, dtype=dtype).eval()
        models |= {f"loaded in {dtype}": (dtype, loaded), f"cast to {dtype}": (dtype, copy.deepcopy(model).to(dtype))}
    return models


def tag_scores(found: dict) -> np.ndarray:
    return np.array(list(found["tags"].values()))


def assert_as_reference(found: dict, wanted: dict, tolerance: float):
    assert found["num_samples"] == wanted["num_samples"]
    assert found["scores"].shape == wanted["scores"].shape
    np.testing.assert_allclose(found["scores"], wanted["scores"], rtol=0, atol=tolerance)  # NaN would differ, too
    np.testing.assert_allclose(tag_scores(found), wanted["tags"], rtol=0, atol=tolerance)


# ── every sound at every rate ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", SOUNDS)
def test_a_file_scores_in_float32_as_in_float64(detect, reference, name, rate):
    file = encode(make_sounds(rate)[name], rate)
    found, wanted = detect(file), reference(file)
    amplitude = 10 ** (found["log_mel"].astype(np.float64) / 20)
    wanted_amplitude = np.sqrt(np.maximum(wanted["power"], 1e-10))
    error = np.abs(amplitude - wanted_amplitude).max()
    assert error <= AMPLITUDE * max(wanted_amplitude.max(), wanted["peak"])
    is_covered = rate >= 2 * HIGHEST
    if is_covered or name not in LOUD:
        assert_as_reference(found, wanted, FLOAT32 if is_covered else FLOAT32_ABOVE_THE_SOURCE)


@pytest.mark.parametrize("rate", [8_000, 32_000, 192_000])
@pytest.mark.parametrize("name", SOUNDS)
def test_half_precision_stays_finite_and_close_to_float64(model, front_end, lesser_models, reference, name, rate):
    waveform = load_audio(encode(make_sounds(rate)[name], rate), RATE)
    features = front_end(waveform, sampling_rate=RATE, return_tensors="pt")
    models = {**lesser_models, **{f"autocast to {dtype}": (dtype, model) for dtype in HALF}}
    with torch.no_grad():
        wanted = reference.model(**features)
        for way, (dtype, lesser) in models.items():
            with torch.autocast("cpu", dtype=dtype) if "autocast" in way else contextlib.nullcontext():
                outputs = lesser(**features)
            for field in ("logits", "clip_logits"):
                difference = outputs[field].double().sigmoid() - wanted[field].sigmoid()
                assert difference.abs().max() < HALF[dtype], (way, field)  # False for NaN


@pytest.mark.parametrize("name", ["denormals of float64", "denormals of float32"])
def test_denormals_score_as_silence_whether_or_not_the_processor_flushes_them(detect, name):
    file = encode(make_sounds(RATE)[name])
    silence = detect(encode(np.zeros(len(make_sounds(RATE)[name]))))
    found = {}
    for is_flushed in (False, True):
        torch.set_flush_denormal(is_flushed)
        try:
            found[is_flushed] = detect(file)
        finally:
            torch.set_flush_denormal(False)
        assert np.array_equal(found[is_flushed]["scores"], silence["scores"])
    assert tag_scores(found[False]).tolist() == tag_scores(found[True]).tolist() == tag_scores(silence).tolist()


@pytest.mark.parametrize("rate", [8_000, 44_100, 96_000])
def test_another_resampler_gives_nearly_the_same_scores(detect, rate):
    """SciPy's, where both pass: a sound of less than 2 kHz. Their filters' tails differ by 2e-4 of the sound."""
    seconds = np.arange(2 * rate) / rate
    sound = sum(0.1 * np.sin(2 * np.pi * hertz * seconds + hertz) for hertz in np.arange(100, 2000, 41))
    sound *= np.hanning(len(sound)) ** 2  # both guess at what lies beyond the ends
    common = np.gcd(rate, RATE)
    theirs = resample_poly(sound, RATE // common, rate // common, window=("kaiser", 12.0))
    ours = load_audio(encode(sound, rate), RATE)
    assert len(ours) == len(theirs)
    assert np.abs(ours - theirs).max() < 5e-4 * np.abs(sound).max()
    noise = 1e-3 * np.random.default_rng(0).standard_normal(len(ours))  # above the tails
    found, wanted = detect(ours + noise), detect(theirs + noise)
    assert np.abs(found["scores"] - wanted["scores"]).max() < 0.01


# ── every format and every number of channels ─────────────────────────────────────────────────────────────────────────

# How far a sample may be from the one that was stored: half a step of the integers, a step where libsndfile truncates,
# or so much of the sample itself. ADPCM guesses the next sample from those before, and is as good as its guesses.
STEP = {"PCM_U8": 2**-7, "PCM_S8": 2**-7, "PCM_16": 2**-15, "PCM_24": 2**-23, "PCM_32": 2**-31, "ALAC_24": 2**-23}
FORMATS = {
    ("WAV", "PCM_U8"): 0.2,
    ("WAV", "PCM_16"): 2e-3,
    ("WAV", "PCM_24"): 2e-5,
    ("WAV", "PCM_32"): 1e-5,
    ("WAV", "FLOAT"): 1e-5,
    ("WAV", "DOUBLE"): 1e-5,
    ("WAV", "ALAW"): 0.2,
    ("WAV", "ULAW"): 0.2,
    ("WAV", "IMA_ADPCM"): 0.2,
    ("WAV", "MS_ADPCM"): 0.2,
    ("FLAC", "PCM_S8"): 0.2,
    ("FLAC", "PCM_16"): 2e-3,
    ("FLAC", "PCM_24"): 2e-5,
    ("AIFF", "PCM_S8"): 0.2,
    ("AIFF", "PCM_24"): 2e-5,
    ("AU", "DOUBLE"): 1e-5,
    ("CAF", "ALAC_24"): 2e-5,
    ("W64", "PCM_24"): 2e-5,
    ("RF64", "PCM_24"): 2e-5,
}


@pytest.mark.parametrize("container, subtype", FORMATS)
def test_every_format_scores_as_in_float64(detect, reference, container, subtype):
    sounds = make_sounds(44_100)
    for name in ("silence", "square wave at full scale", "one impulse", "DC", "noise"):
        file = encode(0.999 * sounds[name], 44_100, container, subtype)
        assert_as_reference(detect(file), reference(file), FLOAT32)


@pytest.mark.parametrize("container, subtype", FORMATS)
def test_a_sound_scores_the_same_in_every_format_but_for_what_the_format_rounds_off(detect, container, subtype):
    sound = mixture(60_000)
    file = encode(sound, RATE, container, subtype)
    if subtype in STEP:
        assert np.abs(load_audio(file, RATE)[: len(sound)] - sound).max() <= STEP[subtype] + 2**-24
    difference = np.abs(detect(file)["scores"] - detect(sound)["scores"]).max()
    assert difference < FORMATS[container, subtype]


@pytest.mark.parametrize("num_channels", range(1, 9))
@pytest.mark.parametrize("rate, container, subtype", [(48_000, "WAV", "PCM_24"), (8_000, "FLAC", "PCM_16")])
def test_one_to_eight_different_channels_score_as_their_mean_in_float64(
    detect, reference, num_channels, rate, container, subtype
):
    channels = np.stack([np.roll(mixture(rate, rate), 997 * channel) for channel in range(num_channels)], axis=1)
    file = encode(channels, rate, container, subtype)
    assert_as_reference(detect(file), reference(file), FLOAT32 if rate > RATE else FLOAT32_ABOVE_THE_SOURCE)


@pytest.mark.parametrize("num_channels", range(2, 9))
def test_channels_that_are_alike_change_no_score(detect, num_channels):
    """But for the rounding of their mean: a third of three times a number is not always that number in float32."""
    sound = mixture(50_000)
    found, wanted = detect(encode(np.stack([sound] * num_channels, axis=1))), detect(encode(sound))
    np.testing.assert_allclose(found["scores"], wanted["scores"], rtol=0, atol=FLOAT32)
    if num_channels == 2:
        assert np.array_equal(found["scores"], wanted["scores"])


def test_a_silent_channel_halves_the_sound_and_an_inverted_one_leaves_silence(detect):
    sound = mixture(50_000).astype(np.float32)
    half, silence = detect(sound / 2), detect(np.zeros_like(sound))
    beside_silence = detect(encode(np.stack([sound, 0 * sound], axis=1), subtype="FLOAT"))
    beside_inverse = detect(encode(np.stack([sound, -sound], axis=1), subtype="FLOAT"))
    assert np.array_equal(beside_silence["scores"], half["scores"])
    assert np.array_equal(beside_inverse["scores"], silence["scores"])
    assert not np.array_equal(half["scores"], silence["scores"])


# ── lengths ───────────────────────────────────────────────────────────────────────────────────────────────────────────

# A clip of 128 frames is heard twice, of 129 once; 256 fill the window, and from 257 on there are several.
BORDERS = (WINDOW // 2, HOP, 127 * HOP, 128 * HOP, 255 * HOP, 256 * HOP)
LENGTHS = sorted({1, 2, 3, *(border + more for border in BORDERS for more in (-1, 0, 1))})


@pytest.mark.parametrize("num_samples", LENGTHS)
def test_every_length_about_a_window_scores_as_in_float64(detect, reference, num_samples):
    file = encode(mixture(num_samples))
    assert_as_reference(detect(file), reference(file), FLOAT32)


@pytest.mark.parametrize("more", [-1, 0, 1])
@pytest.mark.parametrize("rate", [8_000, 44_100, 96_000, 192_000])
def test_lengths_about_a_window_at_other_rates_score_as_in_float64(detect, reference, rate, more):
    file = encode(mixture(round(256 * HOP * rate / RATE) + more, rate), rate)
    assert_as_reference(detect(file), reference(file), FLOAT32 if rate > RATE else FLOAT32_ABOVE_THE_SOURCE)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("num_samples", [1, 2, WINDOW // 2 + 1, 256 * HOP, 256 * HOP + 1, 10 * RATE])
def test_every_length_is_heard_in_half_precision(folder, reference, dtype, num_samples):
    lesser = pipeline("sound-event-detection", model=str(folder), dtype=dtype, return_scores=True)
    file = encode(mixture(num_samples))
    assert_as_reference(lesser(file), reference(file), HALF[dtype])


# ── what is no sound ──────────────────────────────────────────────────────────────────────────────────────────────────

# (place in a recording of five seconds at 48 kHz, the second that is named)
PLACES = [(0, "0.000 s"), (168_000, "3.500 s"), (239_999, "5.000 s")]
POISONS = [np.nan, np.inf, -np.inf, 1e13, -3e38, 1e300]


def poisoned(place: int, poison: float, num_channels: int = 2) -> np.ndarray:
    samples = np.stack([mixture(240_000, 48_000)] * num_channels, axis=1)
    samples[place, -1] = poison
    return samples


@pytest.fixture(scope="module")
def tag(model, front_end) -> HTSATAudioClassificationPipeline:
    return HTSATAudioClassificationPipeline(model=model, feature_extractor=front_end)


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("place, second", PLACES)
def test_a_sample_that_is_no_sound_is_refused_and_its_second_named(detect, tag, tmp_path, poison, place, second):
    samples = poisoned(place, poison)
    path = tmp_path / "poisoned.wav"
    path.write_bytes(encode(samples, 48_000))
    row = {"array": samples, "sampling_rate": 48_000, "path": "a row"}
    named = {"poisoned.wav": path, "the given bytes": path.read_bytes(), "a row": row}
    for name, source in named.items():
        for task in (detect, tag):
            with pytest.raises(AudioError) as refused:
                task(source)
            sentence = str(refused.value)
            assert f"{name} holds samples that are NaN or infinite, or beyond 1e+12" in sentence
            assert f"the first at {second}: " in sentence and "\n" not in sentence


@pytest.mark.parametrize("poison", POISONS[:4])
def test_the_feature_extractor_refuses_them_too_and_names_the_place(front_end, poison):
    sound = mixture(RATE).astype(np.float32)
    sound[20_000] = poison * 1e4  # arrays that come resampled may overshoot
    with pytest.raises(ValueError, match="The waveform holds NaN or infinite samples, .* the first at index 20000;"):
        front_end(sound, sampling_rate=RATE)
    with pytest.raises(ValueError, match="Waveform 1 holds NaN or infinite samples, "):
        front_end([mixture(RATE), torch.from_numpy(sound)], sampling_rate=RATE)


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("rate", [RATE, 48_000])
def test_a_live_detector_refuses_the_block_and_hears_on_as_if_it_had_not_come(model, front_end, poison, rate):
    sound, bad = mixture(6 * rate, rate), np.zeros(1000)
    bad[rate // 1000] = poison
    detector = LiveDetector(model, front_end, sampling_rate=rate)
    events = detector.feed(sound[: 4 * rate])
    with pytest.raises(AudioError, match=r"^After 4\.000 s, this block holds samples .* the first at 0\.001 s: "):
        detector.feed(bad)
    events += detector.feed(sound[4 * rate :]) + detector.finish()
    assert events == list(LiveDetector(model, front_end, sampling_rate=rate).listen([sound]))
    assert events and all(np.isfinite(event["score"]) for event in events)


@pytest.mark.parametrize("poison", POISONS)
def test_one_such_recording_among_many_stops_nothing_where_that_is_asked(detect, tag, tmp_path, poison):
    good, bad = encode(mixture(50_000)), encode(poisoned(100_000, poison), 48_000)
    for task in (detect, tag):
        answers = task([good, bad, good], batch_size=3, on_error="skip")
        assert answers[1] is None and "the first at 2.083 s" in task.failed[1]
        assert answers[0] is not None and str(answers[0]) == str(answers[2])
    for name, file in {"a.wav": good, "b.wav": bad, "c.wav": good}.items():
        (tmp_path / name).write_bytes(file)
    rows = sum(hear_part(detect, find_recordings(str(tmp_path)), range(3), DetectionSettings()), [])
    first, second, third = sorted(rows, key=lambda row: row["number"])
    assert "b.wav holds samples" in second["error"] and first["error"] is third["error"] is None
    assert np.isfinite([tag["score"] for tag in first["tags"]]).all() and first["tags"] == third["tags"]


@pytest.mark.parametrize("poison", POISONS)
def test_training_leaves_such_a_clip_out(front_end, make_config, poison):
    row = {"video_id": "bad", "labels": [], "human_labels": None, "events": None}
    row["audio"] = {"bytes": encode(poisoned(100_000, poison), 48_000), "path": None}
    example = ClipDataset(ListRows([row]), front_end, make_config(problem_type="multi_label_classification"))[0]
    assert example.features is None


# ── half precision where bands are empty ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_corpus_is_heard_in_half_precision_by_a_model_of_empty_bands_too(tmp_path, monkeypatch, capsys, dtype):
    """Bands that were silent in all of training have no variance; normalised, a rounding of 0.06 dB counts 20."""
    extractor = HTSATFeatureExtractor(clip_frames=256, sampling_rate=16_000)
    config = HTSATConfig(**SMALL, sampling_rate=16_000, problem_type="multi_label_classification")
    model = enliven(HTSATForSoundEventDetection(config)).eval()
    is_empty = extractor.mel_filters.sum(1) == 0
    assert is_empty.sum() >= 3
    model.htsat.mel_norm.running_var[is_empty] = 0.0
    model.htsat.mel_norm.running_mean[is_empty] = -100.0
    model.save_pretrained(tmp_path / "model")
    extractor.save_pretrained(tmp_path / "model")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_bytes(encode(mixture(RATE)))
    exact = HTSATSoundEventDetectionPipeline(model=model, feature_extractor=extractor, return_scores=True)
    wanted = exact(tmp_path / "in" / "a.wav")["tags"]
    script = ROOT / "training_scripts" / "run_detection.py"
    options = ["--model", tmp_path / "model", "--output", tmp_path / "found", "--dtype", dtype, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, [tmp_path / "in", *options])])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    (row,) = pq.read_table(next((tmp_path / "found").glob("part-*.parquet"))).to_pylist()
    assert len(row["tags"]) == 5
    for found in row["tags"]:
        assert found["score"] == pytest.approx(wanted[found["label"]], abs=HALF[getattr(torch, dtype)])


# ── the model of full size ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_model_of_full_size_scores_in_every_precision_as_in_float64(tmp_path):
    preset = ROOT / "configuration" / "models" / "htsat-tiny-audioset"
    torch.manual_seed(0)
    model = enliven(HTSATForSoundEventDetection(HTSATConfig.from_pretrained(preset))).eval()
    model.save_pretrained(tmp_path)
    extractor = HTSATFeatureExtractor.from_pretrained(tmp_path)
    reference = Reference(model, extractor)
    tolerances = {torch.float32: FLOAT32, **HALF}  # worst: 5e-7, 8.9e-3, 1.1e-3
    detectors = {
        dtype: pipeline("sound-event-detection", model=str(tmp_path), dtype=dtype, return_scores=True)
        for dtype in tolerances
    }
    sounds = make_sounds(44_100, 10.5)
    for name in ("silence", "square wave at full scale", "one impulse", "DC", "noise", "noise from beyond full scale"):
        stereo = np.stack([sounds[name], np.roll(sounds[name], 4321)], axis=1)
        file = encode(stereo, 44_100)
        wanted = reference(file)
        for dtype, detect in detectors.items():
            assert_as_reference(detect(file), wanted, tolerances[dtype])
