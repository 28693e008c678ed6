"""An editor's layers, and which of them a perturbation moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .output import progress
from .shared import Device, Download, Dtype, Eps, Json, Seed, load_editor


@app.command("layers")
def layers(
    editor: Annotated[str, typer.Argument(metavar="EDITOR", help="See `sifm list editors`.", show_default=False)],
    every: Annotated[bool, typer.Option("--all", help="Every module, not only blocks.")] = False,
    image: Annotated[
        Path | None, typer.Option("--probe", metavar="IMAGE", help="Rank layers by how far this picture moves them.")
    ] = None,
    layer: Annotated[list[str] | None, typer.Option("--layer", help="To probe; default all of preset `all`.")] = None,
    timesteps: Annotated[str, typer.Option("--timesteps", help="To probe: a count or a list.")] = "4",
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="To probe with.")] = "",
    eps: Eps = 2 / 255,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    download: Download = False,
    as_json: Json = False,
) -> None:
    """List the layers that SIFM can hook.

    With shapes, shares of the network's FLOP, and what has been spent when a layer has run. --probe loads the editor.
    """
    from .. import layers as tools
    from ..noise import check_seed

    if image is None:
        found = tools.layers(editor, every=every)
        if as_json:
            print(json.dumps([row._asdict() for row in found]))
            return
        print(f"{'layer':<44}{'shape':>18}{'share':>8}{'reached':>9}  presets")
        for one in found:
            shape = "x".join(map(str, one.shape))
            print(f"{one.path:<44}{shape:>18}{one.share:>8.1%}{one.reached:>9.1%}  {', '.join(one.presets)}")
        return
    from ..checks import check_unit
    from ..images import load_image, resize
    from ..methods.sifm import times_of

    check_seed(seed, 1)
    eps, picture = check_unit(eps, "eps"), load_image(image, "white")
    loaded = load_editor(editor, device, dtype, download)
    times = times_of(timesteps, loaded.num_train_timesteps)
    x = resize(picture, loaded.work_size(*picture.shape[-2:])).to(loaded.device)
    with progress() as on_step:
        moved = tools.probe(
            loaded,
            x,
            loaded.prepare([prompt], x),
            layers=layer or ["all"],
            timesteps=times,
            eps=eps,
            seed=seed,
            on_step=on_step(image.name),
        )
    if as_json:
        print(json.dumps([row._asdict() for row in moved]))
        return
    print(f"{'layer':<44}{'timestep':>9}{'random':>10}{'gradient':>10}")
    for row in moved:
        print(f"{row.layer:<44}{row.timestep:>9}{row.random:>10.3g}{row.gradient:>10.3g}")
