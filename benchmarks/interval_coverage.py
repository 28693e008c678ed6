"""How often the 95% intervals of the ISR hold the true rate: ``python -m benchmarks.interval_coverage [--runs N]``.

Beta-binomial draws: every picture has its own rate, its prompts share it; "shared" is the correlation of two samples of
one picture. Wilson's interval takes all samples for independent.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np

from sifm_core.stats import clustered_wilson, wilson

IMAGES, RATES, SHARED, PER_IMAGE = (8, 24, 50, 100), (0.05, 0.3, 0.5, 0.8, 0.95), (0.05, 0.3, 0.9), 5


def coverage(images: int, rate: float, shared: float, runs: int, seed: int = 0) -> tuple[float, float]:
    """The shares of runs in which Wilson's and the clustered interval hold the rate."""
    rng = np.random.default_rng(seed)
    a, b = (share * (1 - shared) / shared for share in (rate, 1 - rate))
    counts = rng.binomial(PER_IMAGE, rng.beta(a, b, (runs, images)))
    clusters = np.repeat(np.arange(images), PER_IMAGE).tolist()
    inside = np.zeros(2)
    for row in counts:
        values = (np.arange(PER_IMAGE) < row[:, None]).reshape(-1).tolist()
        intervals = wilson(sum(values), len(values)), clustered_wilson(values, clusters)
        inside += [low <= rate <= high for low, high in intervals]
    return inside[0] / runs, inside[1] / runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args().runs
    print(f"{'pictures':>8} {'rate':>5} {'shared':>6} {'Wilson':>7} {'clustered':>9}   ({runs} runs a line)")
    found = []
    for images, rate, shared in itertools.product(IMAGES, RATES, SHARED):
        naive, clustered = coverage(images, rate, shared, runs)
        found.append(clustered)
        print(f"{images:8} {rate:5} {shared:6} {naive:7.1%} {clustered:9.1%}")
    print(f"clustered: mean {np.mean(found):.1%}, from {min(found):.1%} to {max(found):.1%}")


if __name__ == "__main__":
    main()
