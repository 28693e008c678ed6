"""How much faster two workers are than one, in local processes and on Ray, and whether the records are the same.

    python -m benchmarks.executors --workers 2

Runs a small grid on the embedded miniature three times, one thread per worker; on a machine that does nothing else, or
the speed-up is that of what the others leave (the load is printed). Starting the workers counts, as it does in a run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from sifm_core import bench
from sifm_core.bench import config
from sifm_core.store import Store
from sifm_core.types import Record


def timeless(record: Record) -> Record:
    """The record without what differs from run to run."""
    info = {name: value for name, value in record.info.items() if name != "peak_memory"}
    verdicts = tuple(replace(v, latency=None) for v in record.verdicts)
    return replace(record, seconds={}, verdicts=verdicts, info=info)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/executors"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()
    grid = config.load("timesteps", images=options.images, steps=options.steps, batch=2).grid()
    ways: dict[str, bench.Executor] = {"inline": bench.Inline(), "pool": bench.Pool(options.workers)}
    if importlib.util.find_spec("ray"):
        ways["ray"] = bench.Ray("local", options.workers)
    found: dict[str, dict[str, float | bool]] = {}
    first: list[Record] = []
    for name, executor in ways.items():
        shutil.rmtree(options.out / name, ignore_errors=True)
        start = time.perf_counter()
        records = [timeless(r) for r in bench.run(grid, Store(options.out / name), executor=executor)]
        seconds = time.perf_counter() - start
        first = first or records
        speedup = found["inline"]["seconds"] / seconds if found else 1.0
        found[name] = {
            "seconds": round(seconds, 1),
            "speed_up": round(speedup, 2),
            "efficiency": round(speedup / executor.workers, 2),
            "same_records": records == first,
        }
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    machine = {"cpus": os.cpu_count(), "load": [round(x, 1) for x in load], "workers": options.workers}
    print(json.dumps({**machine, "records": len(first), **found}, indent=2))


if __name__ == "__main__":
    main()
