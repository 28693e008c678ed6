"""The report: its figures are those of isr(), its page needs nothing else, its pictures are the store's."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as Pil

from sifm_core import bench, miniature, report
from sifm_core.images import to_uint8
from sifm_core.isr import isr
from sifm_core.store import Store
from sifm_core.types import Record, Verdict
from tests.test_bench import toy_grid
from tests.toy import samples


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("run"))
    grid = toy_grid()
    return bench.run(grid, store), store, bench.provenance(grid) | {"seconds": 12.5}


def record(method: str, image: str, *said: bool | None, protection: str = "", truth: bool | None = None) -> Record:
    """A record whose judges say: failed, works or nothing."""
    verdicts = [
        Verdict(f"j{i}", "refused" if s is None else "ok", s, None if s is None else False) for i, s in enumerate(said)
    ]
    if truth is not None:
        verdicts.append(Verdict(report.TRUTH, "ok", truth, None))
    info = {"protection": protection}
    row = (image, "", "night", "original", "toy", method, 0, 0.03, "s", "p", "e")
    return Record(f"{method}-{image}", *row, verdicts=tuple(verdicts), info=info)


def table(**rows: list[tuple[bool | None, ...]]) -> list[report.Line]:
    how = {"clean": "", "sifm": "sifm", "noise": "random_noise"}
    cells = [(method, i, said) for method, answers in rows.items() for i, said in enumerate(answers)]
    return report.lines([record(method, str(i), *said, protection=how[method]) for method, i, said in cells])


def test_the_table_is_isr_by_strict_agreement_with_the_clean_floor():
    clean, sifm = table(
        clean=[(False, False), (True, True), (False, False), (False, False)],
        sifm=[(True, True), (True, True), (True, False), (True, None)],
    )
    assert (clean.kind, sifm.kind) == ("floor", "method")
    assert (clean.isr.rate, clean.isr.net) == (0.25, None)
    expected = isr([True, True, False, None], clean=[False, True, False, False])
    assert (sifm.isr.rate, sifm.isr.n, sifm.isr.unclear) == (expected.rate, 3, 1)
    assert (sifm.isr.net, sifm.isr.pairs) == (expected.net, 3)
    assert sifm.judges["j0"].rate == 1.0 and sifm.judges["j1"].rate == pytest.approx(2 / 3)


def test_the_ground_truth_is_shown_and_has_no_say():
    records = [record("clean", "0", False, truth=True), record("sifm", "0", True, protection="sifm", truth=False)]
    clean, sifm = report.lines(records)
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
    assert said in report.headline(table(**rows))


def test_the_page_needs_nothing_else_and_has_everything(run):
    records, store, provenance = run
    page = report.page(records, store, provenance)
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)[^"']*|@import|url\(""", page)
    for text in ("Net ISR", "another seed", "toy:a", "ssim:wang2004", "f" * 64, "12.5", "edit failed", "mean 0."):
        assert text in page
    for sample in samples(3):
        assert f"“{sample.prompt}”" in page
    assert page.count("<polyline") >= 4  # PhotoGE and SIFM, loss and more, two batches each
    assert miniature.EVIDENCE not in page  # a toy is no miniature


def test_the_page_shows_the_pictures_of_the_store(run):
    records, store, provenance = run
    page = report.page(records, store, provenance)
    shown = set()
    for encoded in re.findall(r'src="data:image/png;base64,([^"]+)"', page):
        shown.add(np.asarray(Pil.open(io.BytesIO(base64.b64decode(encoded)))).tobytes())
    for r in records:
        for image in (r.source, r.edited, r.protected):
            assert to_uint8(store.get_image(image)).tobytes() in shown


def test_prompts_and_reasons_are_text_not_markup(run):
    records, store, provenance = run
    evil = "<script>alert(1)</script>"
    verdict = replace(records[0].verdicts[0], reasons=evil)
    page = report.page([replace(records[0], prompt=evil, verdicts=(verdict,))], store, provenance)
    assert evil not in page and "&lt;script&gt;" in page


def test_failures_and_missing_values_are_said(run):
    records, store, provenance = run
    broken = replace(records[4], edited="", verdicts=(), info=records[4].info | {"failed": "edit: out of memory"})
    page = report.page([*records[:4], broken], store, provenance)
    assert "Not everything ran" in page and "no edit: edit: out of memory" in page
    if records[1].metrics["lpips"].value is None:
        assert records[1].metrics["lpips"].reason in page.replace("&#39;", "'")


def test_the_miniature_is_never_shown_without_what_it_is_evidence_for(run):
    records, store, provenance = run
    records = [replace(r, editor="miniature-ip2p") for r in records]
    assert miniature.EVIDENCE in report.page(records, store, provenance)
    assert miniature.EVIDENCE in report.markdown(records, provenance)


def test_markdown_has_all_rows_in_both_tables(run):
    records, _, provenance = run
    text = report.markdown(records, provenance)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 * (2 + len({r.method for r in records}))
    assert all(sum(f"| {r.method} |" in row for row in rows) == 2 for r in records)


def test_large_pictures_are_shown_small(tmp_path):
    store, grid = Store(tmp_path), toy_grid(samples=samples(1, 800))
    records = bench.run(grid, store)
    page = report.page(records, store, bench.provenance(grid))
    for encoded in re.findall(r'src="data:image/png;base64,([^"]+)"', page):
        assert max(Pil.open(io.BytesIO(base64.b64decode(encoded))).size) <= report.MAX_SIDE
    assert 'class="pixelated"' not in page


def test_the_grid_has_a_line_per_picture_and_frames_what_failed(run):
    records, store, _ = run
    sheet = np.asarray(Pil.open(io.BytesIO(report.grid(records, store, side=96))))
    assert sheet.shape[1] > 6 * 96 and sheet.shape[0] > 3 * 96
    source = to_uint8(store.get_image(records[0].source)).repeat(2, 0).repeat(2, 1)
    assert (sheet[28 : 28 + 96, 10 : 10 + 96] == source).all()
    frames = (sheet == (0x4B, 0x3F, 0xAE)).all(axis=-1).any()
    assert frames == any(report.answer(r) for r in records)


def test_nothing_at_all_is_no_crash(tmp_path):
    assert "nothing can be said" in report.page([], Store(tmp_path), {})
    assert report.grid([], Store(tmp_path))
