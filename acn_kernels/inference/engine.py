"""The C++ runtime from Python: a saved model, or a live one whose tensors it shares."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from acn_kernels import _extension
from acn_kernels.inference.criteria import check_criterion, listed_exits
from acn_kernels.inference.engine_image import image_config
from acn_kernels.inference.engine_text import is_bert, text_config
from acn_kernels.kept import optimizer_steps
from acn_kernels.validation import check_size


class EngineResult(NamedTuple):
    """logits [B, classes] and depth [B] int64, the layers each sample went through; ``counts``
    maps each exit, and the last depth, to the samples that left there; ``undecided`` samples have
    NaN logits and ran to the last depth."""

    logits: Tensor
    depth: Tensor
    counts: dict[int, int]
    undecided: int


class Engine:
    """Truncated and early-exit inference with no Python between the layers: of a ViT, a Mixer or an
    ACN BERT that classifies texts, at any one alpha: the residual twin too. (A ViT or Mixer on a
    GPU at alpha 1 alone.)

    The GIL is released while it runs, and many threads may call one engine at once.

    On the CPU samples go through the layers between two exits in micro-batches that the cache
    holds, and those that stay are packed into new ones.

    On a GPU a batch stays in one piece and decisions on the device: the host learns one exit late
    how many samples stay, when the device already has the next layers to do. Batches of up to 64
    samples run from CUDA graphs, captured when their size, exits and threshold come for the
    second time; with CUDA 12.8 or later the device takes its way through the graph by itself and
    no host waits inside a batch. The kinds of batches that were used last are kept. Of texts the
    length is part of the kind, filled up to 16, 32, 64, 128, 192, ... tokens with padding; numbers
    out of range, which the CPU refuses, make a text's logits NaN, for no host looks at them.

    Of an fp32 Mixer on the CPU the logits are the same bit for bit whatever else is in the batch,
    and on any number of threads, where the processor has AVX2 or AVX-512 and no weight more than
    2^20 elements. Elsewhere, and where there is attention, the order in which PyTorch's operations
    add may differ (about 1e-6 of the logits' size in fp32).

    Make one by :meth:`from_folder` or :meth:`from_model`.
    """

    def __init__(self, native) -> None:
        self._native = native

    @staticmethod
    def from_folder(
        folder: str | os.PathLike, compiled: bool = False, device: str | torch.device = "cpu"
    ) -> Engine:
        """The model that ``save_pretrained`` or ``acn-kernels export`` wrote, in the dtype of
        the file (fp32 or bf16).

        Args:
            compiled: also load the segments that ``export(aot_exits=...)`` compiled, of which
                there must be one, and run them where a call stops at their ends; a model that was
                compiled as a whole has nothing else. They are programs, no data: load those that
                you trust. On the CPU alone.
            device: where the weights go, "cpu" or a CUDA device.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, truncated, too long or of another model, or the engine
                does not run this family or wiring, or not on this device.
            RuntimeError: the compiled extension is not there.
        """
        place = str(torch.device(device))
        return Engine(_native_class().from_folder(os.fspath(folder), compiled, place))

    @staticmethod
    def from_model(model: nn.Module) -> Engine:
        """The engine of a live ViT, Mixer or ACN BERT for classification, on the device of its
        tensors. Those are shared: a call computes with their values of that moment. (A ViT's
        positions are no weights: the engine computes the sines and cosines that they must be now.)

        On the CPU the fp32 weights of the products, up to 2^20 elements each, are copied too, into
        the order in which they are read, and copied again where a call finds that they have
        changed: by the version that PyTorch counts for every tensor, after every step of a fused
        optimizer, and by comparing some of the values. Not noticed is one change alone: written
        through ``.data``, which no version counts, to a part of a weight that holds none of those
        values. (Other optimizers, ``load_state_dict`` and whatever else writes under ``no_grad``
        are counted.) Of models made in inference mode, whose tensors have no version, no weight is
        copied.

        Tensors that take the place of the model's, by ``load_state_dict(assign=True)``, by
        ``parameter.data = ...`` or by ``model.to()``, are no longer shared: the engine computes
        with those that were there. Make a new one; :class:`acn_kernels.EarlyExit` does.

        Raises:
            ValueError: the engine does not run this model.
            RuntimeError: the compiled extension is not there.
        """
        from acn_kernels.inference.engine_model import obstacle_to_engine_of

        native = _native_class()
        optimizer_steps.count()  # from here on
        obstacle = obstacle_to_engine_of(model)
        if obstacle:
            raise ValueError(f"the engine does not run this model: {obstacle}")
        config = (text_config if is_bert(model) else image_config)(model)
        tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        return Engine(native(json.dumps(config), tensors))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, of the logits, and of the images that it takes."""
        return self._native.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are, and the inputs have to be."""
        return self._native.device

    @property
    def micro_batch(self) -> int:
        """Samples that go through a segment together on the CPU where a call names no other
        number."""
        return self._native.default_micro_batch

    @property
    def compiled_segments(self) -> int:
        """How many segments AOTInductor packages run."""
        return self._native.compiled_segments

    def __call__(
        self,
        inputs: Tensor,
        exits: Sequence[int] = (),
        threshold: float | None = None,
        criterion: str = "entropy",
        depth: int | None = None,
        micro_batch: int | None = None,
    ) -> EngineResult:
        """Runs a batch.

        Args:
            inputs: images [B, channels, size, size] of the model's dtype; of a BERT, what
                :func:`acn_kernels.inference.text_batch` makes of words and mask; of a model
                compiled as a whole, what its ``embed`` takes.
            exits: depths from 1 to below the last at which samples may leave.
            threshold, criterion: as :class:`acn_kernels.EarlyExit` takes them; a threshold wherever
                there are exits.
            depth: layers to run at most; None is all.
            micro_batch: samples that go through a segment together on the CPU; None: as the cache
                holds.

        Returns what it does on the device of the weights; on a GPU the counts make the host wait
        for the whole batch.

        Raises:
            TypeError, ValueError: naming the argument, its value and what is accepted.
        """
        if not isinstance(inputs, Tensor):
            raise TypeError(f"inputs is a {type(inputs).__name__}; it takes a tensor")
        if inputs.layout != torch.strided:
            raise TypeError(f"inputs is {inputs.layout}; it takes torch.strided")
        exits = listed_exits(exits)
        if exits and threshold is None:
            raise ValueError(f"threshold is None; it takes a number, as exits is {exits}")
        threshold = 0.0 if threshold is None else threshold
        check_criterion(criterion, threshold)
        numbers = [("exits", k, 0) for k in exits]
        numbers += [("depth", depth, 0), ("micro_batch", micro_batch, 1)]
        for name, value, least in numbers:
            if value is not None:
                check_size(name, value, least)
                if value >= 2**63:
                    raise ValueError(f"{name} is {value}; it takes an integer below 2^63")
        logits, depths, stops, counts, undecided = self._native.run(
            inputs, exits, float(threshold), criterion,
            -1 if depth is None else depth, micro_batch or 0,
        )  # fmt: skip
        return EngineResult(logits, depths, dict(zip(stops, counts, strict=True)), undecided)

    def decided(
        self,
        inputs: Tensor,
        exits: Sequence[int],
        threshold: float,
        criterion: str,
        graphs: str = "auto",
        lag: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Logits and depth alone, which on a GPU nobody has waited for.

        Args:
            inputs, exits, threshold, criterion: as a call takes them.
            graphs: how a GPU runs a small batch, to measure and test each way: "off", from graphs
                between two exits ("steps"), from one graph ("whole"), or what is best here. A way
                by name raises RuntimeError where it cannot be.
            lag: exits later at which the host learns how many samples stay.
        """
        return self._native.run(
            inputs, list(exits), float(threshold), criterion, -1, 0,
            counts=False, lag=lag, graphs=graphs,
        )[:2]  # fmt: skip


def _native_class():
    module = _extension.module()
    if module is None:
        raise RuntimeError(f"the compiled extension is {_extension.state()}")
    return module.Engine
