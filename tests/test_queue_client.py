"""`sifm queue` against a server of ComfyUI's shape that loses connections, forgets, fails and dies."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import fakes
from sifm_core import queue_client as client
from sifm_core.cli import main
from sifm_core.errors import InputError
from sifm_core.images import png_bytes
from sifm_core.store import Store

PICTURE = fakes.images(1, 8)
WIDE = ",".join(str(i) for i in range(1, 301))
GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}, "_meta": {"title": "Your picture"}},
    "2": {"class_type": "SIFM_LoadBenchmark", "inputs": {"start": 0, "count": 4}, "_meta": {"title": "Pictures"}},
    "3": {"class_type": "SIFM_Immunize", "inputs": {"eps": 0.03, "steps": 100, "image": ["1", 0]}, "_meta": {}},
    "4": {"class_type": "SIFM_Immunize", "inputs": {"eps": 0.03, "steps": 100, "image": ["1", 0]}, "_meta": {}},
}


class Fake:
    """A ComfyUI that needs ``work`` seconds per prompt. Its memory dies with it; ``done`` is the test's own count."""

    def __init__(self, port: int = 0, work: float = 0.01) -> None:
        self.work, self.done, self.uploads = work, Counter(), []
        self.lose: Counter = Counter()
        """Path -> how many of the next answers are cut off; "/prompt" after the prompt has arrived."""
        self.outcome = lambda prompt: "success"
        self.gives: dict = {}
        """Node -> what else it shows."""
        self.start(port)

    def start(self, port: int) -> None:
        self.pending: list[tuple[str, dict]] = []
        self.history: dict[str, dict] = {}
        self.alive = True
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, content: bytes, code: int = 200) -> None:
                path = "/" + self.path.split("/")[1]
                if fake.lose[path] > 0:
                    fake.lose[path] -= 1
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(code)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self) -> None:
                parts = self.path.split("/")[1:]
                if parts[0] == "history":
                    entry = fake.history.get(parts[1])
                    self.answer(json.dumps({parts[1]: entry} if entry else {}).encode())
                elif parts[0] == "queue":
                    items = [[0, ticket] for ticket, _ in fake.pending]
                    self.answer(json.dumps({"queue_running": items[:1], "queue_pending": items[1:]}).encode())
                elif parts[0].startswith("view"):
                    self.answer(png_bytes(PICTURE), 404 if "gone" in self.path else 200)
                elif parts[0] == "object_info":
                    self.answer(json.dumps({parts[1]: {"output_node": parts[1] == "LoadImage"}}).encode())
                elif len(parts) == 3:
                    self.answer(json.dumps({"records": [record(parts[2])]}).encode())
                else:
                    self.answer(png_bytes(PICTURE))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/upload/image":
                    fake.uploads.append(body)
                    return self.answer(b"{}")
                sent = json.loads(body)
                if fake.outcome(sent["prompt"]) == "invalid":
                    twice = [{"details": f"{name} - image: no such file"} for name in ("image", "folder")]
                    problem = {"1": {"class_type": "LoadImage", "errors": twice}}
                    return self.answer(json.dumps({"error": {"message": "bad"}, "node_errors": problem}).encode(), 400)
                fake.pending.append((sent["prompt_id"], sent["prompt"]))
                self.answer(b"{}")

            def log_message(self, *args) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        threading.Thread(target=self.execute, args=(self.server,), daemon=True).start()

    def execute(self, server: ThreadingHTTPServer) -> None:
        while self.alive and self.server is server:
            if not self.pending:
                time.sleep(0.002)
                continue
            ticket, prompt = self.pending[0]
            time.sleep(self.work)
            if not (self.alive and self.server is server):
                return
            outcome = self.outcome(prompt)
            messages = {
                "success": [],
                "oom": [["execution_error", {"exception_type": "torch.OutOfMemoryError", "exception_message": "oom"}]],
                "error": [["execution_error", {"node_type": "SIFM_Immunize", "exception_message": "eps is odd"}]],
            }[outcome]
            status = {"status_str": "success" if outcome == "success" else "error", "messages": messages}
            self.history[ticket] = {"status": status, "outputs": {"9": {"sifm_run": [ticket[:8]]}, **self.gives}}
            self.done[json.dumps(prompt, sort_keys=True)] += outcome == "success"
            self.pending.pop(0)

    def kill(self) -> None:
        self.alive = False
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, patience: float = 10) -> client.Server:
        return client.Server(self.url, patience=patience, poll=0.01, timeout=5)


