"""GrIDPure (Zhao et al. 2023): many short DiffPure passes on overlapping tiles instead of one long pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..noise import Seed, fork
from ..types import Editor, Image, OnStep, Step
from .latents import decode, needed, noise_and_denoise

SHARE, KEEP, TILE = 0.01, 0.1, 256
"""Share of the noise schedule per pass (t = 10), weight of the pass's input, and largest side of a tile in pixels."""


def purify(
    image: Image, passes: float, *, editor: Editor | None = None, seed: Seed = 0, on_step: OnStep | None = None
) -> Image:
    """``passes`` times: purify every tile (they overlap by half and are averaged), mix with what went in.

    Adapted as :mod:`sifm_core.purify.diffpure` is; tiles have the editor's native size where that is below 256, and the
    official extra tile made of the four corners is left out; and of a pass's ten timesteps, which the official code
    walks back one by one with new noise, ours makes one deterministic step.
    """
    model = needed(editor, "gridpure")
    side = min(TILE, *model.work_size(TILE, TILE))
    height, width = image.shape[-2:]
    x = F.pad(image, (0, max(0, side - width), 0, max(0, side - height)), mode="replicate")
    places = [(top, left) for top in _starts(x.shape[-2], side) for left in _starts(x.shape[-1], side)]
    for i in range(round(passes)):
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for k, (top, left) in enumerate(places):
            window = (..., slice(top, top + side), slice(left, left + side))
            z = noise_and_denoise(model, model.encode(x[window]), SHARE, fork(seed, i, k))
            total[window] += decode(model, z).to(x)
            count[window] += 1
            if on_step is not None:
                on_step(Step("gridpure", i * len(places) + k + 1, round(passes) * len(places)))
        x = (1 - KEEP) * total / count + KEEP * x
    return x[..., :height, :width]


def _starts(length: int, side: int) -> list[int]:
    """Where tiles begin: every half side, and flush with the end."""
    return sorted({*range(0, length - side, max(1, side // 2)), length - side})
