"""The report: its figures are those of isr(), its page needs nothing else, its pictures are the store's."""

from __future__ import annotations

import base64
import csv
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Pil

from sifm_core import bench, miniature, report
from sifm_core.bench import config
from sifm_core.images import to_uint8
from sifm_core.isr import isr
from sifm_core.report.compare import runs
from sifm_core.report.page import MAX_SIDE
from sifm_core.report.table import Line, auc
from sifm_core.report.text import as_csv, latex, markdown
from sifm_core.stats import mcnemar
from sifm_core.store import Store
from sifm_core.types import Metric, Record, Verdict
from test_bench import toy_grid
from toy import samples


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("run"))
    grid = toy_grid()
    return bench.run(grid, store), store, bench.provenance(grid) | {"seconds": 12.5}


def record(
    method: str, image: str, *said: bool | None, protection: str = "", truth: bool | None = None, **also
) -> Record:
    """A record whose judges say: failed, works or nothing."""
    verdicts = [
        Verdict(f"j{i}", "refused" if s is None else "ok", s, None if s is None else False) for i, s in enumerate(said)
    ]
    if truth is not None:
        verdicts.append(Verdict(report.TRUTH, "ok", truth, None))
    row = (image, "", "night", "original", "toy", method, 0, 0.03, "s", "p", "e")
    made = Record(f"{method}-{image}", *row, verdicts=tuple(verdicts), info={"protection": protection})
    return replace(made, **also)


HOW = {"clean": "", "noise": "random_noise"}


def records_of(**rows: list[tuple[bool | None, ...]]) -> list[Record]:
    return [
        record(method, str(i), *said, protection=HOW.get(method, "sifm"))
        for method, answers in rows.items()
        for i, said in enumerate(answers)
    ]


def table(**rows: list[tuple[bool | None, ...]]) -> tuple[Line, ...]:
    return report.make(records_of(**rows), {}).parts[0].lines


def test_the_table_is_isr_by_strict_agreement_with_the_clean_floor():
    clean, sifm = table(
        clean=[(False, False), (True, True), (False, False), (False, False)],
        sifm=[(True, True), (True, True), (True, False), (True, None)],
    )
    assert (clean.kind, sifm.kind) == ("floor", "method")
    assert (clean.isr.rate, clean.isr.net) == (0.25, None)
    expected = isr([True, True, False, None], clean=[False, True, False, False], clusters=range(4))
    assert sifm.isr == expected and sifm.isr.unclear == 1 and sifm.isr.pairs == 3
    assert sifm.judges["j0"].rate == 1.0 and sifm.judges["j1"].rate == pytest.approx(2 / 3)


def test_intervals_are_by_picture():
    one = [record("sifm", str(i % 2), i % 2 == 0, protection="sifm", prompt=f"p{i}") for i in range(20)]
    rate = report.make(one, {}).parts[0].lines[0].isr
    assert rate == isr([i % 2 == 0 for i in range(20)], clusters=[i % 2 for i in range(20)])
    assert (rate.low or 0) < 0.1  # twenty edits of two pictures are two observations


def test_the_ground_truth_is_shown_and_has_no_say():
    records = [record("clean", "0", False, truth=True), record("sifm", "0", True, protection="sifm", truth=False)]
    clean, sifm = report.make(records, {}).parts[0].lines
    assert (clean.isr.rate, clean.truth.rate) == (0.0, 1.0)
    assert (sifm.isr.rate, sifm.truth.rate) == (1.0, 0.0)
    assert report.TRUTH not in clean.judges


W, F = (False, False), (True, True)


@pytest.mark.parametrize(
    "rows, said",
    [
        ({"clean": [W] * 4, "noise": [W] * 4, "sifm": [F, F, F, W]}, "sifm made 3 of 4 edits fail"),
        ({"clean": [W] * 4, "noise": [F, F, W, W], "sifm": [F, F, W, W]}, "nothing is shown"),
        ({"clean": [W] * 4, "sifm": [F] * 4}, "No control was run"),
        ({"clean": [W] * 4, "noise": [F] * 4}, "nothing can be said"),
        ({"clean": [(None,)] * 2, "noise": [(None,)] * 2, "sifm": [(None,)] * 2}, "nothing can be said"),
        ({"clean": [F] * 2, "noise": [F] * 2, "sifm": [F] * 2}, "sifm made 0 of 2"),
    ],
)
def test_the_headline_says_no_more_than_the_table(rows, said):
    assert said in report.make(records_of(**rows), {}).headline


# ---- the paper's layout


def plan(**changes) -> config.Plan:
    return replace(config.load("table3"), **changes)


