"""Muon for the encoder's matrices, AdamW for everything else: from random weights it needs far fewer clips.

Muon takes the momentum of a matrix and makes all its directions equally long, so that rare ones are learnt as fast as
common ones. Vectors, the position bias and the head, whose rows are classes, stay with AdamW.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon and AdamW as one optimizer, which schedulers, checkpoints and accelerate take like any other.

    Args:
        matrices: what Muon moves. A step at some rate is as long as one of AdamW at the same rate.
        groups: parameter groups for AdamW.
        adamw_options: beta, epsilon and more, for AdamW.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        groups: list[dict[str, Any]],
        muon_rate: float,
        adamw_rate: float,
        weight_decay: float,
        **adamw_options: Any,
    ):
        muon = torch.optim.Muon(matrices, lr=muon_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        adamw = torch.optim.AdamW(groups, lr=adamw_rate, **adamw_options)
        self._parts = (muon, adamw)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part, groups in zip(self._parts, (self.param_groups[:1], self.param_groups[1:]), strict=True):
            # Loading a checkpoint puts new objects into place here, and the parts must see them.
            part.param_groups, part.state = groups, self.state
            part.step()
        return loss


def make_muon(
    model: nn.Module,
    decayed_names: Collection[str],
    muon_rate: float,
    adamw_rate: float,
    weight_decay: float,
    **adamw_options: Any,
) -> MuonWithAdamW:
    """For a model of which the named parameters shrink by weight decay, as Trainer chooses them."""
    decayed_names = set(decayed_names)
    matrices: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name not in decayed_names:
            others.append(parameter)
        elif parameter.ndim == 2 and "classifier" not in name.split("."):
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    if not matrices:
        raise ValueError(
            "muon_learning_rate: Muon moves the matrices of the encoder, and none of them learns here; set it to 0."
        )
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return MuonWithAdamW(matrices, groups, muon_rate, adamw_rate, weight_decay, **adamw_options)


__all__ = ["MuonWithAdamW", "make_muon"]
