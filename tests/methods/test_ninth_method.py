"""A method of somebody else's: one file of under 30 lines and one line in the table, and everything works with it."""

from __future__ import annotations

import json

import pytest

from fakes import images
from methods import test_contract as contract
from sifm_core import cli, methods, pipeline
from sifm_core.editors import load_editor
from sifm_core.errors import InputError
from sifm_core.types import Editor

NINTH = '''"""Flat: press the latent towards its own mean, so that nothing of the picture is left in it."""

from typing import Annotated, Literal

from sifm_core.gradients import through_latent
from sifm_core.methods import configured
from sifm_core.types import Cond, Editor, GradFn, Image

PROVENANCE = "our own example, of no paper"
PRESETS = {"paper": {"eps": 8 / 255, "power": "4"}}


@configured
def build(
    editor: Editor, x: Image, cond: Cond, *, power: Annotated[Literal["2", "4"], "of the deviations"] = "2"
) -> GradFn:
    """The gradient of the mean power of the deviations of each channel from its mean."""

    def flat(z):
        return (z - z.mean(dim=(2, 3), keepdim=True)).pow(int(power)).flatten(1).mean(dim=1)

    return through_latent(editor.encode, [flat])
'''


@pytest.fixture(autouse=True)
def listed(tmp_path, monkeypatch) -> None:
    (tmp_path / "flat_method.py").write_text(NINTH)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(methods.METHODS, "flat", "flat_method")  # the one line


@pytest.fixture(params=["ip2p", "sd3"])
def editor(request: pytest.FixtureRequest) -> Editor:
    folder = request.getfixturevalue(f"{request.param}_folder")
    return load_editor(folder, device="cpu", dtype="float64", steps=2, size=32)


def test_it_keeps_the_contract_and_runs(editor: Editor) -> None:
    assert len(NINTH.splitlines()) < 30
    contract.test_budget_range_shape_and_same_seed_same_bytes("flat", editor)
    contract.test_a_batch_equals_its_images_one_by_one("flat", editor)
    contract.test_every_step_is_reported("flat", editor)
    contract.test_the_loss_falls("flat", editor)
    contract.test_the_gradient_is_the_losss("flat", editor)
    contract.test_an_interrupt_leaves_nothing_behind("flat", editor)
    contract.test_an_option_outside_its_list_is_refused_with_near_names("flat", "power", editor)
    done = pipeline.immunize(images(1, 32), editor, prompt="a", method="flat", preset="paper", steps=3)
    assert 0 < done.linf <= 8 / 255 and done.settings["options"] == {"power": "4"}
    assert done.history[-1].loss < done.history[0].loss
    with pytest.raises(InputError, match="did you mean flat"):
        methods.get_method("flet")


def test_the_command_line_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "methods", "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)["flat"]
    assert entry["about"].startswith("Flat: press the latent") and entry["options"]["power"]["default"] == "2"
