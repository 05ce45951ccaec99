"""What a run says: progress, curves, results, and what happens when its folder cannot be written."""

import errno
import io
import json
import logging
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import ProgressCallback, Trainer, TrainerState, TrainingArguments

from modeling_htsat import HTSATConfig, HTSATForAudioClassification
from modeling_htsat.training import reporting
from modeling_htsat.training.reporting import (
    CurvesCallback,
    OutputError,
    SpeedCallback,
    checkpoint_errors,
    checkpoint_problem,
    default_report_to,
    draw_learning_curves,
    format_results_table,
    last_whole_checkpoint,
    log_line,
    read_curves,
    refuse_unwritable,
    report_progress,
    write_results,
)


class Line(nn.Module):
    """The smallest model that learns."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, values, labels=None):
        found = self.layer(values[:, None])[:, 0]
        return {"loss": ((found - labels) ** 2).mean(), "logits": found}


@pytest.fixture
def make_trainer(tmp_path):
    """`make_trainer(max_steps=3)`: twelve clips, batches of two, a line of log for every step."""

    def make(callbacks=None, **values) -> Trainer:
        rows = [{"values": float(index), "labels": 2.0 * index} for index in range(12)]
        usual = {"per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no", "use_cpu": True}
        arguments = TrainingArguments(str(tmp_path / "out"), **{**usual, "learning_rate": 1e-3, **values})
        trainer = Trainer(Line(), arguments, train_dataset=rows, eval_dataset=rows[:4], callbacks=callbacks)
        report_progress(trainer)
        return trainer

    return make


# ── progress ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_piped_run_prints_a_line_for_every_log_and_no_bar(make_trainer, capsys):
    make_trainer(max_steps=3, eval_strategy="epoch", save_strategy="epoch").train()
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert "\r" not in printed.out + printed.err and "it/s" not in printed.err  # not even for saved files
    assert [line.split("  ")[0] for line in lines] == ["step 1/3", "step 2/3", "step 3/3", "step 3/3", "step 3/3"]
    assert all("loss " in line and "learning_rate " in line and " clips/s" in line for line in lines[:3])
    assert lines[0].endswith(" left") and "left" not in lines[2]
    assert "eval_loss " in lines[3] and "per_second" not in printed.out


def test_the_usual_reports_are_gone_and_ours_is_first(make_trainer):
    for is_disabled in (False, True):
        names = [type(each).__name__ for each in make_trainer(disable_tqdm=is_disabled).callback_handler.callbacks]
        assert names[0] == "SpeedCallback" and not {"ProgressCallback", "PrinterCallback"} & set(names)


def test_what_comes_later_sees_the_speed_and_so_does_the_history(make_trainer):
    seen = []

    class Later(ProgressCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    trainer = make_trainer(max_steps=2)
    trainer.add_callback(Later)
    trainer.train()
    speeds = [entry.get("clips_per_second") for entry in trainer.state.log_history]
    assert [entry.get("clips_per_second") for entry in seen] == speeds
    assert all(speed > 0 for speed in speeds[:2]) and speeds[2] is None  # the last line is not of one stretch of steps


def speed_of(monkeypatch, events, world_size=1, train_batch_size=4, accumulation=1):
    """The speed after events, each with the seconds that pass before it."""
    clock = [100.0]
    monkeypatch.setattr(reporting.time, "monotonic", lambda: clock[0])
    callback, state = SpeedCallback(), TrainerState(max_steps=9, is_world_process_zero=False)
    args = SimpleNamespace(
        train_batch_size=train_batch_size, gradient_accumulation_steps=accumulation, world_size=world_size
    )
    callback.on_train_begin(args, state, None)
    for event, seconds in events:
        clock[0] += seconds
        state.global_step += event == "on_step_end"
        getattr(callback, event)(args, state, None)
    logs = {"loss": 1.0}
    state.log_history.append(dict(logs))
    callback.on_log(args, state, None, logs=logs)
    assert state.log_history[-1] == logs
    return logs["clips_per_second"]


def test_clips_are_those_of_all_processes_and_of_all_accumulated_batches(monkeypatch):
    steps = [("on_step_end", 3.0), ("on_step_end", 1.0)]
    assert speed_of(monkeypatch, steps) == 2.0
    assert speed_of(monkeypatch, steps, world_size=3, accumulation=5, train_batch_size=2) == 15.0


def test_time_of_evaluations_and_of_saving_is_not_training(monkeypatch):
    events = [("on_step_end", 2.0), ("on_evaluate", 50.0), ("on_save", 9.0), ("on_step_end", 2.0)]
    assert speed_of(monkeypatch, events) == 2.0


def test_on_a_terminal_a_bar_shows_loss_rate_and_speed(make_trainer, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", "200")  # else a high speed is so many digits that the bar is cut off
    monkeypatch.setenv("LINES", "50")
    screen, out = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", out)
    make_trainer(max_steps=3, eval_strategy="epoch", disable_tqdm=False).train()
    assert "3/3" in screen.getvalue() and "clips/s" in screen.getvalue() and "learning_rate" in screen.getvalue()
    lines = [line for line in out.getvalue().splitlines() if "step" in line]
    assert len(lines) == 2 and "eval_loss" in lines[0] and "train_loss" in lines[1]  # the rest is in the bar
    quiet = Terminal()
    monkeypatch.setattr(sys, "stderr", quiet)
    make_trainer(max_steps=1, disable_tqdm=True).train()
    assert not quiet.getvalue() and "step 1/1" in out.getvalue()


def test_an_evaluation_without_training_is_a_line_too(make_trainer, capsys):
    make_trainer().evaluate()
    assert capsys.readouterr().out.startswith("eval_loss ")


def test_a_line_of_the_log_can_be_read():
    logs = {"loss": 0.0231456, "learning_rate": 3e-05, "clips_per_second": 412.34, "epoch": 1.0, "total_flos": 1e15}
    line = log_line(logs, 30, 90, 83.2)
    assert line == "step 30/90  epoch 1.00  loss 0.02315  learning_rate 3e-05  412.3 clips/s  0:01:23 left"


def test_tensorboard_is_used_where_it_is_installed(monkeypatch):
    for is_installed, expected in ((True, ["tensorboard"]), (False, [])):
        monkeypatch.setattr(reporting, "is_tensorboard_available", lambda is_installed=is_installed: is_installed)
        assert default_report_to() == expected


# ── learning curves ───────────────────────────────────────────────────────────────────────────────────────────────────


def some_history(epochs=3, steps=4):
    entries = []
    for step in range(1, epochs * steps + 1):
        epoch = step / steps
        speed = {} if step == 1 else {"clips_per_second": 400 + step}
        entries.append({"loss": 1 / step, "learning_rate": 1e-4 / step, "epoch": epoch, "step": step, **speed})
        if step % steps == 0:
            scores = {"eval_mean_average_precision": 0.1 * epoch, "eval_map_classes_counted": 5, "eval_runtime": 2.0}
            entries.append({"eval_loss": 2 / step, **scores, "epoch": epoch, "step": step})
    return [*entries, {"train_runtime": 3.0, "train_loss": 0.5, "total_flos": 7.0, "epoch": float(epochs)}]


def test_curves_are_what_was_logged_over_epochs_without_bookkeeping():
    curves = read_curves(some_history())
    assert set(curves) == {"loss", "learning_rate", "clips_per_second", "eval_loss", "eval_mean_average_precision"}
    assert curves["eval_loss"].epochs.tolist() == [1, 2, 3] and len(curves["clips_per_second"].values) == 11


def test_what_is_not_finite_leaves_a_gap():
    history = [{"loss": value, "epoch": epoch} for epoch, value in enumerate([1.0, math.nan, math.inf, 2.0])]
    values = read_curves([*history, {"eval_f1": math.nan, "epoch": 4}])
    assert np.isfinite(values["loss"].values).tolist() == [True, False, False, True] and "eval_f1" not in values


def drawn(history, monkeypatch, tmp_path, name="curves.png"):
    """The panels of the picture, by title."""
    pytest.importorskip("matplotlib")
    figures = []
    make_panels = reporting._make_panels
    monkeypatch.setattr(reporting, "_make_panels", lambda number: figures.append(make_panels(number)) or figures[-1])
    draw_learning_curves(tmp_path / name, history)
    return {panel.get_title(loc="left"): panel for panel in figures[0][1] if panel.get_visible()}


def test_every_metric_has_a_panel_beside_losses_learning_rate_and_speed(monkeypatch, tmp_path):
    panels = drawn(some_history(), monkeypatch, tmp_path)
    assert list(panels) == ["loss", "learning rate", "clips per second", "mAP"]
    assert [text.get_text() for text in panels["loss"].get_legend().get_texts()] == ["training", "evaluation"]
    assert panels["mAP"].get_title(loc="right") == "best 0.3"
    assert panels["mAP"].lines[0].get_ydata().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG") and os.listdir(tmp_path) == ["curves.png"]


def test_the_picture_of_the_same_history_is_the_same(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("a.png", "b.png"):
        draw_learning_curves(tmp_path / name, some_history(2, 2))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"eval_loss": 1.0, "eval_accuracy": 0.5, "epoch": 0}],
        [{"loss": 0.0, "learning_rate": 0.0, "epoch": 0.5}],
        [{"eval_dev_loss": 1.0, "eval_dev_f1": 0.5, "eval_other_loss": 3.0, "epoch": 1}],
        [{"loss": 1.0, "step": 3}],
    ],
    ids=["nothing", "an evaluation alone", "zeros", "two evaluation sets", "no epochs"],
)
def test_odd_histories_are_drawn_too(history, monkeypatch, tmp_path):
    assert "loss" in drawn(history, monkeypatch, tmp_path)


def test_a_long_loss_is_smoothed_without_lagging_behind(monkeypatch, tmp_path):
    history = [{"loss": 10.0 + index, "epoch": index / 10} for index in range(200)]
    raw, smooth = drawn(history, monkeypatch, tmp_path)["loss"].lines
    assert smooth.get_label() == "training, smoothed"
    assert np.allclose(smooth.get_ydata()[5:-5], raw.get_ydata()[5:-5])


def test_curves_are_redrawn_at_every_evaluation_by_the_main_process_alone(make_trainer, monkeypatch, tmp_path):
    lengths = []
    monkeypatch.setattr(reporting, "draw_learning_curves", lambda path, history: lengths.append(len(history)))
    make_trainer([CurvesCallback(tmp_path)], max_steps=12, eval_strategy="epoch").train()
    assert lengths == [7, 14, 15]  # two epochs of six steps, and the end
    others = TrainerState(is_world_process_zero=False, log_history=[{"loss": 1.0}])
    CurvesCallback(tmp_path).on_evaluate(None, others, None)
    assert len(lengths) == 3


@pytest.mark.parametrize("problem", [ModuleNotFoundError("No module named 'matplotlib'"), OSError("The disk is full.")])
def test_a_picture_that_cannot_be_drawn_is_one_line_of_log_and_no_failure(problem, monkeypatch, tmp_path, caplog):
    def refuse(*arguments):
        raise problem

    monkeypatch.setattr(reporting, "draw_learning_curves", refuse)
    callback, state = CurvesCallback(tmp_path), TrainerState(log_history=[{"loss": 1.0, "epoch": 1}])
    for _ in range(2):
        callback.on_evaluate(None, state, None)
    assert len(caplog.records) == 1 and "curves.png is not drawn" in caplog.text
    assert ("pip install" in caplog.text) == isinstance(problem, ImportError)


# ── results ───────────────────────────────────────────────────────────────────────────────────────────────────────────

EVENT_SCORE = {"macro": 0.25, "per_class": {"dog": np.float64(0.25), "cat": math.nan}, "criterion": "a collar of 0.2 s"}


@dataclass
class Arguments:
    model: str
    hub_token: str
    output_dir: str


@pytest.fixture
def results(tmp_path, monkeypatch):
    """What was written, read back."""
    monkeypatch.chdir(tmp_path)
    inside, outside = str(tmp_path / "runs" / "a"), str(tmp_path.parent / "elsewhere" / "clips")
    command = [str(tmp_path / "train.py"), "--output_dir", inside, f"--data={outside}", "--hub_token", "hf_1"]
    monkeypatch.setattr(sys, "argv", [*command, "--hub-token=hf_2", "--title", "two words"])
    returned = write_results(
        "results.json",
        {"mean_average_precision": np.float32(0.5), "d_prime": math.nan, "collar_f1": EVENT_SCORE},
        data={
            "kind": "esc50",
            "sizes": {"train": np.int64(7)},
            "skipped": {"b", "a"},
            "edges": np.arange(2),
            "class": "/m/09x0r",
        },
        arguments=[Arguments(outside, "hf_3", inside), TrainingArguments(inside, use_cpu=True)],
        seed=3,
        model=outside,
        started=time.time() - 5,
        recipe="esc50.yaml",
    )
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == returned and os.listdir(tmp_path) == ["results.json"]
    return returned


def test_results_hold_scores_with_their_criterion_and_what_was_learnt_from(results):
    assert results["metrics"]["mean_average_precision"] == 0.5 and results["metrics"]["d_prime"] is None
    assert results["metrics"]["collar_f1"]["criterion"] == "a collar of 0.2 s"
    assert results["metrics"]["collar_f1"]["per_class"] == {"dog": 0.25, "cat": None}
    data = {"kind": "esc50", "sizes": {"train": 7}, "skipped": ["a", "b"], "edges": [0, 1], "class": "/m/09x0r"}
    assert results["data"] == data
    assert results["seed"] == 3 and results["recipe"] == "esc50.yaml"


def test_results_say_when_where_and_with_what_they_were_made(results):
    assert 5 <= results["duration_seconds"] < 60 and results["date"].endswith("+00:00")
    assert {"python", "torch", "transformers", "modeling_htsat", "numpy", "soundfile"} <= set(results["versions"])
    assert results["hardware"]["cpu"] and results["hardware"]["cores"] >= 1 and results["hardware"]["processes"] == 1
    assert results["arguments"]["learning_rate"] == 5e-5 and results["arguments"]["eval_strategy"] == "no"


def test_results_give_no_secret_and_no_folder_of_the_machine_away(results, tmp_path):
    assert results["command"] == (
        "python train.py --output_dir runs/a --data=clips --hub_token ... --hub-token=... --title 'two words'"
    )
    assert results["model"] == "clips" and results["arguments"]["output_dir"] == os.path.join("runs", "a")
    text = json.dumps(results)
    assert not any(word in text for word in ("hf_1", "hf_2", "hf_3", "elsewhere", str(tmp_path)))


def test_the_commit_is_that_of_the_code_and_not_of_a_checkout_around_it(results, tmp_path, monkeypatch):
    if "commit" in results:
        assert len(results["commit"]) == 40 and isinstance(results["has_uncommitted_changes"], bool)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.setattr(reporting, "__file__", str(tmp_path / "reporting.py"))
    assert reporting._commit() == {}


def test_the_table_of_results_is_aligned_and_explains_its_scores():
    metrics = {
        "mean_average_precision": 0.5,
        "num_clips": 12,
        "d_prime": math.nan,
        "collar_f1": EVENT_SCORE,
        "eer": None,
    }
    assert format_results_table(metrics | {"list": [1]}).splitlines() == [
        "mean_average_precision     0.5000",
        "num_clips                      12",
        "d_prime                 undefined",
        "collar_f1                  0.2500",
        "eer                     undefined",
        "",
        "collar_f1: a collar of 0.2 s",
    ]
    assert format_results_table({"psds_1": {"psds": np.float64(0.125)}}) == "psds_1  0.1250\n"


# ── folders that cannot be written ────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_that_takes_files_is_made_and_stays_empty(tmp_path):
    refuse_unwritable(tmp_path / "runs" / "a")
    assert os.listdir(tmp_path / "runs" / "a") == []


def test_a_folder_that_cannot_be_made_is_refused_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError, match=f"The output folder {path} cannot be written: .*; name another"):
            refuse_unwritable(path)

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="no space left on device; name another"):
        refuse_unwritable(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def test_too_little_space_is_refused_before_the_training(tmp_path):
    with pytest.raises(OutputError, match=r"GB free, and this run may need 1000000000\.0 GB; free some space"):
        refuse_unwritable(tmp_path, needed_bytes=10**18)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of Trainer with the checkpoints 1, 2 and 10 (of a model with the files of HTS-AT's)."""
    folder = tmp_path_factory.mktemp("trained")
    model = HTSATForAudioClassification(
        HTSATConfig(embed_dim=8, depths=(1, 1), num_heads=(1, 2), spec_size=128, window_size=4, num_labels=3)
    )
    rows = [{"input_features": torch.randn(256, 64), "labels": index % 3} for index in range(20)]
    arguments = TrainingArguments(
        str(folder), max_steps=10, save_steps=1, per_device_train_batch_size=2, use_cpu=True, disable_tqdm=True
    )
    model.config.problem_type = "single_label_classification"
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.callback_handler.callbacks = [
        each for each in trainer.callback_handler.callbacks if type(each).__name__ != "PrinterCallback"
    ]
    save = trainer._save_checkpoint
    trainer._save_checkpoint = lambda *a: save(*a) if trainer.state.global_step in (1, 2, 10) else None
    trainer.train()
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run, to break."""
    folder = tmp_path / "run"
    subprocess.run(["cp", "-r", str(trained), str(folder)], check=True)
    return folder


def test_the_last_checkpoint_is_that_with_the_highest_number(run):
    assert last_whole_checkpoint(run) == str(run / "checkpoint-10")
    assert last_whole_checkpoint(run / "checkpoint-1") is None and last_whole_checkpoint(run / "nowhere") is None


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json"]


@pytest.mark.parametrize("share", [None, 0.0, 0.5, 0.98], ids=["missing", "empty", "half", "almost"])
@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_with_a_file_that_is_missing_or_cut_short_is_moved_aside(run, name, share, caplog):
    path = run / "checkpoint-10" / name
    os.truncate(path, int(path.stat().st_size * share)) if share is not None else path.unlink()
    assert last_whole_checkpoint(run, move_aside=False) == str(run / "checkpoint-2")
    assert (run / "checkpoint-10").exists()
    caplog.clear()
    assert last_whole_checkpoint(run) == str(run / "checkpoint-2")
    names = set(os.listdir(run))
    assert {"incomplete-checkpoint-10", "checkpoint-1", "checkpoint-2"} <= names and "checkpoint-10" not in names
    assert caplog.text.count("is incomplete") == 1


def test_a_second_incomplete_checkpoint_replaces_the_one_that_was_moved_aside(run):
    for text in ("first", "second"):
        (run / "checkpoint-11").mkdir()
        (run / "checkpoint-11" / "config.json").write_text(text)
        assert last_whole_checkpoint(run) == str(run / "checkpoint-10")
        assert (run / "incomplete-checkpoint-11" / "config.json").read_text() == text


def test_a_checkpoint_of_the_model_alone_is_skipped_and_left_in_place(run, caplog):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (run / "checkpoint-10" / name).unlink()
    assert last_whole_checkpoint(run) == str(run / "checkpoint-2")
    assert (run / "checkpoint-10").exists() and "only the model was saved" in caplog.text


def test_every_process_needs_its_random_states(run):
    checkpoint = run / "checkpoint-10"
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_1.pth")
    assert checkpoint_problem(checkpoint).text == "random states are missing"
    torch.save({}, checkpoint / "rng_state_0.pth")
    assert checkpoint_problem(checkpoint) is None


def test_an_average_of_the_weights_is_not_the_model(run):
    (run / "checkpoint-10" / "model.safetensors").rename(run / "checkpoint-10" / "ema.safetensors")
    assert checkpoint_problem(run / "checkpoint-10").text == "the model is missing"


def test_longer_files_than_they_should_be_are_no_checkpoint_either(run):
    with open(run / "checkpoint-10" / "model.safetensors", "ab") as file:
        file.write(b"x")
    assert checkpoint_problem(run / "checkpoint-10").text == "model.safetensors is cut short"


FULL_DISK_ERRORS = [  # as they came from a file system of two megabytes
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("basic_ios::clear: iostream error"),  # torch.save, of little and of much
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
]


@pytest.mark.parametrize("error", FULL_DISK_ERRORS, ids=lambda error: str(error)[:30])
def test_a_full_disk_is_one_sentence_and_leaves_no_half_checkpoint(run, error):
    with pytest.raises(OutputError) as caught, checkpoint_errors(run):
        (run / "checkpoint-11").mkdir()
        save_file({"a": torch.zeros(3)}, run / "checkpoint-11" / "model.safetensors")
        raise error
    assert str(caught.value) == (
        f"{run}/checkpoint-11 could not be written: no space left on the disk of {run}; the last good checkpoint is "
        f"{run}/checkpoint-10; free some space and start the same command again."
    )
    assert caught.value.__cause__ is error and not (run / "checkpoint-11").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that Linux has")
def test_what_torch_says_of_a_full_disk_is_understood(tmp_path):
    for value in (torch.zeros(100_000), 1):
        with pytest.raises(OutputError, match="no earlier checkpoint"), checkpoint_errors(tmp_path):
            torch.save(value, "/dev/full")
    with pytest.raises(OutputError, match="A checkpoint in"), checkpoint_errors(tmp_path):
        Path("/dev/full").write_text("x")


def test_a_used_up_quota_is_called_one(tmp_path):
    with pytest.raises(OutputError, match="the quota on the disk of"), checkpoint_errors(tmp_path):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")


def test_older_checkpoints_and_other_errors_are_left_alone(run):
    (run / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.raises(OutputError), checkpoint_errors(run):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (run / "checkpoint-2").exists()
    for error in (RuntimeError("CUDA out of memory"), OSError(errno.EACCES, "Permission denied"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, checkpoint_errors(run):
            raise error
        assert caught.value is error


def test_a_checkpoint_that_was_set_aside_is_none_to_trainer(run):
    from transformers.trainer_utils import get_last_checkpoint

    (run / "checkpoint-10" / "trainer_state.json").unlink()
    assert get_last_checkpoint(run) == str(run / "checkpoint-10")
    last_whole_checkpoint(run)
    assert get_last_checkpoint(run) == str(run / "checkpoint-2")


@pytest.fixture(autouse=True)
def quiet_library():
    """Trainer's own warnings are not what is tested here."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)
