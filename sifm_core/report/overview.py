"""Several runs on one page: method x editor, every figure as its own run's report has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..bench.config import Layout, Paper
from .columns import Frame

if TYPE_CHECKING:
    from . import Report

TITLE = "Methods and editors"


def together(reports: Sequence[Report]) -> Report:
    """One report with the blocks of all, side by side, each with its editor; those of purified attacks are left out.

    Nothing is pooled or tested across runs: their pictures, seeds and settings may differ, and stand below.
    """
    blocks = [
        (report, f"{block.editor}, {block.prompts} prompt" + "s" * (block.prompts != "original"), part)
        for report in reports
        for block, part in zip(report.frame.blocks, report.parts, strict=True)
        if not block.purifier
    ]
    times = Counter(name for _, name, _ in blocks)
    parts = [
        replace(part, title=f"{report.title}: {name}" if times[name] > 1 else name) for report, name, part in blocks
    ]
    sources = dict.fromkeys(report.paper.source for report in reports if report.paper.source)
    return replace(
        reports[0],
        title=TITLE,
        about="",
        headline=" ".join(f"{report.title}: {report.headline}" for report in reports),
        frame=Frame(seeds=set().union(*(report.frame.seeds for report in reports))),
        parts=parts,
        layout=Layout(columns=("isr",)),
        paper=Paper(source="; ".join(sources)),
        agreements=[],
        predictors=[],
        plots={},
        reading=list(dict.fromkeys(sentence for report in reports for sentence in report.reading)),
        facts=[(f"{report.title}: {name}", value) for report in reports for name, value in report.facts],
        calibrations={},
        trust=[f"{report.title}: {sentence}" for report in reports for sentence in report.trust],
        beside=len(parts),
    )
