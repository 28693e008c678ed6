"""The sidebar's routes: what they give, and everything they must refuse."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from dataclasses import asdict, replace

import pytest

import fakes
from sifm_core.judges import load_judge
from sifm_core.store import Store
from sifm_core.types import Case, Metric, Record, Verdict

web = pytest.importorskip("aiohttp.web", reason="ComfyUI's aiohttp")
RUN = "0123456789ab"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user folder with one run of two pictures, unprotected and protected; and a secret beside it."""
    import nodes.routes

    monkeypatch.setattr(nodes.routes, "home", lambda: tmp_path / "sifm")
    monkeypatch.setattr(nodes._store, "home", lambda: tmp_path / "sifm")
    monkeypatch.setattr(nodes._shown, "home", lambda: tmp_path / "sifm")
    (tmp_path / "secret.png").write_text("secret")
    with Store(tmp_path / "sifm" / "runs" / RUN) as store:
        for i in range(2):
            source, edited, other = (store.put_image(fakes.images(1, 24, seed=3 * i + k)) for k in range(3))
            verdict = Verdict("a", "ok", False, False)
            record = Record(f"k{i}", f"p{i}", "portrait", "p", "original", "e", "clean", 0, 0, source, source, edited)
            record = replace(record, verdicts=(verdict,), info={"instruction": "p"})
            store.put_record(record)
            metrics, failed = {"psnr": Metric(9.0, "d")}, (replace(verdict, semantic_mismatch=True),)
            changes = {"key": f"s{i}", "method": "SIFM", "edited": other, "metrics": metrics, "verdicts": failed}
            store.put_record(replace(record, **changes, info={"instruction": "p", "protection": "sifm"}))
    return tmp_path / "sifm"


def ask(*calls):
    """(status, body) of each (method, path, headers, data), on one server."""
    from aiohttp.test_utils import TestClient, TestServer

    from nodes.routes import register

    async def run():
        table = web.RouteTableDef()
        register(table)
        app = web.Application()
        app.add_routes(table)
        async with TestClient(TestServer(app)) as client:
            found = []
            for method, path, headers, data in calls:
                async with client.request(method, path, headers=headers, data=data) as answer:
                    body = await answer.read()
                    found.append((answer.status, json.loads(body) if answer.content_type.endswith("json") else body))
            return found

    return asyncio.run(run())


def routes(method: str) -> list[str]:
    """The pack's own, so that no test forgets one."""
    from nodes.routes import register

    register(table := web.RouteTableDef())
    return [route.path for route in table if route.method == method]


def get(path, **headers):
    return ask(("GET", path, headers, None))[0]


JSON = {"Content-Type": "application/json"}


def answer(case: str, mismatch="yes", degraded="no", who="Anna", **more) -> tuple:
    said = {"case": case, "annotator": who, "semantic_mismatch": mismatch, "perceptual_degradation": degraded}
    return ("POST", "/sifm/annotations", JSON, json.dumps(said | more))


def test_runs_are_listed_and_shown_with_their_tables(home):
    (home / "runs" / "not-a-run").mkdir()
    status, runs = get("/sifm/runs")
    assert status == 200 and [run["id"] for run in runs] == [RUN] and runs[0]["methods"] == ["clean", "SIFM"]
    status, run = get(f"/sifm/runs/{RUN}")
    assert run["blocks"][0]["rates"]["ISR"] == ["0% (0/2)", "100% (2/2)"] and "2 of 2" in run["headline"]
    assert [record["failed"] for record in run["records"]] == [False, True] * 2
    assert [record["said"][0]["word"] for record in run["records"]] == ["works", "mismatch"] * 2
    assert all(Verdict(**verdict) for record in run["records"] for verdict in record["verdicts"]), (
        "as `sifm queue` reads"
    )
    assert run["blocks"][0]["failures"]["mismatch only"] == ["0", "2"] and run["blocks"][0]["categories"] == {}
    status, png = get(f"/sifm/runs/{RUN}/pictures/{run['records'][0]['source']}")
    assert status == 200 and png.startswith(b"\x89PNG")


