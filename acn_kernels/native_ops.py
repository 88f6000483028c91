"""The operators of ``torch.ops.acn_native``: the compiled extension's CPU kernels.

Same signatures and results as the modules of :mod:`acn_kernels.kernels`, with sums and statistics
in fp64 for fp64 tensors. The extension takes each tensor as rows of adjacent elements, beside the
tensor itself where its shape matters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from acn_kernels import _extension


def _native():
    module = _extension.module()
    if module is None:
        raise RuntimeError(f"the compiled extension is {_extension.state()}")
    return module


def as_rows(x: Tensor) -> Tensor:
    """x [..., D] with adjacent elements in every row: itself, a view [N, D], or else a copy."""
    if x.is_contiguous():
        return x
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


def fork_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    """norm(x) for x [..., D]; returns (h like x, mean [N] (empty for RMSNorm), rstd [N])."""
    return _native().fork_forward(x, as_rows(x), weight, bias, eps, kind)


def fork_backward(
    dh: Tensor,
    g: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor | None,
    row_map: Tensor | None,
    kind: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias, dscale); the last three are empty where there is nothing to derive.

    dh and x are [..., T, D]; g, the gradient of the long sum, is [..., T, D], or [..., R, D] with
    ``row_map`` [T] naming each token's row in it; ``scale`` is 0-dimensional.
    """
    g_rows = None if g is None else as_rows(g)
    return _native().fork_backward(
        as_rows(dh), g, g_rows, x, as_rows(x), weight, bias, mean, rstd, scale, row_map, kind
    )


def join_forward(
    xs: Sequence[Tensor],
    scales: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    kind: str,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """norm(sum_i a_i x_i) for L+1 sources of one shape [..., D] and ``scales`` [L+1].

    Returns (out in ``out_dtype``, y, mean, rstd). With ``kind`` "none" the sum itself is the
    output and the other three are empty; with a norm they are what its backward reads.
    """
    rows = [as_rows(x) for x in xs]
    return _native().join_forward(xs[0], rows, scales, weight, bias, eps, kind, out_dtype)


def accumulate_norm(
    x: Tensor,
    y: Tensor,
    first: bool,
    scale: Tensor | None,
    alpha: float,
    row_map: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    kind: str,
    out_dtype: torch.dtype,
) -> Tensor:
    """Adds ``scale * x`` to y (in place) and returns norm(u) in ``out_dtype``.

    x is [..., T, D]; y the same, or [..., R, D] with ``row_map`` [T] (then alpha is 1). With
    ``first`` y is written without being read. ``kind`` "none" returns u itself.
    """
    return _native().accumulate_norm(
        x, as_rows(x), y, first, scale, alpha, row_map, weight, bias, eps, kind, out_dtype
    )


def bias_gelu(z: Tensor, bias: Tensor) -> Tensor:
    """The exact gelu(z + bias) for z [..., H] of at most 32 bits, computed in fp32."""
    return _native().bias_gelu(z, as_rows(z), bias)


def linear_layers(
    x: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    scales: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    kind: str,
    activation: str,
    include_input: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    """norm(sum_i a_i x_i) in ``out_dtype`` for x_i = activation(x_{i-1} W_i^T + b_i), x [..., D].

    The products are ATen's. ``weight`` holds a [D, D] for each layer, ``bias`` a [D] or nothing at
    all; ``scales`` is [L+1], the first for x. Keeps nothing for a backward pass.
    """
    return _native().linear_layers(
        x, weight, bias, scales, norm_weight, norm_bias, eps, kind, activation, include_input,
        out_dtype,
    )  # fmt: skip
