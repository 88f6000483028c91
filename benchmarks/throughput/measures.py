"""What is measured of a way beside its time: first call, error, memory, FLOPs."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from benchmarks.throughput.case import Setting, Way


def first_call(way: Way, setting: Setting) -> tuple[Tensor, float]:
    """(the value in float64 on the CPU, seconds): compilation and tuning are in the seconds."""
    _wait(setting)
    started = time.perf_counter()
    value = way()
    _wait(setting)
    seconds = time.perf_counter() - started
    return value.detach().double().cpu(), seconds


def relative_error(value: Tensor, truth: Tensor) -> float:
    """|value - truth| / |truth|; inf where one of them is not finite."""
    if value.shape != truth.shape:
        raise ValueError(f"shape {tuple(value.shape)}; its peer has {tuple(truth.shape)}")
    error = ((value - truth).norm() / truth.norm().clamp_min(1e-300)).item()
    return error if error == error else float("inf")


def peak_bytes(way: Way, setting: Setting) -> int | None:
    """Memory that one more call takes at its peak above what was in use; None on a CPU."""
    if not setting.on_gpu:
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def kept_bytes(way: Way, setting: Setting) -> int | None:
    """Memory that the forward pass keeps for the backward; None for ways without one, and for
    compiled ones on a CPU, where allocations are seen from Python alone.

    What is allocated after the forward pass and was not before, its output included.
    """
    if not hasattr(way, "forward"):
        return None
    if setting.on_gpu:
        way()  # drops what the last step left: gradients are allocated, then as before
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        kept = way.forward()
        after = torch.cuda.memory_allocated()
        del kept
        return after - before
    if not way.eager:
        return None
    with Allocated() as allocated:
        kept = way.forward()
    alive = allocated.alive_bytes()
    del kept
    return alive


class Allocated(TorchDispatchMode):
    """Inside, every storage that an operator makes is noted, and none is kept alive for it."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[weakref.ref, int]] = {}
        self._given: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for storage in _storages((args, kwargs)):
            if storage._cdata not in self._made:
                self._given.add(storage._cdata)
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if storage._cdata not in self._given:
                self._made[storage._cdata] = weakref.ref(storage), storage.nbytes()
        return out

    def alive_bytes(self) -> int:
        """Of the storages that are still in use."""
        gc.collect()
        return sum(size for storage, size in self._made.values() if storage() is not None)


def _storages(values: object) -> Iterator[torch.UntypedStorage]:
    for value in tree_leaves(values):
        if isinstance(value, Tensor):
            yield value.untyped_storage()


def counted_flops(way: Way) -> int:
    """Multiplications and additions of the matrix products in one call, attention included."""
    aten = torch.ops.aten
    on_cpu = {  # the counter knows attention on GPUs alone
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        way()
    return counter.get_total_flops()


def _attention(q, k, v, *args, **kwargs) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(g, q, k, v, *args, **kwargs) -> int:
    return sdpa_backward_flop_count(g, q, k, v)


def release(setting: Setting) -> None:
    """Frees what earlier cases hold, compiled graphs too: past eight forms of one function
    torch.compile would otherwise give up on it."""
    torch.compiler.reset()
    gc.collect()
    if setting.on_gpu:
        torch.cuda.empty_cache()
    else:
        settle_heap()


def settle_heap() -> None:
    """Makes glibc keep freed blocks, as it does in any process that once freed a large one.

    It raises the size from which it returns memory to the system to twice that of the largest
    block freed, up to blocks of 32 MB. Below, the page faults of whoever allocates in an unlucky
    order would be timed.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _wait(setting: Setting) -> None:
    if setting.on_gpu:
        torch.cuda.synchronize()
