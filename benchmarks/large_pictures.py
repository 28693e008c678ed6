"""How much memory large pictures take around the editor: from file to file, in bytes a pixel.

    python -m benchmarks.large_pictures --megapixels 24 100

Each piece of work runs in a process of its own; the figure is by how much resident memory rose above what the process
held with its libraries loaded, the picture itself included (12 bytes a pixel as float32). The editor is a stand-in that
works at 64 pixels: what is measured is loading, resizing, composing, rounding into the budget, saving, reading the file
back and the measures of visibility. Of the loops' figures 24 bytes are its input and the gradient.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pil

from sifm_core import pipeline
from sifm_core.images import load_picture, round_to_budget, save_png, verify_budget
from sifm_core.memory import peak
from sifm_core.metrics import measure
from sifm_core.pgd import pgd
from sifm_core.types import Gradient


class SmallEditor:
    """Works at 64 pixels and gives back what it gets."""

    name, family, fingerprint, toy = "stand-in", "none", "", None
    device, dtype = torch.device("cpu"), torch.float32

    def work_size(self, height: int, width: int) -> tuple[int, int]:
        return 64, 64

    def prepare(self, prompts: Sequence[str], x: Any = None) -> None:
        return None

    def edit(self, x: torch.Tensor, cond: None, **_: Any) -> torch.Tensor:
        return 1 - x


def protect(file: Path) -> None:
    picture = load_picture(file)
    done = pipeline.immunize(picture.pixels, SmallEditor(), prompt="a", method="random_noise")  # type: ignore[arg-type]
    save_png(done.image, file.with_suffix(".out.png"), like=picture)
    verify_budget(file.with_suffix(".out.png"), picture.pixels, 0.03)


def edit(file: Path) -> None:
    picture = load_picture(file)
    edited = pipeline.edit(picture.pixels, SmallEditor(), prompt="a")  # type: ignore[arg-type]
    save_png(edited, file.with_suffix(".out.png"), like=picture)


def rounding(file: Path, ball: Any = "linf") -> None:
    x0 = load_picture(file).pixels
    round_to_budget(x0 * 0.99 + 0.005, x0, 0.03, None, ball)


def loop(file: Path, masked: bool = False, **chosen: Any) -> None:
    x0 = load_picture(file).pixels
    gradient = torch.zeros_like(x0).fill_(1e-3)
    mask = torch.ones_like(x0[:, :1]) if masked else None
    pgd(x0, lambda x, i: Gradient(torch.zeros(1), gradient), eps=0.03, alpha=0.1, steps=2, mask=mask, **chosen)


def compare(file: Path, name: str) -> None:
    x0 = load_picture(file).pixels
    measure(x0, x0.flip(-1), [name])


PIECES: dict[str, Callable[[Path], None]] = {
    "load": lambda file: load_picture(file) and None,  # type: ignore[func-returns-value]
    "protect, file to file": protect,
    "edit, file to file": edit,
    "rounding, linf": rounding,
    "rounding, l2": lambda file: rounding(file, "l2"),
    "loop, linf": loop,
    "loop, linf, mask": lambda file: loop(file, masked=True),
    "loop, l2": lambda file: loop(file, ball="l2"),
    "loop, l2, mask": lambda file: loop(file, masked=True, ball="l2"),
    "loop, adam": lambda file: loop(file, update="adam"),
    "psnr of two": lambda file: compare(file, "psnr"),
    "ssim of two": lambda file: compare(file, "ssim"),
}


def draw(file: Path, megapixels: float) -> None:
    """A picture of 3:2 with gradients and a little grain."""
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    rows, columns = np.ogrid[:height, : round(1.5 * height)]
    grain = np.random.default_rng(0).integers(0, 4, (64, 64), dtype=np.uint8)
    base = ((rows * 180 // height) + (columns * 60 // (1.5 * height))).astype(np.uint8)
    base += np.tile(grain, (height // 64 + 1, base.shape[1] // 64 + 1))[: base.shape[0], : base.shape[1]]
    Pil.merge("RGB", [Pil.fromarray(base), Pil.fromarray(255 - base), Pil.fromarray(base // 2)]).save(
        file, compress_level=1
    )


def one(piece: str, file: Path) -> dict[str, Any]:
    """Seconds and bytes of one piece, in this process."""
    small = file.with_name("small.png")
    draw(small, 0.03)
    PIECES[piece](small)  # libraries are loaded
    start = time.perf_counter()
    with peak(torch.device("cpu")) as found:
        PIECES[piece](file)
    return {"bytes": found[0].value, "seconds": time.perf_counter() - start}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each piece and size, or with --json one list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[24.0])
    parser.add_argument("--piece", action="append", choices=list(PIECES), help="only this one; may be repeated")
    parser.add_argument("--json", action="store_true", help="one JSON list")
    parser.add_argument("--of", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.of:
        print(json.dumps(one(chosen.piece[0], chosen.of)))
        return
    rows = []
    for megapixels in chosen.megapixels:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "picture.png")
            draw(file, megapixels)
            pixels = Pil.open(file).size[0] * Pil.open(file).size[1]
            for piece in chosen.piece or PIECES:
                words = [sys.executable, "-m", "benchmarks.large_pictures", "--piece", piece, "--of", str(file)]
                done = subprocess.run(words, capture_output=True, text=True)
                row = {"piece": piece, "megapixels": pixels / 1e6, "bytes_per_pixel": None, "seconds": None}
                if done.returncode == 0:
                    found = json.loads(done.stdout.splitlines()[-1])
                    row |= {"bytes_per_pixel": found["bytes"] / pixels, "seconds": found["seconds"]}
                rows.append(row)
                if not chosen.json:
                    if row["bytes_per_pixel"] is None:
                        print(f"{piece:<24}{megapixels:6.0f} MP  failed: {done.stderr.strip().splitlines()[-1:]}")
                        continue
                    gigabytes = row["bytes_per_pixel"] * pixels / 1e9
                    print(
                        f"{piece:<24}{megapixels:6.0f} MP{row['bytes_per_pixel']:8.0f} bytes a pixel"
                        f"{gigabytes:7.2f} GB{row['seconds']:7.1f} s",
                        flush=True,
                    )
    if chosen.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
