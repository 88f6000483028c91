"""bias_gelu: activation and bias behind a product, with both gradients from one pass."""

from __future__ import annotations

from acn_kernels.autograd.operation import Operation, refuse_double_backward
from acn_kernels.ops import compiled

BACKEND = "triton"  # the only path that has this operation


class BiasGelu(Operation):
    """gelu(z + bias)."""

    @staticmethod
    def forward(z, bias):
        return compiled(BACKEND).bias_gelu(z, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dh):
        refuse_double_backward(BACKEND)
        return compiled(BACKEND).bias_gelu_backward(dh, *ctx.saved_tensors)
