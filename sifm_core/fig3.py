"""The paper's Fig. 3: CLIP can prefer the picture that was not edited over the one that shows what was asked for."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image as Pil
from PIL import ImageDraw, ImageFont
from torch import Tensor

from .files import cell
from .images import resize, to_uint8
from .metrics.clip_score import MODEL, clip_score
from .store import Store
from .types import Metric, Record
from .verdicts import CLEAN, works

SIDE, LINE = 256, 36
"""Pixels: a picture of the figure, and the lines of text under it."""
SHOWN = 12
"""Pairs in the figure of a run."""


@dataclass(frozen=True)
class Preference:
    """How well CLIP finds that the unedited and the edited picture fit ``text``."""

    text: str
    unedited: Metric
    edited: Metric

    @property
    def prefers_unedited(self) -> bool | None:
        """Whether the unedited picture fits better; None where there is no score."""
        if self.unedited.value is None or self.edited.value is None:
            return None
        return self.unedited.value > self.edited.value


def preferences(pairs: Sequence[tuple[Tensor, Tensor, str]], *, model: str = MODEL) -> list[Preference]:
    """Score each (unedited picture, edited picture, text), pictures (3, H, W) in [0, 1] of any size.

    ``text`` describes the edited state, such as "a woman wearing a crown". See :func:`clip_score` for ``model``.
    """
    scored = []
    for unedited, edited, text in pairs:
        (one,), (two,) = (clip_score(x[None], [text], model=model) for x in (unedited, edited))
        scored.append(Preference(text, one, two))
    return scored


def edits_that_work(records: Iterable[Record], store: Store) -> list[tuple[Tensor, Tensor, str]]:
    """Of a run: the unprotected pictures' edits that every judge says worked, with their sources and prompts.

    Pictures that are damaged are left out.
    """
    clean = (r for r in records if r.method == CLEAN and r.edited and works(r.verdicts))
    return [
        (store.get_image(r.source)[0], store.get_image(r.edited)[0], r.prompt)
        for r in clean
        if store.has_image(r.source) and store.has_image(r.edited)
    ]


def decided(scored: Sequence[Preference]) -> list[bool]:
    """The preferences that there are: True where the unedited picture is preferred."""
    return [one.prefers_unedited for one in scored if one.prefers_unedited is not None]


def sentence(scored: Sequence[Preference], model: str) -> str:
    """How often the unedited picture is preferred, or why that cannot be said."""
    if prefers := decided(scored):
        return f"CLIP prefers the unedited picture in {sum(prefers)} of {len(prefers)} pairs ({model})"
    if not scored:
        return "no CLIP score: there is no edit that every judge says works"
    return f"no CLIP score: {scored[0].unedited.reason or scored[0].edited.reason}"


def files(pairs: Sequence[tuple[Tensor, Tensor, str]], scored: Sequence[Preference]) -> dict[str, bytes]:
    """Name -> content: the scores as a table, empty with the reason where there is none, and a figure of some pairs."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["prompt", "unedited", "edited", "prefers_unedited", "reason"])
    for one in scored:
        reason = one.unedited.reason or one.edited.reason
        table.writerow([cell(one.text), one.unedited.value, one.edited.value, one.prefers_unedited, reason])
    figures = {"clip.png": figure(pairs[:SHOWN], scored[:SHOWN])} if decided(scored) else {}
    return {"clip.csv": text.getvalue().encode(), **figures}


def figure(pairs: Sequence[tuple[Tensor, Tensor, str]], scored: Sequence[Preference]) -> bytes:
    """The pairs side by side as PNG, with their scores; what CLIP prefers is framed."""
    font = ImageFont.load_default(size=13)
    sheet = Pil.new("RGB", (2 * SIDE, len(pairs) * (SIDE + LINE)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, ((unedited, edited, _), one) in enumerate(zip(pairs, scored, strict=True)):
        top, wins = row * (SIDE + LINE), one.prefers_unedited
        shown = ((unedited, "unedited", one.unedited, wins is True), (edited, "edited", one.edited, wins is False))
        for column, (picture, name, metric, preferred) in enumerate(shown):
            scale = SIDE / max(picture.shape[-2:])
            size = tuple(max(1, round(side * scale)) for side in picture.shape[-2:])
            small = to_uint8(resize(torch.as_tensor(picture)[None], (size[0], size[1])))
            left = column * SIDE
            sheet.paste(Pil.fromarray(small), (left, top))
            if preferred:
                pen.rectangle((left, top, left + size[1] - 1, top + size[0] - 1), outline=(200, 30, 30), width=4)
            score = "no score" if metric.value is None else f"{metric.value:.4f}"
            pen.text((left + 4, top + SIDE + 2), f"{name}: {score}", "black", font)
        pen.text((4, top + SIDE + 18), f"“{one.text}”", "black", font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
