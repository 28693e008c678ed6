"""People as judges: a blind sheet to fill in, and its answers as verdicts.

:func:`write_sheet` writes pictures and a CSV in random order that says nothing of methods. People fill in ``annotator``
and yes, no or ? (cannot judge) for both questions. ``load_judge("human:annotations.csv#anna")`` answers from it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..images import png_bytes, to_uint8, write_atomically
from ..types import Case, Judge, OnStep, State, Step, Verdict
from .cases import case_problem
from .redaction import shown

_WORDS: dict[str, bool | None] = {
    "yes": True,
    "true": True,
    "1": True,
    "no": False,
    "false": False,
    "0": False,
    "?": None,
}
QUESTIONS = ("semantic_mismatch", "perceptual_degradation")
SAID = {"yes": True, "no": False, "?": None}
"""What a person can say to each question on a page."""
_CASE = re.compile(r"[0-9a-f]{16}")
_WRITING = threading.Lock()
NOTE = 4000
"""Characters of a note that are shown, at most."""


@dataclass(frozen=True)
class Annotation:
    """What one person said of one case; None: the person cannot judge it."""

    case: str
    annotator: str
    semantic_mismatch: bool | None
    perceptual_degradation: bool | None
    note: str = ""


def case_id(case: Case) -> str:
    """What names a case on a sheet: a hash of its pictures' 8-bit pixels and its instruction.

    16 hex digits that begin with "c": a spreadsheet makes a number of none.
    """
    digest = hashlib.sha256(case.prompt.encode())
    for picture in (case.source, case.edited):
        pixels = to_uint8(picture)
        digest.update(b"%dx%d" % pixels.shape[:2] + pixels.tobytes())
    return "c" + digest.hexdigest()[:15]


def write_sheet(cases: Sequence[Case], folder: str | os.PathLike[str], *, seed: int = 0) -> Path:
    """Write the pictures and ``annotations.csv`` to fill in, one row a case in random order; returns the CSV's path."""
    folder = Path(folder)
    sheet = folder / "annotations.csv"
    if sheet.exists():
        raise InputError(f"{sheet} exists and may hold answers; choose another folder")
    named = sorted({case_id(case): case for case in cases}.items())
    random.Random(seed).shuffle(named)
    for name, case in named:
        write_atomically(folder / f"{name}-source.png", png_bytes(case.source))
        write_atomically(folder / f"{name}-edited.png", png_bytes(case.edited))
    header = ["case", "instruction", "source", "edited", "annotator", *QUESTIONS, "note"]
    said = {
        n: "'" * c.prompt.startswith(("=", "+", "-", "@")) + c.prompt for n, c in named
    }  # a formula to spreadsheets
    rows = [[n, said[n], f"{n}-source.png", f"{n}-edited.png", "", "", "", ""] for n, _ in named]
    with open(sheet, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return sheet


def read_annotations(path: str | os.PathLike[str]) -> list[Annotation]:
    """The answers in a CSV or JSONL file; rows whose two answers are both empty are left out.

    Raises InputError, which names the line, for an unknown answer, a missing column, half an answer, or two answers of
    one person to one case.
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".jsonl":
                rows = [(i, json.loads(line)) for i, line in enumerate(file, 1) if line.strip()]
            else:
                rows = list(enumerate(csv.DictReader(file), 2))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise InputError(f"{path}: expected annotations as CSV or JSONL ({error})") from None
    found: dict[tuple[str, str], Annotation] = {}
    for line, row in rows:
        where = f"{path}, line {line}"
        if not isinstance(row, dict) or not {"case", *QUESTIONS} <= row.keys():
            raise InputError(f"{where}: expected the columns case, annotator, {', '.join(QUESTIONS)}")
        said = [_word(row[question]) for question in QUESTIONS]
        if said == ["", ""]:
            continue
        if not set(said) <= _WORDS.keys():
            raise InputError(f'{where}: expected "yes", "no" or "?" for both questions, got {said}')
        mismatch, degraded = (_WORDS[word] for word in said)
        who, note = str(row.get("annotator") or ""), str(row.get("note") or "")
        answer = Annotation(str(row["case"]), who, mismatch, degraded, note)
        if (key := (answer.case, answer.annotator)) in found:
            raise InputError(f"{where}: {answer.annotator or 'someone'} answers case {answer.case} a second time")
        found[key] = answer
    return list(found.values())


def write_annotations(path: str | os.PathLike[str], annotations: Iterable[Annotation]) -> None:
    """Write answers as CSV or, where the name ends in .jsonl, as JSON lines; :func:`read_annotations` reads both."""
    path, rows = Path(path), [asdict(annotation) for annotation in annotations]
    with open(path, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row | {q: _say(row[q]) for q in QUESTIONS}) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, [f.name for f in fields(Annotation)])
            writer.writeheader()
            writer.writerows(row | {q: _say(row[q]) for q in QUESTIONS} for row in rows)


def answer_of(body: Any) -> Annotation:
    """What a page sends of one case as plain data: ``case``, ``annotator``, a word for each question, ``note``.

    Raises ValueError, which says what was expected.
    """
    given = body if isinstance(body, dict) else {}
    case, said = str(given.get("case", "")), [str(given.get(question)) for question in QUESTIONS]
    if not _CASE.fullmatch(case) or not all(word in SAID for word in said):
        raise ValueError(f'expected a case and "yes", "no" or "?" for {" and ".join(QUESTIONS)}')
    note = given.get("note", "")
    if not isinstance(note, str) or len(note) > 500:
        raise ValueError("note: expected at most 500 characters")
    return Annotation(case, name_of(given.get("annotator", "")), SAID[said[0]], SAID[said[1]], note)


def name_of(who: Any) -> str:
    """A person's name as answers have it; ValueError for what is none."""
    if not isinstance(who, str) or not re.fullmatch(r"[\w .-]{1,40}", who.strip()):
        raise ValueError("annotator: expected a name of 1 to 40 letters, digits, spaces, dots or dashes")
    return who.strip().lower()


def answers_in(file: Path) -> list[Annotation]:
    """The answers in a file that may not be there yet."""
    return read_annotations(file) if file.exists() else []


def add_answer(file: Path, answer: Annotation) -> None:
    """Write one more answer down, in place of this person's earlier one to this case; the file is whole or as before.

    Threads may do so at the same time, other programs not.
    """
    with _WRITING:
        others = [a for a in answers_in(file) if (a.case, a.annotator) != (answer.case, answer.annotator)]
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f"draft-{file.name}")
        write_annotations(draft, [*others, answer])
        os.replace(draft, file)


