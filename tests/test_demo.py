"""The demo page: what it answers, what it shows, what it refuses, and that it reads nothing but what was uploaded."""

import asyncio
import base64
import errno
import json
import os
import re
import resource
import runpy
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio
import httpx
import numpy as np
import psutil
import pytest
import soundfile
import yaml
from conftest import SMALL, enliven
from gradio_client import Client, handle_file

from modeling_htsat import (
    EventDecoding,
    HTSATConfig,
    HTSATFeatureExtractor,
    HTSATForSoundEventDetection,
    HTSATSoundEventDetectionPipeline,
    decode_events,
)
from modeling_htsat.cli import main as htsat
from modeling_htsat.commands.demo import load_listeners
from modeling_htsat.demo import hearing, page
from modeling_htsat.demo.guard import MAX_BODY_BYTES, NOT_UPLOADED, UPLOAD_ROUTE, OnlyUploads
from modeling_htsat.demo.hearing import Envelope, Heard, Limits, Listener, RefusalError, Settings
from modeling_htsat.tables import read_events

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "configuration" / "space"
RATE = 32_000
LABELS = {0: "alarm", 1: "bark", 2: "speech", 3: "rain", 4: "bell"}
OWN = {"threshold": 0.6, "max_gap_seconds": 0.3}
LIMITS = Limits(max_megabytes=2, max_minutes=0.5)
# As they stand on the page: own, threshold, hysteresis, median filter, gaps, shortest.
AS_THE_MODEL_SAYS = [True, 0.5, 0, 0, 0, 0]
BY_SLIDERS = [False, 0.55, 0.1, 0.5, 0.4, 0.3]


# ── a page with two models, and sounds to drop on it ──────────────────────────────────────────────────────────────────


def save_model(folder: Path, **values) -> Path:
    config = HTSATConfig(**{**SMALL, "id2label": LABELS, "problem_type": "multi_label_classification", **values})
    model = enliven(HTSATForSoundEventDetection(config))
    model.save_pretrained(folder)
    HTSATFeatureExtractor(clip_frames=256).save_pretrained(folder)
    return folder


def make_sound(path: Path, seconds: float, seed: int = 0, rate: int = RATE, **options) -> Path:
    """Noise and tones that come and go, so that scores of every class do too."""
    random = np.random.default_rng(seed)
    times = np.arange(int(seconds * rate)) / rate
    sound = sum(
        np.sin(2 * np.pi * hertz * times) * (np.sin(2 * np.pi * times / period + seed) > 0)
        for hertz, period in zip(random.uniform(80, 9000, 4), random.uniform(1, 4, 4), strict=True)
    )
    soundfile.write(path, 0.15 * sound + 0.03 * random.standard_normal(len(times)), rate, **options)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "with-own": save_model(folder / "with-own", event_decoding=OWN),
        "smaller": save_model(folder / "smaller", embed_dim=4, num_heads=(1, 1, 2, 2)),
    }


@pytest.fixture(scope="module")
def listeners(models) -> dict[str, Listener]:
    return load_listeners([str(folder) for folder in models.values()])


@pytest.fixture(scope="module")
def address(listeners):
    with page.served(listeners, LIMITS, port=free_port()) as address:
        yield address


@pytest.fixture(scope="module")
def client(address) -> Client:
    return new_visitor(address)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sounds")
    return [make_sound(folder / f"sound-{seed}.wav", 2 + seed * 0.9, seed) for seed in range(20)]


def new_visitor(address: str) -> Client:
    return Client(address, verbose=False, download_files=False)


def pipeline_of(listener: Listener) -> HTSATSoundEventDetectionPipeline:
    return HTSATSoundEventDetectionPipeline(model=listener.model, feature_extractor=listener.extractor)


def hear(client: Client, sound: Path, model: str = "with-own", sliders=AS_THE_MODEL_SAYS):
    """The picture, what was found, and what the page has to say."""
    return client.predict(handle_file(sound), model, *sliders, api_name="/hear")


def rounded(events) -> list[dict]:
    return [{name: round(value, 4) if isinstance(value, float) else value for name, value in e.items()} for e in events]


# ── answers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_finds_what_the_pipeline_finds(client, listeners, sounds):
    for name, listener in listeners.items():
        _, found, said = hear(client, sounds[3], name)
        answer = pipeline_of(listener)(str(sounds[3]), return_scores=True)
        assert said == "" and found["events"] == rounded(answer["events"]) and answer["events"]
        assert found["tags"] == [
            {"label": label, "score": round(score, 4)}
            for label, score in sorted(answer["tags"].items(), key=lambda tag: -tag[1])
        ]
        assert found["name"] == "sound-3.wav" and found["seconds"] == 4.7


def test_sliders_decode_the_kept_scores_and_the_model_is_not_run_again(client, listeners, sounds):
    listener = listeners["with-own"]
    expected = pipeline_of(listener)(str(sounds[4]), return_scores=True)
    calls = []
    hook = listener.model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        _, before, _ = hear(client, sounds[4])
        assert len(calls) == 1
        after, said = client.predict(*BY_SLIDERS, api_name="/redraw")
        again, _ = client.predict(*AS_THE_MODEL_SAYS, api_name="/redraw")
        assert len(calls) == 1
    finally:
        hook.remove()
    own, threshold, hysteresis, smooth, gap, shortest = BY_SLIDERS
    decoding = EventDecoding(threshold, round(threshold - hysteresis, 6), smooth, gap, shortest)
    events = decode_events(expected["scores"], None, decoding, expected["labels"], step_edges_seconds=expected["edges"])
    assert after["events"] == rounded(events) and said == ""
    assert after["events"] != before["events"] == again["events"]


