"""Learned perceptual distance, by the lpips package."""

from __future__ import annotations

import hashlib
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import SifmError
from ..types import Image

BACKBONE = "alexnet-owt-7be5be79.pth"
"""torchvision's ImageNet AlexNet; the digits are the start of the file's sha256."""


def lpips(reference: Image, distorted: Image) -> Tensor:
    """LPIPS 0.1 with AlexNet (Zhang et al. 2018): (B, 3, H, W) twice, at least 31x31 -> (B,), 0 when equal.

    Raises SifmError when the backbone is not on this machine: it is neither downloaded nor replaced by random weights.
    """
    network = _network(backbone_path()).to(reference.device)
    return network(reference, distorted, normalize=True).flatten()


def backbone_path() -> Path:
    """Where torch keeps the backbone: ``$TORCH_HOME/hub/checkpoints``, by default under ``~/.cache/torch``."""
    return Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE


def _spoken(path: Path) -> str:
    """The path without the user's name, which no published record needs."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def missing(path: Path) -> str:
    """Why the backbone at ``path`` cannot be used; "" where it can."""
    if not path.is_file():
        return f"put torchvision's {BACKBONE} at {_spoken(path)}"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(Path(BACKBONE).stem.rpartition("-")[2]):
        return f"{_spoken(path)} is not torchvision's {BACKBONE} (sha256 {digest[:8]}...); get a new copy"
    return ""


@cache
def _network(path: Path) -> nn.Module:
    if why := missing(path):
        raise SifmError(f"unavailable: {why}")

    import lpips

    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")  # lpips calls torchvision by its old arguments
        return lpips.LPIPS(net="alex", verbose=False)
