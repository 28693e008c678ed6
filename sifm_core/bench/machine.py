"""Where a run's figures come from: versions, commit, hardware, memory. What cannot be known is None."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

PACKAGE = "sifm"
PACKAGES = (PACKAGE, "torch", "torchvision", "diffusers", "transformers", "lpips", "piq", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Of Python and of the installed packages that figures depend on."""
    found = {name: package_version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | {name: version for name, version in found.items() if version}


def package_version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The git commit of this code, "-dirty" when it was changed since; None where it is no checkout."""
    here = Path(__file__)
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:  # installed within somebody else's checkout
        return None
    head, changes = (
        _git(here.parent, *words.split()) for words in ("rev-parse --short=12 HEAD", "status --porcelain -uno")
    )
    return head and head + ("-dirty" if changes else "")


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def hardware(device: torch.device) -> str:
    """The device in words: the GPU's name, or the machine's CPU and the threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    return f"{device.type}: {platform.machine()}, {threads}, {platform.system()}"
