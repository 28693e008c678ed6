"""A network trained to undo SIFM+: what it does to SIFM+ and to every other method, and what knowing it gives back.

    python -m benchmarks.restorer RUN [--steps N] [--unseen] [--knowing N] [--device D]

After "Purify Once, Edit Freely" (arXiv 2603.13028). RUN: the folder of a run of the miniature's benchmark with the row
SIFM+. Two small residual networks learn to make the pictures out of those that SIFM+ protected (a quarter of the time
out of the pictures themselves, which they are to leave alone): one from every other picture of the run, one from the
rest; each picture is then restored by the network that has not seen it, whatever row protected it, and edited with the
run's seed. Printed for each row: the share of edits that all judges of the run call failed, and of those that the
renderer does, as in the run and restored. ``--knowing``: that many of the pictures are protected once more by SIFM+
that sees its picture through the network that will restore it in every other iteration; and through one that learned
from the same pictures with another seed, which is what protecting can know of an attacker's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sifm_core import pipeline
from sifm_core.editors import load_editor
from sifm_core.gradients import through
from sifm_core.images import on_grid, round_to_budget
from sifm_core.judges import load_judge
from sifm_core.loop import Loop
from sifm_core.methods import sifm_plus
from sifm_core.miniature import benchmark, language
from sifm_core.pgd import pgd
from sifm_core.store import Store
from sifm_core.types import Case, Editor, Image, Judge, Record
from sifm_core.verdicts import TRUTH, consensus

LEARNT = "SIFM+"
WIDTH, DILATIONS = 32, (1, 1, 2, 2, 1)
BATCH = 25


class Restorer(nn.Module):
    """A picture (B, 3, H, W) in [0, 1] and what convolutions at its own size add to it."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *[WIDTH] * len(DILATIONS))
        pairs = zip(widths, widths[1:], DILATIONS, strict=False)
        inner = [layer for a, b, d in pairs for layer in (nn.Conv2d(a, b, 3, padding=d, dilation=d), nn.SiLU())]
        self.net = nn.Sequential(*inner, nn.Conv2d(WIDTH, 3, 3, padding=1))

    def forward(self, x: Image) -> Image:
        return (x + self.net(x - 0.5)).clamp(0, 1)


