"""Wrong values raise ValueError or TypeError at the edge, naming what is wrong; no kernel runs."""

from __future__ import annotations

import pytest
import torch
from layers import COMPILED, Opaque, Shift
from torch import nn

from acn_kernels import FusedACNStack, _extension, dispatch
from acn_kernels.blocks import Attention, FeedForwardStack, PostNormBlock
from acn_kernels.validation import check_device


def make_stack(**options):
    return FusedACNStack([Shift(7), Shift(7)], **options)


CONSTRUCTION = {
    "layers-none": (lambda: FusedACNStack(None), TypeError, "layers is a NoneType"),
    "layers-number": (lambda: FusedACNStack(3), TypeError, "layers is a int"),
    "layers-module": (lambda: FusedACNStack(nn.Linear(2, 2)), TypeError, "layers is a Linear"),
    "layers-string": (lambda: FusedACNStack("ab"), TypeError, "layers is a str"),
    "layer-function": (lambda: FusedACNStack([torch.relu]), TypeError, r"layers\[0\] is a"),
    "layer-none": (lambda: FusedACNStack([Shift(7), None]), TypeError, r"layers\[1\] is a NoneT"),
    "layer-residual": (
        lambda: FusedACNStack([nn.TransformerEncoderLayer(8, 2)]),
        ValueError,
        r"layers\[0\] is a torch.*TransformerEncoderLayer, which adds its own input",
    ),
    "layer-residual-subclass": (
        lambda: FusedACNStack([type("Own", (nn.TransformerDecoderLayer,), {})(8, 2)]),
        ValueError,
        r"layers\[0\].*TransformerDecoderLayer, which adds its own input",
    ),
    "empty-without-input": (
        lambda: FusedACNStack([], include_input=False),
        ValueError,
        "layers is empty and include_input is False",
    ),
    "norm-function": (lambda: make_stack(norm=torch.relu), TypeError, "norm is a"),
    "alpha-high": (lambda: make_stack(alpha=1.5), ValueError, "alpha is 1.5"),
    "alpha-negative": (lambda: make_stack(alpha=-1e-9), ValueError, "alpha is -1e-09"),
    "alpha-nan": (lambda: make_stack(alpha=float("nan")), ValueError, "alpha is nan"),
    "alpha-inf": (lambda: make_stack(alpha=float("inf")), ValueError, "alpha is inf"),
    "alpha-string": (lambda: make_stack(alpha="1"), TypeError, "alpha is a str"),
    "alpha-bool": (lambda: make_stack(alpha=True), TypeError, "alpha is a bool"),
    "alpha-none": (lambda: make_stack(alpha=None), TypeError, "alpha is a NoneType"),
    "scales-short": (lambda: make_stack(scales=[1.0, 2.0]), ValueError, r"scales has shape \(2,\)"),
    "scales-long": (
        lambda: make_stack(scales=[1.0] * 3, include_input=False),
        ValueError,
        r"scales has shape \(3,\).*2 terms",
    ),
    "scales-2d": (lambda: make_stack(scales=torch.ones(3, 1)), ValueError, r"shape \(3, 1\)"),
    "scales-integers": (
        lambda: make_stack(scales=torch.ones(3, dtype=torch.int64)),
        TypeError,
        "scales has dtype torch.int64",
    ),
    "scales-string": (lambda: make_stack(scales="learn"), ValueError, "scales is 'learn'"),
    "scales-strings": (lambda: make_stack(scales=["a", "b", "c"]), TypeError, "scales is"),
    "scales-number": (lambda: make_stack(scales=1.0), TypeError, "scales is 1.0"),
    "include-input": (lambda: make_stack(include_input=1), TypeError, "include_input is 1"),
    "checkpoint": (lambda: make_stack(checkpoint="yes"), ValueError, "checkpoint is 'yes'"),
    "direct-gradient-only": (
        lambda: make_stack(direct_gradient_only=None),
        TypeError,
        "direct_gradient_only is None",
    ),
    "rows-name": (lambda: make_stack(rows="middle"), ValueError, "rows is 'middle'"),
    "rows-number": (lambda: make_stack(rows=3.5), TypeError, "rows is"),
    "rows-floats": (lambda: make_stack(rows=torch.tensor([0.0, 1.0])), ValueError, "rows has"),
    "rows-bools": (lambda: make_stack(rows=torch.tensor([True, False])), ValueError, "rows has"),
    "rows-2d": (lambda: make_stack(rows=torch.tensor([[0, 1]])), ValueError, "rows has"),
    "rows-empty": (lambda: make_stack(rows=[]), ValueError, "rows"),
    "rows-backwards": (lambda: make_stack(rows=slice(None, None, -1)), ValueError, "step"),
    "granularity-name": (
        lambda: make_stack(granularity="layer"),
        ValueError,
        "granularity is 'layer'",
    ),
    "granularity-opaque": (
        lambda: FusedACNStack([Shift(7), Opaque(7)], granularity="sublayer"),
        ValueError,
        r"granularity is 'sublayer', but layers\[1\], a Opaque, has no sublayers",
    ),
    "backend-name": (lambda: make_stack(backend="cuda"), ValueError, "backend is 'cuda'"),
    "backend-none": (lambda: make_stack(backend=None), ValueError, "backend is None"),
    "attention-heads": (lambda: Attention(8, 3), ValueError, "heads is 3.*width 8"),
}