def record(run: str) -> dict:
    picture = PICTURE_NAME
    return {
        "key": run,
        "image": "one",
        "category": "",
        "prompt": "p",
        "prompt_kind": "original",
        "editor": "e",
        "method": "clean",
        "seed": 0,
        "eps": 0.0,
        "failed": None,  # what the sidebar wants to know beside a record's own
        "source": picture,
        "protected": picture,
        "edited": picture,
        "metrics": {"psnr": {"value": 1.0, "definition": "d", "reason": ""}},
        "verdicts": [{"judge": "a", "state": "ok", "semantic_mismatch": True, "perceptual_degradation": False}],
    }


@pytest.fixture(scope="module", autouse=True)
def picture_name(tmp_path_factory):
    global PICTURE_NAME
    with Store(tmp_path_factory.mktemp("name")) as store:
        PICTURE_NAME = store.put_image(PICTURE)


@pytest.fixture
def fake():
    made = Fake()
    yield made
    if made.alive:
        made.kill()


def jobs(n: int) -> list[client.Job]:
    return client.vary(GRAPH, {}, {"3.steps": list(range(1, n + 1))})


def test_every_prompt_is_done_once_and_its_records_and_pictures_are_collected(fake, tmp_path):
    with Store(tmp_path) as store:
        steps = []
        assert client.run(jobs(5), [fake.client()], store, steps.append) == []
        assert [step.i for step in steps] == [1, 2, 3, 4, 5]
        records = list(store.records())
        assert len(records) == 5 and records[0].verdicts[0].semantic_mismatch and records[0].metrics["psnr"].value == 1
        assert store.has_image(records[0].edited)
        assert client.run(jobs(5), [fake.client()], store) == []
    assert set(fake.done.values()) == {1} and len(fake.done) == 5


def test_pictures_texts_and_tables_of_any_node_are_collected_and_what_is_not_there_is_said(fake, tmp_path, capsys):
    def file(name):
        return {"filename": name, "subfolder": "", "type": "temp"}

    fake.gives = {
        "3": {"images": [file("a.png"), file("gone.png")], "text": ["**a table**"], "animated": [False]},
        "4": {"sifm_curve": [{"loss": [1.0]}], "sifm_document": [1]},
        "2": {"b_images": [file("../../b.tar.gz")]},
        "7": [],
    }
    flow = tmp_path / "w.json"
    flow.write_text(json.dumps(GRAPH))
    assert main(["queue", str(flow), "-o", str(tmp_path / "out"), "--server", fake.url]) == 0
    said = capsys.readouterr().out
    (folder,) = (tmp_path / "out" / "outputs").iterdir()
    names = {path.name for path in folder.iterdir()}
    assert names == {"3 SIFM_Immunize 1.png", "3 SIFM_Immunize.md", "4 SIFM_Immunize.json", "2 Pictures 1.gz", "9.json"}
    assert (folder / "3 SIFM_Immunize 1.png").read_bytes() == png_bytes(PICTURE)
    assert json.loads((folder / "4 SIFM_Immunize.json").read_text()) == {"sifm_curve": [{"loss": [1.0]}]}
    assert "1 of 1 prompts done: 1 records, 5 files" in said
    assert "not found: 3 SIFM_Immunize: gone.png" in said and "not found: 1 Your picture: no output" in said


