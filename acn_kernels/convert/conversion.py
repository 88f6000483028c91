"""convert: a residual transformer or Mixer becomes its ACN twin, every parameter where it was."""

from __future__ import annotations

import copy
from collections import Counter
from typing import NamedTuple, TypeVar

from torch import nn

from acn_kernels.convert.adapters import PreNorm
from acn_kernels.convert.block import ConvertedBlock, converted_class
from acn_kernels.convert.chain import Chain
from acn_kernels.convert.encoder import ConvertedEncoder
from acn_kernels.convert.registry import adapter_of, known
from acn_kernels.convert.stack import ConvertedStack
from acn_kernels.hooks import has_hooks
from acn_kernels.known_residual import residual_class
from acn_kernels.stack import FusedACNStack
from acn_kernels.validation import check_alpha, check_flag, check_granularity

M = TypeVar("M", bound=nn.Module)


class _List(NamedTuple):
    """A module list with blocks in it: its name in the model, itself, its blocks in order."""

    name: str
    module: nn.ModuleList | nn.Sequential
    blocks: list[nn.Module]


def convert(
    model: M, alpha: float = 0.0, granularity: str = "block", *, inplace: bool = False
) -> M:
    """The ACN twin of a residual model, with the same state-dict keys.

    Between the twins lies alpha: ``u_i = alpha x_{i-1} + (1-alpha) y_{i-1}``, ``x_i = f_i(u_i)``,
    ``y_i = y_{i-1} + x_i``. At alpha = 0 the model computes what it did before; at alpha = 1 it is
    the ACN of arXiv 2506.09714, and its weights, which were trained for another network, must be
    trained. Post-norm blocks: ``x_i = norm_i(f_i(x_{i-1}) + (1-alpha) x_{i-1})``, output
    ``x_L + alpha (x_0 + .. + x_{L-1})``. A model converted before gets the new alpha and
    granularity.

    Args:
        model: any module with ``nn.ModuleList`` or ``nn.Sequential`` of known blocks in it, timm's,
            transformers' or torch.nn's, or registered by ``acn.convert.register``.
        alpha: in [0, 1]; :func:`acn_kernels.anneal` moves it during training.
        granularity: "block", the paper's, or "sublayer": attention and MLP are layers of their own.
        inplace: True changes ``model`` itself. The result is to be used in any case: where the
            model is an ``nn.Sequential`` of blocks, it is another object.

    Raises:
        TypeError, ValueError: naming the argument, or the block that cannot be converted; nothing
            has been changed then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it takes an nn.Module")
    alpha = check_alpha(alpha)
    check_granularity(granularity, ())
    check_flag("inplace", inplace)
    if not inplace:
        model = copy.deepcopy(model)
    converted = chains(model)
    lists = _lists(model)
    for chain in converted:
        chain.alpha, chain.granularity = alpha, granularity
    for found in lists:
        chain = Chain(alpha, granularity)
        for block in found.blocks:
            block.__class__ = converted_class(ConvertedBlock, type(block))
        # Those that an earlier call converted are of this chain too.
        for i, block in enumerate(filter(_is_converted, found.module)):
            block._acn_chain, block._acn_first = chain, i == 0
        if _is_called_as_one(found):
            model = _replace(model, found.module, ConvertedStack(found.module, chain))
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and not isinstance(module, ConvertedEncoder):
            module.__class__ = converted_class(ConvertedEncoder, type(module))
    return model


def chains(model: nn.Module) -> list[Chain]:
    """The chains of a converted model's lists of blocks."""
    blocks = filter(_is_converted, model.modules())
    return list({id(block._acn_chain): block._acn_chain for block in blocks}.values())


