"""What a run says about itself: progress while it trains, learning curves, results at the end, and a full disk."""

import contextlib
import errno
import importlib.metadata
import itertools
import json
import logging
import math
import os
import platform
import re
import secrets
import shlex
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta, timezone
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.integrations import is_tensorboard_available
from transformers.utils.logging import disable_progress_bar

from ..tables import write_whole
from ..version import VERSION
from ..whole_htsat import no_room

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

PathLike: TypeAlias = str | os.PathLike[str]


def default_report_to() -> list[str]:
    """TensorBoard where it is installed; the default of `report_to` in our training arguments."""
    return ["tensorboard"] if is_tensorboard_available() else []


# ── progress ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def report_progress(trainer: Trainer) -> None:
    """Let a trainer show its progress by `SpeedCallback` alone, without a bar of transformers for every saved file."""
    disable_progress_bar()
    for usual in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(usual)
    # In front of TensorBoard, which thus sees the speed too.
    trainer.callback_handler.callbacks.insert(0, SpeedCallback())


class SpeedCallback(TrainerCallback):
    """A progress bar on a terminal, lines of text elsewhere, and `clips_per_second` in everything that is logged.

    Clips are those of all processes, and their time is that of training alone, without evaluation and saving. Use
    `report_progress`, which puts it in the place that it needs.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._evaluation_bar: tqdm | None = None
        self._has_terminal = False
        self._started = self._mark = time.monotonic()
        self._first_step = self._last_step = 0
        self._steps, self._seconds = 0, 0.0  # of training, since the last line

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = self._mark = time.monotonic()
        self._first_step = self._last_step = state.global_step
        self._steps, self._seconds = 0, 0.0
        if state.is_world_process_zero:
            self._bar = _make_bar(args, total=state.max_steps, initial=state.global_step, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._take_time()
        new_steps, self._last_step = state.global_step - self._last_step, state.global_step
        self._steps += new_steps
        if self._bar is not None:
            self._bar.update(new_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs and self._steps:
            self._take_time()  # the loss was fetched from the device, and so its work is done
            batch_size = state.train_batch_size or args.train_batch_size
            clips = self._steps * batch_size * args.gradient_accumulation_steps * args.world_size
            logs["clips_per_second"] = round(clips / max(self._seconds, 1e-9), 2)
            if state.log_history:
                state.log_history[-1]["clips_per_second"] = logs["clips_per_second"]
            self._steps, self._seconds = 0, 0.0
        if state.is_world_process_zero:
            self._show(state, logs)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or not hasattr(eval_dataloader, "__len__"):
            return
        if self._evaluation_bar is None:
            self._evaluation_bar = _make_bar(args, total=len(eval_dataloader), unit="batch", leave=False)
        self._evaluation_bar.update()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._close_evaluation_bar()
        self._mark = time.monotonic()  # what came between is not training

    def on_predict(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._close_evaluation_bar()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark = time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def _take_time(self) -> None:
        now = time.monotonic()
        self._seconds, self._mark = self._seconds + now - self._mark, now

    def _show(self, state: Any, logs: Mapping[str, Any]) -> None:
        has_bar = self._bar is not None and not self._bar.disable
        if self._bar is not None and "loss" in logs:
            shown = {name: logs[name] for name in ("loss", "learning_rate", "clips_per_second") if name in logs}
            self._bar.set_postfix_str(", ".join(_spoken(name, value) for name, value in shown.items()))
        if has_bar and sys.stdout.isatty() and "loss" in logs:
            return  # the bar has said it
        line = log_line(logs, state.global_step, state.max_steps, self._seconds_left(state))
        with tqdm.external_write_mode(sys.stdout):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    def _seconds_left(self, state: Any) -> float | None:
        done, left = state.global_step - self._first_step, state.max_steps - state.global_step
        return None if done <= 0 or left <= 0 else (time.monotonic() - self._started) / done * left

    def _close_evaluation_bar(self) -> None:
        if self._evaluation_bar is not None:
            self._evaluation_bar.close()
        self._evaluation_bar = None


def _make_bar(args: Any, **settings: Any) -> tqdm:
    # None: only on a terminal.
    return tqdm(disable=True if args.disable_tqdm else None, dynamic_ncols=True, **settings)


def log_line(logs: Mapping[str, Any], step: int, max_steps: int, seconds_left: float | None = None) -> str:
    """What was logged, as a line to read: `step 30/90  epoch 1.00  loss 0.0231  412 clips/s  0:01:23 left`."""
    parts = [f"step {step}/{max_steps}"] if max_steps > 0 else []
    if "epoch" in logs and max_steps > 0:
        parts.append(f"epoch {logs['epoch']:.2f}")
    parts += [_spoken(name, value) for name, value in logs.items() if not _is_bookkeeping(name)]
    if seconds_left is not None:
        parts.append(f"{timedelta(seconds=round(seconds_left))} left")
    return "  ".join(parts)


def _is_bookkeeping(name: str) -> bool:
    if name in ("epoch", "step", "total_flos"):
        return True
    endings = ("_samples_per_second", "_steps_per_second", "_preparation_time", "_counted", "_skipped")
    return name.endswith(endings) or (name.endswith("_runtime") and name != "train_runtime")


def _spoken(name: str, value: Any) -> str:
    if name == "clips_per_second":
        return f"{value:.4g} clips/s"
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


# ── learning curves ───────────────────────────────────────────────────────────────────────────────────────────────────


class Curve(NamedTuple):
    """One logged value over the epochs."""

    epochs: np.ndarray
    values: np.ndarray


class CurvesCallback(TrainerCallback):
    """Keeps `curves.png` in a folder up to date, at every evaluation and at the end; a resumed run draws all of it."""

    def __init__(self, output_dir: PathLike, file_name: str = "curves.png") -> None:
        self.path = Path(output_dir) / file_name
        self._has_failed = False

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._draw(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._draw(state)

    def _draw(self, state: Any) -> None:
        if self._has_failed or not state.is_world_process_zero or not read_curves(state.log_history):
            return
        try:
            draw_learning_curves(self.path, state.log_history)
        except (ImportError, OSError) as error:  # no picture is worth a run
            self._has_failed = True
            remedy = ' Install it: pip install "modeling-htsat[plot]".' if isinstance(error, ImportError) else ""
            logger.warning("%s is not drawn: %s.%s", self.path.name, str(error).rstrip("."), remedy)


GREEN, PURPLE, GREY = "#009E73", "#CC79A7", "0.35"  # of Okabe and Ito too, as the colours of `plotting`
PANELS_PER_ROW, MAX_METRICS = 4, 16
ROW_INCHES = 2.1
MIN_POINTS_TO_SMOOTH, MAX_POINTS_TO_MARK = 40, 40
LOG_SCALE_FROM = 8.0  # times that the highest loss is above the lowest
MAX_TITLE_CHARACTERS = 22
SHORT_NAMES = {"mean_average_precision": "mAP", "d_prime": "d'"}
WORDS = {"f1": "F1", "auc": "AUC", "map": "mAP", "psds": "PSDS", "eer": "EER"}


def draw_learning_curves(path: PathLike, log_history: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
    """Draw `trainer.state.log_history`: losses, learning rate, speed, and every metric of the evaluations.

    The picture is a PNG, SVG or PDF, by the suffix of `path`, and appears whole or not at all.
    """
    import matplotlib.style

    from .. import plotting

    curves = read_curves(log_history)
    losses = {name: curve for name, curve in curves.items() if name == "loss" or _is_evaluation_loss(name)}
    metrics = [name for name in curves if name.startswith("eval_") and name not in losses]
    with matplotlib.style.context(["default", plotting._style()]):
        figure, panels = _make_panels(len(metrics[:MAX_METRICS]))
        _draw_losses(panels[0], losses)
        _draw_usual(panels[1], "learning rate", curves.get("learning_rate"), "last")
        _draw_usual(panels[2], "clips per second", curves.get("clips_per_second"), "median")
        for panel, name in zip(panels[3:], metrics, strict=False):
            _draw_metric(panel, name, curves[name])
        _finish_panels(panels, curves)
        hidden = len(metrics) - MAX_METRICS
        note = f"{hidden} more metrics are in trainer_state.json" if hidden > 0 else ""
        if title or note:
            figure.suptitle(" · ".join(filter(None, [title, note])), fontsize=11)
    plotting._save_atomically(figure, Path(path))


def read_curves(log_history: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """Every logged number by its name, over epochs; what is not finite leaves a gap, bookkeeping is left out."""
    points: dict[str, list[tuple[float, float]]] = {}
    for entry in log_history:
        epoch = entry.get("epoch", entry.get("step", 0))
        for name, value in entry.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if is_number and not _is_bookkeeping(name) and not name.startswith("train_"):
                points.setdefault(name, []).append((epoch, value if math.isfinite(value) else math.nan))
    arrays = {name: np.asarray(pairs, dtype=float) for name, pairs in points.items()}
    return {name: Curve(array[:, 0], array[:, 1]) for name, array in arrays.items() if np.isfinite(array[:, 1]).any()}


def _is_evaluation_loss(name: str) -> bool:
    return name.startswith("eval_") and name.endswith("loss")


def _make_panels(num_metrics: int) -> "tuple[Figure, list[Axes]]":
    """Losses over two columns, learning rate and speed beside them, and a row for every four metrics."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from .. import plotting

    num_rows = 1 + -(-num_metrics // PANELS_PER_ROW)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    size = (plotting.WIDTH_INCHES, num_rows * ROW_INCHES + 0.3)
    figure = Figure(size, dpi=plotting.DOTS_PER_INCH, layout=layout)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(num_rows, PANELS_PER_ROW)
    places = [grid[0, :2], grid[0, 2], grid[0, 3]]
    places += [grid[1 + number // PANELS_PER_ROW, number % PANELS_PER_ROW] for number in range(num_metrics)]
    return figure, [figure.add_subplot(place) for place in places]


def _draw_losses(panel: "Axes", losses: Mapping[str, Curve]) -> None:
    from .. import plotting

    panel.set_title("loss", loc="left", weight="bold")
    colours = itertools.cycle([plotting.VERMILION, GREEN, PURPLE])
    for name, curve in losses.items():
        if name == "loss" and len(curve.values) >= MIN_POINTS_TO_SMOOTH:
            panel.plot(*curve, color=plotting.SKY_BLUE, linewidth=0.7, alpha=0.6)
            panel.plot(curve.epochs, _smoothed(curve.values), color=plotting.BLUE, label="training, smoothed")
        elif name == "loss":
            panel.plot(*curve, color=plotting.BLUE, label="training", **_marks(curve))
        else:
            part = name.removeprefix("eval_").removesuffix("loss").strip("_")
            label = f"evaluation: {part}" if part else "evaluation"
            panel.plot(*curve, color=next(colours), label=label, **_marks(curve))
    values = np.concatenate([curve.values for curve in losses.values()] or [np.ones(1)])
    if np.nanmin(values) > 0 and np.nanmax(values) > LOG_SCALE_FROM * np.nanmin(values):
        panel.set_yscale("log")
    if losses:
        panel.legend(frameon=False, loc="upper right")


def _draw_usual(panel: "Axes", title: str, curve: Curve | None, what: str) -> None:
    panel.set_title(title, loc="left", weight="bold")
    if curve is None:
        panel.set_visible(False)
        return
    panel.plot(*curve, color=GREY, **_marks(curve))
    panel.set_ylim(bottom=0)
    known = curve.values[np.isfinite(curve.values)]
    _note(panel, f"{what} {known[-1] if what == 'last' else statistics.median(known):.3g}")


def _draw_metric(panel: "Axes", name: str, curve: Curve) -> None:
    from .. import plotting

    name = name.removeprefix("eval_")
    title = SHORT_NAMES.get(name, " ".join(WORDS.get(word, word) for word in name.split("_")))
    shortened = title if len(title) <= MAX_TITLE_CHARACTERS else title[: MAX_TITLE_CHARACTERS - 1] + "…"
    panel.set_title(shortened, loc="left", weight="bold")
    panel.plot(*curve, color=plotting.VERMILION, **_marks(curve))
    best = int(np.nanargmin(curve.values) if "eer" in name.split("_") else np.nanargmax(curve.values))
    ring: dict[str, Any] = {"marker": "o", "markersize": 7, "fillstyle": "none", "clip_on": False}
    panel.plot(curve.epochs[best], curve.values[best], color=plotting.VERMILION, **ring)
    _note(panel, f"best {curve.values[best]:.4g}")


def _note(panel: "Axes", text: str) -> None:
    panel.set_title(text, loc="right", fontsize=8.5, color=GREY)


def _marks(curve: Curve) -> dict[str, Any]:
    """Points where there are few, so that even one is seen."""
    if len(curve.values) <= MAX_POINTS_TO_MARK:
        return {"marker": "o", "markersize": 3, "linewidth": 1.3}
    return {"linewidth": 1.3 if len(curve.values) < 1000 else 0.8}


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Mean over the fortieth of the run around each point, that neither lags behind nor leans towards the ends."""
    window = np.ones(2 * (len(values) // 80) + 3)
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0), window, mode="same")
    count = np.convolve(known, window, mode="same")
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _finish_panels(panels: "Sequence[Axes]", curves: Mapping[str, Curve]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    end = max((curve.epochs[-1] for curve in curves.values()), default=1)
    for panel in panels:
        panel.set_xlim(0, max(end, 1e-3) * 1.01)
        panel.set_xlabel("epoch")
        panel.grid(color="0.9", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        is_log = panel.get_yscale() == "log"
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5)) if is_log else MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
        )
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


# ── results ───────────────────────────────────────────────────────────────────────────────────────────────────────────

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy", "soundfile")


def write_results(
    path: PathLike,
    metrics: Mapping[str, Any],
    *,
    data: Mapping[str, Any],
    arguments: Mapping[str, Any] | Sequence[Any],
    seed: int | None,
    model: str | Sequence[str],
    started: float,
    **more: Any,
) -> dict[str, Any]:
    """Write `results.json`: the scores, and all that is needed to judge and to repeat them. Returns what it holds.

    Args:
        metrics: By name; a score of `event_metrics` brings its criterion along.
        data: What was learnt from: kind, sizes of the splits, number of labels, clips that were skipped, ...
        arguments: A dictionary, or the dataclasses of `parse_recipe`. Secrets are left out, and of paths outside of the
            working directory everything but the last name.
        started: `time.time()` when the run began.
        more: Further entries, such as the recipe's name.
    """
    finished = time.time()
    results = {
        "metrics": metrics,
        "model": model,
        "seed": seed,
        "data": data,
        **more,
        "date": datetime.fromtimestamp(finished, timezone.utc).isoformat(timespec="seconds"),
        "duration_seconds": round(finished - started, 1),
        "command": _command_line(),
        **_commit(),
        "versions": _versions(),
        "hardware": _hardware(),
        "arguments": _all_values(arguments),
    }
    readable = for_json(results)
    write_whole(Path(path), lambda file: file.write(json.dumps(readable, indent=2, ensure_ascii=False) + "\n"))
    return readable


def _all_values(arguments: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    if isinstance(arguments, Mapping):
        values = dict(arguments)
    else:
        values = {each.name: getattr(instance, each.name) for instance in arguments for each in fields(instance)}
    return {name: value for name, value in values.items() if not name.endswith("_token")}


def for_json(value: Any) -> Any:
    """Numbers of numpy and torch as Python's, what is not finite as null, paths without the machine."""
    if isinstance(value, Enum):
        return for_json(value.value)
    if isinstance(value, Mapping):
        return {str(key): for_json(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(for_json, value), key=str)
    if isinstance(value, (list, tuple)):
        return [for_json(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return for_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    if is_dataclass(value) or hasattr(value, "to_dict"):
        return for_json(value.to_dict() if hasattr(value, "to_dict") else vars(value))
    return _without_machine(str(value))


def _without_machine(text: str) -> str:
    """A path relative to the working directory, or else its last name: folders of a machine are nobody's business."""
    # AudioSet's /m/09x0r is no path: no machine has a folder /m.
    if not os.path.isabs(text) or not os.path.isdir(os.path.join(os.sep, *Path(text).parts[:2])):
        return text
    inside = os.path.relpath(text)
    return inside if not inside.startswith(os.pardir) else os.path.basename(os.path.normpath(text))


def _command_line() -> str:
    words, hide_next = ["python"], False
    for word in sys.argv:
        flag, equals, value = word.partition("=")
        is_flag = flag.startswith("--")
        if hide_next or (is_flag and equals and flag.endswith(("_token", "-token"))):
            words.append("..." if hide_next else f"{flag}=...")
        else:
            words.append(f"{flag}={_without_machine(value)}" if is_flag and equals else _without_machine(word))
        hide_next = is_flag and not equals and flag.endswith(("_token", "-token"))
    return shlex.join(words)


def _commit() -> dict[str, Any]:
    """The commit of this very file, where it stands in a checkout."""
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        commit, changes = _git(here.parent, "rev-parse", "HEAD"), _git(here.parent, "status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "has_uncommitted_changes": bool(changes)}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "modeling_htsat": VERSION}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found | {"torch": str(torch.__version__)}  # its build too, such as +cu130, which metadata of PyPI leave out


def _hardware() -> dict[str, Any]:
    has_affinity = hasattr(os, "sched_getaffinity")  # on Linux: the cores that this process may use
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "system": platform.system(),
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        models = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if models:
            return models[0]
    return platform.processor() or platform.machine()


def format_results_table(metrics: Mapping[str, Any]) -> str:
    """The scores as text in two columns, with the criteria of those that have one below."""
    # What is undefined is null in results.json, and comes from there as None.
    rows = {name: math.nan if value is None else headline(value) for name, value in metrics.items()}
    shown = {name: value for name, value in rows.items() if isinstance(value, (int, float, str))}
    width = max(map(len, shown), default=0)
    texts = {name: _figure(value) for name, value in shown.items()}
    longest = max(map(len, texts.values()), default=0)
    lines = [f"{name.ljust(width)}  {text.rjust(longest)}" for name, text in texts.items()]
    scores = {name: value for name, value in metrics.items() if isinstance(value, Mapping)}
    notes = [f"{name}: {score['criterion']}" for name, score in scores.items() if "criterion" in score]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def headline(value: Any) -> Any:
    """The one number of a score of `event_metrics`."""
    if isinstance(value, Mapping):
        return next((value[name] for name in ("macro", "psds") if name in value), None)
    return value.item() if isinstance(value, (np.generic, torch.Tensor)) and value.ndim == 0 else value


def _figure(value: float | str) -> str:
    if isinstance(value, float):
        return "undefined" if math.isnan(value) else f"{value:.4f}"
    return str(value)


# ── what can be written, and what was ─────────────────────────────────────────────────────────────────────────────────


class OutputError(OSError):
    """What cannot be written, and what to do, in one sentence."""


def refuse_unwritable(output_dir: PathLike, needed_bytes: int = 0) -> None:
    """Find out before the training whether its output folder can be made, takes a file, and has space."""
    folder = Path(output_dir)
    probe = folder / f".{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(probe, "xb") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        text = f"The output folder {folder} cannot be written: {reason}; name another as output_dir."
        raise OutputError(text) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    if free < needed_bytes:
        raise OutputError(
            f"The disk of {folder} has {free / 1e9:.1f} GB free, and this run may need {needed_bytes / 1e9:.1f} GB; "
            "free some space, or name another output_dir."
        )


@contextlib.contextmanager
def checkpoint_errors(output_dir: PathLike) -> Iterator[None]:
    """Around what writes checkpoints: a full disk becomes one sentence, and what was half written is removed."""
    before = set(_checkpoints(output_dir))
    try:
        yield
    except Exception as error:
        reason = _why_not_written(error, output_dir)
        if reason is None:
            raise
        broken = [path for path in _checkpoints(output_dir) if path not in before and checkpoint_problem(path)]
        what = str(broken[-1]) if broken else f"A checkpoint in {output_dir}"
        for path in broken:
            shutil.rmtree(path, ignore_errors=True)
        last = last_whole_checkpoint(output_dir, move_aside=False)
        after = f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint to go on from"
        raise OutputError(
            f"{what} could not be written: {reason}; {after}; free some space and start the same command again."
        ) from error


def _why_not_written(error: BaseException, output_dir: PathLike) -> str | None:
    """The reason if it is a full disk, None for all other errors."""
    reasons = {
        errno.ENOSPC: f"no space left on the disk of {output_dir}",
        errno.EDQUOT: f"the quota on the disk of {output_dir} is used up",
        errno.EFBIG: f"the disk of {output_dir} takes no file as large",
    }
    return {os.strerror(number): reason for number, reason in reasons.items()}.get(no_room(error) or "")


def last_whole_checkpoint(output_dir: PathLike, move_aside: bool = True) -> str | None:
    """The newest checkpoint that training can go on from, or None.

    Incomplete ones, which a crash or a full disk left behind, are renamed to `incomplete-checkpoint-N`, so that Trainer
    does not take them for whole. With several processes, let the main one call this first.
    """
    for path in reversed(_checkpoints(output_dir)):
        problem = checkpoint_problem(path)
        if problem is None:
            return str(path)
        if problem.is_by_intention:
            logger.warning("%s is not gone on from: %s.", path, problem.text)
        elif move_aside:
            aside = path.with_name(f"incomplete-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                path.rename(aside)
                logger.warning("%s is incomplete (%s); it is now %s.", path, problem.text, aside.name)
    return None


class Problem(NamedTuple):
    """Why a checkpoint cannot be gone on from."""

    text: str
    is_by_intention: bool = False  # whole, but saved with `save_only_model`


def checkpoint_problem(checkpoint: PathLike) -> Problem | None:
    """What is missing or cut short in a checkpoint of Trainer; None if it is whole.

    Trainer writes model, optimizer, scheduler, random states and, last of all, `trainer_state.json`.
    """
    folder = Path(checkpoint)
    names = {path.name for path in folder.iterdir() if path.is_file()}
    for name in ("config.json", "trainer_state.json"):
        if name not in names:
            return Problem(f"{name} is missing")
    if not any(re.fullmatch(r"model.*\.safetensors|pytorch_model.*\.bin", name) for name in names):
        return Problem("the model is missing")
    for name in sorted(names):
        if not _is_complete(folder / name):
            return Problem(f"{name} is cut short")
    return _training_problem(folder, names)


def _training_problem(folder: Path, names: set[str]) -> Problem | None:
    needed = {"optimizer.bin" if "optimizer.bin" in names else "optimizer.pt", "scheduler.pt"}  # FSDP writes .bin
    ranks = sorted(int(name[10:-4]) for name in names if re.fullmatch(r"rng_state_\d+\.pth", name))
    if not needed & names and not ranks and "rng_state.pth" not in names:
        return Problem("only the model was saved", is_by_intention=True)
    if not needed <= names:
        return Problem(f"{', '.join(sorted(needed - names))} missing")
    if "rng_state.pth" not in names and (not ranks or ranks != list(range(len(ranks)))):
        return Problem("random states are missing")
    return None


def _is_complete(path: Path) -> bool:
    try:
        if path.suffix == ".safetensors":
            return _is_complete_safetensors(path)
        if path.suffix in (".pt", ".pth", ".bin"):
            with zipfile.ZipFile(path) as archive:  # its table of contents stands at the end
                return bool(archive.namelist())
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return True


def _is_complete_safetensors(path: Path) -> bool:
    """Eight bytes for the length of the header, the header, and the tensors up to the end of the last."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return False
        header = json.loads(file.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return path.stat().st_size == 8 + length + max(ends, default=0)


def _checkpoints(output_dir: PathLike) -> list[Path]:
    """The folders `checkpoint-N`, by N."""
    folder = Path(output_dir)
    found = folder.iterdir() if folder.is_dir() else iter(())
    named = [path for path in found if re.fullmatch(r"checkpoint-\d+", path.name) and path.is_dir()]
    return sorted(named, key=lambda path: int(path.name.partition("-")[2]))


__all__ = [
    "CurvesCallback",
    "OutputError",
    "SpeedCallback",
    "checkpoint_errors",
    "checkpoint_problem",
    "default_report_to",
    "draw_learning_curves",
    "format_results_table",
    "headline",
    "last_whole_checkpoint",
    "log_line",
    "read_curves",
    "refuse_unwritable",
    "report_progress",
    "write_results",
]
