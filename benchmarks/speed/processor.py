"""On the processor, in float32: front end, encoder, end to end, and the training step."""

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from .clock import MEGABYTE, Row, Runs, Samples, interleave, make_rows, per_clip
from .contestants import (
    AST,
    CLAP,
    FLOOR,
    TORCHLIBROSA,
    ClapEncoder,
    Scale,
    Trainee,
    count_flops,
    floor_flops,
    floor_products,
    gradient_of_sound,
    make_ast,
    make_classifier,
    make_encoder,
    make_front_ends,
    make_sounds,
)
from .processes import call

TRAINEES = ("ours", "ours, plain attention", "ours, checkpointing", CLAP)


def cases(scale: Scale) -> Iterator[tuple[int, str]]:
    """Every batch with every number of threads, which is set on the way."""
    for threads in scale.threads:
        torch.set_num_threads(threads)
        for batch in scale.batches:
            yield batch, f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}"


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (ours - theirs).abs().max().item()


def put_floors(samples: Samples, flops: float, size: int) -> tuple[Samples, dict[str, str]]:
    """Each library's products as a contestant: the time of the model's own arithmetic at their rate; and notes."""
    products = floor_products(size)
    floors, notes = {name: values for name, values in samples.items() if name not in products}, {}
    for name in products:
        floors[f"{FLOOR}, {name}"] = [seconds * flops / floor_flops(size) for seconds in samples[name]]
        rate = floor_flops(size) / statistics.median(samples[name])
        notes[f"{FLOOR}, {name}"] = f"{flops / 1e9:.1f} GFLOP at {rate / 1e9:.0f} GFLOP/s"
    return floors, notes


def front_end(scale: Scale) -> Iterator[Row]:
    """From the waveform to the log-mel spectrogram; differences in decibels."""
    ends = make_front_ends(scale.config)
    names = ("ours", TORCHLIBROSA, "ClapFeatureExtractor")
    notes = {name: "not installed: pip install torchlibrosa" for name in names if name not in ends}
    for batch, case in cases(scale):
        sounds = make_sounds(batch, scale.config.sampling_rate)
        runs: Runs = {name: partial(end, sounds) for name, end in ends.items()}
        with torch.no_grad():
            differences = {name: largest_difference(runs["ours"](), runs[name]()) for name in runs if name != "ours"}
            samples = per_clip(interleave(runs, scale.pace), batch)
        samples = {name: samples.get(name, []) for name in names}
        yield from make_rows("front end", case, samples, differences=differences, notes=notes)


def encoder(scale: Scale) -> Iterator[Row]:
    """From the spectrogram to the embedding."""
    ours: Any = make_encoder(scale.config)
    clap: Any = ClapEncoder(ours)
    extract = make_front_ends(scale.config)["ours"]
    for batch, case in cases(scale):
        features = extract(make_sounds(batch, scale.config.sampling_rate))
        runs: Runs = {"ours": partial(ours, features), CLAP: partial(clap, features)}
        with torch.no_grad():
            differences = {CLAP: largest_difference(*(run().last_hidden_state for run in runs.values()))}
            samples = interleave({**runs, **floor_products(scale.product_size)}, scale.pace)
        samples, notes = put_floors(samples, count_flops(ours, features), scale.product_size)
        yield from make_rows("encoder", case, per_clip(samples, batch), differences=differences, notes=notes)


def end_to_end(scale: Scale) -> Iterator[Row]:
    """From the waveform to the scores of the classes; of CLAP, which has none, to the embedding."""
    ours = make_classifier(make_encoder(scale.config))
    ends, clap = make_front_ends(scale.config), ClapEncoder(ours.htsat)
    for batch, case in cases(scale):
        sounds = make_sounds(batch, scale.config.sampling_rate)
        runs: Runs = {
            "ours": partial(in_turn, ends["ours"], ours, sounds),
            CLAP: partial(in_turn, ends["ClapFeatureExtractor"], clap, sounds),
        }
        with torch.no_grad():
            differences = {CLAP: largest_difference(*(run().pooler_output for run in runs.values()))}
            samples = per_clip(interleave(runs, scale.pace), batch)
        yield from make_rows("end to end", case, samples, differences=differences)


def beside_ast(scale: Scale) -> Iterator[Row]:
    """From spectrogram to scores, and from waveform to scores, in turns with AST alone.

    One call of it lasts as long as fifty of the others, who would have few turns. And it comes after them, as what it
    leaves behind in the process's memory spares `ClapAudioModel` thousands of page faults.
    """
    ours: Any = make_classifier(make_encoder(scale.config))
    extract, rate = make_front_ends(scale.config)["ours"], scale.config.sampling_rate
    ast_extractor, ast = make_ast(scale.ast_config)

    def ast_extract(sounds: list[np.ndarray]) -> torch.Tensor:
        return ast_extractor(sounds, sampling_rate=ast_extractor.sampling_rate, return_tensors="pt")["input_values"]

    for batch, case in cases(scale):
        if batch > scale.most_ast_clips:
            continue
        sounds, ast_sounds = make_sounds(batch, rate), make_sounds(batch, ast_extractor.sampling_rate)
        encoders: Runs = {"ours": partial(ours, extract(sounds)), AST: partial(ast, ast_extract(ast_sounds))}
        wholes: Runs = {
            "ours": partial(in_turn, extract, ours, sounds),
            AST: partial(in_turn, ast_extract, ast, ast_sounds),
        }
        for section, runs in {"encoder beside AST": encoders, "end to end beside AST": wholes}.items():
            with torch.no_grad():
                samples = per_clip(interleave(runs, scale.pace), batch)
            yield from make_rows(section, case, samples)


def in_turn(front_end: Callable, model: Callable, sounds: list[np.ndarray]) -> Any:
    return model(front_end(sounds))


def training(scale: Scale) -> Iterator[Row]:
    """One step: forward, backward, fused AdamW; differences of gradients, the largest of them being 1."""
    trainees = {name: Trainee(name, scale.config) for name in TRAINEES}
    ours = trainees["ours"].encoder
    for batch, case in cases(scale):
        features = torch.randn(batch, 1001, scale.config.num_mel_bins)
        targets = torch.rand(batch, scale.config.num_labels)
        # Of untrained weights: by the end of a case, each has taken steps of its own.
        fresh = {name: gradient_of_sound(Trainee(name, scale.config), features[:1]) for name in ("ours", CLAP)}
        runs: Runs = {name: partial(trainee.step, features, targets) for name, trainee in trainees.items()}
        samples = interleave({**runs, **floor_products(scale.product_size)}, scale.pace)
        # Backward takes two products for each of forward's.
        samples, notes = put_floors(samples, 3 * count_flops(ours, features), scale.product_size)
        differences = {CLAP: largest_difference(fresh["ours"], fresh[CLAP])}
        yield from make_rows("training step", case, per_clip(samples, batch), differences=differences, notes=notes)


def training_memory(scale: Scale) -> Iterator[Row]:
    """What a training step adds to a process that has imported everything: weights, gradients, AdamW, activations."""
    for batch in scale.memory_batches:
        samples: Samples = {}
        for name in TRAINEES:
            answer = call("train", name=name, batch=batch, threads=max(scale.threads), is_quick=scale.is_quick)
            samples[name] = [answer["peak_bytes"] / MEGABYTE]
        yield from make_rows("training memory", f"batch {batch}", samples, unit="MB")
