"""Which server a workflow's judge may ask, with which key, and when it is asked again."""

from __future__ import annotations

import pytest

from sifm_core.errors import InputError

pytestmark = pytest.mark.usefixtures("comfy")

KEY = "sk-marker"


@pytest.fixture
def load(monkeypatch):
    """The nodes' way to a judge, with two keys on the server; returns what the engine is asked for."""
    import nodes.judge

    for name in ("OPENAI_API_KEY", "MY_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.setenv(name, KEY)
    for name in ("OPENAI_BASE_URL", "MY_BASE_URL", "GEMINI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(nodes.judge, "load_judge", lambda spec, **options: (spec, options["base_url"]))

    def load(base_url: str, variable: str = "OPENAI_API_KEY", model: str = "m"):
        return nodes.judge.load("openai", model, base_url, key_variable=variable)

    return load


@pytest.mark.parametrize("judge", ["gemini", "openai"])
def test_a_judge_over_a_network_is_asked_in_every_run(judge):
    """ComfyUI compares fingerprints inside tuples, where the same NaN is equal to itself."""
    from nodes.judge import SifmMllmJudge

    first, second = (SifmMllmJudge.fingerprint_inputs({"judge": judge, "model": "m"}) for _ in range(2))
    assert (first,) != (second,)


@pytest.mark.parametrize("url", ["http://127.0.0.1:11434/v1", "http://localhost/v1", "https://[::1]:8000"])
def test_any_key_may_go_to_this_machine(load, url):
    assert load(f" {url} ", "MY_API_KEY") == ("openai:m", url)


ELSEWHERE = [
    "http://evil.example/v1",
    "http://127.0.0.1.evil.example/v1",
    "http://localhost.evil.example",
    "http://127.0.0.1\\.evil.example/v1",
    "http://[::1].evil.example",
    "https://evil.example/127.0.0.1/",
    "https://api.openai.com.evil.example/v1",
    "https://api.openai.com:8443/v1",
    "http://api.openai.com/v1",
]


@pytest.mark.parametrize("url", ELSEWHERE)
@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "MY_API_KEY", "GEMINI_API_KEY"])
def test_a_workflow_cannot_send_a_key_to_a_host_of_its_choice(load, url, variable):
    with pytest.raises(InputError, match=variable.replace("API_KEY", "BASE_URL")) as caught:
        load(url, variable)
    assert KEY not in str(caught.value)


def test_a_key_goes_to_the_host_that_the_environment_names(load, monkeypatch):
    assert load("") == ("openai:m", "") and load("https://api.openai.com/v1")
    with pytest.raises(InputError, match=r"MY_BASE_URL=https://api\.openai\.com"):
        load("", "MY_API_KEY")
    monkeypatch.setenv("MY_BASE_URL", "https://llm.example:8000/api")
    assert load("https://LLM.example:8000/v1", "MY_API_KEY")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://llm.example/v1")
    assert load("https://llm.example/v1")
    with pytest.raises(InputError, match="OPENAI_BASE_URL"):
        load("")


def test_without_a_key_any_server_may_be_asked(load, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " ")
    assert load("http://lan.example:11434/v1") == ("openai:m", "http://lan.example:11434/v1")


@pytest.mark.parametrize("address", ["localhost:11434/v1", "HTTP://localhost:11434/v1"])
def test_an_address_without_its_scheme_does_not_mean_openai(load, address):
    with pytest.raises(InputError, match="expected http"):
        load(address)


def test_every_judge_over_a_network_is_offered_by_both_nodes_and_saved_choices_stay():
    from nodes.judge import SifmMllmJudge
    from nodes.prompts import SifmUnseenPrompts
    from sifm_core.judges import BACKENDS

    remote = {name for name, backend in BACKENDS.items() if backend.remote}
    for node, name, others in (
        (SifmMllmJudge, "judge", {"miniature", "clip", "human"}),
        (SifmUnseenPrompts, "source", {"templates"}),
    ):
        (combo,) = (one for one in node.define_schema().inputs if one.id == name)
        options = {option.key: [one.id for one in option.inputs] for option in combo.options}
        assert remote | others <= options.keys()
        caption = ["caption"] * (name == "source")
        assert options["gemini"] == options["anthropic"] == ["model", *caption, "max_cost"]
        assert options["openai"] == ["model", *caption, "base_url", "key_variable", "max_cost"]


def test_a_key_may_go_to_its_own_providers_address_alone(load, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    assert load("https://api.anthropic.com/v1", "ANTHROPIC_API_KEY")
    for variable, url in (("OPENAI_API_KEY", "https://api.anthropic.com/v1"), ("ANTHROPIC_API_KEY", "")):
        with pytest.raises(InputError, match=variable.replace("API_KEY", "BASE_URL")):
            load(url, variable)


@pytest.mark.parametrize("judge", ["gemini", "openai"])
def test_no_address_hides_in_a_models_name(judge, monkeypatch):
    from nodes.judge import load

    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(InputError, match="http://"):
        load(judge, "m@http://evil.example/v1", key_variable="OPENAI_API_KEY")


def test_both_nodes_refuse_before_anything_is_sent(load):
    import torch

    from nodes.judge import SifmMllmJudge
    from nodes.prompts import SifmUnseenPrompts

    evil = {"model": "m", "base_url": "http://evil.example/v1", "key_variable": "MY_API_KEY", "max_cost": 0.0}
    picture = torch.zeros(1, 8, 8, 3)
    with pytest.raises(InputError, match=r"MY_BASE_URL=http://evil\.example"):
        SifmMllmJudge.execute(picture, "x", picture, {"judge": "openai", **evil})
    with pytest.raises(InputError, match=r"MY_BASE_URL=http://evil\.example"):
        SifmUnseenPrompts.execute("x", "any", 1, 0, {"source": "openai", "caption": "", **evil})
