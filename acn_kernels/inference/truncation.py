"""truncate: the sub-network of the first layers, as an ordinary model."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from acn_kernels.convert.conversion import chains
from acn_kernels.convert.truncation import truncate_converted
from acn_kernels.stack import FusedACNStack

T = TypeVar("T", bound=nn.Module)


def truncate(model: T, k: int) -> T:
    """``model`` (one of :mod:`acn_kernels.models`, a FusedACNStack, or a model from acn.convert)
    cut to its first k layers.

    An ordinary model that shares the weights: to be called, trained further or saved. For
    inference without Python between the layers, ``EarlyExit(truncate(model, k), [], 0.0)`` and
    ``Engine.from_model(truncate(model, k))`` run it in the C++ engine.

    Raises:
        TypeError: the model cannot be cut, or k is no integer.
        ValueError: k is not in [0, depth].
    """
    if isinstance(model, nn.Module) and chains(model) and not isinstance(model, FusedACNStack):
        return truncate_converted(model, k)
    if not callable(getattr(model, "truncate", None)):
        raise TypeError(
            f"model is a {type(model).__name__}; it takes one of acn_kernels.models, a "
            "FusedACNStack or a model from acn.convert"
        )
    return model.truncate(k)
