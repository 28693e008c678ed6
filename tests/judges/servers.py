"""A fake Gemini and a fake OpenAI server on 127.0.0.1, scripted by the instruction that a call carries.

An instruction such as "prose 7" makes the server behave as ``BEHAVIOURS["prose"]`` says. The server keeps its own
books: every request, and which ones it would bill. So what the engine records can be held against what happened.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from sifm_core.types import Case

SEMANTIC = {
    "observations": "the hat changed",
    "visible_change": "yes",
    "instruction_followed": "yes",
    "subject_recognisable": "yes",
    "rest_preserved": "yes",
    "defects": [],
    "verdict": "success",
    "confidence": 0.9,
}
QUALITY = {
    "observations": "clean",
    "shapes_intact": "yes",
    "surfaces_clean": "yes",
    "colours_plausible": "yes",
    "usable": "yes",
    "defects": [],
    "verdict": "success",
    "confidence": 0.8,
}
PAPER = {
    "semantic_analysis": "as asked.",
    "semantic_mismatch": False,
    "degradation_analysis": "clean.",
    "perceptual_degradation": False,
    "verdict": "success",
    "confidence": 0.7,
}
UNSEEN = {
    "instructions": ["add fog", "paint it blue", "remove the hat", "melt the doors", "make it rain", "add a boat"]
}
USAGE = (700, 120)
"""Tokens in and out that every answer is billed at."""


def case(prompt: str, *, seed: int = 0, size: int = 16) -> Case:
    """A case whose instruction scripts the server."""
    pictures = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return Case(pictures[0], pictures[1], prompt)


@dataclass
class Request:
    """What came in: how often this very body came before, its instruction, and which question it asks."""

    nth: int
    behaviour: str
    question: str
    key: str
    body: dict[str, Any]

    def answer(self, **changes: Any) -> str:
        return json.dumps(
            {"semantic": SEMANTIC, "quality": QUALITY, "paper": PAPER, "unseen": UNSEEN}[self.question] | changes
        )


@dataclass
class Response:
    """What goes out. ``text`` is wrapped in the dialect's envelope; ``raw`` goes out as it is."""

    text: str = ""
    status: int = 200
    raw: str | None = None
    type: str = "application/json"
    finish: str = "stop"
    served: str | None = None
    copies: int = 1
    refusal: str | None = None
    delay: float = 0.0
    drop: bool = False
    blocked: bool = False
    headers: dict[str, str] = field(default_factory=dict)


def error(status: int, message: str = "no", **headers: str) -> Response:
    raw = json.dumps({"error": {"code": status, "message": message, "status": "X"}})
    return Response(status=status, raw=raw, headers=headers)


def refusal(message: str, param: str | None = None) -> Response:
    """What OpenAI answers to a parameter that a model does not take."""
    return Response(status=400, raw=json.dumps({"error": {"message": message, "param": param, "code": None}}))


