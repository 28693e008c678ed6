"""Before a protection starts: is the gradient that of the loss, and are the features those of core's own run?

A wrong gradient protects nothing and says nothing. Finite differences through the whole path find it: of a random
linear functional of the hidden states, since their L1 norm has kinks. What they cannot find, features that a later
block has changed in place, shows beside features that were copied the moment they came out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sifm_core.errors import EditorError
from sifm_core.features import capture, resolve
from sifm_core.methods.sifm import patterns
from sifm_core.noise import normal
from sifm_core.types import Cond, Image

from .lanczos import smooth

EXACT, ROUGH = 0.01, 0.2
"""How far finite differences may be off, relatively: in float32 and wider, and in shorter or quantised numbers."""
STEP, LONG_STEPS = 3e-4, (1e-3, 4e-3)
"""How far a pixel is moved for them; in short numbers the better of two, between rounding and the network's bends."""
ALIKE, ROUGHLY_ALIKE = 1e-3, 0.1
"""How far features may be from those of core's own run, relatively."""
TIMESTEP = 500


class Finding(NamedTuple):
    """Relative errors of gradient and features, and what a row keeps for its gradient, in bytes."""

    gradient: float
    features: float | None
    row_bytes: int
    exact: bool

    @property
    def line(self) -> str:
        """One sentence for the result."""
        tolerance = EXACT if self.exact else ROUGH
        shown = "" if self.features is None else f"; features are core's own up to {self.features:.1e}"
        return f"gradient within {self.gradient:.2%} of finite differences (allowed: {tolerance:.0%}){shown}"


def check(editor: Any, x: Image, cond: Cond, layers: str | Sequence[str] | None = "deep") -> Finding:
    """What is found on one picture ``x`` (1, 3, h, w) at the working size; ``layers`` None: the latent alone.

    Must be called inside ``editor.learning()``. Raises EditorError, with cause and cure, where a tolerance is missed.
    """
    with torch.no_grad(), smooth():
        z = editor.encode(x)
    noise, t = normal(z.shape, 1).to(z), torch.full((1,), TIMESTEP, device=z.device)
    paths = () if layers is None else resolve(editor.net, patterns(layers, editor.layer_presets))

    def hidden(z: Tensor) -> list[Tensor]:
        if not paths:
            return [z]
        return list(capture(editor.net, paths, lambda: editor.denoise(z, noise, t, cond), editor.hidden).values())

    exact = min(_bits(editor, paths)) >= 32
    weights: list[Tensor] = []

    def loss(x: Image) -> Tensor:
        features = [
            feature.to(torch.promote_types(feature.dtype, torch.float32)) for feature in hidden(editor.encode(x))
        ]
        if not weights:
            weights.extend(normal(f.shape, 2 + k).to(f) / f.numel() ** 0.5 for k, f in enumerate(features))
        return torch.stack([(w * f).sum() for w, f in zip(weights, features, strict=True)]).sum()

    kept = _Kept()
    with smooth():
        leaf = x.detach().clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
            value = loss(leaf)
        if not value.requires_grad:
            raise EditorError(
                f"no gradient comes from {editor.name} to the picture: something on the way, a patch or a custom node, "
                "cuts it; take the patches off this model, or choose 'encoder only'"
            )
        (grad,) = torch.autograd.grad(value, leaf)
        error = _off(loss, leaf.detach(), grad, exact)
    tolerance = EXACT if exact else ROUGH
    if not error <= tolerance:
        raise EditorError(
            f"the gradient of {editor.name} is {error:.1%} away from finite differences (allowed: {tolerance:.0%}), so "
            "it would protect nothing: a patch, an attention or an offloading of this model has a wrong gradient. Take "
            "patches off, start ComfyUI without --lowvram and with --use-pytorch-cross-attention, or choose 'encoder "
            "only'"
        )
    features = _apart(editor, partial(hidden, z), paths) if paths else None
    alike = ALIKE if exact else ROUGHLY_ALIKE
    if features is not None and not features <= alike:
        raise EditorError(
            f"the features of {editor.name} are {features:.1%} away from those of core's own run (allowed: "
            f"{alike:.1%}): a block changes them in place, or a patch acts differently where there is a gradient; "
            "choose other layers or take patches off"
        )
    return Finding(error, features, kept.bytes, exact)


def _off(loss: Callable[[Image], Tensor], x: Image, grad: Tensor, exact: bool) -> float:
    """The largest error of directional derivatives, against the gradient's own length along such a direction.

    In short numbers a random direction drowns in rounding: there only the gradient's own signs are followed.
    """
    signs = normal(x.shape, 7).sign().to(x)
    directions = [(grad.sign(), grad.abs().sum())]
    if exact:
        directions.append((signs, grad.norm()))

    def error(direction: Tensor, length: Tensor, step: float) -> float:
        found = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
        return float((found - (grad * direction).sum()).abs() / length) if float(length) else float("inf")

    with torch.no_grad():
        steps = (STEP,) if exact else LONG_STEPS
        worst = max(min(error(*direction, step) for step in steps) for direction in directions)
    return worst


def _apart(editor: Any, run: Callable[[], list[Tensor]], paths: Sequence[str]) -> float:
    """How far the features that a method sees are from those that core's own, unchanged run puts out."""
    with torch.no_grad():
        ours = run()
    theirs: dict[str, Tensor] = {}

    def keep(path: str, module: Any, args: Any, output: Any) -> None:
        found = editor.part(module, output, path.partition(":")[2])
        if found is not None:
            theirs.setdefault(path, found.detach().clone())

    hooks = [
        editor.net.get_submodule(path.partition(":")[0]).register_forward_hook(partial(keep, path)) for path in paths
    ]
    try:
        with editor.resting(), torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [(mine.float(), theirs[path].float()) for mine, path in zip(ours, paths, strict=True)]
    return max(float((mine - other).norm() / other.norm().clamp_min(1e-12)) for mine, other in pairs)


class _Kept:
    """Counts what a forward pass keeps for its gradient, each memory once, weights aside."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self.bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and type(tensor) is Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._seen:
                self._seen.add(storage.data_ptr())
                self.bytes += storage.nbytes()
        return tensor

    @staticmethod
    def unpack(tensor: Tensor) -> Tensor:
        return tensor


def _bits(editor: Any, paths: Sequence[str]) -> list[int]:
    """Of the numbers that are computed with, not stored."""
    return [8 * editor.vae.vae_dtype.itemsize, *([8 * editor.dtype.itemsize] if paths else [])]