def two_blocks() -> list[Record]:
    rng = np.random.default_rng(0)
    made = []
    for method, chance in (("clean", 0.1), ("pixel noise", 0.2), ("PhotoGE", 0.3), ("SIFM", 0.9)):
        for i in range(30):
            for kind in ("original", "unseen"):
                metrics = {"psnr": Metric(20 * (1 - chance) + rng.random(), "psnr")} if method != "clean" else {}
                said = bool(rng.random() < chance)
                protection = {"clean": "", "pixel noise": "random_noise"}.get(method, "sifm")
                also = {"prompt_kind": kind, "prompt": kind, "metrics": metrics}
                made.append(record(method, str(i), said, said, protection=protection, **also))
    return made


def test_blocks_marks_tests_and_the_papers_figures():
    found = report.make(two_blocks(), {}, plan())
    assert [part.title for part in found.parts] == ["Original prompt", "Unseen prompts"]
    first, second = found.parts
    assert first.marks["isr"] == first.marks["psnr"] == {"SIFM": "best", "PhotoGE": "second"}
    assert first.paper["SIFM"]["isr"] == 0.83 and second.paper["SIFM"]["isr"] == 0.68
    assert first.line("clean").p is None and first.line("SIFM").p is None
    ours, theirs = (
        [r.verdicts[0].success for r in two_blocks() if (r.method, r.prompt_kind) == (m, "original")]
        for m in ("SIFM", "PhotoGE")
    )
    p = mcnemar(ours, theirs).p
    assert p <= first.line("PhotoGE").p <= 2 * p < 0.05  # Holm over two tests
    text = markdown(found)
    assert "(83%)" in text and "(68%)" in text and "†" in text and "Table III, arXiv" in text
    written = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert len(written) == 2 * 4 * 6
    row = next(r for r in written if (r["block"], r["method"], r["column"]) == ("Unseen prompts", "SIFM", "psnr"))
    assert float(row["low"]) < float(row["value"]) < float(row["high"]) and row["paper"] == "15.11"


def test_equals_share_a_mark():
    found = report.make(records_of(clean=[W, W], noise=[W, W], mist=[F, W], sifm=[W, F]), {})
    assert found.parts[0].marks["isr"] == {"mist": "best", "sifm": "best"}


def test_latex_compiles_in_shape():
    text = latex(report.make(two_blocks(), {}, plan()))
    rows = [line for line in text.splitlines() if line.startswith(("clean", "SIFM", "PhotoGE"))]
    assert len(rows) == 3 and all(row.count("&") == 16 for row in rows)
    assert text.count("{") == text.count("}") and not re.search(r"(?<!\\)%(?! )", "\n".join(rows))
    assert "\\textbf{" in text and "{\\tiny (83\\%)}" in text and "\\downarrow" in text


def test_the_papers_figures_stand_at_no_preprocessed_block():
    changed = [replace(r, info=r.info | {"purifier": "jpeg:50"}) for r in two_blocks()]
    found = report.make([*two_blocks(), *changed], {}, plan())
    assert [bool(part.paper) for part in found.parts] == [True, True, False, False]


def test_a_purified_attack_is_paired_with_the_purified_clean_one():
    changed = [
        replace(record("clean", "0", True), info={"protection": "", "purifier": "jpeg:50"}),
        replace(record("sifm", "0", True, protection="sifm"), info={"protection": "sifm", "purifier": "jpeg:50"}),
    ]
    found = report.make([record("clean", "0", False), record("sifm", "0", True, protection="sifm"), *changed], {})
    assert [part.line("sifm").isr.net for part in found.parts] == [1.0, 0.0]


def test_auc_is_the_share_of_pairs():
    assert auc([(1, False), (2, True), (3, True)]) == 1.0
    assert auc([(2, False), (2, True)]) == 0.5
    assert auc([(3, False), (1, True), (4, True)]) == 0.5
    assert auc([(1, True)]) is None


def test_predictors_agreement_and_curves():
    found = report.make(two_blocks(), {}, plan(layout=config.Layout(kind="predictors")))
    assert [p.metric for p in found.predictors] == ["psnr"] and found.predictors[0].auc > 0.6
    said = {(a.axis, a.one, a.two): a for a in found.agreements}
    assert said["success", "j0", "j1"].alike == 1.0 and said["success", "j0", "j1"].n == 240
    swept = [
        replace(r, info=r.info | {"options": {"lam": lam}}, method=f"{lam}")
        for r in two_blocks()
        if r.method == "SIFM"
        for lam in (0.1, 10.0)
    ]
    found = report.make([r for r in two_blocks() if r.method == "clean"] + swept, {}, config.load("table7"))
    assert [at for at, _ in found.curves["sifm"]] == ["0.1", "10"]
    drawn = report.page(found, Store.__new__(Store), 0)
    assert drawn.count("<circle") == 2 and "ISR by lam" in drawn


