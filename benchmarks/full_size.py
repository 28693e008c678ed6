"""What SIFM takes at full size: the true architectures with random weights, run and timed on this machine.

    python -m benchmarks.full_size --editor instruct-pix2pix --size 512 --timesteps 4 --iterations 100 [--literal]

Seconds are of whole iterations (gradient, step and projection) after one that does not count; the time is that of real
weights, since none of the work depends on their values. Peak: CUDA's most allocated bytes, weights and all; on a CPU
how far resident memory rose above the loaded networks. TFLOP are counted as in gradient_cost.py.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.gradient_cost import Subject, literal, spread
from sifm_core.counting import counting
from sifm_core.editors import check_device, check_dtype
from sifm_core.editors.skeleton import skeleton
from sifm_core.features import resolve
from sifm_core.memory import enough, peak
from sifm_core.methods import sifm
from sifm_core.pgd import pgd
from sifm_core.types import GradFn, Step

PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "3090": 71e12}
"""FLOP/s of dense bfloat16 products by name of the card, from the makers' data sheets."""


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """The row of one setting."""
    device = check_device(chosen.device)
    dtype = check_dtype(chosen.dtype, device)
    editor = skeleton(chosen.editor, device=device, dtype=dtype, text=False, size=chosen.size)
    if chosen.checkpointing:
        editor.net.enable_gradient_checkpointing()
        editor.pipe.vae.enable_gradient_checkpointing()
    seconds: list[float] = []
    start = time.perf_counter()

    def tick(step: Step) -> None:
        nonlocal start
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()

    picture = torch.rand(chosen.batch, 3, *editor.work_size(chosen.size, chosen.size))
    x = picture.mul(255).round().div(255).to(device)
    with peak(device) as found, enough("this setting", device):
        grad_fn = gradient(editor, x, chosen)
        pgd(x, grad_fn, eps=0.03, alpha=2 / 255, steps=1 + chosen.iterations, on_step=tick)
    timed = sum(seconds[1:])
    flops = count(chosen) * chosen.batch
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    top = next((value for name, value in PEAK.items() if card and name in card), None)
    return {
        "editor": chosen.editor,
        "algorithm": "literal" if chosen.literal else "ours",
        "size": chosen.size,
        "timesteps": chosen.timesteps,
        "iterations": chosen.iterations,
        "batch": chosen.batch,
        "dtype": str(dtype).removeprefix("torch."),
        "device": card or f"{device}, {torch.get_num_threads()} threads",
        "checkpointing": chosen.checkpointing,
        "seconds_per_image": timed / chosen.batch,
        "seconds_per_iteration": timed / chosen.iterations,
        "first_iteration": seconds[0],
        "peak_gigabytes": None if found[0].value is None else found[0].value / 1e9,
        "peak_is": found[0].definition,
        "teraflop_per_iteration": flops / 1e12,
        "teraflop_per_second": flops * chosen.iterations / timed / 1e12,
        "share_of_peak": flops * chosen.iterations / timed / top if top and dtype is torch.bfloat16 else None,
    }


def gradient(editor: Any, x: torch.Tensor, chosen: argparse.Namespace) -> GradFn:
    """The literal algorithm's or ours, on the editor's own preset."""
    times, cond = spread(chosen.timesteps), editor.blank(len(x))
    if chosen.literal:
        paths = resolve(editor.net, editor.layer_presets.get(chosen.layers, (chosen.layers,)))
        return literal(Subject(editor, x, cond), times, paths)
    return sifm.build(editor, x, cond, timesteps=times, layers=chosen.layers, aggregation="per_layer")


def count(chosen: argparse.Namespace) -> int:
    """FLOP of one iteration of one picture, on the meta device."""
    editor = skeleton(chosen.editor, text=False, size=chosen.size)
    x = torch.zeros(1, 3, *editor.work_size(chosen.size, chosen.size), device="meta")
    if chosen.checkpointing:
        editor.net.enable_gradient_checkpointing()
        editor.pipe.vae.enable_gradient_checkpointing()
    grad_fn = gradient(editor, x, chosen)
    with counting() as counter:
        grad_fn(x, 0)
    return counter.flops


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one row, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor", default="instruct-pix2pix", help="a built-in name, folder or hub id")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--timesteps", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=100, help="timed, after one that is not")
    parser.add_argument("--layers", default="deep", help="a preset of the editor or a module path")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--literal", action="store_true", help="Algorithm 1 as it stands, for comparison")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    chosen = parser.parse_args(arguments)
    row = measure(chosen)
    if chosen.json:
        print(json.dumps(row, indent=1))
        return
    for name, value in row.items():
        print(f"{name:<24}{value:.4g}" if isinstance(value, float) else f"{name:<24}{value}")


if __name__ == "__main__":
    main()
