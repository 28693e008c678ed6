"""Node tests call `execute` directly: they need COMFYUI_PATH and a Python with ComfyUI's requirements."""

from __future__ import annotations

import os
import sys

import pytest


@pytest.fixture(scope="session")
def comfy():
    """Makes ComfyUI importable, on the CPU; skips where it is not there."""
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("COMFYUI_PATH names no ComfyUI checkout")
    if path not in sys.path:
        sys.path.append(path)  # last: `nodes` and `tests` must stay this repository's
    pytest.importorskip("comfy_api.latest", reason="this Python lacks ComfyUI's requirements")
    from comfy.cli_args import args

    args.cpu = True


@pytest.fixture(scope="session")
def editor(comfy, tmp_path_factory):
    """A tiny random InstructPix2Pix in an editor socket."""
    from nodes.load import SifmLoadEditor
    from tests import fakes

    folder = fakes.instruct_pix2pix(tmp_path_factory.mktemp("editor"))
    return SifmLoadEditor.execute("miniature-ip2p", folder=str(folder))[0]
