"""What the ComfyUI registry installs: git's files without those of `.comfyignore`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def listed(*options: str) -> set[str]:
    found = subprocess.run(["git", "ls-files", *options], cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("not a git checkout")
    return set(found.stdout.splitlines())


def test_the_archive_has_what_the_pack_needs_and_nothing_that_only_its_makers_need():
    kept = listed() - listed("--cached", "--ignored", "--exclude-from=.comfyignore")
    assert {name.split("/")[0] for name in kept if "/" in name} == {
        "docs",
        "locales",
        "nodes",
        "sifm_core",
        "subgraphs",
        "web",
        "workflows",
    }
    needed = [*ROOT.glob("web/**/*.*"), *ROOT.glob("locales/*/*.json"), *ROOT.glob("workflows/*.j*")]
    tracked = listed()
    assert not {str(path.relative_to(ROOT)) for path in needed} & tracked - kept
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "web/docs/SIFM_Immunize.md"} <= kept
