"""HTS-AT: a Swin transformer over log-mel spectrograms, with a token-semantic head that places events in time.

Axes, as they appear in shape comments:
    frames, mels            the spectrogram, 1001 x 64 for ten seconds
    windows                 pieces of 1024 frames that the encoder hears at once: one for ten seconds
    folds                   time chunks stacked along frequency to make the image square (4)
    tokens, dim             the image after patch embedding and in every stage, 4096 x 96 in the first
    bins, steps             the last stage with its folds put back one after the other: 2 frequency bins x 32 time steps

Tokens are kept in Z-order (Morton order) from the patch embedding to the last stage: every aligned square of 2^k x 2^k
tokens is one run of 4^k neighbours. So an attention window is 64 consecutive tokens, the four tokens of a merge are 4
consecutive ones, and a cyclic shift by half a window moves whole quarters of windows: all of them views, but for the
shift, which is one gather.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_htsat import HTSATConfig
from .feature_extraction_htsat import FREE_VALUES, HTSATFeatureExtractor
from .hub_htsat import CARD_FILE, EXTRACTOR_FILE, HTSATFilesMixin, add_tags
from .processor_htsat import AttentionInParts, HTSATLinear, activate, is_eager, keep_freed_memory, parts_are_faster

MASKED_BIAS = -100.0  # what the authors add between tokens that are neighbours only through the cyclic shift
CUBIC_A = -0.75  # the constant of PyTorch's bicubic interpolation
NUMBERS_AT_ONCE = 2**20  # of tokens: an MLP holds four times as many, and pieces beyond 32 MB cost page faults


# ── outputs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class HTSATModelOutput(ModelOutput):
    """What [`HTSATModel`] returns.

    Args:
        last_hidden_state (`(batch, dim, bins, steps)`): the map of the last stage, on the recording's time axis.
        pooler_output (`(batch, dim)`): the embedding: the mean of that map over bins and time.
        step_mask (`(batch, steps)`, bool): which steps belong to each recording.
        hidden_states (on request): the patch embedding and then every stage before its merge, each
            `(windows, height, width, dim)`; for clips of up to one window, `windows` is the batch.
        attentions (on request): one per block, `(windows x attention windows, heads, tokens, tokens)`: attention
            windows in Z-order, the tokens within one row by row.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    step_mask: torch.BoolTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class HTSATAudioClassifierOutput(ModelOutput):
    """What [`HTSATForAudioClassification`] returns.

    Args:
        loss (scalar, with `labels`): the classification loss.
        logits (`(batch, classes)`): clip scores before sigmoid or softmax.
        pooler_output, hidden_states, attentions: as in [`HTSATModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class HTSATSoundEventOutput(ModelOutput):
    """What [`HTSATForSoundEventDetection`] returns.

    Args:
        loss (scalar, with `labels` or `frame_targets`): weak loss plus strong loss.
        logits (`(batch, steps, classes)`): scores of every time step before the sigmoid. Ten seconds have 32 steps;
            `config.step_edges(num_frames)` gives their seconds.
        clip_logits (`(batch, classes)`): scores of the whole clip: those of [`HTSATForAudioClassification`].
        step_mask, pooler_output, hidden_states, attentions: as in [`HTSATModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    clip_logits: torch.FloatTensor | None = None
    step_mask: torch.BoolTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


# ── the order of tokens ───────────────────────────────────────────────────────────────────────────────────────────────


def z_order(grid: int) -> torch.Tensor:
    """Row-major index of every token of a `grid x grid` image, in Z-order; the row changes fastest, as Swin merges."""
    position = torch.arange(grid * grid)
    row, column = position // grid, position % grid
    code = torch.zeros_like(position)
    for bit in range(grid.bit_length()):
        code += ((row >> bit) & 1) << (2 * bit)
        code += ((column >> bit) & 1) << (2 * bit + 1)
    return code.argsort()


def make_shift_order(grid: int, window: int) -> torch.Tensor:
    """Which quarter of a window stands where, once the image is rolled back by half a window in both directions."""
    quarters = grid // (window // 2)
    order = z_order(quarters)
    row, column = order // quarters, order % quarters
    source = (row + 1) % quarters * quarters + (column + 1) % quarters
    return order.argsort()[source]


def make_shift_mask(grid: int, window: int) -> torch.Tensor:
    """`(windows, tokens, tokens)`: pairs that share a window of the rolled image without being neighbours."""
    region = torch.zeros(grid, dtype=torch.long)
    region[grid - window // 2 :] = 1  # came round from the other side
    region_of_token = (region[:, None] * 2 + region).flatten()[z_order(grid)].view(-1, window * window)
    return region_of_token[:, :, None] != region_of_token[:, None, :]


def make_relative_position_index(window: int) -> torch.Tensor:
    """`(tokens, tokens)`: the row of the bias table for every pair of tokens in a window."""
    order = z_order(window)
    row, column = order // window, order % window
    row_distance = row[:, None] - row[None, :] + window - 1
    column_distance = column[:, None] - column[None, :] + window - 1
    return row_distance * (2 * window - 1) + column_distance


def make_time_order(grid: int, num_folds: int) -> torch.Tensor:
    """Position in Z-order of every (bin, step) of the last stage, its folds put back one after the other."""
    position_of_token = z_order(grid).argsort().view(num_folds, grid // num_folds, grid)  # (folds, bins, columns)
    return position_of_token.transpose(0, 1).flatten()  # (bins * folds * columns) = (bins * steps)


class HTSATIndexes(nn.Module):
    """A module with index buffers that follow from the configuration.

    They are not saved. Loading leaves buffers without values, so `_init_weights` makes them anew from `make_indexes`.
    """

    def make_indexes(self) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def register_indexes(self):
        for name, values in self.make_indexes().items():
            self.register_buffer(name, values, persistent=False)


def join_parts(parts: Sequence[Any]) -> Any:
    """Concatenate what the parts of a batch returned: tensors, or equally long tuples of them."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)
    return tuple(join_parts(tensors) for tensors in zip(*parts, strict=True))


# ── from the spectrogram to tokens ────────────────────────────────────────────────────────────────────────────────────


def cubic_weights(fraction: torch.Tensor) -> torch.Tensor:
    """`(..., 4)`: how the samples at -1, 0, 1 and 2 make the value at `fraction` between 0 and 1."""
    far, near = torch.stack([1 + fraction, 2 - fraction]), torch.stack([fraction, 1 - fraction])
    far = ((CUBIC_A * far - 5 * CUBIC_A) * far + 8 * CUBIC_A) * far - 4 * CUBIC_A
    near = ((CUBIC_A + 2) * near - (CUBIC_A + 3)) * near * near + 1
    return torch.stack([far[0], near[0], near[1], far[1]], dim=-1)


def read_windows(
    spectrograms: torch.Tensor, num_frames: torch.Tensor, rows: torch.Tensor, starts: torch.Tensor, clip_frames: int
) -> torch.Tensor:
    """Cut windows of `clip_frames` out of a batch of spectrograms; one shorter than that is stretched to it.

    Stretching is PyTorch's bicubic interpolation with `align_corners=True`, for every row by its own length. A window
    that looks beyond the end of a long recording (by less than a step) sees its last frames mirrored.

    Args:
        spectrograms (`(batch, frames, mels)`): filled up to the longest.
        num_frames (`(batch,)`): their real lengths.
        rows, starts (`(windows,)`): the recording and the first frame of every window.
    """
    last_frame = (num_frames[rows] - 1)[:, None]  # (windows, 1)
    stretch = last_frame.clamp(max=clip_frames - 1) / (clip_frames - 1)
    position = starts[:, None] + stretch * torch.arange(clip_frames, device=rows.device)  # (windows, frames)
    position = torch.where(position > last_frame, 2 * last_frame - position, position)
    left = position.floor()
    weights = cubic_weights(position - left).to(spectrograms.dtype)  # (windows, frames, 4)
    all_frames = spectrograms.flatten(0, 1)
    offset = rows[:, None] * spectrograms.shape[1]
    windows = torch.zeros((), device=rows.device, dtype=spectrograms.dtype)
    for tap in range(4):
        frame = (left.long() + tap - 1).clamp(min=0).minimum(last_frame)
        windows = windows + weights[..., tap, None] * all_frames[offset + frame]
    return windows  # (windows, frames, mels)


class HTSATMelNorm(nn.BatchNorm1d):
    """Batch norm over mel bands that stays in float32 when a model is made one of half precision.

    Decibels from -100 to 60 lose up to 0.25 dB in bfloat16, and a band in which a checkpoint never heard anything
    multiplies its mean's rounding by 300.
    """

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "HTSATMelNorm":
        def keep_precision(values: torch.Tensor) -> torch.Tensor:
            changed = fn(values)
            return values.to(changed.device) if changed.dtype in (torch.float16, torch.bfloat16) else changed

        return super()._apply(keep_precision, recurse)


def fold_time_into_frequency(spectrograms: torch.Tensor, num_folds: int) -> torch.Tensor:
    """Stack the time chunks of `(windows, mels, frames)` along frequency: a square image."""
    chunks = spectrograms.unflatten(2, (num_folds, -1))  # (windows, mels, folds, width)
    return chunks.transpose(1, 2).flatten(1, 2)  # (windows, height, width)


class HTSATPatchEmbeddings(HTSATIndexes):
    """Cuts the image into patches, in Z-order, and makes one token of each."""

    def __init__(self, config: HTSATConfig):
        super().__init__()
        self.grid = config.stage_grids[0]
        self.patch_size = config.patch_size
        self.stride = config.patch_stride
        self.padding = (config.patch_size - config.patch_stride) // 2
        self.projection = nn.Linear(config.patch_size**2, config.embed_dim)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.register_indexes()

    def make_indexes(self) -> dict[str, torch.Tensor]:
        return {"token_order": z_order(self.grid)}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = F.pad(images, [self.padding] * 4)
        patches = images.unfold(1, self.patch_size, self.stride).unfold(2, self.patch_size, self.stride)
        patches = patches.flatten(3).flatten(1, 2)  # (windows, tokens, patch_size * patch_size)
        patches = patches.index_select(1, self.token_order)
        return self.dropout(self.norm(self.projection(patches)))  # (windows, tokens, dim)


# ── attention in windows ──────────────────────────────────────────────────────────────────────────────────────────────


class HTSATWindowing(HTSATIndexes):
    """How one stage cuts its tokens into attention windows, straight or shifted by half a window."""

    def __init__(self, grid: int, window: int):
        super().__init__()
        self.grid, self.window = grid, window
        self.can_shift = grid > window  # a stage of one window has no neighbours to shift towards
        self.register_indexes()

    def make_indexes(self) -> dict[str, torch.Tensor]:
        indexes = {"relative_position_index": make_relative_position_index(self.window)}
        if self.can_shift:
            shift_order = make_shift_order(self.grid, self.window)
            indexes |= {"shift_order": shift_order, "unshift_order": shift_order.argsort()}
            indexes["shift_mask"] = make_shift_mask(self.grid, self.window)
        return indexes

    def shift(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._move_quarters(tokens, self.shift_order)

    def unshift(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._move_quarters(tokens, self.unshift_order)

    def _move_quarters(self, tokens: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        quarters = tokens.unflatten(1, (len(order), -1)).flatten(2)  # (windows, quarters, tokens of one * dim)
        return quarters.index_select(1, order).view_as(tokens)

    def attention_bias(self, bias_table: torch.Tensor, is_shifted: bool) -> torch.Tensor:
        """`(windows or 1, heads, tokens, tokens)`: what is added to the scaled products of queries and keys."""
        bias = bias_table[self.relative_position_index].permute(2, 0, 1)[None]  # (1, heads, tokens, tokens)
        if is_shifted:
            bias = torch.where(self.shift_mask[:, None], bias + MASKED_BIAS, bias)
        return bias.contiguous()

    def to_row_order(self, attention: torch.Tensor) -> torch.Tensor:
        """Both token axes of an attention map from Z-order to row by row."""
        rank = z_order(self.window).argsort().to(attention.device)
        return attention[..., rank, :][..., rank]


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain products, which can also be looked at. Heads in, `(windows, tokens, heads, head_dim)` out."""
    scores = query @ key.transpose(-1, -2) * scaling + attention_mask
    probabilities = scores.softmax(dim=-1)
    dropped = F.dropout(probabilities, dropout, module.training)
    return (dropped @ value).transpose(1, 2), probabilities


class HTSATAttention(nn.Module):
    """Multi-head self-attention among the tokens of each window, with a learned bias per distance."""

    def __init__(self, config: HTSATConfig, dim: int, num_heads: int, window: int):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.scaling = (dim // num_heads) ** -0.5
        self.dropout_prob = config.attention_probs_dropout_prob
        self.is_causal = False
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.qkv = HTSATLinear(dim, 3 * dim, bias=config.qkv_bias)
        self.projection = HTSATLinear(dim, dim)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, windows: torch.Tensor, bias: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query_key_value = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1))
        dropout = self.dropout_prob if self.training else 0.0
        is_sdpa = self.config._attn_implementation == "sdpa" and not output_attentions
        if is_sdpa and not dropout and parts_are_faster(query_key_value):
            context = AttentionInParts.apply(query_key_value, bias, self.scaling)
            return self.dropout(self.projection(context.flatten(2))), None
        query, key, value = query_key_value.transpose(1, 3).unbind(2)  # each (windows, heads, tokens, head_dim)
        # Sizes by `shape`, not by `len`, which would fix the batch of an exported program.
        bias = bias.repeat(windows.shape[0] // bias.shape[0], 1, 1, 1) if bias.shape[0] > 1 else bias
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        if output_attentions:  # the fused kernels keep none
            attend = eager_attention_forward
        context, probabilities = attend(self, query, key, value, bias, scaling=self.scaling, dropout=dropout)
        return self.dropout(self.projection(context.flatten(2))), probabilities


class HTSATMLP(nn.Module):
    def __init__(self, config: HTSATConfig, dim: int):
        super().__init__()
        self.up = HTSATLinear(dim, int(dim * config.mlp_ratio))
        self.activation = ACT2FN[config.hidden_act]
        self.down = HTSATLinear(int(dim * config.mlp_ratio), dim)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = activate(self.up, self.activation, tokens)
        return self.dropout(self.down(self.dropout(hidden)))


def drop_path(branch: torch.Tensor, drop_prob: float, training: bool) -> torch.Tensor:
    """Stochastic depth: in training, leave a residual branch out for some of the clips."""
    if drop_prob == 0 or not training:
        return branch
    kept = branch.new_empty(branch.shape[0], 1, 1).bernoulli_(1 - drop_prob)
    return branch * kept / (1 - drop_prob)


class HTSATBlock(GradientCheckpointingLayer):
    """One transformer block: attention within windows, then an MLP, each beside its residual."""

    def __init__(self, config: HTSATConfig, stage: int, is_shifted: bool, drop_path_prob: float):
        super().__init__()
        dim, window = config.stage_dims[stage], config.stage_windows[stage]
        self.is_shifted = is_shifted
        self.drop_path_prob = drop_path_prob
        self.attention_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attention = HTSATAttention(config, dim, config.num_heads[stage], window)
        self.mlp_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = HTSATMLP(config, dim)
        self._known_bias: tuple[torch.Tensor, torch.Tensor] | None = None  # a table and what was made of it

    def forward(
        self, tokens: torch.Tensor, windowing: HTSATWindowing, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, attentions = self.attend(self.attention_norm(tokens), windowing, output_attentions)
        tokens = tokens + drop_path(attended, self.drop_path_prob, self.training)
        transformed = self.mlp(self.mlp_norm(tokens))
        return tokens + drop_path(transformed, self.drop_path_prob, self.training), attentions

    def attend(
        self, tokens: torch.Tensor, windowing: HTSATWindowing, output_attentions: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        bias = self._attention_bias(windowing)
        shifted = windowing.shift(tokens) if self.is_shifted else tokens
        windows = shifted.reshape(-1, windowing.window**2, tokens.shape[-1])
        attended, attentions = self.attention(windows, bias, output_attentions)
        attended = attended.view_as(tokens)
        return windowing.unshift(attended) if self.is_shifted else attended, attentions

    def _attention_bias(self, windowing: HTSATWindowing) -> torch.Tensor:
        """Without gradients it is made once, and again when the table is another: to compare some numbers is cheap."""
        table = self.attention.relative_position_bias_table
        if torch.is_grad_enabled() or not is_eager(table):
            return windowing.attention_bias(table, self.is_shifted)
        known = self._known_bias
        if known is None or known[0].dtype != table.dtype or not torch.equal(known[0], table):
            known = self._known_bias = (table.clone(), windowing.attention_bias(table, self.is_shifted))
        return known[1]


class HTSATPatchMerging(nn.Module):
    """Makes one token of every 2 x 2, twice as wide."""

    def __init__(self, config: HTSATConfig, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=config.layer_norm_eps)
        self.reduction = HTSATLinear(4 * dim, 2 * dim, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        squares = tokens.unflatten(1, (-1, 4)).flatten(2)  # (windows, tokens / 4, 4 * dim)
        return self.reduction(self.norm(squares))


class HTSATStage(nn.Module):
    """Blocks at one resolution, straight and shifted in turn, and the merge that ends them (not in the last stage)."""

    def __init__(self, config: HTSATConfig, stage: int):
        super().__init__()
        self.windowing = HTSATWindowing(config.stage_grids[stage], config.stage_windows[stage])
        first_block = sum(config.depths[:stage])
        drop_step = config.drop_path_rate / max(sum(config.depths) - 1, 1)
        self.blocks = nn.ModuleList(
            HTSATBlock(config, stage, self.windowing.can_shift and block % 2 == 1, drop_step * (first_block + block))
            for block in range(config.depths[stage])
        )
        is_last = stage == len(config.depths) - 1
        self.merge = nn.Identity() if is_last else HTSATPatchMerging(config, config.stage_dims[stage])

    def forward(
        self, tokens: torch.Tensor, output_attentions: bool = False, output_hidden_states: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """The tokens for the next stage, those before the merge and the attentions, both if asked for."""
        parts = tokens.split(max(1, NUMBERS_AT_ONCE // tokens[0].numel())) if self._goes_in_parts(tokens) else [tokens]
        return join_parts([self.run_blocks(part, output_attentions, output_hidden_states) for part in parts])

    def _goes_in_parts(self, tokens: torch.Tensor) -> bool:
        """Not where gradients keep all parts in memory anyway, as they do without activation checkpointing."""
        is_checkpointed = self.training and self.blocks[0].gradient_checkpointing
        return is_eager(tokens) and (is_checkpointed or not torch.is_grad_enabled())

    def run_blocks(
        self, tokens: torch.Tensor, output_attentions: bool, output_hidden_states: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        attentions: tuple[torch.Tensor, ...] = ()
        for block in self.blocks:
            tokens, attention = block(tokens, self.windowing, output_attentions)
            if output_attentions:
                attentions += (self.windowing.to_row_order(attention),)
        return self.merge(tokens), (tokens,) if output_hidden_states else (), attentions


class HTSATTimeMap(HTSATIndexes):
    """Puts the time chunks that folding stacked along frequency back one after the other."""

    def __init__(self, config: HTSATConfig):
        super().__init__()
        self.grid, self.num_folds, self.num_bins = config.stage_grids[-1], config.num_folds, config.num_bins
        self.register_indexes()

    def make_indexes(self) -> dict[str, torch.Tensor]:
        return {"time_order": make_time_order(self.grid, self.num_folds)}

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens.index_select(1, self.time_order)  # (windows, bins * steps, dim)
        return tokens.transpose(1, 2).unflatten(2, (self.num_bins, -1))  # (windows, dim, bins, steps)


# ── recordings longer than one window ─────────────────────────────────────────────────────────────────────────────────


class WindowPlan(NamedTuple):
    """Which windows a batch of recordings is heard through.

    starts (`(batch, windows)`): the step at which every window begins. All recordings have as many as the longest.
    window_counts, step_counts (`(batch,)`): how many windows and steps each recording really has.
    total_steps: the steps of the longest.
    rows, first_steps (`(encoded,)`): recording and first step of the windows that are encoded.
    slots (`(batch, windows)`): where among those each window is found.
    """

    starts: torch.Tensor
    window_counts: torch.Tensor
    step_counts: torch.Tensor
    total_steps: int
    rows: torch.Tensor
    first_steps: torch.Tensor
    slots: torch.Tensor


def plan_windows(config: HTSATConfig, num_frames: torch.Tensor, max_frames: int) -> WindowPlan:
    """Lay overlapping windows over recordings of `num_frames` frames, on the grid of steps; the last one ends each.

    Up to one window, a recording has one. All sizes follow from `max_frames`, so that the model compiles and exports.
    """
    hop = config.num_steps - config.overlap_steps
    total_steps = config.num_steps_of(max_frames)
    max_windows = 1 - (config.num_steps - total_steps) // hop
    beyond = (num_frames - config.clip_frames).clamp(min=0) + config.frames_per_step - 1
    last_start = beyond // config.frames_per_step  # (batch,)
    window_counts = 1 + (last_start + hop - 1) // hop
    window = torch.arange(max_windows, device=num_frames.device)
    starts = (window * hop).minimum(last_start[:, None])  # (batch, windows)
    if max_windows == 1 or torch.compiler.is_compiling():  # sizes that depend on data would not compile
        slots = torch.arange(starts.numel(), device=starts.device).view_as(starts)
        rows = torch.arange(starts.shape[0], device=starts.device)[:, None].expand_as(starts).flatten()
        first_steps = starts.flatten()
    else:
        is_encoded = window < window_counts[:, None]
        slots = (is_encoded.flatten().cumsum(0) - 1).view_as(starts)
        rows, first_steps = is_encoded.nonzero()[:, 0], starts[is_encoded]
    return WindowPlan(starts, window_counts, config.num_steps + last_start, total_steps, rows, first_steps, slots)


def join_windows(maps: torch.Tensor, plan: WindowPlan, hop: int) -> torch.Tensor:
    """Put the windows' maps on their recordings' time axes, averaged where they overlap; zero beyond a recording.

    As windows overlap by half at most, a step is heard by the window that begins in the same hop, by the one before,
    and perhaps by the one after, if that is the last and had to begin early.
    """
    window_steps = maps.shape[-1]
    if plan.total_steps == window_steps:
        return maps
    columns = maps.permute(0, 3, 1, 2)  # (encoded, steps, dim, bins)
    step = torch.arange(plan.total_steps, device=maps.device)
    sums, counts = maps.new_zeros(()), maps.new_zeros(())
    for neighbour in (-1, 0, 1):
        window = step // hop + neighbour  # (steps of the recording,)
        is_window = (window >= 0) & (window < plan.window_counts[:, None])  # (batch, steps)
        window = window.clamp(0, plan.starts.shape[1] - 1)
        offset = step - plan.starts[:, window]
        hears = (is_window & (offset >= 0) & (offset < window_steps))[..., None, None].to(maps.dtype)
        sums = sums + columns[plan.slots[:, window], offset.clamp(0, window_steps - 1)] * hears
        counts = counts + hears
    return (sums / counts.clamp(min=1)).permute(0, 2, 3, 1)  # (batch, dim, bins, steps)


def masked_mean(steps: torch.Tensor, step_mask: torch.Tensor) -> torch.Tensor:
    """Mean of `(batch, steps, numbers)` over the steps that the mask names; an hour of them overflows in float16."""
    weights = step_mask[..., None].float()
    return ((steps.float() * weights).sum(1) / weights.sum(1)).to(steps.dtype)


def linear_softmax(logits: torch.Tensor, step_mask: torch.Tensor) -> torch.Tensor:
    """Pool `(batch, steps, classes)` over the steps that the mask names: probabilities p, weighted by themselves.

    The clip's probability is sum(p²) / sum(p), so that steps without the sound hardly count. Its logit, computed from
    logits without leaving them, is log(sum(p²)) - log(sum(p (1 - p))).
    """
    outside = ~step_mask[..., None]
    log_p, log_not_p = (F.logsigmoid(scores.float()).masked_fill(outside, -torch.inf) for scores in (logits, -logits))
    return ((2 * log_p).logsumexp(1) - (log_p + log_not_p).logsumexp(1)).to(logits.dtype)


# ── the model ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class HTSATPreTrainedModel(HTSATFilesMixin, PreTrainedModel):
    config_class = HTSATConfig
    base_model_prefix = "htsat"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["HTSATModel"]  # 30 M parameters fit anywhere whole
    # The same when a checkpoint is loaded in half precision. These are the first parameters: `model.dtype` says float32
    # for a half-precision model, so that pipelines leave its features alone.
    _keep_in_fp32_modules_strict = ["mel_norm"]
    # Our losses are means already. Without this, Trainer divides by the number of items once more, and the loss grows
    # with gradient accumulation and with the number of processes.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, HTSATAttention):
            init.trunc_normal_(module.relative_position_bias_table, std=self.config.initializer_range)
        elif isinstance(module, HTSATIndexes):
            for name, values in module.make_indexes().items():
                init.copy_(getattr(module, name), values)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, *args: Any, **kwargs: Any
    ):
        """As everywhere, with the extractor that hears what the model does, and with the code of both.

        All files take their places at once, when the last of them is written.
        """
        kwargs["push_to_hub"] = kwargs.get("push_to_hub", False) and is_main_process
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)

    def _save_files(self, save_directory: Any, is_main_process: bool, *args: Any, **kwargs: Any):
        if not is_main_process:  # it has no files of its own
            return PreTrainedModel.save_pretrained(self, save_directory, is_main_process, *args, **kwargs)
        return super()._save_files(save_directory, is_main_process, *args, **kwargs)

    def _write_files(self, folder: Path, older: Path, *args: Any, **kwargs: Any):
        self._save_extractor(folder, older / EXTRACTOR_FILE)
        super()._write_files(folder, older, *args, **kwargs)
        # transformers names the type of the first parameters, which stay float32, and would load all as such.
        last_dtype = list(self.parameters())[-1].dtype
        if last_dtype != self.dtype:
            self.config.dtype = str(last_dtype).removeprefix("torch.")
            self.config.save_pretrained(folder)

    def _save_extractor(self, folder: Path, older: Path):
        """What the model knows of its front end; an extractor that is there already decides on the rest."""
        try:
            given = json.loads(older.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none, or one that a run which was killed wrote to its half
            given = {}
        kept = {name: given[name] for name in FREE_VALUES if name in given}
        HTSATFeatureExtractor(**kept, **self.config.front_end).save_pretrained(folder)

    def _add_card(self, folder: Path, name: str, tags: list[str]):
        card_file = folder / CARD_FILE
        if not card_file.exists():
            type(self).card_writer(folder, self, name)
        if tags := [*(self.model_tags or []), *tags]:
            add_tags(card_file, tags)


class HTSATModel(HTSATPreTrainedModel):
    """The encoder: from log-mel spectrograms of any length to a map over time, and one embedding."""

    _auto_class = "AutoModel"

    def __init__(self, config: HTSATConfig):
        super().__init__(config)
        self.mel_norm = HTSATMelNorm(config.num_mel_bins)
        self.patch_embed = HTSATPatchEmbeddings(config)
        self.stages = nn.ModuleList(HTSATStage(config, stage) for stage in range(len(config.depths)))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.time_map = HTSATTimeMap(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> HTSATModelOutput:
        """Encode log-mel spectrograms.

        Args:
            input_features (`(batch, frames, mels)`): decibels, from [`HTSATFeatureExtractor`].
            attention_mask (`(batch, frames)`): 1 where a frame is real, 0 where it only fills the batch, at the end.
            output_attentions, output_hidden_states: whether to return them too.
        """
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        if is_eager(input_features):
            keep_freed_memory(self.training and torch.is_grad_enabled())
        num_frames = self._count_frames(input_features, attention_mask)
        plan = plan_windows(self.config, num_frames, input_features.shape[1])
        spectrograms = input_features.to(self.mel_norm.weight.dtype)
        passes = []
        for rows, first_steps in self._passes(plan, input_features.shape[0]):
            starts = first_steps * self.config.frames_per_step
            windows = read_windows(spectrograms, num_frames, rows, starts, self.config.clip_frames)
            passes.append(self.encode(windows, output_attentions, output_hidden_states))
        maps, hidden_states, attentions = join_parts(passes)
        feature_map = join_windows(maps, plan, self.config.num_steps - self.config.overlap_steps)
        step_mask = torch.arange(plan.total_steps, device=maps.device) < plan.step_counts[:, None]
        return HTSATModelOutput(
            last_hidden_state=feature_map,
            pooler_output=masked_mean(feature_map.mean(2).transpose(1, 2), step_mask),
            step_mask=step_mask,
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )

    def encode(
        self, windows: torch.Tensor, output_attentions: bool = False, output_hidden_states: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """The map `(windows, dim, bins, steps)` of spectrograms of exactly one window, `(windows, frames, mels)`."""
        normalized = self.mel_norm(windows.transpose(1, 2))  # (windows, mels, frames)
        images = fold_time_into_frequency(normalized, self.config.num_folds)
        tokens = self.patch_embed(images.to(self.patch_embed.projection.weight.dtype))
        hidden_states, attentions = (self._as_image(tokens),) if output_hidden_states else (), ()
        for stage in self.stages:
            tokens, before_merge, stage_attentions = stage(tokens, output_attentions, output_hidden_states)
            hidden_states += tuple(self._as_image(hidden) for hidden in before_merge)
            attentions += stage_attentions
        return self.time_map(self.norm(tokens)), hidden_states, attentions

    def _as_image(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens in Z-order as `(windows, height, width, dim)`."""
        grid = math.isqrt(tokens.shape[1])
        rank = z_order(grid).argsort().to(tokens.device)
        return tokens[:, rank].unflatten(1, (grid, grid))

    def _passes(self, plan: WindowPlan, batch: int) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """Windows that are encoded together. In training all of them: batch norm must see the whole batch."""
        if self.training or plan.total_steps == self.config.num_steps:
            return [(plan.rows, plan.first_steps)]
        size = max(batch, self.config.windows_per_pass)
        return zip(plan.rows.split(size), plan.first_steps.split(size), strict=True)

    def _count_frames(self, input_features: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Real frames of every recording, `(batch,)`."""
        if input_features.ndim != 3 or input_features.shape[2] != self.config.num_mel_bins or 0 in input_features.shape:
            raise ValueError(
                f"`input_features` has shape {tuple(input_features.shape)}; (batch, frames, {self.config.num_mel_bins})"
                " is needed, none of them empty. HTSATFeatureExtractor makes it from waveforms."
            )
        if attention_mask is None:
            # With its type, which older exporters would not guess.
            full = {"dtype": torch.int64, "device": input_features.device}
            return torch.full(input_features.shape[:1], input_features.shape[1], **full)
        if attention_mask.shape != input_features.shape[:2]:
            raise ValueError(
                f"`attention_mask` has shape {tuple(attention_mask.shape)}; that of the frames, "
                f"{tuple(input_features.shape[:2])}, is needed. Pass on the one that the feature extractor returned."
            )
        return attention_mask.long().sum(1).clamp(min=1)


# ── heads ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class HTSATTokenSemanticHead(nn.Module):
    """Scores every time step from its tokens and their neighbours in time, and the clip from its steps."""

    def __init__(self, config: HTSATConfig):
        super().__init__()
        self.pool = linear_softmax if config.clip_pooling == "linear_softmax" else masked_mean
        self.convolution = nn.Conv2d(config.hidden_size, config.num_labels, (config.num_bins, 3), padding=(0, 1))

    def forward(self, encoded: HTSATModelOutput) -> tuple[torch.Tensor, torch.Tensor]:
        frame_logits = self.convolution(encoded.last_hidden_state).squeeze(2).transpose(1, 2)
        return frame_logits, self.pool(frame_logits, encoded.step_mask)  # (batch, steps, classes), (batch, classes)


class HTSATLinearHead(nn.Module):
    """One linear layer on the mean token; for single steps on the sum over the bins, as the authors' code has it."""

    def __init__(self, config: HTSATConfig):
        super().__init__()
        self.linear = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, encoded: HTSATModelOutput) -> tuple[torch.Tensor, torch.Tensor]:
        summed_bins = torch.sum(encoded.last_hidden_state, dim=2)  # (batch, dim, steps)
        return self.linear(summed_bins.transpose(1, 2)), self.linear(encoded.pooler_output)


def make_head(config: HTSATConfig) -> nn.Module:
    return HTSATTokenSemanticHead(config) if config.token_semantic_head else HTSATLinearHead(config)


# ── losses ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def multi_label_loss(
    logits: torch.Tensor, targets: torch.Tensor, name: str, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean binary cross-entropy; targets that are NaN or negative are missing, like those outside the mask."""
    if logits.shape != targets.shape:
        raise ValueError(
            f"`{name}` has shape {tuple(targets.shape)}; that of the scores, {tuple(logits.shape)}, is needed: one "
            "value from 0 to 1 for every class, NaN or -100 where it is not known."
        )
    targets = targets.to(device=logits.device, dtype=torch.float32)
    is_known = targets >= 0 if mask is None else (targets >= 0) & mask  # False for NaN
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.where(is_known, 0), reduction="none")
    return (losses * is_known).sum() / is_known.sum().clamp(min=1)


def single_label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy; labels are class indices (-100: missing), or probabilities of all classes (mixed labels)."""
    if labels.is_floating_point() and labels.shape == logits.shape:
        is_known = (labels >= 0).all(1)  # False for NaN and -100
        losses = F.cross_entropy(logits.float(), labels.float().where(is_known[:, None], 0), reduction="none")
        return losses.sum() / is_known.sum().clamp(min=1)
    if labels.is_floating_point() or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"`labels` has shape {tuple(labels.shape)} and type {labels.dtype}; single-label classification needs one "
            f"class index per clip, {tuple(logits.shape[:1])}, or the probabilities of all classes, "
            f"{tuple(logits.shape)}. For several labels a clip, set `problem_type='multi_label_classification'`."
        )
    is_known = labels != -100
    losses = F.cross_entropy(logits.float(), labels.long(), ignore_index=-100, reduction="none")
    return losses.sum() / is_known.sum().clamp(min=1)


def regression_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean squared error; targets that are NaN are missing."""
    is_single = logits.shape[1] == 1 and targets.shape == logits.shape[:1]
    if targets.shape != logits.shape and not is_single:
        raise ValueError(
            f"`labels` has shape {tuple(targets.shape)}; that of the outputs, {tuple(logits.shape)}, is needed."
        )
    targets = targets.to(torch.float32).view_as(logits)
    is_known = ~targets.isnan()
    return ((logits.float() - targets.where(is_known, 0)).square() * is_known).sum() / is_known.sum().clamp(min=1)


def clip_loss(logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """The loss of clip labels; without a problem type, their shape and type decide. The config stays as it is."""
    if problem_type is None:
        is_index = labels.ndim == 1 and not labels.is_floating_point()
        problem_type = "single_label_classification" if is_index else "multi_label_classification"
        problem_type = "regression" if logits.shape[1] == 1 and labels.is_floating_point() else problem_type
    if problem_type == "regression":
        return regression_loss(logits, labels)
    if problem_type == "single_label_classification":
        return single_label_loss(logits, labels)
    if labels.ndim == 1 and not labels.is_floating_point():
        raise ValueError(
            "`labels` holds class indices, one per clip, but the model's `problem_type` is multi_label_classification. "
            "Set `problem_type='single_label_classification'` when loading it, or pass a 0/1 value for every class."
        )
    return multi_label_loss(logits, labels, "labels")


# ── models with heads ─────────────────────────────────────────────────────────────────────────────────────────────────


class HTSATForAudioClassification(HTSATPreTrainedModel):
    """HTS-AT that says which sounds are in a recording."""

    _auto_class = "AutoModelForAudioClassification"

    def __init__(self, config: HTSATConfig):
        super().__init__(config)
        self.htsat = HTSATModel(config)
        self.classifier = make_head(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> HTSATAudioClassifierOutput:
        """Score the classes of whole clips.

        Args:
            input_features, attention_mask, output_attentions, output_hidden_states: see [`HTSATModel`].
            labels: class indices `(batch,)` for a single label, -100 where not known; values from 0 to 1
                `(batch, classes)` for several, NaN or -100 where not known; real numbers for regression, NaN where not
                known. `config.problem_type` says which.
        """
        encoded = self.htsat(input_features, attention_mask, output_attentions, output_hidden_states)
        _, logits = self.classifier(encoded)
        return HTSATAudioClassifierOutput(
            loss=None if labels is None else clip_loss(logits, labels, self.config.problem_type),
            logits=logits,
            pooler_output=encoded.pooler_output,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class HTSATForSoundEventDetection(HTSATPreTrainedModel):
    """HTS-AT that says when sounds are heard: a score for every class in every time step."""

    _auto_class = "AutoModelForAudioFrameClassification"

    def __init__(self, config: HTSATConfig):
        super().__init__(config)
        self.htsat = HTSATModel(config)
        self.classifier = make_head(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        frame_targets: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> HTSATSoundEventOutput:
        """Score the classes in every time step.

        Args:
            input_features, attention_mask, output_attentions, output_hidden_states: see [`HTSATModel`].
            labels: weak labels `(batch, classes)`: what is heard somewhere in the clip; or strong ones
                `(batch, steps, classes)`. Values from 0 to 1, NaN or -100 where not known: a whole row for a clip
                without weak labels.
            frame_targets (`(batch, steps, classes)`): strong labels beside weak ones. The name lacks "label" so that
                Trainer evaluates data that has weak labels alone; for data that has both, tell it so:
                `TrainingArguments(label_names=["labels", "frame_targets"])`. Strong labels alone go in as `labels`.
        """
        encoded = self.htsat(input_features, attention_mask, output_attentions, output_hidden_states)
        logits, clip_logits = self.classifier(encoded)
        return HTSATSoundEventOutput(
            loss=self._loss(logits, clip_logits, encoded.step_mask, labels, frame_targets),
            logits=logits,
            clip_logits=clip_logits,
            step_mask=encoded.step_mask,
            pooler_output=encoded.pooler_output,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _loss(
        self,
        logits: torch.Tensor,
        clip_logits: torch.Tensor,
        step_mask: torch.Tensor,
        labels: torch.Tensor | None,
        frame_targets: torch.Tensor | None,
    ) -> torch.Tensor | None:
        strong_name = "frame_targets"
        if labels is not None and labels.ndim == 3:
            if frame_targets is not None:
                raise ValueError("`labels` and `frame_targets` both hold strong labels; pass weak ones as `labels`.")
            labels, frame_targets, strong_name = None, labels, "labels"
        losses = []
        if labels is not None:
            losses.append(multi_label_loss(clip_logits, labels, "labels"))
        if frame_targets is not None:
            step_weights = step_mask[..., None].expand_as(logits)
            losses.append(multi_label_loss(logits, frame_targets, strong_name, step_weights))
        return sum(losses) if losses else None


__all__ = [
    "HTSATAudioClassifierOutput",
    "HTSATForAudioClassification",
    "HTSATForSoundEventDetection",
    "HTSATModel",
    "HTSATModelOutput",
    "HTSATPreTrainedModel",
    "HTSATSoundEventOutput",
]
