"""Where each method comes from, what its paper sets, and that a preset reaches the loop."""

from __future__ import annotations

import math

import pytest
import torch

from fakes import images
from sifm_core import pipeline
from sifm_core.editors import load_editor
from sifm_core.errors import InputError
from sifm_core.loop import LOOP
from sifm_core.methods import EQUAL_BUDGET, METHODS, NEWER, about, editshield, options, presets
from sifm_core.pgd import pgd
from sifm_core.types import Gradient
from toy import ToyEditor

SQUARE = 512 * 512 * 3
PAPERS = {  # what methods.md's table says, from [-1, 1] where it was so
    "photoguard_encoder": {"eps": 0.06 / 2, "alpha": 0.02 / 2, "steps": 1000, "schedule": "linear"},
    "photoguard_diffusion": {"eps": 16 / 2 / math.sqrt(SQUARE), "alpha": 1 / 2 / math.sqrt(SQUARE), "ball": "l2"},
    "editshield": {"eps": 0.05, "alpha": 1 / 255, "steps": 30},
    "mist": {"eps": 2 * 16 / 255 / 2, "alpha": 2 * 1 / 255 / 2, "steps": 100},
    "ace": {"eps": 8 / 255 / 2, "alpha": 5e-3 / 2, "steps": 5 * 50},
    "sds": {"eps": 2 * 16 / 255 / 2, "alpha": 2 * 1 / 255 / 2, "steps": 100, "variant": "sds-"},
    "semantic_attack": {"eps": 0.06 / 2, "steps": 100, "timesteps": 10},
}


@pytest.mark.parametrize("name", METHODS)
def test_presets_hold_the_loop_and_options_that_exist(name: str) -> None:
    for preset in presets(name).values():
        assert preset.keys() >= EQUAL_BUDGET.keys()
        assert preset.keys() <= LOOP.keys() | options(name).keys()
        assert 1 / 255 <= preset["eps"] <= 1 and preset["alpha"] <= preset["eps"]
    assert presets(name)["equal_budget"] == EQUAL_BUDGET
    assert (EQUAL_BUDGET["eps"], EQUAL_BUDGET["steps"], EQUAL_BUDGET["ball"]) == (0.03, 100, "linf")


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_figures_in_units_of_the_engine(name: str) -> None:
    preset = presets(name)["paper"]
    assert {key: preset[key] for key in PAPERS[name]} == pytest.approx(PAPERS[name])


@pytest.mark.parametrize("name", METHODS)
def test_says_where_it_comes_from(name: str) -> None:
    summary, provenance, beyond = about(name)
    assert summary.endswith(".") and "\n" not in summary
    assert provenance.startswith(("official code (", "reconstructed from the paper", "our own"))
    of_no_paper = "paper" not in presets(name)
    assert beyond == (() if of_no_paper else ("sd3",) * (name in ("mist", "ace", "sds")) + NEWER)
    if "official_quirks" in options(name):
        assert options(name)["official_quirks"].default is False


def test_a_preset_reaches_the_loop_and_what_is_given_wins() -> None:
    toy, image = ToyEditor(), images(1, 32)

    def settings(**given: object) -> dict:
        done = pipeline.immunize(image, toy, prompt="a", method="photoguard_encoder", **given)
        return {key: done.settings[key] for key in EQUAL_BUDGET}

    own = {"update": "steepest"}  # what the method's rule for "auto" comes to
    assert settings(steps=2) == EQUAL_BUDGET | {"steps": 2} | own
    paper = presets("photoguard_encoder")["paper"]
    assert settings(preset="paper", steps=2) == paper | {"steps": 2} | own
    assert settings(preset="paper", steps=2, eps=0.1, alpha=0.02, schedule="constant", ball="l2") == {
        **{"steps": 2, "eps": 0.1, "alpha": 0.02, "schedule": "constant", "ball": "l2", "update": "steepest"}
    }
    done = pipeline.immunize(image, toy, prompt="a", method="random_noise", preset="equal_budget", pattern="block4")
    assert done.settings["options"] == {"pattern": "block4"}
    with pytest.raises(InputError, match="did you mean paper"):
        pipeline.immunize(image, toy, prompt="a", method="photoguard_encoder", preset="papers")
    with pytest.raises(InputError, match="unknown update"):
        pipeline.immunize(image, toy, prompt="a", method="photoguard_encoder", update="adamw")


def test_adam_is_torchs() -> None:
    x0, aim = images(2).double() * 0.2 + 0.4, images(2, seed=1).double()
    x = x0.clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=0.01)
    for _ in range(20):
        x.grad = 2 * (x - aim).detach()
        adam.step()

    def grad_fn(x, step):
        return Gradient((x - aim).square().sum((1, 2, 3)), 2 * (x - aim))

    options = {"eps": 0.9, "alpha": 0.01, "steps": 20}
    assert torch.allclose(pgd(x0, grad_fn, update="adam", **options), x.detach(), atol=1e-12)
    assert not torch.allclose(pgd(x0, grad_fn, **options), x.detach(), atol=1e-3)


def test_editshields_official_steps_need_no_projection(ip2p_folder) -> None:
    """30 steps of Adam at 0.001 stay inside the 0.05 that the official code declares and never uses."""
    editor = load_editor(ip2p_folder, device="cpu")
    x = images(1) * 0.8 + 0.1
    preset = {key: value for key, value in presets("editshield")["official"].items() if key != "official_quirks"}
    grad_fn = editshield.build(editor, x, editor.prepare(["a"]), transforms="none", official_quirks=True)
    near, far = (pgd(x, grad_fn, **preset | {"eps": eps}) for eps in (preset["eps"], 1.0))
    assert torch.equal(near, far)
    assert 0.02 < float((near - x).abs().max()) < 0.04
