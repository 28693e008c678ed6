"""The list of layers against what runs, and the probe against its definition."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fakes import SIZE, images
from sifm_core.cli import main
from sifm_core.editors import load_editor
from sifm_core.editors.skeleton import skeleton
from sifm_core.errors import EditorError, LayerError
from sifm_core.features import capture, resolve
from sifm_core.layers import layers, probe
from sifm_core.noise import fork, normal, uniform


@pytest.fixture(params=["ip2p_folder", "sd3_folder", "ultraedit_folder"])
def folder(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def test_shapes_shares_and_presets_are_those_of_the_real_network(folder: str) -> None:
    found = {layer.path: layer for layer in layers(folder, size=SIZE)}
    editor = skeleton(folder, device="cpu", text=False, size=SIZE)
    z, cond = editor.encode(images(1)), editor.prepare(["a"])
    run = lambda: editor.denoise(z, z, torch.tensor([500]), cond)  # noqa: E731
    features = capture(editor.net, list(found), run, editor.hidden)
    assert {path: layer.shape for path, layer in found.items()} == {p: tuple(f.shape[1:]) for p, f in features.items()}
    for name, globs in editor.layer_presets.items():
        assert {path for path, layer in found.items() if name in layer.presets} == set(resolve(editor.net, globs))
    assert all(0 <= layer.share <= layer.reached <= 1 for layer in found.values())
    paths = [path for path in found if path.endswith("_blocks.0") or path == "mid_block"]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        whole = flops(run)
        for path in paths:
            spent = flops(lambda p=path: capture(editor.net, [p], run))
            assert found[path].reached == pytest.approx(spent / whole, rel=0.02), path


def flops(run) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_every_module_on_request(ip2p_folder) -> None:
    few, every = layers(str(ip2p_folder), size=SIZE), layers(str(ip2p_folder), every=True, size=SIZE)
    assert {layer.path for layer in few} < {layer.path for layer in every}
    assert "mid_block.resnets.0.conv1" in {layer.path for layer in every}


def test_nothing_is_left_hooked_and_an_unknown_editor_is_refused() -> None:
    with pytest.raises(EditorError, match="not in the local cache"):
        layers("nobody/no-such-editor")


@pytest.fixture(scope="module")
def editor(ip2p_folder):
    return load_editor(ip2p_folder, device="cpu", dtype="float64", size=SIZE)


def test_the_probe_is_what_it_says(editor) -> None:
    x, cond, eps, t = images(1).double() * 0.8 + 0.1, editor.prepare(["a"]), 0.01, 300
    paths = ["mid_block", "up_blocks.0"]
    moved = {m.layer: m for m in probe(editor, x, cond, layers=paths, timesteps=[t], eps=eps, seed=4)}
    noise = normal((1, 4, 8, 8), fork(4, t)).double()

    def feature(x: torch.Tensor) -> torch.Tensor:
        seen = []
        hook = editor.net.up_blocks[0].register_forward_hook(lambda m, a, out: seen.append(out))
        editor.denoise(editor.encode(x), noise, torch.tensor([t]), cond)
        hook.remove()
        return seen[0]

    leaf = x.clone().requires_grad_()
    clean = feature(leaf)
    (grad,) = torch.autograd.grad(clean.abs().sum(), leaf)
    for value, direction in (
        (moved["up_blocks.0"].random, uniform(x.shape, fork(4, "signs")).double().sign()),
        (moved["up_blocks.0"].gradient, -grad.sign()),
    ):
        assert value == pytest.approx(
            float((feature(x + eps * direction) - clean).norm() / clean.norm() / eps), rel=1e-6
        )
    assert all(not module._forward_hooks for module in editor.net.modules())


def test_the_probe_ranks_and_repeats(editor) -> None:
    cond = editor.prepare(["a", "b"])
    steps: list[int] = []
    arguments = {"layers": ["mid", "last"], "timesteps": [100, 900]}
    moved = probe(editor, images(2).double(), cond, **arguments, on_step=lambda s: steps.append(s.i))
    assert moved == probe(editor, images(2).double(), cond, **arguments) and steps == [1, 2]
    assert [m.gradient for m in moved] == sorted((m.gradient for m in moved), reverse=True)
    assert {m.timestep for m in moved} == {100, 900} and len({m.layer for m in moved}) > 2
    with pytest.raises(LayerError, match="mid_block"):
        probe(editor, images(1).double(), editor.prepare(["a"]), layers=["mid_blok"], timesteps=[1])


def test_the_command_lists_and_probes(ip2p_folder, tmp_path, capsys) -> None:
    folder = str(shutil.copytree(ip2p_folder, tmp_path / "small"))
    (tmp_path / "small" / "sifm.json").write_text(json.dumps({"size": SIZE}))
    assert main(["layers", folder]) == 0
    assert "mid_block" in capsys.readouterr().out
    assert main(["layers", folder, "--json"]) == 0
    assert "deep" in {name for row in json.loads(capsys.readouterr().out) for name in row["presets"]}
    from sifm_core.images import save_png

    save_png(images(1, 24), tmp_path / "x.png")
    probing = ["layers", folder, "--probe", str(tmp_path / "x.png"), "--timesteps", "1", "--layer", "mid"]
    assert main([*probing, "--device", "cpu", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["layer"] == "mid_block" and row["timestep"] == 500 and row["gradient"] > 0
