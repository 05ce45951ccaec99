"""From a model to one exported file: what can be asked for, what goes into the graph, and whether it says the same.

The graph hears clips of one length, as waveforms or as log-mel spectrograms. Its outputs are the model's, by the same
names, and beside it the file holds what a program must know to hear as the pipelines do.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..events_htsat import EventDecoding, count_filter_steps
from ..feature_extraction_htsat import HTSATFeatureExtractor
from ..hub_htsat import class_names
from ..version import VERSION
from ..whole_htsat import whole_file
from .formats import SUFFIXES, check_onnx_is_here, quietly, run_onnx, run_program, write_onnx, write_program
from .front_end import LogMelFrontEnd

INPUT_NAMES = {"waveform": "input_values", "features": "input_features"}
DETECTOR = "HTSATForSoundEventDetection"
OUTPUT_NAMES = {
    DETECTOR: ("logits", "clip_logits", "pooler_output"),
    "HTSATForAudioClassification": ("logits", "pooler_output"),
    "HTSATModel": ("last_hidden_state", "pooler_output"),
}
MAX_SECONDS = 60.0  # in a graph, every window of a longer clip is written out
MAX_DIFFERENCE = 1e-4  # of probabilities, and of embeddings in units of their largest number


@dataclass(frozen=True)
class ExportedFile:
    """What was written: where, what it takes and gives, and how far its outputs are from PyTorch's for noise.

    The difference is the largest of all: of probabilities, and of embeddings in units of their largest number.
    """

    path: Path
    input_name: str
    input_shape: tuple[int | str, ...]
    output_names: tuple[str, ...]
    metadata: dict[str, Any]
    difference: float


@torch.no_grad()
def export_model(
    model: nn.Module,
    extractor: HTSATFeatureExtractor,
    output: str | os.PathLike[str],
    format: str = "onnx",
    input: str = "waveform",
    int8: bool = False,
    dynamic_batch: bool = False,
    seconds: float | None = None,
) -> ExportedFile:
    """Write a model to one file, once its outputs are known to be those of the model.

    Args:
        model, extractor: an HTS-AT on the CPU in float32, with or without a head, and its front end.
        format: `"onnx"` or `"torch-export"`; the file is called `.onnx` or `.pt2`.
        input: `"waveform"` takes samples `(batch, samples)`; `"features"` takes what the extractor makes of them.
        int8: for ONNX alone: the linear layers multiply 8-bit numbers. Their outputs are near the model's, not equal.
        dynamic_batch: takes any number of clips at once; without it, one.
        seconds: how long every clip is; by default as many whole seconds as the model hears at once.
    """
    path = Path(output)
    check_request(path, format, input, int8)
    check_model(model)
    num_samples = count_samples(model, extractor, seconds, dynamic_batch)
    module = ExportableModel(model, extractor, num_samples if input == "waveform" else None)
    waveforms, features = make_noise(extractor, num_samples, 2 if dynamic_batch else 1)
    example = waveforms if input == "waveform" else features
    metadata = describe(model, extractor, num_samples)
    # The hidden name keeps its end, by which torch knows its programs.
    with in_evaluation(module), whole_file(path, suffix=path.suffix) as temporary, quietly():
        if format == "onnx":
            names = [INPUT_NAMES[input]], module.output_names
            write_onnx(temporary, module, example, names, metadata, int8, dynamic_batch)
        else:
            write_program(temporary, module, example, metadata, dynamic_batch)
        answer = (run_onnx if format == "onnx" else run_program)(temporary, example)
        difference = find_difference(answer, model(features))
        if not int8 and not difference <= MAX_DIFFERENCE:
            raise ValueError(f"The exported model differs from the model by {difference:.1e}; it was not kept.")
    shape = ("batch" if dynamic_batch else 1, *example.shape[1:])
    return ExportedFile(path, INPUT_NAMES[input], shape, module.output_names, metadata, difference)


# ── what can be asked for ─────────────────────────────────────────────────────────────────────────────────────────────


def check_request(path: Path, format: str, input: str, int8: bool) -> None:
    if format not in SUFFIXES:
        raise ValueError(f"The format {format!r} is not known; choose {' or '.join(SUFFIXES)}.")
    if input not in INPUT_NAMES:
        raise ValueError(f"The input {input!r} is not known; choose {' or '.join(INPUT_NAMES)}.")
    if path.suffix != SUFFIXES[format]:
        raise ValueError(
            f"{path} has the suffix {path.suffix!r}; a file in the format {format} has {SUFFIXES[format]}."
        )
    if int8 and format != "onnx":
        raise ValueError(f"8 bits are for the format onnx alone, and {format} was asked for; choose one of the two.")
    if format == "onnx":
        check_onnx_is_here()


def check_model(model: nn.Module) -> None:
    kinds = {f"{parameter.dtype} on {parameter.device}".removeprefix("torch.") for parameter in model.parameters()}
    if kinds != {"float32 on cpu"}:
        raise ValueError(f"The model is {' and '.join(sorted(kinds))}; `model.float().cpu()` can be exported.")


def default_seconds(extractor: HTSATFeatureExtractor) -> float:
    """As many whole seconds as fit into one window, 10 for the paper's model; or the whole window, if none does."""
    most_samples = extractor.clip_frames * extractor.hop_length - 1
    return most_samples // extractor.sampling_rate or most_samples / extractor.sampling_rate


