import json
import random

import pytest

from sifm_core import stats
from sifm_core.errors import InputError
from sifm_core.rates import isr, worst_of

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


def test_worst_of_needs_every_seed():
    values = [T, T, T, F, T, U, F, U, U]
    groups = [1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert worst_of(values, groups) == {1: T, 2: F, 3: U, 4: F, 5: U}
