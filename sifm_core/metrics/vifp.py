"""Visual information fidelity in the pixel domain, by piq."""

from __future__ import annotations

from torch import Tensor

from ..types import Image


def vifp(reference: Image, distorted: Image) -> Tensor:
    """VIFp of Sheikh and Bovik 2006, TIP 15(2): the share of the reference's information that is left, on luma.

    (B, 3, H, W) twice, at least 41x41 -> (B,); 1 when equal, above 1 when the contrast grew. **Not symmetric**: the
    reference comes first here, as everywhere in this package, and second in piq.
    """
    import piq

    return piq.vif_p(distorted, reference, reduction="none")
