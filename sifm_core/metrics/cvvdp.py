"""Visible difference, by the cvvdp package: ColorVideoVDP."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..errors import SifmError
from ..types import Image

DISPLAY = "standard_fhd"
"""Its name for a 24-inch full-HD monitor seen from 60 cm, at arm's length: 38 pixels per degree, in an office.

On finer screens, and from further away, less is seen; enlarged, more.
"""


def cvvdp(reference: Image, distorted: Image) -> Tensor:
    """Loss of quality by ColorVideoVDP (Mantiuk et al. 2024, SIGGRAPH): (B, 3, H, W) twice -> (B,), 0 when equal.

    In just-objectionable differences (JOD) as :data:`DISPLAY` shows the pictures: of 1 JOD, 75 of 100 people who see
    both call the reference the better one; of 0, 50. Contrast sensitivity, by luminance and colour, and masking by
    what is in the picture are part of it. Raises SifmError where the package is not installed.
    """
    metric = _metric(str(reference.device))
    pairs = zip(distorted.cpu(), reference.cpu(), strict=True)
    jods = [metric.predict(d.numpy(), r.numpy(), dim_order="CHW")[0] for d, r in pairs]
    return (10 - torch.stack([jod.detach().float() for jod in jods])).clamp_min(0)


def installed() -> bool:
    """Whether the package is there."""
    return find_spec("pycvvdp") is not None


@cache
def _metric(device: str) -> Any:
    if not installed():
        raise SifmError("unavailable: pip install cvvdp")
    for name in ("torch.utils.cpp_extension", "root"):  # of CUDA without a GPU, and of pictures that are dark
        logging.getLogger(name).addFilter(_relevant)
    import pycvvdp

    return pycvvdp.cvvdp(display_name=DISPLAY, device=torch.device(device), quiet=True)


def _relevant(record: logging.LogRecord) -> bool:
    return not any(part in record.pathname for part in ("pycvvdp", "cpp_extension"))
