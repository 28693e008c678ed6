"""`sifm judge` with paid judges: fake servers, the real clients, a cap, a cache, and a key that nobody sees."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

import fakes
from judges.servers import USAGE, FakeServer
from judges.test_remote import KEY, priced
from sifm_core import cli
from sifm_core.bench.config import open_judges
from sifm_core.images import save_png
from sifm_core.judges.human import Annotation, write_annotations

ONE_CALL = (USAGE[0] * 1.0 + USAGE[1] * 10.0) / 1e6


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("GEMINI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, KEY)
    for i in range(4):
        save_png(fakes.images(1, 24, i), f"clean/{i}.png")
        save_png(fakes.images(1, 24, i + 10), f"edited/{i}.png")
    priced(tmp_path)
    return tmp_path


@pytest.fixture
def servers():
    with FakeServer("gemini") as gemini, FakeServer("openai") as openai:
        yield gemini, openai


@pytest.fixture
def sifm(capsys):
    def run(*words: object) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


def judge(servers, *words: object, prompt: str = "ok") -> list[object]:
    asked = [word for fake in servers for word in ("--judge", f"{fake.dialect}:fake-model@{fake.url}")]
    return ["judge", "clean", "edited", "--prompt", prompt, *asked, "--prices", "prices.toml", *words, "--json"]


def test_two_judges_one_ledger(here, servers, sifm):
    code, out, _ = sifm(*judge(servers, "--cache", "c.sqlite", "--max-cost", 1))
    assert code == 0 and [found["edit_failed"] for found in json.loads(out)] == [False] * 4
    assert [len(fake.requests) for fake in servers] == [8, 8]
    code, again, _ = sifm(*judge(servers, "--cache", "c.sqlite", "--offline"))
    assert code == 0 and again == out and [len(fake.requests) for fake in servers] == [8, 8]


def test_the_cap_holds_for_all_judges_together(here, servers, sifm):
    cap = 0.105  # enough for either judge alone, not for both
    for asked, stops in (([servers[0]], False), ([servers[1]], False), (servers[::-1], True)):
        before = sum(sum(fake.billed.values()) for fake in servers)
        _, out, _ = sifm(*judge(asked, "--max-cost", cap, "--concurrency", 4))
        spent = (sum(sum(fake.billed.values()) for fake in servers) - before) * ONE_CALL
        assert 0 < spent <= cap
        stopped = [v for found in json.loads(out) for v in found["verdicts"] if "cost cap" in v["reasons"]]
        assert bool(stopped) == stops and all(v["success"] is None for v in stopped)


def test_the_papers_preset_and_batch_mode(here, servers, sifm):
    gemini, _ = servers
    code, _, _ = sifm(*judge([gemini], "--preset", "paper", "--batch", "--patience", 60))
    assert code == 0 and len(gemini.jobs) == 1 and {r.question for r in gemini.requests} == {"paper"}


@pytest.mark.parametrize(
    "words, said",
    [
        (["--judge", "miniature:renderer", "--max-cost", "1"], "--max-cost: only for judges that are vision-language"),
        (["--judge", "openai:m@http://127.0.0.1:9/v1", "--offline"], "name its file with --cache"),
        (["--judge", "openai:m@http://127.0.0.1:9/v1", "--preset", "papr"], "did you mean paper"),
        (["--judge", "openai:m@http://127.0.0.1:9/v1", "--max-cost", "-1"], "expected US dollars"),
        (["--judge", "openai:m@http://127.0.0.1:9/v1", "--max-cost", "1"], "max_cost needs a price"),
        (["--judge", "openai:m@http://127.0.0.1:9/v1", "--batch"], "take no jobs"),
    ],
)
def test_options_that_make_no_sense_are_one_line(here, sifm, words, said):
    code, out, err = sifm("judge", "clean/0.png", "edited/0.png", "--prompt", "ok", *words)
    assert code in (1, 2) and out == "" and said in err and err.count("\n") == 1


@pytest.mark.filterwarnings("ignore:.*other model's")
@pytest.mark.parametrize("behaviour", ["echo-key", "key-refused", "html"])
def test_the_key_is_in_no_output_log_or_file(here, servers, sifm, caplog, behaviour):
    caplog.set_level(logging.DEBUG)
    for words in ([], ["--batch"]):
        asked = servers[:1] if words else servers
        _, out, err = sifm(*judge(asked, "--cache", "c.sqlite", *words, prompt=behaviour))
        assert all(fake.requests and fake.requests[-1].key == KEY for fake in asked)
        assert KEY not in out + err + caplog.text and json.loads(out)
    assert caplog.records and all(KEY.encode() not in path.read_bytes() for path in here.glob("*.sqlite*"))


@pytest.mark.parametrize("broken", ["\nX-Other: 1", "\x7f", "\N{CYRILLIC SMALL LETTER A}"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(here, servers, sifm, monkeypatch, broken):
    for dialect, variable in (("gemini", "GEMINI_API_KEY"), ("openai", "OPENAI_API_KEY")):
        monkeypatch.setenv(variable, KEY + broken)
        asked = [fake for fake in servers if fake.dialect == dialect]
        code, out, err = sifm(*judge(asked))
        assert code == 1 and KEY not in out + err and variable in err and not asked[0].requests


def test_a_run_keeps_the_ledger_of_its_paid_judges_and_knows_what_they_were_asked(here, servers):
    write_annotations("human.csv", [Annotation("1", "anna", True, False)])
    fake = servers[1]
    specs = [f"openai:fake-model@{fake.url}", "human:human.csv", "miniature:conv"]
    paid, human, named = open_judges(specs, cache=here / "answers.sqlite", max_cost=1.0, prices="prices.toml")
    assert (here / "answers.sqlite").is_file() and paid.max_cost == 1.0 and named == "miniature:conv"
    (paper,) = open_judges(specs[:1], preset="paper")
    assert paid.served != paper.served, "another preset must not be answered by a run's stored verdicts"
    write_annotations("human.csv", [Annotation("1", "anna", False, False)])
    assert open_judges(specs[1:2])[0].served != human.served
