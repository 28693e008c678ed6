"""The whole job on embedded pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from ..loop import Loop
from .app import app
from .bench import fill
from .shared import EDITOR, Alpha, Device, Dtype, EditorName, Eps, Json, Judges, Steps, distinct


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Report, pictures, records.")] = Path("sifm-demo"),
    images: Annotated[int, typer.Option("--images", metavar="N", help="How many of the benchmark.")] = 8,
    steps: Steps = Loop.steps,
    eps: Eps = Loop.eps,
    alpha: Alpha = Loop.alpha,
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
    on where it was stopped. It is `sifm bench run demo`: its folder is a run like any other.
    """
    from ..bench import config
    from ..checks import check_count

    for value, name in ((images, "images"), (steps, "steps"), (seeds, "seeds"), (batch, "batch")):
        check_count(value, name)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a folder for the report, but this is a file")
    loop = Loop(eps=eps, steps=steps, alpha=alpha)
    plan = config.load(
        "demo",
        images=images,
        unseen=unseen,
        steps=loop.steps,
        eps=loop.eps,
        alpha=loop.alpha,
        seeds=list(range(seeds)),
        editors=[editor],
        judges=distinct(judges) if judges else None,
        batch=batch,
        device=device,
        dtype=dtype,
    )
    fill(plan, out, retry=True, pictures=images * seeds * (unseen + 1), table=True, as_json=as_json)
