"""How far two pictures are apart."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .output import dump
from .shared import Json, matched


@app.command()
def metrics(
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", show_default=False)],
    distorted: Annotated[Path, typer.Argument(metavar="DISTORTED", show_default=False)],
    name: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="Only this one; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how far two pictures are apart.

    PSNR, SSIM, VIFp, FSIM and LPIPS of two files, or of two folders by file name.
    """
    from ..format import number
    from ..images import load_image
    from ..pipeline import measure

    results = []
    for one, two in matched(reference, distorted):
        measured = measure(load_image(one), load_image(two), name or None)
        values = {key: asdict(column[0]) for key, column in measured.items()}
        results.append(values if reference.is_file() else {"reference": str(one), "distorted": str(two), **values})
        if not as_json:
            print(f"{one} -> {two}")
            for key, column in measured.items():
                print(f"  {key:6} {number(column[0].value, 4):>9}  {column[0].definition} {column[0].reason}".rstrip())
    if as_json:
        dump(results[0] if reference.is_file() else results)
