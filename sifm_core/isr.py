"""Immunization success rate: verdicts in, rate with interval, clean floor, net effect and bounds out.

**Success is the defender's**: the attacker's edit failed, by the judges' word (paper, section IV-B). An editor fails on
unprotected pictures too, so the rate alone says little: compare it with the *clean* rate, and read the *net* rate, the
share of samples whose clean edit worked and whose protected edit failed. An unclear sample (None) is counted, left out
of the rates and bounded by ``worst`` and ``best``. What there is no data for is None, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeAlias, TypeVar

from .errors import InputError, unknown
from .stats import Interval, bootstrap, clustered_wilson, holm, mcnemar, wilson
from .types import Record, Verdict

CLEAN = "clean"
"""The method of records of unprotected pictures."""
AXES = ("semantic_mismatch", "perceptual_degradation")
"""What a verdict says."""
FAILURE_AXES = ("mismatch", "degradation", "both", "mixed", "none", "unclear")
"""What :func:`failure_axis` says."""

UNCLEAR = (None, None)
K = TypeVar("K", bound=Hashable)
Success: TypeAlias = Callable[[Record], bool | None]
"""Did the edit of this record fail? None: unclear. Such as ``lambda r: consensus(r.verdicts)``."""


@dataclass(frozen=True)
class Isr:
    """``rate`` = ``successes`` / ``n``, ``n`` the clear samples; ``low``, ``high`` its interval.

    ``worst``, ``best``: the rate if every ``unclear`` sample had failed or succeeded. With clean edits to compare with,
    over the ``pairs`` that are clear on both sides: ``clean_rate``; ``net``, the share in which the protection made the
    edit fail, with its interval; ``improved``, the share in which only the protected edit worked, with its interval. So
    net - improved is the difference of the two rates on these pairs. None: no data.
    """

    rate: float | None
    n: int
    unclear: int
    successes: int
    low: float | None
    high: float | None
    worst: float | None
    best: float | None
    clean_rate: float | None = None
    pairs: int = 0
    net: float | None = None
    net_low: float | None = None
    net_high: float | None = None
    improved: float | None = None
    improved_low: float | None = None
    improved_high: float | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        """Every field, ready for JSON."""
        return asdict(self)


def isr(
    successes: Sequence[bool | None],
    *,
    clean: Sequence[bool | None] | None = None,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Isr:
    """Immunization success rate of samples (True: the edit failed, False: it worked, None: unclear).

    ``clean``: the same for the unprotected pictures, sample by sample (same picture, prompt, editor and seed).
    ``clusters``: the picture of each sample, when several prompts or seeds share one: the interval then is
    :func:`sifm_core.stats.clustered_wilson`, else Wilson's. Raises InputError when lengths differ.
    """
    for name, values in (("clean", clean), ("clusters", clusters)):
        if values is not None and len(values) != len(successes):
            raise InputError(f"{name}: expected {len(successes)} values, one per sample, but got {len(values)}")
    clear = [i for i, value in enumerate(successes) if value is not None]
    hits = [bool(successes[i]) for i in clear]
    interval = _interval(hits, clear, clusters, confidence)
    total, unclear = len(successes), len(successes) - len(clear)
    plain = Isr(
        rate=_mean(hits),
        n=len(clear),
        unclear=unclear,
        successes=sum(hits),
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        worst=sum(hits) / total if total else None,
        best=(sum(hits) + unclear) / total if total else None,
    )
    if clean is None:
        return plain
    pairs = [i for i in clear if clean[i] is not None]
    caused = [bool(successes[i]) and not clean[i] for i in pairs]
    helped = [bool(clean[i]) and not successes[i] for i in pairs]
    net = _interval(caused, pairs, clusters, confidence)
    improved = _interval(helped, pairs, clusters, confidence)
    return replace(
        plain,
        clean_rate=_mean([bool(clean[i]) for i in pairs]),
        pairs=len(pairs),
        net=_mean(caused),
        net_low=net.low if net else None,
        net_high=net.high if net else None,
        improved=_mean(helped),
        improved_low=improved.low if improved else None,
        improved_high=improved.high if improved else None,
    )


def breakdown(
    records: Iterable[Record],
    success: Success,
    by: str | Callable[[Record], Hashable] = "method",
    *,
    confidence: float = 0.95,
) -> dict[Hashable, Isr]:
    """ISR of each group of records, in the order of appearance, clustered by picture.

    ``by``: a field of :class:`Record` ("method", "category", "prompt_kind", "editor") or a function of a record, such
    as ``lambda r: (r.method, r.category)``. Records of method "clean" are the floor with which the others of the same
    picture, prompt, attacking editor, preprocessing and seed are paired; a group that holds nothing else gives the
    clean rate itself.
    """
    records = list(records)
    floor = {_attack(record): success(record) for record in records if record.method == CLEAN}
    groups: dict[Hashable, list[Record]] = {}
    for record in records:
        groups.setdefault(getattr(record, by) if isinstance(by, str) else by(record), []).append(record)
    result = {}
    for name, group in groups.items():
        protected = [record for record in group if record.method != CLEAN]
        chosen = protected or group
        result[name] = isr(
            [success(record) for record in chosen],
            clean=[floor.get(_attack(record)) for record in chosen] if protected and floor else None,
            clusters=[record.image for record in chosen],
            confidence=confidence,
        )
    return result


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same attacks: ``pairs`` that are clear for both, where only one made the edit fail.

    ``difference``: rate of ``first`` minus that of ``second``, with its interval by resampling pictures (None for fewer
    than two); ``p``: exact, two-sided, by picture (:func:`sifm_core.stats.mcnemar`); ``p_holm``: corrected for all
    comparisons made at once.
    """

    first: str
    second: str
    pairs: int
    only_first: int
    only_second: int
    difference: float | None
    low: float | None
    high: float | None
    p: float
    p_holm: float


