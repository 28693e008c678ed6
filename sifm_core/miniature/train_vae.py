"""Training of the miniature's autoencoder: the encoder is solved in seconds, the decoder learns to invert it."""

from __future__ import annotations

import time
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


def solve(out: Path, *, seed: int, log: Any) -> None:
    """Solve the encoder from 4,000 pictures and save the autoencoder with an untrained decoder to `out`."""
    torch.manual_seed(seed)
    basis, offset, kept = codec.patch_pca(pictures(4000, np.random.default_rng(seed + 1)))
    vae = codec.build()
    codec.write_encoder(vae, basis, offset)
    vae.half().save_pretrained(out)
    log(f"encoder solved: {kept:.4f} of the patches' variance kept")


def train(out: Path, *, steps: int, batch: int, seed: int, log: Any, checkpoint: Path | None = None) -> None:
    """Train the decoder of the autoencoder in `out` in place; the encoder stays. Resumes from `checkpoint`."""
    from diffusers import AutoencoderKL

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
    if checkpoint and checkpoint.exists():
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
        x = pool[torch.randint(len(pool), (batch,))]
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mode()
            z = z + torch.randn_like(z) * 0.1 * torch.rand(
                batch, 1, 1, 1
            )  # the diffusion model's latents are not exact
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
        if checkpoint and (step + 1) % 500 == 0:
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
