"""Training of the miniature's autoencoder: the encoder is solved in seconds, the decoder learns to invert it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import codec, world


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
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed + 2)
    vae = AutoencoderKL.from_pretrained(out)
    vae.encoder.requires_grad_(False)
    decoder = vae.decoder.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-5)
    averaged = torch.optim.swa_utils.AveragedModel(
        decoder, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        decoder.load_state_dict(state["decoder"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        rng = np.random.default_rng(seed + 2 + first)
        log(f"resumed at step {first}")
    pool = pictures(6000, rng)
    started, psnr = time.time(), 0.0
    for step in range(first, steps):
        rate = 2e-3 * min(1, (step + 1) / 100) * max(0.01, 0.5 + 0.5 * float(np.cos(np.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        x = pool[torch.randint(len(pool), (BATCH,))]
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mode()
            off = torch.randn_like(z) * torch.rand(BATCH, 1, 1, 1)
            z = z + 0.1 / vae.config.scaling_factor * off  # the diffusion model's latents are not exact
        with torch.autocast("cpu", torch.bfloat16):
            y = decoder(z.contiguous(memory_format=torch.channels_last))
        y = y.float()
        edges = sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
        loss = F.mse_loss(y, x) + 0.1 * F.l1_loss(y, x) + 0.1 * edges
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        averaged.update_parameters(decoder)
        now = -10 * np.log10(F.mse_loss(y, x).item() / 4)
        psnr = 0.95 * psnr + 0.05 * now if step > first else now
        if (step + 1) % 50 == 0:
            log(f"step {step + 1}/{steps} {time.time() - started:.0f} s  PSNR {psnr:.2f} dB")
        if (step + 1) % SAVE == 0:
            torch.save(
                {
                    "decoder": decoder.state_dict(),
                    "averaged": averaged.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                },
                checkpoint,
            )
    vae.decoder.load_state_dict(averaged.module.state_dict())
    vae.decoder.to(memory_format=torch.contiguous_format)
    vae.half().save_pretrained(out)
