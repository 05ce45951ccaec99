"""Any waveform in, the authors' log-mel spectrogram out: the same in every form, alone and in a batch."""

import json
import logging

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, BatchFeature
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

import modeling_htsat
from modeling_htsat import HTSATFeatureExtractor
from modeling_htsat import feature_extraction_htsat as module

RATE = 32_000
SECOND = 101  # frames


def slow_log_mel(waveform: np.ndarray, rate: int = RATE, hop: int = 320) -> np.ndarray:
    """The same spectrogram by transformers' own NumPy code, frame by frame: `(frames, mels)`."""
    filters = mel_filter_bank(513, 64, 50.0, 14000.0, rate, norm="slaney", mel_scale="slaney")
    return spectrogram(
        waveform.astype(np.float64),
        window_function(1024, "hann"),
        frame_length=1024,
        hop_length=hop,
        power=2.0,
        center=True,
        pad_mode="reflect",
        mel_filters=filters,
        mel_floor=1e-10,
        log_mel="dB",
    ).T


def features_of(extractor: HTSATFeatureExtractor, waveform, **options) -> np.ndarray:
    """The spectrograms `(batch, frames, mels)` of whatever came."""
    return extractor(waveform, sampling_rate=extractor.sampling_rate, **options)["input_features"]


@pytest.fixture
def plain() -> HTSATFeatureExtractor:
    """Leaves short clips as they are, so that the frames can be counted."""
    return HTSATFeatureExtractor(short_clips="stretch")


