"""The adapters of timm, Hugging Face transformers and torch.nn, by name: nothing is imported."""

from __future__ import annotations

from torch import Tensor, nn

from acn_kernels.convert.adapters import Adapter, PostNorm, PreNorm
from acn_kernels.convert.registry import register


def _no_cross_attention(block: nn.Module) -> str | None:
    return "it attends to an encoder's output" if hasattr(block, "crossattention") else None


# torch.nn.TransformerEncoder


def _torch_attention(block, h, src_mask=None, src_key_padding_mask=None, is_causal=False) -> Tensor:
    return block._sa_block(h, src_mask, src_key_padding_mask, is_causal=is_causal)


def _torch_mlp(block, h) -> Tensor:
    return block._ff_block(h)


_TORCH = ("norm1", "norm2"), (_torch_attention, _torch_mlp)
_TORCH_PRE_NORM, _TORCH_POST_NORM = PreNorm(*_TORCH), PostNorm(*_TORCH)


def _torch_adapter(block: nn.TransformerEncoderLayer) -> Adapter:
    return _TORCH_PRE_NORM if block.norm_first else _TORCH_POST_NORM


register(nn.TransformerEncoderLayer, _torch_adapter)


# timm


def _timm_attention(block, h, *args, **kwargs) -> Tensor:
    return block.drop_path1(block.ls1(block.attn(h, *args, **kwargs)))


def _timm_mlp(block, h) -> Tensor:
    return block.drop_path2(block.ls2(block.mlp(h)))


def _scaled(h, gamma) -> Tensor:
    return h if gamma is None else gamma * h


def _gamma_attention(block, h, *args, **kwargs) -> Tensor:
    return block.drop_path1(_scaled(block.attn(h, *args, **kwargs), block.gamma_1))


def _gamma_mlp(block, h) -> Tensor:
    return block.drop_path2(_scaled(block.mlp(h), block.gamma_2))


def _timm_norm_after_attention(block, h, *args, **kwargs) -> Tensor:
    return block.drop_path1(block.norm1(block.attn(h, *args, **kwargs)))


def _timm_norm_after_mlp(block, h) -> Tensor:
    return block.drop_path2(block.norm2(block.mlp(h)))


def _mixer_tokens(block, h) -> Tensor:
    return block.drop_path(block.mlp_tokens(h.transpose(1, 2)).transpose(1, 2))


def _mixer_channels(block, h) -> Tensor:
    return block.drop_path(block.mlp_channels(h))


def _resmlp_tokens(block, h) -> Tensor:
    h = block.linear_tokens(h.transpose(1, 2)).transpose(1, 2)
    return block.drop_path(block.ls1 * h)


def _resmlp_channels(block, h) -> Tensor:
    return block.drop_path(block.ls2 * block.mlp_channels(h))


_NORMS = ("norm1", "norm2")
for _name, _adapter in {
    "vision_transformer.Block": PreNorm(_NORMS, (_timm_attention, _timm_mlp)),
    "vision_transformer_relpos.RelPosBlock": PreNorm(_NORMS, (_timm_attention, _timm_mlp)),
    "beit.Block": PreNorm(_NORMS, (_gamma_attention, _gamma_mlp)),
    "eva.EvaBlock": PreNorm(_NORMS, (_gamma_attention, _gamma_mlp)),
    # The norm comes last in each sublayer: the short connection still goes around all of it.
    "vision_transformer.ResPostBlock": PreNorm(
        (None, None), (_timm_norm_after_attention, _timm_norm_after_mlp)
    ),
    "mlp_mixer.MixerBlock": PreNorm(_NORMS, (_mixer_tokens, _mixer_channels)),
    "mlp_mixer.ResBlock": PreNorm(_NORMS, (_resmlp_tokens, _resmlp_channels)),
}.items():
    register(f"timm.models.{_name}", _adapter)


# Hugging Face transformers


def _bert_attention(
    block,
    h,
    attention_mask=None,
    encoder_hidden_states=None,
    encoder_attention_mask=None,
    past_key_values=None,
    **kwargs,
) -> Tensor:
    attention = block.attention
    h, _ = attention.self(
        h, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
    )
    return attention.output.dropout(attention.output.dense(h))


def _bert_mlp(block, h) -> Tensor:
    return block.output.dropout(block.output.dense(block.intermediate(h)))


def _distilbert_attention(block, h, attention_mask=None, **kwargs) -> Tensor:
    return block.attention(h, attention_mask=attention_mask, **kwargs)[0]


def _distilbert_mlp(block, h) -> Tensor:
    return block.ffn(h)


def _vit_attention(block, h, attention_mask=None, **kwargs) -> Tensor:
    return block.dropout(block.attention(h, attention_mask, **kwargs)[0])


def _vit_mlp(block, h) -> Tensor:
    return block.dropout(block.mlp(h))


def _gpt2_attention(
    block,
    h,
    past_key_values=None,
    attention_mask=None,
    encoder_hidden_states=None,
    encoder_attention_mask=None,
    use_cache=False,
    **kwargs,
) -> Tensor:
    return block.attn(
        h,
        past_key_values=past_key_values,
        attention_mask=attention_mask,
        use_cache=use_cache,
        **kwargs,
    )[0]


def _llama_attention(
    block,
    h,
    attention_mask=None,
    position_ids=None,
    past_key_values=None,
    use_cache=False,
    position_embeddings=None,
    **kwargs,
) -> Tensor:
    return block.self_attn(
        hidden_states=h,
        attention_mask=attention_mask,
        position_ids=position_ids,
        past_key_values=past_key_values,
        use_cache=use_cache,
        position_embeddings=position_embeddings,
        **kwargs,
    )[0]


def _plain_mlp(block, h) -> Tensor:
    return block.mlp(h)


_FAMILIES = {
    PostNorm(
        ("attention.output.LayerNorm", "output.LayerNorm"),
        (_bert_attention, _bert_mlp),
        _no_cross_attention,
    ): {
        "bert": "BertLayer",
        "roberta": "RobertaLayer",
        "xlm_roberta": "XLMRobertaLayer",
        "camembert": "CamembertLayer",
        "electra": "ElectraLayer",
        "ernie": "ErnieLayer",
    },
    PostNorm(
        ("sa_layer_norm", "output_layer_norm"), (_distilbert_attention, _distilbert_mlp)
    ): {"distilbert": "TransformerBlock"},
    PreNorm(("layernorm_before", "layernorm_after"), (_vit_attention, _vit_mlp)): {
        "vit": "ViTLayer",
        "deit": "DeiTLayer",
        "vit_mae": "ViTMAELayer",
        "vit_msn": "ViTMSNLayer",
    },
    PreNorm(("ln_1", "ln_2"), (_gpt2_attention, _plain_mlp), _no_cross_attention): {
        "gpt2": "GPT2Block",
    },
    PreNorm(("input_layernorm", "post_attention_layernorm"), (_llama_attention, _plain_mlp)): {
        "llama": "LlamaDecoderLayer",
        "mistral": "MistralDecoderLayer",
        "qwen2": "Qwen2DecoderLayer",
        "qwen3": "Qwen3DecoderLayer",
        "gemma": "GemmaDecoderLayer",
        "olmo": "OlmoDecoderLayer",
        "smollm3": "SmolLM3DecoderLayer",
        "starcoder2": "Starcoder2DecoderLayer",
    },
}  # fmt: skip
for _adapter, _classes in _FAMILIES.items():
    for _model, _class in _classes.items():
        register(f"transformers.models.{_model}.modeling_{_model}.{_class}", _adapter)
