"""The Stable Diffusion 3 editor against the unmodified image-to-image pipeline and its formulas."""

from __future__ import annotations

import shutil

import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline

from fakes import images
from sifm_core.editors import load_editor
from sifm_core.errors import EditorError, InputError
from sifm_core.types import Editor, Step

PROMPTS = ["make it night", "add a hat", "a cat"]


@pytest.fixture(scope="module")
def editor(sd3_folder) -> Editor:
    return load_editor(sd3_folder, device="cpu", steps=5)


def test_defaults_and_shape_of_the_family(sd3_folder) -> None:
    editor = load_editor(sd3_folder, device="cpu")
    assert editor.settings == {"steps": 50, "guidance_scale": 7.0, "strength": 0.6, "size": 16, "t5_tokens": 256}
    assert editor.family == "sd3" and editor.net is editor.pipe.transformer
    assert editor.layer_presets["deep"] == ("transformer_blocks.1", "transformer_blocks.2")


@pytest.mark.parametrize("t5", [True, False])
def test_edit_is_the_unmodified_pipelines(sd3_folder, t5: bool) -> None:
    x = images(2)
    ours = load_editor(sd3_folder, device="cpu", t5=t5)
    edited = ours.edit(x, ours.prepare(PROMPTS[:2]), seed=[5, 6], steps=5, guidance_scale=4.0, strength=0.5)
    absent = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Img2ImgPipeline.from_pretrained(sd3_folder, **absent)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        PROMPTS[:2],
        image=x,
        height=16,
        width=16,
        strength=0.5,
        num_inference_steps=5,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
        output_type="pt",
    ).images
    assert torch.allclose(edited, theirs, rtol=0, atol=1e-5)
    assert float(edited.std()) > 0.01


def test_the_t5_encoder_changes_the_prompt_and_the_fingerprint(sd3_folder) -> None:
    with_t5, without = (load_editor(sd3_folder, device="cpu", t5=t5) for t5 in (True, False))
    assert not torch.equal(with_t5.prepare(["cat"]).prompt, without.prepare(["cat"]).prompt)
    assert with_t5.fingerprint != without.fingerprint and without.pipe.text_encoder_3 is None


@pytest.mark.parametrize("t5", [True, False])
def test_the_positions_of_t5_are_a_setting(sd3_folder, tmp_path, t5: bool) -> None:
    folder = shutil.copytree(sd3_folder, tmp_path / "few")
    (folder / "sifm.json").write_text('{"size": 16, "t5_tokens": 4}')
    few = load_editor(folder, device="cpu", t5=t5, steps=5)
    cond = few.prepare(["ab"])
    assert cond.prompt.shape[1] == cond.empty.shape[1] == 16 + 4
    assert few.words(cond).shape == (1, 16 + 4) and few.words(cond)[0, 16:].any() == t5
    assert few.edit(images(1), cond, seed=0).shape == (1, 3, 16, 16)
    with pytest.raises(InputError, match="t5_tokens"):
        few.edit(images(1), cond, seed=0, t5_tokens=3)


def test_encode_shifts_and_scales_the_posterior_mode(editor: Editor) -> None:
    x = images(2).requires_grad_()
    z = editor.encode(x)
    expected = (editor.pipe.vae.encode(2 * x - 1).latent_dist.mode() - 0.1) * 1.5
    assert torch.allclose(z, expected) and (editor.latent_shift, editor.latent_scale) == (0.1, 1.5)
    assert bool(torch.autograd.grad(z.sum(), x)[0].any())


