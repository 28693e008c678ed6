"""Models by generation: what each is asked with, what it costs on which day, and who answers in its place."""

from __future__ import annotations

import datetime
import json
import re
import sqlite3
import warnings
from pathlib import Path

import pytest

from judges.servers import BEHAVIOURS, USAGE, FakeServer, Request, Response, case, error, refusal
from sifm_core.bench import config
from sifm_core.errors import InputError, JudgeError
from sifm_core.judges import load_judge
from sifm_core.judges.models import family_of, read_models, same_model

pytestmark = pytest.mark.filterwarnings("ignore:.*other model's", "ignore:.*switched off")
HOSTED = [(provider, name) for provider, name in read_models().known if provider != "gemini"]
KEY = "sk-abcdef-0123456789-very-secret"
MODELS = read_models()
GEMINIS = [name for provider, name in MODELS.known if provider == "gemini"]
SETTINGS = {"temperature", "seed", "topP", "topK", "thinkingConfig", "mediaResolution"}
WORKS, DIES, NEW_YEAR = datetime.date(2026, 11, 30), datetime.date(2026, 12, 1), datetime.date(2027, 1, 1)


def asked(request: Request) -> dict:
    """The settings of a request, thinking spelt out; Gemini reads both ways of writing a name."""
    config = request.body["generationConfig"]
    found = {name: config[name] for name in SETTINGS & config.keys()}
    thinking = found.pop("thinkingConfig", {})
    return found | {re.sub("_(.)", lambda m: m[1].upper(), name): value for name, value in thinking.items()}


def second(request: Request) -> Response:
    """A 2.5, in its own words."""
    if "thinkingLevel" in asked(request):
        return error(400, "Thinking level is not supported for this model.")
    return Response(request.answer(), served="gemini-2.5-pro")


def third(request: Request) -> Response:
    """A 3.8, in its own words and those that are announced."""
    given = asked(request)
    for name in ("temperature", "topP", "topK", "seed"):
        if name in given:
            return error(400, f"Parameter '{name}' is not supported for this model.")
    if "thinkingBudget" in given:
        return error(400, "Unable to submit request because thinking_budget is not supported by this model.")
    if given.get("thinkingLevel") == "MINIMAL":
        return error(
            400, "'minimal' is not a supported thinking level for this model. Allowed values are: medium, low, high."
        )
    return Response(request.answer(), served="gemini-3.8-flash")


def hosted(request: Request) -> Response:
    """A GPT-6 or a Claude of 2026: a judge that thinks takes no sampling settings, and each its own limit of tokens."""
    for name in ("temperature", "seed", "top_p"):
        if name in request.body:
            return refusal(f"Unsupported parameter: '{name}' is not supported with this model.", name)
    return Response(request.answer(), served=request.body["model"])


def mute(request: Request) -> Response:
    """One that refuses a picture's resolution, and does not say so."""
    if "mediaResolution" in asked(request):
        return error(400, "Request contains an invalid argument.")
    return Response(request.answer(), served="gemini-9-flash")


