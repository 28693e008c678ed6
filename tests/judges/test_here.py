"""Which judges can be asked here and now: what is there, what is missing, and a server that says what it has."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path

import pytest

from judges.servers import FakeServer, Response, error
from sifm_core import cli
from sifm_core.errors import InputError
from sifm_core.judges import BACKENDS, Backend, here
from sifm_core.judges.models import read_models

KEY = "sk-abcdef-0123456789-very-secret"
KEYS = [key for backend in BACKENDS.values() for key in backend.keys]


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


def offers(*servers: str, **options) -> dict[str, here.Offer]:
    return {offer.name: offer for offer in here.offers(servers, **options)}


def test_what_is_missing_is_named_and_what_is_not_is_usable(monkeypatch):
    found = offers()
    assert {name for name, offer in found.items() if not offer.usable} == {"gemini", "anthropic", "score"}
    assert found["gemini"].missing == ("GEMINI_API_KEY or GOOGLE_API_KEY is not set",)
    assert "a server of your own" in found["openai"].missing[0]
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    found = offers()
    assert found["gemini"].usable and found["gemini"].missing == () and KEY not in repr(found)
    monkeypatch.setenv("GOOGLE_API_KEY", "schlüssel")
    assert not offers()["gemini"].usable and "copy it again" in offers()["gemini"].missing[0]


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    def version(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr("sifm_core.judges.here.metadata.version", version)
    found = offers("http://127.0.0.1:9/v1")
    missing = {name: offer.missing[0] for name, offer in found.items() if not offer.usable}
    assert "editscore" in missing.pop("score")
    assert missing == {name: f"pip install {b.package}" for name, b in BACKENDS.items() if b.package}
    assert found["openai"].servers == (), "it cannot be asked without the package"


def test_missing_weights_of_the_miniatures_judges_are_named(monkeypatch, tmp_path):
    from sifm_core.judges import miniature

    monkeypatch.setattr(miniature.absent, "__defaults__", (tmp_path,))
    assert not offers()["miniature"].usable and "train judges" in offers()["miniature"].missing[0]


def test_a_backend_whose_module_is_broken_costs_its_own_line(monkeypatch):
    monkeypatch.setitem(BACKENDS, "broken", Backend("no.such.module"))
    found = offers()
    assert not found["broken"].usable and "cannot be used: ModuleNotFoundError" in found["broken"].about
    assert found["miniature"].usable


def test_models_stand_with_todays_price_and_their_end(tmp_path):
    listed = {model.name: model for model in offers()["gemini"].models}
    known = read_models()
    assert listed.keys() == {name for provider, name in known.known if provider == "gemini"}
    for name, model in listed.items():
        assert model.price == known.price("gemini", name) is not None
    assert listed["gemini-2.5-pro"].then == "gemini-3.8-flash"
    own = tmp_path / "mine.toml"
    own.write_text("[openai.mine]\ninput = 1\noutput = 2\n[openai.past]\ninput = 1\noutput = 2\nuntil = 2020-01-01\n")
    prices = {model.name: model.price for model in offers(prices=own)["openai"].models}
    assert prices["mine"].output == 2 and prices["past"] is None


def test_a_server_of_this_machine_says_which_models_it_has_and_sees_no_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeServer("openai") as fake:
        assert offers()["openai"].servers == () and fake.looked == [], "not asked, unless asked for"
        (server,) = offers(fake.url)["openai"].servers
    assert server == here.Server(fake.url, ("llava", "qwen2.5vl"))
    assert len(fake.looked) == 1 and KEY not in repr(fake.looked)


WRONG = {
    "refused": (error(401, "who are you"), "who are you"),
    "html": (Response(raw="<html>hi</html>"), "check base_url"),
    "list": (Response(raw="[]"), "check base_url"),
    "odd": (Response(raw='{"data": {"id": 7}}'), "check base_url"),
    "broken": (Response(raw='{"error": "the moon is full"}'), "the moon is full"),
    "moved": (Response(status=302, raw="", headers={"location": "http://evil.example/"}), "no redirect is followed"),
    "gone": (Response(drop=True), ""),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_server_that_names_no_models_says_why(how):
    with FakeServer("openai") as fake:
        fake.models, words = WRONG[how]
        (server,) = offers(fake.url)["openai"].servers
    assert server.models == () and server.problem and words in server.problem


def test_what_a_server_calls_its_models_is_bounded_and_shown():
    names = ["a" * 10_000, "b\x1b[31m", 7, "", None, *(str(i) for i in range(500))]
    with FakeServer("openai") as fake:
        fake.models = Response(raw=json.dumps({"data": [{"id": name} for name in names]}))
        (server,) = offers(fake.url)["openai"].servers
    assert len(server.models) < 200 and len(server.models[0]) == 300 and "\x1b" not in repr(server.models[1])[1:-1]


@pytest.mark.parametrize(
    "address", ["http://example.org/v1", "https://127.0.0.1.evil.example", "ollama", "http://[::2]/"]
)
def test_servers_elsewhere_are_not_asked(address, capsys):
    with pytest.raises(InputError, match="only those of this machine"):
        offers(address)
    assert cli.main(["judges", "--server", address]) == 2
    assert capsys.readouterr().err.startswith("sifm: --server: only those of this machine")


def test_the_command_lists_them_all(capsys):
    with FakeServer("openai") as fake:
        assert cli.main(["judges", "--server", fake.url]) == 0
        shown = capsys.readouterr().out
        assert cli.main(["judges", "--server", fake.url, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document["judges"]) == list(BACKENDS) and document["prices_read"] == str(read_models().read)
    assert f"{fake.url}: llava, qwen2.5vl" in shown and "-> GEMINI_API_KEY or GOOGLE_API_KEY is not set" in shown
    assert re.search(r"gemini-3\.5-flash-lite +fast +\$ 0\.30 in, 2\.50 out\n", shown)
    assert re.search(r"gemini-2\.5-pro .*end(s|ed) on 2026-12-01, then gemini-3\.8-flash answers", shown)


def test_the_page_has_every_backend_with_its_keys_and_its_package():
    page = (Path(__file__).parents[2] / "docs" / "judges.md").read_text()
    rows = {row.split(":")[0].strip("| `"): row for row in page.splitlines() if row.startswith("| `")}
    for name, backend in BACKENDS.items():
        needed = [*backend.keys[:1], *([f"pip install {backend.package}"] if backend.remote else [])]
        assert all(one in rows[name] for one in needed), name
