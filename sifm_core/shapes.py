"""Does plain data have the shape that a type hint says? For files that others, or other versions, wrote."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints, is_typeddict

Check: TypeAlias = Callable[[Any], str]


def misfit(value: Any, hint: Any) -> str:
    """What of ``value`` (plain data, as JSON gives it) does not fit a type hint, and where; "" when all of it does.

    Hints: Any, None, bool, int, float (finite; a whole number is one too), str, Literal, unions, mappings of texts,
    lists and tuples of one kind, dataclasses (no other fields than theirs) and TypedDicts (others may be there).
    """
    return _check(hint)(value)


@cache
def _check(hint: Any) -> Check:
    if hint is Any:
        return lambda value: ""
    origin, inner = get_origin(hint), get_args(hint)
    if kinds := _kinds(hint):
        wanted = inner[0] if inner else hint
        return lambda value: "" if _is_one(value, kinds) else _wanted(wanted, value)
    if origin in (Union, UnionType):
        return _any_of([_check(one) for one in inner])
    if origin is Literal:
        return lambda value: "" if value in inner else f"expected one of {', '.join(map(str, inner))}, {_came(value)}"
    if is_dataclass(hint) or is_typeddict(hint):
        return _fields(hint)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(_check(inner[1]))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _sequence(_check(inner[0]))
    raise TypeError(f"no hint for plain data: {hint}")


def _kinds(hint: Any) -> frozenset[type]:
    """The types of a plain value's hint or of a union of such; none for other hints."""
    if get_origin(hint) in (Union, UnionType):
        parts = [_kinds(one) for one in get_args(hint)]
        return frozenset().union(*parts) if all(parts) else frozenset()
    kind = NoneType if hint is None else hint
    return frozenset((int, float) if kind is float else (kind,)) if kind in _WORDS else frozenset()


def _is_one(value: Any, kinds: frozenset[type]) -> bool:
    kind = type(value)
    return kind in kinds and (kind is not float or math.isfinite(value))


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}


def _wanted(kind: Any, value: Any) -> str:
    return f"expected {_WORDS[NoneType if kind is None else kind]}, {_came(value)}"


def _came(value: Any) -> str:
    shown = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return f"got {shown[:60]}"


def _any_of(checks: Sequence[Check]) -> Check:
    def check(value: Any) -> str:
        return "" if any(not one(value) for one in checks) else checks[0](value)

    return check


def _mapping(item: Check) -> Check:
    def check(value: Any) -> str:
        if type(value) is not dict:
            return f"expected an object, {_came(value)}"
        return next((f"{str(name)[:60]}: {wrong}" for name, one in value.items() if (wrong := item(one))), "")

    return check


def _sequence(item: Check) -> Check:
    def check(value: Any) -> str:
        if type(value) is not list:
            return f"expected a list, {_came(value)}"
        return next((f"{i}: {wrong}" for i, one in enumerate(value) if (wrong := item(one))), "")

    return check


def _fields(hint: Any) -> Check:
    hints = get_type_hints(hint)
    plain = {name: kinds for name, one in hints.items() if (kinds := _kinds(one))}
    checks = {name: _check(one) for name, one in hints.items()}
    closed = is_dataclass(hint)
    needed = (
        {f.name for f in fields(hint) if f.default is MISSING and f.default_factory is MISSING}
        if closed
        else set(hint.__required_keys__)
    )

    def check(value: Any) -> str:
        if type(value) is not dict:
            return f"expected an object, {_came(value)}"
        if missing := needed - value.keys():
            return f"expected {', '.join(sorted(missing))}, but it is missing"
        for name, one in value.items():
            if name in plain and _is_one(one, plain[name]):
                continue
            if name not in checks:
                if closed:
                    return f"{name[:60]}: expected no such field; another version of sifm may have written it"
            elif wrong := checks[name](one):
                return f"{name}: {wrong}"
        return ""

    return check
