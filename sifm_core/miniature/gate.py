"""Is the miniature a fair test? ``python -m sifm_core.miniature.gate [--images 100] [--eps 0.03] [--json]``.

On fresh pictures (not the benchmark's), by the renderer's ground truth: the share of edits that are right,
unprotected with trained and held-out phrasings, with another sampling seed, under the controls and under white-box
attacks at the same budget.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import pipeline
from ..editors import load_editor
from . import world
from .benchmark import Item, make

ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "pixel noise": ("random_noise", {"pattern": "pixel"}),
    "blocks 4": ("random_noise", {"pattern": "block4"}),
    "blocks 8": ("random_noise", {"pattern": "block8"}),
    "blocks 16": ("random_noise", {"pattern": "block16"}),
    "PhotoGE": ("photoguard_encoder", {}),
    "SIFM deep": ("sifm", {"timesteps": 4}),
    "SIFM up": ("sifm", {"timesteps": 4, "layers": "up"}),
    "SIFM down": ("sifm", {"timesteps": 4, "layers": "down"}),
}


@dataclass(frozen=True)
class Row:
    """One line of the table: shares of the n edits, by ground truth; `seconds` per picture, of the attack alone."""

    name: str
    n: int
    right: float
    right_local: float
    right_global: float
    degraded: float
    net: float
    rough: float
    seconds: float


def fresh(n: int, seed: int = 77, held_out: bool = False) -> tuple[list[Item], list[str]]:
    """n pictures that neither training nor the benchmark has seen, categories in turn, and their instructions."""
    rng = np.random.default_rng(seed)
    items = [make(f"fresh-{i}", world.CATEGORIES[i % 3], rng, local=i % 6 != 5) for i in range(n)]
    if not held_out:
        return items, [i.instruction for i in items]
    edits = [i.truth(i.instruction).edit for i in items]
    return items, [str(rng.choice(world.phrases(e)[world.TRAINED_PHRASES :])) for e in edits]


def outcome(items: Sequence[Item], prompts: Sequence[str], edited: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(mismatch (n,) bool, measures (n, 4)) by ground truth; see :meth:`Truth.measure`."""
    truths = [i.truth(p) for i, p in zip(items, prompts, strict=True)]
    mismatch = [t.check(e)[0] for t, e in zip(truths, edited, strict=True)]
    return np.array(mismatch), np.array([t.measure(e.double().numpy()) for t, e in zip(truths, edited, strict=True)])


def run(
    editor: Any, n: int, eps: float, steps: int, attacks: Sequence[str], seed: int = 77, log: Any = None
) -> list[Row]:
    """The table: unprotected rows first, then every attack on the same pictures, instructions and seeds."""
    from .truth import ROUGH

    editor = load_editor(editor) if isinstance(editor, str) else editor
    items, prompts = fresh(n, seed)
    held = fresh(n, seed, held_out=True)[1]
    x = torch.stack([i.image for i in items])
    seeds = list(range(n))
    local = np.array([i.truth(i.instruction).edit not in world.GLOBAL_EDITS for i in items])
    rows: list[Row] = []
    clean_wrong = np.zeros(n, bool)

    def add(name: str, image: Tensor, words: Sequence[str], edit_seeds: Sequence[int], seconds: float) -> np.ndarray:
        edited = torch.cat(
            [
                pipeline.edit(
                    image[k : k + 20], editor, prompt=list(words[k : k + 20]), seed=list(edit_seeds[k : k + 20])
                )
                for k in range(0, n, 20)
            ]
        )
        wrong, measures = outcome(items, words, edited)
        rough = measures[:, 3]
        share = lambda m: float(m.mean()) if len(m) else float("nan")  # noqa: E731
        rows.append(
            Row(
                name,
                n,
                share(~wrong),
                share(~wrong[local]),
                share(~wrong[~local]),
                share(rough > ROUGH),
                share(wrong & ~clean_wrong),
                float(np.median(rough)),
                seconds,
            )
        )
        if log:
            log(rows[-1])
        return wrong

    clean_wrong = add("unprotected", x, prompts, seeds, 0)
    add("unprotected, held-out phrasings", x, held, seeds, 0)
    add("another seed", x, prompts, [s + 100_000 for s in seeds], 0)
    for name in attacks:
        method, options = ATTACKS[name]
        started = time.perf_counter()
        parts = [
            pipeline.immunize(
                x[k : k + 20],
                editor,
                prompt=prompts[k : k + 20],
                method=method,
                eps=eps,
                steps=steps,
                seed=seeds[k : k + 20],
                **options,
            ).image
            for k in range(0, n, 20)
        ]
        add(name, torch.cat(parts), prompts, seeds, (time.perf_counter() - started) / n)
    return rows


def main(argv: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor", default="miniature-ip2p")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--eps", type=float, default=0.03)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS), choices=list(ATTACKS))
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    head = f"{'':32s} {'right':>6s} {'local':>6s} {'global':>6s} {'degr.':>6s} {'net':>6s} {'rough':>6s} {'s/img':>6s}"
    if not args.json:
        print(head)

    def line(r: Row) -> None:
        if not args.json:
            print(
                f"{r.name:32s} {r.right:6.2f} {r.right_local:6.2f} {r.right_global:6.2f} {r.degraded:6.2f} "
                f"{r.net:6.2f} {r.rough:6.3f} {r.seconds:6.2f}",
                flush=True,
            )

    rows = run(args.editor, args.images, args.eps, args.steps, args.attacks, args.seed, line)
    if args.json:
        json.dump([vars(r) for r in rows], sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
