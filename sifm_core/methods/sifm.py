"""SIFM, Synergistic Intermediate Feature Manipulation: Algorithm 1 of "Semantic Mismatch and Perceptual Degradation".

The image's intermediate features phi_t (Eq. 3) at a set of timesteps T are pushed away from those of the clean image
(Eq. 4) and towards sparsity (Eq. 5). The loop over n, the sign step and the two clips are :func:`sifm_core.pgd.pgd`;
this file is what stands inside it. The gradient is Algorithm 1's own, regrouped at the latent
(:func:`sifm_core.gradients.through_latent`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError, LayerError
from ..features import capture, resolve
from ..gradients import through_latent
from ..noise import Seed, fork, normal
from ..types import Cond, Editor, Image, Sampled, Term
from . import PART_NORMS, ROWS, configured
from .batches import Batch, at_once, split
from .entrances import ENTRANCES, Entrances, Told, entering

PROVENANCE = "reconstructed from the paper (no official code known); what it leaves open is an option of `build`"
RANDOM_START = False
PRESETS: dict[str, dict[str, Any]] = {"paper": {"lam": 0.1}}
"""Section V-A: eps, iterations and lambda. It does not give the step size nor how many timesteps."""


def random_start(objective: str = "full", **_: Any) -> bool:
    """The distance to the clean features has no gradient at the clean image, so alone it must start elsewhere."""
    return objective == "dist"


@configured
def build(
    editor: Editor,
    x: Image,
    cond: Cond,
    *,
    timesteps: Annotated[
        int | str | Sequence[int],
        "T: how many, evenly spaced; or a list; or early, mid, late: a third of the default ten (early: the noisiest)",
    ] = 10,
    layers: Annotated[str | Sequence[str], "the L_j: presets of the editor or module paths with wildcards"] = "deep",
    aggregation: Annotated[
        Literal["literal", "per_layer"],
        "literal: Eq. 3, the mean of layers of one shape; per_layer: the mean of their losses",
    ] = "literal",
    objective: Annotated[Literal["full", "norm", "dist"], "Eq. 6 or only one of its terms (Table VI)"] = "full",
    lam: Annotated[
        float,
        "lambda of Eq. 6, the weight of the distance; in bfloat16 the network rounds away what is under 1/256 of the "
        "norm's gradient, so compare weights in float32",
    ] = 0.1,
    norm: Annotated[Literal["l1", "frobenius"], "L1 as in Eq. 5, or Frobenius as in the introduction"] = "l1",
    distance: Annotated[Literal["mse", "cosine"], "Dist of Eq. 4"] = "mse",
    reduction: Annotated[
        Literal["literal", "mean"],
        "the norm of all features (literal) or per feature; the distance is per feature in both",
    ] = "literal",
    noise: Annotated[
        Literal["fixed", "resampled"],
        "one noise per timestep throughout, or new noise and new clean features in each iteration",
    ] = "fixed",
    prompts: Annotated[
        Sequence[str], "further instructions to protect against; the gradient is the mean over all"
    ] = (),
    part_norms: Annotated[bool, PART_NORMS] = False,
    posterior: Annotated[Literal["mode", "sample"], "the latent: the posterior's mode or a draw from it"] = "mode",
    branch: Annotated[
        Literal["conditional", "all"], "the instruction's prediction, or also that of no text, which guidance subtracts"
    ] = "conditional",
    entrances: Annotated[Entrances, ENTRANCES] = "vae",
    balanced: Annotated[
        bool,
        "scale the gradients of norm and distance at the latent to the lengths 1 and lam, whatever their sizes are; "
        "costs and logs what part_norms does",
    ] = False,
    rows: Annotated[int, ROWS] = 0,
    seed: Seed = 0,
) -> Sampled:
    """The g of Algorithm 1, line 12: the gradient of Eq. 6, averaged over T.

    ``x`` (B, 3, h, w): the clean image at the editor's working size. The log holds "norm" and "dist", which sum to
    the loss. Where all layers are of a stream that hangs on the latent alone (:attr:`Editor.timeless`), T, its noise,
    the prompts and other entrances make no difference: phi is computed once, without them. Raises InputError for values
    out of range; LayerError for layers that match nothing or that literal aggregation cannot average.
    """
    if not (math.isfinite(lam) and lam >= 0):
        raise InputError(f"lam: expected a weight of at least 0, got {lam!r}")
    paths = resolve(editor.net, patterns(layers, editor.layer_presets))
    times, size = times_of(timesteps, editor.num_train_timesteps), (x.shape[-2], x.shape[-1])
    prompts = [prompts] if isinstance(prompts, str) else prompts
    conds = [cond, *(editor.prepare([prompt] * len(x), x) for prompt in (*prompts, *([""] if branch == "all" else [])))]

    if timeless := is_timeless(editor, paths):
        times, conds, entrances = times[:1], conds[:1], "vae"
        noise = noise if posterior == "sample" else "fixed"

    def phi(entered: Sequence[Tensor], batch: Batch, told: Told) -> list[Tensor]:  # Eq. 3
        z, cond = told(entered)
        run = (lambda: editor.tower(z, batch.cond)) if timeless else (lambda: batch.denoise(editor, z, cond))
        features = capture(editor.net, paths, run, editor.hidden)
        return _aggregate({path: feature.to(z.dtype) for path, feature in features.items()}, aggregation)

    def term(*entered: Tensor, batch: Batch, told: Told, phi_orig: list[Tensor]) -> dict[str, Tensor]:
        phi_imu = phi(entered, batch, told)  # line 8
        loss = {}  # line 9, Eq. 6
        if objective != "dist":
            loss["norm"] = _mean([_norm(f, norm, reduction) for f in phi_imu])
        if objective != "norm":
            loss["dist"] = -lam * _mean([_distance(f, g, distance) for f, g in zip(phi_imu, phi_orig, strict=True)])
        return {name: batch.sum(part) / (len(times) * len(conds)) for name, part in loss.items()}  # line 12

    @torch.no_grad()
    def terms(entered: Sequence[Tensor], told: Told, noises: Tensor) -> list[Term]:  # line 3: Phi_orig
        runs = [(t, eps, c) for t, eps in zip(times, noises.to(entered[0]).unbind(dim=1), strict=True) for c in conds]
        return [
            partial(term, batch=batch, told=told, phi_orig=phi(entered, batch, told))
            for batch in split(editor, runs, at_once(editor, size, rows))
        ]

    def draw(seed: Seed) -> Sequence[Tensor]:  # the noise of E(x, t)_noisy, and perhaps of the latent
        named = {"noise": (len(times),), **({"posterior": ()} if posterior == "sample" else {})}
        return [normal((len(x), *some, *latent), fork(seed, name)) for name, some in named.items()]

    def gradient(noises: Tensor, drawn: Tensor | None = None) -> Sampled:
        with torch.no_grad():
            enter, told = entering(editor, x, conds, entrances, drawn)
            every = terms(enter(x), told, noises)
        lengths = {"norm": 1.0, "dist": lam} if balanced else None
        return through_latent(enter, every, part_norms=part_norms, lengths=lengths)

    with torch.no_grad():
        latent = editor.encode(x[:1]).shape[1:]
    if noise == "fixed":
        return gradient(*(numbers.to(x.device) for numbers in draw(seed)))
    return Sampled(lambda n: draw(fork(seed, n)), lambda x_imu, *drawn: gradient(*drawn).gradient(x_imu))


def _aggregate(features: Mapping[str, Tensor], aggregation: str) -> list[Tensor]:
    """Eq. 3's phi alone, or every layer for itself; each flattened to (B, n)."""
    if aggregation == "literal":
        shapes = {path: tuple(feature.shape[1:]) for path, feature in features.items()}
        if len(set(shapes.values())) > 1:
            listed = ", ".join(f"{path} {shape}" for path, shape in shapes.items())
            raise LayerError(
                f"Eq. 3 averages layers of one shape, got {listed}: choose others or {{aggregation}}",
                aggregation="per_layer",
            )
        return [_mean(list(features.values())).flatten(1)]
    return [feature.flatten(1) for feature in features.values()]


