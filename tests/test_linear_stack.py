"""linear_stack: a whole ACN of Linear + activation layers in one kernel, and its gradients."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from layers import LAYOUTS, device_of, leaf, make_norm, packed, wide_copy, wide_leaf
from tolerances import assert_all_close, assert_close
from torch import nn

from acn_kernels import FusedACNStack, NormSpec, dispatch, explain, functional, reference
from acn_kernels.whole_stack import WholeStack, whole_stack_of

RUNS, WHY_NOT = dispatch.availability()["triton"]
pytestmark = [pytest.mark.triton, pytest.mark.skipif(not RUNS, reason=f"triton: {WHY_NOT}")]
BACKEND = "triton"
DEVICE = device_of(BACKEND)
ACTIVATIONS = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
}
NAMES = ("x", "weight", "bias", "scales", "norm weight", "norm bias")


def parameters(depth, width, dtype, biased=True, scaled=False):
    """weight [L, D, D] that keeps the size of what goes through, bias [L, D], scales [L+1]."""
    weight = packed((depth, width, width), torch.float32, DEVICE) * (2 / width) ** 0.5
    bias = 0.3 * packed((depth, width), torch.float32, DEVICE) if biased else None
    scales = 0.5 + torch.rand(depth + 1, device=DEVICE) if scaled else None
    return (
        leaf(weight.to(dtype)),
        None if bias is None else leaf(bias.to(dtype)),
        None if scales is None else leaf(scales),
    )


def check(
    depth=3, shape=(2, 9, 20), dtype=torch.float32, activation="gelu", norm="layernorm",
    biased=True, scaled=False, include_input=True, layout=packed, out_layout=packed,
    roundings=None,
):  # fmt: skip
    """Forward and all gradients against the reference in float64."""
    x = leaf(layout(shape, dtype, DEVICE))
    weight, bias, scales = parameters(depth, shape[-1], dtype, biased, scaled)
    module = make_norm(norm, shape[-1])
    if module is not None:
        module.to(DEVICE, dtype)
    spec = None if module is None else NormSpec.of(module)
    y = functional.linear_stack(x, weight, bias, activation, spec, scales, include_input)
    g = out_layout(shape, dtype, DEVICE)
    norm_inputs = () if spec is None else (spec.weight, spec.bias)
    inputs = (x, weight, bias, scales, *norm_inputs)
    present = [i for i, t in enumerate(inputs) if t is not None]
    got = torch.autograd.grad(y, [inputs[i] for i in present], g)

    wide = [None if t is None else wide_leaf(t) for t in inputs]
    wide_spec = spec
    if spec is not None:
        wide_spec = NormSpec(spec.kind, wide[4], wide[5], spec.eps)
    truth = reference.linear_stack(*wide[:3], activation, wide_spec, wide[3], include_input)
    true_grads = torch.autograd.grad(truth, [wide[i] for i in present], g.double().cpu())
    roundings = roundings or 4 * (depth + 2)
    assert y.dtype == dtype
    assert_close(y, truth, name="y", roundings=roundings)
    names = [NAMES[i] for i in present]
    assert_all_close(got, true_grads, names, dtype=dtype, roundings=roundings, among=1.0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation):
    check(activation=activation, scaled=True)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_float16(activation):
    check(activation=activation, dtype=torch.float16, scaled=True)


WIDTHS = [16, 64, 100, 128, 256]


@pytest.mark.parametrize(
    ("dtype", "width"),
    [
        (torch.float16, 20),
        *(pytest.param(torch.bfloat16, width, marks=pytest.mark.gpu) for width in WIDTHS),
    ],
)
def test_relu_in_half_precision(dtype, width):
    """On small integers, which half precision holds exactly: elsewhere a rounding may carry a
    pre-activation past the kink at 0, and the gradient with it."""
    x = leaf(torch.randint(-1, 2, (70, width), device=DEVICE).to(dtype))
    weight = torch.zeros(3, width, width, device=DEVICE)
    weight[:, range(width), torch.randperm(width)] = 1.0
    weight[:, range(width), torch.randperm(width)] -= 1.0
    weight = leaf(weight.to(dtype))
    y = functional.linear_stack(x, weight, None, "relu")
    g = torch.randint(-1, 2, y.shape, device=DEVICE).to(dtype)
    wide = wide_leaf(x), wide_leaf(weight)
    truth = reference.linear_stack(*wide, None, "relu")
    true_grads = torch.autograd.grad(truth, wide, g.double().cpu())
    assert torch.equal(y.double().cpu(), truth)
    for one, other in zip(torch.autograd.grad(y, (x, weight), g), true_grads, strict=True):
        assert torch.equal(one.double().cpu(), other)


@pytest.mark.gpu
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_bfloat16(activation, width):
    check(16, (4, 1000, width), torch.bfloat16, activation, scaled=True)


@pytest.mark.gpu
@pytest.mark.xdist_group("much memory")
def test_past_two_to_the_31():
    """The kept tensor of 16 layers has more than 2^31 elements: the last rows are right too."""
    rows, width, depth = 1_100_000, 128, 16
    x = torch.randn(rows, width, device=DEVICE, dtype=torch.bfloat16)
    weight, bias, _ = parameters(depth, width, torch.bfloat16)
    y = functional.linear_stack(x, weight, bias, "gelu")
    (dweight,) = torch.autograd.grad(y, weight, torch.ones_like(y))
    assert dweight.isfinite().all()
    tail = functional.linear_stack(x[-1000:].contiguous(), weight, bias, "gelu")
    torch.testing.assert_close(y[-1000:], tail, rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["layernorm", "layernorm-no-bias", "rmsnorm-bare", "none"])
@pytest.mark.parametrize("include_input", [True, False], ids=["input", "no-input"])
def test_norms_and_the_input_term(norm, include_input):
    check(norm=norm, include_input=include_input)
    check(norm=norm, include_input=include_input, scaled=True, biased=False)


@pytest.mark.parametrize("width", [16, 17, 50, 64, 100, 128, 200, 256])
def test_every_width(width):
    check(2, (70, width))


@pytest.mark.parametrize("shape", [(20,), (1, 20), (64, 20), (65, 20), (3, 0, 20)], ids=str)
def test_every_rank_and_tail(shape):
    check(2, shape)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("out_layout", LAYOUTS)
def test_layouts(layout, out_layout):
    check(1, (3, 4, 17), layout=layout, out_layout=out_layout, norm="none")


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("depth", [1, 33, pytest.param(100, marks=pytest.mark.slow)])
def test_every_depth(depth, activation):
    check(depth, (5, 16), activation=activation, scaled=True)


def test_the_same_bits_every_time():
    inputs = (leaf(packed((200, 32), torch.float16, DEVICE)), *parameters(4, 32, torch.float16))

    def gradients():
        y = functional.linear_stack(*inputs[:3], "gelu")
        return y, *torch.autograd.grad(y, inputs[:3], torch.ones_like(y))

    for one, other in zip(gradients(), gradients(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bad_numbers_stay_in_their_row(activation):
    x = packed((4, 16), torch.float32, DEVICE)
    x[1, 2], x[3, 0] = torch.nan, torch.inf
    weight, bias, _ = parameters(2, 16, torch.float32)
    y = functional.linear_stack(x, weight, bias, activation)
    assert y[[0, 2]].isfinite().all() and y[1].isnan().all()
    # relu turns -inf into 0, so that which elements stay finite is the weights' to say.
    true = reference.linear_stack(x, weight, bias, activation)
    assert torch.equal(y[3].isfinite(), true[3].isfinite()) and not y[3].isfinite().all()


def stack_of(activation="gelu", depth=4, width=24, bias=True, **options):
    layers = [
        nn.Sequential(nn.Linear(width, width, bias), ACTIVATIONS[activation]())
        for _ in range(depth)
    ]
    options = {"norm": nn.LayerNorm(width), "backend": BACKEND, **options}
    return FusedACNStack(layers, **options).to(DEVICE)


def taken_whole(stack, x=None, depth=None, plain_call=True):
    x = packed((3, 24), torch.float32, DEVICE) if x is None else x
    depth = len(stack) if depth is None else depth
    return whole_stack_of(stack, x, depth, plain_call)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "relu", "bias": False},
        {"scales": "learned"},
        {"scales": [2.0, 0.5, -1.0, 3.0], "include_input": False},
        {"norm": nn.RMSNorm(24)},
        {"norm": None},
        {"norm": nn.Identity()},
    ],
    ids=str,
)
@pytest.mark.parametrize("depth", [None, 2])
def test_the_stack_takes_it_by_itself(options, depth):
    stack = stack_of(**copy.deepcopy(options))
    truth = wide_copy(stack)
    truth.backend = "torch"
    assert isinstance(taken_whole(stack), WholeStack)
    assert "linear_stack" in str(explain(stack, packed((3, 24), torch.float32, DEVICE)))
    x = leaf(packed((3, 5, 24), torch.float32, DEVICE))
    wide = wide_leaf(x)
    y, true_y = stack(x, depth=depth), truth(wide, depth=depth)
    assert_close(y, true_y, torch.float32, roundings=8)
    g = packed((3, 5, 24), torch.float32, DEVICE)
    y.backward(g)
    true_y.backward(g.double().cpu())
    assert_close(x.grad, wide.grad, torch.float32, roundings=16, name="x")
    for (name, one), other in zip(stack.named_parameters(), truth.parameters(), strict=True):
        if one.grad is None or other.grad is None:  # layers past the depth
            assert all(p.grad is None or not p.grad.any() for p in (one, other)), name
            continue
        assert_close(one.grad, other.grad, torch.float32, roundings=16, name=name, among=1.0)
    with torch.no_grad():
        assert_close(stack(x, depth=depth), true_y, torch.float32, roundings=8)


def with_hook(stack):
    stack[1][0].register_forward_hook(lambda *_: None)
    return stack


def with_another_activation(stack):
    stack[2] = nn.Sequential(nn.Linear(24, 24), nn.ReLU())
    return stack


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: stack_of(alpha=0.5), "alpha is not 1"),
        (lambda: stack_of(rows="first"), "rows is 'first'"),
        (lambda: stack_of(direct_gradient_only=True), "direct_gradient_only is True"),
        (lambda: stack_of(checkpoint=True), "checkpoint is True"),
        (lambda: stack_of(backend="torch"), "torch runs"),
        (lambda: with_hook(stack_of()), r"layers\[1\] has hooks"),
        (lambda: with_another_activation(stack_of()), r"layers\[2\] differs"),
        (lambda: stack_of().half(), "is torch.float16, the input torch.float32"),
        (lambda: FusedACNStack([nn.Linear(24, 24)], backend=BACKEND).to(DEVICE), "Linear is of no"),
        (lambda: FusedACNStack([], backend=BACKEND), "no layer"),
    ],
)
def test_what_it_does_not_take(make, reason):
    obstacle = taken_whole(make())
    assert isinstance(obstacle, str)
    assert re.search(reason, obstacle), obstacle


def test_further_arguments_and_other_inputs_are_left_alone():
    assert "further arguments" in taken_whole(stack_of(), plain_call=False)
    wide = stack_of(width=257)
    assert "16 to 256" in taken_whole(wide, packed((3, 257), torch.float32, DEVICE))


def test_functional_call_is_seen():
    stack = stack_of()
    x = packed((3, 24), torch.float32, DEVICE)
    other = {name: torch.zeros_like(p) for name, p in stack.named_parameters()}
    other["norm.weight"] = torch.ones(24, device=DEVICE)
    y = torch.func.functional_call(stack, other, (x,))
    assert_close(y, nn.LayerNorm(24).double()(x.double().cpu()), torch.float32, roundings=4)


def test_torch_compile_takes_it_in_one_graph():
    stack = stack_of(activation="silu", scales="learned")
    x = leaf(packed((3, 24), torch.float32, DEVICE))
    compiled = torch.compile(stack, backend="aot_eager", fullgraph=True)
    y, truth = compiled(x), stack(x)
    assert_close(y, truth, torch.float32, roundings=2)
    g = torch.randn_like(y)
    for one, other in zip(
        torch.autograd.grad(y, [x, *stack.parameters()], g),
        torch.autograd.grad(truth, [x, *stack.parameters()], g),
        strict=True,
    ):
        assert_close(one, other, torch.float32, roundings=4, among=1.0)


def test_a_second_derivative_is_refused_in_words():
    x = leaf(packed((3, 24), torch.float32, DEVICE))
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(stack_of()(x).sum(), x, create_graph=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(3, 24, dtype=torch.int64)}, TypeError, "x has dtype torch.int64"),
        ({"x": torch.zeros(3, 8)}, ValueError, r"weight has shape \(2, 24, 24\)"),
        ({"weight": torch.zeros(0, 24, 24)}, ValueError, "L at least 1"),
        ({"weight": torch.zeros(24, 24)}, ValueError, r"weight has shape \(24, 24\)"),
        ({"weight": torch.zeros(2, 24, 24).double()}, TypeError, "weight has dtype torch.float64"),
        ({"bias": torch.zeros(3, 24)}, ValueError, "bias has 3 layers, weight has 2"),
        ({"bias": torch.zeros(2, 8)}, ValueError, r"bias has shape \(2, 8\)"),
        (
            {"weight": [torch.zeros(24, 24), torch.zeros(24, 8)]},
            ValueError,
            r"weight\[1\] has shape",
        ),
        ({"weight": [torch.zeros(24, 24)]}, ValueError, "bias has 2 layers, weight has 1"),
        ({"weight": []}, ValueError, "L at least 1"),
        ({"weight": None}, TypeError, "weight is a NoneType"),
        (
            {"backend": "cuda"},
            ValueError,
            "backend is 'cuda'; it takes one of auto, triton, native",
        ),
        ({"bias": torch.zeros(2, 24, device="meta")}, ValueError, "bias is on meta"),
        ({"activation": "tanh"}, ValueError, "activation is 'tanh'; it takes one of relu, gelu"),
        ({"scales": torch.zeros(2)}, ValueError, r"scales has shape \(2,\)"),
        ({"spec": "layer"}, TypeError, "spec is a str"),
    ],
    ids=str,
)
def test_bad_input(change, error, message):
    given = {
        "x": torch.zeros(3, 24),
        "weight": torch.zeros(2, 24, 24),
        "bias": torch.zeros(2, 24),
        "activation": "relu",
    }
    with pytest.raises(error, match=message):
        functional.linear_stack(**{**given, **change})


def test_widths_that_do_not_fit_are_refused():
    x, weight = torch.zeros(3, 8, device=DEVICE), torch.zeros(2, 8, 8, device=DEVICE)
    with pytest.raises(RuntimeError, match="linear_stack cannot run: D is 8; whole stacks take 16"):
        functional.linear_stack(x, weight, None, "relu", backend=BACKEND)


def test_layers_given_one_by_one():
    x = leaf(packed((3, 16), torch.float32, DEVICE))
    weight, bias, _ = parameters(3, 16, torch.float32)
    apart = [leaf(w.detach()) for w in weight], [leaf(b.detach()) for b in bias]
    y, same = (
        functional.linear_stack(x, *layers, "silu", backend=BACKEND)
        for layers in ((weight, bias), apart)
    )
    assert torch.equal(y, same)
    g = torch.randn_like(y)
    got = torch.autograd.grad(same, (*apart[0], *apart[1]), g)
    for one, other in zip(
        torch.autograd.grad(y, (weight, bias), g), (got[:3], got[3:]), strict=True
    ):
        assert torch.equal(one, torch.stack(other))
