"""What there is to choose from."""

from __future__ import annotations

from typing import Annotated

import typer

from .app import app
from .output import dump
from .shared import Json


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(metavar="[editors|methods|judges|metrics]", show_default=False)] = "all",
    as_json: Json = False,
) -> None:
    """List editors, methods, judges, metrics."""
    from ..doctor import catalogue
    from ..errors import unknown

    tables = catalogue()
    if what not in ("all", *tables):
        raise unknown("list", what, ("all", *tables))
    chosen = tables if what == "all" else {what: tables[what]}
    if as_json:
        return dump(chosen if what == "all" else chosen[what])
    for title, table in chosen.items():
        print(f"{title}:")
        for name, entry in table.items():
            print(f"  {name:24} {entry['about']}")
            for key, option in entry.get("options", {}).items():
                print(f"  {'':24}   {key}={option['default']}  {option['about']}".rstrip())
