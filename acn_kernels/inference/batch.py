"""What a call of EarlyExit is given, as each of the ways to run it takes it: images, or texts."""

from __future__ import annotations

from torch import Tensor, nn

from acn_kernels.blocks import HistoryStack
from acn_kernels.inference.engine_text import is_bert, text_batch
from acn_kernels.models import ImageClassifier
from acn_kernels.stack import FusedACNStack


class ImageBatch:
    """images: [B, channels, size, size]."""

    def __init__(self, model: ImageClassifier, inputs: Tensor) -> None:
        self._model = model
        self.tensors = [inputs]

    def for_engine(self) -> Tensor:
        return self.tensors[0]

    def for_layers(self) -> tuple[Tensor, dict[str, Tensor]]:
        """x_0 [B, T, D], and what every layer takes besides: [B, ...] each."""
        return self._model.embed(self.tensors[0]), {}

    def logits(self) -> Tensor:
        """[B, classes], of the whole model."""
        return self._model(self.tensors[0])


class TextBatch:
    """As an ACN BERT's forward takes it: input_ids [B, T]; attention_mask [B, T], 0 where a token
    is padding; token_type_ids [B, T].

    Raises:
        ValueError: naming the argument, its value and what is accepted.
    """

    def __init__(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> None:
        self._model = model
        self._rows = (input_ids, attention_mask, token_type_ids)
        self.tensors = [row for row in self._rows if row is not None]

    def for_engine(self) -> Tensor:
        return text_batch(*self._rows)

    def for_layers(self) -> tuple[Tensor, dict[str, Tensor]]:
        """x_0 [B, T, D], and the mask where there is one."""
        x, mask = self._model.bert.embed(*self._rows)
        return x, {} if mask is None else {"attn_mask": mask}

    def logits(self) -> Tensor:
        return self._model(*self._rows).logits


def check_in_parts(model: nn.Module) -> None:
    """Raises TypeError where ``model`` does not come in the parts between which samples leave."""
    in_parts = isinstance(getattr(model, "blocks", None), FusedACNStack) and all(
        callable(getattr(model, name, None)) for name in ("embed", "forward_head")
    )
    if not in_parts:
        raise TypeError(
            f"model is a {type(model).__name__}; it takes one with embed(inputs), blocks (a "
            "FusedACNStack) and forward_head(y)"
        )
    if isinstance(model.blocks, HistoryStack):
        raise TypeError(
            f"the model's blocks are a {type(model.blocks).__name__}, whose layers read all "
            "outputs before them; it takes a stack whose layers read the last one and the sum"
        )


def batch_of(model: nn.Module, *inputs: Tensor, **named: Tensor) -> ImageBatch | TextBatch:
    """The arguments of a call, for the kind of model it is."""
    return (TextBatch if is_bert(model) else ImageBatch)(model, *inputs, **named)
