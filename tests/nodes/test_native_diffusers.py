"""The same random weights in diffusers and in ComfyUI: latents, gradients and edits of both editors agree."""

from __future__ import annotations

import pytest
import torch

import core_models
from sifm_core.features import capture
from sifm_core.noise import normal

pytestmark = pytest.mark.usefixtures("comfy")
SIZE, STEPS = 32, 4
VAE = {"block_out_channels": (32,) * 4, "norm_num_groups": 32, "sample_size": SIZE}
VAE |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}


def settled(network, seed: int = 5):
    core_models.random_weights(network, seed)
    return network


def native(loaded, text, empty, recipe: str, **chosen):
    """An editor of the converted weights that is told what diffusers' text encoder made of the words."""
    from nodes.from_model import SifmEditorFromModel

    def conditioning(cond, pooled):
        return [[cond, {} if pooled is None else {"pooled_output": pooled}]]

    wires = {"positive": conditioning(*text), "negative": conditioning(*empty), "size": SIZE}
    given = {"cfg": 2.0, "steps": STEPS, "denoise": 0.0} | wires | chosen
    return SifmEditorFromModel.execute(loaded.model, loaded.vae, recipe, **given)[0]


def converted_vae(vae, channels: int):
    import comfy.sd
    from comfy.diffusers_convert import convert_vae_state_dict

    params = {"ddconfig": core_models.KL | {"z_channels": channels}, "embed_dim": channels}
    weights = convert_vae_state_dict({key: value.clone() for key, value in vae.state_dict().items()})
    return comfy.sd.VAE(sd=weights, config={"params": params}, dtype=torch.float32)


def agree(ours, managed, times, x, layers) -> None:
    """Latents, predictions, hidden states and their gradients at the pixels."""
    cond, prompts = ours.prepare(["abc"], x), ["abc"]
    found = []
    with managed.at_work(prompts, x) as engine:
        pair = ((ours, cond, layers[0], times[0]), (engine, engine.prepare(prompts, x), layers[1], times[1]))
        for editor, cond, paths, time in pair:
            leaf = x.clone().requires_grad_()
            z = editor.encode(leaf)
            noise, t = normal(z.shape, 1), torch.full((1,), time)
            hidden = capture(editor.net, paths, lambda: editor.denoise(z, noise, t, cond), editor.hidden)  # noqa: B023
            weights = [normal(f.shape, 2 + k) for k, f in enumerate(hidden.values())]
            value = torch.stack([(w * f).sum() for w, f in zip(weights, hidden.values(), strict=True)]).sum()
            (grad,) = torch.autograd.grad(value, leaf)
            with torch.no_grad():
                said = editor.denoise(z, noise, t, cond)
            found.append((z.detach(), said, editor.target(z.detach(), noise, t), grad))
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() / one.norm() < 1e-5


def pictures() -> torch.Tensor:
    small = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(small, (SIZE, SIZE), mode="bilinear").mul(255).round().div(255)


def test_instruct_pix2pix_is_one_editor_in_both(comfy, tmp_path):
    import comfy.utils
    from diffusers import DDIMScheduler

    import fakes
    from sifm_core.editors import load_editor

    vae = settled(fakes.autoencoder(**VAE, scaling_factor=0.18215, layers_per_block=1))
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
    unet = {"block_out_channels": (32, 64), "norm_num_groups": 32, "attention_head_dim": 8, "sample_size": 4, **blocks}
    scheduler = DDIMScheduler(**fakes.SCHEDULE, clip_sample=False, timestep_spacing="trailing")
    folder = fakes.instruct_pix2pix(tmp_path, scheduler, vae, **unet)
    ours = load_editor(str(folder), device="cpu", size=SIZE)
    model = core_models.model("SD15_instructpix2pix", core_models.UNET | {"in_channels": 8})
    settled(ours.net, 6)
    names = comfy.utils.unet_to_diffusers(core_models.UNET | {"in_channels": 8})
    weights = {names[key]: value for key, value in ours.net.state_dict().items()}
    missing = model.model.diffusion_model.load_state_dict(weights, strict=False)
    assert not missing.missing_keys and not missing.unexpected_keys
    loaded = core_models.Loaded(model, converted_vae(ours.pipe.vae, 4), None)
    x = pictures()
    cond = ours.prepare(["abc"], x)
    table = model.get_model_object("model_sampling").sigmas
    sigmas = torch.cat([table[[999, 749, 499, 249]], torch.zeros(1)])
    managed = native(loaded, (cond.prompt, None), (cond.empty, None), "auto", sigmas=sigmas)
    layers = ("mid_block", "up_blocks.0.resnets.0"), ("middle_block.2", "output_blocks.0.0")
    agree(ours, managed, (500, 500), x, layers)
    with managed.at_work(["abc"], x) as engine:
        edited = engine.edit(x, engine.prepare(["abc"], x), seed=3)
        theirs = ours.edit(x, cond, seed=3, steps=STEPS, guidance_scale=2.0, image_guidance_scale=1.0)
    assert (edited - theirs).abs().max() < 1e-5


