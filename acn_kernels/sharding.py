"""Models whose parameters lie on several processes (FSDP, tensor parallelism)."""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType

from torch import Tensor, distributed, nn


def is_fsdp(model: nn.Module) -> bool:
    """Whether FSDP shards ``model`` over several processes, which then have to run its layers
    together: each waits for the others' part of the next layer's weights."""
    if not distributed.is_available() or not distributed.is_initialized():
        return False
    if distributed.get_world_size() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    return any(isinstance(m, (FSDPModule, FullyShardedDataParallel)) for m in model.modules())


def refuse_exits_when_sharded(exits: Sequence[int]) -> None:
    """ValueError where there are exits for a model of which :func:`is_fsdp` is true."""
    if exits:
        raise ValueError(
            f"exits is {exits} and FSDP shards the model: its processes gather each "
            "layer's weights together, so one whose samples leave earlier would leave the "
            "others waiting for ever; it takes no exits (cut the model instead), or a model "
            "that is whole in every process"
        )


def gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """``tensors`` whole and contiguous, for this process to write.

    Where some are sharded every process calls this, and it is None on all but the first.
    """
    sharded = any(map(_is_sharded, tensors.values()))
    whole = {name: _whole(tensor.detach()).contiguous() for name, tensor in tensors.items()}
    return None if sharded and distributed.get_rank() != 0 else whole


def _is_sharded(tensor: Tensor) -> bool:
    return type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "full_tensor")


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if _is_sharded(tensor) else tensor


def shallow_copy(module: nn.Module) -> nn.Module:
    """A module with the same parameters, hooks and children, in a dictionary of its own for these.

    copy.copy would call the constructor of a module that FSDP took over. What would go on calling
    ``module`` itself is left out: its compiled call, and a ``forward`` in the place of the class's,
    as accelerate leaves one behind; where that is a method, it is bound to the copy.
    """
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin._modules = dict(module._modules)
    twin.__dict__.pop("_compiled_call_impl", None)
    forward = twin.__dict__.pop("forward", None)
    if getattr(forward, "__self__", None) is module:
        twin.forward = MethodType(forward.__func__, twin)
    return twin
