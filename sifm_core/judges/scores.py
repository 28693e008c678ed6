"""Judges that give a number: what it means, where the line is drawn, and how a judge is named with its thresholds.

A number is the higher the better the edit; below the threshold the edit failed. Probabilities have 1/2 by themselves;
other numbers need one that was found on cases whose answer is known (:mod:`sifm_core.judges.calibration`). It stands in
the judge's name, ``MODEL#0.41,0.6`` for (mismatch, degradation) or ``MODEL#0.41`` for both together, and so in every
verdict, key and report.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import TYPE_CHECKING

from ..verdicts import QUESTIONS, Score

if TYPE_CHECKING:
    from .rubric import Answer

CHANCE = 0.5
_NUMBER = r"-?\d{1,9}(?:\.\d{1,9})?"


def parted(model: str) -> tuple[str, dict[str, float]]:
    """A model's name without its thresholds, and these by axis; empty where it has none."""
    found = re.fullmatch(rf"(.+)#({_NUMBER})(?:,({_NUMBER}))?", model, re.DOTALL)
    if not found:
        return model, {}
    if found[3] is None:
        return found[1], {"success": float(found[2])}
    return found[1], dict(zip(QUESTIONS, map(float, found.groups()[1:]), strict=True))


def named(model: str, thresholds: Mapping[str, float]) -> str:
    """The model's name with these thresholds, of 4 digits, in place of those that it has."""
    values = [thresholds[axis] for axis in ("success", *QUESTIONS) if axis in thresholds]
    return parted(model)[0] + ("#" + ",".join(f"{value:.4f}".rstrip("0").rstrip(".") for value in values)) * bool(
        values
    )


def score(value: float, threshold: float | None) -> Score:
    """A number with its threshold as a verdict keeps it."""
    return {"value": value, "threshold": threshold}


def averaged(answers: Iterable[Answer]) -> dict[str, float]:
    """The mean number of each axis over all answers that give one."""
    given: dict[str, list[float]] = {}
    for answer in answers:
        for axis, value in answer.scores().items():
            given.setdefault(axis, []).append(value)
    return {axis: fmean(values) for axis, values in given.items()}


def failed(scores: Mapping[str, Score]) -> dict[str, bool]:
    """The booleans of the verdict that these numbers decide: below the threshold, the edit failed."""
    return {
        axis: score["value"] < score["threshold"]
        for axis, score in scores.items()
        if axis in QUESTIONS and score["threshold"] is not None
    }
