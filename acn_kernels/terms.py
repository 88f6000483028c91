"""Watching a stack: the output of every layer, the sum, and how each output reaches it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from acn_kernels.blocks import HistoryStack
from acn_kernels.connection import Connection, Scale, Wiring, add_term
from acn_kernels.layer_step import step_of
from acn_kernels.stack import FusedACNStack
from acn_kernels.validation import check_depth


class Output(NamedTuple):
    """x, put out by layers[layer] (-1: the input of the stack), and what a long connection of it
    adds to y."""

    layer: int
    x: Tensor
    term: Tensor


@dataclass
class Observed:
    """One forward pass: all outputs in their order (under granularity "sublayer" attention and MLP
    each have one) and y before the final norm."""

    outputs: list[Output] = field(default_factory=list)
    y: Tensor | None = None


@contextlib.contextmanager
def observed(stack: FusedACNStack) -> Iterator[Observed]:
    """Inside, calls of ``stack`` with gradients leave what they did in the object given out.

    They compute the same values as ever, layer by layer, and keep every activation.
    """
    record, checkpoint, replaced = Observed(), stack.checkpoint, vars(stack).get("forward")

    def forward(x: Tensor, *args, depth: int | None = None, **kwargs) -> Tensor:
        record.outputs.clear()
        depth = check_depth(depth, len(stack), stack.include_input)
        y, wiring, scales = None, stack._wiring(x), stack._scales_by_layer(depth)
        base, step = stack.connection_kind(wiring), step_of(stack.checkpoint)
        for i, layer in enumerate(list(stack)[:depth]):
            kind = _noting(base, record, i, scales[i])
            x, y, wiring = step(x, y, kind, i, layer, wiring, scales[i], args, kwargs, False)
        record.y = stack._sum(x, y, depth, wiring)
        _note(record, depth - 1, scales[-1][0], x, wiring)
        return stack._head_norm(record.y, x)

    stack.checkpoint, stack.forward = False, forward
    try:
        yield record
    finally:
        stack.checkpoint = checkpoint
        del stack.forward
        if replaced is not None:  # one in the place of the class's, as accelerate puts it there
            stack.forward = replaced


def _noting(base: type[Connection], record: Observed, i: int, scales: list) -> type[Connection]:
    """``base``, noting what enters layers[i]: the output before it, then those inside it."""
    entering = zip(itertools.chain([i - 1], itertools.repeat(i)), scales, strict=False)

    class Noting(base):
        def enter(self, x: Tensor, norm: nn.Module | None) -> Tensor:
            _note(record, *next(entering), x, self.wiring)
            return super().enter(x, norm)

    return Noting


def _note(record: Observed, layer: int, scale: Scale, x: Tensor, wiring: Wiring) -> None:
    record.outputs.append(Output(layer, x, add_term(None, wiring.selected(x), scale)))


def stack_of(model: nn.Module) -> FusedACNStack:
    """The one stack in ``model`` (or ``model`` itself).

    Raises:
        TypeError: there is none, or more than one, or it has no long sum to observe.
    """
    found = [module for module in model.modules() if isinstance(module, FusedACNStack)]
    if len(found) != 1:
        raise TypeError(
            f"model, a {type(model).__name__}, holds {len(found)} FusedACNStacks; it takes one"
        )
    if isinstance(found[0], HistoryStack):
        raise TypeError(f"model holds a {type(found[0]).__name__}, which sums no outputs")
    return found[0]
