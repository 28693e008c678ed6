"""Options and arguments that several commands share, with their checks."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, bounded
from ..loop import LOOP

if TYPE_CHECKING:
    from ..types import Editor

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".tif", ".tiff", ".bmp", ".gif"),
    *(".avif", ".heic", ".heif", ".hif"),
)
"""What counts as a picture in a folder; the last four are read where their libraries are there."""
LONGEST_NAME = 255
"""Bytes of a file's name."""
EDITOR = "miniature-ip2p"
JUDGES = ("miniature:conv", "miniature:patch")


def number(given: str | float) -> float:
    """A number, also written as a fraction: 0.03 or 8/255."""
    text = str(given)
    try:
        return float(Fraction(text.replace(" ", ""))) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"expected a number such as 0.03 or 8/255, got {text!r}") from None


Source = Annotated[Path, typer.Argument(metavar="IN", help="A picture, or a folder of pictures.", show_default=False)]
Out = Annotated[
    Path, typer.Option("-o", "--out", metavar="OUT.png", help="A .png file; for a folder of pictures, a folder.")
]
EditorName = Annotated[str, typer.Option("--editor", metavar="NAME|FOLDER|HUB_ID", help="See `sifm list editors`.")]
Prompt = Annotated[str, typer.Option("--prompt", metavar="TEXT", help="The instruction, such as 'make it night'.")]
Seed = Annotated[int, typer.Option("--seed", metavar="S", help="Same seed, same bytes.")]
Eps = Annotated[float, typer.Option("--eps", metavar="E", parser=number, help=LOOP["eps"].doc)]
Alpha = Annotated[
    float, typer.Option("--alpha", metavar="A", parser=number, show_default="2/255", help=LOOP["alpha"].doc)
]
Steps = Annotated[int, typer.Option("--steps", metavar="N", help=LOOP["steps"].doc)]
Options = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of its own; may be repeated.")
]
Chain = Annotated[
    str, typer.Argument(metavar="CHAIN", help="Such as jpeg:75,resize:0.5 or blur@0.5; see `sifm list purifiers`.")
]
Judges = Annotated[
    list[str] | None,
    typer.Option("--judge", metavar="BACKEND:MODEL", help=f"May be repeated; default {' and '.join(JUDGES)}."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Download = Annotated[bool, typer.Option("--download", help="Allow fetching a hub editor that is not here yet.")]
MEMORY = "Memory (`sifm plan` says what fits)"
Offload = Annotated[
    str,
    typer.Option(
        "--offload",
        metavar="none|text|sequential",
        rich_help_panel=MEMORY,
        help="text: the text encoders are on the device only while they read; sequential: the others then leave it.",
    ),
]
Checkpointing = Annotated[
    bool, typer.Option("--checkpointing", rich_help_panel=MEMORY, help="Compute again instead of keeping; slower.")
]
NoT5 = Annotated[
    bool, typer.Option("--no-t5", rich_help_panel=MEMORY, help="Leave out Stable Diffusion 3's largest text encoder.")
]
Size = Annotated[
    int | None,
    typer.Option(
        "--size",
        metavar="PX",
        rich_help_panel=MEMORY,
        help="Longer side at which the editor works; default: its own.",
    ),
]
Background = Annotated[
    str,
    typer.Option("--background", metavar="COLOUR", help="On which transparent pictures are seen: a name or #rrggbb."),
]
Demonstration = Annotated[
    bool,
    typer.Option(
        "--demonstration", help="Let a toy work on what it knows nothing of; the name of the file says demonstration."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document on stdout.")]


def is_folder(path: Path) -> bool:
    """Whether a folder is there; no path is too long to ask."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def check_name(target: Path) -> None:
    """Raise InputError for a path with a name that no file can have."""
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in target.parts):
        raise InputError(f"{bounded(str(target), 100)}: expected names of at most {LONGEST_NAME} bytes; shorten it")


def check_writable(target: Path) -> None:
    """Raise InputError when a file could not be written there; folders on the way may be missing."""
    check_name(target)
    try:
        parent = next(p for p in target.absolute().parents if p.exists())
        taken = target.is_dir()
    except (OSError, ValueError) as error:
        raise InputError(f"{bounded(str(target), 100)}: cannot be written ({error}); choose another name") from None
    if taken:
        raise InputError(f"{target}: expected a file to write, but this is a folder")
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{target}: cannot be written, {parent} is no folder that you may write to")


def distinct(specs: Iterable[str]) -> list[str]:
    listed = list(specs)
    if len(set(listed)) != len(listed):
        raise InputError("expected different judges: one that is asked twice does not agree with anybody")
    return listed


def key_values(given: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key.strip() and equals):
            raise InputError(f"option: expected KEY=VALUE such as timesteps=4, got {text!r}")
        pairs[key.strip()] = value.strip()
    return pairs


def parse_value(text: str) -> Any:
    """JSON where it is JSON (4, 0.5, true, [200, 400]), else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def method_options(method: str, given: Sequence[str]) -> dict[str, Any]:
    """--option pairs as the method's own types; InputError for an unknown name or a value of another type."""
    from pydantic import TypeAdapter, ValidationError

    from ..methods import check_method, options

    known, pairs = options(method), key_values(given)
    check_method(method, pairs)
    chosen = {}
    for key, text in pairs.items():
        kind = known[key].type
        if kind is Any:
            raise InputError(f"option {key} of {method} takes an object: it can only be set from Python")
        for value in (parse_value(text), text, [parse_value(text)]):
            try:
                chosen[key] = TypeAdapter(kind).validate_python(value)
                break
            except ValidationError:
                continue
        else:
            raise InputError(f"option {key} of {method}: expected {_type_name(kind)}, got {text!r}")
    return chosen


def _type_name(kind: Any) -> str:
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    return name.replace("typing.", "").replace("collections.abc.", "")


def load_editor(name: str, device: str, dtype: str, download: bool, **options: Any) -> Editor:
    """An editor; ``options`` are :func:`sifm_core.editors.load_editor`'s, those of value None its own."""
    from ..editors import load_editor

    def say(hub_id: str, size: int) -> None:
        print(f"sifm: fetching {size / 1e9:.2f} GB of {hub_id}", file=sys.stderr)

    given = {key: value for key, value in options.items() if value is not None}
    return load_editor(name, device=device, dtype=dtype, local_files_only=not download, on_download=say, **given)
