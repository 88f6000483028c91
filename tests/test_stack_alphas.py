"""An alpha for every layer: the equation with alpha_i, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from layers import Shift
from loops import attention, halves, normed, perceptron, plain
from tolerances import assert_close
from torch import nn

from acn_kernels import FusedACNStack
from acn_kernels.blocks import MixerBlock, PostNormBlock, PostNormStack, TransformerBlock

ALPHAS = [(1.0, 0.3, 0.0), (0.0, 0.6, 1.0), (0.2, 0.2, 0.9)]
BLOCKS = {
    "transformer": lambda: TransformerBlock(8, 2, 16),
    "mixer": lambda: MixerBlock(5, 8, 6, 16),
}


def with_random_parameters(stack):
    for parameter in stack.parameters():
        nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 0.5, 0.4)
    return stack.double()


def block_sums(blocks, x, alphas) -> list[torch.Tensor]:
    """y_0 .. y_L: u_i = alpha_i x_{i-1} + (1 - alpha_i) y_{i-1}."""
    y, sums = x, [x]
    for block, alpha in zip(blocks, alphas, strict=True):
        first, second = halves(block)
        u = alpha * x + (1 - alpha) * y
        h = first(u)
        x = second(h + (1 - alpha) * u) + (1 - alpha) * h
        y = y + x
        sums.append(y)
    return sums


def post_norm_sum(blocks, x, alphas) -> torch.Tensor:
    """x_L + sum_{i<L} alpha_{i+1} x_i: what does not go around the next layer reaches the sum."""
    y = 0
    for block, alpha in zip(blocks, alphas, strict=True):
        y = y + alpha * x
        h = normed(attention(block.attn, x) + (1 - alpha) * x, block.norm1)
        x = normed(perceptron(block.mlp, h) + (1 - alpha) * h, block.norm2)
    return y + x


def assert_equal(stack, truth, x):
    """Outputs, with and without gradients, and all gradients."""
    x = x.requires_grad_()
    y, expected = stack(x), truth(x)
    assert_close(y, expected)
    incoming = torch.randn_like(y)
    inputs = [x, *stack.parameters()]
    for got, true in zip(
        torch.autograd.grad(y, inputs, incoming, allow_unused=True),
        torch.autograd.grad(expected, inputs, incoming, allow_unused=True),
        strict=True,
    ):
        zero = torch.zeros(())
        assert_close(zero if got is None else got, zero if true is None else true,
                     among=float(incoming.abs().sum()))  # fmt: skip
    with torch.no_grad():
        assert_close(stack(x), expected)


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("alphas", ALPHAS, ids=str)
def test_blocks(alphas, kind):
    stack = FusedACNStack([BLOCKS[kind]() for _ in range(3)], nn.LayerNorm(8), alpha=alphas)
    stack, x = with_random_parameters(stack), torch.randn(2, 5, 8).double()
    assert stack.alpha == alphas
    assert_equal(stack, lambda x: normed(block_sums(stack, x, alphas)[-1], stack.norm), x)
    sums = block_sums(stack, x, alphas)
    for k, y in enumerate(stack.forward_intermediates(x)):
        assert_close(y, normed(sums[k], stack.norm))
    assert stack.truncate(2).alpha == alphas[:2] or len(set(alphas[:2])) == 1
    assert_close(stack.truncate(2)(x), normed(sums[2], stack.norm))
    assert_close(copy.deepcopy(stack)(x), normed(sums[3], stack.norm))


@pytest.mark.parametrize("rows", [None, "first"])
def test_steps_and_recomputation(rows):
    alphas = ALPHAS[0]
    layers, x = [Shift(7) for _ in range(3)], torch.randn(2, 4, 7).double()
    stack = FusedACNStack(layers, nn.LayerNorm(7), alpha=alphas, rows=rows, checkpoint=True)
    stack.double()
    y = u = x
    for layer, alpha in zip(stack, alphas, strict=True):
        u = plain(layer, alpha * u + (1 - alpha) * y)
        y = y + u
    truth = normed(y if rows is None else y[:, :1], stack.norm)
    assert_close(stack(x), truth)
    state = stack.advance(x, start=0, stop=2)
    assert_close(stack.finish(*state, start=2), truth)


@pytest.mark.parametrize("alphas", ALPHAS, ids=str)
def test_post_norm(alphas):
    stack = PostNormStack([PostNormBlock(8, 2, 16) for _ in range(3)], alpha=alphas)
    stack, x = with_random_parameters(stack), torch.randn(2, 5, 8).double()
    assert_equal(stack, lambda x: post_norm_sum(stack, x, alphas), x)
    assert_close(stack.truncate(2)(x), post_norm_sum(list(stack)[:2], x, alphas[:2]))


def test_equal_ones_are_one_number():
    stack = FusedACNStack([Shift(7) for _ in range(3)], alpha=[1.0, 0.5, 1.0])
    stack.alpha = [1, 1.0, 1]
    assert stack.alpha == 1.0
    with pytest.raises(ValueError, match="alpha has 2 entries; it takes one for each of 3 layers"):
        stack.alpha = [1.0, 0.0]
    with pytest.raises(ValueError, match=r"alpha is 1\.5; it takes a number from 0"):
        stack.alpha = [1.0, 1.5, 0.0]
    with pytest.raises(TypeError, match="alpha is a str; it takes a number"):
        stack.alpha = "acn"
