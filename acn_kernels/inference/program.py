"""A model as one graph for other runtimes: torch.export, and ONNX from it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from acn_kernels.files import written_whole
from acn_kernels.models import ImageClassifier
from acn_kernels.modes import in_eval_mode

_LARGEST_BATCH = 1 << 20
_LARGEST_ONNX = 2 << 30  # bytes that fit into one file


def batch_program(
    module: nn.Module,
    inputs: Sequence[Tensor],
    others: Sequence[Mapping[int, torch.export.Dim]] | None = None,
) -> torch.export.ExportedProgram:
    """``module`` on tensors like ``inputs``, whose first axis is a batch of any size; ``others``
    has for each of them the further axes that vary, if any do."""
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    axes = [{0: batch, **more} for more in others or [{}] * len(inputs)]
    return torch.export.export(module, tuple(inputs), dynamic_shapes=tuple(axes))


@torch.no_grad()
def exported_program(
    model: ImageClassifier, depth: int | None = None
) -> torch.export.ExportedProgram:
    """Images [B, channels, size, size] to logits [B, classes] for any B, as torch.export's graph.

    Args:
        model: of any wiring; the graph is that of inference, in the model's dtype and device.
        depth: the layers that the graph runs; None is all.

    Raises:
        TypeError, ValueError: an argument is not what is accepted.
    """
    if not isinstance(model, ImageClassifier):
        raise TypeError(f"model is a {type(model).__name__}; it takes an ImageClassifier")
    model = model if depth is None else model.truncate(depth)
    weight, config = model.head.weight, model.config
    # Two of them: a batch of one would be taken for a constant.
    shape = (2, config.channels, config.image_size, config.image_size)
    with in_eval_mode(model):
        return batch_program(model, [weight.new_zeros(shape)])


def export_onnx(model: ImageClassifier, path: str | os.PathLike, depth: int | None = None) -> None:
    """Writes the first ``depth`` layers of ``model`` (None: all) as an ONNX file, whole or not.

    Its input "images" and output "logits" take a batch of any size.

    Raises:
        TypeError, ValueError: an argument is not what is accepted, or the weights exceed 2 GiB.
        ModuleNotFoundError: onnxscript (extra "onnx") is not installed.
    """
    import onnxscript  # noqa: F401  torch's exporter needs it and says so less plainly

    program = exported_program(model, depth)
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size >= _LARGEST_ONNX:
        raise ValueError(f"the model's weights are {size} bytes; an ONNX file holds 2 GiB")
    converted = torch.onnx.export(
        program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
    )
    with written_whole(path) as temporary:
        converted.save(temporary)
