"""What errors say: bounded, and in the words of the door through which the mistake came."""

from __future__ import annotations

import pickle
import re

import pytest
import torch
import typer

from sifm_core.cli.app import app, said
from sifm_core.cli.output import one_line
from sifm_core.errors import LONGEST, EditorError, ImageError, InputError
from sifm_core.memory import OutOfMemory, enough

COMMANDS = typer.main.get_command(app).commands
PYTHON = re.compile(r"\w+=(True|False|None|')|\{\w+\}")


def test_an_advised_setting_is_said_in_the_words_of_each_door():
    error = InputError(
        "{x}: needs {random_start} or {lam}, {t5} and {local_files_only}", random_start=True, lam=0.5, t5=False
    )
    assert str(error) == "{x}: needs random_start=True or lam=0.5, t5=False and {local_files_only}"
    error = InputError("needs {random_start} or {lam} and {t5}", random_start=True, lam=0.5, t5=False)
    assert said(error, COMMANDS["immunize"]) == "needs --random-start or --option lam=0.5 and --no-t5"
    off = InputError("needs {random_start} and {local_files_only}", random_start=False, local_files_only=False)
    assert said(off, COMMANDS["immunize"]) == "needs --no-random-start and --download"
    assert said(off, COMMANDS["demo"]) == "needs random_start = false and download = true"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_argument_a_message_begins_with_is_said_as_its_flag():
    assert said(InputError("eps: expected more"), COMMANDS["immunize"]) == "--eps: expected more"
    assert said(InputError("also: expected a list"), COMMANDS["edit"]) == "also: expected a list"
    assert said(InputError("{checkpointing}", checkpointing=True), COMMANDS["edit"]) == "checkpointing = true"
    assert said(ImageError("cat.png: expected a picture"), COMMANDS["edit"]) == "cat.png: expected a picture"


@pytest.mark.parametrize("command", ["immunize", "edit", "purify", "layers", "plan", "demo"])
def test_no_python_reaches_the_command_line_when_memory_is_short(command):
    for pictures in (True, False):
        with pytest.raises(EditorError) as caught, enough("it", torch.device("cpu"), pictures=pictures):
            raise MemoryError
        assert not PYTHON.search(said(caught.value, COMMANDS[command]))
        assert isinstance(caught.value, OutOfMemory | torch.OutOfMemoryError)


def test_the_innermost_work_says_what_needed_the_memory():
    device = torch.device("cpu")
    with pytest.raises(OutOfMemory, match="for the editor") as caught, enough("the picture", device, pictures=True):  # noqa: SIM117
        with enough("the editor", device):
            raise torch.OutOfMemoryError("out of memory")
    assert "for the picture" not in str(caught.value)


def test_messages_are_bounded_and_keep_their_ends():
    text = str(InputError(f"prompt: expected less, got {'x' * 10**6}; shorten it"))
    assert len(text) <= LONGEST and text.startswith("prompt: expected") and text.endswith("shorten it")
    shown = one_line("a\nb \x1b[31m \udcff é 猫" + "\x1b" * 10**5)
    assert len(shown) <= LONGEST and shown.isprintable() and shown.startswith("a b \\x1b[31m \\udcff é 猫")