BEHAVIOURS = {
    "ok": lambda r: Response(r.answer()),
    "mismatch": lambda r: Response(
        r.answer(verdict="failure", instruction_followed="no") if r.question == "semantic" else r.answer()
    ),
    "damage": lambda r: Response(r.answer(verdict="failure", usable="no") if r.question == "quality" else r.answer()),
    "rate-once": lambda r: error(429, **{"retry-after": "0.01"}) if r.nth == 0 else Response(r.answer()),
    "rate": lambda r: error(429),
    "rate-header": lambda r: error(429, **{"retry-after": "0.5"}) if r.nth == 0 else Response(r.answer()),
    "rate-info": lambda r: (
        Response(status=429, raw='{"error": {"code": 429, "message": "no", "details": [{"retryDelay": "0.5s"}]}}')
        if r.nth == 0
        else Response(r.answer())
    ),
    "server-error": lambda r: error(500),
    "bad-request": lambda r: error(400),
    "not-found": lambda r: error(404),
    "key-refused": lambda r: error(401, f"bad key {r.key}"),
    "prose": lambda r: Response("The edit looks fine to me, so I say success."),
    "wrong-schema": lambda r: Response('{"score": 7, "verdict": "success"}'),
    "json-list": lambda r: Response(f"[{r.answer()}]"),
    "chatty": lambda r: Response("Here you are:\n" + r.answer()),
    "twice": lambda r: Response(r.answer() + r.answer(verdict="failure")),
    "doubled-field": lambda r: Response(r.answer()[:-1] + ', "verdict": "failure"}'),
    "contradiction": lambda r: Response(
        r.answer(instruction_followed="no") if r.question == "semantic" else r.answer()
    ),
    "fenced": lambda r: Response(f"```json\n{r.answer()}\n```"),
    "empty": lambda r: Response(""),
    "cannot-judge": lambda r: Response(r.answer(verdict="cannot_judge")),
    "truncated": lambda r: Response(r.answer()[:40], finish="length"),
    "safety": lambda r: Response("", finish="content_filter"),
    "odd-stop": lambda r: Response(r.answer(), finish="odd"),
    "prompt-block": lambda r: Response(blocked=True),
    "refusal": lambda r: Response("", refusal="I will not look at this."),
    "html": lambda r: Response(raw="<html><body>Welcome to the hotel's network</body></html>", type="text/html"),
    "html-as-json": lambda r: Response(raw="<html></html>"),
    "other-json": lambda r: Response(raw='{"hello": "world"}'),
    "slow": lambda r: Response(r.answer(), delay=2.0),
    "drop": lambda r: Response(drop=True),
    "rerouted": lambda r: Response(r.answer(), served="other-model"),
    "two-choices": lambda r: Response(r.answer(), copies=2),
    "few": lambda r: Response(  # three at a time, and what it was told not to say again
        r.answer(instructions=UNSEEN["instructions"][: 6 if "Not again" in json.dumps(r.body) else 3])
    ),
    "alike": lambda r: Response(r.answer(instructions=[f"{verb} the fog" for verb in ("add", "put", "make", "give")])),
    "essays": lambda r: Response(r.answer(instructions=["add\nfog", "x" * 300, "", 5, None])),
    "echo-key": lambda r: Response(r.answer(observations=f"the key is {r.key}"), served=f"fake-{r.key}"),
    "reasoner": lambda r: (  # what OpenAI's reasoning models say, and what a server says that does not tell which
        refusal("Unsupported value: only the default (1) is supported.", "temperature")
        if "temperature" in r.body
        else refusal("Unrecognized request argument supplied: seed")
        if "seed" in r.body
        else Response(r.answer())
    ),
    "newer": lambda r: (  # what Gemini answers to settings that a newer model no longer takes
        error(400, "Invalid value at 'generation_config.thinking_config.thinking_budget': use thinking_level")
        if "thinkingConfig" in r.body["generationConfig"]
        else error(400, "Unsupported parameters: temperature, seed")
        if "temperature" in r.body["generationConfig"]
        else Response(r.answer())
    ),
    "no-schema-in-words": lambda r: (
        Response(status=400, raw='{"error": "response_format.type must be text"}')
        if "response_format" in r.body
        else Response(r.answer())
    ),
    "no-schema-as-200": lambda r: (
        Response(raw='{"error": {"code": 400, "message": "no such format"}}')
        if "response_format" in r.body
        else Response(r.answer())
    ),
    "no-schema": lambda r: (
        error(400, "response_format is not supported") if "response_format" in r.body else Response(r.answer())
    ),
}


