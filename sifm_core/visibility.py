"""How visible a change is: a budget that follows what an eye forgives, and figures that say what they mean.

An eye forgives more where the picture is busy than where it is flat, and how much is told in levels, by a
just-noticeable difference (JND) for each pixel. Whether the whole of a change is seen is another question, which
ColorVideoVDP answers (:func:`sifm_core.metrics.cvvdp.cvvdp`): it knows contrast sensitivity, colour and blotches too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ImageError
from .images import LUMA, check_image, resize
from .metrics import measure
from .metrics.cvvdp import installed
from .types import Image, Metric

FULL = 10 / 255
"""The JND at which a pixel gets the whole budget: under ``eps = FULL`` every pixel may change by its own JND."""
MASKING = 0.35
"""How many levels one level of activity hides. Yang et al. say 0.117; see `benchmarks/visibility.py` for why more."""
DARK = 25 / 255
"""Below it lightness forgives what is plainly seen, up to 3.7 levels: see `benchmarks/visibility.py`."""
LUMA_WEIGHT = 0.25
"""Of brightness beside colour in a coarse pattern: of those tried the least visible, see docs/visibility.md."""
TILE = 512
"""Side, in pixels, of the part of a picture that is judged, and shown, at 100%: a hand's breadth on a monitor."""
MEANINGS = (
    (0.1, "not visible at arm's length"),
    (0.5, "visible on flat areas when looked for"),
    (math.inf, "plainly visible"),
)
"""Up to which loss of quality, in JOD, which words: at 0.1, of 100 people who see source and protected picture side by
side, 53 call the source the better one, where 50 is chance; at 0.5, 63 do. By the unit's definition, not by a study."""

_CELL, _TILES, _STRIP = 64, 3, 2**20
_AROUND = torch.tensor([[1, 1, 1, 1, 1], [1, 2, 2, 2, 1], [1, 2, 0, 2, 1], [1, 2, 2, 2, 1], [1, 1, 1, 1, 1]]) / 32
_DOWN = torch.tensor([[0, 0, 0, 0, 0], [1, 3, 8, 3, 1], [0, 0, 0, 0, 0], [-1, -3, -8, -3, -1], [0, 0, 0, 0, 0]]) / 16
_ASLANT = torch.tensor([[0, 0, 1, 0, 0], [0, 8, 3, 0, 0], [1, 3, 0, -3, -1], [0, 0, -3, -8, 0], [0, 0, -1, 0, 0]]) / 16
_KERNELS = torch.stack([_AROUND, _DOWN, _DOWN.T, _ASLANT, _ASLANT.flip(1)])[:, None]


def jnd(x: Image) -> Tensor:
    """By how much each pixel must change before it is noticed: (B, 3, H, W) -> (B, 1, H, W), in [0, 1] units.

    Luminance adaptation plus texture masking, as in Chou and Li 1995 (IEEE TCSVT 5(6)) and Yang et al. 2005 (IEEE TCSVT
    15(6)), with their 5x5 operators: activity G is the largest of four directional gradients, and hides
    :data:`MASKING` of itself. Adaptation is one unit of CIE 1976 lightness at the mean around the pixel, and in what is
    darker than :data:`DARK` as much as there: 2.0 to 2.9 levels, in place of their curve of a cathode-ray tube, which
    forgives 20 levels of black. Edges count as texture.
    """
    luma = torch.einsum("c,bchw->bhw", x.new_tensor(LUMA), x)[:, None]
    around, *slopes = F.conv2d(F.pad(luma, (2, 2, 2, 2), "replicate"), _KERNELS.to(luma)).unbind(dim=1)
    activity = torch.stack(slopes).abs().amax(dim=0)
    around = around.clamp_min(DARK)
    adaptation = 1 / 255 / (_lightness(around + 1 / 255) - _lightness(around))
    return (adaptation + MASKING * activity)[:, None]


