"""What every artefact of a run depends on, as the key under which the store keeps it.

Two runs that would compute the same thing have the same key for it: a change of weights, settings, pictures, prompts or
of :data:`VERSION` makes another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from .. import purify
from ..store import fingerprint
from .grid import Grid, Row, Sample, homes, names, takes, takes_gradient
from .work import Model

VERSION = 2
"""Part of every artefact's key: raise it when what the phases compute changes."""
METHOD_VERSIONS = {"sifm": 2, "semantic_attack": 2, "sifm_plus": 2}
"""The same for one method's protections alone. 2: their noise is not the one that an editor draws from the seed; SIFM+
keeps the instructions that its editor responds to."""
ATTACKER = 1_000_000
"""The attacker's seed of attack 0: one that shares no noise with what pictures were protected with."""
FIDELITY = ("psnr", "ssim", "lpips")
"""Metrics that say how visible the protection is (protected against source)."""

Key: TypeAlias = str


@dataclass(frozen=True, eq=False)
class Attack:
    """A cell of the grid: which picture is protected how, and attacked with what.

    ``source``: the picture's id in the store; ``shape``: its own.
    """

    sample: Sample
    row: Row
    seed: int
    editor: str
    chain: str
    source: str
    shape: tuple[int, ...]

    @property
    def edit_seed(self) -> int:
        """What the editor's noise, and a purifier's, is drawn from: nothing that the protection drew as well."""
        return ATTACKER + self.seed + self.row.seed_shift

    @property
    def cell(self) -> tuple[Any, ...]:
        """What a row's attack has in common with the clean row's."""
        return self.sample.id, self.sample.prompt, self.seed, self.editor, self.chain


class Pair(NamedTuple):
    """Two pictures that are to be compared, by their ids, and with which metrics (None: all)."""

    reference: str
    distorted: str
    names: tuple[str, ...] | None = None


def identity(known: Mapping[str, Any]) -> Key:
    """What a model computes depends on, of all that is known of it: weights, settings, number type; not its name."""
    return fingerprint(weights=known["fingerprint"], settings=known["settings"], dtype=known["dtype"])


class Keys:
    """The keys of a grid's artefacts; ``known``: name, fingerprint, settings and dtype of every model.

    What is made of a picture has its id in the key: "" where there is none, and so is the key.
    """

    def __init__(
        self, grid: Grid, editors: Mapping[str, Model], upscaler: Model, known: Mapping[Model, Mapping[str, Any]]
    ) -> None:
        self.grid, self.editors, self.upscaler, self.known = grid, editors, upscaler, known

    def protector(self, a: Attack) -> Model:
        """The editor that a picture is protected on, the first where it is several."""
        return self.editors[homes(a.editor)[0]]

    def also(self, a: Attack) -> list[Model]:
        """The further editors that it is protected on at once: the attack's and the row's."""
        return [self.editors[name] for name in (*homes(a.editor)[1:], *a.row.also())]

    def attacker(self, a: Attack) -> Model:
        """The editor that it is attacked with."""
        return self.editors[names(a.editor)[1]]

    def model(self, model: Model) -> Key:
        """Of a model: :func:`identity`."""
        return identity(self.known[model])

    def protected(self, a: Attack) -> Key:
        """Of the protected picture; "" where nothing protects it."""
        grid, row = self.grid, a.row
        if row.method is None:
            return ""
        uses: dict[str, Any] = {"eps": row.eps(grid), "seed": a.seed, "options": row.unusual()}
        if takes_gradient(row):
            uses |= {
                "editor": self.model(self.protector(a)),
                "prompt": row.told(a.sample),
                "loop": row.settings(grid),
            }
            if also := self.also(a):
                uses["also"] = [self.model(editor) for editor in also]
        if avoided := row.avoided(a.sample):
            uses["avoid"] = sorted(avoided)
        if row.method in METHOD_VERSIONS:
            uses["made_by"] = METHOD_VERSIONS[row.method]
        return fingerprint(version=VERSION, source=a.source, method=row.method, **uses)

    def purified(self, a: Attack, protected: str) -> Key:
        """Of the protected picture after the purifiers; "" where there are none."""
        if not (a.chain and protected):
            return ""
        editor = self.model(self.attacker(a)) if takes(a.chain, "editor") else ""
        stages = [list(stage) for stage in purify.parse(a.chain)]
        uses = {"upscaler": self.model(self.upscaler)} if takes(a.chain, "upscaler") else {}
        return fingerprint(version=VERSION, image=protected, chain=stages, seed=a.edit_seed, editor=editor, **uses)

    def edited(self, a: Attack, purified: str) -> Key:
        """Of the edit of the picture ``purified``."""
        if not purified:
            return ""
        return fingerprint(
            version=VERSION,
            image=purified,
            editor=self.model(self.attacker(a)),
            prompt=a.sample.prompt,
            seed=a.edit_seed,
            options=dict(self.grid.edit_options),
        )

    def compared(self, a: Attack) -> Key:
        """Of the distance between the prompts of attack and protection; "" where nothing is to be compared."""
        one, other = a.sample.prompt, a.row.told(a.sample)
        if not self.grid.compare_prompts or not other or one == other:
            return ""
        return fingerprint(version=VERSION, editor=self.model(self.attacker(a)), prompts=[one, other])

    def measured(self, pair: Pair) -> Key:
        """Of the metrics of two pictures."""
        return fingerprint(version=VERSION, **pair._asdict())

    def verdict(self, judge: Model, a: Attack, edited: str) -> Key:
        """Of what a judge says of the picture ``edited``."""
        known = self.known[judge]
        marks = {"judge": known["name"], "weights": known["served"]}
        return fingerprint(version=VERSION, source=a.source, edited=edited, prompt=a.sample.prompt, **marks)

    def record(self, a: Attack) -> Key:
        """Of the record of an attack."""
        return fingerprint(
            image=a.sample.id,
            row=a.row.name,
            protected=self.protected(a) or a.source,
            protected_on=names(a.editor)[0],
            purifier=a.chain,
            editor=self.model(self.attacker(a)),
            prompt=a.sample.prompt,
            seed=a.edit_seed,
        )

    def plan(self, judges: Sequence[Model]) -> dict[str, Any]:
        """What a run's records depend on, as plain data: another plan makes other records."""
        grid = self.grid
        samples = [[s.id, s.category, s.kind, s.instruction, s.prompt] for s in grid.samples]
        return {
            "samples": fingerprint(samples=samples),
            "pictures": len({sample.id for sample in grid.samples}),
            "rows": [
                [row.name, row.method, dict(row.options), dict(row.loop), row.seed_shift]
                + ([] if row.instruction is None else [row.instruction])
                for row in grid.rows
            ],
            "editors": grid.attacked(),
            "models": {m.name: identity(k) if "fingerprint" in k else k["name"] for m, k in self.known.items()},
            "judges": [self.known[judge]["name"] for judge in judges],
            "seeds": list(grid.seeds),
            "purifiers": list(grid.purifiers),
            "eps": grid.eps,
            "steps": grid.steps,
            "alpha": grid.alpha,
            "batch": grid.batch,
            "edit_options": dict(grid.edit_options),
            "compare_prompts": grid.compare_prompts,
            "counts": grid.counts(),
        }