def trained(protected: Image, clean: Image, steps: int, seed: int, batch: int = 16) -> Restorer:
    """A restorer after ``steps`` of Adam on the mean absolute difference from the clean pictures, on their device."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Restorer().to(clean.device)
    draw, adam = torch.Generator().manual_seed(seed), torch.optim.Adam(net.parameters(), 2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        rows = torch.randint(len(clean), (batch,), generator=draw).to(clean.device)
        left = (torch.rand(batch, 1, 1, 1, generator=draw) < 0.25).to(clean.device)
        seen, wanted = torch.where(left, clean[rows], protected[rows]), clean[rows]
        if torch.rand((), generator=draw) < 0.5:
            seen, wanted = seen.flip(-1), wanted.flip(-1)
        adam.zero_grad()
        (net(seen) - wanted).abs().mean().backward()  # type: ignore[no-untyped-call]
        adam.step()
        decay.step()
    return net.eval().requires_grad_(False)


def knowing(items: Sequence[benchmark.Item], editor: Editor, net: Callable[[Image], Image], steps: int) -> Image:
    """SIFM+ that sees its pictures through ``net`` in every other iteration; told no instruction, and drawing none."""
    x0 = torch.stack([item.image for item in items]).to(editor.device)
    avoid = [[text for asked in (i.instruction, *i.unseen) for text in language.wordings(asked)] for i in items]
    plain = sifm_plus.build(editor, x0, editor.prepare([""] * len(items), x0), avoid=avoid)
    grad_fn = through(plain, lambda x, i: net(x) if i % 2 else x * 1)
    x = pgd(x0, grad_fn, eps=Loop.eps, alpha=Loop.alpha, steps=steps, random_start=True, update="momentum")
    return round_to_budget(x.cpu(), x0.cpu(), Loop.eps)


def judged(
    x: Image, attacks: Sequence[Record], editor: Editor, judges: Sequence[Judge]
) -> tuple[float | None, float | None]:
    """Shares of the attacks on ``x`` (one picture each) that all judges, and that the renderer, call failed."""
    failed: list[bool | None] = []
    truly: list[bool | None] = []
    items = {item.id: item for item in benchmark.load()}
    for i in range(0, len(attacks), BATCH):
        some = attacks[i : i + BATCH]
        seeds = [attack.info["edit_seed"] for attack in some]
        edited = pipeline.edit(x[i : i + BATCH], editor, prompt=[attack.prompt for attack in some], seed=seeds)
        cases = [
            Case(items[a.image].image, y, a.prompt, items[a.image].truth(a.prompt))
            for a, y in zip(some, edited, strict=True)
        ]
        for verdicts in zip(*(judge.judge(cases) for judge in judges), strict=True):
            failed.append(consensus(verdicts))
            truly += [verdict.success for verdict in verdicts if verdict.judge.startswith(TRUTH)]
    return _share(failed), _share(truly)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, restore, attack, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=400, help="of each training")
    parser.add_argument("--unseen", action="store_true", help="attack with the unseen instructions too")
    parser.add_argument("--knowing", type=int, default=0, metavar="N", help="pictures for SIFM+ that knows; slow")
    parser.add_argument("--iterations", type=int, default=100, help="of that SIFM+")
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args(arguments)
    store = Store(chosen.run, create=False)
    kinds = ("original", "unseen") if chosen.unseen else ("original",)
    rows: dict[str, list[Record]] = {}
    for record in store.records():
        if record.prompt_kind in kinds and not record.info["purifier"]:
            rows.setdefault(record.method, []).append(record)
    learnt = rows[LEARNT]
    editor = load_editor(learnt[0].editor, device=chosen.device, dtype="float32")
    judges = [load_judge(verdict.judge) for verdict in learnt[0].verdicts]

    def pictures(records: Sequence[Record], name: str) -> Image:
        return torch.cat([store.get_image(getattr(record, name)) for record in records])

    order = list(dict.fromkeys(record.image for record in learnt))
    halves = {image: i % 2 for i, image in enumerate(order)}

    def nets(seed: int) -> list[Restorer]:
        """For either half, the network that has seen the other."""
        found = []
        for half in (0, 1):
            first = {record.image: record for record in learnt if halves[record.image] != half}.values()
            pair = (pictures(list(first), name).to(editor.device) for name in ("protected", "source"))
            found.append(trained(*pair, chosen.steps, seed))
        return found

    def restored(x: Image, records: Sequence[Record], by: Sequence[Restorer]) -> Image:
        parts = [by[halves[r.image]](one[None].to(editor.device)) for r, one in zip(records, x, strict=True)]
        return on_grid(torch.cat(parts).cpu())

    attacker = nets(1)
    print("| row | ISR as it is | restored | ground truth as it is | restored |\n| --- | ---: | ---: | ---: | ---: |")
    for name, records in rows.items():
        x = pictures(records, "protected")
        before = (
            _share([consensus(r.verdicts) for r in records]),
            _share([v.success for r in records for v in r.verdicts if v.judge.startswith(TRUTH)]),
        )
        _tell(name, before, judged(restored(x, records, attacker), records, editor, judges))
    if chosen.knowing:
        asked = [r for r in learnt if r.prompt_kind == "original"][: chosen.knowing]
        items = benchmark.load(ids=[r.image for r in asked])
        for name, by in (("SIFM+ that knows it", attacker), ("SIFM+ that knows one like it", nets(2))):
            parts: list[Any] = [None] * len(items)
            for half in (0, 1):
                own = [i for i, item in enumerate(items) if halves[item.id] == half]
                for i in range(0, len(own), BATCH):
                    some = own[i : i + BATCH]
                    made = knowing([items[k] for k in some], editor, by[half], chosen.iterations)
                    parts = [made[some.index(k)] if k in some else part for k, part in enumerate(parts)]
            x = torch.stack(parts)
            as_it_is = judged(x, asked, editor, judges)
            _tell(f"{name}, {len(items)}", as_it_is, judged(restored(x, asked, attacker), asked, editor, judges))


def _share(said: Sequence[bool | None]) -> float | None:
    known = [value for value in said if value is not None]
    return sum(known) / len(known) if known else None


def _tell(name: str, before: tuple[float | None, ...], after: tuple[float | None, ...]) -> None:
    figures = [
        f"{share:.0%}" if share is not None else "–" for pair in zip(before, after, strict=True) for share in pair
    ]
    print(f"| {name} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
