"""The table as text: for a terminal, Markdown, LaTeX and CSV, all from the same cells."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..bench.config import Layout
from ..isr import FAILURE_AXES, Isr
from ..metrics import DEFAULT
from .frame import AXES
from .table import (
    SIGNIFICANT,
    Agreement,
    Line,
    Part,
    Predictor,
    Series,
    figure,
    gigabytes,
    improved,
    net,
    number,
    percent,
    span,
    title,
)

if TYPE_CHECKING:
    from rich.table import Table

    from . import Report

BESIDE = 2
"""Blocks that stand side by side, as in the paper."""
STAR = "†"


@dataclass(frozen=True)
class Cell:
    """``mark``: "best" or "second" of the methods, or ""; ``paper``: what the paper printed; ``star``: differs."""

    text: str
    mark: str = ""
    paper: str = ""
    star: bool = False


class Head(NamedTuple):
    """What stands before a row, and which kind of row it is; see :class:`sifm_core.report.table.Line`."""

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
    found = []
    for i in range(0, len(parts), beside):
        some = parts[i : i + beside]
        names = dict.fromkeys(line.name for part in some for line in part.lines)
        rows = []
        for name in names:
            lines = [part.line(name) for part in some]
            cells = [_cells(part, line, layout, len(columns)) for part, line in zip(some, lines, strict=True)]
            kind = next(line for line in lines if line).kind
            rows.append((Head(name, kind), tuple(itertools.chain(*cells))))
        blocks = tuple((part.title, len(columns)) for part in some)
        found.append(Sheet(blocks, tuple(columns) * len(some), tuple(rows)))
    return found


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
        return [Cell("–")] * width
    cells = []
    for column in layout.columns:
        mark = part.marks.get(column, {}).get(line.name, "")
        printed = part.paper.get(line.name, {}).get(column)
        paper = "" if printed is None else figure(column, printed)
        star = column == "isr" and line.p is not None and line.p < SIGNIFICANT
        cells.append(Cell(figure(column, line.value(column)), mark, paper, star))
        if column == "isr":
            cells += [Cell(span(line.isr.low, line.isr.high)), Cell(net(line))]
    return cells


# ---- columns of single tables: title -> one cell per line


def rates(table: Sequence[Line]) -> dict[str, list[str]]:
    """Did the edits fail?"""
    found = {
        "attacked picture": [line.name for line in table],
        "ISR": [f"{percent(line.isr.rate)} ({line.isr.successes}/{line.isr.n})" for line in table],
        "95%": [span(line.isr.low, line.isr.high) for line in table],
        "unclear": [str(line.isr.unclear) for line in table],
        "net ISR": [net(line) for line in table],
    }
    for judge in table[0].judges if table else ():
        found[judge] = [percent(line.judges[judge].rate) for line in table]
    if any(line.truth for line in table):
        found["ground truth"] = [percent(line.truth.rate) if line.truth else "–" for line in table]
    return found


def distances(table: Sequence[Line]) -> dict[str, list[str]]:
    """How far from the clean edit, how visible, how long?"""
    found = {"attacked picture": [line.name for line in table]}
    for name in DEFAULT:
        if any(name in line.metrics for line in table):
            found[title(name)] = [number(line.metrics.get(name)) for line in table]
    found["visible PSNR"] = [number(line.fidelity.get("psnr"), 1) for line in table]
    found["s/picture"] = ["–" if line.kind == "floor" else number(line.seconds, 1) for line in table]
    return found


def measured(table: Sequence[Line]) -> dict[str, list[str]]:
    """The same with every metric's interval by picture, that of seconds by batch, and the memory protecting took."""
    found = {"attacked picture": [line.name for line in table]}
    for name in dict.fromkeys(name for line in table for name in line.metrics):
        found[title(name)] = [ranged(line.metrics.get(name), line.spread.get(name)) for line in table]
    for name in dict.fromkeys(name for line in table for name in line.fidelity):
        found[f"visible {title(name)[:-2]}"] = [number(line.fidelity.get(name)) for line in table]
    spent = [line if line.kind != "floor" else None for line in table]
    found["s/picture"] = [ranged(line.seconds, line.spread.get("seconds"), 2) if line else "–" for line in spent]
    found["peak GB"] = [gigabytes(line) if line else "–" for line in spent]
    return found


