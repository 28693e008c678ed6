"""Core's lanczos scaling, Pillow's at 8 bits, with a gradient that passes the roundings straight through."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch
from torch import Tensor

from sifm_core.types import Image

_SUPPORT = 3.0
_BITS = 22
"""Pillow's weights are whole numbers of so many bits."""
_SMOOTH: ContextVar[bool] = ContextVar("smooth", default=False)


@contextmanager
def smooth() -> Iterator[None]:
    """Inside, nothing is rounded: finite differences would see the steps, which the gradient passes over."""
    token = _SMOOTH.set(True)
    try:
        yield
    finally:
        _SMOOTH.reset(token)


def center_scaled(x: Image, size: tuple[int, int]) -> Image:
    """``common_upscale(x, width, height, "lanczos", "center")`` of core, differentiable: ``size`` (height, width)."""
    height, width = x.shape[-2:]
    old, new = width / height, size[1] / size[0]
    left = round((width - width * (new / old)) / 2) if old > new else 0
    top = round((height - height * (old / new)) / 2) if old < new else 0
    return scaled(x[..., top : height - top, left : width - left], size)


def scaled(x: Image, size: tuple[int, int]) -> Image:
    """The same without the crop: ``common_upscale(x, width, height, "lanczos", "disabled")``."""
    levels = _through(255 * x, torch.floor)
    across = _through(levels @ _weights(x.shape[-1], size[1]).T.to(levels), _level)
    return _through(_weights(x.shape[-2], size[0]).to(across) @ across, _level) / 255


def _level(values: Tensor) -> Tensor:
    """The nearest of 0 to 255; halves go up, as in Pillow's integers."""
    return (values + 0.5).floor().clamp(0, 255)


def _through(values: Tensor, rounding: object) -> Tensor:
    """Rounded, with the gradient of what is not."""
    if _SMOOTH.get():
        return values
    return values + (rounding(values) - values).detach()  # type: ignore[operator]


@lru_cache(maxsize=16)
def _weights(old: int, new: int) -> Tensor:
    """(new, old): each new sample's share of the old ones, as Pillow's precompute_coeffs has them."""
    with torch.inference_mode(False):
        if old == new:
            return torch.eye(new)
        scale = old / new
        stretch = max(scale, 1.0)
        support = _SUPPORT * stretch
        weights = torch.zeros(new, old, dtype=torch.float64)
        for k in range(new):
            center = (k + 0.5) * scale
            low, high = max(0, int(center - support + 0.5)), min(old, int(center + support + 0.5))
            row = [_kernel((j - center + 0.5) / stretch) for j in range(low, high)]
            total = sum(row)
            weights[k, low:high] = torch.tensor([round(w / total * 2**_BITS) / 2**_BITS for w in row])
        return weights.float()


def _kernel(at: float) -> float:
    if at == 0:
        return 1.0
    if not -_SUPPORT <= at < _SUPPORT:
        return 0.0
    turn = math.pi * at
    return _SUPPORT * math.sin(turn) * math.sin(turn / _SUPPORT) / (turn * turn)
