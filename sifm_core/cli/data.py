"""Benchmark data: make manifests, check them, look through them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .flags import options
from .judging import Calling, load_model
from .output import progress

data = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data, name="data", help="Make and check benchmark data: pictures with frozen instructions.")

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Gets images/ and manifest.jsonl.")]


@data.command()
def csv(
    table: Annotated[Path, typer.Argument(metavar="TABLE.csv", help="Columns image, instruction; unseen, category.")],
    out: Annotated[Path, typer.Argument(metavar="MANIFEST.jsonl", show_default=False)],
) -> None:
    """A manifest of your own pictures."""
    from ..data.build import from_csv

    print(f"{out}: {len(from_csv(table, out))} pictures")


@data.command("instructpix2pix")
def instructpix2pix(
    source: Annotated[Path, typer.Argument(metavar="COPY", help="Folder of parquet files, or with metadata.jsonl.")],
    out: Out = Path("benchmark"),
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Same seed, same choice.")] = 0,
    reject: Annotated[
        list[str] | None, typer.Option("--reject", metavar="ID", help="Take the next in line; may be repeated.")
    ] = None,
) -> None:
    """Choose 35 portraits, 35 landscapes and 30 artworks from timbrooks/instructpix2pix-clip-filtered."""
    from ..data.build import from_instructpix2pix, review

    rejected = reject or []
    items = from_instructpix2pix(source, out, seed=seed, reject=rejected)
    words = ["sifm", "data", "instructpix2pix", str(source), "--out", str(out), "--seed", str(seed)]
    review(items, out / "review.html", shlex.join([*words, *(w for name in rejected for w in ("--reject", name))]))
    print(f"{out / 'manifest.jsonl'}: {len(items)} pictures; look through them in {out / 'review.html'}")


@data.command()
def miniature(
    out: Out = Path("miniature-benchmark"),
    images: Annotated[int | None, typer.Option("--images", metavar="N", help="Only the first N.")] = None,
) -> None:
    """Write the embedded benchmark as files."""
    from ..data.build import miniature as build

    print(f"{out / 'manifest.jsonl'}: {len(build(out, images))} pictures")


@data.command("prompts")
@options
def prompts_(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST.jsonl", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="NEW.jsonl", help="The same with new prompts.", show_default=False)],
    llm: Annotated[
        str,
        typer.Option(
            "--llm", metavar="BACKEND:MODEL[@URL]", help="Such as gemini:gemini-3.5-flash-lite, openai:llava@http://..."
        ),
    ],
    text_only: Annotated[bool, typer.Option("--text-only", help="Do not show the model the picture.")] = False,
    *,
    calling: Calling,
) -> None:
    """Let a language model write five unseen prompts for each picture, once, into a new manifest.

    Prompts that are not distinct are refused. Answers and spending stay in NEW.answers.sqlite: the same command again
    goes on where it was stopped.
    """
    from ..data.build import from_model

    model = load_model(llm, cache=out.with_suffix(".answers.sqlite"), **calling.given())
    with progress() as on_step:
        items = from_model(manifest, out, model, look=not text_only, on_step=on_step(model.name))
    print(f"{out}: {len(items)} pictures, prompts {items[0].prompts_from}")


@data.command("check")
def check_(manifest: Annotated[Path, typer.Argument(metavar="MANIFEST.jsonl", show_default=False)]) -> None:
    """Are all pictures there as they were frozen, and all instructions distinct?"""
    from ..data import check, read

    items = check(read(manifest))
    kinds = sorted({item.category for item in items})
    parts = ", ".join(f"{sum(item.category == kind for item in items)} {kind or 'other'}" for kind in kinds)
    print(f"{manifest}: {len(items)} pictures ({parts}), sound")
