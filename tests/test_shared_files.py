"""Folders that somebody shared: they run no code, ask no server, never hang, and what is absurd is refused at once."""

from __future__ import annotations

import ast
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fakes
import tiny_clip
from sifm_core import cli
from sifm_core.editors import load_editor
from sifm_core.editors.skeleton import skeleton
from sifm_core.errors import JudgeError, SifmError
from sifm_core.judges import load_judge
from sifm_core.metrics.clip_score import clip_score

ROOT = Path(__file__).parent.parent
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
Change = Callable[[Path], object]


def says(name: str, **changes: object) -> Change:
    """These entries in a JSON file of the folder."""

    def change(folder: Path) -> None:
        file = folder / name
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(known | changes))

    return change


def holds(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


def is_a_pipe(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


INDEX = f"{WEIGHTS}.index.json"
DEEP = '{"a": ' * 100_000
FOLDERS: dict[str, Change] = {
    "weights that are a list": says(INDEX, weight_map=["a"]),
    "weights that are numbers": says(INDEX, weight_map={"a": 1}),
    "weights above the folder": says(INDEX, weight_map={"a": "../../../etc/passwd"}),
    "weights elsewhere": says(INDEX, weight_map={"a": "/etc/passwd"}),
    "a deep index": holds(INDEX, DEEP),
    "a class that is a list": says("model_index.json", _class_name=["StableDiffusionInstructPix2PixPipeline"]),
    "a class that is a table": says("model_index.json", _class_name={}),
    "a part of nothing": says("model_index.json", unet=[]),
    "a part of one": says("model_index.json", unet=["diffusers"]),
    "a part of lists": says("model_index.json", unet=[["diffusers"], ["UNet2DConditionModel"]]),
    "a class that is none": says("model_index.json", unet=["diffusers", "NoSuchNetwork"]),
    "a function for a class": says("model_index.json", unet=["diffusers", "is_torch_available"]),
    "a deep configuration": holds("unet/config.json", DEEP),
    "a configuration that is a list": holds("unet/config.json", "[]"),
    "layers without end": says("unet/config.json", layers_per_block=100_000),
    "blocks without end": says("unet/config.json", block_out_channels=[8] * 100_000),
    "channels that are words": says("unet/config.json", block_out_channels=["a", "b"]),
    "an autoencoder without end": says("vae/config.json", layers_per_block=10**30),
    "encoder layers without end": says("text_encoder/config.json", num_hidden_layers=100_000),
    "an infinite width": says("text_encoder/config.json", hidden_size=float("inf")),
    "a width that is none": says("text_encoder/config.json", hidden_size=float("nan")),
    "timesteps without end": says("scheduler/scheduler_config.json", num_train_timesteps=10**9),
    "settings that are a list": holds("sifm.json", "[]"),
    "deep settings": holds("sifm.json", DEEP),
    "steps without end": says("sifm.json", steps=10**9),
    "a size without end": says("sifm.json", size=10**9),
    "infinite guidance": says("sifm.json", guidance_scale=float("inf")),
    "an index that is a pipe": is_a_pipe("model_index.json"),
    "a configuration that is a pipe": is_a_pipe("unet/config.json"),
    "weights that are a pipe": is_a_pipe(WEIGHTS),
    "settings that are a pipe": is_a_pipe("sifm.json"),
}


@pytest.fixture
def folder(ip2p_folder: Path, tmp_path: Path) -> Path:
    """A copy that the test may spoil."""
    return Path(shutil.copytree(ip2p_folder, tmp_path / "editor"))


@pytest.mark.parametrize("change", FOLDERS.values(), ids=FOLDERS)
def test_a_hostile_editor_is_refused_in_one_sentence(folder, change, tmp_path, capsys):
    change(folder)
    with pytest.raises(SifmError) as caught:
        load_editor(folder, device="cpu")
    assert len(str(caught.value)) <= 1000
    picture = tmp_path / "a.png"
    picture.write_bytes(_png())
    assert cli.main(
        ["edit", str(picture), "-o", str(tmp_path / "b.png"), "--prompt", "a", "--editor", str(folder)]
    ) in (
        1,
        2,
    )
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "failed:" not in err and not (tmp_path / "b.png").exists()


def _png() -> bytes:
    from sifm_core.images import png_bytes

    return png_bytes(fakes.images(1, 16))


@pytest.mark.parametrize("name", [name for name in FOLDERS if "weights" not in name and "index" not in name])
def test_counting_what_a_hostile_editor_costs_ends_too(folder, name):
    FOLDERS[name](folder)
    try:
        skeleton(str(folder))
    except SifmError as error:
        assert len(str(error)) <= 1000


@pytest.mark.parametrize("limit", [float("inf"), 10**30, -1, 0, "16", None])
def test_a_tokenizer_without_a_limit_reads_as_far_as_its_encoder(folder, ip2p_folder, limit):
    says("tokenizer/tokenizer_config.json", model_max_length=limit)(folder)
    plain, odd = (load_editor(place, device="cpu", size=16) for place in (ip2p_folder, folder))
    assert torch.equal(odd.prepare(["a hat"]).prompt, plain.prepare(["a hat"]).prompt)


def test_a_further_file_that_is_a_pipe_is_not_hashed(folder, ip2p_folder):
    os.mkfifo(folder / "unet" / "more.json")
    assert load_editor(folder, device="cpu").fingerprint == load_editor(ip2p_folder, device="cpu").fingerprint


CODE = "import pathlib; pathlib.Path({marker!r}).touch()\nclass Config: ...\nclass Model: ...\n"


def test_no_code_of_a_folder_is_run_and_nobody_is_asked_whether_it_may(tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "evil.py").write_text(CODE.format(marker=str(marker)))
    auto = {name: "evil.Model" for name in ("AutoModelForImageTextToText", "AutoModel", "AutoTokenizer")}
    auto |= {"AutoConfig": "evil.Config", "AutoProcessor": "evil.Model"}
    for name in ("config", "tokenizer_config", "processor_config", "preprocessor_config"):
        (model / f"{name}.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    with pytest.raises(JudgeError):
        load_judge(f"transformers:{model}")
    assert clip_score(fakes.images(1, 40), ["a cat"], model=str(model))[0].value is None
    assert not marker.exists()


def test_every_model_of_others_is_loaded_without_its_code():
    files = [path for path in (ROOT / "sifm_core").rglob("*.py") if "miniature" not in str(path.relative_to(ROOT))]
    loads = [
        (path.name, ast.unparse(node))
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and (getattr(node.func, "attr", "") == "from_pretrained" or getattr(node.func, "id", "") == "whole")
    ]
    assert len(loads) >= 5
    own = ("pretrained.py", "kind.from_pretrained(place, output_loading_info=True, **given)")
    parts = ("pretrained.py", "whole(part, Path(folder, name), **given)")  # of classes of the two libraries alone
    loads.remove(own)
    loads.remove(parts)
    assert [load for load in loads if "trust_remote_code=False" not in load[1] and "**HERE" not in load[1]] == []


@pytest.fixture
def hub(tmp_path, monkeypatch) -> list[object]:
    """A cache of the hub with a CLIP, "own/clip", and what was looked up outside; every look-up fails."""
    import huggingface_hub

    snapshot = tmp_path / "cache" / "models--own--clip" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    tiny_clip.save(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    for module in (huggingface_hub.constants, huggingface_hub.file_download):
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            monkeypatch.setattr(module, name, str(tmp_path / "cache"), raising=False)
    asked: list[object] = []

    def deny(*address: object, **options: object) -> None:
        asked.append(address)
        raise OSError("there is no network here")

    monkeypatch.setattr(socket, "getaddrinfo", deny)
    monkeypatch.setattr(socket, "create_connection", deny)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)
    if agents := getattr(huggingface_hub.utils, "_detect_agent", None):  # whose answer is kept for a day
        monkeypatch.setattr(agents, "_registry", None)
        monkeypatch.setattr(agents, "_read_cached_registry", lambda *_, **__: None)
    return asked


def test_what_is_not_to_be_fetched_is_not_looked_up(hub, tmp_path, capsys):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(_png())
    words = ["clip", str(tmp_path / "0.png"), str(tmp_path / "1.png"), "--text", "a cat", "--model"]
    assert cli.main([*words, "own/clip"]) == 0, capsys.readouterr().err
    for name in ("other/clip", "no id at all", "a/b/c"):
        assert cli.main([*words, name]) == 1
        with pytest.raises(JudgeError):
            load_judge(f"transformers:{name}")
    for name in ("own/clip", "other/editor"):
        with pytest.raises(SifmError):
            load_editor(name)
    assert hub == []
