"""An editor of core's MODEL, VAE and CLIP: exact gradients, core's own edits, and nothing left behind."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import core_models
from sifm_core import methods, pipeline, protection
from sifm_core.errors import EditorError

pytestmark = pytest.mark.usefixtures("comfy")
SIZE = 32
FAMILIES = ["instruct_pix2pix", "sd3", "kontext", "qwen"]
FURTHER = ["sd15", "sdxl", "inpainting", "fill", "flux2", "longcat", "qwen_edit"]
SHORT = {"sifm": {"timesteps": 2}, "semantic_attack": {"timesteps": 2}, "photoguard_diffusion": {"edit_steps": 2}}
"""Options that make a method quick."""
STEPS = {"steps": 2, "cfg": 2.0}


@pytest.fixture(autouse=True)
def inside_a_prompt(comfy):
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def models(comfy):
    """The tiny models of a family, made as in a prompt, once."""
    made = {}

    def loaded(family: str, **options):
        key = family, *options.values()
        if key not in made:
            with torch.inference_mode():
                made[key] = getattr(core_models, family)(**options)
        return made[key]

    import nodes.native.recipes

    assert nodes.native.recipes.RECIPES
    core_models.small_scales()
    return loaded


def managed(loaded, recipe: str = "auto", **chosen):
    from nodes.from_model import SifmEditorFromModel

    scales = type(loaded.model.model).__name__ in ("Flux", "Flux2", "LongCatImage", "QwenImage")  # by core's nodes
    size = 0 if scales and "mask" not in chosen else SIZE
    given = STEPS | {"denoise": 0.0, "size": size, "clip": loaded.clip} | chosen
    return SifmEditorFromModel.execute(loaded.model, loaded.vae, recipe, **given)[0]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def loaded(models, family):
    return models(family)


@pytest.fixture
def editor(loaded):
    return managed(loaded)


def pictures(n: int = 1, size: int = SIZE) -> torch.Tensor:
    """(n, 3, size, size): drawn, not noise, so that a scaled copy still looks alike."""
    generator = torch.Generator().manual_seed(n)
    small = torch.rand(n, 3, 4, 4, generator=generator)
    large = torch.nn.functional.interpolate(small, (size, size), mode="bilinear")
    return large.mul(255).round().div(255)


def immunize(editor, x, method: str = "sifm", **changes):
    given = {"steps": 2, "eps": 8 / 255} | SHORT.get(method, {}) | changes
    with editor.at_work(["make it night"], x) as engine:
        return pipeline.immunize(x, engine, prompt="make it night", method=method, **given)


def edit(editor, x, **changes):
    with editor.at_work(["make it night"], x) as engine:
        return pipeline.edit(x, engine, prompt="make it night", **{"seed": 3} | changes)


def state(loaded) -> dict:
    """All of the models that a protection could leave changed: bytes, identities, flags, hooks, gradients."""
    from comfy import model_management

    found = {"training": model_management.in_training, "patcher": loaded.model.model.current_patcher}
    found["latents"] = [(k, id(v)) for k, v in vars(loaded.model.model.latent_format).items()]
    for name, network in {
        "model": loaded.model.model,
        "vae": loaded.vae.first_stage_model,
        "clip": loaded.clip.cond_stage_model,
    }.items():
        digest = hashlib.sha256()
        for key, value in network.state_dict().items():
            digest.update(key.encode() + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        parts = list(network.modules())
        found[name] = (
            digest.hexdigest(),
            [id(p) for p in (*network.parameters(), *network.buffers())],
            [(p.requires_grad, p.is_inference(), p.grad) for p in network.parameters()],
            [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts],
            [
                sorted(k for k in vars(part) if k not in ("comfy_patched_weights", "comfy_force_cast_weights"))
                for part in parts
            ],
        )
    return found


def prompt(x):
    return ["make it night"] * len(x)


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_stays_in_its_budget_repeats_itself_and_leaves_nothing(editor, loaded, method, family):
    if family != "instruct_pix2pix" and method in ("ace", "sds", "editshield", "random_noise", "sifm_plus"):
        pytest.skip("what these need of an editor, the others do too")
    x = pictures(2)
    immunize(editor, x[:1], "random_noise")  # loaded, which is core's business
    before = state(loaded)
    both, alone = immunize(editor, x, method), immunize(editor, x[1:], method)
    assert 0 < (both.image - x).abs().max() <= 8.001 / 255
    assert torch.equal(both.image[1:], alone.image)
    assert state(loaded) == before


def test_an_edit_is_that_of_cores_own_graph(editor, loaded, family):
    x = pictures(2)
    ours = edit(editor, x, seed=[3, 4])
    for k, seed in enumerate((3, 4)):
        theirs = core_models.graph(family, loaded, x[k : k + 1], "make it night", seed, **STEPS)
        assert torch.equal(ours[k : k + 1], fitted(theirs, x))


def fitted(edited, x):
    """At the picture's own size, on the 8-bit grid, as the engine's edits are."""
    from sifm_core.images import resize

    return resize(edited, tuple(x.shape[-2:])).clamp(0, 1).mul(255).round().div(255)


@pytest.mark.parametrize("further", FURTHER)
def test_further_models_are_protected_and_attacked_by_cores_graph(models, further):
    loaded, x = models(further), pictures()
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, : SIZE // 2] = 1
    recipe = "Qwen-Image-Edit" if further == "qwen_edit" else "auto"
    editor = managed(loaded, recipe, **({"mask": mask} if further in ("inpainting", "fill") else {}))
    theirs = core_models.graph(further, loaded, x, "make it night", 5, **STEPS)
    assert torch.equal(edit(editor, x, seed=5), fitted(theirs, x))
    before = state(loaded)
    for method in ("sifm", "mist"):
        assert 0 < (immunize(editor, x, method).image - x).abs().max() <= 8.001 / 255
    assert state(loaded) == before and examine(editor, x).gradient < 0.01


def test_the_edit_with_a_gradient_is_cores_edit(editor, loaded, family):
    x = pictures()
    with editor.at_work(prompt(x), x) as engine:
        fit = engine.work_size(*x.shape[-2:])
        assert fit == tuple(x.shape[-2:])
        cond = engine.prepare(prompt(x), x)
        leaf = x.clone().requires_grad_()
        made = engine.generate(leaf, cond, engine.draws(x, 3, steps=2), steps=2)
        core = engine.edit(x, cond, seed=3)
        assert (made.clamp(0, 1) - core).abs().max() < 1e-5
        (grad,) = torch.autograd.grad(made.square().mean(), leaf)
    assert grad.isfinite().all() and grad.abs().max() > 0


def test_sampling_after_a_protection_gives_the_same_bytes_as_before(editor, loaded, family):
    x = pictures()
    before = core_models.graph(family, loaded, x, "make it night", 5, **STEPS)
    immunize(editor, x)
    assert torch.equal(core_models.graph(family, loaded, x, "make it night", 5, **STEPS), before)


def examine(editor, x, layers="deep"):
    from nodes.native.doctor import check

    with editor.at_work(prompt(x), x) as engine:
        return check(engine, x, engine.prepare(prompt(x), x), layers)


def test_gradients_agree_with_finite_differences_through_every_layer(editor, family):
    found = examine(editor, pictures(), "all")
    assert found.gradient < 0.005 and found.features < 1e-5 and found.levels < 1.01


@pytest.mark.parametrize("family", ["kontext", "flux2", "longcat"], indirect=True)
def test_a_core_that_scales_in_another_way_is_refused(editor, family, monkeypatch):
    x = pictures(size=40)
    assert examine(editor, x, None).levels < 1.01
    recipe = editor.editor.recipe
    other = recipe.views(1 - x, None)[0].movedim(1, -1)
    monkeypatch.setattr(type(recipe), "scaled", lambda self, pixels: other)
    with pytest.raises(EditorError, match="levels of 255"):
        examine(editor, x, None)


class Stop(BaseException):
    """As ComfyUI's interrupt is."""


PHASES = [
    "a step",
    "the encoder",
    "the network",
    "core's sampler",
    "the swap",
    "loading",
    "the doctor",
    "a block again",
]


@pytest.mark.parametrize("phase", PHASES)
def test_nothing_is_left_when_a_protection_is_interrupted(editor, loaded, family, phase, monkeypatch):
    from nodes.native import gradients
    from nodes.native.managed import NativeManaged

    x = pictures()
    immunize(editor, x, "random_noise")
    before = state(loaded)

    def stop(*_, **__):
        raise Stop

    if phase == "the encoder":
        monkeypatch.setattr(type(loaded.vae.first_stage_model), "encode", stop)
    elif phase == "the network":
        monkeypatch.setattr(type(loaded.model.model), "_apply_model", stop)
    elif phase == "core's sampler":
        monkeypatch.setattr(type(loaded.model.model), "process_latent_out", stop)
    elif phase == "the swap":
        made = []

        def few(tensor, alias=gradients._alias):
            made.append(tensor)
            return stop() if len(made) > 9 else alias(tensor)

        monkeypatch.setattr(gradients, "_alias", few)
    elif phase == "loading":
        monkeypatch.setattr("comfy.model_management.load_models_gpu", stop)
    elif phase == "the doctor":
        monkeypatch.setattr("comfy.model_management.throw_exception_if_processing_interrupted", stop)
    elif phase == "a block again":
        monkeypatch.setattr(NativeManaged, "fit", lambda self, memory: spared(self, memory))
        monkeypatch.setattr(gradients, "_on_copies", stop)

    def spared(managed, memory):
        managed.editor.sparing = True
        return memory, True

    with pytest.raises(Stop):
        if phase == "core's sampler":
            edit(editor, x)
        elif phase == "the doctor":
            examine(editor, x)
        else:
            immunize(editor, x, on_step=stop)
    monkeypatch.undo()
    assert state(loaded) == before


