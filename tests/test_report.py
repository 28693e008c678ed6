"""The report: its figures are those of isr(), its page needs nothing else, its pictures are the store's."""

from __future__ import annotations

import base64
import csv
import io
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image as Pil

from sifm_core import bench, controls, miniature, report
from sifm_core.bench import config
from sifm_core.format import span
from sifm_core.images import to_uint8
from sifm_core.judges.calibration import MAJORITY, UNANIMOUS, Calibration, Rate, calibrate, panel
from sifm_core.rates import isr
from sifm_core.report.cells import corrected, failures, measured, sheets
from sifm_core.report.compare import runs
from sifm_core.report.curves import MEANING, WORDS, stage
from sifm_core.report.document import markdown
from sifm_core.report.drawings import attacks, told_apart
from sifm_core.report.figures import Line
from sifm_core.report.html import MAX_SIDE
from sifm_core.report.text import as_csv, latex, tex
from sifm_core.stats import mcnemar, wilson
from sifm_core.store import Store
from sifm_core.types import Metric, Record, Verdict
from sifm_core.verdicts import consensus
from test_bench import toy_grid
from toy import ToyEditor, ToyJudge, samples


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


FIDELITY = {"protection": "sifm", "fidelity": {"psnr": {"value": 41.5, "definition": "psnr", "reason": ""}}}
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


def test_bars_and_addresses_in_names_do_not_shift_cells():
    found = report.make([record("A|B", "0", True, protection="sifm")], {})
    assert all(line.replace("\\|", "").count("|") == line.count(" | ") + 2 for line in _rows(markdown(found)))
    at = Verdict("openai:llava:7b@http://127.0.0.1:11434/v1", "ok", True, False)
    first, _ = report.terminal(report.make([record("SIFM", "0", verdicts=(at,))], {}).parts[0].lines)
    assert [str(column.header) for column in first.columns][-1] == "llava:7b"


def _rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if "A" in line and line.startswith("|")]


def test_the_command_that_calibrates_asks_about_the_runs_own_pictures(tmp_path):
    given = config.load("table3")
    for data, said in (("miniature", False), ("my own/manifest.jsonl", True)):
        with Store(tmp_path / data[:2]) as store:
            store.put_record(record("SIFM", "0", True, protection="sifm"))
            found = report.build(store, replace(given, settings=replace(given.settings, data=data)))
        assert (
            "--data 'my own/manifest.jsonl'" in found.trust[0]
        ) is said and "sifm calibrate --editor toy" in found.trust[0]


def test_what_could_not_be_protected_took_no_time_that_is_known():
    took = [record("sifm", str(i), False, protection="sifm", seconds={"immunize": 10.0}) for i in range(2)]
    lost = [record("sifm", f"x{i}", protection="sifm", protected="", edited="", seconds={}) for i in range(2)]
    assert report.make(took + lost, {}).parts[0].lines[0].seconds == 10.0
    none = report.make(lost, {})
    assert none.parts[0].lines[0].seconds is None and markdown(none) and as_csv(none)


def test_a_paid_verdict_that_records_share_is_paid_once():
    said = (Verdict("gemini:x", "ok", True, False, cost=0.5),)
    shared = [record("clean", "0", verdicts=said), record("clean", "0", verdicts=said, info={"protected_on": "other"})]
    other = record("clean", "0", verdicts=said, edited="another")
    assert dict(report.make([*shared, other], {}).facts)["judges cost"] == "$ 1.00"


@pytest.mark.parametrize(
    ("plotted", "records"),
    [
        ("layers", {"mid": {"options": {"layers": "mid"}}, "deep": {"options": {"layers": "deep"}}}),
        ("steps", {"5": {"loop": {"steps": 5}}, "10": {"loop": {"steps": 10}}}),
    ],
)
def test_a_curve_stands_over_any_option_or_setting_of_the_rows(plotted, records):
    found = [record(name, "0", True, info={"protection": "sifm", **info}) for name, info in records.items()]
    ((_, series),) = report.make(found, {}, plan(layout=config.Layout(plot=plotted))).plots.items()
    assert [at for at, _ in series["sifm"]] == list(records)


