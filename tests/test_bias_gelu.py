"""bias_gelu: ``gelu(z + b)`` behind a product, and where blocks use it."""

from __future__ import annotations

import pytest
import torch
from layers import BACKENDS, LAYOUTS, NATIVE, TRITON, device_of, leaf, packed, wide_copy, wide_leaf
from tolerances import assert_close
from torch import nn

from acn_kernels import functional, reference
from acn_kernels.blocks.mlp import Mlp


def largest_argument(z, bias) -> float:
    """Below zero a GELU is a small share of its argument, whose magnitude the error has."""
    return float((z + bias).abs().amax()) if z.numel() else 0.0


def check(backend, shape=(3, 5, 7), dtype=torch.float32, layout=packed, out_layout=packed):
    device = device_of(backend)
    z, bias = leaf(layout(shape, dtype, device)), leaf(packed(shape[-1:], dtype, device))
    h = functional.bias_gelu(z, bias, backend)
    dh = out_layout(shape, dtype, device)
    wide = wide_leaf(z), wide_leaf(bias)
    truth = reference.bias_gelu(*wide)
    roundings = 4 if dtype != torch.float32 else 2
    assert h.dtype == dtype
    assert_close(h, truth, roundings=roundings, among=largest_argument(*wide))
    for one, other in zip(
        torch.autograd.grad(h, (z, bias), dh),
        torch.autograd.grad(truth, wide, dh.double().cpu()),
        strict=True,
    ):
        assert_close(one, other, roundings=2 * roundings, among=4.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_dtype(backend, dtype):
    check(backend, dtype=dtype)


@pytest.mark.parametrize(
    "shape", [(7,), (1, 1), (300, 17), (0, 5), (2, 3, 1024), (2, 2500), (2, 8192)], ids=str
)
@pytest.mark.parametrize("backend", [TRITON])
def test_every_shape(backend, shape):
    check(backend, shape)


@torch.no_grad()
def check_inference(backend, shape=(3, 5, 7), dtype=torch.float32, layout=packed, size=1.0):
    device = device_of(backend)
    z, bias = size * layout(shape, dtype, device), packed(shape[-1:], dtype, device)
    h = functional.bias_gelu(z, bias, backend)
    assert h.dtype == dtype and not h.requires_grad
    wide = z.double().cpu(), bias.double().cpu()
    assert_close(h, reference.bias_gelu(*wide), roundings=2, among=largest_argument(*wide))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("size", [0.1, 1.0, 6.0, 1000.0])
@pytest.mark.parametrize("backend", [NATIVE])
def test_inference_in_every_dtype_and_size(backend, dtype, size):
    check_inference(backend, (40, 100), dtype, size=size)


@pytest.mark.parametrize("shape", [(7,), (1, 1), (300, 17), (0, 5), (2, 3, 1024)], ids=str)
@pytest.mark.parametrize("backend", [NATIVE])
def test_inference_on_every_shape(backend, shape):
    check_inference(backend, shape)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", [NATIVE])
def test_inference_on_every_layout(backend, layout):
    check_inference(backend, (3, 4, 7), layout=layout)


@pytest.mark.parametrize("backend", [NATIVE])
def test_what_is_no_number_and_what_is_huge(backend):
    z = torch.tensor([[torch.inf, torch.nan, 3e38, -3e38, 0.0]])
    h = functional.bias_gelu(z, torch.zeros(5), backend)
    assert h[0, 0] == torch.inf and h[0, 1].isnan()
    assert h[0, 2:].tolist() == z[0, 2:].clamp(min=0).tolist()


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", [TRITON])
def test_the_slope_where_the_argument_is_huge(backend, dtype):
    z = torch.tensor([3e38, -3e38, 1e25, -1e25, 1e3, -1e3, torch.nan], device=device_of(backend))
    z, bias = leaf(z.to(dtype)), torch.zeros_like(z, dtype=dtype)
    (dz,) = torch.autograd.grad(functional.bias_gelu(z, bias, backend).sum(), z)
    assert dz[:-1].tolist() == pytest.approx([1.0, 0.0] * 3) and dz[-1].isnan()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("out_layout", LAYOUTS)
@pytest.mark.parametrize("backend", [TRITON])
def test_layouts(backend, layout, out_layout):
    check(backend, (3, 4, 7), layout=layout, out_layout=out_layout)


@pytest.mark.parametrize("backend", [TRITON])
def test_the_same_bits_every_time(backend):
    z, bias = leaf(torch.randn(999, 40)), leaf(torch.randn(40))
    z, bias = (leaf(t.to(device_of(backend))) for t in (z, bias))
    h = functional.bias_gelu(z, bias, backend)
    one, other = (
        torch.autograd.grad(h, (z, bias), torch.ones_like(h), retain_graph=True) for _ in "12"
    )
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("backend", [TRITON])
def test_the_mlp_of_a_block_takes_it(backend, hooked, monkeypatch):
    calls = []
    original = functional.bias_gelu
    monkeypatch.setattr(functional, "bias_gelu", lambda *a: calls.append(1) or original(*a))
    mlp = Mlp(6, 20).to(device_of(backend))
    if hooked:
        mlp.fc1.register_forward_hook(lambda *_: None)
    truth, x = wide_copy(mlp), leaf(packed((2, 3, 6), torch.float32, device_of(backend)))
    y, true_y = mlp(x, backend), truth(x.double().cpu(), "torch")
    g = torch.randn_like(y)
    assert calls == [1] * (not hooked)
    assert_close(y, true_y, torch.float32, roundings=4)
    for one, other in zip(
        torch.autograd.grad(y, list(mlp.parameters()), g),
        torch.autograd.grad(true_y, list(truth.parameters()), g.double().cpu()),
        strict=True,
    ):
        assert_close(one, other, torch.float32, roundings=8, among=1.0)
    with torch.no_grad():
        mlp(x, backend)
    assert calls == [1] * (not hooked), "without gradients the bias stays in the product"


@torch.no_grad()
@pytest.mark.parametrize("backend", [NATIVE])
def test_the_mlp_of_a_block_takes_it_at_inference(backend, monkeypatch):
    calls = []
    original = functional.bias_gelu
    monkeypatch.setattr(functional, "bias_gelu", lambda *a: calls.append(1) or original(*a))
    mlp, x = Mlp(6, 20), packed((2, 3, 6), torch.float32, "cpu")
    assert_close(mlp(x, backend), wide_copy(mlp)(x.double(), "torch"), torch.float32, roundings=4)
    assert calls == [1]
    with torch.enable_grad():
        mlp(x, backend)
    assert calls == [1], "with gradients PyTorch's kernels keep what the backward pass reads"


@pytest.mark.parametrize("backend", [TRITON])
def test_another_activation_is_called(backend):
    mlp = Mlp(6, 20).to(device_of(backend))
    mlp.act = nn.GELU("tanh")
    x = packed((2, 6), torch.float32, device_of(backend))
    assert_close(
        mlp(x, backend), wide_copy(mlp)(x.double().cpu(), "torch"), torch.float32, roundings=4
    )


@pytest.mark.parametrize(
    ("z", "bias", "error", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4), ValueError, r"bias has shape \(4,\); rows of 3 take"),
        (torch.zeros(2, 3), torch.zeros(3, device="meta"), ValueError, "bias is on meta"),
        (torch.zeros(2, 3).int(), torch.zeros(3), TypeError, "z has dtype torch.int32"),
        (torch.zeros(2, 3), [0.0] * 3, TypeError, "bias is a list"),
    ],
    ids=str,
)
def test_bad_input(z, bias, error, message):
    with pytest.raises(error, match=message):
        functional.bias_gelu(z, bias)
