"""Gaussian blur."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..types import Image


def purify(image: Image, deviation: float) -> Image:
    """Gaussian blur of that standard deviation in pixels, cut off at four of them; the border is mirrored."""
    reach = min(round(4 * deviation), min(image.shape[-2:]) - 1)
    if reach < 1:
        return image
    offsets = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    kernel = torch.softmax(-(offsets**2) / (2 * deviation**2), dim=0)
    weight = kernel.expand(3, 1, 1, -1)
    rows = F.conv2d(F.pad(image, (reach, reach, 0, 0), mode="reflect"), weight, groups=3)
    return F.conv2d(F.pad(rows, (0, 0, reach, reach), mode="reflect"), weight.transpose(-1, -2), groups=3)
