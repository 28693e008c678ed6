"""Tries for SIFM+: pictures that no benchmark holds, protected and attacked, by the renderer's ground truth.

    python -m benchmarks.beyond --out DIR [--editor NAME] [--images N] [--seed N] [--purify CHAIN]... ROW...

A ROW is one of sifm_core/bench/rows.toml or a JSON object in its words, such as '{"name": "long", "method":
"sifm_plus", "instruction": "", "loop": {"steps": 200}, "options": {"runs": 8}}'; an editor is a name or "A -> B". The
pictures are ``sifm_core.miniature.gate.fresh(N, SEED)``, each attacked with its original and five unseen instructions,
with other noise than it was protected with. What a protection draws by itself is never what the picture is attacked
with, in no wording. DIR holds the run, which goes on where it was stopped, and tries.jsonl, a line for each row that
was measured: its settings, and for each kind of prompt and each purifier the share of edits that fail (mismatch or
degradation), the same of the clean picture, and net, the share that fails and works on the clean picture.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sifm_core import bench
from sifm_core.bench.config import RowSpec, row_of
from sifm_core.bench.grid import Grid, Row, Sample
from sifm_core.miniature import gate, language
from sifm_core.rates import isr
from sifm_core.store import Store
from sifm_core.types import Record
from sifm_core.verdicts import CLEAN

JUDGE = "miniature:renderer"


def samples(n: int, seed: int) -> list[Sample]:
    """The attacks on n fresh pictures."""
    found = []
    for item in gate.fresh(n, seed):
        asked = (item.instruction, *item.unseen)
        wordings = tuple(text for prompt in asked for text in language.wordings(prompt))
        for k, prompt in enumerate(asked):
            kind, truth = "unseen" if k else "original", item.truth(prompt)
            found.append(Sample(item.id, item.image, item.instruction, prompt, item.category, kind, truth, wordings))
    return found


def rows(specs: Sequence[str]) -> list[Row]:
    """The clean row, and those that are named or spelled."""
    tables = [row_of(json.loads(spec) if spec.startswith("{") else spec) for spec in specs]
    return [Row(CLEAN), *(row for table in tables for row in RowSpec(**table).rows())]


def measured(records: Sequence[Record], row: Row) -> Iterator[dict[str, Any]]:
    """A figure for each kind of prompt and purifier."""
    cells = {(r.method, r.image, r.prompt, r.info["purifier"]): r for r in records}
    for chain in dict.fromkeys(r.info["purifier"] for r in records):
        for kind in ("original", "unseen"):
            of = [r for r in records if (r.method, r.info["purifier"], r.prompt_kind) == (row.name, chain, kind)]
            clean = [cells[CLEAN, r.image, r.prompt, chain].verdicts[0].success for r in of]
            rate = isr([r.verdicts[0].success for r in of], clean=clean)
            yield {"purifier": chain, "prompts": kind, "rate": rate.rate, "clean": rate.clean_rate, "net": rate.net}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rows one after the other, print a line for each and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", metavar="ROW")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the run")
    parser.add_argument("--editor", default="miniature-ip2p")
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--seed", type=int, default=5001)
    parser.add_argument("--purify", action="append", default=[""], help="what the attacker does first; beside nothing")
    parser.add_argument("--batch", type=int, default=30, help="pictures at a time")
    chosen = parser.parse_args(arguments)
    clean, *tried = rows(chosen.rows)
    attacks = samples(chosen.images, chosen.seed)
    for row in tried:
        pair = [clean, row]
        grid = Grid(attacks, [chosen.editor], [JUDGE], pair, purifiers=chosen.purify, batch=chosen.batch)
        with Store(chosen.out) as store:
            records = bench.run(grid, store)
        seconds = statistics.mean(r.seconds["immunize"] for r in records if r.method == row.name)
        figures = list(measured(records, row))
        line = {"editor": chosen.editor, "images": chosen.images, "seed": chosen.seed, **dataclasses.asdict(row)}
        with (chosen.out / "tries.jsonl").open("a") as log:
            log.write(json.dumps({**line, "seconds": seconds, "figures": figures}) + "\n")
        print(f"{row.name}: {seconds:.1f} s a picture", *map(_said, figures), sep="\n  ", flush=True)


def _said(figure: dict[str, Any]) -> str:
    where = f"{figure['prompts']:<9} {figure['purifier'] or 'as it is':<20}"
    return f"{where} {figure['rate']:.2f} failed, net {figure['net']:.2f} (clean {figure['clean']:.2f})"


if __name__ == "__main__":
    main()
