"""Servers of one's own: llama.cpp itself on a tiny Qwen3-VL, and the words of it, Ollama, vLLM and LM Studio."""

from __future__ import annotations

import json
import math
import urllib.request
import warnings

import pytest

from judges.servers import PAPER, FakeServer, Response, case
from sifm_core.judges import load_judge
from sifm_core.judges.models import same_model
from sifm_core.judges.openai_compatible import models_of

pytestmark = pytest.mark.filterwarnings("ignore:.*other model's")


@pytest.fixture(autouse=True)
def keyless(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


# ---- llama.cpp


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(address with pictures, address without them, the folder of the same weights for transformers)."""
    pytest.importorskip("gguf", reason="llama.cpp is not tried: pip install .[llama]")
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is not tried: pip install .[llama]")
    from judges.tiny_gguf import write_gguf
    from judges.tiny_qwen import write_qwen

    thinks = "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}"
    folder = write_qwen(tmp_path_factory.mktemp("qwen"), opening=thinks)
    model, projector = write_gguf(folder, tmp_path_factory.mktemp("gguf"))
    servers = []
    for pictures in (True, False):
        params = xllamacpp.CommonParams()
        params.model.path, params.mmproj.path = str(model), str(projector) if pictures else ""
        params.n_ctx, params.warmup, params.verbosity = 8192, False, 0
        params.cpuparams.n_threads = params.n_threads_http = params.n_parallel = 1
        params.image_min_tokens = params.image_max_tokens = 4  # as the folder's own processor
        servers.append(xllamacpp.Server(params))
    seeing, blind = (f"{server.listening_address}/v1" for server in servers)
    yield seeing, blind, folder
    del servers


def ask(spec, prompts=("make it night",), **options):
    judge = load_judge(spec, **{"attempts": 3, "first_delay": 0.0, "concurrency": 1, **options})
    return judge.judge([case(prompt, seed=seed, size=64) for seed, prompt in enumerate(prompts)])


def test_llama_cpp_ranks_answers_about_pictures_as_transformers_does(llama):
    seeing, _, folder = llama
    prompts = ("make it night", "add fog", "paint it")
    theirs = ask(f"openai:model@{seeing}", prompts, preset="ranked")
    ours = ask(f"transformers:{folder}", prompts, device="cpu")
    assert {v.state for v in (*theirs, *ours)} == {"ok"}
    for one, other in zip(theirs, ours, strict=True):
        for axis in ("semantic_mismatch", "perceptual_degradation"):
            assert one.scores[axis]["value"] == pytest.approx(other.scores[axis]["value"], abs=0.05)
        masses = [[json.loads(text)["mass"] for text in json.loads(v.raw)] for v in (one, other)]
        assert masses[0] == pytest.approx(masses[1], rel=0.15) and max(masses[0]) < 0.02, "neither word is likely"
    assert len({v.scores["semantic_mismatch"]["value"] for v in theirs}) == 3
    assert theirs[0].model_served.endswith("model.gguf") and theirs[0].cost == 0.0


def test_llama_cpp_is_held_to_the_schema_and_an_answer_that_was_cut_off_says_so(llama):
    seeing, _, _ = llama
    (verdict,) = ask(f"openai:model@{seeing}", preset="paper", max_output_tokens=300)
    (said,) = json.loads(verdict.raw)
    assert verdict.state in ("ok", "refused", "truncated")
    assert said.startswith('{"semantic_analysis"') and '"semantic_mismatch"' in said
    (cut,) = ask(f"openai:model@{seeing}", preset="two_calls", max_output_tokens=20)
    assert cut.state in ("truncated", "unparsable") and "max_output_tokens" in cut.reasons and cut.cost == 0.0


def test_llama_cpp_without_its_projector_is_told_by_its_own_words_at_once(llama):
    _, blind, _ = llama
    (verdict,) = ask(f"openai:model@{blind}", preset="paper", first_delay=60.0)
    assert verdict.state == "error" and "takes no pictures (HTTP 500: image input is not supported" in verdict.reasons


def test_llama_cpp_that_ran_out_of_context_says_so(llama):
    seeing, _, _ = llama
    (verdict,) = ask(f"openai:model@{seeing}", ["fog " * 9000], preset="paper", first_delay=60.0)
    assert verdict.state == "error" and "exceeds the available context size (8192 tokens)" in verdict.reasons


def test_llama_cpp_names_its_models_and_answers_under_that_name(llama):
    seeing, _, _ = llama
    (name,) = models_of(seeing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (verdict,) = ask(f"openai:{name}@{seeing}", preset="ranked")
    assert verdict.state == "ok" and "answered" not in verdict.reasons


# ---- in the words of others


def refused(words, status=400):
    return Response(status=status, raw=json.dumps(words))


def completion(content, *, model="qwen3-vl:8b", finish="stop", **message):
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return Response(raw=json.dumps({"model": model, "object": "chat.completion", "choices": [choice]}))


def ranked(request, yes=0.7):
    tokens = [("Yes", math.log(yes)), ("No", math.log(0.9 - yes))]
    listed = [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in tokens]
    choice = {
        "finish_reason": "length",
        "index": 0,
        "message": {"role": "assistant", "content": "Yes"},
        "logprobs": {"content": [listed[0] | {"id": 9454, "top_logprobs": listed[: request["top_logprobs"]]}]},
    }
    return Response(raw=json.dumps({"choices": [choice], "model": "m", "object": "chat.completion", "timings": {}}))


def most(n, words):
    return lambda request: ranked(request) if request.get("top_logprobs", 0) <= n else refused(words(request))


def lm_studio(request):
    kind = request.get("response_format", {}).get("type", "text")
    if kind == "json_object":
        return refused({"error": "'response_format.type' must be 'json_schema' or 'text'"})
    return completion(json.dumps(PAPER), model="qwen/qwen3-vl-8b")


def strict(request):
    if "chat_template_kwargs" in request:
        return refused({"object": "error", "message": {"detail": [{"type": "extra_forbidden"}]}, "code": None}, 422)
    if request.get("top_logprobs", 0) > 20:
        return refused({"error": {"message": "top_logprobs must be between 0 and 20", "type": "invalid_request_error"}})
    return ranked(request)


OK = ("ok", "")
RANKED = {
    "llama.cpp lists any number": (ranked, OK, [1000]),
    "vLLM lists 20": (
        most(20, lambda r: {"error": {"message": f"Requested sample logprobs of {r['top_logprobs']}, which is greater "
                                      "than max allowed: 20", "type": "BadRequestError", "param": None, "code": 400}}),
        OK, [1000, 20],
    ),
    "Ollama lists 20": (
        most(20, lambda r: {"error": {"message": "top_logprobs must be between 0 and 20", "code": None, "param": None,
                                      "type": "invalid_request_error"}}),
        OK, [1000, 20],
    ),
    "LM Studio lists none, and says the word": (
        lambda r: completion("Yes", model="qwen/qwen3-vl-8b", finish="stop"), ("ok", "in words"), [1000],
    ),
    "one that takes no field it does not know": (strict, OK, [1000, 20, 5, 20]),
    "one that thinks all the same": (
        lambda r: completion("", finish="length", reasoning_content="Okay"),
        ("unparsable", "neither yes nor no is what the model said"), [1000],
    ),
}  # fmt: skip
ASKED = {
    "LM Studio knows schemas alone": (lm_studio, OK, 1),
    "Ollama's model without eyes, of old": (
        lambda r: refused({"error": {"message": "this model is missing data required for image input"}}, 500),
        ("error", "the model takes no pictures (HTTP 500: this model is missing data required for image input)"), 1,
    ),
    "Ollama's model without eyes": (
        lambda r: refused({"error": {"message": "this model is missing data required for image input"}}),
        ("error", "HTTP 400: this model is missing data required for image input"), 3,
    ),
    "Ollama without the model": (
        lambda r: refused({"error": {"message": 'model "llava" not found, try pulling it first', "type": "api_error",
                                     "param": None, "code": None}}, 404),
        ("error", 'HTTP 404: model "llava" not found, try pulling it first'), 1,
    ),
    "vLLM's model without eyes": (
        lambda r: refused({"error": {"message": "Qwen/Qwen3-8B is not a multimodal model", "code": 400}}),
        ("error", "HTTP 400: Qwen/Qwen3-8B is not a multimodal model"), 3,
    ),
    "vLLM takes fewer pictures": (
        lambda r: refused({"error": {"message": "At most 1 image(s) may be provided in one prompt.", "code": 400}}),
        ("error", "At most 1 image(s) may be provided in one prompt."), 3,
    ),
    "vLLM is asleep or starting": (
        lambda r: refused({"detail": "Service Unavailable"}, 503), ("unreachable", "HTTP 503: Service Unavailable"), 3,
    ),
    "vLLM's engine has died": (
        lambda r: refused({"error": {"message": "EngineCore encountered an issue.", "code": 500}}, 500),
        ("unreachable", "HTTP 500: EngineCore encountered an issue."), 3,
    ),
    "llama.cpp is loading": (
        lambda r: refused({"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}, 503),
        ("unreachable", "HTTP 503: Loading model"), 3,
    ),
    "llama.cpp cannot read what its model wrote": (
        lambda r: refused({"error": {"code": 500, "message": "The model produced output that does not match the "
                                     "expected peg-native format", "type": "server_error"}}, 500),
        ("unparsable", "which max_output_tokens may have cut off (HTTP 500: The model produced output"), 1,
    ),
    "llama.cpp wants a key": (
        lambda r: refused({"error": {"message": "Invalid API Key", "type": "authentication_error", "code": 401}}, 401),
        ("missing_key", "HTTP 401: Invalid API Key"), 1,
    ),
    "llama.cpp cannot decode the picture": (
        lambda r: refused({"error": {"code": 400, "message": "Failed to load image or audio file",
                                     "type": "invalid_request_error"}}),
        ("error", "Failed to load image or audio file"), 3,
    ),
    "LM Studio has no model": (
        lambda r: refused({"error": {"message": "No models loaded. Please load a model in the developer page or use "
                                     "the `lms load` command.", "type": "invalid_request_error"}}, 404),
        ("error", "HTTP 404: No models loaded. Please load a model"), 1,
    ),
    "thoughts apart, the answer beside": (
        lambda r: completion(json.dumps(PAPER), reasoning_content="Hm.", reasoning="Hm."), OK, 1,
    ),
    "a whole answer among the thoughts": (lambda r: completion("", reasoning=json.dumps(PAPER)), OK, 1),
}  # fmt: skip


def tell(answer, **options):
    with FakeServer("openai") as fake:
        fake.respond = lambda raw, key: (fake.requests.append(json.loads(raw)), (answer(json.loads(raw)), ""))[1]
        (verdict,) = ask(f"openai:m@{fake.url}", **options)
    return verdict, fake.requests


@pytest.mark.parametrize("who", RANKED)
def test_probabilities_are_asked_for_as_each_server_gives_them(who):
    answer, (state, said), asked = RANKED[who]
    verdict, requests = tell(answer, preset="ranked")
    first = [r["top_logprobs"] for r in requests[: len(asked)]]
    assert (verdict.state, first) == (state, asked) and said in verdict.reasons and verdict.cost == 0.0
    assert requests[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert len(requests) == len(asked) + 3 * (state == "ok"), "what a server refuses is remembered"


@pytest.mark.parametrize("who", ASKED)
def test_what_a_server_says_is_told_in_its_words_and_asked_again_only_where_that_may_help(who):
    answer, (state, said), calls = ASKED[who]
    verdict, requests = tell(answer, preset="paper")
    assert (verdict.state, len(requests)) == (state, calls) and said in verdict.reasons
    assert verdict.success is (None if state != "ok" else False) and verdict.cost == 0.0


def test_a_provider_is_asked_nothing_that_it_does_not_document(monkeypatch):
    judge = load_judge("openai:gpt-6.1-sol", preset="ranked", offline=True)
    own = load_judge("openai:m@http://127.0.0.1:1/v1", preset="ranked", offline=True)
    hosted, local = (judge.client._ways(judge.questions[0]) for judge in (judge, own))
    assert "extra_body" not in repr(hosted) and hosted[0]["max_completion_tokens"] == 1
    assert "extra_body" in repr(local) and local[-1] == hosted[-1] == {}


@pytest.mark.parametrize(
    "asked, served, same",
    [
        ("Qwen3-VL-8B-Q4_K_M", "/models/Qwen3-VL-8B-Q4_K_M.gguf", True),
        ("Qwen3-VL-8B-Q4_K_M.gguf", r"C:\models\Qwen3-VL-8B-Q4_K_M.gguf", True),
        ("/models/a.gguf", "/models/a.gguf", True),
        ("a.gguf", "/models/b.gguf", False),
        ("gpt-4o", "/models/Qwen3-VL-8B-Q4_K_M.gguf", False),
        ("models/a", "a", False),
    ],
)
def test_a_file_of_weights_is_the_model_of_its_name(asked, served, same):
    assert same_model(asked, served) is same


def test_the_page_of_models_of_llama_cpp_is_read(llama):
    seeing, _, _ = llama
    with urllib.request.urlopen(f"{seeing}/models") as page:
        assert json.load(page)["data"][0]["architecture"]["input_modalities"][:2] == ["text", "image"]
