"""Which live models the C++ engine runs, and the engine that follows a model through changes."""

from __future__ import annotations

from torch import Tensor, nn

from acn_kernels import _extension
from acn_kernels.composition import Composition
from acn_kernels.inference.engine import Engine
from acn_kernels.inference.engine_image import obstacle_in_images
from acn_kernels.inference.engine_modules import DTYPES, obstacle_on
from acn_kernels.inference.engine_text import is_bert, obstacle_in_texts
from acn_kernels.kept import calls_are_plain
from acn_kernels.models import Mixer, ViT
from acn_kernels.validation import changes_in_place, under_autocast


def obstacle_to_engine_of(model: nn.Module) -> str | None:
    """Why the engine does not run ``model``; None where it does."""
    if is_bert(model):
        return obstacle_in_texts(model)
    if type(model) not in (ViT, Mixer):
        return f"the model is a {type(model).__name__}; it takes a ViT, a Mixer or an ACN BERT"
    return obstacle_in_images(model)


class LiveEngine:
    """An engine of ``model``, and whether it still is that: modules and parameters may have been
    replaced, hooks added, options set, a ViT's positions written over."""

    def __init__(self, model: nn.Module) -> None:
        """Raises ValueError where the engine does not run the model."""
        self.engine = Engine.from_model(model)
        self._model, self._composition = model, Composition([model])
        # The engine makes its own, and so does not follow these as it does weights.
        self._positions = getattr(model, "positions", None)
        self._written = self._times_written()

    def is_current(self) -> bool:
        """Whether the model is what the engine was made of, values of weights aside: those the
        engine follows by itself."""
        alike = self._times_written() == self._written
        return alike and self._composition.is_that_of([self._model])

    def _times_written(self) -> int:
        return 0 if self._positions is None else changes_in_place(self._positions)


def obstacle_to_engine(model: nn.Module, *inputs: Tensor) -> str | None:
    """Why a call with these inputs does not go to the engine, what the model is made of aside; None
    where it may."""
    if _extension.module() is None:
        return f"the compiled extension is {_extension.state()}"
    if model.blocks.backend not in ("auto", "native"):
        return f"backend is {model.blocks.backend!r}"
    if is_bert(model) and model.training:
        return "the model is in training mode, where it drops out"
    if not calls_are_plain():
        return "the operations are being traced, watched or transformed"
    weight = next(model.parameters())
    if under_autocast(weight):
        return "autocast is on"
    for given in inputs:
        if type(given) is not Tensor or given.device != weight.device:
            return f"the inputs are no plain tensors on {weight.device}, where the model is"
        if given.is_floating_point() and (given.dtype not in DTYPES or given.dtype != weight.dtype):
            return f"the inputs are {given.dtype}; it takes fp32 or bf16, the model's"
    return obstacle_on(weight.device) or None
