"""Steps that do the same again and again, recorded once as a CUDA graph and replayed."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

Result = Tensor | tuple[Tensor, ...]
Step = Callable[..., Result]
_FIRST = 3  # steps that run as they are: libraries set themselves up, kernels are compiled


class Repeated:
    """``step(*inputs)`` on CUDA without the time that launching its kernels takes.

    Small networks take longer to launch than to run. The first steps under a key run as they are;
    the next one is recorded, and from then on its recording is replayed on the new inputs. A key
    names everything beside the inputs that the step depends on. Steps of inputs elsewhere run as
    they are.

    Args:
        step: of tensors; returns a detached one, or a tuple of them. What it keeps, it must keep
            in tensors that it changes in place. It must not wait for the device.
        changed: tensors that it changes and that others watch: a replay, too, raises their version.
    """

    def __init__(self, step: Step, changed: Sequence[Tensor] = ()) -> None:
        self._step, self._changed = step, changed
        self._seen: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, _Recording] = {}
        self._aside: torch.cuda.Stream | None = None
        self.obstacle: str | None = None  # why nothing more is recorded

    def __call__(self, key: Hashable, *inputs: Tensor) -> Result:
        if self.obstacle is not None or not _runs_on_cuda(inputs[0]):
            return self._step(*inputs)
        key = (key, *((x.shape, x.dtype) for x in inputs), self._place)
        if key not in self._recordings:
            self._seen[key] += 1
            if self._seen[key] <= _FIRST:
                return self._on_another_stream(*inputs)
            try:
                self._recordings[key] = _Recording(self._step, *inputs)
            except RuntimeError as error:
                self.obstacle = str(error).splitlines()[0]
                return self._step(*inputs)
        result = self._recordings[key](*inputs)
        if self._changed:
            torch.autograd.graph.increment_version(self._changed)
        return result

    @property
    def _place(self) -> int:
        """Where the first of the tensors that change is: a recording works on that memory."""
        return self._changed[0].data_ptr() if self._changed else 0

    def _on_another_stream(self, *inputs: Tensor) -> Result:
        """As recording does: what autograd keeps of a stream must not be the default one. Always
        the same one: every stream has workspaces, and memory to reuse, of its own."""
        if not inputs[0].is_cuda:  # a test's
            return self._step(*inputs)
        if self._aside is None:
            self._aside = torch.cuda.Stream(inputs[0].device)
        current = torch.cuda.current_stream(inputs[0].device)
        self._aside.wait_stream(current)
        with torch.cuda.stream(self._aside):
            result = self._step(*inputs)
        current.wait_stream(self._aside)
        for x in (result,) if isinstance(result, Tensor) else result:
            x.record_stream(current)  # its memory waits for who reads it there, before it is reused
        return result


def _runs_on_cuda(x: Tensor) -> bool:
    return x.is_cuda


class _Recording:
    """The recorded step; recording runs nothing."""

    def __init__(self, step: Step, *inputs: Tensor) -> None:
        with torch.inference_mode(False):  # or they could be written to in that mode alone
            self._inputs = [x.detach().clone() for x in inputs]
        with torch.cuda.device_of(self._inputs[0]):
            self._result, self._replay = recorded(lambda: step(*self._inputs))
        self._one_at_a_time = threading.Lock()

    def __call__(self, *inputs: Tensor) -> Result:
        with self._one_at_a_time:
            for kept, new in zip(self._inputs, inputs, strict=True):
                kept.copy_(new)
            self._replay()
            # The next replay writes over it.
            if isinstance(self._result, Tensor):
                return self._result.clone()
            return tuple(x.clone() for x in self._result)


def recorded(function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
    """What ``function`` returned while a CUDA graph was made of it on the current device, and what
    replays it."""
    graph, stream = torch.cuda.CUDAGraph(), _stream_to_record(torch.cuda.current_device())
    # What other threads do meanwhile is none of the graph's business.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        result = function()
    return result, graph.replay


@functools.cache
def _stream_to_record(device: int) -> torch.cuda.Stream:
    """torch's own is on whichever device recorded first: of others it would record nothing."""
    return torch.cuda.Stream(device)
