"""The demo page: what it answers, what it shows, what it refuses, and that it reads nothing but what was uploaded."""

import base64
import json
import os
import re
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
from modeling_htsat.demo.guard import MAX_BODY_BYTES
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
    functions = {each["api_name"]: each["id"] for each in client.config["dependencies"]}
    for secret in secrets:
        for extra in ({}, {"url": f"{address}x"}, {"is_stream": True}, {"orig_name": "sound.wav"}):
            file = {"path": secret, "meta": {"_type": "gradio.FileData"}, **extra}
            body = {"data": [file, "with-own", *AS_THE_MODEL_SAYS], "session_hash": "thief"}
            for route, more in (
                ("queue/join", {"fn_index": functions["hear"]}),
                ("run/hear", {}),
                ("api/hear", {}),
                ("call/hear", {}),
                ("call/v2/hear", {}),
            ):
                response = browser.post(f"{address}gradio_api/{route}", json={**body, **more})
                assert response.status_code in (400, 403, 404), (route, secret, response.text)
                assert "root:" not in response.text


def test_gradio_too_refuses_a_path_that_was_not_uploaded(listeners, secrets, monkeypatch):
    """Its own watch stands behind ours: with ours away, nothing is heard either."""
    monkeypatch.setattr("modeling_htsat.demo.guard.OnlyUploads._refusal_of_body", lambda *_: None)
    with page.served(listeners, LIMITS, port=free_port()) as address:
        for secret in secrets[:5]:
            file = {"path": secret, "meta": {"_type": "gradio.FileData"}}
            body = {"data": [file, "with-own", *AS_THE_MODEL_SAYS], "session_hash": "thief"}
            response = httpx.post(f"{address}gradio_api/run/hear", json=body)
            assert response.status_code >= 400 and "sound" not in response.text


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
    ):
        assert httpx.request(method, f"{address}{path}").status_code == 404, path
    assert httpx.get(address).status_code == 200


def test_a_body_that_is_too_long_or_no_json_is_refused(address):
    long = httpx.post(f"{address}gradio_api/run/redraw", content=b" " * (MAX_BODY_BYTES + 1))
    assert long.status_code == 413
    assert httpx.post(f"{address}gradio_api/run/redraw", content=b"{").status_code == 400
    assert httpx.post(f"{address}gradio_api/run/redraw", content=b"[" * 200_000).status_code == 400


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
        live, drawn, found, said = desk.hear_live(str(chunk), live, "with-own", *AS_THE_MODEL_SAYS)
        assert said == "" and not chunk.exists() and drawn["live"]
        provisional += sum("provisional" in event for event in found["events"])
    assert provisional
    live, heard, drawn, found = desk.stop_live(live)
    assert drawn["seconds"] == round(len(samples) / RATE, 3)
    late = make_sound(tmp_path / "late.wav", 1)
    assert desk.hear_live(str(late), live, "with-own", *AS_THE_MODEL_SAYS) == (live, gradio.skip(), gradio.skip(), "")
    expected = pipeline_of(listener)(str(sounds[9]))
    assert [event["label"] for event in found["events"]] == [event["label"] for event in expected] != []
    for event, other in zip(found["events"], expected, strict=True):
        assert event["onset"] == pytest.approx(other["onset"], abs=1e-3)
        assert event["score"] == pytest.approx(other["score"], abs=1e-3)
    name, text = desk.save(heard, "TSV", *BY_SLIDERS)[0].values()
    assert name == "live.tsv" and len(text.splitlines()) == 1 + len(expected)
    with pytest.raises(ValueError, match="finished"):
        live.feed(samples[:100])


def test_silence_of_several_visitors_is_one_file_and_stays_for_the_others(listeners, tmp_path):
    desk, chunk = page.Desk(listeners, LIMITS), tmp_path / "audio.wav"
    soundfile.write(chunk, np.zeros(RATE), RATE)
    for _ in range(2):
        _, _, _, said = desk.hear_live(str(chunk), None, "smaller", *AS_THE_MODEL_SAYS)
        assert said == "" and chunk.exists()


def test_live_sound_has_an_end_and_what_is_no_sound_does_not_end_it(listeners, tmp_path):
    desk = page.Desk(listeners, Limits(max_minutes=0.05))
    live = None
    for number in range(5):
        chunk = make_sound(tmp_path / f"{number}.wav", 1)
        live, _, _, said = desk.hear_live(str(chunk), live, "smaller", *AS_THE_MODEL_SAYS)
    assert "longer than 0.05 minutes" in said and live.seconds == 3.0
    (tmp_path / "chunk.wav").write_text("no sound")
    again, _, _, said = desk.hear_live(str(tmp_path / "chunk.wav"), live, "smaller", *AS_THE_MODEL_SAYS)
    assert again is live and "what the microphone sent is not audio" in said and str(tmp_path) not in said


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


def test_the_command_shows_the_page_until_it_is_interrupted(models, monkeypatch, capsys):
    seen = []

    def look(event):
        address = capsys.readouterr().out.split(" ")[0]
        seen.append(new_visitor(address).config["title"])
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Event, "wait", wait_or(look, threading.Event.wait))
    assert htsat(["demo", "--model", str(models["smaller"]), "--port", str(free_port())]) == 130
    assert seen == ["Which sounds, and when"]


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
