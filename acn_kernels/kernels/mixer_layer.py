"""One Mixer layer on the tile of one sample, for the kernels that walk a whole stack.

A sample [T, D] never leaves the chip between layers; weights come from L2 in chunks of the hidden
units. Operands of products have the input's dtype, all else is fp32 in registers, and a layer's
output is rounded once, as it would be between two modules.

``parameters`` are those of all layers, stacked (see MixerParameters), as a tuple of pointers.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from acn_kernels.kernels.activations import activated
from acn_kernels.kernels.launch import dot_precision, mixer_tile, packed
from acn_kernels.kernels.row_norm import row_norm


@triton.jit
def read_matrix(matrices, index, row, col, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Elements [row, col] of one of the packed [ROWS, COLS] matrices; zero outside of it."""
    at = index * (ROWS * COLS) + row[:, None] * COLS + col[None, :]
    return tl.load(matrices + at, mask=(row < ROWS)[:, None] & (col < COLS)[None, :], other=0.0)


@triton.jit
def read_vector(vectors, index, col, COLS: tl.constexpr):
    """Elements [col] of one of the packed [COLS] vectors in fp32; zero outside of it."""
    return tl.load(vectors + (index * COLS + col), mask=col < COLS, other=0.0).to(tl.float32)


@triton.jit
def layer_norm(x, mask, col, index, weights, biases, eps, D: tl.constexpr):
    """(LayerNorm(x), mean, rstd) with the weight and bias of layer ``index``."""
    return row_norm(
        x, mask, col, D, eps, weights + index * D, biases + index * D, False, True, True
    )


@triton.jit
def token_mlp(
    n, layer, parameters,
    T: tl.constexpr, D: tl.constexpr, TOKEN_HIDDEN: tl.constexpr,
    TOKEN_CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``W2 gelu(W1 n + b1) + b2`` for n [T, D], in fp32: the MLP along the tokens."""
    token = tl.arange(0, n.shape[0])
    h = tl.zeros(n.shape, dtype=tl.float32)
    for start in range(0, TOKEN_HIDDEN, TOKEN_CHUNK):
        hidden = start + tl.arange(0, TOKEN_CHUNK)
        w1 = read_matrix(parameters[2], layer, hidden, token, TOKEN_HIDDEN, T)
        b1 = read_vector(parameters[3], layer, hidden, TOKEN_HIDDEN)
        a = activated(tl.dot(w1, n, input_precision=PRECISION) + b1[:, None], "gelu", n.dtype)
        w2 = read_matrix(parameters[4], layer, token, hidden, T, TOKEN_HIDDEN)
        h = tl.dot(w2, a.to(n.dtype), h, input_precision=PRECISION)
    # Not at the start: a sum that starts at zero takes no registers while the hidden units do.
    return h + read_vector(parameters[5], layer, token, T)[:, None]


@triton.jit
def channel_mlp(
    n, layer, parameters,
    D: tl.constexpr, CHANNEL_HIDDEN: tl.constexpr,
    CHANNEL_CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``gelu(n C1^T + c1) C2^T + c2`` for n [T, D], in fp32: the MLP along the channels."""
    col = tl.arange(0, n.shape[1])
    m = tl.zeros(n.shape, dtype=tl.float32)
    for start in range(0, CHANNEL_HIDDEN, CHANNEL_CHUNK):
        hidden = start + tl.arange(0, CHANNEL_CHUNK)
        c1 = read_matrix(parameters[8], layer, hidden, col, CHANNEL_HIDDEN, D)
        b1 = read_vector(parameters[9], layer, hidden, CHANNEL_HIDDEN)
        a = activated(tl.dot(n, c1.T, input_precision=PRECISION) + b1[None, :], "gelu", n.dtype)
        c2 = read_matrix(parameters[10], layer, col, hidden, D, CHANNEL_HIDDEN)
        m = tl.dot(a.to(n.dtype), c2.T, m, input_precision=PRECISION)
    return m + read_vector(parameters[11], layer, col, D)[None, :]


@triton.jit
def short_weight(alpha_ptr, layer, MIXED: tl.constexpr):
    """1 - alpha of layer ``layer``, the weight of its short connections; 0 without MIXED."""
    short = 0.0
    if MIXED:
        short = 1.0 - tl.load(alpha_ptr + layer)
    return short


@triton.jit
def plus_short(x, around, short, MIXED: tl.constexpr):
    """``x + short * around`` in fp32; without MIXED x itself."""
    if MIXED:
        x += short * around.to(tl.float32)
    return x


@triton.jit
def mixer_layer(
    u, mask, layer, parameters, short, eps,
    T: tl.constexpr, D: tl.constexpr, TOKEN_HIDDEN: tl.constexpr, CHANNEL_HIDDEN: tl.constexpr,
    TOKEN_CHUNK: tl.constexpr, CHANNEL_CHUNK: tl.constexpr, CLOSING: tl.constexpr,
    MIXED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x_i, the output of layer ``layer``, of its input u [T, D]; both in the input's dtype.

    ``short`` is 1 - alpha with MIXED, and not read at alpha = 1, which is without. Rows and columns
    outside of ``mask`` are padding: zero in, zero out.
    """
    col = tl.arange(0, u.shape[1])
    n, _, _ = layer_norm(u.to(tl.float32), mask, col, layer, parameters[0], parameters[1], eps, D)
    h = token_mlp(n.to(u.dtype), layer, parameters, T, D, TOKEN_HIDDEN, TOKEN_CHUNK, PRECISION)
    h = tl.where(mask, h, 0.0)
    v = plus_short(h, u, short, MIXED)
    h = h.to(u.dtype)  # what is held while the channel MLP runs
    n, _, _ = layer_norm(v, mask, col, layer, parameters[6], parameters[7], eps, D)
    m = channel_mlp(n.to(u.dtype), layer, parameters, D, CHANNEL_HIDDEN, CHANNEL_CHUNK, PRECISION)
    m = plus_short(m, h, short, MIXED)
    if CLOSING:
        weight = read_matrix(parameters[12], layer, col, col, D, D)
        z = tl.dot(m.to(u.dtype), weight.T, input_precision=PRECISION)
        z += read_vector(parameters[13], layer, col, D)[None, :]
        z = activated(z + u.to(tl.float32), "relu", u.dtype)
        z = tl.where(mask, z, 0.0)
        m, _, _ = layer_norm(z, mask, col, layer, parameters[14], parameters[15], eps, D)
    return tl.where(mask, m, 0.0).to(u.dtype)


def all_packed(parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The parameters as the kernels take them."""
    return tuple(map(packed, parameters))


def mixer_sizes(
    x: Tensor, parameters: Sequence[Tensor], backward: bool = False
) -> dict[str, object]:
    """What every launch over samples x [..., T, D] passes: sizes, tile, launch options."""
    tokens, width = x.shape[-2:]
    hidden = parameters[2].shape[1], parameters[8].shape[1]
    return {
        "T": tokens,
        "D": width,
        "TOKEN_HIDDEN": hidden[0],
        "CHANNEL_HIDDEN": hidden[1],
        "CLOSING": len(parameters) > 12,
        "PRECISION": dot_precision(x.dtype),
        **mixer_tile(tokens, width, hidden, x.dtype, backward, x.device).launch_options(),
    }
