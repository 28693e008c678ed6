"""What may happen to a picture on its way to the editor, differentiable: perturbations made through it survive it.

Expectation over transformation ("Synthesizing Robust Adversarial Examples", Athalye et al.): every iteration draws, for
each image on its own, one of the listed transforms and its strength.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Hashable, Sequence
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
    """A transform ``apply(x, strengths, seeds)`` of (B, 3, H, W), one of each per image, and the strengths it takes."""

    apply: Callable[[Image, Sequence[float], Sequence[int]], Image]
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
    draws = [random.Random(generator.initial_seed()) for generator in generators(seed, len(x))]
    chosen = [draw.choice(transforms) for draw in draws]
    strengths = [draw.uniform(one.low, one.high) for draw, one in zip(draws, chosen, strict=True)]
    seeds = [draw.getrandbits(62) for draw in draws]

    def applied(x: Image, rows: Sequence[int]) -> Image:
        return KINDS[chosen[rows[0]].kind].apply(x, [strengths[i] for i in rows], [seeds[i] for i in rows])

    return _alike(x, [one.kind for one in chosen], applied)


def uploaded(size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) at which transforms see a picture of that size, see :data:`UPLOADED`."""
    factor = min(1.0, UPLOADED / max(size))
    return round(size[0] * factor), round(size[1] * factor)


def jpeg(x: Image, quality: float | Sequence[float]) -> Image:
    """``x`` (B, 3, H, W) in [0, 1] as a JPEG file of ``quality`` 1 to 100 gives it back, 4:2:0 as most files are.

    One quality for all or one per image.

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
    return resize(resize(x, _scaled(x, factor)), (x.shape[-2], x.shape[-1]))


def noisy(x: Image, sigma: float | Sequence[float], seed: Seed) -> Image:
    """Gaussian noise of standard deviation ``sigma``, one for all or one per image, clipped to [0, 1]."""
    return clamp(x + _column(sigma).to(x) * normal(x.shape, seed).to(x))


KINDS: dict[str, Kind] = {
    "none": Kind(lambda x, strengths, seeds: x, 0, 0, "no strength"),
    "jpeg": Kind(lambda x, strengths, seeds: jpeg(x, strengths), 1, 100, "a quality from 1 to 100, such as jpeg:75"),
    "resize": Kind(
        lambda x, strengths, seeds: _alike(
            x, [_scaled(x, factor) for factor in strengths], lambda x, rows: rescale(x, strengths[rows[0]])
        ),
        0.1,
        2,
        "a factor from 0.1 to 2, as in resize:0.5",
    ),
    "noise": Kind(noisy, 0, 0.5, "a deviation from 0 to 0.5 of the range, such as noise:0.02"),
    "blur": Kind(
        lambda x, strengths, seeds: _alike(x, strengths, lambda x, rows: blur(x, strengths[rows[0]])),
        0.1,
        10,
        "a sigma from 0.1 to 10 pixels, such as blur:1",
    ),
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


def _alike(x: Image, keys: Sequence[Hashable], apply: Callable[[Image, Sequence[int]], Image]) -> Image:
    """``apply(images, their numbers)`` to images of one key at once, in the order of ``x`` again."""
    groups: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    if len(groups) == 1:
        return apply(x, range(len(x)))
    order = [i for rows in groups.values() for i in rows]
    back = sorted(range(len(order)), key=order.__getitem__)
    return torch.cat([apply(x[rows], rows) for rows in groups.values()])[back]


def _scaled(x: Image, factor: float) -> tuple[int, int]:
    return max(1, round(x.shape[-2] * factor)), max(1, round(x.shape[-1] * factor))


def _column(values: float | Sequence[float]) -> Tensor:
    """One number for all images, or one for each, to multiply (B, c, h, w) by."""
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)


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


def _blocks(plane: Tensor, table: Tensor, quality: float | Sequence[float]) -> Tensor:
    """Planes (B, c, H, W) of whole 8x8 blocks after the transform, quantisation and back."""
    batch, channels, height, width = plane.shape
    dct, steps = _dct().to(plane), _steps(table, quality).to(plane)
    blocks = plane.reshape(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = dct @ blocks @ dct.T
    restored = (dct.T @ ((coefficients / steps).round() * steps) @ dct).round()
    return restored.transpose(3, 4).reshape(batch, channels, height, width)


def _steps(table: Tensor, quality: float | Sequence[float]) -> Tensor:
    """What coefficients are divided by, (B or 1, 1, 1, 1, 8, 8)."""
    q = _column(quality)[..., None, None]
    scale = torch.where(q < 50, 5000 / q, 200 - 2 * q).float()
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
