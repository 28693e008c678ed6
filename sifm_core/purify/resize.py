"""Downscaling and upscaling."""

from __future__ import annotations

from ..images import resize
from ..types import Image


def purify(image: Image, scale: float) -> Image:
    """To ``scale`` times the size and back, bicubic and antialiased."""
    height, width = image.shape[-2:]
    small = max(1, round(height * scale)), max(1, round(width * scale))
    return resize(resize(image, small), (height, width))
