"""Which path an operation takes: Triton kernels, the native extension, or PyTorch's own kernels."""

from __future__ import annotations

import importlib.util
import os
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from acn_kernels import _extension
from acn_kernels.ops import OPERATORS

BACKENDS = ("auto", "triton", "native", "torch")
# Triton reads the variable when a kernel is defined, so that later changes would mean nothing.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_ELEMENTWISE = ("bias_gelu",)
_NATIVE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_CUDA_DTYPES = _TRITON_DTYPES  # of the extension's own CUDA kernels


class Choice(NamedTuple):
    """The path taken ("triton", "native" or "torch") and why."""

    backend: str
    reason: str


def check_backend(backend: str) -> str:
    """``backend`` itself; ValueError where it is none of :data:`BACKENDS`."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it takes one of {', '.join(BACKENDS)}")
    return backend


def _interpreted() -> bool:
    return _INTERPRETED


def in_forward_mode() -> bool:
    """Whether forward-mode derivatives are taken now, for which torch has no public question."""
    return forward_ad._current_level >= 0


def _triton_installed() -> bool:
    return _TRITON_INSTALLED


def _triton_obstacle() -> str | None:
    if not _triton_installed():
        return "Triton is not installed"
    if not torch.cuda.is_available() and not _interpreted():
        return "torch sees no CUDA device"
    return None


def availability() -> dict[str, tuple[bool, str]]:
    """For each path: whether it can run on this machine at all, and the reason."""
    obstacle = _triton_obstacle()
    native = _extension.module() is not None
    where = "interpreted on the CPU" if _interpreted() else "on the GPU"
    return {
        "triton": (obstacle is None, obstacle or where),
        "native": (native, f"extension {_extension.state()}"),
        "torch": (True, f"torch {torch.__version__}"),
    }


def obstacle_to(backend: str, x: Tensor, operation: str | None = None) -> str | None:
    """Why ``backend`` cannot work on tensors like x; None where it can.

    ``operation``: the operator to run, where it matters: the extension may have a CUDA kernel for
    it, and an elementwise one takes rows of any width.
    """
    if backend == "torch":
        return None
    if in_forward_mode():
        return "forward-mode derivatives are computed by PyTorch's own kernels alone"
    if backend == "triton":
        missing = _triton_obstacle()
        if missing:
            return missing
        if not x.is_cuda and not _interpreted():
            return f"the input is on {x.device.type}, Triton runs on cuda"
        if x.dtype not in _TRITON_DTYPES:
            return f"the Triton kernels take fp16, bf16 and fp32, the input is {x.dtype}"
        from acn_kernels.kernels.launch import MAX_WIDTH

        if operation not in _ELEMENTWISE and x.shape[-1] > MAX_WIDTH:
            return f"a row of {x.shape[-1]} does not fit a program's registers ({MAX_WIDTH})"
        return None
    if _extension.module() is None:
        return f"the compiled extension is {_extension.state()}"
    if x.is_cuda and operation is not None and "acn_cuda" in OPERATORS[operation].homes:
        return _obstacle_to_cuda_kernel(x, operation)
    if x.device.type != "cpu":
        return f"the input is on {x.device.type}, the native kernels run on cpu"
    if x.dtype not in _NATIVE_DTYPES:
        return f"the native kernels take floating-point tensors, the input is {x.dtype}"
    return None


def _obstacle_to_cuda_kernel(x: Tensor, operation: str) -> str | None:
    if not _extension.has_cuda_kernels():
        return f"the extension has no CUDA kernels: {_extension.state()}"
    if x.dtype not in _CUDA_DTYPES:
        return f"the CUDA kernels take fp16, bf16 and fp32, the input is {x.dtype}"
    limits = _extension.module()
    widest = limits.cuda_max_exit_width if operation == "exit_head" else limits.cuda_max_width
    if operation != "compact" and x.shape[-1] > widest:
        return f"a row of {x.shape[-1]} does not fit a block's registers ({widest})"
    return None


def choose(backend: str, x: Tensor, operation: str | None = None) -> Choice:
    """The path for tensors like x; ``operation`` as in :func:`obstacle_to`.

    Raises:
        ValueError: ``backend`` is unknown.
        RuntimeError: a path asked for by name cannot run; the message says what is missing.
    """
    check_backend(backend)
    if backend != "auto":
        obstacle = obstacle_to(backend, x, operation)
        if obstacle:
            raise RuntimeError(f"backend={backend!r} cannot run: {obstacle}")
        return Choice(backend, "asked for by name")
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return Choice("torch", "torch.func transforms PyTorch's own operations alone")
    if x.is_cuda:
        obstacle = obstacle_to("triton", x, operation)
        if obstacle is None:
            return Choice("triton", "the input is on a GPU")
        if operation is not None and obstacle_to("native", x, operation) is None:
            return Choice("native", f"{obstacle}; the extension has a CUDA kernel")
        return Choice("torch", obstacle)
    if torch.compiler.is_compiling():
        return Choice("torch", "torch.compile fuses PyTorch's own operations on a CPU")
    obstacle = obstacle_to("native", x)
    return Choice("torch", obstacle) if obstacle else Choice("native", "the input is on the CPU")
