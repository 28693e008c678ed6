"""Unseen instructions: from templates or from a language model, distinct by their words.

Distinct means: of all content words of two instructions at most :data:`OVERLAP` are common to both (Jaccard). That is
a matter of words alone: "make it night" and "turn off the sun" count as distinct. It needs no model and never changes.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict

from ..errors import InputError

OVERLAP = 0.5
ASKED, LONGEST = 3, 200
"""How often a model is asked for more; characters of an instruction."""
_NO_CONTENT = """
a an the it its this that to of in on at as into with and or be is are was make turn change have has had let add put
give would could should were his her him she he they them their there some more look looks like
"""
_EMPTY = frozenset(_NO_CONTENT.split())

TEMPLATES: dict[str, tuple[str, ...]] = {
    "portrait": (
        "give the person a long white beard",
        "turn the face into a marble statue",
        "add a golden crown",
        "make the skin glow bright green",
        "put on dark sunglasses",
        "dress the person as an astronaut",
        "make it a pencil sketch",
        "replace the background with a burning city",
        "make the person look eighty years old",
        "add a parrot on the shoulder",
    ),
    "landscape": (
        "cover everything in deep snow",
        "make it a starry night",
        "add a dragon flying in the sky",
        "turn the water into lava",
        "build a medieval castle in the distance",
        "make it a rainy day with lightning",
        "change the season to autumn",
        "turn it into a desert with camels",
        "add a herd of elephants",
        "paint it as a watercolor",
    ),
    "artwork": (
        "turn it into a black and white photograph",
        "make it look like a mosaic of tiles",
        "add a vase of red roses",
        "redraw it as a comic strip",
        "make the colors neon pink and blue",
        "put a cat in the foreground",
        "turn it into stained glass",
        "make it night with a full moon",
        "cover it with cracks and burn marks",
        "dress everybody as robots",
    ),
}
"""Category -> instructions about different things; for other categories those of all."""


def words(text: str) -> frozenset[str]:
    """The content words of an instruction, lower case, plural -s removed."""
    spelled = re.findall(r"[^\W\d_]+", text.lower())
    return frozenset(w.removesuffix("s") if len(w) > 3 else w for w in spelled if w not in _EMPTY)


def distance(one: str, two: str) -> float:
    """1 - the share of content words that both have in common (Jaccard); 1 when neither has any."""
    a, b = words(one), words(two)
    return 1 - len(a & b) / len(a | b) if a | b else float(one.strip().lower() != two.strip().lower())


def clash(prompts: Sequence[str], least: float = 1 - OVERLAP) -> tuple[str, str] | None:
    """The first two prompts whose distance is below ``least``, or None."""
    for i, one in enumerate(prompts):
        for two in prompts[:i]:
            if one.strip().lower() == two.strip().lower() or distance(one, two) < least:
                return two, one
    return None


def from_templates(instruction: str, category: str, n: int = 5, seed: int = 0) -> tuple[str, ...]:
    """n instructions from :data:`TEMPLATES` that are distinct from the given one and from each other."""
    pool = list(TEMPLATES.get(category) or [text for some in TEMPLATES.values() for text in some])
    random.Random(f"{seed}/{instruction}").shuffle(pool)
    return _enough(_distinct([instruction], pool, n), n, instruction, "templates")


class Instructions(BaseModel):
    """What a language model answers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    instructions: list[str]


def from_model(instruction: str, caption: str, ask: Callable[[str], str], n: int = 5) -> tuple[str, ...]:
    """n instructions that a language model wrote (``ask``: question -> answer).

    It is asked for twice as many and, where too few are of use (one line, at most :data:`LONGEST` characters, distinct
    from all others), up to :data:`ASKED` times for more. Raises InputError for an answer that holds no list, and when
    there are still too few.
    """
    chosen: tuple[str, ...] = ()
    for _ in range(ASKED):
        taken = f" Not again, nor in these words: {json.dumps(chosen)}." if chosen else ""
        answer = ask(
            f"A picture shows: {caption or 'unknown'}. Somebody asks an image editor: {instruction!r}. Write {2 * n} "
            "other, semantically different short editing instructions for the same picture, about different things in "
            f'it.{taken} Answer with a JSON object {{"instructions": [...]}}, a list of strings, and nothing else.'
        )
        more = _distinct([instruction, *chosen], _listed(answer), n)
        chosen += more
        if len(chosen) == n or not more:
            break
    return _enough(chosen, n, instruction, "the model")


def _listed(answer: str) -> list[str]:
    """The texts of the one list in an answer that can serve as instructions."""
    try:
        listed = json.loads(answer[answer.find("[") : answer.rfind("]") + 1])
    except (ValueError, RecursionError):
        raise InputError(f"expected a JSON list of instructions from the model, got {answer[:200]!r}") from None
    texts = [text.strip() for text in listed if isinstance(text, str)]
    return [text for text in texts if text.isprintable() and 0 < len(text) <= LONGEST]


def _distinct(known: Sequence[str], pool: Sequence[str], n: int) -> tuple[str, ...]:
    """From the pool, in order, what is distinct from all known and from each other; with the known, at most n + 1."""
    chosen = list(known)
    for text in pool:
        if len(chosen) <= n and not clash([*chosen, text]):
            chosen.append(text)
    return tuple(chosen[len(known) :])


def _enough(chosen: tuple[str, ...], n: int, instruction: str, who: str) -> tuple[str, ...]:
    if len(chosen) < n:
        raise InputError(f"{instruction!r}: expected {n} distinct instructions from {who}, found {len(chosen)}")
    return chosen
