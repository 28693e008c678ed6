"""PhotoGuard's encoder attack (PhotoGE): pull the latent to nothing, or to that of grey.

"Raising the Cost of Malicious AI-Powered Image Editing" (Salman et al., ICML 2023, arXiv 2302.06588), its encoder
attack: minimise ||E(x + delta) - z_target||_2 over ||delta||_inf <= eps.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..gradients import direct
from ..types import Cond, Editor, Image, Sampled
from . import configured
from .pattern import target_latent

PROVENANCE = (
    "official code (MadryLab/photoguard, image-to-image notebook): posterior mean, its own scale, norm not squared, "
    "uniform start; adapted in that iterations, budget and the fall of the step belong to the loop"
)
RANDOM_START = True
PRESETS: dict[str, dict[str, Any]] = {"paper": {"eps": 0.03, "steps": 1000, "alpha": 0.01, "schedule": "linear"}}
"""The image-to-image notebook: eps 0.06 and a step that falls from 0.02 to 1% of it, in [-1, 1]."""

_GREY = 204 / 255
"""The grey whose latent PhotoGuard's demonstration aims at."""


@configured
def build(
    editor: Editor,
    x: Image,
    cond: Cond,
    *,
    target: Annotated[Literal["zero", "grey"], "the latent to reach: zero, or that of a light grey image"] = "zero",
    target_image: Annotated[Any, "an image (1 or B, 3, h, w) whose latent to reach instead"] = None,
) -> Sampled:
    """The gradient of ||E(x) - z_T||_2, not squared, on latents in the autoencoder's own scale; descended.

    The prompt plays no part. ``x`` (B, 3, h, w) at the editor's working size. Raises ImageError when the target image
    is not of that size.
    """
    goal: Tensor | float = -editor.latent_shift * editor.latent_scale
    if target_image is not None or target == "grey":
        goal = target_latent(editor, x, torch.full_like(x, _GREY) if target_image is None else target_image)

    def distance(x_adv: Image) -> Tensor:
        return ((editor.encode(x_adv) - goal) / editor.latent_scale).flatten(1).norm(dim=1)

    return direct(distance)