# ── the spectrogram ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("num_samples", [513, 1024, 7_001, 32_000])
def test_the_spectrogram_is_that_of_transformers_numpy_code(plain, make_sound, num_samples):
    sound = make_sound(num_samples)
    (features,) = features_of(plain, sound)
    expected = slow_log_mel(sound)
    assert features.shape == expected.shape == (1 + num_samples // 320, 64)
    assert np.abs(features - expected).max() < 1e-4  # decibels


def test_ten_seconds_have_1001_frames_of_64_mels_in_float32(plain, make_sound):
    features = features_of(plain, make_sound(10 * RATE))
    assert features.shape == (1, 1001, 64)
    assert features.dtype == np.float32


def test_speech_commands_bands_above_half_the_rate_are_empty_and_nobody_warns(recwarn, make_sound):
    extractor = HTSATFeatureExtractor(sampling_rate=16_000, hop_length=160, short_clips="stretch")
    assert not list(recwarn)
    sound = make_sound(16_000)
    (features,) = features_of(extractor, sound)
    assert features.shape == (SECOND, 64)
    assert np.abs(features - slow_log_mel(sound, 16_000, 160)).max() < 1e-4
    empty = (extractor.mel_filters == 0).all(1).numpy()
    assert 0 < empty.sum() < 20
    assert (features[:, empty] == -100).all()
    assert (features[:, ~empty] > -99).all()


def test_silence_is_minus_100_decibels(plain):
    assert (features_of(plain, np.zeros(7_001, np.float32)) == -100).all()


def test_a_tone_is_loudest_in_the_band_around_it_and_its_level_counts_in_decibels(plain):
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    (loud,), (quiet,) = features_of(plain, 0.5 * tone), features_of(plain, 0.05 * tone)
    filters = plain.mel_filters.numpy()
    band = loud[50].argmax()
    assert band == filters[:, round(1000 / (RATE / 1024))].argmax()
    assert (loud - quiet)[50, band] == pytest.approx(20, abs=1e-3)


def test_fifty_seconds_equal_one_single_fourier_transform(plain, make_sound, monkeypatch):
    frames_at_once = []
    compute = HTSATFeatureExtractor._log_mel

    def watch(self, waveforms):
        log_mel = compute(self, waveforms)
        frames_at_once.append(log_mel.shape[1])
        return log_mel

    monkeypatch.setattr(HTSATFeatureExtractor, "_log_mel", watch)
    sound = make_sound(50 * RATE)
    (features,) = features_of(plain, sound)
    window = torch.hann_window(1024)
    spectrum = torch.stft(torch.from_numpy(sound), 1024, 320, window=window, return_complex=True).abs().square()
    expected = 10 * (plain.mel_filters @ spectrum).clamp(min=1e-10).log10().T.numpy()
    assert features.shape == expected.shape == (5001, 64)
    assert np.abs(features - expected).max() < 1e-3
    assert len(frames_at_once) > 1  # it did cross a block
    assert max(frames_at_once) <= module.FRAMES_AT_ONCE


def test_block_borders_leave_no_trace(plain, make_sound, monkeypatch):
    clips = [make_sound(length, seed) for seed, length in enumerate((9_000, 4_321, 513))]
    whole = plain(clips, RATE)
    blocks = []
    compute = HTSATFeatureExtractor._log_mel
    monkeypatch.setattr(
        HTSATFeatureExtractor, "_log_mel", lambda self, samples: blocks.append(samples.shape) or compute(self, samples)
    )
    monkeypatch.setattr(module, "FRAMES_AT_ONCE", 15)  # of all three clips together
    monkeypatch.setattr(module, "FEWEST_FRAMES", 1)
    in_blocks = plain(clips, RATE)
    assert len(blocks) == 6 and max(blocks) == (3, 4 * 320 + 1024)
    assert np.allclose(in_blocks["input_features"], whole["input_features"], atol=1e-4)
    assert np.array_equal(in_blocks["attention_mask"], whole["attention_mask"])


def test_two_calls_give_the_same_bits_and_leave_the_input_alone(extractor, make_sound):
    sound = make_sound(RATE)
    before = sound.copy()
    random_state = torch.random.get_rng_state()
    first, second = features_of(extractor, sound), features_of(extractor, sound)
    assert np.array_equal(first, second)
    assert np.array_equal(sound, before)
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_autocast_does_not_touch_the_spectrogram(extractor, make_sound):
    sound = make_sound(RATE)
    expected = features_of(extractor, sound)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(features_of(extractor, sound), expected)


def test_no_gradient_is_kept(extractor, make_sound):
    sound = torch.from_numpy(make_sound(1_000)).requires_grad_()
    assert not features_of(extractor, sound, return_tensors="pt").requires_grad


# ── forms of input ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda sound: sound.tolist(), id="list of floats"),
        pytest.param(tuple, id="tuple of NumPy scalars"),
        pytest.param(torch.from_numpy, id="tensor"),
        pytest.param(lambda sound: sound.astype(np.float64), id="float64"),
        pytest.param(lambda sound: torch.from_numpy(sound).double(), id="float64 tensor"),
        pytest.param(lambda sound: torch.from_numpy(sound).requires_grad_(), id="tensor with gradient"),
        pytest.param(lambda sound: sound[None], id="mono (1, n)"),
        pytest.param(lambda sound: torch.from_numpy(sound)[None], id="mono tensor (1, n)"),
        pytest.param(lambda sound: [sound], id="list of one array"),
        pytest.param(lambda sound: [sound[None]], id="list of one mono (1, n)"),
        pytest.param(lambda sound: [torch.from_numpy(sound)], id="list of one tensor"),
        pytest.param(lambda sound: [sound.tolist()], id="list of one list"),
        pytest.param(lambda sound: np.repeat(sound, 2)[::2], id="array with strides"),
        pytest.param(lambda sound: sound[::-1].copy()[::-1], id="reversed view"),
        pytest.param(lambda sound: sound.astype(">f4"), id="big-endian"),
        pytest.param(lambda sound: np.frombuffer(sound.tobytes(), np.float32), id="read-only"),
    ],
)
def test_every_form_of_one_clip_gives_the_same_features(plain, make_sound, change):
    sound = make_sound(5_003)
    features = features_of(plain, change(sound))
    assert features.shape == (1, 16, 64)
    assert np.array_equal(features, features_of(plain, sound))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(np.stack, id="array (clips, samples)"),
        pytest.param(lambda clips: torch.from_numpy(np.stack(clips)), id="tensor (clips, samples)"),
        pytest.param(tuple, id="tuple of arrays"),
        pytest.param(lambda clips: [clip.tolist() for clip in clips], id="list of lists"),
        pytest.param(lambda clips: [clips[0], clips[1].tolist(), torch.from_numpy(clips[2])], id="mixed list"),
        pytest.param(lambda clips: np.stack(clips)[:, None], id="array (clips, 1, samples)"),
    ],
)
def test_every_form_of_a_batch_gives_the_same_features(plain, make_sound, change):
    clips = [make_sound(5_003, seed) for seed in range(3)]
    features = features_of(plain, change(clips))
    assert features.shape == (3, 16, 64)
    assert np.array_equal(features, features_of(plain, clips))
    assert not np.array_equal(features[0], features[1])


