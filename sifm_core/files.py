"""Files that are there whole or not at all, and files of others, read with a limit."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
from pathlib import Path
from typing import Any

from .errors import InputError


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds all of it or what was there before, even after kill -9 or power loss.

    Raises InputError when the place cannot be written.
    """
    part = path.with_name(f".{path.name[:40]}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose a place you may write to") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


LARGEST = 64 << 20
"""Bytes of a text file that is read whole: manifests, workflows, configurations."""


def read_text(path: Path, most: int = LARGEST) -> str:
    """The text of a file in UTF-8. Raises OSError and ValueError, each with its reason.

    What is no file (a pipe would never end) and what is larger than ``most`` bytes is refused before it is read.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise OSError("this is no regular file")
    if about.st_size > most:
        raise ValueError(f"{about.st_size / 1e6:.0f} MB, and at most {most / 1e6:.0f} MB are read")
    return path.read_text(encoding="utf-8-sig")


def within(folder: Path, name: str) -> Path | None:
    """The file of that name in a folder or below, links followed; None where it would lie elsewhere."""
    try:
        path = (folder / name).resolve()
        inside = path.is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a name with a zero byte, too long, links in a circle
        return None
    return Path(os.path.normpath(folder / name)) if inside else None


def in_cache(model: str, file: str = "config.json") -> str:
    """The folder in the hub's local cache of a model with that hub id, found without asking the hub; else the name."""
    if Path(model).is_dir():
        return model
    import huggingface_hub.constants

    # Else its client asks the hub which programs to tell it of, even where nothing may be fetched.
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        found = huggingface_hub.try_to_load_from_cache(model, file)
    except ValueError:  # this is no hub id
        return model
    return str(Path(found).parent) if isinstance(found, str) else model


def cell(value: Any) -> Any:
    """A CSV cell that no spreadsheet takes for a formula: text that begins like one has an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
