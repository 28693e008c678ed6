"""Columns -> every figure of a report: one line per method and block, what is best, what differs, the paper's own."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..bench.config import Layout, Paper
from ..format import NONE, figure, one_line, span
from ..judges.models import family_of
from ..metrics import METRICS
from ..rates import Isr, isr, worst_of
from ..stats import Interval, agreement, auc, bootstrap, cohen_kappa, holm, mcnemar, prevalence
from ..verdicts import AXES, CLEAN, FAILURE_AXES, TRUTH
from .columns import Frame

OURS = "SIFM"
"""The row that the others are tested against, when there is one."""
SIGNIFICANT = 0.05
RESAMPLED = 300
"""Pictures up to which intervals of means are found by resampling."""
SHARED = 2
"""Methods that may share a mark; what more have in common distinguishes none."""
LONGEST = 80
"""Characters of a model's name in the headline."""
_SAID = (False, True, None)
"""A frame's 0, 1 and -1."""


@dataclass(frozen=True)
class Line:
    """One method in one block: all its records there.

    ``kind``: "floor" (nothing done to the picture), "control" (noise) or "method". ``judges``: each judge's own rate;
    ``majority``: that of more than half of them (None: there are fewer than three);
    ``truth``: that of the renderer, or None. ``axes``: how the edits failed, counts by
    :data:`sifm_core.verdicts.FAILURE_AXES`; ``worst``: ISR when the attacker keeps the best of all seeds (None: one
    seed); ``groups``: ISR by category of picture (empty: one). ``metrics`` and ``fidelity`` are means over the pictures
    that have the value (None: none has), ``spread`` the metrics' 95% intervals, by picture; ``seconds`` the
    protection's mean time (None: not known), with its interval by batch in ``spread``; ``memory`` in bytes the most
    that protecting a batch took (None: not known); ``failed`` the reasons of what could not be done; ``p`` of equal
    success with :data:`OURS`, by picture and corrected after Holm for the block's lines (None: not tested).
    """

    name: str
    kind: str
    isr: Isr
    judges: Mapping[str, Isr]
    majority: Isr | None
    truth: Isr | None
    axes: Mapping[str, int]
    worst: Isr | None
    groups: Mapping[str, Isr]
    metrics: Mapping[str, float | None]
    spread: Mapping[str, Interval | None]
    fidelity: Mapping[str, float | None]
    seconds: float | None
    memory: float | None = None
    failed: tuple[str, ...] = ()
    p: float | None = None

    def value(self, column: str) -> float | None:
        """A column's figure: a metric's mean, or the rate for "isr"."""
        return self.isr.rate if column == "isr" else self.metrics.get(column)


@dataclass(frozen=True)
class Part:
    """One block of the table. ``marks``: column -> method -> "best" or "second"; equals share a mark."""

    title: str
    lines: tuple[Line, ...]
    marks: Mapping[str, Mapping[str, str]]
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def line(self, name: str) -> Line | None:
        """The line of a method."""
        return next((line for line in self.lines if line.name == name), None)


@dataclass(frozen=True)
class Agreement:
    """Two judges: on how many records both answered, how often alike (``kappa``: beyond chance), how often yes."""

    axis: str
    one: str
    two: str
    n: int
    alike: float | None
    kappa: float | None
    yes: tuple[float | None, float | None]


@dataclass(frozen=True)
class Predictor:
    """How well a metric tells failed edits from those that work: ``auc``, 0.5 is chance, 1 in its direction."""

    metric: str
    auc: float | None
    n: int


