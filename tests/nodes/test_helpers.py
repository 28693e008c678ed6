"""What nodes/_comfy.py does without ComfyUI."""

import json

import pytest
import torch
from torch import nn

from nodes._comfy import engine_room, heal, to_comfy, to_engine
from nodes._text import markdown, shown, table
from sifm_core.errors import EditorError, InputError
from sifm_core.memory import enough


def test_a_picture_made_in_inference_mode_comes_out_fit_for_gradients_and_on_the_grid():
    with torch.inference_mode():
        image = torch.rand(2, 5, 7, 3)
        inside = to_engine(image)
    assert not inside.is_inference()
    assert inside.shape == (2, 3, 5, 7)
    assert torch.equal(inside, (inside * 255).round() / 255)
    assert (to_comfy(inside) - image).abs().max() <= 0.5 / 255 + 1e-6


def test_layouts_round_trip_exactly():
    levels = torch.arange(2 * 3 * 16 * 16).remainder(256).reshape(2, 16, 16, 3) / 255
    assert torch.equal(to_comfy(to_engine(levels)), levels)


def test_alpha_is_dropped_and_grey_becomes_three_channels():
    rgba = torch.rand(1, 4, 4, 4)
    assert torch.equal(to_engine(rgba), to_engine(rgba[..., :3]))
    grey = to_engine(torch.rand(1, 4, 4, 1))
    assert grey.shape == (1, 3, 4, 4)
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_what_left_its_range_is_clamped():
    levels = to_engine(torch.tensor([-0.1, 0.5, 1.2]).reshape(1, 1, 1, 3)).flatten() * 255
    assert levels.round().tolist() == [0, 128, 255]


def test_the_engine_room_has_gradients_inside_a_prompt():
    with torch.inference_mode(), engine_room():
        x = torch.ones(2, requires_grad=True)
        (x * x).sum().backward()
    assert x.grad.tolist() == [2, 2]


def poisoned() -> nn.Module:
    """A network as ComfyUI's eviction leaves it: moved, and so created anew, under inference mode."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).requires_grad_(False).eval()
    with torch.inference_mode():
        for part in net.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    clone = tensor.clone()
                    tensors[name] = nn.Parameter(clone, requires_grad=False) if tensors is part._parameters else clone
    return net


@pytest.mark.parametrize("back", [False, True])
def test_heal_makes_a_network_that_was_moved_in_inference_mode_differentiable_again(back):
    """``back``: it has returned outside of that mode, and says no more that it was there."""
    net, x = poisoned(), torch.rand(1, 3, 8, 8, requires_grad=True)
    if back:
        net.double().float()
    before = [t.clone() for t in net.state_dict().values()]
    try:
        net(x).sum().backward()
        raise AssertionError("the test's premise is gone: inference tensors no longer break a backward pass")
    except RuntimeError as error:
        assert "nference tensor" in str(error)
    heal(net)
    net(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))
    assert not any(p.requires_grad for p in net.parameters())


def test_heal_keeps_weights_shared_and_leaves_sound_ones_alone():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    sound = net[0].bias
    with torch.inference_mode():
        net[0].weight = net[1].weight = nn.Parameter(torch.ones(3, 3), requires_grad=False)
    heal(net)
    assert net[0].weight is net[1].weight
    assert not net[0].weight.is_inference()
    assert net[0].bias is sound


def test_tables_line_up():
    text = markdown(table(["a", "long head"], [["wide cell", "1"], ["b", "2"]]))
    assert len({len(line) for line in text.splitlines()}) == 1
    assert text.splitlines()[1].replace(" ", "") == "|---------|---------|"


def test_a_page_gets_tables_as_cells_with_every_text_as_it_is():
    """The browser draws cells: what would be markup in Markdown is text there, and is escaped in the Markdown."""
    said = table(["judge", "why"], [["a|b", "<b>`x`</b>\n| c"]], "**not bold**")
    ui = shown(said, sifm_cards=[])
    grid, below = ui["sifm_document"]
    assert (grid["kind"], list(grid["head"]), below["kind"]) == ("table", ["judge", "why"], "text")
    assert [[cell["text"] for cell in row] for row in grid["rows"]] == [["a|b", "<b>`x`</b>\n| c"]]
    assert below["parts"][0] == {"text": "**not bold**", "mark": "", "paper": "", "star": False}
    assert ui["text"] == [markdown(said)] and r"a\|b" in ui["text"][0] and "<b>" not in ui["text"][0]
    assert json.loads(json.dumps(ui))["sifm_cards"] == []


def test_errors_speak_of_widgets_not_of_python():
    with pytest.raises(torch.OutOfMemoryError) as caught, engine_room(), enough("it", torch.device("cpu")):
        raise MemoryError
    assert "dtype bfloat16 in Load Editor" in str(caught.value) and "='" not in str(caught.value)
    with pytest.raises(EditorError, match="`hf download` in a terminal"), engine_room():
        raise EditorError("x: allow the download ({local_files_only})", local_files_only=False)
    with pytest.raises(InputError, match="needs random_start yes"), engine_room():
        raise InputError("needs {random_start}", random_start=True)
