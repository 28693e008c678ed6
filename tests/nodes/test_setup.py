"""Editors that are here and those that are not; one switch for editor and judges; masks, alpha and what is saved."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from sifm_core.errors import ImageError

pytestmark = pytest.mark.usefixtures("comfy")
KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")


@pytest.fixture
def diffusers(tmp_path, monkeypatch):
    """An empty models/diffusers, an empty cache of the hub, no keys."""
    import folder_paths
    import huggingface_hub.constants

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", ([str(tmp_path / "models")], set()))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def options():
    from nodes.load import SifmLoadEditor

    made = SifmLoadEditor.define_schema().inputs[0].as_dict()
    return made["options"], made["sifm_absent"]


def test_the_list_marks_what_is_not_here_and_leaves_out_what_cannot_be_loaded(diffusers, folder):
    shutil.copytree(folder, diffusers / "mine")
    (diffusers / "kandinsky").mkdir()
    (diffusers / "kandinsky" / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    listed, absent = options()
    assert "mine" in listed and "kandinsky" not in listed and "mine" not in absent
    assert absent["instruct-pix2pix"] == "not here, 4.3 GB from timbrooks/instruct-pix2pix"
    assert not any(name.startswith("miniature") for name in absent)
    shutil.copytree(folder, diffusers / "instruct-pix2pix")
    assert "instruct-pix2pix" not in options()[1]


def test_what_is_not_here_is_refused_before_anything_starts_with_the_cure_in_words_of_comfyui(diffusers):
    from nodes.load import SifmLoadEditor

    (diffusers / "kandinsky").mkdir()
    (diffusers / "kandinsky" / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    said = SifmLoadEditor.validate_inputs(editor="sd3-medium")
    assert "hf download stabilityai/stable-diffusion-3-medium-diffusers" in said and "local_files_only" not in said
    assert "models/diffusers/sd3-medium" in said and "miniature-ip2p" in said
    assert "KandinskyPipeline" in SifmLoadEditor.validate_inputs(editor="kandinsky")
    assert "no such folder" in SifmLoadEditor.validate_inputs(editor="../x")
    for fine in ({"editor": "miniature-sd3"}, {"editor": None, "folder": None}, {}):
        assert SifmLoadEditor.validate_inputs(**fine) is True


def test_one_switch_changes_editor_and_judges(diffusers):
    from nodes.setup import MINIATURES, SifmSetup

    for paper, small in MINIATURES.items():
        editor, other, *judges = SifmSetup.execute("miniature", paper).args
        assert editor is other and editor.editor.name == small
        assert [judge["judge"] for judge in judges] == ["miniature", "miniature"]
    editor, other, *_ = SifmSetup.execute("miniature", "hq-edit", "sd3-medium").args
    assert (editor.editor.name, other.editor.name) == ("miniature-hq-edit", "miniature-sd3")


def test_the_papers_side_of_the_switch_names_every_file_and_key_that_is_missing(diffusers, monkeypatch):
    from nodes.setup import SifmSetup

    chosen = {"run_on": "paper", "editor": "hq-edit", "other_editor": "sd3-medium", "judge_models": "a, b"}
    said = SifmSetup.validate_inputs(**chosen)
    assert "hq-edit is not on this computer" in said and "sd3-medium is not on this computer" in said
    assert "GEMINI_API_KEY" in said and said.endswith("run_on: miniature, which needs nothing")
    assert "two models" in SifmSetup.validate_inputs(**chosen | {"judge_models": "a"})
    monkeypatch.setenv("GEMINI_API_KEY", "k" * 39)
    assert "GEMINI_API_KEY" not in SifmSetup.validate_inputs(**chosen)
    assert SifmSetup.validate_inputs(**chosen | {"run_on": "miniature"}) is True


def test_a_judge_that_is_connected_takes_the_place_of_the_choice(folder):
    from nodes.judge import SifmMllmJudge

    image = torch.zeros(1, 64, 64, 3)
    chosen = {"judge": "miniature", "model": "patch"}
    out = SifmMllmJudge.execute(image, "x", image, {"judge": "gemini", "model": "m"}, chosen=chosen)
    assert out[0]["protected"][0].verdict.judge == "miniature:patch"
    again = SifmMllmJudge.fingerprint_inputs({"judge": "miniature"}, chosen=None)
    assert again != again, "what is behind a link is not known, so it is asked again"


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(3)) / 255


def immunized(editor, image, **given):
    from nodes.immunize import SifmBaselineImmunize

    settings = {"prompt": "abc", "eps": 0.03, "steps": 1, "seed": 0, "alpha": 2 / 255}
    return SifmBaselineImmunize.execute(image, editor, **settings, method={"method": "random_noise"}, **given)


def test_load_images_empty_mask_is_none_and_another_size_is_fitted(editor):
    image = noise(1, 24, 32, 3)
    plain = immunized(editor, image)[0]
    assert torch.equal(immunized(editor, image, mask=torch.zeros(1, 64, 64))[0], plain)
    half = torch.zeros(1, 48, 64)
    half[..., 32:] = 1
    changed = (immunized(editor, image, mask=half)[0] != image).any(-1)[0]
    assert not changed[:, :15].any() and changed[:, 17:].any()
    turned = (immunized(editor, image, mask=half, mask_marks="what to leave alone")[0] != image).any(-1)[0]
    assert turned[:, :15].any() and not turned[:, 17:].any()
    with pytest.raises(ImageError, match="nothing is left"):
        immunized(editor, image, mask=torch.ones(1, 24, 32), mask_marks="what to leave alone")


@pytest.mark.parametrize("how", ["mask", "four channels"])
def test_the_transparent_part_stays_as_it_is_and_the_saved_file_has_its_alpha(editor, how, tmp_path, monkeypatch):
    import folder_paths
    import numpy as np
    from PIL import Image

    from nodes.save import SifmSaveProtected

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    image, alpha = noise(1, 24, 32, 3), torch.ones(1, 24, 32)
    alpha[:, :, :8], alpha[:, :, 8:12] = 0, 128 / 255
    if how == "mask":
        out = immunized(editor, image, mask=1 - alpha, mask_marks="what is transparent")
    else:
        out = immunized(editor, torch.cat([image, alpha[..., None]], dim=-1))
    save = SifmSaveProtected.PREPARE_CLASS_CLONE(None)
    save.hidden = SimpleNamespace(prompt=None, extra_pnginfo=None)
    shown = save.execute(out[2], "x").ui
    with Image.open(tmp_path / shown["images"][0]["filename"]) as file:
        pixels = np.asarray(file)
    assert pixels.shape == (24, 32, 4) and np.array_equal(pixels[..., 3], (255 * alpha[0]).round().numpy())
    changed = pixels[..., :3] != (255 * image[0]).round().numpy()
    assert not changed[:, :8].any() and changed[:, 12:].any()
    assert "as ComfyUI read it" in shown["text"][0]


def test_options_of_a_method_may_be_left_out(editor):
    from nodes.immunize import SifmBaselineImmunize, SifmImmunize

    for node in (SifmImmunize, SifmBaselineImmunize):
        required = set(node.GET_NODE_INFO_V1()["input"]["required"])
        assert required == {"image", "editor", "prompt", "eps", "steps", "seed", "alpha"} | (
            {"method"} if node is SifmBaselineImmunize else set()
        )
    for option in SifmBaselineImmunize.GET_NODE_INFO_V1()["input"]["required"]["method"][1]["options"]:
        assert not {name for name in option["inputs"].get("required", {}) if not name.endswith("_image")}
