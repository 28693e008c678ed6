"""Does `sifm holds` say what is true? Its lights on pictures whose truth is known.

    python -m benchmarks.holding --images 30

Fresh pictures of the miniature: unprotected, under noise, and protected by SIFM+ without an instruction, each tested as
`sifm holds` does, as it is, after an upload and after a mild purifier, with the pictures' own six instructions and two
seeds. One light is by the miniature's two judges, the other by the renderer, who knows.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sifm_core import holds, immunize, load_editor, load_judge
from sifm_core.files import write_atomically
from sifm_core.holding import TOY_JUDGES, decided, known_uploads
from sifm_core.miniature import gate
from sifm_core.report.holds import page
from sifm_core.types import Editor
from sifm_core.verdicts import TRUTH

SEED = 6262


def protections(x: Tensor, editor: Editor, eps: float, steps: int) -> dict[str, Tensor]:
    """Name -> picture."""
    signs = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).sub(0.5).sign()
    plus = immunize(x, editor, prompt="", method="sifm_plus", eps=eps, steps=steps).image
    return {"nothing": x, "noise": ((x + eps * signs).clamp(0, 1) * 255).round() / 255, "SIFM+": plus}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each picture, and how often which light was given where truth says which."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--eps", type=float, default=0.04)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--keep", type=Path, help="a folder for the pages")
    chosen = parser.parse_args(arguments)
    editor, judges = load_editor("miniature-ip2p"), [load_judge(name) for name in (*TOY_JUDGES, TRUTH)]
    counts: Counter[tuple[str, str, str]] = Counter()
    for item in gate.fresh(chosen.images, SEED):
        x = item.image[None]
        for name, protected in protections(x, editor, chosen.eps, chosen.steps).items():
            found = holds(
                protected,
                editor,
                source=x,
                instructions=(item.instruction, *item.unseen),
                uploads=known_uploads()[1:2],
                purifiers=("blur:0.5",),
                judges=judges,
                truth=item.truth,
            )
            known = [
                replace(attack, verdicts=tuple(v for v in attack.verdicts if v.judge == TRUTH))
                for attack in found.attacks
            ]
            true = decided(replace(found, attacks=tuple(known)))
            counts[name, str(true.light), str(found.light)] += 1
            row = found.rows[0]
            print(f"{item.id:9} {name:8} judges {found.light:6} truth {true.light:6} weakest {row.way}", flush=True)
            if chosen.keep:
                write_atomically(chosen.keep / f"{item.id}-{name}.html", page(found, item.id).encode())
    print("| protected by | truth says | judges say | pictures |\n|---|---|---|---:|")
    for (name, true_light, light), count in sorted(counts.items()):
        print(f"| {name} | {true_light} | {light} | {count} |")


if __name__ == "__main__":
    main()
