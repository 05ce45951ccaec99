"""How fast, how small and how near are exported models? `python benchmarks/export.py MODEL --audio DIR`

Exports a model to ONNX in 32 and in 8 bits, and to a program of torch.export. Speed: clips from waveform to scores and
from features to scores, one at a time, all variants in turn in one process, as ratios of medians to eager PyTorch.
Drift: real recordings from DIR, those of a model that was trained; random weights have nothing to lose. Whatever else
the machine does moves all variants together, as they take turns. Takes two minutes for small models.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers

from modeling_htsat import list_audio_files, load_audio
from modeling_htsat.commands.export import load
from modeling_htsat.export import export_model

VARIANTS = ("PyTorch", "torch.export", "ONNX", "ONNX int8")
NAMES = {"waveform": "input_values", "features": "input_features"}


def export_all(model: Any, extractor: Any, input: str, folder: Path, seconds: float | None) -> dict[str, Any]:
    """The three files, by variant."""
    settings: dict[str, Any] = {"input": input, "seconds": seconds}
    return {
        "torch.export": export_model(model, extractor, folder / f"{input}.pt2", format="torch-export", **settings),
        "ONNX": export_model(model, extractor, folder / f"{input}.onnx", **settings),
        "ONNX int8": export_model(model, extractor, folder / f"{input}8.onnx", int8=True, **settings),
    }


def make_runners(model: Any, extractor: Any, files: dict[str, Any], input: str, threads: int) -> dict[str, Callable]:
    """For every variant, a function from a clip to its outputs, by name."""
    program = torch.export.load(files["torch.export"].path).module()

    def eager(clip: torch.Tensor) -> Any:
        if input == "features":
            return model(clip)
        return model(**extractor(clip, extractor.sampling_rate, return_tensors="pt"))

    runners: dict[str, Callable] = {"PyTorch": torch.no_grad()(eager), "torch.export": torch.no_grad()(program)}
    return runners | {name: onnx_runner(files[name].path, NAMES[input], threads) for name in ("ONNX", "ONNX int8")}


def onnx_runner(path: Path, input_name: str, threads: int) -> Callable:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda clip: dict(zip(names, session.run(None, {input_name: clip.numpy()}), strict=True))


def measure_speed(runners: dict[str, Callable], clip: torch.Tensor, rounds: int) -> dict[str, float]:
    """Median milliseconds of a clip for every variant, all in turn."""
    milliseconds: dict[str, list[float]] = {name: [] for name in runners}
    for run in runners.values():
        run(clip)
    for _ in range(rounds):
        for name, run in runners.items():
            begin = time.perf_counter()
            run(clip)
            milliseconds[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(times) for name, times in milliseconds.items()}


def read_clips(folder: Path, extractor: Any, num_samples: int, most: int) -> list[torch.Tensor]:
    """Recordings at even distances in the list of them; short ones are repeated."""
    paths = sorted(list_audio_files(folder))
    paths = paths[:: max(1, len(paths) // most)][:most]
    sounds = [np.resize(load_audio(path, extractor.sampling_rate), (1, num_samples)) for path in paths]
    return [torch.from_numpy(sound) for sound in sounds]


def probabilities(outputs: Any, function: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Of the clip, and of its steps if there are any."""
    is_detector = "clip_logits" in outputs
    clip = torch.as_tensor(outputs["clip_logits" if is_detector else "logits"])[0]
    steps = torch.as_tensor(outputs["logits"])[0].sigmoid().numpy() if is_detector else None
    return (clip.softmax(-1) if function == "softmax" else clip.sigmoid()).numpy(), steps


