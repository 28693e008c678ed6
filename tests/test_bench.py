"""The grid: every row and control, seeds shared, artefacts reused, failures recorded, killed runs resumed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from dataclasses import asdict, replace
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sifm_core import bench, purify, report
from sifm_core.bench import CLEAN, Grid, Row, machine, work
from sifm_core.bench.costs import weights
from sifm_core.editors import load_editor
from sifm_core.errors import InputError, SifmError
from sifm_core.methods import presets
from sifm_core.pipeline import edit, immunize, measure, prompt_distance
from sifm_core.store import Store
from sifm_core.types import Record, Step
from sifm_core.verdicts import consensus
from toy import ToyEditor, ToyJudge, samples

ROWS = (
    Row(CLEAN),
    Row("another seed", seed_shift=1000),
    Row("noise", "random_noise", {"pattern": "block4"}),
    Row("PhotoGE", "photoguard_encoder"),
    Row("SIFM", "sifm", {"timesteps": 2}),
)


def toy_grid(**changes) -> Grid:
    settings = {
        "samples": samples(3),
        "editors": [ToyEditor()],
        "judges": [ToyJudge("toy:a"), ToyJudge("toy:b", 0.45)],
        "rows": ROWS,
        "steps": 4,
        "batch": 2,
    }
    return Grid(**settings | changes)


class Broken(ToyEditor):
    def denoise(self, *arguments):
        raise RuntimeError("the lamp\nis broken")


def timeless(record: Record) -> Record:
    info = {name: value for name, value in record.info.items() if name != "peak_memory"}
    verdicts = tuple(replace(v, latency=None) for v in record.verdicts)
    return replace(record, seconds={}, verdicts=verdicts, info=info)


def by_method(records: list[Record], image: str = "toy-0", seed: int = 0) -> dict[str, Record]:
    return {r.method: r for r in records if r.image == image and r.seed == seed}


def test_one_record_per_picture_row_and_seed_in_order(tmp_path):
    store = Store(tmp_path)
    records = bench.run(toy_grid(seeds=(0, 5)), store)
    assert [(r.seed, r.image, r.method) for r in records] == [
        (seed, f"toy-{i}", row.name) for seed in (0, 5) for i in range(3) for row in ROWS
    ]
    assert list(store.records()) == records
    assert len({r.key for r in records}) == len(records)
    assert not any("failed" in r.info for r in records)


def test_rows_differ_only_in_what_they_should(tmp_path):
    store = Store(tmp_path)
    rows = by_method(bench.run(toy_grid(), store))
    clean, other = rows[CLEAN], rows["another seed"]
    assert clean.protected == other.protected == clean.source and clean.edited != other.edited
    assert (clean.metrics, clean.eps) == ({}, 0.0)
    assert clean.info["edit_seed"] == rows["SIFM"].info["edit_seed"] == other.info["edit_seed"] - 1000
    assert clean.info["edit_seed"] != clean.seed  # the attacker draws other noise than the protection did
    source = store.get_image(clean.source)
    for name in ("noise", "PhotoGE", "SIFM"):
        largest = float((store.get_image(rows[name].protected) - source).abs().max())
        assert 5 / 255 < largest <= 0.03
        assert rows[name].info["linf"] == pytest.approx(largest)
        assert rows[name].info["fidelity"]["psnr"]["value"] > 25
        assert rows[name].metrics["ssim"].value < 1
    lengths = [len(store.get("immunize", rows[n].info["protection_key"])["history"]) for n in ("SIFM", "noise")]
    assert lengths == [4, 0]
    assert [v.judge for v in clean.verdicts] == ["toy:a", "toy:b"]


def test_edits_are_those_of_the_verb(tmp_path):
    store, grid = Store(tmp_path), toy_grid(batch=1)
    for record in bench.run(grid, store):
        again = edit(
            store.get_image(record.protected), grid.editors[0], prompt=record.prompt, seed=record.info["edit_seed"]
        )
        assert torch.equal(again, store.get_image(record.edited))


def test_a_row_that_is_told_nothing_is_told_nothing_and_draws_nothing_of_the_attacks(tmp_path, monkeypatch):
    given: list[dict] = []
    monkeypatch.setattr(work, "immunize", lambda x, editor, **rest: given.append(rest) or immunize(x, editor, **rest))
    quick = {"steps": 1, "alpha": 0.02}
    rows = [
        Row(CLEAN),
        Row("none", "sifm_plus", loop=quick, instruction=""),
        Row("told", "sifm_plus", loop=quick),
        Row("other", "sifm", {"timesteps": 1}, quick),
    ]
    first, second = (replace(sample, wordings=(sample.prompt, "in other words")) for sample in samples(2))
    records = bench.run(Grid([first, second], [ToyEditor()], [], rows), Store(tmp_path))
    none, told, other = given
    assert none["prompt"] == ["", ""] and told["prompt"] == other["prompt"] == ["make it 0", "make it 1"]
    assert none["avoid"] == told["avoid"] == [["make it 0", "in other words"], ["make it 1", "in other words"]]
    assert "avoid" not in other
    by = {(r.method, r.image): r for r in records}
    assert by["none", "toy-0"].info["instruction"] == "" and by["told", "toy-0"].info["instruction"] == "make it 0"
    assert by["none", "toy-0"].protected != by["told", "toy-0"].protected
    assert len({r.key for r in records}) == len(records)


def test_a_row_against_several_editors_is_another_protection_and_follows_their_weights(tmp_path, monkeypatch):
    given: list[dict] = []
    monkeypatch.setattr(work, "immunize", lambda x, editor, **rest: given.append(rest) or immunize(x, editor, **rest))
    monkeypatch.setattr(work, "load_editor", lambda name, **rest: other)
    other, loop = ToyEditor(), {"steps": 1, "alpha": 0.02}

    def protected(**more: object) -> str:
        rows = [Row(CLEAN), Row("both", "sifm", {"timesteps": 1}, loop | more)]
        work._loaded.clear()
        return bench.run(Grid(samples(1), [ToyEditor()], [], rows), Store(tmp_path / str(len(given))))[1].info[
            "protection_key"
        ]

    alone, both = protected(), protected(also=["second"])
    assert alone != both and given[-1]["also"] == [other] and given[-2]["also"] == []
    other.fingerprint = "e" * 64
    assert protected(also=["second"]) != both
    with pytest.raises(InputError, match="also of row both: expected a list"):
        protected(also="second")


def test_every_phase_is_given_what_the_attack_says(tmp_path):
    """The protection sees its own instruction and seed, the attacker his; judges see the source and what was asked."""
    judge = ToyJudge("toy:a")
    seen = []
    plain = judge.judge
    judge.judge = lambda cases, *, on_step=None: seen.extend(cases) or plain(cases)
    one = replace(samples(1)[0], truth="what is right")
    rows = (Row(CLEAN), *ROWS[2:])
    grid = toy_grid(
        samples=[one, replace(one, prompt="something else", kind="unseen", truth="and here")],
        rows=rows,
        seeds=(0, 5),
        purifiers=("", "gaussian_noise:0.05"),
        edit_options={"strength": 0.5},
        batch=1,
        judges=[judge],
    )
    store, editor = Store(tmp_path), ToyEditor()
    records = bench.run(grid, store)
    assert len(records) == 2 * 4 * 2 * 2
    edits = {}
    for r in records:
        row, seed = next(row for row in rows if row.name == r.method), r.info["edit_seed"]
        protected, edited = store.get_image(r.protected), store.get_image(r.edited)
        if row.method:
            options = {"method": row.method, "seed": r.seed, "steps": 4, **row.options}
            assert torch.equal(protected, immunize(one.pixels()[None], editor, prompt=one.instruction, **options).image)
        attacked = purify.apply(protected, r.info["purifier"], seed=seed).mul(255).round().div(255)  # kept as a file
        assert torch.equal(edited, edit(attacked, editor, prompt=r.prompt, seed=seed, strength=0.5))
        edits[r.method, r.prompt, r.seed, r.info["purifier"]] = edited
        (case,) = (c for c in seen if c.prompt == r.prompt and torch.equal(c.edited, edited[0]))
        assert torch.equal(case.source, one.pixels())
        assert case.truth == (one.truth if r.prompt == one.prompt else "and here")
    for r in records:
        if r.method != CLEAN:
            clean, edited = (edits[method, r.prompt, r.seed, r.info["purifier"]] for method in (CLEAN, r.method))
            found = measure(clean, edited)
            assert [r.metrics["vifp"]] == found["vifp"] and [r.metrics["psnr"]] == found["psnr"]


def test_another_judge_of_the_same_name_is_asked_anew(tmp_path):
    for served in ("one", "two"):
        judge = ToyJudge("toy:a")
        judge.served = served
        records = bench.run(toy_grid(judges=[judge]), Store(tmp_path))
        assert judge.asked == len({(r.source, r.edited, r.prompt) for r in records})


def test_judges_elsewhere_are_asked_by_the_driver_alone(tmp_path):
    judge = ToyJudge("openai:toy@http://127.0.0.1:1/v1")
    phases = []
    bench.run(toy_grid(judges=[judge]), Store(tmp_path), lambda step: phases.append(step.phase))
    assert judge.asked and "ask" in phases and "judge" not in phases


def test_a_second_run_computes_nothing_and_gives_the_same(tmp_path, monkeypatch):
    first = bench.run(toy_grid(), Store(tmp_path))
    for verb in ("immunize", "edit", "measure"):
        monkeypatch.setattr(f"sifm_core.bench.work.{verb}", None)
    grid, steps = toy_grid(), []
    assert bench.run(grid, Store(tmp_path), steps.append) == first
    assert steps == []
    assert [judge.asked for judge in grid.judges] == [0, 0]


def test_other_settings_share_what_they_can(tmp_path):
    store = Store(tmp_path)
    bench.run(toy_grid(), store)
    counted: dict[str, int] = {}

    def count(step: Step) -> None:
        counted[step.phase] = step.n / 100

    grid = toy_grid(rows=(*ROWS, Row("grey", "photoguard_encoder", {"target": "grey"})))
    bench.run(grid, store, count)
    assert counted == {"immunize": round(3 * weights(grid)["grey", "toy"], 2), "edit": 3, "measure": 6, "judge": 6}


def test_a_default_that_is_said_protects_nothing_anew(tmp_path):
    said = Row("SIFM, said", "sifm", {"timesteps": 2, "lam": 0.1})
    paper = Row("as published", "sifm", {"timesteps": 2, "lam": 0.1}, {"preset": "paper", "steps": 4})
    grid, store = toy_grid(rows=(*ROWS, said, paper)), Store(tmp_path)
    found = by_method(bench.run(grid, store))
    keys = [found[name].info["protection_key"] for name in ("SIFM", "SIFM, said", "as published")]
    assert keys[0] == keys[1] != keys[2], "a preset may have other values for what is left out"
    assert grid.counts()["immunize"] == store.counts()["immunize"] == 3 * 4


def test_a_picture_weighs_what_its_method_costs():
    """Else the forecast of a run that begins with the quick methods is wrong by an order of magnitude."""
    quick, slow, noise, short = (
        Row("PhotoGE", "photoguard_encoder"),
        Row("PhotoGD", "photoguard_diffusion"),
        Row("noise", "random_noise"),
        Row("SIFM, few", "sifm", loop={"steps": 1}),
    )
    found = weights(toy_grid(rows=(Row(CLEAN), quick, slow, noise, short)))
    assert found["PhotoGD", "toy"] > 10 * found["PhotoGE", "toy"] > 0
    assert found["SIFM, few", "toy"] < found["PhotoGD", "toy"] / 4
    assert 0 < found["noise", "toy"] < 0.01
    assert sum(found.values()) == pytest.approx(3, abs=0.01), "in parts of the mean of the three that take gradients"


@pytest.mark.parametrize(("timesteps", "n"), [(1, 1), ("200,400,600", 3), ("early", 3), ([100, 900], 2), (20, 20)])
def test_a_picture_weighs_what_its_timesteps_cost(timesteps, n):
    grid = toy_grid(rows=(Row(CLEAN), Row("ten", "sifm"), Row("other", "sifm", {"timesteps": timesteps})))
    encode, predict = 2.27, 7.8 * 0.80
    ten, other = (encode + share * predict for share in (1, n / 10))
    found = weights(grid)
    assert found["other", "toy"] / found["ten", "toy"] == pytest.approx(other / ten)


def test_records_under_keys_that_are_made_no_more_are_gone(tmp_path):
    """A run of an earlier version of the code, whose keys were others, would count its attacks twice."""
    store = Store(tmp_path)
    records = bench.run(toy_grid(), store)
    store.put_record(replace(records[0], key="of an earlier version"))
    assert bench.run(toy_grid(), store) == records


def test_what_another_run_has_is_taken_from_there(tmp_path):
    other, fresh, store = (Store(tmp_path / name) for name in ("other", "fresh", "new"))
    half = [ToyJudge("toy:a"), ToyJudge("toy:b", state="unreachable")]
    known = by_method(bench.run(toy_grid(rows=(*ROWS[:2], ROWS[4]), judges=half), other))
    torn = next((tmp_path / "other").rglob(f"{known['SIFM'].protected}.png"))
    torn.write_bytes(torn.read_bytes()[:-40])
    counted: dict[str, int] = {}

    def count(step: Step) -> None:
        counted[step.phase] = step.n / 100

    grid = toy_grid()
    each = weights(grid)
    todo = {"PhotoGE": 3, "noise": 3, "SIFM": 2}  # of SIFM the batch of the torn picture
    records = bench.run(grid, store, count, reuse=[other])
    assert counted["immunize"] == pytest.approx(sum(n * each[name, "toy"] for name, n in todo.items()), abs=0.01)
    assert counted["edit"] == 6
    assert [judge.asked for judge in grid.judges] == [6, 15], "what was not answered there is asked"
    assert list(map(timeless, records)) == list(map(timeless, bench.run(toy_grid(), fresh)))
    assert dict(report.build(store).facts)["taken over with their seconds"].endswith(" results of other")
    other.close()
    shutil.rmtree(other.folder)
    assert bench.run(toy_grid(), store, count) == records, "and is this run's own now"
    taken = store.counts()["adopted"]
    next(store.folder.rglob(f"{by_method(records)[CLEAN].edited}.png")).unlink()
    bench.run(toy_grid(), store)
    assert store.counts()["adopted"] == taken - 2, "what was made anew, a batch of edits, is not another run's"


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_a_damaged_picture_is_made_again(tmp_path, damage):
    first = bench.run(toy_grid(), Store(tmp_path))
    path = next(tmp_path.rglob(f"{by_method(first)['SIFM'].protected}.png"))
    whole = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(whole[: len(whole) // 2])
    again = bench.run(toy_grid(), Store(tmp_path))
    assert list(map(timeless, again)) == list(map(timeless, first))
    assert path.read_bytes() == whole


def test_unseen_prompts_attack_the_picture_protected_for_the_original(tmp_path):
    one = samples(1)[0]
    unseen = replace(one, prompt="something else", kind="unseen")
    store = Store(tmp_path)
    records = bench.run(toy_grid(samples=[one, unseen]), store)
    original, other = (r for r in records if r.method == "SIFM")
    assert original.protected == other.protected and original.edited != other.edited
    assert other.info["instruction"] == one.prompt


def test_prompts_are_compared_once_by_the_attacked_editor(tmp_path, ip2p_folder, sd3_folder, monkeypatch):
    one = samples(1, 16)[0]
    one = replace(one, instruction="a b", prompt="a b")
    some = [one, replace(one, prompt="x y z", kind="unseen"), replace(one, prompt="a c", kind="unseen")]
    editors = [load_editor(folder, device="cpu", steps=2, size=16) for folder in (ip2p_folder, sd3_folder)]
    for editor in editors:
        editor.name = editor.family
    grid = toy_grid(samples=some, editors=editors, rows=ROWS[:2], judges=(), seeds=(0, 1), compare_prompts=True)
    records = bench.run(grid, Store(tmp_path))
    for r in records:
        editor = next(editor for editor in editors if editor.name == r.editor)
        found, expected = r.info.get("prompt_distance"), asdict(prompt_distance(editor, r.prompt, "a b"))
        assert found == (None if r.prompt == "a b" else expected)
    assert len({r.info["prompt_distance"]["value"] for r in records if r.prompt != "a b"}) == 4
    monkeypatch.setattr(work, "prompt_distance", None)  # nothing is compared again
    assert bench.run(grid, Store(tmp_path)) == records
    assert "prompt_distance" not in bench.run(replace(grid, compare_prompts=False), Store(tmp_path))[-1].info


def test_prompts_that_were_not_compared_are_null_with_the_reason(tmp_path):
    class Deaf(ToyEditor):
        def prepare(self, prompts, x=None):
            if "else" in prompts[0] and len(prompts) == 2:
                raise RuntimeError("no ears")
            return super().prepare(prompts, x)

    one = samples(1)[0]
    some = [one, replace(one, prompt="something else", kind="unseen")]

    class Wordless(ToyEditor):
        def words(self, cond):
            return torch.zeros(len(cond), 1, dtype=torch.bool)

    for editor, said in ((Wordless(), "toy finds no words"), (Deaf(), "no ears")):
        records = bench.run(
            toy_grid(samples=some, editors=[editor], rows=ROWS[:1], batch=1, compare_prompts=True),
            Store(tmp_path / type(editor).__name__),
        )
        found = records[-1].info["prompt_distance"]
        assert found["value"] is None and said in found["reason"] and records[-1].edited


def test_a_failure_costs_its_own_records_and_is_tried_again(tmp_path):
    store = Store(tmp_path)
    records = bench.run(toy_grid(editors=[Broken()]), store)
    failed = [r for r in records if "failed" in r.info]
    assert {r.method for r in failed} == {"SIFM"} and len(failed) == 3
    assert all("the lamp is broken" in r.info["failed"] and r.edited == "" and r.verdicts == () for r in failed)
    assert list(map(timeless, bench.run(toy_grid(), store))) == list(map(timeless, records))
    assert list(map(timeless, bench.run(toy_grid(), store, retry=True))) == list(
        map(timeless, bench.run(toy_grid(), Store(tmp_path / "fresh")))
    )


def test_a_failure_is_forgotten_with_the_grid_that_it_belonged_to(tmp_path):
    store = Store(tmp_path)
    bench.run(toy_grid(samples=samples(1), editors=[Broken()]), store)
    assert list(store.documents("failed"))
    without = toy_grid(samples=samples(1), editors=[Broken()], rows=[row for row in ROWS if row.name != "SIFM"])
    bench.run(without, store)
    assert not list(store.documents("failed"))


def test_a_batch_with_a_new_picture_is_tried_though_others_in_it_failed(tmp_path):
    store = Store(tmp_path)
    bench.run(toy_grid(samples=samples(1), editors=[Broken()]), store)
    assert all("failed" in r.info for r in bench.run(toy_grid(samples=samples(1)), store) if r.method == "SIFM")
    mended = bench.run(toy_grid(samples=samples(2)), store)
    assert all(r.edited and "failed" not in r.info for r in mended) and not list(store.documents("failed"))


def test_what_is_there_does_not_fail_with_the_batch_that_it_shares(tmp_path):
    store = Store(tmp_path)
    bench.run(toy_grid(samples=samples(1)), store)

    class Falls(ToyEditor):
        def edit(self, x, *args, **options):
            raise RuntimeError("bad batch")

    for _ in range(2):
        records = bench.run(toy_grid(samples=samples(2), editors=[Falls()]), store)
        assert {(r.image, bool(r.edited), "failed" in r.info) for r in records if r.method != "clean"} == {
            (samples(2)[0].id, True, False),
            (samples(2)[1].id, False, True),
        }


def test_a_changed_method_is_protected_anew_and_no_other(tmp_path, monkeypatch):
    store = Store(tmp_path)
    first = {r.method: r.info.get("protection_key") for r in bench.run(toy_grid(), store)}
    monkeypatch.setitem(bench.keys.METHOD_VERSIONS, "sifm", 99)
    second = {r.method: r.info.get("protection_key") for r in bench.run(toy_grid(), store)}
    assert {name for name in first if first[name] != second[name]} == {"SIFM"}


def test_another_number_type_is_another_plan(tmp_path):
    class Half(ToyEditor):
        def __init__(self):
            super().__init__()
            self.dtype = torch.float16

    plans = []
    for editor in (ToyEditor(), Half()):
        store = Store(tmp_path / str(len(plans)))
        bench.run(toy_grid(editors=[editor]), store)
        plans.append(store.get("run", "plan")["models"])
    assert plans[0].keys() == plans[1].keys() and plans[0] != plans[1]


def test_a_judge_that_fails_leaves_the_edit_unclear(tmp_path):
    class Falls(ToyJudge):
        def judge(self, cases, *, on_step=None):
            raise RuntimeError("out of memory")

    for record in bench.run(toy_grid(judges=[ToyJudge("toy:a"), Falls("toy:b")]), Store(tmp_path)):
        assert [(v.judge, v.state) for v in record.verdicts] == [("toy:a", "ok"), ("toy:b", "error")]
        assert "out of memory" in record.verdicts[1].reasons and consensus(record.verdicts) is None


def test_two_items_of_one_picture_keep_their_records_apart(tmp_path):
    one = samples(1)[0]
    twice = [one, replace(one, id="the same again", instruction="something else")]
    records = bench.run(toy_grid(samples=twice), Store(tmp_path))
    assert [r.image for r in records] == [one.id] * len(ROWS) + ["the same again"] * len(ROWS)


def test_seconds_of_a_session_that_was_stopped_count(tmp_path):
    def stop(step: Step) -> None:
        if step.phase == "edit":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(toy_grid(), Store(tmp_path), stop)
    assert Store(tmp_path).get("run", "seconds")["seconds"] > 0


def test_what_gave_no_answer_is_asked_again_and_nothing_else(tmp_path):
    store = Store(tmp_path)
    judges = [ToyJudge("toy:a"), ToyJudge("toy:b", state="unreachable"), ToyJudge("toy:c", state="refused")]
    records = bench.run(toy_grid(judges=judges), store)
    assert {v.state for r in records for v in r.verdicts} == {"ok", "unreachable", "refused"}
    again = [ToyJudge("toy:a"), ToyJudge("toy:b"), ToyJudge("toy:c")]
    records = bench.run(toy_grid(judges=again), store)
    assert [judge.asked for judge in again] == [0, 15, 0]
    assert {v.state for r in records for v in r.verdicts if v.judge == "toy:b"} == {"ok"}


@pytest.mark.parametrize("phase", ["immunize", "edit", "measure", "judge"])
def test_what_the_callback_raises_stops_the_run(tmp_path, phase):
    class Stop(Exception):
        pass

    def stop(step: Step) -> None:
        if step.phase == phase:
            raise Stop

    with pytest.raises(Stop):
        bench.run(toy_grid(), Store(tmp_path), stop)
    assert list(Store(tmp_path).records()) == []


def test_progress_never_falls_and_ends_at_its_total(tmp_path):
    seen: dict[str, list[Step]] = {}
    bench.run(toy_grid(), Store(tmp_path), lambda step: seen.setdefault(step.phase, []).append(step))
    assert list(seen) == ["immunize", "edit", "measure", "judge"]
    for steps in seen.values():
        assert [s.i for s in steps] == sorted(s.i for s in steps)
        assert steps[0].i == 0 and steps[-1].i == steps[-1].n
        assert len({s.n for s in steps}) == 1


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"rows": ROWS[1:]}, "clean"),
        ({"rows": (*ROWS, Row("SIFM"))}, "distinct"),
        ({"rows": (Row(CLEAN), Row("x", "sfim"))}, "did you mean sifm"),
        ({"rows": (Row(CLEAN), Row("x", "sifm", {"timestep": 1}))}, "did you mean timesteps"),
        ({"rows": (Row(CLEAN), Row("x", "sifm", loop={"preset": "papr"}))}, "did you mean paper"),
    ],
)
def test_a_wrong_grid_is_refused_at_once(changes, said):
    with pytest.raises(InputError, match=said):
        toy_grid(**changes)


# ---- kill -9


class Dying(Store):
    """Kills its own process before the n-th thing is put."""

    left = -1

    def _count(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def put(self, *arguments):
        self._count()
        super().put(*arguments)

    def put_image(self, *arguments):
        self._count()
        return super().put_image(*arguments)

    def put_record(self, *arguments):
        self._count()
        super().put_record(*arguments)


def dying_work(folder: Path, puts: int) -> None:
    torch.set_num_threads(1)
    store = Dying(folder)
    store.left = puts
    bench.run(toy_grid(samples=samples(1), purifiers=("", "jpeg:50"), judges=[ToyJudge("toy:a")]), store)


def test_kill_9_at_any_moment_and_the_run_ends_the_same(tmp_path):
    context = multiprocessing.get_context("forkserver")  # fresh processes, but torch is imported once
    context.set_forkserver_preload(["torch", "tests.test_bench"])

    def run_in_a_process(name: str, puts: int) -> int | None:
        process = context.Process(target=dying_work, args=(tmp_path / name, puts))
        process.start()
        process.join(600)
        return process.exitcode

    assert run_in_a_process("whole", -1) == 0
    for puts in (2, 8, 14, 22, 10):  # in protected pictures, purified ones, edits, metrics, verdicts, records
        assert run_in_a_process("killed", puts) == -signal.SIGKILL
    assert run_in_a_process("killed", -1) == 0
    whole, resumed = ([timeless(r) for r in Store(tmp_path / name).records()] for name in ("whole", "killed"))
    assert len(whole) == 10
    assert resumed == whole


def quick_work(folder: Path, started: Event) -> None:
    """A sweep through all phases that takes about a second: one metric, since the others load for longer than that."""
    torch.set_num_threads(1)
    work.measure = lambda reference, distorted, names: measure(reference, distorted, ("psnr",))
    rows = (Row(CLEAN), ROWS[2], ROWS[3])
    grid = toy_grid(samples=samples(4), rows=rows, purifiers=("", "jpeg:50"), judges=[ToyJudge("toy:a")], batch=1)
    started.set()
    bench.run(grid, Store(folder))


KILLS = int(os.environ.get("SIFM_KILLS", "5"))
"""How many kills make the test that follows; before a release, 20."""


def test_kills_at_random_moments_cost_no_record(tmp_path):
    """kill -9 from outside, whatever is being computed or written, and every second time a picture is torn."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", __name__])
    rng, kills, torn, sweeps = random.Random(7), 0, 0, 0

    def start(folder: Path) -> multiprocessing.process.BaseProcess:
        started = context.Event()
        process = context.Process(target=quick_work, args=(folder, started))
        process.start()
        assert started.wait(60)
        return process

    process, begun = start(tmp_path / "whole"), time.monotonic()
    process.join(60)
    takes = time.monotonic() - begun
    whole = [timeless(r) for r in Store(tmp_path / "whole").records()]
    assert process.exitcode == 0 and len({r.key for r in whole}) == len(whole) == 24
    while kills < KILLS:  # a sweep that got through is compared, and another one begun
        folder = tmp_path / f"sweep-{sweeps}"
        process = start(folder)
        process.join(rng.uniform(0, takes))
        if process.is_alive():
            process.kill()
            process.join()
        if process.exitcode == -signal.SIGKILL:  # and not done just before
            kills += 1
            pictures = sorted(folder.rglob("*.png"))
            if pictures and kills % 2:
                path, torn = rng.choice(pictures), torn + 1
                path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
        if process.exitcode == 0 or kills == KILLS:
            if kills == KILLS:
                process = start(folder)
                process.join(60)
            assert process.exitcode == 0
            with Store(folder) as store:
                assert [timeless(r) for r in store.records()] == whole
                assert all(store.has_image(image) for r in whole for image in (r.source, r.protected, r.edited))
            sweeps += 1
    assert torn


