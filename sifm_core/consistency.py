"""Do judges agree with people and with each other? The paper's Table I, from a run's records and annotation files.

Agreement by chance is high where nearly all edits fail, so kappa, alpha and the prevalence stand beside the raw share.
What a rater left unclear is left out pairwise. Samples of one picture depend on each other: intervals are by picture.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError
from .format import number, percent, span
from .judges.human import Annotation, HumanJudge, case_id, read_annotations
from .stats import clustered_wilson, cohen_kappa, krippendorff_alpha, prevalence
from .store import Store
from .types import Case, Record
from .verdicts import AXES as ANSWERS
from .verdicts import Verdict

SAMPLES = 150
"""The paper's (section VII-A)."""
AXES = dict(zip(ANSWERS, ("semantic mismatch", "quality degradation", "final"), strict=True))
PAPER = {
    "human-human": {"semantic_mismatch": 0.84, "perceptual_degradation": 0.79, "success": 0.76},
    "judge-judge": {"semantic_mismatch": 0.80, "perceptual_degradation": 0.70, "success": 0.74},
    "human-judge": {"semantic_mismatch": 0.73, "perceptual_degradation": 0.72, "success": 0.74},
}
"""Raw agreement in the paper's Table I: three people, Gemini 2.5 Flash and Pro, 150 samples."""


@dataclass(frozen=True)
class Agreement:
    """How far raters agree on one axis.

    ``raw`` is the share of equal answers among all ``answers``, pairs of raters on samples that both of them answered,
    with a 95% interval by picture; ``kappa`` Cohen's, the mean over the ``raters`` pairs that have one; ``alpha``
    Krippendorff's, of the whole group, between people and judges the mean over pairs; ``prevalence`` the share of
    "yes" among the answers of everyone. None: not determined.
    """

    raters: int
    samples: int
    answers: int
    raw: float | None
    low: float | None
    high: float | None
    kappa: float | None
    alpha: float | None
    prevalence: float | None


def consistency(
    raters: Mapping[str, Sequence[Verdict]], people: Iterable[str], pictures: Sequence[str]
) -> dict[str, dict[str, Agreement]]:
    """Table I: "human-human", "judge-judge", "human-judge" -> axis (see :data:`AXES`) -> agreement.

    ``raters``: each one's verdicts on the same samples; ``people``: which of them stand for people; ``pictures``: the
    picture of each sample. InputError for unknown people and for unequal lengths.
    """
    people = set(people)
    if strange := people - raters.keys():
        raise InputError(f"{', '.join(sorted(strange))}: not among the raters {', '.join(raters)}")
    for name, verdicts in raters.items():
        if len(verdicts) != len(pictures):
            raise InputError(f"{name}: expected {len(pictures)} verdicts, one per sample, but got {len(verdicts)}")
    ours = [name for name in raters if name in people]
    theirs = [name for name in raters if name not in people]
    table: dict[str, dict[str, Agreement]] = {}
    for kind, group, pairs in (
        ("human-human", ours, list(itertools.combinations(ours, 2))),
        ("judge-judge", theirs, list(itertools.combinations(theirs, 2))),
        ("human-judge", None, list(itertools.product(ours, theirs))),
    ):
        table[kind] = {}
        for axis in AXES:
            labels = {name: [verdict.answer(axis) for verdict in raters[name]] for name in raters}
            table[kind][axis] = _agreement(labels, pairs, group, pictures)
    return table


