"""How far a judge can be trusted: its answers to cases whose answer is known, to show beside every ISR.

Four gold controls are made of each clean edit: the edit itself, the source unedited, pure noise, and an edit made with
another instruction.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import InputError
from ..format import percent
from ..rates import Isr
from ..stats import Corrected, Counted, Interval, clustered_wilson, independent, rogan_gladen
from ..types import Case, Judge, OnStep
from ..verdicts import AXES, TRUTH, Score, Verdict, consensus, majority

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Gold:
    """A case whose answer is known; None where it is not, and then it is not counted.

    Controls of one ``picture`` depend on each other: they are one cluster in every interval.
    """

    kind: str
    case: Case
    semantic_mismatch: bool | None
    perceptual_degradation: bool | None
    picture: int

    @property
    def success(self) -> bool | None:
        known = (self.semantic_mismatch, self.perceptual_degradation)
        return True if True in known else None if None in known else False


@dataclass(frozen=True)
class Rate:
    """``right`` of ``n`` answers, with a 95% interval by picture; ``value`` is None where n is 0."""

    right: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float | None:
        return self.right / self.n if self.n else None

    @property
    def counted(self) -> Counted:
        """The independent answers that tell as much."""
        return independent(self.right / self.n, Interval(self.low, self.high)) if self.n else Counted(0.0, 0.0)

    def __str__(self) -> str:
        if not self.n:
            return "– (none known)"
        return f"{percent(self.value)} ({self.right}/{self.n}, 95% {percent(self.low)}–{percent(self.high)})"


@dataclass(frozen=True)
class Calibration:
    """One judge on gold controls.

    ``sensitivity`` and ``specificity`` by axis (see :data:`AXES`): the share of cases with and without the defect that
    the judge answers rightly; ``by_kind``: of each kind of control, the share that the judge says failed (what would be
    a success of the immunization); ``unclear``: cases without an answer, left out of every rate; ``same``: by way of
    asking once more (:func:`others_of`) and axis, the share of cases that it answers alike.
    """

    judge: str
    n: int
    unclear: int
    sensitivity: Mapping[str, Rate]
    specificity: Mapping[str, Rate]
    by_kind: Mapping[str, Rate]
    same: Mapping[str, Mapping[str, Rate]] = field(default_factory=dict)

    def corrected(self, raw: Isr) -> Corrected | None:
        """The judge's own rate without its errors on such cases as these controls; None where that cannot be told.

        Controls of one picture depend on each other, and so do a picture's samples: the interval counts them for less.
        """
        if raw.rate is None or raw.low is None or raw.high is None:
            return None
        found = independent(raw.rate, Interval(raw.low, raw.high))
        return rogan_gladen(found, self.sensitivity["success"].counted, self.specificity["success"].counted)

    def sentence(self) -> str:
        """What to read beside an ISR that this judge had a part in."""
        finds, clears = self.sensitivity["success"], self.specificity["success"]
        said = (
            f"{self.judge} on {self.n} gold controls: finds {finds} of failed edits and clears {clears} of sound ones"
        )
        said += "".join(f"; {way}, it says the same of {rates['success']}" for way, rates in self.same.items())
        return said + (f"; {self.unclear} unclear" if self.unclear else "")


def gold_controls(cases: Sequence[Case], wrong_edits: Sequence[Tensor], *, seed: int = 0) -> list[Gold]:
    """Four controls for each case.

    ``cases``: sources with their *clean* edits; ``wrong_edits`` (3, H, W): clean edits of the same sources with another
    instruction. Editors fail by themselves at times, so where a case has its truth, the labels of both edits come from
    it; without, a clean edit is taken to be right, and the specificity found is a lower bound.
    """
    import torch

    if len(cases) != len(wrong_edits):
        raise InputError(f"expected one wrong edit for each case, got {len(wrong_edits)} for {len(cases)}")
    golds = []
    for i, (case, wrong) in enumerate(zip(cases, wrong_edits, strict=True)):
        noise = torch.rand(case.source.shape, generator=torch.Generator().manual_seed(seed + i))
        golds += [
            _edit("clean edit", case, case.edited, (False, False), i),
            Gold("unedited", _with(case, case.source), True, False, i),
            Gold("noise", _with(case, noise), True, True, i),
            _edit("wrong instruction", case, wrong, (True, False), i),
        ]
    return golds


AGAIN, SWAPPED = "asked again", "shown the edit before its source"


def others_of(judge: Judge) -> dict[str, Judge]:
    """Ways of asking a judge the same once more, which ought to change nothing: a second time, and where it is shown
    both pictures in one prompt, with these in the other order."""
    from .vlm import VlmJudge

    if isinstance(judge, VlmJudge):
        return {AGAIN: judge.again(), SWAPPED: judge.swapped()}
    return {AGAIN: judge}


def alike(golds: Sequence[Gold], first: Sequence[Verdict], second: Sequence[Verdict]) -> dict[str, Rate]:
    """By axis, how many of the cases that both columns answer they answer alike."""
    found = {}
    for axis in AXES:
        pairs = [
            (one == other, gold.picture)
            for gold, *both in zip(golds, first, second, strict=True)
            for one, other in [[getattr(verdict, axis) for verdict in both]]
            if one is not None and other is not None
        ]
        found[axis] = _rate(pairs)
    return found


def calibrate(judge: Judge, golds: Sequence[Gold], *, on_step: OnStep | None = None) -> Calibration:
    """Ask the judge about every control and count."""
    return counted(judge.name, golds, judge.judge([gold.case for gold in golds], on_step=on_step))


UNANIMOUS, MAJORITY = "all judges", "most judges"
"""How several judges' answers are taken together (:func:`sifm_core.verdicts.consensus`, ``majority``)."""