# ---- editors by name, transfers, purifiers


def test_a_transfer_protects_on_one_editor_and_attacks_with_the_other(tmp_path, monkeypatch):
    loaded: list[str] = []

    class Other(ToyEditor):
        name, fingerprint = "other", "e" * 64

        def edit(self, x, cond, **settings):
            return super().edit(x, cond, **settings).flip(-1)

    def load(name: str, **options) -> ToyEditor:
        loaded.append(name)
        return {"toy": ToyEditor, "other": Other}[name]()

    monkeypatch.setattr("sifm_core.bench.work.load_editor", load)
    monkeypatch.setattr("sifm_core.bench.work._loaded", OrderedDict())
    grid = toy_grid(samples=samples(1), editors=["toy", "toy -> other"])
    assert grid.counts() == {"immunize": 3, "purify": 0, "edit": 10, "measure": 11, "judge": 20, "records": 10}
    store = Store(tmp_path)
    records = bench.run(grid, store)
    white, black = ([r for r in records if r.editor == name] for name in ("toy", "other"))
    assert [r.method for r in white] == [r.method for r in black] == [row.name for row in ROWS]
    assert [r.protected for r in white] == [r.protected for r in black]
    assert all(one.edited != two.edited for one, two in zip(white, black, strict=True))
    assert {r.info["protected_on"] for r in black} == {"toy"} and len({r.key for r in records}) == 10
    assert sorted(loaded) == ["other", "toy"]  # each once
    assert store.counts() | {"records": 10, "edit": 10, "immunize": 3, "verdict": 20} == store.counts()
    loaded.clear()
    monkeypatch.setattr("sifm_core.bench.work._loaded", OrderedDict())
    again = bench.run(replace(grid, judges=[ToyJudge("toy:c")]), store)
    assert [r.edited for r in again] == [r.edited for r in records] and loaded == []  # scored, not edited again
    assert {v.judge for r in again for v in r.verdicts} == {"toy:c"} and list(store.records()) == again


