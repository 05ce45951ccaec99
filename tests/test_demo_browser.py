"""The demo page in a real browser: `make browser`. Pictures of it lie in build/screenshots afterwards."""

import base64
import io
import json
import shutil
import threading
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from PIL import Image
from test_demo import LIMITS, free_port, make_sound, save_model

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "build" / "screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_BROWSER = "No Chromium is found: install it, on Debian and Ubuntu with `apt-get install chromium`."
NO_PLAYWRIGHT = 'Playwright is not installed: `make browser` does it, or `pip install "modeling-htsat[browser]"`.'
DESKTOP, PHONE = {"width": 1280, "height": 960}, {"width": 360, "height": 740}
GUTTER, NARROW_GUTTER = 128, 78  # pixels of the picture left of its time axis
WAVEFORM, SPECTROGRAM, PRESENCE, PRESENCE_ROW = (44, 110), (130, 262), 282, 18  # pixels from the top of the picture
WAVE = (37, 99, 168)
MANY = 0.42  # the threshold at which the first model finds a dozen events in the recording
SLIDERS = {"Threshold", "Hysteresis"} | {
    f"{name} (seconds)" for name in ("Median filter", "Close gaps up to", "Drop events below")
}
TABS = ("File", "Microphone", "Live")


# ── a browser, and a page for it ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def listeners(tmp_path_factory):
    from modeling_htsat.commands.demo import load_listeners

    folder = tmp_path_factory.mktemp("models")
    first = save_model(folder / "first", event_decoding={"threshold": 0.6})
    second = save_model(folder / "second", embed_dim=4, num_heads=(1, 1, 2, 2))
    return load_listeners([str(first), str(second)])


@pytest.fixture(scope="module")
def address(listeners):
    from modeling_htsat.demo.page import served

    with served(listeners, LIMITS, port=free_port()) as address:
        yield address


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return make_sound(tmp_path_factory.mktemp("sound") / "a recording.wav", 12, seed=3)


@pytest.fixture(scope="module")
def answer(listeners, sound) -> dict:
    """What the first model's pipeline says of the recording."""
    return listeners["first"].detector(str(sound), return_scores=True)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail(NO_PLAYWRIGHT)
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.fail(NO_BROWSER)
    heard = make_sound(tmp_path_factory.mktemp("microphone") / "microphone.wav", 20, seed=5, rate=48_000)
    microphone = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    microphone += [f"--use-file-for-fake-audio-capture={heard}"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *microphone])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, address):
    """`open_page(size)`: the page in a window of its own; its errors fail the test, and so do strange hosts."""
    opened, errors, hosts = [], [], set()

    def open_one(size=DESKTOP, **options):
        context = chromium.new_context(viewport=size, permissions=["microphone"], **options)
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)  # on a busy machine, too
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc or urlsplit(request.url).scheme))
        page.on("websocket", lambda socket: hosts.add(urlsplit(socket.url).netloc))
        page.goto(address)
        page.locator(".htsat-empty").wait_for()
        return page

    yield open_one
    for context in opened:
        context.close()
    assert errors == []
    assert hosts - {"blob", "data"} == {urlsplit(address).netloc}


def drop(page, path: Path):
    page.locator("#htsat-file input[type=file]").set_input_files(path)


def drop_sound(page, path: Path):
    drop(page, path)
    page.locator(".htsat-event").first.wait_for()


def photograph(page, name: str):
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(400)  # colours fade in
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


def shown_range(page) -> tuple[float, float]:
    stage = page.locator(".htsat-stage")
    return float(stage.get_attribute("data-from")), float(stage.get_attribute("data-to"))


def wait_for_range(page, before):
    page.wait_for_function(
        "before => document.querySelector('.htsat-stage').dataset.from + ',' + "
        "document.querySelector('.htsat-stage').dataset.to !== before",
        arg=",".join(f"{seconds:.3f}" for seconds in before),
    )


def counted(page) -> str:
    return page.locator(".htsat-count").first.inner_text()


def drop_sound_of_many_events(page, path: Path) -> list[str]:
    """What is said of each event, as the table has them: in order of time."""
    drop_sound(page, path)
    before, threshold = counted(page), page.get_by_label("number input for Threshold")
    threshold.fill(str(MANY))
    page.wait_for_function("before => document.querySelector('.htsat-count').innerText !== before", arg=before)
    page.wait_for_timeout(300)
    said = [button.get_attribute("aria-label") for button in page.locator(".htsat-found tbody button").all()]
    assert len(said) >= 8
    return [each.removeprefix("Play ") for each in said]


