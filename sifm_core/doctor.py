"""What this machine has and lacks: findings with their cures for ``sifm doctor``, the tables for ``sifm list``."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import judges, methods, metrics, purify
from .bench import hardware, package_version
from .editors import BUILTIN, GIGABYTES

NEEDED = ("torch", "torchvision", "diffusers", "transformers", "lpips", "piq", "scipy", "PIL", "safetensors")
_DISTRIBUTIONS = {"PIL": "pillow"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; "note" is something optional that is missing, "problem" something needed."""

    name: str
    state: Literal["ok", "note", "problem"]
    found: str
    cure: str = ""


def examine() -> list[Finding]:
    """Look at everything once; takes some seconds, because it really imports the libraries. Keys are never read out."""
    return [*_python(), *_packages(), *_weights(), *_lpips(), *_keys(), *_comfyui(), *_device()]


def catalogue() -> dict[str, dict[str, dict[str, Any]]]:
    """Editors, methods (with options), purifiers, judges and metrics: name -> {"about": one line, ...}.

    An entry whose module is broken says so in its own line.
    """
    return {
        "editors": {
            name: {"about": f"{source}, {GIGABYTES[name]} GB" if name in GIGABYTES else "embedded: a toy"}
            for name, source in BUILTIN.items()
        },
        "methods": _described(methods.METHODS, _method),
        "purifiers": _described(purify.PURIFIERS, _purifier),
        "judges": _described(judges.BACKENDS, _judge),
        "metrics": {
            name: {"about": kind.meaning, "definition": kind.definition, "better": kind.better}
            for name, kind in metrics.METRICS.items()
        },
    }


def _described(names: Iterable[str], describe: Callable[[str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    table = {}
    for name in names:
        try:
            table[name] = describe(name)
        except Exception as error:  # whatever a module of somebody else's raises
            table[name] = {"about": f"cannot be used: {_first_line(error)}"}
    return table


def _method(name: str) -> dict[str, Any]:
    about, options = methods.about(name), methods.options(name)
    return {
        "about": about.summary,
        "provenance": about.provenance,
        "beyond_the_paper": list(about.beyond),
        "presets": methods.presets(name),
        "options": {key: {"default": option.default, "about": option.doc} for key, option in options.items()},
    }


def _purifier(name: str) -> dict[str, Any]:
    needs = purify.needs_editor(name)
    return {"about": purify.about(name), "needs_editor": needs, **purify.PURIFIERS[name]._asdict()}


def _judge(name: str) -> dict[str, Any]:
    return {"about": (importlib.import_module(judges.BACKENDS[name].module).__doc__ or "").strip().partition("\n")[0]}


def _python() -> Iterator[Finding]:
    good = sys.version_info >= (3, 10)
    cure = "" if good else "use Python 3.10 or newer"
    yield Finding("python", "ok" if good else "problem", platform.python_version(), cure)


def _packages() -> Iterator[Finding]:
    for name in NEEDED:
        distribution = _DISTRIBUTIONS.get(name, name)
        error = _import_error(name)
        if error is None:
            yield Finding(name, "ok", package_version(distribution) or "?")
        else:
            yield Finding(name, "problem", error, _cure(distribution, error))
    if package_version("torchaudio"):
        if error := _import_error("torchaudio"):
            cure = "pip uninstall torchaudio, or install the torch it was built for: transformers imports it"
            yield Finding("torchaudio", "problem", f"{package_version('torchaudio')}: {error}", cure)
        else:
            yield Finding("torchaudio", "ok", package_version("torchaudio") or "")
    error = _import_error("diffusers", "StableDiffusionInstructPix2PixPipeline")
    cure = "the line above that fails is the cause; if none does: pip install -U diffusers transformers"
    yield Finding("editor pipeline", "problem" if error else "ok", error or "imports", cure if error else "")
    for name, backend in judges.BACKENDS.items():
        if (package := backend.package) and package not in NEEDED:
            version = package_version(package)
            cure = "" if version else f"pip install {package}, if you want the {name} judges"
            yield Finding(package, "ok" if version else "note", version or "not installed", cure)


def _weights() -> Iterator[Finding]:
    folder = Path(BUILTIN["miniature-ip2p"])
    whole = (folder / "model_index.json").exists() and any(folder.rglob("*.safetensors"))
    train = "reinstall the package, or train it: python -m sifm_core.miniature.train"
    yield _presence("miniature editor", folder, whole, train)
    judge_folder = folder.parent / "judges"
    yield _presence("miniature judges", judge_folder, any(judge_folder.glob("*.safetensors")), train)


def _lpips() -> Iterator[Finding]:
    from .metrics.lpips import backbone_path, missing

    file = backbone_path()
    if missing(file):
        found = "not torchvision's file" if file.exists() else "missing"
        cure = f"put torchvision's file at {file} (https://download.pytorch.org/models/{file.name})"
        yield Finding("LPIPS backbone", "note", f"{found}, so LPIPS will be null", cure)
    else:
        yield Finding("LPIPS backbone", "ok", str(file))


def _keys() -> Iterator[Finding]:
    uses = {backend.keys[0]: f"the {name} judges" for name, backend in judges.BACKENDS.items() if backend.keys}
    for name, use in {**uses, "HF_TOKEN": "gated editors"}.items():
        there = bool(os.environ.get(name))
        yield Finding(name, "ok" if there else "note", "set" if there else "not set", "" if there else f"for {use}")


def _comfyui() -> Iterator[Finding]:
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        yield Finding("ComfyUI", "note", "COMFYUI_PATH not set", "set it to your ComfyUI folder to test the nodes")
    elif not (Path(path) / "main.py").is_file():
        yield Finding("ComfyUI", "problem", f"{path} has no main.py", "set COMFYUI_PATH to the folder with main.py")
    else:
        yield Finding("ComfyUI", "ok", path)


def _device() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError, RuntimeError):
        return  # said above
    kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(kind)
    memory = f"{_memory() / 2**30:.0f} GiB of memory"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        memory = f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free on the GPU, {memory}"
    yield Finding("device", "ok", f"{hardware(device)}, {memory}")


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def _import_error(module: str, attribute: str = "") -> str | None:
    """None when it imports, else the first line of what it says. Broken binary packages raise more than ImportError."""
    try:
        imported = importlib.import_module(module)
        if attribute:
            getattr(imported, attribute)
    except Exception as error:
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _cure(distribution: str, error: str) -> str:
    if package_version(distribution) is None:
        return f"pip install {distribution}"
    if "torchvision::nms" in error or distribution == "torchvision":
        return "torch and torchvision do not fit together: install both anew from the same index"
    return f"pip install --force-reinstall {distribution}"


def _presence(name: str, path: Path, there: bool, cure: str) -> Finding:
    return Finding(
        name, "ok" if there else "problem", str(path) if there else f"{path} is missing", "" if there else cure
    )
