"""Records -> columns, in one pass: a hundred thousand records are a few megabytes, and no record is kept but some."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..data.prompts import distance
from ..isr import FAILURE_AXES, axis_of
from ..judges import consensus
from ..store import record_of
from ..types import Record, Verdict

TRUTH = "miniature:renderer"
"""The renderer's ground truth: shown beside the judges, never part of their consensus."""
SHOWN, KEPT = 24, 1000
"""So many pictures, and at most so many records of them, are kept whole to be looked at."""
AXES = ("semantic_mismatch", "perceptual_degradation", "success")
UNKNOWN_MEMORY = "Peak memory: not measured when these pictures were protected, or by another version."
_CODE: dict[bool | None, int] = {None: -1, False: 0, True: 1}
PLAIN = "no preprocessing"
_AXIS = {name: i for i, name in enumerate(FAILURE_AXES)}


class Block(NamedTuple):
    """What records share that stand in one block of a table."""

    editor: str
    purifier: str
    prompts: str


@dataclass
class Frame:
    """Columns, one value per record; answers are 1 (the edit failed), 0 (it works) or -1 (unclear).

    ``cell`` numbers the attacks, rows of one cell differ in the method alone; ``attack`` numbers them without their
    seed; ``axis`` is the place in :data:`sifm_core.isr.FAILURE_AXES`; ``memory`` bytes; unknown values are NaN.
    ``distance`` and ``meaning``: how far the prompts of attack and protection are apart in words and for the editor.
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
    failed_edit: array[int] = field(default_factory=lambda: array("b"))
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
    uncompared: int = 0
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
            parts.append(block.purifier or PLAIN)
        if len({b.prompts for b in self.blocks}) > 1 or not parts:
            parts.append({"original": "Original prompt", "unseen": "Unseen prompts"}.get(block.prompts, block.prompts))
        return ", ".join(parts)


def editors(attacked: str, info: Mapping[str, Any]) -> str:
    """The attacked editor's name, "A -> B" where a record's ``info`` says that another one protected."""
    protect = info.get("protected_on", attacked)
    return attacked if protect == attacked else f"{protect} -> {attacked}"


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
    """The verdict's own; of the ground truth, where it cannot tell the degradation, whether it sees a mismatch."""
    if verdict.judge == TRUTH and verdict.state == "ok" and verdict.perceptual_degradation is None:
        return verdict.semantic_mismatch
    return verdict.success


def kind(info: Mapping[str, Any]) -> str:
    """ "floor" (nothing done to the picture), "control" (noise) or "method", from a record's info."""
    protection = info.get("protection", "")
    return "floor" if not protection else "control" if protection == "random_noise" else "method"


def frame(rows: Iterable[Mapping[str, Any]]) -> Frame:
    """The columns of records as plain data (:meth:`sifm_core.store.Store.rows`), which may come one at a time."""
    f = Frame()
    cells: dict[tuple[Any, ...], int] = {}
    attacks: dict[tuple[Any, ...], int] = {}
    shown: dict[int, set[str]] = {}
    apart: dict[tuple[str, str], float] = {}
    bills: set[int] = set()
    for n, row in enumerate(rows):
        info, name = row["info"], row["method"]
        b = f.blocks.setdefault(
            Block(editors(row["editor"], info), info.get("purifier", ""), row["prompt_kind"]), len(f.blocks)
        )
        i = f.images.setdefault(row["image"], len(f.images))
        f.block.append(b)
        f.method.append(f.methods.setdefault(name, len(f.methods)))
        f.image.append(i)
        f.category.append(f.categories.setdefault(row["category"] or "other", len(f.categories)))
        a = attacks.setdefault((b, i, row["prompt"]), len(attacks))
        f.attack.append(a)
        f.cell.append(cells.setdefault((a, row["seed"]), len(cells)))
        f.seeds.add(row["seed"])
        if name not in f.kinds:
            f.kinds[name], f.settings[name] = kind(info), record_of(row)
        _verdicts(f, row["verdicts"], n)
        for verdict in row["verdicts"]:  # records of one edit share its verdicts, which were paid once
            paid = hash((verdict["judge"], row["source"], row["edited"], row["prompt"]))
            if verdict["cost"] and paid not in bills:
                bills.add(paid)
                f.cost += verdict["cost"]
        _values(f.metrics, {key: metric["value"] for key, metric in row["metrics"].items()}, n)
        _values(f.fidelity, {key: metric["value"] for key, metric in info.get("fidelity", {}).items()}, n)
        for key, metric in row["metrics"].items():
            f.definitions.add(metric["definition"])
            if metric["value"] is None:
                f.missing[f"{key.upper()}: {metric['reason']}."] += 1
        f.seconds.append(row["seconds"].get("immunize", math.nan))
        f.memory.append(_memory(f, info))
        prompts = (row["prompt"], info.get("instruction", row["prompt"]))
        if prompts not in apart:
            apart[prompts] = distance(*prompts)
        f.distance.append(apart[prompts])
        f.meaning.append(_meaning(f, prompts, info.get("prompt_distance")))
        if reason := info.get("failed"):
            f.reasons.setdefault(name, Counter())[reason] += 1
        some = shown.setdefault(b, set())
        if row["image"] in some or (len(some) < SHOWN and b < 2):
            some.add(row["image"])
            if len(f.kept) < KEPT:
                f.kept.append(record_of(row))
    return f