@pytest.fixture(autouse=True)
def here(monkeypatch):
    for name in ("GEMINI_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setitem(BEHAVIOURS, "hosted", hosted)
    monkeypatch.setitem(BEHAVIOURS, "second", second)
    monkeypatch.setitem(BEHAVIOURS, "third", third)
    monkeypatch.setitem(BEHAVIOURS, "mute", mute)
    on(monkeypatch, WORKS)


@pytest.fixture
def server():
    with FakeServer("gemini") as fake:
        yield fake


def on(monkeypatch, day: datetime.date) -> None:
    class Date(datetime.date):
        @classmethod
        def today(cls):
            return day

    monkeypatch.setattr("sifm_core.judges.models.datetime.date", Date)


def judge_for(fake: FakeServer, model: str, **options):
    return load_judge(f"gemini:{model}@{fake.url}", **({"first_delay": 0.01, "concurrency": 1} | options))


@pytest.mark.parametrize("model", GEMINIS)
def test_a_listed_model_is_asked_with_what_its_generation_takes(server, model):
    generation = "second" if model.startswith("gemini-2.") else "third"
    (verdict,) = judge_for(server, model).judge([case(generation)])
    if model != "gemini-3.1-pro-preview":  # which takes a temperature, unlike this server
        assert len(server.requests) == 2 and "asked without" not in verdict.reasons, "nothing was refused"
    level, budget = ("thinkingLevel" in asked(server.requests[-1]), "thinkingBudget" in asked(server.requests[-1]))
    assert verdict.state == "ok" and (level, budget) == (generation == "third", generation == "second")


@pytest.mark.parametrize("provider, model", HOSTED)
def test_a_listed_model_of_another_family_is_asked_with_what_it_takes(provider, model):
    with FakeServer("openai") as fake:
        judge = load_judge(
            f"{provider}:{model}@{fake.url}", first_delay=0.01, max_cost=1.0 if MODELS.price(provider, model) else None
        )
        (verdict,) = judge.judge([case("hosted")])
    assert verdict.state == "ok" and verdict.judge == f"{provider}:{model}@{fake.url}"
    known = MODELS.of(provider, model)
    if known.takes is not None:
        assert len(fake.requests) == 2 and "asked without" not in verdict.reasons, "nothing was refused"
        assert {name: r.body.get(name) for r in fake.requests for name in known.takes} == dict(known.takes)
    price = MODELS.price(provider, model)
    assert verdict.cost == (pytest.approx(2 * price.cost(*USAGE)) if price else None)
    assert all(price.most_tokens("", 2) > 2 * 1100 for price in known.prices), "two pictures of 1024 pixels fit"


def test_each_provider_is_asked_at_its_own_address_with_its_own_key_and_what_ends_warns(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-0123456789-secret")
    claude = load_judge("anthropic:claude-opus-5-5")
    assert (claude.client.base_url, claude.client.key) == ("https://api.anthropic.com/v1", "sk-ant-0123456789-secret")
    assert claude.name == "anthropic:claude-opus-5-5" and claude.client.config == {"max_output_tokens": 8192}
    with pytest.warns(UserWarning, match="gpt-5 will be switched off on 2026-12-11; from then on nothing answers"):
        assert load_judge("openai:gpt-5").client.base_url == "https://api.openai.com/v1"
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(JudgeError, match="ANTHROPIC_API_KEY"):
        load_judge("anthropic:claude-opus-5-5")


@pytest.mark.parametrize(
    "family, names",
    {
        "Gemini": ["gemini-3.8-flash", "gemma-3-4b-it", "google/gemma4"],
        "GPT": ["gpt-6.1-sol", "openai/gpt-oss-120b", "chatgpt-latest"],
        "Claude": ["claude-opus-5-5", "anthropic/claude-haiku-5.5"],
        "Qwen": ["Qwen/Qwen3-VL-8B-Instruct", "qwen2.5vl:7b", "EditScore-7B", "TIGER-Lab/EditReward-Qwen2.5-VL-7B",
                 "Qwen2_5_VLForConditionalGeneration", "/models/judge@qwen3_vl", "qwen2.5vl@http://gpt.example/v1"],
        "Mistral": ["Mistral3ForConditionalGeneration", "pixtral-12b"],
        "": ["conv@a29f2d6a121e", "CLIPTextModel", "T5EncoderModel", "/home/qwen/judge", "", "morphic"],
    }.items(),
)  # fmt: skip
def test_a_models_name_tells_its_family(family, names):
    assert {name: family_of(name) for name in names} == dict.fromkeys(names, family)
    assert family_of("", "nobody", *names[:1]) == family, "the first name that tells"


def test_what_older_models_are_asked_is_what_they_were_asked_so_that_paid_answers_are_found(server):
    config = {"temperature": 0.0, "seed": 0, "thinking_budget": 1024, "max_output_tokens": 8192}
    for model in ("gemini-2.5-pro", "gemini-2.5-flash", "gemini-2.5-pro-002"):
        assert judge_for(server, model).client.config == config


def test_a_model_that_nobody_listed_gets_the_least(server):
    (verdict,) = judge_for(server, "gemini-9-flash").judge([case("ok")])
    assert verdict.state == "ok" and [asked(r) for r in server.requests] == [{}, {}]


@pytest.mark.parametrize("model", ["gemini-3.8-flash", "gemini-9-flash"])
def test_a_refused_level_is_dropped_once_remembered_and_kept_with_the_verdict(server, model, tmp_path):
    judge = judge_for(server, model, thinking_level="minimal", cache=tmp_path / "c.sqlite")
    verdicts = judge.judge([case("third"), case("third 2")])
    levels = [asked(r).get("thinkingLevel") for r in server.requests]
    assert levels == ["MINIMAL", None, None, None, None], "one refusal for two verdicts of two questions"
    said = f"asked without thinking_level, which {model} refuses\n"
    assert all(v.state == "ok" and said in v.reasons for v in verdicts)
    kept = (
        sqlite3.connect(tmp_path / "c.sqlite").execute("SELECT reply FROM calls WHERE status = 'answered'").fetchall()
    )
    assert len(kept) == 4 and all(json.loads(row[0])["unsent"] == ["thinking_level"] for row in kept)
    replayed = judge_for(server, model, thinking_level="minimal", cache=tmp_path / "c.sqlite", offline=True)
    assert replayed.judge([case("third"), case("third 2")]) == verdicts


def test_what_a_listed_model_does_not_take_is_not_even_tried(server):
    (verdict,) = judge_for(server, "gemini-3.8-flash", seed=7, thinking_budget=512).judge([case("third")])
    assert len(server.requests) == 2 and asked(server.requests[0])["thinkingLevel"] == "LOW"
    assert verdict.reasons.startswith("asked without seed and thinking_budget, which gemini-3.8-flash refuses\n")
    first, other = (judge_for(server, "gemini-3.8-flash", seed=seed) for seed in (7, 8))
    assert first.served != other.served, "two draws are two, though the model cannot be told so"


def test_a_level_goes_to_an_older_model_as_its_budget(server):
    (verdict,) = judge_for(server, "gemini-2.5-flash", thinking_level="high").judge([case("second")])
    assert asked(server.requests[0])["thinkingBudget"] == 1024 and len(server.requests) == 2
    assert verdict.reasons.startswith("gemini-2.5-flash was asked for, but gemini-2.5-pro answered"), "families differ"
    assert "asked without thinking_level, which gemini-2.5-flash refuses" in verdict.reasons


def test_a_refusal_that_names_no_setting_is_answered_with_the_least_and_said_to_be_one(server):
    given = {"thinking_level": "low", "media_resolution": "high"}
    first, again = judge_for(server, "gemini-9-flash", **given).judge([case("mute"), case("mute 2")])
    assert [bool(asked(r)) for r in server.requests] == [True, False, False, False, False]
    said = "asked without thinking_level and media_resolution, which gemini-9-flash refuses, without saying which\n"
    assert first.reasons.startswith(said) and again.reasons.startswith(said)


def test_a_request_that_is_refused_with_the_least_too_has_no_answer_and_teaches_nothing(server, monkeypatch):
    monkeypatch.setitem(BEHAVIOURS, "never", lambda r: error(400, "Request contains an invalid argument."))
    never, works = judge_for(server, "gemini-9-flash", seed=1).judge([case("never"), case("ok")])
    assert (never.state, works.state) == ("error", "ok") and "invalid argument" in never.reasons
    assert [asked(r) for r in server.requests] == [{"seed": 1}, {}, {"seed": 1}, {"seed": 1}]


def test_jobs_carry_what_the_model_takes_and_say_what_not(server):
    options = {"batch": True, "patience": 60, "temperature": 0.5}
    (verdict,) = judge_for(server, "gemini-3.8-flash", **options).judge([case("third")])
    assert verdict.state == "ok" and len(server.jobs) == 1
    assert verdict.reasons.startswith("asked without temperature, which gemini-3.8-flash refuses\n")


@pytest.mark.parametrize("wrong", [{"thinking_level": "hard"}, {"media_resolution": "ultra"}])
def test_levels_are_words_that_models_know(server, wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))}.*'(hard|ultra)'"):
        judge_for(server, "gemini-3.8-flash", **wrong)
    with pytest.raises(InputError, match="thinking_budget or a thinking_level"):
        judge_for(server, "gemini-3.8-flash", thinking_budget=1, thinking_level="low")


