"""Manifests from what there is: a folder with a CSV, a copy of instructpix2pix-clip-filtered, the miniature.

And with unseen instructions of a language model in place of those that a manifest has.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import random
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image as Pil

from ..errors import InputError, JudgeError, SifmError
from ..files import read_text, sha256_of, within
from ..images import load_picture, save_png, write_atomically
from ..judges.client import Reply
from ..judges.rubric import Form, Part, picture
from ..judges.vlm import VlmJudge
from ..types import OnStep, Step
from . import prompts
from .manifest import UNSEEN, Item, check, read, write

COUNTS = {"portrait": 35, "landscape": 35, "artwork": 30}
"""The paper's benchmark (section VII-A)."""
DATASET = "timbrooks/instructpix2pix-clip-filtered"
KEYWORDS: dict[str, str] = {
    "artwork": r"painting|painted|drawing|drawn|illustration|artwork|watercolou?r|oil on|sculpture|mosaic|fresco"
    r"|etching|engraving|sketch|print|poster|canvas|mural|woodcut|tapestry|abstract|still life",
    "portrait": r"portrait|face|headshot|selfie|man|woman|girl|boy|lady|actor|actress|model|bride|king|queen|princess",
    "landscape": r"landscape|mountains?|lake|beach|sea|ocean|forest|valley|river|sunset|sunrise|field|hills?|coast"
    r"|island|waterfall|desert|sky|meadow|garden|village|skyline",
}
"""Category -> words of the caption; the first category that matches is the picture's."""
FORM = Form("unseen-1", prompts.Instructions)
"""What a language model is asked for; the number rises when the question of :func:`prompts.from_model` changes."""
Unseen = Callable[[str, str, str], tuple[str, ...]]
"""(instruction, category, caption) -> unseen instructions."""


def templates(instruction: str, category: str, caption: str) -> tuple[str, ...]:
    """Unseen instructions from the package's templates."""
    return prompts.from_templates(instruction, category, UNSEEN)


