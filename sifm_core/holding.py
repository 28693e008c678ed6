"""Does a protection hold? A picture attacked as others may attack it, with what says how far to believe the answer.

Editors x instructions x seeds, on the picture as it is, after uploads and after mild purifiers; beside the protected
picture its original, whose edits should work, and the original under noise of the same strength, whose edits should
too. Judges are tried on cases whose answer is known, made of the same picture. What that comes to is decided by
:func:`sifm_core.verdicts.light`; where nobody can judge there is no light, but the pictures.
"""

from __future__ import annotations

import datetime
import importlib
import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import pipeline
from . import purify as purification
from .checks import check_count, check_list, check_prompts, check_toys
from .editors import BUILTIN, load_editor
from .errors import ImageError, InputError
from .files import read_text
from .format import percent, span
from .images import MIN_SIDE, change, check_picture, on_grid, resize
from .judges import load_judge
from .judges.calibration import Calibration, Gold, counted, gold_controls
from .methods.sifm_plus import OWN, choose, pool
from .noise import check_seed
from .protection import called
from .rates import Isr, isr
from .types import Case, Editor, Image, Judge, OnStep, Step, Verdict
from .verdicts import RULE as RULE
from .verdicts import TRUSTED, TRUTH, Evidence, Light, consensus, light

UPLOADS = Path(__file__).with_name("uploads.toml")
"""Dated approximations of what platforms do to pictures."""
PURIFIERS = ("blur:0.5", "gaussian_noise:0.02")
"""Mild ones, which cost an attacker nothing and leave the picture as good as it was."""
INSTRUCTIONS, SEEDS = 16, (1,)
"""How many instructions are drawn where none is given; the seeds of the edits, of which another instruction tells more.
"""
AS_IT_IS = "as it is"
TOY_JUDGES = ("miniature:conv", "miniature:patch")
"""Of the miniature's own pictures, and never of others."""
SHOWN = 320
"""Pixels of the longer side of the pictures that are kept."""
KINDS = ("protected", "original", "noise")


@dataclass(frozen=True)
class Way:
    """What happens to a picture before it is edited: scaled down to a longest ``side`` and saved as JPEG, or purified.

    ``side`` and ``quality`` None, ``purifier`` "": nothing of the kind.
    """

    name: str
    side: int | None = None
    quality: float | None = None
    purifier: str = ""

    def __call__(self, image: Image, editor: Editor) -> Image:
        """The picture as the editor gets it, on the 8-bit grid."""
        height, width = image.shape[-2:]
        if self.side is not None and max(height, width) > self.side:
            scale = self.side / max(height, width)
            image = _shrunk(image, round(height * scale), round(width * scale))
        jpeg = "" if self.quality is None else f"jpeg:{self.quality:g}"
        chain = ",".join(filter(None, (jpeg, self.purifier)))
        image = on_grid(purification.apply(image, chain, editor=editor)) if chain else image
        work = editor.work_size(*image.shape[-2:])
        return _shrunk(image, *work) if max(work) < max(image.shape[-2:]) else image


@dataclass(frozen=True)
class Attack:
    """One edit: of what (:data:`KINDS`), how, and what judges said; ``edited`` (1, 3, h, w), at most :data:`SHOWN`."""

    kind: str
    editor: str
    way: str
    instruction: str
    seed: int
    edited: Image = field(repr=False)
    verdicts: tuple[Verdict, ...] = ()

    @property
    def cell(self) -> tuple[str, str, str, int]:
        """What attacks on protected picture and original have in common."""
        return self.editor, self.way, self.instruction, self.seed

    @property
    def failed(self) -> bool | None:
        return consensus(self.verdicts)


@dataclass(frozen=True)
class Row:
    """One editor and way: ``rate`` of edits that fail, of those that work on the original where there is one."""

    editor: str
    way: str
    rate: Isr
    floor: Isr | None


