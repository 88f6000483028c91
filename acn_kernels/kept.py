"""What is kept of a stack's layers from one call to the next: what they are, and their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from acn_kernels.composition import Composition

_version = attrgetter("_version")  # counts the changes in place


class KeptLayers:
    """The answer to a question about layers, kept while they are made of the same."""

    def __init__(self) -> None:
        self._answer: tuple[Composition, Callable, Any] | None = None

    def __reduce__(self) -> tuple:
        return type(self), ()  # a copy belongs to other layers

    def of(self, layers: Sequence[nn.Module], question: Callable[[Sequence[nn.Module]], Any]):
        """``question(layers)``, asked again only where it may have another answer."""
        if not calls_are_plain():
            return question(layers)
        kept = self._answer
        if kept is None or kept[1] != question or not kept[0].is_that_of(layers):
            kept = self._answer = Composition(layers), question, question(layers)
        return kept[2]

    def forget(self) -> None:
        self._answer = None


class StackedParameters:
    """Parameters of L layers, each kind [L, ...] in one tensor.

    The tensors are kept between calls that record no gradient, and follow changes in place by
    PyTorch's own count of them.

    Args:
        kinds: for each kind the L parameters.
    """

    def __init__(self, kinds: Sequence[Sequence[Tensor]]) -> None:
        self._kinds = kinds
        self.parameters = [parameter for kind in kinds for parameter in kind]
        self._kept: tuple[list, list[Tensor]] | None = None

    def tensors(self, recorded: bool) -> list[Tensor]:
        """One for each kind; gradients flow back through them where they are ``recorded``."""
        if recorded or not self._may_be_kept():
            self._kept = None
            return self._stacked()
        state = [_stream_of(self.parameters[0]), *map(_version, self.parameters)]
        kept = self._kept
        if kept is None or kept[0] != state:
            kept = self._kept = state, self._stacked()
        return kept[1]

    def _stacked(self) -> list[Tensor]:
        return [torch.stack(kind) for kind in self._kinds]

    def _may_be_kept(self) -> bool:
        if not calls_are_plain() or self.parameters[0].is_inference():  # nobody counts those
            return False
        # A graph has to find the weights of the day on which it is replayed.
        return not (self.parameters[0].is_cuda and torch.cuda.is_current_stream_capturing())


def calls_are_plain() -> bool:
    """Whether operations run on tensors as they are: nobody traces, watches or transforms them."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
    )


def _stream_of(x: Tensor) -> int:
    """The stream that works on x now: another one would not wait for what this one has made."""
    return torch._C._cuda_getCurrentRawStream(x.device.index) if x.is_cuda else 0
