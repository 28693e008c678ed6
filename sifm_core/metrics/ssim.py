"""Structural similarity, by piq."""

from __future__ import annotations

from torch import Tensor

from ..types import Image


def ssim(reference: Image, distorted: Image) -> Tensor:
    """SSIM of Wang et al. 2004, TIP 13(4): 11x11 Gaussian of sigma 1.5, full resolution, mean over RGB.

    (B, 3, H, W) twice, at least 11x11 -> (B,), at most 1. Equals scikit-image with ``gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False``. piq's own default would shrink large pictures first.
    """
    import piq

    return piq.ssim(reference, distorted, downsample=False, reduction="none")