@dataclass(frozen=True)
class Holds:
    """What :func:`holds` returns.

    ``light``: green, amber or red by :data:`RULE`; None where nobody judged; ``lacking``: what was, for green.
    ``rows`` with the weakest first; ``noise``: the same rate under noise of the same strength, without a way, None
    without the original; ``attacks``: every edit, those first that got through the protection, then one instruction
    after another with every editor and way of it. ``editors``: a built-in one by its name, another without its path, as
    ``judges``. ``calibrations``: what the judges know of the controls.
    """

    light: Light | None
    lacking: tuple[str, ...]
    rows: tuple[Row, ...]
    noise: Isr | None
    attacks: tuple[Attack, ...] = field(repr=False)
    judges: tuple[str, ...]
    calibrations: tuple[Calibration, ...]
    change: float | None
    editors: tuple[Mapping[str, Any], ...]
    instructions: tuple[str, ...]
    seeds: tuple[int, ...]
    ways: tuple[Way, ...]
    uploads_read: str
    drawn: bool
    demonstration: bool
    date: str
    seconds: float

    @property
    def tested(self) -> list[dict[str, Any]]:
        """For a certificate, an entry for each editor: date, editor, judges, outcome; no instruction, and no path.

        None of a demonstration, or where nobody judged.
        """
        if self.light is None or self.demonstration:
            return []
        weakest = {row.editor: _said(row) for row in reversed(self.rows)}
        return [
            {
                "date": self.date,
                "editor": called({k: v for k, v in editor.items() if k != "name" or v in BUILTIN}),
                "judges": list(self.judges),
                "outcome": f"{self.light}; weakest {weakest[editor['name']]}",
            }
            for editor in self.editors
        ]

    def words(self) -> Iterator[str]:
        """The outcome and what it rests on, a sentence each."""
        if self.demonstration:
            yield "A demonstration on a toy: it says nothing about this picture."
        yield {
            "green": "Green: whatever was done to it first, most edits fail that work on the original.",
            "amber": "Amber: it may or may not hold; what was tried does not tell.",
            "red": "Red: it does not hold in at least one case that was tried.",
            None: "No light: nobody judged the edits. Look at the pictures and judge for yourself, or name judges "
            "(`sifm judges` lists those that can be asked here).",
        }[self.light]
        if self.light:
            yield f"Weakest: {_said(self.rows[0])}."
        if self.light == "amber":
            yield f"For green it takes {'; '.join(self.lacking)}."
        if self.light and len(self.instructions) == 1:
            yield "One instruction says nothing of others and tries no judge, so it is never green: give two or more."
        if self.noise is None:
            yield "Without the original there is no floor: edits may fail by themselves. Give it to tell."
        elif self.light:
            share = f"{percent(self.noise.rate)} of {self.noise.n} edits fail"
            yield f"Noise of the same strength, as coarse as the editor's pixels: {share}."
        for one in self.calibrations:
            yield f"{one.sentence()}." + ("" if _finds(one) else " That is too little to be sure of anything.")
        if self.drawn:
            yield "The instructions were drawn from a pool, and may be among those that it was protected against."
        names = " and ".join(editor["name"] for editor in self.editors)
        yield f"Against {names} on {self.date}, and nothing else. Test again when editors change."


