"""Qwen-Image-2.1 against the unmodified pipeline, its reference tower, and gradients by both ways in."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import QwenImage21Pipeline
from PIL import Image as Pil
from torch import Tensor

import fakes
from fakes import images
from methods.literal import close, gradient, somewhere
from sifm_core import pipeline
from sifm_core.editors import load_editor
from sifm_core.editors.sight import patches
from sifm_core.errors import EditorError, ImageError, InputError, LayerError
from sifm_core.features import capture, resolve
from sifm_core.images import to_uint8
from sifm_core.methods import sifm
from sifm_core.noise import fork, normal
from sifm_core.types import Editor, Step

PROMPTS = ["make it night", "add a hat"]
SIZE = (64, 96)


@pytest.fixture(scope="module")
def editor(qwen21_folder) -> Editor:
    return load_editor(qwen21_folder, device="cpu", steps=3)


@pytest.fixture(scope="module")
def exact(qwen21_folder) -> Editor:
    return load_editor(qwen21_folder, device="cpu", dtype="float64", steps=2)


@pytest.fixture
def lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Qwen's own layers compute in float32 whatever they get, norms and positions, is computed in float64."""
    to = torch.Tensor.to

    def stays(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        args = tuple(torch.float64 if a is torch.float32 and self.dtype == torch.float64 else a for a in args)
        return to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch.Tensor, "to", stays)


def theirs(folder: Path, dtype: torch.dtype = torch.float32) -> QwenImage21Pipeline:
    pipe = QwenImage21Pipeline.from_pretrained(folder, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_defaults_and_shape_of_the_family(editor: Editor, qwen21_folder) -> None:
    assert editor.family == "qwen-image-2.1" and editor.net is editor.pipe.transformer
    assert editor.settings == {"steps": 3, "guidance_scale": 1.0, "size": 64}
    assert editor.entrances == ("vae", "vlm") and editor.timeless == ("reference",)
    assert editor.layer_presets["deep"] == ("transformer_blocks.1", "transformer_blocks.2")
    assert editor.layer_presets["text"] == ("transformer_blocks.1:text", "transformer_blocks.2:text")
    assert editor.work_size(1000, 1500) == (64, 64) and load_editor(qwen21_folder, size=256).work_size(10, 40) == (
        128,
        512,
    )
    with pytest.raises(ImageError, match="multiples of 32"):
        editor.encode(images(1, (64, 80)))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_edit_is_the_unmodified_pipelines(editor: Editor, qwen21_folder, guidance: float) -> None:
    x, pipe = images(2, SIZE), theirs(qwen21_folder)
    negative = {"negative_prompt": "", "true_cfg_scale": guidance} if guidance > 1 else {}
    edited = editor.edit(x, editor.prepare(PROMPTS, x), seed=[5, 6], guidance_scale=guidance)
    for k in range(2):
        own = pipe(
            PROMPTS[k],
            image=Pil.fromarray(to_uint8(x[k])),
            output_resolution=math.sqrt(64 * 96),
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(5 + k),
            output_type="pt",
            **negative,
        ).images
        assert torch.equal(edited[k], own[0, :3]) and own.shape[-2:] == SIZE
    assert float(edited.std()) > 0.01 and not torch.equal(edited[0], edited[1])


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_generate_is_the_edit_with_a_gradient(exact: Editor, guidance: float) -> None:
    x = images(2, SIZE).double()
    cond = exact.prepare(PROMPTS, x)
    value, grad = gradient(
        lambda x: exact.generate(x, cond, exact.draws(x, 3), guidance_scale=guidance).flatten(1).sum(1), x
    )
    generated = exact.generate(x, cond, exact.draws(x, 3), guidance_scale=guidance)
    edited = exact.edit(x, cond, seed=3, guidance_scale=guidance)
    assert torch.allclose(generated.float(), edited, atol=1e-5)
    assert bool(grad.any()) and bool(torch.isfinite(value).all())


def test_a_schedule_of_its_own_says_how_many_steps(qwen21_folder, tmp_path) -> None:
    folder = shutil.copytree(qwen21_folder, tmp_path / "turbo")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"sample_sigmas": [1.0, 0.6]}))
    turbo, x, steps = load_editor(folder, device="cpu", dtype="float64"), images(1, 64).double(), list[Step]()
    cond = turbo.prepare(PROMPTS[:1], x)
    edited = turbo.edit(x, cond, seed=1, on_step=steps.append)
    assert [(s.i, s.n) for s in steps] == [(1, 2), (2, 2)]
    assert torch.allclose(turbo.generate(x, cond, turbo.draws(x, 1)).float(), edited, atol=1e-5)


