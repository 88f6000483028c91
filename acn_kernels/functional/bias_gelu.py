"""bias_gelu: the activation of a block's MLP, with the bias of the Linear layer before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acn_kernels.autograd.bias_gelu import BiasGelu
from acn_kernels.dispatch import choose
from acn_kernels.functional.checks import check_input
from acn_kernels.ops import compiled
from acn_kernels.recompute import offer


def bias_gelu(z: Tensor, bias: Tensor, backend: str = "auto") -> Tensor:
    """The exact ``gelu(z + bias)``, whose backward forms the bias's gradient in its own pass.

    Args:
        z: [..., H], floating point: a product with a weight, without its bias.
        bias: [H], floating point.
        backend: "auto", "triton", "native" or "torch". The native path keeps nothing for a backward
            pass and computes in fp32: with gradients, or in fp64, it takes PyTorch's kernels.

    Returns:
        Of z's shape and dtype.

    Raises:
        TypeError, ValueError: an argument is of another kind, shape or device.
        RuntimeError: a backend asked for by name cannot run here.
    """
    check_input("z", z)
    check_input("bias", bias)
    if bias.shape != z.shape[-1:]:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}; rows of {z.shape[-1]} take ({z.shape[-1]},)"
        )
    if bias.device != z.device:
        raise ValueError(f"bias is on {bias.device}, z on {z.device}")
    path = choose(backend, z, "bias_gelu").backend
    if path == "triton":
        return offer(BiasGelu.apply(z, bias), compiled("triton").bias_gelu, z, bias)
    if path == "native" and not _recorded(z, bias) and z.dtype != torch.float64:
        return compiled("native").bias_gelu(z, bias)
    return F.gelu((z + bias).to(z.dtype))


def _recorded(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
