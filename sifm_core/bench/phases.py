"""The grid, phase by phase: immunize all, purify all, edit all, measure all, judge all, write the records.

Every artefact (protected picture, edit, metrics, verdict) is looked up in the store, under the hash of all it depends
on, before it is computed; and pictures go in fixed batches that are computed whole. So a run that was killed resumes
and ends with the records of an uninterrupted one, on any executor. A batch that fails costs its own records, never the
run: the reason is kept, stands in their ``info["failed"]``, and is tried again with ``retry``.

Only this process writes to the store. Pictures are taken :data:`SHARD` at a time through all phases, so what a run
holds in memory does not grow with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias, cast

import numpy as np

from ..errors import SifmError, StoreError
from ..images import from_uint8, to_uint8
from ..purify.noisy_upscale import UPSCALER
from ..store import Store, fingerprint
from ..types import Editor, Measured, Metric, OnStep, Record, RecordInfo, Step, Verdict
from ..verdicts import CLEAN
from .config import HERE
from .costs import weights
from .documents import SHAPES, Failed, Rate
from .executors import Executor, Failure, Inline, said
from .grid import Grid, Sample, names, takes, takes_gradient
from .keys import Attack, Key, Keys, Pair, identity
from .origin import provenance
from .work import Model, Task, perform

SHARD = 512
"""Pictures that go through all phases together; a multiple of usual batches."""

UNANSWERED = ("unreachable", "missing_key", "error")
"""States of a verdict that a later run asks for again."""


def run(grid: Grid, store: Store, on_step: OnStep | None = None, **how: Any) -> list[Record]:
    """:func:`fill` the store and return the grid's records; for runs that fit in memory."""
    fill(grid, store, on_step, **how)
    return list(store.records())


def fill(
    grid: Grid,
    store: Store,
    on_step: OnStep | None = None,
    *,
    executor: Executor | None = None,
    retry: bool = False,
    verify: bool = False,
    reuse: Sequence[Store] = (),
) -> None:
    """Compute what the store lacks and write the grid's records (rows within editors within samples within seeds).

    ``on_step`` hears of "immunize", "purify", "edit", "measure", "judge" and (of judges elsewhere) "ask": ``i`` of
    ``n`` hundredths of a picture, counting what was still to do; when immunizing, in pictures of the mean method's
    operations. What it raises stops the run; the next run goes on from there. ``retry`` tries again what failed before;
    ``verify`` looks at every pixel of the pictures that are there already, instead of only at the ends of their files.
    What a store of ``reuse``, another run, has under the same key is taken from there and not computed.
    """
    start = time.time()
    try:
        with executor or Inline() as workers:
            while True:
                try:
                    _Run(grid, store, on_step, workers, retry, verify, reuse).fill()
                    break
                except _OtherModel:  # known by name and changed since: once more, with what they are now
                    continue
    finally:
        before = (store.get("run", "seconds", dict[str, float]) or {}).get("seconds", 0.0)
        store.put("run", "seconds", {"seconds": before + time.time() - start})


Build: TypeAlias = Callable[[list[Any]], Task]


class _OtherModel(Exception):
    pass


