"""Random numbers that depend on the seed alone: not on the device, the dtype or the other images of the batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import InputError

Seed = int | Sequence[int]
"""One seed for all images of a batch, or one per image."""


def generators(seed: Seed, n: int) -> list[torch.Generator]:
    """One CPU generator per image. With a single seed every image draws the same numbers, as it would alone.

    Raises InputError unless there is one seed or n of them, each in [0, 2**63).
    """
    seeds = [seed] * n if isinstance(seed, int) else list(seed)
    if len(seeds) != n:
        raise InputError(f"expected one seed or {n} (one per image), got {len(seeds)}")
    for value in seeds:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            raise InputError(f"seed: expected a whole number in [0, 2**63), got {value!r}")
    return [torch.Generator().manual_seed(value) for value in seeds]


def check_seed(seed: Any, n: int) -> None:
    """Raise InputError unless seed is a whole number in [0, 2**63), or n of them."""
    if not isinstance(seed, int | Sequence):
        raise InputError(f"seed: expected a whole number or one per picture, got {seed!r}")
    generators(seed, n)


def normal(shape: Sequence[int], seed: Seed) -> Tensor:
    """Standard normal numbers, ``shape`` (B, ...), float32 on the CPU; row b comes from the seed of image b alone."""
    return torch.stack([torch.randn(*shape[1:], generator=g) for g in generators(seed, shape[0])])


def uniform(shape: Sequence[int], seed: Seed) -> Tensor:
    """Uniform numbers in [-1, 1), ``shape`` (B, ...), float32 on the CPU; row b comes from image b's seed alone."""
    return torch.stack([torch.rand(*shape[1:], generator=g) for g in generators(seed, shape[0])]) * 2 - 1


def integers(low: int, high: int, n: int, seed: Seed) -> Tensor:
    """One whole number in [low, high) per image, (n,) int64 on the CPU; row b comes from image b's seed alone."""
    return torch.cat([torch.randint(low, high, (1,), generator=g) for g in generators(seed, n)])


def fork(seed: Seed, *path: object) -> Seed:
    """Another seed for a part of the work, such as one iteration; unrelated to ``seed`` and to other paths."""
    if isinstance(seed, int):
        return random.Random("/".join(map(str, (seed, *path)))).getrandbits(62)
    return [random.Random("/".join(map(str, (s, *path)))).getrandbits(62) for s in seed]
