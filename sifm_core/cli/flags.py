"""Flags that are made from fields: of the loop's settings, and of what several commands take as one object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from ..loop import LOOP
from ..options import Option
from .shared import number

T = TypeVar("T")
LOOP_PANEL = "Loop (of every method with a gradient)"
_BUDGET = ("eps", "steps", "alpha")
_METAVARS = {"eps": "E", "steps": "N", "alpha": "A", "ball": "linf|l2", "eot": "KIND:STRENGTH"}


def _flag(name: str, option: Option) -> Parameter:
    """A setting of the loop as a parameter of a command; not given, it is as the preset says."""
    flag, about, kind = "--" + name.replace("_", "-"), option.doc, option.type
    extra: dict[str, Any] = {"metavar": _METAVARS.get(name, "NAME")}
    if kind is float:
        extra["parser"] = number
    elif kind == bool | None:
        kind, flag, extra = bool, f"{flag}/--no-{flag[2:]}", {}
    elif get_origin(kind) is Sequence:
        kind, about = list[str], about.replace("; ", "; may be repeated, and ")
    elif kind is not int:
        kind = str
    if name not in _BUDGET:
        extra["rich_help_panel"] = LOOP_PANEL
    default = typer.Option(None, flag, help=about, **extra)
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind | None)


Looping = Annotated[dict[str, Any], tuple(_flag(name, option) for name, option in LOOP.items())]
"""What was given of the loop's settings, None where nothing was; for commands under :func:`options`."""


def options(command: Callable[..., T]) -> Callable[..., T]:
    """A command some of whose parameters stand for several options each, made one object again.

    One of a dataclass's type has an option for each field; an annotation such as :data:`Looping` lists the options.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[Parameter] = []
    groups: dict[str, tuple[Any, list[str]]] = {}
    for name, parameter in signature(command).parameters.items():
        made, *lists = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
        if is_dataclass(made):
            types = get_type_hints(made, include_extras=True)
            spread = [
                Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name])
                for field in fields(made)
            ]
        elif lists and isinstance(lists[0], tuple):
            made, spread = dict, list(lists[0])
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name]))
            continue
        parameters += spread
        groups[name] = made, [parameter.name for parameter in spread]

    @wraps(command)
    def expanded(**given: Any) -> T:
        objects = {name: made(**{key: given.pop(key) for key in keys}) for name, (made, keys) in groups.items()}
        return command(**given, **objects)

    expanded.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded
