"""ACE and ACE+: pull the noise prediction itself to a fixed target.

"Targeted Attack Improves Protection against Unauthorized Diffusion Customization" (Zheng et al.).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from torch import Tensor

from ..errors import InputError
from ..gradients import through_latent
from ..noise import Seed, fork, integers, normal
from ..types import Cond, Editor, GradFn, Gradient, Image, Latent
from . import configured
from .pattern import target_latent

PROVENANCE = (
    "caradryanl/ACE and mist-v2, against a frozen editor: without the model updates in between that matter to "
    "customisation, with our own lettering as the target, and without mist-v2's inverted sign. There eps 8/255, steps "
    "of 5e-3 in [-1, 1], 5 x 50 iterations. On transformers beyond its paper"
)
RANDOM_START = False

_PLUS = 100.0
"""Weight of the latent's own distance in ACE+."""


@configured
def build(
    editor: Editor,
    x: Image,
    cond: Cond,
    *,
    variant: Annotated[
        Literal["ace", "ace+"], "the prediction alone, or with 100 times the latent's own distance"
    ] = "ace",
    earliest: Annotated[float, "timesteps are drawn from this share of the schedule up to its noisy end"] = 0.6,
    target_image: Annotated[Any, "an image (1 or B, 3, h, w) to pull towards instead of the lettering"] = None,
    seed: Seed = 0,
) -> GradFn:
    """The gradient of MSE(prediction, z_T) [+ 100 MSE(z, z_T)] at one new timestep and noise per step.

    The prediction, whatever it stands for, is pulled to a fixed *latent*. ``x`` (B, 3, h, w) at the editor's working
    size. Raises InputError for ``earliest`` outside [0, 1), ImageError when the target image is of another size.
    """
    if not 0 <= earliest < 1:
        raise InputError(f"earliest: expected a share of at least 0 and below 1, got {earliest!r}")
    goal = target_latent(editor, x, target_image)
    n = editor.num_train_timesteps

    def grad_fn(x_adv: Image, step: int) -> Gradient:
        t = integers(int(earliest * n), n, len(x), fork(seed, "t", step)).to(goal.device)
        noise = normal((len(x), *goal.shape[1:]), fork(seed, "noise", step)).to(goal)

        def term(z: Latent) -> dict[str, Tensor]:
            parts = {"prediction": (editor.denoise(z, noise, t, cond) - goal).square().flatten(1).mean(dim=1)}
            if variant == "ace+":
                parts["latent"] = _PLUS * (z - goal).square().flatten(1).mean(dim=1)
            return parts

        return through_latent(editor.encode, [term])(x_adv, step)

    return grad_fn
