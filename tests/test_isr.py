import json
import random
from dataclasses import replace

import pytest

from sifm_core import stats
from sifm_core.errors import InputError
from sifm_core.isr import (
    FAILURE_AXES,
    agreed,
    breakdown,
    compare,
    failure_axes,
    failure_axis,
    isr,
    worst_of,
    worst_of_seeds,
)
from sifm_core.types import Record, Verdict

T, F, U = True, False, None


def test_rate_interval_and_bounds():
    got = isr([T, T, F, U, T, U])
    assert (got.rate, got.n, got.unclear, got.successes) == (0.75, 4, 2, 3)
    assert (got.low, got.high) == stats.wilson(3, 4)
    assert (got.worst, got.best) == (3 / 6, 5 / 6)
    assert got.clean_rate is got.net is got.improved is None
    assert isr([T, F], confidence=0.5).low > isr([T, F]).low


def test_nothing_is_none_and_never_zero():
    for empty in (isr([]), isr([], clean=[], clusters=[])):
        assert (empty.rate, empty.low, empty.high, empty.worst, empty.best, empty.net) == (None,) * 6
        assert (empty.n, empty.unclear, empty.successes) == (0, 0, 0)
    unclear = isr([U, U], clean=[T, F])
    assert (unclear.rate, unclear.low, unclear.net, unclear.clean_rate) == (None,) * 4
    assert (unclear.unclear, unclear.worst, unclear.best) == (2, 0.0, 1.0)
    assert isr([T, T], clean=[U, U]).net is None
    json.dumps(unclear.as_dict(), allow_nan=False)


def test_net_counts_what_the_protection_caused():
    protected = [T, T, T, F, F, U, T]
    clean = [F, F, T, T, F, F, U]
    got = isr(protected, clean=clean)
    assert got.pairs == 5
    assert got.clean_rate == 2 / 5
    assert got.net == 2 / 5
    assert got.improved == 1 / 5
    assert (got.net_low, got.net_high) == stats.wilson(2, 5)
    assert (got.improved_low, got.improved_high) == stats.wilson(1, 5)
    assert got.rate == 4 / 6  # of all clear protected samples, paired or not


def test_identities_hold_on_random_verdicts():
    rng = random.Random(0)
    for _ in range(300):
        n = rng.randrange(1, 30)
        protected, clean = ([rng.choice([T, F, U]) for _ in range(n)] for _ in range(2))
        got = isr(protected, clean=clean)
        assert got.worst <= got.best
        assert got.n + got.unclear == n
        if got.rate is not None:
            assert got.worst <= got.rate <= got.best
            assert got.low <= got.rate <= got.high
        if got.pairs:
            paired = isr([p for p, c in zip(protected, clean, strict=True) if c is not None], clean=None).rate
            assert got.net - got.improved == pytest.approx(paired - got.clean_rate)


def test_an_editor_that_always_fails_gets_no_net_isr():
    got = isr([T] * 20, clean=[T] * 20)
    assert (got.rate, got.clean_rate, got.net) == (1, 1, 0)


def test_clusters_widen_the_interval_and_skip_unclear_samples():
    successes = [T] * 5 + [F] * 5 + [T] * 4 + [U]
    pictures = ["a"] * 5 + ["b"] * 5 + ["c"] * 5
    got = isr(successes, clusters=pictures, clean=[F] * 15)
    assert (got.low, got.high) == stats.clustered_wilson(successes[:14], pictures[:14])
    assert (got.net_low, got.net_high) == (got.low, got.high)
    assert got.low < isr(successes).low


@pytest.mark.parametrize("bad", [{"clean": [T]}, {"clusters": ["a"] * 3}])
def test_lengths_must_fit(bad):
    with pytest.raises(InputError, match="expected 2 values"):
        isr([T, F], **bad)


def verdict(mismatch, degradation, state="ok"):
    return Verdict("j", state, mismatch, degradation)


def record(method, image, success, *, category="portrait", prompt="p", seed=0, kind="original"):
    v = verdict(U, U, "refused") if success is U else verdict(success, F)
    return Record(
        key=f"{method}{image}{prompt}{seed}",
        image=image,
        category=category,
        prompt=prompt,
        prompt_kind=kind,
        editor="e",
        method=method,
        seed=seed,
        eps=0.03,
        source="s",
        protected="p",
        edited="e",
        verdicts=(v,),
    )


def success(r):
    return r.verdicts[0].success


RECORDS = [
    record("clean", "1", F),
    record("clean", "2", T, category="artwork"),
    record("clean", "3", U),
    record("sifm", "2", T, category="artwork"),
    record("sifm", "1", T),
    record("sifm", "3", T),
    record("sifm", "4", F),
    record("noise", "1", U),
]


def test_breakdown_pairs_by_picture_prompt_editor_and_seed():
    got = breakdown(RECORDS, success)
    assert list(got) == ["clean", "sifm", "noise"]
    assert (got["clean"].rate, got["clean"].net) == (0.5, None)
    assert (got["sifm"].rate, got["sifm"].pairs, got["sifm"].net, got["sifm"].clean_rate) == (0.75, 2, 0.5, 0.5)
    assert (got["noise"].rate, got["noise"].unclear) == (None, 1)
    other_seed = breakdown([record("clean", "1", F, seed=1), record("sifm", "1", T)], success)
    assert other_seed["sifm"].pairs == 0
    for change in ({"editor": "f"}, {"prompt": "another"}):
        other = breakdown([replace(record("clean", "1", F), **change), record("sifm", "1", T)], success)
        assert other["sifm"].pairs == 0, change


def attacked(method, success, *, purifier="", protected_on="e", seed=0):
    return replace(record(method, "1", success, seed=seed), info={"purifier": purifier, "protected_on": protected_on})


PURIFIED = [
    *(attacked("clean", F), attacked("sifm", T), attacked("mist", F)),
    *(attacked(m, s, purifier="jpeg:50") for m, s in (("clean", T), ("sifm", T), ("mist", T))),
]
TRANSFER = [
    *(attacked("clean", F), attacked("sifm", T), attacked("mist", F)),
    *(attacked(m, s, protected_on="other") for m, s in (("clean", F), ("sifm", F), ("mist", T))),
]


@pytest.mark.parametrize("order", [list, reversed])
def test_a_purified_attack_is_paired_with_the_purified_clean_one(order):
    got = breakdown(order(PURIFIED), success)["sifm"]
    assert (got.pairs, got.net, got.clean_rate) == (2, 0.5, 0.5), "jpeg alone made the clean edit fail"
    (tested,) = compare(order(PURIFIED), success, [("sifm", "mist")])
    assert (tested.pairs, tested.only_first, tested.only_second) == (2, 1, 0)


@pytest.mark.parametrize("order", [list, reversed])
def test_transfer_is_compared_per_protecting_editor_and_has_the_attacked_editors_floor(order):
    (tested,) = compare(order(TRANSFER), success, [("sifm", "mist")])
    assert (tested.pairs, tested.only_first, tested.only_second) == (2, 1, 1)
    unprotected = [r for r in TRANSFER if r.method != "clean" or r.info["protected_on"] == "e"]
    assert breakdown(order(unprotected), success)["sifm"].pairs == 2, "a clean picture has no protecting editor"


def test_seeds_of_one_attack_are_not_mixed_with_other_preprocessing_or_editors():
    records = [replace(r, seed=seed) for r in (*PURIFIED, *TRANSFER[3:]) for seed in (0, 1)]
    got = worst_of_seeds(records, success)["sifm"]
    assert (got.n, got.successes, got.pairs, got.net) == (3, 2, 3, pytest.approx(1 / 3))


def test_breakdown_by_category_and_by_function():
    by_category = breakdown(RECORDS, success, "category")
    assert (by_category["artwork"].rate, by_category["artwork"].n) == (1, 1)  # the clean record is floor, not sample
    assert by_category["artwork"].net == 0
    both = breakdown(RECORDS, success, lambda r: (r.method, r.category))
    assert both["sifm", "portrait"].rate == pytest.approx(2 / 3)


def test_breakdown_clusters_by_picture():
    records = [record("sifm", str(i), i % 2 == 0, prompt=f"p{j}") for i in range(6) for j in range(5)]
    values, pictures = [success(r) for r in records], [r.image for r in records]
    got = breakdown(records, success)["sifm"]
    assert (got.low, got.high) == stats.clustered_wilson(values, pictures)


