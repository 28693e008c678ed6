"""What may happen to a picture on its way to the editor, differentiable: perturbations made through it survive it.

Expectation over transformation ("Synthesizing Robust Adversarial Examples", Athalye et al.): every iteration draws, for
each image on its own, one of the listed transforms and its strength.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError, unknown
from .images import clamp, resize
from .noise import Seed, generators, normal
from .types import Image

UPLOADED = 2048
"""Pixels. A picture with a longer side than that is first scaled down to it, as platforms do.

What a transform does at more pixels than these, the way down to an editor's working size would average away.
"""


class Kind(NamedTuple):
    """A transform ``apply(x, strength, seed)`` of (1, 3, H, W), and the strengths it takes."""

    apply: Callable[[Image, float, int], Image]
    low: float
    high: float
    unit: str


class Transform(NamedTuple):
    """One entry of a list: a kind, and the range from which its strength is drawn."""

    kind: str
    low: float
    high: float


def parse(specs: Sequence[str]) -> tuple[Transform, ...]:
    """Transforms from "kind:strength" or "kind:low-high", such as "jpeg:75", "jpeg:50-95", "resize:0.5"; "none" is one.

    Raises InputError for an unknown kind, with near names, and for a strength that is no number or out of range.
    """
    if isinstance(specs, str):
        specs = [part.strip() for part in specs.split(",") if part.strip()]
    return tuple(_parse(spec) for spec in specs)


def through(x: Image, transforms: Sequence[Transform], seed: Seed) -> Image:
    """Each image of ``x`` (B, 3, H, W) after one of ``transforms``, drawn from its own seed; in [0, 1], same size."""
    rows = []
    for row, (generator,) in zip(x.split(1), ([g] for g in generators(seed, len(x))), strict=True):
        draw = random.Random(generator.initial_seed())
        chosen = draw.choice(transforms)
        kind = KINDS[chosen.kind]
        rows.append(kind.apply(row, draw.uniform(chosen.low, chosen.high), draw.getrandbits(62)))
    return torch.cat(rows)


def uploaded(size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) at which transforms see a picture of that size, see :data:`UPLOADED`."""
    factor = min(1.0, UPLOADED / max(size))
    return round(size[0] * factor), round(size[1] * factor)


def jpeg(x: Image, quality: float) -> Image:
    """``x`` (B, 3, H, W) in [0, 1] as a JPEG file of ``quality`` 1 to 100 gives it back, 4:2:0 as most files are.

    ITU-T T.81 with the tables of its annex K scaled as libjpeg does, and JFIF's colours. The gradient is that of the
    same steps without rounding (straight-through), where the cosine transform and its inverse leave no trace.
    """
    file = _coded(x.detach(), lambda plane, table: _blocks(plane, table, quality), Tensor.round)
    plain = _coded(x, lambda plane, table: plane, lambda values: values)
    return file + (plain - plain.detach())


def blur(x: Image, sigma: float) -> Image:
    """Gaussian blur of ``sigma`` pixels, cut at three sigma; the edges are repeated."""
    radius = max(1, math.ceil(3 * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype) / sigma) ** 2)
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    padded = F.pad(x, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights, groups=3), weights.transpose(2, 3), groups=3)


def rescale(x: Image, factor: float) -> Image:
    """Down (or up) by ``factor`` and back, with the resize that everything else uses."""
    size = (x.shape[-2], x.shape[-1])
    small = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
    return resize(resize(x, small), size)


def noisy(x: Image, sigma: float, seed: int) -> Image:
    """Gaussian noise of standard deviation ``sigma``, clipped to [0, 1]."""
    return clamp(x + sigma * normal(x.shape, seed).to(x))


KINDS: dict[str, Kind] = {
    "none": Kind(lambda x, strength, seed: x, 0, 0, "no strength"),
    "jpeg": Kind(lambda x, strength, seed: jpeg(x, strength), 1, 100, "a quality from 1 to 100, such as jpeg:75"),
    "resize": Kind(lambda x, strength, seed: rescale(x, strength), 0.1, 2, "a factor from 0.1 to 2, as in resize:0.5"),
    "noise": Kind(noisy, 0, 0.5, "a deviation from 0 to 0.5 of the range, such as noise:0.02"),
    "blur": Kind(lambda x, strength, seed: blur(x, strength), 0.1, 10, "a sigma from 0.1 to 10 pixels, such as blur:1"),
}
"""Name -> what it does. The strength "a-b" is drawn uniformly between the two."""


def _parse(spec: str) -> Transform:
    name, colon, strength = str(spec).strip().partition(":")
    if name not in KINDS:
        raise unknown("transform", name, KINDS)
    kind = KINDS[name]
    bounds = _range(strength) if colon else (0.0, 0.0) if name == "none" else (math.nan, math.nan)
    if not kind.low <= bounds[0] <= bounds[1] <= kind.high:
        raise InputError(f"transform {spec!r}: expected {kind.unit}, or a range such as jpeg:50-95")
    return Transform(name, *bounds)


def _range(text: str) -> tuple[float, float]:
    """One number or two with a dash between, each perhaps written as 1e-2; NaN where it is neither."""
    found = re.fullmatch(r"\s*([\d.]+(?:e-?\d+)?)\s*(?:-\s*([\d.]+(?:e-?\d+)?)\s*)?", text, re.IGNORECASE)
    try:
        return (float(found[1]), float(found[2] or found[1])) if found else (math.nan, math.nan)
    except ValueError:
        return math.nan, math.nan


def _coded(x: Image, coded: Callable[[Tensor, Tensor], Tensor], rounded: Callable[[Tensor], Tensor]) -> Image:
    """To planes of brightness and, half as large, of colour, each ``coded`` with its table, and back."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (0, -width % 16, 0, -height % 16), mode="replicate") * 255
    planes = rounded(torch.einsum("ij,bjhw->bihw", _YCC.to(x), padded)) - _GREY.to(x)
    luma = coded(planes[:, :1], _LUMA)
    chroma = coded(rounded(F.avg_pool2d(planes[:, 1:], 2)), _CHROMA)
    restored = torch.cat([luma, F.interpolate(chroma, scale_factor=2, mode="bilinear")], dim=1) + _GREY.to(x)
    back = torch.einsum("ij,bjhw->bihw", _YCC.inverse().to(x), restored)
    return rounded(clamp(back[..., :height, :width], 255)) / 255


def _blocks(plane: Tensor, table: Tensor, quality: float) -> Tensor:
    """Planes (B, c, H, W) of whole 8x8 blocks after the transform, quantisation and back."""
    batch, channels, height, width = plane.shape
    dct, steps = _dct().to(plane), _steps(table, quality).to(plane)
    blocks = plane.reshape(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = dct @ blocks @ dct.T
    restored = (dct.T @ ((coefficients / steps).round() * steps) @ dct).round()
    return restored.transpose(3, 4).reshape(batch, channels, height, width)


def _steps(table: Tensor, quality: float) -> Tensor:
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    return ((table * scale + 50) / 100).floor().clamp(1, 255)


@cache
def _dct() -> Tensor:
    """The orthonormal DCT-II of 8 points as a matrix."""
    k, n = torch.arange(8.0).reshape(-1, 1), torch.arange(8.0)
    rows = torch.cos(math.pi * (2 * n + 1) * k / 16) / 2
    rows[0] /= math.sqrt(2)
    return rows


_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_GREY = torch.tensor([128.0, 0, 0]).reshape(3, 1, 1)  # the two colour planes are centred at 0 already
_LUMA = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
_CHROMA = torch.full((8, 8), 99)
_CHROMA[:4, :4] = torch.tensor([[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]])
