"""The equations of Auto-Compressing Networks in plain PyTorch: what every fast path must equal.

Every function has the signature of its twin in :mod:`acn_kernels.functional` less ``backend``,
works in the precision it is given (sums of half-precision terms in fp32) and lets autograd
derive the gradients. Equation numbers are those of arXiv 2506.09714.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from acn_kernels.norm_spec import NormSpec

if TYPE_CHECKING:
    from acn_kernels.functional.mixer_stack import MixerParameters

__all__ = [
    "accumulate_norm",
    "bias_gelu",
    "compact",
    "exit_head",
    "fork",
    "join",
    "linear_stack",
    "mixer_stack",
    "norm",
    "stack",
    "sum_dtype",
    "tap",
]

Term = tuple[Tensor, "Tensor | float | None"]


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which terms of ``dtype`` are summed: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def norm(x: Tensor, spec: NormSpec) -> Tensor:
    """LayerNorm or RMSNorm of x [..., D] over the last axis; the result has x's dtype."""
    wide = x.to(sum_dtype(x.dtype))
    if spec.kind == "layer":
        wide = wide - wide.mean(-1, keepdim=True)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + spec.eps_for(x.dtype))
    if spec.weight is not None:
        wide = wide * spec.weight
    if spec.bias is not None:
        wide = wide + spec.bias
    return wide.to(x.dtype)


def tap(x: Tensor, scale: Tensor | float | None = None, rows: Tensor | None = None) -> Term:
    """The term ``scale * x`` of the long sum: (x [..., T, D] or its rows [..., R, D], scale)."""
    return (x if rows is None else x.index_select(-2, rows)), scale


def fork(
    x: Tensor,
    spec: NormSpec,
    scale: Tensor | float | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Term]:
    """A layer's output at the fork of its two ways: norm(x) to the next layer, a term to y."""
    return norm(x, spec), tap(x, scale, rows)


def join(
    terms: Sequence[Term], spec: NormSpec | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """The long sum ``norm(sum_i a_i x_i)`` (eq. 1), rounded once, to the terms' dtype."""
    dtype = out_dtype or terms[0][0].dtype
    y = sum(x.to(sum_dtype(x.dtype)) * (1 if scale is None else scale) for x, scale in terms)
    return norm(y, spec).to(dtype) if spec is not None else y.to(dtype)


def accumulate_norm(
    x: Tensor,
    y: Tensor | None,
    spec: NormSpec | None = None,
    scale: Tensor | float | None = None,
    alpha: float = 1.0,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``y' = y + scale*x``, ``u = alpha*x + (1-alpha)*y'``; returns (norm(u) in x's dtype, y')."""
    term, _ = tap(x, None, rows)
    term = term.to(sum_dtype(x.dtype)) * (1 if scale is None else scale)
    y = term if y is None else y + term
    u = x if alpha == 1 else (alpha * x + (1 - alpha) * y)
    return (u if spec is None else norm(u, spec)).to(x.dtype), y


def bias_gelu(z: Tensor, bias: Tensor) -> Tensor:
    """The exact GELU of z + bias, rounded once."""
    wide = sum_dtype(z.dtype)
    return F.gelu(z.to(wide) + bias.to(wide)).to(z.dtype)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


def linear_stack(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    spec: NormSpec | None = None,
    scales: Tensor | None = None,
    include_input: bool = True,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The network of layers ``x_i = activation(x_{i-1} W_i^T + b_i)``, weight [L, D, D]."""
    biases = [None] * len(weight) if bias is None else bias
    terms = [x]
    for w, b in zip(weight, biases, strict=True):
        terms.append(ACTIVATIONS[activation](F.linear(terms[-1], w, b)))
    scales = [None] * len(terms) if scales is None else scales
    terms = list(zip(terms, scales, strict=True))
    return join(terms if include_input else terms[1:], spec, out_dtype)


def mixer_stack(
    x: Tensor,
    parameters: MixerParameters,
    spec: NormSpec | None = None,
    scales: Tensor | None = None,
    include_input: bool = True,
    alpha: float | Sequence[float] | Tensor = 1.0,
) -> Tensor:
    """The network of Mixer blocks; ``parameters`` [L, ...] as in MixerParameters."""

    def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)

    *tensors, eps = parameters
    terms = [x]
    alphas = torch.as_tensor(alpha).expand(len(tensors[0])).tolist()
    for layer, alpha in enumerate(alphas):
        p = [None if tensor is None else tensor[layer] for tensor in tensors]
        u = alpha * terms[-1] + (1 - alpha) * sum(terms)
        h = norm(u, NormSpec("layer", p[0], p[1], eps)).transpose(-1, -2)
        h = mlp(h, *p[2:6]).transpose(-1, -2)
        v = h + (1 - alpha) * u
        out = mlp(norm(v, NormSpec("layer", p[6], p[7], eps)), *p[8:12]) + (1 - alpha) * h
        if p[12] is not None:
            out = F.relu(F.linear(out, p[12], p[13]) + u)
            out = norm(out, NormSpec("layer", p[14], p[15], eps))
        terms.append(out)
    scales = [None] * len(terms) if scales is None else scales
    terms = list(zip(terms, scales, strict=True))
    return join(terms if include_input else terms[1:], spec)


def exit_head(
    x: Tensor,
    y: Tensor | None,
    spec: NormSpec | None,
    weight: Tensor,
    bias: Tensor | None,
    threshold: float,
    scale: Tensor | float | None = None,
    pooling: str = "mean",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(logits, entropy, stays, live) of ``head(pool(norm(y + scale * x)))``; the entropy of
    p = softmax(z) is ``log Z - sum p z``."""
    if pooling == "first":
        x, y = x[:, :1], None if y is None else y[:, :1]
    _, u = accumulate_norm(x, y, scale=scale)
    logits = F.linear((u if spec is None else norm(u, spec)).mean(1).to(x.dtype), weight, bias)
    z = logits.to(sum_dtype(x.dtype))
    log_total = z.logsumexp(-1)
    entropy = log_total - ((z - log_total[:, None]).exp() * z).sum(-1)
    stays = ~(entropy < threshold)
    return logits, entropy, stays, stays.sum(dtype=torch.int32)


def compact(stays: Tensor, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The rows of each tensor [B, ...] that ``stays`` [B] marks, in their order; their count."""
    return [x[stays] for x in tensors], stays.sum(dtype=torch.int32)


def stack(
    layers: Sequence[Callable[[Tensor], Tensor]],
    x: Tensor,
    spec: NormSpec | None = None,
    *,
    alpha: float = 1.0,
    scales: Sequence[float] | Tensor | None = None,
    include_input: bool = True,
) -> Tensor:
    """The whole network: ``u_i = alpha x_{i-1} + (1-alpha) y_{i-1}``, ``x_i = f_i(u_i)``,
    ``y_i = y_{i-1} + a_i x_i``, ``y_0 = a_0 x_0``; returns norm(y_L).

    alpha = 1 is the ACN of eq. 1, alpha = 0 the residual network. ``scales`` holds a_0..a_L, or
    a_1..a_L without the input.
    """
    wide = sum_dtype(x.dtype)
    if scales is None:
        scales = [1.0] * (len(layers) + include_input)
    if not include_input:
        scales = [0.0, *scales]
    y = x.to(wide) * scales[0]
    for layer, scale in zip(layers, scales[1:], strict=True):
        u = x if alpha == 1 else (alpha * x + (1 - alpha) * y).to(x.dtype)
        x = layer(u)
        y = y + x.to(wide) * scale
    return (y if spec is None else norm(y, spec)).to(x.dtype)
