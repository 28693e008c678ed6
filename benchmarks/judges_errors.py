"""How well judges' known errors are taken out of their rate: ``python -m benchmarks.judges_errors [--runs N]``.

One judge: independent draws of samples and of gold controls of both kinds, counted by a judge of known sensitivity and
specificity; printed are the bias of the corrected rate and how often its 95% interval holds the true one, and the same
of the raw rate with Wilson's interval.

Several judges (``--judges``): two that have to agree, three that have to, and the majority of three, as a run has them:
five samples a picture that share their truth, four controls a picture (three failed, one sound), and errors that the
judges share. Beside the joint correction (:func:`sifm_core.judges.calibration.together`) stands what multiplying each
judge's own errors would give, and what comes of controls that are easier than the edits.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from sifm_core.stats import Counted, Interval, clustered_wilson, independent, rogan_gladen, wilson

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


WAYS: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    "2, all": (2, lambda said: said.all(-1)),
    "3, all": (3, lambda said: said.all(-1)),
    "3, most": (3, lambda said: said.sum(-1) >= 2),
}
"""How many judges, and how their answers (..., judges) are taken together."""
PICTURES, SAMPLES, ALIKE, CONTROLS = (24, 100), 5, 0.3, (True, True, True, False)
"""Samples of one picture share their truth with this correlation; which of a picture's controls are failed edits."""
TRUE, SHARED, EASIER = (0.1, 0.5, 0.9), (0.0, 0.4, 0.8), 0.1
PAIRS = ((0.7, 0.9), (0.8, 0.8), (0.9, 0.95), (0.99, 0.99))


def answers(
    truth: np.ndarray, finds: float, clears: float, judges: int, shared: float, rng: np.random.Generator
) -> np.ndarray:
    """What judges say of each case (..., judges): wrong where a normal variable, of which they share a part, is low."""
    own = rng.standard_normal((*truth.shape, judges))
    hard = np.sqrt(shared) * rng.standard_normal((*truth.shape, 1)) + np.sqrt(1 - shared) * own
    limit = np.where(truth, NormalDist().inv_cdf(1 - finds), NormalDist().inv_cdf(1 - clears))
    return truth[..., None] ^ (hard < limit[..., None])


def of_panel(
    way: str, pictures: int, finds: float, clears: float, shared: float, rate: float, runs: int, easier: float = 0.0
) -> np.ndarray:
    """(bias, coverage) of the rate corrected by joint answers, corrected by multiplied errors, and raw.

    ``easier``: by how much each judge finds more of the failed controls than of the failed edits.
    """
    rng = np.random.default_rng(0)
    judges, decide = WAYS[way]
    odds = rng.beta(*(share * (1 - ALIKE) / ALIKE for share in (rate, 1 - rate)), (runs, pictures, 1))
    truth = rng.random((runs, pictures, SAMPLES)) < odds
    said = decide(answers(truth, finds, clears, judges, shared, rng))
    golds = np.broadcast_to(np.array(CONTROLS), (runs, pictures, len(CONTROLS)))
    known = answers(golds, min(0.995, finds + easier), clears, judges, shared, rng)
    alone, joint = known == golds[..., None], decide(known) == golds
    bad = np.array(CONTROLS)

    def counted(values: np.ndarray) -> Counted:
        clusters = np.repeat(np.arange(pictures), values.shape[1]).tolist()
        return independent(values.mean(), clustered_wilson(values.reshape(-1).tolist(), clusters))

    found = []
    for i in range(runs):
        values = said[i].reshape(-1).tolist()
        raw = clustered_wilson(values, np.repeat(np.arange(pictures), SAMPLES).tolist())
        count = independent(said[i].mean(), raw)
        together = rogan_gladen(count, counted(joint[i][:, bad]), counted(joint[i][:, ~bad]))
        each = [alone[i][:, kind].mean((0, 1)) for kind in (bad, ~bad)]
        sizes = [counted(alone[i][:, kind][..., 0]).n for kind in (bad, ~bad)]
        multiplied = [_multiplied(way, *each)[k] for k in (0, 1)]
        product = rogan_gladen(count, *(Counted(share * n, n) for share, n in zip(multiplied, sizes, strict=True)))
        found.append([(together.rate, together[1:]) if together else None,
                      (product.rate, product[1:]) if product else None, (said[i].mean(), raw)])  # fmt: skip
    return np.array([figure for column in zip(*found, strict=True) for figure in _figures(column, rate)])


def _multiplied(way: str, finds: np.ndarray, clears: np.ndarray) -> tuple[float, float]:
    """The panel's sensitivity and specificity, were its judges' errors independent."""
    judges, decide = WAYS[way]
    patterns = np.array(list(itertools.product((False, True), repeat=judges)))
    yes = decide(patterns)
    return (
        float(np.where(patterns, finds, 1 - finds).prod(-1)[yes].sum()),
        float(np.where(patterns, 1 - clears, clears).prod(-1)[~yes].sum()),
    )


def _figures(column: tuple[tuple[float, Interval] | None, ...], rate: float) -> tuple[float, float]:
    told = [one for one in column if one]
    missed = sum(not low <= rate <= high for _, (low, high) in told)
    return float(np.mean([value for value, _ in told])) - rate, 1 - missed / len(column)


def panels(runs: int) -> None:
    """Print the part on several judges."""
    print("judges  pictures finds clears shared  rate | joint: bias, covers | multiplied: the same | raw: the same")
    kept: dict[str, list[np.ndarray]] = {}
    for way, pictures, (finds, clears), shared, rate in itertools.product(WAYS, PICTURES, PAIRS, SHARED, TRUE):
        figures = of_panel(way, pictures, finds, clears, shared, rate, runs)
        kept.setdefault(f"{way}, shared {shared}", []).append(figures)
        _print(f"{way:7} {pictures:8} {finds:5} {clears:6} {shared:6} {rate:5}", figures)
    for name, lines in kept.items():
        _summed(name, np.array(lines))
    easy = [
        of_panel(way, 100, finds, clears, 0.4, rate, runs, easier=EASIER)
        for way, (finds, clears), rate in itertools.product(WAYS, PAIRS[:3], TRUE)
    ]
    _summed(f"controls of which judges find {EASIER} more than of the edits", np.array(easy))


def _print(start: str, figures: np.ndarray) -> None:
    pairs = figures.reshape(-1, 2)
    print(f"{start} | " + " | ".join(f"{bias:+12.3f} {covers:7.1%}" for bias, covers in pairs), flush=True)


def _summed(name: str, lines: np.ndarray) -> None:
    said = [
        f"{what} {np.abs(bias).max():.3f} off at most, covered {covers.mean():.1%}, from {covers.min():.1%}"
        for what, bias, covers in zip(("joint", "multiplied", "raw"), lines.T[::2], lines.T[1::2], strict=True)
    ]
    print(f"{name}: {'; '.join(said)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--judges", action="store_true", help="several judges together instead of one")
    runs, several = (vars(parser.parse_args())[name] for name in ("runs", "judges"))
    if several:
        return panels(runs)
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
