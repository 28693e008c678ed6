"""FLUX.2 and its Klein models: the source is a reference of its own tokens, of one megapixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sifm_core.types import Image

from ..lanczos import scaled
from . import base
from .base import Conditioning, Recipe, Start, with_values


class Flux2(Recipe):
    """Scale Image to Total Pixels, VAE Encode, Reference Latent, Flux2Scheduler, and core's template's guidance."""

    title = "FLUX.2"
    family = "flux2"
    cfg = 1.0
    guidance = 4.0
    padding = "front"

    def text(self, clip: Any, prompt: str, x: Image | None) -> Conditioning:
        return with_values(super().text(clip, prompt, x), guidance=self.guidance)

    def views(self, x: Image, mask: Tensor | None) -> Sequence[Image]:
        return [scaled(x, base.of_a_megapixel(x.shape[-2], x.shape[-1]))]

    def scaled(self, pixels: Tensor) -> Tensor:
        return to_a_megapixel(pixels)

    def given(self, conditioning: Conditioning, raws: Sequence[Tensor], mask: Tensor | None) -> Conditioning:
        return with_values(conditioning, reference_latents=[raws[0]])

    def begin(self, raws: Sequence[Tensor]) -> Tensor:
        return torch.zeros_like(raws[0])

    def sigmas(self, steps: int, size: tuple[int, int]) -> Tensor:
        from comfy_extras.nodes_flux import Flux2Scheduler

        found: Tensor = Flux2Scheduler.execute(steps, size[1], size[0]).args[0]
        return found

    def start(self, pixels: Tensor, editor: Any, row: Any) -> Start:
        from comfy_extras.nodes_edit_model import ReferenceLatent

        large = self.scaled(pixels)
        latent = {"samples": editor.vae.encode(large)}
        positive, negative = (ReferenceLatent.execute(text, latent).args[0] for text in (row.positive, row.negative))
        height, width = large.shape[1:3]
        return Start(positive, negative, torch.zeros_like(latent["samples"]), size=(height, width))


def to_a_megapixel(pixels: Tensor, multiple: int = 1) -> Tensor:
    """As core's Scale Image to Total Pixels, (1, H, W, 3)."""
    from comfy.utils import common_upscale

    height, width = base.of_a_megapixel(pixels.shape[1], pixels.shape[2], multiple)
    made: Tensor = common_upscale(pixels.movedim(-1, 1), width, height, "lanczos", "disabled").movedim(1, -1)
    return made
