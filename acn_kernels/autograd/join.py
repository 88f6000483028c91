"""join: the long sum, with the final norm. Its backward hands the *same* g to every layer."""

from __future__ import annotations

from acn_kernels import torch_ops
from acn_kernels.autograd.operation import Operation, refuse_double_backward, set_apart
from acn_kernels.ops import compiled


class JoinNorm(Operation):
    """norm(sum_i a_i x_i) on a compiled path. Gradients of the scales are the forks' business."""

    @staticmethod
    def forward(scales, weight, bias, eps, kind, out_dtype, backend, *xs):
        return compiled(backend, xs[0]).join_forward(xs, scales, weight, bias, eps, kind, out_dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, weight, bias, _, ctx.kind, _, ctx.backend, *xs = inputs
        _, *kept = output
        ctx.dtypes = [x.dtype for x in xs]
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, bias, *kept)

    @staticmethod
    def backward(ctx, dout, *_):
        weight, bias, y, mean, rstd = ctx.saved_tensors
        if dout is None:
            return (None,) * (7 + len(ctx.dtypes))
        g, dweight, dbias = gradient_of_sum(
            dout, y, weight, bias, mean, rstd, ctx.kind, ctx.backend
        )
        return (
            None,
            dweight,
            dbias,
            *(None,) * 4,
            *one_gradient_for_all(g, ctx.dtypes),
        )


class JoinSum(Operation):
    """sum_i a_i x_i in fp32 (fp64 for fp64) on PyTorch's kernels; the norm follows as its own."""

    @staticmethod
    def forward(scales, *xs):
        return set_apart(torch_ops.sum_terms(xs, scales))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.dtypes = [x.dtype for x in inputs[1:]]

    @staticmethod
    def backward(ctx, g):
        return None, *one_gradient_for_all(g, ctx.dtypes)


def one_gradient_for_all(g, dtypes):
    """g for every source: one tensor per dtype, packed once, however many sources there are."""
    packed = g.contiguous()
    casts = {dtype: packed.to(dtype) for dtype in dict.fromkeys(dtypes)}
    return tuple(casts[dtype] for dtype in dtypes)


def gradient_of_sum(dout, y, weight, bias, mean, rstd, kind, backend):
    """(g, dweight, dbias): from the gradient of norm(y) to that of the sum y and of the norm."""
    if kind == "none":
        return dout, None, None
    refuse_double_backward(backend)
    g, dweight, dbias, _ = compiled(backend).fork_backward(
        dout, None, y, weight, bias, mean, rstd, None, None, kind
    )
    return g, dweight if weight is not None else None, dbias if bias is not None else None
