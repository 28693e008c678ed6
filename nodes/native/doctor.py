"""Before a protection starts: is the gradient that of the loss, and are the features those of core's own run?

A wrong gradient protects nothing and says nothing. Finite differences through the whole path find it: of a random
linear functional of the hidden states, since their L1 norm has kinks. What they cannot find, features that a later
block has changed in place, shows beside features that were copied the moment they came out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sifm_core.errors import EditorError
from sifm_core.features import capture, resolve
from sifm_core.methods.entrances import Entrances, entering
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
LEVELS = 2
"""How far a scaled picture may be from core's, whose rounding at 8 bits is followed up to a level."""
TIMESTEP = 500
RECENT = 2
"""Among how many tensors that were kept last one is looked for: memory that was freed is soon another's."""


class Taken(NamedTuple):
    """Bytes that the autoencoder and a row of the network keep for their gradients, for a picture of ``pixels``.

    ``spared``: the share that is left of them where blocks keep their inputs alone: these, and one block at a time.
    """

    encoder: int
    row: int
    pixels: int
    spared: float


class Finding(NamedTuple):
    """Relative errors of gradient and features; how far the picture is from core's own scaling, in levels of 8 bits."""

    gradient: float
    features: float | None
    levels: float
    exact: bool

    @property
    def line(self) -> str:
        """One sentence for the result."""
        tolerance = EXACT if self.exact else ROUGH
        shown = "" if self.features is None else f"; features are core's own up to {self.features:.1e}"
        shown += f", its scaling up to {self.levels:.1f} levels" if self.levels > 1e-3 else ""
        return f"gradient within {self.gradient:.2%} of finite differences (allowed: {tolerance:.0%}){shown}"


def measured(editor: Any, x: Image, cond: Cond, layers: str | Sequence[str]) -> Taken:
    """What a gradient will keep, found by a run that keeps nothing; ``x`` (1, 3, h, w) at the working size."""
    hidden = _hidden(editor, layers)
    with torch.enable_grad(), smooth():
        encoder, less = _kept(lambda: editor.encode(x.detach().clone().requires_grad_()), editor.spared())
        with torch.no_grad():
            z = editor.encode(x)
        row, least = _kept(lambda: hidden(z.detach().requires_grad_(), cond), editor.spared())
    return Taken(encoder, row, x.shape[-2] * x.shape[-1], (less + least) / (encoder + row))


def check(
    editor: Any, x: Image, cond: Cond, layers: str | Sequence[str] | None = "deep", entrances: Entrances = "vae"
) -> Finding:
    """What is found on one picture ``x`` (1, 3, h, w) at the working size; ``layers`` None: the latent alone.

    Must be called inside ``editor.learning()``. Raises EditorError, with cause and cure, where a tolerance is missed.
    """
    with _whole_floats():
        return _checked(editor, x, cond, layers, entrances)


def _checked(editor: Any, x: Image, cond: Cond, layers: str | Sequence[str] | None, entrances: Entrances) -> Finding:
    paths, hidden = _paths(editor, layers), _hidden(editor, layers)
    with torch.no_grad(), smooth():
        z = editor.encode(x)
        enter, told = entering(editor, x, [cond], entrances)

    def seen(x: Image) -> list[Tensor]:
        latent, again = told(enter(x))
        return hidden(latent, cond if again is None else again(cond))

    exact = min(_bits(editor, paths)) >= 32
    weights: list[Tensor] = []

    def loss(x: Image) -> Tensor:
        features = [feature.to(torch.promote_types(feature.dtype, torch.float32)) for feature in seen(x)]
        if not weights:
            weights.extend(normal(f.shape, 2 + k).to(f) / f.numel() ** 0.5 for k, f in enumerate(features))
        return torch.stack([(w * f).sum() for w, f in zip(weights, features, strict=True)]).sum()

    with smooth():
        leaf = x.detach().clone().requires_grad_()
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
    features = _apart(editor, partial(hidden, z, cond), paths) if paths else None
    alike = ALIKE if exact else ROUGHLY_ALIKE
    if features is not None and not features <= alike:
        raise EditorError(
            f"the features of {editor.name} are {features:.1%} away from those of core's own run (allowed: "
            f"{alike:.1%}): a block changes them in place, or a patch acts differently where there is a gradient; "
            "choose other layers or take patches off"
        )
    levels = _levels(editor, x)
    if not levels <= LEVELS:
        raise EditorError(
            f"the picture as {editor.recipe.title} scales it is {levels:.1f} levels of 255 away from what core's nodes "
            f"make of it (allowed: {LEVELS}): this ComfyUI scales in another way than this pack knows; update one of "
            "them, or scale the picture to the model's size yourself"
        )
    return Finding(error, features, levels, exact)