def test_the_ground_truth_is_shown_and_has_no_say():
    records = [record("clean", "0", False, truth=True), record("sifm", "0", True, protection="sifm", truth=False)]
    clean, sifm = report.make(records, {}).parts[0].lines
    assert (clean.isr.rate, clean.truth.rate) == (0.0, 1.0)
    assert (sifm.isr.rate, sifm.truth.rate) == (1.0, 0.0)
    assert report.TRUTH not in clean.judges


def test_half_an_answer_is_unclear_wherever_it_is_counted_and_shown(tmp_path):
    """Only of the ground truth, which cannot always tell the degradation, does the mismatch alone count."""
    half = tuple(Verdict(judge, "ok", True, None) for judge in ("human:ann", report.TRUTH))
    one = record("sifm", "0", protection="sifm", verdicts=half)
    line = report.make([one], {}).parts[0].lines[0]
    assert (line.judges["human:ann"].unclear, line.isr.unclear, line.truth.rate) == (1, 1, 1.0)
    assert consensus(half) is None
    with Store(tmp_path) as store:
        picture = store.put_image(samples(1)[0].pixels()[None])
        page = report.page(report.make([replace(one, source=picture, protected=picture, edited=picture)], {}), store)
    assert "<dt>human:ann: mismatch" not in page and "<dt>human:ann: unclear" in page


W, F = (False, False), (True, True)


@pytest.mark.parametrize(
    "rows, said",
    [
        ({"clean": [W] * 4, "noise": [W] * 4, "sifm": [F, F, F, W]}, "sifm made 3 of 4 edits fail"),
        ({"clean": [W] * 4, "noise": [F, F, W, W], "sifm": [F, F, W, W]}, "nothing is shown"),
        ({"clean": [W] * 4, "sifm": [F] * 4}, "No control was run"),
        ({"clean": [W] * 4, "noise": [F] * 4}, "No method's edits are among these, so nothing can be said"),
        ({"noise": [F] * 4, "sifm": [F] * 4}, "The unprotected pictures were not attacked, so nothing can be said"),
        ({"clean": [(None,)] * 2, "noise": [W] * 2, "sifm": [(None,)] * 3}, "any edit of a method (3 unclear)"),
        ({"clean": [(None,)] * 2, "sifm": [W] * 2}, "any edit of the unprotected pictures (2 unclear)"),
        ({"clean": [(None,), W], "sifm": [W, (None,)]}, "No edit is clear both of a method and of the unprotected"),
        ({"clean": [F] * 2, "noise": [F] * 2, "sifm": [F] * 2}, "sifm made 0 of 2"),
    ],
)
def test_the_headline_says_no_more_than_the_table(rows, said):
    assert said in report.make(records_of(**rows), {}).headline


def by(judge: str, requested: str, served: str, failed: bool) -> Verdict:
    return Verdict(judge, "ok", failed, False, model_requested=requested, model_served=served)


def test_a_table_that_other_models_made_says_so_in_its_headline():
    """Two that were asked for and are answered by one are no two judges."""
    pro, flash = "gemini:gemini-2.5-pro", "gemini:gemini-3.8-flash"

    def headline(served: str, requested: str = "gemini-2.5-pro") -> str:
        rows = {"clean": False, "noise": False, "sifm": True}
        records = [
            record(
                method,
                str(i),
                protection=_PROTECTION[method],
                verdicts=(
                    by(pro, requested, served if i else requested, failed),
                    by(flash, "gemini-3.8-flash", "gemini-3.8-flash", failed),
                ),
            )
            for method, failed in rows.items()
            for i in (1, 2, 0)
        ]
        made = report.make(records, {})
        assert "another model" not in made.headline or "another model" in markdown(made)
        return made.headline

    said = headline("gemini-3.5-flash-lite")
    assert f"{pro} did not answer itself: 6 of its 9 verdicts are by gemini-3.5-flash-lite, another model." in said
    assert "sifm made 3 of 3" in said and "one model" not in said
    for itself in ("gemini-2.5-pro", "gemini-2.5-pro-002"):
        assert "another model" not in headline(itself)
    assert "6 of its 9 verdicts are by a and b" in headline("a + b")
    evil = headline("x\x1b[31m" + "y" * 500)
    assert "\x1b" not in evil and "y" * 81 not in evil


