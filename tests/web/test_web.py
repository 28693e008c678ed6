"""The extension's own tests, in node's runner, laid out as ComfyUI serves it: /scripts and /extensions/sifm."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sifm_core.report.cells import Cell
from sifm_core.report.document import Heading, Items, Table, Text, data

HERE, WEB = Path(__file__).parent, Path(__file__).parents[2] / "web"
ROW = (Cell("clean"), Cell("31.2", "second", "30.1", star=True), Cell("0%"))
LANGUAGES = ("zh", "ja")
DOCUMENT = [
    Heading("<b>Title</b>"),
    Text([Cell("Best", "best"), " of `run`"]),
    Items(["one", "two"]),
    Table(("", "PSNR", "ISR"), (ROW,), (("SIFM (miniature)", 2),)),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("web")
    (root / "package.json").write_text('{"type": "module"}')
    shutil.copytree(HERE / "scripts", root / "scripts")
    pack = root / "extensions" / "sifm"
    pack.mkdir(parents=True)
    for file in (*WEB.glob("*.js"), *HERE.glob("*.test.js")):
        shutil.copy(file, pack)
    (pack / "document.json").write_text(json.dumps(data(DOCUMENT)))
    return pack


@pytest.mark.parametrize("name", sorted(file.name for file in HERE.glob("*.test.js")))
def test_the_extension(served: Path, name: str) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node: the extension in web/ is NOT tested")
    command = [node, "--test", "--test-reporter", "tap", str(served / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    passed = re.search(r"^# pass (\d+)$", done.stdout, re.M)
    assert done.returncode == 0 and passed and int(passed[1]) > 1, done.stdout + done.stderr


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_help_page_is_there_in_every_language_with_its_nodes_name_and_every_literal_word(language: str) -> None:
    nodes = json.loads((WEB.parent / "locales" / language / "nodeDefs.json").read_text())
    assert {page.stem for page in WEB.glob("docs/*.md")} == set(nodes)
    for node, words in nodes.items():
        english, page = (WEB / "docs" / f"{name}.md" for name in (node, f"{node}/{language}"))
        text = page.read_text()
        assert text.startswith(f"# {words['display_name']}\n"), page
        literal, written = (set(re.findall(r"`([^`]+)`", said)) for said in (english.read_text(), text))
        assert not literal - written, page
