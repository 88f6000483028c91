"""join: ``norm(sum_i a_i x_i)``, and one gradient for all of its terms."""

from __future__ import annotations

import pytest
import torch
from layers import BACKENDS, COMPILED, LAYOUTS, device_of, leaf, packed, wide_leaf
from tolerances import TOLERANCES, assert_all_close, assert_close

from acn_kernels import NormSpec, functional, reference
from acn_kernels.functional import Term
from acn_kernels.reference import sum_dtype

SPECS = {
    "bare-sum": None,
    "layernorm": ("layer", True, True),
    "layernorm-no-bias": ("layer", True, False),
    "layernorm-bare": ("layer", False, False),
    "rmsnorm": ("rms", True, False),
    "rmsnorm-bare": ("rms", False, False),
}


def make_spec(name, width, dtype, device):
    if SPECS[name] is None:
        return None
    kind, has_weight, has_bias = SPECS[name]
    weight = leaf(1 + 0.5 * packed((width,), dtype, device)) if has_weight else None
    bias = leaf(packed((width,), dtype, device)) if has_bias else None
    return NormSpec(kind, weight, bias)


def check_join(
    backend,
    terms=4,
    shape=(2, 5, 7),
    dtype=torch.float32,
    norm="layernorm",
    scales="none",
    layout=packed,
    out_layout=packed,
    out_dtype=None,
    roundings=2,
):
    """Forward, the gradient of every term, of weight and of bias, in float64."""
    device = device_of(backend)
    xs = [leaf(layout(shape, dtype, device)) for _ in range(terms)]
    every = {"none": 0, "all": 1, "some": 2}[scales]
    a = [
        torch.tensor(0.1 * i - 0.5, dtype=sum_dtype(dtype), device=device)
        if every and i % every == 0
        else None
        for i in range(terms)
    ]
    spec = make_spec(norm, shape[-1], dtype, device)
    y = functional.join(list(map(Term, xs, a)), spec, backend, out_dtype)
    incoming = out_layout(tuple(shape), y.dtype, device)
    inputs = [*xs, *(p for p in (spec or ())[1:3] if p is not None)]
    got = torch.autograd.grad(y, inputs, incoming)

    wide = [wide_leaf(x) for x in inputs]
    wide_spec = spec
    if spec is not None:
        affine = iter(wide[terms:])
        wide_spec = NormSpec(
            spec.kind, *(None if p is None else next(affine) for p in spec[1:3]), spec.eps
        )
    # The gradient of a term is that of the scaled term: its tap or fork applies the scale.
    scaled = [x if s is None else float(s) * x for x, s in zip(wide, a, strict=False)]
    true_y = reference.join([(x, None) for x in scaled], wide_spec)
    truth = torch.autograd.grad(true_y, [*scaled, *wide[terms:]], incoming.double().cpu())

    assert y.dtype == (out_dtype or dtype)
    names = [f"gradient of term {i}" for i in range(terms)] + ["weight", "bias"]
    summed = float(incoming.double().abs().sum(tuple(range(len(shape) - 1))).max())
    # The magnitude of the terms: sums cancel, and at D = 1 a norm does, after 1/sqrt(eps).
    size = float(sum(x.detach().abs() for x in scaled).max()) * (316 if shape[-1] == 1 else 1)
    assert_close(y, true_y, dtype, among=size if norm == "bare-sum" or shape[-1] == 1 else 0)
    for i, (one, true) in enumerate(zip(got, truth, strict=True)):
        among = 2 * summed if i >= terms or shape[-1] == 1 else 0
        assert_close(one, true, dtype, roundings=roundings, name=names[i], among=among)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("norm", ["bare-sum", "layernorm", "rmsnorm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_dtype(backend, norm, dtype):
    if backend == "triton" and dtype == torch.float64:
        with pytest.raises(RuntimeError, match="fp16, bf16 and fp32"):
            check_join(backend, dtype=dtype)
        return
    check_join(backend, dtype=dtype, norm=norm, scales="some")


@pytest.mark.parametrize("terms", [1, 2, 15, 16, 17, 33, 34, 64, 65, 101])
@pytest.mark.parametrize("scales", ["none", "all"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_number_of_terms(backend, scales, terms):
    """No table of pointers drops a layer: past one Triton launch's sources the sum carries on."""
    check_join(backend, terms, scales=scales)


@pytest.mark.parametrize("terms", [16, 17, 65])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bare_sum_of_many(backend, terms):
    check_join(backend, terms, dtype=torch.float16, norm="bare-sum", scales="all")


@pytest.mark.parametrize("width", [1, 7, 768, 1000])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_width(backend, norm, width):
    # At D = 1 the gradient of a norm is a small difference after 1/sqrt(eps).
    check_join(backend, shape=(3, 2, width), norm=norm, roundings=320 if width == 1 else 2)


@pytest.mark.parametrize("norm", SPECS)
@pytest.mark.parametrize("scales", ["none", "some"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_norm(backend, scales, norm):
    check_join(backend, norm=norm, scales=scales)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of", ["layout", "out_layout"])
@pytest.mark.parametrize("norm", ["bare-sum", "layernorm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(backend, norm, of, layout):
    check_join(backend, norm=norm, **{of: layout})


@pytest.mark.parametrize("shape", [(7,), (1, 7), (301, 17), (2, 2, 2, 9)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_rank(backend, shape):
    check_join(backend, shape=shape)


@pytest.mark.parametrize("norm", ["bare-sum", "layernorm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_out_dtype(backend, norm):
    check_join(backend, dtype=torch.bfloat16, norm=norm, out_dtype=torch.float32)


@pytest.mark.parametrize("norm", SPECS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_at_all(backend, norm):
    xs = [leaf(packed((0, 7), torch.float32, device_of(backend))) for _ in range(3)]
    spec = make_spec(norm, 7, torch.float32, device_of(backend))
    y = functional.join(xs, spec, backend)
    assert y.shape == (0, 7)
    affine = [p for p in (spec or ())[1:3] if p is not None]
    for gradient in torch.autograd.grad(y.sum(), [*xs, *affine]):
        assert not gradient.count_nonzero()


@pytest.mark.parametrize("norm", ["bare-sum", "layernorm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_term_gets_the_very_same_gradient(backend, norm):
    """One tensor, not a copy for each layer: what makes the direct gradient free."""
    device = device_of(backend)
    xs = [leaf(packed((4, 7), torch.bfloat16, device)) for _ in range(3)]
    seen = []
    taken = [x.view_as(x) for x in xs]
    for x in taken:
        x.register_hook(lambda g: seen.append((g.data_ptr(), g.dtype)))
    spec = make_spec(norm, 7, torch.bfloat16, device)
    y = functional.join(taken, spec, backend)
    y.backward(torch.randn_like(y))
    assert len(seen) == 3 and len(set(seen)) == 1
    assert seen[0][1] == torch.bfloat16


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_terms_survive_in_half_precision(backend):
    """256 + 64 times 0.5 is 288; added up in bfloat16 it would stay 256."""
    device = device_of(backend)
    terms = [torch.full((2, 8), 256.0), *(torch.full((2, 8), 0.5) for _ in range(64))]
    y = functional.join([t.to(device, torch.bfloat16) for t in terms], backend=backend)
    assert (y == 288).all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("backend", COMPILED)
def test_bad_numbers_stay_in_their_row(backend):
    xs = [packed((4, 7), torch.float32, device_of(backend)) for _ in range(3)]
    xs[1][1, 2], xs[2][3, 0] = torch.nan, -torch.inf
    y = functional.join(xs, NormSpec("layer"), backend)
    assert y[[0, 2]].isfinite().all() and y[[1, 3]].isnan().any(-1).all()
    y = functional.join(xs, None, backend)
    assert y[1, 2].isnan() and y[3, 0] == -torch.inf and y.isfinite().sum() == y.numel() - 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_weight_alone(backend):
    """Frozen layers under a trained head norm."""
    device = device_of(backend)
    xs = [packed((4, 7), torch.float32, device) for _ in range(3)]
    spec = make_spec("layernorm", 7, torch.float32, device)
    y = functional.join(xs, spec, backend)
    got = torch.autograd.grad(y.sum(), spec[1:3])
    wide = NormSpec("layer", *map(wide_leaf, spec[1:3]))
    true_y = reference.join([(x.double().cpu(), None) for x in xs], wide)
    assert_all_close(
        got, torch.autograd.grad(true_y.sum(), wide[1:3]), ["weight", "bias"], among=10
    )
