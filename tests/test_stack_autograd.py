"""Derivatives of derivatives, transforms, checkpointing, autocast: right or an explicit error."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from layers import BACKENDS, COMPILED, NATIVE, TRITON, Opaque, Shift, device_of, make_norm, packed
from loops import acn, mixture
from tolerances import assert_close
from torch import nn

from acn_kernels import FusedACNStack
from acn_kernels.blocks import TransformerBlock

VARIANTS = {
    "layernorm": {},
    "rmsnorm": {"entry": "rmsnorm", "final": "rmsnorm"},
    "bare-norms": {"entry": "layernorm-bare", "final": "none"},
    "learned-scales": {"scales": "learned"},
    "first-row-learned": {"rows": "first", "scales": "learned"},
    "opaque": {"entry": "opaque"},
    "alpha-0.5": {"alpha": 0.5, "scales": "learned"},
    "alpha-0": {"alpha": 0.0},
}


def make_stack(entry="layernorm", final="layernorm", depth=2, width=5, **options):
    layers = [Opaque(width) if entry == "opaque" else Shift(width, entry) for _ in range(depth)]
    stack = FusedACNStack(layers, make_norm(final, width), **options)
    if stack.scales is not None:
        nn.init.normal_(stack.scales)
    return stack


def as_function(stack):
    """The stack as a function of its input and all its parameters."""
    names = [name for name, _ in stack.named_parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(stack, dict(zip(names, parameters, strict=True)), (x,))

    return function, [p.detach().clone().requires_grad_() for p in stack.parameters()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck_and_gradgradcheck(variant):
    stack = make_stack(**VARIANTS[variant], backend="torch").double()
    function, parameters = as_function(stack)
    inputs = (torch.randn(2, 3, 5).double().requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", [NATIVE])
def test_gradcheck_of_the_native_path(backend, variant):
    stack = make_stack(**VARIANTS[variant], backend=backend).double()
    function, parameters = as_function(stack)
    inputs = (torch.randn(2, 3, 5).double().requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("entry", ["layernorm", "opaque"])
@pytest.mark.parametrize("backend", COMPILED)
def test_compiled_paths_refuse_a_second_derivative(backend, entry):
    device = device_of(backend)
    stack = make_stack(entry, backend=backend).to(device)
    x = packed((2, 3, 5), torch.float32, device).requires_grad_()
    with pytest.raises(RuntimeError, match=r"cannot be differentiated twice.*backend='torch' can"):
        torch.autograd.grad(stack(x).square().sum(), x, create_graph=True)
    torch.autograd.grad(stack(x).square().sum(), x)  # one derivative is there


@pytest.mark.parametrize("backend", [NATIVE])
def test_second_derivative_where_no_compiled_backward_takes_part(backend):
    """A bare sum of opaque layers is linear in its terms: all derivatives exist."""
    stack = make_stack("opaque", "none", backend=backend).double()
    x = torch.randn(2, 5).double().requires_grad_()
    assert torch.autograd.gradgradcheck(stack, (x,))


TRANSFORMS = {
    "jvp": lambda f, x, t: torch.func.jvp(f, (x,), (t,))[1],
    "vmap": lambda f, x, t: torch.func.vmap(f)(x),
    "grad": lambda f, x, t: torch.func.grad(lambda x: f(x).square().sum())(x),
    "per-sample-grad": lambda f, x, t: torch.func.vmap(
        torch.func.grad(lambda x: f(x).square().sum())
    )(x),
}
EXPLICIT = (
    "must implement the jvp|does not have vmap support|cannot be differentiated twice"
    "|forward-mode derivatives|Batching rule not implemented"
    "|doesn't match the broadcast shape|inplace arithmetic"
)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("entry", ["layernorm", "opaque"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_function_transforms_are_right_or_refused(backend, entry, alpha, gradients, transform):
    device = device_of(backend)
    stack = make_stack(entry, alpha=alpha, backend=backend).to(device)
    x, tangent = (packed((2, 3, 5), torch.float32, device) for _ in range(2))
    apply = TRANSFORMS[transform]
    truth = apply(lambda x: mixture(list(stack), x, alpha, stack.norm)[-1], x, tangent)
    try:
        with torch.set_grad_enabled(gradients):
            got = apply(stack, x, tangent)
    except (RuntimeError, NotImplementedError) as error:
        assert re.search(EXPLICIT, str(error)), error
        return
    assert_close(got, truth.double(), roundings=20)


def test_auto_finds_a_path_for_forward_mode():
    stack = make_stack()
    x, tangent = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    truth = torch.func.jvp(lambda x: acn(list(stack), x, stack.norm), (x,), (tangent,))[1]
    with torch.no_grad():
        got = torch.func.jvp(stack, (x,), (tangent,))[1]
    assert_close(got, truth.double(), roundings=20)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("rows", [None, "first"], ids=["all", "first"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpointing_changes_nothing(backend, rows, alpha):
    device = device_of(backend)
    stack = make_stack(backend=backend, alpha=alpha, rows=rows, scales="learned").to(device)
    kept = copy.deepcopy(stack)
    stack.checkpoint = True
    x = packed((2, 3, 5), torch.float32, device)
    runs = []
    for network in (stack, kept):
        calls = []
        network[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        leaf = x.clone().requires_grad_()
        y = network(leaf)
        y.square().sum().backward()
        runs.append((y, leaf.grad, *(p.grad for p in network.parameters()), calls))
    *ours, recomputed = runs[0]
    *truth, once = runs[1]
    assert len(recomputed) == 2 and len(once) == 1
    for one, true in zip(ours, truth, strict=True):
        assert torch.equal(one, true)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_checkpointing_keeps_less(alpha):
    """Of a layer's activations only its input and its term stay until the backward pass."""
    kept = {}
    for checkpoint in (True, False):
        blocks = [TransformerBlock(8, 2) for _ in range(4)]
        stack = FusedACNStack(blocks, nn.LayerNorm(8), alpha=alpha, checkpoint=checkpoint)
        saved = {}

        def keep(t, saved=saved):
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = stack(torch.randn(2, 3, 8, requires_grad=True))
        weights = {p.data_ptr() for p in stack.parameters()}
        kept[checkpoint] = sum(size for at, size in saved.items() if at not in weights)
        y.sum().backward()
    assert kept[True] * 2 < kept[False]