def test_tables_hold_the_events_that_the_page_shows(client, sounds, tmp_path):
    _, found, _ = hear(client, sounds[5], sliders=BY_SLIDERS)
    shown = [(event["onset"], event["offset"], event["label"]) for event in found["events"]]
    assert shown
    files = {kind: client.predict(*BY_SLIDERS, api_name=f"/save_{kind}")[0] for kind in ("tsv", "json", "audacity")}
    assert [file["name"] for file in files.values()] == ["sound-5.tsv", "sound-5.json", "sound-5.txt"]
    (tmp_path / "events.tsv").write_text(files["tsv"]["text"])
    (events,) = read_events(tmp_path / "events.tsv").values()
    as_json = [(row["onset"], row["offset"], row["event_label"]) for row in json.loads(files["json"]["text"])]
    lines = [line.split("\t") for line in files["audacity"]["text"].splitlines()]
    tracks = [(float(onset), float(offset), label) for onset, offset, label in lines]
    for rows in (events, as_json, tracks):
        assert [(round(onset, 4), round(offset, 4), label) for onset, offset, label in rows] == shown


def test_a_visitor_who_gave_nothing_gets_a_sentence_and_no_table(address):
    fresh = new_visitor(address)
    assert fresh.predict(*BY_SLIDERS, api_name="/save_tsv")[0] is None
    assert "nothing to save yet" in fresh.predict(*BY_SLIDERS, api_name="/save_tsv")[1]


def answers_at_once(address: str, sounds: list[Path]):
    """Every sound alone, and then all of them at the same time, each by a visitor of its own who moves a slider too."""

    def visit(sound: Path):
        visitor = new_visitor(address)
        drawn, found, said = hear(visitor, sound)
        drawn.pop("sound")  # where it lies
        return drawn, found, said, visitor.predict(*BY_SLIDERS, api_name="/redraw"), found["name"]

    alone = [visit(sound) for sound in sounds]
    with ThreadPoolExecutor(len(sounds)) as visitors:
        return alone, list(visitors.map(visit, sounds))


def test_visitors_at_once_get_what_each_gets_alone(address, sounds):
    alone, together = answers_at_once(address, sounds[:5])
    assert together == alone
    assert len({json.dumps(answer) for answer in alone}) == 5


@pytest.mark.slow
def test_twenty_visitors_at_once_get_what_each_gets_alone(address, sounds):
    alone, together = answers_at_once(address, sounds)
    assert together == alone
    assert len({json.dumps(answer) for answer in alone}) == 20


# ── limits that all visitors share ────────────────────────────────────────────────────────────────────────────────────


class Counted:
    """A function that counts how many are inside of it at a time."""

    def __init__(self, function, seconds: float = 0.0):
        self.function, self.seconds = function, seconds
        self.inside = self.most = self.calls = 0
        self.lock = threading.Lock()

    def __call__(self, *arguments, **options):
        with self.lock:
            self.inside, self.calls = self.inside + 1, self.calls + 1
            self.most = max(self.most, self.inside)
        time.sleep(self.seconds)  # so that others have the time to come in as well
        try:
            return self.function(*arguments, **options)
        finally:
            with self.lock:
                self.inside -= 1


def test_one_recording_is_heard_at_a_time_whichever_model_hears_it(address, listeners, sounds, monkeypatch):
    counted = Counted(Listener.hear, 0.2)
    monkeypatch.setattr(Listener, "hear", lambda *given: counted(*given))
    visitors = [new_visitor(address) for _ in range(4)]
    models = [list(listeners)[number % 2] for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(hear, visitors, sounds[:4], models))
    assert all(found and said == "" for _, found, said in answers)
    assert (counted.calls, counted.most) == (4, 1)


def test_a_model_hears_one_at_a_time_whoever_asks_it(listeners, sounds, monkeypatch):
    """Files and microphones, which the page lets in by different doors."""
    listener = listeners["smaller"]
    counted = Counted(listener.model.htsat.forward, 0.05)
    monkeypatch.setattr(listener.model.htsat, "forward", counted)
    samples = np.zeros(RATE, dtype=np.float32)

    def ask(number: int):
        if number % 2:
            return listener.hear(sounds[number], "sound", LIMITS, Settings(), lambda *_: None)
        return listener.live(RATE, Settings()).feed(samples)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(ask, range(4)))
    assert counted.calls >= 4 and counted.most == 1


def test_what_was_heard_is_kept_for_64_visitors_and_the_next_one_displaces_the_first(address, browser, sounds):
    first = new_visitor(address)
    _, found, _ = hear(first, sounds[1])
    redraw = functions_of_api(first)["redraw"]
    for number in range(63):
        call(browser, address, redraw, f"visitor-{number}", None, *BY_SLIDERS)
    assert first.predict(*AS_THE_MODEL_SAYS, api_name="/redraw") == (found, "")
    for number in range(64):
        call(browser, address, redraw, f"visitor-{number}", None, *BY_SLIDERS)
    _, said = first.predict(*AS_THE_MODEL_SAYS, api_name="/redraw")
    assert said == page.notice(page.NOTHING_HELD) and "drop it once more" in said
    file, said = first.predict(*AS_THE_MODEL_SAYS, api_name="/save_tsv")
    assert file is None and "not any more" in said and "drop it once more" in said


def test_as_many_wait_as_the_page_says_and_one_more_is_told_so(listeners, monkeypatch):
    is_heard, may_go_on = threading.Event(), threading.Event()

    def hear_slowly(*_):
        is_heard.set()
        may_go_on.wait(60)
        raise RefusalError("This is a test.")

    monkeypatch.setattr(Listener, "hear", hear_slowly)
    with page.served(listeners, LIMITS, port=free_port()) as address, httpx.Client() as browser:
        client = new_visitor(address)
        file = upload(address, Path(__file__))
        body = {"fn_index": functions_of_api(client)["hear"], "data": [file, "smaller", *AS_THE_MODEL_SAYS]}

        def join(number: int) -> httpx.Response:
            return browser.post(f"{address}gradio_api/queue/join", json={**body, "session_hash": f"visitor-{number}"})

        try:
            assert join(0).status_code == 200 and is_heard.wait(30)
            answers = [join(number) for number in range(page.MAX_WAITING + 1)]
        finally:
            may_go_on.set()
    assert [answer.status_code for answer in answers] == [200] * page.MAX_WAITING + [503]
    assert f"Max size is {page.MAX_WAITING}" in answers[-1].text


