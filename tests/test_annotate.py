"""The page on which people judge: several at a time, blind, killed and resumed, and for nobody else."""

from __future__ import annotations

import csv
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import torch

from sifm_core import cli
from sifm_core.annotate import LARGEST, Page
from sifm_core.consistency import people_of
from sifm_core.judges import load_judge
from sifm_core.store import Store
from sifm_core.types import Case, Record

METHODS = ("clean", "noise", "SIFM")


@pytest.fixture
def run(tmp_path):
    """A run of three methods on two pictures; two of the six edits are equal, and so are one case."""
    generator = torch.Generator().manual_seed(0)
    with Store(tmp_path / "run") as store:
        for p in range(2):
            source = store.put_image(torch.rand(1, 3, 16, 16, generator=generator))
            same = store.put_image(torch.rand(1, 3, 16, 16, generator=generator))
            for method in METHODS:
                edited = (
                    same if p and method != "SIFM" else store.put_image(torch.rand(1, 3, 16, 16, generator=generator))
                )
                store.put_record(
                    Record(
                        f"{method}{p}",
                        f"i{p}",
                        "",
                        "make it night",
                        "original",
                        "e",
                        method,
                        0,
                        0.03,
                        source,
                        source,
                        edited,
                    )
                )
        store.put("run", "config", {})
    return tmp_path / "run"


class Browser:
    """Asks a page as a browser does."""

    def __init__(self, url: str) -> None:
        self.host, self.root = urlsplit(url).netloc, urlsplit(url).path

    def ask(self, path, body=None, root=None, raw=None, **headers):
        connection = http.client.HTTPConnection(self.host, timeout=10)
        sent = raw if raw is not None else body and json.dumps(body).encode()
        given = {"Host": self.host, **({"Content-Type": "application/json"} if sent is not None else {}), **headers}
        connection.request(
            "POST" if sent is not None else "GET", (self.root if root is None else root) + path, sent, given
        )
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(
            content
        ) if answer.headers.get_content_type() == "application/json" else content

    def cases(self, who):
        return self.ask(f"cases?annotator={who}")[1]["cases"]

    def say(self, who, case, mismatch="yes", degraded="no"):
        words = {"semantic_mismatch": mismatch, "perceptual_degradation": degraded}
        return self.ask("annotations", {"case": case["case"], "annotator": who, **words})


@pytest.fixture
def page(run):
    with Store(run, create=False) as store, Page(store, list(store.records()), run / "annotations.jsonl") as page:
        yield page


def test_each_person_sees_every_case_once_in_an_order_of_their_own_and_nothing_of_a_method(page):
    browser = Browser(page.url)
    orders = {who: browser.cases(who) for who in ("anna", "bo", "cy", "dee")}
    assert all(len(cases) == 5 for cases in orders.values()), "equal edits are judged once"
    assert len({tuple(c["case"] for c in cases) for cases in orders.values()}) > 1
    assert {key for cases in orders.values() for case in cases for key in case} == {
        "case",
        "prompt",
        "source",
        "edited",
    }
    told = browser.ask("")[1] + browser.ask("annotate.js")[1] + json.dumps(orders).encode()
    assert not any(method.encode() in told for method in ("SIFM", "noise"))
    status, picture = browser.ask(f"pictures/{orders['anna'][0]['edited']}")
    assert status == 200 and picture.startswith(b"\x89PNG")
    assert all(browser.ask(name)[0] == 200 for name in ("dom.js", "judging.js"))


def test_two_people_answer_at_once_and_their_agreement_grows(page, run):
    browser = Browser(page.url)

    def judge(who):
        for n, case in enumerate(sorted(browser.cases(who), key=lambda c: c["case"])):
            assert browser.say(who, case, "yes" if n < (4 if who == "anna" else 3) else "no") == (200, {"ok": True})

    assert browser.ask("agreement")[1] == {"total": 5, "people": {}, "axes": {}}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(judge, ("anna", "bo")))
    found = browser.ask("agreement")[1]
    assert found["people"] == {"anna": 5, "bo": 5} and found["axes"]["success"]["answers"] == 5
    assert found["axes"]["success"]["raw"] == 0.8 and found["axes"]["perceptual_degradation"]["raw"] == 1.0
    assert found["axes"]["success"]["kappa"] == pytest.approx(0.545, abs=0.01)
    assert browser.cases("anna") == [] and len(browser.cases("cy")) == 5
    kept = [json.loads(line) for line in (run / "annotations.jsonl").read_text().splitlines()]
    assert len(kept) == 10
    with Store(run, create=False) as store:
        cases = [
            Case(store.get_image(c["source"])[0], store.get_image(c["edited"])[0], c["prompt"])
            for c in browser.cases("cy")
        ]
    anna = load_judge(f"human:{run / 'annotations.jsonl'}#anna").judge(cases)
    assert [v.state for v in anna] == ["ok"] * 5 and sum(v.success for v in anna) == 4
    assert people_of([run / "annotations.jsonl"], cases).keys() == {"human:anna", "human:bo"}


