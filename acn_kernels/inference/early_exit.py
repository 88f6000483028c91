"""EarlyExit: each sample leaves at the first exit where the shared head is sure of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from acn_kernels.functional import compact
from acn_kernels.functional import entropy as entropy
from acn_kernels.inference.batch import ImageBatch, TextBatch, batch_of, check_in_parts
from acn_kernels.inference.criteria import check_criterion, check_exits
from acn_kernels.inference.decision import decide
from acn_kernels.inference.engine import Engine
from acn_kernels.inference.engine_model import (
    LiveEngine,
    obstacle_to_engine,
    obstacle_to_engine_of,
)
from acn_kernels.inference.engine_text import is_bert
from acn_kernels.inference.mixer_exit import MixerExit
from acn_kernels.kept import KeptAnswer
from acn_kernels.models import Mixer
from acn_kernels.sharding import is_fsdp, refuse_exits_when_sharded


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


class EarlyExit(nn.Module):
    """Inference that stops each sample at the first exit where the shared head is sure of it.

    At an exit the head reads norm(y_k) of the samples still under way; those that leave are taken
    out of the batch, the rest go on. NaN is never sure: such a sample runs to full depth.

    A ViT, a Mixer or an ACN BERT (fp32, bf16) runs in the C++ engine
    (:class:`acn_kernels.inference.Engine`) where the extension is built, for a GPU with its CUDA
    kernels, and ``blocks.backend`` is "auto" or "native", with equal results; on the CPU at any one
    alpha, on a GPU a BERT too, the others at alpha 1. On a GPU no host waits for the results.

    Before that, a Mixer in half precision on a GPU does all of it in one kernel, in which each
    sample stops at its own depth (:func:`acn_kernels.functional.mixer_exit`); so does any Mixer
    that the Triton path can take and whose ``blocks.backend`` is "triton". Batches of up to 512
    images are recorded as CUDA graphs once their size has come often, and replayed.

    Args:
        model: a classifier of :mod:`acn_kernels.models`, of images or (ACN BERT) of texts, or
            another with ``embed(inputs)``, ``blocks`` (a FusedACNStack) and ``forward_head(y)``.
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
        if not is_bert(model):
            check_in_parts(model)
        elif not hasattr(model, "classifier"):
            raise TypeError(
                f"model is a {type(model).__name__}; of ACN BERTs it takes the one for "
                "sequence classification"
            )
        self.exits = check_exits(exits, len(model.blocks))
        self.model = model
        self.threshold = threshold
        self.criterion = criterion
        self._kept = KeptAnswer()
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
        model = self.model
        batch = batch_of(model, *inputs, **named)
        if is_fsdp(model):
            return self._in_step(batch)
        inside = self._mixer_exit(model, batch)
        if inside is not None:
            return ExitResult(*inside(batch.tensors[0], self.exits, self.threshold))
        engine = self._engine(batch)
        if engine is not None:
            inputs = batch.for_engine()
            return ExitResult(*engine.decided(inputs, self.exits, self.threshold, self.criterion))
        return self._by_segments(*batch.for_layers())

    def _mixer_exit(self, model: nn.Module, batch: ImageBatch | TextBatch) -> MixerExit | None:
        """The way through one kernel, where no sample waits for another; None where there is none
        for this call, or a better one."""
        if type(model) is not Mixer or self.criterion != "entropy":
            return None
        images = batch.tensors[0]
        if not images.is_cuda and model.blocks.backend != "triton":
            return None
        made = self._kept.of([model], MixerExit.of)
        return None if isinstance(made, str) or made.obstacle(images) else made

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
