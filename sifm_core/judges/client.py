"""What a backend is: how one call is sent, what may come back, and which failure means what."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import TypeAdapter, ValidationError

from ..errors import InputError, JudgeError
from ..types import State
from .redaction import encodable, redact, shown
from .rubric import Form, Part, Question

REASON = 600
"""Characters of what a server says of a failure, and of a model's name, at most."""


@dataclass(frozen=True)
class Reply:
    """What one attempt to send a call brought back.

    ``state`` "ok" means that text arrived, not that it is an answer; ``tokens`` (in, out with thinking); ``billed``:
    whether it was paid; ``wait``: None if the reply is final, else the seconds that the server asks to wait, or 0;
    ``unsent``: the settings that were left out, because the model refuses them; ``unnamed``: the server refused the
    request with them and did not say for which.
    """

    state: State
    text: str = ""
    reason: str = ""
    served: str = ""
    tokens: tuple[int, int] | None = None
    billed: Literal["yes", "no", "maybe"] = "no"
    wait: float | None = None
    seconds: float = 0.0
    unsent: tuple[str, ...] = ()
    unnamed: bool = False

    @classmethod
    def of(cls, kept: Any) -> Reply:
        """The reply that a ledger holds as plain data; unparsable where that is none."""
        try:
            return _REPLY.validate_python(kept)
        except ValidationError:
            return cls("unparsable", reason="what the ledger holds for this question is no answer", billed="yes")


_REPLY: TypeAdapter[Reply] = TypeAdapter(Reply)


class Client(ABC):
    """A backend: how to send one call.

    ``config``: everything besides the question that the answer depends on; ``key``: the provider's, kept out of all
    that is written ("": none is used, and nothing is billed); ``timeout`` in seconds.
    """

    backend: ClassVar[str]
    preset: ClassVar[str] = "two_calls"
    """What its models are asked where nobody says otherwise."""
    ranks: ClassVar[bool] = False
    """Whether it can say how likely each answer of a ranked question is."""

    def __init__(self, model: str, base_url: str, key: str, *, config: Mapping[str, Any], timeout: float) -> None:
        self.model, self.base_url, self.key = model, base_url, key
        self.config, self.timeout = config, timeout

    @abstractmethod
    def connect(self) -> None:
        """Get ready to send; raises JudgeError where the provider's package is missing."""

    @abstractmethod
    def send(self, parts: Sequence[Part], form: Form) -> Reply:
        """One attempt; every failure that can be told apart is a Reply, not an exception."""

    def clean(self, reply: Reply) -> Reply:
        """The reply as it may be kept: without the key, which a server may echo, and what only a terminal obeys."""
        return replace(
            reply,
            text=encodable(redact(reply.text, self.key)),
            reason=self.shown(reply.reason, REASON),
            served=self.shown(reply.served, REASON),
        )

    def shown(self, text: str, limit: int) -> str:
        """Any text that a server had a part in, as it may be shown."""
        return shown(redact(text[: 100 * limit], self.key), limit)


class JobClient(Client):
    """A backend that also takes many calls as one job. A Reply in place of a result says why there is none."""

    job_bytes: ClassVar[int]
    """How much the pictures and texts of one job may weigh as base64."""

    @abstractmethod
    def submit(self, calls: Sequence[tuple[Sequence[Part], Question]], label: str) -> str | Reply:
        """Send a job that carries ``label``; returns the provider's name for it."""

    @abstractmethod
    def find_job(self, label: str) -> str | Reply | None:
        """The name of the job that carries ``label``; None if there is none."""

    @abstractmethod
    def collect(self, name: str, calls: int) -> list[Reply] | Reply:
        """The replies of a job that ended, one for each of its calls in order; a Reply with ``wait``: not yet."""


def http_failure(code: int, words: str, wait: float = 0.0) -> Reply:
    """The reply that an HTTP status other than 200 means (0: an error without one). Providers do not bill these."""
    reason = f"HTTP {code}: {words}" if code else f"the server reports an error: {words}"
    if code in (401, 403) or (code == 400 and "api key" in words.lower()):
        return Reply("missing_key", reason=f"the key was refused ({reason})")
    if code in (408, 425, 429) or code >= 500:
        return Reply("unreachable", reason=reason, wait=wait)
    return Reply("error", reason=reason)


def transport_failure(error: BaseException) -> Reply | None:
    """The reply that a failure below HTTP means, or None if it is none. Told by class name: two httpx are about."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    reason = f"{type(error).__name__}: {error}"
    if kinds & {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}:
        return Reply("unreachable", reason=f"no connection ({reason})", wait=0.0)
    if kinds & {"TimeoutException", "TransportError"}:
        return Reply("unreachable", reason=f"the call was sent, but no answer arrived ({reason})", billed="maybe")
    return None


def environment_key(names: Sequence[str], environ: Mapping[str, str]) -> str:
    """The first of these variables that is set, or ""; refused, without repeating it, where it cannot be a key."""
    for name in names:
        if key := environ.get(name, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise JudgeError(f"{name}: expected a key, but it holds characters that no key has; copy it again")
            return key
    return ""


def check_base_url(base_url: str) -> str:
    """``base_url`` without a trailing slash; refused where it could carry a key, because it is written into records."""
    if not re.fullmatch(r"https?://[^/@?#\s]+(/[^?#\s]*)?", base_url):
        raise InputError("base_url: expected http(s)://host[:port]/path, with no user, password or query")
    return base_url.rstrip("/")