def count_samples(
    model: nn.Module, extractor: HTSATFeatureExtractor, seconds: float | None, dynamic_batch: bool
) -> int:
    """The samples of every clip, or one sentence why there can be no graph for that."""
    usual = default_seconds(extractor)
    seconds = usual if seconds is None else seconds
    shortest = (extractor.window_length // 2 + 1) / extractor.sampling_rate
    if not shortest <= seconds <= MAX_SECONDS:
        raise ValueError(
            f"Clips of {seconds:g} s were asked for; from {shortest:.3f} to {MAX_SECONDS:g} s can be had. Cut longer "
            "recordings into windows, as docs/predict_onnx.py does."
        )
    num_samples = round(seconds * extractor.sampling_rate)
    repeats = extractor.num_repeats(num_samples)
    if dynamic_batch and extractor.num_frames(num_samples) > extractor.clip_frames:
        raise ValueError(
            f"A batch of any size takes clips of one window at most, and {seconds:g} s are longer; ask for {usual:g} "
            "s, or for one clip at a time."
        )
    if kind_of(model) == DETECTOR and extractor.short_clips == "repeat" and repeats > 1:
        raise ValueError(
            f"A detector hears clips of {seconds:g} s {repeats} times in a row, so its steps would not be theirs; ask "
            f"for more than half a window, such as {usual:g} s."
        )
    return num_samples


def kind_of(model: nn.Module) -> str:
    known = [name for name in class_names(model) if name in OUTPUT_NAMES]
    if not known:
        raise ValueError(f"A {type(model).__name__} came; what can be exported is one of {', '.join(OUTPUT_NAMES)}.")
    return known[0]


# ── what is exported ──────────────────────────────────────────────────────────────────────────────────────────────────


class ExportableModel(nn.Module):
    """A model that answers with a plain dictionary; given a number of samples, it takes waveforms of this length."""

    def __init__(self, model: nn.Module, extractor: HTSATFeatureExtractor, num_samples: int | None):
        super().__init__()
        self.front_end = nn.Identity() if num_samples is None else LogMelFrontEnd(extractor, num_samples)
        self.model = model
        self.output_names = OUTPUT_NAMES[kind_of(model)]

    def forward(self, sounds: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.model(self.front_end(sounds))
        return {name: outputs[name] for name in self.output_names}


def describe(model: nn.Module, extractor: HTSATFeatureExtractor, num_samples: int) -> dict[str, Any]:
    """What a program needs to know beside the graph, as JSON can hold it."""
    config: Any = model.config
    labels = [config.id2label[index] for index in range(config.num_labels)]
    num_frames = extractor(np.zeros(num_samples), extractor.sampling_rate)["input_features"].shape[1]
    no_classes = torch.zeros(config.num_steps_of(num_frames), 0)
    _, edges = extractor.scores_over_time(no_classes, num_samples / extractor.sampling_rate)
    return {
        "package": "modeling-htsat",
        "package_version": VERSION,
        "architecture": kind_of(model),
        "labels": labels,
        "problem_type": config.problem_type,
        "clip_function": clip_function(kind_of(model), config.problem_type),
        "sampling_rate": extractor.sampling_rate,
        "clip_samples": num_samples,
        "seconds_per_step": float(edges[1]),
        "event_decoding": decode_by_steps(config, labels, edges[1]),
        "front_end": {**config.front_end, "short_clips": extractor.short_clips},
    }


def decode_by_steps(config: Any, labels: list[str], step_seconds: float) -> dict[str, list[float]]:
    """The values of `EventDecoding` for every label, with the median filter in steps, which are known here."""
    values = EventDecoding.from_dict(config.event_decoding or {}).for_classes(len(labels), labels)
    values["median_filter_steps"] = count_filter_steps(values["median_filter_seconds"], step_seconds)
    names = ("threshold", "stay_threshold", "median_filter_steps", "max_gap_seconds", "min_event_seconds")
    return {name: values[name].tolist() for name in names}


def clip_function(kind: str, problem_type: str | None) -> str:
    """What makes tags of clip scores, as in the pipelines."""
    if kind == DETECTOR:
        return "softmax" if problem_type == "single_label_classification" else "sigmoid"
    return {"multi_label_classification": "sigmoid", "regression": "none"}.get(str(problem_type), "softmax")


# ── whether it says the same ──────────────────────────────────────────────────────────────────────────────────────────


def make_noise(extractor: HTSATFeatureExtractor, num_samples: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips and their features."""
    waveforms = 0.1 * torch.randn(batch, num_samples, generator=torch.Generator().manual_seed(0))
    return waveforms, extractor(waveforms, extractor.sampling_rate, return_tensors="pt")["input_features"]


def find_difference(answer: Mapping[str, torch.Tensor], truth: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of any output: of probabilities, or in units of an embedding's largest number."""
    differences = []
    for name, given in answer.items():
        expected = truth[name]
        scale = expected.abs().max().clamp(min=1e-12)
        if name.endswith("logits"):
            given, expected, scale = given.sigmoid(), expected.sigmoid(), torch.ones(())
        differences.append(float(((given - expected).abs() / scale).max()))
    return max(differences)


@contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """A model that is still in training goes back to it."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
