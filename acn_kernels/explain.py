"""explain: which path each part of a stack takes for a given input, and why."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from acn_kernels.connection import Wiring
from acn_kernels.dispatch import Choice, choose
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
    sums = stack.connection_kind(Wiring()).sums
    mixed = stack.alpha != 1 and not stack.splits
    running = sums and not mixed and not torch.is_grad_enabled()
    choice = choose(stack.backend, x, "accumulate_norm" if running else None)
    whole = whole_stack_of(stack, x, len(stack), True) if sums else None
    if isinstance(whole, WholeStack):
        name = f"layers[0:{len(stack)}]"
        return Explanation([Part(name, whole.backend, f"{whole.operation}: all in one call")])
    apart = f"a {type(stack).__name__} sums no outputs" if not sums else None
    if sums and mixed:
        apart = f"alpha is {stack.alpha}"
    parts = [
        Part(f"layers[{i}]", *_entry(stack, i, layer, choice, apart))
        for i, layer in enumerate(stack)
    ]
    return Explanation([*parts, _end(stack, choice, sums, apart)])


def _end(stack: FusedACNStack, choice: Choice, sums: bool, apart: str | None) -> Part:
    known = NormSpec.of(stack.norm) is not None
    foreign = not known and stack.norm is not None
    norm = f"; {type(stack.norm).__name__} runs as the module it is" if foreign else ""
    if not sums:
        return Part("output", "torch", f"{apart}{norm}")
    if apart is not None:
        return Part("sum", "torch", f"{apart}: the sum runs along{norm}")
    if torch.is_grad_enabled():
        return Part("sum", choice.backend, f"join, {choice.reason}{norm}")
    if not known:
        return Part("sum", "torch", f"running sum, with no norm to fuse at its end{norm}")
    return Part("sum", choice.backend, f"running sum, {choice.reason}{norm}")


def _entry(
    stack: FusedACNStack, i: int, layer: nn.Module, choice: Choice, apart: str | None
) -> tuple[str, str]:
    norms = getattr(layer, "entry_norms", None)
    if norms is None:
        return "module", f"{type(layer).__name__} lists no entry_norms: called on u as it is"
    norms = [norm for norm in norms if norm is not None]
    if not norms:
        return "module", f"{type(layer).__name__} has no norm at its entry"
    unknown = [type(norm).__name__ for norm in norms if NormSpec.of(norm) is None]
    if unknown:
        return "module", f"entry norm {unknown[0]} is no plain LayerNorm or RMSNorm, or has hooks"
    if apart is None and stack.direct_gradient_only and torch.is_grad_enabled():
        apart = "direct gradient only"
    if apart is None and i == 0 and not stack.include_input:
        apart = "the input is no term of the sum"
    if apart is not None:
        return choice.backend, f"norm only ({apart}), {choice.reason}"
    step = "fork" if torch.is_grad_enabled() else "accumulate_norm"
    return choice.backend, f"{step}, {choice.reason}"
