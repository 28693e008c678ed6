"""What a Qwen-VL's processor makes of a picture before the model sees it, but for its 8 bits: differentiable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ..types import Image


def patches(x: Image, processor: Any) -> tuple[Tensor, Tensor]:
    """Pixel values (B * patches, 3 * frames * side * side) and grids (B, 3) of pictures (B, 3, H, W) in [0, 1].

    ``processor``: the image processor, a Qwen2VLImageProcessor. Does not wait for the device.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    side, merge, limits = processor.patch_size, processor.merge_size, processor.size
    height, width = smart_resize(
        *x.shape[-2:], factor=side * merge, min_pixels=limits["shortest_edge"], max_pixels=limits["longest_edge"]
    )
    colours = resampled(x, (height, width), "bicubic").split(1, dim=1)
    means = zip(colours, processor.image_mean, processor.image_std, strict=True)
    seen = torch.cat([(colour - mean) / std for colour, mean, std in means], dim=1)
    rows, *grid = processor.patchify(seen, side, merge, processor.temporal_patch_size)
    grids = [x.new_full((len(x),), n, dtype=torch.int64) for n in (1, *grid)]
    return rows.flatten(0, 1), torch.stack(grids, dim=1)


def resampled(x: Image, size: tuple[int, int], kernel: Literal["bicubic", "lanczos"]) -> Image:
    """``x`` (B, 3, H, W) in [0, 1] at (height, width) ``size`` as PIL, and torchvision on 8 bits, resize it.

    Rows first, then columns, each clipped as 8 bits are.
    """
    weights = _KERNELS[kernel]
    rows = x if x.shape[-1] == size[1] else (x @ _line(x, x.shape[-1], size[1], *weights).T).clamp(0, 1)
    return rows if x.shape[-2] == size[0] else (_line(x, x.shape[-2], size[0], *weights) @ rows).clamp(0, 1)


def _line(like: Tensor, side: int, n: int, weight: Callable[[Tensor], Tensor], reach: int) -> Tensor:
    """What each of ``n`` pixels takes of a line of ``side``, (n, side): a kernel, wider where the line shortens."""
    scale = side / n
    centres = (torch.arange(n, dtype=torch.float64) + 0.5) * scale
    distance = ((torch.arange(side, dtype=torch.float64) + 0.5 - centres[:, None]) / max(1.0, scale)).abs()
    weights = torch.where(distance < reach, weight(distance), 0)
    return (weights / weights.sum(dim=1, keepdim=True)).to(like)


def _bicubic(d: Tensor) -> Tensor:  # Keys, a = -1/2
    return torch.where(d < 1, (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2)


_KERNELS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "bicubic": (_bicubic, 2),
    "lanczos": (lambda d: torch.sinc(d) * torch.sinc(d / 3), 3),
}