def failures(table: Sequence[Line]) -> dict[str, list[str]]:
    """How did the edits fail, how often did protecting help, and what if the attacker tries every seed?"""
    found = {"attacked picture": [line.name for line in table]}
    for axis in FAILURE_AXES:
        found[FAILED[axis]] = [f"{line.axes[axis]}" for line in table]
    found["protection improved the edit"] = [improved(line) for line in table]
    if any(line.worst for line in table):
        found["ISR, worst of all seeds"] = [rate(line.worst) for line in table]
        found["net, worst of all seeds"] = [net(line, line.worst) if line.worst else "–" for line in table]
    return found


FAILED = {
    "mismatch": "mismatch only",
    "degradation": "degradation only",
    "both": "both",
    "mixed": "judges differ how",
    "none": "works",
    "unclear": "unclear",
}
"""Failure axis -> the title of its column."""


def categories(table: Sequence[Line]) -> dict[str, list[str]]:
    """ISR by category of picture; empty where there is but one."""
    groups = dict.fromkeys(group for line in table for group in line.groups)
    found = {group: [rate(line.groups.get(group)) for line in table] for group in groups}
    return {"attacked picture": [line.name for line in table]} | found if groups else {}


def rate(found: Isr | None) -> str:
    """A rate with its counts and interval."""
    if found is None or found.rate is None:
        return "–"
    return f"{percent(found.rate)} ({found.successes}/{found.n}, {span(found.low, found.high)})"


def ranged(value: float | None, spread: tuple[float, float] | None, digits: int = 3) -> str:
    """A mean with its interval."""
    said = number(value, digits)
    return (
        said if spread is None or value is None else f"{said} ({number(spread[0], digits)}–{number(spread[1], digits)})"
    )


def agreement_table(some: Sequence[Agreement]) -> dict[str, list[str]]:
    """Pairs of judges: how often alike, beyond chance, how often each says yes."""
    return {
        "question": [a.axis.replace("_", " ") for a in some],
        "judges": [f"{a.one} / {a.two}" for a in some],
        "alike": [percent(a.alike) for a in some],
        "kappa": [number(a.kappa, 2) for a in some],
        "yes": [f"{percent(a.yes[0])} / {percent(a.yes[1])}" for a in some],
        "n": [str(a.n) for a in some],
    }


def predictor_table(some: Sequence[Predictor]) -> dict[str, list[str]]:
    """Metrics as predictors of the verdict."""
    return {
        "metric": [title(p.metric) for p in some],
        "AUC": [number(p.auc, 3) for p in some],
        "n": [str(p.n) for p in some],
    }


def plotted(series: Series) -> dict[str, list[str]]:
    """A plot's rates, positions as columns."""
    places = dict.fromkeys(at for points in series.values() for at, _ in points)
    rows = [dict(points) for points in series.values()]
    return {"": list(series), **{at: [rate(row.get(at)) for row in rows] for at in places}}


# ---- a terminal


def terminal(table: Sequence[Line]) -> list[Table]:
    """Both tables of one block for a terminal of 80 columns."""
    from rich import box
    from rich.table import Table

    shown = []
    for cells in (rates(table), distances(table)):
        part = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for i, name in enumerate(cells):
            short = name if name[-1] in "↓↑" else name.partition("@")[0].split(":", 1)[-1].replace(" ", "\n")
            part.add_column(short, justify="right" if i else "left", no_wrap=True)
        for line, row in zip(table, zip(*cells.values(), strict=True), strict=True):
            part.add_row(*row, style="bold" if line.kind == "method" else "")
        shown.append(part)
    return shown


# ---- Markdown