def _agreement(
    labels: Mapping[str, Sequence[bool | None]],
    pairs: Sequence[tuple[str, str]],
    group: Sequence[str] | None,
    pictures: Sequence[str],
) -> Agreement:
    both = [(labels[a], labels[b]) for a, b in pairs]
    equal, where = [], []
    for one, two in both:
        for a, b, picture in zip(one, two, pictures, strict=True):
            if a is not None and b is not None:
                equal.append(a == b)
                where.append(picture)
    shared = sum(any(a[i] is not None and b[i] is not None for a, b in both) for i in range(len(pictures)))
    interval = clustered_wilson(equal, where) if equal else None
    asked = dict.fromkeys(name for pair in pairs for name in pair)
    alphas = [krippendorff_alpha(pair) for pair in both] if group is None else []
    return Agreement(
        raters=len(pairs),
        samples=shared,
        answers=len(equal),
        raw=sum(equal) / len(equal) if equal else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        kappa=_mean([cohen_kappa(*pair) for pair in both]),
        alpha=_mean(alphas) if group is None else krippendorff_alpha([labels[name] for name in group]),
        prevalence=prevalence([label for name in asked for label in labels[name]]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


# ---- from a run


def stratified(records: Iterable[Record], n: int = SAMPLES, *, seed: int = 0) -> list[Record]:
    """n records drawn in proportion from every method, kind of prompt and category, at least one of each if n allows.

    The same seed draws the same, whatever the order of the records; those without an edit are left out, and all are
    returned where there are at most n.
    """
    if n < 1:
        raise InputError(f"samples: expected at least 1, got {n}")
    strata: dict[tuple[str, str, str], list[Record]] = {}
    for record in sorted(records, key=lambda r: hashlib.sha256(f"{seed}:{r.key}".encode()).digest()):
        if record.edited:
            strata.setdefault((record.method, record.prompt_kind, record.category), []).append(record)
    total = sum(map(len, strata.values()))
    n = min(n, total)
    taken = {name: min(1, n // len(strata)) for name in strata}
    while sum(taken.values()) < n:  # to whom most is owed
        taken[max(taken, key=lambda s: (n * len(strata[s]) / total - taken[s], s))] += 1
    return [record for name in sorted(strata) for record in strata[name][: taken[name]]]


def annotated(records: Iterable[Record], store: Store, files: Iterable[Path]) -> list[Record]:
    """The records that somebody answers for in these files; of equal cases the first."""
    answered = {annotation.case for path in files for annotation in read_annotations(path)}
    by_case: dict[str, Record] = {}
    for record in records:
        if record.edited:
            by_case.setdefault(case_id(cases([record], store)[0]), record)
    return [record for case, record in by_case.items() if case in answered]


def cases(records: Sequence[Record], store: Store) -> list[Case]:
    """What a judge or a person is shown of each record."""
    return [Case(store.get_image(r.source)[0], store.get_image(r.edited)[0], r.prompt) for r in records]


def judges_of(records: Sequence[Record]) -> dict[str, list[Verdict]]:
    """Each judge's verdicts on the records; where it was not asked, it gave no answer."""
    by_record = [{verdict.judge: verdict for verdict in record.verdicts} for record in records]
    silent = {name: Verdict(name, "unreachable", reasons="not asked") for verdicts in by_record for name in verdicts}
    return {name: [verdicts.get(name, silent[name]) for verdicts in by_record] for name in silent}


def people_of(files: Iterable[Path], shown: Sequence[Case]) -> dict[str, list[Verdict]]:
    """Each person's verdicts from annotation files (CSV or JSONL, see :mod:`sifm_core.judges.human`)."""
    people: dict[str, list[Verdict]] = {}
    for path in files:
        for annotator in dict.fromkeys(annotation.annotator for annotation in read_annotations(path)):
            judge = HumanJudge(path, annotator)
            if judge.name in people:
                raise InputError(f"{path}: {judge.name} answers in another file too; give every person a name")
            people[judge.name] = judge.judge(shown)
    return people


def annotations_of(raters: Mapping[str, Sequence[Verdict]], shown: Sequence[Case]) -> list[Annotation]:
    """All that was answered, in the form in which people answer, to keep or to analyse elsewhere."""
    names = [case_id(case) for case in shown]
    return [
        Annotation(case, rater, verdict.semantic_mismatch, verdict.perceptual_degradation, verdict.reasons)
        for rater, verdicts in raters.items()
        for case, verdict in zip(names, verdicts, strict=True)
        if verdict.state == "ok"
    ]


# ---- as text


def cells(table: Mapping[str, Mapping[str, Agreement]]) -> dict[str, list[str]]:
    """Table I as text, title -> one cell for each kind and axis, the paper's raw agreement beside ours."""
    rows = [(kind, axis, agreement) for kind, row in table.items() for axis, agreement in row.items()]
    return {
        "who": [kind for kind, *_ in rows],
        "on": [AXES[axis].split()[-1] for _, axis, _ in rows],
        "agree": [percent(agreement.raw) for *_, agreement in rows],
        "95%": [span(agreement.low, agreement.high) for *_, agreement in rows],
        "kappa": [number(agreement.kappa, 2) for *_, agreement in rows],
        "alpha": [number(agreement.alpha, 2) for *_, agreement in rows],
        "say yes": [percent(agreement.prevalence) for *_, agreement in rows],
        "samples": [str(agreement.samples) for *_, agreement in rows],
        "paper": [percent(PAPER[kind][axis]) for kind, axis, _ in rows],
    }
