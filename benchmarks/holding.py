"""Does `sifm holds` say what is true? Its lights on pictures whose truth is known.

    python -m benchmarks.holding --images 30 --records lights.jsonl

Fresh pictures of the miniature: unprotected, under noise, and protected by SIFM+ without an instruction, weakly for the
file as it is and strongly for an upload. Each is tested as `sifm holds` does by the miniature's two judges: sixteen
instructions, as it is, after an upload and after a mild purifier. What is true is told by the renderer, from other
instructions and seeds: the share of edits that fail, of those that work on the original, where it is least. One
instruction in six is of the whole picture. What is in the file of records is not done again; `--part 2/6` does the
second of six parts, and of several files the table is of all.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sifm_core import edit, holds, immunize, load_editor, load_judge
from sifm_core.files import write_atomically
from sifm_core.holding import AS_IT_IS, INSTRUCTIONS, TOY_JUDGES, Holds, Way, decided, known_uploads
from sifm_core.methods.sifm_plus import PRESETS
from sifm_core.miniature import gate, language, world
from sifm_core.miniature.benchmark import Item
from sifm_core.report.holds import page
from sifm_core.types import Editor
from sifm_core.verdicts import HOLDS, TRUTH

SEED, MORE = 6262, 24
"""Of the pictures; how many other instructions tell what is true."""
UPLOAD, PURIFIER = known_uploads()[1], "blur:0.5"
WAYS = (Way(AS_IT_IS), UPLOAD, Way(PURIFIER, purifier=PURIFIER))
NOISE, WEAK, STRONG = 8 / 255, 5 / 255, 16 / 255
BINS = (0.25, 0.5, 0.75, 1.0)


def protections(x: Tensor, editor: Editor, steps: int) -> dict[str, Tensor]:
    """Name -> picture."""
    signs = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).sub(0.5).sign()
    eot = ("none", *PRESETS["robust"]["eot"])
    plus = {
        "SIFM+, eps 5/255, for the file": {"eps": WEAK},
        "SIFM+, eps 16/255, for an upload": {"eps": STRONG, "eot": eot},
    }
    made = {
        name: immunize(x, editor, prompt="", method="sifm_plus", steps=steps, **how).image
        for name, how in plus.items()  # type: ignore[arg-type]
    }
    return {"nothing": x, "noise, 8/255": ((x + NOISE * signs).clamp(0, 1) * 255).round() / 255, **made}


def asked(item: Item, n: int, rng: np.random.Generator) -> list[str]:
    """Instructions for a picture, every sixth of the whole of it, each edit once before any comes again."""
    whole = [str(edit) for edit in rng.permutation([e for e in item.scene.edits if world.kind(e) == "whole"])]
    parts = [str(edit) for edit in rng.permutation([e for e in item.scene.edits if world.kind(e) != "whole"])]
    edits = [whole[i // 6 % len(whole)] if i % 6 == 5 else parts[(i - i // 6) % len(parts)] for i in range(n)]
    return [str(rng.choice(language.phrases(edit)[: language.TRAINED_PHRASES])) for edit in edits]


def failing(item: Item, editor: Editor, x: Tensor, prompts: Sequence[str], seed: int) -> np.ndarray:
    """Which edits fail by the renderer's truth."""
    batch, seeds = x.expand(len(prompts), -1, -1, -1), [seed + i for i in range(len(prompts))]
    edited = edit(batch, editor, prompt=prompts, seed=seeds)
    return np.array([any(item.truth(p).check(y)[:2]) for p, y in zip(prompts, edited, strict=True)])


class Remembering:
    """An editor that makes the same edit once."""

    def __init__(self, editor: Editor) -> None:
        self._editor, self._made = editor, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._editor, name)

    def edit(self, x: Tensor, cond: Any, *, seed: Any, on_step: Any = None, **how: Any) -> Tensor:
        key = (x.numpy().tobytes(), tuple(seed))  # the instructions are one picture's, in one order
        if key not in self._made:
            self._made[key] = self._editor.edit(x, cond, seed=seed, on_step=on_step, **how)
        return self._made[key]


