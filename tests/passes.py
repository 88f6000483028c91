"""Counts the passes of a whole step: what the kernels move and what PyTorch moves around them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from unittest.mock import patch

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime import interpreter

from acn_kernels.kernels.traffic import observed

_MATRIX_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


def passes(step: Callable[[], object], size: int) -> Counter[str]:
    """Reads and writes of tensors of at least ``size`` elements by ``step()``, in multiples of
    that size, by name: "kernels" for all interpreted Triton launches, PyTorch's own for each
    operator it dispatches.

    An operator is taken to read its inputs and to write its outputs once, views to do nothing.
    Matrix products and attention are left out.
    """
    run = interpreter.GridExecutor.__call__

    def unseen(launch, *args, **kwargs):
        with _disable_current_modes():  # the interpreter's own copies are not ours
            run(launch, *args, **kwargs)

    eager = _Eager(size)
    with patch.object(interpreter.GridExecutor, "__call__", unseen), observed() as launches, eager:
        step()
    for launch in launches:
        for name, tensor in launch.tensors().items():
            if tensor.numel() >= size:
                moved = launch.traffic[name]
                elements = (moved.read + moved.written) / tensor.element_size()
                eager.moved["kernels"] += elements / size
    return eager.moved


class _Eager(TorchDispatchMode):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.moved: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        left_out = name in _MATRIX_PRODUCTS or "attention" in name or "empty" in name
        # The operators of the package are counted by their launches.
        if func.is_view or left_out or name == "_unsafe_view" or namespace != "aten":
            return out
        read = out if name == "index_select" else (args, kwargs)  # a selection reads that alone
        moved = [x.numel() for x in tree_leaves((read, out)) if isinstance(x, Tensor)]
        self.moved[name] += sum(numel for numel in moved if numel >= self.size) / self.size
        return out
