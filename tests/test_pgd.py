"""The loop: Algorithm 1's update, the budget, masks, seeds, callbacks, refusals."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fakes import images
from sifm_core.errors import EditorError, InputError
from sifm_core.images import LUMA, bands
from sifm_core.noise import uniform
from sifm_core.pgd import SCHEDULES, _without_luma, pgd
from sifm_core.types import Gradient, Step

SETTINGS = {"eps": 0.03, "alpha": 2 / 255, "steps": 5}


def pull_to(target: Tensor):
    """Half the squared distance to a target."""
    return lambda x, step: Gradient(
        0.5 * (x - target).square().flatten(1).sum(1), x - target, {"one": torch.ones(len(x))}
    )


def test_is_algorithm_1() -> None:
    x_orig, goal = images(2), images(2, seed=1)
    delta = torch.zeros_like(x_orig)
    x = x_orig
    for _ in range(20):
        g = x - goal
        delta = torch.clip(delta - SETTINGS["alpha"] * torch.sign(g), -SETTINGS["eps"], SETTINGS["eps"])
        x = torch.clip(x_orig + delta, 0, 1)
    assert torch.equal(pgd(x_orig, pull_to(goal), **SETTINGS | {"steps": 20}), x)


@pytest.mark.parametrize("random_start", [False, True])
def test_stays_within_the_budget_and_in_range_while_the_loss_falls(random_start: bool) -> None:
    x0 = images(2)
    steps: list[Step] = []
    x = pgd(x0, pull_to(1 - x0.round()), **SETTINGS | {"steps": 12}, random_start=random_start, on_step=steps.append)
    assert float((x - x0).abs().max()) <= 0.03 + 1e-6 and float(x.min()) >= 0 and float(x.max()) <= 1
    assert steps[-1].loss < steps[0].loss
    assert steps[-1].log["saturated"] > 0.9 and steps[-1].log["one"] == 1


def test_no_steps_returns_the_start() -> None:
    x0 = images()
    assert torch.equal(pgd(x0, pull_to(x0), **SETTINGS | {"steps": 0}), x0)
    started = pgd(x0, pull_to(x0), **SETTINGS | {"steps": 0}, random_start=True)
    assert 0 < float((started - x0).abs().max()) <= 0.03


def test_reports_every_step_with_the_loss_before_and_the_image_after_it() -> None:
    x0, goal = images(), images(seed=1)
    steps: list[Step] = []
    asked: list[int] = []
    pull = pull_to(goal)
    x = pgd(x0, lambda x, i: asked.append(i) or pull(x, i), **SETTINGS, on_step=steps.append)
    assert asked == [0, 1, 2, 3, 4], "timesteps, noise and transforms are drawn by the step"
    assert [(s.phase, s.i, s.n) for s in steps] == [("immunize", i, 5) for i in range(1, 6)]
    assert steps[0].loss == pytest.approx(float(0.5 * (x0 - goal).square().sum()))
    assert steps[0].log["grad"] == pytest.approx(float((x0 - goal).norm()), rel=1e-5)
    assert steps[1].loss == pytest.approx(float(0.5 * (steps[0].preview - goal).square().sum()))
    assert torch.equal(steps[-1].preview, x)


def test_the_mask_scales_the_budget_of_each_pixel() -> None:
    x0 = images(2).clamp(0.1, 0.9)
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, :8], mask[:, :, 8:12] = 1, 0.5
    steps: list[Step] = []
    moved = (pgd(x0, pull_to(1 - x0.round()), **SETTINGS | {"steps": 20}, mask=mask, on_step=steps.append) - x0).abs()
    assert float(moved[:, :, 12:].max()) == 0
    assert float(moved[:, :, 8:12].max()) == pytest.approx(0.015, abs=1e-6)
    assert float(moved[:, :, :8].max()) == pytest.approx(0.03, abs=1e-6)
    assert steps[-1].log["saturated"] == pytest.approx(1.0), "only what may move counts"


def test_one_mask_serves_a_batch() -> None:
    mask = (torch.arange(16) < 8).float().expand(1, 1, 16, 16)
    x0 = images(3)
    moved = pgd(x0, pull_to(images(3, seed=1)), **SETTINGS, mask=mask) - x0
    assert not moved[..., 8:].any() and moved[..., :8].any()


@pytest.mark.parametrize("seed", [7, [1, 2, 3]])
def test_a_batch_equals_its_images_one_by_one(seed: int | list[int]) -> None:
    x0, goal = images(3), images(3, seed=1)
    batch = pgd(x0, pull_to(goal), **SETTINGS, random_start=True, seed=seed)
    for b in range(3):
        own = seed if isinstance(seed, int) else seed[b]
        assert torch.equal(
            pgd(x0[b : b + 1], pull_to(goal[b : b + 1]), **SETTINGS, random_start=True, seed=own)[0], batch[b]
        )


def test_the_seed_decides_the_random_start_and_nothing_global_does() -> None:
    x0 = images()
    start = {**SETTINGS, "steps": 0, "random_start": True}
    torch.manual_seed(1)
    one = pgd(x0, pull_to(x0), **start, seed=5)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(pgd(x0, pull_to(x0), **start, seed=5), one)
    assert not torch.equal(pgd(x0, pull_to(x0), **start, seed=6), one)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "the global generator must not be used"


def test_works_inside_inference_mode_and_leaves_the_input_alone() -> None:
    def graph(x: Tensor, step: int) -> Gradient:
        leaf = x.clone().requires_grad_()
        loss = leaf.square().flatten(1).sum(1)
        return Gradient(loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0])

    with torch.inference_mode():
        x0 = images() * 1.0
        before = x0.clone()
        x = pgd(x0, graph, **SETTINGS)
    assert torch.equal(x0, before) and not x.is_inference() and not x.requires_grad and not torch.equal(x, before)


def test_what_the_callback_raises_comes_through() -> None:
    class Stop(Exception):
        pass

    seen = []

    def stop(step: Step) -> None:
        seen.append(step.i)
        if step.i == 2:
            raise Stop

    with pytest.raises(Stop):
        pgd(images(), pull_to(images(seed=1)), **SETTINGS, on_step=stop)
    assert seen == [1, 2]


def test_a_zero_gradient_at_the_start_is_refused_with_the_way_out() -> None:
    x0 = images(2)
    goal = x0.clone()
    goal[0] = 0
    with pytest.raises(InputError, match=r"image 1 .*random_start=True"):
        pgd(x0, pull_to(goal), **SETTINGS)
    pgd(x0, pull_to(goal), **SETTINGS, random_start=True)


def test_a_gradient_outside_the_mask_only_is_refused() -> None:
    x0 = images()
    goal = x0.clone()
    goal[..., 8:] = 0.5
    with pytest.raises(InputError, match="zero everywhere"):
        pgd(x0, pull_to(goal), **SETTINGS, mask=(torch.arange(16) < 8).float().expand(1, 1, 16, 16))


def test_a_loss_that_is_not_finite_is_refused() -> None:
    with pytest.raises(EditorError, match="step 0"):
        pgd(images(), lambda x, i: Gradient(torch.full((1,), math.nan), torch.ones_like(x)), **SETTINGS)


NAN = images()
NAN[0, 0, 0, 0] = math.nan


@pytest.mark.parametrize(
    "wrong",
    [
        {"eps": 0.0},
        {"eps": -0.03},
        {"eps": 1.5},
        {"eps": math.nan},
        {"alpha": 0.0},
        {"alpha": -1.0},
        {"alpha": math.inf},
        {"steps": -1},
        {"steps": 2.5},
        {"seed": -1},
        {"seed": [1, 2]},
        {"x0": torch.zeros(3, 16, 16)},
        {"x0": torch.zeros(1, 1, 16, 16)},
        {"x0": torch.zeros(1, 3, 16, 16, dtype=torch.uint8)},
        {"x0": images() * 255},
        {"x0": NAN},
        {"mask": torch.ones(1, 3, 16, 16)},
        {"mask": torch.ones(1, 1, 8, 8)},
        {"mask": torch.ones(2, 1, 16, 16)},
        {"mask": torch.zeros(1, 1, 16, 16)},
        {"mask": torch.full((1, 1, 16, 16), 2.0)},
        {"mask": torch.full((1, 1, 16, 16), math.nan)},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_arguments_are_refused(wrong: dict) -> None:
    arguments = {"x0": images(), **SETTINGS, "random_start": True, **wrong}
    with pytest.raises(InputError):
        pgd(arguments.pop("x0"), pull_to(images(seed=1)), **arguments)


# ---- the L2 ball, schedules

L2 = {"eps": 0.03, "alpha": 0.01, "steps": 6, "ball": "l2"}


def rms(delta: Tensor) -> Tensor:
    return delta.square().flatten(1).mean(dim=1).sqrt()


def test_l2_moves_by_alpha_along_the_gradient_and_stays_in_the_ball() -> None:
    x0, goal = images(2) * 0.4 + 0.3, images(2, seed=1)
    seen: list[Step] = []
    x = pgd(x0, pull_to(goal), **L2, on_step=seen.append)
    first = seen[0].preview - x0
    assert torch.allclose(rms(first), torch.full((2,), 0.01), rtol=1e-4)
    assert torch.allclose(first / 0.01, (goal - x0) / rms(goal - x0).reshape(2, 1, 1, 1), atol=1e-3)
    assert torch.allclose(rms(x - x0), torch.full((2,), 0.03), rtol=1e-3), "far from the goal all of it is used"
    assert float(rms(x - x0).max()) <= 0.03 + 1e-6 and seen[-1].log["saturated"] == pytest.approx(1, rel=1e-3)
    assert float((x - x0).abs().max()) > 0.035, "single values may change by more than eps"


def test_l2_ends_at_the_nearest_image_of_ball_and_box() -> None:
    """A point is the projection of v on a convex set if no other point of it lies further along v - point."""
    x0 = images(1)
    v = x0 + 0.2 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    p = pgd(x0, lambda x, i: Gradient(torch.ones(1), x0 - v), eps=0.05, alpha=float(rms(v - x0)), steps=1, ball="l2")
    assert float(rms(p - x0)) == pytest.approx(0.05, rel=1e-4)
    for seed in range(20):
        w = (x0 + 0.1 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)
        w = x0 + (w - x0) * min(1.0, 0.05 / float(rms(w - x0)))
        assert float(((v - p) * (w - p)).sum()) <= 1e-3
    clipped = x0 + (v - x0) * 0.05 / rms(v - x0)
    assert float((v - p).norm()) < float((v - clipped.clamp(0, 1)).norm()) - 1e-3, (
        "shrinking, then clipping, is further"
    )


def test_l2_with_a_mask_counts_only_what_may_change() -> None:
    x0 = images(2) * 0.4 + 0.3
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8], mask[..., 8:12] = 1, 0.25
    moved = pgd(x0, pull_to(1 - x0.round()), **L2 | {"steps": 20}, mask=mask) - x0
    assert not moved[..., 12:].any()
    relative = (moved[..., :12] / mask[..., :12]).square().flatten(1).mean(dim=1).sqrt()
    assert torch.allclose(relative, torch.full((2,), 0.03), rtol=1e-3)
    assert float(moved[..., 8:12].abs().mean()) < 0.5 * float(moved[..., :8].abs().mean())


@pytest.mark.parametrize("start", [False, True])
def test_l2_of_a_batch_equals_its_images_one_by_one(start: bool) -> None:
    x0, goal = images(3), images(3, seed=1)
    batch = pgd(x0, pull_to(goal), **L2, seed=[1, 2, 3], random_start=start)
    for b in range(3):
        rows = slice(b, b + 1)
        alone = pgd(x0[rows], pull_to(goal[rows]), **L2, seed=[1 + b], random_start=start)
        assert torch.allclose(alone[0], batch[b], rtol=0, atol=1e-6)
    started = pgd(x0, pull_to(x0), **L2 | {"steps": 0}, random_start=True)
    assert float(rms(started - x0).min()) > 0.01 and float(rms(started - x0).max()) <= 0.03


def test_l2_refuses_a_zero_gradient() -> None:
    with pytest.raises(InputError, match="zero everywhere"):
        pgd(images(), pull_to(images()), **L2)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.7525, 0.505, 0.2575]),
        ("cosine", [1, 0.855018, 0.505, 0.154982]),
    ],
)
def test_alpha_follows_its_schedule(schedule: str, expected: list[float]) -> None:
    x0 = images() * 0.2 + 0.4
    path = [x0]
    far = pull_to(torch.zeros_like(x0))
    pgd(x0, far, eps=1.0, alpha=0.01, steps=4, schedule=schedule, on_step=lambda s: path.append(s.preview))
    moved = [float((b - a).abs().mean()) / 0.01 for a, b in itertools.pairwise(path)]
    assert moved == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"ball": "l3"}, "did you mean l2"), ({"schedule": "cosin"}, "did you mean cosine"), ({"ball": None}, "linf")],
)
def test_unknown_balls_and_schedules_are_refused(wrong: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        pgd(images(), pull_to(images(seed=1)), **SETTINGS | wrong)


# ---- in bands of rows, in place


def on_whole_pictures(x0: Tensor, pull, *, eps, alpha, steps, seed, random_start, mask, ball, schedule, update) -> list:
    """The loop as its formulas stand, every intermediate a whole picture: its images, and what it says of each step."""
    weight = torch.ones_like(x0[:, :1]) if mask is None else mask.expand(len(x0), -1, -1, -1)
    inverse, free = torch.where(weight > 0, 1 / weight, 0), weight > 0
    count = 3 * free.flatten(1).sum(dim=1).to(x0)
    scaled = lambda u, factor: u * factor.reshape(-1, 1, 1, 1)  # noqa: E731
    length = lambda u: u.flatten(1).norm(dim=1) / count.sqrt()  # noqa: E731
    clip = lambda u: u.clamp(-x0 * inverse, (1 - x0) * inverse)  # noqa: E731

    def project(delta: Tensor) -> Tensor:
        if ball == "linf":
            return delta.clamp(-eps * weight, eps * weight)
        u, high = delta * inverse, torch.ones_like(count)
        low = (length(clip(u)) <= eps).to(u)
        for _ in range(0 if bool(low.all()) else 25):
            factor = (low + high) / 2
            outside = length(clip(scaled(u, factor))) > eps
            low, high = torch.where(outside, low, factor), torch.where(outside, factor, high)
        return clip(scaled(u, low)) * weight

    mean = square = kept = torch.zeros(())
    delta = project(uniform(x0.shape, seed) * eps * weight if random_start else torch.zeros_like(x0))
    said = [((x0 + delta).clamp(0, 1), math.nan, math.nan)]
    for i in range(steps):
        grad = pull(said[-1][0], i).grad
        mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad.square()
        if update == "adam":
            direction = mean / (1 - 0.9 ** (i + 1)) / ((square / (1 - 0.999 ** (i + 1))).sqrt() + 1e-8)
        else:
            if update == "momentum":
                kept = 0.9 * kept + scaled(grad, 1 / (grad.flatten(1).norm(p=1, dim=1) / grad[0].numel()))
            g = kept if update == "momentum" else grad
            steep = scaled(g * weight, 1 / length(g * weight).clamp_min(1e-38)) * weight
            direction = (g * free).sign() if ball == "linf" else steep
        delta = project(delta - alpha * SCHEDULES[schedule](i / steps) * direction)
        edge = ((delta.abs() >= eps * weight) & free).sum() / (3 * free.sum())
        used = edge if ball == "linf" else length(delta * inverse).mean() / eps
        said.append(((x0 + delta).clamp(0, 1), float(used), float(grad.flatten(1).norm(dim=1).mean())))
    return said


@pytest.mark.parametrize("case", range(24))
def test_bands_give_the_bytes_of_whole_pictures(case: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(case)
    monkeypatch.setattr("sifm_core.images._BAND", draw.choice([100, 1000, 10**6]))
    x0 = (images(3, seed=case) * 1.4 - 0.2).clamp(0, 1)
    mask = draw.choice([None, images(3, seed=9)[:, :1] ** 2, (images(1, seed=8)[:, :1] > 0.4).float()])
    chosen = {
        "ball": draw.choice(["linf", "l2"]),
        "update": draw.choice(["steepest", "momentum", "adam"]),
        "schedule": draw.choice(list(SCHEDULES)),
        "random_start": draw.random() < 0.5,
        "seed": draw.choice([3, [1, 2, 3]]),
        "eps": draw.choice([8 / 255, 0.1]),
        "alpha": draw.choice([2 / 255, 0.1]),
        "mask": mask if mask is None else mask * (images(1, seed=7)[:, :1] > 0.2),
        "steps": 4,
    }
    steps: list[Step] = []
    pull = pull_to(images(3, seed=case + 100))
    x = pgd(x0, pull, **chosen, on_step=steps.append)
    wanted = on_whole_pictures(x0, pull, **chosen)[1:]
    for step, (image, used, norm) in zip(steps, wanted, strict=True):
        assert torch.equal(step.preview, image), "the image of a step is its own, whenever it is looked at"
        assert (step.log["saturated"], step.log["grad"]) == (used, norm)
    assert torch.equal(x, wanted[-1][0])
    assert torch.equal(pgd(x0, pull, **chosen), x), "who keeps the images changes none"


@pytest.mark.parametrize(
    ("chosen", "pictures"),
    [
        ({}, 2),
        ({"ball": "l2"}, 2),
        ({"ball": "l2", "masked": True}, 3),
        ({"update": "momentum"}, 3),
        ({"update": "adam"}, 4),
    ],
)
def test_a_large_picture_takes_few_times_itself_beside_itself_and_its_gradient(chosen: dict, pictures: int) -> None:
    x0 = torch.full((1, 3, 1000, 1000), 0.5)
    gradient = torch.full_like(x0, 1e-3)
    mask = torch.ones(1, 1, 1000, 1000) if chosen.pop("masked", False) else None
    settings = {"eps": 0.03, "alpha": 0.1, "steps": 2, "mask": mask, **chosen}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        pgd(x0, lambda x, i: Gradient(torch.zeros(1), gradient), **settings)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    most = max(itertools.accumulate(sizes)) / (12 * 1000 * 1000)
    assert pictures <= most < pictures + 0.5, "and some rows"


def test_less_brightness_is_one_projection_whether_in_bands_or_at_once() -> None:
    gradient = torch.randn(2, 3, 700, 401, generator=torch.Generator().manual_seed(0))
    along = torch.tensor(LUMA, dtype=torch.float64)
    along = along / along.norm()
    brightness = (gradient.double() * along.reshape(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    expected = gradient.double() - 0.75 * along.reshape(1, 3, 1, 1) * brightness
    banded = _without_luma(gradient, 0.75, list(bands(gradient)))
    assert len(list(bands(gradient))) > 1 and torch.equal(banded, _without_luma(gradient, 0.75, [slice(None)]))
    assert torch.allclose(banded.double(), expected, atol=1e-6)