def stretch(said: str) -> tuple[float, float]:
    """The seconds in "alarm, 3.2 to 4.2 seconds, score 0.44"."""
    begin, end = said.split(", ")[1].removesuffix(" seconds").split(" to ")
    return float(begin), float(end)


def focused(page) -> str | None:
    page.wait_for_timeout(100)  # the picture may be drawn anew
    return page.evaluate("document.activeElement.getAttribute('aria-label')")


def place_of(page, seconds: float, gutter: int = GUTTER) -> float:
    """Where a time lies, in pixels from the left of the window."""
    box, (begin, end) = page.locator(".htsat-stage canvas").bounding_box(), shown_range(page)
    return box["x"] + gutter + (seconds - begin) / (end - begin) * (box["width"] - gutter)


def seconds_at(page, x: float, gutter: int = GUTTER) -> float:
    box, (begin, end) = page.locator(".htsat-stage canvas").bounding_box(), shown_range(page)
    return begin + (x - box["x"] - gutter) / (box["width"] - gutter) * (end - begin)


# ── what a visitor does ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_recording_is_dropped_and_its_events_are_seen(open_page, sound):
    page = open_page()
    photograph(page, "empty")
    drop_sound(page, sound)
    assert page.locator(".htsat-title").inner_text() == "a recording.wav, 12.0 s"
    label = page.locator(".htsat-event").first.get_attribute("aria-label")
    assert label.split(", ")[0] in {"alarm", "bark", "speech", "rain", "bell"}
    assert " to " in label and "seconds, score 0." in label
    rows = page.locator(".htsat-found tbody tr")
    assert rows.count() == page.locator(".htsat-event").count() == int(counted(page).split()[0])
    assert page.locator(".htsat-tags li").count() == 5
    photograph(page, "events")


def test_every_panel_shows_what_was_heard(open_page, sound, answer):
    """The picture, taken apart again, is like the samples, the spectrogram and the scores that it was drawn from."""
    page = open_page()
    drop_sound(page, sound)
    page.wait_for_timeout(300)
    picture = pixels(page)  # (height, width, 3)
    light = picture @ [0.299, 0.587, 0.114]
    columns = np.arange(GUTTER, picture.shape[1] - 1)
    width = picture.shape[1] - GUTTER
    seconds = (columns + 0.5 - GUTTER) / width * 12

    samples, rate = soundfile.read(sound)
    drawn = (picture[slice(*WAVEFORM)] == WAVE).all(axis=2).sum(axis=0)[columns]
    loud = [np.ptp(samples[int((time - 6 / width) * rate) :][: int(12 / width * rate)]) for time in seconds]

    log_mel = answer["log_mel"]
    frames = (seconds / 12 * len(log_mel)).astype(int)
    mels = np.arange(log_mel.shape[1])
    bands = SPECTROGRAM[1] - (mels + 0.5) / len(mels) * (SPECTROGRAM[1] - SPECTROGRAM[0])

    order = np.argsort(-answer["scores"].max(axis=0))
    rows = (PRESENCE + (np.arange(len(order)) + 0.5) * PRESENCE_ROW).astype(int)
    middles = (answer["edges"][:-1] + answer["edges"][1:]) / 2
    steps = (GUTTER + middles / 12 * width).astype(int)

    likeness = {
        "waveform": np.corrcoef(drawn, loud)[0, 1],
        "spectrogram": np.corrcoef(light[np.ix_(bands.astype(int), columns)].ravel(), log_mel[frames].T.ravel())[0, 1],
        "presence": -np.corrcoef(light[np.ix_(rows, steps)].ravel(), answer["scores"][:, order].T.ravel())[0, 1],
    }
    assert [panel for panel, like in likeness.items() if not like > 0.9] == []


def pixels(page) -> np.ndarray:
    """The picture without the event bars, `(height, width, 3)`."""
    address = page.evaluate("document.querySelector('.htsat-stage canvas').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")).astype(int)


