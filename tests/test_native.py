"""The native operators themselves: numbers, threads, conversions, bounds, registration."""

from __future__ import annotations

import pytest
import torch
from layers import LAYOUTS, expanded, leaf, packed, padded
from tolerances import TOLERANCES, assert_all_close, assert_close

from acn_kernels import NormSpec, _extension, functional, native_ops, reference, torch_ops
from acn_kernels.reference import sum_dtype
from acn_kernels.rows import Rows

if _extension.module() is None:
    pytest.skip(f"the compiled extension is {_extension.state()}", allow_module_level=True)

OPS = torch.ops.acn_native
EPS = 1e-5
HALF = [torch.float16, torch.bfloat16]
WIDTHS = [1, 7, 64, 768, 1000]
AFFINES = [(), ("weight",), ("bias",), ("weight", "bias")]


def draw(*shape, dtype=torch.float32):
    return packed(shape, dtype, "cpu")


def parameters(width, affine, dtype=torch.float32):
    weight = 1 + 0.5 * draw(width, dtype=dtype) if "weight" in affine else None
    return weight, draw(width, dtype=dtype) if "bias" in affine else None


def wide(tensor):
    return None if tensor is None else tensor.double()


def empty_if_none(tensor):
    return torch.empty(0) if tensor is None else tensor


def largest(sizes):
    return float(sizes.max()) if sizes.numel() else 0.0


def check_fork(x, weight, bias, kind, dh, g=None, scale=None, rows=None):
    """Both operators against PyTorch's own kernels in float64 on the same numbers."""
    width, wide_type = x.shape[-1], sum_dtype(x.dtype)
    selection = None if rows is None else Rows(rows).resolve(x.shape[-2], x.device)
    index, row_map = (None, None) if selection is None else selection
    h, mean, rstd = OPS.fork_forward(x, weight, bias, EPS, kind)
    flat = x.double().reshape(-1, width)
    true_mean = flat.mean(-1, True)
    centred = flat - true_mean if kind == "layer" else flat
    true_rstd = (centred.square().mean(-1, True) + EPS).rsqrt()
    assert_close(h, reference.norm(x.double(), NormSpec(kind, wide(weight), wide(bias), EPS)))
    assert h.dtype == x.dtype and mean.dtype == rstd.dtype == wide_type
    assert_close(mean, true_mean[:, 0] if kind == "layer" else torch.empty(0), among=1)
    assert_close(rstd, true_rstd[:, 0])

    got = OPS.fork_backward(dh, g, x, weight, bias, mean, rstd, scale, row_map, kind)
    if kind == "layer":
        _, true_mean, true_rstd = torch_ops.fork_forward(
            x.double(), wide(weight), wide(bias), EPS, kind
        )
    truth = torch_ops.fork_backward(
        dh.double(), wide(g), x.double(), wide(weight), wide(bias), true_mean, true_rstd,
        wide(scale), index, EPS, kind,
    )  # fmt: skip
    dtypes = [t.dtype for t in (x, *map(empty_if_none, (weight, bias, scale)))]
    # What dx, dweight, dbias and dscale are small differences of: all but dbias vanish at D = 1.
    terms, through = dh.double().reshape(-1, width).abs(), true_rstd.reshape(-1, 1)
    sizes = [
        largest(terms * through),
        largest((terms * flat.abs() * through).sum(0)),
        largest(terms.sum(0)),
        0.0 if g is None else float(g.double().abs().sum()),
    ]
    for i, name in enumerate(("dx", "dweight", "dbias", "dscale")):
        assert got[i].is_contiguous()
        if truth[i] is None:
            assert got[i].numel() == 0, name
            continue
        assert got[i].dtype == dtypes[i], name
        assert_close(got[i], truth[i], dtype=x.dtype, among=sizes[i], name=name)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_fork(kind, dtype, width):
    x, dh, g = (draw(3, 5, width, dtype=dtype) for _ in range(3))
    affine = ("weight", "bias") if kind == "layer" else ("weight",)
    scale = torch.tensor(0.7, dtype=sum_dtype(dtype))
    check_fork(x, *parameters(width, affine, dtype), kind, dh, g, scale)