@pytest.mark.parametrize(
    ("pcm_type", "zero", "full_scale"),
    [(np.int8, 0, 2**7), (np.uint8, 128, 2**7), (np.int16, 0, 2**15), (np.int32, 0, 2**31)],
)
def test_integer_pcm_is_scaled_to_the_floats_it_stands_for(plain, make_sound, pcm_type, zero, full_scale):
    pcm = (make_sound(5_003).astype(np.float64) * full_scale).round().astype(np.int64) + zero
    floats = ((pcm - zero) / full_scale).astype(np.float32)
    expected = features_of(plain, floats)
    pcm = pcm.astype(pcm_type)
    assert np.array_equal(features_of(plain, pcm), expected)
    assert np.array_equal(features_of(plain, torch.from_numpy(pcm)), expected)
    assert np.array_equal(features_of(plain, [pcm]), expected)
    assert expected.max() > 0  # loud: full scale was meant


def test_a_python_list_of_whole_numbers_is_not_pcm(plain):
    assert np.array_equal(features_of(plain, [0, 1, 0, -1] * 300), features_of(plain, np.array([0.0, 1, 0, -1] * 300)))


@pytest.mark.parametrize("num_samples", [1, 2, 319, 320, 511, 512, 513, 640])
def test_any_length_from_one_sample_has_features(extractor, plain, make_sound, num_samples):
    sound = make_sound(num_samples)
    features = features_of(plain, sound)
    assert features.shape == (1, plain.num_frames(num_samples), 64)
    assert np.isfinite(features).all()
    filled_up = np.pad(sound, (0, max(513 - num_samples, 0)))  # half a window is mirrored, which takes one sample more
    assert np.abs(features[0] - slow_log_mel(filled_up)).max() < 1e-4
    assert features_of(extractor, sound).shape[1] <= 1024


def test_clips_of_unequal_length_are_as_if_each_were_alone(extractor, make_sound):
    clips = [make_sound(length, seed) for seed, length in enumerate((1, 700, 5 * RATE, 200_001, 11 * RATE))]
    batch = extractor(clips, RATE)
    assert batch["input_features"].shape == (5, 1101, 64)
    assert batch["attention_mask"].shape == (5, 1101)
    for clip, features, mask in zip(clips, batch["input_features"], batch["attention_mask"], strict=True):
        alone = extractor(clip, RATE)
        frames = len(alone["input_features"][0])
        assert alone["attention_mask"].all()
        assert mask[:frames].all()
        assert not mask[frames:].any()
        assert np.allclose(features[:frames], alone["input_features"][0], atol=1e-4, rtol=0)
        assert (features[frames:] == -100).all()


def test_padding_value_fills_the_batch_up(make_sound):
    extractor = HTSATFeatureExtractor(padding_value=-7.5, short_clips="stretch")
    features = features_of(extractor, [make_sound(3_200), make_sound(1_600)])
    assert (features[1, 6:] == -7.5).all()
    assert (features[1, :6] != -7.5).all()


# ── short clips ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("num_samples", "num_repeats"), [(700, 341), (RATE, 10), (5 * RATE, 2), (163_200, 2), (163_840, 1), (10 * RATE, 1)]
)
def test_repeat_puts_as_many_whole_copies_as_fit_into_1024_frames(
    extractor, plain, make_sound, num_samples, num_repeats
):
    sound = make_sound(num_samples)
    (features,), (once,) = features_of(extractor, sound), features_of(plain, sound)
    assert extractor.num_repeats(num_samples) == num_repeats
    assert np.array_equal(features, np.tile(once, (num_repeats, 1)))
    assert 512 < len(features) <= 1024


def test_pad_fills_up_with_silence_which_the_model_hears(plain, make_sound):
    extractor = HTSATFeatureExtractor(short_clips="pad")
    features = extractor(make_sound(RATE), RATE)
    assert features["input_features"].shape == (1, 1024, 64)
    assert np.array_equal(features["input_features"][0, :SECOND], features_of(plain, make_sound(RATE))[0])
    assert (features["input_features"][0, SECOND:] == -100).all()
    assert features["attention_mask"].all()


