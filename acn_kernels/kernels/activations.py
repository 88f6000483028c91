"""Activation functions and their derivatives on fp32 tiles, chosen by name at compile time."""

from __future__ import annotations

import triton
import triton.language as tl

_INV_SQRT2 = tl.constexpr(0.7071067811865476)
_INV_SQRT_2PI = tl.constexpr(0.3989422804014327)
_SQRT_2_OVER_PI = tl.constexpr(0.7978845608028654)
_CUBIC = tl.constexpr(0.044715)


@triton.jit
def activated(z, ACTIVATION: tl.constexpr):
    """f(z) for "relu", "gelu" (exact), "gelu_tanh" or "silu"."""
    if ACTIVATION == "relu":
        # Not tl.maximum, which would turn NaN into 0.
        return tl.where(z < 0.0, 0.0, z)
    elif ACTIVATION == "gelu":
        return 0.5 * z * (1.0 + tl.erf(z * _INV_SQRT2))
    elif ACTIVATION == "gelu_tanh":
        return z * tl.sigmoid(2.0 * _SQRT_2_OVER_PI * (z + _CUBIC * z * z * z))
    else:
        tl.static_assert(ACTIVATION == "silu")
        return z * tl.sigmoid(z)


@triton.jit
def activation_slope(z, ACTIVATION: tl.constexpr):
    """f'(z). For "relu" z may as well be f(z): the slope is 1 where either is positive."""
    if ACTIVATION == "relu":
        return tl.where(z <= 0.0, 0.0, 1.0)
    elif ACTIVATION == "gelu":
        density = _INV_SQRT_2PI * tl.exp(-0.5 * z * z)
        return 0.5 * (1.0 + tl.erf(z * _INV_SQRT2)) + z * density
    elif ACTIVATION == "gelu_tanh":
        s = tl.sigmoid(2.0 * _SQRT_2_OVER_PI * (z + _CUBIC * z * z * z))
        return s + z * s * (1.0 - s) * 2.0 * _SQRT_2_OVER_PI * (1.0 + 3.0 * _CUBIC * z * z)
    else:
        tl.static_assert(ACTIVATION == "silu")
        s = tl.sigmoid(z)
        return s * (1.0 + z * (1.0 - s))
