"""The full-size benchmark on a tiny editor: both algorithms run, and the row says what was done."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
import torch

from benchmarks import full_size
from sifm_core.editors.skeleton import skeleton

SETTINGS = ["--size", "16", "--timesteps", "2", "--iterations", "2", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(params=["ip2p_folder", "sd3_folder"])
def folder(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def row(capsys, *words: str) -> dict:
    full_size.main([*words, *SETTINGS, "--json"])
    return json.loads(capsys.readouterr().out)


def test_the_row_of_each_algorithm(folder: str, capsys) -> None:
    ours, literal = (row(capsys, "--editor", folder, *words) for words in ((), ("--literal",)))
    assert (ours["algorithm"], literal["algorithm"]) == ("ours", "literal")
    for found in (ours, literal):
        assert (found["timesteps"], found["iterations"], found["batch"], found["dtype"]) == (2, 2, 1, "float32")
        assert found["seconds_per_image"] == pytest.approx(2 * found["seconds_per_iteration"])
        assert found["seconds_per_iteration"] > 0 and found["first_iteration"] > 0
        rate = found["teraflop_per_iteration"] / found["seconds_per_iteration"]
        assert found["teraflop_per_second"] == pytest.approx(rate, rel=1e-6)
        assert found["share_of_peak"] is None, "nobody knows this processor's"
    assert ours["teraflop_per_iteration"] < literal["teraflop_per_iteration"]


def test_a_batch_counts_as_its_pictures_and_checkpoints_count(ip2p_folder, capsys) -> None:
    one, two, again = (
        row(capsys, "--editor", str(ip2p_folder), *words) for words in ((), ("--batch", "2"), ("--checkpointing",))
    )
    assert two["teraflop_per_iteration"] == pytest.approx(2 * one["teraflop_per_iteration"])
    assert two["seconds_per_image"] == pytest.approx(two["seconds_per_iteration"])
    assert again["teraflop_per_iteration"] > 1.1 * one["teraflop_per_iteration"]


def test_both_algorithms_are_one_gradient(folder: str) -> None:
    editor = skeleton(folder, device="cpu", dtype=torch.float64, text=False, size=16)
    x0 = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (x0 + 0.02).clamp(0, 1)
    layer = next(iter(editor.layer_presets["mid"]))
    chosen = {"timesteps": 2, "layers": layer}
    sides = [full_size.gradient(editor, x0, Namespace(**chosen, literal=side))(x, 0) for side in (True, False)]
    assert torch.allclose(sides[0].loss, sides[1].loss, rtol=1e-10)
    assert bool((sides[0].grad - sides[1].grad).norm() <= 1e-10 * sides[0].grad.norm()) and bool(sides[0].grad.any())


def test_the_table_prints_every_figure(ip2p_folder, capsys) -> None:
    full_size.main(["--editor", str(ip2p_folder), *SETTINGS])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["algorithm"] == "ours" and float(lines["seconds_per_iteration"]) > 0 and "peak_gigabytes" in lines
