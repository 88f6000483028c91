"""Writing a model for the C++ runtime: a folder that ``acn_infer`` and the engine load."""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from acn_kernels.files import written_whole
from acn_kernels.inference.engine_model import obstacle_to_engine_of
from acn_kernels.inference.engine_text import is_bert, text_config
from acn_kernels.inference.program import batch_program
from acn_kernels.models import ImageClassifier, Model
from acn_kernels.models.base import CONFIG_FILE, WEIGHTS_FILE
from acn_kernels.stack import FusedACNStack
from acn_kernels.validation import check_depth

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FAMILIES = ("vit", "mixer")
WIRINGS = ("acn", "residual", "dg_only")


def export(
    model: Model | nn.Module,
    folder: str | os.PathLike,
    depth: int | None = None,
    dtype: str = "fp32",
    aot_exits: Sequence[int] | None = None,
) -> None:
    """Writes ``config.json`` and ``model.safetensors`` of ``model`` into ``folder``.

    ``model`` is a ViT or Mixer, or an ACN BERT for classification, of any one alpha.

    Args:
        depth: layers to keep; None is all.
        dtype: "fp32" or "bf16", in which the runtime then computes.
        aot_exits: also compiles the layers between these depths, the input and the output by
            AOTInductor, into ``segment-BEGIN-END.pt2`` each (needs a C++ compiler; seconds each).
            An engine that loads them runs them where it stops at those depths. Images only.

    Raises:
        TypeError, ValueError: an argument is not what is accepted, or the runtime does not run
            the model.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it takes one of {', '.join(DTYPES)}")
    if is_bert(model):
        return _export_bert(model, Path(folder), depth, dtype, aot_exits)
    family, wiring = getattr(model, "family", None), getattr(model.config, "wiring", None)
    if family not in FAMILIES or wiring not in WIRINGS:
        raise ValueError(
            f"the model is of family {family!r}, wiring {wiring!r}; the runtime takes "
            f"{', '.join(FAMILIES)} and bert, wired as one of {', '.join(WIRINGS)}"
        )
    if not isinstance(model.blocks.alpha, float):
        raise ValueError(f"alpha is {model.blocks.alpha}; the runtime takes one for all layers")
    if depth is not None:
        model = model.truncate(depth)
    model = copy.deepcopy(model).to("cpu", DTYPES[dtype]).eval()
    layers, stops = len(model.blocks), []
    if aot_exits is not None:
        stops = sorted({0, *(check_depth(k, layers, True, "aot_exits") for k in aot_exits), layers})
    folder = Path(folder)
    for stale in folder.glob("segment-*.pt2"):
        stale.unlink()
    model.save_pretrained(folder)
    for begin, end in itertools.pairwise(stops):
        _compile(model, begin, end, folder / f"segment-{begin}-{end}.pt2")


def _export_bert(model, folder, depth, dtype, aot_exits) -> None:
    if aot_exits is not None:
        raise ValueError(f"aot_exits is {aot_exits!r}; of a BERT no layers are compiled")
    model = model if depth is None else model.truncate(depth)
    obstacle = obstacle_to_engine_of(model)
    if obstacle:
        raise ValueError(f"the engine does not run this model: {obstacle}")
    config = text_config(model)
    weights = {
        name: tensor.detach().to("cpu", DTYPES[dtype]).contiguous()
        for name, tensor in model.state_dict().items()
    }
    with written_whole(folder / WEIGHTS_FILE) as path:
        save_file(weights, path)
    with written_whole(folder / CONFIG_FILE) as path:
        path.write_text(json.dumps(config, indent=2) + "\n")


class _Segment(nn.Module):
    """(x, y) at ``end`` from (x, y) at ``begin``, or from x alone where nothing is summed yet."""

    def __init__(self, stack: FusedACNStack, begin: int, end: int) -> None:
        super().__init__()
        self.stack, self.begin, self.end = stack, begin, end

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = None if y is None else y.clone()  # advance works in place
        return self.stack.advance(x, y, start=self.begin, stop=self.end)


@torch.no_grad()
def _compile(model: ImageClassifier, begin: int, end: int, path: Path) -> None:
    config = model.config
    images = torch.zeros(2, config.channels, config.image_size, config.image_size)
    x = model.embed(images.to(model.head.weight.dtype)).contiguous()
    state = (x,)
    if begin:
        state = model.blocks.advance(x, stop=begin)
    program = batch_program(
        _Segment(model.blocks, begin, end), [tensor.contiguous() for tensor in state]
    )
    with written_whole(path) as temporary:
        torch._inductor.aoti_compile_and_package(program, package_path=str(temporary))
