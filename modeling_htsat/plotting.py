"""One picture of a recording: its spectrogram, the scores of its strongest classes, and its events as bars.

Three panels share one time axis in seconds. Scores have the same colours in the middle and in the lower panel, from
white for 0 to dark blue for 1; truth is hatched in vermilion. Axes, as they appear in shape comments:
    frames, mels    the log-mel spectrogram
    steps, classes  the frame scores
    columns         of a panel: frames or steps, or stretches of them where there are more than a picture can show
"""

import math
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from transformers.audio_utils import hertz_to_mel, mel_to_hertz

PathLike: TypeAlias = str | os.PathLike[str]
Numbers: TypeAlias = Sequence[float] | np.ndarray

FORMATS = ("png", "svg", "pdf")
# Okabe and Ito, "Color Universal Design": told apart by people with every kind of colour blindness.
SKY_BLUE, BLUE, VERMILION = "#56B4E9", "#0072B2", "#D55E00"
SCORE_COLORS = LinearSegmentedColormap.from_list(
    "htsat_scores", [(0, "white"), (0.4, SKY_BLUE), (0.75, BLUE), (1, "#003355")]
)
DECIBEL_COLORS = "magma"  # of even lightness, and of no hue that means something in the other panels
DECIBEL_RANGE = 80.0  # below the loudest; what is fainter is drawn black
TRUTH_LOOK: dict[str, Any] = {"facecolor": "white", "edgecolor": VERMILION, "hatch": "/////", "linewidth": 1.0}
NO_DATA = "0.9"  # light grey: time without frames or steps

WIDTH_INCHES = 11.0
SPECTROGRAM_INCHES, SCORE_ROW_INCHES, BAR_ROW_INCHES, TRUTH_ROW_INCHES = 1.9, 0.24, 0.30, 0.42
FRAME_INCHES = 1.35  # panel titles, time axis and the gaps between
DOTS_PER_INCH = 150
MAX_COLUMNS = 1200  # a panel is about as many dots wide, so that each column, and each maximum, is seen
MAX_LABEL_CHARACTERS, MAX_TITLE_CHARACTERS = 30, 110
NUMBER_SHARE = 0.04  # of a panel's width: what a score such as 0.87 takes at 7.5 points, with a margin

STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlepad": 5.0,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "0.4",
    "xtick.color": "0.4",
    "ytick.color": "0.4",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "hatch.linewidth": 0.8,
    "text.parse_math": False,  # a label may hold dollar signs
    "svg.hashsalt": "htsat",  # with a random salt no two files would be equal
}


class Bar(NamedTuple):
    """An event to draw; truth is certain, and its score is not shown."""

    onset: float
    offset: float
    label: str
    score: float = 1.0


# ── the two ways in ───────────────────────────────────────────────────────────────────────────────────────────────────


def plot_events(
    path: PathLike,
    log_mel: Any,
    frame_scores: Any,
    step_edges_seconds: Numbers,
    labels: Sequence[str],
    events: Iterable[Mapping[str, Any]],
    **settings: Any,
) -> None:
    """Write the picture that `draw_events` makes of the same arguments, as PNG, SVG or PDF by the suffix of `path`.

    The file appears whole or not at all, and is the same, byte by byte, for the same arguments.
    """
    path = Path(path)
    _refuse_unwritable(path)
    figure = draw_events(log_mel, frame_scores, step_edges_seconds, labels, events, **settings)
    _save_atomically(figure, path)


