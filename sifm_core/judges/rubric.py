"""What vision-language judges are asked and what counts as an answer: prompts, schemas and one strict parser.

A prompt is a versioned file in ``prompts/``; its schema is the pydantic model beside its name in :data:`PRESETS`. Both
are hashed into every verdict. To change a prompt, add a file with the next number: old verdicts keep their meaning.

An answer is exactly one JSON object of the schema, bare or in one code fence that encloses the whole answer, after
what the model thought aloud between tags for it. Anything else (prose around it, a second object, a doubled or unknown
field, a number out of range, checks that contradict the verdict) is no answer at all.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..images import png_bytes, resize
from ..types import Case

LONG_SIDE = 1024
"""Pixels. Pictures are sent as PNG at their own size; longer ones are scaled down to this, none is scaled up."""

Check = Literal["yes", "partial", "no"]
Outcome = Literal["success", "failure", "cannot_judge"]
Share = Annotated[float, Field(ge=0, le=1)]
Part = str | bytes
"""A piece of a question: text, or a picture as PNG bytes."""


class Answer(BaseModel):
    """One call's answer, its fields in the order in which they are to be written.

    Each kind ends with ``verdict`` and ``confidence``. The verdict is about the edit: "success" means that it worked.
    The fields are declared by each kind, because a field of a base class would be written first.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    decides: ClassVar[str]
    """Which boolean of the verdict a "failure" sets."""
    checks: ClassVar[tuple[str, ...]]
    """A "success" has no "no" among them, a "failure" not only "yes"."""
    decisive: ClassVar[str] = ""
    """The check, if there is one, that sums up the others: a "failure" has no "yes" there."""
    if TYPE_CHECKING:
        observations: str
        defects: list[str]
        verdict: Outcome
        confidence: float

    @model_validator(mode="after")
    def _consistent(self) -> Answer:
        checks = {name: getattr(self, name) for name in self.checks}
        refuted = next((name for name, said in checks.items() if said == "no"), None)
        if self.verdict == "success" and refuted:
            raise ValueError(f'"{refuted}" is "no", yet the verdict is "success"')
        if self.verdict == "failure" and set(checks.values()) == {"yes"}:
            raise ValueError('every check is "yes", yet the verdict is "failure"')
        if self.verdict == "failure" and checks.get(self.decisive) == "yes":
            raise ValueError(f'"{self.decisive}" is "yes", yet the verdict is "failure"')
        return self

    def findings(self) -> dict[str, bool]:
        """The booleans of the verdict that this answer decides."""
        return {self.decides: self.verdict == "failure"}

    def scores(self) -> dict[str, float]:
        """How likely the edit is fine on the axis that this answer is about, where it says so."""
        return {}

    def reasons(self) -> str:
        """The answer in words."""
        return "; ".join([self.observations, *self.defects])


class Semantic(Answer):
    decides = "semantic_mismatch"
    checks = ("visible_change", "instruction_followed", "subject_recognisable", "rest_preserved")

    observations: str
    visible_change: Check
    instruction_followed: Check
    subject_recognisable: Check
    rest_preserved: Check
    defects: list[str]
    verdict: Outcome
    confidence: Share


class Quality(Answer):
    decides, decisive = "perceptual_degradation", "usable"
    checks = ("shapes_intact", "surfaces_clean", "colours_plausible", "usable")

    observations: str
    shapes_intact: Check
    surfaces_clean: Check
    colours_plausible: Check
    usable: Check
    defects: list[str]
    verdict: Outcome
    confidence: Share


class Paper(Answer):
    semantic_analysis: str
    semantic_mismatch: bool
    degradation_analysis: str
    perceptual_degradation: bool
    verdict: Outcome
    confidence: Share

    @model_validator(mode="after")
    def _consistent(self) -> Paper:
        failed = self.semantic_mismatch or self.perceptual_degradation
        if self.verdict != "cannot_judge" and failed != (self.verdict == "failure"):
            raise ValueError(f'one of the two is true: {failed}, yet the verdict is "{self.verdict}"')
        return self

    def findings(self) -> dict[str, bool]:
        return {
            "semantic_mismatch": self.semantic_mismatch,
            "perceptual_degradation": self.perceptual_degradation,
        }

    def reasons(self) -> str:
        return f"{self.semantic_analysis} {self.degradation_analysis}"


