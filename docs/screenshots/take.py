"""Take the picture of the demo page, after `make browser`: `docs/screenshots/take.py --model NAME --sound FILE`."""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from modeling_htsat.commands.demo import load_listeners
from modeling_htsat.demo.hearing import Limits
from modeling_htsat.demo.page import served

WINDOW = {"width": 1180, "height": 900}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--sound", required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("demo.png"))
    options = parser.parse_args()
    with served(load_listeners([options.model]), Limits()) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=WINDOW)
        page.goto(address)
        page.locator("#htsat-file input[type=file]").set_input_files(options.sound)
        page.locator(".htsat-event").first.wait_for()
        page.wait_for_timeout(1000)  # colours fade in
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True)))
        picture.convert("RGB").quantize(256).save(options.output, optimize=True)  # half of the bytes
        browser.close()


if __name__ == "__main__":
    main()
