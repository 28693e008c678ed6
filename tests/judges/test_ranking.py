"""Ranked answers through an OpenAI-compatible server, as servers give probabilities or not."""

from __future__ import annotations

import json
import math

import pytest

from judges.servers import USAGE, FakeServer, Response, case
from sifm_core.errors import InputError
from sifm_core.judges import load_judge, scores
from sifm_core.judges.ranking import likelihoods
from sifm_core.judges.rubric import Shown, parse


def place(*tokens, said=None):
    """One position of a chat completion's logprobs."""
    listed = [{"token": t, "logprob": p, "bytes": None} for t, p in tokens]
    return {"token": said or tokens[0][0], "logprob": tokens[0][1], "top_logprobs": listed}


def body(content, *places, finish="length", logprobs=...):
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
    if logprobs is not ...:
        choice["logprobs"] = logprobs
    elif places:
        choice["logprobs"] = {"content": list(places)}
    usage = dict(zip(("prompt_tokens", "completion_tokens"), USAGE, strict=True))
    return {"object": "chat.completion", "model": "tiny", "choices": [choice], "usage": usage}


def log(p):
    return math.log(p)


BOTH = place(("Yes", log(0.6)), ("no", log(0.2)), (" yes", log(0.1)), ("The", log(0.05)))
ANSWERS = {
    "both, in several spellings": (body("Yes", BOTH), (0.7 / 0.9, 0.9)),
    "ended by the limit or not": (body("Yes", BOTH, finish="stop"), (0.7 / 0.9, 0.9)),
    "after a line break": (body("\nYes", place(("\n", log(0.9)), ("no", log(0.1))), BOTH), (0.7 / 0.9, 0.9)),
    "one of them is not listed": (
        body("No", place(("No", log(0.7)), ("The", log(0.2)), ("A", log(0.01)))),
        (0.01 / 0.71, 0.71),
    ),
    "something else was likelier": (
        body("The", place(("The", log(0.9)), ("yes", log(0.08)), ("no", log(0.02)))),
        (0.8, 0.1),
    ),
    "impossible": (body("Yes", place(("Yes", 0.0), ("no", -9999.0))), (1.0, 1.0)),
    "in quotes": (body('"yes"', place(('"yes', log(0.5)), ('"no', log(0.5)))), (0.5, 1.0)),
    "no probabilities, the word": (body(" Yes.", finish="stop"), (1.0, None)),
    "probabilities that are null": (body("no", logprobs=None), (0.0, None)),
    "an empty list": (body("NO!", logprobs={"content": []}), (0.0, None)),
    "thought before the word": (body("<think>hm</think>\nyes", finish="stop"), (1.0, None)),
    "probabilities that are none": (body("yes", place(("yes", 3.0), ("no", -1.0))), (1.0, None)),
    "probabilities that are text": (body("yes", place(("yes", "-1"), ("no", -1.0))), (1.0, None)),
}
SILENT = {
    "neither": body("Maybe", place(("Maybe", log(0.9)), ("It", log(0.1)))),
    "prose": body("Yes, the edit is fine.", finish="stop"),
    "nothing": body(""),
    "odd lists": body("", {"token": 7, "top_logprobs": "no"}, [], None),
    "a whole JSON answer": body('{"verdict": "success"}', finish="stop"),
}
ERRORS = {
    "filtered": (body("", finish="content_filter"), "blocked"),
    "refused": (body("", finish="refusal"), "refused"),
    "two choices": ({**body("yes"), "choices": body("yes")["choices"] * 2}, "unparsable"),
}


