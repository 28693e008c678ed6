"""What is to be run: pictures and prompts x rows x editors x seeds x purifiers, and the judges that look at it all."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from torch import Tensor

from .. import purify
from ..checks import check_choice, check_count, check_list
from ..errors import InputError
from ..loop import LOOP, Loop
from ..methods import check_options, configure, get_method, options
from ..noise import check_seed
from ..types import Editor, Judge
from ..verdicts import CLEAN

ARROW = "->"
"""In an editor's name: protected on the left one, attacked with the right one (the paper's Table V)."""
AND = "&"
"""A word of its own between names on its left: protected on all of them at once."""
SETTINGS = ("preset", "also", *LOOP)
"""Settings of the loop that a row may have for itself, and the further editors that it protects against at once."""
BATCH, SEEDS, CELLS, RECORDS = 4096, 10_000, 1_000_000, 10_000_000
"""At most so many pictures at a time, attacks of each kind, records of one picture, and records of a grid."""


@dataclass(frozen=True)
class Sample:
    """One attack on one picture.

    ``image`` (3, H, W) in [0, 1], or a function that gives it; ``instruction`` is what the protection is made with,
    ``prompt`` what the attacker asks (``kind`` "original" when they are the same, else "unseen"); ``truth`` is for
    judges that use it; ``wordings`` are all instructions on the picture, in every wording that is known: a protection
    that draws instructions of its own draws none of these.
    """

    id: str
    image: Tensor | Callable[[], Tensor]
    instruction: str
    prompt: str
    category: str = ""
    kind: str = "original"
    truth: Any = None
    wordings: tuple[str, ...] = ()

    def pixels(self) -> Tensor:
        """The picture, (3, H, W) in [0, 1]."""
        return self.image if isinstance(self.image, Tensor) else self.image()


@dataclass(frozen=True)
class Row:
    """One line of the table: how pictures are protected before the attack.

    ``method`` None leaves them as they are; ``options`` are the method's own; ``loop`` what else
    :func:`sifm_core.pipeline.immunize` takes (:data:`SETTINGS`), over the grid's eps, steps and alpha; ``seed_shift``
    makes the attacker use another seed than the other rows do; ``instruction`` replaces that of every picture, ""
    meaning that whoever protects knows none.
    """

    name: str
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    loop: Mapping[str, Any] = field(default_factory=dict)
    seed_shift: int = 0
    instruction: str | None = None

    def told(self, sample: Sample) -> str:
        """What the protection of a picture is made with."""
        return sample.instruction if self.instruction is None else self.instruction

    def also(self) -> tuple[str, ...]:
        """The further editors that it protects against, by name."""
        return tuple(check_list(self.loop.get("also", ()), f"also of row {self.name}"))

    def avoided(self, sample: Sample) -> tuple[str, ...]:
        """What a method that draws instructions must not draw for a picture; () for any other method."""
        draws = self.method is not None and "avoid" in options(self.method)
        return (sample.wordings or (sample.instruction, sample.prompt)) if draws else ()

    def settings(self, grid: Grid) -> dict[str, Any]:
        """The loop's settings for this row: the grid's, unless the row has its own or a preset."""
        shared = {} if "preset" in self.loop else {"eps": grid.eps, "steps": grid.steps, "alpha": grid.alpha}
        return shared | dict(self.loop)

    def resolved(self, grid: Grid) -> Loop:
        """The loop that this comes to; InputError for one that could never run."""
        given = {"preset": "equal_budget"} | self.settings(grid)
        return configure(self.method or "", given.pop("preset"), given)[0]

    def eps(self, grid: Grid) -> float:
        """The budget; 0 where nothing is protected."""
        return 0.0 if self.method is None else self.resolved(grid).eps

    def steps(self, grid: Grid) -> int:
        """How many iterations; noise has none."""
        return self.resolved(grid).steps if takes_gradient(self) else 0

    def unusual(self) -> dict[str, Any]:
        """The options that are not the method's defaults: said or left out, a default is the same protection."""
        if self.method is None or "preset" in self.loop:  # whose own options a default would override
            return dict(self.options)
        declared = options(self.method)
        return {name: value for name, value in self.options.items() if value != declared[name].default}


