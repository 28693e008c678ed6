"""Hundreds of faults through the real clients: no made-up verdict, no cent above the cap, no key anywhere."""

from __future__ import annotations

import html
import json
import logging
import re
import sqlite3
import time
import urllib.parse
import warnings
from collections import Counter
from dataclasses import replace

import pytest

from judges.hostile import DIALECTS, KEY, SECRET, USAGES, Fault, Server, envelope, faults, slow
from judges.servers import USAGE, case
from sifm_core import cli
from sifm_core.errors import InputError
from sifm_core.images import save_png
from sifm_core.judges import load_judge
from sifm_core.judges.wire import _tunnel, library_of

PRICES = "".join(f'[{dialect}."fake-model"]\ninput = 1.0\noutput = 10.0\nimage_tokens = 500\n' for dialect in DIALECTS)
ONE_CALL = (USAGE[0] * 1.0 + USAGE[1] * 10.0) / 1e6
SAMPLED = {"anthropic": 6}
"""Of a provider that is asked through another's client every sixth."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


@pytest.fixture(params=DIALECTS)
def dialect(request):
    return request.param


@pytest.fixture
def elsewhere(monkeypatch):
    """A host that is to hear nothing, though the environment and what servers answer point to it."""
    with Server() as other:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, other.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        yield other
    assert [heard for heard in other.heard if heard[0] != "llm.example:8443"] == []


@pytest.fixture
def server(monkeypatch, tmp_path):
    for name in ("GEMINI_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Mine: {SECRET}\nUser-Agent: {SECRET}\nAccept: {SECRET}")
    (tmp_path / "netrc").write_text(f"default login me password {SECRET}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "prices.toml").write_text(PRICES)
    with Server() as fake:
        yield fake


def judge_for(server, dialect, tmp_path, **options):
    return _judge_at(dialect, server.url if dialect == "gemini" else f"{server.url}/v1", tmp_path, **options)


def _judge_at(dialect, address, tmp_path, **options):
    quick = {"preset": "paper", "first_delay": 0.0, "attempts": 1, "concurrency": 8, "prices": tmp_path / "prices.toml"}
    return load_judge(f"{dialect}:fake-model@{address}", **{**quick, "cache": tmp_path / "ledger.sqlite", **options})


def cases(n: int):
    return [replace(case("x"), prompt=f"fault {i} {'' if i else 'again'}") for i in range(n)]


def letters_of_the_key(text: str) -> list[str]:
    """Runs of eight letters of the key, or of what the environment held, however they are spelled in ``text``."""
    found = []
    for _ in range(4):
        for secret in (KEY, SECRET):
            found += [secret[i : i + 8] for i in range(len(secret) - 7) if secret[i : i + 8] in text]
        text = html.unescape(urllib.parse.unquote(text)).replace("\\/", "/").replace("\\\\", "\\")
        text = re.sub(r"\\u00([0-9a-fA-F]{2})", lambda m: chr(int(m[1], 16)), text)
    return found


@pytest.mark.filterwarnings("ignore:.*other model's")
def test_no_fault_makes_a_verdict_up_ends_the_others_or_tells_the_key(
    server, dialect, elsewhere, tmp_path, caplog, capsys
):
    caplog.set_level(logging.DEBUG)
    server.faults = faults(dialect, elsewhere.url)[:: SAMPLED.get(dialect, 1)]
    asked, started = cases(len(server.faults)), time.monotonic()
    judge = judge_for(server, dialect, tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        verdicts = judge.judge(asked)
    made_up = []
    for fault, verdict in zip(server.faults, verdicts, strict=True):
        told = (verdict.semantic_mismatch, verdict.perceptual_degradation)
        if verdict.state == "ok" and (fault.counts is False or told != (fault.failed, False)):
            made_up.append(fault.name)
        assert verdict.state == "ok" or told == (None, None) == (verdict.success, verdict.confidence), fault.name
        assert (verdict.state == "ok") is fault.counts or fault.counts is None, (fault.name, verdict)
        shown = "".join(text for text in vars(verdict).values() if isinstance(text, str))
        assert not CONTROL.search(shown) and len(shown) < 75_000 and shown.encode(), fault.name
    assert made_up == []

    spent, honest = judge.cache.spent(), server.paid * ONE_CALL
    assert spent >= honest, "a server that lies about its usage makes nothing cheaper"
    heard = len(server.heard)
    again = judge_for(server, dialect, tmp_path).judge(asked)
    for fault, before, after in zip(server.faults, verdicts, again, strict=True):
        assert before.state != "ok" or after == before, (fault.name, "an answer that counted is not bought again")
    assert judge.cache.spent() >= spent and len(server.heard) - heard < len(asked)

    assert {h.get("x-goog-api-key") or h.get("authorization") for _, h, _ in server.heard} <= {KEY, f"Bearer {KEY}"}
    outgoing = [(path, {k: v for k, v in headers.items() if KEY not in v}) for path, headers, _ in server.heard]
    places = {
        "verdicts": repr(verdicts) + repr(again),
        "ledger": _dump(tmp_path / "ledger.sqlite"),
        "log": caplog.text,
        "warnings": repr([str(w.message) for w in caught]),
        "output": "".join(capsys.readouterr()),
        "judge": repr([judge, vars(judge), judge.client, judge.client.wire]),
        "package": repr(vars(judge.client._client)).replace(SECRET, ""),
        "requests": repr(outgoing),
    }
    assert {place: letters_of_the_key(text) for place, text in places.items() if letters_of_the_key(text)} == {}
    assert "[key]" in places["verdicts"] and "[key]" in places["ledger"] and len(caplog.records) > len(asked) // 2
    states = Counter(verdict.state for verdict in verdicts)
    with capsys.disabled():
        print(f"\n{dialect}: {len(asked)} faults in {time.monotonic() - started:.0f} s, {dict(states)}, 0 made up")


def test_an_answer_that_never_ends_is_cut_off(server, dialect, tmp_path):
    server.faults = slow(dialect)
    started = time.monotonic()
    verdicts = judge_for(server, dialect, tmp_path, timeout=0.5).judge(cases(len(server.faults)))
    assert {v.state for v in verdicts} == {"unreachable"} and all(v.cost is None for v in verdicts)
    assert [v.reasons for v in verdicts if "no whole answer arrived in 0.5 s" not in v.reasons] == []
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("usage", [pytest.param(usage, id=name) for name, usage, _ in USAGES])
def test_no_usage_that_a_server_reports_buys_more_than_the_cap(server, dialect, tmp_path, usage):
    server.faults = [Fault("usage", lambda h: h.answer(json.dumps(envelope(dialect, "{}", usage=usage))))]
    probe = judge_for(server, dialect, tmp_path, max_output_tokens=200)
    cap = 3 * probe._at_most(probe.questions[0].parts(cases(1)[0]))
    asked = [replace(case("x"), prompt=f"fault 0 {i}") for i in range(30)]
    ledger = []
    verdicts = judge_for(server, dialect, tmp_path, max_cost=cap, concurrency=3, max_output_tokens=200).judge(
        asked, on_step=lambda _: ledger.append(probe.cache.spent())
    )
    assert 0 < server.paid * ONE_CALL < probe.cache.spent() + 1e-9 < cap + 2e-9
    assert any("cost cap" in verdict.reasons for verdict in verdicts) and len(verdicts) == 30
    known = [verdict for verdict in verdicts if verdict.cost]
    assert bool(known) is (usage == USAGE)
    assert min(ledger) > 0, "nothing is paid back"


def test_a_ledger_that_a_lying_server_has_filled_before_is_healed(server, dialect, tmp_path):
    """What an earlier version wrote down: money paid back, contents that are no text, keys, halves of characters."""
    server.faults = [Fault("good", lambda h: h.answer(json.dumps(envelope(dialect, "{}")))) for _ in range(7)]
    first = judge_for(server, dialect, tmp_path)
    first.judge(cases(7))
    kept = [
        ("cost", -2399.0),
        ("reply", json.dumps({"state": "ok", "text": [{"type": "text"}], "billed": "yes"})),
        ("reply", json.dumps({"state": "ok", "text": "a\ud800b", "reason": 7, "tokens": "x"})),
        ("reply", json.dumps({"state": "well", "served": [1], "text": KEY})),
        ("reply", '{"state": "ok", '),
        ("reply", json.dumps({"state": "error", "reason": f"\x1b[2J{KEY}", "of a newer version": 1})),
        ("cost", float("inf")),
    ]
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        for call, (column, value) in enumerate(kept, 1):
            db.execute(f"UPDATE calls SET {column} = ? WHERE id = ?", (value, call))
    again = judge_for(server, dialect, tmp_path)
    verdicts = again.judge(cases(7))
    assert len(server.heard) == 7 and all(v.state != "ok" for v in verdicts)
    assert 5 * ONE_CALL < again.cache.spent() < 1 and not letters_of_the_key(repr(verdicts))
    assert not CONTROL.search("".join(v.reasons + v.raw for v in verdicts))


def test_without_a_key_nothing_of_the_environment_goes_to_an_address(server, elsewhere, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    server.faults = [Fault("good", lambda h: h.answer(json.dumps(envelope("openai", "{}"))))]
    judge_for(server, "openai", tmp_path).judge(cases(1))
    ((path, headers, _),) = server.heard
    plain = {"host", "accept", "accept-encoding", "content-type", "content-length", "user-agent", "connection"}
    assert set(headers) <= plain
    assert path == "/v1/chat/completions" and not letters_of_the_key(repr(headers))


def test_the_users_proxy_is_used_where_it_cannot_read_along(server, elsewhere, dialect, tmp_path, monkeypatch):
    (verdict,) = _judge_at(dialect, "https://llm.example:8443/v1", tmp_path).judge(cases(1))
    ((path, headers, body),) = elsewhere.heard
    assert verdict.state == "unreachable" and verdict.cost == 0.0 and path == "llm.example:8443"
    assert body == b"" and not letters_of_the_key(repr(headers))
    monkeypatch.setenv("NO_PROXY", "llm.example")
    elsewhere.heard.clear()
    assert _tunnel("https://llm.example") is _tunnel(server.url) is None


def test_what_the_environment_holds_for_the_provider_goes_to_the_provider_alone(server, monkeypatch):
    sent = []

    def refuse(request):
        sent.append(request)
        raise library_of("openai").ConnectError("no")

    for spec in ("openai:gpt", "openai:gpt@https://llm.example/v1"):
        judge = load_judge(spec, attempts=1)
        monkeypatch.setattr(judge.client.wire._inner, "handle_request", refuse)
        judge.judge(cases(1))
    own, other = (dict(request.headers) for request in sent)
    assert own["openai-organization"] == own["x-mine"] == SECRET and SECRET not in repr(other)
    assert own["authorization"] == other["authorization"] == f"Bearer {KEY}" and own["host"] == "api.openai.com"


def test_no_other_host_is_spoken_to_than_the_one_that_was_named(server, elsewhere, dialect, tmp_path):
    judge = judge_for(server, dialect, tmp_path)
    package = judge.client._client
    if dialect != "gemini":
        package.base_url = elsewhere.url
    else:
        package._api_client._http_options.base_url = elsewhere.url
    (verdict,) = judge.judge(cases(1))
    assert verdict.state == "error" and verdict.cost == 0.0 and "another host than 127.0.0.1" in verdict.reasons


@pytest.mark.filterwarnings("ignore:.*other model's")
@pytest.mark.parametrize("form", ["text", "json"])
def test_the_command_says_that_something_is_missing_and_a_rerun_asks_for_the_rest(
    server, dialect, tmp_path, monkeypatch, capfd, form
):
    monkeypatch.chdir(tmp_path)
    known = {fault.name: fault for fault in faults(dialect, "http://127.0.0.1:1")}
    away = [True, True, True]

    def now_and_then(h):
        h.answer(f"\x1b[2J{KEY}", status=503) if away and away.pop() else known["text, ends stop"].send(h)

    server.faults = [
        known["text, ends stop"], known["escape-codes as text"], Fault("now and then", now_and_then)
    ]  # fmt: skip
    for name in ("clean", "edited"):
        save_png(case("x").source[None], tmp_path / name / "0.png")
    address = server.url if dialect == "gemini" else f"{server.url}/v1"
    seen = []

    def ask(number: int) -> int:
        words = [
            "judge",
            "clean",
            "edited",
            "--prompt",
            f"fault {number} x",
            "--preset",
            "paper",
            "--cache",
            "c.sqlite",
        ]
        code = cli.main([*words, "--judge", f"{dialect}:fake-model@{address}", *(["--json"] if form == "json" else [])])
        seen.append(capfd.readouterr())
        return code

    monkeypatch.setattr("sifm_core.judges.vlm.random.uniform", lambda *_: 0.0)
    assert [ask(0), ask(1)] == [0, 0]
    server.heard.clear()
    assert ask(2) == 0 and len(server.heard) == 4, "what was away came back in time"
    away += [True] * 5
    server.faults.append(server.faults[2])
    assert ask(3) == 1 and "all verdicts are missing (unreachable)" in seen[-1].err
    assert ask(3) == 0
    shown = "".join(out + err for out, err in seen)
    assert not letters_of_the_key(shown) and "[key]" in shown and not CONTROL.search(shown)


def _dump(path) -> str:
    with sqlite3.connect(path) as db:
        return "\n".join(db.iterdump())


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:99999/v1", "http://[::1/v1", "http://a:b:c", "http://256.1.1.1/v1"]
)
def test_an_address_that_nobody_can_ask_is_refused_in_one_sentence(server, dialect, tmp_path, address):
    with pytest.raises(InputError, match="base_url"):
        _judge_at(dialect, address, tmp_path)