@torch.no_grad()
def _levels(editor: Any, x: Image) -> float:
    """How far the two paths' pictures are apart, of gradient and attack."""
    ours = editor.recipe.views(x, torch.zeros_like(x[:, 0]))[0].float().cpu()
    theirs = editor.recipe.scaled(x.float().cpu().movedim(1, -1)).movedim(-1, 1)
    return float((ours - theirs).abs().max()) * 255


@contextmanager
def _whole_floats() -> Iterator[None]:
    """Inside, a GPU's float32 is float32: of TF32's ten bits a small step of finite differences drowns in the last."""
    places: tuple[Any, ...] = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = False
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


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


def _paths(editor: Any, layers: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if layers is None else tuple(resolve(editor.net, patterns(layers, editor.layer_presets)))


def _hidden(editor: Any, layers: str | Sequence[str] | None) -> Callable[[Tensor, Cond], list[Tensor]]:
    """What a method looks into, as a function of latent and condition; without layers the latent itself."""
    paths = _paths(editor, layers)

    def hidden(z: Tensor, cond: Cond) -> list[Tensor]:
        if not paths:
            return [z]
        noise, t = normal(z.shape, 1).to(z), torch.full((1,), TIMESTEP, device=z.device)
        return list(capture(editor.net, paths, lambda: editor.denoise(z, noise, t, cond), editor.hidden).values())

    return hidden


def _kept(run: Callable[[], object], blocks: Sequence[torch.nn.Module]) -> tuple[int, int]:
    """Bytes that a forward pass would keep for its gradient, and those if ``blocks`` kept their inputs alone.

    Weights aside; what is kept twice in a row counts once.
    """
    last: deque[tuple[int, int]] = deque(maxlen=RECENT)
    kept, entered, inputs = 0, 0, 0
    inside: list[int] = []

    def count(tensor: Tensor) -> None:
        nonlocal kept
        if not isinstance(tensor, torch.nn.Parameter) and type(tensor) is Tensor:
            memory = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
            kept += 0 if memory in last else memory[1]
            last.append(memory)

    def never(_: None) -> Tensor:
        raise RuntimeError("a run that keeps nothing has no gradient")

    def enter(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal entered, inputs
        entered = kept
        inputs += sum(value.nbytes for value in (*args, *kwargs.values()) if isinstance(value, Tensor))

    hooks = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in blocks]
    hooks += [block.register_forward_hook(lambda *_: inside.append(kept - entered)) for block in blocks]
    try:
        with torch.autograd.graph.saved_tensors_hooks(count, never):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return kept, kept - sum(inside) + inputs + max(inside, default=0)


def _bits(editor: Any, paths: Sequence[str]) -> list[int]:
    """Of the numbers that are computed with, not stored."""
    network = [8 if _multiplies_quantized(editor.net) else 8 * editor.dtype.itemsize] if paths else []
    return [8 * editor.vae.vae_dtype.itemsize, *network]


def _multiplies_quantized(net: torch.nn.Module) -> bool:
    """Whether some layer rounds what it is given too, which a step of finite differences can be lost in."""
    return any(getattr(m, "quant_format", None) and not getattr(m, "_full_precision_mm", True) for m in net.modules())
