"""Folders of tiny random pipelines, built once per session; load them with `load_editor`."""

from __future__ import annotations

from pathlib import Path

import pytest


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
