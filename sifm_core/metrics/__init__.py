"""How far two pictures are apart: one pure function per file, one line per metric in :data:`METRICS`.

For immunization the pair is (edit of the clean picture, edit of the protected one) with the same seed; "better" is the
direction of stronger protection. These measure *difference*, not *failure*: another seed scores much like a ruined
edit. What decides is a judge (:mod:`sifm_core.judges`).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ..errors import InputError, SifmError, unknown
from ..types import Image, Metric


class Kind(NamedTuple):
    """``file``: where the function of the metric's name is, (reference, distorted) -> (B,); ``better`` for the
    defender; ``min_side`` in pixels; ``of``: what is a share of the structure of the reference, or of either picture,
    and so 0/0 where that is flat."""

    file: str
    better: Literal["lower", "higher"]
    min_side: int
    definition: str
    meaning: str
    of: Literal["", "reference", "either"] = ""


METRICS: dict[str, Kind] = {
    "psnr": Kind("psnr", "lower", 1, "psnr:rgb:range1", "pixel-wise closeness, dB"),
    "ssim": Kind("ssim", "lower", 11, "ssim:wang2004:gauss11x1.5:rgb:piq", "likeness of local structure"),
    "ssim_uniform": Kind("ssim", "lower", 7, "ssim:uniform7:rgb:skimage-default", "SSIM as skimage's defaults give it"),
    "vifp": Kind(
        "vifp", "lower", 41, "vifp:sheikh2006:luma:piq", "share of the visual information that is left", "reference"
    ),
    "fsim": Kind("fsim", "lower", 16, "fsim:zhang2011:luma:piq", "likeness of edges and phase", "either"),
    "fsimc": Kind("fsim", "lower", 16, "fsimc:zhang2011:yiq:piq", "likeness of edges, phase and colour", "either"),
    "lpips": Kind("lpips", "higher", 31, "lpips:0.1:alex", "distance in a network's features"),
    "cvvdp": Kind("cvvdp", "higher", 16, "cvvdp:0.5:standard_fhd:loss", "difference seen at arm's length, JOD"),
}
DEFAULT = ("psnr", "ssim", "vifp", "fsim", "lpips")
"""The paper's five."""

_PIXELS_AT_ONCE = 2**19


def measure(reference: Image, distorted: Image, names: Sequence[str] | None = None) -> dict[str, list[Metric]]:
    """Every named metric (None: :data:`DEFAULT`) of every pair: (B, 3, H, W) twice -> B metrics per name.

    Computed in float32 on values in [0, 1]. What cannot be computed is None with its reason: too small, weights
    missing, infinite (PSNR of equal pictures: JSON has no infinity), 0/0 (of flat pictures). Raises InputError for
    unknown names and unequal shapes, ImageError for what is no image.
    """
    import torch

    from ..images import check_image

    for name in names or ():
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
    check_image(reference, "reference")
    check_image(distorted, "distorted")
    if reference.shape != distorted.shape:
        first, second = tuple(reference.shape), tuple(distorted.shape)
        raise InputError(f"expected two pictures of one size, but got {first} and {second}; resize one of them first")
    pairs = [image.detach().float() for image in (reference, distorted)]
    pairs = [x if float(x.min()) >= 0 and float(x.max()) <= 1 else x.clamp(0, 1) for x in pairs]
    chunk = max(1, _PIXELS_AT_ONCE // (reference.shape[-2] * reference.shape[-1]))
    parts = list(zip(*(image.split(chunk) for image in pairs), strict=True))
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 keeps 3 digits
        return {name: [m for part in parts for m in _one(name, *part)] for name in names or DEFAULT}


def _one(name: str, reference: Image, distorted: Image) -> list[Metric]:
    kind = METRICS[name]
    side = min(reference.shape[-2:])
    if side < kind.min_side:
        reason = f"too small: needs {kind.min_side} pixels on the shorter side, this has {side}"
        return [Metric(None, kind.definition, reason)] * len(reference)
    try:
        function = getattr(importlib.import_module(f"{__name__}.{kind.file}"), name)
        values = function(reference, distorted).tolist()
    except SifmError as error:
        return [Metric(None, kind.definition, str(error))] * len(reference)
    empty = [False] * len(values)
    if kind.of:
        empty = (
            _flat(reference)
            if kind.of == "reference"
            else [a and b for a, b in zip(_flat(reference), _flat(distorted), strict=True)]
        )
    which = "the reference is" if kind.of == "reference" else "both pictures are"
    nothing = Metric(None, kind.definition, f"undefined (0/0): {which} of one brightness, without any structure")
    return [nothing if no else _metric(v, kind.definition) for no, v in zip(empty, values, strict=True)]


def _flat(image: Image) -> list[bool]:
    """Which pictures differ by less than half an 8-bit level of luma all over."""
    luma = 0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2]
    return [bool(one.max() - one.min() < 0.5 / 255) for one in luma]


def _metric(value: float, definition: str) -> Metric:
    if math.isinf(value):
        return Metric(None, definition, "infinite: the two pictures are equal")
    if math.isnan(value):
        return Metric(None, definition, "undefined for these pictures")
    return Metric(value + 0.0, definition)  # -0.0 is 0
