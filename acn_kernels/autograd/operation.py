"""What the package's autograd Functions share."""

from __future__ import annotations

import torch
from torch import Tensor


class Operation(torch.autograd.Function):
    """An autograd.Function whose call costs a third: arguments are positional, none has a default.

    ``Function.apply`` binds default arguments through ``inspect`` at every call, some 50 µs;
    what it does after that is all that is left here, except under functorch's transforms.
    """

    @classmethod
    def apply(cls, *args):
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*args)


def set_apart(x: Tensor) -> Tensor:
    """x as an output of PyTorch's own operations; under torch.compile a copy, which the compiler
    fuses into what made x.

    torch 2.11 hands every intermediate result out of a Function that it traces. Where one is the
    output itself (of an operation in place, of ``to`` that changes nothing), the output's gradient
    is lost without a word.
    """
    return x.clone() if torch.compiler.is_compiling() else x


def refuse_double_backward(backend: str) -> None:
    """Raises RuntimeError where a backward pass is itself being recorded (create_graph=True)."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            f"the {backend} path cannot be differentiated twice (create_graph=True); "
            "backend='torch' can"
        )
