"""The extension's CUDA kernels on a GPU, against the reference in float64 on the same numbers."""

from __future__ import annotations

import math

import pytest
import torch
from layers import LAYOUTS, packed, padded
from tolerances import assert_close

from acn_kernels import NormSpec, _extension, dispatch, functional, reference
from acn_kernels.reference import sum_dtype
from acn_kernels.rows import Rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not _extension.has_cuda_kernels(), reason=f"no CUDA kernels: {_extension.state()}"
    ),
]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Every kernel there is, narrow and wide, with and without whole chunks in a row.
WIDTHS = [1, 7, 64, 256, 257, 512, 768, 1000, 1024, 1025, 4096, 5000, 16376]
EPS = 1e-5


def draw(*shape, dtype=torch.float32, layout=packed):
    return layout(shape, dtype, "cuda")


def wide(x):
    return None if x is None else x.double().cpu()


def specs(kind, width, dtype):
    """(the norm, the same in float64 on the CPU)."""
    if kind == "none":
        return None, None
    weight = 1 + 0.5 * draw(width, dtype=dtype)
    bias = draw(width, dtype=dtype) if kind == "layer" else None
    return NormSpec(kind, weight, bias, EPS), NormSpec(kind, wide(weight), wide(bias), EPS)


def check_step(shape, dtype=torch.float32, kind="layer", alpha=1.0, scale=-0.4, rows=None,
               layout=packed, out_dtype=None):  # fmt: skip
    """Two steps, the first of which only writes y."""
    x, (spec, true_spec) = draw(*shape, dtype=dtype, layout=layout), specs(kind, shape[-1], dtype)
    selection = None if rows is None else Rows(rows).resolve(shape[-2], x.device)
    index = None if rows is None else selection.index.cpu()
    a = None if scale is None else torch.tensor(scale, device="cuda")
    y = true_y = None
    for _ in range(2):
        h, y = functional.accumulate_norm(
            x, y, spec, a, alpha, selection, backend="native", out_dtype=out_dtype
        )
        true_h, true_y = reference.accumulate_norm(
            wide(x), true_y, true_spec, wide(a), alpha, index
        )
        size = 316 * float(x.abs().max()) if shape[-1] == 1 else 4.0
        assert h.dtype == (out_dtype or dtype) and y.dtype == torch.float32
        assert_close(h, true_h, dtype, name="h", among=size, roundings=2)
        assert_close(y, true_y, name="y", among=1.0)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms", "none"])
def test_accumulate_norm(kind, dtype, width):
    check_step((3, 5, width), dtype, kind)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("scale", [None, 0.6])
def test_accumulate_norm_options(scale, alpha, layout):
    check_step((3, 4, 39), torch.bfloat16, alpha=alpha, scale=scale, layout=layout)


@pytest.mark.parametrize("rows", ["first", "last", slice(0, 4, 3), [4, 1]], ids=str)
@pytest.mark.parametrize("width", [7, 64])
def test_accumulate_norm_of_rows(width, rows):
    check_step((2, 3, 5, width), torch.float16, rows=rows, out_dtype=torch.float32)


def test_accumulate_norm_of_many_rows_and_of_none():
    check_step((70_001, 9))
    check_step((0, 5, 64))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms", "none"])
def test_join(kind, dtype, width):
    check_join([draw(3, 5, width, dtype=dtype) for _ in range(6)], kind)


@pytest.mark.parametrize("terms", [1, 3, 64, 65, 200])
@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("kind", ["layer", "none"])
def test_join_of_any_depth(kind, scales, terms):
    check_join([draw(5, 40) for _ in range(terms)], kind, scales)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_join_of_mixed_layouts_and_types(layout):
    xs = [draw(3, 4, 39, dtype=DTYPES[i % 3], layout=layout) for i in range(5)]
    check_join(xs, "rms", True, out_dtype=torch.bfloat16)
    check_join([draw(3, 4, 39), draw(3, 4, 39, layout=layout)], "layer")


def check_join(xs, kind, scales=False, out_dtype=None):
    dtype = out_dtype or xs[0].dtype
    spec, true_spec = specs(kind, xs[0].shape[-1], torch.float32)
    a = torch.randn(len(xs), device="cuda") if scales else None
    given = (None, None, 0.0) if spec is None else (spec.weight, spec.bias, EPS)
    out, y, mean, rstd = torch.ops.acn_cuda.join_forward(xs, a, *given, kind, dtype)
    terms = [(wide(x), None if a is None else wide(a[i])) for i, x in enumerate(xs)]
    truth = reference.join(terms)
    size = 316 * float(truth.abs().max()) if xs[0].shape[-1] == 1 else math.sqrt(len(xs))
    assert_close(out, reference.join(terms, true_spec), dtype, among=size, roundings=2)
    assert out.dtype == dtype and rstd.numel() == (0 if kind == "none" else len(out.flatten(0, -2)))
    if kind != "none":
        assert_close(y, truth, among=math.sqrt(len(xs)))
    if kind == "layer":
        assert_close(mean, truth.flatten(0, -2).mean(-1), among=math.sqrt(len(xs)))


