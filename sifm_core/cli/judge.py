"""Ask judges about edits."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import SifmError
from .app import app
from .output import dump
from .shared import JUDGES, Json, Judges, Prompt, distinct, matched


@app.command()
def judge(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The picture before the edit.", show_default=False)],
    edited: Annotated[Path, typer.Argument(metavar="EDITED", help="The edit to be judged.", show_default=False)],
    prompt: Prompt,
    judges: Judges = None,
    as_json: Json = False,
) -> None:
    """Ask judges whether an edit failed.

    Does it miss the instruction, or is it degraded beyond it? Folders are paired by file name.
    """
    from .. import pipeline
    from ..images import load_image
    from ..judges import consensus, load_judge

    pairs = matched(source, edited)
    pipeline.check_prompts(prompt, 1)
    loaded = [load_judge(spec) for spec in distinct(judges or JUDGES)]
    results, answered = [], False
    for one, two in pairs:
        verdicts = pipeline.judge(load_image(one), load_image(two), prompt, loaded)
        agreed = consensus(verdicts)
        answered |= any(v.success is not None for v in verdicts)
        found = {"edit_failed": agreed, "verdicts": [{**asdict(v), "success": v.success} for v in verdicts]}
        results.append(found if source.is_file() else {"source": str(one), "edited": str(two), **found})
        if not as_json:
            print(f"{two}: {_WORDS[agreed]}")
            for v in verdicts:
                print(f"  {v.judge}: {_WORDS[v.success]} ({v.state}) {v.reasons}".rstrip())
    if as_json:
        dump(results[0] if source.is_file() else results)
    if not answered:
        raise SifmError("no judge gave an answer; the verdicts say why")


_WORDS = {True: "the edit failed", False: "the edit works", None: "unclear"}
