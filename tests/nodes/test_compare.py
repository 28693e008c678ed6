"""Purify, Attack Plan, Results Table, Comparison Grid, Records Export: from protections to a table."""

from __future__ import annotations

import csv
import json
import math

import pytest
import torch

from judges.servers import UNSEEN, FakeServer
from sifm_core.errors import InputError
from sifm_core.types import Verdict

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.fixture(autouse=True)
def inside_a_prompt(comfy):
    with torch.inference_mode():
        yield


def pictures(n: int = 2) -> list[torch.Tensor]:
    """As Load Benchmark gives them: a list of batches of one."""
    levels = torch.randint(0, 256, (n, 24, 32, 3), generator=torch.Generator().manual_seed(7))
    return list((levels / 255).split(1))


def protect(editor, images, **method):
    """Noise of the usual budget on every picture, as ComfyUI calls the node for a list."""
    from nodes.immunize import SifmBaselineImmunize

    chosen = {"method": "random_noise", "pattern": "pixel"} | method
    settings = {"prompt": "abc", "eps": 0.03, "steps": 2, "seed": 0, "alpha": 2 / 255}
    return [SifmBaselineImmunize.execute(image, editor, **settings, method=chosen)[2] for image in images]


def planned(editor, images, prompt=("abc", "abd"), **changes):
    from nodes.plan import SifmAttackPlan

    arms = {f"protection_{i}": protect(editor, images, pattern=p) for i, p in enumerate(("pixel", "block4"))}
    given = {"image": images, "prompt": list(prompt), "protections": arms, "id": ["one", "two"][: len(images)]}
    return SifmAttackPlan.execute(**given | changes)


def attacked(editor, plan):
    from nodes.edit import SifmAttackerEdit

    columns = zip(plan[0], plan[1], plan[3], strict=True)
    return [SifmAttackerEdit.execute(image, editor, prompt, 0, purifier=chain)[1] for image, prompt, chain in columns]


def verdicts(judge: str, failed: list[bool | None]) -> list[dict[str, list]]:
    """One judge's answers as a list of the graph."""
    from nodes._cards import Seen

    said = [Verdict(judge, "ok" if f is not None else "refused", f, None if f is None else False) for f in failed]
    return [{"protected": [Seen(verdict, prompt=str(i))]} for i, verdict in enumerate(said)]


@pytest.fixture
def run(editor):
    """Two pictures, two protections, one instruction: edits in the order clean, pixel, block4 for each picture."""
    from nodes.results import SifmResultsTable

    plan = planned(editor, pictures())
    first, second = [False, True, True, False, True, False], [False, True, False, False, True, None]
    judges = {"judge_0": verdicts("a", first), "judge_1": verdicts("b", second)}
    return SifmResultsTable.execute(plan[4], attacked(editor, plan), judges)


def test_the_plan_attacks_every_picture_unprotected_and_protected_with_its_own_prompts(editor):
    images = pictures()
    plan = planned(editor, images, unseen=["xy\nabc\n\nxz", "yz"], category=["portrait"])
    found = [(a.id, a.method, a.kind, a.prompt) for a in plan[4]]
    methods = ["clean", "noise pattern=pixel", "noise pattern=block4"]
    expected = [("one", "original", "abc"), ("one", "unseen", "xy"), ("one", "unseen", "xz")]
    expected += [("two", "original", "abd"), ("two", "unseen", "yz")]
    assert found == [(id, method, kind, prompt) for id, kind, prompt in expected for method in methods]
    assert plan[1] == [a.prompt for a in plan[4]]
    assert all(torch.equal(shown.movedim(-1, 1), a.image) for shown, a in zip(plan[0], plan[4], strict=True))
    assert torch.equal(plan[0][0], images[0]) and not torch.equal(plan[0][1], images[0])
    assert all(
        torch.equal(source, images[0 if a.id == "one" else 1]) for source, a in zip(plan[2], plan[4], strict=True)
    )
    assert {a.category for a in plan[4]} == {"portrait"}


def test_a_batch_and_a_list_make_the_same_plan(editor):
    images = pictures()
    batch = [torch.cat(images)]
    one, other = planned(editor, images), planned(editor, batch, id=["one", "two"])
    assert [a.method for a in one[4]] == [a.method for a in other[4]]
    assert all(torch.equal(a, b) for a, b in zip(one[2], other[2], strict=True))


