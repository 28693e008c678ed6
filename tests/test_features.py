"""capture and resolve, on a small network and on the real U-Net and SD3 transformer classes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fakes import images
from sifm_core.editors import load_editor
from sifm_core.errors import LayerError
from sifm_core.features import capture, resolve


class Chain(nn.Module):
    """Registers its layers in another order than it runs them, counts what ran, and owns a layer that never runs."""

    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))
        self.idle = nn.Linear(4, 4)
        self.recompute = recompute
        self.ran: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            self.ran.append(f"blocks.{i}")
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        self.ran.append("last")
        return self.last(x)


def hooks(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in net.modules())


def test_returns_each_output_in_the_order_asked_for() -> None:
    net, x = Chain(), torch.ones(2, 4)
    found = capture(net, ["blocks.2", "blocks.0"], lambda: net(x))
    assert list(found) == ["blocks.2", "blocks.0"]
    assert torch.equal(found["blocks.0"], net.blocks[0](x))
    assert torch.equal(found["blocks.2"], net.blocks[2](net.blocks[1](net.blocks[0](x))))


@pytest.mark.parametrize("paths", [["blocks.0", "blocks.1"], ["blocks.1", "blocks.0"]])
def test_stops_after_the_last_to_fire_not_the_last_listed(paths: list[str]) -> None:
    net = Chain()
    capture(net, paths, lambda: net(torch.ones(1, 4)))
    assert net.ran == ["blocks.0", "blocks.1"]


def test_a_layer_that_runs_twice_keeps_its_first_output() -> None:
    layer = nn.Linear(4, 4)
    net = nn.Sequential(layer, layer, nn.Linear(4, 4))
    x = torch.ones(1, 4)
    assert torch.equal(capture(net, ["0", "2"], lambda: net(x))["0"], layer(x))


def test_names_the_layers_that_never_ran_and_leaves_no_hook() -> None:
    net = Chain()
    with pytest.raises(LayerError, match="idle never ran"):
        capture(net, ["blocks.0", "idle"], lambda: net(torch.ones(1, 4)))
    assert net.ran[-1] == "last", "the whole forward pass must have been given a chance"
    assert hooks(net) == 0


def test_an_error_inside_the_network_passes_through_and_leaves_no_hook() -> None:
    net = Chain()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        capture(net, ["last"], lambda: net(torch.ones(1, 5)))
    assert hooks(net) == 0


def test_an_unknown_layer_is_refused_with_near_names_before_anything_runs() -> None:
    net = Chain()
    with pytest.raises(LayerError, match=r"blocks\.2"):
        capture(net, ["blocks.3"], lambda: net(torch.ones(1, 4)))
    assert net.ran == [] and hooks(net) == 0


@pytest.mark.parametrize("recompute", [False, True])
def test_gradient_through_early_exit_equals_the_plain_one(recompute: bool) -> None:
    net = Chain(recompute).double()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    plain = net.blocks[1](net.blocks[0](x)).square().sum()
    (expected,) = torch.autograd.grad(plain, x)
    feature = capture(net, ["blocks.1"], lambda: net(x))["blocks.1"]
    (grad,) = torch.autograd.grad(feature.square().sum(), x)
    assert torch.equal(grad, expected) and bool(grad.any())
    (again,) = torch.autograd.grad(
        net(x).sum(), x
    )  # leaving in the middle of a checkpoint must not disturb the next pass
    assert bool(again.any())


class Returns(nn.Module):
    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self) -> object:
        return self.output


A, B = torch.zeros(1), torch.ones(1)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Returns(A), A),
        (Returns((A, (B, B))), A),
        (Returns((A, B)), A),
        (Returns((None, B)), B),
        (Returns([(A,), B]), B),
    ],
)
def test_takes_the_first_tensor_of_an_output(module: nn.Module, expected: Tensor) -> None:
    net = nn.ModuleList([module])
    assert capture(net, ["0"], module)["0"] is expected


def test_who_knows_the_network_says_which_output_is_meant() -> None:
    net = nn.ModuleList([Returns((A, B))])
    assert capture(net, ["0"], net[0], lambda module, output: output[1])["0"] is B


def test_a_layer_without_a_tensor_is_refused() -> None:
    net = nn.ModuleList([Returns(None)])
    with pytest.raises(LayerError, match="put out no tensor"):
        capture(net, ["0"], net[0])


def test_real_u_net_blocks(ip2p_folder) -> None:
    from diffusers import UNet2DConditionModel

    net = UNet2DConditionModel.from_pretrained(ip2p_folder / "unet")
    run = lambda: net(torch.ones(1, 8, 8, 8), torch.tensor([5]), torch.ones(1, 16, 16), return_dict=False)  # noqa: E731
    paths = resolve(net, ["mid_block", "down_blocks.*", "up_blocks.0.resnets.*"])
    assert paths.index("up_blocks.0.resnets.0") < paths.index("mid_block"), "this network registers the middle last"
    found = capture(net, paths, run)
    assert {path: tuple(feature.shape) for path, feature in found.items()} == {
        "down_blocks.0": (1, 8, 4, 4),
        "down_blocks.1": (1, 8, 4, 4),
        "up_blocks.0.resnets.0": (1, 8, 4, 4),
        "up_blocks.0.resnets.1": (1, 8, 4, 4),
        "mid_block": (1, 8, 4, 4),
    }
    assert torch.equal(found["mid_block"], capture(net, ["mid_block"], run)["mid_block"])


def test_the_picture_is_what_sd3s_blocks_put_out_second_and_other_layers_first(sd3_folder) -> None:
    from sifm_core.editors import load_editor

    editor = load_editor(sd3_folder, device="cpu", size=16)
    z, cond = torch.ones(1, 4, 8, 8), editor.prepare(["a hat"])
    paths = resolve(editor.net, ["transformer_blocks.*", "norm_out", "pos_embed"])
    run = lambda: editor.denoise(z, z, torch.tensor([500]), cond)  # noqa: E731
    found = capture(editor.net, paths, run, editor.hidden)
    assert {tuple(feature.shape) for feature in found.values()} == {(1, 16, 16)}, "16 image tokens, not those of text"
    assert len(found) == 5


def test_resolve_keeps_the_networks_order_and_wildcards_stay_in_one_part() -> None:
    net = Chain()
    assert resolve(net, ["blocks.2", "blocks.*", "last"]) == ("last", "blocks.0", "blocks.1", "blocks.2")
    assert resolve(net, ["blocks.*.0"]) == ("blocks.0.0", "blocks.1.0", "blocks.2.0")


@pytest.mark.parametrize("patterns", [["block.0"], ["blocks.7"], ["blocks.*.9"]])
def test_resolve_refuses_a_pattern_without_a_match_and_names_the_nearest(patterns: list[str]) -> None:
    with pytest.raises(LayerError, match=r"did you mean .*blocks"):
        resolve(Chain(), patterns)


def test_no_layers_at_all_is_refused() -> None:
    with pytest.raises(LayerError, match="at least one layer"):
        resolve(Chain(), [])
    with pytest.raises(LayerError, match="at least one layer"):
        capture(Chain(), [], lambda: None)


def test_a_stream_stays_with_the_path_and_is_asked_of_the_editor() -> None:
    net, x = Chain(), torch.ones(2, 4)
    paths = resolve(net, ["blocks.*:b", "last", "blocks.1:a"])
    assert paths == ("last", "blocks.0:b", "blocks.1:a", "blocks.1:b", "blocks.2:b")

    def hidden(module: nn.Module, output: Tensor, stream: str = "all") -> Tensor:
        return {"a": output[:, :1], "b": output[:, 1:], "all": output}[stream]

    found = capture(net, paths, lambda: net(x), hidden)
    assert list(found) == list(paths) and found["last"].shape == (2, 4)
    assert torch.equal(torch.cat([found["blocks.1:a"], found["blocks.1:b"]], 1), net.blocks[1](net.blocks[0](x)))
    with pytest.raises(LayerError, match=r"matches 'block\.1:a'"):
        resolve(net, ["block.1:a"])


def test_the_two_streams_of_sd3_and_none_of_others(sd3_folder, ip2p_folder) -> None:
    sd3, ip2p = (load_editor(folder, device="cpu") for folder in (sd3_folder, ip2p_folder))

    def features(editor, *paths: str) -> list[Tensor]:
        z, cond = editor.encode(images(1)), editor.prepare(["a"])
        run = partial(editor.denoise, z, z, torch.tensor([500]), cond)
        return list(capture(editor.net, paths, run, editor.hidden).values())

    block = "transformer_blocks.1"
    whole, target, text = features(sd3, block, block + ":target", block + ":text")
    assert torch.equal(target, whole) and text.shape[1] == 16 + 256
    with pytest.raises(LayerError, match="no streams"):
        features(ip2p, "mid_block:text")