@pytest.fixture(autouse=True)
def keyless(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def ask(answer, spec="openai:tiny", **options):
    with FakeServer("openai") as fake:
        fake.respond = lambda raw, key: (fake.requests.append(json.loads(raw)), (answer(json.loads(raw)), ""))[1]
        judge = load_judge(f"{spec}@{fake.url}", preset="ranked", first_delay=0.0, concurrency=1, **options)
        (verdict,) = judge.judge([case("x")])
    return verdict, fake.requests


def raw(value):
    return lambda request: Response(raw=json.dumps(value))


@pytest.mark.parametrize("what", ANSWERS)
def test_what_servers_say_of_likelihoods_is_read(what):
    sent, (yes, mass) = ANSWERS[what]
    verdict, requests = ask(raw(sent))
    assert verdict.state == "ok" and len(requests) == 4
    assert all((r["logprobs"], r["top_logprobs"], r["max_tokens"]) == (True, 1000, 1) for r in requests)
    for text in json.loads(verdict.raw):
        answer = json.loads(text)
        assert answer["yes"] == pytest.approx(yes) and answer["mass"] == (mass and pytest.approx(mass))
    assert verdict.semantic_mismatch is verdict.perceptual_degradation is (yes < 0.5)
    assert verdict.scores["semantic_mismatch"] == {"value": pytest.approx(yes), "threshold": 0.5}
    assert verdict.confidence == pytest.approx(max(yes, 1 - yes) * (mass or 1.0)), "8% where else was said, not 80%"
    assert ("in words" in verdict.reasons) is (mass is None)


@pytest.mark.parametrize("what", SILENT)
def test_where_neither_answer_is_there_none_is_made_up(what):
    verdict, _ = ask(raw(SILENT[what]))
    assert (verdict.state, verdict.success, verdict.scores) == ("unparsable", None, {})
    assert "neither yes nor no" in verdict.reasons


@pytest.mark.parametrize("what", ERRORS)
def test_errors_stay_what_they_are(what):
    sent, state = ERRORS[what]
    assert ask(raw(sent))[0].state == state


def test_a_server_that_refuses_so_many_probabilities_is_asked_for_fewer_and_then_for_the_word_alone():
    def answer(request):
        if request.get("top_logprobs", 0) > most:
            return Response(status=400, raw=json.dumps({"error": {"message": f"top_logprobs must be at most {most}"}}))
        return Response(raw=json.dumps(body("yes", BOTH) if "logprobs" in request else body("no", finish="stop")))

    most = 5
    verdict, requests = ask(answer)
    assert [r["top_logprobs"] for r in requests] == [1000, 20, 5, 5, 5, 5] and not verdict.success
    most = 0
    answer_without = [r.get("top_logprobs") for r in ask(answer)[1]]
    assert answer_without == [1000, 20, 5, 20, 5, *[None] * 4]


def test_the_options_stand_in_either_order():
    _, requests = ask(raw(body("yes", BOTH)))
    ends = [r["messages"][0]["content"][-1]["text"] for r in requests]
    assert ['"yes" or "no"' in e for e in ends] == [True, False] * 2 == ['"no" or "yes"' not in e for e in ends]


def test_a_preference_for_what_stands_first_cancels_out():
    def answer(request):
        first = '"yes" or' in request["messages"][0]["content"][-1]["text"]
        return Response(
            raw=json.dumps(body("yes", place(("yes", log(0.9 if first else 0.3)), ("no", log(0.1 if first else 0.7)))))
        )

    verdict, _ = ask(answer)
    assert verdict.scores["semantic_mismatch"]["value"] == pytest.approx(0.6)


def test_thresholds_in_a_servers_models_name_stay_out_of_the_request():
    verdict, requests = ask(raw(body("yes", BOTH)), "openai:tiny#0.8,0.7")
    assert {r["model"] for r in requests} == {"tiny"} and "#0.8,0.7@http" in verdict.judge
    assert (verdict.semantic_mismatch, verdict.perceptual_degradation) == (True, False)


@pytest.mark.parametrize(
    "name, model, thresholds",
    [
        ("m#0.4,0.6", "m", {"semantic_mismatch": 0.4, "perceptual_degradation": 0.6}),
        ("/a#b/m#-1.25", "/a#b/m", {"success": -1.25}),
        *((name, name, {}) for name in ("m", "m#", "m#x", "m#0.4,", "m#1e9", "#0.4", "file.csv#anna", "m#0.4,0.5,0.6")),
    ],
)
def test_thresholds_are_read_from_a_name_and_written_into_it(name, model, thresholds):
    assert scores.parted(name) == (model, thresholds)
    if thresholds:
        assert scores.named(model, thresholds) == scores.named(name, thresholds) == name
    assert scores.named("m#7", {"success": 1 / 3}) == "m#0.3333"


def test_probabilities_that_do_not_fit_together_are_no_answer():
    assert json.loads(likelihoods({"yes": 0.0, "no": 0.0})) == {"yes": 0.5, "no": 0.5, "mass": 0.0}
    for wrong in ('{"yes": 0.9, "no": 0.9, "mass": 1}', '{"yes": 2, "no": -1, "mass": 1}', '{"yes": 1, "no": 0}', "[]"):
        with pytest.raises(ValueError):
            parse(wrong, Shown)
    with pytest.raises(InputError, match="preset"):
        load_judge("openai:m@http://127.0.0.1:1", preset="rankd")