def holds(
    image: Image,
    against: Editor | str | Sequence[Editor | str],
    *,
    source: Image | None = None,
    instructions: Sequence[str] = (),
    subject: str = "any",
    drawn: int = INSTRUCTIONS,
    seeds: Sequence[int] = SEEDS,
    uploads: Sequence[Way] | None = None,
    purifiers: Sequence[str] = PURIFIERS,
    judges: Sequence[Judge | str] | None = None,
    truth: Any = None,
    demonstration: bool = False,
    on_step: OnStep | None = None,
) -> Holds:
    """Attack a protected picture (1, 3, H, W) in [0, 1] and say whether its protection holds.

    ``against``: one or several editors. ``source``: its original, of the same size, without which nothing is ever
    green. ``instructions``: what attackers ask; none: ``drawn`` many from the pool of the ``subject``.
    ``uploads`` None: :func:`known_uploads`. ``judges``: names or objects, one verdict each on every edit, and all have
    to agree; None: the miniature's for its own pictures, nobody for others. ``truth``: instruction -> ground truth, for
    judges that have it. ``demonstration``: as in :func:`sifm_core.immunize`; then nobody judges.

    Raises InputError before any work when an argument is wrong; what ``on_step`` raises comes through.
    """
    started = time.perf_counter()
    plan = _Plan(image, against, source, instructions, subject, drawn, seeds, uploads, purifiers, judges, demonstration)
    done = 0

    def step(n: int) -> None:
        nonlocal done
        done += n
        if on_step is not None:
            on_step(Step("holds", done, plan.edits))

    attacks: list[Attack] = []
    golds: list[Gold] = []
    for editor, way in itertools.product(plan.editors, plan.ways):
        noise = plan.noise(editor) if way.name == AS_IT_IS else {}
        seen = {kind: way(picture, editor) for kind, picture in (plan.pictures | noise).items()}
        shown = seen.get("original", seen["protected"])
        for kind in seen:
            edited = plan.edit(seen[kind], editor, step)
            cases = [
                Case(shown[0], y, prompt, truth(prompt) if truth else None)
                for y, (prompt, _) in zip(edited, plan.cells, strict=True)
            ]
            answers = zip(*(judge.judge(cases) for judge in plan.judges), strict=True)
            verdicts = list(answers) if plan.judges else [()] * len(cases)
            attacks += [
                Attack(kind, _label(editor), way.name, prompt, seed, _small(y[None]), tuple(said))
                for y, (prompt, seed), said in zip(edited, plan.cells, verdicts, strict=True)
            ]
            if kind == "original" and not golds and len(plan.instructions) > 1 and plan.judges:
                wrong = edited.roll(len(plan.seeds), 0)  # that of the next instruction
                golds = gold_controls(cases, list(wrong))
    calibrations = tuple(
        counted(judge.name, golds, judge.judge([gold.case for gold in golds]))
        for judge in plan.judges
        if golds and judge.name != TRUTH
    )
    found = Holds(
        light=None,
        lacking=(),
        rows=(),
        noise=None,
        attacks=tuple(attacks),
        judges=tuple(_bare(judge.name) for judge in plan.judges),
        calibrations=calibrations,
        change=None if source is None else change(image, source)[0],
        editors=tuple(_about(editor) for editor in plan.editors),
        instructions=tuple(plan.instructions),
        seeds=tuple(plan.seeds),
        ways=tuple(plan.ways),
        uploads_read=_uploads()["read"],
        drawn=not instructions,
        demonstration=plan.demonstration,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        seconds=time.perf_counter() - started,
    )
    return decided(found)


def decided(found: Holds) -> Holds:
    """The same with rates, light and order by its attacks' verdicts."""
    judged = {verdict.judge for attack in found.attacks for verdict in attack.verdicts}
    clean = {attack.cell: attack.failed for attack in found.attacks if attack.kind == "original"}
    original = bool(clean)

    def rate(kind: str, editor: str | None = None, way: str | None = None) -> Isr:
        """Of what fails, by instruction; where there is an original, of the edits that work on it.

        Where all are of one instruction the interval is of its seeds, and down to 0: it says nothing of others.
        """
        some = [
            attack
            for attack in found.attacks
            if attack.kind == kind and editor in (None, attack.editor) and way in (None, attack.way)
        ]
        counted = some if kind == "original" or not original else [a for a in some if clean[a.cell] is False]
        clusters = [(a.editor, a.instruction) for a in counted]
        several = len({a.instruction for a in counted}) > 1
        share = isr([a.failed for a in counted], clusters=clusters if several else None)
        return share if several or share.low is None else replace(share, low=0.0)

    pairs = list(dict.fromkeys((attack.editor, attack.way) for attack in found.attacks))
    rows = [Row(*pair, rate("protected", *pair), rate("original", *pair) if original else None) for pair in pairs]
    rows.sort(key=lambda row: (row.rate.low is None, row.rate.low, row.rate.high))
    noise = rate("noise") if any(attack.kind == "noise" for attack in found.attacks) else None
    order = {False: 0, None: 1, True: 2}
    turn = found.instructions.index
    attacks = sorted(found.attacks, key=lambda a: (KINDS.index(a.kind), order[a.failed], turn(a.instruction)))
    known = all(map(_finds, found.calibrations)) if found.calibrations else None
    shown, lacking = light(
        [
            Evidence(
                row.way if len(found.editors) == 1 else f"{row.editor}, {row.way}",
                row.rate.low,
                row.rate.high,
                row.rate.n,
                rate("noise", row.editor).rate,
            )
            for row in rows
        ],
        original=original,
        trusted=True if judged == {TRUTH} else known,
    )
    found = replace(found, rows=tuple(rows), noise=noise, attacks=tuple(attacks))
    return replace(found, light=shown, lacking=lacking) if judged else replace(found, light=None, lacking=())