def test_a_run_says_how_far_its_judges_can_be_trusted_and_where_the_edits_fail(home):
    from sifm_core.controls import controls, keep
    from sifm_core.judges.calibration import calibrate
    from toy import ToyEditor, ToyJudge, samples

    (said,) = get(f"/sifm/runs/{RUN}")[1]["trust"]
    assert "Not known of a" in said and "sifm calibrate" in said
    known = replace(calibrate(ToyJudge("low", 0.1), controls(samples(2), ToyEditor())), judge="a")
    with Store(home / "runs" / RUN) as store:
        keep(store, known)
        store.put_record(replace(next(store.records()), key="other", image="p9", category="artwork"))
    run = get(f"/sifm/runs/{RUN}")[1]
    assert run["trust"] == [known.sentence()]
    assert list(run["blocks"][0]["categories"]) == ["attacked picture", "portrait", "artwork"]


def test_a_damaged_run_costs_only_its_own_line(home):
    (home / "runs" / ("f" * 12)).mkdir()
    (home / "runs" / ("f" * 12) / "run.sqlite").write_text("no database")
    runs = get("/sifm/runs")[1]
    assert len(runs) == 2 and sum("error" in run for run in runs) == 1


OUTSIDE = [
    "/sifm/runs/..%2f..",
    "/sifm/runs/../../secret.png",
    f"/sifm/runs/{RUN}/pictures/..%2f..%2f..%2f..%2fsecret.png",
    f"/sifm/runs/{RUN}/pictures/%2fetc%2fpasswd",
    f"/sifm/runs/{RUN}/pictures/{'0' * 64}",
    f"/sifm/runs/{RUN}/pictures/{'0' * 63}",
    "/sifm/runs/ffffffffffff",
    "/sifm/runs/0123456789AB",
    f"/sifm/runs/{RUN}%00",
    "/sifm/runs/..%2f../cases?annotator=anna",
    f"/sifm/runs/..%2f{RUN}/cases?annotator=anna",
    f"/sifm/runs/..%2f..%2fsifm%2fruns%2f{RUN}/pictures/{'0' * 64}",
    f"/sifm/runs/{'0' * 4000}",
    f"/sifm/runs/{RUN}/pictures/{'0' * 4000}",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_outside_the_runs_can_be_read(home, path):
    from yarl import URL

    status, body = ask(("GET", URL(path, encoded=True), {}, None))[0]
    assert status == 404 and b"secret" not in (body if isinstance(body, bytes) else json.dumps(body).encode())


def test_another_pages_requests_are_refused(home):
    picture = get(f"/sifm/runs/{RUN}")[1]["records"][0]["source"]
    paths = [path.format(run=RUN, picture=picture, workflow="0" * 36) + "?annotator=anna" for path in routes("GET")]
    assert len(paths) == 6 and {get(path)[0] for path in paths} == {200}
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        assert {get(path, **headers)[0] for path in paths} == {403}
        method, path, _, data = answer("0" * 16)
        assert ask((method, path, JSON | headers, data))[0][0] == 403
    assert not (home / "annotations.jsonl").exists()


def test_sizes_are_told_and_only_what_nobody_paid_for_is_cleared(home):
    assert get("/sifm/storage")[1]["parts"]["runs"] > 0
    for body, status in (
        ({"clear": "runs"}, 200),
        ({"clear": "judges.sqlite"}, 400),
        ({"limit": 2}, 200),
        ({"limit": "x"}, 400),
    ):
        assert ask(("POST", "/sifm/storage", JSON, json.dumps(body)))[0][0] == status
    told = get("/sifm/storage")[1]
    assert told["parts"]["runs"] == 0 and told["limit"] == 2


BODIES = {
    "not JSON": (JSON, "{", 400),
    "a list": (JSON, "[]", 400),
    "empty": (JSON, "", 400),
    "deep": (JSON, "[" * 2000, 400),
    "a form": ({"Content-Type": "application/x-www-form-urlencoded"}, "case=1", 415),
    "plain text": ({"Content-Type": "text/plain"}, "{}", 415),
    "oversized": (JSON, json.dumps({"note": "x" * 5000}), 413),
    "no case": (JSON, "{}", 400),
}


@pytest.mark.parametrize("name", BODIES)
def test_malformed_and_oversized_bodies_are_refused(home, name):
    headers, data, expected = BODIES[name]
    assert ask(("POST", "/sifm/annotations", headers, data))[0][0] == expected
    assert not (home / "annotations.jsonl").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"case": "../../x"},
        {"case": "0" * 15},
        {"who": ""},
        {"who": "a/b"},
        {"who": "x" * 41},
        {"mismatch": "maybe"},
        {"mismatch": None},
        {"mismatch": ["yes"]},
        {"note": "x" * 501},
        {"note": 3},
    ],
)
def test_answers_that_are_none_are_refused(home, change):
    assert ask(answer(**({"case": "0" * 16} | change)))[0][0] == 400
    assert not (home / "annotations.jsonl").exists()


