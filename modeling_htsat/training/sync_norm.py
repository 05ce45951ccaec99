"""The batch norm over mel bins, with the statistics of all processes: synchronised batch norm, on GPUs and CPUs.

PyTorch's own `SyncBatchNorm` refuses CPUs, so that nothing could be tested without GPUs. The one norm of HTS-AT comes
first in the model: nothing before it learns, so one sum over the processes is all that it takes, and no gradients.
"""

import torch
import torch.distributed as dist
from torch import nn

from ..modeling_htsat import HTSATMelNorm


class SyncMelNorm(HTSATMelNorm):
    """Batch norm over `(batch, mels, frames)` that counts the batches of all processes as one while training."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(features)
        mean, variance = self._statistics(features)
        normalised = (features - mean[:, None]) * (variance + self.eps).rsqrt()[:, None]
        return normalised * self.weight[:, None] + self.bias[:, None]

    @torch.no_grad()
    def _statistics(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of every bin `(mels,)` over all processes; the running ones move towards them."""
        values = features.double()  # the variance is a difference of sums that nearly cancel
        count = torch.full_like(values[0, :, 0], values.shape[0] * values.shape[2])
        sums = torch.stack([count, values.sum((0, 2)), values.square().sum((0, 2))])  # (3, mels)
        dist.all_reduce(sums)
        count, mean = sums[0], sums[1] / sums[0]
        variance = sums[2] / count - mean.square()
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), momentum)
        return mean.to(features), variance.to(features)


def synchronise_mel_norm(model: nn.Module) -> None:
    """Let the model's mel norm count all processes' batches; weights and names stay what they are."""
    for module in model.modules():
        if isinstance(norm := getattr(module, "mel_norm", None), nn.BatchNorm1d):
            norm.__class__ = SyncMelNorm


__all__ = ["SyncMelNorm", "synchronise_mel_norm"]