def test_what_the_prompt_becomes_is_the_pipelines(editor: Editor, qwen21_folder) -> None:
    x, pipe = images(2, SIZE), theirs(qwen21_folder)
    cond = editor.prepare([PROMPTS[0], ""], x)
    for k, text in enumerate((PROMPTS[0], "")):
        embeds, mask, slots = pipe.encode_prompt(text, [Pil.fromarray(to_uint8(x[k]))])
        assert mask is None and int(slots.sum()) == 6
        assert torch.allclose(cond.prompt[k, cond.valid[k]], embeds[0, ~slots[0]], atol=1e-6)
    said = cond.prompt[0, editor.words(cond)[0]]
    assert len(said) == len(PROMPTS[0]) and not bool(editor.words(cond)[1].any())
    blind = editor.prepare(PROMPTS[:1])
    assert torch.allclose(blind.prompt, pipe.encode_prompt(PROMPTS[0])[0], atol=1e-6)


@pytest.mark.parametrize("size", [(64, 96), (64, 64), (32, 64), (128, 96), (160, 64)])
def test_patches_are_the_processors(editor: Editor, size: tuple[int, int]) -> None:
    """Equal where it does not resize; where it does, nearly: it cuts to 8 bits between rows and columns."""
    x, processor = images(1, size), editor.pipe.processor.image_processor
    smooth = torch.nn.functional.avg_pool2d(x, 9, 1, 4).mul(255).round() / 255
    for picture, most in ((x, 0.4), (smooth, 0.06)):
        wanted = processor(Pil.fromarray(to_uint8(picture)), return_tensors="pt")
        pixels, grid = patches(picture, processor)
        assert grid.tolist() == wanted["image_grid_thw"].tolist()
        resized = math.prod(size) != math.prod(grid[0].tolist()) * 256
        assert resized == (size not in ((64, 96), (64, 64)))
        apart = (pixels - wanted["pixel_values"]).abs()
        assert float(apart.max()) < (most if resized else 1e-5) and float(apart.mean()) < 0.01


