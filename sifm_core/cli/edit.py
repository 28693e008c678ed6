"""Edit pictures as an attacker would."""

from __future__ import annotations

import time
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
    NoT5,
    Offload,
    Options,
    Out,
    Prompt,
    Seed,
    Size,
    Source,
    jobs_of,
    key_values,
    load_editor,
    parse_value,
)


@app.command()
def edit(
    source: Source,
    out: Out,
    prompt: Prompt,
    editor: EditorName = EDITOR,
    seed: Seed = 0,
    purify: Annotated[
        str, typer.Option("--purify", metavar="CHAIN", help="What the attacker does first; see `sifm purify`.")
    ] = "",
    option: Options = None,
    offload: Offload = "none",
    no_t5: NoT5 = False,
    size: Size = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Edit a picture as an attacker would.

    Run it on the clean and on the protected picture with the same seed, and compare.
    """
    from .. import pipeline
    from ..images import load_picture, save_png
    from ..purify import parse

    jobs, stages = jobs_of(source, out), parse(purify)
    pipeline.check_prompts(prompt, 1)
    pipeline.check_seed(seed, 1)
    for path, _ in jobs:  # a file that is no picture is found before the work; one at a time is in memory
        load_picture(path)
    options = {key: parse_value(text) for key, text in key_values(option or []).items()}
    loaded = load_editor(editor, device, dtype, download, offload=offload, size=size, t5=False if no_t5 else None)
    options = pipeline.check_edit_options(loaded, options)
    results = []
    with progress() as on_step:
        for path, target in jobs:
            picture, start = load_picture(path), time.perf_counter()
            edited = pipeline.edit(
                picture.pixels,
                loaded,
                prompt=prompt,
                seed=seed,
                purify=stages,
                on_step=on_step(path.name),
                **options,
            )
            save_png(edited, target, like=picture)
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
                    "seconds": round(time.perf_counter() - start, 3),
                }
            )
    show(results, source, as_json, "{output}: {prompt!r} with seed {seed} in {seconds:.1f} s")