def tests(item: Item, editor: Editor, steps: int) -> Iterator[tuple[dict[str, Any], Holds]]:
    """For each protection of one picture: what was found, as plain data, and all of it."""
    rng = np.random.default_rng(int(item.id.split("-")[1]))
    given, others = asked(item, INSTRUCTIONS, rng), asked(item, MORE, rng)
    judges = [load_judge(name) for name in (*TOY_JUDGES, TRUTH)]
    x, attacker = item.image[None], Remembering(editor)
    work = {way.name: ~failing(item, editor, way(x, editor), others, 1000) for way in WAYS}
    for name, y in protections(x, editor, steps).items():
        found = holds(
            y,
            [attacker],  # type: ignore[list-item]
            source=x,
            instructions=given,
            uploads=[UPLOAD],
            purifiers=[PURIFIER],
            judges=judges,
            truth=item.truth,
        )
        known = [
            replace(attack, verdicts=tuple(v for v in attack.verdicts if v.judge == TRUTH)) for attack in found.attacks
        ]
        true = {}
        for way in WAYS:
            wrong = failing(item, editor, way(y, editor), others, 1000)[work[way.name]] if name != "nothing" else []
            true[way.name] = [int(np.sum(wrong)), int(work[way.name].sum())]
        yield (
            {
                "image": item.id,
                "by": name,
                "light": found.light,
                "lacking": found.lacking,
                "by_renderer": decided(replace(found, attacks=tuple(known))).light,
                "rows": {row.way: [row.rate.rate, row.rate.low, row.rate.high, row.rate.n] for row in found.rows},
                "noise": None if found.noise is None else found.noise.rate,
                "finds": {one.judge: one.sensitivity["success"].value for one in found.calibrations},
                "true": true,
            },
            found,
        )


def least(record: dict[str, Any]) -> float:
    """The share of edits that truly fail, of those that work on the original, after what leaves the fewest."""
    return min(failed / n for failed, n in record["true"].values() if n)


def table(records: Sequence[dict[str, Any]]) -> str:
    """How often which light was given, by protection and by what is true; and how often it was wrong."""
    counts: Counter[tuple[str, int, str]] = Counter()
    for record in records:
        counts[record["by"], next(i for i, most in enumerate(BINS) if least(record) <= most), record["light"]] += 1
    lines = ["| protected by | truly fail, at least | green | amber | red |", "|---|---|---:|---:|---:|"]
    for by in dict.fromkeys(record["by"] for record in records):
        for i, most in enumerate(BINS):
            shown = [counts[by, i, light] for light in ("green", "amber", "red")]
            if any(shown):
                lines.append(f"| {by} | {most - 0.25:.0%} to {most:.0%} | {' | '.join(map(str, shown))} |")
    wrong = {
        "green": sum(r["light"] == "green" and least(r) <= HOLDS for r in records),
        "red": sum(r["light"] == "red" and least(r) > HOLDS for r in records),
    }
    lines.append(f"\ngreen where at most half truly fail: {wrong['green']}; red where more do: {wrong['red']}")
    same = sum(r["light"] == r["by_renderer"] for r in records)
    lines.append(f"the same light as by the renderer on the same edits: {same} of {len(records)}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Test what is not in the records, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--part", default="1/1", help="which of how many")
    parser.add_argument("--records", type=Path, nargs="+", default=[Path("lights.jsonl")], help="the first is written")
    parser.add_argument("--keep", type=Path, help="a folder for the pages")
    chosen = parser.parse_args(arguments)
    files = [file.read_text().splitlines() if file.is_file() else [] for file in chosen.records]
    records = [json.loads(line) for lines in files for line in lines]
    done = Counter(record["image"] for record in records)
    part, parts = map(int, chosen.part.split("/"))
    editor = load_editor("miniature-ip2p", device="cpu")
    for item in gate.fresh(chosen.images, SEED)[part - 1 :: parts]:
        if done[item.id]:
            continue
        fresh = []
        for record, found in tests(item, editor, chosen.steps):
            fresh.append(record)
            print(f"{item.id:9} {record['by']:33} {found.light:6} truly at least {least(record):.0%}", flush=True)
            if chosen.keep:
                write_atomically(chosen.keep / f"{item.id}-{len(fresh)}.html", page(found, item.id).encode())
        with chosen.records[0].open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in fresh)
        records += fresh
    print(table(records))


if __name__ == "__main__":
    main()
