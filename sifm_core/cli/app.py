"""Results on stdout (one JSON document with --json), progress and errors on stderr.

Exit codes: 0 done, 1 failed or not all done, 2 wrong input, 130 interrupted. An error is one line, and one for each
file of a folder that is left out; --debug, anywhere, shows where.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import SifmError, bounded
from .output import say

INTERRUPTED = 130
YIELDING = {"GOMP_SPINCOUNT": "1000"}
"""What makes a thread that waits for the others soon give up its core, unless OMP_WAIT_POLICY says how to wait.

Read when torch is loaded. Threads that keep their cores cost a busy machine most of its speed: `python -m
benchmarks.busy_machine`.
"""

app = typer.Typer(
    name="sifm",
    help="Protect pictures against text-guided diffusion editing, and measure honestly whether it worked.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; never raises unless --debug is given."""
    given = list(sys.argv[1:] if argv is None else argv)
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in YIELDING.items():
            os.environ.setdefault(name, value)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's code page lacks is no failure
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in given
    try:
        code = int(app([a for a in given if a != "--debug"], standalone_mode=False) or 0)
        return _say("interrupted", code) if code == INTERRUPTED else code
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        if isinstance(error, SifmError):
            return _say(said(error, _command(given)), error.exit_code)
        if hasattr(error, "format_message"):  # a usage error of click, wherever typer keeps it
            return _say(message, 2) if (message := error.format_message()) else 2  # none where help was shown
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return _say(bounded(f"{error.filename}: the name is too long for this computer: choose a shorter one"), 2)
        return _say(bounded(f"failed: {type(error).__name__}: {error}; --debug shows where"), 1)


def said(error: SifmError, command: Any) -> str:
    """An error of the engine in the words of a command: its flags for arguments.

    Both for what the message advises and for the argument that it begins with ("eps: expected ...").
    """
    flags = {param.name: param for param in command.params if param.param_type_name == "option"}

    def words(name: str, value: Any) -> str:
        name, value = (OPPOSITE[name], not value) if name in OPPOSITE else (name, value)
        name = "against" if name == "editor" and name not in flags else name
        flag = flags.get(name)
        if flag is None:
            text = value if isinstance(value, str) else json.dumps(value)
            return f"--option {name}={text}" if {"method", "option"} <= flags.keys() else f"{name} = {text}"
        if isinstance(value, bool):
            return (flag.opts if value or not flag.secondary_opts else flag.secondary_opts)[-1]
        return f"{flag.opts[-1]} {value}"

    text = error.said(words)
    name, colon, rest = text.partition(": ")
    return f"{flags[name].opts[-1]}{colon}{rest}" if colon and name in flags else text


def _command(given: Sequence[str]) -> Any:
    command: Any = typer.main.get_command(app)
    for word in given:
        command = getattr(command, "commands", {}).get(word, command)
    return command


OPPOSITE = {"local_files_only": "download", "t5": "no_t5"}
"""The engine's arguments that flags turn round."""


def _say(message: str, code: int) -> int:
    say(message)
    return code


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sifm {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
]


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
    version: Version = False,
) -> None:
    """Only what holds for every command; :func:`main` takes --debug out itself."""
