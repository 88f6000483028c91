"""torch.compile: one graph, the same results, forward and backward."""

from __future__ import annotations

import pytest
import torch
from layers import COMPILED, NATIVE, TRITON, Opaque, Shift, device_of, make_norm, packed
from tolerances import assert_close
from torch import nn
from torch._dynamo.utils import counters

from acn_kernels import FusedACNStack
from acn_kernels.blocks import FeedForwardStack, MixerBlock, TransformerBlock

VARIANTS = {
    "plain": {},
    "rmsnorm": {"norm": "rmsnorm"},
    "no-final-norm": {"final": "none"},
    "opaque": {"layer": "opaque"},
    "learned-scales": {"scales": "learned"},
    "fixed-scales": {"scales": [0.5, 2.0, -1.0]},
    "first-row": {"rows": "first", "scales": "learned"},
    "index-rows": {"rows": [2, 0]},
    "checkpoint": {"checkpoint": True},
    "direct-gradient-only": {"direct_gradient_only": True},
    "without-input": {"include_input": False},
    "alpha-0": {"alpha": 0.0},
    "alpha-0.3": {"alpha": 0.3, "scales": "learned"},
    "alpha-0.3-checkpoint": {"alpha": 0.3, "checkpoint": True},
}


def slow_but(*quick):
    """All variants, those that are not ``quick`` only in a run of the slow tests."""
    return [v if v in quick else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Not here: graphs would write the poison into every allocation of their own."""


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()


def make_stack(layer="shift", norm="layernorm", final="layernorm", **options):
    layers = [Opaque(8) if layer == "opaque" else Shift(8, norm) for _ in range(2)]
    return FusedACNStack(layers, make_norm(final, 8), **options)


def results(network, stack, x):
    """Output and gradients of input and parameters."""
    x = x.detach().requires_grad_()
    y = network(x)
    incoming = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad(y, [x, *stack.parameters()], incoming)]


def assert_same(stack, x, compiler="aot_eager"):
    """Compiled without a graph break, in one frame, to the eager results."""
    truth = results(stack, stack, x)
    compiled = torch.compile(stack, backend=compiler, fullgraph=True)
    for one, true in zip(results(compiled, stack, x), truth, strict=True):
        assert_close(one, true, roundings=8, among=1.0)
    with torch.no_grad():
        assert_close(compiled(x), truth[0], roundings=8)
    assert not counters["graph_break"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_graph_with_the_eager_results(variant):
    assert_same(make_stack(**VARIANTS[variant]).double(), torch.randn(2, 3, 8).double())


@pytest.mark.parametrize("variant", slow_but("plain", "first-row", "checkpoint"))
@pytest.mark.parametrize("backend", COMPILED)
def test_opaque_operators_in_the_graph(backend, variant):
    device = device_of(backend)
    stack = make_stack(**VARIANTS[variant], backend=backend).to(device)
    assert_same(stack, packed((2, 3, 8), torch.float32, device))


@pytest.mark.parametrize(
    ("kind", "granularity", "alpha"),
    [
        ("transformer", "block", 1.0),
        ("transformer", "sublayer", 0.0),
        ("mixer", "sublayer", 1.0),
        pytest.param("transformer", "block", 0.5, marks=pytest.mark.slow),
        pytest.param("mixer", "block", 0.0, marks=pytest.mark.slow),
        pytest.param("mixer", "sublayer", 0.5, marks=pytest.mark.slow),
    ],
)
def test_blocks(kind, granularity, alpha):
    blocks = [
        TransformerBlock(8, 2) if kind == "transformer" else MixerBlock(3, 8, 5, 7)
        for _ in range(2)
    ]
    stack = FusedACNStack(blocks, nn.LayerNorm(8), alpha=alpha, granularity=granularity)
    assert_same(stack.double(), torch.randn(2, 3, 8).double())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"scales": "learned"}, id="learned-scales"),
        pytest.param({"rows": "first", "checkpoint": True}, id="first-row-checkpoint",
                     marks=pytest.mark.slow),
        pytest.param({"alpha": 0.5}, id="alpha-0.5", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_inductor(options):
    stack = make_stack(**options)
    assert_same(stack, torch.randn(2, 3, 8), "inductor")


@pytest.mark.slow
@pytest.mark.parametrize("backend", COMPILED)
def test_inductor_around_opaque_operators(backend):
    device = device_of(backend)
    stack = make_stack(scales="learned", backend=backend).to(device)
    assert_same(stack, packed((2, 3, 8), torch.float32, device), "inductor")


def test_intermediates_and_feedforward():
    stack = make_stack().double()
    x = torch.randn(2, 3, 8).double()
    compiled = torch.compile(stack.forward_intermediates, backend="aot_eager", fullgraph=True)
    for one, true in zip(compiled(x), stack.forward_intermediates(x), strict=True):
        assert_close(one, true)
    assert_same(FeedForwardStack(list(stack), stack.norm), x)


def test_alpha_changed_between_steps_recompiles_nothing():
    stack = make_stack(alpha=0.2).double()
    x = torch.randn(2, 3, 8).double()
    compiled = torch.compile(stack, backend="aot_eager", fullgraph=True)
    results(compiled, stack, x)
    assert counters["stats"]["unique_graphs"] == 1
    for alpha in (0.3, 0.4, 0.65, 0.999):
        stack.alpha = alpha
        got = results(compiled, stack, x)
        for one, true in zip(got, results(stack, stack, x), strict=True):
            assert_close(one, true)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
def test_annealing_compiles_once_for_each_end(gradients):
    stack = make_stack(alpha=0.0).double()
    x = torch.randn(2, 3, 8).double()
    compiled = torch.compile(stack, backend="aot_eager", fullgraph=True)
    for alpha in (0.0, 0.2, 0.3, 0.4, 0.9, 1.0):
        stack.alpha = alpha
        with torch.set_grad_enabled(gradients):
            assert_close(compiled(x), stack(x))
    assert counters["stats"]["unique_graphs"] == 3


# Three at most: the first layer finds no sum yet, the last may compute fewer rows.
@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 0.3},
     *(pytest.param(options, marks=pytest.mark.slow) for options in (
         {"alpha": 0.0}, {"scales": "learned"}, {"rows": "last"},
         {"granularity": "sublayer"}, {"granularity": "sublayer", "alpha": 0.3}))],
    ids=str,
)  # fmt: skip
def test_layers_compiled_one_by_one_share_their_graphs(options, gradients):
    layers = [TransformerBlock(16, 2) for _ in range(6)]
    stack = FusedACNStack(layers, make_norm("layernorm", 16), **options).double()
    x = torch.randn(2, 3, 16).double()
    truth = results(stack, stack, x)
    for layer in stack:
        layer.compile(fullgraph=True, backend="aot_eager")
    if gradients:
        for one, true in zip(results(stack, stack, x), truth, strict=True):
            assert_close(one, true, roundings=8, among=1.0)
    else:
        with torch.no_grad():
            assert_close(stack(x), truth[0], roundings=8)
    assert counters["stats"]["unique_graphs"] <= 3 and not counters["graph_break"]


@pytest.mark.parametrize("rows", ["first", "last", slice(1, 3)], ids=str)
def test_sequences_of_any_length_share_a_graph(rows):
    stack = make_stack(rows=rows).double()
    compiled = torch.compile(stack, backend="aot_eager", fullgraph=True)
    example = torch.randn(2, 4, 8).double()
    tokens = torch.export.Dim("tokens", min=3)
    exported = torch.export.export(stack, (example,), dynamic_shapes=({1: tokens},)).module()
    counters.clear()
    for length in (3, 5, 6, 7):
        x = torch.randn(2, length, 8).double()
        assert_close(compiled(x), stack(x))
        assert_close(exported(x), stack(x))
    assert counters["stats"]["unique_graphs"] == 2  # for the first length, and for any


def test_tokens_by_index_of_another_length():
    stack = make_stack(rows=[-1, 0]).double()
    compiled = torch.compile(stack, backend="aot_eager", fullgraph=True)
    for length in (3, 5, 6):
        x = torch.randn(2, length, 8).double()
        assert_close(compiled(x), stack(x))


@pytest.mark.parametrize("backend", COMPILED)
def test_batches_of_any_size_share_a_graph(backend):
    device = device_of(backend)
    stack = make_stack(backend=backend).to(device)
    compiled = torch.compile(stack, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in (2, 3, 5, 8):
        x = packed((size, 3, 8), torch.float32, device)
        assert_close(compiled(x), stack(x).double(), roundings=4)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("backend", ["torch", TRITON, NATIVE])
def test_autocast_within_the_graph(backend):
    device = device_of(backend)
    stack = FusedACNStack([nn.Linear(8, 8), nn.Linear(8, 8)], nn.LayerNorm(8), backend=backend)
    x = packed((2, 3, 8), torch.float32, device)
    compiled = torch.compile(stack.to(device), backend="aot_eager", fullgraph=True)
    with torch.autocast(device, torch.bfloat16):
        y, truth = compiled(x), stack(x)
    assert y.dtype == truth.dtype == torch.float32
    assert_close(y, truth, torch.bfloat16, roundings=4)


class ReluInPlace(nn.Module):
    """Says nothing of it, as nn.ReLU(inplace=True) does."""

    def forward(self, x):
        return torch.relu_(x)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("relu", [lambda: nn.ReLU(inplace=True), ReluInPlace])
def test_layers_that_change_what_they_get_get_a_copy(mode, alpha, relu):
    """Where PyTorch counts no changes, so that they could not be refused."""
    torch._dynamo.reset()
    layers = [nn.Sequential(relu(), nn.Linear(8, 8)) for _ in range(3)]
    x = torch.randn(4, 8)
    stack = FusedACNStack(layers, alpha=alpha)
    other = FusedACNStack([nn.Sequential(nn.ReLU(), layer[1]) for layer in layers], alpha=alpha)
    with mode():
        given = x.clone()
        got = torch.compile(stack, backend="aot_eager")(given)
        torch.testing.assert_close(got, other(x))
        if mode is torch.inference_mode:
            torch.testing.assert_close(stack(given), other(x))
        assert torch.equal(given, x)


@pytest.mark.parametrize("options", [{}, {"scales": "learned"}, {"rows": "first"}], ids=str)
def test_a_frozen_stack_outside_of_no_grad(options):
    torch._dynamo.reset()
    stack = FusedACNStack([TransformerBlock(8, 2) for _ in range(2)], nn.LayerNorm(8), **options)
    x = torch.randn(2, 3, 8)
    compiled = torch.compile(stack.requires_grad_(False), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), stack(x))
