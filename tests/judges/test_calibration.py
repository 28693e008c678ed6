"""Gold controls and what they say about a judge."""

from __future__ import annotations

import re

import pytest
import torch

from judges.servers import BEHAVIOURS, FakeServer, Response, case
from sifm_core import controls
from sifm_core.errors import InputError
from sifm_core.judges import load_judge
from sifm_core.judges.calibration import (
    AGAIN,
    AXES,
    SWAPPED,
    UNANIMOUS,
    Gold,
    alike,
    calibrate,
    gold_controls,
    others_of,
    panel,
    together,
)
from sifm_core.judges.rubric import PRESETS
from sifm_core.store import Store
from sifm_core.types import Case, Verdict


def picture(value):
    return torch.full((3, 16, 16), value)


CASES = [Case(picture(0.1), picture(0.5), f"edit {i}") for i in range(5)]
WRONG = [picture(0.9)] * 5


class Fake:
    """Says what ``rule(case)`` says: (mismatch, degraded), or None for no answer."""

    name = "fake:rule"

    def __init__(self, rule):
        self.rule = rule

    def judge(self, cases, *, on_step=None):
        said = [self.rule(case) for case in cases]
        return [
            Verdict(self.name, "blocked")
            if answer is None
            else Verdict(self.name, "ok", semantic_mismatch=answer[0], perceptual_degradation=answer[1])
            for answer in said
        ]


def right(case):
    noisy = case.edited.std() > 0.1
    return bool(noisy or not torch.equal(case.edited, picture(0.5))), bool(noisy)


def test_a_perfect_judge_is_called_perfect():
    golds = gold_controls(CASES, WRONG)
    assert [g.kind for g in golds[:4]] == ["clean edit", "unedited", "noise", "wrong instruction"]
    found = calibrate(Fake(right), golds)
    assert (found.judge, found.n, found.unclear) == ("fake:rule", 20, 0)
    assert {axis: (found.sensitivity[axis].n, found.specificity[axis].n) for axis in AXES} == {
        "semantic_mismatch": (15, 5),
        "perceptual_degradation": (5, 15),
        "success": (15, 5),
    }
    for axis in AXES:
        assert found.sensitivity[axis].value == found.specificity[axis].value == 1
        assert found.specificity[axis].low < 1
    assert {kind: rate.value for kind, rate in found.by_kind.items()} == {
        "clean edit": 0,
        "unedited": 1,
        "noise": 1,
        "wrong instruction": 1,
    }


def test_a_judge_that_always_says_yes_has_no_specificity():
    found = calibrate(Fake(lambda case: (True, True)), gold_controls(CASES, WRONG))
    assert all(found.sensitivity[axis].value == 1 and found.specificity[axis].value == 0 for axis in AXES)


def test_no_answer_is_counted_and_scores_nothing():
    found = calibrate(Fake(lambda case: None if case.edited.std() > 0.1 else right(case)), gold_controls(CASES, WRONG))
    assert found.unclear == 5
    assert found.sensitivity["perceptual_degradation"].value is None
    assert found.by_kind["noise"].value is None and found.by_kind["noise"].n == 0
    assert found.sensitivity["semantic_mismatch"].n == 10


def test_labels_come_from_the_truth_where_there_is_one():
    class Truth:
        def check(self, edited):
            return True, None, "the clean edit failed by itself"

    cases = [Case(picture(0.1), picture(0.5), "edit", Truth())]
    golds = gold_controls(cases, WRONG[:1])
    clean = golds[0]
    assert (clean.semantic_mismatch, clean.perceptual_degradation, clean.success) == (True, None, True)
    assert calibrate(Fake(right), golds).specificity["semantic_mismatch"].n == 0


