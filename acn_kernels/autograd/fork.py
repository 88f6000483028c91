"""fork and tap: where a layer's output leaves for the next layer and for the long sum."""

from __future__ import annotations

import torch
from torch import Tensor

from acn_kernels import torch_ops
from acn_kernels.autograd.operation import Operation, refuse_double_backward, set_apart
from acn_kernels.ops import compiled


class Fork(Operation):
    """(norm(x), term): the backward adds ``scale * g`` to the norm's gradient in its own pass.

    ``term`` shares x's memory (or holds its selected rows) and stands for ``scale * x``; Join
    applies the scale and hands back the bare dL/dy, so that no scaled copy ever exists.
    """

    @staticmethod
    def forward(x, weight, bias, scale, row_index, row_map, eps, kind, backend):
        on_torch = backend == "torch"
        source = torch_ops if on_torch else compiled(backend)
        h, mean, rstd = source.fork_forward(x, weight, bias, eps, kind)
        return set_apart(h) if on_torch else h, term_of(x, row_index), mean, rstd

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, scale, row_index, row_map, ctx.eps, ctx.kind, ctx.backend = inputs
        _, _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, scale, row_index, row_map, mean, rstd)

    @staticmethod
    def backward(ctx, dh, g, *_):
        x, weight, bias, scale, row_index, row_map, mean, rstd = ctx.saved_tensors
        if dh is None:
            if g is None:
                return (None,) * 9
            return tap_backward(g, x, scale, row_index, ctx.needs_input_grad[3]) + (None,) * 5
        if ctx.backend == "torch":
            dx, dweight, dbias, dscale = torch_ops.fork_backward(
                dh, g, x, weight, bias, mean, rstd, scale, row_index, ctx.eps, ctx.kind,
                ctx.needs_input_grad[3],
            )  # fmt: skip
        else:
            refuse_double_backward(ctx.backend)
            dx, dweight, dbias, dscale = compiled(ctx.backend).fork_backward(
                dh, g, x, weight, bias, mean, rstd, scale, row_map, ctx.kind
            )
        return (
            dx,
            dweight if weight is not None else None,
            dbias if bias is not None else None,
            dscale if scale is not None and g is not None else None,
        ) + (None,) * 5


class Tap(Operation):
    """A term of the long sum whose next layer brings no norm that the fork could share."""

    @staticmethod
    def forward(x, scale, row_index):
        return term_of(x, row_index)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        x, scale, row_index = ctx.saved_tensors
        dx, _, _, dscale = tap_backward(g, x, scale, row_index, ctx.needs_input_grad[1])
        return dx, dscale, None


def term_of(x: Tensor, row_index: Tensor | None) -> Tensor:
    return x.detach() if row_index is None else x.index_select(-2, row_index)


def tap_backward(
    g: Tensor, x: Tensor, scale: Tensor | None, row_index: Tensor | None, scale_wanted: bool
) -> tuple[Tensor, None, None, Tensor | None]:
    """(dx, None, None, dscale) where the long connection alone carries a gradient."""
    dscale = torch_ops.direct_scale_gradient(g, x, scale, row_index) if scale_wanted else None
    if row_index is not None:
        dx = torch.zeros_like(x)
        torch_ops.add_direct(dx, g, scale, row_index)
    else:
        dx = g if scale is None else (g * scale).to(g.dtype)
    return dx, None, None, dscale
