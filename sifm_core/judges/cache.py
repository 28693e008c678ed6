"""The ledger of calls to paid judges: every answer that arrived, and what was spent. One SQLite file.

A call is written down *before* it is sent, with the most it can cost, and completed when its answer is in the file. So
after kill -9 no answer that arrived is bought again, a call whose answer never arrived is known and stays charged, and
the sum of what was spent and what is reserved never passes the cap, whatever happens in between.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..store import connect, write_ahead

_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
  id INTEGER PRIMARY KEY,
  key TEXT NOT NULL,
  judge TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('sent', 'answered', 'lost', 'unpaid')),
  reserved REAL NOT NULL,
  cost REAL,
  reply TEXT,
  sent_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX IF NOT EXISTS calls_key ON calls (key);
CREATE TABLE IF NOT EXISTS jobs (call INTEGER PRIMARY KEY REFERENCES calls, label TEXT NOT NULL, name TEXT);
"""
_SPENT = """
SELECT COALESCE(SUM(CASE WHEN cost BETWEEN 0 AND 1e99 THEN cost ELSE reserved END), 0)
FROM calls WHERE status != 'unpaid'
"""
_RESERVE = f"""
INSERT INTO calls (key, judge, status, reserved) SELECT ?, ?, 'sent', ? WHERE ({_SPENT}) + ? <= ? RETURNING id
"""


def key_of(**parts: Any) -> str:
    """The key of a question: a hash of everything that the answer can depend on (bytes enter by their hash)."""

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return {"sha256": hashlib.sha256(value).hexdigest()}
        raise TypeError(f"cannot hash {type(value).__name__}")

    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=plain).encode()).hexdigest()


class Cache:
    """Answers and money. ``path`` None keeps both in memory, for as long as this object lives. Safe across threads.

    ``lost`` calls were sent, but no answer arrived (time-out, killed): they may have been paid, and stay charged.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._turn = threading.Condition()
        self._mine: set[int] = set()
        try:
            if path is not None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._db = connect(path or ":memory:")
            write_ahead(self._db)
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path}: expected a cache of judges' answers or a place to write one: {error}") from error

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        try:
            with self._turn:
                yield
        except sqlite3.Error as error:
            raise StoreError(f"the cache of judges' answers cannot be used: {error}") from error

    def find(self, key: str) -> tuple[Any, float | None] | None:
        """(reply as plain data, cost in US dollars, None where it is unknown) of the answer to this question, or None.

        The reply of a damaged row is None.
        """
        with self._using():
            row = self._db.execute(
                "SELECT reply, cost FROM calls WHERE key = ? AND status = 'answered' ORDER BY id LIMIT 1", (key,)
            ).fetchone()
        if row is None:
            return None
        try:
            reply = json.loads(row[0])
        except (TypeError, ValueError, RecursionError):
            reply = None
        return reply, row[1] if isinstance(row[1], float) and 0 <= row[1] < math.inf else None

    def served(self, judge: str) -> list[str]:
        """The models that have answered this judge."""
        with self._using():
            rows = self._db.execute(
                "SELECT DISTINCT json_extract(reply, '$.served') FROM calls"
                " WHERE judge = ? AND status = 'answered' AND json_valid(reply)",
                (judge,),
            )
            return [row[0] for row in rows if isinstance(row[0], str)]

    def lost(self, key: str) -> bool:
        """Whether this question was sent before, and its answer never arrived."""
        with self._using():
            rows = self._db.execute("SELECT id FROM calls WHERE key = ? AND status IN ('sent', 'lost')", (key,))
            return any(row[0] not in self._mine for row in rows)

    def spent(self) -> float:
        """US dollars: answered calls at their cost; lost ones and those under way at the most they can cost."""
        with self._using():
            return float(self._db.execute(_SPENT).fetchone()[0])

    def reserve(self, key: str, *, judge: str, at_most: float, cap: float | None) -> int | None:
        """Write a call down before it is sent; None if it could pass the cap. Waits while others may free money."""
        with self._using():
            while True:
                row = self._db.execute(_RESERVE, (key, judge, at_most, at_most, math.inf if cap is None else cap))
                if call := row.fetchone():
                    self._mine.add(call[0])
                    return int(call[0])
                if not self._mine:
                    return None
                self._turn.wait()

    def reserve_job(
        self, label: str, calls: Sequence[tuple[str, float]], *, judge: str, cap: float | None
    ) -> list[int | None]:
        """Write the calls of one job, (key, at most), down before it is sent; None for each that could pass the cap."""
        limit = math.inf if cap is None else cap
        with self._using():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                found = [self._db.execute(_RESERVE, (key, judge, m, m, limit)).fetchone() for key, m in calls]
                rows = [(row[0], label) for row in found if row]
                self._db.executemany("INSERT INTO jobs (call, label) VALUES (?, ?)", rows)
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        return [row and int(row[0]) for row in found]

    def name_job(self, label: str, name: str) -> None:
        """Keep what the provider calls a job."""
        with self._using():
            self._db.execute("UPDATE jobs SET name = ? WHERE label = ?", (name, label))

    def open_jobs(self, judge: str) -> list[tuple[str, str | None, list[tuple[int, str]]]]:
        """(label, the provider's name if known, (call, key) in order) of this judge's jobs that were not collected."""
        with self._using():
            rows = self._db.execute(
                "SELECT label, name, call, key, status = 'sent' FROM jobs JOIN calls ON id = call WHERE judge = ?"
                " ORDER BY call",
                (judge,),
            ).fetchall()
        jobs: dict[str, tuple[str, str | None, list[tuple[int, str]]]] = {}
        for label, name, call, key, _ in rows:
            jobs.setdefault(label, (label, name, []))[2].append((call, key))
        still = {label for label, *_, sent in rows if sent}
        return [job for label, job in jobs.items() if label in still]

    def settle(
        self, call: int, status: str, *, reply: Mapping[str, Any] | None = None, cost: float | None = None
    ) -> None:
        """Complete a call: "answered" (with its reply), "lost" (may have been paid) or "unpaid" (surely not)."""
        with self._using():
            try:
                self._db.execute(
                    "UPDATE calls SET status = ?, reply = ?, cost = ? WHERE id = ?",
                    (status, None if reply is None else json.dumps(reply), cost, call),
                )
            finally:  # whoever waits for money must wake up
                self._mine.discard(call)
                self._turn.notify_all()
