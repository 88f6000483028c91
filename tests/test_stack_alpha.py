"""Every alpha: the residual network at 0, the ACN at 1, the equation between them, in float64."""

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
    acn,
    assert_equal_network,
    block_network,
    direct_gradient_only,
    feedforward,
    halves,
    mixture,
    normed,
    residual_network,
    sublayer_network,
)
from tolerances import assert_close
from torch import nn

from acn_kernels import FusedACNStack, NormSpec, reference
from acn_kernels.blocks import FeedForwardStack, MixerBlock, TransformerBlock

ALPHAS = [0.0, 0.1, 0.5, 0.9, 1.0]
BLOCKS = {
    "transformer": lambda: TransformerBlock(8, 2, 16),
    "transformer-rmsnorm": lambda: TransformerBlock(8, 2, 16, norm=nn.RMSNorm),
    "mixer": lambda: MixerBlock(5, 8, 6, 16),
}


def block_stack(kind, **options):
    blocks = [BLOCKS[kind]() for _ in range(3)]
    return random_parameters(FusedACNStack(blocks, nn.LayerNorm(8), **options))


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("granularity", ["block", "sublayer"])
def test_alpha_0_is_the_residual_network(granularity, kind):
    stack = block_stack(kind, alpha=0.0, granularity=granularity)
    x = torch.randn(2, 5, 8).double()
    assert_equal_network(stack, lambda x: residual_network(list(stack), x, stack.norm), x)


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(
    ("granularity", "loop"),
    [("block", block_network), ("sublayer", sublayer_network)],
    ids=["block", "sublayer"],
)
def test_blocks_at_every_alpha(granularity, loop, alpha, kind):
    stack = block_stack(kind, alpha=alpha, granularity=granularity)
    x = torch.randn(2, 5, 8).double()
    assert_equal_network(stack, lambda x: loop(list(stack), x, alpha, stack.norm), x)


