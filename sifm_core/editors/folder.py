"""From a hub id to a checked diffusers folder to a frozen pipeline: safetensors only, no code from the folder runs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import EditorError, InputError, SifmError

_LIBRARIES = ("diffusers", "transformers")
_WEIGHTS = ("diffusion_pytorch_model", "model")
_CONFIGS = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
_WEIGHTLESS = ("scheduler", "tokenizer")


def download(hub_id: str, local_files_only: bool) -> Path:
    """The folder of a hub repository in the local cache; fetched first, as far as needed, unless ``local_files_only``.

    Raises EditorError, each with what to do: not in the cache, no such repository, gated, no connection.
    """
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        index = hf_hub_download(hub_id, "model_index.json", local_files_only=local_files_only)
        if not local_files_only:
            parts = [name for name, entry in read_json(Path(index)).items() if _is_part(entry)]
            kinds = ("*.json", "*.txt", "*.model", "*.safetensors")
            snapshot_download(
                hub_id,
                allow_patterns=["sifm.json", *(f"{part}/{kind}" for part in parts for kind in kinds)],
                ignore_patterns=["*.fp16.*", "*.bf16.*", "*.non_ema.*", "safety_checker/*"],
            )
    except hub.GatedRepoError:
        page = f"https://huggingface.co/{hub_id}"
        raise EditorError(
            f"{hub_id} is gated: accept its licence at {page}, then `hf auth login` or set HF_TOKEN"
        ) from None
    except hub.RepositoryNotFoundError:
        raise EditorError(
            f"{hub_id}: no such repository, or a private one: check the name, or `hf auth login`"
        ) from None
    except hub.RemoteEntryNotFoundError:
        raise EditorError(
            f"{hub_id} has no model_index.json: it is not a diffusers pipeline; choose another id"
        ) from None
    except hub.LocalEntryNotFoundError:
        how = "allow the download (local_files_only=False)" if local_files_only else "check the connection"
        raise EditorError(f"{hub_id} is not in the local cache: {how}, or give the folder of a local copy") from None
    except (hub.HFValidationError, hub.HfHubHTTPError, hub.OfflineModeIsEnabled, OSError) as error:
        raise EditorError(f"{hub_id} could not be fetched: {error}") from error
    return Path(index).parent


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises EditorError when there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EditorError(f"{path} is missing: get a complete copy of the folder") from None
    except (OSError, ValueError) as error:
        raise EditorError(f"{path} is not readable JSON ({error}): get a new copy") from error
    if not isinstance(content, dict):
        raise EditorError(f"{path} holds no JSON object: get a new copy")
    return content


def check(folder: Path, parts: Sequence[str]) -> None:
    """Raise EditorError unless the folder has configuration and whole safetensors weights of every part."""
    index = read_json(folder / "model_index.json")
    for part in parts:
        entry = index.get(part)
        if entry is None or not _is_part(entry):
            raise EditorError(f"{folder} has no {part} in its model_index.json: give a folder with the whole pipeline")
        if entry[0] not in _LIBRARIES:
            raise EditorError(f"{folder}: {part} is of {entry[0]!r}, and code from elsewhere is never run; convert it")
        kind = part.rstrip("_23")
        read_json(folder / part / _CONFIGS.get(kind, "config.json"))
        if kind not in _WEIGHTLESS:
            _weights(folder / part)


def fingerprint(folder: Path, parts: Sequence[str]) -> str:
    """sha256 over the names and contents of the configuration and weights that are used."""
    files = [folder / "model_index.json", *([folder / "sifm.json"] if (folder / "sifm.json").exists() else [])]
    for part in parts:
        weights = [] if part.rstrip("_23") in _WEIGHTLESS else _weights(folder / part)
        configs = [file for suffix in ("json", "txt", "model") for file in (folder / part).glob(f"*.{suffix}")]
        files += sorted({*weights, *configs})
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        digest.update(
            f"{file.relative_to(folder).as_posix()} {_sha256(file, state.st_mtime_ns, state.st_size)}\n".encode()
        )
    return digest.hexdigest()


def load_pipeline(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype, **parts: Any) -> Any:
    """The folder as a pipeline of class ``kind``, frozen; ``parts`` replace those of the folder, None leaves one out.

    Raises EditorError when a part does not load, or memory is too small.
    """
    from safetensors import SafetensorError

    try:
        with _quiet():
            pipe = kind.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                **parts,
            ).to(device)
    except torch.OutOfMemoryError as error:
        raise EditorError(
            f"{folder} does not fit into the memory of {device}: use dtype='bfloat16' or the CPU"
        ) from error
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError, SafetensorError) as error:
        raise EditorError(
            f"{folder} could not be loaded: {str(error).strip().splitlines()[0]}; get a new copy"
        ) from error
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def settings(folder: Path, defaults: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of the family, then of the folder's sifm.json, then what the caller chose.

    Raises InputError for a choice, EditorError for an entry of the file, that is unknown or not a positive number.
    """
    merged = dict(defaults)
    file = folder / "sifm.json"
    for source, values, kind in (
        (file, read_json(file) if file.exists() else {}, EditorError),
        ("load_editor", chosen, InputError),
    ):
        for name, value in values.items():
            if name not in defaults:
                raise kind(f"{source}: unknown option {name!r}; known: {', '.join(sorted(defaults))}")
            merged[name] = positive(f"{source}: {name}", value, whole=isinstance(defaults[name], int), kind=kind)
    return merged


def positive(name: str, value: Any, *, whole: bool, kind: type[SifmError] = InputError) -> Any:
    """Give back ``value`` if it is a finite number above 0 (``whole``: an integer); raise ``kind`` if not."""
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not 0 < value < math.inf:
        raise kind(f"{name}: expected a {'whole ' if whole else ''}number above 0, got {value!r}")
    return value


def _is_part(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(item, str) for item in entry)


def _weights(folder: Path) -> list[Path]:
    for stem in _WEIGHTS:
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if index.exists():
            shards = sorted({folder / name for name in read_json(index).get("weight_map", {}).values()})
            missing = [shard.name for shard in shards if not shard.exists()]
            if missing or not shards:
                raise EditorError(
                    f"{folder} lacks {', '.join(missing) or 'its weights'}: the download is incomplete; redo it"
                )
            return [index, *shards]
        if single.exists():
            return [single]
    if any(folder.glob("*.bin")) or any(folder.glob("*.ckpt")):
        raise EditorError(
            f"{folder} holds pickled weights only, which can run code when loaded: use a safetensors version "
            "or convert it with save_pretrained(safe_serialization=True)"
        )
    raise EditorError(f"{folder} holds no safetensors weights: the download is incomplete; redo it")


_hashes: dict[tuple[Path, int, int], str] = {}


def _sha256(file: Path, modified: int, size: int) -> str:
    key = (file.resolve(), modified, size)
    if key not in _hashes:
        _hashes[key] = _digest(file)
    return _hashes[key]


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars from the libraries while they load; their setting is restored."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
