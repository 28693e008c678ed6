"""Graphs of every released schema still fit the nodes: what they set exists, what is required they have.

``released/VERSION/`` holds the API format of the workflows as that version shipped them; a release adds a folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("comfy")
GRAPHS = sorted(Path(__file__).parent.glob("released/*/*.json"))


def fits(name: str, value: Any, spec: list[Any]) -> str:
    """What is wrong with a value that is no link, or nothing."""
    kind, about = spec[0], spec[1] if len(spec) > 1 else {}
    options = about.get("options")
    if kind == "COMBO" and options and value not in options:
        return f"{name}: {value!r} is no choice any more"
    kinds: dict[str, Any] = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
    return "" if isinstance(value, kinds.get(kind, object)) else f"{name}: {value!r} is no {kind}"


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_graph_of_a_released_version_still_runs(path):
    from comfy_api.latest import _io

    from nodes import node_list

    nodes = {node.GET_SCHEMA().node_id: node for node in node_list()}
    for id, node in json.loads(path.read_text()).items():
        if not node["class_type"].startswith("SIFM_"):
            continue
        made = nodes[node["class_type"]]
        known, _, _ = _io.get_finalized_class_inputs(made.INPUT_TYPES(), node["inputs"])
        specs = {**known.get("required", {}), **known.get("optional", {})}
        assert not set(node["inputs"]) - set(specs), f"{id} {node['class_type']}"
        assert not set(known.get("required", {})) - set(node["inputs"]), f"{id} {node['class_type']}"
        plain = {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}
        assert not [wrong for name, value in plain.items() if (wrong := fits(name, value, specs[name]))]


def test_there_are_graphs_of_the_first_release():
    assert len(GRAPHS) >= 14
