"""One picture in, one honest answer out: what a person's picture keeps, what is said of it, and what is not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from PIL import PngImagePlugin

import fakes
from sifm_core import load_editor, pipeline, protect
from sifm_core.certificate import certificate, check, paths, write
from sifm_core.cli import main
from sifm_core.cli.pictures import KEY
from sifm_core.errors import ImageError, InputError
from sifm_core.images import load_picture, png_text, rights, save_png
from sifm_core.protection import NOT_PROMISED, STRENGTHS, TRIAL, duration, forecast, held_down
from sifm_core.types import Metric, Step
from sifm_core.visibility import budget_map

X = fakes.images(1, (40, 56))
SECRET = "make her a zombie in zorbland"


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    """A tiny editor of a real class, whose tokenizer reads whole sentences."""
    return load_editor(folder_of(tmp_path_factory.mktemp("long")), device="cpu")


def folder_of(place: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        clip, tokenizer = fakes.clip_config, fakes.clip_tokenizer(77)
        patch.setattr(fakes, "clip_config", lambda **c: clip(**{"max_position_embeddings": 77, **c}))
        patch.setattr(fakes, "clip_tokenizer", lambda length=16: tokenizer)
        fakes.instruct_pix2pix(place)
    (place / "sifm.json").write_text('{"size": 16, "steps": 2}')
    return place


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    for name, strength in STRENGTHS.items():
        monkeypatch.setitem(STRENGTHS, name, strength._replace(steps=3))


def test_every_pixel_keeps_to_its_own_share_of_the_strengths_budget(editor):
    for name, strength in STRENGTHS.items():
        done = protect(X, editor, strength=name)
        allowed = (strength.eps * 255 * budget_map(X, size=editor.work_size(40, 56)) + 1e-3).floor()
        assert (((done.image - X).abs() * 255).round() <= allowed).all() and (done.image != X).any()
        assert done.linf == pytest.approx(float((done.image - X).abs().max()))


def test_grey_stays_grey_and_a_masks_black_stays_as_it_is(editor):
    grey, mask = X[:, :1].expand(-1, 3, -1, -1).contiguous(), torch.ones(40, 56)
    mask[:, :20] = 0
    done = protect(grey, editor, mask=mask).image
    assert (done == done[:, :1]).all() and (done[..., :20] == grey[..., :20]).all() and (done != grey).any()


def test_what_an_upload_does_is_survived_from_normal_on(editor):
    found = {name: protect(X, editor, strength=name) for name in STRENGTHS}
    assert [bool(done.settings["eot"]) for done in found.values()] == [False, True, True]
    assert "Not made to survive" in " ".join(found["subtle"].words())
    assert "jpeg:50-95" in " ".join(found["normal"].words())


def test_a_large_picture_is_transformed_at_the_size_to_which_platforms_scale_it(editor, monkeypatch):
    seen = []
    real = pipeline.transformed
    monkeypatch.setattr("sifm_core.transforms.UPLOADED", 28)
    monkeypatch.setattr(pipeline, "transformed", lambda x, *rest: (seen.append(tuple(x.shape[-2:])), real(x, *rest))[1])
    done = protect(X, editor, strength="normal")
    assert set(seen) == {(20, 28)} and done.image.shape == X.shape and (done.image != X).any()


def test_the_words_say_against_what_for_what_and_what_is_not_promised(editor):
    done = protect(X, [editor, editor], instruction=SECRET)
    words = " ".join(done.words())
    assert words.count(editor.name) == 2 and "instruction that was given" in words and SECRET not in words
    assert all(sentence in words for sentence in NOT_PROMISED) and "levels" in words
    assert "weather" in " ".join(protect(X, editor).words())


def test_a_toy_protects_only_its_own_unless_asked_to_demonstrate():
    toy = load_editor("miniature-ip2p", device="cpu")
    large = fakes.images(1, (64, 72))
    with pytest.raises(InputError, match="is a toy"):
        protect(large, toy)
    done = protect(large, toy, demonstration=True)
    assert done.demonstration and next(done.words()).startswith("A demonstration")
    assert not protect(large[..., :64], toy).demonstration


@pytest.mark.parametrize(
    "wrong, why",
    [
        ({"strength": "strongest"}, "did you mean strong"),
        ({"subject": "spaceship"}, "subject"),
        ({"subject": "auto"}, "subject"),
        ({"mask": X}, "mask"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(editor, wrong, why):
    with pytest.raises(InputError, match=why):
        protect(X, editor, on_step=lambda step: pytest.fail("worked"), **wrong)
    with pytest.raises(InputError, match="at least one editor"):
        protect(X, [])


def test_a_picture_that_could_not_change_is_not_called_protected(editor, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(STRENGTHS, "subtle", STRENGTHS["subtle"]._replace(most=1e-9))
    monkeypatch.setattr("sifm_core.protection.faded", lambda source, protected, most: (source, 0.0))
    with pytest.raises(ImageError, match=r"unprotected: use strength='normal'"):
        protect(X, editor, strength="subtle")
    save_png(X, tmp_path / "a.png")
    assert run(editor, tmp_path / "a.png", "--strength", "subtle") == 2
    assert "--strength normal" in capsys.readouterr().err and not (tmp_path / "a_protected.png").exists()


def test_a_limit_is_kept_by_a_smaller_budget_and_what_is_over_it_then_made_fainter(editor, monkeypatch):
    monkeypatch.setitem(STRENGTHS, "normal", STRENGTHS["normal"]._replace(most=0.1))
    seen: list[Step] = []
    done = protect(X, editor, steps=TRIAL + 2, on_step=seen.append)
    eps, share = STRENGTHS["normal"].eps, done.settings["share"]
    assert done.settings["eps"] == eps and 0 < share < 1 and done.visibility.loss.value <= 0.1
    assert share * done.settings["faded"] < done.faded < 1 and len(done.history) == TRIAL + 2
    whole = eps * 255 * budget_map(X, size=editor.work_size(40, 56))
    allowed = (torch.minimum(whole, share * whole + 1) + 1e-3).floor()
    assert (((done.image - X).abs() * 255).round() <= allowed).all() and (done.image != X).any()
    assert [(step.i, step.n) for step in seen] == [(i + 1, 2 * TRIAL + 2) for i in range(2 * TRIAL + 2)]
    assert (protect(X, editor, steps=TRIAL + 2).image == done.image).all()


def test_a_budget_that_is_held_down_leaves_flat_areas_a_level_and_what_is_masked_nothing():
    mask = torch.tensor([0.0, 0.05, 0.25, 0.6, 1.0]).reshape(1, 1, 1, 5)
    levels = (10 * held_down(mask, 0.2, 10 / 255)).flatten().tolist()
    assert levels == pytest.approx([0, 0.5, 1.5, 2.2, 3.0])
    assert held_down(mask, 1.0, 10 / 255) is mask


@pytest.mark.parametrize("unneeded", ["strong", "short", "not measured", "not visible"])
def test_no_try_is_made_where_nothing_is_to_be_learned_from_it(editor, monkeypatch, unneeded):
    if unneeded == "not measured":
        monkeypatch.setattr("sifm_core.metrics.cvvdp.find_spec", lambda name: None)
        seen = replace(protect(X, editor).visibility, loss=Metric(None, "JOD", "unavailable"))
        monkeypatch.setattr("sifm_core.protection.visibility", lambda *_: seen)
    if unneeded == "not visible":
        monkeypatch.setitem(STRENGTHS, "normal", STRENGTHS["normal"]._replace(most=9.0))
    steps = TRIAL if unneeded == "short" else TRIAL + 1
    done = protect(X, editor, strength="strong" if unneeded == "strong" else "normal", steps=steps)
    assert done.settings["share"] == 1 and len(done.history) == steps


def test_a_forecast_is_in_proportion_to_the_steps(editor):
    few, many = (forecast(X, editor, steps=steps).seconds for steps in (2, 2000))
    assert many > 20 * few


def test_a_limit_that_could_not_be_measured_is_said_not_to_be_kept(editor, monkeypatch, tmp_path):
    seen = replace(protect(X, editor).visibility, loss=Metric(None, "JOD", "unavailable"))
    monkeypatch.setattr("sifm_core.protection.visibility", lambda *_: seen)
    save_png(X, tmp_path / "a.png")
    for strength in STRENGTHS:
        done = protect(X, editor, strength=strength)
        monkeypatch.setitem(done.settings, "eps", 1.0)
        about = certificate(done, save(done.image, tmp_path / "b.png"), load_picture(tmp_path / "a.png"))
        limited = strength != "strong"
        for words in (" ".join(done.words()), " ".join(about["not_promised"])):
            assert (f"could not be held to what {strength} promises" in words) == limited


def test_a_certificate_of_what_was_tested_does_not_say_that_nothing_was(editor, tmp_path):
    done, source = protect(X, editor, strength="subtle"), load_picture(save(X, tmp_path / "a.png"))
    test = {"date": "2026-01-01", "editor": "e", "outcome": "amber"}
    tried = certificate(done, save(done.image, tmp_path / "b.png"), source, tested=[test])
    assert tried["not_promised"] == certificate(done, tmp_path / "b.png", source)["not_promised"][1:]


def test_a_toy_is_called_one_where_it_is_on_its_own_drawings_too(tmp_path):
    small = fakes.images(1, (64, 64))
    done = protect(small, load_editor("miniature-ip2p", device="cpu"))
    assert "Against miniature-ip2p (a toy), and nothing else." in list(done.words())
    file = save(done.image, tmp_path / "b.png")
    write(certificate(done, file, load_picture(save(small, tmp_path / "a.png"))), file)
    assert "miniature-ip2p (a toy)" in paths(file)[1].read_text()
    assert [one.words for one in check(file)[1] if one.what == "protection"] == [
        "made against a toy, which knows its own drawings and nothing else"
    ]


def save(image: torch.Tensor, file: Path) -> Path:
    save_png(image, file)
    return file


@pytest.mark.parametrize("seconds, words", [(0.2, "1 s"), (89, "89 s"), (600, "10 min"), (12_000, "3 h 20 min")])
def test_durations_are_said_as_people_say_them(seconds, words):
    assert duration(seconds) == words


# ---- the command


@pytest.fixture
def pictures(tmp_path, editor, monkeypatch) -> Path:
    """A folder of odd pictures, and one of an editor beside it."""
    monkeypatch.chdir(tmp_path)
    folder = Path("mine")
    folder.mkdir()
    pixels = (X[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    Pil.fromarray(pixels).save(folder / "a.png", dpi=(300, 300))
    exif = Pil.Exif()
    exif[0x013B], exif[0x8298], exif[0x0112], exif[0x010F] = "Ada L.", "(c) Ada", 6, "Camera"
    Pil.fromarray(pixels).save(folder / "b.jfif", "JPEG", exif=exif)
    Pil.fromarray(pixels[..., 0]).save(folder / "grey.tif")
    Pil.fromarray(pixels).save(folder / "c.avif")
    ink = np.zeros((40, 56, 4), np.uint8)
    ink[5:9, 4:50, 3], ink[12:30, 20:24, 3] = 255, 128
    Pil.fromarray(ink).save(folder / "ink.png")
    (folder / "torn.jpg").write_bytes((folder / "b.jfif").read_bytes()[:700])
    (folder / "layers.psd").write_bytes(b"8BPS")
    (folder / "notes.txt").write_text("no picture")
    return folder


def run(editor, *words: object) -> int:
    return main(["protect", *map(str, words), "--against", editor.name, "--device", "cpu"])


def test_a_folder_goes_on_past_what_is_bad_says_so_and_takes_up_where_it_stopped(pictures, editor, capsys):
    assert run(editor, pictures) == 1
    out, err = capsys.readouterr()
    made = sorted(path.name for path in Path("mine_protected").glob("*.png"))
    assert made == ["a.png", "b.png", "c.png", "grey.png", "ink.png"]
    assert "torn.jpg" in err and "layers.psd" in err and "notes.txt" in err and "GB" in err
    assert len(out.strip().splitlines()) == 5
    before = {path: path.stat().st_mtime_ns for path in Path("mine_protected").iterdir()}
    (Path("mine_protected") / "c.png").unlink()
    assert run(editor, pictures, "--json") == 1
    rows = json.loads(capsys.readouterr().out)
    assert sum("earlier" in row for row in rows) == 4 and sum("error" in row for row in rows) == 2
    kept = [path for path, time in before.items() if path.exists() and path.stat().st_mtime_ns == time]
    assert len(kept) == len(before) - 3


def test_a_picture_keeps_what_is_its_own(pictures, editor, capsys):
    assert run(editor, pictures, "--keep-metadata") == 1
    made = Path("mine_protected")
    with Pil.open(made / "a.png") as a, Pil.open(made / "b.png") as b, Pil.open(made / "grey.png") as grey:
        assert a.info["dpi"] == pytest.approx((300, 300), abs=0.1) and grey.mode == "L"
        assert b.size == (40, 56) and dict(b.getexif()) == {0x013B: "Ada L.", 0x8298: "(c) Ada"}
    before, after = (np.asarray(Pil.open(path / "ink.png")) for path in (pictures, made))
    assert (before[..., 3] == after[..., 3]).all() and (before[before[..., 3] == 0] == after[before[..., 3] == 0]).all()
    assert (before != after).any()
    run(editor, pictures / "b.jfif")
    assert rights("mine/b_protected.png") == {} and rights("mine/b.jfif")["Artist"] == "Ada L."


def test_what_is_protected_already_is_left_out(pictures, editor, capsys):
    assert run(editor, pictures / "a.png") == 0
    assert run(editor, pictures / "a.png", pictures / "a_protected.png", "--json") == 0
    rows = json.loads(capsys.readouterr().out[-20_000:].partition("[\n")[2].join(["[\n", ""]))
    assert (sum("already" in row.get("skipped", "") for row in rows) == 1 and len(rows) == 2) and not Path(
        "mine/a_protected_protected.png"
    ).exists()


def test_what_is_edited_is_not_called_protected_nor_is_a_demonstration(pictures, editor, capsys):
    save_png(X, "edited.png", metadata={KEY: "0" * 64, "sifm": {"demonstration": False}})
    save_png(X, "stained.png", metadata={"sifm": {"demonstration": True, "method": "sifm_plus"}})
    assert run(editor, "edited.png", "stained.png") == 0
    out, err = capsys.readouterr()
    assert Path("edited_protected.png").exists() and "stained.png: skipped, a demonstration" in err
    assert "already" not in out + err and not Path("stained_protected.png").exists()


@pytest.mark.parametrize("sources", [["mine"], ["mine/a.jpg"], ["mine/a.jpg", "mine/b.jfif"]])
def test_another_original_is_never_overwritten(pictures, editor, sources, capsys):
    shutil.copy("mine/b.jfif", "mine/a.jpg")
    before = {path: path.read_bytes() for path in pictures.iterdir()}
    assert run(editor, *sources, "-o", "mine") == 2
    said = capsys.readouterr().err
    assert "choose another output" in said
    assert {path: path.read_bytes() for path in pictures.iterdir()} == before


def test_a_demonstrations_name_costs_no_picture_that_has_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_png(fakes.images(1, (64, 72)), "photo.png")
    shutil.copy("photo.png", "demonstration_photo_protected.png")
    before = Path("demonstration_photo_protected.png").read_bytes()
    command = ["protect", "photo.png", "--against", "miniature-ip2p", "--device", "cpu", "--demonstration"]
    assert main(command) == 2 and "not made by sifm" in capsys.readouterr().err
    assert Path("demonstration_photo_protected.png").read_bytes() == before


def test_a_picture_without_a_true_certificate_is_done_again_however_the_folder_is_typed(pictures, editor, capsys):
    for path in pictures.iterdir():
        if path.name not in ("a.png", "c.avif", "grey.tif"):
            path.unlink()
    assert run(editor, pictures) == 0
    made = Path("mine_protected")
    paths(made / "a.png")[0].unlink()
    other = json.loads(paths(made / "c.png")[0].read_text())
    other["picture"]["sha256"] = "0" * 64
    paths(made / "c.png")[0].write_text(json.dumps(other))
    capsys.readouterr()
    assert run(editor, pictures.resolve(), "--json") == 0
    rows = {Path(row["source"]).stem: "earlier" in row for row in json.loads(capsys.readouterr().out)}
    assert rows == {"a": False, "c": False, "grey": True} and check(made / "c.png")[1][0].good


def test_a_name_too_long_for_a_certificate_costs_itself(pictures, editor, capsys):
    for path in pictures.iterdir():
        path.unlink()
    save_png(X, "mine/a.png")
    save_png(X, f"mine/{'n' * 240}.png")
    assert run(editor, pictures) == 1 and "at most 255 bytes" in capsys.readouterr().err
    assert Path("mine_protected/a.png").exists()


@pytest.mark.parametrize("typed, place", [(".", "mine_protected"), ("..", "{}_protected")])
def test_the_folder_one_is_in_and_the_one_above_go_beside_themselves(pictures, editor, monkeypatch, typed, place):
    for path in pictures.iterdir():
        path.unlink()
    save_png(X, "mine/a.png")
    save_png(X, "a.png")
    beside = (Path.cwd() if typed == "." else Path.cwd().parent) / place.format(Path.cwd().name)
    monkeypatch.chdir("mine")
    run(editor, typed)
    assert (beside / "a.png").exists() and not [path for path in Path.cwd().iterdir() if path.is_dir()]


def test_a_picture_that_is_not_there_and_a_wrong_subject_are_said_before_an_editor_is_loaded(
    pictures, editor, monkeypatch, capsys
):
    monkeypatch.setattr("sifm_core.cli.protect.load_editor", lambda *_, **__: pytest.fail("loaded"))
    assert run(editor, "nope.jpg") == 2 and "no such file" in capsys.readouterr().err
    assert run(editor, "mine/a.png", "--subject", "auto") == 2 and "subject" in capsys.readouterr().err


def test_a_transparent_picture_is_checked_on_the_background_on_which_it_was_protected(pictures, editor, monkeypatch):
    assert run(editor, "mine/ink.png", "--background", "#336699") == 0
    made, seen, real = Path("mine/ink_protected.png"), [], load_picture
    monkeypatch.setattr(
        "sifm_core.certificate.load_picture", lambda path, on=None: (seen.append(on), real(path, on))[1]
    )
    assert all(one.good is not False for one in check(made, Path("mine/ink.png"))[1]) and "#336699" in seen
    with Pil.open(made) as file:
        opaque = file.convert("RGBA")
    alpha = np.asarray(opaque)[..., 3].copy()
    alpha[5, 4] = 77
    opaque.putalpha(Pil.fromarray(alpha))
    opaque.save(made)
    assert check(made)[1][0].good is False


def test_a_demonstration_says_so_in_name_words_and_certificate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_png(fakes.images(1, (64, 72)), "photo.png")
    command = ["protect", "photo.png", "--against", "miniature-ip2p", "--device", "cpu"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "--demonstration" in said and "--against instruct-pix2pix" in said
    assert main([*command, "--demonstration"]) == 0
    made = Path("demonstration_photo_protected.png")
    assert "protects nothing" in capsys.readouterr().out and json.loads(png_text(made, "sifm"))["demonstration"]
    assert "no protection" in paths(made)[1].read_text()
    assert main(["certificate", str(made)]) == 0 and "it protects nothing" in capsys.readouterr().out


def test_without_an_editor_it_says_which_there_are_how_large_and_how_to_get_one(pictures, monkeypatch, capsys):
    monkeypatch.setattr("sifm_core.protection.in_cache", lambda name, file: name)
    assert main(["protect", "mine/a.png"]) == 1
    said = capsys.readouterr().err
    assert all(word in said for word in ("--against instruct-pix2pix", "--download", "4.3 GB", "folder")), said


# ---- the certificate


@pytest.fixture
def made(pictures, editor, capsys) -> Path:
    assert run(editor, pictures / "a.png", "--instruction", SECRET) == 0
    capsys.readouterr()
    return Path("mine/a_protected.png")


def test_a_certificate_holds_for_the_file_it_lies_beside(made, capsys):
    assert main(["certificate", str(made)]) == 0
    assert main(["certificate", str(made), "--source", "mine/a.png", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))["findings"]
    assert [one["good"] for one in found[:3]] == [True, True, True]
    with Pil.open(made) as same:  # saved anew, with other bytes and the same pixels
        same.save(made, compress_level=1)
    assert main(["certificate", str(paths(made)[0])]) == 0


def test_another_pixel_or_another_source_is_found(made, capsys):
    image = load_picture(made).pixels
    image[0, 0, 3, 3] = 1 - image[0, 0, 3, 3].round()
    save_png(image, made)
    assert main(["certificate", str(made), "--source", "mine/a.png"]) == 1
    assert [one.good for one in check(made, Path("mine/a.png"))[1]][:3] == [False, True, False]
    assert main(["certificate", str(made), "--source", "mine/grey.tif"]) == 1


def test_nothing_private_is_in_file_certificate_or_page(made, editor):
    whole = [path.read_text() for path in paths(made)] + [made.read_bytes().decode("latin1")]
    private = (SECRET, "zorbland", "mine/", editor.name, Path(editor.name).name, str(Path.home()))
    assert not [word for word in private for text in whole if word in text]
    assert all("http" not in text.replace("http://www.w3.org", "") for text in whole[:2])


@pytest.mark.parametrize("text", ["{", "[]", '{"certificate": 9}', '{"certificate": 1, "picture": {"sha256": 3}}'])
def test_a_certificate_that_is_none_is_refused_in_a_sentence(made, text, capsys):
    paths(made)[0].write_text(text)
    assert main(["certificate", str(made)]) == 2 and "expected a certificate" in capsys.readouterr().err
    paths(made)[0].unlink()
    assert main(["certificate", str(made)]) == 2


# ---- who made it


def test_rights_are_read_where_people_write_them_and_nothing_else_is(tmp_path):
    picture, text = Pil.new("RGB", (20, 20)), PngImagePlugin.PngInfo()
    text.add_itxt("Author", "Ödön\nvon H.")
    text.add_itxt("Comment", "at home")
    picture.save(tmp_path / "text.png", pnginfo=text)
    assert rights(tmp_path / "text.png") == {"Artist": "Ödön von H."}
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<r:Description xmlns:d="http://purl.org/dc/elements/1.1/"><d:rights><r:Alt><r:li>mine</r:li></r:Alt></d:rights>'
        "</r:Description></r:RDF></x:xmpmeta>"
    )
    picture.save(tmp_path / "xmp.jpg", xmp=xmp.encode())
    assert rights(tmp_path / "xmp.jpg") == {"Copyright": "mine"}
    hostile = '<!DOCTYPE a [<!ENTITY b "cc">]>' + xmp.replace("mine", "&b;")
    picture.save(tmp_path / "hostile.jpg", xmp=hostile.encode())
    assert rights(tmp_path / "hostile.jpg") == {}
    save_png(fakes.images(), tmp_path / "kept.png", rights={"Artist": "Ödön"})
    assert rights(tmp_path / "kept.png") == {"Artist": "Ödön"}


def test_heic_and_avif_are_read_where_their_libraries_are(tmp_path, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    pixels = np.full((32, 48, 3), 90, np.uint8)
    for suffix in ("heic", "avif"):
        Pil.fromarray(pixels).save(tmp_path / f"a.{suffix}", quality=100)
        assert load_picture(tmp_path / f"a.{suffix}").pixels.shape == (1, 3, 32, 48)
        monkeypatch.setattr("sifm_core.images._readable", lambda: ("PNG",))
        with pytest.raises(InputError, match="pip install"):
            load_picture(tmp_path / f"a.{suffix}")
        monkeypatch.undo()
