"""Feature similarity, by piq: on luma (FSIM) and with chroma (FSIMc)."""

from __future__ import annotations

from torch import Tensor

from ..types import Image


def fsim(reference: Image, distorted: Image) -> Tensor:
    """FSIM of Zhang et al. 2011, TIP 20(8): agreement of phase congruency and gradient.

    (B, 3, H, W) twice, at least 16x16 -> (B,), at most 1. Pictures are first averaged over blocks of
    round(shorter side / 256) pixels, as the authors' code does: values from different resolutions do not compare.
    """
    import piq

    return piq.fsim(reference, distorted, chromatic=False, reduction="none")


def fsimc(reference: Image, distorted: Image) -> Tensor:
    """:func:`fsim` with the two chroma channels of YIQ weighed in."""
    import piq

    return piq.fsim(reference, distorted, chromatic=True, reduction="none")
