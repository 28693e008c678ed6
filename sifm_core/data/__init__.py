"""Benchmark data: pictures with an original and five unseen instructions each, frozen in a manifest and checked.

``manifest.py`` is the file, ``prompts.py`` where unseen instructions come from and when they are distinct, ``build.py``
makes manifests from a folder with a CSV, from a copy of timbrooks/instructpix2pix-clip-filtered, or of the miniature.
"""

from __future__ import annotations

import os

from ..errors import InputError
from .manifest import Item as Item
from .manifest import check as check
from .manifest import read as read
from .manifest import write as write

MINIATURE = "miniature"


def load(source: str | os.PathLike[str] = MINIATURE, n: int | None = None) -> list[Item]:
    """The first n items (None: all) of the embedded miniature or of a manifest, which is checked.

    Raises InputError when there are fewer than n, or when the manifest is not sound.
    """
    if os.fspath(source) == MINIATURE:
        from ..miniature import benchmark, language

        return [
            Item(
                x.id,
                x.category,
                f"{MINIATURE}:{x.id}",
                x.instruction,
                x.unseen,
                drawn=x.image,
                tell=x.truth,
                spoken=language.wordings,
            )
            for x in benchmark.load(n)
        ]
    items = check(read(source))
    if n is not None and not 1 <= n <= len(items):
        raise InputError(f"{source} has {len(items)} pictures: expected 1 to {len(items)}, got {n}")
    return items[:n]
