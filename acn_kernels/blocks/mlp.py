"""The two-layer perceptron of transformer and Mixer blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acn_kernels import functional
from acn_kernels.dispatch import choose
from acn_kernels.hooks import has_hooks, is_plain_linear
from acn_kernels.recompute import offer
from acn_kernels.validation import check_size


class Mlp(nn.Module):
    """``fc2(gelu(fc1(x)))`` over the last axis: [..., width] to [..., width]."""

    whole_stack = "mlp"  # to the kernels that run stacks of blocks; a subclass has to say so itself

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        check_size("hidden", hidden, 1)
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, backend: str = "auto") -> Tensor:
        plain = self._is_plain()
        if plain and self._takes_bias_apart(x, backend):
            z = F.linear(x, self.fc1.weight)
            return self.fc2(functional.bias_gelu(z, self.fc1.bias, backend))
        z = self.fc1(x)
        h = self.act(z)
        return self.fc2(offer(h, F.gelu, z) if plain else h)

    def _is_plain(self) -> bool:
        """Whether what happens before fc2 is known, and may be done in another way."""
        linear = is_plain_linear(self.fc1)
        exact = type(self.act) is nn.GELU and self.act.approximate == "none"
        return linear and exact and not has_hooks(self.act)

    def _takes_bias_apart(self, x: Tensor, backend: str) -> bool:
        """Whether bias and GELU are one pass: in training where that is Triton's, whose backward
        pass forms the bias's gradient for free, and at inference on the native path."""
        if self.fc1.bias is None:
            return False
        fused = "triton" if torch.is_grad_enabled() else "native"
        return choose(backend, x, "bias_gelu").backend == fused
