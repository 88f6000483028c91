"""Activation functions and their derivatives on fp32 tiles, chosen by name at compile time.

Each comes as exact as the ``DTYPE`` asks that its result is rounded to.
"""

from __future__ import annotations

import triton
import triton.language as tl

_INV_SQRT2 = tl.constexpr(0.7071067811865476)
_INV_SQRT_2PI = tl.constexpr(0.3989422804014327)
_SQRT_2_OVER_PI = tl.constexpr(0.7978845608028654)
_CUBIC = tl.constexpr(0.044715)
_HALF_LOG2_E = tl.constexpr(0.7213475204444817)
_FAR = tl.constexpr(10.0)  # the tail there is below 1e-23, and what it is multiplied by finite
# Tensors stand to the left of these: from the other side the interpreter cannot multiply.


@triton.jit
def activated(z, ACTIVATION: tl.constexpr, DTYPE: tl.constexpr):
    """f(z) for "relu", "gelu" (exact), "gelu_tanh" or "silu"."""
    if ACTIVATION == "relu":
        return _relu(z)
    elif ACTIVATION == "gelu" and tl.float32 != DTYPE:
        distance, tail, _ = _normal_tail(z)
        return _relu(z) - distance * tail
    else:
        return z * _gate(z, ACTIVATION)


@triton.jit
def activation_slope(z, ACTIVATION: tl.constexpr, DTYPE: tl.constexpr):
    """f'(z). For "relu" z may as well be f(z): the slope is 1 where either is positive."""
    if ACTIVATION == "relu":
        return tl.where(z <= 0.0, 0.0, 1.0)
    elif ACTIVATION == "gelu" and tl.float32 != DTYPE:
        distance, tail, bell = _normal_tail(z)
        below = tail - distance * (bell * _INV_SQRT_2PI)  # the slope at -|z|
        return tl.where(z < 0.0, below, 1.0 - below)
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
def _relu(z):
    # Not tl.maximum, which would turn NaN into 0.
    return tl.where(z < 0.0, 0.0, z)


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


@triton.jit
def _normal_tail(z):
    """(d, Phi(-d), exp(-d^2 / 2)) with d = |z|, up to where it no longer matters; NaN stays NaN.

    Phi(-d) = exp(-d^2 / 2) R(d) with a polynomial for R: to 1e-4 of itself where d < 2.5, and
    d Phi(-d) to 1.4e-5 everywhere. An erf takes three times as many instructions, more than all
    else that happens to an element on its way through a layer.
    """
    d = tl.minimum(tl.abs(z), _FAR, propagate_nan=tl.PropagateNan.ALL)
    bell = tl.exp2(d * d * -_HALF_LOG2_E)
    r = d * -7.236684177769348e-05 + 0.0012456155382096767
    r = r * d + -0.009269238449633121
    r = r * d + 0.04001142457127571
    r = r * d + -0.11498962342739105
    r = r * d + 0.24230454862117767
    r = r * d + -0.39759561419487
    r = r * d + 0.49995797872543335
    return d, bell * r, bell
