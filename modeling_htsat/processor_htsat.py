"""What makes HTS-AT fast on a processor: the same sums by other operators, in other pieces, in memory that is kept.

Nobody needs it: where it does not apply (other devices and types, compilers, exporters, whoever watches operators), the
model takes PyTorch's usual way.
"""

import ctypes
import platform
from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.data import get_worker_info
from transformers.activations import GELUActivation

LARGEST_KEPT = 2**25  # beyond 32 MB, glibc maps memory anew for every tensor
KEPT_BY_TRAINING = 2**31 - 1  # all that `mallopt` can be told
LARGEST_KEPT_BY_WORKERS = 2**22
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h
SCORES_AT_ONCE = 2**18  # 1 MB, which a processor's caches hold
HAS_VECTORS = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
ONEDNN_IS_FAST = torch.backends.mkldnn.is_available() and HAS_VECTORS and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def is_eager(tensor: torch.Tensor) -> bool:
    """Whether PyTorch runs this as it stands, on a processor: compilers and exporters know better by themselves, and
    who watches or transforms operators (a counter of FLOPs, `torch.func`) knows only the usual ones."""
    is_translated = torch.compiler.is_compiling() or torch.jit.is_tracing()
    is_transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return tensor.device.type == "cpu" and not (is_translated or is_transformed or is_in_torch_dispatch_mode())


def is_plain_float32(tensor: torch.Tensor) -> bool:
    """Whether the ways that are faster on a processor may be taken: they are written for float32 alone."""
    is_float32 = tensor.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return is_float32 and is_eager(tensor) and tensor.numel() > 0


def is_watched(module: nn.Module) -> bool:
    """Whether somebody has hung a hook into its call, or another call in the place of its own, as accelerate does."""
    hooks = module._forward_hooks or module._forward_pre_hooks or torch.nn.modules.module._has_any_global_hook()
    return bool(hooks) or "forward" in vars(module)


def keep_freed_memory(is_training: bool):
    """Have glibc keep what tensors free, instead of handing it back and fetching it anew, page by page."""
    _set_up_memory(is_training, is_worker=get_worker_info() is not None)


@cache
def _set_up_memory(is_training: bool, is_worker: bool):
    """What glibc hands back lies beyond twice the largest piece that was ever freed, if that was not beyond its limit.

    So one such piece is freed here, of which no page is ever touched: 64 MB are kept then. A step of training frees far
    more. A worker of a data loader, though, frees its batches late, as another thread sends them: kept, those of long
    recordings had the heap grow for hours, as if the next, a little larger, did not fit in. So it keeps nothing large.
    """
    torch.empty(LARGEST_KEPT - 2**16, dtype=torch.uint8)
    if not (is_training or is_worker) or platform.libc_ver()[0] != "glibc":
        return
    set_option = ctypes.CDLL(None).mallopt
    if is_worker:
        set_option(M_TRIM_THRESHOLD, 2 * LARGEST_KEPT)
        set_option(M_MMAP_THRESHOLD, LARGEST_KEPT_BY_WORKERS)
    else:
        set_option(M_TRIM_THRESHOLD, KEPT_BY_TRAINING)


# ── linear layers ─────────────────────────────────────────────────────────────────────────────────────────────────────


