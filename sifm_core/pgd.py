"""Projected gradient descent in a ball about the clean image: the one loop that every gradient method runs in."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor

from .checks import check_choice
from .errors import EditorError, ImageError, InputError
from .images import LUMA, bands, check_image
from .loop import Ball, Schedule, Update
from .noise import Seed, uniform
from .types import GradFn, Gradient, Image, OnStep, Step

SCHEDULES: dict[Schedule, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - 0.99 * done,
    "cosine": lambda done: 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2,
}
"""The factor on alpha when a share of the steps is ``done``; those that decay go to 1%, as PhotoGuard's does."""


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
    grey: bool = False,
    luma: float = 1.0,
    ball: Ball = "linf",
    schedule: Schedule = "constant",
    update: Update = "steepest",
    on_step: OnStep | None = None,
) -> Image:
    """Lower the loss of ``grad_fn`` by steps while each image stays within ``eps`` of ``x0`` and in [0, 1].

    Ball "linf" is Algorithm 1 of the paper, lines 1, 2, 5 and 13 to 16: the perturbation starts at 0
    (``random_start``: uniform within eps, drawn from ``seed``), moves by ``alpha`` against the sign of the gradient and
    is clipped to eps; the image is clipped to [0, 1]. What is carried on is the perturbation, as in the paper; loops of
    official codes carry the clipped image, which differs where pixels are black or white. Ball "l2" bounds the RMS of
    the perturbation's values by eps (so its L2 norm by eps * sqrt(3 H W)): it moves by RMS ``alpha`` against the
    gradient, and the image becomes the nearest one that is both in the ball and in [0, 1]. The last image is returned,
    on x0's device, not yet rounded to 8 bits. ``schedule`` lets alpha decay, see :data:`SCHEDULES`; ``update``
    "momentum" follows the sum of all gradients so far, each of mean magnitude 1 and :data:`KEPT` of it kept from step
    to step, instead of the last one; "adam" moves by Adam's update, with alpha as its rate, into the same ball.

    ``x0`` (B, 3, H, W); ``eps``, ``alpha`` in [0, 1] units; ``mask`` (B or 1, 1, H, W) in [0, 1] scales what each pixel
    may change (where it is 0 nothing does, and an RMS is over the rest); with ``grey`` a pixel's three values change
    alike, and the gradient is that of this one change; ``luma`` in [0, 1] is the weight of brightness in the gradient,
    beside 1 of colour, where an eye sees coarse patterns less. ``on_step`` gets the loss before the step, its log with
    "grad" (the L2 norm of the gradient at the image) and "saturated" (linf: the share of values at the edge of their
    budget; l2: the share of eps that is used), and the image after it; what it raises comes through. On CUDA it is
    called :data:`LATE` steps late, so that the device need not wait for the host. Works inside
    ``torch.inference_mode``. On the CPU the loop holds two pictures beside ``x0`` and the gradient (an l2 ball with a
    mask: three; Adam: two more), and each image that ``on_step`` keeps.

    Raises InputError for arguments out of range, and when an image's gradient is zero everywhere at the first step, so
    that it would never move; EditorError when a loss or gradient is not finite.
    """
    _check(x0, eps, alpha, steps)
    if not 0 <= luma <= 1:
        raise InputError(f"luma: expected a weight from 0 to 1, got {luma!r}")
    check_choice(schedule, "schedule", SCHEDULES)
    check_choice(ball, "ball", get_args(Ball))
    check_choice(update, "update", [name for name in get_args(Update) if name != "auto"])
    with torch.inference_mode(False), torch.enable_grad():
        x0 = x0.detach()
        weight = x0.new_ones(1, 1, 1, 1) if mask is None else _check_mask(mask, x0)
        slices = list(bands(x0)) if x0.device.type == "cpu" else [slice(None)]
        room = (_Linf if ball == "linf" else _L2)(x0, weight, eps, slices)
        delta = torch.zeros_like(x0)
        if random_start:
            delta += uniform((len(x0), 1 if grey else 3, *x0.shape[-2:]), seed).to(x0).mul_(eps).mul_(weight)
        room.project(delta)
        x = torch.add(x0, delta).clamp_(0, 1)
        towards: Callable[[Tensor], Callable[[slice], Tensor]] = room.direction
        if update != "steepest":
            towards = _Momentum(room, slices) if update == "momentum" else _Adam()
        reports = _Reports(on_step, steps, LATE if x0.is_cuda else 0)
        for i in range(steps):
            gradient = grad_fn(x, i)
            del x  # where on_step has not kept it, the memory is free for the next
            if grey:
                gradient = gradient._replace(grad=gradient.grad.sum(dim=1, keepdim=True).expand_as(x0))
            elif luma != 1:
                gradient = gradient._replace(grad=_without_luma(gradient.grad, 1 - luma, slices))
            direction, length = towards(gradient.grad), alpha * SCHEDULES[schedule](i / steps)
            moved = []
            for rows in slices:
                change = direction(rows)
                delta[..., rows, :] -= length * change
                if i == 0:
                    moved.append(change.flatten(1).any(dim=1))
            if i == 0:
                _refuse_zero(torch.stack(moved).any(dim=0))
            room.project(delta)
            x = torch.add(x0, delta).clamp_(0, 1)
            reports.add(gradient, room.used(delta), x)
            del gradient, direction
        reports.finish()
        return x


