"""What answers mean is decided in one place: success, agreement, unclear, and which records are compared."""

from __future__ import annotations

import importlib
import io
import itertools
import pkgutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Pil

import fakes
import sifm_core
from sifm_core import report
from sifm_core.errors import SifmError
from sifm_core.fig3 import edits_that_work
from sifm_core.report.cells import rates
from sifm_core.report.compare import runs
from sifm_core.store import Store
from sifm_core.types import Record
from sifm_core.verdicts import (
    AXES,
    CLEAN,
    FAILURE_AXES,
    QUESTIONS,
    TRUTH,
    Verdict,
    cell,
    consensus,
    failure_axis,
    majority,
    net,
    works,
)

T, F, U = True, False, None


def verdict(mismatch, degradation, state="ok", judge="j"):
    return Verdict(judge, state, mismatch, degradation)


def record(method="sifm", *verdicts, info=None, **changes):
    row = ("1", "portrait", "night", "original", "e", method, 0, 0.03, "s", "p", "e")
    return replace(Record(f"{method}", *row, verdicts=verdicts, info=info or {}), **changes)


@pytest.mark.parametrize("judge", ["j", TRUTH])
def test_success_is_mismatch_or_degradation_and_half_an_answer_is_unclear_but_of_the_ground_truth(judge):
    for mismatch, degraded in itertools.product((T, F), repeat=2):
        assert verdict(mismatch, degraded, judge=judge).success is (mismatch or degraded)
    assert verdict(U, T, judge=judge).success is verdict(U, U, judge=judge).success is None
    assert [verdict(m, U, judge=judge).success for m in (T, F)] == ([T, F] if judge == TRUTH else [U, U])


def test_what_is_not_an_answer_says_nothing_whatever_it_carries():
    cut = verdict(T, T, "truncated")
    assert cut.success is None and [cut.answer(axis) for axis in AXES] == [None] * 3
    assert failure_axis([cut]) == "unclear" and not works([verdict(F, F, "truncated")])


@pytest.mark.parametrize(
    "judge, state, mismatch, degraded, word",
    [
        ("a", "ok", True, False, "mismatch"),
        ("a", "ok", False, True, "degraded"),
        ("a", "ok", True, True, "mismatch and degraded"),
        ("a", "ok", False, False, "works"),
        ("human:anna", "ok", False, None, "unclear"),
        ("a", "refused", None, None, "unclear"),
        ("miniature:renderer", "ok", False, None, "works"),
        ("miniature:renderer", "ok", True, True, "mismatch and degraded"),
        ("miniature:renderer", "error", None, None, "unclear"),
    ],
)
def test_a_verdict_has_one_word(judge, state, mismatch, degraded, word):
    assert verdict(mismatch, degraded, state, judge).word == word


def test_agreement_is_strict():
    yes, no, none = verdict(F, T), verdict(F, F), verdict(U, U, "blocked")
    assert [consensus(said) for said in ([yes, yes], [yes, no], [no, no])] == [T, F, F]
    assert [consensus(said) for said in ([], [none], [yes, none], [no, none])] == [U] * 4
    assert [works(said) for said in ([no, no], [yes, no], [no, none], [])] == [T, F, F, F]
    both = [verdict(T, F), verdict(T, T)]
    assert [consensus(both, question) for question in QUESTIONS] == [T, F]
    assert consensus([verdict(T, U)], QUESTIONS[1]) is None, "the judge could not tell"


def test_the_ground_truth_has_no_say_beside_judges_and_is_one_alone():
    truth, judge = verdict(T, T, judge=TRUTH), verdict(F, F)
    assert (consensus([judge, truth]), failure_axis([judge, truth]), works([judge, truth])) == (F, "none", T)
    assert (consensus([truth]), failure_axis([truth]), works([truth])) == (T, "both", F)
    assert consensus([verdict(U, U, "refused"), truth]) is None, "it does not stand in for a judge that is silent"


@pytest.mark.parametrize(
    "verdicts, axis",
    [
        ([], "unclear"),
        ([verdict(T, F), verdict(U, U, "blocked")], "unclear"),
        ([verdict(T, U)], "unclear"),
        ([verdict(T, F), verdict(T, T)], "mismatch"),
        ([verdict(T, T), verdict(F, T)], "degradation"),
        ([verdict(T, T), verdict(T, T)], "both"),
        ([verdict(T, F), verdict(F, T)], "mixed"),
        ([verdict(T, F), verdict(F, F)], "none"),
        ([verdict(T, U, judge=TRUTH)], "mismatch"),
        ([verdict(F, U, judge=TRUTH)], "none"),
    ],
)
def test_how_an_edit_failed_is_what_all_judges_agree_on(verdicts, axis):
    assert failure_axis(verdicts) == axis
    assert axis in FAILURE_AXES


def test_how_an_edit_failed_never_contradicts_whether_it_did():
    answers = [verdict(*said) for said in itertools.product((T, F, U), (T, F, U), ("ok", "error"))]
    for said in itertools.product(answers, repeat=2):
        kind = {T: set(FAILURE_AXES[:4]), F: {"none"}, U: {"unclear"}}[consensus(said)]
        assert failure_axis(said) in kind, said


