"""Files that people have beside a pipeline's folder: single-file checkpoints and LoRAs, safetensors only."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import EditorError, InputError
from ..files import read_text

_SCALES = (".scale_weight", ".weight_scale")
"""How files in fp8 name what their weights are to be multiplied by."""
_BESIDE = ("scaled_fp8", ".scale_input", ".input_scale", ".comfy_quant")
"""What such files hold that no network has."""
_FILE = re.compile(r"(.+\.safetensors)(?::(-?\d*\.?\d+))?")
STRONGEST = 10.0


def parted(name: str) -> tuple[str, list[str]]:
    """An editor's source, and the files that follow it after plus signs."""
    source, *files = re.split(r"\+(?=[^+]+\.safetensors(?::[^+]*)?(?:\+|$))", name)
    return source, files


def check_extras(files: Sequence[str | os.PathLike[str]]) -> dict[str, Any]:
    """The options ``weights``, a file, and ``loras``, (file, strength) each, of files as :func:`parted` names them.

    Which of the two a file is stands in the names of its tensors. Raises InputError for a strength that is none and for
    two checkpoints, EditorError for what is no safetensors file.
    """
    found: dict[str, Any] = {}
    for said in (os.fspath(file) for file in files):
        match = _FILE.fullmatch(said)
        strength = float(match[2] or 1) if match else math.nan
        if match is None or not 0 < abs(strength) <= STRONGEST:
            raise InputError(f"{said}: expected FILE.safetensors, or FILE.safetensors:STRENGTH up to {STRONGEST:g}")
        file = Path(match[1]).expanduser()
        if any("lora" in name.lower() for name in _names(file)):
            found["loras"] = (*found.get("loras", ()), (file, strength))
        elif match[2]:
            raise InputError(f"{said}: a checkpoint has no strength; leave {match[2]} out")
        elif "weights" in found:
            raise InputError(f"{said}: expected one checkpoint, got {found['weights']} too; choose")
        else:
            found["weights"] = file
    return found


def _names(file: Path) -> list[str]:
    """Of the tensors in it."""
    if not file.is_file():
        raise EditorError(f"{file}: no such file; check the path")
    try:
        with safe_open(file, framework="pt") as held:
            return list(held.keys())
    except Exception as error:  # the library's own kind, and what an odd file makes it raise
        raise EditorError(f"{file} is not readable as safetensors ({error}); get a new copy") from error


def network(folder: Path, file: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The noise predictor of ``folder``'s configuration with the weights of ``file``, by the name of its part."""
    import diffusers
    from safetensors.torch import load_file

    index = json.loads(read_text(folder / "model_index.json"))
    part = "unet" if "unet" in index else "transformer"
    kind = getattr(diffusers, index[part][1])
    if not hasattr(kind, "from_single_file"):
        raise EditorError(f"{file}: a {kind.__name__} is not read from a single file; give a diffusers folder")
    state = unscaled(load_file(file), dtype)
    try:
        loaded = kind.from_single_file(state, config=str(folder), subfolder=part, dtype=dtype, local_files_only=True)
    except Exception as error:  # what another network's tensors make the library raise is nearly anything
        raise EditorError(
            f"{file} lacks weights of a {kind.__name__} as {folder} describes it, or is another network's "
            f"({type(error).__name__}: {error}); get a new copy, or name the editor that it belongs to"
        ) from error
    missing = [name for name, value in loaded.state_dict().items() if value.is_meta]
    if missing:
        raise EditorError(f"{file} lacks {len(missing)} weights of a {kind.__name__}, such as {missing[0]}")
    return {part: loaded}


def unscaled(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights as the network multiplies by them: in fp8 they may stand beside a factor of their own."""
    for name in [name for name in state if name.endswith(_SCALES)]:
        weight = name.rpartition(".")[0] + ".weight"
        factor = state.pop(name)
        if weight in state:
            state[weight] = (state[weight].to(torch.float32) * factor.to(torch.float32)).to(dtype)
    return {name: value for name, value in state.items() if not name.endswith(_BESIDE)}


def add(pipe: Any, loras: Sequence[tuple[Path, float]]) -> None:
    """Add the changes of LoRAs to the weights of a pipeline's networks, whose layers stay what they are."""
    if not loras:
        return
    try:
        import peft  # noqa: F401
    except ImportError:
        raise EditorError("LoRAs are read by the package peft: pip install peft") from None
    if not hasattr(pipe, "load_lora_weights"):
        raise EditorError(f"{type(pipe).__name__} takes no LoRAs: leave them out")
    for file, strength in loras:
        pipe.load_lora_weights(file.parent, weight_name=file.name, use_safetensors=True, local_files_only=True)
        pipe.fuse_lora(lora_scale=strength)
        pipe.unload_lora_weights()
