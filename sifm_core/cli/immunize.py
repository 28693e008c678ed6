"""Protect pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .output import progress, show
from .shared import (
    EDITOR,
    Device,
    Download,
    Dtype,
    EditorName,
    Json,
    Options,
    Out,
    Prompt,
    Seed,
    Source,
    jobs_of,
    load_editor,
    method_options,
    number,
)


@app.command()
def immunize(
    source: Source,
    out: Out,
    prompt: Prompt,
    editor: EditorName = EDITOR,
    method: Annotated[str, typer.Option("--method", metavar="NAME", help="See `sifm list methods`.")] = "sifm",
    preset: Annotated[
        str,
        typer.Option("--preset", metavar="NAME", help="What is not given: eps 0.03, 100 steps of 2/255; or paper."),
    ] = "equal_budget",
    eps: Annotated[
        float | None,
        typer.Option("--eps", metavar="E", parser=number, help="Budget: the most a value may change, in [0, 1]."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Iterations.")] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", metavar="A", parser=number, help="Step size, in [0, 1].")
    ] = None,
    seed: Seed = 0,
    mask: Annotated[
        Path | None, typer.Option("--mask", metavar="FILE", help="A picture of the same size: black stays as it is.")
    ] = None,
    option: Options = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Protect a picture against editing.

    It is changed by at most eps, so that the editor no longer edits it as asked, and saved as PNG.
    """
    from .. import pipeline
    from ..images import load_picture, save_png, verify_budget

    jobs = jobs_of(source, out)
    options = method_options(method, option or [])
    chosen = pipeline.check_preset(method, preset, {"eps": eps, "steps": steps, "alpha": alpha})
    pipeline.check_budget(chosen["eps"])
    pipeline.check_unit(chosen["alpha"], "alpha")
    pipeline.check_count(chosen["steps"], "steps")
    pipeline.check_prompts(prompt, 1)
    pipeline.check_seed(seed, 1)
    pictures = [load_picture(path) for path, _ in jobs]
    cover = None if mask is None else load_picture(mask).pixels.mean(dim=1, keepdim=True)
    for picture in pictures:
        pipeline.check_mask(cover, picture.pixels)
    loaded = load_editor(editor, device, dtype, download)
    results = []
    with progress() as on_step:
        for (path, target), picture in zip(jobs, pictures, strict=True):
            done = pipeline.immunize(
                picture.pixels,
                loaded,
                prompt=prompt,
                method=method,
                preset=preset,
                eps=eps,
                steps=steps,
                alpha=alpha,
                seed=seed,
                mask=cover,
                on_step=on_step(path.name),
                **options,
            )
            public = {k: v for k, v in done.settings.items() if k not in ("prompt", "editor")}
            save_png(done.image, target, like=picture, metadata={"sifm": public})
            verify_budget(target, picture.pixels, chosen["eps"], chosen["ball"])
            losses = [step.loss for step in done.history]
            results.append(
                {
                    "source": str(path),
                    "output": str(target),
                    "linf": done.linf,
                    "rms": done.rms,
                    "seconds": round(done.seconds, 3),
                    "loss": {"first": losses[0], "last": losses[-1]} if losses else None,
                    **done.settings,
                }
            )
    text = "{output}: changed by at most {linf:.4f} ({ball} eps {eps:g}) with {method} in {seconds:.1f} s"
    show(results, source, as_json, text)
