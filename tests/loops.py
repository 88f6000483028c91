"""Plain loops, written from the equations and from nothing in the package: what it must equal.

Every loop takes layers through ``plain(layer, u)``: the layer as a function f_i of its input.
"""

from __future__ import annotations

import math

import torch
from tolerances import assert_close
from torch import Tensor, nn


def normed(x: Tensor, module: nn.Module | None) -> Tensor:
    """LayerNorm or RMSNorm by its definition; any other module is called; None is the identity."""
    if module is None:
        return x
    if not isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return module(x)
    eps = module.eps if module.eps is not None else torch.finfo(x.dtype).eps
    if isinstance(module, nn.LayerNorm):
        x = x - x.sum(-1, keepdim=True) / x.shape[-1]
    out = x / ((x * x).sum(-1, keepdim=True) / x.shape[-1] + eps) ** 0.5
    if module.weight is not None:
        out = out * module.weight
    if getattr(module, "bias", None) is not None:
        out = out + module.bias
    return out


def plain(layer: nn.Module, u: Tensor) -> Tensor:
    """f_i(u): entry norm included, no connection of any kind."""
    return layer.body(normed(u, layer.norm)) if hasattr(layer, "body") else layer(u)


def kept(y: Tensor, tokens: list[int] | None) -> Tensor:
    return y if tokens is None else torch.stack([y[..., t, :] for t in tokens], dim=-2)


def acn(layers, x, norm=None, scales=None, include_input=True, tokens=None) -> Tensor:
    """Eq. 1: x_i = f_i(x_{i-1}), y = norm(sum_i a_i x_i)."""
    outputs = [x]
    for layer in layers:
        outputs.append(plain(layer, outputs[-1]))
    terms = outputs if include_input else outputs[1:]
    scales = [1.0] * len(terms) if scales is None else scales
    y = 0
    for scale, term in zip(scales, terms, strict=True):
        y = y + scale * term
    return normed(kept(y, tokens), norm)


def direct_gradient_only(layers, x, norm=None) -> Tensor:
    """The DG-only ACN: every layer's input is cut from the graph."""
    y = x
    for layer in layers:
        x = plain(layer, x.detach())
        y = y + x
    return normed(y, norm)


def mixture(layers, x, alpha, norm=None, scales=None, tokens=None) -> list[Tensor]:
    """Any alpha, granularity of the given layers; [norm(y_0), .. norm(y_L)]."""
    scales = [1.0] * (len(layers) + 1) if scales is None else scales
    y = scales[0] * x
    outputs = [y]
    for layer, scale in zip(layers, scales[1:], strict=True):
        x = plain(layer, alpha * x + (1 - alpha) * y)
        y = y + scale * x
        outputs.append(y)
    return [normed(kept(y, tokens), norm) for y in outputs]


def feedforward(layers, x, norm=None) -> Tensor:
    for layer in layers:
        x = plain(layer, x)
    return normed(x, norm)


def attention(module: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Multi-head self-attention from the weights of blocks.Attention, softmax written out.

    mask: broadcast to [B, T, T], True where a token (row) reads another; one that reads none gets
    zeros.
    """
    qkv = x @ module.qkv.weight.T + module.qkv.bias
    heads = []
    width = x.shape[-1]
    size = width // module.heads
    for head in range(module.heads):
        q, k, v = (
            qkv[..., part * width + head * size : part * width + (head + 1) * size]
            for part in range(3)
        )
        weights = torch.exp(q @ k.transpose(1, 2) / math.sqrt(size))
        if mask is not None:
            weights = weights * mask
        heads.append(weights / weights.sum(-1, keepdim=True).clamp(min=1e-300) @ v)
    return torch.cat(heads, -1) @ module.proj.weight.T + module.proj.bias


def perceptron(module: nn.Module, x: Tensor) -> Tensor:
    x = x @ module.fc1.weight.T + module.fc1.bias
    x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return x @ module.fc2.weight.T + module.fc2.bias


def halves(block: nn.Module, mask: Tensor | None = None):
    """The two sublayers of a transformer or Mixer block as functions, each behind its norm."""
    if hasattr(block, "attn"):
        yield lambda u: attention(block.attn, normed(u, block.norm1), mask)
        yield lambda u: perceptron(block.mlp, normed(u, block.norm2))
    else:
        yield lambda u: perceptron(
            block.token_mlp, normed(u, block.norm1).transpose(1, 2)
        ).transpose(1, 2)
        yield lambda u: perceptron(block.channel_mlp, normed(u, block.norm2))


def residual_network(blocks, x, norm=None) -> Tensor:
    """The pre-norm residual transformer (or Mixer): x = x + f(norm(x)) for every half block."""
    for block in blocks:
        for half in halves(block):
            x = x + half(x)
    return normed(x, norm)


def block_network(blocks, x, alpha, norm=None) -> Tensor:
    """Granularity "block": h = f1(u), m = f2(h + (1-alpha) u), x_i = m + (1-alpha) h."""
    y = x
    for block in blocks:
        first, second = halves(block)
        u = alpha * x + (1 - alpha) * y
        h = first(u)
        x = second(h + (1 - alpha) * u) + (1 - alpha) * h
        y = y + x
    return normed(y, norm)


def sublayer_network(blocks, x, alpha, norm=None) -> Tensor:
    """Granularity "sublayer": every half block is a layer of the equation."""
    y = x
    for block in blocks:
        for half in halves(block):
            x = half(alpha * x + (1 - alpha) * y)
            y = y + x
    return normed(y, norm)


def assert_equal_network(stack, truth, x, call=None):
    """Output and all gradients of the stack and of truth(x), which has the same weights; the output
    without gradients too. ``call``: a way to call the stack."""
    call, x = call or stack, x.detach().requires_grad_()
    y, true_y = call(x), truth(x)
    assert_close(y, true_y, name="y")
    incoming = torch.randn_like(y)
    names, inputs = zip(("x", x), *stack.named_parameters(), strict=True)
    got = torch.autograd.grad(y, inputs, incoming)
    expected = torch.autograd.grad(true_y, inputs, incoming)
    for name, one, true in zip(names, got, expected, strict=True):
        assert_close(one, true, name=name, among=float(incoming.abs().sum()))
    with torch.no_grad():
        assert_close(call(x), true_y, name="y without gradients")