@pytest.mark.parametrize("scales", [None, "learned"], ids=str)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("layer", [Shift, Opaque])
def test_simple_layers_at_every_alpha(layer, alpha, scales):
    stack = FusedACNStack(
        [layer(7) for _ in range(4)], make_norm("layernorm", 7), alpha=alpha, scales=scales
    ).double()
    if scales:
        nn.init.normal_(stack.scales)
    x = torch.randn(2, 3, 7).double()
    loop = lambda x: mixture(list(stack), x, alpha, stack.norm, stack.scales)[-1]  # noqa: E731
    assert_equal_network(stack, loop, x)
    truth = reference.stack(
        list(stack), x, NormSpec.of(stack.norm), alpha=alpha, scales=stack.scales
    )
    assert_close(stack(x), truth, name="against the reference")


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_below_1(backend, alpha):
    stack = FusedACNStack([Shift(7), Shift(7)], make_norm("layernorm", 7), alpha=alpha,
                          backend=backend).to(device_of(backend))  # fmt: skip
    x = packed((2, 3, 7), torch.float32, device_of(backend)).requires_grad_()
    twin, wide = wide_copy(stack), x.detach().double().cpu().requires_grad_()
    truth = mixture(list(twin), wide, alpha, twin.norm)[-1]
    assert_close(stack(x), truth, roundings=3)
    (got,) = torch.autograd.grad(stack(x).square().sum(), x)
    (true,) = torch.autograd.grad(truth.square().sum(), wide)
    assert_close(got, true, roundings=6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_without_the_input(alpha):
    layers = [Shift(7) for _ in range(3)]
    if alpha == 0:
        with pytest.raises(ValueError, match="include_input is False and alpha is 0"):
            FusedACNStack(layers, alpha=0.0, include_input=False)(torch.randn(2, 7))
        return
    stack = FusedACNStack(layers, alpha=alpha, include_input=False).double()
    x = torch.randn(2, 7).double()
    loop = lambda x: mixture(list(stack), x, alpha, None, [0.0, 1, 1, 1])[-1]  # noqa: E731
    assert_equal_network(stack, loop, x)


@pytest.mark.parametrize("rows", ["first", "last"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_rows_at_every_alpha(alpha, rows):
    stack = FusedACNStack([Shift(7) for _ in range(3)], nn.LayerNorm(7), alpha=alpha, rows=rows)
    stack.double()
    tokens = [0] if rows == "first" else [3]
    loop = lambda x: mixture(list(stack), x, alpha, stack.norm, tokens=tokens)[-1]  # noqa: E731
    assert_equal_network(stack, loop, torch.randn(2, 4, 7).double())


def test_alpha_is_set_between_steps():
    stack = FusedACNStack([Shift(7) for _ in range(3)], nn.LayerNorm(7)).double()
    x = torch.randn(2, 7).double()
    for alpha in (0.0, 0.2, 0.3, 1.0, 0.7, 1):
        stack.alpha = alpha
        assert stack.alpha == alpha
        assert_close(stack(x), mixture(list(stack), x, alpha, stack.norm)[-1])


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_on_its_own_is_the_papers(kind):
    """Called outside a stack, nothing is added back: mlp(norm2(attn(norm1(x))))."""
    stack = block_stack(kind)
    x = torch.randn(2, 5, 8).double()
    twin = FeedForwardStack(list(stack), stack.norm)
    assert_close(twin(x), block_feedforward(stack, x))


def block_feedforward(stack, x):
    for block in stack:
        for half in halves(block):
            x = half(x)
    return normed(x, stack.norm)


@pytest.mark.parametrize("entry", ["layernorm", "rmsnorm", "none"])
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_direct_gradient_only(backend, entry):
    stack = FusedACNStack([Shift(7, entry) for _ in range(3)], make_norm("layernorm", 7),
                          direct_gradient_only=True, backend=backend).double()  # fmt: skip
    x = torch.randn(2, 3, 7).double()
    loop = lambda x: direct_gradient_only(list(stack), x, stack.norm)  # noqa: E731
    assert_equal_network(stack, loop, x)


@pytest.mark.parametrize("kind", BLOCKS)
def test_direct_gradient_only_of_blocks(kind):
    """The gradient of a block's weights is that of the block alone, its input a constant."""
    stack = block_stack(kind, direct_gradient_only=True)
    x = torch.randn(2, 5, 8).double()

    def loop(x):
        y = x
        for block in stack:
            first, second = halves(block)
            x = second(first(x.detach()))
            y = y + x
        return normed(y, stack.norm)

    assert_equal_network(stack, loop, x)


def test_feedforward_stack():
    stack = FeedForwardStack([Shift(7) for _ in range(3)], nn.LayerNorm(7)).double()
    x = torch.randn(2, 3, 7).double()
    assert_equal_network(stack, lambda x: feedforward(list(stack), x, stack.norm), x)
    assert_close(stack(x, depth=2), feedforward(list(stack)[:2], x, stack.norm))


@pytest.mark.parametrize("option", [{"alpha": 0.5}, {"alpha": 0.0}, {"scales": [2.0] * 4},
                                    {"direct_gradient_only": True}], ids=str)  # fmt: skip
@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
def test_options_of_the_sum_mean_nothing_to_a_feedforward_stack(option, gradients):
    blocks = list(block_stack("transformer"))
    x = torch.randn(2, 5, 8).double().requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        y, truth = FeedForwardStack(blocks, **option)(x), FeedForwardStack(blocks)(x)
    assert_close(y, truth)
    if gradients:
        assert_close(*(torch.autograd.grad(out.square().sum(), x)[0] for out in (y, truth)))


def test_alpha_1_is_eq_1():
    stack = block_stack("transformer")
    x = torch.randn(2, 5, 8).double()

    class Plain(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, u):
            first, second = halves(self.block)
            return second(first(u))

    assert_equal_network(stack, lambda x: acn([Plain(b) for b in stack], x, stack.norm), x)
