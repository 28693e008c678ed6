"""Ask judges about edits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import SifmError
from ..types import Case, Judge, OnStep, Step, Verdict
from .app import app
from .flags import options
from .judging import AskingAlone, load_judges
from .output import dump, progress, tell
from .pictures import Account, matched
from .shared import JUDGES, Background, Json, Judges, Prompt

AT_ONCE = 16
"""Pairs in memory at a time; jobs (--batch) take all at once."""


@app.command()
@options
def judge(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The picture before the edit.", show_default=False)],
    edited: Annotated[Path, typer.Argument(metavar="EDITED", help="The edit to be judged.", show_default=False)],
    prompt: Prompt,
    judges: Judges = None,
    *,
    asking: AskingAlone,
    background: Background = "white",
    as_json: Json = False,
) -> None:
    """Ask judges whether an edit failed.

    Does it miss the instruction, or is it degraded beyond it? Folders are paired by file name.
    """
    from .. import pipeline
    from ..checks import check_prompts
    from ..images import colour, load_image
    from ..verdicts import consensus

    colour(background)
    check_prompts(prompt, 1)
    account = Account(context, source)
    pairs = matched(source, edited, account)

    def case(pair: tuple[Path, Path]) -> Case:
        return pipeline.check_case(load_image(pair[0], background), load_image(pair[1], background), prompt)

    fit = []
    for pair in pairs:  # what is no case is found before anything is paid
        with account.of(pair[1]):
            case(pair)
            fit.append(pair)
    pairs = fit
    loaded = load_judges(judges or JUDGES, asking)
    at_once = max(1, len(pairs)) if asking.batch else max(AT_ONCE, 4 * (asking.concurrency or 0))
    with progress() as on_step:
        columns = [_ask(one, pairs, case, at_once, on_step(one.name)) for one in loaded]
    results, given = [], [verdict for column in columns for verdict in column]
    for (one, two), verdicts in zip(pairs, zip(*columns, strict=True), strict=True):
        agreed = consensus(verdicts)
        answer = {"edit_failed": agreed, "verdicts": [{**asdict(v), "success": v.success} for v in verdicts]}
        results.append(answer if source.is_file() else {"source": str(one), "edited": str(two), **answer})
        if not as_json:
            tell(f"{two}: {_WORDS[agreed]}")
            for v in verdicts:
                tell(f"  {v.judge}: {_WORDS[v.success]} ({v.state}) {v.reasons}".rstrip())
    if as_json:
        dump(results[0] if source.is_file() else [*results, *account.rows()])
    missing = [verdict for verdict in given if verdict.state != "ok"]
    if missing:
        some = "all" if len(missing) == len(given) else f"{len(missing)} of {len(given)}"
        kinds = ", ".join(sorted({verdict.state for verdict in missing}))
        raise SifmError(f"{some} verdicts are missing ({kinds}) and say why; with --cache, a rerun asks for the rest")
    account.close()


def _ask(
    judge: Judge, pairs: Sequence[tuple[Path, Path]], case: Callable[[tuple[Path, Path]], Case], n: int, on_step: OnStep
) -> list[Verdict]:
    verdicts: list[Verdict] = []

    def step(s: Step) -> None:
        on_step(replace(s, i=len(verdicts) + s.i, n=len(pairs)) if s.phase == "judge" else s)

    for i in range(0, len(pairs), n):
        verdicts += judge.judge([case(pair) for pair in pairs[i : i + n]], on_step=step)
    return verdicts


_WORDS = {True: "the edit failed", False: "the edit works", None: "unclear"}