def test_judges_of_one_family_and_of_the_family_that_reads_for_the_editor_are_said_to_be():
    judges = {
        "gemini:gemini-3.8-flash": "gemini-3.8-flash",
        "gemini:gemini-3.5-flash-lite": "gemini-3.5-flash-lite",
        "openai:m@http://gemini.example/v1": "qwen3-vl-8b",
        "transformers:/gemini/x": "/gemini/x@llava",
        "miniature:conv": "conv@a29f2d6a121e",
    }
    verdicts = tuple(by(judge, served, served, True) for judge, served in judges.items())
    encoders = {"qwen-image": ["Qwen2_5_VLForConditionalGeneration"], "ip2p": ["CLIPTextModel"], "old": None}
    editors = [{"name": name, "text_encoders": classes} for name, classes in encoders.items()]
    made = report.make([record("sifm", "0", protection="sifm", verdicts=verdicts)], {"editors": editors})
    first, second, third, *_ = judges
    assert len(made.trust) == 2
    assert made.trust[0].startswith(f"{first} and {second} are of one family, Gemini,")
    assert made.trust[1].startswith(f"{third} is of the family that reads the prompts of qwen-image, Qwen:")
    assert all(sentence in markdown(made) for sentence in made.trust)
    assert report.make([record("sifm", "0", protection="sifm", verdicts=verdicts[1:3])], {}).trust == []


def test_judges_that_are_one_model_are_no_two_judges():
    pro, flash = "gemini:gemini-2.5-pro", "gemini:gemini-3.8-flash"
    both = (
        by(pro, "gemini-2.5-pro", "gemini-3.8-flash", True),
        by(flash, "gemini-3.8-flash", "gemini-3.8-flash", True),
    )
    said = report.make([record("sifm", "0", protection="sifm", verdicts=both)], {}).headline
    assert f"{pro} and {flash} are one model, gemini-3.8-flash" in said


_PROTECTION = {"clean": "", "noise": "random_noise", "sifm": "sifm"}


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
    assert sum(row["column"] in found.layout.columns for row in written) == 2 * 4 * 6
    found = report.make([record("SIFM", "0", True, truth=True, protection="sifm", info=FIDELITY)], {})
    rows = {r["column"]: r["value"] for r in csv.DictReader(io.StringIO(as_csv(found)))}
    assert rows["ground truth"] == "1.0" and rows["visible:psnr"] == "41.5"
    row = next(r for r in written if (r["block"], r["method"], r["column"]) == ("Unseen prompts", "SIFM", "psnr"))
    assert float(row["low"]) < float(row["value"]) < float(row["high"]) and row["paper"] == "15.11"


def test_a_mark_is_explained_where_it_stands():
    for rows, marked in ((two_blocks(), True), ([r for r in two_blocks() if r.method != "SIFM"], False)):
        found = report.make(rows, {}, plan())
        page = report.page(found, Store.__new__(Store), 0)
        assert [("differs from SIFM" in " ".join(text.split())) for text in (markdown(found), page)] == [marked] * 2


def test_equals_share_a_mark():
    found = report.make(records_of(clean=[W, W], noise=[W, W], mist=[F, W], sifm=[W, F]), {})
    assert found.parts[0].marks["isr"] == {"mist": "best", "sifm": "best"}


def test_what_most_share_is_no_mark():
    found = report.make(records_of(clean=[W, W], mist=[W, W], ace=[W, W], sds=[W, W], sifm=[W, F]), {})
    assert found.parts[0].marks["isr"] == {"sifm": "best"}
    found = report.make(records_of(clean=[W, W], mist=[W, W], ace=[W, W], sifm=[W, W]), {})
    assert found.parts[0].marks["isr"] == {}


# ---- what else is known of a row


def verdicts(*said: tuple[bool, bool] | None) -> tuple[Verdict, ...]:
    """Judges' (mismatch, degradation); None: no answer."""
    return tuple(Verdict(f"j{i}", "blocked" if s is None else "ok", *(s or (None, None))) for i, s in enumerate(said))


def test_how_edits_failed_is_counted_without_the_ground_truth():
    said = [((1, 0), (1, 0)), ((1, 1), (0, 1)), ((1, 1), (1, 1)), ((1, 0), (0, 1)), ((0, 0), (1, 1)), ((1, 1), None)]
    made = [
        record("sifm", str(i), protection="sifm", verdicts=(*verdicts(*v), Verdict(report.TRUTH, "ok", False, None)))
        for i, v in enumerate(said)
    ]
    line = report.make(made, {}).parts[0].lines[0]
    assert line.axes == dict.fromkeys(("mismatch", "degradation", "both", "mixed", "none", "unclear"), 1)
    assert failures([line])["degradation only"] == ["1"]


