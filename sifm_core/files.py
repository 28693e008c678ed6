"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from .errors import InputError


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds all of it or what was there before, even after kill -9 or power loss.

    Raises InputError when the place cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
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
