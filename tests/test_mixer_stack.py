"""mixer_stack: an ACN of Mixer blocks as one operation, forward and backward."""

from __future__ import annotations

import pytest
import torch
from conftest import DEVICE
from layers import LAYOUTS, leaf, make_norm, packed, wide_copy, wide_leaf
from tolerances import assert_close
from torch import Tensor, nn

from acn_kernels import FusedACNStack, NormSpec, dispatch, explain, functional, reference
from acn_kernels.blocks import MixerBlock, Mlp
from acn_kernels.functional import MixerParameters, obstacle_to_mixer_stack
from acn_kernels.whole_stack import whole_stack_of

triton_runs, why_not = dispatch.availability()["triton"]
pytestmark = [pytest.mark.triton, pytest.mark.skipif(not triton_runs, reason=why_not)]
SMALL = {"tokens": 4, "width": 16, "hidden": (8, 16)}


def mixer(depth, tokens, width, hidden, closing=False, dtype=torch.float32) -> list[MixerBlock]:
    """Blocks with random parameters through which an error shrinks, however many there are."""
    blocks = [MixerBlock(tokens, width, *hidden, closing) for _ in range(depth)]
    for block in blocks:
        for name, parameter in block.named_parameters():
            if "norm" in name:
                nn.init.uniform_(parameter, 0.5, 1.5)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.6 * parameter.shape[1] ** -0.5)
            else:
                nn.init.normal_(parameter)
    return [block.to(DEVICE, dtype) for block in blocks]


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


def hooked(blocks):
    blocks[1].norm2.register_forward_hook(lambda *_: None)


def replaced(blocks):
    blocks[1].token_mlp.act = nn.SiLU()


def other_norm(blocks):
    blocks[0].norm1 = nn.RMSNorm(16)


def other_eps(blocks):
    blocks[1].norm2.eps = 1e-3


def no_eps(blocks):
    blocks[1].norm2.eps = 0.0


def without_bias(blocks):
    blocks[0].channel_mlp.fc1 = nn.Linear(16, 16, bias=False)


def other_block(blocks):
    blocks[1] = nn.Identity()


def other_size(blocks):
    blocks[1] = MixerBlock(4, 16, 8, 17)


def own_forward(blocks):
    blocks[1].channel_mlp.forward = lambda x: x


class Twice(Mlp):
    def forward(self, x, backend="auto"):
        return 2 * super().forward(x, backend)


def own_mlp(blocks):
    blocks[1].channel_mlp = Twice(16, 16).to(DEVICE)


def no_mlp(blocks):
    blocks[0].token_mlp = nn.Identity()


def none_left(blocks):
    blocks.clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hooked, r"layers\[1\] has hooks on norm2 \(LayerNorm\)"),
        (replaced, r"layers\[1\] has SiLU\(\) between its Linear layers"),
        (other_norm, r"layers\[0\] has norm1 of RMSNorm, not LayerNorm"),
        (other_eps, r"layers\[1\] differs from layers\[0\]"),
        (no_eps, r"layers\[1\] has norm2 with an eps of 0\.0"),
        (without_bias, r"layers\[0\] has channel_mlp.fc1 without a weight or a bias"),
        (other_block, r"layers\[1\] is a Identity, no MixerBlock"),
        (other_size, r"layers\[1\] differs from layers\[0\]"),
        (own_forward, r"layers\[1\] has hooks on channel_mlp"),
        (own_mlp, r"layers\[1\] has channel_mlp of Twice, not Mlp"),
        (no_mlp, r"layers\[0\] has token_mlp of Identity, not Mlp"),
        (none_left, "there is no layer"),
    ],
)
def test_blocks_that_make_no_stack(change, message):
    blocks = mixer(2, **SMALL)
    x = torch.randn(2, 4, 16, device=DEVICE)
    assert obstacle_to_mixer_stack(blocks, x) is None
    change(blocks)
    with pytest.raises(ValueError, match=message):
        MixerParameters.of(blocks)
    assert obstacle_to_mixer_stack(blocks, x) is not None


