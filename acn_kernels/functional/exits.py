"""exit_head and compact: who may leave at an exit, and the batch of those who go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from acn_kernels import torch_ops
from acn_kernels.dispatch import choose
from acn_kernels.functional.checks import (
    check_input,
    check_norm,
    check_scale,
    check_tensor,
    check_threshold,
    is_recorded,
)
from acn_kernels.norm_spec import NormSpec
from acn_kernels.ops import compiled
from acn_kernels.reference import sum_dtype

POOLINGS = ("mean", "first")


class ExitDecision(NamedTuple):
    """logits [B, C]; entropy [B] of their softmax in nats; stays [B] bool, where the entropy is
    not below the threshold (NaN is below nothing); live, int32 on the device: how many stay."""

    logits: Tensor
    entropy: Tensor
    stays: Tensor
    live: Tensor


def entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) over the last axis, in nats, computed in at least fp32."""
    return torch.special.entr(logits.to(sum_dtype(logits.dtype)).softmax(-1)).sum(-1)


def exit_head(
    x: Tensor,
    y: Tensor | None,
    spec: NormSpec | None,
    weight: Tensor,
    bias: Tensor | None,
    threshold: float,
    scale: Tensor | None = None,
    pooling: str = "mean",
    backend: str = "auto",
) -> ExitDecision:
    """The shared head on the sum so far, ``head(pool(norm(y + scale * x)))``, and its decision.

    On a GPU one kernel, Triton's or the extension's, which reads x and y once and writes nothing of
    their size; on a CPU the native path takes PyTorch's. Has no gradient.

    Args:
        x: [B, T, D], the latest layer's output.
        y: the sum of all terms before x, fp32 (fp64 for fp64), of x's shape; with ``pooling``
            "first" it may have another T. None: no term yet.
        spec: the norm, or None.
        weight: [C, D] of x's dtype. bias: [C] or None.
        threshold: a sample may leave where its entropy, in nats, is below it.
        scale: None (one) or a 0-dim tensor.
        pooling: "mean" over the tokens, or "first": token 0 alone is read.
        backend: "auto", "triton", "native" or "torch".

    Returns:
        The :class:`ExitDecision`; logits in x's dtype, entropy in the sum's.

    Raises:
        TypeError, ValueError: an argument is of another kind, shape, dtype or device.
        RuntimeError: a backend asked for by name cannot run here, or a gradient is being recorded.
    """
    _check_exit(x, y, spec, weight, bias, threshold, scale, pooling)
    if is_recorded(spec, x, y, weight, bias, scale):
        raise RuntimeError("exit_head has no gradient; call it under torch.no_grad()")
    kind, norm_weight, norm_bias = ("none", None, None) if spec is None else spec[:3]
    eps = 0.0 if spec is None else spec.eps_for(x.dtype)
    backend = choose(backend, x, "exit_head").backend
    if backend == "triton" or (backend == "native" and x.is_cuda):
        return ExitDecision(
            *compiled(backend, x).exit_head(
                x, y, scale, norm_weight, norm_bias, eps, kind, pooling, weight, bias,
                float(threshold),
            )
        )  # fmt: skip
    if pooling == "first":
        x, y = x[:, :1], None if y is None else y[:, :1]
    u = x.to(sum_dtype(x.dtype))
    u = u if scale is None else u * scale
    u = u if y is None else y + u
    pooled = torch_ops.norm(u, norm_weight, norm_bias, eps, kind).to(x.dtype).mean(1)
    logits = F.linear(pooled, weight, bias)
    certainty = entropy(logits)
    stays = ~(certainty < threshold)
    return ExitDecision(logits, certainty, stays, stays.sum(dtype=torch.int32))


def compact(
    stays: Tensor, tensors: Sequence[Tensor], kept: int | None = None, backend: str = "auto"
) -> tuple[list[Tensor], Tensor]:
    """The samples that stay, moved to the front in their order; nothing waits for the host. Has no
    gradient.

    Args:
        stays: [B] bool.
        tensors: [B, ...] each, of any dtypes, on the device of ``stays``.
        kept: samples that the results have room for. None takes B; a caller that knows the count
            saves the rest. Staying samples beyond it are dropped.
        backend: "auto", "triton", "native" or "torch"; on a CPU native means PyTorch's.

    Returns:
        (the tensors [kept, ...], packed, count int32 on the device). What lies past the count
        is not defined.

    Raises:
        TypeError, ValueError: an argument is of another kind, shape or device.
        RuntimeError: a backend asked for by name cannot run here, or a gradient is being recorded.
    """
    _check_compaction(stays, tensors, kept)
    if is_recorded(None, *tensors):
        raise RuntimeError("compact has no gradient; call it under torch.no_grad()")
    # Samples are copied whatever they hold, so the choice goes by the device alone.
    probe = torch.empty(1, device=stays.device)
    backend = choose(backend, probe, "compact").backend
    if backend == "triton" or (backend == "native" and probe.is_cuda):
        return compiled(backend, probe).compact(stays, list(tensors), kept)
    order = torch.sort(stays, descending=True, stable=True).indices[:kept]
    return [x.index_select(0, order) for x in tensors], stays.sum(dtype=torch.int32)


def _check_exit(x, y, spec, weight, bias, threshold, scale, pooling) -> None:
    check_input("x", x)
    if x.dim() != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}; it takes [B, T, D]")
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is {pooling!r}; it takes one of {', '.join(POOLINGS)}")
    if x.shape[1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; pooling takes at least one token")
    check_threshold(threshold)
    if y is not None:
        check_tensor("y", y)
        tokens = x.shape[1] if pooling == "mean" or y.dim() != 3 else max(1, y.shape[1])
        if y.shape != (x.shape[0], tokens, x.shape[2]) or y.dtype != sum_dtype(x.dtype):
            raise ValueError(
                f"y is {y.dtype} of shape {tuple(y.shape)}; the sum of x {tuple(x.shape)} is "
                f"{sum_dtype(x.dtype)} of that shape"
            )
    check_scale(x, scale)
    if spec is not None:
        check_norm(x, spec)
    check_tensor("weight", weight)
    if bias is not None:
        check_tensor("bias", bias)
    if weight.dim() != 2 or weight.shape[1] != x.shape[2] or len(weight) == 0:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; rows of {x.shape[2]} take (C, {x.shape[2]}) "
            "with C at least 1"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; it takes None or ({len(weight)},)")
    for name, tensor in (("y", y), ("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}, x has {x.dtype}; they take one")


def _check_compaction(stays, tensors, kept) -> None:
    if not isinstance(stays, Tensor) or stays.dtype != torch.bool or stays.dim() != 1:
        what = (
            f"{stays.dtype} of shape {tuple(stays.shape)}" if isinstance(stays, Tensor) else stays
        )
        raise ValueError(f"stays is {what}; it takes a bool tensor [B]")
    if kept is not None and not 0 <= kept <= len(stays):
        raise ValueError(f"kept is {kept}; it takes None or a number from 0 to {len(stays)}")
    for i, x in enumerate(tensors):
        if not isinstance(x, Tensor):
            raise TypeError(f"tensors[{i}] is a {type(x).__name__}; it takes tensors")
        if x.dim() == 0 or len(x) != len(stays):
            raise ValueError(
                f"tensors[{i}] has shape {tuple(x.shape)}; stays has {len(stays)} samples"
            )
        if x.device != stays.device:
            raise ValueError(f"tensors[{i}] is on {x.device}, stays on {stays.device}")
