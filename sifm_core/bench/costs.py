"""Operations that protecting and editing take, from ``costs.toml``: for estimates, and to tell slow rows from quick."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ..methods.sifm import times_of
from .config import read_toml
from .grid import Grid, Row, homes

USUAL = "instruct-pix2pix"
"""Whose shares of work other editors are assumed to have."""
QUICK = 0.002
"""What noise, which takes no gradient, weighs beside the mean."""


def immunizing(row: Row, grid: Grid, editor: str) -> float | None:
    """TFLOP of protecting one 512-px picture with a row's method; None where the table says nothing."""
    known, passes = _table()["editors"].get(editor), _table()["passes"].get(row.method)
    if known is None or passes is None:
        return None
    passes = known.get("passes", {}).get(row.method, passes) * _share_of_timesteps(row)
    return float(row.steps(grid) * (known["encode"] + passes * known["predict"]))


def editing(editor: str) -> float | None:
    """TFLOP of one edit of a 512-px picture; None where the table says nothing."""
    cost = _table()["editors"].get(editor)
    return cost and float(cost["steps"] * cost["branches"] * cost["predict"])


def weights(grid: Grid) -> dict[tuple[str, str], float]:
    """Work of protecting one picture, by row and the editor it is protected on, in parts of their mean.

    An editor that the table does not know is taken for :data:`USUAL`, a method that it does not know for the mean one.
    """
    known = _table()["editors"]
    rows = {
        (row.name, editor): immunizing(row, grid, editor if editor in known else USUAL)
        for row in grid.rows
        if row.method
        for editor in {homes(pair)[0] for pair in grid.attacked()}
    }
    sure = [work for work in rows.values() if work]
    mean = sum(sure) / len(sure) if sure else 1.0
    return {key: max(mean if work is None else work, QUICK * mean) / mean for key, work in rows.items()}


def _share_of_timesteps(row: Row) -> float:
    """How many timesteps the row's method takes of the ten that the table counts (SIFM+: runs of four); 1 without T."""
    if row.method == "sifm_plus":
        return float(row.options.get("runs", 4) / 4)
    return len(times_of(row.options["timesteps"], 1000)) / 10 if "timesteps" in row.options else 1.0


@cache
def _table() -> dict[str, Any]:
    return read_toml(Path(__file__).with_name("costs.toml"))
