"""Table I from records and annotations: who agrees with whom, on which samples, and what is not determined."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

import fakes
from sifm_core import stats
from sifm_core.consistency import (
    AXES,
    PAPER,
    annotations_of,
    cases,
    cells,
    consistency,
    judges_of,
    people_of,
    stratified,
)
from sifm_core.errors import InputError
from sifm_core.judges.human import read_annotations, write_annotations, write_sheet
from sifm_core.store import Store
from sifm_core.types import Record, Verdict

T, F, U = True, False, None


def verdicts(*answers):
    """(mismatch, degradation) or None for no answer."""
    return [Verdict("j", "blocked") if a is None else Verdict("j", "ok", *a) for a in answers]


RATERS = {
    "anna": verdicts((T, F), (F, F), (T, T), (F, F)),
    "bo": verdicts((T, F), (F, T), (T, T), U),
    "flash": verdicts((T, F), (F, F), (F, F), (F, F)),
    "pro": verdicts((F, F), (F, F), (T, F), (F, F)),
}
PICTURES = ["1", "1", "2", "2"]


def test_table_one_by_hand():
    got = consistency(RATERS, ["anna", "bo"], PICTURES)
    assert list(got) == ["human-human", "judge-judge", "human-judge"] == list(PAPER)
    assert all(list(row) == list(AXES) for row in got.values())
    humans = got["human-human"]
    assert {axis: a.raw for axis, a in humans.items()} == {
        "semantic_mismatch": 1,
        "perceptual_degradation": pytest.approx(2 / 3),
        "success": pytest.approx(2 / 3),
    }
    assert (humans["success"].raters, humans["success"].samples, humans["success"].answers) == (1, 3, 3)
    assert humans["semantic_mismatch"].kappa == 1
    judges = got["judge-judge"]["semantic_mismatch"]
    assert (judges.raw, judges.samples) == (0.5, 4)
    assert judges.kappa == stats.cohen_kappa([T, F, F, F], [F, F, T, F])
    assert judges.prevalence == 2 / 8
    mixed = got["human-judge"]["semantic_mismatch"]
    assert (mixed.raters, mixed.samples, mixed.answers) == (4, 4, 14)
    assert mixed.raw == (3 + 3 + 2 + 2) / 14
    assert (mixed.low, mixed.high) == stats.clustered_wilson(
        [*[T, T, F, T], *[F, T, T, T], *[T, T, F], *[F, T, T]], PICTURES * 2 + PICTURES[:3] * 2
    )


def test_kappa_and_alpha_are_means_over_pairs_between_people_and_judges_and_of_the_group_within():
    got = consistency(RATERS, ["anna", "bo"], PICTURES)
    labels = {n: [v.success for v in row] for n, row in RATERS.items()}
    across = list(itertools.product(("anna", "bo"), ("flash", "pro")))
    kappas = [stats.cohen_kappa(labels[a], labels[b]) for a, b in across]
    alphas = [stats.krippendorff_alpha([labels[a], labels[b]]) for a, b in across]
    assert got["human-judge"]["success"].kappa == pytest.approx(sum(kappas) / 4)
    assert got["human-judge"]["success"].alpha == pytest.approx(sum(alphas) / 4)
    want = stats.krippendorff_alpha([labels["anna"], labels["bo"]])
    assert got["human-human"]["success"].alpha == pytest.approx(want)


def test_what_nobody_can_know_is_none():
    got = consistency({"anna": RATERS["anna"], "flash": verdicts(U, U, U, U)}, ["anna"], PICTURES)
    for kind in got:
        for found in got[kind].values():
            assert found.raw is found.low is found.kappa is None
    assert got["human-human"]["success"].raters == 0
    assert set(cells(got)["agree"]) == {"–"}
    same = consistency({"a": verdicts((T, F)), "b": verdicts((T, F))}, [], ["1"])["judge-judge"]["success"]
    assert (same.raw, same.kappa, same.alpha, same.prevalence) == (1, None, None, 1)


def test_bad_input():
    with pytest.raises(InputError, match="zoe: not among the raters anna"):
        consistency(RATERS, ["zoe"], PICTURES)
    with pytest.raises(InputError, match="expected 3 verdicts"):
        consistency(RATERS, [], PICTURES[:3])


def record(i, method="SIFM", kind="original", category="portrait", edited="e"):
    key = f"{method}-{kind}-{category}-{i}"
    return Record(key, str(i), category, f"make it {i}", kind, "e", method, 0, 0.03, "s", "p", edited)


GRID = [
    record(i, method, kind, category)
    for method in ("clean", "SIFM", "noise")
    for kind, n in (("original", 10), ("unseen", 50))
    for category in ("portrait", "landscape", "artwork")
    for i in range(n)
]


def strata(records):
    return Counter((r.method, r.prompt_kind, r.category) for r in records)


def test_sampling_is_stratified_reproducible_and_blind_to_order():
    drawn = stratified(GRID, 150)
    assert len(drawn) == len({r.key for r in drawn}) == 150
    for (_, kind, _), n in strata(drawn).items():
        assert abs(n - 150 * (10 if kind == "original" else 50) / len(GRID)) < 1
    assert len(strata(drawn)) == 18
    assert stratified(GRID[::-1], 150) == drawn
    assert {r.key for r in stratified(GRID, 150, seed=1)} != {r.key for r in drawn}


def test_sampling_reaches_every_stratum_and_leaves_out_what_has_no_edit():
    rare = [record(0, "rare"), record(1, "rare", edited="")]
    assert "rare" in {r.method for r in stratified([*GRID, *rare], 19)}
    assert len(stratified([*GRID, *rare], 10**6)) == len(GRID) + 1
    assert len(stratified(GRID, 3)) == 3
    assert stratified([], 5) == []
    with pytest.raises(InputError, match="at least 1"):
        stratified(GRID, 0)


@pytest.fixture
def run(tmp_path):
    """A store with six judged records."""
    with Store(tmp_path / "run") as store:
        records = []
        for i in range(6):
            ids = [store.put_image(fakes.images(1, 24, seed)) for seed in (i // 2, 100 + i)]
            said = tuple(Verdict(name, "ok", i % 2 == 0, i % n == 0) for name, n in (("flash", 2), ("pro", 3)))
            r = record(i // 2, kind=("original", "unseen")[i % 2])
            records.append(Record(**vars(r) | {"source": ids[0], "edited": ids[1], "verdicts": said}))
        yield store, records


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_people_come_from_files_and_answers_go_out_as_files(run, tmp_path, suffix):
    store, records = run
    shown = cases(records, store)
    sheet = write_sheet(shown, tmp_path / "sheet")
    assert len(read_annotations(sheet)) == 0 and sheet.exists()
    judges = judges_of(records)
    assert list(judges) == ["flash", "pro"]
    path = tmp_path / f"all.{suffix}"
    write_annotations(path, annotations_of(judges, shown))
    people = people_of([path], shown)
    assert list(people) == ["human:flash", "human:pro"]
    got = consistency(people | judges, people, [r.image for r in records])
    assert got["human-human"] == got["judge-judge"]
    assert got["human-judge"]["semantic_mismatch"].raw == 1
    with pytest.raises(InputError, match="in another file too"):
        people_of([path, path], shown)


def test_a_judge_that_was_not_asked_everywhere_has_no_answer_there(run):
    _, records = run
    first = Record(**vars(records[0]) | {"verdicts": records[0].verdicts[:1]})
    pro = judges_of([first, *records[1:]])["pro"]
    assert [v.state for v in pro] == ["unreachable"] + ["ok"] * 5
