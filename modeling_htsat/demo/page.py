"""The page itself: what stands on it, what happens on it, and how it is served.

file or microphone  ->  hear (the model, once)  ->  scores of this visitor
                                                       |
sliders             ->  redraw (no model)   <----------+----->  save (a table)

live microphone     ->  hear_live (LiveDetector)  ->  events so far, which are saved as well
"""

import html
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import gradio as gr
import numpy as np
from starlette.middleware import Middleware

from ..audio_htsat import AudioError, load_audio, open_audio
from .guard import OnlyUploads
from .hearing import (
    Heard,
    HeardLive,
    Limits,
    Listener,
    LiveListening,
    RefusalError,
    Settings,
    in_words_for_visitors,
    playable,
)

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
KEPT_SECONDS = (360, 3600)  # how often uploads are looked through, and the age at which they are deleted
MAX_SESSIONS = 64  # visitors whose scores are kept; of one more, the first must drop the recording again
MAX_WAITING = 200
MAX_LIVE = 8  # microphones at once
LIVE_BLOCK_SECONDS = 1.0
FORMATS = {"TSV": "tsv", "JSON": "json", "Audacity": "audacity"}
SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
MONO_FONTS = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
HEAD = """
<header class="htsat-head"><h1>Which sounds, and when</h1>
<p>Drop a recording of any length, or use the microphone. HTS-AT says which sounds it holds, and where they begin and
end.</p></header>
"""
NOTHING_HELD = "No recording is held here, not yet or not any more: drop or record one, or drop it once more."
NOTHING_TO_SAVE = "There is nothing to save yet, or not any more: drop or record a sound, or drop it once more."
FORGOTTEN = "This recording is no longer held here: drop it once more."
NO_ROOM = "The server could not read or write what it needs, its disk may be full: try again later."
SAVE_SCRIPT = """(file) => {
  if (!file) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([file.text], {type: "text/plain;charset=utf-8"}));
  link.download = file.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""


# ── what happens ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Desk:
    """Answers what the page asks. It keeps nothing of visitors itself: their scores are in the states of Gradio."""

    def __init__(self, listeners: Mapping[str, Listener], limits: Limits):
        self.listeners, self.limits = listeners, limits

    def hear(
        self,
        path: str | None,
        model: str,
        *sliders: Any,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, Any, Any, str]:
        """Scores to keep, the picture, what was found, and a sentence where there is something to say."""
        if path is None:
            return None, None, None, ""
        file, settings = Path(path), Settings(*sliders)

        def tell(part: float, word: str):
            progress(part, desc=word)

        try:
            heard, drawn = self.listeners[model].hear(file, file.name, self.limits, settings, tell)
            with in_words_for_visitors(file, file.name):
                drawn["sound"] = {"path": str(playable(file)), "meta": {"_type": "gradio.FileData"}}
        except RefusalError as refusal:
            return None, None, None, notice(str(refusal))
        except FileNotFoundError:  # deleted in between, as uploads are after a while
            return None, None, None, notice(FORGOTTEN)
        except OSError as error:
            logger.error("An upload was not heard: %s", error)
            return None, None, None, notice(NO_ROOM)
        return heard, drawn, heard.found(settings), ""

    def hear_again(
        self,
        heard: Heard | HeardLive | None,
        model: str,
        *sliders: Any,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, Any, Any, str]:
        """The same recording, now with another model."""
        if not isinstance(heard, Heard):
            return gr.skip(), gr.skip(), gr.skip(), ""
        if not heard.path.is_file():
            return None, None, None, notice(FORGOTTEN)
        return self.hear(str(heard.path), model, *sliders, progress=progress)

    def redraw(self, heard: Heard | HeardLive | None, *sliders: Any) -> tuple[Any, Any]:
        """The events as the sliders now want them. The model has no part in this."""
        if heard is None:
            return gr.skip(), notice(NOTHING_HELD)
        return heard.found(Settings(*sliders)), ""

    def save(self, heard: Heard | HeardLive | None, format: str, *sliders: Any) -> tuple[dict[str, str] | None, str]:
        if heard is None:
            return None, notice(NOTHING_TO_SAVE)
        try:
            name, text = heard.table(Settings(*sliders), FORMATS[format])
        except OSError as error:
            logger.error("Events were not saved: %s", error)
            return None, notice(NO_ROOM)
        return {"name": name, "text": text}, ""

    def hear_live(
        self, chunk: str | None, live: LiveListening | None, model: str, *sliders: Any
    ) -> tuple[LiveListening | None, Any, Any, Any, str]:
        """Hear the next second of a microphone; what is held then is what was found so far."""
        if chunk is None or (live is not None and live.is_finished):  # a second that came after the end
            return live, gr.skip(), gr.skip(), gr.skip(), ""
        is_silent = False
        try:
            samples, rate = read_chunk(Path(chunk))
            is_silent = not samples.any()
            if live is None or live.sampling_rate != rate:
                live = self.listeners[model].live(rate, Settings(*sliders))
            self.limits.check_seconds(live.seconds + len(samples) / rate)
            heard = live.feed(samples)
            if heard is None:
                return live, gr.skip(), gr.skip(), gr.skip(), ""
        except (RefusalError, AudioError) as refusal:
            sentence = str(refusal).replace(str(chunk), "what the microphone sent")
            return live, gr.skip(), gr.skip(), gr.skip(), notice(sentence)
        finally:
            # Live sound is not kept. Gradio names files by what they hold: silence is one file for all visitors.
            if not is_silent:
                Path(chunk).unlink(missing_ok=True)
        return live, heard, live.drawn(), heard.found(), ""

    def stop_live(self, live: LiveListening | None) -> tuple[Any, Any, Any, Any]:
        """The microphone is off: the events that were left. What comes late is not heard any more."""
        if live is None or live.is_finished:
            return live, gr.skip(), gr.skip(), gr.skip()
        heard = live.finish()
        return live, heard, live.drawn(), heard.found()


def read_chunk(path: Path) -> tuple[np.ndarray, int]:
    with open_audio(path, allow_truncated=True) as audio:
        rate = audio.sampling_rate
    return load_audio(path, rate, allow_truncated=True), rate


def notice(sentence: str) -> str:
    return f'<p class="htsat-notice" role="alert">{html.escape(sentence)}</p>'


# ── what stands there ─────────────────────────────────────────────────────────────────────────────────────────────────


def make_page(listeners: Mapping[str, Listener], limits: Limits) -> gr.Blocks:
    """The page for these models; `serve` shows it."""
    desk = Desk(listeners, limits)
    view_script = (HERE / "view.js").read_text(encoding="utf-8")
    with gr.Blocks(
        title="Which sounds, and when",
        analytics_enabled=False,
        delete_cache=KEPT_SECONDS,
        fill_width=True,
    ) as page:
        heard, live = gr.State(), gr.State()
        gr.HTML(HEAD, js_on_load=None)
        with gr.Row(elem_classes="htsat-inputs"):
            with gr.Column(scale=3, min_width=280), gr.Tabs():
                with gr.Tab("File"):
                    file = gr.File(
                        label=f"Recording ({limits.max_megabytes} MB, {limits.max_minutes:g} minutes at most)",
                        height=168,
                        elem_id="htsat-file",
                    )
                with gr.Tab("Microphone"):
                    recorded = gr.Audio(
                        sources=["microphone"],
                        type="filepath",
                        label="Record, and stop: then it is heard",
                        elem_id="htsat-microphone",
                    )
                with gr.Tab("Live"):
                    streamed = gr.Audio(
                        sources=["microphone"],
                        type="filepath",
                        streaming=True,
                        label="Events while it sounds",
                        elem_id="htsat-live",
                    )
            with gr.Column(scale=1, min_width=220):
                model = gr.Dropdown(list(listeners), value=next(iter(listeners)), label="Model", elem_id="htsat-model")
        said = gr.HTML("", js_on_load=None, elem_id="htsat-said")
        view = gr.HTML(
            html_template='<div class="htsat-view"></div>',
            js_on_load=f"{view_script}\nshowView(element, props, watch);",
            apply_default_css=False,
            elem_id="htsat-view",
            label="Picture",
        )
        with gr.Row(elem_classes="htsat-below"):
            with gr.Column(scale=2, min_width=280, elem_id="htsat-sliders"):
                sliders = make_sliders(listeners)
            with gr.Column(scale=3, min_width=280):
                found = gr.HTML(
                    html_template='<div class="htsat-found"></div>',
                    js_on_load=f"{view_script}\nshowFound(element, props, watch);",
                    apply_default_css=False,
                    elem_id="htsat-found",
                    label="Found",
                )
                with gr.Row(elem_id="htsat-save"):
                    buttons = [gr.Button(f"Save {name}", size="sm", min_width=90) for name in FORMATS]
                saved = gr.JSON(visible=False)
        wire(desk, (file, recorded, streamed), model, sliders, buttons, (heard, live), (view, found, said, saved))
    return page


def make_sliders(listeners: Mapping[str, Listener]) -> list[gr.components.Component]:
    """In the order of the values of `Settings`."""
    has_own = any(listener.own_decoding for listener in listeners.values())
    seconds: dict[str, Any] = {"minimum": 0, "maximum": 3, "step": 0.05, "value": 0}
    return [
        gr.Checkbox(
            has_own, label="The model's own thresholds and filters", visible=has_own, info="Any slider takes over."
        ),
        gr.Slider(0.02, 0.98, 0.5, step=0.01, label="Threshold", info="An event begins where its score is above."),
        gr.Slider(0, 0.5, 0, step=0.01, label="Hysteresis", info="It goes on while its score falls no further below."),
        gr.Slider(**seconds, label="Median filter (seconds)", info="Scores are smoothed over so long."),
        gr.Slider(**seconds, label="Close gaps up to (seconds)", info="Events of a class this close become one."),
        gr.Slider(**seconds, label="Drop events below (seconds)", info="Shorter ones are left out."),
    ]


def wire(
    desk: Desk,
    inputs: Sequence[Any],
    model: Any,
    sliders: Sequence[Any],
    buttons: Sequence[Any],
    states: Sequence[Any],
    shown: Sequence[Any],
):
    """Which change calls what. One recording is heard at a time; sliders never wait for it."""
    (file, recorded, streamed), (heard, live), (view, found, said, saved) = inputs, states, shown
    answer = [heard, view, found, said]
    one_by_one: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "show_progress_on": view}
    private: dict[str, Any] = {"api_visibility": "private"}
    at_once: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "trigger_mode": "always_last"}
    file.upload(desk.hear, [file, model, *sliders], answer, api_name="hear", **one_by_one)
    recorded.stop_recording(desk.hear, [recorded, model, *sliders], answer, **one_by_one, **private)
    model.input(desk.hear_again, [heard, model, *sliders], answer, **one_by_one, **private)
    gr.on(
        [file.clear, recorded.clear],
        lambda: (None, None, None, ""),
        None,
        answer,
        show_progress="hidden",
        **private,
    )
    own, *moved = sliders
    own.input(desk.redraw, [heard, *sliders], [found, said], api_name="redraw", **at_once)
    for slider in moved:
        slider.input(lambda: False, None, own, show_progress="hidden", **private)
        slider.input(desk.redraw, [heard, gr.State(False), *moved], [found, said], **at_once, **private)
    for button, format in zip(buttons, FORMATS, strict=True):
        button.click(
            desk.save,
            [heard, gr.State(format), *sliders],
            [saved, said],
            api_name=f"save_{FORMATS[format]}",
            concurrency_limit=None,
            show_progress="hidden",
        ).then(None, saved, None, js=SAVE_SCRIPT, **private)
    streamed.stream(
        desk.hear_live,
        [streamed, live, model, *sliders],
        [live, *answer],
        stream_every=LIVE_BLOCK_SECONDS,
        time_limit=round(desk.limits.max_minutes * 60),
        concurrency_limit=MAX_LIVE,
        show_progress="hidden",
        **private,
    )
    streamed.start_recording(
        # Nothing of the recording before is left, or it would be changed and saved in place of what is heard now.
        lambda: (None, None, None, None, ""),
        None,
        [live, *answer],
        concurrency_limit=None,
        show_progress="hidden",
        **private,
    )
    streamed.stop_recording(
        desk.stop_live, [live], [live, heard, view, found], concurrency_limit=None, show_progress="hidden", **private
    )


# ── how it is served ──────────────────────────────────────────────────────────────────────────────────────────────────


def look() -> dict[str, Any]:
    """Colours and fonts; the fonts are those of the visitor's system, since nothing is fetched from elsewhere."""
    theme = gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", radius_size="lg", font=SYSTEM_FONTS, font_mono=MONO_FONTS
    )
    # Gradio's own greys are too faint to be read by everybody.
    theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_800",
    )
    return {"theme": theme, "css": (HERE / "view.css").read_text(encoding="utf-8")}


