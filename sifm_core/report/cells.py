"""Figures -> cells: what stands in which row and column of every table, as plain text; the renderers only draw them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from ..bench.config import Layout
from ..format import NONE, figure, number, percent, ranged, span, title
from ..judges.calibration import MAJORITY, UNANIMOUS, Calibration, panel
from ..metrics import DEFAULT
from ..rates import Isr
from ..verdicts import FAILURE_AXES
from .curves import Series
from .figures import SIGNIFICANT, Agreement, Line, Part, Predictor, net_count

BESIDE = 2
"""Blocks that stand side by side, as in the paper."""
METHOD = "attacked picture"
Columns: TypeAlias = dict[str, list[str]]
"""Title -> one cell for each row; the first column names the rows."""


@dataclass(frozen=True)
class Cell:
    """``mark``: "best" or "second" of the methods, or ""; ``paper``: what the paper printed; ``star``: differs."""

    text: str
    mark: str = ""
    paper: str = ""
    star: bool = False


class Head(NamedTuple):
    """What stands before a row, and which kind of row it is; see :class:`sifm_core.report.figures.Line`."""

    name: str
    kind: str


@dataclass(frozen=True)
class Sheet:
    """Rows under two lines of titles: ``blocks`` (title, columns) over ``columns``."""

    blocks: tuple[tuple[str, int], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Head, tuple[Cell, ...]], ...]


def starred(sheets: Sequence[Sheet]) -> bool:
    """Does any row differ from SIFM, so that the mark wants explaining?"""
    return any(cell.star for sheet in sheets for _, cells in sheet.rows for cell in cells)


def sheets(parts: Sequence[Part], layout: Layout, beside: int = BESIDE) -> list[Sheet]:
    """The blocks of a table, ``beside`` at a time; of one by preprocessing, a row for each way and its strength."""
    if layout.plot == "purifier":
        return _turned(parts)
    columns = [title(column) for column in layout.columns]
    if "isr" in layout.columns:
        columns[layout.columns.index("isr") + 1 :] = ["95%", "net ISR", *columns[layout.columns.index("isr") + 1 :]]
    tables = []
    for i in range(0, len(parts), beside):
        abreast = parts[i : i + beside]
        rows = []
        for name in dict.fromkeys(line.name for part in abreast for line in part.lines):
            lines = [part.line(name) for part in abreast]
            cells = [_cells(part, line, layout, len(columns)) for part, line in zip(abreast, lines, strict=True)]
            kind = next(line for line in lines if line).kind
            rows.append((Head(name, kind), tuple(itertools.chain(*cells))))
        blocks = tuple((part.title, len(columns)) for part in abreast)
        tables.append(Sheet(blocks, tuple(columns) * len(abreast), tuple(rows)))
    return tables


def _turned(parts: Sequence[Part]) -> list[Sheet]:
    """One sheet with the blocks as rows and the methods over the columns."""
    names = list(dict.fromkeys(line.name for part in parts for line in part.lines))
    columns = (title("isr"), "95%", "net ISR")
    rows = []
    for part in parts:
        lines = [part.line(name) for name in names]
        cells = itertools.chain(*(_cells(part, line, Layout(("isr",)), len(columns)) for line in lines))
        rows.append((Head(part.title, "control"), tuple(cells)))
    return [Sheet(tuple((name, len(columns)) for name in names), columns * len(names), tuple(rows))] if parts else []


def _cells(part: Part, line: Line | None, layout: Layout, width: int) -> list[Cell]:
    if line is None:
        return [Cell(NONE)] * width
    cells = []
    for column in layout.columns:
        mark = part.marks.get(column, {}).get(line.name, "")
        printed = part.paper.get(line.name, {}).get(column)
        paper = "" if printed is None else figure(column, printed)
        star = column == "isr" and line.p is not None and line.p < SIGNIFICANT
        cells.append(Cell(figure(column, line.value(column)), mark, paper, star))
        if column == "isr":
            cells += [Cell(span(line.isr.low, line.isr.high)), Cell(net(line.isr))]
    return cells


# ---- columns of single tables: title -> one cell per line


def rates(lines: Sequence[Line]) -> Columns:
    """Did the edits fail?"""
    columns = {
        METHOD: [line.name for line in lines],
        "ISR": [f"{percent(line.isr.rate)} ({line.isr.successes}/{line.isr.n})" for line in lines],
        "95%": [span(line.isr.low, line.isr.high) for line in lines],
        "unclear": [str(line.isr.unclear) for line in lines],
        "net ISR": [net(line.isr) for line in lines],
    }
    if lines and lines[0].majority:
        columns["majority"] = [percent(line.majority.rate) if line.majority else NONE for line in lines]
    for judge in lines[0].judges if lines else ():
        columns[judge] = [percent(line.judges[judge].rate) for line in lines]
    if any(line.truth for line in lines):
        columns["ground truth"] = [percent(line.truth.rate) if line.truth else NONE for line in lines]
    return columns


def corrected(lines: Sequence[Line], calibrations: Mapping[str, Calibration]) -> Columns:
    """Each calibrated judge's own rate, raw and without its errors, after that of all together; {} where none is known.

    Where there is ground truth, its rate stands last.
    """
    known = {name: raw for name, raw in (counted(lines[0]) if lines else {}).items() if name in calibrations}
    columns = {METHOD: [line.name for line in lines]} if known else {}
    for name in known:
        shown = next((word for word in (UNANIMOUS, MAJORITY) if name.startswith(word)), name)
        columns[shown] = [percent(counted(line)[name].rate) for line in lines]
        columns[f"{shown}, corrected"] = [without_errors(line, name, calibrations) for line in lines]
    if known and any(line.truth for line in lines):
        columns["ground truth"] = [percent(line.truth.rate) if line.truth else NONE for line in lines]
    return columns


def counted(line: Line) -> dict[str, Isr]:
    """Who counted -> the rate: all judges together, most of them, and each alone, as calibrations name them."""
    together = {panel(UNANIMOUS, line.judges): line.isr} if len(line.judges) > 1 else {}
    more = {panel(MAJORITY, line.judges): line.majority} if line.majority else {}
    return {**together, **more, **line.judges}


def without_errors(line: Line, judge: str, calibrations: Mapping[str, Calibration]) -> str:
    """A judge's own rate without its errors, with its interval; "" where the judge is not calibrated."""
    if judge not in calibrations:
        return ""
    found = calibrations[judge].corrected(counted(line)[judge])
    return f"{percent(found.rate)} ({span(found.low, found.high)})" if found else NONE


