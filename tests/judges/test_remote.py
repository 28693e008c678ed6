"""The real clients of google-genai and openai against servers that misbehave in every way we know of."""

from __future__ import annotations

import json
import logging
import random
import signal
import socket
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from judges.hostile import ERRORS
from judges.servers import BEHAVIOURS, PAPER, USAGE, FakeServer, Response, case
from sifm_core.errors import InputError, JudgeError
from sifm_core.judges import load_judge
from sifm_core.judges.cache import Cache
from sifm_core.judges.rubric import PRESETS, parse
from sifm_core.types import Step, Verdict

TESTS = Path(__file__).parents[1]
KEY = "sk-abcdef-0123456789-very-secret"
DIALECTS = ("gemini", "openai")
QUICK = {"first_delay": 0.01, "attempts": 3, "timeout": 60}


@pytest.fixture(params=DIALECTS)
def server(request, monkeypatch):
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, KEY)
    with FakeServer(request.param) as fake:
        yield fake


def judge_for(fake: FakeServer, **options):
    return load_judge(f"{fake.dialect}:fake-model@{fake.url}", **(QUICK | options))


def priced(tmp_path: Path, **prices: float) -> Path:
    path = tmp_path / "prices.toml"
    fields = {"input": 1.0, "output": 10.0, "image_tokens": 500} | prices
    lines = [f"{k} = {v}" for k, v in fields.items()]
    path.write_text("".join("\n".join([f'[{d}."fake-model"]', *lines, ""]) for d in DIALECTS))
    return path


STATES = {
    "ok": "ok",
    "mismatch": "ok",
    "damage": "ok",
    "fenced": "ok",
    "rate-once": "ok",
    "rerouted": "ok",
    "rate": "unreachable",
    "server-error": "unreachable",
    "html": "unreachable",
    "html-as-json": "unreachable",
    "other-json": "unreachable",
    "drop": "unreachable",
    "bad-request": "error",
    "not-found": "error",
    "odd-stop": "error",
    "key-refused": "missing_key",
    "prose": "unparsable",
    "wrong-schema": "unparsable",
    "json-list": "unparsable",
    "chatty": "unparsable",
    "twice": "unparsable",
    "doubled-field": "unparsable",
    "contradiction": "unparsable",
    "empty": "unparsable",
    "two-choices": "unparsable",
    "cannot-judge": "refused",
    "truncated": "truncated",
    "safety": "blocked",
}
ONE_DIALECT = {"prompt-block": ("gemini", "blocked"), "refusal": ("openai", "refused")}


@pytest.mark.filterwarnings("ignore:.*other model's")
def test_every_misbehaviour_has_its_state_and_no_made_up_verdict(server):
    script = STATES | {name: state for name, (dialect, state) in ONE_DIALECT.items() if dialect == server.dialect}
    verdicts = judge_for(server, concurrency=8).judge([case(name) for name in script])
    assert {name: v.state for name, v in zip(script, verdicts, strict=True)} == script
    for name, verdict in zip(script, verdicts, strict=True):
        if script[name] == "ok":
            assert verdict.semantic_mismatch is (name == "mismatch")
            assert verdict.perceptual_degradation is (name == "damage")
            assert verdict.confidence == 0.8
            assert verdict.model_served == ("other-model" if name == "rerouted" else "fake-model")
        else:
            assert verdict.semantic_mismatch is verdict.perceptual_degradation is verdict.confidence is None
            assert verdict.success is None
            assert verdict.reasons


def test_rate_limits_are_retried_and_given_up(server):
    judge_for(server, attempts=4).judge([case("rate")])
    assert len(server.requests) == 4
    judge_for(server).judge([case("rate-once")])
    assert [r.question for r in server.requests[4:]] == ["semantic"] * 2 + ["quality"] * 2


def test_the_server_says_how_long_to_wait(server):
    started = time.monotonic()
    (verdict,) = judge_for(server).judge([case("rate-header" if server.dialect == "openai" else "rate-info")])
    assert verdict.state == "ok" and time.monotonic() - started > 1.0, "half a second for each of two questions"


