"""Sub-networks: truncate(k), depth=k, forward_intermediates[k] and advance + output are one."""

from __future__ import annotations

import pytest
import torch
from layers import BACKENDS, Opaque, Shift, device_of, make_norm, packed, wide_copy
from loops import mixture
from tolerances import assert_close
from torch import nn

from acn_kernels import FusedACNStack
from acn_kernels.blocks import FeedForwardStack, MixerBlock, TransformerBlock

DEPTH = 4
OPTIONS = {
    "plain": {},
    "alpha-0": {"alpha": 0.0},
    "alpha-0.3": {"alpha": 0.3},
    "learned-scales": {"scales": "learned"},
    "fixed-scales": {"scales": [0.5, -1.0, 2.0, 0.0, 1.5]},
    "without-input": {"include_input": False},
    "without-input-learned": {"include_input": False, "scales": "learned"},
    "first-row": {"rows": "first"},
    "rows-alpha-0.3": {"rows": slice(1, 3), "alpha": 0.3},
    "rows-scales": {"rows": [2, 0], "scales": "learned"},
    "direct-gradient-only": {"direct_gradient_only": True},
    "checkpoint": {"checkpoint": True},
}


def make_stack(layer=Shift, final="layernorm", **options):
    stack = FusedACNStack([layer(7) for _ in range(DEPTH)], make_norm(final, 7), **options)
    if isinstance(stack.scales, nn.Parameter):
        nn.init.normal_(stack.scales)
    return stack


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("layer", [Shift, Opaque])
def test_all_ways_to_a_sub_network_agree(layer, gradients, options):
    stack = make_stack(layer, **OPTIONS[options]).double()
    if isinstance(stack.scales, torch.Tensor):
        stack.scales.data = stack.scales.data.double()
    x = torch.randn(2, 3, 7).double()
    first = 0 if stack.include_input else 1
    with torch.set_grad_enabled(gradients):
        outputs = stack.forward_intermediates(x)
        assert len(outputs) == DEPTH + 1 - first
        for k, output in enumerate(outputs, first):
            assert_close(stack(x, depth=k), output, name=f"depth={k}")
            assert_close(stack.truncate(k)(x), output, name=f"truncate({k})")
            state = stack.advance(x, stop=k)
            assert_close(stack.output(*state, k), output, name=f"advance to {k}")
        assert_close(stack(x), outputs[-1], name="without a depth")


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_intermediates_against_the_loop(alpha):
    stack = make_stack(alpha=alpha, scales="learned").double()
    x = torch.randn(2, 3, 7).double().requires_grad_()
    outputs = stack.forward_intermediates(x)
    truth = mixture(list(stack), x, alpha, stack.norm, stack.scales)
    incoming = [torch.randn_like(y) for y in truth]
    inputs = [x, *stack.parameters()]
    got = torch.autograd.grad(outputs, inputs, incoming)
    expected = torch.autograd.grad(truth, inputs, incoming)
    for one, true in zip([*outputs, *got], [*truth, *expected], strict=True):
        assert_close(one, true, among=10)


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("rows", [None, "last"], ids=["all", "last"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend(backend, rows, gradients):
    device = device_of(backend)
    stack = make_stack(backend=backend, rows=rows, scales=[0.5, -1.0, 2.0, 0.0, 1.5]).to(device)
    x = packed((2, 3, 7), torch.float32, device)
    twin = wide_copy(stack)
    truth = mixture(
        list(twin), x.double().cpu(), 1.0, twin.norm, twin.scales, None if rows is None else [2]
    )
    with torch.set_grad_enabled(gradients):
        for k, output in enumerate(stack.forward_intermediates(x)):
            assert_close(output, truth[k], roundings=3, name=f"y_{k}")
            assert_close(stack(x, depth=k), truth[k], roundings=3, name=f"depth={k}")
            assert_close(stack.truncate(k)(x), truth[k], roundings=3, name=f"truncate({k})")


@pytest.mark.parametrize("granularity", ["block", "sublayer"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "block",
    [lambda: TransformerBlock(8, 2), lambda: MixerBlock(3, 8, 5, 7)],
    ids=["transformer", "mixer"],
)
def test_blocks(block, alpha, granularity):
    stack = FusedACNStack([block() for _ in range(3)], nn.LayerNorm(8), alpha=alpha,
                          granularity=granularity, scales="learned").double()  # fmt: skip
    nn.init.normal_(stack.scales)
    x = torch.randn(2, 3, 8).double()
    for k, output in enumerate(stack.forward_intermediates(x)):
        assert_close(stack.truncate(k)(x), output)
        assert_close(stack(x, depth=k), output)


@pytest.mark.parametrize("options", ["plain", "alpha-0.3", "first-row", "rows-alpha-0.3"])
@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
def test_advance_in_stages(gradients, options):
    """Stages of a pipeline: the state goes from one to the next."""
    stack = make_stack(**OPTIONS[options]).double()
    x = torch.randn(2, 3, 7).double()
    with torch.set_grad_enabled(gradients):
        state = (x, None)
        for start in range(DEPTH):
            state = stack.advance(*state, start=start, stop=start + 1)
        assert_close(stack.output(*state, DEPTH), stack(x))


def test_indices_of_intermediates():
    stack = make_stack()
    x = torch.randn(2, 7)
    everything = stack.forward_intermediates(x)
    chosen = stack.forward_intermediates(x, indices=[3, 0, -1, 3])
    for output, k in zip(chosen, [3, 0, 4, 3], strict=True):
        assert torch.equal(output, everything[k])
    assert stack.forward_intermediates(x, indices=[]) == []


@pytest.mark.parametrize("depth", [0, 2])
def test_layers_above_the_depth_are_not_run(depth):
    stack = make_stack()
    ran = []
    for i, layer in enumerate(stack):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    stack(torch.randn(2, 7), depth=depth)
    stack.forward_intermediates(torch.randn(2, 7), indices=[depth])
    assert ran == 2 * list(range(depth))


@pytest.mark.parametrize("scales", [None, "learned", "fixed"])
@pytest.mark.parametrize("k", [0, 1, 3, 4])
def test_state_dict_of_a_truncated_stack(k, scales):
    options = {None: {}, "learned": {"scales": "learned"}, "fixed": OPTIONS["fixed-scales"]}
    stack = make_stack(**options[scales])
    short = stack.truncate(k)
    whole, part = stack.state_dict(), short.state_dict()
    assert type(short) is FusedACNStack and len(short) == k
    expected = {
        name for name in whole if not name.split(".")[0].isdigit() or int(name.split(".")[0]) < k
    }
    assert set(part) == expected
    for name in expected - {"scales"}:
        assert part[name].data_ptr() == whole[name].data_ptr(), f"{name} is shared"
    if scales == "learned":
        assert part["scales"].shape == (k + 1,)
        assert torch.equal(part["scales"], whole["scales"][: k + 1])
        assert part["scales"].data_ptr() == whole["scales"].data_ptr()
    fresh = make_stack(**options[scales]).truncate(k)
    assert fresh.load_state_dict(part, strict=True) == ([], [])


@pytest.mark.parametrize("training", [True, False])
def test_truncate_keeps_options_and_mode(training):
    options = {"alpha": 0.3, "rows": "first", "checkpoint": True, "backend": "torch"}
    stack = make_stack(**options, direct_gradient_only=True).train(training)
    short = stack.truncate(2)
    for name, value in options.items():
        assert getattr(short, name) == value
    assert short.direct_gradient_only and short.training is training and stack.training is training
    assert short.norm is stack.norm and short[1] is stack[1]


def test_truncated_weights_train_the_whole():
    stack = make_stack(scales="learned")
    short = stack.truncate(2)
    with torch.no_grad():
        short[0].weight.fill_(0.25)
        short.scales.fill_(0.5)
    assert (stack[0].weight == 0.25).all() and (stack.scales[:3] == 0.5).all()


def test_feedforward_sub_networks():
    stack = FeedForwardStack([Shift(7) for _ in range(DEPTH)], make_norm("layernorm", 7)).double()
    x = torch.randn(2, 3, 7).double()
    outputs = stack.forward_intermediates(x)
    for k, output in enumerate(outputs):
        short = stack.truncate(k)
        assert type(short) is FeedForwardStack
        assert_close(short(x), output)
        assert_close(stack(x, depth=k), output)


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
def test_nothing_that_is_given_out_is_the_input(gradients):
    stack, x = FusedACNStack([nn.Linear(7, 7) for _ in range(2)]), torch.randn(3, 7)
    before = x.clone()
    with torch.set_grad_enabled(gradients):
        given = [stack(x, depth=0), *stack.forward_intermediates(x), *stack.advance(x, stop=1)]
    with torch.no_grad():
        for y in given:
            y.zero_()
    assert torch.equal(x, before)


def test_a_training_after_an_evaluation_in_inference_mode():
    stack = FusedACNStack([TransformerBlock(16, 2) for _ in range(2)], rows="first")
    x = torch.randn(2, 5, 16)
    with torch.inference_mode():
        stack.alpha = 0.5
        stack(x)
    stack(x).sum().backward()
    assert all(p.grad is not None for p in stack.parameters())


def test_rows_of_an_attention_without_biases():
    stack = FusedACNStack([TransformerBlock(16, 2) for _ in range(2)])
    for block in stack:
        block.attn.qkv = nn.Linear(16, 48, bias=False)
    x = torch.randn(2, 5, 16)
    whole, stack.rows = stack(x), "last"
    torch.testing.assert_close(stack(x), whole[:, -1:])