def test_latents_are_normalised_by_channel_and_decode_inverts(exact: Editor) -> None:
    x = images(2, SIZE).double().requires_grad_()
    z, vae = exact.encode(x), exact.pipe.vae
    rgba = torch.cat([2 * x - 1, torch.ones_like(x[:, :1])], dim=1)[:, :, None]
    mode = vae.encode(rgba).latent_dist.mode()[:, :, 0]
    mean, std = (
        torch.tensor(v).double().reshape(1, 8, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    assert torch.allclose(z, (mode - mean) / std, rtol=1e-6) and z.shape == (2, 8, 4, 6)
    assert bool(torch.autograd.grad(z.sum(), x)[0].any())
    noise = torch.randn_like(z)
    spread = vae.encode(rgba).latent_dist.std[:, :, 0] * noise / std
    assert torch.allclose(exact.encode(x, noise) - z, spread, rtol=1e-5)
    decoded = vae.decode((z * std + mean)[:, :, None]).sample[:, :3, 0] / 2 + 0.5
    assert torch.allclose(exact.decode(z), decoded, atol=1e-6)


def features(
    editor: Editor, paths: list[str], x: Tensor, *, t: int, noise: int, prompt: str, seen: Tensor
) -> list[Tensor]:
    z, cond = editor.encode(x), editor.prepare([prompt] * len(x), seen)
    run = lambda: editor.denoise(z, normal(z.shape, noise).to(z), torch.full((len(x),), t), cond)  # noqa: E731
    return list(capture(editor.net, paths, run, editor.hidden).values())


def test_the_reference_tower_hangs_on_the_picture_alone_exactly(exact: Editor) -> None:
    x, other = images(1, SIZE).double(), images(1, SIZE, seed=3).double()
    paths = list(resolve(exact.net, ["transformer_blocks.*:reference"]))
    base = {"t": 300, "noise": 0, "prompt": "make it night", "seen": x}
    first = features(exact, paths, x, **base)
    for change in ({"t": 999}, {"noise": 1}, {"prompt": "a cat"}, {"prompt": ""}, {"seen": other}):
        again = features(exact, paths, x, **base | change)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), change
    z, cond = exact.encode(x), exact.prepare(["a"], x)
    for size in ((2, 4), (6, 4), (8, 8)):  # of the edit to come
        run = lambda size=size: exact.velocity(z, torch.randn(1, 8, *size).double(), torch.tensor([500]), cond)  # noqa: E731
        again = capture(exact.net, paths, run, exact.hidden).values()
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), size
    alone = capture(exact.net, paths, lambda: exact.tower(z, cond), exact.hidden).values()
    assert all(close(a, b, 1e-7) for a, b in zip(alone, first, strict=True)), "alone: other sums, float32 positions"
    moved = features(exact, paths, other, **base)
    assert not any(torch.equal(a, b) for a, b in zip(first, moved, strict=True))
    for stream in ("target", "text"):
        own = [path.replace("reference", stream) for path in paths[1:]]
        changes = ({"t": 999}, {"noise": 1}, {"seen": other}) if stream == "target" else ({"seen": other},)
        for change in changes:
            a, b = features(exact, own, x, **base), features(exact, own, x, **base | change)
            assert not any(map(torch.equal, a, b)), (stream, change)


def test_a_network_that_moves_its_source_with_time_has_no_tower(qwen21_folder, tmp_path) -> None:
    folder = shutil.copytree(qwen21_folder, tmp_path / "moving")
    config = json.loads((folder / "transformer/config.json").read_text()) | {"causal_condition": False}
    (folder / "transformer/config.json").write_text(json.dumps(config))
    moving, x = load_editor(folder, device="cpu", dtype="float64"), images(1, 64).double()
    path = ["transformer_blocks.1:reference"]
    one, two = (features(moving, path, x, t=t, noise=0, prompt="a", seen=x)[0] for t in (300, 900))
    assert moving.timeless == () and not torch.equal(one, two)


@pytest.mark.parametrize("family", ["ip2p_folder", "sd3_folder", "ultraedit_folder"])
def test_other_families_have_none(family: str, request: pytest.FixtureRequest) -> None:
    editor = load_editor(request.getfixturevalue(family), device="cpu", dtype="float64")
    x = images(1).double()
    paths = list(resolve(editor.net, editor.layer_presets["deep"]))
    base = {"t": 300, "noise": 0, "prompt": "make it night", "seen": x}
    for change in ({"t": 800}, {"noise": 1}, {"prompt": "a cat"}):
        a, b = features(editor, paths, x, **base), features(editor, paths, x, **base | change)
        assert not any(map(torch.equal, a, b)), change
    assert editor.timeless == ()


def test_a_batch_equals_its_images_one_by_one(exact: Editor) -> None:
    """Prompts of different lengths too: an edit stands behind its own prompt, not behind padding."""
    x, t = images(2, SIZE).double(), torch.tensor([300, 800])
    cond, z, noise = exact.prepare(PROMPTS, x), exact.encode(images(2, SIZE).double()), torch.randn(2, 8, 4, 6).double()
    batch = exact.denoise(z, noise, t, cond)
    edited = exact.edit(x, cond, seed=[1, 2])
    for k in range(2):
        row = slice(k, k + 1)
        alone = exact.prepare(PROMPTS[row], x[row])
        assert torch.allclose(exact.denoise(z[row], noise[row], t[row], alone), batch[row], atol=1e-6)
        assert torch.equal(exact.edit(x[row], alone, seed=1 + k), edited[row])
    assert not bool(cond.valid.all())
    joined = exact.join([exact.prepare(PROMPTS[k : k + 1], x[k : k + 1]) for k in (1, 0)])
    back = exact.take(joined, torch.tensor([1, 0]))
    assert torch.allclose(back.prompt[cond.valid], cond.prompt[cond.valid]) and torch.equal(back.words, cond.words)
    assert torch.allclose(exact.denoise(z, noise, t, back), batch, atol=1e-6)


