"""What the purifiers with a model share: an editor's autoencoder and its noise predictor as a plain diffusion model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch

from ..errors import InputError
from ..images import resize
from ..noise import Seed, normal
from ..types import Editor, Image, Latent, OnStep, Step

STRIDE = 10
"""Timesteps (of 1000) in one reverse step."""


def needed(editor: Editor | None, name: str) -> Editor:
    """The editor, or an InputError that says what ``name`` needs one for."""
    if editor is None:
        raise InputError(
            f"{name}: expected an editor, whose networks it uses, but got none; pass editor=load_editor(...)"
        )
    return editor


def at_work_size(editor: Editor, image: Image, purify: Callable[[Image], Image]) -> Image:
    """``purify`` on ``image`` at the size that the editor takes, and back to its own size and device."""
    height, width = image.shape[-2:]
    return resize(purify(resize(image, editor.work_size(height, width))).to(image), (height, width))


def decode(editor: Editor, z: Latent) -> Image:
    """The picture of a scaled latent: (B, c, h, w) -> (B, 3, H, W) float32 in [0, 1], differentiable."""
    return editor.decode(z).float().clamp(0, 1)


def noise_and_denoise(editor: Editor, z: Latent, share: float, seed: Seed, on_step: OnStep | None = None) -> Latent:
    """Noise ``z`` to that share of the schedule and take the noise away again by DDIM (Euler for flows), no prompt.

    Every network is asked for its unconditional prediction: a zero latent as the source and all of the noised latent as
    noise give InstructPix2Pix no picture to hold on to, and mean the same as ever to SD3.
    """
    top = round(share * (editor.num_train_timesteps - 1))
    if top == 0:
        return z
    nothing, ones = torch.zeros_like(z), torch.ones_like(z)
    cond = editor.prepare([""] * len(z))
    stride = max(1, STRIDE * editor.num_train_timesteps // 1000)
    signal, spread = _mix(editor, top)
    z = signal * z + spread * normal(z.shape, seed).to(z)
    times = [*range(top, 0, -stride), 0]
    for i, (now, then) in enumerate(pairwise(times), start=1):
        t = torch.full((len(z),), now, device=z.device)
        signal, spread = _mix(editor, now)
        predicted = editor.denoise(nothing, z / spread, t, cond)
        # The target is linear in (clean, noise) and so is z: two equations for the two.
        by_clean, by_noise = editor.target(ones, nothing, t), editor.target(nothing, ones, t)
        determinant = spread * by_clean - signal * by_noise
        clean = (spread * predicted - by_noise * z) / determinant
        noise = (by_clean * z - signal * predicted) / determinant
        signal, spread = _mix(editor, then)
        z = signal * clean + spread * noise
        if on_step is not None:
            on_step(Step("diffpure", i, len(times) - 1))
    return z


def _mix(editor: Editor, t: int) -> tuple[float, float]:
    """Shares of the clean latent and of the noise at timestep ``t``; (1, 0) at 0, the end."""
    if t == 0:
        return 1.0, 0.0
    signal, spread = editor.mix(torch.tensor([t]), torch.zeros(1, 1, 1, 1, dtype=torch.float64))
    return float(signal), float(spread)
