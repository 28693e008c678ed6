"""SIFM: immunize images against text-guided diffusion editing, attack them, and measure honestly whether it worked.

The four verbs and what they need are here; everything else has a module of its own. ``import sifm_core`` needs torch
alone: heavy libraries load when a name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .editors import load_editor as load_editor
    from .holding import holds as holds
    from .images import load_image as load_image
    from .images import load_picture as load_picture
    from .images import save_png as save_png
    from .judges import load_judge as load_judge
    from .pipeline import edit as edit
    from .pipeline import immunize as immunize
    from .pipeline import judge as judge
    from .pipeline import measure as measure
    from .protection import protect as protect
    from .rates import isr as isr
    from .verdicts import consensus as consensus

__version__ = "0.1.0"

_HOME = {
    "load_image": "images",
    "load_picture": "images",
    "save_png": "images",
    "load_editor": "editors",
    "load_judge": "judges",
    "consensus": "verdicts",
    "isr": "rates",
    "immunize": "pipeline",
    "edit": "pipeline",
    "measure": "pipeline",
    "judge": "pipeline",
    "protect": "protection",
    "holds": "holding",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
