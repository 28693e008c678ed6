"""`sifm purify`, `sifm edit --purify` and `sifm immunize --preset` on the toy editor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fakes
from sifm_core import cli, editors, purify
from sifm_core.images import load_image, save_png
from sifm_core.methods import presets
from toy import ToyEditor


@pytest.fixture
def loaded(tmp_path, monkeypatch) -> list[str]:
    """The editors that were loaded; pictures lie in the working folder."""
    monkeypatch.chdir(tmp_path)
    save_png(fakes.images(1, (40, 48)), "cat.png")
    save_png(fakes.images(1, 32, seed=1), "photos/a.png")
    names: list[str] = []
    monkeypatch.setattr(editors, "load_editor", lambda name, **_: names.append(name) or ToyEditor())
    return names


def sifm(capsys, *words: object) -> dict:
    assert cli.main([str(word) for word in (*words, "--json")]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_a_chain_is_applied_at_full_size_and_saved(loaded, capsys) -> None:
    done = sifm(capsys, "purify", "cat.png", "jpeg:60,gaussian_noise@0.5", "-o", "clean.png", "--seed", 3)
    want = purify.apply(load_image("cat.png"), "jpeg:60,gaussian_noise:0.05", seed=3)
    assert float((load_image("clean.png") - want).abs().max()) <= 0.51 / 255
    assert (done["purify"], done["editor"], loaded) == ("jpeg:60,gaussian_noise:0.05", None, [])
    (one,) = sifm(capsys, "purify", "photos", "vae_round_trip", "-o", "clean")
    assert Path("clean/a.png").exists() and one["editor"] == "toy" and loaded == ["miniature-ip2p"]


def test_edit_purifies_as_purify_does(loaded, capsys) -> None:
    sifm(capsys, "purify", "cat.png", "blur:1,gaussian_noise", "-o", "clean.png", "--seed", 3)
    sifm(capsys, "edit", "clean.png", "-o", "two.png", "--prompt", "a", "--seed", 3)
    words = ["--prompt", "a", "--seed", 3, "--purify", "blur:1,gaussian_noise"]
    assert sifm(capsys, "edit", "cat.png", "-o", "one.png", *words)["purify"] == "blur:1,gaussian_noise:0.05"
    assert torch.equal(load_image("one.png"), load_image("two.png"))


@pytest.mark.parametrize("words", [["purify", "cat.png", "jepg:75"], ["edit", "cat.png", "--purify", "jepg:75"]])
def test_an_unknown_purifier_is_refused_before_any_work(loaded, capsys, words: list[str]) -> None:
    prompt = ["--prompt", "a"] if words[0] == "edit" else []
    assert cli.main([*words, *prompt, "-o", "out.png"]) == 2
    assert capsys.readouterr().err == "sifm: unknown purifier 'jepg': did you mean jpeg?\n"
    assert not loaded and not Path("out.png").exists()


def test_presets_and_purifiers_are_listed(loaded, capsys) -> None:
    listed = sifm(capsys, "list", "purifiers")
    assert list(listed) == list(purify.PURIFIERS)
    assert listed["jpeg"] | {"about": ""} == {"about": "", "needs_editor": False} | purify.PURIFIERS["jpeg"]._asdict()
    assert listed["diffpure"]["needs_editor"]
    method = sifm(capsys, "list", "methods")["mist"]
    assert method["beyond_the_paper"][:2] == ["sd3", "flux-kontext"] and method["presets"] == presets("mist")
    assert cli.main(["list", "methods"]) == cli.main(["list", "purifiers"]) == 0
    said = capsys.readouterr().out
    assert "--preset paper: steps=1000 alpha=0.01 schedule=linear" in said
    assert "jpeg:75 as usual (quality, 1 to 100); jpeg@0 is 100, jpeg@1 is 30" in said


def test_a_preset_is_taken_and_what_is_given_wins(loaded, capsys) -> None:
    words = ["immunize", "cat.png", "-o", "safe.png", "--prompt", "a", "--method", "photoguard_encoder"]
    done = sifm(capsys, *words, "--preset", "paper", "--steps", 2, "--eps", "12/255")
    assert (done["eps"], done["steps"], done["schedule"]) == (pytest.approx(12 / 255), 2, "linear")
    assert done["alpha"] == presets("photoguard_encoder")["paper"]["alpha"]
    assert cli.main([*words, "--preset", "papers"]) == 2
    assert "did you mean paper" in capsys.readouterr().err
