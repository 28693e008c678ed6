"""MIST: raise the diffusion loss and pull the latent to a textured target.

"Mist: Towards Improved Adversarial Examples for Diffusion Models" (Liang and Wu).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from torch import Tensor

from ..gradients import through_latent
from ..noise import Seed, fork, integers, normal
from ..types import Cond, Editor, GradFn, Gradient, Image, Latent
from . import configured
from .pattern import target_latent

PROVENANCE = (
    "psyker-team/mist (v1): its losses and weights on the posterior mode; its target picture is replaced by our own "
    "lettering, its random crop before the semantic term is left out; there eps 16/255 * 2, steps of 1/255 * 2 in "
    "[-1, 1], 100 iterations. On transformers beyond its paper"
)
RANDOM_START = True


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
    seed: Seed = 0,
) -> GradFn:
    """The gradient of ||z - z_T||^2 - rate * MSE(prediction, its target) at one new timestep and noise per step.

    ``x`` (B, 3, h, w) at the editor's working size. The log holds "textural" and "semantic", which sum to the loss.
    Raises ImageError when the target image is of another size.
    """
    goal = target_latent(editor, x, target_image)

    def grad_fn(x_adv: Image, step: int) -> Gradient:
        t = integers(0, editor.num_train_timesteps, len(x), fork(seed, "t", step)).to(goal.device)
        noise = normal((len(x), *goal.shape[1:]), fork(seed, "noise", step)).to(goal)

        def term(z: Latent) -> dict[str, Tensor]:
            parts = {}
            if mode != "semantic":
                parts["textural"] = (z - goal).square().flatten(1).sum(dim=1)
            if mode != "textural":
                miss = editor.denoise(z, noise, t, cond) - editor.target(z, noise, t)
                parts["semantic"] = -rate * miss.square().flatten(1).mean(dim=1)
            return parts

        return through_latent(editor.encode, [term])(x_adv, step)

    return grad_fn
