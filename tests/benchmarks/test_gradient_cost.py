"""The benchmark's counting: both sides are the same gradient, a count is what it says, the architectures are true."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from benchmarks import gradient_cost as cost
from fakes import images
from sifm_core.editors import load_editor
from sifm_core.features import capture
from sifm_core.plan import Rates
from sifm_core.types import Gradient

LAYERS = {"ip2p": ("mid_block", "up_blocks.0"), "sd3": ("transformer_blocks.0", "transformer_blocks.1")}


@pytest.fixture(scope="module")
def tiny(ip2p_folder) -> cost.Subject:
    """A tiny InstructPix2Pix on the meta device."""
    editor = load_editor(ip2p_folder, device="meta")
    return cost.Subject(editor, images().to("meta"), editor.prepare(["make it night"]))


@pytest.mark.parametrize("family", LAYERS)
def test_both_sides_are_the_same_gradient(family: str, ip2p_folder, sd3_folder) -> None:
    editor = load_editor({"ip2p": ip2p_folder, "sd3": sd3_folder}[family], device="cpu", dtype="float64")
    subject = cost.Subject(editor, images(2).double(), editor.prepare(["make it night", "add a hat"]))
    x = (subject.x + 0.02 * torch.randn(subject.x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    literal, ours = (make(subject, [300, 700], LAYERS[family])(x, 0) for make in cost.SIDES.values())
    assert torch.allclose(literal.loss, ours.loss, rtol=1e-12)
    assert bool((literal.grad - ours.grad).norm() <= 1e-10 * literal.grad.norm()) and bool(literal.grad.any())


def test_a_count_is_two_per_multiply_accumulate_and_backward_only_what_the_image_needs() -> None:
    weight, query = torch.zeros(7, 3, 3, 3, device="meta"), torch.zeros(1, 2, 50, 4, device="meta")

    def convolution(x: torch.Tensor, step: int) -> Gradient:
        x.requires_grad_()
        return Gradient(x, torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), x)[0])

    def attention(x: torch.Tensor, step: int) -> Gradient:
        return Gradient(x, F.scaled_dot_product_attention(query, query, query))

    x = torch.zeros(1, 3, 10, 20, device="meta")
    assert cost.count(convolution, x) == 2 * (2 * 10 * 20 * 3 * 7 * 9), "forward, and back to the input alone"
    assert cost.count(attention, x) == 2 * (2 * 2 * 50 * 50 * 4), "queries by keys, weights by values"


def test_each_side_pays_its_parts(tiny: cost.Subject) -> None:
    editor, x, cond = tiny
    paths = LAYERS["ip2p"]
    z, t = editor.encode(x).detach(), torch.zeros(1, dtype=torch.long, device="meta")

    def parts(run, leaf: torch.Tensor) -> tuple[int, int]:
        """FLOP of a forward pass, and of the backward pass from what it gives to its argument."""
        forward = cost.count(lambda leaf, _: run(leaf), leaf)
        both = cost.count(lambda leaf, _: torch.autograd.grad(run(leaf), leaf), leaf.clone().requires_grad_())
        return forward, both - forward

    def exit_early(z: torch.Tensor) -> torch.Tensor:
        found = capture(editor.net, paths, lambda: editor.denoise(z, z.detach(), t, cond))
        return sum(feature.sum() for feature in found.values())

    encode, encode_back = parts(lambda x: editor.encode(x).sum(), x)
    exit_, exit_back = parts(exit_early, z)
    whole = cost.count(lambda z, _: editor.denoise(z, z, t, cond), z)
    assert exit_ < whole
    for n, counts in zip((1, 3), cost.flops(tiny, paths, (1, 3)), strict=True):
        assert counts["literal"] == n * (encode + encode_back + whole + exit_back)
        encodes = (counts["ours"] - encode_back - n * (exit_ + exit_back)) / encode
        assert encodes == 1, "the encoder is paid for once, whatever |T|"
        assert cost.count(cost.ours(tiny, cost.spread(n), paths), x) == counts["ours"]


def test_seconds_stand_beside_the_counted_ratio_of_the_same_model(
    ip2p_folder, tiny: cost.Subject, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    editor = load_editor(ip2p_folder, device="cpu")
    real = cost.Subject(editor, images(), editor.prepare(["make it night"]))
    monkeypatch.setattr(cost, "TRUE", {})
    monkeypatch.setattr(cost, "REPEATS", 1)
    monkeypatch.setattr(cost, "flops", lambda subject, *_: [{"literal": 200, "ours": 80 if subject is tiny else 0}])
    monkeypatch.setattr(cost, "SMALL_HOOKS", ("mid+up0",))
    monkeypatch.setattr(cost, "SMALL", {"tiny": {"cpu": real, "meta": tiny}.get})
    monkeypatch.setattr(cost, "rate", lambda device, dtype: Rates(1e9, 1e9))
    monkeypatch.setattr(cost.platform, "system", lambda: "no Linux")
    monkeypatch.setattr(cost, "EMBEDDED", ("miniature-ip2p",))
    cost.main(["--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    row, *batches = rows
    assert [(one["batch"], one["timesteps"]) for one in batches] == [(1, 10), (8, 10)]
    assert all(one["ratio"] == one["together"] / one["one_by_one"] > 0 for one in batches)
    assert (row["measured"], row["hooks"]) == ("seconds", "mid+up0")
    assert row["counted"] == 0.4, "counted on the meta device"
    assert row["reached"] == pytest.approx(80 / row["ours"] / 1e9)
    assert row["ratio"] == row["ours"] / row["literal"] > 0
    monkeypatch.setattr(cost, "measure", lambda clock: rows)
    cost.main([])
    said = capsys.readouterr().out
    assert f"counted {1 / row['counted']:.2f}x" in said and f"{1 / batches[0]['ratio']:.2f}x  one timestep" in said


def test_the_small_model_shares_its_work_as_the_true_one_does() -> None:
    def share(subject: cost.Subject) -> float:
        """FLOP of the autoencoder's half of one prediction, beside all."""
        editor, x, cond = subject
        z, t = editor.encode(x).detach(), torch.zeros(1, dtype=torch.long, device="meta")
        encode = cost.count(lambda x, _: editor.encode(x), x)
        return encode / (encode + cost.count(lambda z, _: editor.denoise(z, z, t, cond), z))

    small = next(iter(cost.SMALL.values()))("meta")
    assert share(small) == pytest.approx(share(cost.sd15()), rel=0.1)


def test_the_architectures_are_the_true_ones() -> None:
    sizes = [
        [sum(weight.numel() for weight in part.parameters()) for part in (editor.net, editor.pipe.vae)]
        for editor in (cost.sd15().editor, cost.sd3_medium().editor)
    ]
    assert sizes == [[859_520_964 + 4 * 320 * 9, 83_653_863], [2_028_328_000, 83_819_683]]


def test_json_holds_every_row(monkeypatch: pytest.MonkeyPatch, capsys, tiny: cost.Subject) -> None:
    monkeypatch.setattr(cost, "TRUE", {"tiny": (lambda: tiny, {"mid": ("mid_block",)})})
    cost.main(["--json", "--no-clock"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["architecture"], row["hooks"], row["timesteps"]) for row in rows] == [
        ("tiny", "mid", 4),
        ("tiny", "mid", 10),
    ]
    assert all(row["ratio"] == row["ours"] / row["literal"] for row in rows)
    assert rows[1]["ratio"] < rows[0]["ratio"] < 1
    monkeypatch.setattr(cost, "measure", lambda clock: rows)
    cost.main([])
    assert f"{rows[0]['ratio']:.3f}" in capsys.readouterr().out
