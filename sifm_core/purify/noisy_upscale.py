"""Noisy upscaling (Hoenig et al. 2024): noise the picture, let a diffusion upscaler redraw it, shrink it again."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from ..errors import SifmError
from ..files import in_cache
from ..images import resize
from ..noise import Seed, fork, generators
from ..pretrained import networks
from ..types import Image, OnStep, Step
from . import gaussian_noise

UPSCALER = "stabilityai/stable-diffusion-x4-upscaler"
STEPS, LEVEL = 75, 320
"""The pipeline's denoising steps, and the noise level it is told."""


def purify(
    image: Image,
    deviation: float,
    *,
    upscaler: str | None = None,
    device: torch.device | None = None,
    seed: Seed = 0,
    on_step: OnStep | None = None,
) -> Image:
    """Gaussian noise of that deviation, four times larger by the upscaler without a prompt, bicubic back to size.

    ``upscaler``: a folder or hub id of a StableDiffusionUpscalePipeline; nothing is downloaded. ``device``: where it
    runs, by default where the picture is. Raises SifmError when it is not on this machine.
    """
    if deviation == 0:
        return image
    pipe = _load(upscaler or UPSCALER, device or image.device)
    noisy = gaussian_noise.purify(image, deviation, seed=fork(seed, "noise"))
    large = pipe(
        prompt=[""] * len(image),
        image=noisy.to(pipe.device, pipe.dtype),
        noise_level=LEVEL,
        guidance_scale=1.0,
        num_inference_steps=STEPS,
        generator=generators(seed, len(image)),
        output_type="pt",
        callback=None if on_step is None else lambda i, t, z: on_step(Step("noisy_upscale", i + 1, STEPS)),
    ).images
    return resize(large.to(image), (image.shape[-2], image.shape[-1]))


@cache
def _load(source: str, device: torch.device) -> Any:
    from diffusers import StableDiffusionUpscalePipeline

    try:
        folder = in_cache(source, "model_index.json")
        here: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
        whole = networks(StableDiffusionUpscalePipeline, folder, **here)
        pipe = StableDiffusionUpscalePipeline.from_pretrained(folder, **here, trust_remote_code=False, **whole)
    except Exception as error:  # what a folder that is none makes diffusers raise is nearly anything
        raise SifmError(
            f"noisy_upscale: expected a StableDiffusionUpscalePipeline at {source}, but it cannot be loaded; "
            f"download it first, or name a folder as upscaler ({error})"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