KEPT = 0.9
"""How much of the sum of gradients so far an update with momentum keeps."""
LATE = 2
"""Steps that a CUDA device may be ahead of the reports of progress, and so of an interrupt or of a refusal."""


class _Reports:
    """What the loop says of its steps, in order: each is measured on the device at once and read ``late`` steps later.

    Reading waits until the device is done with the step; meanwhile it has the next steps to work on.
    """

    def __init__(self, on_step: OnStep | None, steps: int, late: int) -> None:
        self._on_step, self._steps, self._late = on_step, steps, late
        self._added = 0
        self._unread: deque[tuple[int, list[str], Tensor, Tensor, Image, torch.cuda.Event | None]] = deque()

    def add(self, gradient: Gradient, used: Tensor, x: Image) -> None:
        values = {"": gradient.loss, **gradient.log, "grad": gradient.grad.flatten(1).norm(dim=1), "saturated": used}
        ends = [torch.aminmax(value.flatten(1), dim=1) for value in (gradient.loss[:, None], gradient.grad)]
        broken = torch.stack([~(torch.isfinite(end.min) & torch.isfinite(end.max)) for end in ends])
        means = torch.stack([value.mean().to(gradient.loss) for value in values.values()])
        done = None
        if x.is_cuda:
            broken, means = (v.to("cpu", non_blocking=True) for v in (broken, means))
            done = torch.cuda.Event()
            done.record()
        self._unread.append((self._added, list(values), broken, means, x, done))
        self._added += 1
        while len(self._unread) > self._late:
            self._read()

    def finish(self) -> None:
        while self._unread:
            self._read()

    def _read(self) -> None:
        i, names, broken, means, x, done = self._unread.popleft()
        if done is not None:
            done.synchronize()
        for name, bad in zip(("loss", "gradient"), broken, strict=True):
            if bool(bad.any()):
                raise EditorError(
                    f"the {name} of image {', '.join(str(int(k)) for k in bad.nonzero())} of the batch is not finite "
                    f"at step {i}: numbers overflowed in the editor; load it with {{dtype}}",
                    dtype="float32",
                )
        if self._on_step is not None:
            log = dict(zip(names, means.tolist(), strict=True))
            self._on_step(Step("immunize", i + 1, self._steps, log.pop(""), log, x))


def _without_luma(grad: Tensor, share: float, slices: Sequence[slice]) -> Tensor:
    """The gradient less a share of its part along ITU-R BT.601's luma."""
    along, rest = torch.nn.functional.normalize(grad.new_tensor(LUMA), dim=0), torch.empty_like(grad)
    for rows in slices:
        band = grad[..., rows, :]
        rest[..., rows, :] = band - share * torch.einsum("c,d,bdhw->bchw", along, along, band)
    return rest


class _Room:
    """Where a perturbation may be, worked on in ``slices`` of rows: what is in between needs little room."""

    def __init__(self, x0: Image, weight: Tensor, eps: float, slices: Sequence[slice]) -> None:
        self._x0, self._weight, self._eps, self._slices = x0, weight, eps, slices
        self._count = 3 * (weight > 0).expand(len(x0), 1, *x0.shape[-2:]).flatten(1).sum(dim=1)

    def _weights(self, rows: slice) -> Tensor:
        return self._weight if self._weight.numel() == 1 else self._weight[..., rows, :]

    def _written(self, out: Tensor, band: Callable[[slice], Tensor]) -> Tensor:
        for rows in self._slices:
            out[..., rows, :] = band(rows)
        return out


class _Linf(_Room):
    """Every value within eps times its weight."""

    def direction(self, grad: Tensor) -> Callable[[slice], Tensor]:
        return lambda rows: (grad[..., rows, :] * (self._weights(rows) > 0)).sign()

    def project(self, delta: Tensor) -> None:
        def clipped(rows: slice) -> Tensor:
            budget = self._eps * self._weights(rows)
            return delta[..., rows, :].clamp(-budget, budget)

        self._written(delta, clipped)

    def used(self, delta: Tensor) -> Tensor:
        def spent(rows: slice) -> Tensor:
            weight = self._weights(rows)
            return ((delta[..., rows, :].abs() >= self._eps * weight) & (weight > 0)).sum()

        return torch.stack([spent(rows) for rows in self._slices]).sum() / self._count.sum()


