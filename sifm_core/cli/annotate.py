"""People judge a run's edits in a browser."""

from __future__ import annotations

import threading
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .app import app
from .judging import run_store
from .output import tell
from .shared import Seed


@app.command()
def annotate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The answers, .csv or .jsonl; default RUN/annotations.jsonl."),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", metavar="N", help="How many to draw, in proportion.")] = 150,
    seed: Seed = 0,
    port: Annotated[int, typer.Option("--port", metavar="N", help="Of this machine; 0: any that is free.")] = 0,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Judge edits yourself: a page of this machine alone, blind, by keyboard.

    Several people may do so, at the same time too, each under a name; the page says how far they agree. Answers are
    kept one by one: the same command goes on where it was stopped (Ctrl-C). `sifm consistency RUN --human FILE` sets
    them beside the judges', and --judge human:FILE#NAME makes a judge of a person.
    """
    from ..annotate import Page
    from ..consistency import stratified

    file = out or run / "annotations.jsonl"
    if file.suffix not in (".csv", ".jsonl"):
        raise InputError(f"--out: expected a name that ends in .csv or .jsonl, got {file}")
    if not 0 <= port < 1 << 16:
        raise InputError(f"--port: expected 0 to 65535, got {port}")
    with run_store(run) as store:
        records = stratified(store.records(), samples, seed=seed)
        heard: dict[str, int] = {}

        def count(answer: object) -> None:
            who = getattr(answer, "annotator", "")
            heard[who] = heard.get(who, 0) + 1

        with Page(store, records, file, port=port, on_answer=count) as page:
            if not page.cases:
                raise InputError(f"{run}: expected records with edits, but there are none")
            tell(f"{len(page.cases)} edits to judge, on this machine alone (Ctrl-C ends it):\n{page.url}")
            if show:
                webbrowser.open(page.url)
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                said = ", ".join(f"{who} {n}" for who, n in heard.items())
                tell(f"\n{said or 'no new answers'}; all answers are in {file}")