def lora(loaded, strength: float = 1.0):
    """A clone of the model with a LoRA on its attention."""
    patches, generator = {}, torch.Generator().manual_seed(9)
    for key, weight in loaded.model.model.state_dict().items():
        if weight.ndim == 2 and key.endswith(("to_q.weight", "qkv.weight")):
            patches[key] = ("diff", (torch.randn(weight.shape, generator=generator) * weight.std(),))
    assert patches
    clone = loaded.model.clone()
    clone.add_patches(patches, strength)
    return loaded._replace(model=clone)


def test_a_lora_is_part_of_the_gradient_and_of_the_fingerprint(loaded, editor, family):
    x = pictures()
    plain = immunize(editor, x).image
    patched = managed(lora(loaded))
    assert not torch.equal(immunize(patched, x).image, plain)
    assert examine(patched, x).gradient < 0.01
    assert torch.equal(immunize(editor, x).image, plain)
    prints = {e.editor.fingerprint for e in (editor, managed(loaded), patched, managed(lora(loaded, 0.5)))}
    assert len(prints) == 3, "the same twice, and two strengths"
    assert managed(loaded, cfg=3.0).editor.fingerprint not in prints


def test_another_clone_that_is_loaded_meanwhile_does_not_change_what_comes_later(loaded, editor, family):
    from comfy import model_management

    x = pictures()
    before = core_models.graph(family, loaded, x, "make it night", 5, **STEPS)
    other = lora(loaded).model

    def load(step):
        with torch.inference_mode():
            model_management.load_models_gpu([other])

    with pytest.raises(EditorError, match="meanwhile"):
        immunize(editor, x, on_step=load)
    for patcher in (loaded.model, other, loaded.model):
        again = core_models.graph(family, loaded._replace(model=patcher), x, "make it night", 5, **STEPS)
        assert torch.equal(again, before) is (patcher is loaded.model)
    immunize(editor, x)


NUMBERS = {"bf16": {"dtype": torch.bfloat16}, "fp8": {"dtype": torch.float8_e4m3fn, "cast": torch.float32}}


@pytest.mark.parametrize("numbers", NUMBERS)
def test_gradients_of_other_numbers(models, family, numbers):
    loaded, x = models(family, **NUMBERS[numbers]), pictures()
    found = examine(managed(loaded), x)
    assert found.exact is (numbers == "fp8") and found.gradient < (0.01 if numbers == "fp8" else 0.2)


# -- the traps: each cure taken away


def test_without_aliases_no_gradient_passes_what_was_made_in_a_prompt(editor, monkeypatch):
    from nodes.native import gradients

    monkeypatch.setattr(gradients, "_foreign", lambda network: [])
    with pytest.raises(RuntimeError, match="Inference tensors"):
        immunize(editor, pictures())


def moved(network) -> None:
    """As from the CPU to a GPU outside of a prompt: what was made in one then says no more that it was."""
    with torch.inference_mode(False):
        network.double().float()


