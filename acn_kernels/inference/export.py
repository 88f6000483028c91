"""Writing a model for the C++ runtime: a folder that ``acn_infer`` and the engine load."""

from __future__ import annotations

import copy
import os

import torch

from acn_kernels.models import Model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FAMILIES = ("vit", "mixer")


def export(
    model: Model, folder: str | os.PathLike, depth: int | None = None, dtype: str = "fp32"
) -> None:
    """Writes ``config.json`` and ``model.safetensors`` of ``model`` into ``folder``.

    Args:
        depth: layers to keep; None is all.
        dtype: "fp32" or "bf16", in which the runtime then computes.

    Raises:
        TypeError, ValueError: an argument is not what is accepted, or the runtime does not run
            the model: it takes the families vit and mixer, wired as ACNs.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it takes one of {', '.join(DTYPES)}")
    family, wiring = getattr(model, "family", None), getattr(model.config, "wiring", None)
    if family not in FAMILIES or wiring != "acn":
        raise ValueError(
            f"the model is of family {family!r}, wiring {wiring!r}; the runtime takes "
            f"{' and '.join(FAMILIES)}, wired 'acn'"
        )
    if depth is not None:
        model = model.truncate(depth)
    copy.deepcopy(model).to(DTYPES[dtype]).save_pretrained(folder)
