"""What outlives a prompt, in ComfyUI's user folder: results that need not be computed twice, and the runs.

``sifm/results`` and every ``sifm/runs/ID`` are stores of the engine, so `sifm` on the command line reads them too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sifm_core.errors import InputError
from sifm_core.files import read_text, write_atomically
from sifm_core.images import to_uint8
from sifm_core.store import Store, fingerprint, picture_id
from sifm_core.types import Image

ANNOTATIONS = "annotations.jsonl"
"""What people said in the sidebar, in :func:`home`; a case is named by its content, so one file serves all runs."""
VERSION = 3
"""Part of every key: raise it when what a node computes changes."""

PARTS = ("results", "shown", "runs", "judges.sqlite", ANNOTATIONS)
"""What lies in :func:`home`: results that save time, what nodes show, runs, paid answers, people's answers."""
CLEARED = PARTS[:3]
"""What may be cleared from the browser: nobody has paid for it or judged it by hand."""
LIMIT = 5.0
"""Gigabytes of results, unless the settings say otherwise; the oldest go first."""
PATIENCE = 300.0
"""Seconds between two looks at how large the results are."""
_looked = 0.0


def home() -> Path:
    """The pack's folder in ComfyUI's user folder."""
    import folder_paths

    return Path(folder_paths.get_user_directory(), "sifm")


def recall(
    kind: str, uses: Mapping[str, Any], compute: Callable[[], tuple[Image, dict[str, Any]]]
) -> tuple[Image, dict[str, Any]]:
    """What ``compute`` gives, pictures (B, 3, H, W) and plain data, or what it gave before for the same ``uses``.

    ``uses`` is all that the result depends on: plain data and tensors. A benchmark that was killed and queued again
    so goes on with the first picture that it had not finished.
    """
    with torch.inference_mode(False), Store(home() / "results") as store:
        key = fingerprint(version=VERSION, **{name: _plain(value) for name, value in uses.items()})
        known = store.get(kind, key)
        if known and all(store.has_image(name) for name in known["pictures"]):
            for name in known["pictures"]:
                os.utime(_file(store, name))  # what is used stays longest
            return torch.cat([store.get_image(name) for name in known["pictures"]]), known
        pictures, about = compute()
        store.put(kind, key, about | {"pictures": [store.put_image(picture) for picture in pictures]})
    _look_after()
    return pictures, about


def sizes() -> dict[str, int]:
    """Part of :func:`home` -> its bytes."""
    return {part: sum(file.stat().st_size for file in _files(home() / part)) for part in PARTS}


def limit() -> float:
    """Gigabytes that results may take; 0: as many as they like."""
    try:
        gigabytes = json.loads(read_text(home() / "settings.json"))["limit"]
        return float(gigabytes)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return LIMIT


def set_limit(gigabytes: Any) -> None:
    """Raises InputError for what is no size."""
    if isinstance(gigabytes, bool) or not isinstance(gigabytes, int | float) or not 0 <= gigabytes <= 1e6:
        raise InputError(f"limit: expected 0 to 1000000 gigabytes, got {gigabytes!r}")
    write_atomically(home() / "settings.json", json.dumps({"limit": gigabytes}).encode())
    tidy()


def clear(part: str) -> None:
    """Remove a part. Raises InputError for one that is not there to be cleared."""
    if part not in CLEARED:
        raise InputError(f"expected one of {', '.join(CLEARED)}, got {part!r}")
    shutil.rmtree(home() / part, ignore_errors=True)


def tidy() -> None:
    """Take the results that were used longest ago away until those that are left keep :func:`limit`."""
    most, place = limit() * 1e9, home() / "results"
    if not most or not (place / "run.sqlite").is_file():
        return
    with Store(place) as store:
        size = {file.stem: (file.stat().st_mtime, file.stat().st_size) for file in _files(place / "images")}
        used: dict[str, int] = {}
        entries = []
        for kind in [kind for kind in store.counts() if kind != "records"]:
            for key, about in store.documents(kind):
                names = [name for name in about.get("pictures", ()) if name in size]
                entries.append((max((size[name][0] for name in names), default=0.0), kind, key, names))
                for name in names:
                    used[name] = used.get(name, 0) + 1
        left = sum(n for _, n in size.values())
        for _, kind, key, names in sorted(entries):
            if left <= most:
                return
            store.remove(kind, key)
            for name in names:
                used[name] -= 1
                if not used[name]:
                    _file(store, name).unlink(missing_ok=True)
                    left -= size[name][1]


def _look_after() -> None:
    global _looked
    if time.monotonic() > _looked + PATIENCE:
        _looked = time.monotonic()
        tidy()


def _file(store: Store, name: str) -> Path:
    return store.folder / "images" / name[:2] / f"{name}.png"


def _files(place: Path) -> list[Path]:
    return [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]


def editor_id(editor: Any) -> dict[str, Any]:
    """What an editor's results depend on."""
    return {"weights": editor.fingerprint, "settings": getattr(editor, "settings", {}), "dtype": str(editor.dtype)}


def digest(tensor: Tensor) -> str:
    """sha256 of a tensor's shape, kind and values."""
    data = tensor.detach().cpu().contiguous()
    return hashlib.sha256(f"{data.dtype} {tuple(data.shape)}".encode() + data.numpy().tobytes()).hexdigest()


def _plain(value: Any) -> Any:
    """Tensors by their content."""
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def hash_of(image: Image) -> str:
    """What the engine's store calls the picture, on the 8-bit grid; of a batch, its first."""
    return picture_id(to_uint8(image[:1].clamp(0, 1)))