def draw_events(
    log_mel: Any,
    frame_scores: Any,
    step_edges_seconds: Numbers,
    labels: Sequence[str],
    events: Iterable[Mapping[str, Any]],
    *,
    seconds_per_frame: float,
    duration_seconds: float,
    mel_frequencies_hz: Numbers | None = None,
    truth: Iterable[tuple[float, float, str]] | None = None,
    title: str | None = None,
    max_classes: int = 10,
) -> Figure:
    """Draw spectrogram, scores and events of one recording on one time axis.

    Args:
        log_mel: decibels (frames, mels) of the recording; frame k is centred at k * `seconds_per_frame`.
        frame_scores: probabilities (steps, classes).
        step_edges_seconds: where the steps begin and end, one edge more than there are steps.
        labels: the name of each class.
        events: detections, each with `label`, `onset`, `offset` and `score`.
        duration_seconds: where the time axis ends; frames and steps of repeated or padded sound after it are left out.
        mel_frequencies_hz: the centre of each mel band, see `mel_centers_hz`; without it the axis counts bands.
        truth: the events that there are, as (onset, offset, label); they are drawn below the detections.
        max_classes: rows of the lower two panels. Classes with events come first, then those with truth, then the
            others; in each group the highest score comes first.
    """
    log_mel, scores = _read_spectrogram(log_mel), _read_scores(frame_scores, step_edges_seconds, labels)
    _refuse_strange_numbers(seconds_per_frame, duration_seconds, max_classes)
    detected = [_read_event(event) for event in events]
    true = None if truth is None else [_read_truth(row) for row in truth]
    scores, step_edges = _crop_columns(scores, np.asarray(step_edges_seconds, dtype=float), duration_seconds)
    ranking = _rank_labels(labels, scores, detected, true or [])
    with_scores, with_bars = set(labels), {bar.label for bar in [*detected, *(true or [])]}
    score_rows = [label for label in ranking if label in with_scores][:max_classes]
    bar_rows = [label for label in ranking if label in with_bars]
    with matplotlib.style.context(["default", _style()]):
        figure, (top, middle, bottom), colour_bars = _make_panels(len(score_rows), len(bar_rows[:max_classes]), true)
        _draw_spectrogram(top, colour_bars[0], log_mel, seconds_per_frame, duration_seconds)
        _label_frequencies(top, log_mel.shape[1], mel_frequencies_hz)
        _draw_scores(middle, colour_bars[1], scores, step_edges, labels, score_rows, detected)
        _draw_events(bottom, bar_rows[:max_classes], detected, true, duration_seconds)
        _title_events(bottom, len(bar_rows) - max_classes, detected, true, duration_seconds)
        _label_time(bottom, duration_seconds)
        if title:
            figure.suptitle(_shorten(title, MAX_TITLE_CHARACTERS), fontsize=12)
    return figure


def mel_centers_hz(num_mel_bins: int, min_frequency: float, max_frequency: float) -> np.ndarray:
    """Return the centre of each mel band of `HTSATFeatureExtractor` (Slaney scale), in hertz."""
    lowest, highest = (float(hertz_to_mel(hertz, mel_scale="slaney")) for hertz in (min_frequency, max_frequency))
    edges = mel_to_hertz(np.linspace(lowest, highest, num_mel_bins + 2), mel_scale="slaney")
    return np.asarray(edges)[1:-1]


def _style() -> dict[str, Any]:
    """The settings of this module; only fonts are the user's own, for scripts that matplotlib's font lacks."""
    return {**STYLE, **{name: matplotlib.rcParams[name] for name in ("font.family", "font.sans-serif")}}


# ── read what came ────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_spectrogram(log_mel: Any) -> np.ndarray:
    log_mel = np.asarray(log_mel)
    if log_mel.ndim != 2 or 0 in log_mel.shape:
        raise ValueError(f"The spectrogram has shape {log_mel.shape}; it must be (frames, mels), of one recording.")
    if not np.isfinite(log_mel).all():
        raise ValueError("The spectrogram holds NaN or infinite values; it must be finite decibels.")
    return log_mel


def _read_scores(scores: Any, step_edges: Numbers, labels: Sequence[str]) -> np.ndarray:
    scores = np.asarray(scores)
    if not (np.diff(step_edges) > 0).all():
        raise ValueError("The step edges must rise, in seconds from the beginning of the recording.")
    if scores.shape != (len(step_edges) - 1, len(labels)) or 0 in scores.shape:
        raise ValueError(
            f"The scores have shape {scores.shape}; {len(step_edges)} step edges and {len(labels)} labels need "
            f"({len(step_edges) - 1}, {len(labels)}), with at least one step and one class."
        )
    # Written so that NaN is refused too.
    if not (scores.min() >= 0 and scores.max() <= 1):
        raise ValueError(
            f"The scores lie between {scores.min():g} and {scores.max():g}; probabilities from 0 to 1 are needed. "
            "Apply `sigmoid` to logits first."
        )
    return scores