def test_every_picture_has_an_id_of_its_own(editor):
    plan = planned(editor, pictures(), id=["cat"])
    assert [a.id for a in plan[4]] == ["cat 1"] * 3 + ["cat 2"] * 3
    assert {a.id for a in planned(editor, pictures(), id=[])[4]} == {"picture 1", "picture 2"}
    assert {a.id for a in planned(editor, pictures(1), prompt=["abc"], id=["cat"])[4]} == {"cat"}
    with pytest.raises(InputError, match="id: expected a different one for each picture, got 'cat' twice"):
        planned(editor, pictures(), id=["cat", "cat"])


def test_protections_of_other_pictures_are_refused(editor):
    arms = {"protection_0": protect(editor, [image.flip(1) for image in pictures()])}
    with pytest.raises(InputError, match="other pictures"):
        planned(editor, pictures(), protections=arms)


def test_the_same_protection_twice_is_refused(editor):
    arm = protect(editor, pictures())
    with pytest.raises(InputError, match="different settings"):
        planned(editor, pictures(), protections={"protection_0": arm, "protection_1": arm})


def test_rows_can_be_named_and_then_meet_the_papers_figures(editor):
    from nodes.results import SifmResultsTable

    with pytest.raises(InputError, match="names: expected 2"):
        planned(editor, pictures(), names=["PhotoGE"])
    plan = planned(editor, pictures(), names=["PhotoGE\nSIFM"])
    assert [a.method for a in plan[4]] == ["clean", "PhotoGE", "SIFM"] * 2
    judges = {"judge_0": verdicts("a", [False, True, True] * 2)}
    text = SifmResultsTable.execute(plan[4], attacked(editor, plan), judges, ["table3"])[0]
    lines = text.splitlines()
    row = next(line for line in lines if line.startswith("| SIFM") and "(14.94)" in line)
    assert "100% (83%)" in row
    head = next(line for line in lines if "**PSNR ↓**" in line)
    columns = [cell.strip(" *") for cell in head.split("|")[1:-1]]
    found = dict(zip(columns, (cell.strip() for cell in row.split("|")[1:-1]), strict=True))
    assert (
        {"VIFp ↓", "FSIM ↓", "LPIPS ↑"} <= found.keys()
        and found["95%"].endswith("–100%")
        and found["net ISR"].startswith("100%")
    )
    assert any(line.startswith("| clean") and "0% " in line for line in lines), "the control row of the same table"
    assert "null" not in text, "what a graph does not know is left out"
    assert "data miniature" not in text and "White box" not in text, "nor does it take over what the paper's run was"


def test_transfer_is_a_block_of_its_own_with_its_own_clean_row(editor, sd3_editor):
    from nodes.results import SifmResultsTable

    plan = planned(editor, pictures(1), prompt=["abc"], id=["one"])
    out = SifmResultsTable.execute(
        plan[4], attacked(sd3_editor, plan), {"judge_0": verdicts("a", [False, True, False])}
    )
    assert {r.editor for r in out[1].records} == {sd3_editor.editor.name}
    assert {r.info["protected_on"] for r in out[1].records} == {editor.editor.name}
    rows = [line for line in out[0].splitlines() if line.startswith("| noise pattern=pixel")]
    assert "100% (1/1)" in rows[1].split("|")[5], "net of the clean row"


def test_prompts_must_fit_the_pictures(editor):
    with pytest.raises(InputError, match="one per picture"):
        planned(editor, pictures(), prompt=["a", "b", "c"])


def test_purifier_chains_multiply_the_plan_and_name_the_attacker(editor):
    from nodes.plan import SifmAttackPlan
    from nodes.results import SifmResultsTable

    plan = planned(editor, pictures(1), prompt=["abc"], purifiers=["none\njpeg:75, blur\n"], id=["one"])
    assert plan[3] == [""] * 3 + ["jpeg:75,blur:1"] * 3
    edits = attacked(editor, plan)
    assert not torch.equal(edits[0].image, edits[3].image)
    out = SifmResultsTable.execute(plan[4], edits, {"judge_0": verdicts("a", [False, True, True] * 2)})
    assert {r.info["purifier"] for r in out[1].records} == {"", "jpeg:75,blur:1"}
    assert all(f"\n## {way}\n" in out[0] for way in ("no preprocessing", "jpeg:75,blur:1"))
    assert SifmAttackPlan.validate_inputs(["jpeg:75\nxx"]) == "unknown purifier 'xx': did you mean mist?" or (
        "unknown purifier 'xx'" in SifmAttackPlan.validate_inputs(["jpeg:75\nxx"])
    )


