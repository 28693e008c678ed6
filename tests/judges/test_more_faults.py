# ruff: noqa: E501 one case, one line
"""What providers and servers really say when something is wrong, and answers that are almost right: what is told of each.

Each case names what the person sees. Nothing here is made of the combinations of :mod:`judges.hostile`.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import replace

import pytest

from judges.hostile import ANSWER, KEY, Fault, Server, envelope
from judges.servers import QUALITY, SEMANTIC, case
from sifm_core.errors import InputError, JudgeError
from sifm_core.judges import load_judge
from sifm_core.judges.models import read_models

TABLE = "".join(f'[{name}."m"]\ninput = 1.0\noutput = 1.0\n' for name in ("gemini", "openai", "anthropic"))


@pytest.fixture(scope="module")
def server():
    with Server() as fake:
        yield fake


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    for name in ("GEMINI_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, KEY)
    (tmp_path / "prices.toml").write_text(TABLE)


def told(server, tmp_path, backend, send, **options):
    """The verdict on one case, and how often the server was asked."""
    server.faults, before = [Fault("x", send)], len(server.heard)
    address = server.url if backend == "gemini" else f"{server.url}/v1"
    quick = {"preset": "paper", "first_delay": 0.0, "attempts": 2, "prices": tmp_path / "prices.toml", **options}
    (verdict,) = load_judge(f"{backend}:m@{address}", **quick).judge([replace(case("x"), prompt="fault 0")])
    return verdict, len(server.heard) - before


def says(status, body, **headers):
    text = body if isinstance(body, str) else json.dumps(body)
    return lambda h: h.answer(text, status=status, headers=headers or None)


def google(code, message, status="", details=()):
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


def openai(message, kind="invalid_request_error", code=None, param=None):
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def claude(kind, message):
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def gemini_candidate(finish, *parts, **more):
    counts = {"promptTokenCount": 700, "candidatesTokenCount": 9}
    return {"modelVersion": "m", "candidates": [{"content": {"parts": list(parts)}, "finishReason": finish, **more}],
            "usageMetadata": counts}  # fmt: skip


def chat(content, finish="stop", **message):
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return {"id": "x", "model": "m", "choices": [choice], "usage": {"prompt_tokens": 700, "completion_tokens": 90}}


AGAIN, ONCE, LADDER = 2, 1, 3
"""How often a server is asked: again, because that may help; once; or for each way of asking for an answer's form."""
SAID = {
    # Google's words
    "gemini: no such key": ("gemini", says(400, google(400, "API key not valid. Please pass a valid API key.")), "missing_key", "the key was refused (HTTP 400: API key not valid", ONCE),
    "gemini: key of another project": ("gemini", says(403, google(403, "Generative Language API has not been used in project 1", "PERMISSION_DENIED")), "missing_key", "has not been used in project", ONCE),
    "gemini: a country": ("gemini", says(400, google(400, "User location is not supported for the API use.", "FAILED_PRECONDITION")), "error", "User location is not supported", ONCE),
    "gemini: unknown model": ("gemini", says(404, google(404, "models/m is not found for API version v1beta", "NOT_FOUND")), "error", "HTTP 404: models/m is not found", ONCE),
    "gemini: quota of the day": ("gemini", says(429, google(429, "You exceeded your current quota, please check your plan", "RESOURCE_EXHAUSTED")), "unreachable", "You exceeded your current quota", AGAIN),
    "gemini: overloaded": ("gemini", says(503, google(503, "The model is overloaded. Please try again later.", "UNAVAILABLE")), "unreachable", "The model is overloaded", AGAIN),
    "gemini: internal": ("gemini", says(500, google(500, "An internal error has occurred.", "INTERNAL")), "unreachable", "An internal error has occurred", AGAIN),
    "gemini: deadline": ("gemini", says(504, google(504, "Deadline expired before operation could complete.")), "unreachable", "Deadline expired", AGAIN),
    "gemini: no picture": ("gemini", says(400, google(400, "Unable to process input image. Please retry or report")), "error", "Unable to process input image", ONCE),
    "gemini: too long": ("gemini", says(400, google(400, "The input token count (2000000) exceeds the maximum number of tokens allowed")), "error", "exceeds the maximum number of tokens", ONCE),
    "gemini: too large": ("gemini", says(413, "<html><title>Error 413 (Request Entity Too Large)!!1</title></html>"), "error", "HTTP 413: Error 413 (Request Entity Too Large)!!1", ONCE),
    "gemini: billing is off": ("gemini", says(403, google(403, "This API method requires billing to be enabled.")), "missing_key", "requires billing to be enabled", ONCE),
    "gemini: thought until the limit": ("gemini", says(200, gemini_candidate("MAX_TOKENS")), "truncated", "the answer ran into max_output_tokens, thinking included", ONCE),
    "gemini: safety": ("gemini", says(200, gemini_candidate("SAFETY", safetyRatings=[])), "blocked", "the answer was blocked: SAFETY", ONCE),
    "gemini: picture's safety": ("gemini", says(200, gemini_candidate("IMAGE_SAFETY")), "blocked", "the answer was blocked: IMAGE_SAFETY", ONCE),
    "gemini: recitation": ("gemini", says(200, gemini_candidate("RECITATION")), "blocked", "the answer was blocked: RECITATION", ONCE),
    "gemini: a tool nobody offered": ("gemini", says(200, gemini_candidate("UNEXPECTED_TOOL_CALL")), "error", "the model stopped for UNEXPECTED_TOOL_CALL", ONCE),
    "gemini: malformed by itself": ("gemini", says(200, gemini_candidate("MALFORMED_RESPONSE", {"text": ANSWER})), "error", "the model stopped for MALFORMED_RESPONSE", ONCE),
    "gemini: prompt blocked": ("gemini", says(200, {"promptFeedback": {"blockReason": "OTHER"}, "usageMetadata": {"promptTokenCount": 9}}), "blocked", "the prompt was blocked: OTHER", ONCE),
    "gemini: nobody answers": ("gemini", says(200, {"usageMetadata": {"promptTokenCount": 9}}), "error", "no candidate came back", ONCE),
    "gemini: a thought alone": ("gemini", says(200, gemini_candidate("STOP", {"text": ANSWER, "thought": True})), "unparsable", "the answer is empty", ONCE),
    "gemini: a picture in answer": ("gemini", says(200, gemini_candidate("STOP", {"inlineData": {"mimeType": "image/png", "data": "AA=="}})), "unparsable", "the answer is empty", ONCE),
    # OpenAI's words
    "openai: no such key": ("openai", says(401, openai("Incorrect API key provided.", code="invalid_api_key")), "missing_key", "Incorrect API key provided", ONCE),
    "openai: out of money": ("openai", says(429, openai("You exceeded your current quota, please check your plan and billing details.", "insufficient_quota", "insufficient_quota")), "error", "check your plan and billing", ONCE),
    "openai: slower": ("openai", says(429, openai("Rate limit reached for m", "tokens", "rate_limit_exceeded")), "unreachable", "Rate limit reached for m", AGAIN),
    "openai: not for this account": ("openai", says(404, openai("The model `m` does not exist or you do not have access to it.", code="model_not_found")), "error", "you do not have access to it", ONCE),
    "openai: not verified": ("openai", says(403, openai("Your organization must be verified to use the model `m`.")), "missing_key", "Your organization must be verified", ONCE),
    "openai: a picture it cannot read": ("openai", says(400, openai("You uploaded an unsupported image.", code="invalid_image_format")), "error", "You uploaded an unsupported image", LADDER),
    "openai: context": ("openai", says(400, openai("This model's maximum context length is 8192 tokens.", code="context_length_exceeded")), "error", "maximum context length is 8192", LADDER),
    "openai: policy": ("openai", says(400, openai("Your request was rejected by our safety system.", code="moderation_blocked")), "error", "rejected by our safety system", LADDER),
    "openai: at work": ("openai", says(503, openai("The engine is currently overloaded, please try again later")), "unreachable", "The engine is currently overloaded", AGAIN),
    "openai: filtered": ("openai", says(200, chat("", "content_filter")), "blocked", "the answer was blocked: content_filter", ONCE),
    "openai: it will not": ("openai", says(200, chat(None, refusal="I can't help with that.")), "refused", "the model refused: I can't help with that.", ONCE),
    "openai: thought until the limit": ("openai", says(200, chat("", "length")), "truncated", "the answer ran into max_output_tokens", ONCE),
    "openai: a tool call": ("openai", says(200, chat(None, "tool_calls", tool_calls=[{"id": "1"}])), "error", "the model stopped for tool_calls", ONCE),
    "openai: answered by voice": ("openai", says(200, chat(None, audio={"data": "AA==", "transcript": ANSWER})), "unparsable", "the answer is empty", ONCE),
    "azure: content filter": ("openai", says(400, openai("The response was filtered due to the prompt triggering Azure OpenAI's content management policy.", code="content_filter")), "error", "content management policy", LADDER),
    "azure: no deployment": ("openai", says(404, openai("The API deployment for this resource does not exist.", code="DeploymentNotFound")), "error", "The API deployment for this resource does not exist", ONCE),
    "openrouter: no credits": ("openai", says(402, {"error": {"message": "Insufficient credits.", "code": 402}, "user_id": "u"}), "error", "HTTP 402: Insufficient credits.", ONCE),
    "openrouter: as 200": ("openai", says(200, {"error": {"message": "Provider returned error", "code": 502}}), "unreachable", "Provider returned error", AGAIN),
    "openrouter: in the choice": ("openai", says(200, {"model": "m", "choices": [{"finish_reason": "error", "error": {"message": "Upstream idle timeout", "code": 504}, "message": {"content": ANSWER}}]}), "error", "the model stopped for an error: Upstream idle timeout", ONCE),
    "groq: json it could not make": ("openai", says(400, openai("Failed to generate JSON. Please adjust your prompt.", code="json_validate_failed")), "error", "Failed to generate JSON", LADDER),
    "mistral: in its own form": ("openai", says(422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}), "error", "Extra inputs are not permitted", LADDER),
    "together: in words": ("openai", says(400, {"error": "The model m cannot take images"}), "error", "The model m cannot take images", LADDER),
    "a gateway: bad": ("openai", says(502, "<html><head><title>502 Bad Gateway</title></head><body><center><h1>502 Bad Gateway</h1></center><hr><center>nginx</center></body></html>"), "unreachable", "502 Bad Gateway nginx", AGAIN),
    "a gateway: cloudflare": ("openai", says(524, "error code: 524"), "unreachable", "HTTP 524: error code: 524", AGAIN),
    "a gateway: too large": ("openai", says(413, "<h1>413 Request Entity Too Large</h1>"), "error", "413 Request Entity Too Large", ONCE),
    # Anthropic's words
    "anthropic: no such key": ("anthropic", says(401, claude("authentication_error", "invalid x-api-key")), "missing_key", "invalid x-api-key", ONCE),
    "anthropic: not permitted": ("anthropic", says(403, claude("permission_error", "Your API key does not have permission to use the specified resource.")), "missing_key", "does not have permission", ONCE),
    "anthropic: out of money": ("anthropic", says(400, claude("invalid_request_error", "Your credit balance is too low to access the Anthropic API.")), "error", "Your credit balance is too low", LADDER),
    "anthropic: unknown model": ("anthropic", says(404, claude("not_found_error", "model: m")), "error", "HTTP 404: model: m", ONCE),
    "anthropic: too large": ("anthropic", says(413, claude("request_too_large", "Request exceeds the maximum size")), "error", "Request exceeds the maximum size", ONCE),
    "anthropic: picture too large": ("anthropic", says(400, claude("invalid_request_error", "messages.0.content.1.image.source.base64: image exceeds 5 MB maximum")), "error", "image exceeds 5 MB maximum", LADDER),
    "anthropic: slower": ("anthropic", says(429, claude("rate_limit_error", "This request would exceed your organization's rate limit")), "unreachable", "rate limit", AGAIN),
    "anthropic: overloaded": ("anthropic", says(529, claude("overloaded_error", "Overloaded")), "unreachable", "HTTP 529: Overloaded", AGAIN),
    "anthropic: internal": ("anthropic", says(500, claude("api_error", "Internal server error")), "unreachable", "Internal server error", AGAIN),
    "anthropic: timed out": ("anthropic", says(504, claude("timeout_error", "Request timed out")), "unreachable", "Request timed out", AGAIN),
    "anthropic: it will not": ("anthropic", says(200, chat("", "refusal")), "refused", "the model refused", ONCE),
    "anthropic: too long": ("anthropic", says(200, chat(ANSWER[:50], "max_tokens")), "truncated", "the answer ran into max_output_tokens", ONCE),
    "anthropic: an error as 200": ("anthropic", says(200, claude("overloaded_error", "Overloaded")), "error", "the server reports an error: Overloaded", ONCE),
    # Somebody else answers
    "anthropic's own dialect": ("anthropic", says(200, {"type": "message", "role": "assistant", "content": [{"type": "text", "text": ANSWER}], "stop_reason": "end_turn"}), "unreachable", "something other than a chat completion; check base_url", AGAIN - 1),
    "openai's responses": ("openai", says(200, {"object": "response", "output": [{"type": "message", "content": [{"type": "output_text", "text": ANSWER}]}]}), "unreachable", "something other than a chat completion", ONCE),
    "gemini's dialect at openai's address": ("openai", says(200, envelope("gemini", ANSWER)), "unreachable", "something other than a chat completion", ONCE),
    "openai's dialect at gemini's address": ("gemini", says(200, envelope("openai", ANSWER)), "unreachable", "not Gemini's; check base_url", ONCE),
    "ollama's own dialect": ("openai", says(200, {"model": "m", "message": {"role": "assistant", "content": ANSWER}, "done": True}), "unreachable", "something other than a chat completion", ONCE),
    "ollama's front door": ("openai", says(404, "404 page not found"), "error", "HTTP 404: 404 page not found", ONCE),
    "lm studio's front door": ("openai", says(200, {"error": "Unexpected endpoint or method. (POST /chat/completions)"}), "error", "Unexpected endpoint or method", ONCE),
    "a page of a single-page application": ("openai", says(200, "<!doctype html><html><body><div id=root></div></body></html>"), "unreachable", "something other than a chat completion", ONCE),
    "comfyui": ("openai", says(405, "405: Method Not Allowed", allow="GET"), "error", "HTTP 405: 405: Method Not Allowed", ONCE),
    "a hotel's network": ("openai", says(302, "", location="http://login.hotel/"), "error", "it sends to http://login.hotel/, and no redirect is followed", ONCE),
    "http at an https port": ("openai", says(400, "Client sent an HTTP request to an HTTPS server."), "error", "Client sent an HTTP request to an HTTPS server.", LADDER),
    "a stream that nobody asked for": ("openai", says(200, f"data: {json.dumps(chat(ANSWER))}\n\ndata: [DONE]\n\n"), "unreachable", "something other than a chat completion", ONCE),
    "lines of json": ("openai", says(200, json.dumps(chat(ANSWER)) + "\n" + json.dumps(chat(ANSWER))), "unreachable", "something other than a chat completion", ONCE),
    "nothing at all": ("openai", says(200, ""), "unreachable", "something other than a chat completion", ONCE),
    "a number": ("openai", says(200, "42"), "unreachable", "something other than a chat completion", ONCE),
    "no content": ("openai", says(204, ""), "unreachable", "something other than a chat completion", ONCE),
}  # fmt: skip


