"""What every method must keep, run over the table of methods: a new entry is tested by being listed."""

from __future__ import annotations

import inspect

import pytest
import torch

from fakes import images
from sifm_core import pipeline
from sifm_core.editors import load_editor
from sifm_core.errors import InputError
from sifm_core.methods import METHODS, get_method, options, random_start
from sifm_core.pgd import pgd
from sifm_core.types import Editor, GradFn, Image, Step
from toy import ToyEditor

EPS, ALPHA, STEPS = 0.03, 2 / 255, 4
PROMPTS = ["make it night", "add a hat", "a cat"]
GRADIENT = [name for name in METHODS if hasattr(get_method(name), "build")]
DESCENDED = [name for name in GRADIENT if not getattr(get_method(name), "STOP_GRADIENT", False)]


@pytest.fixture(scope="module", params=["ip2p", "sd3", "toy"])
def editor(request: pytest.FixtureRequest) -> Editor:
    """Two of diffusers' families, and one of plain torch that knows nothing of diffusers."""
    if request.param == "toy":
        return ToyEditor(torch.float64)
    return load_editor(request.getfixturevalue(f"{request.param}_folder"), device="cpu", dtype="float64", steps=3)


def build(
    name: str, editor: Editor, x: Image, prompts: list[str], seed: int | list[int] = 0, **chosen: object
) -> GradFn:
    module = get_method(name)
    given = {"seed": seed} if "seed" in inspect.signature(module.build).parameters else {}
    quick = {key: 2 for key in ("timesteps", "edit_steps") if key in options(name)}
    return module.build(editor, x, editor.prepare(prompts), **given | quick | chosen)


def protect(name: str, editor: Editor, x: Image, prompts: list[str], seed: int | list[int] = 0, on_step=None) -> Image:
    module = get_method(name)
    if not hasattr(module, "build"):
        return module.perturb(x, eps=EPS, seed=seed)
    grad_fn = build(name, editor, x, prompts, seed)
    start = random_start(name, {})
    return pgd(x, grad_fn, eps=EPS, alpha=ALPHA, steps=STEPS, seed=seed, random_start=start, on_step=on_step)


@pytest.mark.parametrize("name", METHODS)
def test_budget_range_shape_and_same_seed_same_bytes(name: str, editor: Editor) -> None:
    x = images(2).double()
    adv = protect(name, editor, x, PROMPTS[:2], seed=3)
    assert adv.shape == x.shape and float(adv.min()) >= 0 and float(adv.max()) <= 1
    assert 0.5 * EPS < float((adv - x).abs().max()) <= EPS + 1e-6
    assert torch.equal(protect(name, editor, x, PROMPTS[:2], seed=3), adv)


@pytest.mark.parametrize("name", GRADIENT)
def test_the_attackers_noise_is_not_what_the_picture_was_protected_with(name: str, editor: Editor, monkeypatch) -> None:
    """Who protects and attacks with one seed, as the defaults do, must not train on the noise of the attack."""
    drawn, randn = set(), torch.randn

    def watched(*shape: int, generator: torch.Generator | None = None, **options: object) -> torch.Tensor:
        drawn.add(generator and generator.initial_seed())
        return randn(*shape, generator=generator, **options)

    monkeypatch.setattr(torch, "randn", watched)
    protect(name, editor, images(1).double(), PROMPTS[:1], seed=5)
    assert 5 not in drawn and None not in drawn
    editor.edit(images(1).double(), editor.prepare(PROMPTS[:1]), seed=5)
    assert 5 in drawn


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_equals_its_images_one_by_one(name: str, editor: Editor) -> None:
    x, seeds = images(3).double(), [11, 12, 13]
    batch = protect(name, editor, x, PROMPTS, seeds)
    for b in range(3):
        single = protect(name, editor, x[b : b + 1], PROMPTS[b : b + 1], [seeds[b]])
        assert torch.equal(single[0], batch[b]), f"image {b}"


@pytest.mark.parametrize("name", METHODS)
def test_says_what_can_be_set(name: str) -> None:
    for key, option in options(name).items():
        assert option.doc and option.default is not inspect.Parameter.empty, key


@pytest.mark.parametrize("name", GRADIENT)
def test_every_step_is_reported(name: str, editor: Editor) -> None:
    steps: list[Step] = []
    protect(name, editor, images(2).double(), PROMPTS[:2], on_step=steps.append)
    assert [(s.i, s.n) for s in steps] == [(i, STEPS) for i in range(1, STEPS + 1)]


@pytest.mark.parametrize("name", DESCENDED)
def test_the_loss_falls(name: str, editor: Editor) -> None:
    """Measured with the random numbers of one step, since some methods draw new ones in each."""
    x = images(2).double()
    loss = build(name, editor, x, PROMPTS[:2])
    assert bool((loss(protect(name, editor, x, PROMPTS[:2]), 0).loss < loss(x, 0).loss).all())


