"""The whole job on embedded pictures."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError, SifmError
from .app import app
from .output import as_text, dump, progress
from .shared import (
    EDITOR,
    JUDGES,
    Alpha,
    Device,
    Dtype,
    EditorName,
    Eps,
    Json,
    Judges,
    distinct,
    load_editor,
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Report, pictures, records.")] = Path("sifm-demo"),
    images: Annotated[int, typer.Option("--images", metavar="N", help="How many of the benchmark.")] = 8,
    steps: Annotated[int, typer.Option("--steps", metavar="N", help="Iterations.")] = 100,
    eps: Eps = 0.03,
    alpha: Alpha = 2 / 255,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Attacks per picture, each its own seed.")] = 1,
    unseen: Annotated[int, typer.Option("--unseen", metavar="N", help="Attack with so many other prompts too.")] = 0,
    editor: EditorName = EDITOR,
    judges: Judges = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Pictures at a time.")] = 8,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Do the whole job on embedded pictures.

    Immunize, attack, measure, judge, ISR with its controls, one HTML report. Run again with the same settings, it goes
    on where it was stopped.
    """
    from .. import bench, pipeline, report
    from ..images import write_atomically
    from ..judges import load_judge
    from ..miniature import benchmark
    from ..store import Store

    for value, name in ((images, "images"), (steps, "steps"), (seeds, "seeds"), (batch, "batch")):
        pipeline.check_count(value, name)
    if unseen < 0:
        raise InputError(f"unseen: expected a whole number of at least 0, got {unseen}")
    eps, alpha = pipeline.check_budget(eps), pipeline.check_unit(alpha, "alpha")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a folder for the report, but this is a file")
    specs = distinct(judges or (*JUDGES, report.TRUTH))
    start = time.perf_counter()
    grid = bench.Grid(
        samples=bench.benchmark(benchmark.load(n=images), unseen),
        editors=[load_editor(editor, device, dtype, False)],
        judges=[load_judge(spec) for spec in specs],
        seeds=range(seeds),
        eps=eps,
        steps=steps,
        alpha=alpha,
        batch=batch,
    )
    store = Store(out / "store")
    with progress() as on_step:
        records = bench.run(grid, store, on_step(""), retry=True)
    run = bench.provenance(grid) | {"seconds": round(time.perf_counter() - start, 1)}
    found = report.make(records, run)
    written = report.write(found, store, out, pictures=images * seeds * (unseen + 1))
    write_atomically(out / "records.json", as_text([asdict(record) for record in records]).encode())
    table = found.parts[0].lines
    if as_json:
        dump(
            {
                "folder": str(out),
                "files": [*written, "records.json"],
                "run": run,
                "table": [asdict(line) for line in table],
            }
        )
    else:
        from rich.console import Console

        for part in report.terminal(table):
            Console().print(part)
        print(f"{found.headline}\n\nReport: {out / 'report.html'}")
    if failed := [reason for line in table for reason in line.failed]:
        raise SifmError(f"{len(failed)} kinds of failure, the report names them; the first: {failed[0]}")
