"""What a server says, made fit to be kept and shown: without the key, and without what only a terminal would obey."""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate

from ..format import visible

_FRAGMENT = 8
"""Letters of a key in a row that are not to be seen anywhere; fewer are chance, or a prefix that all keys share."""
_ESCAPED = re.compile(
    r"(?<!\\)\\+(?:u005c\\*){0,8}(?:u00([0-9a-f]{2})|(/))|%([0-9a-f]{2})|&#x0{0,6}([0-9a-f]{2});|&#0{0,6}([0-9]{2,3});",
    re.I,
)
"""A letter as JSON (however often in itself), addresses and HTML may spell it."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def redact(text: str, key: str) -> str:
    """``text`` with "[key]" for every piece of the key in it, also where letters of the piece are escaped.

    So neither cutting the text nor reading it as JSON brings letters of the key to light.
    """
    plain, places = _unescaped(text)
    size = min(len(key), _FRAGMENT)
    found: list[tuple[int, int]] = []
    for fragment in {key[i : i + size] for i in range(len(key) - size + 1)} if key else ():
        start = plain.find(fragment)
        while start >= 0:
            found.append((places(start), places(start + size - 1, end=True)))
            start = plain.find(fragment, start + 1)
    pieces, done = [], 0
    for start, end in sorted(found):
        if start >= done:
            pieces += [text[done:start], "[key]"]
        done = max(done, end)
    return "".join([*pieces, text[done:]])


def encodable(text: str) -> str:
    r"""``text`` with halves of characters, which no file or terminal takes, as "\ud800"."""
    return _SURROGATE.sub(lambda half: ascii(half[0])[1:-1], text)


def shown(text: str, limit: int) -> str:
    """At most ``limit`` characters of ``text`` as :func:`sifm_core.format.visible` writes them."""
    seen = visible(text.replace("\r\n", "\n"))
    return seen if len(seen) <= limit else seen[: limit - 1] + "…"


def _unescaped(text: str) -> tuple[str, _Places]:
    escapes = list(_ESCAPED.finditer(text))
    return _ESCAPED.sub(_letter, text), _Places(escapes)


def _letter(match: re.Match[str]) -> str:
    hexadecimal = match[1] or match[3] or match[4]
    return match[2] or chr(int(hexadecimal, 16) if hexadecimal else int(match[5]))


class _Places:
    """Where in a text a letter stands that is found in what the text reads unescaped."""

    def __init__(self, escapes: list[re.Match[str]]) -> None:
        self._longer = [0, *accumulate(len(match[0]) - 1 for match in escapes)]
        self._at = [match.start() - longer for match, longer in zip(escapes, self._longer, strict=False)]

    def __call__(self, place: int, *, end: bool = False) -> int:
        before = bisect_right(self._at, place) if end else bisect_right(self._at, place - 1)
        return place + self._longer[before] + end
