"""Remove protections as an attacker would."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from .app import app
from .output import progress
from .pictures import KEY, Pictures
from .shared import (
    EDITOR,
    Background,
    Chain,
    Demonstration,
    Device,
    Download,
    Dtype,
    EditorName,
    Json,
    Out,
    Seed,
    Source,
    load_editor,
)


@app.command()
def purify(
    context: typer.Context,
    source: Source,
    chain: Chain,
    out: Out,
    editor: EditorName = EDITOR,
    upscaler: Annotated[
        str | None, typer.Option("--upscaler", metavar="FOLDER|HUB_ID", help="For noisy_upscale; must be here already.")
    ] = None,
    seed: Seed = 0,
    background: Background = "white",
    device: Device = "auto",
    dtype: Dtype = "auto",
    download: Download = False,
    demonstration: Demonstration = False,
    as_json: Json = False,
) -> None:
    """Do to a picture what attackers do first, to be rid of a protection.

    The picture keeps its size and is saved as an opaque PNG. The editor is loaded only where a purifier uses it.
    """
    from .. import images
    from ..editors import check_device
    from ..noise import check_seed
    from ..purify import apply, needs_editor, parse

    images.colour(background)
    pictures, stages = Pictures(context, source, out), parse(chain)
    check_seed(seed, 1)
    pictures.look(background)
    loaded = load_editor(editor, device, dtype, download) if needs_editor(stages) else None
    shown = pictures.demonstrate([loaded] if loaded else [], demonstration)
    tools: dict[str, Any] = {"editor": loaded, "upscaler": upscaler, "device": check_device(device)}
    tools["demonstration"] = demonstration
    with pictures.report(as_json, "{output}: {purify} in {seconds:.1f} s") as results, progress() as on_step:
        for path, target in pictures.jobs:
            with pictures.of(path):
                key, start = pictures.key(path, [loaded] if loaded else []), time.perf_counter()
                if earlier := pictures.earlier(path, target, key):
                    results.append(earlier)
                    continue
                picture = images.load_picture(path, background)
                clean = apply(picture.pixels, stages, seed=seed, on_step=on_step(path.name), **tools)
                about: dict[str, Any] = {KEY: key} if key else {}
                about["sifm"] = {"demonstration": shown}
                images.save_png(clean, target, like=picture.opaque(), metadata=about)
                results.append(
                    {
                        "source": str(path),
                        "output": str(target),
                        "purify": ",".join(map(str, stages)),
                        "seed": seed,
                        "editor": loaded.name if loaded else None,
                        **({"demonstration": True} if shown else {}),
                        "seconds": round(time.perf_counter() - start, 3),
                    }
                )
