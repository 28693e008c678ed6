"""Small drawings: bars and curves as inline SVG, one PNG sheet of pictures. No library draws them."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from itertools import compress

import numpy as np
from PIL import Image as Pil
from PIL import ImageDraw, ImageFont

from ..format import percent, span
from ..rates import Isr
from ..store import Store
from ..types import Record
from ..verdicts import Cell, cell, consensus
from .columns import PLAIN

COLOURS = ("#4b3fae", "#b5502d", "#2d7f5e", "#8a6d1d", "#6b6f7a", "#a13d7d", "#2f6fb0", "#555")


def bar(rate: Isr, floor: float | None) -> str:
    """A rate with its interval on a line from 0 to 100%, and the clean floor dashed, as inline SVG."""
    if rate.rate is None or rate.low is None or rate.high is None:
        return ""
    words = f"{percent(rate.rate)}, interval {span(rate.low, rate.high)}"
    dashed = "" if floor is None else f'<path class="floor" d="M{100 * floor:.2f} 0V16"/>'
    low, high = 100 * rate.low, 100 * rate.high
    return (
        f'<svg viewBox="0 0 100 16" preserveAspectRatio="none" role="img" aria-label="{words}">'
        f'<rect class="track" y="4" width="100" height="8"/>'
        f'<rect class="fill" y="4" width="{100 * rate.rate:.2f}" height="8"/>{dashed}'
        f'<path class="whisker" d="M{low:.2f} 8H{high:.2f}M{low:.2f} 5V11M{high:.2f} 5V11"/></svg>'
    )


def curve(title: str, series: Sequence[Sequence[float]]) -> str:
    """Lines over the iterations, each from left to right, on one scale from the least to the greatest value."""
    values = [value for line in series for value in line]
    low, high = min(values), max(values)
    paths = "".join(
        '<polyline points="'
        + " ".join(
            f"{300 * i / max(len(line) - 1, 1):.1f},{95 - 90 * (value - low) / (high - low or 1):.1f}"
            for i, value in enumerate(line)
        )
        + '"/>'
        for line in series
    )
    escaped = html.escape(title)
    words = f"{escaped} from {series[0][0]:.4g} to {series[0][-1]:.4g} in {len(series[0])} iterations"
    return (
        f"<figure><figcaption>{escaped}<span>{series[0][0]:.4g} → {series[0][-1]:.4g}</span></figcaption>"
        f'<svg viewBox="0 0 300 100" preserveAspectRatio="none" role="img" aria-label="{words}">{paths}</svg>'
        "</figure>"
    )


def plot(title: str, series: dict[str, list[tuple[str, Isr]]]) -> str:
    """ISR with intervals over named positions, one line per series, as inline SVG with a legend."""
    places = list(dict.fromkeys(at for points in series.values() for at, _ in points))
    longest = max(map(len, places), default=0)
    width, height, left, foot = 90 + 56 * max(len(places), 4), 228 + 4 * longest, 44, 28 + 4 * longest
    x = {at: left + 30 + 56 * i for i, at in enumerate(places)}

    def y(rate: float) -> float:
        return 10 + (height - foot - 10) * (1 - rate)

    drawn = [
        f'<path class="grid" d="M{left} {y(r):.1f}H{width}"/>'
        f'<text x="{left - 6}" y="{y(r) + 4:.1f}" class="end">{r:.0%}</text>'
        for r in (0, 0.25, 0.5, 0.75, 1)
    ]
    drawn += [
        f'<text transform="translate({x[at]},{height - foot + 16}) rotate(40)">{html.escape(at)}</text>'
        for at in places
    ]
    for n, (name, points) in enumerate(series.items()):
        colour, rated = COLOURS[n % len(COLOURS)], [(at, r) for at, r in points if r.rate is not None]
        nudge = 4 * (n - (len(series) - 1) / 2)
        line = " ".join(f"{x[at] + nudge:.1f},{y(r.rate or 0):.1f}" for at, r in rated)
        drawn.append(f'<g stroke="{colour}" fill="{colour}"><polyline fill="none" points="{line}"/>')
        for at, r in rated:
            mark = f"{html.escape(name)} {html.escape(at)}: {percent(r.rate)} ({span(r.low, r.high)})"
            drawn.append(
                f'<path d="M{x[at] + nudge:.1f} {y(r.low or 0):.1f}V{y(1 if r.high is None else r.high):.1f}"/>'
                f'<circle cx="{x[at] + nudge:.1f}" cy="{y(r.rate or 0):.1f}" r="4"><title>{mark}</title></circle>'
            )
        drawn.append("</g>")
    legend = "".join(
        f'<span><i style="background:{COLOURS[n % len(COLOURS)]}"></i>{html.escape(name)}</span>'
        for n, name in enumerate(series)
    )
    return (
        f'<figure class="plot"><figcaption>{html.escape(title)}</figcaption><div class="scroll">'
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{html.escape(title)}">'
        f'{"".join(drawn)}</svg></div><p class="legend">{legend}</p></figure>'
    )


def attacks(records: Sequence[Record]) -> list[list[Record]]:
    """Records of one attack (:func:`sifm_core.verdicts.cell`), all methods."""
    cells: dict[Cell, list[Record]] = {}
    for record in records:
        cells.setdefault(cell(record), []).append(record)
    return list(cells.values())


def told_apart(cells: Sequence[Sequence[Record]]) -> list[str]:
    """What the attacks of a sheet do not all share, in words, one text per attack: editors, purifier, seed."""
    keys = [cell(first) for first, *_ in cells]
    told = [(key.editors, key.purifier or PLAIN, f"seed {key.seed}") for key in keys]
    differs = [len(set(column)) > 1 for column in zip(*told, strict=True)]
    return [" · ".join(compress(parts, differs)) for parts in told]


def grid(records: Sequence[Record], store: Store, side: int = 128) -> bytes:
    """One PNG: a line per attack, the source and then the edit of every method; framed where all judges say failed."""
    cells = attacks(records)
    told = told_apart(cells)
    names = ["source", *(record.method for record in cells[0])] if cells else []
    gap, head, foot = 10, 28, 24
    size = (gap + max(len(names), 1) * (side + gap), head + len(cells) * (side + foot + gap))
    sheet, font = Pil.new("RGB", size, "white"), ImageFont.load_default(13)
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        draw.text((gap + column * (side + gap) + side / 2, head / 2), name, "#1d1e22", font, anchor="mm")
    for row, attack in enumerate(cells):
        top = head + row * (side + foot + gap)
        shown = [(attack[0].source, False), *((record.edited, consensus(record.verdicts)) for record in attack)]
        for column, (image, failed) in enumerate(shown):
            left = gap + column * (side + gap)
            pixels = store.find_pixels(image) if image else None
            if pixels is not None:
                sheet.paste(_fit(pixels, side), (left, top))
            if failed:
                draw.rectangle((left - 4, top - 4, left + side + 3, top + side + 3), outline="#4b3fae", width=3)
        text = " · ".join(filter(None, (f"“{attack[0].prompt}”", told[row])))
        draw.text((gap, top + side + foot / 2), text, "#1d1e22", font, anchor="lm")
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _fit(pixels: np.ndarray, side: int) -> Pil.Image:
    """The picture within side x side; small ones are enlarged without smoothing."""
    small = Pil.fromarray(pixels)
    scale = side / max(small.size)
    how = Pil.Resampling.NEAREST if scale >= 1 else Pil.Resampling.LANCZOS
    return small.resize((round(small.width * scale), round(small.height * scale)), how)
