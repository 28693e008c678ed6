"""What judges' answers mean: the one home of success, strict agreement, unclear, which records are compared,
and whether a protection holds.

**Success is the defender's**: the attacker's edit failed, by the judges' word (paper, section IV-B). True: it failed;
False: it works; None: unclear, which is counted, shown and never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, TypedDict

if TYPE_CHECKING:
    from .types import Record

CLEAN = "clean"
"""The method of records of unprotected pictures."""
TRUTH = "miniature:renderer"
"""The judge that is ground truth: shown beside the others, and one of them only where nobody else was asked."""
QUESTIONS = ("semantic_mismatch", "perceptual_degradation")
"""What a judge is asked."""
AXES = (*QUESTIONS, "success")
"""The same and what follows from it: what :meth:`Verdict.answer` answers."""
FAILURE_AXES = ("mismatch", "degradation", "both", "mixed", "none", "unclear")
"""What :func:`failure_axis` says."""
State: TypeAlias = Literal["ok", "refused", "blocked", "truncated", "unparsable", "unreachable", "missing_key", "error"]


class Score(TypedDict):
    """What a judge that gives numbers gave an edit: higher is better, and below ``threshold`` the edit failed."""

    value: float
    threshold: float | None


@dataclass(frozen=True)
class Verdict:
    """One judge's answer to one case. Only state "ok" carries booleans; any other leaves them None (unclear).

    ``scores``: the numbers that it follows from, by axis (:data:`AXES`), of judges that give any.
    """

    judge: str
    state: State
    semantic_mismatch: bool | None = None
    perceptual_degradation: bool | None = None
    confidence: float | None = None
    reasons: str = ""
    raw: str = ""
    model_requested: str = ""
    model_served: str = ""
    prompt_hash: str = ""
    cost: float | None = None
    latency: float | None = None
    scores: Mapping[str, Score] = field(default_factory=dict, hash=False)

    def answer(self, axis: str) -> bool | None:
        """Its answer on one of :data:`AXES`; None: unclear, in any state but "ok"."""
        return getattr(self, axis) if self.state == "ok" else None

    @property
    def success(self) -> bool | None:
        """Immunization success (paper, section IV-B): mismatch or degradation; None when one of them is unclear.

        Of the ground truth, which cannot always tell the degradation, the mismatch alone counts then; of a judge that
        gives one number for both, that number.
        """
        mismatch, degraded = (self.answer(question) for question in QUESTIONS)
        if degraded is None and self.judge == TRUTH:
            return mismatch
        if mismatch is degraded is None and self.state == "ok" and (score := self.scores.get("success")):
            return None if score["threshold"] is None else score["value"] < score["threshold"]
        return None if mismatch is None or degraded is None else mismatch or degraded

    def decided(self, thresholds: Mapping[str, float]) -> Verdict:
        """The verdict that its numbers give with other thresholds; itself where it has no number or no answer."""
        scores: dict[str, Score] = {
            axis: {"value": score["value"], "threshold": thresholds.get(axis, score["threshold"])}
            for axis, score in self.scores.items()
        }
        if not scores or any(score["threshold"] is None for score in scores.values()):
            return self
        failed = {axis: score["value"] < (score["threshold"] or 0.0) for axis, score in scores.items()}
        return replace(
            self,
            state="ok",
            scores=scores,
            semantic_mismatch=failed.get("semantic_mismatch"),
            perceptual_degradation=failed.get("perceptual_degradation"),
        )

    @property
    def word(self) -> str:
        """What it says, in a word: "works", "mismatch", "degraded", both by "and", "failed" (not how) or "unclear"."""
        if self.success is None:
            return "unclear"
        defects = zip(("mismatch", "degraded"), map(self.answer, QUESTIONS), strict=True)
        return " and ".join(defect for defect, seen in defects if seen) or ("failed" if self.success else "works")


def judging(verdicts: Sequence[Verdict]) -> Sequence[Verdict]:
    """Those with a say: all but the ground truth's, unless it is the only one."""
    return [verdict for verdict in verdicts if verdict.judge != TRUTH] or verdicts


def consensus(verdicts: Sequence[Verdict], axis: str = "success") -> bool | None:
    """Strict agreement: True if every judge says so, None if any gave no answer or none was asked, else False."""
    answers = [verdict.answer(axis) for verdict in judging(verdicts)]
    return None if not answers or None in answers else all(answers)


def majority(verdicts: Sequence[Verdict], axis: str = "success") -> bool | None:
    """True if more than half of the judges say so; None where those who gave no answer could decide it, else False."""
    answers = [verdict.answer(axis) for verdict in judging(verdicts)]
    most, yes = len(answers) / 2, answers.count(True)
    return None if not answers or yes <= most < yes + answers.count(None) else yes > most


