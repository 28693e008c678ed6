"""An editor of core's MODEL, VAE and CLIP: exact gradients, core's own edits, and nothing left behind."""

from __future__ import annotations

import hashlib

import pytest
import torch

import core_models
from sifm_core import methods, pipeline

pytestmark = pytest.mark.usefixtures("comfy")
SIZE = 32
FAMILIES = ["instruct_pix2pix"]
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

    def loaded(family: str):
        if family not in made:
            with torch.inference_mode():
                made[family] = getattr(core_models, family)()
        return made[family]

    return loaded


def managed(loaded, recipe: str = "auto", **chosen):
    from nodes.from_model import SifmEditorFromModel

    given = STEPS | {"denoise": 0.0, "size": SIZE, "clip": loaded.clip} | chosen
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


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_stays_in_its_budget_repeats_itself_and_leaves_nothing(editor, loaded, method):
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
        assert torch.equal(ours[k : k + 1], theirs.mul(255).round().div(255))


def test_sampling_after_a_protection_gives_the_same_bytes_as_before(editor, loaded, family):
    x = pictures()
    before = core_models.graph(family, loaded, x, "make it night", 5, **STEPS)
    immunize(editor, x)
    assert torch.equal(core_models.graph(family, loaded, x, "make it night", 5, **STEPS), before)