@pytest.mark.parametrize("name", ["", "../../x", "a/b", "x" * 41, "a%00b", "%0a"])
def test_a_list_of_cases_needs_the_name_of_a_person(home, name):
    from yarl import URL

    path = URL(f"/sifm/runs/{RUN}/cases?annotator={name}", encoded=True)
    assert ask(("GET", path, {}, None))[0][0] == 400


def test_a_long_body_that_hides_its_length_is_refused(home):
    async def body():
        for _ in range(64):
            yield b'{"note": "' + b"x" * 1000

    assert ask(("POST", "/sifm/annotations", JSON, body()))[0][0] == 400
    assert not (home / "annotations.jsonl").exists()


def test_changes_need_post_and_nothing_else_can_be_posted_to(home):
    assert get("/sifm/annotations")[0] == 405 and routes("POST") == ["/sifm/annotations", "/sifm/storage"]
    for path in sorted({*routes("GET")} - {"/sifm/storage"}):
        named = path.format(run=RUN, picture="0" * 64, workflow="0" * 36)
        assert {ask((method, named, JSON, "{}"))[0][0] for method in ("POST", "PUT", "DELETE")} == {405}


def test_people_see_every_edit_once_blind_in_an_order_of_their_own_and_feed_the_human_judge(home):
    path = f"/sifm/runs/{RUN}/cases?annotator="
    (_, anna), (_, ben) = ask(("GET", path + "Anna", {}, None), ("GET", path + "chen", {}, None))
    assert anna["total"] == len(anna["cases"]) == 4
    assert {frozenset(case) for case in anna["cases"]} == {frozenset({"case", "prompt", "source", "edited"})}
    orders = {tuple(c["case"] for c in get(f"{path}p{i}")[1]["cases"]) for i in range(6)}
    assert len(orders) > 1 and get(path + "anna")[1] == anna
    first, second = anna["cases"][:2]
    ask(answer(first["case"]), answer(second["case"], "?", "?"), answer(first["case"], "no", "yes"))
    left = get(path + "anna")[1]["cases"]
    assert len(left) == 2 and first not in left and len(get(path + "ben")[1]["cases"]) == 4
    with Store(home / "runs" / RUN, create=False) as store:
        cases = [Case(*(store.get_image(c[k])[0] for k in ("source", "edited")), c["prompt"]) for c in (first, second)]
    verdicts = load_judge(f"human:{home / 'annotations.jsonl'}#anna").judge(cases)
    assert [(v.state, v.semantic_mismatch, v.perceptual_degradation) for v in verdicts] == [
        ("ok", False, True),
        ("refused", None, None),
    ]
    assert ben["total"] == 4


