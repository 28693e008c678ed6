"""Columns -> the table: one line per method and block, what is best, what differs, what the paper printed."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from ..bench.config import Layout, Paper
from ..isr import CLEAN, FAILURE_AXES, Isr, isr, worst_of
from ..metrics import METRICS
from ..stats import Interval, agreement, bootstrap, cohen_kappa, holm, mcnemar, prevalence
from ..types import Record
from .frame import AXES, TRUTH, Block, Frame

OURS = "SIFM"
"""The row that the others are tested against, when there is one."""
SIGNIFICANT = 0.05
RESAMPLED = 300
"""Pictures up to which intervals of means are found by resampling."""
SHARED = 2
"""Methods that may share a mark; what more have in common distinguishes none."""
EQUAL = 1e-9
"""Distances of prompts up to which they count as the same."""
MEANING = "ISR by the prompts' distance for the editor, quarters"
WORDS = "ISR by the share of words not in common"
_SAID = (False, True, None)
"""A frame's 0, 1 and -1."""
Series: TypeAlias = dict[str, list[tuple[str, Isr]]]
"""Lines of a plot: name -> points (position, rate), the positions as text in order."""


@dataclass(frozen=True)
class Line:
    """One method in one block: all its records there.

    ``kind``: "floor" (nothing done to the picture), "control" (noise) or "method". ``judges``: each judge's own rate;
    ``truth``: that of the renderer, or None. ``axes``: how the edits failed, counts by
    :data:`sifm_core.isr.FAILURE_AXES`; ``worst``: ISR when the attacker keeps the best of all seeds (None: one seed);
    ``groups``: ISR by category of picture (empty: one). ``metrics`` and ``fidelity`` are means over the pictures that
    have the value (None: none has), ``spread`` the metrics' 95% intervals, by picture; ``seconds`` the protection's
    mean time (None: not known), with its interval by batch in ``spread``; ``memory`` in bytes the most that protecting
    a batch took (None: not known); ``failed`` the reasons of what could not be done; ``p`` of equal success with
    :data:`OURS`, by picture and corrected after Holm for the block's lines (None: not tested).
    """

    name: str
    kind: str
    isr: Isr
    judges: Mapping[str, Isr]
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
    """The blocks of the table, in the records' order; net ISR pairs each attack with that on the clean picture."""
    block, method = np.asarray(frame.block), np.asarray(frame.method)
    found = []
    plain = [key for key in frame.blocks if not key.purifier]  # the paper has no preprocessing
    for key, b in frame.blocks.items():
        inside = np.flatnonzero(block == b)
        rows = {name: inside[method[inside] == m] for name, m in frame.methods.items()}
        lines = [_line(frame, name, where, rows.get(CLEAN)) for name, where in rows.items() if len(where)]
        lines = _tested(frame, lines, rows)
        printed: dict[str, dict[str, float]] = {}
        if key in plain and plain.index(key) < len(paper.blocks):
            columns = paper.columns
            printed = {
                name: dict(zip(columns, values, strict=False))
                for name, values in paper.blocks[plain.index(key)].rows.items()
            }
        marks = {column: _marks(lines, column) for column in layout.columns}
        found.append(Part(frame.label(key), tuple(lines), marks, printed))
    return found


