"""Compiled backward passes have no derivative of their own; asking for one is an error."""

from __future__ import annotations

import torch


def refuse_double_backward(backend: str) -> None:
    """Raises RuntimeError where a backward pass is itself being recorded (create_graph=True)."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            f"the {backend} path cannot be differentiated twice (create_graph=True); "
            "backend='torch' can"
        )
