"""Any server that speaks OpenAI's chat completions as a judge: OpenAI, Ollama, vLLM, LM Studio, llama.cpp.

Servers differ in how well they can be held to a schema. The ladder json_schema -> json_object -> prompt alone is
climbed down when a server refuses a rung (HTTP 400, 422, 501), and the rung that worked is remembered. So is which of
temperature and seed a model refuses: they are left out, and the reply says so.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import JudgeError
from ..types import Judge, State
from .client import Client, Reply, check_base_url, environment_key, http_failure, transport_failure
from .rubric import Form, Part
from .vlm import VlmJudge

URL = "https://api.openai.com/v1"
_REFUSES_FORMAT = (400, 422, 501)
_SAMPLING = ("temperature", "seed")


class OpenAiClient(Client):
    """One call through openai, without its own retries."""

    backend = "openai"

    def connect(self) -> None:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise JudgeError(f"openai needs the package openai: pip install openai ({error})") from None
        self._client: Any = OpenAI(
            api_key=self.key or "none", base_url=self.base_url, timeout=self.timeout, max_retries=0
        )
        self._rung = 0
        self._unsent: tuple[str, ...] = ()

    def send(self, parts: Sequence[Part], form: Form) -> Reply:
        formats, rung, unsent = _formats(form), self._rung, self._unsent
        while True:
            sampling = {k: v for k in _SAMPLING if k not in unsent and (v := self.config[k]) is not None}
            reply, error = self._send(parts, formats[rung], sampling)
            if refused := _refused(error, sampling):
                unsent += refused
            elif error and error.status_code in _REFUSES_FORMAT and rung < len(formats) - 1:
                rung += 1
            else:
                break
        if reply.billed == "yes":
            self._rung, self._unsent = rung, unsent
        return replace(reply, unsent=unsent)

    def _send(
        self, parts: Sequence[Part], response_format: Mapping[str, Any], sampling: Mapping[str, Any]
    ) -> tuple[Reply, Any]:
        """The reply, and openai's error if the HTTP status was none of success."""
        import openai

        limit = "max_completion_tokens" if self.base_url == URL else "max_tokens"
        try:
            completion = self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": [_content(part) for part in parts]}],
                **{limit: self.config["max_output_tokens"]},
                **sampling,
                **response_format,
            )
        except openai.APIStatusError as error:
            retry_after = error.response.headers.get("retry-after", "")
            wait = float(retry_after) if retry_after.replace(".", "", 1).isdigit() else 0.0
            return http_failure(error.status_code, str(error.message), wait), error
        except openai.APIConnectionError as error:
            failure = transport_failure(error.__cause__ or error)
            return failure or Reply("unreachable", reason=f"no answer arrived ({error})", billed="maybe"), None
        except (openai.APIResponseValidationError, ValueError):
            return Reply("unreachable", reason=_NOT_OURS), None
        return _read(completion), None


_NOT_OURS = "the server answered with something other than a chat completion; check base_url (it often ends in /v1)"


def _refused(error: Any, sampling: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings that an HTTP 400 is about."""
    if error is None or error.status_code != 400:
        return ()
    named = str(error.param or error.message)
    return tuple(name for name in sampling if re.search(rf"\b{name}\b", named, re.IGNORECASE))


def _formats(form: Form) -> tuple[dict[str, Any], ...]:
    schema = {"name": form.answer.__name__.lower(), "schema": form.schema, "strict": True}
    return (
        {"response_format": {"type": "json_schema", "json_schema": schema}},
        {"response_format": {"type": "json_object"}},
        {},
    )


def _content(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(part).decode()}}


def _read(completion: Any) -> Reply:
    """What a response that arrived holds. The client does not check shapes, so nothing is taken for granted."""
    body = completion.model_dump(warnings=False) if hasattr(completion, "model_dump") else {}
    choices = body.get("choices")
    if not isinstance(choices, list):
        return Reply("unreachable", reason=_NOT_OURS)
    usage = body.get("usage") or {}
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    tokens = (read, written) if isinstance(read, int) and isinstance(written, int) else None

    def reply(state: State, text: str = "", reason: str = "") -> Reply:
        return Reply(state, text, reason, str(body.get("model") or ""), tokens, billed="yes")

    if len(choices) != 1:
        return reply("unparsable", reason=f"{len(choices)} choices came back for one question")
    choice = choices[0] or {}
    message = choice.get("message") or {}
    text, finish = message.get("content") or "", choice.get("finish_reason")
    if message.get("refusal"):
        return reply("refused", text=text, reason=f"the model refused: {message['refusal']}")
    if finish == "length":
        return reply("truncated", text=text, reason="the answer ran into max_output_tokens")
    if finish == "content_filter":
        return reply("blocked", text=text, reason="the answer was blocked: content_filter")
    if finish != "stop":
        return reply("error", text=text, reason=f"the model stopped for {finish or 'no reason'}")
    return reply("ok", text=text)


def load(
    model: str,
    *,
    base_url: str | None = None,
    temperature: float | None = 0.0,
    seed: int | None = 0,
    max_output_tokens: int = 4096,
    timeout: float = 120.0,
    key_variable: str = "OPENAI_API_KEY",
    offline: bool = False,
    **asking: Any,
) -> Judge:
    """A model of an OpenAI-compatible server; ``base_url`` None means OpenAI itself, which needs OPENAI_API_KEY.

    Other servers get the key in ``key_variable`` if it is set; without one, nothing is billed. ``temperature`` and
    ``seed`` are not sent if None, nor after the model has refused them; ``timeout`` in seconds; ``asking``: see
    :class:`sifm_core.judges.vlm.VlmJudge`.
    """
    key = environment_key((key_variable,), os.environ)
    if not key and not base_url and not offline:
        raise JudgeError(
            f"openai needs a key in the environment variable {key_variable}; a local server needs its address instead: "
            f"openai:{model}@http://127.0.0.1:11434/v1"
        )
    url = check_base_url(base_url or URL)
    config = {"temperature": temperature, "seed": seed, "max_output_tokens": max_output_tokens}
    client = OpenAiClient(model, url, key, config=config, timeout=timeout)
    name = f"openai:{model}" + (f"@{url}" if base_url else "")
    return VlmJudge(client, name=name, offline=offline, **asking)
