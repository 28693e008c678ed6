"""What an edit by a loaded model depends on, as one hash: so that records, stores and certificates stay true."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .gradients import plain

_KNOWN: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()
"""Network -> state of its patches -> hash: reading gigabytes takes a while."""


def fingerprint(editor: Any) -> str:
    """sha256 over weights as they lie on disk (quantised or not), LoRAs and other patches with their strengths, VAE,
    text encoder, fixed conditionings, mask and the sampler's settings."""
    parts = [
        _patched(editor.model),
        _patched(editor.vae.patcher),
        "" if editor.clip is None else _patched(editor.clip.patcher),
        "" if editor.clip is None else f"{editor.clip.layer_idx} {editor.clip.tokenizer_options}",
        _content([editor.positive, editor.negative, editor.mask]),
        _content(editor.model.model_options),
        f"{editor.dtype} {editor.vae.vae_dtype}",
        json.dumps(editor.settings, sort_keys=True),
        _content(getattr(editor.sampling.sampler, "extra_options", None)),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _patched(patcher: Any) -> str:
    from comfy.utils import get_attr

    state = f"{patcher.patches_uuid if patcher.patches else ''} {sorted(patcher.object_patches)}"
    known = _KNOWN.setdefault(patcher.model, {})
    if state not in known:
        digest = hashlib.sha256()
        for key in sorted(patcher.model_state_dict()):
            kept = patcher.backup.get(key)  # as it was before patches changed it
            with suppress(AttributeError):  # GGUF loaders' state dicts name what is not there
                weight = get_attr(patcher.model, key) if kept is None else kept.weight
                digest.update(key.encode())
                for piece in _pieces([weight, patcher.patches.get(key, [])]):
                    digest.update(piece)
        for name, patch in sorted(patcher.object_patches.items()):
            digest.update(f"{name} {type(patch).__name__}".encode())
            if isinstance(patch, torch.nn.Module):
                for piece in _pieces(dict(patch.state_dict()) | {"": _numbers(patch)}):
                    digest.update(piece)
        known[state] = digest.hexdigest()
    return known[state]


def _numbers(module: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if isinstance(value, int | float | str)}


def _content(value: Any) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(value):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    """Bytes that say what a value is; of what is neither plain data nor a tensor, the class and a LoRA's weights."""
    if isinstance(value, Tensor):
        if is_traceable_wrapper_subclass(value):
            names, about = value.__tensor_flatten__()
            yield f"{about}".encode()
            for name in names:
                yield from _pieces(getattr(value, name))
            return
        data = plain(value.detach()).cpu().contiguous()
        yield f"{data.dtype} {tuple(data.shape)}".encode()
        yield data.reshape(-1).view(torch.uint8).numpy().data if data.numel() else b""
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield f"{key}:".encode()
            yield from _pieces(value[key])
    elif isinstance(value, list | tuple | set):
        yield f"[{len(value)}".encode()
        for item in value:
            yield from _pieces(item)
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        yield repr(value).encode()
    else:
        yield type(value).__qualname__.encode()
        if hasattr(value, "weights"):  # a LoRA's, in core's weight adapters
            yield from _pieces(value.weights)
