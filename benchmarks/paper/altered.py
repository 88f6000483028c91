"""Images altered by chance: a network that sees the same ones many times learns more from them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_MOST = 4  # pixels, as is usual for CIFAR-10 (Lee et al., arXiv 1409.5185, and many since)


def mirrored_and_shifted(images: Tensor) -> Tensor:
    """Images [N, C, H, W], each mirrored left to right or not, and shifted by up to 4 pixels in
    both directions; what comes in at an edge is the reflection of the image."""
    count, channels, height, width = images.shape
    device = images.device
    mirror = torch.rand(count, 1, 1, 1, device=device) < 0.5
    wide = F.pad(torch.where(mirror, images.flip(-1), images), 4 * (_MOST,), mode="reflect")
    down, right = torch.randint(2 * _MOST + 1, (2, count, 1), device=device)
    rows = (down + torch.arange(height, device=device))[:, None, :, None]
    columns = (right + torch.arange(width, device=device))[:, None, None, :]
    sample = torch.arange(count, device=device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, -1, 1, 1)
    return wide[sample, channel, rows, columns]
