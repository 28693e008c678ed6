"""Is a row ahead of the others, column by column? Exact tests by picture, corrected for all that are made at once.

    python -m benchmarks.ahead RUN... [--row "SIFM+"] [--over NAME]... [--json]

Runs are folders of `sifm bench run`; a row's records may lie in several. Printed for every column (what was attacked
how) and every other row: both rates of edits that all judges call failed, on the attacks that both have; their
difference with its interval by picture; and p, that of Fisher's exact randomisation test by picture
(:func:`sifm_core.stats.mcnemar`), after Holm over every test printed. "ahead": the difference is above 0 and p below
0.05.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sifm_core.format import percent
from sifm_core.stats import bootstrap, holm, mcnemar
from sifm_core.store import Store
from sifm_core.types import Record
from sifm_core.verdicts import CLEAN, Cell, cell, consensus


@dataclass(frozen=True)
class Test:
    """One row against another on a column's ``pairs`` of common attacks; ``p`` as it is corrected."""

    column: str
    over: str
    pairs: int
    rate: float
    other: float
    low: float
    high: float
    p: float

    @property
    def ahead(self) -> bool:
        return self.rate > self.other and self.p < 0.05


def tests(records: Iterable[Record], row: str, over: Sequence[str] = ()) -> list[Test]:
    """The tests of ``row`` against every other row, or those named, in the order of the records."""
    said: dict[str, dict[Cell, bool]] = {}
    for record in records:
        answer = consensus(record.verdicts)
        if record.method != CLEAN and answer is not None:
            said.setdefault(record.method, {})[cell(record)] = answer
    mine, found = said.get(row, {}), []
    for name in over or [name for name in said if name != row]:
        columns: dict[str, list[Cell]] = {}
        for attack in mine.keys() & said.get(name, {}).keys():
            columns.setdefault(_column(attack), []).append(attack)
        found += [_tested(name, column, attacks, mine, said[name]) for column, attacks in columns.items()]
    corrected = [replace(test, p=p) for test, p in zip(found, holm([test.p for test in found]), strict=True)]
    return sorted(corrected, key=lambda test: test.column)


def _column(attack: Cell) -> str:
    return ", ".join(filter(None, (attack.editors, attack.purifier, attack.kind)))


def _tested(name: str, column: str, attacks: list[Cell], mine: dict[Cell, bool], theirs: dict[Cell, bool]) -> Test:
    attacks = sorted(attacks)
    ours, others = ([said[attack] for attack in attacks] for said in (mine, theirs))
    pictures = [attack.image for attack in attacks]
    apart = bootstrap([float(a) - float(b) for a, b in zip(ours, others, strict=True)], pictures)
    p, n = mcnemar(ours, others, pictures).p, len(attacks)
    return Test(column, name, n, sum(ours) / n, sum(others) / n, apart.low, apart.high, p)


def records(folders: Iterable[Path]) -> Iterator[Record]:
    """The records of several runs."""
    for folder in folders:
        with Store(folder, create=False) as store:
            yield from store.records()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--row", default="SIFM+")
    parser.add_argument("--over", action="append", default=[], metavar="NAME", help="default: every other row")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    found = tests(records(chosen.runs), chosen.row, chosen.over)
    if chosen.json:
        print(json.dumps([asdict(test) | {"ahead": test.ahead} for test in found]))
        return
    print(f"| column | {chosen.row} over | attacks | its rate | the other's | difference, 95% | p | ahead |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for t in found:
        span = f"{100 * (t.rate - t.other):+.0f} ({100 * t.low:+.0f} to {100 * t.high:+.0f})"
        rates = f"{percent(t.rate)} | {percent(t.other)}"
        print(f"| {t.column} | {t.over} | {t.pairs} | {rates} | {span} | {t.p:.2g} | {'yes' if t.ahead else 'no'} |")


if __name__ == "__main__":
    main()