def literal(editor: Editor, x0: Tensor, x: Tensor, prompts: list[list[str]], T: list[int], path: str, by: str) -> tuple:
    """Algorithm 1 on the whole network, with plain hooks, each timestep and prompt for itself."""
    noise = normal((len(x0), len(T), 8, 4, 6), fork(0, "noise")).double()
    seen: list[Tensor] = []
    module, _, stream = path.partition(":")

    def phi(x_vae: Tensor, x_vlm: Tensor, k: int, prompt: list[str]) -> Tensor:
        hook = editor.net.get_submodule(module).register_forward_hook(lambda m, a, out: seen.append(out))
        cond = editor.prepare(prompt, x0)
        cond = editor.with_embeddings(cond, editor.see(cond, x_vlm))
        editor.denoise(editor.encode(x_vae), noise[:, k], torch.tensor([T[k]] * len(x0)), cond)
        hook.remove()
        out, before = seen[-1], editor.before
        n = 24
        both = [out[:, before : before + n], out[:, -n:]]
        return (both[0] if stream == "reference" else torch.cat(both, dim=1)).flatten(1)

    def loss(x: Tensor) -> Tensor:
        total = torch.zeros(len(x0), dtype=x.dtype)
        for k in range(len(T)):
            for prompt in prompts:
                with torch.no_grad():
                    clean = phi(x0, x0, k, prompt)
                f = phi(x if by != "vlm" else x0, x if by != "vae" else x0, k, prompt)
                total = total + f.abs().sum(1) - 50.0 * (f - clean).square().mean(1)
        return total / len(T) / len(prompts)

    return gradient(loss, x)


CASES = [
    ("transformer_blocks.1", "vae"),
    ("transformer_blocks.1", "vlm"),
    ("transformer_blocks.1", "both"),
    ("transformer_blocks.2:reference", "vae"),
    ("transformer_blocks.2:reference", "both"),
]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("path", "by"), CASES)
def test_sifm_equals_the_literal_algorithm(qwen21_folder, path: str, by: str, checkpointing: bool) -> None:
    editor = load_editor(qwen21_folder, device="cpu", dtype="float64", checkpointing=checkpointing)
    x0, T = images(2, SIZE).double(), [200, 900]
    x = somewhere(x0)
    options = {"timesteps": T, "layers": [path], "lam": 50.0, "prompts": ["a cat"], "entrances": by, "rows": 3}
    ours = sifm.build(editor, x0, editor.prepare(PROMPTS, x0), **options)(x, 0)
    loss, grad = literal(editor, x0, x, [PROMPTS, ["a cat"] * 2], T, path, by)
    # where prompts differ in length rows share a pass under a mask, which float32 positions make 1e-7 exact
    assert close(ours.grad, grad, rtol=1e-10 if "reference" in path else 1e-6)
    assert torch.allclose(ours.loss, loss, rtol=1e-12 if "reference" in path else 1e-7)


@pytest.mark.parametrize("by", ["vae", "vlm", "both"])
def test_prompts_of_one_length_are_exact(exact: Editor, by: str, lifted) -> None:
    x0, T, path = images(1, SIZE).double(), [200, 900], "transformer_blocks.1"
    x = somewhere(x0)
    options = {"timesteps": T, "layers": [path], "lam": 50.0, "entrances": by}
    ours = sifm.build(exact, x0, exact.prepare(PROMPTS[:1], x0), **options)(x, 0)
    loss, grad = literal(exact, x0, x, [PROMPTS[:1]], T, path, by)
    assert close(ours.grad, grad) and torch.allclose(ours.loss, loss, rtol=1e-12)


