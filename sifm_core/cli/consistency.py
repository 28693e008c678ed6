"""Do judges agree with people and with each other? Table I of a run, and the blind sheets that people fill in."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .app import app
from .judging import run_store
from .output import dump, tell
from .shared import Json, Seed


@app.command()
def consistency(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    human: Annotated[
        list[str] | None,
        typer.Option(
            "--human",
            metavar="FILE|JUDGE",
            help="Annotations (CSV or JSONL), or the run's judge that stands for a person; may be repeated.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", metavar="N", help="How many to draw, in proportion.")] = 150,
    seed: Seed = 0,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="DIR", help="Write a blind sheet of the sample to fill in.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write everyone's answers as CSV or JSONL.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare judges with people.

    Raw agreement, Cohen's kappa and Krippendorff's alpha, human to human, judge to judge and human to judge. The sample
    is drawn in proportion from every method, kind of prompt and category. In the miniature's runs the renderer, which
    knows the scene, stands for a person where no other does, and is left out where one does.
    """
    from .. import consistency as table_one
    from ..judges.human import case_id, read_annotations, write_annotations, write_sheet
    from ..verdicts import TRUTH

    with run_store(run) as store:
        everything = list(store.records())
        known = {verdict.judge for record in everything for verdict in record.verdicts}
        asked_of = {name for name in known if name.startswith("human:")}  # people who were judges of the run itself
        named = human if human is not None else [TRUTH] if TRUTH in known and not asked_of else []
        files = [Path(name) for name in named if name not in known]
        if files and not sheet:
            records, wanted = table_one.annotated(everything, store, files), "edits that these files have answers for"
        else:
            records, wanted = table_one.stratified(everything, samples, seed=seed), "records with edits"
        if not records:
            raise InputError(f"{run}: expected {wanted}, but there are none")
        shown = table_one.cases(records, store)
        if sheet:
            written = write_sheet(shown, sheet, seed=seed)
            return dump({"sheet": str(written), "samples": len(shown)}) if as_json else tell(str(written))
        judges, people = table_one.judges_of(records), table_one.people_of(files, shown)
    answered = {annotation.case for path in files for annotation in read_annotations(path)}
    if strange := answered - {case_id(case) for case in shown}:
        print(f"{len(strange)} answered cases are of no edit of {run}, such as {sorted(strange)[0]}", file=sys.stderr)
    raters = judges | people
    if export:
        write_annotations(export, table_one.annotations_of(raters, shown))
    if TRUTH not in named:  # neither a judge, nor here a person
        raters.pop(TRUTH, None)
    ours = [name for name in raters if name in people or name in asked_of or name in named]
    table = table_one.consistency(raters, ours, [record.image for record in records])
    if as_json:
        found = {kind: {axis: asdict(cell) for axis, cell in row.items()} for kind, row in table.items()}
        return dump({"samples": len(records), "seed": seed, "people": ours, "raters": list(raters), "table": found})
    columns = [[title, *cells] for title, cells in table_one.cells(table).items()]
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns, strict=True):
        tell("  ".join(f"{cell:{'<' if i < 2 else '>'}{widths[i]}}" for i, cell in enumerate(row)))
    tell(f"{len(records)} samples of {run}; people: {', '.join(ours) or 'none'}; raters: {', '.join(raters)}")