def test_a_transfer_protects_on_two_editors_at_once(tmp_path, monkeypatch):
    class Other(ToyEditor):
        name, fingerprint = "other", "e" * 64

        def encode(self, x, noise=None):
            return super().encode(x.flip(-1))

    made = {"toy": ToyEditor, "other": Other}
    monkeypatch.setattr("sifm_core.bench.work.load_editor", lambda name, **options: made[name]())
    monkeypatch.setattr("sifm_core.bench.work._loaded", OrderedDict())
    one, two, both = "toy -> other", "other -> toy", "toy & other -> toy"
    grid = toy_grid(samples=samples(1), editors=[one, two, both], rows=[*ROWS[:1], *ROWS[2:]])
    records = bench.run(grid, Store(tmp_path))
    assert grid.counts()["immunize"] == 7 and {r.info["protected_on"] for r in records[-4:]} == {"toy & other"}
    sifm = {r.info["protected_on"]: r.protected for r in records if r.method == "SIFM"}
    assert len(set(sifm.values())) == 3 and len({r.protected for r in records if r.method == "noise"}) == 1
    x, row = samples(1)[0], ROWS[-1]
    wanted = immunize(
        x.image[None], ToyEditor(), prompt=x.instruction, method="sifm", also=[Other()], steps=4, seed=[0], timesteps=2
    ).image
    assert Store(tmp_path).get_image(sifm["toy & other"]).equal(wanted) and row.also() == ()
    for wrong in ("toy & other", "toy & -> other", "& toy -> other"):
        with pytest.raises(InputError, match="'A & B -> C'"):
            toy_grid(editors=[wrong]).counts()