def test_a_price_is_that_of_the_day_and_of_the_model_that_answers_then():
    def price(model, day):
        found = MODELS.price("gemini", model, day)
        return found and (found.input, found.output)

    assert price("gemini-2.5-pro", WORKS) == (1.25, 10.0)
    assert price("gemini-2.5-pro", DIES) == price("gemini-3.8-flash", DIES) == (0.75, 3.75)
    assert price("gemini-2.5-pro-002", NEW_YEAR) == price("gemini-3.8-flash", NEW_YEAR) == (1.5, 7.5)
    assert price("gemini-2.5-flash", DIES) == price("gemini-3.5-flash-lite", DIES) == (0.3, 2.5)
    assert price("gemini-3.8", DIES) is price("gemini-9-flash", DIES) is None


@pytest.mark.parametrize("day, dollars", [(datetime.date(2026, 12, 30), 3.75), (datetime.date(2026, 12, 31), 7.5)])
def test_the_cap_reserves_what_a_call_may_cost_that_is_charged_after_midnight(server, monkeypatch, day, dollars):
    on(monkeypatch, day)
    parts = ["", ""]
    judge = judge_for(server, "gemini-3.8-flash", max_cost=1.0)
    assert judge._at_most(parts) == pytest.approx((1000 * dollars / 5 + 8192 * dollars) / 1e6)


