"""Benchmarks: a grid of pictures x rows x editors x seeds x purifiers x judges -> records in a store.

``grid.py`` says what is to be run, ``keys.py`` what each part of it depends on, ``artefacts.py`` what is there,
``driver.py`` computes what is missing, phase by phase (``phases.py``), ``executors.py`` where, ``work.py`` how one
batch of it; ``presets/`` holds the paper's tables as TOML, read by ``config.py``. Names load when they are first used:
who reads a run needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..verdicts import CLEAN as CLEAN

if TYPE_CHECKING:
    from .driver import fill as fill
    from .driver import run as run
    from .executors import Executor as Executor
    from .executors import Inline as Inline
    from .executors import Pool as Pool
    from .executors import Ray as Ray
    from .grid import Grid as Grid
    from .grid import Row as Row
    from .grid import Sample as Sample
    from .keys import FIDELITY as FIDELITY
    from .machine import hardware as hardware
    from .machine import package_version as package_version
    from .origin import provenance as provenance

_HOME = {
    "executors": ("Executor", "Inline", "Pool", "Ray"),
    "grid": ("Grid", "Row", "Sample"),
    "keys": ("FIDELITY",),
    "machine": ("hardware", "package_version"),
    "origin": ("provenance",),
    "driver": ("fill", "run"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