def test_a_slider_redraws_and_takes_over_from_the_model(open_page, sound):
    page = open_page()
    drop_sound(page, sound)
    own, before = page.get_by_label("The model's own thresholds and filters"), counted(page)
    assert own.is_checked()
    threshold = page.locator("#htsat-sliders input[type=range]").first
    threshold.focus()
    threshold.press("End")
    page.wait_for_function("before => document.querySelector('.htsat-count').innerText !== before", arg=before)
    assert counted(page) == "No event is above the threshold." and not own.is_checked()
    assert page.locator(".htsat-event").count() == 0
    own.check()
    page.wait_for_function("before => document.querySelector('.htsat-count').innerText === before", arg=before)


def test_tables_are_saved(open_page, sound):
    page = open_page()
    drop_sound(page, sound)
    number, texts = page.locator(".htsat-found tbody tr").count(), {}
    for name in ("TSV", "JSON", "Audacity"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save {name}").click()
        texts[download.value.suggested_filename] = Path(download.value.path()).read_text()
    assert list(texts) == ["a recording.tsv", "a recording.json", "a recording.txt"]
    assert len(texts["a recording.tsv"].splitlines()) == number + 1
    assert len(json.loads(texts["a recording.json"])) == number == len(texts["a recording.txt"].splitlines())


def test_a_text_file_is_refused_in_a_sentence_and_the_page_goes_on(open_page, sound, tmp_path):
    (tmp_path / "notes.txt").write_text("Not a sound.\n" * 20)
    page = open_page()
    drop(page, tmp_path / "notes.txt")
    sentence = page.get_by_role("alert").filter(has_text="notes.txt")
    sentence.wait_for()
    assert sentence.inner_text().startswith("notes.txt is not audio") and "/" not in sentence.inner_text()
    photograph(page, "refused")
    page.locator("#htsat-file button[aria-label*=lear], #htsat-file button[aria-label*=emove]").first.click()
    drop_sound(page, sound)
    assert page.locator(".htsat-notice").count() == 0


def test_a_file_that_is_too_large_is_refused_in_words(open_page, tmp_path):
    (tmp_path / "large.wav").write_bytes(b"\0" * 2_200_000)
    page = open_page()
    drop(page, tmp_path / "large.wav")
    page.get_by_text('exceed the maximum allowed size of 2.0 Mb: "large.wav"').wait_for()
    assert page.locator(".htsat-empty").is_visible()
    photograph(page, "too_large")


def test_an_event_plays_exactly_its_stretch(open_page, sound):
    page = open_page()
    drop_sound(page, sound)
    stage, event = page.locator(".htsat-stage"), page.locator(".htsat-event").first
    begin, end = (float(text) for text in page.locator(".htsat-found tbody tr").first.inner_text().split()[0:3:2])
    event.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('.htsat-stage').dataset.playing")
    assert stage.get_attribute("data-playing") == f"{begin:.2f}-{end:.2f}"
    page.wait_for_function("document.querySelector('.htsat-stage').dataset.stopped")
    assert float(stage.get_attribute("data-stopped")) == pytest.approx(end, abs=0.15)
    page.locator(".htsat-found tbody tr").nth(1).get_by_role("button").click()
    page.wait_for_function("document.querySelector('.htsat-stage').dataset.playing")
    begin, end = (float(text) for text in page.locator(".htsat-found tbody tr").nth(1).inner_text().split()[0:3:2])
    assert stage.get_attribute("data-playing") == f"{begin:.2f}-{end:.2f}"


def test_a_click_on_an_event_plays_exactly_its_stretch(open_page, sound):
    page = open_page()
    drop_sound_of_many_events(page, sound)
    rows = page.locator(".htsat-found tbody tr").all()
    times = [[float(text) for text in row.inner_text().split()[0:3:2]] for row in rows]
    index, (begin, end) = next((index, each) for index, each in enumerate(times) if each[0] > 1 and each[1] < 11)
    stage, event = page.locator(".htsat-stage"), page.locator(".htsat-event").nth(index)
    box = event.bounding_box()
    assert box["x"] == pytest.approx(place_of(page, begin), abs=1)
    assert box["x"] + box["width"] == pytest.approx(place_of(page, end), abs=2)
    event.click()
    assert stage.get_attribute("data-playing") == f"{begin:.2f}-{end:.2f}"
    assert shown_range(page) == (0.0, 12.0)
    page.wait_for_function("document.querySelector('.htsat-stage').dataset.stopped")
    assert float(stage.get_attribute("data-stopped")) == pytest.approx(end, abs=0.15)


def test_a_stretch_ends_in_time_where_nothing_is_drawn(open_page, sound):
    """As in a tab behind another, to which browsers give no frames."""
    page = open_page()
    end = stretch(drop_sound_of_many_events(page, sound)[3])[1]
    page.evaluate("window.requestAnimationFrame = () => 0")
    page.locator(".htsat-event").nth(3).click()
    page.wait_for_function("document.querySelector('.htsat-stage').dataset.stopped", polling=50)
    stopped = float(page.locator(".htsat-stage").get_attribute("data-stopped"))
    assert stopped == pytest.approx(end, abs=0.2)  # said to a tenth of a second


@pytest.mark.parametrize("way", ["mouse", "finger"])
def test_a_click_elsewhere_plays_from_there_on(open_page, sound, way):
    page = open_page(DESKTOP, has_touch=way == "finger")
    drop_sound(page, sound)
    box, stage = page.locator(".htsat-stage canvas").bounding_box(), page.locator(".htsat-stage")
    press = page.mouse.click if way == "mouse" else page.touchscreen.tap
    for seconds, panel in ((10.7, WAVEFORM), (4.2, SPECTROGRAM), (11.2, (PRESENCE, PRESENCE + PRESENCE_ROW))):
        press(place_of(page, seconds), box["y"] + sum(panel) / 2)
        page.wait_for_function("document.querySelector('.htsat-stage').dataset.playing")
        begin, end = stage.get_attribute("data-playing").split("-")
        assert float(begin) == pytest.approx(seconds, abs=0.03) and float(end) == 12
    page.wait_for_function("document.querySelector('.htsat-stage').dataset.stopped > 11.5")  # at the end, not before
    press(box["x"] + GUTTER / 2, box["y"] + 60)  # on the names, where no time is
    assert stage.get_attribute("data-playing") is None


def test_keys_wheel_and_buttons_zoom_and_move(open_page, sound):
    page = open_page()
    drop_sound(page, sound)
    whole = shown_range(page)
    assert whole == (0.0, 12.0)
    page.locator(".htsat-stage").focus()
    page.keyboard.press("+")
    wait_for_range(page, whole)
    assert shown_range(page) == (3.0, 9.0)
    page.keyboard.press("ArrowRight")
    assert shown_range(page) == (4.2, 10.2)
    page.keyboard.press("End")
    assert shown_range(page) == (6.0, 12.0)
    page.keyboard.press("0")
    assert shown_range(page) == whole
    box = page.locator(".htsat-stage canvas").bounding_box()
    page.mouse.move(box["x"] + 400, box["y"] + 60)
    page.mouse.wheel(0, -200)
    wait_for_range(page, whole)
    begin, end = shown_range(page)
    assert 0 < begin < end < 12
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 60, steps=4)
    page.mouse.up()
    assert shown_range(page)[0] > begin
    assert page.locator(".htsat-stage").get_attribute("data-playing") is None  # a drag is no click
    page.get_by_role("button", name="Zoom out").click()
    page.get_by_role("button", name="Show the whole recording").click()
    assert shown_range(page) == whole


