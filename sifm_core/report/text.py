"""The tables as text: for a terminal, LaTeX and CSV, all from the same cells."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..bench.config import Layout
from ..files import cell
from ..format import one_line
from ..judges.calibration import Calibration
from ..rates import Isr
from .cells import Cell, counted, distances, rates, sheets
from .document import STAR, drawn_only
from .figures import Line

if TYPE_CHECKING:
    from rich.table import Table

    from . import Report

# ---- a terminal


def terminal(lines: Sequence[Line]) -> list[Table]:
    """Both tables of one block for a terminal of 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = []
    for columns in (rates(lines), distances(lines)):
        part = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for i, name in enumerate(map(one_line, columns)):
            short = name if name[-1] in "↓↑" else name.partition("@")[0].split(":", 1)[-1].replace(" ", "\n")
            part.add_column(Text(short), justify="right" if i else "left", no_wrap=True)
        for line, row in zip(lines, zip(*columns.values(), strict=True), strict=True):
            part.add_row(*(Text(one_line(cell)) for cell in row), style="bold" if line.kind == "method" else "")
        shown.append(part)
    return shown


# ---- LaTeX


def latex(report: Report) -> str:
    """The tables as LaTeX (booktabs), the paper's figures small beside ours."""
    parts = [f"% {one_line(report.title)}: {one_line(report.headline)}", "% needs \\usepackage{booktabs,graphicx}"]
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
    text = re.sub(r"([\\{}])", lambda m: {"\\": r"\textbackslash ", "{": r"\{", "}": r"\}"}[m[1]], one_line(text))
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

    After the layout's columns stand the metrics that it leaves out, "judge:" rates (":corrected" without the judge's
    errors), "ground truth", "category:" rates, "visible:" metrics (protected against clean picture), "axis:" rates,
    "improved", "worst_of_seeds", "seconds" a picture and "peak_bytes"; plots by distance and judges' calibrations
    have blocks of their own. Names that a spreadsheet would take for formulas have an apostrophe before them.
    """
    rows: list[Sequence[Any]] = [CSV]
    for part in report.parts:
        for line in part.lines:
            for column, value in (_figures(line, report.layout) | _corrected(line, report.calibrations)).items():
                paper = part.paper.get(line.name, {}).get(column)
                p = line.p if column == "isr" else None
                rows.append([part.title, line.name, line.kind, column, *value, p, paper])
    for heading, series in drawn_only(report).items():
        for method, points in series.items():
            rows += [[heading, method, "plot", at, *_share(isr), None, None] for at, isr in points]
    for judge, calibration in report.calibrations.items():
        for name, rate in (("sensitivity", calibration.sensitivity), ("specificity", calibration.specificity)):
            right = rate["success"]
            counts = (right.value, right.low, right.high, right.n)
            rows.append(["calibration", judge, "judge", name, *counts, *[None] * (len(CSV) - 8)])
        for way, alike in calibration.same.items():
            again = alike["success"]
            counts = (again.value, again.low, again.high, again.n)
            rows.append(["calibration", judge, "judge", f"the same {way}", *counts, *[None] * (len(CSV) - 8)])
    out = io.StringIO()
    csv.writer(out).writerows([cell(value) for value in row] for row in rows)
    return out.getvalue()


def _share(isr: Isr | None) -> tuple[float | None, ...]:
    if isr is None:
        return (None,) * 8
    return isr.rate, isr.low, isr.high, isr.n, isr.unclear, isr.net, isr.net_low, isr.net_high


def _corrected(line: Line, calibrations: Mapping[str, Calibration]) -> dict[str, tuple[float | None, ...]]:
    shares = counted(line)
    rates = {
        judge: calibration.corrected(shares[judge]) for judge, calibration in calibrations.items() if judge in shares
    }
    return {f"judge:{judge}:corrected": (*own, *[None] * 5) for judge, own in rates.items() if own}


def _figures(line: Line, layout: Layout) -> dict[str, tuple[float | None, ...]]:
    """Figure -> (value, low, high, n, unclear, net, low, high)."""

    def mean(value: float | None, name: str) -> tuple[float | None, ...]:
        return (value, *(line.spread.get(name) or (None, None)), *[None] * 5)

    figures = {}
    for column in dict.fromkeys((*layout.columns, *line.metrics)):
        figures[column] = _share(line.isr) if column == "isr" else mean(line.metrics.get(column), column)
    figures |= {f"judge:{judge}": _share(own) for judge, own in line.judges.items()}
    if line.majority:
        figures["majority"] = _share(line.majority)
    if line.truth:
        figures["ground truth"] = _share(line.truth)
    figures |= {f"category:{group}": _share(own) for group, own in line.groups.items()}
    figures |= {f"visible:{name}": mean(value, "") for name, value in line.fidelity.items()}
    total = sum(line.axes.values())
    figures |= {f"axis:{axis}": (n / total, None, None, total, *[None] * 4) for axis, n in line.axes.items() if total}
    rest = line.isr
    figures["improved"] = (rest.improved, rest.improved_low, rest.improved_high, rest.pairs, *[None] * 4)
    if line.worst:
        figures["worst_of_seeds"] = _share(line.worst)
    if line.kind != "floor":
        figures |= {"seconds": mean(line.seconds, "seconds"), "peak_bytes": mean(line.memory, "")}
    return figures
