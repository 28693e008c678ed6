"""A grid of pictures x rows x seeds, phase by phase: immunize all, edit all, measure all, judge all, write the records.

Every artefact (protected picture, edit, metrics, verdict) is looked up in the store, under the hash of all it depends
on, before it is computed; and pictures go in fixed batches that are computed whole. So a run that was killed resumes
and ends with the records of an uninterrupted one. A batch that fails costs its own records, never the run: the reason
stands in their ``info["failed"]``, and the next run tries again.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .errors import InputError
from .isr import CLEAN
from .methods import get_method
from .pipeline import ALPHA, EPS, STEPS, check_method, edit, immunize, measure
from .store import Store, fingerprint
from .types import Case, Editor, Judge, Metric, OnStep, Record, Step, Verdict

PACKAGE = "sifm"
VERSION = 1
"""Part of every artefact's key: raise it when what the phases compute changes."""

FIDELITY = ("psnr", "ssim", "lpips")
"""Metrics that say how visible the protection is (protected against source)."""
UNANSWERED = ("unreachable", "missing_key", "error")
"""States of a verdict that a later run asks for again."""


@dataclass(frozen=True)
class Sample:
    """One attack on one picture.

    ``image`` (3, H, W) in [0, 1]; ``instruction`` is what the protection is made with, ``prompt`` what the attacker
    asks (``kind`` "original" when they are the same, else "unseen"); ``truth`` is for judges that use it.
    """

    id: str
    image: Tensor
    instruction: str
    prompt: str
    category: str = ""
    kind: str = "original"
    truth: Any = None


@dataclass(frozen=True)
class Row:
    """One line of the table: how pictures are protected before the attack.

    ``method`` None leaves them as they are; ``seed_shift`` makes the attacker use another seed than the other rows do.
    """

    name: str
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed_shift: int = 0


ROWS = (
    Row(CLEAN),
    Row("another seed", seed_shift=1000),
    Row("pixel noise", "random_noise", {"pattern": "pixel"}),
    Row("blocks 4 px", "random_noise", {"pattern": "block4"}),
    Row("blocks 8 px", "random_noise", {"pattern": "block8"}),
    Row("blocks 16 px", "random_noise", {"pattern": "block16"}),
    Row("PhotoGE", "photoguard_encoder"),
    Row("SIFM", "sifm"),
)
"""The demo's rows: two floors, four controls without gradient, one baseline, SIFM."""


@dataclass(frozen=True)
class Grid:
    """Everything that a run's records depend on. ``batch`` pictures of one size go through a model together."""

    samples: Sequence[Sample]
    editor: Editor
    judges: Sequence[Judge]
    rows: Sequence[Row] = ROWS
    seeds: Sequence[int] = (0,)
    eps: float = EPS
    steps: int = STEPS
    alpha: float = ALPHA
    batch: int = 8
    edit_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if CLEAN not in names or len(set(names)) != len(names):
            raise InputError(f"rows: expected distinct names with {CLEAN!r} among them, got {', '.join(names)}")
        for row in self.rows:
            if row.method is not None:
                check_method(row.method, row.options)


def benchmark(items: Iterable[Any], unseen: int = 0) -> list[Sample]:
    """The miniature's items as samples: the original instruction, then the first `unseen` unseen ones of each."""
    samples = []
    for item in items:
        for n, prompt in enumerate([item.instruction, *item.unseen[:unseen]]):
            kind = "unseen" if n else "original"
            truth = item.truth(prompt)
            samples.append(Sample(item.id, item.image, item.instruction, prompt, item.category, kind, truth))
    return samples


def run(grid: Grid, store: Store, on_step: OnStep | None = None) -> list[Record]:
    """Compute what the store lacks; return the grid's records (rows within samples within seeds), stored as well.

    ``on_step`` hears of the phases "immunize", "edit", "measure" and "judge": ``i`` of ``n`` hundredths of a picture,
    counting what was still to do (noise, which takes no gradient, as a fiftieth). What it raises stops the run; the
    next run goes on from there.
    """
    return _Run(grid, store, on_step).records()


