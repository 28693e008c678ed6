"""Folders of tiny random pipelines, built once per session; load them with `load_editor`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each worker and what it starts: they share the processor
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="session")
def ip2p_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import fakes

    return fakes.instruct_pix2pix(tmp_path_factory.mktemp("ip2p"))


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import fakes

    return fakes.sd3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="session")
def ultraedit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import fakes

    return fakes.ultraedit(tmp_path_factory.mktemp("ultraedit"))


@pytest.fixture(scope="session")
def qwen21_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import fakes

    return fakes.qwen_image21(tmp_path_factory.mktemp("qwen21"))


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's own belong to who runs it."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place, "open")
