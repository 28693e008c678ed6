"""What CLIP prefers (Fig. 3), as :mod:`sifm_core.fig3` wrote it beside a report: clip.csv and clip.png."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from ..format import NONE, number

PREFERS = {"True": "the unedited", "False": "the edit"}
"""``prefers_unedited`` of clip.csv -> what is shown; no score is "–"."""


@dataclass(frozen=True)
class Clip:
    """``said``: how often CLIP prefers the unedited picture, or why nobody knows; ``picture``: PNG, or b""."""

    said: str
    table: dict[str, list[str]]
    picture: bytes


def beside(folder: Path) -> Clip | None:
    """The scores in a folder, None where there are none, or what is there is damaged."""
    try:
        with (folder / "clip.csv").open(encoding="utf-8", newline="") as file:
            return _read(list(csv.DictReader(file)), folder / "clip.png")
    except (OSError, ValueError, LookupError, TypeError, csv.Error):
        return None


def _read(rows: list[dict[str, str]], picture: Path) -> Clip:
    scored = [row["prefers_unedited"] for row in rows if row["prefers_unedited"] in PREFERS]
    if scored:
        headline = f"CLIP prefers the unedited picture in {scored.count('True')} of {len(scored)} pairs."
    else:
        headline = f"No CLIP score: {rows[0]['reason'] if rows else 'there is no edit that every judge says works'}."
    table = {
        "prompt": [row["prompt"] for row in rows],
        **{
            name: [number(float(row[name]) if row[name] else None, 4) for row in rows]
            for name in ("unedited", "edited")
        },
        "CLIP prefers": [PREFERS.get(row["prefers_unedited"], NONE) for row in rows],
    }
    return Clip(headline, table if scored else {}, picture.read_bytes() if scored and picture.is_file() else b"")