def _line(frame: Frame, name: str, where: np.ndarray, floor: np.ndarray | None) -> Line:
    clusters = np.asarray(frame.image)[where]
    cells = np.asarray(frame.cell)
    paired = name != CLEAN and floor is not None and len(floor) > 0
    places = dict(zip(cells[floor].tolist(), floor.tolist(), strict=True)) if paired and floor is not None else {}
    partner = np.array([places.get(cell, -1) for cell in cells[where].tolist()]) if paired else None

    def rate(column: Sequence[int], only: np.ndarray | slice = slice(None)) -> Isr:
        said = np.asarray(column)
        base = None if partner is None else np.where(partner < 0, -1, said[partner])[only]
        return isr(answers(said[where][only]), clean=None if base is None else answers(base), clusters=clusters[only])

    metrics = {key: np.asarray(column)[where] for key, column in frame.metrics.items()}
    seconds, category = np.asarray(frame.seconds)[where], np.asarray(frame.category)[where]
    axes = Counter(np.asarray(frame.axis)[where].tolist())
    known = {n: i for n, i in frame.categories.items() if len(frame.categories) > 1 and (category == i).any()}
    return Line(
        name=name,
        kind=frame.kinds[name],
        isr=rate(frame.failed_edit),
        judges={judge: rate(frame.answers[judge]["success"]) for judge in frame.judges},
        truth=rate(frame.answers[TRUTH]["success"]) if TRUTH in frame.answers else None,
        axes={axis: axes[i] for i, axis in enumerate(FAILURE_AXES)},
        worst=_worst(frame, where, floor if paired else None) if len(frame.seeds) > 1 else None,
        groups={group: rate(frame.failed_edit, category == i) for group, i in known.items()},
        metrics={key: _mean(values) for key, values in metrics.items()},
        spread={key: _spread(values, clusters) for key, values in metrics.items() if name != CLEAN}
        | {"seconds": _spread(seconds, seconds)},  # pictures of one batch share one measurement
        fidelity={key: _mean(np.asarray(column)[where]) for key, column in frame.fidelity.items()},
        seconds=_mean(seconds),
        memory=_most(np.asarray(frame.memory)[where]),
        failed=tuple(frame.reasons.get(name, ())),
    )


def _worst(frame: Frame, where: np.ndarray, floor: np.ndarray | None) -> Isr:
    """ISR of attacks without their seed: one edit that works, with any seed, is enough for the attacker."""

    def worst(some: np.ndarray) -> dict[int, bool | None]:
        said, attack = np.asarray(frame.failed_edit)[some], np.asarray(frame.attack)[some]
        return worst_of(answers(said), attack.tolist())

    found = worst(where)
    clean = None if floor is None else worst(floor)
    images = dict(zip(np.asarray(frame.attack)[where].tolist(), np.asarray(frame.image)[where].tolist(), strict=True))
    return isr(
        list(found.values()),
        clean=None if clean is None else [clean.get(attack) for attack in found],
        clusters=[images[attack] for attack in found],
    )


def answers(codes: np.ndarray) -> list[bool | None]:
    """A frame's answers as :func:`sifm_core.isr.isr` takes them."""
    return [_SAID[code] for code in codes.tolist()]


def _spread(values: np.ndarray, clusters: np.ndarray) -> Interval | None:
    """The interval of a mean by picture: by resampling, or for many pictures, where that agrees, by their variance."""
    known = ~np.isnan(values)
    pictures, number = np.unique(clusters[known], return_inverse=True)
    values = values[known]
    if len(pictures) <= RESAMPLED:
        return bootstrap(values.tolist(), number.tolist(), draws=1000)
    off = np.bincount(number, weights=values - values.mean())
    half = 1.96 * math.sqrt(float((off**2).sum()) * len(pictures) / (len(pictures) - 1)) / len(values)
    return Interval(float(values.mean()) - half, float(values.mean()) + half)


def _tested(frame: Frame, lines: list[Line], rows: Mapping[str, np.ndarray]) -> list[Line]:
    """With p against :data:`OURS` for every other line that protects, controls too."""
    cells, said, images = (np.asarray(column) for column in (frame.cell, frame.failed_edit, frame.image))
    mine = rows.get(OURS, np.array([], int))
    ours = dict(zip(cells[mine].tolist(), answers(said[mine]), strict=True))
    tested = [line for line in lines if ours and line.kind != "floor" and line.name != OURS]
    raw = []
    for line in tested:
        where = np.array([i for i in rows[line.name].tolist() if int(cells[i]) in ours], int)
        first = [ours[cell] for cell in cells[where].tolist()]
        raw.append(mcnemar(first, answers(said[where]), images[where].tolist()).p)
    corrected = {line.name: p for line, p in zip(tested, holm(raw), strict=True)}
    return [replace(line, p=corrected.get(line.name)) for line in lines]


