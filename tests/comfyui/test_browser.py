"""What nodes show, in a real browser: SIFM_BROWSER names a chromium, which the package playwright drives.

SIFM_FRONT_END may name the folder of another front end than the server's own (`comfyui_frontend_package/static`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import layout
import pytest

pytestmark = pytest.mark.comfyui
PATIENCE = 60
"""Seconds until a page shows what it should."""
STATE = """() => {
  const ours = window.app.graph._nodes.filter((node) => node.comfyClass?.startsWith("SIFM_"));
  return Object.fromEntries(ours.map((node) => {
    const widgets = (node.widgets ?? []).filter(({ name, element }) => element && name.startsWith("sifm_"));
    const parts = widgets.map(({ element }) => element);
    const all = (tag, name) =>
      parts.flatMap((part) => [...part.querySelectorAll(tag)].map((element) => element.getAttribute(name)));
    return [`${node.id} ${node.title}`, {
      said: parts.map((part) => part.textContent),
      pictures: all("img", "src"),
      curves: all("polyline", "points"),
      images: (window.app.nodeOutputs[node.id]?.images ?? []).map(({ filename }) => filename),
    }];
  }));
}"""
"""What the pack's nodes show: words, pictures and curves of their own, and the pictures that ComfyUI draws in them."""


def everything(info: dict[str, Any]) -> dict[str, Any]:
    """A small graph with every node that shows something."""
    g = layout.Graph(info)
    g.group("Protect", "All that shows something.")
    setup, bench = g.add("SIFM_Setup"), g.add("SIFM_LoadBenchmark", count=1)
    seed = g.add("PrimitiveInt", "Seed", value=0).INT
    given = {"image": bench.image, "editor": setup.editor, "prompt": bench.prompt, "seed": seed, "steps": 2}
    g.add("SIFM_FeatureHook", editor=setup.editor)
    g.column()
    sifm = g.add("SIFM_Immunize", **given)
    noise = g.add("SIFM_BaselineImmunize", **given, method="random_noise")
    g.add("SIFM_SaveProtected", protection=sifm.protection)
    g.column()
    toy = {"against": "miniature-ip2p", "demonstration": True}
    done = g.add("SIFM_ProtectImage", image=bench.image, strength="subtle", variant=seed, **toy)
    judges = {f"judge_{i}": layout.Out(setup, f"judge_{i}") for i in (1, 2)}
    g.add("SIFM_DoesItHold", image=done.image, source=bench.image, words="make it night", **toy)
    g.column()
    shared = {"image": bench.image, "prompt": bench.prompt, "id": layout.Out(bench, "id")}
    plan = g.add("SIFM_AttackPlan", protections=[sifm.protection, noise.protection], **shared)
    attack = {"image": plan.image, "prompt": plan.prompt, "purifier": plan.purifier, "editor": setup.editor}
    edit = g.add("SIFM_AttackerEdit", seed=seed, **attack)
    case = {"source": plan.source, "prompt": plan.prompt, "edited": edit.edited}
    said = [g.add("SIFM_MLLMJudge", **case, chosen=chosen).verdicts for chosen in judges.values()]
    g.column()
    table = g.add("SIFM_ResultsTable", attack=plan.attack, edit=edit.edit, judges=said)
    g.add("SIFM_ComparisonGrid", records=table.records)
    g.add("SIFM_RecordsExport", records=table.records)
    g.add("SIFM_ConsistencyReport", models=said, people=said, attack=plan.attack)
    g.column()
    straight = {"source": bench.image, "prompt": bench.prompt, "edited": sifm.protected}
    g.add("SIFM_ISRAggregate", judges=[g.add("SIFM_MLLMJudge", **straight, clean_edit=bench.image).verdicts])
    g.add("SIFM_ClipScore", source=bench.image, edited=sifm.protected, text=bench.prompt)
    return g.ui()


