"""How well a judge's known errors are taken out of its rate: ``python -m benchmarks.judges_errors [--runs N]``.

Independent draws of samples and of gold controls of both kinds, counted by a judge of known sensitivity and
specificity; printed are the bias of the corrected rate and how often its 95% interval holds the true one, and the same
of the raw rate with Wilson's interval.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np

from sifm_core.stats import Counted, rogan_gladen, wilson

SIZES = ((24, 24), (60, 40), (100, 100), (400, 100))
"""Samples, and gold controls of each kind."""
SHARES, RATES = (0.7, 0.8, 0.9, 0.99), (0.05, 0.1, 0.3, 0.5, 0.9)


def simulated(size: tuple[int, int], finds: float, clears: float, rate: float, runs: int, seed: int = 0) -> np.ndarray:
    """(bias, coverage) of the corrected rate, and of the raw one; a judge no better than chance on the controls is
    left out of the bias and counted as covering, since nothing is said then."""
    rng = np.random.default_rng(seed)
    n, controls = size
    said = rng.binomial(n, rate * finds + (1 - rate) * (1 - clears), runs).tolist()
    right = (rng.binomial(controls, share, runs).tolist() for share in (finds, clears))
    found, raw = [], [wilson(count, n) for count in said]
    for count, *counts in zip(said, *right, strict=True):
        found.append(rogan_gladen(Counted(count, n), *(Counted(one, controls) for one in counts)))
    told = [one for one in found if one]
    return np.array([
        np.mean([one.rate for one in told]) - rate,
        1 - np.mean([not one.low <= rate <= one.high for one in told]) * len(told) / runs,
        np.mean(said) / n - rate,
        np.mean([low <= rate <= high for low, high in raw]),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    runs = parser.parse_args().runs
    print("samples controls finds clears  rate | corrected: bias, covers | raw: bias, covers")
    lines = []
    for size, finds, clears, rate in itertools.product(SIZES, SHARES, SHARES, RATES):
        lines.append(simulated(size, finds, clears, rate, runs))
        bias, covers, off, holds = lines[-1]
        start = f"{size[0]:7} {size[1]:8} {finds:5} {clears:6} {rate:5}"
        print(f"{start} | {bias:+15.3f} {covers:7.1%} | {off:+9.3f} {holds:7.1%}", flush=True)
    for size, part in zip(SIZES, np.array_split(np.array(lines), len(SIZES)), strict=True):
        bias, covers, off, holds = part.T
        print(
            f"{size[0]} samples, {size[1]} controls: corrected {np.abs(bias).max():.3f} off at most, covered "
            f"{covers.mean():.1%} on the average, {covers.min():.1%} to {covers.max():.1%}; raw "
            f"{np.abs(off).max():.3f}, {holds.mean():.1%}, {holds.min():.1%} to {holds.max():.1%}"
        )


if __name__ == "__main__":
    main()
