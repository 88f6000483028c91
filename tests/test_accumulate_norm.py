"""accumulate_norm: inference's step, ``y += a x`` and ``norm(alpha x + (1-alpha) y)``."""

from __future__ import annotations

import pytest
import torch
from layers import BACKENDS, COMPILED, LAYOUTS, device_of, make_norm, packed, wide_copy
from tolerances import TOLERANCES, assert_close

from acn_kernels import NormSpec, functional, reference
from acn_kernels.reference import sum_dtype
from acn_kernels.rows import Rows


def check_step(backend, shape=(2, 5, 7), dtype=torch.float32, norm="layernorm", scale=None,
               alpha=1.0, rows=None, first=False, layout=packed, out_dtype=None):  # fmt: skip
    """Both results against the reference in float64."""
    device = device_of(backend)
    x = layout(shape, dtype, device)
    selection = None if rows is None else Rows(rows).resolve(shape[-2], x.device)
    kept = shape if rows is None else (*shape[:-2], len(selection.index), shape[-1])
    y = None if first else packed(kept, sum_dtype(dtype), device)
    module = make_norm(norm, shape[-1])
    module = module if module is None else module.to(device, dtype)
    a = None if scale is None else torch.tensor(scale, dtype=sum_dtype(dtype), device=device)
    true_h, true_y = reference.accumulate_norm(
        x.double().cpu(),
        None if first else y.double().cpu(),
        NormSpec.of(wide_copy(module)) if module is not None else None,
        None if a is None else a.double().cpu(),
        alpha,
        None if rows is None else selection.index.cpu(),
    )
    with torch.no_grad():
        h, sum_ = functional.accumulate_norm(
            x, y, NormSpec.of(module), a, alpha, selection, backend, out_dtype
        )
    assert first or sum_ is y, "the sum is updated in place"
    assert h.dtype == (out_dtype or dtype) and sum_.dtype == sum_dtype(dtype)
    # At D = 1 a LayerNorm is a small difference after 1/sqrt(eps).
    size = 316 * float(x.abs().max()) if shape[-1] == 1 else 4.0
    assert_close(h, true_h, dtype, name="h", among=size)
    assert_close(sum_, true_y, name="y")


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_dtype(backend, norm, dtype):
    if backend == "triton" and dtype == torch.float64:
        with pytest.raises(RuntimeError, match="fp16, bf16 and fp32"):
            check_step(backend, dtype=dtype)
        return
    check_step(backend, dtype=dtype, norm=norm, scale=-0.3)


@pytest.mark.parametrize("width", [1, 7, 64, 768, 1000])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_width(backend, norm, width):
    check_step(backend, (3, 2, width), norm=norm)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("norm", ["layernorm", "layernorm-bare", "layernorm-no-bias", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_alpha(backend, norm, first, alpha):
    check_step(backend, norm=norm, first=first, alpha=alpha, scale=0.6)


@pytest.mark.parametrize("rows", ["first", "last", slice(0, 4, 3), [4, 1]], ids=str)
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows(backend, first, rows):
    check_step(backend, (2, 3, 5, 7), rows=rows, first=first, scale=1.5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(backend, layout):
    check_step(backend, (3, 4, 7), layout=layout, alpha=0.4)


@pytest.mark.parametrize("shape", [(7,), (301, 17), (0, 5, 7), (2, 2, 2, 9)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_rank(backend, shape):
    check_step(backend, shape, first=True)
    check_step(backend, shape)


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_dtype(backend):
    check_step(backend, dtype=torch.bfloat16, alpha=0.0, out_dtype=torch.float32)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("backend", COMPILED)
def test_bad_numbers_stay_in_their_row(backend):
    x = packed((4, 7), torch.float32, device_of(backend))
    x[1, 2], x[3, 0] = torch.nan, torch.inf
    h, y = functional.accumulate_norm(x, None, NormSpec("rms"), alpha=0.5, backend=backend)
    assert h[[0, 2]].isfinite().all() and h[[1, 3]].isnan().any(-1).all()
    assert y.isfinite().sum() == y.numel() - 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_refuses_to_record_a_gradient(backend):
    x = packed((2, 7), torch.float32, device_of(backend))
    weight, scale = (torch.ones(n, device=x.device, requires_grad=True) for n in ((7,), ()))
    for given in (
        {"x": x.clone().requires_grad_()},
        {"x": x, "spec": NormSpec("layer", weight)},
        {"x": x, "scale": scale},
    ):
        with pytest.raises(RuntimeError, match="no gradient"):
            functional.accumulate_norm(**given, backend=backend)
