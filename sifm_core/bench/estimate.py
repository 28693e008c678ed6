"""What a run will take, before it starts: jobs exactly, time and cost as far as anything is known of them.

Seconds come from the same run as far as it went, else from operation counts (``costs.toml``) at an assumed
speed, else they are None: nothing here guesses silently. Judges cost at most what their price table says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..judges.prices import read_prices
from ..store import Store
from .config import Plan, read_toml

if TYPE_CHECKING:
    from .grid import Grid

ANSWER_TOKENS, ASKED_BYTES = 2000, 4000
"""Of one question to a judge, for its cost: tokens of the answer with its thoughts, bytes of the text."""


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
    plan: Plan, store: Store | None = None, tflops: float | None = None, hourly: float | None = None
) -> list[Line]:
    """One line per phase.

    ``store``: a run whose measured rates count; ``tflops``: the device's sustained speed, ``hourly`` what an hour of it
    costs in dollars.
    """
    grid = plan.grid()
    counts = grid.counts()
    measured = dict(store.documents("rate")) if store else {}
    lines = []
    for phase in ("immunize", "purify", "edit", "measure", "judge"):
        jobs = counts[phase]
        if phase == "immunize":
            gradient, total = (_rows(plan, only) for only in (True, False))
            units = jobs * (gradient + 0.02 * (total - gradient)) / total if total else 0.0
        else:
            units = float(jobs)
        rate = measured.get(phase)
        work = _teraflop(plan, grid, phase, units) if tflops else None
        if not jobs:
            seconds, basis = 0.0, ""
        elif rate:
            seconds, basis = units * rate["seconds"] / rate["units"], "measured in this run"
        elif work is not None and tflops:
            seconds, basis = work / tflops, f"operation counts at {tflops:g} TFLOP/s"
        else:
            seconds, basis = None, "not known before it was measured: run a few images first, or give --tflops"
        rent = 0.0 if hourly is None else None if seconds is None else seconds / 3600 * hourly
        lines.append(Line(phase, jobs, seconds, _dollars(plan, jobs) if phase == "judge" else rent, basis))
    return lines


def remaining(counts: Mapping[str, float], rates: Mapping[str, Mapping[str, float]]) -> tuple[float, list[str]]:
    """Seconds for so many pictures per phase on one worker at measured rates, and the phases that have no rate yet.

    Verdicts take as long as the slower kind of judge, "judge" here or "ask" elsewhere.
    """
    each = {phase: rate["seconds"] / rate["units"] for phase, rate in rates.items()}
    if "ask" in each:
        each["judge"] = max(each["ask"], each.get("judge", 0.0))
    todo = {phase: n for phase, n in counts.items() if n}
    return sum(n * each[phase] for phase, n in todo.items() if phase in each), [p for p in todo if p not in each]


def _rows(plan: Plan, only_gradient: bool) -> int:
    from .grid import takes_gradient

    return sum(1 for row in plan.all_rows() if row.method and (takes_gradient(row) or not only_gradient))


def _teraflop(plan: Plan, grid: Grid, phase: str, units: float) -> float | None:
    """Operations (2 x multiply-add) of a phase, from the table; None where the table says nothing."""
    from .grid import names, takes_gradient

    table: dict[str, Any] = read_toml(Path(__file__).with_name("costs.toml"))
    pairs = [names(editor) for editor in plan.settings.editors]
    known = table["editors"]
    if phase in ("measure", "judge", "purify") or any(name not in known for pair in pairs for name in pair):
        return None
    if phase == "edit":
        each = [known[attack]["steps"] * known[attack]["branches"] * known[attack]["predict"] for _, attack in pairs]
        return units * sum(each) / len(each)
    iterations = []
    for protect, _ in pairs:
        for row in plan.all_rows():
            if row.method and takes_gradient(row):
                passes = known[protect].get("passes", {}).get(row.method, table["passes"].get(row.method))
                if passes is None:
                    return None
                iterations.append(row.steps(grid) * (known[protect]["encode"] + passes * known[protect]["predict"]))
    return units * sum(iterations) / len(iterations) if iterations else 0.0


def _dollars(plan: Plan, jobs: int) -> float | None:
    """At most; None when a judge has no known price."""
    prices, total = read_prices(), 0.0
    for spec in plan.settings.judges:
        backend, _, model = spec.partition(":")
        if backend in ("miniature", "human", "transformers"):
            continue
        price = prices.get((backend, model.partition("@")[0]))
        if price is None:
            return None
        total += price.at_most("x" * ASKED_BYTES, 2, ANSWER_TOKENS)
    return total * jobs / max(len(plan.settings.judges), 1)