def test_a_wheel_over_an_event_keeps_the_time_under_the_pointer(open_page, sound):
    page = open_page()
    drop_sound(page, sound)
    box = page.locator(".htsat-event").first.bounding_box()
    x = int(box["x"] + 0.3 * box["width"])
    page.mouse.move(x, box["y"] + box["height"] / 2)
    for turn in (-200, -200, 200):
        before, seconds = shown_range(page), seconds_at(page, x)
        page.mouse.wheel(0, turn)
        wait_for_range(page, before)
        assert seconds_at(page, x) == pytest.approx(seconds, abs=0.02)
    assert shown_range(page)[0] > 0


def test_a_wheel_that_counts_lines_or_pages_turns_as_far_as_one_of_pixels(open_page, sound):
    page = open_page()
    drop_sound(page, sound)
    turn = """([deltaMode, deltaX, deltaY]) => {
        const stage = document.querySelector('.htsat-stage'), box = stage.getBoundingClientRect();
        stage.dispatchEvent(new WheelEvent('wheel', {
          deltaMode, deltaX, deltaY, clientX: box.left + 500, clientY: box.top + 60, cancelable: true,
        }));
    }"""
    ranges = []
    for mode, unit in enumerate((1, 25, 500)):  # pixels, lines, pages
        page.get_by_role("button", name="Show the whole recording").click()
        page.evaluate(turn, [mode, 0, -75 / unit])
        zoomed = shown_range(page)
        page.evaluate(turn, [mode, 50 / unit, 0])
        ranges.append([zoomed, shown_range(page)])
    assert 0 < ranges[0][0][0] < ranges[0][1][0] and ranges[0] == ranges[1] == ranges[2]


