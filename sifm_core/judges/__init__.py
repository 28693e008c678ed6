"""Judges: who says whether an edit went wrong. One file per backend, one line in :data:`BACKENDS`.

A judge is asked for by ``"backend:model"`` or ``"backend:model@base_url"``. What a judge cannot answer stays unclear:
no verdict is ever made up.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from ..errors import InputError, unknown
from ..types import Judge, Verdict

BACKENDS: dict[str, str] = {
    "miniature": "sifm_core.judges.miniature",
    "gemini": "sifm_core.judges.gemini",
    "openai": "sifm_core.judges.openai_compatible",
    "transformers": "sifm_core.judges.transformers_vlm",
    "human": "sifm_core.judges.human",
}
"""Backend -> its module; the signature of its ``load(model, *, base_url=None, ...) -> Judge`` says the options."""

VLM = ("gemini", "openai", "transformers")
"""Backends whose judges take the options of :class:`sifm_core.judges.vlm.VlmJudge` (cache, max_cost, preset ...)."""


def load_judge(spec: str, **options: Any) -> Judge:
    """The judge that ``spec`` names, such as "miniature:conv" or "openai:llava@http://127.0.0.1:11434/v1".

    Raises :class:`InputError` for a spec that is malformed or names an unknown backend, :class:`JudgeError` where
    the judge cannot be set up (no key, no weights, package not installed).
    """
    backend, colon, rest = spec.partition(":")
    model, at, base_url = rest.partition("@http")
    if not (backend and colon and model.strip()):
        raise InputError(f'a judge is named "backend:model[@base_url]", such as miniature:conv; got {spec!r}')
    if backend not in BACKENDS:
        raise unknown("judge backend", backend, BACKENDS)
    module = importlib.import_module(BACKENDS[backend])
    return module.load(model, base_url=f"http{base_url}" if at else None, **options)


def consensus(verdicts: Sequence[Verdict]) -> bool | None:
    """Strict agreement: True if every judge says success, None if any gave no answer or none was asked, else False."""
    successes = [verdict.success for verdict in verdicts]
    return None if not successes or None in successes else all(successes)