def test_weights_that_were_moved_outside_of_a_prompt_have_gradients(models, family):
    x, loaded = pictures(), getattr(core_models, family)()
    editor = managed(loaded)
    before = immunize(editor, x).image
    for network in (loaded.model.model, loaded.vae.first_stage_model):
        moved(network)
    weight = next(loaded.model.model.diffusion_model.parameters())
    with pytest.raises(RuntimeError, match="version counter"):
        assert weight._version
    assert managed(loaded).editor.fingerprint
    assert not weight.is_inference() and torch.equal(immunize(editor, x).image, before)


@pytest.mark.parametrize("family", ["sd3"], indirect=True)
def test_iterations_are_not_recorded_since_core_moves_what_they_read(editor, monkeypatch):
    monkeypatch.setattr(pipeline, "replayed", lambda gradient: pytest.fail("recorded"))
    immunize(editor, pictures())


def test_comfyui_moves_its_own_models_as_in_a_prompt(editor, monkeypatch):
    from comfy import model_management

    modes, load = [], model_management.load_models_gpu

    def loading(*models, **how):
        modes.append(torch.is_inference_mode_enabled())
        return load(*models, **how)

    monkeypatch.setattr(model_management, "load_models_gpu", loading)
    immunize(editor, pictures(), "random_noise")
    assert modes and all(modes)


def test_inside_no_weight_asks_for_a_gradient_of_its_own(loaded, editor):
    x = pictures()
    assert any(p.requires_grad for p in loaded.vae.first_stage_model.parameters()), "core's autoencoders do"
    with editor.at_work(prompt(x), x):
        for network in (loaded.vae.first_stage_model, loaded.model.model):
            assert not any(p.requires_grad or p.is_inference() for p in (*network.parameters(), *network.buffers()))


@pytest.mark.parametrize("family", ["kontext"], indirect=True)
class TestFlux:
    def test_fused_rope_has_no_gradient(self, editor, monkeypatch):
        from comfy import model_management

        x = pictures()
        with editor.at_work(prompt(x), x) as engine, pytest.raises((RuntimeError, NotImplementedError)):
            model_management.in_training = False
            pipeline.immunize(x, engine, prompt="make it night", steps=1, **SHORT["sifm"])

    def test_features_that_are_not_copied_are_refused(self, editor, monkeypatch):
        monkeypatch.setattr(editor.editor, "hidden", editor.editor.part)
        monkeypatch.setattr("sifm_core.features._Complete", type("Never", (BaseException,), {}))
        with pytest.raises(EditorError, match="features"):
            whole = ["double_blocks.0", "single_blocks.1"]
            examine(editor, pictures(), whole)

    def test_blocks_add_in_place_to_what_norms_keep(self, editor, monkeypatch):
        monkeypatch.setattr(editor.editor.network, "in_place", False)
        with pytest.raises(RuntimeError, match="inplace"):
            immunize(editor, pictures())

    def test_recomputed_blocks_give_the_same_gradient(self, editor):
        x = pictures()
        with editor.at_work(prompt(x), x) as engine:
            cond, drawn, grads = engine.prepare(prompt(x), x), engine.draws(x, 3, steps=1), []
            for room in (nullcontext(), engine.recomputing()):
                leaf = x.clone().requires_grad_()
                with room:
                    made = engine.generate(leaf, cond, drawn, steps=1).square().mean()
                    grads += torch.autograd.grad(made, leaf)
        assert torch.allclose(*grads, rtol=1e-4, atol=1e-9)


def test_sums_into_buffers_have_a_gradient_inside(comfy):
    from nodes.native.gradients import differentiable

    with torch.inference_mode(False), torch.enable_grad(), differentiable([]):
        x = torch.ones(3, requires_grad=True)
        assert torch.add(x, x, out=torch.empty(3)).requires_grad


def test_what_an_autoencoder_holds_off_the_device_is_refused(loaded, editor, monkeypatch):
    monkeypatch.setattr(loaded.vae.first_stage_model, "model_lowvram", True, raising=False)
    monkeypatch.setattr("comfy.model_management.load_models_gpu", lambda *_, **__: None)
    with pytest.raises(EditorError, match="partly"):
        immunize(editor, pictures())


def test_weights_off_the_device_come_into_memory_of_their_own(comfy):
    """Core's stream has one buffer for all layers: what a gradient needs of one would be the next one's."""
    from comfy import model_management

    from nodes.native.gradients import differentiable

    before = model_management.get_offload_stream
    with pytest.raises(Stop), differentiable([]):
        assert model_management.get_offload_stream(torch.device("cuda")) is None
        raise Stop
    assert model_management.get_offload_stream is before


