"""The sizes that experiments come in: smoke (seconds), small (minutes on a CPU), medium (hours),
brief (the paper's Mixer and data for fewer epochs: minutes on a GPU), paper."""

from __future__ import annotations

from typing import Any

from acn_kernels.training.trainer import Recipe
from benchmarks.paper.spec import Data, Training
from benchmarks.paper.text_models import BERT

_MIXER = {
    "smoke": ("acn_mixer_digits", {"depth": 4, "width": 16, "token_mlp": 8, "channel_mlp": 24}),
    "small": (
        "acn_mixer_patch4_cifar",
        {"patch_size": 8, "width": 64, "depth": 8, "token_mlp": 32, "channel_mlp": 256},
    ),
    "medium": (
        "acn_mixer_patch4_cifar",
        {"width": 64, "depth": 8, "token_mlp": 32, "channel_mlp": 256},
    ),
    # Hidden 128, patch 4, channel MLP 512, token MLP 64, 16 layers.
    "brief": ("acn_mixer_patch4_cifar", {}),
    "paper": ("acn_mixer_patch4_cifar", {}),
}
_VIT = {
    "smoke": ("acn_vit_digits", {"depth": 4, "width": 16, "heads": 2, "mlp_width": 24}),
    "small": (
        "acn_vit_tiny_patch4_cifar",
        {"patch_size": 8, "width": 64, "depth": 8, "heads": 4, "mlp_width": 256},
    ),
    "brief": ("acn_vit_tiny_patch4_cifar", {}),
    "paper": ("acn_vit_tiny_patch4_cifar", {}),
}
_WORDS = {"smoke": 18, "small": 4000, "paper": 12_000}
_BERT = {
    "smoke": (BERT, {"num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 2,
                     "intermediate_size": 24, "vocab_size": _WORDS["smoke"]}),
    "small": (BERT, {"num_hidden_layers": 6, "hidden_size": 64, "num_attention_heads": 4,
                     "intermediate_size": 256, "vocab_size": _WORDS["small"]}),
    # BERT-base but for its vocabulary.
    "paper": (BERT, {"vocab_size": _WORDS["paper"]}),
}  # fmt: skip
_FAMILIES = {"mixer": _MIXER, "vit": _VIT, "bert": _BERT}
CIFAR = {
    "smoke": Data("digits", train=320, test=200),
    "small": Data("cifar10", train=2000, test=1000),
    "medium": Data("cifar10", train=10_000, test=5000),
    "brief": Data("cifar10"),
    "paper": Data("cifar10"),
}
SST2 = {
    "smoke": Data("digits", train=320, test=200, tokens=64, words=_WORDS["smoke"]),
    "small": Data("sst2", train=2000, tokens=24, words=_WORDS["small"]),
    "paper": Data("sst2", tokens=64, words=_WORDS["paper"]),
}
# Images that networks of the small preset are soon sure of; with their shape in a Mixer.
FASHION = {"small": Data("fashion", train=4000, test=2000), "paper": Data("fashion")}
_FASHION_PATCH = {"small": 7, "paper": 4}
# Epochs enough to learn the images by heart, were they always the same. The paper does not say what
# it does; its 90 % and more are not to be had without.
_ALTERED = ("medium", "brief", "paper")
_BATCH = {"smoke": 64, "small": 64, "medium": 64, "brief": 256, "paper": 64}
_LR = {"smoke": 3e-3, "small": 2e-3, "medium": 2e-3, "brief": 2e-3, "paper": 1e-3}
_HALF = ("brief",)  # forward passes in bfloat16


def training(
    preset: str,
    wiring: str,
    epochs: dict[str, int],
    *,
    data: Data | None = None,
    family: str = "mixer",
    loss: str = "final",
    watch: bool = False,
    track: bool = False,
    batch: dict[str, int] | None = None,
    lr: dict[str, float] | None = None,
    altered: bool | None = None,
    **changes: Any,
) -> Training:
    """A network of this wiring under the preset; ``epochs``, ``batch`` and ``lr`` are by preset.
    ``altered``: None is what the preset does with images."""
    name, sized = _FAMILIES[family][preset]
    size = (batch or {}).get(preset, _BATCH[preset])
    recipe = Recipe(epochs[preset], size, (lr or _LR)[preset])
    changes = {**sized, "wiring": wiring, **changes}
    pairs = tuple(sorted(changes.items()))
    own = SST2 if family == "bert" else CIFAR
    if altered is None:
        altered = own is CIFAR and preset in _ALTERED
    return Training(
        data or own[preset], name, pairs, recipe, loss,
        watch=watch, track=track, altered=altered, half=preset in _HALF,
    )  # fmt: skip


def twins(preset: str, epochs: dict[str, dict[str, int]], **options: Any) -> dict[str, Training]:
    """The "residual" network and the "ACN"; ``epochs``: of each by preset, ``options`` as above."""
    wirings = {"residual": "residual", "ACN": "acn"}
    return {name: training(preset, wirings[name], epochs[name], **options) for name in epochs}


def fashion_shape(preset: str) -> dict[str, int]:
    """The changes to a CIFAR Mixer that make it read Fashion-MNIST."""
    return {"channels": 1, "image_size": 28, "patch_size": _FASHION_PATCH[preset]}


def layers(preset: str, family: str = "mixer") -> int:
    """L, of the networks of the preset."""
    if preset in ("brief", "paper"):
        return 16 if family == "mixer" else 12
    return {"smoke": 4, "small": 8, "medium": 8}[preset]
