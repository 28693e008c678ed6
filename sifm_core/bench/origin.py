"""Where a run's figures come from: versions, hardware and settings, as the report prints them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .grid import Grid
from .machine import commit, versions
from .work import Model, Task, perform


def provenance(grid: Grid, editors: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Versions, hardware and settings, as the report prints them; ``editors``: what is known of the named ones."""
    identified = dict(editors or {})
    for editor in grid.editors:
        if not isinstance(editor, str):
            identified[editor.name] = perform(Task("identify", Model("editor", editor.name, live=editor), {}))[0]
    keep = ("name", "family", "fingerprint", "dtype", "text_encoders")
    return {
        "versions": versions(),
        "commit": commit(),
        "hardware": ", ".join(dict.fromkeys(str(found["hardware"]) for found in identified.values())) or None,
        "editors": [{key: found.get(key) for key in keep} for found in identified.values()],
        "judges": [judge if isinstance(judge, str) else judge.name for judge in grid.judges],
        "settings": {
            "eps": grid.eps,
            "steps": grid.steps,
            "alpha": grid.alpha,
            "seeds": list(grid.seeds),
            "batch": grid.batch,
            **({"demonstration": True} if grid.demonstration else {}),
            **({"edit": dict(grid.edit_options)} if grid.edit_options else {}),
        },
    }