@pytest.mark.parametrize("what", SAID)
def test_the_words_of_whoever_answered_are_what_is_told(server, tmp_path, what):
    backend, send, state, words, calls = SAID[what]
    verdict, asked = told(server, tmp_path, backend, send)
    assert (verdict.state, verdict.success, verdict.semantic_mismatch) == (state, None, None), verdict.reasons
    assert words in verdict.reasons and KEY[:8] not in repr(verdict)
    assert asked == calls, "again only where that may help"


def almost(question, **changes):
    whole = SEMANTIC if question == "semantic" else QUALITY
    return {name: value for name, value in (whole | changes).items() if value is not ...}


CHECKS = {
    "semantic": [n for n in SEMANTIC if SEMANTIC[n] == "yes"],
    "quality": [n for n in QUALITY if QUALITY[n] == "yes"],
}
ALMOST = {
    **{f"{q}: {c} is no, and a success": (almost(q, **{c: "no"}), f'"{c}" is "no", yet the verdict is "success"')
       for q, checks in CHECKS.items() for c in checks},
    **{f"{q}: {n} is missing": (almost(q, **{n: ...}), f"{n}: Field required")
       for q, whole in (("semantic", SEMANTIC), ("quality", QUALITY)) for n in whole},
    **{f"{q}: all is well, and a failure": (almost(q, verdict="failure"), 'every check is "yes", yet the verdict is "failure"')
       for q in CHECKS},
    "quality: usable, and a failure": (almost("quality", verdict="failure", surfaces_clean="no"), '"usable" is "yes", yet'),
    **{f"semantic: sure to {odd!r}": (almost("semantic", confidence=odd), "confidence: Input should be")
       for odd in (1.01, -0.1, "0.9", None, True, [0.9])},
    **{f"semantic: a check of {odd!r}": (almost("semantic", rest_preserved=odd), "rest_preserved: Input should be 'yes', 'partial' or 'no'")
       for odd in ("Yes", "n/a", "", True, None, 1)},
    **{f"quality: a verdict of {odd!r}": (almost("quality", verdict=odd), "verdict: Input should be 'success', 'failure' or 'cannot_judge'")
       for odd in ("Success", "fail", "", False, None)},
    **{f"semantic: defects of {type(odd).__name__}": (almost("semantic", defects=odd), "defects")
       for odd in ("none", {}, None, [1], [["a"]])},
    "semantic: more than was asked": (almost("semantic", score=7), "score: Extra inputs are not permitted"),
}  # fmt: skip


