"""What nodes say: tables and sentences, as Markdown for other nodes, as data for the browser, which draws them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sifm_core.report.document import Cell, Element, Table, Text, as_markdown, data


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *sentences: str) -> list[Element]:
    """A table and what stands below it."""
    cells = tuple(tuple(map(Cell, row)) for row in rows)
    return [Table(tuple(head), cells), *(Text([sentence]) for sentence in sentences)]


def markdown(elements: Sequence[Element]) -> str:
    """The elements as Markdown that is readable as plain text too."""
    return as_markdown(elements, aligned=True).rstrip()


def shown(elements: Sequence[Element], **also: Any) -> dict[str, Any]:
    """What a node gives its page: the Markdown, and the same as data."""
    return {"text": [markdown(elements)], "sifm_document": data(elements), **also}