class FakeServer:
    """Speaks ``dialect`` ("gemini" or "openai"); use as a context manager."""

    def __init__(self, dialect: str, *, delay: float = 0.0) -> None:
        self.dialect = dialect
        self.jobs: list[dict[str, Any]] = []
        self.job_polls, self.job_state, self.job_fault = 1, "SUCCEEDED", ""
        """How often a job is asked for before it ends, how it ends, and what goes wrong: "lost-name", "no-places",
        "short", "doubled", "odd-items", "endless-pages", "not-created"."""
        self.job_name, self.pages = "", 0
        """What every job is called, if not by its number; how many pages of jobs were asked for."""
        self.models = Response(raw=json.dumps({"object": "list", "data": [{"id": "llava"}, {"id": "qwen2.5vl"}]}))
        self.looked: list[dict[str, str]] = []
        """What is answered to a question for the models, and the headers of each."""
        self.requests: list[Request] = []
        self.billed: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._delay = delay
        handler = type("Handler", (_Handler,), {"fake": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        host = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.url = host if dialect == "gemini" else f"{host}/v1"

    def __enter__(self) -> FakeServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def respond(self, raw: bytes, key: str) -> tuple[Response, str]:
        sha, body = hashlib.sha256(raw).hexdigest(), json.loads(raw)
        text = raw.decode()
        behaviour = re.search(r"""(?:Instruction: \\"|PROMPT: \\"|asks an image editor: ')([\w-]+)""", text)
        marks = {"PROMPT:": "paper", "technical quality": "quality", "asks an image editor": "unseen"}
        question = next((name for mark, name in marks.items() if mark in text), "semantic")
        with self._lock:
            request = Request(self._seen[sha], behaviour[1], question, key, body)
            self._seen[sha] += 1
            self.requests.append(request)
        response = BEHAVIOURS[request.behaviour](request)
        time.sleep(response.delay or self._delay)
        if response.status == 200 and response.raw is None:
            with self._lock:
                self.billed[sha] += 1
        return response, sha

    def create_job(self, raw: bytes, key: str) -> Response:
        batch = json.loads(raw)["batch"]
        if self.job_fault == "not-created":
            return Response(drop=True)
        results = []
        for item in batch["inputConfig"]["requests"]["requests"]:
            response, _ = self.respond(json.dumps(item["request"]).encode(), key)
            if response.status == 200 and response.raw is None:
                result = {"response": self.envelope(response)}
            else:
                result = {"error": {"code": response.status, "message": "no"}}
            results.append(result if self.job_fault == "no-places" else result | {"metadata": item["metadata"]})
        if self.job_fault == "short":
            results.pop()
        if self.job_fault == "doubled":
            results.append(results[0])
        results.reverse()  # what belongs together is said by the metadata, not by the order
        if self.job_fault == "no-places":
            results.reverse()
        if self.job_fault == "odd-items":
            odd = [7, None, [], {"response": 7}, {"response": {"candidates": key}}, {"error": key}]
            results[: len(odd)] = [
                item if not isinstance(item, dict) else item | {"metadata": results[i]["metadata"]}
                for i, item in enumerate(odd)
            ]
            results[len(odd)]["metadata"]["place"] = "9" * 5000
        self.jobs.append({"label": batch["displayName"], "results": results, "polls": 0})
        if self.job_fault == "lost-name":
            return Response(drop=True)
        return Response(raw=json.dumps(self.job(len(self.jobs) - 1)))

    def job(self, number: int) -> dict[str, Any]:
        job = self.jobs[number]
        ended = job["polls"] > self.job_polls
        metadata = {"displayName": job["label"], "state": f"BATCH_STATE_{self.job_state if ended else 'RUNNING'}"}
        if ended and self.job_state == "SUCCEEDED":
            metadata["output"] = {"inlinedResponses": {"inlinedResponses": job["results"]}}
        name = "batches/" + self.job_name if self.job_name else f"batches/{number}"
        return {"name": name, "metadata": metadata, "done": ended}

    def ask_for_jobs(self, path: str) -> Response:
        number = path.partition("batches/")[2].partition("?")[0]
        if not number:
            self.pages += 1
            more = {"nextPageToken": "more"} if self.job_fault == "endless-pages" else {}
            listed = [] if more else [self.job(i) for i in range(len(self.jobs))]
            return Response(raw=json.dumps({"operations": listed, **more}))
        self.jobs[int(number)]["polls"] += 1
        return Response(raw=json.dumps(self.job(int(number))))

    def envelope(self, response: Response) -> dict[str, Any]:
        tokens_in, tokens_out = USAGE
        if self.dialect == "openai":
            message = {"role": "assistant", "content": response.text, "refusal": response.refusal}
            finish = "tool_calls" if response.finish == "odd" else response.finish
            choice = {"index": 0, "message": message, "finish_reason": finish}
            usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": sum(USAGE)}
            return {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": response.served or "fake-model",
                "choices": [choice] * response.copies,
                "usage": usage,
            }
        usage = {"promptTokenCount": tokens_in, "candidatesTokenCount": 20, "thoughtsTokenCount": tokens_out - 20}
        finish = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY", "odd": "OTHER"}[response.finish]
        thought = {"text": "hm", "thought": True}
        content = {"role": "model", "parts": [thought, {"text": response.text}] if response.text else []}
        body: dict[str, Any] = {"modelVersion": response.served or "fake-model", "usageMetadata": usage}
        if response.blocked:
            return body | {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}
        return body | {"candidates": [{"content": content, "finishReason": finish}] * response.copies}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.partition("?")[0].endswith("/models"):
            self.fake.looked.append(dict(self.headers))
            self.reply(self.fake.models)
        else:
            self.reply(self.fake.ask_for_jobs(self.path))

    def do_POST(self) -> None:
        key = self.headers.get("x-goog-api-key") or self.headers.get("authorization", "").removeprefix("Bearer ")
        raw = self.rfile.read(int(self.headers["content-length"]))
        if self.path.endswith(":batchGenerateContent"):
            self.reply(self.fake.create_job(raw, key))
        else:
            self.reply(self.fake.respond(raw, key)[0])

    def reply(self, response: Response) -> None:
        if response.drop:
            self.close_connection = True
            self.connection.close()
            return
        raw = response.raw if response.raw is not None else json.dumps(self.fake.envelope(response))
        try:
            self.send_response(response.status)
            self.send_header("content-type", response.type)
            self.send_header("content-length", str(len(raw.encode())))
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw.encode())
        except OSError:
            pass  # the client went away

    def log_message(self, *_: object) -> None:
        pass
