"""Two processes normalise as one would with both of their batches; one process does as the usual batch norm."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from modeling_htsat import HTSATForAudioClassification
from modeling_htsat.training.sync_norm import SyncMelNorm, synchronise_mel_norm

MELS = 64
SIZES = (3, 2)  # clips of the two processes: unequal
TOLERANCE = 1e-5
START_METHOD = "spawn" if torch.cuda.is_available() else "fork"  # no fork can use a GPU


def decibels(num_clips: int, seed: int) -> torch.Tensor:
    """Log-mels as they are: far from zero, so that sums of squares nearly cancel."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_clips, MELS, 17, generator=generator) * 4 - 60


def make_norm(momentum: float | None = 0.1) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(MELS, momentum=momentum)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(MELS, generator=generator) + 0.5)
        norm.bias.copy_(torch.randn(MELS, generator=generator))
    return norm


def synchronised(norm: nn.BatchNorm1d) -> nn.BatchNorm1d:
    holder = nn.Module()
    holder.mel_norm = norm
    synchronise_mel_norm(holder)
    return norm


def learn(norm: nn.BatchNorm1d, batches: list[torch.Tensor], dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Outputs, gradients of a sum over the clips, and running statistics, after some batches."""
    for batch in batches:
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            outputs = norm(batch)
    outputs.float().square().sum().backward()
    return {
        "outputs": outputs.detach(),
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        **{name: buffer.clone() for name, buffer in norm.named_buffers()},
    }


CASES = {
    "float32": (0.1, None),
    "cumulative": (None, None),
    "bfloat16 autocast": (0.1, torch.bfloat16),
}


def be_a_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for name, (momentum, dtype) in CASES.items():
        norm = synchronised(make_norm(momentum))
        found[name] = learn(norm, [decibels(SIZES[rank], 10 * step + rank) for step in range(3)], dtype)
        norm.eval()
        found[name]["evaluated"] = norm(decibels(1, 99)).detach()
    norm = synchronised(make_norm().bfloat16())
    found["all in bfloat16"] = {"outputs": norm(decibels(SIZES[rank], rank).bfloat16()).detach()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory) -> list[dict]:
    """What each of two processes found; forked where that is safe, as fresh ones take seconds to import torch."""
    folder = tmp_path_factory.mktemp("two")
    mp.start_processes(be_a_process, args=(str(folder),), nprocs=2, start_method=START_METHOD)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", list(CASES))
def test_two_processes_do_as_one_with_both_batches(of_two_processes, case):
    momentum, dtype = CASES[case]
    norm = make_norm(momentum)
    joined = [torch.cat([decibels(size, 10 * step + rank) for rank, size in enumerate(SIZES)]) for step in range(3)]
    expected = learn(norm, joined, dtype)
    first, second = (found[case] for found in of_two_processes)
    outputs = torch.cat([first["outputs"], second["outputs"]])
    assert outputs.dtype == expected["outputs"].dtype
    assert torch.allclose(outputs, expected["outputs"], atol=TOLERANCE)
    for name in ("weight", "bias"):
        assert torch.allclose(first[name] + second[name], expected[name], rtol=TOLERANCE, atol=1e-3)  # sums of 85
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], expected[name], rtol=TOLERANCE)
    assert torch.allclose(first["evaluated"], norm.eval()(decibels(1, 99)).detach(), atol=TOLERANCE)


def test_alone_each_process_would_do_something_else(of_two_processes):
    expected = learn(make_norm(), [decibels(SIZES[0], 10 * step) for step in range(3)], None)
    assert not torch.allclose(of_two_processes[0]["float32"]["outputs"], expected["outputs"], atol=0.01)


def test_a_model_all_in_bfloat16_is_normalised_as_well_as_by_the_usual_norm(of_two_processes):
    joined = torch.cat([decibels(size, rank) for rank, size in enumerate(SIZES)]).bfloat16()
    exact = make_norm().bfloat16().float()(joined.float()).detach()
    usual = make_norm().bfloat16()(joined).detach()
    outputs = torch.cat([found["all in bfloat16"]["outputs"] for found in of_two_processes])
    assert outputs.dtype == torch.bfloat16
    error, usual_error = ((values - exact).abs().max() for values in (outputs, usual))
    assert error <= 2 * usual_error


def test_in_one_process_it_is_the_usual_batch_norm_bit_for_bit():
    usual, ours = make_norm(), synchronised(make_norm())
    assert isinstance(ours, SyncMelNorm)
    batches = [decibels(3, step) for step in range(3)]
    expected, found = learn(usual, batches, None), learn(ours, batches, None)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_it_changes_neither_names_nor_weights_and_touches_no_other_norm(make_model, make_features):
    model = make_model(HTSATForAudioClassification)
    other = nn.ModuleDict({"model": model, "batch_norm": nn.BatchNorm1d(3)})
    before, features = copy.deepcopy(model.state_dict()), make_features(2, 256)
    expected = model(features).logits
    synchronise_mel_norm(other)
    synchronise_mel_norm(other)
    assert type(model.htsat.mel_norm) is SyncMelNorm
    assert type(other["batch_norm"]) is nn.BatchNorm1d
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(model(features).logits, expected)


def test_a_norm_that_was_synchronised_keeps_its_precision_in_half_models(make_model):
    model = make_model(HTSATForAudioClassification)
    synchronise_mel_norm(model)
    model.half()
    assert model.htsat.mel_norm.running_mean.dtype == torch.float32
    assert model.htsat.norm.weight.dtype == torch.float16
