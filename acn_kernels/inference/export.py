"""Writing a model for the C++ runtime: a folder that ``acn_infer`` and the engine load."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from acn_kernels.inference.engine_model import obstacle_to_engine_of
from acn_kernels.inference.engine_text import is_bert, text_config
from acn_kernels.inference.programs import (
    compile_parts,
    compile_segments,
    compile_text_segments,
    exported_whole,
)
from acn_kernels.models import Model
from acn_kernels.models.base import write_model
from acn_kernels.validation import check_depth

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export(
    model: Model | nn.Module,
    folder: str | os.PathLike,
    depth: int | None = None,
    dtype: str = "fp32",
    aot_exits: Sequence[int] | None = None,
    example: Tensor | None = None,
) -> None:
    """Writes ``model`` into ``folder``: ``config.json`` and ``model.safetensors``, or programs.

    A ViT, a Mixer, or an ACN BERT for classification, of any one alpha, is written as weights,
    which the engine has the blocks for. Any other model with ``embed(inputs)``, ``blocks`` (a
    FusedACNStack without scales) and ``forward_head(y)`` is compiled as a whole where
    ``aot_exits`` is given: ``stem.pt2``, segments and ``head.pt2``, beside ``config.json``.
    An export that was in ``folder`` before stands until all is written and compiled.

    Args:
        depth: layers to keep; None is all.
        dtype: "fp32" or "bf16", in which the runtime then computes.
        aot_exits: also compiles the layers between these depths, the input and the output by
            AOTInductor, into ``segment-BEGIN-END.pt2`` each (needs a C++ compiler; seconds each).
            An engine that loads them runs them where it stops at those depths.
        example: inputs [B, ...] as ``model.embed`` takes them, for what is compiled as a whole and
            no :class:`~acn_kernels.models.ImageClassifier`.

    Raises:
        TypeError, ValueError: an argument is not what is accepted, or the runtime does not run
            the model.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it takes one of {', '.join(DTYPES)}")
    folder = Path(folder)
    if is_bert(model):
        return _export_bert(model, folder, depth, dtype, aot_exits)
    layers = len(model.blocks) if hasattr(model, "blocks") else 0
    if depth is not None:
        layers = check_depth(depth, layers, True)
    if isinstance(model, Model):
        model = model.truncate(layers)
    model = copy.deepcopy(model).to("cpu", DTYPES[dtype]).eval()
    obstacle = obstacle_to_engine_of(model)
    if obstacle and aot_exits is None:
        raise ValueError(
            f"the engine does not run this model: {obstacle}; with aot_exits it is compiled"
        )
    stops = _stops(aot_exits, layers)
    if not obstacle and example is not None:
        raise ValueError("example is given; this model's blocks are the engine's own, without one")
    if obstacle:
        return compile_parts(model, folder, stops, example)
    with exported_whole(folder) as parts:
        model.save_pretrained(parts)
        compile_segments(model, parts, stops)


def _stops(aot_exits: Sequence[int] | None, layers: int) -> list[int]:
    """The depths at which compiled segments begin and end; none where nothing is compiled."""
    if aot_exits is None:
        return []
    return sorted({0, *(check_depth(k, layers, True, "aot_exits") for k in aot_exits), layers})


def _export_bert(model, folder, depth, dtype, aot_exits) -> None:
    layers = check_depth(depth, len(model.blocks), True)
    stops = _stops(aot_exits, layers)
    model = copy.deepcopy(model.truncate(layers)).to("cpu", DTYPES[dtype]).eval()
    obstacle = obstacle_to_engine_of(model)
    if obstacle:
        raise ValueError(f"the engine does not run this model: {obstacle}")
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with exported_whole(folder) as parts:
        write_model(parts, weights, text_config(model))
        compile_text_segments(model, parts, stops)
