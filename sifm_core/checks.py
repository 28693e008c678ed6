"""What numbers, names and prompts may be; everything else is refused in one sentence."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from typing import Any

from .errors import InputError, unknown

MOST = 1_000_000
"""Of whatever is counted (steps, pictures): more is a slip of the hand."""
LONGEST_PROMPT = 10_000
"""Characters. Text encoders read a few hundred."""


def check_unit(value: Any, name: str) -> float:
    """A number in (0, 1] as float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) <= 1:
        raise InputError(f"{name}: expected a number above 0 and at most 1 (pixel values span [0, 1]), got {value!r}")
    return float(value)


def check_budget(eps: Any) -> float:
    """eps as float; refuses budgets under one 8-bit level, which no saved picture could use."""
    if check_unit(eps, "eps") < 1 / 255:
        raise InputError(f"eps: {eps!r} is under one 8-bit level (1/255 = 0.0039): the saved picture could not change")
    return float(eps)


def check_count(value: Any, name: str) -> int:
    """A whole number from 1 to :data:`MOST`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise InputError(f"{name}: expected a whole number of at least 1, got {value!r}")
    if int(value) > MOST:
        raise InputError(f"{name}: expected at most {MOST:,}, got {value!r}")
    return int(value)


def check_choice(value: Any, name: str, known: Iterable[str]) -> Any:
    """One of the names; InputError with near ones for another."""
    if not isinstance(value, str) or value not in known:
        raise unknown(name, str(value), known)
    return value


def check_list(values: Any, name: str) -> list[Any]:
    """A list of whatever is in it; no text."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise InputError(f"{name}: expected a list, got {type(values).__name__}")
    return list(values)


def check_prompts(prompt: str | Sequence[str], n: int) -> list[str]:
    """One stripped, non-empty prompt per picture; a single string serves all n."""
    prompts = [prompt] * n if isinstance(prompt, str) else check_list(prompt, "prompt")
    if len(prompts) != n:
        raise InputError(f"expected one prompt or {n} (one per picture), got {len(prompts)}")
    for text in prompts:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"prompt: expected an instruction such as 'make it night', got {text!r}")
        if len(text) > LONGEST_PROMPT:
            raise InputError(f"prompt: expected at most {LONGEST_PROMPT:,} characters, got {len(text):,}; shorten it")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError("prompt: expected text, but got bytes that are no UTF-8; type it anew") from None
    return [text.strip() for text in prompts]
