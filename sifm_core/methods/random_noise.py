"""The control: random signs at the same eps, which any method must beat to claim that its direction matters.

Noise that is new in every pixel is mostly removed by an editor's encoder; blocks survive it and are the harder control.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from ..noise import Seed, uniform
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
    draw = uniform((len(x), 3, -(-height // k), -(-width // k)), seed)
    signs = torch.where(draw < 0, -1.0, 1.0).repeat_interleave(k, dim=2).repeat_interleave(k, dim=3)
    return (x + eps * signs[:, :, :height, :width].to(x)).clamp(0, 1)
