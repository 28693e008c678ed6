"""Gemini as a judge, through google-genai.

Facts that shape this file: thinking counts as output, so the limit leaves room for it; safety filters strike even when
all are off, and come in two places; one of a family's models may answer for another, so the served version is recorded;
newer models refuse settings that older ones take: what each takes stands in ``models.toml``, and a model that is not
listed there is sent none of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from ..errors import InputError, JudgeError
from ..types import Judge, State
from . import BACKENDS
from .client import JobClient, Reply, check_base_url, environment_key
from .models import read_models, warn_of_the_end
from .reading import body_of, count, ended, failure_in, field, joined, text
from .remote import RemoteClient
from .rubric import Form, Part, Question
from .vlm import VlmJudge
from .wire import ANSWER_BYTES, Wire

URL = BACKENDS["gemini"].address
_HARMS = ("HARASSMENT", "HATE_SPEECH", "SEXUALLY_EXPLICIT", "DANGEROUS_CONTENT")
_ENDED = {"SUCCEEDED", "PARTIALLY_SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"}
_JOB_BYTES = 32 * ANSWER_BYTES
"""The answers of a job, all together, and a page of jobs."""
_PAGES = 100


class GeminiClient(RemoteClient, JobClient):
    """Calls through google-genai, one by one or in jobs, without its own retries."""

    backend = "gemini"
    optional: ClassVar = {
        "temperature": "temperature",
        "seed": "seed",
        "thinking_budget": r"thinking[ _]?(budget|config)\w*",
        "thinking_level": r"thinking[ _]?(level|config)\w*",
        "media_resolution": r"media[ _]?resolution\w*",
    }
    job_bytes = 18_000_000  # of the 20 MB that a request may weigh

    def connect(self) -> None:
        try:
            from google import genai
            from google.genai import types
        except ImportError as error:
            raise JudgeError(f"Gemini needs the package google-genai: pip install google-genai ({error})") from None
        credentials = {"x-goog-api-key": self.key}
        own = self.base_url == URL
        self.wire = Wire(
            "google-genai", self.base_url, key=self.key, credentials=credentials, own=own, timeout=self.timeout
        )
        self._client: Any = genai.Client(
            api_key="on the wire",
            vertexai=False,
            http_options=types.HttpOptions(
                base_url=self.base_url,
                api_version="v1beta",
                client_args={"transport": self.wire.transport(), "trust_env": False, "follow_redirects": False},
                retry_options=types.HttpRetryOptions(attempts=1),
            ),
        )

    def call(self, parts: Sequence[Part], form: Form, settings: Mapping[str, Any], rung: int) -> object:
        return self._client.models.generate_content(
            model=self.model, contents=_contents(parts), config=self._config(form, settings)
        )

    def read(self, body: Any) -> Reply:
        return _read(body)

    def submit(self, calls: Sequence[tuple[Sequence[Part], Question]], label: str) -> str | Reply:
        from google.genai import types

        requests = [
            types.InlinedRequest(
                contents=_contents(parts),
                config=self._config(question, self.settings(self._unsent)),
                metadata={"place": str(place)},
            )
            for place, (parts, question) in enumerate(calls)
        ]
        config = types.CreateBatchJobConfig(display_name=label)
        job = self._fetch(partial(self._client.batches.create, model=self.model, src=requests, config=config))
        if isinstance(job, Reply):
            return job
        return self._name(job) or Reply(
            "unreachable", reason="the job that was sent came back without a name", billed="maybe"
        )

    def find_job(self, label: str) -> str | Reply | None:
        from google.genai import types

        page = ""
        for _ in range(_PAGES):
            config = types.ListBatchJobsConfig(page_size=100, page_token=page or None)
            listed = self._fetch(partial(self._client.batches.list, config=config))
            if isinstance(listed, Reply):
                return listed
            jobs = field(listed, "operations")
            for job in jobs if isinstance(jobs, list) else ():
                if field(job, "metadata", "displayName") == label and (name := self._name(job)):
                    return name
            if not (page := text(field(listed, "nextPageToken"))):
                break
        return None

    def collect(self, name: str, calls: int) -> list[Reply] | Reply:
        job = self._fetch(partial(self._client.batches.get, name=name))
        if isinstance(job, Reply):
            return replace(job, wait=0.0) if job.state == "unreachable" else job
        state = text(field(job, "metadata", "state")).removeprefix("BATCH_STATE_").removeprefix("JOB_STATE_")
        if state not in _ENDED:
            return Reply("unreachable", reason=f"{name} is {state.lower() or 'somewhere'}", wait=0.0)
        output = field(job, "metadata", "output") or field(job, "response")
        arrived = field(output, "inlinedResponses", "inlinedResponses")
        items = arrived if isinstance(arrived, list) else []
        places = [field(item, "metadata", "place") for item in items]
        if not any(places):  # then the order says which question an answer belongs to
            places = [str(i) for i in range(len(items))]
        found: dict[str, list[Any]] = {}
        for place, item in zip(places, items, strict=True):
            found.setdefault(text(place), []).append(item)
        replies: list[Reply] = []
        for number in range(calls):
            mine = [_read_item(item) for item in found.get(str(number), ())]
            if len(mine) == 1:
                replies.append(replace(mine[0], unsent=self._unsent, unnamed=self._unnamed))
            elif not mine:
                why = f"the job ended ({state.lower()}) and holds no answer to this question, which may have been paid"
                replies.append(Reply("unreachable", reason=why, billed="maybe"))
            else:
                why = f"{len(mine)} answers came back for one question"
                replies.append(replace(mine[0], state="unparsable", text="", reason=why))
        return replies

    def _fetch(self, call: Any) -> Any:
        """The body that a call about jobs brings back, or the Reply that its failure means."""
        came = self.wire.carry(call, at_most=_JOB_BYTES)
        if isinstance(came, Reply):
            return came
        body = body_of(came)
        if failure := failure_in(came, None if field(body, "metadata") else body):  # a job that failed holds its error
            return failure.reply()
        if isinstance(body, dict):
            return body
        return Reply("unreachable", reason="the server answered with something other than JSON; check base_url")

    def _name(self, job: Any) -> str:
        """What a job is to be asked for by, or "" where it is no name that may be kept."""
        name = text(field(job, "name"))
        return name if re.fullmatch(r"batches/[\w.-]{1,200}", name) and self.shown(name, 300) == name else ""

    def _config(self, form: Form, settings: Mapping[str, Any]) -> Any:
        from google.genai import types

        plain = dict(settings)
        thinking = {name: plain.pop(name) for name in ("thinking_budget", "thinking_level") if name in plain}
        if "media_resolution" in plain:
            plain["media_resolution"] = f"MEDIA_RESOLUTION_{plain['media_resolution'].upper()}"
        return types.GenerateContentConfig(
            **plain,
            max_output_tokens=self.config["max_output_tokens"],
            response_mime_type="application/json",
            response_schema=form.answer,
            thinking_config=types.ThinkingConfig(**thinking) if thinking else None,
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


def _read_item(item: Any) -> Reply:
    """What one response of a job holds."""
    error = field(item, "error")
    said = f"{field(error, 'code')} {field(error, 'message')}" if isinstance(error, dict) else text(error)
    if field(item, "response") is None:
        return Reply("unreachable", reason=f"no answer: {said or 'and no reason'}")
    reply = _read(field(item, "response"))
    if error:
        return replace(
            reply, state="error", text="", reason=f"an answer and an error came back ({said})", billed="maybe"
        )
    return reply


def _read(body: Any) -> Reply:
    """What a response that arrived holds."""
    usage, candidates = field(body, "usageMetadata"), field(body, "candidates")
    candidates = candidates if isinstance(candidates, list) else []
    blocked = text(field(body, "promptFeedback", "blockReason"))
    parts = field(candidates, 0, "content", "parts")
    said = joined(parts if isinstance(parts, list) else None)
    read, written, thought = (
        count(0 if (value := field(usage, name)) is None and optional else value)
        for name, optional in (
            ("promptTokenCount", False),
            ("candidatesTokenCount", not said),
            ("thoughtsTokenCount", True),
        )
    )
    tokens = None if read is None or written is None or thought is None else (read, written + thought)
    served = re.sub(r"^models/", "", text(field(body, "modelVersion")))

    def reply(state: State, reason: str = "") -> Reply:
        return Reply(state, said, reason, served, tokens, billed="yes")

    if blocked:
        return reply("blocked", f"the prompt was blocked: {blocked}")
    if len(candidates) > 1:
        return replace(reply("unparsable", f"{len(candidates)} candidates came back for one question"), text="")
    if candidates:
        return reply(*ended(field(candidates, 0, "finishReason"), "max_output_tokens, thinking included"))
    if usage is None:
        return Reply("unreachable", reason="the server's answer is JSON, but not Gemini's; check base_url")
    return reply("error", "no candidate came back, and no reason")


def load(
    model: str,
    *,
    base_url: str | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    thinking_budget: int | None = None,
    thinking_level: str | None = None,
    media_resolution: str | None = None,
    max_output_tokens: int = 8192,
    timeout: float = 120.0,
    offline: bool = False,
    **asking: Any,
) -> Judge:
    """A Gemini model, such as "gemini-3.8-flash"; the key comes from GEMINI_API_KEY or GOOGLE_API_KEY.

    Settings that are None are what ``models.toml`` has for the model, and are not sent where it has none:
    ``temperature``; ``seed``; ``thinking_budget`` in tokens, part of ``max_output_tokens``, or ``thinking_level``
    ("minimal" to "high"), never both; ``media_resolution`` ("low" to "high"). ``timeout`` in seconds; ``asking``: see
    :class:`sifm_core.judges.vlm.VlmJudge`. Warns where the model ends.
    """
    backend = BACKENDS["gemini"]
    key = environment_key(backend.keys, os.environ)
    if not key and not offline:
        raise JudgeError(f"gemini needs a key in the environment variable {' or '.join(backend.keys)}")
    if thinking_budget is not None and thinking_level is not None:
        raise InputError("expected a thinking_budget or a thinking_level, got both; leave one out")
    url = check_base_url(base_url or URL)
    given = {
        "temperature": temperature,
        "seed": seed,
        "thinking_budget": thinking_budget,
        "thinking_level": thinking_level,
        "media_resolution": media_resolution,
    }
    known = read_models(asking.get("prices")).of(backend.prices, model)
    warn_of_the_end(model, known)
    takes = known.takes if known else None
    client = GeminiClient(
        model,
        url,
        key,
        takes=takes or {},
        known=takes is not None,
        given=given,
        max_output_tokens=max_output_tokens,
        timeout=timeout,
    )
    name = f"gemini:{model}" + (f"@{url}" if base_url else "")
    return VlmJudge(client, name=name, offline=offline, **asking)
