"""Is a miniature editor a fair test? ``python -m sifm_core.miniature.gate [--editor NAME] [--images 100] [--json]``.

On fresh pictures (not the benchmark's), by the renderer's ground truth: the share of edits that are right, unprotected
with trained and held-out words, with another sampling seed, under the controls, and under three white-box attacks of
the same budget that are no published method: on the whole edit, on the first prediction, on the encoder. The gate is
passed when the strongest of them derails enough edits that were right before (net ISR) while no control does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import pipeline
from ..editors import load_editor
from ..images import resize, round_to_budget
from ..noise import normal
from ..pgd import pgd
from ..stats import wilson
from ..types import Editor, Gradient, Image
from . import language, train_sd3, world
from .benchmark import Item, make
from .truth import ROUGH

CONTROLS = {f"{'pixel noise' if p == 'pixel' else p}": p for p in ("pixel", "block4", "block8", "block16")}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "PhotoGE": ("photoguard_encoder", {}),
    "SIFM deep": ("sifm", {"timesteps": 4}),
}
NEEDED = {"miniature-sd3": 0.40, "miniature-qwen": 0.40}
"""Net ISR that the strongest attack must reach, 0.50 where nothing else is said."""
ALLOWED = 0.10
"""Net ISR that no control may reach."""
_BATCH = {"cpu": 20, "cuda": 100}
"""Pictures at once."""


@dataclass(frozen=True)
class Row:
    """One line of the table: shares of the n edits by ground truth, `net` with its 95% interval, seconds a picture.

    A kind of edit that is not among the n has None.
    """

    eps: float
    name: str
    n: int
    right: float
    right_material: float | None
    right_identity: float | None
    right_whole: float | None
    degraded: float
    net: float
    net_low: float
    net_high: float
    seconds: float


def fresh(n: int, seed: int = 77) -> list[Item]:
    """n pictures that neither training nor the benchmark has seen, categories in turn.

    One in six of each category has an original edit that is not about a material: of a person, its identity.
    """
    rng, items = np.random.default_rng(seed), []
    for i in range(n):
        turn, category = divmod(i, len(world.CATEGORIES))
        other = "identity" if world.CATEGORIES[category] == "portrait" else "whole"
        items.append(make(f"fresh-{i}", world.CATEGORIES[category], rng, ("material",) if turn % 6 != 5 else (other,)))
    return items


def words(items: Sequence[Item], family: str, seed: int = 78) -> dict[str, list[str]]:
    """What the table's unprotected rows say: trained and held-out instructions, and captions for an SD3."""
    rng = np.random.default_rng(seed)
    edits = [i.truth(i.instruction).edit for i in items]
    said = {
        "unprotected": [i.instruction for i in items],
        "held-out phrasings": [str(rng.choice(language.phrases(e)[language.TRAINED_PHRASES :])) for e in edits],
    }
    if family == "sd3":
        k = language.TRAINED_CAPTIONS
        said["captions"] = [str(rng.choice(language.captions(e)[:k])) for e in edits]
        said["held-out captions"] = [str(rng.choice(language.captions(e)[k:])) for e in edits]
    return said


