"""The engine's own errors. Each message says what was expected, what came, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

LONGEST = 1000
"""Characters of an error's sentence, whatever was given: its beginning and its end are kept."""


def bounded(sentence: str, longest: int = LONGEST) -> str:
    """The sentence with at most ``longest`` characters; what is left out of its middle is counted."""
    if len(sentence) <= longest:
        return sentence
    left = f" … ({len(sentence) - longest} characters more) … "
    half = (longest - len(left)) // 2
    return sentence[:half] + left + sentence[-half:]


class SifmError(Exception):
    """Base of every error the engine raises on purpose; the command line prints it in one line and exits 1.

    A message that advises to set an argument writes ``{name}`` for it and takes its value as ``name=value``: each door
    (Python here, the command line, ComfyUI) then says it in its own words, see :meth:`said`.
    """

    exit_code = 1

    def __init__(self, message: str = "", **settings: Any) -> None:
        super().__init__(message)
        self.settings = settings

    def said(self, words: Callable[[str, Any], str]) -> str:
        """The message, at most :data:`LONGEST` characters, with ``words(name, value)`` for each setting it advises."""
        text = str(self.args[0]) if self.args else ""
        for name, value in self.settings.items():
            text = text.replace(f"{{{name}}}", words(name, value))
        return bounded(text)

    def speak(self, words: Callable[[str, Any], str]) -> None:
        """From now on the message is in the words of that door."""
        self.args, self.settings = (self.said(words),), {}

    def __str__(self) -> str:
        return self.said(lambda name, value: f"{name}={value!r}")


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
