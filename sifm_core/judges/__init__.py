"""Judges: who says whether an edit went wrong. One file per backend, one line in :data:`BACKENDS`.

A judge is asked for by ``"backend:model"`` or ``"backend:model@base_url"``. What a judge cannot answer stays unclear:
no verdict is ever made up.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, unknown
from ..types import Judge


@dataclass(frozen=True)
class Backend:
    """A provider of judges, whose ``load(model, *, base_url=None, ...) -> Judge`` is in ``module``.

    ``remote``: a server, whose address may follow the model; ``vision``: its judges take the options of
    :class:`sifm_core.judges.vlm.VlmJudge`; ``keys``: the environment variables that may hold its key, the usual one
    first; ``package``: what has to be installed besides; ``prices``: its table in ``models.toml`` ("": it is free);
    ``address``: the provider's own, where its keys may go; ``keyless``: servers of one's own are asked by their address
    alone, and their models with the module's ``models_of(address)``. A module's ``absent()`` says what else it lacks,
    if anything.
    """

    module: str
    remote: bool = False
    vision: bool = False
    keys: tuple[str, ...] = ()
    package: str = ""
    prices: str = ""
    address: str = ""
    keyless: bool = False


BACKENDS: dict[str, Backend] = {
    "miniature": Backend("sifm_core.judges.miniature"),
    "gemini": Backend(
        "sifm_core.judges.gemini",
        remote=True,
        vision=True,
        keys=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        package="google-genai",
        prices="gemini",
        address="https://generativelanguage.googleapis.com",
    ),
    "anthropic": Backend(
        "sifm_core.judges.anthropic",
        remote=True,
        vision=True,
        keys=("ANTHROPIC_API_KEY",),
        package="openai",
        prices="anthropic",
        address="https://api.anthropic.com/v1",
    ),
    "openai": Backend(
        "sifm_core.judges.openai_compatible",
        remote=True,
        vision=True,
        keys=("OPENAI_API_KEY",),
        package="openai",
        prices="openai",
        address="https://api.openai.com/v1",
        keyless=True,
    ),
    "transformers": Backend("sifm_core.judges.transformers_vlm", vision=True, package="transformers"),
    "score": Backend("sifm_core.judges.score_models"),
    "human": Backend("sifm_core.judges.human"),
}
"""Name -> backend; what else needs to know of one (command line, nodes, doctor, estimate) reads it here."""

LONGEST = 4096
"""Characters of a spec, a path of a file or an address included."""

REMOTE = tuple(name for name, backend in BACKENDS.items() if backend.remote)
VLM = tuple(name for name, backend in BACKENDS.items() if backend.vision)


def load_judge(spec: str, *, base_url: str | None = None, **options: Any) -> Judge:
    """The judge that ``spec`` names, such as "miniature:conv" or "openai:llava@http://127.0.0.1:11434/v1".

    ``base_url`` gives the address apart ("": the backend's own); then all that follows the backend is the model.
    Raises :class:`InputError` for a spec that is malformed or names an unknown backend, :class:`JudgeError` where
    the judge cannot be set up (no key, no weights, package not installed).
    """
    backend, model, address = parted(spec, whole=base_url is not None)
    base_url = base_url or address or None
    if (
        "@" in model and not base_url and BACKENDS[backend].remote
    ):  # what is meant for another server must not go to its own
        raise InputError(f'after the "@" expected an address with its http:// or https://: {backend}:MODEL@http://HOST')
    return importlib.import_module(BACKENDS[backend].module).load(model, base_url=base_url, **options)


def parted(spec: str, *, whole: bool = False) -> tuple[str, str, str]:
    """(backend, model, address or "") of a spec; ``whole``: all that follows the backend is the model.

    Raises InputError for a spec that is malformed or names an unknown backend.
    """
    if len(spec) > LONGEST:
        raise InputError(f'a judge is named "backend:model[@base_url]"; got {len(spec)} characters: {spec[:40]!r} ...')
    backend, colon, rest = spec.partition(":")
    model, *address = [rest] if whole else re.split("@(?=https?://)", rest, maxsplit=1)
    if not (backend and colon and model.strip()):
        raise InputError(f'a judge is named "backend:model[@base_url]", such as miniature:conv; got {spec!r}')
    if backend not in BACKENDS:
        raise unknown("judge backend", backend, BACKENDS)
    return backend, model, "".join(address)
