"""Timesteps and prompts as rows of one batch of the network: one pass where a loop would take one for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..types import Cond, Editor, Latent


@dataclass(frozen=True)
class Batch:
    """``count`` runs of the network on the same B latents, as one batch: all pictures of the first, then the next.

    ``t`` (count * B,), ``noise`` (count * B, c, h, w), ``cond`` of as many rows, joined from those of the ``runs``.
    """

    count: int
    t: Tensor
    noise: Latent
    cond: Cond
    runs: Sequence[Cond]

    def denoise(self, editor: Editor, z: Latent, told: Callable[[Cond], Cond] | None = None) -> Tensor:
        """The network's output for latents (B, c, h, w), (count * B, ...); ``told`` puts other conditions in place."""
        cond = self.cond if told is None else editor.join([told(run) for run in self.runs])
        return editor.denoise(z.repeat(self.count, 1, 1, 1), self.noise, self.t, cond)

    def sum(self, values: Tensor) -> Tensor:
        """What the rows of each picture add up to: (count * B,) -> (B,)."""
        return values.unflatten(0, (self.count, -1)).sum(dim=0)


def at_once(editor: Editor, size: tuple[int, int], rows: int = 0, keeps: int = 1) -> int:
    """``rows``, or for 0 what the editor's rule says at the working ``size`` (height, width).

    ``keeps``: how many times as much as the network itself a method keeps of each row. Raises InputError for a negative
    number.
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0:
        raise InputError(f"rows: expected a whole number of at least 0 (0: the editor's rule), got {rows!r}")
    return rows or max(1, editor.rows(*size) // keeps)


def split(editor: Editor, runs: Sequence[tuple[int, Latent, Cond]], rows: int) -> list[Batch]:
    """Runs (timestep, noise (B, c, h, w), condition) of the network on B pictures, as few batches.

    No batch has more than ``rows`` rows, but each at least one run.
    """
    pictures = len(runs[0][1])
    most = max(1, rows // pictures)
    batches = []
    for start in range(0, len(runs), most):
        times, noises, conds = zip(*runs[start : start + most], strict=True)
        t = torch.cat([torch.full((pictures,), t, device=n.device) for t, n in zip(times, noises, strict=True)])
        batches.append(Batch(len(times), t, torch.cat(noises), editor.join(conds), conds))
    return batches
