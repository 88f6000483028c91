"""BERT and MiniLM with the face of an image classifier, for trainer, losses and measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from acn_kernels.convert import convert
from acn_kernels.inference.truncation import truncate
from acn_kernels.sharding import shallow_copy
from benchmarks.paper.minilm import minilm
from benchmarks.paper.text_data import PADDING
from benchmarks.torchvision_schemas import define_torchvision_schemas

BERT, MINILM = "bert", "minilm"


class TextConfig(NamedTuple):
    """L, D and the number of classes, under the names that an image model has for them."""

    depth: int
    width: int
    classes: int


class TextClassifier(nn.Module):
    """A linear head (zero at first) on the mean of the tokens that ``encoder`` puts out.

    Inputs are token ids [B, T] int64, 0 for padding; features are [B, 1, D].

    Args:
        encoder: an ACNBertModel, or a BertModel from acn.convert.
    """

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def blocks(self) -> nn.ModuleList:
        own = getattr(self.encoder, "blocks", None)
        return self.encoder.encoder.layer if own is None else own

    @property
    def config(self) -> TextConfig:
        return TextConfig(len(self.blocks), self.head.in_features, self.head.out_features)

    def truncate(self, k: int) -> TextClassifier:
        """The ordinary model of the first k blocks, with the same head; weights are shared."""
        short = shallow_copy(self)
        short.encoder = truncate(self.encoder, k)
        return short

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [B, classes]."""
        ids = _trimmed(ids)
        return self.forward_head(_mean(self._encoded(ids).last_hidden_state, ids))

    def forward_head(self, y: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [B, classes] of features [B, 1, D]; [B, D] with ``pre_logits``."""
        pooled = y.mean(1)
        return pooled if pre_logits else self.head(pooled)

    def forward_intermediates(
        self, ids: Tensor, indices: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Features of the sub-networks, of all of them or of the depths ``indices``."""
        ids = _trimmed(ids)
        states = self._encoded(ids, output_hidden_states=True).hidden_states
        chosen = states if indices is None else [states[k] for k in indices]
        return [_mean(state, ids) for state in chosen]

    @torch.no_grad()
    def logits_by_depth(self, ids: Tensor) -> Tensor:
        """[L+1, B, classes]."""
        return torch.stack([self.forward_head(y) for y in self.forward_intermediates(ids)])

    def _encoded(self, ids: Tensor, **options):
        # Where FLOPs are counted there is no content to look at, and no padding.
        mask = None if ids.is_meta else (ids != PADDING).long()
        return self.encoder(ids, attention_mask=mask, **options)


def _trimmed(ids: Tensor) -> Tensor:
    """On a CPU, where a size may follow from the content at no cost, without the columns that are
    padding in every row; there is one at least."""
    if ids.device.type != "cpu":
        return ids
    taken = (ids != PADDING).any(0).nonzero()
    return ids[:, : int(taken[-1]) + 1] if len(taken) else ids[:, :1]


def _mean(y: Tensor, ids: Tensor) -> Tensor:
    """[B, 1, D]: of the tokens that are no padding."""
    kept = (ids != PADDING).to(y.dtype)[..., None]
    return (y * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)


def create_text(name: str, classes: int, weights: bool = True, **changes) -> TextClassifier:
    """A new "bert", ``changes`` being fields of ACNBertConfig; or "minilm" converted at alpha = 0,
    cut to ``depth`` where that is given.

    Args:
        weights: False gives MiniLM's sizes alone.

    Raises:
        FileNotFoundError: MiniLM is not installed.
    """
    define_torchvision_schemas()
    if name == BERT:
        from acn_kernels.models.huggingface import ACNBertConfig, ACNBertModel

        encoder = ACNBertModel(ACNBertConfig(**changes), add_pooling_layer=False)
        return TextClassifier(encoder, classes)
    whole = TextClassifier(convert(minilm(weights), inplace=True), classes)
    return whole.truncate(changes["depth"]) if changes else whole
