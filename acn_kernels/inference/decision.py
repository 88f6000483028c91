"""What the shared head says of the samples at an exit, and which of them go on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acn_kernels.functional import ExitDecision, exit_head
from acn_kernels.inference.criteria import certainty, is_sure
from acn_kernels.norm_spec import NormSpec
from acn_kernels.stack import FusedACNStack
from acn_kernels.validation import under_autocast


def decide(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None,
    depth: int,
    threshold: float,
    criterion: str = "entropy",
) -> ExitDecision:
    """The decision at ``depth``, from the state (x, y) that ``model.blocks.advance`` returned.

    One operation from x and y to the decision on the entropy where the model is made of what it
    knows, else the model's own norm and head one after the other. With another criterion what
    the decision calls entropy is what that compares.
    """
    stack, head = model.blocks, getattr(model, "pooled_head", None)
    if head is None or not _sum_is_known(stack, x):
        return _decision(model.forward_head(stack.output(x, y, depth)), threshold, criterion)
    scale = None if stack.scales is None else stack.scales[depth - (not stack.include_input)]
    # Of a sum that has its first row alone, that row is the mean.
    pooling = "mean" if stack.rows is None else "first"
    decision = exit_head(
        x, y, NormSpec.of(stack.norm), head.weight, head.bias, threshold, scale, pooling,
        stack.backend,
    )  # fmt: skip
    if criterion == "entropy":
        return decision
    return _decision(decision.logits, threshold, criterion)


def _decision(logits: Tensor, threshold: float, criterion: str) -> ExitDecision:
    value = certainty(logits, criterion)
    stays = ~is_sure(value, criterion, threshold)
    return ExitDecision(logits, value, stays, stays.sum(dtype=torch.int32))


def _sum_is_known(stack: FusedACNStack, x: Tensor) -> bool:
    """Whether the output at a depth is ``norm(y + scale * x)``, of all rows or of the first."""
    return (
        type(stack) is FusedACNStack
        and (stack.norm is None or NormSpec.of(stack.norm) is not None)
        and (stack.rows is None or (isinstance(stack.rows, str) and stack.rows == "first"))
        and (stack.scales is None or stack.granularity == "block")
        and not under_autocast(x)
    )