def test_fingers_pinch_to_zoom_and_drag_to_move(open_page, sound):
    page = open_page(PHONE, has_touch=True, device_scale_factor=2)
    drop_sound(page, sound)
    page.locator(".htsat-stage").scroll_into_view_if_needed()
    box = page.locator(".htsat-stage canvas").bounding_box()
    middle, y = round(box["x"] + NARROW_GUTTER + (box["width"] - NARROW_GUTTER) / 2), round(box["y"] + 150)
    touch(page, [[(middle - 30 - 3 * step, y), (middle + 30 + 3 * step, y)] for step in range(11)])
    wait_for_range(page, (0, 12))
    begin, end = shown_range(page)
    assert end - begin == pytest.approx(6, abs=0.05) and (begin + end) / 2 == pytest.approx(6, abs=0.05)
    touch(page, [[(middle + 4 * step, y)] for step in range(11)])
    assert shown_range(page)[0] == pytest.approx(begin - 40 / (box["width"] - NARROW_GUTTER) * 6, abs=0.05)
    touch(page, [[(middle - 60 + 3 * step, y), (middle + 60 - 3 * step, y)] for step in range(16)])
    assert shown_range(page) == (0.0, 12.0)
    assert page.evaluate("visualViewport.scale") == 1
    assert page.locator(".htsat-stage").get_attribute("data-playing") is None  # neither is a tap


def touch(page, places: list[list[tuple[float, float]]]):
    """Fingers that come down at the first places, move through the others, and are lifted."""
    session = page.context.new_cdp_session(page)
    for index, fingers in enumerate(places):
        points = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(fingers)]
        kind = "touchMove" if index else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    session.detach()
    page.wait_for_timeout(200)


def test_sliders_do_not_wait_while_a_recording_is_heard(open_page, sound, listeners):
    page, other = open_page(), open_page()
    drop_sound(page, sound)
    before, is_heard, may_go_on = counted(page), threading.Event(), threading.Event()

    def work(*_):
        is_heard.set()
        may_go_on.wait(120)

    hook = listeners["first"].model.base_model.register_forward_pre_hook(work)
    try:
        drop(other, sound)
        assert is_heard.wait(60)
        threshold = page.locator("#htsat-sliders input[type=range]").first
        threshold.focus()
        threshold.press("End")
        page.wait_for_function("before => document.querySelector('.htsat-count').innerText !== before", arg=before)
        assert counted(page) == "No event is above the threshold."
        assert other.locator(".htsat-event").count() == 0
    finally:
        hook.remove()
        may_go_on.set()
    other.locator(".htsat-event").first.wait_for()


def test_hovering_tells_time_classes_and_scores(open_page, sound, answer):
    page = open_page()
    drop_sound(page, sound)
    box, tip = page.locator(".htsat-stage canvas").bounding_box(), page.locator(".htsat-tip")
    scores, labels = answer["scores"], answer["labels"]
    middles = (answer["edges"][:-1] + answer["edges"][1:]) / 2
    rows = np.argsort(-scores.max(axis=0))

    def told(step: int, y: float) -> dict[str, float]:
        page.mouse.move(place_of(page, middles[step]), box["y"] + y)
        page.wait_for_timeout(50)
        time, *classes = tip.inner_text().splitlines()
        assert float(time.split()[0]) == pytest.approx(middles[step], abs=0.02)
        return {label: float(score) for score, _, label in (line.partition("  ") for line in classes)}

    for is_zoomed, steps in enumerate(([0, 11, 37], [16, 19, 21])):
        if is_zoomed:
            page.get_by_role("button", name="Zoom in").dblclick()
        for step in steps:
            best = {labels[index]: float(scores[step, index]) for index in np.argsort(-scores[step])[:3]}
            assert told(step, sum(WAVEFORM) / 2) == pytest.approx(best, abs=0.008)
            assert told(step, sum(SPECTROGRAM) / 2) == pytest.approx(best, abs=0.008)
            for row, index in enumerate(rows):
                one = {labels[index]: float(scores[step, index])}
                assert told(step, PRESENCE + (row + 0.5) * PRESENCE_ROW) == pytest.approx(one, abs=0.008)
    page.get_by_role("button", name="Show the whole recording").click()
    page.locator(".htsat-event").first.focus()
    assert page.locator(".htsat-event").first.get_attribute("aria-label").split(",")[0] in tip.inner_text()
    photograph(page, "hover")


