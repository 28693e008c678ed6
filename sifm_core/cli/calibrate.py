"""How far judges can be trusted: their answers to gold controls."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import app
from .flags import options
from .judging import AskingAlone, load_judges, run_store
from .output import dump, progress, tell
from .shared import EDITOR, JUDGES, Device, Download, Dtype, Json, Judges, Seed, distinct, load_editor

if TYPE_CHECKING:
    from ..judges.calibration import Calibration
    from ..types import Verdict


@app.command()
@options
def calibrate(
    judges: Judges = None,
    editor: Annotated[
        str | None,
        typer.Option(
            "--editor",
            metavar="NAME|FOLDER|HUB_ID",
            help="Whose edits; default the one that the run attacks, else the miniature.",
        ),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", metavar="N", help="Pictures of the benchmark; four cases each.")
    ] = 24,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="miniature|MANIFEST", help="Whose pictures; default the run's, else the miniature's."
        ),
    ] = None,
    seed: Seed = 0,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="Keep the result in this run, for its report.")
    ] = None,
    *,
    stability: Annotated[
        bool,
        typer.Option("--stability", help="Ask all of it once more, and once with the two pictures in the other order."),
    ] = False,
    asking: AskingAlone,
    device: Device = "auto",
    dtype: Dtype = "auto",
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Test judges on cases whose answer is known.

    Clean edits, unedited pictures, pure noise, and edits made with another instruction: what share of failed edits does
    each judge find, what share of sound ones does it clear? Of a judge that gives numbers also the threshold that tells
    them apart best, as the name by which to ask it from then on, counted on pictures that it was not found on. With
    --stability also how often it contradicts itself, at three times the cost.
    """
    from .. import controls
    from ..bench.config import samples as samples_of
    from ..bench.grid import names
    from ..checks import check_count
    from ..judges.calibration import others_of, together
    from ..judges.vlm import VlmJudge
    from ..noise import check_seed
    from ..verdicts import TRUTH

    check_count(images, "images")
    check_seed(seed, 1)
    store = run_store(run) if run else None
    settings = ((store.get("run", "config") if store else None) or {}).get("settings", {})
    samples = samples_of(data or settings.get("data", "miniature"), images, 1)
    attacked = [names(name)[1] for name in settings.get("editors", ())]
    own = [name for name in settings.get("judges", ()) if not name.startswith((TRUTH, "human:"))]
    editor, specs = editor or next(iter(attacked), EDITOR), distinct(judges or own or JUDGES)
    if attacked and editor not in attacked:
        print(f"controls of {editor}, though the run attacks {', '.join(attacked)}", file=sys.stderr)
    loaded = load_judges(specs, asking)
    found: list[Calibration] = []
    said: dict[str, list[Verdict]] = {}
    more: dict[str, dict[str, list[Verdict]]] = {}
    with progress() as on_step:
        golds = controls.controls(samples, load_editor(editor, device, dtype, download), seed=seed, on_step=on_step(""))
        cases = [gold.case for gold in golds]
        for spec, judge in zip(specs, loaded, strict=True):
            if isinstance(judge, VlmJudge) and (cost := judge.at_most(cases)) != 0:
                times = 1 + stability * len(others_of(judge))
                dollars = "$ ?" if cost is None else f"$ {times * cost:.2f}"
                print(f"{judge.name}: {times * len(cases)} verdicts, {dollars} at most", file=sys.stderr)
            said[judge.name] = judge.judge(cases, on_step=on_step(judge.name))
            once_more = {}
            for way, other in (others_of(judge) if stability else {}).items():
                once_more[way] = other.judge(cases, on_step=on_step(f"{judge.name}, {way}"))
                more.setdefault(way, {})[judge.name] = once_more[way]
            found += controls.known(spec, judge.name, golds, said[judge.name], once_more)
    found += together(golds, said, more)
    for one in found:
        if store:
            controls.keep(store, one)
    if as_json:
        return dump([asdict(one) for one in found])
    for one in found:
        tell(one.sentence())
        for axis in (axis for axis in one.sensitivity if one.sensitivity[axis].n + one.specificity[axis].n):
            tell(f"  {axis:24} sensitivity {one.sensitivity[axis]}, specificity {one.specificity[axis]}")
        for kind, rate in one.by_kind.items():
            tell(f"  says failed of {kind:18} {rate}")
        for way, rates in one.same.items():
            for axis, rate in rates.items():
                if rate.n:
                    tell(f"  {axis:24} {way}, the same: {rate}")
