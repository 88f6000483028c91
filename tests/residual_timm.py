"""timm's residual models, small."""

from __future__ import annotations

import torch
from residual_case import B, Case, D
from timm_models import import_timm
from torch import nn


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