def test_records_count_what_all_judges_say_against_the_clean_edit(run):
    records = run[1].records
    assert [(r.image, r.method) for r in records[:3]] == [
        ("one", "clean"),
        ("one", "noise pattern=pixel"),
        ("one", "noise pattern=block4"),
    ]
    assert records[0].metrics == {} and records[1].metrics["psnr"].value is not None
    assert [len(r.verdicts) for r in records] == [2] * 6
    rows = [line for line in run[0].splitlines() if line.startswith("| noise pattern=pixel")]
    assert "100% (2/2)" in rows[1]
    rows = [line for line in run[0].splitlines() if line.startswith("| noise pattern=block4")]
    assert "0% (0/1)" in rows[1], "one of the two is unclear, the other is no success for judge b"
    json.dumps(run.ui)


def test_a_run_is_a_folder_that_the_engine_reads_and_the_same_run_is_kept_once(editor, run):
    from nodes._store import home
    from nodes.results import SifmResultsTable
    from sifm_core.store import Store

    plan = planned(editor, pictures())
    judges = {"judge_0": verdicts("a", [False] * 6), "judge_1": verdicts("b", [False] * 6)}
    SifmResultsTable.execute(plan[4], attacked(editor, plan), judges)
    folders = list((home() / "runs").iterdir())
    assert [folder.name for folder in folders] == run.ui["sifm_run"]
    with Store(folders[0], create=False) as store:
        records = list(store.records())
        assert len(records) == 6 and not any(v.semantic_mismatch for r in records for v in r.verdicts)
        assert all(store.has_image(i) for r in records for i in (r.source, r.protected, r.edited))


def test_edits_of_another_plan_are_refused(editor):
    from nodes.results import SifmResultsTable

    plan = planned(editor, pictures())
    edits, judges = attacked(editor, plan), {"judge_0": verdicts("a", [True] * 6)}
    with pytest.raises(InputError, match="one of edits per attack, 6, got 5"):
        SifmResultsTable.execute(plan[4], edits[:-1], judges)
    with pytest.raises(InputError, match="another plan"):
        SifmResultsTable.execute(plan[4], edits[::-1], judges)


def test_the_grid_shows_source_clean_edit_protected_picture_and_its_edit(run):
    from nodes.results import SifmComparisonGrid

    def width(n: int) -> int:
        return 10 + n * 74

    grid = SifmComparisonGrid.PREPARE_CLASS_CLONE(None)
    full = grid.execute(run[1], 8, 64, True)[0]
    assert full.shape[2] == width(6), "source, its edit, and two protections with an edit each"
    assert grid.execute(run[1], 8, 64, False)[0].shape[2] == width(4)
    chosen = grid.execute(run[1], 1, 64, True, only="noise pattern=block4")[0]
    assert chosen.shape[2] == width(4) and chosen.shape[1] < full.shape[1]
    with pytest.raises(InputError, match="no row is called"):
        grid.execute(run[1], 1, 64, True, only="SIFM")


def test_exports_hold_every_record_and_never_overwrite(run, tmp_path, monkeypatch):
    import folder_paths

    from nodes.results import SifmRecordsExport

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "out"))
    paths = [SifmRecordsExport.execute(run[1], kind, "sub/rec")[0] for kind in ("csv", "jsonl", "jsonl")]
    assert paths == ["sub/rec_00001_.csv", "sub/rec_00001_.jsonl", "sub/rec_00002_.jsonl"]
    lines = [json.loads(line) for line in (tmp_path / "out" / paths[1]).read_text().splitlines()]
    assert [line["key"] for line in lines] == [r.key for r in run[1].records]
    rows = list(csv.DictReader((tmp_path / "out" / paths[0]).open()))
    assert rows[1]["judge:a:semantic_mismatch"] == "True" and float(rows[1]["metric:psnr"]) > 0


def test_a_prefix_with_brackets_is_counted_on_too(run, tmp_path, monkeypatch):
    import folder_paths

    from nodes.results import SifmRecordsExport

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "out"))
    paths = [SifmRecordsExport.execute(run[1], "jsonl", "sub/rec[a]")[0] for _ in range(2)]
    assert paths == ["sub/rec[a]_00001_.jsonl", "sub/rec[a]_00002_.jsonl"]


def test_a_prefix_cannot_leave_the_output_folder(run, tmp_path, monkeypatch):
    import folder_paths

    from nodes.results import SifmRecordsExport

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "out"))
    with pytest.raises(Exception, match="outside the output folder"):
        SifmRecordsExport.execute(run[1], "csv", "../../away")


