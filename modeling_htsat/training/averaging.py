"""The mean of several checkpoints' weights, their moving average during training, and the command `htsat average`."""

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.modeling_utils import unwrap_model
from transformers.trainer_callback import ExportableState
from transformers.utils import CONFIG_NAME, FEATURE_EXTRACTOR_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from ..whole_htsat import whole_file, whole_folder

logger = logging.get_logger(__name__)

TRAINER_STATE_FILE = "trainer_state.json"
EMA_FILE = "ema.safetensors"
# What may differ between the configurations of checkpoints of one model.
NOT_THE_MODEL = ("transformers_version", "use_cache", "event_decoding")


# ── the mean of checkpoints ───────────────────────────────────────────────────────────────────────────────────────────


def average_checkpoints(folders: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> None:
    """Write a model folder with the mean of the weights of these: whole or not at all.

    Means are taken in float64, one tensor at a time, batch norm's running statistics among them; integers, such as the
    number of batches that these saw, come from the last. Thresholds that were tuned for the checkpoints
    (`event_decoding`) are kept where they all have the same.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise ValueError("No checkpoint was given; at least one is needed.")
    config = _common_config(paths)
    extractor = _common_extractor(paths)
    with ExitStack() as stack:
        checkpoints = [_OpenWeights(path, stack) for path in paths]
        for checkpoint in checkpoints[1:]:
            _check_same_tensors(checkpoints[0], checkpoint)
        folder = stack.enter_context(whole_folder(output))
        names = tqdm(checkpoints[-1].files, unit="tensor", desc="averaging", disable=None)
        save_torch_state_dict({name: _mean_tensor(checkpoints, name) for name in names}, folder)
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        shutil.copyfile(extractor, folder / FEATURE_EXTRACTOR_NAME)


class _OpenWeights:
    """The tensors of one checkpoint, in one file or in several, each read when it is asked for."""

    def __init__(self, folder: Path, stack: ExitStack):
        self.folder = folder
        self.files: dict[str, Any] = {}
        for path in _weight_files(folder):
            try:
                file = stack.enter_context(safe_open(path, "pt"))
            except SafetensorError as error:
                raise ValueError(f"{path} is no whole safetensors file ({error}); leave it out.") from error
            self.files |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.files[name].get_tensor(name)

    def form(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Type and shape of a tensor, unread."""
        tensor = self.files[name].get_slice(name)
        return tensor.get_dtype(), tuple(tensor.get_shape())


def _weight_files(folder: Path) -> list[Path]:
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    names = [SAFE_WEIGHTS_NAME]
    if not (folder / SAFE_WEIGHTS_NAME).is_file() and index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; a checkpoint that was saved with safetensors is needed.")
    return [folder / name for name in names]


def _mean_tensor(checkpoints: Sequence[_OpenWeights], name: str) -> torch.Tensor:
    last = checkpoints[-1][name]
    if not last.is_floating_point():
        return last
    total = torch.zeros(last.shape, dtype=torch.float64)
    for checkpoint in checkpoints:
        total += checkpoint[name]
    return (total / len(checkpoints)).to(last.dtype)


def _check_same_tensors(first: _OpenWeights, other: _OpenWeights):
    if strangers := sorted(first.files.keys() ^ other.files.keys()):
        has, lacks = (first, other) if strangers[0] in first.files else (other, first)
        raise ValueError(f"{has.folder} has weights {strangers[0]} and {lacks.folder} has not; average one model's.")
    for name in first.files:
        if first.form(name) != other.form(name):
            ours, theirs = first.form(name), other.form(name)
            raise ValueError(
                f"{name} is {ours[0]} of shape {ours[1]} in {first.folder} and {theirs[0]} of shape {theirs[1]} in "
                f"{other.folder}; average checkpoints of one model."
            )


def _common_config(folders: Sequence[Path]) -> dict[str, Any]:
    configs = [_read_json(folder / CONFIG_NAME) for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        for name in sorted({*configs[0], *config} - set(NOT_THE_MODEL)):
            if config.get(name) != configs[0].get(name):
                raise ValueError(
                    f"`{name}` differs between the configurations of {folders[0]} and {folder}; average checkpoints of "
                    "one model, trained for the same labels."
                )
    common = dict(configs[-1])
    if any(config.get("event_decoding") != common.get("event_decoding") for config in configs):
        common["event_decoding"] = None
    return common


def _common_extractor(folders: Sequence[Path]) -> Path:
    paths = [folder / FEATURE_EXTRACTOR_NAME for folder in folders]
    for path in paths:
        if _read_json(path) != _read_json(paths[0]):
            raise ValueError(f"{path} differs from {paths[0]}; average checkpoints that hear the same spectrogram.")
    return paths[-1]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        remedy = "; Trainer saves it where `processing_class` is the feature extractor"
        remedy = remedy if path.name == FEATURE_EXTRACTOR_NAME else ""
        raise ValueError(f"{path.parent} is no whole model folder: it has no {path.name}{remedy}.") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error


# ── the best checkpoints of a run ─────────────────────────────────────────────────────────────────────────────────────


class ScoredCheckpoint(NamedTuple):
    folder: Path
    step: int
    metric: str  # with its prefix, `eval_mAP`
    value: float


def average_best(
    run_dir: str | os.PathLike[str],
    count: int,
    output: str | os.PathLike[str],
    metric: str | None = None,
    greater_is_better: bool | None = None,
) -> list[ScoredCheckpoint]:
    """The paper's weight averaging: the mean of the best checkpoints of a Trainer run; returns them, best first.

    The run must have kept them: train with `save_total_limit=None`. Arguments as in `best_checkpoints`.
    """
    best = best_checkpoints(run_dir, count, metric, greater_is_better)
    # In the order of training, so that integers come from the latest.
    average_checkpoints([checkpoint.folder for checkpoint in sorted(best, key=lambda one: one.step)], output)
    return best


def best_checkpoints(
    run_dir: str | os.PathLike[str], count: int, metric: str | None = None, greater_is_better: bool | None = None
) -> list[ScoredCheckpoint]:
    """The `count` best checkpoints of a Trainer run, best first; of equal ones the later.

    Args:
        metric: what `evaluate` returned at each checkpoint's step; by default the run's `metric_for_best_model`.
        greater_is_better: by default True unless the metric's name ends in "loss", as Trainer takes it.
    """
    run_dir = Path(run_dir)
    if count < 1:
        raise ValueError(f"{count} checkpoints are to be averaged; at least one is needed.")
    states = _trainer_states(run_dir)
    name = _metric_of_run(run_dir, states) if metric is None else f"eval_{metric.removeprefix('eval_')}"
    scored = [
        ScoredCheckpoint(run_dir / f"checkpoint-{step}", step, name, float(entry[name]))
        for step, state in states.items()
        for entry in state["log_history"]
        if entry.get("step") == step and name in entry
    ]
    scored = list({checkpoint.step: checkpoint for checkpoint in scored}.values())  # the last word on each
    if len(scored) < count:
        raise ValueError(
            f"{run_dir} has {len(scored)} checkpoints with {name}, and the best {count} are asked for. A run must keep "
            "them (`save_total_limit=None`) and evaluate where it saves (`eval_strategy` the same as `save_strategy`)."
        )
    if greater_is_better is None:
        greater_is_better = not name.endswith("loss")
    sign = 1 if greater_is_better else -1
    return sorted(scored, key=lambda checkpoint: (sign * checkpoint.value, checkpoint.step), reverse=True)[:count]


def _trainer_states(run_dir: Path) -> dict[int, dict[str, Any]]:
    """What Trainer noted in every complete checkpoint of a run, by step."""
    states = {}
    for folder in run_dir.glob("checkpoint-*"):
        step = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if step and (folder / TRAINER_STATE_FILE).is_file():
            states[int(step[1])] = _read_json(folder / TRAINER_STATE_FILE)
    if not states:
        raise ValueError(f"{run_dir} holds no checkpoint of a Trainer; name the folder with `checkpoint-...` inside.")
    return dict(sorted(states.items()))


def _metric_of_run(run_dir: Path, states: dict[int, dict[str, Any]]) -> str:
    """The metric that chose the run's best model: Trainer notes its value and step, so it is found by these."""
    latest = states[max(states)]
    best, step = latest.get("best_metric"), latest.get("best_global_step")
    names = {
        name
        for entry in latest["log_history"]
        if best is not None and entry.get("step") == step
        for name, value in entry.items()
        if name.startswith("eval_") and value == best
    }
    if len(names) != 1:
        known = sorted({name for entry in latest["log_history"] for name in entry if name.startswith("eval_")})
        raise ValueError(
            f"{run_dir} does not say which metric chose its best model; name one of "
            f"{', '.join(known) or 'those that it was evaluated with, of which it has none'}."
        )
    return names.pop()


# ── a moving average during training ──────────────────────────────────────────────────────────────────────────────────


class EMACallback(TrainerCallback, ExportableState):
    """Keeps an exponential moving average of a model's weights beside Trainer, and in its checkpoints.

    After every optimizer step, `average = decay * average + (1 - decay) * weights`, in float32; the running statistics
    of batch norm are averaged with the weights that they belong to, and integers copied. Every process keeps it, and
    the first writes its own to `checkpoint-N/ema.safetensors` before Trainer notes that the checkpoint is complete. A
    run that is resumed goes on from there, and ends with the same average to the last bit.

        ema = EMACallback(decay=0.9995)
        trainer = Trainer(model, arguments, callbacks=[ema], ...)
        trainer.train()
        with ema.applied(model):
            print(trainer.evaluate())
        ema.save(model, "averaged", feature_extractor)

    Args:
        decay: the share of the average that stays at every step.
        warm_up: let the decay grow from 2/11 as (1 + t) / (10 + t) with the number of steps t, so that the first
            weights are soon forgotten.
        resume_from: the checkpoint that is resumed from, where that is neither in `output_dir` nor named by
            `TrainingArguments(resume_from_checkpoint=...)`.
        start_anew: begin with the checkpoint's own weights where it has no average; otherwise that is an error.
    """

    def __init__(
        self,
        decay: float = 0.999,
        warm_up: bool = False,
        resume_from: str | os.PathLike[str] | None = None,
        start_anew: bool = False,
    ):
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` is {decay}; it must be at least 0 and below 1.")
        self.decay = decay
        self.warm_up = warm_up
        self.resume_from = None if resume_from is None else str(resume_from)
        self.start_anew = start_anew
        self.average: dict[str, torch.Tensor] | None = None
        self.num_updates = 0
        self._run: tuple[Any, Any] | None = None  # arguments and state of the training that is under way

    # ── what Trainer calls ─────────────────────────────────────────────────────────────────────────────────────────

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        # A launcher says so in the environment alone.
        launched = {os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() for name in ("FSDP", "DEEPSPEED")}
        if args.fsdp or args.deepspeed or "true" in launched:
            raise ValueError("A moving average needs whole weights in every process: train without FSDP or DeepSpeed.")
        if args.restore_callback_states_from_checkpoint:
            raise ValueError(
                "`restore_callback_states_from_checkpoint` puts another callback in the place of this one, which finds "
                "its average without it: leave it off."
            )
        self._run = None
        if state.global_step == 0:
            self.begin(model)
        else:
            self._resume(args, state.global_step, model)
        # A checkpoint of a run without this callback lacks its entry, and then Trainer cannot save the next one.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self._run = (args, state)

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        self.update(model)

    def state(self) -> dict[str, Any]:
        """What goes into `trainer_state.json`. Trainer asks while it saves, as the last before that file is written:
        the moment to write the average, so that no checkpoint looks complete without it."""
        if self._run is not None:
            args, state = self._run
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if args.should_save and folder.is_dir():
                self.write(folder / EMA_FILE)
        names = ("decay", "warm_up", "resume_from", "start_anew")
        return {"args": {name: getattr(self, name) for name in names}, "attributes": {}}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._run = None

    def _resume(self, args: Any, step: int, model: nn.Module):
        folder = self._resumed_folder(args, step)
        if (folder / EMA_FILE).is_file():
            return self.read(folder / EMA_FILE, model)
        problem = f"{folder} has no {EMA_FILE}: it was saved without a moving average"
        if not self.start_anew:
            raise ValueError(
                f"{problem}. Resume from another one, or begin with its weights: `EMACallback(start_anew=True)`."
            )
        logger.warning(f"{problem}; a new one begins with its weights.")
        return self.begin(model)

    def _resumed_folder(self, args: Any, step: int) -> Path:
        """Where the checkpoint is that Trainer resumed from, which it does not say: the one that is at this step."""
        for name in (self.resume_from, args.resume_from_checkpoint, Path(args.output_dir) / f"checkpoint-{step}"):
            notes = Path(str(name)) / TRAINER_STATE_FILE
            if notes.is_file() and _read_json(notes).get("global_step") == step:
                return notes.parent
        raise ValueError(
            f"Training resumes at step {step}, and no checkpoint of that step is in {args.output_dir}, with its "
            "moving average. Name its folder with `EMACallback(resume_from=...)`."
        )

    # ── the average ────────────────────────────────────────────────────────────────────────────────────────────────

    @torch.no_grad()
    def begin(self, model: nn.Module) -> None:
        """Start with these weights."""
        self.average = {name: _wide(values).clone() for name, values in _values_of(model)}
        self.num_updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards these weights."""
        average = self._begun()
        self.num_updates += 1
        grown = (1 + self.num_updates) / (10 + self.num_updates)
        decay = min(self.decay, grown) if self.warm_up else self.decay
        for name, values in _values_of(model):
            if values.is_floating_point():
                average[name].lerp_(values.to(average[name]), 1 - decay)
            else:
                average[name].copy_(values)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averaged weights; afterwards, its own again."""
        average = self._begun()
        own = {name: values.clone() for name, values in _values_of(model)}
        try:
            _assign(model, average)
            yield
        finally:
            _assign(model, own)

    def save(self, model: Any, folder: str | os.PathLike[str], feature_extractor: Any) -> None:
        """Write a model folder with the averaged weights, whole or not at all. Call it in one process alone."""
        with whole_folder(folder) as temporary, self.applied(model):
            unwrap_model(model).save_pretrained(temporary)
            feature_extractor.save_pretrained(temporary)

    def write(self, path: str | os.PathLike[str]) -> None:
        """The average as a safetensors file, whole or not at all."""
        metadata = {"format": "pt", "num_updates": str(self.num_updates)}
        with whole_file(path) as temporary:
            save_file({name: values.contiguous() for name, values in self._begun().items()}, temporary, metadata)

    def read(self, path: str | os.PathLike[str], model: nn.Module) -> None:
        """Go on with the average that `write` wrote for this model."""
        try:
            found = load_file(path)
            with safe_open(path, "pt") as file:
                num_updates = int(file.metadata()["num_updates"])
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no moving average, or was cut: resume from another checkpoint.") from error
        expected = {name: values.shape for name, values in _values_of(model)}
        if {name: values.shape for name, values in found.items()} != expected:
            raise ValueError(f"{path} is the moving average of another model; resume from a checkpoint of this one.")
        self.average = {name: found[name].to(values.device) for name, values in _values_of(model)}
        self.num_updates = num_updates

    def _begun(self) -> dict[str, torch.Tensor]:
        if self.average is None:
            raise RuntimeError("The moving average has seen no weights yet: train with it, or `begin` or `read` first.")
        return self.average


def _values_of(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and saved buffers, without the wrappers that several processes or compilation add."""
    return ((name, values.detach()) for name, values in unwrap_model(model).state_dict().items())


def _wide(values: torch.Tensor) -> torch.Tensor:
    """In bfloat16, a step of a thousandth towards the weights would be rounded away."""
    return values.float() if values.is_floating_point() else values


@torch.no_grad()
def _assign(model: nn.Module, values: dict[str, torch.Tensor]):
    for name, target in _values_of(model):
        target.copy_(values[name])


# ── the command line ──────────────────────────────────────────────────────────────────────────────────────────────────


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `htsat average` understands; `run` does it."""
    add = parser.add_argument
    add("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="model folders; with --best, that of one run")
    add("--output", required=True, type=Path, metavar="DIR", help="the folder to make; must not exist, or be empty")
    add("--best", type=int, metavar="N", help="average the N best checkpoints of the run")
    add("--metric", metavar="NAME", help="what is best by, as `mAP` (default: what chose the run's best model)")
    add(
        "--greater-is-better",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="how to read the metric (default: yes, unless its name ends in `loss`)",
    )


def run(options: argparse.Namespace) -> int:
    """Average what the command line names, and say what it was."""
    if options.best is None:
        if options.metric is not None or options.greater_is_better is not None:
            raise ValueError("--metric and --greater-is-better choose among the checkpoints of a run: add --best N.")
        average_checkpoints(options.checkpoints, options.output)
        chosen = [str(folder) for folder in options.checkpoints]
    else:
        if len(options.checkpoints) != 1:
            raise ValueError(f"--best chooses among the checkpoints of one run, and {len(options.checkpoints)} came.")
        best = average_best(
            options.checkpoints[0], options.best, options.output, options.metric, options.greater_is_better
        )
        chosen = [f"{checkpoint.folder}\t{checkpoint.metric}\t{checkpoint.value:.6g}" for checkpoint in best]
    sys.stdout.write("".join(f"{line}\n" for line in chosen))
    sys.stdout.write(f"{options.output}: the mean of {len(chosen)} checkpoint{'s' * (len(chosen) > 1)}\n")
    return 0


__all__ = ["EMACallback", "ScoredCheckpoint", "average_best", "average_checkpoints", "best_checkpoints"]
