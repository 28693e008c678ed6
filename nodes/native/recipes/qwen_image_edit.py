"""Qwen-Image-Edit and -Plus (2509 and later): the source is a reference, and the text encoder reads the picture too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sifm_core.types import Image

from .base import Conditioning, Recipe, Start, of_a_megapixel, with_values


class QwenImageEdit(Recipe):
    """TextEncodeQwenImageEdit: one picture for text encoder and reference, in positive and negative."""

    title = "Qwen-Image-Edit"
    family = "qwen-image-edit"
    cfg = 2.5
    reads_pictures = True
    node, rounding = "TextEncodeQwenImageEdit", 1

    def text(self, clip: Any, prompt: str, x: Image | None) -> Conditioning:
        return self._encoded(clip, prompt, None, None if x is None else x.movedim(1, -1))

    def views(self, x: Image, mask: Tensor | None) -> Sequence[Image]:
        from comfy.utils import common_upscale

        height, width = of_a_megapixel(x.shape[-2], x.shape[-1], self.rounding)
        return [common_upscale(x, width, height, "area", "disabled")]

    def scaled(self, pixels: Tensor) -> Tensor:
        return self.views(pixels.movedim(-1, 1), None)[0].movedim(1, -1)

    def given(self, conditioning: Conditioning, raws: Sequence[Tensor], mask: Tensor | None) -> Conditioning:
        return with_values(conditioning, reference_latents=[raws[0]])

    def begin(self, raws: Sequence[Tensor]) -> Tensor:
        return torch.zeros_like(raws[0])

    def start(self, pixels: Tensor, editor: Any, row: Any) -> Start:
        from comfy_extras.nodes_edit_model import ReferenceLatent

        def text(prompt: str, given: Conditioning | None) -> Conditioning:
            if given is None:
                return self._encoded(editor.clip, prompt, editor.vae, pixels)
            reference = editor.vae.encode(self.scaled(pixels))
            return ReferenceLatent.execute(given, {"samples": reference}).args[0]  # type: ignore[no-any-return]

        positive, negative = text(row.prompt or "", editor.positive), text("", editor.negative)
        return Start(positive, negative, torch.zeros_like(positive[0][1]["reference_latents"][0]))

    def _encoded(self, clip: Any, prompt: str, vae: Any, pixels: Tensor | None) -> Conditioning:
        from comfy_extras import nodes_qwen

        return getattr(nodes_qwen, self.node).execute(clip, prompt, vae, pixels).args[0]


class QwenImageEditPlus(QwenImageEdit):
    """TextEncodeQwenImageEditPlus: a small picture for the text encoder, a large one as the reference."""

    title = "Qwen-Image-Edit-Plus"
    node, rounding = "TextEncodeQwenImageEditPlus", 8