def only(monkeypatch, free: int):
    """A device with so many bytes left, and nothing on it."""

    def left(dev=None, torch_free_too=False):
        return (free, free) if torch_free_too else free

    known = "comfy.model_management."
    monkeypatch.setattr(f"{known}get_free_memory", left)
    monkeypatch.setattr(f"{known}current_loaded_models", [])
    monkeypatch.setattr(f"{known}get_total_memory", lambda *_, **__: 10**12)


def room(monkeypatch, editor, share: float):
    """So much of a device, in shares of the model's weights beside all of the autoencoder's."""
    free = int(editor.editor.vae.patcher.model_size() + share * editor.editor.model.model_size())
    only(monkeypatch, free)


def test_what_does_not_fit_is_run_twice_or_stays_off_the_device_or_is_refused(editor, monkeypatch):
    from nodes.native.doctor import Taken

    size = editor.editor.model.model_size()
    monkeypatch.setattr(editor, "device", torch.device("cuda"))
    monkeypatch.setattr(editor.editor, "measured", Taken(1, 1, 1, 0.25))
    found = []
    for share in (2.1, 1.9, 1.1, 0.1):
        room(monkeypatch, editor, share)
        editor.editor.sparing = False
        try:
            needed, whole = editor.fit(size)
            found.append((needed / size, whole, editor.editor.sparing))
        except EditorError as error:
            found.append(str(error))
    *three, refused = found
    spared = pytest.approx(0.25, rel=0.01)
    assert three == [(1, True, False), (spared, True, True), (spared, False, True)] and "GB" in refused
    editor.editor.sparing = False


def test_blocks_that_are_run_twice_give_the_same_protection_and_leave_nothing(editor, loaded, monkeypatch, family):
    x = pictures()
    plain, edited = immunize(editor, x), edit(editor, x)
    before, taken = state(loaded), editor.editor.measured
    with editor.at_work(prompt(x), x):
        line = editor.examine(x, "make it night", "deep")
    assert "twice" not in line and taken is None
    between = (1 + editor.editor.measured.spared) / 2
    few = sum(patcher.model_size() for patcher in editor.patchers()) + int(editor.working(x) * between)
    only(monkeypatch, few)
    with editor.at_work(prompt(x), x) as engine:
        assert engine.sparing and "twice" in editor.examine(x, "make it night", "deep")
        spared = pipeline.immunize(x, engine, prompt="make it night", steps=2, eps=8 / 255, **SHORT["sifm"])
        assert torch.equal(pipeline.edit(x, engine, prompt="make it night", seed=3), edited)
    assert torch.equal(spared.image, plain.image)
    monkeypatch.undo()
    assert state(loaded) == before and not editor.editor.sparing


def test_what_a_row_keeps_is_measured_without_keeping_it(editor, family):
    from nodes.native.doctor import _hidden, measured

    x, seen, held = pictures(), {}, 0

    def keep(tensor):
        if type(tensor) is torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with editor.at_work(prompt(x), x) as engine:
        cond = engine.prepare(prompt(x), x)
        _, row, _, spared = measured(engine, x, cond, "deep")
        assert 0 < spared < 1
        z = engine.encode(x).detach().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden = _hidden(engine, "deep")(z, cond)
        held = sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
        assert hidden and 0.8 * held < row < 1.3 * held


def test_of_a_model_with_dynamic_vram_a_copy_without_is_taken(models, monkeypatch):
    loaded, taken = models("sd15"), []

    def clone(**how):
        taken.append(how)
        return core_models.patcher(loaded.model.model)

    monkeypatch.setattr(loaded.model, "is_dynamic", lambda: True, raising=False)
    monkeypatch.setattr(loaded.model, "clone", clone, raising=False)
    editor = managed(loaded)
    assert taken == [{"disable_dynamic": True, "force_deepcopy": True}]
    assert editor.editor.model is not loaded.model and immunize(editor, pictures()).linf > 0
    monkeypatch.undo()
    monkeypatch.setattr(loaded.model, "is_dynamic", lambda: True, raising=False)
    monkeypatch.setattr(loaded.model, "cached_patcher_init", None)
    with pytest.raises(EditorError, match="own loaders"):
        managed(loaded)


