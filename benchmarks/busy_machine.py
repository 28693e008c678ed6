"""What a busy machine does to SIFM's iterations on the CPU, by how its threads wait for each other.

    python -m benchmarks.busy_machine [--jobs 6] [--iterations 5] [--rounds 2] [--json]

Seconds of one iteration of eight pictures on the embedded editor, in processes of their own that take turns: alone, and
beside so many jobs that do the same work without end on one thread each. "spinning": the OpenMP library's own rule, by
which a thread that waits for the others keeps its core; "yielding": what `sifm` sets, by which it soon gives it up.
A job's fair share of a machine with fewer cores than jobs is that part of its speed; "share" is what it got of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sifm_core.cli import YIELDING

WAITING: Mapping[str, Mapping[str, str]] = {"spinning": {}, "yielding": YIELDING}


def timed(iterations: int) -> float:
    """Seconds of one iteration, after one that does not count; for a process of its own."""
    import torch

    from sifm_core.editors import load_editor
    from sifm_core.methods import sifm

    editor = load_editor("miniature-ip2p", device="cpu")
    x = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    grad_fn = sifm.build(editor, x, editor.prepare(["make it night"] * 8))
    grad_fn(x, 0)
    start = time.perf_counter()
    for i in range(iterations):
        grad_fn(x, i)
    return (time.perf_counter() - start) / iterations


def _run(call: str, **environment: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    code = f"from benchmarks.busy_machine import timed; {call}"
    return subprocess.Popen([sys.executable, "-c", code], env=clean | environment, stdout=subprocess.PIPE, text=True)


@contextmanager
def busy(jobs: int) -> Iterator[None]:
    """So many other processes at the same work, until the block ends."""
    others = [_run("timed(10**9)", OMP_NUM_THREADS="1") for _ in range(jobs)]
    try:
        if jobs:
            time.sleep(20)  # until they are at work
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(jobs: int, iterations: int, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each way of waiting, alone and beside the jobs: the fewest seconds of the rounds."""
    alone: dict[str, float] = {}
    for others in (0, jobs):
        taken: dict[str, list[float]] = {name: [] for name in WAITING}
        with busy(others):
            for _ in range(rounds):
                for name, environment in WAITING.items():
                    printed, _ = _run(f"print(timed({iterations}))", **environment).communicate()
                    taken[name].append(float(printed))
        for name, seconds in taken.items():
            row = {"waiting": name, "jobs_beside": others, "seconds": min(seconds)}
            if others:
                cores = os.cpu_count() or 1
                row["share"] = alone[name] / min(seconds) / min(1.0, cores / (others + cores))
            alone.setdefault(name, min(seconds))
            yield row


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or with --json an object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    chosen = parser.parse_args(arguments)
    for row in measure(chosen.jobs, chosen.iterations, chosen.rounds):
        if chosen.json:
            print(json.dumps(row), flush=True)
            continue
        share = f", {row['share']:.0%} of its fair share" if "share" in row else ""
        print(f"{row['waiting']:<10} beside {row['jobs_beside']} jobs: {row['seconds']:.3f} s{share}", flush=True)


if __name__ == "__main__":
    main()
