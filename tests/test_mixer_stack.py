"""mixer_stack: a stack of Mixer blocks as one operation, forward and backward, at any alpha."""

from __future__ import annotations

import pytest
import torch
from conftest import DEVICE
from layers import LAYOUTS, leaf, make_norm, packed, wide_copy
from mixer_blocks import SMALL, mixer
from tolerances import assert_close
from torch import Tensor, nn

from acn_kernels import NormSpec, dispatch, functional, reference
from acn_kernels.functional import MixerParameters

triton_runs, why_not = dispatch.availability()["triton"]
pytestmark = [pytest.mark.triton, pytest.mark.skipif(not triton_runs, reason=why_not)]


def wide_parameters(parameters: MixerParameters) -> MixerParameters:
    return MixerParameters(
        *(
            p.detach().double().cpu().requires_grad_() if isinstance(p, Tensor) else p
            for p in parameters
        )
    )


def check_stack(
    depth=3, batch=(2,), tokens=16, width=32, hidden=(16, 64), closing=False,
    dtype=torch.float32, norm="layernorm", scaled=False, include_input=True, alpha=1.0,
    layout=packed, out_layout=packed, roundings=8, kinks=False,
):  # fmt: skip
    """The output and every gradient, against the reference in float64.

    kinks: in half precision the closing ReLU of an element near zero may fall on its other side,
    so that gradients are compared as whole tensors.
    """
    shape = (*batch, tokens, width)
    parameters = MixerParameters.of(mixer(depth, tokens, width, hidden, closing, dtype))
    parameters = MixerParameters(*(leaf(p) if isinstance(p, Tensor) else p for p in parameters))
    x = leaf(layout(shape, dtype, DEVICE))
    scales = leaf(torch.rand(depth + 1, device=DEVICE) + 0.5) if scaled else None
    module = make_norm(norm, width)
    module = None if module is None else module.to(DEVICE, dtype)
    wide_module = None if module is None else wide_copy(module)
    y = functional.mixer_stack(x, parameters, NormSpec.of(module), scales, include_input, alpha)
    incoming = out_layout(shape, dtype, DEVICE)
    named = {"x": x, **{n: p for n, p in parameters._asdict().items() if isinstance(p, Tensor)}}
    affine = [] if module is None else list(module.parameters())
    scales_given = [] if scales is None else [scales]
    got = torch.autograd.grad(y, [*named.values(), *affine, *scales_given], incoming)

    wide = wide_parameters(parameters)
    wide_x = x.detach().double().cpu().requires_grad_()
    wide_scales = None if scales is None else scales.detach().double().cpu().requires_grad_()
    true_y = reference.mixer_stack(
        wide_x, wide, NormSpec.of(wide_module), wide_scales, include_input, alpha
    )
    wide_inputs = [
        wide_x, *wide.tensors, *([] if wide_module is None else wide_module.parameters()),
        *([] if wide_scales is None else [wide_scales]),
    ]  # fmt: skip
    truth = torch.autograd.grad(
        true_y, wide_inputs, incoming.double().cpu(), materialize_grads=True
    )
    assert y.dtype == dtype and y.shape == shape
    assert_close(y, true_y, dtype, roundings=roundings, name="y", among=1.0)
    names = [*named, *(f"norm {n}" for n, _ in (module or nn.Identity()).named_parameters())]
    names += ["scales"] * scaled
    largest = max(float(t.abs().max()) for t in truth) if y.numel() else 0.0
    for name, one, true in zip(names, got, truth, strict=True):
        if kinks:
            error = (one.double().cpu() - true).norm() / max(float(true.norm()), 0.02 * largest)
            assert error < 0.1, f"{name}: off by {error:.3g} of its norm"
            continue
        # The norm behind takes out what all of a token shares: sums of large terms are left small.
        among = largest if name.startswith("token") else 0.05 * largest
        assert_close(one, true, dtype, roundings=roundings, name=name, among=among)


@pytest.mark.parametrize("closing", [False, True], ids=["plain", "closing"])
@pytest.mark.parametrize("scaled", [False, True], ids=["ones", "scales"])
@pytest.mark.parametrize("include_input", [True, False], ids=["with-input", "without-input"])
def test_every_form(closing, scaled, include_input):
    check_stack(closing=closing, scaled=scaled, include_input=include_input)