def budget_map(x: Image, alpha: Tensor | None = None, *, size: tuple[int, int] | None = None) -> Tensor:
    """The share of eps that each pixel may change by, the ``mask`` of :func:`sifm_core.immunize`.

    ``x`` (B, 3, H, W), ``alpha`` (B or 1, 1, H, W) where there is one, both in [0, 1] -> (B, 1, H, W) in [0, 1]:
    :func:`jnd` over :data:`FULL`, at most 1, and 0 where the picture is fully transparent. So eps is in units of what
    is just noticed: flat grey, skin and paper get a quarter of it, hair and leaves all of it.

    ``size`` (height, width): at which the editor works. A perturbation made there is as coarse as its pixels, and what
    hides it is texture of that coarseness, not a finer one: in a larger picture the thresholds are then those of the
    picture at twice that size. Deterministic, in bands: besides the map it takes a few MB, whatever the picture's size.
    """
    check_image(x)
    x, (height, width) = x.detach().float(), x.shape[-2:]
    if size is not None and 2 * max(size) < max(height, width):
        coarse = (jnd(resize(x, (2 * size[0], 2 * size[1]))) / FULL).clamp_(max=1)
        weights = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    else:
        weights = x.new_empty(len(x), 1, height, width)
        for rows, wide, inner in _strips(x):
            weights[..., rows, :] = (jnd(x[..., wide, :])[..., inner, :] / FULL).clamp_(max=1)
    if alpha is not None:
        weights.mul_(alpha.to(weights) > 0)
    return weights


def forgiven(x: Image, alpha: Tensor | None = None, *, size: tuple[int, int]) -> dict[str, Any]:
    """Arguments of :func:`sifm_core.immunize` with which a change is seen less, for an editor that works at ``size``.

    ``mask``, the :func:`budget_map`; ``grey``; and, in a picture with colour of at least twice that size, ``luma``: the
    pattern is coarse then, and an eye sees coarse brightness several times better than coarse colour. In a smaller
    picture the pattern is as fine as JPEG's colour, which would lose it.
    """
    grey, coarse = is_grey(x), max(x.shape[-2:]) >= 2 * max(size)
    return {"mask": budget_map(x, alpha, size=size), "grey": grey, "luma": LUMA_WEIGHT if coarse and not grey else 1.0}


@dataclass(frozen=True)
class Visibility:
    """How visible the change of one picture is.

    ``loss``: of quality in JOD, in that part of at most 512x512 pixels in which most is seen, ``part`` (top, left,
    height, width); its value is None, with the reason, where ColorVideoVDP is not installed. ``beyond``: the share of
    pixels that changed by more than their :func:`jnd`; ``largest``, ``typical``: the largest change and the root mean
    square, in [0, 1] units.
    """

    loss: Metric
    beyond: float
    largest: float
    typical: float
    part: tuple[int, int, int, int]

    @property
    def words(self) -> str:
        """What it means: one of :data:`MEANINGS`, or why there is no answer."""
        if self.loss.value is None:
            return f"how visible was not measured ({self.loss.reason})"
        return meaning(self.loss.value)

    def crop(self, x: Image) -> Image:
        """That part of a picture of the same size, to be looked at at 100%."""
        top, left, height, width = self.part
        return x[..., top : top + height, left : left + width]


def meaning(loss: float) -> str:
    """What a loss of quality in JOD means, in words."""
    return next(words for most, words in MEANINGS if loss <= most)


def visibility(source: Image, protected: Image) -> Visibility:
    """How visible the difference of two pictures (1, 3, H, W) in [0, 1] is, see :class:`Visibility`.

    As seen at 100% on a 24-inch full-HD monitor at arm's length. ColorVideoVDP is asked about the parts in which the
    change is largest in units of :func:`jnd`, at most three. Raises ImageError for pictures of two
    sizes.
    """
    beyond, largest, typical, parts = _changed(source, protected)
    losses = [_loss(_cut(source, part), _cut(protected, part)) for part in parts]
    worst = max(range(len(parts)), key=lambda k: losses[k].value or 0.0)
    return Visibility(losses[worst], beyond, largest, typical, parts[worst])


Part: TypeAlias = tuple[int, int, int, int]


def _changed(source: Image, protected: Image) -> tuple[float, float, float, list[Part]]:
    """The share of pixels beyond their JND, the largest and the typical change, and the parts where it is largest."""
    for x, name in ((source, "source"), (protected, "protected")):
        if len(check_image(x, name)) != 1:
            raise ImageError(f"{name}: expected one picture, got a batch of {len(x)}; pass them one by one")
    if source.shape != protected.shape:
        shapes = f"{tuple(source.shape)} and {tuple(protected.shape)}"
        raise ImageError(f"expected two pictures of one size, got {shapes}; resize one of them first")
    height, width = source.shape[-2:]
    beyond, squares, largest, cells = 0, 0.0, 0.0, []
    for rows, wide, inner in _strips(source):
        limit = jnd(source[..., wide, :].detach().float())[..., inner, :]
        delta = (protected[..., rows, :] - source[..., rows, :]).detach().float().abs()
        seen = delta.amax(dim=1, keepdim=True) / limit
        beyond += int((seen > 1 + 1e-4).sum())
        squares += float(delta.double().square().sum())
        largest = max(largest, float(delta.max()))
        cells.append(F.avg_pool2d(F.pad(seen.square(), (0, -width % _CELL, 0, -seen.shape[-2] % _CELL)), _CELL))
    pixels, parts = height * width, _parts(torch.cat(cells, dim=-2), height, width)
    return beyond / pixels, largest, math.sqrt(squares / pixels / 3), parts


