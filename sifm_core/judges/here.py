"""Which judges can be asked here and now, what they cost, and what is missing of the others."""

from __future__ import annotations

import datetime
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any
from urllib.parse import urlsplit

from ..errors import InputError, JudgeError
from . import BACKENDS, Backend
from .client import Reply, environment_key
from .models import Model, Models, Price, read_models

LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Listed:
    """A model of the table as it is today: ``price`` None is not known, ``settings`` are what it is asked with."""

    name: str
    role: str
    price: Price | None
    ends: datetime.date | None
    then: str
    ended: bool
    settings: dict[str, Any]


@dataclass(frozen=True)
class Server:
    """A server of this machine that was asked for its models, or why it named none."""

    address: str
    models: tuple[str, ...]
    problem: str = ""


@dataclass(frozen=True)
class Offer:
    """A backend: ``usable`` now; ``missing`` says what else is needed, for all of it or for a part."""

    name: str
    about: str
    usable: bool
    missing: tuple[str, ...]
    models: tuple[Listed, ...]
    servers: tuple[Server, ...] = ()


def offers(servers: Sequence[str] = (), prices: str | os.PathLike[str] | None = None) -> list[Offer]:
    """Every backend. Nothing is sent anywhere but to ``servers``, which have to be this machine's, without a key.

    ``prices``: a file that adds to the shipped table. Raises InputError for a server elsewhere.
    """
    for address in servers:
        if urlsplit(address).hostname not in LOCAL:
            raise InputError(f"servers: only those of this machine ({', '.join(LOCAL)}) are asked, not {address[:200]}")
    models = read_models(prices)
    return [_offer(name, backend, models, servers if backend.keyless else ()) for name, backend in BACKENDS.items()]


def _offer(name: str, backend: Backend, models: Models, servers: Sequence[str]) -> Offer:
    known = [(n, model) for (provider, n), model in models.known.items() if backend.prices == provider]
    try:
        module = importlib.import_module(backend.module)
        absent = module.absent() if hasattr(module, "absent") else ""
    except Exception as error:  # whatever a module of somebody else's raises
        return Offer(name, f"cannot be used: {type(error).__name__}: {error}"[:500], False, (), ())
    package, key = _package(backend), _key(backend)
    asked = () if package else tuple(Server(address, *_models_of(module, address)) for address in servers)
    return Offer(
        name,
        about=(module.__doc__ or "").strip().partition("\n")[0],
        usable=not (package or absent or (key and not backend.keyless)),
        missing=tuple(filter(None, (package, absent, key))),
        models=tuple(_listed(backend.prices, n, model, models) for n, model in known),
        servers=asked,
    )


def _package(backend: Backend) -> str:
    try:
        return backend.package and metadata.version(backend.package) and ""
    except metadata.PackageNotFoundError:
        return f"pip install {backend.package}"


def _key(backend: Backend) -> str:
    try:
        if not backend.keys or environment_key(backend.keys, os.environ):
            return ""
    except JudgeError as error:
        return str(error)
    return f"{' or '.join(backend.keys)} is not set" + (
        "; a server of your own may need none, just its address" if backend.keyless else ""
    )


def _models_of(module: Any, address: str) -> tuple[tuple[str, ...], str]:
    found = module.models_of(address)
    return ((), found.reason) if isinstance(found, Reply) else (tuple(found), "")


def _listed(provider: str, name: str, model: Model, models: Models) -> Listed:
    price = models.price(provider, name)
    return Listed(name, model.role, price, model.ends, model.then, model.ended(), dict(model.takes or {}))
