"""Stacks that run as one operation, under autocast: weights in fp32, products in half precision."""

from __future__ import annotations

import copy

import pytest
import torch
from layers import device_of, leaf, packed
from tolerances import assert_close
from torch import nn

from acn_kernels import FusedACNStack, dispatch
from acn_kernels.blocks import MixerBlock
from acn_kernels.whole_stack import WholeStack, whole_stack_of

RUNS, WHY_NOT = dispatch.availability()["triton"]
pytestmark = [pytest.mark.triton, pytest.mark.skipif(not RUNS, reason=f"triton: {WHY_NOT}")]
DEVICE = device_of("triton")
# The interpreter computes products of bfloat16 wrongly.
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16
# Of the norm of a gradient: the closing ReLU of an element near zero may fall on its other side.
LARGEST_ERROR = 0.3 if DEVICE == "cuda" else 0.1


def linear_layers():
    return [nn.Sequential(nn.Linear(24, 24), nn.SiLU()) for _ in range(3)]


def mixer_blocks(closing=False):
    return [MixerBlock(5, 24, 8, 32, closing) for _ in range(3)]


LAYERS = {
    "linear": linear_layers,
    "mixer": mixer_blocks,
    "closed mixer": lambda: mixer_blocks(closing=True),
}


def stack_of(kind: str, norm: nn.Module | None = None, **options) -> FusedACNStack:
    stack = FusedACNStack(LAYERS[kind](), norm, backend="triton", **options).to(DEVICE)
    for parameter in stack.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return stack


def images(dtype: torch.dtype = torch.float32):
    return leaf(packed((2, 5, 24), dtype, DEVICE))


def runs_whole(stack, x) -> bool:
    return isinstance(whole_stack_of(stack, x, len(stack), True), WholeStack)


def autocast(dtype: torch.dtype = HALF, enabled: bool = True):
    return torch.autocast(DEVICE, dtype, enabled=enabled)


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize(
    ("kind", "alpha"), [*((kind, 1.0) for kind in LAYERS), ("mixer", 0.4), ("closed mixer", 0.4)]
)
def test_output_and_gradients(kind, alpha, dtype):
    scales = "learned" if alpha == 1 else None
    stack = stack_of(kind, nn.LayerNorm(24), alpha=alpha, scales=scales)
    x = images(dtype)
    with autocast():
        assert runs_whole(stack, x)
        y = stack(x)
    assert y.dtype == torch.float32
    # Of the very numbers that the products were given.
    truth = copy.deepcopy(stack).double().cpu()
    truth.backend = "torch"
    for parameter in truth.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.to(HALF).double()
    wide = leaf(x.detach().to(HALF).double().cpu())
    true_y = truth(wide)
    assert_close(y, true_y, HALF, roundings=16)
    g = packed(y.shape, torch.float32, DEVICE)
    y.backward(g)
    true_y.backward(g.double().cpu())
    got = {"x": x, **dict(stack.named_parameters())}
    largest = max(p.grad.norm() for p in truth.parameters())
    for (name, one), other in zip(got.items(), [wide, *truth.parameters()], strict=True):
        assert one.grad.dtype == one.dtype, name
        error = (one.grad.double().cpu() - other.grad).norm()
        # Of a bias that the next norm takes away, the gradient is zero.
        assert error < LARGEST_ERROR * max(other.grad.norm(), 0.1 * largest), name


@pytest.mark.parametrize("kind", LAYERS)
def test_layer_by_layer_gives_the_same(kind):
    stack, x = stack_of(kind, nn.LayerNorm(24)), images()
    with autocast(), torch.no_grad():
        whole = stack(x)
        stack.backend = "torch"
        assert not runs_whole(stack, x)
        assert_close(whole, stack(x).double(), HALF, roundings=32)


@pytest.mark.parametrize("kind", LAYERS)
def test_kept_weights_follow_autocast_and_changes(kind):
    stack, x = stack_of(kind).requires_grad_(False), images().detach()

    def outputs(made):
        found = []
        for dtype, enabled in ((HALF, True), (HALF, False), (HALF, True)):
            with autocast(dtype, enabled):
                found.append(made(x))
        assert [y.dtype for y in found] == [torch.float32] * 3
        return found

    first, plain, again = outputs(stack)
    assert first.equal(again) and not first.equal(plain)
    with torch.no_grad():
        next(stack.parameters()).mul_(1.5)
    changed = outputs(stack)
    assert not changed[0].equal(first)
    assert all(map(torch.equal, changed, outputs(copy.deepcopy(stack))))


@pytest.mark.parametrize("kind", LAYERS)
def test_torch_compile_takes_it_in_one_graph(kind):
    stack, x = stack_of(kind, nn.LayerNorm(24)), images()
    compiled = torch.compile(stack, backend="aot_eager", fullgraph=True)
    with autocast():
        y, expected = compiled(x), stack(x)
    assert y.dtype == torch.float32
    assert_close(y, expected.double(), HALF, roundings=8)
    wanted = [x, *stack.parameters()]
    g = packed(y.shape, torch.float32, DEVICE)
    for one, other in zip(
        torch.autograd.grad(y, wanted, g), torch.autograd.grad(expected, wanted, g), strict=True
    ):
        assert_close(one, other.double(), HALF, roundings=8, among=1.0)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_other_half_precision(kind, gradients):
    """A network in bfloat16 under autocast to float16."""
    stack, x = stack_of(kind, nn.LayerNorm(24), scales="learned").bfloat16(), images()
    with autocast(torch.float16), torch.set_grad_enabled(gradients):
        assert runs_whole(stack, x)
        y = stack(x)
        wide = copy.deepcopy(stack).float()(x)
    assert y.dtype == torch.float32
    assert_close(y, wide.double(), torch.float16, roundings=16)


def test_layers_in_double_precision_are_left_alone():
    for kind in LAYERS:
        stack, x = stack_of(kind).double(), images()
        with autocast():
            assert not runs_whole(stack, x)


def test_double_precision_is_left_alone():
    stack = stack_of("mixer").double()
    stack.backend = "auto"
    x = images(torch.float64)
    with autocast():
        assert not runs_whole(stack, x)
        assert stack(x).dtype == torch.float64


def test_a_cpu_keeps_its_own_products():
    if DEVICE == "cuda":
        pytest.skip("what runs on a CPU without Triton")
    stack, x = stack_of("linear").requires_grad_(False), images().detach()
    stack.backend = "auto"
    with torch.autocast("cpu", torch.bfloat16):
        found = whole_stack_of(stack, x, 3, True)
    assert found == "autocast is on"