@pytest.mark.parametrize("name", DESCENDED)
def test_the_gradient_is_the_losss(name: str, editor: Editor) -> None:
    """The loss falls along it as fast as its length says: sign and scale are right."""
    x = images(2).double() * 0.8 + 0.1
    grad_fn = build(name, editor, x, PROMPTS[:2])
    x = x + 0.01 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    first = grad_fn(x, 0)
    h = 1e-5 / first.grad.flatten(1).abs().amax(dim=1)
    moved = grad_fn(x - h.reshape(-1, 1, 1, 1) * first.grad, 0).loss
    assert torch.allclose(first.loss - moved, h * first.grad.square().flatten(1).sum(1), rtol=1e-2)


@pytest.mark.parametrize("name", GRADIENT)
def test_an_interrupt_leaves_nothing_behind(name: str, editor: Editor) -> None:
    class Stop(Exception):
        pass

    def stop(step: Step) -> None:
        raise Stop

    parts = list(editor.networks().values())
    modules = [module for part in parts for module in part.modules()]

    def state() -> list[object]:
        hooks = [dict(h) for m in modules for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)]
        return [*hooks, *(m.training for m in modules), dict(getattr(editor.net, "attn_processors", {}))]

    build(
        name, editor, images(1).double(), PROMPTS[:1]
    )  # text encoders keep hooks of their own from their first run on
    before = state()
    for _ in range(3):
        with pytest.raises(Stop):
            protect(name, editor, images(1).double(), PROMPTS[:1], on_step=stop)
    assert state() == before
    for parameter in [parameter for part in parts for parameter in part.parameters()]:
        assert not parameter.requires_grad and parameter.grad is None and parameter.dtype is torch.float64
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", GRADIENT)
def test_a_network_in_bfloat16_gives_a_gradient_in_float32(name: str, editor: Editor, request) -> None:
    folder = request.getfixturevalue("sd3_folder" if editor.family == "sd3" else "ip2p_folder")
    half = load_editor(folder, device="cpu", dtype="bfloat16", steps=3)
    x = images(2)
    grad_fn = build(name, half, x, PROMPTS[:2])
    loss, grad, _ = grad_fn((x + 0.02 * torch.rand(x.shape)).clamp(0, 1), 0)
    assert loss.dtype is grad.dtype is torch.float32
    assert bool(grad.flatten(1).any(dim=1).all()) and bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("name", [name for name in GRADIENT if random_start(name, {})])
def test_what_starts_at_random_does_not_move_or_says_so_otherwise(name: str, editor: Editor) -> None:
    """A distance to the clean picture alone has no gradient there: the loop refuses instead of doing nothing."""
    x = images(1).double()
    if bool(build(name, editor, x, PROMPTS[:1])(x, 0).grad.any()):
        return  # MIST and PhotoGE start at random because their authors do
    with pytest.raises(InputError, match="zero everywhere"):
        pgd(x, build(name, editor, x, PROMPTS[:1]), eps=EPS, alpha=ALPHA, steps=2)


@pytest.mark.parametrize("name", METHODS)
def test_works_inside_inference_mode(name: str, ip2p_folder) -> None:
    """As ComfyUI runs its nodes: everything from loading on happens in there."""
    with torch.inference_mode():
        editor = load_editor(ip2p_folder, device="cpu", steps=2)
        x = images(1)
        adv = protect(name, editor, x, PROMPTS[:1])
    assert float((adv - x).abs().max()) > 0


CHOICES = [(name, key) for name in METHODS for key, option in options(name).items() if "Literal" in str(option.type)]


@pytest.mark.parametrize(("name", "key"), CHOICES)
def test_an_option_outside_its_list_is_refused_with_near_names(name: str, key: str, editor: Editor) -> None:
    with pytest.raises(InputError, match=key):
        if hasattr(get_method(name), "build"):
            build(name, editor, images(1).double(), PROMPTS[:1], **{key: "wrong"})
        else:
            get_method(name).perturb(images(1), eps=EPS, **{key: "wrong"})


@pytest.mark.parametrize("name", ["random_noise", "photoguard_encoder", "editshield"])
def test_a_mask_holds_whether_or_not_there_is_a_gradient(name: str) -> None:
    x, mask = images(2, 32), torch.zeros(2, 1, 32, 32)
    mask[0, :, :8], mask[1, :, 8:, 3:] = 1, 1
    done = pipeline.immunize(x, ToyEditor(), prompt="a", method=name, steps=3, mask=mask)
    changed = (done.image != x).any(dim=1, keepdim=True)
    assert not bool(changed[mask == 0].any()) and float(changed[mask == 1].float().mean()) > 0.9


def test_an_unknown_method_is_refused_with_near_names() -> None:
    with pytest.raises(InputError, match=r"did you mean sifm"):
        get_method("sifn")
