"""Single-file checkpoints and LoRAs beside an editor's folder: what they change, exactly, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fakes
import packed_fakes
from sifm_core.editors import load_editor
from sifm_core.editors.extra import parted
from sifm_core.errors import EditorError, InputError

LAYER = "transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_fakes.flux_kontext(tmp_path_factory.mktemp("kontext"))


@pytest.fixture(scope="module")
def state(folder: Path) -> dict[str, Tensor]:
    """Other weights of the same network."""
    own = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    draw = torch.Generator().manual_seed(1)
    return {name: 0.1 * torch.randn(value.shape, generator=draw) for name, value in own.items()}


@pytest.fixture(scope="module")
def lora(folder: Path) -> tuple[Path, Tensor]:
    """A file, and what it adds to the layer's weight at strength 1."""
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    file = folder.parent / "style.safetensors"
    save_file({f"transformer.{LAYER}.lora_A.weight": down, f"transformer.{LAYER}.lora_B.weight": up}, file)
    return file, up @ down


def weight(editor) -> Tensor:
    return editor.net.get_submodule(LAYER).weight


def test_files_follow_the_source_after_plus_signs() -> None:
    assert parted("flux-kontext") == ("flux-kontext", [])
    assert parted("a+b/c") == ("a+b/c", [])
    assert parted("a/b+x.safetensors+y.safetensors:0.5") == ("a/b", ["x.safetensors", "y.safetensors:0.5"])


@pytest.mark.parametrize("fp8", [False, True])
def test_a_checkpoint_takes_the_place_of_the_networks_own_weights(folder, state, tmp_path, fp8: bool) -> None:
    """In fp8, with factors as such files have them; the folder need not have the network's weights."""
    kept = dict(state)
    if fp8:
        scale = state[f"{LAYER}.weight"].abs().max() / 448
        kept[f"{LAYER}.weight"] = (state[f"{LAYER}.weight"] / scale).to(torch.float8_e4m3fn)
        kept |= {f"{LAYER}.scale_weight": scale, "scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
    file = tmp_path / "checkpoint.safetensors"
    save_file(kept, file)
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    (bare / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    editor = load_editor(f"{bare}+{file}", device="cpu", steps=1)
    assert torch.allclose(weight(editor), state[f"{LAYER}.weight"], rtol=0.07 if fp8 else 0, atol=1e-3 if fp8 else 0)
    assert not weight(editor).requires_grad and editor.name == f"{bare}+{file}"
    assert editor.fingerprint != load_editor(folder, device="cpu").fingerprint
    x = fakes.images(1)
    assert editor.edit(x, editor.prepare(["a hat"]), seed=1).shape == x.shape
    with pytest.raises(EditorError, match="holds no safetensors"):
        load_editor(bare, device="cpu")


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_lora_adds_to_the_weights_and_leaves_the_layers_what_they_are(folder, lora, strength: float) -> None:
    pytest.importorskip("peft")
    plain, (file, change) = load_editor(folder, device="cpu"), lora
    said = f"{folder}+{file}" + (f":{strength}" if strength != 1 else "")
    editor = load_editor(said, device="cpu")
    assert torch.allclose(weight(editor), weight(plain) + strength * change, atol=1e-5)
    assert [name for name, _ in editor.net.named_modules()] == [name for name, _ in plain.net.named_modules()]
    assert not any(parameter.requires_grad for parameter in editor.net.parameters())
    assert editor.fingerprint not in (plain.fingerprint, load_editor(f"{folder}+{file}:0.25", device="cpu").fingerprint)


def test_loras_in_the_folder_are_added(folder, lora, tmp_path) -> None:
    pytest.importorskip("peft")
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    (own / "loras").mkdir()
    shutil.copy(lora[0], own / "loras")
    assert torch.allclose(weight(load_editor(own, device="cpu")), weight(load_editor(folder, device="cpu")) + lora[1])


def test_what_cannot_be_one_is_refused(folder, lora, state, tmp_path) -> None:
    file, spoilt, part = (tmp_path / f"{name}.safetensors" for name in ("whole", "spoilt", "part"))
    save_file(state, file)
    save_file({"x_embedder.bias": state["x_embedder.bias"]}, part)
    spoilt.write_bytes(b"no tensors")
    for said, kind, word in (
        (f"{folder}+{tmp_path / 'none.safetensors'}", EditorError, "no such file"),
        (f"{folder}+{spoilt}", EditorError, "not readable as safetensors"),
        (f"{folder}+{part}", EditorError, "lacks"),
        (f"{folder}+{file}+{file}", InputError, "one checkpoint"),
        (f"{folder}+{file}:0.5", InputError, "no strength"),
        (f"{folder}+{lora[0]}:11", InputError, "STRENGTH up to 10"),
        (f"{folder}+{lora[0]}:strong", InputError, "STRENGTH up to 10"),
    ):
        with pytest.raises(kind, match=word):
            load_editor(said, device="cpu")
