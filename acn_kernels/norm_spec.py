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
        exact classes without hooks are taken apart.
        """
        if module is None:
            return None
        if type(module) not in (nn.LayerNorm, nn.RMSNorm) or len(module.normalized_shape) != 1:
            return None
        if has_hooks(module):
            return None
        if type(module) is nn.LayerNorm:
            return cls("layer", module.weight, module.bias, module.eps)
        # torch lets RMSNorm's eps default to that of the input's dtype, known at the call only.
        return cls("rms", module.weight, None, module.eps if module.eps is not None else -1.0)

    def eps_for(self, dtype: torch.dtype) -> float:
        return self.eps if self.eps >= 0 else torch.finfo(dtype).eps
