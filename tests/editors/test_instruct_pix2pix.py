"""The InstructPix2Pix editor against the unmodified pipeline and the formulas of its schedulers."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionInstructPix2PixPipeline,
)

import fakes
from fakes import images
from sifm_core.editors import load_editor
from sifm_core.errors import EditorError, ImageError, InputError
from sifm_core.types import Editor, Step

PROMPTS = ["make it night", "add a hat", "a cat"]
SCHEDULERS = {
    "ddim": DDIMScheduler(**fakes.SCHEDULE, clip_sample=False, steps_offset=1),
    "ddim-v-zero-snr": DDIMScheduler(
        **fakes.SCHEDULE,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    ),
    "pndm": PNDMScheduler(**fakes.SCHEDULE, skip_prk_steps=True, steps_offset=1),
    "euler": EulerDiscreteScheduler(**fakes.SCHEDULE),
    "euler-ancestral": EulerAncestralDiscreteScheduler(**fakes.SCHEDULE),
}


@pytest.fixture(scope="module")
def editor(ip2p_folder) -> Editor:
    return load_editor(ip2p_folder, device="cpu", steps=3)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_edit_is_the_unmodified_pipelines(name: str, tmp_path) -> None:
    folder = fakes.instruct_pix2pix(tmp_path, scheduler=SCHEDULERS[name])
    x = images(2)
    ours = load_editor(folder, device="cpu", guidance_scale=5.0)
    edited = ours.edit(x, ours.prepare(PROMPTS[:2]), seed=[5, 6], steps=4, image_guidance_scale=1.2)
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        PROMPTS[:2],
        image=x,
        num_inference_steps=4,
        guidance_scale=5.0,
        image_guidance_scale=1.2,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
        output_type="pt",
    ).images
    assert torch.allclose(edited, theirs, rtol=0, atol=1e-5)
    assert float(edited.std()) > 0.01


def test_other_prompt_seed_or_guidance_gives_another_edit(editor: Editor) -> None:
    x, cond = images(1), editor.prepare(PROMPTS[:1])
    edit = editor.edit(x, cond, seed=1)
    assert torch.equal(editor.edit(x, cond, seed=1), edit)
    for other in (
        editor.edit(x, cond, seed=2),
        editor.edit(x, editor.prepare(PROMPTS[1:2]), seed=1),
        editor.edit(x, cond, seed=1, guidance_scale=2.0),
        editor.edit(x, cond, seed=1, image_guidance_scale=3.0),
        editor.edit(x, cond, seed=1, steps=2),
    ):
        assert not torch.allclose(other, edit, atol=1e-5)


def test_a_batch_equals_its_images_one_by_one(ip2p_folder) -> None:
    editor = load_editor(ip2p_folder, device="cpu", dtype="float64", steps=3)
    x, seeds = images(3), [3, 4, 5]
    batch = editor.edit(x, editor.prepare(PROMPTS), seed=seeds)
    for b in range(3):
        single = editor.edit(x[b : b + 1], editor.prepare(PROMPTS[b : b + 1]), seed=seeds[b])
        assert torch.allclose(single[0], batch[b], atol=1e-6)
    one_seed = editor.edit(x[:1].expand(2, -1, -1, -1), editor.prepare(PROMPTS[:1] * 2), seed=3)
    assert torch.equal(one_seed[0], one_seed[1])


def test_edit_reports_every_denoising_step_and_can_be_stopped(editor: Editor) -> None:
    steps: list[Step] = []
    editor.edit(images(1), editor.prepare(PROMPTS[:1]), on_step=steps.append)
    assert [(s.phase, s.i, s.n) for s in steps] == [("edit", 1, 3), ("edit", 2, 3), ("edit", 3, 3)]

    class Stop(Exception):
        pass

    def stop(step: Step) -> None:
        raise Stop

    with pytest.raises(Stop):
        editor.edit(images(1), editor.prepare(PROMPTS[:1]), on_step=stop)
    before = editor.edit(images(1), editor.prepare(PROMPTS[:1]))
    assert torch.equal(editor.edit(images(1), editor.prepare(PROMPTS[:1])), before)


def test_edit_neither_needs_nor_makes_a_graph_and_leaves_global_random_numbers_alone(editor: Editor) -> None:
    state = torch.get_rng_state()
    edited = editor.edit(images(1).requires_grad_(), editor.prepare(PROMPTS[:1]))
    assert not edited.requires_grad and edited.dtype is torch.float32
    assert torch.equal(torch.get_rng_state(), state)


def test_encode_is_the_scaled_posterior_mode_and_differentiable(editor: Editor) -> None:
    x = images(2)
    expected = editor.pipe.vae.encode(2 * x - 1).latent_dist.mode() * editor.pipe.vae.config.scaling_factor
    leaf = x.clone().requires_grad_()
    z = editor.encode(leaf)
    assert torch.equal(z.detach(), expected) and editor.latent_scale == 0.5 and editor.latent_shift == 0
    assert bool(torch.autograd.grad(z.sum(), leaf)[0].any())


def test_a_shift_in_the_autoencoders_configuration_is_ignored_as_the_pipeline_ignores_it(tmp_path) -> None:
    folder = fakes.instruct_pix2pix(tmp_path, vae=fakes.autoencoder(shift_factor=0.3))
    editor = load_editor(folder, device="cpu")
    x = images(1)
    assert torch.equal(editor.encode(x), editor.pipe.vae.encode(2 * x - 1).latent_dist.mode() * 0.5)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_denoise_noises_to_t_and_appends_the_unscaled_source(name: str, tmp_path) -> None:
    editor = load_editor(fakes.instruct_pix2pix(tmp_path, scheduler=SCHEDULERS[name]), device="cpu")
    z, noise, cond = editor.encode(images(2)), torch.randn(2, 4, 8, 8), editor.prepare(PROMPTS[:2])
    t = torch.tensor([700, 20])
    abar = SCHEDULERS[name].alphas_cumprod[t].reshape(2, 1, 1, 1)
    z_t = abar.sqrt() * z + (1 - abar).sqrt() * noise
    expected = editor.net(torch.cat([z_t, z / 0.5], dim=1), t, encoder_hidden_states=cond.prompt).sample
    assert torch.allclose(editor.denoise(z, noise, t, cond), expected, atol=1e-6)


def test_targets_of_the_three_prediction_types(tmp_path) -> None:
    z, noise, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([700, 20])
    for kind in ("epsilon", "v_prediction", "sample"):
        scheduler = DDIMScheduler(**fakes.SCHEDULE, prediction_type=kind)
        editor = load_editor(fakes.instruct_pix2pix(tmp_path / kind, scheduler=scheduler), device="cpu")
        expected = {"epsilon": noise, "v_prediction": scheduler.get_velocity(z, noise, t), "sample": z}[kind]
        assert torch.allclose(editor.target(z, noise, t), expected, atol=1e-6)


def test_another_autoencoder_with_16_channels_and_factor_4_works(tmp_path) -> None:
    vae = fakes.autoencoder(
        latent_channels=16,
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )
    editor = load_editor(fakes.instruct_pix2pix(tmp_path, vae=vae), device="cpu", steps=2, size=32)
    x = images(2, size=32)
    assert editor.encode(x).shape == (2, 16, 8, 8)
    assert editor.edit(x, editor.prepare(PROMPTS[:2])).shape == x.shape
    assert editor.work_size(32, 32) == (32, 32) and editor.work_size(100, 66) == (32, 24)


def test_bfloat16_networks_give_float32_latents_and_predictions(ip2p_folder) -> None:
    editor = load_editor(ip2p_folder, device="cpu", dtype="bfloat16", steps=2)
    x = images(1).requires_grad_()
    z, cond = editor.encode(x), editor.prepare(PROMPTS[:1])
    prediction = editor.denoise(z, torch.randn_like(z), torch.tensor([500]), cond)
    assert editor.net.dtype is torch.bfloat16 and z.dtype is prediction.dtype is torch.float32
    (grad,) = torch.autograd.grad(prediction.abs().sum(), x)
    assert grad.dtype is torch.float32 and bool(grad.any())
    assert editor.edit(images(1), cond).dtype is torch.float32


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ((512, 512), (512, 512)),
        ((4000, 3000), (512, 384)),
        ((427, 640), (340, 512)),
        ((64, 64), (512, 512)),
        ((5000, 10), (512, 4)),
        ((1, 1), (512, 512)),
    ],
)
def test_work_size_is_the_native_scale_in_multiples_the_network_can_halve(
    editor: Editor, picture: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert editor.work_size(*picture) == expected
    assert editor.work_size(*picture[::-1]) == expected[::-1]


def test_every_work_size_can_be_encoded_denoised_and_edited(ip2p_folder) -> None:
    editor = load_editor(ip2p_folder, device="cpu", size=20, steps=1)
    for picture in ((20, 20), (20, 13), (9, 400), (21, 19)):
        size = editor.work_size(*picture)
        x = images(1, size=size)
        z, cond = editor.encode(x), editor.prepare(PROMPTS[:1])
        assert editor.denoise(z, z, torch.tensor([1]), cond).shape == z.shape
        assert editor.edit(x, cond).shape == x.shape


def test_a_size_between_the_multiples_is_refused(editor: Editor) -> None:
    for call in (editor.encode, lambda x: editor.edit(x, editor.prepare(PROMPTS[:1]))):
        with pytest.raises(ImageError, match="multiples of 4"):
            call(images(1, size=18))


def test_prompts_are_encoded_once_and_alone(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode = editor.pipe._encode_prompt
    monkeypatch.setattr(editor.pipe, "_encode_prompt", lambda *args: calls.append(args[0]) or encode(*args))
    cond = editor.prepare(["new words", "new words", "newer"])
    assert torch.equal(editor.prepare(["newer"]).prompt[0], cond.prompt[2])
    assert [text for text in calls if text] == ["new words", "newer"] and cond.prompt.shape == cond.empty.shape == (
        3,
        16,
        16,
    )
    assert torch.equal(editor.prepare([""]).prompt, editor.prepare([""]).empty)


def test_wrong_prompts_are_refused(editor: Editor) -> None:
    with pytest.raises(InputError, match="reads 16 tokens, got 22"):
        editor.prepare(["abcdefghijklmnopqrst"])
    with pytest.raises(InputError, match="expected text"):
        editor.prepare([3])
    with pytest.raises(InputError, match="one prompt per image, got 1 for 2"):
        editor.edit(images(2), editor.prepare(["cat"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 3}, "did you mean steps"),
        ({"size": 64}, "unknown option"),
        ({"steps": 0}, "whole number above 0"),
        ({"steps": 2.5}, "whole number above 0"),
        ({"guidance_scale": -1}, "above 0"),
        ({"guidance_scale": float("nan")}, "above 0"),
        ({"seed": -1}, "seed"),
        ({"seed": [1, 2]}, "one seed or 1"),
    ],
    ids=str,
)
def test_wrong_edit_options_are_refused(editor: Editor, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        editor.edit(images(1), editor.prepare(["cat"]), **options)


def test_a_u_net_without_channels_for_the_source_is_refused(tmp_path) -> None:
    with pytest.raises(EditorError, match="expected a U-Net of 8 input channels"):
        load_editor(fakes.instruct_pix2pix(tmp_path, in_channels=4), device="cpu")
