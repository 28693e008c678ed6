"""What a busy machine costs: each way of waiting is measured alone and beside jobs, which end with the block."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks import busy_machine


def test_a_row_for_each_way_of_waiting_alone_and_beside_jobs(monkeypatch, capsys) -> None:
    started: list[dict[str, str]] = []

    class Process:
        def __init__(self, seconds: float) -> None:
            self.seconds, self.killed = seconds, 0

        def communicate(self) -> tuple[str, str]:
            return f"{self.seconds}\n", ""

        def kill(self) -> None:
            self.killed += 1

        wait = kill

    jobs: list[Process] = []

    def run(call: str, **environment: str) -> Process:
        started.append(environment)
        made = Process(8.0 if jobs and not environment else 2.0)
        if "10**9" in call:
            jobs.append(made)
        return made

    monkeypatch.setattr(busy_machine, "_run", run)
    monkeypatch.setattr(busy_machine.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    busy_machine.main(["--jobs", "6", "--rounds", "1", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["waiting"], row["jobs_beside"], row["seconds"]) for row in rows] == [
        ("spinning", 0, 2.0),
        ("yielding", 0, 2.0),
        ("spinning", 6, 8.0),
        ("yielding", 6, 2.0),
    ]
    assert [row.get("share") for row in rows] == [None, None, pytest.approx(1.0), pytest.approx(4.0)]
    assert len(jobs) == 6 and all(job.killed == 2 for job in jobs)


@pytest.mark.parametrize(
    ("own", "expected"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_the_command_makes_threads_yield_before_torch_is_loaded_unless_it_is_told_how(own: dict, expected: str) -> None:
    code = "import os, sys; from sifm_core.cli import main; main(['--help'])"
    code += "; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'), file=sys.stderr)"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", code], env=clean | own, capture_output=True, text=True, check=True)
    assert done.stderr.split()[-1] == expected
