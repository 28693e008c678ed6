"""InstructPix2Pix, CosXL Edit and their kin: the source's latent is extra channels of the U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Conditioning, Recipe, Start, with_values


class InstructPix2Pix(Recipe):
    """The raw latent in positive and negative conditioning; sampling starts from noise alone."""

    title = "InstructPix2Pix"
    family = "instruct-pix2pix"
    size = 512

    def given(self, conditioning: Conditioning, raws: Sequence[Tensor], mask: Tensor | None) -> Conditioning:
        return with_values(conditioning, concat_latent_image=raws[0])

    def begin(self, raws: Sequence[Tensor]) -> Tensor:
        return torch.zeros_like(raws[0])

    def start(self, pixels: Tensor, editor: Any, row: Any) -> Start:
        from comfy_extras.nodes_ip2p import InstructPixToPixConditioning

        made = InstructPixToPixConditioning.execute(row.positive, row.negative, pixels, editor.vae)
        positive, negative, latent = made.args
        return Start(positive, negative, latent["samples"])
