"""The lowest versions that pyproject.toml allows: one truth in two files; and what `make floors` runs on them."""

from __future__ import annotations

import re
from pathlib import Path

import diffusers
import pytest

from sifm_core import consensus, edit, immunize, judge, load_editor, measure, save_png
from sifm_core.images import verify_budget
from sifm_core.miniature import benchmark

ROOT = Path(__file__).parents[1]
COMFYUIS = {"torch", "torchvision"}
"""What ComfyUI installs itself, in the build that fits the machine."""


def lowest(text: str) -> dict[str, str]:
    """Package -> version of every ``name>=version``."""
    return dict(re.findall(r'^\s*"?([a-z][a-z0-9_-]*)>=([0-9.]+)"?,?$', text, re.M))


def test_both_files_name_the_same_lowest_versions() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    dependencies = lowest(re.search(r"^dependencies = \[$(.*?)^\]$", project, re.M | re.S)[1])
    assert dependencies.keys() > COMFYUIS
    needed = {name: version for name, version in dependencies.items() if name not in COMFYUIS}
    assert lowest((ROOT / "requirements.txt").read_text()) == needed


has_qwen = pytest.mark.skipif(not hasattr(diffusers, "QwenImage21Pipeline"), reason="this diffusers is older")


@pytest.mark.parametrize(
    "name",
    ["miniature-ip2p", "miniature-hq-edit", "miniature-sd3", pytest.param("miniature-qwen", marks=has_qwen)],
)
def test_an_embedded_editor_does_as_it_is_told_and_the_whole_chain_runs(name: str, tmp_path: Path) -> None:
    """An edit that both judges accept is of weights that were all read: with new ones in their place nothing is."""
    editor, item = load_editor(name, device="cpu"), benchmark.load(ids=["portrait-00"])[0]
    source, prompt = item.image[None], item.instruction
    done = immunize(source, editor, prompt=prompt, steps=2, timesteps=2, eps=0.03)
    save_png(done.image, tmp_path / "protected.png")
    assert 0 < verify_budget(tmp_path / "protected.png", source, 0.03) <= 0.03
    clean, attacked = (edit(x, editor, prompt=prompt, seed=1) for x in (source, done.image))
    verdicts = judge(source, clean, prompt, ["miniature:conv", "miniature:patch"])
    assert [verdict.success for verdict in verdicts] == [False, False] and consensus(verdicts) is False
    assert 10 < measure(clean, attacked, ["psnr"])["psnr"][0].value < 100
