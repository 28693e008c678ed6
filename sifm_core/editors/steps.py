"""A diffusers scheduler's steps with noise that was drawn beforehand: none of them waits for the device.

Pipelines keep their schedule on the device and ask it which step they are at, and draw noise between steps. Here both
happen on the host before the first step, so that an edit is one sequence of operations on the device, with a gradient.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor


class Sampler:
    """The steps of an edit: ``timesteps`` on the CPU, ``noises`` how many :meth:`step` takes over all of them."""

    def __init__(self, scheduler: Any, steps: int, strength: float = 1.0, **schedule: Any) -> None:
        """``strength``: the share of the ``steps`` that is run; ``schedule``: further arguments of set_timesteps."""
        self._scheduler, self._made = scheduler, (steps, strength, schedule)
        self.begin([])
        count = iter(range(10**6))
        self._step = self._with(torch.zeros(()) for _ in count)
        for t in self.timesteps:
            z = torch.zeros(1, 1, 1, 1)
            self._step(torch.zeros_like(z), t, self.scale(z, t), return_dict=False)
        self.noises = next(count)

    def begin(self, noises: Sequence[Tensor]) -> None:
        """Start (again), with the noises of the steps to come."""
        steps, strength, schedule = self._made
        self.scheduler = copy.deepcopy(self._scheduler)
        self.scheduler.set_timesteps(steps, device="cpu", **schedule)
        first = int(max(steps - min(steps * strength, steps), 0)) * self.scheduler.order
        if first or strength < 1:
            self.scheduler.set_begin_index(first)
        self.timesteps: Tensor = self.scheduler.timesteps[first:]
        self._step = self._with(iter(noises))

    def scale(self, z: Tensor, t: Tensor) -> Tensor:
        """The latent as the network expects it at ``t``."""
        scale = getattr(self.scheduler, "scale_model_input", None)
        return z if scale is None else scale(z, t)

    def step(self, predicted: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """The next latent."""
        return self._step(predicted, t, z, return_dict=False)[0]

    def _with(self, noises: Iterator[Tensor]) -> Any:
        """The scheduler's own step, with the next of ``noises`` where it would draw one."""
        function = inspect.unwrap(type(self.scheduler).step)
        names = dict(function.__globals__, randn_tensor=lambda shape, dtype=None, **_: next(noises).to(dtype))
        step = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
        step.__kwdefaults__ = function.__kwdefaults__
        return step.__get__(self.scheduler)
