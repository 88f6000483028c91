"""fork: norm(x), a term, and ``normbwd(dh) + scale * g`` in one backward."""

from __future__ import annotations

import pytest
import torch
from layers import (
    BACKENDS,
    COMPILED,
    LAYOUTS,
    device_of,
    expanded,
    leaf,
    packed,
    wide_leaf,
)
from tolerances import TOLERANCES, assert_all_close, assert_close

from acn_kernels import NormSpec, functional, reference
from acn_kernels.reference import sum_dtype
from acn_kernels.rows import Rows

GRADIENTS = ("x", "weight", "bias", "scale")
HALF_AND_SINGLE = [torch.float32, torch.float16, torch.bfloat16]


def gradients(outputs, incoming, inputs):
    """Gradients of sum_k <outputs[k], incoming[k]>, None where there is nothing to derive."""
    wanted = [x for x in inputs if x is not None]
    found = iter(torch.autograd.grad(outputs, wanted, incoming, allow_unused=True))
    return [None if x is None else next(found) for x in inputs]


def check_fork(
    backend,
    shape,
    dtype=torch.float32,
    kind="layer",
    affine=("weight", "bias"),
    scale=None,
    rows=None,
    x_layout=packed,
    dh_layout=packed,
    g_layout=packed,
):
    """Forward and every gradient against the reference in float64."""
    device, width = device_of(backend), shape[-1]
    x = leaf(x_layout(shape, dtype, device))
    weight = leaf(1 + 0.5 * packed((width,), dtype, device)) if "weight" in affine else None
    bias = leaf(packed((width,), dtype, device)) if "bias" in affine else None
    if scale is not None:
        scale = torch.tensor(scale, dtype=sum_dtype(dtype), device=device, requires_grad=True)
    selection = None if rows is None else Rows(rows).resolve(shape[-2], x.device)
    spec = NormSpec(kind, weight, bias, 1e-5)
    h, term = functional.fork(x, spec, scale, selection, backend)
    dh = dh_layout(shape, dtype, device)
    g = g_layout(tuple(term.x.shape), dtype, device)
    got = gradients((h, term.x), (dh, g), (x, weight, bias, scale))

    wide = [None if t is None else wide_leaf(t) for t in (x, weight, bias, scale)]
    true_h, (true_term, _) = reference.fork(
        wide[0], NormSpec(kind, *wide[1:3], 1e-5), None,
        None if rows is None else selection.index.cpu(),
    )  # fmt: skip
    true_y = true_term if scale is None else wide[3] * true_term
    truth = gradients((true_h, true_y), (dh.double().cpu(), g.double().cpu()), wide)

    assert h.dtype == term.x.dtype == got[0].dtype == dtype
    assert_close(h, true_h, name="h")
    assert_close(term.x, true_term, name="term")
    sizes = term_magnitudes(wide[0].detach(), dh.double().cpu(), kind)
    sizes.append(float((g.double().cpu() * true_term.detach()).abs().sum()))
    # PyTorch's own kernels add up the gradients of weight and bias in half precision on a CPU, and
    # round dx before the direct gradient is added.
    half = dtype in (torch.float16, torch.bfloat16)
    roundings = (2, 4, 4, 1) if backend == "torch" and half else (1, 1, 1, 1)
    for i, name in enumerate(GRADIENTS):
        assert_all_close(
            got[i : i + 1], truth[i : i + 1], [f"gradient of {name}"],
            dtype=dtype, among=sizes[i], roundings=roundings[i],
        )  # fmt: skip


def term_magnitudes(x, dh, kind):
    """The size of what dx, dweight and dbias are small differences of: all vanish at D = 1."""
    if not x.numel():
        return [0.0, 0.0, 0.0]
    centred = x - x.mean(-1, True) if kind == "layer" else x
    rstd = (centred.square().mean(-1, True) + 1e-5).rsqrt()
    over_rows = tuple(range(x.dim() - 1))
    return [
        float((rstd * dh).abs().max()),
        float((dh * x * rstd).abs().sum(over_rows).max()),
        float(dh.abs().sum(over_rows).max()),
    ]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_dtype(backend, kind, dtype):
    if backend == "triton" and dtype == torch.float64:
        with pytest.raises(RuntimeError, match="fp16, bf16 and fp32"):
            check_fork(backend, (2, 5, 64), dtype)
        return
    check_fork(backend, (2, 5, 64), dtype, kind, scale=0.7)


