"""From a hub id to a checked diffusers folder to a frozen pipeline: safetensors only, no code from the folder runs."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ..errors import EditorError, InputError, SifmError
from ..files import in_cache, read_text, sha256_of
from ..memory import enough
from ..pretrained import LIBRARIES, is_part, networks
from . import extra

_WEIGHTS = ("diffusion_pytorch_model", "model")
_CONFIGS = {"scheduler": "scheduler_config.json"} | dict.fromkeys(("tokenizer", "processor"), "tokenizer_config.json")
_WEIGHTLESS = ("scheduler", "tokenizer", "processor")
NETWORKS = ("transformer", "unet")
"""The parts that are noise predictors."""
EXTRAS = ("weights", "loras")
"""Options of every family: a file that takes the place of the noise predictor's weights; files that are added to it."""
MOST = {"layers": 1000, "steps": 10_000, "size": 16_384, "t5_tokens": 4096, "num_train_timesteps": 100_000}
MOST |= {"text_tokens": 4096}
"""The most layers of a kind and timesteps that a configuration may ask for, and the most of an editor's settings."""
LARGEST = 10**9
"""The most of any other number."""


OnDownload = Callable[[str, int], None]
"""Called with the hub id and the number of bytes before they are fetched. To refuse, raise."""


def download(
    hub_id: str,
    local_files_only: bool,
    unneeded: Callable[[Mapping[str, Any]], Sequence[str]] = lambda index: (),
    weightless: Collection[str] = (),
    on_download: OnDownload | None = None,
) -> Path:
    """The folder of a hub repository in the local cache; fetched first, as far as needed, unless ``local_files_only``.

    ``unneeded`` names parts that the caller will not load, from model_index.json; of those that are ``weightless`` only
    the configuration is fetched. Raises EditorError, each with what to do: not in the cache, no such repository, gated,
    no token, no connection, no room on the disk.
    """
    import huggingface_hub
    from huggingface_hub import errors as hub

    if local_files_only and (here := in_cache(hub_id, "model_index.json")) != hub_id:
        return Path(here)
    try:
        index = huggingface_hub.hf_hub_download(hub_id, "model_index.json", local_files_only=local_files_only)
        if not local_files_only:
            listed = read_json(Path(index))
            parts = {name for name, entry in listed.items() if is_part(entry)} - set(unneeded(listed))
            kinds = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
            chosen: dict[str, Any] = {
                "allow_patterns": [
                    "sifm.json",
                    *(f"{p}/{k}" for p in sorted(parts) for k in (kinds[:1] if p in weightless else kinds)),
                ],
                "ignore_patterns": ["*.fp16[.-]*", "*.bf16[.-]*", "*.non_ema[.-]*", "safety_checker/*"],
            }
            files = huggingface_hub.snapshot_download(hub_id, dry_run=True, **chosen)
            if size := sum(file.file_size for file in files if file.will_download):
                _check_disk(hub_id, size, Path(index))
                if on_download is not None:
                    on_download(hub_id, size)
                huggingface_hub.snapshot_download(hub_id, **chosen)
    except hub.GatedRepoError:
        page = f"https://huggingface.co/{hub_id}"
        if huggingface_hub.get_token() is None:
            raise EditorError(
                f"{hub_id} is gated and there is no token: accept its licence at {page}, "
                "then `hf auth login` or set HF_TOKEN"
            ) from None
        raise EditorError(
            f"{hub_id} is gated, and the account of your token has no access: accept its licence at {page} with it"
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
        from . import BUILTIN, GIGABYTES

        known = next((f", {GIGABYTES[name]} GB" for name in GIGABYTES if BUILTIN[name] == hub_id), "")
        how = f"allow the download{known} ({{local_files_only}})" if local_files_only else "check the connection"
        raise EditorError(
            f"{hub_id} is not in the local cache: {how}, or give the folder of a local copy", local_files_only=False
        ) from None
    except (hub.HFValidationError, hub.HfHubHTTPError, hub.OfflineModeIsEnabled, OSError) as error:
        raise EditorError(f"{hub_id} could not be fetched: {error}") from error
    return Path(index).parent


def _check_disk(hub_id: str, size: int, place: Path) -> None:
    free = shutil.disk_usage(place).free
    if size > free:
        raise EditorError(
            f"{hub_id}: {size / 1e9:.1f} GB to fetch, {free / 1e9:.1f} GB free at {place.parent}: make room, "
            "or set HF_HOME to a larger disk"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises EditorError when there is none."""
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        raise EditorError(f"{path} is missing: get a complete copy of the folder, or fetch it again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise EditorError(f"{path} is not readable JSON ({error}): get a new copy") from error
    if not isinstance(content, dict):
        raise EditorError(f"{path} holds no JSON object: get a new copy")
    return content


def check(folder: Path, parts: Sequence[str], options: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Raise EditorError unless the folder has configuration and whole safetensors weights of every part.

    With ``weights`` among the ``options`` the network's own are not needed.
    """
    index = read_json(folder / "model_index.json")
    for part in parts:
        entry = index.get(part)
        if entry is None or not is_part(entry):
            raise EditorError(f"{folder} has no {part} in its model_index.json: give a folder with the whole pipeline")
        if entry[0] not in LIBRARIES:
            raise EditorError(f"{folder}: {part} is of {entry[0]!r}, and code from elsewhere is never run; convert it")
        kind = part.rstrip("_23")
        file = folder / part / _CONFIGS.get(kind, "config.json")
        config = read_json(file)
        if kind not in ("tokenizer", "processor"):  # which write 10**30 for no limit
            check_sizes(config, file)
        if kind not in _WEIGHTLESS and not (part in NETWORKS and options.get("weights")):
            _weights(folder / part)


def check_sizes(config: Any, file: Path, name: str = "") -> None:
    """Raise EditorError for a configuration of a network that nobody could build: too many layers, absurd numbers."""
    most = MOST["layers"] if "layers" in name else MOST.get(name, LARGEST)
    if isinstance(config, Mapping):
        for key, value in config.items():
            check_sizes(value, file, key)
    elif isinstance(config, list):
        if len(config) > MOST["layers"]:
            raise EditorError(f"{file}: {name[:60]}: expected at most {MOST['layers']} entries, got {len(config)}")
        for value in config:
            check_sizes(value, file, name)
    elif isinstance(config, int | float) and not -LARGEST <= config <= most:
        raise EditorError(f"{file}: {name[:60]}: expected at most {most}, got {config!r}; get a new copy")


def fingerprint(folder: Path, parts: Sequence[str], options: Mapping[str, Any] = MappingProxyType({})) -> str:
    """sha256 over the names and contents of the configuration and weights that are used, with those of the options."""
    files = [folder / "model_index.json", *([folder / "sifm.json"] if (folder / "sifm.json").exists() else [])]
    for part in parts:
        without = part.rstrip("_23") in _WEIGHTLESS or (part in NETWORKS and options.get("weights"))
        weights = [] if without else _weights(folder / part)
        listed = [file for suffix in ("json", "txt", "model", "jinja") for file in (folder / part).glob(f"*.{suffix}")]
        configs = [file for file in listed if file.is_file()]
        files += sorted({*weights, *configs})
    named = [(file.relative_to(folder).as_posix(), file) for file in files]
    named += [("weights", options["weights"])] if options.get("weights") else []
    named += [(f"lora {strength:g}", file) for file, strength in options.get("loras", ())]
    digest = hashlib.sha256()
    for name, file in named:
        state = file.stat()
        digest.update(f"{name} {_sha256(file, state.st_mtime_ns, state.st_size)}\n".encode())
    return digest.hexdigest()


def load_pipeline(
    kind: Any, folder: Path, dtype: torch.dtype, options: Mapping[str, Any] = MappingProxyType({}), **parts: Any
) -> Any:
    """The folder as a frozen pipeline of class ``kind`` on the CPU; ``parts`` replace the folder's, None omits one.

    ``options``: ``weights`` and ``loras`` of :func:`sifm_core.editors.extra.check_extras`. Raises EditorError
    when a part does not load or lacks weights, or memory is too small.
    """
    try:
        with _quiet(), enough(f"loading {folder}", torch.device("cpu")):
            if options.get("weights"):
                parts |= extra.network(folder, options["weights"], dtype)
            here: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
            whole = networks(kind, folder, but=parts, **here)
            pipe = kind.from_pretrained(folder, **here, trust_remote_code=False, **whole, **parts).to("cpu")
            extra.add(pipe, options.get("loras", ()))
    except SifmError:
        raise
    except Exception as error:  # what another folder's configuration makes the libraries raise is nearly anything
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise EditorError(f"{folder} could not be loaded: {reason}; get a new copy") from error
    for name, part in pipe.components.items():
        if name.startswith("tokenizer") and hasattr(part, "model_max_length"):
            _limit(part, pipe.components.get(name.replace("tokenizer", "text_encoder")))
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    if hasattr(pipe, "tokenizer_max_length") and hasattr(pipe.tokenizer, "model_max_length"):
        pipe.tokenizer_max_length = min(pipe.tokenizer_max_length, pipe.tokenizer.model_max_length)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _limit(tokenizer: Any, encoder: Any) -> None:
    """A tokenizer that names no limit, or an absurd one, writes as many tokens as its encoder has positions for."""
    most, said = getattr(getattr(encoder, "config", None), "max_position_embeddings", None), tokenizer.model_max_length
    if isinstance(most, int) and not (isinstance(said, int) and 0 < said <= most):
        tokenizer.model_max_length = most


def settings(folder: Path | None, defaults: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of the family, then of the folder's sifm.json, then what the caller chose.

    Raises InputError for a choice, EditorError for an entry of the file, that is unknown, not a positive number, or
    larger than :data:`MOST` says.
    """
    merged = dict(defaults)
    file = folder / "sifm.json" if folder else None
    for source, values, kind in (
        (file, read_json(file) if file and file.exists() else {}, EditorError),
        ("load_editor", chosen, InputError),
    ):
        for name, value in values.items():
            if name in EXTRAS and source != file:
                continue
            if name not in defaults:
                raise kind(f"{source}: unknown option {name!r}; known: {', '.join(sorted(defaults))}")
            merged[name] = positive(f"{source}: {name}", value, whole=isinstance(defaults[name], int), kind=kind)
            if merged[name] > MOST.get(name, LARGEST):
                raise kind(f"{source}: {name}: expected at most {MOST.get(name, LARGEST)}, got {value!r}")
    return merged


def toy(folder: Path) -> int | None:
    """What a folder's toy.json says: the longer side, in pixels, of all that the editor knows; None without it."""
    file = folder / "toy.json"
    return (
        positive(f"{file}: side", read_json(file).get("side"), whole=True, kind=EditorError) if file.exists() else None
    )


def named(table: Mapping[str, Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """What a table says of an editor, by the last part of its short name, hub id or folder in small letters."""
    return table.get(Path(name).name.lower(), {})


def positive(name: str, value: Any, *, whole: bool, kind: type[SifmError] = InputError) -> Any:
    """``value`` as an integer (``whole``) or float if it is a finite number above 0; raise ``kind`` if not."""
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not 0 < value < math.inf:
        raise kind(f"{name}: expected a {'whole ' if whole else ''}number above 0, got {value!r}")
    return value if whole else float(value)


def _shards(weight_map: Any) -> set[str]:
    """The files of a weight_map; none where it is no map to names of files in its own folder."""
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    return set(names) if all(isinstance(name, str) and Path(name).name == name for name in names) else set()


def _weights(folder: Path) -> list[Path]:
    for stem in _WEIGHTS:
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            shards = sorted(folder / name for name in _shards(read_json(index).get("weight_map")))
            missing = [shard.name for shard in shards if not shard.is_file()]
            if missing or not shards:
                raise EditorError(
                    f"{folder} lacks {', '.join(missing) or 'its weights'}: the download is incomplete; redo it"
                )
            return [index, *shards]
        if single.is_file():
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
        _hashes[key] = sha256_of(file)
    return _hashes[key]


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
