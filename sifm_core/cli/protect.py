"""Protect pictures: one command, for people."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ImageError, InputError
from .app import app
from .output import dump, progress, say, tell
from .pictures import KEY, Account, Pictures, check_free, pictures_in
from .shared import (
    SUFFIXES,
    Background,
    Checkpointing,
    Demonstration,
    Device,
    Download,
    Dtype,
    Json,
    Offload,
    Seed,
    Size,
    check_name,
    check_writable,
    is_folder,
    load_editor,
)

if TYPE_CHECKING:
    from ..images import Picture
    from ..protection import Protected
    from ..types import Editor

SUFFIX = "_protected"


class Sources(Pictures):
    """The pictures of files and folders, and where each is to go: beside it, or into ``out``."""

    def __init__(self, context: typer.Context, sources: Sequence[Path], out: Path | None) -> None:
        Account.__init__(self, context, sources[0])
        self.folder = len(sources) > 1 or self.folder
        single = not self.folder and out is not None and out.suffix.lower() in SUFFIXES and not is_folder(out)
        if out is not None:
            check_name(out)
        if single and out is not None and out.suffix.lower() != ".png":
            raise InputError(f"{out}: expected a .png file, which keeps every pixel; use {out.with_suffix('.png')}")
        if out is not None and not single and out.is_file():
            raise InputError(f"{out}: expected a folder, or a .png file for one picture, but this is a file")
        self.jobs = []
        for source in sources:
            if is_folder(source):
                whole = source if source.name not in ("", "..") else source.resolve()
                place = whole.parent / (whole.name + SUFFIX) if out is None else out
                place = place / whole.name if out is not None and len(sources) > 1 else place
                self.jobs += [(path, place / f"{name}.png") for name, path in pictures_in(source, self, place).items()]
            elif single and out is not None:
                self.jobs.append((source, out))
            elif out is not None:
                self.jobs.append((source, out / f"{source.stem}.png"))
            else:
                self.jobs.append((source, source.with_name(f"{source.stem}{SUFFIX}.png")))
        self.jobs = [(path, target) for path, target in self.jobs if self._can_be(path, target)]
        taken: dict[Path, Path] = {}
        for path, target in self.jobs:
            check_writable(target)
            if target in taken:
                raise InputError(f"{path} and {taken[target]} would both be {target}; protect them one after the other")
            check_free(path, target)
            taken[target] = path
        if not self.jobs and not self.missing:
            raise InputError(f"{sources[0]}: expected pictures ({', '.join(SUFFIXES)}) in this folder, but found none")

    def earlier(self, path: Path, target: Path, key: str | None) -> dict[str, Any] | None:
        """As of any picture; it counts with a certificate that is true of it, which is written last."""
        from ..certificate import check

        try:
            found = super().earlier(path, target, key)
            return found if found and all(one.good is not False for one in check(target)[1]) else None
        except InputError:
            return None

    def _can_be(self, path: Path, target: Path) -> bool:
        """Whether the picture is there and what is made of it can have its name; one that cannot costs itself."""
        from ..images import check_file

        with self.of(path):
            check_file(path)
            try:
                check_name(target.with_suffix(".certificate.html"))
            except InputError as error:
                raise ImageError(str(error)) from None
            return True
        return False


@app.command()
def protect(
    context: typer.Context,
    sources: Annotated[
        list[Path], typer.Argument(metavar="PICTURE ...", help="Pictures, or folders of them.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="OUT", help="A folder, or a .png file for one picture; else beside it."),
    ] = None,
    strength: Annotated[str, typer.Option("--strength", metavar="subtle|normal|strong")] = "normal",
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against", metavar="NAME|FOLDER|HUB_ID", help="May be repeated; default: the real editors already here."
        ),
    ] = None,
    instruction: Annotated[
        str, typer.Option("--instruction", metavar="TEXT", help="What an attacker may ask, where you know it.")
    ] = "",
    subject: Annotated[
        str,
        typer.Option(
            "--subject", metavar="NAME", help="portrait, landscape, artwork, product, animal, interior or any."
        ),
    ] = "any",
    mask: Annotated[
        Path | None, typer.Option("--mask", metavar="FILE", help="A picture of the same size: black stays as it is.")
    ] = None,
    keep_metadata: Annotated[
        bool, typer.Option("--keep-metadata", help="Keep who made it and whose it is (artist, copyright); no more.")
    ] = False,
    background: Background = "white",
    seed: Seed = 0,
    offload: Offload = "none",
    checkpointing: Checkpointing = False,
    size: Size = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    download: Download = False,
    demonstration: Demonstration = False,
    as_json: Json = False,
) -> None:
    """Protect pictures, at their full size, against the editors already on this computer.

    No instruction need be known. What it takes is said first, what was done at the end, and beside each picture lies a
    certificate. Of several pictures a bad one costs itself, and the same command again does the rest.
    """
    from .. import images
    from .. import protection as engine
    from ..checks import check_choice
    from ..noise import check_seed

    images.colour(background)
    check_choice(strength, "strength", engine.STRENGTHS)
    check_choice(subject, "subject", engine.pools())
    check_seed(seed, 1)
    pictures = Sources(context, sources, out)
    if not (names := against or engine.at_hand()):
        raise engine.nothing_at_hand()
    cover = None if mask is None else images.load_picture(mask, background).pixels.mean(dim=1, keepdim=True)
    load = partial(load_editor, device=device, dtype=dtype, download=download)
    editors = [load(name, offload=offload, checkpointing=checkpointing, size=size) for name in names]
    pictures.demonstrate(editors, demonstration)
    how: dict[str, Any] = {"strength": strength, "instruction": instruction, "subject": subject, "seed": seed}
    how["demonstration"] = demonstration
    run = _Run(pictures, editors, how, cover, background, keep_metadata)
    results: list[dict[str, Any]] = []
    try:
        for path, target in pictures.jobs:
            with pictures.of(path):
                if (result := run.one(path, target)) is None:
                    continue
                results.append(result)
                if not as_json:
                    run.tell(result)
            run.left -= 1
    finally:
        if as_json and (results or pictures.missing or pictures.skipped):
            for result in results:
                result.pop("words", None)
            dump([*results, *pictures.rows()] if pictures.folder else [*results, *pictures.rows()][0])
    pictures.close()


class _Run:
    """Picture after picture with the same editors and settings; ``left`` counts those that are not done."""

    def __init__(
        self,
        pictures: Pictures,
        editors: Sequence[Editor],
        how: dict[str, Any],
        cover: Any,
        background: str,
        keep_metadata: bool,
    ) -> None:
        self.pictures, self.editors, self.how, self.cover = pictures, editors, how, cover
        self.background, self.keep_metadata = background, keep_metadata
        self.left, self.done, self.seconds, self.said = len(pictures.jobs), 0, 0.0, False

    def one(self, path: Path, target: Path) -> dict[str, Any] | None:
        """Protect one picture, unless that was done before; None where it is left out."""
        from .. import certificate, images
        from .. import protection as engine
        from ..pipeline import public

        if why := _left_out(path):
            self.pictures.skip(path, why)
            return None
        key = self.pictures.key(path, self.editors)
        if earlier := self.pictures.earlier(path, target, key):
            return earlier
        start = time.perf_counter()
        picture = images.load_picture(path, self.background)
        mask = self._mask(picture)
        if not self.said:
            self._say(path, picture, engine.forecast(picture.pixels, self.editors, mask=mask, **self.how))
        with progress() as on_step:
            done = engine.protect(picture.pixels, self.editors, mask=mask, on_step=on_step(path.name), **self.how)
        about = {"sifm": public(done.settings), **({KEY: key} if key else {})}
        kept = images.rights(path) if self.keep_metadata else None
        images.save_png(done.image, target, like=picture, metadata=about, rights=kept)
        certified = certificate.certificate(done, target, picture, mask, background=self.background)
        certificate.write(certified, target)
        self.done, self.seconds = self.done + 1, self.seconds + time.perf_counter() - start
        return {"source": str(path), "output": str(target), **_plain(done, certified), "words": list(done.words())}

    def tell(self, result: dict[str, Any]) -> None:
        """A line of several pictures, all that there is to say of a single one."""
        from ..protection import duration

        if "earlier" in result:
            return tell(f"{result['output']}: made before with the same settings")
        words, first = result["words"], int(result["demonstration"])
        if not self.pictures.folder:
            return tell("\n  ".join([f"{result['output']}:", *words]))
        left = duration(self.seconds / self.done * (self.left - 1)) if self.left > 1 else ""
        tell(f"{result['output']}: {' '.join(words[: first + 1])}" + f" {left} left for {self.left - 1}." * bool(left))

    def _mask(self, picture: Picture) -> Any:
        """How much each pixel may change: the mask that was given, less where the picture is transparent."""
        from ..images import check_mask

        cover = check_mask(self.cover, picture.pixels)
        seen = picture.alpha if picture.under is not None else None
        return cover if seen is None else seen if cover is None else cover * seen

    def _say(self, path: Path, picture: Picture, takes: Any) -> None:
        from ..protection import duration

        height, width = picture.pixels.shape[-2:]
        names = " and ".join(editor.name for editor in self.editors)
        say(
            f"{path.name}, {width}x{height}, against {names}, {self.how['strength']}: {takes}, measured on this machine"
            + f"; {self.left} pictures, if the others are like it: {duration(takes.seconds * self.left)}"
            * (self.left > 1)
        )
        self.said = True


def _left_out(path: Path) -> str:
    """Why a picture is not protected, by what sifm wrote into it: an edit says no method."""
    from ..images import png_text

    try:
        about = json.loads(png_text(path, "sifm") or "{}")
    except (ValueError, RecursionError):
        return ""
    if not isinstance(about, dict):
        return ""
    if about.get("demonstration"):
        return "a demonstration by a toy, not protected: name the picture that it was made from"
    return "it is protected already" if "method" in about else ""


def _plain(done: Protected, certified: dict[str, Any]) -> dict[str, Any]:
    return {
        "strength": done.strength,
        "demonstration": done.demonstration,
        "linf": certified["budget"]["largest"],
        "rms": certified["budget"]["typical"],
        "visibility": certified["visibility"],
        "faded": done.faded,
        "against": [dict(editor) for editor in done.editors],
        "instructions": done.instructions,
        "seconds": round(done.seconds, 3),
        "peak_memory": asdict(done.peak_memory),
        "not_promised": certified["not_promised"],
    }
