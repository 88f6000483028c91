"""The stack at alpha = 1: output and every gradient against a plain loop in float64."""

from __future__ import annotations

import pytest
import torch
from layers import (
    BACKENDS,
    LAYOUTS,
    NORMS,
    Opaque,
    Shift,
    device_of,
    expanded,
    leaf,
    make_norm,
    packed,
    wide_copy,
    wide_leaf,
)
from loops import acn
from tolerances import TOLERANCES, assert_close
from torch import nn

from acn_kernels import FusedACNStack, NormSpec, reference
from acn_kernels.reference import sum_dtype

ROWS = {
    "first": "first",
    "last": "last",
    "slice": slice(1, None, 2),
    "index": torch.tensor([3, 0, -1]),
}


def make_stack(depth=3, width=64, entry="layernorm", final="layernorm", scales=None, **options):
    layers = [Opaque(width) if entry == "opaque" else Shift(width, entry) for _ in range(depth)]
    terms = depth + options.get("include_input", True)
    if scales in ("fixed", "learned"):
        values = torch.empty(terms, dtype=torch.float64).uniform_(-1, 1)
        scales = nn.Parameter(values) if scales == "learned" else values
    return FusedACNStack(layers, make_norm(final, width), scales=scales, **options)


def on(stack, dtype, device):
    """The stack in ``dtype``, its scales in the sum's."""
    stack = stack.to(device, dtype)
    if stack.scales is not None:
        stack.scales.data = stack.scales.data.to(sum_dtype(dtype))
    return stack


def check_stack(backend, shape=(2, 5, 64), dtype=torch.float32, layout=packed, out_layout=packed,
                depth=3, tokens=None, **options):  # fmt: skip
    """Training and inference output, gradients of the input and of every parameter."""
    device = device_of(backend)
    stack = on(make_stack(depth, shape[-1], backend=backend, **options), dtype, device)
    x = leaf(layout(shape, dtype, device))
    y = stack(x)
    incoming = out_layout(tuple(y.shape), dtype, device)
    names, parameters = zip(("x", x), *stack.named_parameters(), strict=True)
    got = torch.autograd.grad(y, parameters, incoming)

    twin, wide = wide_copy(stack), wide_leaf(x)
    inner = [wide, *twin.parameters()]
    include_input = options.get("include_input", True)
    true_y = acn(list(twin), wide, twin.norm, twin.scales, include_input, tokens)
    truth = torch.autograd.grad(true_y, inner, incoming.double().cpu())

    # A layer rounds once in float32, in half precision after each of its operations.
    per_layer = {torch.float64: 0, torch.float32: 1}.get(dtype, 6)
    roundings = 1 + per_layer * depth
    if shape[-1] == 1 and dtype == torch.float32:
        roundings *= 1000  # a norm of one element magnifies by up to 1/sqrt(eps)
    assert y.dtype == dtype
    assert_close(y, true_y, roundings=roundings, name="y")
    among = float(incoming.double().abs().sum(tuple(range(incoming.dim() - 1))).max())
    for name, one, true in zip(names, got, truth, strict=True):
        size = float(incoming.abs().sum()) if name == "scales" else 0 if name == "x" else among
        assert_close(one, true, dtype, roundings=roundings, name=name, among=size)
    with torch.no_grad():
        assert_close(stack(x), true_y, roundings=roundings, name="y without gradients")


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_dtype(backend, norm, dtype):
    if backend == "triton" and dtype == torch.float64:
        with pytest.raises(RuntimeError, match="fp16, bf16 and fp32"):
            check_stack(backend, dtype=dtype)
        return
    check_stack(backend, dtype=dtype, entry=norm, final=norm, scales="learned")