def left_for(who: str, cases: Iterable[str], answers: Iterable[Annotation], where: str) -> list[str]:
    """The cases that a person has not judged yet, in an order of their own that says nothing of methods."""
    done = {answer.case for answer in answers if answer.annotator == who}
    left = sorted(case for case in cases if case not in done)
    random.Random(f"{who} {where}").shuffle(left)
    return left


class HumanJudge:
    """Answers from a person's annotations; a case that was not annotated stays unclear."""

    def __init__(self, path: str | os.PathLike[str], annotator: str | None = None) -> None:
        answers = read_annotations(path)
        people = sorted({answer.annotator for answer in answers})
        if annotator is None and len(people) > 1:
            raise InputError(
                f"{path} holds several people's answers: choose one as human:{path}#NAME ({', '.join(people)})"
            )
        if annotator is not None and annotator not in people:
            raise InputError(f"{path} holds no answers of {annotator!r}; it has {', '.join(people) or 'nobody'}")
        self.name = f"human:{shown(annotator or Path(path).name, NOTE)}"
        self.served = hashlib.sha256(repr(answers).encode()).hexdigest()[:12]
        self._answers = {a.case: a for a in answers if annotator is None or a.annotator == annotator}

    def judge(self, cases: Sequence[Case], *, on_step: OnStep | None = None) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for case in cases:
            problem = case_problem(case)
            verdicts.append(self._verdict("error", reasons=problem) if problem else self._judge_one(case_id(case)))
            if on_step:
                on_step(Step("judge", len(verdicts), len(cases)))
        return verdicts

    def _judge_one(self, name: str) -> Verdict:
        answer = self._answers.get(name)
        if answer is None:
            return self._verdict("unreachable", reasons=f"case {name} has not been annotated")
        if answer.semantic_mismatch is None or answer.perceptual_degradation is None:
            return self._verdict("refused", reasons=f"cannot judge: {shown(answer.note, NOTE)}")
        return self._verdict(
            "ok",
            semantic_mismatch=answer.semantic_mismatch,
            perceptual_degradation=answer.perceptual_degradation,
            reasons=shown(answer.note, NOTE),
        )

    def _verdict(self, state: State, **given: Any) -> Verdict:
        return Verdict(self.name, state, model_requested=self.name, model_served=self.name, **given)


def load(model: str, *, base_url: str | None = None, annotator: str | None = None) -> Judge:
    """``model``: the file with the annotations, or FILE#ANNOTATOR."""
    if base_url:
        raise InputError(f"human judges are read from a file, but got the address {base_url!r}")
    path, hash_, name = model.partition("#")
    return HumanJudge(path, name if hash_ else annotator)


def _word(value: Any) -> str:
    return str("" if value is None else value).strip().lower()


def _say(value: bool | None) -> str:
    return "?" if value is None else "yes" if value else "no"
