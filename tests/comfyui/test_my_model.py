"""*Protect against my model* on a real ComfyUI: core's nodes around the pack's, tiny random models for files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sifm_core import images

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("server")]
API = Path(__file__).parents[2] / "workflows" / "api"
FAMILIES = {"my_model_kontext": "kontext", "my_model_qwen_image_edit": "qwen", "my_model_inpainting": "inpainting"}
OUTPUTS = {
    "CheckpointLoaderSimple": (0, 2, 1),
    "UNETLoader": (0,),
    "VAELoader": (1,),
    "CLIPLoader": (2,),
    "DualCLIPLoader": (2,),
}
"""Loader -> which output of the tiny models stands for each of its own."""


def tiny(name: str, **changes) -> dict:
    """A template with tiny random models for its files, on a small copy of its picture, in two steps."""
    nodes = json.loads((API / f"{name}.json").read_text())
    kinds = {i: node["class_type"] for i, node in nodes.items()}
    picture = next(i for i, kind in kinds.items() if kind == "LoadImage")
    for node in nodes.values():
        for key, value in node["inputs"].items():
            if isinstance(value, list) and (places := OUTPUTS.get(kinds[value[0]])):
                node["inputs"][key] = ["tiny", places[value[1]]]
            elif value == [picture, 0]:
                node["inputs"][key] = ["small", 0]
        node["inputs"] |= {key: value for key, value in changes.items() if key in node["inputs"]}
    scaled = {"image": [picture, 0], "upscale_method": "area", "width": 64, "height": 48, "crop": "disabled"}
    models = {"family": FAMILIES[name], "cut": changes.get("cut", False)}
    extra = {"small": ("ImageScale", scaled), "tiny": ("TinyModels", models)}
    made = {i: {"class_type": kind, "inputs": inputs, "_meta": {"title": i}} for i, (kind, inputs) in extra.items()}
    return {i: node for i, node in nodes.items() if kinds[i] not in OUTPUTS} | made


def by_kind(nodes: dict, kind: str) -> str:
    return next(i for i, node in nodes.items() if node["class_type"] == kind)


SMALL = {"steps": 2, "eps": 0.03}


@pytest.mark.parametrize("name", FAMILIES)
def test_my_model_protects_saves_and_attacks(server, name):
    nodes = tiny(name, **SMALL, **({"size": 64} if name == "my_model_inpainting" else {}))
    entry = server.run(nodes)
    (line,) = entry["outputs"][by_kind(nodes, "SIFM_Immunize")]["sifm_doctor"]
    assert "of finite differences" in line and "GB" in line
    saved = entry["outputs"][by_kind(nodes, "SIFM_SaveProtected")]["images"][0]
    file = Path(server.base, "output", saved["subfolder"], saved["filename"])
    assert images.load_image(file).shape[-2:] == (48, 64)
    again = server.run(nodes)
    assert again["status"]["status_str"] == "success"


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("my_model_kontext", {"cut": True}, "no gradient comes"),
        ("my_model_kontext", {"recipe": "inpainting"}, "connect a MASK"),
        ("my_model_kontext", {"recipe": "encoder only"}, "encoder only"),
    ],
)
def test_what_cannot_protect_is_refused_in_a_sentence(server, name, changes, expected):
    nodes = tiny(name, **SMALL, **changes)
    entry = server.finished(server.queue(nodes))
    assert entry["status"]["status_str"] == "error"
    said = entry["status"]["messages"][-1][1]["exception_message"]
    assert expected in said and len(said) < 600
