"""Which positions of an encoded text are words of the prompt, by the CLIP's own tokenizer."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import torch
from torch import Tensor


def prompt_words(clip: Any, prompt: str, length: int, ending: int = 0) -> Tensor:
    """(length,) bool: the tokens that set the prompt apart from an empty one; none without a CLIP.

    Encoders may cut the beginning of what they read, or put pictures into it; of the end they cut ``ending`` tokens.
    """
    found = torch.zeros(length, dtype=torch.bool)
    if clip is None:
        return found
    ours, empty = (_flat(clip.tokenize(text)) for text in (prompt, ""))
    names = [name for name in ours if name != "g" or "l" not in ours]  # the positions of two CLIPs are the same
    if len(names) > 1 and sum(len(ours[name]) for name in names) > length:
        names.remove("l")  # which gives a pooled text alone
    end = length + ending
    for name in reversed(names):
        start, stop = _apart(ours[name], empty[name])
        n = len(ours[name])
        found[max(0, end - n + start) : max(0, end - n + stop)] = True
        end -= n
    return found


def _flat(tokens: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [entry[0] for part in parts for entry in part] for name, parts in tokens.items()}


def _apart(ours: list[Any], empty: list[Any]) -> tuple[int, int]:
    """Where two lists of tokens begin to differ, and where, seen from the first, they stop; without an end token."""

    def alike(one: Any, other: Any) -> int:
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))

    start = alike(ours, empty)
    stop = len(ours) - min(alike(reversed(ours), reversed(empty)), len(ours) - start)
    while stop > start and empty[start : start + 1] == ours[stop - 1 : stop]:
        stop -= 1
    return start, stop