def test_calls_that_may_have_been_paid_are_not_repeated(server):
    judge = judge_for(server, timeout=0.5)
    for _ in range(2):
        verdicts = judge.judge([case("slow"), case("drop")])
        assert len(server.requests) == 2
        assert all((v.state, v.cost, v.success) == ("unreachable", None, None) for v in verdicts)
    assert all("may have been paid" in v.reasons for v in verdicts)
    judge_for(server, cache=judge.cache, resend_lost=True).judge([case("drop")])
    assert len(server.requests) == 3


def test_refused_connection_costs_nothing_and_is_unreachable(server, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"cache": tmp_path / "c.sqlite", "prices": priced(tmp_path), **QUICK}
    judge = load_judge(f"{server.dialect}:fake-model@http://127.0.0.1:{port}/v1", **options)
    (verdict,) = judge.judge([case("ok")])
    assert (verdict.state, verdict.cost, verdict.success) == ("unreachable", 0.0, None)
    assert judge.cache.spent() == 0


def test_rerouted_model_is_recorded_and_warned_about_once(server):
    judge = judge_for(server)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        verdicts = judge.judge([case("rerouted 1"), case("rerouted 2")])
    assert [str(w.message) for w in caught if "fake-model was asked for, but other-model answered" in str(w.message)]
    assert sum("other model" in str(w.message) for w in caught) == 1
    assert all(v.model_served == "other-model" and "other-model" in v.reasons for v in verdicts)


def test_the_same_case_twice_is_asked_once(server):
    verdicts = judge_for(server, concurrency=4).judge([case("ok")] * 6)
    assert len(server.requests) == 2
    assert len(set(verdicts)) == 1 and verdicts[0].state == "ok"


def test_paper_preset_is_one_call(server):
    (verdict,) = judge_for(server, preset="paper").judge([case("ok")])
    assert [r.question for r in server.requests] == ["paper"]
    assert (verdict.success, verdict.confidence) == (False, PAPER["confidence"])


def test_a_dead_end_saves_the_second_call(server):
    judge_for(server).judge([case("prose")])
    assert [r.question for r in server.requests] == ["semantic"]


@pytest.mark.filterwarnings("ignore:.*other model's")
def test_answers_are_cached_on_everything_and_replay_offline_without_a_key(server, tmp_path, monkeypatch):
    path = tmp_path / "cache.sqlite"
    cases = [case("ok"), case("mismatch"), case("prose"), case("rate")]
    first = judge_for(server, cache=path).judge(cases)
    sent = len(server.requests)
    retried = judge_for(server, cache=path).judge(cases)
    assert [r.behaviour for r in server.requests[sent:]] == ["rate"] * 3, "only what was never answered is asked again"
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name)
    replayed = judge_for(server, cache=path, offline=True).judge(cases)
    assert first[:3] == retried[:3] == replayed[:3]
    assert replayed[3].state == "unreachable" and "offline" in replayed[3].reasons

    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    changed = [
        ({"repeat": 1}, case("ok")),
        ({"temperature": 0.5}, case("ok")),
        ({"seed": 1}, case("ok")),
        ({"max_output_tokens": 999}, case("ok")),
        ({"preset": "paper"}, case("ok")),
        ({}, case("ok", seed=1)),
        ({}, case("ok 2")),
    ]
    for options, other in changed:
        before = len(server.requests)
        judge_for(server, cache=path, **options).judge([other])
        assert len(server.requests) > before, f"{options} must not be answered from the cache"
    before = len(server.requests)
    load_judge(f"{server.dialect}:another@{server.url}", cache=path, first_delay=0.01).judge([case("ok")])
    assert len(server.requests) == before + 2, "another model answers for itself"
    with FakeServer(server.dialect) as other:
        judge_for(other, cache=path).judge([case("ok")])
        assert len(other.requests) == 2, "and so does another server"


def test_costs_are_what_the_tokens_cost(server, tmp_path):
    judge = judge_for(server, prices=priced(tmp_path), cache=tmp_path / "c.sqlite")
    one_call = (USAGE[0] * 1.0 + USAGE[1] * 10.0) / 1e6
    both, dead_end, free, unknown = judge.judge([case("ok"), case("prose"), case("bad-request"), case("drop")])
    assert both.cost == pytest.approx(2 * one_call)
    assert dead_end.cost == pytest.approx(one_call)
    assert free.cost == 0 and unknown.cost is None
    assert judge.cache.spent() > 3 * one_call, "a call that may have been paid stays charged at its most"
    assert judge_for(server).judge([case("ok")])[0].cost is None, "no price, no cost"