def from_csv(table: str | os.PathLike[str], out: str | os.PathLike[str], unseen: Unseen = templates) -> list[Item]:
    """A manifest of one's own pictures: a CSV with ``image`` and ``instruction``, and what else of a manifest is known.

    ``image`` is relative to the CSV; ``unseen`` there holds instructions separated by "|" (none: from ``unseen``).
    Pictures stay where they are when that is the folder of the manifest ``out`` (a .jsonl file) or below, else copies
    of them go into its ``images/``. Raises InputError for another suffix, which could be the table's or a picture's
    own, for what is no picture or lies outside the table's folder, and as :func:`sifm_core.data.check` does.
    """
    file, target = Path(table), Path(out)
    if target.suffix != ".jsonl":
        raise InputError(f"{target}: expected a .jsonl file for the manifest; use {target.with_suffix('.jsonl')}")
    try:
        reader = csv.DictReader(io.StringIO(read_text(file), newline=""), strict=True)
        rows = [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{file}: expected a CSV in UTF-8 ({error})") from None
    columns = reader.fieldnames or ()
    if not rows or not {"image", "instruction"} <= set(columns):
        raise InputError(f"{file}: expected a CSV with the columns image and instruction")
    items = []
    for line, row in rows:
        if None in row or None in row.values():  # a cell too many, or too few
            raise InputError(f"{file}, line {line}: expected {len(columns)} cells; put texts with commas in quotes")
        path = within(file.parent, row["image"])
        if path is None:
            raise InputError(f"{file}, line {line}: expected a picture beside the table or below, got {row['image']}")
        if not path.is_file():
            raise InputError(f"{file}: expected the picture {path}, but there is none")
        load_picture(path)
        category, caption = row.get("category") or "", row.get("caption") or ""
        given = tuple(text.strip() for text in (row.get("unseen") or "").split("|") if text.strip())
        item = Item(
            id=row.get("id") or path.stem,
            category=category,
            image=_beside(path, target.parent),
            instruction=row["instruction"].strip(),
            unseen=given or unseen(row["instruction"].strip(), category, caption),
            licence=row.get("licence") or "",
            sha256=sha256_of(path),
            source=row.get("source") or "",
            caption=caption,
            prompts_from="the table" if given else _who(unseen),
            folder=target.parent,
        )
        items.append(item)
    write(check(items), target)
    return items


@dataclass(frozen=True)
class _Row:
    """A row of the data set; ``place`` finds its picture again."""

    place: tuple[Path, int]
    caption: str
    instruction: str


def from_instructpix2pix(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    counts: Mapping[str, int] = COUNTS,
    unseen: Unseen = templates,
    reject: Iterable[str] = (),
) -> list[Item]:
    """Choose pictures from a local copy of the data set, by seed and caption keywords, into the folder ``out``.

    ``source``: a folder of its parquet files, or a folder of pictures with ``metadata.jsonl`` (``file_name``,
    ``original_prompt``, ``edit_prompt``). Same copy, seed and ``reject`` (ids that a review turned down), same
    manifest: each rejected one is replaced by the next in line. ``out`` gets ``images/`` and ``manifest.jsonl``.
    """
    folder, target = Path(source), Path(out)
    lines: dict[str, list[_Row]] = {category: [] for category in counts}
    for row in _rows(folder):
        category = category_of(row.caption)
        if category in lines:
            lines[category].append(row)
    refused = set(reject)
    if unknown_ids := refused - {_name(row, category, folder) for category, rows in lines.items() for row in rows}:
        raise InputError(f"reject: expected ids of pictures in {folder}, got {', '.join(sorted(unknown_ids))}")
    items: dict[str, list[Item]] = {category: [] for category in counts}
    for category, candidates in lines.items():
        random.Random(f"{seed}/{category}").shuffle(candidates)
        for row in candidates:
            if len(items[category]) == counts[category]:
                break
            name = _name(row, category, folder)
            if name in refused:
                (target / "images" / f"{name}.png").unlink(missing_ok=True)
            elif item := _chosen(row, name, category, folder, target, unseen):
                items[category].append(item)
        if len(items[category]) < counts[category]:
            raise InputError(
                f"{folder}: expected {counts[category]} pictures of category {category}, found {len(items[category])}"
            )
    mixed = [item for some in itertools.zip_longest(*items.values()) for item in some if item]  # first n: all kinds
    write(check(mixed), target / "manifest.jsonl")
    return mixed


def from_model(
    manifest: str | os.PathLike[str],
    out: str | os.PathLike[str],
    model: VlmJudge,
    *,
    look: bool = True,
    on_step: OnStep | None = None,
) -> list[Item]:
    """A manifest with the same pictures and new unseen instructions, written by a language model.

    The model sees the instruction and the caption and, with ``look``, the picture. What it answers is in its ledger,
    so that after a stop, or with a better model for the rest, nothing is asked twice. ``prompts_from`` names the model
    that answered and the form of the question. Raises InputError where ``out`` is there already and where a picture's
    answer is of no use, JudgeError where none came.
    """
    target = Path(out)
    if target.exists():
        raise InputError(f"{target}: unseen instructions are made once, and this file is there; choose another name")
    items = check(read(manifest))
    stop = threading.Event()

    def heed(step: Step) -> None:
        if stop.is_set():
            raise CancelledError

    def written(item: Item) -> Item:
        served: list[str] = []

        def ask(question: str) -> str:
            reply = asked(model, question, item.id, item.pixels() if look else None, on_step=heed)
            served.append(reply.served)
            return reply.text

        try:
            unseen = prompts.from_model(item.instruction, item.caption, ask, UNSEEN)
        except InputError as error:
            raise InputError(f"{item.id}: {error}; try another model, or write them into {manifest}") from None
        answered = " + ".join(dict.fromkeys(name for name in served if name)) or "unnamed"
        who = f"{model.name}, answered by {answered}, {FORM.name}{'' if look else ', picture not shown'}"
        image = _beside(item.path, target.parent)
        return replace(item, unseen=unseen, image=image, prompts_from=who, folder=target.parent)

    with ThreadPoolExecutor(model.concurrency) as pool:
        coming = [pool.submit(written, item) for item in items]
        try:
            for done, future in enumerate(as_completed(coming), 1):
                future.result()
                if on_step is not None:
                    on_step(Step("ask", done, len(items)))
        except BaseException:  # calls under way finish and are recorded; nothing further is sent
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    made = [future.result() for future in coming]
    write(check(made), target)
    return made


def asked(model: VlmJudge, question: str, subject: str, pixels: Any = None, *, on_step: OnStep | None = None) -> Reply:
    """A language model's reply to :func:`prompts.from_model`'s question; JudgeError where none came.

    ``pixels``: the picture (3, H, W) in [0, 1], for a model that can see (None: it is not shown). What ``on_step``
    raises while the reply is awaited ends the waiting.
    """
    shown: list[Part] = [question] if pixels is None else [question, "The picture:", picture(pixels)]
    reply = model.ask(shown, FORM, on_step=on_step)
    if reply.state != "ok":
        raise JudgeError(f"{model.name} wrote no instructions for {subject} ({reply.state}): {reply.reason}")
    return reply


def _beside(picture: Path, folder: Path) -> str:
    """Where a manifest in ``folder`` finds the picture: there or below, else in a copy of it."""
    name = os.path.relpath(picture, folder)
    if within(folder, name):
        return name
    copy = f"images/{sha256_of(picture)[:32]}{picture.suffix.lower()}"
    write_atomically(folder / copy, picture.read_bytes())
    return copy


def category_of(caption: str) -> str:
    """The category that a caption's words tell, or ""."""
    matching = (name for name, pattern in KEYWORDS.items() if re.search(rf"\b({pattern})\b", caption, re.IGNORECASE))
    return next(matching, "")


def miniature(out: str | os.PathLike[str], n: int | None = None) -> list[Item]:
    """The embedded benchmark as files: the same shape as any other, but without its ground truth."""
    from ..miniature import benchmark

    target = Path(out)
    items = []
    for x in benchmark.load(n):
        path = target / "images" / f"{x.id}.png"
        save_png(x.image[None], path)
        items.append(
            Item(
                x.id,
                x.category,
                f"images/{x.id}.png",
                x.instruction,
                x.unseen,
                licence="Apache-2.0",
                sha256=sha256_of(path),
                source="drawn by sifm_core.miniature",
                prompts_from="the miniature's grammar",
                folder=target,
            )
        )
    write(items, target / "manifest.jsonl")
    return items


def review(items: Iterable[Item], out: str | os.PathLike[str], command: str) -> None:
    """One HTML page with every picture and its instructions, to tick what is to be swapped.

    ``command``, which made them, stands there with a ``--reject ID`` more for each that is ticked.
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(loader=PackageLoader("sifm_core"), autoescape=select_autoescape(), trim_blocks=True)
    target = Path(out)
    cards = [{"item": item, "src": quote(Path(os.path.relpath(item.path, target.parent)).as_posix())} for item in items]
    write_atomically(target, environment.get_template("review.html").render(cards=cards, command=command).encode())


def _name(row: _Row, category: str, folder: Path) -> str:
    file, number = row.place
    return "-".join((category, *file.relative_to(folder).with_suffix("").parts, str(number)))


def _chosen(row: _Row, name: str, category: str, folder: Path, target: Path, unseen: Unseen) -> Item | None:
    """The item with its picture saved, or None when its picture or its instructions are of no use."""
    try:
        others = unseen(row.instruction, category, row.caption)
        picture = Pil.open(io.BytesIO(_bytes(row))).convert("RGB")
    except Exception:  # broken pictures make Pillow raise nearly anything
        return None
    file, number = row.place
    path = target / "images" / f"{name}.png"
    content = io.BytesIO()
    picture.save(content, "PNG")
    write_atomically(path, content.getvalue())
    return Item(
        id=name,
        category=category,
        image=f"images/{name}.png",
        instruction=row.instruction,
        unseen=others,
        licence="see the data set's card",
        sha256=sha256_of(path),
        source=f"{DATASET}: {file.relative_to(folder)}, row {number}",
        caption=row.caption,
        prompts_from=_who(unseen),
        folder=target,
    )


def _rows(folder: Path) -> Iterator[_Row]:
    """All rows without their pictures, in the order of the files."""
    files = sorted(folder.rglob("*.parquet"))
    for file in files:
        table = _parquet(file).read(columns=["original_prompt", "edit_prompt"]).to_pydict()
        for i, (caption, instruction) in enumerate(zip(*table.values(), strict=True)):
            yield _Row((file, i), caption, instruction.strip())
    metadata = folder / "metadata.jsonl"
    if not files and not metadata.is_file():
        raise InputError(f"{folder}: expected parquet files of {DATASET}, or pictures with metadata.jsonl")
    if not files:
        try:
            lines = read_text(metadata).split("\n")
        except (OSError, ValueError) as error:
            raise InputError(f"{metadata}: expected JSON lines in UTF-8 ({error})") from None
        for i, line in enumerate(lines):
            if line.strip():
                name, caption, instruction = _described(line, f"{metadata}:{i + 1}")
                if (path := within(folder, name)) is None:
                    raise InputError(f"{metadata}:{i + 1}: expected a picture in this folder or below, got {name}")
                yield _Row((path, i), caption, instruction.strip())


def _described(line: str, where: str) -> list[str]:
    """file_name, original_prompt and edit_prompt of a line of metadata.jsonl."""
    keys = ("file_name", "original_prompt", "edit_prompt")
    try:
        entry = json.loads(line)
        texts = [entry[key] for key in keys]
    except (ValueError, RecursionError, LookupError, TypeError):
        texts = []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: expected a JSON object with the texts {', '.join(keys)}")
    return texts


def _bytes(row: _Row) -> bytes:
    file, number = row.place
    if file.suffix != ".parquet":
        return file.read_bytes()
    parquet = _parquet(file)
    for group in range(parquet.num_row_groups):
        n = parquet.metadata.row_group(group).num_rows
        if number < n:
            return parquet.read_row_group(group, columns=["original_image"]).column(0)[number].as_py()["bytes"]
        number -= n
    raise InputError(f"{file}: expected a row {row.place[1]}")


def _parquet(file: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise SifmError(f"parquet files need pyarrow: pip install pyarrow ({error})") from None
    return ParquetFile(file)


def _who(unseen: Unseen) -> str:
    return "templates" if unseen is templates else getattr(unseen, "__name__", type(unseen).__name__)
