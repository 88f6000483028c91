"""Long and short connections together: the hybrid, and post-norm blocks at every alpha."""

from __future__ import annotations

import pytest
import torch
from layers import (
    BACKENDS,
    Opaque,
    Shift,
    device_of,
    make_norm,
    packed,
    random_parameters,
    wide_copy,
)
from loops import (
    assert_equal_network,
    attention,
    halves,
    normed,
    perceptron,
    plain,
    residual_network,
)
from tolerances import assert_close
from torch import nn

from acn_kernels import FusedACNStack
from acn_kernels.blocks import HybridStack, PostNormBlock, PostNormStack, TransformerBlock

ALPHAS = [0.0, 0.37, 1.0]


def hybrid(blocks, x, scales, granularity, x_0=None):
    """[y_0 .. y_L] by the equation, plain adds and nothing else."""
    sums, at = [scales[0] * x], 0
    added = 0 if x_0 is None else x_0
    for block in blocks:
        first, second = halves(block)
        a = scales[at]
        h = first(x + added) + (1 - a) * x
        y = sums[-1]
        if granularity == "sublayer":
            at += 1
            a = scales[at]
            y = y + a * h
        x = second(h) + (1 - a) * h
        at += 1
        sums.append(y + scales[at] * x)
    return sums


def post_norm(blocks, x, alpha, granularity="block"):
    """[y_0 .. y_L]: y_k = x_k + alpha * (the terms before it)."""
    before, outputs = 0, [x]
    for block in blocks:
        before = before + alpha * x
        h = normed(attention(block.attn, x) + (1 - alpha) * x, block.norm1)
        if granularity == "sublayer":
            before = before + alpha * h
        x = normed(perceptron(block.mlp, h) + (1 - alpha) * h, block.norm2)
        outputs.append(x + before)
    return outputs


def hybrid_stack(granularity="block", depth=3, **options):
    blocks = [TransformerBlock(8, 2, 16) for _ in range(depth)]
    return random_parameters(
        HybridStack(blocks, nn.LayerNorm(8), granularity=granularity,
                    **{"scales": "learned", **options})
    )  # fmt: skip


def post_norm_stack(depth=3, **options):
    blocks = [PostNormBlock(8, 2, 16) for _ in range(depth)]
    return random_parameters(PostNormStack(blocks, **options))


@pytest.mark.parametrize("checkpoint", [False, True, "elementwise"])
@pytest.mark.parametrize("granularity", ["block", "sublayer"])
def test_hybrid_is_its_equation(granularity, checkpoint):
    stack = hybrid_stack(granularity, checkpoint=checkpoint)
    assert_equal_network(
        stack,
        lambda x: normed(hybrid(list(stack), x, stack.scales, granularity)[-1], stack.norm),
        torch.randn(2, 5, 8).double(),
    )


@pytest.mark.parametrize("granularity", ["block", "sublayer"])
def test_the_input_again_at_every_block(granularity):
    stack = hybrid_stack(granularity)
    assert_equal_network(
        stack,
        lambda x: normed(hybrid(list(stack), x, stack.scales, granularity, x)[-1], stack.norm),
        torch.randn(2, 5, 8).double(),
        lambda x: stack(x, x_0=x),
    )


@pytest.mark.parametrize("granularity", ["block", "sublayer"])
def test_both_ends_of_the_hybrid(granularity):
    stack, x = hybrid_stack(granularity), torch.randn(2, 5, 8).double()
    nn.init.ones_(stack.scales)
    acn = FusedACNStack(list(stack), stack.norm, granularity=granularity)
    assert_close(stack(x), acn(x))
    with torch.no_grad():
        stack.scales[:-1] = 0
    assert_close(stack(x), residual_network(list(stack), x, stack.norm))


@pytest.mark.parametrize("layer", [Shift, Opaque])
@pytest.mark.parametrize("include_input", [True, False])
def test_simple_layers(layer, include_input):
    stack = HybridStack([layer(7) for _ in range(3)], make_norm("layernorm", 7), scales="learned",
                        include_input=include_input).double()  # fmt: skip
    nn.init.normal_(stack.scales)

    def loop(x):
        scales = stack.scales if include_input else torch.cat([torch.zeros(1), stack.scales])
        y = scales[0] * x
        for i, one in enumerate(stack):
            x = plain(one, x) + (1 - scales[i]) * x
            y = y + scales[i + 1] * x
        return normed(y, stack.norm)

    assert_equal_network(stack, loop, torch.randn(2, 3, 7).double())


@pytest.mark.parametrize("granularity", ["block", "sublayer"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_post_norm_at_every_alpha(alpha, granularity):
    stack = post_norm_stack(alpha=alpha, granularity=granularity)
    x = torch.randn(2, 5, 8).double()
    loop = lambda x: post_norm(list(stack), x, alpha, granularity)[-1]  # noqa: E731
    assert_equal_network(stack, loop, x)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_sub_networks_of_post_norm_blocks(alpha):
    """x_k enters the sum at depth k whole, whatever alpha is."""
    stack, x = post_norm_stack(alpha=alpha), torch.randn(2, 5, 8).double()
    truth = post_norm(list(stack), x, alpha)
    for k, (got, expected) in enumerate(zip(stack.forward_intermediates(x), truth, strict=True)):
        assert_close(got, expected)
        assert_close(stack(x, depth=k), expected)
        with torch.no_grad():
            assert_close(stack.truncate(k)(x), expected)


@pytest.mark.parametrize("rows", ["first", [3, 0]], ids=str)
@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("make", [hybrid_stack, post_norm_stack])
def test_chosen_rows(make, gradients, rows):
    stack, x = make(), torch.randn(2, 5, 8).double().requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        every = stack(x)
        stack.rows = rows
        assert_close(stack(x), every[:, [0] if rows == "first" else rows])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [hybrid_stack, post_norm_stack])
def test_every_backend(make, backend):
    stack = make(depth=2).float().to(device_of(backend))
    if make is post_norm_stack:
        stack.alpha = 0.37
    stack.backend = backend
    x = packed((2, 5, 8), torch.float32, device_of(backend)).requires_grad_()
    twin, wide = wide_copy(stack), x.detach().double().cpu().requires_grad_()
    twin.backend = "torch"
    truth = twin(wide)
    assert_close(stack(x), truth, roundings=10)
    with torch.no_grad():
        assert_close(stack(x), truth, roundings=10)
    (got,) = torch.autograd.grad(stack(x).square().sum(), x)
    (true,) = torch.autograd.grad(truth.square().sum(), wide)
    assert_close(got, true, roundings=20)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_linear_stack_is_no_hybrid_of_itself(backend):
    """Whole-stack kernels know no short connection."""
    layers = [nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(2)]
    stack = HybridStack(layers, scales=[0.5] * 3, backend=backend).to(device_of(backend))
    x = torch.randn(4, 16, device=device_of(backend))
    h = layers[0](x) + 0.5 * x
    torch.testing.assert_close(stack(x), 0.5 * (x + h + layers[1](h) + 0.5 * h))


@pytest.mark.parametrize("option", [{"scales": [1.0] * 4}, {"include_input": False}], ids=str)
def test_alpha_decides_the_scales_of_post_norm_blocks(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        post_norm_stack(**option)