def parts(frame: Frame, layout: Layout, paper: Paper) -> list[Part]:
    """The blocks of the table, in the records' order; net ISR pairs each record with its cell's clean one."""
    block, method = np.asarray(frame.block), np.asarray(frame.method)
    plain = [key for key in frame.blocks if not key.purifier]  # the paper has no preprocessing
    blocks = []
    for key, number in frame.blocks.items():
        inside = np.flatnonzero(block == number)
        rows = {name: inside[method[inside] == m] for name, m in frame.methods.items()}
        lines = _tested(frame, [_line(frame, name, where) for name, where in rows.items() if len(where)], rows)
        printed: dict[str, dict[str, float]] = {}
        if key in plain and plain.index(key) < len(paper.blocks):
            figures = paper.blocks[plain.index(key)].rows
            printed = {name: dict(zip(paper.columns, values, strict=False)) for name, values in figures.items()}
        marks = {column: _marks(lines, column) for column in layout.columns}
        blocks.append(Part(frame.label(key), tuple(lines), marks, printed))
    return blocks


def _line(frame: Frame, name: str, where: np.ndarray) -> Line:
    pictures = np.asarray(frame.image)[where]

    def rate(column: Sequence[int], only: np.ndarray | slice = slice(None)) -> Isr:
        return share(frame, column, where[only], paired=name != CLEAN)

    metrics = {key: np.asarray(column)[where] for key, column in frame.metrics.items()}
    seconds, category = np.asarray(frame.seconds)[where], np.asarray(frame.category)[where]
    axes = Counter(np.asarray(frame.axis)[where].tolist())
    groups = {n: i for n, i in frame.categories.items() if len(frame.categories) > 1 and (category == i).any()}
    truth = TRUTH in frame.answers and TRUTH not in frame.judges
    return Line(
        name=name,
        kind=frame.kinds[name],
        isr=rate(frame.consensus),
        judges={judge: rate(frame.answers[judge]["success"]) for judge in frame.judges},
        majority=rate(frame.majority) if len(frame.judges) > 2 else None,
        truth=rate(frame.answers[TRUTH]["success"]) if truth else None,
        axes={axis: axes[i] for i, axis in enumerate(FAILURE_AXES)},
        worst=_worst(frame, name, where) if len(frame.seeds) > 1 else None,
        groups={group: rate(frame.consensus, category == i) for group, i in groups.items()},
        metrics={key: _mean(values) for key, values in metrics.items()},
        spread={key: _spread(values, pictures) for key, values in metrics.items() if name != CLEAN}
        | {"seconds": _spread(seconds, seconds)},  # pictures of one batch share one measurement
        fidelity={key: _mean(np.asarray(column)[where]) for key, column in frame.fidelity.items()},
        seconds=_mean(seconds),
        memory=_most(np.asarray(frame.memory)[where]),
        failed=tuple(frame.reasons.get(name, ())),
    )


def share(frame: Frame, column: Sequence[int], where: np.ndarray, *, paired: bool) -> Isr:
    """The rate of these rows by a column of answers; ``paired``: against the clean records of their cells."""
    answers = np.asarray(column)
    floor = np.asarray(frame.floor)[where]
    clean = np.where(floor < 0, -1, answers[floor])
    pictures = np.asarray(frame.image)[where].tolist()
    return isr(_said(answers[where]), clean=_said(clean) if paired else None, clusters=pictures)


def _worst(frame: Frame, name: str, where: np.ndarray) -> Isr:
    """ISR of attacks without their seed: one edit that works, with any seed, is enough for the attacker."""
    consensus, attack, image = (np.asarray(column) for column in (frame.consensus, frame.attack, frame.image))
    floor = np.flatnonzero(np.asarray(frame.method) == frame.methods.get(CLEAN, -1))
    worst, clean = (worst_of(_said(consensus[rows]), attack[rows].tolist()) for rows in (where, floor))
    pictures = dict(zip(attack[where].tolist(), image[where].tolist(), strict=True))
    return isr(
        list(worst.values()),
        clean=None if name == CLEAN else [clean.get(attack) for attack in worst],
        clusters=[pictures[attack] for attack in worst],
    )


