"""Hundreds of ways in which a judge's server can fail, lie and spy, made by combining what a part of an answer may be.

Each fault knows whether it leaves an answer that counts: liberal in the wrapping, strict in the answer.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from judges.servers import PAPER, USAGE

KEY = "sk-Zq7/Xw2Lm9Rt4Vb8Nc3Hf6Kd1/Ps5Gy0Jt"
SECRET = "org-of-the-users-own-Kp4Tz8"
"""What the environment holds for the provider alone."""
DIALECTS = ("gemini", "openai", "anthropic")
ANSWER = json.dumps(PAPER)
FAILED = json.dumps(PAPER | {"semantic_mismatch": True, "verdict": "failure"})
Named = tuple[str, Any, bool | None]
"""What it is called, what is sent, and whether an answer with it counts (None: it may)."""


@dataclass(frozen=True)
class Fault:
    """One case: what the server sends, whether an answer in it counts, which is a ``failed`` edit's, and is paid."""

    name: str
    send: Callable[[Any], None]
    counts: bool | None = False
    failed: bool = False
    paid: bool = True


def spelled(text: str) -> dict[str, str]:
    """A text as a server may echo it."""
    return {
        "plain": text,
        "late": "x" * 450 + text,
        "escaped": "".join(f"\\u{ord(c):04x}" for c in text),
        "escaped-twice": "".join(f"\\\\u{ord(c):04x}" for c in text),
        "slashes": text.replace("/", "\\/"),
        "percent": "".join(f"%{ord(c):02X}" for c in text),
        "entities": "".join(f"&#{ord(c)};" for c in text),
        "cut": text[:24],
        "many": f"{text}{text} {text}",
    }


def said(observation: str) -> str:
    """An answer whose reasons hold this piece of JSON text as it is."""
    return ANSWER.replace(PAPER["semantic_analysis"], observation)


TEXTS: list[Named] = [
    ("good", ANSWER, True),
    ("think", f"<think>so: {FAILED}</think>\n{ANSWER}", True),
    ("closed-think", f"I see.</think>{ANSWER}", True),
    ("fence", f"```json\n{ANSWER}\n```", True),
    ("box", f"<|begin_of_box|>{ANSWER}<|end_of_box|>", True),
    ("crlf", json.dumps(PAPER, indent=1).replace("\n", "\r\n"), True),
    ("escape-codes", said("\\u001b[2J\\u001b]0;owned\\u0007 \\u009b31m \\u202e"), True),
    *((f"key-{how}", said(form), True) for how, form in spelled(KEY).items()),
    ("half-character", said("a\\ud800b"), None),
    ("raw-half-character", said("a\ud800b"), None),
    ("raw-escape-code", said("a\x1bb"), False),
    ("think-only", f"<think>{ANSWER}", False),
    ("prose", f"Here you are: {ANSWER}", False),
    ("twice", ANSWER + FAILED, False),
    ("list", f"[{ANSWER}]", False),
    ("empty", "", False),
    ("cut-off", ANSWER[:-9], False),
    ("deep", "[" * 50_000, False),
    ("number", "7", False),
    ("doubled", ANSWER[:-1] + ', "verdict": "failure"}', False),
    ("huge-number", ANSWER.replace("0.7", "9" * 5000), False),
    ("nan", ANSWER.replace("0.7", "NaN"), False),
    ("string-for-bool", ANSWER.replace("false", '"false"', 1), False),
    ("null", ANSWER.replace("false", "null", 1), False),
    ("extra", ANSWER[:-1] + ', "key": "' + KEY + '"}', False),
    ("key-as-field", ANSWER[:-1] + ', "' + KEY + '": 1}', False),
    ("mismatch-yet-success", json.dumps(PAPER | {"semantic_mismatch": True}), False),
    ("damage-yet-success", json.dumps(PAPER | {"perceptual_degradation": True}), False),
    ("nothing-yet-failure", json.dumps(PAPER | {"verdict": "failure"}), False),
    ("cannot", json.dumps(PAPER | {"verdict": "cannot_judge"}), False),
]

FINISHES: list[Named] = [
    *((f"{word}", word, True) for word in ("stop", "STOP", "eos", "eos_token", "end", "end_turn", "complete", "")),
    *((f"type-{type(odd).__name__}", odd, True) for odd in (None, 7, True, {}, ["length"])),
    *(
        (f"{word}", word, False)
        for word in ("length", "MAX_TOKENS", "max_tokens", "content_filter", "SAFETY", "RECITATION")
    ),
    *((f"{word}", word, False) for word in ("PROHIBITED_CONTENT", "tool_calls", "error", "OTHER", "abort")),
]

