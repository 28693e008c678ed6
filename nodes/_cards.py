"""What nodes show of verdicts: the source, the edit and what each judge says of it; ``web/gallery.js`` draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sifm_core.images import png_bytes, resize
from sifm_core.types import Verdict
from sifm_core.verdicts import consensus

from ._store import digest

MAX_SIDE = 512
"""Pixels of a picture that is only to be looked at."""
ARMS = {"protected": "protected", "control": "noise control", "clean": "unprotected"}
"""Arm of a comparison -> what it is called."""
FOLDER = "sifm"
"""In ComfyUI's folder for temporary files, which is emptied when the server starts."""


@dataclass(frozen=True)
class Seen:
    """A judge's verdict, and what it was shown: the instruction and the files of :func:`shown`."""

    verdict: Verdict
    prompt: str = ""
    source: Mapping[str, str] | None = None
    edited: Mapping[str, str] | None = None


def shown(picture: Tensor) -> dict[str, str]:
    """A picture (3, H, W) as a temporary file named by its content, in the words of ComfyUI's ``/view``."""
    import folder_paths

    name = f"{digest(picture)[:32]}.png"
    path = Path(folder_paths.get_temp_directory(), FOLDER, name)
    if not path.exists():
        height, width = picture.shape[-2:]
        scale = MAX_SIDE / max(height, width)
        small = resize(picture[None], (round(height * scale), round(width * scale)))[0] if scale < 1 else picture
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(small))
    return {"filename": name, "subfolder": FOLDER, "type": "temp"}


def card(seen: Sequence[Seen], title: str = "") -> dict[str, Any]:
    """One edit with all that was said of it, and what the judges agree on (``failed``, None: nothing)."""
    first, verdicts = seen[0], [each.verdict for each in seen]
    place = {"prompt": first.prompt, "source": first.source, "edited": first.edited, "method": title}
    return place | {"failed": consensus(verdicts), "said": [told(verdict) for verdict in verdicts]}


def told(verdict: Verdict) -> dict[str, Any]:
    """What is shown of a verdict."""
    return {"judge": verdict.judge, "state": verdict.state, "reasons": verdict.reasons, "word": verdict.word}
