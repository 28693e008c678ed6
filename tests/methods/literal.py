"""What the editors compute, written out on diffusers' own objects: the ground the golden tests stand on."""

from __future__ import annotations

import torch
from torch import Tensor

from sifm_core.noise import normal
from sifm_core.types import Editor, Image


def mode(editor: Editor, x: Image) -> Tensor:
    """The posterior mode in the autoencoder's own scale."""
    return editor.pipe.vae.encode(2 * x - 1).latent_dist.mode()


def sampled(editor: Editor, x: Image, seed: int) -> Tensor:
    """A draw from the posterior in the autoencoder's own scale."""
    posterior = editor.pipe.vae.encode(2 * x - 1).latent_dist
    return posterior.mean + posterior.std * normal(posterior.mean.shape, seed).to(x)


def latent(editor: Editor, x: Image, raw: Tensor | None = None) -> Tensor:
    """The latent as the network expects it; of ``raw``, in the autoencoder's scale, instead of the mode."""
    config = editor.pipe.vae.config
    shift = config.shift_factor if editor.family == "sd3" else 0
    return ((mode(editor, x) if raw is None else raw) - shift) * config.scaling_factor


def predict(
    editor: Editor, x: Image, noise: Tensor, t: Tensor, prompts: list[str], raw: Tensor | None = None
) -> Tensor:
    """The whole network's output for a latent noised to ``t`` (B,)."""
    pipe, z = editor.pipe, latent(editor, x, raw)
    if editor.family == "sd3":
        rows = [pipe.encode_prompt(prompt, None, None) for prompt in prompts]
        c, pooled = (torch.cat([row[k] for row in rows]).detach() for k in (0, 2))
        sigma = (t.to(z) / 1000).reshape(-1, 1, 1, 1)
        return pipe.transformer(sigma * noise + (1 - sigma) * z, c, pooled, t).sample
    c = torch.cat([pipe._encode_prompt(prompt, "cpu", 1, False) for prompt in prompts]).detach()
    z_t = pipe.scheduler.add_noise(z, noise, t)
    source = mode(editor, x) if raw is None else raw
    return pipe.unet(torch.cat([z_t, source], dim=1), t, encoder_hidden_states=c).sample


def target(editor: Editor, x: Image, noise: Tensor, raw: Tensor | None = None) -> Tensor:
    """What the network was trained to predict; the fake U-Net predicts the noise."""
    return noise - latent(editor, x, raw) if editor.family == "sd3" else noise


def gradient(loss, x: Image) -> tuple[Tensor, Tensor]:
    """The loss (B,) and its gradient by plain automatic differentiation."""
    leaf = x.detach().clone().requires_grad_()
    value = loss(leaf)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def somewhere(x: Image) -> Image:
    """A point inside a budget of 0.03 about ``x``."""
    draw = torch.rand(x.shape, generator=torch.Generator().manual_seed(9), dtype=x.dtype)
    return (x + 0.06 * draw - 0.03).clamp(0, 1)


def close(a: Tensor, b: Tensor, rtol: float = 1e-10) -> bool:
    """Relative to the whole of ``b``, which must not be zero."""
    return bool((a - b).norm() <= rtol * b.norm()) and bool(b.any())
