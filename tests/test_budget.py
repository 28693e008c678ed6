"""Whatever the settings, the saved file keeps the budget that was stated, its range and its alpha."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import fakes
from sifm_core import pipeline
from sifm_core.editors import load_editor
from sifm_core.errors import BudgetError, EditorError, InputError
from sifm_core.images import load_picture, png_bytes, round_to_budget, save_png, verify_budget
from sifm_core.memory import peak

FAST = {"prompt": "a b", "steps": 2, "timesteps": 1, "alpha": 6 / 255}
SIZE = (24, 36)
MASK = torch.linspace(0, 1, 24)[:, None].expand(24, 36)
CASES = {
    "linf": {},
    "l2": {"ball": "l2", "alpha": 0.03},
    "linf of a third": {"eps": 1.4 / 255},
    "l2 of a third": {"ball": "l2", "alpha": 0.03, "eps": 1.4 / 255},
    "linf masked": {"mask": MASK},
    "l2 masked": {"ball": "l2", "alpha": 0.03, "mask": MASK},
    "random start, decaying": {"random_start": True, "schedule": "cosine"},
    "through transforms": {"eot": ("jpeg:50-90", "resize:0.5", "noise:0.02", "blur:1.0")},
    "l2 from noise through transforms": {"ball": "l2", "alpha": 0.03, "random_start": True, "eot": "jpeg:75"},
    "balanced": {"balanced": True, "random_start": True},
    "sampled posterior, all branches": {"posterior": "sample", "branch": "all", "noise": "resampled"},
    "another method in l2": {"method": "photoguard_encoder", "ball": "l2", "alpha": 0.03},
    "a control": {"method": "random_noise"},
    "a control in l2": {"method": "random_noise", "ball": "l2"},
}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory):
    """With transparency, and every value from black to white."""
    folder = tmp_path_factory.mktemp("budget")
    rgba = torch.cat([fakes.images(1, SIZE, 3), fakes.images(1, SIZE, 4)[:, :1]], dim=1)
    rgba[0, :3, :6], rgba[0, :3, 6:12] = 0, 1
    from PIL import Image as Pil

    Pil.fromarray((rgba[0] * 255).round().byte().permute(1, 2, 0).numpy(), "RGBA").save(folder / "source.png")
    return load_picture(folder / "source.png")


TYPES = [("float32", case) for case in CASES]
TYPES += [(dtype, case) for dtype in ("bfloat16", "float16", "float64") for case in ("linf", "l2 masked")]


@pytest.mark.parametrize(("dtype", "case"), TYPES)
def test_the_file_keeps_the_budget(dtype: str, case: str, ip2p_folder, picture, tmp_path: Path) -> None:
    editor = load_editor(ip2p_folder, device="cpu", dtype=dtype, size=16)
    settings = FAST | {"eps": 0.03} | CASES[case]
    if settings.get("method", "sifm") != "sifm":
        settings.pop("timesteps")
    done = pipeline.immunize(picture.pixels, editor, **settings)
    save_png(done.image, tmp_path / "out.png", like=picture)
    back = load_picture(tmp_path / "out.png")
    delta = (back.pixels - picture.pixels).double()
    eps, ball = settings["eps"], settings.get("ball", "linf")
    measured = float(delta.abs().max() if ball == "linf" else delta.square().mean().sqrt())
    assert 0 < measured <= eps + 1e-6
    assert verify_budget(tmp_path / "out.png", picture.pixels, eps, ball) == pytest.approx(measured, rel=1e-5)
    assert measured / 2 <= verify_budget(tmp_path / "out.png", picture.pixels, eps, ball, settings.get("mask"))
    assert torch.equal(back.alpha, picture.alpha) and torch.equal(back.pixels, done.image)
    assert done.linf == pytest.approx(float(delta.abs().max())) and done.rms <= done.linf
    assert 0 < done.rounding < 1 / 255, "up or down a level, never further"
    if "mask" in settings:
        assert not delta[..., 0, :].any()
    assert png_bytes(pipeline.immunize(picture.pixels, editor, **settings).image) == png_bytes(done.image)


def test_the_settings_say_all_of_it_and_do_it_again(ip2p_folder) -> None:
    editor = load_editor(ip2p_folder, device="cpu", size=16)
    wanted = {"ball": "l2", "schedule": "linear", "eot": ["jpeg:75", "none"], "random_start": True}
    done = pipeline.immunize(fakes.images(), editor, **FAST, **wanted)
    assert {name: done.settings[name] for name in wanted} == wanted
    again = {k: v for k, v in done.settings.items() if k not in ("editor", "editor_fingerprint", "also", "options")}
    assert torch.equal(pipeline.immunize(fakes.images(), editor, **again, **done.settings["options"]).image, done.image)
    other = pipeline.immunize(fakes.images(), editor, **again | {"eot": ()}, **done.settings["options"])
    assert not torch.equal(other.image, done.image)


def test_a_batch_through_transforms_equals_its_pictures(ip2p_folder) -> None:
    editor = load_editor(ip2p_folder, device="cpu", dtype="float64", size=16)
    settings = FAST | {"eot": ("jpeg:40-90", "noise:0.05", "blur:0.5-2"), "method": "photoguard_encoder"}
    settings.pop("timesteps")
    x = fakes.images(3, 24)
    batch = pipeline.immunize(x, editor, **settings, seed=[1, 2, 3])
    for b in range(3):
        alone = pipeline.immunize(x[b : b + 1], editor, **settings, seed=[1 + b])
        assert torch.equal(alone.image[0], batch.image[b])


def test_two_editors_at_once_each_at_its_own_size(ip2p_folder, sd3_folder) -> None:
    editors = [load_editor(ip2p_folder, device="cpu", size=16), load_editor(sd3_folder, device="cpu")]
    x = fakes.images(1, (20, 28))
    together = pipeline.immunize(x, editors[0], also=editors[1:], **FAST)
    alone = pipeline.immunize(x, editors[0], **FAST)
    assert not torch.equal(together.image, alone.image)
    assert [other["editor_fingerprint"] for other in together.settings["also"]] == [editors[1].fingerprint]
    log = together.history[0].log
    assert together.history[0].loss == pytest.approx((log["0.loss"] + log["1.loss"]) / 2, rel=1e-5)


def test_memory_that_earlier_work_freed_is_not_taken_for_held() -> None:
    def work() -> torch.Tensor:
        """Takes 100 MB in small pieces; what it gives back holds the heap's end, so that all below stays resident."""
        return [torch.ones(2**14) for _ in range(1600)][-1]

    kept, found = [], []
    for _ in range(3):
        with peak(torch.device("cpu")) as measured:
            kept.append(work())
        found.append(measured[0].value)
    assert found[0] is None or all(50e6 < value < 200e6 for value in found), found


