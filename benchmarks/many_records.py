"""How long `sifm bench status` and `report` take, and how much memory, on many synthetic records.

    python -m benchmarks.many_records --records 100000

Writes a run of so many records (1,000 pictures, twelve rows, original and unseen prompts, three judges, five metrics;
no pictures in it), then times both commands in fresh processes; the peak is of resident memory, by the command's own
account (what a parent process has held would else be counted).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from sifm_core.bench import Row, config
from sifm_core.metrics import DEFAULT, METRICS
from sifm_core.store import Store
from sifm_core.types import Metric, Record, Verdict

JUDGES = ("gemini:gemini-3.8-flash", "gemini:gemini-3.5-flash-lite", "openai:some-vision-model")


def fill(store: Store, n: int, seed: int = 0) -> None:
    """Put n records that look like those of a real run, and the run's documents."""
    rng = random.Random(seed)
    plan = config.load("table3", "paper")
    rows = plan.all_rows()
    pictures = 1000
    chances = {row.name: rng.uniform(0.1, 0.9) for row in rows}
    with store.together():
        store.put("run", "config", plan.as_dict())
        store.put("run", "plan", {"counts": {"records": n, "edit": n, "judge": n * len(JUDGES)}})
        for i in range(n):
            row = rows[i % len(rows)]
            attack = i // len(rows)
            store.put_record(_record(i, row, attack % pictures, attack // pictures, chances[row.name], rng))


def _record(i: int, row: Row, picture: int, prompt: int, chance: float, rng: random.Random) -> Record:
    name, method = row.name, row.method or ""
    digest = f"{rng.getrandbits(256):064x}"
    failed = rng.random() < chance
    verdicts = tuple(
        Verdict(
            judge,
            "ok" if rng.random() < 0.99 else "refused",
            failed if rng.random() < 0.9 else not failed,
            failed and rng.random() < 0.5,
            confidence=0.8,
            reasons="The asked change is not there, and the picture shows blotches that nobody asked for. " * 2,
            raw='{"semantic_mismatch": true, "perceptual_degradation": false, "confidence": 0.8}',
            model_served=judge,
            cost=0.001,
            latency=2.5,
        )
        for judge in JUDGES
    )
    verdicts = tuple(v if v.state == "ok" else Verdict(v.judge, v.state, reasons="safety filter") for v in verdicts)
    metrics = {key: Metric(rng.random() * 20, METRICS[key].definition) for key in DEFAULT} if name != "clean" else {}
    info = {
        "options": {"timesteps": 10},
        "protection": method,
        "protected_on": "instruct-pix2pix",
        "purifier": "",
        "edit_seed": 0,
        "instruction": f"make it number {picture}",
        "linf": 0.03,
        "peak_memory": asdict(Metric(4e9, "bytes allocated on cuda:0 at the peak")),
        "protection_key": digest,
        "fidelity": {key: asdict(Metric(30.0, key)) for key in ("psnr", "ssim", "lpips")} if method else {},
    }
    return Record(
        key=f"{i:064x}",
        image=f"picture-{picture}",
        category="portrait",
        prompt=f"turn {picture} into {prompt}" if prompt else f"make it number {picture}",
        prompt_kind="unseen" if prompt else "original",
        editor="instruct-pix2pix",
        method=name,
        seed=0,
        eps=0.03 if method else 0.0,
        source=digest,
        protected=digest,
        edited=digest,
        metrics=metrics,
        verdicts=verdicts,
        seconds={"immunize": 30.0, "edit": 5.0},
        info=info,
    )


COMMAND = """
import re, resource, sys
from sifm_core.cli import main
code = main(sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
used = resource.getrusage(resource.RUSAGE_SELF)
print(peak, used.ru_utime + used.ru_stime, file=sys.stderr)
sys.exit(code)
"""


def timed(*words: str) -> dict[str, float]:
    """Seconds and peak MB of a command in a fresh process (Linux)."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", COMMAND, *words], check=True, capture_output=True, text=True)
    peak, cpu = done.stderr.split()[-2:]
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(float(cpu), 2),
        "peak_mb": round(int(peak) / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path("runs/many-records"))
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    start = time.perf_counter()
    with Store(options.out) as store:
        fill(store, options.records)
    written = round(time.perf_counter() - start, 1)
    found = {name: timed("bench", name, str(options.out)) for name in ("status", "report")}
    megabytes = round(sum(p.stat().st_size for p in options.out.glob("run.sqlite*")) / 1e6)
    print(
        json.dumps(
            {"records": options.records, "written_seconds": written, "database_mb": megabytes, **found}, indent=2
        )
    )


if __name__ == "__main__":
    main()
