"""Commands on folders: one bad file costs itself, what is done stays done, and everything else is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

from sifm_core import cli, images, pipeline
from toy import ToyEditor, ToyJudge

NOISE = ["immunize", "in", "-o", "out", "--prompt", "a", "--method", "random_noise"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sifm_core.editors.load_editor", lambda *_, **__: ToyEditor())
    return tmp_path


def picture(path: str, shade: int = 0, **options) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(shade).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Pil.fromarray(pixels).save(path, **options)


def run(capsys, *words: object) -> tuple[int, list[dict], str]:
    code = cli.main([str(word) for word in (*words, "--json")])
    out, err = capsys.readouterr()
    return code, json.loads(out or "[]"), err


def mixed(folder: str) -> tuple[set[str], set[str]]:
    """200 files: names of those that are done, and of those that are not; hidden ones are neither."""
    good, other = set(), set()
    for i in range(120):
        kind = ("png", "jpg", "jfif", "jpe", "webp", "bmp", "TIFF", "gif")[i % 8]
        picture(f"{folder}/ok{i:03}.{kind}", i, format={"jfif": "JPEG", "jpe": "JPEG"}.get(kind))
        good.add(f"ok{i:03}.{kind}")
    for i in range(20):
        picture(f"{folder}/broken{i}.png", i)
        file = Path(f"{folder}/broken{i}.png")
        file.write_bytes(file.read_bytes()[: i * 40])
        other.add(file.name)
    for i, suffix in enumerate(("avif", "HEIC", "psd", "txt", "svg", "json", "mp4", "dng", "jxl", "tga") * 2):
        Path(f"{folder}/odd{i}.{suffix}").write_bytes(b"odd")
        other.add(f"odd{i}.{suffix}")
    for i in range(10):
        picture(f"{folder}/Twin{i}.png", i)
        picture(f"{folder}/twin{i}.{('PNG', 'jpg')[i % 2]}", i + 50)
        good.add(f"Twin{i}.png")
        other.add(f"twin{i}.{('PNG', 'jpg')[i % 2]}")
    for i in range(18):
        Path(f"{folder}/.{('_ok', 'DS_Store', 'hidden')[i % 3]}{i}.png").write_bytes(b"resource fork")
    picture(f"{folder}/sub/inside.png")
    os.mkfifo(f"{folder}/pipe.png")
    other |= {"sub", "pipe.png"}
    assert len(list(Path(folder).iterdir())) == 200
    return good, other


KILLED = """
import os, signal, sys
from sifm_core import cli
plain, left = os.replace, [60]
def replace(one, two):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    plain(one, two)
os.replace = replace
sys.path.append(sys.argv.pop(1))
import sifm_core.editors, toy
sifm_core.editors.load_editor = lambda *_, **__: toy.ToyEditor()
cli.main(sys.argv[1:])
"""


def test_a_folder_of_200_that_is_killed_in_the_middle_is_finished_by_the_same_command(capsys, monkeypatch):
    good, other = mixed("in")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    tests = str(Path(__file__).parents[1])
    killed = subprocess.run([sys.executable, "-c", KILLED, tests, *NOISE], env=env, capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    first = {path.name: path.read_bytes() for path in Path("out").glob("[!.]*")}
    assert len(first) == 60
    code, rows, err = run(capsys, *NOISE)
    assert code == 1
    done, named = (
        [row for row in rows if row["output"]],
        {Path(row["source"]).name for row in rows if not row["output"]},
    )
    assert {Path(row["source"]).name for row in done} == good and named == other
    assert sum("earlier" in row for row in done) == 60
    assert {path.name for path in Path("out").glob("[!.]*")} == {f"{Path(name).stem}.png" for name in good}
    for name, before in first.items():
        assert Path("out", name).read_bytes() == before, "done twice"
    for row in done:
        images.verify_budget(row["output"], images.load_image(row["source"]), 0.03)
    assert all(name in err for name in other) and "Traceback" not in err
    assert err.splitlines()[-1].startswith("sifm: 46 of in are not done")
    monkeypatch.setattr(images, "save_png", lambda *_, **__: pytest.fail("done again"))
    code, rows, _ = run(capsys, *NOISE)
    assert code == 1 and sum("earlier" in row for row in rows) == 130


def test_a_rerun_with_other_settings_or_another_source_is_made_again(capsys):
    for name in "ab":
        picture(f"in/{name}.png", ord(name))
    assert run(capsys, *NOISE)[0] == 0
    for words in (["--eps", "0.05"], ["--seed", 4], ["--prompt", "b"], ["--option", "pattern=block4"]):
        code, rows, _ = run(capsys, *NOISE, *words)
        assert code == 0 and not any("earlier" in row for row in rows), words
        assert all("earlier" in row for row in run(capsys, *NOISE, *words)[1])
    picture("in/a.png", 7)
    Path("out/b.png").write_bytes(Path("out/b.png").read_bytes()[:-300])
    rows = run(capsys, *NOISE, *words)[1]
    assert not any("earlier" in row for row in rows), "one source is new, the other's file is torn"


@pytest.mark.parametrize("command", ["edit", "purify", "immunize"])
def test_what_goes_wrong_in_the_work_on_one_picture_costs_that_one(capsys, monkeypatch, command):
    for name in "abc":
        picture(f"in/{name}.png", ord(name))
    verb = {"edit": (pipeline, "edit"), "purify": (sys.modules["sifm_core.purify"], "apply")}
    owner, name = verb.get(command, (pipeline, "immunize"))
    plain, calls = getattr(owner, name), []

    def second_fails(*given, **options):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("cuDNN\nwent away")
        return plain(*given, **options)

    monkeypatch.setattr(owner, name, second_fails)
    words = {
        "edit": ["edit", "in", "-o", "out", "--prompt", "a"],
        "purify": ["purify", "in", "blur:1", "-o", "out"],
    }.get(command, NOISE)
    code, rows, err = run(capsys, *words)
    assert code == 1 and [row["output"] for row in rows] == ["out/a.png", "out/c.png", None]
    assert "in/b.png: failed: RuntimeError: cuDNN went away" in err and len(err.splitlines()) == 2
    code, rows, err = run(capsys, *words)
    assert (code, err) == (0, "") and ["earlier" in row for row in rows] == [True, False, True]


def test_wrong_settings_are_said_once_and_not_for_each_picture(capsys):
    for name in "abc":
        picture(f"in/{name}.png")
    code, rows, err = run(capsys, "immunize", "in", "-o", "out", "--prompt", "a", "--option", "timesteps=5000")
    assert (code, rows) == (2, []) and len(err.splitlines()) == 1 and "timesteps" in err


def test_the_log_of_a_folder_holds_each_finished_picture_once(capsys, monkeypatch):
    for name in "ab":
        picture(f"in/{name}.png", ord(name))
    words = ["immunize", "in", "-o", "out", "--prompt", "a", "--steps", 2, "--log", "run.jsonl"]
    words += ["--method", "photoguard_encoder"]
    plain = images.save_png

    def fails(image, target, **options):
        if target.name == "b.png":
            raise KeyboardInterrupt
        plain(image, target, **options)

    monkeypatch.setattr(images, "save_png", fails)
    code, rows, _ = run(capsys, *words)
    assert code == 130 and [row["output"] for row in rows] == ["out/a.png"], "what was done is reported"
    monkeypatch.setattr(images, "save_png", plain)
    assert run(capsys, *words)[0] == 0
    lines = [json.loads(line) for line in Path("run.jsonl").read_text().splitlines()]
    assert [(line["source"], line["step"]) for line in lines] == [(f"in/{n}.png", i) for n in "ab" for i in (1, 2)]


def test_pairs_that_can_be_compared_are_and_the_others_are_named(capsys, monkeypatch):
    for name in ("one/a.png", "one/b.png", "one/c.png", "two/a.png", "two/c.png", "two/d.png"):
        picture(name)
    Path("two/c.png").write_bytes(b"")
    code, rows, err = run(capsys, "metrics", "one", "two", "--metric", "psnr")
    assert code == 1 and [row.get("distorted") for row in rows] == ["two/a.png", None, None, None]
    assert all(f"{name}: " in err for name in ("one/b.png", "two/d.png", "two/c.png"))
    monkeypatch.setattr("sifm_core.judges.load_judge", lambda spec, **_: ToyJudge(spec, 0.0))
    code, rows, err = run(capsys, "judge", "one", "two", "--prompt", "a", "--judge", "toy:a")
    assert code == 1 and rows[0]["edit_failed"] is True and len(rows) == 4 and "two/d.png: " in err


def test_names_in_other_letters_are_no_failure_on_an_old_terminal(capsys, monkeypatch):
    import io

    picture("猫.png")
    for encoding in ("cp1252", "ascii", "utf-8"):
        for json_too in ([], ["--json"]):
            raw = io.BytesIO()
            monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
            assert cli.main(["purify", "猫.png", "blur:1", "-o", "é.png", *json_too]) == 0
            sys.stdout.flush()
            text = raw.getvalue().decode(encoding)
            if json_too:
                assert json.loads(text)["source"] == "猫.png" and json.loads(text)["output"] == "é.png"


def test_a_file_that_nobody_named_and_no_command_made_is_kept(capsys):
    for name in ("in/a.jpg", "out/b.png", "in/b.jpg"):
        picture(name)
    before = Path("out/b.png").read_bytes()
    for source in ("in", "in/b.jpg"):
        code, _, err = run(capsys, "purify", source, "blur:1", "-o", "out")
        assert code == 2 and "not made by sifm" in err and Path("out/b.png").read_bytes() == before
    for _ in range(2):
        assert run(capsys, "purify", "in/a.jpg", "blur:1", "-o", "out")[0] == 0
    assert run(capsys, "purify", "in/b.jpg", "blur:1", "-o", "out/b.png")[0] == 0
