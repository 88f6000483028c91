"""The numbers of the CUDA kernels without a GPU: the same sources, run thread by thread on the CPU.

Every tensor lies between guards: a stray read meets NaN, a stray write shows.
"""

from __future__ import annotations

import ctypes
import functools
import math

import cuda_on_cpu as cuda
import pytest
import torch
from tolerances import assert_close

from acn_kernels import NormSpec, functional, reference
from acn_kernels.inference.criteria import CRITERIA, certainty
from acn_kernels.reference import sum_dtype
from acn_kernels.rows import Rows

pytestmark = pytest.mark.skipif(cuda.headers() is None, reason="there is no nvcc here")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WIDTHS = [1, 7, 64, 257, 1000, 1025, 5000]  # every shape of block, with and without whole chunks
GUARD = 64
EPS = 1e-5


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return cuda.build(tmp_path_factory.mktemp("cuda"))


class Guarded:
    """Tensors on 16-byte boundaries, or ``off`` elements past one, with NaN on both sides."""

    def __init__(self) -> None:
        self.held = []

    def empty(self, *shape, dtype=torch.float32, off=0):
        size = math.prod(shape)
        whole = torch.full((size + 2 * GUARD + 16,), float("nan")).to(dtype)
        first = GUARD - whole.data_ptr() % 16 // whole.element_size() + off
        inside = slice(first, first + size)
        self.held.append((whole, bits(whole).clone(), inside))
        return whole[inside].view(shape)

    def draw(self, *shape, dtype=torch.float32, off=0):
        return self.empty(*shape, dtype=dtype, off=off).copy_(torch.randn(shape))

    def intact(self) -> None:
        for whole, before, inside in self.held:
            before[inside] = bits(whole)[inside]
            assert torch.equal(bits(whole), before), "something wrote past its tensor"


def bits(x):
    return x.view(torch.int16 if x.element_size() == 2 else torch.int32)


@pytest.fixture
def memory():
    guarded = Guarded()
    yield guarded
    guarded.intact()


def norm_of(memory, kind, width, dtype):
    """(weight, bias, the norm in float64)."""
    if kind == "none":
        return None, None, None
    weight = memory.draw(width, dtype=dtype)
    bias = memory.draw(width, dtype=dtype) if kind == "layer" else None
    return (
        weight,
        bias,
        NormSpec(kind, weight.double(), None if bias is None else bias.double(), EPS),
    )


def accumulate(library, memory, x, y, first, kind, scale=None, alpha=1.0, selection=None,
               dtype=torch.float32):  # fmt: skip
    flat = x.reshape(-1, x.shape[-1]) if x.dim() != 2 else x
    weight, bias, spec = norm_of(memory, kind, x.shape[-1], dtype)
    h = memory.empty(*x.shape, dtype=dtype)
    place = cuda.RowMap(None, 1, 1)
    if selection is not None:
        place = cuda.RowMap(selection.row_map.data_ptr(), x.shape[-2], y.shape[-2])
    given = cuda.AccumulateNorm(
        len(flat), x.shape[-1], cuda.rows(flat), y.data_ptr(), place, first, cuda.address(scale),
        alpha, cuda.out_rows(h), cuda.vector(weight), cuda.vector(bias), EPS, cuda.NORMS[kind],
    )  # fmt: skip
    assert library.run_accumulate_norm(ctypes.byref(given)) == 0
    return h, spec


def check_step(library, memory, x, kind="layer", scale=None, alpha=1.0, rows=None,
               out_dtype=None):  # fmt: skip
    selection = None if rows is None else Rows(rows).resolve(x.shape[-2], x.device)
    index = None if rows is None else selection.index
    held = x.shape if rows is None else (*x.shape[:-2], len(index), x.shape[-1])
    y, true_y, a = memory.empty(*held), None, None
    if scale is not None:
        a = memory.empty(1).fill_(scale)
    for first in (True, False):
        dtype = out_dtype or x.dtype
        h, spec = accumulate(library, memory, x, y, first, kind, a, alpha, selection, dtype)
        true_h, true_y = reference.accumulate_norm(x.double(), true_y, spec, scale, alpha, index)
        size = 316 * float(x.double().abs().max()) if x.shape[-1] == 1 else 4.0
        assert_close(h, true_h, x.dtype, name="h", among=size, roundings=2)
        assert_close(y, true_y, name="y", among=4.0)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_norm_alone(library, memory, dtype, width):
    """Where there is no sum: of what a device's engine has between attention and MLP."""
    x, h = memory.draw(5, width, dtype=dtype), memory.empty(5, width, dtype=dtype)
    weight, bias, spec = norm_of(memory, "layer", width, dtype)
    given = cuda.AccumulateNorm(
        5, width, cuda.rows(x), alpha=1.0, h=cuda.out_rows(h), weight=cuda.vector(weight),
        bias=cuda.vector(bias), eps=EPS, norm=cuda.NORMS["layer"],
    )  # fmt: skip
    assert library.run_accumulate_norm(ctypes.byref(given)) == 0
    size = 316 * float(x.double().abs().max()) if width == 1 else 4.0
    assert_close(h, reference.norm(x.double(), spec), dtype, name="h", among=size, roundings=2)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms", "none"])
