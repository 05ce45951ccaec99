"""Muon and AdamW are one optimizer, and each does exactly what it does alone."""

import copy

import pytest
import torch

from modeling_htsat import HTSATForAudioClassification, HTSATForSoundEventDetection
from modeling_htsat.training.muon import make_muon

DECAY = 0.05


def decayed_names(model: torch.nn.Module) -> set[str]:
    return {name for name, values in model.named_parameters() if values.ndim > 1 and "bias" not in name}


def make_optimizer(model: torch.nn.Module, rate: float = 0.01):
    return make_muon(model, decayed_names(model), 2 * rate, rate, DECAY, betas=(0.8, 0.9), eps=1e-7)


def learn(model: torch.nn.Module, optimizer: torch.optim.Optimizer, features: torch.Tensor, steps: int, seed: int = 0):
    model.train()
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        labels = torch.rand(len(features), model.config.num_labels, generator=random)
        optimizer.zero_grad()
        model(features, labels=labels).loss.backward()
        optimizer.step()


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: values.detach().clone() for name, values in model.named_parameters()}


@pytest.fixture
def model(make_model):
    return make_model(HTSATForSoundEventDetection, drop_path_rate=0.0)


def test_each_part_moves_as_it_does_alone(model, make_features):
    features, alone = make_features(4, 256), copy.deepcopy(model)
    learn(model, make_optimizer(model), features, steps=3)
    named, names = dict(alone.named_parameters()), decayed_names(alone)
    matrices = [name for name in sorted(names) if named[name].ndim == 2 and "classifier" not in name]
    muon = torch.optim.Muon(
        [named[name] for name in matrices], lr=0.02, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"
    )
    groups = [
        {"params": [named[name] for name in names - {*matrices}], "weight_decay": DECAY},
        {"params": [named[name] for name in named.keys() - names], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9), eps=1e-7)
    learn(alone, _Both(muon, adamw), features, steps=3)
    for name, values in weights(alone).items():
        torch.testing.assert_close(dict(model.named_parameters())[name], values, msg=name)


class _Both:
    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    def zero_grad(self):
        for part in self.parts:
            part.zero_grad()

    def step(self):
        for part in self.parts:
            part.step()


@pytest.mark.parametrize("token_semantic_head", [True, False])
def test_it_moves_all_that_learns_and_muon_only_the_matrices_of_the_encoder(make_model, token_semantic_head):
    model = make_model(HTSATForAudioClassification, token_semantic_head=token_semantic_head)
    model.htsat.norm.weight.requires_grad_(False)
    optimizer = make_optimizer(model)
    names = {id(values): name for name, values in model.named_parameters()}
    muon, decayed, others = ([names[id(values)] for values in group["params"]] for group in optimizer.param_groups)
    assert len(muon) + len(decayed) + len(others) == len(names) - 1
    assert all(name.startswith("htsat.") and name.endswith(".weight") for name in muon)
    assert [name.split(".")[0] for name in decayed] == ["classifier"]
    assert any("relative_position_bias_table" in name for name in others)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [DECAY, DECAY, 0.0]


def test_loaded_from_a_checkpoint_it_goes_on_as_if_it_had_never_stopped(model, make_features, tmp_path):
    features, stopped = make_features(4, 256), copy.deepcopy(model)
    optimizer = make_optimizer(model)
    learn(model, optimizer, features, steps=2)
    learn(model, optimizer, features, steps=2, seed=1)
    before = make_optimizer(stopped)
    learn(stopped, before, features, steps=2)
    torch.save(before.state_dict(), tmp_path / "optimizer.pt")
    again = make_optimizer(stopped, rate=99.0)
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    learn(stopped, again, features, steps=2, seed=1)
    for name, values in weights(model).items():
        assert torch.equal(dict(stopped.named_parameters())[name], values), name


def test_a_schedule_reaches_both_parts(model, make_features):
    optimizer = make_optimizer(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step == 0))
    learn(model, optimizer, make_features(2, 256), steps=1)
    schedule.step()
    before = weights(model)
    learn(model, optimizer, make_features(2, 256), steps=2)  # at a rate of zero
    assert all(torch.equal(values, before[name]) for name, values in weights(model).items())


def test_a_frozen_encoder_is_refused_by_name(model):
    model.htsat.requires_grad_(False)
    with pytest.raises(ValueError, match="none of them learns here"):
        make_optimizer(model)