@pytest.fixture(params=[False, True], ids=["classic", "nodes 2.0"])
def page(request, other_server) -> Iterator[Any]:
    """ComfyUI's page in one of its two renderers."""
    browser = os.environ.get("SIFM_BROWSER")
    if not browser:
        pytest.skip("SIFM_BROWSER names no chromium: what nodes show in a browser is NOT tested")
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    for name, value in {"Comfy.VueNodes.Enabled": request.param, "Comfy.TutorialCompleted": True}.items():
        other_server.post(f"/settings/{name}", value)
    with (
        sync_api.sync_playwright() as play,
        play.chromium.launch(executable_path=browser, args=["--no-sandbox"]) as opened,
    ):
        made = opened.new_page(viewport={"width": 1600, "height": 1000})
        made.complaints = []
        made.on("pageerror", lambda error: made.complaints.append(str(error)))
        made.on("console", lambda line: made.complaints.append(f"{line.text} {line.location}"))
        made.goto(other_server.url)
        ready(made)
        yield made


def ready(page: Any) -> None:
    page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=1000 * PATIENCE)
    page.wait_for_timeout(2000)


def command(page: Any, name: str) -> None:
    page.evaluate("(name) => window.app.extensionManager.command.execute(name)", name)
    page.wait_for_timeout(500)


def finished(server: Any, runs: int) -> None:
    until = time.monotonic() + 300
    while len(history := server.get("/history")) < runs:
        assert time.monotonic() < until
        time.sleep(0.2)
    last = [entry["status"]["messages"][-1] for entry in history.values()]
    assert not [said.get("exception_message", kind) for kind, said in last if kind != "execution_success"]


def settled(page: Any, wanted: Any) -> Any:
    """What the page shows once that is ``wanted``, or what it shows at last."""
    until = time.monotonic() + PATIENCE
    while not wanted(state := page.evaluate(STATE)) and time.monotonic() < until:
        page.wait_for_timeout(200)
    return state


def test_what_nodes_show_survives_another_tab_a_run_behind_it_a_reload_and_a_restart(page, other_server):
    info = other_server.get("/object_info")
    graph = everything(info)
    shows = {name for name, about in info.items() if name.startswith("SIFM_") and about["output_node"]}
    assert shows <= {node["type"] for node in graph["nodes"]}
    page.evaluate("(graph) => window.app.loadGraphData(graph, true, true, 'everything')", graph)
    page.wait_for_timeout(1000)
    before = page.evaluate(STATE)

    page.evaluate("window.app.queuePrompt(0, 1)")
    finished(other_server, 1)
    silent = ("Exp", "Setup", "Load", "Plan", "Edit", "Hook", "and Judges", "Grid", "Save")  # no words of their own
    first = settled(page, lambda now: all(now[n]["said"] != before[n]["said"] for n in now if before[n]["said"]))
    assert not [n for n in first if before[n]["said"] and first[n]["said"] == before[n]["said"]]
    assert [n for n in first if first[n]["images"]] and [n for n in first if first[n]["curves"]]
    assert [n for n in first if not first[n]["said"] and not any(part in n for part in silent)] == []

    command(page, "Comfy.NewBlankWorkflow")
    assert page.evaluate(STATE) == {}
    command(page, "Workspace.PreviousOpenedWorkflow")
    assert settled(page, lambda now: now == first) == first, "after another tab"

    page.evaluate("""() => {
      window.app.graph._nodes.find(({ title }) => title === "Seed").widgets[0].value = 1;
      window.app.queuePrompt(0, 1);
    }""")
    page.wait_for_timeout(300)
    command(page, "Workspace.NextOpenedWorkflow")
    assert page.evaluate(STATE) == {}
    finished(other_server, 2)
    command(page, "Workspace.PreviousOpenedWorkflow")
    second = settled(page, lambda now: all(now[n] != first[n] for n in now if "Immunize" in n or "Protect Image" in n))
    assert [n for n in second if second[n] != first[n]], "a run that ended behind another tab"

    page.reload()
    ready(page)
    assert settled(page, lambda now: now == second) == second, "after a reload"
    other_server.stop()
    other_server.start()
    other_server.wait()
    page.reload()
    ready(page)
    assert settled(page, lambda now: now == second) == second, "after a restart"
    assert not [line for line in page.complaints if "/extensions/sifm/" in line]
