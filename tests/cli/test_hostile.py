"""Hundreds of wrong inputs over all commands: exit 1 or 2, one bounded sentence, no traceback, nothing written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

from sifm_core import cli
from toy import ToyEditor, ToyJudge

LONG, HALF = "x" * 200_000, "a\udcff"
COUNTS = ["-1", "0", "1" + "0" * 30, "1.5", "1e9", "nan", "", LONG, HALF]
NUMBERS = ["nan", "inf", "-inf", "1e400", "-1", "0", "", "1/0", "x", LONG, HALF]
NAMES = ["none-such", "", LONG, HALF, "\x1b[31mred", "../../etc/passwd"]
PICTURES = [
    "missing.png",
    "pipe.png",
    "folder",
    "half.png",
    "empty.png",
    "text.png",
    "dot.png",
    "moving.gif",
    "clear.png",
]
PICTURES += ["/dev/zero", "f" * 300 + ".png", LONG, HALF, "cat.png/x.png"]
OUTPUTS = ["o" * 300 + ".png", "out.jpg", "out", "cat.png", "cat.png/out.png", "/proc/nowhere/out.png", LONG, ""]
OUTPUTS += [f"{'d' * 300}/out.png"]
PROMPTS = ["", "  ", HALF, "\udc80", LONG]
SEEDS = ["-1", "99999999999999999999", "x", "1.5", LONG]
ON_PICTURES = {
    "immunize": "immunize cat.png -o out.png --prompt a --steps 1 --method photoguard_encoder",
    "edit": "edit cat.png -o out.png --prompt a",
    "purify": "purify cat.png blur:1 -o out.png",
    "metrics": "metrics cat.png cat.png",
    "judge": "judge cat.png cat.png --prompt a --judge toy:a",
    "clip": "clip cat.png cat.png --text a",
    "layers": "layers miniature-ip2p --probe cat.png --layer mid_block --timesteps 1",
}
FLAGS: dict[str, dict[str, list[str]]] = {
    "immunize": {
        "--prompt": PROMPTS,
        "--seed": SEEDS,
        "--eps": [*NUMBERS, "8", "0.001"],
        "--alpha": [*NUMBERS, "2"],
        "--steps": COUNTS,
        "--mask": PICTURES,
        "--log": ["folder", "cat.png/log", "l" * 300, f"{'l' * 300}/log"],
        **{
            flag: NAMES
            for flag in ("--method", "--preset", "--ball", "--schedule", "--update", "--eot", "--background")
        },
        "--option": [*NAMES, "=", "=1", "none_such=1", "noise=", f"noise={LONG}", "noise=1e999"],
    },
    "edit": {
        "--prompt": PROMPTS,
        "--seed": SEEDS,
        "--purify": NAMES[:1] + NAMES[2:],
        "--background": NAMES,
        "--option": NAMES,
    },
    "purify": {"--seed": SEEDS, "--background": NAMES},
    "metrics": {"--metric": NAMES, "--background": NAMES},
    "judge": {"--prompt": PROMPTS, "--background": NAMES},
    "clip": {"--text": ["", " "], "--background": NAMES, "--model": NAMES[:1], "-o": OUTPUTS[4:7]},
    "layers": {
        "--seed": SEEDS,
        "--eps": NUMBERS,
        "--layer": NAMES,
        "--timesteps": ["0", "-1", "9" * 30, "x", "[5000]", "nan"],
    },
    "plan": {
        **{flag: COUNTS for flag in ("--timesteps", "--steps", "--batch", "--size")},
        "--memory": [*NUMBERS, "1e300"],
        **{flag: NAMES[:1] + NAMES[2:] for flag in ("--editor", "--layers", "--dtype", "--device", "--offload")},
    },
    "list": {"": NAMES},
    "demo": {
        **{flag: COUNTS for flag in ("--images", "--steps", "--seeds", "--batch")},
        "--eps": NUMBERS,
    },
    "calibrate": {"--images": COUNTS, "--seed": SEEDS},
}
BASES = {
    **ON_PICTURES,
    "plan": "plan",
    "list": "list",
    "demo": "demo --out demo --judge toy:a",
    "calibrate": "calibrate",
}


def cases() -> Iterator[list[str]]:
    for line in ON_PICTURES.values():
        for name in PICTURES:
            yield [name if word == "cat.png" else word for word in line.split()]
        if "out.png" in line:
            for name in OUTPUTS:
                yield [name if word == "out.png" else word for word in line.split()]
    for command, flags in FLAGS.items():
        for flag, values in flags.items():
            for value in values:
                yield [
                    *BASES[command].split(),
                    *([f"{flag}={value}"] if flag.startswith("--") else [flag, value] if flag else [value]),
                ]


CASES = list(cases())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    here = tmp_path_factory.mktemp("hostile")
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Pil.fromarray(noise).save(here / "cat.png")
    Pil.fromarray(noise[:8, :8]).save(here / "dot.png")
    Pil.new("RGBA", (24, 24)).save(here / "clear.png")
    Pil.fromarray(noise).save(here / "moving.gif", save_all=True, append_images=[Pil.fromarray(255 - noise)])
    (here / "half.png").write_bytes((here / "cat.png").read_bytes()[:900])
    (here / "empty.png").write_bytes(b"")
    (here / "text.png").write_text("text")
    (here / "folder").mkdir()
    os.mkfifo(here / "pipe.png")
    return here


def test_there_are_enough_of_them():
    assert len(CASES) >= 250


@pytest.mark.parametrize(
    "words", CASES, ids=lambda words: " ".join(word[:30] for word in words).encode("ascii", "replace").decode()
)
def test_wrong_input_is_one_bounded_sentence(words, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("sifm_core.judges.load_judge", lambda spec, **_: ToyJudge(spec, 0.5))
    if words[0] in ("immunize", "edit"):
        monkeypatch.setattr("sifm_core.editors.load_editor", lambda *_, **__: ToyEditor())
    before = sorted(folder.rglob("*"))
    code = cli.main(words)
    out, err = capsys.readouterr()
    assert code in (1, 2), out
    assert out == "" and len(err.splitlines()) == 1 and len(err) < 1100, err[-2000:]
    assert err.startswith("sifm: ") and err.strip().isprintable()
    assert "Traceback" not in err and "failed: " not in err, err
    assert sorted(folder.rglob("*")) == before


ODD = ("none", "cat.png", "text.png", "empty.png", "folder", "a\0b", "\ud800", "a" * 300)
"""No run, manifest, benchmark or workflow, and no folder of any."""
OTHERS = [
    *(["bench", verb, odd] for verb in ("run", "retry", "status", "report", "export") for odd in ODD),
    *(["bench", "diff", odd, odd] for odd in ODD),
    *(["data", "check", odd] for odd in ODD),
    *(["data", "csv", odd, "new.csv"] for odd in ODD),
    *(["queue", odd, "-o", "queued"] for odd in ODD),
    *(
        ["queue", "protect_my_image", "-o", "queued", "--dry-run", f"--patience={v}"]
        for v in ("nan", "-1", "word", "inf")
    ),
    *(["queue", "protect_my_image", "-o", "queued", "--dry-run", "--set", v] for v in ("", "none", "none=1", "x.y=1")),
    *(["bench", "run", "table3", "--dry-run", f"--images={v}"] for v in ("-1", "word", "nan", "1e9")),
    *(
        ["bench", "run", "table3", "--dry-run", f"{flag}={v}"]
        for flag in ("--tflops", "--hourly")
        for v in ("nan", "-1")
    ),
    *(["bench", "run", "table3", "--dry-run", f"--profile={v}"] for v in ("", "none", "a" * 300)),
]


@pytest.mark.parametrize(
    "words", OTHERS, ids=lambda words: " ".join(word[:20] for word in words).encode("ascii", "replace").decode()
)
def test_wrong_input_of_runs_data_and_queues_is_one_bounded_sentence(words, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = sorted(folder.rglob("*"))
    code = cli.main(words)
    out, err = capsys.readouterr()
    assert code in (1, 2), out
    assert out == "" and len(err.splitlines()) == 1 and len(err) < 1100 and "failed:" not in err, err[-2000:]
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "words", [["bench", "run"], ["bench", "status"], ["bench", "report"], ["bench", "export"]], ids=" ".join
)
def test_a_name_too_long_for_the_computer_is_wrong_input_in_one_bounded_sentence(words: list[str], capsys) -> None:
    assert cli.main([*words, "a" * 5000]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and len(said) < 1200


def test_what_nobody_foresaw_is_bounded_too(monkeypatch, capsys) -> None:
    def unforeseen() -> None:
        raise RuntimeError("x" * 10**6)

    monkeypatch.setattr("sifm_core.doctor.examine", unforeseen)
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("sifm: failed: RuntimeError: xxx") and len(said) < 1200