def test_protection_that_helped_is_said():
    made = report.make(records_of(clean=[F, F, W, W], sifm=[W, F, F, F]), {})
    assert failures(made.parts[0].lines)["protection improved the edit"][1].startswith("25% (")
    row = next(
        r for r in csv.DictReader(io.StringIO(as_csv(made))) if (r["method"], r["column"]) == ("sifm", "improved")
    )
    assert float(row["value"]) == 0.25 and int(row["n"]) == 4


def test_worst_of_all_seeds_is_by_attack_and_pairs_with_the_clean_edits_of_all_seeds():
    clean = [record("clean", i, said, seed=seed) for i in "ab" for seed, said in ((0, False), (1, True))]
    sifm = [record("sifm", i, i == "a" or seed == 0, protection="sifm", seed=seed) for i in "ab" for seed in (0, 1)]
    made = report.make([*clean, *sifm], {})
    line = made.parts[0].line("sifm")
    assert (line.isr.rate, line.worst.rate, line.worst.n, line.worst.net) == (0.75, 0.5, 2, 0.5)
    assert report.make([*clean[::2], *sifm[::2]], {}).parts[0].line("sifm").worst is None
    assert "worst of all seeds" in markdown(made)


def test_categories_have_their_own_rates_and_floors():
    made = [
        record(method, f"{category}{i}", said, protection=HOW.get(method, "sifm"), category=category)
        for method, category, answers in (
            ("clean", "portrait", [False, False]),
            ("clean", "artwork", [True, True]),
            ("sifm", "portrait", [True, False]),
            ("sifm", "artwork", [True, True]),
        )
        for i, said in enumerate(answers)
    ]
    line = report.make(made, {}).parts[0].line("sifm")
    assert {name: (own.rate, own.net) for name, own in line.groups.items()} == {
        "portrait": (0.5, 0.5),
        "artwork": (1.0, 0.0),
    }
    assert "| attacked picture | portrait | artwork |" in markdown(report.make(made, {}))


def test_memory_is_the_most_of_all_batches_or_null_with_its_reason():
    peaks = [{"value": v, "definition": "bytes", "reason": ""} for v in (1e9, 3e9, 2e9)]
    unknown = {"value": None, "definition": "bytes", "reason": "not measured on mps"}

    def made(*found):
        return report.make(
            [record("sifm", str(i), True, info={"protection": "sifm", "peak_memory": m}) for i, m in enumerate(found)],
            {},
        )

    assert measured(made(*peaks, unknown).parts[0].lines)["peak GB"] == ["3.000"]
    for nothing, said in ((unknown, "not measured on mps"), (None, "another version")):
        found = made(nothing)
        assert measured(found.parts[0].lines)["peak GB"] == ["–"] and said in markdown(found)
    assert "Peak memory" not in markdown(report.make(records_of(clean=[W]), {})), "nothing was protected"


def test_a_batch_is_one_measurement_of_time():
    def spread(*seconds: float):
        made = [record("sifm", str(i), True, protection="sifm", seconds={"immunize": s}) for i, s in enumerate(seconds)]
        return report.make(made, {}).parts[0].lines[0].spread["seconds"]

    assert spread(2.0, 2.0, 2.0) is None, "what one batch took says nothing of the next"
    low, high = spread(2.0, 2.0, 3.0, 3.0)
    assert low == 2.0 and high == 3.0


def test_the_judges_calibration_stands_beside_the_rates(tmp_path):
    with Store(tmp_path) as store:
        for r in records_of(clean=[W, W], sifm=[F, F]):
            store.put_record(r)
        before = report.build(store)
        assert f"`sifm calibrate --editor toy --judge j0 --judge j1 --run {tmp_path}`" in before.trust[0]
        golds = controls.controls(samples(3), ToyEditor())
        known = replace(calibrate(ToyJudge("low", 0.1), golds), judge="j0")
        controls.keep(store, known)
        found = report.build(store)
        assert found.trust[0] == known.sentence() and "--judge j1" in found.trust[1] and "j0" not in found.trust[1]
        page, sensitivity = report.page(found, store, 0), known.sensitivity["success"]
    assert known.sentence() in markdown(found) and tex(known.sentence()) in latex(found)
    assert re.sub(r"\s+", " ", page).count("finds 100%, clears 0%") == 1 and "sifm calibrate" in page
    rows = {(r["block"], r["method"], r["column"]): r for r in csv.DictReader(io.StringIO(as_csv(found)))}
    assert float(rows["calibration", "j0", "sensitivity"]["low"]) == sensitivity.low


