"""Does a budget that follows what an eye forgives show less? Even noise and shaped noise of equal energy, as seen.

    python -m benchmarks.visibility

For each way to shape noise: the loss of quality by ColorVideoVDP, in JOD, of three photographs (scikit-image's) and of
flat-coloured art that carry it at a root mean square of 4 of 255 levels: noise of single pixels, and of blocks of 4 and
16; then of flat grey that changes by what is just noticed. What chose :data:`sifm_core.visibility.MASKING`,
:data:`sifm_core.visibility.DARK` and the map's size.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sifm_core import visibility
from sifm_core.images import on_grid
from sifm_core.metrics.cvvdp import cvvdp

SIDE, STRENGTH = 288, 4 / 255
BLOCKS = (1, 4, 16)
LEVELS = (4, 10, 15, 25, 40, 70, 120, 180, 240)


def pictures() -> dict[str, Tensor]:
    """Three photographs and flat art, (1, 3, SIDE, SIDE)."""
    from skimage import data

    found = {name: getattr(data, name)()[:SIDE, :SIDE, :3] for name in ("astronaut", "coffee", "chelsea")}
    photographs = {name: torch.from_numpy(x.copy()).permute(2, 0, 1)[None] / 255 for name, x in found.items()}
    down, across = torch.meshgrid(torch.linspace(0, 1, SIDE), torch.linspace(0, 1, SIDE), indexing="ij")
    flat = torch.empty(3, SIDE, SIDE)
    inside = torch.ones(SIDE, SIDE, dtype=torch.bool)
    for colour, part in (
        ((0.55, 0.75, 0.93), inside),
        ((0.95, 0.80, 0.70), (across - 0.5) ** 2 + (down - 0.45) ** 2 < 0.06),
        ((0.20, 0.25, 0.30), down > 0.75),
    ):
        flat[:, part] = torch.tensor(colour)[:, None]
    return {**photographs, "flat art": on_grid(flat[None])}


def classic(x: Tensor) -> Tensor:
    """Chou and Li's and Yang's own: their curve of adaptation, and masking of 0.117."""
    luma = 255 * torch.einsum("c,bchw->bhw", torch.tensor((0.299, 0.587, 0.114)), x)[:, None]
    around = F.avg_pool2d(F.pad(luma, (2, 2, 2, 2), "replicate"), 5, stride=1)
    curve = torch.where(around <= 127, 17 * (1 - (around / 127).sqrt()) + 3, 3 / 128 * (around - 127) + 3) / 255
    hidden = 0.117 * (visibility.jnd(x) - ours(x, 0.0)) / visibility.MASKING
    return curve + hidden - 0.3 * torch.minimum(curve, hidden)


def ours(x: Tensor, masking: float) -> Tensor:
    """The engine's, with another share of masking."""
    chosen, visibility.MASKING = visibility.MASKING, masking
    try:
        return visibility.jnd(x)
    finally:
        visibility.MASKING = chosen


def lightness(value: float) -> float:
    """One unit of CIE 1976 lightness at a grey value, both in [0, 1]."""
    one, next_one = visibility._lightness(torch.tensor([value, value + 1 / 255])).tolist()
    return 1 / 255 / (next_one - one)


def at(x: Tensor, block: int) -> Tensor:
    """The engine's map for an editor whose pixels are blocks of the picture's."""
    return visibility.budget_map(x, size=(SIDE // block, SIDE // block))


SHAPES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "even": lambda x, block: torch.ones_like(x[:, :1]),
    "Yang et al.": lambda x, block: classic(x),
    "masking 0.117": lambda x, block: ours(x, 0.117),
    "masking 0.35": lambda x, block: ours(x, 0.35),
    "masking 1": lambda x, block: ours(x, 1.0),
    "the map, full size": lambda x, block: visibility.budget_map(x),
    "the map, of the pattern's size": at,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each shape: the mean loss over the photographs, and the flat art's, for each size of blocks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    shown = pictures()
    generator = torch.Generator().manual_seed(0)
    noises = {
        block: F.interpolate(torch.rand(1, 3, SIDE // block, SIDE // block, generator=generator), scale_factor=block)
        for block in BLOCKS
    }
    print("| noise | " + " | ".join(f"{block} px: photographs, flat art" for block in BLOCKS) + " |")
    print("|---|" + "---:|" * len(BLOCKS))
    for name, shape in SHAPES.items():
        cells = []
        for block, noise in noises.items():
            losses = []
            for x in shown.values():
                delta = (noise - 0.5).sign() * shape(x, block)
                y = on_grid((x + delta * STRENGTH / delta.square().mean().sqrt()).clamp(0, 1))
                losses.append(float(cvvdp(x, y)))
            cells.append(f"{sum(losses[:-1]) / len(losses[:-1]):.2f}, {losses[-1]:.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print("\n| flat grey, level | just noticed, levels | 4 px | 16 px | if of lightness alone | 4 px | 16 px |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for level in LEVELS:
        x, cells = torch.full((1, 3, SIDE, SIDE), level / 255), [str(level)]
        for change in (float(visibility.jnd(x).mean()), lightness(level / 255)):
            signs = [(noises[block][:, :1] - 0.5).sign() * change for block in BLOCKS[1:]]
            cells += [f"{255 * change:.1f}", *(f"{float(cvvdp(x, (x + sign).clamp(0, 1))):.2f}" for sign in signs)]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