def _said(codes: np.ndarray) -> list[bool | None]:
    """A frame's answers as :func:`sifm_core.rates.isr` takes them."""
    return [_SAID[code] for code in codes.tolist()]


def _spread(values: np.ndarray, clusters: np.ndarray) -> Interval | None:
    """The interval of a mean by picture: by resampling, or for many pictures, where that agrees, by their variance."""
    present = ~np.isnan(values)
    pictures, number = np.unique(clusters[present], return_inverse=True)
    values = values[present]
    if len(pictures) <= RESAMPLED:
        return bootstrap(values.tolist(), number.tolist(), draws=1000)
    off = np.bincount(number, weights=values - values.mean())
    half = 1.96 * math.sqrt(float((off**2).sum()) * len(pictures) / (len(pictures) - 1)) / len(values)
    return Interval(float(values.mean()) - half, float(values.mean()) + half)


def _tested(frame: Frame, lines: list[Line], rows: Mapping[str, np.ndarray]) -> list[Line]:
    """With p against :data:`OURS` for every other line that protects, controls too."""
    cells, consensus, pictures = (np.asarray(column) for column in (frame.cell, frame.consensus, frame.image))
    mine = rows.get(OURS, np.array([], int))
    ours = dict(zip(cells[mine].tolist(), _said(consensus[mine]), strict=True))
    tested = [line for line in lines if ours and line.kind != "floor" and line.name != OURS]
    raw = []
    for line in tested:
        where = np.array([i for i in rows[line.name].tolist() if int(cells[i]) in ours], int)
        first = [ours[cell] for cell in cells[where].tolist()]
        raw.append(mcnemar(first, _said(consensus[where]), pictures[where].tolist()).p)
    corrected = {line.name: p for line, p in zip(tested, holm(raw), strict=True)}
    return [replace(line, p=corrected.get(line.name)) for line in lines]


def _marks(lines: Sequence[Line], column: str) -> dict[str, str]:
    """The best and the second of the methods, for the defender, by the figure as it is printed; at most two share."""
    shown = {line.name: figure(column, line.value(column)) for line in lines if line.kind == "method"}
    values = {text: float(text.rstrip("%")) for text in shown.values() if text != NONE}
    up = column == "isr" or METRICS[column].better == "higher"
    first, second = [*sorted(values, key=lambda text: values[text], reverse=up), "", ""][:2]
    shares = Counter(shown.values())
    marks = {first: "best"} if shares[first] > 1 else {first: "best", second: "second"}
    some = {name: marks[text] for name, text in shown.items() if text in marks and shares[text] <= SHARED}
    return some if len(shown) > 1 else {}


def headline(table: Sequence[Part]) -> str:
    """One honest sentence on the first block: what the strongest method stopped, and the strongest control."""
    lines = table[0].lines if table else ()
    methods = [line for line in lines if line.kind == "method"]
    best = _strongest(methods)
    if best is None:
        return f"{_why_not(methods, [line for line in lines if line.kind == 'floor'])}, so nothing can be said."
    control = _strongest([line for line in lines if line.kind == "control"])
    text = f"{best.name} made {net_count(best.isr)} edits fail that work on the unprotected picture"
    if control is None:
        return f"{text}. No control was run, so noise may do the same."
    text += f"; the strongest control, {control.name}, {net_count(control.isr)}"
    if (best.isr.net or 0) <= (control.isr.net or 0):
        return f"{text}. That is no more than noise does, so nothing is shown."
    return f"{text}. The 95% interval of that share is {span(best.isr.net_low, best.isr.net_high)}."


def _why_not(methods: Sequence[Line], floors: Sequence[Line]) -> str:
    """Why no method can be compared with the unprotected pictures."""
    if not methods:
        return "No method's edits are among these"
    if not floors:
        return "The unprotected pictures were not attacked"
    for whose, lines in (("a method", methods), ("the unprotected pictures", floors)):
        if not any(line.isr.n for line in lines):
            unclear = sum(line.isr.unclear for line in lines)
            return f"The judges gave no clear verdict on any edit of {whose} ({unclear} unclear)"
    return "No edit is clear both of a method and of the unprotected picture"


