"""The page of `sifm annotate` in a browser: two people by keyboard, killed in between, blind and readable."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from sifm_core.store import Store
from sifm_core.types import Record

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EDITS = 4


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no browser is tried: pip install .[browser], and a chromium on the PATH"
    )
    if not CHROMIUM:
        pytest.skip("no browser is tried: no chromium or google-chrome on the PATH")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def run(tmp_path):
    pictures = torch.rand(EDITS + 1, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with Store(tmp_path / "run") as store:
        source, *edits = (store.put_image(picture) for picture in pictures)
        for i, edited in enumerate(edits):
            store.put_record(
                Record(f"k{i}", "i", "", f"make it {i}", "original", "e", "SIFM", 0, 0.03, source, source, edited)
            )
        store.put("run", "config", {})
    return tmp_path / "run"


class Served:
    """`sifm annotate`, until it is ended by a signal."""

    def __init__(self, run, answers) -> None:
        words = [sys.executable, "-m", "sifm_core.cli", "annotate", str(run), "--out", str(answers)]
        self._process = subprocess.Popen(
            words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        told = iter(self._process.stdout.readline, "")
        self.url = next(found[0] for line in told if (found := re.search(r"http://127\.0\.0\.1:\d+/\S+/", line)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)


def person(browser, url, name, faults):
    page = browser.new_context(viewport={"width": 1100, "height": 760}).new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(url)
    page.fill("input", name)
    page.click("button")
    page.wait_for_selector(".sifm-full img")
    return page


def told(page):
    return page.inner_text(".sifm-full")


def answer(page, *keys):
    for key in keys:
        before = told(page)
        page.keyboard.press(key)
        page.wait_for_function("said => document.querySelector('.sifm-full')?.innerText !== said", arg=before)


def test_two_people_judge_by_keyboard_through_a_kill_and_see_how_far_they_agree(browser, run, tmp_path):
    answers, faults = tmp_path / "answers.csv", []
    with Served(run, answers) as server:
        anna = person(browser, server.url, "anna", faults)
        shown = told(anna)
        assert "SIFM" not in anna.content() and re.search(r"make it \d", shown) and f"1 of {EDITS}" in shown
        assert all(
            anna.evaluate("[...document.querySelectorAll('.sifm-full img')].map(i => i.complete && i.naturalWidth > 0)")
        )
        anna.keyboard.press("1")
        answer(anna, "4")
        assert f"2 of {EDITS}" in told(anna) and len(list(csv.DictReader(answers.open()))) == 1
    with Served(run, answers) as server:
        anna, bo = (person(browser, server.url, name, faults) for name in ("anna", "bo"))
        assert f"2 of {EDITS}, as anna" in told(anna) and f"1 of {EDITS}, as bo" in told(bo), "one of hers was kept"
        for page, left in ((anna, EDITS - 1), (bo, EDITS)):
            for _ in range(left):
                page.keyboard.press("1")
                answer(page, "4")
            assert f"All {EDITS} edits are judged" in told(page)
            page.keyboard.press("Escape")
            page.wait_for_selector("table")
        bo.reload()
        bo.wait_for_selector("table")
        said = bo.inner_text("#place")
        assert f"anna\t{EDITS} of {EDITS}" in said and f"bo\t{EDITS} of {EDITS}" in said and "100%" in said
        if folder := os.environ.get("SIFM_SHOTS"):
            bo.screenshot(path=f"{folder}/annotate.png")
    rows = list(csv.DictReader(answers.open()))
    assert len(rows) == 2 * EDITS and {row["annotator"] for row in rows} == {"anna", "bo"} and faults == []