def _marks(lines: Sequence[Line], column: str) -> dict[str, str]:
    """The best and the second of the methods, for the defender, by the figure as it is printed; at most two share."""
    shown = {line.name: figure(column, line.value(column)) for line in lines if line.kind == "method"}
    values = {text: float(text.rstrip("%")) for text in shown.values() if text != "–"}
    up = column == "isr" or METRICS[column].better == "higher"
    first, second = [*sorted(values, key=lambda text: values[text], reverse=up), "", ""][:2]
    shares = Counter(shown.values())
    marks = {first: "best"} if shares[first] > 1 else {first: "best", second: "second"}
    some = {name: marks[text] for name, text in shown.items() if text in marks and shares[text] <= SHARED}
    return some if len(shown) > 1 else {}


def headline(found: Sequence[Part]) -> str:
    """One honest sentence on the first block: what the strongest method stopped, and the strongest control."""
    table = found[0].lines if found else ()
    best = _strongest([line for line in table if line.kind == "method"])
    if best is None:
        return "No method was compared with the unprotected pictures, so nothing can be said."
    control = _strongest([line for line in table if line.kind == "control"])
    said = f"{best.name} made {net_count(best.isr)} edits fail that work on the unprotected picture"
    if control is None:
        return f"{said}. No control was run, so noise may do the same."
    said += f"; the strongest control, {control.name}, {net_count(control.isr)}"
    if (best.isr.net or 0) <= (control.isr.net or 0):
        return f"{said}. That is no more than noise does, so nothing is shown."
    return f"{said}. The 95% interval of that share is {span(best.isr.net_low, best.isr.net_high)}."


def _strongest(some: Sequence[Line]) -> Line | None:
    return max((line for line in some if line.isr.net is not None), key=lambda line: line.isr.net or 0, default=None)


def agreements(frame: Frame) -> list[Agreement]:
    """Every pair of judges on every axis, over all records that both answered; the ground truth counts as one here."""
    found = []
    for axis in AXES:
        for one, two in itertools.combinations(frame.answers, 2):
            a, b = (np.asarray(frame.answers[judge][axis]) for judge in (one, two))
            both = (a >= 0) & (b >= 0)
            if both.any():
                xs, ys = a[both].tolist(), b[both].tolist()
                yes = prevalence(xs), prevalence(ys)
                found.append(Agreement(axis, one, two, len(xs), agreement(xs, ys), cohen_kappa(xs, ys), yes))
    return found


def predictors(frame: Frame) -> list[Predictor]:
    """Area under the ROC curve of each metric, in its own direction, against the consensus (Fig. 2's question)."""
    found = []
    for name, column in frame.metrics.items():
        sign = 1.0 if METRICS[name].better == "higher" else -1.0
        pairs = [
            (sign * value, said == 1)
            for value, said in zip(column, frame.failed_edit, strict=True)
            if said >= 0 and not math.isnan(value)
        ]
        found.append(Predictor(name, auc(pairs), len(pairs)))
    return found


def auc(pairs: Sequence[tuple[float, bool]]) -> float | None:
    """The share of (failed, working) pairs in which the failed one has the greater value, ties half; None without."""
    values = np.array([value for value, _ in pairs], dtype=float)
    labels = np.array([label for _, label in pairs], dtype=bool)
    yes, no = int(labels.sum()), int((~labels).sum())
    if not yes or not no:
        return None
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[labels].sum() - yes * (yes + 1) / 2) / (yes * no))


def plots(frame: Frame, layout: Layout, found: Sequence[Part]) -> dict[str, Series]:
    """Title -> lines of the layout's plots."""
    if not layout.plot:
        return {}
    if layout.plot == "purifier":
        return _by_purifier(frame, found)
    if layout.plot == "prompts":
        return _by_prompts(frame)
    lines = [line for line in found[0].lines if line.kind != "floor"] if found else []
    if layout.plot == "rows":
        return {"ISR by row": {"ISR": [(line.name, line.isr) for line in lines if line.kind == "method"]}}
    series: Series = {}
    for line in lines:
        record = frame.settings[line.name]
        at = record.eps if layout.plot == "eps" else _setting(record, layout.plot)
        if at is not None:
            shown = f"{at:g}" if isinstance(at, (int, float)) else str(at)
            series.setdefault(str(record.info.get("protection")), []).append((shown, line.isr))
    return {f"ISR by {layout.plot}": series}


def _setting(record: Record, name: str) -> Any:
    return {**record.info.get("loop", {}), **record.info.get("options", {})}.get(name)


