"""Activation functions and their derivatives on fp32 tiles, chosen by name at compile time."""

from __future__ import annotations

import triton
import triton.language as tl

_INV_SQRT2 = tl.constexpr(0.7071067811865476)
_INV_SQRT_2PI = tl.constexpr(0.3989422804014327)
_SQRT_2_OVER_PI = tl.constexpr(0.7978845608028654)
_CUBIC = tl.constexpr(0.044715)
# Tensors stand to the left of these: from the other side the interpreter cannot multiply.


@triton.jit
def activated(z, ACTIVATION: tl.constexpr):
    """f(z) for "relu", "gelu" (exact), "gelu_tanh" or "silu"."""
    if ACTIVATION == "relu":
        # Not tl.maximum, which would turn NaN into 0.
        return tl.where(z < 0.0, 0.0, z)
    else:
        return z * _gate(z, ACTIVATION)


@triton.jit
def activation_slope(z, ACTIVATION: tl.constexpr):
    """f'(z). For "relu" z may as well be f(z): the slope is 1 where either is positive."""
    if ACTIVATION == "relu":
        return tl.where(z <= 0.0, 0.0, 1.0)
    else:
        gate = _gate(z, ACTIVATION)
        if ACTIVATION == "gelu":
            return gate + z * tl.exp(z * z * -0.5) * _INV_SQRT_2PI
        elif ACTIVATION == "gelu_tanh":
            inner_slope = (1.0 + z * z * (3.0 * _CUBIC)) * (2.0 * _SQRT_2_OVER_PI)
            return gate + z * gate * (1.0 - gate) * inner_slope
        else:
            return gate + z * gate * (1.0 - gate)


@triton.jit
def _gate(z, ACTIVATION: tl.constexpr):
    """f(z) / z of the activations that are their input times a gate."""
    if ACTIVATION == "gelu":
        return 0.5 * (1.0 + tl.erf(z * _INV_SQRT2))
    elif ACTIVATION == "gelu_tanh":
        # 0.5 (1 + tanh(v)) = sigmoid(2 v)
        return 1.0 / (1.0 + tl.exp((z + z * z * z * _CUBIC) * (-2.0 * _SQRT_2_OVER_PI)))
    else:
        tl.static_assert(ACTIVATION == "silu")
        return 1.0 / (1.0 + tl.exp(-z))