def test_the_picked_purifier_has_its_strength_and_says_what_it_did(editor):
    from nodes.purify import SifmPurify
    from sifm_core import purify

    image = pictures(1)[0]
    out, chain = SifmPurify.execute(image, {"purifier": "jpeg", "strength": 0.5}, 0).args
    assert chain == "jpeg:65" and out.shape == image.shape
    truth = purify.apply(image.movedim(-1, 1).clone(), "jpeg:65", seed=0).mul(255).round().div(255)
    assert torch.equal(out.movedim(-1, 1), truth)
    both = SifmPurify.execute(image, {"purifier": "chain", "chain": "resize,vae_round_trip:1"}, 0, editor)
    assert both[1] == "resize:0.5,vae_round_trip:1" and not torch.equal(both[0], image)
    with pytest.raises(InputError, match="editor"):
        SifmPurify.execute(image, {"purifier": "diffpure", "strength": 0.5}, 0)


def test_an_interrupt_stops_a_purifier(editor, monkeypatch):
    from comfy import model_management

    from nodes.edit import SifmAttackerEdit
    from nodes.purify import SifmPurify
    from sifm_core import pipeline

    def never(*args, **kwargs):
        raise AssertionError("went on")

    monkeypatch.setattr(pipeline, "edit", never)
    image, chain = pictures(1)[0], "gridpure:2"
    for work in (
        lambda: SifmPurify.execute(image, {"purifier": "chain", "chain": chain}, 0, editor),
        lambda: SifmAttackerEdit.execute(image, editor, "abc", 0, purifier=chain),
    ):
        model_management.interrupt_current_processing()
        with pytest.raises(model_management.InterruptProcessingException):
            work()


def test_every_purifier_is_offered_with_its_usual_strength():
    from nodes.purify import SifmPurify
    from sifm_core import purify

    options = SifmPurify.INPUT_TYPES()["required"]["purifier"][1]["options"]
    assert [option["key"] for option in options] == [*purify.PURIFIERS, "chain"]
    for option in options[:-1]:
        about = option["inputs"]["required"]["strength"][1]
        strength = about["default"]
        assert strength == pytest.approx(about["step"] * round(strength / about["step"])), (
            "the widget shows what is used"
        )
        assert purify.at(option["key"], strength).setting == pytest.approx(
            purify.PURIFIERS[option["key"]].standard, abs=0.02
        ), option["key"]


