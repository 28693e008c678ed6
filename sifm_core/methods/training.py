"""What methods draw that follow the editor's training loss: in each step a timestep, a noise and perhaps a latent."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..noise import Seed, fork, integers, normal
from ..types import Editor, Latent


def draws(
    editor: Editor, like: Latent, seed: Seed, earliest: float = 0.0, *, posteriors: int = 0
) -> Callable[[int], tuple[Tensor, ...]]:
    """Step -> (timesteps (B,) int64, noise), and what :meth:`Editor.encode` draws so many latents of each picture by.

    Noises have the shape of ``like``; timesteps are uniform from the share ``earliest`` of the schedule to its end.
    """
    n = editor.num_train_timesteps

    def draw(step: int) -> tuple[Tensor, ...]:
        t = integers(int(earliest * n), n, len(like), fork(seed, "t", step))
        names = ("noise", "posterior", "posterior again")[: 1 + posteriors]
        return t, *(normal(like.shape, fork(seed, name, step)).to(like.dtype) for name in names)

    return draw