@pytest.mark.parametrize("calls", [0, 3, 7])
def test_the_cap_stops_before_the_call_that_would_pass_it(server, tmp_path, calls):
    prices, path = priced(tmp_path), tmp_path / "c.sqlite"
    one_call = (USAGE[0] * 1.0 + USAGE[1] * 10.0) / 1e6
    probe = judge_for(server, prices=prices)
    at_most = probe._at_most(probe.questions[0].parts(case("ok 0")))
    cap = calls * one_call + at_most
    options = {"prices": prices, "cache": path, "max_cost": cap, "concurrency": 8}
    cases = [case(f"ok {i}") for i in range(12)]
    verdicts = judge_for(server, **options).judge(cases)
    bill = sum(server.billed.values()) * one_call
    assert calls * one_call < bill <= cap
    stopped = [v for v in verdicts if v.state == "error"]
    assert stopped and all("cost cap" in v.reasons and v.success is None for v in stopped)
    judge_for(server, **options).judge(cases)
    assert sum(server.billed.values()) * one_call <= cap, "a second run does not start from zero"
    assert {v.state for v in judge_for(server, **(options | {"max_cost": 1.0})).judge(cases)} == {"ok"}
    assert max(server.billed.values()) == 1


def test_the_cap_holds_for_several_judges_at_once_on_one_file(server, tmp_path):
    """As several processes would: each has its own connection to the ledger, and some of their calls fail."""
    prices, one_call = priced(tmp_path), (USAGE[0] * 1.0 + USAGE[1] * 10.0) / 1e6
    probe = judge_for(server, prices=prices)
    at_most = probe._at_most(probe.questions[0].parts(case("ok 0")))
    cap = 10 * one_call + at_most
    cases = [case(f"{name} {i}") for i in range(8) for name in ("ok", "prose", "rate-once", "bad-request")]

    def work(part):
        judge = judge_for(server, prices=prices, cache=tmp_path / "c.sqlite", max_cost=cap, concurrency=4)
        return judge.judge(cases[part::3])

    with ThreadPoolExecutor(3) as pool:
        verdicts = [verdict for part in pool.map(work, range(3)) for verdict in part]
    assert 0 < sum(server.billed.values()) * one_call <= cap and max(server.billed.values()) == 1
    assert any("cost cap" in verdict.reasons for verdict in verdicts)
    assert judge_for(server, cache=tmp_path / "c.sqlite").cache.spent() <= cap


@pytest.mark.filterwarnings("ignore:.*other model's")
def test_a_dearer_model_that_answers_instead_does_not_break_the_cap(server, tmp_path):
    prices = priced(tmp_path)
    cases = [case(f"rerouted {i}") for i in range(6)]
    verdicts = judge_for(server, prices=prices, max_cost=5.0, concurrency=1).judge(cases)
    assert len(server.requests) == 1, "its price is unknown: from then on nothing can be promised"
    assert "cannot be held: other-model answers" in verdicts[-1].reasons and verdicts[-1].success is None

    dear = prices.read_text().replace("fake-model", "other-model").replace("10.0", "1000.0")
    prices.write_text(prices.read_text() + dear)
    one_call = (USAGE[0] * 1.0 + USAGE[1] * 1000.0) / 1e6
    probe = judge_for(server, prices=prices)
    cheap = probe._at_most(probe.questions[0].parts(cases[0]))
    cap = one_call + 2 * cheap
    verdicts = judge_for(server, prices=prices, max_cost=cap, concurrency=1).judge(cases[1:])
    assert sum(v.cost or 0 for v in verdicts) <= cap, "another call at the asked model's price would have passed it"
    assert [v.state for v in verdicts] == ["error"] * 5 and verdicts[0].cost == pytest.approx(one_call)


