"""One folder per run: records and documents in ``run.sqlite``, pictures in ``images/``; a killed run resumes from it.

Every ``put`` is one durable transaction (SQLite in WAL mode, synchronous FULL), every picture file appears whole or not
at all: what was put survives kill -9 and power loss. Several processes may read and write; of two values put under one
key the later stays.

A picture's id is the sha256 of its size and raw 8-bit RGB values, not of the file: it depends on no encoder. Each read
checks it, so a damaged file is never taken for the picture.

What a run holds may be damaged, or of another version. One such record or document costs itself: it is left out, and
:attr:`Store.unreadable` says why. A run that may only be read is read; texts that are no Unicode come back escaped.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import shutil
import sqlite3
import string
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import quote

import numpy as np
from PIL import Image as Pil

from .errors import InputError, StoreError
from .files import cell, write_atomically
from .shapes import misfit
from .types import Image, Metric, Record, Verdict

SCHEMA = 1
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_TABLES = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS documents (kind TEXT, key TEXT, json TEXT NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, json TEXT NOT NULL);
PRAGMA user_version = %d;
COMMIT;
"""


class Store:
    """The store in ``folder``, made when it is missing (``create=False``: StoreError); a context manager.

    With ``create=False`` a run that may only be read is read. ``unreadable``: place -> why something was left out.
    Raises StoreError when the folder cannot be used or holds another version's run.
    """

    def __init__(self, folder: str | os.PathLike[str], *, create: bool = True) -> None:
        self.folder = Path(folder)
        self.unreadable: dict[str, str] = {}
        self._file = self.folder / "run.sqlite"
        if not create and not self._file.is_file():
            raise StoreError(f"{self.folder}: expected the folder of a run, but it holds no run.sqlite; check the path")
        try:
            if create:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._db = connect(self._file)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{self.folder}: cannot hold a run ({error}); choose a folder you may write to") from error
        try:
            version = self._prepare()
        except StoreError:
            self._db.close()
            if create or not self._only_to_read():
                raise
            version = self._execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA):
            self._db.close()
            raise StoreError(
                f"{self._file}: expected schema {SCHEMA}, but this run has {version}; "
                "open it with the version of sifm that wrote it, or start in another folder"
            )
        self._db.text_factory = lambda raw: raw.decode("utf-8", "backslashreplace")

    def _prepare(self) -> int:
        """The schema's number, once the tables are there and ready for several processes."""
        version = self._execute("PRAGMA user_version").fetchone()[0]
        if version in (0, SCHEMA):
            with self._naming_the_file():
                write_ahead(self._db)
            self._execute("PRAGMA synchronous = FULL")
        if version == 0:
            for statement in (_TABLES % SCHEMA).strip().split("\n"):
                self._execute(statement)
            version = SCHEMA
        return version

    def _only_to_read(self) -> bool:
        """Open the run without writing anything beside it; its last transactions, where they lie apart, from a copy."""
        file, log = self._file, self._file.with_name(f"{self._file.name}-wal")
        try:
            if log.exists() and log.stat().st_size:
                self._copy = tempfile.TemporaryDirectory(prefix="sifm-")
                for one in (file, log):
                    shutil.copyfile(one, Path(self._copy.name, one.name))
                self._db = connect(Path(self._copy.name, file.name))
            else:
                address = f"file:{quote(str(file.resolve()))}?mode=ro&immutable=1"
                self._db = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
            self._db.execute("SELECT COUNT(*) FROM documents")
        except (OSError, sqlite3.Error):
            return False
        return True

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; what was put is safe without it."""
        self._db.close()

    @contextmanager
    def together(self) -> Iterator[None]:
        """All puts within are one durable transaction: all of them or, when something raises, none."""
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._execute("ROLLBACK")
            raise
        self._execute("COMMIT")

    # ---- documents: anything that is JSON, by kind and key

    def put(self, kind: str, key: str, value: Mapping[str, Any]) -> None:
        """Keep ``value`` (plain data: no tensors, no NaN) under ``kind`` and ``key``; InputError if it is not plain."""
        text = _dumps(_plain(value, f"{kind}[{key}]"))
        self._execute(
            "INSERT INTO documents VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET json = excluded.json", kind, key, text
        )

    def get(self, kind: str, key: str, shape: Any = dict[str, Any]) -> dict[str, Any] | None:
        """What was put under ``kind`` and ``key`` (tuples come back as lists); None where nothing of the shape is.

        ``shape``: a type hint, see :func:`sifm_core.shapes.misfit`.
        """
        row = self._execute("SELECT json FROM documents WHERE kind = ? AND key = ?", kind, key).fetchone()
        return None if row is None else self._read(f"{kind} {key}", row[0], shape)

    def remove(self, kind: str, key: str) -> None:
        """Forget a document, if there is one."""
        self._execute("DELETE FROM documents WHERE kind = ? AND key = ?", kind, key)

    def documents(self, kind: str, shape: Any = dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """All (key, value) of a kind that have the shape, ordered by key, one at a time."""
        for key, text in self._each("SELECT key, json FROM documents WHERE kind = ? ORDER BY key", kind):
            value = self._read(f"{kind} {key}", text, shape)
            if value is not None:
                yield key, value

    def counts(self) -> dict[str, int]:
        """How many documents of each kind, and how many "records", there are."""
        found = dict(self._execute("SELECT kind, COUNT(*) FROM documents GROUP BY kind ORDER BY kind").fetchall())
        return found | {"records": self._execute("SELECT COUNT(*) FROM records").fetchone()[0]}

    # ---- records: the rows of the run

    def put_record(self, record: Record) -> None:
        """Keep a record under its key; one of the same key is replaced and keeps its place."""
        text = _dumps(_plain(record, f"record[{record.key}]"))
        self._execute(
            "INSERT INTO records (key, json) VALUES (?, ?) ON CONFLICT DO UPDATE SET json = excluded.json",
            record.key,
            text,
        )

    def records(self) -> Iterator[Record]:
        """All records in the order in which they were first put, one at a time."""
        for row in self.rows():
            yield record_of(row)

    def remove_records(self) -> None:
        """Forget all records; documents and pictures stay."""
        self._execute("DELETE FROM records")

    def rows(self) -> Iterator[dict[str, Any]]:
        """All records as plain data, which is quicker to read many of; :func:`record_of` makes one a record."""
        for key, text in self._each("SELECT key, json FROM records ORDER BY id"):
            row = self._read(f"record {key}", text, Record)
            if row is not None:
                yield _completed(row)

    def missing(self) -> str:
        """What of the records was left out when they were last read, in a sentence; "" when nothing was."""
        damaged = {place: wrong for place, wrong in self.unreadable.items() if place.startswith("record ")}
        if not damaged:
            return ""
        place, wrong = next(iter(damaged.items()))
        what = (
            "1 record cannot be read and is" if len(damaged) == 1 else f"{len(damaged)} records cannot be read and are"
        )
        return f"{what} left out: {place[:20]}…: {wrong}"

    # ---- pictures, by content

    def put_image(self, image: Image) -> str:
        """Keep a picture, (1, 3, H, W) or (3, H, W) in [0, 1], and return its id.

        What is off the 8-bit grid is rounded to the nearest level: judge and measure what :meth:`get_image` gives.
        """
        from .images import png_bytes, to_uint8

        pixels = to_uint8(image)
        name = picture_id(pixels)
        if not self.has_image(name):
            try:
                write_atomically(self._path(name), png_bytes(image))
            except InputError as error:
                raise StoreError(str(error)) from error
        return name

    def get_image(self, name: str) -> Image:
        """The picture with that id, (1, 3, H, W) float32, exactly k/255; StoreError when it is missing or damaged."""
        from .images import from_uint8

        return from_uint8(self.get_pixels(name))

    def get_pixels(self, name: str) -> np.ndarray:
        """The same as uint8 (H, W, 3), for who only looks at it and needs no torch."""
        path = self._path(name)
        try:
            if path.exists() and not path.is_file():  # a pipe would be waited for
                raise ValueError("it is no file")
            with Pil.open(io.BytesIO(path.read_bytes()), formats=("PNG",)) as file:
                pixels = np.asarray(file.convert("RGB"))
        except FileNotFoundError:
            raise StoreError(f"{path}: expected a picture of this run, but there is none; run again") from None
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            raise StoreError(f"{path}: expected a picture, but the file is damaged ({error}); run again") from error
        if picture_id(pixels) != name:
            raise StoreError(f"{path}: expected the picture of that id, but the file holds another; run again")
        return pixels

    def find_pixels(self, name: str) -> np.ndarray | None:
        """:meth:`get_pixels`, or None where the picture is missing or damaged."""
        try:
            return self.get_pixels(name)
        except StoreError:
            return None

    def has_image(self, name: str) -> bool:
        """Is the picture there, whole?"""
        return self.find_pixels(name) is not None

    def seems_whole(self, name: str) -> bool:
        """Is the picture there, and does its file end as a PNG does? Quick: :meth:`has_image` looks at every pixel."""
        try:
            path = self._path(name)
            if not path.is_file():
                return False
            with path.open("rb") as file:
                file.seek(-len(_PNG_END), os.SEEK_END)
                return file.read() == _PNG_END
        except (OSError, StoreError):
            return False

    def _path(self, name: str) -> Path:
        if not _is_id(name):
            raise StoreError(f"expected the id of a picture (64 hexadecimal digits), but got {name[:80]!r}")
        return self.folder / "images" / name[:2] / f"{name}.png"

    # ---- exports

    def export_jsonl(self, path: str | os.PathLike[str]) -> None:
        """Write all records as JSON lines: everything that is known."""
        with _written(Path(path)) as file:
            file.writelines(_dumps(row) + "\n" for row in self.rows())

    def export_csv(self, path: str | os.PathLike[str]) -> None:
        """Write all records as a flat table: one column per metric, judge's answer and time; ``info`` as JSON.

        Texts that a spreadsheet would take for formulas have an apostrophe before them.
        """
        columns = list(dict.fromkeys(column for row in self.rows() for column in _flat(row)))
        with _written(Path(path)) as file:
            writer = csv.DictWriter(file, columns)
            writer.writerow({name: cell(name) for name in columns})
            writer.writerows({name: cell(value) for name, value in _flat(row).items()} for row in self.rows())

    def _execute(self, statement: str, *values: str) -> sqlite3.Cursor:
        with self._naming_the_file():
            return self._db.execute(statement, values)

    def _each(self, statement: str, *values: str) -> Iterator[Any]:
        with self._naming_the_file():
            yield from self._db.execute(statement, values)

    def _read(self, place: str, text: Any, shape: Any) -> dict[str, Any] | None:
        """A row's value, or None with the reason among the :attr:`unreadable`."""
        try:
            value = json.loads(text)
            if "\\ud" in text or "\\uD" in text:
                value = _escaped(value)
            wrong = misfit(value, shape)
        except (ValueError, TypeError, RecursionError) as error:
            value, wrong = None, f"expected JSON, but it is damaged ({error})"
        if wrong:
            self.unreadable[place] = wrong
            return None
        self.unreadable.pop(place, None)
        return value

    @contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            cure = (
                "it may only be read; copy the run to a place you may write to"
                if "readonly" in str(error)
                else "is it a run of sifm, whole, and on a disk with room? What is damaged here cannot be mended: run "
                "again into another folder, and take answers.sqlite, where judges' paid answers are, along"
            )
            raise StoreError(f"{self._file}: {error}; {cure}") from error


