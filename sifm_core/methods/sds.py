"""SDS: follow the diffusion loss without the network's Jacobian.

"Toward effective protection against diffusion-based mimicry through score distillation" (Xue et al., ICLR 2024, arXiv
2311.12832): step along -+ sign of E_{t, eps} [(eps_theta(z_t, t, c) - eps) dz/dx], the weight w(t) left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..gradients import through_latent
from ..noise import Seed
from ..types import Cond, Editor, Gradient, Image, Latent, Sampled
from . import configured
from .pattern import target_latent
from .training import draws

PROVENANCE = (
    "official code (xavihart/Diff-Protect, pgd_sds): no network Jacobian, one timestep and noise per step, no random "
    "start; adapted: the mode for the posterior sample, the instruction for 'a photo', our own lettering as SDST's "
    "target"
)
RANDOM_START = False
STOP_GRADIENT = True
"""The direction is not the gradient of the loss reported."""
BEYOND = ("sd3",)
PRESETS: dict[str, dict[str, Any]] = {"paper": {"eps": 16 / 255, "steps": 100, "alpha": 1 / 255, "variant": "sds-"}}

_SDST = 5.0
"""Weight of the score beside the textural term in SDST."""


@configured
def build(
    editor: Editor,
    x: Image,
    cond: Cond,
    *,
    variant: Annotated[
        Literal["sds-", "sds+", "sdst-", "sdst+"],
        "descend (its default) or ascend the diffusion loss; sdst also pulls the latent to a target",
    ] = "sds-",
    target_image: Annotated[Any, "an image (1 or B, 3, h, w) to pull towards instead of the lettering (sdst)"] = None,
    official_quirks: Annotated[
        bool, "encode by samples of the posterior, one for each term, as the official code does"
    ] = False,
    seed: Seed = 0,
) -> Sampled:
    """J_E^T (prediction - its target) at one new timestep and noise per step; sdst: 5 times it + that of ||z - z_T||^2.

    No gradient passes the network, so this is not the gradient of a loss. The loss reported is the L2 norm of the
    prediction minus its target. ``x`` (B, 3, h, w) at the editor's working size. Raises ImageError when the target
    image is of another size.
    """
    goal = target_latent(editor, x, target_image, seed if official_quirks else None)
    direction = 1.0 if variant.endswith("-") else -1.0

    def encode(x: Image, posteriors: Sequence[Tensor]) -> Latent:
        """What either term sees, side by side; one latent for both but with quirks."""
        return torch.cat([editor.encode(x, drawn) for drawn in posteriors or (None,)], dim=1)

    def gradient(x_adv: Image, t: Tensor, noise: Tensor, *posteriors: Tensor) -> Gradient:
        norms = []

        def term(both: Latent) -> Tensor:
            first, z = both[:, : goal.shape[1]], both[:, -goal.shape[1] :]
            with torch.no_grad():
                miss = editor.denoise(z, noise, t, cond) - editor.target(z, noise, t)
            norms.append(miss.flatten(1).norm(dim=1))
            score = direction * (miss * z).flatten(1).sum(dim=1)  # its gradient is the score itself
            return (
                _SDST * score + (first - goal).square().flatten(1).sum(dim=1) if variant.startswith("sdst") else score
            )

        through = through_latent(lambda x: encode(x, posteriors), [term])
        return through.gradient(x_adv)._replace(loss=norms[0])

    return Sampled(draws(editor, goal, seed, posteriors=2 if official_quirks else 0), gradient)
