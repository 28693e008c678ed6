"""Answers by their probability: what a model would say, of all that it may say.

A model that cannot be held to a schema, or is too small to keep to one, still prefers one answer to another. Where its
token probabilities can be had, those of the allowed answers are compared, and what else it might say is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from .reading import field, text
from .rubric import OPTIONS, unwrapped

LIKELIEST = (1000, 20, 5)
"""So many of the likeliest tokens a server is asked for, or where it refuses that, so many: llama.cpp lists any number,
others 20 at most. The more, the less a small model's "yes" and "no" can hide behind what else it might say."""
_AROUND = " \t\r\n.,!\"'*`"


def spellings(option: str) -> tuple[str, ...]:
    """How a model may begin an answer that is this option."""
    return option, option.capitalize(), option.upper()


def likelihoods(likely: Mapping[str, float], *, words: bool = False) -> str:
    """The probabilities of the options as an answer (:class:`sifm_core.judges.rubric.Likelihoods`) in JSON.

    ``words``: they are no probabilities, but what was said. Where none has any (a model so sure of something else that
    nothing is left), they are equal.
    """
    total = sum(likely.values())
    shares = {option: likely[option] / total if total > 0 else 1 / len(likely) for option in OPTIONS}
    return json.dumps(shares | {"mass": None if words else min(1.0, total)})


def listed(body: Any) -> str:
    """The answer in a chat completion's probabilities of the first token that is no space; "" where there is none.

    An option that is not among the tokens that are listed is at most as likely as the least of them, and counts so.
    """
    content = field(body, "choices", 0, "logprobs", "content")
    for place in content if isinstance(content, list) else ():
        tokens = field(place, "top_logprobs")
        if text(field(place, "token")).strip(_AROUND):
            return _of_tokens(tokens if isinstance(tokens, list) else [])
    return ""


def _of_tokens(tokens: list[Any]) -> str:
    likely, least = dict.fromkeys(OPTIONS, 0.0), 1.0
    for token in tokens:
        log = field(token, "logprob")
        if (
            isinstance(log, bool) or not isinstance(log, int | float) or not log <= 1e-3
        ):  # no logarithm of a probability
            return ""
        chance = math.exp(min(0.0, log)) if log > -1e3 else 0.0
        least = min(least, chance)
        if (word := text(field(token, "token")).strip(_AROUND).lower()) in likely:
            likely[word] += chance
    if not any(likely.values()):
        return ""
    return likelihoods({option: chance or min(least, 1 - sum(likely.values())) for option, chance in likely.items()})


def said(answer: str) -> str:
    """The answer of a server that gives no probabilities, by the word that it said; "" where that is none of them."""
    word = unwrapped(answer).strip(_AROUND).lower()
    return likelihoods({option: float(option == word) for option in OPTIONS}, words=True) if word in OPTIONS else ""
