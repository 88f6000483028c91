"""The gradients of a whole stack of Mixer layers: one sweep from the last layer to the first.

A program has one sample. Every layer is computed again from its kept input and taken backward in
two launches, the channel MLP and then the token MLP (three with the closing step), with the direct
gradient a_i g added to that of its output. For the gradients of the weights they write the
operands of one batched product for each kind of weight, over all layers and samples at once; those
of biases and norms are sums that they write as the sample's share.

With MIXED, ``carry`` has all of the gradient of a layer's output, and ``through_y`` what comes to
``y_i = y_{i-1} + x_i`` from above: the gradient of ``u_{i+1} = alpha x_i + (1 - alpha) y_i`` goes
to both.

One launch for all layers would save dx in fp32 on its way between two layers, a write and a read,
and dh a second read. But the addresses of a whole layer would then live through the loop, and a
sample of the CIFAR Mixer spills hundreds of bytes a thread on every target.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from acn_kernels.kernels.launch import packed
from acn_kernels.kernels.mixer_layer import (
    all_packed,
    channel_mlp,
    layer_norm,
    mixer_sizes,
    plus_short,
    read_matrix,
    short_weight,
    token_mlp,
)
from acn_kernels.kernels.mixer_layer_backward import (
    channel_mlp_backward,
    closing_backward,
    layer_norm_backward,
    normalised,
    token_mlp_backward,
)


@triton.jit
def hidden_state(
    u_ptr, at, mask, layer, parameters, eps,
    T: tl.constexpr, D: tl.constexpr, TOKEN_HIDDEN: tl.constexpr,
    TOKEN_CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(u, h): the layer's input, and what the token MLP makes of it, in fp32."""
    col = tl.arange(0, at.shape[1])
    u = tl.load(u_ptr + at, mask=mask, other=0.0)
    n, _, _ = layer_norm(u.to(tl.float32), mask, col, layer, parameters[0], parameters[1], eps, D)
    h = token_mlp(n.to(u.dtype), layer, parameters, T, D, TOKEN_HIDDEN, TOKEN_CHUNK, PRECISION)
    return u, tl.where(mask, h, 0.0)


