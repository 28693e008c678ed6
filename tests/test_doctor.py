"""The doctor: names what is missing with its cure, shows no key, and exits 1 only for what is needed."""

from __future__ import annotations

import json
import sys

import pytest

from sifm_core import cli, doctor, judges, methods, purify


def findings() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine()}


def test_keys_are_never_shown(monkeypatch, capsys):
    monkeypatch.setenv("GEMINI_API_KEY", "secret-marker")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    cli.main(["doctor"])
    cli.main(["doctor", "--json"])
    out = capsys.readouterr().out
    assert "secret-marker" not in out
    assert findings()["GEMINI_API_KEY"].found == "set" and findings()["OPENAI_API_KEY"].found == "not set"


def test_a_broken_torchaudio_is_named_with_its_cure(monkeypatch):
    real = doctor._import_error

    def broken(module: str, attribute: str = "") -> str | None:
        if module == "torchaudio":
            return "OSError: libcudart.so.13: cannot open shared object file"
        return "RuntimeError: Failed to import diffusers" if attribute else real(module)

    monkeypatch.setattr(doctor, "_import_error", broken)
    monkeypatch.setattr(doctor, "package_version", lambda name: "2.11.0")
    found = findings()
    assert found["torchaudio"].state == found["editor pipeline"].state == "problem"
    assert "pip uninstall torchaudio" in found["torchaudio"].cure


@pytest.mark.parametrize(
    "module, cure", [("lpips", "pip install lpips"), ("PIL", "pip install pillow"), ("torchvision", "same index")]
)
def test_a_package_that_does_not_import_is_a_problem(monkeypatch, module, cure):
    monkeypatch.setattr(doctor, "_import_error", lambda name, _="": "ImportError: no" if name == module else None)
    if module != "torchvision":
        monkeypatch.setattr(doctor, "package_version", lambda name: None)
    finding = findings()[module]
    assert finding.state == "problem" and cure in finding.cure


def test_missing_weights_are_a_problem(monkeypatch, tmp_path):
    monkeypatch.setitem(doctor.BUILTIN, "miniature-ip2p", str(tmp_path / "none"))
    found = findings()
    assert found["miniature editor"].state == found["miniature judges"].state == "problem"
    assert "train" in found["miniature editor"].cure


def test_a_broken_backbone_is_no_backbone(monkeypatch, tmp_path):
    monkeypatch.setattr("sifm_core.metrics.lpips.backbone_path", lambda: tmp_path / "alexnet.pth")
    assert findings()["LPIPS backbone"].found == "missing, so LPIPS will be null"
    (tmp_path / "alexnet.pth").write_bytes(b"cut")
    finding = findings()["LPIPS backbone"]
    assert finding.state == "note" and finding.found == "not torchvision's file, so LPIPS will be null"


def test_comfyui_is_looked_for_where_the_variable_points(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert findings()["ComfyUI"].state == "problem"
    (tmp_path / "main.py").touch()
    assert findings()["ComfyUI"].state == "ok"
    monkeypatch.delenv("COMFYUI_PATH")
    assert findings()["ComfyUI"].state == "note"


@pytest.mark.parametrize("state, code", [("ok", 0), ("note", 0), ("problem", 1)])
def test_exit_code_and_json(monkeypatch, capsys, state, code):
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("thing", state, "found", "cure")])
    assert cli.main(["doctor", "--json"]) == code
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is (code == 0)
    assert said["checks"] == [{"name": "thing", "state": state, "found": "found", "cure": "cure"}]


BROKEN = {
    "imports what is not there": "import nothing_of_this_name",
    "is no Python": "def build(:",
    "raises something of its own": "raise SystemError('no')",
    "has no function": '"""Hollow."""',
    "has an unreadable annotation": 'def build(editor, x, cond, *, way: "Nowhere" = 1): ...',
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("kind", ["methods", "purifiers", "judges"])
def test_a_broken_module_costs_its_own_line_of_the_list_alone(what, kind, tmp_path, monkeypatch, capsys):
    room = {"methods": methods, "purifiers": purify, "judges": judges}[kind]
    (tmp_path / "broken_one.py").write_text(BROKEN[what])
    monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path)])
    table = {"methods": methods.METHODS, "purifiers": purify.PURIFIERS, "judges": judges.BACKENDS}[kind]
    entry = purify.PURIFIERS["blur"] if kind == "purifiers" else f"{room.__name__}.broken_one"
    entry = judges.Backend(entry) if kind == "judges" else entry
    whole = doctor.catalogue()
    monkeypatch.setitem(table, "broken_one", entry)
    try:
        found = doctor.catalogue()
        assert cli.main(["list"]) == 0 and "broken_one" in capsys.readouterr().out
    finally:
        sys.modules.pop(f"{room.__name__}.broken_one", None)
    said = found[kind].pop("broken_one")["about"]
    assert found == whole
    if kind == "methods":
        assert said.startswith("cannot be used: ") and "\n" not in said
    elif not what.startswith("has"):
        assert said.startswith("cannot be used: ")


def test_a_method_that_does_not_say_where_it_comes_from_is_listed(tmp_path, monkeypatch, capsys):
    (tmp_path / "quick_try.py").write_text(
        '"""A quick try."""\ndef build(editor, x, cond, *, strength: float = 1.0): ...\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(methods.METHODS, "quick", "quick_try")
    assert methods.problem("quick") == "" and cli.main(["list", "methods"]) == 0
    out = capsys.readouterr().out
    assert "A quick try." in out and "strength=1.0" in out