def test_another_model_hears_the_same_recording(open_page, sound):
    page = open_page()
    drop_sound(page, sound)
    before = page.locator(".htsat-tags").inner_text()
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="second").click()
    page.wait_for_function("before => document.querySelector('.htsat-tags').innerText !== before", arg=before)


def test_the_microphone_is_heard_live_and_after_recording(open_page):
    page = open_page()
    page.get_by_role("tab", name="Live").click()
    live = page.locator("#htsat-live")
    page.wait_for_timeout(2000)  # Gradio fetches its recorder when the tab is there, and a click before that is lost
    live.get_by_role("button", name="Record").click()
    page.wait_for_function("parseFloat(document.querySelector('.htsat-title').innerText.split(' ')[1]) >= 5")
    photograph(page, "live")
    live.get_by_role("button", name="Stop").click()
    page.wait_for_function("!document.querySelector('.htsat-provisional')")
    page.wait_for_function("document.querySelectorAll('.htsat-found tbody tr').length > 0")
    page.get_by_role("tab", name="Microphone").click()
    recorder = page.locator("#htsat-microphone")
    recorder.get_by_role("button", name="Record").click()
    page.wait_for_timeout(3000)
    recorder.get_by_role("button", name="Stop").click()
    page.wait_for_function("document.querySelector('.htsat-title').innerText.startsWith('audio')")
    assert page.locator(".htsat-tags li").count() == 5