@pytest.mark.filterwarnings("ignore:.*other model's")
def test_a_new_judge_on_the_same_ledger_knows_who_answers_in_its_place(server, tmp_path):
    options = {"prices": priced(tmp_path), "cache": tmp_path / "c.sqlite", "max_cost": 5.0}
    verdicts = [judge_for(server, **options).judge([case(f"rerouted {i}")])[0] for i in range(4)]
    assert len(server.requests) == 1, "its price is unknown: nothing can be promised"
    assert all("cannot be held: other-model answers" in verdict.reasons for verdict in verdicts)


def test_a_cap_without_a_price_is_refused(server):
    with pytest.raises(JudgeError, match="max_cost needs a price"):
        judge_for(server, max_cost=1.0)


@pytest.mark.filterwarnings("ignore:.*other model's")
def test_five_hundred_mixed_calls(server, tmp_path):
    """Nothing is made up, nothing is dropped, nothing is paid twice, and the books agree with the server's."""
    draw = random.Random(0)
    script = [draw.choice([*STATES, "ok", "ok", "mismatch", "damage"]) for _ in range(330)]
    cases = [case(f"{name} {i}") for i, name in enumerate(script)]
    prices, path = priced(tmp_path), tmp_path / "c.sqlite"
    verdicts = judge_for(server, prices=prices, cache=path, concurrency=8, first_delay=0.0).judge(cases)
    assert len(server.requests) >= 500
    for name, verdict in zip(script, verdicts, strict=True):
        assert verdict.state == STATES[name], (name, verdict)
        expected = (name == "mismatch", name == "damage") if STATES[name] == "ok" else (None, None)
        assert (verdict.semantic_mismatch, verdict.perceptual_degradation) == expected
    assert max(server.billed.values()) == 1
    one_call = (USAGE[0] * 1.0 + USAGE[1] * 10.0) / 1e6
    unknown = script.count("rerouted") * 2 + script.count("drop")
    assert all((v.cost is None) is (name in ("rerouted", "drop")) for name, v in zip(script, verdicts, strict=True))
    assert sum(v.cost or 0 for v in verdicts) == pytest.approx((sum(server.billed.values()) - unknown) * one_call)


KILLED = """
import sys
from sifm_core.judges import load_judge
from judges.servers import case
load_judge(sys.argv[1], cache=sys.argv[2], concurrency=4).judge([case(f"ok {i}") for i in range(int(sys.argv[3]))])
"""


@pytest.mark.parametrize("dialect", DIALECTS)
def test_kill_9_and_resume_repeats_no_paid_call(dialect, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    n, path = 40, tmp_path / "cache.sqlite"
    with FakeServer(dialect, delay=0.05) as fake:
        spec, cases = f"{dialect}:fake-model@{fake.url}", [case(f"ok {i}") for i in range(n)]
        process = subprocess.Popen([sys.executable, "-c", KILLED, spec, str(path), str(n)])
        deadline = time.monotonic() + 300
        while sum(fake.billed.values()) < n and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.2)
        before = sum(fake.billed.values())
        assert n <= before < 2 * n, "killed in the middle"
        resumed = [verdict.state for verdict in load_judge(spec, cache=path).judge(cases)]
        assert max(fake.billed.values()) == 1, "a paid call was repeated"
        lost = resumed.count("unreachable")
        assert resumed.count("ok") == n - lost and lost <= 4
        verdicts = load_judge(spec, cache=path, resend_lost=True).judge(cases)
    assert {v.state for v in verdicts} == {"ok"}


