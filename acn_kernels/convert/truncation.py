"""A converted model cut to its first blocks: the ordinary model of that depth."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from acn_kernels.convert.block import ConvertedBlock
from acn_kernels.convert.conversion import chains
from acn_kernels.sharding import shallow_copy
from acn_kernels.validation import check_depth

M = TypeVar("M", bound=nn.Module)


def truncate_converted(model: M, k: int) -> M:
    """The model with the first k blocks of its one list, which stay the model's own: weights and
    alpha are shared.

    The depth that a Hugging Face configuration names becomes k, in a copy that its modules share as
    they did: the result is saved, loaded and converted again like any other model. What
    torch.compile wrapped is in it without the wrapper.

    Raises:
        TypeError, ValueError: k is not an integer from 1 to the depth, or the model has several
            lists of blocks.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if any(isinstance(child, ConvertedBlock) for child in module._modules.values())
    ]
    if len(found) != 1 or len(chains(model)) != 1:
        raise ValueError(f"model has {len(found)} lists of converted blocks; it takes one with one")
    ((name, blocks),) = found
    check_depth(k, len(blocks), True, "k", least=1, optional=False)
    return _with(model, name.split(".") if name else [], blocks[:k], k, {})


def _with(
    module: nn.Module, path: list[str], new: nn.Module, k: int, configs: dict[int, object]
) -> nn.Module:
    """A copy of ``module`` with another module at ``path``; all else is shared. ``configs``: by id,
    what configurations have become."""
    if not path:
        return new
    if path[0] == "_orig_mod":  # a wrapper of torch.compile, which would go on calling the whole
        return _with(module._modules[path[0]], path[1:], new, k, configs)
    short = shallow_copy(module)
    short._modules[path[0]] = _with(module._modules[path[0]], path[1:], new, k, configs)
    config = getattr(short, "config", None)
    if hasattr(config, "num_hidden_layers"):
        if id(config) not in configs:
            configs[id(config)] = _of_depth(config, k)
        short.config = configs[id(config)]
    if isinstance(short, nn.TransformerEncoder):
        short.num_layers = k
    return short


def _of_depth(config, k: int):
    short = copy.copy(config)
    short.num_hidden_layers = k
    if getattr(config, "layer_types", None):
        short.layer_types = config.layer_types[:k]
    return short