# ── for everybody ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_usable_at_the_width_of_a_phone(open_page, sound, scheme):
    page = open_page(PHONE, color_scheme=scheme, has_touch=True, device_scale_factor=2)
    drop_sound(page, sound)
    photograph(page, f"phone_{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for button in page.locator(".htsat-tools button").all():
        box = button.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"] and box["height"] >= 40


def test_a_phone_has_all_controls_and_each_is_as_large_as_a_finger_needs(open_page, sound):
    """At least 24 pixels, as WCAG asks (an event is as wide as it is long; the table has it once more)."""
    desktop, phone = open_page(), open_page(PHONE, has_touch=True, device_scale_factor=2)
    for page in (desktop, phone):
        drop_sound(page, sound)
    for tab in (*TABS, "empty"):
        for page in (desktop, phone):
            if tab == "empty":
                page.get_by_role("tab", name="File").click()
                page.locator("#htsat-file").get_by_label("Clear").click()
                page.locator(".htsat-empty").wait_for()
            else:
                page.get_by_role("tab", name=tab).click()
            page.wait_for_timeout(1500)  # Gradio fetches its recorder when the tab is there
        controls = phone.evaluate(CONTROLS)
        assert [each["name"] for each in controls] == [each["name"] for each in desktop.evaluate(CONTROLS)]
        assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        small = []
        for each in controls:
            left, top, right, bottom = each["box"]
            assert each["is_hit"] and left >= 0 and right <= PHONE["width"], each
            if bottom - top < 24 or (right - left < 24 and not each["is_event"]):
                small.append((each["name"], right - left, bottom - top))
        assert small == []
        covered = [
            (one["name"], other["name"])
            for index, one in enumerate(controls)
            for other in controls[:index]
            if other["name"] not in one["inside"] and overlap(one["box"], other["box"])
        ]
        assert covered == []


# In order of the page: the name, where it is, whether a finger on its middle hits it, and what it stands in.
CONTROLS = """() => [...document.querySelectorAll('button, input, select, a[href], [tabindex="0"]')]
  .filter((each) => each.tabIndex >= 0 && each.checkVisibility({ opacityProperty: true, visibilityProperty: true }))
  .map((each) => {
    each.scrollIntoView({ block: 'center' });
    const nameOf = (node) => node.getAttribute('aria-label') || (node.labels?.[0] ?? node).innerText.trim();
    const area = each.type === 'checkbox' ? each.closest('label') : each;
    const box = area.getBoundingClientRect(), inside = [];
    for (let node = each.parentElement; node; node = node.parentElement) inside.push(nameOf(node));
    return {
      name: nameOf(each), inside, is_event: each.classList.contains('htsat-event'),
      box: [box.left, box.top + scrollY, box.right, box.bottom + scrollY],
      is_hit: area.contains(document.elementFromPoint((box.left + box.right) / 2, (box.top + box.bottom) / 2)),
    };
  })"""


def overlap(one: list[float], other: list[float]) -> bool:
    return min(one[2], other[2]) - max(one[0], other[0]) > 1 and min(one[3], other[3]) - max(one[1], other[1]) > 1


def test_everything_that_can_be_worked_has_a_name_for_screen_readers(open_page, sound):
    page = open_page()
    known = set(names_told(page))
    drop_sound(page, sound)
    assert page.get_by_role("status").first.inner_text() == counted(page)
    assert page.get_by_role("columnheader").count() == 5
    known |= set(names_told(page))
    for tab, recorder in (("Microphone", "#htsat-microphone"), ("Live", "#htsat-live")):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(2000)
        known |= set(names_told(page))
        page.locator(recorder).get_by_role("button", name="Record").click()
        page.locator(recorder).get_by_role("button", name="Stop").wait_for()
        page.wait_for_timeout(2500)
        known |= set(names_told(page))
        page.locator(recorder).get_by_role("button", name="Stop").click()
        page.wait_for_timeout(2500)
        known |= set(names_told(page))
    buttons = ("Click to upload or drop files", "Record", "Stop", "Save TSV", "Zoom in", "Clear")
    assert {("button", name) for name in buttons} <= known
    assert {("slider", f"range slider for {name}") for name in SLIDERS} <= known
    assert {("combobox", "Model"), ("combobox", "Select input device")} <= known
    assert {("tab", name) for name in TABS} <= known


def names_told(page) -> list[tuple[str, str]]:
    """Role and name of everything that takes the focus, as the browser tells them to screen readers."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    told = [
        (node["role"]["value"], node.get("name", {}).get("value", "").strip())
        for node in nodes
        if not node["ignored"] and any(each["name"] == "focusable" for each in node["properties"])
    ]
    assert [role for role, name in told if not name] == []
    return told


def test_the_whole_page_is_reached_by_keys(open_page, sound):
    page = open_page()
    page.wait_for_timeout(1500)  # what is pressed before Gradio has put everything in its place is lost
    page.locator("body").click(position={"x": 2, "y": 2})
    assert {*TABS} <= set(walked(page, "Click to upload or drop files"))
    with page.expect_file_chooser(timeout=30_000) as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(sound)
    page.locator(".htsat-event").first.wait_for()
    events = [each.get_attribute("aria-label") for each in page.locator(".htsat-event").all()]
    page.evaluate("document.activeElement.blur()")
    reached = walked(page, "Save Audacity")
    promised = {"Clear", "Model"}
    promised |= {"Play what is shown", "Zoom out", "Zoom in", "Show the whole recording"}
    promised |= {page.locator(".htsat-stage").get_attribute("aria-label"), *events}
    promised |= {"The model's own thresholds and filters", *(f"range slider for {name}" for name in SLIDERS)}
    promised |= {"Table of events", *(f"Play {event}" for event in events)}
    promised |= {"Save TSV", "Save JSON", "Save Audacity"}
    assert promised - set(reached) == set()
    for tab in TABS[1:]:
        page.locator("body").click(position={"x": 2, "y": 2})
        walked(page, tab)
        page.keyboard.press("Enter")
        page.wait_for_timeout(1500)  # Gradio fetches its recorder when the tab is there
        assert "Record" in walked(page, "Select input device")


def walked(page, goal: str) -> list[str]:
    """The names on the way from here to the goal, by Tab."""
    names = []
    for _ in range(80):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate(
                """() => {
                  const each = document.activeElement;
                  return each.getAttribute('aria-label') || (each.labels?.[0] ?? each).innerText.trim();
                }"""
            )
        )
        if names[-1] == goal:
            return names
    raise AssertionError(f"{goal} is not reached by Tab, but {names} are.")


def test_tab_walks_through_the_events_of_a_zoomed_view_in_order_of_time(open_page, sound):
    page = open_page()
    said = drop_sound_of_many_events(page, sound)
    page.locator(".htsat-stage").focus()
    page.keyboard.press("+")
    begin, end = shown_range(page)
    shown = [each for each in said if stretch(each)[1] > begin and stretch(each)[0] < end]
    assert stretch(shown[0])[0] < begin and len(said) > len(shown) >= 5  # some begin before what is shown
    for name in shown:
        page.keyboard.press("Tab")
        assert focused(page) == name and focused(page) == name
        assert name.split(",")[0] in page.locator(".htsat-tip").inner_text()
    assert shown_range(page) == (begin, end)
    for name in reversed(shown[:-1]):
        page.keyboard.press("Shift+Tab")
        assert focused(page) == name


def test_an_event_keeps_the_focus_while_others_come_and_go(open_page, sound):
    page = open_page()
    said = drop_sound_of_many_events(page, sound)
    index = next(index for index, each in enumerate(said) if stretch(each)[0] > 3 and stretch(each)[1] < 7)
    page.locator(".htsat-event").nth(index).focus()
    page.evaluate("window.button = document.activeElement")
    for key in ("+", "ArrowLeft", "ArrowRight", "-", "0"):
        page.keyboard.press(key)
        assert focused(page) == said[index]
    # What is found changes below the focus, as it does every second of a live microphone.
    page.evaluate(
        """() => {
          const events = [...document.querySelectorAll('.htsat-event')].map((node) => ({ ...node.event }));
          for (const event of events.slice(1)) if (event.onset < 2) event.onset += 0.01;
          const later = events.slice(1).map((event) => ({ ...event, score: 0.5 }));
          window.htsatBus.dispatchEvent(new CustomEvent('found', { detail: { events: later } }));
        }"""
    )
    assert focused(page).rpartition(",")[0] == said[index].rpartition(",")[0]
    assert focused(page).endswith("score 0.50") and page.evaluate("window.button === document.activeElement")
    onsets = page.evaluate("[...document.querySelectorAll('.htsat-event')].map((node) => node.event.onset)")
    assert onsets == sorted(onsets) and len(onsets) == len(said) - 1
    # One that is out of sight has no button: the picture takes the focus, and its keys go on.
    for _ in range(3):
        page.keyboard.press("+")
    page.keyboard.press("End")
    assert focused(page) == page.locator(".htsat-stage").get_attribute("aria-label")
    before = shown_range(page)
    page.keyboard.press("ArrowLeft")
    wait_for_range(page, before)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(open_page, sound, scheme):
    """At least 4.5 to 1, as WCAG asks; the tints that lie above one another are mixed first."""
    page = open_page(color_scheme=scheme)
    drop_sound(page, sound)
    page.wait_for_timeout(500)
    texts = page.evaluate(
        """() => [...document.querySelectorAll('.htsat-head *, .htsat-title, .htsat-tools button, .htsat-event,'
            + '.htsat-found *, #htsat-sliders span, #htsat-sliders label, #htsat-save button')]
          .filter((each) => each.offsetParent && each.innerText?.trim() && !each.children.length)
          .map((each) => {
            const behind = [];
            for (let node = each; node; node = node.parentElement) behind.push(getComputedStyle(node).backgroundColor);
            return [each.innerText.slice(0, 30), getComputedStyle(each).color, behind];
          })"""
    )
    assert len(texts) > 20
    faint = [(text, contrast(colour, behind)) for text, colour, behind in texts if contrast(colour, behind) < 4.5]
    assert faint == []


def contrast(colour: str, behind: list[str]) -> float:
    ground = np.array([255.0, 255.0, 255.0])
    for layer in reversed(behind):
        *tint, opacity = parsed(layer)
        ground = opacity * np.array(tint) + (1 - opacity) * ground
    *ink, opacity = parsed(colour)
    light = sorted(luminance(tint) for tint in (ground, opacity * np.array(ink) + (1 - opacity) * ground))
    return (light[1] + 0.05) / (light[0] + 0.05)


def parsed(colour: str) -> list[float]:
    numbers = [float(part) for part in colour.partition("(")[2].rstrip(")").replace("/", ",").split(",")]
    return numbers if len(numbers) == 4 else [*numbers, 1.0]


def luminance(tint) -> float:
    parts = np.asarray(tint) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
