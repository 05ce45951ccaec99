"""What the model does faster on a processor gives what the plain way gives, and steps aside where it does not fit."""

import copy
import functools
import os
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from modeling_htsat import HTSATFeatureExtractor, HTSATForSoundEventDetection, HTSATModel
from modeling_htsat import modeling_htsat as module
from modeling_htsat import processor_htsat as processor

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="this PyTorch was built without oneDNN")


@pytest.fixture
def products(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of the rows that are given to oneDNN, as if it were fast on this machine."""
    shapes = []
    forward = processor.OneDNNLinear.forward

    def remember(ctx, tokens, *args):
        shapes.append(tuple(tokens.shape))
        return forward(ctx, tokens, *args)

    monkeypatch.setattr(processor, "ONEDNN_IS_FAST", HAS_ONEDNN)
    monkeypatch.setattr(processor.OneDNNLinear, "forward", staticmethod(remember))
    return shapes


def make_linears(inputs: int, outputs: int, bias: bool = True) -> tuple[processor.HTSATLinear, nn.Linear]:
    torch.manual_seed(0)
    ours, plain = processor.HTSATLinear(inputs, outputs, bias), nn.Linear(inputs, outputs, bias)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def make_tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needs_onednn
@pytest.mark.parametrize("shape", [(4, 64), (5, 3, 16), (1024,), (1,), (), (0, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_of_onednn_is_a_linear_layer_forward_and_backward(products, shape, bias):
    ours, plain = make_linears(12, 20, bias)
    tokens = [make_tokens(*shape, 12).requires_grad_() for _ in range(2)]
    results = [layer(values) for layer, values in zip((ours, plain), tokens, strict=True)]
    assert len(products) == (0 if 0 in shape else 1)  # oneDNN knows no empty products
    for result in results:
        ((result * torch.arange(20)).square().sum() / max(result.numel(), 1)).backward()  # a mean, also of nothing
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(*(values.grad for values in tokens), atol=1e-5, rtol=1e-4)
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, plain.get_parameter(name).grad, atol=1e-4, rtol=1e-4)


@needs_onednn
@pytest.mark.parametrize(
    "tokens",
    [
        make_tokens(1, 12).expand(40, 12),
        make_tokens(12, 40).t(),
        make_tokens(40, 24)[:, ::2],
        make_tokens(41, 13)[1:, 1:],
        make_tokens(3, 5, 12).transpose(0, 1),
    ],
    ids=["one row for all", "transposed", "every other", "a corner", "three axes"],
)
def test_tokens_may_lie_in_memory_as_they_like(products, tokens):
    ours, plain = make_linears(12, 20)
    torch.testing.assert_close(ours(tokens), plain(tokens), atol=1e-6, rtol=1e-5)
    ours(tokens).sum().backward()  # a gradient that is one number, seen from everywhere
    plain(tokens).sum().backward()
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad, atol=1e-4, rtol=1e-5)
    assert products


@needs_onednn
def test_mel_filters_are_applied_by_onednn_as_by_pytorch(products):
    extractor, clips = HTSATFeatureExtractor(), [0.1 * make_tokens(9_000).numpy(), make_tokens(3_000, seed=2).numpy()]
    features = extractor(clips, 32_000)["input_features"]
    assert products == [(2 * 29, 513)]
    with torch.backends.mkldnn.flags(enabled=False):
        plain = extractor(clips, 32_000)["input_features"]
    assert len(products) == 1
    assert abs(features - plain).max() < 1e-4  # decibels


@needs_onednn
def test_gradients_of_gradients_are_those_of_a_linear_layer(products):
    ours, _ = make_linears(3, 4)
    tokens = make_tokens(5, 3).requires_grad_()
    slopes = []
    for layer in (ours, nn.Linear.forward.__get__(ours)):
        (first,) = torch.autograd.grad(layer(tokens).pow(3).sum(), tokens, create_graph=True)
        slopes.append(torch.autograd.grad(first.square().sum(), [tokens, *ours.parameters()]))
    assert len(products) > 3  # backward as well
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@needs_onednn
def test_what_is_frozen_costs_no_product_in_the_backward_pass(products):
    ours, _ = make_linears(8, 4)
    tokens = make_tokens(16, 8)
    ours(tokens).sum().backward()
    assert products == [(16, 8), (4, 16)]  # no gradient for tokens that want none
    ours.weight.requires_grad_(False)
    products.clear()
    ours(tokens.requires_grad_()).sum().backward()
    assert products == [(16, 8), (16, 4)]


def test_weights_and_tokens_that_are_no_plain_float32_are_left_to_the_linear_layer(products):
    tokens = make_tokens(16, 64, 8)
    assert make_linears(8, 4)[0].double()(tokens.double()).dtype == torch.float64
    assert make_linears(8, 4)[0].bfloat16()(tokens.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert make_linears(8, 4)[0](tokens).dtype == torch.bfloat16

    class Sharded(nn.Parameter):  # as quantized and distributed weights are: a class of their own
        pass

    layer, plain = make_linears(8, 4)
    layer.weight = Sharded(layer.weight.detach())
    assert torch.equal(layer(tokens), plain(tokens))
    with torch.backends.mkldnn.flags(enabled=False):
        make_linears(8, 4)[0](tokens)
    assert products == []


@needs_onednn
def test_compilers_exporters_and_counters_see_a_linear_layer(products):
    layer, tokens = make_linears(8, 4)[0], make_tokens(16, 64, 8)
    program = torch.export.export(layer, (tokens,), strict=False)
    assert [node for node in program.graph.nodes if node.target == torch.ops.aten.linear.default]
    torch.jit.trace(layer, tokens, check_trace=False)  # the check would run it untraced
    torch.compile(layer, backend="eager")(tokens)
    with FlopCounterMode(display=False) as counter:
        layer(tokens)
    assert counter.get_total_flops() == 2 * 16 * 64 * 8 * 4
    weights = dict(layer.named_parameters())
    per_clip = torch.func.vmap(
        torch.func.grad(lambda weights, clip: torch.func.functional_call(layer, weights, clip).square().sum()),
        in_dims=(None, 0),
    )(weights, tokens)
    assert products == []
    for clip in range(16):
        layer.zero_grad()
        layer(tokens[clip]).square().sum().backward()
        torch.testing.assert_close(per_clip["weight"][clip], layer.weight.grad, atol=1e-3, rtol=1e-4)
    assert len(products) == 2 * 16


def test_on_machines_where_onednn_is_not_fast_nothing_goes_there(products, monkeypatch):
    monkeypatch.setattr(processor, "ONEDNN_IS_FAST", False)
    make_linears(8, 4)[0](make_tokens(16, 64, 8))
    assert products == []


@needs_onednn
@pytest.mark.parametrize("shape", [(64, 24, 4), (64, 4, 24), (3, 24, 20), (3, 20, 24), (1, 1, 1)])
def test_a_product_that_is_turned_is_the_same_whichever_factor_is_copied(shape):
    num_rows, num_left, num_right = shape
    left, right = make_tokens(num_rows, num_left).double(), make_tokens(num_rows, num_right, seed=2).double()
    turned = processor.OneDNNLinear.multiply_turned(left.float(), right.float())
    torch.testing.assert_close(turned, (left.t() @ right).float(), atol=1e-5, rtol=1e-5)


# ── GELU with the layer before it ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def mlp(make_model, monkeypatch) -> nn.Module:
    monkeypatch.setattr(processor, "ONEDNN_IS_FAST", HAS_ONEDNN)
    return make_model(HTSATModel).stages[0].blocks[0].mlp


def plainly(mlp: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    up, down = (functools.partial(F.linear, weight=layer.weight, bias=layer.bias) for layer in (mlp.up, mlp.down))
    return down(F.gelu(up(tokens)))


@needs_onednn
def test_gelu_comes_with_the_layer_before_it_where_there_are_no_gradients(mlp, products):
    tokens = make_tokens(2, 64, mlp.up.in_features, seed=3) * 3
    with torch.no_grad():
        torch.testing.assert_close(mlp(tokens), plainly(mlp, tokens), atol=1e-6, rtol=1e-5)
    assert len(products) == 1  # the layer after it; the one before went another way
    torch.testing.assert_close(mlp(tokens), plainly(mlp, tokens), atol=1e-6, rtol=1e-5)
    assert len(products) == 3


class Adapted(processor.HTSATLinear):
    """As adapters do, it adds something to what its layer makes."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens) + 1


@needs_onednn
@pytest.mark.parametrize(
    "watch", ["activation hook", "layer hook", "hook before", "hook everywhere", "accelerate", "adapter", "other"]
)
def test_who_watches_or_changes_what_comes_in_between_gets_to_it(mlp, watch):
    tokens, seen = make_tokens(2, 64, mlp.up.in_features), []
    expected = plainly(mlp, tokens)
    handle = None
    if watch == "activation hook":
        mlp.activation.register_forward_hook(lambda _, inputs, output: seen.append(output))
    elif watch == "layer hook":
        mlp.up.register_forward_hook(lambda _, inputs, output: seen.append(output))
    elif watch == "hook before":
        mlp.up.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    elif watch == "hook everywhere":
        handle = nn.modules.module.register_module_forward_hook(lambda layer, *_: seen.append(layer))
    elif watch == "accelerate":
        forward = mlp.up.forward
        mlp.up.forward = lambda tokens: seen.append(tokens) or forward(tokens)
    elif watch == "adapter":
        mlp.up.__class__ = Adapted
        expected = mlp.down(F.gelu(F.linear(tokens, mlp.up.weight, mlp.up.bias) + 1))
        seen.append(None)
    else:
        mlp.activation = nn.ReLU()
        expected = mlp.down(F.relu(mlp.up(tokens)))
        seen.append(None)
    with torch.no_grad():
        torch.testing.assert_close(mlp(tokens), expected, atol=1e-6, rtol=1e-5)
    if handle is not None:
        handle.remove()
        assert mlp.activation in seen and mlp.up in seen
    assert seen


# ── attention in parts ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def attended(monkeypatch) -> list[int]:
    """How many windows went through attention in parts, call by call, as if this machine had two threads for it."""
    calls = []
    forward = processor.AttentionInParts.forward

    def remember(ctx, query_key_value, *args):
        calls.append(len(query_key_value))
        return forward(ctx, query_key_value, *args)

    monkeypatch.setattr(processor, "HAS_VECTORS", True)
    monkeypatch.setattr(processor.AttentionInParts, "forward", staticmethod(remember))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield calls
    torch.set_num_threads(num_threads)


def attend_plainly(query_key_value: torch.Tensor, bias: torch.Tensor, scaling: float) -> torch.Tensor:
    query, key, value = query_key_value.transpose(1, 3).unbind(2)
    bias = bias.repeat(len(query) // len(bias), 1, 1, 1)
    return F.scaled_dot_product_attention(query, key, value, bias, scale=scaling).transpose(1, 2)


@pytest.mark.parametrize("num_biases", [1, 3])
@pytest.mark.parametrize("scores_at_once", [1, 2 * 2 * 25, 2**20])
def test_attention_in_parts_is_attention_with_its_gradients_and_theirs(num_biases, scores_at_once, monkeypatch):
    """One window at once, two (of three and of six), and all."""
    monkeypatch.setattr(processor, "SCORES_AT_ONCE", scores_at_once)
    assert len(list(processor.parts_of_windows(6, torch.zeros(num_biases, 2, 5, 5)))) == {
        (1, 1): 6, (1, 3): 6, (100, 1): 3, (100, 3): 4, (2**20, 1): 1, (2**20, 3): 2,
    }[scores_at_once, num_biases]  # fmt: skip
    query_key_value = make_tokens(6, 5, 3, 2, 4).double().requires_grad_()
    bias = make_tokens(num_biases, 2, 5, 5, seed=2).double().requires_grad_()
    given = (query_key_value, bias)

    def attend(*given: torch.Tensor) -> torch.Tensor:
        return processor.AttentionInParts.apply(*given, 0.7)

    torch.testing.assert_close(attend(*given), attend_plainly(*given, 0.7))
    for with_theirs in (False, True):  # backward goes another way where its gradients are to have gradients too
        gradients, expected = (
            torch.autograd.grad(attended.square().sum(), given, create_graph=with_theirs)
            for attended in (attend(*given), attend_plainly(*given, 0.7))
        )
        torch.testing.assert_close(gradients, expected)
    assert torch.autograd.gradcheck(attend, given, fast_mode=True)  # along random directions
    assert torch.autograd.gradgradcheck(attend, given, fast_mode=True)
    assert attend(*given).shape == (6, 5, 2, 4)


@pytest.mark.parametrize("num_frames", [1001, 2500])
def test_a_model_that_attends_in_parts_scores_and_learns_as_one_that_attends_plainly(
    attended, make_model, make_features, num_frames
):
    labels, results = torch.rand(3, 5, generator=torch.Generator().manual_seed(2)), []
    for implementation in ("sdpa", "eager"):
        model = make_model(HTSATForSoundEventDetection, num_labels=5)
        model.set_attn_implementation(implementation)
        features = make_features(3, num_frames)
        with torch.no_grad():
            scores = model(features).logits
        num_calls = len(attended)
        model(features, labels=labels).loss.backward()
        assert (num_calls > 0, len(attended) > num_calls) == (implementation == "sdpa",) * 2
        results.append([scores, *(weight.grad for weight in model.parameters())])
        attended.clear()
    for in_parts, plain in zip(*results, strict=True):
        torch.testing.assert_close(in_parts, plain, atol=1e-5, rtol=1e-4)


def test_derivatives_forward_are_those_backward(attended, products, make_model, make_features):
    model, features = make_model(HTSATModel), make_features(1, 256)
    direction = make_features(1, 256, seed=1)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(model(forward_ad.make_dual(features, direction)).pooler_output).tangent
    assert attended == products == []
    features.requires_grad_()
    weights = make_tokens(*found.shape)
    (gradient,) = torch.autograd.grad((model(features).pooler_output * weights).sum(), features)
    assert attended and products
    torch.testing.assert_close((found * weights).sum(), (gradient * direction).sum(), atol=1e-4, rtol=1e-4)


def test_attention_goes_in_parts_only_where_that_is_faster_and_does_not_show(attended, make_model, make_features):
    model, features = make_model(HTSATModel), make_features(1, 256)
    with torch.no_grad():
        assert len(model(features, output_attentions=True).attentions) == sum(model.config.depths)
        torch.export.export(model, (features,), strict=False)
        with torch.autocast("cpu", torch.bfloat16):
            model(features)
        with FlopCounterMode(display=False):
            model(features)
        torch.set_num_threads(1)
        model(features)
    dropping = make_model(HTSATModel, attention_probs_dropout_prob=0.1).train()
    dropping(features)
    assert attended == []
    dropping.eval()(features)  # one thread, but gradients
    assert len(attended) == sum(model.config.depths)


# ── what is made once, and in parts ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def made_biases(monkeypatch) -> list[bool]:
    """For every attention bias that is made from a table, whether its block is shifted."""
    made = []
    make = module.HTSATWindowing.attention_bias

    def remember(windowing, table, is_shifted):
        made.append(is_shifted)
        return make(windowing, table, is_shifted)

    monkeypatch.setattr(module.HTSATWindowing, "attention_bias", remember)
    return made


def test_attention_biases_are_made_once_and_again_whenever_a_table_changes(make_model, make_features, made_biases):
    model, features = make_model(HTSATModel), make_features(2, 256)
    other = make_model(HTSATModel)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(0.5)
    tables = [block.attention.relative_position_bias_table for stage in model.stages for block in stage.blocks]

    @torch.no_grad()
    def hear() -> torch.Tensor:
        made_biases.clear()
        return model(features).pooler_output

    first = hear()
    assert len(made_biases) == len(tables)
    assert torch.equal(hear(), first) and made_biases == []
    tables[0].data[3] += 1.0  # past the counter that PyTorch keeps of changes
    changed = hear()
    assert len(made_biases) == 1 and not torch.equal(changed, first)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(hear(), other(features).pooler_output, atol=1e-6, rtol=1e-5)
    assert len(made_biases) == 2 * len(tables)  # and those of the other, with gradients
    model.double()
    assert hear().dtype == torch.float64 and len(made_biases) == len(tables)


def test_with_gradients_every_step_makes_its_biases_anew_and_trains_the_tables(make_model, make_features, made_biases):
    model = make_model(HTSATModel).train()
    with torch.no_grad():
        model(make_features(2, 256))
    made_biases.clear()
    for _ in range(2):
        model.zero_grad()
        model(make_features(2, 256)).pooler_output.square().sum().backward()
    tables = [block.attention.relative_position_bias_table for stage in model.stages for block in stage.blocks]
    assert len(made_biases) == 2 * len(tables)
    assert all(table.grad.abs().max() > 0 for table in tables)


def test_known_biases_are_not_saved_and_a_copy_changes_by_itself(make_model, make_features):
    model, features = make_model(HTSATModel), make_features(2, 256)
    names = set(model.state_dict())
    with torch.no_grad():
        before = model(features).pooler_output
        assert set(model.state_dict()) == names
        twin = copy.deepcopy(model)
        twin.stages[0].blocks[0].attention.relative_position_bias_table.add_(1.0).mul_(2.0)
        assert not torch.equal(twin(features).pooler_output, before)
        assert torch.equal(model(features).pooler_output, before)


COUNT_FAULTS = """
import resource, torch
from modeling_htsat import HTSATConfig, HTSATModel

model = HTSATModel(HTSATConfig(embed_dim=8, depths=(1, 1), num_heads=(1, 1), num_labels=2)).eval()
with torch.no_grad():
    model(torch.zeros(1, 1001, 64))
for round in range(20):
    if round == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(3_700_000) for _ in range(4)]  # 15 MB each, as in the model's first stage
    del tensors
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory by rules of their own")
def test_after_one_pass_memory_that_tensors_free_is_kept():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    run = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, env=environment)
    # Without, 14,000 a round: unless, as some builds of PyTorch do, the process has freed a large piece before.
    assert run.returncode == 0 and int(run.stdout) < 100, run.stdout + run.stderr


COUNT_FAULTS_OF_TRAINING = """
import resource, torch
from modeling_htsat import HTSATConfig, HTSATForAudioClassification
torch.manual_seed(0)
model = HTSATForAudioClassification(HTSATConfig(embed_dim=64, depths=(2, 2), num_heads=(2, 2), num_labels=2)).train()
features, labels = torch.randn(8, 1001, 64), torch.zeros(8, dtype=torch.long)
for step in range(9):
    if step == 6:  # in the first five, the heap still grows until every order of pieces has fitted in
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(features, labels=labels).loss.backward()
    model.zero_grad()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 3)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory by rules of their own")
def test_a_step_of_training_keeps_the_memory_of_the_one_before():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", COUNT_FAULTS_OF_TRAINING]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0 and int(run.stdout) < 20_000, run.stdout + run.stderr  # without, 55,000 to 75,000 a step


FREE_BATCHES = """
import psutil, torch
from torch.utils.data import DataLoader
from modeling_htsat import HTSATFeatureExtractor

extractor = HTSATFeatureExtractor(clip_frames=64)

class Worker:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        extractor(torch.zeros(20_480).numpy(), sampling_rate=32_000)
        batches = [torch.ones(5_000_000) for _ in range(10)]
        above = [torch.ones(10_000) for _ in range(100)]  # of a heap, only what lies above everything is handed back
        held = psutil.Process().memory_info().rss
        del batches
        return (held - psutil.Process().memory_info().rss) // 10**6

extractor(torch.zeros(20_480).numpy(), sampling_rate=32_000)
print(*[int(freed) for freed in DataLoader(Worker(), batch_size=None, num_workers=1)])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory by rules of their own")
def test_a_worker_of_a_data_loader_hands_back_batches_of_long_recordings():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    run = subprocess.run([sys.executable, "-c", FREE_BATCHES], capture_output=True, text=True, env=environment)
    # Of 200 MB, all but what finds room in the memory that it has from its parent; without, nothing.
    assert run.returncode == 0 and int(run.stdout) > 120, run.stdout + run.stderr


def test_a_batch_in_parts_gives_what_it_gives_at_once(make_model, make_features, monkeypatch):
    model = make_model(HTSATForSoundEventDetection)
    features = make_features(5, 256)
    calls: list[int] = []
    block = model.htsat.stages[0].blocks[0]
    block.register_forward_hook(lambda _, inputs, output: calls.append(len(inputs[0])))

    def hear(numbers_at_once: int) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(module, "NUMBERS_AT_ONCE", numbers_at_once)
        calls.clear()
        with torch.no_grad():
            outputs = model(features, output_hidden_states=True, output_attentions=True)
        flat = {"logits": outputs.logits, "clip_logits": outputs.clip_logits, "pooler_output": outputs.pooler_output}
        named = {"hidden": outputs.hidden_states, "attention": outputs.attentions}
        return flat | {f"{name} {n}": tensor for name, tensors in named.items() for n, tensor in enumerate(tensors)}

    whole = hear(2**40)
    assert calls == [5]
    numbers = model.config.embed_dim * model.config.stage_grids[0] ** 2
    in_parts = hear(2 * numbers)
    assert calls == [2, 2, 1]
    assert in_parts.keys() == whole.keys() and len(whole) > 6
    for name, tensor in whole.items():
        torch.testing.assert_close(in_parts[name], tensor, atol=1e-5, rtol=1e-5, msg=name)
    hear(1)  # less than one window is no part
    assert calls == [1] * 5


def test_what_keeps_gradients_is_never_cut_into_parts(make_model, make_features, monkeypatch):
    monkeypatch.setattr(module, "NUMBERS_AT_ONCE", 1)
    model = make_model(HTSATModel)
    calls = []
    model.stages[0].blocks[0].register_forward_hook(lambda _, inputs, output: calls.append(len(inputs[0])))
    model(make_features(3, 256))
    assert calls == [3]


def test_activation_checkpointing_goes_in_parts_and_changes_neither_loss_nor_gradients(
    make_model, make_features, monkeypatch
):
    labels, calls, results = torch.rand(3, 5, generator=torch.Generator().manual_seed(2)), [], []
    for numbers_at_once in (2**40, 1):
        monkeypatch.setattr(module, "NUMBERS_AT_ONCE", numbers_at_once)
        model = make_model(HTSATForSoundEventDetection, num_labels=5, drop_path_rate=0).train()
        model.gradient_checkpointing_enable()
        model.htsat.stages[0].blocks[0].register_forward_hook(lambda _, inputs, output: calls.append(len(inputs[0])))
        loss = model(make_features(3, 256), labels=labels).loss
        loss.backward()
        results.append([loss, *(weight.grad for weight in model.parameters())])
    assert calls in ([3, 1, 1, 1], [3, 3, 1, 1, 1, 1, 1, 1])  # hooks may run once more when a part is recomputed
    for whole, in_parts in zip(*results, strict=True):
        torch.testing.assert_close(in_parts, whole, atol=1e-5, rtol=1e-4)
