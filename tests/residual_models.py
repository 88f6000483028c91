"""Small residual models of the libraries that acn.convert knows, and each one's plain loop.

A case takes its model apart by hand: the input x_0 of the blocks, the sublayers (norm, f) of every
block, and what follows the blocks. ``loop`` puts them together again by the equations, for any
alpha; at alpha = 0 it has to be the library's own model, which is checked first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from timm_models import import_timm
from torch import Tensor, nn

B, T, D = 2, 5, 16
Sublayer = tuple[nn.Module, Callable[[Tensor], Tensor]]


def import_transformers():
    import_timm()  # it, too, looks at torchvision
    return pytest.importorskip("transformers")


class Case(NamedTuple):
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict]
    start: Callable[..., Tensor]  # (model, **inputs) -> x_0
    blocks: Callable[..., list[list[Sublayer]]]  # (model, x_0, **inputs)
    finish: Callable[[nn.Module, Tensor], Tensor]  # (model, y) -> what ``output`` picks
    output: Callable = lambda result: result
    post: bool = False


def loop(case: Case, model: nn.Module, inputs: dict, alpha: float, granularity: str) -> Tensor:
    """The network of DESIGN's equations from the parts of a residual one."""
    x = case.start(model, **inputs)
    blocks = case.blocks(model, x, **inputs)
    network = post_norm_network if case.post else pre_norm_network
    return case.finish(model, network(blocks, x, alpha, granularity)[-1])


def pre_norm_network(blocks, x, alpha, granularity) -> list[Tensor]:
    """[y_0, .. y_L]"""
    y, sums = x, [x]
    for block in blocks:
        if granularity == "sublayer":
            for norm, f in block:
                x = f(norm(alpha * x + (1 - alpha) * y))
                y = y + x
        else:
            (norm1, f1), (norm2, f2) = block
            u = alpha * x + (1 - alpha) * y
            h = f1(norm1(u))
            x = f2(norm2(h + (1 - alpha) * u)) + (1 - alpha) * h
            y = y + x
        sums.append(y)
    return sums


def post_norm_network(blocks, x, alpha, granularity) -> list[Tensor]:
    """[x_0, .. x_L + alpha sum_{i<L} x_i]"""
    terms, outputs = [], [x]
    for block in blocks:
        terms.append(x)
        for k, (norm, f) in enumerate(block):
            if k and granularity == "sublayer":
                terms.append(x)
            x = norm(f(x) + (1 - alpha) * x)
        outputs.append(x + alpha * sum(terms))
    return outputs


# timm


def _timm(name: str, **options) -> nn.Module:
    return import_timm().create_model(name, num_classes=3, img_size=32, depth=3, **options)


def _images() -> dict:
    return {"x": torch.randn(B, 3, 32, 32)}


def _timm_vit_start(model, x):
    return model.norm_pre(model._pos_embed(model.patch_embed(x)))


def _timm_vit_blocks(model, x_0, x):
    return [
        [(b.norm1, lambda h, b=b: b.ls1(b.attn(h))), (b.norm2, lambda h, b=b: b.ls2(b.mlp(h)))]
        for b in model.blocks
    ]


def _eva_start(model, x):
    return model._pos_embed(model.patch_embed(x))[0]


def _eva_blocks(model, x_0, x):
    rope = model.rope.get_embed(shape=(2, 2)).to(x_0.dtype)
    return [
        [(b.norm1, lambda h, b=b: b.attn(h, rope=rope)), (b.norm2, b.mlp)] for b in model.blocks
    ]


def _eva_finish(model, y):
    return model.head(model.fc_norm(model.norm(y)[:, 1:].mean(1)))


def _beit_start(model, x):
    x = model.patch_embed(x)
    return torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1)


def _beit_blocks(model, x_0, x):
    return [
        [
            (b.norm1, lambda h, b=b: b.gamma_1 * b.attn(h)),
            (b.norm2, lambda h, b=b: b.gamma_2 * b.mlp(h)),
        ]
        for b in model.blocks
    ]


def _res_post_blocks(model, x_0, x):
    same = nn.Identity()
    return [
        [
            (same, lambda h, b=b: b.norm1(b.attn(h))),
            (same, lambda h, b=b: b.norm2(b.mlp(h))),
        ]
        for b in model.blocks
    ]


def _timm_finish(model, y):
    return model.forward_head(model.norm(y))


def _mixer_blocks(model, x_0, x):
    return [
        [
            (b.norm1, lambda h, b=b: b.mlp_tokens(h.transpose(1, 2)).transpose(1, 2)),
            (b.norm2, b.mlp_channels),
        ]
        for b in model.blocks
    ]


def _resmlp_blocks(model, x_0, x):
    return [
        [
            (b.norm1, lambda h, b=b: b.ls1 * b.linear_tokens(h.transpose(1, 2)).transpose(1, 2)),
            (b.norm2, lambda h, b=b: b.ls2 * b.mlp_channels(h)),
        ]
        for b in model.blocks
    ]


def _res_post_vit() -> nn.Module:
    import_timm()
    from timm.models.vision_transformer import ResPostBlock

    return _timm("vit_tiny_patch16_224", embed_dim=D, num_heads=2, block_fn=ResPostBlock)


