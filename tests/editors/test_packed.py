"""What every editor keeps that sees the source as tokens beside the noise, against diffusers' own pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image as Pil
from torch import Tensor
from transformers import Qwen2VLImageProcessor

import packed_fakes
from fakes import images
from methods.literal import close, gradient, somewhere
from sifm_core import pipeline
from sifm_core.editors import load_editor
from sifm_core.editors.sight import patches, resampled
from sifm_core.errors import InputError, LayerError
from sifm_core.features import capture, first_tensor, resolve
from sifm_core.layers import layers
from sifm_core.methods import METHODS, get_method, options, sifm
from sifm_core.noise import fork, normal
from sifm_core.plan import Settings, plan
from sifm_core.types import Editor, Image, Step

PROMPTS = ["make it night", "add a hat"]
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "flux-kontext": packed_fakes.flux_kontext,
    "flux2-klein-base": partial(packed_fakes.flux2, kind="base"),
    "flux2-klein-kv": partial(packed_fakes.flux2, kind="kv"),
    "flux2-dev": partial(packed_fakes.flux2, kind="dev"),
    "qwen-image-edit": partial(packed_fakes.qwen_image_edit, plus=False),
    "qwen-image-edit-2511": partial(packed_fakes.qwen_image_edit, zero_cond_t=True),
}
"""Folders of tiny random pipelines of the true classes."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES[family](tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def editor(folder) -> Editor:
    return load_editor(folder, device="cpu", steps=2)


