"""What the sidebar asks the server: runs, their pictures, and what a person says of them. All under ``/sifm/``.

Runs and pictures are named by ids, never by paths, so nothing outside the pack's own folder can be read. Requests that
a page of another origin makes are refused, and so is a body that is larger than any answer needs to be. A page whose
own name was made to point at this machine (DNS rebinding) is of another origin too: the host must be an address, a
name of the local network, or stand in the environment variable SIFM_HOSTS.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from aiohttp import web

from sifm_core import report
from sifm_core.annotate import cases_in, todo
from sifm_core.errors import SifmError, StoreError
from sifm_core.images import png_bytes
from sifm_core.judges.human import add_answer, answer_of, answers_in, name_of
from sifm_core.report.cells import categories, distances, failures, rates
from sifm_core.store import Store
from sifm_core.verdicts import consensus

from ._cards import told
from ._shown import recalled
from ._store import ANNOTATIONS, CLEARED, clear, home, limit, set_limit, sizes

LARGEST = 4096
"""Bytes of a request's body."""
_RUN, _PICTURE = (re.compile(rf"[0-9a-f]{{{n}}}") for n in (12, 64))

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def register(table: web.RouteTableDef) -> None:
    """Add the pack's routes to the server's."""
    table.get("/sifm/runs")(_guarded(_runs))
    table.get("/sifm/runs/{run}")(_guarded(_run))
    table.get("/sifm/runs/{run}/pictures/{picture}")(_guarded(_picture))
    table.get("/sifm/runs/{run}/cases")(_guarded(_cases))
    table.post("/sifm/annotations")(_guarded(_annotate))
    table.get("/sifm/shown/{workflow}")(_guarded(_shown))
    table.get("/sifm/storage")(_guarded(_storage))
    table.post("/sifm/storage")(_guarded(_change_storage))


def _guarded(work: Callable[..., Any]) -> Handler:
    """The handler of ``work(request's parts, query, body)``, which runs in a thread and returns plain data or PNG."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if not _is_local(request.host):
            said = f"{request.host[:80]}: to open the sidebar under this name, start ComfyUI with it in SIFM_HOSTS"
            return web.json_response({"error": said}, status=403)
        if not _same_origin(request):
            return web.json_response({"error": "another page may not ask this"}, status=403)
        body: Any = {}
        if request.method == "POST":
            if request.content_type != "application/json":
                return web.json_response({"error": "expected JSON"}, status=415)
            if (request.content_length or 0) > LARGEST:
                return web.json_response({"error": f"at most {LARGEST} bytes"}, status=413)
            try:
                raw = b""
                while len(raw) <= LARGEST and (piece := await request.content.read(LARGEST + 1 - len(raw))):
                    raw += piece  # a body comes in as many pieces as the network likes
                body = json.loads(raw) if len(raw) <= LARGEST else None
            except (ValueError, RecursionError):
                body = None
            if not isinstance(body, dict):
                return web.json_response({"error": "expected a JSON object"}, status=400)
        try:
            found = await asyncio.to_thread(work, dict(request.match_info), dict(request.query), body)
        except LookupError as error:
            return web.json_response({"error": str(error.args[0])}, status=404)
        except (SifmError, ValueError) as error:
            return web.json_response({"error": str(error)}, status=400)
        if isinstance(found, bytes):
            keep = {"Cache-Control": "private, max-age=31536000, immutable"}  # named by its content
            return web.Response(body=found, content_type="image/png", headers=keep)
        return web.json_response(found)

    return handle


def _same_origin(request: web.Request) -> bool:
    """Is this from ComfyUI's own page, or from no page at all?"""
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        return False
    origin = request.headers.get("Origin")
    return origin is None or origin.partition("://")[2] == request.headers.get("Host")


def _is_local(host: str) -> bool:
    """Is it a host that nobody outside can have named: an address, localhost, a name without a dot or one that is
    allowed?"""
    name = (host.partition("]")[0].lstrip("[") if host.startswith("[") else host.rpartition(":")[0] or host).lower()
    allowed = [name.strip().lower() for name in os.environ.get("SIFM_HOSTS", "").split(",")]
    with suppress(ValueError):
        return bool(ip_address(name))
    return bool(name) and ("." not in name or name.endswith((".localhost", ".local")) or name in allowed)


def _folder(run: str) -> Path:
    folder = home() / "runs" / run
    if not _RUN.fullmatch(run) or not (folder / "run.sqlite").is_file():
        raise LookupError("no such run")
    return folder


def _runs(parts: dict[str, str], query: dict[str, str], body: Any) -> Any:
    folders = [f for f in (home() / "runs").glob("*") if _RUN.fullmatch(f.name) and (f / "run.sqlite").is_file()]
    listed = sorted(((f / "run.sqlite").stat().st_mtime, f) for f in folders)
    return [{"id": folder.name, "time": time, **_about(folder)} for time, folder in reversed(listed)]


def _about(folder: Path) -> dict[str, Any]:
    try:
        with Store(folder, create=False) as store:
            records, missing = list(store.records()), store.missing()
    except StoreError as error:
        return {"error": str(error)}
    editors = sorted({record.editor for record in records})
    methods = list(dict.fromkeys(record.method for record in records))
    return {
        "records": len(records),
        "pictures": len({r.image for r in records}),
        "editors": editors,
        "methods": methods,
    } | ({"error": missing} if missing else {})


def _run(parts: dict[str, str], query: dict[str, str], body: Any) -> Any:
    with Store(_folder(parts["run"]), create=False) as store:
        records = list(store.records())
        made = report.build(store)
    tables = {"rates": rates, "failures": failures, "categories": categories, "distances": distances}
    blocks = [{"title": p.title} | {name: cells(p.lines) for name, cells in tables.items()} for p in made.parts]
    shown = [asdict(r) | {"failed": consensus(r.verdicts), "said": list(map(told, r.verdicts))} for r in records]
    about = {"headline": made.headline, "trust": made.trust, "reading": made.reading}
    return {"id": parts["run"], **about, "blocks": blocks, "records": shown}


def _picture(parts: dict[str, str], query: dict[str, str], body: Any) -> bytes:
    folder, name = _folder(parts["run"]), parts["picture"]
    with Store(folder, create=False) as store:
        if not _PICTURE.fullmatch(name) or not store.has_image(name):
            raise LookupError("no such picture")
        return png_bytes(store.get_image(name))


def _cases(parts: dict[str, str], query: dict[str, str], body: Any) -> Any:
    """What this person has not judged yet."""
    who = name_of(query.get("annotator", ""))
    with Store(_folder(parts["run"]), create=False) as store:
        named = cases_in(store.records(), store)
    return {"total": len(named), "cases": todo(named, who, answers_in(home() / ANNOTATIONS), parts["run"])}


def _annotate(parts: dict[str, str], query: dict[str, str], body: dict[str, Any]) -> Any:
    add_answer(home() / ANNOTATIONS, answer_of(body))
    return {"ok": True}


def _shown(parts: dict[str, str], query: dict[str, str], body: Any) -> Any:
    return recalled(parts["workflow"])


def _storage(parts: dict[str, str], query: dict[str, str], body: Any) -> Any:
    return {"parts": sizes(), "cleared": CLEARED, "limit": limit(), "folder": "user/sifm"}


def _change_storage(parts: dict[str, str], query: dict[str, str], body: dict[str, Any]) -> Any:
    """Clear a part, or set the limit of the results."""
    if "clear" in body:
        clear(str(body["clear"]))
    if "limit" in body:
        set_limit(body["limit"])
    return _storage(parts, query, body)
