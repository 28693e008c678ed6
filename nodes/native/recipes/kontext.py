"""FLUX.1 Kontext: the source is a reference of its own tokens, scaled by core to one of its favourite sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sifm_core.types import Image

from ..lanczos import center_scaled
from .base import Conditioning, Recipe, Start, with_values


class Kontext(Recipe):
    """FluxKontextImageScale, VAE Encode, Reference Latent, and the guidance of core's template."""

    title = "FLUX Kontext"
    family = "flux-kontext"
    cfg = 1.0
    guidance = 2.5

    def text(self, clip: Any, prompt: str, x: Image | None) -> Conditioning:
        return with_values(super().text(clip, prompt, x), guidance=self.guidance)

    def views(self, x: Image, mask: Tensor | None) -> Sequence[Image]:
        return [center_scaled(x, kontext_size(*x.shape[-2:]))]

    def scaled(self, pixels: Tensor) -> Tensor:
        from comfy_extras.nodes_flux import FluxKontextImageScale

        made: Tensor = FluxKontextImageScale.execute(pixels).args[0]
        return made

    def given(self, conditioning: Conditioning, raws: Sequence[Tensor], mask: Tensor | None) -> Conditioning:
        return with_values(conditioning, reference_latents=[raws[0]])

    def start(self, pixels: Tensor, editor: Any, row: Any) -> Start:
        from comfy_extras.nodes_edit_model import ReferenceLatent

        latent = {"samples": editor.vae.encode(self.scaled(pixels))}
        positive, negative = (ReferenceLatent.execute(text, latent).args[0] for text in (row.positive, row.negative))
        return Start(positive, negative, latent["samples"])


def kontext_size(height: int, width: int) -> tuple[int, int]:
    """The (height, width) that core's node takes for a picture of that size: the nearest in shape."""
    from comfy_extras.nodes_flux import PREFERRED_KONTEXT_RESOLUTIONS

    shape = width / height
    _, wide, high = min((abs(shape - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
    return high, wide
