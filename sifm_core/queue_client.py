"""Many prompts on one or several ComfyUI servers, through their HTTP API: resumable, and each result exactly once.

A prompt's id is made from its content. So whatever was lost (an answer, the connection, this process, the server), the
server can be asked whether it knows the prompt before it is sent again. What is done stands in a store
(:mod:`sifm_core.store`), with the records and pictures of the runs that the prompts made.
"""

from __future__ import annotations

import copy
import http.client
import io
import itertools
import json
import math
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

import numpy as np
from PIL import Image as Pillow

from .errors import InputError, SifmError
from .files import read_text, within, write_atomically
from .images import from_uint8
from .shapes import misfit
from .store import Store, fingerprint, record_of
from .types import Image, OnStep, Record, Step

Prompt: TypeAlias = dict[str, dict[str, Any]]
"""A graph in API format: node id -> class_type, inputs, _meta."""
TRIES = 3
"""How often a prompt is sent that the server forgot or failed to finish."""
MOST_JOBS, MOST_PATIENCE = 100_000, 7 * 86400.0
"""Prompts of one call; seconds that a server may be away."""
LARGEST, LONGEST = 256 << 20, 600.0
"""Bytes of one answer, and the seconds that it may take."""


class _Titled(TypedDict, total=False):
    title: str


class _Tagged(TypedDict, total=False):
    _meta: _Titled


class _Node(_Tagged):
    class_type: str
    inputs: dict[str, Any]


class _Status(TypedDict, total=False):
    status_str: str
    messages: list[list[Any]]


class _Entry(TypedDict):
    status: _Status


class _Queue(TypedDict):
    queue_running: list[list[Any]]
    queue_pending: list[list[Any]]


class _Output(TypedDict, total=False):
    sifm_run: list[str]


class _File(TypedDict):
    filename: str
    subfolder: str
    type: str


class _Run(TypedDict):
    records: list[dict[str, Any]]


class Unreachable(SifmError):
    """A server did not answer for longer than the caller's patience."""


class Refused(SifmError):
    """A server refused a prompt, or a prompt failed on it."""


@dataclass(frozen=True)
class Job:
    """A prompt; ``label`` says what was set in it; ``pictures``: file name on the server -> local file to upload."""

    prompt: Prompt
    label: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, Path] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Hash of everything that the result depends on."""
        content = {name: fingerprint(content=path.read_bytes().hex()) for name, path in self.pictures.items()}
        return fingerprint(prompt=self.prompt, pictures=content)


def load_workflow(path: Path) -> Prompt:
    """A graph in API format; for one in the editor's format, the API format in ``api/`` beside it, under the name that
    its ``extra.api`` gives, else under its own.

    Raises InputError for what is neither.
    """
    try:
        graph = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a workflow as JSON ({error})") from None
    if isinstance(graph, dict) and "nodes" in graph and (beside := _beside(path, graph)):
        return load_workflow(beside)
    if not graph or misfit(graph, dict[str, _Node]):
        raise InputError(f"{path}: expected API format; export it in ComfyUI with File > Export (API)")
    return graph


def _beside(path: Path, graph: Mapping[str, Any]) -> Path | None:
    extra = graph.get("extra")
    named = within(path.parent, str(extra["api"])) if isinstance(extra, dict) and "api" in extra else None
    return next((file for file in (named, path.parent / "api" / path.name) if file and file.is_file()), None)


def vary(prompt: Prompt, fixed: Mapping[str, Any], swept: Mapping[str, Sequence[Any]]) -> list[Job]:
    """A job for every combination of the swept values. An input is named NODE.INPUT, NODE an id, a title or a class.

    A title or class that several nodes have means all of them. Raises InputError for unknown names.
    """
    jobs = []
    _check_count(math.prod(map(len, swept.values())))
    for values in itertools.product(*swept.values()):
        label, made = dict(zip(swept, values, strict=True)), copy.deepcopy(prompt)
        for name, value in {**fixed, **label}.items():
            for inputs, key in _places(made, name):
                inputs[key] = value
        jobs.append(Job(made, label))
    return jobs


def _check_count(n: int) -> None:
    if not 1 <= n <= MOST_JOBS:
        raise InputError(f"expected 1 to {MOST_JOBS:,} prompts, but this makes {n:.3g}: sweep less")


def _places(prompt: Prompt, name: str) -> list[tuple[dict[str, Any], str]]:
    """(inputs, key) of each node that ``name`` means."""
    known: dict[str, list[dict[str, Any]]] = {}
    for id, node in prompt.items():
        for node_name in (id, node["class_type"], node.get("_meta", {}).get("title", "")):
            known.setdefault(node_name, []).append(node["inputs"])
    for node_name in sorted(known, key=len, reverse=True):
        key = name.removeprefix(f"{node_name}.")
        if node_name and key != name:
            if found := [(inputs, key) for inputs in known[node_name] if key in inputs]:
                return found
            inputs = ", ".join(dict.fromkeys(key for inputs in known[node_name] for key in inputs))
            raise InputError(f"{name}: {node_name} has no input {key!r}; it has {inputs}")
    nodes = ", ".join(sorted({node["class_type"] for node in prompt.values()}))
    raise InputError(f"{name}: expected NODE.INPUT with a node's id, title or class; the classes are {nodes}")


def for_pictures(jobs: Sequence[Job], pictures: Sequence[Path]) -> list[Job]:
    """Every job with every picture in its LoadImage nodes. Raises InputError when there is no such node."""
    made = []
    _check_count(len(jobs) * len(pictures))
    for job, path in itertools.product(jobs, pictures):
        name = f"{fingerprint(content=path.read_bytes().hex())[:12]}-{_UNSENDABLE.sub('_', path.name)}"
        prompt = copy.deepcopy(job.prompt)
        for inputs, key in _places(prompt, "LoadImage.image"):
            inputs[key] = f"sifm/{name}"
        made.append(Job(prompt, {"picture": path.name, **job.label}, {name: path}))
    return made


def for_benchmark(jobs: Sequence[Job], start: int, count: int) -> list[Job]:
    """Every job with each of ``count`` pictures of its Load Benchmark node, one at a time."""
    made = []
    if start < 0:
        raise InputError(f"start: expected 0 or more, got {start}")
    _check_count(len(jobs) * count)
    for job, i in itertools.product(jobs, range(start, start + count)):
        prompt = copy.deepcopy(job.prompt)
        for name, value in (("start", i), ("count", 1)):
            for inputs, key in _places(prompt, f"SIFM_LoadBenchmark.{name}"):
                inputs[key] = value
        made.append(Job(prompt, {"picture": i, **job.label}, job.pictures))
    return made


_UNSENDABLE = re.compile(r'[\x00-\x1f"\\/\ud800-\udfff]')
"""What cannot stand in a file's name within a request."""


