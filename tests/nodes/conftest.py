"""Node tests call `execute` directly: most need COMFYUI_PATH and a Python with ComfyUI's requirements."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks what needs a ComfyUI, so that `-m comfyui` runs what was skipped for want of one."""
    for item in items:
        if "comfy" in item.fixturenames:
            item.add_marker("comfyui")


@pytest.fixture(scope="session")
def comfy():
    """Makes ComfyUI importable, on the CPU; skips where it is not there."""
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("COMFYUI_PATH names no ComfyUI checkout: the nodes are NOT tested")
    if path not in sys.path:
        sys.path.append(path)
    pytest.importorskip("comfy_api.latest", reason="this Python lacks ComfyUI's requirements")
    from comfy.cli_args import args

    args.cpu = True


@pytest.fixture(autouse=True)
def own_user_folder(request, tmp_path, monkeypatch):
    """No test writes into the checkout, and none gets what another has computed."""
    if "comfy" in request.fixturenames:
        import folder_paths

        monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path / "user"))
        monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))


@pytest.fixture(autouse=True, scope="module")
def own_models():
    """No file's models stay with ComfyUI, which collects garbage at every load as long as it knows of a dead one."""
    yield
    if management := sys.modules.get("comfy.model_management"):
        management.unload_all_models()
        management.current_loaded_models.clear()


@pytest.fixture(scope="session")
def folder(ip2p_folder, tmp_path_factory):
    """A tiny random InstructPix2Pix that edits at 16 px in two steps."""
    copy = shutil.copytree(ip2p_folder, tmp_path_factory.mktemp("editor") / "tiny")
    (copy / "sifm.json").write_text(json.dumps({"size": 16, "steps": 2}))
    return copy


@pytest.fixture(scope="session")
def editor(comfy, folder):
    """That editor in a socket."""
    from nodes.load import SifmLoadEditor

    return SifmLoadEditor.execute("miniature-ip2p", folder=str(folder))[0]


@pytest.fixture(scope="session")
def sd3_editor(comfy, sd3_folder):
    """A tiny random Stable Diffusion 3 in a socket."""
    from nodes.load import SifmLoadEditor

    return SifmLoadEditor.execute("sd3-medium", folder=str(sd3_folder))[0]
