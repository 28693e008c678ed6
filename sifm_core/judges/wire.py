"""The wire between a provider's package and a server: what goes out, what comes back, how much and for how long.

The packages (google-genai, openai) write the requests, and that is all. The key is put on here, on the way to the
address it is for; the headers that a package takes from the environment are taken off, except towards the provider
itself; no redirect is followed and no proxy is used that could read along. What comes back is read here, up to one
size and one moment, and the package sees nothing of it: so it can neither log it nor trip over it.
"""

from __future__ import annotations

import importlib
import logging
import re
import socket
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from .. import __version__
from ..errors import InputError, JudgeError
from .client import Reply, transport_failure
from .redaction import redact

ANSWER_BYTES = 4 << 20
"""An answer to one question is no longer than this, unpacked."""
_PIECE = 1 << 16
_LOGGERS = [f"{core}.{name}" for core in ("httpcore", "httpcore2") for name in ("connection", "http11", "proxy")]
"""They write down headers, which a server chose."""
_KEYS: set[str] = set()
"""Every key that is in use: what these loggers write is without any of them."""


@dataclass(frozen=True)
class Came:
    """What came back: the HTTP status, the body, where a redirect points, the seconds that the server asks to wait."""

    status: int
    text: str
    location: str = ""
    retry_after: float = 0.0


class _TooLong(Exception):
    pass


class Wire:
    """A transport for one server, to be given to a package's HTTP client; safe across threads.

    ``address``: whose host alone is spoken to; ``credentials``: the headers that hold ``key``; ``own``: the address is
    the provider's, for which the package's settings in the environment are meant; ``timeout`` in seconds, of a whole
    call. JudgeError where a proxy cannot be used.
    """

    def __init__(
        self, package: str, address: str, *, key: str, credentials: Mapping[str, str], own: bool, timeout: float
    ) -> None:
        self._timeout = timeout
        self._httpx = library_of(package)
        try:
            self._host = self._origin(address)
            if (self._host[2] or 0) >= 1 << 16:
                raise ValueError("there is no such port")
        except (self._httpx.InvalidURL, ValueError) as error:
            raise InputError(
                f"base_url: expected an address that can be asked, got {address[:200]!r}: {error}"
            ) from None
        self._credentials, self._own = dict(credentials) if key else {}, own
        self._here = threading.local()
        limits = self._httpx.Limits(max_keepalive_connections=0)  # an end cuts a connection, which is one call's alone
        try:
            self._inner = self._httpx.HTTPTransport(limits=limits, proxy=_tunnel(address))
        except (ImportError, ValueError) as error:
            raise JudgeError(f"the proxy of the environment (HTTPS_PROXY) cannot be used: {error}") from None
        _KEYS.add(key)
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_unkeyed)

    def transport(self) -> Any:
        """This wire as the package's HTTP library takes it."""
        wire = self

        def handle_request(self: Any, request: Any) -> Any:
            return wire._handle(request)

        return type("Transport", (self._httpx.BaseTransport,), {"handle_request": handle_request})()

    def client(self) -> Any:
        """An HTTP client over this wire."""
        return self._httpx.Client(transport=self.transport(), trust_env=False, follow_redirects=False)

    def carry(
        self, call: Callable[[], object], *, until: float | None = None, at_most: int = ANSWER_BYTES
    ) -> Came | Reply:
        """What a package's ``call`` brings back within ``at_most`` bytes, or why nothing did.

        ``until``: when to end at last, by ``time.monotonic`` (None: :meth:`deadline`), for calls that belong together.
        """
        self._here.until, self._here.at_most, self._here.came = until or self.deadline(), at_most, None
        try:
            call()
        except Exception as error:  # of what did arrive a package sees nothing, so what it says of that is nothing
            if self._here.came is None:
                cause = error.__cause__ or error
                return Reply("error", reason=f"it could not be sent: {type(cause).__name__}: {cause}")
        came: Came | Reply | None = self._here.came
        return came or Reply("error", reason="nothing was sent")

    def deadline(self) -> float:
        """When a call that begins now has to be over."""
        return time.monotonic() + self._timeout

    def _handle(self, request: Any) -> Any:
        if self._origin(request.url) != self._host:
            raise ValueError(f"the package would ask another host than {self._host[1]}")
        if self._here.until <= time.monotonic():
            raise TimeoutError(f"{self._timeout:g} s are over")
        try:
            self._here.came = came = self._exchange(request)
        except Exception as error:
            self._here.came = self._failure(error)
            raise
        return self._httpx.Response(came.status, json={}, request=request)

    def _exchange(self, request: Any) -> Came:
        left = self._here.until - time.monotonic()
        request.headers = self._httpx.Headers(self._headers(request))
        with _cut_off(left) as follow:
            request.extensions = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), left), "trace": follow}
            response = self._inner.handle_request(request)
            try:
                body = self._body(response)
            finally:
                response.close()
        wait = re.fullmatch(r"\d{1,9}(\.\d{1,9})?", response.headers.get("retry-after", ""))
        location = response.headers.get("location", "") if 300 <= response.status_code < 400 else ""
        return Came(response.status_code, body, location, float(wait[0]) if wait else 0.0)

    def _headers(self, request: Any) -> dict[str, str]:
        given = {name.lower(): value for name, value in request.headers.items()}
        plain = {name: given[name] for name in ("content-length", "transfer-encoding") if name in given}
        if request.method != "GET":
            plain["content-type"] = "application/json"
        agent = {"accept": "application/json", "user-agent": f"sifm/{__version__}"}
        environment = given if self._own else agent
        host = request.url.netloc.decode("ascii")
        return {**environment, **plain, "host": host, "accept-encoding": "gzip", **self._credentials}

    def _body(self, response: Any) -> str:
        packing = response.headers.get("content-encoding", "").strip().lower()
        if packing not in ("", "identity", "gzip", "deflate"):
            raise zlib.error(f"packed as {packing}, which was not asked for")
        body = bytearray()
        for piece in response.stream if packing in ("", "identity") else _unpacked(response.stream):
            body += piece
            if time.monotonic() > self._here.until:
                raise TimeoutError
            if len(body) > self._here.at_most:
                if response.status_code == 200:
                    raise _TooLong
                break  # what went wrong stands at the beginning
        return body[: self._here.at_most].decode("utf-8-sig", errors="replace")

    def _failure(self, error: Exception) -> Reply:
        failure = transport_failure(error)
        if failure and failure.billed == "no":
            return failure
        if isinstance(error, _TooLong):
            why = f"the answer is longer than {self._here.at_most / 2**20:g} MiB, so it was not read to its end"
            return Reply("unparsable", reason=why, billed="yes")
        if time.monotonic() >= self._here.until:
            why = f"the call was sent, but no whole answer arrived in {self._timeout:g} s"
            return Reply("unreachable", reason=why, billed="maybe")
        why = f"the call was sent, but no answer could be read ({type(error).__name__}: {error})"
        return failure or Reply("unreachable", reason=why, billed="maybe")

    def _origin(self, url: Any) -> tuple[str, str, int | None]:
        parsed = self._httpx.URL(str(url))
        return parsed.scheme, parsed.host, parsed.port


