"""The editors to immunize against: one file per family, loaded from diffusers folders by :func:`load_editor`.

A family module has ``load(folder, name, dtype, options) -> LatentEditor``, on the CPU, ``assemble(name, folder, pipe,
settings)``, the same from networks, ``DEFAULTS``, and may have ``unneeded(index, options)``, the parts of a hub
repository that it will not load. To add one: write the file and list its pipeline classes in :data:`FAMILIES`.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import EditorError, InputError, unknown
from ..types import Editor
from .extra import check_extras, parted
from .folder import NETWORKS, OnDownload, download, read_json, toy

MINIATURES = Path(__file__).parents[1] / "miniature" / "weights"
BUILTIN: dict[str, str] = {
    **{f"miniature-{kind}": str(MINIATURES / f"miniature-{kind}") for kind in ("ip2p", "hq-edit", "sd3", "qwen")},
    "instruct-pix2pix": "timbrooks/instruct-pix2pix",
    "hq-edit": "MudeHui/HQ-Edit",
    "sd3-medium": "stabilityai/stable-diffusion-3-medium-diffusers",
    "ultraedit": "BleachNick/SD3_UltraEdit_freeform",
    "flux-kontext": "black-forest-labs/FLUX.1-Kontext-dev",
    "flux2-dev": "black-forest-labs/FLUX.2-dev",
    "flux2-klein-4b": "black-forest-labs/FLUX.2-klein-4B",
    "flux2-klein-9b": "black-forest-labs/FLUX.2-klein-9B",
    "flux2-klein-9b-kv": "black-forest-labs/FLUX.2-klein-9b-kv",
    "flux2-klein-base-4b": "black-forest-labs/FLUX.2-klein-base-4B",
    "flux2-klein-base-9b": "black-forest-labs/FLUX.2-klein-base-9B",
    "qwen-image-2.1": "Qwen/Qwen-Image-2.1",
    "qwen-image-edit": "Qwen/Qwen-Image-Edit",
    "qwen-image-edit-2509": "Qwen/Qwen-Image-Edit-2509",
    "qwen-image-edit-2511": "Qwen/Qwen-Image-Edit-2511",
}
"""Short name -> folder or hub id."""
GIGABYTES = {"instruct-pix2pix": 4.3, "hq-edit": 4.3, "sd3-medium": 15.5, "ultraedit": 15.5, "flux-kontext": 33.8}
GIGABYTES |= {"flux2-dev": 112.6, **dict.fromkeys(("flux2-klein-4b", "flux2-klein-base-4b"), 16.0)}
GIGABYTES |= dict.fromkeys(("flux2-klein-9b", "flux2-klein-9b-kv", "flux2-klein-base-9b"), 34.7)
GIGABYTES |= {"qwen-image-2.1": 32.5}
GIGABYTES |= dict.fromkeys(("qwen-image-edit", "qwen-image-edit-2509", "qwen-image-edit-2511"), 57.7)
"""Of those that are no toys, about what is fetched."""

FAMILIES: dict[str, str] = {
    "StableDiffusionInstructPix2PixPipeline": "sifm_core.editors.instruct_pix2pix",
    "StableDiffusion3Pipeline": "sifm_core.editors.sd3",
    "StableDiffusion3Img2ImgPipeline": "sifm_core.editors.sd3",
    "StableDiffusion3InstructPix2PixPipeline": "sifm_core.editors.ultraedit",
    "FluxKontextPipeline": "sifm_core.editors.flux_kontext",
    "Flux2Pipeline": "sifm_core.editors.flux2",
    "Flux2KleinPipeline": "sifm_core.editors.flux2",
    "Flux2KleinKVPipeline": "sifm_core.editors.flux2",
    "QwenImageEditPipeline": "sifm_core.editors.qwen_image_edit",
    "QwenImageEditPlusPipeline": "sifm_core.editors.qwen_image_edit",
    "QwenImage21Pipeline": "sifm_core.editors.qwen_image21",
}
"""Pipeline class, as the folder's model_index.json names it -> module."""