def test_pad_means_silence_whatever_the_padding_value(make_sound):
    extractor = HTSATFeatureExtractor(short_clips="pad", padding_value=0.0)
    assert (features_of(extractor, make_sound(RATE))[0, SECOND:] == -100).all()


def test_stretch_leaves_the_frames_to_the_model(make_sound):
    assert features_of(HTSATFeatureExtractor(short_clips="stretch"), make_sound(RATE)).shape == (1, SECOND, 64)


@pytest.mark.parametrize(("rule", "num_frames"), [("repeat", 1010), ("pad", 1024), ("stretch", SECOND)])
def test_the_rule_for_short_clips_can_be_chosen_per_call(extractor, make_sound, rule, num_frames):
    sound = make_sound(RATE)
    chosen = features_of(extractor, sound, short_clips=rule)
    assert chosen.shape == (1, num_frames, 64)
    assert np.array_equal(chosen, features_of(HTSATFeatureExtractor(short_clips=rule), sound))
    assert extractor.short_clips == "repeat"


@pytest.mark.parametrize("rule", ["repeat", "pad", "stretch"])
def test_a_long_clip_is_the_same_under_every_rule(extractor, make_sound, rule):
    sound = make_sound(11 * RATE)
    assert features_of(extractor, sound, short_clips=rule).shape == (1, 1101, 64)


def test_the_rule_follows_the_models_clip_frames(small_extractor, make_sound):
    assert features_of(small_extractor, make_sound(RATE)).shape == (1, 2 * SECOND, 64)
    assert features_of(small_extractor, make_sound(RATE), short_clips="pad").shape == (1, 256, 64)


def test_an_unknown_rule_is_refused_with_the_known_ones(extractor):
    with pytest.raises(ValueError, match=r"`short_clips` is 'loop'; it must be one of repeat, pad, stretch"):
        HTSATFeatureExtractor(short_clips="loop")
    with pytest.raises(ValueError, match=r"'loop'"):
        extractor(np.zeros(700), RATE, short_clips="loop")


# ── what comes out ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("return_tensors", "tensor_type"), [(None, np.ndarray), ("np", np.ndarray), ("pt", torch.Tensor)]
)
@pytest.mark.parametrize("form", [lambda sound: sound, lambda sound: [sound, sound]], ids=["one", "many"])
def test_a_batch_feature_always_comes_out(extractor, make_sound, return_tensors, tensor_type, form):
    features = extractor(form(make_sound(RATE)), RATE, return_tensors=return_tensors)
    assert type(features) is BatchFeature
    assert set(features) == {"input_features", "attention_mask"}
    assert features["input_features"].ndim == 3
    assert all(isinstance(values, tensor_type) for values in features.values())
    assert features["input_features"].dtype in (np.float32, torch.float32)
    assert features["attention_mask"].dtype in (np.int64, torch.int64)


def test_the_mask_can_be_left_out_by_the_extractor_or_by_the_call(extractor, make_sound):
    without = HTSATFeatureExtractor(return_attention_mask=False)
    sound = make_sound(RATE)
    assert set(without(sound, RATE)) == {"input_features"}
    assert set(extractor(sound, RATE, return_attention_mask=False)) == {"input_features"}
    assert set(without(sound, RATE, return_attention_mask=True)) == {"input_features", "attention_mask"}


def test_features_are_ready_for_the_models_forward(extractor):
    assert extractor.model_input_names == ["input_features", "attention_mask"]


def test_the_device_asked_for_is_where_the_work_is_done(extractor, make_sound, monkeypatch):
    devices = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, target, *_, **__: devices.append(target) or tensor)
    extractor(make_sound(700), RATE, device="cpu:0")
    assert "cpu:0" in devices


# ── files and collators ───────────────────────────────────────────────────────────────────────────────────────────────


def test_an_extractor_survives_json_with_every_value_changed(tmp_path, make_sound):
    values = {
        "num_mel_bins": 32,
        "sampling_rate": 16_000,
        "window_length": 512,
        "hop_length": 160,
        "min_frequency": 20.0,
        "max_frequency": 7_500.0,
        "clip_frames": 256,
        "short_clips": "pad",
        "padding_value": -80.0,
        "return_attention_mask": False,
        "frames_per_step": 16,
    }
    extractor = HTSATFeatureExtractor(**values)
    extractor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert values.items() <= written.items()
    assert set(written) - set(values) == {"feature_extractor_type", "padding_side", "auto_map"}
    for loaded in (HTSATFeatureExtractor.from_pretrained(tmp_path), HTSATFeatureExtractor.from_dict(written)):
        assert loaded.to_dict() == extractor.to_dict()
        sound = make_sound(3_333)
        assert np.array_equal(loaded(sound, 16_000)["input_features"], extractor(sound, 16_000)["input_features"])