def test_a_model_that_cannot_fit_is_refused_with_gigabytes(editor, monkeypatch):
    monkeypatch.setattr("comfy.model_management.get_total_memory", lambda device: 1000)
    with pytest.raises(EditorError, match="GB"):
        immunize(editor, pictures())


@pytest.mark.parametrize("family", ["instruct_pix2pix"], indirect=True)
def test_a_gradient_that_is_cut_or_wrong_is_refused(editor, monkeypatch):
    given = type(editor.editor.recipe).given
    monkeypatch.setattr(
        type(editor.editor.recipe),
        "given",
        lambda self, c, raws, mask: given(self, c, [r.detach() for r in raws], mask),
    )
    with pytest.raises(EditorError, match="finite differences"):
        examine(editor, pictures())
    monkeypatch.setattr(editor.editor, "encode", lambda x, noise=None, encode=editor.editor.encode: encode(x).detach())
    with pytest.raises(EditorError, match="no gradient comes"):
        examine(editor, pictures())


@pytest.mark.parametrize("family", ["kontext"], indirect=True)
def test_the_artists_door_is_checked_by_the_doctor_too(editor, tmp_path, monkeypatch):
    import folder_paths

    from nodes.protect import SifmProtectImage

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setitem(protection.STRENGTHS, "subtle", protection.STRENGTHS["subtle"]._replace(steps=1))
    node = SifmProtectImage.PREPARE_CLASS_CLONE(None)
    node.hidden = SimpleNamespace(prompt={}, extra_pnginfo={})
    given = pictures().movedim(1, -1), "miniature-ip2p", "subtle"
    shown = node.execute(*given, editor=editor).ui["text"][0]
    assert "of finite differences" in shown and "GB a row" in shown
    monkeypatch.setattr(editor.editor, "encode", lambda x, noise=None, encode=editor.editor.encode: encode(x).detach())
    with pytest.raises(EditorError, match="no gradient comes"):
        node.execute(*given, editor=editor, variant=1)


@pytest.mark.parametrize("family", ["sd3"], indirect=True)
def test_an_autoencoder_works_on_its_own_device(loaded, editor, monkeypatch):
    """ComfyUI started with --cpu-vae, or a node that says where."""
    network, seen = loaded.vae.first_stage_model, []
    monkeypatch.setattr(loaded.vae, "device", torch.device("meta"))
    for name in ("encode", "decode"):
        monkeypatch.setattr(network, name, lambda given: seen.append(given.device.type) or torch.zeros(1, 16, 4, 4))
    with torch.inference_mode(False):
        z = editor.editor.encode(pictures())
        editor.editor.decode(z)
    assert seen == ["meta", "meta"] and z.device.type == "cpu"


def test_three_pictures_are_not_a_video(editor):
    x = pictures(3)
    with editor.at_work(prompt(x), x) as engine:
        z = engine.encode(x)
        assert torch.allclose(z[2:], engine.encode(x[2:]), atol=1e-5)
        assert len(z) == len(engine.decode(z)) == 3


@pytest.mark.parametrize("size", [(41, 56), (64, 40), (333, 500)])
def test_scaling_is_cores_lanczos(comfy, size):
    from comfy.utils import common_upscale

    from nodes.native.lanczos import center_scaled

    x = torch.rand(1, 3, 100, 130, generator=torch.Generator().manual_seed(1)).mul(255).round().div(255)
    apart = (center_scaled(x, size) - common_upscale(x, size[1], size[0], "lanczos", "center")).abs() * 255
    assert apart.max() < 1.01 and (apart > 0.5).float().mean() < 1e-3


@pytest.mark.parametrize("family", [*FAMILIES, "longcat"], indirect=True)
def test_words_are_the_prompts_own(loaded, editor, family):
    with editor.at_work([""], pictures()) as engine:
        cond = engine.prepare(["make it night", ""])
        words = engine.words(cond)
    assert words[0].sum() == 3 and words[1].sum() == 0 and words.shape == engine.embeddings(cond).shape[:2]


