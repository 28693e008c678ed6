"""Check a protected picture against its certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import SifmError
from .app import app
from .output import dump, tell
from .shared import Json


@app.command()
def certificate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A protected picture, or its .certificate.json.")],
    source: Annotated[
        Path | None,
        typer.Option("--source", metavar="FILE", help="What it was made from: checks budget and visibility."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Is this the picture that its certificate speaks of?

    By its pixels; with its source, the budget and how visible the change is too. Exit code 1 when something is not so.
    """
    from ..certificate import check

    about, found = check(file, source)
    if as_json:
        dump({"findings": [finding._asdict() for finding in found], "certificate": about})
    else:
        for finding in found:
            tell(f"{_MARKS[finding.good]:4} {finding.what}: {finding.words}")
        tell(f"     made {about['made']} with {about['software']}")
        for test in about["tested"]:
            judges = f" (judged by {' and '.join(test['judges'])})" if test.get("judges") else ""
            tell(f"     tested {test['date']} against {test['editor']}: {test['outcome']}{judges}")
        if not about["tested"]:
            tell("     tested: nothing yet; `sifm holds FILE --source ORIGINAL --against EDITOR` does")
    if wrong := [finding.what for finding in found if finding.good is False]:
        raise SifmError(f"{file}: not as its certificate says: {', '.join(wrong)}")


_MARKS = {True: "ok", False: "NO", None: "-"}
