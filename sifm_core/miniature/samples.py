"""What a training came to, to look at: a grid of fresh pictures, one a row, saved beside the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import pipeline
from ..editors import load_editor
from ..images import save_png
from . import codec, gate, train_vae, world

ROWS, SCALE = 8, 2


def edits(folder: Path, out: Path, code: codec.Code | None = None) -> None:
    """Source, exact target and edit by the editor in ``folder``, with trained instructions.

    With a ``code`` the edit's latent is shown through its inverse: the autoencoder's decoder may not be trained yet.
    """
    editor: Any = load_editor(folder, device="cpu")
    if code is not None:
        vae = editor.pipe.vae
        vae.decoder = _Inverse(code, vae.config.scaling_factor, vae.config.shift_factor or 0.0)
    items = gate.fresh(ROWS)
    source = torch.stack([item.image for item in items])
    targets = [world.render(item.scene, item.truth(item.instruction).edit) for item in items]
    edited = pipeline.edit(source, editor, prompt=[item.instruction for item in items], seed=0)
    _save(out, source, torch.from_numpy(np.stack(targets)), edited)


@torch.no_grad()
def reconstructions(folder: Path, out: Path) -> None:
    """Source and what the autoencoder in ``folder`` makes of it."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder).float()
    source = train_vae.pictures(ROWS, np.random.default_rng(0))
    decoded = vae.decode(vae.encode(source).latent_dist.mode()).sample
    _save(out, *((pictures + 1) / 2 for pictures in (source, decoded)))


class _Inverse(nn.Module):
    """A decoder that inverts the code by least squares."""

    def __init__(self, code: codec.Code, scale: float, shift: float) -> None:
        super().__init__()
        self.code, self.scale, self.shift = code, scale, shift

    def forward(self, z: Tensor) -> Tensor:
        return self.code.decode((z.float() - self.shift) * self.scale)


def _save(out: Path, *columns: Tensor) -> None:
    """Pictures (N, 3, H, W) in [0, 1], a column each, enlarged."""
    grid = torch.cat([torch.cat(list(column), dim=1) for column in columns], dim=2).float().clamp(0, 1)
    save_png(F.interpolate(grid[None], scale_factor=SCALE, mode="nearest"), out)
