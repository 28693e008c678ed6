"""People judge a run's edits in a browser: a page of this machine alone, blind, by keyboard, several people at a time.

Every answer is in the file before the next case is shown, so that a stopped program goes on where it was. The page is
the sidebar's of ComfyUI (``web/annotate.js``); its address holds a token, and nothing is answered without it.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import parse_qs, urlsplit

from .consistency import consistency
from .errors import SifmError
from .images import png_bytes
from .judges.human import Annotation, add_answer, answer_of, answers_in, case_id, left_for, name_of
from .store import Store
from .types import Case, Record
from .verdicts import Verdict

LARGEST = 4096
"""Bytes of an answer."""
HERE = "127.0.0.1"
_FOLDER = Path(__file__).parent
_SHARED = {"judging.js": "annotate.js", "dom.js": "dom.js"}
"""What the page shares with the sidebar: beside the package's own files, or in a checkout beside the package."""
_SAFE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"


class Shown(TypedDict):
    """What a person is shown of one case: the instruction and the ids of two pictures, and nothing of a method."""

    case: str
    prompt: str
    source: str
    edited: str


def cases_in(records: Iterable[Record], store: Store) -> dict[str, Shown]:
    """The different cases of records whose pictures are there, by name (:func:`sifm_core.judges.human.case_id`)."""
    named: dict[str, Shown] = {}
    for record in records:
        if store.has_image(record.source) and store.has_image(record.edited):
            source, edited = (store.get_image(name)[0] for name in (record.source, record.edited))
            case = case_id(Case(source, edited, record.prompt))
            named[case] = Shown(case=case, prompt=record.prompt, source=record.source, edited=record.edited)
    return named


def todo(named: Mapping[str, Shown], who: str, answers: Iterable[Annotation], where: str) -> list[Shown]:
    """The cases that a person has left, in an order of their own."""
    return [named[case] for case in left_for(who, named, answers, where)]


def agreement(named: Mapping[str, Shown], answers: Sequence[Annotation]) -> dict[str, Any]:
    """How many cases each person has judged, and how far people agree on those that two have, by axis."""
    people = dict.fromkeys(answer.annotator for answer in answers if answer.case in named)
    said: dict[str, list[Verdict]] = {}
    for who in people:
        own = {answer.case: answer for answer in answers if answer.annotator == who}
        said[who] = [_verdict(who, own.get(case)) for case in named]
    table = consistency(said, said, [shown["source"] for shown in named.values()])["human-human"] if said else {}
    counts = {who: sum(v.state != "unreachable" for v in verdicts) for who, verdicts in said.items()}
    return {"total": len(named), "people": counts, "axes": {axis: asdict(cell) for axis, cell in table.items()}}


def _verdict(who: str, answer: Annotation | None) -> Verdict:
    if answer is None:
        return Verdict(who, "unreachable")
    if answer.semantic_mismatch is None or answer.perceptual_degradation is None:
        return Verdict(who, "refused")
    return Verdict(who, "ok", answer.semantic_mismatch, answer.perceptual_degradation)


class Page:
    """The page of one run, to be used as a context manager; ``url`` is its address, with the token.

    ``records``: what is to be judged; ``file``: where the answers are and go; ``on_answer`` hears of each one.
    """

    def __init__(
        self,
        store: Store,
        records: Iterable[Record],
        file: Path,
        *,
        port: int = 0,
        on_answer: Callable[[Annotation], None] = lambda answer: None,
    ) -> None:
        self._store, self.file, self._on_answer = store, file, on_answer
        self.cases = cases_in(records, store)
        self._pictures = {name for shown in self.cases.values() for name in (shown["source"], shown["edited"])}
        self._reading = threading.Lock()
        token = secrets.token_urlsafe(16)
        handler = type("Handler", (_Handler,), {"page": self, "root": f"/{token}/"})
        try:
            self._http = ThreadingHTTPServer((HERE, port), handler)
        except OSError as error:
            raise SifmError(f"port {port} of {HERE} cannot be had ({error.strerror}); choose another one") from None
        self._http.daemon_threads = True
        self.hosts = {f"{name}:{self._http.server_address[1]}" for name in (HERE, "localhost")}
        self.url = f"http://{HERE}:{self._http.server_address[1]}/{token}/"

    def __enter__(self) -> Page:
        threading.Thread(target=self._http.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def found(self, path: str, query: Mapping[str, list[str]]) -> tuple[str, bytes]:
        """The type and the bytes of what lies under a path of the page; LookupError where nothing does."""
        if path == "":
            page = (_FOLDER / "templates" / "annotate.html").read_text(encoding="utf-8")
            return "text/html", page.replace("{{file}}", escape(self.file.name)).encode()
        if path == "annotate.js":
            return "text/javascript", (_FOLDER / "templates" / path).read_bytes()
        if path in _SHARED:
            places = (place / "web" / _SHARED[path] for place in (_FOLDER, _FOLDER.parent))
            return "text/javascript", next(file for file in places if file.is_file()).read_bytes()
        if path == "cases":
            who = name_of(query.get("annotator", [""])[0])
            left = todo(self.cases, who, answers_in(self.file), str(self._store.folder))
            return _json({"total": len(self.cases), "cases": left})
        if path == "agreement":
            return _json(agreement(self.cases, answers_in(self.file)))
        if path == self.file.name:
            return "text/plain", self.file.read_bytes() if self.file.exists() else b""
        folder, _, name = path.partition("/")
        if folder == "pictures" and name in self._pictures:
            with self._reading:
                return "image/png", png_bytes(self._store.get_image(name))
        raise LookupError("there is nothing here")

    def take(self, body: Any) -> None:
        """Keep one answer; ValueError for what is none, or is of no case of this run."""
        answer = answer_of(body)
        if answer.case not in self.cases:
            raise ValueError("this is no case of this run")
        add_answer(self.file, answer)
        self._on_answer(answer)


class _Handler(BaseHTTPRequestHandler):
    page: Page
    root: str
    protocol_version = "HTTP/1.1"
    timeout = 30.0

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if not self._allowed(parts.path):
            return
        try:
            kind, content = self.page.found(parts.path.removeprefix(self.root), parse_qs(parts.query))
        except LookupError as error:
            return self._say(404, str(error.args[0]))
        except (SifmError, ValueError) as error:
            return self._say(400, str(error))
        self._send(200, kind, content)

    def do_POST(self) -> None:
        if not self._allowed(self.path) or self.path != f"{self.root}annotations":
            return self._say(404, "there is nothing here")
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "application/json" or not length.isdigit() or int(length) > LARGEST:
            return self._say(400, f"expected JSON of at most {LARGEST} bytes")
        try:
            self.page.take(json.loads(self.rfile.read(int(length))))
        except (SifmError, ValueError, RecursionError) as error:
            return self._say(400, str(error))
        self._send(200, *_json({"ok": True}))

    def _allowed(self, path: str) -> bool:
        """Is it this page that asks, under this machine's own name?"""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        own = host in self.page.hosts and (origin is None or origin.partition("://")[2] == host)
        if own and path.startswith(self.root) and self.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin"):
            return True
        if self.command == "GET":
            self._say(404, "there is nothing here; open the address that `sifm annotate` printed")
        return False

    def _say(self, code: int, words: str) -> None:
        self.close_connection = True
        self._send(code, *_json({"error": words}))

    def _send(self, code: int, kind: str, content: bytes) -> None:
        self.send_response(code)
        for name, value in {**_SAFE, "Content-Security-Policy": _POLICY}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind if kind.startswith("image/") else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: addresses hold the token."""


def _json(value: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(value).encode()
