"""Which blocks and which stacks of them run as mixer_stack, and that they do it by themselves."""

from __future__ import annotations

import pytest
import torch
from conftest import DEVICE
from layers import leaf, packed, wide_copy, wide_leaf
from mixer_blocks import SMALL, mixer
from tolerances import assert_close
from torch import nn

from acn_kernels import FusedACNStack, dispatch, explain, functional
from acn_kernels.blocks import MixerBlock, Mlp
from acn_kernels.functional import MixerParameters, obstacle_to_mixer_stack
from acn_kernels.whole_stack import whole_stack_of

triton_runs, why_not = dispatch.availability()["triton"]
pytestmark = [pytest.mark.triton, pytest.mark.skipif(not triton_runs, reason=why_not)]


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