def test_denoise_is_what_the_pipeline_computes_at_the_same_noise_level(editor: Editor) -> None:
    """Against the scheduler's own mixing, at a timestep of its own schedule."""
    scheduler, cond = editor.pipe.scheduler, editor.prepare(PROMPTS[:2])
    z, noise = editor.encode(images(2)), torch.randn(2, 4, 8, 8)
    t = torch.tensor([400, 650])
    sigma = t.reshape(2, 1, 1, 1) / 1000
    scheduler.set_timesteps(sigmas=[0.4], mu=None)  # shift 3 moves this to 2/3
    moved = float(scheduler.timesteps[0])
    mixed = scheduler.scale_noise(z, scheduler.timesteps[:1].repeat(2), noise)
    s = moved / 1000
    assert torch.allclose(mixed, (1 - s) * z + s * noise, atol=1e-6)
    expected = editor.net(
        hidden_states=(1 - sigma) * z + sigma * noise,
        timestep=t,
        encoder_hidden_states=cond.prompt,
        pooled_projections=cond.pooled,
    ).sample
    assert torch.allclose(editor.denoise(z, noise, t, cond), expected, atol=1e-6)
    assert torch.equal(editor.target(z, noise, t), noise - z)


def test_a_batch_equals_its_images_one_by_one(sd3_folder) -> None:
    editor = load_editor(sd3_folder, device="cpu", dtype="float64", steps=4)
    x, seeds = images(3), [3, 4, 5]
    batch = editor.edit(x, editor.prepare(PROMPTS), seed=seeds)
    for b in range(3):
        single = editor.edit(x[b : b + 1], editor.prepare(PROMPTS[b : b + 1]), seed=seeds[b])
        assert torch.allclose(single[0], batch[b], atol=1e-6)


def test_edit_reports_every_step_that_is_run(editor: Editor) -> None:
    steps: list[Step] = []
    editor.edit(images(1), editor.prepare(PROMPTS[:1]), on_step=steps.append)
    assert [(s.phase, s.i, s.n) for s in steps] == [("edit", 1, 3), ("edit", 2, 3), ("edit", 3, 3)]


@pytest.mark.parametrize(("steps", "strength"), [(50, 0.99), (4, 0.8), (5, 1.0), (1, 0.5), (5, 3.0)])
def test_settings_that_ignore_the_image_are_refused(editor: Editor, steps: int, strength: float) -> None:
    with pytest.raises(InputError, match="ignores the image"):
        editor.edit(images(1), editor.prepare(PROMPTS[:1]), steps=steps, strength=strength)


def test_the_strength_just_below_still_sees_the_image(editor: Editor) -> None:
    cond = editor.prepare(PROMPTS[:1])
    one, other = (editor.edit(images(1, seed=s), cond, steps=5, strength=0.8) for s in (0, 1))
    assert not torch.allclose(one, other, atol=1e-4)


def test_work_size_follows_the_patches_and_every_such_size_can_be_edited(editor: Editor) -> None:
    assert [editor.work_size(*size) for size in ((512, 512), (300, 200), (9, 400))] == [(16, 16), (16, 12), (4, 16)]
    x = images(1, size=(4, 16))
    assert editor.edit(x, editor.prepare(PROMPTS[:1])).shape == x.shape


def test_wrong_options_are_refused(sd3_folder, tmp_path) -> None:
    with pytest.raises(InputError, match="t5: expected True or False"):
        load_editor(sd3_folder, device="cpu", t5="yes")
    with pytest.raises(InputError, match="positions for"):
        load_editor(sd3_folder, device="cpu", size=64)
    with pytest.raises(EditorError, match="steps"):
        spoilt = shutil.copytree(sd3_folder, tmp_path / "spoilt")
        (spoilt / "sifm.json").write_text('{"steps": 0}')
        load_editor(spoilt, device="cpu")


def test_a_prompt_longer_than_the_encoders_read_is_refused(sd3_folder) -> None:
    without = load_editor(sd3_folder, device="cpu", t5=False)
    with pytest.raises(InputError, match="reads 16 tokens"):
        without.prepare(["a" * 40])
    with_t5 = load_editor(sd3_folder, device="cpu")
    assert with_t5.prepare(["a" * 40]).prompt.shape[1] == 16 + 256
    with pytest.raises(InputError, match="reads 256 tokens"):
        with_t5.prepare(["a" * 400])
