"""Visibility: thresholds against their formulas, budgets where an eye forgives, figures that mean what they say."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sifm_core import immunize
from sifm_core.errors import ImageError, InputError
from sifm_core.images import load_image, round_to_budget, save_png
from sifm_core.memory import peak
from sifm_core.metrics import cvvdp as metric
from sifm_core.pgd import pgd
from sifm_core.types import Gradient
from sifm_core.visibility import FULL, MASKING, TILE, budget_map, faded, forgiven, is_grey, jnd, meaning, visibility
from toy import ToyEditor


def photo(height: int = 96, width: int = 120) -> Tensor:
    """Flat skin to the left, texture to the right, 8-bit."""
    x = torch.tensor([0.95, 0.80, 0.70]).reshape(1, 3, 1, 1).expand(1, 3, height, width).clone()
    noise = torch.rand(1, 3, height, width // 2, generator=torch.Generator().manual_seed(0))
    x[..., width // 2 :] = 0.2 + 0.6 * noise[..., : width - width // 2]
    return (x * 255).round() / 255


def literal_jnd(x: Tensor) -> np.ndarray:
    """The formulas pixel by pixel, from Chou and Li's tables."""
    luma = np.pad(np.tensordot([0.299, 0.587, 0.114], x[0].double().numpy(), 1) * 255, 2, mode="edge")
    around = np.array([[1, 1, 1, 1, 1], [1, 2, 2, 2, 1], [1, 2, 0, 2, 1], [1, 2, 2, 2, 1], [1, 1, 1, 1, 1]]) / 32
    level = np.array([[0, 0, 0, 0, 0], [1, 3, 8, 3, 1], [0, 0, 0, 0, 0], [-1, -3, -8, -3, -1], [0, 0, 0, 0, 0]])
    slant = np.array([[0, 0, 1, 0, 0], [0, 8, 3, 0, 0], [1, 3, 0, -3, -1], [0, 0, -3, -8, 0], [0, 0, -1, 0, 0]])
    found = np.empty(x.shape[-2:])
    for i, j in np.ndindex(*found.shape):
        window = luma[i : i + 5, j : j + 5]
        activity = max(abs((window * k).sum()) / 16 for k in (level, level.T, slant, slant[:, ::-1]))
        mean = max((window * around).sum(), 25)
        found[i, j] = 1 / (lightness(mean + 1) - lightness(mean)) + MASKING * activity
    return found / 255


def lightness(level: float) -> float:
    v = level / 255
    light = v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
    return 116 * light ** (1 / 3) - 16 if light > 216 / 24389 else light * 24389 / 27


def test_jnd_is_its_formulas() -> None:
    x = torch.cat([photo(20, 24), torch.zeros(1, 3, 20, 8)], dim=-1)
    assert np.allclose(jnd(x)[0, 0].numpy(), literal_jnd(x), rtol=1e-3, atol=1e-5)


def test_one_unit_of_lightness_is_two_to_three_levels_everywhere_and_no_more_in_black() -> None:
    greys = (jnd((torch.arange(256) / 255).reshape(-1, 1, 1, 1).expand(256, 3, 8, 8)) * 255).amax(dim=(1, 2, 3))
    assert float(greys.min()) == pytest.approx(1.97, abs=0.01) and float(greys.max()) == pytest.approx(2.9, abs=0.05)
    assert float(greys[0]) == pytest.approx(float(greys[25]), abs=1e-3)


def test_the_map_gives_texture_all_flat_areas_a_quarter_and_transparent_ones_nothing() -> None:
    x, alpha = photo(), torch.ones(1, 1, 96, 120)
    alpha[..., :10, :] = 0
    alpha[..., 10:20, :] = 0.1
    weights = budget_map(x, alpha)
    assert weights.shape == (1, 1, 96, 120) and float(weights.max()) == 1
    assert not weights[..., :10, :].any() and weights[..., 10:, :].all()
    flat, busy = weights[..., 24:, 8:50], weights[..., 24:, 66:]
    assert float(flat.min()) > 0.2 and float(flat.max()) < 0.35 and float(busy.mean()) > 0.75


def test_under_the_full_budget_every_pixel_may_change_by_its_own_jnd() -> None:
    x = photo()
    weights, limits = budget_map(x), jnd(x)
    below = limits < FULL
    assert torch.allclose((FULL * weights)[below], limits[below]) and (weights[~below] == 1).all()