class _Run:
    def __init__(
        self,
        grid: Grid,
        store: Store,
        on_step: OnStep | None,
        executor: Executor,
        retry: bool,
        verify: bool,
        reuse: Sequence[Store],
    ) -> None:
        self.reuse = reuse
        self.grid, self.store, self.on_step, self.executor, self.retry = grid, store, on_step, executor, retry
        self.whole = store.has_image if verify else store.seems_whole
        self.found: dict[tuple[str, Key], dict[str, Any]] = {}
        self.failed: dict[Key, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.editors = {name: self._editor(name, live) for live in grid.editors for name in _sides(live)}
        self.judges = [_model("judge", judge, {}) for judge in grid.judges]
        self.upscaler = Model("upscaler", grid.upscaler or UPSCALER)
        upscales = any(takes(chain, "upscaler") for chain in grid.purifiers)
        used = (*self.editors.values(), *self.judges, *([self.upscaler] if upscales else []))
        self.known = {model: self._identity(model) for model in used}
        self.keys = Keys(grid, self.editors, self.upscaler, self.known)
        self.confirmed = {model for model in self.known if model.live is not None}
        self.shard, self.later = "", 0.0

    def _editor(self, name: str, live: Editor | str) -> Model:
        return _model("editor", name if isinstance(live, str) else live, self.grid.load)

    def _identity(self, model: Model) -> dict[str, Any]:
        """Name, fingerprint, ... of a model; of one that is only named, as it was when it was last loaded."""
        known = (
            None
            if model.live is not None or model.kind == "judge"
            else self.store.get("model", _spelled(model), SHAPES["model"])
        )
        return known or self._ask(model)

    def _ask(self, model: Model) -> dict[str, Any]:
        task = Task("identify", model, {})
        if model.live is not None or _is_here(model):
            found = perform(task)[0]
        else:
            _, outcome = next(iter(self.executor.run([(None, task)])))
            if isinstance(outcome, Failure):
                raise outcome.error or SifmError(f"{model.name}: {outcome.reason}")
            found = outcome[0]
        self.store.put("model", _spelled(model), found)
        return found

    def _confirm(self, model: Model) -> None:
        """Before a model computes anything: is it still the one that the keys were made with?"""
        if model in self.confirmed:
            return
        if identity(self._ask(model)) != identity(self.known[model]):
            raise _OtherModel
        self.confirmed.add(model)

    def fill(self) -> None:
        plan = self.keys.plan(self.judges)
        before = self.store.get("run", "plan") or {}
        if before != plan:
            with self.store.together():  # records are made anew from what is known; nothing that was computed goes
                self.store.remove_records()
                for name, rate in list(
                    self.store.documents("rate", Rate)
                ):  # how fast it went stays, what is left does not
                    self.store.put("rate", name, {**rate, "left": None})
                if before.get("steps") != plan["steps"]:
                    self.store.remove("rate", "immunize")
                self.store.put("run", "plan", plan)
        self.store.put(
            "run",
            "provenance",
            provenance(self.grid, {model.name: self.known[model] for model in self.editors.values()}),
        )
        pictures = [list(group) for _, group in groupby(self.grid.samples, key=lambda sample: sample.id)]
        shards = [pictures[i : i + SHARD] for i in range(0, len(pictures), SHARD)]
        failing: set[Key] = set()
        for i, shard in enumerate(shards):
            self.shard = f" {i + 1}/{len(shards)}" if len(shards) > 1 else ""
            self.later = sum(map(len, shards[i + 1 :])) / len(shard)
            self.found.clear()
            self.failed.clear()
            self._fill([sample for samples in shard for sample in samples])
            failing |= self.failed.keys()
        for key, _ in list(self.store.documents("failed")):  # of keys that are made no more, or are there now
            if key not in failing:
                self.store.remove("failed", key)
        if self.store.counts()["records"] > plan["counts"]["records"]:  # under keys of an earlier version of this code
            self.store.remove_records()
            self.fill()

    def _fill(self, samples: Sequence[Sample]) -> None:
        grid = self.grid
        sources = {}
        for sample in samples:
            if sample.id not in sources:
                pixels = sample.pixels()
                sources[sample.id] = self.store.put_image(pixels[None])
                self.shapes[sources[sample.id]] = tuple(pixels.shape)
        attacks = [
            Attack(sample, row, seed, editor, chain, sources[sample.id])
            for seed in grid.seeds
            for sample in samples
            for editor in grid.attacked()
            for chain in grid.purifiers
            for row in grid.rows
        ]
        self._immunize_all(attacks)
        self._purify_all(attacks)
        self._edit_all(attacks)
        self._compare_all(attacks)
        clean = {a.cell: a.edited for a in attacks if a.row.name == CLEAN}
        pairs = [a.pairs(clean[a.cell]) for a in attacks]
        self._measure_all(attacks, pairs)
        self._judge_all(attacks)
        with self.store.together():
            for a, some in zip(attacks, pairs, strict=True):
                self.store.put_record(self._record(a, some))

    # ---- the phases

    def _immunize_all(self, attacks: list[Attack]) -> None:
        grid = self.grid
        for a in attacks:
            a.protected_key = self.keys.protected(a) if a.row.method else ""

        def build(batch: list[Attack]) -> Task:
            row = batch[0].row
            settings = {
                "pixels": [to_uint8(a.sample.pixels()) for a in batch],
                "prompt": [a.sample.instruction for a in batch],
                "method": row.method,
                "seed": [a.seed for a in batch],
                "options": dict(row.options) | row.settings(grid),
            }
            return Task("immunize", self.keys.protector(batch[0]) if takes_gradient(row) else None, settings)

        cells = {a.protected_key: a for a in attacks if a.row.method}
        chunks = self._chunks(cells, lambda a: (self.keys.protector(a).name, *self._alike(a)))
        work = weights(grid)
        self._phase("immunize", chunks, build, work=lambda a: work[a.row.name, self.keys.protector(a).name])
        for a in attacks:
            a.protected = self._have("immunize", a.protected_key).get("image", "") if a.row.method else a.source

    def _purify_all(self, attacks: list[Attack]) -> None:
        for a in attacks:
            a.attacked_key = self.keys.attacked(a) if a.chain and a.protected else ""

        def build(batch: list[Attack]) -> Task:
            settings = {
                "pixels": [self._pixels(a.protected) for a in batch],
                "chain": batch[0].chain,
                "seed": [a.edit_seed for a in batch],
            }
            if takes(batch[0].chain, "upscaler"):
                settings |= {"upscaler": self.upscaler.name, "device": self.grid.load.get("device", "auto")}
            return Task("purify", self.keys.attacker(batch[0]) if takes(batch[0].chain, "editor") else None, settings)

        cells = {a.attacked_key: a for a in attacks if a.attacked_key}
        chunks = self._chunks(cells, lambda a: (self.keys.attacker(a).name, a.chain, *self._alike(a)))
        self._phase("purify", chunks, build)
        for a in attacks:
            a.attacked = self._have("purify", a.attacked_key).get("image", "") if a.chain else a.protected

    def _edit_all(self, attacks: list[Attack]) -> None:
        options = dict(self.grid.edit_options)
        for a in attacks:
            a.edit_key = self.keys.edited(a) if a.attacked else ""

        def build(batch: list[Attack]) -> Task:
            settings = {
                "pixels": [self._pixels(a.attacked) for a in batch],
                "prompt": [a.sample.prompt for a in batch],
                "seed": [a.edit_seed for a in batch],
                "options": options,
            }
            return Task("edit", self.keys.attacker(batch[0]), settings)

        cells = {a.edit_key: a for a in attacks if a.edit_key}
        # The editor that protected last is still loaded: it attacks first.
        order = {model.name: i for i, model in enumerate(reversed(self.editors.values()))}
        chunks = self._chunks(cells, lambda a: (self.keys.attacker(a).name, a.chain, *self._alike(a)))
        chunks.sort(key=lambda chunk: order[self.keys.attacker(chunk[0][1]).name])
        self._phase("edit", chunks, build)
        for a in attacks:
            a.edited = self._have("edit", a.edit_key).get("image", "") if a.edit_key else ""

    def _compare_all(self, attacks: list[Attack]) -> None:
        def build(batch: list[Attack]) -> Task:
            prompts = [(a.sample.prompt, a.sample.instruction) for a in batch]
            return Task("compare", self.keys.attacker(batch[0]), {"prompts": prompts})

        cells = {key: a for a in attacks if (key := self.keys.compared(a))}
        self._phase("compare", self._chunks(cells, lambda a: self.keys.attacker(a).name), build)

    def _measure_all(self, attacks: list[Attack], pairs: list[list[Pair]]) -> None:
        def build(batch: list[Pair]) -> Task:
            settings = {
                "reference": [self._pixels(pair.reference) for pair in batch],
                "distorted": [self._pixels(pair.distorted) for pair in batch],
                "names": batch[0].names,
            }
            return Task("measure", None, settings)

        shapes = {
            self.keys.measured(pair): (pair, self._alike(a))
            for a, some in zip(attacks, pairs, strict=True)
            for pair in some
        }
        chunks = self._chunks(shapes, lambda cell: (cell[1], cell[0].names))
        self._phase("measure", [[(key, pair) for key, (pair, _) in chunk] for chunk in chunks], build)

    def _judge_all(self, attacks: list[Attack]) -> None:
        def build(batch: list[tuple[Model, Attack]]) -> Task:
            settings = {
                "source": [self._pixels(a.source) for _, a in batch],
                "edited": [self._pixels(a.edited) for _, a in batch],
                "prompts": [a.sample.prompt for _, a in batch],
                "truths": [a.sample.truth for _, a in batch],
            }
            return Task("judge", batch[0][0], settings)

        # A judge may cost money: only what is missing is asked, never a whole batch again.
        for phase, here in (("judge", False), ("ask", True)):
            cells = {
                self.keys.verdict(judge, a): (judge, a)
                for judge in self.judges
                for a in attacks
                if a.edited and _is_here(judge) == here
            }
            missing = {
                key: cell
                for key, cell in cells.items()
                if self._have("verdict", key).get("state", UNANSWERED[0]) in UNANSWERED
            }
            chunks = self._chunks(missing, lambda cell: cell[0].name)
            self._phase(phase, chunks, build, kind="verdict", again=True, executor=Inline() if here else None)

    # ---- what is known

    def _have(self, kind: str, key: Key) -> dict[str, Any]:
        if key and (kind, key) not in self.found:
            value = self.store.get(kind, key, SHAPES[kind])
            if value is None or ("image" in value and not self.whole(value["image"])):
                value = self._adopt(kind, key)
            if value:
                self.found[kind, key] = value
        return self.found.get((kind, key), {})

    def _adopt(self, kind: str, key: Key) -> dict[str, Any]:
        """What another run has under the key, now this run's too."""
        for other in self.reuse:
            try:
                value = other.get(kind, key, SHAPES[kind])
                if value is None or value.get("state") in UNANSWERED:
                    continue
                if "image" in value:
                    self.store.put_image(other.get_image(value["image"]))
            except StoreError:  # damaged there: made anew here
                continue
            self.store.put(kind, key, value)
            self.store.put("adopted", key, {"kind": kind, "run": other.folder.name})
            return value
        return {}

    def _pixels(self, image: str) -> np.ndarray:
        return to_uint8(self.store.get_image(image))

    def _alike(self, a: Attack) -> tuple[Any, ...]:
        """Attacks that may share a batch. By rows, so that another row in the grid leaves these batches alone."""
        return a.row.name, self.shapes[a.source]

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
        build: Build,
        *,
        kind: str | None = None,
        again: bool = False,
        executor: Executor | None = None,
        work: Callable[[Any], float] = lambda cell: 1.0,
    ) -> None:
        kind = kind or name
        todo = [chunk for chunk in chunks if again or not all(self._have(kind, key) for key, _ in chunk)]
        if not self.retry:
            todo = [chunk for chunk in todo if not self._failed_before(kind, chunk, again)]
        if not todo:
            return
        sizes = [sum(work(cell) for _, cell in chunk) for chunk in todo]
        progress = _Progress(self.on_step, name + self.shard, sum(sizes))

        def tasks() -> Iterator[tuple[int, Task]]:
            for i, chunk in enumerate(todo):
                try:
                    task = build([cell for _, cell in chunk])
                except StoreError as error:  # a damaged picture
                    self._fail(
                        name,
                        self._missing(kind, chunk, again),
                        f"{said(error)}; --verify finds and makes anew what is damaged",
                    )
                    progress.end(sizes[i])
                else:
                    progress.begin(sizes[i])
                    yield i, task

        for model in dict.fromkeys(model for chunk in todo for model in self._computes(name, chunk[0][1])):
            self._confirm(model)
        progress.begin(0.0)
        executor = executor or self.executor
        start, units, left = time.perf_counter(), 0.0, sum(sizes)
        left += self.later * sum(work(cell) for chunk in chunks for _, cell in chunk)
        for i, outcome in executor.run(tasks(), progress):
            left -= sizes[i]
            if isinstance(outcome, Failure):
                self._fail(name, self._missing(kind, todo[i], again), outcome.reason)
            else:
                self._keep(name, kind, todo[i], outcome)
                units += sizes[i]  # a failure says nothing about how long the work takes
                seconds = (time.perf_counter() - start) * executor.workers
                self.store.put("rate", name, {"units": units, "seconds": seconds, "left": round(left, 3) + 0.0})
            progress.end(sizes[i])

    def _computes(self, phase: str, a: Any) -> list[Model]:
        """The models, named in the keys, whose networks a batch of the phase goes through."""
        if phase == "immunize":
            return [self.keys.protector(a)] if takes_gradient(a.row) else []
        if phase == "purify":
            tools = {"editor": self.keys.attacker(a), "upscaler": self.upscaler}
            return [model for tool, model in tools.items() if takes(a.chain, tool)]
        return [self.keys.attacker(a)] if phase in ("edit", "compare") else []

    def _keep(self, phase: str, kind: str, chunk: list[tuple[Key, Any]], outcome: list[dict[str, Any]]) -> None:
        values = []
        for value in outcome:
            if "pixels" in value:
                value = {"image": self.store.put_image(from_uint8(value["pixels"])), **value}
                del value["pixels"]
            values.append(value)
        with self.store.together():
            for (key, _), value in zip(chunk, values, strict=True):
                self.store.put(kind, key, value)
                self.store.remove("failed", key)
                self.store.remove("adopted", key)
                self.found[kind, key] = value

    def _missing(self, kind: str, chunk: list[tuple[Key, Any]], again: bool) -> list[Key]:
        """What of a batch is to be done; the rest of it is there already."""
        return [key for key, _ in chunk if again or not self._have(kind, key)]

    def _fail(self, phase: str, keys: list[Key], reason: str) -> None:
        with self.store.together():
            for key in keys:
                self.failed[key] = f"{phase}: {reason}"
                self.store.put("failed", key, {"phase": phase, "reason": reason})

    def _failed_before(self, kind: str, chunk: list[tuple[Key, Any]], again: bool) -> bool:
        """Did all that is to be done fail before? What is new makes the batch worth another try."""
        known = {key: self.store.get("failed", key, Failed) for key in self._missing(kind, chunk, again)}
        if not all(known.values()):
            return False
        self.failed |= {key: f"{value['phase']}: {value['reason']}" for key, value in known.items() if value}
        return True

    # ---- records

    def _record(self, a: Attack, pairs: list[Pair]) -> Record:
        row = a.row
        protection = self._have("immunize", a.protected_key) if row.method else {}
        edited = self._have("edit", a.edit_key)
        keys = [key for key in (a.protected_key, a.attacked_key, a.edit_key) if key]
        compared: dict[str, dict[str, Any]] = {"edit": {}, "fidelity": {}}
        for pair in pairs:
            keys.append(self.keys.measured(pair))
            compared["fidelity" if pair.names else "edit"] = self._have("measure", keys[-1])
        verdicts = []
        for judge in self.judges if a.edited else ():
            keys.append(self.keys.verdict(judge, a))
            why = {"state": "error", "reasons": self.failed.get(keys[-1], "")}
            verdicts.append(Verdict(**(self._have("verdict", keys[-1]) or {"judge": self.known[judge]["name"], **why})))
        reasons = list(dict.fromkeys(self.failed[key] for key in keys if key in self.failed))
        protect, attack = names(a.editor)
        info: RecordInfo = {
            "options": dict(row.options),
            "loop": dict(row.loop),
            "protection": row.method or "",
            "protected_on": protect,
            "purifier": a.chain,
            "edit_seed": a.edit_seed,
            "instruction": a.sample.instruction,
        }
        if row.method:
            info["linf"], info["protection_key"] = protection.get("linf"), a.protected_key
            info["fidelity"], info["peak_memory"] = compared["fidelity"], protection.get("peak_memory")
        if key := self.keys.compared(a):
            unknown = Measured(value=None, definition="", reason=self.failed.get(key, ""))
            info["prompt_distance"] = cast(Measured, self._have("compare", key)) or unknown
        if reasons:
            info["failed"] = "; ".join(reasons)
        return Record(
            key=self.keys.record(a),
            image=a.sample.id,
            category=a.sample.category,
            prompt=a.sample.prompt,
            prompt_kind=a.sample.kind,
            editor=attack,
            method=row.name,
            seed=a.seed,
            eps=row.eps(self.grid),
            source=a.source,
            protected=a.protected,
            edited=a.edited,
            metrics={name: Metric(**value) for name, value in compared["edit"].items()},
            verdicts=tuple(verdicts),
            seconds={phase: value["seconds"] for phase, value in (("immunize", protection), ("edit", edited)) if value},
            info=info,
        )