def test_inputs_that_do_not_fit():
    blocks = mixer(2, **SMALL)
    x = torch.randn(2, 4, 16, device=DEVICE)
    assert "the layers take [..., 4, 16]" in obstacle_to_mixer_stack(blocks, x[:, :3])
    assert "torch.float16" in obstacle_to_mixer_stack(blocks, x.half())
    wide = mixer(1, 4, 300, (8, 8))
    large = mixer(1, 64, 200, (8, 8))
    assert "too large" in obstacle_to_mixer_stack(wide, torch.randn(1, 4, 300, device=DEVICE))
    assert "8192" in obstacle_to_mixer_stack(large, torch.randn(1, 64, 200, device=DEVICE))
    with pytest.raises(RuntimeError, match="too large"):
        functional.mixer_stack(torch.randn(1, 64, 200, device=DEVICE), MixerParameters.of(large))


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


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("depth", [None, 2])
@pytest.mark.parametrize("alpha", [1.0, 0.0, 0.3, [0.0, 0.6, 1.0]], ids=str)
def test_the_stack_takes_it_by_itself(closing, depth, alpha):
    blocks = [MixerBlock(5, 20, 7, 24, closing) for _ in range(3)]
    options = {"alpha": alpha, "scales": "learned" if alpha == 1 else None, "backend": "triton"}
    stack = FusedACNStack(blocks, nn.LayerNorm(20), **options).to(DEVICE)
    truth = wide_copy(stack)
    truth.backend = "torch"
    x = leaf(packed((2, 5, 20), torch.float32, DEVICE))
    wide = wide_leaf(x)
    assert whole_stack_of(stack, x, 3, True).operation == "mixer_stack"
    assert "mixer_stack" in str(explain(stack, x))
    y, true_y = stack(x, depth=depth), truth(wide, depth=depth)
    assert_close(y, true_y, torch.float32, roundings=32)
    g = torch.randn_like(y)
    y.backward(g)
    true_y.backward(g.double().cpu())
    assert_close(x.grad, wide.grad, torch.float32, roundings=64, among=1.0)
    for (name, one), other in zip(stack.named_parameters(), truth.parameters(), strict=True):
        if other.grad is None or one.grad is None:
            assert all(p.grad is None or not p.grad.any() for p in (one, other)), name
        else:
            assert_close(one.grad, other.grad, torch.float32, roundings=64, name=name, among=1.0)


@pytest.mark.parametrize("options", [{"scales": "learned"}, {"include_input": False}], ids=str)
def test_what_goes_with_alpha_1_alone(options):
    stack = FusedACNStack([MixerBlock(5, 20, 7, 24)], alpha=0.5, backend="triton", **options)
    x = packed((2, 5, 20), torch.float32, DEVICE)
    assert "alpha is not 1, beside" in whole_stack_of(stack.to(DEVICE), x, 1, True)


def test_alpha_on_the_device_is_read_there():
    """As recorded steps read it: what is written there later counts, without a word to the host."""
    stack = FusedACNStack(mixer(2, **SMALL), alpha=0.5, backend="triton")
    x = torch.randn(2, 4, 16, device=DEVICE)
    stack.mix = torch.full((), 0.25, dtype=torch.float64, device=DEVICE)
    with torch.no_grad():
        first = stack(x)
        stack.mix.fill_(0.75)
        second = stack(x)
        for alpha, y in ((0.25, first), (0.75, second)):
            stack.alpha = alpha
            assert stack(x).equal(y)


@pytest.mark.gpu
@pytest.mark.parametrize("alpha", [0.5, [0.2, 0.7]], ids=str)
def test_a_cuda_graph_takes_alpha_from_the_host(alpha):
    stack = FusedACNStack(mixer(2, **SMALL), alpha=alpha, backend="triton").requires_grad_(False)
    x = torch.randn(2, 4, 16, device=DEVICE)
    expected = stack(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = stack(x)
    y.fill_(torch.nan)
    graph.replay()
    assert y.equal(expected)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: [MixerBlock(5, 20, 7, 24), MixerBlock(5, 20, 8, 24)], "differs from layers"),
        (lambda: [type("Mine", (MixerBlock,), {})(5, 20, 7, 24)], "Mine is of no kind"),
        (lambda: [MixerBlock(5, 20, 7, 24, norm=nn.RMSNorm)], "norm1 of RMSNorm"),
        (lambda: [MixerBlock(6, 20, 7, 24)], "the layers take"),
    ],
)
def test_stacks_that_it_leaves_alone(make, reason):
    stack = FusedACNStack(make(), backend="triton").to(DEVICE)
    obstacle = whole_stack_of(stack, packed((2, 5, 20), torch.float32, DEVICE), len(stack), True)
    assert isinstance(obstacle, str) and reason in obstacle, obstacle
