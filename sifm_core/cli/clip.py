"""The paper's Fig. 3 on one's own pictures: what CLIP prefers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError, SifmError
from .app import app
from .judging import run_store
from .output import dump
from .pictures import Account, matched
from .shared import Background, Json, check_writable


@app.command()
def clip(
    context: typer.Context,
    source: Annotated[
        Path | None, typer.Argument(metavar="UNEDITED", help="A picture or a folder.", show_default=False)
    ] = None,
    edited: Annotated[
        Path | None, typer.Argument(metavar="EDITED", help="Its edit, or a folder by file name.", show_default=False)
    ] = None,
    text: Annotated[
        str, typer.Option("--text", metavar="TEXT", help="What the edit should show: 'a woman wearing a crown'.")
    ] = "",
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR", help="Instead: the clean edits of a run that judges say work."),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", metavar="FOLDER|HUB_ID", help="A CLIP on this machine; nothing is downloaded.")
    ] = "openai/clip-vit-large-patch14",
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="OUT.png", help="The pairs as a figure.")] = None,
    background: Background = "white",
    as_json: Json = False,
) -> None:
    """Show which picture CLIP prefers.

    The unedited picture often fits a text as well as the edit that carries it out (the paper's Fig. 3), which is why
    CLIP is no judge of immunization.
    """
    from .. import fig3
    from ..images import colour, load_image, write_atomically

    colour(background)
    account = None
    if out is not None:
        check_writable(out)
    if run is not None:
        with run_store(run) as store:
            pairs = fig3.edits_that_work(store.records(), store)
        if not pairs:
            raise InputError(f"{run}: expected clean edits that every judge says work, but there are none")
    elif source is None or edited is None or not text.strip():
        raise InputError("expected UNEDITED EDITED --text TEXT, or --run DIR")
    else:
        account, pairs = Account(context, source), []
        for files in matched(source, edited, account):
            with account.of(files[1]):
                pictures = [load_image(file, background)[0] for file in files]
                pairs.append((pictures[0], pictures[1], text.strip()))
    found = fig3.preferences(pairs, model=model)
    answered = [one.prefers_unedited for one in found if one.prefers_unedited is not None]
    if out and answered:
        write_atomically(out, fig3.figure(pairs, found))
    if as_json:
        rows = [asdict(one) | {"prefers_unedited": one.prefers_unedited} for one in found]
        dump({"model": model, "prefers_unedited": sum(answered), "of": len(answered), "pairs": rows})
    elif answered:
        for one in found:
            if one.unedited.value is not None and one.edited.value is not None:
                mark = "<- CLIP prefers the unedited" if one.prefers_unedited else ""
                print(f"unedited {one.unedited.value:.4f}  edited {one.edited.value:.4f}  {one.text!r} {mark}".rstrip())
        print(fig3.sentence(found, model))
    if not answered:
        raise SifmError(fig3.sentence(found, model))
    if account:
        account.close()
