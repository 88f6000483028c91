"""FusedACNStack: layers wired by long connections, in place of a ModuleList of residual blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from acn_kernels import functional, torch_ops
from acn_kernels.connection import (
    Connection,
    LongConnection,
    MixedStream,
    RunningSum,
    Wiring,
    add_term,
    as_data,
)
from acn_kernels.dispatch import check_backend
from acn_kernels.kept import KeptAnswer
from acn_kernels.layer_step import step_of, through
from acn_kernels.norm_spec import NormSpec
from acn_kernels.reference import sum_dtype
from acn_kernels.rows import Rows
from acn_kernels.scaled_terms import ScaledTerms
from acn_kernels.scales import check_scales, parse_scales
from acn_kernels.validation import (
    check_alphas,
    check_checkpoint,
    check_depth,
    check_flag,
    check_granularity,
    check_stack_input,
    check_stack_sum,
    under_autocast,
)
from acn_kernels.whole_stack import WholeStack, whole_stack_of


class FusedACNStack(ScaledTerms):
    """``u_i = alpha x_{i-1} + (1-alpha) y_{i-1}``, ``x_i = f_i(u_i)``, ``y_i = y_{i-1} + a_i x_i``.

    With alpha = 1, the default, this is the Auto-Compressing Network of arXiv 2506.09714, eq. 1;
    with alpha = 0 the residual network of the same layers. An ``nn.ModuleList`` of the layers, so
    it stands where ``blocks = nn.ModuleList([...])`` or ``nn.Sequential(...)`` stood and keeps the
    state-dict keys.

    Linear layers at alpha = 1 and Mixer layers, in half precision, their own or autocast's (to
    which x is brought, too), run on a GPU as one kernel (two or three a layer in the backward
    pass); without gradients, on weights that are stacked once and again after every change in place
    that PyTorch counts; it counts neither writes through ``.data`` nor replayed CUDA graphs, after
    which :meth:`train` or :meth:`eval`, where it changes the mode, has them stacked anew.

    Args:
        layers: modules that map [..., D] to the same shape, without a short connection of their
            own. Those of :mod:`acn_kernels.blocks` have their entry norm fused.
        norm: the final norm, applied to y; None returns y itself.
        alpha: in [0, 1], or a sequence of such numbers, one for each layer's input; may be set
            between steps.
        scales: a_0 .. a_L (a_1 .. a_L without the input), one for every term of the sum: a
            sequence or tensor is fixed, an ``nn.Parameter`` learned from its values, "learned"
            learned from one; None is one throughout. Under granularity "sublayer" every attention
            and MLP is a term.
        include_input: whether the input x_0 is a term of the sum (it is in the paper).
        rows: the tokens of y that the head reads: None (all), "first", "last", a slice or a 1-D
            index tensor along axis -2. y then has only those, in a token axis of their length.
        granularity: "block", or "sublayer": attention and MLP are layers of their own, in blocks
            that list ``entry_norms``.
        direct_gradient_only: each layer's input is detached, so that it trains on the direct
            gradient alone (the paper's DG-only ACN).
        checkpoint: True recomputes every layer in the backward pass instead of keeping its
            activations; "elementwise" recomputes the norms and activation functions alone, which
            costs passes but no products.
        backend: "auto", "triton", "native" or "torch"; see :func:`acn_kernels.explain`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is accepted.
    """

    splits = False  # a HybridStack lets the rest of a term go around the next layer

    def __init__(
        self,
        layers: Sequence[nn.Module],
        norm: nn.Module | None = None,
        *,
        alpha: float | Sequence[float] = 1.0,
        scales: str | Sequence[float] | Tensor | None = None,
        include_input: bool = True,
        rows: str | slice | Tensor | None = None,
        granularity: str = "block",
        direct_gradient_only: bool = False,
        checkpoint: bool | str = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(layers)
        self.kept_layers = KeptAnswer()
        if norm is not None and not isinstance(norm, nn.Module):
            raise TypeError(f"norm is a {type(norm).__name__}; it takes None or an nn.Module")
        self.norm = norm
        self.alpha = alpha
        self.include_input = check_flag("include_input", include_input)
        self.rows = rows
        self.granularity = granularity
        self.direct_gradient_only = check_flag("direct_gradient_only", direct_gradient_only)
        self.checkpoint = check_checkpoint(checkpoint)
        self.backend = check_backend(backend)
        scales = parse_scales(scales, self._term_count())
        if scales is None or isinstance(scales, nn.Parameter):
            self.scales = scales
        else:
            self.register_buffer("scales", scales, persistent=False)
        if not include_input and not len(self):
            raise ValueError("layers is empty and include_input is False; the sum takes a term")

    @property
    def alpha(self) -> float | tuple[float, ...]:
        """1 is the ACN, 0 the residual network; a number in [0, 1], or one for each layer."""
        return self._alpha

    @alpha.setter
    def alpha(self, alpha: float | Sequence[float]) -> None:
        self._alpha = check_alphas(alpha, len(self))
        self.mix = as_data(self._alpha)

    def _free_alpha(self) -> None:
        """From a device, where recorded steps read it, to where it goes with every device."""
        self.mix = as_data(self._alpha)

    @property
    def rows(self) -> str | slice | Tensor | None:
        """The tokens of y that the head reads; None is all."""
        return self._rows_given

    @rows.setter
    def rows(self, rows: str | slice | Tensor | None) -> None:
        self._rows_given = rows
        self._rows = None if rows is None else Rows(rows)

    @property
    def granularity(self) -> str:
        """ "block" or "sublayer": what counts as one layer of the equation."""
        return self._granularity

    @granularity.setter
    def granularity(self, granularity: str) -> None:
        check_granularity(granularity, self)
        self._granularity = granularity

    def train(self, mode: bool = True) -> FusedACNStack:
        if mode != self.training:
            self.kept_layers.forget()  # between training and use lies what no count may have seen
        return super().train(mode)

    def _apply(self, *args, **kwargs) -> FusedACNStack:
        self.kept_layers.forget()  # who moves the weights away wants their memory back
        self._free_alpha()
        return super()._apply(*args, **kwargs)

    def forward(self, x: Tensor, *args, depth: int | None = None, **kwargs) -> Tensor:
        """norm(y_depth) for the input x [..., D]; ``args`` and ``kwargs`` reach every layer.

        Args:
            x: floating point, [..., T, D] where ``rows`` is set.
            depth: layers to run, in [0, len(self)]; None runs all.

        Returns:
            Of x's shape and dtype (the sum's dtype under autocast); the token axis has the length
            of the selection where ``rows`` is set.

        Raises:
            TypeError, ValueError: naming the argument, or the layer that changes shape or dtype.
            RuntimeError: a backend asked for by name cannot run.
        """
        depth = check_depth(depth, len(self), self.include_input)
        wiring = self._wiring(x)
        whole = whole_stack_of(self, x, depth, not (args or kwargs))
        if isinstance(whole, WholeStack):
            return self._whole(x, whole, depth)
        if wiring.is_acn and self._is_recorded(x):
            return self._joined(x, wiring, self._scales_by_layer(depth), args, kwargs)
        return self._finish(x, None, 0, depth, wiring, args, kwargs)

    def _is_recorded(self, x: Tensor) -> bool:
        if not torch.is_grad_enabled() or not torch.compiler.is_compiling():
            return torch.is_grad_enabled()
        # torch's tracer takes an autograd.Function that nobody asks for a gradient for another.
        return x.requires_grad or any(p.requires_grad for p in self.parameters())

    def _whole(self, x: Tensor, whole: WholeStack, depth: int) -> Tensor:
        """All layers in one call; a norm that it does not know follows as the module it is."""
        scales = self.scales
        if scales is not None:
            check_scales(scales, self._term_count())
            unread = 0 if self.include_input else 1
            scales = nn.functional.pad(scales, (unread, 0))[: depth + 1]
        spec = NormSpec.of(self.norm)
        y = whole.run(x, spec, scales, self.include_input, self._out_dtype(x))
        return y if spec is not None or self.norm is None else self.norm(y)

    def advance(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *args,
        start: int = 0,
        stop: int | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """Runs layers[start:stop] from the state (x_start, y); returns (x_stop, y).

        The state is what stages of a pipeline hand on, and what early exit keeps of the samples
        that go on: x [..., D], and y, the sum of all terms *before* x (None: no term yet), in the
        sum's dtype, with the selected rows alone where ``rows`` is set and alpha is 1.
        :meth:`output` turns a state into the output at its depth. Without gradients and at
        alpha = 1, y is updated in place.
        """
        stop = check_depth(stop, len(self), True, "stop")
        start = check_depth(start, stop, True, "start")
        given, wiring = x, self._wiring_of_state(x, y)
        x, y, _ = self._advance(x, y, start, stop, wiring, args, kwargs)
        return x, y.clone() if y is given else y

    def finish(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *args,
        start: int = 0,
        stop: int | None = None,
        **kwargs,
    ) -> Tensor:
        """norm(y_stop) from the state (x_start, y): the last step of early exit or a pipeline.

        As :meth:`advance` and :meth:`output`, for less: where ``rows`` is set, layers[stop - 1]
        computes no other rows of its output than those. Without gradients and at alpha = 1 it uses
        y up.
        """
        stop = check_depth(stop, len(self), self.include_input or y is not None, "stop")
        start = check_depth(start, stop, True, "start")
        return self._finish(x, y, start, stop, self._wiring_of_state(x, y), args, kwargs)

    def _finish(self, x, y, start, stop, wiring, args, kwargs) -> Tensor:
        x, y, wiring = self._advance(x, y, start, stop, wiring, args, kwargs, closing=True)
        spec, last = NormSpec.of(self.norm), self._last_scale(stop)
        if spec is None or not wiring.is_acn or torch.is_grad_enabled():
            return self._output(x, y, stop, wiring)
        # Nothing else reads y any more: its last term and the final norm are one pass.
        x, out_dtype = wiring.selected(x), self._out_dtype(x)
        return functional.accumulate_norm(x, y, spec, last, 0.0, None, self.backend, out_dtype)[0]

    def output(self, x: Tensor, y: Tensor | None, depth: int) -> Tensor:
        """norm(y_depth) from the state (x_depth, y) that :meth:`advance` returned."""
        depth = check_depth(depth, len(self), self.include_input)
        return self._output(x, y, depth, self._wiring_of_state(x, y))

    def _output(self, x, y, depth, wiring, norm=True) -> Tensor:
        out = self._head_norm(self._sum(x, y, depth, wiring), x, norm)
        return out.clone() if out is x else out  # the input, which nobody expects to share

    def _sum(self, x, y, depth, wiring) -> Tensor:
        """y_depth, the selected rows alone, from the state (x_depth, y)."""
        if y is not None and not wiring.is_acn:
            y = wiring.selected(y)
        return add_term(y, wiring.selected(x), self._last_scale(depth))

    def reading(self, i: int, x: Tensor, y: Tensor | None) -> Connection:
        """A connection through which layers[i] may read its input u in the state (x_i, y), as
        :meth:`advance` takes it, and which adds nothing to a sum that is kept."""
        wiring = self._wiring(x)
        if wiring.is_acn:
            return Connection(wiring)
        return MixedStream(wiring.of_layer(i), self._scales_by_layer(i)[-1], y)

    def connection_kind(self, wiring: Wiring) -> type[Connection]:
        in_place = wiring.is_acn and not torch.is_grad_enabled()
        return RunningSum if in_place else MixedStream

    def _advance(self, x, y, start, stop, wiring, args, kwargs, closing=False):
        """(x_stop, y, wiring of x_stop): ``closing`` may leave x_stop with the read rows alone."""
        scales = self._scales_by_layer(stop)[start:]
        layers = self._numbered()[start:stop]
        kind = self.connection_kind(wiring)
        if kind is RunningSum:
            # Nothing is kept for a backward pass: one connection goes along all layers.
            connection = kind(wiring, (), y)
            for i, layer in enumerate(layers, start):
                connection.scales = list(scales[i - start])
                connection.closing = closing and i == stop - 1
                x = through(i, layer, x, connection, args, kwargs)
            return x, connection.y, connection.wiring
        step = step_of(self.checkpoint)
        for i, layer in enumerate(layers, start):
            last = closing and i == stop - 1
            x, y, wiring = step(x, y, kind, i, layer, wiring, scales[i - start], args, kwargs, last)
        return x, y, wiring

    def _joined(self, x, wiring, scales, args, kwargs) -> Tensor:
        """alpha = 1 with gradients: every layer forks, and one join sums all terms at the end."""
        terms, step = [], step_of(self.checkpoint)
        layers = self._numbered()[: len(scales) - 1]
        for i, layer in enumerate(layers):
            last = i == len(layers) - 1
            x, forked, wiring = step(
                x, None, LongConnection, i, layer, wiring, scales[i], args, kwargs, last
            )
            terms += forked
        terms.append(functional.tap(x, scales[-1][0], wiring.rows))
        spec = NormSpec.of(self.norm)
        dtype = self._out_dtype(x)
        y = functional.join(terms, spec, self.backend, dtype)
        return y if spec is not None or self.norm is None else self.norm(y)

    def forward_intermediates(
        self,
        x: Tensor,
        *args,
        indices: Sequence[int] | None = None,
        norm: bool = True,
        **kwargs,
    ) -> list[Tensor]:
        """The outputs of the sub-networks: norm(y_k) for every depth k in ``indices``.

        Args:
            x: as in :meth:`forward`.
            indices: depths in [0, len(self)], negative ones from the end; None is every depth,
                0 .. L (1 .. L without the input).
            norm: False gives the sums y_k as they are.

        Returns:
            One tensor per index, in that order; each equals ``self(x, depth=k)``.
        """
        wanted = self._checked_depths(indices)
        outputs, y, depth = {}, None, 0
        for k in sorted(set(wanted)):
            x, y = self.advance(x, y, *args, start=depth, stop=k, **kwargs)
            outputs[k], depth = self._output(x, y, k, self._wiring(x), norm), k
        return [outputs[k] for k in wanted]

    def truncate(self, k: int) -> FusedACNStack:
        """The sub-network of the first k layers: an ordinary stack that shares the weights.

        Learned scales are a parameter of its own, in the memory of this stack's: gradients come to
        the one that was called.

        Raises:
            TypeError, ValueError: k is not an integer in [0, len(self)].
        """
        return self[: check_depth(k, len(self), self.include_input, "k", optional=False)]

    def __getitem__(self, i: int | slice) -> nn.Module:
        """The layer i, or a stack of the layers in a slice, with the same norm and options."""
        if not isinstance(i, slice):
            return super().__getitem__(i)
        kept = range(len(self))[i]
        part = type(self)(
            [self[k] for k in kept],
            self.norm,
            alpha=self._alphas_of(kept),
            scales=self._scales_of(kept),
            include_input=self.include_input,
            rows=self.rows,
            granularity=self.granularity,
            direct_gradient_only=self.direct_gradient_only,
            checkpoint=self.checkpoint,
            backend=self.backend,
        )
        part.training = self.training  # that of the layers is theirs
        return part

    def _checked_depths(self, indices: Sequence[int] | None) -> list[int]:
        if indices is None:
            indices = range(0 if self.include_input else 1, len(self) + 1)
        wanted = [k + len(self) + 1 if isinstance(k, int) and k < 0 else k for k in indices]
        return [check_depth(k, len(self), self.include_input, "indices") for k in wanted]

    def _wiring_of_state(self, x: Tensor, y: Tensor | None) -> Wiring:
        wiring = self._wiring(x)
        if y is not None:
            check_stack_sum(x, y, wiring.rows if wiring.is_acn else None)
        return wiring

    def _wiring(self, x: Tensor) -> Wiring:
        check_stack_input(x, self._rows, _a_parameter(self))
        mix = self.mix
        if mix is not None and mix.dim() and len(mix) != len(self):
            raise ValueError(f"alpha has {len(mix)} entries; there are {len(self)} layers now")
        if not self.include_input and self._first_alpha() == 0:
            raise ValueError("include_input is False and alpha is 0; the first layer would read 0")
        return Wiring(
            alpha=self._alpha if mix is None else mix,
            sublayers=self._granularity == "sublayer",
            detach=self.direct_gradient_only,
            rows=None if self._rows is None else self._rows.resolve(x.shape[-2], x.device),
            backend=self.backend,
            splits=self.splits,
        )

    def _first_alpha(self) -> float:
        return self._alpha[0] if isinstance(self._alpha, tuple) else self._alpha

    def _alphas_of(self, kept: range) -> float | list[float]:
        alpha = self.alpha
        return [alpha[k] for k in kept] if isinstance(alpha, tuple) else alpha

    def _out_dtype(self, x: Tensor) -> torch.dtype:
        return sum_dtype(x.dtype) if under_autocast(x) else x.dtype

    def _head_norm(self, y: Tensor, x: Tensor, norm: bool = True) -> Tensor:
        """The final norm of the sum y (fp32), in the dtype that goes with a last output like x."""
        module = self.norm if norm else None
        spec = NormSpec.of(module)
        dtype = self._out_dtype(x)
        if spec is None:
            y = y.to(dtype)
            return y if module is None else module(y)
        kind, weight, bias, _ = spec
        return torch_ops.norm(y, weight, bias, spec.eps_for(x.dtype), kind).to(dtype)


def _a_parameter(module: nn.Module) -> Tensor | None:
    """As ``next(module.parameters(), None)``, which costs as much as a small layer."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    found = (_a_parameter(child) for child in module._modules.values() if child is not None)
    return next((parameter for parameter in found if parameter is not None), None)
