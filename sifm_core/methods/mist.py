"""MIST: raise the diffusion loss (semantic) and pull the latent to a textured target (textural).

"Mist: Towards Improved Adversarial Examples for Diffusion Models" (Liang and Wu, arXiv 2305.12683): minimise
||E(x) - E(T)||^2 - rate * E_{t, eps} ||eps_theta(z_t, t, c) - eps||^2, the fused mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..gradients import through_latent
from ..noise import Seed
from ..types import Cond, Editor, Gradient, Image, Latent, Sampled
from . import PART_NORMS, configured
from .pattern import target_latent
from .training import draws

PROVENANCE = (
    "official code (psyker-team/mist, v1): losses, weights, one timestep and noise per step, uniform start; adapted: "
    "the mode for the posterior sample, our own lettering as the target, the instruction for 'a painting', without its "
    "random crop, which does nothing at the size of a square picture"
)
RANDOM_START = True
BEYOND = ("sd3",)
PRESETS: dict[str, dict[str, Any]] = {"paper": {"eps": 16 / 255, "steps": 100, "alpha": 1 / 255}}


@configured
def build(
    editor: Editor,
    x: Image,
    cond: Cond,
    *,
    mode: Annotated[
        Literal["fused", "textural", "semantic"], "both losses, only the pull to the target, only the diffusion loss"
    ] = "fused",
    rate: Annotated[float, "weight of the diffusion loss"] = 1e4,
    target_image: Annotated[Any, "an image (1 or B, 3, h, w) to pull towards instead of the lettering"] = None,
    official_quirks: Annotated[
        bool, "encode by samples of the posterior, one for each term, as the official code does"
    ] = False,
    part_norms: Annotated[bool, PART_NORMS] = False,
    seed: Seed = 0,
) -> Sampled:
    """The gradient of ||z - z_T||^2 - rate * MSE(prediction, its target) at one new timestep and noise per step.

    Latents are scaled; the first term is a sum, the second a mean. ``x`` (B, 3, h, w) at the editor's working size. The
    log holds "textural" and "semantic", which sum to the loss. Raises ImageError when the target image is of another
    size.
    """
    goal = target_latent(editor, x, target_image, seed if official_quirks else None)

    def encode(x: Image, posteriors: Sequence[Tensor]) -> Latent:
        """What either term sees, side by side; one latent for both but with quirks."""
        return torch.cat([editor.encode(x, drawn) for drawn in posteriors or (None,)], dim=1)

    def gradient(x_adv: Image, t: Tensor, noise: Tensor, *posteriors: Tensor) -> Gradient:
        def term(both: Latent) -> dict[str, Tensor]:
            first, z = both[:, : goal.shape[1]], both[:, -goal.shape[1] :]
            parts = {}
            if mode != "semantic":
                parts["textural"] = (first - goal).square().flatten(1).sum(dim=1)
            if mode != "textural":
                miss = editor.denoise(z, noise, t, cond) - editor.target(z, noise, t)
                parts["semantic"] = -rate * miss.square().flatten(1).mean(dim=1)
            return parts

        return through_latent(lambda x: encode(x, posteriors), [term], part_norms=part_norms).gradient(x_adv)

    return Sampled(draws(editor, goal, seed, posteriors=2 if official_quirks else 0), gradient)