def _refuse_strange_numbers(seconds_per_frame: float, duration_seconds: float, max_classes: int) -> None:
    for name, seconds in (("seconds_per_frame", seconds_per_frame), ("duration_seconds", duration_seconds)):
        if not 0 < seconds < math.inf:
            raise ValueError(f"{name} is {seconds}; it must be a finite number above 0.")
    if max_classes < 1:
        raise ValueError(f"max_classes is {max_classes}; at least one row is needed.")


def _read_event(event: Mapping[str, Any]) -> Bar:
    missing = [name for name in ("onset", "offset", "label", "score") if name not in event]
    if missing:
        raise ValueError(f"An event to draw lacks {', '.join(missing)}; it has {', '.join(event) or 'nothing'}.")
    return _checked(Bar(float(event["onset"]), float(event["offset"]), event["label"], float(event["score"])))


def _read_truth(row: tuple[float, float, str]) -> Bar:
    onset, offset, label = row
    return _checked(Bar(float(onset), float(offset), label))


def _checked(bar: Bar) -> Bar:
    if not 0 <= bar.onset <= bar.offset < math.inf:
        raise ValueError(
            f"An event of {bar.label!r} lasts from {bar.onset:g} s to {bar.offset:g} s; 0 <= onset <= offset is needed."
        )
    return bar


def _rank_labels(labels: Sequence[str], scores: np.ndarray, detected: list[Bar], true: list[Bar]) -> list[str]:
    """Every label once, also those that only events or truth know: with events, with truth, the others."""
    peaks = dict.fromkeys((bar.label for bar in [*detected, *true]), 0.0)
    for label, peak in [*zip(labels, scores.max(axis=0), strict=True), *((bar.label, bar.score) for bar in detected)]:
        peaks[label] = max(peaks.get(label, 0.0), peak)
    with_events, with_truth = ({bar.label for bar in bars} for bars in (detected, true))
    return sorted(peaks, key=lambda label: (label not in with_events, label not in with_truth, -peaks[label], label))


# ── columns ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _crop_columns(values: np.ndarray, edges: np.ndarray, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Leave out the columns (axis 0) that begin after the end of the recording."""
    inside = max(int(np.searchsorted(edges[:-1], end)), 1)
    return values[:inside], edges[: inside + 1]


