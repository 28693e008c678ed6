"""Records -> columns, in one pass: a hundred thousand records are a few megabytes, and no record is kept but some."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..data.prompts import distance
from ..judges.models import same_model
from ..types import Measured, Record, RecordInfo
from ..verdicts import AXES, CLEAN, FAILURE_AXES, TRUTH, Cell, Verdict, cell, consensus, failure_axis, majority

SHOWN, KEPT = 24, 1000
"""So many pictures, and at most so many records of them, are kept whole to be looked at."""
UNKNOWN_MEMORY = "Peak memory: not measured when these pictures were protected, or by another version."
PLAIN = "no preprocessing"
_CODE: dict[bool | None, int] = {None: -1, False: 0, True: 1}


class Block(NamedTuple):
    """What records share that stand in one block of a table."""

    editor: str
    purifier: str
    prompts: str


@dataclass
class Frame:
    """Columns, one value per record; answers are 1 (the edit failed), 0 (it works) or -1 (unclear).

    ``cell`` numbers the cells (:func:`sifm_core.verdicts.cell`), ``attack`` the same without their seeds; ``floor`` is
    the row of the cell's clean record, -1 where there is none; ``consensus`` what the judges agree on, ``majority``
    what most of them say, ``answers`` what each says by axis; ``axis`` the place in
    :data:`sifm_core.verdicts.FAILURE_AXES`;
    ``others`` counts by judge the answers that other models gave than the one asked, ``answered`` all of its answers;
    ``memory`` bytes; unknown values are NaN. ``distance`` and ``meaning``: how far the prompts of attack and protection
    are apart in words and for the editor.
    """

    blocks: dict[Block, int] = field(default_factory=dict)
    methods: dict[str, int] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    categories: dict[str, int] = field(default_factory=dict)
    seeds: set[int] = field(default_factory=set)
    kinds: dict[str, str] = field(default_factory=dict)
    block: array[int] = field(default_factory=lambda: array("l"))
    method: array[int] = field(default_factory=lambda: array("l"))
    image: array[int] = field(default_factory=lambda: array("l"))
    category: array[int] = field(default_factory=lambda: array("l"))
    cell: array[int] = field(default_factory=lambda: array("q"))
    attack: array[int] = field(default_factory=lambda: array("q"))
    floor: array[int] = field(default_factory=lambda: array("q"))
    consensus: array[int] = field(default_factory=lambda: array("b"))
    majority: array[int] = field(default_factory=lambda: array("b"))
    axis: array[int] = field(default_factory=lambda: array("b"))
    answers: dict[str, dict[str, array[int]]] = field(default_factory=dict)
    metrics: dict[str, array[float]] = field(default_factory=dict)
    fidelity: dict[str, array[float]] = field(default_factory=dict)
    seconds: array[float] = field(default_factory=lambda: array("d"))
    memory: array[float] = field(default_factory=lambda: array("d"))
    distance: array[float] = field(default_factory=lambda: array("d"))
    meaning: array[float] = field(default_factory=lambda: array("d"))
    reasons: dict[str, Counter[str]] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)
    definitions: set[str] = field(default_factory=set)
    served: dict[str, str] = field(default_factory=dict)
    answered: Counter[str] = field(default_factory=Counter)
    others: dict[str, Counter[str]] = field(default_factory=dict)
    uncompared: int = 0
    cost: float = 0.0
    kept: list[Record] = field(default_factory=list)
    settings: dict[str, Record] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.block)

    @property
    def judges(self) -> list[str]:
        """Those that make the consensus."""
        return [judge for judge in self.answers if judge != TRUTH] or list(self.answers)

    def label(self, block: Block) -> str:
        """What tells this block from the others, in words."""
        parts = []
        if len({b.editor for b in self.blocks}) > 1:
            parts.append(block.editor)
        if len({b.purifier for b in self.blocks}) > 1:
            parts.append(block.purifier or PLAIN)
        if len({b.prompts for b in self.blocks}) > 1 or not parts:
            parts.append({"original": "Original prompt", "unseen": "Unseen prompts"}.get(block.prompts, block.prompts))
        return ", ".join(parts)


def kind(info: RecordInfo) -> str:
    """ "floor" (nothing done to the picture), "control" (noise) or "method", from a record's info."""
    protection = info.get("protection", "")
    return "floor" if not protection else "control" if protection == "random_noise" else "method"


