"""Estimates against what is counted by running it, and memory against what there is to hold."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sifm_core import features
from sifm_core import plan as plans
from sifm_core.cli import main
from sifm_core.counting import counting
from sifm_core.editors import load_editor
from sifm_core.editors.skeleton import KNOWN, skeleton
from sifm_core.errors import EditorError, InputError, LayerError
from sifm_core.methods import sifm
from sifm_core.plan import Rates, Settings, plan
from sifm_core.plan import rate as measured_rate

FOLDERS = ["ip2p_folder", "sd3_folder", "ultraedit_folder"]


@pytest.fixture(params=FOLDERS)
def wanted(request: pytest.FixtureRequest) -> Settings:
    return Settings(str(request.getfixturevalue(request.param)), size=16, timesteps=3, steps=5, batch=2)


@pytest.fixture(autouse=True)
def calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 1 GFLOP/s, so that seconds are exact and cost none."""
    monkeypatch.setattr(plans, "rate", lambda device, dtype: Rates(1e9, 1e9))


def test_flops_are_those_of_a_real_run(wanted: Settings) -> None:
    editor = skeleton(wanted.editor, device="cpu", text=False, size=16)
    x = torch.full((1, 3, 16, 16), 0.5)
    grad_fn = sifm.build(editor, x, editor.prepare(["a"]), timesteps=3, layers="deep")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        grad_fn(x, 0)
    expected = 5 * 2 * counter.get_total_flops()
    found = plan(wanted, calibrate=False).cost.flops
    assert expected <= found < 1.2 * expected, "a fused backward pass of attention computes one of its products again"


def test_networks_and_text_encoders_are_their_weights(wanted: Settings) -> None:
    editor = load_editor(wanted.editor, device="cpu", dtype="bfloat16")
    parts = {n: p for n, p in editor.pipe.components.items() if isinstance(p, torch.nn.Module)}
    size = lambda text: sum(  # noqa: E731
        2 * w.numel() for n, p in parts.items() if n.startswith("text") is text for w in p.parameters()
    )
    cost = plan(replace(wanted, dtype="bfloat16"), calibrate=False).cost
    assert (cost.networks, cost.text) == (size(False), size(True))


def test_memory_adds_up_and_follows_the_settings(wanted: Settings) -> None:
    cost = lambda **change: plan(replace(wanted, **change), calibrate=False).cost  # noqa: E731
    plain = cost()
    assert plain.memory == plain.networks + plain.text + plain.working
    assert cost(batch=4).working == 2 * plain.working
    assert plain.working / 2 < cost(dtype="bfloat16").working < 0.8 * plain.working, "features are kept in float32"
    assert cost(timesteps=9).flops > 1.5 * plain.flops
    assert cost(offload="text") == cost(offload="sequential") == plain, "nothing leaves the CPU"
    on_card = partial(cost, device="cuda")
    text = on_card(offload="text")
    assert text.memory == max(text.networks + text.working, text.networks + text.text) + plans.OVERHEAD
    sequential = on_card(offload="sequential")
    assert sequential.memory == max(text.networks + text.working, text.text) + plans.OVERHEAD
    assert cost(checkpointing=True).flops > plain.flops


def test_every_timestep_keeps_its_noise_and_the_clean_features(wanted: Settings) -> None:
    editor = skeleton(wanted.editor, device="cpu", text=False, size=16)
    x, cond = torch.full((1, 3, 16, 16), 0.5), editor.prepare(["a"])
    seen: list[torch.Tensor] = []
    plain = editor.denoise
    editor.denoise = lambda z, noise, t, c: seen.append(noise) or plain(z, noise, t, c)
    paths = features.resolve(editor.net, list(editor.layer_presets["deep"]))
    z = editor.encode(x)
    run = lambda: editor.denoise(z, z, torch.full((1,), 500), cond)  # noqa: E731
    found = features.capture(editor.net, paths, run, editor.hidden)
    kept = 4 * seen[0].numel() + 4 * next(iter(found.values())).numel()  # Eq. 3's mean over layers of one shape
    kept += 8  # the timestep itself
    two, five, nine = (plan(replace(wanted, timesteps=n, rows=1), calibrate=False).cost.working for n in (2, 5, 9))
    assert (five - two, nine - five) == (3 * wanted.batch * kept, 4 * wanted.batch * kept)


def test_checkpointing_takes_less_memory_at_true_size() -> None:
    """Counted on a stack of layers, where what it saves is known."""
    with torch.device("meta"):
        layers = [torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.SiLU()) for _ in range(8)]
        x = torch.zeros(1, 4, 32, 32, requires_grad=True)

    def run(saving: bool) -> int:
        with counting() as counter:
            h = x * 1
            for layer in layers:
                h = checkpoint(layer, h, use_reentrant=False) if saving else layer(h)
            torch.autograd.grad(h.sum(), x)
        return counter.peak

    assert run(True) < 0.8 * run(False)