def test_accumulate_norm(library, memory, kind, dtype, width):
    check_step(library, memory, memory.draw(3, width, dtype=dtype), kind)


@pytest.mark.parametrize("off", [0, 1, 5])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("scale", [None, -0.6])
def test_accumulate_norm_options(library, memory, scale, alpha, off):
    x = memory.draw(7, 41, dtype=torch.bfloat16, off=off)
    check_step(library, memory, x, "layer", scale, alpha, out_dtype=torch.float32)


@pytest.mark.parametrize("layout", ["padded", "expanded"])
def test_accumulate_norm_of_rows_with_gaps(library, memory, layout):
    x = memory.draw(5, 48, dtype=torch.float16)
    x = x[:, 3:42] if layout == "padded" else x[:1, :39].expand(5, 39)
    check_step(library, memory, x, "rms", 0.5, 0.5)


@pytest.mark.parametrize("rows", ["first", "last", slice(0, 4, 3), [4, 1]], ids=str)
@pytest.mark.parametrize("width", [7, 64])
def test_accumulate_norm_of_some_rows(library, memory, width, rows):
    check_step(library, memory, memory.draw(2, 5, width), "layer", 1.5, rows=rows)


@pytest.mark.parametrize("off", [0, 3])
@pytest.mark.parametrize("shape", [(2, 5, 64), (3, 1, 7), (1, 300, 9), (0, 4, 8)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_gelu_along_tokens(library, memory, dtype, shape, off):
    z, bias = memory.draw(*shape, dtype=dtype, off=off), memory.draw(shape[1], dtype=dtype)
    z.mul_(3)  # to where the GELU is a line
    truth = torch.nn.functional.gelu(z.double() + bias.double()[:, None])
    given = cuda.BiasGelu(*shape, cuda.out_rows(z), cuda.vector(bias))
    assert library.run_bias_gelu(ctypes.byref(given)) == 0
    assert_close(z, truth, dtype)


@pytest.mark.parametrize("off", [0, 3])
@pytest.mark.parametrize("shape", [(2, 5, 64), (3, 2, 7), (1, 300, 257), (2, 1, 5000), (0, 4, 8)],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_norm_along_tokens(library, memory, dtype, shape, off):
    z, bias = memory.draw(*shape, dtype=dtype, off=off), memory.draw(shape[1], dtype=dtype)
    weight, shift, spec = norm_of(memory, "layer", shape[2], dtype)
    bad = shape[1] > 1
    if bad:
        bias[1] = torch.nan  # which no mean takes away
    truth = reference.norm(z.double() + bias.double()[:, None], spec)
    given = cuda.BiasNorm(
        *shape, cuda.out_rows(z), cuda.vector(bias), cuda.vector(weight), cuda.vector(shift), EPS
    )
    assert library.run_bias_norm(ctypes.byref(given)) == 0
    if bad:
        assert z[:, 1].isnan().all() and not z[:, 0].isnan().any()
        z, truth = z[:, ::2], truth[:, ::2]
    assert_close(z, truth, dtype, among=8)


def check_join(library, memory, xs, kind, scales=None, dtype=None):
    count, width = xs[0].shape
    dtype = dtype or xs[0].dtype
    weight, bias, spec = norm_of(memory, kind, width, torch.float32)
    out, y = memory.empty(count, width, dtype=dtype), memory.empty(count, width)
    mean, rstd = memory.empty(count), memory.empty(count)
    needs_y = kind != "none" or len(xs) > 64
    sources = (cuda.Rows * len(xs))(*map(cuda.rows, xs))
    given = cuda.Join(
        count, width, sources, len(xs), cuda.address(scales), y.data_ptr() if needs_y else None,
        cuda.out_rows(out), mean.data_ptr(), rstd.data_ptr(), cuda.vector(weight),
        cuda.vector(bias), EPS, cuda.NORMS[kind],
    )  # fmt: skip
    assert library.run_join(ctypes.byref(given)) == 0
    terms = [(x.double(), None if scales is None else scales[i]) for i, x in enumerate(xs)]
    truth, among = reference.join(terms), 4 * math.sqrt(len(xs))
    size = 316 * float(truth.abs().max()) if width == 1 else 4.0
    assert_close(out, reference.join(terms, spec), dtype, among=max(size, among), roundings=2)
    if needs_y:
        assert_close(y, truth, among=among)
    if kind == "layer":
        assert_close(mean, truth.mean(-1), among=among)
    if kind != "none":
        centred = truth - truth.mean(-1, True) if kind == "layer" else truth
        assert_close(rstd, (centred.square().mean(-1) + EPS).rsqrt(), roundings=4)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms", "none"])
def test_join(library, memory, kind, dtype, width):
    check_join(library, memory, [memory.draw(3, width, dtype=dtype) for _ in range(3)], kind)


@pytest.mark.parametrize("terms", [1, 4, 5, 64, 65, 130])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", ["layer", "none"])
def test_join_of_any_depth(library, memory, kind, scaled, terms):
    xs = [memory.draw(2, 23, off=i % 3) for i in range(terms)]
    check_join(library, memory, xs, kind, memory.draw(terms) if scaled else None)


def test_join_of_mixed_types(library, memory):
    xs = [memory.draw(5, 39, dtype=DTYPES[i % 3], off=i % 2) for i in range(7)]
    check_join(library, memory, xs, "rms", memory.draw(7), torch.bfloat16)


def exit_at_once(library, given, *_):
    assert library.run_exit_head(ctypes.byref(given)) == 0


def exit_in_parts(library, given, memory, weight, bias):
    """The pooling, a product of somebody else's, the decision."""
    pooled = memory.empty(given.samples, given.width, dtype=weight.dtype)
    assert library.run_exit_pool(ctypes.byref(given), ctypes.c_void_p(pooled.data_ptr())) == 0
    product = pooled.double() @ weight.double().T + (0 if bias is None else bias.double())
    logits = memory.empty(*product.shape, dtype=weight.dtype).copy_(product)
    assert library.run_exit_decision(ctypes.byref(given), ctypes.c_void_p(logits.data_ptr())) == 0


EXITS = [exit_at_once, exit_in_parts]


def run_exit(
    library, memory, x, y, kind, weight, bias, threshold, scale=None, first=False,
    criterion="entropy", exit_of=exit_at_once,
):  # fmt: skip
    samples, tokens, width = x.shape
    norm_weight, norm_bias, spec = norm_of(memory, kind, width, x.dtype)
    logits = memory.empty(samples, len(weight), dtype=x.dtype)
    entropy = memory.empty(samples)
    stays = torch.zeros(samples + 2, dtype=torch.bool)
    live = torch.full((1,), 99, dtype=torch.int32)  # to which is added
    given = cuda.ExitHead(
        samples, 1 if first else tokens, width, len(weight), cuda.DTYPES[x.dtype],
        cuda.Tokens(x.data_ptr(), *x.stride()[:2]),
        cuda.Tokens() if y is None else cuda.Tokens(y.data_ptr(), *y.stride()[:2]),
        cuda.address(scale), cuda.vector(norm_weight), cuda.vector(norm_bias), EPS,
        cuda.NORMS[kind], weight.data_ptr(), cuda.address(bias), cuda.CRITERIA[criterion],
        threshold, logits.data_ptr(), entropy.data_ptr(), stays[1:].data_ptr(), live.data_ptr(),
    )  # fmt: skip
    exit_of(library, given, memory, weight, bias)
    assert not stays[0] and not stays[-1]
    stays = stays[1:-1]
    leaves = entropy < threshold if criterion == "entropy" else entropy > threshold
    assert torch.equal(stays, ~leaves) and int(live) == 99 + int(stays.sum())
    return logits, entropy, stays, spec


@pytest.mark.parametrize("shape", [(3, 11, 7), (2, 1, 64), (2, 9, 300), (1, 3, 1100)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms", "none"])
@pytest.mark.parametrize("exit_of", EXITS)
def test_exit_head(library, memory, exit_of, kind, dtype, shape):
    check_exit(library, memory, exit_of, shape, 10, dtype, kind)


@pytest.mark.parametrize("classes", [1, 2, 7, 9, 100, 300])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("exit_of", EXITS)
def test_exit_head_of_many_classes(library, memory, exit_of, first, classes):
    check_exit(library, memory, exit_of, (3, 4, 39), classes, torch.float32, "layer", first, off=1)


def check_exit(library, memory, exit_of, shape, classes, dtype, kind, first=False, off=0):
    x, y = memory.draw(*shape, dtype=dtype, off=off), memory.draw(*shape)
    weight = memory.empty(classes, shape[2], dtype=dtype)
    weight.copy_(torch.randn(weight.shape) / math.sqrt(shape[2]))
    bias, scale = memory.draw(classes, dtype=dtype), memory.empty(1).fill_(-0.7)
    logits, entropy, _, spec = run_exit(
        library, memory, x, y, kind, weight, bias, 1.5, scale, first, exit_of=exit_of
    )
    true_logits, _, _, _ = reference.exit_head(
        x.double(), y.double(), spec, weight.double(), bias.double(), 1.5, -0.7,
        "first" if first else "mean",
    )  # fmt: skip
    assert_close(logits, true_logits, dtype, name="logits", roundings=3, among=8.0)
    p = logits.double().softmax(-1)
    truth = -torch.where(p == 0, 0, p * p.log()).sum(-1)
    assert_close(entropy, truth, sum_dtype(dtype), name="entropy", among=8.0)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("classes", [1, 2, 9, 70])
@pytest.mark.parametrize("exit_of", EXITS)
def test_exit_head_decides_on_every_criterion(library, memory, exit_of, classes, criterion):
    x, y, weight = memory.draw(6, 3, 24), memory.draw(6, 3, 24), memory.draw(classes, 24)
    run = functools.partial(run_exit, library, memory, x, y, "layer", weight, None, exit_of=exit_of)
    logits, value, _, _ = run(0.5, criterion=criterion)
    assert_close(value, certainty(logits.double(), criterion), torch.float32, among=8.0)
    weight[1:2] = weight[:1]  # two classes alike
    logits, value, _, _ = run(0.5, criterion=criterion)
    assert_close(value, certainty(logits.double(), criterion), torch.float32, among=8.0)


@pytest.mark.parametrize("exit_of", EXITS)
def test_exit_head_of_what_is_left_of_a_batch(library, memory, exit_of):
    """Rows of samples [4, 0, 9, 2], in which -1 is nobody's; other samples are left alone."""
    samples, classes = [4, -1, 0, 9, -1, 2], 5
    x, y, weight = memory.draw(6, 3, 8), memory.draw(6, 3, 8), memory.draw(classes, 8)
    expected, entropy, _, _ = run_exit(
        library, memory, x, y, "none", weight, None, 0.0, exit_of=exit_of
    )
    live_rows = [row for row, sample in enumerate(samples) if sample >= 0]
    threshold = entropy[live_rows].sort().values[1:3].mean().item()
    x[1], y[4] = torch.nan, torch.nan
    logits, depth = torch.full((10, classes), 7.0), torch.full((10,), -5)
    sample = torch.tensor(samples, dtype=torch.int32)
    stays, live = torch.ones(6, dtype=torch.bool), torch.zeros(1, dtype=torch.int32)
    given = cuda.ExitHead(
        6, 3, 8, classes, 0, cuda.Tokens(x.data_ptr(), *x.stride()[:2]),
        cuda.Tokens(y.data_ptr(), *y.stride()[:2]), weight=weight.data_ptr(),
        threshold=threshold, logits=logits.data_ptr(), certainty=entropy.data_ptr(),
        stays=stays.data_ptr(), live=live.data_ptr(), sample=sample.data_ptr(),
        depth=depth.data_ptr(), stop=3,
    )  # fmt: skip
    exit_of(library, given, memory, weight, None)
    goes_on = [s >= 0 and bool(entropy[row] >= threshold) for row, s in enumerate(samples)]
    assert stays.tolist() == goes_on and int(live) == 2 == sum(goes_on)
    assert sample.tolist() == [s if on else -1 for s, on in zip(samples, goes_on, strict=True)]
    here = torch.tensor([samples[row] for row in live_rows])
    assert torch.equal(logits[here], expected[live_rows]) and depth[here].tolist() == [3] * 4
    others = [s for s in range(10) if s not in samples]
    assert (logits[others] == 7).all() and (depth[others] == -5).all()


@pytest.mark.parametrize(("count", "body"), [
    (0, 2**32 - 1), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (16, 4), (17, 5), (64, 6),
])  # fmt: skip
def test_switch_takes_the_smallest_bucket(library, count, body):
    value = ctypes.c_uint32(99)
    assert library.run_switch(ctypes.byref(ctypes.c_int32(count)), ctypes.byref(value)) == 0
    assert value.value == body


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("exit_of", EXITS)
def test_what_is_no_number_never_leaves(library, memory, exit_of, criterion):
    x, head = memory.draw(4, 3, 8), memory.draw(5, 8)
    x[1, 0, 0], x[2, 1, 1] = torch.nan, torch.inf
    always = math.inf if criterion == "entropy" else -math.inf
    run = functools.partial(run_exit, library, memory, criterion=criterion, exit_of=exit_of)
    _, _, stays, _ = run(x, None, "none", head, None, always)
    assert stays.tolist() == [False, True, True, False]
    bias = memory.empty(5).fill_(-math.inf)
    _, value, stays, _ = run(x[:1], None, "none", head, bias, always)
    assert value.isnan().all() and stays.all()


@pytest.mark.parametrize("exit_of", EXITS)
def test_classes_that_cannot_be(library, memory, exit_of):
    x, head = memory.draw(1, 3, 8), memory.draw(5, 8)
    bias = memory.empty(5).copy_(torch.tensor([-math.inf, 0.0, -math.inf, 1.0, 2.0]))
    logits, entropy, _, _ = run_exit(
        library, memory, x, None, "none", head, bias, 0.0, exit_of=exit_of
    )
    assert_close(entropy, functional.entropy(logits.double()), torch.float32)


@pytest.mark.parametrize("batch", [0, 1, 2, 37, 1500])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_compact(library, memory, share, batch):
    stays = torch.rand(batch) < share
    places, count = (
        torch.full((batch + 1,), 7, dtype=torch.int32),
        torch.zeros((), dtype=torch.int32),
    )
    found = cuda.Places(batch, cuda.address(stays), places.data_ptr(), count.data_ptr())
    assert library.run_places(ctypes.byref(found)) == 0
    upto = stays.cumsum(0)
    assert int(count) == int(stays.sum()) and int(places[batch]) == 7
    assert torch.equal(places[:batch].long(), torch.where(stays, upto - 1, -1))
    for source in (
        memory.draw(batch, 7, dtype=torch.bfloat16), memory.draw(batch, 33, off=1),
        memory.draw(batch, 64), memory.draw(batch, 12)[:, :2], memory.draw(batch, 8)[:, 1:],
    ):  # fmt: skip
        for kept in {int(count), int(count) // 2}:
            out = memory.empty(kept, source.shape[1], dtype=source.dtype)
            each = source.element_size()
            given = cuda.Compaction(
                batch, kept, places.data_ptr(), source.data_ptr(), source.stride(0) * each,
                source.shape[1] * each, out.data_ptr(),
            )  # fmt: skip
            assert library.run_compact(ctypes.byref(given)) == 0
            assert torch.equal(out, source[stays][:kept])


@pytest.mark.parametrize("batch", [1, 5, 64, 2500])
def test_places_move_the_numbers_of_samples(library, memory, batch):
    stays, numbers = torch.rand(batch) < 0.5, torch.randperm(batch, dtype=torch.int32)
    places, moved = torch.empty(batch, dtype=torch.int32), numbers[stays]
    for room in {len(moved), len(moved) // 2, len(moved) + 3}:
        to = torch.full((room + 1,), 7, dtype=torch.int32)
        found = cuda.Places(
            batch, stays.data_ptr(), places.data_ptr(), None, numbers.data_ptr(), to.data_ptr(),
            room,
        )  # fmt: skip
        assert library.run_places(ctypes.byref(found)) == 0
        rest = torch.full((max(room - len(moved), 0),), -1, dtype=torch.int32)
        assert torch.equal(to[:room], torch.cat([moved[:room], rest])) and to[room] == 7


def test_what_no_kernel_can_do_is_an_error(library, memory):
    invalid = 1  # cudaErrorInvalidValue
    x, y = memory.draw(2, 17_000), memory.draw(2, 17_000)
    given = cuda.AccumulateNorm(2, 17_000, cuda.rows(x), y.data_ptr(), h=cuda.out_rows(y))
    assert library.run_accumulate_norm(ctypes.byref(given)) == invalid
    given.x.dtype = cuda.DTYPES[torch.float64]
    assert library.run_accumulate_norm(ctypes.byref(given)) == invalid
    sources = (cuda.Rows * 65)(*[cuda.rows(x[:, :8])] * 65)  # no room for the sum in between
    given = cuda.Join(2, 8, sources, 65, out=cuda.out_rows(y))
    assert library.run_join(ctypes.byref(given)) == invalid
    given = cuda.ExitHead(1, 1, 9000, 2)
    assert library.run_exit_head(ctypes.byref(given)) == invalid
    assert library.run_exit_pool(ctypes.byref(given), ctypes.c_void_p(y.data_ptr())) == invalid
    assert library.run_exit_decision(ctypes.byref(given), ctypes.c_void_p(y.data_ptr())) == invalid
