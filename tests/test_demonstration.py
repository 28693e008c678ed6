"""A toy works on its own drawings; on any other picture nothing of it does, unless a demonstration is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sifm_core import edit, immunize, judge, load_editor, purify
from sifm_core.bench import Grid, Row, Sample, fill
from sifm_core.cli import main
from sifm_core.editors import BUILTIN, GIGABYTES, MINIATURES
from sifm_core.editors.skeleton import skeleton
from sifm_core.errors import InputError
from sifm_core.images import png_text, save_png
from sifm_core.store import Store

PICTURE = torch.linspace(0, 1, 3 * 48 * 80).reshape(1, 3, 48, 80).mul(255).round().div(255)
OWN = PICTURE[..., :64]
PROMPT = "make it night"


@pytest.fixture(scope="module")
def toy():
    return load_editor("miniature-ip2p", device="cpu")


def test_every_embedded_editor_says_that_it_is_a_toy_and_every_other_how_large_it_is(ip2p_folder):
    for name, source in BUILTIN.items():
        embedded = Path(source).parent == MINIATURES
        assert (name in GIGABYTES) != embedded
        if embedded:
            assert load_editor(name, device="cpu").toy == 64
    assert load_editor(ip2p_folder, device="cpu").toy is None


@pytest.mark.parametrize(
    "name, width", [("instruct-pix2pix", 4), ("hq-edit", 4), ("sd3-medium", 2), ("flux2-klein-4b", 2)]
)
def test_how_large_an_editor_is_is_what_its_numbers_take(name, width):
    numbers = sum(p.numel() for network in skeleton(name).networks().values() for p in network.parameters())
    assert GIGABYTES[name] == pytest.approx(numbers * width / 1e9, rel=0.05)


def works(toy, image, **how):
    """What a toy can be asked to do with a picture."""
    return {
        "immunize": lambda: immunize(image, toy, prompt=PROMPT, steps=1, **how).image,
        "also": lambda: immunize(image, toy, prompt=PROMPT, steps=1, also=[toy], **how).image,
        "edit": lambda: edit(image, toy, prompt=PROMPT, **how),
        "purify": lambda: purify.apply(image, "vae_round_trip", editor=toy, **how),
    }


WORKS = list(works(None, None))


@pytest.mark.parametrize("work", WORKS)
def test_a_real_picture_is_refused_with_what_to_do_instead(toy, work):
    with pytest.raises(InputError, match=r"toy.*64x64.*80x48.*editor='instruct-pix2pix'.*GB.*demonstration=True"):
        works(toy, PICTURE)[work]()


@pytest.mark.parametrize("work", WORKS)
def test_its_own_size_is_not_refused_and_neither_is_a_demonstration(toy, work):
    assert works(toy, OWN)[work]().shape == OWN.shape
    assert works(toy, PICTURE, demonstration=True)[work]().shape == PICTURE.shape


def test_a_toy_beside_a_real_editor_is_refused_too(toy, ip2p_folder):
    real = load_editor(ip2p_folder, device="cpu")
    with pytest.raises(InputError, match="miniature-ip2p is a toy"):
        immunize(PICTURE, real, prompt=PROMPT, steps=1, also=[toy])


def test_a_larger_working_size_makes_no_real_editor_of_a_toy():
    with pytest.raises(InputError, match="toy"):
        edit(PICTURE, load_editor("miniature-ip2p", device="cpu", size=128), prompt=PROMPT)


def test_settings_say_that_it_was_a_demonstration_and_only_then(toy):
    assert immunize(PICTURE, toy, prompt=PROMPT, steps=1, demonstration=True).settings["demonstration"] is True
    assert "demonstration" not in immunize(OWN, toy, prompt=PROMPT, steps=1).settings


def test_noise_needs_no_editor_and_is_no_protection_of_a_toys(toy):
    done = immunize(PICTURE, toy, prompt=PROMPT, method="random_noise", demonstration=True)
    assert "demonstration" not in done.settings


@pytest.mark.parametrize("name", ["conv", "patch"])
def test_the_miniatures_judges_say_nothing_about_real_pictures(name):
    (verdict,) = judge(PICTURE, PICTURE, PROMPT, [f"miniature:{name}"])
    assert (verdict.state, verdict.semantic_mismatch) == ("refused", None) and "64x64" in verdict.reasons
    assert judge(OWN, OWN, PROMPT, [f"miniature:{name}"])[0].state == "ok"


def test_the_command_line_refuses_in_its_own_words_and_writes_nothing(tmp_path, capsys):
    save_png(PICTURE, tmp_path / "photo.png")
    for command in ("immunize", "edit"):
        out = tmp_path / "out.png"
        assert main([command, str(tmp_path / "photo.png"), "-o", str(out), "--prompt", PROMPT]) == 2
        said = capsys.readouterr().err
        assert all(part in said for part in ("--editor instruct-pix2pix", "--download", "--demonstration", "GB"))
        assert not out.exists()


def test_a_demonstration_says_so_in_name_file_and_result(tmp_path, capsys):
    save_png(PICTURE, tmp_path / "photo.png")
    shared = [str(tmp_path / "photo.png"), "--prompt", PROMPT, "--demonstration", "--json"]
    assert main(["immunize", *shared, "-o", str(tmp_path / "a.png"), "--steps", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    made = tmp_path / "demonstration_a.png"
    assert result["demonstration"] is True and result["output"] == str(made)
    assert json.loads(png_text(made, "sifm"))["demonstration"] is True and not (tmp_path / "a.png").exists()
    assert main(["edit", *shared, "-o", str(tmp_path / "demonstration_b.png")]) == 0
    assert json.loads(capsys.readouterr().out)["demonstration"] is True
    assert json.loads(png_text(tmp_path / "demonstration_b.png", "sifm"))["demonstration"] is True


@pytest.mark.parametrize("demonstration", [False, True])
def test_a_benchmark_says_why_it_has_no_records_of_real_pictures(tmp_path, toy, demonstration):
    rows = [Row("clean"), Row("SIFM", "sifm", {"timesteps": 1})]
    grid = Grid([Sample("a", PICTURE[0], PROMPT, PROMPT)], [toy], [], rows, steps=1, demonstration=demonstration)
    with Store(tmp_path / "run") as store:
        fill(grid, store)
        records = list(store.records())
    assert all(bool(record.edited) == demonstration for record in records) and len(records) == 2
    assert all(("toy" in record.info.get("failed", "")) != demonstration for record in records)
