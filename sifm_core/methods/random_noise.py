"""The control: random signs at the same eps, which any method must beat to claim that its direction matters.

Noise that is new in every pixel is mostly removed by an editor's encoder; blocks survive it and are the harder control.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from ..noise import Seed, generators
from ..types import Image
from . import configured

PROVENANCE = "our own control, of no paper"

_BLOCK = {"pixel": 1, "block4": 4, "block8": 8, "block16": 16}


@configured
def perturb(
    x: Image,
    *,
    eps: float,
    seed: Seed = 0,
    pattern: Annotated[
        Literal["pixel", "block4", "block8", "block16"], "how far a sign reaches: one pixel, or squares of 4, 8 or 16"
    ] = "pixel",
) -> Image:
    """``x`` (B, 3, H, W) plus or minus ``eps`` by a random sign per channel and pixel or square, clipped to [0, 1]."""
    k = _BLOCK[pattern]
    height, width = x.shape[-2:]
    noisy = x.clone()
    for image, generator in zip(noisy, generators(seed, len(x)), strict=True):
        for channel in image:  # drawn one by one: a large picture's signs need more room than it does
            negative = torch.rand(-(-height // k), -(-width // k), generator=generator) < 0.5
            steps = torch.where(negative, -eps, eps).to(x)
            channel += steps.repeat_interleave(k, dim=0)[:height].repeat_interleave(k, dim=1)[:, :width]
    return noisy.clamp_(0, 1)
