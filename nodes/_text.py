"""Markdown tables that are readable as plain text too."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with columns padded to one width."""
    lines = [list(head), *map(list, rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def percent(value: float | None) -> str:
    """A share as a whole percentage, or "-" when there is none."""
    return "-" if value is None else f"{value:.0%}"
