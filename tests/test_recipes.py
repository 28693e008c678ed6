"""CONTRIBUTING's table of what to write for what: its places are there, and one file and one line are enough."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fakes import images
from sifm_core import cli, editors, judges, metrics, purify
from sifm_core.images import save_png
from sifm_core.judges import load_judge
from sifm_core.metrics import Kind
from sifm_core.types import Case

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\| add an? (.+?) \| (.+?) \| (.+?) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
CODE = re.compile(r"`([^`]+)`")


@pytest.mark.parametrize("what, write, listed", ROWS, ids=[row[0] for row in ROWS])
def test_the_places_that_a_recipe_names_are_there(what: str, write: str, listed: str) -> None:
    *names, place = CODE.findall(listed)
    tables = [node for node in ast.parse((ROOT / place).read_text()).body if isinstance(node, ast.AnnAssign)]
    assert set(names) <= {ast.unparse(table.target) for table in tables}
    assert CODE.findall(write)[0].rpartition("/")[0] == place.rpartition("/")[0]


def test_there_is_a_recipe_for_each_thing_that_can_be_added() -> None:
    things = {"immunization method", "editor family", "judge", "metric", "purifier", "node"}
    assert {what for what, *_ in ROWS} == things


JUDGE = '''"""A judge that says of every edit that it works."""

from sifm_core.types import Verdict


class Kind:
    def __init__(self, name):
        self.name = name

    def judge(self, cases, *, on_step=None):
        return [Verdict(self.name, "ok", False, False) for _ in cases]


def load(model, *, base_url=None):
    return Kind(f"kind:{model}")
'''
METRIC = '''"""The largest difference of a value."""


def largest(reference, distorted):
    return (reference - distorted).abs().flatten(1).amax(1)
'''
PURIFIER = '''"""Turned upside down so many times."""


def purify(image, setting):
    return image.flip(2) if setting % 2 else image
'''
FAMILY = '''"""A family of somebody else's, that works as one that is here."""

from sifm_core.editors.instruct_pix2pix import DEFAULTS, assemble, load  # noqa: F401
'''


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate("ab"):
        save_png(images(1, 24, seed=i), f"{name}.png")
    return tmp_path


def add(room: ModuleType, name: str, code: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The file of a recipe, as if it lay in that folder; gives its module's name."""
    (here / f"{name}.py").write_text(code)
    monkeypatch.setattr(room, "__path__", [*room.__path__, str(here)])
    module = f"{room.__name__}.{name}"
    monkeypatch.setitem(sys.modules, module, None)  # so that it is forgotten afterwards
    del sys.modules[module]
    return module


def sifm(capsys: pytest.CaptureFixture[str], *words: str) -> object:
    assert cli.main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_judge_is_one_file_and_one_line(here, monkeypatch, capsys) -> None:
    module = add(judges, "kind", JUDGE, here, monkeypatch)
    monkeypatch.setitem(judges.BACKENDS, "kind", judges.Backend(module))
    picture = images(1, 24)[0]
    assert load_judge("kind:hearted").judge([Case(picture, picture, "a")])[0].success is False
    said = sifm(capsys, "judge", "a.png", "b.png", "--prompt", "a", "--judge", "kind:hearted")
    assert said["edit_failed"] is False and said["verdicts"][0]["judge"] == "kind:hearted"
    assert sifm(capsys, "list", "judges")["kind"]["about"].startswith("A judge that says")


def test_a_metric_is_one_file_and_one_line(here, monkeypatch, capsys) -> None:
    add(metrics, "largest", METRIC, here, monkeypatch)
    monkeypatch.setitem(metrics.METRICS, "largest", Kind("largest", "higher", 1, "largest:1", "largest difference"))
    found = sifm(capsys, "metrics", "a.png", "b.png", "--metric", "largest")["largest"]
    assert 0.9 < found["value"] <= 1 and found["definition"] == "largest:1"
    assert "largest" in sifm(capsys, "list", "metrics")


def test_a_purifier_is_one_file_and_one_line(here, monkeypatch, capsys) -> None:
    add(purify, "turn", PURIFIER, here, monkeypatch)
    monkeypatch.setitem(purify.PURIFIERS, "turn", purify.Kind("turns", 0, 3, 1, 0, 9))
    x = images(1, 24)
    assert purify.apply(x, "turn:1").equal(x.flip(2)) and purify.apply(x, "turn:1,turn").equal(x)
    sifm(capsys, "purify", "a.png", "turn:3", "-o", "c.png")
    assert sifm(capsys, "list", "purifiers")["turn"]["about"] == "Turned upside down so many times."


def test_an_editor_family_is_one_file_and_one_line(here, monkeypatch, ip2p_folder, capsys) -> None:
    module = add(editors, "elsewhere", FAMILY, here, monkeypatch)
    monkeypatch.setitem(editors.FAMILIES, "ElsewherePipeline", module)
    index = json.loads((ip2p_folder / "model_index.json").read_text())
    copy = here / "theirs"
    copy.mkdir()
    for part in ip2p_folder.iterdir():
        (copy / part.name).symlink_to(part)
    (copy / "model_index.json").unlink()
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": "ElsewherePipeline"}))
    assert importlib.import_module(module).__doc__.startswith("A family")
    sifm(
        capsys,
        "edit",
        "a.png",
        "-o",
        "c.png",
        "--editor",
        str(copy),
        "--prompt",
        "a",
        "--size",
        "16",
        "--option",
        "steps=1",
    )


def test_every_node_of_the_files_is_in_the_list() -> None:
    """What `nodes/` defines is what `node_list` gives; read as text, since a ComfyUI may not be here."""
    classes = {
        node.name
        for file in (ROOT / "nodes").glob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef) and "io.ComfyNode" in map(ast.unparse, node.bases)
    }
    whole = ast.walk(ast.parse((ROOT / "nodes/__init__.py").read_text()))
    (listed,) = (node for node in whole if isinstance(node, ast.List))
    assert {ast.unparse(name) for name in listed.elts} == classes
