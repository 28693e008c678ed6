"""A report as a document: headings, sentences and tables in order, as data; Markdown is one way to write it down.

What stands in it may be anybody's text: Markdown shows it, and makes no markup, link or picture of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ..format import one_line, percent
from ..verdicts import AXES
from .cells import (
    CORRECTED,
    Cell,
    Sheet,
    agreement_table,
    categories,
    corrected,
    failures,
    measured,
    plotted,
    predictor_table,
    rates,
    sheets,
    starred,
)

if TYPE_CHECKING:
    from . import Report
    from .curves import Series

STAR = "†"


class Heading(NamedTuple):
    text: str
    level: int = 2


class Items(NamedTuple):
    """A list."""

    texts: Sequence[str]


class Text(NamedTuple):
    """A paragraph; what a cell marks as "best" or "second" looks as in the tables."""

    parts: Sequence[str | Cell]


@dataclass(frozen=True)
class Table:
    """Rows of cells under titles; ``over``: (title, columns) above these, for all but the first column."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    over: tuple[tuple[str, int], ...] = ()


Element: TypeAlias = Heading | Items | Text | Table


def table(columns: dict[str, list[str]]) -> Table:
    """Title -> cells as a table."""
    return Table(tuple(columns), tuple(tuple(map(Cell, row)) for row in zip(*columns.values(), strict=True)))


def document(report: Report) -> list[Element]:
    """The headline, the tables, how to read them, and where they come from."""
    shown = sheets(report.parts, report.layout, report.beside)
    parts: list[Element] = [Heading(report.title, 1)]
    parts += [Text([text]) for text in (report.about, report.headline) if text]
    parts += [_sheet(sheet) for sheet in shown]
    source = f" In parentheses: {report.paper.source}." if report.paper.source else ""
    parts += [Text([*LEGEND, DIFFERS if starred(shown) else "", source])]
    if report.trust:
        parts += [Heading("Can the judges be trusted?"), Items(report.trust)]
    for part in report.parts[: report.beside]:
        parts += [Heading(part.title)] if len(report.parts) > 1 else []
        parts += [table(columns) for make in (rates, failures, categories, measured) if (columns := make(part.lines))]
        if columns := corrected(part.lines, report.calibrations):
            parts += [table(columns), Text([CORRECTED])]
    if (others := len(report.parts) - report.beside) > 0:
        parts += [Text([f"The other {others} blocks stand in report.csv in the same detail."])]
    for name, series in drawn_only(report).items():
        parts += [Heading(name), table(plotted(series))]
    if report.agreements:
        parts += [Heading("Do the judges agree?"), table(agreement_table(report.agreements))]
        for block in report.paper.blocks if report.layout.kind == "agreement" else ():
            printed = "; ".join(f"{who}: {' / '.join(map(percent, values))}" for who, values in block.rows.items())
            axes = ", ".join(axis.replace("_", " ") for axis in AXES)
            parts += [Text([f"{report.paper.source} ({axes}): {printed}."])]
    if report.predictors:
        parts += [Heading("What the metrics say about the verdict"), table(predictor_table(report.predictors))]
        parts += [Text(["AUC: how often a failed edit scores as further off than a working one. 0.5 is chance."])]
    if report.clip:
        parts += [Heading("What does CLIP prefer?"), Text([report.clip.said])]
        parts += [table(report.clip.table)] if report.clip.table else []
    parts += [Text([text]) for text in report.reading]
    return [*parts, Items([f"{name}: {value}" for name, value in report.facts])]


LEGEND = (
    Cell("Best", "best"),
    " and ",
    Cell("second", "second"),
    " of the methods; the clean row, another seed and noise are controls. ISR: edits that "
    "all judges, each for itself, call failed; 95% by picture; net: works on the clean picture and fails here.",
)
DIFFERS = f" {STAR}: differs from SIFM (exact, by picture, Holm, p < 0.05)."


def drawn_only(report: Report) -> dict[str, Series]:
    """The plots whose rates stand in no other table."""
    return report.plots if report.layout.plot == "prompts" else {}


def _sheet(sheet: Sheet) -> Table:
    rows = tuple((Cell(line.name), *cells) for line, cells in sheet.rows)
    return Table(("", *sheet.columns), rows, sheet.blocks)


# ---- ways to write it down


def data(elements: Iterable[Element]) -> list[dict[str, Any]]:
    """Plain data for a browser, which draws it: the kind of each element with its fields, cells with theirs."""
    return [{"kind": type(one).__name__.lower(), **_fields(one)} for one in elements]


def _fields(one: Element) -> dict[str, Any]:
    if isinstance(one, Table):
        return asdict(one)
    if isinstance(one, Text):
        return {"parts": [asdict(part if isinstance(part, Cell) else Cell(part)) for part in one.parts if part]}
    return one._asdict()


def markdown(report: Report) -> str:
    """The :func:`document` of a report in Markdown."""
    return as_markdown(document(report))


def as_markdown(elements: Iterable[Element], *, aligned: bool = False) -> str:
    """Markdown that shows every text as it is; ``aligned``: with tables that are readable as plain text too."""
    return "\n\n".join(_markdown(one, aligned) for one in elements) + "\n"


def _markdown(one: Element, aligned: bool) -> str:
    if isinstance(one, Heading):
        return f"{'#' * one.level} {_block(_text(one.text))}"
    if isinstance(one, Items):
        return "\n".join(f"- {_block(_text(text))}" for text in one.texts)
    if isinstance(one, Text):
        first, *rest = (_cell(part) if isinstance(part, Cell) else _text(part) for part in one.parts)
        return "".join([first if isinstance(one.parts[0], Cell) else _block(first), *rest])
    rule = ["---"] + ["---:"] * (len(one.head) - 1)
    head = [list(map(_text, one.head)), rule]
    if one.over:
        above = [title if not i else "" for title, width in one.over for i in range(width)]
        head = [["", *map(_text, above)], rule, [f"**{_text(title)}**" if title else "" for title in one.head]]
    rows = [[cell.replace("|", r"\|") for cell in row] for row in (*head, *(map(_cell, row) for row in one.rows))]
    if aligned:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows = [
            ["-" * width if row is rows[1] else cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            for row in rows
        ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(cell: Cell) -> str:
    text = _text(cell.text)
    text = {"best": f"**{text}**", "second": f"<u>{text}</u>"}.get(cell.mark, text)
    return text + (STAR if cell.star else "") + (f" ({cell.paper})" if cell.paper else "")


def _text(text: str) -> str:
    """On one line, with no HTML and no link or picture in it."""
    escaped = re.sub(r"&(?=#?\w+;)", "&amp;", one_line(text))
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", escaped).replace("](", r"]\(")


def _block(line: str) -> str:
    """The line as the beginning of a block that it starts none of its own: no heading, list, quote, table or fence."""
    return re.sub(r"^(\s*(?=[#>|=*+-]|```|~~~)|\s*\d+(?=[.)](?:\s|$)))", r"\1\\", line)