def test_the_judge_finds_a_person_by_the_name_that_was_typed_into_the_sidebar(comfy, home, monkeypatch):
    import nodes.judge

    monkeypatch.setattr(nodes.judge, "home", lambda: home)
    assert ask(answer("0" * 16, who=" Anna "))[0][0] == 200
    assert nodes.judge.load("human", " Anna ").name == "human:anna"


# ---- one odd thing costs one thing


ODD = {
    "no record": "[]",
    "an empty one": "{}",
    "a field of another version": "later",
    "no JSON": "{",
    "half a character": "torn",
}


@pytest.mark.parametrize("name", ODD)
def test_one_odd_record_costs_its_own_place_and_its_runs_line_says_so(home, name):
    with Store(home / "runs" / ("e" * 12)) as store:
        store.put_record(replace(next(iter(Store(home / "runs" / RUN).records())), key="whole"))
    text = ODD[name]
    if text in ("later", "torn"):
        verdict = asdict(Verdict("a", "ok")) | ({"certainty": 1} if text == "later" else {"reasons": "a\ud800b"})
        record = Record("k", "p", "", "p", "original", "e", "clean", 0, 0, "", "", "")
        text = json.dumps(asdict(record) | {"verdicts": [verdict]})
    with sqlite3.connect(home / "runs" / ("e" * 12) / "run.sqlite") as db:
        db.execute("INSERT INTO records (key, json) VALUES ('odd', ?)", (text,))
    status, runs = get("/sifm/runs")
    known = {run["id"]: run for run in runs}
    assert status == 200 and "error" not in known[RUN] and known[RUN]["records"] == 4
    assert ("1 record cannot be read" in known["e" * 12].get("error", "")) is (name != "half a character")
    status, run = get(f"/sifm/runs/{'e' * 12}")
    assert status == 200 and run["records"][0]["key"] == "whole"
    assert any("cannot be read" in said for said in run["reading"]) is (name != "half a character")


def test_a_damaged_picture_is_shown_to_nobody_and_the_others_are(home):
    with Store(home / "runs" / RUN) as store:
        edited = [record.edited for record in store.records()]
    next((home / "runs" / RUN).rglob(f"{edited[0]}.png")).write_bytes(b"torn")
    status, found = get(f"/sifm/runs/{RUN}/cases?annotator=anna")
    assert status == 200 and {case["edited"] for case in found["cases"]} == set(edited[1:])


def test_a_body_may_come_in_pieces(home):
    async def slowly():
        text = answer("0" * 16, note="as slow as one likes")[3].encode()
        for i in range(0, len(text), 7):
            yield text[i : i + 7]
            await asyncio.sleep(0.001)

    assert ask(("POST", "/sifm/annotations", JSON, slowly()))[0] == (200, {"ok": True})


FOREIGN = ["evil.example", "evil.example:8188", "127.0.0.1.evil.example", "localhost.evil.example:80", "1.2.3", ""]
LOCAL = ["localhost:8188", "127.0.0.1", "[::1]:8188", "192.168.0.7:80", "workstation", "workstation.local:8188"]


@pytest.mark.parametrize("host", FOREIGN)
def test_a_page_whose_name_points_here_is_another_page(home, monkeypatch, host):
    for headers in ({}, {"Origin": f"http://{host}"}, {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}):
        status, body = get("/sifm/runs", Host=host, **headers)
        assert status in (400, 403) and "records" not in str(body)
        method, path, _, data = answer("0" * 16)
        assert ask((method, path, JSON | {"Host": host} | headers, data))[0][0] in (400, 403)
    monkeypatch.setenv("SIFM_HOSTS", "comfy.example, evil.example")
    assert (get("/sifm/runs", Host=host)[0] == 200) is (host.partition(":")[0] == "evil.example")


@pytest.mark.parametrize("host", LOCAL)
def test_local_names_and_addresses_are_answered(home, host):
    assert get("/sifm/runs", Host=host, Origin=f"http://{host}")[0] == 200