def test_weights_that_changed_are_noticed_before_they_compute(tmp_path, monkeypatch):
    now = ToyEditor()
    monkeypatch.setattr("sifm_core.bench.work.load_editor", lambda name, **options: now)
    monkeypatch.setattr("sifm_core.bench.work._loaded", OrderedDict())
    grid = toy_grid(samples=samples(1), editors=["toy"])
    first = bench.run(grid, Store(tmp_path))
    known = {r.key for r in first}
    for change in ({"fingerprint": "0" * 64}, {"settings": {"steps": 7}}, {"dtype": torch.bfloat16}):
        now = ToyEditor()
        for name, value in change.items():
            monkeypatch.setattr(now, name, value, raising=False)
        monkeypatch.setattr("sifm_core.bench.work._loaded", OrderedDict())
        with Store(tmp_path) as store:
            grid = replace(grid, samples=samples(len(grid.samples) + 1))  # something new to compute
            keys = {r.key for r in bench.run(grid, store)}
            assert len(keys) == len(ROWS) * len(grid.samples) and not keys & known, change
            assert next(iter(store.documents("model")))[1]["dtype"] == str(now.dtype)
        known |= keys


@pytest.mark.parametrize(
    ("visible", "places"),
    [(None, ["0", "1", "0"]), ("2,3", ["2", "3", "2"]), ("GPU-a, GPU-b", ["GPU-a", "GPU-b", "GPU-a"])],
)
def test_workers_stay_on_the_gpus_that_were_given(monkeypatch, visible, places):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert bench.Pool(3)._places == places


