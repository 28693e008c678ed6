"""What is known of models: what they take, what a call costs, and when they end. The table is ``models.toml``.

A price is known or None, and a model that nobody listed takes no setting for granted: nothing here guesses.
"""

from __future__ import annotations

import datetime
import importlib
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from ..errors import InputError

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens, an upper bound of what one picture counts, and the share that jobs are charged.

    ``since``, ``until``: the first and the last day on which it holds.
    """

    input: Amount
    output: Amount
    image_tokens: Annotated[int, Field(ge=0, le=10**6)] = 0
    batch: Annotated[float, Field(ge=0, le=1)] = 1.0
    until: datetime.date | None = None
    since: datetime.date | None = None

    def holds(self, day: datetime.date) -> bool:
        """Whether it is the price of that day."""
        return (self.since is None or self.since <= day) and (self.until is None or day <= self.until)

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


@dataclass(frozen=True)
class Model:
    """What is known of a model.

    ``takes``: the settings that it takes, with what is sent where nobody says otherwise (None: not known); ``ends``:
    the day on which it is switched off, and ``then`` the model that answers from then on, at its own price ("": none).
    """

    prices: tuple[Price, ...] = ()
    takes: Mapping[str, int | float | str] | None = None
    ends: datetime.date | None = None
    then: str = ""
    role: Literal["", "strong", "fast"] = ""

    def ended(self, day: datetime.date | None = None) -> bool:
        """Whether it is switched off on that day (None: today)."""
        return self.ends is not None and self.ends <= (day or datetime.date.today())


FREE = Price(0.0, 0.0)
_MODEL: TypeAdapter[Model] = TypeAdapter(Model)
_FAMILIES: TypeAdapter[dict[str, list[str]]] = TypeAdapter(dict[str, list[str]])
_SHIPPED = Path(__file__).with_name("models.toml")
_OF_PRICE = {f.name for f in fields(Price)}


@dataclass(frozen=True)
class Models:
    """The models that are known, by provider and name."""

    known: Mapping[tuple[str, str], Model]
    read: datetime.date | None = None
    """The day on which the shipped ones were read."""
    families: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Words in models' names that tell whose they are."""

    def of(self, provider: str, model: str) -> Model | None:
        """What is known of a model, or of the one that it is a version of; None where nothing is."""
        return next((m for (p, name), m in self.known.items() if p == provider and same_model(name, model)), None)

    def price(self, provider: str, model: str, day: datetime.date | None = None) -> Price | None:
        """What a call costs that is sent on a day (None: today), at the price of the model that answers then.

        None where nobody knows.
        """
        day = day or datetime.date.today()
        known = self.of(provider, model)
        if known and known.ended(day):
            known = self.of(provider, known.then) if known.then else None
        return next((price for price in known.prices if price.holds(day)), None) if known else None

    def dearest(self, provider: str, model: str) -> tuple[Price, ...]:
        """What a call may cost that is sent today, though it be charged tomorrow; empty where today's is not known."""
        today = datetime.date.today()
        found = [self.price(provider, model, day) for day in (today, today + datetime.timedelta(1))]
        return tuple(price for price in found if price) if found[0] else ()

    def role(self, provider: str, role: str) -> str:
        """The name of the provider's "strong" or "fast" model."""
        return next(name for (p, name), model in self.known.items() if p == provider and model.role == role)


def read_models(own: str | os.PathLike[str] | None = None) -> Models:
    """The shipped table, with the entries of the caller's ``own`` file over it."""
    shipped = _shipped()
    if not own:
        return shipped
    mine = _read(Path(own))
    return Models({**shipped.known, **mine.known}, shipped.read, {**shipped.families, **mine.families})


@cache
def _shipped() -> Models:
    return _read(_SHIPPED)


def _read(path: Path) -> Models:
    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        table = toml.loads(path.read_text(encoding="utf-8"))
        read, families = table.pop("read", None), _FAMILIES.validate_python(table.pop("families", {}))
        known = {(p, n): _model(words) for p, models in table.items() for n, words in models.items()}
        return Models(known, read, families)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: expected prices as in {_SHIPPED}: {str(error)[:500]}") from None


def _model(words: Mapping[str, Any]) -> Model:
    """A model as the table spells it: what its prices share stands beside the list of them."""
    shared = {key: value for key, value in words.items() if key in _OF_PRICE}
    rest = {key: value for key, value in words.items() if key not in _OF_PRICE}
    prices = [vars(Price(**shared | dated)) for dated in rest.pop("prices", [{}])]
    return _MODEL.validate_python(vars(Model(**rest | {"prices": prices})))


def same_model(requested: str, served: str) -> bool:
    """Whether ``served`` is ``requested`` itself or a dated or numbered version of it, such as -001 or -2026-10-07.

    Of a name such as gemini-flash-latest, which stands for the newest of its family, every member is one; flash,
    flash-lite and pro are families of their own. A judge on this machine names the weights it is after an @, and a
    server that names its file of weights (llama.cpp) means the model of that name.
    """
    requested, served = (re.sub(r"^(?:.*[\\/])?(.+)\.gguf$", r"\1", name) for name in (requested, served))
    if (served.rpartition("@")[0] or served) in (requested, requested.rpartition(":")[2]):
        return True
    newest = re.fullmatch(r"gemini-(pro|flash|flash-lite)-latest", requested)
    asked = rf"gemini-\d+(\.\d+)?-{newest[1]}(-preview)?" if newest else re.escape(requested)
    return served == requested or re.fullmatch(asked + r"(-\d+)*", served) is not None


def warn_of_the_end(name: str, known: Model | None) -> None:
    """Warn, on behalf of the caller's caller, where a model is or will be switched off, and say who answers then."""
    if known and known.ends:
        then = f"{known.then} answers in its place, at its own price" if known.then else "nothing answers in its place"
        when = "was" if known.ended() else "will be"
        warnings.warn(f"{name} {when} switched off on {known.ends}; from then on {then}", stacklevel=3)


def family_of(*names: str) -> str:
    """Whose a model is by the first of its names that tells, such as "Qwen" of Qwen3-VL-8B; "" where none does.

    Members of one family share pictures, texts and often weights, so that they may err alike.
    """
    for name in names:
        own = re.sub("@https?://.*", "", name).rpartition("/")[2].lower()
        for family, words in _shipped().families.items():
            if re.search(rf"(?<![a-z])({'|'.join(map(re.escape, words))})(?![a-z])", own):
                return family
    return ""
