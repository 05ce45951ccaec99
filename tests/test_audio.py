"""Any audio comes in, mono float32 at one rate comes out, and what cannot be read is refused in one clear sentence."""

import http.server
import io
import os
import re
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_htsat.audio_htsat import AudioError, list_audio_files, load_audio, open_audio, stream_audio

RATE = 32_000
FORMATS = {
    "wav16.wav": ("WAV", "PCM_16", "FILE"),
    "wav8.wav": ("WAV", "PCM_U8", "FILE"),
    "wav32.wav": ("WAV", "PCM_32", "FILE"),
    "float.wav": ("WAV", "FLOAT", "FILE"),
    "double.wav": ("WAV", "DOUBLE", "FILE"),
    "wav24.flac": ("FLAC", "PCM_24", "FILE"),
    "vorbis.ogg": ("OGG", "VORBIS", "FILE"),
    "opus.opus": ("OGG", "OPUS", "FILE"),
    "layer3.mp3": ("MP3", "MPEG_LAYER_III", "FILE"),
    "big.aiff": ("AIFF", "PCM_16", "BIG"),
    "small.au": ("AU", "PCM_24", "FILE"),
    "wave64.w64": ("W64", "PCM_16", "FILE"),
    "large.rf64": ("RF64", "PCM_16", "FILE"),
    "old.voc": ("VOC", "PCM_16", "FILE"),
    "adpcm.wav": ("WAV", "IMA_ADPCM", "FILE"),
    "apple.caf": ("CAF", "ALAC_16", "FILE"),
}


def chirp(num_samples: int, sampling_rate: int = 48_000) -> np.ndarray:
    """A rising tone: every stretch of it is different, so that a wrong order or offset shows."""
    seconds = np.arange(num_samples) / sampling_rate
    return (0.4 * np.sin(2 * np.pi * (200 + 300 * seconds) * seconds)).astype(np.float32)


def stereo(num_samples: int, sampling_rate: int = 48_000) -> np.ndarray:
    left = chirp(num_samples, sampling_rate)
    return np.stack([left, 0.5 * left[::-1]], axis=1)


def encoded(samples: np.ndarray, sampling_rate: int = 48_000, name: str = "wav24.flac", **options) -> bytes:
    kind, subtype, endian = FORMATS[name]
    file = io.BytesIO()
    soundfile.write(file, samples, sampling_rate, format=kind, subtype=subtype, endian=endian, **options)
    return file.getvalue()


def untagged_mp3(**options) -> bytes:
    """A loud, then silent, MP3 without the frame that tells its length."""
    samples = np.concatenate([np.random.default_rng(3).uniform(-0.5, 0.5, 200_000), np.zeros(200_000)])
    data = encoded(samples, 44_100, "layer3.mp3", **options)
    second_frame = data.index(data[:2], 100)
    return data[second_frame:]


def refusal(call, *arguments, **options) -> str:
    """The sentence of the AudioError that the call ends with."""
    with pytest.raises(AudioError) as caught:
        call(*arguments, **options)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence and not re.search(r"\.\s+[A-Z]", sentence), sentence
    return sentence


# ── Streams and wholes ───────────────────────────────────────────────────────────────────────────────────────────────


@given(
    source_rate=st.sampled_from([1_000, 8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000, 384_000, 7_919]),
    target_rate=st.sampled_from([32_000, 16_000]),
    num_samples=st.integers(500, 150_000),
    block_seconds=st.floats(0.001, 3.0),
)
@settings(derandomize=True, max_examples=40, deadline=None)
def test_the_size_of_the_blocks_does_not_change_a_sample(source_rate, target_rate, num_samples, block_seconds):
    row = {"array": chirp(num_samples, source_rate), "sampling_rate": source_rate}
    whole = load_audio(row, target_rate)
    blocks = list(stream_audio(row, target_rate, block_seconds))
    assert np.array_equal(np.concatenate(blocks), whole)
    assert {len(block) for block in blocks[:-1]} <= {max(1, round(block_seconds * target_rate))}
    assert abs(len(whole) - num_samples * target_rate / source_rate) < 1
    assert np.array_equal(whole, soxr.resample(row["array"], source_rate, target_rate, quality="HQ"))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_reads_the_same_from_a_path_bytes_and_a_file_object_in_any_blocks(name, tmp_path):
    samples = stereo(100_003)
    path = tmp_path / name
    path.write_bytes(encoded(samples, name=name))
    whole = load_audio(path, RATE)
    assert whole.dtype == np.float32 and whole.ndim == 1
    assert abs(len(whole) - 100_003 * 2 / 3) < 1500  # ADPCM rounds up to whole packets
    expected = soxr.resample(samples.mean(axis=1), 48_000, RATE)[1000:60_000]
    assert np.abs(whole[1000:60_000] - expected).max() < 0.05
    data = path.read_bytes()
    for source in (str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), {"bytes": data, "path": None}):
        assert np.array_equal(np.concatenate(list(stream_audio(source, RATE, 0.31))), whole)


