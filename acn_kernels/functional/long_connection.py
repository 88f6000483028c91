"""fork, join and their kin: the long connections of layers that run one at a time.

A layer's output x_i takes two ways: :func:`fork` sends norm(x_i) to the next layer and x_i itself,
as a term, to the long sum; :func:`join` adds the terms up and normalises the sum (eq. 1 of
arXiv 2506.09714). Without gradients, :func:`accumulate_norm` keeps a running sum instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from acn_kernels import torch_ops
from acn_kernels.autograd.fork import Fork, Tap
from acn_kernels.autograd.join import JoinNorm, JoinSum
from acn_kernels.dispatch import choose
from acn_kernels.functional.checks import (
    check_input,
    check_like_first,
    check_norm,
    check_rows,
    check_scale,
    check_tensor,
    is_recorded,
)
from acn_kernels.norm_spec import NormSpec
from acn_kernels.ops import compiled
from acn_kernels.recompute import offer
from acn_kernels.reference import sum_dtype
from acn_kernels.rows import RowSelection


class Term(NamedTuple):
    """``scale * x`` on its way to the long sum, the product left to :func:`join`.

    Made by :func:`tap` or :func:`fork` alone, whose backward passes multiply by the scale: join
    hands on the gradient of the sum as it is.

    x: [..., T, D], or its selected rows [..., R, D]. scale: None (one) or a 0-dim tensor, which
    gets its gradient from the tap or fork.
    """

    x: Tensor
    scale: Tensor | None = None


def tap(x: Tensor, scale: Tensor | None = None, rows: RowSelection | None = None) -> Term:
    """The term ``scale * x`` of the long sum.

    Args:
        x: [..., T, D], floating point.
        scale: None or a 0-dim tensor; where it requires a gradient, it gets <g, x>.
        rows: the tokens that y keeps; None keeps all.

    Raises:
        TypeError, ValueError: an argument is of another kind, shape or device.
    """
    check_input("x", x)
    check_scale(x, scale)
    check_rows(x, rows)
    if scale is None and rows is None:
        return Term(x)
    return Term(Tap.apply(x, scale, None if rows is None else rows.index), _detached(scale))


def norm(x: Tensor, spec: NormSpec, backend: str = "auto") -> Tensor:
    """LayerNorm or RMSNorm of x [..., D] over the last axis, in x's dtype."""
    check_input("x", x)
    check_norm(x, spec)
    if choose(backend, x).backend == "torch":  # autograd's own norm: no Function around it
        kind, weight, bias, _ = spec
        eps = spec.eps_for(x.dtype)

        def normed(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            return torch_ops.norm(x, weight, bias, eps, kind).to(x.dtype)

        return offer(normed(x, weight, bias), normed, x, weight, bias)
    return _fork(x, spec, None, None, backend)[0]


def fork(
    x: Tensor,
    spec: NormSpec,
    scale: Tensor | None = None,
    rows: RowSelection | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Term]:
    """norm(x) for the next layer, and the term ``scale * x`` of the long sum.

    The backward pass returns ``normbwd(dh) + scale * g`` from one kernel: the direct gradient
    (the "1" in Table 1 of the paper) costs no pass and no tensor of its own.

    Args:
        x: [..., T, D], floating point.
        spec: the norm; weight and bias [D].
        scale, rows: as in :func:`tap`.
        backend: "auto", "triton", "native" or "torch".

    Returns:
        (h like x, term).

    Raises:
        TypeError, ValueError: an argument is of another kind, shape, dtype or device.
        RuntimeError: a backend asked for by name cannot run here.
    """
    h, term = _fork(x, spec, scale, rows, backend)
    return h, Term(term, _detached(scale))


def _fork(x, spec, scale, rows, backend):
    check_input("x", x)
    check_norm(x, spec)
    check_scale(x, scale)
    check_rows(x, rows)
    index, row_map = (None, None) if rows is None else rows
    norm = (spec.weight, spec.bias)
    how = (spec.eps_for(x.dtype), spec.kind)
    backend = choose(backend, x).backend
    h, term, _, _ = Fork.apply(x, *norm, scale, index, row_map, *how, backend)
    source = torch_ops if backend == "torch" else compiled(backend)
    return offer(h, lambda x, *norm: source.fork_forward(x, *norm, *how)[0], x, *norm), term


def join(
    terms: Sequence[Term | Tensor],
    spec: NormSpec | None = None,
    backend: str = "auto",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``norm(sum_i a_i x_i)``: the long sum of eq. 1, added in fp32 and rounded once.

    The backward pass computes g = dL/d(sum) once and hands the same tensor to every term.

    Args:
        terms: at least one; plain tensors count as terms with scale one. All of one shape.
        spec: the final norm, or None for the bare sum.
        backend: "auto", "triton", "native" or "torch".
        out_dtype: dtype of the result; default the terms' own.

    Raises:
        ValueError: no terms, or terms that differ in shape or device.
        TypeError: terms that differ in dtype outside autocast.
        RuntimeError: a backend asked for by name cannot run here.
    """
    terms = [term if isinstance(term, Term) else Term(term) for term in terms]
    if not terms:
        raise ValueError("terms is empty; the long sum takes at least one term")
    first = terms[0].x
    for i, (x, scale) in enumerate(terms):
        check_input(f"terms[{i}]", x)
        check_like_first(i, x, first)
        check_scale(x, scale)
    if spec is not None:
        check_norm(first, spec)
    out_dtype = out_dtype or first.dtype
    xs = [x for x, _ in terms]
    scales = stacked_scales([scale for _, scale in terms], first)
    eps = 0.0 if spec is None else spec.eps_for(first.dtype)
    kind, weight, bias = ("none", None, None) if spec is None else spec[:3]
    # Its backward is the fork's, which has no CUDA kernel of its own.
    recorded = is_recorded(spec, *xs)
    backend = choose(backend, first, None if recorded else "join_forward").backend
    if backend == "torch":
        y = JoinSum.apply(scales, *xs)
        return torch_ops.norm(y, weight, bias, eps, kind).to(out_dtype)
    return JoinNorm.apply(scales, weight, bias, eps, kind, out_dtype, backend, *xs)[0]


def accumulate_norm(
    x: Tensor,
    y: Tensor | None = None,
    spec: NormSpec | None = None,
    scale: Tensor | None = None,
    alpha: float = 1.0,
    rows: RowSelection | None = None,
    backend: str = "auto",
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of inference: ``y' = y + scale*x``, ``u = alpha*x + (1-alpha)*y'``, norm(u).

    Has no gradient: y is updated in place. Use :func:`fork` and :func:`join` to train.

    Args:
        x: [..., T, D], the latest layer's output.
        y: the running sum in fp32 (fp64 for fp64), packed, of x's shape or its selected rows;
            None starts a new one.
        spec: the norm of the next layer (or, with alpha 0, of the head); None returns u.
        scale, rows: as in :func:`tap`; with ``rows``, alpha is 1.
        alpha: in [0, 1].
        out_dtype: dtype of the first result; default x's.

    Returns:
        (norm(u) or u, y').

    Raises:
        TypeError, ValueError: an argument is of another kind, shape, dtype or device.
        RuntimeError: a backend asked for by name cannot run here, or a gradient is being recorded.
    """
    check_input("x", x)
    if y is not None:
        check_tensor("y", y)
    check_scale(x, scale)
    check_rows(x, rows)
    if spec is not None:
        check_norm(x, spec)
    if is_recorded(spec, x, y, scale):
        raise RuntimeError(
            "accumulate_norm has no gradient; call it under torch.no_grad() or use fork and join"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it takes a number from 0 to 1")
    if rows is not None and alpha != 1:
        raise ValueError(f"rows is given with alpha {alpha}; a partial sum takes alpha 1")
    shape = x.shape if rows is None else rows.shape_of(x.shape)
    first = y is None
    if first:
        y = torch.empty(shape, dtype=sum_dtype(x.dtype), device=x.device)
    elif y.device != x.device:
        raise ValueError(f"y is on {y.device}, x on {x.device}")
    elif y.shape != shape or y.dtype != sum_dtype(x.dtype) or not y.is_contiguous():
        raise ValueError(
            f"y is {y.dtype} of shape {tuple(y.shape)} and strides {y.stride()}; "
            f"the sum of x is {sum_dtype(x.dtype)}, packed, of shape {tuple(shape)}"
        )
    eps = 0.0 if spec is None else spec.eps_for(x.dtype)
    kind, weight, bias = ("none", None, None) if spec is None else spec[:3]
    index, row_map = (None, None) if rows is None else rows
    backend = choose(backend, x, "accumulate_norm").backend
    out_dtype = out_dtype or x.dtype
    if backend == "torch":
        h = torch_ops.accumulate_norm(
            x, y, first, scale, alpha, index, weight, bias, eps, kind, out_dtype
        )
    else:
        h = compiled(backend, x).accumulate_norm(
            x, y, first, scale, alpha, row_map, weight, bias, eps, kind, out_dtype
        )
    return h, y


def _detached(scale: Tensor | None) -> Tensor | None:
    return None if scale is None else scale.detach()


def stacked_scales(scales: list[Tensor | None], like: Tensor) -> Tensor | None:
    """The terms' scales as one tensor [L+1]; None where every one of them is one."""
    if all(scale is None for scale in scales):
        return None
    dtype = sum_dtype(like.dtype)
    one = torch.ones((), dtype=dtype, device=like.device)
    return torch.stack([one if scale is None else scale.detach().to(dtype) for scale in scales])
