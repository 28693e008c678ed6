"""Train the miniature from scratch: ``python -m sifm_core.miniature.train {vae,ip2p,decoder,judges} --out FOLDER``.

Each run is seeded, logs to ``FOLDER/<what>.log`` and resumes from its checkpoint in ``FOLDER/checkpoints`` when
started again. Order: vae (seconds), ip2p and decoder (either first), then judges. ``--steps`` small makes a smoke run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from . import train_ip2p, train_vae

WEIGHTS = Path(__file__).parent / "weights"
EDITOR = "miniature-ip2p"


def main(argv: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["vae", "ip2p", "decoder", "judges"])
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, logs and checkpoints")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the shipped weights' own number)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--scenes", type=int, default=12000, help="size of the pool of scenes for ip2p")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    checkpoints = args.out / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    file = (args.out / f"{args.what}.log").open("a")

    def log(line: str) -> None:
        for stream in (file, sys.stderr):
            print(line, file=stream, flush=True)

    editor = args.out / EDITOR
    if args.what == "vae":
        train_vae.solve(editor / "vae", seed=args.seed, log=log)
    elif args.what == "decoder":
        train_vae.train(
            editor / "vae",
            steps=args.steps or 6000,
            batch=args.batch,
            seed=args.seed,
            log=log,
            checkpoint=checkpoints / "decoder.pt",
        )
    elif args.what == "ip2p":
        train_ip2p.train(
            editor,
            vae_folder=editor / "vae",
            steps=args.steps or 3600,
            batch=args.batch,
            scenes=args.scenes,
            seed=args.seed,
            log=log,
            checkpoint=checkpoints / "ip2p.pt",
        )
    else:
        from . import train_judges

        train_judges.train(
            args.out / "judges",
            editor=editor,
            steps=args.steps or 1500,
            seed=args.seed,
            log=log,
            checkpoints=checkpoints,
        )


if __name__ == "__main__":
    main()
