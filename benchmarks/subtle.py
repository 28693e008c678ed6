"""What being hardly seen costs: protection at equal visibility, with and without what an eye forgives.

    python -m benchmarks.subtle --images 30

On fresh pictures of the miniature, where truth is known, as they are (64 px) and enlarged: there the editor's pixels
are as coarse as in a photograph. Each is protected by SIFM+ with an even budget, with the map, and with all that
:func:`sifm_core.visibility.forgiven` gives, at one eps; then its change is scaled down to a limit of visible loss. A
row says how many edits fail by the renderer's truth, as it is and after JPEG 75, and what is seen. The enlarged
pictures are a demonstration: the editor sees them at its own 64 px.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sifm_core import edit, immunize, load_editor
from sifm_core.images import on_grid, resize, save_png
from sifm_core.miniature import gate
from sifm_core.miniature.truth import ROUGH
from sifm_core.miniature.world import SIZE
from sifm_core.visibility import budget_map, faded, forgiven, visibility

LIMITS = (None, 0.5, 0.1)
SEED = 5151


def budgets(x: Tensor) -> dict[str, dict[str, Any]]:
    """Name -> arguments for immunize."""
    size = (SIZE, SIZE)
    return {"even": {}, "map": {"mask": budget_map(x, size=size)}, "forgiven": forgiven(x, size=size)}


def failed(items: Sequence[gate.Item], x: Tensor, prompts: Sequence[str], purify: str = "") -> Tensor:
    """Which edits fail by the renderer's truth."""
    seeds = list(range(len(items)))
    edited = edit(x, EDITOR, prompt=prompts, seed=seeds, purify=purify, demonstration=True)
    mismatch, measures = gate.outcome(items, resize(edited, (SIZE, SIZE)))
    return torch.from_numpy(mismatch | (measures[:, 3] > ROUGH))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each size, budget and limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--enlarged", type=int, nargs="+", default=[1, 4], help="how many times")
    parser.add_argument("--eps", type=float, default=0.03)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--keep", type=Path, help="a folder for the first picture of each row")
    chosen = parser.parse_args(arguments)
    items = gate.fresh(chosen.images, SEED)
    small, prompts = torch.stack([item.image for item in items]), [item.instruction for item in items]
    print("| picture | budget | limit, JOD | seen, JOD: mean, most | failed | net | net after JPEG | scaled to |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for times in chosen.enlarged:
        x0 = on_grid(F.interpolate(small, scale_factor=times, mode="bicubic").clamp(0, 1)) if times > 1 else small
        clean, clean_jpeg = failed(items, x0, prompts), failed(items, x0, prompts, "jpeg:75")
        for name, how in budgets(x0).items():
            found = immunize(
                x0,
                EDITOR,
                prompt=prompts,
                method="sifm_plus",
                eps=chosen.eps,
                steps=chosen.steps,
                seed=list(range(len(items))),
                demonstration=True,
                **how,
            ).image
            for limit in LIMITS:
                pairs = [
                    (y[None], 1.0) if limit is None else faded(x[None], y[None], limit)
                    for x, y in zip(x0, found, strict=True)
                ]
                protected = torch.cat([y for y, _ in pairs])
                losses = [visibility(x[None], y[None]).loss.value or 0.0 for x, y in zip(x0, protected, strict=True)]
                bad = failed(items, protected, prompts)
                after = failed(items, protected, prompts, "jpeg:75")
                cells = [
                    f"{SIZE * times} px",
                    name,
                    "none" if limit is None else f"{limit:g}",
                    f"{sum(losses) / len(losses):.2f}, {max(losses):.2f}",
                    f"{bad.float().mean():.2f}",
                    f"{(bad & ~clean).float().mean():.2f}",
                    f"{(after & ~clean_jpeg).float().mean():.2f}",
                    f"{sum(factor for _, factor in pairs) / len(pairs):.2f}",
                ]
                print("| " + " | ".join(cells) + " |", flush=True)
                if chosen.keep:
                    save_png(protected[0], chosen.keep / f"{times}_{name}_{limit}.png")


EDITOR = load_editor("miniature-ip2p")

if __name__ == "__main__":
    main()
