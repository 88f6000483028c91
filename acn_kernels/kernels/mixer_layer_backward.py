"""The parts of one Mixer layer taken backward, on the tile of one sample.

Each gives the gradient of its input and writes what the gradients of its parameters are made of:
the operands of the products for matrices, the sample's share of the sums for biases and norms.
"""

from __future__ import annotations

import triton
import triton.language as tl

from acn_kernels.kernels.activations import activated, activation_slope
from acn_kernels.kernels.mixer_layer import layer_norm, read_matrix, read_vector


@triton.jit
def normalised(x, mask, mean, rstd):
    """LayerNorm(x) less its weight and bias, from the statistics of its rows."""
    return tl.where(mask, (x - mean[:, None]) * rstd[:, None], 0.0)


@triton.jit
def layer_norm_backward(dn, normed, rstd, mask, col, layer, weights, share_ptr, D: tl.constexpr):
    """dx of LayerNorm where it is ``normed``; the sample's shares of dweight and dbias go to
    ``share_ptr`` [2, D]."""
    in_row = col < D
    tl.store(share_ptr + col, tl.sum(dn * normed, axis=0), mask=in_row)
    tl.store(share_ptr + D + col, tl.sum(dn, axis=0), mask=in_row)
    dn *= read_vector(weights, layer, col, D)[None, :]
    dx = dn - (tl.sum(dn, axis=1) / D)[:, None]
    dx -= normed * (tl.sum(dn * normed, axis=1) / D)[:, None]
    return tl.where(mask, dx * rstd[:, None], 0.0)


@triton.jit
def channel_mlp_backward(
    n, dm, layer, parameters, hidden_ptr, dhidden_ptr, share_ptr,
    T: tl.constexpr, D: tl.constexpr, CHANNEL_HIDDEN: tl.constexpr,
    CHANNEL_CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dn [T, D] of the MLP along the channels; writes its hidden units [T, C], the gradient at
    what their activation takes, and the share of dc1 [C]."""
    token = tl.arange(0, n.shape[0])
    col = tl.arange(0, n.shape[1])
    dn = tl.zeros(n.shape, dtype=tl.float32)
    for start in range(0, CHANNEL_HIDDEN, CHANNEL_CHUNK):
        hidden = start + tl.arange(0, CHANNEL_CHUNK)
        mask = (token < T)[:, None] & (hidden < CHANNEL_HIDDEN)[None, :]
        at = token[:, None] * CHANNEL_HIDDEN + hidden[None, :]
        c1 = read_matrix(parameters[8], layer, hidden, col, CHANNEL_HIDDEN, D)
        z = tl.dot(n, c1.T, input_precision=PRECISION)
        z += read_vector(parameters[9], layer, hidden, CHANNEL_HIDDEN)[None, :]
        tl.store(hidden_ptr + at, activated(z, "gelu", n.dtype).to(n.dtype), mask=mask)
        c2 = read_matrix(parameters[10], layer, col, hidden, D, CHANNEL_HIDDEN)
        dz = tl.dot(dm, c2, input_precision=PRECISION) * activation_slope(z, "gelu", n.dtype)
        tl.store(share_ptr + hidden, tl.sum(dz, axis=0), mask=hidden < CHANNEL_HIDDEN)
        dz = dz.to(n.dtype)
        tl.store(dhidden_ptr + at, dz, mask=mask)
        dn = tl.dot(dz, c1, dn, input_precision=PRECISION)
    return dn


@triton.jit
def token_mlp_backward(
    n, dh, layer, parameters, hidden_ptr, dhidden_ptr, hidden_stride, share_ptr,
    T: tl.constexpr, D: tl.constexpr, TOKEN_HIDDEN: tl.constexpr,
    TOKEN_CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dn [T, D] of the MLP along the tokens; writes its hidden units [H, D], the gradient at what
    their activation takes, and the share of db1 [H]."""
    token = tl.arange(0, n.shape[0])
    col = tl.arange(0, n.shape[1])
    dn = tl.zeros(n.shape, dtype=tl.float32)
    for start in range(0, TOKEN_HIDDEN, TOKEN_CHUNK):
        hidden = start + tl.arange(0, TOKEN_CHUNK)
        mask = (hidden < TOKEN_HIDDEN)[:, None] & (col < D)[None, :]
        at = hidden.to(tl.int64)[:, None] * hidden_stride + col[None, :]
        w1 = read_matrix(parameters[2], layer, hidden, token, TOKEN_HIDDEN, T)
        z = tl.dot(w1, n, input_precision=PRECISION)
        z += read_vector(parameters[3], layer, hidden, TOKEN_HIDDEN)[:, None]
        tl.store(hidden_ptr + at, activated(z, "gelu", n.dtype).to(n.dtype), mask=mask)
        w2 = read_matrix(parameters[4], layer, token, hidden, T, TOKEN_HIDDEN)
        dz = tl.dot(w2.T, dh, input_precision=PRECISION) * activation_slope(z, "gelu", n.dtype)
        tl.store(share_ptr + hidden, tl.sum(dz, axis=1), mask=hidden < TOKEN_HIDDEN)
        dz = dz.to(n.dtype)
        tl.store(dhidden_ptr + at, dz, mask=mask)
        dn = tl.dot(w1.T, dz, dn, input_precision=PRECISION)
    return dn


@triton.jit
def closing_backward(
    dx, u, m, mask, layer, parameters, eps, share_ptr, D: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """The gradient dz at ``z = m Wc^T + bc + u``, which is u's share of it too; the shares of
    dweight and dbias of the norm behind, and of dbc, go to ``share_ptr`` [3, D]."""
    col = tl.arange(0, m.shape[1])
    weight = read_matrix(parameters[12], layer, col, col, D, D)
    z = tl.dot(m, weight.T, input_precision=PRECISION)
    z += read_vector(parameters[13], layer, col, D)[None, :]
    z = tl.where(mask, activated(z + u.to(tl.float32), "relu", m.dtype), 0.0)
    _, mean, rstd = layer_norm(z, mask, col, layer, parameters[14], parameters[15], eps, D)
    normed = normalised(z, mask, mean, rstd)
    dz = layer_norm_backward(dx, normed, rstd, mask, col, layer, parameters[14], share_ptr, D)
    dz *= activation_slope(z, "relu", m.dtype)
    tl.store(share_ptr + 2 * D + col, tl.sum(dz, axis=0), mask=col < D)
    return dz.to(m.dtype)
