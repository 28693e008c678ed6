"""Do editors respond to the instructions that they can carry out? Which ones SIFM+ keeps, by the miniature's truth.

    python -m benchmarks.responses [--editor NAME] [--images N] [--seed N] [--keep N] [--timesteps 200,999]

For fresh pictures and every wish of the miniature's pool: how much the editor's prediction for the clean picture
differs (mean square) from that without an instruction, with one noise for all. Printed for each timestep: of the
``--keep`` wishes with the largest differences, the share that ask for something the picture has, and that share of the
whole pool.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from sifm_core.editors import load_editor
from sifm_core.methods import sifm_plus
from sifm_core.miniature import gate, language
from sifm_core.noise import normal
from sifm_core.types import Editor, Image


@torch.no_grad()
def responses(editor: Editor, x: Image, texts: Sequence[str], t: int) -> Tensor:
    """For one picture (1, 3, h, w) and each text, the mean square of what it changes in the prediction, (n,)."""
    z, n = editor.encode(x), len(texts) + 1
    noise, at = normal(z.shape, 1).to(z), torch.full((n,), t, device=z.device)
    cond = editor.prepare([*texts, ""], x.expand(n, -1, -1, -1))
    predicted = editor.denoise(z.expand(n, -1, -1, -1), noise.expand(n, -1, -1, -1), at, cond)
    return (predicted[:-1] - predicted[-1:]).square().flatten(1).mean(dim=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each timestep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor", default="miniature-ip2p")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--seed", type=int, default=5001)
    parser.add_argument("--keep", type=int, default=8)
    parser.add_argument("--timesteps", default="200,400,600,800,999")
    chosen = parser.parse_args(arguments)
    editor, items = load_editor(chosen.editor), gate.fresh(chosen.images, chosen.seed)
    texts = [wish[0] for wish in sifm_plus.pool(sifm_plus.OWN)]
    there = [torch.tensor([language.parse(text) in item.scene.edits for text in texts]) for item in items]
    base = statistics.mean(float(found.double().mean()) for found in there)
    for t in map(int, chosen.timesteps.split(",")):
        shares = []
        for item, found in zip(items, there, strict=True):
            largest = responses(editor, item.image[None].to(editor.device), texts, t).topk(chosen.keep).indices.cpu()
            shares.append(float(found[largest].double().mean()))
        print(f"timestep {t}: {statistics.mean(shares):.0%} of those kept can be carried out, {base:.0%} of the pool")


if __name__ == "__main__":
    main()
