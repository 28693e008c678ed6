"""What a run will take, before it starts: jobs exactly, time and cost as far as anything is known of them.

Seconds come from the same run as far as it went, else from operation counts (``costs.toml``) at an assumed
speed, else they are None: nothing here guesses silently. Judges cost at most what their price table says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from statistics import fmean
from typing import TYPE_CHECKING

from ..errors import unknown
from ..judges import BACKENDS, parted
from ..judges.models import read_models
from ..store import Store
from ..types import Case
from ..verdicts import TRUTH
from .config import Plan
from .documents import Planned, Rate

if TYPE_CHECKING:
    from .grid import Grid


@dataclass(frozen=True)
class Line:
    """One phase: how many pictures (or verdicts), ``seconds`` on one device, ``dollars`` (of
    judges at most); None is unknown.

    ``basis`` says where the seconds come from.
    """

    phase: str
    jobs: int
    seconds: float | None
    dollars: float | None
    basis: str


def estimate(
    plan: Plan,
    store: Store | None = None,
    tflops: float | None = None,
    hourly: float | None = None,
    *,
    preset: str = "two_calls",
    prices: str | os.PathLike[str] | None = None,
    controls: int = 0,
) -> list[Line]:
    """One line per phase, and one for judging so many gold ``controls`` before them.

    ``store``: a run whose measured rates count; ``tflops``: the device's sustained speed, ``hourly`` what an hour of it
    costs in dollars; ``preset`` and ``prices`` are those of :class:`sifm_core.judges.vlm.VlmJudge`.
    """
    from .costs import weights

    grid = plan.grid()
    counts = grid.counts()
    measured = _paces(dict(store.documents("rate", Rate))) if store else {}
    if store and (store.get("run", "plan", Planned) or {}).get("steps") != grid.steps:
        measured.pop("immunize", None)
    lines = []
    for phase in ("immunize", "purify", "edit", "measure", "judge"):
        jobs = counts[phase]
        units = float(jobs)
        if phase == "immunize" and jobs:
            units *= fmean(weights(grid).values())
        work = _teraflop(grid, phase, jobs) if tflops else None
        if not jobs:
            seconds, basis = 0.0, ""
        elif phase in measured:
            seconds, basis = units * measured[phase], "measured in this run"
        elif work is not None and tflops:
            seconds, basis = work / tflops, f"operation counts at {tflops:g} TFLOP/s"
        else:
            seconds, basis = None, "not known before it was measured: run a few images first, or give --tflops"
        rent = 0.0 if hourly is None else None if seconds is None else seconds / 3600 * hourly
        dollars = _dollars(plan, grid, jobs, preset, prices) if phase == "judge" else rent
        lines.append(Line(phase, jobs, seconds, dollars, basis))
    if controls:
        jobs = controls * sum(not judge.startswith((TRUTH, "human:")) for judge in plan.settings.judges)
        dollars = _dollars(plan, grid, controls * len(plan.settings.judges), preset, prices)
        lines.insert(0, Line("calibrate", jobs, None, dollars, f"{controls} gold controls, made first"))
    return lines


def remaining(counts: Mapping[str, float], rates: Mapping[str, Mapping[str, float]]) -> tuple[float, list[str]]:
    """Seconds for so many pictures per phase on one worker at measured rates, and the phases that have no rate yet."""
    each = _paces(rates)
    todo = {phase: n for phase, n in counts.items() if n}
    return sum(n * each[phase] for phase, n in todo.items() if phase in each), [p for p in todo if p not in each]


def _paces(rates: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Seconds per picture of each phase; verdicts take as long as the slower kind of judge, "judge" here or "ask"."""
    each = {phase: rate["seconds"] / rate["units"] for phase, rate in rates.items() if rate["units"] > 0}
    if "ask" in each:
        each["judge"] = max(each["ask"], each.get("judge", 0.0))
    return each


def _teraflop(grid: Grid, phase: str, jobs: int) -> float | None:
    """Operations (2 x multiply-add) of a phase, from the table; None where the table says nothing."""
    from .costs import editing, immunizing
    from .grid import homes, names

    if phase == "edit":
        each = [editing(names(editor)[1]) for editor in grid.attacked()]
    elif phase == "immunize":
        rows = [row for row in grid.rows if row.method]
        sides = [[immunizing(row, grid, home) for home in homes(editor)] for editor in grid.attacked() for row in rows]
        each = [None if None in side else sum(filter(None, side)) for side in sides]
    else:
        return None
    counted = [work for work in each if work is not None]
    return jobs * fmean(counted) if len(counted) == len(each) else None


def _dollars(plan: Plan, grid: Grid, jobs: int, preset: str, prices: str | os.PathLike[str] | None) -> float | None:
    """At most: every answer as long as it may be; None when a judge has no known price."""
    import torch

    from ..judges.rubric import PRESETS

    if preset not in PRESETS:
        raise unknown("judging preset", preset, PRESETS)
    known, total = read_models(prices), 0.0
    pixel, longest = torch.zeros(3, 1, 1), max((sample.prompt for sample in grid.samples), key=len, default="")
    asked = [question.parts(Case(pixel, pixel, longest)) for question in PRESETS[preset]]
    for spec in plan.settings.judges:
        backend = spec.partition(":")[0]
        if backend not in BACKENDS:
            return None
        if not BACKENDS[backend].prices:
            continue
        dearest = known.dearest(BACKENDS[backend].prices, parted(spec)[1])
        if not dearest:
            return None
        limit = signature(import_module(BACKENDS[backend].module).load).parameters["max_output_tokens"].default
        for parts in asked:
            text = "".join(part for part in parts if isinstance(part, str))
            total += max(price.at_most(text, 2, limit) for price in dearest)
    return total * jobs / max(len(plan.settings.judges), 1)