class OneDNNLinear(torch.autograd.Function):
    """A linear layer by oneDNN, by an operator that PyTorch keeps for its compiler and that has no gradients itself."""

    @staticmethod
    def forward(ctx, tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(tokens, weight)
        return torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tokens, weight = ctx.saved_tensors
        wants_tokens, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            OneDNNLinear.apply(gradient, weight.t(), None) if wants_tokens else None,
            OneDNNLinear.multiply_turned(gradient, tokens) if wants_weight else None,
            gradient.sum(0) if wants_bias else None,
        )

    @staticmethod
    def multiply_turned(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """`left.t() @ right`, or the turned product turned back, whichever copies less: the first factor or product."""
        (num_rows, num_left), (_, num_right) = left.shape, right.shape
        if num_rows * num_left <= num_rows * num_right + num_left * num_right:
            return OneDNNLinear.apply(left.t(), right.t(), None)
        return OneDNNLinear.apply(right.t(), left.t(), None).t()


def suits_onednn(tokens: torch.Tensor, weight: torch.Tensor) -> bool:
    is_plain = type(weight) in (nn.Parameter, torch.Tensor) and weight.dtype == torch.float32  # not sharded, quantized
    return ONEDNN_IS_FAST and torch.backends.mkldnn.enabled and is_plain and is_plain_float32(tokens)


def linear(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear`, which on a processor goes to oneDNN where PyTorch would ask MKL: the same sums in less time.

    MKL does without AVX-512 on processors other than Intel's; oneDNN writes its machine code for the one that it finds:
    on an AMD EPYC twice as fast (`benchmarks/README.md`).
    """
    if not suits_onednn(tokens, weight):
        return F.linear(tokens, weight, bias)
    rows = OneDNNLinear.apply(tokens.reshape(-1, tokens.shape[-1]), weight, bias)
    return rows.view(*tokens.shape[:-1], len(weight))


class HTSATLinear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return linear(tokens, self.weight, self.bias)


def activate(layer: nn.Module, activation: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """`activation(layer(tokens))`, in one pass where it is GELU and nobody needs to know what comes in between."""
    is_ours = type(layer) is HTSATLinear and type(activation) is GELUActivation  # an adapter's is another one
    is_seen = torch.is_grad_enabled() or is_watched(layer) or is_watched(activation)
    if is_seen or not is_ours or not suits_onednn(tokens, layer.weight):
        return activation(layer(tokens))
    rows = tokens.reshape(-1, layer.in_features)
    rows = torch.ops.mkldnn._linear_pointwise(rows, layer.weight, layer.bias, "gelu", [], "none")
    return rows.view(*tokens.shape[:-1], layer.out_features)


# ── attention ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def parts_are_faster(query_key_value: torch.Tensor) -> bool:
    """One thread without gradients does better with PyTorch's fused kernel, which gains little by a second thread.

    With gradients, that kernel takes no biases that learn, and gives way to products that keep all scores of a batch.
    """
    suits = HAS_VECTORS and is_plain_float32(query_key_value)  # first, as compilers take no number of threads
    return suits and (query_key_value.requires_grad or torch.get_num_threads() > 1)


def parts_of_windows(num_windows: int, bias: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """Which windows come next, and which biases are theirs: all share one, or each window of a clip has its own."""
    num_biases, num_at_once = bias.shape[0], max(1, SCORES_AT_ONCE // bias[0].numel())
    num_together = num_biases if num_biases > 1 else num_windows
    for first in range(0, num_windows, num_together):
        for start in range(0, num_together, num_at_once):
            stop = min(start + num_at_once, num_together)
            yield slice(first + start, first + stop), slice(start, stop) if num_biases > 1 else slice(0, 1)


class AttentionInParts(torch.autograd.Function):
    """Attention by some windows at a time, whose scores stay in a processor's caches; going back makes them anew.

    Takes `(windows, tokens, 3, heads, head_dim)` and the bias, and gives `(windows, tokens, heads, head_dim)`.
    """

    @staticmethod
    def forward(ctx, query_key_value: torch.Tensor, bias: torch.Tensor, scaling: float) -> torch.Tensor:
        ctx.save_for_backward(query_key_value, bias)
        ctx.scaling = scaling
        num_windows, num_tokens, _, num_heads, head_dim = query_key_value.shape
        context = query_key_value.new_empty(num_windows, num_tokens, num_heads, head_dim)
        for windows, biases in parts_of_windows(num_windows, bias):
            *_, value, probabilities = AttentionInParts.attend(query_key_value[windows], bias[biases], scaling)
            context[windows] = (probabilities @ value).unflatten(0, (-1, num_heads)).transpose(1, 2)
        return context

    @staticmethod
    def attend(
        query_key_value: torch.Tensor, bias: torch.Tensor, scaling: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key, value and probabilities, `(windows * heads, tokens, ...)`: one call multiplies all."""
        query, key, value = query_key_value.permute(2, 0, 3, 1, 4).flatten(1, 2)
        scores = torch.bmm(query, key.transpose(1, 2)).unflatten(0, (-1, bias.shape[1]))
        torch.add(bias, scores, alpha=scaling, out=scores)
        return query, key, value, torch.softmax(scores, dim=-1, out=scores).flatten(0, 1)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_key_value, bias = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of gradients: the plain way has them
            query, key, value = query_key_value.transpose(1, 3).unbind(2)
            scores = query @ key.transpose(2, 3) * ctx.scaling + bias.repeat(len(query) // len(bias), 1, 1, 1)
            context = (scores.softmax(-1) @ value).transpose(1, 2)
            return *torch.autograd.grad(context, (query_key_value, bias), gradient, create_graph=True), None
        gradients, bias_gradient = torch.empty_like(query_key_value), torch.zeros_like(bias)
        for windows, biases in parts_of_windows(len(query_key_value), bias):
            attended = AttentionInParts.attend(query_key_value[windows], bias[biases], ctx.scaling)
            query, key, value, probabilities = attended
            context_gradient = gradient[windows].transpose(1, 2).flatten(0, 1)
            score_gradient = torch._softmax_backward_data(
                context_gradient @ value.transpose(1, 2), probabilities, -1, probabilities.dtype
            )
            of_query, of_key, of_value = gradients[windows].permute(2, 0, 3, 1, 4)
            of_query.copy_((score_gradient @ key).mul_(ctx.scaling).view_as(of_query))
            of_key.copy_((score_gradient.transpose(1, 2) @ query).mul_(ctx.scaling).view_as(of_key))
            of_value.copy_((probabilities.transpose(1, 2) @ context_gradient).view_as(of_value))
            bias_gradient[biases] += score_gradient.unflatten(0, (-1, bias.shape[1])).sum_to_size(bias[biases].shape)
        return gradients, bias_gradient, None


__all__ = ["AttentionInParts", "HTSATLinear", "activate", "is_eager", "keep_freed_memory", "linear", "parts_are_faster"]
