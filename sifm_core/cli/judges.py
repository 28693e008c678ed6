"""Which judges can be asked here and now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import app
from .output import dump, one_line
from .shared import Json

if TYPE_CHECKING:
    from ..judges.here import Listed, Offer


@app.command()
def judges(
    servers: Annotated[
        list[str] | None,
        typer.Option("--server", metavar="URL", help="Ask this server of this machine which models it has."),
    ] = None,
    prices: Annotated[
        Path | None, typer.Option("--prices", metavar="FILE", help="Models (TOML) that add to the shipped ones.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the judges that can be asked here and now, their prices, and what the others lack.

    Keys are never shown. Nothing is sent but to a --server, and nothing costs.
    """
    from ..judges.here import offers
    from ..judges.models import read_models

    found, read = offers(servers or (), prices), read_models(prices).read
    if as_json:
        return dump({"prices_read": read, "judges": {offer.name: _plain(offer) for offer in found}})
    for offer in found:
        print(f"{'✓' if offer.usable else '·'} {offer.name:14} {one_line(offer.about)}")
        for line in _details(offer):
            print(f"    {line}")
    print(f"Dollars per million tokens in and out, as read on {read}; sifm_core/judges/models.toml has the sources.")


def _plain(offer: Offer) -> dict[str, Any]:
    return {name: value for name, value in asdict(offer).items() if name != "name"}


def _details(offer: Offer) -> Iterator[str]:
    for missing in offer.missing:
        yield one_line(f"-> {missing}")
    for model in offer.models:
        yield f"{one_line(model.name):24} {model.role:7} {_price(model)}{_end(model)}"
    for server in offer.servers:
        yield one_line(f"{server.address}: {server.problem or ', '.join(server.models) or 'it has no models'}")


def _price(model: Listed) -> str:
    if model.price is None:
        return "price not known"
    until = f" until {model.price.until}" if model.price.until else ""
    return f"$ {model.price.input:.2f} in, {model.price.output:.2f} out{until}"


def _end(model: Listed) -> str:
    if model.ends is None:
        return ""
    after = f"then {model.then} answers" if model.then else "then nothing answers"
    return f"; {'ended' if model.ended else 'ends'} on {model.ends}, {after}"
