"""What can be set, read from annotations: doors make flags, widgets and tables of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints


class Option(NamedTuple):
    """One setting: its type as annotated, its default and what is said about it."""

    type: Any
    default: Any
    doc: str


@cache  # a benchmark asks for each of its records
def options_of(made: Callable[..., Any]) -> Mapping[str, Option]:
    """The keyword-only parameters of a function or a class, in their order."""
    hints = get_type_hints(made, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(made).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            hint = hints[name]
            kind, doc = get_args(hint)[:2] if get_origin(hint) is Annotated else (hint, "")
            found[name] = Option(kind, parameter.default, doc)
    return MappingProxyType(found)