def _verdicts(f: Frame, verdicts: Sequence[Mapping[str, Any]], n: int) -> None:
    """The judges' answers as columns, and what all but the ground truth agree on."""
    said: list[int] = []
    pairs: list[tuple[bool | None, bool | None]] = []
    for verdict in verdicts:
        judge = verdict["judge"]
        if judge not in f.answers:
            f.answers[judge] = {axis: array("b", [-1]) * n for axis in AXES}
        columns = f.answers[judge]
        ok = verdict["state"] == "ok"
        mismatch, degraded = (verdict[axis] if ok else None for axis in AXES[:2])
        unclear = mismatch is None or (degraded is None and judge != TRUTH)
        failed = None if unclear else mismatch or bool(degraded)
        for axis, value in zip(AXES, (mismatch, degraded, failed), strict=True):
            columns[axis].append(_CODE[value])
        if verdict["model_served"]:
            f.served[judge] = verdict["model_served"]
        if not ok:
            f.missing[f"{judge} gave no answer ({verdict['state']}): {verdict['reasons']}"] += 1
        if judge != TRUTH:
            said.append(_CODE[failed])
            pairs.append((mismatch, degraded))
    f.failed_edit.append(min(said, default=-1))
    f.axis.append(_AXIS[axis_of(pairs)])
    for columns in f.answers.values():
        if len(columns["success"]) <= n:
            for column in columns.values():
                column.append(-1)


def _memory(f: Frame, info: Mapping[str, Any]) -> float:
    """What protecting took at its peak, in bytes; NaN where nothing was protected or it is not known."""
    if not info.get("protection"):
        return math.nan
    peak = info.get("peak_memory") or {"value": None, "reason": ""}
    if peak["value"] is None:
        f.missing[f"Peak memory: {peak['reason']}." if peak["reason"] else UNKNOWN_MEMORY] += 1
        return math.nan
    f.definitions.add(f"peak memory: {peak['definition']}")
    return float(peak["value"])


def _meaning(f: Frame, prompts: tuple[str, str], found: Mapping[str, Any] | None) -> float:
    """:func:`sifm_core.pipeline.prompt_distance` as the record has it; NaN where it is not known."""
    if prompts[0] == prompts[1]:
        return 0.0
    if found is None:
        f.uncompared += 1
        return math.nan
    if found["value"] is None:
        f.missing[f"Semantic distance of prompts: {found['reason']}."] += 1
        return math.nan
    f.definitions.add(found["definition"])
    return float(found["value"])


def _values(columns: dict[str, array[float]], values: dict[str, float | None], n: int) -> None:
    for name, value in values.items():
        if name not in columns:
            columns[name] = array("d", [math.nan]) * n
        columns[name].append(math.nan if value is None else value)
    if len(values) < len(columns):
        for name in columns.keys() - values.keys():
            columns[name].append(math.nan)
