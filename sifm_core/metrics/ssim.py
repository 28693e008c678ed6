"""Structural similarity: the original definition, by piq, and the one of scikit-image's defaults."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Image

_AT_ONCE = 2**19
"""Pixels."""


def ssim(reference: Image, distorted: Image) -> Tensor:
    """SSIM of Wang et al. 2004, TIP 13(4): 11x11 Gaussian of sigma 1.5, full resolution, mean over RGB.

    (B, 3, H, W) twice, at least 11x11 -> (B,), at most 1. Equals scikit-image with ``gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False``. piq's own default would shrink large pictures first.
    """
    import piq

    return _by_rows(lambda x, y: piq.ssim(x, y, downsample=False, reduction="none"), reference, distorted, window=11)


def ssim_uniform(reference: Image, distorted: Image) -> Tensor:
    """SSIM as ``skimage.metrics.structural_similarity`` computes it unless told otherwise, as many papers report it.

    Windows of 7x7 without weights, sample covariance, mean over RGB: (B, 3, H, W) twice, at least 7x7 -> (B,), at most
    1. Not comparable with :func:`ssim`.
    """
    return _by_rows(_uniform, reference, distorted, window=7)


def _uniform(reference: Image, distorted: Image) -> Tensor:
    x, y = reference.double(), distorted.double()

    def mean(z: Tensor) -> Tensor:
        return F.avg_pool2d(z, 7, stride=1)

    ux, uy, sample, c1, c2 = mean(x), mean(y), 49 / 48, 0.01**2, 0.03**2
    vx, vy, vxy = (sample * (mean(a * b) - mean(a) * mean(b)) for a, b in ((x, x), (y, y), (x, y)))
    likeness = (2 * ux * uy + c1) * (2 * vxy + c2) / ((ux**2 + uy**2 + c1) * (vx + vy + c2))
    return likeness.mean(dim=(1, 2, 3))


def _by_rows(mean: Callable[[Image, Image], Tensor], reference: Image, distorted: Image, window: int) -> Tensor:
    """A mean over all windows, of large pictures by so many rows of windows at a time as fill :data:`_AT_ONCE`."""
    windows = reference.shape[-2] - window + 1
    rows = max(1, _AT_ONCE // reference.shape[-1])
    total = torch.zeros((), device=reference.device)
    for start in range(0, windows, rows):
        count = min(rows, windows - start)
        part = slice(start, start + count + window - 1)
        total = total + mean(reference[..., part, :], distorted[..., part, :]) * (count / windows)
    return total
