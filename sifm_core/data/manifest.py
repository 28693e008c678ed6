"""The manifest: one JSON object a line, one picture each; what a benchmark consists of and what must never change."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, unknown
from ..files import read_text, sha256_of, within, write_atomically
from .prompts import clash

if TYPE_CHECKING:
    from torch import Tensor

SAME = 1e-9
"""A frozen manifest may hold instructions that differ in one word; what is built here keeps a greater distance."""
MOST = 100_000
"""Pictures of a manifest."""
UNSEEN = 5
"""Unseen instructions of each picture (paper, section VII-A)."""
_FIELDS = ("id", "category", "image", "instruction", "unseen", "licence", "sha256", "source", "caption", "prompts_from")
_REQUIRED = _FIELDS[:5]


@dataclass(frozen=True)
class Item:
    """One picture of a benchmark.

    ``image``: its file, relative to the manifest and not outside its folder; ``sha256`` of that file, "" when it was
    never frozen; ``source`` where the picture comes from; ``caption`` what it shows; ``prompts_from`` who wrote
    ``unseen``. ``drawn``, ``tell`` and ``spoken`` are for embedded data, which have no file, know the truth, and how
    else an instruction can be worded.
    """

    id: str
    category: str
    image: str
    instruction: str
    unseen: tuple[str, ...]
    licence: str = ""
    sha256: str = ""
    source: str = ""
    caption: str = ""
    prompts_from: str = ""
    folder: Path = field(default=Path(), compare=False)
    drawn: Tensor | None = field(default=None, compare=False)
    tell: Callable[[str], Any] | None = field(default=None, compare=False)
    spoken: Callable[[str], Sequence[str]] | None = field(default=None, compare=False)

    @property
    def path(self) -> Path:
        """The picture's file. Raises InputError where it would lie outside the manifest's folder, links followed."""
        if (path := within(self.folder, self.image)) is None:
            raise InputError(
                f"{self.id}: expected a picture in the manifest's folder or below, got {self.image}: a manifest is "
                "shared with its pictures; put them there"
            )
        return path

    def pixels(self) -> Tensor:
        """The picture, (3, H, W) float32 in [0, 1]."""
        from ..images import load_image

        return load_image(self.path)[0] if self.drawn is None else self.drawn

    def wordings(self) -> tuple[str, ...]:
        """Its instructions, each in every wording that is known: of embedded data those of its language."""
        asked = (self.instruction, *self.unseen)
        return tuple(text for prompt in asked for text in (self.spoken(prompt) if self.spoken else (prompt,)))

    def truth(self, instruction: str) -> Any:
        """Ground truth of an instruction on this picture, where there is one."""
        return self.tell(instruction) if self.tell else None


def read(path: str | os.PathLike[str]) -> list[Item]:
    """The items of a manifest, as they stand; :func:`check` says whether they are sound."""
    file = Path(path)
    try:
        lines = read_text(file).split("\n")  # not splitlines(): a text may hold U+2028
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file}: expected a manifest in UTF-8 ({error}); `sifm data --help` says how to make one"
        ) from None
    items = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            items.append(_item(line, f"{file}:{number}", file.parent))
            if len(items) > MOST:
                raise InputError(f"{file}: expected at most {MOST:,} pictures, but there are more; cut it")
    return items


def write(items: Iterable[Item], path: str | os.PathLike[str]) -> None:
    """Write a manifest; what is in it is frozen by the checksums of its pictures."""
    lines = []
    for item in items:
        plain = asdict(replace(item, drawn=None, tell=None))
        kept = {key: plain[key] for key in _FIELDS if plain[key] or key in _REQUIRED}
        lines.append(json.dumps(kept, ensure_ascii=False))
    write_atomically(Path(path), ("\n".join(lines) + "\n").encode())


def check(items: Sequence[Item]) -> list[Item]:
    """The items, when ids are unique, pictures are there as they were frozen and instructions are texts, and distinct.

    Raises InputError for the first that is not.
    """
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise InputError(f"{item.id}: expected ids to be unique, but this one stands there twice")
        seen.add(item.id)
        if not item.path.is_file():
            raise InputError(f"{item.id}: expected its picture at {item.path}, but there is none")
        if item.sha256 and item.sha256 != sha256_of(item.path):
            raise InputError(f"{item.id}: {item.path} is not the picture that was frozen (its sha256 is another)")
        instructions = [item.instruction, *item.unseen]
        if not all(text.strip() for text in instructions):
            raise InputError(f"{item.id}: expected instructions, but one is empty")
        if pair := clash(instructions, least=SAME):
            raise InputError(f"{item.id}: expected distinct instructions, but {pair[0]!r} and {pair[1]!r} are not")
    if not items:
        raise InputError("expected at least one picture, but the manifest is empty")
    return list(items)


def _item(line: str, where: str, folder: Path) -> Item:
    try:
        plain = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected one JSON object a line: {error}") from None
    if not isinstance(plain, dict) or not set(_REQUIRED) <= plain.keys():
        raise InputError(f"{where}: expected an object with {', '.join(_REQUIRED)}")
    for key in plain:
        if key not in _FIELDS:
            raise unknown(f"field in {where}", key, _FIELDS)
    unseen, texts = plain["unseen"], [plain[key] for key in plain if key != "unseen"]
    if not isinstance(unseen, list) or not all(isinstance(text, str) for text in texts + unseen):
        raise InputError(f"{where}: expected texts, and a list of texts as unseen")
    if any(re.search("[\ud800-\udfff]", text) for text in texts + unseen):
        raise InputError(f"{where}: expected texts in Unicode, but one holds half of a character")
    return Item(**{**plain, "unseen": tuple(unseen)}, folder=folder)
