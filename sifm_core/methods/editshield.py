"""EditShield: move the latent away from the clean one, also after small transformations.

"EditShield: Protecting Unauthorized Image Editing by Instruction-guided Diffusion Models" (Chen et al.).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..gradients import through_latent
from ..images import resize
from ..types import Cond, Editor, GradFn, Gradient, Image, Latent
from . import configured

PROVENANCE = (
    "the paper's objective on the posterior mode, under this engine's sign steps and projection. "
    "Allen-piexl/Editshield instead takes 30 steps of Adam (lr 1e-3) that it never projects, noises both latents anew "
    "each time, feeds [0, 1] to an autoencoder of [-1, 1] and rotates its input once"
)
RANDOM_START = True


@configured
def build(
    editor: Editor,
    x: Image,
    cond: Cond,
    *,
    transforms: Annotated[
        Literal["eot", "none"], "average over the image as it is, blurred, rotated by 5 degrees both ways and cropped"
    ] = "eot",
) -> GradFn:
    """The gradient of -MSE(E(T(x)), E(T(x_clean))), averaged over transformations T; the prompt plays no part.

    ``x`` (B, 3, h, w) at the editor's working size. Zero at the clean image, hence the random start.
    """
    views = _VIEWS if transforms == "eot" else _VIEWS[:1]
    encoders = [partial(_encode, editor, view) for view in views]
    with torch.no_grad():
        clean = [encode(x) for encode in encoders]

    def away(z: Latent, goal: Latent) -> Tensor:
        return -(z - goal).square().flatten(1).mean(dim=1) / len(views)

    parts = [through_latent(e, [partial(away, goal=z)]) for e, z in zip(encoders, clean, strict=True)]

    def grad_fn(x_adv: Image, step: int) -> Gradient:
        losses, grads, _ = zip(*(part(x_adv, step) for part in parts), strict=True)
        return Gradient(torch.stack(losses).sum(dim=0), torch.stack(grads).sum(dim=0))

    return grad_fn


def _encode(editor: Editor, view: Callable[[Image], Image], x: Image) -> Latent:
    return editor.encode(view(x))


def _blur(x: Image, radius: int = 2, sigma: float = 1.5) -> Image:
    """Gaussian, 5x5."""
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1).to(x) / sigma) ** 2)
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    padded = F.pad(x, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights, groups=3), weights.transpose(2, 3), groups=3)


def _rotate(x: Image, degrees: float) -> Image:
    """About the centre, edge pixels repeated."""
    height, width = x.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[cos, -sin * height / width, 0], [sin * width / height, cos, 0]]).to(x)
    grid = F.affine_grid(turn.expand(len(x), -1, -1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _crop(x: Image, share: float = 0.9) -> Image:
    """The centre, resized back."""
    height, width = x.shape[-2:]
    top, left = (round(side * (1 - share) / 2) for side in (height, width))
    return resize(x[..., top : height - top, left : width - left], (height, width))


_VIEWS: tuple[Callable[[Image], Image], ...] = (
    lambda x: x,
    _blur,
    partial(_rotate, degrees=5.0),
    partial(_rotate, degrees=-5.0),
    _crop,
)
