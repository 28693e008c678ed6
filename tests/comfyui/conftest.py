"""A real ComfyUI server with the pack linked in, on the CPU; all its files are in a temporary folder.

COMFYUI_PATH names the checkout; its own `venv` is used where there is one, else the Python that runs the tests.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "workflows"))  # for `graphs`, which describes the workflows
START, FINISH = 600, 600
"""Seconds to wait for the server and for a prompt: only a hang should ever meet them."""


class Events(Thread):
    """What the server says on its websocket, with the time of arrival: (seconds, type, data)."""

    def __init__(self, port: int, client: str) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[float, str, dict[str, Any]]] = []
        self._socket = socket.create_connection(("127.0.0.1", port))
        hello = (
            f"GET /ws?clientId={client} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        )
        self._socket.sendall(
            f"{hello}Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        while self._stream.readline() != b"\r\n":
            pass
        self.start()

    def run(self) -> None:
        while head := self._stream.read(2):
            size = head[1] & 127
            if size > 125:
                size = int.from_bytes(self._stream.read(2 if size == 126 else 8))
            body = self._stream.read(size)
            if head[0] & 15 == 1:
                message = json.loads(body)
                self.seen.append((time.monotonic(), message["type"], message["data"]))
            elif head[0] & 15 == 2:
                self.seen.append((time.monotonic(), "preview", {"bytes": body}))

    def of(self, kind: str, prompt: str | None = None) -> list[tuple[float, dict[str, Any]]]:
        return [(t, data) for t, k, data in self.seen if k == kind and prompt in (None, data.get("prompt_id"))]


class Server:
    """A ComfyUI with a folder of its own; its log goes on when it is started again."""

    key = "sk-MARKER-f3b1c2"
    """A credential in the server's environment that must turn up nowhere."""

    def __init__(self, comfyui: Path, base: Path) -> None:
        self.comfyui, self.base, self.log = comfyui, base, base / "server.log"
        self.client = uuid.uuid4().hex
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        for folder in ("custom_nodes", "input", "output", "models/diffusers", "user"):
            (base / folder).mkdir(parents=True)
        (base / "custom_nodes" / "sifm").symlink_to(ROOT)
        for file in ("faulty.py", "tiny_models.py"):
            shutil.copy(Path(__file__).with_name(file), base / "custom_nodes")
        shutil.copy(comfyui / "input" / "example.png", base / "input")

    def start(self) -> None:
        """Start it; :meth:`wait` until it answers."""
        own = self.comfyui / "venv" / "bin" / "python"
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [
                    str(own if own.exists() else sys.executable),
                    *(str(self.comfyui / "main.py"), "--cpu", "--listen", "127.0.0.1", "--port", str(self.port)),
                    *("--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"),
                    "--disable-api-nodes",
                    *(["--front-end-root", front] if (front := os.environ.get("SIFM_FRONT_END")) else []),
                ],
                cwd=self.comfyui,
                env=os.environ
                | {"OPENAI_API_KEY": self.key, "GEMINI_API_KEY": self.key}
                | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.base / "huggingface")},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        until = time.monotonic() + START
        while time.monotonic() < until:
            assert self.process.poll() is None, f"ComfyUI ended while starting:\n{self.log.read_text()[-3000:]}"
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError(f"ComfyUI did not answer:\n{self.log.read_text()[-3000:]}")

    def stop(self, kill: bool = False) -> None:
        self.process.kill() if kill else self.process.terminate()
        self.process.wait(30)

    def get(self, path: str) -> Any:
        return json.loads(self.fetch(path))

    def fetch(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def queue(self, graph: dict[str, Any]) -> str:
        status, answer = self.post("/prompt", {"prompt": graph, "client_id": self.client})
        assert status == 200, answer
        return answer["prompt_id"]

    def finished(self, prompt: str, patience: float = FINISH) -> dict[str, Any]:
        """The prompt's entry in the history, once it is over."""
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if entry := self.get(f"/history/{prompt}").get(prompt):
                return entry
            time.sleep(0.05)
        raise TimeoutError(f"prompt {prompt} did not end:\n{self.log.read_text()[-3000:]}")

    def run(self, graph: dict[str, Any]) -> dict[str, Any]:
        """Queue a graph, wait, and give its history entry; fails with the node's error if there is one."""
        entry = self.finished(self.queue(graph))
        last = entry["status"]["messages"][-1][1]
        assert entry["status"]["status_str"] == "success", {k: last.get(k) for k in ("node_type", "exception_message")}
        return entry


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("COMFYUI_PATH names no ComfyUI checkout: the pack on a server is NOT tested")
    yield from _running(Server(Path(path).expanduser(), tmp_path_factory.mktemp("comfyui") / "base"))


@pytest.fixture
def other_server(server, tmp_path):
    """A second one, for the tests that need two or kill one."""
    yield from _running(Server(server.comfyui, tmp_path / "base"))


def _running(server: Server) -> Iterator[Server]:
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def events(server):
    """The server's messages to the client that queues the prompts."""
    return Events(server.port, server.client)
