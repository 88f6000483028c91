"""What all models share: a stem, a stack of blocks wired in one of three ways, and a head."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from acn_kernels.blocks import DenseFormerStack, DenseNetStack, FeedForwardStack, HybridStack
from acn_kernels.files import written_whole
from acn_kernels.hooks import is_plain_linear
from acn_kernels.models.stored import check_stored, stored_in
from acn_kernels.models.timm_surface import TimmSurface, make_head
from acn_kernels.sharding import gathered, shallow_copy
from acn_kernels.stack import FusedACNStack
from acn_kernels.validation import check_size

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WIRINGS = (
    "acn", "residual", "feedforward", "hybrid", "dg_only", "densenet", "denseformer",
)  # fmt: skip


def wire(
    blocks: Sequence[nn.Module],
    norm: nn.Module | None,
    wiring: str,
    *,
    family: type[FusedACNStack] = FusedACNStack,
    alpha: float | None = None,
    takes: Sequence[str] = WIRINGS,
    **options,
) -> FusedACNStack:
    """The blocks as an ACN, as its residual or feed-forward twin, or as the hybrid of both; as the
    ACN that trains on the direct gradient alone, or wired as in DenseNet or DenseFormer.

    Args:
        family: the stack whose ends, at alpha 1 and 0, are the ACN and the residual network.
        alpha: None is 1 for "acn" and 0 for "residual".
        takes: those of WIRINGS that the blocks can have.
        options: further arguments of the stack.

    Raises:
        ValueError: ``wiring`` is none of ``takes``.
    """
    if wiring not in takes:
        raise ValueError(f"wiring is {wiring!r}; it takes one of {', '.join(takes)}")
    if wiring == "feedforward":
        return FeedForwardStack(blocks, norm, **options)
    if wiring == "hybrid":
        return HybridStack(blocks, norm, **{**options, "scales": "learned"})
    if wiring == "denseformer":
        return DenseFormerStack(blocks, norm, **options)
    if wiring == "densenet":
        return DenseNetStack(blocks, norm, width=norm.normalized_shape[-1], **options)
    if wiring == "dg_only":
        return FusedACNStack(blocks, norm, direct_gradient_only=True, **options)
    if alpha is None:
        alpha = _alpha_of(wiring)
    return family(blocks, norm, alpha=alpha, **options)


def write_model(folder: str | os.PathLike, weights: dict[str, Tensor], config: dict) -> None:
    """Weights and configuration into ``folder``, each whole or not.

    A model that was there before loses its configuration first: interrupted, the folder is refused
    when it is loaded, and never holds the weights of one model with the wiring of another.
    """
    folder = Path(folder)
    with written_whole(folder / WEIGHTS_FILE) as path:
        save_file(weights, path)
        (folder / CONFIG_FILE).unlink(missing_ok=True)
    with written_whole(folder / CONFIG_FILE) as path:
        path.write_text(json.dumps(config, indent=2) + "\n")


# Names that PyTorch's wrappers put before a part.
_WRAPPERS = {"_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod"}


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def check_loaded_alike(blocks: FusedACNStack, loaded: FusedACNStack) -> None:
    """Raises ValueError where ``loaded``, of the configuration that would be saved, has another
    option than ``blocks``: weights alone would not make it the same network."""
    for name in ("granularity", "include_input", "rows", "direct_gradient_only"):
        given, expected = getattr(blocks, name), getattr(loaded, name)
        if given is not expected and given != expected:
            raise ValueError(f"blocks.{name} is {given!r}; it would be loaded as {expected!r}")
    if (blocks.norm is None) != (loaded.norm is None):
        raise ValueError(f"blocks.norm is {blocks.norm}; it would be loaded as {loaded.norm}")
    kind, expected = _kind_of(blocks.scales), _kind_of(loaded.scales)
    if kind != expected:
        raise ValueError(f"blocks.scales are {kind}; they would be loaded as {expected}")
    _check_parts_alike(blocks, loaded)


def _check_parts_alike(blocks: FusedACNStack, loaded: FusedACNStack) -> None:
    """The same of what the layers are made of: another activation, or another eps, has no weight
    that could tell."""
    given = {}  # what is wrapped comes after its wrapper
    for name, module in blocks.named_modules():
        given[_without_wrappers(name)] = module
    for name, expected in loaded.named_modules():
        module, kind = given.get(name), type(expected)
        if module is None or isinstance(expected, nn.Dropout) or any(expected.children()):
            continue
        # A subclass may have more to say of itself.
        alike = isinstance(module, kind) and kind.extra_repr(module) == expected.extra_repr()
        if not alike:
            raise ValueError(f"blocks.{name} is {module}; it would be loaded as {expected}")


def _check_weights_alike(weights: dict[str, Tensor], loaded: dict[str, Tensor]) -> None:
    """Raises ValueError where ``loaded`` would not find its own among ``weights``."""
    given, taken = ({name: tuple(x.shape) for name, x in w.items()} for w in (weights, loaded))
    for name in sorted({*given, *taken}):
        shape, expected = given.get(name), taken.get(name)
        if shape != expected:
            raise ValueError(
                f"{name} has shape {shape}; it could not be loaded again, where the configuration "
                f"makes it {expected}"
            )


def _kind_of(scales: Tensor | None) -> str:
    if scales is None:
        return "one"
    return "learned" if isinstance(scales, nn.Parameter) else "fixed"


def _alpha_of(wiring: str) -> float:
    return 0.0 if wiring == "residual" else 1.0


class Model(nn.Module):
    """A network with ``blocks``, a FusedACNStack, that can be cut, saved and loaded.

    Subclasses register under ``family`` and take one frozen dataclass, their ``config``.
    """

    families: ClassVar[dict[str, type[Model]]] = {}
    config_class: ClassVar[type]
    family: ClassVar[str]
    blocks: FusedACNStack

    def __init_subclass__(cls, family: str | None = None, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        if family is not None:
            cls.family = family
            Model.families[family] = cls

    def __init__(self, config) -> None:
        super().__init__()
        self.config = config

    def truncate(self, k: int) -> Model:
        """The ordinary model of the first k blocks, with the same head; weights are shared.

        Raises:
            TypeError, ValueError: k is not an integer in [0, depth].
        """
        short = shallow_copy(self)
        short.blocks = self.blocks.truncate(k)
        short.config = dataclasses.replace(self.config, depth=k)
        return short

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes ``config.json`` and ``model.safetensors`` into ``folder``, each whole or not.

        Every process of a sharded model calls this; the first one writes.

        Raises:
            ValueError: the final norm was pruned, an option of ``blocks`` changed, or a part, the
                head for one, replaced by another: no configuration says so, and another network
                would be loaded, or none.
        """
        if self.blocks.norm is None:
            raise ValueError("the model's final norm was pruned: it could not be loaded again")
        with torch.device("meta"):
            loaded = Model.families[self.family](self.config)
        check_loaded_alike(self.blocks, loaded.blocks)
        config = {"family": self.family, **dataclasses.asdict(self.config)}
        if self.blocks.alpha != _alpha_of(self.config.wiring):
            config["alpha"] = self.blocks.alpha
        # torch.compile leaves its name in the keys.
        named = {_without_wrappers(name): x for name, x in self.state_dict().items()}
        weights = gathered(named)
        if weights is None:
            return
        _check_weights_alike(weights, loaded.state_dict())
        write_model(folder, weights, config)

    @staticmethod
    def from_pretrained(folder: str | os.PathLike) -> Model:
        """The model that :meth:`save_pretrained` wrote into ``folder``, on the CPU, in fp32
        whatever its weights were saved in.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the configuration is not one of this package's models, or the weights do
                not belong to it.
        """
        folder = Path(folder)
        config = read_configuration(folder / CONFIG_FILE)
        family = config.pop("family", None)
        if not isinstance(family, str) or family not in Model.families:
            raise ValueError(
                f"{folder / CONFIG_FILE} names family {family!r}; "
                f"it takes one of {', '.join(Model.families)}"
            )
        cls, alpha = Model.families[family], config.pop("alpha", None)
        known = {field.name for field in dataclasses.fields(cls.config_class)}
        if set(config) != known:
            raise ValueError(
                f"{folder / CONFIG_FILE} differs from a {family} configuration in "
                f"{', '.join(sorted(set(config) ^ known))}"
            )
        stored = stored_in(folder / WEIGHTS_FILE)
        try:
            made = cls.config_class(**config)
            if made.depth > len(stored):  # or its layers would be made before they are missed
                raise ValueError(f"depth is {made.depth}; the weights are {len(stored)} tensors")
            with torch.device("meta"):
                empty = cls(made)
            if alpha is not None:
                empty.blocks.alpha = alpha
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG_FILE}: {error}") from error
        check_stored(folder / WEIGHTS_FILE, stored, empty.state_dict())
        model = cls(made)
        model.blocks.alpha = empty.blocks.alpha
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
        return model


