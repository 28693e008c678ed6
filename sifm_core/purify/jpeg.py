"""JPEG compression."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image as Pil

from ..images import from_uint8, to_uint8
from ..types import Image


def purify(image: Image, quality: float) -> Image:
    """Through an 8-bit JPEG file of that quality, 1 to 100, chroma at half resolution: what websites do."""
    return torch.cat([_through_file(one, round(quality)) for one in image]).to(image)


def _through_file(image: Image, quality: int) -> Image:
    file = io.BytesIO()
    Pil.fromarray(to_uint8(image)).save(file, "JPEG", quality=quality)
    return from_uint8(np.asarray(Pil.open(file)))