def test_the_commit_is_this_codes_or_none(tmp_path, monkeypatch):
    """Installed in somebody's environment within somebody's checkout, it is not that checkout's commit."""
    for words in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x", "--allow-empty"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    (tmp_path / "machine.py").touch()
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    assert machine.commit() is None
    subprocess.run(["git", "-C", tmp_path, "add", "machine.py"], check=True)
    assert machine.commit().endswith("-dirty")


def test_another_way_of_loading_loads_anew(monkeypatch):
    loaded = []
    monkeypatch.setattr("sifm_core.bench.work.load_editor", lambda name, **how: loaded.append(how) or ToyEditor())
    monkeypatch.setattr("sifm_core.bench.work._loaded", OrderedDict())
    for dtype in ("float32", "float32", "float64"):
        work.model(work.Model("editor", "toy", {"dtype": dtype}))
    assert [how["dtype"] for how in loaded] == ["float32", "float64"]


def test_the_purifier_stands_between_protection_and_edit(tmp_path):
    from sifm_core import purify

    store = Store(tmp_path)
    grid = toy_grid(samples=samples(1), purifiers=("", "jpeg:30"), batch=1)
    records = bench.run(grid, store)
    assert len(records) == grid.counts()["records"] == 10
    for record in records:
        attacked = purify.apply(store.get_image(record.protected), record.info["purifier"])
        again = edit(attacked, grid.editors[0], prompt=record.prompt, seed=record.info["edit_seed"])
        assert torch.equal(again, store.get_image(record.edited))