def connect(path: str | os.PathLike[str]) -> sqlite3.Connection:
    """A connection for several threads and processes: every statement its own transaction, waits of up to a minute."""
    return sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)


def write_ahead(db: sqlite3.Connection, patience: float = 60.0) -> None:
    """Switch a database to write-ahead logging, in which readers and the writer do not wait for each other.

    SQLite does not wait when several connections switch a new file at once, it fails: so this asks again for up to
    ``patience`` seconds.
    """
    until = time.monotonic() + patience
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def record_of(row: Mapping[str, Any]) -> Record:
    """A record from plain data, as ``dataclasses.asdict`` makes it."""
    metrics = {name: Metric(**metric) for name, metric in row["metrics"].items()}
    verdicts = tuple(Verdict(**verdict) for verdict in row["verdicts"])
    return Record(**{**row, "metrics": metrics, "verdicts": verdicts})


def fingerprint(**parts: Any) -> str:
    """sha256 of plain data, the same for every order of keys, for tuples and lists, and for 1 and 1.0.

    Raises InputError for what has no stable spelling: tensors (put them with ``put_image`` and pass the id), NaN,
    objects, keys that are no strings.
    """
    plain = json.loads(_dumps(_plain(parts, "fingerprint")), parse_float=_number)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


@contextmanager
def _written(path: Path) -> Iterator[TextIO]:
    """A text file that takes its name only when it is whole."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose a place you may write to") from error
    finally:
        with suppress(OSError):
            part.unlink()


def _plain(value: Any, where: str) -> Any:
    """``value`` as JSON data, or an InputError that names the place."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    came = repr(value) if isinstance(value, float | Mapping) else type(value).__name__
    raise InputError(f"{where}: expected plain data (text, finite numbers, lists, dicts), but got {came}; convert it")


