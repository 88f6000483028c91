"""ACN BERT: post-norm blocks whose outputs are all summed, as Hugging Face models."""

from __future__ import annotations

import functools
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    SequenceClassifierOutput,
)
from transformers.utils.generic import ModelOutput, can_return_tuple

from acn_kernels.blocks import PostNormBlock, PostNormStack
from acn_kernels.models.base import wire
from acn_kernels.models.huggingface.base import LANGUAGE_WIRINGS, ACNPreTrainedModel
from acn_kernels.stack import FusedACNStack


class ACNBertConfig(PreTrainedConfig):
    """Sizes and dropout under BertConfig's names, and how the blocks are wired.

    wiring: "acn" (the AC-BERT of arXiv 2506.09714), its twins "residual" (BERT) and "feedforward",
        or "hybrid", ``y = sum a_i x_i`` with learned shares, 1 - a_i of each in the short
        connection.
    alpha: in [0, 1], between BERT at 0 and AC-BERT at 1, where the wiring is either; None is what
        it says.
    granularity: "block": embeddings and blocks are the terms of the sum, as in the paper;
        "sublayer": every attention and MLP is one.
    """

    model_type = "acn_bert"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    classifier_dropout: float | None = None
    wiring: str = "acn"
    alpha: float | None = None
    granularity: str = "block"
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True


class ACNBertEmbeddings(nn.Module):
    """``norm(word + position + token type)``."""

    def __init__(self, config: ACNBertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.position = nn.Embedding(config.max_position_embeddings, width)
        self.token_type = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, words: Tensor, token_type_ids: Tensor | None, position_ids: Tensor | None
    ) -> Tensor:
        """x_0 [B, T, D] of embedded words [B, T, D]."""
        if position_ids is None:
            position_ids = torch.arange(words.shape[1], device=words.device)[None]
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        x = words + self.token_type(token_type_ids) + self.position(position_ids)
        return self.dropout(self.norm(x))


class ACNBertModel(ACNPreTrainedModel):
    """Embeddings, post-norm blocks, and a pooler on the first token of the sum."""

    config_class = ACNBertConfig
    base_model_prefix = "bert"
    _no_split_modules = ("ACNBertEmbeddings", "PostNormBlock")

    def __init__(self, config: ACNBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        norm = functools.partial(nn.LayerNorm, eps=config.layer_norm_eps)
        self.embeddings = ACNBertEmbeddings(config)
        blocks = [
            PostNormBlock(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                norm,
                config.hidden_dropout_prob,
                config.attention_probs_dropout_prob,
            )
            for _ in range(config.num_hidden_layers)
        ]
        self.blocks = wire(
            blocks,
            None,
            config.wiring,
            family=PostNormStack,
            alpha=config.alpha,
            takes=LANGUAGE_WIRINGS,
            granularity=config.granularity,
        )
        self.pooler = None
        if add_pooling_layer:
            self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        self.embeddings.word = embeddings

    def embed(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x_0 [B, T, D], and the ``attn_mask`` of every block; arguments as in :meth:`forward`."""
        words = self.embeddings.word(input_ids) if inputs_embeds is None else inputs_embeds
        x = self.embeddings(words, token_type_ids, position_ids)
        return x, create_bidirectional_mask(self.config, x, attention_mask)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """last_hidden_state [B, T, D] of input_ids [B, T], and pooler_output [B, D].

        Args:
            attention_mask: [B, T], 0 where a token is padding.
            token_type_ids: [B, T], the segment of each token, default 0.
            inputs_embeds: [B, T, D], in place of input_ids.
            output_hidden_states: adds y_0 .. y_L, the last of which is last_hidden_state.
        """
        self.refuse_attention_weights(output_attentions)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x, mask = self.embed(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        y, states = self._run_blocks(x, output_hidden_states, attn_mask=mask)
        pooled = None if self.pooler is None else self.pooler(y[:, 0]).tanh()
        return BaseModelOutputWithPooling(y, pooled, states)


class MaskedLMHead(nn.Module):
    """``decoder(norm(gelu(dense(y))))``, the decoder tied to the word embeddings."""

    def __init__(self, config: ACNBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = nn.GELU()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, y: Tensor) -> Tensor:
        return self.decoder(self.norm(self.act(self.dense(y))))


class ACNBertWithHead(ACNPreTrainedModel):
    """What the models with a head share: ``forward_head`` on the sum, and a loss of its logits."""

    config_class = ACNBertConfig
    base_model_prefix = "bert"
    output_class: ClassVar[type[ModelOutput]]

    @property
    def blocks(self) -> FusedACNStack:
        return self.bert.blocks

    def forward_head(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def loss_of(self, logits: Tensor, labels: Tensor, **kwargs) -> Tensor:
        raise NotImplementedError

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> ModelOutput:
        """Logits, and with ``labels`` the loss. Others: as in :meth:`ACNBertModel.forward`."""
        out = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            output_hidden_states,
            output_attentions,
            return_dict=True,
        )
        logits = self.forward_head(out.last_hidden_state)
        loss = None if labels is None else self.loss_of(logits, labels, **kwargs)
        return self.output_class(loss, logits, out.hidden_states)


class ACNBertForMaskedLM(ACNBertWithHead):
    """ACNBertModel that predicts the masked words: logits [B, T, vocab_size].

    ``labels``: [B, T], -100 wherever a word is not to be predicted; the loss is the mean cross
    entropy of the others.
    """

    output_class = MaskedLMOutput
    _tied_weights_keys = {"head.decoder.weight": "bert.embeddings.word.weight"}  # noqa: RUF012

    def __init__(self, config: ACNBertConfig) -> None:
        super().__init__(config)
        self.bert = ACNBertModel(config, add_pooling_layer=False)
        self.head = MaskedLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.head.decoder

    def set_output_embeddings(self, decoder: nn.Linear) -> None:
        self.head.decoder = decoder

    def forward_head(self, y: Tensor) -> Tensor:
        """Logits [B, T, vocab_size] of y [B, T, D]."""
        return self.head(y)

    def loss_of(self, logits: Tensor, labels: Tensor, **kwargs) -> Tensor:
        return self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)


class ACNBertForSequenceClassification(ACNBertWithHead):
    """ACNBertModel with a linear classifier (or regression) on the pooled first token: logits
    [B, num_labels], and with ``labels`` the loss that config.problem_type names."""

    output_class = SequenceClassifierOutput

    def __init__(self, config: ACNBertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = ACNBertModel(config)
        dropout = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward_head(self, y: Tensor) -> Tensor:
        """Logits [B, num_labels] of y [B, T, D]."""
        return self.classifier(self.dropout(self.bert.pooler(y[:, 0]).tanh()))

    def loss_of(self, logits: Tensor, labels: Tensor, **kwargs) -> Tensor:
        return self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