@dataclass(frozen=True)
class Grid:
    """Everything that a run's records depend on.

    ``editors``: live ones, or what :func:`sifm_core.editors.load_editor` takes; "A -> B" protects on A and attacks with
    B, "A & B -> C" protects on A and B at once. ``judges``: live ones or "backend:model". What is named is loaded with
    ``load`` (device, dtype, local_files_only), where and when it is needed. ``purifiers``: chains that the attacker
    applies first, "" for none;
    ``upscaler``: folder or hub id for noisy upscaling, "" for the usual one. ``batch`` pictures of one size go through
    a model together. ``compare_prompts``: find out how far the attacker's prompt is from that of the protection for the
    attacked editor (:func:`sifm_core.pipeline.prompt_distance`). ``demonstration``: editors that are toys may work on
    pictures larger than their own.
    """

    samples: Sequence[Sample]
    editors: Sequence[Editor | str]
    judges: Sequence[Judge | str]
    rows: Sequence[Row]
    seeds: Sequence[int] = (0,)
    purifiers: Sequence[str] = ("",)
    eps: float = Loop.eps
    steps: int = Loop.steps
    alpha: float = Loop.alpha
    batch: int = 8
    edit_options: Mapping[str, Any] = field(default_factory=dict)
    upscaler: str = ""
    compare_prompts: bool = False
    load: Mapping[str, Any] = field(default_factory=dict)
    demonstration: bool = False

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if CLEAN not in names or len(set(names)) != len(names):
            raise InputError(f"rows: expected distinct names with {CLEAN!r} among them, got {', '.join(names)}")
        for row in self.rows:
            self._check_row(row)
        for chain in self.purifiers:
            purify.parse(chain)
        for what in ("samples", "editors", "seeds", "purifiers"):
            if not getattr(self, what):
                raise InputError(f"{what}: expected at least one")
        judges = [judge if isinstance(judge, str) else judge.name for judge in self.judges]
        if len(set(judges)) != len(judges):
            raise InputError("expected different judges: one that is asked twice does not agree with anybody")
        if check_count(self.batch, "batch") > BATCH:
            raise InputError(f"batch: expected at most {BATCH} pictures at a time, got {self.batch}")
        if len(self.seeds) > SEEDS:
            raise InputError(f"seeds: expected at most {SEEDS}, got {len(self.seeds)}")
        for seed in self.seeds:
            check_seed(seed, 1)
        cells = math.prod(map(len, (self.rows, self.editors, self.seeds, self.purifiers)))
        for records, most, what in ((cells, CELLS, "a picture"), (cells * len(self.samples), RECORDS, "a grid")):
            if records > most:
                raise InputError(f"expected at most {most:,} records of {what}, but got {records:.3g}: cut one side")

    def _check_row(self, row: Row) -> None:
        """Raise InputError for what a row's protection could never be made with."""
        if type(row.seed_shift) is not int or abs(row.seed_shift) > 2**62:
            raise InputError(f"row {row.name}: seed_shift: expected a whole number, got {row.seed_shift!r}")
        if row.method is None:
            return
        check_options(row.method, row.options)
        for name in row.loop:
            check_choice(name, f"setting of row {row.name}", SETTINGS)
        row.also()
        row.resolved(self)

    def attacked(self) -> list[str]:
        """The editors' names as given, "A -> B" for a transfer."""
        return [editor if isinstance(editor, str) else editor.name for editor in self.editors]

    def counts(self) -> dict[str, int]:
        """How many pictures each phase computes and how many verdicts are asked for, when nothing is known yet."""
        pairs = [names(editor) for editor in self.attacked()]
        cells = [(row, protect, attack, seed) for row in self.rows for protect, attack in pairs for seed in self.seeds]
        pictures = len({sample.id for sample in self.samples})

        def made(row: Row, protect: str, seed: int) -> tuple[Any, ...]:
            return protected_by(row, self, protect, seed)

        protections = {made(row, protect, seed) for row, protect, _, seed in cells if row.method}
        purified = {
            (made(row, protect, seed), chain, attack, seed + row.seed_shift)
            for row, protect, attack, seed in cells
            for chain in self.purifiers
            if chain
        }
        edits = {
            (made(row, protect, seed), chain, attack, seed + row.seed_shift)
            for row, protect, attack, seed in cells
            for chain in self.purifiers
        }
        floors = {((), chain, attack, seed) for _, attack in pairs for seed in self.seeds for chain in self.purifiers}
        n = len(self.samples)
        return {
            "immunize": pictures * len(protections),
            "purify": pictures * len(purified),
            "edit": n * len(edits),
            "measure": n * (len(edits) - len(floors)) + pictures * len(protections),
            "judge": n * len(edits) * len(self.judges),
            "records": n * len(cells) * len(self.purifiers),
        }


def protected_by(row: Row, grid: Grid, protect: str, seed: int) -> tuple[Any, ...]:
    """What tells one protection of a picture from another; () for none. Noise does not depend on the editor."""
    if row.method is None:
        return ()
    settings = (row.settings(grid), protect) if takes_gradient(row) else (row.eps(grid), "")
    return (row.method, repr(sorted(row.unusual().items())), repr(settings), seed)


def takes_gradient(row: Row) -> bool:
    """Does the row's method need the editor (noise does not)?"""
    return row.method is not None and hasattr(get_method(row.method), "build")


@cache
def takes(chain: str, tool: Literal["editor", "upscaler"]) -> bool:
    """Does a purifier of the chain work with the attacker's own editor, or with the upscaler?"""
    modules = (importlib.import_module(f"{purify.__name__}.{stage.name}") for stage in purify.parse(chain))
    return any(tool in inspect.signature(module.purify).parameters for module in modules)


@cache
def names(editor: str) -> tuple[str, str]:
    """("A", "B") of "A -> B", ("A & B", "C") of "A & B -> C"; the same twice for a plain name."""
    protect, arrow, attack = (part.strip() for part in editor.partition(ARROW))
    several = _homes(protect)
    if not all(several) or (arrow and not attack) or (not arrow and len(several) > 1):
        raise InputError(f"editor: expected a name, 'A -> B' or 'A & B -> C', got {editor!r}")
    return protect, attack or protect


def homes(editor: str) -> list[str]:
    """The editors that a picture is protected on: "A", "B" of "A & B -> C"."""
    return _homes(names(editor)[0])


def _homes(protect: str) -> list[str]:
    return [name.strip() for name in f" {protect} ".split(f" {AND} ")]
