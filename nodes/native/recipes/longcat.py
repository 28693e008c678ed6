"""LongCat-Image-Edit: Qwen-Image-Edit's entrances into a network of FLUX.1's kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sifm_core.types import Image

from ..lanczos import scaled
from . import base
from .base import Conditioning, Start, with_values
from .flux2 import to_a_megapixel
from .qwen_image_edit import QwenImageEdit

STEP = 16


class LongCat(QwenImageEdit):
    """Scale Image to Total Pixels, TextEncodeQwenImageEdit and the reference method "index"."""

    title = "LongCat-Image-Edit"
    family = "longcat-image-edit"
    cfg = 4.5
    steps = 50
    ending = 5

    def text(self, clip: Any, prompt: str, x: Image | None) -> Conditioning:
        return super().text(clip, prompt, None if x is None else self._scaled(x))

    def views(self, x: Image, mask: Tensor | None) -> Sequence[Image]:
        return super().views(self._scaled(x), mask)

    def scaled(self, pixels: Tensor) -> Tensor:
        return QwenImageEdit.views(self, to_a_megapixel(pixels, STEP).movedim(-1, 1), None)[0].movedim(1, -1)

    def given(self, conditioning: Conditioning, raws: Sequence[Tensor], mask: Tensor | None) -> Conditioning:
        return with_values(super().given(conditioning, raws, mask), reference_latents_method="index")

    def start(self, pixels: Tensor, editor: Any, row: Any) -> Start:
        from comfy_extras.nodes_flux import FluxKontextMultiReferenceLatentMethod as Method

        made = super().start(to_a_megapixel(pixels, STEP), editor, row)
        positive, negative = (Method.execute(text, "index").args[0] for text in (made.positive, made.negative))
        return made._replace(positive=positive, negative=negative)

    def _scaled(self, x: Image) -> Image:
        return scaled(x, base.of_a_megapixel(x.shape[-2], x.shape[-1], STEP))