@pytest.fixture
def exact(folder, monkeypatch: pytest.MonkeyPatch) -> Editor:
    """In float64 all through: the libraries compute positions, norms and steps in float32 whatever the type."""
    to = Tensor.to

    def kept(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        narrow = x.dtype is torch.float64 and torch.float32 in (*args, kwargs.get("dtype"))
        return x if narrow else to(x, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", kept)
    monkeypatch.setattr(Tensor, "float", lambda x: kept(x, torch.float32))
    return load_editor(folder, device="cpu", dtype="float64", steps=2)


def pictures(editor: Editor, n: int = 1, seed: int = 0) -> Image:
    return images(n, size=editor.work_size(1000, 1000), seed=seed)


def loaded(folder: Path) -> Any:
    kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    pipe = getattr(diffusers, kind).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def kontext(folder: Path, x: Image, prompts: list[str], seeds: list[int]) -> Image:
    return loaded(folder)(
        image=x,
        prompt=prompts,
        height=x.shape[-2],
        width=x.shape[-1],
        max_area=x.shape[-2] * x.shape[-1],
        _auto_resize=False,
        num_inference_steps=2,
        guidance_scale=4.0,
        max_sequence_length=16,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="pt",
    ).images


def one_by_one(folder: Path, x: Image, prompts: list[str], seeds: list[int], **own: Any) -> Image:
    pipe = loaded(folder)
    rows = x.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    return torch.cat(
        [
            pipe(
                image=Pil.fromarray(row),
                prompt=prompt,
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(seed),
                output_type="pt",
                **own,
            ).images
            for row, prompt, seed in zip(rows, prompts, seeds, strict=True)
        ]
    )


def flux2(folder: Path, *given: Any) -> Image:
    tokens = json.loads((folder / "sifm.json").read_text())["text_tokens"]
    guidance = {} if "KV" in (folder / "model_index.json").read_text() else {"guidance_scale": 4.0}
    return one_by_one(folder, *given, max_sequence_length=tokens, **guidance)


def qwen(folder: Path, *given: Any) -> Image:
    """The pipelines know one area, of 1024 x 1024 pixels: here that of the tiny pictures is in its place."""
    kinds = (pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus)
    with pytest.MonkeyPatch.context() as patch:
        for kind in kinds:
            plain = kind.calculate_dimensions
            patch.setattr(kind, "calculate_dimensions", lambda area, ratio, plain=plain: plain(64 * 64, ratio))
        return one_by_one(folder, *given, true_cfg_scale=4.0, negative_prompt=" ")


CALLS: dict[str, Callable[..., Image]] = {"flux-kontext": kontext}
CALLS |= {name: flux2 if "flux2" in name else qwen for name in FAMILIES if name not in CALLS}


def test_edit_is_the_unmodified_pipelines(family: str, folder, editor: Editor) -> None:
    x = pictures(editor, 2)
    edited = editor.edit(x, editor.prepare(PROMPTS, x), seed=[5, 6], guidance_scale=4.0)
    assert torch.allclose(edited, CALLS[family](folder, x, PROMPTS, [5, 6]), rtol=0, atol=1e-5)
    assert torch.equal(edited, editor.edit(x, editor.prepare(PROMPTS, x), seed=[5, 6], guidance_scale=4.0))
    other = editor.edit(pictures(editor, 2, seed=1), editor.prepare(PROMPTS, x), seed=[5, 6], guidance_scale=4.0)
    assert float(edited.std()) > 0.01 and float((edited - other).abs().max()) > 1e-4


def test_generate_is_the_edit_with_a_gradient(exact: Editor) -> None:
    x = pictures(exact).double()
    cond = exact.prepare(PROMPTS[:1], x)
    drawn = exact.draws(x, 3)
    made, grad = gradient(lambda x: exact.generate(x, cond, drawn).flatten(1).sum(1), x)
    assert bool(grad.any()) and bool(torch.isfinite(made).all())
    near = 1e-4 if "vlm" in exact.entrances else 1e-6  # the pipeline shows its language model 8 bits
    assert torch.allclose(exact.generate(x, cond, drawn).clamp(0, 1), exact.edit(x, cond, seed=3), rtol=0, atol=near)


def test_the_latent_is_the_pipelines_and_its_gradient_that_of_finite_differences(exact: Editor) -> None:
    x = pictures(exact).double()
    z = exact.encode(x)
    pixels = 2 * x - 1 if not exact.is_video else (2 * x - 1)[:, :, None]
    expected = exact.pipe._encode_vae_image(pixels, None)
    assert torch.allclose(z, expected[:, :, 0] if exact.is_video else expected, rtol=1e-6)
    weights, direction = torch.randn_like(z), torch.randn_like(x)
    _, grad = gradient(lambda x: (exact.encode(x) * weights).flatten(1).sum(1), x)
    h = 1e-5
    there, back = ((exact.encode(x + s * h * direction) * weights).sum() for s in (1, -1))
    assert torch.allclose((grad * direction).sum(), (there - back) / (2 * h), rtol=1e-6)
    again = exact.encode(exact.decode(z))
    assert again.shape == z.shape and torch.equal(exact.unpack(exact.pack(z), *z.shape[-2:]), z)
    assert torch.allclose(exact.encode(x, torch.zeros_like(z)), z, atol=1e-12)


def test_every_step_is_reported(editor: Editor) -> None:
    steps: list[Step] = []
    x = pictures(editor, 2)
    editor.edit(x, editor.prepare(PROMPTS, x), on_step=steps.append)
    assert [(s.phase, s.i, s.n) for s in steps] in (
        [("edit", 1, 2), ("edit", 2, 2)],
        [("edit", i, 4) for i in range(1, 5)],
    )


def test_a_batch_equals_its_images_one_by_one(exact: Editor) -> None:
    x, seeds = pictures(exact, 2).double(), [3, 4]
    batch = exact.edit(x, exact.prepare(PROMPTS, x), seed=seeds)
    for b in range(2):
        one = x[b : b + 1]
        single = exact.edit(one, exact.prepare(PROMPTS[b : b + 1], one), seed=seeds[b])
        assert torch.allclose(single[0], batch[b], atol=1e-6)


def ingredients(editor: Editor, x: Image, t: int = 400) -> tuple[Tensor, Tensor, Tensor, Any]:
    z = editor.encode(x)
    noise = normal(z.shape, 7).to(z)
    return z, noise, torch.full((len(x),), t), editor.prepare(PROMPTS[: len(x)], x)


def test_the_prediction_is_the_targets_and_sees_text_noise_and_source(exact: Editor) -> None:
    z, noise, t, cond = ingredients(exact, pictures(exact).double())
    plain = exact.denoise(z, noise, t, cond)
    assert plain.shape == z.shape and torch.equal(exact.target(z, noise, t), noise - z)
    assert torch.equal(plain, exact.denoise(z, noise, t, cond))
    other = exact.prepare(PROMPTS[1:], pictures(exact).double())
    noised = exact.noised(z, noise, t)
    reference = exact.denoise(0.5 * z, (noised - 0.6 * 0.5 * z) / 0.4, t, cond)  # the same target beside another source
    for changed in (exact.denoise(z, -noise, t, cond), exact.denoise(z, noise, t + 100, cond), reference):
        assert not torch.allclose(plain, changed, atol=1e-4)
    assert not torch.allclose(plain, exact.denoise(z, noise, t, other), atol=1e-6)


def test_blocks_give_the_pictures_tokens_and_text_is_never_hooked_in_silence(exact: Editor) -> None:
    z, noise, t, cond = ingredients(exact, pictures(exact).double())
    n = exact.pack(z).shape[1]
    blocks = resolve(exact.net, exact.layer_presets["all"])
    run = lambda: exact.denoise(z, noise, t, cond)  # noqa: E731
    for block in blocks:
        streams = ["", ":target", ":reference", ":text"]
        found = capture(exact.net, [block + s for s in streams], run, exact.hidden)
        whole, target, reference, text = found.values()
        assert [f.shape[1] for f in found.values()] == [2 * n, n, n, cond.prompt.shape[1]]
        parts = [reference, target] if exact.timeless else [target, reference]
        assert torch.equal(whole, torch.cat(parts, dim=1)) and not torch.equal(target, reference)
        assert text.shape[-1] == whole.shape[-1]
    text, seen = cond.prompt.shape[1], []

    def look(path: str, module: torch.nn.Module, args: Any, output: Any) -> None:
        tensor = first_tensor(output)
        if path.count(".") < 2 or tensor is None or tensor.ndim < 3:
            return
        seen.append(path)
        try:
            assert exact.hidden(module, output).shape[1] == 2 * n, path
        except LayerError as error:
            assert tensor.shape[1] == text and f"{path}:text" in str(error)
            assert exact.hidden(module, output, "text") is tensor

    hooks = [module.register_forward_hook(partial(look, path)) for path, module in exact.net.named_modules()]
    run()
    for hook in hooks:
        hook.remove()
    assert len(seen) > 5 * len(blocks)


def test_an_unknown_stream_and_one_that_is_not_there_are_refused(editor: Editor) -> None:
    z, noise, t, cond = ingredients(editor, pictures(editor))
    for path, word in (
        ("transformer_blocks.0:image", "target, reference, text"),
        ("proj_out:text", "no tokens of"),
    ):
        with pytest.raises(LayerError, match=word):
            capture(editor.net, [path], lambda: editor.denoise(z, noise, t, cond), editor.hidden)


def block_outputs(editor: Editor, blocks: list[str], run: Callable[[], Any]) -> list[Tensor]:
    """The picture's tokens after blocks, by the library's own order of outputs and of tokens."""
    seen: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        seen.append(output[1] if isinstance(output, tuple) else output[:, text:])

    text = editor.prepare(PROMPTS[:1], pictures(editor)).prompt.shape[1]
    hooks = [editor.net.get_submodule(path).register_forward_hook(keep) for path in blocks]
    run()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("rows", [1, 6])
def test_sifms_gradient_is_algorithm_1_literally(exact: Editor, rows: int) -> None:
    x = pictures(exact).double()
    cond, blocks = exact.prepare(PROMPTS[:1], x), list(resolve(exact.net, exact.layer_presets["all"]))
    times, noises = [200, 500, 800], None
    noises = normal((1, 3, *exact.encode(x).shape[1:]), fork(0, "noise")).double()[0]

    def phi(x: Image, k: int) -> Tensor:
        z = exact.encode(x)
        t = torch.tensor([times[k]])
        run = lambda: exact.denoise(z, noises[k : k + 1], t, cond)  # noqa: E731
        return torch.stack(block_outputs(exact, blocks, run)).mean(0)

    with torch.no_grad():
        clean = [phi(x, k) for k in range(3)]

    def loss(x: Image) -> Tensor:
        terms = []
        for k in range(3):
            f = phi(x, k)
            terms.append(f.abs().sum() - 0.1 * (f - clean[k]).square().mean())
        return torch.stack(terms).mean()[None]

    there = somewhere(x)
    value, grad = gradient(loss, there)
    ours = sifm.build(exact, x, cond, timesteps=times, layers=blocks, rows=rows)(there, 0)
    assert close(ours.grad, grad) and torch.allclose(ours.loss, value, rtol=1e-12)
    h, direction = 1e-6, torch.randn_like(x)
    slope = (loss(there + h * direction) - loss(there - h * direction)) / (2 * h)
    assert torch.allclose((grad * direction).sum(), slope, rtol=1e-5)


def test_checkpointing_changes_memory_and_nothing_else(folder, exact: Editor) -> None:
    x = pictures(exact).double()
    cond, there = exact.prepare(PROMPTS[:1], x), somewhere(x)
    plain = sifm.build(exact, x, cond, timesteps=2, layers="all")(there, 0)
    again = load_editor(folder, device="cpu", dtype="float64", steps=2, checkpointing=True)
    assert again.net.gradient_checkpointing
    assert torch.equal(sifm.build(again, x, cond, timesteps=2, layers="all")(there, 0).grad, plain.grad)


def test_what_the_reference_carries_hangs_on_the_picture_alone_where_the_editor_says_so(exact: Editor) -> None:
    """And nowhere else: exactly nothing changes by prompt, timestep, noise, or the way it is computed."""
    x = pictures(exact).double()
    z, noise, t, cond = ingredients(exact, x)
    paths = [f"{path}:reference" for path in exact.layer_presets["all"]]

    def features(run: Callable[[], Any]) -> list[Tensor]:
        return list(capture(exact.net, paths, run, exact.hidden).values())

    plain = features(lambda: exact.denoise(z, noise, t, cond))
    other = exact.prepare(PROMPTS[1:], x)
    again = features(lambda: exact.denoise(z, -noise, t + 300, other))
    same = [torch.equal(a, b) for a, b in zip(plain, again, strict=True)]
    assert all(same) if exact.timeless else not any(same)
    if not exact.timeless:
        with pytest.raises(NotImplementedError):
            exact.tower(z, cond)
        return
    for tower, whole in zip(features(lambda: exact.tower(z, cond)), plain, strict=True):
        assert torch.allclose(tower, whole, rtol=0, atol=1e-15)  # fewer tokens, products in another order
    there = somewhere(x)
    ours = sifm.build(exact, x, cond, timesteps=3, layers="reference", objective="norm")(there, 0)

    def loss(x: Image) -> Tensor:
        run = lambda: exact.denoise(exact.encode(x), noise, t, cond)  # noqa: E731
        found = capture(exact.net, resolve(exact.net, exact.layer_presets["reference"]), run, exact.hidden)
        return torch.stack(list(found.values())).mean(0).abs().flatten(1).sum(1)

    value, grad = gradient(loss, there)
    assert close(ours.grad, grad) and torch.allclose(ours.loss, value)


def test_layers_are_listed_and_plans_counted_without_weights(folder: Path, editor: Editor) -> None:
    listed = layers(str(folder))
    blocks = [layer for layer in listed if layer.path in editor.layer_presets["all"]]
    assert len(blocks) == len(editor.layer_presets["all"]) and not any("context" in layer.path for layer in listed)
    n = editor.pack(editor.encode(pictures(editor))).shape[1]
    assert {layer.shape[0] for layer in blocks} == {2 * n} and "reference" in blocks[-1].presets
    size = editor.settings["size"]
    settings = Settings(str(folder), size, timesteps=3, steps=2, layers="reference")
    one, three = (plan(replace(settings, timesteps=t), calibrate=False).cost.flops for t in (1, 3))
    assert (one == three) == bool(editor.timeless) and one > 0


@pytest.mark.parametrize("stream", ["reference", "target"])
def test_a_stream_alone_can_be_disturbed(exact: Editor, stream: str) -> None:
    x = pictures(exact).double()
    cond, there = exact.prepare(PROMPTS[:1], x), somewhere(x)
    both = sifm.build(exact, x, cond, timesteps=2, layers="deep", objective="norm")(there, 0)
    one = sifm.build(exact, x, cond, timesteps=2, layers=stream, objective="norm")(there, 0)
    assert bool(one.grad.any()) and bool((one.loss < both.loss).all())


def test_what_is_seen_of_attention_is_what_the_blocks_compute(exact: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    z, noise, t, cond = ingredients(exact, pictures(exact).double())
    n_text, n = cond.prompt.shape[1], exact.pack(z).shape[1]
    plain, computed = F.scaled_dot_product_attention, []

    def watch(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **rest: Any) -> Tensor:
        computed.append((query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1))
        return plain(query, key, value, attn_mask, **rest)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watch)
    with exact.attention() as (paths, seen):
        exact.denoise(z, noise, t, cond)
    assert all(path.endswith(".attn") and "single" not in path for path in paths)
    wide = [p for p in computed if p.shape[-1] == n_text + 2 * n]
    for k in range(len(paths)):
        words = wide[k][:, :, -2 * n :, :n_text]
        parts = words.chunk(2, dim=2) if len(seen) == 2 * len(paths) else [words[:, :, -n:]]
        for ours, theirs in zip(seen[k * len(parts) :], parts, strict=False):
            assert torch.allclose(ours, theirs, rtol=1e-9)


def test_both_entrances_bring_the_gradient_back_together_and_each_alone(exact: Editor) -> None:
    x = pictures(exact).double()
    cond = exact.prepare(PROMPTS[:1], x)
    build = partial(sifm.build, exact, x, cond, timesteps=[400], layers="all", objective="norm")
    if "vlm" not in exact.entrances:
        with pytest.raises(InputError, match="only vae"):
            build(entrances="both")
        return
    assert torch.allclose(exact.see(cond, x), cond.prompt, atol=1e-12)
    noise = normal((1, 1, *exact.encode(x).shape[1:]), fork(0, "noise"))[:, 0].double()
    blocks = list(resolve(exact.net, exact.layer_presets["all"]))

    def loss(latent: Image, seen: Image) -> Tensor:
        told = exact.with_embeddings(cond, exact.see(cond, seen))
        run = lambda: exact.denoise(exact.encode(latent), noise, torch.tensor([400]), told)  # noqa: E731
        return torch.stack(block_outputs(exact, blocks, run)).mean(0).abs().flatten(1).sum(1)

    there = somewhere(x)
    wanted = {"vae": lambda y: loss(y, x), "vlm": lambda y: loss(x, y), "both": lambda y: loss(y, y)}
    for entrances, one in wanted.items():
        value, grad = gradient(one, there)
        ours = build(entrances=entrances)(there, 0)
        assert close(ours.grad, grad) and torch.allclose(ours.loss, value), entrances
        h, direction = 1e-6, torch.randn_like(x)
        slope = (one(there + h * direction) - one(there - h * direction)) / (2 * h)
        assert torch.allclose((grad * direction).sum(), slope, rtol=1e-4), entrances


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["flux-kontext", "flux2-klein-kv", "qwen-image-edit-2511"], indirect=True)
def test_every_method_works(name: str, exact: Editor) -> None:
    """The budget is kept, the loss falls as fast as its gradient says, the same seed gives the same bytes."""
    x = pictures(exact, 2) * 0.8 + 0.1
    quick = {key: n for key, n in (("timesteps", 1), ("edit_steps", 2)) if key in options(name)}
    chosen: dict[str, Any] = {"prompt": PROMPTS, "method": name, "steps": 1, "seed": 1, **quick}
    done = [pipeline.immunize(x, exact, **chosen).image for _ in range(2)]
    assert torch.equal(*done) and 0.001 < float((done[0] - x).abs().max()) <= 0.03 + 1e-6
    module = get_method(name)
    if not hasattr(module, "build") or getattr(module, "STOP_GRADIENT", False):
        return
    x = x[:1].double()
    grad_fn = module.build(exact, x, exact.prepare(PROMPTS[:1], x), **quick)
    there = somewhere(x)
    first = grad_fn(there, 0)
    step = 1e-5 / first.grad.abs().max() * first.grad
    slope = (grad_fn(there + step, 0).loss - grad_fn(there - step, 0).loss) / 2
    assert torch.allclose(slope, (step * first.grad).sum(), rtol=1e-2)


@pytest.mark.parametrize("size", [(64, 64), (128, 160), (40, 96)])
def test_pictures_are_resized_as_pil_and_the_processor_do_with_a_gradient(size: tuple[int, int]) -> None:
    """Within a level or two of their 8 bits, on noise, which overshoots, as well."""
    x = images(1, 96)
    levels = Pil.fromarray(x[0].mul(255).round().byte().permute(1, 2, 0).numpy())
    for kernel, theirs in (("lanczos", Pil.Resampling.LANCZOS), ("bicubic", Pil.Resampling.BICUBIC)):
        there = torch.from_numpy(np.array(levels.resize(size[::-1], theirs))).permute(2, 0, 1) / 255
        assert float((resampled(x, size, kernel)[0] - there).abs().max()) < 1.5 / 255
    processor = Qwen2VLImageProcessor()
    expected = processor(images=[levels], return_tensors="pt")
    ours, grid = patches(x, processor)
    assert torch.equal(grid, expected["image_grid_thw"]) and ours.shape == expected["pixel_values"].shape
    assert float((ours - expected["pixel_values"]).abs().max()) < 1.5 / 255 / min(processor.image_std)
    _, grad = gradient(lambda x: resampled(x, size, "lanczos").flatten(1).sum(1), x * 0.5 + 0.25)
    assert bool(grad.any())


def test_a_network_in_bfloat16_gives_a_gradient_in_float32(folder) -> None:
    half = load_editor(folder, device="cpu", dtype="bfloat16", steps=2)
    x = pictures(half)
    loss, grad, _ = sifm.build(half, x, half.prepare(PROMPTS[:1], x), timesteps=2)(somewhere(x), 0)
    assert loss.dtype is grad.dtype is torch.float32 and bool(grad.any()) and bool(torch.isfinite(grad).all())
    assert half.edit(x, half.prepare(PROMPTS[:1], x), seed=1).dtype is torch.float32


def test_what_it_draws_and_reads_is_checked(editor: Editor) -> None:
    x = pictures(editor)
    cond = editor.prepare(PROMPTS[:1], x)
    assert editor.words(cond).sum() > 0 and editor.words(cond).shape == cond.prompt.shape[:2]
    assert not bool(editor.words(editor.prepare([""], x)).any())
    with pytest.raises(InputError, match="option of"):
        editor.edit(x, cond, image_guidance=3.0)
    with pytest.raises(InputError, match="one prompt per image"):
        editor.edit(pictures(editor, 2), cond)
    with pytest.raises(InputError, match="would be lost"):
        editor.prepare(["a" * 3000], x)
