"""Figures and texts as they are shown, everywhere alike: tables, pages, nodes, the command line."""

from __future__ import annotations

import re

from .metrics import METRICS

NONE = "–"
"""What is not known."""
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


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


def visible(text: str) -> str:
    """A text of others, with what a terminal would obey instead of showing it written out: control characters, changes
    of direction and halves of characters; line breaks and tabs stay."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """The same without line breaks."""
    return " ".join(visible(text).replace("\t", " ").splitlines())
