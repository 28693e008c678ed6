"""`sifm calibrate`, `sifm consistency`, `sifm clip`: what a run's judges are worth."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image as Pil

import fakes
import tiny_clip
from sifm_core import cli
from sifm_core.cli import calibrate
from sifm_core.controls import kept
from sifm_core.images import save_png
from sifm_core.store import Store
from sifm_core.types import Record, Verdict
from toy import ToyEditor

TRUTH = "miniature:renderer"


@pytest.fixture
def sifm(capsys):
    def run(*words: object) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run of 24 records, two judges and the renderer."""
    monkeypatch.chdir(tmp_path)
    with Store("run/store") as store:
        for i in range(24):
            source, edited = (store.put_image(fakes.images(1, 24, seed)) for seed in (i // 4, 100 + i))
            said = [("flash", i % 2 == 0), ("pro", i % 3 == 0), (TRUTH, i % 2 == 0)]
            verdicts = tuple(Verdict(name, "ok", failed, False) for name, failed in said)
            kind, category = ("original", "unseen")[i % 2], ("portrait", "artwork")[i // 12]
            where = (str(i // 4), category, f"make it {i}", kind, "e", ("clean", "SIFM")[i // 2 % 2])
            store.put_record(Record(f"k{i}", *where, 0, 0.0, source, source, edited, verdicts=verdicts))
    return Path("run")


def test_table_one_with_the_renderer_as_the_person(run, sifm):
    code, out, _ = sifm("consistency", run, "--samples", 12, "--json")
    found = json.loads(out)
    assert code == 0 and found["samples"] == 12 and found["people"] == [TRUTH]
    assert found["table"]["human-human"]["success"]["raw"] is None
    assert 0.5 < found["table"]["human-judge"]["semantic_mismatch"]["raw"] < 1
    assert found["table"]["human-judge"]["success"]["samples"] == 12
    code, text, _ = sifm("consistency", run, "--samples", 12)
    assert code == 0 and "12 samples of run" in text and "84%" in text
    assert max(map(len, text.splitlines()[:10])) <= 80


def test_people_fill_in_a_sheet_and_are_compared(run, sifm):
    code, out, _ = sifm("consistency", run, "--samples", 10, "--seed", 5, "--sheet", "sheet", "--json")
    assert code == 0 and json.loads(out) == {"sheet": "sheet/annotations.csv", "samples": 10}
    rows = list(csv.DictReader(Path("sheet/annotations.csv").read_text(encoding="utf-8").splitlines()))
    for who in ("anna", "bo"):
        with Path(f"{who}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for i, row in enumerate(rows):
                number = int(row["instruction"].split()[-1])
                mismatch = "yes" if number % 2 == 0 else "no"
                writer.writerow(
                    row
                    | {"annotator": who, "semantic_mismatch": "?" if who == "bo" and i == 0 else mismatch}
                    | {"perceptual_degradation": "no"}
                )
    words = ["consistency", run, "--human", "anna.csv", "--human", "bo.csv", "--export", "all.jsonl", "--json"]
    code, out, err = sifm(*words)
    assert code == 0, err
    table = json.loads(out)["table"]
    assert (table["human-human"]["success"]["raw"], table["human-human"]["success"]["samples"]) == (1, 9)
    assert json.loads(out)["samples"] == 10
    assert table["judge-judge"]["success"]["raters"] == 1, "flash and pro; the renderer is no judge"
    assert json.loads(out)["people"] == ["human:anna", "human:bo"] and err == ""
    lines = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()]
    assert {line["annotator"] for line in lines} == {"human:anna", "human:bo", "flash", "pro", TRUTH}
    assert len(lines) == 5 * 10 - 1, "who cannot judge gives no answer"


def test_people_who_judged_the_run_are_people(run, sifm):
    with Store("run/store", create=False) as store:
        for record in list(store.records()):
            anna = Verdict("human:anna", "ok", record.verdicts[0].semantic_mismatch, False)
            store.put_record(replace(record, verdicts=(*record.verdicts, anna)))
    found = json.loads(sifm("consistency", run, "--json")[1])
    assert found["people"] == ["human:anna"] and found["raters"] == ["flash", "pro", "human:anna"]
    assert found["table"]["judge-judge"]["success"]["raters"] == 1
    assert found["table"]["human-judge"]["semantic_mismatch"]["raters"] == 2


def test_answers_of_no_case_are_mentioned(run, sifm):
    sifm("consistency", run, "--samples", 4, "--sheet", "sheet")
    text = Path("sheet/annotations.csv").read_text(encoding="utf-8")
    first = text.splitlines()[1].split(",")[0]
    filled = text.replace(",,,,", ",anna,no,no,").replace(first, "1.2E+15", 1)
    Path("anna.csv").write_text(filled, encoding="utf-8")
    code, _, err = sifm("consistency", run, "--human", "anna.csv")
    assert code == 0 and "1 answered cases are of no edit of run, such as 1.2E+15" in err


def test_consistency_says_what_is_missing(run, sifm):
    code, _, err = sifm("consistency", run, "--human", "nobody.csv")
    assert code == 2 and "nobody.csv" in err
    Path("other.csv").write_text("case,annotator,semantic_mismatch,perceptual_degradation\nabc,a,yes,no\n")
    code, _, err = sifm("consistency", run, "--human", "other.csv")
    assert code == 2 and "expected edits that these files have answers for" in err
    with Store("empty"):
        pass
    assert "expected records with edits" in sifm("consistency", "empty")[2]
    assert "run.sqlite" in sifm("consistency", "nowhere")[2]


def test_calibrate_prints_and_keeps(run, sifm, monkeypatch):
    monkeypatch.setattr(calibrate, "load_editor", lambda *_: ToyEditor())
    words = ["calibrate", "--judge", TRUTH, "--images", 2, "--run", run]
    code, out, err = sifm(*words)
    assert code == 0, err
    assert f"{TRUTH} on 8 gold controls: finds 100%" in out and "says failed of noise" in out
    code, out, _ = sifm(*words, "--json")
    assert [one["judge"] for one in json.loads(out)] == [TRUTH]
    with Store("run/store", create=False) as store:
        assert kept(store, [TRUTH])[TRUTH].n == 8
    code, out, err = sifm(*words, "--judge", "miniature:conv", "--stability")
    assert code == 0 and "success                  asked again, the same: 100% (8/8, 95% " in out, err
    assert "asked again, it says the same of 100% (8/8" in out.splitlines()[0]


def test_calibrate_asks_a_runs_own_judges_about_the_editor_that_it_attacks(run, sifm, monkeypatch):
    loaded = []
    monkeypatch.setattr(calibrate, "load_editor", lambda name, *_: loaded.append(name) or ToyEditor())
    with Store("run/store", create=False) as store:
        kept_as = store.get("run", "config") or {}
        settings = {"editors": ["miniature-sd3 -> miniature-hq-edit"], "judges": ["miniature:patch", TRUTH]}
        store.put("run", "config", kept_as | {"settings": settings})
    code, out, err = sifm("calibrate", "--images", 2, "--run", run)
    assert (code, loaded) == (0, ["miniature-hq-edit"]) and "though" not in err, err
    assert out.startswith("miniature:patch on 8 gold controls") and TRUTH not in out
    _, _, err = sifm("calibrate", "--images", 2, "--run", run, "--editor", "miniature-ip2p")
    assert "controls of miniature-ip2p, though the run attacks miniature-hq-edit" in err


@pytest.mark.parametrize("more, times", [((), 1), (("--stability",), 3)])
def test_calibrate_says_what_it_can_cost_before_it_asks(run, sifm, monkeypatch, more, times):
    monkeypatch.setattr(calibrate, "load_editor", lambda *_: ToyEditor())
    monkeypatch.setenv("GEMINI_API_KEY", "k" * 20)
    words = ["calibrate", "--judge", "gemini:gemini-3.8-flash", "--images", 2, "--max-cost", 0, *more]
    _, out, err = sifm(*words)
    dollars = re.search(rf"gemini:gemini-3.8-flash: {8 * times} verdicts, \$ (\d+\.\d\d) at most", err)
    each = 2 * 8192 * 3.75e-6  # two answers of 8,192 tokens at today's price or more, the questions besides
    assert dollars and float(dollars[1]) > 8 * times * each and "8 unclear" in out


def test_clip_prefers_what_its_scores_say(run, sifm, tmp_path):
    model = tiny_clip.save(tmp_path / "clip")
    for name, seed in (("clean", 0), ("edited", 50)):
        for i in range(4):
            save_png(fakes.images(1, 40, seed + i), f"{name}/{i}.png")
    words = ["clip", "clean", "edited", "--text", "a cat", "--model", model]
    code, out, err = sifm(*words, "-o", "fig3.png", "--json")
    found = json.loads(out)
    assert code == 0, err
    assert found["of"] == 4 and found["prefers_unedited"] == sum(p["prefers_unedited"] for p in found["pairs"])
    assert Pil.open("fig3.png").size[0] == 512
    assert f"CLIP prefers the unedited picture in {found['prefers_unedited']} of 4 pairs" in sifm(*words)[1]
    code, out, _ = sifm("clip", "--run", run, "--model", model, "--json")
    assert code == 0 and {p["text"] for p in json.loads(out)["pairs"]} == {
        f"make it {i}" for i in (1, 5, 9, 13, 17, 21)
    } - {f"make it {i}" for i in range(24) if i % 3 == 0}


def test_clip_without_a_model_or_pictures_says_so(run, sifm):
    save_png(fakes.images(1, 40), "a.png")
    code, out, err = sifm("clip", "a.png", "a.png", "--text", "a cat", "--model", "nowhere", "-o", "fig3.png")
    assert code == 1 and "no CLIP model at nowhere" in err and out == "" and not Path("fig3.png").exists()
    assert "expected UNEDITED EDITED --text TEXT" in sifm("clip", "a.png")[2]