def test_stable_diffusion_3_is_one_editor_in_both(comfy, tmp_path):
    import comfy.utils
    from comfy.model_sampling import CONST, ModelSamplingDiscreteFlow
    from diffusers import SD3Transformer2DModel

    import fakes
    from sifm_core.editors import load_editor

    vae = {"scaling_factor": 1.5305, "shift_factor": 0.0609, "latent_channels": 16, "layers_per_block": 1}
    folder = fakes.sd3(tmp_path)
    ours = load_editor(str(folder), device="cpu", size=SIZE)
    ours.pipe.register_modules(
        vae=settled(fakes.autoencoder(**VAE | vae)).eval().requires_grad_(False),
        transformer=settled(
            SD3Transformer2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=16,
                out_channels=16,
                num_layers=3,
                attention_head_dim=64,
                num_attention_heads=3,
                joint_attention_dim=32,
                caption_projection_dim=192,
                pooled_projection_dim=32,
                pos_embed_max_size=8,
                qk_norm="rms_norm",
            ),
            6,
        )
        .eval()
        .requires_grad_(False),
    )
    ours = type(ours)("sd3", folder, (), ours.pipe, {**ours.settings, "size": SIZE})
    linear = {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 192}}
    config = core_models.SD3 | {"adm_in_channels": 32, "context_embedder_config": linear}
    model = core_models.model("SD3", config)
    convert(ours.net, model.model.diffusion_model, comfy.utils.mmdit_to_diffusers({"depth": 3, "num_blocks": 3}))
    flat = type("Flow", (ModelSamplingDiscreteFlow, CONST), {})(model.model.model_config)
    flat.set_parameters(shift=1.0)
    model.add_object_patch("model_sampling", flat)
    loaded = core_models.Loaded(model, converted_vae(ours.pipe.vae, 16), None)
    x = pictures()
    cond = ours.prepare(["abc"], x)
    managed = native(loaded, (cond.prompt, cond.pooled), (cond.empty, cond.empty_pooled), "auto")
    agree(ours, managed, (500, 500), x, (("transformer_blocks.1",), ("joint_blocks.1",)))
    n = STEPS * 3 // 4
    ours.pipe.scheduler.set_timesteps(STEPS)
    sigmas = ours.pipe.scheduler.sigmas[-(n + 1) :]
    managed = native(loaded, (cond.prompt, cond.pooled), (cond.empty, cond.empty_pooled), "auto", sigmas=sigmas)
    with managed.at_work(["abc"], x) as engine:
        drawn = engine.draws(x, 3)
        edited = engine.generate(x, engine.prepare(["abc"], x), drawn)
        assert (edited.clamp(0, 1) - engine.edit(x, engine.prepare(["abc"], x), seed=3)).abs().max() < 1e-5
    mode = torch.zeros_like(drawn[0])  # core encodes to it, the pipeline draws
    theirs = ours.generate(x, cond, (mode, drawn[0]), steps=STEPS, guidance_scale=2.0, strength=0.75)
    assert (edited - theirs).abs().max() < 1e-5


def convert(network, core, places) -> None:
    """Core's network gets the weights of diffusers'; ``places``: core's map of names, parts and changes."""
    theirs, own = network.state_dict(), core.state_dict()
    for key, place in places.items():
        if key in theirs:
            name, part, change = (place, None, None) if isinstance(place, str) else (*place, None)[:3]
            room = own[name].narrow(*part) if part else own[name]
            room.copy_((change(theirs[key]) if change else theirs[key]).reshape(room.shape))
    core.load_state_dict(own)


def test_kontext_is_one_editor_in_both(comfy, tmp_path):
    import comfy.utils
    from comfy.model_sampling import CONST, ModelSamplingFlux
    from comfy_extras import nodes_flux
    from diffusers import FluxTransformer2DModel

    import fakes
    import packed_fakes
    from sifm_core.editors import load_editor

    nodes_flux.PREFERRED_KONTEXT_RESOLUTIONS[:] = [(SIZE, SIZE)]
    ours = load_editor(str(packed_fakes.flux_kontext(tmp_path)), device="cpu")
    vae = {"scaling_factor": 0.3611, "shift_factor": 0.1159, "latent_channels": 16, "layers_per_block": 1}
    kind = {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 16}
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=2, guidance_embeds=True, axes_dims_rope=(4, 6, 6), **kind
    )
    ours.pipe.register_modules(
        vae=settled(fakes.autoencoder(**VAE | vae)).eval().requires_grad_(False),
        transformer=settled(transformer, 6).eval().requires_grad_(False),
    )
    ours.pipe.vae_scale_factor = 8
    ours = type(ours)("flux-kontext", tmp_path, ours.pipe, {**ours.settings, "size": SIZE})
    config = core_models.FLUX | {"context_in_dim": 32, "mlp_ratio": 4.0}
    model = core_models.model("Flux", config)
    convert(ours.net, model.model.diffusion_model, comfy.utils.flux_to_diffusers(config))
    straight = type("Flow", (ModelSamplingFlux, CONST), {})(model.model.model_config)
    straight.set_parameters(shift=0.0)
    model.add_object_patch("model_sampling", straight)
    loaded = core_models.Loaded(model, converted_vae(ours.pipe.vae, 16), None)
    x = pictures()
    cond = ours.prepare(["abc"], x)
    theirs = ours.edit(x, cond, seed=3, steps=STEPS, guidance_scale=2.5)
    sigmas = ours._sampler(x, {"steps": STEPS}).scheduler.sigmas.cpu()
    text = [(cond.prompt, cond.pooled)] * 2
    managed = native(loaded, *text, "auto", cfg=1.0, sigmas=sigmas)
    for conditioning in (managed.editor.positive, managed.editor.negative):
        conditioning[0][1]["guidance"] = 2.5
    layers = ("transformer_blocks.1", "single_transformer_blocks.0"), ("double_blocks.1", "single_blocks.0")
    agree(ours, managed, (500, 500), x, layers)
    with managed.at_work(["abc"], x) as engine:
        edited = engine.edit(x, engine.prepare(["abc"], x), seed=3)
    assert (edited - theirs).abs().max() < 1e-5