@pytest.mark.parametrize("rows", [None, "first", "last", slice(1, None, 2), [3, 0]], ids=str)
@pytest.mark.parametrize("scale", [None, -0.4])
@pytest.mark.parametrize("affine", AFFINES, ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_fork_with_every_option(kind, affine, scale, rows):
    x, dh = draw(2, 5, 7), draw(2, 5, 7)
    kept = 5 if rows is None else len(Rows(rows).positions(5))
    a = None if scale is None else torch.tensor(scale)
    check_fork(x, *parameters(7, affine), kind, dh, draw(2, kept, 7), a, rows)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_fork_without_direct_gradient(kind):
    check_fork(draw(2, 5, 7), *parameters(7, ("weight",)), kind, draw(2, 5, 7))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("of", ["x", "dh", "g"])
def test_fork_layouts(of, layout):
    tensors = {name: draw(3, 4, 7) for name in ("x", "dh", "g")}
    tensors[of] = layout((3, 4, 7), torch.float32, "cpu")
    check_fork(weight=draw(7), bias=draw(7), kind="layer", **tensors)


def test_fork_mixes_dtypes():
    """As under autocast: the norm's parameters, or the incoming gradient, in another precision."""
    x, dh, g = (draw(4, 5, 64, dtype=torch.bfloat16) for _ in range(3))
    check_fork(x, draw(64), draw(64), "layer", dh, g)
    check_fork(x.float(), draw(64), draw(64), "layer", dh, g.half())


@pytest.mark.parametrize("rows", [33, 4099])
def test_fork_adds_blocks_of_rows(rows):
    """One row into a second block, and blocks of uneven length."""
    x, dh, g = draw(rows, 3), draw(rows, 3), draw(rows, 3)
    check_fork(x, draw(3), draw(3), "layer", dh, g, torch.tensor(0.5))


def test_fork_without_rows():
    x = draw(0, 4, 7)
    check_fork(x, draw(7), draw(7), "layer", x, x, torch.tensor(0.5))


def check_join(xs, scales=None, kind="none", affine=(), dtype=None):
    width, dtype = xs[0].shape[-1], dtype or xs[0].dtype
    weight, bias = parameters(width, affine)
    out, y, mean, rstd = OPS.join_forward(xs, scales, weight, bias, EPS, kind, dtype)
    terms = [(x.double(), None if scales is None else scales[i]) for i, x in enumerate(xs)]
    spec = NormSpec(kind, wide(weight), wide(bias), EPS)
    assert out.dtype == dtype
    assert_close(out, reference.join(terms, None if kind == "none" else spec), among=1, roundings=2)
    rows = xs[0].numel() // width
    assert mean.shape == (rows if kind == "layer" else 0,)
    assert rstd.shape == (rows if kind != "none" else 0,)
    if kind == "none":
        assert y.shape == (0,)
    else:
        assert y.dtype == sum_dtype(xs[0].dtype)
        assert_close(y, reference.join(terms), among=1)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", ["none", "layer", "rms"])
def test_join(kind, dtype, width):
    check_join([draw(3, 5, width, dtype=dtype) for _ in range(6)], None, kind)


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5, 8, 13, 101])
@pytest.mark.parametrize("affine", AFFINES, ids=str)
def test_join_of_any_depth(terms, affine):
    check_join([draw(5, 7) for _ in range(terms)], draw(terms), "layer", affine)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_join_layouts(layout):
    xs = [draw(3, 4, 7), layout((3, 4, 7), torch.float32, "cpu"), draw(3, 4, 7)]
    check_join(xs, draw(3), "layer")


def test_join_mixes_dtypes():
    xs = [draw(3, 64, dtype=dtype) for dtype in (torch.float32, *HALF, torch.float32, *HALF)]
    check_join(xs, draw(6), "rms", ("weight",), torch.bfloat16)


def test_join_of_no_rows():
    check_join([draw(0, 7)] * 2, None, "layer")


def check_accumulate(x, kind="none", affine=(), scale=None, alpha=1.0, rows=None, dtype=None):
    """Two steps, the first of which only writes y, whose memory holds NaN."""
    weight, bias = parameters(x.shape[-1], affine)
    spec = None if kind == "none" else NormSpec(kind, wide(weight), wide(bias), EPS)
    selection = None if rows is None else Rows(rows).resolve(x.shape[-2], x.device)
    index, row_map = (None, None) if selection is None else selection
    held = x if index is None else x.index_select(-2, index)
    y = torch.full(held.shape, torch.nan, dtype=sum_dtype(x.dtype))
    true_y = None
    for first in (True, False):
        h = OPS.accumulate_norm(
            x, y, first, scale, alpha, row_map, weight, bias, EPS, kind, dtype or x.dtype
        )
        true_h, true_y = reference.accumulate_norm(
            x.double(), true_y, spec, wide(scale), alpha, index
        )
        assert h.dtype == (dtype or x.dtype)
        assert_close(h, true_h, None if h.dtype in HALF else x.dtype, among=1, roundings=2)
        assert_close(y, true_y, among=1, name="y")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", ["none", "layer", "rms"])
def test_accumulate_norm(kind, dtype, width):
    check_accumulate(draw(3, 5, width, dtype=dtype), kind, ("weight", "bias"))


