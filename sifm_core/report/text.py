"""The tables as text: for a terminal, Markdown, LaTeX and CSV, all from the same cells."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..bench.config import Layout
from ..format import percent
from ..rates import Isr
from ..verdicts import AXES
from .cells import (
    Cell,
    Sheet,
    agreement_table,
    categories,
    distances,
    failures,
    measured,
    plotted,
    predictor_table,
    rates,
    sheets,
    starred,
)
from .curves import Series
from .figures import Line

if TYPE_CHECKING:
    from rich.table import Table

    from . import Report

STAR = "†"

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
