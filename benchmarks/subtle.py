"""What being hardly seen costs: protection at equal visibility, with and without what an eye forgives.

    python -m benchmarks.subtle --images 30 --records subtle.jsonl

On fresh pictures of the miniature, where truth is known, as they are (64 px) and enlarged: there the editor's pixels
are as coarse as in a photograph. Each is protected by SIFM+ with an even budget and with what
:func:`sifm_core.visibility.forgiven` gives. A limit of visible loss is kept in two ways: the change is scaled down to
it (`faded`), or it is made again at the smallest of a few lower eps that is still above the limit, and that is scaled
down. A row says how many edits fail by the renderer's truth, of those that work without protection, of six instructions
that no protection was told, as it is and after JPEG 75; how far edits are from those of the source (RMS, levels), which
tells small effects apart; and what is seen. The enlarged pictures are a demonstration:
the editor sees them at its own 64 px. What is in the file of records is not done again; `--part 2/6` does the second of
six parts, and of several files the table is of all.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from sifm_core import edit, immunize, load_editor
from sifm_core.format import percent, span
from sifm_core.images import on_grid, resize, save_png
from sifm_core.miniature import gate
from sifm_core.miniature.benchmark import Item
from sifm_core.miniature.world import SIZE
from sifm_core.stats import clustered_wilson
from sifm_core.types import Editor
from sifm_core.visibility import faded, forgiven, visibility

LIMITS, SEED = (0.5, 0.1), 5151
LOWER = (1.0, 0.5, 0.25)
"""Of eps, where it is made again."""
WAYS = ("", "jpeg:75")


def budgets(x: Tensor) -> dict[str, dict[str, Any]]:
    """Name -> arguments for immunize."""
    return {"even": {}, "forgiven": forgiven(x, size=(SIZE, SIZE))}


def attack(item: Item, editor: Editor, x: Tensor, way: str) -> tuple[np.ndarray, Tensor]:
    """Which edits fail by the renderer's truth, and the edits at the renderer's size."""
    prompts = [item.instruction, *item.unseen]
    seeds, batch = list(range(len(prompts))), x.expand(len(prompts), -1, -1, -1)
    edited = resize(edit(batch, editor, prompt=prompts, seed=seeds, purify=way, demonstration=True), (SIZE, SIZE))
    return np.array([any(item.truth(p).check(y)[:2]) for p, y in zip(prompts, edited, strict=True)]), edited


def seen(x: Tensor, y: Tensor) -> float:
    return visibility(x, y).loss.value or 0.0


def kept(x: Tensor, tried: Sequence[Tensor], limit: float) -> Iterator[tuple[str, Tensor, float]]:
    """How the limit is kept, the picture, and the factor by which it was scaled down."""
    yield ("faded", *faded(x, tried[0], limit))
    above = [y for y in tried if seen(x, y) > limit]
    yield ("made again", *faded(x, above[-1] if above else tried[0], limit))


def tests(item: Item, editor: Editor, times: int, eps: float, steps: int) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """For each budget and limit of one picture: what was found, as plain data, and the protected picture."""
    x = item.image[None]
    x = on_grid(F.interpolate(x, scale_factor=times, mode="bicubic").clamp(0, 1)) if times > 1 else x
    clean = {way: attack(item, editor, x, way) for way in WAYS}
    for name, how in budgets(x).items():
        given: dict[str, Any] = {"prompt": "", "method": "sifm_plus", "steps": steps, "demonstration": True, **how}
        tried = [immunize(x, editor, eps=eps * share, **given).image for share in LOWER]
        rows = [(None, "", tried[0], 1.0)]
        rows += [(limit, *one) for limit in LIMITS for one in kept(x, tried, limit)]
        for limit, way, y, factor in rows:
            record = {"image": item.id, "px": SIZE * times, "budget": name, "limit": limit, "kept": way}
            record |= {"jod": seen(x, y), "factor": factor, "fail": {}, "work": {}}
            for w, (wrong, edits) in clean.items():
                fail, edited = attack(item, editor, y, w)
                record["fail"][w], record["work"][w] = int((fail & ~wrong).sum()), int((~wrong).sum())
                record |= {} if w else {"moved": 255 * float((edited - edits).square().mean().sqrt())}
            yield record, y


def table(records: Sequence[dict[str, Any]]) -> str:
    """A row for each size, budget and limit."""
    head = "| picture | budget | limit | kept by | JOD: mean, most | fail | 95% | after JPEG | moved | scaled to | n |"
    lines = [head, "|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|"]
    keys = dict.fromkeys((r["px"], r["budget"], r["limit"], r["kept"]) for r in records)
    for key in sorted(keys, key=lambda key: key[0]):
        some = [r for r in records if (r["px"], r["budget"], r["limit"], r["kept"]) == key]
        losses, factors = [r["jod"] for r in some], [r["factor"] for r in some]
        shares, intervals = [], []
        for way in WAYS:
            values = [(i < r["fail"][way], r["image"]) for r in some for i in range(r["work"][way])]
            shares.append(sum(value for value, _ in values) / max(1, len(values)))
            intervals.append(clustered_wilson(*zip(*values, strict=True)) if values else (None, None))
        cells = [f"{key[0]} px", key[1], "none" if key[2] is None else f"{key[2]:g}", key[3]]
        cells += [f"{np.mean(losses):.2f}, {max(losses):.2f}", percent(shares[0]), span(*intervals[0])]
        cells += [percent(shares[1]), f"{np.mean([r['moved'] for r in some]):.1f}", f"{np.mean(factors):.2f}"]
        cells.append(str(len(some)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what is not in the records, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--enlarged", type=int, nargs="+", default=[1, 4], help="how many times")
    parser.add_argument("--eps", type=float, default=16 / 255)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--part", default="1/1", help="which of how many")
    parser.add_argument("--records", type=Path, nargs="+", default=[Path("subtle.jsonl")], help="the first is written")
    parser.add_argument("--keep", type=Path, help="a folder for the pictures")
    chosen = parser.parse_args(arguments)
    files = [file.read_text().splitlines() if file.is_file() else [] for file in chosen.records]
    records = [json.loads(line) for lines in files for line in lines]
    done = Counter((record["image"], record["px"]) for record in records)
    part, parts = map(int, chosen.part.split("/"))
    editor = load_editor("miniature-ip2p", device="cpu")
    for item in gate.fresh(chosen.images, SEED)[part - 1 :: parts]:
        for times in chosen.enlarged:
            if done[item.id, SIZE * times]:
                continue
            fresh = []
            for record, y in tests(item, editor, times, chosen.eps, chosen.steps):
                fresh.append(record)
                if chosen.keep:
                    name = f"{item.id}_{times}_{record['budget']}_{record['limit']}_{record['kept']}.png"
                    save_png(y, chosen.keep / name.replace(" ", "-"))
            with chosen.records[0].open("a") as file:
                file.writelines(json.dumps(record) + "\n" for record in fresh)
            records += fresh
            print(f"{item.id} at {SIZE * times} px", flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