def frame(records: Iterable[Record]) -> Frame:
    """The columns of records, which may come one at a time."""
    f = Frame()
    cells: dict[Cell, int] = {}
    attacks: dict[Cell, int] = {}
    floors: dict[int, int] = {}
    shown: dict[int, set[str]] = {}
    apart: dict[tuple[str, str], float] = {}
    bills: set[int] = set()
    for n, record in enumerate(records):
        info, method, at = record.info, record.method, cell(record)
        block = f.blocks.setdefault(Block(at.editors, at.purifier, at.kind), len(f.blocks))
        f.block.append(block)
        f.method.append(f.methods.setdefault(method, len(f.methods)))
        f.image.append(f.images.setdefault(record.image, len(f.images)))
        f.category.append(f.categories.setdefault(record.category or "other", len(f.categories)))
        f.attack.append(attacks.setdefault(at._replace(seed=0), len(attacks)))
        f.cell.append(cells.setdefault(at, len(cells)))
        if method == CLEAN:
            floors[f.cell[-1]] = n
        f.seeds.add(record.seed)
        if method not in f.kinds:
            f.kinds[method], f.settings[method] = kind(info), record
        _verdicts(f, record.verdicts, n)
        for verdict in record.verdicts:  # records of one edit share its verdicts, which were paid once
            paid = hash((verdict.judge, record.source, record.edited, record.prompt))
            if verdict.cost and paid not in bills:
                bills.add(paid)
                f.cost += verdict.cost
        _values(f.metrics, {name: metric.value for name, metric in record.metrics.items()}, n)
        _values(f.fidelity, {name: metric["value"] for name, metric in info.get("fidelity", {}).items()}, n)
        for name, metric in record.metrics.items():
            f.definitions.add(metric.definition)
            if metric.value is None:
                f.missing[f"{name.upper()}: {metric.reason}."] += 1
        f.seconds.append(record.seconds.get("immunize", math.nan))
        f.memory.append(_memory(f, info))
        prompts = (record.prompt, info.get("instruction", record.prompt))
        if prompts not in apart:
            apart[prompts] = distance(*prompts)
        f.distance.append(apart[prompts])
        f.meaning.append(_meaning(f, prompts, info.get("prompt_distance")))
        if reason := info.get("failed"):
            f.reasons.setdefault(method, Counter())[reason] += 1
        pictures = shown.setdefault(block, set())
        if record.image in pictures or (len(pictures) < SHOWN and block < 2):
            pictures.add(record.image)
            if len(f.kept) < KEPT:
                f.kept.append(record)
    f.floor.extend(floors.get(number, -1) for number in f.cell)
    return f


def _verdicts(f: Frame, verdicts: Sequence[Verdict], n: int) -> None:
    """The judges' answers as columns, and what they agree on."""
    by_judge = {verdict.judge: verdict for verdict in verdicts}
    for judge, verdict in by_judge.items():
        f.answers.setdefault(judge, {axis: array("b", [-1]) * n for axis in AXES})
        if verdict.model_served:
            f.served[judge] = verdict.model_served
        if verdict.state == "ok":
            f.answered[judge] += 1
            names = verdict.model_served.split(" + ") if verdict.model_requested and verdict.model_served else []
            if others := [name for name in names if not same_model(verdict.model_requested, name)]:
                f.others.setdefault(judge, Counter())[" and ".join(others)] += 1
        if verdict.state != "ok":
            f.missing[f"{judge} gave no answer ({verdict.state}): {verdict.reasons}"] += 1
    for judge, columns in f.answers.items():
        for axis, column in columns.items():
            column.append(_CODE[by_judge[judge].answer(axis)] if judge in by_judge else -1)
    f.consensus.append(_CODE[consensus(verdicts)])
    f.majority.append(_CODE[majority(verdicts)])
    f.axis.append(FAILURE_AXES.index(failure_axis(verdicts)))


def _memory(f: Frame, info: RecordInfo) -> float:
    """What protecting took at its peak, in bytes; NaN where nothing was protected or it is not known."""
    if not info.get("protection"):
        return math.nan
    peak = info.get("peak_memory")
    if peak is None or peak["value"] is None:
        f.missing[f"Peak memory: {peak['reason']}." if peak and peak["reason"] else UNKNOWN_MEMORY] += 1
        return math.nan
    f.definitions.add(f"peak memory: {peak['definition']}")
    return float(peak["value"])


def _meaning(f: Frame, prompts: tuple[str, str], apart: Measured | None) -> float:
    """:func:`sifm_core.pipeline.prompt_distance` as the record has it; NaN where it is not known."""
    if prompts[0] == prompts[1]:
        return 0.0
    if apart is None:
        f.uncompared += 1
        return math.nan
    if apart["value"] is None:
        f.missing[f"Semantic distance of prompts: {apart['reason']}."] += 1
        return math.nan
    f.definitions.add(apart["definition"])
    return float(apart["value"])


def _values(columns: dict[str, array[float]], values: dict[str, float | None], n: int) -> None:
    for name, value in values.items():
        if name not in columns:
            columns[name] = array("d", [math.nan]) * n
        columns[name].append(math.nan if value is None else value)
    if len(values) < len(columns):
        for name in columns.keys() - values.keys():
            columns[name].append(math.nan)
