"""On a GPU: bfloat16, compilation and CUDA graphs, in batches up to what fits; clips per second and memory.

Everything takes a `device`, so that the same functions run on a processor, without CUDA graphs, in a test.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from modeling_htsat import HTSATFeatureExtractor

from .clock import MEGABYTE, Row, Runs, interleave, make_rows, per_clip
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
    make_ast,
    make_encoder,
    make_sounds,
    make_torchlibrosa,
)

HALF = torch.bfloat16
GPU_PRODUCT_SIZE = 8192


def synchronize_of(device: str) -> Callable[[], None]:
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def memory_if_it_fits(run: Callable[[], Any], device: str) -> float | None:
    """Bytes that a call needs at most beside what is there before; None where they are not to be had."""
    is_gpu = device == "cuda"
    try:
        run()  # compiles, and records graphs
        if is_gpu:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if is_gpu else 0
        run()
        return float(torch.cuda.max_memory_allocated() - before) if is_gpu else 0.0
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def up_to_what_fits(
    section: str,
    make_runs: Callable[[int], Runs],
    scale: Scale,
    device: str,
    flops_per_clip: float = 0,
    reference: str = "ours, bfloat16",
) -> Iterator[Row]:
    """Rows of time and of memory for growing batches, until nobody fits any more."""
    for batch in scale.gpu_batches:
        torch.compiler.reset()  # for every size a program of its own, and no memory kept for graphs of the last one
        try:
            runs = make_runs(batch)
        except torch.OutOfMemoryError:  # not even the sounds fit
            return
        memory = {name: memory_if_it_fits(run, device) for name, run in runs.items()}
        fitting = {name: run for name, run in runs.items() if memory[name] is not None}
        if not fitting:
            return
        size = GPU_PRODUCT_SIZE if device == "cuda" else scale.product_size
        if flops_per_clip:
            fitting |= floor_products(size, device, HALF)
        samples = interleave(fitting, scale.pace, synchronize_of(device))
        if flops_per_clip:
            share = flops_per_clip * batch / floor_flops(size)
            samples[FLOOR] = [seconds * share for seconds in samples.pop("torch.mm")]
            samples.pop("oneDNN", None)
        samples = {name: [] for name in runs} | samples
        notes = {name: "does not fit" for name in runs if name not in fitting}
        rows = make_rows(section, f"batch {batch}", per_clip(samples, batch), reference=reference, notes=notes)
        for row in rows:
            row.note = f"{1e3 / row.value:,.0f} clips a second" if row.value else row.note
        yield from rows
        needed = {name: [] if value is None else [value / MEGABYTE] for name, value in memory.items()}
        yield from make_rows(f"{section}, memory", f"batch {batch}", needed, "MB", reference, notes=notes)


def compiled(model: Callable, device: str, mode: str) -> Callable:
    """A processor runs the model as it is: compiling it takes minutes, and is none of what is asked there."""
    return torch.compile(model, mode=mode, dynamic=False) if device == "cuda" else model


def gpu_encoder(scale: Scale, device: str) -> Iterator[Row]:
    ours = make_encoder(scale.config).to(device)
    half = copy.deepcopy(ours).to(HALF)  # type: ignore[arg-type]
    half.mel_norm.float()  # as `from_pretrained(dtype=...)` leaves it
    clap, ast = ClapEncoder(make_encoder(scale.config)).to(device, HALF), make_ast(scale.ast_config)[1].to(device, HALF)
    models: dict[str, Any] = {
        "ours, float32": ours,
        "ours, bfloat16": half,
        "ours, bfloat16, compiled": compiled(half, device, "default"),
        "ours, bfloat16, CUDA graphs": compiled(half, device, "reduce-overhead"),
        f"{CLAP}, bfloat16": clap,
        f"{CLAP}, bfloat16, compiled": compiled(clap, device, "default"),
        f"{AST}, bfloat16": ast,
    }
    ast_shape = (scale.ast_config.max_length, scale.ast_config.num_mel_bins)

    def make_runs(batch: int) -> Runs:
        features = torch.randn(batch, 1001, scale.config.num_mel_bins, device=device)
        ast_features = torch.randn(batch, *ast_shape, device=device, dtype=HALF)

        def features_for(name: str) -> torch.Tensor:
            if name.startswith(AST):
                return ast_features
            return features.to(HALF) if name.startswith(CLAP) else features  # ours normalises in float32

        return {name: partial(model, features_for(name)) for name, model in models.items()}

    flops = count_flops(ours, torch.randn(1, 1001, scale.config.num_mel_bins, device=device))
    with torch.no_grad():
        yield from up_to_what_fits("GPU encoder", make_runs, scale, device, flops)


def gpu_front_end(scale: Scale, device: str) -> Iterator[Row]:
    """In float32: products of spectra in bfloat16 would cost up to 0.14 dB."""
    rate = scale.config.sampling_rate
    extractor, torchlibrosa = HTSATFeatureExtractor(**scale.config.front_end), make_torchlibrosa(scale.config)
    torchlibrosa = torchlibrosa.to(device) if torchlibrosa else None

    def make_runs(batch: int) -> Runs:
        sounds = torch.from_numpy(np.stack(make_sounds(min(batch, 64), rate))).to(device)
        sounds = sounds.repeat(-(-batch // 64), 1)[:batch]
        runs: Runs = {"ours": partial(extractor, sounds, rate, return_tensors="pt", device=device)}
        return runs | {TORCHLIBROSA: partial(torchlibrosa, sounds)} if torchlibrosa else runs

    with torch.no_grad():
        yield from up_to_what_fits("GPU front end", make_runs, scale, device, reference="ours")


def gpu_training(scale: Scale, device: str) -> Iterator[Row]:
    """Autocast to bfloat16 over float32 weights, as `Trainer(bf16=True)` does it."""
    names = ["ours, bfloat16", "ours, bfloat16, checkpointing", f"{CLAP}, bfloat16"]
    names += ["ours, bfloat16, compiled"] if device == "cuda" else []
    trainees = {name: Trainee(name, scale.config, device, HALF) for name in names}

    def make_runs(batch: int) -> Runs:
        features = torch.randn(batch, 1001, scale.config.num_mel_bins, device=device)
        targets = torch.rand(batch, scale.config.num_labels, device=device)
        return {name: partial(trainee.step, features, targets) for name, trainee in trainees.items()}

    yield from up_to_what_fits("GPU training step", make_runs, scale, device)
