"""UltraEdit on Stable Diffusion 3: instructions, with the source as extra channels of the transformer.

"UltraEdit: Instruction-based Fine-Grained Image Editing at Scale" (Zhao et al.). diffusers has no pipeline for it; the
sampling below is that of the authors' own: three branches of guidance as in InstructPix2Pix, 77 positions of T5, and
latents without SD3's shift, in and out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import EditorError
from ..noise import Seed, fork, normal
from ..types import Image, Latent, OnStep, Step
from . import sd3
from .latent import LatentEditor, guided
from .sd3 import Cond, StableDiffusion3
from .sd3 import unneeded as unneeded
from .steps import Sampler

DEFAULTS = {"steps": 50, "guidance_scale": 7.5, "image_guidance_scale": 1.5, "size": 512, "t5_tokens": 77}


def load(folder: Path, name: str, dtype: torch.dtype, options: Mapping[str, Any]) -> LatentEditor:
    """Load a StableDiffusion3InstructPix2PixPipeline folder; ``options`` as in :func:`sifm_core.editors.sd3.load`."""
    return sd3.load(folder, name, dtype, options, UltraEdit, DEFAULTS)


def assemble(name: str, folder: Path, pipe: Any, settings: Mapping[str, Any]) -> UltraEdit:
    """The editor of a pipeline that is there already."""
    return UltraEdit(name, folder, sd3.PARTS, pipe, settings)


class UltraEdit(StableDiffusion3):
    """The source enters twice: as the latent that is noised to t, and unscaled as extra channels of the transformer."""

    def __init__(self, name: str, folder: Path, parts: Any, pipe: Any, settings: Mapping[str, Any]) -> None:
        super().__init__(name, folder, parts, pipe, settings)
        self.latent_shift = 0.0
        wanted, found = 2 * pipe.vae.config.latent_channels, pipe.transformer.config.in_channels
        if found != wanted:
            raise EditorError(
                f"{name}: expected a transformer of {wanted} input channels, latent and source, got {found}: "
                "use the free-form UltraEdit, not the one with a mask"
            )

    def denoise(self, z: Latent, noise: Latent, t: Tensor, cond: Cond) -> Tensor:
        """The transformer's velocity at timestep ``t`` (B,), given the prompt and the source's own latent, unscaled."""
        channels = torch.cat([self.noised(z, noise, t), z / self.latent_scale], dim=1)
        return self.velocity(channels, t, cond.prompt, cond.pooled)

    def edit(
        self,
        x: Image,
        cond: Cond,
        *,
        seed: Seed = 0,
        on_step: OnStep | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        **options: Any,
    ) -> Image:
        """The edit, (B, 3, H, W) float32 in [0, 1], from noise drawn on the CPU from each image's own seed.

        Without guidance (a scale of at most 1, or an image scale below 1) only the instruction's branch is run, as the
        authors' pipeline does. Raises InputError for unknown options and wrong values.
        """
        given = {"steps": steps, "guidance_scale": guidance_scale, "image_guidance_scale": image_guidance_scale}
        with torch.no_grad():
            drawn = self.draws(x, seed, **given | options)
            return self.generate(x, cond, drawn, on_step=on_step, **given | options).clamp(0, 1)

    def draws(self, x: Image, seed: Seed, **options: Any) -> tuple[Tensor, ...]:
        """The first latents, and what a stochastic scheduler draws at its steps."""
        sampler = Sampler(self.pipe.scheduler, self.chosen(options, x, len(x))["steps"])
        factor, seeds = self.pipe.vae_scale_factor, [seed, *(fork(seed, k) for k in range(sampler.noises))]
        shape = (self.pipe.vae.config.latent_channels, x.shape[-2] // factor, x.shape[-1] // factor)
        return tuple(normal((len(x), *shape), each) for each in seeds)

    def generate(
        self, x: Image, cond: Cond, drawn: Sequence[Tensor], *, on_step: OnStep | None = None, **options: Any
    ) -> Image:
        """:meth:`edit` with a gradient to ``x``, not clipped, (B, 3, H, W) in [0, 1] units."""
        chosen = self.chosen(options, x, len(cond.prompt))
        text, image = chosen["guidance_scale"], chosen["image_guidance_scale"]
        is_guided = text > 1 and image >= 1
        source = self.encode(x) / self.latent_scale
        prompt, pooled = cond.prompt, cond.pooled
        if is_guided:
            prompt, pooled = (
                torch.cat([c, empty, empty])
                for c, empty in ((cond.prompt, cond.empty), (cond.pooled, cond.empty_pooled))
            )
            source = torch.cat([source, source, torch.zeros_like(source)])
        sampler = Sampler(self.pipe.scheduler, chosen["steps"])
        sampler.begin(drawn[1:])
        z = drawn[0].to(source)
        for i, t in enumerate(sampler.timesteps, 1):
            channels = torch.cat([torch.cat([z] * 3) if is_guided else z, source], dim=1)
            step = torch.full((len(source),), t.item(), dtype=t.dtype, device=z.device)
            velocity = self.velocity(channels, step, prompt, pooled)
            z = sampler.step(guided(velocity, text, image) if is_guided else velocity, t, z)
            if on_step is not None:
                on_step(Step("edit", i, len(sampler.timesteps)))
        return self.decode(z)
