"""exit_head: ``head(pool(norm(y + scale * x)))``, the entropy of its logits, and who stays."""

from __future__ import annotations

import math

import pytest
import torch
from layers import BACKENDS, LAYOUTS, TRITON, device_of, make_norm, packed, wide_copy
from tolerances import TOLERANCES, assert_close

from acn_kernels import NormSpec, functional, reference
from acn_kernels.reference import sum_dtype


def arguments(shape, classes, dtype, device, norm="layernorm", scale=None, bias=True,
              first=False, tokens_of_y=None, pooling="mean", layout=packed):  # fmt: skip
    """(arguments of exit_head but for the threshold, the same in float64 on the CPU)."""
    batch, tokens, width = shape
    wide_dtype = sum_dtype(dtype)
    y_shape = (batch, tokens_of_y or tokens, width)
    module = make_norm(norm, width)
    module = None if module is None else module.to(device, dtype).requires_grad_(False)
    given = {
        "x": layout(shape, dtype, device),
        "y": None if first else layout(y_shape, wide_dtype, device),
        "weight": (torch.randn(classes, width, device=device) / math.sqrt(width)).to(dtype),
        "bias": torch.randn(classes, device=device).to(dtype) if bias else None,
        "scale": None if scale is None else torch.tensor(scale, dtype=wide_dtype).to(device),
    }  # fmt: skip
    wide = {k: None if v is None else v.cpu().double() for k, v in given.items()}
    given["spec"], wide["spec"] = NormSpec.of(module), None
    if module is not None:
        wide["spec"] = NormSpec.of(wide_copy(module))
    given["pooling"] = wide["pooling"] = pooling
    return given, wide


def plain_entropy(logits: torch.Tensor) -> torch.Tensor:
    p = logits.double().cpu().softmax(-1)
    return -torch.where(p == 0, 0, p * p.log()).sum(-1)


def check_exit(backend, shape=(5, 6, 7), classes=10, dtype=torch.float32, **options):
    """Logits against the reference in float64; the rest against the logits handed out."""
    given, wide = arguments(shape, classes, dtype, device_of(backend), **options)
    true_logits, true_entropy, _, _ = reference.exit_head(**wide, threshold=0.5)
    # In the widest gap between two samples' entropies: rounding decides nothing.
    levels = torch.cat(
        [true_entropy.sort().values, true_entropy.new_tensor([math.log(classes) + 1])]
    )
    widest = levels.diff().argmax() if len(levels) > 1 else 0
    threshold = float(levels[widest : widest + 2].mean())
    logits, entropy, stays, live = functional.exit_head(
        **given, threshold=threshold, backend=backend
    )
    assert logits.dtype == dtype and entropy.dtype == sum_dtype(dtype)
    assert stays.dtype == torch.bool and live.dtype == torch.int32 and live.dim() == 0
    # The plain path rounds the normed tokens, their mean and the logits.
    assert_close(logits, true_logits, name="logits", roundings=3, among=4.0)
    assert_close(entropy, plain_entropy(logits), sum_dtype(dtype), name="entropy", among=8.0)
    expected = ~(entropy < threshold)
    assert torch.equal(stays, expected) and int(live) == int(expected.sum())
    return stays


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_dtype(backend, norm, dtype):
    if backend == "triton" and dtype == torch.float64:
        with pytest.raises(RuntimeError, match="fp16, bf16 and fp32"):
            check_exit(backend, dtype=dtype)
        return
    check_exit(backend, dtype=dtype, norm=norm, scale=-0.7)


@pytest.mark.parametrize("width", [1, 7, 64, 300])
@pytest.mark.parametrize("tokens", [1, 3, 65])
@pytest.mark.parametrize("backend", [TRITON])
def test_every_size(backend, tokens, width):
    norm = "layernorm" if width > 1 else "none"
    check_exit(backend, (3, tokens, width), norm=norm)