def test_net_is_what_the_protection_caused():
    assert {(p, c): net(p, c) for p in (T, F, U) for c in (T, F, U)} == {
        **{(T, F): T, (T, T): F, (F, F): F, (F, T): F},
        **{pair: U for pair in ((T, U), (F, U), (U, T), (U, F), (U, U))},
    }


@pytest.mark.parametrize(
    "change",
    [
        {"image": "2"},
        {"prompt": "day"},
        {"prompt_kind": "unseen"},
        {"editor": "f"},
        {"seed": 1},
        {"info": {"purifier": "jpeg:50"}},
        {"info": {"protected_on": "other"}},
    ],
    ids=str,
)
def test_records_of_one_attack_share_a_cell_and_no_other_does(change):
    one = record("sifm", info={"protected_on": "e", "purifier": ""})
    assert cell(one) == cell(record(CLEAN)), "the method is no part of the attack, and one editor needs no second name"
    assert cell(replace(one, **change)) != cell(one)


def test_table_pages_sheet_and_comparison_change_together_with_what_success_means(tmp_path, monkeypatch):
    """The report's figures, cards and frames, the command line and Fig. 3 ask the same question."""
    answers = {CLEAN: [(F, F), (F, T), (F, F)], "sifm": [(F, T), (T, F), (F, T)]}
    with Store(tmp_path) as store:
        picture = store.put_image(fakes.images(1, 24))
        for method, listed in answers.items():
            for i, said in enumerate(listed):
                names = {"image": str(i), "source": picture, "protected": picture, "edited": picture}
                info = {"protection": "" if method == CLEAN else "sifm"}
                store.put_record(record(method, verdict(*said), info=info, key=f"{method}{i}", **names))

        def counted():
            made, records = report.build(store), list(store.records())
            sheet = np.asarray(Pil.open(io.BytesIO(report.grid(records, store, side=24))))
            frames = sum((sheet[28 + i * 58 - 4] == (0x4B, 0x3F, 0xAE)).all(-1).sum() // 32 for i in range(3))
            compared = runs((store, made.layout), (store, made.layout)).changes
            return {
                "table": sum(line.isr.successes for line in made.parts[0].lines),
                "page": report.page(made, store).count('<figure class="card failed">'),
                "sheet": frames,
                "compared": round(sum(change.one * change.pairs for change in compared)),
                "clip": 3 - len(edits_that_work(records, store)) + made.parts[0].line("sifm").isr.successes,
                "net": round(3 * made.parts[0].line("sifm").isr.net) + 2 * made.parts[0].line(CLEAN).isr.successes,
            }

        assert counted() == dict.fromkeys(("table", "page", "sheet", "compared", "clip", "net"), 4)
        monkeypatch.setattr(Verdict, "success", property(lambda v: v.semantic_mismatch))
        assert counted() == dict.fromkeys(("table", "page", "sheet", "compared", "clip", "net"), 1)


def test_no_module_shares_its_name_with_something_that_its_package_offers():
    """``import sifm_core.x as m`` gives the module, never a function of that name."""
    for module in pkgutil.walk_packages(sifm_core.__path__, "sifm_core."):
        if module.name.endswith("__main__"):
            continue
        try:
            found = importlib.import_module(module.name)
        except (ImportError, SifmError):  # of a package that is not installed here
            continue
        package, _, name = module.name.rpartition(".")
        assert getattr(importlib.import_module(package), name) is found, module.name


@pytest.mark.parametrize(
    "said, most, all_",
    [
        ((T, T, F), T, F),
        ((T, F, F), F, F),
        ((T, T, T), T, T),
        ((T, F, U), U, U),
        ((T, T, U), T, U),
        ((F, F, U), F, U),
        ((T, U, U), U, U),
        ((T, F), F, F),
        ((T, U), U, U),
        ((F, U), F, U),
        ((T, T, F, F), F, F),
        ((T, T, F, U), U, U),
        ((), U, U),
    ],
)
def test_a_majority_is_more_than_half_and_is_not_guessed_where_the_silent_could_turn_it(said, most, all_):
    for order in set(itertools.permutations(said)):
        verdicts = [verdict(one, F if one is not None else U, judge=f"j{i}") for i, one in enumerate(order)]
        assert (majority(verdicts), consensus(verdicts)) == (most, all_)
    truth = verdict(T, F, judge=TRUTH)
    assert majority([verdict(F, F), truth]) is F and majority([truth]) is T


def test_majority_and_all_stand_side_by_side_where_there_are_three_judges():
    def table(*columns):
        rows = [
            record(
                "sifm",
                *(verdict(said, F, judge=f"j{n}") for n, said in enumerate(row)),
                info={"protection": "SIFM"},
                image=str(i),
            )
            for i, row in enumerate(zip(*columns, strict=True))
        ]
        return report.make(rows, {}).parts[0].lines[0]

    line = table((T, T, T, F), (T, T, F, F), (T, F, T, T))
    assert (line.isr.rate, line.majority.rate) == (0.25, 0.75) and rates([line])["majority"] == ["75%"]
    assert table((T, T), (T, F)).majority is None and "majority" not in rates([table((T, T), (T, F))])
