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
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from ..errors import StoreError
from ..store import Store
from ..types import OnStep, Record, Step
from .artefacts import Artefacts
from .documents import Rate
from .executors import Executor, Failure, Inline, said
from .grid import Grid, Sample
from .keys import Attack, Key, Keys
from .models import Models, OtherModel
from .origin import provenance
from .phases import Phase, Phases
from .records import record
from .work import Task

SHARD = 512
"""Pictures that go through all phases together; a multiple of usual batches."""


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
                    _Run(grid, store, on_step, workers, retry, Artefacts(store, verify, reuse)).fill()
                    break
                except OtherModel:  # known by name and changed since: once more, with what they are now
                    continue
    finally:
        before = (store.get("run", "seconds", dict[str, float]) or {}).get("seconds", 0.0)
        store.put("run", "seconds", {"seconds": before + time.time() - start})


class _Run:
    def __init__(
        self,
        grid: Grid,
        store: Store,
        on_step: OnStep | None,
        executor: Executor,
        retry: bool,
        artefacts: Artefacts,
    ) -> None:
        self.grid, self.store, self.on_step, self.executor, self.retry = grid, store, on_step, executor, retry
        self.artefacts = artefacts
        self.models = Models(grid, store, executor)
        self.keys = Keys(grid, self.models.editors, self.models.upscaler, self.models.known)
        self.phases = Phases(grid, self.models, self.keys, artefacts)

    def fill(self) -> None:
        plan = self.keys.plan(self.models.judges)
        self._begin(plan)
        pictures = [list(group) for _, group in groupby(self.grid.samples, key=lambda sample: sample.id)]
        shards = [pictures[i : i + SHARD] for i in range(0, len(pictures), SHARD)]
        failing: set[Key] = set()
        for i, shard in enumerate(shards):
            where = f" {i + 1}/{len(shards)}" if len(shards) > 1 else ""
            later = sum(map(len, shards[i + 1 :])) / len(shard)
            self.artefacts.clear()
            attacks = self._attacks([sample for samples in shard for sample in samples])
            for phase in self.phases.of(attacks):
                self._do(phase, where, later)
            with self.store.together():
                for a, pairs in self.phases.pairs(attacks).items():
                    self.store.put_record(record(self.grid, self.models, self.keys, self.artefacts, a, pairs))
            failing |= self.artefacts.failed.keys()
        for key, _ in list(self.store.documents("failed")):  # of keys that are made no more, or are there now
            if key not in failing:
                self.store.remove("failed", key)
        if self.store.counts()["records"] > plan["counts"]["records"]:  # under keys of an earlier version of this code
            self.store.remove_records()
            self.fill()

    def _begin(self, plan: dict[str, Any]) -> None:
        """Write down plan and provenance; another plan makes all records anew from what is known."""
        before = self.store.get("run", "plan") or {}
        if before != plan:
            with self.store.together():
                self.store.remove_records()
                for name, rate in list(self.store.documents("rate", Rate)):  # how fast it went stays
                    self.store.put("rate", name, {**rate, "left": None})
                if before.get("steps") != plan["steps"]:
                    self.store.remove("rate", "immunize")
                self.store.put("run", "plan", plan)
        known = {model.name: self.models.known[model] for model in self.models.editors.values()}
        self.store.put("run", "provenance", provenance(self.grid, known))

    def _attacks(self, samples: Sequence[Sample]) -> list[Attack]:
        """The grid's attacks on the samples, whose pictures are in the store from now on."""
        grid, sources = self.grid, {}
        for sample in samples:
            if sample.id not in sources:
                pixels = sample.pixels()
                sources[sample.id] = self.store.put_image(pixels[None]), tuple(pixels.shape)
        return [
            Attack(sample, row, seed, editor, chain, *sources[sample.id])
            for seed in grid.seeds
            for sample in samples
            for editor in grid.attacked()
            for chain in grid.purifiers
            for row in grid.rows
        ]

    def _do(self, phase: Phase, where: str, later: float) -> None:
        """Compute what a phase lacks; ``where``: the shard, for progress; ``later``: pictures to come for each here."""
        batches = phase.batches(self.grid.batch)
        todo = [batch for batch in batches if self._missing(phase, batch)]
        if not self.retry:
            todo = [batch for batch in todo if not self.artefacts.failed_before(self._missing(phase, batch))]
        if not todo:
            return
        sizes = [sum(map(phase.work, batch.values())) for batch in todo]
        progress = _Progress(self.on_step, phase.name + where, sum(sizes))

        def tasks() -> Iterator[tuple[int, Task]]:
            for i, batch in enumerate(todo):
                try:
                    task = phase.task(list(batch.values()))
                except StoreError as error:  # a damaged picture
                    reason = f"{said(error)}; --verify finds and makes anew what is damaged"
                    self.artefacts.fail(phase.name, self._missing(phase, batch), reason)
                    progress.end(sizes[i])
                else:
                    progress.begin(sizes[i])
                    yield i, task

        for model in dict.fromkeys(model for batch in todo for model in phase.models(next(iter(batch.values())))):
            self.models.confirm(model)
        progress.begin(0.0)
        executor: Executor = Inline() if phase.here else self.executor
        start, units, left = time.perf_counter(), 0.0, sum(sizes)
        left += later * sum(phase.work(cell) for batch in batches for cell in batch.values())
        for i, outcome in executor.run(tasks(), progress):
            left -= sizes[i]
            if isinstance(outcome, Failure):
                self.artefacts.fail(phase.name, self._missing(phase, todo[i]), outcome.reason)
            else:
                self.artefacts.put(phase.kind, list(todo[i]), outcome)
                units += sizes[i]  # a failure says nothing about how long the work takes
                seconds = (time.perf_counter() - start) * executor.workers
                self.store.put("rate", phase.name, {"units": units, "seconds": seconds, "left": round(left, 3) + 0.0})
            progress.end(sizes[i])

    def _missing(self, phase: Phase, batch: dict[Key, Any]) -> list[Key]:
        """What of a batch is to be done; the rest of it is there already."""
        return [key for key in batch if not phase.whole or not self.artefacts.get(phase.kind, key)]


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
