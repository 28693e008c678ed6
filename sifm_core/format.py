"""Figures as text, everywhere alike: tables, pages, nodes, the command line. What is not known is "–"."""

from __future__ import annotations

from .metrics import METRICS

NONE = "–"


def percent(value: float | None) -> str:
    """A share as a whole percentage."""
    return NONE if value is None else f"{100 * value:.0f}%"


def span(low: float | None, high: float | None) -> str:
    """The interval of a share."""
    return NONE if low is None or high is None else f"{100 * low:.0f}–{100 * high:.0f}%"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals."""
    return NONE if value is None else f"{value:.{digits}f}"


def ranged(value: float | None, interval: tuple[float, float] | None, digits: int = 3) -> str:
    """A number with its interval, where there is one."""
    text = number(value, digits)
    if value is None or interval is None:
        return text
    return f"{text} ({number(interval[0], digits)}–{number(interval[1], digits)})"


def figure(column: str, value: float | None) -> str:
    """The value of a table's column, a metric or "isr", as the paper prints it."""
    return percent(value) if column == "isr" else number(value, 2 if column == "psnr" else 4)


def title(column: str) -> str:
    """The column's name with an arrow to where protection is stronger."""
    if column == "isr":
        return "ISR ↑"
    name = {"vifp": "VIFp", "fsimc": "FSIMc"}.get(column, column.upper())
    return f"{name} {'↓' if METRICS[column].better == 'lower' else '↑'}"
