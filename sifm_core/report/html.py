"""One HTML page that needs nothing else: tables, plots, pictures with verdicts, curves, provenance."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from PIL import Image as Pil

from .. import miniature
from ..format import number, percent, span, title
from ..judges.calibration import MAJORITY, UNANIMOUS, panel
from ..store import Store
from ..types import Record
from ..verdicts import CLEAN, consensus
from .cells import (
    CORRECTED,
    agreement_table,
    categories,
    failures,
    measured,
    net,
    predictor_table,
    sheets,
    starred,
    without_errors,
)
from .drawings import attacks, bar, curve, plot, told_apart
from .figures import Line

if TYPE_CHECKING:
    from . import Report

MAX_SIDE = 320
"""Pixels; larger pictures are shown smaller on the page."""
GONE = "data:,"
"""In place of a picture that the store has lost; what is known of it still stands there."""
PIXEL_ART = 128
"""Pixels; smaller pictures are enlarged without smoothing."""


def page(report: Report, store: Store, pictures: int = 12) -> str:
    """The report as HTML with the first so many attacks as pictures."""
    shown = first_attacks(report.frame.kept, pictures)
    images = _Pictures(store, eps=max((r.eps for r in shown), default=0.0))
    cells = attacks(shown)
    environment = Environment(
        loader=PackageLoader("sifm_core"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["code"] = _code
    lines = [line for part in report.parts for line in part.lines]
    rated = sheets(report.parts, report.layout, report.beside)
    return environment.get_template("report.html").render(
        report=report,
        evidence=[note for note in report.reading if note == miniature.EVIDENCE],
        notes=[note for note in report.reading if note != miniature.EVIDENCE],
        failures=list(dict.fromkeys(reason for line in lines for reason in line.failed)),
        sheets=rated,
        starred=starred(rated),
        bar=lambda part, line: bar(line.isr, _floor(part.lines)),
        plots=[plot(name, series) for name, series in report.plots.items()],
        failed=failures,
        categories=categories,
        measured=measured,
        agreements=agreement_table(report.agreements) if report.agreements else {},
        predictors=predictor_table(report.predictors) if report.predictors else {},
        clip_picture=_uri(report.clip.picture) if report.clip and report.clip.picture else "",
        cells=[_cell(cell, told, images) for cell, told in zip(cells, told_apart(cells), strict=True)],
        gain=f"{images.gain:.0f}",
        curves=_curves(shown, store),
        percent=percent,
        span=span,
        net=net,
        without_errors=without_errors,
        panel=panel,
        UNANIMOUS=UNANIMOUS,
        MAJORITY=MAJORITY,
        corrected_means=CORRECTED.removeprefix("Corrected: ").capitalize(),
        zip=zip,
    )


def _code(sentence: str) -> Markup:
    """A sentence, what stands between backticks as code."""
    parts = sentence.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


def first_attacks(records: Sequence[Record], pictures: int) -> list[Record]:
    """The records of the first so many attacks, the original prompts first."""
    cells = sorted(attacks(records), key=lambda cell: cell[0].prompt_kind != "original")
    return [record for cell in cells[:pictures] for record in cell]


def _floor(lines: Sequence[Line]) -> float | None:
    return next((line.isr.rate for line in lines if line.name == CLEAN), None)


class _Pictures:
    """Pictures of the store as data URIs; equal ones are encoded once."""

    def __init__(self, store: Store, eps: float) -> None:
        self.store = store
        self.gain = 0.5 / eps if eps else 1.0
        self.uri = cache(self._uri)

    def _uri(self, image: str, against: str = "") -> str:
        x, source = self.store.find_pixels(image), self.store.find_pixels(against) if against else None
        if x is None or (against and source is None):
            return GONE
        if source is not None:
            delta = x.astype(float) - source
            x = np.clip(127.5 + self.gain * delta, 0, 255).round().astype(np.uint8)
        picture, out = Pil.fromarray(x), io.BytesIO()
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        picture.save(out, "PNG")
        return _uri(out.getvalue())

    def pixelated(self, image: str) -> bool:
        pixels = self.store.find_pixels(image)
        return pixels is not None and max(pixels.shape[:2]) <= PIXEL_ART


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _cell(records: Sequence[Record], told: str, pictures: _Pictures) -> dict[str, Any]:
    first = records[0]
    unseen = "" if first.prompt_kind == "original" else f"{first.prompt_kind} prompt"
    about = [first.category, first.image, unseen, told]
    return {
        "prompt": first.prompt,
        "about": " · ".join(filter(None, about)),
        "source": pictures.uri(first.source),
        "pixelated": pictures.pixelated(first.source),
        "cards": [_card(record, pictures) for record in records],
    }


VERDICTS = {
    True: ("failed", "✗", "edit failed"),
    False: ("works", "✓", "edit works"),
    None: ("unclear", "?", "unclear"),
}
"""Consensus -> style, mark, words."""


def _card(record: Record, pictures: _Pictures) -> dict[str, Any]:
    state, mark, words = VERDICTS[consensus(record.verdicts)]
    changed = bool(record.protected) and record.protected != record.source
    return {
        "name": record.method,
        "state": state if record.edited else "missing",
        "mark": mark,
        "verdict": words,
        "failed": record.info.get("failed", ""),
        "edit": pictures.uri(record.edited) if record.edited else "",
        "attacked": pictures.uri(record.protected) if changed else "",
        "delta": pictures.uri(record.protected, record.source) if changed else "",
        "details": [(v.judge, v.word if v.state == "ok" else v.state, v.reasons) for v in record.verdicts],
        "metrics": " · ".join(f"{title(name)[:-2]} {number(m.value)}" for name, m in record.metrics.items()),
    }


def _curves(records: Sequence[Record], store: Store) -> dict[str, list[str]]:
    """Method -> one drawing per logged value, one line per batch (the pictures of a batch share their history)."""
    histories: dict[str, list[Sequence[Mapping[str, float]]]] = {}
    for record in records:
        kept = store.get("immunize", record.info.get("protection_key", "")) or {}
        history = record.info.get("history") or kept.get("history")
        if history and history not in histories.setdefault(record.method, []):
            histories[record.method].append(history)
    return {
        method: [
            curve(name, [[step[name] for step in history] for history in some])
            for name in some[0][0]
            if all(step.get(name) is not None for history in some for step in history)
        ]
        for method, some in histories.items()
        if some
    }