def test_an_answer_is_changed_by_answering_again(page):
    browser = Browser(page.url)
    case = browser.cases("anna")[0]
    browser.say("anna", case, "yes")
    browser.say(" Anna ", case, "?", "?")
    browser.say("bo", case, "no", "no")
    assert page.file.read_text().count(case["case"]) == 2
    assert browser.ask("agreement")[1]["axes"]["success"]["raw"] is None, "who cannot say agrees with nobody"


WRONG = {
    "no case of this run": {"case": "c" + "0" * 15},
    "a path for a case": {"case": "../../../etc/pas"},
    "an unknown word": {"semantic_mismatch": "maybe"},
    "half an answer": {"perceptual_degradation": None},
    "no name": {"annotator": " "},
    "a name of markup": {"annotator": "<b>x</b>"},
    "a long note": {"note": "x" * 501},
    "a name of another type": {"annotator": 7},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_answer_is_refused_and_not_kept(page, what):
    browser = Browser(page.url)
    whole = {
        "case": browser.cases("a")[0]["case"],
        "annotator": "a",
        "semantic_mismatch": "no",
        "perceptual_degradation": "no",
    }
    status, said = browser.ask("annotations", whole | WRONG[what])
    assert status == 400 and said["error"] and not page.file.exists()


@pytest.mark.parametrize("raw", [b"", b"[", b"[]", b"7", b"[" * 2000, b"{" + b" " * LARGEST + b"}", b"\xff"])
def test_bodies_that_are_none_are_refused(page, raw):
    assert Browser(page.url).ask("annotations", raw=raw)[0] == 400 and not page.file.exists()


@pytest.mark.parametrize(
    "root, headers",
    [
        ("/", {}),
        ("", {}),
        ("/wrong-token/", {}),
        (None, {"Host": "evil.example"}),
        (None, {"Host": "127.0.0.1:1"}),
        (None, {"Origin": "http://evil.example"}),
        (None, {"Sec-Fetch-Site": "cross-site"}),
    ],
)
def test_nobody_else_is_answered(page, root, headers):
    browser = Browser(page.url)
    case = browser.cases("a")[0]
    paths = ["", "cases?annotator=a", f"pictures/{case['source']}", "agreement", "annotations.jsonl", "dom.js"]
    assert {browser.ask(path, root=root, **headers)[0] for path in paths} == {404}
    body = {"case": case["case"], "annotator": "a", "semantic_mismatch": "no", "perceptual_degradation": "no"}
    assert browser.ask("annotations", body, root=root, **headers)[0] == 404 and not page.file.exists()


@pytest.mark.parametrize(
    "path", ["../run.sqlite", "pictures/../run.sqlite", "pictures/" + "0" * 64, "%2e%2e/x", "annotate.py"]
)
def test_nothing_but_the_page_lies_under_its_address(page, path):
    assert Browser(page.url).ask(path)[0] == 404


def test_killed_and_started_again_it_goes_on_and_the_answers_go_into_a_csv(run, tmp_path):
    def started():
        words = [sys.executable, "-m", "sifm_core.cli", "annotate", str(run), "--out", str(tmp_path / "answers.csv")]
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background jobs ignore
        )
        told = iter(process.stdout.readline, "")
        url = next(found[0] for line in told if (found := re.search(r"http://127\.0\.0\.1:\d+/\S+/", line)))
        return process, Browser(url)

    first, browser = started()
    try:
        for case in browser.cases("anna")[:2]:
            browser.say("anna", case)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait(10)
    second, browser = started()
    try:
        left = browser.cases("anna")
        browser.say("anna", left[0], "?", "no")
        assert len(left) == 3 and len(browser.cases("bo")) == 5
    finally:
        second.send_signal(signal.SIGINT)
        rest, _ = second.communicate(timeout=20)
    assert "anna 1" in rest and "answers.csv" in rest and second.returncode == 0
    with open(tmp_path / "answers.csv", newline="") as file:
        assert [row["semantic_mismatch"] for row in csv.DictReader(file)] == ["yes", "yes", "?"]


@pytest.mark.parametrize("words", [["--out", "x.txt"], ["--port", "70000"], ["--samples", "0"]])
def test_wrong_options_are_refused_before_anything_is_served(run, words, capsys):
    assert cli.main(["annotate", str(run), *words]) == 2 and words[0].lstrip("-") in capsys.readouterr().err


def test_a_port_that_is_taken_is_said(page, run, capsys):
    assert cli.main(["annotate", str(run), "--port", str(urlsplit(page.url).port)]) == 1
    assert "choose another one" in capsys.readouterr().err