class Server:
    """One ComfyUI. A lost connection is tried again, with growing pauses, for ``patience`` seconds."""

    def __init__(self, url: str, *, patience: float = 600.0, poll: float = 1.0, timeout: float = 60.0) -> None:
        try:
            address = urllib.parse.urlsplit(url)
            sound = address.scheme in ("http", "https") and bool(address.hostname) and (address.port or 1) > 0
        except ValueError:  # such as a port that is no number
            sound = False
        if not sound:
            raise InputError(f"server: expected an address such as http://127.0.0.1:8188, got {url!r}")
        if not 0 <= patience <= MOST_PATIENCE:  # nor NaN
            raise InputError(f"patience: expected 0 to {MOST_PATIENCE:.0f} seconds, got {patience}")
        self.url, self.patience, self.poll, self.timeout = url.rstrip("/"), patience, poll, timeout
        self._ends: dict[str, bool] = {}

    def get(self, path: str) -> bytes:
        return self._ask(lambda: urllib.request.Request(self.url + path))

    def post(self, path: str, body: bytes, kind: str = "application/json") -> bytes:
        return self._ask(lambda: urllib.request.Request(self.url + path, body, {"Content-Type": kind}))

    def _ask(self, request: Any) -> bytes:
        until, pause = time.monotonic() + self.patience, min(self.poll, 1.0)
        while True:
            try:
                with urllib.request.urlopen(request(), timeout=self.timeout) as answer:
                    return _whole(answer)
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    raise Refused(f"{self.url}: {_reason(error)}") from None
                problem: Exception = error
            except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, cut off in the middle
                problem = error
            if time.monotonic() + pause > until:
                raise Unreachable(f"{self.url} did not answer for {self.patience:.0f} s ({problem})")
            time.sleep(pause)
            pause = min(2 * pause, 30.0)

    def run(self, job: Job, name: str, known: bool) -> dict[str, Any]:
        """Send the prompt, unless the server has it (``known``: it may), and wait; its entry in the history.

        ``name`` tells this sending from all others. Raises Refused when the prompt is invalid or fails, Unreachable
        when the server is away for too long.
        """
        for attempt in range(TRIES):
            ticket = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {attempt}"))
            problem = "the server forgot it"
            if not known or not self._knows(ticket):
                for file, path in job.pictures.items():
                    self._upload(file, path)
                problem = self._send(job, ticket) or problem
            if entry := self._wait(ticket):
                if entry["status"].get("status_str") == "success":
                    return entry
                if not _transient(entry):
                    raise Refused(f"{self.url}: {_failure(entry)}")
                problem = _failure(entry)
        raise Refused(f"{self.url}: sent {TRIES} times, and at last {problem}")

    def _send(self, job: Job, ticket: str) -> str:
        """What went wrong, or nothing. It may have arrived all the same: whoever waits asks the server."""
        body = json.dumps({"prompt": job.prompt, "prompt_id": ticket, "client_id": uuid.uuid4().hex}).encode()
        request = urllib.request.Request(f"{self.url}/prompt", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                _whole(answer)
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise Refused(f"{self.url}: {_reason(error)}") from None
            return f"it answered {error.code}"
        except (OSError, http.client.HTTPException) as error:
            return f"the connection was lost ({error})"
        return ""

    def _read(self, path: str, shape: Any) -> Any:
        """The JSON at a path; Refused for what a ComfyUI does not answer."""
        try:
            found = json.loads(self.get(path))
            wrong = misfit(found, shape)
        except (ValueError, RecursionError) as error:
            wrong = str(error)
        if wrong:
            raise Refused(f"{self.url}{path}: expected a ComfyUI's answer: {wrong}; is it one, with this pack?")
        return found

    def _entry(self, ticket: str) -> dict[str, Any] | None:
        return self._read(f"/history/{ticket}", dict[str, _Entry]).get(ticket)

    def _knows(self, ticket: str) -> bool:
        if self._entry(ticket):
            return True
        queue = self._read("/queue", _Queue)
        return any(ticket in item[1:2] for part in ("queue_running", "queue_pending") for item in queue[part])

    def _wait(self, ticket: str) -> dict[str, Any] | None:
        """The history's entry, or None if the server does not know the prompt (any more).

        Asks seldom about what takes long: every ``poll`` seconds in the end, and soon about what is over at once.
        """
        pause = min(self.poll, 0.05)
        while True:
            if entry := self._entry(ticket):
                return entry
            if not self._knows(ticket):
                return self._entry(ticket)  # it may just have ended
            time.sleep(pause)
            pause = min(1.5 * pause, self.poll)

    def ends(self, kind: str) -> bool:
        """Is a node of this class one that a graph is run for? A server that does not tell is not asked again."""
        if kind not in self._ends:
            try:
                told = json.loads(self.get(f"/object_info/{urllib.parse.quote(kind, safe='')}"))
                self._ends[kind] = bool(told[kind]["output_node"])
            except (Refused, ValueError, KeyError, TypeError, RecursionError):
                self._ends[kind] = False
        return self._ends[kind]

    def _upload(self, name: str, path: Path) -> None:
        edge = uuid.uuid4().hex
        fields = {"overwrite": "true", "subfolder": "sifm", "type": "input"}
        parts = [f'--{edge}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
        head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        body = "".join([*parts, head, "Content-Type: application/octet-stream\r\n\r\n"]).encode()
        body += path.read_bytes() + f"\r\n--{edge}--\r\n".encode()
        self.post("/upload/image", body, f"multipart/form-data; boundary={edge}")


def run(jobs: Sequence[Job], servers: Sequence[Server], store: Store, on_step: OnStep | None = None) -> list[str]:
    """Finish every job that the store does not hold as done; the reasons of what failed, by label.

    Each server works on one job at a time. A job is given to another server when its own is away for too long; a server
    that is away is left out. Raises Unreachable when none is left.
    """
    work = _Work(jobs, servers, store, on_step)
    threads = [threading.Thread(target=work.serve, args=(server,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            threads[0].join(0.2)
            time.sleep(0.05)
            if work.broken:
                raise work.broken
    finally:
        work.stop.set()
    if work.left:
        raise Unreachable(f"{len(work.left)} of {len(jobs)} prompts are left: {'; '.join(work.away.values())}")
    return work.failures


class _Work:
    """What the threads of all servers share."""

    def __init__(self, jobs: Sequence[Job], servers: Sequence[Server], store: Store, on_step: OnStep | None) -> None:
        keyed = {job.key: job for job in jobs}
        self.left = deque((key, job) for key, job in keyed.items() if store.get("done", key) is None)
        self.ledger = (store.get("queue", "ledger") or {"id": uuid.uuid4().hex})["id"]
        store.put("queue", "ledger", {"id": self.ledger})
        self.store, self.on_step, self.total, self.done = store, on_step, len(keyed), len(keyed) - len(self.left)
        self.urls = [server.url for server in servers]
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.busy = 0
        self.away: dict[str, str] = {}
        self.failures: list[str] = []
        self.broken: BaseException | None = None

    def serve(self, server: Server) -> None:
        """Work on jobs until none is left."""
        try:
            while not self.stop.is_set():
                taken = self._take(server)
                if taken is None:
                    if not self.busy:
                        return
                    self.stop.wait(0.1)  # another server may give its job back
                    continue
                try:
                    self._work(server, *taken)
                finally:
                    with self.lock:
                        self.busy -= 1
                if server.url in self.away:
                    return
        except BaseException as error:
            self.broken = error

    def _take(self, server: Server) -> tuple[str, Job] | None:
        """A job that this server may already have, else one that no other living server may have."""
        with self.lock:
            where = {key: (self.store.get("sent", key) or {}).get("server") for key, _ in self.left}
            mine = [item for item in self.left if where[item[0]] == server.url]
            others = [url for url in self.urls if url != server.url and url not in self.away]
            free = [item for item in self.left if where[item[0]] not in others]
            chosen = next(iter(mine or free), None)
            if chosen:
                self.left.remove(chosen)
                self.busy += 1
            return chosen

    def _work(self, server: Server, key: str, job: Job) -> None:
        try:
            with self.lock:
                before = self.store.get("sent", key) or {"round": 0}
                self.store.put("sent", key, {"server": server.url, "round": before["round"]})
            name = f"{self.ledger} {key} {before['round']}"
            entry = server.run(job, name, before.get("server") == server.url)
            found = _collect(server, job, entry, self.store.folder / "outputs" / key[:12])
        except Unreachable as error:
            with self.lock:
                self.left.appendleft((key, job))
                self.away[server.url] = str(error)
            return
        except Refused as error:
            with self.lock:
                self.store.put("sent", key, {"round": before["round"] + 1})
                self.failures.append(f"{_label(job)}: {error}")
        else:
            with self.lock:
                for record, pictures in found["records"]:
                    for picture in pictures:
                        self.store.put_image(picture)
                    self.store.put_record(record)
                about = {"label": dict(job.label), "server": server.url}
                about |= {part: found[part] for part in ("outputs", "files", "missing")}
                self.store.put("done", key, about | {"records": [record.key for record, _ in found["records"]]})
        with self.lock:
            self.done += 1
            if self.on_step:
                self.on_step(Step("queue", self.done, self.total))


def _collect(server: Server, job: Job, entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the prompt's nodes gave: outputs as the server tells them, their files and texts in ``folder``, and the
    records of its runs with their pictures; ``missing`` says in sentences what was not found."""
    given = entry.get("outputs", {})
    outputs = {id: node for id, node in given.items() if isinstance(node, dict)} if isinstance(given, dict) else {}
    runs = dict.fromkeys(
        run for node in outputs.values() if not misfit(node, _Output) for run in node.get("sifm_run", ())
    )
    files, missing = _save(server, job, outputs, folder)
    records = []
    for run_id in runs:
        where = f"/sifm/runs/{urllib.parse.quote(run_id, safe='')}"
        for row in server._read(where, _Run)["records"]:
            # what the sidebar needs beside a record is left out
            known = {part.name: row[part.name] for part in fields(Record) if part.name in row}
            if wrong := misfit(known, Record):
                raise Refused(f"{server.url}{where}: expected a record: {wrong}; is that pack of this version?")
            record = record_of({"metrics": {}, "verdicts": (), **known})
            names = [name for name in dict.fromkeys((record.source, record.protected, record.edited)) if name]
            records.append((record, [_picture(server, where, name) for name in names]))
    return {"outputs": outputs, "records": records, "files": files, "missing": missing}


def _save(server: Server, job: Job, outputs: Mapping[str, Any], folder: Path) -> tuple[list[str], list[str]]:
    """Write every file and text of a prompt's outputs; the names of the files, and what there was not."""
    saved, missing = [], []
    for id, given in outputs.items():
        node = job.prompt.get(id.split(":")[0], {})
        name = node.get("_meta", {}).get("title") or node.get("class_type", "")
        about = _UNSAFE.sub("_", f"{id} {name}".strip())[:80]
        found = [
            item for items in given.values() if isinstance(items, list) for item in items if not misfit(item, _File)
        ]
        texts = [text for text in _lines(given.get("text")) if text]
        for i, item in enumerate({json.dumps(item, sort_keys=True): item for item in found}.values()):
            asked = {key: item[key] for key in ("filename", "subfolder", "type")}
            address = f"/view?{urllib.parse.urlencode(asked)}"
            suffix = re.sub(r"[^\w.]", "_", Path(item["filename"]).suffix)[:12]
            path = folder / f"{about} {i + 1}{suffix}"
            try:
                write_atomically(path, server.get(address))
                saved.append(path.name)
            except Refused as error:
                missing.append(f"{id} {name}: {item['filename'][:100]} ({error})")
        if texts:
            path = folder / f"{about}.md"
            write_atomically(path, "\n\n".join(texts).encode("utf-8", "backslashreplace"))
            saved.append(path.name)
        if rest := {key: items for key, items in given.items() if key.startswith("sifm_") and key not in _DRAWN}:
            path = folder / f"{about}.json"
            write_atomically(path, json.dumps(rest, indent=1).encode("utf-8", "backslashreplace"))
            saved.append(path.name)
        if not (found or texts or rest):
            missing.append(f"{id} {name}: it gave neither pictures nor texts")
    silent = [id for id, node in job.prompt.items() if id not in outputs and server.ends(node["class_type"])]
    missing += [
        f"{id} {job.prompt[id].get('_meta', {}).get('title') or job.prompt[id]['class_type']}: no output"
        for id in silent
    ]
    return saved, missing


def _lines(given: Any) -> list[str]:
    return [given] if isinstance(given, str) else [item for item in given or () if isinstance(item, str)]


_UNSAFE = re.compile(r"[^\w .-]|\.(?=\.)|^[. ]+")
"""What does not stand in the name of a collected file."""
_DRAWN = ("sifm_document", "sifm_files")
"""What is only how a page draws it, or the address of a file."""


def _picture(server: Server, where: str, name: str) -> Image:
    address = f"{where}/pictures/{urllib.parse.quote(name, safe='')}"
    png = server.get(address)
    try:
        with Pillow.open(io.BytesIO(png), formats=("PNG",)) as file:
            return from_uint8(np.asarray(file.convert("RGB")))
    except Exception as error:  # what is no picture makes Pillow raise nearly anything
        raise Refused(f"{server.url}{address}: expected a picture ({error})") from None


def _whole(answer: Any) -> bytes:
    """All of an answer; OSError where it is larger than :data:`LARGEST` or comes slower than :data:`LONGEST` allows."""
    until, parts, size = time.monotonic() + LONGEST, [], 0
    while part := answer.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > LARGEST or time.monotonic() > until:
            raise OSError(f"its answer has no end ({size} bytes in {LONGEST:.0f} s)")
    if answer.length:
        raise http.client.IncompleteRead(b"", answer.length)
    return b"".join(parts)


def _label(job: Job) -> str:
    return ", ".join(f"{name}={value}" for name, value in job.label.items()) or "the prompt"


def _reason(error: urllib.error.HTTPError) -> str:
    """What a refusal says, with the nodes' own words; what ComfyUI repeats for each input that was looked at, once."""
    try:
        said = json.loads(error.read(1 << 20))
        nodes: dict[str, str] = {}
        for node in said["node_errors"].values():
            for each in node["errors"]:
                whole = f"{node['class_type']}: {each['details']}"
                nodes.setdefault(each["details"].partition(" - ")[2] or whole, whole)
        return "; ".join([said["error"]["message"], *nodes.values()])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError, http.client.HTTPException):
        return f"HTTP {error.code} {error.reason}"


def _messages(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    listed = entry["status"].get("messages", [])
    return {m[0]: m[1] for m in listed if len(m) == 2 and isinstance(m[0], str) and isinstance(m[1], dict)}


def _failure(entry: Mapping[str, Any]) -> str:
    messages = _messages(entry)
    if error := messages.get("execution_error"):
        return f"{error.get('node_type')}: {str(error.get('exception_message')).strip()}"
    return "the prompt was interrupted" if "execution_interrupted" in messages else "the prompt failed"


def _transient(entry: Mapping[str, Any]) -> bool:
    """Is it worth another try: interrupted from outside, or out of memory?"""
    messages = _messages(entry)
    kind = str(messages.get("execution_error", {}).get("exception_type", ""))
    return "execution_interrupted" in messages or "OutOfMemory" in kind


def summary(jobs: Sequence[Job], store: Store) -> list[dict[str, Any]]:
    """Of each job what was set in it, whether it is done, where, the keys of its records, the files that were collected
    and what there was not."""
    done = [(job, store.get("done", job.key) or {}) for job in jobs]
    return [
        {
            "label": dict(job.label),
            "done": bool(about),
            "server": about.get("server", ""),
            "records": about.get("records", []),
            "folder": str(store.folder / "outputs" / job.key[:12]) if about.get("files") else "",
            "files": about.get("files", []),
            "missing": about.get("missing", []),
        }
        for job, about in done
    ]