def test_noise_differs_from_case_to_case_and_repeats_with_its_seed():
    first, again, other = (gold_controls(CASES, WRONG, seed=s) for s in (0, 0, 1))
    noise = [[g.case.edited for g in golds if g.kind == "noise"] for golds in (first, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(noise[0], noise[1], strict=True))
    assert not torch.equal(noise[0][0], noise[0][1]) and not torch.equal(noise[0][0], noise[2][0])


def test_a_wrong_number_of_wrong_edits_is_refused():
    with pytest.raises(InputError, match="4 for 5"):
        gold_controls(CASES, WRONG[:4])


def test_several_judges_together_are_counted_by_their_joint_answers_so_that_shared_errors_count():
    """Two judges who find 8 of 10 failed edits each: the same 8, or others."""
    golds = [Gold("k", None, i < 10, False, i) for i in range(20)]

    def column(judge, missed):
        return [Verdict(judge, "ok", gold.semantic_mismatch and gold.picture not in missed, False) for gold in golds]

    alike = {
        "a": column("a", {0, 1}),
        "b": column("b", {0, 1}),
        "miniature:renderer": column("miniature:renderer", set()),
    }
    apart = {"a": column("a", {0, 1}), "b": column("b", {2, 3})}
    (one,), (other,) = together(golds, alike), together(golds, apart)
    assert one.judge == other.judge == panel(UNANIMOUS, ["b", "a"]) == "all judges: a + b"
    assert (one.sensitivity["success"].value, other.sensitivity["success"].value) == (0.8, 0.6)
    assert one.specificity["success"].value == 1.0 and other.sensitivity["semantic_mismatch"].n == 0
    three = together(golds, apart | {"c": column("c", set())})
    assert [t.judge for t in three] == ["all judges: a + b + c", "most judges: a + b + c"]
    assert [t.sensitivity["success"].value for t in three] == [0.6, 1.0]
    assert together(golds, {"a": column("a", set())}) == []
    half = apart | {"b": [Verdict("b", "blocked")] * 20}
    assert together(golds, half)[0].unclear == 20


# ---- asked once more


class Fickle(Fake):
    """Changes its mind about every fifth case each time it is asked."""

    def __init__(self):
        super().__init__(right)
        self.times = 0

    def judge(self, cases, *, on_step=None):
        self.times += 1
        verdicts = super().judge(cases)
        fifth = range(self.times % 5, len(cases), 5) if self.times > 1 else ()
        return [
            Verdict(v.judge, "ok", not v.semantic_mismatch, v.perceptual_degradation) if i in fifth else v
            for i, v in enumerate(verdicts)
        ]


def test_a_judge_that_changes_its_mind_about_every_fifth_case_is_said_to():
    judge, golds = Fickle(), gold_controls(CASES, WRONG)
    asked = [gold.case for gold in golds]
    first, (way, other) = judge.judge(asked), *others_of(judge).items()
    (found,) = controls.known("fake:rule", judge.name, golds, first, {way: other.judge(asked)})
    rates = found.same[AGAIN]
    assert {axis: (rate.right, rate.n) for axis, rate in rates.items()} == {
        "semantic_mismatch": (16, 20),
        "perceptual_degradation": (20, 20),
        "success": (17, 20),  # noise stays a failure, by its degradation
    }
    assert rates["success"].low < 0.85 < rates["success"].high
    assert "; asked again, it says the same of 85% (17/20, 95% " in found.sentence()


def test_cases_without_an_answer_are_neither_alike_nor_not():
    golds = gold_controls(CASES, WRONG)
    blocked, answered = [Verdict("a", "blocked")] * 20, Fake(right).judge([gold.case for gold in golds])
    found = alike(golds, blocked, answered)["success"]
    assert (found.n, found.value) == (0, None)


@pytest.mark.parametrize("preset", ["two_calls", "paper"])
def test_a_judge_that_heeds_the_order_of_the_pictures_is_found_out(preset, monkeypatch):
    """One of the cases it would judge otherwise by their order, one it answers otherwise when asked again."""

    def said(request, wrong):
        axis = {"paper": {"semantic_mismatch": True}, "quality": {"usable": "no"}}.get(request.question)
        changed = {"verdict": "failure"} | (axis or {"instruction_followed": "no"})
        return Response(request.answer(**changed) if wrong else request.answer())

    def text(request):
        return "".join(part.get("text", "") for part in request.body["messages"][0]["content"])

    def edited_first(request):
        labels = re.findall(r"^(SOURCE|ORIGINAL|EDITED)[^\n]*:$", text(request), re.MULTILINE)
        return labels[0] == "EDITED"

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setitem(BEHAVIOURS, "order", lambda r: said(r, edited_first(r)))
    monkeypatch.setitem(BEHAVIOURS, "mood", lambda r: said(r, r.nth % 2))
    asked = [case("order"), case("mood", seed=1), case("ok", seed=2), case("damage", seed=3)]
    if preset == "paper":
        asked.pop()
    golds = [Gold("k", one, None, None, i) for i, one in enumerate(asked)]
    with FakeServer("openai") as fake:
        judge = load_judge(f"openai:fake-model@{fake.url}", preset=preset, concurrency=1)
        first, ways = judge.judge(asked), others_of(judge)
        found = {way: alike(golds, first, other.judge(asked))["success"] for way, other in ways.items()}
        again = judge.judge(asked)
    assert list(found) == [AGAIN, SWAPPED] and again == first, "the judge itself stays what it was"
    assert {way: (rate.n - rate.right) for way, rate in found.items()} == {AGAIN: 1, SWAPPED: 1}
    hashes = {one.prompt_hash for one in (judge, *ways.values())}
    assert len(hashes) == 2 and len({judge.served, *(one.served for one in ways.values())}) == 3
    assert len(fake.requests) == 3 * len(asked) * len(PRESETS[preset])


def test_several_judges_together_are_asked_once_more_too():
    golds = [Gold("k", None, i < 10, False, i) for i in range(20)]

    def column(judge, wrong=()):
        return [Verdict(judge, "ok", gold.semantic_mismatch ^ (gold.picture in wrong), False) for gold in golds]

    said = {"a": column("a"), "b": column("b")}
    more = {AGAIN: {"a": column("a", {0, 15}), "b": column("b", {1})}, SWAPPED: {"a": column("a", {2})}}
    (found,) = together(golds, said, more)
    right = {way: rates["success"].right for way, rates in found.same.items()}
    assert right == {AGAIN: 18, SWAPPED: 19}, "one judge alone cannot make two agree that an edit failed"


def test_what_was_kept_before_is_read_and_what_is_kept_now_comes_back(tmp_path):
    judge, golds = Fickle(), gold_controls(CASES, WRONG)
    said = judge.judge([gold.case for gold in golds])
    (new,) = controls.known("fake:rule", "fake:rule", golds, said, {AGAIN: judge.judge([g.case for g in golds])})
    old = calibrate(Fake(right), golds)
    with Store(tmp_path) as store:
        controls.keep(store, new)
        assert controls.kept(store, ["fake:rule"]) == {"fake:rule": new}
        before = store.get("calibration", "fake:rule")
        del before["same"]
        store.put("calibration", "fake:rule", before)
        assert controls.kept(store, ["fake:rule"])["fake:rule"].same == {} == old.same
