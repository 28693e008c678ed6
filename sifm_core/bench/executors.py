"""Where tasks run: in this process, in one process per device, or on the actors of a Ray cluster.

An executor takes tasks one by one as workers come free (never more than a few ahead, so a million tasks need no
memory) and gives back (task, outcome) as they end. A task that raises gives its reason. A worker that dies is replaced
and its task tried again; a task that killed :data:`DEATHS` workers gives that as its reason.
"""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.connection
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch

from ..errors import InputError, SifmError
from ..types import OnStep, Step
from .work import Task, perform

DEATHS = 3


@dataclass(frozen=True)
class Failure:
    """Why a task gave no result; ``error`` itself when it is the engine's own, which says what to do."""

    reason: str
    error: SifmError | None = None


Outcome: TypeAlias = list[dict[str, Any]] | Failure


class Executor(Protocol):
    """A context manager: workers live between enter and exit."""

    workers: int

    def __enter__(self) -> Executor: ...

    def __exit__(self, *raised: Any) -> None: ...

    def run(self, tasks: Iterable[tuple[Any, Task]], on_step: OnStep | None = None) -> Iterator[tuple[Any, Outcome]]:
        """(label, task) in, (label, outcome) out, in the order in which they end.

        ``on_step`` hears of steps within a task where the executor can tell; what it raises comes through.
        """


class Inline:
    """One task after the other, here."""

    workers = 1

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *raised: Any) -> None:
        pass

    def run(self, tasks: Iterable[tuple[Any, Task]], on_step: OnStep | None = None) -> Iterator[tuple[Any, Outcome]]:
        for label, task in tasks:
            stopped: list[BaseException] = []

            def step(done: Step, stopped: list[BaseException] = stopped) -> None:
                try:
                    if on_step is not None:
                        on_step(done)
                except BaseException as error:
                    stopped.append(error)
                    raise

            try:
                outcome: Outcome = perform(task, step)
            except Exception as error:
                if error in stopped:
                    raise
                outcome = failure(error)
            yield label, outcome


def said(error: Exception) -> str:
    """The reason of a failure, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def failure(error: Exception) -> Failure:
    """An error as an outcome."""
    return Failure(said(error), error if isinstance(error, SifmError) else None)


def attempt(task: Task) -> Outcome:
    """What workers do: the result, or the reason why there is none."""
    try:
        return perform(task)
    except Exception as error:
        return failure(error)


class _Dead(Exception):
    """A worker died with its task; another one has taken its place."""


class _Crew:
    """What local processes and Ray actors share: tasks go to whoever is free, the tasks of the dead go first.

    A worker has ``send(task)``, ``result()``, which raises :class:`_Dead` when it died, and ``stop()``.
    """

    workers: int
    _all: list[Any]

    def __exit__(self, *raised: Any) -> None:
        for worker in self._all:
            worker.stop()

    def run(self, tasks: Iterable[tuple[Any, Task]], on_step: OnStep | None = None) -> Iterator[tuple[Any, Outcome]]:
        coming: Iterator[tuple[Any, Task, int]] = ((label, task, 0) for label, task in tasks)
        free, busy = list(self._all), {}
        while True:
            while free and (job := next(coming, None)):
                worker = free.pop()
                worker.send(job[1])
                busy[worker] = job
            if not busy:
                return
            for worker in self._ready(list(busy)):
                label, task, deaths = busy.pop(worker)
                free.append(worker)
                try:
                    yield label, worker.result()
                except _Dead as dead:
                    if deaths + 1 < DEATHS:
                        coming = itertools.chain([(label, task, deaths + 1)], coming)
                    else:
                        yield label, Failure(f"{deaths + 1} workers died of it, the last one: {dead}")

    def _ready(self, busy: list[Any]) -> list[Any]:
        raise NotImplementedError


# ---- local processes


class Pool(_Crew):
    """One process per device (``"cuda:0"``, ...), or ``workers`` processes that share the CPU."""

    def __init__(self, workers: int | None = None) -> None:
        gpus = _gpus()
        self.workers = workers or len(gpus) or max(1, (os.cpu_count() or 2) // 2)
        self._places = [gpus[i % len(gpus)] if gpus else None for i in range(self.workers)]

    def __enter__(self) -> Executor:
        threads = max(1, (os.cpu_count() or 1) // self.workers)
        self._all = [_Process(place, threads) for place in self._places]
        return self

    def _ready(self, busy: list[_Process]) -> list[_Process]:
        ends = {worker.pipe: worker for worker in busy}
        return [ends[pipe] for pipe in multiprocessing.connection.wait(list(ends))]  # type: ignore[index]


def _gpus() -> list[str]:
    """The GPUs that this process may use, in the words of CUDA_VISIBLE_DEVICES, which may be numbers or UUIDs."""
    n = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:n] or [str(i) for i in range(n)]


class _Process:
    def __init__(self, gpu: str | None, threads: int) -> None:
        self.gpu, self.threads = gpu, threads
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, self.gpu, self.threads), daemon=True)
        self.process.start()
        other.close()  # so that its death ends the pipe

    def send(self, task: Task) -> None:
        with suppress(OSError):  # it died idle: result() finds out
            self.pipe.send(task)

    def result(self) -> Outcome:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.stop()
            code = self.process.exitcode
            self._start()
            raise _Dead(f"the process ended with {code}") from None

    def stop(self) -> None:
        self.pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(pipe: Any, gpu: str | None, threads: int) -> None:
    """A worker process: tasks in, outcomes out, until the pipe ends."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before this process first asks CUDA
    torch.set_num_threads(threads)
    while True:
        try:
            pipe.send(attempt(pipe.recv()))
        except (EOFError, OSError, KeyboardInterrupt):
            return


