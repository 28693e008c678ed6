"""Places that somebody may read and not write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def as_nobody(*read_only: Path) -> Iterator[None]:
    """As somebody who may read these places, and write none of them; root may do anything."""
    mode = {place: place.stat().st_mode for place in read_only}
    for place in read_only:
        place.chmod(0o555 if place.is_dir() else 0o444)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        for place, before in mode.items():
            place.chmod(before)