def test_a_calibrated_judges_rate_stands_beside_itself_without_the_judges_errors(tmp_path):
    finds, clears = Rate(90, 100, *wilson(90, 100)), Rate(80, 100, *wilson(80, 100))
    known = Calibration("j0", 200, 0, {"success": finds}, {"success": clears}, {})
    with Store(tmp_path) as store:
        for r in records_of(clean=[W, F, F, F] * 5, sifm=[F, F, F, W] * 5):
            store.put_record(r)
        without = report.build(store)
        assert all(
            "orrected" not in text for text in (markdown(without), as_csv(without), report.page(without, store, 0))
        )
        found = replace(without, calibrations={"j0": known})
        page = report.page(found, store, 0)
    rate = (0.75 + 0.8 - 1) / (0.9 + 0.8 - 1)
    rows = {(r["method"], r["column"]): r for r in csv.DictReader(io.StringIO(as_csv(found)))}
    row = rows["sifm", "judge:j0:corrected"]
    assert float(row["value"]) == pytest.approx(rate) and float(row["low"]) < rate < float(row["high"])
    assert ("sifm", "judge:j1:corrected") not in rows
    shown = f"{rate:.0%} ({span(float(row['low']), float(row['high']))})"
    assert f"corrected {shown}" in page and shown in markdown(found) and "j0, corrected" in markdown(found)


def test_the_page_has_the_majority_and_what_several_judges_agree_on_without_their_joint_errors(tmp_path):
    names = ["j0", "j1", "j2"]
    finds, clears = Rate(90, 100, *wilson(90, 100)), Rate(80, 100, *wilson(80, 100))
    known = {
        panel(how, names): Calibration(panel(how, names), 200, 0, {"success": finds}, {"success": clears}, {})
        for how in (UNANIMOUS, MAJORITY)
    }
    made = records_of(clean=[(False,) * 3] * 8, sifm=[(True, True, False)] * 2 + [(True,) * 3] * 4 + [(False,) * 3] * 2)
    with Store(tmp_path) as store:
        for one in made:
            store.put_record(one)
        page = report.page(replace(report.build(store), calibrations=known), store, 0)
        few = report.page(report.make(records_of(clean=[(False,) * 2], sifm=[(True,) * 2]), {}), store, 0)
    row = re.sub(r"\s+", " ", page[page.index('<th scope="row">sifm</th>') :].partition("</tr>")[0])
    assert "<strong>50%</strong> <small>4/8</small> <small>corrected 43% (" in row, "(0.5 - 0.2) / 0.7"
    assert "<td>75% <small>corrected 79% (" in row, "(0.75 - 0.2) / 0.7"
    assert page.count(">Majority<") == 2 and "Majority" not in few and "0%corrected" not in page


def test_a_judge_no_better_than_chance_corrects_nothing(tmp_path):
    half = Rate(50, 100, *wilson(50, 100))
    known = Calibration("j0", 200, 0, {"success": half}, {"success": half}, {})
    made = replace(report.make(records_of(clean=[W] * 4, sifm=[F] * 4), {}), calibrations={"j0": known})
    assert corrected(made.parts[0].lines, made.calibrations)["j0, corrected"] == ["–", "–"]
    assert "judge:j0:corrected" not in as_csv(made)