def test_the_key_is_nowhere(server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "c.sqlite"
    judge = judge_for(server, cache=path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        verdicts = judge.judge([case(name) for name in ("ok", "key-refused", "echo-key", "drop", "html", "rate")])
    assert {r.key for r in server.requests} == {KEY}, "the key must have been used"
    assert [v.state for v in verdicts[:3]] == ["ok", "missing_key", "ok"]
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"[key]" in written and KEY.encode() not in written
    seen = repr(verdicts) + caplog.text + repr([str(w.message) for w in caught]) + repr(judge) + repr(judge.client)
    assert KEY not in seen
    assert len(caplog.records) > 0, "logging must have been on"


@pytest.mark.parametrize(
    ("spec", "names"), [("gemini:gemini-2.5-pro", "GEMINI_API_KEY or GOOGLE_API_KEY"), ("openai:gpt", "OPENAI_API_KEY")]
)
def test_a_missing_key_names_its_variable(spec, names, monkeypatch):
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(JudgeError, match=names):
        load_judge(spec)


def test_a_base_url_with_a_key_in_it_is_refused_without_repeating_it(monkeypatch):
    with pytest.raises(InputError) as caught:
        load_judge("openai:m@http://user:hunter22@127.0.0.1/v1")
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("backend", DIALECTS)
@pytest.mark.parametrize(
    "address", ["localhost:11434/v1", " http://localhost/v1", "HTTP://localhost/v1", "http:/localhost", "localhost", ""]
)
def test_an_address_that_is_none_does_not_mean_the_backends_own(backend, address, monkeypatch):
    """Else private pictures that are meant for a server of one's own would be uploaded."""
    for name in ("GEMINI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, KEY)
    with pytest.raises(InputError, match="http://"):
        load_judge(f"{backend}:llava@{address}")
    with pytest.raises(InputError, match="http://"):
        load_judge(f"{backend}:llava@{address}", base_url="")
    if address:
        with pytest.raises(InputError, match=r"http\(s\)://"):
            load_judge(f"{backend}:llava", base_url=address)


def test_an_address_given_apart_leaves_the_models_name_alone(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge = load_judge("openai:@cf/meta/llama@http://x", base_url="http://127.0.0.1:1/v1/")
    assert (judge.client.model, judge.client.base_url) == ("@cf/meta/llama@http://x", "http://127.0.0.1:1/v1")
    assert load_judge("openai:gpt", base_url="").client.base_url == "https://api.openai.com/v1"


def test_a_local_server_without_a_key_is_free(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FakeServer("openai") as fake:
        judge = judge_for(fake, max_cost=0.0)
        (verdict,) = judge.judge([case("ok")])
    assert (verdict.state, verdict.cost) == ("ok", 0.0)


def test_the_ladder_finds_what_a_server_can_do_and_remembers(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeServer("openai") as fake:
        judge = judge_for(fake, concurrency=1)
        verdicts = judge.judge([case("no-schema"), case("no-schema 2")])
    formats = [r.body.get("response_format", {}).get("type") for r in fake.requests]
    assert formats == ["json_schema", "json_object", None, None, None, None]
    assert {v.state for v in verdicts} == {"ok"}


def test_what_a_model_refuses_is_left_out_and_the_verdict_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    path = tmp_path / "c.sqlite"
    with FakeServer("openai") as fake:
        first = judge_for(fake, cache=path, concurrency=1).judge([case("reasoner")])
        replayed = judge_for(fake, cache=path, offline=True).judge([case("reasoner")])
        plain = judge_for(fake).judge([case("ok")])
    sent = [sorted({"temperature", "seed"} & r.body.keys()) for r in fake.requests]
    assert sent == [["seed", "temperature"], ["seed"], [], []] + [["seed", "temperature"]] * 2
    assert {r.body["response_format"]["type"] for r in fake.requests} == {"json_schema"}, "the ladder stands"
    assert first == replayed and first[0].state == "ok"
    assert first[0].reasons.startswith("asked without temperature and seed, which fake-model refuses\n")
    assert "asked without" not in plain[0].reasons


def test_newer_geminis_are_asked_without_what_they_refuse_and_the_verdict_says_so(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    given = {"temperature": 0.0, "seed": 0, "thinking_budget": 1024}
    with FakeServer("gemini") as fake:
        first, second = judge_for(fake, concurrency=1, **given).judge([case("newer"), case("newer 2")])
    settings = {"thinkingConfig", "temperature", "seed"}
    sent = [settings & r.body["generationConfig"].keys() for r in fake.requests]
    assert sent == [settings, {"temperature", "seed"}, set(), set(), set(), set()]
    assert first.state == second.state == "ok"
    assert first.reasons.startswith("asked without thinking_budget and temperature and seed, which fake-model refuses")


@pytest.mark.parametrize("behaviour", ["no-schema-in-words", "no-schema-as-200"])
def test_the_ladder_is_climbed_down_however_a_server_words_its_refusal(monkeypatch, behaviour):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeServer("openai") as fake:
        (verdict,) = judge_for(fake, concurrency=1).judge([case(behaviour)])
    assert verdict.state == "ok" and len(fake.requests) == 4


@pytest.mark.parametrize("how, body", [(how, body) for how, body in ERRORS if how not in ("numbers", "nothing")])
def test_the_servers_own_words_are_shown(server, how, body):
    BEHAVIOURS["told"] = lambda r: Response(status=418, raw=body("the moon is full"), type="text/html")
    (verdict,) = judge_for(server).judge([case("told")])
    assert verdict.state == "error" and "HTTP 418: the moon is full" in verdict.reasons


@pytest.mark.parametrize(
    ("code", "state", "sent"), [(429, "unreachable", 3), ("503", "unreachable", 3), (401, "missing_key", 1)]
)
def test_an_error_in_a_body_counts_as_its_own_code_says(server, code, state, sent):
    raw = json.dumps({"error": {"code": code, "message": "the moon is full"}})
    BEHAVIOURS["told"] = lambda r: Response(raw=raw)
    (verdict,) = judge_for(server).judge([case("told")])
    assert (verdict.state, len(server.requests), verdict.cost) == (state, sent, 0.0)
    assert "the moon is full" in verdict.reasons and "base_url" not in verdict.reasons


def test_what_nobody_foresaw_costs_one_case_its_verdict(server, monkeypatch):
    def fails_once(text, answer):
        if "mismatch" in asked.pop():
            raise KeyError("nobody foresaw this")
        return parse(text, answer)

    asked = ["ok", "ok", "mismatch", "ok", "ok"]
    monkeypatch.setattr("sifm_core.judges.vlm.parse", fails_once)
    verdicts = judge_for(server, concurrency=1).judge([case("ok"), case("mismatch"), case("ok 2")])
    assert [v.state for v in verdicts] == ["ok", "error", "ok"]
    assert "nobody foresaw this" in verdicts[1].reasons and verdicts[1].success is None


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0.0},
        {"timeout": float("nan")},
        {"temperature": -1.0},
        {"first_delay": float("nan")},
        {"max_output_tokens": 0},
        {"max_cost": float("nan")},
        {"concurrency": 0},
    ],
)
def test_settings_that_no_call_can_have_are_refused(server, options):
    with pytest.raises(InputError, match=f"{next(iter(options))}.*expected|expected .*{next(iter(options))}"):
        judge_for(server, **options)


def test_an_instruction_that_is_no_text_is_not_sent(server):
    (verdict,) = judge_for(server).judge([case("ok \udcff")])
    assert (verdict.state, verdict.cost) == ("error", 0.0) and "UTF-8" in verdict.reasons and not server.requests


def test_progress_and_stopping(server):
    steps: list[Step] = []
    judge = judge_for(server, concurrency=2)

    def stop(step: Step) -> None:
        steps.append(step)
        if step.i >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge.judge([case(f"ok {i}") for i in range(50)], on_step=stop)
    assert [s.i for s in steps] == sorted(s.i for s in steps) and {s.n for s in steps} == {50}
    assert len(server.requests) < 30
    assert not judge.cache.lost("anything")


def test_stopping_does_not_wait_for_a_back_off(server):
    def stop(step: Step) -> None:
        if server.requests:
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        judge_for(server, first_delay=40, attempts=2).judge([case("rate")], on_step=stop)
    with pytest.raises(KeyboardInterrupt):
        question = PRESETS["paper"][0]
        judge_for(server, first_delay=40, attempts=2).ask(question.parts(case("rate")), question, on_step=stop)
    assert time.monotonic() - started < 20, "the second attempt comes after 30 seconds at least"


def test_bad_cases_are_not_sent(server):
    nan = case("ok")
    nan.edited[0, 0, 0] = float("nan")
    verdicts = judge_for(server).judge([nan, case("  ")])
    assert [v.state for v in verdicts] == ["error", "error"]
    assert server.requests == []


def test_verdict_says_who_was_asked_what(server):
    judge = judge_for(server)
    (verdict,) = judge.judge([case("ok")])
    assert isinstance(verdict, Verdict)
    assert verdict.judge == judge.name == f"{server.dialect}:fake-model@{server.url}"
    assert verdict.model_requested == "fake-model" and len(verdict.prompt_hash) == 16
    assert verdict.latency > 0 and "the hat changed" in verdict.raw
    assert isinstance(judge.cache, Cache)
