"""Gemini's batch mode: the real client, a server that loses, doubles and forgets, and books that must agree."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from judges.servers import USAGE, FakeServer, case
from judges.test_remote import KEY, ONE_DIALECT, STATES, TESTS, priced
from sifm_core.errors import InputError
from sifm_core.judges import load_judge
from sifm_core.judges.gemini import GeminiClient
from sifm_core.types import Step

ONE_CALL = (USAGE[0] * 1.0 + USAGE[1] * 10.0) / 1e6 / 2
"""What a call in a job costs by the books of these tests."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with FakeServer("gemini") as fake:
        yield fake


@pytest.fixture
def judge_for(server, tmp_path):
    def load(**options):
        quick = {
            "first_delay": 0.01,
            "timeout": 60,
            "cache": tmp_path / "c.sqlite",
            "prices": priced(tmp_path, batch=0.5),
        }
        return load_judge(f"gemini:fake-model@{server.url}", batch=True, **(quick | options))

    return load


def states(verdicts):
    return [verdict.state for verdict in verdicts]


@pytest.mark.filterwarnings("ignore:.*other model's")
def test_a_job_answers_what_single_calls_answer_at_half_the_price(server, judge_for):
    script = {n: s for n, s in STATES.items() if not n.startswith("html") and n not in ("other-json", "drop")}
    script |= {"prompt-block": ONE_DIALECT["prompt-block"][1]}
    for failed in ("rate-once", "rate", "server-error", "bad-request", "not-found", "key-refused"):
        script[failed] = "unreachable"  # a job reports these for one question and is not asked again
    steps: list[Step] = []
    judge = judge_for()
    verdicts = judge.judge([case(name) for name in script], on_step=steps.append)
    assert dict(zip(script, states(verdicts), strict=True)) == script
    for name, verdict in zip(script, verdicts, strict=True):
        if script[name] == "ok":
            assert (verdict.semantic_mismatch, verdict.perceptual_degradation) == (name == "mismatch", name == "damage")
            assert verdict.cost == (None if name == "rerouted" else pytest.approx(2 * ONE_CALL))
        else:
            assert verdict.success is verdict.confidence is None and verdict.reasons
    assert len(server.jobs) == 1 and max(server.billed.values()) == 1
    assert (steps[0].phase, steps[-1].phase) == ("batch", "judge")
    before = len(server.requests)
    again = judge_for().judge([case("ok"), case("mismatch")])
    assert len(server.requests) == before and states(again) == ["ok", "ok"]


@pytest.mark.filterwarnings("ignore:.*other model's")
def test_no_job_is_sent_where_a_model_of_unknown_price_answers_under_a_cap(server, judge_for):
    judge_for(max_cost=10.0).judge([case("rerouted")])
    (verdict,) = judge_for(max_cost=10.0).judge([case("ok")])
    assert len(server.jobs) == 1 and verdict.state == "error" and verdict.cost == 0.0
    assert "cannot be held: other-model answers" in verdict.reasons
    assert judge_for().judge([case("ok")])[0].state == "ok", "without a cap it may be asked"


def test_a_job_carries_what_a_single_call_sends(server, judge_for, tmp_path):
    judge_for().judge([case("ok")])
    load_judge(f"gemini:fake-model@{server.url}").judge([case("ok")])
    jobs, single = (
        [r.body for r in sorted(part, key=lambda r: r.question)] for part in (server.requests[:2], server.requests[2:])
    )
    assert jobs == single and all(body["generationConfig"]["responseSchema"] for body in jobs)
    assert all(len(body["safetySettings"]) == 4 for body in jobs)


def test_what_has_not_ended_is_unclear_and_is_collected_later(server, judge_for):
    server.job_polls = 3
    cases = [case(f"ok {i}") for i in range(5)]
    first = judge_for(patience=0.0).judge(cases)
    assert set(states(first)) == {"unreachable"} and all(v.cost is None for v in first)
    assert all("batches/0 had not ended after 0 s: judge again" in v.reasons for v in first)
    second = judge_for().judge([*cases, case("mismatch")])
    assert states(second) == ["ok"] * 6
    assert len(server.jobs) == 2, "the second job carries the new case alone"
    assert len(server.requests) == 12 and max(server.billed.values()) == 1
    assert judge_for().cache.spent() == pytest.approx(12 * ONE_CALL)


def test_a_job_whose_name_never_arrived_is_found_by_its_label(server, judge_for):
    server.job_fault = "lost-name"
    assert states(judge_for().judge([case("ok")])) == ["unreachable"]
    server.job_fault = ""
    assert states(judge_for().judge([case("ok")])) == ["ok"]
    assert len(server.jobs) == 1 and max(server.billed.values()) == 1


def test_a_job_that_nobody_knows_stays_charged_and_is_sent_again_only_on_demand(server, judge_for):
    server.job_fault = "not-created"
    assert states(judge_for().judge([case("ok")])) == ["unreachable"]
    server.job_fault = ""
    (verdict,) = judge_for().judge([case("ok")])
    assert (verdict.state, verdict.cost) == ("unreachable", None) and "resend_lost" in verdict.reasons
    assert server.jobs == [] and judge_for().cache.spent() > 2 * ONE_CALL
    assert states(judge_for(resend_lost=True).judge([case("ok")])) == ["ok"]


