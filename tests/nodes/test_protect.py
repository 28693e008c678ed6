"""The artist's door: a real editor protects, a toy is refused before anything starts, the file is what is said."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "out"))
    return tmp_path / "out"


def noise(n: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (n, 24, 32, 3), generator=torch.Generator().manual_seed(3)) / 255


def protect(editor, image, **given):
    from nodes.protect import SifmProtectImage

    node = SifmProtectImage.PREPARE_CLASS_CLONE(None)
    node.hidden = SimpleNamespace(prompt={"1": "secret"}, extra_pnginfo={"workflow": {"id": "x"}})
    with torch.inference_mode():
        return node.execute(image, "miniature-ip2p", "subtle", editor=editor, **given)


def test_each_picture_gets_a_file_inside_its_budget_and_a_certificate_without_what_was_typed(editor, output):
    from PIL import Image

    from sifm_core import certificate
    from sifm_core.images import verify_budget

    image = noise(2)
    out = protect(editor, image, words="a sly b")
    files = sorted((output / "SIFM").glob("*.png"))
    assert len(files) == 2 and torch.equal(out[0], out[1].image.movedim(1, -1))
    for file, original in zip(files, image.movedim(-1, 1).split(1), strict=True):
        assert verify_budget(file, original, 6 / 255) > 0
        about, findings = certificate.check(file)
        assert about["protection"]["strength"] == "subtle" and all(finding.good is not False for finding in findings)
        assert "sly" not in json.dumps(about) and "secret" not in json.dumps(dict(Image.open(file).text))
    shown = out.ui
    assert len(shown["images"]) == 2 and [len(pair) for pair in shown["sifm_sides"]] == [2, 2]
    assert "levels" in shown["text"][0] and "and nothing else" in shown["text"][0]
    assert out[2] is editor and shown["sifm_demonstration"] == [False]


def test_the_same_again_is_taken_from_what_is_kept_and_another_variant_is_another(editor, output, monkeypatch):
    from sifm_core import protection

    first = protect(editor, noise())
    monkeypatch.setattr(protection, "protect", lambda *a, **k: pytest.fail("computed again"))
    again = protect(editor, noise())
    assert torch.equal(first[0], again[0]) and first.ui["text"][0].split("`")[0] == again.ui["text"][0].split("`")[0]
    monkeypatch.undo()
    assert len(list(Path(output, "SIFM").glob("*.png"))) == 2


def test_a_toy_and_what_is_not_here_are_refused_before_anything_starts_with_what_to_do():
    from nodes.protect import SifmProtectImage

    said = SifmProtectImage.validate_inputs(against="miniature-ip2p")
    assert "is a toy" in said and "hf download" in said and "demonstration" in said
    assert "is not on this computer" in SifmProtectImage.validate_inputs(against="sd3-medium")
    assert SifmProtectImage.validate_inputs(against="miniature-ip2p", demonstration=True) is True
    assert SifmProtectImage.validate_inputs(against="sd3-medium", editor=None) is True, "another comes through a link"


def test_a_demonstration_says_so_in_name_file_and_node(editor, output, monkeypatch):
    monkeypatch.setattr(editor.editor, "toy", 16)
    out = protect(editor, noise(), words="abc", demonstration=True)
    (file,) = (output / "SIFM").glob("*.png")
    assert file.name == "demonstration_protected_00001_.png" and out.ui["sifm_demonstration"] == [True]
    assert "protects nothing" in out.ui["text"][0]
    protect(editor, noise(), words="abc", demonstration=True)
    assert len(list((output / "SIFM").glob("demonstration_protected_0000?_.png"))) == 2, "the first is still there"


def test_a_test_without_words_comes_to_the_instructions_that_are_drawn(editor, monkeypatch):
    from nodes import hold

    asked = []
    monkeypatch.setattr(hold.holding, "holds", lambda *a, **k: asked.append(k["instructions"]) or 1 / 0)
    with torch.inference_mode(), pytest.raises(ZeroDivisionError):
        hold.SifmDoesItHold.execute(noise()[:, :, :24], "miniature-ip2p", editor=editor)
    assert asked == [[]]


def test_a_test_of_a_picture_shows_its_edits_and_has_no_light_where_nobody_judges(editor, output, monkeypatch):
    from nodes import hold
    from nodes.hold import SifmDoesItHold

    monkeypatch.setattr(hold, "MOST", 4)
    image = noise()[:, :, :24]
    with torch.inference_mode():
        out = SifmDoesItHold.execute(image, "miniature-ip2p", source=image, editor=editor, words="abc")
    assert out.ui["sifm_light"] == [""] and "nobody judged" in out[0] and "connect judge_1" in out[0]
    assert len(out.ui["sifm_cards"]) == 8 and "2 more edits were tried and are not shown" in out[0]
    assert {card["method"] for card in out.ui["sifm_cards"]} == {"unprotected", "protected"}
    assert len(list((output / "SIFM").glob("holds_00001_.html"))) == 1
    assert "is a toy" in SifmDoesItHold.validate_inputs(against="miniature-ip2p")
