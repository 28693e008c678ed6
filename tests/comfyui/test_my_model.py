"""*Protect against my model* on a real ComfyUI: core's nodes around the pack's, tiny random models for files."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest

from sifm_core import images

pytestmark = [pytest.mark.comfyui, pytest.mark.usefixtures("server")]
API = Path(__file__).parents[2] / "workflows" / "api"
FAMILIES = {"my_model_kontext": "kontext", "my_model_qwen_image_edit": "qwen", "my_model_inpainting": "inpainting"}
FAMILIES |= {"my_model_flux2": "flux2", "my_model_longcat": "longcat", "my_model_fill": "fill"}
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
    nodes = tiny(name, **SMALL, **({"size": 64} if name in ("my_model_inpainting", "my_model_fill") else {}))
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


def test_single_files_that_cores_own_loaders_read(server):
    """UNETLoader in fp8, a LoRA's loader, VAELoader; the text encoder is the tiny one: core knows no small file."""
    server.run({"files": {"class_type": "TinyFiles", "inputs": {}, "_meta": {"title": "files"}}})
    nodes = tiny("my_model_kontext", **SMALL)
    editor = nodes[by_kind(nodes, "SIFM_EditorFromModel")]["inputs"]
    loaders = {
        "unet": ("UNETLoader", {"unet_name": "tiny.safetensors", "weight_dtype": "fp8_e4m3fn"}),
        "vae": ("VAELoader", {"vae_name": "tiny.safetensors"}),
        "lora": (
            "LoraLoaderModelOnly",
            {"model": ["unet", 0], "lora_name": "tiny.safetensors", "strength_model": 0.8},
        ),
    }
    nodes |= {i: {"class_type": kind, "inputs": inputs, "_meta": {"title": i}} for i, (kind, inputs) in loaders.items()}
    editor |= {"model": ["lora", 0], "vae": ["vae", 0]}
    entry = server.run(nodes)
    (line,) = entry["outputs"][by_kind(nodes, "SIFM_Immunize")]["sifm_doctor"]
    assert line.startswith("Flux in ComfyUI (FLUX Kontext, float32 on cpu): gradient within 0.")


def by_core(text: str, steps: int = 3) -> dict:
    """Core's own nodes on the very model that is protected against."""
    link = {"model": ["tiny", 0], "positive": ["told", 0], "negative": ["told", 0], "latent_image": ["empty", 0]}
    sampler = {"sampler_name": "euler", "scheduler": "simple", "denoise": 1.0, "cfg": 2.0, "seed": 7, "steps": steps}
    nodes = {
        "tiny": ("TinyModels", {"family": "kontext", "cut": False}),
        "told": ("CLIPTextEncode", {"clip": ["tiny", 2], "text": text}),
        "empty": ("EmptySD3LatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "sampled": ("KSampler", link | sampler),
        "picture": ("VAEDecode", {"samples": ["sampled", 0], "vae": ["tiny", 1]}),
        "saved": ("SaveImage", {"images": ["picture", 0], "filename_prefix": "by_core"}),
    }
    return {i: {"class_type": kind, "inputs": inputs, "_meta": {"title": i}} for i, (kind, inputs) in nodes.items()}


def test_a_model_that_other_graphs_run_in_the_same_queue_stays_theirs(server, events):
    """Before, between and after protections, one of which is interrupted, core makes the same picture of it."""
    protect = tiny("my_model_kontext", **SMALL, seed=1)
    long = tiny("my_model_kontext", **SMALL | {"steps": 900}, seed=2)
    texts = [f"a house{' ' * n}" for n in range(4)]  # the same to the model, another to ComfyUI's cache
    tickets = [
        server.queue(nodes) for nodes in (by_core(texts[0]), protect, by_core(texts[1]), long, by_core(texts[2]))
    ]
    until = time.monotonic() + 300
    while len(events.of("progress", tickets[3])) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    server.post("/interrupt", {"prompt_id": tickets[3]})
    entries = [server.finished(ticket) for ticket in (*tickets, server.queue(by_core(texts[3])))]
    assert [entry["status"]["status_str"] for entry in entries] == [*["success"] * 3, "error", *["success"] * 2]
    pictures = set()
    for entry in (entries[0], entries[2], *entries[4:]):
        (saved,) = entry["outputs"]["saved"]["images"]
        pixels = images.load_image(Path(server.base, "output", saved["subfolder"], saved["filename"]))
        pictures.add(hashlib.sha256(pixels.numpy().tobytes()).hexdigest())
    assert len(pictures) == 1
