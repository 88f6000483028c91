"""mixer_exit: an ACN of Mixer blocks and its head, which every sample leaves at its own depth."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from acn_kernels.autograd.mixer_stack import BACKEND
from acn_kernels.functional.checks import check_sum, check_tensor, check_threshold
from acn_kernels.functional.mixer_stack import MixerParameters, check_parameters, operands
from acn_kernels.norm_spec import NormSpec
from acn_kernels.ops import compiled

POOLINGS = ("mean", "first")


class MixerExits(NamedTuple):
    """logits [B, C], depth [B] int64, and counts [L+1] int32: how many samples left at a depth."""

    logits: Tensor
    depth: Tensor
    counts: Tensor


@torch.no_grad()
def mixer_exit(
    x: Tensor,
    parameters: MixerParameters,
    exits: Tensor,
    threshold: float,
    head_weight: Tensor,
    head_bias: Tensor | None = None,
    spec: NormSpec | None = None,
    scales: Tensor | None = None,
    include_input: bool = True,
    pooling: str = "mean",
) -> MixerExits:
    """Early exit inside the kernel: each sample stops at the first exit where the head is sure.

    At an exit k the head reads norm(y_k), pooled over the tokens; the sample leaves where the
    entropy of the softmax of its logits is below ``threshold``. An entropy of NaN is below
    nothing: such a sample goes all the way. The host waits for nothing, and nothing has a
    gradient. Where an entropy is within rounding of the threshold the plain loop, which sums in
    another order, may decide otherwise: within 1e-4 nats in fp32, and in half precision within
    what a change in the last bits of the logits makes of it. Runs on Triton alone.

    Args:
        x: x_0, [B, T, D]; sizes and dtypes as in mixer_stack.
        parameters, spec, scales, include_input: as in mixer_stack.
        exits: [L+1], bool or integer, on x's device: whether samples may leave at each depth. The
            first and the last entry are not read: none leaves at 0, and all that are left at L.
        threshold: on the entropy, in nats.
        head_weight, head_bias: [C, D] and [C] (or None) of x's dtype, shared by all exits.
        pooling: "mean" over the tokens, or the "first" one.

    Raises:
        TypeError, ValueError: an argument is of another kind, shape, dtype or device.
        RuntimeError: Triton cannot run here, or not on inputs like x.
    """
    check_parameters(x, parameters)
    check_sum(x, len(parameters.norm1_weight), spec, scales)
    (x, *rest), options = operands(x, parameters, spec, scales, include_input)
    if x.dim() != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}; it takes [B, T, D]")
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is {pooling!r}; it takes one of {', '.join(POOLINGS)}")
    check_threshold(threshold)
    given = {"exits": exits, "head_weight": head_weight}
    if head_bias is not None:
        given["head_bias"] = head_bias
    for name, tensor in given.items():
        check_tensor(name, tensor)
    layers = len(parameters.norm1_weight)
    if exits.shape != (layers + 1,) or exits.is_floating_point():
        raise ValueError(
            f"exits is {exits.dtype} of shape {tuple(exits.shape)}; {layers} layers take a bool or "
            f"integer tensor ({layers + 1},)"
        )
    if head_weight.dim() != 2 or head_weight.shape[1] != x.shape[-1] or len(head_weight) == 0:
        raise ValueError(
            f"head_weight has shape {tuple(head_weight.shape)}; it takes (C, {x.shape[-1]})"
        )
    if head_bias is not None and head_bias.shape != head_weight.shape[:1]:
        raise ValueError(
            f"head_bias has shape {tuple(head_bias.shape)}; it takes {tuple(head_weight.shape[:1])}"
        )
    for name, tensor in (("head_weight", head_weight), ("head_bias", head_bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}, x has {x.dtype}; they take one")
    for name, tensor in given.items():
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")
    result = compiled(BACKEND).mixer_exit(
        x, parameters.tensors, *rest, exits, head_weight, head_bias, *options, pooling,
        float(threshold),
    )  # fmt: skip
    return MixerExits(*result)