def test_what_is_gone_no_longer_counts_and_views_never_do() -> None:
    a = torch.zeros(100, 100, device="meta")
    with counting() as counter:
        b = a + 1
        view = b.t()[:10]
        c = b @ b
        del b, c, view
        d = a * 2
    assert counter.peak == 2 * 40_000 and counter.product == 2 * 100**3 and counter.convolution == 0 and d.is_meta


def test_attention_counts_as_fused_and_torch_is_as_before() -> None:
    plain = F.scaled_dot_product_attention
    q = torch.zeros(1, 2, 300, 8, device="meta")
    with counting() as counter:
        F.scaled_dot_product_attention(q, q, q)
    assert counter.product == 2 * (2 * 2 * 300 * 300 * 8) and counter.peak < 4 * 300 * 300
    with pytest.raises(ZeroDivisionError), counting():
        1 / 0  # noqa: B018
    assert F.scaled_dot_product_attention is plain


def test_seconds_are_the_counted_work_at_the_rates_of_a_calibration(wanted: Settings) -> None:
    assert plan(wanted, calibrate=False).seconds is None
    found = plan(wanted)
    assert found.seconds == pytest.approx(found.cost.flops / 1e9)
    assert plan(replace(wanted, steps=50)).seconds == pytest.approx(10 * found.seconds)


def test_a_calibration_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    measured_rate("cpu", "float32", 0.01)
    assert torch.equal(torch.rand(3), expected)


def test_a_calibration_divides_the_work_by_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(plans.time, "perf_counter", lambda: float(next(clock)))
    layer, shape = (lambda: torch.nn.Linear(8, 8, bias=False)), (4, 8)
    found = plans._rate(layer, shape, {}, "cpu", "float32", 3.0)
    each = 2 * (2 * 4 * 8 * 8)  # forwards, and back to the input
    assert found == pytest.approx(each * 3 / 4), "started at 0, three runs until the clock shows 3, read at 4"


def test_a_calibration_reaches_what_a_processor_can() -> None:
    assert all(1e6 < rate < 1e14 for rate in measured_rate("cpu", "float32", 0.02))


def test_what_fits_is_found_or_said_not_to_exist(wanted: Settings) -> None:
    cost = plan(wanted, calibrate=False).cost
    assert plan(wanted, memory=cost.memory, calibrate=False).fits is True
    less = plan(wanted, memory=cost.memory * 0.8, calibrate=False)
    assert less.fits is False and less.fitting is not None
    other, its = less.fitting
    assert its.memory <= cost.memory * 0.8 and other != wanted
    assert plan(other, memory=cost.memory * 0.8, calibrate=False).fits is True
    none = plan(wanted, memory=1000, calibrate=False)
    assert (none.fits, none.fitting) == (False, None)


SD3 = "stabilityai/stable-diffusion-3-medium-diffusers"