@pytest.mark.parametrize("scale", [None, -0.4])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("affine", AFFINES, ids=str)
def test_accumulate_norm_with_every_option(affine, alpha, scale):
    a = None if scale is None else torch.tensor(scale)
    check_accumulate(draw(2, 5, 7), "layer", affine, a, alpha, dtype=torch.float64)


@pytest.mark.parametrize("rows", ["first", "last", slice(1, None, 2), [3, 0]], ids=str)
def test_accumulate_norm_of_rows(rows):
    check_accumulate(draw(2, 3, 5, 7), "rms", rows=rows, scale=torch.tensor(2.0))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_accumulate_norm_layouts(layout):
    check_accumulate(layout((3, 4, 7), torch.float32, "cpu"), "layer", alpha=0.5)


def test_accumulate_norm_of_no_rows():
    check_accumulate(draw(0, 3, 7), "layer", rows="first")


def test_rows_with_gaps_are_read_in_place():
    x = padded((3, 4, 7), torch.float32, "cpu")[:, 0]
    assert native_ops.as_rows(x).data_ptr() == x.data_ptr()
    row = expanded((3, 7), torch.float32, "cpu")
    assert native_ops.as_rows(row).data_ptr() == row.data_ptr()


def every_half(dtype):
    """All 65536 numbers of a half-precision type, in rows of 13, which are no whole vectors."""
    return (torch.arange(65536 + 10) % 65536).to(torch.uint16).view(dtype).reshape(-1, 13)


def random_bits():
    """Floats of every magnitude, and neighbours of what rounds to the halves and ties of fp16."""
    bits = torch.randint(-(2**31), 2**31, (70_000,), dtype=torch.int64).to(torch.int32)
    near = every_half(torch.float16).float().flatten().view(torch.int32)
    ties = torch.cat([near + d + half for d in (-1, 0, 1) for half in (0, 1 << 12)])
    return torch.cat([bits, ties]).view(torch.float32).reshape(-1, 1)