def _norm(feature: Tensor, norm: str, reduction: str) -> Tensor:  # Eq. 5
    value = feature.abs().sum(dim=1) if norm == "l1" else feature.square().sum(dim=1).sqrt()
    if reduction == "literal":
        return value
    return value / (feature.shape[1] if norm == "l1" else feature.shape[1] ** 0.5)


def _distance(feature: Tensor, clean: Tensor, distance: str) -> Tensor:  # Eq. 4
    if distance == "mse":
        return (feature - clean).square().mean(dim=1)
    return 1 - F.cosine_similarity(feature, clean, dim=1)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).mean(dim=0)


def patterns(layers: str | Sequence[str], presets: Mapping[str, tuple[str, ...]]) -> list[str]:
    names = [name.strip() for name in layers.split(",")] if isinstance(layers, str) else layers
    return [pattern for name in names if name for pattern in presets.get(name, (name,))]


def entered(editor: Editor, layers: str | Sequence[str] = "deep", entrances: Entrances = "vae", **_: Any) -> Entrances:
    """Through which entrances the gradient comes back with these options: a tower's through the latent alone."""
    timeless = is_timeless(editor, resolve(editor.net, patterns(layers, editor.layer_presets)))
    return "vae" if timeless else entrances


def is_timeless(editor: Editor, paths: Sequence[str]) -> bool:
    """Whether all layers are of streams that hang on the latent alone."""
    return all(path.partition(":")[2] in editor.timeless for path in paths)


def times_of(timesteps: int | str | Sequence[int], n: int) -> list[int]:
    """The set T. Ten of 1000 are 91, 182, ... 909; as text: "10", "200,400,600" or the name of a third."""
    if isinstance(timesteps, str):
        thirds = {"late": slice(0, 3), "mid": slice(3, 7), "early": slice(7, 10)}
        if timesteps in thirds:
            return times_of(10, n)[thirds[timesteps]]
        try:
            numbers = [int(part) for part in timesteps.split(",") if part.strip()]
        except ValueError:
            raise InputError(
                f"timesteps: expected a count, a list or one of early, mid, late, got {timesteps!r}"
            ) from None
        return times_of(numbers[0] if "," not in timesteps and numbers else numbers, n)
    if isinstance(timesteps, int):
        if not 1 <= timesteps <= n:
            raise InputError(f"timesteps: expected a count from 1 to {n}, got {timesteps}")
        return [round((k + 1) * n / (timesteps + 1)) for k in range(timesteps)]
    times = list(timesteps)
    if not times or not all(isinstance(t, int) and 0 <= t < n for t in times):
        raise InputError(f"timesteps: expected at least one whole number from 0 to {n - 1}, got {times}")
    return times
