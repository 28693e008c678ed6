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
from typing import Any

from ..errors import InputError


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens, an upper bound of what one picture counts, and the share that jobs are charged."""

    input: float
    output: float
    image_tokens: int = 0
    batch: float = 1.0
    until: datetime.date | None = None

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """US dollars."""
        return (tokens_in * self.input + tokens_out * self.output) / 1e6

    def at_most(self, text: str, pictures: int, tokens_out: int) -> float:
        """US dollars that a call cannot exceed: a token is at least one byte of text; 1000 for what wraps the parts."""
        return self.cost(len(text.encode()) + 1000 + pictures * self.image_tokens, tokens_out)

    def in_batch(self) -> Price:
        """The price of a call that is part of a job."""
        return replace(self, input=self.input * self.batch, output=self.output * self.batch, batch=1.0)


FREE = Price(0.0, 0.0)
_SHIPPED = Path(__file__).with_name("prices.toml")


def read_prices(own: str | os.PathLike[str] | None = None) -> dict[tuple[str, str], Price]:
    """(backend, model) -> price: the shipped table, with the entries of the caller's ``own`` file over it."""
    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    prices: dict[tuple[str, str], Price] = {}
    for path in [_SHIPPED, *([Path(own)] if own else [])]:
        try:
            table = toml.loads(path.read_text(encoding="utf-8"))
            entries = {(b, m): Price(**fields) for b, models in table.items() for m, fields in models.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: expected prices as in {Path(__file__).with_name('prices.toml')}: {error}"
            ) from None
        for entry, price in entries.items():
            if min(price.input, price.output, price.image_tokens, price.batch) < 0:
                raise InputError(f"{path}: prices cannot be negative, but {entry[1]} has one")
        prices |= entries
    today = datetime.date.today()
    return {entry: price for entry, price in prices.items() if price.until is None or today <= price.until}


def price_of(prices: Mapping[tuple[str, str], Price], backend: str, model: str) -> Price | None:
    """The price of a model or of the one that it is a version of; None where there is none."""
    return next((p for (b, name), p in prices.items() if b == backend and same_model(name, model)), None)


def same_model(requested: str, served: str) -> bool:
    """Whether ``served`` is ``requested`` itself or a dated or numbered version of it, such as -001 or -2026-10-07."""
    return re.fullmatch(re.escape(requested) + r"(-\d+)*", served) is not None
