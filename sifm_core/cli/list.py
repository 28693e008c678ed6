"""What there is to choose from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from .app import app
from .output import dump
from .shared import Json


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(metavar="[editors|methods|purifiers|judges|metrics]", show_default=False)
    ] = "all",
    as_json: Json = False,
) -> None:
    """List editors, methods, purifiers, judges, metrics."""
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
            for line in _details(name, entry):
                print(f"  {'':24}   {line}".rstrip())


def _details(name: str, entry: dict[str, Any]) -> Iterator[str]:
    """The lines under an entry: a purifier's settings, a method's presets and options."""
    if "standard" in entry:
        yield (
            f"{name}:{entry['standard']:g} as usual ({entry['meaning']}, {entry['least']:g} to {entry['greatest']:g}); "
            f"{name}@0 is {entry['mildest']:g}, {name}@1 is {entry['strongest']:g}"
        )
    if entry.get("provenance"):
        yield entry["provenance"]
    if entry.get("beyond_the_paper"):
        yield f"beyond its paper on {', '.join(entry['beyond_the_paper'])}"
    common = entry.get("presets", {}).get("equal_budget", {})
    for preset, values in entry.get("presets", {}).items():
        changes = {key: value for key, value in values.items() if key not in common or value != common[key]}
        if changes:
            said = (f"{k}={v:.5g}" if isinstance(v, float) else f"{k}={v}" for k, v in changes.items())
            yield f"--preset {preset}: {' '.join(said)}"
    for key, option in entry.get("options", {}).items():
        yield f"{key}={option['default']}  {option['about']}"
