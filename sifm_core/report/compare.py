"""Two runs side by side: what was set otherwise, and row by row how the rates differ on the attacks that both have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..bench.config import Layout
from ..format import number, percent
from ..stats import bootstrap, mcnemar
from ..store import Store
from ..verdicts import cell, consensus


@dataclass(frozen=True)
class Change:
    """One row of both runs: rates on their ``pairs`` of common attacks; the difference with its interval and p."""

    row: str
    pairs: int
    one: float | None
    two: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float


@dataclass(frozen=True)
class Difference:
    """``settings``: what was set otherwise, name -> (one, two); ``only``: rows that only one of them has."""

    settings: dict[str, tuple[Any, Any]]
    changes: list[Change]
    only: tuple[list[str], list[str]]


def runs(one: tuple[Store, Layout], two: tuple[Store, Layout]) -> Difference:
    """Compare two runs; attacks are the same when picture, prompts, editors, purifier and both seeds are."""
    answers: list[dict[str, dict[tuple[Any, ...], bool | None]]] = []
    for store, _ in (one, two):
        rows: dict[str, dict[tuple[Any, ...], bool | None]] = {}
        for r in store.records():
            rows.setdefault(r.method, {})[(*cell(r), r.info.get("edit_seed"))] = consensus(r.verdicts)
        answers.append(rows)
    first, second = answers
    changes = []
    for row in first:
        if row not in second:
            continue
        both = [(first[row][cell], second[row][cell], cell[0]) for cell in first[row] if cell in second[row]]
        clear = [(bool(a), bool(b), picture) for a, b, picture in both if a is not None and b is not None]
        a, b, pictures = ([some[i] for some in clear] for i in range(3))
        interval = bootstrap([float(y) - float(x) for x, y, _ in clear], pictures) if clear else None
        changes.append(
            Change(
                row,
                len(clear),
                one=sum(a) / len(a) if a else None,
                two=sum(b) / len(b) if b else None,
                difference=(sum(b) - sum(a)) / len(a) if a else None,
                low=interval.low if interval else None,
                high=interval.high if interval else None,
                p=mcnemar(a, b, pictures).p,
            )
        )
    plans = [_flat(store.get("run", "config") or {}) for store, _ in (one, two)]
    names = sorted({*plans[0], *plans[1]})
    settings = {k: (plans[0].get(k), plans[1].get(k)) for k in names if plans[0].get(k) != plans[1].get(k)}
    only = ([row for row in first if row not in second], [row for row in second if row not in first])
    return Difference(settings, changes, only)


def text(difference: Difference) -> str:
    """A comparison in plain lines."""
    lines = [f"{name}: {a} | {b}" for name, (a, b) in difference.settings.items()] or ["the same settings"]
    lines.append(f"{'row':24} {'pairs':>6} {'one':>6} {'two':>6} {'two - one':>9}  95%              p")
    for c in difference.changes:
        span = f"{number(c.low, 2)} to {number(c.high, 2)}"
        lines.append(
            f"{c.row:24} {c.pairs:>6} {percent(c.one):>6} {percent(c.two):>6} "
            f"{number(c.difference, 2):>9}  {span:16} {c.p:.3g}"
        )
    for name, rows in zip(("one", "two"), difference.only, strict=True):
        if rows:
            lines.append(f"only in {name}: {', '.join(rows)}")
    return "\n".join(lines)


def _flat(plan: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plan.items():
        if isinstance(value, dict) and key in ("settings",):
            flat |= _flat(value, f"{prefix}{key}.")
        elif key in ("name", "profile", "rows") or prefix:
            flat[prefix + key] = value
    return flat
