"""What a recipe says, and what most of them have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from sifm_core.types import Image

Conditioning = list[Any]
"""Core's: a list of [tensor, dict]."""
MEGAPIXEL = 1024 * 1024
"""To which core's graphs scale what an editing model is shown."""


class Start(NamedTuple):
    """What core's sampler is given: conditionings with the source in them, the latent, and where it may change.

    ``size`` (height, width) of the picture as the model sees it.
    """

    positive: Conditioning
    negative: Conditioning
    latent: Tensor
    mask: Tensor | None = None
    size: tuple[int, int] = (0, 0)


class Recipe:
    """Where the source enters, twice over: with a gradient (:meth:`given`) and by core's own nodes (:meth:`start`)."""

    title: str
    family = ""
    """As :attr:`sifm_core.types.Editor.family`; "": the network's."""
    size: int | None = None
    """The longer side at which pictures are edited unless the person says otherwise; None: core's nodes scale."""
    cfg = 7.0
    steps = 20
    denoise = 1.0
    needs_mask = False
    reads_pictures = False
    """Whether the text encoder sees the picture too."""
    ending = 0
    """How many tokens at the end of a text its encoder cuts off."""
    padding = ""
    """As :attr:`..networks.Network.padding`; "": the network's."""

    def text(self, clip: Any, prompt: str, x: Image | None) -> Conditioning:
        """The encoded prompt, by core; ``x`` (1, 3, H, W) for encoders that read pictures."""
        return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))

    def views(self, x: Image, mask: Tensor | None) -> Sequence[Image]:
        """The pictures whose latents the network is given, from the picture at the working size: differentiable."""
        return [x]

    def scaled(self, pixels: Tensor) -> Tensor:
        """The first of :meth:`views` by core's own nodes, (1, H, W, 3)."""
        return pixels

    def given(self, conditioning: Conditioning, raws: Sequence[Tensor], mask: Tensor | None) -> Conditioning:
        """The conditioning with the source in it: ``raws``, the latents of :meth:`views` as the VAE put them out."""
        return conditioning

    def begin(self, raws: Sequence[Tensor]) -> Tensor:
        """The latent that the sampler starts from, with a gradient."""
        return raws[0]

    def sigmas(self, steps: int, size: tuple[int, int]) -> Tensor | None:
        """Those of the model's own scheduler for a picture of ``size``, in place of the scheduler "simple"; or None."""
        return None

    def start(self, pixels: Tensor, editor: Any, row: Any) -> Start:
        """The same by core's own nodes, from ``pixels`` (1, H, W, 3): by default VAE Encode and the texts as they are.

        ``editor`` has vae, clip and mask, ``row`` the texts of the picture.
        """
        return Start(row.positive, row.negative, editor.vae.encode(pixels))


def with_values(conditioning: Conditioning, **values: Any) -> Conditioning:
    """The conditioning with these values in each of its parts."""
    return [[text, about | values] for text, about in conditioning]


def of_a_megapixel(height: int, width: int, multiple: int = 1) -> tuple[int, int]:
    """The (height, width) that core's nodes scale a picture of that size to."""
    scale = math.sqrt(MEGAPIXEL / (height * width))
    return round(height * scale / multiple) * multiple, round(width * scale / multiple) * multiple