def test_auto_feature_extractor_finds_the_class_and_takes_other_values(extractor, tmp_path):
    extractor.save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path, short_clips="stretch")
    assert type(loaded) is HTSATFeatureExtractor
    assert loaded.to_dict() == {**extractor.to_dict(), "short_clips": "stretch"}


def test_a_file_that_names_feature_size_is_read_as_well():
    assert HTSATFeatureExtractor(feature_size=1, num_mel_bins=32).to_dict()["num_mel_bins"] == 32
    assert HTSATFeatureExtractor(feature_size=1, num_mel_bins=32).feature_size == 32


def test_pad_collates_single_clips_to_the_batch_that_the_call_makes(plain, make_sound):
    clips = [make_sound(length, seed) for seed, length in enumerate((3_000, 9_999, 700))]
    examples = [{name: values[0] for name, values in plain(clip, RATE).items()} for clip in clips]
    labels = [np.array([index, 0.5], np.float32) for index in range(3)]
    examples = [{**example, "labels": label} for example, label in zip(examples, labels, strict=True)]
    batch, expected = plain.pad(examples, return_tensors="pt"), plain(clips, RATE, return_tensors="pt")
    assert torch.equal(batch["attention_mask"].long(), expected["attention_mask"])
    assert torch.allclose(batch["input_features"], expected["input_features"], atol=1e-4, rtol=0)
    assert torch.equal(batch["labels"], torch.tensor([[0, 0.5], [1, 0.5], [2, 0.5]]))


# ── sound in blocks ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("block_size", [1, 97, 513, 4_000, 50_000])
@pytest.mark.parametrize("num_samples", [1, 513, 9_001])
def test_a_recording_in_blocks_has_the_features_of_the_whole(extractor, make_sound, block_size, num_samples):
    if num_samples > 2_000 and block_size == 1:
        num_samples = 2_000
    sound = make_sound(num_samples)
    blocks = (sound[start : start + block_size] for start in range(0, num_samples, block_size))
    features, expected = extractor.extract_blocks(blocks), extractor(sound, RATE, return_tensors="pt")
    assert features["input_features"].shape == expected["input_features"].shape
    assert torch.allclose(features["input_features"], expected["input_features"], atol=1e-4, rtol=0)
    assert torch.equal(features["attention_mask"], expected["attention_mask"])


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────────

GOOD = np.linspace(-0.5, 0.5, 700)


@pytest.mark.parametrize(
    ("audio", "named"),
    [
        pytest.param([], ["empty", "at least one sample"], id="empty list"),
        pytest.param(np.zeros(0), ["empty", "at least one sample"], id="empty array"),
        pytest.param([GOOD, np.zeros(0)], ["Waveform 1", "empty"], id="empty clip in a batch"),
        pytest.param(np.zeros((0, 700)), ["batch", "empty", "at least one clip"], id="empty batch"),
        pytest.param(np.zeros((2, 0)), ["empty"], id="two empty clips"),
        pytest.param(np.append(GOOD, np.nan), ["NaN", "nan_to_num"], id="NaN"),
        pytest.param(np.append(GOOD, -np.inf), ["infinite", "nan_to_num"], id="infinite"),
        pytest.param([GOOD, np.append(GOOD, np.nan)], ["Waveform 1", "NaN"], id="NaN in a batch"),
        pytest.param(GOOD.astype(complex), ["complex128", "real samples"], id="complex"),
        pytest.param([1 + 2j, 3j], ["complex128"], id="complex list"),
        pytest.param(np.stack([GOOD, GOOD], 1), ["(700, 2)", "one channel", "mean(axis=1)"], id="stereo (n, 2)"),
        pytest.param(
            [np.stack([GOOD, GOOD])], ["Waveform 0", "(2, 700)", "one channel", "mean"], id="stereo in a list"
        ),
        pytest.param(np.zeros((3, 2, 700)), ["(2, 700)", "one channel"], id="batch of stereo"),
        pytest.param(np.float32(0.5), ["one channel"], id="one number"),
        pytest.param(GOOD > 0, ["bool", "real samples"], id="bool"),
        pytest.param(np.arange(700), ["int64", "8-, 16- or 32-bit integer PCM"], id="int64 array"),
        pytest.param(torch.arange(700), ["int64", "8-, 16- or 32-bit integer PCM"], id="int64 tensor"),
        pytest.param(np.arange(700, dtype=np.uint16), ["uint16"], id="uint16"),
        pytest.param("sound.wav", ["str", "load_audio"], id="path"),
        pytest.param(b"RIFF", ["bytes", "load_audio"], id="bytes"),
        pytest.param(["sound.wav"], ["not an array of numbers"], id="list of paths"),
        pytest.param(None, ["NoneType", "samples"], id="None"),
        pytest.param([GOOD, None], ["Waveform 1", "not an array of numbers"], id="None in a batch"),
        pytest.param({"array": GOOD, "sampling_rate": RATE}, ["dict", "samples"], id="dictionary"),
        pytest.param([[0.1, 0.2], 0.3], ["Waveform 1", "shape ()"], id="ragged nesting"),
    ],
)
def test_what_cannot_be_heard_is_refused_in_one_sentence_with_its_remedy(extractor, audio, named):
    with pytest.raises(ValueError) as caught:
        extractor(audio, RATE)
    message = str(caught.value)
    missing = [words for words in named if words not in message]
    assert not missing, message