def test_checkpointing_repeats_the_dropout():
    class Dropped(Shift):
        def body(self, u):
            return nn.functional.dropout(super().body(u), 0.5, self.training)

    stack = FusedACNStack([Dropped(5) for _ in range(3)], nn.LayerNorm(5), checkpoint=True)
    stack.double()
    x = torch.randn(2, 3, 5).double().requires_grad_()
    state = torch.get_rng_state()
    (got,) = torch.autograd.grad(stack(x).square().sum(), x)
    stack.checkpoint = False
    torch.set_rng_state(state)
    assert_close(got, torch.autograd.grad(stack(x).square().sum(), x)[0])


def test_a_frozen_stack_under_a_trained_norm():
    stack = make_stack()
    for parameter in stack.parameters():
        parameter.requires_grad_(False)
    stack.norm.weight.requires_grad_()
    stack(torch.randn(2, 3, 5)).sum().backward()
    assert stack.norm.weight.grad.isfinite().all()
    assert stack[0].weight.grad is None


def test_backward_twice_over_one_graph():
    stack = make_stack().double()
    x = torch.randn(2, 3, 5).double().requires_grad_()
    loss = stack(x).square().sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert_close(torch.autograd.grad(loss, x)[0], first)


@pytest.mark.parametrize("alpha", [1.0, 0.0, 0.5])
@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("backend", ["torch", TRITON, NATIVE])
def test_autocast_sums_in_single_precision(backend, gradients, alpha):
    """Terms of 1/512 vanish in a bfloat16 sum that stands at 4; in float32 they do not."""
    device = device_of(backend)

    layers = [nn.Linear(8, 8) for _ in range(64)]  # bfloat16 outputs under autocast
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, 1 / 512)
    stack = FusedACNStack(layers, alpha=alpha, backend=backend).to(device)
    x = torch.full((2, 8), 4.0, device=device)
    with torch.set_grad_enabled(gradients), torch.autocast(device, torch.bfloat16):
        y = stack(x)
    assert y.dtype == torch.float32 and (y == 4.125).all()
    running = x.bfloat16()
    for _ in range(64):
        running += torch.full_like(running, 1 / 512)
    assert (running == 4.0).all(), "the case shows what a bfloat16 sum loses"


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_of_a_transformer(backend, alpha):
    """float32 parameters, bfloat16 layers, a float32 result near that of float32."""
    device = device_of(backend)
    stack = FusedACNStack([TransformerBlock(8, 2) for _ in range(2)], nn.LayerNorm(8),
                          alpha=alpha, backend=backend).to(device)  # fmt: skip
    x = packed((2, 3, 8), torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        y = stack(x)
    assert y.dtype == torch.float32
    assert_close(y, stack(x).double(), torch.bfloat16, roundings=16)
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in stack.parameters())
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        assert_close(stack(x), y.double(), torch.bfloat16, roundings=8)


def test_transforms_of_torch_func():
    stack = FusedACNStack([TransformerBlock(8, 2) for _ in range(2)], nn.LayerNorm(8)).double()
    x, parameters = torch.randn(2, 3, 8).double(), dict(stack.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(stack, parameters, (x,)).square().sum()

    truth = torch.autograd.grad(stack(x).square().sum(), list(parameters.values()))
    for got, true in zip(torch.func.grad(loss)(parameters).values(), truth, strict=True):
        torch.testing.assert_close(got, true)
