"""Timesteps and prompts as rows of one batch of the network: one pass where a loop would take one for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..types import Cond, Editor, Image, Latent


@dataclass(frozen=True)
class Rows:
    """``count`` runs of the network on the same B latents, as one batch: all pictures of the first, then the next.

    ``t`` (count * B,), ``noise`` (count * B, c, h, w), ``cond`` of as many rows.
    """

    count: int
    t: Tensor
    noise: Latent
    cond: Cond

    def denoise(self, editor: Editor, z: Latent) -> Tensor:
        """The network's output for latents (B, c, h, w), (count * B, ...)."""
        return editor.denoise(z.repeat(self.count, 1, 1, 1), self.noise, self.t, self.cond)

    def sum(self, values: Tensor) -> Tensor:
        """What the rows of each picture add up to: (count * B,) -> (B,)."""
        return values.unflatten(0, (self.count, -1)).sum(dim=0)


def split(editor: Editor, x: Image, runs: Sequence[tuple[int, Latent, Cond]], rows: int = 0) -> list[Rows]:
    """Runs (timestep, noise (B, c, h, w), condition) of the network on pictures ``x`` (B, 3, h, w), as few batches.

    No batch has more than ``rows`` rows (0: :meth:`Editor.rows`), but each at least one run. Raises InputError for a
    negative number.
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0:
        raise InputError(f"rows: expected a whole number of at least 0 (0: the editor's rule), got {rows!r}")
    most = max(1, (rows or editor.rows(*x.shape[-2:])) // len(x))
    batches = []
    for start in range(0, len(runs), most):
        times, noises, conds = zip(*runs[start : start + most], strict=True)
        t = torch.cat([torch.full((len(x),), t, device=noise.device) for t, noise in zip(times, noises, strict=True)])
        batches.append(Rows(len(times), t, torch.cat(noises), editor.join(conds)))
    return batches