def compare(
    records: Iterable[Record], success: Success, pairs: Iterable[tuple[str, str]], *, confidence: float = 0.95
) -> list[Comparison]:
    """Compare methods two by two, such as ``[("sifm", "noise"), ("sifm", "mist")]``, on pictures attacked alike.

    Samples are paired by picture, prompt, both editors (protecting and attacking), preprocessing and seed; those of one
    picture count as one cluster. Holm's correction covers all the ``pairs`` given: name those that were planned.
    InputError for a method that has no records.
    """
    found: dict[str, dict[tuple[Hashable, ...], bool | None]] = {}
    for record in records:
        found.setdefault(record.method, {})[(*_attack(record), _protector(record))] = success(record)
    results = []
    for first, second in pairs:
        for name in (first, second):
            if name not in found:
                raise unknown("method in these records", name, found)
        cells = [cell for cell in found[first] if cell in found[second]]
        ours, theirs = ([found[name][cell] for cell in cells] for name in (first, second))
        pictures = [cell[0] for cell in cells]
        test = mcnemar(ours, theirs, pictures)
        gaps = [None if a is None or b is None else float(a) - float(b) for a, b in zip(ours, theirs, strict=True)]
        interval = bootstrap(gaps, pictures, confidence)
        results.append(
            Comparison(
                first,
                second,
                pairs=test.n,
                only_first=test.only_first,
                only_second=test.only_second,
                difference=(test.only_first - test.only_second) / test.n if test.n else None,
                low=interval.low if interval else None,
                high=interval.high if interval else None,
                p=test.p,
                p_holm=test.p,
            )
        )
    corrected = holm([result.p for result in results])
    return [replace(result, p_holm=p) for result, p in zip(results, corrected, strict=True)]