def test_a_long_double_is_heard_like_a_double(plain):
    assert np.array_equal(features_of(plain, GOOD.astype(np.longdouble)), features_of(plain, GOOD))


def test_a_list_of_tensors_of_no_dimension_is_a_clip(plain):
    sound = torch.linspace(-0.5, 0.5, 700)
    assert np.array_equal(features_of(plain, list(sound)), features_of(plain, sound))


def test_the_wrong_rate_is_refused_with_both_rates_and_the_remedy(extractor):
    with pytest.raises(
        ValueError, match=r"listens at 32000 Hz and received audio at 44100 Hz.*load_audio\(path, 32000\)"
    ):
        extractor(GOOD, sampling_rate=44_100)
    speech = HTSATFeatureExtractor(sampling_rate=16_000, hop_length=160)
    with pytest.raises(ValueError, match="listens at 16000 Hz and received audio at 32000 Hz"):
        speech(GOOD, sampling_rate=32_000)


def test_the_remedy_that_errors_name_exists():
    assert callable(modeling_htsat.load_audio)


def test_an_unspoken_rate_is_warned_about_once():
    extractor = HTSATFeatureExtractor(sampling_rate=31_999)  # a rate of its own, as the warning is given once a process
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    module.logger.addHandler(handler)
    try:
        for _ in range(3):
            extractor(GOOD)
        extractor(GOOD, sampling_rate=31_999)
    finally:
        module.logger.removeHandler(handler)
    assert len(messages) == 1
    assert "31999 Hz" in messages[0]
    assert "sampling_rate" in messages[0]


@pytest.mark.parametrize("name", ["hop_length", "window_length", "num_mel_bins", "clip_frames", "sampling_rate"])
def test_a_front_end_of_size_zero_is_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` is 0; it must be at least 1"):
        HTSATFeatureExtractor(**{name: 0})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_mel_bins", "64"),
        ("num_mel_bins", 64.0),
        ("num_mel_bins", 2**20),
        ("window_length", 2**40),
        ("window_length", 1),
        ("clip_frames", 2**40),
        ("hop_length", True),
        ("min_frequency", "50"),
        ("max_frequency", float("nan")),
        ("padding_value", float("inf")),
        ("padding_value", "0"),
        ("padding_value", 10**400),
        ("return_attention_mask", "yes"),
        ("short_clips", ["repeat"]),
    ],
)
def test_a_front_end_of_other_types_or_without_measure_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        HTSATFeatureExtractor(**{name: value})


@pytest.mark.parametrize("content", [b"[]", b"3", b"\xff\xfe{}", b"[" * 100_000])
def test_a_file_that_is_no_front_end_is_refused_by_name(content, tmp_path):
    (tmp_path / "preprocessor_config.json").write_bytes(content)
    with pytest.raises(OSError, match=r"preprocessor_config\.json"):
        HTSATFeatureExtractor.from_pretrained(tmp_path)
