"""Which editors are on this machine, and what to do for those that are not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import folder_paths

from sifm_core.editors import BUILTIN, FAMILIES, GIGABYTES, local_folder
from sifm_core.editors.folder import read_json
from sifm_core.errors import SifmError

HUB = "https://huggingface.co/"


def folders() -> dict[str, Path]:
    """Pipelines in ComfyUI's diffusers folders that can be loaded, by name; those of other classes are left out."""
    places = [Path(place) for place in folder_paths.get_folder_paths("diffusers")]
    found = [index.parent for place in places for index in sorted(place.glob("*/model_index.json"))]
    return {folder.name: folder for folder in found if _class(folder) in FAMILIES}


def source(editor: str, folder: str = "") -> str:
    """Folder or hub id of the chosen editor; a folder in models/diffusers goes before a built-in hub id of its name."""
    return folder or str(folders().get(editor) or BUILTIN.get(editor, editor))


def at_hand() -> list[str]:
    """Names that can be loaded now: the built-in ones first."""
    own = folders()
    return [
        *(name for name in BUILTIN if name in own or _is_here(name)),
        *(name for name in own if name not in BUILTIN),
    ]


def is_toy(name: str) -> bool:
    """Is it one that knows nothing but small drawings of its own?"""
    return name in BUILTIN and Path(BUILTIN[name]).is_absolute() and name not in folders()


def files(place: str) -> list[tuple[str, int, int]]:
    """What tells that an editor's files are others than they were."""
    found = sorted(Path(place).expanduser().glob("*/*"))
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in found]


def absent(known: Iterable[str]) -> dict[str, str]:
    """Built-in names that are not among the ``known`` -> where they come from and how large they are, in few words."""
    return {name: f"not here, {size(name)}" for name in BUILTIN if name not in known}


def size(name: str) -> str:
    """How much is to be fetched, and from where."""
    large = f"{GIGABYTES[name]} GB from " if name in GIGABYTES else "from "
    return large + BUILTIN.get(name, name)


def problem(name: str, toys: bool = True) -> str:
    """Why an editor cannot be loaded and the cure, in the nodes' words; "" for one that is at hand.

    Without ``toys`` none of them is offered in its place.
    """
    if name in folders() or (name in BUILTIN and _is_here(name)):
        return ""
    others = [known for known in at_hand() if toys or not is_toy(known)]
    instead = f"; or choose {' or '.join(others)}" if others else ""
    if name in BUILTIN:
        repository = BUILTIN[name]
        return (
            f"{name} is not on this computer ({size(name)}, {HUB}{repository}): fetch it with `hf download "
            f"{repository}` in a terminal, or put its diffusers folder into models/diffusers/{name}{instead}"
        )
    for place in map(Path, folder_paths.get_folder_paths("diffusers")):
        if re.fullmatch(r"[^/\\]+", name) and (place / name / "model_index.json").is_file():
            return f"{name} is a {_class(place / name)}: this pack protects against {', '.join(FAMILIES)}"
    return f"{name}: there is no such folder in models/diffusers{instead}"


def _is_here(name: str) -> bool:
    try:
        return (local_folder(name) / "model_index.json").is_file()
    except SifmError:
        return False


def _class(folder: Path) -> str:
    try:
        return str(read_json(folder / "model_index.json").get("_class_name"))
    except SifmError:
        return "folder that cannot be read"