def markdown(report: Report) -> str:
    """The headline, the tables, how to read them, and where they come from."""
    parts = [f"# {report.title}", *([report.about] if report.about else []), report.headline]
    shown = sheets(report.parts, report.layout, report.beside)
    parts += [_markdown_sheet(sheet) for sheet in shown]
    source = f" In parentheses: {report.paper.source}." if report.paper.source else ""
    parts += [LEGEND + (DIFFERS if starred(shown) else "") + source]
    if report.trust:
        parts += ["## Can the judges be trusted?", "\n".join(f"- {said}" for said in report.trust)]
    for part in report.parts[: report.beside]:
        if len(report.parts) > 1:
            parts.append(f"## {part.title}")
        tables = (rates, failures, categories, measured)
        parts += [_markdown_table(cells) for cells in (make(part.lines) for make in tables) if cells]
    if len(report.parts) > report.beside:
        parts += [f"The other {len(report.parts) - report.beside} blocks stand in report.csv in the same detail."]
    for name, series in _drawn_only(report).items():
        parts += [f"## {name}", _markdown_table(plotted(series))]
    if report.agreements:
        parts += ["## Do the judges agree?", _markdown_table(agreement_table(report.agreements))]
        for block in report.paper.blocks if report.layout.kind == "agreement" else ():
            said = "; ".join(f"{who}: {' / '.join(map(percent, v))}" for who, v in block.rows.items())
            parts.append(f"{report.paper.source} ({', '.join(axis.replace('_', ' ') for axis in AXES)}): {said}.")
    if report.predictors:
        parts += ["## What the metrics say about the verdict", _markdown_table(predictor_table(report.predictors))]
        parts += ["AUC: how often a failed edit scores as further off than a working one. 0.5 is chance."]
    if report.clip:
        parts += ["## What does CLIP prefer?", report.clip.said]
        parts += [_markdown_table(report.clip.table)] if report.clip.table else []
    parts += report.reading
    parts += ["\n".join(f"- {name}: {value}" for name, value in report.facts)]
    return "\n\n".join(parts) + "\n"


def _drawn_only(report: Report) -> dict[str, Series]:
    """The plots whose rates stand in no other table."""
    return report.plots if report.layout.plot == "prompts" else {}


LEGEND = (
    "**Best** and <u>second</u> of the methods; the clean row, another seed and noise are controls. ISR: edits that "
    "all judges, each for itself, call failed; 95% by picture; net: works on the clean picture and fails here."
)
DIFFERS = f" {STAR}: differs from SIFM (exact, by picture, Holm, p < 0.05)."


def _markdown_sheet(sheet: Sheet) -> str:
    head = [""] + [f"{name}" for name in sheet.columns]
    over = [""] + [block if not i else "" for block, width in sheet.blocks for i in range(width)]
    rows = [over, ["---"] + ["---:"] * len(sheet.columns), [f"**{text}**" if text else "" for text in head]]
    for line, cells in sheet.rows:
        rows.append([line.name, *map(_markdown_cell, cells)])
    return _markdown_rows(rows)


def _markdown_cell(cell: Cell) -> str:
    text = {"best": f"**{cell.text}**", "second": f"<u>{cell.text}</u>"}.get(cell.mark, cell.text)
    return text + (STAR if cell.star else "") + (f" ({cell.paper})" if cell.paper else "")


def _markdown_table(cells: Mapping[str, Sequence[str]]) -> str:
    rows = [list(cells), ["---" if i == 0 else "---:" for i in range(len(cells))], *zip(*cells.values(), strict=True)]
    return _markdown_rows(rows)


def _markdown_rows(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows)


# ---- LaTeX


def latex(report: Report) -> str:
    """The tables as LaTeX (booktabs), the paper's figures small beside ours."""
    parts = [f"% {report.title}: {report.headline}", "% needs \\usepackage{booktabs,graphicx}"]
    for sheet in sheets(report.parts, report.layout, report.beside):
        over = " & ".join(f"\\multicolumn{{{width}}}{{c}}{{{tex(block)}}}" for block, width in sheet.blocks)
        rules, at = [], 2
        for _, width in sheet.blocks:
            rules.append(f"\\cmidrule(lr){{{at}-{at + width - 1}}}")
            at += width
        body = [" & ".join([tex(line.name), *map(_tex_cell, cells)]) + r" \\" for line, cells in sheet.rows]
        parts += [
            r"\begin{table*}\centering\resizebox{\linewidth}{!}{%",
            f"\\begin{{tabular}}{{l{'r' * len(sheet.columns)}}}",
            r"\toprule",
            f"& {over} \\\\ {' '.join(rules)}",
            "Method & " + " & ".join(map(tex, sheet.columns)) + r" \\ \midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            f"\\caption{{{tex(report.title)}. {tex(' '.join([report.headline, *report.trust]))}}}",
            r"\end{table*}",
        ]
    return "\n".join(parts) + "\n"