# ── the picture ───────────────────────────────────────────────────────────────────────────────────────────────────────


def levels(drawn: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(drawn["levels"]), np.uint8)


def test_the_picture_shows_samples_spectrogram_and_scores(client, listeners, sounds):
    drawn, _, _ = hear(client, sounds[6])
    answer = pipeline_of(listeners["with-own"])(str(sounds[6]), return_scores=True)
    samples, _ = soundfile.read(sounds[6], dtype="float32")
    lows, highs = levels(drawn["envelope"]).reshape(2, -1) - 128.0
    columns = samples[: len(samples) // 320 * 320].reshape(-1, 320)
    loudest = np.abs(samples).max()
    assert np.abs(highs[: len(columns)] / 127 * loudest - columns.max(1).clip(0)).max() < loudest / 200
    assert np.abs(lows[: len(columns)] / 127 * loudest - columns.min(1).clip(max=0)).max() < loudest / 200
    bands = levels(drawn["spectrogram"]).reshape(64, -1)
    assert bands.shape == answer["log_mel"].T.shape and bands.max() == 255
    assert np.corrcoef(bands.ravel(), answer["log_mel"].T.clip(answer["log_mel"].max() - 80).ravel())[0, 1] > 0.98
    rows = levels(drawn["presence"]).reshape(5, -1) / 255
    order = [answer["labels"].index(label) for label in drawn["presence"]["labels"]]
    assert np.abs(rows - answer["scores"].T[order]).max() < 1 / 255
    assert (np.diff(rows.max(axis=1)) <= 0).all()
    edges = np.frombuffer(base64.b64decode(drawn["presence"]["edges"]), "<f4")
    assert np.allclose(edges, answer["edges"], atol=1e-5)


def test_an_hour_is_some_megabytes_for_the_browser_and_short_sounds_stay_visible():
    random = np.random.default_rng(0)
    scores = random.random((11_250, 527), dtype=np.float32) * 0.3
    scores[7_000, 400] = 1.0
    labels = tuple(f"class {index}" for index in range(527))
    heard = Heard(Path("hour.wav"), "hour.wav", 3600.0, labels, scores, np.arange(11_251) * 0.32, {}, None)
    envelope = Envelope(1_000)
    for second in range(3600):
        envelope.push(np.full(1_000, 0.9 if second == 1800 else 0.01, dtype=np.float32))
    log_mel = random.normal(-60, 5, (360_001, 64)).astype(np.float32)
    log_mel[180_000, 30] = 0.0
    drawn = {
        "envelope": envelope.drawn(),
        "presence": hearing.draw_presence(heard),
        "spectrogram": hearing.draw_spectrogram(log_mel, HTSATFeatureExtractor()),
    }
    assert len(json.dumps(drawn)) < 3e6
    assert levels(drawn["envelope"]).reshape(2, -1)[1].max() == 255
    assert drawn["presence"]["labels"][0] == "class 400"
    assert levels(drawn["presence"]).reshape(hearing.MAX_ROWS, -1)[0].argmax() == 7_000
    bands = levels(drawn["spectrogram"]).reshape(64, -1)
    band, column = np.unravel_index(bands.argmax(), bands.shape)
    assert band == 30 and abs(column / bands.shape[1] - 0.5) < 1e-3
    assert drawn["spectrogram"]["end"] == pytest.approx(3600, abs=0.5)


def test_what_was_dropped_can_be_played_and_other_formats_come_as_flac(client, address, tmp_path):
    wave = make_sound(tmp_path / "wave.wav", 2, subtype="PCM_24")
    other = make_sound(tmp_path / "other.aiff", 2)
    got = {}
    for sound in (wave, other):
        drawn, _, _ = hear(client, sound)
        response = httpx.get(drawn["sound"]["url"])
        assert response.status_code == 200
        got[sound] = tmp_path / f"got{Path(drawn['sound']['path']).suffix}"
        got[sound].write_bytes(response.content)
        part = httpx.get(drawn["sound"]["url"], headers={"Range": "bytes=100-199"})
        assert part.status_code == 206 and part.content == response.content[100:200]
    assert got[wave].read_bytes() == wave.read_bytes()
    assert soundfile.info(got[other]).format == "FLAC"
    assert np.abs(soundfile.read(got[other])[0] - soundfile.read(other)[0]).max() < 1e-4


# Names that say something else or nothing, rates that FLAC or browsers cannot do with, and all that libsndfile writes.
# The last is what browsers get: the file itself, or a copy.
ODD_SOUNDS = [
    ("wave.raw", 32_000, {"format": "WAV"}, "copy"),
    ("wave.html", 32_000, {"format": "WAV"}, "copy"),
    ("wave", 32_000, {"format": "WAV"}, "copy"),
    ("flac.wav", 32_000, {"format": "FLAC"}, "copy"),
    ("aiff.wav", 32_000, {"format": "AIFF"}, "copy"),
    ("WAVE.WAV", 32_000, {}, "itself"),
    ("mpeg.mp3", 32_000, {}, "itself"),
    ("flac.flac", 32_000, {}, "itself"),
    ("float.wav", 32_000, {"subtype": "FLOAT"}, "itself"),
    ("double.wav", 32_000, {"subtype": "DOUBLE"}, "copy"),
    ("adpcm.wav", 32_000, {"subtype": "IMA_ADPCM"}, "copy"),
    *(
        (f"{kind}.{kind}", 32_000, {"format": kind.upper()}, "copy")
        for kind in ("ogg", "au", "caf", "w64", "rf64", "voc")
    ),
    ("opus.opus", 48_000, {"format": "OGG", "subtype": "OPUS"}, "copy"),
    *(
        (f"{rate}.aiff", rate, {}, "copy")
        for rate in (1000, 2999, 44_100, 65_537, 70_001, 96_001, 100_001, 352_801, 384_000)
    ),
    *((f"{rate}.wav", rate, {}, "itself") for rate in (8_000, 44_100, 70_001, 192_000)),
    *((f"{rate}.wav", rate, {}, "copy") for rate in (1000, 384_000)),
]


@pytest.mark.parametrize(("name", "rate", "options", "what"), ODD_SOUNDS)
def test_browsers_can_play_whatever_the_model_hears(listeners, tmp_path, name, rate, options, what):
    sound = make_sound(tmp_path / name, 1, rate=rate, **options)
    check_what_is_played(listeners, sound, what)


@pytest.mark.parametrize(("num_channels", "what"), [(2, "itself"), (8, "itself"), (9, "copy"), (64, "copy")])
def test_browsers_can_play_sounds_of_many_channels(listeners, tmp_path, num_channels, what):
    mono, _ = soundfile.read(make_sound(tmp_path / "mono.wav", 1))
    soundfile.write(tmp_path / "many.wav", np.tile(mono[:, None], num_channels), RATE)
    check_what_is_played(listeners, tmp_path / "many.wav", what)


def check_what_is_played(listeners, sound: Path, what: str):
    desk = page.Desk(listeners, Limits())
    _, drawn, found, said = desk.hear(str(sound), "smaller", *AS_THE_MODEL_SAYS, progress=lambda *_, **__: None)
    assert said == "" and found["seconds"] == pytest.approx(1, abs=0.1)
    played = Path(drawn["sound"]["path"])
    if what == "itself":
        assert played == sound
        return
    info = soundfile.info(played)
    assert (played.suffix, info.format, info.channels) == (".flac", "FLAC", 1)
    assert 8_000 <= info.samplerate <= 48_000 and info.duration == pytest.approx(found["seconds"], abs=0.01)
    assert np.sqrt(np.mean(soundfile.read(played)[0] ** 2)) > 0.05


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def refused(client: Client, path: Path) -> str:
    """The sentence for a file that cannot be heard; with nothing else, and no path of the server."""
    drawn, found, said = hear(client, path)
    assert drawn is None and found is None
    assert said.count('role="alert"') == 1
    sentence = re.sub("<.*?>", "", said)
    assert path.name in sentence or sentence.startswith("This "), sentence
    assert "htsat-demo-" not in sentence and "/" not in sentence
    return sentence


def test_what_is_no_sound_is_refused_in_one_sentence(client, tmp_path):
    (tmp_path / "notes.txt").write_text("Not a sound, but a text.\n" * 9)
    (tmp_path / "song.wav").write_text("Not a sound either.\n" * 9)
    (tmp_path / "empty.flac").write_bytes(b"")
    whole = make_sound(tmp_path / "whole.wav", 3).read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    assert "is not audio" in refused(client, tmp_path / "notes.txt")
    assert "is not audio" in refused(client, tmp_path / "song.wav")
    assert "is empty" in refused(client, tmp_path / "empty.flac")
    assert "is truncated" in refused(client, tmp_path / "cut.wav")
    assert "allow_truncated" not in refused(client, tmp_path / "cut.wav")


def test_a_name_with_markup_is_shown_as_it_is(tmp_path):
    assert "<img" not in page.notice("<img src=x onerror=alert(1)>.wav is not audio")


def test_recordings_beyond_the_limits_are_refused_before_the_model_hears_them(client, address, listeners, tmp_path):
    calls = []
    hook = listeners["with-own"].model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        long = make_sound(tmp_path / "long.wav", 31, rate=8_000, subtype="PCM_U8")
        assert refused(client, long).startswith("This recording is longer than 0.5 minutes")
    finally:
        hook.remove()
    assert not calls
    large = httpx.post(f"{address}gradio_api/upload", files={"files": ("large.wav", b"\0" * 2_200_000)})
    assert large.status_code == 413 and "2 MB" in large.text

    def in_parts():  # says nothing of its length
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="large.wav"\r\n\r\n'
        yield from (b"\0" * 100_000 for _ in range(30))
        yield b"\r\n--x--\r\n"

    header = {"Content-Type": "multipart/form-data; boundary=x"}
    assert httpx.post(f"{address}gradio_api/upload", content=in_parts(), headers=header).status_code == 413
    with pytest.raises(RefusalError, match="has 3 MB, and this page takes 2 MB at most"):
        LIMITS.check_size(3_000_000)


def test_a_recording_that_does_not_say_its_length_is_stopped_at_the_limit(tmp_path, monkeypatch):
    long = make_sound(tmp_path / "long.flac", 31, rate=8_000)
    monkeypatch.setattr("modeling_htsat.audio_htsat.AudioSource.duration_seconds", None, raising=False)
    monkeypatch.setattr("modeling_htsat.audio_htsat.AudioSource.__setattr__", skip_duration)
    with pytest.raises(RefusalError, match="longer than"):
        hearing.read_envelope(long, LIMITS)


def skip_duration(source, name, value):
    if name != "duration_seconds":
        object.__setattr__(source, name, value)


def hear_at_desk(listeners, sound: Path) -> str:
    *nothing, said = page.Desk(listeners, LIMITS).hear(
        str(sound), "smaller", *AS_THE_MODEL_SAYS, progress=lambda *_, **__: None
    )
    assert nothing == [None] * 3 and str(sound.parent) not in said
    return said


def test_a_full_disk_and_a_file_that_is_gone_are_different_sentences(listeners, tmp_path, monkeypatch, caplog):
    sound = make_sound(tmp_path / "sound.aiff", 2)
    assert hear_at_desk(listeners, tmp_path / "gone.wav") == page.notice(page.FORGOTTEN)
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, most[1]))  # libsndfile itself cannot write
    try:
        assert hear_at_desk(listeners, sound) == page.notice(page.NO_ROOM)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert list(tmp_path.iterdir()) == [sound]

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(page, "playable", full)
    assert hear_at_desk(listeners, sound) == page.notice(page.NO_ROOM)
    assert os.strerror(errno.ENOSPC) in caplog.text  # for whoever runs the page
    heard = Heard(sound, "sound", 1.0, ("a",), np.zeros((1, 1)), np.arange(2.0), {}, None)
    monkeypatch.setattr(hearing, "write_events", full)
    assert page.Desk(listeners, LIMITS).save(heard, "TSV", *BY_SLIDERS) == (None, page.notice(page.NO_ROOM))


