"""What commands print: JSON or lines on stdout, progress on stderr."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import bounded
from ..format import visible

if TYPE_CHECKING:
    from ..store import Store
    from ..types import OnStep, Step

QUIET_SECONDS, WINDOW_SECONDS = 10, 60
"""Where stderr is no terminal: between lines of progress; what the remaining time is guessed from."""


@contextmanager
def progress() -> Iterator[Callable[[str], OnStep]]:
    """Bars with the remaining time on a terminal, else a line every ten seconds; yields label -> on_step."""
    if not sys.stderr.isatty():
        yield _lines
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("left,"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def bars(label: str) -> OnStep:
            def on_step(step: Step) -> None:
                name = f"{step.phase} {label}".strip()
                if name not in tasks:
                    tasks[name] = progress.add_task(name, total=step.n, loss="")
                loss = "" if step.loss is None else f"loss {step.loss:.4g}"
                progress.update(tasks[name], completed=step.i, loss=loss)

            return on_step

        yield bars


@contextmanager
def forecast(counts: Mapping[str, int], store: Store) -> Iterator[OnStep]:
    """Progress over all phases of a run: what is left of this phase, and of all as far as their rates are known.

    A line every ten seconds; on a terminal it stays in one place.
    """
    from ..bench.documents import Rate
    from ..bench.estimate import remaining

    start: dict[str, tuple[float, int]] = {}
    last = time.monotonic() - QUIET_SECONDS + 1
    inplace = sys.stderr.isatty()

    def on_step(step: Step) -> None:
        nonlocal last
        now = time.monotonic()
        phase = step.phase.partition(" ")[0]
        since, first = start.setdefault(step.phase, (now, step.i))
        if now - last < (0.5 if inplace else QUIET_SECONDS) or not step.n:
            return
        last = now
        rates: dict[str, Any] = dict(store.documents("rate", Rate))
        left = "?"
        if step.i > first:
            rates[phase] = {"seconds": now - since, "units": (step.i - first) / 100}
            left = f"{(now - since) / (step.i - first) * (step.n - step.i):.0f} s"
        later = list(counts)[list(counts).index(phase) + 1 :] if phase in counts else []
        todo = {phase: (step.n - step.i) / 100, **{p: counts[p] for p in later if p != "records"}}
        all_left, untimed = remaining(todo, rates)
        after = " and ".join(later for later in untimed if later != phase)
        whole = f", then {after}" if after else "" if untimed else f", all in {all_left:.0f} s at most"
        text = f"{step.phase} {step.i / 100:.0f} of {step.n / 100:.0f}, {left} left{whole}"
        print(f"\r\033[K{text}" if inplace else text, end="" if inplace else "\n", file=sys.stderr, flush=True)

    yield on_step
    if inplace:
        print("\r\033[K", end="", file=sys.stderr)


def _lines(label: str) -> OnStep:
    recent: deque[tuple[str, float, int]] = deque()
    last = time.monotonic()

    def on_step(step: Step) -> None:
        nonlocal last
        now = time.monotonic()
        recent.append((step.phase, now, step.i))
        while recent[0][0] != step.phase or recent[0][1] < now - WINDOW_SECONDS:
            recent.popleft()
        _, start, first = recent[0]
        if now - last < QUIET_SECONDS or step.i <= first:
            return
        last, left = now, (now - start) / (step.i - first) * (step.n - step.i)
        print(f"{step.phase} {label} {step.i / step.n:.0%}, {left:.0f} s left".replace("  ", " "), file=sys.stderr)

    return on_step


def say(message: str) -> None:
    """One line on stderr."""
    print("sifm: " + one_line(message), file=sys.stderr)


def one_line(text: str) -> str:
    """``text`` of bounded length on one line."""
    return bounded(visible(" ".join(text.split())))


def tell(text: str) -> None:
    """Lines on stdout."""
    print(visible(text))


def show_table(table: Any) -> None:
    """A table of rich on stdout."""
    from rich.console import Console

    Console().print(table)


def dump(document: Any) -> None:
    """One JSON document on stdout; where that is not UTF-8, other letters are escaped as JSON does."""
    text = as_text(document)
    if "utf" not in (sys.stdout.encoding or "").lower():
        text = re.sub(r"[^\x00-\x7f]", lambda letter: json.dumps(letter[0])[1:-1], text)
    print(text)


def as_text(document: Any) -> str:
    return json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """What JSON can hold: infinity and NaN become null, tuples lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | bool) else str(value)