def test_peak_memory_is_measured_or_says_why_not(ip2p_folder) -> None:
    editor = load_editor(ip2p_folder, device="cpu", size=64)
    found = pipeline.immunize(fakes.images(2, 64), editor, **FAST).peak_memory
    assert (found.value is None and found.reason) or found.value >= 0
    assert "bytes" in found.definition


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_running_out_of_memory_says_what_to_lower(ip2p_folder, monkeypatch: pytest.MonkeyPatch, error) -> None:
    editor = load_editor(ip2p_folder, device="cpu", size=16, steps=2)

    def full(*_: object, **__: object) -> None:
        raise error

    for part in ("net", "pipe"):
        monkeypatch.setattr(
            getattr(editor, part), "forward" if part == "net" else "decode_latents", full, raising=False
        )
    with pytest.raises(EditorError, match=r"not enough memory on cpu for 1 picture.*dtype='bfloat16'.*sifm plan"):
        pipeline.immunize(fakes.images(), editor, **FAST)
    with pytest.raises(EditorError, match="not enough memory on cpu for an edit"):
        pipeline.edit(fakes.images(), editor, prompt="a")


@pytest.mark.parametrize("verb", ["immunize", "edit"])
def test_running_out_of_memory_at_the_pictures_own_size_is_not_blamed_on_the_editors(
    ip2p_folder, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    editor, plain = load_editor(ip2p_folder, device="cpu", size=16, steps=2), torch.nn.functional.interpolate

    def full(x: torch.Tensor, *given: object, **named: object) -> torch.Tensor:
        if named.get("antialias") and (x.requires_grad or verb == "edit"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(x, *given, **named)

    monkeypatch.setattr(torch.nn.functional, "interpolate", full)
    with pytest.raises(EditorError, match=r"cpu for 2 picture\(s\) of 28x20 pixels: make them smaller or fewer"):
        if verb == "edit":
            pipeline.edit(fakes.images(2, (20, 28)), editor, prompt="a")
        else:
            pipeline.immunize(fakes.images(2, (20, 28)), editor, **FAST)


def test_other_errors_of_the_runtime_come_through(ip2p_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = load_editor(ip2p_folder, device="cpu", size=16)
    monkeypatch.setattr(editor, "denoise", lambda *_: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(RuntimeError, match="size of tensor"):
        pipeline.immunize(fakes.images(), editor, **FAST)


@pytest.mark.parametrize("seed", range(4))
def test_l2_rounding_is_the_nearest_that_fits(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x0 = fakes.images(2, 12, seed)
    delta = torch.randn(x0.shape, generator=draw) * 0.01
    x = (x0 + delta).clamp(0, 1)
    eps = float((x - x0).square().flatten(1).mean(dim=1).sqrt().max())
    rounded = round_to_budget(x, x0, eps, ball="l2")
    levels = rounded * 255
    rms = (rounded - x0).square().flatten(1).mean(dim=1).sqrt()
    assert torch.equal(levels, levels.round()) and float(rms.max()) <= eps + 1e-7
    assert float((levels - x * 255).abs().max()) < 1, "up or down, never further"
    assert float(rms.max()) > 0.97 * eps, "and no more given up than needed"
    clean = (x0 * 255).round()
    tight = (round_to_budget(x, x0, 0.97 * eps, ball="l2") * 255).round()
    delta, step = x * 255 - clean, tight - clean
    away, kept, back = delta.round() != delta.trunc(), step == delta.round(), step == delta.trunc()
    cost = (delta - delta.trunc()).abs()
    for i in range(len(x)):
        turned, stayed = cost[i][away[i] & back[i]], cost[i][away[i] & kept[i]]
        assert not len(turned) or float(turned.max()) <= float(stayed.min()) + 1e-4, "the cheapest are turned back"
    assert (away & back).any()
    loose = round_to_budget(x, x0, 2 * eps, ball="l2")
    assert torch.allclose(loose * 255, (x * 255).round())


def by_sorting(x: torch.Tensor, x0: torch.Tensor, eps: float, mask: torch.Tensor | None) -> torch.Tensor:
    """The same rounding with whole pictures: all costs in order, and as many turned back as it takes."""
    weight = torch.ones_like(x0) if mask is None else mask.expand_as(x0)
    clean, inverse = (x0 * 255).round(), torch.where(weight > 0, 1 / weight, 0).double()
    delta = torch.where(weight > 0, x * 255 - clean, 0)
    near, inner = delta.round().clamp(min=-clean, max=255 - clean), delta.trunc()
    energy, towards = ((levels * inverse).square().flatten(1) for levels in (near, inner))
    saved = energy - towards
    order = torch.where(saved > 0, (delta - inner).abs().flatten(1), 1).argsort(dim=1, stable=True)
    limit = (255 * eps) ** 2 * (weight > 0).flatten(1).sum(dim=1, keepdim=True)
    total = energy.sum(dim=1, keepdim=True)
    after = total - saved.clamp_min(0).gather(1, order).cumsum(dim=1)
    needed = ((after > limit).sum(dim=1, keepdim=True) + 1) * (total > limit)
    back = (order.argsort(dim=1) < needed) & (saved > 0)
    return (clean + torch.where(back.reshape(delta.shape), inner, near)) / 255


@pytest.mark.parametrize("case", range(40))
def test_l2_rounding_in_pieces_gives_the_bytes_of_sorting_it_all(case: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, choose = torch.Generator().manual_seed(case), random.Random(case)
    monkeypatch.setattr("sifm_core.images._BAND", choose.choice([20, 100, 10**6]))
    monkeypatch.setattr("sifm_core.images._MARKS", choose.choice([2, 16, 2**12]))
    x0 = (fakes.images(2, (17, 23), case) * 1.4 - 0.2).clamp(0, 1).mul(255).round().div(255)
    delta = torch.randn(x0.shape, generator=draw) * choose.choice([0.002, 0.03])
    if case % 4 == 0:
        delta = delta.sign() * choose.choice([0.5, 0.6, 2.7]) / 255  # all cost the same
    if case % 4 == 1:
        delta = (delta * 2040).round() / 2040  # many do
    x = (x0 + delta).clamp(0, 1)
    mask = None
    if case % 3:
        mask = torch.rand((case % 2 + 1, 1, 17, 23), generator=draw)
        mask = (mask > 0.5).float() if case % 3 == 1 else mask * (mask > 0.2)
    eps = max(1 / 255, float((x - x0).square().mean().sqrt()) * choose.choice([0.3, 0.9, 1, 1.1, 2]))
    assert torch.equal(round_to_budget(x, x0, eps, mask, "l2"), by_sorting(x, x0, eps, mask))


def test_l2_of_a_file_outside_is_found(tmp_path: Path) -> None:
    x0 = fakes.images(1, 16).clamp(0.2, 0.8).mul(255).round().div(255)
    save_png(x0 + 4 / 255, tmp_path / "x.png")
    with pytest.raises(BudgetError):
        verify_budget(tmp_path / "x.png", x0, 3 / 255, "l2")
    assert verify_budget(tmp_path / "x.png", x0, 4 / 255, "l2") == pytest.approx(4 / 255, rel=1e-4)


@pytest.mark.parametrize("ball", ["linf", "l2"])
def test_a_mask_is_part_of_the_budget_of_a_file(tmp_path: Path, ball: str) -> None:
    x0 = torch.full((1, 3, 24, 36), 100 / 255)
    allowed = (255 * 0.04 * MASK).floor() / 255
    save_png(x0 + allowed, tmp_path / "x.png")
    found = verify_budget(tmp_path / "x.png", x0, 0.04, ball, MASK)
    relative = (allowed[1:] / MASK[1:]).double()  # the first row may not change, so it does not count
    assert found == pytest.approx(float(relative.max() if ball == "linf" else relative.square().mean().sqrt()))
    with pytest.raises(BudgetError):
        verify_budget(tmp_path / "x.png", x0, 0.04, ball, MASK.flip(0))
    save_png(torch.where(torch.arange(24)[:, None] == 0, x0 + 1 / 255, x0), tmp_path / "x.png")
    with pytest.raises(BudgetError, match="at most"):
        verify_budget(tmp_path / "x.png", x0, 0.04, ball, MASK)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ball": "l1"}, "did you mean"),
        ({"schedule": "step"}, "known"),
        ({"eot": ["jpg:75"]}, "did you mean jpeg"),
        ({"eot": ["jpeg:175"]}, "quality"),
        ({"random_start": "yes"}, "random_start"),
        ({"also": "miniature-ip2p"}, "also"),
    ],
    ids=str,
)
def test_wrong_settings_of_the_loop_are_refused_before_any_work(wrong: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        pipeline.immunize(fakes.images(), "never loaded", prompt="a", **wrong)