@pytest.mark.parametrize("case", CONSTRUCTION)
def test_construction(case):
    build, error, message = CONSTRUCTION[case]
    with pytest.raises(error, match=message):
        build()


def test_empty_stack_with_the_input_is_the_norm():
    x, norm = torch.randn(2, 7), nn.LayerNorm(7)
    assert torch.equal(FusedACNStack([])(x), x)
    assert torch.allclose(FusedACNStack([], norm)(x), norm(x), atol=1e-6)
    assert len(FusedACNStack([]).forward_intermediates(x)) == 1


def changes(result):
    class Changes(nn.Module):
        def forward(self, x):
            return result(x)

    return FusedACNStack([Shift(7), Changes()])


CALLS = {
    "x-list": (make_stack, [1.0] * 7, TypeError, "x is a list"),
    "x-integers": (make_stack, torch.ones(2, 7, dtype=torch.int64), TypeError, "x has dtype"),
    "x-float8": (
        make_stack,
        torch.ones(2, 7).to(torch.float8_e4m3fn),
        TypeError,
        "x has dtype torch.float8_e4m3fn; it takes a tensor of float32, bfloat16, ",
    ),
    "x-complex": (make_stack, torch.ones(2, 7, dtype=torch.complex64), TypeError, "x has dtype"),
    "x-scalar": (make_stack, torch.tensor(1.0), ValueError, r"x has shape \(\)"),
    "x-width-0": (make_stack, torch.ones(2, 0), ValueError, r"x has shape \(2, 0\)"),
    "x-device": (make_stack, torch.ones(2, 7, device="meta"), ValueError, "x is on meta, the la"),
    "norm-width": (
        lambda: FusedACNStack([Opaque(7)], nn.LayerNorm(9)),
        torch.ones(2, 7),
        ValueError,
        r"spec.weight has shape \(9,\); rows of 7",
    ),
    "layer-shape": (
        lambda: FusedACNStack([Shift(7), nn.Linear(7, 5)]),
        torch.ones(2, 7),
        ValueError,
        r"layers\[1\] \(Linear\) turned shape \(2, 7\) into \(2, 5\)",
    ),
    "layer-dtype": (
        lambda: changes(lambda x: x.double()),
        torch.ones(2, 7),
        TypeError,
        r"layers\[1\] \(Changes\) turned dtype torch.float32 into torch.float64",
    ),
    "layer-tuple": (
        lambda: changes(lambda x: (x, None)),
        torch.ones(2, 7),
        TypeError,
        r"layers\[1\] \(Changes\) returned a tuple",
    ),
    "layer-device": (
        lambda: changes(lambda x: x.to("meta")),
        torch.ones(2, 7),
        ValueError,
        r"layers\[1\] \(Changes\) moved its input from cpu to meta",
    ),
    "layer-in-place": (
        lambda: changes(nn.ReLU(inplace=True)),
        torch.ones(2, 7),
        ValueError,
        r"layers\[1\] \(Changes\) changed its input in place",
    ),
    "layer-none": (lambda: changes(lambda x: None), torch.ones(2, 7), TypeError, "a NoneType"),
    "rows-1d": (
        lambda: make_stack(rows="first"),
        torch.ones(7),
        ValueError,
        r"rows is set, but x has shape \(7,\)",
    ),
    "rows-out-of-range": (
        lambda: make_stack(rows=[0, 5]),
        torch.ones(5, 7),
        ValueError,
        "rows names token 5, but the input has 5 tokens",
    ),
    "rows-far-below": (lambda: make_stack(rows=[-6]), torch.ones(5, 7), ValueError, "token -6"),
    "rows-duplicate": (
        lambda: make_stack(rows=[4, -1]),
        torch.ones(5, 7),
        ValueError,
        "may occur once",
    ),
    "rows-none-left": (
        lambda: make_stack(rows=slice(9, None)),
        torch.ones(5, 7),
        ValueError,
        "rows selects none of the 5 tokens",
    ),
    "alpha-0-without-input": (
        lambda: make_stack(alpha=0.0, include_input=False),
        torch.ones(2, 7),
        ValueError,
        "include_input is False and alpha is 0",
    ),
}


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("case", CALLS)
def test_calls(case, gradients):
    build, x, error, message = CALLS[case]
    stack = build()
    with torch.set_grad_enabled(gradients), pytest.raises(error, match=message):
        stack(x)


