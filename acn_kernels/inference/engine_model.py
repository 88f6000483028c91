"""Which live models the C++ engine runs, and the engine that follows a model through changes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from acn_kernels import _extension
from acn_kernels.blocks import Attention, MixerBlock, Mlp, TransformerBlock
from acn_kernels.hooks import has_hooks
from acn_kernels.inference.engine import Engine
from acn_kernels.models import Mixer, ViT
from acn_kernels.models.vit import sincos_2d
from acn_kernels.stack import FusedACNStack
from acn_kernels.validation import under_autocast

_DTYPES = (torch.float32, torch.bfloat16)
_EPS = 1e-5
_MODULES = {
    Attention, FusedACNStack, Mixer, MixerBlock, Mlp, TransformerBlock, ViT,
    nn.Conv2d, nn.GELU, nn.LayerNorm, nn.Linear,
}  # fmt: skip


def obstacle_to_engine_of(model: nn.Module) -> str | None:
    """Why the engine does not run ``model``; None where it does."""
    if type(model) not in (ViT, Mixer):
        return f"the model is a {type(model).__name__}; it takes a ViT or a Mixer"
    if model.pooled_head is None:
        return "the head is no plain Linear layer behind the mean of the rows"
    stack = model.blocks
    if type(stack) is not FusedACNStack or not _is_plain(model):
        return "the wiring is not plain: one alpha, no scales, blocks as layers"
    for name, module in model.named_modules():
        what = f"{name or 'the model'}, a {type(module).__name__},"
        if type(module) not in _MODULES:
            return f"{what} is not known to it"
        if has_hooks(module):
            return f"{what} has hooks"
        if isinstance(module, nn.GELU) and module.approximate != "none":
            return f"{what} approximates"
        if isinstance(module, nn.LayerNorm) and module.eps != _EPS:
            return f"{what} has eps {module.eps}"
    if model.config.depth != len(stack):
        return f"the configuration has {model.config.depth} layers, the stack {len(stack)}"
    return _obstacle_in_tensors(model) or _obstacle_in_positions(model)


def _is_plain(model: ViT | Mixer) -> bool:
    """What may be set on the stack between two calls."""
    stack = model.blocks
    rows = "first" if getattr(model.config, "pool", None) == "first" else None
    return (
        isinstance(stack.alpha, float)
        and stack.scales is None
        and stack.include_input
        and stack.granularity == "block"
        and (stack.rows is None if rows is None else stack.rows == rows)
    )


def _obstacle_in_tensors(model: ViT | Mixer) -> str | None:
    with torch.device("meta"):
        twin = type(model)(model.config)
    expected = {name: tensor.shape for name, tensor in twin.state_dict().items()}
    tensors = model.state_dict(keep_vars=True)
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        return "its tensors are not those that its configuration makes"
    for name, tensor in tensors.items():
        if type(tensor) not in (nn.Parameter, Tensor):
            return f"{name} is a {type(tensor).__name__}"
        if tensor.device.type != "cpu" or tensor.dtype not in _DTYPES:
            return f"{name} is {tensor.dtype} on {tensor.device}"
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        return "its tensors are of several dtypes"
    return None


def _obstacle_in_positions(model: ViT | Mixer) -> str | None:
    if type(model) is Mixer:
        return None
    config = model.config
    own = sincos_2d(config.image_size // config.patch_size, config.width)
    same = torch.equal(model.positions, own.to(model.positions))
    return None if same else "the positions are not the sines and cosines that it computes"


class LiveEngine:
    """An engine of ``model``, and whether it still is that: modules and parameters may have been
    replaced, hooks added, options set."""

    def __init__(self, model: ViT | Mixer) -> None:
        """Raises ValueError where the engine does not run the model."""
        self.engine = Engine.from_model(model)
        self._model, self._alpha = model, model.blocks.alpha
        self._held = list(_held_by(model))
        self._modules = [model, *(x for _, _, x in self._held if isinstance(x, nn.Module))]
        tensors = (x for _, _, x in self._held if isinstance(x, Tensor))
        self._places = [(x, x.data_ptr()) for x in tensors]

    def is_current(self) -> bool:
        """Whether the model is what the engine was made of, values of tensors aside."""
        return (
            all(owner.get(name) is x for owner, name, x in self._held)
            and all(x.data_ptr() == place for x, place in self._places)
            and not any(map(has_hooks, self._modules))
            and len(self._model.blocks) == self._model.config.depth
            and self._model.pooled_head is not None
            and self._model.blocks.alpha == self._alpha
            and _is_plain(self._model)
        )


def _held_by(module: nn.Module) -> Iterator[tuple[dict, str, object]]:
    """Everything in the module, as (owner, name, what): children, parameters and buffers."""
    for owner in (module._parameters, module._buffers, module._modules):
        for name, x in owner.items():
            if x is not None:
                yield owner, name, x
            if isinstance(x, nn.Module):
                yield from _held_by(x)


def obstacle_to_engine(model: nn.Module, images: Tensor) -> str | None:
    """Why a call with ``images`` does not go to the engine, the model aside; None where it may."""
    if _extension.module() is None:
        return f"the compiled extension is {_extension.state()}"
    if model.blocks.backend not in ("auto", "native"):
        return f"backend is {model.blocks.backend!r}"
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return "the operations are being traced or watched"
    if type(images) is not Tensor or images.device.type != "cpu" or under_autocast(images):
        return "the images are no plain tensor on the CPU, or autocast is on"
    if images.dtype not in _DTYPES or images.dtype != model.stem.weight.dtype:
        return f"the images are {images.dtype}; it takes fp32 or bf16, the model's"
    return None
