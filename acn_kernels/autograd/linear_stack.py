"""linear_stack: a whole ACN of Linear + activation layers, differentiated as one operation."""

from __future__ import annotations

from acn_kernels.autograd.join import gradient_of_sum
from acn_kernels.autograd.operation import Operation, refuse_double_backward
from acn_kernels.ops import compiled

BACKEND = "triton"  # the only path on which it is differentiated


class LinearStack(Operation):
    """norm(sum_i a_i x_i); keeps one tensor a layer and gives all gradients in one sweep."""

    @staticmethod
    def forward(
        x, weight, bias, scales, norm_weight, norm_bias,
        eps, kind, activation, include_input, out_dtype,
    ):  # fmt: skip
        return compiled(BACKEND).linear_stack(
            x, weight, bias, scales, norm_weight, norm_bias,
            eps, kind, activation, include_input, True, out_dtype,
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, scales, norm_weight, norm_bias, _, ctx.kind, *options, _ = inputs
        ctx.activation, ctx.include_input = options
        _, *kept = output
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, scales, norm_weight, norm_bias, *kept)

    @staticmethod
    def backward(ctx, dout, *_):
        x, weight, bias, scales, norm_weight, norm_bias, y, mean, rstd, kept = ctx.saved_tensors
        if dout is None:
            return (None,) * 11
        refuse_double_backward(BACKEND)
        g, dnorm_weight, dnorm_bias = gradient_of_sum(
            dout, y, norm_weight, norm_bias, mean, rstd, ctx.kind, BACKEND
        )
        dx, dweight, dbias, dscales = compiled(BACKEND).linear_stack_backward(
            g, x, weight, bias, scales, kept, ctx.activation, ctx.include_input
        )
        return (
            dx,
            dweight,
            dbias if bias is not None else None,
            dscales if scales is not None else None,
            dnorm_weight,
            dnorm_bias,
            *(None,) * 5,
        )