@triton.jit
def output_gradient(
    g_ptr, out_ptr, carry_ptr, scale_ptr, dscale_ptr, at, mask, layer, layers,
    T: tl.constexpr, MIXED: tl.constexpr, HAS_SCALES: tl.constexpr,
):  # fmt: skip
    """The gradient of the layer's output: what the next layer hands down, and a g; the sample's
    share of the gradient of a, <g, x> by token, goes to ``dscale_ptr`` [T]."""
    token = tl.arange(0, at.shape[0])
    g_mask = mask & (layer + 1 == layers) if MIXED else mask
    g = tl.load(g_ptr + at, mask=g_mask, other=0.0).to(tl.float32)
    if HAS_SCALES:
        out = tl.load(out_ptr + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(dscale_ptr + token, tl.sum(g * out, axis=1), mask=token < T)
        g *= tl.load(scale_ptr + layer + 1).to(tl.float32)
    return g + tl.load(carry_ptr + at, mask=mask & (layer + 1 < layers), other=0.0)


# Specialised on the layer, a kernel would be compiled for the second, the 17th, ... one again.
@triton.jit(do_not_specialize=["layer"])
def closing_backward_kernel(
    g_ptr, u_ptr, out_ptr, parameters, alpha_ptr, scale_ptr, carry_ptr, dscale_ptr, share_ptr,
    m_ptr, dz_ptr, dm_ptr, layer, layers, eps,
    MIXED: tl.constexpr, HAS_SCALES: tl.constexpr, SHARES: tl.constexpr,
    T: tl.constexpr, D: tl.constexpr, TOKEN_HIDDEN: tl.constexpr, CHANNEL_HIDDEN: tl.constexpr,
    CLOSING: tl.constexpr, TILE_T: tl.constexpr, TILE_D: tl.constexpr,
    TOKEN_CHUNK: tl.constexpr, CHANNEL_CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """From the gradient of the layer's output to dm, that of the channel MLP's."""
    sample = tl.program_id(0).to(tl.int64)
    place = layer * tl.num_programs(0).to(tl.int64) + sample
    token = tl.arange(0, TILE_T)
    col = tl.arange(0, TILE_D)
    mask = (token < T)[:, None] & (col < D)[None, :]
    at = token[:, None] * D + col[None, :]
    own = sample * (T * D)
    tile = place * (T * D)
    u, h = hidden_state(
        u_ptr + own, at, mask, layer, parameters, eps, T, D, TOKEN_HIDDEN, TOKEN_CHUNK, PRECISION
    )
    short = short_weight(alpha_ptr, layer, MIXED)
    v = plus_short(h, u, short, MIXED)
    h = h.to(u.dtype)  # as in the forward pass
    n, _, _ = layer_norm(v, mask, col, layer, parameters[6], parameters[7], eps, D)
    m = channel_mlp(n.to(u.dtype), layer, parameters, D, CHANNEL_HIDDEN, CHANNEL_CHUNK, PRECISION)
    m = plus_short(m, h, short, MIXED).to(u.dtype)
    tl.store(m_ptr + tile + at, m, mask=mask)
    # Cheaper to read again than to hold all the way.
    u = tl.load(u_ptr + own + at, mask=mask, other=0.0)
    dx = output_gradient(
        g_ptr + own, out_ptr + own, carry_ptr + own, scale_ptr,
        dscale_ptr + (place + tl.num_programs(0)) * T, at, mask, layer, layers,
        T, MIXED, HAS_SCALES,
    )  # fmt: skip
    share = share_ptr + place * SHARES + (SHARES - 3 * D)
    dz = closing_backward(dx, u, m, mask, layer, parameters, eps, share, D, PRECISION)
    tl.store(dz_ptr + tile + at, dz, mask=mask)
    weight = read_matrix(parameters[12], layer, col, col, D, D)
    dm = tl.dot(dz, weight, input_precision=PRECISION)
    tl.store(dm_ptr + tile + at, dm.to(u.dtype), mask=mask)


@triton.jit(do_not_specialize=["layer"])
def channel_backward_kernel(
    g_ptr, u_ptr, out_ptr, parameters, alpha_ptr, scale_ptr, carry_ptr, dscale_ptr, share_ptr,
    n_ptr, hidden_ptr, dhidden_ptr, dm_ptr, dh_ptr, around_ptr, layer, layers, eps,
    MIXED: tl.constexpr, HAS_SCALES: tl.constexpr, SHARES: tl.constexpr,
    T: tl.constexpr, D: tl.constexpr, TOKEN_HIDDEN: tl.constexpr, CHANNEL_HIDDEN: tl.constexpr,
    CLOSING: tl.constexpr, TILE_T: tl.constexpr, TILE_D: tl.constexpr,
    TOKEN_CHUNK: tl.constexpr, CHANNEL_CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """From dm, the gradient of the channel MLP's output, to dh, that of the token MLP's. Without
    the closing step dm is that of the layer's output."""
    sample = tl.program_id(0).to(tl.int64)
    samples = tl.num_programs(0).to(tl.int64)
    place = layer * samples + sample
    token = tl.arange(0, TILE_T)
    col = tl.arange(0, TILE_D)
    mask = (token < T)[:, None] & (col < D)[None, :]
    at = token[:, None] * D + col[None, :]
    own = sample * (T * D)
    tile = place * (T * D)
    share = share_ptr + place * SHARES
    hidden_share = share + 4 * D + TOKEN_HIDDEN + T
    u, h = hidden_state(
        u_ptr + own, at, mask, layer, parameters, eps, T, D, TOKEN_HIDDEN, TOKEN_CHUNK, PRECISION
    )
    short = short_weight(alpha_ptr, layer, MIXED)
    v = plus_short(h, u, short, MIXED)
    n, mean, rstd = layer_norm(v, mask, col, layer, parameters[6], parameters[7], eps, D)
    n = n.to(u.dtype)
    # Rounded after the mean is gone: v itself would lose what it varies by.
    normed = normalised(v, mask, mean, rstd).to(u.dtype)
    tl.store(n_ptr + tile + at, n, mask=mask)
    if CLOSING:
        dm = tl.load(dm_ptr + tile + at, mask=mask, other=0.0)
    else:
        dm = output_gradient(
            g_ptr + own, out_ptr + own, carry_ptr + own, scale_ptr,
            dscale_ptr + (place + samples) * T, at, mask, layer, layers, T, MIXED, HAS_SCALES,
        ).to(u.dtype)  # fmt: skip
        tl.store(dm_ptr + tile + at, dm, mask=mask)
    dc2 = tl.sum(dm.to(tl.float32), axis=0)
    tl.store(hidden_share + CHANNEL_HIDDEN + col, dc2, mask=col < D)
    dn = channel_mlp_backward(
        n, dm, layer, parameters, hidden_ptr + place * (T * CHANNEL_HIDDEN),
        dhidden_ptr + place * (T * CHANNEL_HIDDEN), hidden_share,
        T, D, CHANNEL_HIDDEN, CHANNEL_CHUNK, PRECISION,
    )  # fmt: skip
    dv = layer_norm_backward(
        dn, normed.to(tl.float32), rstd, mask, col, layer, parameters[6], share + 2 * D, D
    )
    if MIXED:
        tl.store(around_ptr + own + at, short * dv, mask=mask)
    dh = plus_short(dv, dm, short, MIXED)
    tl.store(share + 4 * D + TOKEN_HIDDEN + token, tl.sum(dh, axis=1), mask=token < T)
    # The operands of the token MLP's products lie [layer, token, sample, column].
    turned = dh_ptr + (layer * T * samples + sample) * D
    turned_at = token.to(tl.int64)[:, None] * (samples * D) + col[None, :]
    tl.store(turned + turned_at, dh.to(u.dtype), mask=mask)


@triton.jit(do_not_specialize=["layer"])
def token_backward_kernel(
    g_ptr, u_ptr, parameters, alpha_ptr, scale_ptr, carry_ptr, dx_ptr, dscale_ptr, share_ptr,
    n_ptr, hidden_ptr, dhidden_ptr, dh_ptr, dz_ptr, around_ptr, through_y_ptr, next_through_y_ptr,
    layer, layers, eps,
    INCLUDE_INPUT: tl.constexpr, MIXED: tl.constexpr, HAS_SCALES: tl.constexpr,
    SHARES: tl.constexpr,
    T: tl.constexpr, D: tl.constexpr, TOKEN_HIDDEN: tl.constexpr, CHANNEL_HIDDEN: tl.constexpr,
    CLOSING: tl.constexpr, TILE_T: tl.constexpr, TILE_D: tl.constexpr,
    TOKEN_CHUNK: tl.constexpr, CHANNEL_CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """From dh to the gradient of the layer's input: in ``carry`` for the layer before, and of the
    first one, with a_0 g, in ``dx``. With MIXED to that of the output of the layer before."""
    sample = tl.program_id(0).to(tl.int64)
    samples = tl.num_programs(0).to(tl.int64)
    token = tl.arange(0, TILE_T)
    col = tl.arange(0, TILE_D)
    mask = (token < T)[:, None] & (col < D)[None, :]
    at = token[:, None] * D + col[None, :]
    own = sample * (T * D)
    share = share_ptr + (layer * samples + sample) * SHARES
    turned_tile = (layer * T * samples + sample) * D
    turned_at = token.to(tl.int64)[:, None] * (samples * D) + col[None, :]
    turned_hidden = (layer * TOKEN_HIDDEN * samples + sample) * D
    u = tl.load(u_ptr + own + at, mask=mask, other=0.0)
    dtype = u.dtype
    u = u.to(tl.float32)
    n, mean, rstd = layer_norm(u, mask, col, layer, parameters[0], parameters[1], eps, D)
    n = n.to(dtype)
    tl.store(n_ptr + turned_tile + turned_at, n, mask=mask)
    dh = tl.load(dh_ptr + turned_tile + turned_at, mask=mask, other=0.0)
    dn = token_mlp_backward(
        n, dh, layer, parameters, hidden_ptr + turned_hidden, dhidden_ptr + turned_hidden,
        samples * D, share + 4 * D, T, D, TOKEN_HIDDEN, TOKEN_CHUNK, PRECISION,
    )  # fmt: skip
    normed = normalised(u, mask, mean, rstd)
    dx = layer_norm_backward(dn, normed, rstd, mask, col, layer, parameters[0], share, D)
    if CLOSING:
        dz_at = dz_ptr + (layer * samples + sample) * (T * D) + at
        dx += tl.load(dz_at, mask=mask, other=0.0).to(tl.float32)
    if MIXED:
        dx += tl.load(around_ptr + own + at, mask=mask, other=0.0)
        last = layer + 1 == layers
        through_y = tl.load(g_ptr + own + at, mask=mask & last, other=0.0).to(tl.float32)
        through_y += tl.load(through_y_ptr + own + at, mask=mask & (not last), other=0.0)
        short = short_weight(alpha_ptr, layer, MIXED)
        through_y += short * dx
        dx = (1.0 - short) * dx + through_y
        tl.store(next_through_y_ptr + own + at, through_y, mask=mask)
    if layer > 0:
        tl.store(carry_ptr + own + at, dx, mask=mask)
    else:
        if INCLUDE_INPUT and not MIXED:
            g = tl.load(g_ptr + own + at, mask=mask, other=0.0).to(tl.float32)
            if HAS_SCALES:
                tl.store(dscale_ptr + sample * T + token, tl.sum(g * u, axis=1), mask=token < T)
                g *= tl.load(scale_ptr).to(tl.float32)
            dx += g
        tl.store(dx_ptr + own + at, dx.to(dtype), mask=mask)


def mixer_stack_backward(
    g: Tensor,
    x: Tensor,
    kept: Tensor,
    parameters: Sequence[Tensor],
    alpha: Tensor | None,
    scales: Tensor | None,
    layer_eps: float,
    include_input: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(dx, dscales, one gradient for each of the parameters); without ``scales`` the second is
    empty.

    g [..., T, D] is the gradient of the long sum, ``kept`` what mixer_stack kept of the layers; the
    rest is what it was given.
    """
    *_, tokens, width = x.shape
    layers, samples = len(parameters[0]), x.numel() // (tokens * width)
    token_hidden, channel_hidden = parameters[2].shape[1], parameters[8].shape[1]
    closing = len(parameters) > 12
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)

    def operand(*shape: int, wanted: bool = True) -> Tensor | None:
        return x.new_empty((layers, *shape)) if wanted else None

    n1, dh = (operand(tokens, samples * width) for _ in range(2))
    token = [operand(token_hidden, samples * width) for _ in range(2)]
    n2, dm = (operand(samples * tokens, width) for _ in range(2))
    channel = [operand(samples * tokens, channel_hidden) for _ in range(2)]
    m, dz = (operand(samples * tokens, width, wanted=closing) for _ in range(2))
    sizes = [width] * 4 + [token_hidden, tokens, channel_hidden, width] + [width] * 3 * closing
    shares = x.new_empty((layers, samples, sum(sizes)), dtype=torch.float32)
    dscales = x.new_empty(
        (layers + 1, samples * tokens) if scales is not None else 0, dtype=torch.float32
    )
    carry = x.new_empty(x.shape, dtype=torch.float32)
    mixed = alpha is not None
    around, *through_y = (torch.empty_like(carry) if mixed else None for _ in range(3))
    g, x_0, stacked = g.to(x.dtype).contiguous(), x.contiguous(), all_packed(parameters)
    alpha, scales = packed(alpha), packed(scales)
    options = {"MIXED": mixed, "HAS_SCALES": scales is not None, "SHARES": sum(sizes)}
    options |= mixer_sizes(x, parameters, backward=True)
    for layer in reversed(range(layers if samples else 0)):
        depth = (layer, layers, layer_eps)
        u = kept[layer - 1] if layer else x_0
        out = u if mixed else kept[layer]  # read for the gradients of scales alone
        given = (g, u, out, stacked, alpha, scales, carry, dscales, shares)
        if closing:
            closing_backward_kernel[(samples,)](*given, m, dz, dm, *depth, **options)
        channel_backward_kernel[(samples,)](*given, n2, *channel, dm, dh, around, *depth, **options)
        # Two of them, as threads that are ahead would write what others have yet to read.
        through_y.reverse()
        token_backward_kernel[(samples,)](
            g, u, stacked, alpha, scales, carry, dx, dscales, shares, n1, *token, dh, dz,
            around, *through_y, *depth, INCLUDE_INPUT=include_input, **options,
        )  # fmt: skip
    if scales is not None:
        if not include_input:
            dscales[0] = 0.0
        dscales = dscales.sum(1).to(scales.dtype)
    sums = shares.sum(1).split(sizes, 1)
    gradients = [
        *(sums[0], sums[1], torch.bmm(token[1], n1.mT), sums[4]),
        *(torch.bmm(dh, token[0].mT), sums[5], sums[2], sums[3]),
        *(torch.bmm(channel[1].mT, n2), sums[6], torch.bmm(dm.mT, channel[0]), sums[7]),
    ]
    if closing:
        gradients += [torch.bmm(dz.mT, m), sums[10], sums[8], sums[9]]
    of_parameters = zip(gradients, parameters, strict=True)
    return dx, dscales, [gradient.to(p.dtype).contiguous() for gradient, p in of_parameters]
