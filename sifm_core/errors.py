"""The engine's own errors. Each message says what was expected, what came, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 1000
"""Characters of an error's sentence, whatever was given: its beginning and its end are kept."""


def bounded(sentence: str) -> str:
    """The sentence with at most :data:`LONGEST` characters; what is left out of its middle is counted."""
    if len(sentence) <= LONGEST:
        return sentence
    left = f" … ({len(sentence) - LONGEST} characters more) … "
    half = (LONGEST - len(left)) // 2
    return sentence[:half] + left + sentence[-half:]


class SifmError(Exception):
    """Base of every error the engine raises on purpose; the command line prints it in one line and exits 1."""

    exit_code = 1

    def __str__(self) -> str:
        return bounded(super().__str__())


class InputError(SifmError):
    """The caller's input is wrong; nothing was done. Exit code 2."""

    exit_code = 2


class ImageError(InputError):
    """A picture cannot be read, has an unusable shape or holds values that are not numbers in [0, 1]."""


class LayerError(InputError):
    """A layer path matches nothing, never ran, or its features cannot be aggregated."""


class EditorError(SifmError):
    """An editor cannot be loaded or run."""


class BudgetError(SifmError):
    """A saved picture is outside its perturbation budget. This is a bug or a changed file, never a setting."""


class JudgeError(SifmError):
    """A judge cannot be set up (unknown backend, missing key). Single cases never raise: their verdict is unclear."""


class StoreError(SifmError):
    """The store of a run is unreadable or holds a torn file."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An :class:`InputError` for a name that is not in a table, with the nearest known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return InputError(f"unknown {kind} {name!r}: {hint}")