def alphas(depth: int, kind: str) -> float | list[float] | torch.Tensor:
    return {
        "zero": 0.0,
        "one": torch.ones(()),
        "between": torch.rand((), dtype=torch.float64),
        "by layer": torch.rand(depth, device=DEVICE),
        "from end to end": [k / (depth - 1) for k in range(depth)],
    }[kind]


@pytest.mark.parametrize("closing", [False, True], ids=["plain", "closing"])
@pytest.mark.parametrize("kind", ["zero", "one", "between", "by layer", "from end to end"])
def test_every_alpha(kind, closing):
    check_stack(closing=closing, alpha=alphas(3, kind))
    check_stack(4, (3,), 5, 20, (7, 33), closing, alpha=alphas(4, kind), norm="none", roundings=15)


@pytest.mark.parametrize("closing", [False, True], ids=["plain", "closing"])
@pytest.mark.parametrize("depth", [1, 2, 33])
def test_every_depth_between_the_ends_of_alpha(depth, closing):
    check_stack(depth, **SMALL, closing=closing, alpha=torch.rand(depth), roundings=20)


@pytest.mark.parametrize("closing", [False, True], ids=["plain", "closing"])
@pytest.mark.parametrize(
    ("tokens", "width", "hidden"),
    [(5, 20, (7, 33)), (49, 48, (30, 100)), (1, 16, (1, 1)), (64, 17, (65, 18)), (9, 120, (5, 99))],
)
def test_every_size(tokens, width, hidden, closing):
    # A single token with a single hidden unit hardly varies, and a norm then divides by little.
    roundings = 100 if tokens == 1 else 15
    check_stack(2, (2,), tokens, width, hidden, closing, scaled=True, roundings=roundings)


def test_the_widest():
    check_stack(2, (2,), 9, 200, (5, 70), scaled=True, roundings=15)


def test_a_closing_weight_too_large_for_shared_memory_is_refused():
    parameters = MixerParameters.of(mixer(2, 9, 200, (5, 9), True, torch.float32))
    with pytest.raises(RuntimeError, match=r"closing step.s weight, 200 x 200 in torch\.float32"):
        functional.mixer_stack(torch.zeros(1, 9, 200, device=DEVICE), parameters)


@pytest.mark.parametrize("closing", [False, True], ids=["plain", "closing"])
@pytest.mark.parametrize("depth", [1, 2, 33, pytest.param(100, marks=pytest.mark.slow)])
def test_every_depth(depth, closing):
    check_stack(depth, **SMALL, closing=closing, scaled=True, roundings=20)


@pytest.mark.parametrize("norm", ["layernorm-bare", "layernorm-no-bias", "rmsnorm", "none"])
def test_every_norm(norm):
    check_stack(2, **SMALL, norm=norm, scaled=True)


