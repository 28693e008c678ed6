"""The page of a self-test: the light and why, the weakest case first where there is one, and the pictures."""

from __future__ import annotations

import base64
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from ..format import percent, span
from ..holding import AS_IT_IS, RULE, Attack, Holds
from ..images import png_bytes
from ..types import Image
from .drawings import bar

PIXEL_ART = 128
"""Pixels; smaller pictures are enlarged without smoothing."""
SAID = {True: "the edit failed", False: "the edit works", None: "unclear"}


def page(found: Holds, title: str = "", most: int = 60) -> str:
    """One HTML page that needs nothing else, with the first ``most`` edits, by instruction and editor."""
    environment = Environment(
        loader=PackageLoader("sifm_core"), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    clean = {attack.cell: attack for attack in found.attacks if attack.kind == "original"}
    edits = [attack for attack in found.attacks if attack.kind == "protected"]
    shown: dict[tuple[str, str], list[Attack]] = {}
    for attack in edits[:most]:
        shown.setdefault((attack.instruction, attack.editor), []).append(attack)
    return environment.get_template("holds.html").render(
        found=found,
        title=title,
        words=list(found.words()),
        rule=RULE,
        original=bool(clean),
        hidden=max(0, len(edits) - most),
        groups=[
            {"instruction": instruction, "about": editor, "cards": [_card(one, clean.get(one.cell)) for one in some]}
            for (instruction, editor), some in shown.items()
        ],
        facts=list(_facts(found)),
        bar=bar,
        percent=percent,
        span=span,
    )


def _card(attack: Attack, clean: Attack | None) -> dict[str, Any]:
    judged = bool(attack.verdicts)
    floor = "" if clean is None or not judged else f"original: {SAID[clean.failed]}"
    through = attack.failed is False and (clean is None or clean.failed is False)
    return {
        "style": "through" if through else "failed" if attack.failed else "",
        "look": "pixelated" if max(attack.edited.shape[-2:]) <= PIXEL_ART else "",
        "clean": "" if clean is None else _uri(clean.edited),
        "edit": _uri(attack.edited),
        "said": SAID[attack.failed] if judged else "not judged",
        "way": attack.way,
        "about": " · ".join(filter(None, (floor, f"seed {attack.seed}"))),
        "details": [(v.judge, v.word if v.state == "ok" else v.state, v.reasons) for v in attack.verdicts],
    }


def _facts(found: Holds) -> list[tuple[str, str]]:
    named = [f"{way.name} (longest side {way.side}, JPEG {way.quality:g})" for way in found.ways if way.side]
    facts = [
        ("Date", found.date),
        ("Editors", "; ".join(f"{e['name']}, weights {e['fingerprint'][:12]}" for e in found.editors)),
        ("Instructions", f"{len(found.instructions)}, {'drawn from the pool' if found.drawn else 'given'}"),
        ("Seeds", ", ".join(map(str, found.seeds))),
        ("Uploads", f"approximations of {found.uploads_read}, no platform's own figures: {'; '.join(named) or 'none'}"),
        ("Purifiers", ", ".join(way.purifier for way in found.ways if way.purifier) or "none"),
        ("Edits", f"{len(found.attacks)} in {found.seconds:.0f} s, each also {AS_IT_IS}"),
        ("Not tested", "closed services, editors of the future, stronger purifiers, cropping, repainting"),
    ]
    if found.change is not None:
        facts.insert(1, ("Largest change", f"{255 * found.change:.0f} of 255 levels, which the noise has too"))
    return facts


def _uri(image: Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()
