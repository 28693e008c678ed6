"""How far two pictures are apart."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .output import dump
from .pictures import Account, matched
from .shared import Background, Json


@app.command()
def metrics(
    context: typer.Context,
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", show_default=False)],
    distorted: Annotated[Path, typer.Argument(metavar="DISTORTED", show_default=False)],
    name: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="Only this one; may be repeated.")
    ] = None,
    background: Background = "white",
    as_json: Json = False,
) -> None:
    """Measure how far two pictures are apart.

    PSNR, SSIM, VIFp, FSIM and LPIPS of two files, or of two folders by file name.
    """
    from ..format import number
    from ..images import colour, load_image
    from ..pipeline import measure

    colour(background)
    account, results = Account(context, reference), []
    for one, two in matched(reference, distorted, account):
        with account.of(two):
            measured = measure(load_image(one, background), load_image(two, background), name or None)
            values = {key: asdict(column[0]) for key, column in measured.items()}
            results.append(values if reference.is_file() else {"reference": str(one), "distorted": str(two), **values})
            if not as_json:
                print(f"{one} -> {two}")
                for key, (found, *_) in measured.items():
                    print(f"  {key:6} {number(found.value, 4):>9}  {found.definition} {found.reason}".rstrip())
    if as_json:
        dump([*results, *account.rows()] if account.folder else results[0])
    account.close()