def _shrink_columns(values: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Let each column (axis 0) stand for several, where there are too many, by their maximum: short sounds stay."""
    together = math.ceil(len(values) / MAX_COLUMNS)
    first = np.arange(0, len(values), together)
    return np.maximum.reduceat(values, first, axis=0), np.append(edges[first], edges[-1])


# ── panels ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _make_panels(num_score_rows: int, num_bar_rows: int, true: Any) -> tuple[Figure, list[Axes], list[Axes]]:
    """The figure, its three panels, and the axes of the two colour bars; the lower panels share the second."""
    row_inches = BAR_ROW_INCHES if true is None else TRUTH_ROW_INCHES
    heights = [SPECTROGRAM_INCHES, max(num_score_rows, 2) * SCORE_ROW_INCHES, max(num_bar_rows, 1) * row_inches]
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05, wspace=0, hspace=0)
    figure = Figure((WIDTH_INCHES, sum(heights) + FRAME_INCHES), dpi=DOTS_PER_INCH, layout=layout)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, 2, height_ratios=heights, width_ratios=[1, 0.014])
    top = figure.add_subplot(grid[0, 0])
    panels = [top, *(figure.add_subplot(grid[row, 0], sharex=top) for row in (1, 2))]
    for panel in panels[:2]:
        panel.tick_params(labelbottom=False)
    return figure, panels, [figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1:, 1])]


def _draw_spectrogram(panel: Axes, colour_bar: Axes, log_mel: np.ndarray, seconds_per_frame: float, end: float) -> None:
    edges = (np.arange(len(log_mel) + 1) - 0.5) * seconds_per_frame
    decibels, edges = _shrink_columns(*_crop_columns(log_mel, edges, end))  # (columns, mels)
    loudest = float(decibels.max())
    faintest = max(float(np.percentile(decibels, 1)), loudest - DECIBEL_RANGE)
    mesh = panel.pcolormesh(
        edges,
        np.arange(decibels.shape[1] + 1),
        decibels.T,
        cmap=DECIBEL_COLORS,
        vmin=min(faintest, loudest - 10),  # digital silence has no range of its own
        vmax=loudest,
        rasterized=True,  # in SVG and PDF too: 77,000 rectangles would fill megabytes
    )
    panel.set_facecolor(NO_DATA)
    panel.set_title("Spectrogram", loc="left", weight="bold")
    panel.figure.colorbar(mesh, cax=colour_bar, label="dB").locator = MaxNLocator(5)


def _label_frequencies(panel: Axes, num_mels: int, mel_frequencies_hz: Numbers | None) -> None:
    """Write round frequencies beside the bands; the bands themselves are evenly spaced, as the model reads them."""
    panel.set_ylim(0, num_mels)
    if mel_frequencies_hz is None:
        panel.set_ylabel("mel band")
        return
    centers = np.asarray(mel_frequencies_hz, dtype=float)
    if centers.shape != (num_mels,) or not (np.diff(centers) > 0).all():
        raise ValueError(
            f"mel_frequencies_hz has shape {centers.shape}; {num_mels} rising frequencies are needed, one per mel band."
        )
    round_hz = [hz for hz in (100, 200, 500, 1000, 2000, 5000, 10000, 20000) if centers[0] <= hz <= centers[-1]]
    panel.set_yticks(np.interp(round_hz, centers, np.arange(num_mels) + 0.5), [f"{hz / 1000:g}" for hz in round_hz])
    panel.set_ylabel("kHz (mel scale)")


def _draw_scores(
    panel: Axes,
    colour_bar: Axes,
    scores: np.ndarray,
    step_edges: np.ndarray,
    labels: Sequence[str],
    rows: list[str],
    detected: list[Bar],
) -> None:
    index = {label: position for position, label in enumerate(labels)}
    shown, edges = _shrink_columns(scores[:, [index[label] for label in rows]], step_edges)  # (columns, rows)
    row_edges = np.arange(len(rows) + 1) - 0.5
    mesh = panel.pcolormesh(edges, row_edges, shown.T, cmap=SCORE_COLORS, vmin=0, vmax=1, rasterized=True)
    _label_rows(panel, rows, {bar.label for bar in detected})
    panel.set_facecolor(NO_DATA)
    part = f": {len(rows)} of {len(labels)} classes" if len(rows) < len(labels) else ""
    panel.set_title(f"Event presence{part}", loc="left", weight="bold")
    panel.figure.colorbar(mesh, cax=colour_bar, label="score", ticks=np.linspace(0, 1, 6))


def _label_rows(panel: Axes, rows: list[str], emphasised: set[str]) -> None:
    """One row per label, the first on top, with hairlines between."""
    panel.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    panel.set_yticks(range(len(rows)), [_shorten(label, MAX_LABEL_CHARACTERS) for label in rows])
    panel.tick_params(axis="y", length=0)
    for text, label in zip(panel.get_yticklabels(), rows, strict=True):
        text.set_color("black" if label in emphasised else "0.4")
    for row in range(1, len(rows)):
        panel.axhline(row - 0.5, color="0.85", linewidth=0.6)


def _shorten(text: str, characters: int) -> str:
    text = " ".join(str(text).split())
    if len(text) <= characters:
        return text
    whole_words = text[:characters].rpartition(" ")[0]
    kept = whole_words if len(whole_words) > characters / 2 else text[: characters - 1]
    return kept.rstrip(" ,(") + "…"


# ── events ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _draw_events(panel: Axes, rows: list[str], detected: list[Bar], true: list[Bar] | None, end: float) -> None:
    _label_rows(panel, rows, set(rows))
    top, height = (-0.3, 0.6) if true is None else (-0.40, 0.46)
    for row, label in enumerate(rows):
        bars = sorted(bar for bar in detected if bar.label == label)
        true_bars = [bar for bar in true or [] if bar.label == label]
        if bars:
            _draw_bars(panel, bars, row + top, height)
            _write_scores(panel, bars, row + top + height / 2, end)
        if true_bars:
            panel.broken_barh(_spans(true_bars), (row + 0.14, 0.26), **TRUTH_LOOK)
    if not rows:
        panel.text(0.5, 0.5, "no events", transform=panel.transAxes, ha="center", va="center", color="0.4")
    if true is not None:
        _explain_colours(panel)
    panel.grid(axis="x", color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)


def _draw_bars(panel: Axes, bars: list[Bar], top: float, height: float) -> None:
    # The edge keeps a second of an hour, and a score near 0, visible.
    panel.broken_barh(
        _spans(bars),
        (top, height),
        facecolors=[SCORE_COLORS(bar.score) for bar in bars],
        edgecolors=[SCORE_COLORS(max(bar.score, 0.4)) for bar in bars],
        linewidth=1.0,
    )


def _spans(bars: list[Bar]) -> list[tuple[float, float]]:
    return [(bar.onset, bar.offset - bar.onset) for bar in bars]


def _write_scores(panel: Axes, bars: list[Bar], middle: float, end: float) -> None:
    """Write each score into its bar, or behind it; where there is room for neither, the colour has to do."""
    room = NUMBER_SHARE * end
    look: dict[str, Any] = {"fontsize": 7.5, "va": "center_baseline", "clip_on": True}
    offsets_before, onsets_after = [-end, *(bar.offset for bar in bars)], [*(bar.onset for bar in bars[1:]), end]
    for bar, offset_before, onset_after in zip(bars, offsets_before, onsets_after, strict=False):
        number, visible_offset = f"{bar.score:.2f}", min(bar.offset, end)
        # Behind one of several bars that touch, a number would seem to be that of all.
        stands_alone = bar.onset - offset_before >= room / 4 and onset_after - bar.offset >= room
        if visible_offset - bar.onset >= room:
            colour = "white" if bar.score > 0.55 else "black"
            panel.text((bar.onset + visible_offset) / 2, middle, number, ha="center", color=colour, **look)
        elif stands_alone:
            panel.text(bar.offset + room / 10, middle, number, ha="left", color="black", **look)


def _explain_colours(panel: Axes) -> None:
    handles = [
        Patch(facecolor=SCORE_COLORS(0.75), edgecolor=SCORE_COLORS(0.75), label="detected, with its score"),
        Patch(**TRUTH_LOOK, label="truth"),
    ]
    panel.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=2,
        frameon=False,
        borderaxespad=0.1,
        borderpad=0.25,
    )


def _title_events(panel: Axes, num_hidden: int, detected: list[Bar], true: list[Bar] | None, end: float) -> None:
    """Say also what the panel does not show."""
    late = sum(bar.onset >= end for bar in [*detected, *(true or [])])
    notes = [
        "none detected" if not detected and true else "",
        "no true ones" if true == [] and detected else "",
        f"{num_hidden} more {'class' if num_hidden == 1 else 'classes'} not shown" if num_hidden > 0 else "",
        f"{late} after the end not shown" if late else "",
    ]
    panel.set_title(": ".join(filter(None, ["Events", ", ".join(filter(None, notes))])), loc="left", weight="bold")


# ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _label_time(panel: Axes, end: float) -> None:
    panel.set_xlim(0, end)
    if end <= 120:
        panel.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10]))
        panel.set_xlabel("time (seconds)")
        return
    round_seconds = (15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
    step = next((seconds for seconds in round_seconds if end / seconds <= 12), end / 10)
    panel.xaxis.set_major_locator(MultipleLocator(step))
    panel.xaxis.set_major_formatter(FuncFormatter(_clock if end <= 7200 else _long_clock))
    panel.set_xlabel("time (minutes:seconds)" if end <= 7200 else "time (hours:minutes:seconds)")


def _clock(seconds: float, position: int | None = None) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


def _long_clock(seconds: float, position: int | None = None) -> str:
    hours, seconds = divmod(round(seconds), 3600)
    return f"{hours}:{seconds // 60:02d}:{seconds % 60:02d}"


# ── the file ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _refuse_unwritable(path: Path) -> None:
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise ValueError(f"No picture format for {path.name!r}; name it .png, .svg or .pdf.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {path.parent} for {path.name} does not exist; create it first.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the picture another name.")


def _save_atomically(figure: Figure, path: Path) -> None:
    """Write beside the target and move it there, so that no reader ever sees half a picture."""
    kind = path.suffix.lower().removeprefix(".")
    undated: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file, matplotlib.style.context(["default", _style()]):
            figure.savefig(file, format=kind, metadata=undated.get(kind))
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"The picture {path} cannot be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


__all__ = ["draw_events", "mel_centers_hz", "plot_events"]