def _loss(source: Image, protected: Image) -> Metric:
    return measure(source.cpu(), protected.cpu(), ["cvvdp"])["cvvdp"][0]


def faded(source: Image, protected: Image, most: float, steps: int = 5) -> tuple[Image, float]:
    """The protected picture with its change scaled down until the loss of quality is at most ``most`` JOD.

    (1, 3, H, W) on the 8-bit grid, like ``protected`` inside whatever budget that kept, and the factor, found by
    bisection in ``steps``: 1 where nothing had to be scaled. Raises ImageError where the loss cannot be measured.
    """
    parts = _changed(source, protected)[-1]
    dither = torch.rand(1, 1, *source.shape[-2:], generator=torch.Generator().manual_seed(0)).to(source)

    def kept(factor: float) -> bool:
        """Where most is seen: a change that is made fainter everywhere is seen most where it was before."""
        some = [[_cut(x, part) for x in (source, protected, dither)] for part in parts]
        losses = [_loss(x, y if factor == 1 else _scaled(x, y, factor, noise)) for x, y, noise in some]
        if losses[0].value is None:
            raise ImageError(f"a cap on visibility needs its measure: {losses[0].reason}")
        return max(loss.value or 0.0 for loss in losses) <= most

    if kept(1):
        return protected, 1.0
    low, high, step = 0.0, 1.0, 0.5**steps
    while high - low > step:
        factor = (low + high) / 2
        low, high = (factor, high) if kept(factor) else (low, factor)
    while low and (visibility(source, found := _scaled(source, protected, low, dither)).loss.value or 0.0) > most:
        low -= step
    return (found, low) if low else (source, 0.0)


def measurable() -> bool:
    """Whether what a change looks like can be measured: whether ColorVideoVDP is installed."""
    return installed()


def is_grey(x: Image) -> bool:
    """Whether pictures (B, 3, H, W) are colourless: the three values of every pixel are one."""
    return bool((x == x[:, :1]).all())


def _scaled(source: Image, protected: Image, factor: float, dither: Tensor) -> Image:
    """Dithered to 8 bits: each change is one of the two levels beside, so that on average it is what was asked for."""
    clean = (source * 255).round()
    levels = (protected * 255).round() - clean
    return (clean + (levels.abs() * factor + dither).floor() * levels.sign()) / 255


def _lightness(value: Tensor) -> Tensor:
    """CIE 1976 L* of grey sRGB values in [0, 1]."""
    light = torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055).clamp_min(0) ** 2.4)
    return torch.where(light > 216 / 24389, 116 * light.clamp_min(1e-6) ** (1 / 3) - 16, light * 24389 / 27)


def _strips(x: Image) -> Iterator[tuple[slice, slice, slice]]:
    """Rows in slices of whole cells; with the two rows around that the operators see; the first within the second."""
    height, width = x.shape[-2:]
    step = _CELL * max(1, _STRIP // (_CELL * width * len(x)))
    for top in range(0, height, step):
        end = min(top + step, height)
        start = max(0, top - 2)
        yield slice(top, end), slice(start, min(end + 2, height)), slice(top - start, end - start)


def _parts(cells: Tensor, height: int, width: int) -> list[Part]:
    """The tiles in which the cells' mean is largest, none within half a tile of another; where nothing changed, one."""
    sides = [min(TILE // _CELL, n) for n in cells.shape[-2:]]
    means = F.avg_pool2d(cells, sides, stride=1)[0, 0]
    parts = []
    for _ in range(_TILES):
        row, column = divmod(int(means.argmax()), means.shape[1])
        top, left = min(row * _CELL, max(0, height - TILE)), min(column * _CELL, max(0, width - TILE))
        parts.append((top, left, min(TILE, height), min(TILE, width)))
        near = [
            slice(max(0, at - side // 2), at + side // 2 + 1) for at, side in zip((row, column), sides, strict=True)
        ]
        means[near[0], near[1]] = -1
        if float(means.max()) <= 0:
            break
    return parts


def _cut(x: Tensor, part: Part) -> Tensor:
    top, left, height, width = part
    return x[..., top : top + height, left : left + width]
