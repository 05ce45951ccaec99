"""Live detection: equal to the pipeline on every finished recording, bounded in memory, and as late as it says."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_htsat import (
    EventDecoding,
    HTSATConfig,
    HTSATFeatureExtractor,
    HTSATForSoundEventDetection,
    HTSATSoundEventDetectionPipeline,
    decode_events,
)
from modeling_htsat.live import LiveDetector, _EventStream
from modeling_htsat.modeling_htsat import plan_windows

RATE, HOP_LENGTH, STEP_SECONDS = 32_000, 320, 0.32
SMALL = {"embed_dim": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 8), "num_labels": 5, "window_size": 4}
GROUPS = {"low": [0, 2], "high": [3, 1, 4]}


def make_model(**values):
    """A small model whose scores cross one half all the time: window of 256 frames, 8 steps, hop of 7 steps."""
    torch.manual_seed(5)
    model = HTSATForSoundEventDetection(HTSATConfig(**{**SMALL, "spec_size": 128, **values}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter[0].numel() ** -0.5)
            if name.startswith("classifier") and parameter.ndim > 1:
                parameter.mul_(4)
        model.htsat.mel_norm.running_mean.fill_(-40)
        model.htsat.mel_norm.running_var.fill_(300)
    return model.eval()


MODEL = make_model()
EXTRACTOR = HTSATFeatureExtractor(clip_frames=256)


def make_sound(num_samples, seed=0):
    """Noise whose colour and loudness change a few times in a second."""
    generator = np.random.default_rng(seed)
    piece_samples = generator.integers(3_000, 30_000, num_samples // 3_000 + 1)
    pieces = []
    for length in piece_samples[: np.searchsorted(piece_samples.cumsum(), num_samples) + 1]:
        noise = generator.standard_normal(length + 30)
        smooth = np.convolve(noise, np.ones(generator.integers(1, 30)), "valid")[:length]
        pieces.append(smooth * generator.choice([0.002, 0.03, 0.2]) / 5)
    return np.concatenate(pieces)[:num_samples].clip(-1, 0.99).astype(np.float32)


def cut(sound, seed=0, longest=20_000):
    """Blocks of random lengths, some of them a single sample or none."""
    generator, start, blocks = np.random.default_rng(seed), 0, []
    while start < len(sound):
        length = int(generator.choice([0, 1, generator.integers(2, 600), generator.integers(2, longest)]))
        blocks.append(sound[start : start + length])
        start += length
    return blocks


def in_order(events):
    return sorted(events, key=lambda event: (event["onset"], event["label"]))


def assert_same_events(found, expected):
    found = in_order(found)
    assert [event["label"] for event in found] == [event["label"] for event in expected]
    for time in ("onset", "offset"):
        np.testing.assert_allclose([e[time] for e in found], [e[time] for e in expected], atol=1e-9, rtol=0)
    np.testing.assert_allclose([e["score"] for e in found], [e["score"] for e in expected], atol=1e-4, rtol=0)


def find_clear_level(sound, near, model=MODEL, extractor=EXTRACTOR, **options):
    """A threshold near the given one that no score comes close to: another order of sums must not decide a test."""
    pipe = HTSATSoundEventDetectionPipeline(model=model, feature_extractor=extractor)
    scores = np.unique(pipe(sound, return_scores=True, **options)["scores"])
    scores = np.concatenate([[near - 0.1], scores[abs(scores - near) < 0.1], [near + 0.1]])
    widest = np.diff(scores).argmax()
    return float(scores[widest : widest + 2].mean())


def assert_live_equals_offline(sound, model=MODEL, extractor=EXTRACTOR, seed=0, **options):
    if not options:
        options = {"threshold": find_clear_level(sound, 0.5, model, extractor)}
    expected = HTSATSoundEventDetectionPipeline(model=model, feature_extractor=extractor)(sound, **options)
    detector = LiveDetector(model, extractor, **options)
    assert_same_events(detector.listen(cut(sound, seed)), expected)
    return expected


# ── equal to the pipeline ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rule", ["repeat", "pad", "stretch"])
@pytest.mark.parametrize("num_samples", [1, 320, 512, 513, 9_000, 31_999, 40_640, 41_280, 64_000, 81_599])
def test_a_recording_shorter_than_a_window_has_the_events_of_the_pipeline(rule, num_samples):
    extractor = HTSATFeatureExtractor(clip_frames=256, short_clips=rule)
    assert_live_equals_offline(make_sound(num_samples), extractor=extractor)


# Windows of 256 frames begin every 224: the last one coincides with a regular one at 256, 480 and 704 frames.
@pytest.mark.parametrize(
    "num_frames", [255, 256, 257, 287, 288, 289, 479, 480, 481, 512, 513, 703, 704, 705, 736, 1500]
)
@pytest.mark.parametrize("more_samples", [0, 1, 319])
def test_a_recording_of_any_length_has_the_events_of_the_pipeline(num_frames, more_samples):
    num_samples = (num_frames - 1) * HOP_LENGTH + more_samples
    expected = assert_live_equals_offline(make_sound(num_samples, num_frames), seed=num_frames)
    assert len(expected) > 3


@pytest.mark.parametrize("num_frames", [1001, 1024, 1025, 1056, 1057, 1920, 1921, 4000])
def test_the_papers_windows_have_the_events_of_the_pipeline(num_frames):
    model = make_model(spec_size=256, window_size=8)
    sound = make_sound((num_frames - 1) * HOP_LENGTH + 7)
    assert assert_live_equals_offline(sound, model, HTSATFeatureExtractor())


@pytest.mark.parametrize("window_overlap", [0, 0.25, 0.5])
@pytest.mark.parametrize("token_semantic_head", [True, False])
def test_every_overlap_and_head_has_the_events_of_the_pipeline(window_overlap, token_semantic_head):
    model = make_model(window_overlap=window_overlap, token_semantic_head=token_semantic_head)
    for num_samples in (90_000, 250_001):
        assert_live_equals_offline(make_sound(num_samples), model)


DECODINGS = [
    {"median_filter_seconds": 1.0},
    {"median_filter_seconds": 0.48},  # one and a half steps
    {"median_filter_seconds": 7.0, "max_gap_seconds": 2.0},
    {"max_gap_seconds": 0.64},
    {"min_event_seconds": 0.96, "max_gap_seconds": 0.33},
    {"median_filter_seconds": [0, 1, 0, 2, 3], "max_gap_seconds": [0, 0, 5, 1, 1], "min_event_seconds": 0.5},
]


@pytest.mark.parametrize("values", DECODINGS)
@pytest.mark.parametrize("num_samples", [50_000, 84_000, 500_000])
def test_every_decoding_has_the_events_of_the_pipeline(values, num_samples):
    sound = make_sound(num_samples, seed=num_samples)
    start, stay = find_clear_level(sound, 0.6), find_clear_level(sound, 0.4)
    assert_live_equals_offline(sound, decoding=EventDecoding(start, stay, **values))


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_the_models_own_decoding_counts_where_none_is_given_and_for_its_classes_alone(groups):
    sound = make_sound(300_000)
    model = make_model(event_decoding={"threshold": find_clear_level(sound, 0.3), "max_gap_seconds": 0.5})
    expected = HTSATSoundEventDetectionPipeline(model=model, feature_extractor=EXTRACTOR)(sound, groups=groups)
    assert_same_events(LiveDetector(model, EXTRACTOR, groups=groups).listen([sound]), expected)


@pytest.mark.parametrize("num_samples", [30_000, 400_000])
def test_groups_of_classes_have_the_events_of_the_pipeline(num_samples):
    sound = make_sound(num_samples)
    threshold = find_clear_level(sound, 0.5, groups=GROUPS)
    decoding = EventDecoding({"low": threshold, "high": threshold}, max_gap_seconds=0.4)
    events = assert_live_equals_offline(sound, groups=GROUPS, decoding=decoding)
    assert {event["label"] for event in events} <= set(GROUPS)


@pytest.mark.parametrize("rate", [8_000, 44_100])
@pytest.mark.parametrize("seconds", [0.9, 2.56, 14.3])
def test_16_bit_stereo_at_another_rate_has_the_events_of_the_pipeline(rate, seconds):
    sound = np.stack([make_sound(int(rate * seconds), seed) for seed in (1, 2)], axis=1)
    sound = (sound * 2**15).astype(np.int16)
    row = {"array": sound, "sampling_rate": rate}
    threshold = find_clear_level(row, 0.5)
    pipe = HTSATSoundEventDetectionPipeline(model=MODEL, feature_extractor=EXTRACTOR)
    detector = LiveDetector(MODEL, EXTRACTOR, sampling_rate=rate, threshold=threshold)
    assert_same_events(detector.listen(cut(sound)), pipe(row, threshold=threshold))


def test_the_size_of_the_blocks_changes_not_a_bit():
    sound = make_sound(400_000)
    whole = list(LiveDetector(MODEL, EXTRACTOR, sampling_rate=22_050).listen([sound]))
    for seed in range(3):
        events = LiveDetector(MODEL, EXTRACTOR, sampling_rate=22_050).listen(cut(sound, seed))
        assert in_order(events) == in_order(whole)


def test_tensors_and_every_width_of_numbers_are_heard_alike():
    sound = (make_sound(100_000) * 128).astype(np.int8)
    exact = sound.astype(np.float64) / 128
    kinds = [sound, (sound.astype(int) + 128).astype(np.uint8), exact, torch.tensor(exact)[:, None], sound[::-1][::-1]]
    events = [list(LiveDetector(MODEL, EXTRACTOR).listen([kind[:7], kind[7:]])) for kind in kinds]
    assert events[0]
    assert all(one == events[0] for one in events)


# ── decoding a step at a time ─────────────────────────────────────────────────────────────────────────────────────────

per_class = st.lists(st.sampled_from([0.0, 0.3, 0.5, 1.0, 2.5, 5.0]), min_size=3, max_size=3)
levels = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=3, max_size=3)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    levels,
    levels,
    per_class,
    per_class,
    per_class,
    st.sampled_from([0.5, 0.3125, 0.32]),
    st.floats(0.01, 1),
)
def test_scores_in_pieces_have_the_events_of_all_at_once(
    num_steps, seed, stay, more, median, gap, shortest, step_seconds, part_of_last_step
):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 9, (num_steps, 3)).astype(np.float32) / 8  # many lie exactly on a threshold
    start = np.minimum(np.add(stay, more), 1)
    decoding = EventDecoding(start, stay, median, gap, shortest)
    labels, end_seconds = ["a", "b", "c"], (num_steps - 1 + part_of_last_step) * step_seconds
    expected = decode_events(scores, step_seconds, decoding, labels, duration_seconds=end_seconds)
    stream = _EventStream(decoding, labels, step_seconds)
    pieces = np.split(scores, np.sort(generator.integers(0, num_steps + 1, 5)))
    events = [event for piece in pieces[:-1] for event in stream.push(piece)]
    assert in_order(events + stream.finish(pieces[-1], end_seconds)) == expected


# ── what was said stays true ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("values", [{}, {"median_filter_seconds": 1.0, "max_gap_seconds": 0.7}])
def test_no_sound_to_come_changes_an_event_that_was_returned(values):
    heard = make_sound(600_000, seed=3)
    pipe = HTSATSoundEventDetectionPipeline(model=MODEL, feature_extractor=EXTRACTOR)
    decoding = EventDecoding(find_clear_level(heard, 0.5), **values)
    detector = LiveDetector(MODEL, EXTRACTOR, decoding=decoding)
    returned = [event for block in cut(heard) for event in detector.feed(block)]
    assert len(returned) > 4
    for seed, num_more in enumerate([0, 1, 319, 4_000, 10_240, 33_333, 90_000]):
        final = pipe(np.concatenate([heard, make_sound(num_more + 1, seed)[:num_more]]), decoding=decoding)
        kept = [
            event
            for event in final
            if any(all(event[key] == old[key] for key in ("label", "onset", "offset")) for old in returned)
        ]
        assert_same_events(returned, kept)


# ── as late as it says ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("rate", [32_000, 44_100, 8_000])
@pytest.mark.parametrize("values", [{}, {"median_filter_seconds": 1.0}, {"max_gap_seconds": 0.64}])
def test_an_event_is_returned_when_its_look_ahead_has_been_heard_and_hardly_earlier(head, rate, values):
    model = make_model(token_semantic_head=head)
    detector = LiveDetector(model, EXTRACTOR, sampling_rate=rate, decoding=EventDecoding(0.5, **values))
    sound, block_samples = make_sound(20 * rate), rate // 100
    delays = []
    for start in range(0, len(sound), block_samples):
        events = detector.feed(sound[start : start + block_samples])
        delays += [(start + block_samples) / rate - event["offset"] for event in events]
    assert max(delays) <= detector.look_ahead_seconds + 0.01
    assert min(delays) > detector.look_ahead_seconds - 0.2  # at 8 kHz, soxr holds 0 to 0.12 s, by what it has had


def test_the_papers_model_looks_ahead_by_a_window_and_a_step():
    model = HTSATForSoundEventDetection(HTSATConfig(**SMALL))
    detector = LiveDetector(model, HTSATFeatureExtractor())
    assert detector.look_ahead_seconds == pytest.approx(10.24 + 0.016 + 0.32)
    wide = EventDecoding(median_filter_seconds=1.6, max_gap_seconds=[0, 0.5, 0, 0, 0])
    detector = LiveDetector(model, HTSATFeatureExtractor(), decoding=wide)
    assert detector.look_ahead_seconds == pytest.approx(10.24 + 0.016 + 0.32 + 2 * 0.32 + 0.32)


# ── bounded memory ────────────────────────────────────────────────────────────────────────────────────────────────────


def count_held_bytes(part):
    """All arrays that a station keeps, with the memory behind views of them."""
    held = 0
    for value in vars(part).values():
        if isinstance(value, torch.Tensor):
            held += value.untyped_storage().nbytes()
        elif isinstance(value, np.ndarray):
            held += (value if value.base is None else value.base).nbytes
    return held


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_memory_stays_bounded_whether_events_never_end_or_never_begin(threshold):
    decoding = EventDecoding(threshold, 0.0, median_filter_seconds=2.0, max_gap_seconds=1.0)
    detector = LiveDetector(MODEL, EXTRACTOR, decoding=decoding)
    stations = (detector, detector._frames, detector._scores, detector._events)
    held_bytes = []
    for minute in range(4):
        for block in cut(make_sound(60 * RATE // 2, seed=minute), longest=100_000):
            detector.feed(block)
            held_bytes.append(sum(map(count_held_bytes, stations)))
            assert len(detector._scores.frames) <= 256
            assert len(detector._scores.map_counts) <= 8 + 1
            assert len(detector._events.scores) <= 2 * 3
            assert len(detector._frames.waiting) + len(detector._frames.latest) < 2 * 1024
            assert len(detector._samples) < 32 * HOP_LENGTH + 512
    # Samples below a step, a window of frames, a window and a step of maps: 41, 64 and 9 kB, and small change.
    assert max(held_bytes) < 150_000
    half = len(held_bytes) // 2
    assert max(held_bytes[half:]) <= max(held_bytes[:half])


def test_an_event_that_never_ends_is_whole_at_the_end():
    sound = make_sound(500_001)
    decoding = EventDecoding(0.0)
    detector = LiveDetector(MODEL, EXTRACTOR, decoding=decoding)
    assert not any(detector.feed(block) for block in cut(sound))
    events = detector.finish()
    assert [(event["onset"], event["offset"]) for event in events] == [(0.0, 500_001 / RATE)] * 5
    expected = HTSATSoundEventDetectionPipeline(model=MODEL, feature_extractor=EXTRACTOR)(sound, decoding=decoding)
    assert_same_events(events, expected)


def test_every_window_is_encoded_once(monkeypatch):
    num_encoded = []
    encode = MODEL.htsat.encode
    monkeypatch.setattr(MODEL.htsat, "encode", lambda windows: num_encoded.append(len(windows)) or encode(windows))
    for num_frames in (257, 480, 481, 1500):
        num_encoded.clear()
        detector = LiveDetector(MODEL, EXTRACTOR)
        list(detector.listen(cut(make_sound((num_frames - 1) * HOP_LENGTH))))
        plan = plan_windows(MODEL.config, torch.tensor([num_frames]), num_frames)
        assert sum(num_encoded) == plan.window_counts.item() == detector.statistics.num_windows


# ── previews ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("num_samples", [0, 1, 10_000, 81_919, 81_920, 200_000, 300_123])
def test_a_preview_is_what_finish_would_return_marked_as_provisional(num_samples):
    detector = LiveDetector(MODEL, EXTRACTOR)
    for block in cut(make_sound(300_123)[:num_samples]):
        detector.feed(block)
    preview = detector.preview()
    assert preview == detector.preview()
    assert preview == [{**event, "provisional": True} for event in detector.finish()]


def test_previews_leave_the_detector_as_it_was():
    blocks = cut(make_sound(300_000))
    decoding = EventDecoding(0.5, 0.4, median_filter_seconds=1.0, max_gap_seconds=0.5)
    undisturbed = list(LiveDetector(MODEL, EXTRACTOR, decoding=decoding).listen(blocks))
    detector = LiveDetector(MODEL, EXTRACTOR, decoding=decoding)
    events = []
    for block in blocks:
        events += detector.feed(block)
        detector.preview()
    assert events + detector.finish() == undisturbed
    assert not any("provisional" in event for event in undisturbed)


# ── one after the other, and how it keeps up ──────────────────────────────────────────────────────────────────────────


def test_after_a_reset_a_recording_is_heard_as_by_a_new_detector():
    sound = make_sound(300_000)
    detector = LiveDetector(MODEL, EXTRACTOR, sampling_rate=44_100)
    first = list(detector.listen(cut(sound)))
    detector.reset()
    detector.feed(np.stack([sound, sound], axis=1)[:50_000])
    detector.reset()
    assert list(detector.listen(cut(sound))) == first


def test_silence_of_no_samples_has_no_events():
    for rate in (32_000, 44_100):
        detector = LiveDetector(MODEL, EXTRACTOR, sampling_rate=rate)
        assert detector.feed(np.zeros(0)) == detector.preview() == detector.finish() == []


def test_statistics_tell_how_the_detector_keeps_up():
    detector = LiveDetector(MODEL, EXTRACTOR, sampling_rate=16_000)
    assert detector.statistics.real_time_factor == detector.statistics.heard_seconds == 0
    for block in np.split(make_sound(160_000), 40):
        detector.feed(block)
    statistics = detector.statistics
    assert statistics.heard_seconds == 10.0
    assert statistics.lag_seconds == statistics.heard_seconds - statistics.decided_seconds
    assert detector.look_ahead_seconds - 2 * STEP_SECONDS < statistics.lag_seconds <= detector.look_ahead_seconds
    assert 0 < statistics.slowest_call_seconds < statistics.compute_seconds
    assert statistics.real_time_factor == statistics.compute_seconds / 10.0
    detector.finish()
    assert detector.statistics.lag_seconds == 0
    assert detector.statistics.compute_seconds > statistics.compute_seconds


def test_the_model_listens_in_eval_mode():
    model = copy.deepcopy(MODEL).train()
    sound = make_sound(200_000)
    events = list(LiveDetector(model, EXTRACTOR).listen([sound]))
    assert not model.training
    assert events == list(LiveDetector(MODEL, EXTRACTOR).listen([sound]))


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────────

GOOD = np.zeros((100, 2), dtype=np.float32)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        pytest.param(np.where(GOOD == 0, np.nan, 0), "this block holds samples that are NaN", id="NaN"),
        pytest.param(GOOD + np.inf, "NaN or infinite", id="infinite"),
        pytest.param(GOOD[:, :1], r"had 2 channel\(s\) so far and this one has 1", id="mono after stereo"),
        pytest.param(GOOD[:, 0], r"had 2 channel\(s\) so far and this one has 1", id="one axis after stereo"),
        pytest.param(
            np.zeros((2, 100)), r"shape \(2, 100\); .* If its channels come first, pass `block.T`", id="turned"
        ),
        pytest.param(np.zeros((1, 2, 3)), r"shape \(1, 2, 3\); \(samples,\) or \(samples, channels\)", id="three axes"),
        pytest.param(np.zeros((100, 0)), "with 1 to 64 channels", id="no channel"),
        pytest.param(GOOD.astype(np.int64), "dtype int64: give floats, or PCM", id="no PCM"),
        pytest.param(b"\0\0", "came as bytes; .* `numpy.frombuffer", id="bytes"),
    ],
)
def test_a_block_that_does_not_fit_is_refused_and_the_next_one_can_follow(block, message):
    sound = np.stack([make_sound(150_000)] * 2, axis=1)
    detector = LiveDetector(MODEL, EXTRACTOR)
    events = detector.feed(sound[:100_000])
    with pytest.raises(ValueError, match=message):
        detector.feed(block)
    events += detector.feed(sound[100_000:]) + detector.finish()
    assert events == list(LiveDetector(MODEL, EXTRACTOR).listen([sound[:, 0]]))


def test_a_rate_that_changes_is_refused():
    detector = LiveDetector(MODEL, EXTRACTOR, sampling_rate=44_100)
    detector.feed(GOOD, sampling_rate=44_100)
    with pytest.raises(
        ValueError, match=r"made for 44100 Hz and received a block at 48000 Hz\. Make one for that rate"
    ):
        detector.feed(GOOD, sampling_rate=48_000)


@pytest.mark.parametrize("call", ["feed", "finish", "preview"])
def test_after_the_end_only_a_reset_is_possible(call):
    detector = LiveDetector(MODEL, EXTRACTOR)
    detector.finish()
    with pytest.raises(ValueError, match=r"This recording is finished\. Call `reset\(\)`"):
        getattr(detector, call)(*[GOOD][: call == "feed"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampling_rate": 0}, "The sampling rate of the live sound is 0: it must be a whole number of Hz"),
        ({"sampling_rate": 44_100.5}, "The sampling rate of the live sound is 44100.5"),
        ({"threshold": 0.5, "decoding": {}}, "`threshold` and `decoding` were both given"),
        ({"threshold": 1.5}, "threshold must hold probabilities"),
        ({"decoding": {"threshold": [0.5, 0.4]}}, "holds 2 numbers and the scores have 5 classes"),
        ({"groups": {"none": [5]}}, "Group 'none' is"),
        ({"model": MODEL.htsat}, "needs an HTSATForSoundEventDetection and received a HTSATModel"),
        ({"feature_extractor": HTSATFeatureExtractor()}, "'clip_frames': 256.* the feature extractor has .* 1024"),
    ],
)
def test_what_a_detector_cannot_work_with_is_refused_at_once(values, message):
    with pytest.raises(ValueError, match=message):
        LiveDetector(**{"model": MODEL, "feature_extractor": EXTRACTOR, **values})
