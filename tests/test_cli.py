"""The command line on the tiny editor: the fixed spellings, JSON, folders, real photographs."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image as Pil

import fakes
import sifm_core.images
from sifm_core import cli
from sifm_core.cli import output
from sifm_core.cli.judge import _ask as ask_in_parts
from sifm_core.images import load_picture
from sifm_core.types import Case, Step
from toy import ToyJudge

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
EPS = 0.03


@pytest.fixture(scope="module")
def editor(ip2p_folder, tmp_path_factory) -> Path:
    """The tiny editor with its native size and steps in the folder, as shipped editors have them."""
    folder = tmp_path_factory.mktemp("editor") / "tiny"
    shutil.copytree(ip2p_folder, folder)
    settings = {"steps": 2, "guidance_scale": 2.0, "image_guidance_scale": 1.2, "size": 16}
    (folder / "sifm.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("cat.png", "photos/a.png", "photos/b.png")):
        Path(name).parent.mkdir(exist_ok=True)
        Pil.fromarray((fakes.images(1, (48, 60), i)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(name)
    return tmp_path


@pytest.fixture
def patient(monkeypatch) -> None:
    """No progress on stderr, however slow the machine is."""
    monkeypatch.setattr(output, "QUIET_SECONDS", 1e9)


@pytest.fixture
def sifm(capsys, patient):
    """Run the command line; its document (with --json) or text. Fails when it fails."""

    def run(*words: object) -> object:
        assert cli.main([str(word) for word in words]) == 0, capsys.readouterr().err
        out, err = capsys.readouterr()
        assert err == ""
        return json.loads(out) if "--json" in words else out

    return run


def immunize(editor: Path, *words: object) -> list[object]:
    return ["immunize", *words, "--editor", editor, "--prompt", "a b", "--steps", 2, "--option", "timesteps=2"]


def pixels(path: object) -> np.ndarray:
    return np.asarray(Pil.open(str(path))).astype(int)


def test_immunize_edit_metrics_in_the_fixed_spellings(here, editor, sifm):
    words = ["--method", "sifm", "--eps", "8/255", "--alpha", "8/255", "--seed", 3, "--json"]
    done = sifm(*immunize(editor, "cat.png", "-o", "safe.png"), *words)
    assert done["output"] == "safe.png" and done["eps"] == pytest.approx(8 / 255)
    assert 7 <= np.abs(pixels("safe.png") - pixels("cat.png")).max() <= 8
    assert done["linf"] == pytest.approx(np.abs(pixels("safe.png") - pixels("cat.png")).max() / 255)
    for source, edited in (("cat.png", "one.png"), ("safe.png", "two.png"), ("cat.png", "again.png")):
        sifm("edit", source, "-o", edited, "--editor", editor, "--prompt", "a", "--seed", 7)
    assert Path("one.png").read_bytes() == Path("again.png").read_bytes() != Path("two.png").read_bytes()
    assert pixels("one.png").shape == pixels("cat.png").shape
    measured = sifm("metrics", "one.png", "two.png", "--json")
    assert list(measured) == ["psnr", "ssim", "vifp", "fsim", "lpips"]
    assert all(set(m) == {"value", "definition", "reason"} for m in measured.values())
    assert measured["psnr"]["value"] > 0 and (measured["lpips"]["value"] is None) == bool(measured["lpips"]["reason"])


def test_same_seed_same_file(here, editor, sifm):
    for name in ("one.png", "two.png"):
        sifm(*immunize(editor, "cat.png", "-o", name), "--seed", 4)
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()


def test_the_file_says_how_it_was_made_but_not_where_or_for_what(here, editor, sifm):
    sifm(*immunize(editor, "cat.png", "-o", "safe.png"))
    said = Pil.open("safe.png").text["sifm"]
    assert json.loads(said)["method"] == "sifm" and json.loads(said)["eps"] == 0.03
    assert str(editor) not in said and "a b" not in said


def test_a_folder_gives_a_folder_and_a_list(here, editor, sifm):
    done = sifm(*immunize(editor, "photos", "-o", "safe"), "--json")
    assert [Path(d["output"]).name for d in done] == ["a.png", "b.png"] and len(list(Path("safe").iterdir())) == 2
    measured = sifm("metrics", "photos", "safe", "--metric", "psnr", "--json")
    assert [Path(m["distorted"]).name for m in measured] == ["a.png", "b.png"]
    assert all(m["psnr"]["value"] > 25 for m in measured)


def test_a_folder_may_have_a_dot_in_its_name(here, editor, sifm):
    for _ in range(2):  # new, then there
        done = sifm("edit", "photos", "-o", "out-eps0.03", "--editor", editor, "--prompt", "a", "--json")
        assert [d["output"] for d in done] == ["out-eps0.03/a.png", "out-eps0.03/b.png"]
    assert cli.main(["edit", "photos", "-o", "out.png", "--editor", str(editor), "--prompt", "a"]) == 2


@pytest.mark.parametrize("words", [["immunize"], ["edit"], ["purify", "blur:1"]])
def test_one_picture_of_a_folder_is_in_memory_at_a_time(here, editor, sifm, monkeypatch, words):
    for i in range(6):
        shutil.copy("cat.png", f"photos/{i}.png")
    alive, most = weakref.WeakSet(), []
    plain = sifm_core.images.load_picture

    def load(path, *background):
        picture = plain(path, *background)
        alive.add(picture.pixels)
        most.append(len(alive))
        return picture

    monkeypatch.setattr(sifm_core.images, "load_picture", load)
    also = {"purify": [], "edit": ["--prompt", "a"], "immunize": ["--prompt", "a", "--steps", 1]}[words[0]]
    sifm(words[0], "photos", *words[1:], "-o", "out", "--editor", editor, *also)
    assert len(most) >= 16 and max(most) <= 2


def test_an_existing_folder_takes_a_single_picture_by_its_name(here, editor, sifm):
    Path("out").mkdir()
    sifm("edit", "cat.png", "-o", "out", "--editor", editor, "--prompt", "a")
    assert Path("out/cat.png").is_file()


def test_mask_keeps_the_black_part(here, editor, sifm):
    mask = np.zeros((48, 60), np.uint8)
    mask[:, 30:] = 255
    Pil.fromarray(mask).save("mask.png")
    sifm(*immunize(editor, "cat.png", "-o", "safe.png"), "--mask", "mask.png")
    change = np.abs(pixels("safe.png") - pixels("cat.png"))
    assert change[:, :30].max() == 0 < change[:, 30:].max()


def test_options_of_the_method_arrive_as_its_own_types(here, editor, sifm):
    words = ["--option", "layers=mid_block", "--option", "lam=1", "--option", "timesteps=[100, 500]", "--json"]
    done = sifm(*immunize(editor, "cat.png", "-o", "safe.png"), *words)
    assert done["options"] == {"timesteps": [100, 500], "layers": "mid_block", "lam": 1.0}


def test_options_of_the_editor_change_the_edit(here, editor, sifm):
    for name, strength in (("one.png", 1.5), ("two.png", 6)):
        words = ["--editor", editor, "--prompt", "a", "--option", f"guidance_scale={strength}"]
        sifm("edit", "cat.png", "-o", name, *words)
    assert Path("one.png").read_bytes() != Path("two.png").read_bytes()


# ---- photographs


def wide() -> Pil.Image:
    return Pil.open(PHOTOGRAPHS / "coffee.png").resize((4000, 500))


def rotated(path: Path) -> None:
    exif = Pil.Exif()
    exif[0x0112] = 6  # the camera was held upright: show it turned by 90 degrees
    Pil.open(PHOTOGRAPHS / "rocket.jpg").save(path, exif=exif)


@pytest.mark.parametrize(
    "name, size, has_alpha",
    [
        ("astronaut.png", (512, 512), False),
        ("chelsea.png", (451, 300), False),  # odd
        ("camera.png", (512, 512), False),  # greyscale
        ("logo.png", (500, 500), True),
        ("rotated.jpg", (427, 640), False),
        ("wide.png", (4000, 500), False),
    ],
)
def test_photographs_keep_size_orientation_alpha_and_budget(here, editor, sifm, name, size, has_alpha):
    source = PHOTOGRAPHS / name
    if name == "wide.png":
        source = here / name
        wide().save(source)
    elif name == "rotated.jpg":
        source = here / name
        rotated(source)
    sifm(*immunize(editor, source, "-o", "safe.png"), "--eps", EPS, "--alpha", EPS)
    saved, clean = Pil.open("safe.png"), load_picture(source)
    assert saved.size == size
    assert saved.mode == ("RGBA" if has_alpha else "RGB")
    change = np.abs(np.asarray(saved.convert("RGB")).astype(int) - clean.pixels[0].permute(1, 2, 0).numpy() * 255)
    assert 5 < change.max() <= EPS * 255
    if has_alpha:
        assert np.array_equal(np.asarray(saved)[..., 3], np.asarray(Pil.open(source))[..., 3])
    if name == "rotated.jpg":
        upright = np.asarray(Pil.open(source).transpose(Pil.Transpose.ROTATE_270).convert("RGB")).astype(int)
        assert np.abs(np.asarray(saved).astype(int) - upright).max() <= EPS * 255


# ---- judges


@pytest.fixture
def toy_judges(monkeypatch) -> None:
    judges = {"toy:hard": ToyJudge("toy:hard", 0.0), "toy:soft": ToyJudge("toy:soft", 1.0)}
    judges["toy:mute"] = ToyJudge("toy:mute", state="refused")
    monkeypatch.setattr("sifm_core.judges.load_judge", judges.__getitem__)


@pytest.mark.parametrize("judges, failed", [(["hard"], True), (["soft"], False), (["hard", "soft"], False)])
def test_judges_must_agree(here, sifm, toy_judges, judges, failed):
    asked = [word for judge in judges for word in ("--judge", f"toy:{judge}")]
    said = sifm("judge", "cat.png", "photos/a.png", "--prompt", "a", *asked, "--json")
    assert said["edit_failed"] is failed
    assert [v["judge"] for v in said["verdicts"]] == [f"toy:{judge}" for judge in judges]


def test_a_judge_that_gives_no_answer_leaves_it_open_which_the_exit_code_says(here, toy_judges, capsys):
    words = [
        "judge",
        "cat.png",
        "photos/a.png",
        "--prompt",
        "a",
        "--judge",
        "toy:hard",
        "--judge",
        "toy:mute",
        "--json",
    ]
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["edit_failed"] is None and "1 of 2 verdicts are missing (refused)" in err


def test_judging_folders_and_text(here, sifm, toy_judges):
    said = sifm("judge", "photos", "photos", "--prompt", "a", "--judge", "toy:hard", "--json")
    assert [s["edit_failed"] for s in said] == [True, True]
    text = sifm("judge", "cat.png", "cat.png", "--prompt", "a", "--judge", "toy:soft")
    assert "cat.png: the edit works" in text and "toy:soft" in text


def test_pairs_are_judged_in_parts_and_in_order(here, sifm, toy_judges, monkeypatch):
    monkeypatch.setattr("sifm_core.cli.judge.AT_ONCE", 2)
    for i in range(3):
        shutil.copy("cat.png", f"photos/{i}.png")
    said = sifm("judge", "photos", "photos", "--prompt", "a", "--judge", "toy:hard", "--judge", "toy:soft", "--json")
    assert [Path(s["source"]).stem for s in said] == ["0", "1", "2", "a", "b"]
    assert [[v["judge"] for v in s["verdicts"]] for s in said] == [["toy:hard", "toy:soft"]] * 5
    steps: list[Step] = []

    class InJobs(ToyJudge):
        def judge(self, cases, *, on_step=None):
            on_step(Step("batch", 4, 4))
            on_step(Step("judge", len(cases), len(cases)))
            return super().judge(cases)

    pairs = [(Path("cat.png"), Path("cat.png"))] * 3
    pixels = load_picture("cat.png").pixels[0]
    ask_in_parts(InJobs("toy:jobs"), pairs, lambda pair: Case(pixels, pixels, "a"), 2, steps.append)
    assert all(step.i <= step.n for step in steps) and steps[-1].i == 3


def test_no_answer_at_all_is_a_failure_that_still_prints_the_verdicts(here, toy_judges, capsys):
    assert cli.main(["judge", "cat.png", "cat.png", "--prompt", "a", "--judge", "toy:mute", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["verdicts"][0]["state"] == "refused"
    assert "all verdicts are missing (refused) and say why" in err and err.count("\n") == 1


# ---- looking around


def test_list_names_what_there_is(sifm):
    tables = sifm("list", "--json")
    assert "miniature-ip2p" in tables["editors"] and "miniature" in tables["judges"]
    assert tables["methods"]["sifm"]["options"]["lam"]["default"] == 0.1
    assert list(sifm("list", "metrics", "--json"))[:2] == ["psnr", "ssim"]
    assert "photoguard_encoder" in sifm("list", "methods")


def test_help_and_version_end_well(capsys):
    for words in (["--help"], ["immunize", "--help"], ["--version"]):
        assert cli.main(words) == 0
    assert "--eps" in capsys.readouterr().out


# ---- progress


def test_no_command_shows_the_commands_and_nothing_else(capsys):
    assert cli.main([]) == 2
    shown = "".join(capsys.readouterr())
    assert "protect" in shown and not any(line.strip() == "sifm:" for line in shown.splitlines())


def test_progress_on_a_terminal_goes_to_stderr_alone(monkeypatch, capsys):
    from sifm_core.types import Step

    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with output.progress() as on_step:
        for i in range(3):
            on_step("cat.png")(Step("immunize", i + 1, 3, loss=0.5))
    out, err = capsys.readouterr()
    assert out == "" and "cat.png" in err


def test_without_a_terminal_a_line_says_how_long_it_takes(monkeypatch, capsys):
    from sifm_core.types import Step

    clock = iter(range(0, 100, 6))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with output.progress() as bars:
        on_step = bars("cat.png")
        for i in range(4):
            on_step(Step("immunize", i + 1, 4))
    out, err = capsys.readouterr()
    assert out == "" and "immunize cat.png 50%, 12 s left" in err
    assert torch.is_grad_enabled()
