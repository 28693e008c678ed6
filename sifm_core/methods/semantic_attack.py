"""Semantic attack (SA): suppress the attention of the picture to the words for its content.

"Distraction is All You Need: Memory-Efficient Image Immunization against Diffusion-Based Image Editing" (Lo et al.,
CVPR 2024): minimise the mean over t of ||M * Att(x_t, c)||_1, M = 1[Att of the clean picture > tau], Att the
cross-attention softmax(Q K^T / sqrt d), summed over the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import EditorError, InputError
from ..features import capture
from ..gradients import through_latent
from ..noise import Seed, fork, normal
from ..types import Cond, Editor, Image, Latent, Sampled, Term
from . import ROWS, configured
from .batches import Batch, at_once, split

PROVENANCE = (
    "reconstructed from the paper (no official code known); adapted: projected onto the budget, which the update as "
    "printed may leave, and on transformers the attention of image positions to text in the joint layers"
)
RANDOM_START = False
KEEPS = 2
"""The attention of every layer is kept beside what the network keeps of a row: about as much again."""
PRESETS: dict[str, dict[str, Any]] = {"paper": {"eps": 0.03, "steps": 100, "timesteps": 10, "threshold": 0.5}}
"""kappa 0.06 in [-1, 1]; its step size is not known to us and stays the engine's."""


@configured
def build(
    editor: Editor,
    x: Image,
    cond: Cond,
    *,
    subject: Annotated[
        str | Sequence[str],
        "a noun for what the picture shows, or one per picture; empty: all words of the instruction",
    ] = "",
    timesteps: Annotated[int, "how many timesteps, evenly spaced"] = 10,
    threshold: Annotated[float, "attention is high above this share of its largest value in the clean image"] = 0.5,
    rows: Annotated[int, ROWS] = 0,
    seed: Seed = 0,
) -> Sampled:
    """The gradient of ||M * Att(x, c)||_1, averaged over timesteps.

    Att (B, h', w') is the attention of the image's positions to the words, averaged over heads, brought to the latent's
    size and summed over the layers. M marks where that of the clean image is high, at each timestep. ``x`` (B, 3, h, w)
    at the editor's working size. Raises InputError for values out of range and when there is no word.
    """
    n = editor.num_train_timesteps
    if isinstance(timesteps, bool) or not isinstance(timesteps, int) or not 1 <= timesteps <= n:
        raise InputError(f"timesteps: expected a count from 1 to {n}, got {timesteps!r}")
    if not 0 <= threshold < 1:
        raise InputError(f"threshold: expected a share of at least 0 and below 1, got {threshold!r}")
    subjects = [subject] * len(x) if isinstance(subject, str) else list(subject)
    if len(subjects) != len(x):
        raise InputError(f"subject: expected one, or one per picture ({len(x)}), got {len(subjects)}")
    text = editor.prepare(subjects, x) if any(subjects) else cond
    words = editor.words(text)
    if not bool(words.any(dim=1).all()):
        raise InputError("the prompt has no word to look for: name what the picture shows with `subject`")
    times = [round((k + 1) * n / (timesteps + 1)) for k in range(timesteps)]

    def attention(z: Latent, batch: Batch) -> Tensor:
        with editor.attention() as (paths, seen):
            capture(editor.net, paths, lambda: batch.denoise(editor, z))
        marked = words.repeat(batch.count, 1)
        return torch.stack([_heat(probabilities, marked, z) for probabilities in seen]).sum(dim=0)

    def term(z: Latent, *, batch: Batch, mask: Tensor) -> Tensor:
        return batch.sum((mask * attention(z, batch)).abs().flatten(1).sum(dim=1)) / len(times)

    @torch.no_grad()
    def terms() -> Sequence[Term]:
        z = editor.encode(x)
        noises = normal((len(z), len(times), *z.shape[1:]), fork(seed, "noise")).to(z).unbind(dim=1)
        found = []
        runs = [(t, noise, text) for t, noise in zip(times, noises, strict=True)]
        for batch in split(editor, runs, at_once(editor, (x.shape[-2], x.shape[-1]), rows, KEEPS)):
            heat = attention(z, batch)
            mask = (heat > threshold * heat.amax(dim=(1, 2), keepdim=True)).to(z)
            found.append(partial(term, batch=batch, mask=mask))
        return found

    return through_latent(editor.encode, terms())


def _heat(probabilities: Tensor, words: Tensor, z: Latent) -> Tensor:
    """Attention to the words (B, tokens), averaged over heads, at the latent's size: (B, h', w')."""
    heat = (probabilities.mean(dim=1) * words[:, None].to(probabilities)).sum(dim=2)
    heat = heat.reshape(len(heat), 1, *_grid(heat.shape[1], *z.shape[-2:]))
    return F.interpolate(heat, z.shape[-2:], mode="bicubic", align_corners=False)[:, 0]


def _grid(positions: int, height: int, width: int) -> tuple[int, int]:
    """The halved (height, width) of the latent that has so many positions."""
    while height * width > positions:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != positions:
        raise EditorError(f"{positions} attention positions are no halved grid of the latent: choose another method")
    return height, width