@pytest.mark.parametrize("what", ALMOST)
def test_an_answer_that_is_almost_one_is_none_and_the_field_is_named(server, tmp_path, what):
    answer, words = ALMOST[what]
    question = what.partition(":")[0]

    def send(h):
        semantic = b"technical quality" not in server.heard[-1][2]
        wrong = semantic is (question == "semantic")
        good = SEMANTIC if semantic else QUALITY
        h.answer(json.dumps(chat(json.dumps(answer if wrong else good))))

    verdict, _ = told(server, tmp_path, "openai", send, preset="two_calls")
    assert (verdict.state, verdict.success) == ("unparsable", None)
    assert f"{question}-1: " in verdict.reasons and words in verdict.reasons


TABLES = {
    "no toml": ("[gemini", "expected prices as in"),
    "no table": ("gemini = 3\n", "expected prices as in"),
    "no model": ("[gemini]\nm = 3\n", "expected prices as in"),
    "a negative price": ('[gemini."m"]\ninput = -1\noutput = 1\n', "input"),
    "no number": ('[gemini."m"]\ninput = nan\noutput = 1\n', "input"),
    "without end": ('[gemini."m"]\ninput = 1\noutput = inf\n', "output"),
    "a price in words": ('[gemini."m"]\ninput = "cheap"\noutput = 1\n', "input"),
    "half a price": ('[gemini."m"]\ninput = 1\n', "output"),
    "jobs that cost more": ('[gemini."m"]\ninput = 1\noutput = 1\nbatch = 2\n', "batch"),
    "pictures of a million tokens": ('[gemini."m"]\ninput = 1\noutput = 1\nimage_tokens = 2000000\n', "image_tokens"),
    "half a token": ('[gemini."m"]\ninput = 1\noutput = 1\nimage_tokens = 0.5\n', "image_tokens"),
    "prices that are none": ('[gemini."m"]\nprices = 3\n', "expected prices as in"),
    "a day in words": ('[gemini."m"]\ninput = 1\noutput = 1\nuntil = "soon"\n', "until"),
    "an end in words": ('[gemini."m"]\ninput = 1\noutput = 1\nends = "soon"\n', "ends"),
    "settings in a list": ('[gemini."m"]\ninput = 1\noutput = 1\ntakes = ["seed"]\n', "takes"),
    "an unknown role": ('[gemini."m"]\ninput = 1\noutput = 1\nrole = "best"\n', "role"),
    "a word that nobody knows": ('[gemini."m"]\ninput = 1\noutput = 1\nprice = 3\n', "price"),
    "families that are none": ("[families]\nGemini = 3\n", "Gemini"),
    "bytes": (b"\xff\xfe\x00", "expected prices as in"),
}


