"""EarlyExitGPT: a language model whose every token leaves where the head is sure of the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from acn_kernels.inference.criteria import certainty, check_criterion, check_exits, is_sure
from acn_kernels.inference.live_cache import LiveCache, State
from acn_kernels.models.huggingface import ACNGPTForCausalLM
from acn_kernels.sharding import is_fsdp, refuse_exits_when_sharded, shallow_copy


@dataclasses.dataclass
class EarlyExitOutput(CausalLMOutputWithPast):
    """exit_depth: [B, T] int64, the number of layers each token went through."""

    exit_depth: Tensor | None = None


class EarlyExitGPT(ACNGPTForCausalLM):
    """Inference in which each token leaves at the first exit where the head is sure.

    A token that has left keeps its x_k: from there on the layers' keys and values are made of it
    (state copying, see :class:`acn_kernels.inference.live_cache.LiveCache`). So a token's logits
    depend on the tokens before it and on nothing else, and ``generate`` gives the same words with a
    cache and without, alone and in a batch. With a cache and one token at a time, the samples that
    have left are taken out of the batch; several tokens at once (a prompt) run to full depth, and
    those that have left are held where they were.

    Args:
        model: an ACN GPT; its weights are shared.
        exits: depths in [1, L-1]; all leave at L.
        threshold, criterion: as in :class:`acn_kernels.EarlyExit`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is accepted.
    """

    def __init__(
        self,
        model: ACNGPTForCausalLM,
        exits: Sequence[int],
        threshold: float,
        criterion: str = "entropy",
    ) -> None:
        if not isinstance(model, ACNGPTForCausalLM):
            raise TypeError(f"model is a {type(model).__name__}; it takes an ACNGPTForCausalLM")
        check_criterion(criterion, threshold)
        exits = check_exits(exits, len(model.blocks))
        # The model's own modules and settings: nothing is built anew.
        self.__dict__.update(shallow_copy(model).__dict__)
        self.__dict__.pop("forward", None)  # this class has its own
        self.exits, self.threshold, self.criterion = exits, threshold, criterion

    def truncate(self, k: int) -> EarlyExitGPT:
        """The model of the first k blocks, with those exits that lie below k."""
        short = super().truncate(k)
        short.exits = [depth for depth in self.exits if depth < k]
        return short

    @can_return_tuple
    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> EarlyExitOutput:
        """Logits and exit_depth; arguments as in ACNGPTForCausalLM, without labels."""
        if kwargs.get("labels") is not None:
            raise ValueError("labels is given; an EarlyExitGPT has no gradient: train its model")
        self.refuse_attention_weights(kwargs.get("output_attentions"))
        if kwargs.get("output_hidden_states"):
            raise ValueError("output_hidden_states is True; tokens that have left have none")
        if is_fsdp(self):
            refuse_exits_when_sharded(self.exits)
        x, options = self.transformer.prepared(
            input_ids, past_key_values, attention_mask, position_ids, inputs_embeds, use_cache
        )
        cache = options["past_key_values"]
        compacted = cache is not None and x.shape[1] == 1
        logits, depth = (self._one_token if compacted else self._every_token)(x, options)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return EarlyExitOutput(logits=logits[:, kept], past_key_values=cache, exit_depth=depth)

    def _sure(self, logits: Tensor) -> Tensor:
        return is_sure(certainty(logits, self.criterion), self.criterion, self.threshold)

    def _head_at(self, x: Tensor, y: Tensor | None, depth: int) -> Tensor:
        return self.forward_head(self.blocks.output(x, y, depth))

    def _every_token(self, x: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """All layers on all tokens; (logits [B, T, V], exit depth [B, T])."""
        stack, layers, y, logits = self.blocks, self.config.num_hidden_layers, None, None
        depth = torch.full(x.shape[:2], layers, device=x.device)
        gone = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        for i in range(layers):
            if i in self.exits:
                here = self._head_at(x, y, i)
                leaving = self._sure(here) & ~gone
                logits = here if logits is None else here.where(leaving[..., None], logits)
                depth[leaving] = i
                gone |= leaving
            out, total = stack.advance(x, y, start=i, stop=i + 1, **options)
            x = torch.where(gone[..., None], x, out)
            y = total if y is None else torch.where(gone[..., None], y, total)
        last = self._head_at(x, y, layers)
        return (last if logits is None else logits.where(gone[..., None], last)), depth

    def _one_token(self, x: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """One token of each sample [B, 1, D], the batch made smaller at every exit."""
        stack, layers, batch = self.blocks, self.config.num_hidden_layers, len(x)
        cache, mask = LiveCache(options["past_key_values"], stack, batch), options["attn_mask"]
        depth = torch.full((batch, 1), layers, device=x.device)
        live = State(torch.arange(batch, device=x.device), x, None, options["x_0"])
        logits, start = None, 0
        for stop in [*(k for k in self.exits if k < layers), layers]:
            # A mask of one row is everybody's.
            seen = mask if mask is None or len(mask) == 1 else mask[live.rows]
            x, y = stack.advance(
                live.x, live.y, start=start, stop=stop,
                **{**options, "attn_mask": seen, "past_key_values": cache, "x_0": live.x_0},
            )  # fmt: skip
            live, start = live._replace(x=x, y=y), stop
            here = self._head_at(x, y, stop)
            # Those who go on are overwritten at their own exit.
            logits = here if logits is None else logits.index_copy_(0, live.rows, here)
            if stop == layers:
                break
            leaving = self._sure(here)[:, 0]
            if not leaving.any():
                continue
            gone, live = live[leaving], live[~leaving]
            depth[gone.rows] = stop
            cache.leave(gone, live.rows)
            if not len(live.rows):
                cache.fill(stop, layers)
                break
        return logits, depth