def panel(how: str, judges: Iterable[str]) -> str:
    """What a calibration of several judges together is kept under."""
    return f"{how}: {' + '.join(sorted(judges))}"


Columns: TypeAlias = Mapping[str, Sequence[Verdict]]
"""Judge -> its verdicts on the same controls."""


def together(golds: Sequence[Gold], columns: Columns, more: Mapping[str, Columns] | None = None) -> list[Calibration]:
    """What the controls say of several judges together: all agreeing, and of three or more the majority.

    Counted of their joint answers to the same controls, so that errors which they share count as what they are. Empty
    for fewer than two. ``more``: way of asking once more -> the same judges' answers, of those that can be so asked.
    """
    judges = [judge for judge in columns if judge != TRUTH]
    ways = {UNANIMOUS: consensus, MAJORITY: majority} if len(judges) > 2 else {UNANIMOUS: consensus}
    found = []
    for how, decide in ways.items() if len(judges) > 1 else ():

        def joint(said: Columns, how: str = how, decide: Any = decide) -> list[Verdict]:
            rows = zip(*(said[judge] for judge in judges), strict=True)
            return [_joint(how, {question: decide(row, question) for question in AXES}) for row in rows]

        verdicts = joint(columns)
        others = {way: {**columns, **said} for way, said in (more or {}).items()}
        same = {way: alike(golds, verdicts, joint(said)) for way, said in others.items()}
        found.append(replace(counted(panel(how, judges), golds, verdicts), same=same))
    return found


def _joint(how: str, said: Mapping[str, bool | None]) -> Verdict:
    """A verdict that has this success: what several judges agree on need not follow from the axes they agree on."""
    success = said["success"]
    if success is None:
        return Verdict(how, "error")
    score: Score = {"value": float(not success), "threshold": 0.5}
    return Verdict(how, "ok", scores={"success": score})


def fitted(golds: Sequence[Gold], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """By axis the threshold of a judge's numbers that tells failed controls from sound ones best.

    Best: the greatest sum of sensitivity and specificity (Youden 1950), and of equal ones the middle of the widest gap.
    Empty where the judge gives no numbers; an axis without both kinds of control has none.
    """
    found = {}
    for axis in AXES:
        known = [
            (verdict.scores[axis]["value"], failed)
            for gold, verdict in zip(golds, verdicts, strict=True)
            if axis in verdict.scores and (failed := getattr(gold, axis)) is not None
        ]
        if {failed for _, failed in known} == {True, False}:
            found[axis] = _cut(known)
    return found


def cross_fitted(golds: Sequence[Gold], verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Each verdict with the thresholds that are found on the controls of all other pictures.

    So what is counted of them says how the thresholds do on pictures that they were not made for.
    """
    others = {}
    for picture in {gold.picture for gold in golds}:
        rest = [i for i, gold in enumerate(golds) if gold.picture != picture]
        others[picture] = fitted([golds[i] for i in rest], [verdicts[i] for i in rest])
    return [verdict.decided(others[gold.picture]) for gold, verdict in zip(golds, verdicts, strict=True)]


def counted(judge: str, golds: Sequence[Gold], verdicts: Sequence[Verdict]) -> Calibration:
    """What a judge's verdicts on controls say of it."""
    answers: dict[tuple[str, str], list[tuple[bool, int]]] = {}
    for gold, verdict in zip(golds, verdicts, strict=True):
        for axis in AXES:
            known, said = getattr(gold, axis), getattr(verdict, axis)
            if verdict.success is None or said is None:
                continue
            if known is not None:
                group = "sensitivity" if known else "specificity"
                answers.setdefault((group, axis), []).append((said == known, gold.picture))
            if axis == "success":
                answers.setdefault(("kind", gold.kind), []).append((said, gold.picture))

    def rate(group: str, name: str) -> Rate:
        return _rate(answers.get((group, name), []))

    return Calibration(
        judge=judge,
        n=len(golds),
        unclear=sum(verdict.success is None for verdict in verdicts),
        sensitivity={axis: rate("sensitivity", axis) for axis in AXES},
        specificity={axis: rate("specificity", axis) for axis in AXES},
        by_kind={kind: rate("kind", kind) for kind in dict.fromkeys(gold.kind for gold in golds)},
    )


def _rate(found: Sequence[tuple[bool, int]]) -> Rate:
    """Of (right, picture) pairs."""
    right, pictures = [value for value, _ in found], [picture for _, picture in found]
    return Rate(sum(right), len(right), *clustered_wilson(right, pictures))


def _cut(known: Sequence[tuple[float, bool]]) -> float:
    """Where to cut numbers, below which a case is said to have failed, given which have."""
    values = sorted({value for value, _ in known})
    failed = [value for value, bad in known if bad]
    sound = [value for value, bad in known if not bad]
    between = [((low + high) / 2, high - low) for low, high in itertools.pairwise(values)]
    cuts = [(values[0], 0.0), *between, (math.nextafter(values[-1], math.inf), 0.0)]

    def right(cut: float) -> float:
        return sum(v < cut for v in failed) / len(failed) + sum(v >= cut for v in sound) / len(sound)

    return max(cuts, key=lambda cut: (round(right(cut[0]), 12), cut[1]))[0]


def _with(case: Case, edited: Tensor) -> Case:
    return Case(case.source, edited, case.prompt, case.truth)


def _edit(kind: str, case: Case, edited: Tensor, presumed: tuple[bool, bool], picture: int) -> Gold:
    known: tuple[bool | None, bool | None] = presumed if case.truth is None else case.truth.check(edited)[:2]
    return Gold(kind, _with(case, edited), *known, picture)