def _dumps(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _escaped(value: Any) -> Any:
    """Halves of surrogate pairs, which are no text that could be written anywhere, by their escapes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_escaped(name): _escaped(item) for name, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list) else value


_WHOLE: dict[type, int] = {kind: len(dataclasses.fields(kind)) for kind in (Record, Verdict, Metric)}


def _completed(row: dict[str, Any]) -> dict[str, Any]:
    """The record with the fields that an earlier version did not write."""
    parts: list[tuple[type, Any]] = [(Record, row), *((Verdict, verdict) for verdict in row.get("verdicts", ()))]
    parts += [(Metric, metric) for metric in row.get("metrics", {}).values()]
    if all(len(part) == _WHOLE[kind] for kind, part in parts):
        return row
    return dataclasses.asdict(record_of({"metrics": {}, "verdicts": (), **row}))


def _is_id(name: str) -> bool:
    return len(name) == 64 and set(name) <= set(string.hexdigits)


def _number(text: str) -> float | int:
    return int(float(text)) if float(text).is_integer() else float(text)


def picture_id(pixels: np.ndarray) -> str:
    """The id of an 8-bit picture (H, W, 3): sha256 of its size and raw RGB values, whatever file it came from."""
    height, width = pixels.shape[:2]
    return hashlib.sha256(b"RGB8 %dx%d\n" % (width, height) + pixels.tobytes()).hexdigest()


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat = {key: value for key, value in row.items() if key not in ("metrics", "verdicts", "seconds", "info")}
    flat |= {f"metric:{name}": metric["value"] for name, metric in row["metrics"].items()}
    for verdict in row["verdicts"]:
        for key in ("state", "semantic_mismatch", "perceptual_degradation"):
            flat[f"judge:{verdict['judge']}:{key}"] = verdict[key]
    flat |= {f"seconds:{name}": value for name, value in row["seconds"].items()}
    return flat | {"info": _dumps(row["info"])}
