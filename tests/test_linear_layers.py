"""linear_stack on the native path: a whole ACN of Linear + activation layers, for inference."""

from __future__ import annotations

import copy

import pytest
import torch
from layers import LAYOUTS, make_norm, packed
from tolerances import assert_close
from torch import nn

from acn_kernels import FusedACNStack, NormSpec, dispatch, explain, functional
from acn_kernels.whole_stack import WholeStack, whole_stack_of

RUNS, WHY_NOT = dispatch.availability()["native"]
pytestmark = pytest.mark.skipif(not RUNS, reason=f"native: {WHY_NOT}")
ACTIVATIONS = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def stack_of(activation="gelu", depth=4, width=24, bias=True, **options):
    layers = [
        nn.Sequential(nn.Linear(width, width, bias), ACTIVATIONS[activation]())
        for _ in range(depth)
    ]
    return FusedACNStack(layers, **{"norm": nn.LayerNorm(width), "backend": "native", **options})


def plain_loop(stack, x, depth):
    """The equation in float64 on the very numbers that the stack has."""
    stack, terms = copy.deepcopy(stack).double(), [x.double()]
    for layer in list(stack)[:depth]:
        terms.append(layer(terms[-1]))
    terms = terms if stack.include_input else terms[1:]
    scales = [1.0] * len(terms) if stack.scales is None else stack.scales.tolist()[: len(terms)]
    y = sum(scale * term for scale, term in zip(scales, terms, strict=True))
    return y if stack.norm is None else stack.norm(y)


@torch.no_grad()
def check(x, run=None, **options):
    """The first ``run`` layers of a stack, or all, against the plain loop."""
    stack = stack_of(width=x.shape[-1], **options)
    stack.to(x.dtype)
    run = len(stack) if run is None else run
    assert isinstance(whole_stack_of(stack, x, run, True), WholeStack)
    y = stack(x, depth=run)
    assert y.dtype == x.dtype
    assert_close(y, plain_loop(stack, x, run), roundings=4 * (run + 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_and_dtype(activation, dtype):
    check(packed((5, 3, 24), dtype, "cpu"), activation=activation)


@pytest.mark.parametrize("norm", ["layernorm", "layernorm-no-bias", "rmsnorm-bare", "none"])
@pytest.mark.parametrize("include_input", [True, False], ids=["input", "no-input"])
@pytest.mark.parametrize("scaled", [True, False], ids=["scales", "no-scales"])
def test_norms_scales_and_the_input_term(norm, include_input, scaled):
    scales = torch.randn(4 + include_input) if scaled else None
    options = {"norm": make_norm(norm, 24), "include_input": include_input, "scales": scales}
    for bias, run in ((True, None), (False, 1)):
        check(packed((5, 24), torch.float32, "cpu"), run, bias=bias, **options)


def test_a_norm_that_it_does_not_know_follows_as_the_module():
    check(packed((5, 24), torch.float32, "cpu"), norm=nn.Sequential(nn.LayerNorm(24), nn.Tanh()))


@pytest.mark.parametrize("shape", [(24,), (1, 24), (3, 0, 24), (300, 1), (2, 3, 4, 300)], ids=str)
def test_every_rank_and_width(shape):
    check(packed(shape, torch.float32, "cpu"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    x = layout((3, 4, 17), torch.float32, "cpu")
    before = x.clone()
    check(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("depth", [1, 2, 33])
def test_every_depth(depth):
    check(packed((5, 16), torch.float32, "cpu"), activation="silu", depth=depth)


def test_bad_numbers_stay_in_their_row():
    x = packed((4, 24), torch.float32, "cpu")
    x[1, 2] = torch.nan
    with torch.no_grad():
        y = stack_of()(x)
    assert y[[0, 2, 3]].isfinite().all() and y[1].isnan().all()


def test_it_is_for_inference_alone():
    stack, x = stack_of(), packed((3, 24), torch.float32, "cpu")
    assert "backward" in whole_stack_of(stack, x, 4, True)
    assert stack(x).requires_grad
    weight = torch.randn(2, 24, 24, requires_grad=True)
    with pytest.raises(RuntimeError, match="keeps nothing for a backward pass"):
        functional.linear_stack(x, weight, None, "relu", backend="native")
    y = functional.linear_stack(x, weight.detach(), None, "relu", backend="native")
    assert not y.requires_grad


@torch.no_grad()
def test_explain_says_so():
    x = packed((3, 24), torch.float32, "cpu")
    (part,) = explain(stack_of(), x)
    assert part.path == "native" and "linear_stack" in part.reason
    assert len(explain(stack_of(backend="torch"), x)) == 5


@torch.no_grad()
def test_hooks_see_their_layers_called():
    stack, seen = stack_of(), []
    stack[1][0].register_forward_hook(lambda *_: seen.append(1))
    stack(packed((3, 24), torch.float32, "cpu"))
    assert seen == [1]


@torch.no_grad()
def test_in_a_compiled_graph_by_name():
    stack, x = stack_of(scales="learned"), packed((3, 24), torch.float32, "cpu")
    compiled = torch.compile(stack, backend="aot_eager", fullgraph=True)
    assert_close(compiled(x), plain_loop(stack, x, 4), roundings=16)


def test_other_weights_in_a_functional_call():
    stack, x = stack_of(), packed((3, 24), torch.float32, "cpu")
    other = {name: torch.randn_like(p) for name, p in stack.named_parameters()}
    with torch.no_grad():
        y = torch.func.functional_call(stack, other, (x,))
    stack.load_state_dict(other)
    assert_close(y, plain_loop(stack, x, 4), roundings=64)


def test_the_operator_checks_what_would_read_past_the_end():
    x, norm = torch.zeros(3, 8), (None, None, 0.0, "none")
    operator, weight = torch.ops.acn_native.linear_layers, [torch.zeros(8, 8)]
    for bad in (
        (x, [], [], None, *norm, "relu", True),
        (x, weight, [torch.zeros(8)] * 2, None, *norm, "relu", True),
        (x, weight, [], torch.ones(3), *norm, "relu", True),
        (x, weight, [], None, *norm, "tanh", True),
    ):
        with pytest.raises(ValueError, match=r"they take|it takes"):
            operator(*bad, torch.float32)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        operator(x, [torch.zeros(8, 4)], [], None, *norm, "relu", True, torch.float32)


def test_against_functional_with_a_stacked_weight():
    x, weight = torch.randn(5, 12), torch.randn(3, 12, 12) * 0.3
    bias, spec = torch.randn(3, 12), NormSpec("rms", torch.rand(12), None, 1e-6)
    y = functional.linear_stack(x, weight, bias, "gelu_tanh", spec, backend="native")
    apart = functional.linear_stack(
        x, list(weight), list(bias), "gelu_tanh", spec, backend="native"
    )
    assert torch.equal(y, apart)