@pytest.mark.parametrize("day", [WORKS, DIES])
def test_a_routed_model_costs_what_the_one_costs_that_answered(server, monkeypatch, day):
    on(monkeypatch, day)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (verdict,) = judge_for(server, "gemini-2.5-pro", max_cost=1.0).judge([case("second-then-third")])
    said = [str(w.message) for w in caught]
    assert any("gemini-2.5-pro was asked for, but gemini-3.8-flash answered" in one for one in said)
    when = "was" if day == DIES else "will be"
    off = f"gemini-2.5-pro {when} switched off on 2026-12-01; from then on gemini-3.8-flash answers in its place"
    assert sum(one.startswith(off) for one in said) == 1
    assert verdict.cost == pytest.approx(2 * (USAGE[0] * 0.75 + USAGE[1] * 3.75) / 1e6)
    assert (verdict.model_requested, verdict.model_served) == ("gemini-2.5-pro", "gemini-3.8-flash")


BEHAVIOURS["second-then-third"] = lambda r: Response(r.answer(), served="gemini-3.8-flash")


@pytest.mark.parametrize(
    "requested, served, same",
    [
        ("gemini-flash-latest", "gemini-3.8-flash", True),
        ("gemini-flash-latest", "gemini-3.8-flash-001", True),
        ("gemini-flash-latest", "gemini-3.5-flash-lite", False),
        ("gemini-flash-lite-latest", "gemini-3.5-flash-lite", True),
        ("gemini-pro-latest", "gemini-3.8-flash", False),
        ("gemini-pro-latest", "gemini-3.1-pro-preview", True),
        ("gemini-3.5-flash", "gemini-3.5-flash-lite", False),
        ("gemini-3.8-flash", "gemini-3.7-flash", False),
        ("llava-latest", "llava-3", False),
        ("miniature:conv", "conv@a29f2d6a121e", True),
        ("miniature:conv", "patch@471d573a5a89", False),
    ],
)
def test_families_are_told_apart(requested, served, same):
    assert same_model(requested, served) is same


