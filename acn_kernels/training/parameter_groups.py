"""What weight decay applies to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def decayed_apart(
    model: nn.Module, weight_decay: float, further: Iterable[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """An optimiser's groups: all parameters and ``further`` ones, and those that the model says
    decay is to leave alone, if it has any."""
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    named = list(model.named_parameters())
    decayed = [parameter for name, parameter in named if name not in spared]
    groups = [{"params": [*decayed, *further], "weight_decay": weight_decay}]
    if spared:
        kept = [parameter for name, parameter in named if name in spared]
        groups.append({"params": kept, "weight_decay": 0.0})
    return groups