DEPTHS = {
    "negative": (-1, ValueError),
    "too-deep": (3, ValueError),
    "float": (1.0, TypeError),
    "bool": (True, TypeError),
    "string": ("1", TypeError),
    "tensor": (torch.tensor(1), TypeError),
}


@pytest.mark.parametrize("cls", [FusedACNStack, FeedForwardStack])
@pytest.mark.parametrize("value", DEPTHS)
def test_depths(cls, value):
    depth, error = DEPTHS[value]
    stack, x = cls([Shift(7), Shift(7)]), torch.randn(2, 7)
    with pytest.raises(error, match=r"^depth is"):
        stack(x, depth=depth)
    with pytest.raises(error, match=r"^k is"):
        stack.truncate(depth)
    if value != "negative":  # indices count from the end, as those of a list do
        with pytest.raises(error, match=r"^indices is"):
            stack.forward_intermediates(x, indices=[depth])


def test_stages():
    stack, x = make_stack(), torch.randn(2, 7)
    with pytest.raises(ValueError, match=r"^start is 2"):
        stack.advance(x, None, start=2, stop=1)
    with pytest.raises(ValueError, match=r"^stop is 3"):
        stack.advance(x, None, stop=3)


def test_depth_0_without_the_input():
    stack = make_stack(include_input=False)
    with pytest.raises(ValueError, match="depth is 0 and include_input is False"):
        stack(torch.randn(2, 7), depth=0)
    with pytest.raises(ValueError, match="k is 0 and include_input is False"):
        stack.truncate(0)


@pytest.mark.parametrize("value", ["1", float("nan"), -0.1, 2, None, torch.tensor(0.5)])
def test_alpha_set_later(value):
    stack = make_stack()
    with pytest.raises((TypeError, ValueError), match="alpha is"):
        stack.alpha = value
    assert stack.alpha == 1


@pytest.mark.parametrize("value", [1, "element-wise"])
def test_checkpoint_set_later(value):
    stack = make_stack()
    stack.checkpoint = value
    with pytest.raises((TypeError, ValueError), match=f"checkpoint is {value!r}; it takes"):
        stack(torch.randn(2, 7))