@pytest.mark.parametrize("classes", [1, 2, 10, 129, 1000])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_number_of_classes(backend, classes):
    check_exit(backend, (4, 3, 33), classes)


@pytest.mark.parametrize("norm", ["layernorm-bare", "layernorm-no-bias", "rmsnorm-bare", "none"])
@pytest.mark.parametrize("first", [True, False], ids=["no sum yet", "sum"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_may_be_absent(backend, first, norm):
    check_exit(backend, norm=norm, first=first, bias=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_token_alone(backend):
    check_exit(backend, pooling="first", scale=0.5)
    check_exit(backend, pooling="first", tokens_of_y=1)
    given, _ = arguments((3, 4, 7), 5, torch.float32, device_of(backend), pooling="first")
    given["x"][:, 1:], given["y"][:, 1:] = torch.nan, torch.nan
    logits = functional.exit_head(**given, threshold=1.0, backend=backend).logits
    assert logits.isfinite().all(), "token 0 alone is read"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(backend, pooling, layout):
    check_exit(backend, (4, 3, 7), layout=layout, pooling=pooling)


@pytest.mark.parametrize("batch", [0, 1, 2, 33])
@pytest.mark.parametrize("backend", BACKENDS)
def test_batches(backend, batch):
    stays = check_exit(backend, (batch, 3, 8))
    assert stays.shape == (batch,)


@pytest.mark.parametrize(("threshold", "stay"), [(0.0, True), (math.inf, False)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_all_or_nobody(backend, threshold, stay):
    given, _ = arguments((6, 3, 8), 4, torch.float32, device_of(backend))
    decision = functional.exit_head(**given, threshold=threshold, backend=backend)
    assert decision.stays.tolist() == [stay] * 6 and int(decision.live) == 6 * stay


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_numbers_never_leave(backend, bad):
    given, _ = arguments((4, 3, 8), 5, torch.float32, device_of(backend))
    given["x"][1, 2, 3] = bad
    decision = functional.exit_head(**given, threshold=math.inf, backend=backend)
    assert decision.stays.tolist() == [False, True, False, False] and int(decision.live) == 1
    assert decision.entropy.isnan().tolist() == [False, True, False, False]
    assert decision.logits[1].isnan().all() and decision.logits[[0, 2, 3]].isfinite().all()


@pytest.mark.filterwarnings("ignore:(invalid|divide by zero|overflow):RuntimeWarning")
@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_logits(backend):
    """Entropies in closed form, the logits being the head's bias: x is zero."""
    inf = math.inf
    far = 300  # classes beyond the first tile of classes
    cases = [
        (torch.zeros(1000), math.log(1000)),
        (torch.tensor([3e4] * 8), math.log(8)),
        (torch.cat([torch.full((far,), -1e4), torch.zeros(4)]), math.log(4)),
        (torch.cat([torch.full((far,), -inf), torch.zeros(4)]), math.log(4)),
        (torch.cat([torch.zeros(4), torch.full((far,), -inf)]), math.log(4)),
        (torch.tensor([0.0, -inf]), 0.0),
        (torch.full((4,), -inf), math.nan),
        (torch.tensor([0.0, inf]), math.nan),
    ]
    device = device_of(backend)
    x = torch.zeros(2, 3, 256, device=device)
    for bias, expected in cases:
        weight = torch.zeros(len(bias), 256, device=device)
        decision = functional.exit_head(
            x, None, None, weight, bias.to(device), 100.0, backend=backend
        )
        for entropy in decision.entropy.tolist():
            assert entropy == pytest.approx(expected, abs=1e-5, nan_ok=True)
        assert decision.stays.tolist() == [math.isnan(expected)] * 2


def test_entropy_against_its_definition():
    logits = 5 * torch.randn(20, 13, dtype=torch.float64)
    assert_close(functional.entropy(logits), plain_entropy(logits), name="entropy")


@pytest.mark.gpu
@pytest.mark.xdist_group("much memory")
@pytest.mark.parametrize("backend", [TRITON])
def test_more_elements_than_an_int32_counts(backend):
    x = torch.randn(2, 3, 8, device=device_of(backend), dtype=torch.bfloat16)
    far = torch.zeros(2, 2**28, 8, device=x.device, dtype=x.dtype)
    far[:, :3] = x
    weight = torch.randn(4, 8, device=x.device, dtype=x.dtype)
    given = {"y": None, "spec": None, "weight": weight, "bias": None, "threshold": 1.0}
    here = functional.exit_head(x, **given, pooling="first", backend=backend)
    there = functional.exit_head(far, **given, pooling="first", backend=backend)
    assert torch.equal(here.logits, there.logits)


@pytest.mark.parametrize("of", ["weight", "spec"])
def test_refuses_to_record_a_gradient(of):
    given, _ = arguments((2, 3, 4), 5, torch.float32, "cpu")
    (given[of] if of == "weight" else given[of].weight).requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient"):
        functional.exit_head(**given, threshold=1.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 4)}, ValueError, r"x has shape \(2, 4\); it takes \[B, T, D\]"),
        ({"x": torch.zeros(2, 0, 4)}, ValueError, "at least one token"),
        ({"x": torch.zeros(2, 3, 4).int()}, TypeError, "floating-point"),
        ({"y": torch.zeros(2, 2, 4)}, ValueError, r"y is torch.float32 of shape \(2, 2, 4\)"),
        ({"y": torch.zeros(2, 3, 4).half()}, ValueError, "y is torch.float16"),
        ({"weight": torch.zeros(5, 3)}, ValueError, r"weight has shape \(5, 3\)"),
        ({"weight": torch.zeros(0, 4)}, ValueError, "C at least 1"),
        ({"weight": torch.zeros(5, 4).half()}, TypeError, "weight has dtype torch.float16"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias has shape \(4,\)"),
        ({"pooling": "last"}, ValueError, "pooling is 'last'; it takes one of mean, first"),
        ({"threshold": "0.7"}, TypeError, "threshold is a str"),
        ({"threshold": math.nan}, ValueError, "threshold is nan"),
        ({"scale": torch.zeros(2)}, ValueError, "0-dim"),
        ({"spec": NormSpec("layer", torch.zeros(3))}, ValueError, "spec.weight"),
        ({"backend": "cuda"}, ValueError, "backend is 'cuda'"),
    ],
)
def test_bad_arguments(change, error, message):
    given, _ = arguments((2, 3, 4), 5, torch.float32, "cpu")
    with pytest.raises(error, match=message):
        functional.exit_head(**{**given, "threshold": 1.0, **change})


@pytest.mark.parametrize("backend", [TRITON])
def test_a_head_of_more_elements_than_32_bits_count(backend, monkeypatch):
    """Rows 2^30 apart, of which the kernel reads the first numbers: no other memory is touched."""
    from acn_kernels.kernels.exit_head import exit_head_kernel

    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    device, width, apart, classes = device_of(backend), 16, 2**30, 3
    weight = torch.empty((classes - 1) * apart + width, dtype=torch.bfloat16, device=device)
    weight.as_strided((classes, width), (apart, 1)).copy_(torch.arange(3.0)[:, None])
    x, logits, entropy = (torch.ones(1, 1, size, device=device) for size in (width, classes, 1))
    stays, live = (torch.zeros((), dtype=dtype, device=device) for dtype in (torch.bool, torch.int))
    exit_head_kernel[(1,)](
        x, None, None, None, None, weight, None, logits, entropy, stays, live,
        1, apart, classes, width, width, 0, 0, 0.0, 1.0,
        HAS_Y=False, HAS_SCALE=False, NORM=False, RMS=False, HAS_NORM_WEIGHT=False,
        HAS_NORM_BIAS=False, HAS_BIAS=False, TILE_TOKENS=1, TILE_CLASSES=2, TILE_WIDTH=width,
    )  # fmt: skip
    assert logits.flatten().tolist() == [0.0, 16.0, 32.0]
