"""How often the 95% intervals of the ISR hold the true rate: ``python -m benchmarks.interval_coverage [--runs N]``.

Beta-binomial draws: every picture has its own rate, its prompts share it; "shared" is the correlation of two samples of
one picture. Wilson's interval takes all samples for independent. Korn and Graubard's (1998), the usual one of surveys,
has the design effect, Student's t for few clusters and Clopper and Pearson's bounds.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from scipy.stats import beta, norm, t

from sifm_core.stats import Interval, clustered_wilson, wilson

IMAGES, RATES, SHARED, PER_IMAGE = (8, 24, 50, 100), (0.05, 0.3, 0.5, 0.8, 0.95), (0.05, 0.3, 0.9), 5
NAMES = ("Wilson", "Korn-Graubard", "clustered")


def korn_graubard(counts: np.ndarray) -> Interval:
    """From the successes of each picture among its PER_IMAGE samples."""
    pictures, n, rate = len(counts), len(counts) * PER_IMAGE, counts.mean() / PER_IMAGE
    design = counts.var(ddof=1) / (PER_IMAGE * rate * (1 - rate)) if 0 < rate < 1 else 1.0
    effective = min(n, n / max(design, 1e-9) * (norm.ppf(0.975) / t.ppf(0.975, pictures - 1)) ** 2)
    k, rest = rate * effective, (1 - rate) * effective
    low = beta.ppf(0.025, k, rest + 1) if k > 0 else 0.0
    return Interval(float(low), float(beta.ppf(0.975, k + 1, rest)) if rest > 0 else 1.0)


def coverage(images: int, rate: float, shared: float, runs: int, seed: int = 0) -> np.ndarray:
    """The shares of runs in which each of the three intervals holds the rate."""
    rng = np.random.default_rng(seed)
    a, b = (share * (1 - shared) / shared for share in (rate, 1 - rate))
    counts = np.sort(rng.binomial(PER_IMAGE, rng.beta(a, b, (runs, images))))  # the order of pictures changes nothing
    clusters = np.repeat(np.arange(images), PER_IMAGE).tolist()
    inside = np.zeros(3)
    for row, times in zip(*np.unique(counts, axis=0, return_counts=True), strict=True):
        values = (np.arange(PER_IMAGE) < row[:, None]).reshape(-1).tolist()
        intervals = wilson(sum(values), len(values)), korn_graubard(row), clustered_wilson(values, clusters)
        inside += [times * (low <= rate <= high) for low, high in intervals]
    return inside / runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5000)
    runs = parser.parse_args().runs
    noise = 2 * (0.95 * 0.05 / runs) ** 0.5
    print(f"{'pictures':>8} {'rate':>5} {'shared':>6} " + " ".join(f"{name:>13}" for name in NAMES))
    found = []
    for images, rate, shared in itertools.product(IMAGES, RATES, SHARED):
        found.append(coverage(images, rate, shared, runs))
        print(f"{images:8} {rate:5} {shared:6} " + " ".join(f"{share:13.1%}" for share in found[-1]), flush=True)
    print(f"{runs} runs a line: two standard errors are {noise:.1%}")
    for name, shares in zip(NAMES, np.array(found).T, strict=True):
        outside = (int((shares < 0.93).sum()), int((shares > 0.97).sum()))
        print(
            f"{name:13} mean {shares.mean():.1%}, from {shares.min():.1%} to {shares.max():.1%}; "
            f"of {len(shares)} lines {outside[0]} are below 93%, {outside[1]} above 97%"
        )


if __name__ == "__main__":
    main()
