"""Edit pictures as an attacker would."""

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
    Prompt,
    Seed,
    Size,
    Source,
    key_values,
    load_editor,
    parse_value,
)


@app.command()
def edit(
    context: typer.Context,
    source: Source,
    out: Out,
    prompt: Prompt,
    editor: EditorName = EDITOR,
    seed: Seed = 0,
    purify: Annotated[
        str, typer.Option("--purify", metavar="CHAIN", help="What the attacker does first; see `sifm purify`.")
    ] = "",
    background: Background = "white",
    option: Options = None,
    offload: Offload = "none",
    no_t5: NoT5 = False,
    size: Size = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    download: Download = False,
    demonstration: Demonstration = False,
    as_json: Json = False,
) -> None:
    """Edit a picture as an attacker would.

    Run it on the clean and on the protected picture with the same seed, and compare. What is transparent is edited as
    it is seen, and the edit is opaque, as an attacker's tool gives it.
    """
    from .. import images, pipeline
    from ..checks import check_prompts
    from ..noise import check_seed
    from ..purify import parse

    images.colour(background)
    pictures, stages = Pictures(context, source, out), parse(purify)
    check_prompts(prompt, 1)
    check_seed(seed, 1)
    pictures.look(background)
    options = {key: parse_value(text) for key, text in key_values(option or []).items()}
    loaded = load_editor(editor, device, dtype, download, offload=offload, size=size, t5=False if no_t5 else None)
    options = pipeline.check_edit_options(loaded, options)
    shown = pictures.demonstrate([loaded], demonstration)
    text = "{output}: " + "a demonstration by a toy: " * shown + "{prompt!r} with seed {seed} in {seconds:.1f} s"
    with pictures.report(as_json, text) as results, progress() as on_step:
        for path, target in pictures.jobs:
            with pictures.of(path):
                key, start = pictures.key(path, [loaded]), time.perf_counter()
                if earlier := pictures.earlier(path, target, key):
                    results.append(earlier)
                    continue
                picture = images.load_picture(path, background)
                edited = pipeline.edit(
                    picture.pixels,
                    loaded,
                    prompt=prompt,
                    seed=seed,
                    purify=stages,
                    demonstration=demonstration,
                    on_step=on_step(path.name),
                    **options,
                )
                about: dict[str, Any] = {KEY: key} if key else {}
                about["sifm"] = {"demonstration": shown}
                images.save_png(edited, target, like=picture.opaque(), metadata=about)
                results.append(
                    {
                        "source": str(path),
                        "output": str(target),
                        "prompt": prompt.strip(),
                        "seed": seed,
                        "purify": ",".join(map(str, stages)),
                        "editor": loaded.name,
                        "editor_fingerprint": loaded.fingerprint,
                        "options": options,
                        **({"demonstration": True} if shown else {}),
                        "seconds": round(time.perf_counter() - start, 3),
                    }
                )