def upscaler(folder: Path, weights: float) -> str:
    """What an upscaler's folder needs to be told from others."""
    index: dict[str, object] = {"_class_name": "StableDiffusionUpscalePipeline"}
    for part, config in UPSCALER_CONFIGS.items():
        index[part] = ["diffusers", "Any"]
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / config).write_text("{}")
        if config == "config.json":
            save_file({"w": torch.full((3,), weights)}, folder / part / "diffusion_pytorch_model.safetensors")
    (folder / "model_index.json").write_text(json.dumps(index))
    return str(folder)


UPSCALER_CONFIGS = {"vae": "config.json", "text_encoder": "config.json", "unet": "config.json"}
UPSCALER_CONFIGS |= {"tokenizer": "tokenizer_config.json", "scheduler": "scheduler_config.json"}


def test_noisy_upscaling_uses_the_upscaler_that_was_named(tmp_path, monkeypatch):
    used: list[str | None] = []

    def redraw(image, deviation, *, upscaler=None, seed=0):
        used.append(upscaler)
        return image * 0.9

    monkeypatch.setattr("sifm_core.purify.noisy_upscale.purify", redraw)
    one = upscaler(tmp_path / "up", 0.0)
    grid = toy_grid(samples=samples(1), rows=ROWS[:1], purifiers=("", "noisy_upscale:0.1"), upscaler=one, batch=1)
    first = bench.run(grid, Store(tmp_path / "run"))
    assert used == [one] and first[0].edited != first[1].edited
    assert bench.run(grid, Store(tmp_path / "run")) == first and len(used) == 1
    upscaler(tmp_path / "up", 1.0)  # other weights under the same name: the keys of what went through them differ
    other = bench.run(replace(grid, samples=samples(2)), Store(tmp_path / "run"))
    assert len(used) == 3, "the picture that was there went through the old weights"
    assert len(other) == 4
    with pytest.raises(SifmError, match="nowhere"):
        bench.run(replace(grid, upscaler=str(tmp_path / "nowhere" / "x" / "y")), Store(tmp_path / "new"))
    assert bench.run(replace(grid, purifiers=("",), upscaler="nowhere"), Store(tmp_path / "new"))


