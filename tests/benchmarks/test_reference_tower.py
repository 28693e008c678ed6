"""The tower's cost: one pass whatever T, a share that the counts themselves give."""

from __future__ import annotations

import json

import pytest

from benchmarks import reference_tower
from sifm_core import layers, plan
from sifm_core.editors.skeleton import skeleton


def test_the_tower_is_counted_and_clocked_beside_ordinary_timesteps(qwen21_folder, capsys) -> None:
    reference_tower.main(["--editor", str(qwen21_folder), "--size", "64", "--device", "cpu", "--json"])
    tower, one, ten = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert 0 < tower["teraflop"] < one["teraflop"] < ten["teraflop"] and ten["share"] == 1
    assert tower["share"] == pytest.approx(tower["teraflop"] / ten["teraflop"]) and tower["seconds"] > 0
    reference_tower.main(["--editor", str(qwen21_folder), "--size", "64"])
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_plan_and_layers_know_the_tower(qwen21_folder) -> None:
    kind = {"editor": str(qwen21_folder), "size": 64, "steps": 10}
    cost = lambda **more: plan.plan(plan.Settings(**kind | more), calibrate=False).cost  # noqa: E731
    assert cost(layers="reference", timesteps=1) == cost(layers="reference", timesteps=10)
    assert cost(layers="deep", timesteps=10).flops > 4 * cost(layers="deep", timesteps=1).flops / 2
    listed = {layer.path: layer for layer in layers.layers(str(qwen21_folder))}
    block = listed["transformer_blocks.2"]
    assert {"deep", "reference", "target", "text", "last"} <= set(block.presets) and block.shape == (2 * 16, 32)


def test_the_true_configuration_is_known_without_its_weights() -> None:
    editor = skeleton("qwen-image-2.1", text=False)
    numbers = {name: sum(p.numel() for p in network.parameters()) for name, network in editor.networks().items()}
    assert 7.0e9 < numbers["transformer"] < 7.2e9 and editor.work_size(3000, 2000) == (1248, 832)
    assert editor.blank(1).prompt.shape == (1, 40, 4096)
