"""Sheets for people, and their answers as verdicts."""

from __future__ import annotations

import csv
import re

import pytest
import torch

from sifm_core.errors import InputError
from sifm_core.images import load_image
from sifm_core.judges import load_judge
from sifm_core.judges.human import Annotation, case_id, read_annotations, write_annotations, write_sheet
from sifm_core.types import Case


def grid(seed):
    return torch.randint(256, (3, 16, 16), generator=torch.Generator().manual_seed(seed)) / 255


CASES = [Case(grid(i), grid(i + 100), f"edit {i}") for i in range(12)]


def fill(sheet, answers):
    rows = list(csv.DictReader(sheet.open(encoding="utf-8", newline="")))
    for row in rows:
        who, mismatch, degraded, note = answers.get(row["instruction"], ("anna", "", "", ""))
        row |= {"annotator": who, "semantic_mismatch": mismatch, "perceptual_degradation": degraded, "note": note}
    with sheet.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_a_filled_sheet_comes_back_as_verdicts(tmp_path):
    sheet = write_sheet(CASES, tmp_path)
    fill(
        sheet,
        {
            "edit 0": ("anna", "yes", "No", "wrong hat"),
            "edit 1": ("anna", "0", "1", ""),
            "edit 2": ("anna", "?", "no", "too dark"),
        },
    )
    verdicts = load_judge(f"human:{sheet}").judge(CASES[:4])
    assert [v.state for v in verdicts] == ["ok", "ok", "refused", "unreachable"]
    assert [v.success for v in verdicts] == [True, True, None, None]
    assert [(v.semantic_mismatch, v.perceptual_degradation) for v in verdicts[:2]] == [(True, False), (False, True)]
    assert verdicts[0].reasons == "wrong hat" and "too dark" in verdicts[2].reasons
    assert {verdict.judge for verdict in verdicts} == {"human:annotations.csv"}


def test_the_sheet_is_blind_shuffled_and_shows_the_right_pictures(tmp_path):
    sheet = write_sheet([*CASES, CASES[0]], tmp_path)
    rows = list(csv.DictReader(sheet.open(encoding="utf-8", newline="")))
    assert len(rows) == len(CASES), "one row a case"
    assert [row["instruction"] for row in rows] != [c.prompt for c in CASES]
    assert set(rows[0]) == {
        *("case", "instruction", "source", "edited", "annotator"),
        *("semantic_mismatch", "perceptual_degradation", "note"),
    }
    for row in rows:
        wanted = next(c for c in CASES if c.prompt == row["instruction"])
        assert case_id(wanted) == row["case"]
        assert torch.equal(load_image(tmp_path / row["source"])[0], wanted.source)
        assert torch.equal(load_image(tmp_path / row["edited"])[0], wanted.edited)
    with pytest.raises(InputError, match="may hold answers"):
        write_sheet(CASES, tmp_path)


def test_an_instruction_is_no_formula(tmp_path):
    sheet = write_sheet([Case(CASES[0].source, CASES[0].edited, "=1+1")], tmp_path)
    assert [row["instruction"] for row in csv.DictReader(sheet.open(encoding="utf-8", newline=""))] == ["'=1+1"]


def test_a_spreadsheet_makes_a_number_of_no_case():
    for i in range(200):
        name = case_id(Case(CASES[0].source, CASES[0].edited, f"make it {i}"))
        assert re.fullmatch("[0-9a-f]{16}", name) and name.startswith("c")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_annotations_round_trip(tmp_path, name):
    given = [
        Annotation("1", "anna", True, False, 'a "note", with\ncommas'),
        Annotation("1", "bo", None, True),
        Annotation("2", "anna", False, None),
    ]
    write_annotations(tmp_path / name, given)
    assert read_annotations(tmp_path / name) == given
    answers = [load_judge(f"human:{tmp_path / name}#{who}") for who in ("anna", "bo")]
    assert [j.name for j in answers] == ["human:anna", "human:bo"]
    with pytest.raises(InputError, match="anna, bo"):
        load_judge(f"human:{tmp_path / name}")
    with pytest.raises(InputError, match="'cy'"):
        load_judge(f"human:{tmp_path / name}#cy")


HEADER = "case,annotator,semantic_mismatch,perceptual_degradation\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (HEADER + "1,a,yes,maybe\n", "line 2.*maybe"),
        (HEADER + "1,a,yes,\n", "line 2.*both"),
        (HEADER + "1,a,yes,no\n1,a,no,no\n", "line 3.*second time"),
        ("case,annotator,semantic_mismatch\n1,a,yes\n", "perceptual_degradation"),
        (None, "expected annotations"),
    ],
)
def test_bad_annotations_name_the_line(tmp_path, text, why):
    path = tmp_path / "a.csv"
    if text:
        path.write_text(text)
    with pytest.raises(InputError, match=why):
        read_annotations(path)
    (tmp_path / "a.jsonl").write_text("[1]\n")
    with pytest.raises(InputError, match="line 1"):
        read_annotations(tmp_path / "a.jsonl")


def test_what_a_person_writes_moves_no_cursor_and_an_instruction_that_is_no_text_costs_one_case(tmp_path):
    file = tmp_path / "notes.jsonl"
    write_annotations(file, [Annotation(case_id(CASES[0]), "anna\x1b[2J", True, False, "\x1b]0;owned\x07 \u202egnorw")])
    broken = Case(CASES[1].source, CASES[1].edited, "edit \udcff")
    judge = load_judge(f"human:{file}")
    first, second = judge.judge([CASES[0], broken])
    assert (first.state, second.state) == ("ok", "error") and "UTF-8" in second.reasons
    assert all(letter.isprintable() for letter in judge.name + first.reasons)


def test_a_file_nested_without_an_end_is_refused(tmp_path):
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    with pytest.raises(InputError, match="expected annotations"):
        load_judge(f"human:{tmp_path / 'deep.jsonl'}")
