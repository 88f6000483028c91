"""torchvision whose compiled operators belong to another torch: their schemas suffice."""

from __future__ import annotations

import torch

_SCHEMAS = tuple(
    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")
)
_library = torch.library.Library("torchvision", "FRAGMENT")


def define_torchvision_schemas() -> None:
    """What an import of torchvision, by timm or by transformers, asks torch for; nothing where it
    brings that itself: a second definition ends the process."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:  # operator torchvision::nms does not exist
        for schema in _SCHEMAS:
            if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
                _library.define(schema)
