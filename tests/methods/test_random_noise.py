"""The control: random signs of full size, alike within a square and nowhere else."""

from __future__ import annotations

import pytest
import torch

from sifm_core.methods import random_noise
from sifm_core.noise import uniform

EPS = 0.03


@pytest.mark.parametrize("pattern, side", [("pixel", 1), ("block4", 4), ("block8", 8), ("block16", 16)])
def test_signs_are_even_and_reach_as_far_as_the_pattern_says(pattern: str, side: int) -> None:
    grey = torch.full((2, 3, 16 * 24, 16 * 24), 0.5)
    delta = random_noise.perturb(grey, eps=EPS, seed=[1, 2], pattern=pattern) - grey
    assert torch.allclose(delta.abs(), torch.full_like(delta, EPS))
    assert (((delta > 0).float().mean(dim=(2, 3)) - 0.5).abs() < 0.1).all(), "as often up as down, in every channel"
    squares = delta.unfold(2, side, side).unfold(3, side, side)
    assert torch.equal(squares.amax((-1, -2)), squares.amin((-1, -2)))
    corners = squares[..., 0, 0]
    for one, other in ((corners[..., 1:, :], corners[..., :-1, :]), (corners[..., 1:], corners[..., :-1])):
        assert 0.4 < float((one == other).float().mean()) < 0.6, "the next square knows nothing of it"
    assert not torch.equal(delta[0], delta[1]) and not torch.equal(delta[:, 0], delta[:, 1])


@pytest.mark.parametrize("pattern, k", [("pixel", 1), ("block8", 8), ("block16", 16)])
def test_signs_are_those_of_one_draw_over_all_channels(pattern, k):
    x = torch.rand(2, 3, 37, 50)
    draw = uniform((2, 3, -(-37 // k), -(-50 // k)), [3, 4])
    signs = torch.where(draw < 0, -1.0, 1.0).repeat_interleave(k, dim=2).repeat_interleave(k, dim=3)[:, :, :37, :50]
    assert torch.equal(random_noise.perturb(x, eps=0.03, seed=[3, 4], pattern=pattern), (x + 0.03 * signs).clamp(0, 1))
