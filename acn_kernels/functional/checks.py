"""What the operations ask of their arguments; a message names the argument and what it takes."""

from __future__ import annotations

import torch
from torch import Tensor

from acn_kernels.norm_spec import NormSpec
from acn_kernels.rows import RowSelection
from acn_kernels.scales import check_scales
from acn_kernels.validation import under_autocast


def check_tensor(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; it takes a tensor")


def check_input(name: str, x: Tensor) -> None:
    check_tensor(name, x)
    if not x.is_floating_point():
        raise TypeError(f"{name} has dtype {x.dtype}; it takes a floating-point tensor")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it takes [..., D] with D at least 1")


def check_scale(x: Tensor, scale: Tensor | None) -> None:
    if scale is None:
        return
    if not isinstance(scale, Tensor):
        raise TypeError(f"scale is a {type(scale).__name__}; it takes None or a 0-dim tensor")
    if scale.dim() != 0 or not scale.is_floating_point():
        raise ValueError(
            f"scale is {scale.dtype} of shape {tuple(scale.shape)}; it takes a 0-dim float tensor"
        )
    if scale.device != x.device:
        raise ValueError(f"scale is on {scale.device}, x on {x.device}")


def check_threshold(threshold: float) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise TypeError(f"threshold is a {type(threshold).__name__}; it takes a number of nats")
    if threshold != threshold:
        raise ValueError("threshold is nan; it takes a number of nats")


def check_norm(x: Tensor, spec: NormSpec) -> None:
    if not isinstance(spec, NormSpec):
        raise TypeError(f"spec is a {type(spec).__name__}; it takes an acn_kernels.NormSpec")
    if spec.kind not in ("layer", "rms"):
        raise ValueError(f"spec.kind is {spec.kind!r}; it takes 'layer' or 'rms'")
    for name in ("weight", "bias"):
        parameter = getattr(spec, name)
        if parameter is None:
            continue
        check_tensor(f"spec.{name}", parameter)
        if parameter.shape != x.shape[-1:]:
            raise ValueError(
                f"spec.{name} has shape {tuple(parameter.shape)}; rows of {x.shape[-1]} take "
                f"({x.shape[-1]},)"
            )
        if parameter.device != x.device:
            raise ValueError(f"spec.{name} is on {parameter.device}, x on {x.device}")


def check_rows(x: Tensor, rows: RowSelection | None) -> None:
    if rows is None:
        return
    if not isinstance(rows, RowSelection):
        raise TypeError(
            f"rows is a {type(rows).__name__}; it takes an acn_kernels.rows.RowSelection, as "
            "Rows(...).resolve(tokens, device) makes it"
        )
    tokens = rows.row_map.shape[0]
    if x.dim() < 2 or tokens != x.shape[-2]:
        raise ValueError(f"rows were selected of {tokens} tokens; x has shape {tuple(x.shape)}")
    if rows.index.device != x.device:
        raise ValueError(f"rows are on {rows.index.device}, x on {x.device}")


def check_sum(x: Tensor, layers: int, spec: NormSpec | None, scales: Tensor | None) -> None:
    """What closes a stack of ``layers``: the scales of its terms, and the norm of their sum."""
    if scales is not None:
        check_tensor("scales", scales)
        check_scales(scales, layers + 1)
        if scales.device != x.device:
            raise ValueError(f"scales is on {scales.device}, x on {x.device}")
    if spec is not None:
        check_norm(x, spec)


def check_like_first(i: int, x: Tensor, first: Tensor) -> None:
    if x.shape != first.shape:
        raise ValueError(
            f"terms[{i}] has shape {tuple(x.shape)}, terms[0] has {tuple(first.shape)}; "
            "the terms of one sum have one shape"
        )
    if x.device != first.device:
        raise ValueError(f"terms[{i}] is on {x.device}, terms[0] on {first.device}")
    if x.dtype != first.dtype and not under_autocast(x):
        raise TypeError(
            f"terms[{i}] has dtype {x.dtype}, terms[0] has {first.dtype}; "
            "the terms of one sum have one dtype, except under autocast"
        )


def is_recorded(spec: NormSpec | None, *inputs: Tensor | None) -> bool:
    """Whether autograd records an operation on ``inputs``, closed by the norm."""
    if not torch.is_grad_enabled():
        return False
    affine = () if spec is None else spec[1:3]
    return any(x is not None and x.requires_grad for x in (*inputs, *affine))