def worst_of(successes: Sequence[bool | None], groups: Sequence[K]) -> dict[K, bool | None]:
    """The hardest test: a group (all seeds of one attack) succeeds only if every sample of it does.

    One edit that worked is enough for False; otherwise one unclear sample makes the group unclear.
    """
    members: dict[K, list[bool | None]] = {}
    for value, group in zip(successes, groups, strict=True):
        members.setdefault(group, []).append(value)
    return {group: False if False in values else None if None in values else True for group, values in members.items()}


def worst_of_seeds(records: Iterable[Record], success: Success, *, confidence: float = 0.95) -> dict[str, Isr]:
    """ISR of each method when the attacker keeps the best of all seeds that were run, attack by attack."""
    records = list(records)
    floor = [record for record in records if record.method == CLEAN]
    clean = worst_of([success(record) for record in floor], [_attack(record)[:-1] for record in floor])
    result = {}
    for method in dict.fromkeys(record.method for record in records):
        own = [record for record in records if record.method == method]
        worst = worst_of([success(record) for record in own], [(*_attack(r)[:-1], _protector(r)) for r in own])
        result[method] = isr(
            list(worst.values()),
            clean=[clean.get(cell[:-1]) for cell in worst] if method != CLEAN and clean else None,
            clusters=[cell[0] for cell in worst],
            confidence=confidence,
        )
    return result


def agreed(verdicts: Sequence[Verdict], axis: str) -> bool | None:
    """Strict agreement on one axis, "semantic_mismatch" or "perceptual_degradation": True if every judge says so.

    None when a judge gave no answer on it or none was asked. A :data:`Success` for the breakdown by failure axis:
    ``breakdown(records, lambda r: agreed(r.verdicts, "semantic_mismatch"))``.
    """
    if axis not in AXES:
        raise unknown("failure axis", axis, AXES)
    answers = [getattr(verdict, axis) if verdict.state == "ok" else None for verdict in verdicts]
    return None if not answers or None in answers else all(answers)


def failure_axes(
    records: Iterable[Record], verdicts: Callable[[Record], Sequence[Verdict]] = lambda record: record.verdicts
) -> dict[str, dict[str, int]]:
    """How the edits of each method failed: method -> how many records are on each axis of :func:`failure_axis`.

    ``verdicts``: which of a record's verdicts count, such as all but the ground truth's.
    """
    counts: dict[str, dict[str, int]] = {}
    for record in records:
        row = counts.setdefault(record.method, dict.fromkeys(FAILURE_AXES, 0))
        row[failure_axis(verdicts(record))] += 1
    return counts


def failure_axis(verdicts: Sequence[Verdict]) -> str:
    """How an edit failed, as far as all judges agree.

    "mismatch", "degradation" or "both"; "mixed" when every judge says that it failed but not how; "none" when one says
    that it worked; "unclear" when a judge gave no answer or none was asked.
    """
    return axis_of([(v.semantic_mismatch, v.perceptual_degradation) if v.state == "ok" else UNCLEAR for v in verdicts])


def axis_of(answers: Sequence[tuple[bool | None, bool | None]]) -> str:
    """:func:`failure_axis` of the judges' (mismatch, degradation)."""
    if not answers or any(None in answer for answer in answers):
        return "unclear"
    mismatch, degradation = (all(axis) for axis in zip(*answers, strict=True))
    if mismatch or degradation:
        return "both" if mismatch and degradation else "mismatch" if mismatch else "degradation"
    return "mixed" if all(map(any, answers)) else "none"


def _interval(
    values: Sequence[bool], where: Sequence[int], clusters: Sequence[Hashable] | None, confidence: float
) -> Interval | None:
    if not values:
        return None
    if clusters is None:
        return wilson(sum(values), len(values), confidence)
    return clustered_wilson(values, [clusters[i] for i in where], confidence)


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _attack(record: Record) -> tuple[Hashable, ...]:
    """What the attacker did; the unprotected picture of the same attack is the floor, whatever editor protects."""
    return record.image, record.prompt, record.editor, record.info.get("purifier", ""), record.seed


def _protector(record: Record) -> str:
    return str(record.info.get("protected_on", record.editor))
