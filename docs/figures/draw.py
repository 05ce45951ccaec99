"""Draw every figure of the documents: `python docs/figures/draw.py`.

Nothing is random but by seed, and colours are those of Okabe and Ito, told apart with every kind of colour blindness.
Pictures are reduced to few colours, so that each is some tens of kilobytes.
"""

import argparse
import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from modeling_htsat import EventDecoding, HTSATConfig, HTSATFeatureExtractor, decode_events, events_to_frames
from modeling_htsat.plotting import SCORE_COLORS
from modeling_htsat.soundscapes import make_soundscape
from modeling_htsat.soundscapes.scene import Soundscape, SoundscapeSettings

SKY_BLUE, GREEN, BLUE, VERMILION, PURPLE, ORANGE = "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#E69F00"
FOLD_COLORS = (BLUE, ORANGE, GREEN, PURPLE)
GREY = "0.5"
SCENE_SEED, SCENE_INDEX = 7, 34  # a bird and a dog at once, then a siren
DOTS_PER_INCH, NUM_COLORS, FRAMES_PER_COLUMN = 120, 64, 4
CONFIG = HTSATConfig()
STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder for the pictures")
    options = parser.parse_args()
    for name, draw in FIGURES.items():
        with matplotlib.rc_context(STYLE):
            save(draw(), options.output / name)


def save(figure: Figure, path: Path):
    """As a PNG of few colours."""
    drawn = io.BytesIO()
    FigureCanvasAgg(figure).print_png(drawn)
    few = Image.open(drawn).convert("RGB").quantize(NUM_COLORS, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def new_figure(width: float, height: float) -> Figure:
    hair = 1e-6  # some releases of Matplotlib round pixels down, and 8.2 inches would be 983
    return Figure(figsize=(width + hair, height + hair), dpi=DOTS_PER_INCH, layout="constrained")


# ── what is drawn ─────────────────────────────────────────────────────────────────────────────────────────────────────


def make_scene() -> Soundscape:
    return make_soundscape(SCENE_SEED, SCENE_INDEX, SoundscapeSettings(min_snr_db=15, max_snr_db=25))


def spectrogram_of(scene: Soundscape) -> np.ndarray:
    """`(frames, mels)` in decibels, stretched to a window by the nearest frame; then the loudest of every few."""
    frames = HTSATFeatureExtractor()(scene.waveform, sampling_rate=32_000)["input_features"][0]
    stretched = frames[np.linspace(0, len(frames) - 1, CONFIG.clip_frames).round().astype(int)]
    return stretched.reshape(-1, FRAMES_PER_COLUMN, frames.shape[1]).max(1)


def made_up_scores(scene: Soundscape) -> tuple[list[str], np.ndarray]:
    """Labels, and scores `(steps, classes)` such as a good model might give: the truth, blurred, with doubts."""
    labels = [*scene.labels, "engine"]
    truth = [{"onset": onset, "offset": offset, "label": label} for onset, offset, label in scene.events]
    held = events_to_frames(truth, CONFIG.num_steps, 10 / CONFIG.num_steps, labels)
    blurred = 0.15 * np.roll(held, -1, axis=0) + 0.7 * held + 0.15 * np.roll(held, 1, axis=0)
    doubts = np.random.default_rng(SCENE_SEED).uniform(0.0, 0.16, held.shape)
    return labels, np.clip(0.05 + 0.82 * blurred + doubts * (1 - held), 0, 1)


def show_spectrogram(axes: Axes, log_mel: np.ndarray, extent: tuple[float, float, float, float]):
    """`(frames, mels)` with low frequencies at the bottom of each chunk."""
    axes.imshow(log_mel.T, origin="lower", aspect="auto", cmap="cividis", extent=extent, vmin=-17, vmax=18)


# ── the figures ───────────────────────────────────────────────────────────────────────────────────────────────────────


def draw_sound_to_image() -> Figure:
    """A spectrogram, and the square image that its four chunks make."""
    log_mel = spectrogram_of(make_scene())
    figure = new_figure(8.2, 5.2)
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.9), width_ratios=(1.25, 1))
    top, square, note = figure.add_subplot(grid[0, :]), figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    chunks = np.split(log_mel, CONFIG.num_folds)
    show_spectrogram(top, log_mel, (0, CONFIG.clip_frames, 0, CONFIG.num_mel_bins))
    top.set_title("1. The log-mel spectrogram of ten seconds: 1024 frames × 64 mel bins", loc="left")
    for fold, (chunk, color) in enumerate(zip(chunks, FOLD_COLORS, strict=True)):
        begin, height = fold * CONFIG.spec_size, CONFIG.num_mel_bins
        frame_chunk(top, begin, 0, CONFIG.spec_size, height, color, fold)
        bottom = CONFIG.spec_size - (fold + 1) * height
        show_spectrogram(square, chunk, (0, CONFIG.spec_size, bottom, bottom + height))
        frame_chunk(square, 0, bottom, CONFIG.spec_size, height, color, fold)
    square.set(xlim=(0, CONFIG.spec_size), ylim=(0, CONFIG.spec_size), aspect="equal")
    square.set_title("2. The image: 256 × 256", loc="left")
    square.set_xlabel("frames inside a chunk")
    square.set_ylabel("4 chunks × 64 mel bins")
    top.set(xticks=range(0, 1025, 256), yticks=(0, 64), ylabel="mel bin", xlabel="frame (9.8 ms each)")
    square.set(xticks=(0, 128, 256), yticks=(0, 64, 128, 192, 256))
    note.axis("off")
    lines = (
        "Four chunks of time are stacked\nalong frequency, the first on top.",
        "A Swin transformer made for square\nimages can read the result.",
        "Rows that meet at a seam are no\nneighbours in sound. The last layer\nputs the chunks back in a row.",
    )
    for line, height in zip(lines, (0.88, 0.62, 0.36), strict=True):
        note.text(0.0, height, line, va="top", fontsize=10, linespacing=1.4, transform=note.transAxes)
    return figure


