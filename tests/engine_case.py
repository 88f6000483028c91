"""Small networks for the engine, and what every way of leaving early has to give for them."""

from __future__ import annotations

import torch
from torch import nn

from acn_kernels import Engine
from acn_kernels.models import create

EXITS = [1, 2, 3]
DEPTH = 4
KINDS = {
    "mixer": ("acn_mixer_digits", {}),
    "closing mixer": ("acn_mixer_digits", {"closing": True}),
    "vit": ("acn_vit_digits", {}),
    "class token": ("acn_vit_digits", {"pool": "first"}),
    "many classes": ("acn_vit_digits", {"classes": 1000}),
    "odd tokens": ("acn_mixer_digits", {"image_size": 6}),
    "odd tokens of a vit": ("acn_vit_digits", {"image_size": 10}),
    "residual mixer": ("acn_mixer_digits", {"wiring": "residual"}),
    "residual closing mixer": ("acn_mixer_digits", {"closing": True, "wiring": "residual"}),
    "residual class token": ("acn_vit_digits", {"pool": "first", "wiring": "residual"}),
    "mixer between": ("acn_mixer_digits", {"alpha": 0.3}),
    "class token between": ("acn_vit_digits", {"pool": "first", "alpha": 0.6}),
    "direct gradient": ("acn_vit_digits", {"wiring": "dg_only"}),
}


def network_of(kind: str):
    """Weights large enough that the samples differ in how sure the head is of them."""
    name, changes = KINDS[kind]
    fields = {field: value for field, value in changes.items() if field != "alpha"}
    network = create(name, depth=DEPTH, **fields)
    network.blocks.alpha = changes.get("alpha", network.blocks.alpha)
    with torch.no_grad():
        for parameter in network.blocks.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    nn.init.normal_(network.head.weight, std=0.5)
    return network.eval()


def images_for(network, batch: int) -> torch.Tensor:
    size = network.config.image_size
    return torch.randn(batch, network.config.channels, size, size)


def certainty(logits, criterion):
    p = logits.double().softmax(-1)
    if criterion == "entropy":
        return -(p * p.log()).sum(-1)
    first, second = p.sort(-1, descending=True).values[..., :2].unbind(-1)
    return first - second if criterion == "margin" else first


def clear_threshold(values) -> float:
    """Of certainties [exits, B]: above some and below others of the first exit, so that samples
    leave at different depths, and in the widest gap there: rounding decides no exit."""
    first, quarter = values[0].sort().values, values.shape[1] // 4
    if quarter == 0:
        return 0.5
    low, high = first[quarter - 1], first[-quarter]
    inside = values.flatten().sort().values
    inside = inside[(inside >= low) & (inside <= high)]
    widest = inside.diff().argmax()
    return inside[widest : widest + 2].mean().item()


def plain_loop(by_depth, criterion, threshold):
    """Sample by sample, from the logits of every depth."""
    depths = []
    for i in range(by_depth.shape[1]):
        for k in (*EXITS, DEPTH):
            value = certainty(by_depth[k, i], criterion)
            if k == DEPTH or (value < threshold if criterion == "entropy" else value > threshold):
                depths.append(k)
                break
    depths = torch.tensor(depths, dtype=torch.long)
    return by_depth[depths, torch.arange(len(depths))], depths


def check_nan_in_a_bias(network, bias: str) -> None:
    images = images_for(network, 3).to(network.head.weight)
    with torch.no_grad():
        getattr(network.blocks[1].token_mlp, bias).bias[2] = torch.nan
    engine = Engine.from_model(network)
    assert not engine(images, depth=1).logits.isnan().any()
    assert engine(images, depth=2).logits.isnan().all()
