"""Train the miniature from scratch: ``python -m sifm_core.miniature.train WHAT --out FOLDER``.

WHAT: ip2p, hq-edit, sd3, vae (the decoders of these three), qwen, qwen-vae (its decoder, before it) or judges.

Each run is seeded, logs to ``FOLDER/<what>.log``, resumes from its checkpoint in ``FOLDER/checkpoints`` when started
again, and leaves a grid of fresh pictures to look at: ``FOLDER/<what>.png`` (source, target, edit) of an editor,
``FOLDER/vae-<editor>.png`` (source, reconstruction) of a decoder. The editors' encoders are solved when they are first
needed; ``vae`` trains the decoders of all three, before or after the editors. ``judges`` comes last: they learn from
what the editors make. ``--steps`` small makes a smoke run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from . import samples, train_ip2p, train_judges, train_qwen, train_sd3, train_vae


def main(argv: list[str] | None = None) -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ip2p", "hq-edit", "sd3", "qwen", "vae", "qwen-vae", "judges"])
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, logs and checkpoints")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the shipped weights' own number)")
    parser.add_argument("--batch", type=int, help="default: 32; 128 of qwen")
    parser.add_argument("--rate", type=float, help="qwen: the highest learning rate (default: 1.5e-3)")
    parser.add_argument("--minutes", type=float, help="qwen, qwen-vae: end after these at the latest")
    parser.add_argument("--device", default="cpu", help="qwen, qwen-vae: cpu or cuda")
    parser.add_argument("--processes", type=int, default=1, help="qwen: processes that draw the pictures")
    parser.add_argument("--scenes", type=int, help="size of the pool of scenes for an editor (12000; 48000 of qwen)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # rounds low contrast away
    checkpoints = args.out / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    file = (args.out / f"{args.what}.log").open("a")

    def log(line: str) -> None:
        for stream in (file, sys.stderr):
            print(line, file=stream, flush=True)

    codecs = {name: recipe.code for name, recipe in train_ip2p.RECIPES.items()} | {"miniature-sd3": train_sd3.CODE}
    if args.what in ("vae", "qwen-vae"):
        if args.what == "qwen-vae":
            train_qwen.train_decoder(
                args.out / "miniature-qwen/vae",
                steps=args.steps,
                batch=args.batch,
                minutes=args.minutes,
                device=args.device,
                log=log,
                checkpoint=checkpoints / "qwen-vae.pt",
            )
            return
        for name, recipe in codecs.items():
            log(name)
            folder = args.out / name / "vae"
            train_vae.train(folder, recipe, steps=args.steps, log=log, checkpoint=checkpoints / f"vae-{name}.pt")
            samples.reconstructions(folder, args.out / f"vae-{name}.png")
    elif args.what == "judges":
        train_judges.train(args.out, steps=args.steps, log=log, checkpoints=checkpoints)
    else:
        name = f"miniature-{args.what}"
        common = {"steps": args.steps, "batch": args.batch or 32, "scenes": args.scenes or 12_000, "log": log}
        checkpoint = checkpoints / f"{args.what}.pt"
        if args.what == "qwen":
            named = ("steps", "batch", "scenes", "rate", "minutes", "device", "processes")
            chosen = {key: getattr(args, key) for key in named}
            train_qwen.train(args.out / name, checkpoint=checkpoint, log=log, **chosen)
            samples.edits(args.out / name, args.out / "qwen.png")
            return
        if args.what == "sd3":
            train_sd3.train(args.out / name, checkpoint=checkpoint, **common)
        else:
            train_ip2p.train(args.out / name, train_ip2p.RECIPES[name], checkpoint=checkpoint, **common)
        code = train_vae.solve(args.out / name / "vae", codecs[name], log)
        samples.edits(args.out / name, args.out / f"{args.what}.png", code)


if __name__ == "__main__":
    main()