CORRECTED = (
    "Corrected: each judge's own rate without its errors on the gold controls, with a 95% interval that holds what is "
    "not known of them (Rogan and Gladen 1978; Lang and Reiczigel 2014). It is as good as the controls are like the "
    "edits: the failed ones among them are plain, so a judge may miss more of real ones; then the true rate is higher."
)


def distances(lines: Sequence[Line]) -> Columns:
    """How far from the clean edit, how visible, how long?"""
    columns = {METHOD: [line.name for line in lines]}
    for name in DEFAULT:
        if any(name in line.metrics for line in lines):
            columns[title(name)] = [number(line.metrics.get(name)) for line in lines]
    columns["visible PSNR"] = [number(line.fidelity.get("psnr"), 1) for line in lines]
    columns["s/picture"] = [NONE if line.kind == "floor" else number(line.seconds, 1) for line in lines]
    return columns


def measured(lines: Sequence[Line]) -> Columns:
    """The same with every metric's interval by picture, that of seconds by batch, and the memory protecting took."""
    columns = {METHOD: [line.name for line in lines]}
    for name in dict.fromkeys(name for line in lines for name in line.metrics):
        columns[title(name)] = [ranged(line.metrics.get(name), line.spread.get(name)) for line in lines]
    for name in dict.fromkeys(name for line in lines for name in line.fidelity):
        columns[f"visible {title(name)[:-2]}"] = [number(line.fidelity.get(name)) for line in lines]
    spent = [line if line.kind != "floor" else None for line in lines]
    columns["s/picture"] = [ranged(line.seconds, line.spread.get("seconds"), 2) if line else NONE for line in spent]
    columns["peak GB"] = [number(line.memory / 1e9) if line and line.memory is not None else NONE for line in spent]
    return columns


def failures(lines: Sequence[Line]) -> Columns:
    """How did the edits fail, how often did protecting help, and what if the attacker tries every seed?"""
    columns = {METHOD: [line.name for line in lines]}
    for axis in FAILURE_AXES:
        columns[FAILED[axis]] = [str(line.axes[axis]) for line in lines]
    columns["protection improved the edit"] = [improved(line.isr) for line in lines]
    if any(line.worst for line in lines):
        columns["ISR, worst of all seeds"] = [rate(line.worst) for line in lines]
        columns["net, worst of all seeds"] = [net(line.worst) for line in lines]
    return columns


FAILED = {
    "mismatch": "mismatch only",
    "degradation": "degradation only",
    "both": "both",
    "mixed": "judges differ how",
    "none": "works",
    "unclear": "unclear",
}
"""Failure axis -> the title of its column."""


def categories(lines: Sequence[Line]) -> Columns:
    """ISR by category of picture; empty where there is but one."""
    groups = dict.fromkeys(group for line in lines for group in line.groups)
    columns = {group: [rate(line.groups.get(group)) for line in lines] for group in groups}
    return {METHOD: [line.name for line in lines], **columns} if groups else {}


def agreement_table(pairs: Sequence[Agreement]) -> Columns:
    """Pairs of judges: how often alike, beyond chance, how often each says yes."""
    return {
        "question": [pair.axis.replace("_", " ") for pair in pairs],
        "judges": [f"{pair.one} / {pair.two}" for pair in pairs],
        "alike": [percent(pair.alike) for pair in pairs],
        "kappa": [number(pair.kappa, 2) for pair in pairs],
        "yes": [f"{percent(pair.yes[0])} / {percent(pair.yes[1])}" for pair in pairs],
        "n": [str(pair.n) for pair in pairs],
    }


def predictor_table(predictors: Sequence[Predictor]) -> Columns:
    """Metrics as predictors of the verdict."""
    return {
        "metric": [title(predictor.metric) for predictor in predictors],
        "AUC": [number(predictor.auc) for predictor in predictors],
        "n": [str(predictor.n) for predictor in predictors],
    }


def plotted(series: Series) -> Columns:
    """A plot's rates, positions as columns."""
    places = dict.fromkeys(at for points in series.values() for at, _ in points)
    rows = [dict(points) for points in series.values()]
    return {"": list(series), **{at: [rate(row.get(at)) for row in rows] for at in places}}


def rate(isr: Isr | None) -> str:
    """A rate with its counts and interval."""
    if isr is None or isr.rate is None:
        return NONE
    return f"{percent(isr.rate)} ({isr.successes}/{isr.n}, {span(isr.low, isr.high)})"


def net(isr: Isr | None) -> str:
    """The share whose edit works on the clean picture and fails here, with its counts."""
    if isr is None or isr.net is None:
        return NONE
    return f"{percent(isr.net)} ({net_count(isr).replace(' of ', '/')})"


def improved(isr: Isr) -> str:
    """How often the protection helped the attacker, with the interval."""
    if isr.improved is None:
        return NONE
    return f"{percent(isr.improved)} ({span(isr.improved_low, isr.improved_high)})"
