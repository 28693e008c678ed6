"""The tower's cost: one pass whatever T, a share that the counts themselves give."""

from __future__ import annotations

import json

import torch

from benchmarks import reference_tower
from sifm_core import layers, plan
from sifm_core.editors.skeleton import _network, skeleton


def test_the_tower_is_counted_and_clocked_beside_ordinary_timesteps(qwen21_folder, capsys, monkeypatch) -> None:
    tiny = ["--editor", str(qwen21_folder), "--size", "64"]
    reference_tower.main([*tiny, "--json"])
    tower, one, four, ten = (json.loads(line)["teraflop"] for line in capsys.readouterr().out.splitlines())
    assert 0 < tower < one < four < ten < 10 * one
    reference_tower.main(tiny)
    assert f"{tower / ten:7.1%}" in capsys.readouterr().out.splitlines()[0]

    whole = reference_tower.measured

    def first_fails(model, x, layers, *rest):
        if layers == "reference":
            raise torch.OutOfMemoryError("no memory\nmuch text")
        return whole(model, x, layers, *rest)

    monkeypatch.setattr(reference_tower, "measured", first_fails)
    reference_tower.main([*tiny, "--device", "cpu", "--checkpointing", "--json"])
    weights, failed, *clocked = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert weights["gigabytes"] > 0 and failed["problem"] == "OutOfMemoryError: no memory"
    assert len(clocked) == 3 and all(row["seconds"] > 0 for row in clocked)
    reference_tower.main([*tiny, "--device", "cpu", "--minutes", "0"])
    assert capsys.readouterr().out.count("the minutes are over") == 4


def test_half_precision_weights_are_made_in_it_and_nothing_else_is_rounded() -> None:
    usual = torch.get_default_dtype()
    config = {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 6, 6)}
    network = _network("QwenImage21Transformer2DModel", config, torch.device("cpu"), torch.bfloat16)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16} and torch.get_default_dtype() == usual
    wide = _network("QwenImage21Transformer2DModel", config, torch.device("cpu"), torch.float32)
    pairs = zip(network.pos_embed.freqs, wide.pos_embed.freqs, strict=True)
    assert all(torch.equal(half, whole) for half, whole in pairs)


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
