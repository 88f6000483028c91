"""ACN GPT: causal pre-norm blocks on long connections, as a Hugging Face language model."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from acn_kernels.blocks import TransformerBlock
from acn_kernels.models.base import wire
from acn_kernels.models.huggingface.base import LANGUAGE_WIRINGS, ACNPreTrainedModel

NORMS = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}


class ACNGPTConfig(PreTrainedConfig):
    """Sizes under the names that transformers gives them, and how the blocks are wired.

    wiring: "acn"; its twins "residual" and "feedforward"; or "hybrid", long and short connections
        with a learned share each (:class:`acn_kernels.blocks.HybridStack`).
    alpha: in [0, 1] where the wiring is "acn" or "residual"; None is 1 and 0.
    granularity: "block", or "sublayer": attention and MLP are layers of their own.
    learned_scales: ``y = sum a_i x_i`` with learned a_i, one at first; the hybrid has them always.
    input_injection: every block reads the embedding too, ``x = block(x + x_0)``.
    norm: "layernorm" or "rmsnorm". intermediate_size: None is four times hidden_size.
    embd_pdrop, resid_pdrop, attn_pdrop: dropout where GPT2Config has it, but 0 unless given.
    """

    model_type = "acn_gpt"
    keys_to_ignore_at_inference = ("past_key_values",)

    vocab_size: int = 50257
    max_position_embeddings: int = 1024
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    norm: str = "layernorm"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    embd_pdrop: float = 0.0
    resid_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    wiring: str = "acn"
    alpha: float | None = None
    granularity: str = "block"
    learned_scales: bool = False
    input_injection: bool = False
    use_cache: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | None = 50256
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True


class ACNGPTModel(ACNPreTrainedModel):
    """Token and position embeddings, causal blocks, the final norm on the sum."""

    config_class = ACNGPTConfig
    base_model_prefix = "transformer"
    _no_split_modules = ("TransformerBlock",)
    _skip_keys_device_placement = ("past_key_values",)

    def __init__(self, config: ACNGPTConfig) -> None:
        super().__init__(config)
        if config.norm not in NORMS:
            raise ValueError(f"norm is {config.norm!r}; it takes one of {', '.join(NORMS)}")
        norm = functools.partial(NORMS[config.norm], eps=config.layer_norm_eps)
        width = config.hidden_size
        self.wte = nn.Embedding(config.vocab_size, width)
        self.wpe = nn.Embedding(config.max_position_embeddings, width)
        self.dropout = nn.Dropout(config.embd_pdrop)
        blocks = [
            TransformerBlock(
                width,
                config.num_attention_heads,
                config.intermediate_size,
                norm,
                layer_idx=i,
                dropout=config.resid_pdrop,
                attention_dropout=config.attn_pdrop,
            )
            for i in range(config.num_hidden_layers)
        ]
        self.blocks = wire(
            blocks,
            norm(width),
            config.wiring,
            alpha=config.alpha,
            takes=LANGUAGE_WIRINGS,
            scales="learned" if config.learned_scales else None,
            granularity=config.granularity,
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.wte

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        self.wte = embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """last_hidden_state [B, T, D] of input_ids [B, T], or of inputs_embeds [B, T, D].

        Args:
            past_key_values: keys and values of earlier tokens, to which those of these are added.
            attention_mask: [B, earlier + T], 0 where a token is padding.
            position_ids: [B, T]; default the number of tokens before each, padding counted.
            use_cache: default config.use_cache in inference, False in training and wherever
                checkpointing recomputes the blocks.
            output_hidden_states: adds norm(y_0) .. norm(y_L), the last of which is
                last_hidden_state.
        """
        self.refuse_attention_weights(output_attentions)
        x, options = self.prepared(
            input_ids, past_key_values, attention_mask, position_ids, inputs_embeds, use_cache
        )
        y, states = self._run_blocks(x, output_hidden_states, **options)
        return BaseModelOutputWithPast(y, options["past_key_values"], states)

    def prepared(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """(x_0 [B, T, D], the further arguments of every block) for :meth:`forward`'s arguments."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.wte(input_ids)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if self.gradient_checkpointing and torch.is_grad_enabled():
            if past_key_values is not None:
                raise ValueError(
                    "past_key_values is given while gradient checkpointing runs every block twice"
                )
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        tokens = inputs_embeds.shape[1]
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(tokens, device=inputs_embeds.device)[None] + past
        mask = create_causal_mask(
            self.config, inputs_embeds, attention_mask, past_key_values, position_ids
        )
        x = self.dropout(inputs_embeds + self.wpe(position_ids))
        return x, {
            "attn_mask": mask,
            "is_causal": mask is None and tokens > 1,
            "past_key_values": past_key_values,
            "x_0": x if self.config.input_injection else None,
        }


class ACNGPTForCausalLM(ACNPreTrainedModel, GenerationMixin):
    """ACNGPTModel with the head of a language model, tied to the token embeddings."""

    config_class = ACNGPTConfig
    base_model_prefix = "transformer"
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012

    def __init__(self, config: ACNGPTConfig) -> None:
        super().__init__(config)
        self.transformer = ACNGPTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def blocks(self):
        return self.transformer.blocks

    def forward_head(self, y: Tensor) -> Tensor:
        """Logits [B, T, vocab_size] of y [B, T, D]."""
        return self.lm_head(y)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, vocab_size], and with ``labels`` the mean cross entropy of the next token.

        Args:
            labels: [B, T], the input_ids themselves (shifted here); -100 where none is counted.
            logits_to_keep: of the last tokens alone (0: all), or of those in an index tensor.
            Others: as in :meth:`ACNGPTModel.forward`.
        """
        out = self.transformer(
            input_ids,
            past_key_values,
            attention_mask,
            position_ids,
            inputs_embeds,
            use_cache,
            output_hidden_states,
            output_attentions,
            return_dict=True,
        )
        y = out.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.forward_head(y[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss, logits, out.past_key_values, out.hidden_states)
