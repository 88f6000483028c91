"""Early exit of a Mixer inside one kernel; all but large batches are replayed from CUDA graphs."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acn_kernels import functional
from acn_kernels.dispatch import in_forward_mode
from acn_kernels.hooks import has_hooks, hooks_on_all, is_plain_linear
from acn_kernels.kept import can_be_kept, stream_of
from acn_kernels.models import Mixer
from acn_kernels.norm_spec import NormSpec
from acn_kernels.repeated import Repeated
from acn_kernels.stack import FusedACNStack
from acn_kernels.validation import under_autocast
from acn_kernels.whole_stack import MixerLayers

_LARGEST = 512  # images: beyond, a batch takes longer to run than to launch
_STEP = 64  # of the sizes that larger batches are filled up to


class MixerExit:
    """Early exit of ``model`` inside one kernel, as long as it is made of the same."""

    def __init__(self, model: Mixer, layers: MixerLayers) -> None:
        self._model, self._layers = model, layers
        self._stack, self._head = model.blocks, model.head  # to look up a child takes its time
        self._obstacles: dict[tuple, str | None] = {}
        self._setting: tuple | None = None

    @classmethod
    def of(cls, models: Sequence[nn.Module]) -> MixerExit | str:
        """That of the one model, or in words why it has none."""
        (model,) = models
        stack, head = model.blocks, getattr(model, "head", None)
        if type(model) is not Mixer or type(stack) is not FusedACNStack:
            return f"the model is a {type(model).__name__} with a {type(stack).__name__}, no Mixer"
        if not is_plain_linear(head):
            return "the head is no plain Linear layer"
        if stack.alpha != 1 or stack.rows is not None or stack.granularity != "block":
            return "alpha is not 1, or rows or a granularity is set"
        if stack.norm is not None and NormSpec.of(stack.norm) is None:
            return f"the final norm is {stack.norm}, or has hooks"
        layers = MixerLayers.of(list(stack))
        return layers if isinstance(layers, str) else cls(model, layers)

    def obstacle(self, images: Tensor) -> str | None:
        """Why the kernel does not run for these images; None where it does and, with backend
        "auto", is the faster way."""
        if self._model.training:
            return "the model is in training mode"
        if hooks_on_all():
            return "hooks wait for all modules"
        # All else that may change while the model is made of the same.
        autocast, forward_mode = under_autocast(images), in_forward_mode()
        kind = images.dtype, images.device, autocast, forward_mode
        if kind not in self._obstacles:
            self._obstacles[kind] = self._obstacle_to_kind(images)
        return self._obstacles[kind]

    def _obstacle_to_kind(self, images: Tensor) -> str | None:
        config, dtype, backend = self._model.config, self._head.weight.dtype, self._stack.backend
        if dtype != images.dtype:
            return f"the head is {dtype}, its input {images.dtype}"
        if backend != "triton":
            if backend != "auto" or not images.is_cuda:
                return f"backend is {backend!r} on {images.device.type}"
            if images.dtype == torch.float32:
                return "fp32 products are faster in PyTorch's own kernels"
        if under_autocast(images):
            return "autocast is on, and rounds between the layers' own operations"
        # Of what the stem makes of the images, only the kind counts.
        return self._layers.obstacle(images.new_empty(0, config.tokens, config.width))

    def __call__(
        self, images: Tensor, exits: tuple[int, ...], threshold: float
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, classes] and depth [B] of images [B, channels, size, size]."""
        setting = exits, threshold, images.device
        if setting != self._setting:
            # On the device once: building it anew copies from the host, and waits for the device.
            mask = [int(k in exits) for k in range(len(self._stack) + 1)]
            mask = torch.tensor(mask, dtype=torch.int32, device=images.device)
            self._step = functools.partial(_decided, self._model, self._layers, mask, threshold)
            self._repeated, self._setting = Repeated(self._step), setting
        batch = len(images)
        if not 0 < batch <= _LARGEST or not _replays(images):
            return self._step(images)
        fill = _recorded_size(batch) - batch
        if not fill:
            return self._repeated(stream_of(images), images)
        # With an image that is there: another might run longer than all of them.
        images = torch.cat([images, images[-1:].expand(fill, -1, -1, -1)])
        logits, depth = self._repeated(stream_of(images), images)
        return logits[:batch], depth[:batch]


def _recorded_size(batch: int) -> int:
    """Few sizes are ever recorded: powers of two, and multiples of the last of them."""
    return 1 << (batch - 1).bit_length() if batch <= _STEP else -(-batch // _STEP) * _STEP


def _replays(images: Tensor) -> bool:
    return images.is_cuda and can_be_kept(images)


def _decided(
    model: Mixer, layers: MixerLayers, exits: Tensor, threshold: float, images: Tensor
) -> tuple[Tensor, Tensor]:
    stack, head, scales = model.blocks, model.head, model.blocks.scales
    if scales is not None and not stack.include_input:
        scales = torch.cat([scales.new_zeros(1), scales])  # the kernel does not read it
    logits, depth, _ = functional.mixer_exit(
        _embedded(model, images), layers.parameters(recorded=False), exits, threshold,
        head.weight, head.bias, NormSpec.of(stack.norm), scales, stack.include_input,
    )  # fmt: skip
    return logits, depth


def _embedded(model: Mixer, images: Tensor) -> Tensor:
    """model.embed(images). Of patches that do not overlap it is one product, to whose result no
    convolution's layout has to be changed back: half of all that lies before the layers."""
    stem, patch = model.stem, model.config.patch_size
    if "embed" in vars(model) or not _is_product_of_patches(stem, patch):
        return model.embed(images)
    model.check_images(images)
    patches = images.unfold(2, patch, patch).unfold(3, patch, patch)  # [B, C, side, side, p, p]
    rows = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return F.linear(rows, stem.weight.flatten(1), stem.bias)


def _is_product_of_patches(stem: nn.Module, patch: int) -> bool:
    plain = type(stem) is nn.Conv2d and not has_hooks(stem) and type(stem.weight) is nn.Parameter
    return (
        plain
        and stem.kernel_size == stem.stride == (patch, patch)
        and stem.padding == (0, 0)
        and stem.dilation == (1, 1)
        and stem.groups == 1
    )
