"""torch.nn.TransformerEncoder, small, with and without masks."""

from __future__ import annotations

import functools

import torch
from residual_case import B, Case, D, T
from torch import nn


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