def _mixer(**options) -> nn.Module:
    import_timm()
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes=3, img_size=32, num_blocks=3, embed_dim=D, **options)


def _resmlp() -> nn.Module:
    import_timm()
    from timm.models.mlp_mixer import Affine, ResBlock

    return _mixer(block_layer=ResBlock, norm_layer=Affine, mlp_ratio=4)


def _stem(model, x):
    return model.stem(x)


TIMM = {
    "timm-vit": Case(
        lambda: _timm("vit_tiny_patch16_224", embed_dim=D, num_heads=2, init_values=0.7),
        _images, _timm_vit_start, _timm_vit_blocks, _timm_finish,
    ),
    "timm-vit-average": Case(
        lambda: _timm("vit_tiny_patch16_224", embed_dim=D, num_heads=2, class_token=False,
                      global_pool="avg", qk_norm=True),
        _images, _timm_vit_start, _timm_vit_blocks, _timm_finish,
    ),
    "timm-vit-res-post": Case(
        _res_post_vit, _images, _timm_vit_start, _res_post_blocks, _timm_finish
    ),
    "timm-eva": Case(
        lambda: _timm("eva02_tiny_patch14_224", patch_size=16, embed_dim=D, num_heads=2,
                      mlp_ratio=2),
        _images, _eva_start, _eva_blocks, _eva_finish,
    ),
    "timm-beit": Case(
        lambda: _timm("beit_base_patch16_224", embed_dim=D, num_heads=2),
        _images, _beit_start, _beit_blocks, _eva_finish,
    ),
    "timm-relpos": Case(
        lambda: _timm("vit_relpos_small_patch16_224", embed_dim=D, num_heads=2, init_values=0.7),
        _images, lambda model, x: model.patch_embed(x), _timm_vit_blocks,
        lambda model, y: model.head(model.fc_norm(model.norm(y).mean(1))),
    ),
    "timm-mixer": Case(
        _mixer, _images, _stem, _mixer_blocks, _timm_finish,
    ),
    "timm-resmlp": Case(
        _resmlp, _images, _stem, _resmlp_blocks, _timm_finish,
    ),
}  # fmt: skip


# torch.nn


def _encoder(norm_first: bool, batch_first: bool = True) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        D, 2, 24, dropout=0.0, norm_first=norm_first, batch_first=batch_first, activation="gelu"
    )
    return nn.TransformerEncoder(layer, 3, nn.LayerNorm(D), enable_nested_tensor=not norm_first)


def _sequence() -> dict:
    return {"src": torch.randn(B, T, D)}


def _padded_sequence() -> dict:
    lengths = torch.tensor([[T], [3]])
    return {**_sequence(), "src_key_padding_mask": torch.arange(T).expand(B, T) >= lengths}


def _causal_sequence() -> dict:
    mask = nn.Transformer.generate_square_subsequent_mask(T)
    return {"src": torch.randn(T, B, D), "mask": mask, "is_causal": True}


def _encoder_blocks(model, x_0, src, mask=None, src_key_padding_mask=None, is_causal=False):
    def attention(layer, h):
        if src_key_padding_mask is not None:
            mine = torch.zeros(h.shape[:2], dtype=h.dtype)
            mine.masked_fill_(src_key_padding_mask, -torch.inf)
        else:
            mine = None
        attn_mask = None if mask is None else mask.to(h.dtype)
        return layer.self_attn(h, h, h, attn_mask=attn_mask, key_padding_mask=mine)[0]

    def mlp(layer, h):
        return layer.linear2(nn.functional.gelu(layer.linear1(h)))

    return [
        [
            (layer.norm1, functools.partial(attention, layer)),
            (layer.norm2, functools.partial(mlp, layer)),
        ]
        for layer in model.layers
    ]


def _src(model, src, **others):
    return src


def _norm(model, y):
    return model.norm(y)


TORCH = {
    "torch-pre-norm": Case(lambda: _encoder(True), _sequence, _src, _encoder_blocks, _norm),
    "torch-post-norm": Case(
        lambda: _encoder(False), _sequence, _src, _encoder_blocks, _norm, post=True
    ),
    "torch-pre-norm-padded": Case(
        lambda: _encoder(True), _padded_sequence, _src, _encoder_blocks, _norm
    ),
    "torch-post-norm-padded": Case(
        lambda: _encoder(False), _padded_sequence, _src, _encoder_blocks, _norm, post=True
    ),
    "torch-pre-norm-causal": Case(
        lambda: _encoder(True, False), _causal_sequence, _src, _encoder_blocks, _norm
    ),
}


# Hugging Face transformers

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

CASES = {**TIMM, **TORCH, **HF}


def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[Case, nn.Module, dict]:
    """The case, its model with random weights that all matter, and random inputs."""
    case = CASES[name]
    model = case.build().to(dtype)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # some have no option for it
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 0.5, 0.4)
    inputs = {
        key: value.to(dtype) if value.is_floating_point() and "mask" not in key else value
        for key, value in case.inputs().items()
        if isinstance(value, Tensor)
    }
    flags = {key: v for key, v in case.inputs().items() if not isinstance(v, Tensor)}
    return case, model, {**inputs, **flags}
