"""The model computes what a plain Swin computes, on recordings of any length, under every way to load and to run it."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
)
from transformers.modeling_outputs import ModelOutput

from modeling_htsat import (
    HTSATAudioClassifierOutput,
    HTSATConfig,
    HTSATForAudioClassification,
    HTSATForSoundEventDetection,
    HTSATModel,
    HTSATModelOutput,
    HTSATSoundEventOutput,
)
from modeling_htsat import modeling_htsat as module

MODEL_CLASSES = [HTSATModel, HTSATForAudioClassification, HTSATForSoundEventDetection]
HEAD_CLASSES = MODEL_CLASSES[1:]
HEADS = [True, False]  # token-semantic, linear

# Variants of other geometry or make: the values that differ from the small configuration.
VARIANTS = {
    "small": {},
    "paper": {"paper": True},
    "window of 8": {"window_size": 8},
    "one stage": {"depths": (3,), "num_heads": (2,), "num_labels": 3},
    "three stages": {"depths": (1, 2, 3), "num_heads": (2, 4, 4)},
    "odd width": {"embed_dim": 6, "num_heads": (3, 2, 6, 4), "mlp_ratio": 2.5},
    "32 mels": {"num_mel_bins": 32, "depths": (2, 2, 1), "num_heads": (1, 2, 4)},
    "128 mels": {"num_mel_bins": 128},
    "overlapping patches": {"patch_size": 6, "patch_stride": 4},
    "no bias, relu": {"qkv_bias": False, "hidden_act": "relu"},
    "linear head": {"token_semantic_head": False},
}


# ── the slow reference: a Swin in rows and columns, as it was published ───────────────────────────────────────────────


def to_windows(image: torch.Tensor, window: int) -> torch.Tensor:
    """`(batch, height, width, dim)` to `(batch * windows, tokens, dim)`, row by row."""
    batch, height, width, dim = image.shape
    tiles = image.view(batch, height // window, window, width // window, window, dim)
    return tiles.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, dim)


def from_windows(windows: torch.Tensor, window: int, height: int, width: int) -> torch.Tensor:
    tiles = windows.view(-1, height // window, width // window, window, window, windows.shape[-1])
    return tiles.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


def slow_position_index(window: int) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    position = torch.stack([rows.flatten(), columns.flatten()])
    distance = position[:, :, None] - position[:, None, :] + window - 1
    return distance[0] * (2 * window - 1) + distance[1]


def slow_shift_mask(grid: int, window: int, shift: int) -> torch.Tensor:
    """`(windows, tokens, tokens)`: -100 between tokens of different regions, which Swin paints into an image."""
    image = torch.zeros(1, grid, grid, 1)
    slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in slices for columns in slices):
        image[:, rows, columns] = number
    regions = to_windows(image, window)[..., 0]
    return (regions[:, None, :] != regions[:, :, None]) * -100.0


def slow_attention(block, image: torch.Tensor, window: int, shift: int) -> tuple[torch.Tensor, torch.Tensor]:
    batch, grid, _, dim = image.shape
    attention = block.attention
    windows = to_windows(torch.roll(image, (-shift, -shift), (1, 2)), window)
    qkv = F.linear(windows, attention.qkv.weight, attention.qkv.bias)
    query, key, value = qkv.view(len(windows), window**2, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-1, -2) / math.sqrt(dim // attention.num_heads)
    scores = scores + attention.relative_position_bias_table[slow_position_index(window)].permute(2, 0, 1)
    if shift:
        scores = scores + slow_shift_mask(grid, window, shift).repeat(batch, 1, 1)[:, None]
    probabilities = scores.softmax(-1)
    context = (probabilities @ value).transpose(1, 2).reshape(len(windows), window**2, dim)
    context = F.linear(context, attention.projection.weight, attention.projection.bias)
    return torch.roll(from_windows(context, window, grid, grid), (shift, shift), (1, 2)), probabilities


def layer_norm(values: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
    return F.layer_norm(values, values.shape[-1:], norm.weight, norm.bias, norm.eps)


def slow_block(block, image: torch.Tensor, config: HTSATConfig, is_odd: bool) -> tuple[torch.Tensor, torch.Tensor]:
    grid = image.shape[1]
    window = min(config.window_size, grid)
    shift = window // 2 if is_odd and grid > window else 0
    attended, probabilities = slow_attention(block, layer_norm(image, block.attention_norm), window, shift)
    image = image + attended
    hidden = F.linear(layer_norm(image, block.mlp_norm), block.mlp.up.weight, block.mlp.up.bias)
    hidden = getattr(F, config.hidden_act)(hidden)
    return image + F.linear(hidden, block.mlp.down.weight, block.mlp.down.bias), probabilities


def slow_merge(merge, image: torch.Tensor) -> torch.Tensor:
    corners = [image[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
    return F.linear(layer_norm(torch.cat(corners, -1), merge.norm), merge.reduction.weight)


def slow_image(model: HTSATModel, windows: torch.Tensor) -> torch.Tensor:
    """Normalised spectrograms, cut into chunks of frames that are stacked along mels: `(windows, height, width)`."""
    norm, config = model.mel_norm, model.config
    normalized = (windows - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    chunks = normalized.split(config.spec_size, dim=1)
    return torch.cat([chunk.transpose(1, 2) for chunk in chunks], dim=1)


def slow_encode(model: HTSATModel, windows: torch.Tensor) -> tuple[torch.Tensor, list, list]:
    """The map `(windows, dim, bins, steps)`, the hidden states and the attentions of spectrograms of one window."""
    config, embed = model.config, model.patch_embed
    kernel = embed.projection.weight.view(config.embed_dim, 1, config.patch_size, config.patch_size)
    padding = (config.patch_size - config.patch_stride) // 2
    image = slow_image(model, windows)[:, None]
    image = F.conv2d(image, kernel, embed.projection.bias, config.patch_stride, padding)
    image = layer_norm(image.permute(0, 2, 3, 1), embed.norm)
    hidden_states, attentions = [image], []
    for stage in model.stages:
        for index, block in enumerate(stage.blocks):
            image, probabilities = slow_block(block, image, config, index % 2 == 1)
            attentions.append(probabilities)
        hidden_states.append(image)
        image = slow_merge(stage.merge, image) if stage is not model.stages[-1] else image
    image = layer_norm(image, model.norm)
    folds = image.split(image.shape[1] // config.num_folds, dim=1)  # each (windows, bins, columns, dim)
    return torch.cat(folds, dim=2).permute(0, 3, 1, 2), hidden_states, attentions


def slow_map(model: HTSATModel, spectrogram: torch.Tensor) -> torch.Tensor:
    """The map `(dim, bins, steps)` of one recording of any length: windows in a plain loop, averaged in time."""
    config, num_frames = model.config, len(spectrogram)
    if num_frames <= config.clip_frames:
        size = (config.clip_frames, config.num_mel_bins)
        stretched = F.interpolate(spectrogram[None, None], size, mode="bicubic", align_corners=True)[0]
        return slow_encode(model, stretched)[0][0]
    extra_steps = math.ceil((num_frames - config.clip_frames) / config.frames_per_step)
    mirrored = torch.cat([spectrogram, spectrogram[:-1].flip(0)])
    total = torch.zeros(config.hidden_size, config.num_bins, config.num_steps + extra_steps)
    count = torch.zeros(config.num_steps + extra_steps)
    hop = config.num_steps - round(config.num_steps * config.window_overlap)
    for start in sorted({*range(0, extra_steps, hop), extra_steps}):
        window = mirrored[start * config.frames_per_step :][: config.clip_frames]
        total[..., start : start + config.num_steps] += slow_encode(model, window[None])[0][0]
        count[start : start + config.num_steps] += 1
    return total / count


def morton(grid: int) -> list[tuple[int, int]]:
    """Rows and columns of a grid in Z-order, by walking into quarters: down first, then right."""
    if grid == 1:
        return [(0, 0)]
    quarter, half = morton(grid // 2), grid // 2
    return [(row + down, column + right) for right in (0, half) for down in (0, half) for row, column in quarter]


# ── the encoder equals the reference ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_the_encoder_is_a_plain_swin(make_model, make_features, values):
    model = make_model(HTSATModel, **values)
    config = model.config
    windows = make_features(3, config.clip_frames, config.num_mel_bins)
    output = model(windows, output_hidden_states=True)
    expected, hidden_states, _ = slow_encode(model, windows)
    assert output.last_hidden_state.shape == (3, config.hidden_size, config.num_bins, config.num_steps)
    assert torch.allclose(output.last_hidden_state, expected, atol=1e-4)
    assert torch.allclose(output.pooler_output, expected.mean((2, 3)), atol=1e-5)
    assert len(output.hidden_states) == len(hidden_states) == len(config.depths) + 1
    for state, expected_state in zip(output.hidden_states, hidden_states, strict=True):
        assert state.shape == expected_state.shape
        assert torch.allclose(state, expected_state, atol=1e-4)
    assert expected.std() > 0.1  # the comparison is not one of zeros


def test_queries_keys_and_values_have_a_bias_only_where_the_configuration_says_so(make_config):
    for qkv_bias in (True, False):
        model = HTSATModel(make_config(qkv_bias=qkv_bias))
        layers = [block.attention.qkv for stage in model.stages for block in stage.blocks]
        assert [layer.bias is not None for layer in layers] == [qkv_bias] * 6


@torch.no_grad()
def test_hidden_states_are_the_patch_embedding_and_every_stage_row_by_row(make_model, make_features):
    model = make_model(HTSATModel)
    states = model(make_features(3, 256), output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in states] == [
        (3, 32, 32, 8),
        (3, 32, 32, 8),
        (3, 16, 16, 16),
        (3, 8, 8, 32),
        (3, 4, 4, 64),
    ]


@torch.no_grad()
def test_attentions_are_those_of_the_plain_swin_row_by_row(make_model, make_features):
    model = make_model(HTSATModel)
    windows = make_features(3, 256)
    attentions = model(windows, output_attentions=True).attentions
    _, _, expected = slow_encode(model, windows)
    shapes = [(192, 1, 16, 16), (192, 1, 16, 16), (48, 2, 16, 16), (48, 2, 16, 16), (12, 4, 16, 16), (3, 8, 16, 16)]
    assert [tuple(attention.shape) for attention in attentions] == shapes
    for attention, slow in zip(attentions, expected, strict=True):
        side = math.isqrt(len(slow) // 3)
        order = [row * side + column for row, column in morton(side)]  # the windows themselves stay in Z-order
        slow = slow.unflatten(0, (3, side * side))[:, order].flatten(0, 1)
        assert torch.allclose(attention, slow, atol=1e-5)
        assert torch.allclose(attention.sum(-1), torch.ones(()), atol=1e-5)


@torch.no_grad()
def test_tokens_on_either_side_of_the_image_do_not_see_each_other_through_the_shift(make_model, make_features):
    attentions = make_model(HTSATModel)(make_features(1, 256), output_attentions=True).attentions
    shifted_last_window = attentions[1][-1, 0]  # bottom right: four regions of 2 x 2 tokens meet
    assert (shifted_last_window[0] > 1e-6).sum() == 4
    assert (attentions[0][-1, 0] > 1e-12).all()


@pytest.mark.parametrize("num_frames", [1, 2, 100, 255, 256])
@torch.no_grad()
def test_a_short_spectrogram_is_stretched_as_pytorch_stretches(make_model, make_features, num_frames):
    model = make_model(HTSATModel)
    features = make_features(3, num_frames)
    output = model(features)
    norm = model.mel_norm
    normalized = F.batch_norm(
        features.transpose(1, 2), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )
    stretched = F.interpolate(normalized.transpose(1, 2)[:, None], (256, 64), mode="bicubic", align_corners=True)[:, 0]
    seen = []
    handle = model.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(features)
    handle.remove()
    folded = torch.cat([chunk.transpose(1, 2) for chunk in stretched.split(128, dim=1)], dim=1)
    assert torch.allclose(seen[0], folded, atol=1e-4)
    expected = torch.stack([slow_map(model, row) for row in features])
    assert torch.allclose(output.last_hidden_state, expected, atol=2e-4)


@torch.no_grad()
def test_exactly_one_window_is_not_touched_by_stretching(make_features):
    features = make_features(2, 256)
    lengths, zeros = torch.tensor([256, 256]), torch.tensor([0, 0])
    windows = module.read_windows(features, lengths, torch.tensor([0, 1]), zeros, 256)
    assert torch.equal(windows, features)


# ── heads ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_the_token_semantic_head_scores_steps_with_their_neighbours_and_the_clip_by_their_mean(
    make_model, make_features
):
    model = make_model(HTSATForSoundEventDetection)
    output = model(make_features(3, 256))
    feature_map = model.htsat(make_features(3, 256)).last_hidden_state
    weight, bias = model.classifier.convolution.weight, model.classifier.convolution.bias
    assert weight.shape == (5, 64, 2, 3)
    padded = F.pad(feature_map, (1, 1))
    steps = [torch.einsum("bdft,cdft->bc", padded[..., step : step + 3], weight) + bias for step in range(8)]
    expected = torch.stack(steps, 1)
    assert output.logits.shape == (3, 8, 5)
    assert torch.allclose(output.logits, expected, atol=1e-4)
    assert torch.allclose(output.clip_logits, expected.mean(1), atol=1e-4)


@pytest.mark.parametrize("num_frames", [200, 256, 700])
@torch.no_grad()
def test_linear_softmax_weighs_the_probabilities_of_the_steps_by_themselves(make_model, make_features, num_frames):
    model = make_model(HTSATForSoundEventDetection, clip_pooling="linear_softmax")
    model.classifier.convolution.weight.mul_(30)  # scores from near 0 to near 1
    lengths = torch.tensor([num_frames, num_frames // 2, 5])
    mask = torch.arange(num_frames) < lengths[:, None]
    output = model(make_features(3, num_frames), mask)
    p = output.logits.double().sigmoid() * output.step_mask[..., None]
    expected = p.square().sum(1) / p.sum(1)
    assert 0.2 < expected.mean() < 0.8
    assert torch.allclose(output.clip_logits.double().sigmoid(), expected, atol=1e-6)


def test_linear_softmax_stays_finite_with_scores_of_any_size_and_in_half_precision():
    step_mask = torch.tensor([[True, True, True], [True, False, False]])
    for scale, dtype in ((1e4, torch.float32), (6e4, torch.float16), (300, torch.bfloat16)):
        steps = torch.tensor([[-1.0, 0.5, 1.0], [-1.0, 1.0, 1.0]], dtype=dtype)[..., None] * scale
        steps.requires_grad_()
        pooled = module.linear_softmax(steps, step_mask)
        pooled.sum().backward()
        assert pooled.dtype == dtype
        assert pooled[0] > 0 > pooled[1]
        assert torch.isfinite(pooled).all()
        assert torch.isfinite(steps.grad).all()
        assert (steps.grad[1, 1:] == 0).all()  # outside the mask


def test_linear_softmax_teaches_the_steps_that_hear_most_and_the_mean_teaches_all_alike():
    steps = torch.tensor([[2.0, -2.0, -4.0, -4.0]])[..., None].requires_grad_()
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    slopes = {}
    for pool in (module.linear_softmax, module.masked_mean):
        loss = module.multi_label_loss(pool(steps, everywhere), torch.ones(1, 1), "labels")
        (slopes[pool],) = torch.autograd.grad(loss, steps)
    assert slopes[module.masked_mean].unique().numel() == 1
    assert slopes[module.linear_softmax][0, 0] < 0  # it is pushed up,
    assert (slopes[module.linear_softmax][0, 1:] > 0).all()  # and what is far below it further down


@torch.no_grad()
def test_the_linear_head_scores_the_mean_token_and_steps_by_the_sum_over_bins(make_model, make_features):
    model = make_model(HTSATForSoundEventDetection, token_semantic_head=False)
    output = model(make_features(3, 256))
    feature_map = model.htsat(make_features(3, 256)).last_hidden_state
    linear = model.classifier.linear
    assert output.logits.shape == (3, 8, 5)
    assert torch.allclose(output.logits, linear(feature_map.sum(2).transpose(1, 2)), atol=1e-4)
    assert torch.allclose(output.clip_logits, linear(feature_map.mean((2, 3))), atol=1e-4)


@pytest.mark.parametrize("token_semantic_head", HEADS)
@pytest.mark.parametrize("num_frames", [100, 256, 700])
@torch.no_grad()
def test_both_models_give_the_clip_the_same_scores(make_model, make_features, token_semantic_head, num_frames):
    detector = make_model(HTSATForSoundEventDetection, token_semantic_head=token_semantic_head)
    classifier = make_model(HTSATForAudioClassification, token_semantic_head=token_semantic_head)
    classifier.load_state_dict(detector.state_dict())
    features = make_features(3, num_frames)
    detected, classified = detector(features), classifier(features)
    assert torch.equal(detected.clip_logits, classified.logits)
    assert torch.equal(detected.pooler_output, classified.pooler_output)
    assert detected.loss is None
    assert classified.loss is None


@pytest.mark.parametrize(
    ("model_class", "output_class", "fields"),
    [
        (HTSATModel, HTSATModelOutput, {"last_hidden_state", "pooler_output", "step_mask"}),
        (HTSATForAudioClassification, HTSATAudioClassifierOutput, {"logits", "pooler_output"}),
        (HTSATForSoundEventDetection, HTSATSoundEventOutput, {"logits", "clip_logits", "step_mask", "pooler_output"}),
    ],
)
@torch.no_grad()
def test_every_model_has_one_documented_output_class(make_model, make_features, model_class, output_class, fields):
    model, features = make_model(model_class), make_features(2, 100)
    output = model(features)
    assert type(output) is output_class
    assert issubclass(output_class, ModelOutput)
    assert set(output.keys()) == fields
    assert all(name in output_class.__doc__ for name in output_class.__dataclass_fields__)
    everything = model(features, output_hidden_states=True, output_attentions=True)
    assert set(everything.keys()) == fields | {"hidden_states", "attentions"}
    as_tuple = model(features, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == len(fields)


@torch.no_grad()
def test_the_configuration_can_ask_for_hidden_states_and_attentions(make_model, make_features):
    model = make_model(HTSATForAudioClassification, output_hidden_states=True, attn_implementation="eager")
    model.config.output_attentions = True
    output = model(make_features(2, 100))
    assert len(output.hidden_states) == 5
    assert len(output.attentions) == 6
    output = model(make_features(2, 100), output_hidden_states=False, output_attentions=False)
    assert output.hidden_states is None
    assert output.attentions is None


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_variants_score_short_and_long_recordings(make_model, make_features, values):
    model = make_model(HTSATForSoundEventDetection, **values)
    config = model.config
    for num_frames in (config.clip_frames // 3, config.clip_frames, config.clip_frames * 5 // 3):
        output = model(make_features(2, num_frames, config.num_mel_bins))
        assert output.logits.shape == (2, config.num_steps_of(num_frames), config.num_labels)
        assert output.clip_logits.shape == (2, config.num_labels)
        assert output.logits.isfinite().all()


# ── recordings of any length ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("window_overlap", [0, 0.125, 0.375, 0.5])
@pytest.mark.parametrize("num_frames", [256, 257, 288, 289, 480, 481, 737, 1200])
@torch.no_grad()
def test_a_long_recording_is_the_average_of_its_windows_in_time(make_model, make_features, num_frames, window_overlap):
    model = make_model(HTSATModel, window_overlap=window_overlap)
    features = make_features(1, num_frames)
    output = model(features)
    expected = slow_map(model, features[0])
    assert output.last_hidden_state.shape == (1, 64, 2, model.config.num_steps_of(num_frames))
    assert torch.allclose(output.last_hidden_state[0], expected, atol=1e-4)
    assert torch.allclose(output.pooler_output[0], expected.mean((1, 2)), atol=1e-5)
    assert output.step_mask.all()


@pytest.mark.parametrize(("num_frames", "num_steps"), [(1024, 32), (1025, 33), (1056, 33), (1057, 34), (3000, 94)])
@torch.no_grad()
def test_the_papers_geometry_hears_any_number_of_frames(make_model, make_features, num_frames, num_steps):
    model = make_model(HTSATModel, paper=True)
    features = make_features(1, num_frames)
    feature_map = model(features).last_hidden_state
    assert feature_map.shape == (1, 64, 2, num_steps)
    assert torch.allclose(feature_map[0], slow_map(model, features[0]), atol=1e-4)


@torch.no_grad()
def test_ten_seconds_score_the_same_as_without_windows(make_model, make_features):
    model = make_model(HTSATForAudioClassification, paper=True)
    features = make_features(2, 1001)
    stretched = F.interpolate(features[:, None], (1024, 64), mode="bicubic", align_corners=True)[:, 0]
    feature_map = model.htsat.encode(stretched)[0]
    expected = model.classifier.convolution(feature_map).squeeze(2).mean(2)
    assert torch.allclose(model(features).logits, expected, atol=1e-4)


@pytest.mark.parametrize("model_class", HEAD_CLASSES)
@pytest.mark.parametrize("token_semantic_head", HEADS)
@torch.no_grad()
def test_a_clip_scores_the_same_alone_and_in_a_batch(make_model, make_features, model_class, token_semantic_head):
    model = make_model(model_class, paper=True, token_semantic_head=token_semantic_head)
    lengths = (300, 1001, 1500, 2600)
    features = make_features(4, 2600)
    mask = torch.arange(2600) < torch.tensor(lengths)[:, None]
    features[~mask] = math.nan  # what fills the batch up is never looked at
    batch = model(features, mask.long())
    for index, length in enumerate(lengths):
        alone = model(features[index : index + 1, :length])
        for name in alone:
            expected, value = alone[name][0], batch[name][index]
            if name in ("step_mask", "logits") and "step_mask" in alone:
                assert not value[len(expected) :].any() or name == "logits"
                value = value[: len(expected)]
            assert value.isfinite().all()
            assert torch.allclose(value.float(), expected.float(), atol=2e-5), name


@torch.no_grad()
def test_the_map_is_zero_beyond_a_recording_and_the_step_mask_says_where(make_model, make_features):
    model = make_model(HTSATModel)
    mask = torch.arange(700) < torch.tensor([100, 300, 700])[:, None]
    output = model(make_features(3, 700), mask)
    assert output.step_mask.shape == (3, 22)
    assert output.step_mask.dtype == torch.bool
    assert output.step_mask.sum(1).tolist() == [8, 10, 22]
    assert output.step_mask[1, :10].all()
    steps = output.last_hidden_state.transpose(1, 3)  # (batch, steps, bins, dim)
    assert (steps[~output.step_mask] == 0).all()
    assert (steps[output.step_mask] != 0).any(-1).all()


@torch.no_grad()
def test_a_full_mask_changes_nothing(make_model, make_features):
    model = make_model(HTSATForSoundEventDetection)
    for num_frames in (100, 700):
        features = make_features(3, num_frames)
        with_mask = model(features, torch.ones(3, num_frames, dtype=torch.long))
        assert torch.equal(with_mask.logits, model(features).logits)


@torch.no_grad()
def test_the_order_of_a_batch_does_not_matter(make_model, make_features):
    model = make_model(HTSATForSoundEventDetection)
    features = make_features(3, 700)
    mask = torch.arange(700) < torch.tensor([120, 450, 700])[:, None]
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(model(features, mask).logits[order], model(features[order], mask[order]).logits, atol=1e-5)


def record_windows(model: HTSATModel, monkeypatch) -> list[int]:
    """How many windows reach the encoder at once, call by call."""
    sizes, encode = [], model.encode

    def watch(windows, *arguments):
        sizes.append(len(windows))
        return encode(windows, *arguments)

    monkeypatch.setattr(model, "encode", watch)
    return sizes


@pytest.mark.parametrize(("batch", "windows_per_pass"), [(1, 1), (1, 3), (3, 2), (2, 8)])
@torch.no_grad()
def test_memory_is_bounded_by_the_windows_per_pass_or_the_batch(
    make_model, make_features, monkeypatch, batch, windows_per_pass
):
    model = make_model(HTSATModel, windows_per_pass=windows_per_pass)
    features = make_features(batch, 2000)
    expected = make_model(HTSATModel, windows_per_pass=1000)(features, output_hidden_states=True)
    sizes = record_windows(model, monkeypatch)
    output = model(features, output_hidden_states=True)
    assert max(sizes) <= max(batch, windows_per_pass)
    assert sum(sizes) == batch * 9  # 63 steps in hops of 7
    assert len(sizes) > 1
    assert torch.allclose(output.last_hidden_state, expected.last_hidden_state, atol=1e-5)
    assert all(
        torch.allclose(state, expected_state, atol=1e-5)
        for state, expected_state in zip(output.hidden_states, expected.hidden_states, strict=True)
    )


@torch.no_grad()
def test_a_batch_of_short_clips_is_one_pass_and_short_clips_cost_no_more_beside_a_long_one(
    make_model, make_features, monkeypatch
):
    model = make_model(HTSATModel, windows_per_pass=2)
    sizes = record_windows(model, monkeypatch)
    model(make_features(5, 256))
    assert sizes == [5]
    sizes.clear()
    model(make_features(3, 2000), torch.arange(2000) < torch.tensor([100, 256, 2000])[:, None])
    assert sum(sizes) == 1 + 1 + 9


def test_training_sees_all_windows_at_once_so_that_batch_norm_counts_them_once(make_model, make_features, monkeypatch):
    model = make_model(HTSATModel, windows_per_pass=1, drop_path_rate=0).train()
    sizes = record_windows(model, monkeypatch)
    features = make_features(2, 700)
    model(features)
    assert sizes == [6]
    assert model.mel_norm.num_batches_tracked == 1


def test_training_normalises_by_the_frames_of_the_batch(make_model, make_features):
    model = make_model(HTSATModel, drop_path_rate=0).train()
    features = make_features(3, 256)
    before = model.mel_norm.running_mean.clone()
    model(features)
    expected = 0.9 * before + 0.1 * features.mean((0, 1))
    assert torch.allclose(model.mel_norm.running_mean, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "mask_shape", "named"),
    [
        ((2, 100, 32), None, ["`input_features`", "(2, 100, 32)", "(batch, frames, 64)"]),
        ((100, 64), None, ["`input_features`", "(100, 64)"]),
        ((2, 1, 100, 64), None, ["(2, 1, 100, 64)"]),
        ((2, 0, 64), None, ["(2, 0, 64)", "none of them empty"]),
        ((0, 100, 64), None, ["(0, 100, 64)"]),
        ((2, 100, 64), (2, 99), ["`attention_mask`", "(2, 99)", "(2, 100)"]),
        ((2, 100, 64), (100,), ["`attention_mask`", "(100,)"]),
    ],
)
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_features_of_the_wrong_shape_are_refused_with_the_right_one(make_model, model_class, shape, mask_shape, named):
    mask = None if mask_shape is None else torch.ones(mask_shape)
    with pytest.raises(ValueError) as caught:
        make_model(model_class)(torch.zeros(shape), mask)
    message = str(caught.value)
    missing = [words for words in named if words not in message]
    assert not missing, message


# ── eval and train ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model_class", HEAD_CLASSES)
@torch.no_grad()
def test_eval_is_deterministic_and_draws_nothing(make_model, make_features, model_class):
    model = make_model(model_class, drop_path_rate=0.5, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    features = make_features(2, 700)
    state = torch.random.get_rng_state()
    first, second = model(features), model(features)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(torch.random.get_rng_state(), state)
    statistics = model.htsat.mel_norm.num_batches_tracked
    assert statistics == 0


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_every_kind_of_dropout_acts_in_training(make_model, make_features, name, attn_implementation):
    rates = {"drop_path_rate": 0, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    rates["attn_implementation"] = attn_implementation
    features = make_features(3, 256)
    still = make_model(HTSATModel, **rates).train()
    assert torch.equal(still(features).pooler_output, still(features).pooler_output)
    lively = make_model(HTSATModel, **rates | {name: 0.5}).train()
    assert not torch.equal(lively(features).pooler_output, lively(features).pooler_output)


def test_stochastic_depth_drops_whole_branches_and_keeps_the_mean():
    branch = torch.ones(2000, 3, 5)
    dropped = module.drop_path(branch, 0.25, training=True)
    assert ((dropped == 0) | torch.isclose(dropped, torch.tensor(4 / 3))).all()
    assert (dropped == dropped[:, :1, :1]).all()
    assert dropped.mean() == pytest.approx(1, abs=0.1)
    assert module.drop_path(branch, 0.25, training=False) is branch


def test_stochastic_depth_grows_linearly_to_its_rate(make_config):
    model = HTSATModel(make_config(drop_path_rate=0.3))
    rates = [block.drop_path_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.06, 0.12, 0.18, 0.24, 0.3])


@pytest.mark.parametrize("model_class", HEAD_CLASSES)
@pytest.mark.parametrize("token_semantic_head", HEADS)
@pytest.mark.parametrize("num_frames", [100, 700])
def test_gradients_reach_every_parameter(make_model, make_features, model_class, token_semantic_head, num_frames):
    model = make_model(model_class, token_semantic_head=token_semantic_head, drop_path_rate=0).train()
    labels = torch.tensor([[0.0, 1, 0, 1, 1], [1, 0, 0, 0, 1], [0, 0, 1, 0, 0]])
    model(make_features(3, num_frames), labels=labels).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    zero = [name for name, parameter in model.named_parameters() if name not in without and not parameter.grad.any()]
    assert without == []
    assert zero == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_strong_labels_alone_reach_every_parameter(make_model, make_features):
    model = make_model(HTSATForSoundEventDetection, drop_path_rate=0).train()
    model(make_features(3, 100), labels=torch.rand(3, 8, 5).round()).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


# ── fresh weights ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("token_semantic_head", HEADS)
def test_fresh_weights_have_the_spread_that_the_configuration_names(make_config, token_semantic_head):
    config = make_config(initializer_range=0.05, embed_dim=32, token_semantic_head=token_semantic_head)
    model = HTSATForAudioClassification(config)
    for name, parameter in model.named_parameters():
        if "norm.weight" in name:
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif parameter.numel() >= 100:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.35), name
            assert abs(parameter.mean().item()) < 0.02, name
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            assert (buffer == 0).all()
        elif name.endswith("running_var"):
            assert (buffer == 1).all()


def test_the_position_biases_are_drawn_not_zero(make_config):
    model = HTSATModel(make_config())
    tables = [values for name, values in model.named_parameters() if name.endswith("bias_table")]
    assert len(tables) == 6
    assert all(0.01 < table.std() < 0.03 for table in tables)


def test_the_same_seed_makes_the_same_model(make_config):
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(HTSATModel(make_config()))
    assert all(torch.equal(*pair) for pair in zip(*(model.parameters() for model in models), strict=True))


# ── saving and loading ────────────────────────────────────────────────────────────────────────────────────────────────


def index_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    saved = set(model.state_dict())
    return {name: buffer for name, buffer in model.named_buffers() if name not in saved}


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize("token_semantic_head", HEADS)
@torch.no_grad()
def test_a_saved_model_comes_back_bit_for_bit(make_model, make_features, tmp_path, model_class, token_semantic_head):
    model = make_model(model_class, token_semantic_head=token_semantic_head)
    model.save_pretrained(tmp_path)
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert not loaded.training
    assert loaded.config.token_semantic_head is token_semantic_head
    for name, values in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], values), name
    for num_frames in (100, 700):
        features = make_features(2, num_frames)
        assert all(torch.equal(*pair) for pair in zip(loaded(features).values(), model(features).values(), strict=True))


def test_a_saved_file_holds_weights_and_statistics_but_no_indexes(make_model, tmp_path):
    model = make_model(HTSATForAudioClassification)
    names = set(model.state_dict())
    parameters = {name for name, _ in model.named_parameters()}
    assert names - parameters == {
        "htsat.mel_norm.running_mean",
        "htsat.mel_norm.running_var",
        "htsat.mel_norm.num_batches_tracked",
    }
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.suffix == ".safetensors"} == {"model.safetensors"}


@torch.no_grad()
def test_index_buffers_are_right_after_every_way_to_load(make_model, make_features, tmp_path):
    model = make_model(HTSATForSoundEventDetection)
    model.save_pretrained(tmp_path)
    features = make_features(2, 700)
    expected = model(features).logits
    loaded = {
        "from_pretrained": HTSATForSoundEventDetection.from_pretrained(tmp_path),
        "device_map cpu": HTSATForSoundEventDetection.from_pretrained(tmp_path, device_map="cpu"),
        "device_map auto": HTSATForSoundEventDetection.from_pretrained(tmp_path, device_map="auto"),
        "low dtype and back": HTSATForSoundEventDetection.from_pretrained(tmp_path, dtype=torch.float64).float(),
        "deepcopy": copy.deepcopy(model),
    }
    with torch.device("cpu"):
        loaded["default device"] = HTSATForSoundEventDetection.from_pretrained(tmp_path)
    wanted = index_buffers(model)
    assert len(wanted) == 1 + 4 + 3 * 3 + 1  # token order, positions of 4 stages, shifts of 3, time order
    for way, other in loaded.items():
        buffers = index_buffers(other)
        assert buffers.keys() == wanted.keys(), way
        assert all(torch.equal(buffers[name], wanted[name]) for name in wanted), way
        assert torch.allclose(other(features).logits, expected, atol=1e-6), way


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_a_model_can_be_built_on_the_meta_device_and_given_weights_later(
    make_config, make_model, tmp_path, model_class
):
    with torch.device("meta"):
        model = model_class(make_config())
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert all(isinstance(rate, float) for rate in (b.drop_path_prob for s in _encoder(model).stages for b in s.blocks))


def _encoder(model: torch.nn.Module) -> HTSATModel:
    return model if isinstance(model, HTSATModel) else model.htsat


@pytest.mark.parametrize(
    ("auto_class", "model_class"),
    [
        (AutoModel, HTSATModel),
        (AutoModelForAudioClassification, HTSATForAudioClassification),
        (AutoModelForAudioFrameClassification, HTSATForSoundEventDetection),
    ],
)
@torch.no_grad()
def test_auto_classes_find_the_models(make_model, make_config, make_features, tmp_path, auto_class, model_class):
    model = make_model(model_class)
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is model_class
    features = make_features(2, 100)
    assert torch.equal(loaded(features)[0], model(features)[0])
    assert type(auto_class.from_config(make_config())) is model_class


@pytest.mark.parametrize("model_class", HEAD_CLASSES)
@torch.no_grad()
def test_the_encoder_of_a_saved_head_is_a_model_and_the_other_way_round(
    make_model, make_features, tmp_path, model_class
):
    features = make_features(2, 100)
    head = make_model(model_class)
    head.save_pretrained(tmp_path / "head")
    encoder = HTSATModel.from_pretrained(tmp_path / "head")
    assert torch.equal(encoder(features).pooler_output, head(features).pooler_output)
    encoder.save_pretrained(tmp_path / "encoder")
    again, report = model_class.from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert report["missing_keys"] == {"classifier.convolution.weight", "classifier.convolution.bias"}
    assert torch.equal(again(features).pooler_output, head(features).pooler_output)
    assert again.classifier.convolution.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not again.classifier.convolution.bias.any()


@torch.no_grad()
def test_both_heads_read_each_others_files(make_model, make_features, tmp_path):
    classifier = make_model(HTSATForAudioClassification)
    classifier.save_pretrained(tmp_path)
    detector, report = HTSATForSoundEventDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    features = make_features(2, 100)
    assert torch.equal(detector(features).clip_logits, classifier(features).logits)


@torch.no_grad()
def test_a_new_head_for_other_labels_leaves_the_encoder_as_it_was(make_model, make_features, tmp_path):
    model = make_model(HTSATForAudioClassification)
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        HTSATForAudioClassification.from_pretrained(tmp_path, num_labels=3)
    loaded = HTSATForAudioClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    features = make_features(2, 100)
    assert torch.equal(loaded(features).pooler_output, model(features).pooler_output)
    assert loaded(features).logits.shape == (2, 3)
    weight, bias = loaded.classifier.convolution.weight, loaded.classifier.convolution.bias
    assert weight.shape == (3, 64, 2, 3)
    assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not bias.any()
    loaded.save_pretrained(tmp_path / "again")
    again = HTSATForAudioClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(again(features).logits, loaded(features).logits)


def test_a_new_head_can_be_named_by_id2label_alone(make_model, tmp_path):
    make_model(HTSATForAudioClassification).save_pretrained(tmp_path)
    loaded = HTSATForAudioClassification.from_pretrained(
        tmp_path, id2label={0: "kettle", 1: "door"}, ignore_mismatched_sizes=True
    )
    loaded.save_pretrained(tmp_path / "again")
    again = HTSATForAudioClassification.from_pretrained(tmp_path / "again")
    assert again.config.label2id == {"kettle": 0, "door": 1}


@torch.no_grad()
def test_a_copy_lives_its_own_life(make_model, make_features):
    model = make_model(HTSATForAudioClassification)
    other = copy.deepcopy(model)
    features = make_features(2, 100)
    expected = model(features).logits
    assert torch.equal(other(features).logits, expected)
    for parameter in other.parameters():
        parameter.zero_()
    assert torch.equal(model(features).logits, expected)


# ── ways to compute ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("num_frames", [100, 700])
def test_sdpa_and_eager_attention_agree_in_outputs_and_gradients(make_model, make_features, num_frames):
    labels = torch.tensor([[0.0, 1, 0, 1, 1], [1, 0, 0, 0, 1]])
    results = []
    for implementation in ("sdpa", "eager"):
        model = make_model(HTSATForSoundEventDetection, attn_implementation=implementation)
        assert model.config._attn_implementation == implementation
        output = model(make_features(2, num_frames), labels=labels)
        output.loss.backward()
        results.append((output.logits, output.loss, *(parameter.grad for parameter in model.parameters())))
    for fused, plain in zip(*results, strict=True):
        assert torch.allclose(fused, plain, atol=1e-5)


def test_sdpa_is_the_default_and_really_called(make_model, make_features, monkeypatch):
    """Wherever a processor does not do the same in parts, which `test_modeling_fast_paths.py` looks at."""
    calls = []
    monkeypatch.setattr("modeling_htsat.processor_htsat.HAS_VECTORS", False)
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or attend(*a, **k))
    model = make_model(HTSATModel)
    assert model.config._attn_implementation == "sdpa"
    model(make_features(1, 100))
    assert len(calls) == 6
    model.set_attn_implementation("eager")
    model(make_features(1, 100))
    assert len(calls) == 6


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_asking_for_attentions_changes_no_score(make_model, make_features, implementation):
    model = make_model(HTSATForAudioClassification, attn_implementation=implementation)
    features = make_features(2, 700)
    with_attentions = model(features, output_attentions=True)
    assert torch.allclose(with_attentions.logits, model(features).logits, atol=1e-5)
    assert len(with_attentions.attentions) == 6
    assert with_attentions.attentions[5].shape == (2 * 3, 8, 16, 16)  # 22 steps are 3 windows


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
def test_attention_that_cannot_take_the_position_bias_is_refused(make_config, implementation):
    with pytest.raises((ValueError, ImportError)):
        HTSATModel._from_config(make_config(), attn_implementation=implementation)


# `gradient_checkpointing...` are the names that every transformers before 6 knows; `activation_...` came with 5.23.
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_changes_neither_loss_nor_gradients(make_model, make_features, use_reentrant):
    results = []
    labels = torch.tensor([[0.0, 1, 0, 1, 1], [1, 0, 0, 0, 1]])
    for is_checkpointed in (False, True):
        model = make_model(HTSATForSoundEventDetection, drop_path_rate=0.4, hidden_dropout_prob=0.2).train()
        if is_checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            assert model.is_gradient_checkpointing
        torch.manual_seed(5)
        output = model(make_features(2, 300), labels=labels)
        output.loss.backward()
        assert model.htsat.mel_norm.num_batches_tracked == 1
        results.append((output.loss, *(parameter.grad for parameter in model.parameters())))
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.allclose(plain, checkpointed, atol=1e-6)


def test_activation_checkpointing_recomputes_every_block(make_model, make_features):
    model = make_model(HTSATForAudioClassification).train()
    model.gradient_checkpointing_enable()
    calls = []
    for stage in model.htsat.stages:
        for block in stage.blocks:
            block.attention_norm.register_forward_hook(lambda *_: calls.append(1))
    model(make_features(2, 100), labels=torch.rand(2, 5)).loss.backward()
    assert len(calls) == 2 * 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_frames", [100, 700])
@torch.no_grad()
def test_half_precision_stays_close_and_normalises_in_float32(make_model, make_features, tmp_path, dtype, num_frames):
    model = make_model(HTSATForSoundEventDetection)
    model.save_pretrained(tmp_path)
    half = HTSATForSoundEventDetection.from_pretrained(tmp_path, dtype=dtype)
    values = {name: tensor for name, tensor in half.state_dict().items() if not name.endswith("num_batches_tracked")}
    dtypes = {name: tensor.dtype for name, tensor in values.items()}
    in_float32 = {name for name, kind in dtypes.items() if kind == torch.float32}
    assert in_float32 == {f"htsat.mel_norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
    assert set(dtypes.values()) == {torch.float32, dtype}
    features = make_features(2, num_frames)
    output, expected = half(features), model(features)
    assert output.logits.dtype == dtype
    spread = expected.logits.std()
    assert (output.logits.float() - expected.logits).abs().mean() < 0.05 * spread
    assert (output.clip_logits.float() - expected.clip_logits).abs().max() < 0.1 * spread
    assert torch.isfinite(output.logits).all()


@torch.no_grad()
def test_a_model_cast_as_a_whole_runs_too(make_model, make_features):
    for dtype, tolerance in ((torch.float64, 1e-4), (torch.bfloat16, 0.5), (torch.float16, 0.2)):
        model = make_model(HTSATForAudioClassification)
        features = make_features(2, 100)
        expected = model(features).logits
        output = model.to(dtype)(features).logits
        assert output.dtype == dtype
        assert (output.float() - expected).abs().max() < tolerance * expected.std()


def test_autocast_to_bfloat16_stays_close_and_trains(make_model, make_features):
    model = make_model(HTSATForSoundEventDetection, drop_path_rate=0)
    features, labels = make_features(2, 300), torch.rand(2, 5).round()
    expected = model(features, labels=labels)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(features, labels=labels)
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    assert (output.logits.float() - expected.logits).abs().mean() < 0.05 * expected.logits.std()
    output.loss.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("num_frames", "with_mask"), [(100, False), (700, True)])
@torch.no_grad()
def test_the_model_compiles_as_one_graph(make_model, make_features, num_frames, with_mask):
    torch._dynamo.reset()
    model = make_model(HTSATForSoundEventDetection, depths=(2, 1), num_heads=(1, 2))
    features = make_features(2, num_frames)
    mask = (
        (torch.arange(num_frames) < torch.tensor([num_frames // 2, num_frames])[:, None]).long() if with_mask else None
    )
    expected = model(features, mask)
    output = torch.compile(model, fullgraph=True)(features, mask)
    assert torch.allclose(output.clip_logits, expected.clip_logits, atol=1e-4)
    steps = expected.step_mask[..., None].expand_as(expected.logits)
    assert torch.allclose(output.logits[steps], expected.logits[steps], atol=1e-4)


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("num_frames", [100, 700])
@torch.no_grad()
def test_the_model_is_traced_as_one_graph_without_a_compiler(make_model, make_features, num_frames, with_mask):
    torch._dynamo.reset()
    model = make_model(HTSATForSoundEventDetection, depths=(2, 1), num_heads=(1, 2))
    features = make_features(2, num_frames)
    mask = (
        (torch.arange(num_frames) < torch.tensor([num_frames // 2, num_frames])[:, None]).long() if with_mask else None
    )
    output = torch.compile(model, fullgraph=True, backend="eager")(features, mask)
    assert torch.allclose(output.clip_logits, model(features, mask).clip_logits, atol=1e-5)


@pytest.mark.parametrize("num_frames", [100, 700])
@torch.no_grad()
def test_the_model_exports(make_model, make_features, num_frames):
    model = make_model(HTSATForAudioClassification, depths=(2, 1), num_heads=(1, 2))
    features = make_features(2, num_frames)
    mask = torch.arange(num_frames) < torch.tensor([num_frames // 2, num_frames])[:, None]
    program = torch.export.export(model, (features, mask.long()))
    output = program.module()(features, mask.long())
    assert torch.allclose(output.logits, model(features, mask).logits, atol=1e-5)


# ── losses of clips ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def clip_loss(make_model, make_features):
    """`clip_loss(labels, problem_type)`: the loss of four clips, and their logits `(4, 5)`."""

    def compute(labels: torch.Tensor, problem_type: str | None = None, **values) -> tuple[torch.Tensor, torch.Tensor]:
        model = make_model(HTSATForAudioClassification, problem_type=problem_type, **values)
        output = model(make_features(4, 100), labels=labels)
        assert model.config.problem_type == problem_type  # a loss does not write into the configuration
        return output.loss, output.logits

    return compute


CLASSES = torch.tensor([3, 0, 4, 1])
MULTI = torch.tensor([[0.0, 1, 0, 1, 1], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 0, 1]])


@pytest.mark.parametrize("problem_type", ["single_label_classification", None])
def test_class_indices_give_the_cross_entropy(clip_loss, problem_type):
    loss, logits = clip_loss(CLASSES, problem_type)
    assert torch.isclose(loss, F.cross_entropy(logits, CLASSES))
    loss, logits = clip_loss(CLASSES.to(torch.int32), problem_type)
    assert torch.isclose(loss, F.cross_entropy(logits, CLASSES))


def test_probabilities_of_all_classes_give_the_soft_cross_entropy(clip_loss):
    soft = torch.tensor([[0.5, 0.5, 0, 0, 0], [0, 0, 1, 0, 0], [0.2] * 5, [0, 0.1, 0, 0.9, 0]])
    loss, logits = clip_loss(soft, "single_label_classification")
    assert torch.isclose(loss, -(soft * logits.log_softmax(1)).sum(1).mean())


@pytest.mark.parametrize("problem_type", ["multi_label_classification", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_a_value_for_every_class_gives_the_binary_cross_entropy(clip_loss, problem_type, dtype):
    loss, logits = clip_loss(MULTI.to(dtype), problem_type)
    assert torch.isclose(loss, F.binary_cross_entropy_with_logits(logits, MULTI))


def test_soft_multi_labels_give_the_binary_cross_entropy(clip_loss):
    loss, logits = clip_loss(MULTI * 0.7 + 0.1, "multi_label_classification")
    assert torch.isclose(loss, F.binary_cross_entropy_with_logits(logits, MULTI * 0.7 + 0.1))


@pytest.mark.parametrize("problem_type", ["regression", None])
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_real_number_gives_the_squared_error(clip_loss, problem_type, shape):
    targets = torch.tensor([0.5, -2, 30, 0])
    loss, logits = clip_loss(targets.view(shape), problem_type, num_labels=1)
    assert torch.isclose(loss, (logits[:, 0] - targets).square().mean())


def test_several_real_numbers_give_the_squared_error(clip_loss):
    loss, logits = clip_loss(MULTI * 3 - 1, "regression")
    assert torch.isclose(loss, (logits - MULTI * 3 + 1).square().mean())


def test_missing_class_indices_are_left_out(clip_loss):
    labels = torch.tensor([3, -100, 4, -100])
    loss, logits = clip_loss(labels, "single_label_classification")
    assert torch.isclose(loss, F.cross_entropy(logits[[0, 2]], labels[[0, 2]]))


@pytest.mark.parametrize("missing", [math.nan, -100.0])
def test_missing_values_of_classes_are_left_out(clip_loss, missing):
    labels = MULTI.clone()
    labels[0, 1] = labels[3, 4] = missing
    labels[2] = missing
    is_known = torch.tensor([[1, 0, 1, 1, 1], [1] * 5, [0] * 5, [1, 1, 1, 1, 0]]).bool()
    loss, logits = clip_loss(labels, "multi_label_classification")
    assert torch.isclose(loss, F.binary_cross_entropy_with_logits(logits[is_known], MULTI[is_known]))


def test_missing_real_numbers_are_left_out(clip_loss):
    loss, logits = clip_loss(torch.tensor([0.5, math.nan, -30, math.nan]), "regression", num_labels=1)
    assert torch.isclose(loss, (logits[[0, 2], 0] - torch.tensor([0.5, -30])).square().mean())


@pytest.mark.parametrize("missing", [math.nan, -100.0])
def test_a_batch_with_missing_rows_has_the_loss_and_gradients_of_the_batch_without_them(
    make_model, make_features, missing
):
    labels, features = MULTI.clone(), make_features(4, 100)
    labels[1:3] = missing
    results = []
    for rows in ([0, 1, 2, 3], [0, 3]):
        model = make_model(HTSATForAudioClassification, problem_type="multi_label_classification")
        loss = model(features[rows], labels=labels[rows]).loss
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("problem_type", "labels", "num_labels"),
    [
        ("single_label_classification", torch.full((4,), -100), 5),
        ("multi_label_classification", torch.full((4, 5), math.nan), 5),
        ("multi_label_classification", torch.full((4, 5), -100.0), 5),
        ("regression", torch.full((4,), math.nan), 1),
    ],
)
def test_nothing_but_missing_labels_is_a_loss_of_zero(make_model, make_features, problem_type, labels, num_labels):
    model = make_model(HTSATForAudioClassification, problem_type=problem_type, num_labels=num_labels)
    loss = model(make_features(4, 100), labels=labels).loss
    loss.backward()
    assert loss == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("problem_type", "labels", "named"),
    [
        ("multi_label_classification", torch.zeros(4, 6), ["`labels`", "(4, 6)", "(4, 5)"]),
        ("multi_label_classification", torch.zeros(3, 5), ["`labels`", "(3, 5)", "(4, 5)"]),
        ("multi_label_classification", CLASSES, ["class indices", "single_label_classification"]),
        ("multi_label_classification", torch.zeros(4), ["`labels`", "(4,)", "(4, 5)"]),
        ("single_label_classification", torch.zeros(4, 5).long(), ["(4, 5)", "multi_label_classification"]),
        ("single_label_classification", torch.zeros(4), ["(4,)", "torch.float32", "class index"]),
        ("single_label_classification", torch.zeros(3).long(), ["(3,)", "(4,)"]),
        ("single_label_classification", torch.zeros(4, 1).long(), ["(4, 1)", "(4,)"]),
        ("regression", torch.zeros(4), ["`labels`", "(4,)", "(4, 5)"]),
        (None, torch.zeros(4, 6), ["`labels`", "(4, 6)", "(4, 5)"]),
        (None, torch.zeros(4), ["`labels`", "(4,)", "(4, 5)"]),
    ],
)
def test_labels_of_the_wrong_shape_are_refused_with_the_right_one(clip_loss, problem_type, labels, named):
    with pytest.raises(ValueError) as caught:
        clip_loss(labels, problem_type)
    message = str(caught.value)
    missing = [words for words in named if words not in message]
    assert not missing, message


@pytest.mark.parametrize(("num_labels", "shape"), [(5, (5, 4)), (2, (2, 4)), (1, (2, 2))])
def test_transposed_regression_targets_are_refused(clip_loss, num_labels, shape):
    with pytest.raises(ValueError, match="`labels` has shape"):
        clip_loss(torch.zeros(shape), "regression", num_labels=num_labels)


@pytest.mark.parametrize("label", [5, -1])
def test_a_class_index_that_does_not_exist_is_refused(clip_loss, label):
    with pytest.raises((ValueError, IndexError), match=str(label)):
        clip_loss(torch.tensor([0, 1, label, 2]), "single_label_classification")


def test_the_loss_of_a_half_precision_model_is_computed_in_float32(make_model, make_features, tmp_path):
    for problem_type, labels in (
        ("single_label_classification", CLASSES),
        ("multi_label_classification", MULTI),
        ("regression", MULTI),
    ):
        model = make_model(HTSATForAudioClassification, problem_type=problem_type)
        model.save_pretrained(tmp_path)
        half = HTSATForAudioClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
        output = half(make_features(4, 100), labels=labels)
        logits = output.logits.float()
        assert output.logits.dtype == torch.bfloat16
        assert output.loss.dtype == torch.float32
        expected = {
            "single_label_classification": F.cross_entropy,
            "multi_label_classification": F.binary_cross_entropy_with_logits,
            "regression": F.mse_loss,
        }[problem_type](logits, labels)
        assert torch.isclose(output.loss, expected, rtol=1e-6)


# ── losses of events ──────────────────────────────────────────────────────────────────────────────────────────────────

BCE = F.binary_cross_entropy_with_logits


@pytest.fixture
def detect(make_model, make_features):
    """`detect(labels=..., frame_targets=...)`: the output for four clips of 300 frames, which are 10 steps."""
    model = make_model(HTSATForSoundEventDetection, problem_type="multi_label_classification")
    return lambda **targets: model(make_features(4, 300), **targets)


@pytest.fixture
def strong() -> torch.Tensor:
    return torch.rand(4, 10, 5, generator=torch.Generator().manual_seed(1)).round()


def test_weak_labels_score_the_clip(detect):
    output = detect(labels=MULTI)
    assert torch.isclose(output.loss, BCE(output.clip_logits, MULTI))
    assert torch.isclose(detect(labels=MULTI.long()).loss, output.loss)


@pytest.mark.parametrize("name", ["labels", "frame_targets"])
def test_strong_labels_score_every_step(detect, strong, name):
    output = detect(**{name: strong})
    assert output.logits.shape == strong.shape
    assert torch.isclose(output.loss, BCE(output.logits, strong))


def test_weak_and_strong_labels_add_up(detect, strong):
    output = detect(labels=MULTI, frame_targets=strong)
    assert torch.isclose(output.loss, BCE(output.clip_logits, MULTI) + BCE(output.logits, strong))


@pytest.mark.parametrize("missing", [math.nan, -100.0])
def test_weak_and_strong_clips_share_a_batch(detect, strong, missing):
    weak = MULTI.clone()
    weak[2:] = missing
    strong[:2] = missing
    strong[3, 4:6, 1] = missing
    output = detect(labels=weak, frame_targets=strong)
    is_known = strong >= 0
    expected = BCE(output.clip_logits[:2], MULTI[:2]) + BCE(output.logits[is_known], strong[is_known])
    assert torch.isclose(output.loss, expected)


def test_no_labels_is_no_loss(detect):
    assert detect().loss is None


@pytest.mark.parametrize("missing", [math.nan, -100.0])
def test_events_with_nothing_but_missing_labels_are_a_loss_of_zero(make_model, make_features, missing):
    model = make_model(HTSATForSoundEventDetection)
    targets = {"labels": torch.full((2, 5), missing), "frame_targets": torch.full((2, 10, 5), missing)}
    loss = model(make_features(2, 300), **targets).loss
    loss.backward()
    assert loss == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


def test_strong_labels_beyond_a_recordings_own_steps_are_ignored(make_model, make_features, strong):
    model = make_model(HTSATForSoundEventDetection)
    mask = torch.arange(300) < torch.tensor([100, 256, 270, 300])[:, None]
    features = make_features(4, 300)
    output = model(features, mask, labels=strong)
    steps = [8, 8, 9, 10]
    own = torch.arange(10) < torch.tensor(steps)[:, None]
    assert torch.equal(output.step_mask, own)
    assert torch.isclose(output.loss, BCE(output.logits[own], strong[own]))
    changed = strong.where(own[..., None], 1 - strong)
    assert torch.equal(model(features, mask, labels=changed).loss, output.loss)


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        ({"labels": torch.zeros(4, 6)}, ["`labels`", "(4, 6)", "(4, 5)"]),
        ({"labels": torch.zeros(4).long()}, ["`labels`", "(4,)", "(4, 5)"]),
        ({"frame_targets": torch.zeros(4, 5, 10)}, ["`frame_targets`", "(4, 5, 10)", "(4, 10, 5)"]),
        ({"frame_targets": torch.zeros(4, 8, 5)}, ["`frame_targets`", "(4, 8, 5)", "(4, 10, 5)"]),
        ({"labels": torch.zeros(4, 8, 5)}, ["`labels`", "(4, 8, 5)", "(4, 10, 5)"]),
        ({"labels": torch.zeros(4, 10, 5), "frame_targets": torch.zeros(4, 10, 5)}, ["`labels`", "`frame_targets`"]),
    ],
)
def test_event_labels_of_the_wrong_shape_are_refused_with_the_right_one(detect, targets, named):
    with pytest.raises(ValueError) as caught:
        detect(**targets)
    message = str(caught.value)
    missing = [words for words in named if words not in message]
    assert not missing, message


# ── what a review found ───────────────────────────────────────────────────────────────────────────────────────────────


def test_an_exported_program_takes_any_number_of_clips(make_model, make_features):
    model = make_model(HTSATForSoundEventDetection)
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {"input_features": {0: batch}}
    program = torch.export.export(
        model, (), {"input_features": make_features(2, 256)}, dynamic_shapes=shapes, strict=False
    ).module()
    for num_clips in (2, 5):
        features = make_features(num_clips, 256, seed=num_clips)
        with torch.no_grad():
            torch.testing.assert_close(
                program(input_features=features).logits, model(features).logits, atol=1e-5, rtol=1e-5
            )


def test_the_mean_over_an_hour_of_steps_does_not_overflow_in_float16():
    steps = torch.full((1, 70_000, 3), -9.0, dtype=torch.float16)
    mean = module.masked_mean(steps, torch.ones(1, 70_000, dtype=torch.bool))
    assert mean.dtype == torch.float16
    assert torch.equal(mean, torch.full((1, 3), -9.0, dtype=torch.float16))


@pytest.mark.parametrize("missing", [-100.0, float("nan")])
def test_mixed_single_labels_that_are_missing_are_left_out(missing):
    logits = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.1]])
    labels = torch.tensor([[0.7, 0.2, 0.1], [missing] * 3])
    assert torch.equal(module.single_label_loss(logits, labels), module.single_label_loss(logits[:1], labels[:1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_made_one_of_half_precision_normalises_decibels_in_float32(make_model, make_features, dtype):
    model = make_model(HTSATForSoundEventDetection)
    model.htsat.mel_norm.running_var[::3] = 0  # bands in which a checkpoint never heard anything
    model.htsat.mel_norm.running_mean[::3] = -99.99
    features = make_features(2, 256)
    features[..., ::3] = -100
    with torch.no_grad():
        exact = model(features).logits.sigmoid()
        for half in (copy.deepcopy(model).to(dtype), copy.deepcopy(model).double().to(dtype)):
            assert half.htsat.mel_norm.weight.dtype in (torch.float32, torch.float64)
            assert half.htsat.patch_embed.projection.weight.dtype == dtype
        half = copy.deepcopy(model).to(dtype)
        torch.testing.assert_close(half(features).logits.sigmoid().float(), exact, atol=0.02, rtol=0)
    assert model.double().htsat.mel_norm.weight.dtype == torch.float64


@pytest.mark.parametrize("kind", MODEL_CLASSES)
def test_a_saved_model_of_half_precision_loads_as_one(make_model, tmp_path, kind):
    make_model(kind).save_pretrained(tmp_path / "whole")
    kind.from_pretrained(tmp_path / "whole", dtype=torch.float16).save_pretrained(tmp_path / "half")
    make_model(kind).half().save_pretrained(tmp_path / "made half")
    for name in ("half", "made half"):
        dtypes = {weight: values.dtype for weight, values in kind.from_pretrained(tmp_path / name).named_parameters()}
        assert {weight for weight, dtype in dtypes.items() if dtype == torch.float32} == {
            weight for weight in dtypes if "mel_norm" in weight
        }
    config = json.loads((tmp_path / "half" / "config.json").read_text(encoding="utf-8"))
    whole = json.loads((tmp_path / "whole" / "config.json").read_text(encoding="utf-8"))
    assert config.pop("dtype") == "float16" and whole.pop("dtype") == "float32"
    assert config == whole
