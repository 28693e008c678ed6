"""The full-size benchmark on tiny editors: every case runs, a row says what was done, a broken case costs itself."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import full_size
from benchmarks.full_size import Case
from sifm_core.editors.skeleton import skeleton

SETTINGS = ["--size", "16", "--iterations", "1", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(params=["ip2p_folder", "sd3_folder"])
def folder(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def rows(capsys, *words: str) -> list[dict]:
    full_size.main([*words, *SETTINGS, "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_form_of_an_iteration_is_a_row(folder: str, capsys) -> None:
    found = rows(capsys, "--editor", folder, "--only", "sifm T=4 x1")
    assert [row["form"] for row in found] == ["rows, graph", "rows", "graph", "sequential", "literal"]
    for row in found:
        assert row["seconds"] > 0 and row["seconds_per_image"] == pytest.approx(100 * row["seconds"])
        assert (row["teraflop"] is None) == (row["form"] == "literal")


def test_a_batch_counts_as_its_pictures(folder: str, capsys) -> None:
    one, *_, eight, _ = rows(capsys, "--editor", folder, "--only", "sifm T=4")
    assert (one["batch"], eight["batch"]) == (1, 8) and eight["teraflop"] == pytest.approx(8 * one["teraflop"])
    assert eight["seconds_per_image"] == pytest.approx(100 * eight["seconds"] / 8)


def test_all_methods_and_edits_have_their_rows(folder: str, capsys) -> None:
    for word, forms in (("mist", 2), ("photoguard_diffusion", 2), ("semantic_attack", 2), ("edit x", 4)):
        found = rows(capsys, "--editor", folder, "--only", word)
        assert len(found) == forms and not [row for row in found if "problem" in row], found


def test_a_case_that_fails_is_named_and_the_next_one_runs(folder: str, capsys, monkeypatch) -> None:
    def broken(case: Case, *rest: object) -> dict:
        if case.form == "rows":
            raise RuntimeError("CUDA error: an odd card")
        return {**case._asdict(), "seconds": 1.0, "seconds_per_image": 2.0, "gigabytes": 3.0, "teraflop_per_second": 5}

    monkeypatch.setattr(full_size, "measure", broken)
    full_size.main(["--editor", folder, "--only", "sifm T=4 x1", *SETTINGS])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == 5 and "RuntimeError: CUDA error: an odd card" in lines[1]
    assert lines[2].split()[-4:] == ["1.0000", "2.00", "3.0", "5.0"]
    found = rows(capsys, "--editor", "/no/such/editor", "--only", "edit x")
    assert len(found) == 4 and all("no/such" in row["problem"] for row in found)


def test_when_the_minutes_are_over_what_is_left_is_named(folder: str, capsys) -> None:
    found = rows(capsys, "--editor", folder, "--minutes", "0")
    assert len(found) == len(full_size.cases([folder])) > 30
    assert all(row["problem"] == "not run: the minutes are over" for row in found)


def test_both_algorithms_are_one_gradient(folder: str) -> None:
    editor = skeleton(folder, device="cpu", dtype=torch.float64, text=False, size=16)
    x0 = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (x0 + 0.02).clamp(0, 1)
    layer = next(iter(editor.layer_presets["mid"]))
    editor.layer_presets = {"deep": (layer,)}
    forms = [
        full_size.gradient(Case(folder, "sifm", form, 2, 1), editor, x0) for form in (*full_size.ROWS_OF, "literal")
    ]
    literal, *others = [grad_fn(x, 0) for grad_fn in reversed(forms)]
    for found in others:
        assert torch.allclose(found.loss, literal.loss, rtol=1e-10)
        assert bool((found.grad - literal.grad).norm() <= 1e-10 * literal.grad.norm()) and bool(literal.grad.any())
