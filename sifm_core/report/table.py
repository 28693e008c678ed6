"""Columns -> the table: one line per method and block, what is best, what differs, what the paper printed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..bench.config import Layout, Paper
from ..isr import CLEAN, Isr, isr
from ..metrics import METRICS
from ..stats import Interval, agreement, bootstrap, cohen_kappa, holm, mcnemar, prevalence
from .frame import AXES, TRUTH, Block, Frame

OURS = "SIFM"
"""The row that the others are tested against, when there is one."""
SIGNIFICANT = 0.05
RESAMPLED = 300
"""Pictures up to which intervals of means are found by resampling."""


@dataclass(frozen=True)
class Line:
    """One method in one block: all its records there.

    ``kind``: "floor" (nothing done to the picture), "control" (noise) or "method". ``judges``: each judge's own rate;
    ``truth``: that of the renderer, or None. ``metrics`` and ``fidelity`` are means over the pictures that have the
    value (None: none has), ``spread`` the metrics' 95% intervals, by picture; ``seconds`` the protection's mean time;
    ``failed`` the reasons of what could not be done; ``p`` of equal success with :data:`OURS`, by picture and corrected
    after Holm for the block's lines (None: not tested).
    """

    name: str
    kind: str
    isr: Isr
    judges: Mapping[str, Isr]
    truth: Isr | None
    metrics: Mapping[str, float | None]
    spread: Mapping[str, Interval | None]
    fidelity: Mapping[str, float | None]
    seconds: float
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
    clusters = [frame.image[i] for i in where]
    paired = name != CLEAN and floor is not None and len(floor) > 0
    cells = [frame.cell[i] for i in where]
    clean = {frame.cell[i]: i for i in floor} if paired and floor is not None else {}

    def rate(column: Sequence[bool | None]) -> Isr:
        base = [column[clean[cell]] if cell in clean else None for cell in cells] if paired else None
        return isr([column[i] for i in where], clean=base, clusters=clusters)

    metrics = {key: [_known(column[i]) for i in where] for key, column in frame.metrics.items()}
    spread = {key: _spread(values, clusters) for key, values in metrics.items() if name != CLEAN}
    return Line(
        name=name,
        kind=frame.kinds[name],
        isr=rate(frame.failed_edit),
        judges={judge: rate(frame.answers[judge]["success"]) for judge in frame.judges},
        truth=rate(frame.answers[TRUTH]["success"]) if TRUTH in frame.answers else None,
        metrics={key: _mean(values) for key, values in metrics.items()},
        spread=spread,
        fidelity={key: _mean([_known(column[i]) for i in where]) for key, column in frame.fidelity.items()},
        seconds=float(np.mean([frame.seconds[i] for i in where])),
        failed=tuple(frame.reasons.get(name, ())),
    )


def _spread(values: Sequence[float | None], clusters: Sequence[int]) -> Interval | None:
    """The interval of a mean by picture: by resampling, or for many pictures, where that agrees, by their variance."""
    known = np.array([math.nan if value is None else value for value in values])
    pictures, number = np.unique(np.array(clusters)[~np.isnan(known)], return_inverse=True)
    if len(pictures) <= RESAMPLED:
        return bootstrap(values, clusters, draws=1000)
    known = known[~np.isnan(known)]
    off = np.bincount(number, weights=known - known.mean())
    half = 1.96 * math.sqrt(float((off**2).sum()) * len(pictures) / (len(pictures) - 1)) / len(known)
    return Interval(float(known.mean()) - half, float(known.mean()) + half)


def _tested(frame: Frame, lines: list[Line], rows: Mapping[str, np.ndarray]) -> list[Line]:
    """With p against :data:`OURS` for every other line that protects, controls too."""
    ours = {frame.cell[i]: frame.failed_edit[i] for i in rows.get(OURS, ())}
    tested = [line for line in lines if ours and line.kind != "floor" and line.name != OURS]
    raw = []
    for line in tested:
        where = [i for i in rows[line.name] if frame.cell[i] in ours]
        pairs = [(ours[frame.cell[i]], frame.failed_edit[i]) for i in where]
        raw.append(mcnemar([a for a, _ in pairs], [b for _, b in pairs], [frame.image[i] for i in where]).p)
    corrected = {line.name: p for line, p in zip(tested, holm(raw), strict=True)}
    return [replace(line, p=corrected.get(line.name)) for line in lines]


def _marks(lines: Sequence[Line], column: str) -> dict[str, str]:
    """The best and the second of the methods, for the defender, by the figure as it is printed."""
    shown = {line.name: figure(column, line.value(column)) for line in lines if line.kind == "method"}
    values = {text: float(text.rstrip("%")) for text in shown.values() if text != "–"}
    up = column == "isr" or METRICS[column].better == "higher"
    first, second = [*sorted(values, key=lambda text: values[text], reverse=up), "", ""][:2]
    marks = {first: "best", second: "second"} if list(shown.values()).count(first) == 1 else {first: "best"}
    return {name: marks[text] for name, text in shown.items() if text in marks} if len(shown) > 1 else {}


def headline(found: Sequence[Part]) -> str:
    """One honest sentence on the first block: what the strongest method stopped, and the strongest control."""
    table = found[0].lines if found else ()
    best = _strongest([line for line in table if line.kind == "method"])
    if best is None:
        return "No method was compared with the unprotected pictures, so nothing can be said."
    control = _strongest([line for line in table if line.kind == "control"])
    said = f"{best.name} made {net_count(best)} edits fail that work on the unprotected picture"
    if control is None:
        return f"{said}. No control was run, so noise may do the same."
    said += f"; the strongest control, {control.name}, {net_count(control)}"
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
            a, b = (frame.answers[judge][axis] for judge in (one, two))
            both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
            if both:
                xs, ys = zip(*both, strict=True)
                yes = prevalence(xs), prevalence(ys)
                found.append(Agreement(axis, one, two, len(both), agreement(xs, ys), cohen_kappa(xs, ys), yes))
    return found


def predictors(frame: Frame) -> list[Predictor]:
    """Area under the ROC curve of each metric, in its own direction, against the consensus (Fig. 2's question)."""
    found = []
    for name, column in frame.metrics.items():
        sign = 1.0 if METRICS[name].better == "higher" else -1.0
        pairs = [
            (sign * value, bool(said))
            for value, said in zip(column, frame.failed_edit, strict=True)
            if said is not None and not math.isnan(value)
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


def curves(frame: Frame, layout: Layout, found: Sequence[Part]) -> dict[str, list[tuple[str, Isr]]]:
    """Series -> points (position, rate) of the layout's plot, the positions as text in order."""
    if not layout.plot:
        return {}
    if layout.plot == "purifier":
        return _by_purifier(frame, found)
    if layout.plot == "prompts":
        return _by_distance(frame)
    lines = [line for line in found[0].lines if line.kind != "floor"] if found else []
    if layout.plot == "rows":
        return {"ISR": [(line.name, line.isr) for line in lines if line.kind == "method"]}
    series: dict[str, list[tuple[str, Isr]]] = {}
    for line in lines:
        record = frame.settings[line.name]
        at = record.eps if layout.plot == "eps" else record.info.get("options", {}).get(layout.plot)
        if at is not None:
            series.setdefault(str(record.info.get("protection")), []).append((f"{at:g}", line.isr))
    return series


def _by_purifier(frame: Frame, found: Sequence[Part]) -> dict[str, list[tuple[str, Isr]]]:
    series: dict[str, list[tuple[str, Isr]]] = {}
    for part, block in zip(found, frame.blocks, strict=True):
        for line in part.lines:
            series.setdefault(line.name, []).append((block.purifier or "none", line.isr))
    return series


def _by_distance(frame: Frame) -> dict[str, list[tuple[str, Isr]]]:
    """ISR by how far the attacker's words are from those of the protection, in quarters."""
    edges = (0.0, 1e-9, 0.5, 0.75, 1.0)
    names = ("the same", "to 0.5", "to 0.75", "to 1")
    floor = frame.methods.get(CLEAN)
    clean = {frame.cell[i]: frame.failed_edit[i] for i in range(len(frame)) if frame.method[i] == floor}
    series: dict[str, list[tuple[str, Isr]]] = {}
    for name, m in frame.methods.items():
        for low, high, title in zip((-1.0, *edges[1:-1]), edges[1:], names, strict=True):
            where = [i for i in range(len(frame)) if frame.method[i] == m and low < frame.distance[i] <= high]
            if where:
                rate = isr(
                    [frame.failed_edit[i] for i in where],
                    clean=None if name == CLEAN else [clean.get(frame.cell[i]) for i in where],
                    clusters=[frame.image[i] for i in where],
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


def net_count(line: Line) -> str:
    return f"{round((line.isr.net or 0) * line.isr.pairs)} of {line.isr.pairs}"


def net(line: Line) -> str:
    return "–" if line.isr.net is None else f"{percent(line.isr.net)} ({net_count(line).replace(' of ', '/')})"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _mean(values: Sequence[float | None]) -> float | None:
    some = [value for value in values if value is not None]
    return sum(some) / len(some) if some else None


__all__ = ["Block", "Line", "Part", "parts"]