def provenance(grid: Grid) -> dict[str, Any]:
    """Versions, hardware and settings, as the report prints them."""
    packages = (PACKAGE, "torch", "torchvision", "diffusers", "transformers", "lpips", "piq", "numpy", "pillow")
    versions = {name: package_version(name) for name in packages}
    return {
        "versions": {"python": platform.python_version()} | {name: v for name, v in versions.items() if v},
        "hardware": hardware(grid.editor.device),
        "editor": {"name": grid.editor.name, "family": grid.editor.family, "fingerprint": grid.editor.fingerprint},
        "judges": [judge.name for judge in grid.judges],
        "settings": {
            "eps": grid.eps,
            "steps": grid.steps,
            "alpha": grid.alpha,
            "seeds": list(grid.seeds),
            "batch": grid.batch,
            **({"edit": dict(grid.edit_options)} if grid.edit_options else {}),
        },
    }


def package_version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def hardware(device: torch.device) -> str:
    """The device in words: the GPU's name, or the machine's CPU and the threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    return f"{device.type}: {platform.machine()}, {threads}, {platform.system()}"


Key: TypeAlias = str
Compute: TypeAlias = Callable[[list[Any], OnStep], list[dict[str, Any]]]


@dataclass(frozen=True)
class _Attack:
    """A cell of the grid while it is filled: which picture is attacked how."""

    sample: Sample
    row: Row
    seed: int
    source: str

    @property
    def edit_seed(self) -> int:
        return self.seed + self.row.seed_shift


class _Pair(NamedTuple):
    reference: str
    distorted: str
    names: tuple[str, ...] | None = None


class _Run:
    def __init__(self, grid: Grid, store: Store, on_step: OnStep | None) -> None:
        self.grid, self.store, self.on_step = grid, store, on_step
        own = {"settings": getattr(grid.editor, "settings", {}), "dtype": str(grid.editor.dtype)}
        self.editor_id = fingerprint(weights=grid.editor.fingerprint, **own)
        self.failed: dict[Key, str] = {}
        self.found: dict[tuple[str, Key], dict[str, Any]] = {}

    def records(self) -> list[Record]:
        grid = self.grid
        sources = {sample.id: self.store.put_image(sample.image[None]) for sample in grid.samples}
        attacks = [
            _Attack(sample, row, seed, sources[sample.id])
            for seed in grid.seeds
            for sample in grid.samples
            for row in grid.rows
        ]
        self._immunize_all(attacks)
        self._edit_all(attacks)
        self._measure_all(attacks)
        self._judge_all(attacks)
        records = [self._record(attack) for attack in attacks]
        for record in records:
            self.store.put_record(record)
        return records

    # ---- the phases

    def _immunize_all(self, attacks: list[_Attack]) -> None:
        grid = self.grid

        def compute(batch: list[_Attack], on_step: OnStep) -> list[dict[str, Any]]:
            row, sources = batch[0].row, torch.stack([a.sample.image for a in batch])
            done = immunize(
                sources,
                grid.editor,
                prompt=[a.sample.instruction for a in batch],
                method=str(row.method),
                eps=grid.eps,
                steps=grid.steps,
                alpha=grid.alpha,
                seed=[a.seed for a in batch],
                on_step=on_step,
                **row.options,
            )
            shared = {
                "seconds": done.seconds / len(batch),
                "history": [{"loss": step.loss, **step.log} for step in done.history],
            }
            linf = (done.image - sources).abs().amax(dim=(1, 2, 3)).tolist()
            return [
                {"image": self.store.put_image(x[None]), "linf": largest, **shared}
                for x, largest in zip(done.image, linf, strict=True)
            ]

        cells = {self._protected_key(a): a for a in attacks if a.row.method}
        self._phase(
            "immunize", self._chunks(cells, _alike), compute, work=lambda a: 1.0 if _takes_gradient(a) else 0.02
        )

    def _edit_all(self, attacks: list[_Attack]) -> None:
        grid = self.grid
        cells = {self._edit_key(a): a for a in attacks if self._protected(a)}

        def compute(batch: list[_Attack], on_step: OnStep) -> list[dict[str, Any]]:
            start = time.perf_counter()
            edited = edit(
                torch.cat([self.store.get_image(self._protected(a)) for a in batch]),
                grid.editor,
                prompt=[a.sample.prompt for a in batch],
                seed=[a.edit_seed for a in batch],
                on_step=on_step,
                **grid.edit_options,
            )
            seconds = (time.perf_counter() - start) / len(batch)
            return [{"image": self.store.put_image(x[None]), "seconds": seconds} for x in edited]

        self._phase("edit", self._chunks(cells, _alike), compute)

    def _measure_all(self, attacks: list[_Attack]) -> None:
        cells = {self._measure_key(pair): (a, pair) for a in attacks for pair in self._pairs(a)}

        def compute(batch: list[tuple[_Attack, _Pair]], on_step: OnStep) -> list[dict[str, Any]]:
            one = torch.cat([self.store.get_image(pair.reference) for _, pair in batch])
            two = torch.cat([self.store.get_image(pair.distorted) for _, pair in batch])
            columns = measure(one, two, batch[0][1].names)
            return [{name: asdict(values[i]) for name, values in columns.items()} for i in range(len(batch))]

        self._phase("measure", self._chunks(cells, lambda cell: (_alike(cell[0]), cell[1].names)), compute)

    def _judge_all(self, attacks: list[_Attack]) -> None:
        cells: dict[Key, tuple[Judge, _Attack]] = {}
        for judge in self.grid.judges:
            for a in attacks:
                if self._edited(a):
                    cells.setdefault(self._verdict_key(judge, a), (judge, a))

        def compute(batch: list[tuple[Judge, _Attack]], on_step: OnStep) -> list[dict[str, Any]]:
            cases = []
            for _, a in batch:
                source, edited = (self.store.get_image(i)[0] for i in (a.source, self._edited(a)))
                cases.append(Case(source, edited, a.sample.prompt, a.sample.truth))
            return [asdict(verdict) for verdict in batch[0][0].judge(cases, on_step=on_step)]

        # A judge may cost money: only what is missing is asked, never a whole batch again.
        missing = {k: c for k, c in cells.items() if self._have("verdict", k).get("state", UNANSWERED[0]) in UNANSWERED}
        self._phase("judge", self._chunks(missing, lambda cell: cell[0].name), compute, kind="verdict", again=True)

    # ---- keys and what is known under them

    def _protected_key(self, a: _Attack) -> Key:
        grid = self.grid
        uses: dict[str, Any] = {"eps": grid.eps, "seed": a.seed, "options": dict(a.row.options)}
        if _takes_gradient(a):
            uses |= {"editor": self.editor_id, "prompt": a.sample.instruction, "steps": grid.steps, "alpha": grid.alpha}
        return fingerprint(version=VERSION, source=a.source, method=a.row.method, **uses)

    def _edit_key(self, a: _Attack) -> Key:
        return fingerprint(
            version=VERSION,
            image=self._protected(a),
            editor=self.editor_id,
            prompt=a.sample.prompt,
            seed=a.edit_seed,
            options=dict(self.grid.edit_options),
        )

    def _measure_key(self, pair: _Pair) -> Key:
        return fingerprint(version=VERSION, **pair._asdict())

    def _verdict_key(self, judge: Judge, a: _Attack) -> Key:
        marks = {"judge": judge.name, "weights": getattr(judge, "served", "")}
        return fingerprint(version=VERSION, source=a.source, edited=self._edited(a), prompt=a.sample.prompt, **marks)

    def _protected(self, a: _Attack) -> str:
        """Store id of the picture that is attacked; empty when its protection failed."""
        return self._have("immunize", self._protected_key(a)).get("image", "") if a.row.method else a.source

    def _edited(self, a: _Attack) -> str:
        return self._have("edit", self._edit_key(a)).get("image", "") if self._protected(a) else ""

    def _clean(self, a: _Attack) -> _Attack:
        return _Attack(a.sample, Row(CLEAN), a.seed, a.source)

    def _pairs(self, a: _Attack) -> list[_Pair]:
        """The edit against the clean edit of the same seed, the protected picture against its source."""
        clean, edited, protected = self._edited(self._clean(a)), self._edited(a), self._protected(a)
        pairs = []
        if clean and edited and a.row.name != CLEAN:
            pairs.append(_Pair(clean, edited))
        if a.row.method and protected:
            pairs.append(_Pair(a.source, protected, FIDELITY))
        return pairs

    def _have(self, kind: str, key: Key) -> dict[str, Any]:
        if (kind, key) not in self.found:
            value = self.store.get(kind, key)
            if value is None or ("image" in value and not self.store.has_image(value["image"])):
                return {}
            self.found[kind, key] = value
        return self.found[kind, key]

    # ---- running a phase

    def _chunks(self, cells: Mapping[Key, Any], like: Callable[[Any], Any]) -> list[list[tuple[Key, Any]]]:
        """Cells that may share a batch (`like` equal), in the grid's order, cut into batches."""
        groups: dict[Any, list[tuple[Key, Any]]] = {}
        for key, cell in cells.items():
            groups.setdefault(like(cell), []).append((key, cell))
        n = self.grid.batch
        return [group[i : i + n] for group in groups.values() for i in range(0, len(group), n)]

    def _phase(
        self,
        name: str,
        chunks: list[list[tuple[Key, Any]]],
        compute: Compute,
        *,
        kind: str | None = None,
        again: bool = False,
        work: Callable[[Any], float] = lambda cell: 1.0,
    ) -> None:
        kind = kind or name
        todo = [chunk for chunk in chunks if again or not all(self._have(kind, key) for key, _ in chunk)]
        sizes = [sum(work(cell) for _, cell in chunk) for chunk in todo]
        for i, chunk in enumerate(todo):
            progress = _Progress(self.on_step, name, sum(sizes[:i]), sizes[i], sum(sizes))
            progress(Step(name, 0, 1))
            try:
                values = compute([cell for _, cell in chunk], progress)
            except Exception as error:
                if error is progress.raised:
                    raise
                self.failed |= {key: f"{name}: {type(error).__name__}: {error}" for key, _ in chunk}
            else:
                for (key, _), value in zip(chunk, values, strict=True):
                    self.store.put(kind, key, value)
                    self.found[kind, key] = value
            progress(Step(name, 1, 1))

    def _record(self, a: _Attack) -> Record:
        grid, row = self.grid, a.row
        protection = self._have("immunize", self._protected_key(a)) if row.method else {}
        edited = self._have("edit", self._edit_key(a)) if self._protected(a) else {}
        keys = [self._protected_key(a)] if row.method else []
        keys += [self._edit_key(a)] if self._protected(a) else []
        compared: dict[str, dict[str, Any]] = {"edit": {}, "fidelity": {}}
        for pair in self._pairs(a):
            keys.append(self._measure_key(pair))
            compared["fidelity" if pair.names else "edit"] = self._have("measure", keys[-1])
        verdicts = []
        for judge in grid.judges if edited else ():
            keys.append(self._verdict_key(judge, a))
            if value := self._have("verdict", keys[-1]):
                verdicts.append(Verdict(**value))
        reasons = list(dict.fromkeys(self.failed[key] for key in keys if key in self.failed))
        info: dict[str, Any] = {
            "options": dict(row.options),
            "protection": row.method or "",
            "edit_seed": a.edit_seed,
            "instruction": a.sample.instruction,
        }
        if row.method:
            info |= {"linf": protection.get("linf"), "history": protection.get("history", [])}
            info["fidelity"] = compared["fidelity"]
        if reasons:
            info["failed"] = "; ".join(reasons)
        return Record(
            key=fingerprint(
                row=row.name,
                protected=self._protected_key(a) if row.method else a.source,
                editor=self.editor_id,
                prompt=a.sample.prompt,
                seed=a.edit_seed,
                judges=[judge.name for judge in grid.judges],
            ),
            image=a.sample.id,
            category=a.sample.category,
            prompt=a.sample.prompt,
            prompt_kind=a.sample.kind,
            editor=grid.editor.name,
            method=row.name,
            seed=a.seed,
            eps=grid.eps if row.method else 0.0,
            source=a.source,
            protected=self._protected(a),
            edited=edited.get("image", ""),
            metrics={name: Metric(**value) for name, value in compared["edit"].items()},
            verdicts=tuple(verdicts),
            seconds={"immunize": protection.get("seconds", 0.0), "edit": edited.get("seconds", 0.0)},
            info=info,
        )


def _takes_gradient(a: _Attack) -> bool:
    return hasattr(get_method(str(a.row.method)), "build")


def _alike(a: _Attack) -> tuple[str, torch.Size]:
    """Attacks that may share a batch. By rows, so that another row in the grid leaves the batches of these alone."""
    return a.row.name, a.sample.image.shape


class _Progress:
    """Turns a batch's steps into hundredths of a picture of the phase; remembers what the caller's callback raised."""

    def __init__(self, on_step: OnStep | None, phase: str, done: float, batch: float, total: float) -> None:
        self.on_step, self.phase, self.done, self.batch, self.total = on_step, phase, done, batch, total
        self.raised: BaseException | None = None

    def __call__(self, step: Step) -> None:
        if self.on_step is None:
            return
        i = round(100 * (self.done + self.batch * step.i / max(step.n, 1)))
        try:
            self.on_step(Step(self.phase, i, round(100 * self.total), step.loss, step.log, step.preview))
        except BaseException as error:
            self.raised = error
            raise