def forecast(image: Image, against: Editor | str | Sequence[Editor | str], **how: Any) -> tuple[int, float]:
    """How many edits :func:`holds` with the same arguments makes, and about how many seconds they take.

    From one edit of the picture by each editor; what judges take comes on top.
    """
    plan = _Plan(image, against, **{name: how.get(name, default) for name, default in _DEFAULTS.items()})
    seconds = 0.0
    for editor in plan.editors:
        seen = Way(AS_IT_IS)(plan.pictures["protected"], editor)
        pipeline.edit(seen, editor, prompt=plan.instructions[0], seed=0)  # what is loaded when first used
        start = time.perf_counter()
        pipeline.edit(seen, editor, prompt=plan.instructions[0], seed=0)
        seconds += (time.perf_counter() - start) * plan.edits / len(plan.editors)
    return plan.edits, seconds


def known_uploads() -> tuple[Way, ...]:
    """The dated approximations of :data:`UPLOADS`."""
    return tuple(Way(one["name"], one["side"], one["quality"]) for one in _uploads()["upload"])


class _Plan:
    """The arguments, checked, and the edits that follow from them."""

    def __init__(
        self,
        image: Image,
        against: Editor | str | Sequence[Editor | str],
        source: Image | None,
        instructions: Sequence[str],
        subject: str,
        drawn: int,
        seeds: Sequence[int],
        uploads: Sequence[Way] | None,
        purifiers: Sequence[str],
        judges: Sequence[Judge | str] | None,
        demonstration: bool,
    ) -> None:
        for name, x in (("image", image), ("source", source)):
            if x is not None:
                check_picture(x)
                if len(x) != 1:
                    raise ImageError(f"{name}: expected one picture, got a batch of {len(x)}; pass them one by one")
        if source is not None and source.shape != image.shape:
            sizes = [f"{x.shape[-1]}x{x.shape[-2]}" for x in (image, source)]
            raise ImageError(f"source: expected the picture's size, {sizes[0]}, got {sizes[1]}; is it its original?")
        self.drawn, self.seeds = check_count(drawn, "drawn"), check_list(seeds, "seeds")
        for seed in self.seeds:
            check_seed(seed, 1)
        listed = [against] if isinstance(against, str | Editor) else check_list(against, "against")
        if not (listed and self.seeds):
            raise InputError("expected at least one editor and one seed, got none")
        given = check_prompts(instructions, len(instructions)) if instructions else []
        for purifier in purifiers:
            purification.parse(purifier)
        ways = known_uploads() if uploads is None else uploads
        self.ways = [Way(AS_IT_IS), *ways, *(Way(p, purifier=p) for p in purifiers)]
        self.editors = [load_editor(e) if isinstance(e, str) else e for e in listed]
        self.demonstration = check_toys(self.editors, image, demonstration)
        self.pictures = {"protected": on_grid(image)}
        if source is not None:
            self.pictures["original"] = on_grid(source)
        self.instructions = given or self._draw(subject)
        self.cells = list(itertools.product(self.instructions, self.seeds))
        self.judges = self._judges(judges)
        each = len(self.ways) * len(self.pictures) + (source is not None)
        self.edits = len(self.editors) * len(self.cells) * each

    def noise(self, editor: Editor) -> dict[str, Image]:
        """The original, changed everywhere by as much as the protected picture; {} where it is not there.

        In random directions, each for as much of a larger picture as the editor makes one pixel of, which would average
        finer noise away.
        """
        if (x0 := self.pictures.get("original")) is None:
            return {}
        shape = x0.shape[-2:]
        work = editor.work_size(*shape)
        size = work if max(work) < max(shape) else shape
        signs = torch.rand((1, 3, *size), generator=torch.Generator().manual_seed(0)).sub_(0.5).sign_()
        change = (self.pictures["protected"] - x0).abs() * F.interpolate(signs, shape, mode="nearest")
        return {"noise": on_grid((x0 + change).clamp(0, 1))}

    def _draw(self, subject: str) -> list[str]:
        """Instructions that every editor can read."""
        wishes = pool(OWN if any(editor.toy for editor in self.editors) and subject == "any" else subject)

        def reads(texts: Sequence[str]) -> bool:
            try:
                for editor in self.editors:
                    x = self.pictures["protected"]
                    editor.prepare(texts, resize(x, editor.work_size(*x.shape[-2:])).expand(len(texts), -1, -1, -1))
            except InputError:
                return False
            return True

        (found,) = choose(reads, wishes, self.drawn, (), [0])
        if not found:
            raise InputError("instructions: the editors can read none that there are to draw from: give some")
        return found

    def _judges(self, judges: Sequence[Judge | str] | None) -> list[Judge]:
        own = all(editor.toy for editor in self.editors) and not self.demonstration
        if judges is None:
            judges = TOY_JUDGES if own else ()
        loaded = [load_judge(j) if isinstance(j, str) else j for j in check_list(judges, "judges")]
        if not own and (toys := [judge.name for judge in loaded if judge.name.startswith("miniature:")]):
            raise InputError(
                f"judges: {' and '.join(toys)} know the miniature's own drawings and nothing else: choose others, or "
                "none, and look at the pictures"
            )
        return loaded

    def edit(self, x: Image, editor: Editor, step: Any) -> Tensor:
        """An edit of one picture for every cell, (cells, 3, h, w)."""
        most = max(1, editor.rows(*editor.work_size(*x.shape[-2:])))
        found = []
        for start in range(0, len(self.cells), most):
            prompts, seeds = zip(*self.cells[start : start + most], strict=True)
            batch = x.expand(len(prompts), -1, -1, -1)
            found.append(pipeline.edit(batch, editor, prompt=list(prompts), seed=list(seeds)))
            step(len(prompts))
        return torch.cat(found)