def test_strips_are_the_whole_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(1, 3, 300, 70, generator=torch.Generator().manual_seed(1))
    from sifm_core import visibility as module

    strips = list(module._strips(x))
    monkeypatch.setattr(module, "_STRIP", 1)
    assert len(list(module._strips(x))) > len(strips) == 1
    assert torch.equal(budget_map(x), (jnd(x) / FULL).clamp(max=1))


def test_fine_texture_does_not_hide_the_coarse_patterns_of_a_small_editor() -> None:
    """Stripes of two pixels are gone at the size that hides blotches of 16 pixels; stripes of 32 are not."""
    fine = ((torch.arange(512) // 2 % 2) * 0.5 + 0.25).expand(1, 3, 512, 512)
    coarse = ((torch.arange(512) // 16 % 2) * 0.5 + 0.25).expand(1, 3, 512, 512)
    assert float(budget_map(fine).mean()) > 0.99 and float(budget_map(fine, size=(32, 32)).mean()) < 0.3
    assert float(budget_map(coarse, size=(32, 32)).mean()) > 0.6
    assert torch.equal(budget_map(fine, size=(512, 512)), budget_map(fine))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux")
def test_a_large_map_takes_little_more_than_itself() -> None:
    x = torch.rand(1, 3, 2000, 3000)
    budget_map(x[..., :64, :])
    with peak(torch.device("cpu")) as found:
        budget_map(x)
    assert found[0].value < 4 * 6e6 + 200e6, "the map, and strips of a million pixels"


def test_no_change_is_none_and_a_loud_one_is_plain() -> None:
    x = photo(128, 128)
    nothing = visibility(x, x)
    assert nothing.loss.value == 0 and nothing.beyond == nothing.largest == nothing.typical == 0
    assert nothing.words == "not visible at arm's length"
    loud = visibility(x, (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1))
    assert loud.words == "plainly visible" and loud.beyond > 0.5


def test_the_same_noise_is_seen_on_flat_areas_and_less_in_texture() -> None:
    flat = torch.full((1, 3, 128, 128), 0.5)
    busy = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(2)) * 0.8 + 0.1
    noise = 0.02 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(3)).sign()
    assert visibility(flat, flat + noise).loss.value > 2 * visibility(busy, busy + noise).loss.value
    assert visibility(flat, flat + noise).beyond == 1 > visibility(busy, busy + noise).beyond


def test_shaped_noise_is_seen_less_than_even_noise_of_the_same_strength() -> None:
    x = photo(128, 128)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(4)).sign()
    shaped = noise * budget_map(x)
    same = shaped * (noise.square().mean() / shaped.square().mean()).sqrt()
    even, ours = (visibility(x, (x + 0.03 * n).clamp(0, 1)) for n in (noise, same))
    assert ours.loss.value < 0.6 * even.loss.value


def test_the_part_shown_is_where_most_is_seen() -> None:
    x = torch.full((1, 3, 700, 1500), 0.5)
    y = x.clone()
    y[..., 100:140, 1300:1340] += 0.06
    seen = visibility(x, y)
    top, left, height, width = seen.part
    assert (height, width) == (TILE, TILE) and top <= 100 and left <= 1300 and left + width >= 1340
    assert seen.crop(y).shape == (1, 3, TILE, TILE) and float(seen.crop(y).max()) > 0.55
    assert seen.largest == pytest.approx(0.06) and seen.beyond == pytest.approx(1600 / (700 * 1500))
    assert seen.typical == pytest.approx(0.06 * math.sqrt(1600 / (700 * 1500)))


def test_fading_reaches_the_cap_on_the_grid_within_what_was_there() -> None:
    x = photo(128, 128)
    protected = round_to_budget(x + 0.06 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5)), x, 0.05)
    faint, factor = faded(x, protected, 0.1)
    assert 0 < factor < 1 and visibility(x, faint).loss.value <= 0.1
    assert ((faint - x).abs() <= (protected - x).abs() + 1e-6).all()
    assert torch.equal((faint * 255).round() / 255, faint)
    assert faded(x, x, 0.1)[1] == 1
    asked, found = factor * (protected - x), faint - x
    assert float((found - asked).abs().max()) < 1.001 / 255
    assert float(found.flatten() @ asked.flatten() / asked.square().sum()) == pytest.approx(1, abs=0.05)