def measure_drift(reference: Callable, run: Callable, clips: list[torch.Tensor], function: str) -> dict[str, float]:
    """How far probabilities move, whether the first class stays first, and how alike the order of all classes is."""
    pairs = [(probabilities(reference(clip), function), probabilities(run(clip), function)) for clip in clips]
    moved = np.array([np.abs(exact - near) for (exact, _), (near, _) in pairs])
    drift = {
        "clip_mean": float(moved.mean()),
        "clip_max": float(moved.max()),
        "same_first": float(np.mean([exact.argmax() == near.argmax() for (exact, _), (near, _) in pairs])),
        "rank_correlation": float(np.mean([rank_correlation(exact, near) for (exact, _), (near, _) in pairs])),
    }
    if pairs[0][0][1] is not None:
        steps = np.array([np.abs(exact - near) for (_, exact), (_, near) in pairs])
        drift |= {"step_mean": float(steps.mean()), "step_max": float(steps.max())}
    return drift


def rank_correlation(exact: np.ndarray, near: np.ndarray) -> float:
    """Spearman's, of the classes of one clip."""
    return float(np.corrcoef(exact.argsort().argsort(), near.argsort().argsort())[0, 1])


def processor_name() -> str:
    """What Linux calls it; elsewhere, what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def measure(model: Any, extractor: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {name: {"variant": name} for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        for input in NAMES:
            files = export_all(model, extractor, input, Path(folder), options.seconds)
            facts = files["ONNX"].metadata
            runners = make_runners(model, extractor, files, input, options.threads)
            clips = read_clips(options.audio, extractor, facts["clip_samples"], options.clips)
            if input == "features":
                clips = [extractor(clip, extractor.sampling_rate, return_tensors="pt").input_features for clip in clips]
            speed = measure_speed(runners, clips[0], options.rounds)
            for name, row in rows.items():
                row |= {f"{input}_ms": speed[name], f"{input}_speedup": speed["PyTorch"] / speed[name]}
                if input == "waveform":
                    row |= measure_drift(runners["PyTorch"], runners[name], clips, facts["clip_function"])
                    row |= {"megabytes": files[name].path.stat().st_size / 1e6} if name in files else {}
    return list(rows.values())


def table_of(rows: list[dict[str, Any]]) -> str:
    head = (
        "| variant | MB | waveform, ms | times PyTorch | features, ms | times PyTorch | probabilities move: mean, most "
    )
    lines = [head + "| steps: mean, most | first class stays | rank correlation |", "| --- " * 10 + "|"]
    for row in rows:
        steps = f"{row['step_mean']:.1e}, {row['step_max']:.1e}" if "step_mean" in row else ""
        size = f"{row['megabytes']:.1f}" if "megabytes" in row else ""
        lines.append(
            f"| {row['variant']} | {size} | {row['waveform_ms']:.1f} | {row['waveform_speedup']:.2f} "
            f"| {row['features_ms']:.1f} | {row['features_speedup']:.2f} "
            f"| {row['clip_mean']:.1e}, {row['clip_max']:.1e} | {steps} "
            f"| {100 * row['same_first']:.0f} % | {row['rank_correlation']:.3f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the folder of a trained model")
    parser.add_argument("--audio", type=Path, required=True, metavar="DIR", help="recordings of the kind it hears")
    parser.add_argument("--clips", type=int, default=100, help="recordings for the drift (default: 100)")
    parser.add_argument("--rounds", type=int, default=30, help="rounds of the clock (default: 30)")
    parser.add_argument("--threads", type=int, default=1, help="of each variant (default: 1)")
    parser.add_argument("--seconds", type=float, help="of a clip (default: whole seconds of one window)")
    parser.add_argument("--output", type=Path, help="write the figures there, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, extractor = load(options.model)
    rows = measure(model, extractor, options)
    machine = f"{processor_name()}, {options.threads} thread(s)"
    versions = (
        f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    print(f"{table_of(rows)}\n\n{machine}; {versions}; {options.rounds} rounds, up to {options.clips} recordings")
    if options.output:
        settings = {name: value for name, value in vars(options).items() if name in ("clips", "rounds", "seconds")}
        record = {"rows": rows, "machine": machine, "versions": versions, "model": Path(options.model).name, **settings}
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
