"""AdverseCleaner (github.com/lllyasviel/AdverseCleaner): many bilateral passes, then guided filters; no network."""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Image

RADIUS, COLOUR, SPACE = 2, 8.0, 8.0
"""Bilateral filter: window of 5 pixels, deviations in levels of 255 and in pixels."""
GUIDED, BOX, RIDGE = 4, 4, 16.0
"""Guided filter: passes, radius in pixels, regularisation in squared levels."""


def purify(image: Image, passes: float) -> Image:
    """``passes`` bilateral filters, then four guided ones that bring back the edges of ``image``; 0 passes: as it was.

    The operations, order and borders of OpenCV's ``bilateralFilter(d=5)`` and ``guidedFilter(radius=4)`` on 0 to 255.
    """
    if round(passes) == 0:
        return image
    guide = 255 * image
    smooth = guide
    for _ in range(round(passes)):
        smooth = _bilateral(smooth)
    for _ in range(GUIDED):
        smooth = _guided(guide, smooth)
    return (smooth / 255).clamp(0, 1)


def _bilateral(x: Tensor) -> Tensor:
    """Mean of the disc around each pixel, weighted by distance and by the sum of the channels' differences."""
    height, width = x.shape[-2:]
    padded = F.pad(x, [RADIUS] * 4, mode="reflect")
    total, weights = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    for dy, dx in product(range(-RADIUS, RADIUS + 1), repeat=2):
        if dy * dy + dx * dx <= RADIUS * RADIUS:
            near = padded[..., RADIUS + dy : RADIUS + dy + height, RADIUS + dx : RADIUS + dx + width]
            colour = (near - x).abs().sum(1, keepdim=True) / COLOUR
            weight = torch.exp(-0.5 * (colour**2 + (dy * dy + dx * dx) / SPACE**2))
            total, weights = total + weight * near, weights + weight
    return total / weights


def _guided(guide: Tensor, x: Tensor) -> Tensor:
    """Each channel as a local linear function of the guide's three (He et al. 2013, TPAMI 35(6), section 3.5)."""
    mean_guide, mean_x = _box(guide), _box(x)
    pairs = guide[:, :, None] * guide[:, None]
    covariance = _box(pairs.flatten(1, 2)).unflatten(1, (3, 3)) - mean_guide[:, :, None] * mean_guide[:, None]
    shared = _box((guide[:, :, None] * x[:, None]).flatten(1, 2)).unflatten(1, (3, 3))
    shared = shared - mean_guide[:, :, None] * mean_x[:, None]
    ridge = RIDGE * torch.eye(3, dtype=x.dtype, device=x.device)
    slope = torch.linalg.solve(covariance.permute(0, 3, 4, 1, 2) + ridge, shared.permute(0, 3, 4, 1, 2))
    slope = slope.permute(0, 3, 4, 1, 2)
    offset = mean_x - (slope * mean_guide[:, :, None]).sum(1)
    smooth = _box(slope.flatten(1, 2)).unflatten(1, (3, 3))
    return (smooth * guide[:, :, None]).sum(1) + _box(offset)


def _box(x: Tensor) -> Tensor:
    """Mean over the square of side 2 BOX + 1; the border is mirrored, edge pixel included, as OpenCV does here."""
    for axis in (-1, -2):
        n = x.shape[axis]
        index = torch.arange(-BOX, n + BOX, device=x.device)
        index = torch.where(index < 0, -1 - index, torch.where(index >= n, 2 * n - 1 - index, index))
        total = x.index_select(axis, index).double().cumsum(axis)
        upper = total.narrow(axis, 2 * BOX, n)
        lower = F.pad(total, (1, 0) if axis == -1 else (0, 0, 1, 0)).narrow(axis, 0, n)
        x = ((upper - lower) / (2 * BOX + 1)).to(x)
    return x
