"""`sifm immunize` with every option of the loop and of memory: what the saved file holds, and wrong values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

import fakes
from sifm_core import cli
from sifm_core.editors import load_editor

OPTIONS = {
    "plain": "",
    "l2": "--ball l2 --alpha 0.02",
    "l2, masked": "--ball l2 --alpha 0.02 --mask mask.png",
    "masked": "--mask mask.png",
    "linear": "--schedule linear --random-start",
    "adam": "--update adam --alpha 0.01",
    "transforms": "--eot jpeg:50-90,none --eot resize:0.5",
    "further instructions": "--option prompts=sly",
    "two editors": "--also {sd3} --ball l2 --alpha 0.02",
    "little memory": "--checkpointing --offload text --size 16",
}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A picture with transparency, and a mask of black, grey and white thirds."""
    monkeypatch.chdir(tmp_path)
    pixels = (fakes.images(1, (24, 36))[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    Pil.fromarray(np.dstack([pixels, pixels[..., 0]]), "RGBA").save("cat.png")
    Pil.fromarray(np.repeat([0, 128, 255], 12).astype(np.uint8)[None].repeat(24, 0)).save("mask.png")
    return tmp_path


@pytest.fixture(scope="module")
def tiny(ip2p_folder, tmp_path_factory) -> Path:
    """An editor that works at 16 pixels."""
    folder = shutil.copytree(ip2p_folder, tmp_path_factory.mktemp("editor") / "tiny")
    (folder / "sifm.json").write_text('{"size": 16}')
    return folder


@pytest.fixture
def immunize(here, tiny, sd3_folder, capsys):
    """Run it with --json: exit code, document, what it said."""

    def run(words: str, editor: Path = tiny) -> tuple[int, dict, str]:
        shared = f"immunize cat.png -o out.png --editor {editor} --prompt a --steps 2 --option timesteps=1 --json"
        code = cli.main([*shared.split(), *words.format(sd3=sd3_folder).split()])
        out, err = capsys.readouterr()
        return code, json.loads(out or "{}"), err

    return run


def levels(name: str) -> np.ndarray:
    return np.asarray(Pil.open(name)).astype(float)


@pytest.mark.parametrize("words", OPTIONS.values(), ids=OPTIONS)
def test_the_file_keeps_the_budget_of_its_ball(immunize, words: str) -> None:
    code, done, err = immunize(words)
    assert code == 0, err
    out, source = levels("out.png"), levels("cat.png")
    assert np.array_equal(out[..., 3], source[..., 3])
    delta = (out - source)[..., :3] / 255
    linf, rms = np.abs(delta).max(), np.sqrt(np.square(delta).mean())
    assert 0 < (rms if "l2" in words else linf) <= 0.03 + 1e-9
    assert (done["linf"], done["rms"]) == pytest.approx((linf, rms), rel=1e-4)
    if "mask.png" in words:
        assert not delta[:, :12].any() and delta[:, 24:].any()
        free = delta[:, 12:] / np.repeat([128 / 255, 1], 12)[None, :, None]
        assert (np.sqrt(np.square(free).mean()) if "l2" in words else np.abs(free).max()) <= 0.03 + 1e-6
    assert done["ball"] == ("l2" if "l2" in words else "linf") and 0 <= done["rounding"] < 0.5 / 255
    about = json.loads(Pil.open("out.png").text["sifm"])
    assert about["ball"] == done["ball"] and about["schedule"] == done["schedule"] and "prompt" not in about
    assert "sly" not in json.dumps(about) and ("sly" in words) == ("sly" in json.dumps(done["options"]))
    assert str(done["editor"]) not in json.dumps(about) and ("sd3" in words) == bool(about["also"])


def test_the_options_reach_the_engine(immunize) -> None:
    plain = levels("out.png") if immunize("")[0] == 0 else None
    for name in ("l2", "linear", "adam", "transforms", "two editors"):
        _, done, _ = immunize(OPTIONS[name])
        assert not np.array_equal(levels("out.png"), plain), name
        if name == "two editors":
            assert [len(other["editor_fingerprint"]) for other in done["also"]] == [64]
    for shared, word in (
        ("--alpha 0.02", "--ball l2"),
        ("--random-start", "--schedule linear"),
        ("--alpha 0.01", "--update adam"),
    ):
        without = levels("out.png") if immunize(shared)[0] == 0 else None
        assert immunize(f"{shared} {word}")[0] == 0 and not np.array_equal(levels("out.png"), without), word
    assert immunize("--eot jpeg:50-90,none --eot resize:0.5")[1]["eot"] == ["jpeg:50-90", "none", "resize:0.5"]
    assert immunize(OPTIONS["little memory"])[0] == 0 and np.array_equal(levels("out.png"), plain)


def test_memory_options_reach_the_editors(immunize, sd3_folder, monkeypatch) -> None:
    import sifm_core.editors

    asked = []

    def load(name, **options):
        asked.append(options)
        return load_editor(name, **options)

    monkeypatch.setattr(sifm_core.editors, "load_editor", load)
    words = "--also {sd3} --no-t5 --checkpointing --offload sequential --size 8 --device cpu"
    assert immunize(words, editor=sd3_folder)[0] == 0
    first, other = asked
    assert (first["t5"], first["size"], "t5" in other, "size" in other) == (False, 8, False, False)
    for options in asked:
        assert options["offload"] == "sequential" and options["checkpointing"] is True and options["device"] == "cpu"


def test_the_log_holds_every_iteration_with_each_terms_gradient(immunize) -> None:
    code, done, err = immunize("--log logs/run.jsonl --option part_norms=true --steps 3")
    assert code == 0, err
    lines = [json.loads(line) for line in Path("logs/run.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and lines[0]["source"] == "cat.png"
    assert [lines[0]["loss"], lines[-1]["loss"]] == [done["loss"]["first"], done["loss"]["last"]]
    for line in lines:
        assert line["norm"] + line["dist"] == pytest.approx(line["loss"], rel=1e-5)
        assert line["grad"] > 0 and line["grad_norm"] > 0 and 0 <= line["saturated"] <= 1
    assert lines[0]["grad_dist"] == 0 < lines[1]["grad_dist"], "the distance has no gradient at the clean picture"
    immunize("--log logs/run.jsonl")
    plain = json.loads(Path("logs/run.jsonl").read_text().splitlines()[0])
    assert {"loss", "norm", "dist", "grad", "saturated"} <= plain.keys() and "grad_norm" not in plain


WRONG = {
    "--ball l3": "did you mean l2",
    "--schedule cosin": "did you mean cosine",
    "--update adams": "did you mean adam",
    "--eot jpg:75": "did you mean jpeg",
    "--eot jpeg:175": "quality from 1 to 100",
    "--also miniature-ip2": "did you mean miniature-ip2p",
    "--offload texts": "did you mean text",
    "--size 0": "size",
    "--no-t5": "t5",
    "--log cat.png/x.jsonl": "cannot be written",
    "--option part_norms=perhaps": "part_norms",
}


@pytest.mark.parametrize(("words", "said"), WRONG.items(), ids=WRONG)
def test_wrong_values_are_said_in_one_line_and_nothing_is_written(immunize, words: str, said: str) -> None:
    code, _, err = immunize(words)
    assert code == 2 and said in err and err.count("\n") == 1
    assert not Path("out.png").exists()


def test_help_shows_loop_and_memory_apart(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.main(["immunize", "--help"]) == 0
    head, loop, memory = capsys.readouterr().out.replace("─ Memory", "─ Loop").split("─ Loop")
    assert "--eps" in head and "--ball" in loop and "--also" in loop and "--offload" in memory and "--no-t5" in memory