USAGES: list[Named] = [
    ("honest", USAGE, True),
    ("none", None, True),
    *(
        (f"both-{value!r:.12}", (value, value), True)
        for value in (-3, 0, 1, True, "700", 700.5, 10**400, 10**9, None, [], {})
    ),
    ("unsaid-output", (USAGE[0], None), True),
    ("free-output", (USAGE[0], 0), True),
    ("paid-back", (USAGE[0], -(10**6)), True),
    ("long-output", (USAGE[0], 10**7), True),
    ("a-list", [1, 2], True),
    ("a-text", "none", True),
]

MESSAGES = {
    "openai": [
        ("text", lambda t: {"content": t}, True),
        ("parts", lambda t: {"content": [{"type": "text", "text": t[:9]}, {"type": "text", "text": t[9:]}]}, True),
        ("thinking-part", lambda t: {"content": [{"type": "thinking", "text": "hm"}, {"text": t}]}, True),
        ("strings", lambda t: {"content": [t]}, True),
        ("reasoning", lambda t: {"content": "", "reasoning_content": t}, True),
        ("null-and-reasoning", lambda t: {"content": None, "reasoning": t}, True),
        ("odd-neighbours", lambda t: {"content": t, "tool_calls": 7, "audio": [], "refusal": ""}, True),
        ("number", lambda t: {"content": 7}, False),
        ("true", lambda t: {"content": True}, False),
        ("object", lambda t: {"content": {"answer": t}}, False),
        ("numbers", lambda t: {"content": [1, None, {"text": 3}, [t]]}, False),
        ("nothing", lambda t: {}, False),
        ("refusal", lambda t: {"content": t, "refusal": "no"}, False),
        ("refusal-part", lambda t: {"content": [{"type": "refusal", "refusal": "no"}, {"text": t}]}, False),
    ],
    "gemini": [
        ("text", lambda t: {"parts": [{"text": t}]}, True),
        ("parts", lambda t: {"parts": [{"text": t[:9]}, {"text": t[9:]}]}, True),
        ("thought", lambda t: {"parts": [{"text": "hm", "thought": True}, {"text": t}]}, True),
        ("signature", lambda t: {"parts": [{"text": t, "thoughtSignature": "abc"}, {"inlineData": 7}]}, True),
        ("odd-neighbours", lambda t: {"parts": [{"text": t, "executableCode": 3}, 7, None], "role": 5}, True),
        ("thought-only", lambda t: {"parts": [{"text": t, "thought": True}]}, False),
        ("number", lambda t: {"parts": 7}, False),
        ("numbers", lambda t: {"parts": [{"text": 7}]}, False),
        ("nothing", lambda t: {}, False),
        ("null", lambda t: None, False),
        ("a-text", lambda t: "hello", False),
    ],
}
MESSAGES["anthropic"] = MESSAGES["openai"]
"""Through its endpoint for OpenAI's package."""
ERRORS: list[tuple[str, Callable[[str], str]]] = [
    ("object", lambda words: json.dumps({"error": {"message": words, "code": "x", "param": None}})),
    ("text", lambda words: json.dumps({"error": words})),
    ("detail", lambda words: json.dumps({"detail": words})),
    ("message", lambda words: json.dumps({"object": "error", "message": words, "code": 400})),
    ("list", lambda words: json.dumps([{"error": {"message": words, "status": [7]}}])),
    ("numbers", lambda words: json.dumps({"error": {"message": 7, "code": [words]}})),
    ("html", lambda words: f"<html><script>{words}</script><h1>{words}</h1>"),
    ("plain", lambda words: words),
    ("nothing", lambda words: ""),
]
STATUSES = (400, 401, 402, 403, 404, 408, 413, 418, 422, 429, 500, 502, 503, 529)
REDIRECTS = (301, 302, 303, 307, 308)


def envelope(
    dialect: str,
    text: str,
    *,
    message: Any = None,
    finish: Any = "stop",
    usage: Any = USAGE,
    served: Any = "fake-model",
) -> dict[str, Any]:
    """A whole and good body, but for what is given."""
    shape = message or MESSAGES[dialect][0][1]
    read, written = usage if isinstance(usage, tuple) else (None, None)
    if dialect != "gemini":
        counts = {"prompt_tokens": read, "completion_tokens": written} if isinstance(usage, tuple) else usage
        choice = {"index": 0, "message": shape(text), "finish_reason": finish}
        return {"id": "x", "model": served, "choices": [choice], "usage": counts}
    counts = {"promptTokenCount": read, "candidatesTokenCount": written} if isinstance(usage, tuple) else usage
    candidate = {"content": shape(text), "finishReason": finish}
    return {"modelVersion": served, "candidates": [candidate], "usageMetadata": counts, "responseId": "x"}