def read_configuration(path: Path) -> dict:
    """What a ``config.json`` holds; ValueError, naming it, where that is no configuration."""
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}; it takes a configuration")
    return config


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """Image size and patches in pixels, width D and depth L of the stack, and its wiring; without
    a head where there are 0 classes.

    wiring: "acn", or one of the twins from the same blocks: "residual", "feedforward", "dg_only"
    (an ACN that trains on the direct gradient alone), "densenet" and "denseformer"; or "hybrid",
    long and short connections with a learned share each.
    """

    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    width: int = 192
    depth: int = 12
    classes: int = 1000
    wiring: str = "acn"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type == "int":
                least = 0 if field.name in ("depth", "classes") else 1
                check_size(field.name, getattr(self, field.name), least)

    @property
    def tokens(self) -> int:
        """T, the number of patches."""
        return (self.image_size // self.patch_size) ** 2


class ImageClassifier(TimmSurface, Model):
    """Patch stem, blocks, final norm on the sum, pooling, linear head (zero at first)."""

    def __init__(self, config: ImageConfig, blocks: Sequence[nn.Module]) -> None:
        super().__init__(config)
        if config.image_size % config.patch_size:
            raise ValueError(
                f"patch_size is {config.patch_size}; "
                f"it takes a divisor of the image size {config.image_size}"
            )
        patch, width = config.patch_size, config.width
        self.stem = nn.Conv2d(config.channels, width, patch, patch)
        self.blocks = wire(blocks, nn.LayerNorm(width), config.wiring)
        self.head = make_head(width, config.classes)
        fan_in = config.channels * patch * patch
        nn.init.trunc_normal_(self.stem.weight, std=fan_in**-0.5)  # LeCun normal
        nn.init.zeros_(self.stem.bias)

    def embed(self, images: Tensor) -> Tensor:
        """x_0 [B, T, D] of images [B, channels, size, size]."""
        self.check_images(images)
        return self.stem(images).flatten(2).transpose(1, 2)

    def check_images(self, images: Tensor) -> None:
        """Raises TypeError or ValueError unless ``images`` is a batch that the model takes."""
        size = self.config.image_size
        if not images.is_floating_point():
            raise TypeError(f"images is {images.dtype}; it takes floating point, as in training")
        if images.shape[1:] != (self.config.channels, size, size):
            raise ValueError(
                f"images has shape {tuple(images.shape)}; "
                f"it takes (batch, {self.config.channels}, {size}, {size})"
            )

    def forward_features(self, images: Tensor, depth: int | None = None) -> Tensor:
        """The normed sum y [B, T, D] (only the rows that the head reads)."""
        return self.blocks(self.embed(images), depth=depth)

    def forward_head(self, y: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [B, classes] of y [B, T, D]; the pooled features [B, D] with ``pre_logits``."""
        pooled = y.mean(1)
        return pooled if pre_logits else self.head(pooled)

    @property
    def pooled_head(self) -> nn.Linear | None:
        """The head, where :meth:`forward_head` is this linear map of the mean row and no more;
        None where a subclass, another module or a hook makes it something else."""
        own = getattr(self.forward_head, "__func__", None) is ImageClassifier.forward_head
        plain = own and is_plain_linear(self.head)
        return self.head if plain else None

    def forward(self, images: Tensor, depth: int | None = None) -> Tensor:
        """Logits [B, classes] of images [B, channels, size, size], from ``depth`` blocks."""
        return self.forward_head(self.forward_features(images, depth))

    @torch.no_grad()
    def logits_by_depth(self, images: Tensor) -> Tensor:
        """Logits [depth + 1, B, classes] of all sub-networks, which share the one head."""
        return torch.stack([self.forward_head(y) for y in self.forward_intermediates(images)])