_TEX = {"↓": r"$\downarrow$", "↑": r"$\uparrow$", STAR: r"$^\dagger$", "–": "--", "->": r"$\to$"}


def tex(text: str) -> str:
    """Text as LaTeX prints it."""
    text = re.sub(r"([\\{}])", lambda m: {"\\": r"\textbackslash ", "{": r"\{", "}": r"\}"}[m[1]], text)
    text = re.sub(r"([%&#_$])", r"\\\1", text).replace("~", r"\textasciitilde ").replace("^", r"\textasciicircum ")
    for mark, command in _TEX.items():
        text = text.replace(mark, command)
    return text


def _tex_cell(cell: Cell) -> str:
    text = tex(cell.text)
    text = {"best": f"\\textbf{{{text}}}", "second": f"\\underline{{{text}}}"}.get(cell.mark, text)
    paper = f" {{\\tiny ({tex(cell.paper)})}}" if cell.paper else ""
    return text + (r"$^\dagger$" if cell.star else "") + paper


# ---- CSV

CSV = [
    "block",
    "method",
    "kind",
    "column",
    "value",
    "low",
    "high",
    "n",
    "unclear",
    "net",
    "net_low",
    "net_high",
    "p",
    "paper",
]


def as_csv(report: Report) -> str:
    """One row per block, method and figure: value, interval, counts, net, p, and the paper's figure.

    After the layout's columns stand the metrics that it leaves out, "judge:" rates, "ground truth", "category:" rates,
    "visible:" metrics (protected against clean picture), "axis:" rates, "improved", "worst_of_seeds", "seconds" a
    picture and "peak_bytes"; plots by distance and judges' calibrations have blocks of their own.
    """
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(CSV)
    for part in report.parts:
        for line in part.lines:
            for column, value in _figures(line, report.layout).items():
                paper = part.paper.get(line.name, {}).get(column)
                p = line.p if column == "isr" else None
                writer.writerow([part.title, line.name, line.kind, column, *value, p, paper])
    for heading, series in _drawn_only(report).items():
        for method, points in series.items():
            writer.writerows([heading, method, "plot", at, *_share(found), None, None] for at, found in points)
    for judge, found in report.calibrations.items():
        for name, right in (
            ("sensitivity", found.sensitivity["success"]),
            ("specificity", found.specificity["success"]),
        ):
            counts = (right.value, right.low, right.high, right.n)
            writer.writerow(["calibration", judge, "judge", name, *counts, *[None] * (len(CSV) - 8)])
    return out.getvalue()


def _share(found: Isr | None) -> tuple[float | None, ...]:
    if found is None:
        return (None,) * 8
    return found.rate, found.low, found.high, found.n, found.unclear, found.net, found.net_low, found.net_high


def _figures(line: Line, layout: Layout) -> dict[str, tuple[float | None, ...]]:
    """Figure -> (value, low, high, n, unclear, net, low, high)."""

    def mean(value: float | None, name: str) -> tuple[float | None, ...]:
        return (value, *(line.spread.get(name) or (None, None)), *[None] * 5)

    found = {}
    for column in dict.fromkeys((*layout.columns, *line.metrics)):
        found[column] = _share(line.isr) if column == "isr" else mean(line.metrics.get(column), column)
    found |= {f"judge:{judge}": _share(own) for judge, own in line.judges.items()}
    if line.truth:
        found["ground truth"] = _share(line.truth)
    found |= {f"category:{group}": _share(own) for group, own in line.groups.items()}
    found |= {f"visible:{name}": mean(value, "") for name, value in line.fidelity.items()}
    total = sum(line.axes.values())
    found |= {f"axis:{axis}": (n / total, None, None, total, *[None] * 4) for axis, n in line.axes.items() if total}
    rest = line.isr
    found["improved"] = (rest.improved, rest.improved_low, rest.improved_high, rest.pairs, *[None] * 4)
    if line.worst:
        found["worst_of_seeds"] = _share(line.worst)
    if line.kind != "floor":
        found |= {"seconds": mean(line.seconds, "seconds"), "peak_bytes": mean(line.memory, "")}
    return found
