"""Models with channels for a mask and for the picture without what is masked."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch import Tensor

from sifm_core.types import Image

from .base import Conditioning, Recipe, Start, with_values


class Inpainting(Recipe):
    """InpaintModelConditioning: the masked part is grey in one latent and noise in the other."""

    title = "inpainting"
    size = 512
    needs_mask = True

    def views(self, x: Image, mask: Tensor | None) -> Sequence[Image]:
        kept = 1 - mask.round()[:, None]  # type: ignore[union-attr]
        return [x, (x - 0.5) * kept + 0.5]

    def given(self, conditioning: Conditioning, raws: Sequence[Tensor], mask: Tensor | None) -> Conditioning:
        return with_values(conditioning, concat_latent_image=raws[1], concat_mask=mask[:, None])  # type: ignore[index]

    def start(self, pixels: Tensor, editor: Any, row: Any) -> Start:
        node = import_module("nodes").NODE_CLASS_MAPPINGS["InpaintModelConditioning"]()  # core's module of that name
        positive, negative, latent = node.encode(row.positive, row.negative, pixels, editor.vae, editor.mask)
        return Start(positive, negative, latent["samples"], latent["noise_mask"])


class Fill(Inpainting):
    """FLUX.1 Fill, with the guidance of core's template."""

    title = "FLUX Fill"
    family = "flux-fill"
    size = 1024
    cfg = 1.0
    guidance = 30.0

    def text(self, clip: Any, prompt: str, x: Image | None) -> Conditioning:
        return with_values(super().text(clip, prompt, x), guidance=self.guidance)