def test_preprocessing_has_a_row_each_and_a_plot_by_strength():
    chains = ["", *(f"{name}@{at}" for name in ("jpeg", "blur") for at in (0.25, 0.5, 1)), "jpeg:75,blur:1"]
    made = [
        record(method, str(i), said, protection=HOW.get(method, "sifm"), info={"protection": how, "purifier": chain})
        for chain in chains
        for method, how in (("clean", ""), ("PhotoGE", "photoguard_encoder"), ("SIFM", "sifm"))
        for i, said in enumerate([method == "SIFM" and not chain, False])
    ]
    found = report.make(made, {}, config.load("robustness"))
    (sheet,) = sheets(found.parts, found.layout)
    assert [head.name for head, _ in sheet.rows] == ["no preprocessing", *chains[1:]]
    assert [name for name, _ in sheet.blocks] == ["clean", "PhotoGE", "SIFM"]
    assert sheet.rows[0][1][6].text == "50%" and sheet.rows[1][1][6].text == "0%"
    assert list(found.plots) == ["jpeg", "blur", "jpeg:75,blur:1"]
    assert [at for at, _ in found.plots["jpeg"]["SIFM"]] == ["none", "@0.25", "@0.5", "@1"]
    assert found.plots["blur"]["SIFM"][0][1].rate == 0.5 and found.plots["blur"]["SIFM"][3][1].rate == 0


def test_the_robustness_preset_has_six_ways_at_three_strengths():
    ways = [stage(chain) for chain in config.load("robustness").settings.purifiers if chain]
    assert all(n >= 3 for n in Counter(name for name, _ in ways).values()) and len({name for name, _ in ways}) >= 6


OLD = {
    "benchmark": {
        **{"options": {}, "loop": {"steps": 7}, "protection": "mist", "protected_on": "a", "purifier": "jpeg:75"},
        **{"edit_seed": 1000000, "instruction": "add snow", "linf": 0.03, "protection_key": "k", "peak_memory": None},
        "fidelity": {"psnr": {"value": 30.0, "definition": "psnr", "reason": ""}},
        "prompt_distance": {"value": None, "definition": "", "reason": "no text encoder"},
        "failed": "measure: no memory",
    },
    "nodes": {
        **{"protection": "mist", "options": {"mode": "both"}, "steps": 7, "protected_on": "a", "purifier": ""},
        **{"edit_seed": 0, "edit_options": {"steps": 4}, "instruction": "add snow", "fidelity": {}},
        "history": [{"loss": -1.0}, {"loss": -2.0}],
    },
    "nothing": {},
    "newer": {"protection": "mist", "protected_on": "toy", "watermark": {"by": "a later version"}},
}
"""``info`` of records as versions before this one wrote it, and as a later one may."""


@pytest.mark.parametrize("writer", OLD)
def test_records_of_other_versions_are_read(writer, tmp_path):
    with Store(tmp_path) as store:
        for r in records_of(clean=[W, W], sifm=[F, W]):
            store.put_record(r if r.method == "clean" else replace(r, info=OLD[writer]))
        assert [dict(r.info) for r in store.records()][2:] == [OLD[writer]] * 2, "what is not understood is kept"
        made = report.build(store)
        line = next(part.line("sifm") for part in made.parts if part.line("sifm"))
        assert (line.isr.successes, line.isr.n, store.missing()) == (1, 2, "")
        assert bool(line.failed) is (writer == "benchmark")
        assert ("a -> toy" in markdown(made)) is (writer in ("benchmark", "nodes")), "another editor protected"
        assert ("-1 → -2" in report.page(made, store)) is (writer == "nodes"), "how the perturbation was found"


