"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Image


def psnr(reference: Image, distorted: Image) -> Tensor:
    """10 log10(1 / mean squared difference over all RGB values), in dB: (B, 3, H, W) twice -> (B,); inf when equal."""
    return -10 * torch.log10((reference - distorted).double().square().mean(dim=(1, 2, 3)))