@pytest.fixture
def on_a_card(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Stable Diffusion 3, its weights as they are, its activations as they were once counted."""

    def counted(editor: str, size: int, layers: object, checkpointing: bool) -> tuple:
        count = plans._Count(10**12, 10**12, int((2.06e9 if checkpointing else 5.3e9) * (size / 512) ** 2))
        return count, count

    monkeypatch.setattr(plans, "_iteration", counted)
    return Settings(SD3, size=512, timesteps=4, steps=100, dtype="bfloat16", device="cuda", rows=1)


@pytest.mark.parametrize(
    ("gigabytes", "expected"),
    [
        (18, {"offload": "text"}),
        (14, {"offload": "sequential"}),
        (10, {"t5": False}),
        (8, {"offload": "text", "t5": False}),
        (7, {"offload": "text", "checkpointing": True, "t5": False}),
        (6, {"offload": "sequential", "checkpointing": True, "t5": False}),
        (5.5, {"size": 256, "offload": "sequential", "t5": False}),
        (4, None),
    ],
)
def test_first_what_costs_time_then_t5_then_the_size(on_a_card: Settings, gigabytes: float, expected: object) -> None:
    found = plan(on_a_card, memory=gigabytes * 1e9, calibrate=False)
    assert found.fits is False and found.cost.memory == pytest.approx(18.6e9, rel=0.01)
    if expected is None:
        assert found.fitting is None
        return
    other, cost = found.fitting
    assert {name: value for name, value in vars(other).items() if value != vars(on_a_card)[name]} == expected
    assert cost.memory <= gigabytes * 1e9 and plan(other, memory=gigabytes * 1e9, calibrate=False).fits is True
    assert (cost.text < 2e9) == ("t5" in expected), "T5 is most of the text encoders"


def test_the_command_proposes_flags_that_immunize_takes(on_a_card: Settings, capsys) -> None:
    given = ["plan", "--editor", SD3, "--timesteps", "4", "--device", "cpu", "--dtype", "bfloat16", "--memory", "9"]
    given += ["--rows", "1"]
    assert main(given) == 0
    flags = capsys.readouterr().out.splitlines()[-1].split()
    assert flags == ["--no-t5"]
    assert main([*given, "--no-t5", "--offload", "text", "--checkpointing"]) == 0
    assert "fits into 9 GB" in capsys.readouterr().out
    assert main(["immunize", "none.png", "-o", "x.png", "--prompt", "a", *flags, "--checkpointing"]) == 2
    assert "no such file" in capsys.readouterr().err, "the flags are known"


def test_rows_at_once_take_memory_and_fewer_are_proposed_before_anything_else(on_a_card: Settings, capsys) -> None:
    by_rows = {n: plan(replace(on_a_card, rows=n), calibrate=False).cost for n in (1, 2, 4, 9)}
    assert by_rows[2].working - by_rows[1].working == pytest.approx(5.3e9 / 2, rel=0.01)
    assert by_rows[9] == by_rows[4], "there are four timesteps"
    assert plan(replace(on_a_card, rows=4, batch=2), calibrate=False).cost.working == 2 * by_rows[2].working
    assert len({cost.flops for cost in by_rows.values()}) == 1
    rule = plan(replace(on_a_card, rows=0), memory=by_rows[2].memory, calibrate=False)
    assert plans.rows_of(rule.settings) == 5 and rule.fits is False
    assert rule.fitting == (replace(on_a_card, rows=2), by_rows[2])
    words = ["plan", "--editor", SD3, "--timesteps", "4", "--device", "cpu", "--dtype", "bfloat16"]
    assert main([*words, "--memory", str(by_rows[2].memory / 1e9)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].split() == ["--option", "rows=2"] and any("5 rows" in line for line in said)


TRUE = {
    "flux-kontext": {"transformer": 11_901_408_320, "vae": 83_819_683, "text_encoder_2": 4_762_310_656},
    "flux2-dev": {"transformer": 32.2e9, "text_encoder": 24.0e9},
    "flux2-klein-4b": {"transformer": 3.88e9, "text_encoder": 4_022_468_096},
    "flux2-klein-9b-kv": {"transformer": 9.08e9, "text_encoder": 8_190_735_360},
    "qwen-image-edit-2511": {"transformer": 20_430_401_088, "text_encoder": 8_292_166_656},
}
"""As published; those with a point are rounded."""


@pytest.mark.parametrize("editor", TRUE)
def test_the_known_architectures_of_newer_editors_have_the_published_number_of_weights(editor: str) -> None:
    parts = skeleton(editor).pipe.components
    for name, size in TRUE[editor].items():
        found = sum(p.numel() for p in parts[name].parameters())
        assert found == pytest.approx(size, rel=0.01 if isinstance(size, float) else 0), name


@pytest.mark.parametrize("editor", sorted(name for name, known in KNOWN.items() if "Stable" in known["_class_name"]))
def test_the_known_architectures_have_the_true_number_of_weights(editor: str) -> None:
    parts = skeleton(editor).pipe.components
    size = lambda name: sum(p.numel() for p in parts[name].parameters())  # noqa: E731
    if "unet" in parts:
        assert (size("unet"), size("vae"), size("text_encoder")) == (859_532_484, 83_653_863, 123_060_480)
        return
    assert (size("vae"), size("text_encoder")) == (83_819_683, 123_650_304)
    assert (size("text_encoder_2"), size("text_encoder_3")) == (694_659_840, 4_762_310_656)
    more = 16 * 1536 * 2 * 2 if "UltraEdit" in editor else 0
    assert size("transformer") == 2_028_328_000 + more


def test_a_skeleton_with_numbers_runs_as_an_editor(ip2p_folder) -> None:
    editor = skeleton(str(ip2p_folder), device="cpu", text=False, size=16)
    real = load_editor(ip2p_folder, device="cpu", size=16)
    assert [p.shape for p in editor.net.parameters()] == [p.shape for p in real.net.parameters()]
    x = torch.full((1, 3, 16, 16), 0.5)
    found = sifm.build(editor, x, editor.prepare(["a"]), timesteps=1)(x, 0)
    assert bool(found.grad.any()) and bool(torch.isfinite(found.loss).all())
    same = skeleton(str(ip2p_folder), device="cpu", text=False, size=16)
    assert torch.equal(next(same.net.parameters()), next(editor.net.parameters()))


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"editor": "miniature-ip2q"}, InputError, "did you mean"),
        ({"editor": "nobody/nothing"}, EditorError, "not in the local cache"),
        ({"timesteps": 0}, InputError, "timesteps"),
        ({"steps": 0}, InputError, "steps"),
        ({"batch": 0}, InputError, "batch"),
        ({"size": 0}, InputError, "size"),
        ({"layers": "mid_blok"}, LayerError, "mid_block"),
        ({"t5": False}, InputError, "no T5"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(ip2p_folder, change: dict, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        plan(replace(Settings(str(ip2p_folder), 16, 2, 1), **change), calibrate=False)


def test_the_command_prints_what_it_found(ip2p_folder, capsys) -> None:
    given = ["plan", "--editor", str(ip2p_folder), "--size", "16", "--timesteps", "2", "--device", "cpu"]
    assert main([*given, "--memory", "0.000001"]) == 0
    text = capsys.readouterr().out
    assert "TFLOP" in text and "does not fit into 1e-06 GB" in text
    assert main([*given, "--json", "--memory", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True and found["cost"]["flops"] > 0 and found["settings"]["timesteps"] == 2
    assert main([*given, "--memory", "-1"]) == 2
