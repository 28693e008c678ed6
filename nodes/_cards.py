"""What nodes show of verdicts: the source, the edit and what each judge says of it; ``web/gallery.js`` draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sifm_core.types import Verdict
from sifm_core.verdicts import consensus

ARMS = {"protected": "protected", "control": "noise control", "clean": "unprotected"}
"""Arm of a comparison -> what it is called."""


@dataclass(frozen=True)
class Seen:
    """A judge's verdict, and what it was shown: the instruction and the files of :func:`nodes._shown.picture`."""

    verdict: Verdict
    prompt: str = ""
    source: Mapping[str, str] | None = None
    edited: Mapping[str, str] | None = None


def card(seen: Sequence[Seen], title: str = "") -> dict[str, Any]:
    """One edit with all that was said of it, and what the judges agree on (``failed``, None: nothing)."""
    first, verdicts = seen[0], [each.verdict for each in seen]
    place = {"prompt": first.prompt, "source": first.source, "edited": first.edited, "method": title}
    return place | {"failed": consensus(verdicts), "said": [told(verdict) for verdict in verdicts]}


def told(verdict: Verdict) -> dict[str, Any]:
    """What is shown of a verdict."""
    return {"judge": verdict.judge, "state": verdict.state, "reasons": verdict.reasons, "word": verdict.word}