# ---- Ray


class Ray(_Crew):
    """Actors on a Ray cluster: ``address`` "auto" joins the running one (or starts one here), or "ray://host:port".

    "local" always starts one here. This package must be installed where the workers are. ``workers``: how many; by
    default one per GPU of the cluster, or one per two CPUs where it has none.
    """

    def __init__(self, address: str = "auto", workers: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise SifmError(f"Ray needs its package: pip install ray ({error})") from None
        self._ray, self._address, self._wanted = ray, address, workers
        self.workers = workers or 0
        self._started = False

    def __enter__(self) -> Executor:
        ray = self._ray
        if not ray.is_initialized():
            self._started = True
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            try:
                if self._address == "local":
                    raise ConnectionError
                ray.init(self._address, **quiet)
            except ConnectionError as error:
                if self._address not in ("auto", "local"):
                    raise InputError(f"ray: no cluster at {self._address} ({error}); 'auto' starts one here") from None
                ray.init(
                    "local", num_cpus=max(os.cpu_count() or 1, self._wanted or 1), include_dashboard=False, **quiet
                )
        gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
        self.workers = self._wanted or gpus or max(1, cpus // 2)
        threads = max(1, cpus // self.workers)
        share = min(1.0, gpus / self.workers)
        actor = ray.remote(num_cpus=1, num_gpus=share)(_Host)
        self._all = [_Actor(ray, lambda: actor.remote(threads)) for _ in range(self.workers)]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if self._started:
            self._ray.shutdown()

    def _ready(self, busy: list[_Actor]) -> list[_Actor]:
        pending = {worker.pending: worker for worker in busy}
        done, _ = self._ray.wait(list(pending), num_returns=1)
        return [pending[reference] for reference in done]


class _Host:
    """The actor; its process keeps the models (:func:`sifm_core.bench.work.model`)."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def attempt(self, task: Task) -> Outcome:
        return attempt(task)


class _Actor:
    def __init__(self, ray: Any, start: Callable[[], Any]) -> None:
        self._ray, self._start = ray, start
        self.handle = start()
        self.pending: Any = None

    def send(self, task: Task) -> None:
        self.pending = self.handle.attempt.remote(task)

    def result(self) -> Outcome:
        errors = self._ray.exceptions
        try:
            return self._ray.get(self.pending)
        except (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError) as error:
            self.handle = self._start()
            raise _Dead(said(error)) from None
        except errors.RayError as error:  # such as a module that the worker does not have
            return failure(error)

    def stop(self) -> None:
        self._ray.kill(self.handle)