def faults(dialect: str, elsewhere: str) -> list[Fault]:
    """All of them; ``elsewhere``: the address of a host that is to hear nothing."""
    return [
        *_bodies(dialect),
        *_echoes(dialect),
        *_statuses(elsewhere),
        *_errors_in_bodies(dialect),
        *_packings(dialect),
    ]


def _bodies(dialect: str) -> Iterator[Fault]:
    def fault(name: str, body: Any, counts: bool | None, failed: bool = False) -> Fault:
        return Fault(name, lambda h: h.answer(json.dumps(body)), counts, failed)

    for (how, message, whole), (ends, finish, good) in itertools.product(MESSAGES[dialect], FINISHES):
        failed = len(how + ends) % 2 == 0
        body = envelope(dialect, FAILED if failed else ANSWER, message=message, finish=finish)
        yield fault(f"{how}, ends {ends}", body, whole and good, failed)
    for (what, text, good), (how, message, whole) in itertools.product(TEXTS, MESSAGES[dialect][:5]):
        counts = good and whole if good is not None else None
        yield fault(f"{what} as {how}", envelope(dialect, text, message=message), counts)
    for what, usage, good in USAGES:
        yield fault(f"usage {what}", envelope(dialect, ANSWER, usage=usage), good)
    for odd in (None, 7, [KEY], {"a": KEY}, "fake-model-" + KEY, "\x1b[31mfake-model", "f\ud800", "x" * 10_000):
        yield fault(f"served {odd!r:.30}", envelope(dialect, ANSWER, served=odd), True)
    many = "candidates" if dialect == "gemini" else "choices"
    whole = envelope(dialect, ANSWER)
    for what, odd in {
        "two": whole[many] * 2,
        "none": [],
        "null": [None],
        "numbers": [7],
        "text": "no",
        "object": {},
    }.items():
        yield fault(f"{many}: {what}", whole | {many: odd}, False)
    doubled = json.dumps(whole)[:-1] + f', "{many}": []}}'
    yield Fault(f"{many} twice", lambda h: h.answer(doubled))


def _echoes(dialect: str) -> Iterator[Fault]:
    """The key in every text of a body, one at a time, in every spelling."""
    whole = envelope(dialect, ANSWER)
    for path, (how, form) in itertools.product(list(_leaves(whole)), spelled(KEY).items()):
        body = json.dumps(_with(whole, path, form))
        if how in ("escaped", "slashes"):  # by the body itself, not by a text in it
            body = body.replace("\\\\", "\\")
        kept = path[-1] not in ("content", "text")
        yield Fault(f"key, {how}, at {'.'.join(map(str, path))}", lambda h, body=body: h.answer(body), kept)
    for name in ("x-echo", "retry-after", "location", "x-request-id", "content-type", "server", "set-cookie"):
        yield Fault(
            f"key in header {name}", lambda h, n=name: h.answer(json.dumps(whole), headers={n: f"a={KEY}"}), True
        )
    yield Fault("key as reason", lambda h: h.answer(json.dumps(whole), phrase=KEY), True)


def _statuses(elsewhere: str) -> Iterator[Fault]:
    for status, (how, body) in itertools.product(STATUSES, ERRORS):
        words = f"{'so it is. ' * 45}{KEY}" if status % 2 else f"\x1b[31m{KEY}"
        yield Fault(
            f"{status} as {how}", lambda h, s=status, b=body, w=words: h.answer(b(w), status=s, phrase=KEY), paid=False
        )
    for status, place in itertools.product(REDIRECTS, (f"{elsewhere}/v1", f"{elsewhere}/{KEY}", "//[", "")):
        yield Fault(
            f"{status} to {place[-6:]}",
            lambda h, s=status, p=place: h.answer("", status=s, headers={"location": p}),
            paid=False,
        )


def _errors_in_bodies(dialect: str) -> Iterator[Fault]:
    for code, mixed in itertools.product((400, 401, 429, "429", 500, None, True, [KEY], 7), (False, True)):
        for error in ({"code": code, "message": f"{KEY} no"}, f"{KEY} no", [KEY]):
            body = {"error": error, **(envelope(dialect, ANSWER) if mixed else {})}
            name = f"200 with error {code!r:.9} as {type(error).__name__}{' and an answer' if mixed else ''}"
            yield Fault(name, lambda h, b=body: h.answer(json.dumps(b)), paid=mixed)