def frame_chunk(axes: Axes, left: float, bottom: float, width: float, height: float, color: str, fold: int):
    """A coloured border inside the chunk, and its number."""
    margin = 2
    box = Rectangle((left + margin, bottom + 1), width - 2 * margin, height - 2, fill=False, edgecolor=color, lw=2.5)
    axes.add_patch(box)
    label = {"boxstyle": "round,pad=0.2", "facecolor": color, "edgecolor": "none"}
    axes.text(
        left + 10, bottom + height - 6, f"{fold + 1}", va="top", color="white", weight="bold", fontsize=9, bbox=label
    )


def draw_stages() -> Figure:
    """How tokens and attention windows of the four stages cover the image."""
    figure = new_figure(8.2, 4.7)
    panels = figure.subplots(2, len(CONFIG.depths))
    for stage, (grid, window) in enumerate(zip(CONFIG.stage_grids, CONFIG.stage_windows, strict=True)):
        plain, shifted = panels[0, stage], panels[1, stage]
        draw_windows(plain, grid, window, 0)
        plain.set_title(f"stage {stage + 1}\n{grid} × {grid} tokens, {CONFIG.stage_dims[stage]} wide")
        plain.set_xlabel(f"{CONFIG.depths[stage]} blocks, {CONFIG.num_heads[stage]} heads")
        if grid > window:
            draw_windows(shifted, grid, window, window // 2)
        else:
            shifted.set_axis_off()
            shifted.text(0.5, 0.5, "one window:\nno shift", ha="center", va="center", fontsize=10)
    panels[0, 0].set_ylabel("first, third, … block")
    panels[1, 0].set_ylabel("second, fourth, … block")
    return figure


def draw_windows(axes: Axes, grid: int, window: int, shift: int):
    """The image, its chunks, and the attention windows, one of them hatched."""
    axes.set(xlim=(0, grid), ylim=(grid, 0), aspect="equal", xticks=(), yticks=())
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
    for fold, color in enumerate(FOLD_COLORS):
        height = grid / CONFIG.num_folds
        axes.add_patch(Rectangle((0, fold * height), grid, height, color=color, alpha=0.18, lw=0))
    for place in range(-shift, grid, window):
        axes.axhline(place, color=GREY, lw=0.8)
        axes.axvline(place, color=GREY, lw=0.8)
    corner = (window - shift) % window if grid > window else 0
    axes.add_patch(Rectangle((corner, corner), window, window, fill=False, hatch="////", edgecolor=VERMILION, lw=2))


def draw_presence_map() -> Figure:
    """From the last map of the encoder, put back in order, to scores of classes and to events."""
    scene = make_scene()
    labels, scores = made_up_scores(scene)
    figure = new_figure(8.2, 6.2)
    grid = figure.add_gridspec(4, 2, height_ratios=(2.1, 0.75, 1.5, 1.5), width_ratios=(1, 2.1))
    last, note, strip, presence, found = (
        figure.add_subplot(place) for place in (grid[0, 0], grid[0, 1], grid[1, :], grid[2, :], grid[3, :])
    )
    draw_last_map(last)
    draw_strip(strip)
    note.axis("off")
    lines = (
        "Each square is a token of 768 numbers. Colours are the four chunks.",
        "2. puts the chunks back one after the other: 2 bins × 32 time steps.",
        "3. A convolution over both bins and three steps turns them into one\nscore for every class and step. "
        "Their mean over time tags the clip.",
        "4. Thresholds and filters make events of the scores.",
    )
    for line, height in zip(lines, (0.95, 0.72, 0.49, 0.12), strict=True):
        note.text(0.0, height, line, va="top", fontsize=10, linespacing=1.4, transform=note.transAxes)
    image = presence.imshow(
        scores.T, aspect="auto", cmap=SCORE_COLORS, vmin=0, vmax=1, extent=(0, 10, len(labels) - 0.5, -0.5)
    )
    presence.set(yticks=range(len(labels)), yticklabels=labels, xlim=(0, 10), xticks=range(0, 11, 2))
    presence.set_title("3. The event presence map (scores made up for this picture)", loc="left")
    figure.colorbar(image, ax=presence, label="score", ticks=(0, 0.5, 1), pad=0.01)
    draw_events(found, labels, scores, scene)
    return figure


def draw_last_map(axes: Axes):
    grid = CONFIG.stage_grids[-1]
    for row in range(grid):
        for column in range(grid):
            fold = row // CONFIG.num_bins
            draw_token(axes, column, row, fold, column + grid * fold + 1)
    axes.set(xlim=(0, grid), ylim=(grid, 0), aspect="equal", xticks=(), yticks=())
    axes.set_title("1. Last stage: 8 × 8 tokens", loc="left")
    clear_spines(axes)


def draw_strip(axes: Axes):
    grid = CONFIG.stage_grids[-1]
    for step in range(CONFIG.num_steps):
        for bin_number in range(CONFIG.num_bins):
            draw_token(axes, step, bin_number, step // grid, step + 1)
    axes.set(xlim=(0, CONFIG.num_steps), ylim=(CONFIG.num_bins, 0), xticks=(), yticks=())
    axes.set_title("2. Unfolded: 2 bins × 32 steps of 312.5 ms", loc="left")
    clear_spines(axes)


def draw_token(axes: Axes, column: int, row: int, fold: int, step: int):
    """One square with the number of its time step."""
    axes.add_patch(Rectangle((column, row), 1, 1, facecolor=FOLD_COLORS[fold], alpha=0.55, edgecolor="white", lw=1))
    axes.text(column + 0.5, row + 0.5, str(step), ha="center", va="center", fontsize=7)


def clear_spines(axes: Axes):
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_events(axes: Axes, labels: list[str], scores: np.ndarray, scene: Soundscape):
    """What decoding makes of the scores, above what is true."""
    events = decode_events(scores, 10 / len(scores), EventDecoding(threshold=0.5), labels)
    for event in events:
        row, length = labels.index(event["label"]), event["offset"] - event["onset"]
        axes.add_patch(Rectangle((event["onset"], row - 0.38), length, 0.38, facecolor=BLUE))
    for onset, offset, label in scene.events:
        row = labels.index(label)
        hatched = {"facecolor": "white", "edgecolor": VERMILION, "hatch": "////", "lw": 0.8}
        axes.add_patch(Rectangle((onset, row + 0.04), offset - onset, 0.34, **hatched))
    axes.set(xlim=(0, 10), ylim=(len(labels) - 0.5, -0.5), yticks=range(len(labels)), yticklabels=labels)
    axes.set(xticks=range(0, 11, 2), xlabel="seconds")
    axes.set_title("4. Events, threshold 0.5 (blue), and the truth (hatched)", loc="left")


def draw_long_recording() -> Figure:
    """Which windows hear which part of 45 seconds, and how many of them every step."""
    rate = CONFIG.hop_length / CONFIG.sampling_rate
    window, step = CONFIG.clip_frames * rate, CONFIG.frames_per_step * rate
    hop, length = (CONFIG.num_steps - CONFIG.overlap_steps) * step, 45.0
    starts = [*np.arange(0, length - window, hop), length - window]
    figure = new_figure(8.2, 2.9)
    axes, count = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    for row, start in enumerate(starts):
        color = VERMILION if row == len(starts) - 1 else BLUE
        axes.add_patch(Rectangle((start, row + 0.1), window, 0.8, facecolor=color, alpha=0.75))
        label = "last: ends with the recording" if color == VERMILION else f"{window:.2f} s"
        axes.text(start + window / 2, row + 0.5, label, ha="center", va="center", color="white", fontsize=8)
    axes.set(xlim=(0, length), ylim=(len(starts), 0), yticks=())
    axes.set_title(f"Windows of {window:.2f} s, one every {hop:.2f} s", loc="left")
    seconds = np.arange(0, length, step / 4)
    heard = sum(((seconds >= start) & (seconds < start + window)).astype(int) for start in starts)
    count.fill_between(seconds, heard, step="post", color=GREY, alpha=0.6, lw=0)
    count.set(ylim=(0, 2.4), yticks=(1, 2), xlabel="seconds", ylabel="heard by")
    return figure


def draw_decoding() -> Figure:
    """One class's scores, and what each value of a decoding changes in its events."""
    tenths = "1 1 2 7.5 2 1 1 4 6 8 7 4.5 4 6.5 8 7 4 4 2 1 1 3 5.5 6 1 6 7 5.5 3 1 1 1"
    scores = np.fromstring(tenths, sep=" ") / 10
    step = 10 / len(scores)
    ways = {
        "threshold 0.5": EventDecoding(threshold=0.5),
        "… stay_threshold 0.35": EventDecoding(threshold=0.5, stay_threshold=0.35),
        "… max_gap_seconds 0.4": EventDecoding(threshold=0.5, stay_threshold=0.35, max_gap_seconds=0.4),
        "… min_event_seconds 0.6": EventDecoding(
            threshold=0.5, stay_threshold=0.35, max_gap_seconds=0.4, min_event_seconds=0.6
        ),
    }
    figure = new_figure(8.2, 3.6)
    curve, bars = figure.subplots(2, 1, sharex=True, height_ratios=(1.4, 1))
    curve.stairs(scores, np.arange(len(scores) + 1) * step, color=BLUE, fill=True, alpha=0.35)
    curve.axhline(0.5, color=VERMILION, lw=1.2)
    curve.axhline(0.35, color=ORANGE, lw=1.2, ls="--")
    curve.text(10.05, 0.5, "threshold", color=VERMILION, va="center", clip_on=False)
    curve.text(10.05, 0.35, "stay_threshold", color=ORANGE, va="center", clip_on=False)
    curve.set(xlim=(0, 10), ylim=(0, 1), ylabel="score", yticks=(0, 0.5, 1))
    for row, decoding in enumerate(ways.values()):
        for event in decode_events(scores[:, None], step, decoding):
            length = event["offset"] - event["onset"]
            bars.add_patch(Rectangle((event["onset"], row + 0.2), length, 0.6, facecolor=BLUE))
    rows = np.arange(len(ways)) + 0.5
    bars.set(ylim=(len(ways), 0), yticks=rows, yticklabels=list(ways), xlabel="seconds")
    return figure


FIGURES = {
    "sound_to_image.png": draw_sound_to_image,
    "stages.png": draw_stages,
    "presence_map.png": draw_presence_map,
    "long_recording.png": draw_long_recording,
    "decoding.png": draw_decoding,
}

if __name__ == "__main__":
    main()
