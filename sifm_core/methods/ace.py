"""ACE and ACE+: pull the noise prediction itself to a fixed target.

"Targeted Attack Improves Protection against Unauthorized Diffusion Customization" (Zheng et al., ICLR 2025, arXiv
2310.04687): minimise E_{t, eps} ||eps_theta(z_t, t, c) - z_T||^2, and for ACE+ also ||z - z_T||^2, z_T = E(T).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from torch import Tensor

from ..errors import InputError
from ..gradients import through_latent
from ..noise import Seed
from ..types import Cond, Editor, Gradient, Image, Latent, Sampled
from . import PART_NORMS, configured
from .pattern import target_latent
from .training import draws

PROVENANCE = (
    "official code (caradryanl/ACE, modes lunet and fused; mist-v2's fused); adapted: a frozen editor, without the "
    "model updates in between that matter to customisation, the instruction for its prompt, the mode for the posterior "
    "sample, our own lettering as the target"
)
RANDOM_START = False
BEYOND = ("sd3",)
PRESETS: dict[str, dict[str, Any]] = {"paper": {"eps": 4 / 255, "steps": 250, "alpha": 0.0025}}
"""8/255 and 5e-3 in [-1, 1]; five rounds of 50 steps, between which the official code trains the model."""

_PLUS = 100.0
"""Weight of the latent's own distance in ACE+."""


@configured
def build(
    editor: Editor,
    x: Image,
    cond: Cond,
    *,
    variant: Annotated[
        Literal["ace", "ace+", "mist-v2"],
        "the prediction alone; with 100 times the latent's own distance; with that times -100, as mist-v2's fused mode "
        "computes it, which pushes the latent away",
    ] = "ace",
    earliest: Annotated[float, "timesteps are drawn from this share of the schedule up to its noisy end"] = 0.6,
    target_image: Annotated[Any, "an image (1 or B, 3, h, w) to pull towards instead of the lettering"] = None,
    official_quirks: Annotated[
        bool, "encode by a sample of the posterior, as caradryanl/ACE; mist-v2 does not"
    ] = False,
    part_norms: Annotated[bool, PART_NORMS] = False,
    seed: Seed = 0,
) -> Sampled:
    """The gradient of MSE(prediction, z_T) [+- 100 MSE(z, z_T)] at one new timestep and noise per step.

    The prediction, whatever it stands for (on SD3 the velocity), is pulled to a fixed, scaled *latent*, not to noise.
    ``x`` (B, 3, h, w) at the editor's working size. The log holds "prediction" and "latent", which sum to the loss.
    Raises InputError for ``earliest`` outside [0, 1) and for quirks that no official code has, ImageError when the
    target image is of another size.
    """
    if variant == "mist-v2" and official_quirks:
        raise InputError("official_quirks: expected none with variant mist-v2, whose code encodes by the mode too")
    if not 0 <= earliest < 1:
        raise InputError(f"earliest: expected a share of at least 0 and below 1, got {earliest!r}")
    goal = target_latent(editor, x, target_image, seed if official_quirks else None)
    plus = -_PLUS if variant == "mist-v2" else _PLUS

    def gradient(x_adv: Image, t: Tensor, noise: Tensor, posterior: Tensor | None = None) -> Gradient:
        def term(z: Latent) -> dict[str, Tensor]:
            parts = {"prediction": (editor.denoise(z, noise, t, cond) - goal).square().flatten(1).mean(dim=1)}
            if variant != "ace":
                parts["latent"] = plus * (z - goal).square().flatten(1).mean(dim=1)
            return parts

        return through_latent(lambda x: editor.encode(x, posterior), [term], part_norms=part_norms).gradient(x_adv)

    return Sampled(draws(editor, goal, seed, earliest, posteriors=int(official_quirks)), gradient)
