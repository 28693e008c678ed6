"""What outlives a prompt, in ComfyUI's user folder: results that need not be computed twice, and the runs.

``sifm/results`` and every ``sifm/runs/ID`` are stores of the engine, so `sifm` on the command line reads them too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sifm_core.images import to_uint8
from sifm_core.store import Store, fingerprint, picture_id
from sifm_core.types import Image

ANNOTATIONS = "annotations.jsonl"
"""What people said in the sidebar, in :func:`home`; a case is named by its content, so one file serves all runs."""
VERSION = 3
"""Part of every key: raise it when what a node computes changes."""


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
            return torch.cat([store.get_image(name) for name in known["pictures"]]), known
        pictures, about = compute()
        store.put(kind, key, about | {"pictures": [store.put_image(picture) for picture in pictures]})
        return pictures, about


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
