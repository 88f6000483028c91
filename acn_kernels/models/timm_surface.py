"""What users of timm's image models already type, on the models of this package."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from torch import Tensor, nn

from acn_kernels.rows import Rows
from acn_kernels.stack import FusedACNStack
from acn_kernels.validation import check_flag

# The weights that a DenseFormer gives to outputs: shares, as learned scales are.
_AVERAGE = re.compile(r"blocks\.mixers\.\d+\.weight")
OUTPUT_FORMATS = ("NLC", "NCHW")
Intermediates = list[Tensor] | list[tuple[Tensor, Tensor]]


class TimmSurface:
    """Methods under timm's names, for a model with ``config``, ``blocks``, ``embed`` and ``head``.

    One thing has another number: timm counts blocks from 0, and here a depth is a number of blocks
    that have run. The output of timm's block i is the sum at depth i + 1; depth 0 is the embedding.
    """

    blocks: FusedACNStack
    head: nn.Module
    num_prefix_tokens = 0

    @property
    def num_classes(self) -> int:
        """Outputs of the head; 0 without a head."""
        return self.config.classes

    @property
    def num_features(self) -> int:
        """D, the width of :meth:`forward_features`."""
        return self.config.width

    @property
    def head_hidden_size(self) -> int:
        """The width of ``forward_head(y, pre_logits=True)``."""
        return self.config.width

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """A new head of ``num_classes`` outputs (zero at first), or none at all for 0.

        Raises:
            TypeError, ValueError: ``num_classes`` is no integer of at least 0.
        """
        if isinstance(num_classes, bool) or not isinstance(num_classes, int):
            raise TypeError(f"num_classes is {num_classes!r}; it takes an integer")
        if num_classes < 0:
            raise ValueError(f"num_classes is {num_classes}; it takes an integer of at least 0")
        like = next(self.parameters())
        config = dataclasses.replace(self.config, classes=num_classes)
        head = make_head(config.width, num_classes)
        self.head = head.to(like.device, like.dtype).train(self.training)
        self.config = config

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether the backward pass recomputes every block instead of keeping its activations."""
        self.blocks.checkpoint = check_flag("enable", enable)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone, beside the norms and biases that
        timm's optimisers know by their shape."""
        alone = {"cls_token", "blocks.scales"}
        return {n for n, _ in self.named_parameters() if n in alone or _AVERAGE.fullmatch(n)}

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = True,
        stop_early: bool = False,
        output_fmt: str = "NLC",
        intermediates_only: bool = True,
    ) -> Intermediates | tuple[Tensor, Intermediates]:
        """The sums y_k of the sub-networks, for every depth k in ``indices``.

        Args:
            images: [B, channels, size, size].
            indices: depths in [0, depth], negative ones from the end; an integer n is the last n
                depths, None is every one.
            return_prefix_tokens: gives pairs (patches, class token) where there is a class token.
            norm: whether the final norm is applied: what the head reads, with it.
            stop_early: runs no block beyond the last of ``indices``; the final features are then
                those of that depth.
            output_fmt: "NLC", [B, T, D], with the tokens that the head reads; or "NCHW", [B, D,
                size / patch, size / patch], the patches alone.
            intermediates_only: False gives the pair (final features [B, T, D], intermediates).

        Raises:
            TypeError, ValueError: naming the argument.
        """
        if output_fmt not in OUTPUT_FORMATS:
            raise ValueError(f"output_fmt is {output_fmt!r}; it takes 'NLC' or 'NCHW'")
        depths = _depths(indices, len(self.blocks))
        final = max(depths) if stop_early else len(self.blocks)
        wanted = depths if intermediates_only else [*depths, final]
        patches = output_fmt == "NCHW" or return_prefix_tokens
        sums = self._sums(self.embed(images), wanted, norm, every_row=patches)
        found = sums[: len(depths)]
        prefix = self.num_prefix_tokens
        if patches:
            kept = [y[:, prefix:] for y in found]
            if output_fmt == "NCHW":
                side = self.config.image_size // self.config.patch_size
                kept = [y.mT.unflatten(2, (side, side)) for y in kept]
            if return_prefix_tokens and prefix:
                kept = [(y, token[:, :prefix]) for y, token in zip(kept, found, strict=True)]
            found = kept
        if intermediates_only:
            return found
        last = sums[-1]
        if patches and self.blocks.rows is not None:
            rows = Rows(self.blocks.rows).resolve(last.shape[1], last.device)
            last = last.index_select(1, rows.index)
        if not norm and self.blocks.norm is not None:
            last = self.blocks.norm(last)
        return last, found

    def _sums(self, x: Tensor, depths: list[int], norm: bool, every_row: bool) -> list[Tensor]:
        rows = self.blocks.rows
        try:
            if every_row:
                self.blocks.rows = None
            return self.blocks.forward_intermediates(x, indices=depths, norm=norm)
        finally:
            self.blocks.rows = rows

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops, in place, the blocks above the deepest of ``indices``; returns the depths.

        For a model of fewer blocks beside this one, :meth:`truncate`.

        Args:
            indices: as in :meth:`forward_intermediates`.
            prune_norm: drops the final norm too: the model then gives bare sums, and its
                configuration no longer describes it, so that it cannot be saved.
            prune_head: drops the head, as ``reset_classifier(0)``.
        """
        depths = _depths(indices, len(self.blocks))
        self.blocks = self.blocks.truncate(max(depths))
        self.config = dataclasses.replace(self.config, depth=max(depths))
        if prune_norm:
            self.blocks.norm = None
        if prune_head:
            self.reset_classifier(0)
        return depths


def make_head(width: int, classes: int) -> nn.Module:
    """The linear head, zero at first; the identity where there are no classes."""
    if not classes:
        return nn.Identity()
    head = nn.Linear(width, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _depths(indices: int | Sequence[int] | None, layers: int) -> list[int]:
    """``indices`` as depths in [0, layers]."""
    count = layers + 1
    if indices is None:
        return list(range(count))
    if isinstance(indices, int) and not isinstance(indices, bool):
        if not 0 < indices <= count:
            raise ValueError(f"indices is {indices}; there are the last 1 to {count} depths")
        return list(range(count - indices, count))
    accepted = f"it takes integers from {-count} to {layers}"
    depths = list(indices)
    for k in depths:
        if isinstance(k, bool) or not isinstance(k, int):
            raise TypeError(f"indices holds {k!r}; {accepted}")
        if not -count <= k < count:
            raise ValueError(f"indices holds {k}; {accepted}")
    if not depths:
        raise ValueError("indices is empty; it takes at least one depth")
    return [k % count for k in depths]
