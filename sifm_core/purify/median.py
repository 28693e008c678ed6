"""Median filter."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image as Pil
from PIL import ImageFilter

from ..images import from_uint8, to_uint8
from ..types import Image


def purify(image: Image, side: float) -> Image:
    """Each 8-bit channel's median over a square window; its side is rounded to an odd number of pixels."""
    window = ImageFilter.MedianFilter(2 * round((side - 1) / 2) + 1)
    return torch.cat([from_uint8(np.asarray(Pil.fromarray(to_uint8(one)).filter(window))) for one in image]).to(image)
