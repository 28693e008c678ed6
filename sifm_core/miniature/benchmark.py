"""The miniature benchmark: 100 pictures in the paper's shape, an original and five unseen instructions each, frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, unknown
from . import language, world
from .truth import Truth

COUNTS = {"portrait": 35, "landscape": 35, "artwork": 30}
_SEED = 20_260_000
"""Picture i is drawn from seed _SEED + i; training draws from small seeds. Another value makes another benchmark."""


@dataclass(frozen=True)
class Item:
    """One picture of the benchmark with its instructions; `image` is (3, 64, 64) on the 8-bit grid."""

    id: str
    category: str
    image: Tensor
    instruction: str
    unseen: tuple[str, ...]
    scene: world.Scene

    def truth(self, instruction: str) -> Truth:
        """The ground truth of an instruction on this picture; InputError when the world does not know it."""
        edit = language.parse(instruction)
        if edit is None or edit not in self.scene.edits:
            raise InputError(
                f"no ground truth for {instruction!r} on {self.id}: "
                f"expected a phrasing of one of {', '.join(self.scene.edits)}"
            )
        return Truth(self.scene, edit)


@cache
def ids() -> tuple[str, ...]:
    """The 100 ids, categories interleaved so that the first n cover all of them."""
    queues = {c: [f"{c}-{i:02d}" for i in range(n)] for c, n in COUNTS.items()}
    order = []
    while any(queues.values()):
        order += [queue.pop(0) for queue in queues.values() if queue]
    return tuple(order)


def load(n: int | None = None, ids: Sequence[str] | None = None) -> list[Item]:
    """The first n pictures (all 100 by default), or those with the given ids."""
    known = globals()["ids"]()
    if n is not None and not 1 <= n <= len(known):
        raise InputError(f"the miniature benchmark has {len(known)} pictures: expected 1 to {len(known)}, got {n}")
    for i in ids or ():
        if i not in known:
            raise unknown("benchmark picture", i, known)
    return [draw(i) for i in (ids if ids is not None else known[:n])]


def draw(item: str) -> Item:
    """Draw one picture of the benchmark by its id ("portrait-00" ...)."""
    category, number = item.split("-")
    offset = list(COUNTS).index(category) * 1000 + int(number)
    kinds = ("material",) if int(number) % 6 != 5 else ("identity", "whole")
    return make(item, category, np.random.default_rng(_SEED + offset), kinds)


def make(item: str, category: str, rng: np.random.Generator, kinds: Sequence[str] = ("material",)) -> Item:
    """A picture with an original instruction and five others, all of distinct edits.

    The original is of one of the kinds of edit given, of any kind where the scene has none of these.
    """
    scene = world.sample(rng, category)
    pool = [e for e in scene.edits if world.kind(e) in kinds] or list(scene.edits)
    original = str(rng.choice(pool))
    rest = [str(e) for e in rng.permutation([e for e in scene.edits if e != original])]
    chosen = [original, *_distinct(rest)]
    spoken = [str(rng.choice(language.phrases(e)[: language.TRAINED_PHRASES])) for e in chosen]
    image = torch.from_numpy((world.render(scene) * 255).round() / np.float32(255))
    return Item(item, category, image, spoken[0], tuple(spoken[1:]), scene)


def _distinct(edits: list[str]) -> list[str]:
    """Five edits: one of the whole picture, then materials in turn, so that they differ in what they are about."""
    chosen = [next(e for e in edits if world.kind(e) == "whole")]
    materials = [e for e in edits if world.kind(e) == "material"]
    while len(chosen) < 5:
        used = [e.split()[0] for e in chosen]
        chosen.append(min((e for e in materials if e not in chosen), key=lambda e: used.count(e.split()[0])))
    return chosen
