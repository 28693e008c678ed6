"""A picture or a folder of pictures: which files a command takes, what it did before, and what it could not do.

One bad picture of a folder costs itself: it is named, the others are done, and the exit code says that one is missing.
The same command again does only the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .. import __version__
from ..errors import ImageError, InputError, SifmError
from ..files import sha256_of
from .app import said
from .output import dump, say
from .shared import SUFFIXES, check_name, check_writable, is_folder

if TYPE_CHECKING:
    from ..images import Picture
    from ..types import Editor

UNREAD = (
    "jxl jp2 j2k jpx jxr psd psb xcf kra svg svgz eps ai ico icns tga dds exr hdr qoi apng pbm pgm ppm "
    "pnm pcx raw dng cr2 cr3 nef nrw arw orf rw2 raf pef srw"
)
"""Pictures in formats that are not read."""
DEMONSTRATION = "demonstration_"
"""What the name of a file begins with that a toy made."""
KEY = "sifm-key"
"""Under this name a picture of a folder says what it was made from and how, as a hash, so that it is not made again."""
_INDIFFERENT = ("source", "sources", "out", "log", "as_json", "device", "offload", "checkpointing", "download")
"""Options with which the same picture is made."""


class Missing(SifmError):
    """Not everything that was asked for was done."""


class Account:
    """What a command could not do of a file (everything, then: it raises) or of a folder, where it goes on."""

    def __init__(self, context: typer.Context, source: Path) -> None:
        self.context, self.source, self.folder = context, source, is_folder(source)
        self.missing: dict[str, str] = {}
        self.skipped: dict[str, str] = {}

    @contextmanager
    def of(self, name: Path) -> Iterator[None]:
        """Work on one picture. What is wrong with the settings, not with it, comes through: it would be with each."""
        try:
            yield
        except Exception as error:
            if not self.folder or (isinstance(error, InputError) and not isinstance(error, ImageError)):
                raise
            words = said(error, self.context.command) if isinstance(error, SifmError) else ""
            self.miss(name, words or f"failed: {type(error).__name__}: {error}")

    def miss(self, name: Path, why: str) -> None:
        """Name, at once, a picture that is not done."""
        self.missing[str(name)] = why
        say(why if why.startswith(f"{name}: ") else f"{name}: {why}")

    def skip(self, name: Path, why: str) -> None:
        """Name something else that is left out."""
        self.skipped[str(name)] = why
        say(f"{name}: skipped, {why}")

    def rows(self) -> list[dict[str, Any]]:
        """What JSON says of them."""
        rows = [{"source": name, "output": None, "error": why} for name, why in self.missing.items()]
        return rows + [{"source": name, "output": None, "skipped": why} for name, why in self.skipped.items()]

    def close(self) -> None:
        """Raise :class:`Missing` when something is."""
        if self.missing:
            raise Missing(
                f"{len(self.missing)} of {self.source} are not done, as said above; what is done is kept, and the same "
                "command again does the rest"
            )


class Pictures(Account):
    """The pictures that a command is to make others of, as pairs (source, .png to write) in ``jobs``."""

    def __init__(self, context: typer.Context, source: Path, out: Path) -> None:
        super().__init__(context, source)
        check_name(out)
        if self.folder:
            if out.is_file() or (out.suffix.lower() in SUFFIXES and not is_folder(out)):
                raise InputError(f"{out}: expected a folder, because {source} is one")
            found = pictures_in(source, self, out)
            if not found:
                expected = f"expected pictures ({', '.join(SUFFIXES)}) in this folder"
                raise InputError(f"{source}: {expected}, but found none")
            self.jobs = [(path, out / f"{name}.png") for name, path in found.items()]
        elif out.is_dir():
            self.jobs = [(source, out / f"{source.stem}.png")]
        elif out.suffix.lower() != ".png":
            came = f"{out.suffix}, which may not keep every pixel" if out.suffix else "no suffix"
            raise InputError(f"{out}: expected a .png file, but got {came}; use {out.with_suffix('.png')}")
        else:
            self.jobs = [(source, out)]
        for path, target in self.jobs:
            check_writable(target)
            check_free(path, target, named=target == out)

    def demonstrate(self, editors: Sequence[Editor], asked: bool) -> bool:
        """Whether this is a demonstration: asked for, and an editor is a toy. Then the names of the files say so."""
        if not (asked and any(editor.toy for editor in editors)):
            return False
        named = [(path, target, target.name.startswith(DEMONSTRATION)) for path, target in self.jobs]
        self.jobs = [(p, t if so else t.with_name(DEMONSTRATION + t.name)) for p, t, so in named]
        for path, target in self.jobs:
            check_free(path, target)
        return True

    def look(self, background: str | None, check: Callable[[Picture], object] = bool) -> None:
        """Find what is no picture, or does not pass the check, before the work; one at a time is in memory."""
        from .. import images

        fit = []
        for job in self.jobs:
            with self.of(job[0]):
                check(images.load_picture(job[0], background))
                fit.append(job)
        self.jobs = fit

    def key(self, path: Path, editors: Sequence[Editor]) -> str | None:
        """What a picture of a folder is made from and how: sha256 of the file, of the options and of the editors.

        Nobody who has not the source can try instructions against it.
        """
        if not self.folder:
            return None
        given = {k: v for k, v in self.context.params.items() if k not in _INDIFFERENT}
        given = {k: sha256_of(v) if isinstance(v, Path) else v for k, v in given.items()}
        whole = [__version__, self.context.command.name, given, [e.fingerprint for e in editors], sha256_of(path)]
        return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()

    def earlier(self, path: Path, target: Path, key: str | None) -> dict[str, Any] | None:
        """The result of a picture that the same command has made before and that is still whole."""
        from ..images import load_picture, png_text

        try:
            if key is None or png_text(target, KEY) != key:
                return None
            load_picture(target)
        except (ImageError, OSError):
            return None
        return {"source": str(path), "output": str(target), "earlier": True}

    @contextmanager
    def report(self, as_json: bool, text: str) -> Iterator[list[dict[str, Any]]]:
        """Gather results; print them however the work ends, and raise :class:`Missing` when something is."""
        results: list[dict[str, Any]] = []
        try:
            yield results
        finally:
            if as_json and self.folder and (results or self.missing):
                dump([*results, *self.rows()])
            elif as_json and results:
                dump(results[0])
            elif not as_json:
                for result in results:
                    form = "{output}: made before with the same settings" if "earlier" in result else text
                    print(form.format(**result))
        self.close()


def check_free(source: Path, target: Path, named: bool = False) -> None:
    """Raise InputError where writing would cost the source, or a file that nobody ``named`` and no command made."""
    from ..images import png_text

    if not target.is_file():
        return
    if source.exists() and target.samefile(source):
        raise InputError(f"{target}: would overwrite its own source; choose another output")
    if not (named or png_text(target, KEY) or png_text(target, "sifm")):
        raise InputError(f"{target}: is there and was not made by sifm, so it is kept; choose another output")


def pictures_in(folder: Path, account: Account, out: Path | None = None) -> dict[str, Path]:
    """The pictures of a folder by their names without suffix, by which they are saved and paired; hidden files apart.

    What else is there goes to the account: pictures that are not read, that lie in folders of it (but ``out``), or
    whose name differs from another's in its suffix or in capital letters alone, and what is no picture.
    """
    named: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        suffix, name = path.suffix.lower(), unicodedata.normalize("NFC", path.stem).casefold()
        if path.is_dir():
            if not (out and out.is_dir() and out.samefile(path)) and _holds_pictures(path):
                account.miss(path, "folders inside a folder are not entered; name it to do its pictures")
        elif suffix[1:] in UNREAD.split():
            account.miss(path, f"{suffix} is not read; save it as PNG")
        elif suffix not in SUFFIXES:
            account.skip(path, "no picture by its name")
        elif name in named:
            account.miss(path, f"would be {path.stem}.png just as {named[name].name} is; rename one")
        else:
            named[name] = path
    return {path.stem: path for path in named.values()}


def matched(one: Path, two: Path, account: Account) -> list[tuple[Path, Path]]:
    """Two files, or the pictures of two folders paired by name (without suffix); the account gets what has no pair."""
    if not is_folder(one) and not is_folder(two):
        return [(one, two)]
    if not (is_folder(one) and is_folder(two)):
        raise InputError(f"expected two pictures or two folders, but {one} and {two} are one of each")
    left, right = pictures_in(one, account), pictures_in(two, account)
    names = [name for name in left if name in right]
    if not names:
        odd = ", ".join(sorted(left.keys() ^ right.keys())[:5]) or "nothing in either"
        raise InputError(f"{one} and {two}: expected pictures of the same names in both folders, but found {odd}")
    for here, there, folder in ((left, right, two), (right, left, one)):
        for name in here.keys() - there.keys():
            account.miss(here[name], f"there is no picture of this name in {folder}")
    return [(left[name], right[name]) for name in names]


def _holds_pictures(folder: Path) -> bool:
    names = (name for _, _, files in os.walk(folder) for name in files if not name.startswith("."))
    return any(Path(name).suffix.lower() in SUFFIXES for name in names)