@pytest.mark.parametrize("step", ["read_envelope", "playable"])
def test_a_file_that_vanishes_while_it_is_heard_is_said_to_be_gone(listeners, tmp_path, monkeypatch, step):
    sound = make_sound(tmp_path / "sound.aiff", 1)
    module = hearing if step == "read_envelope" else page
    do = getattr(module, step)
    monkeypatch.setattr(module, step, lambda path, *rest: (sound.unlink(), do(path, *rest)))
    assert hear_at_desk(listeners, sound) == page.notice(page.FORGOTTEN)


# ── nothing but what was uploaded ─────────────────────────────────────────────────────────────────────────────────────

SECRET = "nobody may read this"


@pytest.fixture(scope="module")
def uploaded(client, sounds) -> Path:
    drawn, _, _ = hear(client, sounds[0])
    return Path(drawn["sound"]["path"])


@pytest.fixture(scope="module")
def secrets(tmp_path_factory, uploaded) -> list[str]:
    """Paths of files that nobody uploaded, told in many ways."""
    secret = tmp_path_factory.mktemp("secret") / "secret.wav"
    make_sound(secret, 1)
    (secret.parent / "secret.txt").write_text(SECRET)
    folder = uploaded.parents[1]
    (folder / "link.wav").symlink_to(secret)
    up = "/".join([".."] * 12)
    return [
        str(secret),
        str(secret.with_suffix(".txt")),
        "/etc/passwd",
        f"{folder}/{up}{secret}",
        f"{uploaded}/../../..{secret}",
        str(folder / "link.wav"),
        str(folder),
        page.__file__,
        str(ROOT / "setup.cfg"),
        "setup.cfg",
        f"file://{secret}",
        "http://127.0.0.1:1/sound.wav",
        "https://example.org/sound.wav",
        "\0",
        "~/.bashrc",
    ]


