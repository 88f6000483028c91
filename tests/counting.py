"""Counts what a backward pass costs: operators, kernel launches, tensors of activation size."""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from collections.abc import Iterator

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from acn_kernels import ops


class Count(TorchDispatchMode):
    """Inside: every operator on tensors by name, every Triton launch, every tensor of ``size``.

    A tensor is counted where it has at least ``size`` elements in memory that no tensor had before.

    Args:
        opened: also count what the Triton path's operators dispatch within.
    """

    def __init__(self, size: int, opened: bool = False) -> None:
        super().__init__()
        self.size = size
        self.opened = opened
        self.operators: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.tensors: Counter[str] = Counter()
        self._alive: dict[int, object] = {}  # keeps memory from being given out again

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for x in inputs:
            self._is_new(x)
        namespace, _, name = func._schema.name.partition("::")
        if self.opened and namespace == "acn_triton":
            with self:
                home = importlib.import_module(ops.OPERATORS[name].homes[namespace])
                out = getattr(home, name)(*args)
        else:
            out = func(*args, **kwargs)
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.operators[str(func)] += bool(inputs or outputs)
        for x in outputs:
            self.tensors[str(func)] += self._is_new(x) and x.numel() >= self.size
        return out

    def _is_new(self, x: Tensor) -> bool:
        storage = x.untyped_storage()
        known = storage.data_ptr() in self._alive
        self._alive[storage.data_ptr()] = storage
        return not known

    def on_launch(self, kernel: str) -> None:
        self.launches[kernel] += 1


@contextlib.contextmanager
def launches_reported_to(count: Count) -> Iterator[None]:
    """Inside, every launch of the package's kernels is reported to ``count``."""
    from acn_kernels.kernels import accumulate_norm, fork, join, shares

    kernels = [
        (module, name, kernel)
        for module in (fork, join, accumulate_norm, shares)
        for name, kernel in vars(module).items()
        if name.endswith("_kernel")
    ]
    for module, name, kernel in kernels:
        setattr(module, name, _Counted(name, kernel, count))
    try:
        yield
    finally:
        for module, name, kernel in kernels:
            setattr(module, name, kernel)


class _Counted:
    def __init__(self, name, kernel, count) -> None:
        self.name, self.kernel, self.count = name, kernel, count

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.count.on_launch(self.name)
            with _disable_current_modes():  # the interpreter's own copies are not ours
                self.kernel[grid](*args, **kwargs)

        return launch
