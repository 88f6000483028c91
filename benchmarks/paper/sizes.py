"""The three sizes that experiments come in: smoke (seconds), small (minutes on a CPU), paper."""

from __future__ import annotations

from typing import Any

from acn_kernels.training.trainer import Recipe
from benchmarks.paper.spec import Data, Training

_MIXER = {
    "smoke": ("acn_mixer_digits", {"depth": 4, "width": 16, "token_mlp": 8, "channel_mlp": 24}),
    "small": (
        "acn_mixer_patch4_cifar",
        {"patch_size": 8, "width": 64, "depth": 8, "token_mlp": 32, "channel_mlp": 256},
    ),
    # Hidden 128, patch 4, channel MLP 512, token MLP 64, 16 layers.
    "paper": ("acn_mixer_patch4_cifar", {}),
}
_VIT = {
    "smoke": ("acn_vit_digits", {"depth": 4, "width": 16, "heads": 2, "mlp_width": 24}),
    "small": (
        "acn_vit_tiny_patch4_cifar",
        {"patch_size": 8, "width": 64, "depth": 8, "heads": 4, "mlp_width": 256},
    ),
    "paper": ("acn_vit_tiny_patch4_cifar", {}),
}
CIFAR = {
    "smoke": Data("digits", train=320, test=200),
    "small": Data("cifar10", train=2500, test=1000),
    "paper": Data("cifar10"),
}
_LR = {"smoke": 3e-3, "small": 2e-3, "paper": 1e-3}


def training(
    preset: str,
    wiring: str,
    epochs: dict[str, int],
    *,
    data: Data | None = None,
    family: str = "mixer",
    loss: str = "final",
    track: bool = False,
    batch: dict[str, int] | None = None,
    **changes: Any,
) -> Training:
    """A network of this wiring under the preset; ``epochs`` and ``batch`` are by preset."""
    name, sized = (_MIXER if family == "mixer" else _VIT)[preset]
    recipe = Recipe(epochs[preset], (batch or {}).get(preset, 64), _LR[preset])
    changes = {**sized, "wiring": wiring, **changes}
    pairs = tuple(sorted(changes.items()))
    return Training(data or CIFAR[preset], name, pairs, recipe, loss, track=track)


def layers(preset: str, family: str = "mixer") -> int:
    """L, of the networks of the preset."""
    return {"smoke": 4, "small": 8, "paper": 16 if family == "mixer" else 12}[preset]