def test_a_sound_at_the_wanted_rate_is_not_touched():
    samples = chirp(70_001)
    assert np.array_equal(load_audio(samples, RATE), samples)
    assert np.array_equal(load_audio(encoded(samples, RATE, "float.wav"), RATE), samples)


def test_channels_are_averaged():
    left = chirp(4_001)
    many = np.stack([left, 3 * left, np.zeros_like(left)], axis=1)
    assert np.allclose(load_audio(encoded(many, RATE, "float.wav"), RATE), many.mean(axis=1), atol=1e-7)


def test_a_long_sound_is_never_whole_in_memory(tmp_path):
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 48_000, 2, "PCM_16") as file:
        for _ in range(120):
            file.write(np.zeros((48_000, 2), dtype=np.int16))
    tracemalloc.start()
    num_samples = sum(map(len, stream_audio(path, RATE, 5.0)))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_samples == 120 * RATE
    assert peak_bytes < 6e6  # decoded it has 46 MB


def test_an_opened_sound_knows_its_own_rate_channels_and_length():
    with open_audio(encoded(stereo(44_100 * 3 // 2, 44_100), 44_100)) as audio:
        assert (audio.sampling_rate, audio.num_channels, audio.duration_seconds) == (44_100, 2, 1.5)
        first, second = (np.concatenate(list(audio.blocks(RATE, seconds))) for seconds in (0.2, 30.0))
    assert np.array_equal(first, second) and len(first) == 48_000


def test_an_mp3_with_a_length_tag_knows_its_length_and_can_be_walked_twice():
    with open_audio(encoded(stereo(66_150, 44_100), 44_100, "layer3.mp3")) as audio:
        assert audio.duration_seconds == 1.5
        first, second = (np.concatenate(list(audio.blocks(44_100))) for _ in range(2))
    assert len(first) == 66_150 and np.array_equal(first, second)


@pytest.mark.parametrize("name", ["wav16.wav", "wav24.flac", "vorbis.ogg", "big.aiff", "layer3.mp3"])
def test_a_single_sample_is_a_sound(name):
    assert load_audio(encoded(np.full(1, 0.25), RATE, name), RATE).shape == (1,)


def test_a_sound_too_short_for_the_wanted_rate_is_refused():
    assert "too short" in refusal(load_audio, encoded(np.full(1, 0.25), 96_000, "wav16.wav"), 16_000)


def test_a_flac_that_does_not_know_its_length_is_read_to_its_end():
    data = bytearray(encoded(stereo(70_001)))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    with open_audio(bytes(data)) as audio:
        assert audio.duration_seconds is None
        assert np.array_equal(next(audio.blocks(48_000)), load_audio(encoded(stereo(70_001)), 48_000))


# ── Arrays and rows ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype, silence, full_scale", [("int16", 0, 2**15), ("int32", 0, 2**31), ("uint8", 128, 128)])
def test_integers_are_pcm(dtype, silence, full_scale):
    expected = np.array([-1.0, -0.5, 0.0, 0.5], dtype=np.float32)
    pcm = (expected * full_scale + silence).astype(dtype)
    assert np.array_equal(load_audio(pcm, RATE), expected)
    assert np.array_equal(load_audio(torch.from_numpy(pcm), RATE), expected)


def test_loud_floats_are_kept_and_all_float_types_agree():
    samples = np.array([0.5, -3.0, 8.0])
    for source in (
        samples,
        samples.astype(">f4"),
        samples.astype(np.float16),
        samples.tolist(),
        tuple(samples.tolist()),
    ):
        assert np.array_equal(load_audio(source, RATE), samples.astype(np.float32))
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        tensor = torch.tensor(samples, dtype=dtype, requires_grad=True)
        assert np.array_equal(load_audio(tensor, RATE), samples.astype(np.float32))


@given(num_channels=st.integers(1, 64), num_samples=st.integers(65, 300))
@settings(derandomize=True, max_examples=15, deadline=None)
def test_channels_may_come_first_or_last(num_channels, num_samples):
    samples = np.random.default_rng(0).uniform(-1, 1, (num_samples, num_channels)).astype(np.float32)
    assert np.array_equal(load_audio(samples, RATE), load_audio(samples.T, RATE))
    assert np.allclose(load_audio(samples, RATE), samples.mean(axis=1), atol=1e-6)


def test_a_bare_array_is_at_the_wanted_rate_unless_its_rate_is_said():
    samples = chirp(8_000)
    assert len(load_audio(samples, 16_000)) == 8_000
    assert len(load_audio(samples, 16_000, source_sampling_rate=8_000)) == 16_000
    assert "source_sampling_rate=" in refusal(open_audio, samples)


def test_rows_of_data_sets_are_read(tmp_path):
    data = encoded(stereo(4_801))
    path = tmp_path / "row.flac"
    path.write_bytes(data)
    whole = load_audio(data, RATE)
    for row in ({"bytes": data, "path": "x.flac"}, {"bytes": None, "path": str(path)}, {"path": path}):
        assert np.array_equal(load_audio(row, RATE), whole)
        assert np.array_equal(load_audio({"audio": row, "label": 3, "path": "elsewhere"}, RATE), whole)
    for key in ("array", "raw"):
        row = {key: stereo(4_801), "sampling_rate": 48_000, "path": None}
        assert np.allclose(load_audio(row, RATE), whole, atol=1e-6)
    assert "sampling_rate" in refusal(load_audio, {"array": chirp(5)}, RATE)
    assert "keys ['label']" in refusal(load_audio, {"label": 1}, RATE)
    assert "x.flac" in refusal(load_audio, {"bytes": b"no audio", "path": "x.flac"}, RATE)


@pytest.mark.parametrize(
    "source, word",
    [
        (np.zeros(0), "no samples"),
        (np.zeros((0, 2)), "no samples"),
        (np.zeros((7, 7)), "(7, 7)"),
        (np.zeros((65, 66)), "(65, 66)"),
        (np.zeros((2, 3, 4)), "(2, 3, 4)"),
        (np.zeros(()), "()"),
        (np.zeros(3, dtype=bool), "bool"),
        (np.zeros(3, dtype=complex), "complex128"),
        (np.zeros(3, dtype=object), "object"),
        (np.zeros(3, dtype=np.int64), "int64"),
        (["a", "b"], "dtype"),
        ([[1.0], [1.0, 2.0]], "regular"),
        ([0, 1200, -3], "PCM"),
        ([], "no samples"),
        (torch.zeros(3, dtype=torch.complex64), "complex64"),
        (torch.zeros(3, device="meta"), "regular"),
        (np.array([0.0, np.nan, 0.0]), "NaN or infinite"),
        (np.array([0.0, np.inf]), "NaN or infinite"),
        (np.array([1e300]), "NaN or infinite"),
        (None, "NoneType"),
        (3.5, "float"),
        (b"", "empty"),
        (b"no audio at all, just words", "not audio"),
        (io.StringIO("words"), "binary mode"),
    ],
)
def test_what_is_no_sound_is_refused_by_name(source, word):
    assert word in refusal(load_audio, source, RATE)


@pytest.mark.parametrize(
    "sampling_rate", [0, -1, 999, 384_001, 16_000.5, float("nan"), float("inf"), "16000", None, True]
)
def test_impossible_rates_are_refused(sampling_rate):
    assert "sampling rate" in refusal(load_audio, {"array": chirp(50), "sampling_rate": 8_000}, sampling_rate)
    if sampling_rate is not None:
        assert "sampling rate" in refusal(load_audio, {"array": chirp(50), "sampling_rate": sampling_rate}, RATE)


@pytest.mark.parametrize("block_seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_blocks_are_refused(block_seconds):
    assert "block_seconds" in refusal(lambda: list(stream_audio(chirp(50), RATE, block_seconds)))


# ── Files that are not as they should be ─────────────────────────────────────────────────────────────────────────────


def test_paths_that_cannot_be_read_are_refused_by_name(tmp_path):
    assert "missing.wav does not exist" in refusal(load_audio, tmp_path / "missing.wav", RATE)
    assert str(tmp_path) in refusal(load_audio, tmp_path, RATE)
    assert "a\0b" in refusal(load_audio, "a\0b", RATE)
    assert "cannot be opened" in refusal(load_audio, "x" * 5_000, RATE)
    if Path("/proc/self/mem").exists():
        assert "/proc/self/mem cannot be read" in refusal(load_audio, "/proc/self/mem", RATE)
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is a folder or no regular file" in refusal(load_audio, tmp_path / "pipe", RATE)
    (tmp_path / "empty.wav").touch()
    assert "empty.wav is empty" in refusal(load_audio, tmp_path / "empty.wav", RATE)


def test_a_file_without_permission_is_refused_by_name(tmp_path, monkeypatch):
    path = tmp_path / "secret.wav"
    path.write_bytes(encoded(chirp(50), name="wav16.wav"))
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything
        monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert "secret.wav cannot be opened (Permission denied)" in refusal(load_audio, path, RATE)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_what_it_holds_whatever_its_suffix(name, tmp_path):
    data = encoded(stereo(20_003), name=name)
    wanted = load_audio(data, RATE)
    for suffix in (".raw", ".mp3", ".wav", ""):
        path = tmp_path / f"sound{suffix}"
        path.write_bytes(data)
        assert np.array_equal(load_audio(path, RATE), wanted)


@pytest.mark.parametrize("suffix", [".raw", ".vox", ".gsm", ".au", ".mp3", ".wav", ".txt"])
def test_headerless_samples_are_refused_whatever_their_suffix(suffix, tmp_path, capfd):
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(b"\x01" + np.random.default_rng(1).bytes(4_000))
    assert f"noise{suffix} is not audio" in refusal(load_audio, path, RATE)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("apple.caf", "adpcm.wav")])
def test_half_a_file_is_refused_unless_that_is_allowed(name, tmp_path, capfd):
    data = encoded(stereo(200_003), name=name)
    path = tmp_path / name
    path.write_bytes(data[: len(data) // 2])
    sentence = refusal(load_audio, path, RATE)
    assert str(path) in sentence and "truncated" in sentence and "allow_truncated=True" in sentence
    half = load_audio(path, RATE, allow_truncated=True)
    assert 0.2 < len(half) / 133_335 < 0.75
    whole = load_audio(data, RATE)
    assert np.allclose(half[: len(half) - 3_000], whole[: len(half) - 3_000], atol=1e-6)
    assert np.array_equal(half, np.concatenate(list(stream_audio(path, RATE, 0.1, allow_truncated=True))))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("num_bytes", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_wav_written_to_a_pipe_is_whole_though_its_header_says_otherwise(num_bytes):
    data = bytearray(encoded(chirp(5_000), RATE, "wav16.wav"))
    start = data.index(b"data") + 4
    data[start : start + 4] = num_bytes.to_bytes(4, "little")
    assert len(load_audio(bytes(data), RATE)) == 5_000


def test_a_damaged_flac_is_refused_unless_that_is_allowed():
    data = bytearray(encoded(stereo(200_003)))
    middle = len(data) // 2
    data[middle : middle + 3_000] = np.random.default_rng(2).bytes(3_000)
    assert "damaged" in refusal(load_audio, bytes(data), RATE)
    assert 40_000 < len(load_audio(bytes(data), RATE, allow_truncated=True)) < 80_000


def test_an_mp3_that_goes_on_after_the_counted_length_is_refused_unless_that_is_allowed(capfd):
    tagged = encoded(chirp(66_150, 44_100), 44_100, "layer3.mp3")
    for data in (untagged_mp3(), tagged + tagged):
        assert "goes on after" in refusal(load_audio, data, RATE)
        assert len(load_audio(data, RATE, allow_truncated=True)) > 0
    assert capfd.readouterr() == ("", "")


def test_an_mp3_without_a_length_tag_is_read_to_its_end():
    data = untagged_mp3(bitrate_mode="CONSTANT", compression_level=0.5)
    with open_audio(data) as audio:
        assert audio.duration_seconds is None
        assert abs(sum(map(len, audio.blocks(44_100))) - 400_000) < 3_000


def test_tags_around_an_mp3_do_not_matter():
    data = encoded(chirp(66_150, 44_100), 44_100, "layer3.mp3")
    tag = b"ID3\x03\0\0" + bytes([0, 2, 0, 0]) + b"APIC" + (32_758).to_bytes(4, "big") + bytes(32_758 + 2)
    whole = load_audio(data, RATE)
    with open_audio(tag + data + b"TAG" + bytes(125)) as audio:
        assert audio.duration_seconds == 1.5
        assert np.array_equal(np.concatenate(list(audio.blocks(RATE))), whole)


def test_standard_error_works_again_after_mp3s_in_many_threads(capfd):
    tagged = encoded(chirp(66_150, 44_100), 44_100, "layer3.mp3")
    sources = [tagged[: len(tagged) // 2], tagged + bytes(5_000), tagged] * 8
    with ThreadPoolExecutor(4) as pool:
        lengths = list(pool.map(lambda source: len(load_audio(source, RATE, allow_truncated=True)), sources))
    assert lengths == lengths[:3] * 8
    os.write(2, b"heard")
    assert capfd.readouterr().err.endswith("heard")


def test_files_with_impossible_headers_are_refused():
    data = encoded(chirp(5_000), RATE, "wav16.wav")
    for start, value in ((22, (65).to_bytes(2, "little")), (22, bytes(2)), (24, bytes(4)), (24, b"\xff" * 4)):
        broken = data[:start] + value + data[start + len(value) :]
        assert "the given bytes" in refusal(load_audio, broken, RATE)
    assert "no samples" in refusal(load_audio, encoded(np.zeros((0, 2)), name="wav16.wav"), RATE)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused_by_file_name(poison, tmp_path):
    samples = stereo(100_000)
    samples[90_000, 1] = poison
    soundfile.write(tmp_path / "poison.wav", samples, 48_000, subtype="FLOAT")
    assert "poison.wav holds samples that are NaN" in refusal(load_audio, tmp_path / "poison.wav", RATE)


@given(
    data=st.binary(max_size=300),
    head=st.sampled_from([b"", b"RIFF", b"fLaC", b"OggS", b"ID3", b"\xff\xfb\x90", b"FORM"]),
)
@settings(derandomize=True, max_examples=150, deadline=None)
def test_no_bytes_whatever_raise_anything_but_an_audio_error(data, head):
    try:
        load_audio(head + data, RATE)
    except AudioError as error:
        assert "the given bytes" in str(error)


@given(name=st.sampled_from(sorted(FORMATS)), position=st.floats(0, 1), noise=st.binary(min_size=1, max_size=30))
@settings(derandomize=True, max_examples=80, deadline=None)
def test_no_damage_whatever_raises_anything_but_an_audio_error(name, position, noise):
    data = bytearray(encoded(stereo(3_001), name=name))
    start = int(position * position * len(data))  # more often in the header
    data[start : start + len(noise)] = noise
    try:
        assert np.isfinite(load_audio(bytes(data), RATE, allow_truncated=True)).all()
    except AudioError as error:
        assert "the given bytes" in str(error)


# ── File objects ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Pipe(io.RawIOBase):
    """A binary file that can only be read forwards, in small pieces."""

    def __init__(self, data: bytes) -> None:
        self._rest = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self._rest.readinto(memoryview(buffer)[:1_000])


def test_a_file_object_is_read_from_where_it_stands(tmp_path):
    data = encoded(stereo(20_001))
    (tmp_path / "late.bin").write_bytes(b"a header of another kind" + data)
    with (tmp_path / "late.bin").open("rb") as file:
        file.seek(24)
        assert np.array_equal(load_audio(file, RATE), load_audio(data, RATE))


def test_a_file_object_need_not_be_seekable():
    data = encoded(stereo(20_001))
    assert np.array_equal(load_audio(Pipe(data), RATE), load_audio(data, RATE))


def test_a_file_object_that_fails_is_refused_by_name(tmp_path):
    path = tmp_path / "closed.wav"
    path.write_bytes(encoded(chirp(50), name="wav16.wav"))
    with path.open("rb") as file:
        pass
    assert "closed.wav could not be read" in refusal(load_audio, file, RATE)


# ── URLs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Handler(http.server.BaseHTTPRequestHandler):
    sound = encoded(stereo(20_001))

    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/sound.flac")
        elif self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/sound.flac")
        elif self.path == "/local":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
        elif self.path in ("/sound.flac", "/short.flac", "/chunked.flac"):
            self.send_response(200)
            if self.path != "/chunked.flac":
                self.send_header("Content-Length", str(len(self.sound) + 7 * (self.path == "/short.flac")))
        else:
            self.send_response(404)
        self.end_headers()
        if self.path.endswith(".flac"):
            self.wfile.write(self.sound)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def site():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.mark.parametrize("page", ["/sound.flac", "/chunked.flac", "/moved"])
def test_a_url_reads_like_the_file_behind_it(site, page):
    assert np.array_equal(load_audio(site + page, RATE, allow_private_urls=True), load_audio(Handler.sound, RATE))
    with open_audio(site.replace("http", "HTTP") + page, allow_private_urls=True) as audio:
        assert audio.duration_seconds == 20_001 / 48_000


@pytest.mark.parametrize("page", ["/missing.flac", "/short.flac", "/local"])
def test_a_url_that_fails_is_refused_by_name(site, page):
    assert site + page in refusal(load_audio, site + page, RATE, allow_private_urls=True)


@pytest.mark.parametrize("page", ["/sound.flac", "/chunked.flac"])
def test_a_download_that_is_too_large_is_refused(site, page):
    sentence = refusal(load_audio, site + page, RATE, allow_private_urls=True, max_url_bytes=1_000)
    assert site + page in sentence and "max_url_bytes=1000" in sentence


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "10.0.0.1", "169.254.169.254", "[::ffff:127.0.0.1]"]
)
def test_private_addresses_are_refused_by_default(site, host):
    for scheme in ("http", "https"):
        url = f"{scheme}://{host}:{site.rsplit(':', 1)[1]}/sound.flac"
        assert url in refusal(load_audio, url, RATE)
    assert "allow_private_urls=True" in refusal(load_audio, site + "/sound.flac", RATE)


def test_the_address_behind_a_redirect_is_checked_too(site, monkeypatch):
    def refuse_localhost_by_name(host, addresses):
        assert all(list(addresses))
        if host == "localhost":
            raise PermissionError("private")

    monkeypatch.setattr("modeling_htsat.audio_htsat._refuse_private", refuse_localhost_by_name)
    assert len(load_audio(site + "/moved", RATE)) == 13_334
    assert "private" in refusal(load_audio, site + "/elsewhere", RATE)


@pytest.mark.parametrize(
    "url", ["http://", "http://[", "http://exa mple/", "https://127.0.0.1:1/", "http://127.0.0.1:99999/"]
)
def test_a_url_that_is_none_is_refused_by_name(url):
    assert url in refusal(load_audio, url, RATE, allow_private_urls=True)


# ── Lists of files ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_folders_are_searched_and_files_taken_as_they_are(tmp_path):
    for name in ("b.wav", "a.FLAC", "deep/er/c.mp3", "notes.txt", ".hidden.wav", ".cache/d.wav", "odd.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = list_audio_files([tmp_path / "odd.bin", str(tmp_path)])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["odd.bin", "a.FLAC", "b.wav", "deep/er/c.mp3"]
    assert list_audio_files(tmp_path) == found[1:]


def test_paths_without_audio_are_refused_by_name(tmp_path):
    assert "folder without audio" in refusal(list_audio_files, tmp_path)
    assert "gone does not exist" in refusal(list_audio_files, [tmp_path / "gone"])
    assert "No path" in refusal(list_audio_files, [])


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux lists a process's descriptors")
def test_no_descriptor_stays_open_whether_or_not_a_file_can_be_read(tmp_path):
    good, bad = tmp_path / "good.wav", tmp_path / "bad.wav"
    soundfile.write(good, np.zeros(999), 32000)
    bad.write_bytes(b"no sound at all" * 99)
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(9):
        load_audio(good, 16000)
        with pytest.raises(AudioError):
            load_audio(bad, 16000)
    assert len(os.listdir("/proc/self/fd")) == len(before)
