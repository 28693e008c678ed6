"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from ..images import bands
from ..types import Image


def psnr(reference: Image, distorted: Image) -> Tensor:
    """10 log10(1 / mean squared difference over all RGB values), in dB: (B, 3, H, W) twice -> (B,); inf when equal."""
    squares = torch.zeros(len(reference), dtype=torch.float64, device=reference.device)
    for rows in bands(reference):
        squares += (reference[..., rows, :] - distorted[..., rows, :]).double().square().sum(dim=(1, 2, 3))
    return -10 * torch.log10(squares / reference[0].numel())
