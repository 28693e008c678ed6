"""What a million jobs on many workers come to: the rule of sifm_core.bench.executors, simulated job by job.

    python -m benchmarks.scheduler --jobs 1000000 --workers 64

A free worker takes the next task; a worker that dies loses its task, which goes first again, and its models. Prints the
makespan, the efficiency, model loads and what the driver has to write, with tasks grouped by editor and in any order.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections.abc import Iterator


def simulate(
    tasks: Iterator[tuple[str, float]], workers: int, load: float, kept: int, lifetime: float, restart: float, seed: int
) -> dict[str, float]:
    """Run tasks (model, seconds) to the end; ``lifetime`` the mean seconds until a worker dies (0: never)."""
    rng = random.Random(seed)
    ends = [(0.0, worker) for worker in range(workers)]
    dies = [rng.expovariate(1 / lifetime) if lifetime else float("inf") for _ in range(workers)]
    held: list[list[str]] = [[] for _ in range(workers)]
    again: list[tuple[str, float]] = []
    loads = deaths = jobs = 0
    useful = makespan = 0.0
    while (task := again.pop() if again else next(tasks, None)) is not None:
        now, worker = heapq.heappop(ends)
        model, seconds = task
        took = seconds
        if model not in held[worker]:
            held[worker] = [*held[worker], model][-kept:]
            took += load
            loads += 1
        if now + took > dies[worker]:
            again.append(task)
            deaths += 1
            held[worker] = []
            back = dies[worker] + restart
            dies[worker] = back + rng.expovariate(1 / lifetime)
            heapq.heappush(ends, (max(now, back), worker))
            continue
        jobs += 1
        useful += seconds
        makespan = max(makespan, now + took)
        heapq.heappush(ends, (now + took, worker))
    return {
        "jobs": jobs,
        "hours": round(makespan / 3600, 2),
        "efficiency": round(useful / (makespan * workers), 4),
        "model_loads": loads,
        "deaths": deaths,
        "jobs_per_second": round(jobs / makespan, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--models", type=int, default=3, help="editors that the jobs need")
    parser.add_argument("--seconds", type=float, default=5.0, help="a job's mean time (log-normal, sigma 0.3)")
    parser.add_argument("--load", type=float, default=60.0, help="seconds to load a model")
    parser.add_argument("--kept", type=int, default=2, help="models that a worker keeps")
    parser.add_argument("--hours-to-death", type=float, default=24.0, help="a worker's mean life; 0: for ever")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    def tasks(grouped: bool) -> Iterator[tuple[str, float]]:
        rng = random.Random(options.seed)
        for i in range(options.jobs):
            model = i * options.models // options.jobs if grouped else rng.randrange(options.models)
            yield f"editor-{model}", options.seconds * rng.lognormvariate(-0.045, 0.3)

    rest = (options.workers, options.load, options.kept, options.hours_to_death * 3600, 60.0, options.seed)
    print(json.dumps({name: simulate(tasks(name == "grouped"), *rest) for name in ("grouped", "any_order")}, indent=2))


if __name__ == "__main__":
    main()
