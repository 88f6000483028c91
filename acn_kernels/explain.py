"""explain: which path each part of a stack takes for a given input, and why."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from acn_kernels.connection import Wiring
from acn_kernels.dispatch import choose
from acn_kernels.norm_spec import NormSpec
from acn_kernels.stack import FusedACNStack
from acn_kernels.validation import check_stack_input
from acn_kernels.whole_stack import WholeStack, whole_stack_of


class Part(NamedTuple):
    """One part of a stack: its name, the path it takes and the reason."""

    name: str
    path: str
    reason: str


class Explanation(list):
    """The parts of a stack in the order in which they run; prints as a table."""

    def __str__(self) -> str:
        widths = [max(len(part[column]) for part in self) for column in (0, 1)]
        return "\n".join(
            f"{name:{widths[0]}}  {path:{widths[1]}}  {reason}" for name, path, reason in self
        )


def explain(stack: FusedACNStack, x: Tensor) -> Explanation:
    """Which path each part of ``stack`` takes for inputs like x [..., D], and why.

    The answer is for the mode at hand: under torch.no_grad() the running sum of inference, else
    the fork and join of training.

    Raises:
        TypeError, ValueError: ``stack`` is no FusedACNStack, or it takes no x like this.
        RuntimeError: the stack's backend, asked for by name, cannot run on x.
    """
    if not isinstance(stack, FusedACNStack):
        raise TypeError(f"stack is a {type(stack).__name__}; it takes a FusedACNStack")
    check_stack_input(x, stack.rows, None)
    choice = choose(stack.backend, x, None if torch.is_grad_enabled() else "accumulate_norm")
    sums = stack._connection_kind(Wiring()).sums
    whole = whole_stack_of(stack, x, len(stack), True) if sums else None
    if isinstance(whole, WholeStack):
        name = f"layers[0:{len(stack)}]"
        return Explanation([Part(name, whole.backend, f"{whole.operation}: all in one call")])
    apart = _norms_apart(stack, sums)
    parts = [Part(f"layers[{i}]", *_entry(layer, choice, apart)) for i, layer in enumerate(stack)]
    fused = NormSpec.of(stack.norm) is not None or stack.norm is None
    norm = "" if fused else f"; {type(stack.norm).__name__} runs as the module it is"
    if not sums:
        parts.append(Part("output", "torch", apart + norm))
    elif stack.alpha != 1 and not stack.splits:
        parts.append(Part("sum", "torch", f"alpha is {stack.alpha}: the sum runs along" + norm))
    elif torch.is_grad_enabled():
        parts.append(Part("sum", choice.backend, f"join, {choice.reason}" + norm))
    else:
        parts.append(Part("sum", choice.backend, f"running sum, {choice.reason}" + norm))
    return Explanation(parts)


def _norms_apart(stack: FusedACNStack, sums: bool) -> str | None:
    """Why the norms of the layers are computed apart from the sum; None where they are not."""
    if not sums:
        return f"a {type(stack).__name__} sums no outputs"
    if stack.alpha != 1 and not stack.splits:
        return f"alpha is {stack.alpha}"
    return "direct gradient only" if stack.direct_gradient_only else None


def _entry(layer, choice, apart: str | None) -> tuple[str, str]:
    norms = getattr(layer, "entry_norms", None)
    if norms is None:
        return "module", f"{type(layer).__name__} lists no entry_norms: called on u as it is"
    norms = [norm for norm in norms if norm is not None]
    if not norms:
        return "module", f"{type(layer).__name__} has no norm at its entry"
    unknown = [type(norm).__name__ for norm in norms if NormSpec.of(norm) is None]
    if unknown:
        return "module", f"entry norm {unknown[0]} is no plain LayerNorm or RMSNorm, or has hooks"
    if apart is not None:
        return choice.backend, f"norm only ({apart}), {choice.reason}"
    step = "fork" if torch.is_grad_enabled() else "accumulate_norm"
    return choice.backend, f"{step}, {choice.reason}"
