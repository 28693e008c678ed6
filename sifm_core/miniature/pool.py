"""What the editors learn from: a pool of scenes, each with some of its edits, and the tokens of the edits' words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import codec, language, text, world

PLAIN = len(world.MATERIALS)
"""The label of a cell that is made of no material."""
CELLS = world.SIZE // codec.PATCH
_PART = 1000


class Batch(NamedTuple):
    """Latents (B, c, h, w) of sources and targets, edit indices (B,), material maps (B, 16, 16), changed share of each
    such cell, and the sources themselves (B, 3, 64, 64) in [-1, 1]."""

    source: Tensor
    target: Tensor
    edit: Tensor
    material: Tensor
    change: Tensor
    pictures: Tensor


class Drawn(NamedTuple):
    """8-bit pictures of sources (n, 3, 64, 64) and their material maps, of targets (m, 3, 64, 64), and of each of these
    the edit and the number of its source."""

    source: Tensor
    label: Tensor
    target: Tensor
    edit: Tensor
    number: Tensor


def draw(edits: int, whole: int, task: tuple[int, int | Sequence[int]]) -> tuple[np.ndarray, ...]:
    """The columns of :class:`Drawn` for a ``task``: so many scenes, from this seed; see :class:`Pool`."""
    scenes, seed = task
    rng = np.random.default_rng(seed)
    source, target, edit, index, label = [], [], [], [], []
    for i in range(scenes):
        scene = world.sample(rng)
        source.append(_bytes(world.render(scene)))
        label.append(material_map(scene))
        local = [e for e in scene.edits if world.kind(e) == "material"]
        other = [e for e in scene.edits if world.kind(e) != "material"]
        for e in (*rng.permutation(local)[: edits - whole], *rng.permutation(other)[:whole]):
            target.append(_bytes(world.render(scene, str(e))))
            edit.append(world.EDITS.index(str(e)))
            index.append(i)
    return np.stack(source), np.stack(label), np.stack(target), np.array(edit), np.array(index)


class Pool:
    """`scenes` scenes with `edits` edits each, of which `whole` are not about a material; as 8-bit pictures.

    With several `processes` they are drawn a thousand at a time, each thousand from a seed of its own: other pictures
    than one process draws, the same whatever their number. ``drawn``: what was drawn before.
    """

    def __init__(
        self,
        scenes: int,
        edits: int,
        whole: int,
        seed: int,
        code: Any,
        processes: int = 1,
        drawn: Drawn | None = None,
    ) -> None:
        if drawn is None:
            tasks: list[tuple[int, int | Sequence[int]]] = [(scenes, seed)]
            if processes > 1:
                tasks = [(min(_PART, scenes - first), (seed, first)) for first in range(0, scenes, _PART)]
                with ProcessPoolExecutor(processes, get_context("spawn")) as workers:
                    parts = list(workers.map(partial(draw, edits, whole), tasks))
            else:
                parts = [draw(edits, whole, task) for task in tasks]
            for k, part in enumerate(parts):
                part[-1][:] += k * _PART
            drawn = Drawn(*(torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)))
        self.drawn, self.code = drawn, code
        self.source, self.label, self.target, self.edit, self.index = drawn

    def batch(self, n: int, k: Tensor | None = None) -> Batch:
        """n edits drawn at random from torch's global generator, or those of these numbers."""
        k = torch.randint(len(self.target), (n,)) if k is None else k
        i = self.index[k]
        source, target = self.source[i] / 127.5 - 1, self.target[k] / 127.5 - 1
        changed = ((source - target).abs().amax(1, keepdim=True) > 0.1).float()
        change = torch.nn.functional.avg_pool2d(changed, codec.PATCH)
        return Batch(self.code.encode(source), self.code.encode(target), self.edit[k], self.label[i], change, source)


def _bytes(picture: np.ndarray) -> np.ndarray:
    return (picture * 255).round().astype(np.uint8)


def material_map(scene: world.Scene) -> np.ndarray:
    """The material of each 4x4 cell (16, 16) int64; :data:`PLAIN` where there is none."""
    share = np.zeros((PLAIN + 1, world.SIZE, world.SIZE), np.float32)
    for layer in scene.layers:
        share[world.MATERIALS.index(layer.material) if layer.material else PLAIN] += layer.cover
    return share.reshape(PLAIN + 1, CELLS, codec.PATCH, CELLS, codec.PATCH).mean((2, 4)).argmax(0)


def token_ids(tokenizer: Any, prompts: Iterable[str]) -> Tensor:
    """Prompts as (n, 16) int64, padded."""
    return tokenizer(
        list(prompts), padding="max_length", max_length=text.LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def instructions(tokenizer: Any) -> Tensor:
    """The trained instructions of every edit, (32, 12, 16) int64."""
    return torch.stack([token_ids(tokenizer, language.phrases(e)[: language.TRAINED_PHRASES]) for e in world.EDITS])


def captions(tokenizer: Any) -> Tensor:
    """The trained captions of every edit, (32, 6, 16) int64."""
    return torch.stack([token_ids(tokenizer, language.captions(e)[: language.TRAINED_CAPTIONS]) for e in world.EDITS])