def test_a_row_may_name_the_settings_of_the_methods_paper(tmp_path):
    rows = (
        Row(CLEAN),
        Row("plain", "photoguard_encoder"),
        Row("as published", "photoguard_encoder", loop={"preset": "paper", "steps": 3}),
    )
    grid = toy_grid(samples=samples(1), rows=rows)
    published = presets("photoguard_encoder")["paper"]
    store = Store(tmp_path)
    record = by_method(bench.run(grid, store))["as published"]
    assert record.eps == published["eps"] and "failed" not in record.info
    assert len(store.get("immunize", record.info["protection_key"])["history"]) == 3
    assert rows[2].steps(grid) == 3 and rows[0].steps(grid) == 0
    assert replace(rows[2], loop={"preset": "paper"}).steps(grid) == published["steps"] != grid.steps


def test_rows_may_have_a_loop_of_their_own(tmp_path):
    rows = (
        Row(CLEAN),
        Row("weak", "photoguard_encoder", loop={"eps": 0.01, "steps": 2}),
        Row("PhotoGE", "photoguard_encoder"),
    )
    weak, strong = (by_method(bench.run(toy_grid(rows=rows), Store(tmp_path)))[name] for name in ("weak", "PhotoGE"))
    assert (weak.eps, strong.eps) == (0.01, 0.03)
    assert weak.info["linf"] <= 0.01 < strong.info["linf"]