@pytest.fixture(scope="module")
def browser():
    with httpx.Client() as browser:
        yield browser


def test_no_file_of_the_server_can_be_read(address, secrets, uploaded, browser):
    assert httpx.get(f"{address}gradio_api/file={uploaded}").status_code == 200  # or all of this would mean nothing
    for secret in secrets:
        for told in (secret, secret.replace("/", "%2F").replace("..", "%2e%2e"), secret.replace("/", "%252F")):
            for route in ("gradio_api/file=", "gradio_api/file/", "file=", "static/", "assets/", "gradio_api/proxy="):
                url = httpx.URL(address).copy_with(raw_path=f"/{route}{told}".replace("\0", "%00").encode())
                response = browser.get(url)
                assert response.status_code in (400, 403, 404), (route, told, response.status_code)
                assert SECRET not in response.text and "root:" not in response.text


def test_a_path_that_was_not_uploaded_is_not_heard(address, secrets, client, browser):
    hear_file = functions_of_api(client)["hear"]
    for secret in secrets:
        for extra in ({}, {"url": f"{address}x"}, {"is_stream": True}, {"orig_name": "sound.wav"}):
            file = {"path": secret, "meta": {"_type": "gradio.FileData"}, **extra}
            data = [file, "with-own", *AS_THE_MODEL_SAYS]
            body = {"data": data, "session_hash": "thief", "fn_index": hear_file}
            for route in ("queue/join", "queue/join/"):
                response = browser.post(f"{address}gradio_api/{route}", json=body)
                # The guard says so, and not Gradio behind it.
                assert (response.status_code, response.text) == (403, NOT_UPLOADED), (route, secret, response.text)


# The guard alone, before an application that answers everything.