_DEFAULTS: dict[str, Any] = {
    **{"source": None, "instructions": (), "subject": "any", "drawn": INSTRUCTIONS, "seeds": SEEDS},
    **{"uploads": None, "purifiers": PURIFIERS, "judges": None, "demonstration": False},
}


def _finds(one: Calibration) -> bool:
    """Whether a judge finds failed edits. What it clears says nothing: that clean edits are sound is only presumed."""
    share = one.sensitivity["success"].value
    return share is not None and share >= TRUSTED


def _said(row: Row) -> str:
    of = "that work on the original" if row.floor is not None else "in all"
    return f"{row.way}, {percent(row.rate.rate)} ({span(row.rate.low, row.rate.high)}) of {row.rate.n} edits {of} fail"


def _about(editor: Editor) -> dict[str, Any]:
    about = {"name": _label(editor), "family": editor.family, "fingerprint": editor.fingerprint}
    return about if editor.toy is None else {**about, "toy": True}


def _label(editor: Editor) -> str:
    """What an editor is shown as: a built-in one by its name, another without the path of its folder."""
    name = Path(editor.name).name or editor.family
    return editor.name if editor.name in BUILTIN else f"{name} ({editor.fingerprint[:6]})"


def _bare(judge: str) -> str:
    """A judge's name, of a folder its last part."""
    backend, colon, model = judge.partition(":")
    return backend + colon + (Path(model).name if Path(model).is_absolute() or Path(model).exists() else model)


def _shrunk(image: Image, height: int, width: int) -> Image:
    """Of that size, and no side less than a picture's least."""
    return on_grid(resize(image, (max(MIN_SIDE, height), max(MIN_SIDE, width))))


def _small(x: Image) -> Image:
    height, width = x.shape[-2:]
    scale = min(1.0, SHOWN / max(height, width))
    return resize(x, (max(1, round(height * scale)), max(1, round(width * scale))))


@cache
def _uploads() -> dict[str, Any]:
    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return dict(toml.loads(read_text(UPLOADS)))
