"""Many prompts on ComfyUI servers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError, SifmError
from .app import app
from .output import dump, one_line, progress
from .shared import SUFFIXES, Json, key_values, parse_value


@app.command()
def queue(
    workflow: Annotated[
        Path, typer.Argument(metavar="WORKFLOW", help="A JSON file in API format.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Records, pictures, tables, what is done.")],
    server: Annotated[
        list[str] | None,
        typer.Option("--server", metavar="URL", help="A ComfyUI; may be repeated. Default http://127.0.0.1:8188."),
    ] = None,
    images: Annotated[
        str, typer.Option("--images", metavar="DIR|benchmark", help="Pictures for LoadImage, or Load Benchmark's.")
    ] = "",
    start: Annotated[int, typer.Option("--start", metavar="N", help="First picture of the benchmark.")] = 0,
    count: Annotated[int, typer.Option("--count", metavar="N", help="How many pictures of the benchmark.")] = 100,
    fixed: Annotated[
        list[str] | None, typer.Option("--set", metavar="NODE.INPUT=VALUE", help="NODE: id, title or class.")
    ] = None,
    sweep: Annotated[
        list[str] | None, typer.Option("--sweep", metavar="NODE.INPUT=A,B", help="Every combination; may be repeated.")
    ] = None,
    patience: Annotated[
        float, typer.Option("--patience", metavar="SECONDS", help="How long a server may be away.")
    ] = 600.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent.")] = False,
    as_json: Json = False,
) -> None:
    """Run a ComfyUI workflow many times, on one or several servers.

    Once per picture and combination of swept values. What is done is remembered in DIR: run again, it goes on where it
    was stopped. What any node gives is collected there: the pictures, tables and texts of a prompt in outputs/, the
    records of Results Table nodes with their pictures in the run. What was not found is said.
    """
    from .. import queue_client as client
    from ..store import Store

    swept = {name: [parse_value(v) for v in text.split(",")] for name, text in key_values(sweep or []).items()}
    given = {name: parse_value(text) for name, text in key_values(fixed or []).items()}
    jobs = client.vary(client.load_workflow(workflow), given, swept)
    if images == "benchmark":
        jobs = client.for_benchmark(jobs, start, count)
    elif images:
        found = sorted(p for p in Path(images).glob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise InputError(f"{images}: expected a folder with pictures ({', '.join(SUFFIXES)}), or 'benchmark'")
        jobs = client.for_pictures(jobs, found)
    servers = [client.Server(url, patience=patience) for url in server or ["http://127.0.0.1:8188"]]
    if dry_run:
        return dump([dict(job.label) for job in jobs])
    with Store(out) as store, progress() as on_step:
        failures = client.run(jobs, servers, store, on_step(""))
        done = client.summary(jobs, store)
    if as_json:
        dump({"folder": str(out), "jobs": done, "failed": failures})
    else:
        records, files = (sum(len(job[part]) for job in done) for part in ("records", "files"))
        print(
            f"{sum(job['done'] for job in done)} of {len(done)} prompts done: {records} records, {files} files in {out}"
        )
        for line in dict.fromkeys(line for job in done for line in job["missing"]):
            print(f"not found: {one_line(line)}")
    if failures:
        raise SifmError(f"{len(failures)} failed: {failures[0]}")
