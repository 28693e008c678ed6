"""Many questions as a few jobs of the provider: answered within a day, at the lower price of the table.

Which calls a job carries is written down before it is sent, under a label that it carries too. So after kill -9 a job
that reached the provider is found again and its answers are collected; no call is sent, or paid, a second time.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TypeVar

from ..types import Case, OnStep, Step
from .cache import Cache
from .client import JobClient, Reply
from .rubric import Part, Question

T = TypeVar("T")
_LONGEST_WAIT = 60.0
_WRAPPING = 4096
"""Bytes that a call's JSON may add to its parts."""


@dataclass(frozen=True)
class _Call:
    key: str
    parts: Sequence[Part]
    question: Question

    @property
    def weight(self) -> int:
        return _WRAPPING + sum(len(p.encode()) if isinstance(p, str) else -(-len(p) // 3) * 4 for p in self.parts)


@dataclass(frozen=True)
class _Job:
    name: str
    calls: Sequence[tuple[int, str]]
    """(call in the ledger, key), in the order in which the job carries them."""


@dataclass(frozen=True)
class Jobs:
    """How one judge asks in jobs.

    ``at_most(parts)`` and ``cost(reply, parts)`` in US dollars; ``cap``: see :meth:`Cache.reserve`; ``patience``:
    seconds to wait for answers, from the last submission; ``attempts``, ``first_delay``: of a submission that was
    surely not paid; ``heartbeat``: seconds between two calls of ``on_step`` while waiting, at most; ``resend_lost``:
    whether questions are sent again whose answers never arrived though they may have been paid.
    """

    client: JobClient
    cache: Cache
    judge: str
    at_most: Callable[[Sequence[Part]], float]
    cost: Callable[[Reply, Sequence[Part]], float | None]
    cap: float | None
    patience: float
    attempts: int
    first_delay: float
    heartbeat: float
    resend_lost: bool
    closed: Reply | None = None
    """Why nothing new may be sent."""

    def answer(self, asked: Mapping[str, tuple[Case, Question]], on_step: OnStep | None) -> dict[str, Reply]:
        """Put the answers to the questions under these keys into the cache; returns why the others have none.

        Jobs that an earlier run left behind are collected as well. ``on_step`` hears how many calls have ended.
        """
        missing: dict[str, Reply] = {}
        jobs = list(self._left_behind(missing))
        under_way = {key for job in jobs for _, key in job.calls} | missing.keys()
        fresh = [key for key in asked.keys() - under_way if self.resend_lost or not self.cache.lost(key)]
        new = {key: asked[key] for key in fresh}
        if self.closed:
            missing |= dict.fromkeys(new, self.closed)
        else:
            jobs += self._send(new, missing, on_step)
        self._collect(jobs, asked, missing, on_step)
        return missing

    def _left_behind(self, missing: dict[str, Reply]) -> Iterator[_Job]:
        for label, name, calls in self.cache.open_jobs(self.judge):
            found = name or self._try(partial(self.client.find_job, label))
            if isinstance(found, str):
                self.cache.name_job(label, found)
                yield _Job(found, calls)
                continue
            for call, key in calls:
                if found is None:  # killed before it was sent, or while: then it may exist yet, so it stays charged
                    self.cache.settle(call, "lost")
                else:
                    missing[key] = found

    def _send(
        self, asked: Mapping[str, tuple[Case, Question]], missing: dict[str, Reply], on_step: OnStep | None
    ) -> Iterator[_Job]:
        load: list[_Call] = []
        for key in sorted(asked):
            case, question = asked[key]
            call = _Call(key, question.parts(case), question)
            if load and sum(c.weight for c in load) + call.weight > self.client.job_bytes:
                yield from self._submit(load, missing, on_step)
                load = []
            load.append(call)
        if load:
            yield from self._submit(load, missing, on_step)

    def _submit(self, load: Sequence[_Call], missing: dict[str, Reply], on_step: OnStep | None) -> Iterator[_Job]:
        label = f"sifm-{uuid.uuid4().hex}"
        wanted = [(call.key, self.at_most(call.parts)) for call in load]
        reserved = self.cache.reserve_job(label, wanted, judge=self.judge, cap=self.cap)
        sent = [(call, id_) for call, id_ in zip(load, reserved, strict=True) if id_ is not None]
        for (key, at_most), id_ in zip(wanted, reserved, strict=True):
            if id_ is None:
                missing[key] = over_cap(self.cap, self.cache.spent(), at_most)
        if not sent:
            return
        submit = partial(self.client.submit, [(call.parts, call.question) for call, _ in sent], label)
        for attempt in range(self.attempts):
            name = self._try(submit)
            if isinstance(name, str) or name.billed == "maybe" or name.wait is None or attempt == self.attempts - 1:
                break
            delay = min(_LONGEST_WAIT, max(name.wait, self.first_delay * 2**attempt))
            self._pause(delay, Step("batch", 0, len(sent)), on_step)
        if isinstance(name, str):
            self.cache.name_job(label, name)
            yield _Job(name, [(id_, call.key) for call, id_ in sent])
            return
        for call, id_ in sent:  # a job that may have arrived is looked for by its label in the next run
            missing[call.key] = name
            if name.billed == "no":
                self.cache.settle(id_, "unpaid")

    def _collect(
        self,
        jobs: Sequence[_Job],
        asked: Mapping[str, tuple[Case, Question]],
        missing: dict[str, Reply],
        on_step: OnStep | None,
    ) -> None:
        total, waiting = sum(len(job.calls) for job in jobs), list(jobs)
        deadline, delay = time.monotonic() + self.patience, self.first_delay
        while waiting:
            for job in list(waiting):
                replies = self._try(partial(self.client.collect, job.name, len(job.calls)))
                if not isinstance(replies, Reply):
                    self._book(job, replies, asked, missing)
                elif replies.wait is None:
                    missing |= dict.fromkeys((key for _, key in job.calls), replies)
                else:
                    continue
                waiting.remove(job)
            step = Step("batch", total - sum(len(job.calls) for job in waiting), total)
            if on_step and total:
                on_step(step)
            left = deadline - time.monotonic()
            if waiting and left <= 0:
                break
            if waiting:
                self._pause(min(delay, left), step, on_step)
                delay = min(_LONGEST_WAIT, delay * 2)
        for job in waiting:
            why = f"{job.name} had not ended after {self.patience:g} s: judge again to collect its answers"
            missing |= dict.fromkeys((key for _, key in job.calls), Reply("unreachable", reason=why, billed="maybe"))

    def _book(
        self,
        job: _Job,
        replies: Sequence[Reply],
        asked: Mapping[str, tuple[Case, Question]],
        missing: dict[str, Reply],
    ) -> None:
        for (call, key), reply in zip(job.calls, map(self.client.clean, replies), strict=True):
            if reply.billed == "yes":
                case, question = asked.get(key, (None, None))
                cost = self.cost(reply, question.parts(case)) if case and question else None
                self.cache.settle(call, "answered", reply=asdict(reply), cost=cost)
            else:
                self.cache.settle(call, "lost" if reply.billed == "maybe" else "unpaid")
                missing[key] = replace(reply, reason=f"{job.name}: {reply.reason}")

    def _pause(self, seconds: float, step: Step, on_step: OnStep | None) -> None:
        """Wait, and let ``on_step`` end the waiting."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if on_step:
                on_step(step)
            time.sleep(min(left, self.heartbeat))

    def _try(self, attempt: Callable[[], T | Reply]) -> T | Reply:
        try:
            result = attempt()
        except Exception as error:  # what no backend foresaw still leaves a verdict, an unclear one
            result = Reply("error", reason=f"{type(error).__name__}: {error}", billed="maybe")
        return self.client.clean(result) if isinstance(result, Reply) else result


def over_cap(cap: float | None, spent: float, at_most: float) -> Reply:
    """Why a call that could pass the cap was not sent."""
    why = f"${spent:.4f} spent, and this call could cost ${at_most:.4f}"
    return Reply("error", reason=f"the cost cap of ${cap:g} is reached: {why}")