def test_lost_answers_do_not_send_a_prompt_twice(fake, tmp_path):
    for path, times in {"/prompt": 2, "/history": 3, "/queue": 2, "/sifm": 2}.items():
        fake.lose[path] = times
    with Store(tmp_path) as store:
        assert client.run(jobs(4), [fake.client()], store) == []
        assert len(list(store.records())) == 4
    assert set(fake.done.values()) == {1} and len(fake.done) == 4


def test_thirty_prompts_over_two_servers_one_killed_midway_and_restarted(tmp_path):
    steady, shaky = Fake(), Fake()

    def restart() -> None:
        while sum(shaky.done.values()) < 4:
            time.sleep(0.005)
        shaky.kill()
        time.sleep(0.3)
        shaky.start(shaky.port)

    killer = threading.Thread(target=restart)
    killer.start()
    with Store(tmp_path) as store:
        assert client.run(jobs(30), [steady.client(), shaky.client()], store) == []
        killer.join()
        found = client.summary(jobs(30), store)
        assert all(job["done"] for job in found) and {job["server"] for job in found} == {steady.url, shaky.url}
        keys = [key for job in found for key in job["records"]]
        assert len(set(keys)) == 30 == len(list(store.records()))
    total = steady.done + shaky.done
    assert len(total) == 30 and sum(total.values()) <= 31, "what ended just before the kill took its result along"
    steady.kill(), shaky.kill()


def test_a_server_that_stays_away_leaves_its_prompt_to_the_other(tmp_path):
    steady, gone = Fake(), Fake(work=30)
    timer = threading.Timer(0.2, gone.kill)
    timer.start()
    with Store(tmp_path) as store:
        assert client.run(jobs(6), [gone.client(patience=0.3), steady.client()], store) == []
        assert {job["server"] for job in client.summary(jobs(6), store)} == {steady.url}
    steady.kill()


def test_when_all_servers_are_away_the_rest_is_done_by_the_next_call(fake, tmp_path):
    fake.kill()
    with Store(tmp_path) as store:
        with pytest.raises(client.Unreachable, match="3 of 3 prompts are left"):
            client.run(jobs(3), [fake.client(patience=0.1)], store)
        fake.start(fake.port)
        assert client.run(jobs(3), [fake.client()], store) == []


def test_what_a_killed_client_had_sent_is_waited_for_not_sent_again(fake, tmp_path):
    class Killed(client.Server):
        def _wait(self, ticket: str) -> None:
            raise KeyboardInterrupt

    fake.work = 0.2
    with Store(tmp_path) as store, pytest.raises(KeyboardInterrupt):
        client.run(jobs(2), [Killed(fake.url)], store)
    assert len(fake.pending) == 1
    with Store(tmp_path) as store:
        assert client.run(jobs(2), [fake.client()], store) == []
    assert len(fake.done) == 2 and set(fake.done.values()) == {1}


def test_a_failure_says_why_costs_only_itself_and_is_tried_again_next_time(fake, tmp_path):
    fake.outcome = lambda prompt: "error" if prompt["3"]["inputs"]["steps"] == 2 else "success"
    with Store(tmp_path) as store:
        assert client.run(jobs(3), [fake.client()], store) == [f"3.steps=2: {fake.url}: SIFM_Immunize: eps is odd"]
        fake.outcome = lambda prompt: "success"
        assert client.run(jobs(3), [fake.client()], store) == []
    assert set(fake.done.values()) == {1} and len(fake.done) == 3


def test_out_of_memory_is_tried_again_at_once_and_an_invalid_prompt_is_not(fake, tmp_path):
    tries = iter(["success", "oom", "success", "success"])  # asked when it arrives and when it ends
    fake.outcome = lambda prompt: next(tries)
    with Store(tmp_path) as store:
        assert client.run(jobs(1), [fake.client()], store) == []
        fake.outcome = lambda prompt: "invalid"
        refusal = client.run(jobs(2), [fake.client()], store)[0]
        assert "LoadImage: image - image: no such file" in refusal and refusal.count("no such file") == 1


