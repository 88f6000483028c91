"""The last executed block computes no rows that nobody reads: same results, fewer products."""

from __future__ import annotations

import pytest
import torch
from layers import BACKENDS, Opaque, device_of, leaf, packed, wide_copy
from loops import block_network, sublayer_network
from tolerances import assert_close
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from acn_kernels import EarlyExit, FusedACNStack
from acn_kernels.blocks import FeedForwardStack, MixerBlock, TransformerBlock
from acn_kernels.models import create
from acn_kernels.rows import Rows

TOKENS, WIDTH, HEADS = 6, 16, 2
ROWS = ["first", "last", slice(1, 6, 2), [4, 0, 2]]
BLOCKS = {
    "transformer": lambda: TransformerBlock(WIDTH, HEADS),
    "transformer-rmsnorm": lambda: TransformerBlock(WIDTH, HEADS, norm=nn.RMSNorm),
    "mixer": lambda: MixerBlock(TOKENS, WIDTH, 5, 24),
    "mixer-closing": lambda: MixerBlock(TOKENS, WIDTH, 5, 24, closing=True),
    "opaque": lambda: Opaque(WIDTH),
}


def stack_of(kind="transformer", depth=3, cls=FusedACNStack, **options):
    blocks = [BLOCKS[kind]() for _ in range(depth)]
    stack = cls(blocks, nn.LayerNorm(WIDTH), **options)
    return stack.to(device_of(options.get("backend", "torch")))


def chosen(y, rows):
    return y[:, Rows(rows).positions(y.shape[1])]


def check(stack, rows, *args, depth=None, grad=True, **kwargs):
    """The stack with ``rows`` against the rows of the stack without, output and gradients."""
    device = next(stack.parameters()).device
    x = leaf(packed((2, TOKENS, WIDTH), torch.float32, device.type))
    stack.rows = None
    truth = chosen(stack(x, *args, depth=depth, **kwargs), rows)
    stack.rows = rows
    if not grad:
        with torch.no_grad():
            assert_close(stack(x, *args, depth=depth, **kwargs), truth, roundings=16)
        return
    y = stack(x, *args, depth=depth, **kwargs)
    assert_close(y, truth, roundings=16)
    g = torch.randn_like(y)
    inputs = [x, *(p for p in stack.parameters())]
    got, expected = (
        torch.autograd.grad(of, inputs, g, allow_unused=True, materialize_grads=True)
        for of in (y, truth)
    )
    for one, other in zip(got, expected, strict=True):
        assert_close(one, other, roundings=64, among=1.0)


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_block(backend, kind, rows):
    stack = stack_of(kind, backend=backend)
    check(stack, rows)
    check(stack, rows, grad=False)


@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "sublayer"},
        {"granularity": "sublayer", "scales": "learned"},
        {"checkpoint": True},
        {"direct_gradient_only": True},
        {"include_input": False},
        {"cls": FeedForwardStack},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["transformer", "mixer"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_option(backend, kind, options):
    stack = stack_of(kind, backend=backend, **options)
    for depth in (1, 2, 3):
        check(stack, "first", depth=depth)
        check(stack, [3, 1], depth=depth, grad=False)


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("granularity", ["block", "sublayer"])
def test_against_the_written_out_network(granularity, rows):
    stack = stack_of(granularity=granularity, rows=rows)
    network = block_network if granularity == "block" else sublayer_network
    wide = wide_copy(stack)
    x = packed((2, TOKENS, WIDTH), torch.float32, "cpu")
    truth = chosen(network(list(wide), x.double(), 1.0, wide.norm), rows)
    assert_close(stack(x), truth, roundings=16)


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_masks_belong_to_their_rows(rows):
    check(stack_of(), rows, is_causal=True)
    mask = torch.rand(TOKENS, TOKENS) < 0.6
    mask.fill_diagonal_(True)
    check(stack_of(), rows, attn_mask=mask)
    check(stack_of(), rows, attn_mask=torch.randn(2, HEADS, TOKENS, TOKENS))
    check(stack_of(), rows, attn_mask=torch.randn(2, 1, 1, TOKENS))


def test_a_projection_that_wants_to_be_called_is_called():
    stack, calls = stack_of(), []
    for block in stack:
        block.attn.qkv.register_forward_hook(lambda *_: calls.append(1))
    check(stack, "last")
    assert len(calls) == 2 * len(stack)


def test_torch_compile_in_one_graph():
    stack = stack_of(rows="last", backend="torch")
    x = packed((2, TOKENS, WIDTH), torch.float32, "cpu")
    compiled = torch.compile(stack, backend="aot_eager", fullgraph=True)
    assert_close(compiled(x, is_causal=True), stack(x, is_causal=True).double(), roundings=8)


def flops(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def linear_flops(rows: int, wide: int) -> int:
    return 2 * 2 * rows * WIDTH * wide  # batch of 2


@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("depth", [1, 3])
def test_the_products_of_dead_rows_are_gone(grad, depth):
    """Of the last block: q, the attention of a row, proj and the MLP, for one token of six."""
    x = packed((2, TOKENS, WIDTH), torch.float32, "cpu").requires_grad_(grad)
    stack = stack_of()

    def count(rows):
        stack.rows = rows
        with (
            torch.set_grad_enabled(grad),
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        ):
            return flops(lambda: stack(x, depth=depth))

    dead = TOKENS - 1
    attention = 2 * 2 * dead * 2 * TOKENS * WIDTH  # q k^T and its product with v
    linears = linear_flops(dead, WIDTH) * 2 + linear_flops(dead, 4 * WIDTH) * 2
    assert count(None) - count("first") == attention + linears


def test_the_states_of_advance_keep_every_row():
    stack = stack_of(rows="first")
    x = packed((2, TOKENS, WIDTH), torch.float32, "cpu")
    with torch.no_grad():
        state, y = stack.advance(x, stop=3)
        assert state.shape == x.shape
        assert_close(stack.output(state, y, 3), stack(x).double(), roundings=8)
        for stop in (2, 3):
            state, y = stack.advance(x, stop=1)
            finished = stack.finish(state, y, start=1, stop=stop)
            assert_close(finished, stack(x, depth=stop).double(), roundings=8)


def test_finish_has_gradients():
    stack = stack_of(rows="last", scales="learned")
    x = leaf(packed((2, TOKENS, WIDTH), torch.float32, "cpu"))
    state, y = stack.advance(x, stop=2)
    g = torch.randn(2, 1, WIDTH)
    inputs = [x, *stack.parameters()]
    got = torch.autograd.grad(stack.finish(state, y, start=2), inputs, g)
    for one, other in zip(got, torch.autograd.grad(stack(x), inputs, g), strict=True):
        assert_close(one, other.double(), roundings=64, among=1.0)


def test_early_exit_ends_with_the_read_row_alone():
    model = create(
        "acn_vit_digits", pool="first", width=WIDTH, heads=HEADS, mlp_width=4 * WIDTH, depth=3
    ).eval()
    nn.init.normal_(model.head.weight)
    images = torch.randn(2, 1, 8, 8)
    early = EarlyExit(model, exits=[1], threshold=0.0)  # nobody is that sure
    with torch.no_grad():
        assert_close(early(images).logits, model(images).double(), roundings=16)
        tokens = model.embed(images).shape[1]
        everyone = flops(lambda: early(images))
        model.blocks.rows = slice(0, None)
        assert everyone < flops(lambda: early(images)) - linear_flops(tokens - 1, 4 * WIDTH)