def _model(kind: str, model: Any, load: Mapping[str, Any]) -> Model:
    if isinstance(model, str):
        return Model(kind, model, load)
    return Model(kind, model.name, live=model)


def _sides(editor: Editor | str) -> tuple[str, ...]:
    return names(editor) if isinstance(editor, str) else (editor.name,)


def _is_here(judge: Model) -> bool:
    return judge.kind == "judge" and judge.name.partition(":")[0] in HERE


def _spelled(model: Model) -> Key:
    return fingerprint(kind=model.kind, name=model.name, load={key: str(value) for key, value in model.load.items()})


class _Progress:
    """Turns a batch's steps into hundredths of a picture of the phase."""

    def __init__(self, on_step: OnStep | None, phase: str, total: float) -> None:
        self.on_step, self.phase, self.total = on_step, phase, total
        self.done = self.batch = 0.0

    def begin(self, size: float) -> None:
        self.batch = size
        self._say(self.done)

    def __call__(self, step: Step) -> None:
        self._say(self.done + self.batch * step.i / max(step.n, 1), step)

    def end(self, size: float) -> None:
        self.done += size
        self._say(self.done)

    def _say(self, done: float, step: Step | None = None) -> None:
        if self.on_step is not None:
            i, n = round(100 * done), round(100 * self.total)
            self.on_step(Step(self.phase, i, n, *((step.loss, step.log, step.preview) if step else ())))
