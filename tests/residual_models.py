"""All residual models that tests convert, and random weights and inputs for them."""

from __future__ import annotations

import torch
from residual_case import Case
from residual_hf import HF
from residual_timm import TIMM
from residual_torch import TORCH
from torch import Tensor, nn

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