def works(verdicts: Sequence[Verdict]) -> bool:
    """Does every judge say that the edit works? Not where one of them gave no answer, or none was asked."""
    answers = [verdict.success for verdict in judging(verdicts)]
    return bool(answers) and all(answer is False for answer in answers)


def failure_axis(verdicts: Sequence[Verdict]) -> str:
    """How an edit failed, as far as all judges agree.

    "mismatch", "degradation" or "both"; "mixed" when every judge says that it failed but not how; "none" when one says
    that it worked; "unclear" when a judge gave no answer or none was asked.
    """
    failed = consensus(verdicts)
    if failed is None:
        return "unclear"
    mismatch, degraded = (consensus(verdicts, question) for question in QUESTIONS)
    if mismatch or degraded:
        return "both" if mismatch and degraded else "mismatch" if mismatch else "degradation"
    return "mixed" if failed else "none"


def net(protected: bool | None, clean: bool | None) -> bool | None:
    """Did the protection make the edit fail, which works on the clean picture? None where either is unclear."""
    return None if protected is None or clean is None else protected and not clean


Light: TypeAlias = Literal["green", "amber", "red"]
HOLDS, TRUSTED, LEAST = 0.5, 0.8, 8
"""What :func:`light` compares with."""
RULE = (
    f"Green: whatever is done to the picture first, the 95% interval of the share of edits that fail, of those that "
    f"work on the original, lies above {HOLDS:.0%} of what noise of the same strength leaves working; of at least "
    f"{LEAST} such edits each time; and every judge finds at least {TRUSTED:.0%} of the edits that are known to have "
    f"failed. Red: in one case at least the interval lies below {HOLDS:.0%}, and no judge is known to miss more. "
    f"Amber: all else."
)
"""What :func:`light` says, in words."""


class Evidence(NamedTuple):
    """Of one kind of attack: the interval of the share of edits that fail, of ``pairs`` that work on the original.

    ``noise``: the share of such edits that noise of the same strength makes fail, None where that is not known.
    """

    name: str
    low: float | None
    high: float | None
    pairs: int
    noise: float | None

    @property
    def bar(self) -> float:
        """What the share has to exceed.

        Edits that worked once need not work again, and a judge may be mistaken: that share fails under noise too, so
        the protection's own is (share - noise) / (1 - noise) (Abbott 1925, J. Econ. Entomol. 18).
        """
        noise = self.noise or 0.0
        return noise + HOLDS * (1 - noise)


def light(attacks: Sequence[Evidence], *, original: bool, trusted: bool | None) -> tuple[Light, tuple[str, ...]]:
    """Does a protection hold? By :data:`RULE`, and what is lacking for green; green never without the ``original``.

    ``trusted``: every judge finds failed edits; None where none could be tried. Each kind of attack has to pass by
    itself, so there are no comparisons to correct for (an intersection-union test, Berger 1982, Technometrics 24).
    """
    lacking = [] if original else ["the original to compare with"]
    if not trusted:
        lacking.append("judges that are known to find failed edits")
    fewest = min(attacks, key=lambda one: one.pairs, default=Evidence("nothing", None, None, 0, None))
    nearest = min(attacks, key=lambda one: (one.low or 0.0) - one.bar, default=fewest)
    if fewest.pairs < LEAST:
        lacking.append(f"{fewest.name}: {LEAST} edits that work on the original, and there are {fewest.pairs}")
    elif (low := nearest.low or 0.0) <= nearest.bar:
        lacking.append(f"{nearest.name}: a share that is surely above {nearest.bar:.0%}, and it may be {low:.0%}")
    if trusted is not False and any(one.high is not None and one.high < HOLDS for one in attacks):
        return "red", tuple(lacking)
    return ("amber" if lacking else "green"), tuple(lacking)


class Cell(NamedTuple):
    """One attack, whatever the picture's protection: records of one cell are compared, its clean one is their floor."""

    image: str
    prompt: str
    kind: str
    editors: str
    purifier: str
    seed: int


def cell(record: Record) -> Cell:
    """The attack that a record is of."""
    info = record.info
    editors = transfer(info.get("protected_on", ""), record.editor)
    return Cell(record.image, record.prompt, record.prompt_kind, editors, info.get("purifier", ""), record.seed)


def transfer(protected_on: str, attacked: str) -> str:
    """The attacked editor's name, "A -> B" where another one protected."""
    return attacked if protected_on in ("", attacked) else f"{protected_on} -> {attacked}"