_OFFLOADS = ("none", "text", "sequential")
_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def load_editor(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    offload: Literal["none", "text", "sequential"] = "none",
    checkpointing: bool = False,
    local_files_only: bool = True,
    on_download: OnDownload | None = None,
    **options: Any,
) -> Editor:
    """Load a frozen editor from a built-in name, a diffusers folder or a hub id ("owner/name").

    ``device`` "auto": CUDA, else MPS, else CPU. ``dtype`` "auto": bfloat16 on CUDA, else float32. To save memory:
    ``offload`` "text" keeps the text encoders on the device only while they read a prompt, "sequential" then takes the
    other networks off it as well (nothing changes on the CPU); ``checkpointing`` recomputes inner results in the
    backward pass instead of keeping them. Nothing is downloaded unless ``local_files_only`` is False; ``on_download``
    is told the size first. ``options`` change the editor's defaults: steps, guidance_scale, size, ...

    Files may follow the source after plus signs, "flux-kontext+kontext-fp8.safetensors+style.safetensors:0.8": a
    checkpoint in place of the noise predictor's own weights, and LoRAs, each with its strength if that is not 1, beside
    those in the folder's "loras". They are part of the fingerprint.

    Raises InputError for an unknown name, device, dtype or option; EditorError for a folder that is missing,
    incomplete, not safetensors or of another pipeline class, for a repository that cannot be reached, and when memory
    or disk is too small.
    """
    where = check_device(device)
    number = check_dtype(dtype, where)
    check_offload(offload)
    whole = os.fspath(source)
    name, files = parted(whole)
    extras = check_extras(files)

    def unneeded(index: Mapping[str, Any]) -> Sequence[str]:
        return getattr(family(index, name), "unneeded", lambda index, options: ())(index, options)

    given: dict[str, Any] = {"local_files_only": local_files_only, "unneeded": unneeded, "on_download": on_download}
    folder = _folder(name, partial(download, weightless=NETWORKS if "weights" in extras else (), **given))
    extras |= check_extras([*folder.glob("loras/*.safetensors"), *files])
    with torch.inference_mode(False):
        try:
            editor = family(read_json(folder / "model_index.json"), name).load(folder, name, number, options | extras)
        except ImportError as error:
            raise EditorError(f"{whole}: {error}; a newer diffusers has it: pip install -U diffusers") from error
        editor.name, editor.extras = whole, extras
        editor.toy = toy(folder)
        editor.place(where, offload, checkpointing)
    return editor


def family(index: Mapping[str, Any], name: str) -> Any:
    """The module for a pipeline's model_index.json. Raises EditorError for a class that has none."""
    kind = index.get("_class_name")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise EditorError(f"{name} is a {kind}: expected one of {', '.join(FAMILIES)}")
    return importlib.import_module(FAMILIES[kind])


def local_folder(name: str) -> Path:
    """The folder of a built-in name, a folder or a hub id in the local cache. Raises EditorError if it is not here."""
    return _folder(name, partial(download, local_files_only=True))


def _folder(name: str, fetch: Callable[[str], Path]) -> Path:
    source = BUILTIN.get(name, name)
    try:
        folder = Path(source).expanduser()
        is_there, is_folder = folder.exists(), folder.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, the home of nobody
        raise EditorError(f"{source}: this can be the name of no folder ({error}); check it") from None
    if is_folder:
        if not (folder / "model_index.json").exists():
            raise EditorError(f"{folder} has no model_index.json: expected the folder of a diffusers pipeline")
        return folder
    if is_there:
        raise EditorError(f"{folder} is a file: expected the folder of a diffusers pipeline, not a single checkpoint")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source):
        return fetch(source)
    if source == name and not re.search(r"[/\\]", name):
        raise unknown("editor", name, BUILTIN)
    raise EditorError(f"{folder}: no such folder; give a built-in name ({', '.join(BUILTIN)}), a folder or a hub id")


def parsed(device: str) -> torch.device:
    """The device of that name, here or not ("auto": the CPU). Raises InputError for what names none."""
    try:
        return torch.device("cpu" if device == "auto" else device)
    except RuntimeError:
        raise InputError(f"device: expected auto, cuda, mps or cpu, got {device!r}") from None


def check_device(device: str | torch.device) -> torch.device:
    """The device, "auto" resolved. Raises InputError for one that is not there."""
    if device == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(kind)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"device {str(device)!r} cannot be used ({reason}): use 'auto', 'cuda', 'mps' or 'cpu'"
        ) from error
    return torch.device(device)


def check_offload(offload: str) -> str:
    """The name. Raises InputError for an unknown one."""
    if offload not in _OFFLOADS:
        raise unknown("offload", str(offload), _OFFLOADS)
    return offload


def check_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The type of the networks' numbers, "auto" resolved. Raises InputError for an unknown name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in _DTYPES:
        raise unknown("dtype", dtype, ("auto", *_DTYPES))
    return _DTYPES[dtype]
