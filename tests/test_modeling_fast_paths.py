"""What the model does faster on a processor gives what the plain way gives, and steps aside where it does not fit."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modeling_htsat import HTSATForSoundEventDetection, HTSATModel
from modeling_htsat import modeling_htsat as module


@pytest.fixture
def convolutions(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of the images that `HTSATLinear` convolves, as if this machine's convolutions were fast."""
    shapes = []
    convolve = F.conv2d

    def remember(images, *args, **kwargs):
        shapes.append(tuple(images.shape))
        return convolve(images, *args, **kwargs)

    monkeypatch.setattr(module, "CONVOLUTIONS_ARE_FAST", True)
    monkeypatch.setattr(module.F, "conv2d", remember)
    return shapes


def make_linears(inputs: int, outputs: int, bias: bool = True) -> tuple[module.HTSATLinear, nn.Linear]:
    torch.manual_seed(0)
    ours, plain = module.HTSATLinear(inputs, outputs, bias), nn.Linear(inputs, outputs, bias)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@pytest.mark.parametrize("shape", [(4, 64), (5, 3, 16), (1024,), (16, 65), (17, 64), (2, 33, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_of_one_pixel_is_a_linear_layer_forward_and_backward(convolutions, shape, bias):
    ours, plain = make_linears(12, 20, bias)
    tokens = [torch.randn(*shape, 12, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    results = [layer(values) for layer, values in zip((ours, plain), tokens, strict=True)]
    for result in results:
        (result * torch.arange(20)).square().mean().backward()
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(*(values.grad for values in tokens), atol=1e-5, rtol=1e-4)
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, plain.get_parameter(name).grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("num_tokens", "images"),
    [(240, None), (256, (16, 3, 4, 4)), (264, None), (1008, (63, 3, 4, 4)), (1024, (16, 3, 8, 8)), (1040, None)],
)
def test_only_numbers_of_tokens_that_make_sixteen_whole_images_are_convolved(convolutions, num_tokens, images):
    make_linears(3, 5)[0](torch.randn(num_tokens, 3))
    assert convolutions == ([images] if images else [])


def test_tokens_become_images_without_being_copied(convolutions, monkeypatch):
    tokens = torch.randn(16, 64, 3)
    seen = []
    monkeypatch.setattr(module.F, "conv2d", lambda images, *_: seen.append(images.data_ptr()) or images)
    module.HTSATLinear(3, 3)(tokens)
    assert seen == [tokens.data_ptr()]


def test_weights_and_tokens_that_are_no_plain_float32_are_left_to_the_linear_layer(convolutions):
    tokens = torch.randn(16, 64, 8)
    assert make_linears(8, 4)[0].double()(tokens.double()).dtype == torch.float64
    assert make_linears(8, 4)[0].bfloat16()(tokens.bfloat16()).dtype == torch.bfloat16

    class Sharded(nn.Parameter):  # as quantized and distributed weights are: a class of their own
        pass

    layer, plain = make_linears(8, 4)
    layer.weight = Sharded(layer.weight.detach())
    assert torch.equal(layer(tokens), plain(tokens))
    with torch.backends.mkldnn.flags(enabled=False):
        make_linears(8, 4)[0](tokens)
    assert convolutions == []


def test_compilers_and_exporters_see_a_linear_layer(convolutions):
    layer, tokens = make_linears(8, 4)[0], torch.randn(16, 64, 8)
    program = torch.export.export(layer, (tokens,), strict=False)
    assert not [node for node in program.graph.nodes if "conv" in str(node.target)]
    torch.jit.trace(layer, tokens, check_trace=False)  # the check would run it untraced
    torch.compile(layer, backend="eager")(tokens)
    assert convolutions == []
    layer(tokens)
    assert len(convolutions) == 1


def test_on_machines_whose_convolutions_are_not_fast_nothing_is_convolved(convolutions, monkeypatch):
    monkeypatch.setattr(module, "CONVOLUTIONS_ARE_FAST", False)
    make_linears(8, 4)[0](torch.randn(16, 64, 8))
    assert convolutions == []


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
