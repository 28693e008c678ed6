"""Records -> columns, in one pass: a hundred thousand records are a few megabytes, and no record is kept but some."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..data.prompts import distance
from ..judges import consensus
from ..types import Record, Verdict

TRUTH = "miniature:renderer"
"""The renderer's ground truth: shown beside the judges, never part of their consensus."""
SHOWN = 24
"""Pictures whose records are kept whole, to be looked at."""
AXES = ("semantic_mismatch", "perceptual_degradation", "success")


class Block(NamedTuple):
    """What records share that stand in one block of a table."""

    editor: str
    purifier: str
    prompts: str


@dataclass
class Frame:
    """Columns, one value per record. ``cell`` numbers the attacks: rows of one cell differ in the method alone."""

    blocks: dict[Block, int] = field(default_factory=dict)
    methods: dict[str, int] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    block: array[int] = field(default_factory=lambda: array("l"))
    method: array[int] = field(default_factory=lambda: array("l"))
    image: array[int] = field(default_factory=lambda: array("l"))
    cell: array[int] = field(default_factory=lambda: array("q"))
    failed_edit: list[bool | None] = field(default_factory=list)
    answers: dict[str, dict[str, list[bool | None]]] = field(default_factory=dict)
    metrics: dict[str, array[float]] = field(default_factory=dict)
    fidelity: dict[str, array[float]] = field(default_factory=dict)
    seconds: array[float] = field(default_factory=lambda: array("d"))
    distance: array[float] = field(default_factory=lambda: array("d"))
    reasons: dict[str, Counter[str]] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)
    definitions: set[str] = field(default_factory=set)
    served: dict[str, str] = field(default_factory=dict)
    cost: float = 0.0
    kept: list[Record] = field(default_factory=list)
    settings: dict[str, Record] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.block)

    @property
    def judges(self) -> list[str]:
        """Those that make the consensus."""
        return [judge for judge in self.answers if judge != TRUTH]

    def label(self, block: Block) -> str:
        """What tells this block from the others, in words."""
        parts = []
        if len({b.editor for b in self.blocks}) > 1:
            parts.append(block.editor)
        if len({b.purifier for b in self.blocks}) > 1:
            parts.append(block.purifier or "no preprocessing")
        if len({b.prompts for b in self.blocks}) > 1 or not parts:
            parts.append({"original": "Original prompt", "unseen": "Unseen prompts"}.get(block.prompts, block.prompts))
        return ", ".join(parts)


def judging(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """All but the ground truth's."""
    return [verdict for verdict in verdicts if verdict.judge != TRUTH]


def answer(record: Record, judge: str | None = None) -> bool | None:
    """Did the edit fail, in the eyes of one judge, or (None) of all together but the ground truth? None: unclear."""
    if judge is None:
        return consensus(judging(record.verdicts))
    verdict = next((v for v in record.verdicts if v.judge == judge), None)
    return None if verdict is None else success(verdict)


def success(verdict: Verdict) -> bool | None:
    """The verdict's own; of a judge that says nothing on degradation, whether it sees a mismatch."""
    if verdict.state != "ok":
        return None
    return verdict.semantic_mismatch if verdict.perceptual_degradation is None else verdict.success


def kind(record: Record) -> str:
    """ "floor" (nothing done to the picture), "control" (noise) or "method"."""
    protection = record.info.get("protection", "")
    return "floor" if not protection else "control" if protection == "random_noise" else "method"


def frame(records: Iterable[Record]) -> Frame:
    """The columns of records, which may come one at a time."""
    f = Frame()
    cells: dict[tuple[int, int, str, int], int] = {}
    shown: dict[Block, set[str]] = {}
    apart: dict[tuple[str, str], float] = {}
    for n, record in enumerate(records):
        info = record.info
        attacked, protect = record.editor, str(info.get("protected_on", record.editor))
        editor = attacked if protect == attacked else f"{protect} -> {attacked}"
        block = Block(editor, str(info.get("purifier", "")), record.prompt_kind)
        b = f.blocks.setdefault(block, len(f.blocks))
        i = f.images.setdefault(record.image, len(f.images))
        f.block.append(b)
        f.method.append(f.methods.setdefault(record.method, len(f.methods)))
        f.image.append(i)
        f.cell.append(cells.setdefault((b, i, record.prompt, record.seed), len(cells)))
        f.kinds.setdefault(record.method, kind(record))
        f.settings.setdefault(record.method, record)
        f.failed_edit.append(answer(record))
        for verdict in record.verdicts:
            columns = f.answers.setdefault(verdict.judge, {axis: [None] * n for axis in AXES})
            ok = verdict.state == "ok"
            columns[AXES[0]].append(verdict.semantic_mismatch if ok else None)
            columns[AXES[1]].append(verdict.perceptual_degradation if ok else None)
            columns[AXES[2]].append(success(verdict))
            f.cost += verdict.cost or 0.0
            if verdict.model_served:
                f.served[verdict.judge] = verdict.model_served
            if not ok:
                f.missing[f"{verdict.judge} gave no answer ({verdict.state}): {verdict.reasons}"] += 1
        for columns in f.answers.values():
            for column in columns.values():
                if len(column) <= n:
                    column.append(None)
        _values(f.metrics, {name: metric.value for name, metric in record.metrics.items()}, n)
        _values(f.fidelity, {name: metric["value"] for name, metric in info.get("fidelity", {}).items()}, n)
        for name, metric in record.metrics.items():
            f.definitions.add(metric.definition)
            if metric.value is None:
                f.missing[f"{name.upper()}: {metric.reason}."] += 1
        f.seconds.append(record.seconds.get("immunize", 0.0))
        prompts = (record.prompt, str(info.get("instruction", record.prompt)))
        if prompts not in apart:
            apart[prompts] = distance(*prompts)
        f.distance.append(apart[prompts])
        if reason := info.get("failed"):
            f.reasons.setdefault(record.method, Counter())[str(reason)] += 1
        some = shown.setdefault(block, set())
        if record.image in some or (len(some) < SHOWN and b < 2):
            some.add(record.image)
            f.kept.append(record)
    return f


def _values(columns: dict[str, array[float]], values: dict[str, float | None], n: int) -> None:
    for name, value in values.items():
        column = columns.setdefault(name, array("d", [math.nan]) * n)
        column.append(math.nan if value is None else value)
    for column in columns.values():
        if len(column) <= n:
            column.append(math.nan)