def _lists(model: nn.Module) -> list[_List]:
    """The lists of blocks to be converted, checked."""
    lists: list[_List] = []
    listed: dict[int, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            blocks = [child for child in module._modules.values() if _is_known(child)]
            elsewhere = next((listed[id(block)] for block in blocks if id(block) in listed), None)
            if elsewhere is not None:
                raise ValueError(
                    f"{name or 'model'} holds a block of {elsewhere or 'model'}; acn.convert takes "
                    "a model that holds each block in one list"
                )
            if blocks:
                lists.append(_List(name, module, blocks))
                listed.update(dict.fromkeys(map(id, blocks), name))
    if not lists and not chains(model):
        raise ValueError(_nothing_known(model))
    for name, module in model.named_modules():
        if _is_known(module) and id(module) not in listed:
            raise ValueError(
                f"{name or 'model'} is a {type(module).__name__} outside of any nn.ModuleList or "
                "nn.Sequential; acn.convert takes a model with its blocks in such a list"
            )
        converted = _is_converted(module) or _is_known(module)
        if not converted and residual_class(module) is not None:
            raise ValueError(
                f"{name} is a {_full_name(type(module))}, which adds its own input to its output "
                f"and has no adapter. {_how_to_register(type(module))} or convert the part of the "
                f"model without it. Known blocks:\n{known()}"
            )
    for found in lists:
        _check_blocks(found)
    return lists


def _check_blocks(found: _List) -> None:
    for name, block in zip(_names(found), found.blocks, strict=True):
        adapter = adapter_of(type(block))
        adapter = adapter if hasattr(adapter, "norms_of") else adapter(block)
        reason = adapter.refuses(block)
        if reason is not None:
            raise ValueError(f"{name} ({type(block).__name__}) cannot be converted: {reason}")
        if "forward" in vars(block):
            raise ValueError(
                f"{name} ({type(block).__name__}) has a forward in the place of its class's, as "
                "accelerate's hooks put it there; acn.convert takes a model before that"
            )
        try:
            adapter.norms_of(block)
        except AttributeError as error:
            raise ValueError(f"the adapter of {name} does not fit: {error}") from error
    if len({id(block) for block in found.blocks}) < len(found.blocks):
        raise ValueError(f"{found.name or 'model'} holds the same block twice")


def _names(found: _List) -> list[str]:
    prefix = f"{found.name}." if found.name else ""
    return [f"{prefix}{key}" for key, child in found.module._modules.items() if _is_known(child)]


def _is_known(module: nn.Module) -> bool:
    return not _is_converted(module) and adapter_of(type(module)) is not None


def _is_converted(module: nn.Module) -> bool:
    return isinstance(module, ConvertedBlock)


def _is_called_as_one(found: _List) -> bool:
    """Whether a FusedACNStack computes what this list does when its model calls it."""
    module, keys = found.module, list(found.module._modules)
    plain = type(module) is nn.Sequential and not has_hooks(module)
    whole = len(keys) == len(found.blocks) and keys == [str(i) for i in range(len(keys))]
    return plain and whole and all(isinstance(b.acn_adapter, PreNorm) for b in found.blocks)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """``new`` in the place of ``old``, wherever that is; returns the model."""
    new.train(old.training)
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new
    return new if model is old else model


def _nothing_known(model: nn.Module) -> str:
    for name, module in model.named_modules():
        if isinstance(module, FusedACNStack):
            return (
                f"{name or 'model'} is a {type(module).__name__}, an ACN already: its alpha may be "
                "set, and acn.anneal moves it; acn.convert takes a residual model"
            )
    counts: Counter[type] = Counter()
    for module in model.modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            counts.update(type(child) for child in module._modules.values())
    repeated = [cls for cls, count in counts.most_common() if count > 1][:5]
    seen = ", ".join(map(_full_name, repeated)) or "none"
    return (
        f"model, a {_full_name(type(model))}, holds no residual block that acn.convert knows; its "
        f"lists repeat: {seen}. {_how_to_register(repeated[0] if repeated else None)}. Known "
        f"blocks:\n{known()}"
    )


def _how_to_register(cls: type | None) -> str:
    name = "MyBlock" if cls is None else cls.__name__
    return (
        f'Add one by acn.convert.register({name}, acn.convert.PreNorm(norms=("norm1", "norm2"), '
        "branches=(lambda block, h: block.attn(h), lambda block, h: block.mlp(h)))) with its own "
        "names, PostNorm for blocks that norm after the addition; see docs/convert.md"
    )


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