@contextmanager
def served(
    listeners: Mapping[str, Listener], limits: Limits, host: str = "127.0.0.1", port: int | None = None
) -> Iterator[str]:
    """The address of the page, which is served until the block ends. Uploads have a folder of their own until then."""
    with tempfile.TemporaryDirectory(prefix="htsat-demo-") as uploads, quiet_gradio(uploads):
        page = make_page(listeners, limits).queue(max_size=MAX_WAITING, default_concurrency_limit=1)
        guard = Middleware(OnlyUploads, uploads=Path(uploads), max_megabytes=limits.max_megabytes)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                inbrowser=False,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                allowed_paths=[],
                max_file_size=f"{limits.max_megabytes}mb",
                state_session_capacity=MAX_SESSIONS,
                app_kwargs={"middleware": [guard], "docs_url": None, "redoc_url": None, "openapi_url": None},
                **look(),
            )
            yield address
        finally:
            page.close(verbose=False)


@contextmanager
def quiet_gradio(uploads: str) -> Iterator[None]:
    """Gradio asks nobody for its newest release, reports to nobody, and keeps uploads where it is told."""
    settings = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads, "HF_HUB_DISABLE_TELEMETRY": "1"}
    with mock.patch.dict(os.environ, settings):
        yield


__all__ = ["Desk", "make_page", "served"]
