"""Wrong input to the command line: one clear line on stderr, the right exit code, no traceback, nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pil

import fakes
from sifm_core import cli, pipeline
from sifm_core.editors import load_editor
from sifm_core.errors import ImageError, InputError, LayerError, SifmError
from sifm_core.images import load_image

IMMUNIZE = "immunize cat.png -o out.png --prompt a --editor {editor} --steps 1 --option timesteps=1"
EDIT = "edit cat.png -o out.png --prompt a --editor {editor}"

CASES: dict[str, tuple[str, int, str]] = {
    # pictures
    "missing file": (IMMUNIZE.replace("cat.png", "dog.png"), 2, "no such file"),
    "not a picture": (IMMUNIZE.replace("cat.png", "text.png"), 2, "convert"),
    "animated": (IMMUNIZE.replace("cat.png", "moving.gif"), 2, "frames"),
    "truncated": (IMMUNIZE.replace("cat.png", "half.png"), 2, "half.png"),
    "empty file": (IMMUNIZE.replace("cat.png", "empty.png"), 2, "empty.png"),
    "too small": (IMMUNIZE.replace("cat.png", "dot.png"), 2, "16x16"),
    "folder without pictures": (IMMUNIZE.replace("cat.png", "nothing").replace("out.png", "out"), 2, "found none"),
    "folder to a file": (IMMUNIZE.replace("cat.png", "photos"), 2, "folder"),
    "edit a missing file": (EDIT.replace("cat.png", "dog.png"), 2, "no such file"),
    # outputs
    "lossy output": (IMMUNIZE.replace("out.png", "out.jpg"), 2, "out.png"),
    "lossy output of an edit": (EDIT.replace("out.png", "out.webp"), 2, "out.png"),
    "output without suffix": (IMMUNIZE.replace("out.png", "out"), 2, "no suffix"),
    "output below a file": (IMMUNIZE.replace("out.png", "cat.png/out.png"), 2, "cannot be written"),
    "output over its source": (IMMUNIZE.replace("out.png", "cat.png"), 2, "overwrite"),
    "no output given": ("immunize cat.png --prompt a", 2, "--out"),
    # numbers
    "eps 0": (f"{IMMUNIZE} --eps 0", 2, "eps"),
    "eps negative": (f"{IMMUNIZE} --eps -0.03", 2, "eps"),
    "eps above 1": (f"{IMMUNIZE} --eps 8", 2, "eps"),
    "eps under one level": (f"{IMMUNIZE} --eps 0.001", 2, "1/255"),
    "eps text": (f"{IMMUNIZE} --eps small", 2, "0.03 or 8/255"),
    "eps by zero": (f"{IMMUNIZE} --eps 8/0", 2, "0.03 or 8/255"),
    "eps nan": (f"{IMMUNIZE} --eps nan", 2, "eps"),
    "alpha 0": (f"{IMMUNIZE} --alpha 0", 2, "alpha"),
    "no steps": (f"{IMMUNIZE} --steps 0", 2, "steps"),
    "steps negative": (f"{IMMUNIZE} --steps -5", 2, "steps"),
    "steps text": (f"{IMMUNIZE} --steps many", 2, "steps"),
    "seed negative": (f"{EDIT} --seed -1", 2, "seed"),
    "seed too large": (f"{IMMUNIZE} --seed 99999999999999999999", 2, "seed"),
    # prompts
    "no prompt": ("immunize cat.png -o out.png", 2, "--prompt"),
    "empty prompt": (f"{IMMUNIZE} --prompt=", 2, "prompt"),
    "blank prompt of an edit": (f"{EDIT} --prompt={'{blank}'}", 2, "prompt"),
    "blank prompt for a judge": ("judge cat.png cat2.png --prompt={blank}", 2, "prompt"),
    # names
    "unknown method": (f"{IMMUNIZE} --method sfim", 2, "did you mean sifm"),
    "unknown editor": (EDIT.replace("{editor}", "miniature-ip2"), 2, "did you mean miniature-ip2p"),
    "unknown judge backend": ("judge cat.png cat2.png --prompt a --judge gemni:x", 2, "did you mean gemini"),
    "unknown miniature judge": ("judge cat.png cat2.png --prompt a --judge miniature:cnv", 2, "did you mean conv"),
    "judge without model": ("judge cat.png cat2.png --prompt a --judge gemini", 2, "backend:model"),
    "same judge twice": (
        "judge cat.png cat2.png --prompt a --judge miniature:renderer --judge miniature:renderer",
        2,
        "different",
    ),
    "unknown metric": ("metrics cat.png cat2.png --metric pnsr", 2, "did you mean psnr"),
    "unknown list": ("list metods", 2, "did you mean methods"),
    "unknown command": ("imunize cat.png", 2, "imunize"),
    "unknown flag": (f"{EDIT} --epsilon 3", 2, "--epsilon"),
    "unknown device": (f"{EDIT} --device warp9", 2, "warp9"),
    "unknown dtype": (f"{EDIT} --dtype float23", 2, "float32"),
    # options of methods and editors
    "unknown option": (f"{IMMUNIZE} --option timestep=3", 2, "did you mean timesteps"),
    "option of another method": (f"{IMMUNIZE} --method random_noise", 2, "pattern"),
    "option without value": (f"{IMMUNIZE} --option timesteps", 2, "KEY=VALUE"),
    "option of another type": (f"{IMMUNIZE} --option lam=strong", 2, "lam"),
    "option outside its list": (f"{IMMUNIZE} --option norm=l7", 2, "l1"),
    "unknown layer": (f"{IMMUNIZE} --option layers=mid_blok", 2, "mid_block"),
    "unknown option of the editor": (f"{EDIT} --option guidance_scal=3", 2, "guidance_scale"),
    # masks and pairs
    "missing mask": (f"{IMMUNIZE} --mask nowhere.png", 2, "no such file"),
    "mask of another size": (f"{IMMUNIZE} --mask wide.png", 2, "24 wide and 24 high, got 40 wide and 24 high"),
    "black mask": (f"{IMMUNIZE} --mask black.png", 2, "mask"),
    "metrics of two sizes": ("metrics cat.png wide.png", 2, "24"),
    "metrics of a missing file": ("metrics cat.png dog.png", 2, "no such file"),
    "metrics of file and folder": ("metrics cat.png photos", 2, "one of each"),
    "metrics of unlike folders": ("metrics photos nothing", 2, "same names"),
    "judge of two sizes": ("judge cat.png wide.png --prompt a --judge miniature:renderer", 2, "size"),
    # editors
    "editor folder missing": (EDIT.replace("{editor}", "./models/none"), 1, "no such folder"),
    "editor is no pipeline": (EDIT.replace("{editor}", "photos"), 1, "model_index.json"),
    "editor is a file": (EDIT.replace("{editor}", "cat.png"), 1, "cat.png"),
    "editor of another class": (EDIT.replace("{editor}", "other-class"), 1, "expected one of"),
    "hub editor not here": (EDIT.replace("{editor}", "someone/some-editor"), 1, "not in the local cache"),
    "plan of an unknown editor": ("plan --editor miniature-ip2", 2, "did you mean miniature-ip2p"),
    "plan of no timesteps": ("plan --editor {editor} --timesteps 0", 2, "timesteps"),
    "plan of an unknown layer": ("plan --editor {editor} --layers mid_blok", 2, "mid_block"),
    "layers of what is not here": ("layers someone/some-editor", 1, "not in the local cache"),
    "probe of a missing picture": ("layers {editor} --probe dog.png", 2, "no such file"),
    "probe of an unknown layer": ("layers {editor} --probe cat.png --layer mid_blok", 2, "mid_block"),
    # judges that cannot be set up, or cannot answer
    "no key": ("judge cat.png cat2.png --prompt a --judge gemini:gemini-2.5-pro", 1, "GEMINI_API_KEY"),
    # the demo
    "demo without pictures": ("demo --out demo --images 0", 2, "images"),
    "demo with negative steps": ("demo --out demo --steps -1", 2, "steps"),
    "demo into a file": ("demo --out cat.png", 2, "folder"),
    "demo with unseen -1": ("demo --out demo --unseen -1", 2, "unseen"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of every wrong kind, and two right ones of 24x24."""
    here = tmp_path_factory.mktemp("input")
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    for name in ("cat.png", "cat2.png", "photos/a.png", "photos/b.png"):
        (here / name).parent.mkdir(exist_ok=True)
        Pil.fromarray(noise).save(here / name)
    Pil.fromarray(noise).resize((40, 24)).save(here / "wide.png")
    Pil.fromarray(noise).resize((8, 8)).save(here / "dot.png")
    Pil.fromarray(noise * 0).save(here / "black.png")
    frames = [Pil.fromarray(noise), Pil.fromarray(255 - noise)]
    frames[0].save(here / "moving.gif", save_all=True, append_images=frames[1:])
    (here / "half.png").write_bytes((here / "cat.png").read_bytes()[:900])
    (here / "empty.png").write_bytes(b"")
    (here / "text.png").write_text("not a picture")
    (here / "nothing").mkdir()
    (here / "other-class").mkdir()
    (here / "other-class" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return here


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def arguments(case: str, editor: Path) -> list[str]:
    return [word.format(editor=editor, blank="  ") for word in case.split()]


@pytest.mark.parametrize("case, code, said", CASES.values(), ids=CASES)
def test_wrong_input(case, code, said, folder, ip2p_folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert cli.main(arguments(case, ip2p_folder)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1 and err.startswith("sifm: "), err
    assert said in err
    assert "Traceback" not in err
    assert sorted(folder.rglob("*")) == before


NAN = fakes.images(1, 16).index_fill(-1, torch.tensor([3]), float("nan"))
LIBRARY: dict[str, tuple[dict, type[SifmError], str]] = {
    "NaN": ({"image": NAN}, ImageError, "nan"),
    "infinite": ({"image": NAN.nan_to_num(float("inf"))}, ImageError, "inf"),
    "1x1": ({"image": torch.rand(1, 3, 1, 1)}, ImageError, "at least 16x16 pixels, but got 1x1"),
    "8000x1": ({"image": torch.rand(1, 3, 1, 8000)}, ImageError, "but got 8000x1"),
    "empty batch": ({"image": torch.rand(0, 3, 16, 16)}, ImageError, "(B, 3, H, W)"),
    "whole numbers": ({"image": torch.ones(1, 3, 16, 16, dtype=torch.uint8)}, ImageError, "float tensor"),
    "channels last": ({"image": torch.rand(1, 16, 16, 3)}, ImageError, "channels come first"),
    "CMYK": ({"image": torch.rand(1, 4, 16, 16)}, ImageError, "(B, 3, H, W)"),
    "16-bit values": ({"image": fakes.images() * 65535}, ImageError, "[0, 1]"),
    "negative eps": ({"eps": -0.03}, InputError, "eps"),
    "eps in levels": ({"eps": 8}, InputError, "eps"),
    "no steps": ({"steps": 0}, InputError, "steps"),
    "empty T": ({"timesteps": []}, InputError, "timesteps"),
    "T beyond the schedule": ({"timesteps": [1000]}, InputError, "999"),
    "unknown layer": ({"layers": "mid_blok"}, LayerError, "mid_block"),
    "no layer": ({"layers": ()}, LayerError, "at least one layer"),
    "layers of unequal shapes": ({"layers": ("mid_block", "up_blocks.1")}, LayerError, "aggregation='per_layer'"),
    "negative lambda": ({"lam": -1.0}, InputError, "lam"),
    "only the distance, from the clean image": (
        {"objective": "dist", "random_start": False},
        InputError,
        "random_start=True",
    ),
    "prompt too long": ({"prompt": "a " * 40}, InputError, "reads 16 tokens"),
    "further prompt too long": ({"prompts": ["a " * 40]}, InputError, "reads 16 tokens"),
    "no prompt": ({"prompt": ""}, InputError, "instruction"),
    "two prompts for one": ({"prompt": ["a", "b"]}, InputError, "one prompt or 1"),
    "two seeds for one": ({"seed": [1, 2]}, InputError, "one seed or 1"),
    "black mask": ({"mask": torch.zeros(16, 16)}, ImageError, "no pixel may change"),
    "unknown ball": ({"ball": "linff"}, InputError, "did you mean linf"),
    "unknown schedule": ({"schedule": "cosinus"}, InputError, "did you mean cosine"),
    "unknown transform": ({"eot": ("jpg:75",)}, InputError, "did you mean jpeg"),
    "transform out of range": ({"eot": ("jpeg:0",)}, InputError, "quality from 1 to 100"),
    "unknown method": ({"method": "sfim"}, InputError, "did you mean sifm"),
    "unknown further editor": ({"also": ["miniature-ip2q"]}, InputError, "did you mean miniature-ip2p"),
}


@pytest.mark.parametrize("changes, kind, said", LIBRARY.values(), ids=LIBRARY)
def test_wrong_input_to_the_library(changes, kind, said, library_editor):
    arguments = {"image": fakes.images(), "prompt": "a", "steps": 1, **changes}
    if "method" not in changes:
        arguments.setdefault("timesteps", 1)
    with pytest.raises(kind) as caught:
        pipeline.immunize(arguments.pop("image"), library_editor, **arguments)
    assert said in str(caught.value)


@pytest.fixture(scope="module")
def library_editor(ip2p_folder):
    return load_editor(ip2p_folder, device="cpu", size=16)


@pytest.mark.parametrize("mode", ["CMYK", "I;16", "8000 px"])
def test_unusual_pictures_are_no_errors(mode, library_editor, tmp_path):
    size = (8000, 16) if mode == "8000 px" else (24, 24)
    if mode == "I;16":
        Pil.fromarray(np.full(size, 40000, np.uint16)).save(tmp_path / "x.png")
    else:
        Pil.new("CMYK" if mode == "CMYK" else "RGB", size, 90).save(tmp_path / "x.tif")
    x = load_image(next(tmp_path.iterdir()))
    done = pipeline.immunize(x, library_editor, prompt="a", steps=1, timesteps=1)
    assert done.image.shape == (1, 3, size[1], size[0]) and 0 < done.linf <= 0.03


def test_the_installed_command_does_the_same(folder, ip2p_folder):
    case, code, said = CASES["missing file"]
    command = [sys.executable, "-m", "sifm_core.cli", *arguments(case, ip2p_folder)]
    env = {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and said in done.stderr


def test_debug_shows_the_traceback(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(Exception, match="no such file"):
        cli.main(["metrics", "dog.png", "cat.png", "--debug"])


def test_a_bug_is_one_line_too(monkeypatch, capsys):
    def broken() -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("sifm_core.doctor.examine", broken)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == "sifm: failed: RuntimeError: two lines; --debug shows where\n"


def test_ctrl_c_exits_130_in_one_line(monkeypatch, capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sifm_core.doctor.examine", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "sifm: interrupted\n"
