"""What makes the coarse pattern of a large picture less visible? Ways to shape it, at equal feature loss.

    python -m benchmarks.blotches

Fresh pictures of the miniature, enlarged four times, protected by the distance of SIFM with each way: how far features
of another noise move (more is stronger), how many edits fail by the renderer's truth, and the loss of quality that is
seen, in JOD, of the first two. A demonstration: the editor sees the pictures at its own 64 px, and few pictures say
little of the shares; the distance says more. --keep FOLDER keeps the second picture of each row, to be looked at.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sifm_core import edit, load_editor
from sifm_core.gradients import through_resize
from sifm_core.images import on_grid, resize, round_to_budget, save_png
from sifm_core.methods import sifm
from sifm_core.miniature import gate
from sifm_core.miniature.truth import ROUGH
from sifm_core.miniature.world import SIZE
from sifm_core.pgd import pgd
from sifm_core.transforms import blur
from sifm_core.types import Gradient
from sifm_core.visibility import budget_map, visibility

TIMES, STEPS, SEED = 4, 20, 991
WAYS: tuple[tuple[str, float, dict[str, Any]], ...] = (
    ("linf, even", 0.006, {}),
    ("linf, even", 0.012, {}),
    ("l2, even", 0.004, {"ball": "l2"}),
    ("l2, even", 0.008, {"ball": "l2"}),
    ("l2, even, luma 0.5", 0.008, {"ball": "l2", "luma": 0.5}),
    ("linf, map", 0.02, {"mask": True}),
    ("linf, map, smoothed", 0.02, {"mask": True, "smooth": True}),
    ("linf, map, luma 0.5", 0.02, {"mask": True, "luma": 0.5}),
    ("linf, map, luma 0.25", 0.02, {"mask": True, "luma": 0.25}),
    ("l2, map", 0.01, {"ball": "l2", "mask": True}),
    ("l2, map, smoothed", 0.01, {"ball": "l2", "mask": True, "smooth": True}),
    ("l2, map, luma 0.5", 0.01, {"ball": "l2", "mask": True, "luma": 0.5}),
    ("l2, map, luma 0.25", 0.01, {"ball": "l2", "mask": True, "luma": 0.25}),
)
"""Name, eps, and how: ``mask`` the map, ``smooth`` a gradient that is blurred by half a pixel of the editor."""


def smoothed(gradient: Gradient) -> Gradient:
    return gradient._replace(grad=torch.cat([blur(row, TIMES / 2) for row in gradient.grad.split(1)]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--keep", type=Path)
    chosen = parser.parse_args(arguments)
    editor, items = load_editor("miniature-ip2p"), gate.fresh(chosen.images, SEED)
    prompts, size = [item.instruction for item in items], (SIZE, SIZE)
    drawings = torch.stack([item.image for item in items])
    x0 = on_grid(F.interpolate(drawings, scale_factor=TIMES, mode="bicubic").clamp(0, 1))
    small, budget = resize(x0, size), budget_map(x0, size=size)

    def distance(seed: int) -> Any:
        how: dict[str, Any] = {"objective": "dist", "layers": "last", "aggregation": "per_layer", "timesteps": 2}
        return through_resize(sifm.build(editor, small, editor.prepare(prompts), **how, seed=seed), size)

    def failed(x: Tensor) -> float:
        edited = edit(x, editor, prompt=prompts, seed=[100 + i for i in range(len(x))], demonstration=True)
        mismatch, measures = gate.outcome(items, resize(edited, size))
        return float((mismatch | (measures[:, 3] > ROUGH)).mean())

    known, other = distance(0), distance(77)
    print("| way | eps | distance | failed | seen, JOD |\n|---|---:|---:|---:|---:|")
    print(f"| unprotected | 0 | 0 | {failed(x0):.2f} | 0 |", flush=True)
    for name, eps, given in WAYS:
        how = dict(given)
        mask, smooth = budget if how.pop("mask", False) else None, how.pop("smooth", False)
        grad_fn = (lambda x, i: smoothed(known(x, i))) if smooth else known
        found = pgd(x0, grad_fn, eps=eps, alpha=eps / 6, steps=STEPS, random_start=True, mask=mask, **how)
        protected = round_to_budget(found, x0, eps, mask, how.get("ball", "linf"))
        moved = -1000 * float(other(protected, 0).loss.mean())
        seen = [visibility(x0[k : k + 1], protected[k : k + 1]).loss.value or 0.0 for k in range(2)]
        print(f"| {name} | {eps:g} | {moved:.0f} | {failed(protected):.2f} | {sum(seen) / 2:.2f} |", flush=True)
        if chosen.keep:
            save_png(protected[1], chosen.keep / f"{name}, {eps:g}.png")


if __name__ == "__main__":
    main()