def ask_guard(guard: OnlyUploads, method: str, path: str, *parts: bytes, **headers: str) -> int:
    """The status of the answer to a request whose body comes in these parts."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    told = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "query_string": b"", "headers": told}
    answers = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        answers.append(message)

    asyncio.run(guard(scope, receive, send))
    return answers[0]["status"]


async def everything_is_fine(scope, receive, send):
    """An application that reads all that comes and tells everybody everything."""
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": SECRET.encode()})


@pytest.fixture(scope="module")
def guard(uploaded) -> OnlyUploads:
    return OnlyUploads(everything_is_fine, uploads=uploaded.parents[1], max_megabytes=LIMITS.max_megabytes)


def test_the_guard_alone_gives_out_what_was_uploaded_and_nothing_else(guard, uploaded, secrets):
    for method in ("GET", "HEAD"):
        assert ask_guard(guard, method, f"/gradio_api/file={uploaded}") == 200
        for secret in secrets:
            assert ask_guard(guard, method, f"/gradio_api/file={secret}") == 403, secret
            assert ask_guard(guard, method, f"/gradio_api/file/{secret}") == 404, secret
    assert ask_guard(guard, "GET", "/config") == 200
    assert ask_guard(guard, "GET", "/monitoring") == 404


def test_the_guard_alone_lets_no_call_name_what_was_not_uploaded(guard, uploaded, secrets):
    for route in (f"/gradio_api/{route}" for route in ("queue/join", "queue/join/", "stream/0", "stream/0/close")):
        for path, status in [(str(uploaded), 200), *((secret, 403) for secret in secrets)]:
            for data in ([{"path": path}], {"a": {"b": [{"orig_name": "x", "path": path}]}}):
                body = json.dumps({"fn_index": 0, "data": data}).encode()
                assert ask_guard(guard, "POST", route, body[:9], body[9:]) == status, (route, path)
        assert ask_guard(guard, "POST", route, b" " * MAX_BODY_BYTES, b"  ") == 413, route


def test_the_guard_alone_counts_all_that_is_uploaded_at_once(guard):
    most = LIMITS.max_megabytes * 10**6
    for route in (UPLOAD_ROUTE, f"{UPLOAD_ROUTE}/"):
        assert ask_guard(guard, "POST", route, *[b"0" * (most // 4)] * 4) == 200
        assert ask_guard(guard, "POST", route, *[b"0" * (most // 4)] * 5) == 413
        assert ask_guard(guard, "POST", route, b"", content_length=str(2 * most)) == 413


def upload_in_parts(address: str, num_files: int, megabytes: float = 0.9) -> httpx.Response:
    """Several files in one request that says nothing of its length."""

    def parts():
        for number in range(num_files):
            name = f'name="files"; filename="{number}.wav"'
            yield f"--x\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode()
            yield from (b"\0" * 100_000 for _ in range(round(megabytes * 10)))
            yield b"\r\n"
        yield b"--x--\r\n"

    header = {"Content-Type": "multipart/form-data; boundary=x"}
    return httpx.post(f"{address}gradio_api/upload", content=parts(), headers=header)


def test_the_limit_of_uploads_holds_for_all_files_of_a_request_together(address, uploaded):
    assert len(upload_in_parts(address, 2).json()) == 2
    folder = uploaded.parents[1]
    before = sorted(folder.iterdir())
    for num_files in (3, 20):
        response = upload_in_parts(address, num_files)
        assert response.status_code == 413 and "2 MB at most" in response.text
    assert sorted(folder.iterdir()) == before  # nothing is left of them


def test_nothing_is_left_of_an_upload_that_breaks_off(address, uploaded):
    folder = uploaded.parents[1]
    before = sorted(folder.iterdir())
    head = "POST /gradio_api/upload HTTP/1.1\r\nHost: page\r\nContent-Length: 900000\r\n"
    body = '--x\r\nContent-Disposition: form-data; name="files"; filename="half.wav"\r\n\r\n' + "0" * 100_000
    with socket.create_connection(("127.0.0.1", httpx.URL(address).port)) as visitor:
        visitor.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n{body}".encode())
        assert becomes_true(lambda: sorted(folder.iterdir()) != before)
    assert becomes_true(lambda: sorted(folder.iterdir()) == before)


def becomes_true(holds, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not (is_true := holds()) and time.monotonic() < end:
        time.sleep(0.02)
    return is_true


def test_gradio_too_refuses_a_path_that_was_not_uploaded(listeners, secrets, browser, monkeypatch):
    """Its own watch stands behind ours: with ours away, nothing is heard either."""
    monkeypatch.setattr("modeling_htsat.demo.guard.OnlyUploads._refusal_of_body", lambda *_: None)
    with page.served(listeners, LIMITS, port=free_port()) as address:
        hear_file = functions_of_api(new_visitor(address))["hear"]
        for secret in secrets[:5]:
            file = {"path": secret, "meta": {"_type": "gradio.FileData"}}
            message = ask(browser, address, hear_file, "thief", file, "with-own", *AS_THE_MODEL_SAYS)
            assert not message["success"] and "sound" not in json.dumps(message)


PAST_THE_QUEUE = ("run", "api", "call", "call/v2")


def test_routes_that_the_page_does_not_need_are_not_there(address):
    for method, path in (
        ("GET", "monitoring"),
        ("GET", "gradio_api/runs"),
        ("GET", "gradio_api/vibe-code"),
        ("POST", "gradio_api/vibe-edit"),
        ("POST", "gradio_api/component_server"),
        ("POST", "gradio_api/process_recording"),
        ("GET", "gradio_api/deep_link"),
        ("GET", "gradio_api/openapi.json"),
        ("GET", "docs"),
        ("PUT", ""),
        ("DELETE", "gradio_api/upload"),
        *(("POST", f"gradio_api/{way}/{name}") for way in PAST_THE_QUEUE for name in ("hear", "predict", "upload")),
    ):
        assert httpx.request(method, f"{address}{path}").status_code == 404, path
    assert httpx.get(address).status_code == 200


def test_a_body_that_is_too_long_or_no_json_is_refused(address):
    for route in ("queue/join", "queue/join/"):
        url = f"{address}gradio_api/{route}"
        assert httpx.post(url, content=b" " * (MAX_BODY_BYTES + 1)).status_code == 413, route
        assert httpx.post(url, content=b"{").status_code == 400, route
        assert httpx.post(url, content=b"[" * 200_000).status_code == 400, route


def test_uploads_are_deleted_after_a_while_and_with_the_server(listeners, sounds, monkeypatch):
    monkeypatch.setattr(page, "KEPT_SECONDS", (1, 1))
    with page.served(listeners, LIMITS, port=free_port()) as address:
        drawn, _, _ = hear(new_visitor(address), sounds[0])
        upload = Path(drawn["sound"]["path"])
        folder = upload.parents[1]
        for _ in range(100):
            if not upload.exists():
                break
            time.sleep(0.1)
        assert not upload.exists() and folder.exists()
    assert not folder.exists()


def test_the_page_listens_on_this_machine_alone_and_reports_to_nobody(address, client):
    assert address.startswith("http://127.0.0.1:")
    assert client.config["analytics_enabled"] is False
    for path in ("", "theme.css"):
        text = httpx.get(f"{address}{path}").text
        assert "fonts.googleapis" not in text and "@import" not in text and "cdnjs" not in text


# ── live ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_live_sound_gives_the_events_of_the_whole_recording(listeners, sounds, tmp_path):
    desk, listener = page.Desk(listeners, LIMITS), listeners["with-own"]
    samples, _ = soundfile.read(sounds[9], dtype="float32")
    live, provisional = None, 0
    for number, start in enumerate(range(0, len(samples), RATE)):
        chunk = tmp_path / f"{number}.wav"
        soundfile.write(chunk, samples[start : start + RATE], RATE, subtype="FLOAT")
        live, heard, drawn, found, said = desk.hear_live(str(chunk), live, "with-own", *AS_THE_MODEL_SAYS)
        assert said == "" and not chunk.exists() and drawn["live"] and heard.found() == found
        provisional += sum("provisional" in event for event in found["events"])
    assert provisional
    live, heard, drawn, found = desk.stop_live(live)
    assert drawn["seconds"] == round(len(samples) / RATE, 3)
    late = make_sound(tmp_path / "late.wav", 1)
    nothing = [gradio.skip()] * 3
    assert desk.hear_live(str(late), live, "with-own", *AS_THE_MODEL_SAYS) == (live, *nothing, "")
    expected = pipeline_of(listener)(str(sounds[9]))
    assert [event["label"] for event in found["events"]] == [event["label"] for event in expected] != []
    for event, other in zip(found["events"], expected, strict=True):
        assert event["onset"] == pytest.approx(other["onset"], abs=1e-3)
        assert event["score"] == pytest.approx(other["score"], abs=1e-3)
    name, text = desk.save(heard, "TSV", *BY_SLIDERS)[0].values()
    assert name == "live.tsv" and len(text.splitlines()) == 1 + len(expected)
    assert live.feed(samples[:100]) is None


@pytest.mark.parametrize("when", ["while it waits", "while it is heard"])
def test_a_second_that_is_overtaken_by_the_end_says_nothing_any_more(listeners, sounds, tmp_path, monkeypatch, when):
    """Or the last events, which are certain, would give way to those before them."""
    desk, listener = page.Desk(listeners, LIMITS), listeners["with-own"]
    live = listener.live(RATE, Settings(*BY_SLIDERS))
    samples, _ = soundfile.read(sounds[9], dtype="float32")
    live.feed(samples[: 3 * RATE])
    chunk = tmp_path / "chunk.wav"
    soundfile.write(chunk, samples[3 * RATE : 4 * RATE], RATE)
    is_asked, is_stopped = threading.Event(), threading.Event()
    owner, name = (live.envelope, "push") if when == "while it is heard" else (live, "feed")
    do = getattr(owner, name)

    def stop_first(given):
        is_asked.set()
        is_stopped.wait(60)
        return do(given)

    monkeypatch.setattr(owner, name, stop_first)
    with ThreadPoolExecutor(2) as threads:
        late = threads.submit(desk.hear_live, str(chunk), live, "with-own", *BY_SLIDERS)
        assert is_asked.wait(60)
        last = threads.submit(desk.stop_live, live)
        assert becomes_true(lambda: live.is_finished)
        is_stopped.set()
        assert late.result(60) == (live, *[gradio.skip()] * 3, "")
    _, heard, drawn, found = last.result()
    assert found["events"] and not any("provisional" in event for event in found["events"])
    assert drawn["seconds"] == (4 if when == "while it is heard" else 3) == heard.seconds


def test_silence_of_several_visitors_is_one_file_and_stays_for_the_others(listeners, tmp_path):
    desk, chunk = page.Desk(listeners, LIMITS), tmp_path / "audio.wav"
    soundfile.write(chunk, np.zeros(RATE), RATE)
    for _ in range(2):
        *_, said = desk.hear_live(str(chunk), None, "smaller", *AS_THE_MODEL_SAYS)
        assert said == "" and chunk.exists()


def test_live_sound_has_an_end_and_what_is_no_sound_does_not_end_it(listeners, tmp_path):
    desk = page.Desk(listeners, Limits(max_minutes=0.05))
    live = None
    for number in range(5):
        chunk = make_sound(tmp_path / f"{number}.wav", 1)
        live, *_, said = desk.hear_live(str(chunk), live, "smaller", *AS_THE_MODEL_SAYS)
    assert "longer than 0.05 minutes" in said and live.seconds == 3.0
    (tmp_path / "chunk.wav").write_text("no sound")
    again, *_, said = desk.hear_live(str(tmp_path / "chunk.wav"), live, "smaller", *AS_THE_MODEL_SAYS)
    assert again is live and "what the microphone sent is not audio" in said and str(tmp_path) not in said


def functions_of(client: Client, element: str) -> dict[str, int]:
    """What is called when something happens to this element of the page."""
    (component,) = (each["id"] for each in client.config["components"] if each["props"].get("elem_id") == element)
    targets = [
        (event, each["id"])
        for each in client.config["dependencies"]
        for id, event in each["targets"]
        if id == component
    ]
    return dict(targets)


def call(browser: httpx.Client, address: str, function: int, session: str, *data) -> list:
    """Call any function of the page; values that are kept by the server come from the session."""
    message = ask(browser, address, function, session, *data)
    assert message["success"], message
    return message["output"]["data"]


def ask(browser: httpx.Client, address: str, function: int, session: str, *data) -> dict:
    """How the page ends a call, well or not."""
    body = {"fn_index": function, "data": data, "session_hash": session}
    response = browser.post(f"{address}gradio_api/queue/join", json=body)
    assert response.status_code == 200, response.text
    told = {"session_hash": session}
    with browser.stream("GET", f"{address}gradio_api/queue/data", params=told, timeout=60) as messages:
        for line in messages.iter_lines():
            if line.startswith("data:") and (message := json.loads(line[5:]))["msg"] == "process_completed":
                return message
    raise AssertionError("the page said nothing")


def upload(address: str, sound: Path) -> dict:
    (path,) = httpx.post(f"{address}gradio_api/upload", files={"files": (sound.name, sound.read_bytes())}).json()
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_while_the_microphone_is_open_sliders_and_tables_are_about_what_it_hears(
    address, client, browser, sounds, tmp_path
):
    visitor, hear_file = "live-visitor", functions_of(client, "htsat-file")["upload"]
    live, redraw = functions_of(client, "htsat-live"), functions_of_api(client)["redraw"]
    save = functions_of_api(client)["save_tsv"]
    *_, found, _ = call(
        browser, address, hear_file, visitor, upload(address, sounds[3]), "with-own", *AS_THE_MODEL_SAYS
    )
    assert found["name"] == "sound-3.wav"
    # Nothing is held, and nothing shown, from the moment on that it is opened.
    _, _, drawn, found, _ = call(browser, address, live["start_recording"], visitor)
    assert drawn is None and found is None
    assert call(browser, address, save, visitor, None, None, *AS_THE_MODEL_SAYS)[0] is None
    samples, _ = soundfile.read(sounds[9], dtype="float32")
    for number, start in enumerate(range(0, len(samples), RATE)):
        chunk = tmp_path / f"{number}.wav"
        soundfile.write(chunk, samples[start : start + RATE], RATE, subtype="FLOAT")
        *_, shown, _ = call(
            browser, address, live["stream"], visitor, upload(address, chunk), None, "with-own", *AS_THE_MODEL_SAYS
        )
        redrawn, said = call(browser, address, redraw, visitor, None, *BY_SLIDERS)
        assert redrawn == shown and shown["name"] == "live" and said == ""
    assert shown["events"]
    file, said = call(browser, address, save, visitor, None, None, *BY_SLIDERS)
    assert file["name"] == "live.tsv" and said == "" and len(file["text"].splitlines()) == 1 + len(shown["events"])


def functions_of_api(client: Client) -> dict[str, int]:
    return {each["api_name"]: each["id"] for each in client.config["dependencies"]}


# ── progress ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_long_recordings_tell_how_far_they_are(listeners, tmp_path):
    told = []
    sound = make_sound(tmp_path / "long.wav", 28)
    listeners["with-own"].hear(sound, "long.wav", LIMITS, Settings(), lambda part, word: told.append((part, word)))
    parts = [part for part, word in told if word == "Listening"]
    assert parts[0] == 0 and len(parts) > 1 and parts == sorted(parts) and parts[-1] < 1
    assert told[0][1] == "Reading" and told[-1] == (1.0, "Drawing")


# ── the command and the Space ─────────────────────────────────────────────────────────────────────────────────────────


def test_models_of_one_name_are_told_apart_and_no_path_is_shown(models, tmp_path):
    twin = tmp_path / "with-own"
    twin.symlink_to(models["smaller"])
    other = tmp_path / "other" / "with-own"
    other.parent.mkdir()
    other.symlink_to(models["smaller"])
    shown = list(load_listeners([str(models["with-own"]), str(models["smaller"]), str(models["smaller"])]))
    assert shown == ["with-own", "smaller", "smaller (3)"]


def listening_at(port: int) -> set[str]:
    """The addresses of this machine at which somebody listens at this port."""
    sockets = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    return {each.laddr.ip for each in sockets if each.laddr.port == port}


def test_the_command_shows_the_page_to_this_machine_alone_until_it_is_interrupted(models, monkeypatch, capsys):
    seen, port = [], free_port()

    def look(event):
        address = capsys.readouterr().out.split(" ")[0]
        seen.append((new_visitor(address).config["title"], listening_at(port)))
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Event, "wait", wait_or(look, threading.Event.wait))
    assert htsat(["demo", "--model", str(models["smaller"]), "--port", str(port)]) == 130
    assert seen == [("Which sounds, and when", {"127.0.0.1"})]


def wait_or(look, wait):
    """`Event.wait`, but for the command's own, which has no timeout and stands in the main thread."""

    def replaced(event, timeout=None):
        is_the_commands = sys._getframe(1).f_globals["__name__"] == "modeling_htsat.commands.demo"
        return look(event) if is_the_commands else wait(event, timeout)

    return replaced