def test_edits_are_checked():
    stack = make_stack()
    with pytest.raises(ValueError, match=r"layers\[2\].*adds its own input"):
        stack.append(nn.TransformerEncoderLayer(8, 2))
    with pytest.raises(TypeError, match=r"layers\[0\] is a function"):
        stack[0] = lambda x: x
    assert len(stack) == 2


@pytest.mark.parametrize("backend", COMPILED)
def test_a_backend_by_name_that_cannot_run_says_why(backend, monkeypatch):
    stack = make_stack(backend=backend)
    monkeypatch.setattr(_extension, "_module", None)
    monkeypatch.setattr(_extension, "_state", "not built here")
    monkeypatch.setattr(dispatch, "_interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    missing = {"triton": "torch sees no CUDA device", "native": "extension is not built here"}
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            with pytest.raises(RuntimeError, match=f"backend='{backend}'.*{missing[backend]}"):
                stack(torch.randn(2, 7))
            FusedACNStack(list(stack), backend="auto")(torch.randn(2, 7))


def test_triton_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(dispatch, "_triton_installed", lambda: False)
    with pytest.raises(RuntimeError, match="Triton is not installed"):
        make_stack(backend="triton")(torch.randn(2, 7))


def _doubled(module, given):
    given[0].mul_(2)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("gradients", [True, False])
def test_a_block_that_changes_its_input_in_place(gradients, alpha):
    block = PostNormBlock(8, 2, 16)
    block.attn.register_forward_pre_hook(_doubled)
    with (
        torch.set_grad_enabled(gradients),
        pytest.raises(ValueError, match=r"layers\[0\] \(PostNormBlock\) changed its input"),
    ):
        FusedACNStack([block], alpha=alpha)(torch.randn(2, 3, 8))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rows", [None, "first"])
@pytest.mark.parametrize("wrong", ["batch", "dtype", "tokens", "list"])
def test_states_that_do_not_belong_together(wrong, rows, alpha):
    stack = FusedACNStack([Shift(8), Shift(8)], nn.LayerNorm(8), alpha=alpha, rows=rows)
    x, y = stack.advance(torch.randn(2, 3, 8), stop=1)
    y = {
        "batch": lambda: y[:1],
        "dtype": lambda: y.double(),
        "tokens": lambda: torch.cat([y, y], 1),
        "list": lambda: [y],
    }[wrong]()
    message = r"y is (a list|torch\.float\d\d of shape \(.*\)); "
    for use in (
        lambda: stack.advance(x, y, start=1),
        lambda: stack.finish(x, y, start=1),
        lambda: stack.output(x, y, 1),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            use()


@pytest.mark.parametrize("gradients", [True, False])
def test_a_sum_without_a_term_is_not_finished(gradients):
    stack = FusedACNStack([Shift(8)], nn.LayerNorm(8), include_input=False)
    with torch.set_grad_enabled(gradients), pytest.raises(ValueError, match="stop is 0 and incl"):
        stack.finish(torch.randn(2, 8), stop=0)


def test_lists_of_another_length_after_an_edit():
    stack = FusedACNStack([nn.Linear(7, 7) for _ in range(3)], alpha=[0.1, 0.5, 0.9])
    del stack[0]
    with pytest.raises(ValueError, match="alpha has 3 entries; there are 2 layers now"):
        stack(torch.randn(2, 7))


def test_a_first_layer_that_would_read_nothing():
    for alpha in (0.0, [0.0, 1.0]):
        with pytest.raises(ValueError, match="the first layer would read 0"):
            make_stack(alpha=alpha, include_input=False)(torch.randn(2, 7))


@pytest.mark.parametrize("name", ["moon", "cuda:x", "meta", "mkldnn", "cuda:-1", "cpu:0", ""])
def test_a_device_is_the_cpu_or_a_gpu(name, recwarn):
    with pytest.raises(ValueError, match=f"device is '{name}'; it takes cpu, cuda, or a GPU"):
        check_device(name)
    assert not recwarn


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=f"device is 'cuda:{torch.cuda.device_count()}': "):
        check_device(f"cuda:{torch.cuda.device_count()}")
    assert check_device("cpu") == "cpu"
