"""Training of the miniature's autoencoder: the encoder is solved in seconds, the decoder learns to invert it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import codec, training, world


def pictures(n: int, rng: np.random.Generator) -> Tensor:
    """n pictures (n, 3, 64, 64) in [-1, 1], half of them edited."""
    drawn = []
    for i in range(n):
        scene = world.sample(rng)
        drawn.append(world.render(scene, str(rng.choice(scene.edits)) if i % 2 else None))
    return torch.from_numpy(np.stack(drawn)) * 2 - 1


@dataclass(frozen=True)
class Recipe:
    """One autoencoder: latent channels, scaling and shift factor of its configuration, seed."""

    channels: int
    seed: int
    scale: float = 1.0
    shift: float | None = None


STEPS, BATCH, SAVE = 1000, 16, 250


def solve(out: Path, recipe: Recipe, log: Any) -> codec.Code:
    """Solve the encoder from 4,000 pictures; save it, with an untrained decoder, to `out` unless one is there."""
    code, kept = codec.patch_pca(pictures(4000, np.random.default_rng(recipe.seed + 1)), recipe.channels)
    if not (out / "config.json").exists():
        torch.manual_seed(recipe.seed)
        vae = codec.build(recipe.channels, scale=recipe.scale, shift=recipe.shift)
        codec.write_encoder(vae, code)
        vae.half().save_pretrained(out)
        log(f"encoder solved: {recipe.channels} channels keep {kept:.4f} of the patches' variance")
    return code


def train(out: Path, recipe: Recipe, *, steps: int | None, log: Any, checkpoint: Path) -> None:
    """Train the decoder of the autoencoder in `out` in place; the encoder stays. Resumes from `checkpoint`."""
    from diffusers import AutoencoderKL

    steps, seed = steps or STEPS, recipe.seed
    solve(out, recipe, log)
    rng = np.random.default_rng(seed + 2)
    vae = AutoencoderKL.from_pretrained(out)
    vae.encoder.requires_grad_(False)
    decoder = vae.decoder.to(memory_format=torch.channels_last)
    pool = pictures(6000, rng)

    def loss() -> tuple[Tensor, dict[str, float]]:
        x = pool[torch.randint(len(pool), (BATCH,))]
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mode()
            off = torch.randn_like(z) * torch.rand(BATCH, 1, 1, 1)
            z = z + 0.1 / vae.config.scaling_factor * off  # the diffusion model's latents are not exact
        with torch.autocast("cpu", torch.bfloat16):
            y = decoder(z.contiguous(memory_format=torch.channels_last))
        y = y.float()
        edges = sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
        error = F.mse_loss(y, x)
        return error + 0.1 * F.l1_loss(y, x) + 0.1 * edges, {"PSNR": -10 * float(np.log10(error.item() / 4))}

    vae.decoder = training.fit(
        decoder,
        loss,
        steps=steps,
        rate=training.cosine(2e-3),
        seed=seed,
        log=log,
        checkpoint=checkpoint,
        betas=(0.9, 0.99),
        weight_decay=1e-5,
        average=0.995,
        save=SAVE,
    ).to(memory_format=torch.contiguous_format)
    vae.half().save_pretrained(out)