@pytest.mark.parametrize("depth", [0, 1, 2, 33, 100])
@pytest.mark.parametrize("scales", [None, "learned"], ids=["unscaled", "learned"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_depth(backend, scales, depth):
    dtype = torch.float32 if backend == "triton" else torch.float64
    check_stack(backend, (2, 2, 32), dtype, depth=depth, scales=scales)


@pytest.mark.parametrize("width", [1, 7, 64, 768, 1000])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_width(backend, norm, width):
    # At D = 1 a final norm would leave nothing but the sign of y.
    final = "none" if width == 1 else norm
    dtype = torch.float32 if backend == "triton" else torch.float64
    check_stack(backend, (1, 3, width), dtype, depth=2, entry=norm, final=final)


@pytest.mark.parametrize("final", NORMS)
@pytest.mark.parametrize("entry", [*NORMS, "opaque"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_norm(backend, entry, final):
    check_stack(backend, (2, 3, 7), depth=2, entry=entry, final=final)


@pytest.mark.parametrize("scales", [None, "fixed", "learned"], ids=str)
@pytest.mark.parametrize("include_input", [True, False], ids=["with-input", "without-input"])
@pytest.mark.parametrize("entry", ["layernorm", "opaque"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_scales(backend, entry, include_input, scales):
    check_stack(backend, (2, 3, 7), entry=entry, include_input=include_input, scales=scales)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("scales", [None, "fixed", "learned"], ids=str)
@pytest.mark.parametrize("entry", ["layernorm", "opaque"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows(backend, entry, scales, rows):
    tokens = {"first": [0], "last": [4], "slice": [1, 3], "index": [3, 0, 4]}[rows]
    check_stack(
        backend, (2, 3, 5, 7), depth=2, entry=entry, scales=scales, rows=ROWS[rows], tokens=tokens
    )  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of", ["layout", "out_layout"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(backend, of, layout):
    check_stack(backend, (3, 4, 7), **{of: layout})


@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_everything_with_rows(backend):
    check_stack(backend, (3, 4, 7), layout=expanded, out_layout=expanded, rows="last", tokens=[3])


@pytest.mark.parametrize("shape", [(7,), (1, 7), (40, 7), (2, 3, 4, 7)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_rank(backend, shape):
    check_stack(backend, shape)


@pytest.mark.parametrize("rows", [None, "first"], ids=["all", "first"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend, rows):
    stack = make_stack(2, 7, scales="learned", rows=rows, backend=backend).to(device_of(backend))
    x = torch.randn(0, 5, 7, device=device_of(backend), requires_grad=True)
    y = stack(x)
    assert y.shape == (0, 1 if rows else 5, 7)
    for gradient in torch.autograd.grad(y.sum(), [x, *stack.parameters()]):
        assert not gradient.count_nonzero()
    with torch.no_grad():
        assert stack(x).shape == y.shape
        assert [y.shape for y in stack.forward_intermediates(x)] == [y.shape] * 3


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_numbers_reach_their_rows_and_no_other(backend, gradients, bad):
    stack = make_stack(2, 7, scales="fixed", backend=backend).to(device_of(backend))
    x = packed((4, 7), torch.float32, device_of(backend))
    x[1, 3] = bad
    with torch.set_grad_enabled(gradients):
        y = stack(x)
    assert y[1].isnan().any() and y[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("include_input", [True, False], ids=["with-input", "without-input"])
def test_reference_stack_equals_the_loop(include_input):
    """The package's truth, against the loop that was written without it."""
    stack = make_stack(5, 7, include_input=include_input, scales="fixed").double()
    x = torch.randn(3, 7, dtype=torch.float64)
    layers = list(stack)
    got = reference.stack(
        layers, x, NormSpec.of(stack.norm), scales=stack.scales, include_input=include_input
    )
    assert_close(got, acn(layers, x, stack.norm, stack.scales, include_input))


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_scales_give_the_last_layer(backend):
    """scales 0, ..., 0, 1 are the feed-forward network, exactly."""
    stack = make_stack(3, 7, scales=[0.0, 0.0, 0.0, 1.0], final="none", backend=backend)
    last = []
    stack.to(device_of(backend))[2].register_forward_hook(lambda *call: last.append(call[2]))
    x = packed((2, 7), torch.float32, device_of(backend))
    assert torch.equal(stack(x), last.pop())
    with torch.no_grad():
        assert torch.equal(stack(x), last.pop())


@pytest.mark.gpu
@pytest.mark.xdist_group("much memory")
@pytest.mark.parametrize("rows", [None, "first"], ids=["all", "first"])
def test_more_than_2_31_elements(rows):
    """64-bit offsets: the last rows of a huge tensor equal the same rows on their own."""
    stack = make_stack(1, 1024, rows=rows, backend="triton").to("cuda", torch.bfloat16)
    x = torch.randn(2**21 // 8 + 1, 8, 1024, device="cuda", dtype=torch.bfloat16)
    x.requires_grad_()
    y = stack(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    tail = leaf(x[-3:].clone())
    short = stack(tail)
    assert torch.equal(y[-3:], short)
    assert torch.equal(dx[-3:], torch.autograd.grad(short, tail, torch.ones_like(short))[0])


def test_unknown_layers_sum_an_input_with_gaps():
    """The sum that inference begins is packed, however its first term lies in memory."""
    layers = [Opaque(16) for _ in range(3)]
    stack = FusedACNStack(layers, nn.LayerNorm(16))
    x = torch.randn(2, 16, 5).transpose(1, 2)
    with torch.no_grad():
        expected = acn(map(wide_copy, layers), x.double(), wide_copy(stack.norm))
        assert_close(stack(x), expected)