@pytest.mark.parametrize(
    "fault, expected",
    [
        ("no-places", {"ok": 6}),
        ("doubled", {"ok": 5, "unparsable": 1}),
        ("short", {"ok": 5, "unreachable": 1}),
    ],
)
def test_answers_find_their_questions_and_none_is_taken_twice(server, judge_for, fault, expected):
    server.job_fault = fault
    verdicts = judge_for(preset="paper").judge([case(f"ok {i}") for i in range(6)])
    assert {state: states(verdicts).count(state) for state in set(states(verdicts))} == expected


@pytest.mark.parametrize("end", ["FAILED", "CANCELLED", "EXPIRED"])
def test_a_job_that_ends_badly_gives_no_verdict_and_is_not_repeated(server, judge_for, end):
    server.job_state = end
    for _ in range(2):
        (verdict,) = judge_for().judge([case("ok")])
        assert (verdict.state, verdict.success) == ("unreachable", None)
    assert len(server.jobs) == 1


@pytest.mark.parametrize("affordable", [0, 3])
def test_the_cap_holds(server, judge_for, affordable):
    probe = judge_for(preset="paper")
    most = probe._at_most(probe.questions[0].parts(case("ok 0")))
    options = {"preset": "paper", "max_cost": most * affordable * 1.01}
    verdicts = judge_for(**options).judge([case(f"ok {i}") for i in range(8)])
    assert states(verdicts).count("ok") == len(server.requests) == affordable
    assert all("cost cap" in v.reasons for v in verdicts if v.state != "ok")
    assert judge_for().cache.spent() <= options["max_cost"]


def test_a_job_stays_under_the_limit_of_a_request(server, judge_for, monkeypatch):
    monkeypatch.setattr(GeminiClient, "job_bytes", 40_000)
    assert states(judge_for().judge([case(f"ok {i}") for i in range(6)])) == ["ok"] * 6
    assert len(server.jobs) > 1 and max(server.billed.values()) == 1


@pytest.mark.filterwarnings("ignore:.*other model.s")
def test_the_key_is_nowhere(server, judge_for, tmp_path):
    verdicts = judge_for().judge([case("echo-key")])
    assert states(verdicts) == ["ok"] and KEY not in repr(verdicts)
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize("name", [KEY, f"1/{KEY}", "../../models", "1?x=y", "\x1b[2J", "x" * 5000, ""])
def test_a_job_whose_name_cannot_be_kept_is_looked_for_by_its_label(server, judge_for, tmp_path, name):
    server.job_name = name
    found = states(judge_for().judge([case("ok")]))
    assert found == (["unreachable"] if name else ["ok"]) and len(server.jobs) == 1
    assert all(KEY[:8].encode() not in file.read_bytes() for file in tmp_path.glob("c.sqlite*"))
    server.job_name = ""
    assert states(judge_for().judge([case("ok")])) == ["ok"] and len(server.jobs) == 1


def test_odd_items_of_a_job_cost_their_own_questions_alone(server, judge_for, tmp_path):
    server.job_fault = "odd-items"
    verdicts = judge_for(preset="paper").judge([case(f"ok {i}") for i in range(12)])
    assert states(verdicts).count("ok") == 5 and all(v.success is None for v in verdicts if v.state != "ok")
    assert KEY not in repr(verdicts) and all(KEY.encode() not in f.read_bytes() for f in tmp_path.glob("c.sqlite*"))


def test_a_list_of_jobs_without_an_end_is_left(server, judge_for):
    server.job_fault = "lost-name"
    judge_for().judge([case("ok")])
    server.job_fault = "endless-pages"
    (verdict,) = judge_for().judge([case("ok")])
    assert verdict.state == "unreachable" and 1 < server.pages <= 100


def test_waiting_for_a_job_can_be_stopped_at_once(server, judge_for):
    server.job_polls = 10**6
    heard: list[Step] = []

    def stop(step: Step) -> None:
        heard.append(step)
        if len(heard) == 4:
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        judge_for(first_delay=40).judge([case("ok")], on_step=stop)
    assert time.monotonic() - started < 20 and server.jobs[0]["polls"] == 1
    server.job_polls = 0
    assert states(judge_for().judge([case("ok")])) == ["ok"] and len(server.jobs) == 1


def test_only_where_it_serves(server, judge_for):
    with pytest.raises(InputError, match="openai judges take no jobs"):
        load_judge(f"openai:m@{server.url}", batch=True)
    with pytest.raises(InputError, match="patience"):
        judge_for(patience=-1.0)


KILLED = """
import sys
from sifm_core.judges import load_judge
from judges.servers import case
judge = load_judge(sys.argv[1], cache=sys.argv[2], batch=True, first_delay=0.05)
judge.judge([case(f"ok {i}") for i in range(10)])
"""


def test_kill_9_while_waiting_pays_nothing_twice(server, judge_for, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    server.job_polls = 10**6
    command = [sys.executable, "-c", KILLED, f"gemini:fake-model@{server.url}", str(tmp_path / "c.sqlite")]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while not (server.jobs and server.jobs[0]["polls"]) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.job_polls = 0
    assert states(judge_for().judge([case(f"ok {i}") for i in range(10)])) == ["ok"] * 10
    assert len(server.jobs) == 1 and len(server.requests) == 20 and max(server.billed.values()) == 1
