"""The house's floors: imports point down only, heavy libraries load inside functions, the engine is quiet."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"types", "errors", "files", "shapes", "verdicts", "checks", "options"},
    {
        "images",
        "memory",
        "pretrained",
        "counting",
        "noise",
        "features",
        "gradients",
        "graphs",
        "loop",
        "pgd",
        "stats",
        "format",
        "rates",
        "store",
        "metrics",
        "transforms",
        "visibility",
    },
    {"editors", "methods", "purify", "judges", "miniature"},
    {"pipeline", "layers", "plan", "protection", "certificate"},
    {"annotate", "bench", "data", "consistency", "controls", "fig3", "queue_client", "report", "holding"},
    {"cli", "doctor", "__init__", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
ROOMS = FLOORS[2]  # these never import each other
HEAVY = {
    "diffusers",
    "transformers",
    "lpips",
    "piq",
    "torchvision",
    "google",
    "openai",
    "ray",
    "matplotlib",
    "scipy",
    "skimage",
    "pycvvdp",
}
COMFY = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "nodes"}
FILES = sorted((ROOT / "sifm_core").rglob("*.py"))


COMMANDS = {
    "train",
    "train_judges",
    "train_qwen",
    "gate",
    "samples",
}  # of the miniature: developers' commands, no parts of it


def part(path: Path) -> str:
    if path.parent.name == "miniature" and path.stem in COMMANDS:
        return "cli"
    return path.relative_to(ROOT / "sifm_core").parts[0].removesuffix(".py")


def imports(path: Path):
    """(absolute module, line, inside a function or TYPE_CHECKING) of each import in a file."""
    tree = ast.parse(path.read_text())
    package = list(path.relative_to(ROOT).with_suffix("").parts)[:-1]

    def walk(node, lazy):
        for child in ast.iter_child_nodes(node):
            inner = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            inner = inner or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, child.lineno, inner
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                module = ".".join([*base, *([child.module] if child.module else [])])
                if module == "sifm_core":
                    for alias in child.names:
                        yield f"sifm_core.{alias.name}", child.lineno, inner
                else:
                    yield module, child.lineno, inner
            yield from walk(child, inner)

    yield from walk(tree, False)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    here = part(path)
    assert here in LEVEL, f"{path.name} is on no floor: add it to FLOORS"
    for module, line, lazy in imports(path):
        top, *rest = module.split(".")
        where = f"{path.relative_to(ROOT)}:{line} imports {module}"
        assert top not in COMFY, f"{where}: only nodes/ may know ComfyUI"
        if top in HEAVY:
            assert lazy or here == "miniature", f"{where} at import time: move it into the function that needs it"
        if top == "sifm_core" and rest:
            there = rest[0]
            if there == here or there not in LEVEL:
                continue
            assert LEVEL[there] <= LEVEL[here], f"{where}: that is a floor above"
            assert not ({there, here} <= ROOMS), f"{where}: rooms of one floor do not import each other"


def test_engine_is_quiet():
    for path in FILES:
        if part(path) in {"cli", "doctor", "__main__"} or "train" in path.stem:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert):
                pytest.fail(f"{path}:{node.lineno}: assert on user input")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {
                "print",
                "torch.manual_seed",
                "np.random.seed",
                "random.seed",
            }:
                pytest.fail(f"{path}:{node.lineno}: {ast.unparse(node.func)} in the engine")
            if (
                isinstance(node, ast.Attribute)
                and node.attr == "cuda"
                and isinstance(node.ctx, ast.Load)
                and ast.unparse(node) != "torch.cuda"
            ):
                pytest.fail(f"{path}:{node.lineno}: .cuda in the engine")


def test_import_needs_torch_alone():
    code = "import sys, sifm_core; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = set(
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
    )
    assert not loaded & (HEAVY | {"pydantic", "typer", "rich", "jinja2"})
