"""Gemini as a judge, through google-genai.

Facts that shape this file: thinking counts as output, so the limit leaves room for it; safety filters strike even when
all are off, and come in two places; one of a family's models may answer for another, so the served version is recorded.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import JudgeError
from ..types import Judge, State
from .client import JobClient, Reply, check_base_url, environment_key, http_failure, transport_failure
from .rubric import Form, Part, Question
from .vlm import VlmJudge

KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
URL = "https://generativelanguage.googleapis.com"
_HARMS = ("HARASSMENT", "HATE_SPEECH", "SEXUALLY_EXPLICIT", "DANGEROUS_CONTENT")
_BLOCKED = {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "MODEL_ARMOR"}
_ENDED = {"SUCCEEDED", "PARTIALLY_SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"}


class GeminiClient(JobClient):
    """Calls through google-genai, one by one or in jobs, without its own retries."""

    backend = "gemini"
    job_bytes = 18_000_000  # of the 20 MB that a request may weigh

    def connect(self) -> None:
        try:
            from google import genai
            from google.genai import types
        except ImportError as error:
            raise JudgeError(f"Gemini needs the package google-genai: pip install google-genai ({error})") from None
        self._client: Any = genai.Client(
            api_key=self.key,
            vertexai=False,
            http_options=types.HttpOptions(
                base_url=self.base_url,
                api_version="v1beta",
                timeout=round(self.timeout * 1000),
                retry_options=types.HttpRetryOptions(attempts=1),
            ),
        )

    def send(self, parts: Sequence[Part], form: Form) -> Reply:
        response = _attempt(
            lambda: self._client.models.generate_content(
                model=self.model, contents=_contents(parts), config=self._settings(form)
            )
        )
        return response if isinstance(response, Reply) else _read(response)

    def submit(self, calls: Sequence[tuple[Sequence[Part], Question]], label: str) -> str | Reply:
        from google.genai import types

        requests = [
            types.InlinedRequest(
                contents=_contents(parts), config=self._settings(question), metadata={"place": str(place)}
            )
            for place, (parts, question) in enumerate(calls)
        ]
        config = types.CreateBatchJobConfig(display_name=label)
        job = _attempt(lambda: self._client.batches.create(model=self.model, src=requests, config=config))
        if isinstance(job, Reply):
            return job
        return job.name or Reply("unreachable", reason="the job that was sent came back without a name", billed="maybe")

    def find_job(self, label: str) -> str | Reply | None:
        jobs = _attempt(lambda: list(self._client.batches.list()))
        return jobs if isinstance(jobs, Reply) else next((j.name for j in jobs if j.display_name == label), None)

    def collect(self, name: str, calls: int) -> list[Reply] | Reply:
        job = _attempt(lambda: self._client.batches.get(name=name))
        if isinstance(job, Reply):
            return replace(job, wait=0.0) if job.state == "unreachable" else job
        state = _name(job.state).removeprefix("JOB_STATE_")
        if state not in _ENDED:
            return Reply("unreachable", reason=f"{name} is {state.lower() or 'somewhere'}", wait=0.0)
        arrived = (job.dest.inlined_responses if job.dest else None) or []
        places = [_place(response.metadata, i) for i, response in enumerate(arrived)]
        replies: list[Reply] = []
        for place in range(calls):
            mine = [_read_item(response) for response, at in zip(arrived, places, strict=True) if at == place]
            if len(mine) == 1:
                replies += mine
            elif not mine:
                why = f"the job ended ({state.lower()}) and holds no answer to this question, which may have been paid"
                replies.append(Reply("unreachable", reason=why, billed="maybe"))
            else:
                why = f"{len(mine)} answers came back for one question"
                replies.append(replace(mine[0], state="unparsable", text="", reason=why))
        return replies

    def _settings(self, form: Form) -> Any:
        from google.genai import types

        budget = self.config["thinking_budget"]
        return types.GenerateContentConfig(
            temperature=self.config["temperature"],
            seed=self.config["seed"],
            max_output_tokens=self.config["max_output_tokens"],
            response_mime_type="application/json",
            response_schema=form.answer,
            thinking_config=None if budget is None else types.ThinkingConfig(thinking_budget=budget),
            safety_settings=[
                types.SafetySetting(
                    category=types.HarmCategory(f"HARM_CATEGORY_{harm}"), threshold=types.HarmBlockThreshold.OFF
                )
                for harm in _HARMS
            ],
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        )


def _contents(parts: Sequence[Part]) -> list[Any]:
    from google.genai import types

    pieces = [
        types.Part(text=part) if isinstance(part, str) else types.Part.from_bytes(data=part, mime_type="image/png")
        for part in parts
    ]
    return [types.Content(role="user", parts=pieces)]


def _attempt(call: Callable[[], Any]) -> Any:
    """What the call returns, or the Reply that its failure means."""
    from google.genai import errors

    try:
        return call()
    except errors.APIError as error:
        return http_failure(error.code, str(error.message or error.status), _retry_delay(error))
    except json.JSONDecodeError:
        return Reply("unreachable", reason="the server answered with something other than JSON; check base_url")
    except Exception as error:
        if (failure := transport_failure(error)) is None:
            raise
        return failure


def _place(metadata: Mapping[str, str] | None, i: int) -> int:
    """Which question of the job an answer belongs to: what it says, else by the order."""
    said = (metadata or {}).get("place", str(i))
    return int(said) if said.isdecimal() else -1


def _read_item(item: Any) -> Reply:
    """What one response of a job holds."""
    if item.response is not None:
        return _read(item.response)
    error = item.error
    return Reply("unreachable", reason=f"no answer: {f'{error.code} {error.message}' if error else 'and no reason'}")


def _read(response: Any) -> Reply:
    """What a response that arrived holds."""
    usage = response.usage_metadata
    tokens = None
    if usage is not None and usage.prompt_token_count is not None:
        tokens = (usage.prompt_token_count, (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0))
    served = re.sub(r"^models/", "", response.model_version or "")

    def reply(state: State, text: str = "", reason: str = "") -> Reply:
        return Reply(state, text, reason, served, tokens, billed="yes")

    if not response.candidates:
        feedback = response.prompt_feedback
        if feedback and feedback.block_reason:
            return reply("blocked", reason=f"the prompt was blocked: {_name(feedback.block_reason)}")
        if tokens is None:
            return Reply("unreachable", reason="the server's answer is JSON, but not Gemini's; check base_url")
        return reply("error", reason="no candidate came back, and no reason")
    if len(response.candidates) > 1:
        return reply("unparsable", reason=f"{len(response.candidates)} candidates came back for one question")
    candidate = response.candidates[0]
    finish = _name(candidate.finish_reason)
    pieces = (candidate.content.parts if candidate.content else None) or []
    text = "".join(piece.text for piece in pieces if piece.text and not piece.thought)
    if finish == "MAX_TOKENS":
        return reply("truncated", text=text, reason="the answer ran into max_output_tokens, thinking included")
    if finish in _BLOCKED:
        return reply("blocked", text=text, reason=f"the answer was blocked: {finish}")
    if finish != "STOP":
        return reply("error", text=text, reason=f"the model stopped for {finish or 'no reason'}")
    return reply("ok", text=text)


def _name(value: Any) -> str:
    return str(getattr(value, "value", value) or "")


def _retry_delay(error: Any) -> float:
    """Seconds that the server asks to wait (header or RetryInfo), 0 if it does not say."""
    header = getattr(error.response, "headers", {}).get("retry-after", "")
    found = re.search(r"'retryDelay': '([\d.]+)s'", str(error.details)) or re.fullmatch(r"([\d.]+)", header)
    return float(found[1]) if found else 0.0


def load(
    model: str,
    *,
    base_url: str | None = None,
    temperature: float | None = 0.0,
    seed: int | None = 0,
    thinking_budget: int | None = 1024,
    max_output_tokens: int = 8192,
    timeout: float = 120.0,
    offline: bool = False,
    **asking: Any,
) -> Judge:
    """A Gemini model, such as "gemini-2.5-pro"; the key comes from GEMINI_API_KEY or GOOGLE_API_KEY.

    ``thinking_budget`` in tokens (None: the model's own), part of ``max_output_tokens``; ``timeout`` in seconds;
    ``asking``: see :class:`sifm_core.judges.vlm.VlmJudge`.
    """
    key = environment_key(KEYS, os.environ)
    if not key and not offline:
        raise JudgeError(f"gemini needs a key in the environment variable {' or '.join(KEYS)}")
    url = check_base_url(base_url or URL)
    config = {
        "temperature": temperature,
        "seed": seed,
        "thinking_budget": thinking_budget,
        "max_output_tokens": max_output_tokens,
    }
    client = GeminiClient(model, url, key, config=config, timeout=timeout)
    name = f"gemini:{model}" + (f"@{url}" if base_url else "")
    return VlmJudge(client, name=name, offline=offline, **asking)