def test_the_gradient_is_that_of_finite_differences_by_both_ways(exact: Editor, lifted) -> None:
    x0 = images(1, SIZE).double() * 0.8 + 0.1
    x, cond = somewhere(x0), exact.prepare(PROMPTS[:1], x0)
    along = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    slopes = []
    for by in ("vae", "vlm", "both"):
        grad_fn = sifm.build(exact, x0, cond, timesteps=[500], layers="deep", objective="dist", entrances=by)
        h = 1e-5
        slope = (grad_fn(x + h * along, 0).loss - grad_fn(x - h * along, 0).loss) / (2 * h)
        assert torch.allclose((grad_fn(x, 0).grad * along).flatten(1).sum(1), slope, rtol=1e-5)
        slopes.append(float(slope))
    assert len(set(slopes)) == 3


def test_the_tower_costs_one_short_forward_whatever_T_and_prompts(exact: Editor, monkeypatch) -> None:
    x, lengths, calls = images(1, SIZE).double(), [], []
    cond = exact.prepare(PROMPTS[:1], x)
    hook = exact.net.transformer_blocks[0].register_forward_hook(lambda m, a, out: lengths.append(out.shape[1]))
    grad_fn = sifm.build(exact, x, cond, timesteps=10, layers="reference", prompts=["a", "b"], entrances="both")
    lengths.clear()
    monkeypatch.setattr(type(exact), "see", lambda *a: calls.append(1))
    one = grad_fn(somewhere(x), 0)
    hook.remove()
    assert lengths == [exact.before + 24] and not calls
    other = sifm.build(exact, x, exact.prepare(["a quite different one"], x), timesteps=[7], layers="reference", seed=9)
    assert torch.equal(other(somewhere(x), 0).grad, one.grad), "prompt, timestep and noise make no difference"


def test_immunize_and_edit_by_the_verbs_keep_the_budget_and_leave_nothing_behind(qwen21_folder) -> None:
    editor, x = load_editor(qwen21_folder, device="cpu", steps=1), images(2, (70, 100))
    hooks = lambda: [len(m._forward_hooks) for m in editor.net.modules()]  # noqa: E731
    before = hooks()
    tower = {"layers": "reference", "entrances": "both"}  # which no other entrance reaches
    for options, entered in ((tower, "vae"), ({"timesteps": 1, "entrances": "both", "rows": 2}, "both")):
        done = pipeline.immunize(x, editor, prompt=PROMPTS, steps=2, aggregation="per_layer", **options)
        assert done.settings["entrances"] == entered
        assert 0 < float((done.image - x).abs().max()) <= 0.03 + 1e-7 and done.image.shape == x.shape
    assert pipeline.edit(x, editor, prompt=PROMPTS, seed=1).shape == x.shape

    def stop(step: Step) -> None:
        raise KeyboardInterrupt

    for verb in (
        lambda: pipeline.immunize(x, editor, prompt=PROMPTS, steps=2, timesteps=1, on_step=stop),
        lambda: pipeline.edit(x, editor, prompt=PROMPTS, on_step=stop),
    ):
        with pytest.raises(KeyboardInterrupt):
            verb()
    assert hooks() == before and not any(p.requires_grad for p in editor.net.parameters())


@pytest.mark.parametrize(
    "method",
    ["mist", "sds", "ace", "photoguard_encoder", "photoguard_diffusion", "editshield", "semantic_attack", "sifm_plus"],
)
def test_other_methods_run_on_it(qwen21_folder, method: str) -> None:
    editor, x = load_editor(qwen21_folder, device="cpu", steps=1), images(2, 64)
    done = pipeline.immunize(x, editor, prompt=PROMPTS, method=method, steps=1)
    assert 0 < float((done.image - x).abs().max()) <= 0.03 + 1e-7 and done.settings["entrances"] == "vae"