def test_changes_by_one_level_fade_too() -> None:
    x = photo(64, 64).clamp(0.1, 0.9).mul(255).round().div(255)
    faint, factor = faded(x, x + 1 / 255, 0.5 * (visibility(x, x + 1 / 255).loss.value or 0.0))
    assert 0 < factor < 1 and 0 < float((faint != x).float().mean()) < 1


def test_meanings_are_in_order() -> None:
    assert [meaning(v) for v in (0, 0.1, 0.11, 0.5, 0.51, 9)] == [
        *["not visible at arm's length"] * 2,
        *["visible on flat areas when looked for"] * 2,
        *["plainly visible"] * 2,
    ]


def test_without_the_package_the_measure_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    metric._metric.cache_clear()
    monkeypatch.setattr(metric, "find_spec", lambda name: None)
    seen = visibility(photo(64, 64), photo(64, 64).flip(-1))
    assert seen.loss.value is None and "pip install cvvdp" in seen.words and seen.beyond > 0
    with pytest.raises(ImageError, match="pip install cvvdp"):
        faded(photo(64, 64), photo(64, 64).flip(-1), 0.1)


def test_pictures_of_two_sizes_are_refused() -> None:
    with pytest.raises(ImageError, match="one size"):
        visibility(photo(64, 64), photo(64, 80))
    with pytest.raises(ImageError, match="one by one"):
        visibility(photo(64, 64).expand(2, -1, -1, -1), photo(64, 64))


@pytest.mark.parametrize("method", ["photoguard_encoder", "random_noise"])
@pytest.mark.parametrize("ball", ["linf", "l2"])
def test_grey_stays_grey_in_the_saved_file(tmp_path: Path, method: str, ball: str) -> None:
    grey = photo(64, 64).mean(dim=1, keepdim=True).mul(255).round().div(255).expand(1, 3, 64, 64).contiguous()
    assert is_grey(grey) and not is_grey(photo(64, 64))
    editor = ToyEditor()
    done = immunize(grey, editor, prompt="a", method=method, steps=3, ball=ball, grey=True, random_start=True)
    save_png(done.image, tmp_path / "out.png")
    saved = load_image(tmp_path / "out.png")
    assert is_grey(saved) and float((saved - grey).abs().max()) > 0
    assert (done.linf if ball == "linf" or method == "random_noise" else done.rms) <= 0.03 + 1e-6


def test_grey_refuses_a_picture_with_colour() -> None:
    with pytest.raises(ImageError, match="colourless"):
        immunize(photo(64, 64), ToyEditor(), prompt="a", method="random_noise", grey=True)


def test_less_luma_is_less_brightness_and_as_much_colour() -> None:
    x0, pull = torch.full((1, 3, 16, 16), 0.5), torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(6))
    luma = torch.tensor([0.299, 0.587, 0.114])
    grad_fn = lambda x, step: Gradient(torch.zeros(1), pull)  # noqa: E731
    plain, less, none = (
        pgd(x0, grad_fn, eps=0.02, alpha=1e-3, steps=1, ball="l2", luma=weight) - x0 for weight in (1.0, 0.5, 0.0)
    )
    bright = [torch.einsum("c,bchw->bhw", luma, d).square().mean().sqrt() for d in (plain, less, none)]
    assert bright[0] > 1.4 * bright[1] > 1.4 * 1.4 * bright[2] and float(bright[2]) < 1e-6
    with pytest.raises(InputError, match="luma"):
        pgd(x0, grad_fn, eps=0.02, alpha=1e-3, steps=1, luma=2)


def test_what_is_forgiven_is_what_immunize_takes() -> None:
    x = photo(64, 64)
    grey = x[:, :1].expand(1, 3, 64, 64).contiguous()
    assert forgiven(x, size=(32, 32))["luma"] < 1 == forgiven(x, size=(48, 48))["luma"]
    assert forgiven(grey, size=(32, 32))["luma"] == 1 and forgiven(grey, size=(32, 32))["grey"]
    done = immunize(x, ToyEditor(), prompt="a", steps=2, random_start=True, **forgiven(x, size=(32, 32)))
    assert done.settings["luma"] < 1 and "grey" not in done.settings
    assert ((done.image - x).abs() <= 0.03 * budget_map(x, size=(32, 32)) + 1e-6).all()
