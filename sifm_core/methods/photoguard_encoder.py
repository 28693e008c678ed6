"""PhotoGuard's encoder attack: pull the latent to nothing, or to that of grey.

"Raising the Cost of Malicious AI-Powered Image Editing" (Salman et al.).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch

from ..errors import ImageError
from ..gradients import through_latent
from ..types import Cond, Editor, GradFn, Image, Latent
from . import configured

PROVENANCE = (
    "the loss of MadryLab/photoguard's image-to-image notebook, which has eps 0.06 and steps of 0.02 falling to 1% "
    "in [-1, 1], 1000 iterations and a random start; here eps, steps and iterations are the caller's"
)
RANDOM_START = True

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
) -> GradFn:
    """The gradient of ||E(x) - z_T||_2, not squared, on latents in the autoencoder's own scale; descended.

    The prompt plays no part. ``x`` (B, 3, h, w) at the editor's working size. Raises ImageError when the target image
    is not of that size.
    """
    with torch.no_grad():
        if target_image is not None:
            if target_image.shape[-3:] != x.shape[-3:] or len(target_image) not in (1, len(x)):
                raise ImageError(f"target_image: expected {tuple(x.shape)}, got {tuple(target_image.shape)}; resize it")
            goal = editor.encode(target_image.to(x))
        elif target == "grey":
            goal = editor.encode(torch.full_like(x, _GREY))
        else:
            goal = torch.full_like(editor.encode(x), -editor.latent_shift * editor.latent_scale)

    def distance(z: Latent) -> torch.Tensor:
        return ((z - goal) / editor.latent_scale).flatten(1).norm(dim=1)

    return through_latent(editor.encode, [distance])