def rerouted(frame: Frame) -> str:
    """Whose verdicts another model gave, and which judges are one model; "" where every judge is the one asked for."""
    sentences = []
    judges_of: dict[str, list[str]] = {}
    for judge in frame.judges:
        if others := frame.others.get(judge):
            names = " or ".join(one_line(name)[:LONGEST] for name, _ in others.most_common(3))
            share = f"{others.total()} of its {frame.answered[judge]} verdicts"
            sentences.append(f"{judge} did not answer itself: {share} are by {names}, another model.")
        judges_of.setdefault(frame.served.get(judge, ""), []).append(judge)
    for served, judges in judges_of.items():
        if served and len(judges) > 1 and any(judge in frame.others for judge in judges):
            sentences.append(
                f"{' and '.join(judges)} are one model, {one_line(served)[:LONGEST]}, so that they agree says less."
            )
    return " ".join(sentences)


def kinship(frame: Frame, editors: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Which judges are of one family, and which of the family that reads an editor's prompts: they may err alike.

    ``editors``: as :func:`sifm_core.bench.provenance` lists them.
    """
    families: dict[str, list[str]] = {}
    for judge in frame.judges:
        if family := family_of(frame.served.get(judge, ""), judge.partition(":")[2]):
            families.setdefault(family, []).append(judge)
    sentences = [
        f"{' and '.join(judges)} are of one family, {family}, and may err alike: two families that agree say more."
        for family, judges in families.items()
        if len(judges) > 1
    ]
    for editor in editors:
        readers = {family_of(reader) for reader in editor.get("text_encoders") or ()}
        name = one_line(str(editor.get("name")))[:LONGEST]
        sentences += [
            f"{judge} is of the family that reads the prompts of {name}, {family}: it may miss what misleads the "
            "editor, or be misled with it."
            for family, judges in families.items()
            for judge in judges
            if family in readers
        ]
    return sentences


def net_count(rate: Isr) -> str:
    """In how many of the pairs the protection made the edit fail."""
    return f"{round((rate.net or 0) * rate.pairs)} of {rate.pairs}"


def _strongest(some: Sequence[Line]) -> Line | None:
    return max((line for line in some if line.isr.net is not None), key=lambda line: line.isr.net or 0, default=None)


def agreements(frame: Frame) -> list[Agreement]:
    """Every pair of judges on every axis, over all records that both answered; the ground truth counts as one here."""
    pairs = []
    for axis in AXES:
        for one, two in itertools.combinations(frame.answers, 2):
            a, b = (np.asarray(frame.answers[judge][axis]) for judge in (one, two))
            both = (a >= 0) & (b >= 0)
            if both.any():
                xs, ys = a[both].tolist(), b[both].tolist()
                yes = prevalence(xs), prevalence(ys)
                pairs.append(Agreement(axis, one, two, len(xs), agreement(xs, ys), cohen_kappa(xs, ys), yes))
    return pairs


def predictors(frame: Frame) -> list[Predictor]:
    """Area under the ROC curve of each metric, in its own direction, against the consensus (Fig. 2's question)."""
    consensus, rows = np.asarray(frame.consensus), []
    for name, column in frame.metrics.items():
        sign = 1.0 if METRICS[name].better == "higher" else -1.0
        values = sign * np.asarray(column)
        both = (consensus >= 0) & ~np.isnan(values)
        rows.append(Predictor(name, auc(values[both].tolist(), (consensus[both] == 1).tolist()), int(both.sum())))
    return rows


def _mean(values: np.ndarray) -> float | None:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else None


def _most(values: np.ndarray) -> float | None:
    present = values[~np.isnan(values)]
    return float(present.max()) if len(present) else None
