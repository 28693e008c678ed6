"""What README, CONTRIBUTING and docs show as code is run, and every `sifm` line they show is one the command takes."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import typer

from methods import test_contract as contract
from sifm_core import cli, methods, protection
from sifm_core.cli.app import app
from sifm_core.editors import load_editor
from sifm_core.images import save_png
from sifm_core.miniature import benchmark
from toy import ToyEditor, ToyJudge

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")), *ROOT.glob("web/**/*.md")]
TEXT = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, code) of every fenced block in a language."""
    found = re.compile(rf"^```{language}\n(.*?)^```$", re.M | re.S)
    return [(page, code) for page, text in TEXT.items() for code in found.findall(text)]


def lines() -> list[tuple[str, str]]:
    """(page, command) of every line of a block, fenced or indented, that starts with `sifm`; comments are left out."""
    listed = []
    for page, text in TEXT.items():
        for line in re.findall(r"^(?: {4})?(sifm .+)$", text.replace("\\\n", " "), re.M):
            bare = re.sub(r"\s#\s.*$", "", line)
            listed += [(page, command.strip()) for command in bare.split(";") if command.strip()]
    return listed


def words_of(command: str) -> list[str]:
    words = shlex.split(command.replace("$J", "--judge miniature:conv").replace("$E", "--editor instruct-pix2pix"))
    return words[1:]


def parse(words: list[str]) -> None:
    """Every option exists and takes what it is given; nothing is run. Raises click's error if not."""
    command, context = typer.main.get_command(app), None
    name = "sifm"
    while hasattr(command, "commands"):
        context = command.context_class(command, parent=context, info_name=name)
        name, *words = words
        command = command.commands[name]
    command.make_context(name, words, parent=context)


def inline() -> list[tuple[str, str]]:
    """(page, command) of what stands between backticks and starts with `sifm` and a command's name."""
    return [
        (page, " ".join(code.split())) for page, text in TEXT.items() for code in re.findall(r"`(sifm [^`]+)`", text)
    ]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with the picture that the pages speak of, and two iterations where they leave the number to SIFM."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(methods.EQUAL_BUDGET, "steps", 2)
    for name, strength in protection.STRENGTHS.items():
        monkeypatch.setitem(protection.STRENGTHS, name, strength._replace(steps=1))
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    save_png(benchmark.load(1)[0].image[None], "photo.png")
    shutil.move("photo.png", "photo.jpg")  # known by its content
    Path("my-pictures").mkdir()
    shutil.copy("photo.jpg", "my-pictures")
    monkeypatch.setattr(protection, "at_hand", lambda: ["miniature-ip2p"])
    return tmp_path


@pytest.fixture
def toys(monkeypatch) -> None:
    """Runs on an editor and judges that answer at once."""
    monkeypatch.setattr("sifm_core.bench.work.load_editor", lambda name, **options: ToyEditor())
    monkeypatch.setattr("sifm_core.bench.work.load_judge", lambda spec: ToyJudge(spec))
    monkeypatch.setattr("sifm_core.bench.work._loaded", OrderedDict())


def run(command: str, more: str = "", code: int = 0) -> None:
    words = words_of(command)
    if words[0] != "plan":  # which needs no weights
        words = ["miniature-ip2p" if word == "instruct-pix2pix" else word for word in words]
    assert cli.main([*words, *more.split()]) == code, command


def test_there_is_something_to_run():
    assert len(lines()) > 30 and len(inline()) > 10 and len(blocks("python")) >= 2 and blocks("toml")


@pytest.mark.parametrize("page, command", lines())
def test_a_line_that_is_shown_is_one_that_the_command_takes(page, command, here):
    parse(words_of(command))


