"""Projected gradient descent in the L-infinity ball: the one loop that every gradient method runs in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import ImageError, InputError
from .gradients import finite
from .images import check_image
from .noise import Seed, uniform
from .types import GradFn, Image, OnStep, Step


def pgd(
    x0: Image,
    grad_fn: GradFn,
    *,
    eps: float,
    alpha: float,
    steps: int,
    seed: Seed = 0,
    random_start: bool = False,
    mask: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Image:
    """Lower the loss of ``grad_fn`` by signed steps while every pixel stays within ``eps`` of ``x0`` and in [0, 1].

    Algorithm 1 of the paper, lines 1, 2, 5 and 13 to 16: the perturbation starts at 0 (``random_start``: uniform within
    eps, drawn from ``seed``), moves by ``alpha`` against the sign of the gradient and is clipped to eps; the image is
    clipped to [0, 1]. The last image is returned, on x0's device, not yet rounded to 8 bits.

    ``x0`` (B, 3, H, W); ``eps``, ``alpha`` in [0, 1] units; ``mask`` (B or 1, 1, H, W) in [0, 1] scales the budget of
    each pixel. ``on_step`` gets the loss before the step, its log with "saturated" (the share of values at the edge
    of their budget), and the image after it; what it raises comes through. Works inside ``torch.inference_mode``.

    Raises InputError for arguments out of range, and when an image's gradient is zero everywhere at the first step, so
    that it would never move; EditorError when a loss or gradient is not finite.
    """
    _check(x0, eps, alpha, steps)
    with torch.inference_mode(False), torch.enable_grad():
        x0 = x0.detach().clone()
        budget = eps * (torch.ones_like(x0[:, :1]) if mask is None else _check_mask(mask, x0))
        free = budget > 0
        delta = torch.zeros_like(x0)
        if random_start:
            delta = uniform(x0.shape, seed).to(x0) * budget
        x = (x0 + delta).clamp(0, 1)
        for i in range(steps):
            gradient = finite(grad_fn(x, i), i)
            direction = (gradient.grad * free).sign()
            if i == 0:
                _refuse_zero(direction)
            delta = (delta - alpha * direction).clamp(-budget, budget)
            x = (x0 + delta).clamp(0, 1)
            if on_step is not None:
                log = {name: float(value.mean()) for name, value in gradient.log.items()}
                log["saturated"] = float(((delta.abs() >= budget) & free).sum() / (3 * free.sum()))
                on_step(Step("immunize", i + 1, steps, float(gradient.loss.mean()), log, x))
        return x


def _check(x0: Image, eps: float, alpha: float, steps: int) -> None:
    check_image(x0, "x0")
    if not 0 < eps <= 1:
        raise InputError(f"eps: expected a number above 0 and at most 1 (pixel values span [0, 1]), got {eps!r}")
    if not 0 < alpha < math.inf:
        raise InputError(f"alpha: expected a step size above 0, such as 2/255, got {alpha!r}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise InputError(f"steps: expected a whole number of at least 0, got {steps!r}")


def _check_mask(mask: Tensor, x0: Image) -> Tensor:
    if mask.ndim != 4 or mask.shape[0] not in (1, len(x0)) or mask.shape[1:] != (1, *x0.shape[-2:]):
        expected = (len(x0), 1, *x0.shape[-2:])
        raise ImageError(f"mask: expected the shape {expected}, got {tuple(mask.shape)}")
    mask = mask.detach().clone().to(x0).expand(len(x0), -1, -1, -1)
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ImageError("mask: expected numbers in [0, 1]: 1 where pixels may change, 0 where they must not")
    if not bool((mask > 0).flatten(1).any(dim=1).all()):
        raise ImageError("mask: all zero for an image, so that no pixel of it may change")
    return mask


def _refuse_zero(direction: Tensor) -> None:
    still = ~direction.flatten(1).any(dim=1)
    if bool(still.any()):
        raise InputError(
            f"the gradient of image {', '.join(str(int(i)) for i in still.nonzero())} of the batch is zero everywhere "
            "at the first step, so it would never move: a loss that is only a distance to the clean image needs "
            "random_start=True; otherwise choose other layers or a larger mask"
        )