@pytest.mark.parametrize("family", ["qwen", "longcat"], indirect=True)
def test_a_gradient_comes_through_what_the_text_encoder_sees_and_both_entrances_add_up(editor, loaded, family):
    from nodes.native.doctor import check
    from nodes.native.lanczos import smooth
    from sifm_core.methods.sifm import build

    x, grads = pictures(size=56), {}
    immunize(editor, x, "random_noise")
    before = state(loaded)
    with editor.at_work(prompt(x), x) as engine:
        cond = engine.prepare(prompt(x), x)
        assert torch.equal(engine.see(cond, x), engine.embeddings(cond))
        for entrance in ("vae", "vlm", "both"):
            grad_fn = build(engine, x, cond, objective="norm", timesteps=1, entrances=entrance)
            grads[entrance] = grad_fn(x, 0).grad
        leaf, d = x.clone().requires_grad_(), torch.ones_like(x) * 3e-4
        weight = torch.randn(engine.embeddings(cond).shape, generator=torch.Generator().manual_seed(0))
        with smooth():
            (grad,) = torch.autograd.grad((weight * engine.see(cond, leaf)).sum(), leaf)
        with torch.no_grad(), smooth():
            found = ((weight * (engine.see(cond, x + d) - engine.see(cond, x - d))).sum()) / 6e-4
        assert check(engine, x, cond, "deep", "both").gradient < 0.01
    assert abs(found - grad.sum()) < 0.01 * grad.norm() * x.numel() ** 0.5
    assert grads["vlm"].abs().max() > 0
    assert torch.allclose(grads["vae"] + grads["vlm"], grads["both"], atol=1e-5 * float(grads["both"].abs().max()))
    assert state(loaded) == before


@pytest.mark.parametrize("family", ["instruct_pix2pix", "qwen"], indirect=True)
def test_rows_of_longer_and_shorter_texts_are_what_they_are_alone(editor, family):
    x = pictures()
    long = " ".join(["make it a rainy winter night in the old town"] * (9 if family == "instruct_pix2pix" else 1))
    with editor.at_work(prompt(x), x) as engine:
        conds = [engine.prepare([text], x) for text in ("make it night", long)]
        z = engine.encode(x)
        noise, t = torch.ones_like(z), torch.tensor([500])
        alone = torch.cat([engine.denoise(z, noise, t, cond) for cond in conds])
        both = engine.denoise(z.repeat(2, 1, 1, 1), noise.repeat(2, 1, 1, 1), t.repeat(2), engine.join(conds))
    assert (both - alone).norm() < 1e-4 * alone.norm()


def test_an_unknown_class_says_so_and_is_protected_by_its_encoder(models):
    loaded, x = models("sd15"), pictures()
    kind = type(loaded.model.model)
    kind.__name__ = "Brandnew"
    try:
        with pytest.raises(EditorError, match=r"Brandnew.*encoder only"):
            managed(loaded)
        editor = managed(loaded, "encoder only")
        assert 0 < (immunize(editor, x, "photoguard_encoder").image - x).abs().max() <= 8.001 / 255
        with pytest.raises(EditorError, match="encoder only"):
            immunize(editor, x)
    finally:
        kind.__name__ = "BaseModel"


def test_what_is_not_connected_is_named(models):
    from sifm_core.errors import InputError

    with pytest.raises(InputError, match="mask"):
        managed(models("inpainting"))
    with pytest.raises(InputError, match="CLIP"):
        immunize(managed(models("sd15"), clip=None), pictures())


@pytest.mark.parametrize("family", ["qwen"], indirect=True)
def test_a_feature_hook_chooses_the_entrances_that_a_protection_and_its_doctor_use(editor, monkeypatch):
    from nodes import immunize
    from nodes.hook import SifmFeatureHook
    from nodes.native import managed as module

    looked = []
    monkeypatch.setattr(module, "check", lambda *given, check=module.check: looked.append(given[-1]) or check(*given))
    monkeypatch.setattr(immunize, "recall", lambda kind, uses, compute: compute())
    monkeypatch.setattr(immunize, "reporter", lambda *_: None)
    found = {}
    for entrances in ("vae", "vlm"):
        hook = SifmFeatureHook.execute(editor, {"layers": "deep"}, "1", "per_layer", entrances)[0]
        given = {"method": "sifm", "options": hook, "eps": 0.03, "mask": None, "also": None, "steps": 2, "seed": 0}
        found[entrances] = immunize._immunize(pictures().movedim(1, -1), editor, "make it night", **given)[0]
    assert looked == ["vae", "vlm"] and not torch.equal(found["vae"], found["vlm"])