WRONG = {
    "edit a.png -o b.png --prompt a --twice": "No such option: --twice",
    "bench walk": "walk",
    "bench run": "Missing",
    "plan --size big": "valid int",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_line_that_the_command_does_not_take_is_found(words):
    with pytest.raises(Exception, match=WRONG[words]):
        parse(words.split())


@pytest.mark.parametrize("page, command", inline())
def test_a_command_that_is_mentioned_has_the_options_that_are_mentioned(page, command):
    known, found = typer.main.get_command(app), set()
    for word in command.split()[1:]:
        known = getattr(known, "commands", {}).get(word, known)
    found = {option for parameter in known.params for option in parameter.opts}
    assert known.name in command.split() and set(re.findall(r"--[a-z-]+", command)) <= found


def test_readmes_commands_on_a_picture_run(here, capsys):
    for page, command in lines():
        if page == "README.md" and not command.startswith("sifm bench") and "RUN" not in command:
            asks_for_a_key = command.startswith("sifm judge ")
            run(command, "--images 1" if command == "sifm calibrate" else "", code=int(asks_for_a_key))
            out, err = capsys.readouterr()
            assert "GEMINI_API_KEY" in err if asks_for_a_key else out, command


def test_the_grid_of_ones_own_runs_and_so_do_the_commands_on_runs(here, toys, capsys):
    ((_, grid),) = blocks("toml")
    Path("own.toml").write_text(grid)
    runs = ["table2-miniature", "table3-miniature", "table4-miniature", "other"]
    run(f"sifm bench run own.toml --out runs/{runs[0]} --images 1 --unseen 0 --steps 2")
    for name in runs[1:]:
        shutil.copytree(f"runs/{runs[0]}", f"runs/{name}")
    for page, command in lines():
        if page in ("README.md", "docs/benchmarks.md") and command.startswith("sifm bench"):
            run(" ".join(command.replace("[234]", digit) for digit in "3"), "--dry-run" if " run " in command else "")
    run("sifm consistency RUN".replace("RUN", f"runs/{runs[1]}"))
    assert capsys.readouterr().out


def test_the_commands_on_pictures_of_ones_own_run(here):
    Path("mine.csv").write_text("image,instruction\nphoto.jpg,make it night\n")
    Path("mine").mkdir()
    run("sifm data csv mine.csv mine/manifest.jsonl")
    shutil.copytree("mine", "benchmark")
    for page, command in lines():
        if page == "docs/benchmarks.md" and command.startswith(("sifm data csv", "sifm data check")):
            run(command)


def test_readmes_python_runs(here, capsys):
    first, *_ = (code for page, code in blocks("python") if page == "README.md")
    exec(compile(first, "README.md", "exec"), {})
    assert "Isr(rate=" in capsys.readouterr().out


@pytest.mark.parametrize("page, code", [block for block in blocks("python") if block[0].startswith("docs/")])
def test_the_python_of_a_page_runs(page, code, here, capsys):
    exec(compile(code, page, "exec"), {})
    assert capsys.readouterr().out.strip()


def test_readmes_method_keeps_the_contract_as_it_stands(tmp_path, monkeypatch, ip2p_folder, sd3_folder, capsys):
    _, code = (code for page, code in blocks("python") if page == "README.md")
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    monkeypatch.setitem(methods.METHODS, "mine", re.search(r'`"mine": "(.+?)"`', TEXT["README.md"])[1])
    try:
        for folder in (ip2p_folder, sd3_folder):
            editor = load_editor(folder, device="cpu", dtype="float64", steps=2)
            contract.test_budget_range_shape_and_same_seed_same_bytes("mine", editor)
            contract.test_a_batch_equals_its_images_one_by_one("mine", editor)
            contract.test_the_loss_falls("mine", editor)
            contract.test_an_interrupt_leaves_nothing_behind("mine", editor)
        run("sifm list methods")
    finally:
        sys.modules.pop("sifm_core.methods.mine", None)
    assert "our own, of no paper" in capsys.readouterr().out


@pytest.mark.parametrize("script", sorted((ROOT / "docs/examples").glob("*.py")), ids=lambda script: script.stem)
def test_an_example_runs(script, here, monkeypatch, capsys):
    monkeypatch.setattr("sifm_core.editors.load_editor", lambda name: ToyEditor())
    given = {"protect_a_photo": ["photo.jpg", "protected.png", "turn her into a zombie", "instruct-pix2pix"]}.get(
        script.stem, []
    )
    monkeypatch.setattr(sys, "argv", [str(script), *given])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.strip()
