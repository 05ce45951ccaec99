"""The demo page in a real browser: `make browser`. Pictures of it lie in build/screenshots afterwards."""

import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from test_demo import LIMITS, free_port, make_sound, save_model

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "build" / "screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_BROWSER = "No Chromium is found: install it, on Debian and Ubuntu with `apt-get install chromium`."
NO_PLAYWRIGHT = 'Playwright is not installed: `make browser` does it, or `pip install "modeling-htsat[browser]"`.'
DESKTOP, PHONE = {"width": 1280, "height": 960}, {"width": 360, "height": 740}


# ── a browser, and a page for it ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    from modeling_htsat.commands.demo import load_listeners
    from modeling_htsat.demo.page import served

    folder = tmp_path_factory.mktemp("models")
    first = save_model(folder / "first", event_decoding={"threshold": 0.6})
    second = save_model(folder / "second", embed_dim=4, num_heads=(1, 1, 2, 2))
    with served(load_listeners([str(first), str(second)]), LIMITS, port=free_port()) as address:
        yield address


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return make_sound(tmp_path_factory.mktemp("sound") / "a recording.wav", 12, seed=3)


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


def test_the_picture_is_no_blank_canvas(open_page, sound):
    page = open_page()
    drop_sound(page, sound)
    page.wait_for_timeout(300)
    colours = page.evaluate(
        """() => {
          const canvas = document.querySelector('.htsat-stage canvas'), pen = canvas.getContext('2d');
          const data = pen.getImageData(0, 0, canvas.width, canvas.height).data, seen = new Set();
          for (let at = 0; at < data.length; at += 4) seen.add(data[at] * 65536 + data[at + 1] * 256 + data[at + 2]);
          return seen.size;
        }"""
    )
    assert colours > 100


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


def test_hovering_tells_time_classes_and_scores(open_page, sound):
    page = open_page()
    drop_sound(page, sound)
    box = page.locator(".htsat-stage canvas").bounding_box()
    page.mouse.move(box["x"] + 128 + (box["width"] - 128) / 2, box["y"] + 70)
    tip = page.locator(".htsat-tip")
    tip.wait_for()
    time, *classes = tip.inner_text().splitlines()
    assert float(time.split()[0]) == pytest.approx(6, abs=0.05) and len(classes) == 3
    assert all(0 <= float(line.split()[0]) <= 1 for line in classes)
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


def test_everything_that_can_be_worked_has_a_name_for_screen_readers(open_page, sound):
    page = open_page()
    drop_sound(page, sound)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('.htsat-view button, .htsat-found button, #htsat-sliders input,'
            + '#htsat-model input, #htsat-file button, #htsat-save button, .htsat-stage, .htsat-scroll')]
          .filter((each) => each.offsetParent && !(each.getAttribute('aria-label') || each.innerText.trim()
            || each.labels?.length || each.closest('label') || each.getAttribute('aria-labelledby')))
          .map((each) => each.outerHTML.slice(0, 120))"""
    )
    assert nameless == []
    assert page.get_by_role("status").first.inner_text() == counted(page)
    assert page.get_by_role("columnheader").count() == 5


def test_the_whole_page_is_reached_by_keys(open_page, sound):
    page = open_page()
    drop_sound(page, sound)
    reached = set()
    page.locator("body").click(position={"x": 2, "y": 2})
    for _ in range(80):
        page.keyboard.press("Tab")
        reached |= set(
            page.evaluate("(document.activeElement.className + ' ' + document.activeElement.type).split(' ')")
        )
    assert {"htsat-stage", "htsat-event", "htsat-scroll", "range", "checkbox", "button"} <= reached


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
