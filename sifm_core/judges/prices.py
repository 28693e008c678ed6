"""What a call costs, from the table in ``prices.toml``: known, or None. Nothing here guesses."""

from __future__ import annotations

import datetime
import importlib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from ..errors import InputError

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens, an upper bound of what one picture counts, and the share that jobs are charged."""

    input: Amount
    output: Amount
    image_tokens: Annotated[int, Field(ge=0, le=10**6)] = 0
    batch: Annotated[float, Field(ge=0, le=1)] = 1.0
    until: datetime.date | None = None

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """US dollars."""
        return (tokens_in * self.input + tokens_out * self.output) / 1e6

    def most_tokens(self, text: str, pictures: int) -> int:
        """Tokens that a question cannot exceed: one is at least a byte of text; 1000 for what wraps the parts."""
        return len(text.encode()) + 1000 + pictures * self.image_tokens

    def at_most(self, text: str, pictures: int, tokens_out: int) -> float:
        """US dollars that a call cannot exceed."""
        return self.cost(self.most_tokens(text, pictures), tokens_out)

    def in_batch(self) -> Price:
        """The price of a call that is part of a job."""
        return replace(self, input=self.input * self.batch, output=self.output * self.batch, batch=1.0)


FREE = Price(0.0, 0.0)
_PRICE: TypeAdapter[Price] = TypeAdapter(Price)
_SHIPPED = Path(__file__).with_name("prices.toml")


def read_prices(own: str | os.PathLike[str] | None = None) -> dict[tuple[str, str], Price]:
    """(backend, model) -> price: the shipped table, with the entries of the caller's ``own`` file over it."""
    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    prices: dict[tuple[str, str], Price] = {}
    for path in [_SHIPPED, *([Path(own)] if own else [])]:
        try:
            table = toml.loads(path.read_text(encoding="utf-8"))
            entries = {
                (backend, model): _PRICE.validate_python(vars(Price(**fields)))
                for backend, models in table.items()
                for model, fields in models.items()
            }
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path}: expected prices as in {Path(__file__).with_name('prices.toml')}: {str(error)[:500]}"
            ) from None
        prices |= entries
    today = datetime.date.today()
    return {entry: price for entry, price in prices.items() if price.until is None or today <= price.until}


def price_of(prices: Mapping[tuple[str, str], Price], backend: str, model: str) -> Price | None:
    """The price of a model or of the one that it is a version of; None where there is none."""
    return next((p for (b, name), p in prices.items() if b == backend and same_model(name, model)), None)


def same_model(requested: str, served: str) -> bool:
    """Whether ``served`` is ``requested`` itself or a dated or numbered version of it, such as -001 or -2026-10-07."""
    return re.fullmatch(re.escape(requested) + r"(-\d+)*", served) is not None