HALF, BF16, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize(
    "dtypes",
    [
        (SINGLE, BF16, BF16), (SINGLE, DOUBLE, SINGLE), (BF16, SINGLE, SINGLE),
        (BF16, HALF, HALF), (HALF, HALF, SINGLE), (HALF, None, SINGLE),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_norm_of_other_dtypes_than_its_input(backend, kind, dtypes):
    """Every gradient has the dtype of its input, and the precision of the coarsest."""
    inputs = [
        None if dtype is None else leaf(packed(shape, SINGLE, device_of(backend)).to(dtype))
        for shape, dtype in zip([(3, 5, 9), (9,), (9,)], dtypes, strict=True)
    ]
    x, *affine = inputs
    h, term = functional.fork(x, NormSpec(kind, *affine), backend=backend)
    incoming = torch.randn_like(h), torch.randn_like(term.x)
    got = gradients((h, term.x), incoming, inputs)
    wide = [None if t is None else wide_leaf(t) for t in inputs]
    true_h = reference.norm(wide[0], NormSpec(kind, *wide[1:]))
    truth = gradients((true_h, wide[0]), [g.double().cpu() for g in incoming], wide)
    coarse = max((d for d in dtypes if d is not None), key=lambda d: torch.finfo(d).eps)
    assert_close(h, true_h, coarse, among=4.0)
    for one, true, given in zip(got, truth, inputs, strict=True):
        assert one is true is None or one.dtype == given.dtype
        if given is not None:
            assert_close(one, true, coarse, roundings=4, among=8.0)


@pytest.mark.parametrize("width", [1, 7, 768, 1000])
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_width(backend, kind, width):
    check_fork(backend, (3, 2, width), kind=kind)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (513, 17), (2, 3, 4, 7)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_rank(backend, shape):
    check_fork(backend, shape)


@pytest.mark.parametrize("scale", [None, -0.7], ids=["unscaled", "scaled"])
@pytest.mark.parametrize("affine", [(), ("weight",), ("bias",), ("weight", "bias")], ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_weight_bias_and_scale(backend, kind, affine, scale):
    check_fork(backend, (2, 5, 7), kind=kind, affine=affine, scale=scale)


@pytest.mark.parametrize("scale", [None, 0.3], ids=["unscaled", "scaled"])
@pytest.mark.parametrize("rows", ["first", "last", slice(1, None, 2), [3, 0, -1]], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows(backend, rows, scale):
    check_fork(backend, (2, 3, 5, 7), rows=rows, scale=scale)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of", ["x_layout", "dh_layout", "g_layout"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(backend, of, layout):
    check_fork(backend, (3, 4, 7), **{of: layout})


@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_everything_with_rows(backend):
    layouts = dict.fromkeys(("x_layout", "dh_layout", "g_layout"), expanded)
    check_fork(backend, (3, 4, 7), rows="last", scale=2.0, **layouts)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_at_all(backend):
    check_fork(backend, (0, 4, 7), scale=0.5)


@pytest.mark.parametrize("used", ["h", "term"])
@pytest.mark.parametrize("rows", [None, "first"], ids=["all", "first"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_way_alone(backend, rows, used):
    """Where one of the two ways carries no gradient, the other's is whole."""
    x = leaf(packed((2, 3, 7), torch.float32, device_of(backend)))
    selection = None if rows is None else Rows(rows).resolve(3, x.device)
    h, term = functional.fork(x, NormSpec("layer"), None, selection, backend)
    out = h if used == "h" else term.x
    incoming = torch.randn_like(out)
    (got,) = torch.autograd.grad(out, x, incoming)
    wide = wide_leaf(x)
    true_h, (true_term, _) = reference.fork(
        wide, NormSpec("layer"), None, None if rows is None else selection.index.cpu()
    )
    (truth,) = torch.autograd.grad(
        true_h if used == "h" else true_term, wide, incoming.double().cpu()
    )
    assert_close(got, truth)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("backend", COMPILED)
def test_bad_numbers_stay_in_their_row(backend):
    x = packed((4, 7), torch.float32, device_of(backend))
    x[1, 2], x[3, 0] = torch.nan, torch.inf
    x.requires_grad_()
    h, term = functional.fork(x, NormSpec("layer"), backend=backend)
    (dx,) = torch.autograd.grad((h, term.x), x, (torch.ones_like(h), torch.ones_like(h)))
    for result in (h, dx):
        assert result[[0, 2]].isfinite().all()
        assert result[[1, 3]].isnan().any(-1).all()


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_far_from_zero_mean(backend, dtype):
    """Two passes over the registers: an offset of 1000 costs the mean's last digits (6e-5 in
    fp32) and no more; a variance from E[x^2] - E[x]^2 would be off by 0.1."""
    x = packed((4, 64), torch.float32, device_of(backend)).add_(1000).to(dtype)
    h = functional.norm(x, NormSpec("layer"), backend)
    assert_close(h, reference.norm(x.double().cpu(), NormSpec("layer")), among=100)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_row(backend, kind):
    x = packed((8,), torch.float32, device_of(backend)).requires_grad_()
    weight = torch.ones(8, device=x.device, requires_grad=True)
    h, term = functional.fork(x, NormSpec(kind, weight), backend=backend)
    got = torch.autograd.grad((h * h).sum() + 2 * term.x.sum(), [x, weight])
    wide = [t.detach().double().cpu().requires_grad_() for t in (x, weight)]
    true = reference.norm(wide[0], NormSpec(kind, wide[1]))
    truth = torch.autograd.grad((true * true).sum() + 2 * wide[0].sum(), wide)
    for one, other in zip(got, truth, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_rmsnorm_with_its_own_eps_is_torchs(backend, dtype):
    """Numbers so small that it shows which: torch's is that of the dtype it computes in."""
    module = torch.nn.RMSNorm(64).to(device_of(backend), dtype)
    x = (packed((4, 64), torch.float32, device_of(backend)) * 1e-3).to(dtype)
    assert_close(functional.norm(x, NormSpec.of(module), backend), module(x).double(), dtype)
    assert_close(reference.norm(x, NormSpec.of(module)), module(x).double(), dtype)


def test_reference_norm_is_torchs():
    """The truth itself, against PyTorch's own norms."""
    x, weight, bias = torch.randn(5, 7).double(), torch.randn(7).double(), torch.randn(7).double()
    layer = torch.nn.functional.layer_norm(x, (7,), weight, bias, 1e-5)
    rms = torch.nn.functional.rms_norm(x, (7,), weight, 1e-5)
    assert_close(reference.norm(x, NormSpec("layer", weight, bias)), layer)
    assert_close(reference.norm(x, NormSpec("rms", weight)), rms)
