"""Networks of diffusers and transformers folders, whole: the libraries fill what files lack at random."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from .files import read_text

LIBRARIES = ("diffusers", "transformers")
"""Whose classes may be named by a model_index.json; code from elsewhere is never run."""
_NAMED = 3


class Incomplete(ValueError):
    """Files lack weights of their network."""


def whole(kind: Any, place: str | Path, **given: Any) -> Any:
    """``kind.from_pretrained(place, **given)``, every weight of it read from files.

    Raises :class:`Incomplete` with the names of weights that the files lack, and what the library raises. Weights that
    the network has no place for are left out.
    """
    network, found = kind.from_pretrained(place, output_loading_info=True, **given)
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise Incomplete(
            f"the files of {Path(place).name} lack weights of a {type(network).__name__}: "
            f"{', '.join(missing[:_NAMED])}{more}"
        )
    return network


def networks(kind: Any, folder: str | Path, but: Collection[str] = (), **given: Any) -> dict[str, Any]:
    """The networks of a pipeline of class ``kind`` in a diffusers folder by part, each :func:`whole`, but ``but``.

    Raises OSError or ValueError for a model_index.json that cannot be read, AttributeError for an unknown class.
    """
    index, taken = json.loads(read_text(Path(folder, "model_index.json"))), inspect.signature(kind).parameters
    found = {}
    for name in sorted(index.keys() & taken.keys() - set(but)):
        if is_part(index[name]) and index[name][0] in LIBRARIES:
            part = getattr(importlib.import_module(index[name][0]), index[name][1])
            if isinstance(part, type) and issubclass(part, torch.nn.Module):
                found[name] = whole(part, Path(folder, name), **given)
    return found


def is_part(entry: Any) -> bool:
    """Is this entry of a model_index.json a part of the pipeline: [library, class]?"""
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(item, str) for item in entry)