def test_worst_of_needs_every_seed():
    values = [T, T, T, F, T, U, F, U, U]
    groups = [1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert worst_of(values, groups) == {1: T, 2: F, 3: U, 4: F, 5: U}


def test_worst_of_seeds_is_never_above_the_mean_and_needs_a_clean_edit_that_failed_always():
    records = [record("clean", "1", s == 0, seed=s) for s in range(3)]
    records += [record("sifm", "1", T, seed=s) for s in range(3)]
    records += [record("clean", "2", T, seed=s) for s in range(3)]
    records += [record("sifm", "2", s != 1, seed=s) for s in range(3)]
    got = worst_of_seeds(records, success)
    assert got["sifm"].rate == 0.5
    assert breakdown(records, success)["sifm"].rate == pytest.approx(5 / 6)
    assert got["clean"].rate == 0.5
    assert (got["sifm"].net, got["sifm"].improved) == (0.5, 0.5)


@pytest.mark.parametrize(
    "verdicts, axis",
    [
        ([], "unclear"),
        ([verdict(T, F), verdict(U, U, "blocked")], "unclear"),
        ([verdict(T, F), verdict(T, T)], "mismatch"),
        ([verdict(T, T), verdict(F, T)], "degradation"),
        ([verdict(T, T), verdict(T, T)], "both"),
        ([verdict(T, F), verdict(F, T)], "mixed"),
        ([verdict(T, F), verdict(F, F)], "none"),
    ],
)
def test_failure_axis(verdicts, axis):
    assert failure_axis(verdicts) == axis
    assert axis in FAILURE_AXES


def test_agreement_on_one_axis_is_strict_too():
    both = [verdict(T, F), verdict(T, T)]
    assert (agreed(both, "semantic_mismatch"), agreed(both, "perceptual_degradation")) == (T, F)
    assert agreed([verdict(T, U)], "perceptual_degradation") is None, "the judge could not tell"
    assert agreed([*both, verdict(U, U, "blocked")], "semantic_mismatch") is agreed([], "semantic_mismatch") is None
    with pytest.raises(InputError, match="semantic_mismatch"):
        agreed(both, "mismatch")


def test_failure_axes_count_every_record_of_every_method():
    got = failure_axes(RECORDS)
    assert list(got) == ["clean", "sifm", "noise"]
    assert got["sifm"] == dict.fromkeys(FAILURE_AXES, 0) | {"mismatch": 3, "none": 1}
    assert got["noise"]["unclear"] == 1
    assert failure_axes(RECORDS, lambda r: ())["sifm"]["unclear"] == 4
    by_axis = breakdown(RECORDS, lambda r: agreed(r.verdicts, "perceptual_degradation"))
    assert (by_axis["sifm"].rate, by_axis["sifm"].n) == (0, 4)


def runs(method, rates, prompts=5):
    """Records of one method: picture i's edits fail for the first `rates[i]` prompts."""
    return [record(method, str(i), j < rate, prompt=f"p{j}") for i, rate in enumerate(rates) for j in range(prompts)]


def test_compare_pairs_attacks_clusters_by_picture_and_corrects():
    records = [*runs("sifm", [5] * 8), *runs("noise", [0] * 8), *runs("mist", [5, 5, 5, 5, 5, 5, 0, 0])]
    noise, mist = compare(records, success, [("sifm", "noise"), ("sifm", "mist")])
    assert (noise.first, noise.second, noise.pairs, noise.only_first, noise.only_second) == ("sifm", "noise", 40, 40, 0)
    assert noise.p == pytest.approx(2 / 2**8), "eight pictures, not forty prompts"
    assert (noise.difference, noise.low, noise.high) == (1, 1, 1)
    assert (mist.difference, mist.p) == (0.25, pytest.approx(0.5))
    assert mist.low < 0.25 < mist.high
    assert [noise.p_holm, mist.p_holm] == pytest.approx(stats.holm([noise.p, mist.p]))


def test_compare_leaves_out_what_is_unclear_or_has_no_partner():
    records = [record("sifm", "1", T), record("sifm", "2", U), record("sifm", "3", T), record("noise", "1", F)]
    (got,) = compare([*records, record("noise", "2", F)], success, [("sifm", "noise")])
    assert (got.pairs, got.only_first, got.p, got.low) == (1, 1, 1.0, None)
    (none,) = compare([records[1], record("noise", "2", F)], success, [("sifm", "noise")])
    assert (none.pairs, none.difference, none.p) == (0, None, 1.0)
    with pytest.raises(InputError, match="did you mean sifm"):
        compare(records, success, [("sfm", "noise")])