@pytest.mark.parametrize("what", TABLES)
def test_a_table_of_ones_own_that_is_none_is_refused_by_its_name(tmp_path, what):
    text, words = TABLES[what]
    own = tmp_path / "mine.toml"
    own.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"mine\.toml: expected prices as in") as refused:
        read_models(own)
    assert words in str(refused.value) and "Traceback" not in str(refused.value)


@pytest.mark.parametrize("where", ["nowhere.toml", "."])
def test_a_table_that_cannot_be_read_is_named(tmp_path, where):
    with pytest.raises(InputError, match="expected prices as in"):
        read_models(tmp_path / where)


@pytest.mark.parametrize("days, known", [(-1, False), (0, True), (1, True)])
def test_a_price_that_no_longer_holds_holds_no_cap(server, tmp_path, days, known):
    until = datetime.date.today() + datetime.timedelta(days)
    (tmp_path / "prices.toml").write_text(f'[openai."m"]\ninput = 1.0\noutput = 1.0\nuntil = {until}\n')
    options = {"prices": tmp_path / "prices.toml", "max_cost": 1.0}
    if known:
        assert load_judge(f"openai:m@{server.url}/v1", **options).max_cost == 1.0
    else:
        with pytest.raises(JudgeError, match="max_cost needs a price to hold: none is known for openai model 'm'"):
            load_judge(f"openai:m@{server.url}/v1", **options)


def test_there_are_more_than_a_hundred_of_them():
    assert len(SAID) + len(ALMOST) + len(TABLES) > 130
