"""Any server that speaks OpenAI's chat completions as a judge: OpenAI, Ollama, vLLM, LM Studio, llama.cpp.

Servers differ in how well they can be held to a schema. The ladder json_schema -> json_object -> prompt alone is
climbed down when a server refuses a rung (HTTP 400, 422, 501), and the rung that worked is remembered. So is which of
temperature, seed and reasoning effort a model refuses: they are left out, and the reply says so.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from ..errors import JudgeError
from ..types import Judge, State
from . import BACKENDS
from .client import Reply, check_base_url, environment_key
from .models import read_models, warn_of_the_end
from .ranking import LIKELIEST, listed, said
from .reading import body_of, count, ended, failure_in, field, joined, text
from .remote import RemoteClient
from .rubric import OPTIONS, Form, Part
from .scores import parted
from .vlm import VlmJudge
from .wire import Wire


class OpenAiClient(RemoteClient):
    """One call through openai, without its own retries."""

    backend = "openai"
    optional: ClassVar = {
        "temperature": "temperature",
        "seed": "seed",
        "reasoning_effort": r"reasoning[ ._]?effort",
    }
    ranks = True

    def connect(self) -> None:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise JudgeError(f"openai needs the package openai: pip install openai ({error})") from None
        credentials = {"authorization": f"Bearer {self.key}"}
        own = self.base_url == BACKENDS["openai"].address  # whose settings the package takes from the environment
        self.wire = Wire("openai", self.base_url, key=self.key, credentials=credentials, own=own, timeout=self.timeout)
        self._client: Any = OpenAI(
            api_key="on the wire", base_url=self.base_url, http_client=self.wire.client(), max_retries=0
        )

    def rungs(self, form: Form) -> int:
        return len(self._ways(form))

    def _ways(self, form: Form) -> tuple[dict[str, Any], ...]:
        return _likeliest(self._hosted) if form.ranked else _formats(form)

    @property
    def _hosted(self) -> bool:
        return self.base_url == BACKENDS[self.backend].address

    def call(self, parts: Sequence[Part], form: Form, settings: Mapping[str, Any], rung: int) -> object:
        return self._client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": [_content(part) for part in parts]}],
            **{
                _limit(self._hosted): self.config["max_output_tokens"],
                **settings,
                **self._ways(form)[rung],
            },
        )

    def ranked(self, reply: Reply, body: Any) -> Reply:
        if reply.state not in ("ok", "truncated"):
            return reply
        if answer := listed(body) or said(reply.text):
            return replace(reply, state="ok", text=answer, reason="")
        why = f"neither {' nor '.join(OPTIONS)} is what the model said or likely would have; ask it with another preset"
        return replace(reply, state="unparsable", reason=why)

    def read(self, body: Any) -> Reply:
        choices = field(body, "choices")
        if not isinstance(choices, list):
            return Reply("unreachable", reason=_NOT_OURS)
        read, written = (count(field(body, "usage", name)) for name in ("prompt_tokens", "completion_tokens"))
        tokens = None if read is None or written is None else (read, written)

        def reply(state: State, said: str = "", reason: str = "") -> Reply:
            return Reply(state, said, reason, text(field(body, "model")), tokens, billed="yes")

        if len(choices) != 1:
            return reply("unparsable", reason=f"{len(choices)} choices came back for one question")
        choice = choices[0]
        message = field(choice, "message")
        content = field(message, "content")
        said = joined(content)
        refusals = [
            field(message, "refusal"),
            *(field(p, "refusal") for p in (content if isinstance(content, list) else ())),
        ]
        if refusal := next((r for r in refusals if r), None):
            return reply("refused", said, f"the model refused: {refusal}")
        if error := field(choice, "error"):
            return reply("error", said, f"the model stopped for an error: {text(field(error, 'message')) or error}")
        if not said.strip():  # some servers take a whole answer for a part of the reasoning before it
            said = next((t for n in ("reasoning_content", "reasoning") if (t := joined(field(message, n)))), "")
        state, reason = ended(field(choice, "finish_reason"), "max_output_tokens")
        return reply(state, said, reason)


_NOT_OURS = "the server answered with something other than a chat completion; check base_url (it often ends in /v1)"


def _limit(hosted: bool) -> str:
    return "max_completion_tokens" if hosted else "max_tokens"


def _likeliest(hosted: bool) -> tuple[dict[str, Any], ...]:
    """How the probabilities of one word are asked for; where a server gives none, just for the word.

    Servers of one's own (not ``hosted``) are told to have the word come first, and no thoughts before it.
    """
    ways = [{"logprobs": True, "top_logprobs": most, _limit(hosted): 1} for most in LIKELIEST]
    thoughtless = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    return (*(way | thoughtless for way in ways if not hosted), *(ways[1:] if not hosted else ways), {})


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


def models_of(address: str, timeout: float = 5.0) -> list[str] | Reply:
    """The names of the models that a server has, 200 at most, asked without a key; a Reply says why it named none."""
    url = check_base_url(address)
    client = OpenAiClient("", url, "", takes={}, known=False, given={}, max_output_tokens=1, timeout=timeout)
    client.connect()
    came = client.wire.carry(client._client.models.list)
    body = None if isinstance(came, Reply) else body_of(came)
    failed = came if isinstance(came, Reply) else (failure := failure_in(came, body)) and failure.reply()
    named = field(body, "data")
    if not failed and not isinstance(named, list):
        failed = Reply("unreachable", reason=_NOT_OURS)
    if failed:
        return client.clean(failed)
    return [name for item in named[:200] if (name := client.shown(text(field(item, "id")), 300))]


def load(
    model: str,
    *,
    base_url: str | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    reasoning_effort: str | None = None,
    max_output_tokens: int = 4096,
    timeout: float = 120.0,
    key_variable: str = BACKENDS["openai"].keys[0],
    offline: bool = False,
    **asking: Any,
) -> Judge:
    """A model of an OpenAI-compatible server; ``base_url`` None means OpenAI itself, which needs OPENAI_API_KEY.

    Other servers get the key in ``key_variable`` if it is set; without one, nothing is billed. ``temperature``,
    ``seed`` and ``reasoning_effort`` ("none" to "max"; None: what the table has for the model, else temperature and
    seed 0) are not sent after the model has refused them; ``timeout`` in seconds; ``asking``: see
    :class:`sifm_core.judges.vlm.VlmJudge`. Warns where the model ends.
    """
    key = environment_key((key_variable,), os.environ)
    if not key and not base_url and not offline:
        raise JudgeError(
            f"openai needs a key in the environment variable {key_variable}; a local server needs its address instead: "
            f"openai:{model}@http://127.0.0.1:11434/v1"
        )
    given = {"temperature": temperature, "seed": seed, "reasoning_effort": reasoning_effort}
    asking |= {"max_output_tokens": max_output_tokens, "timeout": timeout, "offline": offline}
    return judge_of(OpenAiClient, model, base_url, key, given, **asking)


def judge_of(
    client: type[OpenAiClient],
    model: str,
    base_url: str | None,
    key: str,
    given: Mapping[str, Any],
    *,
    max_output_tokens: int,
    timeout: float,
    offline: bool,
    **asking: Any,
) -> Judge:
    """The judge of a provider that speaks chat completions; ``base_url`` None: at the provider's own address.

    ``model`` may have thresholds after a "#" (see :mod:`sifm_core.judges.scores`).
    """
    backend = BACKENDS[client.backend]
    spec, (model, thresholds) = model, parted(model)
    url = check_base_url(base_url or backend.address)
    known = read_models(asking.get("prices")).of(backend.prices, model)
    warn_of_the_end(model, known)
    takes = known.takes if known else None
    sender = client(
        model,
        url,
        key,
        takes={"temperature": 0.0, "seed": 0} if takes is None else takes,
        known=takes is not None,
        given=given,
        max_output_tokens=max_output_tokens,
        timeout=timeout,
    )
    name = f"{client.backend}:{spec}" + (f"@{url}" if base_url else "")
    return VlmJudge(sender, name=name, thresholds=thresholds, offline=offline, **asking)