def test_inputs_are_named_by_id_title_or_class(tmp_path):
    assert [job.label for job in client.vary(GRAPH, {}, {"3.eps": [0.01, 0.02], "Pictures.start": [5]})] == [
        {"3.eps": 0.01, "Pictures.start": 5},
        {"3.eps": 0.02, "Pictures.start": 5},
    ]
    (job,) = client.vary(GRAPH, {"SIFM_Immunize.eps": 0.5}, {})
    assert job.prompt["3"]["inputs"]["eps"] == job.prompt["4"]["inputs"]["eps"] == 0.5
    assert GRAPH["3"]["inputs"]["eps"] == 0.03
    for wrong, said in {"3.epss": "it has eps, steps", "Nobody.eps": "the classes are LoadImage"}.items():
        with pytest.raises(InputError, match=said):
            client.vary(GRAPH, {wrong: 1}, {})


def test_pictures_are_uploaded_under_a_name_of_their_content(fake, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(2):
        (tmp_path / "in" / f"p{i}.png").write_bytes(png_bytes(fakes.images(1, 8, seed=i)))
    made = client.for_pictures(client.vary(GRAPH, {}, {}), sorted((tmp_path / "in").iterdir()))
    assert len({job.prompt["1"]["inputs"]["image"] for job in made}) == 2 == len({job.key for job in made})
    with Store(tmp_path / "out") as store:
        client.run(made, [fake.client()], store)
    assert len(fake.uploads) == 2 and (tmp_path / "in" / "p0.png").read_bytes() in fake.uploads[0]
    with pytest.raises(InputError, match="LoadImage"):
        client.for_pictures(client.vary({"2": GRAPH["2"]}, {}, {}), [tmp_path / "in" / "p0.png"])


def test_the_command_sweeps_the_benchmark_and_resumes(fake, tmp_path, capsys):
    file = tmp_path / "w.json"
    file.write_text(json.dumps(GRAPH))
    call = ["queue", str(file), "-o", str(tmp_path / "out"), "--server", fake.url, "--images", "benchmark"]
    call += ["--count", "2", "--sweep", "3.eps=0.01,0.02", "--set", "4.steps=7", "--json"]
    assert main([*call, "--dry-run"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4 and not fake.done
    assert main(call) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["jobs"][0]["label"] == {"picture": 0, "3.eps": 0.01} and said["failed"] == []
    assert main(call) == 0 and len(fake.done) == 4 and set(fake.done.values()) == {1}
    assert main(["queue", str(tmp_path / "none.json"), "-o", str(tmp_path / "out")]) == 2


def test_the_editors_format_stands_for_the_api_format_beside_it(tmp_path):
    (tmp_path / "api").mkdir()
    (tmp_path / "w.json").write_text(json.dumps({"nodes": [], "links": []}))
    with pytest.raises(InputError, match="API format"):
        client.load_workflow(tmp_path / "w.json")
    (tmp_path / "api" / "w.json").write_text(json.dumps(GRAPH))
    assert client.load_workflow(tmp_path / "w.json") == GRAPH


# ---- what is absurd, hostile or no ComfyUI

WORKFLOWS = {
    "deep": "[" * 100_000,
    "inputs of another kind": json.dumps({"1": {"class_type": "LoadImage", "inputs": []}}),
    "a class of another kind": json.dumps({"1": {"class_type": ["LoadImage"], "inputs": {}}}),
    "a title of another kind": json.dumps({"1": {"class_type": "A", "inputs": {}, "_meta": {"title": []}}}),
    "about that is none": json.dumps({"1": {"class_type": "A", "inputs": {}, "_meta": 3}}),
    "empty": "{}",
    "a list": "[]",
    "long": '"' + "x" * 10**6,
}


@pytest.mark.parametrize("text", WORKFLOWS.values(), ids=WORKFLOWS)
def test_a_workflow_that_is_none_is_refused_in_one_sentence(tmp_path, capsys, text):
    (tmp_path / "w.json").write_text(text)
    assert main(["queue", str(tmp_path / "w.json"), "-o", str(tmp_path / "out"), "--set", "1.x=2"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and len(said) < 1100 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--patience", "nan"], "patience: expected 0 to"),
        (["--patience", "inf"], "patience: expected 0 to"),
        (["--patience=-1"], "patience: expected 0 to"),
        (["--server", "http://"], "server: expected an address"),
        (["--server", "http://127.0.0.1:port"], "server: expected an address"),
        (["--images", "benchmark", "--count", "1000000000"], "expected 1 to 100,000 prompts"),
        (["--images", "benchmark", "--count=-1"], "expected 1 to 100,000 prompts"),
        (["--images", "benchmark", "--start=-1"], "start: expected 0 or more"),
        ([w for name in ("3.eps", "4.eps", "3.steps", "4.steps") for w in ("--sweep", f"{name}={WIDE}")], "8.1e+09"),
    ],
)
def test_absurd_numbers_are_refused_before_anything_is_sent(fake, tmp_path, capsys, words, said):
    (tmp_path / "w.json").write_text(json.dumps(GRAPH))
    assert main(["queue", str(tmp_path / "w.json"), "-o", str(tmp_path / "out"), "--server", fake.url, *words]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1 and len(err) < 1100 and not fake.uploads and not fake.done


@pytest.mark.parametrize("path", ["/history", "/queue", "/sifm"])
@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"[" * 100_000, b'{"records": [[]], "queue_running": 3}'])
def test_a_server_that_is_no_comfyui_costs_its_prompts_and_nothing_else(fake, tmp_path, monkeypatch, path, answer):
    get = client.Server.get
    monkeypatch.setattr(client.Server, "get", lambda self, at: answer if at.startswith(path) else get(self, at))
    fake.work = 0.1  # so that it is asked whether it knows the prompt
    with Store(tmp_path) as store:
        failures = client.run(jobs(1), [fake.client()], store)
        assert len(failures) == 1 and "expected" in failures[0] and "3.steps=1" in failures[0]
        monkeypatch.setattr(client.Server, "get", get)
        assert client.run(jobs(1), [fake.client()], store) == [] and len(list(store.records())) == 1


LATER = {"judge": "a", "state": "ok", "certainty": 1}


@pytest.mark.parametrize(
    "change", [{"verdicts": [LATER]}, {"metrics": {"psnr": 3}}, {"seed": "x"}, {"key": None}, {"prompt": []}]
)
def test_an_odd_record_costs_its_prompt(fake, tmp_path, monkeypatch, change):
    odd = record("x") | change
    monkeypatch.setitem(globals(), "record", lambda run: odd)
    with Store(tmp_path) as store:
        (failure,) = client.run(jobs(1), [fake.client()], store)
        assert "expected a record" in failure and not list(store.records())


def test_an_answer_without_an_end_is_given_up(fake, monkeypatch):
    monkeypatch.setattr(client, "LARGEST", 1000)
    monkeypatch.setattr(fake, "history", {"x": {"status": {"status_str": "y" * 5000}}})
    with pytest.raises(client.Unreachable, match="has no end"):
        fake.client(patience=0.0).get("/history/x")


def test_a_name_that_no_request_can_hold_is_sent_under_another(fake, tmp_path):
    odd = tmp_path / 'a"b\r\nX: y.png'
    odd.write_bytes(png_bytes(PICTURE))
    made = client.for_pictures(client.vary(GRAPH, {}, {}), [odd])
    with Store(tmp_path / "out") as store:
        assert client.run(made, [fake.client()], store) == []
    assert b'-a_b__X: y.png"\r\n' in fake.uploads[0]