@pytest.mark.parametrize("prompts", [PROMPTS[:1] * 2, PROMPTS])
def test_what_is_seen_of_attention_is_what_the_blocks_compute(exact: Editor, prompts: list[str], monkeypatch) -> None:
    """Of the edit's tokens to the words, before the picture and after it; the longer prompt has no padding to hide."""
    x = images(2, SIZE).double()
    z, cond, plain, computed = exact.encode(x), exact.prepare(prompts, x), F.scaled_dot_product_attention, []

    def watch(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **rest: Any) -> Tensor:
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        computed.append((scores if attn_mask is None else scores.masked_fill(~attn_mask, -torch.inf)).softmax(dim=-1))
        return plain(query, key, value, attn_mask, **rest)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watch)
    with exact.attention() as (paths, seen):
        exact.denoise(z, normal(z.shape, 0).to(z), torch.full((2,), 500), cond)
    n, before = z[0, 0].numel(), exact.before
    whole = [p for p in computed if p.shape[-1] == cond.prompt.shape[1] + 2 * n and p.shape[-2] >= n]
    assert len(paths) == len(seen) == len(whole) == 3
    for ours, theirs in zip(seen, whole, strict=True):
        of_edit = theirs[:, :, -n:]
        words = torch.cat([of_edit[..., :before], of_edit[..., before + n : -n]], dim=-1)
        assert ours.shape[-1] == cond.prompt.shape[1] and torch.allclose(ours, words, atol=1e-7)
        assert not bool((ours * ~cond.valid[:, None, None]).any()), "what pads a prompt"


def test_what_a_row_keeps_is_what_the_editor_says() -> None:
    """ComfyUI makes room by it: of the true model at 1024x1024 a row is some 55 GB, and its tower half."""
    editor, x, kept = load_editor("miniature-qwen", device="cpu", dtype="bfloat16"), images(1, (128, 128)), {}
    z, cond = editor.encode(x).detach().requires_grad_(), editor.prepare(["make it night"], x)
    weights = {p.untyped_storage().data_ptr() for p in editor.net.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = editor.denoise(z, torch.randn_like(z), torch.full((1,), 500), cond)
    found = sum(storage.nbytes() for place, storage in kept.items() if place not in weights)
    share = 2 * z[0, 0].numel() / (2 * z[0, 0].numel() + cond.prompt.shape[1])  # here the prompt is no small part
    assert out.requires_grad and 0.8 < editor.row_bytes(128, 128) / (share * found) < 1.25


def test_streams_that_it_has_not_are_refused(exact: Editor) -> None:
    x = images(1, SIZE).double()
    for path in ("transformer_blocks.1:middle", "transformer_blocks.1.attn.to_out.0:", "img_in:reference"):
        with pytest.raises(LayerError, match="leave"):
            features(exact, [path.rstrip(":") + ":nowhere"], x, t=1, noise=0, prompt="a", seen=x)


def test_what_is_offloaded_has_no_gradient(qwen21_folder) -> None:
    editor, x = load_editor(qwen21_folder, device="cpu"), images(1, 64)
    editor._readers = {"text_encoder": editor.pipe.text_encoder}
    cond = editor.prepare(PROMPTS[:1], x)
    editor.pipe.text_encoder = None
    assert editor.prepare(PROMPTS[:1], x).prompt.equal(cond.prompt)
    edited = editor.edit(x, cond, seed=0, steps=1)
    assert edited.shape == x.shape and editor.pipe.text_encoder is None
    with pytest.raises(EditorError, match="needs it on the device"):
        sifm.build(editor, x, cond, timesteps=1, entrances="both")


def test_wrong_prompts_options_and_folders_are_refused(editor: Editor, qwen21_folder, tmp_path) -> None:
    x = images(1, 64)
    cond = editor.prepare(PROMPTS[:1], x)
    with pytest.raises(InputError, match="expected text"):
        editor.prepare([3], x)
    with pytest.raises(InputError, match="strength"):
        editor.edit(x, cond, strength=0.5)
    with pytest.raises(InputError, match="one prompt per image"):
        editor.edit(images(2, 64), cond)
    for part in ("processor", "text_encoder", "transformer"):
        folder = shutil.copytree(qwen21_folder, tmp_path / part)
        shutil.rmtree(folder / part)
        with pytest.raises(EditorError, match=part):
            load_editor(folder, device="cpu")
    assert (
        load_editor(qwen21_folder).fingerprint
        != load_editor(fakes.qwen_image21(tmp_path / "q", num_layers=2)).fingerprint
    )
