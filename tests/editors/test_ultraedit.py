"""UltraEdit on SD3 against its sampling written out: branches of guidance, unscaled source, no shift."""

from __future__ import annotations

import copy
import json
import shutil
from functools import partial

import pytest
import torch

from fakes import images
from methods.literal import close, gradient
from sifm_core.editors import load_editor
from sifm_core.errors import EditorError, InputError
from sifm_core.methods import sifm
from sifm_core.types import Editor, Step

PROMPTS = ["make it night", "add a hat"]


@pytest.fixture(scope="module")
def editor(ultraedit_folder) -> Editor:
    return load_editor(ultraedit_folder, device="cpu", dtype="float64", steps=4)


def unshifted(editor: Editor, x: torch.Tensor) -> torch.Tensor:
    return editor.pipe.vae.encode(2 * x - 1).latent_dist.mode()


def test_it_is_an_sd3_editor_with_its_own_defaults(ultraedit_folder) -> None:
    editor = load_editor(ultraedit_folder, device="cpu")
    assert editor.family == "sd3" and editor.layer_presets["deep"] == ("transformer_blocks.1", "transformer_blocks.2")
    wanted = {"steps": 50, "guidance_scale": 7.5, "image_guidance_scale": 1.5, "size": 16, "t5_tokens": 77}
    assert editor.settings == wanted and editor.prepare(PROMPTS).prompt.shape == (2, 16 + 77, 32)


def test_latents_are_scaled_but_not_shifted_and_decode_inverts(editor: Editor) -> None:
    x = images(2).double()
    assert torch.allclose(editor.encode(x), unshifted(editor, x) * 1.5)
    z = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    assert torch.allclose(editor.decode(z), editor.pipe.vae.decode(z / 1.5).sample / 2 + 0.5)


def test_denoise_sees_the_noised_latent_and_the_unscaled_source(editor: Editor) -> None:
    x, cond = images(2).double(), editor.prepare(PROMPTS)
    noise, t = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor([300, 800])
    sigma = t.double().reshape(2, 1, 1, 1) / 1000
    mode = unshifted(editor, x)
    seen = torch.cat([(1 - sigma) * 1.5 * mode + sigma * noise, mode], dim=1)
    expected = editor.net(seen, encoder_hidden_states=cond.prompt, pooled_projections=cond.pooled, timestep=t).sample
    z = editor.encode(x)
    assert torch.allclose(editor.denoise(z, noise, t, cond), expected, rtol=1e-8)
    assert torch.equal(editor.target(z, noise, t), noise - z)


def velocity_of(editor: Editor, embeds, z, source, k: int, t) -> torch.Tensor:
    """For the prompt (k = 0) or no prompt (k = 1)."""
    return editor.net(torch.cat([z, source], dim=1), embeds[k], embeds[k + 2], t.reshape(1), return_dict=False)[0]


def written_out(editor: Editor, x: torch.Tensor, seeds: list[int], text: float, image: float, n: int) -> torch.Tensor:
    """Three separate calls for each image and step, as the formula stands."""
    edited = []
    for row, prompt, seed in zip(x.split(1), PROMPTS, seeds, strict=True):
        embeds = editor.pipe.encode_prompt(prompt, None, None, max_sequence_length=77)
        say = partial(velocity_of, editor, embeds)
        scheduler = copy.deepcopy(editor.pipe.scheduler)
        scheduler.set_timesteps(n)
        z = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)).double()[None]
        source = unshifted(editor, row)
        for t in scheduler.timesteps:
            both, by_image, none = (say(z, s, k, t) for s, k in ((source, 0), (source, 1), (0 * source, 1)))
            velocity = none + text * (both - by_image) + image * (by_image - none) if text > 1 else both
            z = scheduler.step(velocity, t, z).prev_sample
        edited.append(editor.pipe.vae.decode(z / 1.5).sample / 2 + 0.5)
    return torch.cat(edited)


@pytest.mark.parametrize(("text", "image"), [(7.5, 1.5), (1.0, 1.5)])
def test_the_edit_is_the_sampling_written_out(editor: Editor, text: float, image: float) -> None:
    x = images(2).double()
    with torch.no_grad():
        expected = written_out(editor, x, [5, 6], text, image, 4)
    options = {"guidance_scale": text, "image_guidance_scale": image, "steps": 4}
    edited = editor.edit(x, editor.prepare(PROMPTS), seed=[5, 6], **options)
    assert torch.allclose(edited, expected.clamp(0, 1), atol=1e-6) and float(edited.std()) > 0.01
    assert torch.equal(editor.edit(x, editor.prepare(PROMPTS), seed=[5, 6], **options), edited)
    alone = editor.edit(x[1:], editor.prepare(PROMPTS[1:]), seed=6, **options)
    assert torch.allclose(alone[0], edited[1], atol=1e-8)


def test_generate_is_the_edit_with_a_gradient(editor: Editor) -> None:
    x, cond = images(2).double(), editor.prepare(PROMPTS)
    value, grad = gradient(lambda x: editor.generate(x, cond, editor.draws(x, 3)).flatten(1).sum(1), x)
    generated = editor.generate(x, cond, editor.draws(x, 3))
    assert torch.allclose(generated.clamp(0, 1), editor.edit(x, cond, seed=3), atol=1e-9)
    assert bool(grad.any()) and bool(torch.isfinite(value).all())


def test_every_step_is_reported(editor: Editor) -> None:
    steps: list[Step] = []
    editor.edit(images(1).double(), editor.prepare(PROMPTS[:1]), on_step=steps.append)
    assert [(s.phase, s.i, s.n) for s in steps] == [("edit", i, 4) for i in range(1, 5)]


def test_sifm_works_on_it_exactly(editor: Editor) -> None:
    """Against plain differentiation of Eq. 5 through both ways in which the source enters."""
    x = images(1).double()
    cond = editor.prepare(PROMPTS[:1])
    ours = sifm.build(editor, x, cond, timesteps=[300], layers=["transformer_blocks.1"], objective="norm")(x, 0)
    from sifm_core.noise import fork, normal

    noise, seen = normal((1, 1, 4, 8, 8), fork(0, "noise"))[:, 0].double(), []
    hook = editor.net.transformer_blocks[1].register_forward_hook(lambda m, a, out: seen.append(out[1]))

    def loss(x: torch.Tensor) -> torch.Tensor:
        editor.denoise(editor.encode(x), noise, torch.tensor([300]), cond)
        return seen[-1].abs().flatten(1).sum(1)

    value, grad = gradient(loss, x)
    hook.remove()
    assert close(ours.grad, grad) and torch.allclose(ours.loss, value)


def test_the_one_with_a_mask_and_unknown_options_are_refused(ultraedit_folder, sd3_folder, tmp_path, editor) -> None:
    other = shutil.copytree(sd3_folder, tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(
        json.dumps(index | {"_class_name": "StableDiffusion3InstructPix2PixPipeline"})
    )
    with pytest.raises(EditorError, match="free-form"):
        load_editor(other, device="cpu")
    with pytest.raises(InputError, match="image_guidance_scale"):
        editor.edit(images(1).double(), editor.prepare(PROMPTS[:1]), image_guidance=3.0)
