"""Claude as a judge, through Anthropic's endpoint for OpenAI's package.

The endpoint takes pictures and the limit of the answer, and ignores seed and, as far as is documented, the schema: then
the question alone says what an answer is, and the parser is as strict as ever.
"""

from __future__ import annotations

import os
from typing import Any

from ..errors import JudgeError
from ..types import Judge
from . import BACKENDS
from .client import environment_key
from .openai_compatible import OpenAiClient, judge_of


class ClaudeClient(OpenAiClient):
    """The same call, to another provider."""

    backend = "anthropic"


def load(
    model: str,
    *,
    base_url: str | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    reasoning_effort: str | None = None,
    max_output_tokens: int = 8192,
    timeout: float = 120.0,
    offline: bool = False,
    **asking: Any,
) -> Judge:
    """A Claude, such as "claude-opus-5-5"; the key comes from ANTHROPIC_API_KEY.

    Thinking counts as output, so the limit leaves room for it; otherwise as
    :func:`sifm_core.judges.openai_compatible.load`.
    """
    keys = BACKENDS["anthropic"].keys
    key = environment_key(keys, os.environ)
    if not key and not offline:
        raise JudgeError(f"anthropic needs a key in the environment variable {keys[0]}")
    given = {"temperature": temperature, "seed": seed, "reasoning_effort": reasoning_effort}
    asking |= {"max_output_tokens": max_output_tokens, "timeout": timeout, "offline": offline}
    return judge_of(ClaudeClient, model, base_url, key, given, **asking)
