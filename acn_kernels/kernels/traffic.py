"""Counting what launches move: every unmasked load, store and atomic of interpreted kernels.

Under TRITON_INTERPRET=1 a kernel's memory operations are plain calls with the addresses in hand.
Each address is looked up among the elements of the launch's tensor arguments, so the count is
exact: it knows which argument was touched, how often, and whether an access hit none of them.
What is counted is what the kernel asks for; caches may serve a second request, memory need not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
from torch import Tensor
from triton.runtime import interpreter


class Traffic(NamedTuple):
    """Bytes of one argument: all that were read and written, and the distinct ones among them."""

    read: int
    written: int
    distinct_read: int
    distinct_written: int


class ObservedLaunch(NamedTuple):
    """A launch that ran: its kernel, its grid, its arguments and what it moved, both by name.

    ``traffic`` names the members of a tuple argument "sources[0]", "sources[1]", ...
    """

    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, object]
    traffic: dict[str, Traffic]

    def tensors(self) -> dict[str, Tensor]:
        """The tensor arguments by the names of ``traffic``."""
        return tensors_in(self.arguments)


def tensors_in(arguments: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors among a launch's arguments, those inside tuples as "name[index]"."""
    found: dict[str, Tensor] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, tuple):
            found |= tensors_in({f"{name}[{i}]": part for i, part in enumerate(value)})
    return found


@contextmanager
def observed() -> Iterator[list[ObservedLaunch]]:
    """Inside, every interpreted launch of this process is counted and appended to the list.

    Where arguments share memory, an access counts for the first of them. An unmasked access
    outside every argument, or of another width than the argument's elements, fails the launch
    with the interpreter's error and the ValueError's words.

    Raises:
        RuntimeError: kernels are compiled in this process, so that nothing could be seen.
    """
    if not interpreter.triton.knobs.runtime.interpret:
        raise RuntimeError("kernels are compiled here; counting takes TRITON_INTERPRET=1")
    recorder = _Recorder()
    with ExitStack() as patches:
        for owner, name, wrapped in recorder.hooks():
            patches.enter_context(patch.object(owner, name, wrapped))
        yield recorder.launches


class _Counter:
    """How often each element of one tensor was read and written."""

    def __init__(self, tensor: Tensor) -> None:
        offsets = np.zeros(1 if tensor.numel() else 0, dtype=np.int64)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            offsets = (offsets[:, None] + np.arange(size) * stride).ravel()
        self.width = tensor.element_size()
        addresses = tensor.data_ptr() + np.unique(offsets) * self.width
        self.addresses = addresses.astype(np.uint64)  # each element's, in rising order
        self.reads = np.zeros(len(addresses), dtype=np.int64)
        self.writes = np.zeros(len(addresses), dtype=np.int64)

    def find(self, addresses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which of ``addresses`` are elements of this tensor, their places among them)."""
        if not len(self.addresses):
            return np.zeros(len(addresses), dtype=bool), np.zeros(0, dtype=np.int64)
        places = np.searchsorted(self.addresses, addresses).clip(max=len(self.addresses) - 1)
        inside = self.addresses[places] == addresses
        return inside, places[inside]

    def traffic(self) -> Traffic:
        counts = (self.reads, self.writes)
        totals = [int(count.sum()) for count in counts]
        distinct = [int(np.count_nonzero(count)) for count in counts]
        return Traffic(*(elements * self.width for elements in (*totals, *distinct)))


class _Recorder:
    def __init__(self) -> None:
        self.launches: list[ObservedLaunch] = []
        self.counters: dict[str, _Counter] = {}

    def hooks(self) -> Iterator[tuple[type, str, object]]:
        """(class, method, its replacement), the methods being all that touch memory.

        Plain, block-pointer and descriptor accesses end in the masked ones.
        """
        builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
        on_host, run = executor._init_args_hst, executor.__call__
        load, store = builder.create_masked_load, builder.create_masked_store
        rmw, cas = builder.create_atomic_rmw, builder.create_atomic_cas

        def arguments_on_host(launch, args, kwargs):
            # Pointers are those of the copies that the interpreter makes of a GPU's tensors.
            args, kwargs = on_host(launch, args, kwargs)
            self.arguments = dict(zip(launch.arg_names, args, strict=False)) | kwargs
            self.counters = {n: _Counter(t) for n, t in tensors_in(self.arguments).items()}
            return args, kwargs

        def observed_run(launch, *args, **kwargs):
            run(launch, *args, **kwargs)
            grid = launch.grid(self.arguments) if callable(launch.grid) else launch.grid
            traffic = {name: counter.traffic() for name, counter in self.counters.items()}
            self.launches.append(
                ObservedLaunch(launch.fn.__name__, tuple(grid), self.arguments, traffic)
            )

        def observed_load(this, ptrs, mask, *rest, **named):
            self.count(ptrs, mask, read=True)
            return load(this, ptrs, mask, *rest, **named)

        def observed_store(this, ptrs, value, mask, *rest, **named):
            self.count(ptrs, mask, written=True)
            return store(this, ptrs, value, mask, *rest, **named)

        def observed_rmw(this, op, ptrs, value, mask, *rest, **named):
            self.count(ptrs, mask, read=True, written=True)
            return rmw(this, op, ptrs, value, mask, *rest, **named)

        def observed_cas(this, ptrs, *rest, **named):
            self.count(ptrs, None, read=True, written=True)
            return cas(this, ptrs, *rest, **named)

        yield executor, "_init_args_hst", arguments_on_host
        yield executor, "__call__", observed_run
        yield builder, "create_masked_load", observed_load
        yield builder, "create_masked_store", observed_store
        yield builder, "create_atomic_rmw", observed_rmw
        yield builder, "create_atomic_cas", observed_cas

    def count(self, ptrs, mask, read: bool = False, written: bool = False) -> None:
        addresses = np.asarray(ptrs.data).ravel()
        if mask is not None:
            addresses = addresses[np.asarray(mask.data).astype(bool).ravel()]
        width = max(1, ptrs.get_element_ty().primitive_bitwidth // 8)
        for name, counter in self.counters.items():
            inside, places = counter.find(addresses)
            if not len(places):
                continue
            if counter.width != width:
                raise ValueError(f"{name} holds {counter.width}-byte elements, accessed by {width}")
            for wanted, counts in ((read, counter.reads), (written, counter.writes)):
                if wanted:
                    counts += np.bincount(places, minlength=len(counts))
            addresses = addresses[~inside]
        if len(addresses):
            raise ValueError(f"{len(addresses)} unmasked accesses lie in no argument")