def test_what_was_computed_once_is_not_computed_again(editor, monkeypatch):
    from nodes.edit import SifmAttackerEdit
    from sifm_core import pipeline

    image = pictures(1)[0]
    first, edit = protect(editor, [image])[0], SifmAttackerEdit.execute(image, editor, "abc", 0)[0]

    def never(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(pipeline, "immunize", never)
    monkeypatch.setattr(pipeline, "edit", never)
    again = protect(editor, [image])[0]
    assert torch.equal(again.image, first.image) and again.settings == first.settings
    assert torch.equal(SifmAttackerEdit.execute(image, editor, "abc", 0)[0], edit)
    for changed in ({"seed": 1}, {"prompt": "abd"}, {"image": image.flip(1)}, {"purifier": "jpeg"}, {"steps": 3}):
        with pytest.raises(AssertionError, match="computed again"):
            SifmAttackerEdit.execute(**{"image": image, "editor": editor, "prompt": "abc", "seed": 0} | changed)


def test_clip_without_its_weights_says_so(monkeypatch):
    import nodes.measure
    from sifm_core import fig3
    from sifm_core.types import Metric

    image = pictures(2)
    text, before, _ = nodes.measure.SifmClipScore.execute(image, image, ["a crown"], ["no/such-model"]).args
    assert "unavailable" in text and math.isnan(before)
    scores = iter([0.3, 0.2, 0.1, 0.4])
    monkeypatch.setattr(fig3, "clip_score", lambda *a, **k: [Metric(next(scores), "clip")])
    text, before, after = nodes.measure.SifmClipScore.execute(image, image, ["a", "b"], ["m"]).args
    assert [line.split("|")[-2].strip() for line in text.splitlines()[2:]] == ["the unedited picture", "the edit"]
    assert (before, after) == (pytest.approx(0.2), pytest.approx(0.3))


def test_unseen_prompts_are_as_many_as_asked_unlike_the_prompt_and_the_same_for_a_seed():
    from nodes.prompts import SifmUnseenPrompts
    from sifm_core.data.prompts import clash

    for category in ("portrait", "any"):
        out = SifmUnseenPrompts.execute("add a golden crown", category, 5, 1, {"source": "templates"})[0]
        assert len(out.splitlines()) == 5 and not clash(["add a golden crown", *out.splitlines()])
        assert out == SifmUnseenPrompts.execute("add a golden crown", category, 5, 1, {"source": "templates"})[0]


@pytest.fixture
def unseen(monkeypatch):
    """Unseen prompts by a language model of a server, whose key is sk-marker."""
    pytest.importorskip("openai")
    from nodes.prompts import SifmUnseenPrompts

    monkeypatch.setenv("SOME_API_KEY", "sk-marker")
    monkeypatch.setattr("sifm_core.judges.vlm.random.uniform", lambda low, high: 0.001)  # no long back-off

    def ask(fake, prompt, seed=0, image=None):
        source = {"source": "openai", "model": "fake-model", "caption": "a lake", "base_url": fake.url}
        return SifmUnseenPrompts.execute(prompt, "any", 2, seed, source | {"key_variable": "SOME_API_KEY"}, image)[0]

    return ask


def test_a_language_model_writes_prompts_once_for_a_seed_and_remembers_them(unseen):
    with FakeServer("openai") as fake:
        said = unseen(fake, "rate-once 1")
        assert said.splitlines() == UNSEEN["instructions"][:2] and len(fake.requests) == 2
        assert "a lake" in json.dumps(fake.requests[0].body) and fake.requests[0].body["seed"] == 0
        assert unseen(fake, "rate-once 1") == said and len(fake.requests) == 2
        unseen(fake, "rate-once 1", seed=2**31 + 1)
        assert fake.requests[-1].body["seed"] == 1
        assert "image/png" not in json.dumps([request.body for request in fake.requests])


def test_a_model_that_can_see_is_shown_the_picture(unseen):
    import base64
    import io

    from PIL import Image

    picture = pictures(1)[0]
    with FakeServer("openai") as fake:
        assert unseen(fake, "ok 1", image=picture).splitlines() == UNSEEN["instructions"][:2]
        (url,) = (p["image_url"]["url"] for p in fake.requests[0].body["messages"][-1]["content"] if "image_url" in p)
        sent = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        assert sent.tobytes() == bytes(picture.mul(255).round().int().flatten().tolist())
        with pytest.raises(InputError, match="expected one picture"):
            unseen(fake, "ok 1", image=torch.cat([picture, picture]))
        assert len(fake.requests) == 1
        templates = {"source": "templates"}
        from nodes.prompts import SifmUnseenPrompts

        assert SifmUnseenPrompts.execute("x", "any", 2, 0, templates, picture)[0]


@pytest.mark.parametrize("behaviour", ["prose", "alike", "refusal", "key-refused", "html"])
def test_a_language_model_that_writes_no_prompts_is_an_error_without_the_key(unseen, behaviour):
    from sifm_core.errors import SifmError

    with FakeServer("openai") as fake, pytest.raises(SifmError) as caught:
        unseen(fake, f"{behaviour} 1")
    assert "sk-marker" not in str(caught.value)


def test_the_consistency_report_counts_pairs_of_raters_and_leaves_out_the_unclear():
    from nodes.consistency import SifmConsistencyReport

    def cells(kind: str, about: str, text: str) -> list[str]:
        rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
        return next(row for row in rows if row[:2] == [kind, about])

    anna, ben = [True, True, False, False], [True, False, False, None]
    model = [True, True, True, False]
    raters = {"person_0": verdicts("anna", anna), "person_1": verdicts("ben", ben)}
    out = SifmConsistencyReport.execute({"model_0": verdicts("m", model)}, raters)
    text = out[0]
    assert cells("human-human", "mismatch", text)[2] == "67%"
    assert cells("human-human", "final", text)[-2:] == ["76%", "3"], "the paper's figure stands beside"
    assert cells("human-judge", "final", text)[2] == "57%", "4 of 7 answers"
    assert cells("judge-judge", "final", text)[2] == "–"
    assert [card["prompt"] for card in out.ui["sifm_cards"]] == ["1", "2"], "those on which two that answered differ"
    assert [said["word"] for said in out.ui["sifm_cards"][0]["said"]] == ["mismatch", "works", "mismatch"]
    with pytest.raises(InputError, match="one per sample"):
        SifmConsistencyReport.execute({"model_0": verdicts("m", model[:3])}, raters)
