import itertools
import random

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar as sm_mcnemar
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from sifm_core import stats
from sifm_core.errors import InputError


@pytest.mark.parametrize("n", [1, 2, 10, 97, 1000])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_equals_statsmodels(n, confidence):
    for k in {0, 1, n // 3, n // 2, n}:
        want = proportion_confint(k, n, alpha=1 - confidence, method="wilson")
        assert stats.wilson(k, n, confidence) == pytest.approx(want, abs=1e-12)


def test_wilson_worked_example_and_edges():
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81/263, 15/148, 0/20, 1/29
    for (k, n), want in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert stats.wilson(k, n) == pytest.approx(want, abs=5e-5)
    assert stats.wilson(0, 0) == (0, 1)
    assert stats.wilson(7, 7).high == 1.0
    for k, n in [(-1, 3), (4, 3)]:
        with pytest.raises(InputError):
            stats.wilson(k, n)
    with pytest.raises(InputError, match="confidence"):
        stats.wilson(1, 2, confidence=95)


def covered(low, high, truth):
    return np.mean((np.asarray(low) <= truth) & (truth <= np.asarray(high)))


@pytest.mark.parametrize("n", [24, 100, 500])
def test_wilson_covers_95_percent(n):
    """Exactly, not by drawing: the binomial weights of every outcome, averaged over the true rate."""
    intervals = np.array([stats.wilson(k, n) for k in range(n + 1)])
    rates = np.linspace(0.02, 0.98, 193)
    weights = scipy.stats.binom.pmf(np.arange(n + 1), n, rates[:, None])
    inside = (intervals[:, 0] <= rates[:, None]) & (rates[:, None] <= intervals[:, 1])
    assert 0.93 < (weights * inside).sum(1).mean() < 0.97


def clustered_runs(images, per_image, rate, correlation, runs, seed):
    """(runs, images) counts of successes among per_image samples that share their image (beta-binomial)."""
    rng = np.random.default_rng(seed)
    a, b = (share * (1 - correlation) / correlation for share in (rate, 1 - rate))
    return rng.binomial(per_image, rng.beta(a, b, (runs, images)))


@pytest.mark.parametrize(
    "images, rate, shared",
    [
        (100, 0.3, 0.2),
        (100, 0.6, 0.6),
        (50, 0.5, 0.6),
        (24, 0.4, 0.2),
        (24, 0.05, 0.6),
        (12, 0.7, 0.9),
        (50, 0.95, 0.6),
    ],
)
def test_clustered_intervals_cover_95_percent_where_the_naive_one_does_not(images, rate, shared):
    per_image, runs = 5, 500
    counts = clustered_runs(images, per_image, rate, shared, runs, seed=1)
    clusters = np.repeat(np.arange(images), per_image).tolist()
    naive, wilson, boot = [], [], []
    for row in counts:
        values = (np.arange(per_image) < row[:, None]).reshape(-1).tolist()
        naive.append(stats.wilson(sum(values), len(values)))
        wilson.append(stats.clustered_wilson(values, clusters))
        if images == 50 and rate == 0.5:
            boot.append(stats.bootstrap(values, clusters, draws=300))
    assert covered(*zip(*naive, strict=True), rate) < 0.9
    assert 0.93 <= covered(*zip(*wilson, strict=True), rate) <= (0.97 if 0.1 < rate < 0.9 else 0.98)
    if boot:
        assert 0.92 <= covered(*zip(*boot, strict=True), rate) <= 0.975


def test_one_sample_a_cluster_is_wilson():
    values = [i % 3 == 0 for i in range(60)]
    plain, clustered = stats.wilson(20, 60), stats.clustered_wilson(values, range(60))
    assert clustered == pytest.approx(plain, abs=3e-3)
    assert clustered.low <= plain.low and plain.high <= clustered.high


def test_the_net_rate_of_clustered_pairs_is_covered():
    """Net ISR: protected fails and clean works, both depending on the picture, five prompts each."""
    rng, runs, images, per_image = np.random.default_rng(3), 400, 60, 5
    hard = rng.beta(1, 1, (runs, images, 1))
    clean, protected = rng.random((2, runs, images, per_image)) < np.stack([0.3 * hard, 0.2 + 0.7 * hard])
    clusters = np.repeat(np.arange(images), per_image).tolist()
    found = [
        stats.clustered_wilson((p & ~c).reshape(-1).tolist(), clusters) for p, c in zip(protected, clean, strict=True)
    ]
    share = np.linspace(0, 1, 100_001)
    truth = ((0.2 + 0.7 * share) * (1 - 0.3 * share)).mean()
    assert 0.93 <= covered(*zip(*found, strict=True), truth) <= 0.97


CASES = list(itertools.product((0.7, 0.85, 0.99), (0.7, 0.85, 0.99), (0.1, 0.5, 0.9)))


@pytest.mark.parametrize("sensitivity, specificity, rate", CASES)
def test_a_judges_errors_are_taken_out_without_bias_and_the_interval_covers(sensitivity, specificity, rate):
    """Of 100 samples with 100 cases of each kind; the raw rate is far off and its interval knows nothing of it."""
    rng, n, draws = np.random.default_rng(7), 100, 1500
    found = rng.binomial(n, rate * sensitivity + (1 - rate) * (1 - specificity), draws)
    finds, clears = rng.binomial(n, sensitivity, draws), rng.binomial(n, specificity, draws)
    made = [
        stats.rogan_gladen(stats.Counted(a, n), stats.Counted(b, n), stats.Counted(c, n))
        for a, b, c in zip(found.tolist(), finds.tolist(), clears.tolist(), strict=True)
    ]
    assert abs(np.mean([one.rate for one in made]) - rate) < 0.025
    assert np.mean([one.low <= rate <= one.high for one in made]) > 0.93
    raw = [stats.wilson(a, n) for a in found.tolist()]
    if abs(off := rate * sensitivity + (1 - rate) * (1 - specificity) - rate) > 0.1:
        assert np.mean([one.low <= rate <= one.high for one in raw]) < 0.6, off


def test_a_perfect_judge_known_for_certain_is_not_corrected():
    sure = stats.Counted(1e9, 1e9)
    found = stats.rogan_gladen(stats.Counted(30, 100), sure, sure)
    assert found.rate == pytest.approx(0.3)
    assert found[1:] == pytest.approx(proportion_confint(30, 100, method="agresti_coull"), abs=1e-6)


def test_what_cannot_be_corrected_is_none_and_what_is_hardly_known_is_wide():
    ten = stats.Counted(10, 10)
    for nothing in (
        stats.rogan_gladen(stats.Counted(0, 0), ten, ten),
        stats.rogan_gladen(ten, stats.Counted(0, 0), ten),
        stats.rogan_gladen(ten, stats.Counted(5, 10), stats.Counted(5, 10)),
    ):
        assert nothing is None
    one = stats.rogan_gladen(stats.Counted(5, 10), stats.Counted(1, 1), stats.Counted(1, 1))
    assert one.rate == 0.5 and one.low == 0 and one.high == 1
    assert stats.rogan_gladen(stats.Counted(0, 10), ten, stats.Counted(6, 10)).rate == 0, "never below 0"


@pytest.mark.parametrize("hits, n", [(0, 10), (10, 10), (3, 10), (77.5, 80.25)])
def test_samples_that_depend_on_each_other_count_as_the_independent_ones_of_their_interval(hits, n):
    assert stats.independent(hits / n, stats.wilson(hits, n)) == pytest.approx((hits, n))


def test_of_samples_that_count_as_none_nothing_follows():
    assert stats.independent(0.5, stats.Interval(0.0, 1.0)) == (0, 0)


def test_the_corrected_interval_covers_where_samples_and_cases_share_pictures():
    """24 pictures of 5 samples each, which fail together more often than chance; 24 pictures of controls."""
    rng, rate, sensitivity, specificity, runs, covered = random.Random(3), 0.4, 0.9, 0.8, 300, 0
    pictures = [i for i in range(24) for _ in range(5)]

    def shared(mean: float) -> list[bool]:
        chances = [rng.betavariate(4 * mean, 4 * (1 - mean)) for _ in range(24)]
        return [rng.random() < chances[picture] for picture in pictures]

    def counted(values: list[bool]) -> stats.Counted:
        return stats.independent(sum(values) / len(values), stats.clustered_wilson(values, pictures))

    for _ in range(runs):
        truth = shared(rate)
        said = [rng.random() < (sensitivity if failed else 1 - specificity) for failed in truth]
        found = stats.rogan_gladen(counted(said), counted(shared(sensitivity)), counted(shared(specificity)))
        covered += found.low <= rate <= found.high
    assert covered / runs > 0.92


def test_bootstrap_of_a_mean_covers_95_percent():
    rng = np.random.default_rng(2)
    runs = [stats.bootstrap(row.tolist(), draws=200) for row in rng.gamma(2, 1, (400, 60))]
    assert 0.93 <= covered(*zip(*runs, strict=True), 2.0) <= 0.97


def test_clustered_wilson_by_hand():
    values = [True, True, False, False, True, False, None, True]
    clusters = ["a", "a", "b", "b", "c", "c", "c", "d"]
    # 4 of 7; with a tenth of a cluster of 7/4 samples added on either side: 4.175 of 7.35
    rate = 4.175 / 7.35
    residuals = [2 - 2 * rate, -2 * rate, 1 - 2 * rate, 1 - rate]
    squares = sum(r * r for r in residuals) + 0.1 * (1.75 * rate) ** 2 + 0.1 * (1.75 * (1 - rate)) ** 2
    design = squares / 7.35 * 4.2 / 3.2 / (rate * (1 - rate))
    want = proportion_confint(4 / design, 7 / design, method="wilson")
    assert stats.clustered_wilson(values, clusters) == pytest.approx(want, abs=1e-12)


def test_clustered_wilson_never_claims_certainty():
    same = stats.clustered_wilson([True] * 40, [i // 5 for i in range(40)])
    assert same.high == 1
    assert stats.wilson(6, 6).low < same.low < stats.wilson(8, 8).low  # 8 images at most, not 40 samples
    assert stats.clustered_wilson([True] * 5, ["a"] * 5) == (0, 1)
    assert stats.clustered_wilson([], []) == (0, 1)
    halves = stats.clustered_wilson([True, False] * 10, [i // 2 for i in range(20)])
    assert halves == stats.wilson(10, 20)  # clusters that vary less than chance do not count as more samples


def test_bootstrap_is_reproducible_and_resamples_clusters():
    values, clusters = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.5, None], list("aaabbbcc")
    assert stats.bootstrap(values, clusters) == stats.bootstrap(values, clusters)
    by_value, by_cluster = stats.bootstrap(values), stats.bootstrap(values, clusters)
    assert by_cluster.high - by_cluster.low > by_value.high - by_value.low
    assert stats.bootstrap([1.0, 2.0], ["a", "a"]) is None
    assert stats.bootstrap([]) is None


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar_equals_statsmodels(seed):
    rng = random.Random(seed)
    first = [rng.random() < 0.7 for _ in range(60)]
    second = [rng.random() < 0.5 for _ in range(60)]
    table = np.zeros((2, 2))
    for a, b in zip(first, second, strict=True):
        table[int(not a), int(not b)] += 1
    got = stats.mcnemar([*first, None, True], [*second, True, None])
    assert got.p == pytest.approx(sm_mcnemar(table, exact=True).pvalue, abs=1e-12)
    assert (got.only_first, got.only_second, got.n) == (table[0, 1], table[1, 0], 60)
    assert stats.mcnemar(second, first).p == got.p


def test_few_clusters_and_less_confidence_count():
    values, clusters = [0.0, 1.0, 0.0, 0.5, 1.0], range(5)
    wide, narrow = stats.bootstrap(values, clusters), stats.bootstrap(values, clusters, 0.5)
    draws = np.random.default_rng(0).choice(values, (4000, 5)).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert wide.low < low - 0.05 and wide.high > high + 0.05, "five pictures are widened for"
    assert wide.low < narrow.low < narrow.high < wide.high
    said, groups = [True, False, True, True, False, False], [0, 0, 1, 1, 2, 2]
    wide, narrow = stats.clustered_wilson(said, groups), stats.clustered_wilson(said, groups, 0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_mcnemar_edges():
    assert stats.mcnemar([], []) == (0, 0, 0, 1.0)
    assert stats.mcnemar([True] * 9, [True] * 9).p == 1.0
    assert stats.mcnemar([True] * 10, [False] * 10) == (10, 0, 10, pytest.approx(2 / 1024))
    assert stats.mcnemar([True] * 3000, [False] * 3000).p < 1e-300  # no overflow
    with pytest.raises(InputError, match="same length"):
        stats.mcnemar([True], [])


@pytest.mark.parametrize("seed", range(6))
def test_clustered_mcnemar_equals_the_exact_randomisation_test(seed):
    rng = np.random.default_rng(seed)
    images, per_image = 9, 4
    hard = rng.beta(1, 1, (images, 1))
    first, second = (rng.random((images, per_image)) < hard + shift for shift in (0.2, 0.0))
    sums = first.sum(1) - second.sum(1)
    want = scipy.stats.permutation_test(
        (sums,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    clusters = np.repeat(np.arange(images), per_image).tolist()
    got = stats.mcnemar(first.reshape(-1).tolist(), second.reshape(-1).tolist(), clusters)
    assert got.p == pytest.approx(want.pvalue, abs=1e-12)
    assert got.only_first - got.only_second == sums.sum() and got.n == images * per_image


def test_clustered_mcnemar_keeps_its_level_where_the_plain_one_does_not():
    """Two methods that are equal on average, while every picture favours one of them in all its prompts."""
    rng, clusters = np.random.default_rng(5), np.repeat(np.arange(30), 5).tolist()
    plain = clustered = 0
    for _ in range(300):
        favours = rng.random((30, 1)) < 0.5
        first, second = (rng.random((30, 5)) < np.where(favours, a, b) for a, b in ((0.8, 0.2), (0.2, 0.8)))
        pair = first.reshape(-1).tolist(), second.reshape(-1).tolist()
        plain += stats.mcnemar(*pair).p < 0.05
        clustered += stats.mcnemar(*pair, clusters).p < 0.05
    assert plain / 300 > 0.15
    assert clustered / 300 < 0.08


def test_clustered_mcnemar_on_a_large_run_is_quick_and_leaves_out_unclear_pairs():
    rng = np.random.default_rng(0)
    first, second = (rng.random(2500) < rate for rate in (0.6, 0.5))
    clusters = (np.arange(2500) // 25).tolist()
    got = stats.mcnemar([*first.tolist(), None], [*second.tolist(), True], [*clusters, 0])
    assert got.n == 2500 and 0 < got.p < 1e-4


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03, 0.005], [0.5, 0.9, 0.02], [0.2], [0.01, 0.01, 0.01], []])
def test_holm_equals_statsmodels(p_values):
    want = multipletests(p_values, method="holm")[1] if p_values else []
    assert stats.holm(p_values) == pytest.approx(list(want), abs=1e-12)


def test_cohen_kappa_equals_statsmodels_and_the_textbook():
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert stats.cohen_kappa(first, second) == pytest.approx(0.4)  # the usual textbook table 20 / 5 / 10 / 15
    rng = random.Random(3)
    a = [rng.randrange(4) for _ in range(200)]
    b = [x if rng.random() < 0.6 else rng.randrange(4) for x in a]
    table = np.zeros((4, 4))
    for x, y in zip(a, b, strict=True):
        table[x, y] += 1
    assert stats.cohen_kappa([*a, None], [*b, 1]) == pytest.approx(cohens_kappa(table).kappa, abs=1e-12)


def test_agreement_measures_are_none_when_undetermined():
    assert stats.cohen_kappa([], []) is None
    assert stats.cohen_kappa([True, True], [True, True]) is None
    assert stats.agreement([None, 1], [1, None]) is None
    assert stats.krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert stats.krippendorff_alpha([[1, None], [None, 2]]) is None
    assert stats.krippendorff_alpha([]) is None
    assert stats.prevalence([None]) is None


def test_agreement_and_prevalence():
    assert stats.agreement([1, 2, 3, None], [1, 2, 4, 4]) == pytest.approx(2 / 3)
    assert stats.prevalence([True, False, None, True]) == pytest.approx(2 / 3)


def test_krippendorff_alpha_published_examples():
    """Krippendorff 2011, "Computing Krippendorff's alpha-reliability": sections A, B and C."""
    binary = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
    assert stats.krippendorff_alpha(binary) == pytest.approx(0.095, abs=5e-4)
    nominal = [list("aabbdcccedda"), list("babbbccceddd")]
    assert stats.krippendorff_alpha(nominal) == pytest.approx(0.692, abs=5e-4)
    gaps = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    assert stats.krippendorff_alpha(gaps) == pytest.approx(0.743, abs=5e-4)


def test_krippendorff_alpha_needs_equal_rows():
    with pytest.raises(InputError, match="same length"):
        stats.krippendorff_alpha([[1, 2], [1]])


def test_auc_is_the_share_of_pairs():
    assert stats.auc([1, 2, 3], [False, True, True]) == 1.0
    assert stats.auc([2, 2], [False, True]) == 0.5
    assert stats.auc([3, 1, 4], [False, True, True]) == 0.5
    assert stats.auc([1], [True]) is stats.auc([], []) is None
    rng = random.Random(0)
    for _ in range(50):
        values, labels = [rng.randrange(4) for _ in range(9)], [rng.random() < 0.5 for _ in range(8)] + [True]
        cases = list(zip(values, labels, strict=True))
        pairs = [(a > b) + (a == b) / 2 for a, positive in cases if positive for b, other in cases if not other]
        assert stats.auc(values, labels) == (pytest.approx(sum(pairs) / len(pairs), abs=1e-15) if pairs else None)
