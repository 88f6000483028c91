"""Times of the CPU paths, for `make benchmark`: a slower commit shows against the last one saved.

Marked slow; without --benchmark-only they are ordinary tests that the timed code runs.
"""

from __future__ import annotations

import pytest
import torch
from layers import NATIVE, TORCH
from torch import Tensor, nn

from acn_kernels import FusedACNStack, NormSpec, functional
from acn_kernels.blocks import MixerBlock

pytest.importorskip("pytest_benchmark")
pytestmark = pytest.mark.slow

SHAPE = (8, 196, 384)
TERMS = 13
backends = pytest.mark.parametrize("backend", [TORCH, NATIVE])


@pytest.fixture(autouse=True)
def poisoned_memory():
    """In place of conftest's: filling fresh memory would be part of the times."""


@pytest.fixture
def timed(benchmark):
    """``timed(f)``: the same few rounds everywhere, so that two runs compare."""

    def run(f) -> Tensor:
        return benchmark.pedantic(f, rounds=15, iterations=1, warmup_rounds=3)

    return run


def norm_spec(width: int = SHAPE[-1]) -> NormSpec:
    weight, bias = torch.randn(2, width).unbind()
    return NormSpec("layer", weight.requires_grad_(), bias.requires_grad_())


def stack(backend: str) -> FusedACNStack:
    blocks = [MixerBlock(64, 128, 64, 512) for _ in range(8)]
    return FusedACNStack(blocks, nn.LayerNorm(128), backend=backend)


@backends
def test_fork_forward(timed, backend):
    x, spec = torch.randn(SHAPE), norm_spec()
    assert timed(lambda: functional.fork(x, spec, backend=backend)[0]).isfinite().all()


@backends
def test_fork_backward(timed, backend):
    x, dh, g = torch.randn(3, *SHAPE)
    spec = norm_spec()
    h, term = functional.fork(x.requires_grad_(), spec, backend=backend)
    wanted = (x, spec.weight, spec.bias)

    def backward() -> Tensor:
        return torch.autograd.grad((h, term.x), wanted, (dh, g), retain_graph=True)[0]

    assert timed(backward).isfinite().all()


@backends
def test_join(timed, backend):
    xs, spec = torch.randn(TERMS, *SHAPE).unbind(), norm_spec()
    assert timed(lambda: functional.join(xs, spec, backend=backend)).isfinite().all()


@backends
def test_accumulate_norm(timed, backend):
    x, y = torch.randn(2, *SHAPE)
    spec = norm_spec()

    @torch.no_grad()
    def step() -> Tensor:
        return functional.accumulate_norm(x, y, spec, backend=backend)[0]

    assert timed(step).isfinite().all()


@backends
def test_stack_training_step(timed, backend):
    network, x = stack(backend), torch.randn(4, 64, 128, requires_grad=True)

    def step() -> Tensor:
        network.zero_grad(set_to_none=True)
        x.grad = None
        network(x).square().mean().backward()
        return x.grad

    assert timed(step).isfinite().all()


@backends
def test_stack_inference(timed, backend):
    network, x = stack(backend), torch.randn(4, 64, 128)
    assert timed(torch.no_grad()(lambda: network(x))).isfinite().all()