def test_a_table_of_ones_own_says_what_a_model_takes(server, tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text('[gemini.gemini-9-flash]\ninput = 1\noutput = 2\ntakes = { seed = 3, media_resolution = "low" }\n')
    judge_for(server, "gemini-9-flash", prices=own).judge([case("ok")])
    assert asked(server.requests[0]) == {"seed": 3, "mediaResolution": "MEDIA_RESOLUTION_LOW"}
    own.write_text("[gemini.m]\ninput = 1\noutput = 2\ntakes = { seed = 3 }\nend = 2026-12-01\n")
    with pytest.raises(InputError, match=r"mine\.toml: expected prices as in .*'end'"):
        judge_for(server, "m", prices=own)


# ---- what we name


HORIZON = datetime.timedelta(30)
"""So long before a model ends, nothing may name it any more."""
ROOT = Path(__file__).parents[2]
NAMING = [
    "README.md", "docs/**/*.md", "web/**/*.md", "web/**/*.js", "workflows/**/*.json", "workflows/*.py",
    "nodes/*.py", "locales/**/*.json", "sifm_core/**/*.toml", "sifm_core/**/*.py", "benchmarks/*.py",
]  # fmt: skip
EXPLAINED = re.compile(r"\bpaper's\b|\bthe paper\b")
"""A paragraph or a line of code that says these are the paper's models may name them."""
TABLE = Path("sifm_core/judges/models.toml")
PROVIDERS = {provider for provider, _ in MODELS.known}


def names_of(path: str, text: str) -> set[str]:
    """The hosted models that a file names other than as the paper's."""
    parts = re.split(r"\n\s*\n", text) if path.endswith(".md") else text.splitlines()
    said = "\n".join(part for part in parts if not EXPLAINED.search(part))
    return set(re.findall(r"\b(?:gemini-\d[\w.]*(?:-\w+)+|gpt-\d[\w.]*(?:-[a-z]\w*)*|claude-\w+-\d+(?:-\d+)?)", said))


def wrong(names: set[str], day: datetime.date) -> set[str]:
    """Those that are not listed, or have ended by then."""
    found = {name: [known for provider in PROVIDERS if (known := MODELS.of(provider, name))] for name in names}
    return {name for name, known in found.items() if not known or known[0].ended(day)}


def test_nothing_names_a_model_that_has_ended_or_soon_will():
    paths = {path for pattern in NAMING for path in ROOT.glob(pattern)} - {ROOT / TABLE}
    found = {str(path.relative_to(ROOT)): names_of(path.name, path.read_text()) for path in paths}
    soon = datetime.datetime.now().date() + HORIZON
    assert {path: bad for path, names in found.items() if (bad := wrong(names, soon))} == {}
    assert {"README.md", "workflows/Paper table 3, methods on InstructPix2Pix.json"} <= {
        p for p, names in found.items() if names
    }


def test_a_model_that_has_ended_or_that_nobody_listed_is_found_where_it_is_named():
    text = 'ask gemini:gemini-2.5-pro-002 or "gemini-3.5-flash"\n\nthe paper\'s: gemini-2.5-flash\n\ngemini-9-flash'
    assert names_of("a.md", text) == {"gemini-2.5-pro-002", "gemini-3.5-flash", "gemini-9-flash"}
    others = "openai:gpt-5, gpt-6.1-sol or claude-sonnet-4-5; claude-opus-5-5."
    assert names_of("a.md", others) == {"gpt-5", "gpt-6.1-sol", "claude-sonnet-4-5", "claude-opus-5-5"}
    assert wrong(names_of("a.md", others), NEW_YEAR) == {"gpt-5", "claude-sonnet-4-5"}
    assert wrong(names_of("a.md", text), DIES) == {"gemini-2.5-pro-002", "gemini-9-flash"}
    assert wrong(names_of("a.md", text), WORKS) == {"gemini-9-flash"}


def test_the_readme_and_the_workflows_ask_the_strong_and_the_fast_model():
    strong, fast = (MODELS.role("gemini", role) for role in ("strong", "fast"))
    assert f"--judge gemini:{strong} --judge gemini:{fast}" in (ROOT / "README.md").read_text()
    for path in sorted((ROOT / "workflows" / "api").glob("paper_table*.json")):
        assert names_of(path.name, path.read_text()) == {strong, fast}, path


def test_the_profile_paper_keeps_the_papers_judges_and_says_what_became_of_them():
    presets = sorted((ROOT / "sifm_core/bench/presets").glob("*.toml"))
    assert presets
    for path in presets:
        judges = config.load(path.stem, "paper").settings.judges
        assert judges == ("gemini:gemini-2.5-pro", "gemini:gemini-2.5-flash")
        assert "docs/judges.md" in next(line for line in path.read_text().splitlines() if judges[0] in line)
    page = (ROOT / "docs" / "judges.md").read_text()
    for judge in judges:
        model = MODELS.of("gemini", judge.partition(":")[2])
        assert all(said in page for said in (judge.partition(":")[2], model.then, f"{model.ends:%-d %B %Y}"))


def test_every_model_that_ends_is_followed_by_one_that_is_listed_and_stays():
    for name, model in MODELS.known.items():
        assert not model.then or not MODELS.of(name[0], model.then).ends, name
        assert (model.prices or model.ends) and all(
            one.until is None or any(o.since and o.since > one.until for o in model.prices) for one in model.prices
        ), f"{name}: a price that ends is followed by another"
