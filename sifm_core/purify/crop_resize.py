"""Cropping and upscaling."""

from __future__ import annotations

from ..images import resize
from ..types import Image


def purify(image: Image, share: float) -> Image:
    """The central ``share`` of each side, bicubic back to full size (the usual 384 of 512 is 0.75)."""
    height, width = image.shape[-2:]
    h, w = max(1, round(height * share)), max(1, round(width * share))
    top, left = (height - h) // 2, (width - w) // 2
    return resize(image[..., top : top + h, left : left + w], (height, width))
