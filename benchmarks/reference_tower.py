"""What an iteration of SIFM costs on a source's own stream, the reference tower, beside ordinary timesteps.

    python -m benchmarks.reference_tower [--editor NAME]... [--size 1024] [--device cuda [--checkpointing]] [--json]

FLOP: counted on the true architecture without weights, forwards and backwards, batch 1. With ``--device`` clocked
instead, on random weights in that architecture (bfloat16 on CUDA): the fastest iteration, and CUDA's most allocated
bytes, weights and all. The tower is one pass of the words before the picture and the picture, of editors that
have one; an ordinary iteration is one pass a timestep of these, the prompt and the edit to come, one after the other.
All stop after the deepest hooked block, here the last, and go back through the autoencoder once. A case that fails is
named, and the next one runs; when the minutes are over, those that are left are named too.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch

from sifm_core.counting import counting
from sifm_core.editors.skeleton import skeleton
from sifm_core.memory import peak
from sifm_core.methods import sifm

CASES = {
    "reference": ("reference", 1),
    "deep, 1 timestep": ("deep", 1),
    "deep, 4 timesteps": ("deep", 4),
    "deep, 10 timesteps": ("deep", 10),
}


def rows(chosen: argparse.Namespace, editor: str) -> Iterator[dict[str, Any]]:
    """One a case: ``teraflop``, or ``seconds`` and ``gigabytes``; or the ``problem`` that there was."""
    end = time.perf_counter() + 60 * chosen.minutes
    device = torch.device(chosen.device or "meta")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    _tidy(device)
    start = time.perf_counter()
    try:
        model = skeleton(editor, device=device, dtype=dtype, size=chosen.size, text=False)
    except (RuntimeError, OSError) as error:
        yield {"editor": editor, "case": "weights", "problem": _said(error)}
        return
    if chosen.device:
        weights = sum(
            p.numel() * p.element_size() for network in model.networks().values() for p in network.parameters()
        )
        seconds = time.perf_counter() - start
        yield {"editor": editor, "case": "weights", "seconds": seconds, "gigabytes": weights / 1e9}
    warm, x = False, torch.full((1, 3, *model.work_size(chosen.size, chosen.size)), 0.5, device=device)
    for name, (layers, timesteps) in CASES.items():
        case = {"editor": editor, "case": name}
        if layers not in model.timeless and layers == "reference":
            continue
        if time.perf_counter() > end:
            yield case | {"problem": "not run: the minutes are over"}
            continue
        try:
            yield case | measured(model, x, layers, timesteps, chosen.checkpointing, warm)
            warm = True
        except (RuntimeError, MemoryError) as error:
            yield case | {"problem": _said(error)}
        _tidy(device)


def _tidy(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measured(
    model: Any, x: torch.Tensor, layers: str, timesteps: int, checkpointing: bool, warm: bool
) -> dict[str, Any]:
    """The figures of one case; of one iteration where that takes long and the device is warm, else of two or more."""
    step = sifm.build(model, x, model.blank(1), timesteps=timesteps, layers=layers, aggregation="per_layer", rows=1)
    if x.is_meta:
        with counting() as counter:
            step(x, 0)
        return {"teraflop": counter.flops / 1e12}
    seconds = list[float]()
    with peak(x.device) as bytes_, model.recomputing() if checkpointing else nullcontext():
        while len(seconds) < 2 or sum(seconds) < 2:
            start = time.perf_counter()
            step(x, 0)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            seconds.append(time.perf_counter() - start)
            if warm and seconds[-1] > 1.5:
                break
    most = bytes_[0].value
    return {"seconds": min(seconds), "iterations": len(seconds), "gigabytes": None if most is None else most / 1e9}


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def line(row: dict[str, Any], last: float | None) -> str:
    """A row as text, with its share of the count of ``last``."""
    head = f"{row['editor']:18}{row['case']:20}"
    if "problem" in row:
        return head + row["problem"]
    if "teraflop" in row:
        return f"{head}{row['teraflop']:10.4g} TFLOP" + ("" if last is None else f"  {row['teraflop'] / last:7.1%}")
    size = "" if row["gigabytes"] is None else f"  {row['gigabytes']:6.1f} GB"
    return f"{head}{row['seconds']:10.4f} s{size}"


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor", action="append", help="a built-in name, folder or hub id; may be repeated")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--device", help="where to take the time instead of counting")
    parser.add_argument("--checkpointing", action="store_true", help="compute inner results again on the way back")
    parser.add_argument("--minutes", type=float, default=60, help="of each editor, after which no case is started")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(argv)
    for editor in chosen.editor or ["qwen-image-2.1"]:
        found = list[dict[str, Any]]()
        for row in rows(chosen, editor):
            found.append(row)
            if chosen.device or chosen.json:
                print(json.dumps(row) if chosen.json else line(row, None), flush=True)
        if not (chosen.device or chosen.json):
            last = found[-1].get("teraflop")
            print(*(line(row, last) for row in found), sep="\n", flush=True)


if __name__ == "__main__":
    main()
