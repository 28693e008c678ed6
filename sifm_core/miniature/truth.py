"""Ground truth: what an instruction asks of a scene, and whether a picture fulfils it, measured part by part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import world

HIT = 0.5
"""The asked change is there when the mean colour of what it concerns is at most half as far from the target's as it
was; over the whole picture for an edit of the whole picture."""
SPILL = 0.35
"""Another part counts as changed too when its mean colour went this share of the way to the asked colour."""
DRIFT = 0.20
"""... or when it drifted this far (root mean square over the channels) from what the target shows."""
ROUGH = 0.075
"""A picture counts as degraded when, after recolouring every part freely, this much (root mean square) remains
unexplained. Measured: docs/miniature.md, "The renderer's thresholds"."""
_INSIDE, _MIN_PIXELS = 0.95, 30


@dataclass(frozen=True)
class Truth:
    """The exact target of one instruction on one scene; a judge's ground truth (`sifm_core.types.Case.truth`)."""

    scene: world.Scene
    edit: str

    def check(self, edited: Tensor) -> tuple[bool, bool, str]:
        """(semantic mismatch, perceptual degradation, note) of a picture (3, 64, 64) in [0, 1]."""
        if tuple(edited.shape) != (3, world.SIZE, world.SIZE):
            edited = torch.nn.functional.interpolate(
                edited[None], (world.SIZE, world.SIZE), mode="bilinear", antialias=True
            )[0]
        hit, spill, drift, rough = self.measure(edited.double().numpy())
        wrong = []
        if hit < HIT:
            wrong.append(f"the asked change is {hit:.0%} there (needs {HIT:.0%})")
        if spill > SPILL:
            wrong.append(f"another part took {spill:.0%} of the asked colour (allowed {SPILL:.0%})")
        if drift > DRIFT:
            wrong.append(f"another part drifted by {drift:.2f} (allowed {DRIFT:.2f})")
        degraded = rough > ROUGH
        note = "; ".join(wrong) or f"the asked change is {hit:.0%} there and nothing else changed"
        return bool(wrong), degraded, f"{note}; unexplained detail {rough:.3f} (allowed {ROUGH:.3f})"

    def measure(self, edited: np.ndarray) -> tuple[float, float, float, float]:
        """(hit, spill, drift, rough) of a picture (3, 64, 64): what `check` compares with its thresholds."""
        source, target = world.render(self.scene), world.render(self.scene, self.edit)
        asked, concerned = world.asked_colour(self.edit), self.scene.concerned(self.edit)
        left, asked_for, spills, drifts = 0.0, 0.0, [0.0], [0.0]
        for layer in self.scene.layers:
            inside = layer.cover > _INSIDE
            if inside.sum() < _MIN_PIXELS:
                continue
            a, t, b = (p[:, inside].mean(1) for p in (source, target, edited))
            if any(layer is part for part in concerned):
                left += inside.sum() * ((b - t) ** 2).sum()
                asked_for += inside.sum() * max(((t - a) ** 2).sum(), 0.01)
            else:
                spills.append(0.0 if asked is None else _share(b - a, asked - a))
                drifts.append(float(np.sqrt(((b - t) ** 2).mean())))
        if not asked_for:  # too small to measure
            return 1.0, max(spills), max(drifts), _rms(self.unexplained(edited))
        return 1 - float(np.sqrt(left / asked_for)), max(spills), max(drifts), _rms(self.unexplained(edited))

    def unexplained(self, edited: np.ndarray) -> np.ndarray:
        """What no recolouring of whole parts explains of a picture (3, 64, 64) in [0, 1]: signed, of the same shape."""
        rest = edited - world.render(self.scene, self.edit)
        basis = np.stack([layer.cover.ravel() for layer in self.scene.layers if layer.cover.sum() > 1], 1).astype(
            np.float64
        )
        flat = rest.reshape(3, -1).T
        weights = np.linalg.lstsq(basis, flat, rcond=None)[0]
        return np.asarray((flat - basis @ weights).T.reshape(rest.shape))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def _share(change: np.ndarray, wanted: np.ndarray) -> float:
    """How much of the wanted change happened: 0 none, 1 all of it."""
    return float(change @ wanted / (wanted @ wanted + 1e-2))