@pytest.mark.parametrize("batch", [(), (1,), (7,), (2, 3), (0,)], ids=str)
def test_every_batch(batch):
    check_stack(2, batch, **SMALL, scaled=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    """Of x, and of the gradient that comes in: the same bits as from packed copies."""
    parameters = MixerParameters.of(mixer(2, SMALL["tokens"], SMALL["width"], SMALL["hidden"]))
    parameters = MixerParameters(*(leaf(p) if isinstance(p, Tensor) else p for p in parameters))
    shape = (3, SMALL["tokens"], SMALL["width"])
    x, g = (layout(shape, torch.float32, DEVICE) for _ in "xg")

    def outcome(x, g):
        x = leaf(x)
        y = functional.mixer_stack(x, parameters)
        return y, *torch.autograd.grad(y, (x, *parameters.tensors), g)

    packed_copies = (t.clone(memory_format=torch.contiguous_format) for t in (x, g))
    for one, other in zip(outcome(x, g), outcome(*packed_copies), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("alpha", [1.0, 0.4])
@pytest.mark.parametrize("closing", [False, True], ids=["plain", "closing"])
def test_half_precision(closing, alpha):
    check_stack(dtype=torch.float16, closing=closing, alpha=alpha, roundings=32, kinks=closing)


@pytest.mark.gpu
@pytest.mark.parametrize("closing", [False, True], ids=["plain", "closing"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_the_cifar_mixer(dtype, closing, alpha):
    sizes = (16, (37,), 64, 128, (64, 512))
    options = {"scaled": alpha == 1, "alpha": alpha, "roundings": 40, "kinks": True}
    check_stack(*sizes, closing, dtype, **options)


@pytest.mark.slow
def test_the_cifar_mixer_in_fp32():
    check_stack(4, (2,), 64, 128, (64, 512), scaled=True)


@pytest.mark.parametrize("closing", [False, True], ids=["plain", "closing"])
def test_equals_the_blocks_themselves(closing):
    blocks = mixer(3, **SMALL, closing=closing)
    x = torch.randn(2, 4, 16, device=DEVICE)
    y, u = x, x
    for block in blocks:
        u = block(u)
        y = y + u
    with torch.no_grad():
        got = functional.mixer_stack(x, MixerParameters.of(blocks))
    torch.testing.assert_close(got, y, rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_blocks():
    blocks = mixer(2, **SMALL)
    y = functional.mixer_stack(torch.randn(2, 4, 16, device=DEVICE), MixerParameters.of(blocks))
    y.square().sum().backward()
    for block in blocks:
        for name, parameter in block.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_the_same_from_run_to_run():
    blocks = mixer(3, **SMALL, closing=True)
    x = leaf(torch.randn(5, 4, 16, device=DEVICE))
    scales = leaf(torch.rand(4, device=DEVICE))
    wanted = [x, scales, *(p for block in blocks for p in block.parameters())]

    def run():
        y = functional.mixer_stack(x, MixerParameters.of(blocks), None, scales)
        return [y, *torch.autograd.grad(y.square().sum(), wanted)]

    assert all(map(torch.equal, run(), run()))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bad_numbers_stay_in_their_sample():
    parameters = MixerParameters.of(mixer(2, 5, 20, (7, 9)))
    x = torch.randn(4, 5, 20, device=DEVICE)
    x[1, 2, 3], x[3, 0, 0] = torch.nan, torch.inf
    with torch.no_grad():
        y = functional.mixer_stack(x, parameters)
    assert y[[0, 2]].isfinite().all() and y[[1, 3]].isnan().any()


def test_is_not_differentiated_twice():
    x = leaf(torch.randn(2, 4, 16, device=DEVICE))
    y = functional.mixer_stack(x, MixerParameters.of(mixer(1, **SMALL)))
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_bad_arguments():
    parameters = MixerParameters.of(mixer(2, **SMALL))
    x = torch.randn(2, 4, 16, device=DEVICE)
    for given, error, message in (
        ((x[0, 0], parameters), ValueError, r"x has shape \(16,\)"),
        ((x, parameters._replace(eps=0.0)), ValueError, r"parameters.eps is 0\.0"),
        ((x, list(parameters)), TypeError, "parameters is a list"),
        ((x[:, :3], parameters), ValueError, r"token1_weight has shape \(2, 8, 4\)"),
        ((x.half(), parameters), TypeError, "norm1_weight has dtype torch.float32"),
        ((x, parameters, None, torch.ones(2)), ValueError, r"scales has shape \(2,\)"),
        ((x, parameters, NormSpec("layer", torch.ones(3))), ValueError, "spec.weight has shape"),
        (
            (x, parameters._replace(closing_weight=torch.ones(2, 16, 16, device=DEVICE))),
            ValueError,
            "closing_bias has shape None",
        ),
        ((x, parameters, None, None, True, 1.5), ValueError, "alpha is 1.5"),
        ((x, parameters, None, None, True, [1.0]), ValueError, "alpha has 1 entries"),
        ((x, parameters, None, None, True, torch.ones(3)), ValueError, r"\(3,\); 2 layers"),
        ((x, parameters, None, None, True, torch.tensor(1)), ValueError, "alpha is torch.int64"),
        ((x, parameters, None, None, True, leaf(torch.ones(()))), ValueError, "requires a grad"),
        ((x, parameters, None, torch.ones(3, device=DEVICE), True, 0.5), ValueError, "nor without"),
        ((x, parameters, None, None, False, 0.5), ValueError, "nor without the input"),
        (
            (x, parameters._replace(channel2_bias=torch.ones(2, 15, device=DEVICE))),
            ValueError,
            r"channel2_bias has shape \(2, 15\); for samples of 4 x 16 it takes \(2, 16\)",
        ),
    ):
        with pytest.raises(error, match=message):
            functional.mixer_stack(*given)
