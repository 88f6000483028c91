"""Stacks that run as one operation, and what they have to equal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from acn_kernels import FusedACNStack, dispatch
from acn_kernels.blocks import MixerBlock
from acn_kernels.whole_stack import WholeStack, whole_stack_of

WIDTH, TOKENS, DEPTH = 32, 4, 3
triton_runs, why_not = dispatch.availability()["triton"]
on_triton = [pytest.mark.triton, pytest.mark.skipif(not triton_runs, reason=why_not)]


def linear_stack(**options):
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(DEPTH)]
    return FusedACNStack(layers, nn.LayerNorm(WIDTH), **options)


def mixer_stack(**options):
    blocks = [MixerBlock(TOKENS, WIDTH, 8, 16) for _ in range(DEPTH)]
    return FusedACNStack(blocks, nn.LayerNorm(WIDTH), **options)


def input_of(stack, dtype=torch.float32):
    place = next(stack.parameters()).device
    return torch.randn(2, TOKENS, WIDTH, device=place, dtype=dtype)


@torch.no_grad()
def check(stack, dtype=torch.float32, whole=True):
    """The stack gives what its layers, called one by one, sum up to; returns the output."""
    x = input_of(stack, dtype)
    if whole is not None:
        assert isinstance(whole_stack_of(stack, x, len(stack), True), WholeStack) == whole
    terms = [x]
    for layer in stack:
        terms.append(layer(terms[-1]))
    expected = sum(term.float() for term in terms)
    expected = expected if stack.norm is None else stack.norm.float()(expected)
    stack.norm.to(dtype)
    y = stack(x)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(y.float(), expected.float(), rtol=tolerance, atol=tolerance)
    return x, y


def parts_of(stack):
    """The kept weights, None where there are none."""
    answer = stack.kept_layers._answer
    kept = None if answer is None else answer[2]._stacked._kept
    return None if kept is None else kept[1]


def in_place(stack):
    for parameter in stack.parameters():
        parameter.mul_(1.5)
