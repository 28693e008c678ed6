"""Which layers an editor has, what it costs to reach them, and how far a perturbation moves them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .counting import counting
from .editors.skeleton import skeleton
from .errors import LayerError
from .features import capture, first_tensor, resolve
from .noise import Seed, fork, normal, uniform
from .types import Cond, Editor, Image, OnStep, Step


class Layer(NamedTuple):
    """A layer that can be hooked, in the order of the forward pass.

    ``shape`` of its hidden state without the batch; ``share`` of the network's FLOP that it takes itself; ``reached``
    the share that has been spent when it has fired, which is what a hook on it costs; ``presets`` that include it.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    share: float
    reached: float
    presets: tuple[str, ...]


class Moved(NamedTuple):
    """How far a layer's feature moves at a timestep, as a share of its own norm, per unit of perturbation in [0, 1].

    ``random``: by random signs; ``gradient``: by one signed step against the layer's own L1 norm (Eq. 5).
    """

    layer: str
    timestep: int
    random: float
    gradient: float


def layers(source: str, *, every: bool = False, **options: Any) -> list[Layer]:
    """The layers of an editor's network for a square picture at its working size, counted without its weights.

    Without ``every`` only blocks: modules of at most four path parts that hold others. ``options`` as for
    :func:`sifm_core.editors.skeleton.skeleton`.
    """
    editor = skeleton(source, text=False, **options)
    side = int(editor.settings["size"])
    x = torch.zeros(1, 3, *editor.work_size(side, side), device="meta")
    found: dict[str, tuple[Tensor, int, int]] = {}
    started: dict[str, int] = {}
    with torch.no_grad(), counting() as counter:

        def before(path: str, *_: Any) -> None:
            started.setdefault(path, counter.flops)

        def after(path: str, module: nn.Module, args: Any, output: Any) -> None:
            now = counter.flops
            try:
                feature = first_tensor(editor.hidden(module, output))
            except LayerError:  # nothing of the picture's
                return
            if feature is not None:
                found.setdefault(path, (feature, now - started[path], now))

        z = editor.encode(x)
        spent = counter.flops
        hooks = []
        for path, module in editor.net.named_modules():
            if path and (every or (path.count(".") < 4 and len(list(module.children())) > 0)):
                hooks.append(module.register_forward_pre_hook(partial(before, path)))
                hooks.append(module.register_forward_hook(partial(after, path)))
        try:
            editor.denoise(z, z, torch.zeros(1, dtype=torch.int64, device="meta"), editor.blank(1))
        finally:
            for hook in hooks:
                hook.remove()
        total = counter.flops - spent
    presets = {
        name: {path.partition(":")[0] for path in resolve(editor.net, globs)}
        for name, globs in editor.layer_presets.items()
    }
    return [
        Layer(
            path,
            type(editor.net.get_submodule(path)).__name__,
            tuple(feature.shape[1:]),
            own / total,
            (reached - spent) / total,
            tuple(name for name, paths in presets.items() if path in paths),
        )
        for path, (feature, own, reached) in found.items()
        if feature.ndim > 2
    ]


def probe(
    editor: Editor,
    x: Image,
    cond: Cond,
    *,
    layers: Sequence[str],
    timesteps: Sequence[int],
    eps: float = 2 / 255,
    seed: Seed = 0,
    on_step: OnStep | None = None,
) -> list[Moved]:
    """Rank layers and timesteps by how far their features move under a perturbation of ``eps``, the most moved first.

    ``x`` (B, 3, h, w) at the editor's working size, averaged over its images; ``layers`` module paths, or presets of
    the editor. Costs, for each timestep, two forward passes and two gradients for each layer.
    """
    names = [glob for name in layers for glob in editor.layer_presets.get(name, (name,))]
    paths = resolve(editor.net, names)
    signs = uniform(x.shape, fork(seed, "signs")).to(x).sign()
    moved = []
    for i, t in enumerate(timesteps, 1):
        step = torch.full((len(x),), t, device=editor.device)

        def features(image: Image, wanted: Sequence[str], step: Tensor = step, t: int = t) -> dict[str, Tensor]:
            z = editor.encode(image)
            noise = normal(z.shape, fork(seed, t)).to(z)
            return capture(editor.net, wanted, lambda: editor.denoise(z, noise, step, cond), editor.hidden)

        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            clean = features(leaf, paths)
            grads = {
                path: torch.autograd.grad(f.float().abs().sum(), leaf, retain_graph=True)[0]
                for path, f in clean.items()
            }
        clean = {path: f.detach() for path, f in clean.items()}
        with torch.no_grad():
            shaken = features((x + eps * signs).clamp(0, 1), paths)
            for path in paths:
                pulled = features((x - eps * grads[path].sign()).clamp(0, 1), [path])
                far = [_relative(f[path], clean[path]) / eps for f in (shaken, pulled)]
                moved.append(Moved(path, t, *far))
        if on_step is not None:
            on_step(Step("probe", i, len(timesteps)))
    return sorted(moved, key=lambda m: -m.gradient)


def _relative(feature: Tensor, clean: Tensor) -> float:
    change = (feature - clean).float().flatten(1).norm(dim=1)
    return float((change / clean.float().flatten(1).norm(dim=1).clamp_min(1e-12)).mean())