def _packings(dialect: str) -> Iterator[Fault]:
    whole = json.dumps(envelope(dialect, ANSWER)).encode()
    bomb = gzip.compress(whole[:-1] + b" " * (40 << 20) + b"}", 9)
    yield Fault("gzip", lambda h: h.raw(gzip.compress(whole), **{"content-encoding": "gzip"}), True)
    yield Fault("gzip bomb", lambda h: h.raw(bomb, **{"content-encoding": "gzip"}))
    yield Fault("gzip twice", lambda h: h.raw(gzip.compress(bomb), **{"content-encoding": "gzip, gzip"}))
    yield Fault("gzip cut off", lambda h: h.raw(gzip.compress(whole)[:-9], **{"content-encoding": "gzip"}))
    yield Fault("no gzip", lambda h: h.raw(whole, **{"content-encoding": "gzip"}))
    yield Fault("unknown packing", lambda h: h.raw(whole, **{"content-encoding": "br"}))
    yield Fault("long", lambda h: h.raw(whole[:-1] + b" " * (5 << 20) + b"}"))
    yield Fault("byte order mark", lambda h: h.raw(b"\xef\xbb\xbf" + whole), True)
    yield Fault("latin-1", lambda h: h.raw('{"caf\xe9": 1}'.encode("latin-1")))
    for what, raw in {
        "nothing": b"",
        "noise": bytes(range(256)),
        "no http": b"SSH-2.0-OpenSSH_9.6\r\n",
        "a bad header": b"HTTP/1.1 200 OK\r\nx: " + KEY.encode() + b"\x00\r\n: y\r\n\r\n",
        "a long promise": b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n" + whole,
        "a bad chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz" + KEY.encode() + b"\r\n",
        "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    }.items():
        yield Fault(f"sends {what}", lambda h, raw=raw: h.bytes(raw))


def slow(dialect: str) -> list[Fault]:
    """Answers that never end, though there is always a byte more."""
    head = b"HTTP/1.1 200 OK\r\n"
    return [
        Fault("a header at a time", lambda h: h.drip(head, b"x: y\r\n")),
        Fault("a byte of body at a time", lambda h: h.drip(head + b"content-length: 99999\r\n\r\n", b" ")),
        Fault("a chunk at a time", lambda h: h.drip(head + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n")),
        Fault("nothing at all", lambda h: h.drip(b"", b"")),
    ]


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, (*path, name))
    elif isinstance(value, str):
        yield path


def _with(value: Any, path: tuple[Any, ...], text: str) -> Any:
    if not path:
        return text
    copy = value.copy()
    copy[path[0]] = _with(value[path[0]], path[1:], text)
    return copy


@dataclass
class Server:
    """Plays the fault whose number a question names; keeps what it was sent, and how many answers it would bill."""

    faults: list[Fault] = field(default_factory=list)
    heard: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    paid: int = 0
    closing: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Server:
        handler = type("Handler", (_Handler,), {"server_": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server_.heard.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        if number := re.search(rb"fault (\d+)", body):
            fault = self.server_.faults[int(number[1])]
            self.server_.paid += fault.paid
            fault.send(self)
        self.close_connection = True

    do_GET = do_POST

    def do_CONNECT(self) -> None:
        self.do_POST()
        self.raw(b"", 403)

    def answer(
        self, body: str, *, status: int = 200, phrase: str = "so", headers: dict[str, str] | None = None
    ) -> None:
        self.raw(
            body.encode("utf-8", "surrogatepass"),
            status,
            phrase,
            **({"content-type": "application/json"} | (headers or {})),
        )

    def raw(self, body: bytes, status: int = 200, phrase: str = "so", **headers: str) -> None:
        lines = [
            f"HTTP/1.1 {status} {phrase}",
            f"content-length: {len(body)}",
            *(f"{k}: {v}" for k, v in headers.items()),
        ]
        self.bytes("\r\n".join([*lines, "", ""]).encode() + body)

    def bytes(self, raw: bytes) -> None:
        with contextlib.suppress(OSError):  # the client had enough
            self.connection.sendall(raw)

    def drip(self, first: bytes, then: bytes) -> None:
        with contextlib.suppress(OSError):
            self.connection.sendall(first)
            while not self.server_.closing.wait(0.05):
                self.connection.sendall(then)

    def log_message(self, *_: object) -> None:
        pass