class _L2(_Room):
    """An RMS of at most eps, over the values that may change, each divided by its weight."""

    def direction(self, grad: Tensor) -> Callable[[slice], Tensor]:
        factor = 1 / self._rms(grad if self._weight.numel() == 1 else grad * self._weight).clamp_min(1e-38)

        def scaled(rows: slice) -> Tensor:
            weight = self._weights(rows)
            return _scaled(grad[..., rows, :] * weight, factor) * weight

        return scaled

    def project(self, delta: Tensor) -> None:
        """The nearest point of ball and box: the values shrunk by one factor and clipped, the factor by bisection."""
        u, one, shrunk = self._relative(delta, delta), delta.new_ones(len(delta)), torch.empty_like(delta)
        length = lambda factor: self._rms(self._written(shrunk, lambda rows: self._clip(u, factor, rows)))  # noqa: E731
        inside = length(one) <= self._eps
        low, high = inside.to(u), one
        for _ in range(0 if not u.is_cuda and bool(inside.all()) else 25):  # where asking would wait for the device
            factor = (low + high) / 2
            outside = length(factor) > self._eps
            low, high = torch.where(outside, low, factor), torch.where(outside, factor, high)
        self._written(delta, lambda rows: self._clip(u, low, rows) * self._weights(rows))

    def used(self, delta: Tensor) -> Tensor:
        return self._rms(self._relative(delta)).mean() / self._eps

    def _inverse(self, rows: slice) -> Tensor:
        weight = self._weights(rows)
        return torch.where(weight > 0, 1 / weight, 0)

    def _relative(self, delta: Tensor, out: Tensor | None = None) -> Tensor:
        """Each value divided by its weight."""
        if self._weight.numel() == 1:
            return delta
        out = torch.empty_like(delta) if out is None else out
        return self._written(out, lambda rows: delta[..., rows, :] * self._inverse(rows))

    def _clip(self, u: Tensor, factor: Tensor, rows: slice) -> Tensor:
        x0, inverse = self._x0[..., rows, :], self._inverse(rows)
        return _scaled(u[..., rows, :], factor).clamp(-x0 * inverse, (1 - x0) * inverse)

    def _rms(self, u: Tensor) -> Tensor:
        return u.flatten(1).norm(dim=1) / self._count.to(u).sqrt()


class _Momentum:
    """MI-FGSM's direction: as steep as the ball allows along the sum of all gradients so far, of equal mean size."""

    def __init__(self, room: _Linf | _L2, slices: Sequence[slice]) -> None:
        self._room, self._slices, self._sum = room, slices, torch.zeros(())

    def __call__(self, grad: Tensor) -> Callable[[slice], Tensor]:
        size = grad.flatten(1).norm(p=1, dim=1) / grad[0].numel()
        factor = torch.where(size > 0, 1 / size, 0)
        if self._sum.ndim == 0:
            self._sum = torch.zeros_like(grad)
        for rows in self._slices:
            self._sum[..., rows, :] = KEPT * self._sum[..., rows, :] + _scaled(grad[..., rows, :], factor)
        return self._room.direction(self._sum)


class _Adam:
    """Kingma and Ba's update, with their constants."""

    def __init__(self) -> None:
        self._steps, self._mean, self._square = 0, torch.zeros(()), torch.zeros(())

    def __call__(self, grad: Tensor) -> Callable[[slice], Tensor]:
        if self._steps == 0:
            self._mean, self._square = torch.zeros_like(grad), torch.zeros_like(grad)
        self._steps += 1

        def updated(rows: slice) -> Tensor:
            new, mean, square = (values[..., rows, :] for values in (grad, self._mean, self._square))
            mean.mul_(0.9).add_(0.1 * new)
            square.mul_(0.999).add_(0.001 * new.square())
            return mean / (1 - 0.9**self._steps) / ((square / (1 - 0.999**self._steps)).sqrt() + 1e-8)

        return updated


def _scaled(x: Tensor, factor: Tensor) -> Tensor:
    return x * factor.reshape(-1, 1, 1, 1)


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
    mask = mask.detach().to(x0).expand(len(x0), -1, -1, -1)
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ImageError("mask: expected numbers in [0, 1]: 1 where pixels may change, 0 where they must not")
    if not bool((mask > 0).flatten(1).any(dim=1).all()):
        raise ImageError("mask: all zero for an image, so that no pixel of it may change")
    return mask


def _refuse_zero(moved: Tensor) -> None:
    if not bool(moved.all()):
        still = ", ".join(str(int(i)) for i in (~moved).nonzero())
        raise InputError(
            f"the gradient of image {still} of the batch is zero everywhere at the first step, so it would never move: "
            "a loss that is only a distance to the clean image needs {random_start}; otherwise "
            "choose other layers or a larger mask",
            random_start=True,
        )