def _unkeyed(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    for key in _KEYS:
        message = redact(message, key)
    record.msg, record.args = message, ()
    return True


@contextmanager
def _cut_off(seconds: float) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
    """Ends a connection after ``seconds``, whatever it is busy with; yields what httpcore is to tell of its events.

    HTTP libraries count their time-outs from byte to byte, so that a server which sends a byte now and then is heard
    for ever.
    """
    open_: list[socket.socket] = []
    over = threading.Event()

    def cut() -> None:
        over.set()
        for one in open_:
            with suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)

    def follow(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            open_.append(info["return_value"].get_extra_info("socket"))
            if over.is_set():
                cut()

    timer = threading.Timer(max(0.0, seconds), cut)
    timer.daemon = True
    timer.start()
    try:
        yield follow
    finally:
        timer.cancel()


def _unpacked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """A body of gzip or deflate, never more than a small piece at a time."""
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
    for packed in pieces:
        while packed:
            yield inflate.decompress(packed, _PIECE)
            packed = inflate.unconsumed_tail
    if not inflate.eof:
        raise zlib.error("it ends in the middle")


def _tunnel(address: str) -> Any:
    """The environment's proxy for an https address, through which nobody reads along; None for any other."""
    parts = urlsplit(address)
    if parts.scheme != "https" or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get("https") or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def library_of(package: str) -> Any:
    """The HTTP library that a provider's package is built on: httpx2, or httpx before."""
    needed = {re.match(r"[\w.-]*", line)[0].lower() for line in metadata.requires(package) or ()}  # type: ignore[index]
    name = next(n for n in ("httpx2", "httpx") if n in needed and find_spec(n))
    return importlib.import_module(name)
