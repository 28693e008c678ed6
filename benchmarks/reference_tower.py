"""What an iteration of SIFM costs on a source's own stream, the reference tower, beside ordinary timesteps.

    python -m benchmarks.reference_tower [--editor qwen-image-2.1] [--size 1024] [--device cuda] [--json]

FLOP: counted on the true architecture without weights, forwards and backwards, batch 1. With ``--device`` also
clocked, on random weights in that architecture (bfloat16 on CUDA), the fastest of three. The tower is one pass of the
words before the picture and the picture; an ordinary iteration is one pass a timestep of these, the prompt and the
edit to come. Both stop after the deepest hooked block, here the last, and go back through the autoencoder once.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

from sifm_core.counting import counting
from sifm_core.editors.skeleton import skeleton
from sifm_core.methods import sifm

CASES = {"reference": ("reference", 10), "deep, 1 timestep": ("deep", 1), "deep, 10 timesteps": ("deep", 10)}
REPEATS = 3


def rows(editor: str, size: int, device: str | None) -> list[dict[str, Any]]:
    """One a case: ``teraflop``, its share of the last case's, and ``seconds`` (None where nothing is clocked)."""
    counted, run = skeleton(editor, size=size, text=False), None
    if device is not None:
        dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
        run = skeleton(editor, device=device, dtype=dtype, size=size, text=False)
    found = []
    for name, (layers, timesteps) in CASES.items():
        flops = 0
        for model in filter(None, (counted, run)):
            side = model.work_size(size, size)
            x = torch.full((1, 3, *side), 0.5, device=model.device)
            step = sifm.build(
                model, x, model.blank(1), timesteps=timesteps, layers=layers, aggregation="per_layer", rows=1
            )
            if model is counted:
                with counting() as counter:
                    step(x, 0)
                flops = counter.flops
        found.append({"case": name, "teraflop": flops / 1e12, "seconds": clocked(step, x) if run else None})
    return [row | {"share": row["teraflop"] / found[-1]["teraflop"]} for row in found]


def clocked(step: Any, x: torch.Tensor) -> float:
    """The fastest of some repeats, in seconds."""
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        step(x, 0)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor", default="qwen-image-2.1")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--device")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    for row in rows(args.editor, args.size, args.device):
        took = "" if row["seconds"] is None else f"  {row['seconds']:9.4f} s"
        shown = f"{row['case']:20}  {row['teraflop']:10.4g} TFLOP  {row['share']:7.1%}{took}"
        print(json.dumps(row) if args.json else shown)


if __name__ == "__main__":
    main()
