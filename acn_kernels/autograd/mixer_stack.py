"""mixer_stack: a whole ACN of Mixer blocks, differentiated as one operation."""

from __future__ import annotations

from acn_kernels.autograd.join import gradient_of_sum
from acn_kernels.autograd.operation import Operation, refuse_double_backward
from acn_kernels.ops import compiled

BACKEND = "triton"  # the only path that has this operation


class MixerStack(Operation):
    """norm(sum_i a_i x_i); keeps what the layers hand on and gives all gradients in one sweep."""

    @staticmethod
    def forward(
        x, alpha, scales, weight, bias, layer_eps, eps, kind, include_input, out_dtype, *parameters
    ):  # fmt: skip
        return compiled(BACKEND).mixer_stack(
            x, parameters, alpha, scales, weight, bias, layer_eps, eps, kind, include_input, True,
            out_dtype,
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, alpha, scales, weight, bias, ctx.layer_eps, _, ctx.kind, *options = inputs
        ctx.include_input, _, *parameters = options
        _, *kept = output
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, alpha, scales, weight, bias, *kept, *parameters)

    @staticmethod
    def backward(ctx, dout, *_):
        x, alpha, scales, weight, bias, y, mean, rstd, kept, *parameters = ctx.saved_tensors
        if dout is None:
            return (None,) * (10 + len(parameters))
        refuse_double_backward(BACKEND)
        g, dweight, dbias = gradient_of_sum(dout, y, weight, bias, mean, rstd, ctx.kind, BACKEND)
        dx, dscales, dparameters = compiled(BACKEND).mixer_stack_backward(
            g, x, kept, parameters, alpha, scales, ctx.layer_eps, ctx.include_input
        )
        return (
            dx,
            None,
            dscales if scales is not None else None,
            dweight,
            dbias,
            *(None,) * 5,
            *dparameters,
        )
