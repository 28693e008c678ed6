"""What servers say, read without trusting the shape of any of it.

Liberal in what wraps an answer: text in one piece or in parts, any word for a good end, errors in every place where
servers put them. What an answer itself may be is for :mod:`sifm_core.judges.rubric` to say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..types import State
from .client import Reply, http_failure
from .wire import Came

_TRUNCATED = {"length", "max_tokens", "max_output_tokens", "max_length", "model_length", "max_new_tokens"}
_BLOCKED = {
    "safety", "content_filter", "content_filtered", "content_blocked", "blocked", "guardrail", "recitation",
    "blocklist", "prohibited_content", "spii", "model_armor", "image_safety", "image_prohibited_content",
    "image_recitation",
}  # fmt: skip
_BROKEN = {
    "error", "abort", "aborted", "cancelled", "canceled", "timeout", "tool_calls", "function_call", "tool_use", "other",
    "language", "malformed_function_call", "unexpected_tool_call", "too_many_tool_calls", "malformed_response",
}  # fmt: skip
"""Ends that are not good ones, in lower case. Any other word is a good end, and so is none."""
_UNREAD = re.compile(r"model produced output that does not match", re.IGNORECASE)
_BLIND = re.compile(
    r"image input is not supported|data required for image input|mmproj|not support (images|vision)", re.IGNORECASE
)
"""What llama.cpp and Ollama say under a status for faults of their own, though asking again cannot help."""
_UNNAMED = re.compile(r"^\W*(request contains an )?invalid[ _]argument\W*$", re.IGNORECASE)


@dataclass(frozen=True)
class Failure:
    """An error that a server reported: its code (0: none), what it says, of which kind it calls it, which setting it is
    about, and when to ask."""

    code: int
    words: str
    kind: str = ""
    setting: str = ""
    wait: float = 0.0

    def reply(self) -> Reply:
        reply = http_failure(self.code, self.words, self.wait)
        if self.code >= 500 and _UNREAD.search(self.words):
            why = "the server could make nothing of what its model wrote, which max_output_tokens may have cut off"
            return Reply("unparsable", reason=f"{why} ({reply.reason})", billed="yes")
        if self.kind == "insufficient_quota":  # a limit of money, not of time, though OpenAI says 429
            return Reply("error", reason=reply.reason)
        if self.code >= 500 and _BLIND.search(self.words):
            return Reply("error", reason=f"the model takes no pictures ({reply.reason})")
        return reply

    @property
    def unnamed(self) -> bool:
        """Whether it is a refusal of some setting that does not say of which, as Gemini's are at times."""
        return self.code == 400 and not self.setting and bool(_UNNAMED.search(self.words))

    def about(self, names: Mapping[str, str]) -> tuple[str, ...]:
        """Which of these settings (name -> pattern of what servers call it) a refusal is about."""
        if self.code != 400:
            return ()
        said = self.setting or self.words
        return tuple(name for name, called in names.items() if re.search(rf"\b{called}\b", said, re.IGNORECASE))


def body_of(came: Came) -> Any:
    """The body as JSON; None where it is none, or holds a field twice."""
    try:
        return json.loads(came.text, object_pairs_hook=_no_doubles)
    except (ValueError, RecursionError):
        return None


def failure_in(came: Came, body: Any) -> Failure | None:
    """The error that the status or, with any status, the body reports."""
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    error = field(body, "error") or (body if field(body, "object") == "error" else None)
    good = 200 <= came.status < 300
    if good and not error:
        return None
    codes = [_code(field(place, name)) for place in (error, body) for name in ("code", "status")]
    code = next((c for c in codes if c), 0) if good else came.status
    told = [
        error,
        *(field(place, name) for place in (error, body) for name in ("message", "detail")),
    ]
    words = next((t for t in told if isinstance(t, str) and t), "")
    if came.location:
        words = f"it sends to {came.location}, and no redirect is followed; name that address if it is the right one"
    delay = re.search(r'"retryDelay":\s*"(\d{1,9}(?:\.\d{1,9})?)s"', came.text)
    wait = float(delay[1]) if delay else came.retry_after
    kind = text(field(error, "code")) or text(field(error, "type"))
    return Failure(code, words or _gist(came.text), kind, text(field(error, "param")), wait)


def ended(finish: Any, stated: str) -> tuple[State, str]:
    """The state of an answer that stopped for this reason, and the reason in words; ``stated``: the limit's name."""
    word = text(finish)
    if word.lower() in _TRUNCATED:
        return "truncated", f"the answer ran into {stated}"
    if word.lower() in _BLOCKED:
        return "blocked", f"the answer was blocked: {word}"
    if word.lower() == "refusal":
        return "refused", "the model refused"
    if word.lower() in _BROKEN:
        return "error", f"the model stopped for {word}"
    return "ok", ""


def field(value: Any, *names: str | int) -> Any:
    """What lies in ``value`` under these names; None where something on the way is not there or of another type."""
    for name in names:
        if isinstance(name, str):
            value = value.get(name) if isinstance(value, dict) else None
        else:
            value = value[name] if isinstance(value, list) and len(value) > name else None
    return value


def text(value: Any) -> str:
    """``value`` if it is a text, else ""."""
    return value if isinstance(value, str) else ""


def joined(content: Any) -> str:
    """The text of a content that is a text, or a list of texts and of parts that hold one."""
    if not isinstance(content, list):
        return text(content)
    return "".join(text(part) or text(field(part, "text")) for part in content if not _thought(part))


def count(value: Any) -> int | None:
    """``value`` if it is a whole number, of tokens say."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def _thought(part: Any) -> bool:
    return field(part, "thought") is True or text(field(part, "type")) in ("thinking", "reasoning", "refusal")


def _code(value: Any) -> int:
    """An HTTP status that says what went wrong, as servers write it; else 0."""
    digits = str(value) if isinstance(value, int | str) else ""
    return int(digits) if re.fullmatch(r"[45]\d\d", digits) else 0


def _gist(page: str) -> str:
    """What a page says, without its markup."""
    return " ".join(re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", page[:5000], flags=re.DOTALL).split())


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field is given twice")
    return fields
