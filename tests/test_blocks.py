"""The blocks: their equations on their own, their names, their sublayers, their closing step."""

from __future__ import annotations

import pytest
import torch
from layers import BACKENDS, device_of, packed, wide_copy
from loops import attention, block_network, halves, normed, perceptron, sublayer_network
from tolerances import assert_close
from torch import nn

from acn_kernels import FusedACNStack
from acn_kernels.blocks import (
    Attention,
    FeedForwardStack,
    MixerBlock,
    Mlp,
    PostNormBlock,
    TransformerBlock,
)
from acn_kernels.rows import Rows

BLOCKS = {
    "transformer": lambda: TransformerBlock(8, 2),
    "transformer-rmsnorm": lambda: TransformerBlock(8, 4, 12, norm=nn.RMSNorm),
    "mixer": lambda: MixerBlock(5, 8, 6, 16),
    "mixer-rmsnorm": lambda: MixerBlock(5, 8, 6, 16, norm=nn.RMSNorm),
}


def scrambled(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 0.5, 0.4)
    return module.double()


def test_attention_and_perceptron_are_the_textbooks():
    x = torch.randn(2, 5, 8).double()
    module = scrambled(Attention(8, 2))
    assert_close(module(x), attention(module, x))
    module = scrambled(Mlp(8, 20))
    assert_close(module(x), perceptron(module, x))


def test_attention_masks():
    x, module = torch.randn(2, 5, 8).double(), scrambled(Attention(8, 2))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    assert_close(module(x, is_causal=True), module(x, mask))
    assert_close(module(x, mask)[:, :1], attention(module, x[:, :1]))
    rows = Rows("last").resolve(5, x.device)
    for selection in (None, rows):
        with pytest.raises(ValueError, match="is_causal is True beside an attn_mask"):
            module(x, mask, is_causal=True, rows=selection)


class Cache:
    """A key-value cache of one layer."""

    keys = values = None

    def update(self, keys, values, layer_idx):
        if self.keys is not None:
            keys, values = (
                torch.cat(pair, 2) for pair in ((self.keys, keys), (self.values, values))
            )
        self.keys, self.values = keys, values
        return keys, values


def test_attention_behind_earlier_tokens():
    x, module, cache = torch.randn(2, 5, 8).double(), scrambled(Attention(8, 2)), Cache()
    whole = module(x, is_causal=True)
    assert_close(module(x[:, :3], is_causal=True, past_key_values=cache), whole[:, :3])
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[3:]
    assert_close(module(x[:, 3:], mask, past_key_values=cache), whole[:, 3:])


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_alone_adds_nothing_back(kind):
    block, x = scrambled(BLOCKS[kind]()), torch.randn(2, 5, 8).double()
    first, second = halves(block)
    assert_close(block(x), second(first(x)))


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("granularity", ["block", "sublayer"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend(backend, granularity, alpha, kind):
    device = device_of(backend)
    stack = FusedACNStack([BLOCKS[kind]() for _ in range(2)], nn.LayerNorm(8), alpha=alpha,
                          granularity=granularity, backend=backend).to(device)  # fmt: skip
    loop = block_network if granularity == "block" else sublayer_network
    x = packed((2, 5, 8), torch.float32, device).requires_grad_()
    twin, wide = wide_copy(stack), x.detach().double().cpu().requires_grad_()
    truth = loop(list(twin), wide, alpha, twin.norm)
    assert_close(stack(x), truth, roundings=8)
    incoming = torch.randn(2, 5, 8)
    (got,) = torch.autograd.grad(stack(x), x, incoming.to(device))
    (true,) = torch.autograd.grad(truth, wide, incoming.double())
    assert_close(got, true, roundings=16)


@pytest.mark.parametrize("kind", ["transformer", "mixer"])
def test_sublayer_scales_have_one_entry_for_each_half(kind):
    blocks = [scrambled(BLOCKS[kind]()) for _ in range(2)]
    stack = FusedACNStack(blocks, granularity="sublayer", scales="learned").double()
    nn.init.normal_(stack.scales)
    assert stack.scales.shape == (5,)
    x = torch.randn(2, 5, 8).double()
    y, out = stack.scales[0] * x, x
    sublayers = [half for block in blocks for half in halves(block)]
    for scale, half in zip(stack.scales[1:], sublayers, strict=True):
        out = half(out)
        y = y + scale * out
    assert_close(stack(x), y)
    incoming = torch.randn_like(y)
    got = torch.autograd.grad(stack(x), stack.scales, incoming)
    assert_close(*got, torch.autograd.grad(y, stack.scales, incoming)[0], among=10)
    assert stack.truncate(1).scales.shape == (3,)
    with torch.no_grad():
        assert_close(stack(x), y)


@pytest.mark.parametrize("granularity", ["block", "sublayer"])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_closing_step_of_the_mixer(alpha, granularity):
    """out = norm3(relu(linear(x_i) + u)), the shortcut inside the layer; one layer either way."""
    blocks = [scrambled(MixerBlock(5, 8, 6, 16, closing=True)) for _ in range(2)]
    stack = FusedACNStack(blocks, alpha=alpha, granularity=granularity)
    x = torch.randn(2, 5, 8).double()
    y, out = x, x
    for block in blocks:
        first, second = halves(block)
        u = alpha * out + (1 - alpha) * y
        h = first(u)
        h = second(h + (1 - alpha) * u) + (1 - alpha) * h
        h = torch.relu(h @ block.closing.weight.T + block.closing.bias + u)
        out = normed(h, block.norm3)
        y = y + out
    assert_close(stack(x), y)
    assert len(blocks[0].entry_norms) == 1


def test_closing_step_lets_no_mediated_gradient_through():
    blocks = [MixerBlock(5, 8, 6, 12, closing=True) for _ in range(2)]
    stack = FusedACNStack(blocks, include_input=False, direct_gradient_only=True)
    x = torch.randn(2, 5, 8, requires_grad=True)
    stack(x).square().sum().backward()
    assert x.grad is None or not x.grad.any()


def test_names_are_those_of_timm():
    names = {name for name, _ in TransformerBlock(8, 2).named_parameters()}
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    assert names == {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}


def test_widths():
    for kind in (TransformerBlock, PostNormBlock):
        assert kind(8, 2).mlp.fc1.out_features == 32
        with pytest.raises(ValueError, match="hidden is 0"):
            kind(8, 2, 0)
    block = MixerBlock(5, 8, 6, 16)
    assert block.token_mlp.fc1.weight.shape == (6, 5)
    assert block.channel_mlp.fc1.weight.shape == (16, 8)


@pytest.mark.parametrize("rows", [None, "last"], ids=["all", "last"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_feedforward_stack(backend, rows):
    device = device_of(backend)
    options = {"rows": rows, "backend": backend}
    stack = FeedForwardStack([TransformerBlock(8, 2) for _ in range(2)], nn.LayerNorm(8), **options)
    x = packed((2, 5, 8), torch.float32, device).requires_grad_()
    truth = wide = x.detach().double().cpu().requires_grad_()
    twin = wide_copy(stack)
    for block in twin:
        for half in halves(block):
            truth = half(truth)
    truth = normed(truth if rows is None else truth[:, -1:], twin.norm)
    y = stack.to(device)(x)
    assert_close(y, truth, roundings=8)
    incoming = torch.randn(truth.shape)
    (got,) = torch.autograd.grad(y, x, incoming.to(device))
    assert_close(got, torch.autograd.grad(truth, wide, incoming.double())[0], roundings=32)
    with torch.no_grad():
        assert_close(stack(x), truth, roundings=8)