def outcome(items: Sequence[Item], edited: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(mismatch (n,) bool, measures (n, 4)) by ground truth; see :meth:`Truth.measure`."""
    truths = [i.truth(i.instruction) for i in items]
    mismatch = [t.check(e)[0] for t, e in zip(truths, edited, strict=True)]
    return np.array(mismatch), np.array([t.measure(e.double().numpy()) for t, e in zip(truths, edited, strict=True)])


# --- the attacks: what is raised, and the gradient of minus that ------------------------------------------------------


def attack(name: str, editor: Editor, x: Image, prompts: Sequence[str], eps: float, steps: int, seed: int) -> Image:
    """PGD against the "whole edit", the "prediction" or the "encoder", from a random start; on the 8-bit grid."""
    size, x = editor.work_size(x.shape[-2], x.shape[-1]), x.to(editor.device)
    cond, seeds = editor.prepare(prompts, resize(x, size)), [seed + i for i in range(len(x))]
    at_picture = _MOVED[name](editor, cond, seeds)

    def moved(x: Image, k: int) -> Tensor:
        return at_picture(resize(x, size), k)

    with torch.no_grad():
        clean = [moved(x, k) for k in range(_DRAWS)]

    def grad_fn(x_adv: Image, step: int) -> Gradient:
        x_adv = x_adv.detach().requires_grad_(True)
        k = step % _DRAWS
        loss = -((moved(x_adv, k) - clean[k]) ** 2).flatten(1).sum(1)
        (gradient,) = torch.autograd.grad(loss.sum(), x_adv)
        return Gradient(loss.detach(), gradient, {})

    steps = steps // 2 if name == "whole edit" else steps  # each costs several times as much
    found = pgd(x, grad_fn, eps=eps, alpha=2 / 255, steps=steps, seed=seeds, random_start=True)
    return round_to_budget(found.cpu(), x.cpu(), eps)


_DRAWS = 4
"""Noises in turn, none of them the editor's own, so that an attack does not fit one sample."""


def _whole(editor: Editor, cond: Any, seeds: list[int]) -> Callable[[Image, int], Tensor]:
    steps = 4 if editor.family == "sd3" else 2  # of SD3's, the strength leaves 0.6

    def edited(x: Image, k: int) -> Tensor:
        drawn = editor.draws(x, [s + 1000 * (k + 1) for s in seeds], steps=steps)
        return editor.generate(x, cond, drawn, steps=steps)

    return edited


def _prediction(editor: Editor, cond: Any, seeds: list[int]) -> Callable[[Image, int], Tensor]:
    first = round(1000 * train_sd3.start()) if editor.family == "sd3" else 999

    def moved(x: Image, k: int) -> Tensor:
        z = editor.encode(x)
        noise = normal(z.shape, [s + 1000 * (k + 1) for s in seeds]).to(z)
        return editor.denoise(z, noise, torch.full((len(z),), first, device=z.device), cond)

    return moved


def _encoder(editor: Editor, cond: Any, seeds: list[int]) -> Callable[[Image, int], Tensor]:
    return lambda x, k: editor.encode(x)


_MOVED = {"whole edit": _whole, "prediction": _prediction, "encoder": _encoder}
ATTACKS = (*_MOVED, *PUBLISHED)


# --- the table --------------------------------------------------------------------------------------------------------


def run(
    editor: Editor, n: int, eps: Sequence[float], steps: int, attacks: Sequence[str], seed: int = 77, log: Any = None
) -> list[Row]:
    """The table: unprotected rows first, then per eps every control and attack on the same pictures and seeds."""
    items = fresh(n, seed)
    said = words(items, editor.family)
    x, seeds, batch = torch.stack([i.image for i in items]), list(range(n)), _BATCH[editor.device.type]
    kinds = np.array([world.kind(i.truth(i.instruction).edit) for i in items])
    rows: list[Row] = []
    clean_wrong = np.zeros(n, bool)

    def add(at: float, name: str, image: Tensor, prompts: Sequence[str], offset: int, seconds: float) -> np.ndarray:
        wrong, measures = outcome(items, edits(editor, image, prompts, [s + offset for s in seeds]))
        caused = int((wrong & ~clean_wrong).sum()) if rows else 0
        low, high = wilson(caused, n)
        material, identity, whole = (_share(~wrong[kinds == k]) for k in ("material", "identity", "whole"))
        degraded = float((measures[:, 3] > ROUGH).mean())
        right = (float((~wrong).mean()), material, identity, whole)
        rows.append(Row(at, name, n, *right, degraded, caused / n, low, high, seconds))
        if log:
            log(rows[-1])
        return wrong

    for name, prompts in said.items():
        wrong = add(0, name, x, prompts, 0, 0)
        clean_wrong = wrong if name == "unprotected" else clean_wrong
    prompts = said["unprotected"]
    add(0, "another seed", x, prompts, 100_000, 0)
    for budget in eps:
        for name in (*CONTROLS, *attacks):
            began = time.perf_counter()
            parts = [
                _perturbed(name, editor, x[k : k + batch], prompts[k : k + batch], budget, steps, k)
                for k in range(0, n, batch)
            ]
            seconds = (time.perf_counter() - began) / n
            add(budget, name, torch.cat(parts), prompts, 0, seconds)
    return rows


def _perturbed(
    name: str, editor: Editor, x: Image, prompts: Sequence[str], eps: float, steps: int, first: int
) -> Image:
    if name in _MOVED:
        return attack(name, editor, x, prompts, eps, steps, seed=first)
    method, options = PUBLISHED.get(name) or ("random_noise", {"pattern": CONTROLS[name]})
    seeds = list(range(first, first + len(x)))
    return pipeline.immunize(
        x, editor, prompt=prompts, method=method, eps=eps, steps=steps, seed=seeds, **options
    ).image


def edits(editor: Editor, x: Image, prompts: Sequence[str], seeds: Sequence[int]) -> Image:
    """The editor's edits of any number of pictures, a few at a time."""
    parts = [slice(k, k + _BATCH["cpu"]) for k in range(0, len(x), _BATCH["cpu"])]
    return torch.cat([pipeline.edit(x[k], editor, prompt=prompts[k], seed=list(seeds[k])) for k in parts])


def _share(mask: np.ndarray) -> float | None:
    return float(mask.mean()) if len(mask) else None


@torch.no_grad()
def reconstruction(editor: Any, n: int = 100, seed: int = 77) -> float:
    """Mean PSNR in dB of the autoencoder on n fresh pictures."""
    x = torch.stack([i.image for i in fresh(n, seed)])
    size = editor.work_size(*x.shape[-2:])
    decoded = torch.cat([editor.decode(editor.encode(resize(one, size))).cpu() for one in x.split(_BATCH["cpu"])])
    error = (resize(decoded.clamp(0, 1), (x.shape[-2], x.shape[-1])) - x).square().flatten(1).mean(1)
    return float((-10 * error.log10()).mean())


def verdict(editor: str, rows: Sequence[Row], eps: float) -> dict[str, Any]:
    """The strongest attack and the strongest control at one eps, and whether the gate is passed."""
    tried = [r for r in rows if r.eps == eps and r.name in _MOVED]
    controls = [r for r in rows if (r.eps == eps and r.name in CONTROLS) or r.name == "another seed"]
    strongest, loudest = max(tried, key=lambda r: r.net), max(controls, key=lambda r: r.net)
    needed = NEEDED.get(editor, 0.50)
    return {
        "eps": eps,
        "strongest": strongest.name,
        "net": strongest.net,
        "needed": needed,
        "loudest_control": loudest.name,
        "control_net": loudest.net,
        "allowed": ALLOWED,
        "passed": strongest.net >= needed and loudest.net < ALLOWED,
    }


def main(argv: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor", default="miniature-ip2p", help="built-in name or folder")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.03], help="one or more budgets: a curve")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--attacks", nargs="*", default=list(_MOVED), choices=ATTACKS)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    torch.backends.cudnn.allow_tf32 = False  # rounds low contrast away
    editor = load_editor(args.editor, device=args.device, dtype="float32")
    out = sys.stderr if args.json else sys.stdout
    db = reconstruction(editor, args.images, args.seed)
    print(f"{args.editor}: {args.images} fresh pictures, {args.steps} iterations; autoencoder {db:.1f} dB", file=out)
    print(f"{'eps':>5s}  {'':20s} right  mat.  ident. whole  degr.   net  (95%)        s/img", file=out)

    def line(r: Row) -> None:
        shares = "  ".join(
            "    –" if v is None else f"{v:5.2f}" for v in (r.right, r.right_material, r.right_identity, r.right_whole)
        )
        interval = f"{r.net:5.2f}  ({r.net_low:.2f}-{r.net_high:.2f})"
        print(
            f"{r.eps:5.2f}  {r.name:20s} {shares}  {r.degraded:5.2f}  {interval}  {r.seconds:7.2f}",
            file=out,
            flush=True,
        )

    rows = run(editor, args.images, args.eps, args.steps, args.attacks, args.seed, line)
    gates = [verdict(args.editor, rows, e) for e in args.eps if any(a in _MOVED for a in args.attacks)]
    for g in gates:
        print(
            f"eps {g['eps']}: {g['strongest']} {g['net']:.2f} (needs {g['needed']:.2f}), strongest control "
            f"{g['loudest_control']} {g['control_net']:.2f} (below {g['allowed']:.2f}): "
            f"{'passed' if g['passed'] else 'NOT PASSED'}",
            file=out,
        )
    if args.json:
        document = {"editor": args.editor, "reconstruction_db": db, "rows": [asdict(r) for r in rows], "gates": gates}
        json.dump(document, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
