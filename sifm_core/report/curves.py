"""Columns -> the rates that a layout's plots draw: over a setting, a way of preprocessing, or the prompts' distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from ..bench.config import Layout
from ..rates import Isr
from ..types import Record
from ..verdicts import CLEAN
from .columns import Frame
from .figures import Part, share

EQUAL = 1e-9
"""Distances of prompts up to which they count as the same."""
MEANING = "ISR by the prompts' distance for the editor, quarters"
WORDS = "ISR by the share of words not in common"
Series: TypeAlias = dict[str, list[tuple[str, Isr]]]
"""Lines of a plot: name -> points (position, rate), the positions as text in order."""


def plots(frame: Frame, layout: Layout, table: Sequence[Part]) -> dict[str, Series]:
    """Title -> lines of the layout's plots."""
    if not layout.plot:
        return {}
    if layout.plot == "purifier":
        return _by_purifier(frame, table)
    if layout.plot == "prompts":
        return _by_prompts(frame)
    lines = [line for line in table[0].lines if line.kind != "floor"] if table else []
    if layout.plot == "rows":
        return {"ISR by row": {"ISR": [(line.name, line.isr) for line in lines if line.kind == "method"]}}
    series: Series = {}
    for line in lines:
        record = frame.settings[line.name]
        at = record.eps if layout.plot == "eps" else _setting(record, layout.plot)
        if at is not None:
            shown = f"{at:g}" if isinstance(at, (int, float)) else str(at)
            series.setdefault(str(record.info.get("protection")), []).append((shown, line.isr))
    return {f"ISR by {layout.plot}": series}


def _setting(record: Record, name: str) -> Any:
    return {**record.info.get("loop", {}), **record.info.get("options", {})}.get(name)


def stage(purifier: str) -> tuple[str, str]:
    """(what is done, how strongly) of a chain of preprocessing: ("jpeg", "@0.5"); of a longer chain, all of it."""
    at = next((i for i, letter in enumerate(purifier) if letter in "@:"), len(purifier))
    return (purifier, "") if "," in purifier else (purifier[:at], purifier[at:])


def _by_purifier(frame: Frame, table: Sequence[Part]) -> dict[str, Series]:
    """One plot for each way of preprocessing: the rate without it, then by its strength."""
    drawn: dict[str, Series] = {}
    for name in dict.fromkeys(stage(block.purifier)[0] for block in frame.blocks if block.purifier):
        series = drawn.setdefault(name, {})
        for part, block in zip(table, frame.blocks, strict=True):
            what, strength = stage(block.purifier)
            also = [block.editor] * (len({b.editor for b in frame.blocks}) > 1)
            also += [f"{block.prompts} prompts"] * (len({b.prompts for b in frame.blocks}) > 1)
            for line in part.lines if what in ("", name) else ():
                point = (strength or what or "none", line.isr)
                series.setdefault(", ".join([line.name, *also]), []).append(point)
    return drawn


def _by_prompts(frame: Frame) -> dict[str, Series]:
    """By how far the attacker's prompt is from that of the protection: for the editor, where known, and in words."""
    meaning = np.asarray(frame.meaning)
    apart = meaning[meaning > EQUAL]
    drawn = {}
    if len(apart):
        drawn[MEANING] = _by_distance(frame, meaning, np.unique(np.quantile(apart, (0.25, 0.5, 0.75, 1))).tolist())
    return drawn | {WORDS: _by_distance(frame, np.asarray(frame.distance), (0.5, 0.75, 1.0))}


def _by_distance(frame: Frame, distance: np.ndarray, edges: Sequence[float]) -> Series:
    """ISR of the same prompts, then up to each edge of the distance."""
    edges = (-1.0, EQUAL, *edges)
    names = ["the same", *(f"to {edge:.3g}" for edge in edges[2:])]
    method = np.asarray(frame.method)
    series: Series = {}
    for name, m in frame.methods.items():
        for low, high, title in zip(edges[:-1], edges[1:], names, strict=True):
            where = np.flatnonzero((method == m) & (low < distance) & (distance <= high))
            if len(where):
                rate = share(frame, frame.consensus, where, paired=name != CLEAN)
                series.setdefault(name, []).append((title, rate))
    return series
