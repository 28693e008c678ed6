"""SIFM against Algorithm 1 written out: one encode, one whole noise prediction and one backward pass per timestep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fakes import images
from methods.literal import close, gradient, predict, sampled, somewhere
from sifm_core.editors import load_editor
from sifm_core.errors import InputError, LayerError
from sifm_core.features import capture, resolve
from sifm_core.methods import options, random_start, sifm
from sifm_core.noise import fork, normal
from sifm_core.pgd import pgd
from sifm_core.types import Editor, GradFn, Gradient, Image

PROMPTS = ["make it night", "add a hat", "a cat"]
DEEP = ["mid_block", "up_blocks.0.resnets.0", "up_blocks.0.resnets.1"]


@pytest.fixture(scope="module")
def editor(ip2p_folder) -> Editor:
    return load_editor(ip2p_folder, device="cpu", dtype="float64")


def algorithm_1(
    editor: Editor, x_orig: Image, prompts: list[str], T: list[int], layers: list[str], lam: float
) -> GradFn:
    """Lines 3 and 6 to 12 as they stand, with plain hooks and the whole network each time."""
    noise = normal((len(x_orig), len(T), 4, 8, 8), fork(0, "noise")).double()

    def phi(x: Image, k: int) -> Tensor:
        seen = []

        def see(module, args, output) -> None:
            seen.append(output[1] if isinstance(output, tuple) else output)  # of SD3's two streams the image's

        hooks = [editor.net.get_submodule(path).register_forward_hook(see) for path in layers]
        predict(editor, x, noise[:, k], torch.tensor([T[k]] * len(x)), prompts)
        for hook in hooks:
            hook.remove()
        return sum(seen) / len(layers)

    with torch.no_grad():
        phi_orig = [phi(x_orig, k) for k in range(len(T))]

    def gradient(x_imu: Image, n: int) -> Gradient:
        g_total, loss = torch.zeros_like(x_imu), torch.zeros(len(x_imu), dtype=x_imu.dtype)
        for k in range(len(T)):
            x = x_imu.detach().clone().requires_grad_()
            phi_imu = phi(x, k)
            norm = phi_imu.abs().flatten(1).sum(1)
            dist = (phi_imu - phi_orig[k]).square().flatten(1).mean(1)
            L = norm - lam * dist
            g_total += torch.autograd.grad(L.sum(), x)[0]
            loss += L.detach()
        return Gradient(loss / len(T), g_total / len(T))

    return gradient


CASES = [
    ("ip2p", ["mid_block"]),
    ("ip2p", DEEP),
    ("ip2p", ["up_blocks.0.resnets.0", "mid_block", "down_blocks.1.resnets.0"]),
    ("sd3", ["transformer_blocks.1"]),
    ("sd3", ["transformer_blocks.2", "transformer_blocks.0"]),
]


@pytest.fixture(scope="module")
def families(editor: Editor, sd3_folder) -> dict[str, Editor]:
    sd3 = load_editor(sd3_folder, device="cpu", dtype="float64")
    return {"ip2p": editor, "sd3": sd3}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("T", [[400], [999, 1, 300, 500]])
@pytest.mark.parametrize(("family", "layers"), CASES)
def test_equals_the_literal_algorithm(
    families, family: str, layers: list[str], T: list[int], checkpointing: bool
) -> None:
    editor = families[family]
    x0 = images(2).double()
    x = somewhere(x0)
    literal = algorithm_1(editor, x0, PROMPTS[:2], T, layers, lam=50.0)(x, 0)
    if checkpointing:
        editor.net.enable_gradient_checkpointing()
    try:
        cond = editor.prepare(PROMPTS[:2])
        ours = sifm.build(editor, x0, cond, timesteps=T, layers=list(reversed(layers)), lam=50.0)(x, 0)
    finally:
        editor.net.disable_gradient_checkpointing()
    assert close(ours.grad, literal.grad)
    assert torch.allclose(ours.loss, literal.loss, rtol=1e-12)


@pytest.mark.parametrize("family", ["ip2p", "sd3"])
def test_twenty_steps_of_both_pass_through_the_same_images(families, family: str) -> None:
    editor = families[family]
    x0, T = images(2).double(), [200, 800]
    layers = list(resolve(editor.net, editor.layer_presets["deep"]))
    path: list[list[Image]] = []
    for grad_fn in (
        algorithm_1(editor, x0, PROMPTS[:2], T, layers, lam=0.1),
        sifm.build(editor, x0, editor.prepare(PROMPTS[:2]), timesteps=T),
    ):
        path.append([])
        pgd(x0, grad_fn, eps=0.03, alpha=2 / 255, steps=20, on_step=lambda step: path[-1].append(step.preview))
    assert all(torch.equal(a, b) for a, b in zip(*path, strict=True))


def test_several_prompts_are_the_mean_of_each(editor: Editor) -> None:
    x0 = images(2).double()
    x = somewhere(x0)
    cond = [editor.prepare([prompt] * 2) for prompt in PROMPTS]
    every = [sifm.build(editor, x0, c, timesteps=2)(x, 0) for c in cond]
    ours = sifm.build(editor, x0, cond[0], timesteps=2, prompts=PROMPTS[1:])(x, 0)
    assert close(ours.grad, sum(one.grad for one in every) / 3)
    assert torch.allclose(ours.loss, sum(one.loss for one in every) / 3, rtol=1e-12)
    assert not close(ours.grad, every[0].grad, rtol=1e-4), "the prompt must matter"


def test_a_batch_of_three_gives_the_gradients_of_its_images(editor: Editor) -> None:
    x0 = images(3).double()
    x = somewhere(x0)
    batch = sifm.build(editor, x0, editor.prepare(PROMPTS), timesteps=2, seed=[4, 5, 6])(x, 0)
    for b in range(3):
        rows = slice(b, b + 1)
        single = sifm.build(editor, x0[rows], editor.prepare(PROMPTS[rows]), timesteps=2, seed=4 + b)(x[rows], 0)
        assert close(batch.grad[rows], single.grad)


def test_the_terms_sum_to_the_loss_and_alone_are_the_objectives(editor: Editor) -> None:
    x0 = images(2).double()
    x = somewhere(x0)
    cond = editor.prepare(PROMPTS[:2])
    full, norm, dist = (
        sifm.build(editor, x0, cond, timesteps=2, lam=7.0, objective=o, part_norms=True)(x, 0)
        for o in ("full", "norm", "dist")
    )
    assert close(full.grad, norm.grad + dist.grad)
    assert torch.allclose(full.log["norm"], norm.loss) and torch.allclose(full.log["dist"], dist.loss)
    assert torch.equal(full.log["grad_dist"], dist.log["grad_dist"]) and bool(dist.log["grad_dist"].all())


def features(editor: Editor, x: Image, prompt: str, t: int, paths: list[str]) -> list[Tensor]:
    z = editor.encode(x)
    eps = normal((len(x), 1, 4, 8, 8), fork(0, "noise"))[:, 0].double()
    cond = editor.prepare([prompt] * len(x))
    return list(capture(editor.net, paths, lambda: editor.denoise(z, eps, torch.tensor([t]), cond)).values())


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"norm": "l1"}, lambda f, g: f.abs().sum() - 0.1 * (f - g).square().mean()),
        ({"norm": "l1", "reduction": "mean"}, lambda f, g: f.abs().mean() - 0.1 * (f - g).square().mean()),
        ({"norm": "frobenius"}, lambda f, g: torch.linalg.vector_norm(f) - 0.1 * (f - g).square().mean()),
        (
            {"norm": "frobenius", "reduction": "mean"},
            lambda f, g: f.square().mean().sqrt() - 0.1 * (f - g).square().mean(),
        ),
        ({"distance": "cosine"}, lambda f, g: f.abs().sum() - 0.1 * (1 - (f * g).sum() / f.norm() / g.norm())),
        ({"lam": 0.0}, lambda f, g: f.abs().sum()),
    ],
    ids=["l1", "mean l1", "frobenius", "mean frobenius", "cosine", "no distance"],
)
def test_norms_distances_and_reductions(editor: Editor, chosen: dict, expected) -> None:
    x0 = images(1).double()
    x = somewhere(x0)
    ours = sifm.build(editor, x0, editor.prepare(["cat"]), timesteps=[300], layers="mid", **chosen)(x, 0)
    f, g = (features(editor, image, "cat", 300, ["mid_block"])[0] for image in (x, x0))
    assert float(ours.loss) == pytest.approx(float(expected(f, g)), rel=1e-12)


def loss_6(editor: Editor, x: Image, x0: Image, prompt: str, t: int, posterior: bool = False) -> dict[str, Tensor]:
    """The two terms of Eq. 6 at one timestep with lambda 7, by plain hooks on the whole network."""
    noise = normal((len(x), 1, 4, 8, 8), fork(0, "noise"))[:, 0].double()

    def phi(image: Image) -> Tensor:
        seen: list[Tensor] = []
        hook = editor.net.get_submodule(PLACE[editor.family]).register_forward_hook(lambda m, a, out: seen.append(out))
        raw = sampled(editor, image, fork(0, "posterior")) if posterior else None
        predict(editor, image, noise, torch.tensor([t] * len(x)), [prompt] * len(x), raw)
        hook.remove()
        return (seen[0][1] if isinstance(seen[0], tuple) else seen[0]).flatten(1)

    with torch.no_grad():
        clean = phi(x0)
    found = phi(x)
    return {"norm": found.abs().sum(1), "dist": -7.0 * (found - clean).square().mean(1)}


PLACE = {"instruct-pix2pix": "mid_block", "sd3": "transformer_blocks.1"}


@pytest.mark.parametrize("family", ["ip2p", "sd3"])
def test_a_sampled_posterior_is_the_same_draw_for_clean_and_protected(families, family: str) -> None:
    editor, x0 = families[family], images(2).double()
    x = somewhere(x0)
    layer, cond = PLACE[editor.family], editor.prepare(["cat"] * 2)
    ours, mode = (
        sifm.build(editor, x0, cond, timesteps=[300], layers=layer, lam=7.0, posterior=p)(x, 0)
        for p in ("sample", "mode")
    )
    loss, grad = gradient(lambda x: sum(loss_6(editor, x, x0, "cat", 300, posterior=True).values()), x)
    assert close(ours.grad, grad) and torch.allclose(ours.loss, loss, rtol=1e-10)
    assert not close(ours.grad, mode.grad, rtol=1e-3), "the draw must matter"


@pytest.mark.parametrize("family", ["ip2p", "sd3"])
def test_all_branches_are_the_mean_of_the_prompts_and_of_no_text(families, family: str) -> None:
    editor, x0 = families[family], images(2).double()
    x = somewhere(x0)
    chosen = {"timesteps": [300], "layers": PLACE[editor.family], "lam": 7.0, "branch": "all", "prompts": ["a hat"]}
    ours = sifm.build(editor, x0, editor.prepare(["cat"] * 2), **chosen)(x, 0)
    texts = ("cat", "a hat", "")
    loss, grad = gradient(lambda x: sum(sum(loss_6(editor, x, x0, text, 300).values()) for text in texts) / 3, x)
    assert close(ours.grad, grad) and torch.allclose(ours.loss, loss, rtol=1e-10)
    without = sifm.build(editor, x0, editor.prepare(["cat"] * 2), **chosen | {"branch": "conditional"})(x, 0)
    assert not close(ours.grad, without.grad, rtol=1e-6)


@pytest.mark.parametrize("family", ["ip2p", "sd3"])
def test_balanced_brings_each_terms_gradient_at_the_latent_to_its_length(families, family: str) -> None:
    """Of every picture on its own: 1 for the norm, lambda for the distance, summed over timesteps before."""
    editor, x0 = families[family], images(2).double()
    x, times = somewhere(x0), [200, 700]
    cond, layer = editor.prepare(["cat"] * 2), PLACE[editor.family]
    ours = sifm.build(editor, x0, cond, timesteps=times, layers=layer, lam=0.3, balanced=True)(x, 0)
    noises = normal((2, 2, 4, 8, 8), fork(0, "noise")).double().unbind(dim=1)

    def phi(z: Tensor, k: int) -> Tensor:
        run = lambda: editor.denoise(z, noises[k], torch.tensor([times[k]] * 2), cond)  # noqa: E731
        return capture(editor.net, [layer], run, editor.hidden)[layer].flatten(1)

    leaf = x.clone().requires_grad_()
    encoded = editor.encode(leaf)
    z = encoded.detach().requires_grad_()
    with torch.no_grad():
        clean = [phi(editor.encode(x0), k) for k in range(2)]
    values = {
        "norm": sum(phi(z, k).abs().sum(1) for k in range(2)) / 2,
        "dist": -0.3 * sum((phi(z, k) - clean[k]).square().mean(1) for k in range(2)) / 2,
    }
    grads = {name: torch.autograd.grad(value.sum(), z)[0] for name, value in values.items()}
    sizes = {name: grad.flatten(1).norm(dim=1) for name, grad in grads.items()}
    wanted = sum(
        length * grads[name] / sizes[name].reshape(-1, 1, 1, 1) for name, length in {"norm": 1.0, "dist": 0.3}.items()
    )
    assert close(ours.grad, torch.autograd.grad(encoded, leaf, wanted)[0])
    assert torch.allclose(ours.loss, sum(values.values()).detach(), rtol=1e-10), "the loss is the plain one"
    for name in values:
        assert torch.allclose(ours.log[f"grad_{name}"], sizes[name], rtol=1e-8), "before they were scaled"
    plain = sifm.build(editor, x0, cond, timesteps=times, layers=layer, lam=0.3)(x, 0)
    assert not close(ours.grad / ours.grad.norm(), plain.grad / plain.grad.norm(), rtol=1e-2)


def test_balanced_does_not_need_the_distance_to_have_a_gradient_yet(editor: Editor) -> None:
    x0 = images(1).double()
    both, norm = (
        sifm.build(editor, x0, editor.prepare(["cat"]), timesteps=1, balanced=True, objective=o)(x0, 0)
        for o in ("full", "norm")
    )
    assert close(both.grad, norm.grad) and float(both.log["grad_dist"]) == 0


def test_per_layer_aggregation_is_the_mean_of_the_layers_losses_whatever_their_shapes(editor: Editor) -> None:
    x0, paths = images(1).double(), ["mid_block", "up_blocks.1.resnets.0"]
    cond = editor.prepare(["cat"])
    f, g = features(editor, x0, "cat", 300, paths)
    assert f.shape != g.shape
    ours = sifm.build(editor, x0, cond, timesteps=[300], layers=paths, aggregation="per_layer")(x0, 0)
    assert float(ours.loss) == pytest.approx(float((f.abs().sum() + g.abs().sum()) / 2), rel=1e-12)
    with pytest.raises(LayerError, match=r"one shape.*mid_block \(8, 4, 4\)"):
        sifm.build(editor, x0, cond, layers=paths)


def test_fixed_noise_repeats_and_resampled_noise_does_not(editor: Editor) -> None:
    x0 = images(1).double()
    x = somewhere(x0)
    fixed, fresh = (
        sifm.build(editor, x0, editor.prepare(["cat"]), timesteps=2, objective=objective, noise=noise, seed=3)
        for objective, noise in (("full", "fixed"), ("dist", "resampled"))
    )
    assert torch.equal(fixed(x, 0).grad, fixed(x, 1).grad)
    assert torch.equal(fresh(x, 1).grad, fresh(x, 1).grad) and not close(fresh(x, 0).grad, fresh(x, 1).grad, rtol=1e-2)
    assert float(fresh(x0, 2).loss) == pytest.approx(0, abs=1e-12), "the clean features must be of the same noise"


def test_the_distance_alone_starts_from_noise_or_is_refused(editor: Editor) -> None:
    x0 = images(1).double()
    grad_fn = sifm.build(editor, x0, editor.prepare(["cat"]), timesteps=1, objective="dist")
    settings = {"eps": 0.03, "alpha": 2 / 255, "steps": 2}
    with pytest.raises(InputError, match="random_start=True"):
        pgd(x0, grad_fn, **settings)
    assert random_start("sifm", {"objective": "dist"}) and not random_start("sifm", {})
    assert bool((pgd(x0, grad_fn, **settings, random_start=True) != x0).any())


@pytest.mark.parametrize(
    ("timesteps", "expected"),
    [
        (1, [500]),
        (4, [200, 400, 600, 800]),
        ("4", [200, 400, 600, 800]),
        ([7, 3], [7, 3]),
        ("7, 3", [7, 3]),
        ("700,", [700]),
        ("late", [91, 182, 273]),
        ("mid", [364, 455, 545, 636]),
        ("early", [727, 818, 909]),
    ],
    ids=str,
)
def test_timesteps(editor: Editor, monkeypatch: pytest.MonkeyPatch, timesteps: object, expected: list[int]) -> None:
    ran: list[int] = []
    denoise = editor.denoise
    monkeypatch.setattr(editor, "denoise", lambda z, n, t, c: ran.extend(t.tolist()) or denoise(z, n, t, c))
    sifm.build(editor, images(1).double(), editor.prepare(["cat"]), timesteps=timesteps)
    assert ran == expected


@pytest.mark.parametrize("layers", ["mid, up_blocks.0.resnets.*", ("mid", "up_blocks.0.resnets.*"), "deep"])
def test_layers_are_presets_or_paths(editor: Editor, layers: object) -> None:
    x0 = images(1).double()
    cond = editor.prepare(["cat"])
    named = sifm.build(editor, x0, cond, timesteps=1, layers=layers)(x0, 0)
    assert torch.equal(named.grad, sifm.build(editor, x0, cond, timesteps=1, layers=DEEP)(x0, 0).grad)


@pytest.mark.parametrize("preset", ["mid", "deep", "down", "up", "last"])
def test_every_preset_can_be_averaged(editor: Editor, preset: str) -> None:
    x0 = images(1).double()
    assert bool(sifm.build(editor, x0, editor.prepare(["cat"]), timesteps=1, layers=preset)(x0, 0).grad.any())


@pytest.mark.parametrize(
    "wrong",
    [
        {"timesteps": 0},
        {"timesteps": 1001},
        {"timesteps": []},
        {"timesteps": ""},
        {"timesteps": [1000]},
        {"timesteps": [-1]},
        {"timesteps": "soon"},
        {"timesteps": [2.5]},
        {"layers": "mid_blok"},
        {"layers": []},
        {"layers": ""},
        {"lam": -0.1},
        {"lam": float("nan")},
        {"norm": "l2"},
    ],
    ids=str,
)
def test_wrong_options_are_refused(editor: Editor, wrong: dict) -> None:
    with pytest.raises(InputError, match=r"did you mean|expected|known"):
        sifm.build(editor, images(1).double(), editor.prepare(["cat"]), **wrong)


def test_the_signature_is_the_configuration() -> None:
    found = options("sifm")
    assert found["lam"].default == 0.1 and found["lam"].type is float
    assert found["timesteps"].default == 10 and "seed" not in found
    assert "Eq. 5" in found["norm"].doc


def test_the_cost_of_an_iteration_does_not_grow_with_the_encoder(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    x0 = images(1).double()
    grad_fn = sifm.build(editor, x0, editor.prepare(["cat"]), timesteps=6)
    encodes, behind = [], []
    vae_encode = editor.pipe.vae.encode
    monkeypatch.setattr(editor.pipe.vae, "encode", lambda x: encodes.append(1) or vae_encode(x))
    hook = editor.net.up_blocks[1].register_forward_hook(lambda *_: behind.append(1))
    grad_fn(x0, 0)
    hook.remove()
    assert len(encodes) == 1
    assert behind == [], "nothing behind the deepest hooked layer runs"
