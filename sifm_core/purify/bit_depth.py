"""Fewer levels per channel."""

from __future__ import annotations

from ..types import Image


def purify(image: Image, bits: float) -> Image:
    """Each value rounded to the nearest of 2 to the power ``bits`` evenly spaced levels."""
    top = 2 ** round(bits) - 1
    return (image * top).round() / top
