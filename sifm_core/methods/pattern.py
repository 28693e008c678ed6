"""The picture whose latent MIST and ACE pull towards: high-contrast lettering in tiles, drawn here without any font."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..errors import ImageError
from ..noise import Seed, fork, normal
from ..types import Editor, Image, Latent

_WORD = (
    "01111 00100 11111 10001",
    "10000 00100 10000 11011",
    "10000 00100 10000 10101",
    "01110 00100 11110 10101",
    "00001 00100 10000 10001",
    "00001 00100 10000 10001",
    "11110 00100 10000 10001",
)
_ROWS, _COLUMNS = 8, 3


def pattern(height: int, width: int) -> Image:
    """White words on black, 8 rows of 3, (1, 3, height, width) in {0, 1}."""
    letters = torch.tensor([[float(dot == "1") for dot in row.replace(" ", "0")] for row in _WORD])
    tile = F.pad(letters, (1, 1, 1, 1)).repeat(_ROWS, _COLUMNS)
    return F.interpolate(tile[None, None], (height, width), mode="nearest").expand(1, 3, -1, -1).contiguous()


@torch.no_grad()
def target_latent(editor: Editor, x: Image, image: Image | None, sampled: Seed | None = None) -> Latent:
    """The latent of ``image`` (1 or B, 3, h, w), or of the lettering, as many rows as ``x`` has (B, c, h', w').

    ``sampled``: the seed of a draw from the posterior in place of its mode. Raises ImageError when the image is of
    another size than ``x``.
    """
    image = pattern(*x.shape[-2:]) if image is None else image
    if image.shape[-3:] != x.shape[-3:] or len(image) not in (1, len(x)):
        raise ImageError(f"target_image: expected {tuple(x.shape)}, got {tuple(image.shape)}; resize it")
    image = image.to(x).expand_as(x)
    mode = editor.encode(image)
    return mode if sampled is None else editor.encode(image, normal(mode.shape, fork(sampled, "target")).to(mode))
