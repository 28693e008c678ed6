"""Random numbers: what they are distributed like, and what they depend on."""

from __future__ import annotations

import torch

from sifm_core.noise import fork, normal, uniform


def test_uniform_fills_its_range_around_nothing() -> None:
    drawn = uniform((4, 3, 50, 50), 0)
    assert -1 <= float(drawn.min()) < -0.99 and 0.99 < float(drawn.max()) < 1
    assert abs(float(drawn.mean())) < 0.02 and abs(float(drawn.std()) - 3**-0.5) < 0.02


def test_normal_has_mean_0_and_deviation_1() -> None:
    drawn = normal((4, 3, 50, 50), [1, 2, 3, 4])
    assert abs(float(drawn.mean())) < 0.02 and abs(float(drawn.std()) - 1) < 0.02


def test_a_row_depends_on_its_own_seed_alone() -> None:
    both = normal((2, 3, 4, 4), [7, 8])
    assert torch.equal(both[1:], normal((1, 3, 4, 4), 8)) and not torch.equal(both[0], both[1])
    assert fork(7, "noise") != fork(8, "noise") != fork(8, "other") and fork([7, 8], "a") == [
        fork(7, "a"),
        fork(8, "a"),
    ]