def stage(purifier: str) -> tuple[str, str]:
    """(what is done, how strongly) of a chain of preprocessing: ("jpeg", "@0.5"); of a longer chain, all of it."""
    at = next((i for i, letter in enumerate(purifier) if letter in "@:"), len(purifier))
    return (purifier, "") if "," in purifier else (purifier[:at], purifier[at:])


def _by_purifier(frame: Frame, found: Sequence[Part]) -> dict[str, Series]:
    """One plot for each way of preprocessing: the rate without it, then by its strength."""
    drawn: dict[str, Series] = {}
    for name in dict.fromkeys(stage(block.purifier)[0] for block in frame.blocks if block.purifier):
        series = drawn.setdefault(name, {})
        for part, block in zip(found, frame.blocks, strict=True):
            what, strength = stage(block.purifier)
            also = [block.editor] * (len({b.editor for b in frame.blocks}) > 1)
            also += [f"{block.prompts} prompts"] * (len({b.prompts for b in frame.blocks}) > 1)
            for line in part.lines if what in ("", name) else ():
                point = (strength or what or "none", line.isr)
                series.setdefault(", ".join([line.name, *also]), []).append(point)
    return drawn


def _by_prompts(frame: Frame) -> dict[str, Series]:
    """By how far the attacker's prompt is from that of the protection: for the editor, where known, and in words."""
    meaning = np.asarray(frame.meaning)
    known = meaning[meaning > EQUAL]
    drawn = {}
    if len(known):
        drawn[MEANING] = _by_distance(frame, meaning, np.unique(np.quantile(known, (0.25, 0.5, 0.75, 1))).tolist())
    return drawn | {WORDS: _by_distance(frame, np.asarray(frame.distance), (0.5, 0.75, 1.0))}


def _by_distance(frame: Frame, distance: np.ndarray, edges: Sequence[float]) -> Series:
    """ISR of the same prompts, then up to each edge of the distance."""
    edges = (-1.0, EQUAL, *edges)
    names = ["the same", *(f"to {edge:.3g}" for edge in edges[2:])]
    columns = (frame.method, frame.cell, frame.failed_edit, frame.image)
    method, cell, said, image = (np.asarray(column) for column in columns)
    floor = method == frame.methods.get(CLEAN, -1)
    clean = dict(zip(cell[floor].tolist(), answers(said[floor]), strict=True))
    series: Series = {}
    for name, m in frame.methods.items():
        for low, high, title in zip(edges[:-1], edges[1:], names, strict=True):
            where = (method == m) & (low < distance) & (distance <= high)
            if where.any():
                rate = isr(
                    answers(said[where]),
                    clean=None if name == CLEAN else [clean.get(c) for c in cell[where].tolist()],
                    clusters=image[where].tolist(),
                )
                series.setdefault(name, []).append((title, rate))
    return series


# ---- figures as text


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}%"


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def figure(column: str, value: float | None) -> str:
    """A column's value as the paper prints it."""
    return percent(value) if column == "isr" else number(value, 2 if column == "psnr" else 4)


def title(column: str) -> str:
    """The column's name with an arrow to where protection is stronger."""
    if column == "isr":
        return "ISR ↑"
    name = {"vifp": "VIFp", "fsimc": "FSIMc"}.get(column, column.upper())
    return f"{name} {'↓' if METRICS[column].better == 'lower' else '↑'}"


def span(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{100 * low:.0f}–{100 * high:.0f}%"


def net_count(found: Isr) -> str:
    return f"{round((found.net or 0) * found.pairs)} of {found.pairs}"


def net(line: Line, found: Isr | None = None) -> str:
    found = found or line.isr
    return "–" if found.net is None else f"{percent(found.net)} ({net_count(found).replace(' of ', '/')})"


def improved(line: Line) -> str:
    """How often the protection helped the attacker."""
    if line.isr.improved is None:
        return "–"
    return f"{percent(line.isr.improved)} ({span(line.isr.improved_low, line.isr.improved_high)})"


def gigabytes(line: Line) -> str:
    """The memory that protecting took at its peak."""
    return "–" if line.memory is None else number(line.memory / 1e9)


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _most(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else None


__all__ = ["Block", "Line", "Part", "parts"]
