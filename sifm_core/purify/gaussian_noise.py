"""Additive Gaussian noise."""

from __future__ import annotations

from ..noise import Seed, normal
from ..types import Image


def purify(image: Image, deviation: float, *, seed: Seed = 0) -> Image:
    """Plus independent normal noise of that standard deviation, clipped to [0, 1]."""
    return (image + deviation * normal(image.shape, seed).to(image)).clamp(0, 1)