def test_a_report_loads_no_torch(tmp_path):
    with Store(tmp_path) as store:
        picture = store.put_image(samples(1)[0].pixels()[None])
        for r in records_of(clean=[W], sifm=[F]):
            store.put_record(replace(r, source=picture, protected=picture, edited=picture))
        store.put("run", "config", config.load("table3").as_dict())
        store.put("run", "plan", {"counts": {"records": 2}})
    code = f"""
import sys
from sifm_core.cli import main
assert main(["bench", "status", {str(tmp_path)!r}]) == main(["bench", "report", {str(tmp_path)!r}]) == 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    assert "data:image/png" in (tmp_path / "report.html").read_text()


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


def test_transfer_is_paired_by_protecting_editor_too():
    said = {("toy", "clean"): False, ("toy", "sifm"): True, ("other", "clean"): True, ("other", "sifm"): True}
    made = [
        record(method, "0", failed, info={"protection": HOW.get(method, "sifm"), "protected_on": on})
        for (on, method), failed in said.items()
    ]
    for order in (made, made[::-1]):
        found = report.make(order, {})
        nets = {part.title.partition(",")[0]: part.line("sifm").isr.net for part in found.parts}
        assert nets == {"toy": 1.0, "other -> toy": 0.0}


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
    assert [at for at, _ in found.plots["ISR by lam"]["sifm"]] == ["0.1", "10"]
    drawn = report.page(found, Store.__new__(Store), 0)
    assert drawn.count("<circle") == 2 and "ISR by lam" in drawn


def test_isr_is_drawn_by_what_the_prompts_mean_and_by_their_words():
    def attack(i: int, prompt: str, meaning: float | None, **info) -> list[Record]:
        kept = {"value": meaning, "definition": "angle", "reason": "" if meaning else "deaf"}
        info |= {"instruction": "add snow", "prompt_distance": kept}
        rows = {"clean": ("", W), "SIFM": ("sifm", F if i % 2 else W)}
        made = [record(m, f"{i}", *said, prompt=prompt, info=info | {"protection": p}) for m, (p, said) in rows.items()]
        return [replace(r, key=f"{r.key}-{prompt}") for r in made]

    told = [r for i in range(8) for r in attack(i, f"word{'abcdefgh'[i]}", 0.1 * (i + 1))]
    told += attack(9, "add snow", None) + attack(8, "more snow", None)
    found = report.make(told, {}, config.load("prompts"))
    meaning, words = found.plots.values()
    assert [(at, r.successes, r.n) for at, r in meaning["SIFM"]] == [
        ("the same", 1, 1),
        ("to 0.275", 1, 2),
        ("to 0.45", 1, 2),
        ("to 0.625", 1, 2),
        ("to 0.8", 1, 2),
    ]
    assert sum(r.n for _, r in words["SIFM"]) == 10 and words["SIFM"][-1][0] == "to 1"
    assert any("Semantic distance of prompts: deaf" in said for said in found.reading)
    section = markdown(found).split(f"## {MEANING}")[1].split("## ")[0]
    (line,) = (row for row in section.split("\n") if row.startswith("| SIFM"))
    assert line.count("50% (1/2,") == 4 and "100% (1/1," in line
    rows = [r for r in csv.DictReader(io.StringIO(as_csv(found))) if r["kind"] == "plot" and r["method"] == "SIFM"]
    assert [(r["column"], float(r["value"])) for r in rows if r["block"] == MEANING][:2] == [
        ("the same", 1),
        ("to 0.275", 0.5),
    ]
    old = [replace(r, info={k: v for k, v in r.info.items() if k != "prompt_distance"}) for r in told]
    found = report.make(old, {}, config.load("prompts"))
    assert list(found.plots) == [WORDS] and report.UNCOMPARED in found.reading


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
    for r in list(stores[1].records()):
        stores[1].put_record(replace(r, info=r.info | {"edit_seed": 1_000_000}))
    assert runs(*((store, config.Layout()) for store in stores)).changes[0].pairs == 0, "the attacker drew other noise"


def test_several_runs_stand_side_by_side_each_as_its_own_report_has_it():
    one = report.make(two_blocks(), {}, plan())
    also = [replace(r, editor="other", info=r.info | {"purifier": p}) for r in two_blocks() for p in ("", "blur:1")]
    two = report.make(also, {}, config.load("table4"))
    both = report.together([one, two])
    assert [part.title for part in both.parts] == [
        f"{editor}, {prompts}" for editor in ("toy", "other") for prompts in ("original prompt", "unseen prompts")
    ]
    assert [part.lines for part in both.parts] == [part.lines for part in (*one.parts, *two.parts[:1], two.parts[2])]
    assert [part.paper["SIFM"]["isr"] for part in both.parts] == [0.83, 0.68, 0.97, 0.71]
    (sheet,) = sheets(both.parts, both.layout, both.beside)
    assert [head.name for head, _ in sheet.rows] == ["clean", "pixel noise", "PhotoGE", "SIFM"] and len(
        sheet.blocks
    ) == 4
    text = markdown(both)
    assert all(f"## {part.title}" in text for part in both.parts) and one.headline in text and two.headline in text
    assert "Where this comes from" in report.page(both, Store.__new__(Store))


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


EVIL = (
    "<script>alert(1)</script>",
    "&lt;script&gt;<img src=x onerror=alert(1)>",
    "a\n\n# head\n\n<iframe src=//x>\n\n- item",
    "![beacon](http://x/p.png) [click](javascript:alert(1))",
    "| a | b |\r\n|---|---|\x1b]0;owned\x07\x9b31m\u202etxt",
    "'\"><svg onload=alert(1)>",
    "# head",
    "``` fence",
    "1. <!-- gone",
)


class _Elements(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def _told_by_others(run, text: str) -> tuple[str, str, str]:
    """Markdown, HTML and LaTeX of a run where every prompt, name, category, reason, definition and setting is so."""
    records, store, provenance = run
    silent = Verdict(f"human:{text}", "refused", reasons=text, model_served=text)
    told = [
        replace(
            r,
            image=f"{r.image}{text}",
            category=text,
            prompt=text,
            prompt_kind=text,
            editor=text,
            method=r.method if r.method == "clean" else f"{r.method}{text}",
            metrics={name: Metric(None, text, text) for name in r.metrics},
            verdicts=(*(replace(v, reasons=text, judge=f"{v.judge}{text}") for v in r.verdicts), silent),
            info={**r.info, "purifier": text, "failed": text, "instruction": text},
        )
        for r in records
    ]
    made = replace(report.make(told, provenance | {"commit": text}, title=text), trust=[text], about=text)
    return markdown(made), report.page(made, store), latex(made)


@pytest.mark.parametrize("evil", EVIL)
def test_no_text_of_others_is_markup_or_reaches_a_terminal_in_any_report(evil, run):
    text, page, tex_ = _told_by_others(run, evil)
    plain = _told_by_others(run, "nothing")
    for shown in (text, tex_):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    rendered, expected = (Counter(tag for tag, _ in _Elements(reader.render(one)).found) for one in (text, plain[0]))
    assert rendered - Counter(code=9) == expected, "the same headings, paragraphs, tables and nothing else"
    elements, expected = ([(tag, sorted(given)) for tag, given in _Elements(one).found] for one in (page, plain[1]))
    assert [one for one in elements if one[0] != "code"] == expected
    assert tex_.count("\n") == plain[2].count("\n")


@pytest.mark.parametrize("start", "=+-@\t\r")
def test_no_name_in_the_csv_is_a_formula(start):
    formula = f"{start}cmd|' /C calc'!A1"
    made = [record(m, "0", True, protection="sifm", category=formula, editor=formula) for m in ("clean", formula)]
    written = list(csv.reader(io.StringIO(as_csv(report.make([*made, replace(made[0], editor="e")], {})))))
    assert not [cell for row in written for cell in row if cell.startswith(start)]
    assert {row[1] for row in written[1:]} == {"clean", f"'{formula}"}


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
    assert all(sum(line.startswith(f"| {r.method} |") for line in text.splitlines()) == 5 for r in records)


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


def test_attacks_say_what_tells_them_apart(run):
    records, store, _ = run
    one = [r for r in records if r.image == "toy-0"]
    assert told_apart(attacks(one)) == [""], "nothing to tell"
    transferred = [replace(r, info=r.info | {"protected_on": "other"}) for r in one]
    blurred = [replace(r, info=r.info | {"purifier": "blur:1"}) for r in one]
    assert told_apart(attacks([*one, *transferred])) == ["toy", "other -> toy"]
    assert told_apart(attacks([*one, *blurred])) == ["no preprocessing", "blur:1"]
    page = page_of([*one, *transferred], store, {})
    assert f"{one[0].category} · toy-0 · other -&gt; toy<" in page


def test_the_grid_has_a_line_per_picture_and_frames_what_failed(run):
    records, store, _ = run
    sheet = np.asarray(Pil.open(io.BytesIO(report.grid(records, store, side=96))))
    assert sheet.shape[1] > 6 * 96 and sheet.shape[0] > 3 * 96
    source = to_uint8(store.get_image(records[0].source)).repeat(2, 0).repeat(2, 1)
    assert (sheet[28 : 28 + 96, 10 : 10 + 96] == source).all()
    frames = (sheet == (0x4B, 0x3F, 0xAE)).all(axis=-1).any()
    assert frames == any(consensus(r.verdicts) for r in records)


def test_nothing_at_all_is_no_crash(tmp_path):
    store = Store(tmp_path)
    assert "nothing can be said" in page_of([], store, {})
    assert report.grid([], store)
    assert report.make([], {}).parts == []
