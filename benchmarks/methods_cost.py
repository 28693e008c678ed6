"""What one iteration of every method costs on one editor, in one run.

    python -m benchmarks.methods_cost [--editor NAME|FOLDER] [--method NAME] [--repeats N] [--device D] [--json]

One picture at the editor's native size, every method with its defaults. Seconds: the median of repeats taken in turns,
after one of each that does not count. FLOP: counted from the operations that autograd runs, forward, backward and what
is computed again; a multiply-accumulate is 2, attention counts as its matrix products, what is elementwise does not
count. "before" is what a method does once per picture, such as SIFM's clean features.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffusers
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sifm_core import methods
from sifm_core.editors import load_editor
from sifm_core.types import Editor, Gradient, Image

PROMPT = "make it night"


def prepared(name: str, editor: Editor, x: Image, **options: Any) -> Callable[[], Callable[[int], Any]]:
    """What a method does once for a picture; it returns what is done in an iteration."""
    module, cond = methods.get_method(name), editor.prepare([PROMPT] * len(x))
    if not hasattr(module, "build"):
        return lambda: lambda i: module.perturb(x, eps=0.03, seed=i, **options)
    seeded = {"seed": 0} if "seed" in inspect.signature(module.build).parameters else {}
    away = (x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)).clamp(0, 1)

    def before() -> Callable[[int], Gradient]:
        grad_fn = module.build(editor, x, cond, **seeded, **options)
        return lambda i: grad_fn(away, i)

    return before


def flops(run: Callable[[], Any]) -> int:
    """FLOP of one call."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of one call; a gradient is looked at before it is given back, so that a GPU has finished."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(editor: Editor, repeats: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each method."""
    size = editor.work_size(512, 512)
    x = (torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(0)) / 255).to(editor.device)
    befores = {name: prepared(name, editor, x) for name in names}
    steps = {name: before() for name, before in befores.items()}
    taken: dict[str, list[float]] = {name: [] for name in names}
    for i in range(1 + repeats):
        for name, step in steps.items():
            taken[name].append(seconds(lambda step=step, i=i: step(i)))
    return [
        {
            "method": name,
            "seconds": statistics.median(taken[name][1:]),
            "flop": flops(lambda name=name: steps[name](0)),
            "seconds_before": seconds(befores[name]),
            "flop_before": flops(befores[name]),
            "options": {key: repr(option.default) for key, option in methods.options(name).items()},
            "beyond_the_paper": editor.family in methods.about(name).beyond,
        }
        for name in names
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as text, beside the cheapest of them."""
    lines = [f"{'method':<22}{'s/iteration':>12}{'GFLOP/iteration':>17}{'s before':>10}{'GFLOP before':>14}"]
    lines += [
        f"{row['method'] + ('*' if row['beyond_the_paper'] else ''):<22}{row['seconds']:>12.3g}"
        f"{row['flop'] / 1e9:>17.4g}{row['seconds_before']:>10.3g}{row['flop_before'] / 1e9:>14.4g}"
        for row in rows
    ]
    beyond = ["* beyond its paper on this family of editors"] if any(row["beyond_the_paper"] for row in rows) else []
    return "\n".join(lines + beyond)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor", default="miniature-ip2p", help="a built-in name, a folder or a hub id")
    parser.add_argument("--method", action="append", help="only this one; may be repeated")
    parser.add_argument("--repeats", type=int, default=5, help="timed iterations of each method")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    chosen = parser.parse_args(arguments)
    editor = load_editor(chosen.editor, device=chosen.device, dtype=chosen.dtype)
    rows = measure(editor, max(1, chosen.repeats), chosen.method or list(methods.METHODS))
    device = torch.cuda.get_device_name(editor.device) if editor.device.type == "cuda" else platform.processor()
    run = {
        "editor": editor.name,
        "pixels": "x".join(map(str, editor.work_size(512, 512))),
        "device": f"{editor.device.type} {device}".strip(),
        "dtype": str(editor.dtype).removeprefix("torch."),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()}",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    if chosen.json:
        print(json.dumps({"run": run, "flop_per_multiply_accumulate": 2, "rows": rows}, indent=1))
    else:
        print(", ".join(f"{name} {value}" for name, value in run.items()), table(rows), sep="\n")


if __name__ == "__main__":
    main()
