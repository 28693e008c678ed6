"""Remove protections as an attacker would."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from .app import app
from .output import progress, show
from .shared import EDITOR, Chain, Device, Download, Dtype, EditorName, Json, Out, Seed, Source, jobs_of, load_editor


@app.command()
def purify(
    source: Source,
    chain: Chain,
    out: Out,
    editor: EditorName = EDITOR,
    upscaler: Annotated[
        str | None, typer.Option("--upscaler", metavar="FOLDER|HUB_ID", help="For noisy_upscale; must be here already.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Do to a picture what attackers do first, to be rid of a protection.

    The picture keeps its size and is saved as PNG. The editor is loaded only where a purifier uses its networks.
    """
    from .. import pipeline
    from ..editors import check_device
    from ..images import load_picture, save_png
    from ..purify import apply, needs_editor, parse

    jobs, stages = jobs_of(source, out), parse(chain)
    pipeline.check_seed(seed, 1)
    for path, _ in jobs:  # a file that is no picture is found before the work; one at a time is in memory
        load_picture(path)
    loaded = load_editor(editor, device, dtype, download) if needs_editor(stages) else None
    tools: dict[str, Any] = {"editor": loaded, "upscaler": upscaler, "device": check_device(device)}
    results = []
    with progress() as on_step:
        for path, target in jobs:
            picture, start = load_picture(path), time.perf_counter()
            clean = apply(picture.pixels, stages, seed=seed, on_step=on_step(path.name), **tools)
            save_png(clean, target, like=picture)
            results.append(
                {
                    "source": str(path),
                    "output": str(target),
                    "purify": ",".join(map(str, stages)),
                    "seed": seed,
                    "editor": loaded.name if loaded else None,
                    "seconds": round(time.perf_counter() - start, 3),
                }
            )
    show(results, source, as_json, "{output}: {purify} in {seconds:.1f} s")
