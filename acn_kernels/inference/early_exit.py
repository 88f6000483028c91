"""EarlyExit: each sample leaves at the first exit where the shared head is sure of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from acn_kernels import functional
from acn_kernels.functional import compact
from acn_kernels.functional import entropy as entropy
from acn_kernels.hooks import is_plain_linear
from acn_kernels.inference.batch import ImageBatch, TextBatch, batch_of
from acn_kernels.inference.criteria import check_criterion, check_exits
from acn_kernels.inference.decision import decide
from acn_kernels.inference.engine import Engine
from acn_kernels.inference.engine_model import (
    LiveEngine,
    obstacle_to_engine,
    obstacle_to_engine_of,
)
from acn_kernels.inference.engine_text import is_bert
from acn_kernels.models import Mixer
from acn_kernels.norm_spec import NormSpec
from acn_kernels.sharding import is_fsdp, refuse_exits_when_sharded
from acn_kernels.stack import FusedACNStack


class ExitResult(NamedTuple):
    """logits [B, classes] and depth [B] int64, the number of layers each sample went through."""

    logits: Tensor
    depth: Tensor


def first_exit(certainty: Tensor, exits: Sequence[int], threshold: float) -> Tensor:
    """[N] int64: the first of ``exits`` whose entropy in ``certainty`` [L+1, N] is below the
    threshold, else L."""
    last = len(certainty) - 1
    depth = torch.full((certainty.shape[1],), last, device=certainty.device)
    for k in sorted(exits, reverse=True):
        depth[certainty[k] < threshold] = k
    return depth


def obstacle_to_mixer_exit(model: nn.Module, x: Tensor) -> str | None:
    """Why early exit of ``model`` at x_0 = x [B, T, D] cannot happen inside one kernel; None where
    it can and, with backend "auto", where it is the faster way."""
    stack, head = model.blocks, getattr(model, "head", None)
    if type(model) is not Mixer or type(stack) is not FusedACNStack:
        return f"the model is a {type(model).__name__} with a {type(stack).__name__}, no Mixer"
    if not is_plain_linear(head):
        return "the head is no plain Linear layer"
    if model.training:
        return "the model is in training mode"
    if stack.alpha != 1 or stack.rows is not None or stack.granularity != "block":
        return "alpha is not 1, or rows or a granularity is set"
    if stack.norm is not None and NormSpec.of(stack.norm) is None:
        return f"the final norm is {stack.norm}, or has hooks"
    if head.weight.dtype != x.dtype:
        return f"the head is {head.weight.dtype}, its input {x.dtype}"
    if stack.backend != "triton":
        if stack.backend != "auto" or not x.is_cuda:
            return f"backend is {stack.backend!r} on {x.device.type}"
        if x.dtype == torch.float32:
            return "fp32 products are faster in PyTorch's own kernels"
    return functional.obstacle_to_mixer_stack(stack, x)


class EarlyExit(nn.Module):
    """Inference that stops each sample at the first exit where the shared head is sure of it.

    At an exit the head reads norm(y_k) of the samples still under way; those that leave are taken
    out of the batch, the rest go on. NaN is never sure: such a sample runs to full depth.

    A ViT or Mixer (fp32, bf16) runs in the C++ engine (:class:`acn_kernels.inference.Engine`) where
    the extension is built, for a GPU with its CUDA kernels, and ``blocks.backend`` is "auto" or
    "native", with equal results. On a GPU no host waits for the results. On the CPU so do an ACN
    BERT, and residual twins.

    Before that, a Mixer in half precision on a GPU does all of it in one kernel, in which each
    sample stops at its own depth (:func:`acn_kernels.functional.mixer_exit`); so does any Mixer
    that the Triton path can take and whose ``blocks.backend`` is "triton".

    Args:
        model: a classifier of :mod:`acn_kernels.models`, of images or (ACN BERT) of texts.
        exits: depths in [1, L-1] at which samples may leave; all leave at L.
        threshold: a sample leaves below it (entropy), or above it (the others).
        criterion: "entropy" of the softmax in nats (the paper's, with tau = 0.7), its largest
            "probability", or the "margin" of that over the next one.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is accepted.
    """

    def __init__(
        self,
        model: nn.Module,
        exits: Sequence[int],
        threshold: float,
        criterion: str = "entropy",
    ) -> None:
        super().__init__()
        check_criterion(criterion, threshold)
        if is_bert(model) and not hasattr(model, "classifier"):
            raise TypeError(
                f"model is a {type(model).__name__}; of ACN BERTs it takes the one for "
                "sequence classification"
            )
        self.exits = check_exits(exits, len(model.blocks))
        self.model = model
        self.threshold = threshold
        self.criterion = criterion
        self._exit_mask: Tensor | None = None  # for the kernel
        self._live: LiveEngine | None = None

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_live": None}  # a copy makes an engine of its own

    @torch.no_grad()
    def forward(self, *inputs: Tensor, **named: Tensor) -> ExitResult:
        """(logits, depth) of a batch, in its order.

        Args:
            inputs, named: images [B, channels, size, size]; of a BERT, as its own forward takes
                them, ``input_ids`` [B, T] and, if need be, ``attention_mask`` and
                ``token_type_ids``.

        Raises:
            ValueError: the model is sharded by FSDP and there are exits.
        """
        batch = batch_of(self.model, *inputs, **named)
        if is_fsdp(self.model):
            return self._in_step(batch)
        if self._kernel_is_better(batch):
            return self._inside_kernel(batch.for_layers()[0])
        engine = self._engine(batch)
        if engine is not None:
            inputs = batch.for_engine()
            return ExitResult(*engine.decided(inputs, self.exits, self.threshold, self.criterion))
        x, options = batch.for_layers()
        if self.criterion == "entropy" and obstacle_to_mixer_exit(self.model, x) is None:
            return self._inside_kernel(x)
        return self._by_segments(x, options)

    def _kernel_is_better(self, batch: ImageBatch | TextBatch) -> bool:
        """Whether a Mixer on a GPU runs in one kernel, in which no sample waits for another."""
        images = batch.tensors[0]
        if not images.is_cuda or self.criterion != "entropy" or type(self.model) is not Mixer:
            return False
        config = self.model.config
        tokens = (config.image_size // config.patch_size) ** 2
        embedded = images.new_empty(len(images), tokens, config.width)  # its shape is what counts
        return obstacle_to_mixer_exit(self.model, embedded) is None

    def _in_step(self, batch: ImageBatch | TextBatch) -> ExitResult:
        """Every process runs every layer: FSDP's would wait for one whose samples have all left."""
        refuse_exits_when_sharded(self.exits)
        logits = batch.logits()
        depth = torch.full((len(logits),), len(self.model.blocks), device=logits.device)
        return ExitResult(logits, depth)

    def _engine(self, batch: ImageBatch | TextBatch) -> Engine | None:
        """The C++ engine of the model as it is now; None where it does not run this call."""
        if obstacle_to_engine(self.model, *batch.tensors) is not None:
            return None
        if self._live is None or not self._live.is_current():
            self._live = None
            if obstacle_to_engine_of(self.model) is None:
                self._live = LiveEngine(self.model)
        return None if self._live is None else self._live.engine

    def _inside_kernel(self, x: Tensor) -> ExitResult:
        stack, head, scales = self.model.blocks, self.model.head, self.model.blocks.scales
        if scales is not None and not stack.include_input:
            scales = torch.cat([scales.new_zeros(1), scales])  # the kernel does not read it
        logits, depth, _ = functional.mixer_exit(
            x, functional.MixerParameters.of(stack), self._exits_on(x.device), self.threshold,
            head.weight, head.bias, NormSpec.of(stack.norm), scales, stack.include_input,
        )  # fmt: skip
        return ExitResult(logits, depth)

    def _exits_on(self, device: torch.device) -> Tensor:
        # Kept from call to call: building it anew copies from the host, and waits for the device.
        if self._exit_mask is None or self._exit_mask.device != device:
            mask = [int(k in self.exits) for k in range(len(self.model.blocks) + 1)]
            self._exit_mask = torch.tensor(mask, dtype=torch.int32, device=device)
        return self._exit_mask

    def _by_segments(self, x: Tensor, options: dict[str, Tensor]) -> ExitResult:
        stack, y, start = self.model.blocks, None, 0
        depth = torch.full((len(x),), len(stack), device=x.device)
        live = torch.arange(len(x), device=x.device)
        logits = None
        for k in self.exits:
            x, y = stack.advance(x, y, start=start, stop=k, **options)
            start = k
            here = decide(self.model, x, y, k, self.threshold, self.criterion)
            if logits is None:
                logits = here.logits.new_empty(len(x), here.logits.shape[-1])
            # Those who go on are overwritten at their own exit: nobody has to be picked out.
            logits.index_copy_(0, live, here.logits)
            count = int(here.live)  # the one time that an exit waits for the device
            depth.index_fill_(0, live, k)
            if count == 0:
                return ExitResult(logits, depth)
            if count < len(live):
                state = [live, x, *options.values(), *(() if y is None else (y,))]
                (live, x, *rest), _ = compact(here.stays, state, count, stack.backend)
                options = dict(zip(options, rest, strict=False))
                y = None if y is None else rest[-1]
        last = self.model.forward_head(stack.finish(x, y, start=start, **options))
        if logits is None:
            return ExitResult(last, depth)
        return ExitResult(logits.index_copy_(0, live, last), depth.index_fill_(0, live, len(stack)))
