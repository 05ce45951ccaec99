"""Measured in processes of their own: peak memory, and long recordings. `call(...)` starts one of `TASKS`.

Memory is what the operating system says a process held at most. torch's profiler knows what torch allocated, and not
what MKL, oneDNN, NumPy and the allocator itself keep; a peak belongs to a whole process and never goes down, hence one
for each figure.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from modeling_htsat import HTSATFeatureExtractor, HTSATForSoundEventDetection, HTSATSoundEventDetectionPipeline

from .contestants import ROOT, Scale, Trainee

RATE, CHANNELS = 48_000, 2  # what recorders write; ours resamples and mixes it down on the way


def peak_bytes() -> int:
    """The most memory that this process held.

    Linux: not `ru_maxrss`, into which a child inherits the peak of the process that started it.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def call(task: str, **arguments: Any) -> dict[str, Any]:
    """What a task measured in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.speed.processes", task, json.dumps(arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"The process that measures {task!r} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def scale_of(is_quick: bool) -> Scale:
    return Scale.quick() if is_quick else Scale.full()


def train(name: str, batch: int, is_quick: bool) -> dict[str, Any]:
    """Three steps: the first makes AdamW's moments, the next meet them."""
    before = peak_bytes()
    config = scale_of(is_quick).config
    trainee = Trainee(name, config)
    features, targets = torch.randn(batch, 1001, config.num_mel_bins), torch.rand(batch, config.num_labels)
    for _ in range(3):
        trainee.step(features, targets)
    return {"peak_bytes": peak_bytes() - before}


def write_noise(path: Path, seconds: int):
    """A WAV file of any length, written in pieces of ten seconds."""
    noise = (0.1 * np.random.default_rng(0).standard_normal((10 * RATE, CHANNELS))).astype(np.float32)
    with soundfile.SoundFile(path, "w", RATE, CHANNELS, "PCM_16") as file:
        for _ in range(seconds // 10):
            file.write(noise)


def hear(seconds: int, is_quick: bool) -> dict[str, Any]:
    """Seconds that one recording takes, from the file to its events, and ten seconds of sound before and after it."""
    torch.manual_seed(0)
    config = scale_of(is_quick).config
    model, extractor = HTSATForSoundEventDetection(config).eval(), HTSATFeatureExtractor(**config.front_end)
    detector = HTSATSoundEventDetectionPipeline(model=model, feature_extractor=extractor)

    def seconds_for(path: Path) -> float:
        begin = time.perf_counter()
        # Weights are random, and hardly any of their scores is so high: a trained model finds some events.
        detector(str(path), threshold=0.9, progress_bar=False)
        return time.perf_counter() - begin

    with tempfile.TemporaryDirectory() as folder:
        short, long = Path(folder) / "short.wav", Path(folder) / "long.wav"
        write_noise(short, 10)
        write_noise(long, seconds)
        seconds_for(short)  # not counted: the first call sets things up
        # A short recording takes as many rounds as a minute of sound would.
        rounds = 1 if is_quick else max(1, 60 // seconds)
        before = [seconds_for(short) for _ in range(5)]
        taken = [seconds_for(long) for _ in range(rounds)]
        after = [seconds_for(short) for _ in range(5)]
    return {"taken": taken, "ten_seconds": before + after, "peak_bytes": peak_bytes()}


TASKS: dict[str, Callable[..., dict[str, Any]]] = {"train": train, "hear": hear}

if __name__ == "__main__":
    options = json.loads(sys.argv[2])
    torch.set_num_threads(options.pop("threads"))
    print(json.dumps(TASKS[sys.argv[1]](**options)))
