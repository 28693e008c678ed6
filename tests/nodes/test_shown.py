"""What nodes show is kept on the server, by workflow and node; what lies in the user folder has a size and a limit."""

from __future__ import annotations

import shutil
import time
from types import SimpleNamespace

import pytest
import torch

from sifm_core.errors import InputError

pytestmark = pytest.mark.usefixtures("comfy")

FLOW = "0b6f1c1e-0000-4000-8000-000000000001"


def run(output, node="7", prompt="p", index=None, flow=FLOW):
    """As a node of a graph that a page has sent executes and shows ``output``."""
    from comfy_execution.utils import CurrentNodeContext

    from nodes import _shown

    with CurrentNodeContext(prompt, node, index):
        _shown.keep(SimpleNamespace(extra_pnginfo={"workflow": {"id": flow}}), output)


def noise(seed: int, side: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (3, side, side), generator=torch.Generator().manual_seed(seed)) / 255


def test_the_last_run_of_a_node_is_what_a_page_finds_and_other_workflows_see_nothing_of_it():
    from nodes._shown import recalled

    run({"text": ["one"]}, prompt="a")
    run({"text": ["two"], "loss": [float("nan"), 1.0]}, prompt="b")
    run({"text": ["other"]}, node="3:7")
    assert recalled(FLOW) == {"7": {"text": ["two"], "loss": [None, 1.0]}, "3:7": {"text": ["other"]}}
    assert recalled(FLOW.replace("1e", "2e")) == {} and recalled("../../x") == {}


def test_a_node_that_runs_for_each_item_of_a_list_shows_all_of_the_last_run_only():
    from nodes._shown import recalled

    for prompt, items in (("a", 3), ("b", 2)):
        for i in range(items):
            run({"curve": [f"{prompt}{i}"]}, prompt=prompt, index=i)
    assert recalled(FLOW)["7"] == {"curve": ["b0", "b1"]}


def test_pictures_outlive_the_servers_temporary_files():
    import folder_paths

    from nodes import _shown

    file = _shown.picture(noise(1))
    run({"images": [file]})
    shutil.rmtree(folder_paths.get_temp_directory())
    assert _shown.recalled(FLOW)["7"]["images"] == [file]
    assert (__import__("pathlib").Path(folder_paths.get_temp_directory()) / "sifm" / file["filename"]).is_file()


def test_a_prompt_without_a_workflow_and_ids_that_are_none_keep_nothing():
    from nodes import _shown
    from nodes._store import home

    run({"text": ["x"]}, flow="../../../etc")
    run({"text": ["x"]}, node="a/b")
    _shown.keep(SimpleNamespace(extra_pnginfo=None), {"text": ["x"]})
    assert not (home() / "shown").exists()


def test_every_node_that_shows_something_is_remembered_as_it_executes(editor):
    from comfy_execution.utils import CurrentNodeContext

    from nodes import node_list
    from nodes._shown import recalled

    nodes = {node.define_schema().node_id: node for node in node_list()}
    assert all("extra_pnginfo" in [h.name for h in node.define_schema().hidden] for node in nodes.values())
    clone = nodes["SIFM_FeatureHook"].PREPARE_CLASS_CLONE(
        {"hidden_inputs": {"extra_pnginfo": {"workflow": {"id": FLOW}}}}
    )
    clone.hidden = SimpleNamespace(extra_pnginfo={"workflow": {"id": FLOW}})
    with CurrentNodeContext("p", "9", None):
        clone.execute(editor, {"layers": "mid"}, "10", "literal")
    assert recalled(FLOW)["9"]["sifm_matches"]


def test_only_the_workflows_that_ran_last_are_kept_with_their_pictures():
    from nodes import _shown
    from nodes._store import home

    files = []
    for i in range(3):
        files.append(_shown.picture(noise(i)))
        run({"images": [files[-1]]}, flow=FLOW[:-1] + str(i))
        time.sleep(0.01)
    _shown.tidy(2)
    assert [bool(_shown.recalled(FLOW[:-1] + str(i))) for i in range(3)] == [False, True, True]
    kept = {file.name for file in (home() / "shown" / "images").glob("*/*")}
    assert kept == {file["filename"] for file in files[1:]}


def computed(i: int, side: int = 64):
    from nodes._store import recall

    made = []

    def compute():
        made.append(i)
        return noise(i, side)[None], {}

    recall("edit", {"i": i}, compute)
    return bool(made)


def test_results_that_were_used_longest_ago_go_first_once_they_are_more_than_the_limit(monkeypatch):
    import os

    from nodes import _store

    for i in range(4):
        assert computed(i)
    with _store.Store(_store.home() / "results") as store:
        pictures = dict(enumerate(about["pictures"][0] for _, about in store.documents("edit")))
        order = {about["pictures"][0]: key for key, about in store.documents("edit")}
        for age, name in pictures.items():
            os.utime(_store._file(store, name), (age, age))
    assert len(order) == 4
    size = _store.sizes()["results"]
    one = max(f.stat().st_size for f in (_store.home() / "results" / "images").glob("*/*"))
    _store.set_limit(2.5 * one / 1e9)
    left = {file.stem for file in (_store.home() / "results" / "images").glob("*/*")}
    assert left == {pictures[2], pictures[3]} and _store.sizes()["results"] < size
    _store.set_limit(0)
    assert sum(not computed(i) for i in range(4)) == 2, "what is left is found, what is gone is computed again"


def test_what_was_paid_for_or_judged_by_hand_is_not_cleared():
    from nodes import _store

    computed(1)
    (_store.home() / "judges.sqlite").write_bytes(b"x")
    for part in ("judges.sqlite", _store.ANNOTATIONS, "..", ""):
        with pytest.raises(InputError):
            _store.clear(part)
    _store.clear("results")
    assert _store.sizes()["results"] == 0 and _store.sizes()["judges.sqlite"] == 1
    for wrong in (-1, float("nan"), "5", True, None):
        with pytest.raises(InputError):
            _store.set_limit(wrong)
