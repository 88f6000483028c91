"""Checks at the edge of the stack: every error names the argument, its value and what it takes."""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from acn_kernels.reference import sum_dtype

if TYPE_CHECKING:
    from acn_kernels.rows import RowSelection

GRANULARITIES = ("block", "sublayer")
_STACK_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def under_autocast(x: Tensor) -> bool:
    """Whether autocast is on for x's device; "meta" knows none. (torch.amp.is_autocast_available
    would tell, but ends the graph of torch.compile before torch 2.12.)"""
    device = x.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast brings the operands of products with x to; None where it does not."""
    if not under_autocast(x) or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(x.device.type)


def check_alpha(alpha: float) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real):
        raise TypeError(f"alpha is a {type(alpha).__name__}; it takes a number from 0 to 1")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it takes a number from 0 (residual) to 1 (ACN)")
    return float(alpha)


def check_alphas(alpha: float | Sequence[float], layers: int) -> float | tuple[float, ...]:
    """One alpha, or one for each layer; those that are all the same are one."""
    if not isinstance(alpha, Sequence) or isinstance(alpha, str):
        return check_alpha(alpha)
    if len(alpha) != layers:
        raise ValueError(
            f"alpha has {len(alpha)} entries; it takes one for each of {layers} layers"
        )
    alphas = tuple(map(check_alpha, alpha))
    return alphas if len(set(alphas)) != 1 else alphas[0]


def check_flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it takes True or False")
    return value


def check_size(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}; it takes an integer of at least {least}")
    if value < least:
        raise ValueError(f"{name} is {value}; it takes an integer of at least {least}")


def check_device(name: str) -> str:
    """``name``; ValueError where it is neither the CPU nor a GPU that torch can use here."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"device is {name!r}; it takes cpu, cuda, or a GPU such as cuda:1")
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:  # of a torch without CUDA, and of any other
        raise ValueError(f"device is {name!r}: {str(error).splitlines()[0]}") from error
    return name


def check_depth(
    depth: int | None,
    layers: int,
    include_input: bool,
    name: str = "depth",
    least: int = 0,
    optional: bool = True,
) -> int:
    """``depth``; the number of layers where it is None, if it is ``optional``."""
    if depth is None and optional:
        depth = layers
    if isinstance(depth, bool) or not isinstance(depth, (int, torch.SymInt)):
        raise TypeError(f"{name} is {depth!r}; it takes an integer from {least} to {layers}")
    if not least <= depth <= layers:
        raise ValueError(f"{name} is {depth}; it takes an integer from {least} to {layers}")
    if depth == 0 and not include_input:
        raise ValueError(f"{name} is 0 and include_input is False; the sum takes a term")
    return depth


def check_checkpoint(checkpoint: bool | str) -> bool | str:
    if checkpoint is not True and checkpoint is not False and checkpoint != "elementwise":
        raise (TypeError if not isinstance(checkpoint, str) else ValueError)(
            f"checkpoint is {checkpoint!r}; it takes False, True or 'elementwise'"
        )
    return checkpoint


def check_granularity(granularity: str, layers: Iterable[nn.Module]) -> None:
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity is {granularity!r}; it takes 'block' or 'sublayer'")
    if granularity == "block":
        return
    for i, layer in enumerate(layers):
        if not hasattr(layer, "entry_norms"):
            raise ValueError(
                f"granularity is 'sublayer', but layers[{i}], a {type(layer).__name__}, has no "
                "sublayers; it takes blocks that list entry_norms, as acn_kernels.blocks do"
            )


def check_stack_input(x: Tensor, rows: object, parameter: Tensor | None) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; it takes a tensor [..., D]")
    if x.dtype not in _STACK_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _STACK_DTYPES)
        raise TypeError(f"x has dtype {x.dtype}; it takes a tensor of {names}")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; it takes [..., D] with D at least 1")
    if rows is not None and x.dim() < 2:
        raise ValueError(
            f"rows is set, but x has shape {tuple(x.shape)}; it takes [..., T, D] with tokens"
        )
    if parameter is None:
        return
    if parameter.device != x.device:
        raise ValueError(f"x is on {x.device}, the layers are on {parameter.device}")


def check_stack_sum(x: Tensor, y: Tensor, rows: RowSelection | None) -> None:
    """Raises where y is not the sum of terms like x, those ``rows`` of them."""
    shape = x.shape if rows is None else rows.shape_of(x.shape)
    if not isinstance(y, Tensor):
        raise TypeError(f"y is a {type(y).__name__}; it takes None or the sum, a tensor")
    if y.shape != shape or y.dtype != sum_dtype(x.dtype):
        raise ValueError(
            f"y is {y.dtype} of shape {tuple(y.shape)}; the sum of terms like x is "
            f"{sum_dtype(x.dtype)} of shape {tuple(shape)}"
        )


def check_labels(labels: Tensor, classes: int, samples: int | None = None) -> None:
    """Raises where there is no label, or one that is none of 0 .. classes - 1: accuracies would
    all be alike, and any choice by them as good as another. samples: how many labels it takes."""
    if samples is not None and labels.shape != (samples,):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; {samples} samples take ({samples},)"
        )
    if labels.is_floating_point():
        raise TypeError(f"labels are {labels.dtype}; they take integers")
    if not labels.numel():
        raise ValueError("data holds no sample; it takes at least one")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        raise ValueError(
            f"labels go from {least} to {most}; the model has {classes} classes, 0 to {classes - 1}"
        )


def are_counted(x: Tensor) -> bool:
    """Whether PyTorch counts changes of x in place: not in inference mode, nor in a compiler."""
    return not (torch.compiler.is_compiling() or x.is_inference())


def changes_in_place(x: Tensor) -> int:
    """PyTorch's own count of them, 0 where it keeps none."""
    return x._version if are_counted(x) else 0


def check_layer_input(i: int, layer: nn.Module, u: Tensor, before: int) -> None:
    """Raises where layers[i] changed in place its input, which the long sum reads too."""
    if changes_in_place(u) != before:
        raise ValueError(
            f"layers[{i}] ({type(layer).__name__}) changed its input in place, "
            "which the long sum reads too; it takes layers without, as by inplace=False"
        )


def check_layer_output(
    i: int, layer: nn.Module, x: Tensor, out: Tensor, shape: Sequence[int]
) -> None:
    """Raises where layers[i] did not turn x into a tensor of ``shape`` that goes with it."""
    alike = isinstance(out, Tensor) and out.shape == shape and out.device == x.device
    if alike and (out.dtype == x.dtype or under_autocast(x)):
        return
    name = f"layers[{i}] ({type(layer).__name__})"
    if not isinstance(out, Tensor):
        raise TypeError(f"{name} returned a {type(out).__name__}; a layer returns one tensor")
    if out.shape != tuple(shape):
        raise ValueError(
            f"{name} turned shape {tuple(x.shape)} into {tuple(out.shape)}; "
            "the layers of a long sum keep the shape"
        )
    if out.device != x.device:
        raise ValueError(f"{name} moved its input from {x.device} to {out.device}")
    raise TypeError(
        f"{name} turned dtype {x.dtype} into {out.dtype}; "
        "the layers of a long sum keep the dtype, except under autocast"
    )
