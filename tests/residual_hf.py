"""Hugging Face's residual models, small."""

from __future__ import annotations

import functools

import pytest
import torch
from residual_case import B, Case, D, T
from timm_models import import_timm
from torch import nn


def import_transformers():
    import_timm()  # it, too, looks at torchvision
    return pytest.importorskip("transformers")


SIZES = {"vocab_size": 50, "hidden_size": D, "num_hidden_layers": 3, "num_attention_heads": 2,
         "intermediate_size": 24, "hidden_dropout_prob": 0.0,
         "attention_probs_dropout_prob": 0.0}  # fmt: skip


def _hf(model: str, config: str, **options) -> nn.Module:
    library = import_transformers()
    return getattr(library, model)(getattr(library, config)(**options))


def _tokens() -> dict:
    """Two sentences, the second one padded."""
    ids = torch.randint(5, 50, (B, T))
    mask = torch.ones(B, T, dtype=torch.long)
    mask[1, 3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _additive(attention_mask, x, causal=False):
    seen = attention_mask[:, None, None, :].bool().expand(-1, 1, T, -1)
    if causal:
        seen = seen & torch.ones(T, T, dtype=torch.bool).tril()
    return torch.zeros(seen.shape, dtype=x.dtype).masked_fill(~seen, torch.finfo(x.dtype).min)


def _bert_start(model, input_ids, attention_mask):
    return model.embeddings(input_ids)


def _bert_blocks(model, x_0, input_ids, attention_mask):
    mask = _additive(attention_mask, x_0)

    def attention(layer, h):
        return layer.attention.output.dense(layer.attention.self(h, attention_mask=mask)[0])

    def mlp(layer, h):
        return layer.output.dense(nn.functional.gelu(layer.intermediate.dense(h)))

    return [
        [
            (layer.attention.output.LayerNorm, functools.partial(attention, layer)),
            (layer.output.LayerNorm, functools.partial(mlp, layer)),
        ]
        for layer in model.encoder.layer
    ]


def _distilbert_blocks(model, x_0, input_ids, attention_mask):
    mask = _additive(attention_mask, x_0)
    return [
        [
            (b.sa_layer_norm, lambda h, b=b: b.attention(h, attention_mask=mask)[0]),
            (b.output_layer_norm, lambda h, b=b: b.ffn.lin2(nn.functional.gelu(b.ffn.lin1(h)))),
        ]
        for b in model.transformer.layer
    ]


def _gpt2_start(model, input_ids, attention_mask):
    return model.transformer.wte(input_ids) + model.transformer.wpe(torch.arange(T))


def _gpt2_blocks(model, x_0, input_ids, attention_mask):
    mask = _additive(attention_mask, x_0, causal=True)
    return [
        [(b.ln_1, lambda h, b=b: b.attn(h, attention_mask=mask)[0]), (b.ln_2, b.mlp)]
        for b in model.transformer.h
    ]


def _llama_start(model, input_ids, attention_mask):
    return model.model.embed_tokens(input_ids)


def _llama_blocks(model, x_0, input_ids, attention_mask):
    mask = _additive(attention_mask, x_0, causal=True)
    rotation = model.model.rotary_emb(x_0, position_ids=torch.arange(T)[None])

    def attention(layer, h):
        return layer.self_attn(h, position_embeddings=rotation, attention_mask=mask)[0]

    return [
        [
            (layer.input_layernorm, functools.partial(attention, layer)),
            (layer.post_attention_layernorm, layer.mlp),
        ]
        for layer in model.model.layers
    ]


def _llama(family: str) -> Case:
    sizes = {name: value for name, value in SIZES.items() if "dropout" not in name}
    return Case(
        lambda: _hf(f"{family}ForCausalLM", f"{family}Config", num_key_value_heads=1,
                    head_dim=8, pad_token_id=0, **sizes),
        _tokens, _llama_start, _llama_blocks,
        lambda model, y: model.lm_head(model.model.norm(y)), lambda out: out.logits,
    )  # fmt: skip


def _pixels() -> dict:
    return {"pixel_values": torch.randn(B, 3, 32, 32)}


def _hf_vit_start(model, pixel_values):
    return model.vit.embeddings(pixel_values)


def _hf_vit_blocks(model, x_0, pixel_values):
    return [
        [
            (b.layernorm_before, lambda h, b=b: b.attention(h)[0]),
            (b.layernorm_after, b.mlp),
        ]
        for b in model.vit.layers
    ]


HF = {
    "hf-bert": Case(
        lambda: _hf("BertModel", "BertConfig", **SIZES), _tokens, _bert_start, _bert_blocks,
        lambda model, y: y, lambda out: out.last_hidden_state, post=True,
    ),
    "hf-roberta": Case(
        lambda: _hf("RobertaModel", "RobertaConfig", **SIZES), _tokens, _bert_start, _bert_blocks,
        lambda model, y: y, lambda out: out.last_hidden_state, post=True,
    ),
    "hf-distilbert": Case(
        lambda: _hf("DistilBertModel", "DistilBertConfig", vocab_size=50, dim=D, n_layers=3,
                    n_heads=2, hidden_dim=24, dropout=0.0, attention_dropout=0.0),
        _tokens, _bert_start, _distilbert_blocks,
        lambda model, y: y, lambda out: out.last_hidden_state, post=True,
    ),
    "hf-vit": Case(
        lambda: _hf("ViTForImageClassification", "ViTConfig", image_size=32, patch_size=16,
                    **{name: size for name, size in SIZES.items() if name != "vocab_size"}),
        _pixels, _hf_vit_start, _hf_vit_blocks,
        lambda model, y: model.classifier(model.vit.layernorm(y)[:, 0]), lambda out: out.logits,
    ),
    "hf-gpt2": Case(
        lambda: _hf("GPT2LMHeadModel", "GPT2Config", vocab_size=50, n_embd=D, n_layer=3, n_head=2,
                    n_positions=32, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                    bos_token_id=1, eos_token_id=2, pad_token_id=0),
        _tokens, _gpt2_start, _gpt2_blocks,
        lambda model, y: model.lm_head(model.transformer.ln_f(y)), lambda out: out.logits,
    ),
    **{f"hf-{family.lower()}": _llama(family) for family in ("Llama", "Mistral", "Qwen2", "Qwen3")},
}  # fmt: skip