def test_shards_change_nothing_but_memory(tmp_path, monkeypatch):
    whole = bench.run(toy_grid(), Store(tmp_path / "whole"))
    monkeypatch.setattr("sifm_core.bench.driver.SHARD", 2)
    seen: list[str] = []
    cut = bench.run(toy_grid(), Store(tmp_path / "cut"), lambda step: seen.append(step.phase))
    assert list(map(timeless, cut)) == list(map(timeless, whole))
    assert "edit 1/2" in seen and "edit 2/2" in seen


def test_a_picture_damaged_inside_is_found_when_asked(tmp_path):
    first = bench.run(toy_grid(samples=samples(1)), Store(tmp_path))
    path = next(tmp_path.rglob(f"{by_method(first)['SIFM'].protected}.png"))
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(16) + whole[middle + 16 :])
    bench.run(toy_grid(samples=samples(1)), Store(tmp_path), verify=True)
    assert path.read_bytes() == whole


# ---- executors


class Deadly(ToyEditor):
    """Kills its own process at its first edit, or at every one."""

    def __init__(self, marker: Path, always: bool = False) -> None:
        super().__init__()
        self.marker, self.always = marker, always

    def edit(self, x, cond, **settings):
        if self.always or not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().edit(x, cond, **settings)


def executor(kind: str) -> bench.Executor:
    if kind == "ray":
        pytest.importorskip("ray", reason="Ray is not installed: pip install ray; its executor is NOT tested")
        return bench.Ray("local", 2)
    return bench.Pool(2)


@pytest.mark.parametrize("kind", ["pool", "ray"])
def test_other_processes_give_the_same_records_and_may_die(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else a busy machine starves them
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # Ray's workers unpickle this file's classes
    grid = toy_grid(samples=samples(2), rows=(ROWS[0], ROWS[2]), batch=1)
    here = bench.run(grid, Store(tmp_path / "here"))
    marker = tmp_path / "marker"
    there = bench.run(replace(grid, editors=[Deadly(marker)]), Store(tmp_path / "there"), executor=executor(kind))
    assert [r.info["failed"] for r in there if "failed" in r.info] == []
    assert marker.exists()
    assert list(map(timeless, there)) == list(map(timeless, here))


def test_a_task_that_kills_every_worker_is_given_up(tmp_path):
    grid = toy_grid(samples=samples(1), rows=ROWS[:1], editors=[Deadly(tmp_path / "x", always=True)])
    (record,) = bench.run(grid, Store(tmp_path / "run"), executor=bench.Pool(1))
    assert "3 workers died of it" in record.info["failed"] and record.edited == ""
