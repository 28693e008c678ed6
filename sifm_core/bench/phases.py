"""The phases of a run: which cells each has, which of them may share a batch, and what is to be done with a batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..images import to_uint8
from ..verdicts import CLEAN
from .artefacts import Artefacts, Made
from .costs import weights
from .grid import Grid, takes, takes_gradient
from .keys import Attack, Key, Keys, Pair
from .models import Models, is_here
from .work import Model, Task


@dataclass(frozen=True)
class Phase:
    """One kind of work: a document of ``kind`` for every key of ``cells``.

    Cells that are equal by ``like`` may share a batch, which is one ``task`` and needs the networks of ``models``;
    ``work`` is what a cell costs. ``whole``: a batch that lacks anything is computed whole, so that its numbers do not
    depend on what was there; else only what is missing. ``here``: in this process, whatever workers there are.
    """

    name: str
    kind: str
    cells: Mapping[Key, Any]
    like: Callable[[Any], Hashable]
    task: Callable[[Sequence[Any]], Task]
    models: Callable[[Any], Sequence[Model]] = lambda cell: ()
    work: Callable[[Any], float] = lambda cell: 1.0
    whole: bool = True
    here: bool = False

    def batches(self, most: int) -> list[dict[Key, Any]]:
        """The cells in their order, cut into batches."""
        groups: dict[Hashable, list[tuple[Key, Any]]] = {}
        for key, cell in self.cells.items():
            groups.setdefault(self.like(cell), []).append((key, cell))
        return [dict(group[i : i + most]) for group in groups.values() for i in range(0, len(group), most)]


class Phases:
    """The phases of a grid for some of its attacks, each made when the one before it is done."""

    def __init__(self, grid: Grid, models: Models, keys: Keys, artefacts: Artefacts) -> None:
        self._grid, self._models, self._keys, self._artefacts = grid, models, keys, artefacts
        self._made = Made(keys, artefacts)

    def of(self, attacks: Sequence[Attack]) -> Iterator[Phase]:
        """Immunize, purify, edit, compare prompts, measure, judge: in the order in which they need each other."""
        yield self._immunize(attacks)
        yield self._purify(attacks)
        yield self._edit(attacks)
        yield self._compare(attacks)
        yield self._measure(attacks)
        yield from self._judge(attacks)

    def _immunize(self, attacks: Sequence[Attack]) -> Phase:
        keys, costs = self._keys, weights(self._grid)

        def task(batch: Sequence[Attack]) -> Task:
            row = batch[0].row
            options = dict(row.options) | row.settings(self._grid)
            if any(avoided := [list(row.avoided(a.sample)) for a in batch]):
                options["avoid"] = avoided
            if takes_gradient(row) and (also := keys.also(batch[0])):
                options["also"] = also
            settings = {
                "pixels": [to_uint8(a.sample.pixels()) for a in batch],
                "prompt": [row.told(a.sample) for a in batch],
                "method": row.method,
                "seed": [a.seed for a in batch],
                "options": options,
                "demonstration": self._grid.demonstration,
            }
            return Task("immunize", keys.protector(batch[0]) if takes_gradient(row) else None, settings)

        return Phase(
            "immunize",
            "immunize",
            {key: a for a in attacks if (key := keys.protected(a))},
            lambda a: (keys.protector(a).name, *(other.name for other in keys.also(a)), *self._alike(a)),
            task,
            lambda a: [keys.protector(a), *keys.also(a)] if takes_gradient(a.row) else [],
            lambda a: costs[a.row.name, keys.protector(a).name],
        )

    def _purify(self, attacks: Sequence[Attack]) -> Phase:
        keys, made, upscaler = self._keys, self._made, self._models.upscaler

        def task(batch: Sequence[Attack]) -> Task:
            chain = batch[0].chain
            settings = {
                "pixels": [self._artefacts.pixels(made.protected(a)) for a in batch],
                "chain": chain,
                "seed": [a.edit_seed for a in batch],
                "demonstration": self._grid.demonstration,
            }
            if takes(chain, "upscaler"):
                settings |= {"upscaler": upscaler.name, "device": self._grid.load.get("device", "auto")}
            return Task("purify", keys.attacker(batch[0]) if takes(chain, "editor") else None, settings)

        def networks(a: Attack) -> list[Model]:
            tools = {"editor": keys.attacker(a), "upscaler": upscaler}
            return [model for tool, model in tools.items() if takes(a.chain, tool)]

        return Phase(
            "purify",
            "purify",
            {key: a for a in attacks if (key := keys.purified(a, made.protected(a)))},
            lambda a: (keys.attacker(a).name, a.chain, *self._alike(a)),
            task,
            networks,
        )

    def _edit(self, attacks: Sequence[Attack]) -> Phase:
        keys, made, options = self._keys, self._made, dict(self._grid.edit_options)

        def task(batch: Sequence[Attack]) -> Task:
            settings = {
                "pixels": [self._artefacts.pixels(made.purified(a)) for a in batch],
                "prompt": [a.sample.prompt for a in batch],
                "seed": [a.edit_seed for a in batch],
                "demonstration": self._grid.demonstration,
                "options": options,
            }
            return Task("edit", keys.attacker(batch[0]), settings)

        # The editor that protected last is still loaded: it attacks first.
        order = {model.name: i for i, model in enumerate(reversed(self._models.editors.values()))}
        return Phase(
            "edit",
            "edit",
            {
                key: a
                for a in sorted(attacks, key=lambda a: order[keys.attacker(a).name])
                if (key := keys.edited(a, made.purified(a)))
            },
            lambda a: (keys.attacker(a).name, a.chain, *self._alike(a)),
            task,
            lambda a: [keys.attacker(a)],
        )

    def _compare(self, attacks: Sequence[Attack]) -> Phase:
        keys = self._keys

        def task(batch: Sequence[Attack]) -> Task:
            prompts = [(a.sample.prompt, a.row.told(a.sample)) for a in batch]
            return Task("compare", keys.attacker(batch[0]), {"prompts": prompts})

        return Phase(
            "compare",
            "compare",
            {key: a for a in attacks if (key := keys.compared(a))},
            lambda a: keys.attacker(a).name,
            task,
            lambda a: [keys.attacker(a)],
        )

    def _measure(self, attacks: Sequence[Attack]) -> Phase:
        def task(batch: Sequence[tuple[Pair, Any]]) -> Task:
            settings = {
                "reference": [self._artefacts.pixels(pair.reference) for pair, _ in batch],
                "distorted": [self._artefacts.pixels(pair.distorted) for pair, _ in batch],
                "names": batch[0][0].names,
            }
            return Task("measure", None, settings)

        return Phase(
            "measure",
            "measure",
            {
                self._keys.measured(pair): (pair, self._alike(a))
                for a, pairs in self.pairs(attacks).items()
                for pair in pairs
            },
            lambda cell: (cell[1], cell[0].names),
            task,
        )

    def _judge(self, attacks: Sequence[Attack]) -> Iterator[Phase]:
        made, pixels = self._made, self._artefacts.pixels

        def task(batch: Sequence[tuple[Model, Attack]]) -> Task:
            settings = {
                "source": [pixels(a.source) for _, a in batch],
                "edited": [pixels(made.edited(a)) for _, a in batch],
                "prompts": [a.sample.prompt for _, a in batch],
                "truths": [a.sample.truth for _, a in batch],
            }
            return Task("judge", batch[0][0], settings)

        # A judge may cost money: only what is missing is asked, never a whole batch again.
        edits = [(a, edited) for a in attacks if (edited := made.edited(a))]
        for name, here in (("judge", False), ("ask", True)):
            verdicts = {
                self._keys.verdict(judge, a, edited): (judge, a)
                for judge in self._models.judges
                for a, edited in edits
                if is_here(judge) == here
            }
            missing = {key: cell for key, cell in verdicts.items() if not self._artefacts.answered(key)}
            yield Phase(name, "verdict", missing, lambda cell: cell[0].name, task, whole=False, here=here)

    def pairs(self, attacks: Sequence[Attack]) -> dict[Attack, list[Pair]]:
        """What each attack's metrics compare, with the clean row's edits among them."""
        clean = {a.cell: self._made.edited(a) for a in attacks if a.row.name == CLEAN}
        return {a: self._made.pairs(a, clean[a.cell]) for a in attacks}

    def _alike(self, a: Attack) -> tuple[Hashable, ...]:
        """Attacks that may share a batch. By rows, so that another row in the grid leaves these batches alone."""
        return a.row.name, a.shape