def identity(x, out_dtype):
    y = torch.empty(x.shape, dtype=sum_dtype(x.dtype))
    return OPS.accumulate_norm(x, y, True, None, 1.0, None, None, None, EPS, "none", out_dtype)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_widening_is_exact(dtype):
    x = every_half(dtype)
    exact = dict(rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(identity(x, torch.float32), x.float(), **exact)
    zeros = torch.zeros(x.shape, dtype=torch.float64)
    total, *_ = OPS.join_forward([zeros, x], None, None, None, EPS, "none", torch.float64)
    torch.testing.assert_close(total, x.double(), **exact)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_narrowing_rounds_to_nearest_even(dtype):
    x = random_bits()
    for width in (1, 10):  # with and without whole vectors in a row
        rows = x[: len(x) // width * width].reshape(-1, width)
        truth = rows.to(dtype)
        for source in (rows, rows.double()):
            torch.testing.assert_close(
                identity(source, dtype), truth, rtol=0, atol=0, equal_nan=True
            )


def all_results(x, dh, g, weight, bias):
    h, mean, rstd = OPS.fork_forward(x, weight, bias, EPS, "layer")
    y = g.clone()
    u = OPS.accumulate_norm(x, y, False, None, 0.5, None, weight, bias, EPS, "layer", x.dtype)
    return (
        h, mean, rstd, y, u,
        *OPS.fork_backward(
            dh, g, x, weight, bias, mean, rstd, torch.tensor(0.3), None, "layer"
        ),
        *OPS.join_forward([x, dh, g], None, weight, bias, EPS, "layer", x.dtype),
    )  # fmt: skip


def test_results_do_not_depend_on_threads():
    """Bit for bit, call after call and for one thread and two."""
    inputs = draw(1031, 70), draw(1031, 70), draw(1031, 70), draw(70), draw(70)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 2, 3, 1):
            torch.set_num_threads(count)
            results.append(all_results(*inputs))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_numbers_stay_in_their_row(bad):
    x, dh, g = draw(4, 40), draw(4, 40), draw(4, 40)
    x[1, 39] = bad
    results = all_results(x, dh, g, draw(40), draw(40))
    h, _, rstd, y, u, dx, dweight, _, dscale, out, *_ = results
    for rows in (h, u, dx, out):
        assert rows[1].isnan().all() and rows[[0, 2, 3]].isfinite().all()
    assert not y[1, 39].isfinite() and rstd[[0, 2, 3]].isfinite().all()
    assert dweight.isnan().all() and not dscale.isfinite()


def test_bad_numbers_in_rows_that_y_lacks_leave_the_scale_alone():
    x, dh = draw(2, 3, 7), draw(2, 3, 7)
    x[0, 1] = torch.inf
    row_map = Rows("first").resolve(3, x.device).row_map
    _, mean, rstd = OPS.fork_forward(x, None, None, EPS, "layer")
    *_, dscale = OPS.fork_backward(
        dh, draw(2, 1, 7), x, None, None, mean, rstd, torch.tensor(1.0), row_map, "layer"
    )
    assert dscale.isfinite()


def test_wide_rows_and_far_means():
    x = draw(3, 20_000).add_(1000)
    h, *_ = OPS.fork_forward(x, None, None, EPS, "layer")
    assert_close(h, reference.norm(x.double(), NormSpec("layer")), among=100)


def test_what_would_be_read_out_of_bounds_is_refused():
    x, stats = draw(2, 3, 7), draw(6)
    row_map = torch.tensor([0, 1, 2], dtype=torch.int32)
    right = dict.fromkeys(("g", "weight", "bias", "scale", "row_map"))
    right.update(dh=x, x=x, mean=stats, rstd=stats, kind="layer")
    OPS.fork_backward(**right)
    for wrong, match in (
        ({"dh": draw(2, 3, 6)}, "dh"),
        ({"weight": draw(6)}, "weight"),
        ({"rstd": draw(5)}, "rstd"),
        ({"g": draw(2, 2, 7)}, "g has shape"),
        ({"g": draw(2, 2, 7), "row_map": row_map}, "row_map"),
        ({"g": draw(2, 3, 7), "row_map": row_map.long()}, "row_map"),
        ({"kind": "batch", "mean": draw(0)}, "batch"),
    ):
        with pytest.raises(ValueError, match=match):
            OPS.fork_backward(**right | wrong)
    with pytest.raises(ValueError, match="xs"):
        OPS.join_forward([x, draw(2, 3, 8)], None, None, None, EPS, "none", x.dtype)
    with pytest.raises(ValueError, match="y"):
        part = draw(2, 2, 7)
        OPS.accumulate_norm(x, part, True, None, 1.0, None, None, None, EPS, "none", x.dtype)


CALLS = {
    "fork_forward": lambda x, p, s, m: (x, p, p, EPS, "layer"),
    "fork_backward": lambda x, p, s, m: (
        x + 1, x[:, :2], x, p, p, draw(6), draw(6), s, m, "layer",
    ),
    "join_forward": lambda x, p, s, m: ([x, x + 1], draw(2), p, p, EPS, "layer", torch.bfloat16),
    "accumulate_norm": lambda x, p, s, m: (
        x, draw(2, 2, 7), False, s, 1.0, m, p, None, EPS, "rms", torch.float64,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    row_map = Rows([2, 0]).resolve(3, torch.device("cpu")).row_map
    arguments = CALLS[name](draw(2, 3, 7), draw(7), torch.tensor(0.5), row_map)
    torch.library.opcheck(getattr(OPS, name).default, arguments)


@pytest.mark.parametrize("name", CALLS)
def test_opcheck_of_what_is_left_out(name):
    arguments = {
        "fork_forward": (draw(4, 7), None, None, EPS, "rms"),
        "fork_backward": (
            draw(4, 7), None, draw(4, 7), None, None, draw(0), draw(4), None, None, "rms",
        ),
        "join_forward": ([draw(4, 7)], None, None, None, EPS, "none", torch.float32),
        "accumulate_norm": (
            draw(4, 7), draw(4, 7), True, None, 0.5, None, None, None, EPS, "none", torch.float32,
        ),
    }[name]  # fmt: skip
    torch.library.opcheck(getattr(OPS, name).default, arguments)


def test_gradients_through_the_public_functions():
    x, weight = leaf(draw(2, 5, 7)), leaf(draw(7))
    spec = NormSpec("layer", weight)
    h, term = functional.fork(x, spec, backend="native")
    out = functional.join([term, h], spec, backend="native")
    wide_x, wide_weight = leaf(x.double()), leaf(weight.double())
    wide_spec = NormSpec("layer", wide_weight)
    true_h, true_term = reference.fork(wide_x, wide_spec)
    truth = reference.join([true_term, (true_h, None)], wide_spec)
    incoming = draw(2, 5, 7)
    assert_all_close(
        torch.autograd.grad(out, (x, weight), incoming),
        torch.autograd.grad(truth, (wide_x, wide_weight), incoming.double()),
        ("dx", "dweight"), among=float(incoming.abs().sum()),
    )  # fmt: skip


def test_gradients_of_gradients_are_refused():
    x = leaf(draw(3, 7))
    h, term = functional.fork(x, NormSpec("layer"), backend="native")
    with pytest.raises(RuntimeError, match="backend='torch'"):
        torch.autograd.grad((h.square() + term.x).sum(), x, create_graph=True)


def test_built_for_this_torch():
    assert _extension.module().torch_version == torch.__version__.split("+")[0]
