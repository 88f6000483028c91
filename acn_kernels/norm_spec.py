"""What a fused kernel needs to know of a normalisation layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from acn_kernels.hooks import has_hooks


class NormSpec(NamedTuple):
    """LayerNorm or RMSNorm over the last axis.

    ``weight`` and ``bias`` have shape [D] or are None; ``eps`` is added to the (co)variance.
    """

    kind: str  # "layer" or "rms"
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5

    @classmethod
    def of(cls, module: nn.Module | None) -> NormSpec | None:
        """The spec of a torch LayerNorm or RMSNorm over the last axis; None for anything else.

        Subclasses may compute something different and hooks want the module called, so only the
        exact classes, and timm's LayerNorm, are taken apart, without hooks.
        """
        if module is None:
            return None
        layer = type(module) is nn.LayerNorm or _is_timms(module)
        if not layer and type(module) is not nn.RMSNorm:
            return None
        if len(module.normalized_shape) != 1 or has_hooks(module):
            return None
        if layer:
            return cls("layer", module.weight, module.bias, module.eps)
        # torch lets RMSNorm's eps default to that of the dtype it computes in, known at the call.
        return cls("rms", module.weight, None, module.eps if module.eps is not None else -1.0)

    def eps_for(self, dtype: torch.dtype) -> float:
        """For inputs of ``dtype``."""
        if self.eps >= 0:
            return self.eps
        return torch.finfo(torch.promote_types(dtype, torch.float32)).eps


def _is_timms(module: nn.Module | None) -> bool:
    """timm's subclass of nn.LayerNorm, which computes the same unless told to be fast."""
    cls = type(module)
    named = cls.__module__ == "timm.layers.norm" and cls.__qualname__ == "LayerNorm"
    return named and not module._fast_norm
