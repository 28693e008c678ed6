"""Protect pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .app import app
from .flags import LOOP_PANEL, Looping, options
from .output import progress
from .pictures import KEY, Pictures
from .shared import (
    EDITOR,
    Background,
    Checkpointing,
    Demonstration,
    Device,
    Download,
    Dtype,
    EditorName,
    Json,
    NoT5,
    Offload,
    Options,
    Out,
    Seed,
    Size,
    Source,
    check_writable,
    load_editor,
    method_options,
)


@app.command()
@options
def immunize(
    context: typer.Context,
    source: Source,
    out: Out,
    prompt: Annotated[
        str,
        typer.Option(
            "--prompt", metavar="TEXT", help="The instruction, such as 'make it night'; sifm_plus needs none."
        ),
    ] = "",
    editor: EditorName = EDITOR,
    method: Annotated[str, typer.Option("--method", metavar="NAME", help="See `sifm list methods`.")] = "sifm",
    preset: Annotated[
        str,
        typer.Option("--preset", metavar="NAME", help="What is not given: eps 0.03, 100 steps of 2/255; or paper."),
    ] = "equal_budget",
    *,
    loop: Looping,
    seed: Seed = 0,
    mask: Annotated[
        Path | None, typer.Option("--mask", metavar="FILE", help="A picture of the same size: black stays as it is.")
    ] = None,
    background: Background = "white",
    option: Options = None,
    log: Annotated[
        Path | None,
        typer.Option(
            "--log",
            metavar="FILE.jsonl",
            help="Every iteration's loss, terms, gradient norm and share of saturated values, one JSON object a line; "
            "with --option part_norms=true each term's gradient norm too.",
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            metavar="NAME|FOLDER|HUB_ID",
            rich_help_panel=LOOP_PANEL,
            help="A further editor to protect against at once; may be repeated.",
        ),
    ] = None,
    offload: Offload = "none",
    checkpointing: Checkpointing = False,
    no_t5: NoT5 = False,
    size: Size = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    download: Download = False,
    demonstration: Demonstration = False,
    as_json: Json = False,
) -> None:
    """Protect a picture against editing.

    It is changed by at most eps, so that the editor no longer edits it as asked, and saved as PNG. The default editor
    is a toy and protects its own drawings alone: name one that people use.
    """
    from .. import images, methods, pipeline
    from ..checks import check_prompts
    from ..noise import check_seed

    images.colour(background)
    pictures = Pictures(context, source, out)
    if log is not None:
        check_writable(log)
    own = method_options(method, option or [])
    settings = methods.configure(method, preset, loop)[0]
    check_prompts(prompt, 1, empty=methods.promptless(method))
    check_seed(seed, 1)
    cover = None if mask is None else images.load_picture(mask, background).pixels.mean(dim=1, keepdim=True)
    pictures.look(background, lambda picture: images.check_mask(cover, picture.pixels))
    load = partial(load_editor, device=device, dtype=dtype, download=download)
    load = partial(load, offload=offload, checkpointing=checkpointing)
    loaded = load(editor, size=size, t5=False if no_t5 else None)
    others = [load(name) for name in also or ()]
    shown = pictures.demonstrate([loaded, *others], demonstration)
    ball = methods.ball_of(method, settings.ball)
    change = "at most {linf:.4f}" if ball == "linf" else "{rms:.4f} RMS, {rounding:.4f} by rounding"
    text = "{output}: " + "a demonstration, which protects nothing: " * shown
    text += "changed by " + change + " (" + ball + " eps {eps:g}) with {method} in {seconds:.1f} s"
    with _logged(log, pictures.folder) as keep, pictures.report(as_json, text) as results, progress() as on_step:
        for path, target in pictures.jobs:
            with pictures.of(path):
                key = pictures.key(path, [loaded, *others])
                if earlier := pictures.earlier(path, target, key):
                    results.append(earlier)
                    continue
                picture = images.load_picture(path, background)
                seen = picture.alpha if picture.under is not None else None
                done = pipeline.immunize(
                    picture.pixels,
                    loaded,
                    prompt=prompt,
                    method=method,
                    preset=preset,
                    seed=seed,
                    mask=cover if seen is None else seen if cover is None else cover * seen,
                    also=others,
                    demonstration=demonstration,
                    on_step=on_step(path.name),
                    **loop,
                    **own,
                )
                keep({"source": str(path), "step": s.i, "loss": s.loss, **s.log} for s in done.history)
                about = {"sifm": pipeline.public(done.settings), **({KEY: key} if key else {})}
                images.save_png(done.image, target, like=picture, metadata=about)
                weight = cover if seen is None else (seen > 0).float() if cover is None else cover * (seen > 0)
                images.verify_budget(target, picture.stored, settings.eps, ball, weight)
                linf, rms = done.linf, done.rms
                if picture.under is not None:  # the file's own values, which are only seen through its alpha
                    linf, rms = images.change(images.load_image(target), picture.stored)
                losses = [step.loss for step in done.history]
                results.append(
                    {
                        "source": str(path),
                        "output": str(target),
                        "linf": linf,
                        "rms": rms,
                        "rounding": done.rounding,
                        "seconds": round(done.seconds, 3),
                        "loss": {"first": losses[0], "last": losses[-1]} if losses else None,
                        **done.settings,
                    }
                )


@contextmanager
def _logged(path: Path | None, grows: bool) -> Iterator[Callable[[Iterable[dict[str, Any]]], None]]:
    """Yield what writes a picture's iterations down at once; a log that ``grows`` keeps those of other pictures."""
    if path is None:
        yield lambda lines: None
        return
    from ..files import write_atomically

    def keep(lines: Iterable[dict[str, Any]]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    write_atomically(path, path.read_bytes() if grows and path.is_file() else b"")
    try:
        yield keep
    finally:
        write_atomically(path, "".join(_latest(path)).encode())


def _latest(path: Path) -> Iterator[str]:
    """The lines of each picture's last time in a log."""
    times: dict[str, list[str]] = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            line = json.loads(text)
            times[line["source"]] = [*([] if line["step"] == 1 else times[line["source"]]), text]
        except (ValueError, TypeError, KeyError):
            continue  # half a line of a killed command
    return (line for lines in times.values() for line in lines)