def test_what_the_command_needs_is_said_in_one_sentence(models, monkeypatch, capsys):
    assert htsat(["demo", "--model", "not/a/model"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit):
        htsat(["demo"])
    assert "--model" in capsys.readouterr().err
    monkeypatch.setattr("modeling_htsat.commands.demo.find_spec", lambda name: None)
    assert htsat(["demo", "--model", str(models["smaller"])]) == 1
    assert capsys.readouterr().err == 'htsat: `htsat demo` needs gradio: `pip install "modeling-htsat[demo]"`.\n'


def test_a_port_that_is_taken_is_said_in_one_sentence(models, address, capsys):
    port = address.rstrip("/").rpartition(":")[2]
    assert htsat(["demo", "--model", str(models["smaller"]), "--port", port]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and port in error and "--port" in error


def test_the_space_answers_as_it_stands(models, sounds, tmp_path):
    port = free_port()
    settings = {"HTSAT_MODEL": str(models["smaller"]), "GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
    log = tmp_path / "log"
    with open(log, "w") as output:
        space = subprocess.Popen(
            [sys.executable, str(SPACE / "app.py")], cwd=tmp_path, env=environment, stdout=output, stderr=output
        )
    try:
        for _ in range(600):
            if "http" in log.read_text() or space.poll() is not None:
                break
            time.sleep(0.1)
        drawn, found, said = hear(new_visitor(f"http://127.0.0.1:{port}/"), sounds[2], "smaller")
        assert said == "" and found["name"] == "sound-2.wav"
        uploads = Path(drawn["sound"]["path"]).parents[1]
        assert uploads.is_dir()
    finally:
        space.terminate()
        space.wait(20)
    assert not uploads.exists()


def test_the_space_without_a_model_says_what_it_needs(monkeypatch):
    monkeypatch.delenv("HTSAT_MODEL", raising=False)
    with pytest.raises(SystemExit, match="^HTSAT_MODEL is empty: set it"):
        runpy.run_path(str(SPACE / "app.py"), run_name="__main__")


def test_the_card_of_the_space_names_what_is_installed():
    card = (SPACE / "README.md").read_text(encoding="utf-8")
    values = yaml.safe_load(card.split("---")[1])
    constraints = (ROOT / "constraints.txt").read_text()
    assert f"gradio=={values['sdk_version']}\n" in constraints
    assert values["sdk"] == "gradio" and (SPACE / values["app_file"]).is_file()
    assert (SPACE / "requirements.txt").read_text().split() == ["modeling-htsat[demo]"]
    assert "sdk_version" in values and gradio.__version__.split(".")[0] == values["sdk_version"].split(".")[0]
