"""What of a model's modules and tensors the C++ engine cannot take, whatever the family."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from acn_kernels import _extension
from acn_kernels.hooks import has_hooks

DTYPES = (torch.float32, torch.bfloat16)


def obstacle_in_modules(model: nn.Module, known: Collection[type], eps: float) -> str | None:
    """Why the engine does not compute what the modules of ``model`` do; None where it does.

    Args:
        known: their types, subclasses not included. eps: that of every LayerNorm.
    """
    for name, module in model.named_modules():
        what = f"{name or 'the model'}, a {type(module).__name__},"
        if type(module) not in known:
            return f"{what} is not known to it"
        if has_hooks(module):
            return f"{what} has hooks"
        if isinstance(module, nn.GELU) and module.approximate != "none":
            return f"{what} approximates"
        if isinstance(module, nn.LayerNorm) and module.eps != eps:
            return f"{what} has eps {module.eps}"
    return None


def obstacle_in_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Why the engine does not read these (name, tensor) where they lie; None where it does."""
    places = set()
    for name, tensor in tensors:
        if type(tensor) not in (nn.Parameter, Tensor):
            return f"{name} is a {type(tensor).__name__}"
        obstacle = obstacle_on(tensor.device)
        if obstacle or tensor.dtype not in DTYPES:
            return f"{name} is {tensor.dtype} on {tensor.device}" + (obstacle and f": {obstacle}")
        places.add((tensor.dtype, tensor.device))
    return "its tensors are of several dtypes, or on several devices" if len(places) > 1 else None


def obstacle_on(device: torch.device) -> str:
    """Why the engine does not run on ``device``; empty where it does."""
    if device.type == "cpu" or (device.type == "cuda" and _extension.has_cuda_kernels()):
        return ""
    return "the extension has no CUDA kernels" if device.type == "cuda" else "it takes cpu or cuda"