@pytest.mark.parametrize("shape", [(5, 6, 7), (3, 1, 64), (4, 65, 256), (2, 9, 768), (2, 3, 5000)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms", "none"])
def test_exit_head(kind, dtype, shape):
    check_exit(shape, 10, dtype, kind)


@pytest.mark.parametrize("classes", [1, 2, 7, 9, 1000])
@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("layout", [packed, padded])
def test_exit_head_of_many_classes(layout, pooling, classes):
    check_exit((3, 4, 39), classes, torch.float32, "layer", pooling, layout)


def check_exit(shape, classes, dtype, kind, pooling="mean", layout=packed):
    batch, _, width = shape
    spec, true_spec = specs(kind, width, dtype)
    x, y = draw(*shape, dtype=dtype, layout=layout), draw(*shape, layout=layout)
    weight = (draw(classes, width) / math.sqrt(width)).to(dtype)
    bias, scale = draw(classes, dtype=dtype), torch.tensor(-0.7, device="cuda")
    true_logits, true_entropy, _, _ = reference.exit_head(
        wide(x), wide(y), true_spec, wide(weight), wide(bias), 0.5, wide(scale), pooling
    )
    threshold = float(true_entropy.median()) + 1e-3
    got = functional.exit_head(x, y, spec, weight, bias, threshold, scale, pooling, "native")
    assert_close(got.logits, true_logits, dtype, name="logits", roundings=3, among=4.0)
    p = got.logits.double().cpu().softmax(-1)
    truth = -torch.where(p == 0, 0, p * p.log()).sum(-1)
    assert_close(got.entropy, truth, sum_dtype(dtype), name="entropy", among=8.0)
    assert torch.equal(got.stays, ~(got.entropy < threshold))
    assert int(got.live) == int(got.stays.sum()) and got.stays.shape == (batch,)


def test_what_is_no_number_never_leaves():
    x = draw(4, 3, 8)
    x[1, 0, 0], x[2, 1, 1] = torch.nan, torch.inf
    head = draw(5, 8)
    got = functional.exit_head(x, None, None, head, None, math.inf, backend="native")
    assert got.stays.tolist() == [False, True, True, False] and int(got.live) == 2
    bias = torch.tensor([-math.inf, 0.0, -math.inf, 1.0, 2.0], device="cuda")
    got = functional.exit_head(x[:1], None, None, head, bias, 0.0, backend="native")
    truth = functional.entropy(got.logits)
    assert_close(got.entropy, truth.double().cpu(), torch.float32)


@pytest.mark.parametrize("batch", [0, 1, 2, 37, 300, 5000])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_compact(share, batch):
    stays = torch.rand(batch, device="cuda") < share
    tensors = [
        draw(batch, 3, 7, dtype=torch.bfloat16), draw(batch, 65), draw(batch, 8, 128).half(),
        torch.randperm(batch, device="cuda"), draw(batch, 5)[:, :3], draw(batch, 0),
        draw(batch, 13) > 0,
    ]  # fmt: skip
    expected, count = reference.compact(stays, tensors)
    for kept in (None, int(count), int(count) // 2):
        outs, got = functional.compact(stays, tensors, kept, "native")
        assert int(got) == int(count)
        for out, truth in zip(outs, expected, strict=True):
            room = len(stays) if kept is None else kept
            assert len(out) == room and torch.equal(out[: len(truth)], truth[:room])


def test_results_are_the_same_in_every_run():
    x, y = draw(64, 50, 768, dtype=torch.bfloat16), draw(64, 50, 768)
    head = draw(100, 768, dtype=torch.bfloat16)
    runs = [
        functional.exit_head(x, y, NormSpec("layer"), head, None, 1.0, backend="native")
        for _ in range(3)
    ]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_without_triton_they_are_what_inference_takes(monkeypatch):
    monkeypatch.setattr(dispatch, "_triton_obstacle", lambda: "Triton is not installed")
    choice = dispatch.choose("auto", draw(2, 8), "accumulate_norm")
    assert choice.backend == "native" and "CUDA kernel" in choice.reason
    assert dispatch.choose("auto", draw(2, 8)).backend == "torch"
    assert dispatch.choose("auto", draw(2, 8).double(), "exit_head").backend == "torch"
    assert dispatch.choose("auto", draw(2, 20_000), "join_forward").backend == "torch"


def test_what_would_be_read_out_of_bounds_is_refused():
    x, ops = draw(2, 3, 8), torch.ops.acn_cuda
    plain = (1.0, None, None, None, EPS, "layer", torch.float32)
    with pytest.raises(ValueError, match="y is"):
        ops.accumulate_norm(x, draw(2, 2, 8), True, None, *plain)
    with pytest.raises(ValueError, match="y is on cpu"):
        ops.accumulate_norm(x, torch.zeros(2, 3, 8), True, None, *plain)
    with pytest.raises(ValueError, match="xs has shape"):
        ops.join_forward([x, draw(2, 4, 8)], None, None, None, 0.0, "none", x.dtype)
    with pytest.raises(TypeError, match="fp32, bf16 and fp16"):
        ops.join_forward([x.double()], None, None, None, 0.0, "none", torch.float32)
    with pytest.raises(ValueError, match="up to 16376"):
        ops.join_forward([draw(2, 17_000)], None, None, None, 0.0, "none", torch.float32)


def test_the_current_stream_is_the_one():
    x = draw(256, 1024)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late = x * 2
        h, _ = functional.accumulate_norm(late, backend="native")
    stream.synchronize()
    assert torch.equal(h, x * 2)
