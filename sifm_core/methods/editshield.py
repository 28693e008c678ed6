"""EditShield (ED): move the latent away from the clean one, also after small transformations.

"EditShield: Protecting Unauthorized Image Editing by Instruction-guided Diffusion Models" (Chen et al., ECCV 2024,
arXiv 2311.12066): maximise E_T ||E(T(x + delta)) - E(T(x))||^2 over ||delta||_inf <= eps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..gradients import direct, nothing
from ..images import resize
from ..noise import Seed, fork, integers, normal
from ..types import Cond, Editor, Gradient, Image, Sampled
from . import configured

PROVENANCE = (
    "reconstructed from the paper: its objective on the posterior mode, from a random start, under sign steps and "
    "projection; `official_quirks` is the loss of the official code (Allen-piexl/Editshield)"
)
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"eps": 0.05, "steps": 30, "alpha": 1 / 255},
    "official": {"eps": 0.05, "steps": 30, "alpha": 0.001, "update": "adam", "official_quirks": True},
}
"""paper: budget and step as the official code declares them. It uses neither, but Adam at its default rate without any
projection; 30 such steps change a value by 0.03 and hardly more, so that the projection here finds nothing to do."""


def random_start(official_quirks: bool = False, **_: Any) -> bool:
    """The distance has no gradient at the clean picture; the official code draws new noise in each step instead."""
    return not official_quirks


@configured
def build(
    editor: Editor,
    x: Image,
    cond: Cond,
    *,
    transforms: Annotated[
        Literal["eot", "none"], "average over the image as it is, blurred, rotated by 5 degrees both ways and cropped"
    ] = "eot",
    official_quirks: Annotated[
        bool,
        "the official code's loss: noised latents, wrong value range (InstructPix2Pix only; eot: its smoothing term)",
    ] = False,
    seed: Seed = 0,
) -> Sampled:
    """The gradient of -MSE(E(T(x)), E(T(x_clean))), averaged over transformations T; the prompt plays no part.

    Latents are scaled. ``x`` (B, 3, h, w) at the editor's working size. Zero at the clean image, hence the random
    start. Raises InputError for the official quirks on another family than InstructPix2Pix.
    """
    if official_quirks:
        return _official(editor, x, transforms == "eot", seed)
    views = _views(x) if transforms == "eot" else [lambda x: x]
    with torch.no_grad():
        clean = [editor.encode(view(x)) for view in views]

    def away(x_adv: Image, view: Callable[[Image], Image], goal: Tensor) -> Tensor:
        return -_mse(editor.encode(view(x_adv)), goal) / len(views)

    parts = [direct(partial(away, view=view, goal=goal)) for view, goal in zip(views, clean, strict=True)]

    def gradient(x_adv: Image) -> Gradient:
        each = [part.gradient(x_adv) for part in parts]
        return Gradient(torch.stack([g.loss for g in each]).sum(0), torch.stack([g.grad for g in each]).sum(0))

    return Sampled(nothing, gradient)


def _official(editor: Editor, x: Image, smooth: bool, seed: Seed) -> Sampled:
    """The gradient of -MSE(e(x_adv), e(x)) + 0.1 MSE(x_adv, x) [+ 0.1 MSE(blur(x_adv), clip(blur(x)))].

    As in the official scripts: e is the noised latent beside the source latent. Posterior sample, noise and timestep
    are new in each step for x_adv and drawn once for x; the autoencoder, made for [-1, 1], is fed [0, 1]; the blur's
    kernel is not normalised, so that its term mostly darkens the picture.
    """
    if editor.family != "instruct-pix2pix":
        raise InputError(f"official_quirks: expected an InstructPix2Pix editor, got {editor.family}: leave them off")
    kernel = _gaussian(x)
    kernel = kernel / kernel.max()

    def draw(step: int | str) -> tuple[Tensor, ...]:
        own = fork(seed, step)
        t = integers(0, editor.num_train_timesteps, len(x), fork(own, "t"))
        return t, *(normal(shape, fork(own, name)) for name in ("latent", "source", "noise"))

    def embed(image: Image, t: Tensor, latent: Tensor, source: Tensor, noise: Tensor) -> Tensor:
        z, clean = (editor.encode((image + 1) / 2, drawn) for drawn in (latent, source))
        signal, spread = editor.mix(t, z)
        return torch.cat([signal * z + spread * noise.to(z), clean / editor.latent_scale], dim=1)

    with torch.no_grad():
        shape = editor.encode(x).shape
        goal = embed(x, *(numbers.to(x.device) for numbers in draw("clean")))
        blurred = _convolve(F.pad(x, (2,) * 4), kernel).clamp(0, 1)

    def loss(x_adv: Image, *drawn: Tensor) -> Tensor:
        value = 0.1 * _mse(x_adv, x) - _mse(embed(x_adv, *drawn), goal)
        return value + 0.1 * _mse(_convolve(F.pad(x_adv, (2,) * 4), kernel), blurred) if smooth else value

    return direct(loss, draw)


def _mse(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(1).mean(dim=1)


def _gaussian(like: Image) -> Tensor:
    """Weights of a Gaussian of sigma 1.5 over five pixels; they sum to 1."""
    return torch.softmax(-0.5 * (torch.arange(-2, 3, device=like.device, dtype=like.dtype) / 1.5) ** 2, dim=0)


def _convolve(padded: Image, weights: Tensor) -> Image:
    """Rows, then columns."""
    weights = weights.expand(3, 1, 1, -1)
    return F.conv2d(F.conv2d(padded, weights, groups=3), weights.transpose(2, 3), groups=3)


def _blur(x: Image) -> Image:
    return _convolve(F.pad(x, (2,) * 4, mode="replicate"), _gaussian(x))


def _rotation(like: Image, degrees: float) -> Callable[[Image], Image]:
    """About the centre, edge pixels repeated, of pictures of that shape."""
    height, width = like.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[cos, -sin * height / width, 0], [sin * width / height, cos, 0]]).to(like)
    grid = F.affine_grid(turn.expand(len(like), -1, -1), list(like.shape), align_corners=False)
    return lambda x: F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _crop(x: Image, share: float = 0.9) -> Image:
    """The centre, resized back."""
    height, width = x.shape[-2:]
    top, left = (round(side * (1 - share) / 2) for side in (height, width))
    return resize(x[..., top : height - top, left : width - left], (height, width))


def _views(like: Image) -> list[Callable[[Image], Image]]:
    return [lambda x: x, _blur, _rotation(like, 5.0), _rotation(like, -5.0), _crop]