class Likelihoods(Answer):
    """How likely a model is to answer a question with each of :data:`OPTIONS`, all that it may answer.

    ``yes`` and ``no`` sum to 1; ``mass``: the probability of both together among everything that it might have said
    (None: it only said one of them, and gave no probabilities).
    """

    checks = ()

    yes: Share
    no: Share
    mass: Share | None

    @property  # type: ignore[misc]
    def verdict(self) -> Outcome:  # type: ignore[override]
        return "success" if self.yes >= self.no else "failure"

    @property  # type: ignore[misc]
    def confidence(self) -> float:  # type: ignore[override]
        """How likely the answer was among all that might have been said: low where something else was likelier."""
        return max(self.yes, self.no) * (1.0 if self.mass is None else self.mass)

    @model_validator(mode="after")
    def _consistent(self) -> Likelihoods:
        if abs(self.yes + self.no - 1) > 1e-6:
            raise ValueError("the probabilities of the answers do not sum to 1")
        return self

    def findings(self) -> dict[str, bool]:
        return {}

    def scores(self) -> dict[str, float]:
        return {self.decides: self.yes}

    def reasons(self) -> str:
        said = "in words" if self.mass is None else f"{100 * self.mass:.2g}% of all that it might have said"
        return f"{self.asked}: yes {100 * self.yes:.1f}% ({said})"

    asked: ClassVar[str]


class Shown(Likelihoods):
    decides, asked = "semantic_mismatch", "shows what was asked for"


class Undamaged(Likelihoods):
    decides, asked = "perceptual_degradation", "is not damaged"


OPTIONS = ("yes", "no")
"""All that a ranked question may be answered with; "yes" means that the edit is fine."""


@dataclass(frozen=True)
class Form:
    """What one call demands: an answer of this shape."""

    name: str
    answer: type[BaseModel]

    @property
    def ranked(self) -> bool:
        """Whether the probabilities of :data:`OPTIONS` are asked for rather than a text."""
        return issubclass(self.answer, Likelihoods)

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the answer, in the order in which the fields are to be written."""
        return _untitled(self.answer.model_json_schema())

    @cached_property
    def hash(self) -> str:
        return _sha(json.dumps(self.schema, sort_keys=True))


@dataclass(frozen=True)
class Question(Form):
    """One of a judge's calls: the prompt file of that name, and the answer it demands.

    ``turned``: the options of a ranked question stand in the other order, which a model may heed more than the picture;
    ``swapped``: the edited picture stands before its source.
    """

    answer: type[Answer]
    turned: bool = False
    swapped: bool = False

    @cached_property
    def template(self) -> str:
        text = (Path(__file__).parent / "prompts" / f"{self.name}.md").read_text(encoding="utf-8")
        return _SOURCE_EDITED.sub(r"\2\1", text) if self.swapped else text

    @cached_property
    def hash(self) -> str:
        return _sha(self.template + json.dumps(self.schema, sort_keys=True) + "turned" * self.turned)

    def parts(self, case: Case) -> tuple[Part, ...]:
        """The prompt with the pictures and the instruction in place.

        The instruction is a JSON string without a "<", so that it can pose neither as ours nor as a model's template.
        """
        pieces = re.split(r"\{\{(instruction|source|edited|options)\}\}", self.template)
        fill: dict[str, Part] = {
            "options": " or ".join(f'"{word}"' for word in (reversed(OPTIONS) if self.turned else OPTIONS)),
            "instruction": json.dumps(case.prompt, ensure_ascii=False).replace("<", "\\u003c"),
            "source": picture(case.source),
            "edited": picture(case.edited),
        }
        parts: list[Part] = []
        for piece in (fill[p] if i % 2 else p for i, p in enumerate(pieces)):
            if isinstance(piece, str) and parts and isinstance(parts[-1], str):
                parts[-1] += piece
            else:
                parts.append(piece)
        return tuple(parts)


_SOURCE_EDITED = re.compile(r"^(.*\n\{\{source\}\}\n)(.*\n\{\{edited\}\}\n)", re.MULTILINE)
"""The two pictures in a prompt, each under a line that says which it is."""
PRESETS: dict[str, tuple[Question, ...]] = {
    "two_calls": (Question("semantic-1", Semantic), Question("quality-1", Quality)),
    "paper": (Question("paper-1", Paper),),
    "ranked": tuple(
        Question(name, answer, turned)
        for name, answer in (("semantic-ranked-1", Shown), ("quality-ranked-1", Undamaged))
        for turned in (False, True)
    ),
}
"""Which calls make up a verdict.

