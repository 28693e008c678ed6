"""`sifm bench` and `sifm data`: from a TOML file to the report, resumed, retried, judged again, compared."""

from __future__ import annotations

import base64
import csv
import json
import os
import shutil
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny_clip
from sifm_core import cli
from sifm_core.bench import config
from sifm_core.bench.estimate import estimate
from sifm_core.errors import InputError
from sifm_core.judges import calibration, load_judge
from sifm_core.judges.scores import parted, score
from sifm_core.metrics import clip_score
from sifm_core.store import Store
from sifm_core.types import Case, Verdict
from toy import ToyEditor, ToyJudge

GRID = """
title = "A small one"
rows = ["clean", "blocks 8 px", "PhotoGE",
    { name = "grey {eps}", method = "photoguard_encoder", sweep = { eps = [0.01] } },
    { name = "other", method = "photoguard_encoder", loop = { steps = 3 } }]

[grid]
editors = ["toy"]
judges = ["toy:a", "toy:b"]
images = 2
unseen = 1
steps = 2
"""


@pytest.fixture
def sifm(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(GRID)
    monkeypatch.setattr("sifm_core.bench.work.load_editor", lambda name, **options: ToyEditor())
    monkeypatch.setattr(
        "sifm_core.bench.work.load_judge", lambda spec: ToyJudge(spec, 0.5 if spec[-1] == "a" else 0.55)
    )
    monkeypatch.setattr("sifm_core.bench.work._loaded", OrderedDict())

    def run(*words: object, code: int = 0) -> object:
        assert cli.main([str(word) for word in words]) == code, capsys.readouterr().err
        out, err = capsys.readouterr()
        return json.loads(out) if "--json" in words else out + err

    return run


def test_rows_that_end_at_the_same_picture_share_its_edits_and_nothing_is_left(sifm):
    noise = 'method = "random_noise", loop = { eps = %s }'
    rows = f'rows = ["clean", {{ name = "a", {noise % 0.0101} }}, {{ name = "b", {noise % 0.0102} }}]\n'
    Path("same.toml").write_text('title = "Equal"\n' + rows + GRID[GRID.index("[grid]") :])
    sifm("bench", "run", "same.toml", "--out", "run")
    found = sifm("bench", "status", "run", "--json")
    assert found["records"] == 12 and found["done"]["edit"] == 8
    assert found["done"].items() <= found["total"].items() and found["seconds_left"] == 0


def test_a_verdict_that_is_missing_is_said_and_the_same_command_asks_again(sifm, monkeypatch):
    away = True

    class Elsewhere(ToyJudge):
        def judge(self, cases, *, on_step=None):
            verdicts = super().judge(cases, on_step=on_step)
            lost = Verdict(self.name, "unreachable", reasons="HTTP 503: the moon is full")
            return [lost, *verdicts[1:]] if away else verdicts

    monkeypatch.setattr("sifm_core.bench.work.load_judge", lambda spec: Elsewhere(spec, 0.5))
    words = ("bench", "run", "small.toml", "--out", "run")
    said = sifm(*words, code=1)
    assert "verdicts are missing, the first of toy:" in said and "HTTP 503: the moon is full" in said
    away = False
    assert "missing" not in sifm(*words)


def test_from_a_file_to_the_report_and_on(sifm):
    said = sifm("bench", "run", "small.toml", "--out", "run", "--dry-run").split()
    assert said[said.index("immunize") + 1] == "8" and said[said.index("edit") + 1] == "20" and not Path("run").exists()
    done = sifm("bench", "run", "small.toml", "--out", "run", "--judge", "none", "--json")
    assert done["records"] == done["total"]["records"] == 20 and done["failed"] == {}
    assert set(done["files"]) <= {p.name for p in Path("run").iterdir()}
    judged = sifm("bench", "run", "run", "--judge", "toy:a", "--judge", "toy:b", "--json")
    assert judged["done"] == {"immunize": 8, "edit": 20, "measure": 24, "judge": 40}
    found = sifm("bench", "status", "run", "--json")
    assert found == {k: v for k, v in judged.items() if k not in ("folder", "files", "headline")}
    assert found["seconds_left"] == 0 and found["not_timed"] == []
    assert "20 of 20 records" in sifm("bench", "status", "run") and "left" not in sifm("bench", "status", "run")
    sifm("bench", "export", "run", "all.csv")
    assert len(list(csv.DictReader(Path("all.csv").read_text().splitlines()))) == 20
    sifm("bench", "report", "run", "--out", "again")
    assert Path("again/report.csv").read_text() == Path("run/report.csv").read_text()
    known = sifm("bench", "run", "run", "--dry-run", "--json")["phases"]
    assert [line["basis"] for line in known if line["jobs"]] == ["measured in this run"] * 4
    sifm("bench", "run", "small.toml", "--out", "other", "--steps", 3, "--judge", "toy:a")
    compared = sifm("bench", "diff", "run", "other", "--json")
    assert compared["settings"]["settings.steps"] == [2, 3] and compared["changes"][0]["pairs"] == 4
    said = sifm("bench", "diff", "run", "other")
    assert "grey 0.01" in said and said.startswith("one: run, two: other; ISR on the attacks that both have")
    together = sifm("bench", "report", "run", "other", "--out", "both", "--json")
    assert together["files"] == ["report.csv", "report.html", "report.md", "report.tex"]
    assert len(list(csv.DictReader(Path("both/report.csv").read_text().splitlines()))) > 2 * 20
    assert "--out" in sifm("bench", "report", "run", "other", code=2)
    assert "another --out" in sifm("bench", "run", "table3", "--out", "run", code=2)


def test_fig3_scores_the_clean_edits_that_work_or_says_why_not(sifm, tmp_path):
    words = ["bench", "run", "fig3", "--out", "run", "--editor", "toy", "--judge", "toy:a", "--images", 3]
    said = sifm(*words, "--clip", "nowhere")
    table = list(csv.DictReader(Path("run/clip.csv").read_text().splitlines()))
    assert "no CLIP score: unavailable: no CLIP model at nowhere" in said and not Path("run/clip.png").exists()
    assert table and all(row["unedited"] == row["edited"] == "" and "nowhere" in row["reason"] for row in table)
    page = Path("run/report.html").read_text()
    assert "No CLIP score: unavailable: no CLIP model at nowhere" in page and "CLIP prefers</th>" not in page
    folder = tiny_clip.save(tmp_path / "clip")
    done = sifm("bench", "run", "run", "--clip", folder, "--json")
    scored = list(csv.DictReader(Path("run/clip.csv").read_text().splitlines()))
    wins = sum(float(row["unedited"]) > float(row["edited"]) for row in scored)
    assert f"CLIP prefers the unedited picture in {wins} of {len(table)} pairs" in done["headline"]
    assert [row["prompt"] for row in scored] == [row["prompt"] for row in table] and "clip.png" in done["files"]
    page, said = Path("run/report.html").read_text(), f"in {wins} of {len(table)} pairs"
    assert base64.b64encode(Path("run/clip.png").read_bytes()).decode() in page and str(folder) in page
    kept = Path("run/clip.csv").read_text()
    shutil.rmtree(folder)
    clip_score._load.cache_clear()
    assert "stay" in sifm("bench", "report", "run"), "without that CLIP nothing is known, and nothing is lost"
    assert Path("run/clip.csv").read_text() == kept
    for text in (page, Path("run/report.html").read_text(), Path("run/report.md").read_text()):
        assert said in text and all(
            f"{float(row[name]):.4f}" in text for row in scored for name in ("unedited", "edited")
        )


def test_the_remaining_time_is_that_of_what_was_timed(sifm, monkeypatch):
    put = Store.put

    def interrupted(what: str, after: int, *words: str) -> None:
        left = iter(range(after))

        def interrupting(self, kind, *rest):
            if kind == what and next(left, None) is None:
                raise KeyboardInterrupt
            put(self, kind, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(Store, "put", interrupting)
            sifm("bench", "run", *words, code=130)

    interrupted("immunize", 4, "small.toml", "--out", "run")
    store = Store("run", create=False)
    rate, found = store.get("rate", "immunize"), sifm("bench", "status", "run", "--json")
    assert found["done"]["immunize"] == 4, "noise, and two pictures of 2 iterations"
    slower = (2 + 3) / 2  # what is left: two pictures of 2 iterations and two of 3
    assert found["seconds_left"] == pytest.approx(slower * rate["seconds"], rel=0.01)
    interrupted("edit", 7, "run")
    rate = store.get("rate", "edit")
    found = sifm("bench", "status", "run", "--json")
    assert found["done"] == {"immunize": 8, "edit": 4, "measure": 0, "judge": 0}, "batches are kept whole"
    assert found["seconds_left"] == pytest.approx(16 * rate["seconds"] / rate["units"])
    assert found["not_timed"] == ["measure", "judge"]
    said = sifm("bench", "status", "run")
    assert "left: at most" in said and "on one worker" in said and "and measure and judge, not timed yet" in said
    store.remove("rate", "edit")
    assert "left: not known" in sifm("bench", "status", "run")
    sifm("bench", "run", "run")
    interrupted("verdict", 9, "run", "--judge", "toy:a", "--judge", "toy:other")
    found = sifm("bench", "status", "run", "--json")
    assert found["done"]["judge"] == 28 and found["total"]["judge"] == 40, "other judges' verdicts are not these"


def test_failures_are_said_kept_and_retried(sifm, monkeypatch):
    right = ToyEditor.encode

    def broken(self, x):
        raise RuntimeError("lamp broken")

    monkeypatch.setattr(ToyEditor, "encode", broken)
    assert "lamp broken" in sifm("bench", "run", "small.toml", "--out", "run", code=1)
    assert sum(sifm("bench", "status", "run", "--json")["failed"].values()) == 6
    monkeypatch.setattr(ToyEditor, "encode", right)
    said = sifm("bench", "run", "small.toml", "--out", "run", code=1)  # not by itself
    assert "6 jobs failed: immunize: RuntimeError: lamp broken; `sifm bench retry run` tries again" in said
    monkeypatch.setattr(ToyEditor, "encode", broken)
    said = sifm("bench", "retry", "run", code=1)
    assert "again    6: immunize: RuntimeError: lamp broken" in said and "6 jobs failed" in said
    monkeypatch.setattr(ToyEditor, "encode", right)
    done = sifm("bench", "retry", "run", "--json")
    assert done["failed"] == {} and done["done"]["immunize"] == 8
    assert "lamp broken" not in Path("run/report.html").read_text()


def test_data_commands(sifm):
    sifm("data", "miniature", "--out", "files", "--images", 2)
    assert "2 pictures (1 landscape, 1 portrait), sound" in sifm("data", "check", "files/manifest.jsonl")
    done = sifm("bench", "run", "small.toml", "--out", "run", "--data", "files/manifest.jsonl", "--json")
    assert done["records"] == 20
    Path("files/manifest.jsonl").write_text("{}")
    assert "expected an object with id" in sifm("data", "check", "files/manifest.jsonl", code=2)


# ---- the demo

DEMO = ("demo", "--out", "run", "--images", 2, "--steps", 2, "--judge", "toy:a", "--judge", "toy:b")


def test_the_demo_is_a_run_like_any_other_and_a_second_one_the_same(sifm):
    first = sifm(*DEMO, "--json")
    assert {"report.html", "report.md", "grid.png"} <= {path.name for path in Path("run").iterdir()}
    assert [line["name"] for line in first["table"]][:2] == ["clean", "another seed"]
    assert [line["name"] for line in first["table"]][-2:] == ["SIFM", "SIFM+"] and first["table"][-1]["isr"]["n"] == 2
    page = Path("run/report.html").read_text()
    assert sifm(*DEMO, "--json")["table"] == first["table"]
    rows = [[line for line in text.splitlines() if "seconds of this run" not in line] for text in (page, _page())]
    assert rows[0] == rows[1]
    assert sifm("bench", "status", "run", "--json")["records"] == 18
    sifm("bench", "report", "run")
    assert "the same settings" in sifm("bench", "diff", "run", "run")


def _page() -> str:
    return Path("run/report.html").read_text()


def test_the_demo_prints_the_table_in_80_columns(sifm):
    text = sifm(*DEMO)
    assert "blocks 16 px" in text and "run/report.html" in text
    assert max(map(len, text.splitlines()[:12])) <= 80


def test_a_demo_that_fails_in_part_reports_the_rest_and_exits_1(sifm, monkeypatch):
    def broken(self, *arguments):
        raise RuntimeError("no memory\nleft")

    monkeypatch.setattr(ToyEditor, "denoise", broken)
    assert "no memory" in sifm(*DEMO, code=1) and "no memory" in _page()


@pytest.mark.parametrize("escape", ["\x1b]0;owned\x07", "\x9b31m", "\u202e", "\x1b[2J"])
def test_no_name_and_no_judges_word_reaches_a_terminal_as_an_escape(sifm, escape):
    odd = GRID.replace('"other"', json.dumps(f"other{escape}")).replace('"A small one"', json.dumps(f"small {escape}"))
    Path("odd.toml").write_text(odd)
    said = sifm("bench", "run", "odd.toml", "--out", "run")
    with Store("run", create=False) as store:
        record = next(r for r in store.records() if "other" in r.method)
        assert escape in record.method, "it came as far as the run"
    for words in (("report", "run"), ("diff", "run", "run"), ("status", "run"), ("retry", "run")):
        said += sifm("bench", *words)
    assert "other" in said and not set(escape) & {"\x1b", "\x07", "\x9b", "\u202e"} & set(said)
    assert ascii(escape[0])[1:-1] in said, "it is shown"


# ---- presets


def test_every_preset_is_sound_in_both_profiles():
    for name in config.names():
        for profile in ("miniature", "paper"):
            plan = config.load(name, profile)
            assert config.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan
            rows = {row.name for row in plan.all_rows()}
            for block in plan.paper.blocks if plan.layout.kind == "table" else ():
                assert block.rows.keys() <= rows and {len(v) for v in block.rows.values()} == {len(plan.paper.columns)}
    assert {"table1", "table7", "fig1", "fig2", "fig3", "fig4", "robustness", "layers", "timesteps", "prompts"} <= set(
        config.names()
    )


def test_the_miniature_grid_of_a_preset():
    grid = config.load("table3", images=2).grid()
    assert len(grid.rows) == 12 and len(grid.samples) == 12
    assert grid.counts() == {
        "immunize": 2 * 10,
        "purify": 0,
        "edit": 12 * 12,
        "measure": 12 * 11 + 20,
        "judge": 3 * 144,
        "records": 144,
    }


def test_a_run_goes_on_where_it_is(sifm):
    sifm("bench", "run", "small.toml", "--out", "run")
    assert "goes on where it is" in sifm("bench", "run", "run", "--steps", 3, "--out", "new", code=2)
    assert not Path("new").exists() and sifm("bench", "status", "run", "--json")["records"] == 20


def test_the_table7_sweep_is_in_the_options():
    rows = {row.name: row.options for row in config.load("table7").all_rows() if row.method == "sifm"}
    assert rows["lambda 0.001"] == {"lam": 0.001} and rows["lambda 1000"] == {"lam": 1000.0} and len(rows) == 7


@pytest.mark.parametrize(
    "text, said",
    [
        ("[grid]\nimage = 3", "did you mean images"),
        ("[grid]\nimages = 'three'", "settings.images"),
        ("titel = 'x'", "did you mean title"),
        ('rows = ["clen"]', "did you mean clean"),
        ('rows = [{ nam = "x" }]', "a table with a name"),
        ('rows = [{ name = "x", optoins = {} }]', "did you mean options"),
        ("[layout]\nkind = 'tabel'", "layout.kind"),
        ("[layout]\ncolumns = ['psnr', 'fsim_c']", "column in .*did you mean fsim"),
        ("= 3", "expected a benchmark in TOML"),
        ("[profiles.big]", "did you mean|known: big"),
    ],
)
def test_a_wrong_file_is_refused_with_the_word(tmp_path, text, said):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(InputError, match=said):
        config.load(tmp_path / "x.toml")


def test_a_swept_setting_of_the_loop_goes_to_the_loop(tmp_path):
    swept = 'sweep = { ball = ["linf", "l2"], lam = [1.0] }'
    (tmp_path / "x.toml").write_text(f'rows = ["clean", {{ name = "{{ball}}", method = "sifm", {swept} }}]')
    _, one, two = config.load(tmp_path / "x.toml").grid().rows
    assert (one.loop, two.loop, one.options) == ({"ball": "linf"}, {"ball": "l2"}, {"lam": 1.0})


def test_the_papers_figures_stand_beside_its_own_editors_only():
    """In the order of its blocks; a folder or a hub id may hold the very model."""
    assert config.load("table6").paper.blocks and config.load("table6", "paper").paper.blocks
    assert not config.load("table6", editors=["miniature-ip2p"]).paper.blocks
    assert not config.load("table5", editors=["miniature-sd3 -> miniature-ip2p"]).paper.blocks
    assert config.load("table6", "paper", editors=["models/sd3"]).paper.blocks
    kept = config.load("table6")
    assert config.changed(kept, editors=kept.settings.editors, steps=3).paper.blocks
    assert not config.changed(kept, editors=["miniature-hq-edit"]).paper.source


def test_an_unknown_preset_names_near_ones():
    with pytest.raises(InputError, match="did you mean table"):
        config.load("tabel3")
    with pytest.raises(InputError, match="unseen: expected 0 or more"):
        config.load("table3", unseen=-1).grid()


def test_the_estimate_counts_operations_and_money(tmp_path, monkeypatch):
    from sifm_core.data import build

    build.miniature(tmp_path, 2)
    plan = config.load("table3", "paper", data=str(tmp_path / "manifest.jsonl"), unseen=0)
    unknown, known = (estimate(plan, tflops=speed) for speed in (None, 100.0))
    assert [line.seconds for line in unknown if line.jobs] == [None] * 4
    lines = {line.phase: line for line in known}
    assert lines["edit"].seconds == pytest.approx(2 * 12 * 100 * 3 * 0.80 / 100)
    assert lines["judge"].jobs == 2 * 12 * 2 and lines["judge"].dollars > 0
    case = Case(torch.rand(3, 64, 64), torch.rand(3, 64, 64), "make it night")
    reserved = 0.0
    for model in ("gemini-2.5-pro", "gemini-2.5-flash"):
        monkeypatch.setenv("GEMINI_API_KEY", "none")
        judge = load_judge(f"gemini:{model}")
        reserved += sum(judge._at_most(question.parts(case)) for question in judge.questions)
    assert plan.settings.judges == ("gemini:gemini-2.5-pro", "gemini:gemini-2.5-flash")
    assert reserved <= lines["judge"].dollars / (2 * 12) < 1.01 * reserved
    versions = tuple(f"{name}-002" for name in plan.settings.judges)
    assert estimate(config.changed(plan, judges=versions))[-1].dollars == lines["judge"].dollars
    assert estimate(config.changed(plan, judges=("gemni:gemini-2.5-pro",)))[-1].dollars is None, "not free"
    one = {line.phase: line for line in estimate(plan, preset="paper")}
    assert one["judge"].dollars < 0.6 * lines["judge"].dollars
    twice = {line.phase: line for line in estimate(plan, tflops=200.0)}
    assert 0 < twice["immunize"].seconds == pytest.approx(lines["immunize"].seconds / 2)


def test_the_estimate_takes_from_a_run_what_says_something_about_this_one(tmp_path):
    """Judges elsewhere are timed as "ask"; a picture of a pilot with fewer steps says nothing of a whole one."""
    plan = config.load("table3", images=2, steps=50)
    with Store(tmp_path) as store:
        store.put("run", "plan", {"steps": 50})
        for phase, each in (("immunize", 7.0), ("judge", 1.0), ("ask", 3.0)):
            store.put("rate", phase, {"units": 2.0, "seconds": 2 * each, "left": None})
        lines = {line.phase: line for line in estimate(plan, store)}
        assert lines["judge"].seconds == pytest.approx(3 * lines["judge"].jobs)
        assert lines["immunize"].basis == "measured in this run" and lines["edit"].seconds is None
        lines = {line.phase: line for line in estimate(config.changed(plan, steps=5), store)}
        assert lines["immunize"].seconds is None and lines["judge"].seconds


# ---- what a shared file may do, and absurd ones


SHARED = {
    "a name outside": ('name = "../../x"', "name: expected the name of a folder"),
    "an absolute name": ('name = "/tmp/x"', "name: expected the name of a folder"),
    "a name of another system": (r'name = "C:\\x"', "name: expected the name of a folder"),
    "a name without an end": (f'name = "{"x" * 10_000}"', "name: expected the name of a folder"),
    "a hidden name": ('name = ".git"', "name: expected the name of a folder"),
    "a download": ("[grid]\ndownload = true", "give --download"),
    "a profile's download": ("[profiles.miniature]\ndownload = true", "give --download"),
    "pictures of elsewhere": ('[grid]\ndata = "/srv/private/manifest.jsonl"', "give --data"),
    "pictures above": ('[grid]\ndata = "../../manifest.jsonl"', "give --data"),
    "a server of its own": ('[grid]\njudges = ["openai:x@https://evil.example/v1"]', "give --judge"),
    "no batch": ("[grid]\nbatch = 0", "batch: expected a whole number of at least 1"),
    "a huge batch": ("[grid]\nbatch = 1000000", "batch: expected at most"),
    "no steps": ("[grid]\nsteps = 0", "steps"),
    "steps without end": (f"[grid]\nsteps = 1{'0' * 30}", "steps: expected at most"),
    "eps is no number": ("[grid]\neps = nan", "eps"),
    "a negative seed": ("[grid]\nseeds = [-1]", "seed"),
    "seeds of another kind": ("[grid]\nseeds = 3", "settings.seeds"),
    "a grid that is none": ("grid = 3", "expected a table, got 3"),
    "profiles that are none": ("profiles = [1]", "expected a table"),
    "a profile that is none": ('profiles = { miniature = "x" }', "expected a table"),
    "a layout that is none": ('layout = "x"', "expected a table"),
    "rows that are none": ("rows = 3", "expected a list of rows"),
    "a row that is none": ("rows = [[1]]", "expected a name or a table"),
    "braces of a class": ('rows = ["clean", { name = "{eps.__class__}", sweep = { eps = [0.1] } }]', None),
    "braces that are wide": (
        'rows = ["clean", { name = "{eps:>2000000000}", method = "sifm", sweep = { eps = [0.1] } }]',
        None,
    ),
    "braces without an end": ('rows = ["clean", { name = "{", method = "sifm" }]', None),
    "braces of nothing": ('rows = ["clean", { name = "{} {0} {other}", method = "sifm" }]', None),
    "a number's spelling for a word": (
        'rows = ["clean", { name = "{layers:g}", method = "sifm", sweep = { layers = ["mid"] } }]',
        "writes numbers, but layers is 'mid'",
    ),
    "a sweep over nothing": (
        'rows = ["clean", { name = "x", method = "sifm", sweep = { eps = [] } }]',
        "at least one value",
    ),
    "an eps of words": ('rows = ["clean", { name = "x", method = "sifm", loop = { eps = "big" } }]', "eps"),
    "a ball that is none": ('rows = ["clean", { name = "x", method = "sifm", loop = { ball = "l3" } }]', "ball"),
    "an update that is none": ('rows = ["clean", { name = "x", method = "sifm", loop = { update = "x" } }]', "update"),
    "an option of another kind": (
        'rows = ["clean", { name = "x", method = "sifm", options = { lam = { a = 1 } } }]',
        "option lam of sifm",
    ),
    "a shift without end": (f'rows = ["clean", {{ name = "x", seed_shift = 1{"0" * 30} }}]', "seed_shift"),
    "figures that are missing": (
        "[paper]\ncolumns = ['psnr', 'isr']\n[[paper.blocks]]\ntitle = 'a'\nrows = { SIFM = [1.0] }",
        "expected 2 figures",
    ),
    "deep": (f"a = {'[' * 100_000}", "expected a benchmark in TOML"),
    "a number without end": (f"a = {'9' * 100_000}", "expected a benchmark in TOML"),
}


@pytest.mark.parametrize(("text", "said"), SHARED.values(), ids=SHARED)
def test_a_shared_file_does_what_its_user_asked_and_no_more(sifm, tmp_path, monkeypatch, capsys, text, said):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    text = text if "rows" in text.partition("[paper]")[0] else f'rows = ["clean", "SIFM"]\n{text}'
    Path("shared.toml").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    code = cli.main(["bench", "run", "shared.toml", "--images", "1", "--dry-run"])
    out, err = capsys.readouterr()
    assert code == (0 if said is None else 2), err
    if said:
        assert said in err and out == "" and len(err.splitlines()) == 1 and len(err) < 1100
    assert sorted(tmp_path.rglob("*")) == before


def test_braces_that_no_sweep_fills_stay_in_a_rows_name():
    spec = config.RowSpec("{lam:g} {lam:.2f} {lam} {other} {lam.real} {0}", "sifm", sweep={"lam": [0.5]})
    assert [row.name for row in spec.rows()] == ["0.5 0.50 0.5 {other} {lam.real} {0}"]


def test_a_sweep_of_sweeps_is_counted_before_it_is_spelt_out(sifm, capsys):
    values = str([float(i) for i in range(1, 301)])
    sweep = ", ".join(f"{name} = {values}" for name in ("lam", "eps", "alpha", "steps"))
    Path("wide.toml").write_text(f'rows = ["clean", {{ name = "x", method = "sifm", sweep = {{ {sweep} }} }}]')
    assert cli.main(["bench", "run", "wide.toml", "--dry-run"]) == 2
    assert "expected at most 10000 rows, but sweeps make 8.1e+09" in capsys.readouterr().err


def test_a_grid_without_end_is_refused_before_it_is_spelt_out(sifm, capsys):
    spec = f'{{ name = "{{lam}}", method = "sifm", sweep = {{ lam = {[float(i) for i in range(1, 202)]} }} }}'
    Path("wide.toml").write_text(f'rows = ["clean", {spec}]')
    assert cli.main(["bench", "run", "wide.toml", "--seeds", "10000", "--dry-run"]) == 2
    assert "at most 1,000,000 records of a picture, but got 2.02e+06" in capsys.readouterr().err


def test_a_rows_loop_takes_every_setting_of_the_loop(sifm):
    Path("adam.toml").write_text(
        'rows = ["clean", { name = "adam", method = "photoguard_encoder", loop = { update = "adam", alpha = 0.01 } }]\n'
        + GRID[GRID.index("[grid]") :]
    )
    sifm("bench", "run", "adam.toml", "--out", "run")
    sifm("bench", "run", "small.toml", "--out", "other")
    with Store("run", create=False) as one, Store("other", create=False) as two:
        changed, plain = ({r.method: r for r in store.records()} for store in (one, two))
    assert changed["adam"].info["loop"]["update"] == "adam" and "failed" not in changed["adam"].info
    assert changed["adam"].protected != plain["PhotoGE"].protected


WRONG = (("--device", "banana"), ("--dtype", "float99"), ("--judge", "foo:bar"), ("--max-cost", "nan"))


@pytest.mark.parametrize(
    "words",
    [
        ("--workers", "-1"),
        ("--workers", "100000"),
        ("--seeds", "1000000000"),
        ("--steps", "1" + "0" * 30),
        ("--images", "-1"),
        ("--unseen", "-1"),
        ("--batch", "0"),
        ("--tflops", "nan", "--dry-run"),
        ("--hourly", "inf", "--dry-run"),
        *((*wrong, "--dry-run") for wrong in WRONG),
        WRONG[-1],
        ("--out", "x" * 300),
    ],
    ids=" ".join,
)
def test_absurd_numbers_are_refused_in_one_sentence(sifm, capsys, words):
    code = cli.main(["bench", "run", "small.toml", *words])
    err = capsys.readouterr().err
    assert code in (1, 2) and (code == 2 or "--out" in words) and len(err.splitlines()) == 1 and len(err) < 1100
    assert "failed:" not in err and not Path("runs").exists()


def test_a_pipe_in_place_of_a_file_is_not_waited_for(sifm, capsys):
    os.mkfifo("pipe.toml"), os.mkfifo("pipe.jsonl"), os.mkfifo("pipe.json")
    for words in (
        ["bench", "run", "pipe.toml"],
        ["bench", "run", "small.toml", "--data", "pipe.jsonl"],
        ["data", "check", "pipe.jsonl"],
        ["data", "csv", "pipe.jsonl", "out.jsonl"],
        ["queue", "pipe.json", "-o", "out"],
    ):
        assert cli.main(words) == 2, words
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_that_was_allowed_to_fetch_asks_again_before_it_fetches(sifm, monkeypatch):
    asked: list[set[bool]] = []
    monkeypatch.setattr(
        "sifm_core.bench.work.load_editor",
        lambda name, **how: asked[-1].add(how["local_files_only"]) or ToyEditor(),
    )
    for words in (
        ["small.toml", "--download", "--out", "run"],
        ["run", "--steps", 3],
        ["run", "--steps", 4, "--download"],
    ):
        monkeypatch.setattr("sifm_core.bench.work._loaded", OrderedDict())
        asked.append(set())
        sifm("bench", "run", *words)
    assert asked == [{False}, {True}, {False}]


def test_an_answer_that_is_no_unicode_costs_no_run_and_no_report(sifm, monkeypatch):
    """Half of a surrogate pair can be written nowhere: it is read escaped, from whatever a judge or an error said."""
    torn = "a\ud800b \udfff"

    class Torn(ToyJudge):
        def judge(self, cases, *, on_step=None):
            return [replace(verdict, reasons=torn, raw=torn, model_served=torn) for verdict in super().judge(cases)]

    def broken(self, x, cond, **settings):
        raise RuntimeError(torn)

    monkeypatch.setattr("sifm_core.bench.work.load_judge", lambda spec: Torn(spec, 0.5))
    words = ["--out", "run", "--json"]
    assert sifm("bench", "run", "small.toml", *words)["records"] == 20
    for command in ("report", "status"):
        sifm("bench", command, "run", "--json")
    assert r"a\ud800b \udfff" in Path("run/report.html").read_text(encoding="utf-8")
    for name in ("all.csv", "all.jsonl"):
        sifm("bench", "export", "run", name)
        assert (r"\ud800b" in Path(name).read_text(encoding="utf-8")) is (name == "all.jsonl"), "which has the reasons"
    sifm("bench", "diff", "run", "run")
    monkeypatch.setattr(ToyEditor, "edit", broken)
    assert r"a\ud800b" in sifm("bench", "run", "small.toml", "--out", "other", code=1)
    assert r"a\ud800b" in sifm("bench", "status", "other") and Path("other/report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text", ["", "prompt\nx\n", "a,b\n1,2\n", "\x00", "prompt,unedited,edited,prefers_unedited\nx,y,z,True\n"]
)
def test_damaged_scores_beside_a_report_are_left_out_of_it(sifm, text):
    sifm("bench", "run", "small.toml", "--out", "run", "--images", 1, "--unseen", 0)
    Path("run/clip.csv").write_text(text)
    Path("run/clip.png").write_text("no picture")
    sifm("bench", "report", "run")
    assert "PhotoGE" in Path("run/report.md").read_text(encoding="utf-8")


class Scorer:
    """Gives an edit a number by how far it is from its source; the threshold is the spec's, after a "#"."""

    asked = 0

    def __init__(self, spec):
        self.name, self.thresholds = spec, parted(spec)[1]

    def judge(self, cases, *, on_step=None):
        Scorer.asked += len(cases)
        said = []
        for case in cases:
            apart = float((case.edited - case.source).abs().mean())
            found = {"success": score(1 - apart, self.thresholds.get("success"))}
            said.append(Verdict(self.name, "error", reasons="no threshold", scores=found).decided({}))
        return said


@pytest.fixture
def scored(sifm, monkeypatch):
    """`sifm` with judges by number and toys, and a world in which clean edits are as asked for."""

    def loaded(spec, **options):
        return Scorer(spec) if spec.startswith("score:") else ToyJudge(spec, 0.6)

    def presumed(kind, case, edited, known, picture):
        return calibration.Gold(kind, replace(case, edited=edited), *known, picture)

    monkeypatch.setattr(calibration, "_edit", presumed)
    monkeypatch.setattr("sifm_core.judges.load_judge", loaded)
    monkeypatch.setattr("sifm_core.bench.work.load_judge", loaded)
    monkeypatch.setattr("sifm_core.cli.shared.load_editor", lambda *_: ToyEditor())
    monkeypatch.setattr(Scorer, "asked", 0)
    return sifm


def test_judges_are_calibrated_before_a_run_asked_by_what_was_found_and_corrected_in_its_report(scored):
    sifm = scored
    words = ["bench", "run", "small.toml", "--out", "run", "--judge", "score:toy:a", "--judge", "toy:b"]
    sifm(*words, "--calibrate")
    assert Scorer.asked == 8 + 20
    with Store("run") as store:
        (spec,) = [spec for spec in store.get("run", "calibrated", dict[str, str]).values() if "#" in spec]
        records = list(store.records())
    assert {v.judge for r in records for v in r.verdicts} == {spec, "toy:b"}
    assert all(v.state == "ok" and v.scores for r in records for v in r.verdicts if v.judge == spec)
    rows = list(csv.DictReader(Path("run/report.csv").read_text().splitlines()))
    known = {(r["method"], r["column"]) for r in rows if r["block"] == "calibration"}
    names = {spec, "toy:b", f"all judges: {spec} + toy:b"}
    assert known == {(name, column) for name in names for column in ("sensitivity", "specificity")}
    page = Path("run/report.md").read_text()
    assert "all judges, corrected" in page and f"{spec} on 8 gold controls: finds" in page
    before = Scorer.asked
    for again in (words, [*words[:2], "run"]):
        sifm(*again, "--calibrate")
    assert Scorer.asked == before, "neither the controls nor the edits are judged again"


def test_a_run_that_was_stopped_after_its_calibration_goes_on_with_it(scored, monkeypatch):
    sifm = scored
    words = ["bench", "run", "small.toml", "--out", "run", "--judge", "score:toy:a", "--calibrate"]
    with monkeypatch.context() as broken:
        broken.setattr("sifm_core.cli.bench.fill", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        sifm(*words, code=130)
    assert Scorer.asked == 8
    done = sifm(*words, "--json")
    assert Scorer.asked == 8 + 20 and done["done"]["judge"] == 20 and done["failed"] == {}


def test_what_the_controls_cost_is_said_before_anything_is_asked(sifm, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    words = [
        "bench",
        "run",
        "small.toml",
        "--out",
        "run",
        "--judge",
        "gemini:gemini-3.8-flash",
        "--judge",
        "human:a.csv",
    ]
    first, *_, last = sifm(*words, "--calibrate", "--dry-run", "--json")["phases"]
    assert (first["phase"], first["jobs"], last["jobs"]) == ("calibrate", 8, 40) and not Path("run").exists()
    assert first["dollars"] == pytest.approx(last["dollars"] * 8 / 20) and "--calibrate" not in repr(last)
    assert sifm(*words, "--dry-run", "--json")["phases"][0]["phase"] == "immunize"
    monkeypatch.setattr("sifm_core.cli.bench._calibrated", stopped)
    assert f"judges: 48 verdicts, $ {first['dollars'] + last['dollars']:.2f} at most" in sifm(
        *words, "--calibrate", code=130
    )
