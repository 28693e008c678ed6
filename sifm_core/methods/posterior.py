"""What several official codes encode with: a draw from the autoencoder's posterior where we take its mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..noise import Seed, normal
from ..types import Image, Latent


def encoder(editor: Any, sample: bool, seed: Seed) -> Callable[[Image], Latent]:
    """``editor.encode``, or, to ``sample``, the same with the draw of ``seed`` in place of the mode.

    Both are deterministic and differentiable, (B, 3, h, w) -> (B, c, h', w').
    """

    def encode(x: Image) -> Latent:
        posterior = editor.pipe.vae.encode((2 * x - 1).to(editor.device, editor.dtype)).latent_dist
        z = posterior.mean + posterior.std * normal(posterior.mean.shape, seed).to(posterior.mean)
        return (z.to(torch.promote_types(z.dtype, torch.float32)) - editor.latent_shift) * editor.latent_scale

    return encode if sample else editor.encode