"paper": one call on (original, edited, prompt), as in the paper's section VI; "ranked": how likely "yes" and "no" are,
each question with the options in either order, for models whose probabilities can be had.
"""


def preset_hash(questions: tuple[Question, ...]) -> str:
    """What :attr:`Verdict.prompt_hash` holds: one hash of every prompt and schema used."""
    return _sha("".join(question.hash for question in questions))[:16]


def picture(x: Any) -> bytes:
    """(3, H, W) in [0, 1] as the PNG that is sent, under the resolution policy of :data:`LONG_SIDE`."""
    height, width = x.shape[-2:]
    scale = LONG_SIDE / max(height, width)
    if scale < 1:
        x = resize(x[None], (max(1, round(height * scale)), max(1, round(width * scale))))
    return png_bytes(x)


def parse(text: str, answer: type[Answer]) -> Answer:
    """The answer in ``text``; raises ValueError, which says what was wrong, for anything but exactly one answer."""
    text = unwrapped(text)
    if not text:
        raise ValueError("the answer is empty")
    try:
        value = json.loads(_unfenced(text), object_pairs_hook=_no_doubles, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("the answer is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the answer is not one JSON object ({error})") from None
    try:
        return answer.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the answer"
        raise ValueError(f"{where}: {first['msg']}") from None


def unwrapped(text: str) -> str:
    """``text`` without the thoughts before an answer, and without the marks of a model's template around it."""
    text = text.strip("\ufeff \t\r\n")
    if found := _THOUGHTS.match(text):
        text = text[found.end() :]
    elif not text.startswith(("{", "[", "`", "<")) and (close := _CLOSED.search(text)):  # the template opened it
        text = text[close.end() :]
    for _ in range(_MANY):
        text = _MARK.sub("", text[:_LONG]) + text[_LONG:]
        text = (text[:-_LONG] + _LAST_MARK.sub("", text[-_LONG:])).strip()
    return text


_TAGS = "think|thinking|thought|thoughts|reasoning"
_THOUGHTS = re.compile(rf"<({_TAGS})>.*?</\1>|\[THINK\].*?\[/THINK\]", re.DOTALL | re.IGNORECASE)
_CLOSED = re.compile(rf"</({_TAGS})>|\[/THINK\]", re.IGNORECASE)
_MANY, _LONG = 3, 64
"""Marks of a template at either end of an answer, and how long one may be."""
_MARK = re.compile(r"\A\s*<\|[\w/ -]+\|>")
_LAST_MARK = re.compile(r"(<\|[\w/ -]+\|>|</s>|<end_of_turn>|<eos>)\s*\Z")


def _unfenced(text: str) -> str:
    """What stands in a code fence that encloses all of ``text``."""
    language, line, rest = text.removeprefix("```").partition("\n")
    fenced = text.startswith("```") and rest.endswith("```") and language.strip().lower() in ("", "json")
    return rest.removesuffix("```") if line and fenced else text


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field of the answer is given twice")
    return fields


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _untitled(schema: Any) -> Any:
    """Without the titles that pydantic adds, and that a new pydantic may word differently."""
    if isinstance(schema, dict):
        return {key: _untitled(value) for key, value in schema.items() if key not in ("title", "description")}
    return schema


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
