"""Steps that do the same again and again, recorded once as a CUDA graph and replayed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]
_FIRST = 3  # steps that run as they are: libraries set themselves up, kernels are compiled


class Repeated:
    """``step(images, labels)`` on CUDA without the time that launching its kernels takes.

    Small networks take longer to launch than to run. The first steps under a key run as they are;
    the next one is recorded, and from then on its recording is replayed on the new inputs. A key
    names everything beside the inputs that the step depends on.

    Args:
        step: returns a detached tensor; what it keeps, it must keep in tensors that it changes in
            place. It must not wait for the device.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._seen: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, _Recording] = {}
        self.obstacle: str | None = None  # why nothing more is recorded

    def __call__(self, key: Hashable, images: Tensor, labels: Tensor) -> Tensor:
        if self.obstacle is not None:
            return self._step(images, labels)
        key = (key, images.shape, images.dtype)
        if key not in self._recordings:
            self._seen[key] += 1
            if self._seen[key] <= _FIRST:
                return _on_another_stream(self._step, images, labels)
            try:
                self._recordings[key] = _Recording(self._step, images, labels)
            except RuntimeError as error:
                self.obstacle = str(error).splitlines()[0]
                return self._step(images, labels)
        return self._recordings[key](images, labels)


class _Recording:
    """The recorded step; recording runs nothing."""

    def __init__(self, step: Step, images: Tensor, labels: Tensor) -> None:
        self._inputs = images.clone(), labels.clone()
        self._result, self._replay = recorded(lambda: step(*self._inputs))

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        for kept, new in zip(self._inputs, (images, labels), strict=True):
            kept.copy_(new)
        self._replay()
        return self._result.clone()  # the next replay writes over it


def recorded(function: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """What ``function`` returned while a CUDA graph was made of it, and what replays it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return result, graph.replay


def _on_another_stream(step: Step, images: Tensor, labels: Tensor) -> Tensor:
    """As recording does: what autograd keeps of a stream must not be the default one."""
    if not images.is_cuda:
        return step(images, labels)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        result = step(images, labels)
    torch.cuda.current_stream().wait_stream(aside)
    return result
