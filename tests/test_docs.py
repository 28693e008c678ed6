"""What README, CONTRIBUTING and docs show as code is run, and every `sifm` line they show is one the command takes."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
import typer

from sifm_core import methods
from sifm_core.cli.app import app
from sifm_core.images import save_png
from sifm_core.miniature import benchmark

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *ROOT.glob("web/docs/**/*.md"),
]
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
    return shlex.split(command.replace("$J", "--judge miniature:conv"))[1:]


def parse(words: list[str]) -> None:
    """Every option exists and takes what it is given; nothing is run. Raises click's error if not."""
    command, context = typer.main.get_command(app), None
    name = "sifm"
    while hasattr(command, "commands"):
        context = click.Context(command, parent=context, info_name=name)
        name, *words = words
        command = command.commands[name]
    command.make_context(name, words, parent=context)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with the picture that the pages speak of, and two iterations where they leave the number to SIFM."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(methods.EQUAL_BUDGET, "steps", 2)
    save_png(benchmark.load(1)[0].image[None], "photo.png")
    shutil.move("photo.png", "photo.jpg")  # read by its content
    return tmp_path


def test_there_is_something_to_run():
    assert len(lines()) > 30 and len(blocks("python")) >= 2 and blocks("toml")


@pytest.mark.parametrize("page, command", lines())
def test_a_line_that_is_shown_is_one_that_the_command_takes(page, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    parse(words_of(command))