def test_two_runs_are_compared_on_what_both_have(tmp_path):
    stores = [Store(tmp_path / name) for name in ("one", "two")]
    for store, said in zip(stores, ([W, W, W, F], [F, F, F]), strict=True):
        for r in records_of(sifm=said):
            store.put_record(r)
        store.put("run", "config", config.load("table3", steps=len(said)).as_dict())
    found = runs(*((store, config.Layout()) for store in stores))
    assert found.settings == {"settings.steps": (4, 3)}
    change = found.changes[0]
    assert (change.row, change.pairs, change.one, change.two, change.difference) == ("sifm", 3, 0.0, 1.0, 1.0)


# ---- the page


def page_of(records, store, provenance) -> str:
    return report.page(report.make(records, provenance), store)


def test_the_page_needs_nothing_else_and_has_everything(run):
    records, store, provenance = run
    page = page_of(records, store, provenance)
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)[^"']*|@import|url\(""", page)
    for text in ("Net ISR", "another seed", "toy:a", "ssim:wang2004", "f" * 64, "12.5", "edit failed", "mean 0."):
        assert text in page
    for sample in samples(3):
        assert f"“{sample.prompt}”" in page
    assert page.count("<polyline") >= 4  # PhotoGE and SIFM, loss and more, two batches each
    assert miniature.EVIDENCE not in page  # a toy is no miniature


def test_prompts_and_reasons_are_text_not_markup(run):
    records, store, provenance = run
    evil = "<script>alert(1)</script>"
    verdict = replace(records[0].verdicts[0], reasons=evil)
    page = page_of([replace(records[0], prompt=evil, verdicts=(verdict,))], store, provenance)
    assert evil not in page and "&lt;script&gt;" in page


def test_failures_and_missing_values_are_said(run):
    records, store, provenance = run
    broken = replace(records[4], edited="", verdicts=(), info=records[4].info | {"failed": "edit: out of memory"})
    page = page_of([*records[:4], broken], store, provenance)
    assert "Not everything ran" in page and "no edit: edit: out of memory" in page
    if records[1].metrics["lpips"].value is None:
        assert records[1].metrics["lpips"].reason in page.replace("&#39;", "'")


def test_what_is_not_known_is_null():
    facts = dict(report.make(records_of(clean=[W]), {"commit": None}).facts)
    assert facts["commit"] == facts["hardware"] == facts["seconds of this run"] == "null"


def test_the_miniature_is_never_shown_without_what_it_is_evidence_for(run):
    records, store, provenance = run
    found = report.make([replace(r, editor="miniature-ip2p") for r in records], provenance)
    assert miniature.EVIDENCE in report.page(found, store)
    assert miniature.EVIDENCE in markdown(found)


def test_markdown_has_all_rows_in_all_tables(run):
    records, _, provenance = run
    text = markdown(report.make(records, provenance))
    assert all(sum(line.startswith(f"| {r.method} |") for line in text.splitlines()) == 3 for r in records)


def test_large_pictures_are_shown_small(tmp_path):
    store, grid = Store(tmp_path), toy_grid(samples=samples(1, 800), rows=toy_grid().rows[:1])
    page = page_of(bench.run(grid, store), store, {})
    for encoded in re.findall(r'src="data:image/png;base64,([^"]+)"', page):
        assert max(Pil.open(io.BytesIO(base64.b64decode(encoded))).size) <= MAX_SIDE
    assert 'class="pixelated"' not in page


def test_a_picture_that_is_gone_costs_its_place_only(run, tmp_path):
    records, _, provenance = run
    empty = Store(tmp_path)
    assert "edit failed" in page_of(records, empty, provenance)
    assert report.grid(records, empty)


def test_the_grid_has_a_line_per_picture_and_frames_what_failed(run):
    records, store, _ = run
    sheet = np.asarray(Pil.open(io.BytesIO(report.grid(records, store, side=96))))
    assert sheet.shape[1] > 6 * 96 and sheet.shape[0] > 3 * 96
    source = to_uint8(store.get_image(records[0].source)).repeat(2, 0).repeat(2, 1)
    assert (sheet[28 : 28 + 96, 10 : 10 + 96] == source).all()
    frames = (sheet == (0x4B, 0x3F, 0xAE)).all(axis=-1).any()
    assert frames == any(report.answer(r) for r in records)


def test_nothing_at_all_is_no_crash(tmp_path):
    store = Store(tmp_path)
    assert "nothing can be said" in page_of([], store, {})
    assert report.grid([], store)
    assert report.make([], {}).parts == []
