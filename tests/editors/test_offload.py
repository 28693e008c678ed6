"""Where the networks are: offloading, checkpointing, decode. "cpu:0" stands for a device that is not home."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fakes import images
from sifm_core.editors import load_editor
from sifm_core.errors import EditorError, InputError
from sifm_core.methods import sifm

FOLDERS = ["ip2p_folder", "sd3_folder", "ultraedit_folder"]


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(network, where to), for whole networks."""
    seen: list[tuple[str, str]] = []
    to = nn.Module.to

    def watched(self: nn.Module, *args: object, **kwargs: object) -> nn.Module:
        if hasattr(self, "config"):
            seen.append((type(self).__name__, str(args[0])))
        return to(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "to", watched)
    return seen


@pytest.mark.parametrize("offload", ["text", "sequential"])
def test_text_encoders_are_there_only_while_they_read(folder: Path, offload: str, moves) -> None:
    plain = load_editor(folder, device="cpu", steps=5)
    moves.clear()
    editor = load_editor(folder, device="cpu:0", offload=offload, steps=5)
    assert not any("Text" in name or "T5" in name for name, where in moves if where == "cpu:0")
    assert all(part is None for name, part in editor.pipe.components.items() if name.startswith("text_encoder"))
    moves.clear()
    cond = editor.prepare(["a b", "c"])
    readers = {name for name, part in plain.pipe.components.items() if name.startswith("text_encoder") and part}
    arrived = [name for name, where in moves if where == "cpu:0" and ("Text" in name or "T5" in name)]
    left = [name for name, where in moves if where == "cpu" and ("Text" in name or "T5" in name)]
    assert len(arrived) == len(left) == len(readers), "once for both prompts"
    others = [where for name, where in moves if "Text" not in name and "T5" not in name]
    assert others == (["cpu", "cpu", "cpu:0", "cpu:0"] if offload == "sequential" else [])
    moves.clear()
    assert torch.equal(cond.prompt, plain.prepare(["a b", "c"]).prompt)
    editor.prepare(["c"])
    assert moves == [], "a remembered prompt moves nothing"
    assert torch.equal(editor.edit(images(2), cond, seed=1), plain.edit(images(2), cond, seed=1))


def test_they_leave_too_when_reading_fails(ip2p_folder: Path) -> None:
    editor = load_editor(ip2p_folder, device="cpu:0", offload="text")
    with pytest.raises(InputError, match="reads 16 tokens"):
        editor.prepare(["a" * 40])
    assert editor.pipe.text_encoder is None and editor.prepare(["a"]).prompt.shape[0] == 1


@pytest.mark.parametrize("offload", ["none", "text", "sequential"])
def test_on_the_cpu_it_changes_nothing(ip2p_folder: Path, offload: str) -> None:
    assert load_editor(ip2p_folder, device="cpu", offload=offload).pipe.text_encoder is not None


def test_an_unknown_offload_is_refused(ip2p_folder: Path) -> None:
    with pytest.raises(InputError, match="did you mean text"):
        load_editor(ip2p_folder, offload="texts")


def test_checkpointing_gives_the_same_gradient_of_the_same_features(folder: Path) -> None:
    grads = []
    for checkpointing in (False, True):
        editor = load_editor(folder, device="cpu", dtype="float64", checkpointing=checkpointing)
        assert editor.pipe.vae.encoder.gradient_checkpointing is checkpointing
        x = images(1).double()
        grads.append(sifm.build(editor, x, editor.prepare(["a"]), timesteps=2, layers="deep")(x, 0).grad)
    assert torch.allclose(*grads, rtol=1e-10, atol=1e-12) and bool(grads[0].any())


def test_decode_is_the_pictures_way_back_and_differentiable(folder: Path) -> None:
    editor = load_editor(folder, device="cpu")
    z = editor.encode(images(2)).detach().requires_grad_()
    mode = editor.pipe.vae.encode(2 * images(2) - 1).latent_dist.mode()
    expected = editor.pipe.vae.decode(mode).sample / 2 + 0.5
    assert torch.allclose(editor.decode(z), expected, atol=1e-5)
    assert bool(torch.autograd.grad(editor.decode(z).sum(), z)[0].any())


@pytest.mark.parametrize("what", ["networks", "text encoders"])
def test_a_device_that_is_too_small_is_said(ip2p_folder: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    to, full = nn.Module.to, torch.OutOfMemoryError("CUDA out of memory")

    def refuse(self: nn.Module, *args: object, **kwargs: object) -> nn.Module:
        if str(args[0]) == "cpu:0" and ("Text" in type(self).__name__) == (what == "text encoders"):
            raise full
        return to(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "to", refuse)
    with pytest.raises(EditorError, match=f"not enough memory on cpu:0 for the {what} of .*offload='text'"):
        load_editor(ip2p_folder, device="cpu:0", offload="text").prepare(["a"])
